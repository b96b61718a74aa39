//! Exit codes. `docs/errors.md` lists them for people.

use qctl_proto::error::{Fault, Reason};
use qctl_proto::v1;
use tonic::Code;

/// Everything went well; for a waiting command, the job succeeded.
pub const OK: u8 = 0;
/// Something went wrong that has no code of its own.
pub const ERROR: u8 = 1;
/// The command line, a file given to it, or a field of the request is wrong.
pub const USAGE: u8 = 2;
/// No such job, attempt, worker or template.
pub const NOT_FOUND: u8 = 3;
/// Not possible in the present state, such as cancelling an ended job.
pub const REFUSED: u8 = 4;
/// The coordinator cannot be reached.
pub const UNREACHABLE: u8 = 69;
/// Try again later: a limit is exhausted, or a wait ended before its job did.
pub const TEMPORARY: u8 = 75;
/// The token is missing, unknown, or not allowed to do this.
pub const DENIED: u8 = 77;
/// The job ended at its time limit.
pub const TIME_LIMIT: u8 = 124;
/// The job's program could not be started.
pub const CANNOT_START: u8 = 126;
/// Ctrl-C ended the waiting; the job goes on.
pub const INTERRUPTED: u8 = 130;
/// The job was cancelled before a process of it existed: as if SIGTERM had ended it.
pub const CANCELLED: u8 = 143;

/// The code of a command that waited for `job` to end.
///
/// The job's own exit code where it has one, 128 + signal where a signal ended it.
pub fn of_job(job: &v1::Job) -> u8 {
    match job.state() {
        v1::job::State::Succeeded => OK,
        v1::job::State::Failed | v1::job::State::Cancelled => of_ended_badly(job),
        _ => TEMPORARY,
    }
}

fn of_ended_badly(job: &v1::Job) -> u8 {
    let cancelled = job.state() == v1::job::State::Cancelled;
    let fallback = if cancelled { CANCELLED } else { ERROR };
    let Some(outcome) = &job.outcome else {
        return fallback;
    };
    match outcome.cause.as_str() {
        "time_limit" => return TIME_LIMIT,
        "cannot_start" => return CANNOT_START,
        _ => {}
    }
    // A code beyond 255 or a 0 beside a failure would read as something else.
    let own = outcome.exit_code.filter(|code| (1..=255).contains(code));
    let signal = outcome.signal.filter(|signal| (1..=127).contains(signal));
    match (own, signal) {
        (Some(code), _) if !cancelled => u8::try_from(code).unwrap_or(ERROR),
        (_, Some(signal)) => 128 + u8::try_from(signal).unwrap_or_default(),
        _ => fallback,
    }
}

/// The code of several waited-for jobs: the first that is not 0, in the order given.
pub fn of_jobs<'a>(jobs: impl IntoIterator<Item = &'a v1::Job>) -> u8 {
    jobs.into_iter()
        .map(of_job)
        .find(|code| *code != OK)
        .unwrap_or(OK)
}

/// The code of a refusal by the coordinator.
pub fn of_fault(fault: &Fault) -> u8 {
    if fault.reason == Reason::Unauthenticated {
        return DENIED;
    }
    match fault.reason.code() {
        Code::InvalidArgument => USAGE,
        Code::NotFound => NOT_FOUND,
        Code::FailedPrecondition | Code::Aborted | Code::AlreadyExists => REFUSED,
        Code::ResourceExhausted => TEMPORARY,
        Code::PermissionDenied => DENIED,
        Code::Unavailable => UNREACHABLE,
        _ => ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::job::State;

    fn job(state: State, cause: &str, exit_code: Option<i32>, signal: Option<i32>) -> v1::Job {
        v1::Job {
            state: state.into(),
            outcome: Some(v1::Outcome {
                cause: cause.to_owned(),
                exit_code,
                signal,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_waiting_command_exits_with_the_jobs_own_code() {
        let cases = [
            (job(State::Succeeded, "exit", Some(0), None), 0),
            (job(State::Failed, "exit", Some(7), None), 7),
            (job(State::Failed, "signal", None, Some(9)), 137),
            (job(State::Failed, "time_limit", None, Some(15)), 124),
            (job(State::Failed, "cannot_start", None, None), 126),
            (job(State::Failed, "contradicted", Some(0), None), 1),
            (job(State::Failed, "worker_lost", None, None), 1),
            (job(State::Cancelled, "cancelled", None, Some(9)), 137),
            (job(State::Cancelled, "cancelled", Some(3), None), 143),
            (job(State::Running, "", None, None), 75),
        ];
        for (job, code) in cases {
            assert_eq!(of_job(&job), code, "{job:?}");
        }
    }

    #[test]
    fn the_first_job_that_did_not_succeed_decides() {
        let jobs = [
            job(State::Succeeded, "exit", Some(0), None),
            job(State::Failed, "exit", Some(7), None),
            job(State::Failed, "exit", Some(9), None),
        ];
        assert_eq!(of_jobs(&jobs), 7);
        assert_eq!(of_jobs(&jobs[..1]), 0);
    }
}
