//! Between the contract's messages and the application's types. Nothing is decided here; a message
//! that cannot be read is refused with the path of its field.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use qctl_proto::v1;
use qctl_server_core::alarm::Kind;
use qctl_server_core::alarm::setting::{self, Setting};
use qctl_server_core::notice::Wish;
use qctl_server_core::{
    AttemptState, Condition, Demand, Dependency, FailureCause, HoleCause, JobId, JobSpec, JobState,
    Outcome, OutcomeKind, Progress, RetryRules, silence, tracker,
};

use super::measures_service;
use crate::app::Error;
use crate::app::checkpoints::{CheckpointRecord, CheckpointState};
use crate::app::logs::{LogPiece, Run};
use crate::app::read::{
    AttemptRecord, EventRecord, HeldAttempt, JobFilter, JobView, PageRequest, WorkerState,
    WorkerView,
};

/// A time as the contract writes it.
pub(super) fn timestamp(time: DateTime<Utc>) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.timestamp(),
        nanos: time.timestamp_subsec_nanos() as i32,
    }
}

/// Reads a time, refusing what no calendar has.
pub(super) fn read_timestamp(
    time: &prost_types::Timestamp,
    field: &str,
) -> Result<DateTime<Utc>, Error> {
    u32::try_from(time.nanos)
        .ok()
        .and_then(|nanos| DateTime::from_timestamp(time.seconds, nanos))
        .ok_or_else(|| {
            Error::field(
                field,
                "is no time",
                "give seconds and nanoseconds since 1970",
            )
        })
}

/// A length of time as the contract writes it.
pub(super) fn duration(length: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(length.as_secs()).unwrap_or(i64::MAX),
        nanos: length.subsec_nanos() as i32,
    }
}

/// Reads a length of time, refusing a negative one.
pub(super) fn read_duration(
    length: &prost_types::Duration,
    field: &str,
) -> Result<Duration, Error> {
    Duration::try_from(*length)
        .map_err(|_| Error::field(field, "is negative", "give a length of time of 0 or more"))
}

fn read_optional_duration(
    length: Option<&prost_types::Duration>,
    field: &str,
) -> Result<Option<Duration>, Error> {
    length
        .map(|length| read_duration(length, field))
        .transpose()
}

/// Reads a spec; `path` stands before the names of its fields, such as `jobs[6].`.
pub(super) fn read_spec(spec: v1::JobSpec, path: &str) -> Result<JobSpec, Error> {
    let field = |name: &str| format!("{path}{name}");
    let after = spec
        .after
        .iter()
        .enumerate()
        .map(|(index, dependency)| {
            Ok(Dependency {
                job: JobId(dependency.job_id),
                condition: match v1::dependency::Condition::try_from(dependency.condition) {
                    Ok(v1::dependency::Condition::Unspecified | v1::dependency::Condition::Ok) => {
                        Condition::Ok
                    }
                    Ok(v1::dependency::Condition::Failed) => Condition::Failed,
                    Ok(v1::dependency::Condition::Any) => Condition::Any,
                    Err(_) => {
                        return Err(unknown(&field(&format!("after[{index}].condition"))));
                    }
                },
            })
        })
        .collect::<Result<_, Error>>()?;
    Ok(JobSpec {
        time_limit: read_optional_duration(spec.time_limit.as_ref(), &field("time_limit"))?,
        warn_before: read_optional_duration(spec.warn_before.as_ref(), &field("warn_before"))?,
        stop_grace: read_optional_duration(spec.stop_grace.as_ref(), &field("stop_grace"))?,
        gpu_idle: read_optional_duration(spec.gpu_idle.as_ref(), &field("gpu_idle"))?,
        name: spec.name,
        command: spec.command,
        shell: spec.shell,
        cwd: spec.cwd,
        env: spec.env.into_iter().collect(),
        tracker: spec.tracker,
        workspace: spec.workspace,
        labels: spec.labels.into_iter().collect(),
        priority: spec.priority,
        after,
        warn_signal: spec.warn_signal,
        retries: spec.retries,
        resumes: spec.resumes,
        demand: spec.demand.map_or_else(Demand::default, read_demand),
        worker: spec.worker,
        exclusive: spec.exclusive,
        hold: spec.hold,
        progress_pattern: spec.progress_pattern,
        pty: spec.pty,
        template: spec.template,
        submit_host: spec.submit_host,
        artifacts: spec.artifacts,
        log_limit_bytes: spec.log_limit_bytes,
        retry_rules: RetryRules {
            retry_on: read_causes(&spec.retry_on, &field("retry_on"))?,
            no_retry_on: read_causes(&spec.no_retry_on, &field("no_retry_on"))?,
        },
        checkpoint_exit_code: spec.checkpoint_exit_code,
        contradicted_by: spec.contradicted_by,
        notify: match v1::job_spec::Notify::try_from(spec.notify) {
            Ok(v1::job_spec::Notify::Unspecified) => Wish::Default,
            Ok(v1::job_spec::Notify::Always) => Wish::Always,
            Ok(v1::job_spec::Notify::Failure) => Wish::Failure,
            Ok(v1::job_spec::Notify::Never) => Wish::Never,
            Err(_) => return Err(unknown(&field("notify"))),
        },
        alarms: read_alarms(&spec.alarms, &field("alarms"))?,
        silence: match &spec.silence {
            Some(silence) => read_silence(silence, &field("silence"))?,
            None => silence::Rules::default(),
        },
    })
}

/// Reads what is said about silence; `path` is the name of the field.
fn read_silence(wire: &v1::Silence, path: &str) -> Result<silence::Rules, Error> {
    use v1::silence::Counts;
    let stage = |length: Option<&prost_types::Duration>, name: &str| {
        read_optional_duration(length, &format!("{path}.{name}"))
    };
    Ok(silence::Rules {
        warn_after: stage(wire.warn_after.as_ref(), "warn_after")?,
        remind_after: stage(wire.remind_after.as_ref(), "remind_after")?,
        stop_after: stage(wire.stop_after.as_ref(), "stop_after")?,
        counts: match Counts::try_from(wire.counts) {
            Ok(Counts::Unspecified) => None,
            Ok(Counts::Output) => Some(silence::Counts::Output),
            Ok(Counts::Activity) => Some(silence::Counts::Activity),
            Err(_) => return Err(unknown(&format!("{path}.counts"))),
        },
    })
}

/// What is said about silence, as the contract writes it; nothing when nothing is said.
pub(super) fn silence_rules(rules: silence::Rules) -> Option<v1::Silence> {
    use v1::silence::Counts;
    (rules != silence::Rules::default()).then(|| v1::Silence {
        warn_after: rules.warn_after.map(duration),
        remind_after: rules.remind_after.map(duration),
        stop_after: rules.stop_after.map(duration),
        counts: match rules.counts {
            None => Counts::Unspecified,
            Some(silence::Counts::Output) => Counts::Output,
            Some(silence::Counts::Activity) => Counts::Activity,
        }
        .into(),
    })
}

/// From which figure on something is an alarm.
pub(super) fn read_alarms(
    settings: &[v1::AlarmSetting],
    field: &str,
) -> Result<setting::Settings, Error> {
    let mut read = setting::Settings::new();
    for (index, setting) in settings.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let kind = ALARM_KINDS
            .iter()
            .find(|(_, wire)| *wire == setting.kind() && setting.kind == *wire as i32)
            .map(|(kind, _)| *kind)
            .ok_or_else(|| unknown(&format!("{field}.kind")))?;
        let chosen = match (setting.off, setting.limit) {
            (true, None) => Setting::Off,
            (false, Some(limit)) => Setting::At(limit),
            (false, None) => Setting::On,
            (true, Some(_)) => {
                return Err(Error::field(
                    field,
                    "is off and has a limit",
                    "leave one of them out",
                ));
            }
        };
        if read.insert(kind, chosen).is_some() {
            return Err(Error::field(
                field,
                format!("is about {kind}, which one before it is about too"),
                "name each kind once",
            ));
        }
    }
    Ok(read)
}

/// The same as the contract writes it.
fn alarms(settings: setting::Settings) -> Vec<v1::AlarmSetting> {
    let write = |(kind, chosen)| v1::AlarmSetting {
        kind: alarm_kind(kind).into(),
        off: chosen == Setting::Off,
        limit: match chosen {
            Setting::At(limit) => Some(limit),
            Setting::Off | Setting::On => None,
        },
    };
    settings.into_iter().map(write).collect()
}

/// A kind of alarm as the contract writes it.
pub(super) fn alarm_kind(kind: Kind) -> v1::AlarmKind {
    ALARM_KINDS
        .iter()
        .find(|(known, _)| *known == kind)
        .map_or(v1::AlarmKind::Unspecified, |(_, wire)| *wire)
}

const ALARM_KINDS: [(Kind, v1::AlarmKind); 10] = [
    (Kind::Cpu, v1::AlarmKind::Cpu),
    (Kind::MemoryGrowth, v1::AlarmKind::MemoryGrowth),
    (Kind::GpuMemory, v1::AlarmKind::GpuMemory),
    (Kind::GpuTemperature, v1::AlarmKind::GpuTemperature),
    (Kind::RunTime, v1::AlarmKind::RunTime),
    (Kind::Memory, v1::AlarmKind::Memory),
    (Kind::Disk, v1::AlarmKind::Disk),
    (Kind::OutOfMemory, v1::AlarmKind::OutOfMemory),
    (Kind::Clock, v1::AlarmKind::Clock),
    (Kind::Looks, v1::AlarmKind::Looks),
];

fn read_causes(causes: &[v1::FailureCause], field: &str) -> Result<Vec<FailureCause>, Error> {
    use v1::failure_cause::Kind;
    let read = |(index, cause): (usize, &v1::FailureCause)| {
        let field = format!("{field}[{index}]");
        let plain = match Kind::try_from(cause.kind) {
            Ok(Kind::Exit) => return Ok(FailureCause::Exit(cause.number)),
            Ok(Kind::Signal) => return Ok(FailureCause::Signal(cause.number)),
            Ok(Kind::TimeLimit) => FailureCause::TimeLimit,
            Ok(Kind::OutOfMemory) => FailureCause::OutOfMemory,
            Ok(Kind::Contradicted) => FailureCause::Contradicted,
            Ok(Kind::Unspecified) | Err(_) => return Err(unknown(&format!("{field}.kind"))),
        };
        match cause.number {
            None => Ok(plain),
            Some(_) => Err(Error::field(
                format!("{field}.number"),
                format!("is set, but {plain} has no number"),
                "only exit and signal have one",
            )),
        }
    };
    causes.iter().enumerate().map(read).collect()
}

fn causes(causes: Vec<FailureCause>) -> Vec<v1::FailureCause> {
    use v1::failure_cause::Kind;
    let write = |cause| {
        let (kind, number) = match cause {
            FailureCause::Exit(code) => (Kind::Exit, code),
            FailureCause::Signal(signal) => (Kind::Signal, signal),
            FailureCause::TimeLimit => (Kind::TimeLimit, None),
            FailureCause::OutOfMemory => (Kind::OutOfMemory, None),
            FailureCause::Contradicted => (Kind::Contradicted, None),
        };
        v1::FailureCause {
            kind: kind.into(),
            number,
        }
    };
    causes.into_iter().map(write).collect()
}

fn read_demand(demand: v1::Demand) -> Demand {
    Demand {
        slots: demand.slots,
        gpus: demand.gpus,
        memory_bytes: demand.memory_bytes,
    }
}

fn unknown(field: &str) -> Error {
    Error::field(
        field,
        "has a value that this coordinator does not know",
        "the client may be newer than the coordinator",
    )
}

/// A spec as the contract writes it.
pub(super) fn spec(spec: JobSpec) -> v1::JobSpec {
    v1::JobSpec {
        name: spec.name,
        command: spec.command,
        shell: spec.shell,
        cwd: spec.cwd,
        env: spec.env.into_iter().collect(),
        tracker: spec.tracker,
        workspace: spec.workspace,
        labels: spec.labels.into_iter().collect(),
        priority: spec.priority,
        after: spec
            .after
            .into_iter()
            .map(|dependency| v1::Dependency {
                job_id: dependency.job.0,
                condition: match dependency.condition {
                    Condition::Ok => v1::dependency::Condition::Ok,
                    Condition::Failed => v1::dependency::Condition::Failed,
                    Condition::Any => v1::dependency::Condition::Any,
                }
                .into(),
            })
            .collect(),
        time_limit: spec.time_limit.map(duration),
        warn_before: spec.warn_before.map(duration),
        warn_signal: spec.warn_signal,
        retries: spec.retries,
        resumes: spec.resumes,
        demand: Some(v1::Demand {
            slots: spec.demand.slots,
            gpus: spec.demand.gpus,
            memory_bytes: spec.demand.memory_bytes,
        }),
        worker: spec.worker,
        exclusive: spec.exclusive,
        hold: spec.hold,
        progress_pattern: spec.progress_pattern,
        pty: spec.pty,
        template: spec.template,
        submit_host: spec.submit_host,
        stop_grace: spec.stop_grace.map(duration),
        artifacts: spec.artifacts,
        log_limit_bytes: spec.log_limit_bytes,
        retry_on: causes(spec.retry_rules.retry_on),
        no_retry_on: causes(spec.retry_rules.no_retry_on),
        checkpoint_exit_code: spec.checkpoint_exit_code,
        contradicted_by: spec.contradicted_by,
        notify: match spec.notify {
            Wish::Default => v1::job_spec::Notify::Unspecified,
            Wish::Always => v1::job_spec::Notify::Always,
            Wish::Failure => v1::job_spec::Notify::Failure,
            Wish::Never => v1::job_spec::Notify::Never,
        }
        .into(),
        alarms: alarms(spec.alarms),
        silence: silence_rules(spec.silence),
        gpu_idle: spec.gpu_idle.map(duration),
    }
}

/// Progress as the contract writes it.
pub(super) fn progress(progress: Progress) -> v1::Progress {
    v1::Progress {
        done: progress.done,
        total: progress.total,
        unit: progress.unit,
        percent: progress.percent,
        rate: progress.rate,
        eta: progress.eta.map(duration),
        message: progress.message,
        source: progress.source,
        observed_at: progress.observed_at.map(timestamp),
    }
}

/// Progress as a worker told it. What cannot be right is left out rather than refused.
pub(super) fn read_progress(progress: v1::Progress) -> Progress {
    let amount = |value: f64| {
        if value.is_finite() {
            value.max(0.0)
        } else {
            0.0
        }
    };
    let optional = |value: Option<f64>| value.filter(|value| value.is_finite() && *value >= 0.0);
    Progress {
        done: amount(progress.done),
        total: amount(progress.total),
        unit: progress.unit,
        percent: optional(progress.percent).map(|percent| percent.min(100.0)),
        rate: optional(progress.rate),
        eta: progress.eta.and_then(|eta| Duration::try_from(eta).ok()),
        message: progress.message,
        source: progress.source,
        observed_at: progress
            .observed_at
            .and_then(|time| read_timestamp(&time, "observed_at").ok()),
    }
}

/// A job's state as the contract writes it.
pub(super) fn job_state(state: JobState) -> v1::job::State {
    match state {
        JobState::Waiting => v1::job::State::Waiting,
        JobState::Held => v1::job::State::Held,
        JobState::Queued => v1::job::State::Queued,
        JobState::Running => v1::job::State::Running,
        JobState::Succeeded => v1::job::State::Succeeded,
        JobState::Failed => v1::job::State::Failed,
        JobState::Cancelled => v1::job::State::Cancelled,
    }
}

fn read_job_state(state: i32, field: &str) -> Result<JobState, Error> {
    match v1::job::State::try_from(state) {
        Ok(v1::job::State::Waiting) => Ok(JobState::Waiting),
        Ok(v1::job::State::Held) => Ok(JobState::Held),
        Ok(v1::job::State::Queued) => Ok(JobState::Queued),
        Ok(v1::job::State::Running) => Ok(JobState::Running),
        Ok(v1::job::State::Succeeded) => Ok(JobState::Succeeded),
        Ok(v1::job::State::Failed) => Ok(JobState::Failed),
        Ok(v1::job::State::Cancelled) => Ok(JobState::Cancelled),
        Ok(v1::job::State::Unspecified) | Err(_) => Err(unknown(field)),
    }
}

fn outcome(outcome: Outcome) -> v1::Outcome {
    v1::Outcome {
        kind: match outcome.kind {
            OutcomeKind::Succeeded => v1::outcome::Kind::Succeeded,
            OutcomeKind::Failed => v1::outcome::Kind::Failed,
            OutcomeKind::Interrupted => v1::outcome::Kind::Interrupted,
            OutcomeKind::Cancelled => v1::outcome::Kind::Cancelled,
            OutcomeKind::NeverStarted => v1::outcome::Kind::NeverStarted,
            OutcomeKind::Checkpointed => v1::outcome::Kind::Checkpointed,
        }
        .into(),
        cause: outcome.cause.as_str().to_owned(),
        exit_code: outcome.exit_code,
        signal: outcome.signal,
        message: outcome.message,
    }
}

/// A job as the contract writes it.
pub(super) fn job(view: JobView) -> v1::Job {
    let job = view.job;
    v1::Job {
        id: job.id.0,
        state: job_state(job.state).into(),
        reason: job.reason,
        message: job.message,
        spec: Some(spec(job.spec)),
        worker: job.worker,
        attempt: job.attempt,
        outcome: job.outcome.map(outcome),
        created_at: Some(timestamp(job.created_at)),
        started_at: job.started_at.map(timestamp),
        ended_at: job.ended_at.map(timestamp),
        progress: job.progress.map(progress),
        checkpoint: job.checkpoint,
        checkpoint_name: job.checkpoint_name,
        retries_left: job.retries_left,
        resumes_left: job.resumes_left,
        url: view.url,
        tracker_url: view.tracker_url.unwrap_or_default(),
        retry_of: job.retry_of.map_or(0, |id| id.0),
        not_before: job.not_before.map(timestamp),
        unreachable: job.unreachable,
        paused: job.paused,
        submitted_by: job.submitted_by,
    }
}

/// An attempt as the contract writes it.
pub(super) fn attempt(attempt: AttemptRecord) -> v1::Attempt {
    v1::Attempt {
        job_id: attempt.job.0,
        number: attempt.number,
        fence: attempt.fence.0,
        state: match attempt.state {
            AttemptState::Assigned => v1::attempt::State::Assigned,
            AttemptState::Running => v1::attempt::State::Running,
            AttemptState::Ended => v1::attempt::State::Ended,
        }
        .into(),
        worker: attempt.worker,
        outcome: attempt.outcome.map(outcome),
        assigned_at: Some(timestamp(attempt.assigned_at)),
        started_at: attempt.started_at.map(timestamp),
        ended_at: attempt.ended_at.map(timestamp),
        duration: attempt.duration.map(duration),
        pid: attempt.pid.unwrap_or(0),
        progress: attempt.progress.map(progress),
        log_stored: attempt.log_stored,
        log_missing: attempt.log_missing,
        log_end: attempt.log_end,
        checkpoint: attempt.checkpoint,
        resumed_from: attempt.resumed_from,
        unreachable: attempt.unreachable,
        not_enforced: attempt.not_enforced,
        silence: attempt.silence.map(silence_state),
    }
}

fn silence_state(state: silence::State) -> v1::SilenceState {
    v1::SilenceState {
        stage: match state.stage {
            silence::Stage::Warned => v1::SilenceStage::Warned,
            silence::Stage::Reminded => v1::SilenceStage::Reminded,
            silence::Stage::Ending => v1::SilenceStage::Ending,
            silence::Stage::Over => v1::SilenceStage::Over,
        }
        .into(),
        since: Some(timestamp(state.since)),
        stop_after: state.stop_after.map(duration),
        evidence: state.evidence.map(|found| v1::SilenceEvidence {
            cpu_still: found.cpu_still.map(duration),
            io_still: found.io_still.map(duration),
            gpu_still: found.gpu_still.map(duration),
            processes: found
                .processes
                .into_iter()
                .map(|process| v1::SilentProcess {
                    pid: process.pid,
                    command: process.command,
                    state: process.state,
                    wait_channel: process.wait_channel,
                })
                .collect(),
            stack: found.stack,
            last_lines: found.last_lines,
        }),
    }
}

/// A checkpoint as it is told.
pub(super) fn checkpoint(record: CheckpointRecord) -> v1::Checkpoint {
    use v1::checkpoint::State;
    v1::Checkpoint {
        job_id: record.job.0,
        attempt: record.attempt.0,
        number: record.id.number,
        step: record.step,
        note: record.note,
        worker: record.worker,
        path: record.path,
        files: record.files,
        bytes: record.bytes,
        hash: record.hash,
        uploaded: record.uploaded,
        state: match record.state {
            CheckpointState::Kept => State::Kept,
            CheckpointState::Damaged => State::Damaged,
            CheckpointState::Removed => State::Removed,
        }
        .into(),
        created_at: Some(timestamp(record.created_at)),
        latest: record.latest,
    }
}

/// An event as the contract writes it.
pub(super) fn event(event: EventRecord) -> v1::Event {
    v1::Event {
        id: event.id,
        time: Some(timestamp(event.time)),
        job_id: event.job.map_or(0, |job| job.0),
        attempt: event.attempt.unwrap_or(0),
        kind: event.kind,
        message: event.message,
        actor: event.actor,
        worker: event.worker,
    }
}

/// A worker as the contract writes it.
pub(super) fn worker(view: WorkerView) -> v1::Worker {
    let worker = view.worker;
    let (last_job, last_ended) = worker.last_ended.unzip();
    v1::Worker {
        id: worker.id.to_string(),
        name: worker.name,
        hostname: worker.hostname,
        state: match view.state {
            WorkerState::Online => v1::worker::State::Online,
            WorkerState::Paused => v1::worker::State::Paused,
            WorkerState::Draining => v1::worker::State::Draining,
            WorkerState::Reconnecting => v1::worker::State::Reconnecting,
            WorkerState::Unreachable => v1::worker::State::Unreachable,
            WorkerState::Offline => v1::worker::State::Offline,
        }
        .into(),
        slots: worker.total.slots,
        // What waits there ready is counted too, and fills no slot yet.
        slots_taken: worker.taken.slots.min(worker.total.slots),
        gpus: worker
            .gpus
            .into_iter()
            .map(|gpu| {
                let (fault, since) = gpu
                    .faulty
                    .map(|faulty| (faulty.fault, faulty.since))
                    .unzip();
                v1::Gpu {
                    uuid: gpu.uuid,
                    name: gpu.name,
                    memory_bytes: gpu.memory_bytes,
                    fault: fault.map(measures_service::gpu_fault),
                    faulty_since: since.map(timestamp),
                }
            })
            .collect(),
        memory_bytes: worker.total.memory_bytes,
        gpu_watch: view.gpus.map(measures_service::gpu_watch),
        cpus: worker.cpus,
        last_seen: worker.last_seen.map(timestamp),
        version: worker.version,
        running: worker
            .attempts
            .into_iter()
            .filter(|attempt| attempt.state == AttemptState::Running)
            .map(running)
            .collect(),
        ended_today: worker.ended_today,
        mean_duration: worker.mean_duration.map(duration),
        last_job_id: last_job.map_or(0, |job| job.0),
        last_ended_at: last_ended.map(timestamp),
        load: worker.load,
        memory_used_bytes: worker.memory_used_bytes,
    }
}

fn running(attempt: HeldAttempt) -> v1::RunningAttempt {
    v1::RunningAttempt {
        job_id: attempt.job.0,
        attempt: attempt.number,
        name: attempt.name,
        started_at: attempt.started_at.map(timestamp),
        progress: attempt.progress.map(progress),
    }
}

/// Reads a filter; an absent one selects everything.
pub(super) fn read_filter(filter: Option<v1::JobFilter>) -> Result<JobFilter, Error> {
    let Some(filter) = filter else {
        return Ok(JobFilter::default());
    };
    let states = filter
        .states
        .iter()
        .enumerate()
        .map(|(index, state)| read_job_state(*state, &format!("filter.states[{index}]")))
        .collect::<Result<_, _>>()?;
    let time = |time: Option<prost_types::Timestamp>, field| {
        time.map(|time| read_timestamp(&time, field)).transpose()
    };
    Ok(JobFilter {
        states,
        tracker_key: (!filter.tracker.is_empty()).then(|| tracker::key(&filter.tracker)),
        labels: filter.labels.into_iter().collect::<BTreeMap<_, _>>(),
        worker: (!filter.worker.is_empty()).then_some(filter.worker),
        created_after: time(filter.created_after, "filter.created_after")?,
        created_before: time(filter.created_before, "filter.created_before")?,
        ids: filter.ids.into_iter().map(JobId).collect(),
    })
}

/// Reads how much of a list is wanted.
pub(super) fn read_page(size: i32, token: String) -> Result<PageRequest, Error> {
    let size = usize::try_from(size)
        .map_err(|_| Error::field("page_size", "is negative", "0 asks for the usual number"))?;
    Ok(PageRequest { size, token })
}

/// A piece of output as the contract writes it.
pub(super) fn log_piece(piece: LogPiece) -> v1::ReadLogResponse {
    v1::ReadLogResponse {
        attempt: piece.attempt,
        offset: piece.offset,
        runs: piece.runs.into_iter().map(log_run).collect(),
        data: piece.data,
        hole_bytes: piece.hole_bytes,
        attempt_complete: piece.complete,
        incomplete: piece.incomplete,
        hole_lines: piece.hole_lines,
        hole_cause: hole_cause(piece.hole_cause).into(),
    }
}

fn hole_cause(cause: HoleCause) -> v1::HoleCause {
    match cause {
        HoleCause::Unknown => v1::HoleCause::Unspecified,
        HoleCause::NoRoom => v1::HoleCause::NoRoom,
        HoleCause::Limit => v1::HoleCause::Limit,
        HoleCause::Damaged => v1::HoleCause::Damaged,
        HoleCause::Removed => v1::HoleCause::Removed,
    }
}

/// Reads why output is missing.
pub(super) fn read_hole_cause(wire: v1::HoleCause) -> HoleCause {
    match wire {
        v1::HoleCause::Unspecified => HoleCause::Unknown,
        v1::HoleCause::NoRoom => HoleCause::NoRoom,
        v1::HoleCause::Limit => HoleCause::Limit,
        v1::HoleCause::Damaged => HoleCause::Damaged,
        v1::HoleCause::Removed => HoleCause::Removed,
    }
}

fn log_run(run: Run) -> v1::LogRun {
    v1::LogRun {
        stream: run.stream,
        length: run.length,
        time: DateTime::from_timestamp_micros(run.micros).map(timestamp),
    }
}

/// Reads a run; a time that is absent or no time becomes 1970.
pub(super) fn read_run(run: &v1::LogRun) -> Run {
    Run {
        stream: run.stream,
        length: run.length,
        micros: run
            .time
            .as_ref()
            .and_then(|time| read_timestamp(time, "time").ok())
            .map_or(0, |time| time.timestamp_micros()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_survives_the_way_there_and_back() {
        let original = JobSpec {
            name: "train".to_owned(),
            command: vec!["python".to_owned(), "train.py".to_owned()],
            cwd: "/srv".to_owned(),
            env: [("A".to_owned(), "1".to_owned())].into(),
            labels: [("nightly".to_owned(), String::new())].into(),
            priority: -3,
            after: vec![Dependency {
                job: JobId(-1),
                condition: Condition::Any,
            }],
            time_limit: Some(Duration::from_millis(90_500)),
            warn_before: Some(Duration::from_secs(10)),
            retries: Some(0),
            demand: Demand {
                slots: 2,
                gpus: 1,
                memory_bytes: 1 << 30,
            },
            stop_grace: Some(Duration::from_secs(3)),
            gpu_idle: Some(Duration::ZERO),
            artifacts: vec!["out".to_owned()],
            log_limit_bytes: 2_097_152,
            retry_rules: RetryRules {
                retry_on: vec![FailureCause::Exit(None), FailureCause::TimeLimit],
                no_retry_on: vec![
                    FailureCause::Exit(Some(2)),
                    FailureCause::Signal(Some(9)),
                    FailureCause::OutOfMemory,
                    FailureCause::Contradicted,
                ],
            },
            checkpoint_exit_code: Some(85),
            contradicted_by: "[1-9] failed".to_owned(),
            notify: Wish::Failure,
            ..JobSpec::default()
        };
        assert_eq!(read_spec(spec(original.clone()), "").unwrap(), original);
    }

    #[test]
    fn a_bad_field_is_named_with_its_path() {
        let negative = v1::JobSpec {
            time_limit: Some(prost_types::Duration {
                seconds: -1,
                nanos: 0,
            }),
            ..v1::JobSpec::default()
        };
        let error = read_spec(negative, "jobs[6].").unwrap_err();
        assert_eq!(error.to_string(), "jobs[6].time_limit is negative");
        let numbered = v1::JobSpec {
            retry_on: vec![v1::FailureCause {
                kind: v1::failure_cause::Kind::TimeLimit.into(),
                number: Some(3),
            }],
            ..v1::JobSpec::default()
        };
        let error = read_spec(numbered, "").unwrap_err();
        assert_eq!(
            error.to_string(),
            "retry_on[0].number is set, but time-limit has no number"
        );
        let newer = v1::JobSpec {
            after: vec![v1::Dependency {
                job_id: 1,
                condition: 99,
            }],
            ..v1::JobSpec::default()
        };
        let error = read_spec(newer, "spec.").unwrap_err();
        assert!(error.to_string().starts_with("spec.after[0].condition has"));
    }

    #[test]
    fn times_keep_their_microseconds_also_before_1970() {
        for micros in [0, 1, -1, 1_795_000_000_123_456, -1_500_000] {
            let time = DateTime::from_timestamp_micros(micros).unwrap();
            assert_eq!(read_timestamp(&timestamp(time), "t").unwrap(), time);
        }
        let wrong = prost_types::Timestamp {
            seconds: 0,
            nanos: -1,
        };
        assert!(read_timestamp(&wrong, "t").is_err());
    }

    #[test]
    fn progress_that_cannot_be_right_does_no_harm() {
        let read = read_progress(v1::Progress {
            done: f64::NAN,
            total: -3.0,
            percent: Some(250.0),
            rate: Some(f64::INFINITY),
            ..v1::Progress::default()
        });
        assert_eq!((read.done, read.total), (0.0, 0.0));
        assert_eq!((read.percent, read.rate), (Some(100.0), None));
    }

    #[test]
    fn an_unknown_state_in_a_filter_is_refused() {
        let error = read_filter(Some(v1::JobFilter {
            states: vec![3, 77],
            ..v1::JobFilter::default()
        }))
        .unwrap_err();
        assert!(error.to_string().starts_with("filter.states[1] has"));
    }
}
