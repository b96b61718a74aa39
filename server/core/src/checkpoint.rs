//! Checkpoints that jobs publish: what is recorded of them, which may be resumed from, and which
//! are kept.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::id::{AttemptNumber, Fence, JobId, WorkerId};

/// Most checkpoints that an assignment offers to resume from.
pub const MAX_CANDIDATES: usize = 10;

/// Of an attempt's checkpoints, the history names so many one by one, and then every so many: one
/// that publishes each second must not fill it.
const TOLD_EACH: i32 = 50;

/// A checkpoint among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckpointId {
    /// The attempt that published it.
    pub fence: Fence,
    /// Its number within the attempt.
    pub number: i32,
}

/// What a worker tells of a published checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its number within the attempt.
    pub number: i32,
    /// How far the job was, as it counts itself.
    pub step: Option<i64>,
    /// What the job says about it.
    pub note: String,
    /// Folder with its contents on the worker.
    pub path: String,
    /// Files in it.
    pub files: i32,
    /// Size of its contents.
    pub bytes: i64,
    /// Hash over its contents; empty while it is being computed.
    pub hash: String,
    /// When it was published, by the worker's clock.
    pub created_at: DateTime<Utc>,
    /// Its contents are kept no more.
    pub removed: bool,
}

/// What the worker is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is recorded.
    Recorded,
    /// Its attempt had been given up: nobody resumes from it.
    Refused,
    /// Nobody will want it any more.
    Remove,
}

/// A checkpoint to be written: a new one, or what has become known of one since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRow {
    /// Which.
    pub id: CheckpointId,
    /// The job.
    pub job: JobId,
    /// The attempt's number within the job.
    pub attempt: AttemptNumber,
    /// Whose disk it lies on.
    pub worker: WorkerId,
    /// The spool that the worker owned.
    pub spool_id: Uuid,
    /// What was told of it.
    pub told: Told,
}

/// What a worker found when it looked at a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It is not what was published: nobody tries it again.
    Damaged,
    /// It could not be read, which may be otherwise the next time.
    Unreadable,
    /// Its files on the worker could not be used, and the coordinator's copy was taken instead.
    Mended,
}

/// A checkpoint that could not be used as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Which.
    pub id: CheckpointId,
    /// The job that published it; `None` when the worker does not tell.
    pub job: Option<JobId>,
    /// Number of the attempt that published it.
    pub attempt: AttemptNumber,
    /// What was found.
    pub finding: Finding,
    /// What is wrong with it.
    pub message: String,
}

/// What a worker will resume an attempt from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resumes {
    /// The checkpoint, and the number of the attempt that published it; `None` begins afresh.
    pub from: Option<(CheckpointId, AttemptNumber)>,
    /// The job that published it; `None` when the worker does not tell.
    pub from_job: Option<JobId>,
    /// Folder with its contents.
    pub path: String,
    /// Those that could not be used as they were, newest first.
    pub damaged: Vec<Damaged>,
}

/// A checkpoint that an attempt may resume from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeCandidate {
    /// Which.
    pub id: CheckpointId,
    /// Number of the attempt that published it.
    pub attempt: AttemptNumber,
    /// The job that published it.
    pub job: JobId,
    /// Its hash; empty when it was never told.
    pub hash: String,
    /// It lies on the worker that shall resume.
    pub here: bool,
    /// The coordinator has a copy.
    pub uploaded: bool,
}

/// A checkpoint as the history of a job names it: by its job too when that is another one.
pub(crate) fn name(
    of: JobId,
    job: Option<JobId>,
    attempt: AttemptNumber,
    id: CheckpointId,
) -> String {
    let name = format!("checkpoint {attempt}.{}", id.number);
    match job.filter(|job| *job != of) {
        Some(job) => format!("{name} of job {job}"),
        None => name,
    }
}

/// Whether the history names a checkpoint.
pub(crate) fn is_told(number: i32) -> bool {
    number <= TOLD_EACH || number % TOLD_EACH == 0
}

/// The sentence about a new checkpoint.
pub(crate) fn published(told: &Told) -> String {
    let mut text = format!("checkpoint {} was published", told.number);
    if let Some(step) = told.step {
        let _ = write!(text, " at step {step}");
    }
    if !told.note.is_empty() {
        let _ = write!(text, " ({})", told.note);
    }
    if told.number > TOLD_EACH {
        let _ = write!(text, ", and {} before it", TOLD_EACH - 1);
    }
    text
}
