//! `qctl history`: what happened, to one job or to all, oldest first.

use std::process::ExitCode;

use qctl_proto::v1;
use serde::Serialize;

use crate::args::values;
use crate::context::{Context, unary};
use crate::error::Error;
use crate::output::{document, job};

/// Arguments of `qctl history`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this job's events
    #[arg(value_name = "JOB", value_parser = values::job)]
    pub job: Option<i64>,
    /// Only events with a higher number
    #[arg(long, value_name = "EVENT", default_value_t = 0, value_parser = values::whole::<i64>(0..))]
    pub after: i64,
    /// At most so many events
    #[arg(long, short = 'n', value_name = "N", default_value_t = 200, value_parser = values::whole::<i32>(1..=1_000))]
    pub limit: i32,
    /// Go on where an earlier list ended
    #[arg(long, value_name = "TOKEN")]
    pub page_token: Option<String>,
}

#[derive(Serialize)]
struct Document<'a> {
    events: Vec<document::Event<'a>>,
    next_page_token: &'a str,
}

/// Runs the command.
///
/// # Errors
/// When there is no such job.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let request = v1::ListEventsRequest {
        job_id: args.job.unwrap_or(0),
        after: args.after,
        page_size: args.limit,
        page_token: args.page_token.unwrap_or_default(),
    };
    let client = context.client().await?;
    let page = client
        .jobs()
        .list_events(unary(request))
        .await?
        .into_inner();
    if context.output.json {
        context.output.print_document(&Document {
            events: page.events.iter().map(document::Event::from).collect(),
            next_page_token: &page.next_page_token,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    if page.events.is_empty() {
        context.output.remark("Nothing happened.");
        return Ok(ExitCode::SUCCESS);
    }
    let view = context.output.view();
    context
        .output
        .print(&job::history(&page.events, args.job.is_none(), &view))?;
    if !page.next_page_token.is_empty() {
        context.output.remark(&format!(
            "more: go on with: --page-token {}",
            page.next_page_token
        ));
    }
    Ok(ExitCode::SUCCESS)
}
