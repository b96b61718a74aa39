//! GPUs that do not work.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use qctl_server_core::WorkerId;
use qctl_server_core::gpu::Faulty;
use sqlx::PgConnection;
use sqlx::types::Json;

use super::StoreError;

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
                            and (a.state = 'running'
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
