//! Errors on the wire: a stable reason, a sentence, a hint and a next command.
//!
//! A [`Fault`] rides on a gRPC status as `google.rpc.ErrorInfo` (see AIP-193): the reason is the
//! machine's handle, the rest is for people. `docs/errors.md` lists every reason.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// Domain of every qctl `ErrorInfo`.
pub const DOMAIN: &str = "qctl";

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal => $code:ident,)*) => {
        /// Why a call was refused. The text is stable; programs may compare it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, for documentation tests.
            pub const ALL: &[Reason] = &[$(Reason::$name,)*];

            /// The stable text.
            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }

            /// The gRPC code that carries it.
            pub fn code(self) -> Code {
                match self { $(Reason::$name => Code::$code,)* }
            }
        }
    };
}

reasons! {
    /// A field of the request is wrong; the fault names it.
    InvalidField = "INVALID_FIELD" => InvalidArgument,
    /// No job has this id.
    JobNotFound = "JOB_NOT_FOUND" => NotFound,
    /// The job has no attempt with this number.
    AttemptNotFound = "ATTEMPT_NOT_FOUND" => NotFound,
    /// The coordinator has no copy of this checkpoint.
    CheckpointNotFound = "CHECKPOINT_NOT_FOUND" => NotFound,
    /// No worker has this name.
    WorkerNotFound = "WORKER_NOT_FOUND" => NotFound,
    /// No notice with this number was told.
    NoticeNotFound = "NOTICE_NOT_FOUND" => NotFound,
    /// No way to a person is set up.
    NoChannel = "NO_CHANNEL" => FailedPrecondition,
    /// The job has ended already.
    JobEnded = "JOB_ENDED" => FailedPrecondition,
    /// The job has not ended yet.
    JobNotEnded = "JOB_NOT_ENDED" => FailedPrecondition,
    /// The job runs, so this cannot be changed any more.
    JobRunning = "JOB_RUNNING" => FailedPrecondition,
    /// The job does not run.
    JobNotRunning = "JOB_NOT_RUNNING" => FailedPrecondition,
    /// The job is not held.
    JobNotHeld = "JOB_NOT_HELD" => FailedPrecondition,
    /// The job is not paused.
    JobNotPaused = "JOB_NOT_PAUSED" => FailedPrecondition,
    /// No job is queued.
    NothingQueued = "NOTHING_QUEUED" => FailedPrecondition,
    /// The worker is not connected.
    WorkerNotConnected = "WORKER_NOT_CONNECTED" => FailedPrecondition,
    /// The request id was used with another payload.
    RequestIdReused = "REQUEST_ID_REUSED" => FailedPrecondition,
    /// A dependency can never be met.
    DependencyImpossible = "DEPENDENCY_IMPOSSIBLE" => FailedPrecondition,
    /// A limit would be exceeded; the fault says which.
    LimitExceeded = "LIMIT_EXCEEDED" => ResourceExhausted,
    /// The disk of the coordinator is full; nothing was stored.
    DiskFull = "DISK_FULL" => ResourceExhausted,
    /// The writer's fence or term is stale: it must stop.
    Fenced = "FENCED" => Aborted,
    /// The row changed while the call was deciding; the call may be repeated.
    Conflict = "CONFLICT" => Aborted,
    /// The worker speaks another protocol version.
    ProtocolMismatch = "PROTOCOL_MISMATCH" => FailedPrecondition,
    /// Another worker has this name.
    WorkerNameTaken = "WORKER_NAME_TAKEN" => AlreadyExists,
    /// A copy of this worker is connected already.
    SpoolInUse = "SPOOL_IN_USE" => AlreadyExists,
    /// No token, or one that is not known.
    Unauthenticated = "UNAUTHENTICATED" => Unauthenticated,
    /// The token's role does not allow it.
    PermissionDenied = "PERMISSION_DENIED" => PermissionDenied,
    /// The database cannot be reached; the call may be repeated.
    DatabaseUnavailable = "DATABASE_UNAVAILABLE" => Unavailable,
    /// The coordinator stands by while another one leads; the fault says where that is, if known.
    NotLeader = "NOT_LEADER" => Unavailable,
    /// The coordinator is stopping; the call may be repeated.
    ShuttingDown = "SHUTTING_DOWN" => Unavailable,
    /// A bug.
    Internal = "INTERNAL" => Internal,
}

impl Reason {
    /// Finds a reason by its stable text.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| reason.as_str() == text)
    }
}

/// A refusal, as both ends see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Stable reason.
    pub reason: Reason,
    /// What was wrong, in a sentence without a final full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// A command to type next.
    pub next: Option<String>,
    /// The field that was wrong, such as `jobs[6].cwd`.
    pub field: Option<String>,
    /// When the call may be repeated.
    pub retry_after: Option<Duration>,
    /// Where the coordinator that leads is reached, with a scheme.
    pub leader: Option<String>,
}

impl Fault {
    /// A fault with a reason and a sentence.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            hint: None,
            next: None,
            field: None,
            retry_after: None,
            leader: None,
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a command to type next.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Names the field that was wrong.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Says when the call may be repeated.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Says where the coordinator that leads is reached.
    #[must_use]
    pub fn leader(mut self, url: impl Into<String>) -> Self {
        self.leader = Some(url.into());
        self
    }

    /// Reads a fault from a status; `None` when the status was not made by qctl (a transport error, say).
    pub fn from_status(status: &Status) -> Option<Self> {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN)?;
        let text = |key: &str| info.metadata.get(key).cloned();
        Some(Self {
            reason: Reason::parse(&info.reason)?,
            message: status.message().to_owned(),
            hint: text("hint"),
            next: text("next"),
            field: text("field"),
            leader: text("leader"),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
        })
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        let mut metadata = HashMap::new();
        let mut put = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                metadata.insert(key.to_owned(), value);
            }
        };
        put("hint", fault.hint);
        put("next", fault.next);
        put("field", fault.field.clone());
        put("leader", fault.leader);
        let mut details = ErrorDetails::with_error_info(fault.reason.as_str(), DOMAIN, metadata);
        if let Some(field) = fault.field {
            details.add_bad_request_violation(field, fault.message.clone());
        }
        if let Some(after) = fault.retry_after {
            details.set_retry_info(Some(after));
        }
        Status::with_error_details(fault.reason.code(), fault.message, details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_survives_the_wire() {
        let fault = Fault::new(Reason::InvalidField, "the directory is not absolute")
            .hint("give an absolute path")
            .next("qctl submit --cwd /srv -- ls")
            .field("jobs[6].cwd")
            .leader("https://queue.example:7420")
            .retry_after(Duration::from_secs(2));
        let status = Status::from(fault.clone());
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(Fault::from_status(&status), Some(fault));
    }

    #[test]
    fn a_foreign_status_is_no_fault() {
        assert_eq!(
            Fault::from_status(&Status::unavailable("connection refused")),
            None
        );
    }

    #[test]
    fn every_reason_is_found_by_its_text() {
        for reason in Reason::ALL {
            assert_eq!(Reason::parse(reason.as_str()), Some(*reason));
        }
    }
}
