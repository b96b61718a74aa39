//! What breaks, and when it stops breaking.

use std::time::Duration;

use qctl_worker_core::roster::ShimId;

use super::{Happening, World, tell};

/// What becomes of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The coordinator dies before it is committed.
    DiesBefore,
    /// The coordinator dies once it is committed.
    DiesAfter,
    /// It is committed, and nobody hears of it.
    AnswerLost,
}

/// Something that breaks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// A connection breaks; the agent may have to find that out by itself.
    Break {
        machine: usize,
        told: bool,
    },
    /// A machine is cut off.
    Cut {
        machine: usize,
        length: Duration,
    },
    /// An agent is killed.
    AgentDies(usize),
    /// An agent is killed in the middle of doing things.
    AgentDiesAmid(usize, u32),
    /// A connection between agent and shim breaks.
    Unlink(usize),
    /// A shim is killed.
    ShimDies(usize),
    /// A job's process is killed from outside.
    JobDies(usize),
    /// The kernel does not let go of a job's processes for a while.
    Stuck {
        machine: usize,
        length: Duration,
    },
    PowerFails(usize),
    Sleeps {
        machine: usize,
        length: Duration,
    },
    /// A machine's wall clock is set.
    ClockSet(usize),
    /// It is set while the next assignment is on its way to a shim, and that connection breaks.
    ClockSetAmid(usize),
    CoordinatorDies(usize),
    CoordinatorStops {
        coordinator: usize,
        length: Duration,
    },
    /// A coordinator cannot reach the database.
    CoordinatorCut {
        coordinator: usize,
        length: Duration,
    },
    DatabaseStops(Duration),
    Transaction(Fate),
}

impl World {
    pub(super) fn plan_faults(&mut self) {
        let many = match self.random.below(10) {
            0 => 0,
            1..=6 => 1 + self.random.below(5),
            _ => 5 + self.random.below(12),
        };
        let span = self.settings.calm_at.as_millis() as u64;
        for _ in 0..many {
            let at = self.random.millis(0, span);
            let fault = self.any_fault();
            self.later(at, Happening::Fault(fault));
        }
    }

    fn any_fault(&mut self) -> Fault {
        let machine = self.random.below(self.machines.len() as u64) as usize;
        let coordinator = self.random.below(self.coordinators.len() as u64) as usize;
        let lost = self.settings.lost_after.as_secs();
        let length = match self.random.below(3) {
            0 => self.random.seconds(1, 30),
            1 => self.random.seconds(30, lost),
            _ => self.random.seconds(lost, 2 * lost),
        };
        match self.random.below(23) {
            0 | 1 => Fault::Break {
                machine,
                told: self.random.chance(60),
            },
            2..=4 => Fault::Cut { machine, length },
            5 => Fault::AgentDies(machine),
            6 | 7 => Fault::AgentDiesAmid(machine, self.random.below(12) as u32),
            8 => Fault::Unlink(machine),
            9 | 10 => Fault::ShimDies(machine),
            11 => Fault::JobDies(machine),
            12 => Fault::Stuck {
                machine,
                length: length.min(Duration::from_secs(120)),
            },
            13 | 14 => Fault::PowerFails(machine),
            15 => Fault::Sleeps { machine, length },
            16 => Fault::ClockSet(machine),
            17 => Fault::CoordinatorDies(coordinator),
            18 => Fault::CoordinatorStops {
                coordinator,
                length,
            },
            19 => Fault::CoordinatorCut {
                coordinator,
                length,
            },
            20 => Fault::DatabaseStops(length.min(Duration::from_secs(300))),
            21 => Fault::ClockSetAmid(machine),
            _ => Fault::Transaction(
                self.random
                    .pick(&[Fate::DiesBefore, Fate::DiesAfter, Fate::AnswerLost])
                    .unwrap_or(Fate::AnswerLost),
            ),
        }
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        if self.calm {
            return;
        }
        tell!(self, "FAULT {fault:?}");
        let now = self.now;
        match fault {
            Fault::Break { machine, told } => {
                if let Some(id) = self.newest_connection(machine) {
                    self.break_connection(id, told);
                }
            }
            Fault::Cut { machine, length } => {
                self.machines[machine].cut_until = now + length;
                if length > Duration::from_secs(20)
                    && let Some(id) = self.newest_connection(machine)
                {
                    let notices = self.random.seconds(20, 45);
                    self.later(notices, Happening::CoordinatorLost(id));
                }
            }
            Fault::AgentDies(machine) => {
                if !self.machines[machine].is_asleep(now) {
                    self.agent_dies(machine);
                }
            }
            Fault::AgentDiesAmid(machine, effects) => {
                self.machines[machine].dies_after = Some(effects);
            }
            Fault::Unlink(machine) => self.unlink(machine),
            Fault::ShimDies(machine) => {
                if self.machines[machine].is_asleep(now) {
                    return;
                }
                let living: Vec<ShimId> = self.machines[machine]
                    .shims
                    .iter()
                    .filter(|(_, shim)| shim.alive)
                    .map(|(id, _)| *id)
                    .collect();
                if let Some(shim) = self.random.pick(&living) {
                    self.shim_dies(machine, shim);
                }
            }
            Fault::JobDies(machine) => {
                let fences: Vec<i64> = self.machines[machine].trees.keys().copied().collect();
                if !self.machines[machine].is_asleep(now)
                    && let Some(fence) = self.random.pick(&fences)
                {
                    self.job_is_killed(machine, fence);
                }
            }
            Fault::Stuck { machine, length } => {
                for tree in self.machines[machine].trees.values_mut() {
                    tree.stuck_until = now + length;
                }
            }
            Fault::PowerFails(machine) => self.power_fails(machine),
            Fault::Sleeps { machine, length } => self.sleeps(machine, length),
            Fault::ClockSet(machine) => self.leap(machine, Duration::ZERO),
            Fault::ClockSetAmid(machine) => self.machines[machine].leaps_amid = true,
            Fault::CoordinatorDies(coordinator) => self.coordinator_dies(coordinator),
            Fault::CoordinatorStops {
                coordinator,
                length,
            } => self.coordinators[coordinator].paused_until = now + length,
            Fault::CoordinatorCut {
                coordinator,
                length,
            } => self.coordinators[coordinator].cut_until = now + length,
            Fault::DatabaseStops(length) => self.database.down_until = now + length,
            Fault::Transaction(fate) => self.fate = Some(fate),
        }
    }

    fn newest_connection(&self, machine: usize) -> Option<u32> {
        self.connections
            .iter()
            .rev()
            .find(|(_, connection)| connection.machine == machine)
            .map(|(id, _)| *id)
    }

    /// What was under way to a shim is lost; the agent connects again.
    fn unlink(&mut self, machine: usize) {
        let there = &self.machines[machine];
        if there.agent.is_none() || there.is_asleep(self.now) {
            return;
        }
        let living: Vec<ShimId> = there
            .shims
            .iter()
            .filter(|(_, shim)| shim.alive && shim.ready)
            .map(|(id, _)| *id)
            .collect();
        if let Some(shim) = self.random.pick(&living) {
            self.connect_again(machine, shim);
        }
    }

    /// A certain connection breaks, if it is still there.
    pub(super) fn unlinked(&mut self, machine: usize, shim: ShimId, link: u64) {
        let there = &self.machines[machine];
        let newest = there.agent.as_ref().and_then(|shell| shell.link(shim));
        if newest == Some(link) {
            self.connect_again(machine, shim);
        }
    }

    /// The connection between an agent and a shim breaks, and another is made.
    pub(super) fn connect_again(&mut self, machine: usize, shim: ShimId) {
        let there = &mut self.machines[machine];
        let Some(segment) = there.shims.get_mut(&shim).filter(|segment| segment.alive) else {
            return;
        };
        let broken = segment.links;
        segment.lost.insert(broken);
        self.link(machine, shim);
        self.agent(machine, qctl_worker_core::agent::Event::Connected(shim));
        self.ring(machine, shim);
    }

    pub(super) fn calm_down(&mut self) {
        tell!(self, "nothing breaks any more");
        self.calm = true;
        self.fate = None;
        let now = self.now;
        self.database.down_until = now;
        for coordinator in &mut self.coordinators {
            coordinator.cut_until = now;
        }
        for machine in &mut self.machines {
            machine.cut_until = now;
            machine.dies_after = None;
            machine.leaps_amid = false;
        }
        self.later(Duration::from_secs(5), Happening::Tidy);
    }
}
