//! `qctl drill`: interrupts a job on purpose, as the loss of its machine would, and reports whether
//! it really resumes.

use std::process::ExitCode;
use std::time::Duration;

use qctl_proto::error::{Fault, Reason};
use qctl_proto::v1;
use tokio::time::Instant;

use super::{carried, submit};
use crate::args::values;
use crate::context::{Client, Context, request_id, unary};
use crate::error::{Error, Problem};
use crate::exit;
use crate::output::drill::{Account, Moment, Seen};
use crate::output::text;
use crate::reconnect::Persistent;
use crate::submission::draft::Draft;
use crate::submission::origin::Origin;
use crate::submission::project::Project;
use crate::submission::surroundings::Surroundings;
use crate::submission::{Ground, assemble};

/// Label of every job that a drill submits.
const LABEL: &str = "drill";

/// An interruption that has not shown by then is asked for again: it may have been lost on its way.
const ASK_AGAIN: Duration = Duration::from_secs(15);

/// How many checkpoints are asked for at once.
const PAGE: i32 = 1_000;

/// Arguments of `qctl drill`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "qctl drill [OPTIONS] JOB\n       qctl drill [OPTIONS] -- COMMAND [ARGS]...",
    after_help = "A copy of JOB is submitted with the label `drill` and without JOB's tracker, which it finds in\n\
                  its environment as before. It runs the same command in the same folder: whatever that writes\n\
                  outside of its checkpoints, the copy writes too. Exit code 0 means that it resumed from a\n\
                  checkpoint and succeeded, 1 that it did not, or that it ended before it was interrupted."
)]
pub struct Args {
    /// Job to copy
    #[arg(value_name = "JOB", value_parser = values::job)]
    pub job: Option<i64>,
    /// Interrupt it once it has run for this long, checkpoint or not
    #[arg(long, value_name = "DURATION", value_parser = values::duration, conflicts_with = "at_checkpoint")]
    pub after: Option<Duration>,
    /// Interrupt it once an attempt has published this many checkpoints
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = values::whole::<i32>(1..))]
    pub at_checkpoint: i32,
    /// Command with its arguments; one that needs options is submitted, with --hold say, and drilled by
    /// its number
    #[arg(value_name = "COMMAND", last = true)]
    pub words: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// When there is no such job, its copy is refused, or its worker cannot be reached.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let moment = match args.after {
        Some(after) => Moment::After(after),
        None => Moment::Checkpoint(args.at_checkpoint),
    };
    let spec = match (args.job, args.words) {
        (Some(_), words) if !words.is_empty() => {
            return Err(Problem::usage(
                "a job and a command were given, and only one can be drilled",
            )
            .into());
        }
        (Some(id), _) => copy_of(context, id).await?,
        (None, words) if words.is_empty() => {
            return Err(Problem::usage("there is nothing to drill")
                .hint("name a job, or write a command behind two dashes")
                .next("qctl drill --help")
                .into());
        }
        (None, words) => {
            let draft = Draft {
                command: Some(submit::plain_command(words)?),
                ..Draft::default()
            };
            let surroundings = Surroundings::capture()?;
            let project = Project::find(&surroundings.cwd)?;
            let ground = Ground {
                surroundings: &surroundings,
                project: project.as_ref(),
                data_dir: None,
            };
            assemble(draft, None, Vec::new(), false, &ground)?
        }
    };
    let drill = start(context, spec, args.job).await?;
    let watched = tokio::select! {
        watched = watch_to_the_end(context, drill, moment) => watched?,
        _ = tokio::signal::ctrl_c() => return Ok(left_alone(context, drill)),
    };
    let seen = Seen {
        of: args.job,
        ..complete(context, drill, watched).await?
    };
    let account = Account::of(&seen);
    if context.output.json {
        context.output.print_document(&account)?;
    } else {
        let view = context.output.view();
        context.output.print(&account.for_people(&seen, &view))?;
    }
    Ok(ExitCode::from(match account.is_ok() {
        true => exit::OK,
        false => exit::ERROR,
    }))
}

/// What a job was asked to run, for a second time and on its own.
async fn copy_of(context: &Context, id: i64) -> Result<v1::JobSpec, Error> {
    let client = context.client().await?;
    let request = v1::GetJobRequest { id };
    let response = client.jobs().get_job(unary(request)).await?.into_inner();
    let mut spec = carried(response.job)?.spec.unwrap_or_default();
    spec.name = format!("drill of {id}");
    spec.after.clear();
    spec.hold = false;
    // It does not count on the tracker's page, and its program finds the tracker all the same.
    for (variable, value) in [
        ("TRACKER_ID", std::mem::take(&mut spec.tracker)),
        ("TRACKER_WORKSPACE", std::mem::take(&mut spec.workspace)),
    ] {
        if !value.is_empty() {
            spec.env.entry(variable.to_owned()).or_insert(value);
        }
    }
    Ok(spec)
}

async fn start(context: &Context, mut spec: v1::JobSpec, of: Option<i64>) -> Result<i64, Error> {
    spec.labels.insert(LABEL.to_owned(), String::new());
    // What is broken on purpose is no news for those who are told of failures.
    spec.notify = v1::job_spec::Notify::Never.into();
    let request = v1::SubmitJobsRequest {
        request_id: request_id(),
        jobs: vec![spec],
    };
    let client = context.client().await?;
    let response = client
        .jobs()
        .submit_jobs(unary(request))
        .await
        .map_err(|status| submit::locate(status.into(), &Origin::default()))?
        .into_inner();
    for warning in &response.warnings {
        context
            .output
            .print_error(&format!("warning: {}\n", text::printable(warning)));
    }
    let job = carried(response.jobs.into_iter().next())?;
    let what = of.map_or_else(String::new, |of| format!(", a copy of job {of}"));
    context.output.remark(&format!(
        "Job {} is the drill{what}\n  {}",
        job.id,
        text::printable(&job.url)
    ));
    Ok(job.id)
}

fn left_alone(context: &Context, drill: i64) -> ExitCode {
    context.output.remark(&format!(
        "\nThe drill is broken off, and its job goes on. End it with: qctl cancel {drill}"
    ));
    ExitCode::from(exit::INTERRUPTED)
}

/// What is seen while the drill goes on.
#[derive(Debug)]
struct Watched {
    moment: Moment,
    job: v1::Job,
    /// When the present attempt was first seen to run, and its number.
    running_since: Option<(i32, Instant)>,
    target: i32,
    asked_at: Option<Instant>,
    was_held: bool,
    before: Option<v1::Progress>,
    after: Option<v1::Progress>,
}

impl Watched {
    fn take(&mut self, job: v1::Job, now: Instant) {
        use v1::job::State;
        let runs = job.state() == State::Running;
        if runs
            && self
                .running_since
                .is_none_or(|(attempt, _)| attempt != job.attempt)
        {
            self.running_since = Some((job.attempt, now));
        }
        if runs && let Some(progress) = &job.progress {
            if self.target == 0 || job.attempt == self.target {
                self.before = Some(progress.clone());
            } else if self.after.is_none() {
                self.after = Some(progress.clone());
            }
        }
        self.job = job;
    }

    fn runs(&self) -> bool {
        self.job.state() == v1::job::State::Running
    }

    /// When to interrupt what runs; `None` while that is not known.
    fn due(&self) -> Option<Instant> {
        let (_, since) = self.running_since.filter(|_| self.runs())?;
        if self.target != 0 {
            let again = self.asked_at? + ASK_AGAIN;
            return (self.job.attempt == self.target).then_some(again);
        }
        match self.moment {
            Moment::After(after) => since.checked_add(after),
            Moment::Checkpoint(wanted) => {
                let (attempt, number) = self.job.checkpoint_name.split_once('.')?;
                let own = attempt.parse() == Ok(self.job.attempt);
                let enough = number.parse::<i32>().is_ok_and(|number| number >= wanted);
                (own && enough).then_some(since)
            }
        }
    }

    fn has_ended(&self) -> bool {
        use v1::job::State;
        matches!(
            self.job.state(),
            State::Succeeded | State::Failed | State::Cancelled
        )
    }
}

/// Watches the job, interrupts it when the moment has come, and waits until it has ended.
async fn watch_to_the_end(context: &Context, drill: i64, moment: Moment) -> Result<Watched, Error> {
    let mut watched = Watched {
        moment,
        job: v1::Job::default(),
        running_since: None,
        target: 0,
        asked_at: None,
        was_held: false,
        before: None,
        after: None,
    };
    let mut client = context.client().await?.clone();
    let mut connection = Persistent::new(context);
    while let Err(error) = watch(context, &client, drill, &mut watched, &mut connection).await {
        client = connection.recover(error).await?;
    }
    Ok(watched)
}

async fn watch(
    context: &Context,
    client: &Client,
    drill: i64,
    watched: &mut Watched,
    connection: &mut Persistent<'_>,
) -> Result<(), Error> {
    let request = v1::WatchJobsRequest {
        filter: Some(v1::JobFilter {
            ids: vec![drill],
            ..Default::default()
        }),
        after: 0,
    };
    let mut changes = client.jobs().watch_jobs(request).await?.into_inner();
    loop {
        let due = watched.due();
        let due = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = changes.message() => {
                // A stream that ends by itself is a coordinator that stops.
                let change = change?.ok_or_else(|| {
                    tonic::Status::unavailable("the coordinator is stopping")
                })?;
                connection.answered();
                match change.job {
                    Some(job) => watched.take(job, Instant::now()),
                    None if watched.job.id == 0 => return Err(gone(drill)),
                    None => {}
                }
            }
            () = due => interrupt(context, client, watched).await?,
        }
        let is_held = watched.job.state() == v1::job::State::Held;
        if is_held && !watched.was_held {
            context.output.remark(&format!(
                "The drill is held: {}. It waits for: qctl release {drill}",
                text::printable(&watched.job.message)
            ));
        }
        watched.was_held = is_held;
        if watched.has_ended() {
            return Ok(());
        }
    }
}

fn gone(drill: i64) -> Error {
    Error::Refused(Box::new(
        Fault::new(
            Reason::JobNotFound,
            format!("there is no job {drill} any more"),
        )
        .next("qctl list"),
    ))
}

async fn interrupt(context: &Context, client: &Client, watched: &mut Watched) -> Result<(), Error> {
    let request = v1::InterruptJobRequest {
        request_id: request_id(),
        id: watched.job.id,
    };
    let first = watched.target == 0;
    watched.target = watched.job.attempt;
    watched.asked_at = Some(Instant::now());
    match client
        .jobs()
        .interrupt_job(unary(request))
        .await
        .map_err(Error::from)
    {
        Ok(_) if first => {
            context
                .output
                .remark(&format!("Attempt {} is interrupted", watched.target));
            Ok(())
        }
        // It was quicker, and the watch tells how it ended.
        Err(Error::Refused(fault)) if fault.reason == Reason::JobNotRunning => Ok(()),
        other => other.map(drop),
    }
}

/// Reads what the watch does not tell.
async fn complete(context: &Context, drill: i64, watched: Watched) -> Result<Seen, Error> {
    let client = context.connect().await?;
    let request = v1::GetJobRequest { id: drill };
    let response = client.jobs().get_job(unary(request)).await?.into_inner();
    let request = v1::ListCheckpointsRequest {
        job_id: drill,
        page_size: PAGE,
        page_token: String::new(),
    };
    let checkpoints = client
        .jobs()
        .list_checkpoints(unary(request))
        .await?
        .into_inner()
        .checkpoints;
    // The attempt's own last report is newer than what the watch had told by then.
    let last = response
        .attempts
        .iter()
        .find(|attempt| attempt.number == watched.target)
        .and_then(|attempt| attempt.progress.clone());
    Ok(Seen {
        of: None,
        job: carried(response.job)?,
        attempts: response.attempts,
        checkpoints,
        moment: watched.moment,
        target: watched.target,
        before: last.or(watched.before),
        after: watched.after,
    })
}
