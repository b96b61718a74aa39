//! What the coordinator looks for on a timer: silence, waits that end, dependencies.

use std::time::Duration;

use chrono::TimeDelta;
use qctl_server_core::job::JobEvent;
use qctl_server_core::ledger::{COORDINATOR, Ledger, Which, lapsed};
use qctl_server_core::{Fence, JobId, WorkerId};

use super::{BATCH, Change, Task, Trouble};
use crate::world::World;
use crate::world::network::Down;

/// How long a job waits for the worker that has its checkpoint.
const CHECKPOINT_WAIT: TimeDelta = TimeDelta::seconds(600);
/// How long the checkpoints of a job are kept that did not end well.
const CHECKPOINTS_KEPT: TimeDelta = TimeDelta::seconds(900);

impl World {
    pub(super) fn watch_leases(&mut self, coordinator: usize) {
        let answers = self.database_answers(coordinator);
        let (now, heartbeat) = (self.now, self.settings.heartbeat);
        let current = self.database.double.current_attempts(usize::MAX);
        let Some(lead) = self.coordinators[coordinator].lead.as_mut() else {
            return;
        };
        if !answers {
            lead.looked = None;
            return;
        }
        let before = lead.looked_at.replace(now);
        let elapsed = lead
            .looked
            .replace(now)
            .map_or(Duration::ZERO, |at| now - at);
        let (contacts, sessions) = (&lead.contacts, &lead.sessions);
        let heard = |worker: WorkerId| {
            let Some(at) = contacts.get(&worker) else {
                return false;
            };
            // A session may have come and gone between two looks.
            let in_session = sessions.contains_key(&worker) && now - *at <= heartbeat * 2;
            in_session || before.is_some_and(|before| *at > before)
        };
        let lapsed = lapsed(&mut lead.leases, &current, heard, elapsed, true);
        let after = self.settings.unreachable_after;
        let lost_after = self.settings.lost_after;
        let parts: [(&[Fence], Change<'_>); 4] = [
            (&lapsed.unreachable, &|ledger, fence| {
                ledger.unreachable(fence, after);
            }),
            (&lapsed.record_gone, &|ledger, fence| {
                ledger.record_gone(fence, after, lost_after);
            }),
            (&lapsed.back, &Ledger::reachable),
            (&lapsed.lost, &Ledger::give_up),
        ];
        for (fences, apply) in parts {
            if fences.is_empty() {
                continue;
            }
            let done = self.change(coordinator, Which::Attempts(fences), |ledger, _| {
                fences.iter().for_each(|fence| apply(ledger, *fence));
                Ok(())
            });
            if done.is_err() {
                return;
            }
        }
    }

    pub(super) fn queue_due(&mut self, coordinator: usize) {
        if !self.database_answers(coordinator) {
            return;
        }
        let now = self.time_of(coordinator);
        let (due, _) = self.database.double.due_jobs(now, BATCH);
        if !due.is_empty() {
            let _ = self.change(coordinator, Which::Jobs(&due), |ledger, _| {
                due.iter().for_each(|job| ledger.time_came(*job));
                Ok(())
            });
        }
    }

    /// Holds jobs whose checkpoint lies on a worker that stays away.
    pub(super) fn hold_for_checkpoints(&mut self, coordinator: usize) {
        if !self.database_answers(coordinator) {
            return;
        }
        let before = self.time_of(coordinator) - CHECKPOINT_WAIT;
        let waiting = self.database.double.waiting_for_checkpoint(before);
        let Some(lead) = self.lead_of(coordinator) else {
            return;
        };
        let jobs: Vec<JobId> = waiting
            .iter()
            .filter(|(_, worker, _)| !lead.sessions.contains_key(worker))
            .map(|(job, _, _)| *job)
            .collect();
        if jobs.is_empty() {
            return;
        }
        let _ = self.change(coordinator, Which::Jobs(&jobs), |ledger, _| {
            for job in &jobs {
                let event = JobEvent::HoldForCheckpoint("its worker is away".to_owned());
                let _ = ledger.job_event(*job, &event, COORDINATOR);
            }
            Ok(())
        });
    }

    /// Gives up the checkpoints that nobody needs, and tells every worker.
    pub(super) fn give_up_checkpoints(&mut self, coordinator: usize) {
        let before = self.time_of(coordinator) - CHECKPOINTS_KEPT;
        let given_up =
            self.transaction(coordinator, |double| Ok(double.give_up_checkpoints(before)));
        let (Ok(jobs), Some(lead)) = (given_up, self.lead_of(coordinator)) else {
            return;
        };
        let jobs: Vec<i64> = jobs.iter().map(|job| job.0).collect();
        let sessions = lead.sessions.values();
        let connections: Vec<u32> = sessions.map(|session| session.connection).collect();
        for connection in connections.into_iter().filter(|_| !jobs.is_empty()) {
            self.send_down(connection, Down::RemoveCheckpoints(jobs.clone()));
        }
    }

    pub(super) fn resolve(&mut self, coordinator: usize) {
        let Some(lead) = self.lead_of(coordinator) else {
            return;
        };
        let ended: Vec<JobId> = std::mem::take(&mut lead.ended).into_iter().collect();
        if self.resolve_dependents(coordinator, &ended).is_err()
            && let Some(lead) = self.lead_of(coordinator)
        {
            lead.ended.extend(ended);
            self.task_after(coordinator, Duration::from_secs(1), Task::Resolve);
        }
    }

    pub(in crate::world) fn resolve_dependents(
        &mut self,
        coordinator: usize,
        ended: &[JobId],
    ) -> Result<(), Trouble> {
        if !self.database_answers(coordinator) {
            return Err(Trouble::Unavailable);
        }
        let jobs = self.database.double.dependents_of(ended, BATCH);
        self.settle_dependencies(coordinator, &jobs)
    }

    pub(super) fn settle_dependencies(
        &mut self,
        coordinator: usize,
        jobs: &[JobId],
    ) -> Result<(), Trouble> {
        if jobs.is_empty() {
            return Ok(());
        }
        self.change(coordinator, Which::Jobs(jobs), |ledger, double| {
            let open = double.open_of(jobs);
            let settled = ledger.settle_dependencies(&open);
            double.meet(&settled.met);
            Ok(())
        })
    }

    /// What holds a job for a person's look is released by one.
    pub(in crate::world) fn release_held(&mut self, coordinator: usize, jobs: &[JobId]) {
        let _ = self.change(coordinator, Which::Jobs(jobs), |ledger, _| {
            for job in jobs {
                let _ = ledger.job_event(*job, &JobEvent::Release, COORDINATOR);
            }
            Ok(())
        });
    }
}
