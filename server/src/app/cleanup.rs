//! Deleting ended jobs by age, when asked.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::{App, Error};
pub use crate::store::retention::Deleted;

/// Jobs deleted in one transaction.
const BATCH: i64 = 100;

impl App {
    /// Deletes every job that ended at least `older_than` ago, with its history and its output; or
    /// only counts them. Jobs that end meanwhile are not touched, so a repetition does no more than
    /// finish what was left.
    ///
    /// # Errors
    /// When the coordinator stops in between, or the database is away; what was deleted by then
    /// stays deleted.
    pub async fn cleanup(&self, older_than: Duration, dry_run: bool) -> Result<Deleted, Error> {
        let now = self.clock.now();
        let age = TimeDelta::from_std(older_than).unwrap_or(TimeDelta::MAX);
        let Some(until) = now.checked_sub_signed(age) else {
            return Ok(Deleted::default());
        };
        if dry_run {
            return Ok(self.store.count_ended_jobs(until).await?);
        }
        self.delete_ended(until, usize::MAX).await
    }

    /// Deletes jobs that ended at or before a time, in batches, at most `batches` of them.
    pub(super) async fn delete_ended(
        &self,
        until: DateTime<Utc>,
        batches: usize,
    ) -> Result<Deleted, Error> {
        let mut deleted = Deleted::default();
        for _ in 0..batches {
            if self.stop.is_cancelled() {
                return Err(Error::ShuttingDown);
            }
            let batch = self.store.delete_ended_jobs(until, BATCH).await?;
            deleted += batch;
            if batch.jobs == 0 {
                break;
            }
        }
        Ok(deleted)
    }
}
