//! Rounds of the dispatcher, waits that end, and dependencies.

use std::sync::Arc;

use qctl_server_core::dispatch::{MadeAssignment, NewAssignment, Round, Target};
use qctl_server_core::job::{assigned_message, reason};
use qctl_server_core::ledger::{Ledger, Which};
use qctl_server_core::{JobId, WorkerId};
use qctl_simulation::double::Refused;

use super::pair::{Chosen, Decide, Pair, refused};
use super::view::{Differs, same, same_rows};
use crate::store::ledger::{load, save};
use crate::store::{dependencies, dispatch};

impl Pair {
    pub(super) async fn dispatch(&mut self, late: bool, ready: usize) -> Result<(), Differs> {
        let known: Vec<WorkerId> = self.double.workers().keys().copied().collect();
        let mut fleet = self.double.fleet(&known);
        for worker in &mut fleet.workers {
            worker.ready = ready;
        }
        let targets: Vec<Target> = self
            .double
            .workers()
            .values()
            .map(|known| Target {
                worker: known.worker.id,
                name: known.worker.name.clone(),
                boot_id: known.worker.boot_id.clone(),
                spool_id: known.worker.spool_id,
            })
            .collect();
        let mut round = Round::new(fleet.workers, targets, self.now);
        for queued in self.double.run_now_jobs() {
            round.start_now(&queued);
        }
        let mut window = round.first_window().filter(|_| !fleet.queue_paused);
        while let Some(wanted) = window {
            let mut conn = self.pool.acquire().await.expect("a connection");
            let real = dispatch::queued_jobs(&mut conn, round.accepting(), &wanted).await;
            let jobs = self.double.queued_jobs(round.accepting(), &wanted);
            same_rows("a window of the queue", &real.expect("jobs"), &jobs)?;
            window = round.offer(&wanted, &jobs);
        }
        let decided = round.finish();
        if !decided.ask_back.is_empty() {
            let fences = decided.ask_back.clone();
            let ask_back: Decide = Arc::new(move |ledger: &mut Ledger| {
                fences.iter().for_each(|fence| ledger.ask_back(*fence));
            });
            let which = Chosen::Attempts(decided.ask_back);
            self.change(late, which, ask_back).await?;
        }
        self.assign(late, &decided.assign).await
    }

    pub(super) fn assignment(&self, job: JobId, worker: WorkerId) -> NewAssignment {
        let known = &self.double.workers()[&worker].worker;
        NewAssignment {
            job,
            worker,
            worker_name: known.name.clone(),
            boot_id: known.boot_id.clone(),
            spool_id: known.spool_id,
            gpus: known.gpus.clone(),
            beside_slots: job.0 % 2 == 0,
            resume_from: String::new(),
            resumable: false,
            reason: reason::ASSIGNED,
            message: assigned_message(&known.name),
        }
    }

    pub(super) async fn assign(
        &mut self,
        late: bool,
        new: &[NewAssignment],
    ) -> Result<(), Differs> {
        let term = self.led(late).1;
        let mut conn = self.store.acquire().await.expect("a connection");
        let real = dispatch::assign(&mut conn, self.now, term, new).await;
        drop(conn);
        let mut real = match (real.map_err(refused), self.check_term(late)) {
            (Ok(real), Ok(())) => real,
            // A statement that finds nothing to assign may not have asked for the term.
            (Ok(real), Err(Refused::Term)) if real.is_empty() => return Ok(()),
            (real, ours) => return same("assigning", &real.map(|_| ()), &ours),
        };
        // Numbers are given in any order, and the double gives the same.
        real.sort_unstable_by_key(|made| made.fence);
        let is_made = |new: &&NewAssignment| real.iter().any(|made| made.job == new.job);
        let refused: Vec<NewAssignment> = new.iter().filter(|new| !is_made(new)).cloned().collect();
        let mut ours: Vec<MadeAssignment> = Vec::new();
        for made in &real {
            self.double.number_from(made.fence);
            let wanted = new.iter().filter(|new| new.job == made.job);
            let wanted: Vec<NewAssignment> = wanted.cloned().collect();
            ours.extend(self.double.assign(self.now, term.0, &wanted));
        }
        ours.extend(self.double.assign(self.now, term.0, &refused));
        same_rows("assignments", &real, &ours)
    }

    pub(super) async fn look_around(&mut self, late: bool) -> Result<(), Differs> {
        let (due, _) = self.double.due_jobs(self.now, 1_000);
        if !due.is_empty() {
            let jobs = due.clone();
            let decide: Decide =
                Arc::new(move |ledger| jobs.iter().for_each(|job| ledger.time_came(*job)));
            self.change(late, Chosen::Jobs(due), decide).await?;
        }
        let jobs = self.double.overlooked_dependents(1_000);
        if jobs.is_empty() {
            return Ok(());
        }
        let (now, backoff, theirs) = (self.now, self.backoff(), jobs.clone());
        let real = self.in_store(late, move |conn| {
            Box::pin(async move {
                let (rows, attempts) = load(conn, Which::Jobs(&theirs)).await?;
                let mut ledger = Ledger::new(now, backoff, rows, attempts);
                let open = dependencies::open_of(conn, &theirs).await?;
                let settled = ledger.settle_dependencies(&open);
                dependencies::meet(conn, &settled.met).await?;
                save(conn, now, &ledger.close()).await?;
                Ok(settled)
            })
        });
        let real = real.await;
        let term = self.check_term(late);
        let double = &mut self.double;
        let ours = term.and_then(|()| {
            let (rows, attempts) = double.load(Which::Jobs(&jobs));
            let mut ledger = Ledger::new(now, backoff, rows, attempts);
            let settled = ledger.settle_dependencies(&double.open_of(&jobs));
            double.meet(&settled.met);
            double.save(&ledger.close())?;
            Ok(settled)
        });
        same("settling dependencies", &real, &ours)
    }
}
