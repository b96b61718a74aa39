//! GPUs that do not work.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use qctl_server_core::gpu::{self, Doubt, Faulty, Rest, Trial};
use qctl_server_core::ledger::GpuTrial;
use qctl_server_core::{JobId, WorkerId};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::read::GpuRecord;
use super::{StoreError, notices};

/// What is recorded of a GPU of a worker, whose row is locked.
pub(crate) struct GpuRow {
    /// The worker's name.
    pub(crate) worker: String,
    /// What is wrong with it.
    pub(crate) faulty: Option<Faulty>,
    /// A job that has it, or had it until a moment ago, tells people of its failure.
    pub(crate) by_job: bool,
}

/// Reads what is recorded of a GPU and locks its worker; `None` without such a worker.
pub(crate) async fn of_worker(
    conn: &mut PgConnection,
    worker: WorkerId,
    gpu: &str,
    lately: DateTime<Utc>,
) -> Result<Option<GpuRow>, StoreError> {
    let row = sqlx::query!(
        r#"select w.name, w.gpu_faults as "gpu_faults: Json<BTreeMap<String, Faulty>>",
                  exists (select from attempts a join jobs j on j.id = a.job_id
                          where a.worker_id = w.id and $2 = any(a.gpu_uuids)
                            and j.notify <> 'never'
                            -- What a person cancels ends by that, and tells nothing of its GPU.
                            and (a.state = 'running' and not j.cancel_requested
                                 or a.outcome_cause = 'gpu_fault' and a.ended_at >= $3))
                    as "by_job!"
           from workers w
           where w.id = $1
           for no key update of w"#,
        worker.0,
        gpu,
        lately,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|mut row| GpuRow {
        worker: row.name,
        faulty: row.gpu_faults.0.remove(gpu),
        by_job: row.by_job,
    }))
}

/// Records what is wrong with a GPU, or that nothing is.
pub(crate) async fn record(
    conn: &mut PgConnection,
    worker: WorkerId,
    gpu: &str,
    faulty: Option<&Faulty>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update workers
         set gpu_faults = case when $3::jsonb is null then gpu_faults - $2
                               else jsonb_set(gpu_faults, array[$2], $3) end
         where id = $1",
        worker.0,
        gpu,
        faulty.map(|faulty| serde_json::json!(faulty)),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Records what was tried on GPUs, in order, and tells people of those that rest from now on, or no
/// longer do.
pub(crate) async fn tried(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    trials: &[GpuTrial],
) -> Result<(), StoreError> {
    for GpuTrial { worker, gpu, trial } in trials {
        let row = sqlx::query!(
            r#"select w.name, w.gpus as "gpus: Json<Vec<GpuRecord>>", d.jobs as "jobs?",
                      d.faulty as "faulty: Json<Faulty>", d.tries as "tries?", d.rests_until
               from workers w
               left join gpu_doubts d on d.worker_id = w.id and d.gpu = $2
               where w.id = $1"#,
            worker.0,
            gpu,
        )
        .fetch_optional(&mut *conn)
        .await?;
        let Some(row) = row else { continue };
        let mut trial = trial.clone();
        match &mut trial {
            Trial::Passed if row.jobs.is_none() => continue,
            Trial::Passed => {}
            Trial::Failed { job, fault } => {
                *job = first_try(conn, *job).await?;
                let here = row.gpus.0.into_iter().find(|here| here.uuid == *gpu);
                fault.name = here.map(|here| here.name).unwrap_or_default();
            }
        }
        let rest = row.faulty.zip(row.rests_until);
        let before = Doubt {
            jobs: row
                .jobs
                .unwrap_or_default()
                .into_iter()
                .map(JobId)
                .collect(),
            rest: rest.map(|(faulty, until)| Rest {
                faulty: faulty.0,
                tries: row.tries.unwrap_or_default(),
                until,
            }),
        };
        let (after, notice) = gpu::tried(&row.name, before, &trial, now);
        write_doubt(conn, *worker, gpu, after.as_ref()).await?;
        let told: Vec<_> = notice.into_iter().collect();
        notices::insert(conn, now, &told).await?;
    }
    Ok(())
}

/// The job that this one, over any number of retries, is a retry of.
async fn first_try(conn: &mut PgConnection, job: JobId) -> Result<JobId, StoreError> {
    let first = sqlx::query_scalar!(
        r#"with recursive tries (id, retry_of) as (
             select id, retry_of from jobs where id = $1
             union
             select j.id, j.retry_of from jobs j join tries t on j.id = t.retry_of
           )
           select min(id) from tries"#,
        job.0,
    )
    .fetch_one(conn)
    .await?;
    Ok(first.map_or(job, JobId))
}

async fn write_doubt(
    conn: &mut PgConnection,
    worker: WorkerId,
    gpu: &str,
    doubt: Option<&Doubt>,
) -> Result<(), StoreError> {
    let Some(Doubt { jobs, rest }) = doubt else {
        sqlx::query!(
            "delete from gpu_doubts where worker_id = $1 and gpu = $2",
            worker.0,
            gpu,
        )
        .execute(conn)
        .await?;
        return Ok(());
    };
    let jobs: Vec<i64> = jobs.iter().map(|job| job.0).collect();
    sqlx::query!(
        "insert into gpu_doubts (worker_id, gpu, jobs, faulty, tries, rests_until)
         values ($1, $2, $3, $4, $5, $6)
         on conflict (worker_id, gpu) do update
         set jobs = $3, faulty = $4, tries = $5, rests_until = $6",
        worker.0,
        gpu,
        &jobs,
        rest.as_ref().map(|rest| serde_json::json!(rest.faulty)),
        rest.as_ref().map_or(0, |rest| rest.tries),
        rest.as_ref().map(|rest| rest.until),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets what jobs have failed on a worker's GPUs. Says how many rested.
pub(crate) async fn trust(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    worker: WorkerId,
) -> Result<usize, StoreError> {
    let rows = sqlx::query!(
        r#"delete from gpu_doubts d using workers w
           where d.worker_id = $1 and w.id = d.worker_id
           returning w.name, d.faulty as "faulty: Json<Faulty>", d.tries, d.rests_until"#,
        worker.0,
    )
    .fetch_all(&mut *conn)
    .await?;
    let over = rows.into_iter().filter_map(|row| {
        let rest = Rest {
            faulty: row.faulty?.0,
            tries: row.tries,
            until: row.rests_until?,
        };
        Some(gpu::trusted(&row.name, &rest))
    });
    let over: Vec<_> = over.collect();
    notices::insert(conn, now, &over).await?;
    Ok(over.len())
}
