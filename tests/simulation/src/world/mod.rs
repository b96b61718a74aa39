//! The world: virtual time, one source of randomness, and everything that can happen.

mod agent;
mod checkpoints;
mod coordinator;
mod faults;
mod leadership;
mod machine;
mod network;
mod people;
mod process;
mod shim;
mod truth;
mod words;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use qctl_worker_core::agent::Loss;
use qctl_worker_core::checkpoint::CheckpointId;
use qctl_worker_core::roster::ShimId;

use crate::double::{Double, Unguarded};
use crate::random::Random;
use coordinator::{Coordinator, Task};
use faults::{Fate, Fault};
use machine::Machine;
use network::Connection;
use people::People;
use truth::Truth;

/// Longest virtual time in which everything must be over once nothing breaks any more.
const CALM_FOR: Duration = Duration::from_secs(6 * 60 * 60);

/// Guards of the shells that a test can take away. Those of the cores are taken away there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flips {
    /// Guards of the store.
    pub store: Unguarded,
    /// A shim takes an assignment that an agent which is gone sent it, after its successor has read
    /// the segment.
    pub late_run: bool,
    /// What a vanished shim left running is taken for dead without looking.
    pub sweep: bool,
    /// A new leader goes on counting the silence that the one before it counted.
    pub silence_kept: bool,
    /// A leader answers heartbeats although its lease may have run out.
    pub lapsed_leader: bool,
    /// A greeting is taken although a later one was.
    pub late_greeting: bool,
    /// After a leap of the clocks an exclusive attempt runs on unconfirmed.
    pub clock_leap: bool,
}

/// A schedule that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// When, in virtual time since the start.
    pub at: Duration,
    /// What did not hold.
    pub rule: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {} at {:.3} s: {}",
            self.seed,
            self.at.as_secs_f64(),
            self.rule
        )
    }
}

/// What a schedule that went well consisted of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Things that happened.
    pub steps: u64,
    /// Jobs that were submitted.
    pub jobs: u64,
    /// Attempts that were made.
    pub attempts: u64,
    /// Virtual time until everything was over.
    pub lasted: Duration,
}

impl Summary {
    /// Adds another schedule's.
    pub fn add(&mut self, other: Self) {
        self.steps += other.steps;
        self.jobs += other.jobs;
        self.attempts += other.attempts;
        self.lasted += other.lasted;
    }
}

/// Times that differ from schedule to schedule.
#[derive(Clone, Copy, Debug)]
struct Settings {
    heartbeat: Duration,
    unreachable_after: Duration,
    lost_after: Duration,
    /// When nothing breaks any more.
    calm_at: Duration,
    /// Jobs that are kept ready at a worker at least, however long its jobs take.
    ready: usize,
}

/// Something that happens at its time.
#[derive(Clone, Debug)]
enum Happening {
    /// The next message of a connection reaches the coordinator.
    Up(u32),
    /// The next message of a connection reaches the agent.
    Down(u32),
    /// The agent notices that a connection broke.
    AgentLost(u32),
    /// The coordinator notices that a connection broke.
    CoordinatorLost(u32),
    /// A task of a coordinator, in one run of it; and in one term, unless it is about leading.
    Task(usize, u64, i64, Task),
    CoordinatorStarts(usize),
    MachineBoots(usize),
    AgentStarts(usize),
    /// From here on: machine, and where it matters the run of its agent.
    Dial(usize, u64),
    NoWelcome(usize, u64, u32),
    Tick(usize, u64),
    Prepared(usize, u64, i64),
    /// GPUs were probed: for an attempt, or on their own account.
    Probed(usize, u64, Option<i64>, Vec<String>),
    /// A shim tells that it has written something: idle and retiring as it rings.
    Bell(usize, u64, ShimId, bool, bool),
    Gone(usize, u64, ShimId),
    Sweep(usize, u64, ShimId, Vec<Loss>),
    /// A piece of output on its way to the coordinator: fence, offset, length.
    Chunk(usize, u64, i64, u64, u64),
    /// The coordinator has so much of it.
    ChunkStored(usize, u64, i64, u64),
    /// A request reaches a shim over one of its connections.
    Ask(usize, ShimId, u64, shim::Request),
    ShimReady(usize, ShimId),
    ShimTick(usize, ShimId),
    /// What a shim has written so far is on the disk.
    Synced(usize, ShimId, usize),
    ClockLeapNoticed(usize, u32),
    AgentNoticesLeap(usize, u32),
    /// A connection between agent and shim breaks.
    Unlinked(usize, ShimId, u64),
    /// The first process of an attempt ends, unless something else came first.
    Exit(usize, i64, u32),
    Output(usize, i64),
    /// A job publishes a checkpoint.
    Publishes(usize, i64),
    /// An agent has looked for checkpoints of an attempt, which has ended or not.
    Looked(usize, u64, i64, bool),
    /// It has computed the hash of one.
    Hashed(usize, u64, CheckpointId),
    /// The other processes of an attempt end.
    OthersEnd(usize, i64),
    /// The kernel lets go of processes that could not be killed.
    KillAgain(usize, i64),
    Fault(Fault),
    Person(usize),
    Wish(usize),
    /// Nothing breaks any more, and people look after what was left lying.
    Calm,
    Tidy,
}

#[derive(Clone, Debug)]
struct Scheduled {
    at: Duration,
    sequence: u64,
    what: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// The database.
#[derive(Debug)]
struct Database {
    double: Double,
    down_until: Duration,
}

/// The world of one schedule.
pub struct World {
    seed: u64,
    now: Duration,
    random: Random,
    queue: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
    settings: Settings,
    flips: Flips,
    database: Database,
    /// What becomes of the next transaction.
    fate: Option<Fate>,
    coordinators: Vec<Coordinator>,
    machines: Vec<Machine>,
    connections: BTreeMap<u32, Connection>,
    next_connection: u32,
    people: People,
    truth: Truth,
    calm: bool,
    trace: bool,
}

/// Tells what happens when the schedule is traced.
macro_rules! tell {
    ($world:expr, $($text:tt)*) => {
        if $world.trace {
            println!("{:>11.4}  {}", $world.now.as_secs_f64(), format_args!($($text)*));
        }
    };
}
use tell;

impl World {
    /// The world of a seed. A traced one prints what happens.
    pub fn new(seed: u64, flips: Flips, trace: bool) -> Self {
        let mut random = Random::new(seed);
        let lost_after = random.seconds(180, 400);
        let settings = Settings {
            heartbeat: random
                .pick(&[5, 10, 15])
                .map_or_else(Duration::default, Duration::from_secs),
            unreachable_after: Duration::from_secs(60),
            lost_after,
            calm_at: random.seconds(120, 900),
            ready: random.below(3) as usize,
        };
        let machines = 1 + random.below(3) as usize;
        let coordinators = 1 + usize::from(random.chance(40));
        let mut world = Self {
            seed,
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            sequence: 0,
            settings,
            flips,
            database: Database {
                double: Double::new(false, flips.store),
                down_until: Duration::ZERO,
            },
            fate: None,
            coordinators: Vec::new(),
            machines: Vec::new(),
            connections: BTreeMap::new(),
            next_connection: 0,
            people: People::default(),
            truth: Truth::default(),
            calm: false,
            trace,
            random,
        };
        for index in 0..machines {
            let slots = world.random.between(1, 3) as i32;
            let gpus = world.random.below(3) as usize;
            world.machines.push(Machine::new(index, slots, gpus));
        }
        for index in 0..coordinators {
            let skew = TimeDelta::milliseconds(world.random.between(-2_000, 2_000));
            world.coordinators.push(Coordinator::new(skew));
            let at = world.random.millis(0, 2_000);
            world.later(at, Happening::CoordinatorStarts(index));
        }
        for index in 0..machines {
            let at = world.random.millis(0, 5_000);
            world.later(at, Happening::AgentStarts(index));
        }
        world.plan_wishes();
        world.plan_faults();
        world.later(settings.calm_at, Happening::Calm);
        world
    }

    /// Runs until everything is over.
    ///
    /// # Errors
    /// [`Failure`] when a rule does not hold, or something does not end.
    pub fn run(mut self) -> Result<Summary, Failure> {
        let mut steps = 0;
        while let Some(Reverse(next)) = self.queue.pop() {
            debug_assert!(next.at >= self.now);
            self.now = next.at;
            steps += 1;
            self.happen(next.what);
            self.look();
            if let Some(rule) = self.truth.broken.take() {
                tell!(self, "BROKEN: {rule}");
                return Err(self.failure(rule));
            }
            if self.calm && self.is_over() {
                return Ok(Summary {
                    steps,
                    jobs: self.truth.submitted,
                    attempts: self.database.double.attempts().len() as u64,
                    lasted: self.now,
                });
            }
            if self.now > self.settings.calm_at + CALM_FOR {
                let rule = self.what_lies_there();
                return Err(self.failure(rule));
            }
        }
        Err(self.failure("nothing happens any more".to_owned()))
    }

    fn failure(&self, rule: String) -> Failure {
        Failure {
            seed: self.seed,
            at: self.now,
            rule,
        }
    }

    fn later(&mut self, after: Duration, what: Happening) {
        self.at(self.now + after, what);
    }

    fn at(&mut self, at: Duration, what: Happening) {
        self.sequence += 1;
        self.queue.push(Reverse(Scheduled {
            at: at.max(self.now),
            sequence: self.sequence,
            what,
        }));
    }

    /// Does what happens, unless whom it concerns cannot act now: then it happens later.
    fn happen(&mut self, what: Happening) {
        if let Some(machine) = self.machine_of(&what)
            && let Some(lag) = self.machines[machine].lag(self.now)
        {
            return self.later(lag, what);
        }
        if let Some(coordinator) = self.coordinator_of(&what) {
            let until = self.coordinators[coordinator].paused_until;
            if until > self.now {
                return self.at(until, what);
            }
        }
        match what {
            Happening::Up(connection) => self.up_arrives(connection),
            Happening::Down(connection) => self.down_arrives(connection),
            Happening::AgentLost(connection) => self.agent_lost(connection),
            Happening::CoordinatorLost(connection) => self.coordinator_lost(connection),
            Happening::Task(coordinator, run, term, task) => {
                self.task(coordinator, run, term, task);
            }
            Happening::CoordinatorStarts(coordinator) => self.coordinator_starts(coordinator),
            Happening::MachineBoots(machine) => self.boots(machine),
            Happening::AgentStarts(machine) => self.agent_starts(machine),
            Happening::Dial(machine, run) => self.dial(machine, run),
            Happening::NoWelcome(machine, run, connection) => {
                self.no_welcome(machine, run, connection);
            }
            Happening::Tick(machine, run) => self.agent_ticks(machine, run),
            Happening::Prepared(machine, run, fence) => self.prepared(machine, run, fence),
            Happening::Probed(machine, run, fence, gpus) => self.probed(machine, run, fence, gpus),
            Happening::Bell(machine, run, shim, idle, retiring) => {
                self.bell(machine, run, shim, idle, retiring);
            }
            Happening::Gone(machine, run, shim) => self.shim_is_gone(machine, run, shim),
            Happening::Sweep(machine, run, shim, losses) => self.sweep(machine, run, shim, losses),
            Happening::Chunk(machine, run, fence, offset, length) => {
                self.chunk_arrives(machine, run, fence, offset, length);
            }
            Happening::ChunkStored(machine, run, fence, stored) => {
                self.chunk_stored(machine, run, fence, stored);
            }
            Happening::Ask(machine, shim, link, request) => {
                self.shim_is_asked(machine, shim, link, request);
            }
            Happening::ShimReady(machine, shim) => self.shim_ready(machine, shim),
            Happening::ShimTick(machine, shim) => self.shim_ticks(machine, shim),
            Happening::Synced(machine, shim, length) => self.synced(machine, shim, length),
            Happening::Unlinked(machine, shim, link) => self.unlinked(machine, shim, link),
            Happening::AgentNoticesLeap(machine, boot) => self.agent_notices_leap(machine, boot),
            Happening::ClockLeapNoticed(machine, boot) => self.clock_leap_noticed(machine, boot),
            Happening::Exit(machine, fence, plan) => self.exits(machine, fence, plan),
            Happening::Output(machine, fence) => self.prints(machine, fence),
            Happening::Publishes(machine, fence) => self.publishes(machine, fence),
            Happening::Looked(machine, run, fence, ended) => {
                self.looked(machine, run, fence, ended);
            }
            Happening::Hashed(machine, run, id) => self.hashed(machine, run, id),
            Happening::OthersEnd(machine, fence) => self.others_end(machine, fence),
            Happening::KillAgain(machine, fence) => self.kill_tree(machine, fence),
            Happening::Fault(fault) => self.fault(fault),
            Happening::Person(index) => self.person_calls(index),
            Happening::Wish(index) => self.person_wishes(index),
            Happening::Calm => self.calm_down(),
            Happening::Tidy => self.tidy(),
        }
    }

    fn machine_of(&self, what: &Happening) -> Option<usize> {
        match what {
            Happening::Down(connection) | Happening::AgentLost(connection) => {
                self.connections.get(connection).map(|one| one.machine)
            }
            Happening::AgentStarts(machine)
            | Happening::Dial(machine, _)
            | Happening::NoWelcome(machine, _, _)
            | Happening::Tick(machine, _)
            | Happening::Prepared(machine, _, _)
            | Happening::Probed(machine, _, _, _)
            | Happening::Bell(machine, _, _, _, _)
            | Happening::Gone(machine, _, _)
            | Happening::Sweep(machine, _, _, _)
            | Happening::ChunkStored(machine, _, _, _)
            | Happening::Ask(machine, _, _, _)
            | Happening::Unlinked(machine, _, _)
            | Happening::ClockLeapNoticed(machine, _)
            | Happening::AgentNoticesLeap(machine, _)
            | Happening::ShimReady(machine, _)
            | Happening::ShimTick(machine, _)
            | Happening::Synced(machine, _, _)
            | Happening::Exit(machine, _, _)
            | Happening::Output(machine, _)
            | Happening::Publishes(machine, _)
            | Happening::Looked(machine, _, _, _)
            | Happening::Hashed(machine, _, _)
            | Happening::OthersEnd(machine, _)
            | Happening::KillAgain(machine, _) => Some(*machine),
            _ => None,
        }
    }

    fn coordinator_of(&self, what: &Happening) -> Option<usize> {
        match what {
            Happening::Up(connection) | Happening::CoordinatorLost(connection) => {
                self.connections.get(connection).map(|one| one.coordinator)
            }
            Happening::Task(coordinator, _, _, _) => Some(*coordinator),
            _ => None,
        }
    }

    /// The wall clock of someone whose clock is off by `skew`.
    fn wall(&self, skew: TimeDelta) -> DateTime<Utc> {
        let since = i64::try_from(self.now.as_micros()).unwrap_or(i64::MAX);
        DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default()
            + TimeDelta::microseconds(since)
            + skew
    }

    fn breaks(&mut self, rule: impl FnOnce() -> String) {
        if self.truth.broken.is_none() {
            self.truth.broken = Some(rule());
        }
    }
}
