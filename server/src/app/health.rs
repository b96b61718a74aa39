//! How every machine does: the facts are gathered here, the core finds the words.

use std::collections::HashMap;

use chrono::TimeDelta;
use qctl_server_core::alarm::{Kind, Subject};
use qctl_server_core::health::{self, Connection, Ends, Finding, Health, Oldest, WorkerFacts};
use qctl_server_core::{JobState, WorkerId};

use super::read::{WorkerState, WorkerView};
use super::{App, Error};

/// Workers whose health is told, at most.
const WORKERS: usize = 1_000;
/// The period in which failures are counted.
const LATELY: TimeDelta = TimeDelta::hours(1);

/// How a machine does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineHealth {
    /// Its name.
    pub machine: String,
    /// True for the coordinator's.
    pub is_coordinator: bool,
    /// What was looked at.
    pub findings: Vec<Finding>,
}

impl MachineHealth {
    /// The worst of what was found.
    pub fn health(&self) -> Health {
        health::worst(&self.findings)
    }
}

impl App {
    /// How every machine does: the coordinator first, then the workers by name.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn health(&self) -> Result<Vec<MachineHealth>, Error> {
        let now = self.clock.now();
        let workers = self.worker_views("", None, WORKERS).await?;
        let ends = self.store.ends_since(now - LATELY).await?;
        let ends: HashMap<WorkerId, Ends> = ends.into_iter().collect();
        let mut alarms: HashMap<Subject, Vec<Kind>> = HashMap::new();
        for episode in self.store.open_alarms().await? {
            alarms
                .entry(episode.subject)
                .or_default()
                .push(episode.kind);
        }
        let queued = self.store.queue_counts(now).await?;
        let queued = queued.iter().find(|(state, _)| *state == JobState::Queued);
        let channels = self.notices.channels().iter();
        let all = ends.values().fold(Ends::default(), |sum, ends| Ends {
            all: sum.all + ends.all,
            failed: sum.failed + ends.failed,
        });
        let oldest = self.store.oldest_queued(None, now).await?;
        let (host, disk) = match self.own_disk_seen() {
            Some((machine, disk)) => {
                let room = self.room(None, disk.free, disk.total);
                (machine.host, Some(room))
            }
            // It was started a moment ago.
            None => ("this machine".to_owned(), None),
        };
        let coordinator = health::CoordinatorFacts {
            host: host.clone(),
            database: self.about.database.clone(),
            disk,
            alarms: alarms.remove(&Subject::Coordinator).unwrap_or_default(),
            paused: self.store.queue_is_paused().await?,
            queued: queued.map_or(0, |(_, count)| *count),
            oldest: oldest.map(|(job, seconds)| Oldest { job, seconds }),
            ends: all,
            channels: channels
                .map(|name| (name.clone(), self.notices.problem(name)))
                .collect(),
        };
        let mut machines = vec![MachineHealth {
            machine: host,
            is_coordinator: true,
            findings: health::of_coordinator(&coordinator),
        }];
        for worker in workers {
            let id = worker.worker.id;
            let alarms = alarms.remove(&Subject::Worker(id)).unwrap_or_default();
            let ends = ends.get(&id).copied().unwrap_or_default();
            let facts = self.facts_of(&worker, alarms, ends).await?;
            machines.push(MachineHealth {
                machine: worker.worker.name,
                is_coordinator: false,
                findings: health::of_worker(&facts),
            });
        }
        Ok(machines)
    }

    async fn facts_of(
        &self,
        view: &WorkerView,
        alarms: Vec<Kind>,
        ends: Ends,
    ) -> Result<WorkerFacts, Error> {
        let now = self.clock.now();
        let worker = &view.worker;
        let silent = worker
            .last_seen
            .map_or(0, |seen| (now - seen).num_seconds());
        let connection = match view.state {
            WorkerState::Online | WorkerState::Paused | WorkerState::Draining => Connection::Heard,
            WorkerState::Offline => Connection::Off,
            WorkerState::Reconnecting | WorkerState::Unreachable => Connection::Silent {
                seconds: silent,
                jobs: i64::try_from(worker.attempts.len()).unwrap_or(i64::MAX),
            },
        };
        let used = self.measured_lately(worker.id);
        let oldest = match connection {
            Connection::Heard => self.store.oldest_queued(Some(worker), now).await?,
            Connection::Silent { .. } | Connection::Off => None,
        };
        Ok(WorkerFacts {
            name: worker.name.clone(),
            connection,
            takes_jobs: view.state == WorkerState::Online,
            free_slots: i64::from((worker.total.slots - worker.taken.slots).max(0)),
            busy: used.and_then(|used| used.busy),
            memory: used.and_then(|used| used.memory_available_bytes.zip(used.memory_total_bytes)),
            disk: used
                .and_then(|used| used.disk_free_bytes.zip(used.disk_total_bytes))
                .map(|(free, total)| self.room(Some(worker.id), free, total)),
            gpu_temperature: used.and_then(|used| used.gpu_temperature),
            alarms,
            oldest: oldest.map(|(job, seconds)| Oldest { job, seconds }),
            ends,
        })
    }
}
