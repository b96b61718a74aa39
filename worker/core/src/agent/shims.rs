//! The side towards shims: starts them, hears them, and finds out what became of those that are
//! gone.

use std::time::Duration;

use super::{Agent, Phase, Shim};
use crate::agent::attempt::{Change, Fact, Held, Loss, Terms};
use crate::agent::message::{Ask, Effect, Say};
use crate::guard::{Guard, is_broken};
use crate::roster::ShimId;
use crate::session::Stage;
use crate::silence::{self, Evidence, Silence};

/// Bounds of the pause after a shim that could not be started.
const FIRST_SPAWN_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_SPAWN_PAUSE: Duration = Duration::from_secs(30);

impl Agent {
    pub(super) fn found(&mut self, shim: ShimId) {
        let known = self.shims.entry(shim).or_default();
        known.ready = true;
    }

    pub(super) fn adopted(&mut self, shim: ShimId, lives: bool) {
        let running = self
            .attempts
            .iter()
            .find(|(_, held)| held.shim == Some(shim) && held.slot_held())
            .map(|(fence, held)| (*fence, held.terms.waiting(*fence).takes()));
        self.roster.adopt(shim, running);
        if !lives {
            self.gone(shim, false);
        }
    }

    /// Hands an assignment to a shim.
    pub(super) fn run(&mut self, shim: ShimId, fence: i64) {
        let Some(held) = self.attempts.get_mut(&fence) else {
            return;
        };
        held.shim = Some(shim);
        let lease_until = self.lease_to_start(fence);
        if let Some(known) = self.shims.get_mut(&shim) {
            known.attempts.insert(fence);
        }
        self.effects.push(Effect::Run {
            shim,
            fence,
            lease_until,
        });
    }

    /// A connection broke and was made anew, and what was asked over it may be lost: everything that
    /// still matters is asked again.
    pub(super) fn connected(&mut self, shim: ShimId) {
        let Some(known) = self.shims.get(&shim) else {
            return;
        };
        let retiring = known.retiring;
        for fence in known.attempts.clone() {
            let Some(held) = self.attempts.get(&fence) else {
                continue;
            };
            let lease_until = self.lease_until(fence);
            if held.is_on_its_way() {
                // What is to be stopped does not begin only for that.
                let lease_until = match held.stop {
                    Some(_) => Some(Duration::ZERO),
                    None => self.lease_to_start(fence),
                };
                self.effects.push(Effect::Run {
                    shim,
                    fence,
                    lease_until,
                });
            }
            let wanted = held.stop.clone().filter(|_| held.slot_held());
            let stop = wanted.map(|stop| stop.ask(fence));
            let is_running = held.stage() == Stage::Running;
            let unlike = |wanted: &bool| is_running && held.paused.unwrap_or(false) != *wanted;
            let pause = held.pause.filter(unlike);
            let pause = pause.map(|paused| Ask::SetPaused { fence, paused });
            let lease = lease_until.filter(|_| is_running);
            let lease = lease.map(|until| Ask::Lease { fence, until });
            let committed = held.committed.then_some(Ask::Committed(fence));
            for ask in [lease, pause, stop, committed].into_iter().flatten() {
                self.effects.push(Effect::Ask { shim, ask });
            }
        }
        if retiring {
            self.effects.push(Effect::Ask {
                shim,
                ask: Ask::Retire,
            });
        }
    }

    pub(super) fn idle(&mut self, shim: ShimId) {
        if let Some(known) = self.shims.get_mut(&shim) {
            known.ready = true;
            self.spawn_failures = 0;
        }
        // A bell that rang before the shim read its assignment says nothing about it.
        if self.roster.attempt_of(shim).is_none() {
            self.roster.idle(shim);
        }
    }

    pub(super) fn retire(&mut self, shim: ShimId) {
        if let Some(known) = self.shims.get_mut(&shim).filter(|known| !known.gone) {
            known.retiring = true;
            self.effects.push(Effect::Ask {
                shim,
                ask: Ask::Retire,
            });
        }
    }

    /// The shim is gone, and its segment belongs to this agent.
    pub(super) fn gone(&mut self, shim: ShimId, seen: bool) {
        let Some(known) = self.shims.get_mut(&shim) else {
            return;
        };
        known.gone = true;
        if !known.ready && self.phase == Phase::Working {
            self.pause_spawning(shim);
        }
        let losses: Vec<Loss> = self
            .attempts
            .iter()
            .filter(|(_, held)| held.shim == Some(shim))
            .filter_map(|(fence, held)| Loss::of(*fence, held, &self.boot_id))
            .collect();
        let unswept = losses.iter().find(|loss| loss.unswept());
        let unswept = unswept.map(|loss| (loss.fence, loss.terms.waiting(loss.fence).takes()));
        self.roster.gone(shim, unswept);
        if !losses.is_empty() {
            self.effects.push(Effect::Conclude { shim, losses, seen });
        }
        self.remove_if_unused(shim);
    }

    pub(super) fn spawn_failed(&mut self, shim: ShimId) {
        self.roster.gone(shim, None);
        self.shims.remove(&shim);
        self.pause_spawning(shim);
    }

    fn pause_spawning(&mut self, shim: ShimId) {
        let doubled = FIRST_SPAWN_PAUSE.saturating_mul(1 << self.spawn_failures.min(10));
        let pause = doubled.min(LONGEST_SPAWN_PAUSE);
        self.spawn_failures = self.spawn_failures.saturating_add(1);
        self.spawn_after = self.now.saturating_add(pause);
        self.effects.push(Effect::PauseSpawning { shim, pause });
    }

    pub(super) fn remove_if_unused(&mut self, shim: ShimId) {
        let unused = |known: &Shim| known.gone && known.attempts.is_empty();
        if self.shims.get(&shim).is_some_and(unused) {
            self.shims.remove(&shim);
            self.effects.push(Effect::RemoveSegment(shim));
        }
    }

    /// Takes what a segment tells.
    pub(super) fn facts(&mut self, shim: Option<ShimId>, facts: Vec<(i64, Fact)>) {
        for (fence, fact) in facts {
            if let (Fact::Assigned(terms), Some(shim)) = (&fact, shim) {
                let held = self.attempts.entry(fence);
                let held = held.or_insert_with(|| Held::waiting(Terms::clone(terms)));
                held.shim = Some(shim);
                if let Some(known) = self.shims.get_mut(&shim) {
                    known.attempts.insert(fence);
                }
            }
            self.fact(fence, fact);
        }
    }

    fn fact(&mut self, fence: i64, fact: Fact) {
        let Some(held) = self.attempts.get_mut(&fence) else {
            return;
        };
        let was_on_its_way = held.is_on_its_way();
        let change = held.apply(fact);
        if was_on_its_way && !held.is_on_its_way() {
            self.effects.push(Effect::Discard(fence));
        }
        let say = match change {
            Change::Nothing => None,
            Change::Progress => held
                .progress
                .clone()
                .map(|reading| Say::Progress { fence, reading }),
            Change::Started => held
                .started
                .clone()
                .map(|started| Say::Started { fence, started }),
            Change::Paused => held
                .paused
                .map(|paused| Say::PauseChanged { fence, paused }),
            // Who has just begun looks at everything anyway.
            Change::Bell if self.phase == Phase::Adopting => None,
            Change::Bell => return self.look_for_checkpoints(fence),
            Change::Ended if held.looking && !is_broken(Guard::EndLast) => {
                self.look_for_checkpoints(fence);
                None
            }
            Change::Ended => {
                let ended = held.ended.clone();
                ended
                    .filter(|_| self.may_tell_end(fence))
                    .map(|ended| Say::Ended { fence, ended })
            }
            Change::Stuck => return self.tell_stuck(fence),
            Change::Silence => return self.silent(fence),
            Change::Freed => return self.freed(fence),
        };
        if change == Change::Ended {
            self.doubt_gpus_of(fence);
        }
        let held = self.attempts.get(&fence);
        let freed = change == Change::Ended && held.is_some_and(|held| !held.slot_held());
        say.into_iter().for_each(|say| self.say(say));
        if freed {
            self.freed(fence);
        }
    }

    /// Tells once that processes hold the slot; without a session, in the next one.
    pub(super) fn tell_stuck(&mut self, fence: i64) {
        let in_session = self.in_session();
        let held = self.attempts.get_mut(&fence).filter(|_| in_session);
        if let Some(pids) = held.and_then(|held| held.stuck.take()) {
            self.say(Say::SlotStuck { fence, pids });
        }
    }

    /// A silence has come to a stage: it is looked into before it is told. What an earlier agent saw
    /// come is told as it is.
    fn silent(&mut self, fence: i64) {
        let held = self.attempts.get(&fence);
        let Some(told) = held.and_then(|held| held.silence.last()) else {
            return;
        };
        let silence = told.silence;
        if self.phase == Phase::Adopting || silence.stage == silence::Stage::Over {
            return self.tell_silence(fence);
        }
        self.effects.push(Effect::LookInto { fence, silence });
    }

    pub(super) fn looked_into(&mut self, fence: i64, silence: Silence, evidence: Evidence) {
        let held = self.attempts.get_mut(&fence);
        let told = held.and_then(|held| held.silence.last_mut());
        // Meanwhile it may have gone on, or be over.
        if let Some(told) = told.filter(|told| told.silence == silence) {
            let last_lines = std::mem::take(&mut told.evidence.last_lines);
            told.evidence = Evidence {
                last_lines,
                ..evidence
            };
            self.tell_silence(fence);
        }
    }

    /// Tells the newest silence; in every session again. Every stage of it, because an earlier one
    /// may have come while nobody could be told, and it is the first that wakes people.
    pub(super) fn tell_silence(&mut self, fence: i64) {
        let held = self.attempts.get(&fence);
        let stages = held.map(|held| held.silence.clone()).unwrap_or_default();
        for told in stages {
            let told = Box::new(told);
            self.say(Say::Silence { fence, told });
        }
    }

    fn freed(&mut self, fence: i64) {
        self.roster.freed(fence);
        // Told with the end where that waits.
        if self.may_tell_end(fence) {
            self.say(Say::SlotFreed(fence));
        }
        self.settle(fence);
    }

    /// Asks the shim that has an attempt, if there is one.
    pub(super) fn ask_about(&mut self, fence: i64, ask: impl FnOnce(i64) -> Ask) {
        let shim = self.attempts.get(&fence).and_then(|held| held.shim);
        let living = |shim: &ShimId| self.shims.get(shim).is_some_and(|known| !known.gone);
        if let Some(shim) = shim.filter(living) {
            let ask = ask(fence);
            self.effects.push(Effect::Ask { shim, ask });
        }
    }
}
