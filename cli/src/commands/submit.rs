//! `qctl submit`: submits a job, or a batch of them in one transaction.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use prost::Message as _;
use qctl_proto::{MAX_MESSAGE_BYTES, v1};

use super::wait;
use crate::args::SubmissionArgs;
use crate::context::{Context, request_id, unary};
use crate::error::{Error, Problem};
use crate::exit;
use crate::output::{document, follow, job, text};
use crate::reconnect::Persistent;
use crate::submission::batch;
use crate::submission::draft::{Draft, Words};
use crate::submission::origin::Origin;
use crate::submission::project::Project;
use crate::submission::surroundings::Surroundings;
use crate::submission::template::{self, Template};
use crate::submission::{Ground, assemble, from_options};

/// How long a submission whose connection broke is repeated, under the same request id: another
/// coordinator may take 15 s to take over.
const PATIENCE: Duration = Duration::from_secs(30);

/// Jobs of a batch that are named one by one.
const NAMED: usize = 20;

/// Room that a message's own fields take beside the jobs.
const MESSAGE_MARGIN: usize = 64 * 1024;

/// Arguments of `qctl submit`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "qctl submit [OPTIONS] -- COMMAND [ARGS]...\n       qctl submit [OPTIONS] --shell TEXT\n       qctl submit [OPTIONS] --template NAME [ARGS]...\n       qctl submit [OPTIONS] --batch FILE"
)]
pub struct Args {
    /// Name for people [default: made from the command]
    #[arg(long, value_name = "NAME", help_heading = "Job options")]
    pub name: Option<String>,
    /// What else can be said about the job.
    #[command(flatten)]
    pub submission: SubmissionArgs,
    /// Run a text by a shell: yours if it is of the sh family, else /bin/sh
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["template", "batch"], help_heading = "What to run")]
    pub shell: Option<String>,
    /// Make the job from a template; ARGS are the template's arguments
    #[arg(long, value_name = "NAME", help_heading = "What to run")]
    pub template: Option<String>,
    /// Submit every line of a file, each a JSON object, in one transaction; - is standard input.
    /// Without a file, the template's own batch
    ///
    /// A line has a command (a list of words), a shell (a text) or a template with args, and further
    /// keys named like the options: {"command": ["./fetch.sh", "a"], "retries": 0}
    #[arg(long, value_name = "FILE", num_args = 0..=1, help_heading = "What to run")]
    pub batch: Option<Option<PathBuf>>,
    /// Command with its arguments, never read by a shell
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        help_heading = "What to run"
    )]
    pub words: Vec<String>,
}

/// The jobs of one submission.
pub(super) struct Submission {
    specs: Vec<v1::JobSpec>,
    origin: Origin,
    request_id: Option<String>,
    follow: bool,
    wait: bool,
}

/// Runs the command.
///
/// # Errors
/// When something about the jobs is wrong, or the coordinator refuses; nothing is submitted then.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let surroundings = Surroundings::capture()?;
    let project = Project::find(&surroundings.cwd)?;
    let ground = Ground {
        surroundings: &surroundings,
        project: project.as_ref(),
        data_dir: context.home().ok().map(|home| home.data_dir()),
    };
    let (mut submission, mut own) = Submission::new(args.submission, &surroundings)?;
    own.name = args.name;
    let template = match &args.template {
        Some(name) => Some(template::find(context, name).await?),
        None => None,
    };
    match (args.batch, template) {
        (Some(Some(path)), template) => {
            if !args.words.is_empty() {
                return Err(both_file_and_words(&path, template.as_ref()).into());
            }
            submission
                .take_batch(context, &path, &own, template, &ground)
                .await?;
        }
        (Some(None), Some(template)) => {
            submission.origin.files = ground.files(Some(&template), true)?;
            submission.specs = vec![assemble(own, Some(&template), args.words, true, &ground)?];
        }
        (Some(None), None) => {
            return Err(Problem::usage("--batch without a file needs a template")
                .hint("give a file of JSON lines, - for standard input, or --template NAME")
                .into());
        }
        (None, Some(template)) => {
            submission.origin.files = ground.files(Some(&template), false)?;
            submission.specs = vec![assemble(own, Some(&template), args.words, false, &ground)?];
        }
        (None, None) => {
            own.command = command(args.shell, args.words)?;
            submission = submission.of(own, &ground)?;
        }
    }
    submission.send(context).await
}

fn command(shell: Option<String>, words: Vec<String>) -> Result<Option<Words>, Problem> {
    match (shell, words) {
        (Some(_), words) if !words.is_empty() => Err(Problem::usage(format!(
            "--shell takes one text, and `{}` stands behind it",
            words[0]
        ))
        .hint("put the whole text in quotes")),
        (Some(text), _) if text.trim().is_empty() => {
            Err(Problem::usage("--shell: the text is empty"))
        }
        (Some(text), _) => Ok(Some(Words::Shell(text))),
        (None, words) if words.is_empty() => Ok(None),
        (None, words) => plain_command(words).map(Some),
    }
}

/// A command of its words. One word with blanks is most likely a line meant for a shell.
pub(super) fn plain_command(words: Vec<String>) -> Result<Words, Problem> {
    match words.as_slice() {
        [line] if line.contains(char::is_whitespace) && !line.contains('/') => Err(Problem::usage(
            format!("`{line}` is one word, and no program's name"),
        )
        .hint("leave out the quotes, or have a shell run it")
        .next(format!(
            "qctl submit --shell {}",
            text::shell_words(std::slice::from_ref(line))
        ))),
        _ => Ok(Words::Vector(words)),
    }
}

fn both_file_and_words(path: &Path, template: Option<&Template>) -> Problem {
    let problem = Problem::usage(format!(
        "--batch took `{}` for its file, so there is no place for a command",
        path.display()
    ));
    match template {
        Some(_) => problem.hint("for the template's own batch, write its arguments behind --"),
        None => problem.hint("write each job's command in the file"),
    }
}

impl Submission {
    /// A submission without jobs yet, and what its options say about them.
    ///
    /// # Errors
    /// When a variable that was to be copied is not set.
    pub(super) fn new(
        args: SubmissionArgs,
        surroundings: &Surroundings,
    ) -> Result<(Self, Draft), Problem> {
        let mut options = from_options(args.spec, surroundings)?;
        options.hold = args.hold.then_some(true);
        let submission = Self {
            specs: Vec::new(),
            origin: Origin {
                options: options.clone(),
                ..Origin::default()
            },
            request_id: args.request_id,
            follow: args.follow,
            wait: args.wait,
        };
        Ok((submission, options))
    }

    /// Makes it a submission of one job, laid over the environment and the project.
    ///
    /// # Errors
    /// When two values contradict each other.
    pub(super) fn of(mut self, job: Draft, ground: &Ground<'_>) -> Result<Self, Problem> {
        self.origin.files = ground.files(None, false)?;
        self.specs = vec![assemble(job, None, Vec::new(), false, ground)?];
        Ok(self)
    }

    async fn take_batch(
        &mut self,
        context: &Context,
        path: &Path,
        own: &Draft,
        template: Option<Template>,
        ground: &Ground<'_>,
    ) -> Result<(), Error> {
        if self.follow {
            return Err(
                Problem::usage("--follow shows one job, and this is a batch")
                    .hint("wait for all of them with --wait")
                    .into(),
            );
        }
        let lines = batch::parse(path, &batch::load(path)?)?;
        let mut templates: BTreeMap<String, Template> = BTreeMap::new();
        let common = template.map(|template| {
            let name = template.name.clone();
            templates.insert(name.clone(), template);
            name
        });
        let mut numbers = Vec::with_capacity(lines.len());
        for line in lines {
            let at = |problem: Problem| Problem {
                message: format!("{}:{}: {}", path.display(), line.number, problem.message),
                ..problem
            };
            let mut draft = line.draft;
            let arguments = draft.args.take().unwrap_or_default();
            let name = match (&draft.template, &draft.command) {
                (Some(name), _) => Some(name.clone()),
                (None, None) => common.clone(),
                (None, Some(_)) => None,
            };
            if let Some(name) = &name
                && !templates.contains_key(name)
            {
                let found = template::find(context, name)
                    .await
                    .map_err(|error| match error {
                        Error::Problem(problem) => Error::from(at(*problem)),
                        other => other,
                    })?;
                templates.insert(name.clone(), found);
            }
            let template = name.as_ref().and_then(|name| templates.get(name));
            if template.is_none() && !arguments.is_empty() {
                return Err(at(Problem::usage(
                    "args: belong to a template, and none is named",
                ))
                .into());
            }
            if template.is_none() && draft.command.is_none() {
                return Err(at(Problem::usage("there is no command to run")
                    .hint("give the line a command, shell or template; nothing was submitted"))
                .into());
            }
            let spec = assemble(draft.over(own.clone()), template, arguments, false, ground)
                .map_err(at)?;
            self.specs.push(spec);
            numbers.push(line.number);
        }
        self.origin.lines = Some((path.to_path_buf(), numbers));
        Ok(())
    }

    /// Submits, prints what was made, and follows or waits if that was asked for.
    pub(super) async fn send(self, context: &Context) -> Result<ExitCode, Error> {
        if self.follow && context.output.json {
            return Err(Problem::usage("--follow is for people, and --json for programs")
                .hint("wait for the job's end with --wait --json, or read with: qctl logs -f --json")
                .into());
        }
        let request = v1::SubmitJobsRequest {
            request_id: self.request_id.clone().unwrap_or_else(request_id),
            jobs: self.specs,
        };
        let size = request.encoded_len();
        if size + MESSAGE_MARGIN > MAX_MESSAGE_BYTES {
            let limit = i64::try_from(MAX_MESSAGE_BYTES).unwrap_or(i64::MAX);
            return Err(Problem::new(
                "LIMIT_EXCEEDED",
                exit::USAGE,
                format!(
                    "the submission takes {}, more than the limit of {}",
                    text::bytes(i64::try_from(size).unwrap_or(i64::MAX)),
                    text::bytes(limit)
                ),
            )
            .hint("split the batch, or pass long input in a file; nothing was submitted")
            .into());
        }
        let response = submit(context, request)
            .await
            .map_err(|error| locate(error, &self.origin))?;
        let ids: Vec<i64> = response.jobs.iter().map(|job| job.id).collect();
        for warning in &response.warnings {
            let warning = text::printable(warning);
            context.output.print_error(&format!("warning: {warning}\n"));
        }
        if self.wait {
            let announced = announcement(context, &response, self.origin.lines.is_some());
            context.output.remark(announced.trim_end());
            return wait::silently(context, &ids).await;
        }
        if context.output.json {
            for job in &response.jobs {
                context.output.print_document(&document::Job::from(job))?;
            }
        } else {
            context.output.print(&announcement(
                context,
                &response,
                self.origin.lines.is_some(),
            ))?;
        }
        match ids.as_slice() {
            [id] if self.follow => follow::follow(context, *id).await,
            _ => Ok(ExitCode::SUCCESS),
        }
    }
}

/// Calls once, and again under the same request id when the connection broke: the coordinator
/// answers a repetition with the jobs that it made the first time.
async fn submit(
    context: &Context,
    request: v1::SubmitJobsRequest,
) -> Result<v1::SubmitJobsResponse, Error> {
    let mut client = context.client().await?.clone();
    let mut connection = Persistent::for_at_most(context, PATIENCE);
    loop {
        match client.jobs().submit_jobs(unary(request.clone())).await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => client = connection.recover(status.into()).await?,
        }
    }
}

/// Names a wrong field as it was written.
pub(super) fn locate(error: Error, origin: &Origin) -> Error {
    match error {
        Error::Refused(fault) => Error::Refused(Box::new(origin.told(*fault))),
        other => other,
    }
}

fn announcement(context: &Context, response: &v1::SubmitJobsResponse, is_batch: bool) -> String {
    let view = context.output.view();
    let jobs = &response.jobs;
    if let ([only], false) = (jobs.as_slice(), is_batch) {
        return job::submitted(only, response.replayed, &view);
    }
    let count = i64::try_from(jobs.len()).unwrap_or(i64::MAX);
    let verb = if response.replayed {
        "Already submitted:"
    } else {
        "Submitted"
    };
    let mut out = format!("{verb} {}\n", text::counted(count, "job"));
    for job in jobs.iter().take(NAMED) {
        let name = job.spec.as_ref().map_or("", |spec| spec.name.as_str());
        let _ = writeln!(
            out,
            "  {}  {}  {}",
            job.id,
            text::printable(name),
            text::printable(&job.url)
        );
    }
    if let Some(last) = jobs.get(NAMED..).and_then(<[_]>::last) {
        let _ = writeln!(
            out,
            "  … and {} more, up to {}",
            jobs.len() - NAMED,
            last.id
        );
    }
    let trackers: BTreeMap<&str, &str> = jobs
        .iter()
        .filter(|job| !job.tracker_url.is_empty())
        .map(|job| {
            let tracker = job.spec.as_ref().map_or("", |spec| spec.tracker.as_str());
            (tracker, job.tracker_url.as_str())
        })
        .collect();
    for (tracker, url) in trackers.into_iter().take(NAMED) {
        let _ = writeln!(
            out,
            "  {}: {}",
            text::printable(tracker),
            text::printable(url)
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_line_is_not_taken_for_a_program() {
        let told = command(None, vec!["pytest tests".into()]).unwrap_err();
        assert_eq!(
            told.next.as_deref(),
            Some("qctl submit --shell 'pytest tests'")
        );
        assert!(command(None, vec!["/opt/my tool".into()]).is_ok());
        assert!(command(Some("a".into()), vec!["b".into()]).is_err());
    }
}
