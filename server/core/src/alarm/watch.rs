//! Everything that is watched, look by look. What is to be recorded is returned as data; what is open
//! is restored from what was recorded.

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};

use super::growth::Growth;
use super::level::{GAP, Level, Rule, Step};
use super::setting::{Settings, limit};
use super::{Because, Change, Episode, Kind, Pace, Subject, Untold};
use crate::id::{Fence, JobId, WorkerId};
use crate::measures::{AttemptMeasures, MachineMeasures};

/// Changes that wait to be recorded, at most; the oldest go first. Each look makes a few, and a
/// coordinator whose database stays away does not lead for long enough to fill it.
const MAX_CHANGES: usize = 10_000;

/// From this share of the machine's processors on a job speaks for them alone.
const MOST_OF_THE_MACHINE: f64 = 0.5;

/// A worst figure is recorded anew at most this often.
const PEAK_EVERY: TimeDelta = TimeDelta::minutes(1);

/// What a worker says of its machine when it connects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MachineFacts {
    /// Its name.
    pub name: String,
    /// Tells the machine apart from all others, until it is restarted; empty when not known.
    pub boot: String,
    /// Its processors; 0 when not known.
    pub processors: i32,
    /// Its own choices.
    pub settings: Settings,
}

/// What is known of a running attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptFacts {
    /// The job.
    pub job: JobId,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// The job's own choices.
    pub settings: Settings,
}

/// One look at a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MachineLook {
    /// What it uses.
    pub used: MachineMeasures,
    /// Processes killed for memory since the look before.
    pub oom_kills: i64,
    /// How far its clock jumped since then, in seconds; forward is positive.
    pub clock_jump: f64,
    /// How long it slept since then, in seconds.
    pub slept: f64,
}

/// One look at an attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttemptLook {
    /// The attempt.
    pub fence: Fence,
    /// What it uses.
    pub used: AttemptMeasures,
    /// The part of a card's memory that is taken, 0 to 1, on the fullest of its cards.
    pub gpu_memory: Option<f64>,
}

#[derive(Clone, Debug, PartialEq)]
struct Machine {
    facts: MachineFacts,
    connected_at: DateTime<Utc>,
    looked_at: Option<DateTime<Utc>>,
    /// Processes killed for memory lately, and when the last of them.
    killed: Option<(i64, DateTime<Utc>)>,
}

#[derive(Clone, Debug, PartialEq)]
struct Attempt {
    facts: AttemptFacts,
    growth: Option<Growth>,
}

#[derive(Clone, Debug, PartialEq)]
struct Open {
    fence: Option<Fence>,
    /// Name of the machine.
    machine: String,
    /// The worst figure as it is recorded, and since when.
    recorded: (f64, DateTime<Utc>),
}

/// The coordinator's machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnMachine {
    /// Its host name.
    pub host: String,
    /// The same as a worker on it says; empty when not known.
    pub boot: String,
}

/// A disk as somebody saw it: room left and size, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Room left.
    pub free: i64,
    /// Size.
    pub total: i64,
}

/// Everything that is watched.
#[derive(Clone, Debug)]
pub struct Watch {
    pace: Pace,
    everywhere: Settings,
    machines: BTreeMap<WorkerId, Machine>,
    attempts: BTreeMap<Fence, Attempt>,
    levels: BTreeMap<(Subject, Kind), Level>,
    open: BTreeMap<(Subject, Kind), Open>,
    /// The coordinator's machine, and the disk that it writes to.
    own_disk: Option<(OwnMachine, Disk)>,
    changes: VecDeque<Change>,
}

/// Who a figure is about, and whose choices count.
struct About<'a> {
    subject: Subject,
    fence: Option<Fence>,
    machine: &'a str,
    choices: [&'a Settings; 3],
}

impl Watch {
    /// Nothing is watched yet. `everywhere` is what this installation chose.
    pub fn new(pace: Pace, everywhere: Settings) -> Self {
        Self {
            pace,
            everywhere,
            machines: BTreeMap::new(),
            attempts: BTreeMap::new(),
            levels: BTreeMap::new(),
            open: BTreeMap::new(),
            own_disk: None,
            changes: VecDeque::new(),
        }
    }

    /// Takes over the episodes that were recorded as open: they go on, and are not told again.
    pub fn restore(&mut self, episodes: Vec<Episode>, now: DateTime<Utc>) {
        for episode in episodes {
            let key = (episode.subject, episode.kind);
            let worst = badness(episode.kind, episode.peak);
            self.levels.insert(key, Level::opened(worst));
            let recorded = (worst, now);
            let open = Open {
                fence: episode.fence,
                machine: episode.machine,
                recorded,
            };
            self.open.insert(key, open);
        }
    }

    /// A worker connected.
    pub fn connected(&mut self, worker: WorkerId, facts: MachineFacts, now: DateTime<Utc>) {
        let before = self.machines.get(&worker);
        let machine = Machine {
            facts,
            connected_at: now,
            looked_at: before.and_then(|before| before.looked_at),
            killed: before.and_then(|before| before.killed),
        };
        self.machines.insert(worker, machine);
    }

    /// The worker lives but has not looked: a look that hangs is told.
    pub fn beat_without_look(&mut self, worker: WorkerId, now: DateTime<Utc>) {
        let Some(machine) = self.machines.get(&worker).cloned() else {
            return;
        };
        // A worker that never looked may be one that cannot.
        let Some(looked_at) = machine.looked_at else {
            return;
        };
        let unseen = now - looked_at.max(machine.connected_at);
        self.judge_machine(worker, &machine.facts, Kind::Looks, seconds(unseen), now);
    }

    /// Takes what a worker saw.
    pub fn look(
        &mut self,
        worker: WorkerId,
        look: &MachineLook,
        attempts: &[AttemptLook],
        now: DateTime<Utc>,
    ) {
        let Some(machine) = self.machines.get_mut(&worker) else {
            return;
        };
        let before = machine.looked_at.replace(now);
        if look.oom_kills > 0 {
            let earlier = machine.killed.map_or(0, |(count, _)| count);
            machine.killed = Some((earlier.saturating_add(look.oom_kills), now));
        }
        let lately = |at: DateTime<Utc>| now - at < self.pace.sustained;
        machine.killed = machine.killed.filter(|(_, at)| lately(*at));
        let machine = machine.clone();
        // From inside, a machine that was stopped from outside looks like one whose clock was put forward.
        let slept = look.slept.max(look.clock_jump);
        self.missed(worker, &machine, before, slept, now);
        let jump = (-look.clock_jump).max(0.0);
        let killed = machine.killed.map_or(0, |(count, _)| count);
        let used = &look.used;
        let share = |attempt: &AttemptLook| {
            let processors = f64::from(machine.facts.processors);
            let cpus = attempt.used.cpus.filter(|_| processors >= 1.0)?;
            Some(cpus / processors)
        };
        let is_one_jobs = attempts
            .iter()
            .any(|attempt| share(attempt).is_some_and(|share| share >= MOST_OF_THE_MACHINE));
        let memory = used
            .memory_available_bytes
            .zip(used.memory_total_bytes)
            .filter(|(_, total)| *total > 0)
            .map(|(free, total)| 100.0 * (1.0 - free as f64 / total as f64));
        for (kind, value) in [
            (Kind::Looks, Some(0.0)),
            (Kind::Clock, Some(jump)),
            (Kind::OutOfMemory, Some(killed as f64)),
            (Kind::Cpu, used.busy.filter(|_| !is_one_jobs).map(percent)),
            (Kind::Memory, memory),
            (Kind::GpuTemperature, used.gpu_temperature.map(f64::from)),
        ] {
            if let Some(value) = value {
                self.judge_machine(worker, &machine.facts, kind, value, now);
            }
        }
        let disk = used.disk_free_bytes.zip(used.disk_total_bytes);
        if let Some((free, total)) = disk {
            let disk = Disk { free, total };
            if self.is_own_disk(&machine.facts.boot, disk) {
                self.drop_episode(Subject::Worker(worker), Kind::Disk, Because::SameDisk, now);
            } else {
                self.judge_disk(
                    Subject::Worker(worker),
                    &machine.facts.name,
                    &machine.facts.settings,
                    disk,
                    now,
                );
            }
        }
        for attempt in attempts {
            self.look_at_attempt(&machine.facts, attempt, share(attempt), now);
        }
    }

    /// Takes what the coordinator sees of the disk that it writes to itself.
    pub fn own_disk(&mut self, machine: &OwnMachine, disk: Disk, now: DateTime<Utc>) {
        let subject = Subject::Coordinator;
        let open = self.open.get(&(subject, Kind::Disk));
        if open.is_some_and(|open| open.machine != machine.host) {
            // What became of the disk of the machine before, nobody knows.
            self.drop_episode(subject, Kind::Disk, Because::OtherMachine, now);
        }
        self.own_disk = Some((machine.clone(), disk));
        self.judge_disk(subject, &machine.host, &Settings::new(), disk, now);
    }

    /// Attempts of which more has to be known before they are judged.
    pub fn unknown<'a>(&'a self, attempts: &'a [AttemptLook]) -> impl Iterator<Item = Fence> + 'a {
        attempts
            .iter()
            .map(|attempt| attempt.fence)
            .filter(|fence| !self.attempts.contains_key(fence))
    }

    /// Tells what is known of an attempt.
    pub fn know(&mut self, fence: Fence, facts: AttemptFacts) {
        let growth = None;
        self.attempts.insert(fence, Attempt { facts, growth });
    }

    /// Attempts that are watched or have an open episode.
    pub fn attempts(&self) -> Vec<Fence> {
        let mut fences: Vec<Fence> = self.open.values().filter_map(|open| open.fence).collect();
        fences.extend(self.attempts.keys().copied());
        fences.sort_unstable();
        fences.dedup();
        fences
    }

    /// An attempt has ended, and its episodes with it.
    pub fn left(&mut self, fence: Fence, now: DateTime<Utc>) {
        let job = self.attempts.remove(&fence).map(|left| left.facts.job);
        let ended: Vec<_> = self
            .open
            .iter()
            .filter(|(_, open)| open.fence == Some(fence))
            .map(|(key, _)| *key)
            .collect();
        for (subject, kind) in ended {
            let worst = self.levels.get(&(subject, kind)).and_then(Level::peak);
            self.close(subject, kind, worst, None, now);
        }
        let goes_on = |job| self.attempts.values().any(|other| other.facts.job == job);
        if let Some(job) = job.filter(|job| !goes_on(*job)) {
            self.levels
                .retain(|(subject, _), _| *subject != Subject::Job(job));
        }
    }

    /// Takes what is to be recorded, in order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.changes.drain(..).collect()
    }

    /// What was taken could not be recorded: it is to be taken again.
    pub fn put_back(&mut self, changes: Vec<Change>) {
        for change in changes.into_iter().rev() {
            self.changes.push_front(change);
        }
        self.changes.truncate(MAX_CHANGES);
    }

    /// Worst figures of open episodes that have become worse since they were recorded.
    pub fn take_peaks(&mut self, now: DateTime<Utc>) -> Vec<(Subject, Kind, f64)> {
        let mut peaks = Vec::new();
        for ((subject, kind), open) in &mut self.open {
            let worst = self.levels.get(&(*subject, *kind)).and_then(Level::peak);
            let (before, at) = open.recorded;
            if let Some(worst) = worst.filter(|worst| *worst > before && now - at >= PEAK_EVERY) {
                open.recorded = (worst, now);
                peaks.push((*subject, *kind, badness(*kind, worst)));
            }
        }
        peaks
    }

    /// How many processors, and which choices, a worker's machine has.
    pub fn machine(&self, worker: WorkerId) -> Option<&MachineFacts> {
        self.machines.get(&worker).map(|machine| &machine.facts)
    }

    /// The coordinator's machine and disk, as they were seen last.
    pub fn seen_own_disk(&self) -> Option<&(OwnMachine, Disk)> {
        self.own_disk.as_ref()
    }

    /// From how little room on a disk of this size on it is an alarm, in bytes; `None` when it is none. Of
    /// the coordinator's machine without a worker.
    pub fn disk_limit(&self, worker: Option<WorkerId>, total: i64) -> Option<i64> {
        let machine = worker.and_then(|worker| self.machines.get(&worker));
        let own = Settings::new();
        let settings = machine.map_or(&own, |machine| &machine.facts.settings);
        let chosen = limit(Kind::Disk, &[settings, &self.everywhere])?;
        #[allow(clippy::cast_possible_truncation)]
        Some(limit_of(Kind::Disk, chosen, Some(total as f64)) as i64)
    }

    /// A time in which nobody looked is over: the history says why nobody was told of it.
    fn missed(
        &mut self,
        worker: WorkerId,
        machine: &Machine,
        before: Option<DateTime<Utc>>,
        slept: f64,
        now: DateTime<Utc>,
    ) {
        let key = (Subject::Worker(worker), Kind::Looks);
        let Some(before) = before else { return };
        // A coordinator that slept as well counts none of that time.
        let unseen = seconds(now - before).max(slept);
        if unseen <= seconds(GAP) {
            return;
        }
        let chosen = limit(Kind::Looks, &[&machine.facts.settings, &self.everywhere]);
        let (Some((limit, _)), false) = (chosen, self.open.contains_key(&key)) else {
            return;
        };
        let why = if slept > unseen / 2.0 {
            Untold::Slept
        } else if machine.connected_at > before {
            Untold::Away
        } else {
            Untold::Short
        };
        let episode = Episode {
            subject: key.0,
            kind: Kind::Looks,
            fence: None,
            machine: machine.facts.name.clone(),
            began_at: before,
            limit: limit as f64,
            peak: unseen,
        };
        self.change(Change::Past {
            episode,
            at: now,
            why,
        });
    }

    fn look_at_attempt(
        &mut self,
        machine: &MachineFacts,
        look: &AttemptLook,
        share: Option<f64>,
        now: DateTime<Utc>,
    ) {
        let shortest = self.pace.growth_window;
        let Some(attempt) = self.attempts.get_mut(&look.fence) else {
            return;
        };
        let grown = look.used.anonymous_bytes.map(|bytes| {
            let growth = attempt
                .growth
                .get_or_insert_with(|| Growth::begin(shortest, bytes, now));
            growth.observe(bytes, now)
        });
        let facts = attempt.facts.clone();
        for (kind, value) in [
            (Kind::Cpu, share.map(percent)),
            (Kind::MemoryGrowth, grown.map(|bytes| bytes as f64)),
            (Kind::GpuMemory, look.gpu_memory.map(percent)),
            (Kind::RunTime, Some(seconds(now - facts.started_at))),
        ] {
            let Some(value) = value else { continue };
            let everywhere = self.everywhere.clone();
            let about = About {
                subject: Subject::Job(facts.job),
                fence: Some(look.fence),
                machine: &machine.name,
                choices: [&facts.settings, &machine.settings, &everywhere],
            };
            self.judge(&about, kind, value, None, now);
        }
    }

    /// True for a disk of the coordinator's machine as large as its own. Machines may agree by name and
    /// size; no two share a boot.
    fn is_own_disk(&self, boot: &str, disk: Disk) -> bool {
        self.own_disk.as_ref().is_some_and(|(own, seen)| {
            !boot.is_empty() && own.boot == boot && seen.total == disk.total
        })
    }

    /// Ends an episode, if one is open, of which nobody knows whether it is over.
    fn drop_episode(&mut self, subject: Subject, kind: Kind, why: Because, now: DateTime<Utc>) {
        let level = self.levels.remove(&(subject, kind));
        if self.open.contains_key(&(subject, kind)) {
            let worst = level.as_ref().and_then(Level::peak);
            self.close(subject, kind, worst, Some(why), now);
        }
    }

    fn judge_machine(
        &mut self,
        worker: WorkerId,
        facts: &MachineFacts,
        kind: Kind,
        value: f64,
        now: DateTime<Utc>,
    ) {
        let everywhere = self.everywhere.clone();
        let about = About {
            subject: Subject::Worker(worker),
            fence: None,
            machine: &facts.name,
            choices: [&facts.settings, &everywhere, &everywhere],
        };
        self.judge(&about, kind, value, None, now);
    }

    fn judge_disk(
        &mut self,
        subject: Subject,
        machine: &str,
        settings: &Settings,
        disk: Disk,
        now: DateTime<Utc>,
    ) {
        let everywhere = self.everywhere.clone();
        let about = About {
            subject,
            fence: None,
            machine,
            choices: [settings, &everywhere, &everywhere],
        };
        let free = disk.free as f64;
        self.judge(&about, Kind::Disk, free, Some(disk.total as f64), now);
    }

    fn judge(
        &mut self,
        about: &About<'_>,
        kind: Kind,
        value: f64,
        total: Option<f64>,
        now: DateTime<Utc>,
    ) {
        let key = (about.subject, kind);
        let Some(chosen) = limit(kind, &about.choices) else {
            self.drop_episode(about.subject, kind, Because::SwitchedOff, now);
            return;
        };
        let limit = limit_of(kind, chosen, total);
        let rule = rule(kind, limit, total, &self.pace);
        let level = self.levels.entry(key).or_default();
        let worst = level.peak();
        match level.observe(&rule, badness(kind, value), now) {
            Some(Step::Opened(since)) => {
                let peak = level.peak().unwrap_or(rule.limit);
                let fence = about.fence;
                let open = Open {
                    fence,
                    machine: about.machine.to_owned(),
                    recorded: (peak, now),
                };
                self.open.insert(key, open);
                self.change(Change::Open(Episode {
                    subject: about.subject,
                    kind,
                    fence,
                    machine: about.machine.to_owned(),
                    began_at: began_at(kind, since, value),
                    limit,
                    peak: badness(kind, peak),
                }));
            }
            Some(Step::Closed) => self.close(about.subject, kind, worst, None, now),
            None => {}
        }
    }

    fn close(
        &mut self,
        subject: Subject,
        kind: Kind,
        worst: Option<f64>,
        because: Option<Because>,
        at: DateTime<Utc>,
    ) {
        let open = self.open.remove(&(subject, kind));
        let recorded = open.map_or(0.0, |open| open.recorded.0);
        self.change(Change::Close {
            subject,
            kind,
            at,
            peak: badness(kind, worst.unwrap_or(recorded)),
            because,
        });
    }

    fn change(&mut self, change: Change) {
        if self.changes.len() >= MAX_CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
    }
}

/// A figure such that a higher one is worse, and back again.
fn badness(kind: Kind, value: f64) -> f64 {
    if kind.low_is_bad() { -value } else { value }
}

/// Some figures say themselves since when.
fn began_at(kind: Kind, seen: DateTime<Utc>, value: f64) -> DateTime<Utc> {
    match kind {
        #[allow(clippy::cast_possible_truncation)]
        Kind::Looks => seen - TimeDelta::milliseconds((value * 1_000.0) as i64),
        _ => seen,
    }
}

/// The limit that counts. Unless somebody chose one, a small disk may be fuller than a large one.
pub(crate) fn limit_of(kind: Kind, chosen: (i64, bool), total: Option<f64>) -> f64 {
    let (limit, is_chosen) = chosen;
    match (kind, total) {
        (Kind::Disk, Some(total)) if !is_chosen => (limit as f64).min(total / 20.0),
        _ => limit as f64,
    }
}

/// When a figure is an alarm and when it is over; docs/monitoring.md says why.
fn rule(kind: Kind, limit: f64, total: Option<f64>, pace: &Pace) -> Rule {
    let (release, after, calm) = match kind {
        Kind::Cpu | Kind::GpuMemory => (limit * 0.9, pace.sustained, pace.sustained),
        Kind::Memory => (limit * 0.95, pace.sustained / 20, pace.sustained / 10),
        Kind::GpuTemperature => (limit - 5.0, pace.sustained / 10, pace.sustained / 2),
        Kind::RunTime => (limit, TimeDelta::zero(), TimeDelta::zero()),
        Kind::MemoryGrowth => (limit / 2.0, TimeDelta::zero(), pace.growth_window),
        Kind::Disk => {
            let total = total.unwrap_or(limit * 3.0);
            let enough = (limit * 2.0).min(f64::midpoint(limit, total));
            (enough, pace.sustained / 40, pace.sustained / 40)
        }
        // Told a little later, when the job that it happened to may have told it.
        Kind::OutOfMemory => (0.5, pace.sustained / 20, TimeDelta::zero()),
        Kind::Clock => (limit, TimeDelta::zero(), pace.sustained),
        Kind::Looks => (
            limit.min(seconds(GAP)),
            TimeDelta::zero(),
            TimeDelta::zero(),
        ),
    };
    Rule {
        limit: badness(kind, limit),
        release: badness(kind, release),
        after,
        calm,
    }
}

fn percent(share: f64) -> f64 {
    share * 100.0
}

fn seconds(length: TimeDelta) -> f64 {
    length.as_seconds_f64()
}
