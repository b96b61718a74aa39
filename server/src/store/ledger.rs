//! Jobs and attempts as decisions need them: loaded under lock, written back guarded by what was
//! read. Whoever changes a job or one of its attempts holds the lock of the job's row.

use chrono::{DateTime, Utc};
use qctl_server_core::attempt::{Asked, Attempt};
use qctl_server_core::job::{Job, Late};
use qctl_server_core::ledger::{AttemptRow, Closed, JobRow, NewEvent, Which};
use qctl_server_core::retry::Budget;
use qctl_server_core::silence;
use qctl_server_core::{
    AttemptNumber, AttemptState, Cause, Fence, JobId, JobState, Outcome, OutcomeKind, RetryRules,
    WorkerId,
};
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::{StoreError, checkpoints, gpus, notices};

/// Locks jobs and loads them with their attempts: the current ones and those asked for.
pub(crate) async fn load(
    conn: &mut PgConnection,
    which: Which<'_>,
) -> Result<(Vec<JobRow>, Vec<AttemptRow>), StoreError> {
    let (jobs, fences): (Vec<i64>, Vec<i64>) = match which {
        Which::Jobs(jobs) => (jobs.iter().map(|job| job.0).collect(), Vec::new()),
        Which::Attempts(fences) => (Vec::new(), fences.iter().map(|fence| fence.0).collect()),
    };
    // Everyone locks jobs in the order of their ids, and before anything that belongs to them.
    let rows = sqlx::query!(
        r#"select j.id, j.state, j.reason, j.message, j.cancel_requested, j.unmet_dependencies,
                  j.not_before, j.retries, j.retries_left, j.resumes, j.resumes_left,
                  j.early_losses, j.gpu_out_of_memory, j.checkpoint_exits, j.idle_exits,
                  j.anywhere, j.started_at, j.ended_at, j.run_now_on, j.notify,
                  j.retry_rules as "retry_rules: Json<RetryRules>",
                  j.late_result as "late_result: Json<Late>"
           from jobs j
           where j.id = any($1 || array(select a.job_id from attempts a where a.fence = any($2)))
           order by j.id
           for no key update"#,
        &jobs,
        &fences,
    )
    .fetch_all(&mut *conn)
    .await?;
    let locked: Vec<i64> = rows.iter().map(|row| row.id).collect();
    let mut jobs = Vec::with_capacity(rows.len());
    for row in rows {
        let state = job_state(&row.state)?;
        jobs.push(JobRow {
            id: JobId(row.id),
            read: state,
            run_now_on: row.run_now_on.map(WorkerId),
            wish: notices::wish(&row.notify)?,
            job: Job {
                state,
                reason: row.reason,
                message: row.message,
                attempt: None,
                cancel_requested: row.cancel_requested,
                unmet_dependencies: row.unmet_dependencies,
                not_before: row.not_before,
                budget: Budget {
                    retries_left: row.retries_left,
                    retries: row.retries,
                    resumes_left: row.resumes_left,
                    resumes: row.resumes,
                    early_losses: row.early_losses,
                    gpu_out_of_memory: row.gpu_out_of_memory,
                    checkpoint_exits: row.checkpoint_exits,
                    idle_exits: row.idle_exits,
                },
                rules: row.retry_rules.map(|rules| rules.0).unwrap_or_default(),
                anywhere: row.anywhere,
                late: row.late_result.map(|late| late.0),
                started_at: row.started_at,
                ended_at: row.ended_at,
            },
        });
    }
    let attempts = attempts_of(conn, &locked, &fences).await?;
    for attempt in &attempts {
        if attempt.attempt.state != AttemptState::Ended
            && let Ok(index) = jobs.binary_search_by_key(&attempt.job, |job| job.id)
        {
            jobs[index].job.attempt = Some(attempt.attempt.state);
        }
    }
    Ok((jobs, attempts))
}

async fn attempts_of(
    conn: &mut PgConnection,
    jobs: &[i64],
    fences: &[i64],
) -> Result<Vec<AttemptRow>, StoreError> {
    let rows = sqlx::query!(
        r#"select a.fence, a.job_id, a.number, a.state, a.worker_id, w.name as worker_name,
                  a.boot_id, a.spool_id, a.slot_held, a.unreachable, a.record_gone, a.paused,
                  a.stop_requested,
                  a.assigned_at, a.started_at, a.ended_at, a.duration_us, a.pid, a.outcome_kind,
                  a.outcome_cause, a.outcome_message, a.exit_code, a.signal, a.checkpoint,
                  coalesce((select max(c.number) from checkpoints c where c.fence = a.fence), 0)
                    as "published!",
                  exists (select from checkpoints c
                          where c.fence = a.fence and (c.on_disk or c.uploaded))
                    as "checkpoints_kept!",
                  a.not_enforced, a.gpu_uuids, a.log_end, a.log_crc32c,
                  l.log_stored as "log_stored?",
                  coalesce(l.log_check = 'differs' or l.log_crc32c = a.log_crc32c, true)
                    as "log_agrees!",
                  exists (select from dependencies d where d.on_job_id = a.job_id and not d.met)
                    as "has_dependents!",
                  a.late_result as "late_result: Json<Outcome>",
                  a.silence as "silence: Json<silence::State>"
           from attempts a
           join workers w on w.id = a.worker_id
           left join attempts_live l on l.fence = a.fence
           where a.job_id = any($1)
             and (a.state <> 'ended' or a.fence = any($2))
           order by a.fence"#,
        jobs,
        fences,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let state = attempt_state(&row.state)?;
            let outcome = match row.outcome_kind {
                None => None,
                Some(kind) => Some(Outcome {
                    kind: OutcomeKind::parse(&kind)
                        .ok_or_else(|| StoreError::unreadable("outcome", &kind))?,
                    cause: cause(row.outcome_cause.as_deref().unwrap_or_default())?,
                    exit_code: row.exit_code,
                    signal: row.signal,
                    message: row.outcome_message.unwrap_or_default(),
                }),
            };
            Ok(AttemptRow {
                fence: Fence(row.fence),
                job: JobId(row.job_id),
                number: AttemptNumber(row.number),
                attempt: Attempt {
                    state,
                    slot_held: row.slot_held,
                    unreachable: row.unreachable,
                    record_gone: row.record_gone,
                    paused: row.paused,
                    asked: row.stop_requested.as_deref().and_then(Asked::parse),
                    started_at: row.started_at,
                },
                worker: WorkerId(row.worker_id),
                worker_name: row.worker_name,
                boot_id: row.boot_id,
                spool_id: row.spool_id,
                assigned_at: row.assigned_at,
                ended_at: row.ended_at,
                duration_us: row.duration_us,
                pid: row.pid,
                outcome,
                published: row.published,
                checkpoints_kept: row.checkpoints_kept,
                checkpoint: row.checkpoint,
                not_enforced: row.not_enforced,
                gpus: row.gpu_uuids,
                log_end: row.log_end,
                log_crc32c: row.log_crc32c,
                log_stored: row.log_stored.unwrap_or_default(),
                log_agrees: row.log_agrees,
                has_dependents: row.has_dependents,
                late_result: row.late_result.map(|outcome| outcome.0),
                silence: row.silence.map(|silence| silence.0),
                read: state,
            })
        })
        .collect()
}

/// Writes jobs, attempts and their history in one statement, and then what people are to be told.
///
/// # Errors
/// [`StoreError::Stale`] when a row is no longer in the state that was read; nothing may be
/// committed then.
pub(crate) async fn save(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    changes: &Closed,
) -> Result<(), StoreError> {
    let Closed {
        jobs,
        attempts,
        events,
        ..
    } = changes;
    if changes.is_empty() {
        return Ok(());
    }
    let ids: Vec<i64> = jobs.iter().map(|row| row.id.0).collect();
    let were: Vec<String> = jobs.iter().map(|row| row.read.to_string()).collect();
    let states: Vec<String> = jobs.iter().map(|row| row.job.state.to_string()).collect();
    let reasons: Vec<String> = jobs.iter().map(|row| row.job.reason.clone()).collect();
    let messages: Vec<String> = jobs.iter().map(|row| row.job.message.clone()).collect();
    let cancels: Vec<bool> = jobs.iter().map(|row| row.job.cancel_requested).collect();
    let unmet: Vec<i32> = jobs.iter().map(|row| row.job.unmet_dependencies).collect();
    let not_before: Vec<Option<DateTime<Utc>>> =
        jobs.iter().map(|row| row.job.not_before).collect();
    let retries: Vec<i32> = jobs.iter().map(|row| row.job.budget.retries_left).collect();
    let resumes: Vec<i32> = jobs.iter().map(|row| row.job.budget.resumes_left).collect();
    let losses: Vec<i32> = jobs.iter().map(|row| row.job.budget.early_losses).collect();
    let gpu_losses: Vec<bool> = jobs
        .iter()
        .map(|row| row.job.budget.gpu_out_of_memory)
        .collect();
    let checkpoint_exits: Vec<i32> = jobs
        .iter()
        .map(|row| row.job.budget.checkpoint_exits)
        .collect();
    let idle_exits: Vec<i32> = jobs.iter().map(|row| row.job.budget.idle_exits).collect();
    let anywhere: Vec<bool> = jobs.iter().map(|row| row.job.anywhere).collect();
    let pending: Vec<Option<serde_json::Value>> = jobs
        .iter()
        .map(|row| row.job.late.as_ref().map(|late| serde_json::json!(late)))
        .collect();
    let run_now: Vec<Option<Uuid>> = jobs
        .iter()
        .map(|row| row.run_now_on.map(|worker| worker.0))
        .collect();
    let job_started: Vec<Option<DateTime<Utc>>> =
        jobs.iter().map(|row| row.job.started_at).collect();
    let job_ended: Vec<Option<DateTime<Utc>>> = jobs.iter().map(|row| row.job.ended_at).collect();

    let fences: Vec<i64> = attempts.iter().map(|row| row.fence.0).collect();
    let attempt_were: Vec<String> = attempts.iter().map(|row| row.read.to_string()).collect();
    let attempt_states: Vec<String> = attempts
        .iter()
        .map(|row| row.attempt.state.to_string())
        .collect();
    let slots_held: Vec<bool> = attempts.iter().map(|row| row.attempt.slot_held).collect();
    let unreachable: Vec<bool> = attempts.iter().map(|row| row.attempt.unreachable).collect();
    let records_gone: Vec<bool> = attempts.iter().map(|row| row.attempt.record_gone).collect();
    let paused: Vec<bool> = attempts.iter().map(|row| row.attempt.paused).collect();
    let asked: Vec<Option<String>> = attempts
        .iter()
        .map(|row| row.attempt.asked.map(|asked| asked.to_string()))
        .collect();
    let started: Vec<Option<DateTime<Utc>>> =
        attempts.iter().map(|row| row.attempt.started_at).collect();
    let ended: Vec<Option<DateTime<Utc>>> = attempts.iter().map(|row| row.ended_at).collect();
    let durations: Vec<Option<i64>> = attempts.iter().map(|row| row.duration_us).collect();
    let pids: Vec<Option<i32>> = attempts.iter().map(|row| row.pid).collect();
    fn of<T>(rows: &[AttemptRow], part: impl Fn(&Outcome) -> Option<T>) -> Vec<Option<T>> {
        rows.iter()
            .map(|row| row.outcome.as_ref().and_then(&part))
            .collect()
    }
    let kinds = of(attempts, |outcome| Some(outcome.kind.to_string()));
    let causes = of(attempts, |outcome| Some(outcome.cause.to_string()));
    let sentences = of(attempts, |outcome| Some(outcome.message.clone()));
    let exit_codes = of(attempts, |outcome| outcome.exit_code);
    let signals = of(attempts, |outcome| outcome.signal);
    let checkpoints: Vec<String> = attempts.iter().map(|row| row.checkpoint.clone()).collect();
    let not_enforced: Vec<serde_json::Value> = attempts
        .iter()
        .map(|row| serde_json::json!(row.not_enforced))
        .collect();
    let log_ends: Vec<Option<i64>> = attempts.iter().map(|row| row.log_end).collect();
    let checksums: Vec<Option<i64>> = attempts.iter().map(|row| row.log_crc32c).collect();
    let late: Vec<Option<serde_json::Value>> = attempts
        .iter()
        .map(|row| {
            row.late_result
                .as_ref()
                .map(|outcome| serde_json::json!(outcome))
        })
        .collect();
    let silences: Vec<Option<serde_json::Value>> = attempts
        .iter()
        .map(|row| {
            row.silence
                .as_ref()
                .map(|silence| serde_json::json!(silence))
        })
        .collect();

    let events = EventColumns::of(events);
    let written = sqlx::query!(
        r#"with j as (
             update jobs j
             set state = u.state, reason = u.reason, message = u.message,
                 cancel_requested = u.cancel_requested, unmet_dependencies = u.unmet,
                 not_before = u.not_before, retries_left = u.retries, resumes_left = u.resumes,
                 early_losses = u.losses, run_now_on = u.run_now_on, started_at = u.started_at,
                 ended_at = u.ended_at, gpu_out_of_memory = u.gpu_out_of_memory,
                 checkpoint_exits = u.checkpoint_exits, idle_exits = u.idle_exits,
                 anywhere = u.anywhere, late_result = u.late_result
             from unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::boolean[],
                         $7::integer[], $8::timestamptz[], $9::integer[], $10::integer[],
                         $11::integer[], $12::uuid[], $13::timestamptz[], $14::timestamptz[],
                         $43::boolean[], $44::integer[], $45::integer[], $46::boolean[],
                         $47::jsonb[])
               as u (id, was, state, reason, message, cancel_requested, unmet, not_before, retries,
                     resumes, losses, run_now_on, started_at, ended_at, gpu_out_of_memory,
                     checkpoint_exits, idle_exits, anywhere, late_result)
             where j.id = u.id and j.state = u.was
             returning 1
           ), a as (
             update attempts a
             set state = u.state, slot_held = u.slot_held, unreachable = u.unreachable,
                 paused = u.paused, stop_requested = u.asked, started_at = u.started_at,
                 ended_at = u.ended_at, duration_us = u.duration_us, pid = u.pid,
                 outcome_kind = u.kind, outcome_cause = u.cause, outcome_message = u.message,
                 exit_code = u.exit_code, signal = u.signal, checkpoint = u.checkpoint,
                 not_enforced = array(select jsonb_array_elements_text(u.not_enforced)),
                 log_end = u.log_end, log_crc32c = u.log_crc32c, late_result = u.late_result,
                 silence = u.silence, record_gone = u.record_gone
             from unnest($15::bigint[], $16::text[], $17::text[], $18::boolean[], $19::boolean[],
                         $20::boolean[], $21::text[], $22::timestamptz[], $23::timestamptz[],
                         $24::bigint[], $25::integer[], $26::text[], $27::text[], $28::text[],
                         $29::integer[], $30::integer[], $31::text[], $32::jsonb[], $33::bigint[],
                         $34::bigint[], $35::jsonb[], $48::jsonb[], $49::boolean[])
               as u (fence, was, state, slot_held, unreachable, paused, asked, started_at, ended_at,
                     duration_us, pid, kind, cause, message, exit_code, signal, checkpoint,
                     not_enforced, log_end, log_crc32c, late_result, silence, record_gone)
             where a.fence = u.fence and a.state = u.was
             returning 1
           ), e as (
             insert into events (time, job_id, attempt, worker, kind, message, actor)
             select $36, u.job_id, u.attempt, u.worker, u.kind, u.message, u.actor
             from unnest($37::bigint[], $38::integer[], $39::text[], $40::text[], $41::text[],
                         $42::text[])
               with ordinality as u (job_id, attempt, worker, kind, message, actor, position)
             order by u.position
           )
           select (select count(*) from j) as "jobs!", (select count(*) from a) as "attempts!""#,
        &ids,
        &were,
        &states,
        &reasons,
        &messages,
        &cancels,
        &unmet,
        &not_before as &[Option<DateTime<Utc>>],
        &retries,
        &resumes,
        &losses,
        &run_now as &[Option<Uuid>],
        &job_started as &[Option<DateTime<Utc>>],
        &job_ended as &[Option<DateTime<Utc>>],
        &fences,
        &attempt_were,
        &attempt_states,
        &slots_held,
        &unreachable,
        &paused,
        &asked as &[Option<String>],
        &started as &[Option<DateTime<Utc>>],
        &ended as &[Option<DateTime<Utc>>],
        &durations as &[Option<i64>],
        &pids as &[Option<i32>],
        &kinds as &[Option<String>],
        &causes as &[Option<String>],
        &sentences as &[Option<String>],
        &exit_codes as &[Option<i32>],
        &signals as &[Option<i32>],
        &checkpoints,
        &not_enforced,
        &log_ends as &[Option<i64>],
        &checksums as &[Option<i64>],
        &late as &[Option<serde_json::Value>],
        now,
        &events.jobs as &[Option<i64>],
        &events.attempts as &[Option<i32>],
        &events.workers,
        &events.kinds,
        &events.messages,
        &events.actors,
        &gpu_losses,
        &checkpoint_exits,
        &idle_exits,
        &anywhere,
        &pending as &[Option<serde_json::Value>],
        &silences as &[Option<serde_json::Value>],
        &records_gone,
    )
    .fetch_one(&mut *conn)
    .await?;
    if written.jobs != jobs.len() as i64 || written.attempts != attempts.len() as i64 {
        return Err(StoreError::Stale);
    }
    notices::insert(&mut *conn, now, &changes.notices).await?;
    gpus::tried(&mut *conn, now, &changes.trials).await?;
    checkpoints::write(conn, changes).await
}

/// Writes history on its own.
pub(crate) async fn tell(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    events: &[NewEvent],
) -> Result<(), StoreError> {
    let events = EventColumns::of(events);
    sqlx::query!(
        "insert into events (time, job_id, attempt, worker, kind, message, actor)
         select $1, u.job_id, u.attempt, u.worker, u.kind, u.message, u.actor
         from unnest($2::bigint[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::text[])
           with ordinality as u (job_id, attempt, worker, kind, message, actor, position)
         order by u.position",
        now,
        &events.jobs as &[Option<i64>],
        &events.attempts as &[Option<i32>],
        &events.workers,
        &events.kinds,
        &events.messages,
        &events.actors,
    )
    .execute(conn)
    .await?;
    Ok(())
}

#[derive(Default)]
struct EventColumns {
    jobs: Vec<Option<i64>>,
    attempts: Vec<Option<i32>>,
    workers: Vec<String>,
    kinds: Vec<String>,
    messages: Vec<String>,
    actors: Vec<String>,
}

impl EventColumns {
    fn of(events: &[NewEvent]) -> Self {
        let mut columns = Self::default();
        for event in events {
            columns.jobs.push(event.job.map(|job| job.0));
            columns
                .attempts
                .push(event.attempt.map(|attempt| attempt.0));
            columns.workers.push(event.worker.clone());
            columns.kinds.push(event.kind.to_owned());
            columns.messages.push(event.message.clone());
            columns.actors.push(event.actor.clone());
        }
        columns
    }
}

pub(crate) fn job_state(text: &str) -> Result<JobState, StoreError> {
    JobState::parse(text).ok_or_else(|| StoreError::unreadable("job state", text))
}

fn attempt_state(text: &str) -> Result<AttemptState, StoreError> {
    AttemptState::parse(text).ok_or_else(|| StoreError::unreadable("attempt state", text))
}

fn cause(text: &str) -> Result<Cause, StoreError> {
    Cause::parse(text).ok_or_else(|| StoreError::unreadable("cause", text))
}
