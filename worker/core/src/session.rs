//! What the agent decides about its connection: when to dial again, whom to obey, which
//! assignments to take, and what a verdict asks of it.

use std::time::Duration;

/// Bounds of the time before dialling again.
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// How long to wait before dialling again after so many failures in a row: anything up to a bound
/// that doubles, so that a fleet does not come back at one moment. `random` is in `0.0..1.0`.
pub fn redial_delay(failures: u32, random: f64) -> Duration {
    let doubled = FIRST_DELAY.saturating_mul(1 << failures.min(10));
    doubled.min(LONGEST_DELAY).mul_f64(random.clamp(0.0, 1.0))
}

/// Which of several coordinators to dial: those that share a database, of which one leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    turn: usize,
    leader: Option<String>,
}

impl Route {
    /// Where to dial now: where the leader is said to be, otherwise the next of `known`.
    pub fn next<'a>(&'a self, known: &'a [String]) -> Option<&'a str> {
        let in_turn = || known.get(self.turn % known.len().max(1));
        self.leader.as_ref().or_else(in_turn).map(String::as_str)
    }

    /// The one that was dialled does not lead, and says who does if it knows.
    pub fn refused(&mut self, leader: Option<String>) {
        self.leader = leader;
        self.turn = self.turn.wrapping_add(1);
    }

    /// The one that was dialled did not let us in.
    pub fn failed(&mut self) {
        // One that was only heard of says nothing about those that are known.
        if self.leader.take().is_none() {
            self.turn = self.turn.wrapping_add(1);
        }
    }
}

/// A coordinator that another one has succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator leads in term {offered}, but this worker has seen term {seen}")]
pub struct TermPassed {
    /// The highest term seen.
    pub seen: i64,
    /// The term it claims.
    pub offered: i64,
}

/// The term to obey from now on.
///
/// # Errors
/// When a higher term was seen: another coordinator leads.
pub fn accept_term(seen: i64, offered: i64) -> Result<i64, TermPassed> {
    if offered < seen {
        return Err(TermPassed { seen, offered });
    }
    Ok(offered)
}

/// Whom an assignment must be meant for.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// Term of the session.
    pub term: i64,
    /// The kernel's boot id.
    pub boot_id: &'a str,
    /// The spool.
    pub spool_id: &'a str,
}

/// Why an assignment is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Made by a coordinator that no longer leads.
    #[error("it was made in term {made}, and the session's term is {term}")]
    Term {
        /// Its term.
        made: i64,
        /// The session's.
        term: i64,
    },
    /// The machine was restarted since.
    #[error("it was made for an earlier start of this machine")]
    Boot,
    /// Meant for another copy of this worker.
    #[error("it was made for another copy of this worker")]
    Spool,
    /// Too many wait already.
    #[error("{0} assignments wait here already")]
    Full(usize),
    /// It names nothing to run.
    #[error("it names no command")]
    Empty,
    /// It has fewer GPUs than its job asked for.
    #[error("its job asks for {wanted} GPUs and was given {given}")]
    Gpus {
        /// GPUs that the job asked for.
        wanted: u32,
        /// GPUs that it was given.
        given: usize,
    },
}

/// Most assignments that wait at the agent.
pub const MAX_WAITING: usize = 64;

/// Decides whether an assignment, made as `made` says, is taken while `waiting` others wait.
///
/// # Errors
/// When it is meant for someone else, or too many wait.
pub fn accept_assignment(
    made: Identity<'_>,
    me: Identity<'_>,
    waiting: usize,
) -> Result<(), Refusal> {
    if made.spool_id != me.spool_id {
        Err(Refusal::Spool)
    } else if made.boot_id != me.boot_id {
        Err(Refusal::Boot)
    } else if made.term != me.term {
        Err(Refusal::Term {
            made: made.term,
            term: me.term,
        })
    } else if waiting >= MAX_WAITING {
        Err(Refusal::Full(waiting))
    } else {
        Ok(())
    }
}

/// How far an attempt has come at the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Waits at the agent, or at a shim that has not begun.
    Waiting,
    /// Its process was started.
    Running,
    /// Its result is recorded.
    Ended,
}

/// The coordinator's verdict about an attempt that the worker said it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Continue,
    /// Stop it.
    Stop,
    /// Send the result.
    SendResult,
    /// Remove the record.
    Forget,
}

/// What the agent does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconciled {
    /// Nothing; it waits for its turn.
    Wait,
    /// Drop the assignment before it starts.
    Drop,
    /// Tell that it runs, and send its output.
    TellStarted,
    /// Stop its processes; another attempt took its place.
    Stop,
    /// Send the result and what is missing of the output.
    TellEnded,
    /// Keep nothing of it.
    Forget,
    /// Keep nothing of it once no process of it is left: until then its slot is taken.
    ForgetOnceFreed,
}

/// What a verdict asks for. The stage is the one at this moment: the attempt may have gone on since
/// the greeting, and then the newer fact decides. `slot_held` says that processes of it may be left.
pub fn reconcile(stage: Stage, slot_held: bool, verdict: Verdict) -> Reconciled {
    match (stage, verdict) {
        (Stage::Waiting, Verdict::Continue | Verdict::SendResult) => Reconciled::Wait,
        (Stage::Waiting, Verdict::Stop | Verdict::Forget) => Reconciled::Drop,
        (Stage::Running, Verdict::Continue | Verdict::SendResult) => Reconciled::TellStarted,
        // A running process that the coordinator knows nothing of must not go on unseen.
        (Stage::Running, Verdict::Stop | Verdict::Forget) => Reconciled::Stop,
        (Stage::Ended, Verdict::Forget) if slot_held => Reconciled::ForgetOnceFreed,
        (Stage::Ended, Verdict::Forget) => Reconciled::Forget,
        (Stage::Ended, _) => Reconciled::TellEnded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_thirty_seconds_and_spread_down_to_nothing() {
        assert_eq!(redial_delay(0, 1.0), Duration::from_millis(500));
        assert_eq!(redial_delay(3, 1.0), Duration::from_secs(4));
        assert_eq!(redial_delay(u32::MAX, 1.0), Duration::from_secs(30));
        assert_eq!(redial_delay(50, 0.0), Duration::ZERO);
        assert_eq!(redial_delay(20, 0.5), Duration::from_secs(15));
    }

    #[test]
    fn known_coordinators_are_dialled_in_turn_and_a_leader_first() {
        let known = ["a:1".to_owned(), "b:1".to_owned()];
        let mut route = Route::default();
        assert_eq!(route.next(&known), Some("a:1"));
        route.failed();
        assert_eq!(route.next(&known), Some("b:1"));
        route.refused(Some("http://c:1".to_owned()));
        assert_eq!(route.next(&known), Some("http://c:1"));
        route.failed();
        assert_eq!(route.next(&known), Some("a:1"));
        route.refused(None);
        assert_eq!(route.next(&known), Some("b:1"));
        assert_eq!(route.next(&[]), None);
    }

    #[test]
    fn a_lower_term_is_refused_and_a_higher_one_remembered() {
        assert_eq!(accept_term(3, 3), Ok(3));
        assert_eq!(accept_term(3, 5), Ok(5));
        assert_eq!(
            accept_term(3, 2),
            Err(TermPassed {
                seen: 3,
                offered: 2
            })
        );
    }

    #[test]
    fn assignments_for_someone_else_are_refused() {
        let me = Identity {
            term: 2,
            boot_id: "b",
            spool_id: "s",
        };
        assert_eq!(accept_assignment(me, me, 0), Ok(()));
        for (made, refusal) in [
            (
                Identity { term: 1, ..me },
                Refusal::Term { made: 1, term: 2 },
            ),
            (Identity { boot_id: "x", ..me }, Refusal::Boot),
            (
                Identity {
                    spool_id: "x",
                    ..me
                },
                Refusal::Spool,
            ),
        ] {
            assert_eq!(accept_assignment(made, me, 0), Err(refusal));
        }
        assert_eq!(
            accept_assignment(me, me, MAX_WAITING),
            Err(Refusal::Full(MAX_WAITING))
        );
    }

    #[test]
    fn every_verdict_at_every_stage() {
        use Reconciled as R;
        use Stage as S;
        use Verdict as V;
        for (stage, verdict, result) in [
            (S::Waiting, V::Continue, R::Wait),
            (S::Waiting, V::SendResult, R::Wait),
            (S::Waiting, V::Stop, R::Drop),
            (S::Waiting, V::Forget, R::Drop),
            (S::Running, V::Continue, R::TellStarted),
            (S::Running, V::SendResult, R::TellStarted),
            (S::Running, V::Stop, R::Stop),
            (S::Running, V::Forget, R::Stop),
            (S::Ended, V::Continue, R::TellEnded),
            (S::Ended, V::Stop, R::TellEnded),
            (S::Ended, V::SendResult, R::TellEnded),
            (S::Ended, V::Forget, R::Forget),
        ] {
            let reconciled = reconcile(stage, false, verdict);
            assert_eq!(reconciled, result, "{stage:?} {verdict:?}");
            let expected = match result {
                R::Forget => R::ForgetOnceFreed,
                other => other,
            };
            assert_eq!(reconcile(stage, true, verdict), expected, "{verdict:?}");
        }
    }
}
