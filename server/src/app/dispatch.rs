//! One task assigns queued jobs to workers. It is woken when there may be something to assign, and
//! looks by itself every few seconds.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use qctl_server_core::job;
use qctl_server_core::ledger::{What, Which};
use qctl_server_core::placement::{Placed, Placement, Worker};
use qctl_server_core::{Fence, JobId, WorkerId};

use super::transitions::Report;
use super::{App, Change};
use crate::sessions::{Assignment, Connected, ToWorker};
use crate::store::dispatch::{self, NewAssignment, QueuedJob, Window};
use crate::store::{Dedicated, StoreError};

/// Jobs in one look at the queue, at most.
const WINDOW: i64 = 500;
/// Looks at the queue in one round: a job behind so many that have to wait fills in later.
const WINDOWS: usize = 8;
/// Assignments in one statement.
const ASSIGNMENTS: usize = 64;
/// Wait after the database failed, so that its absence is no busy loop.
const PAUSE: Duration = Duration::from_millis(200);

impl App {
    /// Assigns jobs until the coordinator stops.
    pub(super) async fn dispatch_forever(self: Arc<Self>) {
        let mut failing = false;
        let mut database = Dedicated::default();
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = self.wake.dispatch_wanted() => {}
                () = tokio::time::sleep(self.settings.wake_interval) => {}
            }
            match self.dispatch_round(&mut database).await {
                Ok(()) => failing = false,
                Err(error) => {
                    if !failing {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "no job can be assigned now: {error}"
                        );
                    }
                    failing = true;
                    database.give_up();
                    self.wake.dispatch();
                    tokio::select! {
                        () = tokio::time::sleep(PAUSE) => {}
                        () = self.stop.cancelled() => return,
                    }
                }
            }
        }
    }

    /// Assigns what can be assigned now.
    pub(super) async fn dispatch_round(&self, database: &mut Dedicated) -> Result<(), StoreError> {
        let connected: HashMap<WorkerId, Connected> = self
            .sessions
            .connected()
            .into_iter()
            .map(|connected| (connected.worker, connected))
            .collect();
        if connected.is_empty() {
            return Ok(());
        }
        let ids: Vec<WorkerId> = connected.keys().copied().collect();
        let now = self.clock.now();
        let mut fleet = dispatch::fleet(database.get(&self.store).await?, &ids).await?;
        for (worker, oldest) in fleet.workers.iter_mut().zip(&fleet.oldest_start) {
            let oldest = oldest.map(|start| (now - start).to_std().unwrap_or_default());
            worker.ready = self.turnover.ready_places(worker.id, oldest);
        }
        let mut placement = Placement::new(fleet.workers.clone(), now);
        let mut picked = Vec::new();
        let mut taken = HashSet::new();
        let run_now = match fleet.run_now {
            true => dispatch::run_now_jobs(database.get(&self.store).await?).await?,
            false => Vec::new(),
        };
        for queued in run_now {
            let target = queued.run_now_on.and_then(|worker| connected.get(&worker));
            let Some(target) = target else { continue };
            if let Some(gpus) = placement.place_now(target.worker, &queued.candidate.demand) {
                taken.insert(queued.candidate.job);
                picked.push(assignment(&queued, target, gpus, true));
            }
        }
        if !fleet.queue_paused {
            self.fill(
                database,
                &mut placement,
                &fleet.workers,
                &connected,
                &mut picked,
                &mut taken,
            )
            .await?;
        }
        // What has to make room goes first, so that a worker never has two jobs ready.
        self.ask_back(database, &placement.finish()).await?;
        for part in picked.chunks(ASSIGNMENTS) {
            self.assign(database, part, &connected).await?;
        }
        Ok(())
    }

    /// Offers the queue to the workers, as far as they have room.
    async fn fill(
        &self,
        database: &mut Dedicated,
        placement: &mut Placement,
        workers: &[Worker],
        connected: &HashMap<WorkerId, Connected>,
        picked: &mut Vec<NewAssignment>,
        taken: &mut HashSet<JobId>,
    ) -> Result<(), StoreError> {
        let accepting: Vec<Worker> = workers
            .iter()
            .filter(|worker| worker.accepts)
            .cloned()
            .collect();
        // One more than there is room for, so that the first that has to wait reserves.
        let places = i64::try_from(placement.places()).unwrap_or(WINDOW);
        if accepting.is_empty() || places == 0 {
            return Ok(());
        }
        let mut window = Window {
            after: None,
            limit: (places + 1).min(WINDOW),
        };
        for _ in 0..WINDOWS {
            let conn = database.get(&self.store).await?;
            let jobs = dispatch::queued_jobs(conn, &accepting, &window).await?;
            let full = jobs.len() as i64 == window.limit;
            if let Some(last) = jobs.last() {
                window.after = Some((last.priority, last.candidate.job));
            }
            for queued in jobs {
                if !placement.wants(queued.candidate.order) {
                    return Ok(());
                }
                if taken.contains(&queued.candidate.job) {
                    continue;
                }
                if let Placed::Assign { worker, gpus } = placement.offer(&queued.candidate)
                    && let Some(target) = connected.get(&worker)
                {
                    taken.insert(queued.candidate.job);
                    picked.push(assignment(&queued, target, gpus, false));
                }
            }
            if !full {
                return Ok(());
            }
            window.limit = WINDOW;
        }
        Ok(())
    }

    /// Asks workers for attempts back that have not started.
    async fn ask_back(&self, database: &mut Dedicated, fences: &[Fence]) -> Result<(), StoreError> {
        if fences.is_empty() {
            return Ok(());
        }
        let mut transaction = database.begin(&self.store).await?;
        let mut ledger = self
            .open_ledger(&mut transaction, Which::Attempts(fences))
            .await?;
        for fence in fences {
            ledger.ask_back(*fence);
        }
        let after = self.save_ledger(&mut transaction, ledger).await?;
        transaction.commit().await?;
        self.carry_out(after);
        Ok(())
    }

    /// Makes attempts, and hands them to the sessions they were made for.
    async fn assign(
        &self,
        database: &mut Dedicated,
        picked: &[NewAssignment],
        connected: &HashMap<WorkerId, Connected>,
    ) -> Result<(), StoreError> {
        let conn = database.get(&self.store).await?;
        let made = match dispatch::assign(conn, self.clock.now(), self.term, picked).await {
            Ok(made) => made,
            Err(error) => {
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

fn assignment(
    queued: &QueuedJob,
    target: &Connected,
    gpus: Vec<String>,
    beside_slots: bool,
) -> NewAssignment {
    let resume_from = match &queued.checkpoint {
        Some((worker, directory)) if *worker == target.worker => directory.clone(),
        _ => String::new(),
    };
    NewAssignment {
        job: queued.candidate.job,
        worker: target.worker,
        worker_name: target.name.clone(),
        boot_id: target.boot_id.clone(),
        spool_id: target.spool_id,
        gpus,
        beside_slots,
        resume_from,
        reason: job::reason::ASSIGNED,
        message: job::assigned_message(&target.name),
    }
}
