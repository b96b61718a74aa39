//! The latest progress of running attempts, in memory; written to the database about once a second.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use qctl_server_core::{Fence, Progress};

/// The latest progress of each attempt that reported any since the coordinator started.
#[derive(Clone, Debug, Default)]
pub struct LiveProgress(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    latest: HashMap<Fence, Progress>,
    unsaved: HashSet<Fence>,
}

impl LiveProgress {
    /// The latest progress of an attempt; `None` when only the database may know one.
    pub fn get(&self, fence: Fence) -> Option<Progress> {
        self.locked().latest.get(&fence).cloned()
    }

    /// Remembers newer progress.
    pub fn set(&self, fence: Fence, progress: Progress) {
        let mut inner = self.locked();
        inner.latest.insert(fence, progress);
        inner.unsaved.insert(fence);
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

    /// Forgets attempts that have ended and whose last progress is written.
    pub(crate) fn forget(&self, fences: impl IntoIterator<Item = Fence>) {
        let mut inner = self.locked();
        for fence in fences {
            inner.latest.remove(&fence);
            inner.unsaved.remove(&fence);
        }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
