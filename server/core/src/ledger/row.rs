//! What is loaded for a decision, and what is written because of it.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::attempt::{Attempt, AttemptState};
use crate::id::{AttemptNumber, Fence, JobId, WorkerId};
use crate::job::{Job, JobState};
use crate::notice::Wish;
use crate::outcome::Outcome;
use crate::silence;

/// A job as decisions need it.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRow {
    /// The job.
    pub id: JobId,
    /// Its life.
    pub job: Job,
    /// Worker that must start it now, beside its slots.
    pub run_now_on: Option<WorkerId>,
    /// What its submitter wants to be told.
    pub wish: Wish,
    /// The state that was read.
    pub read: JobState,
}

/// An attempt as decisions need it.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptRow {
    /// The attempt.
    pub fence: Fence,
    /// Its job.
    pub job: JobId,
    /// Its number within the job.
    pub number: AttemptNumber,
    /// Its life.
    pub attempt: Attempt,
    /// The worker.
    pub worker: WorkerId,
    /// The worker's name.
    pub worker_name: String,
    /// The boot it was assigned to.
    pub boot_id: String,
    /// The spool it was assigned to.
    pub spool_id: Uuid,
    /// When it was assigned.
    pub assigned_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// Its run time in microseconds, as its worker measured it.
    pub duration_us: Option<i64>,
    /// Its process id.
    pub pid: Option<i32>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Number of the newest checkpoint that it has published; 0 when it has published none.
    pub published: i32,
    /// The contents of a checkpoint that it has published are kept somewhere.
    pub checkpoints_kept: bool,
    /// Folder of that checkpoint; empty when there is none.
    pub checkpoint: String,
    /// Limits that could not be enforced.
    pub not_enforced: Vec<String>,
    /// UUIDs of its GPUs.
    pub gpus: Vec<String>,
    /// Bytes of its whole output, once its result is known.
    pub log_end: Option<i64>,
    /// Checksum over them.
    pub log_crc32c: Option<i64>,
    /// Bytes of its output that are stored.
    pub log_stored: i64,
    /// What is stored is not known to differ from its result's checksum, or was kept all the same.
    pub log_agrees: bool,
    /// Other jobs wait for its job.
    pub has_dependents: bool,
    /// How it ended after it had been given up.
    pub late_result: Option<Outcome>,
    /// Its newest silence that came as far as any stage.
    pub silence: Option<silence::State>,
    /// The state that was read.
    pub read: AttemptState,
}

/// An entry of the history on its way into the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// The job; `None` for events of a worker or the queue.
    pub job: Option<JobId>,
    /// The attempt's number.
    pub attempt: Option<AttemptNumber>,
    /// The worker's name; empty when none.
    pub worker: String,
    /// One word.
    pub kind: &'static str,
    /// The same in a sentence.
    pub message: String,
    /// Who caused it.
    pub actor: String,
}

/// Which attempts to load beside the locked jobs.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// These jobs with their current attempts.
    Jobs(&'a [JobId]),
    /// These attempts, with their jobs and those jobs' current attempts.
    Attempts(&'a [Fence]),
}

impl NewEvent {
    /// An entry about a worker or the queue.
    pub fn general(worker: &str, kind: &'static str, message: String, actor: &str) -> Self {
        Self {
            job: None,
            attempt: None::<AttemptNumber>,
            worker: worker.to_owned(),
            kind,
            message,
            actor: actor.to_owned(),
        }
    }
}
