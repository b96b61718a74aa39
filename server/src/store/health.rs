//! What the health of machines is judged by, as far as the database knows it.

use chrono::{DateTime, Utc};
use qctl_server_core::health::Ends;
use qctl_server_core::{JobId, WorkerId};

use super::read::WorkerRecord;
use super::{Store, StoreError};

impl Store {
    /// Attempts that ended since a time, by worker.
    pub(crate) async fn ends_since(
        &self,
        since: DateTime<Utc>,
    ) -> Result<Vec<(WorkerId, Ends)>, StoreError> {
        let rows = sqlx::query!(
            r#"select w.id, count(*) as "all!",
                      count(*) filter (where a.outcome_kind = 'failed') as "failed!"
               from workers w join attempts a on a.worker_id = w.id
               where a.state = 'ended' and a.ended_at >= $1 and a.outcome_kind <> 'never_started'
               group by w.id"#,
            since,
        )
        .fetch_all(self.pool())
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let ends = Ends {
                    all: row.all,
                    failed: row.failed,
                };
                (WorkerId(row.id), ends)
            })
            .collect())
    }

    /// The job that has waited its turn for longest, of those that a worker could run or of all, and
    /// for how many seconds: since nothing else kept it from running any more.
    pub(crate) async fn oldest_queued(
        &self,
        of: Option<&WorkerRecord>,
        now: DateTime<Utc>,
    ) -> Result<Option<(JobId, i64)>, StoreError> {
        let row = sqlx::query!(
            r#"select j.id, q.since as "since!"
               from jobs j cross join lateral (
                 select greatest(
                   j.created_at, j.not_before,
                   (select max(a.ended_at) from attempts a where a.job_id = j.id),
                   (select max(o.ended_at) from dependencies d join jobs o on o.id = d.on_job_id
                    where d.job_id = j.id)) as since) q
               where j.state = 'queued' and j.reason <> 'assigned'
                 and ($1::text is null or j.pinned_worker in ('', $1)
                      and j.slots <= $2 and j.gpus <= $3)
               order by q.since, j.id
               limit 1"#,
            of.map(|worker| worker.name.as_str()),
            of.map_or(0, |worker| worker.total.slots),
            of.map_or(0, |worker| worker.total.gpus),
        )
        .fetch_optional(self.slow())
        .await?;
        Ok(row.map(|row| (JobId(row.id), (now - row.since).num_seconds().max(0))))
    }
}
