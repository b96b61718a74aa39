//! `qctl alarms`: what is unusual about jobs and machines, and what was.

use std::process::ExitCode;

use qctl_proto::v1;
use serde::Serialize;
use tonic::Code;

use crate::context::{Client, Context, unary};
use crate::error::Error;
use crate::output::alarm;

/// Arguments of `qctl alarms`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only those of this job, or of this worker's machine
    #[arg(value_name = "JOB|WORKER")]
    pub of: Option<String>,
    /// Those that are over as well
    #[arg(long)]
    pub all: bool,
    /// How often what was an alarm in the last 30 days
    #[arg(long, conflicts_with_all = ["of", "all", "page_token"])]
    pub statistics: bool,
    /// At most so many
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(i32).range(1..=1_000))]
    pub limit: i32,
    /// Go on where an earlier list ended
    #[arg(long, value_name = "TOKEN")]
    pub page_token: Option<String>,
}

#[derive(Serialize)]
struct Document<'a> {
    alarms: Vec<alarm::Alarm<'a>>,
    statistics: Vec<alarm::Count>,
    next_page_token: &'a str,
}

/// Runs the command.
///
/// # Errors
/// When there is no such job or worker, or the coordinator cannot be asked.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let job = args.of.as_deref().and_then(|of| of.parse::<i64>().ok());
    let request = v1::ListAlarmsRequest {
        job_id: job.unwrap_or(0),
        worker: match job {
            Some(_) => String::new(),
            None => args.of.clone().unwrap_or_default(),
        },
        all: args.all,
        page_size: args.limit,
        page_token: args.page_token.unwrap_or_default(),
    };
    let client = context.client().await?;
    let page = client
        .alarms()
        .list_alarms(unary(request))
        .await?
        .into_inner();
    if context.output.json {
        context.output.print_document(&Document {
            alarms: page.alarms.iter().map(alarm::Alarm::from).collect(),
            statistics: page.counts.iter().map(alarm::Count::from).collect(),
            next_page_token: &page.next_page_token,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let view = context.output.view();
    if args.statistics {
        if page.counts.is_empty() {
            context.output.remark("There was no alarm in 30 days.");
        } else {
            context.output.print(&alarm::counts(&page.counts, &view))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if page.alarms.is_empty() {
        context.output.remark(match args.all {
            true => "There was no alarm.",
            false => "Nothing is unusual now; `qctl alarms --all` shows what was.",
        });
        return Ok(ExitCode::SUCCESS);
    }
    context.output.print(&alarm::list(&page.alarms, &view))?;
    if !page.next_page_token.is_empty() {
        context.output.remark(&format!(
            "more: go on with: --page-token {}",
            page.next_page_token
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// All alarms of a job, or those of everything that last now; none from a coordinator that knows
/// none.
pub(super) async fn known(client: &Client, job: Option<i64>) -> Result<Vec<v1::Alarm>, Error> {
    let request = v1::ListAlarmsRequest {
        job_id: job.unwrap_or(0),
        all: job.is_some(),
        page_size: 1_000,
        ..v1::ListAlarmsRequest::default()
    };
    match client.alarms().list_alarms(unary(request)).await {
        Ok(page) => Ok(page.into_inner().alarms),
        Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => {
            Ok(Vec::new())
        }
        Err(status) => Err(status.into()),
    }
}
