//! Who waits for whom.

use chrono::{DateTime, Utc};
use qctl_server_core::dependency::Open;
use qctl_server_core::{Condition, JobId};
use sqlx::PgConnection;

use super::ledger::job_state;
use super::{Store, StoreError};

/// Dependencies of these jobs that are not met.
pub(crate) async fn open_of(
    conn: &mut PgConnection,
    jobs: &[JobId],
) -> Result<Vec<Open>, StoreError> {
    let ids: Vec<i64> = jobs.iter().map(|job| job.0).collect();
    let rows = sqlx::query!(
        r#"select d.job_id, d.on_job_id, d.condition, o.state as "state?"
           from dependencies d left join jobs o on o.id = d.on_job_id
           where d.job_id = any($1) and not d.met
           order by d.job_id, d.on_job_id"#,
        &ids,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Open {
                job: JobId(row.job_id),
                on: JobId(row.on_job_id),
                condition: Condition::parse(&row.condition)
                    .ok_or_else(|| StoreError::unreadable("condition", &row.condition))?,
                state: row.state.as_deref().map(job_state).transpose()?,
            })
        })
        .collect()
}

/// Marks dependencies as met.
pub(crate) async fn meet(
    conn: &mut PgConnection,
    met: &[(JobId, JobId)],
) -> Result<(), StoreError> {
    let jobs: Vec<i64> = met.iter().map(|(job, _)| job.0).collect();
    let on: Vec<i64> = met.iter().map(|(_, on)| on.0).collect();
    sqlx::query!(
        "update dependencies d set met = true
         from unnest($1::bigint[], $2::bigint[]) as u (job_id, on_job_id)
         where d.job_id = u.job_id and d.on_job_id = u.on_job_id",
        &jobs,
        &on,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// True when one of the jobs, or a job that one of them waits for, is `job`.
pub(crate) async fn leads_to(
    conn: &mut PgConnection,
    from: &[JobId],
    job: JobId,
) -> Result<bool, StoreError> {
    let from: Vec<i64> = from.iter().map(|job| job.0).collect();
    let found = sqlx::query_scalar!(
        r#"with recursive reached (id) as (
             select * from unnest($1::bigint[])
             union
             select d.on_job_id from dependencies d join reached r on d.job_id = r.id
             where not d.met
           )
           select exists (select from reached where id = $2) as "found!""#,
        &from,
        job.0,
    )
    .fetch_one(conn)
    .await?;
    Ok(found)
}

impl Store {
    /// Jobs that have not ended and wait for one of these, at most `most`, in order.
    pub(crate) async fn dependents_of(
        &self,
        ended: &[JobId],
        most: i64,
    ) -> Result<Vec<JobId>, StoreError> {
        let ids: Vec<i64> = ended.iter().map(|job| job.0).collect();
        let found = sqlx::query_scalar!(
            "select distinct d.job_id
             from dependencies d join jobs j on j.id = d.job_id
             where d.on_job_id = any($1) and not d.met and j.ended_at is null
             order by d.job_id
             limit $2",
            &ids,
            most,
        )
        .fetch_all(self.pool())
        .await?;
        Ok(found.into_iter().map(JobId).collect())
    }

    /// Jobs that wait for a job which has ended or is gone, at most `most`, in order: what a crash
    /// between an end and its announcement left behind.
    pub(crate) async fn overlooked_dependents(&self, most: i64) -> Result<Vec<JobId>, StoreError> {
        let found = sqlx::query_scalar!(
            "select distinct d.job_id
             from dependencies d
             join jobs j on j.id = d.job_id and j.ended_at is null
             left join jobs o on o.id = d.on_job_id
             where not d.met and (o.id is null or o.ended_at is not null)
             order by d.job_id
             limit $1",
            most,
        )
        .fetch_all(self.pool())
        .await?;
        Ok(found.into_iter().map(JobId).collect())
    }

    /// Jobs whose wait is over, at most `most`, and when the next wait ends.
    pub(crate) async fn due_jobs(
        &self,
        now: DateTime<Utc>,
        most: i64,
    ) -> Result<(Vec<JobId>, Option<DateTime<Utc>>), StoreError> {
        let due = sqlx::query_scalar!(
            "select id from jobs where state = 'waiting' and not_before <= $1
             order by not_before limit $2",
            now,
            most,
        )
        .fetch_all(self.pool())
        .await?;
        let next = sqlx::query_scalar!(
            "select min(not_before) from jobs where state = 'waiting' and not_before > $1",
            now,
        )
        .fetch_one(self.pool())
        .await?;
        Ok((due.into_iter().map(JobId).collect(), next))
    }
}
