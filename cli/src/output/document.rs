//! The documents that `--json` prints. Field names and meanings are stable; fields may be added.
//!
//! Enum values are lower case, times RFC 3339 in UTC, durations seconds, sizes bytes. What is not
//! known is `null`, what is empty is an empty string, list or object.

use std::collections::BTreeMap;

use chrono::SecondsFormat;
use qctl_proto::{alarm, v1};
use serde::Serialize;

use super::alarm::Alarm;
use super::measures::Measures;
use super::{silence, time};
use crate::args::causes;

/// A job.
#[derive(Debug, Serialize)]
pub struct Job<'a> {
    id: i64,
    state: &'static str,
    reason: &'a str,
    message: &'a str,
    name: &'a str,
    command: &'a [String],
    shell: bool,
    cwd: &'a str,
    /// Names only: values may be secret.
    env_names: Vec<&'a str>,
    worker: &'a str,
    tracker: &'a str,
    workspace: &'a str,
    labels: BTreeMap<&'a str, &'a str>,
    priority: i32,
    after: Vec<Dependency>,
    attempt: i32,
    outcome: Option<Outcome<'a>>,
    exit_code: Option<i32>,
    signal: Option<i32>,
    created_at: Option<String>,
    started_at: Option<String>,
    ended_at: Option<String>,
    not_before: Option<String>,
    progress: Option<Progress<'a>>,
    checkpoint: &'a str,
    checkpoint_name: &'a str,
    retries_left: i32,
    resumes_left: i32,
    retry_on: Vec<String>,
    no_retry_on: Vec<String>,
    checkpoint_exit_code: Option<i32>,
    contradicted_by: &'a str,
    time_limit: Option<f64>,
    warn_before: Option<f64>,
    warn_signal: i32,
    stop_grace: Option<f64>,
    slots: i32,
    gpus: i32,
    memory: i64,
    requested_worker: &'a str,
    exclusive: bool,
    pty: bool,
    template: &'a str,
    artifacts: &'a [String],
    /// Bytes of output that its worker keeps; 0 means the worker's default.
    log_limit: i64,
    notify: &'static str,
    /// From which figure on something is an alarm, where that is not as usual.
    alarm: Vec<String>,
    silence: Option<silence::Rules>,
    /// Seconds that it may leave its GPUs unused, 0 for ever; null is the worker's choice.
    gpu_idle: Option<f64>,
    retry_of: Option<i64>,
    unreachable: bool,
    paused: bool,
    submitted_by: &'a str,
    submit_host: &'a str,
    url: &'a str,
    tracker_url: &'a str,
}

#[derive(Debug, Serialize)]
struct Dependency {
    job: i64,
    condition: &'static str,
}

/// How an attempt ended.
#[derive(Debug, Serialize)]
pub struct Outcome<'a> {
    kind: &'static str,
    cause: &'a str,
    exit_code: Option<i32>,
    signal: Option<i32>,
    message: &'a str,
}

/// How far a job is.
#[derive(Debug, Serialize)]
pub struct Progress<'a> {
    done: f64,
    total: Option<f64>,
    unit: &'a str,
    percent: Option<f64>,
    rate: Option<f64>,
    eta_seconds: Option<f64>,
    message: &'a str,
    source: &'a str,
    observed_at: Option<String>,
}

/// A run of a job.
#[derive(Debug, Serialize)]
pub struct Attempt<'a> {
    id: String,
    job: i64,
    attempt: i32,
    state: &'static str,
    worker: &'a str,
    outcome: Option<Outcome<'a>>,
    assigned_at: Option<String>,
    started_at: Option<String>,
    ended_at: Option<String>,
    duration: Option<f64>,
    pid: Option<i32>,
    progress: Option<Progress<'a>>,
    log_stored: i64,
    log_missing: i64,
    log_bytes: Option<i64>,
    checkpoint: &'a str,
    resumed_from: &'a str,
    unreachable: bool,
    not_enforced: &'a [String],
    silence: Option<silence::State<'a>>,
}

/// A published checkpoint.
#[derive(Debug, Serialize)]
pub struct Checkpoint<'a> {
    job: i64,
    attempt: i32,
    number: i32,
    state: &'static str,
    latest: bool,
    step: Option<i64>,
    note: &'a str,
    worker: &'a str,
    path: &'a str,
    files: i32,
    bytes: i64,
    hash: &'a str,
    uploaded: bool,
    created_at: Option<String>,
}

/// A fact of history.
#[derive(Debug, Serialize)]
pub struct Event<'a> {
    id: i64,
    time: Option<String>,
    job: Option<i64>,
    attempt: Option<i32>,
    kind: &'a str,
    message: &'a str,
    actor: &'a str,
    worker: &'a str,
}

/// A worker.
#[derive(Debug, Serialize)]
pub struct Worker<'a> {
    id: &'a str,
    name: &'a str,
    hostname: &'a str,
    state: &'static str,
    slots: i32,
    slots_taken: i32,
    gpus: Vec<Gpu<'a>>,
    /// `absent`, `read`, `hung` or `failed`; null when nothing was heard of it lately.
    gpu_driver: Option<String>,
    memory: i64,
    memory_used: Option<i64>,
    cpus: i32,
    load: Option<f64>,
    last_seen: Option<String>,
    version: &'a str,
    running: Vec<Running<'a>>,
    ended_today: i64,
    mean_duration: Option<f64>,
    last_job: Option<i64>,
    last_ended_at: Option<String>,
}

#[derive(Debug, Serialize)]
struct Gpu<'a> {
    uuid: &'a str,
    name: &'a str,
    memory: i64,
    fault: Option<GpuFault<'a>>,
    /// What its driver said lately; absent when it did not answer.
    latest: Option<GpuLatest>,
}

/// What is wrong with a GPU.
#[derive(Debug, Serialize)]
struct GpuFault<'a> {
    kind: String,
    number: i64,
    message: &'a str,
    since: Option<String>,
}

/// What a GPU uses; what it does not support is null.
#[derive(Debug, Serialize)]
struct GpuLatest {
    lost: bool,
    busy: Option<f64>,
    memory_used: Option<i64>,
    temperature: Option<i32>,
    power: Option<f64>,
    uncorrected_errors: Option<i64>,
}

fn gpu_in_full<'a>(gpu: &'a v1::Gpu, watch: Option<&'a v1::GpuWatch>) -> Gpu<'a> {
    let seen = watch.and_then(|watch| watch.gpus.iter().find(|seen| seen.uuid == gpu.uuid));
    Gpu {
        uuid: &gpu.uuid,
        name: &gpu.name,
        memory: gpu.memory_bytes,
        fault: gpu.fault.as_ref().map(|fault| GpuFault {
            kind: word(fault.kind().as_str_name(), "KIND_"),
            number: fault.number,
            message: &fault.message,
            since: moment(gpu.faulty_since.as_ref()),
        }),
        latest: seen.map(|seen| GpuLatest {
            lost: seen.lost,
            busy: seen.busy,
            memory_used: seen.memory_used_bytes,
            temperature: seen.temperature_celsius,
            power: seen.power_watts,
            uncorrected_errors: seen.uncorrected_errors,
        }),
    }
}

/// A value of the contract in lower case, without its prefix.
fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix)
        .unwrap_or(name)
        .to_ascii_lowercase()
}

#[derive(Debug, Serialize)]
struct Running<'a> {
    job: i64,
    attempt: i32,
    name: &'a str,
    started_at: Option<String>,
    progress: Option<Progress<'a>>,
}

/// A job with its attempts and history.
#[derive(Debug, Serialize)]
pub struct JobInFull<'a> {
    #[serde(flatten)]
    job: Job<'a>,
    attempts: Vec<Attempt<'a>>,
    events: Vec<Event<'a>>,
    /// What the shown attempt used.
    measures: Measures,
    /// Its alarms, newest first.
    alarms: Vec<Alarm<'a>>,
    as_of: i64,
}

/// A page of jobs.
#[derive(Debug, Serialize)]
pub struct Jobs<'a> {
    jobs: Vec<Job<'a>>,
    next_page_token: &'a str,
    as_of: i64,
    counts: BTreeMap<&'static str, i64>,
}

/// The word for a job's state.
pub fn job_state(state: v1::job::State) -> &'static str {
    use v1::job::State;
    match state {
        State::Unspecified => "unknown",
        State::Waiting => "waiting",
        State::Held => "held",
        State::Queued => "queued",
        State::Running => "running",
        State::Succeeded => "succeeded",
        State::Failed => "failed",
        State::Cancelled => "cancelled",
    }
}

/// The word for a worker's state.
pub fn worker_state(state: v1::worker::State) -> &'static str {
    use v1::worker::State;
    match state {
        State::Unspecified => "unknown",
        State::Online => "online",
        State::Paused => "paused",
        State::Draining => "draining",
        State::Reconnecting => "reconnecting",
        State::Unreachable => "unreachable",
        State::Offline => "offline",
    }
}

/// The word for an attempt's state.
pub fn attempt_state(state: v1::attempt::State) -> &'static str {
    use v1::attempt::State;
    match state {
        State::Unspecified => "unknown",
        State::Assigned => "assigned",
        State::Running => "running",
        State::Ended => "ended",
    }
}

/// The word for how an attempt ended.
pub fn outcome_kind(kind: v1::outcome::Kind) -> &'static str {
    use v1::outcome::Kind;
    match kind {
        Kind::Unspecified => "unknown",
        Kind::Succeeded => "succeeded",
        Kind::Failed => "failed",
        Kind::Interrupted => "interrupted",
        Kind::Cancelled => "cancelled",
        Kind::NeverStarted => "never_started",
        Kind::Checkpointed => "checkpointed",
    }
}

/// The word for how another job must have ended.
pub fn condition(condition: v1::dependency::Condition) -> &'static str {
    use v1::dependency::Condition;
    match condition {
        Condition::Unspecified | Condition::Ok => "ok",
        Condition::Failed => "failed",
        Condition::Any => "any",
    }
}

/// A time as programs read it: RFC 3339, UTC, milliseconds.
pub fn moment(time: Option<&prost_types::Timestamp>) -> Option<String> {
    time::instant(time).map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// A duration in seconds.
pub fn seconds(duration: Option<&prost_types::Duration>) -> Option<f64> {
    time::span(duration).map(|span| span.as_secs_f64())
}

fn known<T: Default + PartialEq>(value: T) -> Option<T> {
    Some(value).filter(|value| *value != T::default())
}

impl<'a> From<&'a v1::Job> for Job<'a> {
    fn from(job: &'a v1::Job) -> Self {
        static NO_SPEC: std::sync::LazyLock<v1::JobSpec> =
            std::sync::LazyLock::new(v1::JobSpec::default);
        let spec = job.spec.as_ref().unwrap_or(&NO_SPEC);
        let demand = spec.demand.unwrap_or_default();
        let mut env_names: Vec<&str> = spec.env.keys().map(String::as_str).collect();
        env_names.sort_unstable();
        Self {
            id: job.id,
            state: job_state(job.state()),
            reason: &job.reason,
            message: &job.message,
            name: &spec.name,
            command: &spec.command,
            shell: spec.shell,
            cwd: &spec.cwd,
            env_names,
            worker: &job.worker,
            tracker: &spec.tracker,
            workspace: &spec.workspace,
            labels: spec
                .labels
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect(),
            priority: spec.priority,
            after: spec
                .after
                .iter()
                .map(|after| Dependency {
                    job: after.job_id,
                    condition: condition(after.condition()),
                })
                .collect(),
            attempt: job.attempt,
            outcome: job.outcome.as_ref().map(Outcome::from),
            exit_code: job.outcome.as_ref().and_then(|outcome| outcome.exit_code),
            signal: job.outcome.as_ref().and_then(|outcome| outcome.signal),
            created_at: moment(job.created_at.as_ref()),
            started_at: moment(job.started_at.as_ref()),
            ended_at: moment(job.ended_at.as_ref()),
            not_before: moment(job.not_before.as_ref()),
            progress: job.progress.as_ref().map(Progress::from),
            checkpoint: &job.checkpoint,
            checkpoint_name: &job.checkpoint_name,
            retries_left: job.retries_left,
            resumes_left: job.resumes_left,
            retry_on: spec.retry_on.iter().map(causes::shown).collect(),
            no_retry_on: spec.no_retry_on.iter().map(causes::shown).collect(),
            checkpoint_exit_code: spec.checkpoint_exit_code,
            contradicted_by: &spec.contradicted_by,
            time_limit: seconds(spec.time_limit.as_ref()),
            warn_before: seconds(spec.warn_before.as_ref()),
            warn_signal: spec.warn_signal,
            stop_grace: seconds(spec.stop_grace.as_ref()),
            slots: demand.slots.max(1),
            gpus: demand.gpus,
            memory: demand.memory_bytes,
            requested_worker: &spec.worker,
            exclusive: spec.exclusive,
            pty: spec.pty,
            template: &spec.template,
            artifacts: &spec.artifacts,
            log_limit: spec.log_limit_bytes,
            notify: match spec.notify() {
                v1::job_spec::Notify::Unspecified => "default",
                v1::job_spec::Notify::Always => "always",
                v1::job_spec::Notify::Failure => "failure",
                v1::job_spec::Notify::Never => "never",
            },
            alarm: spec.alarms.iter().map(alarm::shown).collect(),
            silence: spec.silence.as_ref().map(silence::Rules::from),
            gpu_idle: seconds(spec.gpu_idle.as_ref()),
            retry_of: known(job.retry_of),
            unreachable: job.unreachable,
            paused: job.paused,
            submitted_by: &job.submitted_by,
            submit_host: &spec.submit_host,
            url: &job.url,
            tracker_url: &job.tracker_url,
        }
    }
}

impl<'a> From<&'a v1::Outcome> for Outcome<'a> {
    fn from(outcome: &'a v1::Outcome) -> Self {
        Self {
            kind: outcome_kind(outcome.kind()),
            cause: &outcome.cause,
            exit_code: outcome.exit_code,
            signal: outcome.signal,
            message: &outcome.message,
        }
    }
}

impl<'a> From<&'a v1::Progress> for Progress<'a> {
    fn from(progress: &'a v1::Progress) -> Self {
        Self {
            done: progress.done,
            total: known(progress.total),
            unit: &progress.unit,
            percent: progress.percent,
            rate: progress.rate,
            eta_seconds: seconds(progress.eta.as_ref()),
            message: &progress.message,
            source: &progress.source,
            observed_at: moment(progress.observed_at.as_ref()),
        }
    }
}

impl<'a> From<&'a v1::Attempt> for Attempt<'a> {
    fn from(attempt: &'a v1::Attempt) -> Self {
        Self {
            id: format!("{}.{}", attempt.job_id, attempt.number),
            job: attempt.job_id,
            attempt: attempt.number,
            state: attempt_state(attempt.state()),
            worker: &attempt.worker,
            outcome: attempt.outcome.as_ref().map(Outcome::from),
            assigned_at: moment(attempt.assigned_at.as_ref()),
            started_at: moment(attempt.started_at.as_ref()),
            ended_at: moment(attempt.ended_at.as_ref()),
            duration: seconds(attempt.duration.as_ref()),
            pid: known(attempt.pid),
            progress: attempt.progress.as_ref().map(Progress::from),
            log_stored: attempt.log_stored,
            log_missing: attempt.log_missing,
            log_bytes: attempt.log_end,
            checkpoint: &attempt.checkpoint,
            resumed_from: &attempt.resumed_from,
            unreachable: attempt.unreachable,
            not_enforced: &attempt.not_enforced,
            silence: attempt.silence.as_ref().map(silence::State::from),
        }
    }
}

impl<'a> From<&'a v1::Checkpoint> for Checkpoint<'a> {
    fn from(checkpoint: &'a v1::Checkpoint) -> Self {
        use v1::checkpoint::State;
        Self {
            job: checkpoint.job_id,
            attempt: checkpoint.attempt,
            number: checkpoint.number,
            state: match checkpoint.state() {
                State::Unspecified => "unknown",
                State::Kept => "kept",
                State::Damaged => "damaged",
                State::Removed => "removed",
            },
            latest: checkpoint.latest,
            step: checkpoint.step,
            note: &checkpoint.note,
            worker: &checkpoint.worker,
            path: &checkpoint.path,
            files: checkpoint.files,
            bytes: checkpoint.bytes,
            hash: &checkpoint.hash,
            uploaded: checkpoint.uploaded,
            created_at: moment(checkpoint.created_at.as_ref()),
        }
    }
}

impl<'a> From<&'a v1::Event> for Event<'a> {
    fn from(event: &'a v1::Event) -> Self {
        Self {
            id: event.id,
            time: moment(event.time.as_ref()),
            job: known(event.job_id),
            attempt: known(event.attempt),
            kind: &event.kind,
            message: &event.message,
            actor: &event.actor,
            worker: &event.worker,
        }
    }
}

impl<'a> From<&'a v1::Worker> for Worker<'a> {
    fn from(worker: &'a v1::Worker) -> Self {
        Self {
            id: &worker.id,
            name: &worker.name,
            hostname: &worker.hostname,
            state: worker_state(worker.state()),
            slots: worker.slots,
            slots_taken: worker.slots_taken,
            gpus: worker
                .gpus
                .iter()
                .map(|gpu| gpu_in_full(gpu, worker.gpu_watch.as_ref()))
                .collect(),
            gpu_driver: worker
                .gpu_watch
                .as_ref()
                .and_then(|watch| match watch.state() {
                    v1::gpu_watch::State::Unspecified => None,
                    state => Some(word(state.as_str_name(), "STATE_")),
                }),
            memory: worker.memory_bytes,
            memory_used: worker.memory_used_bytes,
            cpus: worker.cpus,
            load: worker.load,
            last_seen: moment(worker.last_seen.as_ref()),
            version: &worker.version,
            running: worker
                .running
                .iter()
                .map(|running| Running {
                    job: running.job_id,
                    attempt: running.attempt,
                    name: &running.name,
                    started_at: moment(running.started_at.as_ref()),
                    progress: running.progress.as_ref().map(Progress::from),
                })
                .collect(),
            ended_today: worker.ended_today,
            mean_duration: seconds(worker.mean_duration.as_ref()),
            last_job: known(worker.last_job_id),
            last_ended_at: moment(worker.last_ended_at.as_ref()),
        }
    }
}

impl<'a> JobInFull<'a> {
    /// A job with its attempts and its latest events, oldest first.
    pub fn new(
        job: &'a v1::Job,
        attempts: &'a [v1::Attempt],
        events: &'a [v1::Event],
        measures: &v1::ReadAttemptMeasuresResponse,
        alarms: &'a [v1::Alarm],
        as_of: i64,
    ) -> Self {
        Self {
            job: job.into(),
            attempts: attempts.iter().map(Attempt::from).collect(),
            events: events.iter().map(Event::from).collect(),
            measures: measures.into(),
            alarms: alarms.iter().map(Alarm::from).collect(),
            as_of,
        }
    }
}

impl<'a> From<&'a v1::ListJobsResponse> for Jobs<'a> {
    fn from(page: &'a v1::ListJobsResponse) -> Self {
        Self {
            jobs: page.jobs.iter().map(Job::from).collect(),
            next_page_token: &page.next_page_token,
            as_of: page.as_of,
            counts: page
                .counts
                .iter()
                .map(|count| (job_state(count.state()), count.count))
                .collect(),
        }
    }
}
