//! Shims: what `worker/src/shim` does with its journal and its one job at a time. What it enforces is
//! decided by the worker's core.

use std::collections::BTreeSet;
use std::time::Duration;

use qctl_worker_core::agent::{Ask, End, Ended, Fact, Started};
use qctl_worker_core::enforcement::{Action, Enforcement, Event, Limits};
use qctl_worker_core::roster::ShimId;
use qctl_worker_core::silence::Stages;

use super::agent::terms_of;
use super::network::Given;
use super::process::Exit;
use super::{Happening, World, tell};

/// Time that the coordinator has to commit a result before the shim makes it durable itself.
const PATIENCE: Duration = Duration::from_secs(1);

/// Something that an agent asks of a shim.
#[derive(Clone, Debug)]
pub(super) enum Request {
    /// Run this. The lease of an exclusive attempt ends then, by the machine's clock.
    Run {
        given: Box<Given>,
        lease_until: Option<Duration>,
        /// The run of the agent.
        agent: u64,
        leaps: u32,
    },
    /// As an agent that knows of so many leaps of the clocks.
    Ask(Ask, u32),
}

/// A shim with its segment, which outlives it.
#[derive(Debug, Default)]
pub(super) struct Shim {
    pub(super) alive: bool,
    /// It holds its segment's lock.
    pub(super) ready: bool,
    /// The segment.
    pub(super) records: Vec<(i64, Fact)>,
    /// Records that survive a power failure.
    pub(super) synced: usize,
    pub(super) running: Option<Running>,
    /// The newest connection.
    pub(super) links: u64,
    /// When the last request of it arrives: within a connection they keep their order.
    asked_at: Duration,
    /// The agent that is in charge.
    pub(super) agent: u64,
    /// Connections that broke.
    pub(super) lost: BTreeSet<u64>,
    seen: BTreeSet<i64>,
    retiring: bool,
    tick_at: Option<Duration>,
}

/// The attempt that a shim runs.
#[derive(Debug)]
pub(super) struct Running {
    fence: i64,
    enforcement: Enforcement,
    started_us: i64,
    /// Its end is recorded; processes of it are left.
    recorded: bool,
}

impl World {
    pub(super) fn spawn_shim(&mut self, machine: usize, shim: ShimId) {
        if !self.calm && self.random.chance(2) {
            return self.agent(machine, qctl_worker_core::agent::Event::SpawnFailed(shim));
        }
        let segment = Shim {
            alive: true,
            ..Shim::default()
        };
        self.machines[machine].shims.insert(shim, segment);
        let after = self.random.millis(1, 50);
        self.later(after, Happening::ShimReady(machine, shim));
    }

    pub(super) fn shim_ready(&mut self, machine: usize, shim: ShimId) {
        let Some(segment) = self.machines[machine].shims.get_mut(&shim) else {
            return;
        };
        if !segment.alive || segment.ready {
            return;
        }
        segment.ready = true;
        self.link(machine, shim);
        self.agent(machine, qctl_worker_core::agent::Event::Connected(shim));
        self.ring(machine, shim);
    }

    /// Sends a request over the newest connection of the agent.
    pub(super) fn ask_shim(&mut self, machine: usize, shim: ShimId, request: Request) {
        let link = self.machines[machine]
            .agent
            .as_ref()
            .and_then(|shell| shell.link(shim));
        let Some(link) = link else {
            return;
        };
        let delay = match !self.calm && self.random.chance(5) {
            true => self.random.millis(10, 4_000),
            false => self.random.millis(0, 3),
        };
        let now = self.now;
        let there = &mut self.machines[machine];
        if matches!(request, Request::Run { .. }) && std::mem::take(&mut there.leaps_amid) {
            self.leap(machine, Duration::ZERO);
            let is_lost = self.random.chance(50);
            if let Some(segment) = self.machines[machine].shims.get_mut(&shim)
                && is_lost
            {
                segment.lost.insert(link);
            }
            let after = self.random.millis(0, 2_000);
            self.later(after, Happening::Unlinked(machine, shim, link));
        }
        let Some(segment) = self.machines[machine].shims.get_mut(&shim) else {
            return;
        };
        segment.asked_at = segment.asked_at.max(now + delay);
        let at = segment.asked_at;
        self.at(at, Happening::Ask(machine, shim, link, request));
    }

    pub(super) fn shim_is_asked(
        &mut self,
        machine: usize,
        shim: ShimId,
        link: u64,
        request: Request,
    ) {
        let late = self.flips.late_run;
        let unconfirmed = self.flips.clock_leap;
        let leaped = self.machines[machine].leaps;
        let Some(segment) = self.machines[machine].shims.get_mut(&shim) else {
            return;
        };
        // What a broken connection carried is lost; what one carried whose agent is gone is not.
        if !segment.alive || segment.lost.contains(&link) {
            return;
        }
        match request {
            Request::Run { agent, .. } if agent != segment.agent && !late => {}
            Request::Run { given, leaps, .. }
                if given.exclusive && leaps != leaped && !unconfirmed =>
            {
                if segment.seen.insert(given.fence.0) {
                    let why = "the machine slept before it could start".to_owned();
                    self.record(machine, shim, vec![(given.fence.0, Fact::Void(why))]);
                }
            }
            Request::Run {
                given, lease_until, ..
            } => self.begin(machine, shim, &given, lease_until),
            Request::Ask(
                Ask::Stop {
                    fence,
                    cause,
                    grace,
                    ..
                },
                _,
            ) => self.enforce(machine, shim, fence, Event::Stop { cause, grace }),
            Request::Ask(Ask::SetPaused { fence, paused }, _) => {
                self.enforce(machine, shim, fence, Event::SetPaused(paused));
            }
            // A renewal from before a leap says nothing.
            Request::Ask(Ask::Lease { fence, until }, leaps) if leaps == leaped || unconfirmed => {
                let clock = self.machines[machine].clock(self.now);
                let holds_for = until.saturating_sub(clock);
                self.enforce(machine, shim, fence, Event::LeaseRenewed(holds_for));
            }
            Request::Ask(Ask::Retire, _) => {
                segment.retiring = true;
                self.retire_if_idle(machine, shim);
            }
            #[allow(unreachable_patterns)]
            Request::Ask(_, _) => {}
        }
    }

    fn begin(
        &mut self,
        machine: usize,
        shim: ShimId,
        given: &Given,
        lease_until: Option<Duration>,
    ) {
        let fence = given.fence.0;
        let (now, wall_us) = (
            self.now,
            self.wall(chrono::TimeDelta::zero()).timestamp_micros(),
        );
        let fault = match self.calm {
            true => 100,
            false => self.random.below(100),
        };
        let there = &mut self.machines[machine];
        let clock = there.clock(now);
        let Some(segment) = there.shims.get_mut(&shim) else {
            return;
        };
        if !segment.seen.insert(fence) {
            return;
        }
        let lease = lease_until.map(|until| until.saturating_sub(clock));
        let refusal = if segment.running.is_some() || segment.retiring {
            Some("the shim takes no more")
        } else if lease == Some(Duration::ZERO) {
            Some("its lease was over, or it was taken back, before it could start")
        } else {
            None
        };
        if let Some(why) = refusal {
            return self.record(machine, shim, vec![(fence, Fact::Void(why.to_owned()))]);
        }
        if given.exclusive && lease.is_none() {
            self.breaks(|| format!("exclusive fence {fence} starts without a lease"));
        }
        self.record(
            machine,
            shim,
            vec![
                (fence, Fact::Assigned(Box::new(terms_of(given)))),
                (
                    fence,
                    Fact::Starting {
                        checkpoint_dir: String::new(),
                        wall_us,
                    },
                ),
            ],
        );
        match fault {
            0 => return self.shim_dies(machine, shim),
            1 => {
                let ended = Ended {
                    message: "its program cannot be run".to_owned(),
                    ..Ended::of(End::CannotStart)
                };
                let facts = vec![(fence, Fact::Ended(Box::new(ended))), (fence, Fact::Freed)];
                self.record(machine, shim, facts);
                return self.durable_soon(machine, shim);
            }
            _ => {}
        }
        self.start_tree(machine, shim, given);
        if fault == 2 {
            return self.shim_dies(machine, shim);
        }
        let limits = Limits {
            time_limit: given.time_limit,
            warn_before: None,
            grace: given.grace,
            lease,
            silence: Stages::default(),
        };
        if let Some(segment) = self.machines[machine].shims.get_mut(&shim) {
            segment.running = Some(Running {
                fence,
                enforcement: Enforcement::start(clock, limits),
                started_us: wall_us,
                recorded: false,
            });
        }
        let started = Started {
            pid: i32::try_from(fence).unwrap_or(1),
            start_ticks: 0,
            wall_us,
            not_enforced: Vec::new(),
        };
        self.record(machine, shim, vec![(fence, Fact::Started(started))]);
        self.plan_shim_tick(machine, shim);
        if self.random.chance(30) {
            self.durable_soon(machine, shim);
        }
    }

    /// Writes facts into the segment and rings.
    fn record(&mut self, machine: usize, shim: ShimId, facts: Vec<(i64, Fact)>) {
        tell!(self, "m{machine} shim {shim} records {facts:?}");
        if let Some(segment) = self.machines[machine].shims.get_mut(&shim) {
            segment.records.extend(facts);
        }
        self.ring(machine, shim);
    }

    pub(super) fn ring(&mut self, machine: usize, shim: ShimId) {
        let there = &self.machines[machine];
        let run = there.runs;
        let Some(segment) = there.shims.get(&shim) else {
            return;
        };
        if there.agent.is_none() || !segment.ready {
            return;
        }
        let idle = segment.running.is_none() && !segment.retiring;
        let retiring = segment.retiring;
        let delay = match !self.calm && self.random.chance(5) {
            true => self.random.millis(5, 1_000),
            false => self.random.millis(0, 2),
        };
        self.later(delay, Happening::Bell(machine, run, shim, idle, retiring));
    }

    fn durable_soon(&mut self, machine: usize, shim: ShimId) {
        let length = self.machines[machine]
            .shims
            .get(&shim)
            .map_or(0, |segment| segment.records.len());
        self.later(PATIENCE, Happening::Synced(machine, shim, length));
    }

    pub(super) fn synced(&mut self, machine: usize, shim: ShimId, length: usize) {
        if let Some(segment) = self.machines[machine].shims.get_mut(&shim)
            && segment.alive
        {
            segment.synced = segment.synced.max(length.min(segment.records.len()));
        }
    }

    /// Tells the enforcement of an attempt what happened, and does what it wants.
    fn enforce(&mut self, machine: usize, shim: ShimId, fence: i64, event: Event) {
        let now = self.now;
        let there = &mut self.machines[machine];
        let clock = there.clock(now);
        let running = there
            .shims
            .get_mut(&shim)
            .and_then(|segment| segment.running.as_mut())
            .filter(|running| running.fence == fence);
        let Some(running) = running else { return };
        let actions = running.enforcement.apply(clock, event);
        let killing = running.enforcement.is_killing();
        for action in actions {
            match action {
                Action::RecordStopping(cause) => {
                    self.record(machine, shim, vec![(fence, Fact::Stopping(cause))]);
                }
                Action::RecordPaused(paused) => {
                    self.record(machine, shim, vec![(fence, Fact::Paused(paused))]);
                }
                Action::Terminate => self.signal_tree(machine, fence),
                Action::Freeze => {
                    self.freeze_tree(machine, fence, true);
                    self.enforce(machine, shim, fence, Event::Frozen { whole: true });
                }
                Action::Thaw => self.freeze_tree(machine, fence, false),
                Action::Kill => self.kill_tree(machine, fence),
                #[allow(unreachable_patterns)]
                _ => {}
            }
        }
        if !killing {
            self.plan_shim_tick(machine, shim);
        }
    }

    fn plan_shim_tick(&mut self, machine: usize, shim: ShimId) {
        let now = self.now;
        let there = &mut self.machines[machine];
        let deadline = there
            .shims
            .get(&shim)
            .and_then(|segment| segment.running.as_ref())
            .and_then(|running| running.enforcement.deadline());
        let Some(deadline) = deadline else { return };
        let at = there.when(deadline).max(now + Duration::from_millis(1));
        let Some(segment) = there.shims.get_mut(&shim) else {
            return;
        };
        if segment
            .tick_at
            .is_none_or(|known| known > at || known <= now)
        {
            segment.tick_at = Some(at);
            self.at(at, Happening::ShimTick(machine, shim));
        }
    }

    pub(super) fn shim_ticks(&mut self, machine: usize, shim: ShimId) {
        let there = &mut self.machines[machine];
        let Some(segment) = there.shims.get_mut(&shim).filter(|segment| segment.alive) else {
            return;
        };
        segment.tick_at = None;
        let fence = segment.running.as_ref().map(|running| running.fence);
        if let Some(fence) = fence {
            self.enforce(machine, shim, fence, Event::Tick);
        }
        self.plan_shim_tick(machine, shim);
    }

    pub(super) fn shim_leaps(&mut self, machine: usize, shim: ShimId) {
        let leased = self.machines[machine]
            .shims
            .get(&shim)
            .filter(|segment| segment.alive)
            .and_then(|segment| segment.running.as_ref())
            .filter(|running| running.enforcement.minds_clocks())
            .map(|running| running.fence);
        if let Some(fence) = leased {
            self.enforce(machine, shim, fence, Event::ClockJumped);
        }
    }

    /// The first process of an attempt has ended, and its shim waited for it.
    pub(super) fn main_ended(
        &mut self,
        machine: usize,
        shim: ShimId,
        fence: i64,
        exit: Exit,
        output: u64,
        survivors: bool,
    ) {
        let wall_us = self.wall(chrono::TimeDelta::zero()).timestamp_micros();
        let checkpoint = self.checkpoint_folder(machine, fence);
        let now = self.now;
        let there = &mut self.machines[machine];
        let clock = there.clock(now);
        let Some(segment) = there.shims.get_mut(&shim).filter(|segment| segment.alive) else {
            return;
        };
        let Some(running) = segment
            .running
            .as_mut()
            .filter(|running| running.fence == fence && !running.recorded)
        else {
            return;
        };
        running.recorded = true;
        let (exit_code, signal) = match exit {
            Exit::Code(code) => (Some(code), None),
            Exit::Signal(signal) => (None, Some(signal)),
        };
        let ended = Ended {
            exit_code,
            signal,
            stop_cause: running.enforcement.cause(),
            started_us: Some(running.started_us),
            ended_us: Some(wall_us),
            duration: Some(running.enforcement.ran(clock)),
            log_end: output,
            checkpoint,
            pid: i32::try_from(fence).unwrap_or(1),
            ..Ended::of(End::Waited)
        };
        let mut facts = vec![(fence, Fact::Ended(Box::new(ended)))];
        if !survivors {
            segment.running = None;
            facts.push((fence, Fact::Freed));
        }
        self.record(machine, shim, facts);
        self.durable_soon(machine, shim);
        match survivors {
            true => self.enforce(machine, shim, fence, Event::Exited { survivors }),
            false => self.retire_if_idle(machine, shim),
        }
    }

    /// No process of an attempt is left.
    pub(super) fn tree_ended(&mut self, machine: usize, shim: ShimId, fence: i64) {
        let Some(segment) = self.machines[machine].shims.get_mut(&shim) else {
            return;
        };
        let ours = segment
            .running
            .as_ref()
            .is_some_and(|running| running.fence == fence && running.recorded);
        if segment.alive && ours {
            segment.running = None;
            self.record(machine, shim, vec![(fence, Fact::Freed)]);
            self.retire_if_idle(machine, shim);
        }
    }

    fn retire_if_idle(&mut self, machine: usize, shim: ShimId) {
        let there = &mut self.machines[machine];
        let run = there.runs;
        let Some(segment) = there.shims.get_mut(&shim) else {
            return;
        };
        if segment.alive && segment.retiring && segment.running.is_none() {
            segment.alive = false;
            let delay = self.random.millis(0, 20);
            self.later(delay, Happening::Gone(machine, run, shim));
        }
    }

    /// A shim is killed: its job's first process dies with it, others do not.
    pub(super) fn shim_dies(&mut self, machine: usize, shim: ShimId) {
        let there = &mut self.machines[machine];
        let run = there.runs;
        let Some(segment) = there.shims.get_mut(&shim).filter(|segment| segment.alive) else {
            return;
        };
        segment.alive = false;
        segment.running = None;
        tell!(self, "m{machine} shim {shim} is killed");
        self.orphan_trees(machine, shim);
        let delay = self.random.millis(0, 500);
        self.later(delay, Happening::Gone(machine, run, shim));
    }
}
