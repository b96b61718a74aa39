//! `qctl checkpoints`: what a job has published, newest first.

use std::process::ExitCode;

use qctl_proto::v1;
use serde::Serialize;

use crate::args::values;
use crate::context::{Context, unary};
use crate::error::Error;
use crate::output::{checkpoint, document};

/// Arguments of `qctl checkpoints`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Job number
    #[arg(value_name = "JOB", value_parser = values::job)]
    pub job: i64,
    /// At most so many checkpoints
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50, value_parser = values::whole::<i32>(1..=1_000))]
    pub limit: i32,
    /// Go on where an earlier list ended
    #[arg(long, value_name = "TOKEN")]
    pub page_token: Option<String>,
}

#[derive(Serialize)]
struct Document<'a> {
    checkpoints: Vec<document::Checkpoint<'a>>,
    next_page_token: &'a str,
}

/// Runs the command.
///
/// # Errors
/// When there is no such job.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let request = v1::ListCheckpointsRequest {
        job_id: args.job,
        page_size: args.limit,
        page_token: args.page_token.unwrap_or_default(),
    };
    let client = context.client().await?;
    let page = client
        .jobs()
        .list_checkpoints(unary(request))
        .await?
        .into_inner();
    if context.output.json {
        let checkpoints = page.checkpoints.iter().map(document::Checkpoint::from);
        context.output.print_document(&Document {
            checkpoints: checkpoints.collect(),
            next_page_token: &page.next_page_token,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    if page.checkpoints.is_empty() {
        context
            .output
            .remark(&format!("Job {} has published no checkpoints.", args.job));
        return Ok(ExitCode::SUCCESS);
    }
    let view = context.output.view();
    context
        .output
        .print(&checkpoint::list(&page.checkpoints, &view))?;
    if !page.next_page_token.is_empty() {
        context.output.remark(&format!(
            "more: go on with: --page-token {}",
            page.next_page_token
        ));
    }
    Ok(ExitCode::SUCCESS)
}
