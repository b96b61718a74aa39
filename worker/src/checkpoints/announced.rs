//! What the agent was told of each checkpoint, so that nothing is told twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qctl_worker_core::checkpoint::{CheckpointId, Published};

/// What was told last of each checkpoint, by whichever thread found it out.
#[derive(Clone, Debug, Default)]
pub(super) struct Announced(Arc<Mutex<BTreeMap<CheckpointId, Published>>>);

impl Announced {
    /// True when this says something new of a checkpoint. It counts as told from then on.
    pub(super) fn is_news(&self, published: &Published) -> bool {
        let mut known = self.known();
        let is_news = known
            .get(&published.id)
            .is_none_or(|known| says_more(known, published));
        if is_news {
            known.insert(published.id, published.clone());
        }
        is_news
    }

    /// What is said of a checkpoint next is new.
    pub(super) fn forget(&self, id: CheckpointId) {
        self.known().remove(&id);
    }

    /// The same for all of a job.
    pub(super) fn forget_job(&self, job: i64) {
        self.known().retain(|_, known| known.job_id != job);
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<CheckpointId, Published>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// True when `now` is no older description than `known`, and another one. Two threads look at the
/// disk, and one may be overtaken by the other between its look and its word.
fn says_more(known: &Published, now: &Published) -> bool {
    let is_older = (known.removed && !now.removed)
        || (!known.hash.is_empty() && now.hash.is_empty() && !now.removed);
    !is_older && known != now
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(hash: &str, removed: bool) -> Published {
        Published {
            id: CheckpointId {
                fence: 7,
                number: 1,
            },
            job_id: 40,
            attempt: 1,
            step: None,
            note: String::new(),
            path: "/c/40/published/1.1/files".to_owned(),
            files: 1,
            bytes: 2,
            hash: hash.to_owned(),
            created_us: 1,
            removed,
        }
    }

    #[test]
    fn each_thing_is_told_once_and_nothing_is_taken_back() {
        let announced = Announced::default();
        let news: Vec<_> = [
            published("", false),
            published("", false),
            published("sha256:00", false),
            published("sha256:00", false),
            published("", false),
            published("sha256:00", true),
            published("sha256:00", false),
        ]
        .iter()
        .map(|published| announced.is_news(published))
        .collect();
        assert_eq!(news, [true, false, true, false, false, true, false]);
        announced.forget_job(41);
        assert!(!announced.is_news(&published("sha256:00", true)));
        announced.forget_job(40);
        assert!(announced.is_news(&published("", false)));
    }
}
