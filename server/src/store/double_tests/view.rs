//! Whatever can be read of both, and the first difference.

use std::fmt;

use chrono::{DateTime, Utc};
use qctl_server_core::checkpoint::{CheckpointId, CheckpointRow, Told};
use qctl_server_core::dispatch::Window;
use qctl_server_core::ledger::{AttemptRow, JobRow, Which};
use qctl_server_core::{AttemptNumber, Condition, Demand, Fence, JobId, WorkerId};
use qctl_simulation::double::{Double, Mode, StoredCheckpoint};
use sqlx::PgConnection;
use uuid::Uuid;

use super::pair::Pair;
use crate::store::checkpoints::{Place, candidates};
use crate::store::dispatch::{fleet, queued_jobs, run_now_jobs};
use crate::store::ledger::load;
use crate::store::{dependencies, leadership, workers};

/// Rows asked for at most; more than there are.
const ALL: i64 = 10_000;

/// What is not the same on both sides.
#[derive(Debug)]
pub(super) struct Differs(String);

impl fmt::Display for Differs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) fn same<T: PartialEq + fmt::Debug>(
    what: &str,
    real: &T,
    double: &T,
) -> Result<(), Differs> {
    match real == double {
        true => Ok(()),
        false => Err(Differs(format!(
            "{what}\n  in Postgres: {real:?}\n  in the double: {double:?}"
        ))),
    }
}

/// The same for many, of which only the first that differs is shown.
pub(super) fn same_rows<T: PartialEq + fmt::Debug>(
    what: &str,
    real: &[T],
    double: &[T],
) -> Result<(), Differs> {
    for index in 0..real.len().max(double.len()) {
        same(
            &format!("{what}, number {index}"),
            &real.get(index),
            &double.get(index),
        )?;
    }
    Ok(())
}

#[derive(Debug, PartialEq)]
struct JobView {
    row: JobRow,
    retry_of: Option<JobId>,
    resume_from: Option<CheckpointId>,
    created_at: DateTime<Utc>,
    attempts: i32,
    fence: Option<Fence>,
}

#[derive(Debug, PartialEq)]
struct AttemptView {
    row: AttemptRow,
    term: i64,
    demand: Demand,
    gpus: Vec<String>,
    beside_slots: bool,
    resumed_from: String,
}

type Link = ((JobId, JobId), (Condition, bool));
type WorkerView = (WorkerId, String, String, Uuid, i32, i64, i64, &'static str);

/// An entry of the history: job, attempt, worker, kind, message, actor.
pub(super) type EventView = (Option<i64>, Option<i32>, String, String, String, String);

async fn jobs(conn: &mut PgConnection) -> Vec<JobView> {
    type Row = (
        i64,
        Option<i64>,
        Option<i64>,
        Option<i32>,
        DateTime<Utc>,
        i32,
        Option<i64>,
    );
    let rows: Vec<Row> = sqlx::query_as(
        "select id, retry_of, resume_fence, resume_number, created_at, attempts, fence
         from jobs order by id",
    )
    .fetch_all(&mut *conn)
    .await
    .expect("jobs");
    let ids: Vec<JobId> = rows.iter().map(|row| JobId(row.0)).collect();
    let (loaded, _) = load(conn, Which::Jobs(&ids)).await.expect("jobs");
    loaded
        .into_iter()
        .zip(rows)
        .map(|(row, other)| JobView {
            row,
            retry_of: other.1.map(JobId),
            resume_from: other.2.zip(other.3).map(|(fence, number)| CheckpointId {
                fence: Fence(fence),
                number,
            }),
            created_at: other.4,
            attempts: other.5,
            fence: other.6.map(Fence),
        })
        .collect()
}

fn jobs_of(double: &Double) -> Vec<JobView> {
    let ids: Vec<JobId> = double.jobs().keys().copied().collect();
    let (loaded, _) = double.load(Which::Jobs(&ids));
    loaded
        .into_iter()
        .zip(double.jobs().values())
        .map(|(row, stored)| JobView {
            row,
            retry_of: stored.retry_of,
            resume_from: stored.resume_from,
            created_at: stored.created_at,
            attempts: stored.attempts,
            fence: stored.fence,
        })
        .collect()
}

async fn attempts(conn: &mut PgConnection) -> Vec<AttemptView> {
    type Row = (i64, i64, i32, i32, i64, Vec<String>, bool, String);
    let rows: Vec<Row> = sqlx::query_as(
        "select fence, term, slots, gpus, memory_bytes, gpu_uuids, beside_slots, resumed_from
         from attempts order by fence",
    )
    .fetch_all(&mut *conn)
    .await
    .expect("attempts");
    let fences: Vec<Fence> = rows.iter().map(|row| Fence(row.0)).collect();
    let (_, loaded) = load(conn, Which::Attempts(&fences))
        .await
        .expect("attempts");
    loaded
        .into_iter()
        .zip(rows)
        .map(|(row, other)| AttemptView {
            row,
            term: other.1,
            demand: Demand {
                slots: other.2,
                gpus: other.3,
                memory_bytes: other.4,
            },
            gpus: other.5,
            beside_slots: other.6,
            resumed_from: other.7,
        })
        .collect()
}

fn attempts_of(double: &Double) -> Vec<AttemptView> {
    let fences: Vec<Fence> = double.attempts().keys().copied().collect();
    let (_, loaded) = double.load(Which::Attempts(&fences));
    loaded
        .into_iter()
        .zip(double.attempts().values())
        .map(|(row, stored)| AttemptView {
            row,
            term: stored.term,
            demand: stored.demand,
            gpus: stored.gpus.clone(),
            beside_slots: stored.beside_slots,
            resumed_from: stored.resumed_from.clone(),
        })
        .collect()
}

#[derive(sqlx::FromRow)]
struct CheckpointColumns {
    fence: i64,
    number: i32,
    job_id: i64,
    attempt: i32,
    step: Option<i64>,
    note: String,
    worker_id: Uuid,
    spool_id: Uuid,
    path: String,
    files: i32,
    bytes: i64,
    hash: String,
    created_at: DateTime<Utc>,
    on_disk: bool,
    damaged: bool,
    uploaded: bool,
}

async fn checkpoints(conn: &mut PgConnection) -> Vec<StoredCheckpoint> {
    let rows: Vec<CheckpointColumns> =
        sqlx::query_as("select * from checkpoints order by fence, number")
            .fetch_all(conn)
            .await
            .expect("checkpoints");
    rows.into_iter()
        .map(|row| StoredCheckpoint {
            row: CheckpointRow {
                id: CheckpointId {
                    fence: Fence(row.fence),
                    number: row.number,
                },
                job: JobId(row.job_id),
                attempt: AttemptNumber(row.attempt),
                worker: WorkerId(row.worker_id),
                spool_id: row.spool_id,
                told: Told {
                    number: row.number,
                    step: row.step,
                    note: row.note,
                    path: row.path,
                    files: row.files,
                    bytes: row.bytes,
                    hash: row.hash,
                    created_at: row.created_at,
                    removed: false,
                },
            },
            on_disk: row.on_disk,
            damaged: row.damaged,
            uploaded: row.uploaded,
        })
        .collect()
}

fn checkpoints_of(double: &Double) -> Vec<StoredCheckpoint> {
    let mut stored: Vec<StoredCheckpoint> = double.checkpoints().values().cloned().collect();
    // Kept as `on_disk`.
    stored
        .iter_mut()
        .for_each(|stored| stored.row.told.removed = false);
    stored
}

async fn links(conn: &mut PgConnection) -> Vec<Link> {
    let rows: Vec<(i64, i64, String, bool)> = sqlx::query_as(
        "select job_id, on_job_id, condition, met from dependencies order by job_id, on_job_id",
    )
    .fetch_all(conn)
    .await
    .expect("dependencies");
    rows.into_iter()
        .map(|(job, on, condition, met)| {
            let condition = Condition::parse(&condition).expect("a condition");
            ((JobId(job), JobId(on)), (condition, met))
        })
        .collect()
}

async fn workers_view(conn: &mut PgConnection) -> Vec<WorkerView> {
    type Row = (Uuid, String, String, Uuid, i32, i64, i64, String);
    let rows: Vec<Row> = sqlx::query_as(
        "select id, name, boot_id, spool_id, slots, memory_bytes, greeting, mode
         from workers order by id",
    )
    .fetch_all(conn)
    .await
    .expect("workers");
    rows.into_iter()
        .map(|(id, name, boot, spool, slots, memory, greeting, mode)| {
            let words = ["active", "paused", "draining"];
            let mode = words.into_iter().find(|word| *word == mode);
            let mode = mode.expect("a mode");
            (
                WorkerId(id),
                name,
                boot,
                spool,
                slots,
                memory,
                greeting,
                mode,
            )
        })
        .collect()
}

fn workers_of(double: &Double) -> Vec<WorkerView> {
    let known = double.workers().values();
    known
        .map(|known| {
            let worker = &known.worker;
            let mode = match known.mode {
                Mode::Active => "active",
                Mode::Paused => "paused",
                Mode::Draining => "draining",
            };
            (
                worker.id,
                worker.name.clone(),
                worker.boot_id.clone(),
                worker.spool_id,
                worker.slots,
                worker.memory_bytes,
                worker.greeting,
                mode,
            )
        })
        .collect()
}

/// Entries of the history after this one, with the number of the last.
pub(super) async fn events(conn: &mut PgConnection, after: i64) -> (Vec<EventView>, i64) {
    type Row = (
        i64,
        Option<i64>,
        Option<i32>,
        String,
        String,
        String,
        String,
    );
    let rows: Vec<Row> = sqlx::query_as(
        "select id, job_id, attempt, worker, kind, message, actor from events
         where id > $1 order by id",
    )
    .bind(after)
    .fetch_all(conn)
    .await
    .expect("events");
    let last = rows.last().map_or(after, |row| row.0);
    let events = rows
        .into_iter()
        .map(|(_, job, attempt, worker, kind, message, actor)| {
            (job, attempt, worker, kind, message, actor)
        });
    (events.collect(), last)
}

impl Pair {
    /// Compares everything that both keep, and every answer that does not change anything.
    pub(super) async fn compare(&mut self) -> Result<(), Differs> {
        let mut conn = self.pool.acquire().await.expect("a connection");
        let conn = &mut *conn;
        let double = &self.double;
        same_rows("jobs", &jobs(conn).await, &jobs_of(double))?;
        same_rows("attempts", &attempts(conn).await, &attempts_of(double))?;
        same_rows(
            "checkpoints",
            &checkpoints(conn).await,
            &checkpoints_of(double),
        )?;
        let of_double = double.dependencies().iter();
        let of_double: Vec<Link> = of_double.map(|(pair, how)| (*pair, *how)).collect();
        same_rows("dependencies", &links(conn).await, &of_double)?;
        same_rows("workers", &workers_view(conn).await, &workers_of(double))?;
        let (record, _) = leadership::look(conn).await.expect("the leader");
        let known = double.leader();
        same(
            "the leader",
            &(record.term, record.renewals, record.leader, record.released),
            &(known.term, known.renewals, known.leader, known.released),
        )?;
        self.compare_queue(conn).await?;
        self.compare_looks(conn).await
    }

    /// What the dispatcher reads.
    async fn compare_queue(&self, conn: &mut PgConnection) -> Result<(), Differs> {
        let double = &self.double;
        let ids: Vec<WorkerId> = double.workers().keys().copied().collect();
        let real = fleet(conn, &ids, chrono::Utc::now())
            .await
            .expect("the fleet");
        let ours = double.fleet(&ids);
        same("the fleet", &real, &ours)?;
        let middle = double.jobs().iter().nth(double.jobs().len() / 2);
        let behind = middle.map(|(id, stored)| (stored.spec.priority, *id));
        for (after, limit) in [(None, ALL), (None, 2), (behind, ALL)] {
            let window = Window { after, limit };
            let queued = queued_jobs(conn, &ours.workers, &window).await;
            same_rows(
                "the queue",
                &queued.expect("the queue"),
                &double.queued_jobs(&ours.workers, &window),
            )?;
        }
        let wanted_now = run_now_jobs(conn).await.expect("jobs to start now");
        same_rows("jobs to start now", &wanted_now, &double.run_now_jobs())?;
        for worker in ids {
            let jobs = double.jobs().keys();
            let places: Vec<Place> = jobs.map(|job| Place { job: *job, worker }).collect();
            let real = candidates(conn, &places).await.expect("candidates");
            for place in places {
                let ours = double.candidates(place.job, worker);
                let real = real.get(&place.job).cloned().unwrap_or_default();
                same_rows("what to resume from", &real, &ours)?;
            }
        }
        Ok(())
    }

    /// What the loops look for.
    async fn compare_looks(&self, conn: &mut PgConnection) -> Result<(), Differs> {
        let (double, store) = (&self.double, &self.store);
        let jobs: Vec<JobId> = double.jobs().keys().copied().collect();
        let fences: Vec<Fence> = double.attempts().keys().copied().collect();
        let real = store.current_attempts(ALL).await.expect("attempts");
        let ours = double.current_attempts(ALL as usize);
        same_rows("current attempts", &real, &ours)?;
        for worker in double.workers().keys() {
            for mentioned in [&fences[..], &[]] {
                let real = workers::attempts_on(conn, *worker, mentioned).await;
                let ours = double.attempts_on(*worker, mentioned);
                same("attempts on a worker", &real.expect("attempts"), &ours)?;
            }
        }
        let real = dependencies::open_of(conn, &jobs).await.expect("waits");
        same_rows("open dependencies", &real, &double.open_of(&jobs))?;
        let real = store.dependents_of(&jobs, ALL).await.expect("dependents");
        let ours = double.dependents_of(&jobs, ALL as usize);
        same("dependents", &real, &ours)?;
        let real = store.overlooked_dependents(ALL).await.expect("dependents");
        let ours = double.overlooked_dependents(ALL as usize);
        same("overlooked dependents", &real, &ours)?;
        let (mut real, next) = store.due_jobs(self.now, ALL).await.expect("due jobs");
        let (mut ours, our_next) = double.due_jobs(self.now, ALL as usize);
        // Jobs that are due at the same moment come in any order.
        real.sort_unstable();
        ours.sort_unstable();
        same("due jobs", &(real, next), &(ours, our_next))?;
        let real = store.waiting_for_checkpoint(self.now).await;
        let mut real = real.expect("jobs that wait for a checkpoint");
        real.sort_unstable();
        let ours = double.waiting_for_checkpoint(self.now);
        same("jobs that wait for a checkpoint", &real, &ours)?;
        let latest = jobs.last().copied().unwrap_or(JobId(0));
        let real = crate::store::checkpoints::usable(conn, latest, None).await;
        let ours = double.usable(latest, None);
        same("the newest checkpoint", &real.expect("a checkpoint"), &ours)?;
        Ok(())
    }
}
