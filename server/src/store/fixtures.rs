//! Rows for tests.

use chrono::{DateTime, NaiveDate, Utc};
use qctl_server_core::{Fence, JobId, JobSpec, JobState, WorkerId};
use serde_json::json;
use sqlx::PgPool;
use uuid::Uuid;

/// A time that tests stand at.
pub(crate) fn noon() -> DateTime<Utc> {
    DateTime::from_timestamp(1_795_262_400, 0).unwrap_or_default()
}

/// Day of [`noon`].
pub(crate) fn today() -> NaiveDate {
    noon().date_naive()
}

/// Writes rows directly, without the use cases that normally make them.
#[derive(Clone, Debug)]
pub(crate) struct Fixtures {
    pool: PgPool,
}

impl Fixtures {
    pub(crate) fn new(pool: &PgPool) -> Self {
        Self { pool: pool.clone() }
    }

    pub(crate) async fn worker(&self, name: &str, slots: i32) -> WorkerId {
        let id = Uuid::new_v4();
        sqlx::query(
            "insert into workers (id, name, hostname, boot_id, spool_id, version, slots, cpus, first_seen)
             values ($1, $2, $2, 'boot', $3, '0.1.0', $4, 8, $5)",
        )
        .bind(id)
        .bind(name)
        .bind(Uuid::new_v4())
        .bind(slots)
        .bind(noon())
        .execute(&self.pool)
        .await
        .expect("worker");
        WorkerId(id)
    }

    pub(crate) async fn job(&self, name: &str, state: JobState) -> JobId {
        let spec = JobSpec {
            name: name.to_owned(),
            command: vec!["true".to_owned()],
            cwd: "/".to_owned(),
            ..JobSpec::default()
        };
        self.job_of(spec, state, noon()).await
    }

    pub(crate) async fn job_of(
        &self,
        spec: JobSpec,
        state: JobState,
        created_at: DateTime<Utc>,
    ) -> JobId {
        let ended_at = state.is_final().then_some(created_at);
        let not_before = (state == JobState::Waiting).then_some(created_at);
        // In one statement: a dispatcher that looks between two would find a job without its spec.
        let id: i64 = sqlx::query_scalar(
            "with job as (
               insert into jobs (day, state, name, tracker, tracker_key, labels, priority,
                                 pinned_worker, slots, not_before, retries, retries_left, resumes,
                                 resumes_left, submitted_by, created_at, ended_at, fence, gpus)
               values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 2, 2, 3, 3, 'tester', $11, $12,
                       case when $2 = 'running' then 0 end, $13)
               returning id)
             insert into job_specs (job_id, spec) select id, $14 from job
             returning job_id",
        )
        .bind(created_at.date_naive())
        .bind(state.as_str())
        .bind(&spec.name)
        .bind(&spec.tracker)
        .bind(qctl_server_core::tracker::key(&spec.tracker))
        .bind(json!(spec.labels))
        .bind(spec.priority)
        .bind(&spec.worker)
        .bind(spec.demand.slots)
        .bind(not_before)
        .bind(created_at)
        .bind(ended_at)
        .bind(spec.demand.gpus)
        .bind(json!(spec))
        .fetch_one(&self.pool)
        .await
        .expect("job");
        JobId(id)
    }

    /// A running attempt, the job's next one.
    pub(crate) async fn attempt(&self, job: JobId, worker: WorkerId) -> Fence {
        let fence: i64 = sqlx::query_scalar(
            "with next as (
               update jobs set attempts = attempts + 1, fence = nextval('fences'), state = 'running',
                               started_at = $3, ended_at = null, not_before = null
               where id = $1 returning fence, attempts, slots)
             insert into attempts (fence, job_id, number, state, worker_id, boot_id, spool_id, term,
                                   slots, gpus, memory_bytes, assigned_at, started_at)
             select fence, $1, attempts, 'running', $2, 'boot', gen_random_uuid(), 1, slots, 0, 0,
                    $3, $3
             from next returning fence",
        )
        .bind(job.0)
        .bind(worker.0)
        .bind(noon())
        .fetch_one(&self.pool)
        .await
        .expect("attempt");
        sqlx::query("insert into attempts_live (fence) values ($1)")
            .bind(fence)
            .execute(&self.pool)
            .await
            .expect("live row");
        Fence(fence)
    }

    /// Ends an attempt with exit code 0 after so many bytes of output.
    pub(crate) async fn end_attempt(&self, fence: Fence, log_end: Option<i64>) {
        sqlx::query(
            "update attempts set state = 'ended', ended_at = $2, duration_us = 2000000,
                    outcome_kind = 'succeeded', outcome_cause = 'exit', outcome_message = 'exit 0',
                    exit_code = 0, log_end = $3, slot_held = false
             where fence = $1",
        )
        .bind(fence.0)
        .bind(noon())
        .bind(log_end)
        .execute(&self.pool)
        .await
        .expect("end");
    }

    /// Has an attempt tell that so many items are done.
    pub(crate) async fn progress(&self, fence: Fence, done: i64) {
        sqlx::query("update attempts_live set progress = $2 where fence = $1")
            .bind(fence.0)
            .bind(json!({ "done": done }))
            .execute(&self.pool)
            .await
            .expect("progress");
    }

    pub(crate) async fn end_job(&self, job: JobId, state: JobState, at: DateTime<Utc>) {
        sqlx::query("update jobs set state = $2, ended_at = $3 where id = $1")
            .bind(job.0)
            .bind(state.as_str())
            .bind(at)
            .execute(&self.pool)
            .await
            .expect("end of job");
    }

    pub(crate) async fn event(&self, job: Option<JobId>, kind: &str, time: DateTime<Utc>) -> i64 {
        sqlx::query_scalar(
            "insert into events (time, job_id, kind, message, actor)
             values ($1, $2, $3, $3, 'tester') returning id",
        )
        .bind(time)
        .bind(job.map(|job| job.0))
        .bind(kind)
        .fetch_one(&self.pool)
        .await
        .expect("event")
    }

    pub(crate) async fn depends(&self, job: JobId, on: JobId, condition: &str) {
        sqlx::query("insert into dependencies (job_id, on_job_id, condition) values ($1, $2, $3)")
            .bind(job.0)
            .bind(on.0)
            .bind(condition)
            .execute(&self.pool)
            .await
            .expect("dependency");
    }

    /// Runs one statement, for what no other fixture makes.
    pub(crate) async fn run(&self, statement: &'static str) {
        sqlx::query(statement)
            .execute(&self.pool)
            .await
            .expect(statement);
    }

    pub(crate) async fn count(&self, statement: &'static str) -> i64 {
        sqlx::query_scalar(statement)
            .fetch_one(&self.pool)
            .await
            .expect(statement)
    }
}
