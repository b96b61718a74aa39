//! Opens the database: a given one, or the embedded one.
