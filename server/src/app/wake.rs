//! Wakes the loops behind the use cases. A wake-up is a hint: each loop also runs on a timer and
//! finds the same work.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use qctl_server_core::JobId;
use tokio::sync::Notify;

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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
