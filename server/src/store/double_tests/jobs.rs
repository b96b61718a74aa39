//! What people do: submitting, asking, deleting.

use std::sync::Arc;
use std::time::Duration;

use qctl_server_core::checkpoint::CheckpointId;
use qctl_server_core::dependency::{Standing, standing};
use qctl_server_core::job::{Job, JobEffect, JobEvent, JobState};
use qctl_server_core::ledger::Ledger;
use qctl_server_core::{Demand, Dependency, JobId, JobSpec, WorkerId};
use qctl_simulation::double::NewJob;

use super::pair::{Decide, MACHINES, PERSON, Pair, name, pick};
use super::steps::{Pick, Wanted, Wanting, Wish};
use super::view::{Differs, same};
use crate::store::checkpoints::{begin_from, usable};
use crate::store::{requests, submit};

impl Pair {
    pub(super) fn wish(&self, wish: &Wish) -> Option<(JobId, Decide)> {
        let job = self.job(wish.job)?;
        let what = wish.what;
        let worker = match what {
            Wanting::RunNow(worker) => Some(self.known_worker(worker)?),
            _ => None,
        };
        Some((job, asked(job, what, worker)))
    }

    pub(super) async fn submit(
        &mut self,
        late: bool,
        again: bool,
        jobs: &[Wanted],
    ) -> Result<(), Differs> {
        let earlier: Vec<JobId> = self.double.jobs().keys().copied().collect();
        let ids = self.reserve(jobs.len()).await?;
        let mut specs = Vec::new();
        for (index, wanted) in jobs.iter().enumerate() {
            let known: Vec<JobId> = earlier.iter().chain(&ids[..index]).copied().collect();
            let mut after: Vec<Dependency> = Vec::new();
            for (on, condition) in &wanted.after {
                if let Some(job) = pick(&known, *on)
                    && after.iter().all(|other| other.job != job)
                {
                    after.push(Dependency {
                        job,
                        condition: *condition,
                    });
                }
            }
            let pinned = wanted.pinned.map(|pick| usize::from(pick) % MACHINES);
            specs.push(JobSpec {
                name: format!("job {}", ids[index].0),
                command: vec!["true".to_owned()],
                demand: Demand {
                    slots: wanted.slots,
                    gpus: wanted.gpus,
                    memory_bytes: wanted.memory_bytes,
                },
                priority: wanted.priority,
                retries: Some(wanted.retries),
                resumes: Some(wanted.resumes),
                exclusive: wanted.exclusive,
                hold: wanted.hold,
                time_limit: wanted.time_limit.map(Duration::from_secs),
                worker: pinned.map(name).unwrap_or_default(),
                after,
                ..JobSpec::default()
            });
        }
        self.insert(late, again, &ids, specs, None).await
    }

    pub(super) async fn retry(
        &mut self,
        late: bool,
        job: Pick,
        resumes: bool,
    ) -> Result<(), Differs> {
        let jobs = self.double.jobs().iter();
        let ended = jobs.filter(|(_, stored)| stored.job.state.is_final());
        let ended: Vec<JobId> = ended.map(|(id, _)| *id).collect();
        let Some(job) = pick(&ended, job) else {
            return Ok(());
        };
        let spec = self.double.spec_of(job).cloned();
        let mut conn = self.pool.acquire().await.expect("a connection");
        let real = submit::spec_of(&mut conn, job).await.expect("a spec");
        same("a spec", &real, &spec)?;
        let from = usable(&mut conn, job, None).await.expect("a checkpoint");
        same("what to retry from", &from, &self.double.usable(job, None))?;
        drop(conn);
        let spec = JobSpec {
            after: Vec::new(),
            hold: false,
            ..spec.unwrap_or_default()
        };
        let ids = self.reserve(1).await?;
        let from = from.filter(|_| resumes).map(|(id, _, _)| id);
        self.insert(late, false, &ids, vec![spec], Some((job, from)))
            .await
    }

    pub(super) async fn reserve(&mut self, count: usize) -> Result<Vec<JobId>, Differs> {
        let ids = self.store.reserve_ids(count).await.expect("numbers");
        same("numbers", &ids, &self.double.reserve_ids(count))?;
        Ok(ids)
    }

    pub(super) async fn insert(
        &mut self,
        late: bool,
        again: bool,
        ids: &[JobId],
        mut specs: Vec<JobSpec>,
        repeats: Option<(JobId, Option<CheckpointId>)>,
    ) -> Result<(), Differs> {
        let known: Vec<JobId> = self.double.jobs().keys().copied().collect();
        let mut jobs = Vec::new();
        for (id, spec) in ids.iter().zip(&mut specs) {
            let double = &self.double;
            let how = |on: &Dependency| match double.states(&[on.job]).first() {
                Some((_, state)) => standing(on.condition, Some(*state)),
                None => Standing::Open,
            };
            spec.after.retain(|on| how(on) != Standing::Impossible);
            let met: Vec<bool> = spec
                .after
                .iter()
                .map(|on| how(on) == Standing::Met)
                .collect();
            let unmet = met.iter().filter(|met| !**met).count() as i32;
            jobs.push(NewJob {
                id: *id,
                job: Job::submitted(spec, unmet),
                spec: spec.clone(),
                met,
                retry_of: repeats.map(|(job, _)| job),
            });
        }
        self.requests += u64::from(!again || self.requests == 0);
        let request = format!("request {}", self.requests);
        let digest = self.requests;
        let rows: Vec<submit::NewJob> = jobs
            .iter()
            .map(|new| submit::NewJob {
                id: new.id,
                job: new.job.clone(),
                spec: new.spec.clone(),
                met: new.met.clone(),
                retry_of: new.retry_of,
            })
            .collect();
        let (now, theirs, id) = (self.now, ids.to_vec(), request.clone());
        let from = repeats.and_then(|(_, from)| from);
        let real = self.in_store(late, move |conn| {
            Box::pin(async move {
                let mut states: Vec<_> = submit::lock_states(conn, &known)
                    .await?
                    .into_iter()
                    .collect();
                states.sort_unstable_by_key(|(job, _)| *job);
                let digest = digest.to_be_bytes();
                requests::remember(conn, now, PERSON, &id, &digest, &theirs).await?;
                submit::insert_jobs(conn, now, PERSON, &rows).await?;
                if let Some(from) = from {
                    begin_from(conn, theirs[0], from).await?;
                }
                Ok(states)
            })
        });
        let real = real.await;
        let term = self.check_term(late);
        let double = &mut self.double;
        let ours = term.and_then(|()| {
            let known: Vec<JobId> = double.jobs().keys().copied().collect();
            let states = double.states(&known);
            double.remember(now, &request, digest, ids)?;
            double.insert_jobs(now, PERSON, &jobs);
            if let Some(from) = from {
                double.begin_from(ids[0], from);
            }
            Ok(states)
        });
        same("a submission", &real, &ours)?;
        let real = self
            .store
            .request(PERSON, &request)
            .await
            .expect("a request");
        let real = real.map(|known| (known.digest, known.jobs));
        let ours = self.double.request(&request);
        let ours = ours.map(|known| (known.digest.to_be_bytes().to_vec(), known.jobs.clone()));
        same("what a request stood for", &real, &ours)
    }

    pub(super) async fn delete(&mut self, late: bool, job: Pick) -> Result<(), Differs> {
        let jobs = self.double.jobs().iter();
        let ended = jobs.filter(|(_, stored)| stored.job.state.is_final());
        let ended: Vec<JobId> = ended.map(|(id, _)| *id).collect();
        let Some(job) = pick(&ended, job) else {
            return Ok(());
        };
        // What was decided about a job that is gone would refer to rows that are gone.
        self.decided = None;
        let real = self.in_store(late, move |conn| {
            Box::pin(async move { submit::delete_job(conn, job).await })
        });
        let real = real.await;
        let ours = self.check_term(late);
        let ours = ours.map(|()| self.double.delete_job(job));
        self.told = self.double.events().len();
        same("deleting", &real, &ours)
    }
}

/// What a person asks for, of either side.
pub(super) fn asked(job: JobId, what: Wanting, worker: Option<WorkerId>) -> Decide {
    Arc::new(move |ledger: &mut Ledger| {
        let event = match what {
            Wanting::Cancel => JobEvent::Cancel(PERSON.to_owned()),
            Wanting::Hold => JobEvent::Hold(PERSON.to_owned()),
            Wanting::HoldForCheckpoint => JobEvent::HoldForCheckpoint("away".to_owned()),
            Wanting::Anywhere => {
                let held = JobEvent::HoldForCheckpoint("away".to_owned());
                if ledger.job_event(job, &held, PERSON).is_err() {
                    return;
                }
                JobEvent::Release
            }
            Wanting::Release => JobEvent::Release,
            Wanting::Interrupt => JobEvent::Interrupt(PERSON.to_owned()),
            Wanting::RunNow(_) => {
                let is_queued = |state| state == JobState::Queued;
                let queued = ledger.job(job).is_some_and(|row| is_queued(row.job.state));
                if let Some(worker) = worker.filter(|_| queued) {
                    ledger.run_now(job, worker);
                    ledger.job_effect(job, JobEffect::AskBack);
                }
                return;
            }
        };
        // A refusal changes nothing.
        let _ = ledger.job_event(job, &event, PERSON);
    })
}
