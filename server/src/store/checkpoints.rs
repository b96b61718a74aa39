//! Published checkpoints: recording, listing, choosing, and those that nobody needs any more.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use qctl_server_core::checkpoint::{CheckpointId, MAX_CANDIDATES, ResumeCandidate};
use qctl_server_core::ledger::Closed;
use qctl_server_core::{AttemptNumber, Fence, JobId, WorkerId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Store, StoreError};

/// Of checkpoints whose contents are gone, so many are remembered for a job.
const REMEMBERED: i64 = 1_000;
/// How often older ones are looked for, in numbers given.
const FORGET_EVERY: i32 = 100;

/// What became of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointState {
    /// It can be resumed from.
    Kept,
    /// It was found damaged.
    Damaged,
    /// Its contents are gone.
    Removed,
}

/// A checkpoint as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRecord {
    /// Which.
    pub id: CheckpointId,
    /// The job.
    pub job: JobId,
    /// Number of the attempt that published it.
    pub attempt: AttemptNumber,
    /// How far the job was, as it counts itself.
    pub step: Option<i64>,
    /// What the job says about it.
    pub note: String,
    /// Name of the worker that has it.
    pub worker: String,
    /// Folder with its contents on that worker.
    pub path: String,
    /// Files in it.
    pub files: i32,
    /// Size of its contents.
    pub bytes: i64,
    /// Hash over its contents; empty while it is being computed.
    pub hash: String,
    /// The coordinator has a copy.
    pub uploaded: bool,
    /// What became of it.
    pub state: CheckpointState,
    /// When it was published, by the worker's clock.
    pub created_at: DateTime<Utc>,
    /// The next attempt would resume from it.
    pub latest: bool,
}

/// A place where a job may start, as candidates are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The job.
    pub(crate) job: JobId,
    /// The worker.
    pub(crate) worker: WorkerId,
}

/// Writes what a transaction changes about checkpoints, in order. A worker that tells one again adds
/// what it has learnt.
pub(super) async fn write(conn: &mut PgConnection, changes: &Closed) -> Result<(), StoreError> {
    for row in &changes.checkpoints {
        let told = &row.told;
        sqlx::query!(
            "insert into checkpoints (fence, number, job_id, attempt, step, note, worker_id,
                                      spool_id, path, files, bytes, hash, on_disk, created_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
             on conflict (fence, number) do update
             set hash = case when excluded.hash <> '' then excluded.hash else checkpoints.hash end,
                 path = excluded.path, on_disk = checkpoints.on_disk and excluded.on_disk",
            row.id.fence.0,
            row.id.number,
            row.job.0,
            row.attempt.0,
            told.step,
            told.note,
            row.worker.0,
            row.spool_id,
            told.path,
            told.files,
            told.bytes,
            told.hash,
            !told.removed,
            told.created_at,
        )
        .execute(&mut *conn)
        .await?;
        if row.id.number % FORGET_EVERY == 0 {
            forget(conn, row.job).await?;
        }
    }
    for damaged in &changes.damaged {
        sqlx::query!(
            "update checkpoints set damaged = true where fence = $1 and number = $2",
            damaged.id.fence.0,
            damaged.id.number,
        )
        .execute(&mut *conn)
        .await?;
    }
    for (fence, folder) in &changes.resumed {
        sqlx::query!(
            "update attempts set resumed_from = $2 where fence = $1",
            fence.0,
            folder,
        )
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

/// Forgets the oldest checkpoints of a job whose contents are gone.
async fn forget(conn: &mut PgConnection, job: JobId) -> Result<(), StoreError> {
    sqlx::query!(
        "delete from checkpoints where (fence, number) in (
           select fence, number from checkpoints
           where job_id = $1 and not on_disk and not uploaded
           order by fence desc, number desc offset $2)",
        job.0,
        REMEMBERED,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// What jobs can resume from where they are about to start, the newest first.
pub(crate) async fn candidates(
    conn: &mut PgConnection,
    places: &[Place],
) -> Result<HashMap<JobId, Vec<ResumeCandidate>>, StoreError> {
    let jobs: Vec<i64> = places.iter().map(|place| place.job.0).collect();
    let workers: Vec<Uuid> = places.iter().map(|place| place.worker.0).collect();
    let rows = sqlx::query!(
        r#"select k.for_job as "for_job!", k.fence as "fence!", k.number as "number!",
                  k.attempt as "attempt!", k.job_id as "job_id!", k.hash as "hash!",
                  k.uploaded as "uploaded!", k.on_disk and k.worker_id = u.worker as "here!"
           from unnest($1::bigint[], $2::uuid[]) as u (job, worker)
           join usable_checkpoints k on k.for_job = u.job
           where k.uploaded or (k.on_disk and k.worker_id = u.worker)
           order by k.for_job, k.rank, k.fence desc, k.number desc"#,
        &jobs,
        &workers,
    )
    .fetch_all(conn)
    .await?;
    let mut found: HashMap<JobId, Vec<ResumeCandidate>> = HashMap::new();
    for row in rows {
        let of_job = found.entry(JobId(row.for_job)).or_default();
        if of_job.len() < MAX_CANDIDATES {
            of_job.push(ResumeCandidate {
                id: CheckpointId {
                    fence: Fence(row.fence),
                    number: row.number,
                },
                attempt: AttemptNumber(row.attempt),
                job: JobId(row.job_id),
                hash: row.hash,
                here: row.here,
                uploaded: row.uploaded,
            });
        }
    }
    Ok(found)
}

/// The newest checkpoint that a job can resume from, or the one with these numbers, with the job and
/// the attempt that published it.
pub(crate) async fn usable(
    conn: &mut PgConnection,
    job: JobId,
    named: Option<(i32, i32)>,
) -> Result<Option<(CheckpointId, JobId, AttemptNumber)>, StoreError> {
    let row = sqlx::query!(
        r#"select fence as "fence!", number as "number!", job_id as "job_id!", attempt as "attempt!"
           from usable_checkpoints
           where for_job = $1
             and ($2::integer is null or (job_id = $1 and attempt = $2 and number = $3))
           order by rank, fence desc, number desc limit 1"#,
        job.0,
        named.map(|(attempt, _)| attempt),
        named.map_or(0, |(_, number)| number),
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| {
        let id = CheckpointId {
            fence: Fence(row.fence),
            number: row.number,
        };
        (id, JobId(row.job_id), AttemptNumber(row.attempt))
    }))
}

/// Keeps what a job can resume from until the transaction ends: nobody gives it up meanwhile, and
/// whoever is doing so is waited for.
pub(crate) async fn hold_checkpoints(
    conn: &mut PgConnection,
    job: JobId,
) -> Result<(), StoreError> {
    sqlx::query!(
        "select id from jobs
         where id = $1
            or id = (select k.job_id from jobs j
                     join checkpoints k on k.fence = j.resume_fence and k.number = j.resume_number
                     where j.id = $1)
         order by id
         for share",
        job.0,
    )
    .fetch_all(conn)
    .await?;
    Ok(())
}

/// Gives up the contents of checkpoints that nobody needs: of jobs that ended well, and of those
/// that ended before a time, unless another job was submitted to resume from them. Returns the jobs,
/// at most `limit`. Jobs that something else happens to are left for the next time.
pub(crate) async fn give_up(
    conn: &mut PgConnection,
    ended_before: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<JobId>, StoreError> {
    let found = sqlx::query_scalar!(
        "select j.id from jobs j
         where (j.state = 'succeeded' or j.ended_at < $1)
           and exists (select from checkpoints c
                       where c.job_id = j.id and (c.on_disk or c.uploaded) and not c.damaged)
           and not exists (select from checkpoints k
                           join jobs other on other.resume_fence = k.fence
                           where k.job_id = j.id and other.ended_at is null)
         order by j.id
         limit $2
         for no key update of j skip locked",
        ended_before,
        limit,
    )
    .fetch_all(&mut *conn)
    .await?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    // Now that no retry can begin: one that was committed between the look and the lock counts.
    let jobs = sqlx::query_scalar!(
        "select j.id from jobs j
         where j.id = any($1)
           and not exists (select from checkpoints k
                           join jobs other on other.resume_fence = k.fence
                           where k.job_id = j.id and other.ended_at is null)
         order by j.id",
        &found,
    )
    .fetch_all(&mut *conn)
    .await?;
    sqlx::query!(
        "delete from checkpoint_chunks k using checkpoints c
         where c.job_id = any($1) and k.fence = c.fence and k.number = c.number",
        &jobs,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "update checkpoints
         set on_disk = false, uploaded = false, upload_end = 0, upload_total = null
         where job_id = any($1)",
        &jobs,
    )
    .execute(&mut *conn)
    .await?;
    Ok(jobs.into_iter().map(JobId).collect())
}

/// Has a new job's first attempt resume from a checkpoint of another job.
pub(crate) async fn begin_from(
    conn: &mut PgConnection,
    job: JobId,
    checkpoint: CheckpointId,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update jobs set resume_fence = $2, resume_number = $3 where id = $1",
        job.0,
        checkpoint.fence.0,
        checkpoint.number,
    )
    .execute(conn)
    .await?;
    Ok(())
}

impl Store {
    /// A job's checkpoints, newest first, at most `limit`, older than `before`.
    pub(crate) async fn checkpoints(
        &self,
        job: JobId,
        before: Option<CheckpointId>,
        limit: usize,
    ) -> Result<Vec<CheckpointRecord>, StoreError> {
        let records = sqlx::query!(
            r#"select c.fence, c.number, c.job_id, c.attempt, c.step, c.note, w.name as worker,
                      c.path, c.files, c.bytes, c.hash, c.on_disk, c.uploaded, c.damaged,
                      c.created_at,
                      (c.fence, c.number) = (
                        select k.fence, k.number from usable_checkpoints k
                        where k.for_job = $1
                        order by k.rank, k.fence desc, k.number desc limit 1) as latest
               from checkpoints c join workers w on w.id = c.worker_id
               where c.job_id = $1
                 and ($2::bigint is null or (c.fence, c.number) < ($2, $3))
               order by c.fence desc, c.number desc
               limit $4"#,
            job.0,
            before.map(|id| id.fence.0),
            before.map_or(0, |id| id.number),
            limit as i64,
        )
        .map(|row| CheckpointRecord {
            id: CheckpointId {
                fence: Fence(row.fence),
                number: row.number,
            },
            job: JobId(row.job_id),
            attempt: AttemptNumber(row.attempt),
            step: row.step,
            note: row.note,
            worker: row.worker,
            path: row.path,
            files: row.files,
            bytes: row.bytes,
            hash: row.hash,
            uploaded: row.uploaded,
            state: match (row.damaged, row.on_disk || row.uploaded) {
                (true, _) => CheckpointState::Damaged,
                (false, true) => CheckpointState::Kept,
                (false, false) => CheckpointState::Removed,
            },
            created_at: row.created_at,
            latest: row.latest.unwrap_or_default(),
        })
        .fetch_all(self.pool())
        .await?;
        Ok(records)
    }

    /// The same as [`give_up`], in a transaction of its own.
    pub(crate) async fn give_up_checkpoints(
        &self,
        ended_before: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<JobId>, StoreError> {
        self.transaction(move |conn| Box::pin(give_up(conn, ended_before, limit)))
            .await
    }
}
