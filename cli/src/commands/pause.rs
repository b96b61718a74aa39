//! `qctl pause`: freezes running jobs and their clocks.

use std::process::ExitCode;

use qctl_proto::v1;

use super::{carried, on_each};
use crate::args::Jobs;
use crate::context::{Context, request_id, unary};
use crate::error::Error;

/// Arguments of `qctl pause`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Jobs to act on.
    #[command(flatten)]
    pub jobs: Jobs,
}

/// Runs the command.
///
/// # Errors
/// When there is no such job, or it does not run.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    on_each(context, &args.jobs.jobs, async |client, id| {
        let request = v1::PauseJobRequest {
            request_id: request_id(),
            id,
        };
        let response = client.jobs().pause_job(unary(request)).await?.into_inner();
        Ok((
            carried(response.job)?,
            format!("Job {id} is paused; thaw it with: qctl resume {id}\n"),
        ))
    })
    .await
}
