//! The worker's decisions: pure functions without I/O, clock or randomness.

pub mod adoption;
pub mod agent;
pub mod checkpoint;
pub mod colours;
pub mod dead_man;
pub mod ending;
pub mod enforcement;
pub mod gpu;
pub mod guard;
pub mod lease_guard;
pub mod log_offsets;
pub mod measure;
pub mod position;
pub mod progress;
pub mod report;
pub mod ring;
pub mod roster;
pub mod segment;
pub mod session;
pub mod silence;
