use proptest::prelude::*;

use super::*;
use crate::outcome::{End, Facts, StopCause, outcome};

const RETRIES: i32 = 2;
const RESUMES: i32 = 3;

fn full() -> Budget {
    Budget::full(RETRIES, RESUMES)
}

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
        gpu_out_of_memory: false,
        gpu: None,
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
    let rules = RetryRules::default();
    after(ended, &rules, budget, &backoff(0.5), at(61))
}

fn checkpoint_exit(seconds: i64, checkpoint: bool) -> Ended {
    let facts = Facts {
        checkpointed: true,
        ..exit(85)
    };
    Ended {
        ended_at: at(seconds),
        checkpoint,
        ..ended(&facts)
    }
}

#[test]
fn a_failure_is_retried_twice_with_growing_waits() {
    let first = follow(&ended(&exit(1)), full());
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
            follow(&ended(&facts), full()).next,
            Next::End(JobState::Failed)
        );
    }
}

#[test]
fn interruptions_resume_at_once_and_a_checkpoint_renews_the_budget() {
    let mut late = ended(&Facts::of(End::MachineLost));
    late.ended_at = at(3600);
    let mut budget = full();
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
    let first = follow(&early, full());
    assert_eq!((first.next, first.budget.early_losses), (Next::Queue, 1));
    assert_eq!(follow(&early, first.budget).next, Next::Hold);
    let between = follow(&ended(&exit(1)), first.budget);
    assert_eq!(follow(&early, between.budget).next, Next::Queue);
}

#[test]
fn what_never_started_costs_nothing() {
    let mut void = ended(&Facts::of(End::NeverStarted));
    void.started_at = None;
    let verdict = follow(&void, full());
    assert_eq!((verdict.next, verdict.budget), (Next::Queue, full()));
    void.refused = true;
    assert_eq!(follow(&void, full()).next, Next::WaitUntil(at(66)));
    void.cancel_requested = true;
    assert_eq!(follow(&void, full()).next, Next::End(JobState::Cancelled));
}

#[test]
fn a_late_cancel_changes_no_recorded_end_but_stops_what_would_follow() {
    let cancelled = |facts: &Facts| Ended {
        cancel_requested: true,
        ..ended(facts)
    };
    let next = |facts: &Facts| follow(&cancelled(facts), full()).next;
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
    fn budgets_are_kept_whatever_happens(
        ends in prop::collection::vec((0..7, any::<bool>(), any::<bool>(), 0..2_000_i64), 0..60),
        retries in 0..4_i32,
        resumes in 0..4_i32,
    ) {
        let mut budget = Budget::full(retries, resumes);
        let mut charged = 0;
        let mut renewed = 0;
        for (end, checkpoint, gpu_out_of_memory, ran) in ends {
            let facts = match end {
                0 => exit(1),
                1 => Facts::of(End::ShimLost),
                2 => Facts::of(End::MachineLost),
                3 => Facts { checkpointed: true, ..exit(85) },
                4 => Facts { stopped: Some(StopCause::Drill), ..Facts::of(End::Waited) },
                5 => Facts { stopped: Some(StopCause::TimeLimit), ..Facts::of(End::Waited) },
                _ => Facts::of(End::NeverStarted),
            };
            let ended = Ended { checkpoint, gpu_out_of_memory, ended_at: at(ran), ..ended(&facts) };
            let verdict = follow(&ended, budget);
            let spent = |budget: Budget| (budget.retries_left, budget.resumes_left);
            prop_assert!(verdict.budget.retries_left >= 0 && verdict.budget.resumes_left >= 0);
            prop_assert!(verdict.budget.retries_left <= retries);
            prop_assert!(verdict.budget.resumes_left <= resumes);
            match ended.outcome.kind {
                OutcomeKind::NeverStarted => prop_assert_eq!(verdict.budget, budget),
                OutcomeKind::Checkpointed => {
                    prop_assert_eq!(verdict.budget.retries_left, budget.retries_left);
                    prop_assert!(verdict.budget.resumes_left >= budget.resumes_left);
                    prop_assert!(!matches!(verdict.next, Next::End(_)));
                }
                _ if matches!(verdict.next, Next::Queue | Next::WaitUntil(_)) => {
                    // A failure costs a retry, an interruption a resume, and each one of one kind.
                    let is_failure = ended.outcome.kind == OutcomeKind::Failed;
                    let fresh = if checkpoint && !is_failure { resumes } else { budget.resumes_left };
                    let cost = (i32::from(is_failure), i32::from(!is_failure));
                    prop_assert_eq!(spent(verdict.budget), (budget.retries_left - cost.0, fresh - cost.1));
                    charged += 1;
                }
                _ => {}
            }
            renewed += i32::from(checkpoint && matches!(ended.outcome.kind, OutcomeKind::Interrupted | OutcomeKind::Checkpointed));
            if matches!(verdict.next, Next::End(_)) {
                break;
            }
            budget = verdict.budget;
        }
        // The first run is free; every other one was paid for, and only a checkpoint renews resumes.
        prop_assert!(charged <= retries + resumes + renewed * resumes);
    }

    #[test]
    fn nothing_goes_on_for_ever_without_a_person(
        ends in prop::collection::vec((0..8, 600..2_000_i64), 1_300..1_400),
    ) {
        let mut budget = full();
        let mut stopped = false;
        for (end, ran) in ends {
            let facts = match end {
                0 => Facts::of(End::ShimLost),
                _ => Facts { checkpointed: true, ..exit(85) },
            };
            // Every attempt leaves a checkpoint, which renews all that can be renewed.
            let ended = Ended { checkpoint: true, ended_at: at(ran), ..ended(&facts) };
            let verdict = follow(&ended, budget);
            budget = verdict.budget;
            if matches!(verdict.next, Next::End(_) | Next::Hold) {
                stopped = true;
                break;
            }
        }
        prop_assert!(stopped);
    }
}

#[test]
fn rules_decide_which_failures_are_retried_and_the_message_tells() {
    let rules = RetryRules {
        retry_on: Vec::new(),
        no_retry_on: vec!["exit:2".parse().unwrap()],
    };
    let next = |code| after(&ended(&exit(code)), &rules, full(), &backoff(0.5), at(61));
    assert_eq!(next(1).next, Next::WaitUntil(at(66)));
    let refused = next(2);
    assert_eq!(refused.next, Next::End(JobState::Failed));
    assert_eq!(
        (refused.reason, refused.message.as_str()),
        ("exit", "exit 2; not retried: exit:2 is in --no-retry-on")
    );
    assert_eq!(refused.budget.retries_left, RETRIES);
    let spent = Budget {
        retries_left: 0,
        ..full()
    };
    let last = after(&ended(&exit(2)), &rules, spent, &backoff(0.5), at(61));
    assert_eq!(last.message, "exit 2");
}

#[test]
fn a_checkpoint_exit_is_free_and_renews_the_resumes() {
    let spent = Budget {
        resumes_left: 0,
        retries_left: 0,
        ..full()
    };
    let next = follow(&checkpoint_exit(60, true), spent);
    assert_eq!((next.next, next.reason), (Next::Queue, "checkpointed"));
    assert_eq!(
        (next.budget.retries_left, next.budget.resumes_left),
        (0, RESUMES)
    );
    let cancelled = Ended {
        cancel_requested: true,
        ..checkpoint_exit(60, true)
    };
    assert_eq!(
        follow(&cancelled, full()).next,
        Next::End(JobState::Cancelled)
    );
}

#[test]
fn checkpoint_exits_that_lead_nowhere_are_held() {
    for (seconds, checkpoint) in [(60, false), (0, true)] {
        let mut budget = full();
        for _ in 1..IDLE_EXITS {
            let verdict = follow(&checkpoint_exit(seconds, checkpoint), budget);
            assert_eq!(verdict.next, Next::Queue);
            budget = verdict.budget;
        }
        let broken = follow(&checkpoint_exit(60, true), budget);
        assert_eq!((broken.next, broken.budget.idle_exits), (Next::Queue, 0));
        let held = follow(&checkpoint_exit(seconds, checkpoint), budget);
        assert_eq!((held.next, held.reason), (Next::Hold, CHECKPOINT_LOOP));
        assert_eq!(held.budget, full());
    }
    let many = Budget {
        checkpoint_exits: CHECKPOINT_EXITS - 1,
        ..full()
    };
    let held = follow(&checkpoint_exit(60, true), many);
    assert_eq!((held.next, held.reason), (Next::Hold, CHECKPOINT_LOOP));
}

#[test]
fn a_host_lost_right_after_a_gpu_had_no_memory_left_is_not_tried_again() {
    let failed = Ended {
        gpu_out_of_memory: true,
        ..ended(&exit(1))
    };
    let retried = follow(&failed, full());
    assert!(matches!(retried.next, Next::WaitUntil(_)));
    let early = ended(&Facts::of(End::MachineLost));
    let held = follow(&early, retried.budget);
    assert_eq!((held.next, held.reason), (Next::Hold, CRASH_LOOP));
    assert_eq!(held.budget.resumes_left, RESUMES);
    // One that ran long in between was not brought down by that.
    let mut late = early.clone();
    late.ended_at = at(3600);
    assert_eq!(follow(&late, retried.budget).next, Next::Queue);
    let after_late = follow(&late, retried.budget).budget;
    assert_eq!(follow(&early, after_late).next, Next::Queue);
    // The attempt's own output says it.
    let own = Ended {
        gpu_out_of_memory: true,
        ..late
    };
    assert_eq!(follow(&own, full()).next, Next::Hold);
    // Without the loss of a host there is nothing to fear.
    let drill = Ended {
        gpu_out_of_memory: true,
        ..ended(&Facts {
            stopped: Some(StopCause::Drill),
            ..Facts::of(End::Waited)
        })
    };
    assert_eq!(follow(&drill, full()).next, Next::Queue);
}
