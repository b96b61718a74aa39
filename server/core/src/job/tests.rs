use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::id::JobId;
use crate::outcome::{End, Facts, StopCause, outcome};
use crate::spec::Condition;

const BACKOFF: Backoff = Backoff {
    base: Duration::from_secs(5),
    most: Duration::from_secs(600),
    random: 0.5,
};

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
            gpu_out_of_memory: false,
            gpu: None,
            refused: false,
            cancel_requested: false,
        },
        BACKOFF,
    )
}

fn late_result(facts: &Facts, is_superseded: bool) -> JobEvent {
    JobEvent::LateResult(LateResult {
        late: Late {
            attempt: AttemptNumber(1),
            worker: "w".to_owned(),
            outcome: outcome(facts),
            started_at: Some(at(0)),
            ended_at: at(5),
            gpu: None,
        },
        is_superseded,
        backoff: BACKOFF,
    })
}

fn late(facts: &Facts) -> JobEvent {
    late_result(facts, false)
}

fn submitted(hold: bool, unmet: i32) -> Job {
    let spec = JobSpec {
        hold,
        ..JobSpec::default()
    };
    Job::submitted(&spec, unmet)
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
        JobEvent::DependencyFailed(Open {
            job: JobId(2),
            on: JobId(1),
            condition: Condition::Ok,
            state: Some(JobState::Failed),
        }),
        JobEvent::TimeCame,
        JobEvent::Assigned("w".into()),
        JobEvent::AttemptStarted(at(0)),
        ended(&exit(0)),
        ended(&exit(1)),
        ended(&Facts::of(End::NeverStarted)),
        late(&exit(0)),
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
            rules: RetryRules::default(),
        },
        JobEvent::Interrupt("a".into()),
        late(&exit(1)),
    ]
}

fn queued() -> Job {
    submitted(false, 0)
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
        row(&submitted(false, 1)),
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
            Err(R::NotRunning),
            Ok(S::Waiting),
        ]
    );
    assert_eq!(
        row(&submitted(true, 0)),
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
            Err(R::NotRunning),
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
            Err(R::NotRunning),
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
            Err(R::NotRunning),
            Ok(S::Queued),
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
            Ok(S::Running),
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
    let late = late(&exit(0));
    let asked = step(&assigned(), &late, at(1)).unwrap();
    assert_eq!(
        (asked.job.state, &asked.effects[..]),
        (JobState::Queued, &[JobEffect::AskBack][..])
    );
    let back = after(&asked.job, ended(&Facts::of(End::NeverStarted)));
    assert_eq!(back.state, JobState::Succeeded);
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
        order in prop::collection::vec(0..18usize, 0..60),
        unmet in 0..3i32,
        hold in any::<bool>(),
    ) {
        let mut job = submitted(hold, unmet);
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
            prop_assert!(job.late.is_none() || job.attempt == Some(AttemptState::Assigned));
            prop_assert!(job.budget.retries_left >= 0 && job.budget.resumes_left >= 0);
            prop_assert!(matches!(job.state, JobState::Queued | JobState::Running) || !job.reason.is_empty());
        }
    }
}

#[test]
fn a_late_failure_costs_a_retry_in_place_of_the_resume() {
    let lost = after(&running(), ended(&Facts::of(End::GivenUp)));
    assert_eq!((lost.budget.resumes_left, lost.budget.retries_left), (2, 2));
    let failed = after(&lost, late(&exit(1)));
    assert_eq!(
        (failed.state, failed.reason.as_str()),
        (JobState::Waiting, "retry_backoff")
    );
    assert_eq!(failed.not_before, Some(at(6)));
    assert_eq!(
        (failed.budget.resumes_left, failed.budget.retries_left),
        (3, 1)
    );
    // The same through a successor that has to come back first, and only once.
    let waiting = after(
        &after(&lost, JobEvent::Assigned("w".into())),
        late(&exit(1)),
    );
    assert!(waiting.late.is_some());
    let back = after(&waiting, ended(&Facts::of(End::NeverStarted)));
    assert_eq!(back.budget, failed.budget);
    let due = step(&back, &JobEvent::TimeCame, at(6)).unwrap().job;
    let again = after(&due, JobEvent::Assigned("w".into()));
    let returned = after(&again, ended(&Facts::of(End::NeverStarted)));
    assert_eq!(
        (returned.state, returned.budget),
        (JobState::Queued, failed.budget)
    );
    let last = Job {
        budget: Budget {
            retries_left: 0,
            ..lost.budget
        },
        ..lost
    };
    assert_eq!(after(&last, late(&exit(1))).state, JobState::Failed);
}

#[test]
fn a_late_failure_is_old_news_once_a_successor_has_started() {
    let lost = after(&running(), ended(&Facts::of(End::GivenUp)));
    let superseded = late_result(&exit(1), true);
    assert_eq!(step(&lost, &superseded, at(1)), Err(JobRefusal::NotReady));
    let asked = after(
        &after(&lost, JobEvent::Assigned("w".into())),
        late(&exit(1)),
    );
    let started = after(&asked, JobEvent::AttemptStarted(at(1)));
    assert_eq!(started.late, None);
}

#[test]
fn a_late_success_wins_over_a_cancel_and_over_a_successor_that_is_lost() {
    let lost = after(&running(), ended(&Facts::of(End::GivenUp)));
    let asked = after(
        &after(&lost, JobEvent::Assigned("w".into())),
        late(&exit(0)),
    );
    for end in [End::NeverStarted, End::GivenUp, End::CannotStart] {
        let over = after(&asked, ended(&Facts::of(end)));
        assert_eq!(over.state, JobState::Succeeded, "{end:?}");
    }
    assert_eq!(
        step(&asked, &late(&exit(1)), at(1)),
        Err(JobRefusal::Already),
        "nor does the failure of another lost attempt take its place"
    );
    let cancelled = after(&asked, JobEvent::Cancel("a".into()));
    let over = after(&cancelled, ended(&Facts::of(End::NeverStarted)));
    assert_eq!(over.state, JobState::Succeeded);
}

#[test]
fn a_release_unbinds_only_a_job_that_waited_for_its_checkpoint() {
    let held = after(&queued(), JobEvent::Hold("a".into()));
    assert!(!after(&held, JobEvent::Release).anywhere);
    let elsewhere = after(
        &queued(),
        JobEvent::HoldForCheckpoint("w stayed away".into()),
    );
    let released = after(&elsewhere, JobEvent::Release);
    assert!(released.anywhere);
    let refused = step(
        &released,
        &JobEvent::HoldForCheckpoint("w stayed away".into()),
        at(1),
    );
    assert_eq!(refused, Err(JobRefusal::NotReady));
    // Coming back from a worker without a start does not bind it again; a new checkpoint does.
    let assigned = after(&released, JobEvent::Assigned("w".into()));
    let back = after(&assigned, ended(&Facts::of(End::NeverStarted)));
    assert!(back.anywhere);
    let ran = after(&assigned, JobEvent::AttemptStarted(at(1)));
    let JobEvent::AttemptEnded(mut end, backoff) = ended(&Facts::of(End::ShimLost)) else {
        unreachable!("`ended` makes no other event");
    };
    end.checkpoint = true;
    assert!(!after(&ran, JobEvent::AttemptEnded(end, backoff)).anywhere);
}

#[test]
fn a_drill_interrupts_what_runs_and_nothing_else() {
    let interrupt = JobEvent::Interrupt("a".into());
    let asked = step(&running(), &interrupt, at(1)).unwrap();
    assert_eq!(asked.effects, [JobEffect::Interrupt]);
    let facts = Facts {
        stopped: Some(StopCause::Drill),
        signal: Some(9),
        ..Facts::of(End::Waited)
    };
    let resumed = after(&asked.job, ended(&facts));
    assert_eq!(
        (resumed.state, resumed.budget.resumes_left),
        (JobState::Queued, 2)
    );
    assert_eq!(
        step(&assigned(), &interrupt, at(1)),
        Err(JobRefusal::NotRunning)
    );
}

proptest! {
    /// F39: a cancel races the end. Whatever the order, there is one final state, it never changes,
    /// and it is what the worker recorded.
    #[test]
    fn a_cancel_that_races_the_end_leaves_one_final_state(
        order in prop::collection::vec(0..6usize, 1..12),
        end in 0..4usize,
    ) {
        let ends = [exit(0), exit(1), cancel_stop(), Facts::of(End::ShimLost)];
        let events = [
            JobEvent::Cancel("a".into()),
            ended(&ends[end]),
            JobEvent::Cancel("b".into()),
            JobEvent::AttemptStarted(at(0)),
            late(&exit(0)),
            JobEvent::TimeCame,
        ];
        let mut job = running();
        let mut asked = false;
        let mut finals = Vec::new();
        for index in order.into_iter().chain([0, 1]) {
            let before = job.clone();
            match step(&job, &events[index], at(1)) {
                Ok(step) => job = step.job,
                Err(_) => prop_assert_eq!(&job, &before),
            }
            asked |= job.cancel_requested;
            if job.state.is_final() && !before.state.is_final() {
                finals.push((job.state, before.attempt.is_some()));
            }
        }
        prop_assert_eq!(finals.len(), 1);
        // A job that was lost may wait to run again when the cancel or a late success ends it.
        if let [(state, true)] = finals[..] {
            let recorded = match end {
                0 => JobState::Succeeded,
                1 => JobState::Failed,
                _ => JobState::Cancelled,
            };
            prop_assert_eq!(state, recorded);
            prop_assert!(asked || end < 3);
        }
        prop_assert!(job.ended_at.is_some() && job.attempt.is_none());
    }
}
