//! A double of the coordinator's store: the same operations on maps instead of tables, with the same
//! guards. A test of the coordinator applies generated operations to this and to Postgres and
//! compares every answer and the whole state.

mod checkpoint;
mod dispatch;
mod read;
mod write;

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use qctl_server_core::checkpoint::{CheckpointId, CheckpointRow};
use qctl_server_core::dependency::Open;
use qctl_server_core::job::Job;
use qctl_server_core::ledger::{AttemptRow, NewEvent};
use qctl_server_core::{Condition, Demand, Fence, JobId, JobSpec, WorkerId};
use uuid::Uuid;

/// Why an operation was refused. Nothing was changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The request id is known.
    #[error("the request id is known already")]
    Exists,
    /// A row is no longer in the state that was read.
    #[error("a row changed since it was read")]
    Stale,
    /// A coordinator of an earlier term writes.
    #[error("another coordinator leads in a later term")]
    Term,
}

/// Guards of the store that a test can take away, to see that the simulation misses them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unguarded {
    /// Writes of an earlier term are accepted.
    pub term: bool,
    /// Jobs are assigned whatever their state is by then.
    pub assign: bool,
    /// Exclusive jobs are assigned beside what an ended attempt has left running.
    pub leftovers: bool,
}

/// How a worker takes jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It takes jobs.
    Active,
    /// It takes none.
    Paused,
    /// It takes none, and is paused once it holds none.
    Draining,
}

/// A worker on its way into the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Its identity.
    pub id: WorkerId,
    /// Its name.
    pub name: String,
    /// The boot it runs in.
    pub boot_id: String,
    /// The spool it owns.
    pub spool_id: Uuid,
    /// Its slots.
    pub slots: i32,
    /// UUIDs of its GPUs.
    pub gpus: Vec<String>,
    /// Its memory in bytes; 0 when unknown.
    pub memory_bytes: i64,
    /// Number of the greeting that said so, among those of its spool.
    pub greeting: i64,
}

/// A worker with how it takes jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// What it said of itself.
    pub worker: Worker,
    /// How it takes jobs.
    pub mode: Mode,
}

/// A job on its way into the store.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Its number, from [`Double::reserve_ids`].
    pub id: JobId,
    /// Its life.
    pub job: Job,
    /// What is to be run.
    pub spec: JobSpec,
    /// For each dependency of the spec, whether it is met.
    pub met: Vec<bool>,
    /// The job that it repeats.
    pub retry_of: Option<JobId>,
}

/// A stored job.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredJob {
    /// Its life; its attempt is left out, for that follows from the attempts.
    pub job: Job,
    /// What is to be run.
    pub spec: JobSpec,
    /// Worker that must start it now.
    pub run_now_on: Option<WorkerId>,
    /// The job that it repeats.
    pub retry_of: Option<JobId>,
    /// The checkpoint of another job that its first attempt resumes from.
    pub resume_from: Option<CheckpointId>,
    /// When it was submitted.
    pub created_at: DateTime<Utc>,
    /// Number of its latest attempt.
    pub attempts: i32,
    /// The latest attempt's fence.
    pub fence: Option<Fence>,
}

/// A stored attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredAttempt {
    /// What decisions read and write. What follows from other tables is filled in when it is loaded.
    pub row: AttemptRow,
    /// The term in which it was assigned.
    pub term: i64,
    /// What it occupies.
    pub demand: Demand,
    /// The GPUs among it.
    pub gpus: Vec<String>,
    /// It starts beside the slots.
    pub beside_slots: bool,
    /// Directory that it resumed from; empty when it began afresh.
    pub resumed_from: String,
}

/// A stored checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredCheckpoint {
    /// What was told of it.
    pub row: CheckpointRow,
    /// Its worker still has its contents.
    pub on_disk: bool,
    /// It was found damaged.
    pub damaged: bool,
    /// The coordinator has a copy.
    pub uploaded: bool,
}

/// A remembered request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Digest of what was asked for.
    pub digest: u64,
    /// The jobs that it made or changed.
    pub jobs: Vec<JobId>,
    /// When.
    pub at: DateTime<Utc>,
}

/// The store.
#[derive(Clone, Debug, Default)]
pub struct Double {
    jobs: BTreeMap<JobId, StoredJob>,
    attempts: BTreeMap<Fence, StoredAttempt>,
    dependencies: BTreeMap<(JobId, JobId), (Condition, bool)>,
    workers: BTreeMap<WorkerId, Known>,
    checkpoints: BTreeMap<CheckpointId, StoredCheckpoint>,
    requests: BTreeMap<String, Request>,
    events: Vec<NewEvent>,
    keep_events: bool,
    term: i64,
    renewals: i64,
    leader: Option<Uuid>,
    lease: Duration,
    released: bool,
    queue_paused: bool,
    last_job: i64,
    last_fence: i64,
    version: u64,
    unguarded: Unguarded,
}

impl Double {
    /// An empty store. History is kept only when `keep_events` says so: nothing decides by it.
    pub fn new(keep_events: bool, unguarded: Unguarded) -> Self {
        Self {
            keep_events,
            unguarded,
            released: true,
            ..Self::default()
        }
    }

    /// Changes whenever anything is changed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Every job.
    pub fn jobs(&self) -> &BTreeMap<JobId, StoredJob> {
        &self.jobs
    }

    /// Every attempt.
    pub fn attempts(&self) -> &BTreeMap<Fence, StoredAttempt> {
        &self.attempts
    }

    /// Every checkpoint.
    pub fn checkpoints(&self) -> &BTreeMap<CheckpointId, StoredCheckpoint> {
        &self.checkpoints
    }

    /// Every dependency: who waits for whom, how that one must end, and whether it has.
    pub fn dependencies(&self) -> &BTreeMap<(JobId, JobId), (Condition, bool)> {
        &self.dependencies
    }

    /// Every worker.
    pub fn workers(&self) -> &BTreeMap<WorkerId, Known> {
        &self.workers
    }

    /// The queue is paused.
    pub fn queue_paused(&self) -> bool {
        self.queue_paused
    }

    /// The history, when it is kept.
    pub fn events(&self) -> &[NewEvent] {
        &self.events
    }

    /// The latest term.
    pub fn term(&self) -> i64 {
        self.term
    }

    /// A worker, if it is known.
    pub fn worker(&self, id: WorkerId) -> Option<&Known> {
        self.workers.get(&id)
    }

    fn open_dependencies(&self, jobs: &[JobId]) -> Vec<Open> {
        self.dependencies
            .iter()
            .filter(|((job, _), (_, met))| !met && jobs.contains(job))
            .map(|((job, on), (condition, _))| Open {
                job: *job,
                on: *on,
                condition: *condition,
                state: self.jobs.get(on).map(|other| other.job.state),
            })
            .collect()
    }
}
