//! `qctl retry`: submits ended jobs again, as new jobs that name the old ones.

use std::process::ExitCode;

use qctl_proto::v1;

use super::{carried, on_each};
use crate::args::{Jobs, values};
use crate::context::{Context, request_id, unary};
use crate::error::{Error, Problem};
use crate::output::job;

/// Arguments of `qctl retry`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Jobs to submit again.
    #[command(flatten)]
    pub jobs: Jobs,
    /// Resume from a checkpoint of the job: its newest, or the one named, such as
    /// --from-checkpoint=1.7; without this, begin afresh
    #[arg(long, value_name = "CHECKPOINT", num_args = 0..=1, require_equals = true, value_parser = values::checkpoint)]
    pub from_checkpoint: Option<Option<values::Checkpoint>>,
}

/// Runs the command.
///
/// # Errors
/// When there is no such job or checkpoint, or the job has not ended.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    if let (Some(Some(_)), [_, _, ..]) = (args.from_checkpoint, args.jobs.jobs.as_slice()) {
        return Err(
            Problem::usage("a checkpoint belongs to one job, and several were named")
                .hint("--from-checkpoint alone takes the newest of each")
                .into(),
        );
    }
    let from_checkpoint = args.from_checkpoint.map(|named| {
        let named = named.unwrap_or(values::Checkpoint {
            attempt: 0,
            number: 0,
        });
        v1::FromCheckpoint {
            attempt: named.attempt,
            number: named.number,
        }
    });
    let view = context.output.view();
    on_each(context, &args.jobs.jobs, async |client, id| {
        let request = v1::RetryJobRequest {
            request_id: request_id(),
            id,
            from_checkpoint,
        };
        let response = client.jobs().retry_job(unary(request)).await?.into_inner();
        let job = carried(response.job)?;
        let sentence = job::submitted(&job, false, &view);
        Ok((job, sentence))
    })
    .await
}
