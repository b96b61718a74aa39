//! The coordinator's decisions: pure functions on recorded facts, without I/O, clock or randomness.
