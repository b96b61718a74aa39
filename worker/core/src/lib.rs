//! The worker's decisions: pure functions without I/O, clock or randomness.

pub mod enforcement;
pub mod progress;
pub mod report;
pub mod segment;
