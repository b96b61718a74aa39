//! What this machine has.

pub mod gpu;
pub mod host;
pub mod probe;
