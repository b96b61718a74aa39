//! Which assignment runs in which shim, and when.
//!
//! The roster knows the slots, the shims and the assignments that wait. Facts go in through its
//! methods; [`Roster::plan`] says what to do about them and notes that it will be done.

use std::collections::{BTreeMap, VecDeque};

/// Most shims that are kept ready although nothing waits.
pub const MAX_WARM: usize = 16;

/// Most slots a worker may have.
pub const MAX_SLOTS: u32 = 1000;

/// Names a shim for as long as the agent lives.
pub type ShimId = u64;

/// An assignment that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The attempt.
    pub fence: i64,
    /// Slots it takes.
    pub slots: u32,
    /// Starts at once, whatever is taken.
    pub beside_slots: bool,
    /// Nothing is left to be done before it can run. Until then it keeps its slots, and those
    /// behind it are not held back.
    pub prepared: bool,
}

impl Waiting {
    /// Slots that are taken while it runs.
    pub fn takes(&self) -> u32 {
        if self.beside_slots { 0 } else { self.slots }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shim {
    /// Spawned; has not said that it is ready.
    Starting,
    Idle,
    Busy {
        fence: i64,
        slots: u32,
    },
    /// Its attempt's processes are gone; it says next that it is idle, or ends.
    Ending,
    /// Takes no more.
    Retiring,
}

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Spawn a shim and call it `shim`.
    Spawn {
        /// Its name.
        shim: ShimId,
    },
    /// Hand an assignment to a shim.
    Run {
        /// The shim.
        shim: ShimId,
        /// The attempt.
        fence: i64,
    },
    /// Ask a shim to exit.
    Retire {
        /// The shim.
        shim: ShimId,
    },
}

/// The slots of a worker.
#[derive(Debug)]
pub struct Roster {
    slots: u32,
    next_shim: ShimId,
    shims: BTreeMap<ShimId, Shim>,
    /// Attempts whose shim is gone while processes of them may be left, with their slots.
    swept: BTreeMap<i64, u32>,
    waiting: VecDeque<Waiting>,
}

impl Roster {
    /// A roster with so many slots. Shims are named from `next_shim` on.
    pub fn new(slots: u32, next_shim: ShimId) -> Self {
        Self {
            slots: slots.clamp(1, MAX_SLOTS),
            next_shim,
            shims: BTreeMap::new(),
            swept: BTreeMap::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Changes the number of slots. Fewer take effect as attempts end.
    pub fn set_slots(&mut self, slots: u32) {
        self.slots = slots.clamp(1, MAX_SLOTS);
    }

    /// Assignments that wait, in order.
    pub fn waiting(&self) -> impl Iterator<Item = i64> + '_ {
        self.waiting.iter().map(|waiting| waiting.fence)
    }

    /// How many assignments wait.
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// Takes an assignment. A known one is not taken twice.
    pub fn assign(&mut self, assignment: Waiting) {
        if self
            .waiting
            .iter()
            .all(|known| known.fence != assignment.fence)
        {
            self.waiting.push_back(assignment);
        }
    }

    /// Takes an assignment back. False when it does not wait here.
    pub fn revoke(&mut self, fence: i64) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.fence != fence);
        self.waiting.len() < before
    }

    /// Nothing is left to be done before the assignment can run.
    pub fn prepared(&mut self, fence: i64) {
        for waiting in &mut self.waiting {
            waiting.prepared |= waiting.fence == fence;
        }
    }

    /// Adopts a shim that an earlier agent spawned, with the attempt it runs.
    pub fn adopt(&mut self, shim: ShimId, running: Option<(i64, u32)>) {
        let state = running.map_or(Shim::Starting, |(fence, slots)| Shim::Busy { fence, slots });
        self.shims.insert(shim, state);
        self.next_shim = self.next_shim.max(shim + 1);
    }

    /// The shim can take an assignment.
    pub fn idle(&mut self, shim: ShimId) {
        if let Some(state) = self.shims.get_mut(&shim)
            && *state != Shim::Retiring
        {
            *state = Shim::Idle;
        }
    }

    /// The shim takes no more.
    pub fn retiring(&mut self, shim: ShimId) {
        if let Some(state) = self.shims.get_mut(&shim)
            && !matches!(state, Shim::Busy { .. })
        {
            *state = Shim::Retiring;
        }
    }

    /// The shim is gone. `unswept` is the attempt of which processes may be left; it keeps its slots
    /// until [`Roster::freed`].
    pub fn gone(&mut self, shim: ShimId, unswept: Option<(i64, u32)>) {
        self.shims.remove(&shim);
        self.swept.extend(unswept);
    }

    /// No process of the attempt is left: its slots are free, whether or not its shim can take the
    /// next one.
    pub fn freed(&mut self, fence: i64) {
        self.swept.remove(&fence);
        for state in self.shims.values_mut() {
            if matches!(state, Shim::Busy { fence: busy, .. } if *busy == fence) {
                *state = Shim::Ending;
            }
        }
    }

    /// The shim that was given an attempt of which processes may be left.
    pub fn shim_of(&self, fence: i64) -> Option<ShimId> {
        self.shims.iter().find_map(|(shim, state)| match state {
            Shim::Busy { fence: busy, .. } if *busy == fence => Some(*shim),
            _ => None,
        })
    }

    /// The attempt that a shim was given and of which processes may be left.
    pub fn attempt_of(&self, shim: ShimId) -> Option<i64> {
        match self.shims.get(&shim) {
            Some(Shim::Busy { fence, .. }) => Some(*fence),
            _ => None,
        }
    }

    /// Attempts of which processes may be left.
    pub fn holding(&self) -> impl Iterator<Item = i64> + '_ {
        let busy = self.shims.values().filter_map(|shim| match shim {
            Shim::Busy { fence, .. } => Some(*fence),
            _ => None,
        });
        busy.chain(self.swept.keys().copied())
    }

    /// Slots that are taken.
    pub fn taken(&self) -> u32 {
        let busy = self.shims.values().map(|shim| match shim {
            Shim::Busy { slots, .. } => *slots,
            _ => 0,
        });
        busy.chain(self.swept.values().copied()).sum()
    }

    /// What to do now. Waiting assignments are started only when `may_start` says so; no shim is
    /// spawned unless `may_spawn` does.
    pub fn plan(&mut self, may_start: bool, may_spawn: bool) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut unserved = 0;
        if may_start {
            unserved = self.start(&mut effects);
        }
        if may_spawn {
            self.balance(unserved, &mut effects);
        }
        effects
    }

    /// Hands assignments to idle shims; returns how many could run but found none.
    fn start(&mut self, effects: &mut Vec<Effect>) -> usize {
        let mut unserved = 0;
        let mut kept = VecDeque::with_capacity(self.waiting.len());
        let mut taken = self.taken();
        let mut in_order = true;
        for waiting in std::mem::take(&mut self.waiting) {
            let slots = waiting.takes();
            let fits = taken + slots <= self.slots || taken == 0;
            // Assignments start in the order in which they came; one that must wait holds back
            // those behind it, except what starts beside the slots.
            if !(waiting.beside_slots || (in_order && fits)) {
                in_order = false;
                kept.push_back(waiting);
                continue;
            }
            taken += slots;
            if !waiting.prepared {
                kept.push_back(waiting);
                continue;
            }
            let idle = self
                .shims
                .iter_mut()
                .find(|(_, state)| **state == Shim::Idle);
            match idle {
                Some((shim, state)) => {
                    *state = Shim::Busy {
                        fence: waiting.fence,
                        slots,
                    };
                    effects.push(Effect::Run {
                        shim: *shim,
                        fence: waiting.fence,
                    });
                }
                None => {
                    unserved += 1;
                    kept.push_back(waiting);
                }
            }
        }
        self.waiting = kept;
        unserved
    }

    /// Spawns shims for what waits and for free slots, and retires those that are too many.
    fn balance(&mut self, unserved: usize, effects: &mut Vec<Effect>) {
        let free = self.slots.saturating_sub(self.taken()) as usize;
        let wanted = free.min(MAX_WARM).max(unserved);
        let ready = |state: &Shim| matches!(state, Shim::Starting | Shim::Idle | Shim::Ending);
        let have = self.shims.values().filter(|state| ready(state)).count();
        for _ in have..wanted {
            let shim = self.next_shim;
            self.next_shim += 1;
            self.shims.insert(shim, Shim::Starting);
            effects.push(Effect::Spawn { shim });
        }
        let idle = self
            .shims
            .iter_mut()
            .filter(|(_, state)| **state == Shim::Idle);
        for (shim, state) in idle.take(have.saturating_sub(wanted.max(1))) {
            *state = Shim::Retiring;
            effects.push(Effect::Retire { shim: *shim });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn job(fence: i64) -> Waiting {
        Waiting {
            fence,
            slots: 1,
            beside_slots: false,
            prepared: true,
        }
    }

    fn runs(effects: &[Effect]) -> Vec<i64> {
        let runs = effects.iter().filter_map(|effect| match effect {
            Effect::Run { fence, .. } => Some(*fence),
            _ => None,
        });
        runs.collect()
    }

    /// A roster whose shims are all ready.
    fn warm(slots: u32) -> Roster {
        let mut roster = Roster::new(slots, 1);
        settle(&mut roster);
        roster
    }

    fn settle(roster: &mut Roster) -> Vec<i64> {
        let mut started = Vec::new();
        for _ in 0..10 {
            let effects = roster.plan(true, true);
            started.extend(runs(&effects));
            for effect in effects {
                match effect {
                    Effect::Spawn { shim } => roster.idle(shim),
                    Effect::Retire { shim } => roster.gone(shim, None),
                    Effect::Run { .. } => {}
                }
            }
        }
        started
    }

    #[test]
    fn a_shim_is_ready_before_anything_comes() {
        let mut roster = Roster::new(2, 7);
        assert_eq!(
            roster.plan(true, true),
            [Effect::Spawn { shim: 7 }, Effect::Spawn { shim: 8 }]
        );
        assert_eq!(roster.plan(true, true), []);
    }

    #[test]
    fn the_next_one_starts_the_moment_a_slot_is_free() {
        let mut roster = warm(1);
        roster.assign(job(10));
        roster.assign(job(11));
        assert_eq!(settle(&mut roster), [10]);
        let shim = roster.shim_of(10).unwrap();
        roster.idle(shim);
        assert_eq!(roster.plan(true, false), [Effect::Run { shim, fence: 11 }]);
    }

    #[test]
    fn a_revoked_assignment_does_not_start() {
        let mut roster = warm(1);
        roster.assign(job(10));
        roster.assign(job(11));
        settle(&mut roster);
        assert!(!roster.revoke(10));
        assert!(roster.revoke(11));
        roster.idle(roster.shim_of(10).unwrap());
        assert_eq!(settle(&mut roster), [0; 0]);
    }

    #[test]
    fn a_wide_assignment_waits_and_holds_back_those_behind_it() {
        let mut roster = warm(2);
        roster.assign(job(1));
        roster.assign(Waiting { slots: 2, ..job(2) });
        roster.assign(job(3));
        assert_eq!(settle(&mut roster), [1]);
        roster.idle(roster.shim_of(1).unwrap());
        assert_eq!(settle(&mut roster), [2]);
        roster.idle(roster.shim_of(2).unwrap());
        assert_eq!(settle(&mut roster), [3]);
    }

    #[test]
    fn what_is_wider_than_the_worker_runs_alone() {
        let mut roster = warm(1);
        roster.assign(Waiting { slots: 4, ..job(1) });
        assert_eq!(settle(&mut roster), [1]);
    }

    #[test]
    fn beside_the_slots_starts_at_once_in_a_shim_of_its_own() {
        let mut roster = warm(1);
        roster.assign(job(1));
        roster.assign(job(2));
        settle(&mut roster);
        roster.assign(Waiting {
            beside_slots: true,
            ..job(3)
        });
        assert_eq!(settle(&mut roster), [3]);
        assert_eq!(roster.taken(), 1);
    }

    #[test]
    fn what_is_being_prepared_keeps_its_slot_and_holds_nobody_back() {
        let mut roster = warm(2);
        roster.assign(Waiting {
            prepared: false,
            ..job(1)
        });
        (2..=3).for_each(|fence| roster.assign(job(fence)));
        assert_eq!(settle(&mut roster), [2]);
        roster.prepared(1);
        assert_eq!(settle(&mut roster), [1]);
        roster.idle(roster.shim_of(2).unwrap());
        assert_eq!(settle(&mut roster), [3]);
    }

    #[test]
    fn processes_that_are_left_hold_their_slot() {
        let mut roster = warm(1);
        roster.assign(job(1));
        roster.assign(job(2));
        settle(&mut roster);
        roster.gone(roster.shim_of(1).unwrap(), Some((1, 1)));
        assert_eq!(settle(&mut roster), [0; 0]);
        roster.freed(1);
        assert_eq!(settle(&mut roster), [2]);
    }

    #[test]
    fn fewer_slots_take_effect_as_attempts_end() {
        let mut roster = warm(3);
        for fence in 1..=4 {
            roster.assign(job(fence));
        }
        assert_eq!(settle(&mut roster), [1, 2, 3]);
        roster.set_slots(1);
        for fence in 1..=2 {
            roster.idle(roster.shim_of(fence).unwrap());
            assert_eq!(settle(&mut roster), [0; 0]);
        }
        roster.idle(roster.shim_of(3).unwrap());
        assert_eq!(settle(&mut roster), [4]);
    }

    #[test]
    fn nothing_starts_while_it_may_not() {
        let mut roster = warm(1);
        roster.assign(job(1));
        assert_eq!(runs(&roster.plan(false, true)), [0; 0]);
        assert_eq!(settle(&mut roster), [1]);
    }

    proptest! {
        /// However it goes, slots are never oversold, nothing starts twice, and nothing is lost.
        #[test]
        fn slots_are_kept(
            slots in 1_u32..5,
            events in proptest::collection::vec((0_u8..7, 0_usize..8), 0..150),
        ) {
            let mut roster = Roster::new(slots, 1);
            let mut next = 1_i64;
            let mut live = Vec::new();
            let mut given = Vec::new();
            let mut started = Vec::new();
            let mut revoked = Vec::new();
            let mut steps: Vec<_> = events;
            steps.extend(std::iter::repeat_n([(2, 0), (3, 0)], 400).flatten());
            for (event, pick) in steps {
                match event {
                    0 | 1 => {
                        roster.assign(job(next));
                        given.push(next);
                        next += 1;
                    }
                    2 => live.iter().for_each(|shim| {
                        if roster.shims.get(shim) == Some(&Shim::Starting) {
                            roster.idle(*shim);
                        }
                    }),
                    3 => if let Some(fence) = started.get(pick % started.len().max(1)) {
                        let shim = roster.shim_of(*fence);
                        shim.into_iter().for_each(|shim| roster.idle(shim));
                    },
                    4 => if let Some(fence) = given.get(pick) && roster.revoke(*fence) {
                        revoked.push(*fence);
                    },
                    5 => if let Some(shim) = live.get(pick % live.len().max(1)) {
                        roster.gone(*shim, None);
                    },
                    _ => roster.retiring(live.get(pick).copied().unwrap_or(1)),
                }
                for effect in roster.plan(event != 6, true) {
                    match effect {
                        Effect::Spawn { shim } => live.push(shim),
                        Effect::Run { fence, .. } => {
                            prop_assert!(!started.contains(&fence) && !revoked.contains(&fence));
                            started.insert(0, fence);
                        }
                        Effect::Retire { .. } => {}
                    }
                }
                prop_assert!(roster.taken() <= slots);
            }
            for _ in 0..200 {
                for fence in started.clone() {
                    roster.shim_of(fence).into_iter().for_each(|shim| roster.idle(shim));
                }
                for effect in roster.plan(true, true) {
                    match effect {
                        Effect::Spawn { shim } => roster.idle(shim),
                        Effect::Run { fence, .. } => started.insert(0, fence),
                        Effect::Retire { .. } => {}
                    }
                }
            }
            let mut ended: Vec<_> = started.into_iter().chain(revoked).collect();
            ended.sort_unstable();
            prop_assert_eq!(ended, given);
        }
    }
}
