//! Tells watchers in this process what has been committed, so that they read it again.

use std::sync::Arc;

use qctl_server_core::{Fence, JobId};
use tokio::sync::broadcast;

/// Changes kept for a slow watcher. One that falls further behind is told so and reads everything.
const KEPT: usize = 1_024;

/// Something changed. A hint to read again; carries no data of its own.
#[derive(Clone, Debug)]
pub enum Change {
    /// These jobs or their attempts, committed.
    Jobs(Arc<[JobId]>),
    /// The progress of a running attempt, in memory.
    Progress {
        /// The job.
        job: JobId,
        /// The attempt.
        fence: Fence,
    },
    /// A worker came, went, or was changed.
    Workers,
    /// The queue was paused or resumed.
    Queue,
}

/// Where changes are announced.
#[derive(Clone, Debug)]
pub struct Changes(broadcast::Sender<Change>);

impl Default for Changes {
    fn default() -> Self {
        Self(broadcast::channel(KEPT).0)
    }
}

impl Changes {
    /// Listens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.0.subscribe()
    }

    /// Announces a change. Nobody listening is fine.
    pub fn tell(&self, change: Change) {
        let _ = self.0.send(change);
    }

    /// Announces changed jobs, unless there are none.
    pub fn tell_jobs(&self, jobs: impl IntoIterator<Item = JobId>) {
        let jobs: Arc<[JobId]> = jobs.into_iter().collect();
        if !jobs.is_empty() {
            self.tell(Change::Jobs(jobs));
        }
    }
}
