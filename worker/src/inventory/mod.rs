//! What this machine has.

pub mod gpu;
pub mod host;
pub(crate) mod place;
pub mod probe;
