use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::*;
use crate::attempt::{Asked, Attempt};
use crate::id::AttemptNumber;
use crate::job::Job;
use crate::lease::{Leases, Limits};
use crate::outcome::{Cause, End, Facts, OutcomeKind};
use crate::reconcile::{Action, Held};
use crate::spec::JobSpec;

pub(super) const JOB: JobId = JobId(1);
pub(super) const WORKER: WorkerId = WorkerId(Uuid::from_u128(1));
pub(super) const OTHER: WorkerId = WorkerId(Uuid::from_u128(2));
const SPOOL: Uuid = Uuid::from_u128(10);
const NEW_SPOOL: Uuid = Uuid::from_u128(11);

pub(super) fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

pub(super) fn attempt(fence: i64, state: AttemptState) -> AttemptRow {
    let ended = state == AttemptState::Ended;
    AttemptRow {
        fence: Fence(fence),
        job: JOB,
        number: AttemptNumber(fence as i32),
        attempt: Attempt {
            state,
            slot_held: true,
            unreachable: false,
            record_gone: false,
            paused: false,
            asked: None,
            started_at: (state != AttemptState::Assigned).then(|| at(1)),
        },
        worker: WORKER,
        worker_name: "box".to_owned(),
        boot_id: "boot".to_owned(),
        spool_id: SPOOL,
        assigned_at: at(0),
        ended_at: ended.then(|| at(2)),
        duration_us: None,
        pid: None,
        outcome: ended.then(|| crate::outcome::outcome(&Facts::of(End::GivenUp))),
        published: 0,
        checkpoints_kept: false,
        checkpoint: String::new(),
        not_enforced: Vec::new(),
        gpus: Vec::new(),
        log_end: None,
        log_crc32c: None,
        log_stored: 0,
        log_agrees: true,
        has_dependents: false,
        late_result: None,
        silence: None,
        read: state,
    }
}

pub(super) fn ledger(attempts: Vec<AttemptRow>) -> Ledger {
    let mut job = Job::submitted(&JobSpec::default(), 0);
    let current = attempts
        .iter()
        .find(|row| row.attempt.state != AttemptState::Ended);
    job.attempt = current.map(|row| row.attempt.state);
    if job.attempt == Some(AttemptState::Running) {
        job.state = JobState::Running;
        job.started_at = Some(at(1));
    }
    let row = JobRow {
        id: JOB,
        read: job.state,
        job,
        run_now_on: None,
        wish: crate::notice::Wish::Default,
    };
    let backoff = Backoff {
        base: Duration::from_secs(10),
        most: Duration::from_secs(600),
        random: 0.5,
    };
    Ledger::new(at(10_000), backoff, [row], attempts)
}

fn greet(ledger: &mut Ledger, spool_id: Uuid, held: &[Held]) -> Greeted {
    ledger.greet(&Present {
        worker: WORKER,
        name: "box",
        boot_id: "boot",
        spool_id,
        held,
        checkpoints: &[],
    })
}

#[test]
fn a_worker_with_a_new_spool_brings_no_news_of_what_the_old_one_held() {
    let mut orphan = attempt(1, AttemptState::Running);
    orphan.attempt.unreachable = true;
    let mut ledger = ledger(vec![orphan.clone()]);
    let greeted = greet(&mut ledger, NEW_SPOOL, &[]);
    assert_eq!(greeted.verdicts, []);
    assert_eq!(
        ledger.attempt(Fence(1)).unwrap().attempt,
        orphan.attempt,
        "nobody has heard of it"
    );
    let mut ledger = self::ledger(vec![orphan]);
    let held = Held {
        fence: Fence(1),
        state: AttemptState::Running,
        slot_held: true,
    };
    let greeted = greet(&mut ledger, SPOOL, &[held]);
    assert_eq!(greeted.verdicts[0].action, Action::Continue);
    assert!(!ledger.attempt(Fence(1)).unwrap().attempt.unreachable);
}

#[test]
fn an_attempt_that_a_new_agent_took_over_says_so_while_it_runs() {
    let mut ledger = ledger(vec![attempt(1, AttemptState::Running)]);
    ledger.adopted(WORKER, &[Fence(1), Fence(9)]);
    let told: Vec<_> = ledger.events.iter().map(|event| event.kind).collect();
    assert_eq!(told, ["adopted"]);
    assert!(ledger.events[0].message.contains("the job ran on"));
    ledger.adopted(WorkerId(Uuid::from_u128(99)), &[Fence(1)]);
    assert_eq!(ledger.events.len(), 1, "another worker has no part in it");
}

#[test]
fn a_record_is_kept_while_what_is_stored_differs_from_it() {
    for (log_agrees, action) in [(true, Action::Forget), (false, Action::Continue)] {
        let ended = AttemptRow {
            log_end: Some(5),
            log_crc32c: Some(7),
            log_stored: 5,
            log_agrees,
            ..attempt(1, AttemptState::Ended)
        };
        let mut ledger = ledger(vec![ended]);
        let held = Held {
            fence: Fence(1),
            state: AttemptState::Ended,
            slot_held: false,
        };
        let greeted = greet(&mut ledger, SPOOL, &[held]);
        assert_eq!(greeted.verdicts[0].action, action);
    }
}

#[test]
fn what_a_silent_worker_costs_is_the_coordinators_word() {
    let mut ledger = ledger(vec![attempt(1, AttemptState::Running)]);
    ledger.unreachable(Fence(1), Duration::from_secs(45));
    ledger.give_up(Fence(1));
    let told = |kind: &str| {
        let event = ledger.events.iter().find(|event| event.kind == kind);
        event.unwrap_or_else(|| panic!("no {kind} in {:?}", ledger.events))
    };
    let silence = told("unreachable");
    assert!(silence.message.contains("for 45 s;"), "{silence:?}");
    assert!(
        ledger.events.iter().all(|event| event.actor == COORDINATOR),
        "{:?}",
        ledger.events
    );
}

#[test]
fn the_silence_of_an_orphan_is_its_own() {
    let mut leases = Leases::new(Limits {
        unreachable_after: Duration::from_secs(1),
        lost_after: Duration::from_secs(4),
    });
    let current = |fence, same_spool| Current {
        fence: Fence(fence),
        worker: WORKER,
        same_spool,
        unreachable: false,
        record_gone: false,
    };
    // Its worker may have been silent before it came back with other files.
    let before = Current {
        unreachable: true,
        ..current(3, false)
    };
    let told = Current {
        unreachable: true,
        record_gone: true,
        ..current(4, false)
    };
    let current = [current(1, true), current(2, false), before, told];
    let mut look = || {
        lapsed(
            &mut leases,
            &current,
            |_| true,
            Duration::from_secs(3),
            true,
        )
    };
    let first = Lapsed {
        record_gone: vec![Fence(2), Fence(3)],
        ..Lapsed::default()
    };
    assert_eq!(look(), first, "nothing is wrong with the worker");
    assert_eq!(look().lost, [Fence(2), Fence(3), Fence(4)]);
}

#[test]
fn a_record_that_is_gone_is_told_of_the_job_and_once() {
    let mut ledger = ledger(vec![attempt(1, AttemptState::Running)]);
    let minute = Duration::from_secs(60);
    for _ in 0..2 {
        ledger.record_gone(Fence(1), minute, 30 * minute);
    }
    assert!(ledger.attempt(Fence(1)).unwrap().attempt.unreachable);
    let [told] = &ledger.notices[..] else {
        panic!("{:?}", ledger.notices)
    };
    assert_eq!(told.class, notice::Class::JobRecordGone);
    assert_eq!(
        (told.subject.as_str(), told.signature.as_str()),
        ("job 1", "attempt 1")
    );
    assert_eq!(told.details.since, Some(at(10_000 - 60)));
    assert_eq!(told.details.next_at, Some(at(10_000 + 29 * 60)));
    assert_eq!(told.details.left, Some(1), "it goes on then");
    let [event] = &ledger.events[..] else {
        panic!("{:?}", ledger.events)
    };
    assert_eq!(event.kind, "record_gone");
    assert!(event.message.contains("within 29 min"), "{event:?}");

    ledger.give_up(Fence(1));
    let outcome = ledger.attempt(Fence(1)).unwrap().outcome.clone().unwrap();
    assert_eq!(
        (outcome.kind, outcome.cause),
        (OutcomeKind::Interrupted, Cause::RecordGone)
    );
    let last = ledger.notices.last().unwrap();
    assert_eq!(
        (last.class, last.details.cause),
        (notice::Class::JobInterrupted, Some(Cause::RecordGone))
    );
}

#[test]
fn a_record_that_comes_back_is_heard_of_again() {
    let mut ledger = ledger(vec![attempt(1, AttemptState::Running)]);
    let minute = Duration::from_secs(60);
    ledger.record_gone(Fence(1), minute, 30 * minute);
    let held = Held {
        fence: Fence(1),
        state: AttemptState::Running,
        slot_held: true,
    };
    greet(&mut ledger, SPOOL, &[held]);
    let attempt = &ledger.attempt(Fence(1)).unwrap().attempt;
    assert_eq!((attempt.unreachable, attempt.record_gone), (false, false));
}

#[test]
fn what_is_given_up_keeps_its_place_and_may_speak_later() {
    let mut ledger = ledger(vec![attempt(1, AttemptState::Running)]);
    ledger.give_up(Fence(1));
    let row = ledger.attempt(Fence(1)).unwrap();
    assert!(row.attempt.slot_held, "nothing proves that it is gone");
    assert_eq!(row.outcome.as_ref().unwrap().cause, Cause::WorkerLost);
    assert_eq!(ledger.job(JOB).unwrap().job.state, JobState::Queued);
    let result = EndReport {
        log: Some((5, 7)),
        ..EndReport::default()
    };
    let exit = Facts {
        exit_code: Some(0),
        ..Facts::of(End::Waited)
    };
    assert_eq!(
        ledger.ended(Fence(1), &exit, result.clone()),
        Applied::Recorded
    );
    assert_eq!(ledger.ended(Fence(1), &exit, result), Applied::Known);
    assert_eq!(ledger.job(JOB).unwrap().job.state, JobState::Succeeded);
    let row = ledger.attempt(Fence(1)).unwrap();
    assert_eq!(
        row.outcome.as_ref().unwrap().kind,
        OutcomeKind::Interrupted,
        "an ended attempt never changes"
    );
}

#[test]
fn a_late_result_asks_an_assigned_successor_back_and_then_decides() {
    let successor = AttemptRow {
        worker_name: "other box".to_owned(),
        ..attempt(2, AttemptState::Assigned)
    };
    let mut ledger = ledger(vec![attempt(1, AttemptState::Ended), successor]);
    let result = EndReport {
        started_at: Some(at(900)),
        ended_at: Some(at(9_001)),
        log: Some((0, 0)),
        ..EndReport::default()
    };
    let exit = Facts {
        exit_code: Some(0),
        ..Facts::of(End::Waited)
    };
    ledger.ended(Fence(1), &exit, result);
    let successor = ledger.attempt(Fence(2)).unwrap();
    assert_eq!(successor.attempt.asked, Some(Asked::Return));
    let returned = What::Returned {
        returned: true,
        message: String::new(),
    };
    ledger.report(WORKER, Fence(2), &returned).unwrap();
    assert_eq!(ledger.job(JOB).unwrap().job.state, JobState::Succeeded);
    let [told] = &ledger.notices[..] else {
        panic!("{:?}", ledger.notices)
    };
    assert_eq!(told.class, notice::Class::JobSucceeded);
    assert_eq!(
        (told.attempt, told.worker.as_str()),
        (Some(AttemptNumber(1)), "box")
    );
    // What was recorded of its start goes before what is said of it now.
    assert_eq!(told.details.seconds, Some(9_000));
    let after = ledger.close().after;
    assert_eq!(after.messages, [(WORKER, Message::Revoke(Fence(2)))]);
}

#[test]
fn a_worker_speaks_only_for_its_own_attempts_and_takes_no_start_back() {
    let mut ledger = ledger(vec![attempt(1, AttemptState::Running)]);
    let before = ledger.attempt(Fence(1)).unwrap().clone();
    assert_eq!(
        ledger.report(OTHER, Fence(1), &What::NotSent),
        Err(ReportRefusal::NotItsOwn)
    );
    let returned = What::Returned {
        returned: true,
        message: String::new(),
    };
    assert_eq!(
        ledger.report(WORKER, Fence(1), &returned),
        Err(ReportRefusal::HasStarted)
    );
    assert_eq!(ledger.attempt(Fence(1)), Some(&before));
    assert!(ledger.close().is_empty());
}

#[test]
fn processes_that_cannot_be_ended_are_in_the_history_while_they_hold_the_slot() {
    let mut ended = attempt(1, AttemptState::Ended);
    for (slot_held, told) in [(true, true), (false, false)] {
        ended.attempt.slot_held = slot_held;
        let mut ledger = ledger(vec![ended.clone()]);
        let what = What::SlotStuck {
            pids: (1..=7).collect(),
        };
        ledger.report(WORKER, Fence(1), &what).unwrap();
        let message = ledger.events.first().map(|event| event.message.as_str());
        assert_eq!(message.is_some(), told);
        assert!(message.is_none_or(|message| {
            message.starts_with("processes 1, 2, 3, 4, 5 and 2 more on box cannot be ended")
        }));
        let attempt = &ledger.attempt(Fence(1)).unwrap().attempt;
        assert_eq!(attempt.slot_held, slot_held);
    }
}
