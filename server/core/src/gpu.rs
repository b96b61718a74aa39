//! Faults of GPUs, as workers tell them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::outcome::words;

/// What is wrong with a GPU, or with how a job uses it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuFault {
    /// The device's UUID; empty when nobody knows which one it is.
    pub gpu: String,
    /// Its name; empty when it is not known.
    pub name: String,
    /// What kind of thing.
    pub kind: GpuFaultKind,
    /// The figure that belongs to the kind.
    pub number: i64,
    /// The same in a sentence, without a final full stop.
    pub message: String,
}

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuFaultKind {
    /// The driver has lost it.
    Lost,
    /// Its memory had errors that cannot be corrected, so many of them.
    Memory,
    /// The driver reports a critical Xid, which is the figure.
    Xid,
    /// A job's output says so.
    Output,
    /// The driver does not answer.
    Silent,
    /// A probe found something else.
    Unfit,
    /// The job it was given to has not used it for so many seconds.
    Unused,
    /// The job it was given to takes so many times as long for an item as it did before.
    Slow,
}

words!(GpuFaultKind {
    Lost = "lost",
    Memory = "memory",
    Xid = "xid",
    Output = "output",
    Silent = "silent",
    Unfit = "unfit",
    Unused = "unused",
    Slow = "slow",
});

impl GpuFault {
    /// The GPU as people may know it: its name, and enough of its UUID to tell it from another.
    pub fn called(&self) -> String {
        let short: String = self.gpu.chars().take(SHORT_UUID).collect();
        match (self.name.as_str(), short.as_str()) {
            ("", short) => short.to_owned(),
            (name, "") => name.to_owned(),
            (name, short) => format!("{name} ({short})"),
        }
    }
}

/// Characters of a UUID that are shown: `GPU-` and eight digits.
const SHORT_UUID: usize = 12;
