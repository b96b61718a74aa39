//! The agent: which attempts it holds, which shims it has, what the coordinator knows, and what to
//! do next. It is told what happens as [`Event`]s and answers with [`Effect`]s; it has no clock and
//! does nothing itself.
//!
//! To drive it: make one with [`Agent::new`]; for each segment that an earlier agent left tell
//! [`Event::Found`], its facts, and [`Event::Adopted`]; then [`Event::Began`]. From then on call
//! [`Agent::step`] with whatever happens, carry out the effects in order, and call it with
//! [`Event::Tick`] no later than [`Agent::deadline`]. `now` is the time since any fixed moment by a
//! clock that never jumps; it must be the same clock for every call, and leases are told by it.
//!
//! Nothing that the agent knows outlives it, and nothing needs to: a new one finds the same in the
//! segments and in the coordinator's answer to its greeting. It may be dropped between any two
//! steps, and between any two effects of a step.
//!
//! `coordinator` is the side towards the coordinator, `shims` the side towards shims, `attempt` what
//! is known of one attempt.

mod attempt;
mod checkpoints;
mod coordinator;
mod gpus;
mod message;
mod shims;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use attempt::{End, Ended, Fact, Loss, Started, Terms};
pub use message::{Ask, Assignment, Close, Effect, Event, Holding, Judged, Say, Welcome};

use crate::checkpoint::CheckpointId;
use crate::gpu::GpuHealth;
use crate::lease_guard;
use crate::roster::{self, Roster, ShimId};
use crate::session::Stage;
use attempt::{Held, Stop};
use checkpoints::Unanswered;
use coordinator::Session;

/// Silence after which a coordinator gives attempts away, until it says how long it waits.
pub const LOST_AFTER: Duration = Duration::from_secs(30 * 60);

/// Time between heartbeats, until the coordinator says another.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// Shortest time between heartbeats, whatever the coordinator says.
pub const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(100);

/// A settled attempt's record is kept this long: a coordinator that crashes may ask again for what
/// it had acknowledged but not yet made durable.
pub const SETTLED_FOR: Duration = Duration::from_secs(30);

/// Time between two looks at what can be forgotten.
const HOUSEKEEPING: Duration = Duration::from_secs(2);

/// Time between two looks for old checkpoints.
const REMOVE_OLD: Duration = Duration::from_secs(6 * 60 * 60);

/// The agent.
#[derive(Debug)]
pub struct Agent {
    boot_id: String,
    spool_id: String,
    now: Duration,
    /// The highest leadership term seen.
    term: i64,
    phase: Phase,
    roster: Roster,
    attempts: BTreeMap<i64, Held>,
    /// What was given back after the greeting that names it, and how to tell: the answer to that
    /// greeting may say to go on.
    given_back: BTreeMap<i64, Say>,
    shims: BTreeMap<ShimId, Shim>,
    /// Published checkpoints that the coordinator has not answered for.
    checkpoints: BTreeMap<CheckpointId, Unanswered>,
    /// Which GPUs work.
    gpus: GpuHealth,
    /// Attempts that wait for a probe of their GPUs which has not begun.
    unprobed: BTreeSet<i64>,
    session: Option<Session>,
    /// A greeting was sent and not answered: the coordinator may be taking back what waits.
    greeting: bool,
    /// When the last answered heartbeat or greeting was sent, unless a clock has jumped since.
    answered: Option<Duration>,
    /// When a clock jumped last. What was sent before proves nothing about the time since.
    jumped_at: Option<Duration>,
    lost_after: Duration,
    spawn_failures: u32,
    spawn_after: Duration,
    housekeep_at: Duration,
    remove_old_at: Duration,
    /// What the current step wants done.
    effects: Vec<Effect>,
}

/// What the agent is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Finding out what an earlier agent left.
    Adopting,
    Working,
    /// Nothing is started any more.
    Ending,
}

/// A shim that lives, or whose segment still matters.
#[derive(Debug, Default)]
struct Shim {
    /// Its segment belongs to this agent.
    gone: bool,
    /// It has been ready once.
    ready: bool,
    /// It was asked to exit.
    retiring: bool,
    /// Its attempts of which the coordinator may still want something.
    attempts: BTreeSet<i64>,
}

impl Agent {
    /// The agent of the worker that owns a spool, in a boot of its machine, with so many slots until
    /// the coordinator says another number. `term` is the highest leadership term that any agent of
    /// this worker has seen; 0 when none was.
    pub fn new(boot_id: String, spool_id: String, term: i64, slots: u32, now: Duration) -> Self {
        Self {
            boot_id,
            spool_id,
            now,
            term,
            phase: Phase::Adopting,
            roster: Roster::new(slots, 1),
            attempts: BTreeMap::new(),
            given_back: BTreeMap::new(),
            shims: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            gpus: GpuHealth::default(),
            unprobed: BTreeSet::new(),
            session: None,
            greeting: false,
            answered: None,
            jumped_at: None,
            lost_after: LOST_AFTER,
            spawn_failures: 0,
            spawn_after: now,
            housekeep_at: now,
            remove_old_at: now,
            effects: Vec::new(),
        }
    }

    /// Takes what happened at `now` and says what to do, in order.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        self.now = now;
        match event {
            Event::Found(shim) => self.found(shim),
            Event::Adopted { shim, lives } => self.adopted(shim, lives),
            Event::Began => self.phase = Phase::Working,
            Event::Greeting => self.greet(),
            Event::Welcomed(welcome) => self.welcomed(welcome),
            Event::Answered { sequence, term } => self.answered(sequence, term),
            Event::Assign(assignment) => self.assign(assignment),
            Event::Revoke(fence) => self.revoke(fence),
            Event::Stop {
                fence,
                cause,
                grace,
            } => self.stop(
                fence,
                Stop {
                    cause,
                    grace,
                    gpu: None,
                },
            ),
            Event::SetPaused { fence, paused } => self.set_paused(fence, paused),
            Event::Committed(fence) => self.committed(fence),
            Event::SetSlots(slots) => self.roster.set_slots(slots),
            Event::Closed => self.session = None,
            Event::Facts { shim, facts } => self.facts(shim, facts),
            Event::Connected(shim) => self.connected(shim),
            Event::Idle(shim) => self.idle(shim),
            Event::Retiring(shim) => self.roster.retiring(shim),
            Event::Gone(shim) => self.gone(shim, true),
            Event::SpawnFailed(shim) => self.spawn_failed(shim),
            Event::Prepared(fence) => self.prepared(fence),
            Event::Unprepared { fence, reason } => self.unprepared(fence, reason),
            Event::Published(found) => self.published(found),
            Event::Looked(fence) => self.looked(fence),
            Event::CheckpointAnswered { id, answer } => self.checkpoint_answered(id, answer),
            Event::RemoveCheckpoints(jobs) => {
                jobs.into_iter()
                    .for_each(|job| self.remove_checkpoints(job));
            }
            Event::GpuFailed(fault) => self.gpu_failed(&fault),
            Event::GpusSeen(gpus) => self.gpus.seen(&gpus, now),
            Event::Probed {
                fence,
                gpus,
                computed,
            } => self.probed(fence, gpus, computed),
            Event::GpuUnused { fence, fault } => self.gpu_unused(fence, fault),
            Event::Stored(fence) => self.stored(fence),
            Event::LookedInto {
                fence,
                silence,
                evidence,
            } => self.looked_into(fence, silence, *evidence),
            Event::Works(fence) => self.ask_about(fence, Ask::Activity),
            Event::ClockJumped => self.clock_jumped(),
            Event::Tick => self.tick(),
            Event::Ending => self.end(),
        }
        self.probe();
        self.plan();
        std::mem::take(&mut self.effects)
    }

    /// When [`Event::Tick`] has something to do next. In the past or now: at once.
    pub fn deadline(&self) -> Duration {
        let heartbeat = self.session.as_ref().map(|session| session.heartbeat_at);
        let spawn = Some(self.spawn_after).filter(|after| *after > self.now);
        let is_working = self.phase == Phase::Working;
        let probe = self.gpus.deadline().filter(|_| is_working);
        [heartbeat, spawn, probe]
            .into_iter()
            .flatten()
            .fold(self.housekeep_at, Duration::min)
    }

    /// How far an attempt has come here; `None` when it is not held.
    pub fn stage(&self, fence: i64) -> Option<Stage> {
        self.attempts.get(&fence).map(Held::stage)
    }

    /// Slots that are taken.
    pub fn taken(&self) -> u32 {
        self.roster.taken()
    }

    /// True while there is a session in which everything has been agreed.
    pub fn in_session(&self) -> bool {
        self.session.is_some()
    }

    /// Gives out what can start, and keeps as many shims ready as there is use for.
    fn plan(&mut self) {
        if self.phase != Phase::Working {
            return;
        }
        let may_start = !self.greeting && lease_guard::may_start(self.now, self.answered);
        for effect in self.roster.plan(may_start, self.now >= self.spawn_after) {
            match effect {
                roster::Effect::Run { shim, fence } => self.run(shim, fence),
                roster::Effect::Spawn { shim } => {
                    self.shims.insert(shim, Shim::default());
                    self.effects.push(Effect::Spawn(shim));
                }
                roster::Effect::Retire { shim } => self.retire(shim),
            }
        }
    }

    fn tick(&mut self) {
        self.beat();
        if self.now < self.housekeep_at {
            return;
        }
        self.housekeep_at = self.now.saturating_add(HOUSEKEEPING);
        let over = |held: &Held| {
            held.settled_at
                .is_some_and(|at| self.now.saturating_sub(at) >= SETTLED_FOR)
        };
        let settled = self.attempts.iter().filter(|(_, held)| over(held));
        let settled: Vec<_> = settled.map(|(fence, _)| *fence).collect();
        settled.into_iter().for_each(|fence| self.forget(fence));
        if self.phase == Phase::Working && self.now >= self.remove_old_at {
            self.remove_old_at = self.now.saturating_add(REMOVE_OLD);
            let jobs = self.attempts.values().map(|held| held.terms.job_id);
            self.effects.push(Effect::RemoveOld(jobs.collect()));
        }
    }

    /// Sends the shims home that have no job, so that a worker that is stopped leaves nothing behind
    /// but jobs.
    fn end(&mut self) {
        self.phase = Phase::Ending;
        let idle = |shim: &ShimId| self.roster.attempt_of(*shim).is_none();
        let living = self.shims.iter().filter(|(_, known)| !known.gone);
        let idle: Vec<_> = living.map(|(shim, _)| *shim).filter(idle).collect();
        for shim in idle {
            if let Some(known) = self.shims.get_mut(&shim) {
                known.ready = true;
            }
            self.retire(shim);
        }
    }

    /// Notes when nothing is owed any more.
    fn settle(&mut self, fence: i64) {
        if let Some(held) = self.attempts.get_mut(&fence)
            && held.settled()
            && held.settled_at.is_none()
        {
            held.settled_at = Some(self.now);
            if held.leaves_nothing_to_look_at() {
                self.effects.push(Effect::RemoveLeftovers {
                    job_id: held.terms.job_id,
                    attempt: held.terms.attempt,
                });
            }
        }
    }

    fn stored(&mut self, fence: i64) {
        if let Some(held) = self.attempts.get_mut(&fence) {
            held.log_stored = u64::MAX;
            self.settle(fence);
        }
    }

    fn forget(&mut self, fence: i64) {
        self.effects.push(Effect::ForgetLog(fence));
        let shim = self.attempts.remove(&fence).and_then(|held| held.shim);
        if let Some(shim) = shim {
            if let Some(known) = self.shims.get_mut(&shim) {
                known.attempts.remove(&fence);
            }
            self.remove_if_unused(shim);
        }
    }
}
