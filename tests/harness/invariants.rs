//! What must hold after any fault, whatever was killed: looked at in the database, in the process
//! table, and in what the jobs themselves wrote down (`programs/witness.rs`).

use std::path::Path;

use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use super::{Installation, is_alive, processes};

/// The variable by which every process of an attempt is known.
const MARKER: &[u8] = b"QCTL_FENCE=";

/// Longest piece that a witness writes at once: what may be in the output and not yet in its copy.
const ONE_WRITE: usize = 64 * 1024;

/// Rules that hold at any moment. Each finds the rows that break it.
const ALWAYS: &[(&str, &str)] = &[
    (
        "a job has two attempts that have not ended",
        "select job_id from attempts where state <> 'ended' group by job_id having count(*) > 1",
    ),
    (
        "an attempt goes on although another one has its job's fence",
        "select a.fence, a.job_id from attempts a join jobs j on j.id = a.job_id
         where a.state <> 'ended' and j.fence is distinct from a.fence",
    ),
    (
        "an ended job has an attempt that has not ended",
        "select j.id, a.fence from jobs j join attempts a on a.job_id = j.id
         where j.ended_at is not null and a.state <> 'ended'",
    ),
    (
        "a running job has no running attempt",
        "select id from jobs j where state = 'running' and not exists
           (select from attempts a where a.fence = j.fence and a.state = 'running')",
    ),
    (
        "a job was charged more attempts than its budgets allow",
        // An attempt after which a person was asked is not charged, and a checkpoint begins anew.
        "select j.id, count(*) from jobs j join attempts a on a.job_id = j.id
         where a.outcome_kind in ('failed', 'interrupted')
         group by j.id having count(*) > j.retries + j.resumes + 1
             + (select count(*) from events e where e.job_id = j.id and e.kind = 'held')
           and bool_and(a.checkpoint = '')",
    ),
    (
        "an attempt ended twice",
        "select job_id, attempt from events where kind = 'ended' and attempt is not null
         group by job_id, attempt having count(*) > 1",
    ),
    (
        "something happened to a job after its end",
        "select j.id, e.kind from jobs j join events e on e.job_id = j.id
         where j.ended_at is not null and e.kind in
           ('assigned', 'started', 'queued', 'retry_scheduled', 'resume_scheduled', 'held')
           and e.id > (select max(id) from events
                       where job_id = j.id and kind in ('ended', 'cancelled', 'dependency_failed'))",
    ),
    (
        "more output is stored than the job wrote",
        "select a.fence, l.log_stored, a.log_end from attempts a join attempts_live l using (fence)
         where a.log_end is not null and l.log_stored > a.log_end",
    ),
    (
        "stored output has a gap or an overlap",
        "select fence, \"offset\" from (select fence, \"offset\",
           coalesce(lag(\"offset\" + length + hole_bytes) over w, 0) as expected
           from log_chunks window w as (partition by fence order by \"offset\")) chunks
         where \"offset\" <> expected",
    ),
    (
        "nobody will ever look at a job again",
        "select id, state, reason from jobs j where
           (state = 'waiting' and unmet_dependencies = 0 and not_before is null)
           or (state = 'held' and reason = '')
           or (state = 'queued' and reason = 'assigned' and not exists
             (select from attempts a where a.job_id = j.id and a.state = 'assigned'))",
    ),
    (
        "an attempt belongs to a worker that nobody listens for",
        "select a.fence from attempts a where a.state <> 'ended' and not exists
           (select from workers_live l where l.worker_id = a.worker_id)",
    ),
];

/// Rules that hold once every job has ended and the last slot is free.
const AT_REST: &[(&str, &str)] = &[
    (
        "a job has not ended",
        "select id, state, reason, message from jobs where ended_at is null",
    ),
    (
        "a slot is held although nothing runs",
        "select fence, job_id from attempts where slot_held",
    ),
    (
        "output is missing",
        "select a.fence, l.log_stored, a.log_end from attempts a join attempts_live l using (fence)
         where a.log_end is not null and l.log_stored <> a.log_end",
    ),
];

/// Reads the queue's own tables, beside the programs.
pub(crate) struct Tables {
    runtime: tokio::runtime::Runtime,
    options: PgConnectOptions,
}

impl Tables {
    /// The tables of an installation with its own Postgres.
    pub(crate) fn of(qctl: &Installation) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let options = PgConnectOptions::new_without_pgpass()
            .socket(qctl.home().join("data/database/run"))
            .port(5432)
            .username("postgres")
            .database("qctl")
            .ssl_mode(PgSslMode::Disable);
        Self { runtime, options }
    }

    /// Rows of a query, each an object.
    pub(crate) fn rows(&self, sql: &str) -> Result<Vec<Value>, sqlx::Error> {
        let sql = format!("select coalesce(jsonb_agg(t), '[]') from ({sql}) t");
        let rows: Value = self.runtime.block_on(async {
            let mut connection = self.options.connect().await?;
            let rows = sqlx::query_scalar(AssertSqlSafe(sql))
                .fetch_one(&mut connection)
                .await?;
            connection.close().await?;
            Ok::<_, sqlx::Error>(rows)
        })?;
        Ok(rows.as_array().cloned().unwrap_or_default())
    }

    /// Changes what is recorded, where waiting for it would take too long; `true` when it changed a row.
    pub(crate) fn change(&self, sql: &str) -> Result<bool, sqlx::Error> {
        self.runtime.block_on(async {
            let mut connection = self.options.connect().await?;
            let done = sqlx::query(AssertSqlSafe(sql.to_owned()))
                .execute(&mut connection)
                .await?;
            connection.close().await?;
            Ok(done.rows_affected() > 0)
        })
    }

    /// Every rule that is broken, with the rows that break it.
    fn broken(&self, rules: &[(&str, &str)]) -> Result<Vec<String>, sqlx::Error> {
        let mut broken = Vec::new();
        for (rule, sql) in rules {
            let rows = self.rows(sql)?;
            if !rows.is_empty() {
                broken.push(format!("{rule}: {}", Value::from(rows)));
            }
        }
        Ok(broken)
    }
}

/// What is wrong now, while work may go on.
pub(crate) fn broken_now(tables: &Tables) -> Result<Vec<String>, sqlx::Error> {
    tables.broken(ALWAYS)
}

/// Asserts everything, once all jobs have ended. Evidence is compared for attempts of witnesses.
#[track_caller]
pub(crate) fn assert_all(qctl: &Installation, evidence: &Path) {
    let tables = Tables::of(qctl);
    let broken = broken_at_rest(qctl, &tables, evidence);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Everything that is wrong, once all jobs have ended.
pub(crate) fn broken_at_rest(qctl: &Installation, tables: &Tables, evidence: &Path) -> Vec<String> {
    // Slots are freed, and the last output committed, a moment after the last job has ended.
    super::wait_for(|| {
        tables
            .broken(AT_REST)
            .is_ok_and(|broken| broken.is_empty())
            .then_some(())
    });
    let mut broken = Vec::new();
    for rules in [ALWAYS, AT_REST] {
        match tables.broken(rules) {
            Ok(found) => broken.extend(found),
            Err(error) => broken.push(format!("the database cannot be read: {error}")),
        }
    }
    broken.extend(strangers(tables));
    broken.extend(twice(evidence));
    broken.extend(false_ends(tables, evidence));
    broken.extend(false_output(qctl, tables, evidence));
    broken
}

/// Jobs of which two attempts ran at once.
pub(crate) fn twice(evidence: &Path) -> Vec<String> {
    let twice = std::fs::read_to_string(evidence.join("twice")).unwrap_or_default();
    let attempts = twice.lines();
    attempts
        .map(|attempt| format!("attempt {attempt} ran beside another one of its job"))
        .collect()
}

/// Living processes that bear the marker of an attempt whose slot is free.
pub(crate) fn strangers(tables: &Tables) -> Vec<String> {
    let freed = "select w.spool_id::text || ':' || fence as marker
                 from attempts a join workers w on w.id = a.worker_id
                 where state = 'ended' and not slot_held";
    let Ok(freed) = tables.rows(freed) else {
        return Vec::new();
    };
    let freed: Vec<_> = freed
        .iter()
        .filter_map(|row| row["marker"].as_str())
        .collect();
    let bears = |environ: &[u8]| {
        let value = environ
            .split(|byte| *byte == 0)
            .find_map(|entry| entry.strip_prefix(MARKER))?;
        let value = String::from_utf8_lossy(value).into_owned();
        freed.contains(&value.as_str()).then_some(value)
    };
    let mut found = Vec::new();
    for pid in processes(|environ, _| bears(environ).is_some()) {
        // What was on its way out while it was looked at has gone by now.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(2);
        while is_alive(pid) && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        if is_alive(pid) {
            let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            let command = command.unwrap_or_default().replace('\0', " ");
            found.push(format!(
                "process {pid} ({command}) outlived its attempt, whose slot is free"
            ));
        }
    }
    found
}

/// Exit codes that are not those of the witnesses.
fn false_ends(tables: &Tables, evidence: &Path) -> Vec<String> {
    let ended = "select job_id, number, outcome_kind, outcome_cause, exit_code
                 from attempts where state = 'ended'";
    let mut broken = Vec::new();
    for row in tables.rows(ended).unwrap_or_default() {
        let name = format!("{}.{}.end", row["job_id"], row["number"]);
        let wrote = std::fs::read_to_string(evidence.join(name)).ok();
        let wrote: Option<i64> = wrote.and_then(|code| code.parse().ok());
        let told = row["exit_code"].as_i64();
        let false_code = told.is_some() && told != Some(97) && wrote.is_some() && told != wrote;
        let false_success = row["outcome_kind"] == "succeeded"
            && wrote != Some(0)
            && evidence
                .join(format!("{}.{}.out", row["job_id"], row["number"]))
                .exists();
        if false_code || false_success {
            broken.push(format!("the witness ended with {wrote:?}, stored is {row}"));
        }
    }
    broken
}

/// Attempts whose stored output is not what they wrote.
fn false_output(qctl: &Installation, tables: &Tables, evidence: &Path) -> Vec<String> {
    let ended = "select job_id, number, outcome_cause, log_end from attempts
                 where state = 'ended' and outcome_kind <> 'never_started' order by fence";
    let mut broken = Vec::new();
    for row in tables.rows(ended).unwrap_or_default() {
        let (job, number) = (row["job_id"].as_i64(), row["number"].as_i64());
        let (job, number) = (job.unwrap_or_default(), number.unwrap_or_default());
        let Ok(wrote) = std::fs::read(evidence.join(format!("{job}.{number}.out"))) else {
            continue;
        };
        let stored = qctl.attempt_log(job, number);
        // A shim that was killed takes with it what was still in the pipe.
        let may_lack = matches!(
            row["outcome_cause"].as_str(),
            Some("shim_lost" | "worker_lost" | "record_gone")
        );
        let same = wrote.len().min(stored.len());
        let whole = may_lack || stored.len() >= wrote.len();
        let beyond = stored.len().saturating_sub(wrote.len());
        if wrote[..same] != stored[..same] || !whole || beyond > ONE_WRITE {
            broken.push(format!(
                "attempt {job}.{number} wrote {} bytes and {} are stored, the same up to {}: {row}",
                wrote.len(),
                stored.len(),
                wrote
                    .iter()
                    .zip(&stored)
                    .take_while(|(a, b)| a == b)
                    .count()
            ));
        }
    }
    broken
}
