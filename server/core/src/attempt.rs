//! An attempt's life: the only place that gives an attempt its state.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::outcome::words;

/// Where an attempt is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptState {
    /// Given to a worker, may still be revoked.
    Assigned,
    /// Its process was started.
    Running,
    /// Over, for good.
    Ended,
}

words!(AttemptState {
    Assigned = "assigned",
    Running = "running",
    Ended = "ended",
});
