//! The shim with real processes.

mod harness;

mod ends;
mod limits;
mod output;
mod starts;
mod trees;
