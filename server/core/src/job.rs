//! A job's life: the only place that gives a job its state.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::outcome::words;

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for a dependency or a time.
    Waiting,
    /// A person must look or release it.
    Held,
    /// Waits its turn; a worker may have it ready already.
    Queued,
    /// An attempt runs.
    Running,
    /// Ended well.
    Succeeded,
    /// Ended badly.
    Failed,
    /// Ended by a person's wish, or because it can never run.
    Cancelled,
}

words!(JobState {
    Waiting = "waiting",
    Held = "held",
    Queued = "queued",
    Running = "running",
    Succeeded = "succeeded",
    Failed = "failed",
    Cancelled = "cancelled",
});

impl JobState {
    /// True when nothing changes the job any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}
