//! `qctl edit`: changes a job that has not started. Only what is given changes.

use std::process::ExitCode;

use clap::ValueEnum;
use qctl_proto::v1;

use super::{carried, submit};
use crate::args::{SpecArgs, values};
use crate::context::{Context, request_id, unary};
use crate::error::{Error, Problem};
use crate::output::{document, time};
use crate::submission::draft::{Draft, Words, laid_over};
use crate::submission::surroundings::Surroundings;
use crate::submission::{from_options, silence};

/// Arguments of `qctl edit`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "qctl edit [OPTIONS] JOB [-- COMMAND [ARGS]...]",
    // What is not given stays as it is, so the defaults of `submit` do not hold here.
    mut_arg("cwd", |arg| arg.help("Working directory of the job")),
    mut_arg("retries", |arg| arg.help("Automatic retries after failures")),
    mut_arg("resumes", |arg| arg.help("Automatic resumes after interruptions")),
    mut_arg("retry_on", |arg| arg.help("Retry only these failures")),
    mut_arg("slots", |arg| arg.help("Slots that the job occupies on its worker")),
    mut_arg("warn_signal", |arg| arg.help("Signal of the warning, by name or number")),
    mut_arg("stop_grace", |arg| arg.help("Time between the stop signal and force")),
    mut_arg("log_limit", |arg| arg.help("Most output of an attempt to keep on its worker's disk")),
    mut_arg("artifacts", |arg| arg.help("File or folder with the job's results, instead of those there are")),
    mut_arg("alarms", |arg| arg.help("From which figure on something is an alarm, such as cpu=off or run-time=6h")),
    mut_arg("notify", |arg| arg.help("Tell people of its end always, on failure, never, or as by default")),
    mut_arg("silence", |arg| arg.help("When a silent attempt is warned of, warned of again and stopped")),
    mut_arg("gpu_idle", |arg| arg.help("How long the job may compute without using its GPUs before it is stopped")),
    mut_arg("silence_counts", |arg| arg.help("What counts as a sign of life: output or activity")),
    after_help = "Not changed here: `qctl hold` and `qctl release` keep a job from starting and let it go; a job\n\
                  keeps its template and its request id, and `qctl logs -f` and `qctl wait` follow it."
)]
pub struct Args {
    /// Job number
    #[arg(value_name = "JOB", value_parser = values::job)]
    pub job: i64,
    /// New name for people
    #[arg(long, value_name = "NAME", help_heading = "Job options")]
    pub name: Option<String>,
    /// What `submit` can say too. Labels and variables are added to those there are.
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Take away what there is; can be given several times
    #[arg(
        long,
        value_name = "FIELD",
        value_delimiter = ',',
        help_heading = "Job options"
    )]
    pub clear: Vec<Field>,
    /// New text for a shell
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "words",
        help_heading = "Job options"
    )]
    pub shell: Option<String>,
    /// New command with its arguments
    #[arg(value_name = "COMMAND", last = true)]
    pub words: Vec<String>,
}

/// A field that can be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Field {
    /// All labels
    Labels,
    /// The ticket
    Tracker,
    /// The ticket's folder
    Workspace,
    /// All dependencies
    After,
    /// The time limit
    TimeLimit,
    /// The warning before the time limit
    WarnBefore,
    /// The choice of a worker
    Worker,
    /// The failures that alone are retried
    RetryOn,
    /// The failures that are never retried
    NoRetryOn,
    /// The exit code that asks for another run
    CheckpointExitCode,
    /// The choice of a signal for the warning
    WarnSignal,
    /// The time between the stop signal and force
    StopGrace,
    /// The pattern that recognises progress
    Progress,
    /// The pattern that makes exit 0 a failure
    ContradictedBy,
    /// The most output to keep
    LogLimit,
    /// All artifacts
    Artifacts,
    /// What is an alarm, which is then as usual
    Alarm,
    /// The choice of what happens when it is silent
    Silence,
    /// The choice of how long it may leave its GPUs unused
    GpuIdle,
}

impl Field {
    /// Its path in an update mask.
    fn path(self) -> &'static str {
        match self {
            Self::Labels => "labels",
            Self::Tracker => "tracker",
            Self::Workspace => "workspace",
            Self::After => "after",
            Self::TimeLimit => "time_limit",
            Self::WarnBefore => "warn_before",
            Self::Worker => "worker",
            Self::RetryOn => "retry_on",
            Self::NoRetryOn => "no_retry_on",
            Self::CheckpointExitCode => "checkpoint_exit_code",
            Self::WarnSignal => "warn_signal",
            Self::StopGrace => "stop_grace",
            Self::Progress => "progress_pattern",
            Self::ContradictedBy => "contradicted_by",
            Self::LogLimit => "log_limit_bytes",
            Self::Artifacts => "artifacts",
            Self::Alarm => "alarms",
            Self::Silence => "silence",
            Self::GpuIdle => "gpu_idle",
        }
    }

    fn clear(self, spec: &mut v1::JobSpec) {
        match self {
            Self::Labels => spec.labels.clear(),
            Self::Tracker => spec.tracker.clear(),
            Self::Workspace => spec.workspace.clear(),
            Self::After => spec.after.clear(),
            Self::TimeLimit => spec.time_limit = None,
            Self::WarnBefore => spec.warn_before = None,
            Self::Worker => spec.worker.clear(),
            Self::RetryOn => spec.retry_on.clear(),
            Self::NoRetryOn => spec.no_retry_on.clear(),
            Self::CheckpointExitCode => spec.checkpoint_exit_code = None,
            Self::WarnSignal => spec.warn_signal = 0,
            Self::StopGrace => spec.stop_grace = None,
            Self::Progress => spec.progress_pattern.clear(),
            Self::ContradictedBy => spec.contradicted_by.clear(),
            Self::LogLimit => spec.log_limit_bytes = 0,
            Self::Artifacts => spec.artifacts.clear(),
            Self::Alarm => spec.alarms.clear(),
            Self::Silence => spec.silence = None,
            Self::GpuIdle => spec.gpu_idle = None,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When nothing is to be changed, or the job has started.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let surroundings = Surroundings::capture()?;
    let mut draft = from_options(args.spec, &surroundings)?;
    draft.name = args.name;
    draft.command = match args.shell {
        Some(text) => Some(Words::Shell(text)),
        None if args.words.is_empty() => None,
        None => Some(submit::plain_command(args.words)?),
    };
    if draft == Draft::default() && args.clear.is_empty() {
        return Err(Problem::usage("nothing to change was given")
            .hint("options are like those of submit")
            .next("qctl edit --help")
            .into());
    }
    let client = context.client().await?;
    let request = v1::GetJobRequest { id: args.job };
    let response = client.jobs().get_job(unary(request)).await?.into_inner();
    let mut spec = carried(response.job)?.spec.unwrap_or_default();
    let mut paths: Vec<&str> = Vec::new();
    for field in args.clear {
        field.clear(&mut spec);
        paths.push(field.path());
    }
    paths.extend(apply(draft, &mut spec, &surroundings));
    paths.sort_unstable();
    paths.dedup();
    let request = v1::UpdateJobRequest {
        request_id: request_id(),
        id: args.job,
        spec: Some(spec),
        update_mask: Some(prost_types::FieldMask {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        }),
    };
    let response = client.jobs().update_job(unary(request)).await?.into_inner();
    let job = carried(response.job)?;
    if context.output.json {
        context.output.print_document(&document::Job::from(&job))?;
    } else {
        let changed: Vec<String> = paths.iter().map(|path| changed(path)).collect();
        context
            .output
            .print(&format!("Changed job {}: {}\n", job.id, changed.join(", ")))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A changed field in a word or two.
fn changed(path: &str) -> String {
    let word = match path {
        "log_limit_bytes" => "log_limit",
        "progress_pattern" => "progress",
        other => other,
    };
    word.replace('_', " ")
}

/// Lays a draft over a job's spec. Gives the fields that it touched.
fn apply(draft: Draft, spec: &mut v1::JobSpec, surroundings: &Surroundings) -> Vec<&'static str> {
    let mut paths = Vec::new();
    let mut touch = |path: &'static str, touched: bool| {
        if touched {
            paths.push(path);
        }
        touched
    };
    if let Some(name) = draft.name.filter(|_| touch("name", true)) {
        spec.name = name;
    }
    if let Some(words) = draft.command.filter(|_| touch("command", true)) {
        (spec.command, spec.shell) = match words {
            Words::Vector(words) => (words, false),
            Words::Shell(text) => (surroundings.shell_command(text), true),
        };
    }
    if let Some(cwd) = draft.cwd.filter(|_| touch("cwd", true)) {
        spec.cwd = cwd;
    }
    if touch("env", !draft.env.is_empty()) {
        spec.env.extend(draft.env);
    }
    if let Some(tracker) = draft.tracker.filter(|_| touch("tracker", true)) {
        spec.tracker = tracker;
    }
    if let Some(workspace) = draft.workspace.filter(|_| touch("workspace", true)) {
        spec.workspace = workspace;
    }
    if touch("labels", !draft.labels.is_empty()) {
        spec.labels.extend(draft.labels);
    }
    if let Some(priority) = draft.priority.filter(|_| touch("priority", true)) {
        spec.priority = priority;
    }
    if let Some(after) = draft.after.filter(|_| touch("after", true)) {
        spec.after = after
            .into_iter()
            .map(|after| v1::Dependency {
                job_id: after.job,
                condition: after.condition.into(),
            })
            .collect();
    }
    if let Some(limit) = draft.time_limit.filter(|_| touch("time_limit", true)) {
        spec.time_limit = Some(time::wire_span(limit));
    }
    if let Some(before) = draft.warn_before.filter(|_| touch("warn_before", true)) {
        spec.warn_before = Some(time::wire_span(before));
    }
    if draft.retries.is_some() && touch("retries", true) {
        spec.retries = draft.retries;
    }
    if draft.resumes.is_some() && touch("resumes", true) {
        spec.resumes = draft.resumes;
    }
    if let Some(causes) = draft.retry_on.filter(|_| touch("retry_on", true)) {
        spec.retry_on = causes;
    }
    if let Some(causes) = draft.no_retry_on.filter(|_| touch("no_retry_on", true)) {
        spec.no_retry_on = causes;
    }
    if draft.checkpoint_exit_code.is_some() && touch("checkpoint_exit_code", true) {
        spec.checkpoint_exit_code = draft.checkpoint_exit_code;
    }
    if touch("alarms", !draft.alarms.is_empty()) {
        spec.alarms = laid_over(draft.alarms, std::mem::take(&mut spec.alarms));
    }
    let silences = draft.silence.is_some() || draft.silence_counts.is_some();
    if touch("silence", silences) {
        let before = spec.silence.unwrap_or_default();
        let counts = draft.silence_counts.unwrap_or(before.counts());
        spec.silence = silence(draft.silence.or(Some(before)), Some(counts));
    }
    let demands = draft.slots.is_some() || draft.gpus.is_some() || draft.memory.is_some();
    if touch("demand", demands) {
        let demand = spec.demand.get_or_insert_default();
        demand.slots = draft.slots.unwrap_or(demand.slots);
        demand.gpus = draft.gpus.unwrap_or(demand.gpus);
        demand.memory_bytes = draft.memory.unwrap_or(demand.memory_bytes);
    }
    if let Some(worker) = draft.worker.filter(|_| touch("worker", true)) {
        spec.worker = worker;
    }
    if let Some(exclusive) = draft.exclusive.filter(|_| touch("exclusive", true)) {
        spec.exclusive = exclusive;
    }
    if let Some(signal) = draft.warn_signal.filter(|_| touch("warn_signal", true)) {
        spec.warn_signal = signal;
    }
    if let Some(grace) = draft.stop_grace.filter(|_| touch("stop_grace", true)) {
        spec.stop_grace = Some(time::wire_span(grace));
    }
    if let Some(idle) = draft.gpu_idle.filter(|_| touch("gpu_idle", true)) {
        spec.gpu_idle = Some(time::wire_span(idle));
    }
    if let Some(pattern) = draft.progress.filter(|_| touch("progress_pattern", true)) {
        spec.progress_pattern = pattern;
    }
    if let Some(pattern) = draft
        .contradicted_by
        .filter(|_| touch("contradicted_by", true))
    {
        spec.contradicted_by = pattern;
    }
    if let Some(pty) = draft.pty.filter(|_| touch("pty", true)) {
        spec.pty = pty;
    }
    if let Some(limit) = draft.log_limit.filter(|_| touch("log_limit_bytes", true)) {
        spec.log_limit_bytes = limit;
    }
    if let Some(artifacts) = draft.artifacts.filter(|_| touch("artifacts", true)) {
        spec.artifacts = artifacts;
    }
    if let Some(wish) = draft.notify.filter(|_| touch("notify", true)) {
        spec.notify = wish.into();
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn only_what_is_given_changes() {
        let surroundings = Surroundings::new("/".into(), BTreeMap::new(), "here".into());
        let mut spec = v1::JobSpec {
            name: "old".into(),
            env: [("A".to_owned(), "1".to_owned())].into(),
            demand: Some(v1::Demand {
                slots: 2,
                gpus: 1,
                memory_bytes: 7,
            }),
            ..Default::default()
        };
        let draft = Draft {
            env: [("B".to_owned(), "2".to_owned())].into(),
            gpus: Some(0),
            ..Draft::default()
        };
        assert_eq!(apply(draft, &mut spec, &surroundings), ["env", "demand"]);
        assert_eq!(spec.name, "old");
        assert_eq!(spec.env.len(), 2);
        let demand = spec.demand.unwrap();
        assert_eq!((demand.slots, demand.gpus, demand.memory_bytes), (2, 0, 7));
    }
}
