//! One type per kind of number, so that a fence is never taken for a job.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident($inner:ty);)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
            #[serde(transparent)]
            pub struct $name(pub $inner);

            impl From<$inner> for $name {
                fn from(inner: $inner) -> Self {
                    Self(inner)
                }
            }

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    self.0.fmt(f)
                }
            }
        )*
    };
}

ids! {
    /// A job's sequence number; also its place in the queue among equals in priority.
    JobId(i64);
    /// Counts a job's attempts, from 1.
    AttemptNumber(i32);
    /// Number of an attempt among all attempts; never reused, guards every write about it.
    Fence(i64);
    /// A worker's identity, kept in its data folder.
    WorkerId(Uuid);
    /// A coordinator's leadership term; grows at every start.
    Term(i64);
}
