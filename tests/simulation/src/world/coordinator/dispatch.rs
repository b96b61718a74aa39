//! Rounds of the dispatcher, as `server/src/app/dispatch.rs` has them.

use std::collections::BTreeMap;
use std::time::Duration;

use qctl_server_core::WorkerId;
use qctl_server_core::dispatch::{NewAssignment, Round, Target};
use qctl_server_core::ledger::{What, Which};

use super::{Task, Trouble};
use crate::world::network::{Down, Given};
use crate::world::{World, tell};

/// Time between the stop signal and force of a job that names none.
const GRACE: Duration = Duration::from_secs(10);

impl World {
    pub(in crate::world) fn want_dispatch(&mut self, coordinator: usize) {
        let Some(lead) = self.lead_of(coordinator) else {
            return;
        };
        if lead.dispatching {
            lead.dispatch_wanted = true;
            return;
        }
        lead.dispatching = true;
        self.soon(coordinator, Task::Dispatch);
    }

    pub(super) fn round_is_over(&mut self, coordinator: usize) {
        if let Some(lead) = self.lead_of(coordinator) {
            lead.dispatching = false;
            if std::mem::take(&mut lead.dispatch_wanted) {
                self.want_dispatch(coordinator);
            }
        }
    }

    pub(super) fn dispatch(&mut self, coordinator: usize) {
        let now = self.time_of(coordinator);
        let answers = self.database_answers(coordinator);
        let double = &self.database.double;
        let Some(lead) = self.coordinators[coordinator].lead.as_ref() else {
            return;
        };
        let ids: Vec<WorkerId> = lead.sessions.keys().copied().collect();
        if !answers || ids.is_empty() {
            return self.round_is_over(coordinator);
        }
        let mut fleet = double.fleet(&ids);
        for (worker, oldest) in fleet.workers.iter_mut().zip(&fleet.oldest_start) {
            let oldest = oldest.map(|start| (now - start).to_std().unwrap_or_default());
            worker.ready = lead
                .turnover
                .ready_places(worker.id, oldest)
                .max(self.settings.ready);
        }
        let targets = lead.sessions.iter().map(|(worker, session)| Target {
            worker: *worker,
            name: session.name.clone(),
            boot_id: session.boot_id.clone(),
            spool_id: session.spool_id,
        });
        let mut round = Round::new(fleet.workers, targets, now);
        if fleet.run_now {
            for queued in double.run_now_jobs() {
                round.start_now(&queued);
            }
        }
        let mut window = round.first_window().filter(|_| !fleet.queue_paused);
        while let Some(wanted) = window {
            let jobs = double.queued_jobs(round.accepting(), &wanted);
            window = round.offer(&wanted, &jobs);
        }
        let connections = lead
            .sessions
            .iter()
            .map(|(worker, session)| (*worker, session.connection))
            .collect();
        let decided = round.finish();
        if !decided.ask_back.is_empty() {
            let _ = self.change(
                coordinator,
                Which::Attempts(&decided.ask_back),
                |ledger, _| {
                    for fence in &decided.ask_back {
                        ledger.ask_back(*fence);
                    }
                    Ok(())
                },
            );
        }
        match decided.assign.is_empty() {
            true => self.round_is_over(coordinator),
            // Others write in between.
            false => self.soon(coordinator, Task::Assign(decided.assign, connections)),
        }
    }

    pub(super) fn assign(
        &mut self,
        coordinator: usize,
        decided: &[NewAssignment],
        sessions: &BTreeMap<WorkerId, u32>,
    ) {
        let now = self.time_of(coordinator);
        let Some(term) = self.lead_of(coordinator).map(|lead| lead.term) else {
            return;
        };
        let made = self.transaction(coordinator, |double| Ok(double.assign(now, term, decided)));
        let made = match made {
            Ok(made) => made,
            Err(Trouble::Gone) => return,
            Err(_) => {
                // What may have been committed is found out by greeting anew.
                for new in decided {
                    if let Some(connection) = sessions.get(&new.worker) {
                        self.close_session(coordinator, new.worker, *connection);
                    }
                }
                return self.round_is_over(coordinator);
            }
        };
        for made in made {
            let Some(new) = decided.iter().find(|new| new.job == made.job) else {
                continue;
            };
            tell!(
                self,
                "job {} is assigned to {} as fence {}",
                made.job.0,
                new.worker_name,
                made.fence.0
            );
            let given = Given {
                fence: made.fence,
                job: made.job,
                number: made.number.0,
                term,
                boot_id: new.boot_id.clone(),
                spool_id: new.spool_id,
                slots: made.spec.demand.slots,
                beside_slots: new.beside_slots,
                exclusive: made.spec.exclusive,
                gpus: new.gpus.clone(),
                time_limit: made.spec.time_limit,
                grace: made.spec.stop_grace.unwrap_or(GRACE),
                checkpoints: match new.resumable {
                    true => self.database.double.candidates(made.job, new.worker),
                    false => Vec::new(),
                },
            };
            let target = sessions.get(&new.worker).copied().unwrap_or_default();
            let current = self.lead_of(coordinator).and_then(|lead| {
                let session = lead.sessions.get(&new.worker)?;
                (session.connection == target).then_some(session.connection)
            });
            if let Some(current) = current {
                self.send_down(current, Down::Assign(vec![given]));
            } else {
                self.incoming(coordinator, new.worker, target, made.fence, What::NotSent);
            }
        }
        self.round_is_over(coordinator);
    }
}
