//! Random worlds around an agent, and the laws that hold in all of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

/// A shim as the world below sees it.
#[derive(Debug, Default)]
struct FakeShim {
    lives: bool,
    /// Its segment, and how much of it was told.
    segment: Vec<(i64, Fact)>,
    told: usize,
    /// What this agent has asked, unread.
    inbox: VecDeque<Request>,
    busy: Option<i64>,
    seen: BTreeSet<i64>,
}

#[derive(Clone, Copy, Debug)]
enum Request {
    Run(i64),
    Retire,
}

/// Shims, segments and a coordinator around one agent after another, and the laws.
#[derive(Debug)]
struct World {
    agent: Agent,
    now: Duration,
    shims: BTreeMap<ShimId, FakeShim>,
    losses: Vec<Loss>,
    greeted: Option<(Duration, Vec<Holding>)>,
    beats: BTreeMap<i64, Duration>,
    /// When the last thing that was answered had been sent.
    answered: Option<Duration>,
    /// This agent has handed these to a shim.
    handed: BTreeSet<i64>,
    next_fence: i64,
    /// Fences that the coordinator knows not to run.
    never: BTreeSet<i64>,
    owed: BTreeSet<i64>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            agent: Agent::new("boot".to_owned(), "spool".to_owned(), 0, 2, SECOND),
            now: SECOND,
            shims: BTreeMap::new(),
            losses: Vec::new(),
            greeted: None,
            beats: BTreeMap::new(),
            answered: None,
            handed: BTreeSet::new(),
            next_fence: 1,
            never: BTreeSet::new(),
            owed: BTreeSet::new(),
        };
        world.tell(Event::Began);
        world
    }

    /// The agent is killed, and another one takes over. What nobody has read is gone.
    fn crash(&mut self) {
        self.agent = Agent::new("boot".to_owned(), "spool".to_owned(), 3, 2, self.now);
        self.losses.clear();
        self.greeted = None;
        self.beats.clear();
        self.answered = None;
        self.handed.clear();
        let found: Vec<_> = self.shims.keys().copied().collect();
        for shim in found {
            self.tell(Event::Found(shim));
            let known = self.shims.get_mut(&shim).unwrap();
            known.inbox.clear();
            known.told = known.segment.len();
            let (facts, lives) = (known.segment.clone(), known.lives);
            self.tell(Event::Facts {
                shim: Some(shim),
                facts,
            });
            self.tell(Event::Adopted { shim, lives });
        }
        self.tell(Event::Began);
    }

    fn tell(&mut self, event: Event) {
        let reasked = matches!(event, Event::Connected(_));
        for effect in self.agent.step(event, self.now) {
            match effect {
                Effect::Greet { held, .. } => {
                    self.answered = None;
                    self.greeted = Some((self.now, held));
                }
                Effect::Say(say) => self.said(say),
                Effect::Spawn(shim) => {
                    let lives = true;
                    let known = FakeShim {
                        lives,
                        ..FakeShim::default()
                    };
                    assert!(self.shims.insert(shim, known).is_none());
                }
                Effect::Run { shim, fence, .. } => {
                    assert!(!self.never.contains(&fence), "{fence} was given back");
                    if !reasked {
                        assert!(self.handed.insert(fence), "{fence} was handed out twice");
                        let lately = |at: Duration| self.now - at < START_WITHIN;
                        assert!(
                            self.answered.is_some_and(lately),
                            "{fence}: nobody answered"
                        );
                    }
                    if let Some(known) = self.shims.get_mut(&shim) {
                        known.inbox.push_back(Request::Run(fence));
                    }
                }
                Effect::Ask {
                    shim,
                    ask: Ask::Retire,
                } => {
                    if let Some(known) = self.shims.get_mut(&shim) {
                        known.inbox.push_back(Request::Retire);
                    }
                }
                Effect::Conclude { losses, .. } => self.losses.extend(losses),
                Effect::RemoveSegment(shim) => {
                    let removed = self.shims.remove(&shim).unwrap();
                    assert!(!removed.lives);
                    for (fence, _) in removed.segment {
                        assert!(!self.owed.contains(&fence), "{fence} is forgotten");
                    }
                }
                _ => {}
            }
        }
        assert!(self.agent.taken() <= 2, "slots are oversold");
    }

    fn said(&mut self, say: Say) {
        match say {
            Say::Heartbeat { sequence } => {
                self.beats.insert(sequence, self.now);
            }
            Say::Returned {
                fence,
                returned: true,
                ..
            } => {
                self.never.insert(fence);
            }
            _ => {}
        }
    }

    fn pick(&self, pick: usize) -> Option<ShimId> {
        let shims = self.shims.keys().copied();
        shims.clone().nth(pick % shims.len().max(1))
    }

    fn act(&mut self, action: u8, pick: usize) {
        match action {
            0 | 1 => {
                let fence = self.next_fence;
                if self.agent.in_session() {
                    self.next_fence += 1;
                    self.tell(Event::Assign(assignment(fence)));
                }
            }
            2 => {
                self.tell(Event::Greeting);
                if !pick.is_multiple_of(3) {
                    self.welcome();
                }
            }
            3 => self.tell(Event::Closed),
            4 => {
                if let Some((sequence, sent)) = self.beats.pop_last() {
                    if self.agent.in_session() {
                        self.answered = Some(sent);
                    }
                    self.tell(Event::Answered { sequence, term: 3 });
                }
            }
            5 => {
                self.now += SECOND * (pick as u32 % 30);
                self.tell(Event::Tick);
            }
            6..=8 => self
                .pick(pick)
                .into_iter()
                .for_each(|shim| self.serve(shim)),
            9 => self
                .pick(pick)
                .into_iter()
                .for_each(|shim| self.finish(shim)),
            10 | 11 => self.pick(pick).into_iter().for_each(|shim| self.ring(shim)),
            12 => self.pick(pick).into_iter().for_each(|shim| {
                let known = self.shims.get_mut(&shim).unwrap();
                if known.lives {
                    known.inbox.clear();
                    self.tell(Event::Connected(shim));
                }
            }),
            13 => self.pick(pick).into_iter().for_each(|shim| self.die(shim)),
            14 => {
                if let Some(loss) = self.losses.pop() {
                    let facts = loss.facts(9_000_000, String::new());
                    let facts: Vec<_> = facts.into_iter().map(|f| (loss.fence, f)).collect();
                    let has = |known: &&mut FakeShim| {
                        known.segment.iter().any(|(fence, _)| *fence == loss.fence)
                    };
                    if let Some(known) = self.shims.values_mut().find(has) {
                        known.segment.extend(facts.clone());
                        known.told = known.segment.len();
                    }
                    self.tell(Event::Facts { shim: None, facts });
                }
            }
            15 => self.tell(Event::Revoke(pick as i64 % self.next_fence)),
            16 => {
                let fence = pick as i64 % self.next_fence;
                if self.agent.stage(fence) == Some(Stage::Ended) {
                    self.owed.remove(&fence);
                    self.tell(Event::Stored(fence));
                }
                self.tell(Event::Committed(fence));
            }
            17 => self.crash(),
            18 => {
                self.answered = None;
                self.tell(Event::ClockJumped);
            }
            _ => self.tell(Event::Stop {
                fence: pick as i64 % self.next_fence,
                cause: StopCause::Cancel,
                grace: None,
            }),
        }
    }

    /// The coordinator answers the greeting as ours does: what it should hold and does not hold was
    /// never started.
    fn welcome(&mut self) {
        let Some((greeted_at, held)) = self.greeted.take() else {
            return;
        };
        let holds = |fence: i64| held.iter().any(|holding| holding.fence == fence);
        self.never
            .extend((1..self.next_fence).filter(|fence| !holds(*fence)));
        let verdict = |holding: &Holding| Judged {
            fence: holding.fence,
            verdict: match holding.stage {
                Stage::Ended if !self.owed.contains(&holding.fence) => Verdict::Forget,
                Stage::Ended => Verdict::SendResult,
                _ => Verdict::Continue,
            },
            log_stored: 0,
        };
        let verdicts = held.iter().map(verdict).collect();
        self.answered = Some(greeted_at);
        self.beats.clear();
        self.tell(Event::Welcomed(welcome(verdicts, greeted_at)));
        if !self.agent.in_session() {
            self.answered = None;
        }
    }

    /// The shim reads a request.
    fn serve(&mut self, shim: ShimId) {
        let known = self.shims.get_mut(&shim).unwrap();
        if !known.lives {
            return;
        }
        match known.inbox.pop_front() {
            Some(Request::Run(fence)) if known.seen.insert(fence) => {
                if known.busy.is_some() {
                    known.segment.push((fence, Fact::Void("busy".to_owned())));
                    return;
                }
                known.busy = Some(fence);
                let begun = [Fact::Assigned(Box::new(terms())), starting(), started()];
                known.segment.extend(begun.map(|fact| (fence, fact)));
                assert!(!self.never.contains(&fence), "{fence} was known not to run");
                assert!(self.owed.insert(fence), "{fence} runs twice");
            }
            Some(Request::Retire) if known.busy.is_none() => self.die(shim),
            _ => {}
        }
    }

    fn finish(&mut self, shim: ShimId) {
        let known = self.shims.get_mut(&shim).unwrap();
        if let Some(fence) = known.busy.take_if(|_| known.lives) {
            known.segment.push((fence, ended(0, 0)));
            known.segment.push((fence, Fact::Freed));
        }
    }

    fn ring(&mut self, shim: ShimId) {
        let known = self.shims.get_mut(&shim).unwrap();
        if !known.lives {
            return;
        }
        let facts = known.segment[known.told..].to_vec();
        known.told = known.segment.len();
        let idle = known.busy.is_none() && known.inbox.is_empty();
        self.tell(Event::Facts {
            shim: Some(shim),
            facts,
        });
        if idle {
            self.tell(Event::Idle(shim));
        }
    }

    fn die(&mut self, shim: ShimId) {
        self.ring(shim);
        let Some(known) = self.shims.get_mut(&shim).filter(|known| known.lives) else {
            return;
        };
        known.lives = false;
        self.tell(Event::Gone(shim));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// However it goes: no fence is run twice or after it was given back, nothing starts without a
    /// coordinator that answered lately, nothing owed is forgotten, no slot is oversold; and when
    /// the world calms down everything comes to its end.
    #[test]
    fn laws_of_the_agent(
        actions in proptest::collection::vec((0_u8..20, 0_usize..1000), 0..200),
    ) {
        let mut world = World::new();
        for (action, pick) in actions {
            world.act(action, pick);
        }
        for _ in 0..400 {
            if !world.agent.in_session() {
                world.act(2, 1);
            }
            for pick in 0..world.shims.len() {
                for action in [12, 6, 7, 9, 10] {
                    world.act(action, pick);
                }
            }
            world.act(14, 0);
            world.act(4, 0);
            world.act(5, 1);
        }
        let next = world.next_fence;
        let over = |fence: &i64| {
            world.never.contains(fence)
                || world.agent.stage(*fence).is_none_or(|stage| stage == Stage::Ended)
        };
        prop_assert_eq!((1..next).find(|fence| !over(fence)), None);
        prop_assert_eq!(world.agent.taken(), 0);
    }
}
