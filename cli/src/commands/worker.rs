//! `qctl worker`: steers one worker.

use std::process::ExitCode;

use clap::Subcommand;
use qctl_proto::v1;
use v1::update_worker_request::Mode;

use super::workers;
use crate::args::values;
use crate::context::{Client, Context, request_id, unary};
use crate::error::{Error, Problem};
use crate::exit;
use crate::output::{document, text};

/// Arguments of `qctl worker`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with a worker.
#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// Take no new jobs; running ones go on
    Pause {
        /// Name of the worker [default: the only one]
        name: Option<String>,
    },
    /// Take jobs again, also on GPUs that rest because one job after the other failed on them
    Resume {
        /// Name of the worker [default: the only one]
        name: Option<String>,
    },
    /// Take no new jobs, and be paused once the last one has ended
    Drain {
        /// Name of the worker [default: the only one]
        name: Option<String>,
    },
    /// Change the number of slots; fewer take effect as jobs end
    Slots {
        /// New number of slots
        #[arg(value_name = "N", value_parser = values::whole::<i32>(1..=1000))]
        slots: i32,
        /// Name of the worker [default: the only one]
        name: Option<String>,
    },
}

/// Runs the command.
///
/// # Errors
/// When there is no such worker, or several and none was named.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let (mode, slots, name) = match args.action {
        Action::Pause { name } => (Mode::Paused, None, name),
        Action::Resume { name } => (Mode::Active, None, name),
        Action::Drain { name } => (Mode::Draining, None, name),
        Action::Slots { slots, name } => (Mode::Unspecified, Some(slots), name),
    };
    let client = context.client().await?;
    let request = v1::UpdateWorkerRequest {
        request_id: request_id(),
        worker: named_or_only(client, name).await?,
        mode: mode.into(),
        slots,
    };
    let response = client
        .queue()
        .update_worker(unary(request))
        .await?
        .into_inner();
    let worker = response.worker.unwrap_or_default();
    if context.output.json {
        context
            .output
            .print_document(&document::Worker::from(&worker))?;
        return Ok(ExitCode::SUCCESS);
    }
    let name = text::printable(&worker.name);
    let running = i64::try_from(worker.running.len()).unwrap_or(i64::MAX);
    let running = text::counted(running, "running job");
    let sentence = match (mode, slots) {
        (Mode::Paused, _) => format!("{name} takes no new jobs ({running})"),
        (Mode::Draining, _) => format!("{name} takes no new jobs and drains ({running})"),
        (_, Some(slots)) => format!(
            "{name} has {} now ({} taken)",
            text::counted(slots.into(), "slot"),
            worker.slots_taken
        ),
        _ => format!("{name} takes jobs"),
    };
    context.output.print(&format!("{sentence}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// The name that was given, or else that of the only worker.
pub(super) async fn named_or_only(client: &Client, name: Option<String>) -> Result<String, Error> {
    if let Some(name) = name {
        return Ok(name);
    }
    let workers = workers::all(client).await?;
    match workers.as_slice() {
        [only] => Ok(only.name.clone()),
        [] => Err(Problem::new(
            "WORKER_NOT_FOUND",
            exit::NOT_FOUND,
            "no worker has ever connected",
        )
        .hint("start one on this machine")
        .next("qctl up")
        .into()),
        several => {
            let names: Vec<&str> = several.iter().map(|worker| worker.name.as_str()).collect();
            Err(Problem::usage("there are several workers: name one")
                .hint(format!("their names are {}", names.join(", ")))
                .into())
        }
    }
}
