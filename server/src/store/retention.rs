//! Deleting what is old: ended jobs with everything about them, output alone, and events of nobody.

use chrono::{DateTime, NaiveDate, Utc};
use qctl_server_core::{Fence, JobId};
use sqlx::PgConnection;

use super::{Store, StoreError};

/// What was deleted, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Jobs.
    pub jobs: i64,
    /// Stored bytes of output.
    pub log_bytes: i64,
}

impl std::ops::AddAssign for Deleted {
    fn add_assign(&mut self, other: Self) {
        self.jobs += other.jobs;
        self.log_bytes += other.log_bytes;
    }
}

/// The output of one attempt, as far as it takes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogSize {
    /// The attempt.
    pub(crate) fence: Fence,
    /// Creation day of its job.
    pub(crate) day: NaiveDate,
    /// Stored bytes.
    pub(crate) bytes: i64,
}

/// Deletes jobs that are locked and known to be ended, with all that hangs on them.
async fn delete_locked(conn: &mut PgConnection, jobs: &[i64]) -> Result<Deleted, StoreError> {
    let attempts = sqlx::query!(
        r#"select a.fence, j.day from attempts a join jobs j on j.id = a.job_id
           where j.id = any($1)"#,
        jobs,
    )
    .fetch_all(&mut *conn)
    .await?;
    let fences: Vec<i64> = attempts.iter().map(|row| row.fence).collect();
    let days: Vec<NaiveDate> = attempts.iter().map(|row| row.day).collect();
    let log_bytes = delete_chunks(conn, &days, &fences).await?;
    sqlx::query!("delete from events where job_id = any($1)", jobs)
        .execute(&mut *conn)
        .await?;
    let deleted = sqlx::query!("delete from jobs where id = any($1)", jobs)
        .execute(&mut *conn)
        .await?
        .rows_affected();
    Ok(Deleted {
        jobs: deleted as i64,
        log_bytes,
    })
}

/// Deletes the output of attempts and returns how much room it took.
async fn delete_chunks(
    conn: &mut PgConnection,
    days: &[NaiveDate],
    fences: &[i64],
) -> Result<i64, StoreError> {
    if fences.is_empty() {
        return Ok(0);
    }
    let bytes = sqlx::query_scalar!(
        r#"with gone as (
             delete from log_chunks c
             using unnest($1::date[], $2::bigint[]) as t (day, fence)
             where c.day = t.day and c.fence = t.fence
             returning octet_length(c.data) as bytes
           )
           select coalesce(sum(bytes), 0)::bigint as "bytes!" from gone"#,
        days,
        fences,
    )
    .fetch_one(conn)
    .await?;
    Ok(bytes)
}

impl Store {
    /// Deletes the oldest jobs that ended at or before a time, at most `limit` of them. A job whose
    /// processes are not all gone is left for later, because its slot is still taken. Returns also
    /// those of them that had published checkpoints.
    pub(crate) async fn delete_ended_jobs(
        &self,
        until: DateTime<Utc>,
        limit: i64,
    ) -> Result<(Deleted, Vec<JobId>), StoreError> {
        self.transaction(move |conn| {
            Box::pin(async move {
                let jobs = sqlx::query_scalar!(
                    r#"select id from jobs
                       where ended_at <= $1 and not exists (
                           select from attempts where job_id = jobs.id and slot_held)
                       order by ended_at
                       limit $2
                       for update skip locked"#,
                    until,
                    limit,
                )
                .fetch_all(&mut *conn)
                .await?;
                if jobs.is_empty() {
                    return Ok((Deleted::default(), Vec::new()));
                }
                let published = sqlx::query_scalar!(
                    "select distinct job_id from checkpoints where job_id = any($1)",
                    &jobs,
                )
                .fetch_all(&mut *conn)
                .await?;
                let deleted = delete_locked(conn, &jobs).await?;
                Ok((deleted, published.into_iter().map(JobId).collect()))
            })
        })
        .await
    }

    /// What [`Store::delete_ended_jobs`] would delete in all.
    pub(crate) async fn count_ended_jobs(
        &self,
        until: DateTime<Utc>,
    ) -> Result<Deleted, StoreError> {
        let row = sqlx::query!(
            r#"with gone as (
                 select id, day from jobs
                 where ended_at <= $1 and not exists (
                     select from attempts where job_id = jobs.id and slot_held)
               )
               select (select count(*) from gone) as "jobs!",
                      (select coalesce(sum(octet_length(c.data)), 0)::bigint
                       from gone j join attempts a on a.job_id = j.id
                       join log_chunks c on c.day = j.day and c.fence = a.fence) as "log_bytes!""#,
            until,
        )
        .fetch_one(self.slow())
        .await?;
        Ok(Deleted {
            jobs: row.jobs,
            log_bytes: row.log_bytes,
        })
    }

    /// Room that the partitions of output take on disk, dead rows and all: cheap to ask and never
    /// less than what is stored.
    pub(crate) async fn log_disk_bytes(&self) -> Result<i64, StoreError> {
        let bytes = sqlx::query_scalar!(
            r#"select coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint as "bytes!"
               from pg_inherits where inhparent = 'log_chunks'::regclass"#,
        )
        .fetch_one(self.pool())
        .await?;
        Ok(bytes)
    }

    /// Stored bytes of all output.
    pub(crate) async fn log_stored_bytes(&self) -> Result<i64, StoreError> {
        let bytes = sqlx::query_scalar!(
            r#"select coalesce(sum(octet_length(data)), 0)::bigint as "bytes!" from log_chunks"#,
        )
        .fetch_one(self.slow())
        .await?;
        Ok(bytes)
    }

    /// The output of ended jobs that takes room, the longest ended first, at most `limit` attempts.
    pub(crate) async fn oldest_logs(&self, limit: i64) -> Result<Vec<LogSize>, StoreError> {
        let sizes = sqlx::query!(
            r#"select c.fence, c.day, c.bytes as "bytes!"
               from (select day, fence, sum(octet_length(data))::bigint as bytes
                     from log_chunks group by day, fence) c
               join attempts a on a.fence = c.fence
               join jobs j on j.id = a.job_id
               where j.ended_at is not null
               order by j.ended_at, c.fence
               limit $1"#,
            limit,
        )
        .map(|row| LogSize {
            fence: Fence(row.fence),
            day: row.day,
            bytes: row.bytes,
        })
        .fetch_all(self.slow())
        .await?;
        Ok(sizes)
    }

    /// Deletes the output of attempts and leaves everything else about them. Returns its bytes.
    pub(crate) async fn delete_logs(&self, logs: &[LogSize]) -> Result<i64, StoreError> {
        let days: Vec<NaiveDate> = logs.iter().map(|log| log.day).collect();
        let fences: Vec<i64> = logs.iter().map(|log| log.fence.0).collect();
        self.transaction(move |conn| {
            Box::pin(async move { delete_chunks(conn, &days, &fences).await })
        })
        .await
    }

    /// Deletes events that belong to no job and were recorded before a time, at most `limit`.
    pub(crate) async fn delete_loose_events(
        &self,
        before: DateTime<Utc>,
        limit: i64,
    ) -> Result<u64, StoreError> {
        self.transaction(move |conn| {
            Box::pin(async move {
                let deleted = sqlx::query!(
                    r#"delete from events where id in (
                         select id from events where job_id is null and time < $1
                         order by id limit $2)"#,
                    before,
                    limit,
                )
                .execute(conn)
                .await?;
                Ok(deleted.rows_affected())
            })
        })
        .await
    }
}
