//! Deleting ended jobs by age, when asked.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use qctl_server_core::ledger::NewEvent;

use super::submit::RequestKey;
use super::{App, Caller, Error, Role};
use crate::store::ledger;
pub use crate::store::retention::Deleted;

/// Jobs deleted in one transaction.
const BATCH: i64 = 100;

impl App {
    /// Deletes every job that ended at least `older_than` ago, with its history and its output; or
    /// only counts them. Repeated with the same request id after it was done, it deletes nothing
    /// more, although more jobs may be old enough by then.
    ///
    /// # Errors
    /// When the request id was used otherwise, the coordinator stops in between, or the database is
    /// away; what was deleted by then stays deleted, and a repetition goes on.
    pub async fn cleanup(
        self: &Arc<Self>,
        caller: &Caller,
        request_id: &str,
        older_than: Duration,
        dry_run: bool,
    ) -> Result<Deleted, Error> {
        caller.require(Role::Operate)?;
        let key = RequestKey::new(caller, request_id, "cleanup", &(older_than, dry_run))?;
        if self.replay(key.as_ref()).await?.is_some() {
            return Ok(Deleted::default());
        }
        let now = self.clock.now();
        let age = TimeDelta::from_std(older_than).unwrap_or(TimeDelta::MAX);
        let Some(until) = now.checked_sub_signed(age) else {
            return Ok(Deleted::default());
        };
        if dry_run {
            return Ok(self.store.count_ended_jobs(until).await?);
        }
        let deleted = self.delete_ended(until, usize::MAX).await?;
        let (app, work_key) = (Arc::clone(self), key.clone());
        let message = format!("{} ended jobs were deleted", deleted.jobs);
        let event = NewEvent::general("", "cleanup", message, &caller.name);
        let work = self.store.transaction(move |conn| {
            Box::pin(async move {
                RequestKey::remember(work_key.as_ref(), &app, conn, &[]).await?;
                ledger::tell(conn, now, &[event]).await?;
                Ok::<_, Error>(Vec::new())
            })
        });
        self.once(key.as_ref(), work).await?;
        Ok(deleted)
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
            let (batch, published) = self.store.delete_ended_jobs(until, BATCH).await?;
            self.remove_checkpoints(published);
            deleted += batch;
            if batch.jobs == 0 {
                break;
            }
        }
        Ok(deleted)
    }
}
