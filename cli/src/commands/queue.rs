//! `qctl queue`: stops or allows new starts everywhere.

use std::process::ExitCode;

use clap::Subcommand;
use qctl_proto::v1;
use serde::Serialize;

use crate::context::{Context, request_id, unary};
use crate::error::Error;
use crate::output::text;

/// Arguments of `qctl queue`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum Action {
    /// Start nothing new anywhere; running jobs go on
    Pause,
    /// Start jobs again
    Resume,
}

#[derive(Serialize)]
struct Document {
    queue_paused: bool,
    waiting: i64,
    running: i64,
}

/// Runs the command.
///
/// # Errors
/// When the coordinator refuses.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let paused = args.action == Action::Pause;
    let request = v1::SetQueuePausedRequest {
        request_id: request_id(),
        paused,
    };
    let client = context.client().await?;
    let response = client
        .queue()
        .set_queue_paused(unary(request))
        .await?
        .into_inner();
    if context.output.json {
        context.output.print_document(&Document {
            queue_paused: paused,
            waiting: response.waiting,
            running: response.running,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let waiting = text::counted(response.waiting, "job");
    let text = match (paused, response.running) {
        (true, 0) => format!(
            "The queue is paused: nothing new starts ({waiting} waiting). Go on with: qctl queue resume\n"
        ),
        (true, running) => format!(
            "The queue is paused: nothing new starts ({waiting} waiting); {} and will go on. Go on with: qctl queue resume\n",
            if running == 1 {
                "1 job runs".to_owned()
            } else {
                format!("{running} jobs run")
            }
        ),
        (false, _) => format!("The queue starts jobs ({waiting} waiting)\n"),
    };
    context.output.print(&text)?;
    Ok(ExitCode::SUCCESS)
}
