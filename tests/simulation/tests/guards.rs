//! The simulation can find bugs: every guard that is taken away is missed.

use qctl_server_core::guard::{self as coordinator, Guard as OfCoordinator};
use qctl_simulation::double::Unguarded;
use qctl_simulation::{Flips, World};
use qctl_worker_core::guard::{self as worker, Guard as OfWorker};

/// Schedules within which a missing guard must be noticed.
const WITHIN: u64 = 40_000;

/// Runs schedules until one fails, and says what it broke.
fn missed(flips: Flips) -> Option<String> {
    let found = (1..=WITHIN).find_map(|seed| World::new(seed, flips, false).run().err());
    coordinator::take_away(None);
    worker::take_away(None);
    found.map(|failure| failure.to_string())
}

fn assert_missed(what: &str, flips: Flips) {
    let found = missed(flips);
    println!("{what}: {found:?}");
    assert!(found.is_some(), "nobody misses it: {what}");
}

fn without_coordinators(guard: OfCoordinator) {
    coordinator::take_away(Some(guard));
    assert_missed(&format!("{guard:?}"), Flips::default());
}

fn without_workers(guard: OfWorker) {
    worker::take_away(Some(guard));
    assert_missed(&format!("{guard:?}"), Flips::default());
}

fn without_stores(store: Unguarded) {
    let flips = Flips {
        store,
        ..Flips::default()
    };
    assert_missed(&format!("{store:?}"), flips);
}

#[test]
fn an_old_attempt_does_not_decide() {
    without_coordinators(OfCoordinator::Fence);
}

#[test]
fn a_late_result_waits_for_its_successor() {
    without_coordinators(OfCoordinator::LateResult);
}

#[test]
fn budgets_are_counted() {
    without_coordinators(OfCoordinator::Budget);
}

#[test]
fn only_what_is_stored_is_forgotten() {
    without_coordinators(OfCoordinator::Forget);
}

#[test]
fn out_of_sight_is_not_lost() {
    without_coordinators(OfCoordinator::LostAfter);
}

#[test]
fn what_has_started_is_not_given_back() {
    without_workers(OfWorker::Revocation);
}

#[test]
fn what_waits_is_not_started_long_after_the_last_answer() {
    without_workers(OfWorker::StartWithin);
}

#[test]
fn an_exclusive_attempt_ends_itself_in_time() {
    without_workers(OfWorker::ExclusiveLease);
}

#[test]
fn an_exclusive_attempt_starts_with_a_lease_or_never() {
    without_workers(OfWorker::LeaseToStart);
}

#[test]
fn a_record_that_is_missing_after_a_restart_proves_nothing() {
    without_workers(OfWorker::MissingRecord);
}

#[test]
fn a_leader_of_an_earlier_term_writes_nothing() {
    without_stores(Unguarded {
        term: true,
        ..Unguarded::default()
    });
}

#[test]
fn only_a_queued_job_without_an_attempt_is_assigned() {
    without_stores(Unguarded {
        assign: true,
        ..Unguarded::default()
    });
}

#[test]
fn an_exclusive_job_waits_for_what_its_last_attempt_left_running() {
    without_stores(Unguarded {
        leftovers: true,
        ..Unguarded::default()
    });
}

#[test]
fn a_dead_agents_assignment_is_void() {
    let flips = Flips {
        late_run: true,
        ..Flips::default()
    };
    assert_missed("void", flips);
}

#[test]
fn nothing_is_dead_before_it_was_swept() {
    let flips = Flips {
        sweep: true,
        ..Flips::default()
    };
    assert_missed("sweep", flips);
}

#[test]
fn a_new_term_counts_silence_from_zero() {
    let flips = Flips {
        silence_kept: true,
        ..Flips::default()
    };
    assert_missed("silence from zero", flips);
}

#[test]
fn an_exclusive_attempt_stands_still_after_a_leap_of_the_clocks() {
    let flips = Flips {
        clock_leap: true,
        ..Flips::default()
    };
    assert_missed("clock leap", flips);
}

#[test]
fn a_greeting_publishes_before_its_verdicts() {
    without_coordinators(OfCoordinator::PublishFirst);
}

#[test]
fn an_end_is_told_after_what_was_published() {
    without_workers(OfWorker::EndLast);
}

#[test]
fn a_leader_answers_nothing_once_its_lease_may_be_over() {
    let flips = Flips {
        lapsed_leader: true,
        ..Flips::default()
    };
    assert_missed("lapsed leader", flips);
}

#[test]
fn a_greeting_that_was_overtaken_is_refused() {
    let flips = Flips {
        late_greeting: true,
        ..Flips::default()
    };
    assert_missed("late greeting", flips);
}
