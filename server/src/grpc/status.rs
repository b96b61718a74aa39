//! The one mapping from a refusal of the application to a status on the wire.

use std::time::Duration;

use qctl_proto::error::{Fault, Reason};
use tonic::{Request, Status};
use uuid::Uuid;

use crate::app::{Caller, Error, Role};
use crate::store::StoreError;

/// When a call that met a passing trouble may be repeated.
const SOON: Duration = Duration::from_millis(250);
const LATER: Duration = Duration::from_secs(2);

/// Who calls, if they may do this.
///
/// # Errors
/// When the role does not allow it, or nobody was let in.
pub(crate) fn caller<T>(request: &Request<T>, needed: Role) -> Result<Caller, Status> {
    let caller = request
        .extensions()
        .get::<Caller>()
        .cloned()
        .ok_or_else(|| {
            Status::from(
                Fault::new(Reason::Unauthenticated, "the call carries no token")
                    .hint("send the token as `authorization: Bearer TOKEN`"),
            )
        })?;
    caller.require(needed).map_err(status)?;
    Ok(caller)
}

/// The status for a refusal.
pub(crate) fn status(error: Error) -> Status {
    fault(error).into()
}

/// The fault for a refusal. A bug is logged here, once, and only its request id told.
pub(crate) fn fault(error: Error) -> Fault {
    let message = error.to_string();
    let plain = |reason| Fault::new(reason, message.clone());
    match &error {
        Error::Store(store) => store_fault(store),
        Error::InvalidField { field, hint, .. } => {
            let fault = plain(Reason::InvalidField).field(field);
            if hint.is_empty() {
                fault
            } else {
                fault.hint(hint)
            }
        }
        Error::JobNotFound(_) => plain(Reason::JobNotFound)
            .hint("it may have been deleted, or never been submitted to this coordinator")
            .next("qctl list"),
        Error::AttemptNotFound { job, number } if *number <= 0 => {
            Fault::new(
                Reason::AttemptNotFound,
                format!("job {job} has not been started yet, so it has no output"),
            )
            .hint("follow it to wait for its output")
            .next(format!("qctl logs -f {job}"))
        }
        Error::AttemptNotFound { job, .. } => plain(Reason::AttemptNotFound)
            .hint("attempts count from 1")
            .next(format!("qctl show {job}")),
        Error::CheckpointNotFound => plain(Reason::CheckpointNotFound)
            .hint("newer ones may have taken its place"),
        Error::NothingToResume { job, .. } => plain(Reason::CheckpointNotFound)
            .hint("without --from-checkpoint it begins afresh")
            .next(format!("qctl checkpoints {job}")),
        Error::WorkerNotFound(_) => plain(Reason::WorkerNotFound)
            .hint("a worker is known once it has connected")
            .next("qctl workers"),
        Error::NoticeNotFound(_) => plain(Reason::NoticeNotFound)
            .hint("one that was held back cannot be acknowledged")
            .next("qctl notices"),
        Error::NoChannel => plain(Reason::NoChannel)
            .hint("docs/notifications.md says how to set up Pushover in two minutes"),
        Error::JobEnded { job, .. } => plain(Reason::JobEnded)
            .hint("an ended job never changes; it can be submitted again")
            .next(format!("qctl retry {job}")),
        Error::JobNotEnded { job, .. } => plain(Reason::JobNotEnded)
            .hint("wait for its end, or cancel it")
            .next(format!("qctl wait {job}")),
        Error::ProcessesLeft(job) => plain(Reason::JobNotEnded)
            .hint("it can be deleted once none is left")
            .next(format!("qctl why {job}")),
        Error::JobRunning(job) => plain(Reason::JobRunning)
            .hint("what runs can only be paused or cancelled")
            .next(format!("qctl show {job}")),
        Error::JobNotRunning { job, .. } => plain(Reason::JobNotRunning)
            .hint("only a running job can be paused or resumed")
            .next(format!("qctl why {job}")),
        Error::JobNotHeld { job, .. } => plain(Reason::JobNotHeld)
            .hint("only a held job can be released")
            .next(format!("qctl why {job}")),
        Error::JobNotPaused(job) => plain(Reason::JobNotPaused)
            .hint("only a paused job can be resumed")
            .next(format!("qctl show {job}")),
        Error::NothingQueued { .. } => plain(Reason::NothingQueued)
            .hint("the list shows what waits, and `qctl why JOB` what for")
            .next("qctl list --state queued"),
        Error::WorkerNotConnected(_) => plain(Reason::WorkerNotConnected)
            .hint("`qctl up` starts a worker on this machine")
            .next("qctl workers"),
        Error::RequestIdReused(_) => plain(Reason::RequestIdReused)
            .hint("use a new request id for a new request, and the old one only to repeat the old request"),
        Error::DependencyImpossible { field, on, .. } => plain(Reason::DependencyImpossible)
            .field(field)
            .hint("wait for another job, or for any end of this one")
            .next(format!("qctl show {on}")),
        Error::LimitExceeded { .. } => {
            plain(Reason::LimitExceeded).hint("ask for less at once").retry_after(LATER)
        }
        Error::Fenced(_) => plain(Reason::Fenced),
        Error::Conflict(_) => plain(Reason::Conflict)
            .hint("look at it again and repeat the call")
            .retry_after(SOON),
        Error::ProtocolMismatch { .. } => plain(Reason::ProtocolMismatch)
            .hint("install the same version of qctl on both machines"),
        Error::WorkerNameTaken { .. } => plain(Reason::WorkerNameTaken)
            .hint("give this worker another name")
            .next("qctl-worker --name OTHER"),
        Error::SpoolInUse { .. } => plain(Reason::SpoolInUse)
            .hint("a copied machine needs a worker folder of its own; remove the copied one"),
        Error::GreetingOvertaken { .. } => plain(Reason::Fenced),
        Error::PermissionDenied { .. } => {
            plain(Reason::PermissionDenied).hint("use a token with the role that is needed")
        }
        Error::ShuttingDown => plain(Reason::ShuttingDown)
            .hint("call again once it is back")
            .retry_after(LATER),
        Error::Internal(_) => bug(&error),
    }
}

fn store_fault(error: &StoreError) -> Fault {
    match error {
        StoreError::Unavailable(_) => Fault::new(Reason::DatabaseUnavailable, error.to_string())
            .hint("the call may be repeated; nothing was changed unless a repetition says so")
            .retry_after(LATER),
        StoreError::Unconfirmed(_) => Fault::new(
            Reason::DatabaseUnavailable,
            "the connection to the database broke before it confirmed the change, which may have been made",
        )
        .hint("repeat the call under the same request id, and it has one effect")
        .retry_after(SOON),
        StoreError::Fenced => Fault::new(
            Reason::NotLeader,
            "this coordinator does not lead any more, and nothing was changed",
        )
        .hint("call again in a moment")
        .retry_after(SOON),
        StoreError::DiskFull(_) => Fault::new(
            Reason::DiskFull,
            "the coordinator's disk is full, and nothing was stored",
        )
        .hint("free space on the coordinator's machine; deleting old jobs frees their output")
        .next("qctl cleanup 7"),
        StoreError::Conflict(_) | StoreError::Stale => Fault::new(
            Reason::DatabaseUnavailable,
            "the database was busy with other calls, and nothing was changed",
        )
        .hint("repeat the call")
        .retry_after(SOON),
        StoreError::Exists(_) | StoreError::Broken(_) | StoreError::Unreadable(_) => bug(error),
    }
}

fn bug(error: &(dyn std::error::Error + 'static)) -> Fault {
    let request = Uuid::new_v4().simple().to_string();
    let request = &request[..12];
    let mut chain = error.to_string();
    let mut below = error.source();
    while let Some(source) = below {
        chain.push_str(": ");
        chain.push_str(&source.to_string());
        below = source.source();
    }
    tracing::error!(request, "request {request} met a bug: {chain}");
    Fault::new(
        Reason::Internal,
        format!("the coordinator met a bug; its log tells more under request {request}"),
    )
    .hint("please report it with that part of the log")
}

#[cfg(test)]
mod tests {
    use qctl_server_core::{JobId, JobState};
    use tonic::Code;

    use super::*;

    #[test]
    fn refusals_keep_their_reason_and_say_what_to_do() {
        let cases = [
            (
                Error::field("jobs[6].cwd", "is not absolute", "give an absolute path"),
                Reason::InvalidField,
                Code::InvalidArgument,
            ),
            (
                Error::JobNotFound(JobId(7)),
                Reason::JobNotFound,
                Code::NotFound,
            ),
            (
                Error::JobEnded {
                    job: JobId(7),
                    state: JobState::Failed,
                },
                Reason::JobEnded,
                Code::FailedPrecondition,
            ),
            (Error::Conflict(JobId(7)), Reason::Conflict, Code::Aborted),
        ];
        for (error, reason, code) in cases {
            let sentence = error.to_string();
            let status = status(error);
            let fault = Fault::from_status(&status).unwrap();
            assert_eq!(status.code(), code);
            assert_eq!(fault.reason, reason);
            assert_eq!(fault.message, sentence);
            assert!(fault.hint.is_some(), "{reason:?} has no hint");
        }
    }

    #[test]
    fn a_bug_tells_nothing_but_a_request_id() {
        let fault = fault(Error::Internal("secret detail".to_owned()));
        assert_eq!(fault.reason, Reason::Internal);
        assert!(!fault.message.contains("secret"));
        assert!(fault.message.contains("under request"));
    }

    #[test]
    fn nobody_is_let_in_without_a_caller() {
        let status = caller(&Request::new(()), Role::Read).unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        let mut request = Request::new(());
        request.extensions_mut().insert(Caller {
            name: "w".to_owned(),
            role: Role::Worker,
        });
        let status = caller(&request, Role::Read).unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
    }
}
