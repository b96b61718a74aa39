//! History: reading events, and finding what changed since one.

use chrono::{DateTime, TimeDelta, Utc};
use qctl_server_core::JobId;

use super::{Store, StoreError};

/// A fact of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// Its number.
    pub id: i64,
    /// When it was recorded.
    pub time: DateTime<Utc>,
    /// The job it is about.
    pub job: Option<JobId>,
    /// The attempt it is about.
    pub attempt: Option<i32>,
    /// The worker it is about; empty when none.
    pub worker: String,
    /// One word.
    pub kind: String,
    /// The same in a sentence.
    pub message: String,
    /// Who caused it.
    pub actor: String,
}

/// Numbers are given before a transaction commits, so an event may become visible after one with a
/// higher number. What was numbered this long before a known event, or that many numbers before
/// it, counts as possibly unseen.
const OVERLAP: TimeDelta = TimeDelta::minutes(1);
const OVERLAP_EVENTS: i64 = 50_000;

impl Store {
    /// Number of the latest event that is visible; 0 when there is none.
    pub(crate) async fn latest_event(&self) -> Result<i64, StoreError> {
        let latest = sqlx::query_scalar!("select max(id) from events")
            .fetch_one(self.pool())
            .await?;
        Ok(latest.unwrap_or(0))
    }

    /// Events after a number, oldest first, at most `limit`.
    pub(crate) async fn events(
        &self,
        job: Option<JobId>,
        after: i64,
        limit: usize,
    ) -> Result<Vec<EventRecord>, StoreError> {
        let events = sqlx::query!(
            r#"select id, time, job_id, attempt, worker, kind, message, actor
               from events
               where ($1::bigint is null or job_id = $1) and id > $2
               order by id
               limit $3"#,
            job.map(|job| job.0) as _,
            after,
            limit as i64,
        )
        .map(|row| EventRecord {
            id: row.id,
            time: row.time,
            job: row.job_id.map(JobId),
            attempt: row.attempt,
            worker: row.worker,
            kind: row.kind,
            message: row.message,
            actor: row.actor,
        })
        .fetch_all(self.pool())
        .await?;
        Ok(events)
    }

    /// Jobs with events that someone who knows everything up to `after` may not have seen, in
    /// order; `None` when they are more than `limit`.
    pub(crate) async fn jobs_changed_since(
        &self,
        after: i64,
        limit: usize,
    ) -> Result<Option<Vec<JobId>>, StoreError> {
        let known = sqlx::query_scalar!(
            "select time from events where id <= $1 order by id desc limit 1",
            after,
        )
        .fetch_optional(self.pool())
        .await?;
        let Some(known) = known else {
            return Ok(None);
        };
        let jobs = sqlx::query_scalar!(
            r#"select distinct job_id as "job_id!" from events
               where job_id is not null and (id > $1 or (id > $2 and time >= $3))
               order by 1
               limit $4"#,
            after,
            after.saturating_sub(OVERLAP_EVENTS),
            known - OVERLAP,
            limit as i64 + 1,
        )
        .fetch_all(self.pool())
        .await?;
        Ok((jobs.len() <= limit).then(|| jobs.into_iter().map(JobId).collect()))
    }
}
