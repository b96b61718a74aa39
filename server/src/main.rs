//! Thin main; everything is in the library.

fn main() {}
