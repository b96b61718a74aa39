//! How a submission comes together.
//!
//! Several sources may say something about a job: a line of a batch, the options of the command,
//! the environment, the project's `.qctl.toml`, and a template. Each of them becomes a
//! [`draft::Draft`]; [`assemble`] lays them over one another in that order and makes the message.

use std::path::Path;

use qctl_proto::v1;
use qctl_proto::v1::silence::Counts;

use crate::args::SpecArgs;
use crate::args::causes::Causes;
use crate::error::Problem;
use crate::output::time;

pub mod batch;
pub mod draft;
pub mod origin;
pub mod project;
pub mod surroundings;
pub mod template;

use draft::{Draft, Words};
use project::Project;
use surroundings::Surroundings;
use template::{Placeholders, Template};

/// What the command line says about a job.
///
/// # Errors
/// When a variable that was to be copied is not set.
pub fn from_options(spec: SpecArgs, surroundings: &Surroundings) -> Result<Draft, Problem> {
    let mut draft = Draft {
        labels: spec.labels.into_iter().collect(),
        env: surroundings.variables_of(&spec.env)?,
        tracker: spec.tracker,
        workspace: spec
            .workspace
            .map(|path| surroundings.absolute(&path))
            .transpose()?,
        cwd: spec
            .cwd
            .map(|path| surroundings.absolute(&path))
            .transpose()?,
        priority: spec.priority,
        time_limit: spec.time_limit,
        warn_before: spec.warn_before,
        warn_signal: spec.warn_signal,
        stop_grace: spec.stop_grace,
        retries: spec.retries,
        resumes: spec.resumes,
        retry_on: joined(spec.retry_on),
        no_retry_on: joined(spec.no_retry_on),
        checkpoint_exit_code: spec.checkpoint_exit_code,
        slots: spec.slots,
        gpus: spec.gpus,
        memory: spec.memory,
        worker: spec.worker,
        exclusive: spec.exclusive,
        progress: spec.progress,
        contradicted_by: spec.contradicted_by,
        pty: spec.pty,
        log_limit: spec.log_limit,
        notify: spec.notify,
        alarms: draft::laid_over(spec.alarms, Vec::new()),
        silence: spec.silence,
        silence_counts: spec.silence_counts,
        gpu_idle: spec.gpu_idle,
        ..Draft::default()
    };
    if !spec.after.is_empty() {
        draft.after = Some(spec.after);
    }
    if !spec.artifacts.is_empty() {
        draft.artifacts = Some(spec.artifacts);
    }
    Ok(draft)
}

/// What a job is made from besides its own options.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    /// The process that submits.
    pub surroundings: &'a Surroundings,
    /// The project around it, if any.
    pub project: Option<&'a Project>,
    /// qctl's data folder, for `{home}`.
    pub data_dir: Option<&'a Path>,
}

impl Ground<'_> {
    /// What a job is laid over besides its own options, and what to call it; what wins comes first.
    ///
    /// # Errors
    /// When the template has nothing for `--batch`.
    pub fn files(
        &self,
        template: Option<&Template>,
        bare_batch: bool,
    ) -> Result<Vec<(String, Draft)>, Problem> {
        let mut files = vec![("the environment".to_owned(), self.surroundings.draft())];
        if let Some(project) = self.project {
            files.push((project::FILE.to_owned(), project.draft()));
        }
        if let Some(template) = template {
            let name = format!("template `{}`", template.name);
            files.push((name, template.draft(bare_batch)?));
        }
        Ok(files)
    }
}

/// Lays a job's own options over environment, project and template, and makes the message.
///
/// # Errors
/// When there is no command, a placeholder has no value, or two values contradict each other.
pub fn assemble(
    own: Draft,
    template: Option<&Template>,
    arguments: Vec<String>,
    bare_batch: bool,
    ground: &Ground<'_>,
) -> Result<v1::JobSpec, Problem> {
    let mut draft = own.over(ground.surroundings.draft());
    if let Some(project) = ground.project {
        draft = draft.over(project.draft());
    }
    if let Some(template) = template {
        draft = instantiate(draft, template, arguments, bare_batch, ground)?;
    }
    finish(draft, ground.surroundings, template)
}

fn instantiate(
    above: Draft,
    template: &Template,
    arguments: Vec<String>,
    bare_batch: bool,
    ground: &Ground<'_>,
) -> Result<Draft, Problem> {
    let mut below = template.draft(bare_batch)?;
    let mut placeholders = Placeholders {
        template: &template.name,
        tracker: above.tracker.clone(),
        workspace: None,
        project: ground.surroundings.project_root(),
        home: ground.data_dir,
    };
    below.tracker = below
        .tracker
        .map(|text| placeholders.fill(&text))
        .transpose()?;
    placeholders.tracker = placeholders.tracker.or_else(|| below.tracker.clone());
    below.workspace = match &above.workspace {
        Some(_) => None,
        None => below
            .workspace
            .map(|text| {
                let filled = placeholders.fill(&text)?;
                ground.surroundings.absolute(Path::new(&filled))
            })
            .transpose()?,
    };
    placeholders.workspace = above.workspace.clone().or_else(|| below.workspace.clone());
    let named = above.name.is_some();
    let explicit = arguments.clone();
    let mut draft = above.over(placeholders.fill_all(below, &ground.surroundings.cwd)?);
    if draft.command.is_none() {
        return Err(Problem::usage(format!(
            "template `{}` has no command",
            template.name
        )));
    }
    draft.command = Some(Words::Vector(template.command(
        arguments,
        bare_batch,
        &placeholders,
    )?));
    if !named && draft.name.is_none() {
        draft.name = Some(template::job_name(&template.name, &explicit));
    }
    Ok(draft)
}

/// Checks a draft and makes the message.
fn finish(
    draft: Draft,
    surroundings: &Surroundings,
    template: Option<&Template>,
) -> Result<v1::JobSpec, Problem> {
    let (command, shell) = match draft.command {
        Some(Words::Vector(command)) if command.is_empty() => {
            return Err(Problem::usage("command: at least a program must be named"));
        }
        Some(Words::Vector(command)) => (command, false),
        Some(Words::Shell(text)) => (surroundings.shell_command(text), true),
        None => {
            return Err(Problem::usage("there is no command to run")
                .hint("write it behind two dashes, or give --shell TEXT or --template NAME")
                .next("qctl submit -- COMMAND ARGS..."));
        }
    };
    if let Some(before) = draft.warn_before {
        match draft.time_limit {
            None => {
                return Err(
                    Problem::usage("a warning before the time limit needs a time limit")
                        .hint("set one with --time-limit; in a file its key is time_limit"),
                );
            }
            Some(limit) if before >= limit => {
                return Err(Problem::usage(format!(
                    "the warning would come before the start: {} before a time limit of {}",
                    time::exact(before),
                    time::exact(limit)
                )));
            }
            Some(_) => {}
        }
    }
    let mut env = surroundings.captured.clone();
    env.extend(draft.env);
    Ok(v1::JobSpec {
        name: draft.name.unwrap_or_default(),
        command,
        shell,
        cwd: match draft.cwd {
            Some(cwd) => cwd,
            None => surroundings.cwd_text()?,
        },
        env: env.into_iter().collect(),
        tracker: draft.tracker.unwrap_or_default(),
        workspace: draft.workspace.unwrap_or_default(),
        labels: draft.labels.into_iter().collect(),
        priority: draft.priority.unwrap_or_default(),
        after: draft
            .after
            .unwrap_or_default()
            .into_iter()
            .map(|after| v1::Dependency {
                job_id: after.job,
                condition: after.condition.into(),
            })
            .collect(),
        time_limit: draft.time_limit.map(time::wire_span),
        warn_before: draft.warn_before.map(time::wire_span),
        warn_signal: draft.warn_signal.unwrap_or_default(),
        retries: draft.retries,
        resumes: draft.resumes,
        demand: Some(v1::Demand {
            slots: draft.slots.unwrap_or_default(),
            gpus: draft.gpus.unwrap_or_default(),
            memory_bytes: draft.memory.unwrap_or_default(),
        }),
        worker: draft.worker.unwrap_or_default(),
        exclusive: draft.exclusive.unwrap_or_default(),
        hold: draft.hold.unwrap_or_default(),
        progress_pattern: draft.progress.unwrap_or_default(),
        pty: draft.pty.unwrap_or_default(),
        template: template
            .map(|template| template.name.clone())
            .unwrap_or_default(),
        submit_host: surroundings.host.clone(),
        stop_grace: draft.stop_grace.map(time::wire_span),
        artifacts: draft.artifacts.unwrap_or_default(),
        log_limit_bytes: draft.log_limit.unwrap_or_default(),
        retry_on: draft.retry_on.unwrap_or_default(),
        no_retry_on: draft.no_retry_on.unwrap_or_default(),
        checkpoint_exit_code: draft.checkpoint_exit_code,
        contradicted_by: draft.contradicted_by.unwrap_or_default(),
        notify: draft.notify.unwrap_or_default().into(),
        alarms: draft.alarms,
        silence: silence(draft.silence, draft.silence_counts),
        gpu_idle: draft.gpu_idle.map(time::wire_span),
    })
}

/// What is said about silence; nothing when nothing is said.
pub fn silence(stages: Option<v1::Silence>, counts: Option<Counts>) -> Option<v1::Silence> {
    if stages.is_none() && counts.is_none() {
        return None;
    }
    let mut silence = stages.unwrap_or_default();
    silence.set_counts(counts.unwrap_or_default());
    Some(silence)
}

/// What several uses of one option name together; `None` when it was not used.
fn joined(options: Vec<Causes>) -> Option<Vec<v1::FailureCause>> {
    (!options.is_empty()).then(|| options.into_iter().flat_map(|causes| causes.0).collect())
}
