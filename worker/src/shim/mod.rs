//! The shim: the small, synchronous program that owns a job's processes.
//!
//! `qctl-worker shim --segment FILE --socket PATH` takes the lock of the segment, which an agent
//! has created, and runs one assignment after the other. It outlives the agent: everything it
//! learns is in the segment, every limit is enforced here, and over the socket it only rings.

pub mod records;
