//! `qctl wait`: waits until jobs have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use qctl_proto::error::{Fault, Reason};
use qctl_proto::v1;

use crate::args::{Jobs, values};
use crate::context::{Client, Context};
use crate::error::{Error, Problem};
use crate::exit;
use crate::output::{document, job};
use crate::reconnect::Persistent;

/// Arguments of `qctl wait`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Jobs to wait for.
    #[command(flatten)]
    pub jobs: Jobs,
    /// Give up after this long, with exit code 75; the jobs go on
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub timeout: Option<Duration>,
}

/// Runs the command.
///
/// # Errors
/// When there is no such job, or the time is over.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let ids = &args.jobs.jobs;
    let patience = async {
        match args.timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    let jobs = tokio::select! {
        jobs = until_ended(context, ids) => jobs?,
        _ = tokio::signal::ctrl_c() => return Ok(interrupted(context, ids)),
        () = patience => return Err(out_of_time(ids).into()),
    };
    tell_ends(context, &jobs)?;
    Ok(ExitCode::from(exit::of_jobs(&jobs)))
}

/// Waits for jobs and prints how they ended; for `submit --wait`.
pub(super) async fn silently(context: &Context, ids: &[i64]) -> Result<ExitCode, Error> {
    let jobs = tokio::select! {
        jobs = until_ended(context, ids) => jobs?,
        _ = tokio::signal::ctrl_c() => return Ok(interrupted(context, ids)),
    };
    tell_ends(context, &jobs)?;
    Ok(ExitCode::from(exit::of_jobs(&jobs)))
}

fn tell_ends(context: &Context, jobs: &[v1::Job]) -> Result<(), Error> {
    let view = context.output.view();
    for ended in jobs {
        if context.output.json {
            context.output.print_document(&document::Job::from(ended))?;
        } else {
            let text = job::ended(ended, &view) + &job::links(ended);
            context.output.print(&text)?;
        }
    }
    Ok(())
}

fn words(ids: &[i64]) -> String {
    let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
    ids.join(" ")
}

fn interrupted(context: &Context, ids: &[i64]) -> ExitCode {
    let subject = if ids.len() == 1 {
        "The job goes"
    } else {
        "The jobs go"
    };
    context.output.remark(&format!(
        "\n{subject} on. Come back with: qctl wait {}",
        words(ids)
    ));
    ExitCode::from(exit::INTERRUPTED)
}

fn out_of_time(ids: &[i64]) -> Problem {
    Problem::new(
        "NOT_ENDED_YET",
        exit::TEMPORARY,
        "the time to wait is over and not every job has ended",
    )
    .hint("the jobs go on")
    .next(format!("qctl wait {}", words(ids)))
}

/// Waits until all of the jobs have ended, in spite of restarts of the coordinator. Gives them in
/// the order of `ids`.
async fn until_ended(context: &Context, ids: &[i64]) -> Result<Vec<v1::Job>, Error> {
    let mut client = context.client().await?.clone();
    let mut connection = Persistent::new(context);
    let mut seen = BTreeMap::new();
    while let Err(error) = watch(context, &client, ids, &mut seen, &mut connection).await {
        client = connection.recover(error).await?;
    }
    Ok(ids.iter().filter_map(|id| seen.get(id).cloned()).collect())
}

/// Watches until every job has ended, or the connection has.
async fn watch(
    context: &Context,
    client: &Client,
    ids: &[i64],
    seen: &mut BTreeMap<i64, v1::Job>,
    connection: &mut Persistent<'_>,
) -> Result<(), Error> {
    let request = v1::WatchJobsRequest {
        filter: Some(v1::JobFilter {
            ids: ids.to_vec(),
            ..Default::default()
        }),
        after: 0,
    };
    let mut changes = client.jobs().watch_jobs(request).await?.into_inner();
    let mut caught_up = false;
    // By this watch alone: a job known from an earlier one may have been deleted since.
    let mut listed = BTreeSet::new();
    while let Some(change) = changes.message().await? {
        connection.answered();
        if let Some(job) = change.job {
            let was_held = seen.get(&job.id).is_some_and(is_held);
            if is_held(&job) && !was_held {
                context.output.remark(&format!(
                    "Job {0} is held; it waits for: qctl release {0}",
                    job.id
                ));
            }
            listed.insert(job.id);
            seen.insert(job.id, job);
        }
        caught_up |= change.caught_up;
        if !caught_up {
            continue;
        }
        if let Some(missing) = ids.iter().find(|id| !listed.contains(id)) {
            return Err(Error::Refused(Box::new(
                Fault::new(Reason::JobNotFound, format!("there is no job {missing}"))
                    .next("qctl list"),
            )));
        }
        if ids.iter().all(|id| seen.get(id).is_some_and(has_ended)) {
            return Ok(());
        }
    }
    // A stream that ends by itself is a coordinator that stops.
    Err(tonic::Status::unavailable("the coordinator is stopping").into())
}

fn is_held(job: &v1::Job) -> bool {
    job.state() == v1::job::State::Held
}

fn has_ended(job: &v1::Job) -> bool {
    use v1::job::State;
    matches!(
        job.state(),
        State::Succeeded | State::Failed | State::Cancelled
    )
}
