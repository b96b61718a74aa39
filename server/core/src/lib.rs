//! The coordinator's decisions: pure functions on recorded facts. No I/O, no clock, no randomness:
//! the time and random numbers are arguments.

pub mod attempt;
pub mod id;
pub mod job;
pub mod outcome;
pub mod progress;
pub mod spec;
pub mod tracker;
