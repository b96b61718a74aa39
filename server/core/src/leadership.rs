//! Which coordinator leads: a lease in the database that the leader renews, and that others take over
//! once it has lapsed.
//!
//! Nobody compares the clocks of two machines. Who wants to lead watches the record, and takes over
//! when it has not changed for a whole lease by its own clock; who leads trusts itself from the
//! moment at which its latest renewal began, for a lease less a margin. A renewal is seen after it
//! began, so the leader stops trusting itself before anybody may take over. Every time here is a
//! distance from an origin of the caller's clock, which must go on while the process is stopped.
//!
//! Trust only saves a question. What the leader writes is guarded by its term all the same.

use std::time::Duration;

use uuid::Uuid;

use crate::id::Term;

/// How long everything about a lease takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a record must stay unchanged before another coordinator takes over.
    pub lease: Duration,
    /// Between the beginnings of two renewals.
    pub renew_every: Duration,
    /// How much earlier than its lease a leader stops trusting itself: the clocks of two machines do
    /// not run equally fast.
    pub margin: Duration,
    /// Between two looks at somebody else's record.
    pub look_every: Duration,
    /// Wait after the database did not answer.
    pub again_after: Duration,
}

impl Default for Timing {
    /// A killed leader is succeeded 7 to 11 seconds later.
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            renew_every: Duration::from_secs(3),
            margin: Duration::from_secs(2),
            look_every: Duration::from_secs(1),
            again_after: Duration::from_millis(500),
        }
    }
}

/// What the database says of the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The latest term; 0 when nobody has led yet.
    pub term: Term,
    /// How often the leader has renewed its lease in this term.
    pub renewals: i64,
    /// The run of a coordinator that leads or led.
    pub leader: Option<Uuid>,
    /// The leader gave its lease back.
    pub released: bool,
    /// The lease that the leader goes by.
    pub lease: Duration,
}

/// What to do next about leading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read the record.
    Look,
    /// Begin the term after this one, if the record still has this term and number of renewals.
    Claim {
        /// The term that was seen.
        term: Term,
        /// The renewals that were seen.
        renewals: i64,
    },
    /// Count one more renewal, if the term is still this one.
    Renew(Term),
}

/// One coordinator's part in the question who leads.
#[derive(Clone, Copy, Debug)]
pub struct Leadership {
    me: Uuid,
    timing: Timing,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Somebody else may lead.
    Follower {
        /// The record, and since when it has been seen unchanged.
        seen: Option<(Record, Duration)>,
        look_at: Duration,
    },
    /// Nobody leads, or not any more.
    Candidate {
        term: Term,
        renewals: i64,
        claim_at: Duration,
    },
    /// We lead.
    Leader {
        term: Term,
        /// When the latest renewal that was confirmed began.
        renewed: Duration,
        renew_at: Duration,
    },
}

impl Leadership {
    /// Begins as a follower. `me` names this run of the coordinator and no other.
    pub fn new(me: Uuid, timing: Timing) -> Self {
        Self {
            me,
            timing,
            phase: Phase::Follower {
                seen: None,
                look_at: Duration::ZERO,
            },
        }
    }

    /// What to do next, and when. A leader asks [`Leadership::lapse`] first.
    pub fn next(&self) -> (Duration, Step) {
        match self.phase {
            Phase::Follower { look_at, .. } => (look_at, Step::Look),
            Phase::Candidate {
                term,
                renewals,
                claim_at,
            } => (claim_at, Step::Claim { term, renewals }),
            Phase::Leader { term, renew_at, .. } => (renew_at, Step::Renew(term)),
        }
    }

    /// The record was read; the answer came at `now`. `is_over` says that the run which the record
    /// names is known to have ended.
    pub fn looked(&mut self, now: Duration, record: Record, is_over: bool) {
        let Phase::Follower { seen, .. } = &mut self.phase else {
            return;
        };
        let since = match seen {
            Some((known, since))
                if (known.term, known.renewals) == (record.term, record.renewals) =>
            {
                *since
            }
            _ => now,
        };
        // We lead in no term that we did not hear of: a claim of ours was carried out, but its
        // answer was lost.
        let nobody = record.leader.is_none() || record.leader == Some(self.me);
        let lapses_at = since + record.lease.max(self.timing.lease);
        self.phase = if nobody || record.released || is_over || now >= lapses_at {
            Phase::Candidate {
                term: record.term,
                renewals: record.renewals,
                claim_at: now,
            }
        } else {
            Phase::Follower {
                seen: Some((record, since)),
                look_at: lapses_at.min(now + self.timing.look_every),
            }
        };
    }

    /// A claim that began at `started` was answered: with the new term, or `None` when the record
    /// had changed.
    pub fn claimed(&mut self, started: Duration, now: Duration, term: Option<Term>) {
        self.phase = match term {
            Some(term) => Phase::Leader {
                term,
                renewed: started,
                renew_at: started + self.timing.renew_every,
            },
            None => Phase::Follower {
                seen: None,
                look_at: now,
            },
        };
    }

    /// A renewal that began at `started` was answered: `false` when the term is over.
    pub fn renewed(&mut self, started: Duration, now: Duration, is_ours: bool) {
        let Phase::Leader { term, renewed, .. } = self.phase else {
            return;
        };
        self.phase = match is_ours {
            true => Phase::Leader {
                term,
                renewed: renewed.max(started),
                renew_at: started + self.timing.renew_every,
            },
            false => Phase::Follower {
                seen: None,
                look_at: now,
            },
        };
    }

    /// The database did not answer the latest step; nobody knows whether it was carried out.
    pub fn failed(&mut self, now: Duration) {
        let again = now + self.timing.again_after;
        match &mut self.phase {
            Phase::Follower { look_at, .. } => *look_at = again,
            // Perhaps we lead by now, or somebody else: the record tells.
            Phase::Candidate { .. } => {
                self.phase = Phase::Follower {
                    seen: None,
                    look_at: again,
                }
            }
            Phase::Leader { renew_at, .. } => *renew_at = again,
        }
    }

    /// Stops leading if the lease was not renewed in time, or if the database said that the term is
    /// over (`is_fenced`). Returns whether it led until now and does not any more.
    pub fn lapse(&mut self, now: Duration, is_fenced: bool) -> bool {
        if !matches!(self.phase, Phase::Leader { .. }) || (self.trusts(now) && !is_fenced) {
            return false;
        }
        self.phase = Phase::Follower {
            seen: None,
            look_at: now,
        };
        true
    }

    /// Until when a leader may trust that it leads; `None` for others.
    pub fn trusted_until(&self) -> Option<Duration> {
        match self.phase {
            Phase::Leader { renewed, .. } => {
                Some(renewed + self.timing.lease.saturating_sub(self.timing.margin))
            }
            Phase::Follower { .. } | Phase::Candidate { .. } => None,
        }
    }

    /// True while it leads without having to ask.
    pub fn trusts(&self, now: Duration) -> bool {
        self.trusted_until().is_some_and(|until| now < until)
    }

    /// The term in which it leads.
    pub fn term(&self) -> Option<Term> {
        match self.phase {
            Phase::Leader { term, .. } => Some(term),
            Phase::Follower { .. } | Phase::Candidate { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ME: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn timing() -> Timing {
        Timing::default()
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn held(renewals: i64) -> Record {
        Record {
            term: Term(4),
            renewals,
            leader: Some(OTHER),
            released: false,
            lease: timing().lease,
        }
    }

    const CLAIM: Step = Step::Claim {
        term: Term(4),
        renewals: 7,
    };

    #[test]
    fn a_record_that_changes_is_respected_and_one_that_does_not_is_claimed_after_a_lease() {
        let mut me = Leadership::new(ME, timing());
        assert_eq!(me.next(), (Duration::ZERO, Step::Look));
        for second in 0..40 {
            me.looked(s(second), held(i64::try_from(second).unwrap()), false);
            assert_eq!(me.next(), (s(second + 1), Step::Look));
        }
        for second in 40..50 {
            me.looked(s(second), held(7), false);
            assert_eq!(me.next().1, Step::Look, "second {second}");
        }
        me.looked(s(50), held(7), false);
        assert_eq!(me.next(), (s(50), CLAIM));
        me.claimed(s(50), s(51), Some(Term(5)));
        assert_eq!(me.term(), Some(Term(5)));
        assert!(me.trusts(s(57)) && !me.trusts(s(58)));
    }

    #[test]
    fn a_longer_lease_of_the_leader_is_waited_out() {
        let mut me = Leadership::new(ME, timing());
        let record = Record {
            lease: s(30),
            ..held(7)
        };
        me.looked(s(0), record, false);
        me.looked(s(29), record, false);
        assert_eq!(me.next().1, Step::Look);
        me.looked(s(30), record, false);
        assert_eq!(me.next().1, CLAIM);
    }

    #[test]
    fn who_is_known_to_be_gone_is_succeeded_at_once() {
        let gone = [
            (
                Record {
                    released: true,
                    ..held(7)
                },
                false,
            ),
            (held(7), true),
            (
                Record {
                    leader: None,
                    ..held(7)
                },
                false,
            ),
            // Our own claim, whose answer was lost.
            (
                Record {
                    leader: Some(ME),
                    ..held(7)
                },
                false,
            ),
        ];
        for (record, is_over) in gone {
            let mut me = Leadership::new(ME, timing());
            me.looked(s(3), record, is_over);
            assert_eq!(me.next(), (s(3), CLAIM), "{record:?}");
        }
    }

    #[test]
    fn a_claim_that_came_too_late_or_was_not_answered_looks_again() {
        let mut me = Leadership::new(ME, timing());
        me.looked(s(0), held(7), true);
        me.claimed(s(0), s(1), None);
        assert_eq!(me.next(), (s(1), Step::Look));
        me.looked(s(1), held(7), true);
        me.failed(s(2));
        assert_eq!(
            me.next(),
            (s(2) + timing().again_after, Step::Look),
            "it may lead by now"
        );
    }

    #[test]
    fn a_leader_renews_until_it_is_told_or_must_believe_that_it_is_over() {
        let mut me = Leadership::new(ME, timing());
        me.looked(s(0), held(7), true);
        me.claimed(s(0), s(0), Some(Term(5)));
        assert_eq!(me.next(), (s(3), Step::Renew(Term(5))));
        me.renewed(s(3), s(4), true);
        assert_eq!(me.trusted_until(), Some(s(11)));
        me.failed(s(6));
        assert_eq!(
            me.next(),
            (s(6) + timing().again_after, Step::Renew(Term(5)))
        );
        assert!(!me.lapse(s(10), false));
        assert!(me.lapse(s(11), false));
        assert_eq!((me.term(), me.next()), (None, (s(11), Step::Look)));

        let mut me = Leadership::new(ME, timing());
        me.looked(s(0), held(7), true);
        me.claimed(s(0), s(0), Some(Term(5)));
        let mut fenced = me;
        assert!(fenced.lapse(s(1), true));
        me.renewed(s(3), s(3), false);
        assert_eq!(me.term(), None);
    }

    /// The database, and two coordinators whose clocks have different origins.
    #[derive(Debug)]
    struct World {
        now: Duration,
        record: Record,
        origin: [Duration; 2],
        sides: [Leadership; 2],
    }

    impl World {
        fn new(origin: [u64; 2]) -> Self {
            Self {
                now: Duration::ZERO,
                record: Record {
                    term: Term(0),
                    renewals: 0,
                    leader: None,
                    released: false,
                    lease: timing().lease,
                },
                origin: origin.map(s),
                sides: [
                    Leadership::new(ME, timing()),
                    Leadership::new(OTHER, timing()),
                ],
            }
        }

        fn clock(&self, side: usize) -> Duration {
            self.now + self.origin[side]
        }

        /// One side does its next step if it is due. `before` passes between its begin and the
        /// database, `after` between the database and the answer; an answer may be lost.
        fn step(&mut self, side: usize, before: Duration, after: Duration, lost: bool) {
            let me = self.sides[side].me;
            let clock = self.clock(side);
            self.sides[side].lapse(clock, false);
            let (at, step) = self.sides[side].next();
            if at > clock {
                return;
            }
            self.now += before;
            let answer = match step {
                Step::Look => None,
                Step::Claim { term, renewals } => {
                    let free = (self.record.term, self.record.renewals) == (term, renewals);
                    if free {
                        self.record.term = Term(term.0 + 1);
                        self.record.renewals = 0;
                        self.record.leader = Some(me);
                    }
                    Some(free)
                }
                Step::Renew(term) => {
                    let ours = self.record.term == term;
                    self.record.renewals += i64::from(ours);
                    Some(ours)
                }
            };
            let record = self.record;
            self.now += after;
            let now = self.clock(side);
            let side = &mut self.sides[side];
            match (step, answer) {
                _ if lost => side.failed(now),
                (Step::Look, _) => side.looked(now, record, false),
                (Step::Claim { .. }, ours) => {
                    side.claimed(clock, now, (ours == Some(true)).then_some(record.term));
                }
                (Step::Renew(_), ours) => side.renewed(clock, now, ours == Some(true)),
            }
        }

        fn leaders(&self) -> usize {
            (0..2)
                .filter(|side| self.sides[*side].trusts(self.clock(*side)))
                .count()
        }
    }

    proptest! {
        #[test]
        fn never_do_two_trust_that_they_lead(
            origins in (0..1_000u64, 0..1_000u64),
            steps in prop::collection::vec(
                (0..2usize, 0..4_000u64, 0..6_000u64, 0..6_000u64, prop::bool::weighted(0.2)),
                0..300,
            ),
        ) {
            let mut world = World::new([origins.0, origins.1]);
            for (side, pause, before, after, lost) in steps {
                world.now += Duration::from_millis(pause);
                world.step(side, Duration::from_millis(before), Duration::from_millis(after), lost);
                prop_assert!(world.leaders() < 2, "{world:?}");
            }
        }

        #[test]
        fn somebody_leads_soon_when_the_database_answers(lead in 0..2usize, killed_at in 0..40_000u64) {
            let mut world = World::new([5, 900]);
            let tick = Duration::from_millis(100);
            while world.now < Duration::from_millis(killed_at) || world.leaders() == 0 {
                world.now += tick;
                world.step(lead, Duration::ZERO, Duration::ZERO, false);
                world.step(1 - lead, Duration::ZERO, Duration::ZERO, false);
            }
            let alive = 1 - lead;
            let killed = world.now;
            while !world.sides[alive].trusts(world.clock(alive)) {
                world.now += tick;
                world.step(alive, Duration::ZERO, Duration::ZERO, false);
                prop_assert!(world.now - killed <= s(12), "{world:?}");
            }
        }
    }
}
