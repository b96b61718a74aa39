//! `qctl show`: everything about one job.

use std::process::ExitCode;

use qctl_proto::error::{Fault, Reason};
use qctl_proto::v1;
use tonic::Code;

use super::{alarms, carried};
use crate::args::values;
use crate::context::{Client, Context, unary};
use crate::error::Error;
use crate::output::{alarm, document, job, measures};

/// Most events that are fetched: a job's budgets bound its attempts, not what people do to it.
const MAX_EVENTS: usize = 10_000;

/// Events that are shown to people; `qctl history` shows all.
const SHOWN_EVENTS: usize = 10;

/// Arguments of `qctl show`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Job number, or one attempt of it such as 42.1
    #[arg(value_name = "JOB", value_parser = values::attempt)]
    pub job: values::Attempt,
}

/// Runs the command.
///
/// # Errors
/// When there is no such job or attempt.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let client = context.client().await?;
    let id = args.job.job;
    let (response, events, used, unusual) = tokio::try_join!(
        get(client, id),
        events(client, id),
        measures(client, id, args.job.number),
        alarms::known(client, Some(id))
    )?;
    let shown = carried(response.job)?;
    let mut attempts = response.attempts;
    if let Some(number) = args.job.number {
        attempts.retain(|attempt| attempt.number == number);
        if attempts.is_empty() {
            return Err(no_attempt(id, number));
        }
    }
    if context.output.json {
        context.output.print_document(&document::JobInFull::new(
            &shown,
            &attempts,
            &events,
            &used,
            &unusual,
            response.as_of,
        ))?;
    } else {
        let latest = &events[events.len().saturating_sub(SHOWN_EVENTS)..];
        let view = context.output.view();
        context.output.print(&job::show(
            &shown,
            &attempts,
            &(measures::attempt(&used, &view) + &alarm::of_job(&unusual, &view)),
            latest,
            &view,
        ))?;
        if latest.len() < events.len() {
            context.output.remark(&format!(
                "{} earlier events: qctl history {id}",
                events.len() - latest.len()
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn no_attempt(id: i64, number: i32) -> Error {
    let fault = Fault::new(
        Reason::AttemptNotFound,
        format!("job {id} has no attempt {number}"),
    )
    .next(format!("qctl show {id}"));
    Error::Refused(Box::new(fault))
}

async fn get(client: &Client, id: i64) -> Result<v1::GetJobResponse, Error> {
    let response = client
        .jobs()
        .get_job(unary(v1::GetJobRequest { id }))
        .await?;
    Ok(response.into_inner())
}

/// What an attempt used, the latest one without a number. Nothing for a job without attempts, and
/// nothing from a coordinator that does not measure.
async fn measures(
    client: &Client,
    job_id: i64,
    number: Option<i32>,
) -> Result<v1::ReadAttemptMeasuresResponse, Error> {
    let request = v1::ReadAttemptMeasuresRequest {
        job_id,
        attempt: number.unwrap_or(0),
        points: measures::POINTS,
    };
    match client
        .measures()
        .read_attempt_measures(unary(request))
        .await
    {
        Ok(response) => Ok(response.into_inner()),
        Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => {
            Ok(v1::ReadAttemptMeasuresResponse::default())
        }
        Err(status) => Err(status.into()),
    }
}

/// A job's events, oldest first.
async fn events(client: &Client, job_id: i64) -> Result<Vec<v1::Event>, Error> {
    let mut events = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListEventsRequest {
            job_id,
            after: 0,
            page_size: 1_000,
            page_token,
        };
        let page = client
            .jobs()
            .list_events(unary(request))
            .await?
            .into_inner();
        events.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() || events.len() >= MAX_EVENTS {
            return Ok(events);
        }
    }
}
