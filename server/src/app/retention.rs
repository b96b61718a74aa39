//! Keeping the database from growing for ever, without being asked: jobs go by age, output by its
//! size too, and partitions come before they are needed and go when they are empty.

use std::sync::Arc;
use std::time::Duration;

use chrono::{Days, TimeDelta};

use super::cleanup::Deleted;
use super::trouble::{Doing, Duty};
use super::{App, Error};
use crate::store::logs::partition_days;
use crate::store::retention::LogSize;

/// Time between two rounds; the first one is soon after the start, when the rush of workers that
/// connect again is over.
const EVERY: Duration = Duration::from_secs(60 * 60);
const FIRST: Duration = Duration::from_secs(60);
/// And after one that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// Days ahead for which partitions are made.
const DAYS_AHEAD: u64 = 7;

/// Batches of jobs, attempts and events that one round deletes at most; the next one goes on.
const JOB_BATCHES: usize = 200;
const LOGS: i64 = 10_000;
const LOGS_BATCH: usize = 50;
const EVENTS: i64 = 10_000;

/// Makes partitions and deletes what is old, until the coordinator stops.
pub(super) async fn run(app: Arc<App>) {
    let mut doing = Doing::new(Duty::Retention);
    let mut wait = FIRST;
    loop {
        qctl_notify::panics::provoked("retention");
        // Chunks make their partition themselves where this has failed.
        let made = app.make_partitions().await;
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = app.stop.cancelled() => return,
        }
        let result = app
            .retain()
            .await
            .and_then(|deleted| made.map(|()| deleted));
        if let Ok(deleted) = &result
            && *deleted != Deleted::default()
        {
            tracing::info!(
                jobs = deleted.jobs,
                log_bytes = deleted.log_bytes,
                "deleted {} old jobs and {} bytes of old output",
                deleted.jobs,
                deleted.log_bytes
            );
        }
        doing.note(&app, &result).await;
        wait = match result {
            Ok(_) => EVERY,
            Err(_) => AFTER_FAILURE,
        };
    }
}

impl App {
    /// Makes the partitions of today and the days to come.
    pub(crate) async fn make_partitions(&self) -> Result<(), Error> {
        let today = self.clock.now().date_naive();
        let existing = self.store.log_partitions().await?;
        for day in partition_days(today, DAYS_AHEAD) {
            if !existing.contains(&day) {
                self.store.ensure_log_partition(day).await?;
            }
        }
        Ok(())
    }

    /// One round of deleting. Returns what went.
    pub(crate) async fn retain(&self) -> Result<Deleted, Error> {
        let now = self.clock.now();
        let kept = TimeDelta::from_std(self.settings.history_kept).unwrap_or(TimeDelta::MAX);
        let mut deleted = Deleted::default();
        if let Some(until) = now.checked_sub_signed(kept) {
            deleted += self.delete_ended(until, JOB_BATCHES).await?;
            self.store.delete_loose_events(until, EVENTS).await?;
        }
        deleted.log_bytes += self.shrink_logs().await?;
        // A day that has just begun may still get jobs from a transaction under way.
        let today = now.date_naive();
        if let Some(yesterday) = today.checked_sub_days(Days::new(1)) {
            self.store.drop_unused_partitions(yesterday).await?;
        }
        Ok(deleted)
    }

    /// Deletes the output of the longest ended jobs until the rest is within its limit.
    async fn shrink_logs(&self) -> Result<i64, Error> {
        let limit = i64::try_from(self.settings.log_bytes_kept).unwrap_or(i64::MAX);
        if self.store.log_disk_bytes().await? <= limit {
            return Ok(0);
        }
        let excess = self.store.log_stored_bytes().await? - limit;
        let oldest = self.store.oldest_logs(LOGS).await?;
        let mut freed = 0;
        for batch in enough(&oldest, excess).chunks(LOGS_BATCH) {
            if self.stop.is_cancelled() {
                return Err(Error::ShuttingDown);
            }
            freed += self.store.delete_logs(batch).await?;
        }
        Ok(freed)
    }
}

/// As many of the first ones as it takes to make up for the excess.
fn enough(oldest: &[LogSize], excess: i64) -> &[LogSize] {
    let mut freed = 0;
    let count = oldest
        .iter()
        .take_while(|log| {
            let more = freed < excess;
            freed += log.bytes;
            more
        })
        .count();
    &oldest[..count]
}

#[cfg(test)]
mod tests {
    use chrono::NaiveDate;
    use qctl_server_core::Fence;

    use super::*;

    #[test]
    fn no_more_goes_than_is_too_much() {
        let logs: Vec<LogSize> = [40, 30, 20]
            .iter()
            .enumerate()
            .map(|(index, bytes)| LogSize {
                fence: Fence(index as i64),
                day: NaiveDate::from_ymd_opt(2026, 11, 21).unwrap(),
                bytes: *bytes,
            })
            .collect();
        assert_eq!(enough(&logs, 0).len(), 0);
        assert_eq!(enough(&logs, 40).len(), 1);
        assert_eq!(enough(&logs, 41).len(), 2);
        assert_eq!(enough(&logs, 1_000).len(), 3);
    }
}
