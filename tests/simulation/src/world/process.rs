//! Processes: what really runs, whatever anybody has recorded.

use std::time::Duration;

use qctl_worker_core::agent::Fact;
use qctl_worker_core::roster::ShimId;

use super::network::Given;
use super::{Happening, World, tell};

/// How a process really ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Code(i32),
    Signal(i32),
}

/// The processes of an attempt.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) job: i64,
    pub(super) shim: ShimId,
    /// Its first process lives.
    pub(super) main: bool,
    /// Others live, which left its session.
    others: bool,
    pub(super) frozen: bool,
    /// How it will end by itself.
    exit: Exit,
    plan: u32,
    /// It would have ended while it was frozen.
    due: bool,
    pub(super) output: u64,
    /// Its number within the job.
    pub(super) number: i32,
    /// Checkpoints that it has published.
    pub(super) published: i32,
    pub(super) exclusive: bool,
    pub(super) slots: i32,
    pub(super) beside_slots: bool,
    pub(super) gpus: Vec<String>,
    /// The kernel does not let go of it until then.
    pub(super) stuck_until: Duration,
}

impl World {
    pub(super) fn start_tree(&mut self, machine: usize, shim: ShimId, given: &Given) {
        let fence = given.fence.0;
        let exit = match self.random.below(20) {
            0..=11 => Exit::Code(0),
            12..=16 => Exit::Code(1 + self.random.below(3) as i32),
            _ => Exit::Signal(11),
        };
        let length = match self.random.below(4) {
            0 => self.random.millis(1, 1_500),
            1 | 2 => self.random.seconds(2, 60),
            _ => self.random.seconds(60, 600),
        };
        let length = match self.calm {
            true => length.min(Duration::from_secs(60)),
            false => length,
        };
        let tree = Tree {
            job: given.job.0,
            shim,
            main: true,
            others: self.random.chance(20),
            frozen: false,
            exit,
            plan: 0,
            due: false,
            output: 0,
            number: given.number,
            published: 0,
            exclusive: given.exclusive,
            slots: given.slots,
            beside_slots: given.beside_slots,
            gpus: given.gpus.clone(),
            stuck_until: Duration::ZERO,
        };
        tell!(
            self,
            "m{machine} starts fence {fence} of job {} for {:.3} s, ending with {exit:?}",
            given.job.0,
            length.as_secs_f64()
        );
        self.machines[machine].trees.insert(fence, tree);
        self.tree_started(machine, fence);
        self.later(length, Happening::Exit(machine, fence, 0));
        for _ in 0..self.random.below(3) {
            let at = self.random.below(length.as_micros() as u64 + 1);
            self.later(Duration::from_micros(at), Happening::Output(machine, fence));
        }
        // A job that a person had started where it does not fit would be bound to its checkpoint there.
        if !given.beside_slots && self.random.chance(25) {
            for _ in 0..1 + self.random.below(3) {
                let at = self.random.below(length.as_micros() as u64 + 1);
                let publishes = Happening::Publishes(machine, fence);
                self.later(Duration::from_micros(at), publishes);
            }
        }
    }

    pub(super) fn prints(&mut self, machine: usize, fence: i64) {
        let bytes = 1 + self.random.below(250);
        let wall_us = self.wall(chrono::TimeDelta::zero()).timestamp_micros();
        let there = &mut self.machines[machine];
        let Some(tree) = there.trees.get_mut(&fence) else {
            return;
        };
        if !tree.main || tree.frozen {
            return;
        }
        tree.output += bytes;
        let (end, shim) = (tree.output, tree.shim);
        self.truth.printed(fence, end);
        if let Some(segment) = there.shims.get_mut(&shim).filter(|segment| segment.alive) {
            let fact = Fact::Output {
                end,
                crc32c: 0,
                wall_us,
            };
            segment.records.push((fence, fact));
            self.ring(machine, shim);
        }
    }

    pub(super) fn exits(&mut self, machine: usize, fence: i64, plan: u32) {
        let Some(tree) = self.machines[machine].trees.get_mut(&fence) else {
            return;
        };
        if !tree.main || tree.plan != plan {
            return;
        }
        if tree.frozen {
            tree.due = true;
            return;
        }
        let exit = tree.exit;
        self.main_exits(machine, fence, exit);
    }

    fn main_exits(&mut self, machine: usize, fence: i64, exit: Exit) {
        let there = &mut self.machines[machine];
        let Some(tree) = there.trees.get_mut(&fence) else {
            return;
        };
        tree.main = false;
        let (shim, output, others) = (tree.shim, tree.output, tree.others);
        if !others {
            there.trees.remove(&fence);
        }
        tell!(self, "m{machine} fence {fence} exits with {exit:?}");
        self.truth.exited(fence, exit);
        self.main_ended(machine, shim, fence, exit, output, others);
        if others {
            let after = self.random.seconds(1, 40);
            self.later(after, Happening::OthersEnd(machine, fence));
        }
    }

    pub(super) fn others_end(&mut self, machine: usize, fence: i64) {
        let Some(tree) = self.machines[machine].trees.get(&fence) else {
            return;
        };
        if tree.main {
            return;
        }
        let shim = tree.shim;
        self.machines[machine].trees.remove(&fence);
        self.tree_ended(machine, shim, fence);
    }

    /// The stop signal: some obey at once, some later, some never.
    pub(super) fn signal_tree(&mut self, machine: usize, fence: i64) {
        let obeys = self.random.below(4);
        let after = match obeys {
            0 => return,
            1 => self.random.seconds(5, 20),
            _ => self.random.millis(1, 500),
        };
        let code = self.random.pick(&[0, 1, 143]).unwrap_or_default();
        let Some(tree) = self.machines[machine].trees.get_mut(&fence) else {
            return;
        };
        if !tree.main {
            return;
        }
        tree.exit = Exit::Code(code);
        tree.plan += 1;
        tree.due = false;
        let plan = tree.plan;
        self.later(after, Happening::Exit(machine, fence, plan));
    }

    pub(super) fn freeze_tree(&mut self, machine: usize, fence: i64, frozen: bool) {
        let Some(tree) = self.machines[machine].trees.get_mut(&fence) else {
            return;
        };
        tree.frozen = frozen;
        if !frozen && std::mem::take(&mut tree.due) {
            let plan = tree.plan;
            let after = self.random.millis(1, 1_000);
            self.later(after, Happening::Exit(machine, fence, plan));
        }
    }

    /// Ends every process of an attempt, once the kernel lets go of them.
    pub(super) fn kill_tree(&mut self, machine: usize, fence: i64) {
        let Some(tree) = self.machines[machine].trees.get_mut(&fence) else {
            return;
        };
        if tree.stuck_until > self.now {
            let until = tree.stuck_until;
            return self.at(until, Happening::KillAgain(machine, fence));
        }
        let (main, shim) = (tree.main, tree.shim);
        tree.others = false;
        if main {
            return self.main_exits(machine, fence, Exit::Signal(9));
        }
        self.machines[machine].trees.remove(&fence);
        self.tree_ended(machine, shim, fence);
    }

    /// What an agent does about an attempt whose shim is gone; false when a process cannot be ended.
    pub(super) fn sweep_tree(&mut self, machine: usize, fence: i64) -> bool {
        let now = self.now;
        let there = &mut self.machines[machine];
        let Some(tree) = there.trees.get(&fence) else {
            return true;
        };
        if tree.stuck_until > now {
            return false;
        }
        let main = tree.main;
        there.trees.remove(&fence);
        self.truth.tree_is_gone(fence, main, now);
        true
    }

    /// The kernel ends the first process of a shim's job when the shim dies.
    pub(super) fn orphan_trees(&mut self, machine: usize, shim: ShimId) {
        let now = self.now;
        let there = &mut self.machines[machine];
        let orphaned: Vec<i64> = there
            .trees
            .iter()
            .filter(|(_, tree)| tree.shim == shim)
            .map(|(fence, _)| *fence)
            .collect();
        for fence in orphaned {
            let Some(tree) = self.machines[machine].trees.get_mut(&fence) else {
                continue;
            };
            if tree.stuck_until > now {
                continue;
            }
            let main = std::mem::replace(&mut tree.main, false);
            let others = tree.others;
            if main {
                self.truth.exited(fence, Exit::Signal(9));
            }
            if !others {
                self.machines[machine].trees.remove(&fence);
            }
        }
    }

    /// Somebody kills a job's process from outside.
    pub(super) fn job_is_killed(&mut self, machine: usize, fence: i64) {
        let kills = self.machines[machine]
            .trees
            .get(&fence)
            .is_some_and(|tree| tree.main && tree.stuck_until <= self.now);
        if kills {
            self.main_exits(machine, fence, Exit::Signal(9));
        }
    }
}
