//! The worker's decisions: pure functions without I/O, clock or randomness.

pub mod segment;
