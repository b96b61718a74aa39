//! Processes of this machine: who they are, who descends from whom, and how to end all of them.
//!
//! A process id alone names nobody for long: ids are reused. A process is identified by boot id,
//! process id and start time, and a signal is only sent through a pidfd whose start time was
//! checked after it was opened.

pub mod identity;
pub mod marker;
pub mod signal;
pub mod snapshot;
pub mod sweep;
