//! What follows an attempt's end: the budgets of retries and resumes, and the hold of a job that
//! keeps losing its host.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::job::JobState;
use crate::outcome::{Cause, Outcome, OutcomeKind};

/// A host that is lost sooner than this after a start looks as if the job did it.
pub const EARLY_LOSS: TimeDelta = TimeDelta::minutes(10);
/// Early losses in a row after which a job is held.
pub const EARLY_LOSSES: i32 = 2;
/// Wait after a worker refused an assignment, so that a refusal for good is no busy loop.
pub const REFUSAL_WAIT: TimeDelta = TimeDelta::seconds(5);

/// What a job may still survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Failures it may still survive.
    pub retries_left: i32,
    /// Retries it began with.
    pub retries: i32,
    /// Interruptions it may still survive.
    pub resumes_left: i32,
    /// Resumes it began with.
    pub resumes: i32,
    /// Attempts in a row that lost their host shortly after they started.
    pub early_losses: i32,
}

/// How long to wait before a retry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// Mean wait before the first retry; doubles with each further one.
    pub base: Duration,
    /// Longest wait.
    pub most: Duration,
    /// A random number from 0 to 1, so that jobs which failed together do not return together.
    pub random: f64,
}

impl Backoff {
    /// The wait before retry `number`, counted from 0: between half of the mean and one and a half.
    pub fn wait(&self, number: i32) -> TimeDelta {
        let doubled = self.base.as_secs_f64() * 2f64.powi(number.clamp(0, 62));
        let seconds = (doubled * (0.5 + self.random.clamp(0.0, 1.0))).min(self.most.as_secs_f64());
        TimeDelta::microseconds((seconds * 1e6) as i64)
    }
}

/// An attempt's end, as far as it matters for what follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// How it ended.
    pub outcome: Outcome,
    /// When it was started, if it was.
    pub started_at: Option<DateTime<Utc>>,
    /// When its process ended or was lost.
    pub ended_at: DateTime<Utc>,
    /// It published a checkpoint.
    pub checkpoint: bool,
    /// Its worker refused it without having been asked to return it.
    pub refused: bool,
    /// A cancel was asked for.
    pub cancel_requested: bool,
}

/// Where a job goes after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Back to its place in the queue, at once.
    Queue,
    /// Back to its place after a wait.
    WaitUntil(DateTime<Utc>),
    /// A person must look.
    Hold,
    /// It is over.
    End(JobState),
}

/// What follows an attempt's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Where the job goes.
    pub next: Next,
    /// What it may still survive.
    pub budget: Budget,
    /// One word for why.
    pub reason: &'static str,
    /// The same in a sentence.
    pub message: String,
}

/// Decides what follows an attempt's end.
pub fn after(ended: &Ended, budget: Budget, backoff: &Backoff, now: DateTime<Utc>) -> Verdict {
    let outcome = &ended.outcome;
    let verdict = |next, budget, reason, message: String| Verdict {
        next,
        budget,
        reason,
        message,
    };
    let end = |state, budget, message: String| {
        verdict(Next::End(state), budget, outcome.cause.as_str(), message)
    };
    let survived = Budget {
        early_losses: 0,
        ..budget
    };
    match outcome.kind {
        OutcomeKind::Succeeded => end(JobState::Succeeded, survived, outcome.message.clone()),
        OutcomeKind::Cancelled => end(JobState::Cancelled, survived, outcome.message.clone()),
        OutcomeKind::Failed => {
            let hopeless = matches!(outcome.cause, Cause::CannotStart | Cause::GpuFault);
            if hopeless || ended.cancel_requested || budget.retries_left <= 0 {
                return end(JobState::Failed, survived, outcome.message.clone());
            }
            let until = now + backoff.wait(budget.retries - budget.retries_left);
            let left = budget.retries_left - 1;
            verdict(
                Next::WaitUntil(until),
                Budget {
                    retries_left: left,
                    ..survived
                },
                "retry_backoff",
                format!(
                    "{}; tried again soon, {}",
                    outcome.message,
                    times(left, "retry", "retries")
                ),
            )
        }
        OutcomeKind::Interrupted => after_interruption(ended, budget),
        OutcomeKind::NeverStarted if ended.cancel_requested => verdict(
            Next::End(JobState::Cancelled),
            budget,
            Cause::Cancelled.as_str(),
            "cancelled before it started".to_owned(),
        ),
        OutcomeKind::NeverStarted if ended.refused => verdict(
            Next::WaitUntil(now + REFUSAL_WAIT),
            budget,
            "refused",
            outcome.message.clone(),
        ),
        OutcomeKind::NeverStarted => verdict(Next::Queue, budget, "", String::new()),
    }
}

fn after_interruption(ended: &Ended, budget: Budget) -> Verdict {
    let outcome = &ended.outcome;
    let lost_host = matches!(outcome.cause, Cause::WorkerLost | Cause::ShimLost);
    let early = lost_host
        && ended
            .started_at
            .is_some_and(|started| ended.ended_at - started < EARLY_LOSS);
    let mut budget = Budget {
        early_losses: if early { budget.early_losses + 1 } else { 0 },
        ..budget
    };
    if ended.checkpoint {
        budget.resumes_left = budget.resumes;
    }
    let verdict = |next, budget, reason, message| Verdict {
        next,
        budget,
        reason,
        message,
    };
    if ended.cancel_requested {
        return verdict(
            Next::End(JobState::Cancelled),
            budget,
            Cause::Cancelled.as_str(),
            format!("cancelled; {}", outcome.message),
        );
    }
    if budget.early_losses >= EARLY_LOSSES {
        budget.early_losses = 0;
        return verdict(
            Next::Hold,
            budget,
            "crash_loop",
            format!(
                "held because its host was lost {EARLY_LOSSES} times in a row within \
                 {} minutes of its start; release it once the host is well",
                EARLY_LOSS.num_minutes()
            ),
        );
    }
    if budget.resumes_left <= 0 {
        return verdict(
            Next::End(JobState::Failed),
            budget,
            outcome.cause.as_str(),
            format!("{}, and no resumes are left", outcome.message),
        );
    }
    budget.resumes_left -= 1;
    verdict(
        Next::Queue,
        budget,
        "resumed",
        format!(
            "{}; {}",
            outcome.message,
            times(budget.resumes_left, "resume", "resumes")
        ),
    )
}

fn times(left: i32, one: &str, many: &str) -> String {
    match left {
        0 => format!("no {many} left after that"),
        1 => format!("1 {one} left after that"),
        left => format!("{left} {many} left after that"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::outcome::{End, Facts, StopCause, outcome};

    const FULL: Budget = Budget {
        retries_left: 2,
        retries: 2,
        resumes_left: 3,
        resumes: 3,
        early_losses: 0,
    };

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn backoff(random: f64) -> Backoff {
        Backoff {
            base: Duration::from_secs(5),
            most: Duration::from_secs(600),
            random,
        }
    }

    fn ended(facts: &Facts) -> Ended {
        Ended {
            outcome: outcome(facts),
            started_at: Some(at(0)),
            ended_at: at(60),
            checkpoint: false,
            refused: false,
            cancel_requested: false,
        }
    }

    fn exit(code: i32) -> Facts {
        Facts {
            exit_code: Some(code),
            ..Facts::of(End::Waited)
        }
    }

    fn follow(ended: &Ended, budget: Budget) -> Verdict {
        after(ended, budget, &backoff(0.5), at(61))
    }

    #[test]
    fn a_failure_is_retried_twice_with_growing_waits() {
        let first = follow(&ended(&exit(1)), FULL);
        assert_eq!(first.next, Next::WaitUntil(at(66)));
        let second = follow(&ended(&exit(1)), first.budget);
        assert_eq!(second.next, Next::WaitUntil(at(71)));
        let third = follow(&ended(&exit(1)), second.budget);
        assert_eq!(third.next, Next::End(JobState::Failed));
        assert_eq!((third.reason, third.message.as_str()), ("exit", "exit 1"));
    }

    #[test]
    fn a_start_that_fails_and_a_gpu_fault_are_not_retried() {
        let gpu = Facts {
            gpu_fault: true,
            ..exit(1)
        };
        for facts in [Facts::of(End::CannotStart), gpu] {
            assert_eq!(
                follow(&ended(&facts), FULL).next,
                Next::End(JobState::Failed)
            );
        }
    }

    #[test]
    fn interruptions_resume_at_once_and_a_checkpoint_renews_the_budget() {
        let mut late = ended(&Facts::of(End::MachineLost));
        late.ended_at = at(3600);
        let mut budget = FULL;
        for left in [2, 1, 0] {
            let verdict = follow(&late, budget);
            assert_eq!(verdict.next, Next::Queue);
            assert_eq!(verdict.budget.resumes_left, left);
            budget = verdict.budget;
        }
        assert_eq!(follow(&late, budget).next, Next::End(JobState::Failed));
        late.checkpoint = true;
        let renewed = follow(&late, budget);
        assert_eq!(
            (renewed.next, renewed.budget.resumes_left),
            (Next::Queue, 2)
        );
    }

    #[test]
    fn two_early_losses_in_a_row_hold_the_job() {
        let early = ended(&Facts::of(End::ShimLost));
        let first = follow(&early, FULL);
        assert_eq!((first.next, first.budget.early_losses), (Next::Queue, 1));
        assert_eq!(follow(&early, first.budget).next, Next::Hold);
        let between = follow(&ended(&exit(1)), first.budget);
        assert_eq!(follow(&early, between.budget).next, Next::Queue);
    }

    #[test]
    fn what_never_started_costs_nothing() {
        let mut void = ended(&Facts::of(End::NeverStarted));
        void.started_at = None;
        let verdict = follow(&void, FULL);
        assert_eq!((verdict.next, verdict.budget), (Next::Queue, FULL));
        void.refused = true;
        assert_eq!(follow(&void, FULL).next, Next::WaitUntil(at(66)));
        void.cancel_requested = true;
        assert_eq!(follow(&void, FULL).next, Next::End(JobState::Cancelled));
    }

    #[test]
    fn a_late_cancel_changes_no_recorded_end_but_stops_what_would_follow() {
        let cancelled = |facts: &Facts| Ended {
            cancel_requested: true,
            ..ended(facts)
        };
        let next = |facts: &Facts| follow(&cancelled(facts), FULL).next;
        assert_eq!(next(&exit(0)), Next::End(JobState::Succeeded));
        assert_eq!(next(&exit(1)), Next::End(JobState::Failed));
        assert_eq!(
            next(&Facts::of(End::ShimLost)),
            Next::End(JobState::Cancelled)
        );
        let silence = Facts {
            stopped: Some(StopCause::Silence),
            ..exit(1)
        };
        assert_eq!(next(&silence), Next::End(JobState::Cancelled));
    }

    proptest! {
        #[test]
        fn waits_stay_within_their_bounds(number in -5..2_000, random in 0.0..=1.0f64) {
            let wait = backoff(random).wait(number);
            prop_assert!(wait >= TimeDelta::milliseconds(2_500));
            prop_assert!(wait <= TimeDelta::seconds(600));
        }

        #[test]
        fn a_job_without_checkpoints_ends_within_its_budgets(ends in prop::collection::vec(0..4, 0..20)) {
            let mut budget = FULL;
            let mut charged = 0;
            for end in ends {
                let facts = match end {
                    0 => exit(1),
                    1 => Facts::of(End::ShimLost),
                    2 => Facts::of(End::MachineLost),
                    _ => Facts::of(End::NeverStarted),
                };
                let verdict = follow(&ended(&facts), budget);
                if !matches!(facts.end, End::NeverStarted) {
                    charged += 1;
                }
                if matches!(verdict.next, Next::End(_)) {
                    break;
                }
                budget = verdict.budget;
            }
            // A release after a hold is a person's decision; each hold is one early loss more.
            prop_assert!(charged <= 6 + 4);
            prop_assert!(budget.retries_left >= 0 && budget.resumes_left >= 0);
        }
    }
}
