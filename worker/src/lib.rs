//! The worker agent, and the shim that owns a job's processes.

pub mod process;
pub mod shim;
