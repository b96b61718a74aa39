//! `qctl delete`: deletes ended jobs with their history and logs.

use std::process::ExitCode;

use qctl_proto::v1;
use serde::Serialize;

use crate::args::Jobs;
use crate::context::{Context, request_id, unary};
use crate::error::Error;
use crate::exit;

/// Arguments of `qctl delete`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Jobs to delete.
    #[command(flatten)]
    pub jobs: Jobs,
}

#[derive(Serialize)]
struct Document {
    id: i64,
    deleted: bool,
}

/// Runs the command.
///
/// # Errors
/// When there is no such job, or it has not ended.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let client = context.client().await?;
    let mut code = exit::OK;
    for &id in &args.jobs.jobs {
        let request = v1::DeleteJobRequest {
            request_id: request_id(),
            id,
        };
        let answer = client.jobs().delete_job(unary(request)).await;
        match answer.map_err(Error::from) {
            Ok(_) if context.output.json => {
                context
                    .output
                    .print_document(&Document { id, deleted: true })?;
            }
            Ok(_) => context
                .output
                .print(&format!("Job {id} is deleted, with its history and logs\n"))?,
            Err(error) if args.jobs.jobs.len() == 1 || error.is_outage() => return Err(error),
            Err(error) => {
                crate::tell(&error, context.output);
                if code == exit::OK {
                    code = error.exit_code();
                }
            }
        }
    }
    Ok(ExitCode::from(code))
}
