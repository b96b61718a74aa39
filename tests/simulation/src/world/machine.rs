//! Machines: what survives an agent, and what survives a reboot.

use std::collections::BTreeMap;
use std::time::Duration;

use qctl_server_core::WorkerId;
use qctl_worker_core::checkpoint::CheckpointId;
use qctl_worker_core::roster::ShimId;
use uuid::Uuid;

use super::agent::Shell;
use super::checkpoints::OnDisk;
use super::process::Tree;
use super::shim::Shim;
use super::{Happening, World, tell};

/// Longest time from waking until everything is noticed and every request from before has arrived.
const WAKING: Duration = Duration::from_secs(8);

/// A machine with its disk.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) worker: WorkerId,
    pub(super) name: String,
    pub(super) slots: i32,
    pub(super) gpus: Vec<String>,
    pub(super) up: bool,
    pub(super) boots: u32,
    pub(super) boot_id: String,
    pub(super) spool_id: Uuid,
    /// The highest term that an agent has remembered.
    pub(super) term: i64,
    /// Greetings that were sent for this spool, on the disk before they are sent.
    pub(super) greetings: i64,
    /// How often an agent was started here.
    pub(super) runs: u64,
    pub(super) agent: Option<Shell>,
    pub(super) shims: BTreeMap<ShimId, Shim>,
    pub(super) trees: BTreeMap<i64, Tree>,
    /// GPUs on which a probe computes, with the run of the agent that probes.
    pub(super) computing: BTreeMap<String, u64>,
    /// Checkpoints that jobs have published, durable from then on.
    pub(super) published: BTreeMap<CheckpointId, OnDisk>,
    /// No network until then.
    pub(super) cut_until: Duration,
    asleep: Option<(Duration, Duration)>,
    slept: Duration,
    /// How often its clocks leaped.
    pub(super) leaps: u32,
    /// They leap while the next assignment is on its way to a shim.
    pub(super) leaps_amid: bool,
    /// The agent dies after so many more effects.
    pub(super) dies_after: Option<u32>,
}

impl Machine {
    pub(super) fn new(index: usize, slots: i32, gpus: usize) -> Self {
        Self {
            worker: WorkerId(Uuid::from_u128(0x100 + index as u128)),
            name: format!("m{index}"),
            slots,
            gpus: (0..gpus).map(|gpu| format!("gpu-{index}-{gpu}")).collect(),
            up: true,
            boots: 1,
            boot_id: format!("m{index}-b1"),
            spool_id: Uuid::from_u128(0x1_0000 + ((index as u128) << 8)),
            term: 0,
            greetings: 0,
            runs: 0,
            agent: None,
            shims: BTreeMap::new(),
            trees: BTreeMap::new(),
            computing: BTreeMap::new(),
            published: BTreeMap::new(),
            cut_until: Duration::ZERO,
            asleep: None,
            slept: Duration::ZERO,
            leaps: 0,
            leaps_amid: false,
            dies_after: None,
        }
    }

    /// How much later something happens that would happen while the machine is asleep.
    pub(super) fn lag(&self, now: Duration) -> Option<Duration> {
        let (from, until) = self.asleep?;
        (from <= now && now < until).then(|| until - from)
    }

    /// True while the shim lives that started these processes.
    pub(super) fn is_watched_by_shim(&self, tree: &Tree) -> bool {
        let shim = self.shims.get(&tree.shim);
        shim.is_some_and(|shim| shim.alive)
    }

    /// True while nothing here runs.
    pub(super) fn is_asleep(&self, now: Duration) -> bool {
        self.lag(now).is_some()
    }

    /// It slept until a moment ago: what was under way before is still being done.
    pub(super) fn has_just_woken(&self, now: Duration) -> bool {
        let woke = self.asleep.map(|(_, until)| until);
        woke.is_some_and(|until| until <= now && now - until < WAKING)
    }

    /// The clock that stands still while the machine sleeps.
    pub(super) fn clock(&self, now: Duration) -> Duration {
        now.saturating_sub(self.slept)
    }

    /// When, by true time, the machine's clock shows `at` if it does not sleep before.
    pub(super) fn when(&self, at: Duration) -> Duration {
        at.saturating_add(self.slept)
    }
}

impl World {
    pub(super) fn sleeps(&mut self, machine: usize, length: Duration) {
        let now = self.now;
        let there = &mut self.machines[machine];
        if !there.up || there.is_asleep(now) {
            return;
        }
        tell!(self, "m{machine} sleeps for {:.0} s", length.as_secs_f64());
        there.asleep = Some((now, now + length));
        there.slept += length;
        self.leap(machine, length);
    }

    /// The clocks of a machine are no longer as far apart as they were: that is noticed within a
    /// second of waking.
    pub(super) fn leap(&mut self, machine: usize, after: Duration) {
        let notice = after + self.random.millis(0, 1_000);
        self.machines[machine].leaps += 1;
        let boot = self.machines[machine].boots;
        self.later(notice, Happening::ClockLeapNoticed(machine, boot));
        let notice = after + self.random.millis(0, 1_000);
        self.later(notice, Happening::AgentNoticesLeap(machine, boot));
    }

    /// Everything on a machine stops at once. Of what was written, some of what was not synced is
    /// lost.
    pub(super) fn power_fails(&mut self, machine: usize) {
        let now = self.now;
        let there = &self.machines[machine];
        if !there.up || there.is_asleep(now) {
            return;
        }
        tell!(self, "m{machine} loses its power");
        self.machine_of_connection_died(machine);
        let off = match self.random.chance(25) {
            true => self.random.seconds(60, 900),
            false => self.random.seconds(5, 40),
        };
        let new_spool = self.random.chance(8);
        let mut shims = std::mem::take(&mut self.machines[machine].shims);
        shims.retain(|_, shim| {
            let lost = shim.records.len() - shim.synced;
            let kept = match new_spool {
                true => 0,
                false => shim.synced + self.random.below(lost as u64 + 1) as usize,
            };
            let lost = shim.records.drain(kept..);
            self.truth.torn.extend(lost.map(|(fence, _)| fence));
            shim.alive = false;
            shim.ready = false;
            shim.running = None;
            // A file that was never synced may be gone altogether.
            shim.synced > 0 || kept > 0 || self.random.chance(50)
        });
        let there = &mut self.machines[machine];
        there.shims = shims;
        there.up = false;
        there.agent = None;
        there.runs += 1;
        there.boots += 1;
        there.boot_id = format!("{}-b{}", there.name, there.boots);
        if new_spool {
            there.shims.clear();
            there.published.clear();
            there.spool_id = Uuid::from_u128(there.spool_id.as_u128() + 1);
            there.term = 0;
            there.greetings = 0;
        }
        for (fence, tree) in std::mem::take(&mut there.trees) {
            self.truth.tree_is_gone(fence, tree.main, now);
        }
        self.later(off, Happening::MachineBoots(machine));
    }

    pub(super) fn boots(&mut self, machine: usize) {
        let there = &mut self.machines[machine];
        if there.up {
            return;
        }
        there.up = true;
        tell!(
            self,
            "m{machine} boots as {}",
            self.machines[machine].boot_id
        );
        let after = self.random.seconds(1, 20);
        self.later(after, Happening::AgentStarts(machine));
    }
}
