//! A job's life: the only place that gives a job its state.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::attempt::AttemptState;
use crate::dependency::{Open, impossible};
use crate::failure::RetryRules;
use crate::gpu::GpuFault;
use crate::guard::{Guard, is_broken};
use crate::id::AttemptNumber;
use crate::outcome::{Cause, Outcome, OutcomeKind, words};
use crate::retry::{self, Backoff, Budget, Ended, Next, Verdict};
use crate::spec::JobSpec;

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for a dependency or a time.
    Waiting,
    /// A person must look or release it.
    Held,
    /// Waits its turn; a worker may have it ready already.
    Queued,
    /// An attempt runs.
    Running,
    /// Ended well.
    Succeeded,
    /// Ended badly.
    Failed,
    /// Ended by a person's wish, or because it can never run.
    Cancelled,
}

words!(JobState {
    Waiting = "waiting",
    Held = "held",
    Queued = "queued",
    Running = "running",
    Succeeded = "succeeded",
    Failed = "failed",
    Cancelled = "cancelled",
});

impl JobState {
    /// True when nothing changes the job any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// Why a job is where it is, in one word; the words that no outcome has.
pub mod reason {
    /// It waits for other jobs.
    pub const DEPENDENCY: &str = "dependency";
    /// A job it waited for can no longer end as it should.
    pub const DEPENDENCY_FAILED: &str = "dependency_failed";
    /// A person holds it.
    pub const HELD: &str = "held";
    /// A person let it go on.
    pub const RELEASED: &str = "released";
    /// A worker has it and is about to start it.
    pub const ASSIGNED: &str = "assigned";
    /// The worker that has its checkpoint stayed away.
    pub const CHECKPOINT_ELSEWHERE: &str = "checkpoint_elsewhere";
}

/// A job, as far as its life is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Where it is.
    pub state: JobState,
    /// One word for why it is there; may be empty.
    pub reason: String,
    /// The same in a sentence.
    pub message: String,
    /// State of its current attempt, the one that has not ended.
    pub attempt: Option<AttemptState>,
    /// A person's wish that its attempt has not obeyed yet.
    pub cancel_requested: bool,
    /// Dependencies that are not met.
    pub unmet_dependencies: i32,
    /// It may not run before this time.
    pub not_before: Option<DateTime<Utc>>,
    /// What it may still survive.
    pub budget: Budget,
    /// Which failures are retried.
    pub rules: RetryRules,
    /// A person let it go on without the worker that has its checkpoint.
    pub anywhere: bool,
    /// How an attempt that had been given up ended after all, while its successor is asked back.
    pub late: Option<Late>,
    /// When its latest attempt started.
    pub started_at: Option<DateTime<Utc>>,
    /// When it reached its final state.
    pub ended_at: Option<DateTime<Utc>>,
}

impl Job {
    /// A job as it is submitted, of which so many dependencies are not met.
    pub fn submitted(spec: &JobSpec, unmet_dependencies: i32) -> Self {
        let mut job = Self {
            state: JobState::Queued,
            reason: String::new(),
            message: String::new(),
            attempt: None,
            cancel_requested: false,
            unmet_dependencies,
            not_before: None,
            budget: Budget::full(spec.retries(), spec.resumes()),
            rules: spec.retry_rules.clone(),
            anywhere: false,
            late: None,
            started_at: None,
            ended_at: None,
        };
        if spec.hold {
            job.state = JobState::Held;
            job.tell(reason::HELD, "submitted on hold");
        } else {
            job.queue_or_wait(DateTime::UNIX_EPOCH);
        }
        job
    }

    fn tell(&mut self, reason: &str, message: impl Into<String>) {
        reason.clone_into(&mut self.reason);
        self.message = message.into();
    }

    fn end(&mut self, state: JobState, now: DateTime<Utc>) {
        self.state = state;
        self.ended_at = Some(now);
        self.not_before = None;
        self.cancel_requested = false;
        self.late = None;
    }

    /// The late result that decides about it when its current attempt ends in this way. A success is
    /// how the job ended; a failure is the job's only if nothing ran since.
    pub(crate) fn decided_by(&self, end: &Outcome) -> Option<&Late> {
        let nothing_ran = end.kind == OutcomeKind::NeverStarted && !self.cancel_requested;
        self.late
            .as_ref()
            .filter(|late| late.is_success() || nothing_ran)
    }

    /// True when it is run again after its attempt is lost, which may have published a checkpoint.
    pub(crate) fn survives_loss(&self, has_checkpoint: bool) -> bool {
        let resumes = match has_checkpoint {
            true => self.budget.resumes,
            false => self.budget.resumes_left,
        };
        !self.cancel_requested && resumes > 0
    }

    /// Queued when nothing is in its way, else waiting.
    fn queue_or_wait(&mut self, now: DateTime<Utc>) {
        self.not_before = self.not_before.filter(|until| *until > now);
        if self.unmet_dependencies > 0 {
            self.state = JobState::Waiting;
            let message = match self.unmet_dependencies {
                1 => "waits for another job".to_owned(),
                many => format!("waits for {many} other jobs"),
            };
            self.tell(reason::DEPENDENCY, message);
        } else if self.not_before.is_some() {
            self.state = JobState::Waiting;
        } else {
            self.state = JobState::Queued;
            if self.reason != reason::RELEASED {
                self.tell("", "");
            }
        }
    }
}

/// Something that happens to a job.
#[derive(Clone, Debug, PartialEq)]
pub enum JobEvent {
    /// Jobs it waited for have ended as they should; this many.
    DependenciesMet(i32),
    /// A job it waited for can no longer end as it should.
    DependencyFailed(Open),
    /// The time it waited for may have come.
    TimeCame,
    /// It was given to the named worker.
    Assigned(String),
    /// Its attempt was started.
    AttemptStarted(DateTime<Utc>),
    /// Its attempt is over.
    AttemptEnded(Ended, Backoff),
    /// An attempt that had been given up was heard to have ended after all.
    LateResult(LateResult),
    /// A person wants it gone; the text says who.
    Cancel(String),
    /// A person wants it kept from starting; the text says who.
    Hold(String),
    /// The worker that has its checkpoint stayed away; the sentence says which.
    HoldForCheckpoint(String),
    /// A person lets it go on.
    Release,
    /// A person wants to see whether it resumes; the text says who.
    Interrupt(String),
    /// A person changed what is to be run.
    Edited {
        /// Dependencies of the new spec that are not met.
        unmet_dependencies: i32,
        /// Retries that the new spec allows.
        retries: i32,
        /// Resumes that the new spec allows.
        resumes: i32,
        /// Failures that the new spec has retried.
        rules: RetryRules,
    },
}

/// How an attempt ended that had been given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Late {
    /// Its number.
    pub attempt: AttemptNumber,
    /// The name of its worker.
    pub worker: String,
    /// How it ended.
    pub outcome: Outcome,
    /// When it was started, if that is known.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub ended_at: DateTime<Utc>,
    /// What was wrong with its GPU, or with how it was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuFault>,
}

impl Late {
    fn is_success(&self) -> bool {
        self.outcome.kind == OutcomeKind::Succeeded
    }
}

/// The end of an attempt that had been given up, as it is heard of.
#[derive(Clone, Debug, PartialEq)]
pub struct LateResult {
    /// How it ended.
    pub late: Late,
    /// An attempt after it was started, and speaks for the job since.
    pub is_superseded: bool,
    /// How long to wait before a retry.
    pub backoff: Backoff,
}

/// What to do once the change is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobEffect {
    /// Ask for its attempt back.
    AskBack,
    /// Stop its attempt for a cancel.
    Stop,
    /// Kill its attempt as the loss of its machine would.
    Interrupt,
    /// Look for work to assign.
    Dispatch,
    /// Look again when its wait is over.
    WakeAt(DateTime<Utc>),
    /// Tell the jobs that wait for it.
    ResolveDependents,
}

/// An entry of a job's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// One word.
    pub kind: &'static str,
    /// The same in a sentence.
    pub message: String,
}

/// A job after an event, and what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobStep {
    /// The job.
    pub job: Job,
    /// What to do once it is committed.
    pub effects: Vec<JobEffect>,
    /// What its history says, in order.
    pub entries: Vec<Entry>,
}

/// Why an event does not apply to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobRefusal {
    /// It is that way already; nothing is to be done.
    #[error("the job is that way already")]
    Already,
    /// It has ended.
    #[error("the job has ended already")]
    Ended(JobState),
    /// It runs.
    #[error("the job is running already")]
    Running,
    /// It has no such attempt.
    #[error("the job has no such attempt")]
    NoAttempt,
    /// It does not run.
    #[error("the job is not running")]
    NotRunning,
    /// It is not held.
    #[error("the job is not held")]
    NotHeld,
    /// It is not ready for this.
    #[error("the job is not ready")]
    NotReady,
}

/// What is said of a job that a worker has and is about to start.
pub fn assigned_message(worker: &str) -> String {
    format!("assigned to worker `{worker}`")
}

/// Applies an event to a job.
///
/// # Errors
/// When the event does not apply.
pub fn step(job: &Job, event: &JobEvent, now: DateTime<Utc>) -> Result<JobStep, JobRefusal> {
    use JobRefusal as R;
    use JobState as S;
    if job.state.is_final() {
        return Err(match event {
            JobEvent::Cancel(_) if job.state == S::Cancelled => R::Already,
            _ => R::Ended(job.state),
        });
    }
    let mut next = job.clone();
    match event {
        JobEvent::DependenciesMet(count) => {
            if *count <= 0 {
                return Err(R::Already);
            }
            next.unmet_dependencies = (job.unmet_dependencies - count).max(0);
            if job.state == S::Waiting {
                next.queue_or_wait(now);
            }
            let effects = queued_effects(job, &next);
            Ok(stepped(
                next,
                effects,
                "dependency_met",
                "a job it waited for has ended",
            ))
        }
        JobEvent::DependencyFailed(on) => {
            if job.attempt.is_some() || job.state == S::Running {
                return Err(R::Running);
            }
            next.end(S::Cancelled, now);
            let message = impossible(on.condition, on.on, on.state);
            next.tell(reason::DEPENDENCY_FAILED, message.clone());
            Ok(stepped(
                next,
                vec![JobEffect::ResolveDependents],
                "cancelled",
                message,
            ))
        }
        JobEvent::TimeCame => {
            if job.state != S::Waiting || job.not_before.is_none_or(|until| until > now) {
                return Err(R::NotReady);
            }
            next.queue_or_wait(now);
            let effects = queued_effects(job, &next);
            Ok(stepped(next, effects, "queued", "its wait is over"))
        }
        JobEvent::Assigned(worker) => {
            if job.state != S::Queued || job.attempt.is_some() {
                return Err(R::NotReady);
            }
            next.attempt = Some(AttemptState::Assigned);
            let message = assigned_message(worker);
            next.tell(reason::ASSIGNED, message.clone());
            Ok(stepped(next, Vec::new(), "assigned", message))
        }
        // The history has the start already.
        JobEvent::AttemptStarted(at)
            if job.attempt == Some(AttemptState::Running)
                && job.started_at.is_some_and(|known| *at < known) =>
        {
            next.started_at = Some(*at);
            Ok(JobStep {
                job: next,
                effects: Vec::new(),
                entries: Vec::new(),
            })
        }
        JobEvent::AttemptStarted(at) => {
            if job.attempt != Some(AttemptState::Assigned) {
                return Err(R::NoAttempt);
            }
            // A start that was reported cannot be undone, so it also ends a hold that came too late.
            next.state = S::Running;
            next.attempt = Some(AttemptState::Running);
            next.started_at = Some(*at);
            next.not_before = None;
            next.late = None;
            next.tell("", "");
            let effects = match job.cancel_requested {
                true => vec![JobEffect::Stop],
                false => Vec::new(),
            };
            Ok(stepped(next, effects, "started", "started"))
        }
        JobEvent::AttemptEnded(ended, backoff) => {
            if job.attempt.is_none() {
                return Err(R::NoAttempt);
            }
            Ok(attempt_ended(job, ended, backoff, now))
        }
        JobEvent::LateResult(result) => late_result(job, result, now),
        JobEvent::Cancel(who) => match job.attempt {
            None => {
                let message = format!("cancelled by {who}");
                next.end(S::Cancelled, now);
                next.tell(Cause::Cancelled.as_str(), message.clone());
                Ok(stepped(
                    next,
                    vec![JobEffect::ResolveDependents],
                    "cancelled",
                    message,
                ))
            }
            // Asked for again, the wish is told to the worker again.
            Some(state) => {
                next.cancel_requested = true;
                let effect = match state {
                    AttemptState::Assigned => JobEffect::AskBack,
                    AttemptState::Running | AttemptState::Ended => JobEffect::Stop,
                };
                let message = format!("cancel asked for by {who}");
                Ok(stepped(next, vec![effect], "cancel_requested", message))
            }
        },
        JobEvent::Hold(who) => match job.state {
            S::Running => Err(R::Running),
            S::Held => Err(R::Already),
            _ => {
                let message = format!("held by {who}");
                next.state = S::Held;
                next.tell(reason::HELD, message.clone());
                let effects = match job.attempt {
                    Some(_) => vec![JobEffect::AskBack],
                    None => Vec::new(),
                };
                Ok(stepped(next, effects, "held", message))
            }
        },
        JobEvent::HoldForCheckpoint(message) => {
            if job.state != S::Queued || job.attempt.is_some() || job.anywhere {
                return Err(R::NotReady);
            }
            next.state = S::Held;
            next.tell(reason::CHECKPOINT_ELSEWHERE, message);
            Ok(stepped(next, Vec::new(), "held", message))
        }
        JobEvent::Release => {
            if job.state != S::Held {
                return Err(R::NotHeld);
            }
            next.anywhere |= job.reason == reason::CHECKPOINT_ELSEWHERE;
            next.budget = job.budget.looked_at();
            next.tell(reason::RELEASED, "released by a person");
            next.queue_or_wait(now);
            if next.attempt.is_some() {
                next.tell(reason::ASSIGNED, "");
            }
            let effects = queued_effects(job, &next);
            Ok(stepped(next, effects, "released", "released"))
        }
        JobEvent::Interrupt(who) => {
            if job.attempt != Some(AttemptState::Running) {
                return Err(R::NotRunning);
            }
            Ok(stepped(
                next,
                vec![JobEffect::Interrupt],
                "interrupt_requested",
                format!("interrupted on purpose by {who}, as if its machine had been lost"),
            ))
        }
        JobEvent::Edited {
            unmet_dependencies,
            retries,
            resumes,
            rules,
        } => {
            if job.state == S::Running || job.attempt.is_some() {
                return Err(R::Running);
            }
            next.unmet_dependencies = (*unmet_dependencies).max(0);
            let budget = &mut next.budget;
            budget.retries_left = (budget.retries_left + retries - budget.retries).max(0);
            budget.retries = *retries;
            budget.resumes_left = (budget.resumes_left + resumes - budget.resumes).max(0);
            budget.resumes = *resumes;
            next.rules.clone_from(rules);
            if job.state != S::Held {
                next.queue_or_wait(now);
            }
            let effects = queued_effects(job, &next);
            Ok(stepped(
                next,
                effects,
                "edited",
                "what is to be run was changed",
            ))
        }
    }
}

fn attempt_ended(job: &Job, ended: &Ended, backoff: &Backoff, now: DateTime<Utc>) -> JobStep {
    let mut next = job.clone();
    next.attempt = None;
    next.anywhere &= !ended.checkpoint;
    next.late = None;
    let ended = Ended {
        cancel_requested: job.cancel_requested,
        ..ended.clone()
    };
    let never_started = ended.outcome.kind == OutcomeKind::NeverStarted;
    if let Some(late) = job.decided_by(&ended.outcome) {
        let entry = Entry {
            kind: if never_started { "returned" } else { "ended" },
            message: ended.outcome.message.clone(),
        };
        let mut step = apply_late(&next, late, backoff, now);
        step.entries.insert(0, entry);
        return step;
    }
    let verdict = retry::after(&ended, &job.rules, job.budget, backoff, now);
    next.budget = verdict.budget;
    let (effects, kind) = follow(&mut next, &verdict, never_started, now);
    let message = match next.message.as_str() {
        "" => ended.outcome.message.clone(),
        message => message.to_owned(),
    };
    let mut step = stepped(next, effects, kind, message);
    if matches!(kind, "retry_scheduled" | "resume_scheduled" | "held") {
        // The end is a fact of its own, whatever follows it.
        let end = Entry {
            kind: "ended",
            message: ended.outcome.message.clone(),
        };
        step.entries.insert(0, end);
    }
    step
}

/// Puts a job without an attempt where a verdict wants it. Returns what is to be done, and the word
/// for it in the history.
fn follow(
    job: &mut Job,
    verdict: &Verdict,
    never_started: bool,
    now: DateTime<Utc>,
) -> (Vec<JobEffect>, &'static str) {
    let is_held = job.state == JobState::Held;
    match verdict.next {
        Next::End(state) => {
            job.end(state, now);
            job.tell(verdict.reason, verdict.message.as_str());
            (vec![JobEffect::ResolveDependents], "ended")
        }
        // It was held while a worker had it ready: it stays held for the reason it has.
        Next::Queue | Next::WaitUntil(_) if is_held => (Vec::new(), "returned"),
        Next::Hold => {
            job.state = JobState::Held;
            job.tell(verdict.reason, verdict.message.as_str());
            (Vec::new(), "held")
        }
        Next::WaitUntil(until) => {
            job.state = JobState::Waiting;
            job.not_before = Some(until);
            job.tell(verdict.reason, verdict.message.as_str());
            (vec![JobEffect::WakeAt(until)], "retry_scheduled")
        }
        Next::Queue => {
            job.state = JobState::Queued;
            job.tell(verdict.reason, verdict.message.as_str());
            let kind = match never_started {
                true => "returned",
                false => "resume_scheduled",
            };
            (vec![JobEffect::Dispatch], kind)
        }
    }
}

fn late_result(job: &Job, result: &LateResult, now: DateTime<Utc>) -> Result<JobStep, JobRefusal> {
    let late = &result.late;
    if job.attempt == Some(AttemptState::Running) && !is_broken(Guard::LateResult) {
        return Err(JobRefusal::Running);
    }
    match late.outcome.kind {
        OutcomeKind::Succeeded => {}
        OutcomeKind::Failed if !result.is_superseded => {}
        _ => return Err(JobRefusal::NotReady),
    }
    if job.attempt.is_some() && !is_broken(Guard::LateResult) {
        if job.late.as_ref().is_some_and(Late::is_success) {
            return Err(JobRefusal::Already);
        }
        // Its successor is ready at a worker: once that one is back, the late result decides.
        let mut next = job.clone();
        next.late = Some(late.clone());
        return Ok(stepped(
            next,
            vec![JobEffect::AskBack],
            "late_result",
            format!("its lost attempt ended after all: {}", late.outcome.message),
        ));
    }
    Ok(apply_late(job, late, &result.backoff, now))
}

/// Has a late result decide about a job without an attempt: a success ends it, a failure uses a
/// retry instead of the resume that the loss had cost.
fn apply_late(job: &Job, late: &Late, backoff: &Backoff, now: DateTime<Utc>) -> JobStep {
    let mut next = job.clone();
    let outcome = &late.outcome;
    let told = format!("its lost attempt ended after all: {}", outcome.message);
    if late.is_success() {
        next.end(JobState::Succeeded, now);
        next.tell(outcome.cause.as_str(), outcome.message.clone());
        return stepped(next, vec![JobEffect::ResolveDependents], "ended", told);
    }
    let ended = Ended {
        outcome: outcome.clone(),
        started_at: late.started_at,
        ended_at: late.ended_at,
        checkpoint: false,
        gpu_out_of_memory: false,
        gpu: late.gpu.clone(),
        refused: false,
        cancel_requested: job.cancel_requested,
    };
    let refunded = Budget {
        resumes_left: (job.budget.resumes_left + 1).min(job.budget.resumes),
        ..job.budget
    };
    let verdict = retry::after(&ended, &job.rules, refunded, backoff, now);
    next.budget = verdict.budget;
    let (effects, kind) = follow(&mut next, &verdict, false, now);
    let mut step = stepped(next, effects, kind, verdict.message);
    let first = Entry {
        kind: "late_result",
        message: told,
    };
    step.entries.insert(0, first);
    step
}

fn queued_effects(before: &Job, after: &Job) -> Vec<JobEffect> {
    match (after.state, after.not_before) {
        (JobState::Queued, _) if before.state != JobState::Queued => vec![JobEffect::Dispatch],
        (JobState::Waiting, Some(until)) => vec![JobEffect::WakeAt(until)],
        _ => Vec::new(),
    }
}

fn stepped(
    job: Job,
    effects: Vec<JobEffect>,
    kind: &'static str,
    message: impl Into<String>,
) -> JobStep {
    JobStep {
        job,
        effects,
        entries: vec![Entry {
            kind,
            message: message.into(),
        }],
    }
}

#[cfg(test)]
mod tests;
