//! `qctl cleanup`: deletes all jobs that ended long ago.

use std::io::{BufRead as _, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use qctl_proto::v1;
use serde::Serialize;

use crate::args::values;
use crate::context::{Client, Context, request_id, unary};
use crate::error::{Error, Problem};
use crate::exit;
use crate::output::{text, time};

/// Arguments of `qctl cleanup`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Delete jobs that ended at least so many days ago; 0 deletes every ended job
    #[arg(value_name = "DAYS", default_value_t = 30, value_parser = values::whole::<u32>(0..=36_500))]
    pub days: u32,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
    /// Only count what would be deleted
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Serialize)]
struct Document {
    deleted: i64,
    log_bytes: i64,
    dry_run: bool,
}

/// Runs the command.
///
/// # Errors
/// When nobody can be asked, or the coordinator refuses.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let client = context.client().await?;
    let age = match args.days {
        0 => "every ended job".to_owned(),
        days => format!(
            "every job that ended at least {} ago",
            text::counted(days.into(), "day")
        ),
    };
    if !args.yes && !args.dry_run {
        let counted = cleanup(client, args.days, true).await?;
        if counted.deleted > 0 && !confirmed(context, &age, &counted)? {
            context.output.remark("Nothing was deleted.");
            return Ok(ExitCode::from(exit::ERROR));
        }
    }
    let response = cleanup(client, args.days, args.dry_run).await?;
    if context.output.json {
        context.output.print_document(&Document {
            deleted: response.deleted,
            log_bytes: response.log_bytes,
            dry_run: args.dry_run,
        })?;
    } else {
        let verb = if args.dry_run {
            "Would delete"
        } else {
            "Deleted"
        };
        context.output.print(&format!(
            "{verb} {} and {} of logs\n",
            text::counted(response.deleted, "job"),
            text::bytes(response.log_bytes)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn cleanup(
    client: &Client,
    days: u32,
    dry_run: bool,
) -> Result<v1::CleanupJobsResponse, Error> {
    let older_than = Duration::from_secs(u64::from(days) * 86_400);
    let request = v1::CleanupJobsRequest {
        request_id: request_id(),
        older_than: Some(time::wire_span(older_than)),
        dry_run,
    };
    let response = client.jobs().cleanup_jobs(unary(request)).await?;
    Ok(response.into_inner())
}

fn confirmed(
    context: &Context,
    age: &str,
    counted: &v1::CleanupJobsResponse,
) -> Result<bool, Error> {
    if context.output.json || !std::io::stdin().is_terminal() {
        return Err(Problem::usage(format!(
            "this would delete {}, and there is no terminal to ask on",
            text::counted(counted.deleted, "job")
        ))
        .hint("say --yes to delete, or --dry-run to count")
        .into());
    }
    context.output.print_error(&format!(
        "Delete {age} ({}, {} of logs)? [y/N] ",
        text::counted(counted.deleted, "job"),
        text::bytes(counted.log_bytes)
    ));
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(Error::file("read", "standard input"))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
