//! `qctl list`: lists jobs, newest first.

use std::process::ExitCode;

use chrono::Utc;
use clap::ValueEnum;
use qctl_proto::v1;
use v1::job::State;

use crate::args::values;
use crate::context::{Context, unary};
use crate::error::{Error, Problem};
use crate::output::{document, job, text, time};

/// Most jobs that one page can hold.
const MAX_PAGE: i32 = 1_000;

/// Arguments of `qctl list`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only jobs in these states; active and ended stand for several
    #[arg(
        long = "state",
        short = 's',
        value_name = "STATE",
        value_delimiter = ','
    )]
    pub states: Vec<StateFilter>,
    /// Only this tracker's jobs; INTG-88 finds INTG-088
    #[arg(long, value_name = "ID")]
    pub tracker: Option<String>,
    /// Only jobs with this label; can be given several times
    #[arg(long = "label", value_name = "KEY[=VALUE]", value_parser = values::label)]
    pub labels: Vec<(String, String)>,
    /// Only jobs that run or last ran on this worker
    #[arg(long, value_name = "NAME")]
    pub worker: Option<String>,
    /// Only jobs submitted since: an age such as 2d, a day, or a time
    #[arg(long, value_name = "WHEN")]
    pub since: Option<String>,
    /// Only jobs submitted before: an age such as 2d, a day, or a time
    #[arg(long, value_name = "WHEN")]
    pub until: Option<String>,
    /// At most so many jobs
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50, value_parser = values::whole::<i32>(1..=i64::from(MAX_PAGE)))]
    pub limit: i32,
    /// Go on where an earlier list ended
    #[arg(long, value_name = "TOKEN")]
    pub page_token: Option<String>,
    /// Only these jobs
    #[arg(value_name = "JOB", value_parser = values::job)]
    pub jobs: Vec<i64>,
}

/// A state, or several by one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StateFilter {
    /// Waits for a dependency or a time
    Waiting,
    /// A person must look or release it
    Held,
    /// Waits its turn
    Queued,
    /// Runs
    Running,
    /// Ended well
    Succeeded,
    /// Ended badly
    Failed,
    /// Ended by a person's wish
    Cancelled,
    /// Has not ended
    Active,
    /// Has ended
    Ended,
}

impl StateFilter {
    fn states(self) -> &'static [State] {
        match self {
            Self::Waiting => &[State::Waiting],
            Self::Held => &[State::Held],
            Self::Queued => &[State::Queued],
            Self::Running => &[State::Running],
            Self::Succeeded => &[State::Succeeded],
            Self::Failed => &[State::Failed],
            Self::Cancelled => &[State::Cancelled],
            Self::Active => &[State::Waiting, State::Held, State::Queued, State::Running],
            Self::Ended => &[State::Succeeded, State::Failed, State::Cancelled],
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When a filter cannot be understood.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let request = v1::ListJobsRequest {
        filter: Some(filter(context, &args)?),
        page_size: args.limit,
        page_token: args.page_token.clone().unwrap_or_default(),
    };
    let client = context.client().await?;
    let page = client.jobs().list_jobs(unary(request)).await?.into_inner();
    if context.output.json {
        context
            .output
            .print_document(&document::Jobs::from(&page))?;
        return Ok(ExitCode::SUCCESS);
    }
    if page.jobs.is_empty() {
        context.output.remark("No jobs.");
        return Ok(ExitCode::SUCCESS);
    }
    context
        .output
        .print(&job::list(&page.jobs, &context.output.view()))?;
    if !page.next_page_token.is_empty() {
        let all: i64 = page.counts.iter().map(|count| count.count).sum();
        context.output.remark(&format!(
            "{} of {}; go on with: --page-token {}",
            page.jobs.len(),
            text::counted(all, "job"),
            page.next_page_token
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn filter(context: &Context, args: &Args) -> Result<v1::JobFilter, Error> {
    let moment = |option: &str, text: &Option<String>| -> Result<_, Error> {
        let Some(text) = text else { return Ok(None) };
        values::moment(text, Utc::now(), context.output.zone)
            .map(|at| Some(time::timestamp(at)))
            .map_err(|expected| {
                Problem::usage(format!("invalid value `{text}` for {option}: {expected}")).into()
            })
    };
    let mut states: Vec<i32> = args
        .states
        .iter()
        .flat_map(|filter| filter.states())
        .map(|state| i32::from(*state))
        .collect();
    states.sort_unstable();
    states.dedup();
    Ok(v1::JobFilter {
        states,
        tracker: args.tracker.clone().unwrap_or_default(),
        labels: args.labels.iter().cloned().collect(),
        worker: args.worker.clone().unwrap_or_default(),
        created_after: moment("--since", &args.since)?,
        created_before: moment("--until", &args.until)?,
        ids: args.jobs.clone(),
    })
}
