//! The agent's shell: feeds the worker's core with what happens and carries out what it wants.

use std::collections::BTreeMap;
use std::time::Duration;

use qctl_server_core::ledger::{EndedReport, Message, What};
use qctl_server_core::reconcile::{Action, Held};
use qctl_server_core::{AttemptState, Facts, Fence};
use qctl_worker_core::agent::{
    Agent, Assignment, Effect, Ended, Event, Fact, Holding, Judged, Loss, Say, Terms,
    Welcome as Welcomed,
};
use qctl_worker_core::checkpoint::{CheckpointId, Published};
use qctl_worker_core::gpu::{Depth, Fault, FaultKind};
use qctl_worker_core::roster::ShimId;
use qctl_worker_core::session::{Stage, Verdict, redial_delay};

use super::checkpoints::{answer_of, told_of};
use super::network::{Down, Given, Hello, Up};
use super::shim::Request;
use super::words::{cause_from, cause_of, end_from};
use super::{Happening, World, tell};

/// How long the coordinator may take to answer the greeting.
const GREETING_WITHIN: Duration = Duration::from_secs(20);
/// Most output in one chunk.
const CHUNK: u64 = 100;

/// One run of an agent.
#[derive(Debug)]
pub(super) struct Shell {
    core: Agent,
    /// The connection, from the greeting on.
    pub(super) connection: Option<u32>,
    greeted_at: Duration,
    failures: u32,
    dialling: bool,
    /// When the next tick is scheduled.
    tick_at: Option<Duration>,
    /// How far each segment was read.
    read: BTreeMap<ShimId, usize>,
    /// Connections to shims.
    links: BTreeMap<ShimId, u64>,
    /// What waiting attempts are to run.
    assignments: BTreeMap<i64, Given>,
    logs: BTreeMap<i64, Log>,
    /// Leaps of the machine's clocks that it knows of.
    leaps: u32,
}

/// Output of an attempt on its way to the coordinator.
#[derive(Clone, Copy, Debug, Default)]
struct Log {
    end: u64,
    stored: u64,
    complete: bool,
    under_way: bool,
    /// The coordinator asked for it in this session, or the attempt began in it.
    wanted: bool,
}

impl World {
    pub(super) fn agent_starts(&mut self, machine: usize) {
        let now = self.now;
        let there = &mut self.machines[machine];
        if !there.up || there.agent.is_some() {
            return;
        }
        there.runs += 1;
        let clock = there.clock(now);
        let core = Agent::new(
            there.boot_id.clone(),
            there.spool_id.to_string(),
            there.term,
            there.slots.max(1) as u32,
            clock,
        );
        there.agent = Some(Shell {
            core,
            connection: None,
            greeted_at: Duration::ZERO,
            failures: 0,
            dialling: true,
            tick_at: None,
            read: BTreeMap::new(),
            links: BTreeMap::new(),
            assignments: BTreeMap::new(),
            logs: BTreeMap::new(),
            leaps: there.leaps,
        });
        let run = there.runs;
        tell!(self, "the agent of m{machine} starts, run {run}");
        let found: Vec<ShimId> = self.machines[machine].shims.keys().copied().collect();
        for shim in found {
            self.adopt(machine, shim);
        }
        self.looks_for_checkpoints(machine, None);
        self.agent(machine, Event::Began);
        let after = self.random.millis(0, 500);
        self.later(after, Happening::Dial(machine, run));
    }

    fn adopt(&mut self, machine: usize, shim: ShimId) {
        let Some(segment) = self.machines[machine].shims.get_mut(&shim) else {
            return;
        };
        // One that has not taken its lock yet finds that the segment belongs to somebody.
        segment.alive &= segment.ready;
        let lives = segment.alive;
        self.agent(machine, Event::Found(shim));
        if lives {
            self.link(machine, shim);
        }
        self.read_on(machine, shim);
        self.agent(machine, Event::Adopted { shim, lives });
        if lives {
            self.agent(machine, Event::Connected(shim));
            self.ring(machine, shim);
        }
    }

    /// Connects to a shim. An assignment that an earlier agent sent is refused from now on.
    pub(super) fn link(&mut self, machine: usize, shim: ShimId) {
        let there = &mut self.machines[machine];
        let Some(segment) = there.shims.get_mut(&shim) else {
            return;
        };
        segment.links += 1;
        segment.agent = there.runs;
        if let Some(shell) = &mut there.agent {
            shell.links.insert(shim, segment.links);
        }
    }

    /// The agent is killed. Nothing it knew remains but what is in segments.
    pub(super) fn agent_dies(&mut self, machine: usize) {
        if self.machines[machine].agent.take().is_none() {
            return;
        }
        tell!(self, "the agent of m{machine} dies");
        self.agent_of_connection_died(machine);
        let there = &mut self.machines[machine];
        there.runs += 1;
        there.dies_after = None;
        // A shim that has not taken its segment's lock yet may do so before anyone else.
        let after = match self.random.chance(25) {
            true => self.random.seconds(30, 500),
            false => self.random.millis(100, 8_000),
        };
        self.later(after, Happening::AgentStarts(machine));
    }

    /// Tells the core what happened, and carries out what it wants.
    pub(super) fn agent(&mut self, machine: usize, event: Event) {
        let now = self.now;
        let there = &mut self.machines[machine];
        let clock = there.clock(now);
        let Some(shell) = &mut there.agent else {
            return;
        };
        let run = there.runs;
        let effects = shell.core.step(event, clock);
        for effect in effects {
            if self.machines[machine].runs != run || self.machines[machine].agent.is_none() {
                return;
            }
            let there = &mut self.machines[machine];
            if let Some(left) = &mut there.dies_after {
                if *left == 0 {
                    return self.agent_dies(machine);
                }
                *left -= 1;
            }
            self.effect(machine, run, effect);
        }
        let there = &mut self.machines[machine];
        let Some(shell) = &mut there.agent else {
            return;
        };
        let deadline = shell.core.deadline();
        let at = now + deadline.saturating_sub(clock).max(Duration::from_millis(1));
        if shell.tick_at.is_none_or(|known| known > at || known <= now) {
            shell.tick_at = Some(at);
            self.at(at, Happening::Tick(machine, run));
        }
    }

    pub(super) fn agent_ticks(&mut self, machine: usize, run: u64) {
        if !self.is_run(machine, run) {
            return;
        }
        if let Some(shell) = &mut self.machines[machine].agent {
            if shell.tick_at.is_some_and(|at| at > self.now) {
                return;
            }
            shell.tick_at = None;
        }
        self.agent(machine, Event::Tick);
    }

    pub(super) fn is_run(&self, machine: usize, run: u64) -> bool {
        let there = &self.machines[machine];
        there.up && there.runs == run && there.agent.is_some()
    }

    fn effect(&mut self, machine: usize, run: u64, effect: Effect) {
        match effect {
            Effect::Greet { held, checkpoints } => {
                self.send_hello(machine, run, &held, &checkpoints);
            }
            Effect::RememberTerm(term) => self.machines[machine].term = term,
            Effect::Say(say) => self.says(machine, say),
            Effect::Close(why) => {
                tell!(self, "the agent of m{machine} closes its session: {why}");
                self.hang_up(machine);
            }
            Effect::Prepare(fence) => {
                let after = self.random.millis(0, 2_000);
                self.later(after, Happening::Prepared(machine, run, fence));
            }
            Effect::Discard(fence) => {
                if let Some(shell) = &mut self.machines[machine].agent {
                    shell.assignments.remove(&fence);
                }
            }
            Effect::Spawn(shim) => self.spawn_shim(machine, shim),
            Effect::Probe { fence, gpus, depth } => {
                if depth == Depth::Whole {
                    self.computes(machine, run, &gpus);
                }
                let after = self.random.millis(0, 1_500);
                self.later(after, Happening::Probed(machine, run, fence, gpus));
            }
            // Shims here are told of no silence to enforce.
            Effect::LookInto { .. }
            | Effect::PauseSpawning { .. }
            | Effect::RemoveLeftovers { .. }
            | Effect::RemoveOld(_) => {}
            Effect::LookForCheckpoints { fence, ended, .. } => {
                let after = self.random.millis(0, 300);
                self.later(after, Happening::Looked(machine, run, fence, ended));
            }
            Effect::CheckpointAnswered { published, answer } => {
                self.checkpoint_is_answered(machine, &published, answer);
            }
            Effect::RemoveCheckpoints(job) => self.remove_checkpoints(machine, job),
            Effect::Run {
                shim,
                fence,
                lease_until,
            } => {
                let shell = self.machines[machine].agent.as_ref();
                let leaps = shell.map_or(0, |shell| shell.leaps);
                let given = shell.and_then(|shell| shell.assignments.get(&fence).cloned());
                if let Some(given) = given {
                    let run = Request::Run {
                        given: Box::new(given),
                        lease_until,
                        agent: run,
                        leaps,
                    };
                    self.ask_shim(machine, shim, run);
                }
            }
            Effect::Ask { shim, ask } => {
                let shell = self.machines[machine].agent.as_ref();
                let leaps = shell.map_or(0, |shell| shell.leaps);
                self.ask_shim(machine, shim, Request::Ask(ask, leaps));
            }
            Effect::Conclude { shim, losses, .. } => {
                let after = self.random.millis(1, 1_500);
                self.later(after, Happening::Sweep(machine, run, shim, losses));
            }
            Effect::RemoveSegment(shim) => {
                let there = &mut self.machines[machine];
                if let Some(shell) = &mut there.agent {
                    shell.read.remove(&shim);
                    shell.links.remove(&shim);
                }
                if let Some(removed) = there.shims.remove(&shim) {
                    self.segment_removed(machine, &removed);
                }
            }
            Effect::ResumeLog { fence, stored } => {
                if let Some(shell) = &mut self.machines[machine].agent {
                    let log = shell.logs.entry(fence).or_default();
                    log.stored = stored;
                    log.wanted = true;
                    log.under_way = false;
                }
                self.send_output(machine, fence);
            }
            Effect::ForgetLog(fence) => {
                if let Some(shell) = &mut self.machines[machine].agent {
                    shell.logs.remove(&fence);
                }
            }
        }
    }

    pub(super) fn dial(&mut self, machine: usize, run: u64) {
        if !self.is_run(machine, run) {
            return;
        }
        let up: Vec<usize> = (0..self.coordinators.len())
            .filter(|index| self.coordinators[*index].up)
            .collect();
        let leading: Vec<usize> = up
            .iter()
            .copied()
            .filter(|index| self.coordinators[*index].lead.is_some())
            .collect();
        // A standby says who leads; now and then somebody is asked who does not know.
        let whom = match self.random.chance(90) {
            true => self.random.pick(&leading),
            false => self.random.pick(&up),
        };
        let there = &mut self.machines[machine];
        let connected = there.cut_until <= self.now;
        let Some(shell) = &mut there.agent else {
            return;
        };
        shell.dialling = false;
        let Some(whom) = whom.filter(|_| connected) else {
            return self.redial(machine);
        };
        let connection = self.connect(machine, whom);
        if let Some(shell) = &mut self.machines[machine].agent {
            shell.connection = Some(connection);
        }
        self.agent(machine, Event::Greeting);
        self.later(
            GREETING_WITHIN,
            Happening::NoWelcome(machine, run, connection),
        );
    }

    fn send_hello(
        &mut self,
        machine: usize,
        run: u64,
        holdings: &[Holding],
        checkpoints: &[Published],
    ) {
        let held = holdings
            .iter()
            .map(|holding| Held {
                fence: Fence(holding.fence),
                state: match holding.stage {
                    Stage::Waiting => AttemptState::Assigned,
                    Stage::Running => AttemptState::Running,
                    Stage::Ended => AttemptState::Ended,
                },
                slot_held: holding.slot_held,
            })
            .collect();
        let now = self.now;
        let there = &mut self.machines[machine];
        there.greetings += 1;
        let hello = Hello {
            boot_id: there.boot_id.clone(),
            spool_id: there.spool_id,
            greeting: there.greetings,
            held,
            checkpoints: checkpoints.iter().map(told_of).collect(),
        };
        let clock = there.clock(now);
        let Some(shell) = &mut there.agent else {
            return;
        };
        shell.greeted_at = clock;
        if let Some(connection) = shell.connection {
            tell!(self, "m{machine} says hello in run {run}: {:?}", hello.held);
            self.send_up(connection, Up::Hello(hello));
        }
    }

    pub(super) fn no_welcome(&mut self, machine: usize, run: u64, connection: u32) {
        let waits = self.machines[machine]
            .agent
            .as_ref()
            .is_some_and(|shell| shell.connection == Some(connection) && !shell.core.in_session());
        if self.is_run(machine, run) && waits {
            self.hang_up(machine);
        }
    }

    /// Gives the connection up, and dials again after a while.
    fn hang_up(&mut self, machine: usize) {
        let Some(shell) = &mut self.machines[machine].agent else {
            return;
        };
        if let Some(connection) = shell.connection.take() {
            self.agent_closes(connection);
        }
        self.agent(machine, Event::Closed);
        self.redial(machine);
    }

    fn redial(&mut self, machine: usize) {
        let random = self.random.unit();
        let there = &mut self.machines[machine];
        let run = there.runs;
        let Some(shell) = &mut there.agent else {
            return;
        };
        if shell.dialling {
            return;
        }
        shell.dialling = true;
        let delay = redial_delay(shell.failures, random);
        shell.failures += 1;
        self.later(delay, Happening::Dial(machine, run));
    }

    /// The connection is gone, closed by the other side or broken.
    pub(super) fn session_is_over(&mut self, machine: usize, connection: u32) {
        let ours = self.machines[machine]
            .agent
            .as_ref()
            .is_some_and(|shell| shell.connection == Some(connection));
        if ours {
            self.hang_up(machine);
        }
    }

    pub(super) fn agent_hears(&mut self, machine: usize, connection: u32, message: Down) {
        let Some(shell) = &mut self.machines[machine].agent else {
            return;
        };
        if shell.connection != Some(connection) {
            return;
        }
        match message {
            Down::Welcome(welcome) => {
                shell.failures = 0;
                let verdicts = welcome
                    .verdicts
                    .iter()
                    .map(|answer| Judged {
                        fence: answer.fence.0,
                        verdict: match answer.action {
                            Action::Continue => Verdict::Continue,
                            Action::Stop => Verdict::Stop,
                            Action::SendResult => Verdict::SendResult,
                            Action::Forget => Verdict::Forget,
                        },
                        log_stored: answer.log_stored.max(0) as u64,
                    })
                    .collect();
                let welcomed = Welcomed {
                    term: welcome.term,
                    greeted_at: shell.greeted_at,
                    slots: welcome.slots.max(1) as u32,
                    heartbeat_interval: Some(self.settings.heartbeat),
                    lost_after: Some(self.settings.lost_after),
                    verdicts,
                };
                self.agent(machine, Event::Welcomed(welcomed));
            }
            Down::Ack(sequence, term) => {
                self.agent(machine, Event::Answered { sequence, term });
            }
            Down::Assign(givens) => {
                for given in givens {
                    self.given(machine, given);
                }
            }
            Down::About(message) => {
                let event = match message {
                    Message::CheckpointAnswered { id, answer } => Event::CheckpointAnswered {
                        id: CheckpointId {
                            fence: id.fence.0,
                            number: id.number,
                        },
                        answer: answer_of(answer),
                    },
                    Message::Revoke(fence) => Event::Revoke(fence.0),
                    Message::Stop {
                        fence,
                        cause,
                        grace,
                    } => Event::Stop {
                        fence: fence.0,
                        cause: cause_of(cause),
                        grace,
                    },
                    Message::ResultCommitted(fence) => Event::Committed(fence.0),
                    Message::SetPaused { fence, paused } => Event::SetPaused {
                        fence: fence.0,
                        paused,
                    },
                };
                tell!(self, "m{machine} is told {event:?}");
                self.agent(machine, event);
            }
            Down::SetSlots(slots) => self.agent(machine, Event::SetSlots(slots.max(1) as u32)),
            Down::RemoveCheckpoints(jobs) => self.agent(machine, Event::RemoveCheckpoints(jobs)),
            Down::End => self.session_is_over(machine, connection),
        }
    }

    fn given(&mut self, machine: usize, given: Given) {
        let fence = given.fence.0;
        let terms = terms_of(&given);
        let assignment = Assignment {
            fence,
            term: given.term,
            terms,
            runnable: true,
            prepare: !given.checkpoints.is_empty(),
        };
        if let Some(shell) = &mut self.machines[machine].agent {
            shell.assignments.entry(fence).or_insert(given);
        }
        self.agent(machine, Event::Assign(assignment));
    }

    pub(super) fn prepared(&mut self, machine: usize, run: u64, fence: i64) {
        if !self.is_run(machine, run) {
            return;
        }
        let given = self.machines[machine].agent.as_ref();
        let given = given.and_then(|shell| shell.assignments.get(&fence));
        let Some(offered) = given.map(|given| given.checkpoints.clone()) else {
            return;
        };
        let event = match self.random.chance(10) && !self.calm {
            true => Event::Unprepared {
                fence,
                reason: "its checkpoint cannot be read".to_owned(),
            },
            false => {
                self.chooses_checkpoint(machine, fence, &offered);
                Event::Prepared(fence)
            }
        };
        self.agent(machine, event);
    }

    /// GPUs were probed, for an attempt that waits for it or because one had failed.
    pub(super) fn probed(
        &mut self,
        machine: usize,
        run: u64,
        fence: Option<i64>,
        gpus: Vec<String>,
    ) {
        if !self.is_run(machine, run) {
            return;
        }
        let computing = &mut self.machines[machine].computing;
        gpus.iter().for_each(|gpu| {
            computing.remove(gpu);
        });
        let fails = !self.calm && self.random.chance(4);
        let found = gpus.into_iter().map(|gpu| {
            let fault = Fault {
                gpu: gpu.clone(),
                name: String::new(),
                kind: FaultKind::Unfit("it does not compute".to_owned()),
            };
            (gpu, fails.then_some(fault))
        });
        let gpus = found.collect();
        self.agent(
            machine,
            Event::Probed {
                fence,
                gpus,
                computed: false,
            },
        );
    }

    fn says(&mut self, machine: usize, say: Say) {
        let connection = self.machines[machine]
            .agent
            .as_ref()
            .and_then(|shell| shell.connection);
        let Some(connection) = connection else {
            return;
        };
        let (fence, what) = match say {
            Say::Heartbeat { sequence } => {
                return self.send_up(connection, Up::Heartbeat(sequence));
            }
            Say::Started { fence, started } => (
                fence,
                What::Started {
                    pid: started.pid,
                    started_at: chrono::DateTime::from_timestamp_micros(started.wall_us),
                    not_enforced: started.not_enforced,
                },
            ),
            Say::Ended { fence, ended } => (fence, What::Ended(Box::new(report_of(&ended)))),
            Say::SlotFreed(fence) => (fence, What::SlotFreed),
            Say::Returned {
                fence,
                returned,
                message,
            } => (fence, What::Returned { returned, message }),
            Say::PauseChanged { fence, paused } => (fence, What::PauseChanged(paused)),
            Say::SlotStuck { fence, pids } => (fence, What::SlotStuck { pids }),
            Say::Checkpoint(published) => {
                let (fence, told) = told_of(&published);
                (fence.0, What::Checkpoint(Box::new(told)))
            }
            Say::Unfit { fence, fault } => (fence, What::Unfit(fault.to_string())),
            // The model gives a GPU away although it failed: the worker has to find out again.
            Say::Gpu { .. } | Say::Progress { .. } | Say::Silence { .. } => return,
        };
        self.send_up(connection, Up::Report(Fence(fence), Box::new(what)));
    }

    /// Reads what a segment tells beyond what was read.
    pub(super) fn read_on(&mut self, machine: usize, shim: ShimId) {
        let there = &mut self.machines[machine];
        let (Some(shell), Some(segment)) = (&mut there.agent, there.shims.get(&shim)) else {
            return;
        };
        let read = shell.read.entry(shim).or_default();
        if *read >= segment.records.len() {
            return;
        }
        let facts: Vec<(i64, Fact)> = segment.records[*read..].to_vec();
        *read = segment.records.len();
        self.note_output(machine, &facts);
        self.agent(
            machine,
            Event::Facts {
                shim: Some(shim),
                facts: facts.clone(),
            },
        );
        for (fence, _) in facts {
            self.send_output(machine, fence);
        }
    }

    fn note_output(&mut self, machine: usize, facts: &[(i64, Fact)]) {
        let Some(shell) = &mut self.machines[machine].agent else {
            return;
        };
        for (fence, fact) in facts {
            match fact {
                Fact::Assigned(_) => {
                    // Only what begins in this session is sent unasked.
                    let wanted = shell.core.in_session();
                    shell.logs.entry(*fence).or_default().wanted |= wanted;
                }
                Fact::Output { end, .. } => shell.logs.entry(*fence).or_default().end = *end,
                Fact::Ended(ended) => {
                    let log = shell.logs.entry(*fence).or_default();
                    log.end = ended.log_end;
                    log.complete = true;
                }
                _ => {}
            }
        }
    }

    fn send_output(&mut self, machine: usize, fence: i64) {
        let there = &mut self.machines[machine];
        let run = there.runs;
        let Some(shell) = &mut there.agent else {
            return;
        };
        let Some(log) = shell.logs.get_mut(&fence) else {
            return;
        };
        if log.complete && log.stored >= log.end {
            return self.agent(machine, Event::Stored(fence));
        }
        if !log.wanted || log.under_way || log.stored >= log.end {
            return;
        }
        log.under_way = true;
        let (offset, length) = (log.stored, (log.end - log.stored).min(CHUNK));
        let delay = self.random.millis(0, 100);
        self.later(delay, Happening::Chunk(machine, run, fence, offset, length));
    }

    pub(super) fn chunk_stored(&mut self, machine: usize, run: u64, fence: i64, stored: u64) {
        if !self.is_run(machine, run) {
            return;
        }
        let there = &mut self.machines[machine];
        if let Some(log) = there
            .agent
            .as_mut()
            .and_then(|shell| shell.logs.get_mut(&fence))
        {
            log.under_way = false;
            log.stored = log.stored.max(stored);
            self.send_output(machine, fence);
        }
    }

    /// A shim rings: something was written.
    pub(super) fn bell(
        &mut self,
        machine: usize,
        run: u64,
        shim: ShimId,
        idle: bool,
        retiring: bool,
    ) {
        if !self.is_run(machine, run) {
            return;
        }
        self.read_on(machine, shim);
        if idle {
            self.agent(machine, Event::Idle(shim));
        }
        if retiring {
            self.agent(machine, Event::Retiring(shim));
        }
    }

    pub(super) fn shim_is_gone(&mut self, machine: usize, run: u64, shim: ShimId) {
        if !self.is_run(machine, run) {
            return;
        }
        let gone = self.machines[machine]
            .shims
            .get(&shim)
            .is_some_and(|segment| !segment.alive);
        if gone {
            self.read_on(machine, shim);
            self.agent(machine, Event::Gone(shim));
        }
    }

    /// Ends what a vanished shim left running, and records what is true then.
    pub(super) fn sweep(&mut self, machine: usize, run: u64, shim: ShimId, losses: Vec<Loss>) {
        if !self.is_run(machine, run) {
            return;
        }
        for loss in &losses {
            if loss.unswept() && !self.flips.sweep && !self.sweep_tree(machine, loss.fence) {
                // The kernel does not let go of it yet, so its slot is not free.
                let again = Happening::Sweep(machine, run, shim, losses);
                return self.later(Duration::from_secs(1), again);
            }
        }
        let at_us = self.wall(chrono::TimeDelta::zero()).timestamp_micros();
        let mut facts = Vec::new();
        for loss in &losses {
            let told = loss.facts(at_us, self.checkpoint_folder(machine, loss.fence));
            facts.extend(told.into_iter().map(|fact| (loss.fence, fact)));
        }
        let there = &mut self.machines[machine];
        if let (Some(segment), Some(shell)) = (there.shims.get_mut(&shim), &mut there.agent) {
            segment.records.extend(facts.iter().cloned());
            segment.synced = segment.records.len();
            shell.read.insert(shim, segment.records.len());
        }
        tell!(self, "m{machine} concludes: {facts:?}");
        self.note_output(machine, &facts);
        let fences: Vec<i64> = losses.iter().map(|loss| loss.fence).collect();
        self.agent(machine, Event::Facts { shim: None, facts });
        for fence in fences {
            self.send_output(machine, fence);
        }
    }

    pub(super) fn clock_leap_noticed(&mut self, machine: usize, boot: u32) {
        let there = &self.machines[machine];
        if !there.up || there.boots != boot {
            return;
        }
        if !self.flips.clock_leap {
            let shims: Vec<ShimId> = there.shims.keys().copied().collect();
            for shim in shims {
                self.shim_leaps(machine, shim);
            }
        }
    }

    /// The agent looks on its own.
    pub(super) fn agent_notices_leap(&mut self, machine: usize, boot: u32) {
        let there = &mut self.machines[machine];
        if !there.up || there.boots != boot {
            return;
        }
        if let Some(shell) = &mut there.agent {
            shell.leaps = there.leaps;
        }
        self.agent(machine, Event::ClockJumped);
    }
}

pub(super) fn terms_of(given: &Given) -> Terms {
    Terms {
        job_id: given.job.0,
        attempt: given.number,
        boot_id: given.boot_id.clone(),
        spool_id: given.spool_id.to_string(),
        slots: given.slots.max(1) as u32,
        beside_slots: given.beside_slots,
        exclusive: given.exclusive,
        grace: given.grace,
        gpus: given.gpus.clone(),
        gpus_wanted: given.gpus.len() as u32,
    }
}

fn report_of(ended: &Ended) -> EndedReport {
    let at = |us: Option<i64>| us.and_then(chrono::DateTime::from_timestamp_micros);
    EndedReport {
        facts: Facts {
            exit_code: ended.exit_code,
            signal: ended.signal,
            stopped: ended.stop_cause.map(cause_from),
            out_of_memory: ended.out_of_memory,
            message: ended.message.clone(),
            ..Facts::of(end_from(ended.end))
        },
        started_at: at(ended.started_us),
        ended_at: at(ended.ended_us),
        duration: ended.duration,
        pid: (ended.pid > 0).then_some(ended.pid),
        log_end: ended.log_end as i64,
        log_crc32c: ended.log_crc32c,
        not_enforced: ended.not_enforced.clone(),
    }
}

impl Shell {
    /// Its connection to a shim.
    pub(super) fn link(&self, shim: ShimId) -> Option<u64> {
        self.links.get(&shim).copied()
    }
}
