//! `qctl logs`: prints a job's output, and follows it while it grows.
//!
//! Who follows a job to its end has waited for it, so the exit code is the job's own then.

use std::process::ExitCode;

use chrono::Utc;
use clap::ValueEnum;
use qctl_proto::error::Reason;
use qctl_proto::v1;
use serde::Serialize;

use crate::args::values;
use crate::context::{Client, Context, unary};
use crate::error::{Error, Problem};
use crate::exit;
use crate::output::lines::Collapser;
use crate::output::{document, text, time};
use crate::reconnect::Persistent;

/// Arguments of `qctl logs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Job number, or one attempt of it such as 42.1
    #[arg(value_name = "JOB", value_parser = values::attempt)]
    pub job: values::Attempt,
    /// Go on until the job has ended, through later attempts and restarts of the coordinator;
    /// exits with the job's own code
    #[arg(long, short = 'f')]
    pub follow: bool,
    /// Only this attempt [default: the latest; with --follow, the later ones too]
    #[arg(long, value_name = "N", value_parser = values::whole::<i32>(1..))]
    pub attempt: Option<i32>,
    /// Only this output stream
    #[arg(long, value_name = "STREAM", default_value = "both")]
    pub stream: Stream,
    /// Only output since: an age such as 10m, a day, or a time
    #[arg(long, value_name = "WHEN")]
    pub since: Option<String>,
    /// Only the last lines
    #[arg(long, short = 'n', value_name = "LINES", value_parser = values::whole::<i32>(0..))]
    pub tail: Option<i32>,
    /// Print the bytes as the job wrote them, with every carriage-return frame
    #[arg(long)]
    pub raw: bool,
}

/// Which of a job's outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Stream {
    /// Both, merged as they were written
    #[default]
    Both,
    /// Standard output
    #[value(alias = "out")]
    Stdout,
    /// Standard error
    #[value(alias = "err")]
    Stderr,
}

/// A piece of output, for programs.
#[derive(Serialize)]
struct Document<'a> {
    job: i64,
    attempt: i32,
    offset: i64,
    stream: &'static str,
    time: Option<String>,
    /// Bytes that are no UTF-8 are replaced; `--raw` keeps them.
    text: &'a str,
    /// Bytes that are missing before this piece, and how many line ends were among them.
    hole_bytes: i64,
    hole_lines: i64,
    hole_cause: &'static str,
}

/// Runs the command.
///
/// # Errors
/// When there is no such job or attempt.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let attempt = match (args.job.number, args.attempt) {
        (Some(one), Some(other)) if one != other => {
            return Err(Problem::usage(format!(
                "{}.{one} and --attempt {other} name two attempts",
                args.job.job
            ))
            .into());
        }
        (one, other) => one.or(other),
    };
    if args.raw && context.output.json {
        return Err(Problem::usage("--raw prints bytes and --json documents: choose one").into());
    }
    let since = match &args.since {
        None => None,
        Some(text) => Some(
            values::moment(text, Utc::now(), context.output.zone).map_err(|expected| {
                Problem::usage(format!("invalid value `{text}` for --since: {expected}"))
            })?,
        ),
    };
    let client = context.client().await?.clone();
    let mut reading = Reading {
        context,
        request: v1::ReadLogRequest {
            job_id: args.job.job,
            attempt: attempt.unwrap_or(0),
            offset: 0,
            stream: match args.stream {
                Stream::Both => v1::LogStream::Unspecified,
                Stream::Stdout => v1::LogStream::Stdout,
                Stream::Stderr => v1::LogStream::Stderr,
            }
            .into(),
            since: since.map(time::timestamp),
            tail_lines: args.tail,
            follow: args.follow,
        },
        raw: args.raw,
        position: None,
        over: 0,
        job: None,
        lines: Collapser::default(),
        connection: Persistent::new(context),
    };
    tokio::select! {
        result = reading.run(client) => result?,
        _ = tokio::signal::ctrl_c(), if args.follow => {
            context.output.remark(&format!(
                "\nThe job goes on. Come back with: qctl logs -f {}",
                args.job.job
            ));
            return Ok(ExitCode::from(exit::INTERRUPTED));
        }
    }
    Ok(ExitCode::from(
        reading.job.map_or(exit::OK, |job| exit::of_job(&job)),
    ))
}

/// The state of one reading, which outlives the connections it is made over.
struct Reading<'a> {
    context: &'a Context,
    /// What the user asked for, from its beginning.
    request: v1::ReadLogRequest,
    raw: bool,
    /// Attempt and offset of the next byte; absent until the first piece came.
    position: Option<(i32, i64)>,
    /// The latest attempt of which nothing more will come; 0 for none.
    over: i32,
    /// The job after its end, when it was followed there.
    job: Option<v1::Job>,
    lines: Collapser,
    connection: Persistent<'a>,
}

impl Reading<'_> {
    async fn run(&mut self, client: Client) -> Result<(), Error> {
        let mut client = client;
        loop {
            match self.step(&client).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(Error::Refused(fault))
                    if fault.reason == Reason::AttemptNotFound && self.request.attempt == 0 =>
                {
                    // A job that has not started has no output; that is no mistake.
                    let id = self.request.job_id;
                    self.context
                        .output
                        .remark(&format!("Job {id} has not started; see: qctl why {id}"));
                    break;
                }
                Err(error) => client = self.connection.recover(error).await?,
            }
        }
        let mut rest = Vec::new();
        self.lines.finish(&mut rest);
        self.context.output.print_bytes(&rest)
    }

    /// Reads one stream to its end. True when another one must be read.
    async fn step(&mut self, client: &Client) -> Result<bool, Error> {
        let request = self.next_request(client).await?;
        let asked = request.attempt;
        let mut pieces = client.logs().read_log(request).await?.into_inner();
        while let Some(piece) = pieces.message().await? {
            self.connection.answered();
            self.take(&piece)?;
        }
        let one_attempt = self.request.attempt != 0;
        if !self.request.follow || (one_attempt && self.over >= asked) {
            return Ok(false);
        }
        let job = self.job(client).await?;
        let has_ended = job.ended_at.is_some();
        if has_ended && (one_attempt || asked == 0 || asked >= job.attempt) {
            self.job = Some(job).filter(|_| !one_attempt);
            return Ok(false);
        }
        if asked != 0 && self.over >= asked {
            return Ok(true);
        }
        // Neither the job nor the attempt is over, so it is the coordinator that stops.
        Err(tonic::Status::unavailable("the coordinator is stopping").into())
    }

    /// The request whose answer begins at the first byte that has not come yet.
    async fn next_request(&self, client: &Client) -> Result<v1::ReadLogRequest, Error> {
        let Some((attempt, offset)) = self.position else {
            return Ok(self.request);
        };
        let rest = v1::ReadLogRequest {
            tail_lines: None,
            since: None,
            ..self.request
        };
        if self.over < attempt {
            return Ok(v1::ReadLogRequest {
                attempt,
                offset,
                ..rest
            });
        }
        let latest = self.job(client).await?.attempt;
        Ok(v1::ReadLogRequest {
            attempt: if latest > attempt { attempt + 1 } else { 0 },
            ..rest
        })
    }

    async fn job(&self, client: &Client) -> Result<v1::Job, Error> {
        let request = v1::GetJobRequest {
            id: self.request.job_id,
        };
        let response = client.jobs().get_job(unary(request)).await?.into_inner();
        super::carried(response.job)
    }

    fn take(&mut self, piece: &v1::ReadLogResponse) -> Result<(), Error> {
        let end = piece.offset + i64::try_from(piece.data.len()).unwrap_or(i64::MAX);
        if let Some((attempt, next)) = self.position {
            let known = (piece.attempt, end) <= (attempt, next) && !piece.data.is_empty();
            if known || piece.attempt <= self.over {
                return Ok(());
            }
            if piece.attempt > attempt {
                self.begin_attempt(piece.attempt)?;
            }
        }
        self.position = self.position.max(Some((piece.attempt, end)));
        self.print(piece)?;
        if piece.attempt_complete || piece.incomplete {
            self.over = piece.attempt;
        }
        if piece.incomplete {
            self.context.output.remark(&format!(
                "A part of the output of attempt {} has not arrived: its worker is away.",
                piece.attempt
            ));
        }
        Ok(())
    }

    /// Ends a line that goes on in output which does not follow.
    fn end_line(&mut self) -> Result<(), Error> {
        let mut rest = Vec::new();
        self.lines.finish(&mut rest);
        if !rest.is_empty() {
            rest.push(b'\n');
        }
        self.context.output.print_bytes(&rest)
    }

    fn begin_attempt(&mut self, number: i32) -> Result<(), Error> {
        self.end_line()?;
        self.context.output.remark(&format!("--- attempt {number}"));
        Ok(())
    }

    fn print(&mut self, piece: &v1::ReadLogResponse) -> Result<(), Error> {
        let output = self.context.output;
        if output.json {
            return self.print_documents(piece);
        }
        if let Some(gap) = text::gap(piece) {
            self.end_line()?;
            output.remark(&format!("--- {gap}"));
        }
        if self.raw {
            return output.print_bytes(&piece.data);
        }
        let mut lines = Vec::new();
        self.lines.feed(&piece.data, &mut lines);
        output.print_bytes(&lines)
    }

    /// One document a run.
    fn print_documents(&self, piece: &v1::ReadLogResponse) -> Result<(), Error> {
        let mut start = 0;
        let mut hole = (
            piece.hole_bytes,
            piece.hole_lines,
            cause(piece.hole_cause()),
        );
        let whole = [v1::LogRun {
            stream: self.request.stream,
            length: u32::try_from(piece.data.len()).unwrap_or(u32::MAX),
            time: None,
        }];
        let runs = if piece.runs.is_empty() && !piece.data.is_empty() {
            &whole[..]
        } else if piece.runs.is_empty() && piece.hole_bytes > 0 {
            // A gap alone is a document of its own.
            &whole[..]
        } else {
            &piece.runs[..]
        };
        for run in runs {
            let end = piece.data.len().min(start + run.length as usize);
            let (hole_bytes, hole_lines, hole_cause) = std::mem::take(&mut hole);
            let document = Document {
                job: self.request.job_id,
                attempt: piece.attempt,
                offset: piece.offset + i64::try_from(start).unwrap_or(0),
                stream: match run.stream() {
                    v1::LogStream::Unspecified => "both",
                    v1::LogStream::Stdout => "stdout",
                    v1::LogStream::Stderr => "stderr",
                },
                time: document::moment(run.time.as_ref()),
                text: &String::from_utf8_lossy(&piece.data[start..end]),
                hole_bytes,
                hole_lines,
                hole_cause,
            };
            self.context.output.print_document(&document)?;
            start = end;
        }
        Ok(())
    }
}

/// Why output is missing, as documents spell it.
fn cause(cause: v1::HoleCause) -> &'static str {
    match cause {
        v1::HoleCause::Unspecified => "",
        v1::HoleCause::NoRoom => "no_room",
        v1::HoleCause::Limit => "limit",
        v1::HoleCause::Damaged => "damaged",
        v1::HoleCause::Removed => "removed",
    }
}
