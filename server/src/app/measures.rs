//! What attempts and machines use: taken from heartbeats, summed up by the minute, and read.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use qctl_server_core::alarm::watch::{AttemptLook, MachineLook};
use qctl_server_core::gpu::GpuLook;
use qctl_server_core::measures::{AttemptMeasures, MachineMeasures, Minute, SumUp, points};
use qctl_server_core::{Fence, JobId, WorkerId};

use super::{App, Error};
use crate::store::measures::{AttemptMinute, MachineMinute};

/// Finished minutes that wait to be written; beyond that the oldest are dropped.
const MAX_WAITING: usize = 20_000;

/// Age of figures that count as the latest.
const LATELY: TimeDelta = TimeDelta::seconds(30);

/// Age from which only every tenth minute is kept.
const THIN_AFTER: TimeDelta = TimeDelta::hours(24);

/// Age up to which a machine's minutes are kept.
const MACHINES_KEPT: TimeDelta = TimeDelta::days(30);

/// Most points of one answer.
pub(crate) const MAX_POINTS: usize = 1_000;

/// Points of an answer that names no number.
pub(crate) const DEFAULT_POINTS: usize = 60;

/// Longest look back at a machine.
pub(crate) const MAX_MINUTES: i64 = 7 * 24 * 60;

/// What is measured at present.
#[derive(Debug, Default)]
pub(super) struct Measures(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    attempts: HashMap<Fence, Current<AttemptMeasures>>,
    machines: HashMap<WorkerId, Current<MachineMeasures>>,
    gpus: HashMap<WorkerId, (DateTime<Utc>, GpuLook)>,
    done_attempts: Vec<AttemptMinute>,
    done_machines: Vec<MachineMinute>,
}

/// A subject's latest figures and its minute under way.
#[derive(Debug)]
struct Current<M> {
    at: DateTime<Utc>,
    latest: M,
    minute: Minute<M>,
}

impl<M: SumUp> Current<M> {
    fn take(slot: &mut Option<Self>, now: DateTime<Utc>, figures: M) -> Option<(DateTime<Utc>, M)> {
        match slot {
            None => {
                *slot = Some(Self {
                    at: now,
                    latest: figures,
                    minute: Minute::begin(now, figures),
                });
                None
            }
            Some(current) => {
                current.at = now;
                current.latest = figures;
                current.minute.take(now, figures)
            }
        }
    }

    fn latest(&self, now: DateTime<Utc>) -> Option<M> {
        (now - self.at < LATELY).then_some(self.latest)
    }
}

/// What an attempt used.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AttemptHistory {
    /// Oldest first.
    pub(crate) points: Vec<(DateTime<Utc>, AttemptMeasures)>,
    /// The highest figures.
    pub(crate) most: Option<AttemptMeasures>,
    /// The latest ones, when they are of now.
    pub(crate) latest: Option<AttemptMeasures>,
}

/// What a machine used.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MachineHistory {
    /// Oldest first.
    pub(crate) points: Vec<(DateTime<Utc>, MachineMeasures)>,
    /// The latest figures, when they are of now.
    pub(crate) latest: Option<MachineMeasures>,
}

impl App {
    /// Takes what a worker saw of its machine and of its attempts.
    pub(crate) fn measured(&self, worker: WorkerId, look: &MachineLook, attempts: &[AttemptLook]) {
        let now = self.clock.now();
        // Only attempts that run may be spoken of.
        let attempts: Vec<AttemptLook> = attempts
            .iter()
            .filter(|attempt| self.live.job_of(attempt.fence).is_some())
            .copied()
            .collect();
        self.alarms.look(worker, look, &attempts, now);
        let mut inner = self.measures.locked();
        let inner = &mut *inner;
        let mut current = inner.machines.remove(&worker);
        if let Some((minute, used)) = Current::take(&mut current, now, look.used) {
            push(&mut inner.done_machines, (worker, minute, used));
        }
        inner
            .machines
            .extend(current.map(|current| (worker, current)));
        for AttemptLook { fence, used, .. } in attempts {
            let mut current = inner.attempts.remove(&fence);
            if let Some((minute, used)) = Current::take(&mut current, now, used) {
                push(&mut inner.done_attempts, (fence, minute, used));
            }
            inner
                .attempts
                .extend(current.map(|current| (fence, current)));
        }
    }

    /// Takes what a worker's GPU driver says.
    pub(crate) fn gpus_seen(&self, worker: WorkerId, look: GpuLook) {
        let now = self.clock.now();
        self.measures.locked().gpus.insert(worker, (now, look));
    }

    /// What a worker's GPU driver said last, when that is of now.
    pub(crate) fn gpu_look(&self, worker: WorkerId) -> Option<GpuLook> {
        let now = self.clock.now();
        let inner = self.measures.locked();
        let (at, look) = inner.gpus.get(&worker)?;
        (now - *at < LATELY).then(|| look.clone())
    }

    /// What a machine uses, when it was looked at lately.
    pub(crate) fn measured_lately(&self, worker: WorkerId) -> Option<MachineMeasures> {
        let now = self.clock.now();
        self.measures.locked().machines.get(&worker)?.latest(now)
    }

    /// Writes minutes that are over, and of attempts that have ended what there is.
    pub(crate) async fn save_measures(&self) -> Result<(), Error> {
        let (attempts, machines) = {
            let mut inner = self.measures.locked();
            let inner = &mut *inner;
            inner.attempts.retain(|fence, current| {
                let runs = self.live.job_of(*fence).is_some();
                if !runs {
                    let (minute, used) = current.minute.so_far();
                    push(&mut inner.done_attempts, (*fence, minute, used));
                }
                runs
            });
            (
                std::mem::take(&mut inner.done_attempts),
                std::mem::take(&mut inner.done_machines),
            )
        };
        if attempts.is_empty() && machines.is_empty() {
            return Ok(());
        }
        let saved = self.store.save_measures(&attempts, &machines).await;
        if saved.is_err() {
            let mut inner = self.measures.locked();
            put_back(&mut inner.done_attempts, attempts);
            put_back(&mut inner.done_machines, machines);
        }
        Ok(saved?)
    }

    /// Deletes what is too old to be told by the minute.
    pub(crate) async fn thin_measures(&self) -> Result<(), Error> {
        let now = self.clock.now();
        self.store
            .thin_measures(now - THIN_AFTER, now - MACHINES_KEPT)
            .await?;
        Ok(())
    }

    /// What an attempt used, in at most `most` points; without a number the latest attempt.
    ///
    /// # Errors
    /// [`Error::JobNotFound`], [`Error::AttemptNotFound`].
    pub(crate) async fn attempt_history(
        &self,
        job: JobId,
        number: Option<i32>,
        most: usize,
    ) -> Result<AttemptHistory, Error> {
        let fence = self
            .store
            .fence_of(job, number)
            .await?
            .ok_or(Error::JobNotFound(job))?
            .ok_or(Error::AttemptNotFound {
                job,
                number: number.unwrap_or(0),
            })?;
        let mut minutes = self.store.attempt_measures(fence).await?;
        let now = self.clock.now();
        let inner = self.measures.locked();
        let waiting = inner.done_attempts.iter().filter(|done| done.0 == fence);
        minutes.extend(waiting.map(|(_, minute, used)| (*minute, *used)));
        let current = inner.attempts.get(&fence);
        minutes.extend(current.map(|current| current.minute.so_far()));
        let most_used = minutes
            .iter()
            .map(|(_, used)| *used)
            .reduce(|mut most, used| {
                most.peak(&used);
                most
            });
        Ok(AttemptHistory {
            points: points(&minutes, most),
            most: most_used,
            latest: current.and_then(|current| current.latest(now)),
        })
    }

    /// What a machine used in the last `minutes`, in at most `most` points.
    ///
    /// # Errors
    /// [`Error::WorkerNotFound`].
    pub(crate) async fn machine_history(
        &self,
        name: &str,
        minutes: i64,
        most: usize,
    ) -> Result<MachineHistory, Error> {
        let (worker, _) = self
            .store
            .worker_named(name)
            .await?
            .ok_or_else(|| Error::WorkerNotFound(name.to_owned()))?;
        let now = self.clock.now();
        let since = now - TimeDelta::minutes(minutes);
        let mut figures = self.store.machine_measures(worker, since).await?;
        let inner = self.measures.locked();
        let waiting = inner.done_machines.iter().filter(|done| done.0 == worker);
        figures.extend(waiting.map(|(_, minute, used)| (*minute, *used)));
        let current = inner.machines.get(&worker);
        figures.extend(current.map(|current| current.minute.so_far()));
        Ok(MachineHistory {
            points: points(&figures, most),
            latest: current.and_then(|current| current.latest(now)),
        })
    }
}

impl Measures {
    fn locked(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push<T>(waiting: &mut Vec<T>, done: T) {
    if waiting.len() >= MAX_WAITING {
        waiting.remove(0);
    }
    waiting.push(done);
}

/// What could not be written goes before what has come since.
fn put_back<T>(waiting: &mut Vec<T>, mut earlier: Vec<T>) {
    earlier.append(waiting);
    let excess = earlier.len().saturating_sub(MAX_WAITING);
    *waiting = earlier.split_off(excess);
}
