//! `qctl errors`: failures in groups of the same error.

use std::process::ExitCode;

use chrono::Utc;
use qctl_proto::v1;
use serde::Serialize;

use crate::args::values;
use crate::context::{Context, unary};
use crate::error::{Error, Problem};
use crate::output::document;
use crate::output::table::{Cell, Column, Table};
use crate::output::{View, time};

/// Jobs of a group that are named in a table.
const NAMED: usize = 5;

/// Arguments of `qctl errors`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only failures since: an age such as 2d, a day, or a time [default: 30 days]
    #[arg(long, value_name = "WHEN")]
    pub since: Option<String>,
    /// At most so many groups
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50, value_parser = values::whole::<i32>(1..=1_000))]
    pub limit: i32,
    /// Go on where an earlier list ended
    #[arg(long, value_name = "TOKEN")]
    pub page_token: Option<String>,
}

#[derive(Serialize)]
struct Document<'a> {
    errors: Vec<Group<'a>>,
    next_page_token: &'a str,
}

#[derive(Serialize)]
struct Group<'a> {
    signature: &'a str,
    exception: &'a str,
    example: &'a str,
    count: i64,
    first_seen: Option<String>,
    last_seen: Option<String>,
    jobs: &'a [i64],
    job_count: i64,
}

/// Runs the command.
///
/// # Errors
/// When the time cannot be understood, or the coordinator cannot be asked.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let since = match &args.since {
        None => None,
        Some(text) => {
            let at = values::moment(text, Utc::now(), context.output.zone).map_err(|expected| {
                Problem::usage(format!("invalid value `{text}` for --since: {expected}"))
            })?;
            Some(time::timestamp(at))
        }
    };
    let request = v1::ListErrorsRequest {
        since,
        page_size: args.limit,
        page_token: args.page_token.unwrap_or_default(),
    };
    let client = context.client().await?;
    let page = client
        .notices()
        .list_errors(unary(request))
        .await?
        .into_inner();
    if context.output.json {
        context.output.print_document(&Document {
            errors: page.groups.iter().map(Group::from).collect(),
            next_page_token: &page.next_page_token,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    if page.groups.is_empty() {
        context.output.remark("No job failed.");
        return Ok(ExitCode::SUCCESS);
    }
    let view = context.output.view();
    context.output.print(&table(&page.groups, &view))?;
    if !page.next_page_token.is_empty() {
        context.output.remark(&format!(
            "more: go on with: --page-token {}",
            page.next_page_token
        ));
    }
    Ok(ExitCode::SUCCESS)
}

impl<'a> From<&'a v1::ErrorGroup> for Group<'a> {
    fn from(group: &'a v1::ErrorGroup) -> Self {
        Self {
            signature: &group.signature,
            exception: &group.exception,
            example: &group.example,
            count: group.count,
            first_seen: document::moment(group.first_seen.as_ref()),
            last_seen: document::moment(group.last_seen.as_ref()),
            jobs: &group.job_ids,
            job_count: group.job_count,
        }
    }
}

fn table(groups: &[v1::ErrorGroup], view: &View) -> String {
    let mut table = Table::new(&[
        Column::right("FAILED"),
        Column::left("FIRST"),
        Column::left("LAST"),
        Column::left("JOBS").shrinking(8),
        Column::left("ERROR").shrinking(20),
    ]);
    let ago = |at: Option<&prost_types::Timestamp>| {
        time::instant(at)
            .map(|at| time::ago(at, view.now, view.zone))
            .unwrap_or_default()
    };
    for group in groups {
        let mut jobs: Vec<String> = group
            .job_ids
            .iter()
            .take(NAMED)
            .map(ToString::to_string)
            .collect();
        if group.job_count > jobs.len() as i64 {
            jobs.push("…".to_owned());
        }
        table.row(vec![
            Cell::from(&group.count.to_string()),
            Cell::from(&ago(group.first_seen.as_ref())),
            Cell::from(&ago(group.last_seen.as_ref())),
            Cell::from(&jobs.join(" ")),
            Cell::from(&group.signature),
        ]);
    }
    table.render(view)
}
