//! Why a use case was refused. Knows no transport; `grpc::status` turns it into a fault.

use qctl_server_core::{Condition, JobId, JobState, WorkerId};

use super::Role;
use crate::store::StoreError;

/// Why a use case was refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The database did not do what was asked.
    #[error("the database did not answer the request")]
    Store(#[from] StoreError),
    /// A field of the request is wrong.
    #[error("{field} {problem}")]
    InvalidField {
        /// The field, such as `jobs[6].cwd`.
        field: String,
        /// What is wrong; continues a sentence that begins with the field.
        problem: String,
        /// What to do about it; may be empty.
        hint: String,
    },
    /// No job has this id.
    #[error("there is no job {0}")]
    JobNotFound(JobId),
    /// The job has no attempt with this number.
    #[error("job {job} has no attempt {number}")]
    AttemptNotFound {
        /// The job.
        job: JobId,
        /// The attempt.
        number: i32,
    },
    /// There is no copy of the checkpoint.
    #[error("the coordinator has no copy of this checkpoint")]
    CheckpointNotFound,
    /// The job left no checkpoint that could be resumed from, or not this one.
    #[error("{}", nothing_to_resume(*.job, .checkpoint.as_deref()))]
    NothingToResume {
        /// The job.
        job: JobId,
        /// The checkpoint that was asked for, such as `1.7`; `None` for the newest.
        checkpoint: Option<String>,
    },
    /// No worker has this name.
    #[error("there is no worker `{0}`")]
    WorkerNotFound(String),
    /// No notice with this number was told.
    #[error("no notice {0} was told")]
    NoticeNotFound(crate::store::notices::NoticeName),
    /// No way to a person is set up.
    #[error("no way to send notices is set up")]
    NoChannel,
    /// The job has ended already.
    #[error("job {job} has ended already: {state}")]
    JobEnded {
        /// The job.
        job: JobId,
        /// How it ended.
        state: JobState,
    },
    /// The job has not ended yet.
    #[error("job {job} has not ended yet: its state is {state}")]
    JobNotEnded {
        /// The job.
        job: JobId,
        /// Where it is.
        state: JobState,
    },
    /// The job has ended, and processes of it are left.
    #[error("job {0} has ended, but processes that it started have not, or its worker is away")]
    ProcessesLeft(JobId),
    /// The job runs, so this cannot be changed any more.
    #[error("job {0} is running already")]
    JobRunning(JobId),
    /// The job does not run.
    #[error("job {job} is not running: its state is {state}")]
    JobNotRunning {
        /// The job.
        job: JobId,
        /// Where it is.
        state: JobState,
    },
    /// The job is not held.
    #[error("job {job} is not held: its state is {state}")]
    JobNotHeld {
        /// The job.
        job: JobId,
        /// Where it is.
        state: JobState,
    },
    /// The job is not paused.
    #[error("job {0} is not paused")]
    JobNotPaused(JobId),
    /// No job is queued that the worker could start now.
    #[error("no queued job can start on worker `{worker}` now")]
    NothingQueued {
        /// The worker.
        worker: String,
    },
    /// The worker is not connected.
    #[error("worker `{0}` is not connected")]
    WorkerNotConnected(String),
    /// The request id was used with another payload.
    #[error("the request id `{0}` was used before for a different request")]
    RequestIdReused(String),
    /// A dependency can never be met.
    #[error("{field} can never be met: job {on} must end `{}`, and its state is {state}", condition.as_str())]
    DependencyImpossible {
        /// The field, such as `jobs[6].after[0]`.
        field: String,
        /// The job that was to be waited for.
        on: JobId,
        /// How it should have ended.
        condition: Condition,
        /// How it ended.
        state: JobState,
    },
    /// A limit would be exceeded.
    #[error("{what} would exceed the limit of {limit}")]
    LimitExceeded {
        /// What is limited.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The writer's fence or term is stale.
    #[error("attempt with fence {0} is not the current one any more")]
    Fenced(i64),
    /// The row changed while the call was deciding.
    #[error("job {0} changed in the meantime")]
    Conflict(JobId),
    /// The worker speaks another protocol version.
    #[error(
        "the worker speaks version {theirs} of the session protocol, and this coordinator version {ours}"
    )]
    ProtocolMismatch {
        /// The worker's version.
        theirs: i32,
        /// Ours.
        ours: i32,
    },
    /// Another worker has this name.
    #[error("the name `{name}` belongs to another worker ({owner})")]
    WorkerNameTaken {
        /// The name.
        name: String,
        /// Who has it.
        owner: WorkerId,
    },
    /// A copy of this worker is connected already.
    #[error("worker `{name}` is connected already with another spool, so this is a copy of it")]
    SpoolInUse {
        /// The worker.
        name: String,
    },
    /// A later greeting of this worker was answered before.
    #[error("worker `{name}` has connected anew since it said this")]
    GreetingOvertaken {
        /// The worker.
        name: String,
    },
    /// The token's role does not allow it.
    #[error("this token has the role {}, and {} is needed", have.as_str(), needed.as_str())]
    PermissionDenied {
        /// The token's role.
        have: Role,
        /// The role that would do.
        needed: Role,
    },
    /// The coordinator is stopping.
    #[error("the coordinator is stopping")]
    ShuttingDown,
    /// A bug; logged where it is found.
    #[error("{0}")]
    Internal(String),
}

fn nothing_to_resume(job: JobId, checkpoint: Option<&str>) -> String {
    match checkpoint {
        Some(name) => format!("checkpoint {name} of job {job} is not kept"),
        None => format!("no checkpoint of job {job} is kept"),
    }
}

impl Error {
    /// A field that is wrong.
    pub(crate) fn field(
        field: impl Into<String>,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::InvalidField {
            field: field.into(),
            problem: problem.into(),
            hint: hint.into(),
        }
    }
}
