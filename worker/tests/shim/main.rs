//! The shim with real processes.

mod harness;

mod ends;
mod limits;
mod output;
mod silence;
mod starts;
mod trees;
