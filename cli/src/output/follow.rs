//! Follow mode: a job's progress and output while it runs.
//!
//! Three streams of events come together in one loop: the job as it changes, its output, and why
//! it is not running. [`model`] decides what each means to a reader; a [`Screen`] shows it, with a
//! moving bar on a terminal and in plain lines elsewhere. Each stream finds its way back by itself
//! when the coordinator was away, the output to the byte.

use std::process::ExitCode;
use std::time::Duration;

use chrono::{DateTime, Utc};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use qctl_proto::error::{Fault, Reason};
use qctl_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::context::{Client, Context, unary};
use crate::error::Error;
use crate::exit;
use crate::output::Output;

mod model;
mod output_lines;
mod quiet_keys;
#[cfg(test)]
mod tests;

use model::{Line, Model, Pace};
use quiet_keys::QuietKeys;

/// Events that may wait for the screen. A screen that is slower than the output slows the reading.
const WAITING_EVENTS: usize = 8;
/// How often the moving lines are drawn.
const BEAT: Duration = Duration::from_millis(100);
/// How often plain lines are considered.
const PLAIN_BEAT: Duration = Duration::from_secs(1);
/// How long a job may be on its way before it is asked why it does not run.
const ASK_AFTER: Duration = Duration::from_millis(250);
/// How often the answer is renewed.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// Follows a job until it has ended; gives the job's own exit code. Ctrl-C leaves the job running
/// and gives 130.
///
/// # Errors
/// When the job does not exist, standard output is closed, or the coordinator refuses.
pub async fn follow(context: &Context, job: i64) -> Result<ExitCode, Error> {
    let client = context.client().await?.clone();
    let (events, mut received) = mpsc::channel(WAITING_EVENTS);
    let (seen, known) = watch::channel(Seen::default());
    let source = Source {
        context,
        job,
        events,
    };
    let mut screen = Screen::open(context.output);
    let result = tokio::select! {
        result = show(&mut received, &mut screen, context.output) => result,
        error = source.watch_job(client.clone(), seen) => Err(error),
        error = source.read_output(client.clone(), known.clone()) => Err(error),
        () = source.ask_why(client, known) => unreachable!("asking goes on for ever"),
        _ = tokio::signal::ctrl_c() => {
            screen.close();
            context.output.remark(&format!(
                "The job goes on. Come back with: qctl logs -f {job}"
            ));
            return Ok(ExitCode::from(exit::INTERRUPTED));
        }
    };
    screen.close();
    let model = result?;
    context
        .output
        .print(&model.closing(&context.output.view()))?;
    let code = model.job().map_or(exit::ERROR, exit::of_job);
    Ok(ExitCode::from(code))
}

/// What the three streams tell.
enum Event {
    Job(Box<v1::Job>),
    Output(v1::ReadLogResponse),
    /// All output of the last attempt was sent.
    OutputComplete,
    Why(String),
    Away(bool),
}

/// Shows events until the job and its output are over.
async fn show(
    events: &mut mpsc::Receiver<Event>,
    screen: &mut Screen,
    output: Output,
) -> Result<Model, Error> {
    let mut model = Model::new(output.colour, Utc::now());
    let mut beats = tokio::time::interval(screen.beat());
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !model.is_over(Utc::now()) {
        tokio::select! {
            event = events.recv() => {
                let Some(event) = event else { break };
                let shown = take(&mut model, event);
                screen.lines(&shown)?;
                screen.draw(&model, Utc::now())?;
            }
            _ = beats.tick() => screen.beat_on(&model, Utc::now())?,
        }
    }
    Ok(model)
}

/// What an event adds to the lines that stay.
fn take(model: &mut Model, event: Event) -> Vec<Line> {
    match event {
        Event::Job(job) => model.job_changed(*job, Utc::now()),
        Event::Output(piece) => model.output(&piece),
        Event::OutputComplete => model.output_complete(),
        Event::Why(sentence) => {
            model.explained(&sentence);
            Vec::new()
        }
        Event::Away(away) => model.set_away(away).into_iter().collect(),
    }
}

/// Where the view is drawn.
enum Screen {
    /// A terminal, whose last lines move.
    Moving {
        bar: ProgressBar,
        output: Output,
        beat: usize,
        keys: Option<QuietKeys>,
    },
    /// A file or pipe: lines that stay.
    Plain { output: Output, pace: Pace },
}

impl Screen {
    fn open(output: Output) -> Self {
        let target = ProgressDrawTarget::stdout();
        if !output.terminal || target.is_hidden() {
            return Self::Plain {
                output,
                pace: Pace::default(),
            };
        }
        let bar = ProgressBar::with_draw_target(None, target);
        // The model writes whole lines; nothing of the library's own template is wanted.
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        Self::Moving {
            bar,
            output,
            beat: 0,
            keys: QuietKeys::begin(),
        }
    }

    fn beat(&self) -> Duration {
        match self {
            Self::Moving { .. } => BEAT,
            Self::Plain { .. } => PLAIN_BEAT,
        }
    }

    /// Prints lines that stay. Elsewhere than on a terminal, remarks go to standard error.
    fn lines(&mut self, lines: &[Line]) -> Result<(), Error> {
        let mut text = String::new();
        for line in lines {
            match (&*self, line) {
                (Self::Plain { output, .. }, Line::Remark(remark)) => {
                    // What came before it is printed before it.
                    output.print(&std::mem::take(&mut text))?;
                    output.remark(remark);
                }
                (_, Line::Output(line) | Line::Remark(line)) => {
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
        match self {
            _ if text.is_empty() => {}
            Self::Moving { bar, .. } => bar.println(text),
            Self::Plain { output, .. } => output.print(&text)?,
        }
        Ok(())
    }

    /// Draws what moves, as it is now.
    fn draw(&mut self, model: &Model, now: DateTime<Utc>) -> Result<(), Error> {
        match self {
            Self::Moving {
                bar, output, beat, ..
            } => {
                let width = columns().or(output.width).unwrap_or(80);
                let frame = model.frame(now, width, *beat).join("\n");
                if bar.message() != frame {
                    bar.set_message(frame);
                }
            }
            Self::Plain { output, pace } => {
                let progress = model
                    .job()
                    .filter(|job| job.state() == v1::job::State::Running)
                    .and_then(|job| job.progress.as_ref());
                if let Some(line) = progress.and_then(|progress| pace.progress(progress, now)) {
                    output.remark(&format!("--- {line}"));
                }
                if let Some(line) = pace.why(model.why(), now) {
                    output.remark(&format!("--- {line}"));
                }
            }
        }
        Ok(())
    }

    fn beat_on(&mut self, model: &Model, now: DateTime<Utc>) -> Result<(), Error> {
        if let Self::Moving { beat, .. } = self {
            *beat += 1;
        }
        self.draw(model, now)
    }

    /// Takes the moving lines away.
    fn close(&mut self) {
        if let Self::Moving { bar, keys, .. } = self {
            bar.finish_and_clear();
            *keys = None;
        }
    }
}

/// The terminal's present width; it may have been resized.
fn columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// What the reading of output must know of the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    attempt: i32,
    pending: bool,
    ended: bool,
}

/// Where events come from.
struct Source<'a> {
    context: &'a Context,
    job: i64,
    events: mpsc::Sender<Event>,
}

impl Source<'_> {
    /// A full queue waits; a closed one means that nobody looks any more, and the caller is about
    /// to be dropped.
    async fn send(&self, event: Event) {
        let _ = self.events.send(event).await;
    }

    /// Tells of the job's changes for ever. Gives the error that waiting cannot mend.
    async fn watch_job(&self, client: Client, seen: watch::Sender<Seen>) -> Error {
        let mut client = client;
        let mut failures = 0;
        loop {
            let error = match self.watch_once(&client, &seen, &mut failures).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            if !error.is_outage() {
                return error;
            }
            client = loop {
                // A coordinator that restarts is often back before anyone notices.
                if failures > 1 {
                    self.send(Event::Away(true)).await;
                }
                match self.reconnect(&mut failures).await {
                    Ok(Some(client)) => break client,
                    Ok(None) => {}
                    Err(error) => return error,
                }
            };
        }
    }

    async fn watch_once(
        &self,
        client: &Client,
        seen: &watch::Sender<Seen>,
        failures: &mut u32,
    ) -> Result<std::convert::Infallible, Error> {
        let request = v1::WatchJobsRequest {
            filter: Some(v1::JobFilter {
                ids: vec![self.job],
                ..Default::default()
            }),
            after: 0,
        };
        let mut changes = client.jobs().watch_jobs(request).await?.into_inner();
        let mut found = false;
        while let Some(change) = changes.message().await? {
            if *failures > 0 {
                *failures = 0;
                self.send(Event::Away(false)).await;
            }
            if let Some(job) = change.job.filter(|job| job.id == self.job) {
                found = true;
                let now = Seen {
                    attempt: job.attempt,
                    pending: model::is_pending(&job),
                    ended: model::has_ended(&job),
                };
                self.send(Event::Job(Box::new(job))).await;
                seen.send_if_modified(|known| std::mem::replace(known, now) != now);
            }
            if change.caught_up && !found {
                return Err(Error::Refused(Box::new(
                    Fault::new(Reason::JobNotFound, format!("there is no job {}", self.job))
                        .next("qctl list"),
                )));
            }
        }
        // A stream that ends by itself is a coordinator that stops.
        Err(tonic::Status::unavailable("the coordinator is stopping").into())
    }

    /// Connects again after a pause. `None` when nobody answers yet.
    async fn reconnect(&self, failures: &mut u32) -> Result<Option<Client>, Error> {
        tokio::time::sleep(model::pause(*failures)).await;
        *failures = failures.saturating_add(1);
        match self.context.connect().await {
            Ok(client) => Ok(Some(client)),
            Err(error) if error.is_outage() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends the output of the attempt that runs and of every later one, then waits for ever.
    /// Gives the error that waiting cannot mend.
    async fn read_output(&self, client: Client, mut known: watch::Receiver<Seen>) -> Error {
        let mut client = client;
        let mut failures = 0;
        let mut attempt = 0;
        loop {
            let waited = known
                .wait_for(|seen| seen.attempt > attempt || seen.ended)
                .await;
            let latest = match waited {
                Ok(seen) => seen.attempt,
                // The watch ended with an error of its own, which is told.
                Err(_) => return std::future::pending().await,
            };
            if latest <= attempt {
                self.send(Event::OutputComplete).await;
                return std::future::pending().await;
            }
            // Who comes late sees what runs now, and then misses nothing.
            attempt = if attempt == 0 { latest } else { attempt + 1 };
            let mut offset = 0;
            while let Err(error) = self
                .read_once(&client, attempt, &mut offset, &mut failures)
                .await
            {
                if !error.is_outage() {
                    return error;
                }
                match self.reconnect(&mut failures).await {
                    Ok(found) => client = found.unwrap_or(client),
                    Err(error) => return error,
                }
            }
        }
    }

    /// Sends an attempt's output from a position to its end.
    async fn read_once(
        &self,
        client: &Client,
        attempt: i32,
        offset: &mut i64,
        failures: &mut u32,
    ) -> Result<(), Error> {
        let request = v1::ReadLogRequest {
            job_id: self.job,
            attempt,
            offset: *offset,
            follow: true,
            ..Default::default()
        };
        let mut pieces = client.logs().read_log(request).await?.into_inner();
        while let Some(piece) = pieces.message().await? {
            *failures = 0;
            *offset = piece.offset + i64::try_from(piece.data.len()).unwrap_or(i64::MAX);
            let is_last = piece.attempt_complete || piece.incomplete;
            self.send(Event::Output(piece)).await;
            if is_last {
                return Ok(());
            }
        }
        Err(tonic::Status::unavailable("the coordinator is stopping").into())
    }

    /// Asks for ever why the job is not running, while it is not.
    async fn ask_why(&self, client: Client, mut known: watch::Receiver<Seen>) {
        loop {
            if known.wait_for(|seen| seen.pending).await.is_err() {
                return std::future::pending().await;
            }
            tokio::time::sleep(ASK_AFTER).await;
            if !known.borrow().pending {
                continue;
            }
            let request = v1::ExplainJobRequest { id: self.job };
            // Without an answer the view says less; that the coordinator is away is told elsewhere.
            if let Ok(answer) = client.jobs().explain_job(unary(request)).await
                && let Some(sentence) = answer.into_inner().sentences.into_iter().next()
            {
                self.send(Event::Why(sentence)).await;
            }
            let changed = known.wait_for(|seen| !seen.pending);
            let _ = tokio::time::timeout(ASK_AGAIN, changed).await;
        }
    }
}
