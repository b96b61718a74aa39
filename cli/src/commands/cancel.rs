//! `qctl cancel`: cancels jobs; a running one's whole process tree is stopped.

use std::process::ExitCode;
use std::time::Duration;

use qctl_proto::v1;

use super::{carried, on_each};
use crate::args::{Jobs, values};
use crate::context::{Context, request_id, unary};
use crate::error::Error;
use crate::output::time;

/// Arguments of `qctl cancel`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Jobs to cancel.
    #[command(flatten)]
    pub jobs: Jobs,
    /// Time between the stop signal and force [default: the job's own, 10s]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub grace: Option<Duration>,
}

/// Runs the command.
///
/// # Errors
/// When there is no such job, or it has ended.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    on_each(context, &args.jobs.jobs, async |client, id| {
        let request = v1::CancelJobRequest {
            request_id: request_id(),
            id,
            grace: args.grace.map(time::wire_span),
        };
        let response = client.jobs().cancel_job(unary(request)).await?.into_inner();
        let job = carried(response.job)?;
        let sentence = if job.state() == v1::job::State::Running {
            format!("Job {id} is being stopped\n")
        } else {
            format!("Job {id} is cancelled\n")
        };
        Ok((job, sentence))
    })
    .await
}
