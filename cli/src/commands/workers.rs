//! `qctl workers`: lists workers and what they run.

use std::process::ExitCode;

use qctl_proto::v1;
use serde::Serialize;

use crate::context::{Client, Context, unary};
use crate::error::Error;
use crate::output::{document, worker};

/// Most workers that are listed: as many as a coordinator is designed for.
const MAX_WORKERS: usize = 1_000;

/// Arguments of `qctl workers`.
#[derive(Debug, clap::Args)]
pub struct Args {}

#[derive(Serialize)]
struct Document<'a> {
    workers: Vec<document::Worker<'a>>,
}

/// Runs the command.
///
/// # Errors
/// When the coordinator cannot be asked.
pub async fn run(context: &Context, _args: Args) -> Result<ExitCode, Error> {
    let workers = all(context.client().await?).await?;
    if context.output.json {
        context.output.print_document(&Document {
            workers: workers.iter().map(document::Worker::from).collect(),
        })?;
    } else if workers.is_empty() {
        context
            .output
            .remark("No worker has ever connected. `qctl up` starts one on this machine.");
    } else {
        let view = context.output.view();
        context.output.print(&worker::list(&workers, &view))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// All workers, by name.
pub(super) async fn all(client: &Client) -> Result<Vec<v1::Worker>, Error> {
    let mut workers = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListWorkersRequest {
            page_size: 1_000,
            page_token,
        };
        let page = client
            .queue()
            .list_workers(unary(request))
            .await?
            .into_inner();
        workers.extend(page.workers);
        page_token = page.next_page_token;
        if page_token.is_empty() || workers.len() >= MAX_WORKERS {
            return Ok(workers);
        }
    }
}
