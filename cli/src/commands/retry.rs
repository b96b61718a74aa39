//! `qctl retry`: submits ended jobs again, as new jobs that name the old ones.

use std::process::ExitCode;

use qctl_proto::v1;

use super::{carried, on_each};
use crate::args::Jobs;
use crate::context::{Context, request_id, unary};
use crate::error::Error;
use crate::output::job;

/// Arguments of `qctl retry`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Jobs to submit again.
    #[command(flatten)]
    pub jobs: Jobs,
}

/// Runs the command.
///
/// # Errors
/// When there is no such job, or it has not ended.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let view = context.output.view();
    on_each(context, &args.jobs.jobs, async |client, id| {
        let request = v1::RetryJobRequest {
            request_id: request_id(),
            id,
        };
        let response = client.jobs().retry_job(unary(request)).await?.into_inner();
        let job = carried(response.job)?;
        let sentence = job::submitted(&job, false, &view);
        Ok((job, sentence))
    })
    .await
}
