//! New jobs, and what becomes of their specs.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use qctl_server_core::job::Job;
use qctl_server_core::{Condition, Dependency, JobId, JobSpec, JobState, tracker};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::ledger::job_state;
use super::{Store, StoreError};

/// A job on its way into the tables.
#[derive(Clone, Debug)]
pub(crate) struct NewJob {
    /// Its number, from [`Store::reserve_ids`].
    pub(crate) id: JobId,
    /// Its life.
    pub(crate) job: Job,
    /// What is to be run; its dependencies name jobs, not positions.
    pub(crate) spec: JobSpec,
    /// For each dependency, whether it is met.
    pub(crate) met: Vec<bool>,
    /// The job that it repeats.
    pub(crate) retry_of: Option<JobId>,
}

impl Store {
    /// Takes the next sequence numbers, in order.
    pub(crate) async fn reserve_ids(&self, count: usize) -> Result<Vec<JobId>, StoreError> {
        let ids = sqlx::query_scalar!(
            r#"select nextval(pg_get_serial_sequence('jobs', 'id')) as "id!"
               from generate_series(1, $1::bigint)"#,
            i64::try_from(count).unwrap_or(i64::MAX),
        )
        .fetch_all(self.pool())
        .await?;
        Ok(ids.into_iter().map(JobId).collect())
    }
}

/// Locks jobs against ending and says in which state they are. Jobs that do not exist are missing.
pub(crate) async fn lock_states(
    conn: &mut PgConnection,
    jobs: &[JobId],
) -> Result<HashMap<JobId, JobState>, StoreError> {
    let ids: Vec<i64> = jobs.iter().map(|job| job.0).collect();
    let rows = sqlx::query!(
        "select id, state from jobs where id = any($1) order by id for share",
        &ids
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| Ok((JobId(row.id), job_state(&row.state)?)))
        .collect()
}

/// Writes new jobs with their specs, dependencies and first history, in one statement.
pub(crate) async fn insert_jobs(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    submitter: &str,
    jobs: &[NewJob],
) -> Result<(), StoreError> {
    let ids: Vec<i64> = jobs.iter().map(|new| new.id.0).collect();
    let states: Vec<String> = jobs.iter().map(|new| new.job.state.to_string()).collect();
    let reasons: Vec<String> = jobs.iter().map(|new| new.job.reason.clone()).collect();
    let messages: Vec<String> = jobs.iter().map(|new| new.job.message.clone()).collect();
    let columns = SpecColumns::of(jobs.iter().map(|new| &new.spec));
    let unmet: Vec<i32> = jobs.iter().map(|new| new.job.unmet_dependencies).collect();
    let retry_of: Vec<Option<i64>> = jobs
        .iter()
        .map(|new| new.retry_of.map(|job| job.0))
        .collect();
    let dependencies: Vec<(i64, i64, Condition, bool)> = jobs
        .iter()
        .flat_map(|new| {
            new.spec
                .after
                .iter()
                .zip(&new.met)
                .map(|(dependency, met)| (new.id.0, dependency.job.0, dependency.condition, *met))
        })
        .collect();
    let dependents: Vec<i64> = dependencies.iter().map(|row| row.0).collect();
    let on: Vec<i64> = dependencies.iter().map(|row| row.1).collect();
    let conditions: Vec<String> = dependencies
        .iter()
        .map(|row| row.2.as_str().to_owned())
        .collect();
    let met: Vec<bool> = dependencies.iter().map(|row| row.3).collect();
    sqlx::query!(
        "with made as (
           insert into jobs (id, day, state, reason, message, name, tracker, tracker_key, labels,
                             priority, pinned_worker, slots, gpus, memory_bytes, exclusive,
                             time_limit_us, unmet_dependencies, retries, retries_left, resumes,
                             resumes_left, retry_of, submitted_by, created_at, retry_rules,
                             notify)
           overriding system value
           select u.id, ($1::timestamptz at time zone 'UTC')::date, u.state, u.reason, u.message,
                  u.name, u.tracker, u.tracker_key, u.labels, u.priority, u.pinned_worker, u.slots,
                  u.gpus, u.memory_bytes, u.exclusive, u.time_limit_us, u.unmet, u.retries,
                  u.retries, u.resumes, u.resumes, u.retry_of, $2, $1, u.retry_rules,
                  u.notify
           from unnest($3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                       $9::text[], $10::jsonb[], $11::integer[], $12::text[], $13::integer[],
                       $14::integer[], $15::bigint[], $16::boolean[], $17::bigint[],
                       $18::integer[], $19::integer[], $20::integer[], $21::bigint[],
                       $27::jsonb[], $28::text[])
             as u (id, state, reason, message, name, tracker, tracker_key, labels, priority,
                   pinned_worker, slots, gpus, memory_bytes, exclusive, time_limit_us, unmet,
                   retries, resumes, retry_of, retry_rules, notify)
         ), specs as (
           insert into job_specs (job_id, spec)
           select * from unnest($3::bigint[], $22::jsonb[])
         ), links as (
           insert into dependencies (job_id, on_job_id, condition, met)
           select * from unnest($23::bigint[], $24::bigint[], $25::text[], $26::boolean[])
         )
         insert into events (time, job_id, kind, message, actor)
         select $1, u.id, 'submitted', 'submitted by ' || $2::text, $2
         from unnest($3::bigint[]) with ordinality as u (id, position)
         order by u.position",
        now,
        submitter,
        &ids,
        &states,
        &reasons,
        &messages,
        &columns.names,
        &columns.trackers,
        &columns.tracker_keys,
        &columns.labels,
        &columns.priorities,
        &columns.workers,
        &columns.slots,
        &columns.gpus,
        &columns.memory,
        &columns.exclusive,
        &columns.time_limits as &[Option<i64>],
        &unmet,
        &columns.retries,
        &columns.resumes,
        &retry_of as &[Option<i64>],
        &columns.specs,
        &dependents,
        &on,
        &conditions,
        &met,
        &columns.retry_rules as &[Option<serde_json::Value>],
        &columns.wishes,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// What a job was asked to run. `None` when there is no such job.
pub(crate) async fn spec_of(
    conn: &mut PgConnection,
    job: JobId,
) -> Result<Option<JobSpec>, StoreError> {
    let spec = sqlx::query_scalar!(
        r#"select spec as "spec: Json<JobSpec>" from job_specs where job_id = $1"#,
        job.0
    )
    .fetch_optional(conn)
    .await?;
    Ok(spec.map(|spec| spec.0))
}

/// Replaces the spec of a job whose row is locked, with everything that is copied from it.
pub(crate) async fn replace_spec(
    conn: &mut PgConnection,
    job: JobId,
    spec: &JobSpec,
) -> Result<(), StoreError> {
    let columns = SpecColumns::of(std::iter::once(spec));
    sqlx::query!(
        "update jobs set name = $2, tracker = $3, tracker_key = $4, labels = $5, priority = $6,
                         pinned_worker = $7, slots = $8, gpus = $9, memory_bytes = $10,
                         exclusive = $11, time_limit_us = $12, retries = $13, resumes = $14,
                         retry_rules = $15, notify = $16
         where id = $1",
        job.0,
        columns.names[0],
        columns.trackers[0],
        columns.tracker_keys[0],
        columns.labels[0],
        columns.priorities[0],
        columns.workers[0],
        columns.slots[0],
        columns.gpus[0],
        columns.memory[0],
        columns.exclusive[0],
        columns.time_limits[0],
        columns.retries[0],
        columns.resumes[0],
        columns.retry_rules[0],
        columns.wishes[0],
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "update job_specs set spec = $2 where job_id = $1",
        job.0,
        columns.specs[0]
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Replaces what a job whose row is locked waits for; `met` says of each dependency whether it is.
pub(crate) async fn replace_dependencies(
    conn: &mut PgConnection,
    job: JobId,
    after: &[Dependency],
    met: &[bool],
) -> Result<(), StoreError> {
    let on: Vec<i64> = after.iter().map(|dependency| dependency.job.0).collect();
    let conditions: Vec<String> = after
        .iter()
        .map(|dependency| dependency.condition.as_str().to_owned())
        .collect();
    sqlx::query!("delete from dependencies where job_id = $1", job.0)
        .execute(&mut *conn)
        .await?;
    sqlx::query!(
        "insert into dependencies (job_id, on_job_id, condition, met)
         select $1, * from unnest($2::bigint[], $3::text[], $4::boolean[])",
        job.0,
        &on,
        &conditions,
        met,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// True while processes of a job's attempts may be left: their slots and GPUs are taken.
pub(crate) async fn has_processes(conn: &mut PgConnection, job: JobId) -> Result<bool, StoreError> {
    let holds = sqlx::query_scalar!(
        r#"select exists (select from attempts where job_id = $1 and slot_held) as "holds!""#,
        job.0
    );
    Ok(holds.fetch_one(conn).await?)
}

/// Deletes a job that has ended, with everything that hangs on it; its output goes with the
/// retention.
pub(crate) async fn delete_job(conn: &mut PgConnection, job: JobId) -> Result<(), StoreError> {
    sqlx::query!(
        "with chunks as (
           delete from log_chunks c
           using attempts a, jobs j
           where j.id = $1 and a.job_id = j.id and c.day = j.day and c.fence = a.fence
         ), history as (
           delete from events where job_id = $1
         )
         delete from jobs where id = $1 and ended_at is not null",
        job.0
    )
    .execute(conn)
    .await?;
    Ok(())
}

#[derive(Default)]
struct SpecColumns {
    names: Vec<String>,
    trackers: Vec<String>,
    tracker_keys: Vec<String>,
    labels: Vec<serde_json::Value>,
    priorities: Vec<i32>,
    workers: Vec<String>,
    slots: Vec<i32>,
    gpus: Vec<i32>,
    memory: Vec<i64>,
    exclusive: Vec<bool>,
    time_limits: Vec<Option<i64>>,
    retries: Vec<i32>,
    resumes: Vec<i32>,
    retry_rules: Vec<Option<serde_json::Value>>,
    wishes: Vec<String>,
    specs: Vec<serde_json::Value>,
}

impl SpecColumns {
    fn of<'a>(specs: impl Iterator<Item = &'a JobSpec>) -> Self {
        let mut columns = Self::default();
        for spec in specs {
            columns.names.push(spec.name.clone());
            columns.trackers.push(spec.tracker.clone());
            columns.tracker_keys.push(tracker::key(&spec.tracker));
            columns.labels.push(serde_json::json!(spec.labels));
            columns.priorities.push(spec.priority);
            columns.workers.push(spec.worker.clone());
            columns.slots.push(spec.demand.slots);
            columns.gpus.push(spec.demand.gpus);
            columns.memory.push(spec.demand.memory_bytes);
            columns.exclusive.push(spec.exclusive);
            columns.time_limits.push(
                spec.time_limit
                    .map(|limit| i64::try_from(limit.as_micros()).unwrap_or(i64::MAX)),
            );
            columns.retries.push(spec.retries());
            columns.resumes.push(spec.resumes());
            columns.retry_rules.push(
                (!spec.retry_rules.is_default()).then(|| serde_json::json!(spec.retry_rules)),
            );
            columns.wishes.push(spec.notify.to_string());
            columns.specs.push(serde_json::json!(spec));
        }
        columns
    }
}
