//! Connected workers.
