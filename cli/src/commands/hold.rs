//! `qctl hold`: keeps waiting jobs from starting.

use std::process::ExitCode;

use qctl_proto::v1;

use super::{carried, on_each};
use crate::args::Jobs;
use crate::context::{Context, request_id, unary};
use crate::error::Error;

/// Arguments of `qctl hold`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Jobs to act on.
    #[command(flatten)]
    pub jobs: Jobs,
}

/// Runs the command.
///
/// # Errors
/// When there is no such job, or it runs or has ended.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    on_each(context, &args.jobs.jobs, async |client, id| {
        let request = v1::HoldJobRequest {
            request_id: request_id(),
            id,
        };
        let response = client.jobs().hold_job(unary(request)).await?.into_inner();
        Ok((
            carried(response.job)?,
            format!("Job {id} is held; let it go on with: qctl release {id}\n"),
        ))
    })
    .await
}
