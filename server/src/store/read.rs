//! Reading for people: jobs, attempts, workers and counts. Nothing here takes a lock.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use qctl_server_core::explain::LeftBehind;
use qctl_server_core::gpu::Faulty;
use qctl_server_core::{
    AttemptState, Cause, Condition, Demand, Fence, JobId, JobSpec, JobState, Outcome, OutcomeKind,
    Progress, WorkerId, silence,
};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;

use super::{Store, StoreError};

/// Which jobs; empty fields select everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Any of these states.
    pub states: Vec<JobState>,
    /// Key of the tracker, as [`qctl_server_core::tracker::key`] makes it.
    pub tracker_key: Option<String>,
    /// All of these labels; an empty value matches any value.
    pub labels: BTreeMap<String, String>,
    /// Name of the worker that runs or last ran it.
    pub worker: Option<String>,
    /// Submitted at or after.
    pub created_after: Option<DateTime<Utc>>,
    /// Submitted before.
    pub created_before: Option<DateTime<Utc>>,
    /// Any of these jobs.
    pub ids: Vec<JobId>,
}

/// A job with what is known of its latest attempts.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRecord {
    /// Its number.
    pub id: JobId,
    /// Where it is in its life.
    pub state: JobState,
    /// One word for why it is there; may be empty.
    pub reason: String,
    /// The same in a sentence; may be empty.
    pub message: String,
    /// What was asked for.
    pub spec: JobSpec,
    /// Name of the worker that runs or last ran it; empty when none.
    pub worker: String,
    /// Number of the latest attempt; 0 when there is none.
    pub attempt: i32,
    /// Fence of the latest attempt.
    pub fence: Option<Fence>,
    /// Where the latest attempt is in its life.
    pub attempt_state: Option<AttemptState>,
    /// How the latest ended attempt ended.
    pub outcome: Option<Outcome>,
    /// When it was submitted.
    pub created_at: DateTime<Utc>,
    /// When its latest attempt started.
    pub started_at: Option<DateTime<Utc>>,
    /// When it reached its final state.
    pub ended_at: Option<DateTime<Utc>>,
    /// Progress of the latest attempt.
    pub progress: Option<Progress>,
    /// Folder with the newest checkpoint that it can resume from; empty when there is none.
    pub checkpoint: String,
    /// How people call that checkpoint, such as `1.7`; empty when there is none.
    pub checkpoint_name: String,
    /// Name of the worker that has it; empty when none.
    pub checkpoint_worker: String,
    /// Failures it may still survive.
    pub retries_left: i32,
    /// Interruptions it may still survive.
    pub resumes_left: i32,
    /// The job that this one repeats.
    pub retry_of: Option<JobId>,
    /// Not before this time.
    pub not_before: Option<DateTime<Utc>>,
    /// Its worker has not been heard of for a minute.
    pub unreachable: bool,
    /// A person froze its processes.
    pub paused: bool,
    /// A person's wish that its processes have not obeyed yet.
    pub cancel_requested: bool,
    /// Who submitted it.
    pub submitted_by: String,
}

/// One run of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptRecord {
    /// The job.
    pub job: JobId,
    /// Counts from 1 within the job.
    pub number: i32,
    /// Its fence.
    pub fence: Fence,
    /// Where it is in its life.
    pub state: AttemptState,
    /// Name of its worker.
    pub worker: String,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// When it was given to the worker.
    pub assigned_at: DateTime<Utc>,
    /// When its process was started.
    pub started_at: Option<DateTime<Utc>>,
    /// When its process ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// Run time on the worker's monotonic clock.
    pub duration: Option<Duration>,
    /// Process id on the worker.
    pub pid: Option<i32>,
    /// Latest progress.
    pub progress: Option<Progress>,
    /// Bytes of output stored.
    pub log_stored: i64,
    /// Bytes of these that nobody has any more.
    pub log_missing: i64,
    /// Bytes of output in all, once the attempt has ended.
    pub log_end: Option<i64>,
    /// Checkpoint directory that it left; empty when none.
    pub checkpoint: String,
    /// Directory it resumed from; empty when it began afresh.
    pub resumed_from: String,
    /// Its worker has not been heard of for a minute.
    pub unreachable: bool,
    /// Limits that could not be enforced, each a sentence.
    pub not_enforced: Vec<String>,
    /// Its newest silence that came as far as any stage.
    pub silence: Option<silence::State>,
}

/// A worker with what it holds and did.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerRecord {
    /// Its identity.
    pub id: WorkerId,
    /// Its name.
    pub name: String,
    /// The machine's host name.
    pub hostname: String,
    /// Version of the agent.
    pub version: String,
    /// Whether it takes jobs.
    pub mode: WorkerMode,
    /// What it has.
    pub total: Demand,
    /// What is taken, not counting jobs that run beside its slots.
    pub taken: Demand,
    /// Its GPUs.
    pub gpus: Vec<GpuRecord>,
    /// Logical processors.
    pub cpus: i32,
    /// When it was last heard of, as far as the database knows.
    pub last_seen: Option<DateTime<Utc>>,
    /// One-minute load average.
    pub load: Option<f64>,
    /// Memory in use, in bytes.
    pub memory_used_bytes: Option<i64>,
    /// Attempts that occupy it, oldest first.
    pub attempts: Vec<HeldAttempt>,
    /// Attempts that ended there in the last 24 hours.
    pub ended_today: i64,
    /// Their mean run time.
    pub mean_duration: Option<Duration>,
    /// The job that ended there last, and when.
    pub last_ended: Option<(JobId, DateTime<Utc>)>,
}

/// Whether a worker takes jobs, as a person decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerMode {
    /// It takes jobs.
    Active,
    /// It takes none.
    Paused,
    /// It takes none, and is paused once its last one has ended.
    Draining,
}

/// A GPU, as a worker described it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuRecord {
    /// The device's UUID.
    pub uuid: String,
    /// Its name.
    pub name: String,
    /// Memory in bytes; 0 when not readable.
    pub memory_bytes: i64,
    /// What is wrong with it; not part of what its worker says of itself.
    #[serde(skip)]
    pub faulty: Option<Faulty>,
}

/// An attempt that occupies a worker.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldAttempt {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub number: i32,
    /// Its fence.
    pub fence: Fence,
    /// Where it is in its life; an ended one still has processes.
    pub state: AttemptState,
    /// The job's name.
    pub name: String,
    /// Since when it runs.
    pub started_at: Option<DateTime<Utc>>,
    /// Progress, as far as the database knows.
    pub progress: Option<Progress>,
}

/// A dependency of a job that is not met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnmetDependency {
    /// The other job.
    pub job: JobId,
    /// Its state; `None` when it was deleted.
    pub state: Option<JobState>,
    /// How it has to end.
    pub condition: Condition,
}

/// Bytes of specs that one page of jobs may hold; a page ends early rather than grow beyond.
const PAGE_BYTES: usize = 8 * 1024 * 1024;

/// A page of jobs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobRows {
    /// Newest first.
    pub jobs: Vec<JobRecord>,
    /// Whether more were asked for or selected.
    pub more: bool,
}

impl Store {
    /// Jobs that the filter selects with an id below `before`, newest first, at most `limit`.
    pub(crate) async fn jobs(
        &self,
        filter: &JobFilter,
        before: Option<JobId>,
        limit: usize,
    ) -> Result<JobRows, StoreError> {
        let mut ids = self.job_ids(filter, before, limit + 1).await?;
        let more = ids.len() > limit;
        ids.truncate(limit);
        let mut page = self.jobs_by_id(&ids).await?;
        page.more |= more;
        Ok(page)
    }

    /// The ids alone. Finding them and reading the jobs are two statements because the planner
    /// takes long to plan them as one, and plans it badly far down a long history.
    async fn job_ids(
        &self,
        filter: &JobFilter,
        before: Option<JobId>,
        limit: usize,
    ) -> Result<Vec<JobId>, StoreError> {
        let query = FilterArguments::new(filter);
        let ids = sqlx::query_scalar!(
            r#"select j.id from jobs j
               where ($1::text[] is null or j.state = any($1))
                 and (not $2::boolean or j.ended_at is null)
                 and ($3::text is null or (j.tracker_key = $3 and j.tracker_key <> ''))
                 and ($4::jsonb is null or (j.labels @> $4 and j.labels <> '{}'))
                 and ($5::text[] is null or (j.labels ?& $5 and j.labels <> '{}'))
                 and ($6::text is null or exists (select from workers where name = $6))
                 and ($6::text is null or exists (
                     select from attempts a join workers w on w.id = a.worker_id
                     where a.fence = j.fence and w.name = $6))
                 and ($7::timestamptz is null or j.created_at >= $7)
                 and ($8::timestamptz is null or j.created_at < $8)
                 and ($9::bigint[] is null or j.id = any($9))
                 and ($10::bigint is null or j.id < $10)
               order by j.id desc
               limit $11"#,
            query.states as _,
            query.live,
            query.tracker_key as _,
            query.labels as _,
            query.label_names as _,
            query.worker as _,
            query.created_after as _,
            query.created_before as _,
            query.ids as _,
            before.map(|id| id.0) as _,
            limit as i64,
        )
        .fetch_all(self.pool())
        .await?;
        Ok(ids.into_iter().map(JobId).collect())
    }

    /// These jobs, newest first. `more` says that the answer would have become too long, so that
    /// the oldest are left out.
    pub(crate) async fn jobs_by_id(&self, ids: &[JobId]) -> Result<JobRows, StoreError> {
        let ids: Vec<i64> = ids.iter().map(|id| id.0).collect();
        let mut rows = sqlx::query_as!(
            JobRow,
            r#"select j.id, j.state, j.reason, j.message, s.spec as "spec: Json<JobSpec>",
                      j.priority, j.attempts, j.created_at, j.started_at, j.ended_at,
                      j.retries_left, j.resumes_left, j.retry_of, j.not_before,
                      j.cancel_requested, j.submitted_by,
                      a.fence as "fence?", a.state as "attempt_state?",
                      a.unreachable as "unreachable?", a.paused as "paused?", w.name as "worker?",
                      l.progress as "progress: Json<Progress>",
                      e.outcome_kind, e.outcome_cause, e.outcome_message, e.exit_code, e.signal,
                      c.path as "checkpoint?", c.worker as "checkpoint_worker?",
                      c.attempt as "checkpoint_attempt?", c.number as "checkpoint_number?"
               from jobs j
               join job_specs s on s.job_id = j.id
               left join attempts a on a.fence = j.fence
               left join workers w on w.id = a.worker_id
               left join attempts_live l on l.fence = j.fence
               left join lateral (
                   select outcome_kind, outcome_cause, outcome_message, exit_code, signal
                   from attempts where job_id = j.id and state = 'ended'
                   order by number desc limit 1) e on true
               left join lateral (
                   select k.path, case when k.uploaded then '' else cw.name end as worker,
                          k.attempt, k.number
                   from usable_checkpoints k join workers cw on cw.id = k.worker_id
                   where k.for_job = j.id
                   order by k.rank, k.fence desc, k.number desc limit 1) c on true
               where j.id = any($1)
               order by j.id desc"#,
            &ids,
        )
        .fetch(self.pool());
        let mut page = JobRows::default();
        let mut bytes = 0;
        while let Some(row) = rows.try_next().await? {
            if bytes >= PAGE_BYTES {
                page.more = true;
                break;
            }
            let job = JobRecord::try_from(row)?;
            bytes += spec_bytes(&job.spec);
            page.jobs.push(job);
        }
        Ok(page)
    }

    /// How many jobs the filter selects in each state; states without any are left out.
    pub(crate) async fn job_counts(
        &self,
        filter: &JobFilter,
    ) -> Result<Vec<(JobState, i64)>, StoreError> {
        let query = FilterArguments::new(filter);
        let rows = sqlx::query!(
            r#"select j.state, count(*) as "count!"
               from jobs j
               where ($1::text[] is null or j.state = any($1))
                 and (not $2::boolean or j.ended_at is null)
                 and ($3::text is null or (j.tracker_key = $3 and j.tracker_key <> ''))
                 and ($4::jsonb is null or (j.labels @> $4 and j.labels <> '{}'))
                 and ($5::text[] is null or (j.labels ?& $5 and j.labels <> '{}'))
                 and ($6::text is null or exists (
                     select from attempts a join workers w on w.id = a.worker_id
                     where a.fence = j.fence and w.name = $6))
                 and ($7::timestamptz is null or j.created_at >= $7)
                 and ($8::timestamptz is null or j.created_at < $8)
                 and ($9::bigint[] is null or j.id = any($9))
               group by j.state"#,
            query.states as _,
            query.live,
            query.tracker_key as _,
            query.labels as _,
            query.label_names as _,
            query.worker as _,
            query.created_after as _,
            query.created_before as _,
            query.ids as _,
        )
        .fetch_all(self.pool())
        .await?;
        rows.into_iter()
            .map(|row| Ok((job_state(&row.state)?, row.count)))
            .collect()
    }

    /// Live jobs by state, and jobs ended since a time.
    pub(crate) async fn queue_counts(
        &self,
        ended_since: DateTime<Utc>,
    ) -> Result<Vec<(JobState, i64)>, StoreError> {
        let rows = sqlx::query!(
            r#"select state, count(*) as "count!" from jobs where ended_at is null group by state
               union all
               select state, count(*) from jobs where ended_at >= $1 group by state"#,
            ended_since,
        )
        .fetch_all(self.pool())
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok((
                    job_state(row.state.as_deref().unwrap_or_default())?,
                    row.count,
                ))
            })
            .collect()
    }

    /// A job's attempts, oldest first.
    pub(crate) async fn attempts_of(&self, job: JobId) -> Result<Vec<AttemptRecord>, StoreError> {
        let rows = sqlx::query!(
            r#"select a.number, a.fence, a.state, w.name as worker, a.outcome_kind,
                      a.outcome_cause, a.outcome_message, a.exit_code, a.signal, a.assigned_at,
                      a.started_at, a.ended_at, a.duration_us, a.pid, a.log_end, a.checkpoint,
                      a.resumed_from, a.unreachable, a.not_enforced,
                      a.silence as "silence: Json<silence::State>",
                      l.progress as "progress: Json<Progress>", l.log_stored as "log_stored?",
                      case when l.log_gaps then (
                        select sum(c.hole_bytes) from log_chunks c
                        where c.day = j.day and c.fence = a.fence)::bigint
                      end as log_missing
               from attempts a
               join jobs j on j.id = a.job_id
               join workers w on w.id = a.worker_id
               left join attempts_live l on l.fence = a.fence
               where a.job_id = $1
               order by a.number"#,
            job.0,
        )
        .fetch_all(self.pool())
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(AttemptRecord {
                    job,
                    number: row.number,
                    fence: Fence(row.fence),
                    state: attempt_state(&row.state)?,
                    worker: row.worker,
                    outcome: outcome(
                        row.outcome_kind,
                        row.outcome_cause,
                        row.outcome_message,
                        row.exit_code,
                        row.signal,
                    )?,
                    assigned_at: row.assigned_at,
                    started_at: row.started_at,
                    ended_at: row.ended_at,
                    duration: row.duration_us.map(micros),
                    pid: row.pid,
                    progress: row.progress.map(|progress| progress.0),
                    log_stored: row.log_stored.unwrap_or(0),
                    log_missing: row.log_missing.unwrap_or(0),
                    log_end: row.log_end,
                    checkpoint: row.checkpoint,
                    resumed_from: row.resumed_from,
                    unreachable: row.unreachable,
                    not_enforced: row.not_enforced,
                    silence: row.silence.map(|silence| silence.0),
                })
            })
            .collect()
    }

    /// What each known worker has, by name, at most `limit` of them.
    pub(crate) async fn worker_totals(
        &self,
        limit: i64,
    ) -> Result<Vec<(String, Demand)>, StoreError> {
        let rows = sqlx::query!(
            r#"select name, slots, jsonb_array_length(gpus) as "gpus!", memory_bytes
               from workers order by name limit $1"#,
            limit
        )
        .fetch_all(self.pool())
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let total = Demand {
                    slots: row.slots,
                    gpus: row.gpus,
                    memory_bytes: row.memory_bytes,
                };
                (row.name, total)
            })
            .collect())
    }

    /// Workers whose name comes after `after`, by name, at most `limit`. Statistics count from
    /// `since`.
    pub(crate) async fn workers_page(
        &self,
        after: &str,
        name: Option<&str>,
        limit: usize,
        since: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<Vec<WorkerRecord>, StoreError> {
        let rows = sqlx::query!(
            r#"select w.id, w.name, w.hostname, w.version, w.mode, w.slots,
                      w.gpus as "gpus: Json<Vec<GpuRecord>>",
                      w.gpu_faults || coalesce((select jsonb_object_agg(d.gpu, d.faulty)
                                            from gpu_doubts d
                                            where d.worker_id = w.id and d.rests_until > $5), '{}')
                    as "gpu_faults!: Json<BTreeMap<String, Faulty>>",
                      w.memory_bytes, w.cpus,
                      v.last_seen as "last_seen?", v.load, v.memory_used_bytes,
                      coalesce(d.ended, 0) as "ended!", d.mean_us,
                      e.job_id as "last_job?", e.ended_at as last_ended_at
               from workers w
               left join workers_live v on v.worker_id = w.id
               left join lateral (
                   select count(*) as ended, avg(duration_us)::bigint as mean_us
                   from attempts
                   where worker_id = w.id and state = 'ended' and ended_at >= $4
                     and outcome_kind <> 'never_started') d on true
               left join lateral (
                   select job_id, ended_at from attempts
                   where worker_id = w.id and state = 'ended' and outcome_kind <> 'never_started'
                     and ended_at is not null
                   order by ended_at desc limit 1) e on true
               where w.name > $1 and ($2::text is null or w.name = $2)
               order by w.name
               limit $3"#,
            after,
            name as _,
            limit as i64,
            since,
            now,
        )
        .fetch_all(self.pool())
        .await?;
        let ids: Vec<uuid::Uuid> = rows.iter().map(|row| row.id).collect();
        let mut held = self.held_attempts(&ids).await?;
        rows.into_iter()
            .map(|mut row| {
                for gpu in &mut row.gpus.0 {
                    gpu.faulty = row.gpu_faults.0.remove(&gpu.uuid);
                }
                let (taken, attempts) = held.remove(&row.id).unwrap_or((NOTHING, Vec::new()));
                Ok(WorkerRecord {
                    id: WorkerId(row.id),
                    name: row.name,
                    hostname: row.hostname,
                    version: row.version,
                    mode: worker_mode(&row.mode)?,
                    total: Demand {
                        slots: row.slots,
                        gpus: row.gpus.0.len() as i32,
                        memory_bytes: row.memory_bytes,
                    },
                    taken,
                    gpus: row.gpus.0,
                    cpus: row.cpus,
                    last_seen: row.last_seen,
                    load: row.load,
                    memory_used_bytes: row.memory_used_bytes,
                    attempts,
                    ended_today: row.ended,
                    mean_duration: row.mean_us.map(micros),
                    last_ended: row.last_job.map(JobId).zip(row.last_ended_at),
                })
            })
            .collect()
    }

    async fn held_attempts(
        &self,
        workers: &[uuid::Uuid],
    ) -> Result<BTreeMap<uuid::Uuid, (Demand, Vec<HeldAttempt>)>, StoreError> {
        let rows = sqlx::query!(
            r#"select a.worker_id, a.job_id, a.number, a.fence, a.state, j.name, a.started_at,
                      a.slots, a.gpus, a.memory_bytes, a.beside_slots,
                      l.progress as "progress: Json<Progress>"
               from attempts a
               join jobs j on j.id = a.job_id
               left join attempts_live l on l.fence = a.fence
               where a.worker_id = any($1) and a.slot_held
               order by a.fence"#,
            workers,
        )
        .fetch_all(self.pool())
        .await?;
        let mut held = BTreeMap::new();
        for row in rows {
            let (taken, attempts) = held
                .entry(row.worker_id)
                .or_insert_with(|| (NOTHING, Vec::new()));
            if !row.beside_slots {
                taken.slots += row.slots;
                taken.gpus += row.gpus;
                taken.memory_bytes += row.memory_bytes;
            }
            attempts.push(HeldAttempt {
                job: JobId(row.job_id),
                number: row.number,
                fence: Fence(row.fence),
                state: attempt_state(&row.state)?,
                name: row.name,
                started_at: row.started_at,
                progress: row.progress.map(|progress| progress.0),
            });
        }
        Ok(held)
    }

    /// Dependencies of a job that are not met, in order, at most `limit`.
    pub(crate) async fn unmet_dependencies(
        &self,
        job: JobId,
        limit: i64,
    ) -> Result<Vec<UnmetDependency>, StoreError> {
        let rows = sqlx::query!(
            r#"select d.on_job_id, d.condition, j.state as "state?"
               from dependencies d
               left join jobs j on j.id = d.on_job_id
               where d.job_id = $1 and not d.met
               order by d.on_job_id
               limit $2"#,
            job.0,
            limit,
        )
        .fetch_all(self.pool())
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(UnmetDependency {
                    job: JobId(row.on_job_id),
                    state: row.state.as_deref().map(job_state).transpose()?,
                    condition: Condition::parse(&row.condition)
                        .ok_or_else(|| StoreError::unreadable("condition", &row.condition))?,
                })
            })
            .collect()
    }

    /// How many queued jobs come before a queued one and are not given to a worker yet, and the
    /// first of them. Jobs that no known worker can ever take block nobody and do not count.
    pub(crate) async fn queue_ahead(
        &self,
        job: JobId,
        priority: i32,
    ) -> Result<(i64, Option<JobId>), StoreError> {
        let row = sqlx::query!(
            r#"with ahead as (
                 select j.id, j.priority from jobs j
                 where j.state = 'queued' and (j.priority > $2 or (j.priority = $2 and j.id < $1))
                   and not exists (
                       select from attempts a where a.job_id = j.id and a.state <> 'ended')
                   and exists (
                       select from workers w
                       where w.slots >= j.slots and jsonb_array_length(w.gpus) >= j.gpus
                         and (w.memory_bytes = 0 or w.memory_bytes >= j.memory_bytes)
                         and j.pinned_worker in ('', w.name))
               )
               select (select count(*) from ahead) as "count!",
                      (select id from ahead order by priority desc, id limit 1) as first"#,
            job.0,
            priority,
        )
        .fetch_one(self.pool())
        .await?;
        Ok((row.count, row.first.map(JobId)))
    }

    /// A job's latest attempt that is known to have ended and has processes left.
    pub(crate) async fn left_behind(&self, job: JobId) -> Result<Option<LeftBehind>, StoreError> {
        let found = sqlx::query_as!(
            LeftBehind,
            "select a.number as attempt, w.name as worker
             from attempts a
             join workers w on w.id = a.worker_id
             where a.job_id = $1 and a.state = 'ended' and a.slot_held and a.log_end is not null
             order by a.number desc
             limit 1",
            job.0,
        )
        .fetch_optional(self.pool())
        .await?;
        Ok(found)
    }

    /// Whether new starts are stopped.
    pub(crate) async fn queue_is_paused(&self) -> Result<bool, StoreError> {
        let paused = sqlx::query_scalar!("select queue_paused from coordinator")
            .fetch_one(self.pool())
            .await?;
        Ok(paused)
    }
}

/// Roughly what a spec takes in an answer: its long parts.
fn spec_bytes(spec: &JobSpec) -> usize {
    let arguments: usize = spec.command.iter().map(String::len).sum();
    let variables: usize = spec
        .env
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    arguments + variables
}

const NOTHING: Demand = Demand {
    slots: 0,
    gpus: 0,
    memory_bytes: 0,
};

/// A filter in the form that the statements take: `None` where it selects everything.
struct FilterArguments {
    states: Option<Vec<String>>,
    /// Only states that are not final, which a small index finds.
    live: bool,
    tracker_key: Option<String>,
    labels: Option<serde_json::Value>,
    label_names: Option<Vec<String>>,
    worker: Option<String>,
    created_after: Option<DateTime<Utc>>,
    created_before: Option<DateTime<Utc>>,
    ids: Option<Vec<i64>>,
}

impl FilterArguments {
    fn new(filter: &JobFilter) -> Self {
        let (named, valued): (Vec<_>, Vec<_>) = filter
            .labels
            .iter()
            .partition(|(_, value)| value.is_empty());
        Self {
            states: (!filter.states.is_empty()).then(|| {
                filter
                    .states
                    .iter()
                    .map(|state| state.as_str().to_owned())
                    .collect()
            }),
            live: !filter.states.is_empty() && !filter.states.iter().any(|state| state.is_final()),
            tracker_key: filter.tracker_key.clone(),
            labels: (!valued.is_empty()).then(|| {
                valued
                    .into_iter()
                    .map(|(name, value)| (name.clone(), value.clone().into()))
                    .collect::<serde_json::Map<_, _>>()
                    .into()
            }),
            label_names: (!named.is_empty())
                .then(|| named.into_iter().map(|(name, _)| name.clone()).collect()),
            worker: filter.worker.clone(),
            created_after: filter.created_after,
            created_before: filter.created_before,
            ids: (!filter.ids.is_empty()).then(|| filter.ids.iter().map(|id| id.0).collect()),
        }
    }
}

struct JobRow {
    id: i64,
    state: String,
    reason: String,
    message: String,
    spec: Json<JobSpec>,
    priority: i32,
    attempts: i32,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    ended_at: Option<DateTime<Utc>>,
    retries_left: i32,
    resumes_left: i32,
    retry_of: Option<i64>,
    not_before: Option<DateTime<Utc>>,
    cancel_requested: bool,
    submitted_by: String,
    fence: Option<i64>,
    attempt_state: Option<String>,
    unreachable: Option<bool>,
    paused: Option<bool>,
    worker: Option<String>,
    progress: Option<Json<Progress>>,
    outcome_kind: Option<String>,
    outcome_cause: Option<String>,
    outcome_message: Option<String>,
    exit_code: Option<i32>,
    signal: Option<i32>,
    checkpoint: Option<String>,
    checkpoint_worker: Option<String>,
    checkpoint_attempt: Option<i32>,
    checkpoint_number: Option<i32>,
}

impl TryFrom<JobRow> for JobRecord {
    type Error = StoreError;

    fn try_from(row: JobRow) -> Result<Self, StoreError> {
        let mut spec = row.spec.0;
        // The column decides the order and may have been changed since.
        spec.priority = row.priority;
        Ok(Self {
            id: JobId(row.id),
            state: job_state(&row.state)?,
            reason: row.reason,
            message: row.message,
            spec,
            worker: row.worker.unwrap_or_default(),
            attempt: row.attempts,
            fence: row.fence.map(Fence),
            attempt_state: row
                .attempt_state
                .as_deref()
                .map(attempt_state)
                .transpose()?,
            outcome: outcome(
                row.outcome_kind,
                row.outcome_cause,
                row.outcome_message,
                row.exit_code,
                row.signal,
            )?,
            created_at: row.created_at,
            started_at: row.started_at,
            ended_at: row.ended_at,
            progress: row.progress.map(|progress| progress.0),
            checkpoint: row.checkpoint.unwrap_or_default(),
            checkpoint_worker: row.checkpoint_worker.unwrap_or_default(),
            checkpoint_name: row
                .checkpoint_attempt
                .zip(row.checkpoint_number)
                .map(|(attempt, number)| format!("{attempt}.{number}"))
                .unwrap_or_default(),
            retries_left: row.retries_left,
            resumes_left: row.resumes_left,
            retry_of: row.retry_of.map(JobId),
            not_before: row.not_before,
            unreachable: row.unreachable.unwrap_or(false),
            paused: row.paused.unwrap_or(false),
            cancel_requested: row.cancel_requested,
            submitted_by: row.submitted_by,
        })
    }
}

fn job_state(word: &str) -> Result<JobState, StoreError> {
    JobState::parse(word).ok_or_else(|| StoreError::unreadable("job state", word))
}

fn attempt_state(word: &str) -> Result<AttemptState, StoreError> {
    AttemptState::parse(word).ok_or_else(|| StoreError::unreadable("attempt state", word))
}

fn worker_mode(word: &str) -> Result<WorkerMode, StoreError> {
    match word {
        "active" => Ok(WorkerMode::Active),
        "paused" => Ok(WorkerMode::Paused),
        "draining" => Ok(WorkerMode::Draining),
        _ => Err(StoreError::unreadable("worker mode", word)),
    }
}

fn outcome(
    kind: Option<String>,
    cause: Option<String>,
    message: Option<String>,
    exit_code: Option<i32>,
    signal: Option<i32>,
) -> Result<Option<Outcome>, StoreError> {
    let Some(kind) = kind else {
        return Ok(None);
    };
    let cause = cause.unwrap_or_default();
    Ok(Some(Outcome {
        kind: OutcomeKind::parse(&kind).ok_or_else(|| StoreError::unreadable("outcome", &kind))?,
        cause: Cause::parse(&cause).ok_or_else(|| StoreError::unreadable("cause", &cause))?,
        exit_code,
        signal,
        message: message.unwrap_or_default(),
    }))
}

fn micros(micros: i64) -> Duration {
    Duration::from_micros(micros.unsigned_abs())
}
