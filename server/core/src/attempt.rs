//! An attempt's life: the only place that gives an attempt its state.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::outcome::words;

/// Where an attempt is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptState {
    /// Given to a worker, may still be revoked.
    Assigned,
    /// Its process was started.
    Running,
    /// Over, for good.
    Ended,
}

words!(AttemptState {
    Assigned = "assigned",
    Running = "running",
    Ended = "ended",
});

/// What an attempt was asked to do and has not done yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Asked {
    /// To be given back before it starts.
    Return,
    /// To stop.
    Stop,
}

words!(Asked {
    Return = "return",
    Stop = "stop",
});

/// An attempt, as far as its life is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Where it is.
    pub state: AttemptState,
    /// Processes of it may be left, so that what it occupies is not free.
    pub slot_held: bool,
    /// Its worker has not been heard of for too long.
    pub unreachable: bool,
    /// Its worker has no record of it any more; it is unreachable then, whatever its worker does.
    pub record_gone: bool,
    /// A person froze it.
    pub paused: bool,
    /// What it was asked to do.
    pub asked: Option<Asked>,
    /// When its process was started.
    pub started_at: Option<DateTime<Utc>>,
}

/// Something that happens to an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptEvent {
    /// Its process was started.
    Started(DateTime<Utc>),
    /// It is over.
    Ended {
        /// When it was started, if it was.
        started_at: Option<DateTime<Utc>>,
        /// Processes of it may be left.
        slot_held: bool,
    },
    /// No process of it is left.
    SlotFreed,
    /// It is wanted back before it starts.
    AskBack,
    /// It is to stop.
    AskStop,
    /// Its worker started it although it was wanted back.
    ReturnRefused,
    /// Its worker has not been heard of for too long.
    WorkerSilent,
    /// It has not been heard of for too long, for its worker has no record of it any more.
    RecordGone,
    /// It is heard of again.
    WorkerBack,
    /// Its process tree was frozen or thawed.
    Paused(bool),
}

/// Why an event does not apply to an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttemptRefusal {
    /// Everything is as the event says already.
    #[error("the attempt is that way already")]
    Already,
    /// The attempt is over: whoever speaks of it as alive must stop.
    #[error("the attempt has ended already")]
    Ended,
    /// The attempt has not started.
    #[error("the attempt has not started")]
    NotStarted,
    /// The attempt has started, so it cannot be taken back.
    #[error("the attempt has started")]
    Started,
}

/// Applies an event to an attempt.
///
/// # Errors
/// When the event does not apply.
pub fn step(attempt: &Attempt, event: AttemptEvent) -> Result<Attempt, AttemptRefusal> {
    use AttemptRefusal as R;
    use AttemptState as S;
    let mut next = attempt.clone();
    match (attempt.state, event) {
        (S::Assigned, AttemptEvent::Started(at)) => {
            next.state = S::Running;
            next.started_at = Some(at);
            if next.asked == Some(Asked::Return) {
                next.asked = None;
            }
        }
        // A start that was only inferred from a Hello is followed by its own, earlier time.
        (S::Running, AttemptEvent::Started(at))
            if attempt.started_at.is_some_and(|known| at < known) =>
        {
            next.started_at = Some(at);
        }
        (S::Running, AttemptEvent::Started(_)) => return Err(R::Already),
        (
            S::Assigned | S::Running,
            AttemptEvent::Ended {
                started_at,
                slot_held,
            },
        ) => {
            next.state = S::Ended;
            next.started_at = attempt.started_at.or(started_at);
            next.slot_held = slot_held;
            next.unreachable = false;
            next.record_gone = false;
            next.paused = false;
            next.asked = None;
        }
        (S::Ended, AttemptEvent::SlotFreed) if attempt.slot_held => next.slot_held = false,
        (S::Ended, AttemptEvent::SlotFreed) => return Err(R::Already),
        // The worker says first that it ended; a freed slot before that is a lost order of events.
        (S::Assigned | S::Running, AttemptEvent::SlotFreed) => return Err(R::NotStarted),
        (S::Assigned, AttemptEvent::AskBack) if attempt.asked.is_none() => {
            next.asked = Some(Asked::Return);
        }
        (S::Running, AttemptEvent::AskBack) => return Err(R::Started),
        (S::Running, AttemptEvent::AskStop) if attempt.asked != Some(Asked::Stop) => {
            next.asked = Some(Asked::Stop);
        }
        (S::Assigned, AttemptEvent::AskStop) => return Err(R::NotStarted),
        (S::Assigned, AttemptEvent::AskBack) | (S::Running, AttemptEvent::AskStop) => {
            return Err(R::Already);
        }
        // The start itself is told by `Started`; only the wish is dropped.
        (S::Assigned, AttemptEvent::ReturnRefused) if attempt.asked.is_some() => next.asked = None,
        (S::Assigned | S::Running, AttemptEvent::WorkerSilent) if !attempt.unreachable => {
            next.unreachable = true;
        }
        (S::Assigned | S::Running, AttemptEvent::RecordGone) if !attempt.record_gone => {
            next.unreachable = true;
            next.record_gone = true;
        }
        (S::Assigned | S::Running, AttemptEvent::WorkerBack) if attempt.unreachable => {
            next.unreachable = false;
            next.record_gone = false;
        }
        (S::Running, AttemptEvent::Paused(paused)) if paused != attempt.paused => {
            next.paused = paused;
        }
        (S::Assigned, AttemptEvent::Paused(_)) => return Err(R::NotStarted),
        (
            S::Assigned | S::Running,
            AttemptEvent::WorkerSilent
            | AttemptEvent::RecordGone
            | AttemptEvent::WorkerBack
            | AttemptEvent::Paused(_)
            | AttemptEvent::ReturnRefused,
        ) => return Err(R::Already),
        (S::Ended, _) => return Err(R::Ended),
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn fresh() -> Attempt {
        Attempt {
            state: AttemptState::Assigned,
            slot_held: true,
            unreachable: false,
            record_gone: false,
            paused: false,
            asked: None,
            started_at: None,
        }
    }

    fn events() -> Vec<AttemptEvent> {
        vec![
            AttemptEvent::Started(at(1)),
            AttemptEvent::Ended {
                started_at: None,
                slot_held: true,
            },
            AttemptEvent::SlotFreed,
            AttemptEvent::AskBack,
            AttemptEvent::AskStop,
            AttemptEvent::ReturnRefused,
            AttemptEvent::WorkerSilent,
            AttemptEvent::WorkerBack,
            AttemptEvent::Paused(true),
            AttemptEvent::RecordGone,
        ]
    }

    #[test]
    fn the_whole_table() {
        use AttemptRefusal as R;
        use AttemptState as S;
        let running = step(&fresh(), AttemptEvent::Started(at(1))).unwrap();
        let ended = step(
            &running,
            AttemptEvent::Ended {
                started_at: None,
                slot_held: true,
            },
        )
        .unwrap();
        let result = |attempt: &Attempt| -> Vec<Result<S, R>> {
            events()
                .into_iter()
                .map(|event| step(attempt, event).map(|next| next.state))
                .collect()
        };
        assert_eq!(
            result(&fresh()),
            [
                Ok(S::Running),
                Ok(S::Ended),
                Err(R::NotStarted),
                Ok(S::Assigned),
                Err(R::NotStarted),
                Err(R::Already),
                Ok(S::Assigned),
                Err(R::Already),
                Err(R::NotStarted),
                Ok(S::Assigned),
            ]
        );
        assert_eq!(
            result(&running),
            [
                Err(R::Already),
                Ok(S::Ended),
                Err(R::NotStarted),
                Err(R::Started),
                Ok(S::Running),
                Err(R::Already),
                Ok(S::Running),
                Err(R::Already),
                Ok(S::Running),
                Ok(S::Running),
            ]
        );
        let over = Err(R::Ended);
        assert_eq!(
            result(&ended),
            [
                over,
                over,
                Ok(S::Ended),
                over,
                over,
                over,
                over,
                over,
                over,
                over
            ]
        );
    }

    #[test]
    fn a_start_wins_against_a_wish_to_have_it_back() {
        let asked = step(&fresh(), AttemptEvent::AskBack).unwrap();
        assert_eq!(asked.asked, Some(Asked::Return));
        let started = step(&asked, AttemptEvent::Started(at(1))).unwrap();
        assert_eq!(
            (started.state, started.asked),
            (AttemptState::Running, None)
        );
    }

    proptest! {
        #[test]
        fn an_end_is_for_good(order in prop::collection::vec(0..10usize, 0..40)) {
            let mut attempt = fresh();
            let mut over = false;
            for index in order {
                if let Ok(next) = step(&attempt, events()[index]) {
                    prop_assert_ne!(&next, &attempt);
                    attempt = next;
                }
                if over {
                    prop_assert_eq!(attempt.state, AttemptState::Ended);
                }
                over = attempt.state == AttemptState::Ended;
                prop_assert!(over || attempt.slot_held);
                prop_assert_eq!(attempt.state == AttemptState::Running, !over && attempt.started_at.is_some());
            }
        }
    }
}
