//! `qctl workers`: lists workers and what they run.

use std::process::ExitCode;

use qctl_proto::v1;
use serde::Serialize;
use tonic::Code;

use super::alarms;
use crate::context::{Client, Context, unary};
use crate::error::Error;
use crate::output::{alarm, document, measures, text, worker};

/// Most workers that are listed: as many as a coordinator is designed for.
const MAX_WORKERS: usize = 1_000;

/// Most machines of which a line tells what they use.
const MAX_MACHINES: usize = 20;

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
        let client = context.client().await?;
        let mut lines = worker::list(&workers, &view);
        let mut heading = "\n";
        for worker in connected(&workers) {
            let used = machine(client, &worker.name).await?;
            let line = measures::machine(&used, &view);
            if !line.is_empty() {
                lines.push_str(&format!(
                    "{heading}{}: {line}\n",
                    text::printable(&worker.name)
                ));
                heading = "";
            }
        }
        let unusual = alarms::known(client, None).await?;
        let unusual = alarm::of_machines(&unusual, &view);
        if !unusual.is_empty() {
            lines.push_str(&format!("\n{unusual}"));
        }
        context.output.print(&lines)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Workers whose machines are worth a line.
fn connected(workers: &[v1::Worker]) -> impl Iterator<Item = &v1::Worker> {
    use v1::worker::State;
    let connected = |worker: &&v1::Worker| {
        matches!(
            worker.state(),
            State::Online | State::Paused | State::Draining
        )
    };
    workers.iter().filter(connected).take(MAX_MACHINES)
}

/// What a machine used in the last hour; nothing from a coordinator that does not measure.
async fn machine(client: &Client, worker: &str) -> Result<v1::ReadMachineMeasuresResponse, Error> {
    let request = v1::ReadMachineMeasuresRequest {
        worker: worker.to_owned(),
        points: measures::POINTS,
        minutes: 60,
    };
    match client
        .measures()
        .read_machine_measures(unary(request))
        .await
    {
        Ok(response) => Ok(response.into_inner()),
        Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => {
            Ok(v1::ReadMachineMeasuresResponse::default())
        }
        Err(status) => Err(status.into()),
    }
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
