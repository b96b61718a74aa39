//! A job's life: the only place that gives a job its state.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::attempt::AttemptState;
use crate::outcome::{Cause, Outcome, OutcomeKind, words};
use crate::retry::{self, Backoff, Budget, Ended, Next};

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
    /// A person let it go on, wherever that may be.
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
    /// When its latest attempt started.
    pub started_at: Option<DateTime<Utc>>,
    /// When it reached its final state.
    pub ended_at: Option<DateTime<Utc>>,
}

impl Job {
    /// A job as it is submitted.
    pub fn submitted(hold: bool, unmet_dependencies: i32, retries: i32, resumes: i32) -> Self {
        let mut job = Self {
            state: JobState::Queued,
            reason: String::new(),
            message: String::new(),
            attempt: None,
            cancel_requested: false,
            unmet_dependencies,
            not_before: None,
            budget: Budget {
                retries_left: retries,
                retries,
                resumes_left: resumes,
                resumes,
                early_losses: 0,
            },
            started_at: None,
            ended_at: None,
        };
        if hold {
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
    /// A job it waited for can no longer end as it should; the sentence says which.
    DependencyFailed(String),
    /// The time it waited for may have come.
    TimeCame,
    /// It was given to the named worker.
    Assigned(String),
    /// Its attempt was started.
    AttemptStarted(DateTime<Utc>),
    /// Its attempt is over.
    AttemptEnded(Ended, Backoff),
    /// An attempt that had been given up was heard to have ended this way after all.
    LateResult(Outcome),
    /// A person wants it gone; the text says who.
    Cancel(String),
    /// A person wants it kept from starting; the text says who.
    Hold(String),
    /// The worker that has its checkpoint stayed away; the sentence says which.
    HoldForCheckpoint(String),
    /// A person lets it go on.
    Release,
    /// A person changed what is to be run.
    Edited {
        /// Dependencies of the new spec that are not met.
        unmet_dependencies: i32,
        /// Retries that the new spec allows.
        retries: i32,
        /// Resumes that the new spec allows.
        resumes: i32,
    },
}

/// What to do once the change is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobEffect {
    /// Ask for its attempt back.
    AskBack,
    /// Stop its attempt for a cancel.
    Stop,
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
        JobEvent::DependencyFailed(message) => {
            if job.attempt.is_some() || job.state == S::Running {
                return Err(R::Running);
            }
            next.end(S::Cancelled, now);
            next.tell(reason::DEPENDENCY_FAILED, message);
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
        JobEvent::LateResult(outcome) => late_result(job, outcome, now),
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
            if job.state != S::Queued || job.attempt.is_some() || job.reason == reason::RELEASED {
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
            next.tell(reason::RELEASED, "released by a person");
            next.queue_or_wait(now);
            if next.attempt.is_some() {
                next.tell(reason::ASSIGNED, "");
            }
            let effects = queued_effects(job, &next);
            Ok(stepped(next, effects, "released", "released"))
        }
        JobEvent::Edited {
            unmet_dependencies,
            retries,
            resumes,
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
    let ended = Ended {
        cancel_requested: job.cancel_requested,
        ..ended.clone()
    };
    let verdict = retry::after(&ended, job.budget, backoff, now);
    next.budget = verdict.budget;
    let kept_held = job.state == JobState::Held;
    let mut effects = Vec::new();
    let kind;
    match verdict.next {
        Next::End(state) => {
            next.end(state, now);
            next.tell(verdict.reason, verdict.message);
            effects.push(JobEffect::ResolveDependents);
            kind = "ended";
        }
        // It was held while a worker had it ready: it stays held for the reason it has.
        Next::Queue | Next::WaitUntil(_) if kept_held => kind = "returned",
        Next::Hold => {
            next.state = JobState::Held;
            next.tell(verdict.reason, verdict.message);
            kind = "held";
        }
        Next::WaitUntil(until) => {
            next.state = JobState::Waiting;
            next.not_before = Some(until);
            next.tell(verdict.reason, verdict.message);
            effects.push(JobEffect::WakeAt(until));
            kind = "retry_scheduled";
        }
        Next::Queue => {
            next.state = JobState::Queued;
            next.tell(verdict.reason, verdict.message);
            effects.push(JobEffect::Dispatch);
            kind = match ended.outcome.kind {
                OutcomeKind::NeverStarted => "returned",
                _ => "resume_scheduled",
            };
        }
    }
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

fn late_result(job: &Job, outcome: &Outcome, now: DateTime<Utc>) -> Result<JobStep, JobRefusal> {
    if job.attempt == Some(AttemptState::Running) {
        return Err(JobRefusal::Running);
    }
    let state = match outcome.kind {
        OutcomeKind::Succeeded => JobState::Succeeded,
        OutcomeKind::Failed => JobState::Failed,
        OutcomeKind::Cancelled => JobState::Cancelled,
        OutcomeKind::Interrupted | OutcomeKind::NeverStarted => return Err(JobRefusal::NotReady),
    };
    if job.attempt.is_some() {
        // Its successor is ready at a worker: once that one is back, the late result decides.
        return Ok(stepped(
            job.clone(),
            vec![JobEffect::AskBack],
            "late_result",
            format!("its lost attempt ended after all: {}", outcome.message),
        ));
    }
    let mut next = job.clone();
    next.end(state, now);
    next.tell(outcome.cause.as_str(), outcome.message.clone());
    Ok(stepped(
        next,
        vec![JobEffect::ResolveDependents],
        "ended",
        format!("its lost attempt ended after all: {}", outcome.message),
    ))
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
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::outcome::{End, Facts, StopCause, outcome};

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn ended(facts: &Facts) -> JobEvent {
        JobEvent::AttemptEnded(
            Ended {
                outcome: outcome(facts),
                started_at: Some(at(0)),
                ended_at: at(5),
                checkpoint: false,
                refused: false,
                cancel_requested: false,
            },
            Backoff {
                base: Duration::from_secs(5),
                most: Duration::from_secs(600),
                random: 0.5,
            },
        )
    }

    fn exit(code: i32) -> Facts {
        Facts {
            exit_code: Some(code),
            ..Facts::of(End::Waited)
        }
    }

    fn cancel_stop() -> Facts {
        Facts {
            stopped: Some(StopCause::Cancel),
            signal: Some(15),
            ..Facts::of(End::Waited)
        }
    }

    fn events() -> Vec<JobEvent> {
        vec![
            JobEvent::DependenciesMet(1),
            JobEvent::DependencyFailed("job 1 failed".into()),
            JobEvent::TimeCame,
            JobEvent::Assigned("w".into()),
            JobEvent::AttemptStarted(at(0)),
            ended(&exit(0)),
            ended(&exit(1)),
            ended(&Facts::of(End::NeverStarted)),
            JobEvent::LateResult(outcome(&exit(0))),
            JobEvent::Cancel("a".into()),
            JobEvent::Hold("a".into()),
            JobEvent::HoldForCheckpoint("w stayed away".into()),
            JobEvent::Release,
            ended(&cancel_stop()),
            ended(&Facts::of(End::ShimLost)),
            JobEvent::Edited {
                unmet_dependencies: 1,
                retries: 0,
                resumes: 5,
            },
        ]
    }

    fn queued() -> Job {
        Job::submitted(false, 0, 2, 3)
    }

    fn after(job: &Job, event: JobEvent) -> Job {
        step(job, &event, at(1)).unwrap().job
    }

    fn assigned() -> Job {
        after(&queued(), JobEvent::Assigned("w".into()))
    }

    fn running() -> Job {
        after(&assigned(), JobEvent::AttemptStarted(at(0)))
    }

    #[test]
    fn the_whole_table() {
        use JobRefusal as R;
        use JobState as S;
        let row = |job: &Job| -> Vec<Result<S, R>> {
            events()
                .iter()
                .map(|event| step(job, event, at(1)).map(|step| step.job.state))
                .collect()
        };
        let none = Err(R::NoAttempt);
        let not_ready = Err(R::NotReady);
        assert_eq!(
            row(&Job::submitted(false, 1, 2, 3)),
            [
                Ok(S::Queued),
                Ok(S::Cancelled),
                not_ready,
                not_ready,
                none,
                none,
                none,
                none,
                Ok(S::Succeeded),
                Ok(S::Cancelled),
                Ok(S::Held),
                not_ready,
                Err(R::NotHeld),
                none,
                none,
                Ok(S::Waiting),
            ]
        );
        assert_eq!(
            row(&Job::submitted(true, 0, 2, 3)),
            [
                Ok(S::Held),
                Ok(S::Cancelled),
                not_ready,
                not_ready,
                none,
                none,
                none,
                none,
                Ok(S::Succeeded),
                Ok(S::Cancelled),
                Err(R::Already),
                not_ready,
                Ok(S::Queued),
                none,
                none,
                Ok(S::Held),
            ]
        );
        assert_eq!(
            row(&queued()),
            [
                Ok(S::Queued),
                Ok(S::Cancelled),
                not_ready,
                Ok(S::Queued),
                none,
                none,
                none,
                none,
                Ok(S::Succeeded),
                Ok(S::Cancelled),
                Ok(S::Held),
                Ok(S::Held),
                Err(R::NotHeld),
                none,
                none,
                Ok(S::Waiting),
            ]
        );
        assert_eq!(
            row(&assigned()),
            [
                Ok(S::Queued),
                Err(R::Running),
                not_ready,
                not_ready,
                Ok(S::Running),
                Ok(S::Succeeded),
                Ok(S::Waiting),
                Ok(S::Queued),
                Ok(S::Queued),
                Ok(S::Queued),
                Ok(S::Held),
                not_ready,
                Err(R::NotHeld),
                Ok(S::Cancelled),
                Ok(S::Queued),
                Err(R::Running),
            ]
        );
        assert_eq!(
            row(&running()),
            [
                Ok(S::Running),
                Err(R::Running),
                not_ready,
                not_ready,
                none,
                Ok(S::Succeeded),
                Ok(S::Waiting),
                Ok(S::Queued),
                Err(R::Running),
                Ok(S::Running),
                Err(R::Running),
                not_ready,
                Err(R::NotHeld),
                Ok(S::Cancelled),
                Ok(S::Queued),
                Err(R::Running),
            ]
        );
        for state in [S::Succeeded, S::Failed, S::Cancelled] {
            let mut over = queued();
            over.end(state, at(0));
            for (event, result) in events().iter().zip(row(&over)) {
                let again = state == S::Cancelled && matches!(event, JobEvent::Cancel(_));
                let expected = if again { R::Already } else { R::Ended(state) };
                assert_eq!(result, Err(expected), "{event:?}");
            }
        }
    }

    #[test]
    fn a_cancel_reaches_a_job_wherever_it_is() {
        let cancel = JobEvent::Cancel("a".into());
        let asked = step(&assigned(), &cancel, at(1)).unwrap();
        assert_eq!(asked.effects, [JobEffect::AskBack]);
        let too_late = step(&asked.job, &JobEvent::AttemptStarted(at(1)), at(1)).unwrap();
        assert_eq!(too_late.effects, [JobEffect::Stop]);
        let in_time = step(&asked.job, &ended(&Facts::of(End::NeverStarted)), at(1)).unwrap();
        assert_eq!(in_time.job.state, JobState::Cancelled);
        let running = step(&running(), &cancel, at(1)).unwrap();
        assert_eq!(running.effects, [JobEffect::Stop]);
        assert_eq!(
            after(&running.job, ended(&exit(0))).state,
            JobState::Succeeded
        );
    }

    #[test]
    fn a_held_job_that_comes_back_stays_held() {
        let held = step(&assigned(), &JobEvent::Hold("a".into()), at(1)).unwrap();
        assert_eq!(held.effects, [JobEffect::AskBack]);
        let back = after(&held.job, ended(&Facts::of(End::NeverStarted)));
        assert_eq!(
            (back.state, back.reason.as_str()),
            (JobState::Held, reason::HELD)
        );
    }

    #[test]
    fn a_late_result_decides_once_the_successor_is_back() {
        let late = JobEvent::LateResult(outcome(&exit(0)));
        let asked = step(&assigned(), &late, at(1)).unwrap();
        assert_eq!(
            (asked.job.state, &asked.effects[..]),
            (JobState::Queued, &[JobEffect::AskBack][..])
        );
        let back = after(&asked.job, ended(&Facts::of(End::NeverStarted)));
        assert_eq!(after(&back, late).state, JobState::Succeeded);
    }

    #[test]
    fn a_backoff_is_waited_for() {
        let waiting = after(&running(), ended(&exit(1)));
        assert_eq!(waiting.not_before, Some(at(6)));
        assert_eq!(
            step(&waiting, &JobEvent::TimeCame, at(5)),
            Err(JobRefusal::NotReady)
        );
        let due = step(&waiting, &JobEvent::TimeCame, at(6)).unwrap();
        assert_eq!(
            (due.job.state, due.job.not_before),
            (JobState::Queued, None)
        );
        assert_eq!(due.effects, [JobEffect::Dispatch]);
    }

    proptest! {
        #[test]
        fn what_the_schema_demands_holds_after_any_events(
            order in prop::collection::vec(0..16usize, 0..60),
            unmet in 0..3i32,
            hold in any::<bool>(),
        ) {
            let mut job = Job::submitted(hold, unmet, 2, 3);
            for (second, index) in order.into_iter().enumerate() {
                let now = at(2 * second as i64);
                let was_final = job.state.is_final();
                if let Ok(step) = step(&job, &events()[index], now) {
                    prop_assert!(!was_final);
                    job = step.job;
                }
                prop_assert_eq!(job.state.is_final(), job.ended_at.is_some());
                prop_assert!(job.state != JobState::Waiting || job.unmet_dependencies > 0 || job.not_before.is_some());
                prop_assert_eq!(job.state == JobState::Running, job.attempt == Some(AttemptState::Running));
                prop_assert!(!job.state.is_final() || job.attempt.is_none());
                prop_assert!(!job.cancel_requested || job.attempt.is_some());
                prop_assert!(matches!(job.state, JobState::Queued | JobState::Running) || !job.reason.is_empty());
            }
        }
    }
}
