//! Which of the things that happen to a job are worth telling.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::{Class, Details, Notice, Wish};
use crate::id::{AttemptNumber, JobId};
use crate::job::{Job, JobEvent, JobState, Late};
use crate::outcome::{Cause, Outcome, OutcomeKind};
use crate::silence::{self, Stage};

/// A success is told when the job ran at least this long, unless the installation says otherwise.
pub const SUCCESS_AFTER: TimeDelta = TimeDelta::minutes(2);

/// The job that something happened to.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// The job.
    pub job: JobId,
    /// Its latest attempt, if that is known.
    pub attempt: Option<AttemptNumber>,
    /// That attempt's worker; empty when not known.
    pub worker: &'a str,
    /// What its submitter wants to be told.
    pub wish: Wish,
    /// From which run time on a success is told.
    pub success_after: TimeDelta,
}

/// What is to be told of an event that brought a job from `before` to `after`.
pub fn told(about: &About<'_>, before: &Job, event: &JobEvent, after: &Job) -> Option<Notice> {
    match event {
        JobEvent::AttemptEnded(ended, _) => {
            if let Some(late) = before.decided_by(&ended.outcome) {
                return about.late(before, after, late);
            }
            let ran = ended.started_at.map(|started| ended.ended_at - started);
            let mut notice = about.settled(before, after, &ended.outcome, ran, ended.refused)?;
            notice.details.gpu.clone_from(&ended.gpu);
            Some(notice)
        }
        // One that waits for the end of the attempt after it is told then.
        JobEvent::LateResult(result) if after.late.is_none() => {
            about.late(before, after, &result.late)
        }
        JobEvent::DependencyFailed(on) => Some(about.notice(
            Class::JobSkipped,
            "",
            Details {
                name: on.on.to_string(),
                held: on.state.map_or("deleted", JobState::as_str).to_owned(),
                ..Details::default()
            },
        )),
        JobEvent::HoldForCheckpoint(_) => Some(about.held(after, Details::default())),
        _ => None,
    }
}

/// What is to be told of a job whose worker is silent.
pub fn unreachable(about: &About<'_>, since: DateTime<Utc>) -> Notice {
    let details = Details {
        since: Some(since),
        ..Details::default()
    };
    Notice {
        subject: Notice::worker_subject(about.worker),
        muted: false,
        ..about.notice(Class::WorkerUnreachable, "", details)
    }
}

/// An attempt of which its worker has no record any more.
#[derive(Clone, Copy, Debug)]
pub struct RecordGone {
    /// When it was last heard of, as far as that is known.
    pub since: DateTime<Utc>,
    /// When it is given up.
    pub given_up_at: DateTime<Utc>,
    /// Its job goes on then.
    pub goes_on: bool,
}

/// What is to be told of an attempt of which its worker has no record any more: once for the attempt.
pub fn record_gone(about: &About<'_>, gone: &RecordGone) -> Notice {
    let details = Details {
        since: Some(gone.since),
        next_at: Some(gone.given_up_at),
        left: Some(i32::from(gone.goes_on)),
        ..Details::default()
    };
    about.notice(Class::JobRecordGone, &about.signature(), details)
}

/// What is to be told of a silence that has lasted so long: each stage once for a job, whichever of
/// its attempts comes to it first.
pub fn silent(about: &About<'_>, state: &silence::State, lasted: Duration) -> Option<Notice> {
    let class = match state.stage {
        Stage::Warned => Class::JobSilent,
        Stage::Reminded => Class::JobStillSilent,
        Stage::Ending | Stage::Over => return None,
    };
    let evidence = state.evidence.clone().unwrap_or_default();
    let details = Details {
        seconds: i64::try_from(lasted.as_secs()).ok(),
        since: Some(state.since),
        next_at: state.stop_at(),
        doing: evidence.doing(lasted).as_str().to_owned(),
        line: evidence.last_line().to_owned(),
        ..Details::default()
    };
    Some(about.notice(class, "", details))
}

/// Adds what was last seen of an attempt to the notice that its silence has ended it.
pub fn add_silence(notice: &mut Notice, silence: Option<&silence::State>, now: DateTime<Utc>) {
    if notice.class != Class::JobSilenceEnded {
        return;
    }
    if let Some(state) = silence
        && let Some(evidence) = &state.evidence
    {
        let lasted = (now - state.since).to_std().unwrap_or_default();
        notice.details.doing = evidence.doing(lasted).as_str().to_owned();
        notice.details.line = evidence.last_line().to_owned();
    }
}

impl About<'_> {
    fn notice(&self, class: Class, signature: &str, details: Details) -> Notice {
        Notice {
            class,
            subject: format!("job {}", self.job),
            signature: signature.to_owned(),
            job: Some(self.job),
            attempt: self.attempt,
            worker: self.worker.to_owned(),
            details,
            muted: self.wish == Wish::Never,
        }
    }

    /// What tells one attempt's notices from another's.
    fn signature(&self) -> String {
        self.attempt
            .map_or_else(String::new, |number| format!("attempt {number}"))
    }

    /// What is to be told of an attempt's end that was heard of after it had been given up, and what
    /// it led to.
    fn late(&self, before: &Job, after: &Job, late: &Late) -> Option<Notice> {
        let about = About {
            attempt: Some(late.attempt),
            worker: &late.worker,
            ..*self
        };
        let ran = late.started_at.map(|started| late.ended_at - started);
        let mut notice = about.settled(before, after, &late.outcome, ran, false)?;
        notice.details.gpu.clone_from(&late.gpu);
        notice.details.happened_at = Some(late.ended_at);
        Some(notice)
    }

    /// What is to be told of an attempt's end and what it led to.
    fn settled(
        &self,
        before: &Job,
        after: &Job,
        outcome: &Outcome,
        ran: Option<TimeDelta>,
        refused: bool,
    ) -> Option<Notice> {
        match after.state {
            JobState::Succeeded | JobState::Failed | JobState::Cancelled => {
                self.end(before, after.state, outcome, ran)
            }
            JobState::Held if before.state != JobState::Held => {
                Some(self.held(after, Details::of(outcome)))
            }
            JobState::Waiting | JobState::Queued => self.goes_on(after, outcome, ran, refused),
            // It was held before, and fails all the same.
            JobState::Held if outcome.kind == OutcomeKind::Failed => {
                self.goes_on(after, outcome, ran, refused)
            }
            JobState::Held | JobState::Running => None,
        }
    }

    fn end(
        &self,
        before: &Job,
        state: JobState,
        outcome: &Outcome,
        ran: Option<TimeDelta>,
    ) -> Option<Notice> {
        let details = Details {
            seconds: ran.map(|ran| ran.num_seconds()),
            ..Details::of(outcome)
        };
        let class = match (state, self.wish) {
            (JobState::Failed, _) => Class::JobFailed,
            (JobState::Succeeded, Wish::Failure | Wish::Never) => return None,
            // Who was told of the failure wants to know how it ended.
            (JobState::Succeeded, _) if before.budget.retries_left < before.budget.retries => {
                Class::JobRecovered
            }
            (JobState::Succeeded, Wish::Always) => Class::JobSucceeded,
            (JobState::Succeeded, Wish::Default)
                if ran.is_some_and(|ran| ran >= self.success_after) =>
            {
                Class::JobSucceeded
            }
            // Who was told that it waits for them need not look any more.
            (JobState::Succeeded, _) if before.state == JobState::Held => Class::JobSucceeded,
            (JobState::Cancelled, Wish::Always) => Class::JobCancelled,
            _ => return None,
        };
        Some(self.notice(class, "", details))
    }

    fn held(&self, after: &Job, details: Details) -> Notice {
        let details = Details {
            held: after.reason.clone(),
            text: after.message.clone(),
            ..details
        };
        self.notice(Class::JobHeld, &after.reason, details)
    }

    fn goes_on(
        &self,
        after: &Job,
        outcome: &Outcome,
        ran: Option<TimeDelta>,
        refused: bool,
    ) -> Option<Notice> {
        let mut details = Details {
            seconds: ran.map(|ran| ran.num_seconds()),
            ..Details::of(outcome)
        };
        match outcome.kind {
            // A person asked for it, and gets a report.
            _ if outcome.cause == Cause::Drill => None,
            OutcomeKind::Failed => {
                let is_held = after.state == JobState::Held;
                details.next_at = after.not_before.filter(|_| !is_held);
                details.left = Some(after.budget.retries_left);
                // The attempt's error is found in its output, and replaces this, before anything
                // is told: the same error is told once.
                Some(self.notice(Class::AttemptFailed, &self.signature(), details))
            }
            OutcomeKind::Interrupted if outcome.cause == Cause::Silence => {
                details.left = Some(after.budget.resumes_left);
                Some(self.notice(Class::JobSilenceEnded, "", details))
            }
            OutcomeKind::Interrupted => {
                details.left = Some(after.budget.resumes_left);
                Some(self.notice(Class::JobInterrupted, outcome.cause.as_str(), details))
            }
            OutcomeKind::NeverStarted if refused => {
                let signature = super::signature::normalised(&outcome.message);
                Some(self.notice(Class::JobRefused, &signature, details))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dependency::Open;
    use crate::job::{LateResult, step};
    use crate::outcome::{End, Facts, StopCause, outcome};
    use crate::retry::{Backoff, Ended};
    use crate::spec::{Condition, JobSpec};

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn ended(facts: &Facts, ran: i64, refused: bool) -> JobEvent {
        JobEvent::AttemptEnded(
            Ended {
                outcome: outcome(facts),
                started_at: Some(at(0)),
                ended_at: at(ran),
                checkpoint: false,
                gpu_out_of_memory: false,
                gpu: None,
                refused,
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

    fn submitted(retries: i32) -> Job {
        let spec = JobSpec {
            retries: Some(retries),
            resumes: Some(3),
            ..JobSpec::default()
        };
        Job::submitted(&spec, 0)
    }

    fn running(retries: i32) -> Job {
        let job = submitted(retries);
        let job = step(&job, &JobEvent::Assigned("w".into()), at(0))
            .unwrap()
            .job;
        step(&job, &JobEvent::AttemptStarted(at(0)), at(0))
            .unwrap()
            .job
    }

    fn told_of(job: &Job, event: &JobEvent, wish: Wish) -> (Option<Notice>, Job) {
        let after = step(job, event, at(500)).unwrap().job;
        let about = About {
            job: JobId(7),
            attempt: Some(AttemptNumber(1)),
            worker: "w",
            wish,
            success_after: SUCCESS_AFTER,
        };
        (told(&about, job, event, &after), after)
    }

    fn class(job: &Job, event: &JobEvent, wish: Wish) -> Option<Class> {
        told_of(job, event, wish).0.map(|notice| notice.class)
    }

    #[test]
    fn a_failure_is_told_before_its_retry_and_when_it_is_final() {
        let failure = ended(&exit(3), 10, false);
        let (first, _) = told_of(&running(2), &failure, Wish::Default);
        let first = first.unwrap();
        assert_eq!(first.class, Class::AttemptFailed);
        assert_eq!(first.details.exit_code, Some(3));
        assert_eq!(first.details.left, Some(1));
        assert_eq!(first.details.next_at, Some(at(505)));
        assert_eq!(
            class(&running(0), &failure, Wish::Default),
            Some(Class::JobFailed)
        );
        let (muted, _) = told_of(&running(0), &failure, Wish::Never);
        assert!(muted.unwrap().muted);
    }

    #[test]
    fn a_success_is_told_when_it_took_long_or_was_asked_for_or_had_failed() {
        let (short, long) = (ended(&exit(0), 119, false), ended(&exit(0), 120, false));
        for (event, wish, expected) in [
            (&short, Wish::Default, None),
            (&long, Wish::Default, Some(Class::JobSucceeded)),
            (&short, Wish::Always, Some(Class::JobSucceeded)),
            (&long, Wish::Failure, None),
            (&long, Wish::Never, None),
        ] {
            assert_eq!(class(&running(2), event, wish), expected, "{wish}");
        }
        let mut retried = running(2);
        retried.budget.retries_left = 1;
        assert_eq!(
            class(&retried, &short, Wish::Default),
            Some(Class::JobRecovered)
        );
    }

    #[test]
    fn an_interruption_a_refusal_and_a_hold_are_told() {
        let lost = ended(&Facts::of(End::MachineLost), 5_000, false);
        let (told, _) = told_of(&running(2), &lost, Wish::Default);
        let told = told.unwrap();
        assert_eq!(
            (told.class, told.signature.as_str(), told.details.left),
            (Class::JobInterrupted, "worker_lost", Some(2))
        );
        let early = ended(&Facts::of(End::MachineLost), 5, false);
        let (_, once) = told_of(&running(2), &early, Wish::Default);
        let again = step(&once, &JobEvent::Assigned("w".into()), at(1))
            .unwrap()
            .job;
        let again = step(&again, &JobEvent::AttemptStarted(at(1)), at(1))
            .unwrap()
            .job;
        let (held, _) = told_of(&again, &early, Wish::Default);
        let held = held.unwrap();
        assert_eq!(
            (held.class, held.details.held.as_str()),
            (Class::JobHeld, "crash_loop")
        );
        let refused = ended(&Facts::of(End::NeverStarted), 0, true);
        assert_eq!(
            class(&running(2), &refused, Wish::Default),
            Some(Class::JobRefused)
        );
        let returned = ended(&Facts::of(End::NeverStarted), 0, false);
        assert_eq!(class(&running(2), &returned, Wish::Default), None);
    }

    /// The third attempt had been given up, and ended long after.
    fn late(facts: &Facts, ran: i64) -> (Late, JobEvent) {
        let late = Late {
            attempt: AttemptNumber(3),
            worker: "far".to_owned(),
            outcome: outcome(facts),
            started_at: Some(at(0)),
            ended_at: at(ran),
            gpu: None,
        };
        let event = JobEvent::LateResult(LateResult {
            late: late.clone(),
            is_superseded: false,
            backoff: Backoff {
                base: Duration::from_secs(5),
                most: Duration::from_secs(600),
                random: 0.5,
            },
        });
        (late, event)
    }

    fn lost(retries: i32) -> Job {
        let lost = ended(&Facts::of(End::GivenUp), 5_000, false);
        step(&running(retries), &lost, at(5_000)).unwrap().job
    }

    #[test]
    fn a_result_that_comes_late_is_told_of_its_own_attempt_whatever_became_of_the_next() {
        for (facts, retries, class, signature) in [
            (exit(0), 2, Class::JobSucceeded, ""),
            (exit(3), 2, Class::AttemptFailed, "attempt 3"),
            (exit(3), 0, Class::JobFailed, ""),
        ] {
            let (late, event) = late(&facts, 28_800);
            let (told, _) = told_of(&lost(retries), &event, Wish::Default);
            let told = told.unwrap();
            assert_eq!(
                (told.class, told.signature.as_str()),
                (class, signature),
                "{told:?}"
            );
            assert_eq!(
                (told.attempt, told.worker.as_str()),
                (Some(late.attempt), "far")
            );
            assert_eq!(told.details.seconds, Some(28_800));
            assert_eq!(told.details.happened_at, Some(at(28_800)));
            assert_eq!(told.details.cause, Some(Cause::Exit));
            assert_eq!(told.details.exit_code, facts.exit_code);

            let assigned = JobEvent::Assigned("near".into());
            let assigned = step(&lost(retries), &assigned, at(6_000)).unwrap().job;
            let (early, waits) = told_of(&assigned, &event, Wish::Default);
            assert_eq!(early, None, "its successor may have started");
            let returned = ended(&Facts::of(End::NeverStarted), 0, false);
            let (then, _) = told_of(&waits, &returned, Wish::Default);
            assert_eq!(then, Some(told));
        }
    }

    #[test]
    fn a_late_success_is_measured_by_how_long_it_ran() {
        for (ran, wish, expected) in [
            (119, Wish::Default, None),
            (120, Wish::Default, Some(Class::JobSucceeded)),
            (60, Wish::Always, Some(Class::JobSucceeded)),
            (28_800, Wish::Failure, None),
        ] {
            let (_, event) = late(&exit(0), ran);
            assert_eq!(class(&lost(2), &event, wish), expected, "{ran} {wish}");
        }
    }

    #[test]
    fn a_late_result_of_a_held_job_is_told_as_it_is() {
        let hold = JobEvent::Hold("me".into());
        let held = step(&lost(2), &hold, at(6_000)).unwrap().job;
        let (_, success) = late(&exit(0), 60);
        assert_eq!(
            class(&held, &success, Wish::Default),
            Some(Class::JobSucceeded)
        );
        let (_, failure) = late(&exit(3), 60);
        let (told, after) = told_of(&held, &failure, Wish::Default);
        let told = told.unwrap();
        assert_eq!(after.state, JobState::Held);
        assert_eq!(
            (told.class, told.details.next_at, told.details.left),
            (Class::AttemptFailed, None, Some(1))
        );
    }

    #[test]
    fn f37_the_stages_of_a_silence_and_its_stop_are_told() {
        let about = About {
            job: JobId(7),
            attempt: Some(AttemptNumber(2)),
            worker: "w",
            wish: Wish::Default,
            success_after: SUCCESS_AFTER,
        };
        let state = |stage| silence::State {
            episode: 1,
            stage,
            since: at(0),
            stop_after: Some(Duration::from_secs(900)),
            evidence: Some(silence::Evidence {
                cpu_still: Some(Duration::from_secs(299)),
                last_lines: "epoch 2\nepoch 3".to_owned(),
                ..silence::Evidence::default()
            }),
        };
        let told = |stage| silent(&about, &state(stage), Duration::from_secs(300));
        let first = told(Stage::Warned).unwrap();
        assert_eq!(
            (first.class, first.signature.as_str()),
            (Class::JobSilent, "")
        );
        assert_eq!(first.details.next_at, Some(at(900)));
        assert_eq!(first.details.doing, "nothing");
        assert_eq!(first.details.line, "epoch 3");
        let second = told(Stage::Reminded).unwrap();
        assert_eq!(second.class, Class::JobStillSilent);
        assert!(second.class.severity() < first.class.severity(), "no sound");
        assert!(told(Stage::Ending).is_none() && told(Stage::Over).is_none());

        let stopped = Facts {
            stopped: Some(StopCause::Silence),
            signal: Some(15),
            ..Facts::of(End::Waited)
        };
        let (told, _) = told_of(&running(2), &ended(&stopped, 900, false), Wish::Default);
        let told = told.unwrap();
        assert_eq!(
            (told.class, told.details.left),
            (Class::JobSilenceEnded, Some(2))
        );
    }

    #[test]
    fn what_a_person_did_is_no_news_to_them() {
        let cancelled = ended(
            &Facts {
                stopped: Some(StopCause::Cancel),
                signal: Some(15),
                ..Facts::of(End::Waited)
            },
            500,
            false,
        );
        assert_eq!(class(&running(2), &cancelled, Wish::Default), None);
        assert_eq!(
            class(&running(2), &cancelled, Wish::Always),
            Some(Class::JobCancelled)
        );
        let queued = submitted(2);
        assert_eq!(
            class(&queued, &JobEvent::Hold("me".into()), Wish::Always),
            None
        );
        let skipped = JobEvent::DependencyFailed(Open {
            job: JobId(7),
            on: JobId(3),
            condition: Condition::Ok,
            state: Some(JobState::Failed),
        });
        let (told, _) = told_of(&queued, &skipped, Wish::Default);
        let told = told.unwrap();
        assert_eq!(told.class, Class::JobSkipped);
        assert_eq!(
            (told.details.name.as_str(), told.details.held.as_str()),
            ("3", "failed")
        );
    }
}
