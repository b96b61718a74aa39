//! `qctl execute`: has a worker start the next job now, and follows it in the foreground.

use std::process::ExitCode;

use qctl_proto::v1;

use super::{carried, wait, worker, workers};
use crate::context::{Client, Context, request_id, unary};
use crate::error::Error;
use crate::output::follow;

/// Arguments of `qctl execute`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the worker [default: this machine's, or the only one]
    #[arg(long, value_name = "NAME")]
    pub worker: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// When no job is queued, or the worker is not connected.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let client = context.client().await?;
    let name = match args.worker {
        Some(name) => name,
        None => local_or_only(client).await?,
    };
    let request = v1::ExecuteNextRequest {
        request_id: request_id(),
        worker: name,
    };
    let response = client
        .jobs()
        .execute_next(unary(request))
        .await?
        .into_inner();
    let id = carried(response.job)?.id;
    if context.output.json {
        return wait::silently(context, &[id]).await;
    }
    follow::follow(context, id).await
}

/// The worker of this machine where it is the only one here, and else the only one there is.
async fn local_or_only(client: &Client) -> Result<String, Error> {
    let host = crate::submission::surroundings::host_name();
    let mut here: Vec<String> = workers::all(client)
        .await?
        .into_iter()
        .filter(|worker| worker.hostname == host)
        .map(|worker| worker.name)
        .collect();
    match (here.pop(), here.is_empty()) {
        (Some(only), true) => Ok(only),
        _ => worker::named_or_only(client, None).await,
    }
}
