//! Flags, environment and file, checked once.
