//! One task assigns queued jobs to workers. It is woken when there may be something to assign, and
//! looks by itself every few seconds.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use qctl_server_core::dispatch::{NewAssignment, Round, Target, Turnover};
use qctl_server_core::ledger::{What, Which};
use qctl_server_core::pace::usual_item;
use qctl_server_core::{Fence, JobId, WorkerId};

use super::transitions::Report;
use super::{App, Change, Doing, Duty, Error};
use crate::sessions::{Assignment, Connected, ToWorker};
use crate::store::checkpoints::{self, Place};
use crate::store::{Dedicated, StoreError, bounded, dispatch, pace};

/// Looks at the queue in one round: a job behind so many that have to wait fills in later.
const WINDOWS: usize = 8;
/// Assignments in one statement.
const ASSIGNMENTS: usize = 64;
/// Wait after the database failed, so that its absence is no busy loop.
const PAUSE: Duration = Duration::from_millis(200);

impl App {
    /// Assigns jobs until the coordinator stops.
    pub(super) async fn dispatch_forever(self: Arc<Self>) {
        let mut doing = Doing::new(Duty::Dispatcher);
        let mut database = Dedicated::default();
        loop {
            qctl_notify::panics::provoked("dispatcher");
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = self.wake.dispatch_wanted() => {}
                () = tokio::time::sleep(self.settings.wake_interval) => {}
            }
            let round = self.dispatch_round(&mut database).await;
            let round = round.map_err(Error::from);
            doing.note(&self, &round).await;
            if round.is_err() {
                database.give_up();
                self.wake.dispatch();
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = self.stop.cancelled() => return,
                }
            }
        }
    }

    /// Assigns what can be assigned now.
    pub(super) async fn dispatch_round(&self, database: &mut Dedicated) -> Result<(), StoreError> {
        // Two at a time would give the same room away twice.
        let _alone = self.dispatching.lock().await;
        let now = self.clock.now();
        let connected: HashMap<WorkerId, Connected> = self
            .sessions
            .connected()
            .into_iter()
            // One that is silent would keep what it is given waiting until it is heard of again.
            .filter(|connected| {
                let silent = (now - connected.last_contact).to_std().unwrap_or_default();
                silent <= self.silent_after()
            })
            .map(|connected| (connected.worker, connected))
            .collect();
        if connected.is_empty() {
            return Ok(());
        }
        let ids: Vec<WorkerId> = connected.keys().copied().collect();
        let fleet = bounded(dispatch::fleet(database.get(&self.store).await?, &ids, now));
        let mut fleet = fleet.await?;
        for (worker, oldest) in fleet.workers.iter_mut().zip(&fleet.oldest_start) {
            let oldest = oldest.map(|start| (now - start).to_std().unwrap_or_default());
            worker.ready = self.turnover().ready_places(worker.id, oldest);
        }
        let mut round = Round::new(fleet.workers, connected.values().map(target), now);
        round.leave(self.edits.jobs());
        if fleet.run_now {
            let jobs = bounded(dispatch::run_now_jobs(database.get(&self.store).await?));
            for queued in jobs.await? {
                round.start_now(&queued);
            }
        }
        let mut window = round.first_window().filter(|_| !fleet.queue_paused);
        for _ in 0..WINDOWS {
            let Some(wanted) = window else { break };
            let conn = database.get(&self.store).await?;
            let jobs = bounded(dispatch::queued_jobs(conn, round.accepting(), &wanted)).await?;
            window = round.offer(&wanted, &jobs);
        }
        let decided = round.finish();
        self.ask_back(database, &decided.ask_back).await?;
        for part in decided.assign.chunks(ASSIGNMENTS) {
            self.assign(database, part, &connected).await?;
        }
        Ok(())
    }

    pub(super) fn turnover(&self) -> MutexGuard<'_, Turnover> {
        self.turnover.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks workers for attempts back that have not started.
    async fn ask_back(&self, database: &mut Dedicated, fences: &[Fence]) -> Result<(), StoreError> {
        if fences.is_empty() {
            return Ok(());
        }
        let worked = bounded(async {
            let mut transaction = database.begin(&self.store).await?;
            let mut ledger = self
                .open_ledger(&mut transaction, Which::Attempts(fences))
                .await?;
            for fence in fences {
                ledger.ask_back(*fence);
            }
            let after = self.save_ledger(&mut transaction, ledger).await?;
            Ok((transaction, after))
        });
        let (transaction, after) = worked.await?;
        self.commit(transaction, after).await
    }

    /// Makes attempts, and hands them to the sessions they were made for.
    async fn assign(
        &self,
        database: &mut Dedicated,
        picked: &[NewAssignment],
        connected: &HashMap<WorkerId, Connected>,
    ) -> Result<(), StoreError> {
        let conn = database.get(&self.store).await?;
        // Nothing is published for a job that waits, so that this is still so when it is assigned.
        let places: Vec<Place> = picked
            .iter()
            .filter(|new| new.resumable)
            .map(|new| Place {
                job: new.job,
                worker: new.worker,
            })
            .collect();
        let mut candidates = match places.is_empty() {
            true => HashMap::new(),
            false => bounded(checkpoints::candidates(conn, &places)).await?,
        };
        let with_gpus: Vec<JobId> = picked
            .iter()
            .filter(|new| !new.gpus.is_empty())
            .map(|new| new.job)
            .collect();
        let earlier = match with_gpus.is_empty() {
            true => HashMap::new(),
            false => bounded(pace::earlier_runs(conn, &with_gpus)).await?,
        };
        let made = dispatch::assign(conn, self.clock.now(), self.term, picked);
        let made = match bounded(made).await {
            Ok(made) => made,
            Err(error) => {
                let error = self.store.noted(error);
                // The statement may have been committed although its answer was lost. A worker that
                // greets again is asked what it holds, and what it was never told goes back.
                for new in picked {
                    if let Some(target) = connected.get(&new.worker) {
                        self.sessions.close(new.worker, target.session);
                    }
                }
                return Err(error);
            }
        };
        let by_job: HashMap<JobId, &NewAssignment> =
            picked.iter().map(|new| (new.job, new)).collect();
        let changed: Arc<[JobId]> = made.iter().map(|made| made.job).collect();
        let mut by_worker: HashMap<WorkerId, Vec<Assignment>> = HashMap::new();
        for made in made {
            let Some(new) = by_job.get(&made.job) else {
                continue;
            };
            self.live.track(made.fence, made.job);
            by_worker.entry(new.worker).or_default().push(Assignment {
                fence: made.fence,
                job: made.job,
                number: made.number,
                spec: made.spec,
                term: self.term,
                boot_id: new.boot_id.clone(),
                spool_id: new.spool_id,
                resume_from: new.resume_from.clone(),
                gpus: new.gpus.clone(),
                beside_slots: new.beside_slots,
                checkpoints: candidates.remove(&made.job).unwrap_or_default(),
                default_silence: self.settings.silence,
                default_gpu_idle: self.settings.gpu_idle,
                usual_item: earlier.get(&made.job).and_then(|runs| usual_item(runs)),
            });
        }
        for (worker, assignments) in by_worker {
            let Some(target) = connected.get(&worker) else {
                continue;
            };
            let fences: Vec<Fence> = assignments.iter().map(|new| new.fence).collect();
            let message = ToWorker::Assign(assignments);
            if self.sessions.send_to(worker, target.session, message) {
                continue;
            }
            for fence in fences {
                let report = Report {
                    worker,
                    session: target.session,
                    fence,
                    what: What::NotSent,
                };
                if self.report(report).await.is_err() {
                    break;
                }
            }
        }
        if !changed.is_empty() {
            self.changes.tell(Change::Jobs(changed));
        }
        Ok(())
    }
}

fn target(connected: &Connected) -> Target {
    Target {
        worker: connected.worker,
        name: connected.name.clone(),
        boot_id: connected.boot_id.clone(),
        spool_id: connected.spool_id,
    }
}
