//! `qctl why`: why a job is not running, a sentence a reason.

use std::process::ExitCode;

use qctl_proto::v1;
use serde::Serialize;

use super::carried;
use crate::args::values;
use crate::context::{Context, unary};
use crate::error::Error;
use crate::output::{document, text};

/// Arguments of `qctl why`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Job number
    #[arg(value_name = "JOB", value_parser = values::job)]
    pub job: i64,
}

#[derive(Serialize)]
struct Document<'a> {
    id: i64,
    state: &'static str,
    sentences: &'a [String],
}

/// Runs the command.
///
/// # Errors
/// When there is no such job.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let request = v1::ExplainJobRequest { id: args.job };
    let client = context.client().await?;
    let response = client
        .jobs()
        .explain_job(unary(request))
        .await?
        .into_inner();
    let job = carried(response.job)?;
    if context.output.json {
        context.output.print_document(&Document {
            id: job.id,
            state: document::job_state(job.state()),
            sentences: &response.sentences,
        })?;
    } else {
        let lines: Vec<String> = response
            .sentences
            .iter()
            .map(|sentence| format!("{}\n", text::printable(sentence)))
            .collect();
        context.output.print(&lines.concat())?;
    }
    Ok(ExitCode::SUCCESS)
}
