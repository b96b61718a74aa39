//! Connections between agents and coordinators. Within one connection messages keep their order and
//! none is lost before it breaks; between connections nothing is ordered, and what an old one still
//! carries may arrive long after a new one was made.

use std::collections::VecDeque;
use std::time::Duration;

use qctl_server_core::checkpoint::{ResumeCandidate, Told};
use qctl_server_core::ledger::{Answer, Message, What};
use qctl_server_core::reconcile::Held;
use qctl_server_core::{Fence, JobId};
use uuid::Uuid;

use super::{Happening, World, tell};

/// What a worker says when it connects.
#[derive(Clone, Debug)]
pub(super) struct Hello {
    pub(super) boot_id: String,
    pub(super) spool_id: Uuid,
    /// Its number among the greetings of this spool.
    pub(super) greeting: i64,
    pub(super) held: Vec<Held>,
    /// Checkpoints that were not answered for.
    pub(super) checkpoints: Vec<(Fence, Told)>,
}

/// From an agent.
#[derive(Clone, Debug)]
pub(super) enum Up {
    Hello(Hello),
    Report(Fence, Box<What>),
    Heartbeat(i64),
    End,
}

/// What a worker is answered.
#[derive(Clone, Debug)]
pub(super) struct Welcome {
    pub(super) term: i64,
    pub(super) slots: i32,
    pub(super) verdicts: Vec<Answer>,
}

/// An attempt to run.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) fence: Fence,
    pub(super) job: JobId,
    pub(super) number: i32,
    pub(super) term: i64,
    pub(super) boot_id: String,
    pub(super) spool_id: Uuid,
    pub(super) slots: i32,
    pub(super) beside_slots: bool,
    pub(super) exclusive: bool,
    pub(super) gpus: Vec<String>,
    pub(super) time_limit: Option<Duration>,
    pub(super) grace: Duration,
    /// What it may resume from, the newest first.
    pub(super) checkpoints: Vec<ResumeCandidate>,
}

/// To an agent.
#[derive(Clone, Debug)]
pub(super) enum Down {
    Welcome(Welcome),
    Ack(i64, i64),
    Assign(Vec<Given>),
    About(Message),
    SetSlots(i32),
    RemoveCheckpoints(Vec<i64>),
    End,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) machine: usize,
    /// The run of the agent that made it.
    pub(super) agent: u64,
    pub(super) coordinator: usize,
    /// The run of the coordinator that took it.
    pub(super) run: u64,
    up: VecDeque<Up>,
    down: VecDeque<Down>,
    /// When the last message of each direction arrives.
    up_at: Duration,
    down_at: Duration,
    /// Each side has not closed it.
    agent_open: bool,
    coordinator_open: bool,
    /// Nothing gets through any more.
    broken: bool,
    /// What it still carries to the coordinator arrives no sooner.
    lingers_until: Duration,
}

impl World {
    /// An agent connects to a coordinator.
    pub(super) fn connect(&mut self, machine: usize, coordinator: usize) -> u32 {
        self.next_connection += 1;
        let connection = Connection {
            machine,
            agent: self.machines[machine].runs,
            coordinator,
            run: self.coordinators[coordinator].runs,
            up: VecDeque::new(),
            down: VecDeque::new(),
            up_at: self.now,
            down_at: self.now,
            agent_open: true,
            coordinator_open: true,
            broken: false,
            lingers_until: Duration::ZERO,
        };
        self.connections.insert(self.next_connection, connection);
        self.next_connection
    }

    fn delay(&mut self) -> Duration {
        match self.random.below(12) {
            0 if !self.calm => self.random.millis(50, 3_000),
            _ => self.random.millis(0, 20),
        }
    }

    pub(super) fn send_up(&mut self, id: u32, message: Up) {
        let delay = self.delay();
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.broken || !connection.agent_open {
            return;
        }
        connection.up.push_back(message);
        connection.up_at = connection.up_at.max(now + delay);
        let at = connection.up_at;
        self.at(at, Happening::Up(id));
    }

    pub(super) fn send_down(&mut self, id: u32, message: Down) {
        let delay = self.delay();
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.broken || !connection.coordinator_open {
            return;
        }
        connection.down.push_back(message);
        connection.down_at = connection.down_at.max(now + delay);
        let at = connection.down_at;
        self.at(at, Happening::Down(id));
    }

    /// The agent closes its side: what it sent is still under way.
    pub(super) fn agent_closes(&mut self, id: u32) {
        self.send_up(id, Up::End);
        let lingers = !self.calm && self.random.chance(20);
        let until = match lingers {
            true => self.now + self.random.seconds(1, 90),
            false => Duration::ZERO,
        };
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.agent_open = false;
            connection.lingers_until = until;
            connection.down.clear();
        }
        self.sweep_connection(id);
    }

    /// The coordinator closes its side.
    pub(super) fn coordinator_closes(&mut self, id: u32) {
        self.send_down(id, Down::End);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.coordinator_open = false;
        }
        self.sweep_connection(id);
    }

    fn sweep_connection(&mut self, id: u32) {
        if self.connections.get(&id).is_some_and(|connection| {
            !connection.agent_open && !connection.coordinator_open && connection.up.is_empty()
        }) {
            self.connections.remove(&id);
        }
    }

    /// A process that ends takes its side of a connection with it.
    pub(super) fn agent_of_connection_died(&mut self, machine: usize) {
        let ids: Vec<u32> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.machine == machine && connection.agent_open)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.agent_closes(id);
        }
    }

    pub(super) fn coordinator_of_connection_died(&mut self, coordinator: usize) {
        let ids: Vec<u32> = self
            .connections
            .iter()
            .filter(|(_, one)| one.coordinator == coordinator && one.coordinator_open)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.coordinator_closes(id);
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.up.clear();
            }
            self.sweep_connection(id);
        }
    }

    /// A machine's power goes: nothing more is sent or received.
    pub(super) fn machine_of_connection_died(&mut self, machine: usize) {
        let ids: Vec<u32> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.machine == machine)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.break_connection(id, false);
        }
    }

    /// A connection breaks. What is under way is lost; both sides find out at some time.
    pub(super) fn break_connection(&mut self, id: u32, agent_notices: bool) {
        let coordinator_after = self.random.seconds(0, 40);
        let agent_after = self.random.seconds(0, 5);
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.broken = true;
        connection.up.clear();
        connection.down.clear();
        tell!(self, "connection {id} breaks");
        self.later(coordinator_after, Happening::CoordinatorLost(id));
        if agent_notices {
            self.later(agent_after, Happening::AgentLost(id));
        }
    }

    pub(super) fn up_arrives(&mut self, id: u32) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let cut = self.machines[connection.machine].cut_until;
        let until = cut.max(connection.lingers_until);
        if until > self.now {
            return self.at(until, Happening::Up(id));
        }
        let Some(message) = connection.up.pop_front() else {
            return;
        };
        let (machine, coordinator, run) =
            (connection.machine, connection.coordinator, connection.run);
        let open = connection.coordinator_open && !connection.broken;
        let here = &self.coordinators[coordinator];
        if open && here.up && here.runs == run {
            self.coordinator_hears(coordinator, machine, id, message);
        }
        self.sweep_connection(id);
    }

    pub(super) fn down_arrives(&mut self, id: u32) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let cut = self.machines[connection.machine].cut_until;
        if cut > self.now {
            return self.at(cut, Happening::Down(id));
        }
        let Some(message) = connection.down.pop_front() else {
            return;
        };
        let (machine, agent) = (connection.machine, connection.agent);
        let open = connection.agent_open && !connection.broken;
        if open && self.machines[machine].runs == agent {
            self.agent_hears(machine, id, message);
        }
    }

    pub(super) fn agent_lost(&mut self, id: u32) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.agent_open = false;
        let (machine, agent) = (connection.machine, connection.agent);
        if self.machines[machine].runs == agent {
            self.session_is_over(machine, id);
        }
        self.sweep_connection(id);
    }

    pub(super) fn coordinator_lost(&mut self, id: u32) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.coordinator_open = false;
        let (machine, coordinator, run) =
            (connection.machine, connection.coordinator, connection.run);
        let here = &self.coordinators[coordinator];
        if here.up && here.runs == run {
            self.farewell(coordinator, machine, id);
        }
        self.sweep_connection(id);
    }
}
