//! What is unusual about a job or a machine without being a failure: processors that are full, memory
//! that grows, a card that is hot. An alarm never stops anything. While it lasts it is one episode,
//! and an episode is told at most once.

pub mod growth;
pub mod level;
pub mod setting;
pub mod telling;
pub mod watch;

#[cfg(test)]
mod tests;

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::id::{Fence, JobId, WorkerId};
use crate::outcome::words;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Share of the machine's processors, in percent.
    Cpu,
    /// Anonymous memory of a job that grows and grows, in bytes.
    MemoryGrowth,
    /// Share of a card's memory that a job has taken, in percent.
    GpuMemory,
    /// Temperature of a machine's hottest card, in degrees Celsius.
    GpuTemperature,
    /// How long an attempt has been running, in seconds.
    RunTime,
    /// Share of the machine's memory that is taken, in percent.
    Memory,
    /// Room left on a disk that qctl writes to, in bytes.
    Disk,
    /// Processes that the kernel killed for memory.
    OutOfMemory,
    /// How far a clock jumped, in seconds.
    Clock,
    /// How long nobody has looked, in seconds.
    Looks,
}

words!(Kind {
    Cpu = "cpu",
    MemoryGrowth = "memory_growth",
    GpuMemory = "gpu_memory",
    GpuTemperature = "gpu_temperature",
    RunTime = "run_time",
    Memory = "memory",
    Disk = "disk",
    OutOfMemory = "out_of_memory",
    Clock = "clock",
    Looks = "looks",
});

/// What a figure of a kind counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Percent of the whole.
    Percent,
    /// Bytes.
    Bytes,
    /// Degrees Celsius.
    Degrees,
    /// Seconds.
    Seconds,
    /// Things.
    Count,
}

impl Kind {
    /// True when jobs are watched for it.
    pub fn is_of_jobs(self) -> bool {
        matches!(
            self,
            Self::Cpu | Self::MemoryGrowth | Self::GpuMemory | Self::RunTime
        )
    }

    /// What its figures count.
    pub fn unit(self) -> Unit {
        match self {
            Self::Cpu | Self::GpuMemory | Self::Memory => Unit::Percent,
            Self::MemoryGrowth | Self::Disk => Unit::Bytes,
            Self::GpuTemperature => Unit::Degrees,
            Self::RunTime | Self::Clock | Self::Looks => Unit::Seconds,
            Self::OutOfMemory => Unit::Count,
        }
    }

    /// True when a low figure is the bad one.
    pub fn low_is_bad(self) -> bool {
        self == Self::Disk
    }

    /// The figure from which on it is an alarm, unless somebody says otherwise.
    pub fn default_limit(self) -> i64 {
        match self {
            Self::Cpu | Self::Memory => 95,
            Self::MemoryGrowth => 2_000_000_000,
            Self::GpuMemory => 90,
            Self::GpuTemperature => 80,
            Self::RunTime => 3_600,
            // A twentieth of a smaller disk.
            Self::Disk => 20_000_000_000,
            Self::OutOfMemory => 1,
            Self::Clock => 5,
            Self::Looks => 60,
        }
    }

    /// The limits that can be set.
    pub fn limits(self) -> std::ops::RangeInclusive<i64> {
        match self.unit() {
            Unit::Percent => 1..=100,
            // A megabyte to a pebibyte.
            Unit::Bytes => 1_000_000..=1 << 50,
            Unit::Degrees => 20..=150,
            // A second to ten years.
            Unit::Seconds => 1..=10 * 366 * 24 * 60 * 60,
            Unit::Count => 1..=1_000,
        }
    }
}

/// Who an alarm is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A job.
    Job(JobId),
    /// A worker's machine.
    Worker(WorkerId),
    /// The coordinator's machine.
    Coordinator,
}

impl Subject {
    /// The stored word.
    pub fn key(self) -> String {
        match self {
            Self::Job(job) => format!("job {job}"),
            Self::Worker(worker) => format!("worker {}", worker.0),
            Self::Coordinator => "coordinator".to_owned(),
        }
    }

    /// Reads the stored word.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(' ') {
            None => (text == "coordinator").then_some(Self::Coordinator),
            Some(("job", id)) => id.parse().ok().map(|id| Self::Job(JobId(id))),
            Some(("worker", id)) => id.parse().ok().map(|id| Self::Worker(WorkerId(id))),
            Some(_) => None,
        }
    }
}

/// An alarm while it lasts. At most one is open of a subject and kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Episode {
    /// Who it is about.
    pub subject: Subject,
    /// What was seen.
    pub kind: Kind,
    /// The attempt, for a job.
    pub fence: Option<Fence>,
    /// Name of the machine.
    pub machine: String,
    /// Since when.
    pub began_at: DateTime<Utc>,
    /// The figure from which on it is an alarm.
    pub limit: f64,
    /// The worst figure so far.
    pub peak: f64,
}

/// Why nobody is told of an episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untold {
    /// The job's submitter does not want it.
    NotWanted,
    /// The same was told of the job before.
    ToldBefore,
    /// The job that it happened to tells it.
    ToldWithJob,
    /// It was over before it mattered.
    Short,
    /// The machine slept.
    Slept,
    /// The worker had no connection, which is told on its own when it runs jobs.
    Away,
}

words!(Untold {
    NotWanted = "not_wanted",
    ToldBefore = "told_before",
    ToldWithJob = "told_with_job",
    Short = "short",
    Slept = "slept",
    Away = "away",
});

/// Why an episode ended although what it tells of may go on. Nobody is told that it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// It is not watched any more.
    SwitchedOff,
    /// Another machine is the coordinator's now.
    OtherMachine,
    /// The coordinator tells it, of the same disk.
    SameDisk,
}

words!(Because {
    SwitchedOff = "switched_off",
    OtherMachine = "other_machine",
    SameDisk = "same_disk",
});

/// What is to be recorded of an episode.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It began.
    Open(Episode),
    /// It is over.
    Close {
        /// Who it is about.
        subject: Subject,
        /// What was seen.
        kind: Kind,
        /// Since when it is over.
        at: DateTime<Utc>,
        /// The worst figure.
        peak: f64,
        /// Why it ended, unless what it tells of is over.
        because: Option<Because>,
    },
    /// It was over before it was noticed, and nobody is told.
    Past {
        /// It.
        episode: Episode,
        /// When it was over.
        at: DateTime<Utc>,
        /// Why nobody is told.
        why: Untold,
    },
}

/// How patient the watching is. Tests are impatient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How long processors and cards' memory must be full before it is an alarm, and quiet before it
    /// is over. Other times are parts of it.
    pub sustained: TimeDelta,
    /// The shortest window in which memory that grows all the time is an alarm; the others are 4, 16
    /// and 64 times as long.
    pub growth_window: TimeDelta,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            sustained: TimeDelta::minutes(10),
            growth_window: TimeDelta::minutes(30),
        }
    }
}
