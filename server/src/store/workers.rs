//! Workers: who they are, when they were last heard of, and what they hold.

use chrono::{DateTime, Utc};
use qctl_server_core::ledger::Current;
use qctl_server_core::{Fence, JobId, Progress, WorkerId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::read::{GpuRecord, WorkerMode};
use super::{Store, StoreError};

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WorkerRow {
    /// Its identity.
    pub(crate) id: WorkerId,
    /// Its name.
    pub(crate) name: String,
    /// The machine's host name.
    pub(crate) hostname: String,
    /// The boot it runs in.
    pub(crate) boot_id: String,
    /// The spool it owns.
    pub(crate) spool_id: Uuid,
    /// Version of the agent.
    pub(crate) version: String,
    /// Its slots.
    pub(crate) slots: i32,
    /// Its GPUs.
    pub(crate) gpus: Vec<GpuRecord>,
    /// Its memory in bytes.
    pub(crate) memory_bytes: i64,
    /// Its logical processors.
    pub(crate) cpus: i32,
    /// Number of the greeting that says so, among those of its spool.
    pub(crate) greeting: i64,
}

/// A sign of life.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SignOfLife {
    /// When.
    pub(crate) seen: DateTime<Utc>,
    /// One-minute load average.
    pub(crate) load: Option<f64>,
    /// Memory in use, in bytes.
    pub(crate) memory_used_bytes: Option<i64>,
}

/// A worker as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KnownWorker {
    /// Its identity.
    pub(crate) id: WorkerId,
    /// Its name.
    pub(crate) name: String,
    /// Its slots.
    pub(crate) slots: i32,
    /// The spool it owned.
    pub(crate) spool_id: Uuid,
    /// Number of the latest greeting of that spool.
    pub(crate) greeting: i64,
    /// It holds attempts.
    pub(crate) holds: bool,
}

/// Workers with this identity or this name, locked.
pub(crate) async fn known(
    conn: &mut PgConnection,
    id: WorkerId,
    name: &str,
) -> Result<Vec<KnownWorker>, StoreError> {
    let rows = sqlx::query!(
        r#"select w.id, w.name, w.slots, w.spool_id, w.greeting,
                  exists (select from attempts a where a.worker_id = w.id and a.slot_held)
                    as "holds!"
           from workers w
           where w.id = $1 or w.name = $2
           order by w.id
           for no key update of w"#,
        id.0,
        name,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| KnownWorker {
            id: WorkerId(row.id),
            name: row.name,
            slots: row.slots,
            spool_id: row.spool_id,
            greeting: row.greeting,
            holds: row.holds,
        })
        .collect())
}

/// Gives a worker another name.
pub(crate) async fn rename(
    conn: &mut PgConnection,
    id: WorkerId,
    name: &str,
) -> Result<(), StoreError> {
    sqlx::query!("update workers set name = $2 where id = $1", id.0, name)
        .execute(conn)
        .await?;
    Ok(())
}

/// Records a worker as it says it is, and that it lives.
pub(crate) async fn upsert(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    worker: &WorkerRow,
) -> Result<(), StoreError> {
    sqlx::query!(
        "with w as (
           insert into workers (id, name, hostname, boot_id, spool_id, version, slots, gpus,
                                memory_bytes, cpus, first_seen, greeting)
           values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
           on conflict (id) do update
           set name = excluded.name, hostname = excluded.hostname, boot_id = excluded.boot_id,
               spool_id = excluded.spool_id, version = excluded.version, slots = excluded.slots,
               gpus = excluded.gpus, memory_bytes = excluded.memory_bytes, cpus = excluded.cpus,
               greeting = excluded.greeting
           returning id
         )
         insert into workers_live (worker_id, last_seen)
         select id, $11 from w
         on conflict (worker_id) do update set last_seen = excluded.last_seen",
        worker.id.0,
        worker.name,
        worker.hostname,
        worker.boot_id,
        worker.spool_id,
        worker.version,
        worker.slots,
        serde_json::json!(worker.gpus),
        worker.memory_bytes,
        worker.cpus,
        now,
        worker.greeting,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The attempts that a worker is thought to hold, and of `fences` those that are recorded.
pub(crate) async fn attempts_on(
    conn: &mut PgConnection,
    worker: WorkerId,
    fences: &[Fence],
) -> Result<Vec<Fence>, StoreError> {
    let fences: Vec<i64> = fences.iter().map(|fence| fence.0).collect();
    let rows = sqlx::query_scalar!(
        r#"select fence as "fence!" from attempts where worker_id = $1 and slot_held
           union
           select fence from attempts where worker_id = $1 and fence = any($2)
           order by 1"#,
        worker.0,
        &fences,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Fence).collect())
}

impl Store {
    /// Attempts that have not ended, at most `most`.
    pub(crate) async fn current_attempts(&self, most: i64) -> Result<Vec<Current>, StoreError> {
        let rows = sqlx::query!(
            r#"select a.fence, a.worker_id, a.spool_id = w.spool_id as "same_spool!", a.unreachable,
                      a.record_gone
               from attempts a join workers w on w.id = a.worker_id
               where a.state <> 'ended'
               order by a.fence
               limit $1"#,
            most,
        )
        .fetch_all(self.pool())
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| Current {
                fence: Fence(row.fence),
                worker: WorkerId(row.worker_id),
                same_spool: row.same_spool,
                unreachable: row.unreachable,
                record_gone: row.record_gone,
            })
            .collect())
    }

    /// Writes signs of life; a crash of the machine may lose them.
    pub(crate) async fn save_signs_of_life(
        &self,
        signs: &[(WorkerId, SignOfLife)],
    ) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = signs.iter().map(|(worker, _)| worker.0).collect();
        let seen: Vec<DateTime<Utc>> = signs.iter().map(|(_, sign)| sign.seen).collect();
        let load: Vec<Option<f64>> = signs.iter().map(|(_, sign)| sign.load).collect();
        let memory: Vec<Option<i64>> = signs
            .iter()
            .map(|(_, sign)| sign.memory_used_bytes)
            .collect();
        self.asynchronous_transaction(move |conn| {
            Box::pin(async move {
                sqlx::query!(
                    "update workers_live l
                     set last_seen = u.seen, load = u.load, memory_used_bytes = u.memory
                     from unnest($1::uuid[], $2::timestamptz[], $3::double precision[], $4::bigint[])
                       as u (id, seen, load, memory)
                     where l.worker_id = u.id",
                    &ids,
                    &seen,
                    &load as &[Option<f64>],
                    &memory as &[Option<i64>],
                )
                .execute(conn)
                .await?;
                Ok(())
            })
        })
        .await
    }

    /// Writes the latest progress of attempts; a crash of the machine may lose it.
    pub(crate) async fn save_progress(
        &self,
        progress: &[(Fence, Progress)],
    ) -> Result<(), StoreError> {
        let fences: Vec<i64> = progress.iter().map(|(fence, _)| fence.0).collect();
        let values: Vec<serde_json::Value> = progress
            .iter()
            .map(|(_, progress)| serde_json::json!(progress))
            .collect();
        self.asynchronous_transaction(move |conn| {
            Box::pin(async move {
                sqlx::query!(
                    "update attempts_live l set progress = u.progress
                     from unnest($1::bigint[], $2::jsonb[]) as u (fence, progress)
                     where l.fence = u.fence",
                    &fences,
                    &values,
                )
                .execute(conn)
                .await?;
                Ok(())
            })
        })
        .await
    }

    /// A worker by name.
    pub(crate) async fn worker_named(
        &self,
        name: &str,
    ) -> Result<Option<(WorkerId, WorkerMode)>, StoreError> {
        let row = sqlx::query!("select id, mode from workers where name = $1", name)
            .fetch_optional(self.pool())
            .await?;
        row.map(|row| Ok((WorkerId(row.id), worker_mode(&row.mode)?)))
            .transpose()
    }

    /// Workers that drain and hold nothing any more become paused. Returns their names.
    pub(crate) async fn finish_drains(&self) -> Result<Vec<String>, StoreError> {
        let is_draining = sqlx::query_scalar!(
            r#"select exists (select from workers where mode = 'draining') as "draining!""#
        )
        .fetch_one(self.pool())
        .await?;
        if !is_draining {
            return Ok(Vec::new());
        }
        self.transaction(|conn| {
            Box::pin(async move {
                let names = sqlx::query_scalar!(
                    "update workers w set mode = 'paused'
                     where w.mode = 'draining'
                       and not exists (select from attempts a
                                       where a.worker_id = w.id and a.slot_held)
                     returning w.name"
                )
                .fetch_all(conn)
                .await?;
                Ok(names)
            })
        })
        .await
    }

    /// Queued jobs whose checkpoint lies on a worker, and whose last attempt ended before `before`:
    /// job and worker.
    pub(crate) async fn waiting_for_checkpoint(
        &self,
        before: DateTime<Utc>,
    ) -> Result<Vec<(JobId, WorkerId, String)>, StoreError> {
        let rows = sqlx::query!(
            r#"select j.id, c.worker_id as "worker_id!", w.name
               from jobs j
               join lateral (
                 select k.worker_id, k.uploaded from usable_checkpoints k
                 where k.for_job = j.id
                 order by k.rank, k.fence desc, k.number desc limit 1
               ) c on not c.uploaded
               join workers w on w.id = c.worker_id
               left join attempts a on a.fence = j.fence
               where j.state = 'queued' and (j.attempts > 0 or j.resume_fence is not null)
                 and coalesce(a.ended_at, j.created_at) < $1 and not j.anywhere
               limit 1000"#,
            before,
        )
        .fetch_all(self.pool())
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| (JobId(row.id), WorkerId(row.worker_id), row.name))
            .collect())
    }
}

/// Changes how a worker takes jobs. `None` leaves a value as it is; returns false when there is no
/// such worker.
pub(crate) async fn steer(
    conn: &mut PgConnection,
    id: WorkerId,
    mode: Option<WorkerMode>,
    slots: Option<i32>,
) -> Result<bool, StoreError> {
    let mode = mode.map(|mode| match mode {
        WorkerMode::Active => "active",
        WorkerMode::Paused => "paused",
        WorkerMode::Draining => "draining",
    });
    let done = sqlx::query!(
        "update workers set mode = coalesce($2, mode), slots = coalesce($3, slots) where id = $1",
        id.0,
        mode,
        slots,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Pauses or resumes the queue.
pub(crate) async fn pause_queue(conn: &mut PgConnection, paused: bool) -> Result<(), StoreError> {
    sqlx::query!("update coordinator set queue_paused = $1", paused)
        .execute(conn)
        .await?;
    Ok(())
}

fn worker_mode(text: &str) -> Result<WorkerMode, StoreError> {
    match text {
        "active" => Ok(WorkerMode::Active),
        "paused" => Ok(WorkerMode::Paused),
        "draining" => Ok(WorkerMode::Draining),
        other => Err(StoreError::unreadable("worker mode", other)),
    }
}
