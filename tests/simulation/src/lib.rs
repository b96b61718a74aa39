//! A seeded simulation of a whole queue: virtual time, one source of randomness, and the decisions
//! that are shipped. What decides is `qctl-server-core` and `qctl-worker-core`; what acts (network,
//! database, disks, processes, people) is modelled here, and breaks as often as the seed says.
//!
//! `docs/simulation.md` says what is driven, what is modelled, and what must hold.

pub mod double;
mod random;
mod world;

pub use random::Random;
pub use world::{Failure, Flips, Summary, World};
