//! What the dispatcher reads, and the one statement with which it assigns.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use qctl_server_core::dispatch::{Fleet, MadeAssignment, NewAssignment, Newest, QueuedJob, Window};
use qctl_server_core::gpu::Faulty;
use qctl_server_core::placement::{Candidate, Holding, Order, Worker};
use qctl_server_core::{AttemptNumber, Demand, Fence, JobId, JobSpec, Term, WorkerId};
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::StoreError;
use super::read::GpuRecord;

/// Reads workers and what occupies them, without GPUs that do not work or rest. `accepts` knows the mode and the queue's pause; `ready`
/// is left to the caller.
pub(crate) async fn fleet(
    conn: &mut PgConnection,
    workers: &[WorkerId],
    now: DateTime<Utc>,
) -> Result<Fleet, StoreError> {
    let ids: Vec<Uuid> = workers.iter().map(|worker| worker.0).collect();
    let rows = sqlx::query!(
        r#"select w.id, w.name, w.mode, w.slots, w.memory_bytes, c.queue_paused,
                  exists (select from jobs where run_now_on is not null) as "run_now!",
                  w.gpus as "gpus: Json<Vec<GpuRecord>>",
                  w.gpu_faults || coalesce((select jsonb_object_agg(d.gpu, d.faulty)
                                            from gpu_doubts d
                                            where d.worker_id = w.id and d.rests_until > $2), '{}')
                    as "gpu_faults!: Json<BTreeMap<String, Faulty>>",
                  h.fence as "fence?", h.state as "state?", h.job_id as "job_id?",
                  h.priority as "priority?", h.slots as "held_slots?", h.gpus as "held_gpus?",
                  h.memory_bytes as "held_memory?", h.gpu_uuids as "gpu_uuids?",
                  h.beside_slots as "beside_slots?", h.asked_back as "asked_back?",
                  h.bound as "bound?", h.paused as "paused?", h.started_at as "started_at?",
                  h.time_limit_us as "time_limit_us?"
           from workers w
           cross join coordinator c
           left join lateral (
             select a.worker_id, a.fence, a.state, a.job_id, j.priority, a.slots, a.gpus,
                    a.memory_bytes, a.gpu_uuids, a.beside_slots,
                    a.stop_requested is not null as asked_back,
                    j.pinned_worker <> '' or a.resumed_from <> '' as bound, a.paused,
                    a.started_at, j.time_limit_us
             from attempts a join jobs j on j.id = a.job_id
             where a.worker_id = w.id and a.slot_held
           ) h on true
           where w.id = any($1)
           order by w.id, h.fence"#,
        &ids,
        now,
    )
    .fetch_all(conn)
    .await?;
    let mut fleet = Fleet {
        workers: Vec::with_capacity(workers.len()),
        queue_paused: false,
        run_now: false,
        oldest_start: Vec::with_capacity(workers.len()),
    };
    for row in rows {
        fleet.queue_paused = row.queue_paused;
        fleet.run_now = row.run_now;
        let id = WorkerId(row.id);
        if fleet.workers.last().is_none_or(|last| last.id != id) {
            fleet.workers.push(Worker {
                id,
                name: row.name,
                accepts: row.mode == "active" && !row.queue_paused,
                slots: row.slots,
                gpus: row
                    .gpus
                    .0
                    .into_iter()
                    .map(|gpu| gpu.uuid)
                    .filter(|uuid| !row.gpu_faults.0.contains_key(uuid))
                    .collect(),
                memory_bytes: row.memory_bytes,
                ready: 0,
                held: Vec::new(),
            });
            fleet.oldest_start.push(None);
        }
        let (Some(worker), Some(oldest)) =
            (fleet.workers.last_mut(), fleet.oldest_start.last_mut())
        else {
            continue;
        };
        let (Some(fence), Some(job), Some(state)) = (row.fence, row.job_id, row.state) else {
            continue;
        };
        let running = state == "running";
        if running {
            *oldest = match (*oldest, row.started_at) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        let frozen = row.paused.unwrap_or_default() || !running;
        worker.held.push(Holding {
            fence: Fence(fence),
            order: Order::new(row.priority.unwrap_or_default(), JobId(job)),
            demand: Demand {
                slots: row.held_slots.unwrap_or(1),
                gpus: row.held_gpus.unwrap_or_default(),
                memory_bytes: row.held_memory.unwrap_or_default(),
            },
            gpus: row.gpu_uuids.unwrap_or_default(),
            beside_slots: row.beside_slots.unwrap_or_default(),
            assigned: state == "assigned",
            asked_back: row.asked_back.unwrap_or_default(),
            bound: row.bound.unwrap_or_default(),
            ends_by: match (row.started_at, row.time_limit_us) {
                (Some(start), Some(limit)) if !frozen => {
                    Some(start + TimeDelta::microseconds(limit))
                }
                _ => None,
            },
        });
    }
    Ok(fleet)
}

/// Queued jobs that no worker has, in order, leaving out those that none of `workers` could take
/// even when it is empty, and exclusive ones of which an ended attempt has left processes behind. A
/// job with a checkpoint is bound to the worker that has it, unless the coordinator has a copy or a
/// person let it go on anywhere.
pub(crate) async fn queued_jobs(
    conn: &mut PgConnection,
    workers: &[Worker],
    window: &Window,
) -> Result<Vec<QueuedJob>, StoreError> {
    let names: Vec<String> = workers.iter().map(|worker| worker.name.clone()).collect();
    let slots: Vec<i32> = workers.iter().map(|worker| worker.slots).collect();
    let gpus: Vec<i32> = workers
        .iter()
        .map(|worker| i32::try_from(worker.gpus.len()).unwrap_or(i32::MAX))
        .collect();
    let memory: Vec<i64> = workers
        .iter()
        .map(|worker| match worker.memory_bytes {
            0 => i64::MAX,
            known => known,
        })
        .collect();
    let after_priority = window.after.map(|(priority, _)| priority);
    let after_id = window.after.map(|(_, job)| job.0);
    let rows = sqlx::query!(
        r#"select j.id, j.priority, j.pinned_worker, j.slots, j.gpus, j.memory_bytes, j.anywhere,
                  j.time_limit_us, j.run_now_on, c.worker_id as "checkpoint_worker?",
                  c.path as "checkpoint_path?", c.uploaded as "uploaded?"
           from jobs j
           left join lateral (
             select k.worker_id, k.path, k.uploaded from usable_checkpoints k
             where k.for_job = j.id and (j.attempts > 0 or j.resume_fence is not null)
             order by k.rank, k.fence desc, k.number desc limit 1
           ) c on true
           where j.state = 'queued'
             and (j.attempts = 0
                  or not exists (select 1 from attempts a
                                 where a.job_id = j.id
                                   and (a.state <> 'ended' or j.exclusive and a.slot_held
                                                          and a.log_end is not null)))
             and ($1::integer is null or j.priority < $1 or (j.priority = $1 and j.id > $2))
             and exists (select 1
                         from unnest($3::text[], $4::integer[], $5::integer[], $6::bigint[])
                           as w (name, slots, gpus, memory)
                         where (j.pinned_worker = '' or j.pinned_worker = w.name)
                           and j.slots <= w.slots and j.gpus <= w.gpus
                           and j.memory_bytes <= w.memory)
           order by j.priority desc, j.id
           limit $7"#,
        after_priority,
        after_id,
        &names,
        &slots,
        &gpus,
        &memory,
        window.limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let checkpoint = newest(row.checkpoint_worker, row.checkpoint_path, row.uploaded);
            QueuedJob {
                candidate: Candidate {
                    job: JobId(row.id),
                    order: Order::new(row.priority, JobId(row.id)),
                    demand: Demand {
                        slots: row.slots,
                        gpus: row.gpus,
                        memory_bytes: row.memory_bytes,
                    },
                    pinned: Some(row.pinned_worker).filter(|name| !name.is_empty()),
                    checkpoint_on: checkpoint
                        .as_ref()
                        .filter(|newest| !row.anywhere && !newest.uploaded)
                        .map(|newest| newest.worker),
                    time_limit: row.time_limit_us.map(TimeDelta::microseconds),
                },
                priority: row.priority,
                run_now_on: row.run_now_on.map(WorkerId),
                checkpoint,
            }
        })
        .collect())
}

fn newest(worker: Option<Uuid>, folder: Option<String>, uploaded: Option<bool>) -> Option<Newest> {
    Some(Newest {
        worker: WorkerId(worker?),
        folder: folder?,
        uploaded: uploaded.unwrap_or_default(),
    })
}

/// Queued jobs that a person wants to start now, and that no worker has.
pub(crate) async fn run_now_jobs(conn: &mut PgConnection) -> Result<Vec<QueuedJob>, StoreError> {
    let rows = sqlx::query!(
        r#"select j.id, j.priority, j.slots, j.gpus, j.memory_bytes, j.run_now_on,
                  c.worker_id as "checkpoint_worker?", c.path as "checkpoint_path?",
                  c.uploaded as "uploaded?"
           from jobs j
           left join lateral (
             select k.worker_id, k.path, k.uploaded from usable_checkpoints k
             where k.for_job = j.id and (j.attempts > 0 or j.resume_fence is not null)
             order by k.rank, k.fence desc, k.number desc limit 1
           ) c on true
           where j.run_now_on is not null and j.state = 'queued'
             and not exists (select 1 from attempts a
                             where a.job_id = j.id
                               and (a.state <> 'ended' or j.exclusive and a.slot_held
                                                      and a.log_end is not null))
           order by j.priority desc, j.id
           limit 1000"#,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| QueuedJob {
            candidate: Candidate {
                job: JobId(row.id),
                order: Order::new(row.priority, JobId(row.id)),
                demand: Demand {
                    slots: row.slots,
                    gpus: row.gpus,
                    memory_bytes: row.memory_bytes,
                },
                pinned: None,
                checkpoint_on: None,
                time_limit: None,
            },
            priority: row.priority,
            run_now_on: row.run_now_on.map(WorkerId),
            checkpoint: newest(row.checkpoint_worker, row.checkpoint_path, row.uploaded),
        })
        .collect())
}

/// Makes attempts, in one statement that fails when the term is over: each job must still be queued
/// and without an attempt, and an exclusive one without processes of an earlier attempt that is
/// known to have ended. What
/// comes back is what was made; a job that is missing was changed in the meantime.
pub(crate) async fn assign(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    term: Term,
    assignments: &[NewAssignment],
) -> Result<Vec<MadeAssignment>, StoreError> {
    let jobs: Vec<i64> = assignments.iter().map(|new| new.job.0).collect();
    let workers: Vec<Uuid> = assignments.iter().map(|new| new.worker.0).collect();
    let names: Vec<String> = assignments
        .iter()
        .map(|new| new.worker_name.clone())
        .collect();
    let boots: Vec<String> = assignments.iter().map(|new| new.boot_id.clone()).collect();
    let spools: Vec<Uuid> = assignments.iter().map(|new| new.spool_id).collect();
    let gpus: Vec<serde_json::Value> = assignments
        .iter()
        .map(|new| serde_json::json!(new.gpus))
        .collect();
    let beside: Vec<bool> = assignments.iter().map(|new| new.beside_slots).collect();
    let resume: Vec<String> = assignments
        .iter()
        .map(|new| new.resume_from.clone())
        .collect();
    let reasons: Vec<String> = assignments
        .iter()
        .map(|new| new.reason.to_owned())
        .collect();
    let messages: Vec<String> = assignments.iter().map(|new| new.message.clone()).collect();
    let rows = sqlx::query!(
        r#"with led as materialized (
             select leads($11)
           ), picked as (
             update jobs j
             set attempts = j.attempts + 1, fence = nextval('fences'), reason = u.reason,
                 message = u.message, run_now_on = null
             from unnest($1::bigint[], $2::uuid[], $3::text[], $4::text[], $5::uuid[],
                         $6::jsonb[], $7::boolean[], $8::text[], $9::text[], $10::text[])
               with ordinality
               as u (job_id, worker_id, worker, boot_id, spool_id, gpu_uuids, beside_slots,
                     resume_from, reason, message, position)
             cross join led
             where j.id = u.job_id and j.state = 'queued'
               and not exists (select 1 from attempts a
                               where a.job_id = j.id
                                 and (a.state <> 'ended' or j.exclusive and a.slot_held
                                                        and a.log_end is not null))
             returning j.id, j.fence, j.attempts, j.slots, j.gpus, j.memory_bytes, u.worker_id,
                       u.worker, u.boot_id, u.spool_id, u.gpu_uuids, u.beside_slots,
                       u.resume_from, u.message, u.position
           ), made as (
             insert into attempts (fence, job_id, number, state, worker_id, boot_id, spool_id,
                                   term, slots, gpus, memory_bytes, gpu_uuids, beside_slots,
                                   assigned_at, resumed_from)
             select p.fence, p.id, p.attempts, 'assigned', p.worker_id, p.boot_id, p.spool_id,
                    $11, p.slots, p.gpus, p.memory_bytes,
                    array(select jsonb_array_elements_text(p.gpu_uuids)), p.beside_slots, $12,
                    p.resume_from
             from picked p
             returning fence
           ), live as (
             insert into attempts_live (fence) select fence from made
           ), told as (
             insert into events (time, job_id, attempt, worker, kind, message, actor)
             select $12, p.id, p.attempts, p.worker, 'assigned', p.message, 'coordinator'
             from picked p
             order by p.position
           )
           select p.id, p.fence as "fence!", p.attempts, s.spec as "spec: Json<JobSpec>"
           from picked p join job_specs s on s.job_id = p.id
           order by p.position"#,
        &jobs,
        &workers,
        &names,
        &boots,
        &spools,
        &gpus,
        &beside,
        &resume,
        &reasons,
        &messages,
        term.0,
        now,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| MadeAssignment {
            job: JobId(row.id),
            fence: Fence(row.fence),
            number: AttemptNumber(row.attempts),
            spec: row.spec.0,
        })
        .collect())
}
