//! What people do with jobs, workers and the queue.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use qctl_server_core::dispatch::Window;
use qctl_server_core::job::{JobEffect, JobEvent, JobRefusal};
use qctl_server_core::ledger::{AfterCommit, COORDINATOR, Ledger, Message, NewEvent, Which};
use qctl_server_core::{AttemptState, JobId, JobSpec, JobState, WorkerId};
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::submit::{Again, FromCheckpoint, RequestKey, check_batch};
use super::{App, Caller, Change, Error, Role};
use crate::sessions::ToWorker;
use crate::store::dispatch;
use crate::store::read::WorkerMode;
use crate::store::submit::{delete_job, has_processes, spec_of};
use crate::store::{Commit, gpus, ledger, workers};

/// How long a call waits for a worker to obey before it answers all the same.
const OBEY_WITHIN: Duration = Duration::from_secs(2);
/// How long a deletion waits for processes that are being ended, and between two looks at them.
const SWEEP_WAIT: Duration = Duration::from_secs(5);
const SWEEP_LOOK: Duration = Duration::from_millis(100);
/// Queued jobs that are looked at for one that a worker can start now.
const EXECUTE_WINDOW: i64 = 500;
/// Most slots of a worker.
const MAX_SLOTS: i32 = 1_000;

impl App {
    /// Cancels a job: a waiting one at once, a running one by stopping its processes. Asked again, it
    /// does nothing new.
    ///
    /// # Errors
    /// [`Error::JobNotFound`], [`Error::JobEnded`] when it ended otherwise.
    pub async fn cancel(
        self: &Arc<Self>,
        caller: &Caller,
        request_id: &str,
        job: JobId,
        grace: Option<Duration>,
    ) -> Result<(), Error> {
        caller.require(Role::Submit)?;
        let key = RequestKey::new(caller, request_id, "cancel", &(job, grace))?;
        let name = caller.name.clone();
        self.change_job(key, job, move |ledger| {
            ledger.set_grace(grace);
            match ledger.job_event(job, &JobEvent::Cancel(name.clone()), &name) {
                Ok(()) | Err(JobRefusal::Already) => Ok(()),
                Err(refusal) => Err(refused(job, ledger, refusal)),
            }
        })
        .await
    }

    /// Keeps a waiting or queued job from starting.
    ///
    /// # Errors
    /// [`Error::JobNotFound`], [`Error::JobRunning`], [`Error::JobEnded`].
    pub async fn hold(
        self: &Arc<Self>,
        caller: &Caller,
        request_id: &str,
        job: JobId,
    ) -> Result<(), Error> {
        caller.require(Role::Submit)?;
        let key = RequestKey::new(caller, request_id, "hold", &job)?;
        let name = caller.name.clone();
        self.change_job(key, job, move |ledger| {
            match ledger.job_event(job, &JobEvent::Hold(name.clone()), &name) {
                Ok(()) | Err(JobRefusal::Already) => Ok(()),
                Err(refusal) => Err(refused(job, ledger, refusal)),
            }
        })
        .await
    }

    /// Lets a held job go on.
    ///
    /// # Errors
    /// [`Error::JobNotFound`], [`Error::JobNotHeld`].
    pub async fn release(
        self: &Arc<Self>,
        caller: &Caller,
        request_id: &str,
        job: JobId,
    ) -> Result<(), Error> {
        caller.require(Role::Submit)?;
        let key = RequestKey::new(caller, request_id, "release", &job)?;
        let name = caller.name.clone();
        self.change_job(key, job, move |ledger| {
            ledger
                .job_event(job, &JobEvent::Release, &name)
                .map_err(|refusal| match state_of(ledger, job) {
                    Some(state) => Error::JobNotHeld { job, state },
                    None => refused(job, ledger, refusal),
                })
        })
        .await
    }

    /// Freezes a running job's processes and their clocks, or lets them go on.
    ///
    /// # Errors
    /// [`Error::JobNotFound`], [`Error::JobNotRunning`], [`Error::JobNotPaused`],
    /// [`Error::WorkerNotConnected`].
    pub async fn set_paused(
        self: &Arc<Self>,
        caller: &Caller,
        request_id: &str,
        job: JobId,
        paused: bool,
    ) -> Result<(), Error> {
        caller.require(Role::Submit)?;
        let key = RequestKey::new(caller, request_id, "set_paused", &(job, paused))?;
        if self.replay(key.as_ref()).await?.is_some() {
            // The worker was told, or its session ended first. Nothing is recorded that would tell
            // it again, so that only what has become of it can be an answer.
            let is_so = self.in_ledger(job, move |ledger| {
                let current = ledger.current(job);
                Ok(current.is_none_or(|row| row.attempt.paused == paused))
            });
            return match is_so.await? {
                true => Ok(()),
                false => Err(Error::Conflict(job)),
            };
        }
        let sessions = self.sessions.clone();
        let watch = self.changes.subscribe();
        self.change_job(key, job, move |ledger| {
            let state = state_of(ledger, job).ok_or(Error::JobNotFound(job))?;
            let Some(row) = ledger
                .current(job)
                .filter(|row| row.attempt.state == AttemptState::Running)
            else {
                return Err(Error::JobNotRunning { job, state });
            };
            if !paused && !row.attempt.paused {
                return Err(Error::JobNotPaused(job));
            }
            if !sessions.is_connected(row.worker) {
                return Err(Error::WorkerNotConnected(row.worker_name.clone()));
            }
            let (fence, worker) = (row.fence, row.worker);
            if row.attempt.paused != paused {
                ledger.message(worker, Message::SetPaused { fence, paused });
            }
            Ok(())
        })
        .await?;
        self.obeyed(watch, job, move |ledger| {
            ledger
                .current(job)
                .is_none_or(|row| row.attempt.paused == paused)
        })
        .await
    }

    /// Interrupts a running job on purpose, as the loss of its machine would.
    ///
    /// # Errors
    /// [`Error::JobNotFound`], [`Error::JobNotRunning`], [`Error::WorkerNotConnected`].
    pub async fn interrupt(
        self: &Arc<Self>,
        caller: &Caller,
        request_id: &str,
        job: JobId,
    ) -> Result<(), Error> {
        caller.require(Role::Submit)?;
        let key = RequestKey::new(caller, request_id, "interrupt", &job)?;
        let name = caller.name.clone();
        let sessions = self.sessions.clone();
        self.change_job(key, job, move |ledger| {
            // What is lost on the way is not repeated later: a drill is no wish to be kept for days.
            if let Some(row) = ledger.current(job)
                && !sessions.is_connected(row.worker)
            {
                return Err(Error::WorkerNotConnected(row.worker_name.clone()));
            }
            let event = JobEvent::Interrupt(name.clone());
            ledger.job_event(job, &event, &name).map_err(|refusal| {
                match (refusal, state_of(ledger, job)) {
                    (JobRefusal::Ended(_), Some(state)) => Error::JobNotRunning { job, state },
                    _ => refused(job, ledger, refusal),
                }
            })
        })
        .await
    }

    /// Submits an ended job again as a new one, which begins afresh or from a checkpoint of the ended
    /// one. Dependencies are not repeated: they were met once.
    ///
    /// # Errors
    /// [`Error::JobNotFound`], [`Error::JobNotEnded`], [`Error::NothingToResume`].
    pub async fn retry(
        self: &Arc<Self>,
        caller: &Caller,
        request_id: &str,
        job: JobId,
        from: Option<FromCheckpoint>,
    ) -> Result<JobId, Error> {
        caller.require(Role::Submit)?;
        let key = RequestKey::new(caller, request_id, "retry", &(job, from))?;
        if let Some(jobs) = self.replay(key.as_ref()).await? {
            return first(&jobs);
        }
        let (state, spec) = self
            .store
            .transaction(move |conn| {
                Box::pin(async move {
                    let (jobs, _) = ledger::load(conn, Which::Jobs(&[job])).await?;
                    let row = jobs.first().ok_or(Error::JobNotFound(job))?;
                    let spec = spec_of(conn, job).await?.ok_or(Error::JobNotFound(job))?;
                    Ok::<_, Error>((row.job.state, spec))
                })
            })
            .await?;
        if !state.is_final() {
            return Err(Error::JobNotEnded { job, state });
        }
        let spec = JobSpec {
            after: Vec::new(),
            hold: false,
            ..spec
        };
        let specs = vec![spec];
        check_batch(&specs)?;
        let (jobs, _) = self
            .once(
                key.as_ref(),
                self.store_batch(caller, key.clone(), specs, Some(Again { of: job, from })),
            )
            .await?;
        self.wake.dispatch();
        self.changes.tell_jobs(jobs.iter().copied());
        first(&jobs)
    }

    /// Deletes an ended job with its history and output. Waits a few seconds for processes of it that
    /// are being ended.
    ///
    /// # Errors
    /// [`Error::JobNotFound`], [`Error::JobNotEnded`], [`Error::ProcessesLeft`].
    pub async fn delete(
        self: &Arc<Self>,
        caller: &Caller,
        request_id: &str,
        job: JobId,
    ) -> Result<(), Error> {
        caller.require(Role::Submit)?;
        let key = RequestKey::new(caller, request_id, "delete", &job)?;
        if self.replay(key.as_ref()).await?.is_some() {
            return Ok(());
        }
        let has_published = !self.store.checkpoints(job, None, 1).await?.is_empty();
        // Once it is gone, nobody can tell any more how it ended.
        let app = Arc::clone(self);
        tokio::spawn(async move { app.resolve_dependents(&[job]).await })
            .await
            .map_err(|_| Error::ShuttingDown)??;
        let deadline = Instant::now() + SWEEP_WAIT;
        loop {
            let work = self.delete_if_swept(caller, key.clone(), job);
            match self.once(key.as_ref(), work).await {
                Err(Error::ProcessesLeft(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(SWEEP_LOOK).await;
                }
                Ok(_) => break,
                Err(error) => return Err(error),
            }
        }
        if has_published {
            self.remove_checkpoints(vec![job]);
        }
        Ok(())
    }

    async fn delete_if_swept(
        self: &Arc<Self>,
        caller: &Caller,
        key: Option<RequestKey>,
        job: JobId,
    ) -> Result<Vec<JobId>, Error> {
        let app = Arc::clone(self);
        let actor = caller.name.clone();
        let work = self.transact(move |conn| {
            Box::pin(async move {
                RequestKey::remember(key.as_ref(), &app, conn, &[job]).await?;
                let (jobs, _) = ledger::load(conn, Which::Jobs(&[job])).await?;
                let row = jobs.first().ok_or(Error::JobNotFound(job))?;
                if !row.job.state.is_final() {
                    return Err(Error::JobNotEnded {
                        job,
                        state: row.job.state,
                    });
                }
                // What they occupy is known by the job's attempts, and would be given away.
                if has_processes(conn, job).await? {
                    return Err(Error::ProcessesLeft(job));
                }
                delete_job(conn, job).await?;
                let event =
                    NewEvent::general("", "job_deleted", format!("job {job} was deleted"), &actor);
                ledger::tell(conn, app.clock.now(), &[event]).await?;
                let after = AfterCommit {
                    changed: BTreeSet::from([job]),
                    ..AfterCommit::default()
                };
                Ok((vec![job], after))
            })
        });
        work.await
    }

    /// Has a worker start the next queued job now, although the queue may be paused or its slots
    /// taken.
    ///
    /// # Errors
    /// [`Error::WorkerNotFound`], [`Error::WorkerNotConnected`], [`Error::NothingQueued`].
    pub async fn execute_next(
        self: &Arc<Self>,
        caller: &Caller,
        request_id: &str,
        worker: &str,
    ) -> Result<JobId, Error> {
        caller.require(Role::Operate)?;
        let key = RequestKey::new(caller, request_id, "execute_next", &worker)?;
        if let Some(jobs) = self.replay(key.as_ref()).await? {
            return first(&jobs);
        }
        let (id, _) = self
            .store
            .worker_named(worker)
            .await?
            .ok_or_else(|| Error::WorkerNotFound(worker.to_owned()))?;
        if !self.sessions.is_connected(id) {
            return Err(Error::WorkerNotConnected(worker.to_owned()));
        }
        let nothing = || Error::NothingQueued {
            worker: worker.to_owned(),
        };
        let job = self.next_for(id).await?.ok_or_else(nothing)?;
        let app = Arc::clone(self);
        let actor = caller.name.clone();
        let worker_name = worker.to_owned();
        let work_key = key.clone();
        let work = self.transact(move |conn| {
            Box::pin(async move {
                RequestKey::remember(work_key.as_ref(), &app, conn, &[job]).await?;
                let mut ledger = app.open_ledger(conn, Which::Jobs(&[job])).await?;
                match state_of(&ledger, job) {
                    // Started in the meantime, which is what was wanted.
                    Some(JobState::Running) => return Ok((vec![job], AfterCommit::default())),
                    Some(JobState::Queued) => {}
                    _ => return Err(Error::Conflict(job)),
                }
                ledger.run_now(job, id);
                // A worker has it ready behind others: it comes back and starts beside them.
                ledger.job_effect(job, JobEffect::AskBack);
                ledger.tell(NewEvent {
                    job: Some(job),
                    attempt: None,
                    worker: worker_name.clone(),
                    kind: "execute",
                    message: format!(
                        "worker `{worker_name}` is to start it now, asked for by {actor}"
                    ),
                    actor,
                });
                ledger.changed(job);
                let after = app.save_ledger(conn, ledger).await?;
                Ok((vec![job], after))
            })
        });
        let (jobs, _) = self.once(key.as_ref(), work).await?;
        first(&jobs)
    }

    /// The first queued job in order that this worker could start beside its slots.
    async fn next_for(&self, worker: WorkerId) -> Result<Option<JobId>, Error> {
        let mut conn = self.store.acquire().await?;
        let fleet = dispatch::fleet(&mut conn, &[worker], self.clock.now()).await?;
        let Some(state) = fleet.workers.first() else {
            return Ok(None);
        };
        let taken: Vec<String> = state
            .held
            .iter()
            .flat_map(|holding| holding.gpus.iter().cloned())
            .collect();
        let free_gpus = state.gpus.iter().filter(|gpu| !taken.contains(gpu)).count();
        // Beside the slots there is room for any number of them.
        let roomy = qctl_server_core::placement::Worker {
            slots: MAX_SLOTS,
            gpus: state.gpus.iter().take(free_gpus).cloned().collect(),
            ..state.clone()
        };
        let window = Window {
            after: None,
            limit: EXECUTE_WINDOW,
        };
        let queued =
            dispatch::queued_jobs(&mut conn, std::slice::from_ref(&roomy), &window).await?;
        let unassigned = queued
            .iter()
            .find(|queued| queued.candidate.checkpoint_on.is_none_or(|id| id == worker))
            .map(|queued| (queued.candidate.order, queued.candidate.job));
        let ready = state
            .held
            .iter()
            .filter(|holding| holding.assigned && !holding.beside_slots)
            .map(|holding| (holding.order, holding.order.job()))
            .min();
        Ok(unassigned
            .into_iter()
            .chain(ready)
            .min()
            .map(|(_, job)| job))
    }

    /// Stops or allows new starts everywhere.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn set_queue_paused(
        self: &Arc<Self>,
        caller: &Caller,
        request_id: &str,
        paused: bool,
    ) -> Result<(), Error> {
        caller.require(Role::Operate)?;
        let key = RequestKey::new(caller, request_id, "set_queue_paused", &paused)?;
        let (app, actor, work_key) = (Arc::clone(self), caller.name.clone(), key.clone());
        let after = Arc::clone(self);
        let tell = move |jobs, _| {
            after.wake.dispatch();
            after.changes.tell(Change::Queue);
            jobs
        };
        let work = self.store.transaction_then(
            move |conn| {
                Box::pin(async move {
                    RequestKey::remember(work_key.as_ref(), &app, conn, &[]).await?;
                    workers::pause_queue(conn, paused).await?;
                    let (kind, message) = match paused {
                        true => ("queue_paused", "no new jobs are started"),
                        false => ("queue_resumed", "jobs are started again"),
                    };
                    let event = NewEvent::general("", kind, message.to_owned(), &actor);
                    ledger::tell(conn, app.clock.now(), &[event]).await?;
                    Ok::<_, Error>(Vec::new())
                })
            },
            tell,
        );
        self.once(key.as_ref(), work).await?;
        Ok(())
    }

    /// Changes how a worker takes jobs. `None` leaves a value as it is.
    ///
    /// # Errors
    /// [`Error::WorkerNotFound`], [`Error::InvalidField`].
    pub async fn update_worker(
        self: &Arc<Self>,
        caller: &Caller,
        request_id: &str,
        worker: &str,
        mode: Option<WorkerMode>,
        slots: Option<i32>,
    ) -> Result<(), Error> {
        caller.require(Role::Operate)?;
        if slots.is_some_and(|slots| !(1..=MAX_SLOTS).contains(&slots)) {
            return Err(Error::field(
                "slots",
                format!("is not between 1 and {MAX_SLOTS}"),
                "pause the worker to give it no jobs",
            ));
        }
        let word = mode.map(|mode| match mode {
            WorkerMode::Active => "takes jobs",
            WorkerMode::Paused => "takes no jobs until it is resumed",
            WorkerMode::Draining => "takes no more jobs, and is paused once its last one has ended",
        });
        let key = RequestKey::new(caller, request_id, "update_worker", &(worker, word, slots))?;
        let (id, _) = self
            .store
            .worker_named(worker)
            .await?
            .ok_or_else(|| Error::WorkerNotFound(worker.to_owned()))?;
        let name = worker.to_owned();
        let (app, actor, work_key) = (Arc::clone(self), caller.name.clone(), key.clone());
        let after = Arc::clone(self);
        let tell = move |jobs, commit| {
            match (slots, commit) {
                (None, _) => {}
                (Some(slots), Commit::Done) => {
                    after.sessions.send(id, ToWorker::SetSlots(slots));
                }
                // It is told what is recorded when it greets again.
                (Some(_), Commit::Unconfirmed) => after.sessions.close_any(id),
            }
            after.wake.dispatch();
            after.changes.tell(Change::Workers);
            jobs
        };
        let work = self.store.transaction_then(
            move |conn| {
                Box::pin(async move {
                    RequestKey::remember(work_key.as_ref(), &app, conn, &[]).await?;
                    if !workers::steer(conn, id, mode, slots).await? {
                        return Err(Error::WorkerNotFound(name));
                    }
                    let now = app.clock.now();
                    let mut events = Vec::new();
                    if mode == Some(WorkerMode::Active) && gpus::trust(conn, now, id).await? > 0 {
                        let message =
                            format!("worker `{name}` gives jobs the GPUs again that rested");
                        events.push(NewEvent::general(&name, "worker_gpus", message, &actor));
                    }
                    if let Some(word) = word {
                        let message = format!("worker `{name}` {word}");
                        events.push(NewEvent::general(&name, "worker_mode", message, &actor));
                    }
                    if let Some(slots) = slots {
                        let message = format!("worker `{name}` has {slots} slots");
                        events.push(NewEvent::general(&name, "worker_slots", message, &actor));
                    }
                    ledger::tell(conn, now, &events).await?;
                    Ok::<_, Error>(Vec::new())
                })
            },
            tell,
        );
        self.once(key.as_ref(), work).await?;
        if mode == Some(WorkerMode::Draining) {
            self.finish_drains().await?;
        }
        Ok(())
    }

    /// Workers that drain and hold nothing any more become paused.
    pub(crate) async fn finish_drains(&self) -> Result<(), Error> {
        let names = self.store.finish_drains().await?;
        if names.is_empty() {
            return Ok(());
        }
        let events: Vec<NewEvent> = names
            .iter()
            .map(|name| {
                let message = format!("worker `{name}` is drained and paused");
                NewEvent::general(name, "worker_mode", message, COORDINATOR)
            })
            .collect();
        let now = self.clock.now();
        self.store
            .transaction(move |conn| {
                Box::pin(async move { Ok::<_, Error>(ledger::tell(conn, now, &events).await?) })
            })
            .await?;
        self.changes.tell(Change::Workers);
        Ok(())
    }

    /// Applies a change to one job, once for its request id.
    async fn change_job<F>(
        self: &Arc<Self>,
        key: Option<RequestKey>,
        job: JobId,
        change: F,
    ) -> Result<(), Error>
    where
        F: FnOnce(&mut Ledger) -> Result<(), Error> + Send + 'static,
    {
        if self.replay(key.as_ref()).await?.is_some() {
            return Ok(());
        }
        let app = Arc::clone(self);
        let work_key = key.clone();
        let work = self.transact(move |conn| {
            Box::pin(async move {
                RequestKey::remember(work_key.as_ref(), &app, conn, &[job]).await?;
                let mut ledger = app.open_ledger(conn, Which::Jobs(&[job])).await?;
                change(&mut ledger)?;
                Ok((vec![job], app.save_ledger(conn, ledger).await?))
            })
        });
        self.once(key.as_ref(), work).await?;
        Ok(())
    }

    /// Reads or changes one job under its lock.
    pub(super) async fn in_ledger<T, F>(self: &Arc<Self>, job: JobId, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&mut Ledger) -> Result<T, Error> + Send + 'static,
    {
        let app = Arc::clone(self);
        self.transact(move |conn| {
            Box::pin(async move {
                let mut ledger = app.open_ledger(conn, Which::Jobs(&[job])).await?;
                let value = work(&mut ledger)?;
                Ok((value, app.save_ledger(conn, ledger).await?))
            })
        })
        .await
    }

    /// Waits a short while until a job is as it should be.
    pub(super) async fn obeyed<F>(
        self: &Arc<Self>,
        mut watch: broadcast::Receiver<Change>,
        job: JobId,
        is_done: F,
    ) -> Result<(), Error>
    where
        F: Fn(&Ledger) -> bool + Clone + Send + 'static,
    {
        let deadline = tokio::time::Instant::now() + OBEY_WITHIN;
        loop {
            let check = is_done.clone();
            if self.in_ledger(job, move |ledger| Ok(check(ledger))).await? {
                return Ok(());
            }
            loop {
                match tokio::time::timeout_at(deadline, watch.recv()).await {
                    Err(_) | Ok(Err(broadcast::error::RecvError::Closed)) => return Ok(()),
                    Ok(Ok(Change::Jobs(jobs))) if !jobs.contains(&job) => {}
                    Ok(Ok(Change::Progress { .. } | Change::Workers | Change::Queue)) => {}
                    Ok(Ok(Change::Jobs(_)) | Err(broadcast::error::RecvError::Lagged(_))) => break,
                }
            }
        }
    }
}

fn first(jobs: &[JobId]) -> Result<JobId, Error> {
    jobs.first()
        .copied()
        .ok_or_else(|| Error::Internal("a remembered request names no job".to_owned()))
}

pub(super) fn state_of(ledger: &Ledger, job: JobId) -> Option<JobState> {
    ledger.job(job).map(|row| row.job.state)
}

/// Turns a refusal of the core into what the caller is told.
pub(super) fn refused(job: JobId, ledger: &Ledger, refusal: JobRefusal) -> Error {
    let Some(state) = state_of(ledger, job) else {
        return Error::JobNotFound(job);
    };
    match refusal {
        JobRefusal::Ended(state) => Error::JobEnded { job, state },
        JobRefusal::Running => Error::JobRunning(job),
        JobRefusal::NotHeld => Error::JobNotHeld { job, state },
        JobRefusal::NotRunning => Error::JobNotRunning { job, state },
        JobRefusal::Already | JobRefusal::NoAttempt | JobRefusal::NotReady => Error::Conflict(job),
    }
}
