//! Wakes the loops behind the use cases. A wake-up is a hint: each loop also runs on a timer and
//! finds the same work.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use qctl_server_core::{JobId, WorkerId};
use tokio::sync::Notify;

/// Mean run time below which keeping a job ready at a worker pays.
const QUICK: Duration = Duration::from_secs(2);
/// Work that is kept ready at a worker with shorter jobs: enough for a commit on a slow disk.
const READY_FOR: Duration = Duration::from_millis(50);
/// Most jobs that are kept ready.
const MAX_READY: usize = 16;

/// Wakes the loops behind the use cases.
#[derive(Clone, Debug, Default)]
pub(super) struct Wake(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    dispatcher: Notify,
    timekeeper: Notify,
    resolver: Notify,
    next_at: Mutex<Option<DateTime<Utc>>>,
    ended: Mutex<BTreeSet<JobId>>,
}

impl Wake {
    /// There may be something to assign.
    pub(super) fn dispatch(&self) {
        self.0.dispatcher.notify_one();
    }

    /// Returns once there may be something to assign.
    pub(super) async fn dispatch_wanted(&self) {
        self.0.dispatcher.notified().await;
    }

    /// A job waits until this time.
    pub(super) fn at(&self, at: DateTime<Utc>) {
        let mut next = locked(&self.0.next_at);
        if next.is_none_or(|next| at < next) {
            *next = Some(at);
            self.0.timekeeper.notify_one();
        }
    }

    /// Takes the time of the next wait that was announced.
    pub(super) fn take_next(&self) -> Option<DateTime<Utc>> {
        locked(&self.0.next_at).take()
    }

    /// Returns once an earlier wait was announced.
    pub(super) async fn time_changed(&self) {
        self.0.timekeeper.notified().await;
    }

    /// These jobs have ended; others may wait for them.
    pub(super) fn ended(&self, jobs: &[JobId]) {
        locked(&self.0.ended).extend(jobs);
        self.0.resolver.notify_one();
    }

    /// Takes jobs that have ended, at most `most`.
    pub(super) fn take_ended(&self, most: usize) -> Vec<JobId> {
        let mut ended = locked(&self.0.ended);
        let taken: Vec<JobId> = ended.iter().copied().take(most).collect();
        for job in &taken {
            ended.remove(job);
        }
        taken
    }

    /// Returns once jobs have ended.
    pub(super) async fn some_ended(&self) {
        self.0.resolver.notified().await;
    }
}

/// How long jobs have been running on each worker lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Turnover(Arc<Mutex<HashMap<WorkerId, Duration>>>);

impl Turnover {
    /// Notes an attempt's run time.
    pub(super) fn note(&self, worker: WorkerId, duration: Duration) {
        let mut means = locked(&self.0);
        let mean = means.entry(worker).or_insert(duration);
        *mean = (*mean + duration) / 2;
    }

    /// How many jobs the worker may keep ready beyond its slots: none when its jobs have not been
    /// short lately, or the oldest that runs there has been running for long.
    pub(super) fn ready_places(&self, worker: WorkerId, oldest: Option<Duration>) -> usize {
        if oldest.is_some_and(|age| age >= QUICK) {
            return 0;
        }
        match locked(&self.0).get(&worker) {
            Some(mean) if *mean < QUICK => {
                let fitting = READY_FOR.as_micros() / mean.as_micros().max(1);
                usize::try_from(fitting)
                    .unwrap_or(MAX_READY)
                    .clamp(1, MAX_READY)
            }
            _ => 0,
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
