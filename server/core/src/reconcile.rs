//! What a worker says it holds against what is recorded: a verdict for each attempt.

use crate::attempt::AttemptState;
use crate::guard::{Guard, is_broken};
use crate::id::Fence;
use crate::outcome::End;

/// An attempt that a worker holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The attempt.
    pub fence: Fence,
    /// How far it came there.
    pub state: AttemptState,
    /// Processes of it are left.
    pub slot_held: bool,
}

/// What is recorded of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The attempt.
    pub fence: Fence,
    /// Where it is.
    pub state: AttemptState,
    /// Processes of it may be left.
    pub slot_held: bool,
    /// It was assigned to the boot that the worker runs in now.
    pub same_boot: bool,
    /// It was assigned to the spool that the worker owns now.
    pub same_spool: bool,
    /// It ended with a result of its own, not because it was given up.
    pub has_result: bool,
    /// All of its output is stored.
    pub log_complete: bool,
}

/// What the worker is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Go on.
    Continue,
    /// Stop it.
    Stop,
    /// Send the result.
    SendResult,
    /// Remove the record.
    Forget,
}

/// What is recorded because of what the worker holds, or does not hold any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It was started; that was not heard before.
    Started,
    /// It is over, and this is what became of it.
    Over(End),
    /// No process of it is left.
    SlotFree,
}

/// The verdict on one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The attempt.
    pub fence: Fence,
    /// What the worker is told; `None` when it does not hold the attempt.
    pub action: Option<Action>,
    /// What is recorded.
    pub finding: Option<Finding>,
}

/// Decides about one attempt that is held, recorded, or both.
pub fn verdict(held: Option<Held>, recorded: Option<Recorded>) -> Option<Verdict> {
    let (fence, action, finding) = match (held, recorded) {
        (None, None) => return None,
        (None, Some(recorded)) => (recorded.fence, None, absent(recorded)),
        // The job was deleted: nobody asks for the record.
        (Some(held), None) => {
            let action = match held.state {
                AttemptState::Ended => Action::Forget,
                AttemptState::Assigned | AttemptState::Running => Action::Stop,
            };
            (held.fence, Some(action), None)
        }
        (Some(held), Some(recorded)) => {
            let (action, finding) = both(held, recorded);
            (held.fence, Some(action), finding)
        }
    };
    Some(Verdict {
        fence,
        action,
        finding,
    })
}

fn both(held: Held, recorded: Recorded) -> (Action, Option<Finding>) {
    use AttemptState as S;
    match (recorded.state, held.state) {
        (S::Ended, S::Ended) => {
            let freed = recorded.slot_held && !held.slot_held;
            let unverified = is_broken(Guard::Forget);
            let (result, log) = (recorded.has_result, recorded.log_complete);
            let action = match (result || unverified, log || unverified) {
                (true, true) => Action::Forget,
                (true, false) => Action::Continue,
                (false, _) => Action::SendResult,
            };
            (action, freed.then_some(Finding::SlotFree))
        }
        (S::Ended, S::Assigned | S::Running) => (Action::Stop, None),
        (S::Assigned | S::Running, S::Ended) => (Action::SendResult, None),
        (S::Assigned, S::Running) => (Action::Continue, Some(Finding::Started)),
        (S::Assigned, S::Assigned) | (S::Running, S::Assigned | S::Running) => {
            (Action::Continue, None)
        }
    }
}

/// What a missing record proves. Nothing is synced before a start, so on the same boot and spool a
/// record that is missing was never written: the attempt never started. After a reboot nothing of
/// it is alive. With another spool on the same boot nothing is proved.
fn absent(recorded: Recorded) -> Option<Finding> {
    match recorded.state {
        AttemptState::Ended => {
            let nothing_left = !recorded.same_boot || recorded.same_spool;
            (recorded.slot_held && nothing_left).then_some(Finding::SlotFree)
        }
        AttemptState::Assigned | AttemptState::Running if !recorded.same_boot => {
            Some(Finding::Over(End::MachineLost))
        }
        AttemptState::Assigned if recorded.same_spool => Some(Finding::Over(End::NeverStarted)),
        AttemptState::Running if recorded.same_spool => Some(Finding::Over(End::ShimLost)),
        AttemptState::Assigned | AttemptState::Running => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FENCE: Fence = Fence(7);

    fn held(state: AttemptState) -> Option<Held> {
        Some(Held {
            fence: FENCE,
            state,
            slot_held: state != AttemptState::Ended,
        })
    }

    fn recorded(state: AttemptState) -> Recorded {
        Recorded {
            fence: FENCE,
            state,
            slot_held: true,
            same_boot: true,
            same_spool: true,
            has_result: false,
            log_complete: false,
        }
    }

    #[test]
    fn held_against_recorded() {
        use {Action as A, AttemptState as S};
        let cases = [
            (S::Assigned, S::Assigned, A::Continue, None),
            (S::Assigned, S::Running, A::Continue, Some(Finding::Started)),
            (S::Assigned, S::Ended, A::SendResult, None),
            (S::Running, S::Assigned, A::Continue, None),
            (S::Running, S::Running, A::Continue, None),
            (S::Running, S::Ended, A::SendResult, None),
            (S::Ended, S::Assigned, A::Stop, None),
            (S::Ended, S::Running, A::Stop, None),
            (S::Ended, S::Ended, A::SendResult, Some(Finding::SlotFree)),
        ];
        for (known, has, action, finding) in cases {
            let verdict = verdict(held(has), Some(recorded(known))).unwrap();
            assert_eq!(
                (verdict.action, verdict.finding),
                (Some(action), finding),
                "{known} {has}"
            );
        }
    }

    #[test]
    fn a_record_goes_only_once_result_and_output_are_stored() {
        let action = |has_result, log_complete| {
            let recorded = Recorded {
                has_result,
                log_complete,
                ..recorded(AttemptState::Ended)
            };
            verdict(held(AttemptState::Ended), Some(recorded))
                .unwrap()
                .action
                .unwrap()
        };
        assert_eq!(action(true, true), Action::Forget);
        assert_eq!(action(true, false), Action::Continue);
        assert_eq!(action(false, true), Action::SendResult);
    }

    #[test]
    fn a_deleted_job_leaves_nothing_behind() {
        let action = |state| verdict(held(state), None).unwrap().action;
        assert_eq!(action(AttemptState::Ended), Some(Action::Forget));
        assert_eq!(action(AttemptState::Running), Some(Action::Stop));
        assert_eq!(verdict(None, None), None);
    }

    #[test]
    fn what_is_missing_proves_only_what_it_can() {
        use AttemptState as S;
        let finding = |state, same_boot, same_spool| {
            let recorded = Recorded {
                same_boot,
                same_spool,
                ..recorded(state)
            };
            verdict(None, Some(recorded)).unwrap().finding
        };
        let over = |end| Some(Finding::Over(end));
        assert_eq!(finding(S::Assigned, true, true), over(End::NeverStarted));
        assert_eq!(finding(S::Running, true, true), over(End::ShimLost));
        for state in [S::Assigned, S::Running] {
            for same_spool in [true, false] {
                assert_eq!(finding(state, false, same_spool), over(End::MachineLost));
            }
            assert_eq!(finding(state, true, false), None);
        }
        assert_eq!(finding(S::Ended, true, true), Some(Finding::SlotFree));
        assert_eq!(finding(S::Ended, true, false), None);
    }
}
