//! What is worth telling a person, of everything that happens. A notice is written in the
//! transaction of its event; when and how it reaches a phone is decided afterwards, in [`timing`].

pub mod job;
pub mod over;
pub mod signature;
pub mod timing;

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::gpu::GpuFault;
use crate::id::{AttemptNumber, JobId};
use crate::outcome::{Cause, Outcome, words};

/// How bad it is, from the mildest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Something went wrong, and qctl goes on by itself.
    Warning,
    /// Something is over, or stands still until a person looks.
    Error,
    /// Everything stands still.
    Critical,
}

words!(Severity {
    Info = "info",
    Warning = "warning",
    Error = "error",
    Critical = "critical",
});

/// Kinds of notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// An attempt failed and its job is tried again.
    AttemptFailed,
    /// A job failed for good.
    JobFailed,
    /// A job succeeded.
    JobSucceeded,
    /// A job succeeded after it had failed before.
    JobRecovered,
    /// A job was cancelled, which is told only when asked for.
    JobCancelled,
    /// A job was cancelled because one that it waited for did not end as it should.
    JobSkipped,
    /// A job waits for a person.
    JobHeld,
    /// A job lost its machine and goes on.
    JobInterrupted,
    /// A job may run, and its worker has no record of it any more.
    JobRecordGone,
    /// A job says nothing.
    JobSilent,
    /// It has said nothing for longer.
    JobStillSilent,
    /// It was stopped for its silence, and goes on.
    JobSilenceEnded,
    /// A worker refused a job.
    JobRefused,
    /// A worker is silent although it runs jobs.
    WorkerUnreachable,
    /// It is heard of again.
    WorkerBack,
    /// Jobs wait and none runs anywhere.
    QueueStands,
    /// That is over.
    QueueMoves,
    /// A submission was refused.
    SubmissionRefused,
    /// The database does not answer.
    DatabaseAway,
    /// It answers again.
    DatabaseBack,
    /// It was started anew, and is back before that was told.
    DatabaseRestarted,
    /// The database answers and refuses to store anything.
    DatabaseRefuses,
    /// It stores again.
    DatabaseStores,
    /// A disk that qctl writes to is nearly full.
    DiskNearlyFull,
    /// It has room again.
    DiskWell,
    /// A job keeps all processors busy.
    JobBusy,
    /// A job's memory grows and grows.
    JobGrows,
    /// A job fills the memory of its graphics card.
    JobGpuFull,
    /// A job has been running for long.
    JobLong,
    /// The processors of a machine are busy, by no job alone.
    MachineBusy,
    /// The memory of a machine is nearly full.
    MemoryNearlyFull,
    /// It has room again.
    MemoryWell,
    /// A graphics card is hot.
    GpuHot,
    /// The kernel killed programs for memory.
    OutOfMemory,
    /// A clock jumped.
    ClockJumped,
    /// A worker lives but does not see what its machine does.
    LooksMissed,
    /// It sees it again.
    LooksBack,
    /// The coordinator ended without having been asked to, and runs again.
    CoordinatorCrashed,
    /// A worker does not reach the coordinator.
    CoordinatorAway,
    /// It reaches it again.
    CoordinatorBack,
    /// A GPU does not work and is given to nobody.
    GpuFaulty,
    /// It works again.
    GpuWorks,
    /// A part of a program met a bug.
    Panic,
    /// A loop of the coordinator fails again and again.
    Trouble,
    /// It works again.
    TroubleOver,
    /// A channel refuses what it is given.
    ChannelRefused,
    /// It takes notices again.
    ChannelWorks,
    /// A channel takes only few more messages.
    ChannelLow,
    /// A person wants to see whether notices arrive.
    Test,
}

words!(Class {
    AttemptFailed = "attempt_failed",
    JobFailed = "job_failed",
    JobSucceeded = "job_succeeded",
    JobRecovered = "job_recovered",
    JobCancelled = "job_cancelled",
    JobSkipped = "job_skipped",
    JobHeld = "job_held",
    JobInterrupted = "job_interrupted",
    JobRecordGone = "job_record_gone",
    JobSilent = "job_silent",
    JobStillSilent = "job_still_silent",
    JobSilenceEnded = "job_silence_ended",
    JobRefused = "job_refused",
    WorkerUnreachable = "worker_unreachable",
    WorkerBack = "worker_back",
    QueueStands = "queue_stands",
    QueueMoves = "queue_moves",
    SubmissionRefused = "submission_refused",
    DatabaseAway = "database_away",
    DatabaseBack = "database_back",
    DatabaseRestarted = "database_restarted",
    DatabaseRefuses = "database_refuses",
    DatabaseStores = "database_stores",
    DiskNearlyFull = "disk_nearly_full",
    DiskWell = "disk_well",
    JobBusy = "job_busy",
    JobGrows = "job_grows",
    JobGpuFull = "job_gpu_full",
    JobLong = "job_long",
    MachineBusy = "machine_busy",
    MemoryNearlyFull = "memory_nearly_full",
    MemoryWell = "memory_well",
    GpuHot = "gpu_hot",
    OutOfMemory = "out_of_memory",
    ClockJumped = "clock_jumped",
    LooksMissed = "looks_missed",
    LooksBack = "looks_back",
    CoordinatorCrashed = "coordinator_crashed",
    CoordinatorAway = "coordinator_away",
    CoordinatorBack = "coordinator_back",
    GpuFaulty = "gpu_faulty",
    GpuWorks = "gpu_works",
    Panic = "panic",
    Trouble = "trouble",
    TroubleOver = "trouble_over",
    ChannelRefused = "channel_refused",
    ChannelWorks = "channel_works",
    ChannelLow = "channel_low",
    Test = "test",
});

impl Class {
    /// How bad it is.
    pub fn severity(self) -> Severity {
        match self {
            Self::JobSucceeded
            | Self::JobRecovered
            | Self::JobCancelled
            | Self::WorkerBack
            | Self::QueueMoves
            | Self::DatabaseBack
            | Self::DatabaseStores
            | Self::DiskWell
            | Self::JobBusy
            | Self::JobGpuFull
            | Self::JobLong
            | Self::MachineBusy
            | Self::MemoryWell
            | Self::LooksBack
            | Self::CoordinatorBack
            | Self::GpuWorks
            | Self::TroubleOver
            | Self::ChannelWorks
            | Self::Test => Severity::Info,
            Self::AttemptFailed
            | Self::JobSkipped
            | Self::JobInterrupted
            | Self::JobStillSilent
            | Self::JobRefused
            | Self::SubmissionRefused
            | Self::DatabaseRestarted
            | Self::JobGrows
            | Self::GpuHot
            | Self::OutOfMemory
            | Self::ClockJumped
            | Self::LooksMissed
            | Self::ChannelLow
            | Self::Trouble => Severity::Warning,
            Self::JobFailed
            | Self::JobHeld
            | Self::JobSilent
            | Self::JobSilenceEnded
            | Self::JobRecordGone
            | Self::WorkerUnreachable
            | Self::QueueStands
            | Self::DiskNearlyFull
            | Self::MemoryNearlyFull
            | Self::CoordinatorCrashed
            | Self::GpuFaulty
            | Self::Panic
            | Self::ChannelRefused => Severity::Error,
            Self::DatabaseAway | Self::DatabaseRefuses | Self::CoordinatorAway => {
                Severity::Critical
            }
        }
    }

    /// The class whose episode this one ends: a new outage is told again.
    pub fn ends(self) -> Option<Self> {
        match self {
            Self::WorkerBack => Some(Self::WorkerUnreachable),
            Self::QueueMoves => Some(Self::QueueStands),
            Self::DatabaseBack => Some(Self::DatabaseAway),
            Self::DatabaseStores => Some(Self::DatabaseRefuses),
            Self::DiskWell => Some(Self::DiskNearlyFull),
            Self::MemoryWell => Some(Self::MemoryNearlyFull),
            Self::LooksBack => Some(Self::LooksMissed),
            Self::CoordinatorBack => Some(Self::CoordinatorAway),
            Self::GpuWorks => Some(Self::GpuFaulty),
            Self::TroubleOver => Some(Self::Trouble),
            Self::ChannelWorks => Some(Self::ChannelRefused),
            _ => None,
        }
    }

    /// The class that tells the end of this one's episode.
    pub fn ended_by(self) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|other| other.ends() == Some(self))
    }

    /// True when it waits a little for others of its class, to be told as one.
    pub fn gathers(self) -> bool {
        matches!(
            self,
            Self::JobSucceeded
                | Self::JobRecovered
                | Self::JobCancelled
                | Self::JobSkipped
                | Self::JobBusy
                | Self::JobGpuFull
                | Self::JobLong
        )
    }

    /// True when it is about an attempt whose output tells what went wrong.
    pub fn has_error(self) -> bool {
        matches!(self, Self::AttemptFailed | Self::JobFailed)
    }

    /// After how long the same thing is news again, for what has no end of its own.
    pub fn episode(self) -> Option<TimeDelta> {
        match self {
            Self::SubmissionRefused | Self::JobRefused => Some(TimeDelta::hours(1)),
            // A card gets hot and cool with every job, and is told of a few times a day at most.
            Self::GpuHot | Self::OutOfMemory | Self::ClockJumped => Some(TimeDelta::hours(6)),
            Self::Panic | Self::MachineBusy => Some(TimeDelta::days(1)),
            // What a channel takes is counted by the month.
            Self::ChannelLow => Some(TimeDelta::days(28)),
            _ => None,
        }
    }

    /// True when the same thing happening again is news: nothing is remembered about it.
    pub fn is_over_at_once(self) -> bool {
        self.ends().is_some()
            || matches!(
                self,
                // A job that is held again after its release stands still again.
                Self::JobHeld | Self::CoordinatorCrashed | Self::DatabaseRestarted | Self::Test
            )
    }
}

/// Which of a job's events its submitter wants to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// What is told by default.
    #[default]
    Default,
    /// Its end as well, whichever and however soon.
    Always,
    /// What goes wrong only.
    Failure,
    /// Nothing.
    Never,
}

words!(Wish {
    Default = "default",
    Always = "always",
    Failure = "failure",
    Never = "never",
});

/// What happened, as facts that a catalogue makes words of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Details {
    /// What brought an attempt to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// Its exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// How long it ran, or how long an outage lasted, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<i64>,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
    /// When it happened, of what was heard of late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub happened_at: Option<DateTime<Utc>>,
    /// When it goes on, or when an attempt is given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_at: Option<DateTime<Utc>>,
    /// How often it may still go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left: Option<i32>,
    /// One word for why a job is held.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub held: String,
    /// The checkpoint that a job goes on from, such as `1.7`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub checkpoint: String,
    /// What a silent job does; one word.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub doing: String,
    /// Who or what it is about, where that is no job.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where in the program.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub place: String,
    /// What there is to say besides, in words of a program.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// The line of output that tells what went wrong.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub line: String,
    /// What is wrong with a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuFault>,
    /// What was measured, with its unit.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// From where on it is told, with its unit.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub limit: String,
    /// How often it happened, with those times that were over before they could be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<i32>,
    /// When it did for the first of these times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<DateTime<Utc>>,
}

impl Details {
    /// How an attempt ended.
    pub fn of(outcome: &Outcome) -> Self {
        Self {
            cause: Some(outcome.cause),
            exit_code: outcome.exit_code,
            signal: outcome.signal,
            text: outcome.message.clone(),
            ..Self::default()
        }
    }
}

/// Something worth telling. While its episode goes on, the same subject, class and signature are
/// told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Its kind.
    pub class: Class,
    /// What it is about, such as `job 42` or `worker gpu-1`.
    pub subject: String,
    /// Tells apart what may go wrong with the same subject; may be empty.
    pub signature: String,
    /// The job it is about.
    pub job: Option<JobId>,
    /// The attempt it is about.
    pub attempt: Option<AttemptNumber>,
    /// The worker it is about; empty when none.
    pub worker: String,
    /// What happened.
    pub details: Details,
    /// True when it goes into the history only, because the job's submitter wants so.
    pub muted: bool,
}

impl Notice {
    /// A notice about anything but a job.
    pub fn about(class: Class, subject: impl Into<String>, details: Details) -> Self {
        Self {
            class,
            subject: subject.into(),
            signature: String::new(),
            job: None,
            attempt: None,
            worker: String::new(),
            details,
            muted: false,
        }
    }

    /// What a worker is called as a subject.
    pub fn worker_subject(name: &str) -> String {
        format!("worker {name}")
    }
}
