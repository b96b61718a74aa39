//! What follows an attempt's end: the budgets of retries and resumes, the rules that name which
//! failures are retried, and the holds of a job that keeps losing its host or keeps asking to be run
//! again without getting anywhere.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::failure::RetryRules;
use crate::gpu::GpuFault;
use crate::guard::{Guard, is_broken};
use crate::job::JobState;
use crate::outcome::{Cause, Outcome, OutcomeKind};

/// A host that is lost sooner than this after a start looks as if the job did it.
pub const EARLY_LOSS: TimeDelta = TimeDelta::minutes(10);
/// Early losses in a row after which a job is held.
pub const EARLY_LOSSES: i32 = 2;
/// Exits "checkpointed, run me again" in a row after which a person must look.
pub const CHECKPOINT_EXITS: i32 = 1_000;
/// Such exits in a row that led nowhere, after which a person must look.
pub const IDLE_EXITS: i32 = 5;
/// An attempt that is over sooner than this has done nothing that is worth another one.
pub const IDLE_RUN: TimeDelta = TimeDelta::seconds(1);
/// Why a job is held whose host keeps going away.
pub const CRASH_LOOP: &str = "crash_loop";
/// Why a job is held that keeps asking to be run again without getting anywhere.
pub const CHECKPOINT_LOOP: &str = "checkpoint_loop";
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
    /// The end of the latest attempt's output told that a GPU had no memory left.
    pub gpu_out_of_memory: bool,
    /// Exits that asked to be run again from a checkpoint, since it was submitted or released.
    pub checkpoint_exits: i32,
    /// Those of them in a row that left no checkpoint or came at once.
    pub idle_exits: i32,
}

impl Budget {
    /// What a job begins with.
    pub fn full(retries: i32, resumes: i32) -> Self {
        Self {
            retries_left: retries,
            retries,
            resumes_left: resumes,
            resumes,
            early_losses: 0,
            gpu_out_of_memory: false,
            checkpoint_exits: 0,
            idle_exits: 0,
        }
    }

    /// The same once a person has looked at the job and lets it go on: what may have been an endless
    /// loop is counted anew.
    #[must_use]
    pub fn looked_at(self) -> Self {
        Self {
            early_losses: 0,
            gpu_out_of_memory: false,
            checkpoint_exits: 0,
            idle_exits: 0,
            ..self
        }
    }
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
    /// The end of its output told that a GPU had no memory left.
    pub gpu_out_of_memory: bool,
    /// What was wrong with its GPU, or with how it was used.
    pub gpu: Option<GpuFault>,
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

/// Decides what follows an attempt's end. `rules` are those of the job.
pub fn after(
    ended: &Ended,
    rules: &RetryRules,
    budget: Budget,
    backoff: &Backoff,
    now: DateTime<Utc>,
) -> Verdict {
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
        gpu_out_of_memory: ended.gpu_out_of_memory,
        ..budget
    };
    match outcome.kind {
        OutcomeKind::Succeeded => end(JobState::Succeeded, survived, outcome.message.clone()),
        OutcomeKind::Cancelled => end(JobState::Cancelled, survived, outcome.message.clone()),
        OutcomeKind::Failed => {
            if ended.cancel_requested || budget.retries_left <= 0 && !is_broken(Guard::Budget) {
                return end(JobState::Failed, survived, outcome.message.clone());
            }
            if let Some(refusal) = rules.refusal(outcome) {
                let message = format!("{}; not retried: {refusal}", outcome.message);
                return end(JobState::Failed, survived, message);
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
        OutcomeKind::Checkpointed => after_checkpoint_exit(ended, survived),
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
    let after_gpu_out_of_memory =
        lost_host && ended.gpu_out_of_memory || early && budget.gpu_out_of_memory;
    let mut budget = Budget {
        early_losses: if early { budget.early_losses + 1 } else { 0 },
        gpu_out_of_memory: ended.gpu_out_of_memory,
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
        return cancelled(ended, budget);
    }
    if after_gpu_out_of_memory {
        return verdict(
            Next::Hold,
            budget.looked_at(),
            CRASH_LOOP,
            "held because its host was lost right after a GPU had no memory left; \
             have it ask for less, then release it"
                .to_owned(),
        );
    }
    if budget.early_losses >= EARLY_LOSSES {
        return verdict(
            Next::Hold,
            budget.looked_at(),
            CRASH_LOOP,
            format!(
                "held because its host was lost {EARLY_LOSSES} times in a row within \
                 {} minutes of its start; release it once the host is well",
                EARLY_LOSS.num_minutes()
            ),
        );
    }
    if budget.resumes_left <= 0 && !is_broken(Guard::Budget) {
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

/// It asked to be run again. That is free as long as it gets somewhere: an attempt that left no
/// checkpoint, or was over at once, would be the same again.
fn after_checkpoint_exit(ended: &Ended, budget: Budget) -> Verdict {
    let idle = !ended.checkpoint
        || ended
            .started_at
            .is_none_or(|started| ended.ended_at - started < IDLE_RUN);
    let mut budget = Budget {
        checkpoint_exits: budget.checkpoint_exits.saturating_add(1),
        idle_exits: if idle { budget.idle_exits + 1 } else { 0 },
        ..budget
    };
    if ended.checkpoint {
        budget.resumes_left = budget.resumes;
    }
    if ended.cancel_requested {
        return cancelled(ended, budget);
    }
    let hold = |message| Verdict {
        next: Next::Hold,
        budget: budget.looked_at(),
        reason: CHECKPOINT_LOOP,
        message,
    };
    if budget.idle_exits >= IDLE_EXITS {
        return hold(format!(
            "held because it asked {IDLE_EXITS} times in a row to be run again and each time left \
             no checkpoint or ended within a second; release it once it gets on"
        ));
    }
    if budget.checkpoint_exits >= CHECKPOINT_EXITS {
        return hold(format!(
            "held because it asked {CHECKPOINT_EXITS} times to be run again; release it if that is right"
        ));
    }
    Verdict {
        next: Next::Queue,
        budget,
        reason: Cause::Checkpointed.as_str(),
        message: match ended.checkpoint {
            true => format!("{}; goes on from there", ended.outcome.message),
            false => format!("{}, but it left none", ended.outcome.message),
        },
    }
}

fn cancelled(ended: &Ended, budget: Budget) -> Verdict {
    Verdict {
        next: Next::End(JobState::Cancelled),
        budget,
        reason: Cause::Cancelled.as_str(),
        message: format!("cancelled; {}", ended.outcome.message),
    }
}

fn times(left: i32, one: &str, many: &str) -> String {
    match left {
        0 => format!("no {many} left after that"),
        1 => format!("1 {one} left after that"),
        left => format!("{left} {many} left after that"),
    }
}

#[cfg(test)]
mod tests;
