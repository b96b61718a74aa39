//! Log lines and traces.
