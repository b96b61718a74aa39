//! Alarms: what workers see is judged as it comes, what changed is recorded by a loop, and people read
//! what was recorded.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use qctl_server_core::alarm::watch::{
    AttemptLook, Disk, MachineFacts, MachineLook, OwnMachine, Watch,
};
use qctl_server_core::health::Room;
use qctl_server_core::{Fence, JobId, WorkerId};

use super::read::{PageRequest, page_size, read_token, write_token};
use super::{App, Error, Settings};
pub use crate::store::alarms::{AlarmCount, AlarmFilter, AlarmRecord};

/// Alarms on a page unless asked otherwise.
const PAGE: usize = 50;
/// How far back alarms are counted.
const STATISTICS: TimeDelta = TimeDelta::days(30);
/// Alarms that one statement deletes.
const BATCH: i64 = 10_000;

/// Everything that is watched.
#[derive(Debug)]
pub(super) struct Alarms(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    watch: Watch,
    /// What lasted when this term began was read: before that nothing is judged.
    is_restored: bool,
    /// Attempts of which more has to be known.
    unknown: BTreeSet<Fence>,
}

impl Alarms {
    pub(super) fn new(settings: &Settings) -> Self {
        Self(Mutex::new(Inner {
            watch: Watch::new(settings.alarm_pace, settings.alarms.clone()),
            is_restored: false,
            unknown: BTreeSet::new(),
        }))
    }

    /// A worker connected.
    pub(super) fn connected(&self, worker: WorkerId, facts: MachineFacts, now: DateTime<Utc>) {
        self.locked().watch.connected(worker, facts, now);
    }

    /// Takes what a worker saw.
    pub(super) fn look(
        &self,
        worker: WorkerId,
        look: &MachineLook,
        attempts: &[AttemptLook],
        now: DateTime<Utc>,
    ) {
        let mut inner = self.locked();
        let inner = &mut *inner;
        inner.unknown.extend(inner.watch.unknown(attempts));
        if inner.is_restored {
            inner.watch.look(worker, look, attempts, now);
        }
    }

    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A page of alarms.
#[derive(Clone, Debug)]
pub struct AlarmPage {
    /// Newest first.
    pub alarms: Vec<AlarmRecord>,
    /// Empty on the last page.
    pub next_page_token: String,
    /// How often what was an alarm lately.
    pub counts: Vec<AlarmCount>,
}

impl App {
    /// A worker lives, and has not looked at its machine.
    pub(crate) fn not_measured(&self, worker: WorkerId) {
        let now = self.clock.now();
        let mut inner = self.alarms.locked();
        if inner.is_restored {
            inner.watch.beat_without_look(worker, now);
        }
    }

    /// Takes what the coordinator sees of the disk that it writes to.
    pub(crate) fn saw_own_disk(&self, machine: &OwnMachine, disk: Disk) {
        let now = self.clock.now();
        let mut inner = self.alarms.locked();
        if inner.is_restored {
            inner.watch.own_disk(machine, disk, now);
        }
    }

    /// The coordinator's machine and the disk that it writes to, as they were seen last.
    pub(crate) fn own_disk_seen(&self) -> Option<(OwnMachine, Disk)> {
        self.alarms.locked().watch.seen_own_disk().cloned()
    }

    /// A disk of a worker's machine, or the coordinator's own, and how little room would be an alarm.
    pub(super) fn room(&self, worker: Option<WorkerId>, free: i64, total: i64) -> Room {
        let few = self.alarms.locked().watch.disk_limit(worker, total);
        Room { free, total, few }
    }

    /// Records what has begun and what is over, and has people told.
    pub(crate) async fn save_alarms(self: &Arc<Self>) -> Result<(), Error> {
        if !self.alarms.locked().is_restored {
            let open = self.store.open_alarms().await?;
            let mut inner = self.alarms.locked();
            inner.watch.restore(open, self.clock.now());
            inner.is_restored = true;
        }
        self.learn_attempts().await?;
        self.leave_attempts().await?;
        let now = self.clock.now();
        let (changes, peaks) = {
            let mut inner = self.alarms.locked();
            (inner.watch.take_changes(), inner.watch.take_peaks(now))
        };
        if !changes.is_empty() {
            let saved = self.store.save_alarms(now, changes.clone()).await;
            if saved.is_err() {
                self.alarms.locked().watch.put_back(changes);
            }
            saved?;
            self.notices.ring();
        }
        if !peaks.is_empty() {
            self.store.save_peaks(peaks).await?;
        }
        Ok(())
    }

    async fn learn_attempts(&self) -> Result<(), Error> {
        let unknown: Vec<Fence> = {
            let mut inner = self.alarms.locked();
            std::mem::take(&mut inner.unknown).into_iter().collect()
        };
        if unknown.is_empty() {
            return Ok(());
        }
        // What is not found is asked for again by the next look.
        let known = self.store.attempt_facts(&unknown).await?;
        let mut inner = self.alarms.locked();
        for (fence, facts) in known {
            inner.watch.know(fence, facts);
        }
        Ok(())
    }

    /// What has ended has no alarms any more. An attempt that nobody hears of has not ended.
    async fn leave_attempts(&self) -> Result<(), Error> {
        let gone: Vec<Fence> = self
            .alarms
            .locked()
            .watch
            .attempts()
            .into_iter()
            .filter(|fence| self.live.job_of(*fence).is_none())
            .collect();
        if gone.is_empty() {
            return Ok(());
        }
        let ended = self.store.ended_among(&gone).await?;
        let now = self.clock.now();
        let mut inner = self.alarms.locked();
        for fence in ended {
            inner.watch.left(fence, now);
        }
        Ok(())
    }

    /// Deletes alarms that are older than the history.
    pub(crate) async fn forget_alarms(&self) -> Result<(), Error> {
        let kept = TimeDelta::from_std(self.settings.history_kept).unwrap_or(TimeDelta::MAX);
        if let Some(before) = self.clock.now().checked_sub_signed(kept) {
            while self.store.delete_alarms(before, BATCH).await? == BATCH as u64 {}
        }
        Ok(())
    }

    /// A page of alarms, newest first; of a job, of a worker's machine, or all.
    ///
    /// # Errors
    /// [`Error::JobNotFound`], [`Error::WorkerNotFound`]; when the page token is wrong, or the database
    /// is away.
    pub async fn alarm_page(
        &self,
        job: Option<JobId>,
        worker: Option<&str>,
        all: bool,
        page: &PageRequest,
    ) -> Result<AlarmPage, Error> {
        if let Some(job) = job
            && self.store.log_job(job).await?.is_none()
        {
            return Err(Error::JobNotFound(job));
        }
        let worker = match worker {
            None => None,
            Some(name) => {
                let found = self.store.worker_named(name).await?;
                Some(found.ok_or_else(|| Error::WorkerNotFound(name.to_owned()))?)
            }
        };
        let filter = AlarmFilter {
            job,
            worker: worker.map(|(id, _)| id),
            all,
        };
        let before = match page.token.as_str() {
            "" => 0,
            token => read_token(token, "alarms")?,
        };
        let size = page_size(page.size, PAGE);
        let limit = i64::try_from(size).unwrap_or(i64::MAX).saturating_add(1);
        let mut alarms = self.store.alarms(&filter, before, limit).await?;
        let more = alarms.len() > size;
        alarms.truncate(size);
        let next_page_token = match alarms.last() {
            Some(last) if more => write_token("alarms", last.id),
            _ => String::new(),
        };
        let now = self.clock.now();
        let counts = self.store.count_alarms(now - STATISTICS, now).await?;
        Ok(AlarmPage {
            alarms,
            next_page_token,
            counts,
        })
    }

    /// The latest alarms of a job, or those of anything that last now; newest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn latest_alarms(
        &self,
        job: Option<JobId>,
        most: usize,
    ) -> Result<Vec<AlarmRecord>, Error> {
        let filter = AlarmFilter {
            job,
            worker: None,
            all: job.is_some(),
        };
        let limit = i64::try_from(most).unwrap_or(i64::MAX);
        Ok(self.store.alarms(&filter, 0, limit).await?)
    }
}
