//! The latest progress of running attempts, in memory; written to the database about once a second.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use qctl_server_core::{Fence, JobId, Progress};

/// The latest progress of each attempt that reported any since the coordinator started.
#[derive(Clone, Debug, Default)]
pub struct LiveProgress(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// The attempts that may report, and their jobs.
    jobs: HashMap<Fence, JobId>,
    latest: HashMap<Fence, Progress>,
    unsaved: HashSet<Fence>,
    /// Ended, but their last progress is not written yet.
    ended: HashSet<Fence>,
}

impl LiveProgress {
    /// The latest progress of an attempt; `None` when only the database may know one.
    pub fn get(&self, fence: Fence) -> Option<Progress> {
        self.locked().latest.get(&fence).cloned()
    }

    /// The job of an attempt that may report.
    pub(crate) fn job_of(&self, fence: Fence) -> Option<JobId> {
        self.locked().jobs.get(&fence).copied()
    }

    /// Lets an attempt report.
    pub(crate) fn track(&self, fence: Fence, job: JobId) {
        self.locked().jobs.insert(fence, job);
    }

    /// Remembers newer progress and says whose it is; `None` when the attempt is not one that may
    /// report, and nothing is remembered.
    pub(crate) fn set(&self, fence: Fence, progress: Progress) -> Option<JobId> {
        let mut inner = self.locked();
        let job = *inner.jobs.get(&fence)?;
        inner.latest.insert(fence, progress);
        inner.unsaved.insert(fence);
        Some(job)
    }

    /// An attempt has ended: once its last progress is written, it is forgotten.
    pub(crate) fn ended(&self, fence: Fence) {
        let mut inner = self.locked();
        inner.jobs.remove(&fence);
        if inner.unsaved.contains(&fence) {
            inner.ended.insert(fence);
        } else {
            inner.latest.remove(&fence);
        }
    }

    /// Takes what has not been written yet, at most `most` attempts.
    pub(crate) fn take_unsaved(&self, most: usize) -> Vec<(Fence, Progress)> {
        let mut inner = self.locked();
        let fences: Vec<Fence> = inner.unsaved.iter().copied().take(most).collect();
        fences
            .into_iter()
            .filter_map(|fence| {
                inner.unsaved.remove(&fence);
                inner
                    .latest
                    .get(&fence)
                    .map(|progress| (fence, progress.clone()))
            })
            .collect()
    }

    /// What was taken is written: forgets the attempts among it that have ended.
    pub(crate) fn saved(&self, fences: impl IntoIterator<Item = Fence>) {
        let mut inner = self.locked();
        for fence in fences {
            if !inner.unsaved.contains(&fence) && inner.ended.remove(&fence) {
                inner.latest.remove(&fence);
            }
        }
    }

    /// What was taken could not be written: it is to be taken again.
    pub(crate) fn not_saved(&self, fences: impl IntoIterator<Item = Fence>) {
        self.locked().unsaved.extend(fences);
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
