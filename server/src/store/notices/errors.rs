//! What went wrong in failed attempts, in groups.

use chrono::{DateTime, TimeDelta, Utc};
use qctl_server_core::JobId;

use super::super::{Store, StoreError};
use super::held_back;
use super::outbox::OpenNotice;

/// How far back failures are looked for that were not grouped.
pub(crate) const UNGROUPED_WINDOW: TimeDelta = TimeDelta::hours(1);

/// Failures with the same signature.
#[derive(Clone, Debug)]
pub struct ErrorGroup {
    /// What they have in common.
    pub signature: String,
    /// Type of the exception of the latest; empty when it has none.
    pub exception: String,
    /// Line of output of the latest.
    pub example: String,
    /// How many attempts failed so.
    pub count: i64,
    /// The first of them.
    pub first_seen: DateTime<Utc>,
    /// The latest.
    pub last_seen: DateTime<Utc>,
    /// The latest jobs that failed so, newest first.
    pub jobs: Vec<JobId>,
    /// How many jobs failed so.
    pub job_count: i64,
}

impl Store {
    /// Writes what went wrong in a failed attempt.
    pub(crate) async fn record_error(
        &self,
        job: JobId,
        attempt: i32,
        time: DateTime<Utc>,
        signature: &str,
        exception: &str,
        line: &str,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "insert into attempt_errors (job_id, attempt, time, signature, exception, line)
             select $1, $2, $3, $4, $5, $6 from jobs where id = $1
             on conflict (job_id, attempt) do nothing",
            job.0,
            attempt,
            time,
            signature,
            exception,
            line,
        )
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// Failed attempts whose notice was held back before its error was looked at, so that they are
    /// grouped as well; oldest first.
    pub(crate) async fn ungrouped_errors(
        &self,
        since: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<OpenNotice>, StoreError> {
        let ids = sqlx::query_scalar!(
            "select n.id
             from notices n
             join jobs j on j.id = n.job_id
             join attempts a on a.job_id = n.job_id and a.number = n.attempt
             where n.created_at > $1 and n.state = 'held_back' and n.reason in ($2, $3)
               and n.class in ('attempt_failed', 'job_failed')
               and not exists (select from attempt_errors e
                               where e.job_id = n.job_id and e.attempt = n.attempt)
             order by n.created_at
             limit $4",
            since,
            held_back::NOT_WANTED,
            held_back::OVER,
            limit,
        )
        .fetch_all(self.pool())
        .await?;
        self.notices_by_id(&ids).await
    }

    /// Failures since a time in groups, the latest first; `skip` groups are left out.
    pub(crate) async fn error_groups(
        &self,
        since: DateTime<Utc>,
        skip: i64,
        limit: i64,
    ) -> Result<Vec<ErrorGroup>, StoreError> {
        let rows = sqlx::query!(
            r#"select signature as "signature!", count(*) as "count!", min(time) as "first!",
                      max(time) as "last!", count(distinct job_id) as "job_count!",
                      (array_agg(exception order by time desc))[1] as "exception!",
                      (array_agg(line order by time desc))[1] as "line!",
                      (array_agg(job_id order by time desc))[1:20] as "jobs!"
               from attempt_errors where time > $1
               group by signature
               order by max(time) desc, signature
               offset $2 limit $3"#,
            since,
            skip,
            limit,
        )
        .fetch_all(self.pool())
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let mut jobs: Vec<JobId> = Vec::new();
                for job in row.jobs {
                    if !jobs.contains(&JobId(job)) {
                        jobs.push(JobId(job));
                    }
                }
                ErrorGroup {
                    signature: row.signature,
                    exception: row.exception,
                    example: row.line,
                    count: row.count,
                    first_seen: row.first,
                    last_seen: row.last,
                    jobs,
                    job_count: row.job_count,
                }
            })
            .collect())
    }
}
