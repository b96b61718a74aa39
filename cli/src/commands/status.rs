//! `qctl status`: the coordinator, its workers, and how much waits.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use qctl_proto::home::Home;
use qctl_proto::v1;
use qctl_proto::v1::job::State;
use serde::Serialize;

use crate::context::{Context, nobody_listens, unary};
use crate::error::{Error, Problem};
use crate::exit;
use crate::keeper::report::{ProgramReport, Report};
use crate::keeper::{Program, lock};
use crate::output::table::{Paint, facts};
use crate::output::{View, document, job, text, time};

/// Arguments of `qctl status`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// What `status --json` prints.
#[derive(Debug, Serialize)]
struct Document<'a> {
    /// `up`, `starting` or `down`.
    state: &'static str,
    address: &'a str,
    version: Option<&'a str>,
    started_at: Option<String>,
    pid: Option<i32>,
    term: Option<i64>,
    database: Option<&'a str>,
    url: Option<&'a str>,
    queue_paused: Option<bool>,
    /// Jobs by state; ended ones of the last 24 hours.
    counts: Option<BTreeMap<&'static str, i64>>,
    workers: Vec<document::Worker<'a>>,
    as_of: Option<i64>,
    /// The ways to tell people; `null` when the coordinator is down.
    notices: Option<Vec<NoticeChannel<'a>>>,
    /// This machine's keeper; `null` when there is none, or another machine was asked.
    keeper: Option<&'a Report>,
}

#[derive(Debug, Serialize)]
struct NoticeChannel<'a> {
    name: &'a str,
    /// What it refuses its settings or messages with; empty while it takes them.
    problem: &'a str,
}

/// Runs the command.
///
/// # Errors
/// When the coordinator cannot be asked.
pub async fn run(context: &Context, _args: Args) -> Result<ExitCode, Error> {
    let (address, is_foreign) = context.config().address();
    let keeper = if is_foreign {
        None
    } else {
        context.home().ok().and_then(keeper_report)
    };
    let answer = match context.client().await {
        Ok(client) => {
            let answer = client
                .queue()
                .get_status(unary(v1::GetStatusRequest {}))
                .await;
            answer.map_err(Error::from)
        }
        Err(error) => Err(error),
    };
    match answer {
        Ok(answer) => {
            let status = answer.into_inner();
            if context.output.json {
                let up = up_document(&status, &address, keeper.as_ref());
                context.output.print_document(&up)?;
            } else {
                let text = for_people(&status, &address, &context.output.view());
                context.output.print(&text)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if is_foreign || !is_down(&error) => Err(error),
        Err(_) => {
            let folder = context.config().down_here();
            let problem = down_problem(&address, folder, keeper.as_ref());
            if context.output.json {
                context.output.print_document(&Document {
                    state: if keeper.is_some() { "starting" } else { "down" },
                    address: &address,
                    version: None,
                    started_at: None,
                    pid: None,
                    term: None,
                    database: None,
                    url: None,
                    queue_paused: None,
                    counts: None,
                    workers: Vec::new(),
                    as_of: None,
                    notices: None,
                    keeper: keeper.as_ref(),
                })?;
            }
            Err(problem.into())
        }
    }
}

/// What the living keeper of this home reports.
fn keeper_report(home: &Home) -> Option<Report> {
    lock::holder(&home.keeper_lock()).ok().flatten()?;
    Some(Report::load(home))
}

fn is_down(error: &Error) -> bool {
    nobody_listens(error)
        || matches!(error, Error::Problem(problem) if problem.reason == "NO_TOKEN")
        || matches!(error, Error::Broken(_))
}

/// `folder` is this installation's when it has no coordinator to ask, so that none was asked.
fn down_problem(address: &str, folder: Option<&Path>, keeper: Option<&Report>) -> Problem {
    let Some(keeper) = keeper else {
        let nobody = match folder {
            Some(folder) => format!("no coordinator runs here (files in {})", folder.display()),
            None => format!("no coordinator answers at {address}"),
        };
        return Problem::new("DOWN", exit::UNREACHABLE, "qctl is not running")
            .hint(format!("{nobody}; start it"))
            .next("qctl up");
    };
    let server = keeper.programs.get(Program::Server.name());
    let (what, next) = match server {
        Some(server) if server.has_given_up() => (
            format!("its configuration is wrong: it {}", server.last_ending),
            "qctl up",
        ),
        Some(ProgramReport {
            phase,
            failures,
            last_ending,
            ..
        }) if phase == "backing_off" || *failures > 0 => (
            format!(
                "it {last_ending}, {} in a row, and is started again",
                text::counted(i64::from(*failures), "time")
            ),
            "qctl status",
        ),
        _ => ("it is starting or stopping".to_owned(), "qctl status"),
    };
    Problem::new(
        "DOWN",
        exit::UNREACHABLE,
        format!("the coordinator does not answer at {address}: {what}"),
    )
    .hint(format!(
        "the keeper (pid {}) looks after it; data/logs/server.log says more",
        keeper.pid
    ))
    .next(next)
}

fn up_document<'a>(
    status: &'a v1::GetStatusResponse,
    address: &'a str,
    keeper: Option<&'a Report>,
) -> Document<'a> {
    Document {
        state: "up",
        address,
        version: Some(&status.version),
        started_at: document::moment(status.started_at.as_ref()),
        pid: Some(status.pid),
        term: Some(status.term),
        database: Some(&status.database),
        url: Some(url(status)),
        queue_paused: Some(status.queue_paused),
        counts: Some(
            STATES
                .iter()
                .map(|state| (document::job_state(*state), count(status, *state)))
                .collect(),
        ),
        workers: status.workers.iter().map(document::Worker::from).collect(),
        as_of: Some(status.as_of),
        notices: Some(
            status
                .notice_channels
                .iter()
                .map(|channel| NoticeChannel {
                    name: &channel.name,
                    problem: &channel.problem,
                })
                .collect(),
        ),
        keeper,
    }
}

const STATES: [State; 7] = [
    State::Running,
    State::Queued,
    State::Waiting,
    State::Held,
    State::Succeeded,
    State::Failed,
    State::Cancelled,
];

fn count(status: &v1::GetStatusResponse, state: State) -> i64 {
    status
        .counts
        .iter()
        .filter(|count| count.state() == state)
        .map(|count| count.count)
        .sum()
}

fn url(status: &v1::GetStatusResponse) -> &str {
    if status.url.is_empty() {
        &status.public_url
    } else {
        &status.url
    }
}

fn for_people(status: &v1::GetStatusResponse, address: &str, view: &View) -> String {
    let mut coordinator = format!("{address}, version {}", text::printable(&status.version));
    if let Some(started) = time::instant(status.started_at.as_ref()) {
        let age = (view.now - started).to_std().unwrap_or_default();
        let _ = write!(coordinator, ", up {}", time::duration(age));
    }
    let live = [State::Running, State::Queued, State::Waiting, State::Held];
    let mut queue = counts(status, &live, true).join(", ");
    if status.queue_paused {
        let paused = Paint::Yellow.on("paused, nothing new starts", view.colour);
        let _ = write!(queue, "  ({paused}; `qctl queue resume` ends it)");
    }
    let ended = counts(
        status,
        &[State::Succeeded, State::Failed, State::Cancelled],
        false,
    );
    let mut out = facts(
        &[
            ("coordinator", coordinator),
            ("database", text::printable(&status.database)),
            ("page", text::printable(url(status))),
            ("queue", queue),
            ("last 24 hours", ended.join(", ")),
            ("notices", notices(status, view)),
        ],
        view,
    );
    if status.workers.is_empty() {
        out.push_str("no worker has connected yet; jobs wait until one does\n");
    }
    for worker in &status.workers {
        worker_lines(worker, view, &mut out);
    }
    out
}

/// Whether people can be told.
fn notices(status: &v1::GetStatusResponse, view: &View) -> String {
    if status.notice_channels.is_empty() {
        return "nobody is told; docs/notifications.md says how to set it up".to_owned();
    }
    let each: Vec<String> = status
        .notice_channels
        .iter()
        .map(|channel| match channel.problem.as_str() {
            "" => format!("by {}", text::printable(&channel.name)),
            problem => Paint::Red.on(
                &format!(
                    "{} refuses: {}",
                    text::printable(&channel.name),
                    text::printable(problem)
                ),
                view.colour,
            ),
        })
        .collect();
    each.join(", ")
}

/// Counts with their words: running and queued always, the others when there are any.
fn counts(status: &v1::GetStatusResponse, states: &[State], is_live: bool) -> Vec<String> {
    states
        .iter()
        .map(|state| (*state, count(status, *state)))
        .filter(|(state, count)| {
            *count > 0 || (is_live && matches!(state, State::Running | State::Queued))
        })
        .map(|(state, count)| format!("{count} {}", document::job_state(state)))
        .collect()
}

fn worker_lines(worker: &v1::Worker, view: &View, out: &mut String) {
    use v1::worker::State as WorkerState;
    let paint = match worker.state() {
        WorkerState::Online => Paint::Green,
        WorkerState::Paused | WorkerState::Draining | WorkerState::Reconnecting => Paint::Yellow,
        WorkerState::Unreachable => Paint::Red,
        WorkerState::Offline | WorkerState::Unspecified => Paint::Dim,
    };
    let state = paint.on(document::worker_state(worker.state()), view.colour);
    let _ = write!(
        out,
        "worker {}  {state}, {} of {} taken",
        text::printable(&worker.name),
        worker.slots_taken,
        text::counted(worker.slots.into(), "slot"),
    );
    if !worker.gpus.is_empty() {
        let gpus = i64::try_from(worker.gpus.len()).unwrap_or(i64::MAX);
        let _ = write!(out, ", {}", text::counted(gpus, "GPU"));
    }
    let is_connected = matches!(
        worker.state(),
        WorkerState::Online | WorkerState::Paused | WorkerState::Draining
    );
    if let (false, Some(seen)) = (is_connected, time::instant(worker.last_seen.as_ref())) {
        let _ = write!(out, ", last seen {}", time::ago(seen, view.now, view.zone));
    }
    out.push('\n');
    for attempt in &worker.running {
        let mut line = format!("  {} {}", attempt.job_id, text::printable(&attempt.name));
        if let Some(started) = time::instant(attempt.started_at.as_ref()) {
            let age = (view.now - started).to_std().unwrap_or_default();
            let _ = write!(line, ", for {}", time::duration(age));
        }
        if let Some(progress) = &attempt.progress {
            let _ = write!(line, ", {}", job::progress(progress));
        }
        match view.width {
            Some(width) => out.push_str(&text::cut(&line, width)),
            None => out.push_str(&line),
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::time::Zone;
    use chrono::{DateTime, FixedOffset, TimeZone as _, Utc};

    fn now() -> DateTime<Utc> {
        Utc.with_ymd_and_hms(2026, 11, 21, 12, 0, 0).unwrap()
    }

    fn view() -> View {
        View {
            now: now(),
            zone: Zone::Fixed(FixedOffset::east_opt(0).unwrap()),
            colour: false,
            width: Some(60),
        }
    }

    fn before(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(time::timestamp(now() - chrono::Duration::seconds(seconds)))
    }

    fn status() -> v1::GetStatusResponse {
        let count = |state: State, count| v1::QueueCount {
            state: state.into(),
            count,
        };
        v1::GetStatusResponse {
            version: "0.1.0".to_owned(),
            started_at: before(7_500),
            counts: vec![
                count(State::Running, 1),
                count(State::Held, 2),
                count(State::Succeeded, 14),
                count(State::Failed, 3),
            ],
            workers: vec![
                v1::Worker {
                    name: "box".to_owned(),
                    state: v1::worker::State::Online.into(),
                    slots: 1,
                    slots_taken: 1,
                    running: vec![v1::RunningAttempt {
                        job_id: 42,
                        attempt: 1,
                        name: "画像抽出 画像抽出 画像抽出".to_owned(),
                        started_at: before(192),
                        progress: Some(v1::Progress {
                            done: 12.0,
                            total: 30.0,
                            unit: "images".to_owned(),
                            percent: Some(40.0),
                            ..Default::default()
                        }),
                    }],
                    ..Default::default()
                },
                v1::Worker {
                    name: "lab".to_owned(),
                    state: v1::worker::State::Unreachable.into(),
                    slots: 2,
                    gpus: vec![v1::Gpu::default()],
                    last_seen: before(300),
                    ..Default::default()
                },
            ],
            as_of: 99,
            public_url: "http://127.0.0.1:7420".to_owned(),
            url: "http://127.0.0.1:7420/?k=abc".to_owned(),
            database: "PostgreSQL 15.18 (embedded)".to_owned(),
            term: 4,
            pid: 7,
            notice_channels: vec![
                v1::NoticeChannel {
                    name: "pushover".to_owned(),
                    ..Default::default()
                },
                v1::NoticeChannel {
                    name: "ntfy".to_owned(),
                    problem: "it answered 403 Forbidden".to_owned(),
                },
            ],
            ..Default::default()
        }
    }

    #[test]
    fn people_see_coordinator_queue_and_workers() {
        insta::assert_snapshot!(for_people(&status(), "127.0.0.1:7420", &view()), @r"
        coordinator    127.0.0.1:7420, version 0.1.0, up 2h05m
        database       PostgreSQL 15.18 (embedded)
        page           http://127.0.0.1:7420/?k=abc
        queue          1 running, 0 queued, 2 held
        last 24 hours  14 succeeded, 3 failed
        notices        by pushover, ntfy refuses: it answered 403 Forbidden
        worker box  online, 1 of 1 slot taken
          42 画像抽出 画像抽出 画像抽出, for 3m12s, 12/30 images, 4…
        worker lab  unreachable, 0 of 2 slots taken, 1 GPU, last seen 5m ago
        ");
    }

    #[test]
    fn a_paused_queue_and_a_missing_worker_are_said() {
        let status = v1::GetStatusResponse {
            queue_paused: true,
            ..Default::default()
        };
        let text = for_people(&status, "127.0.0.1:7420", &view());
        assert!(text.contains("paused, nothing new starts"), "{text}");
        assert!(text.contains("no worker has connected yet"), "{text}");
    }

    #[test]
    fn the_document_counts_every_state() {
        let status = status();
        let document = up_document(&status, "127.0.0.1:7420", None);
        let document = serde_json::to_value(&document).unwrap();
        assert_eq!(document["state"], "up");
        assert_eq!(document["counts"]["succeeded"], 14);
        assert_eq!(document["counts"]["queued"], 0);
        assert_eq!(document["started_at"], "2026-11-21T09:55:00.000Z");
        assert_eq!(document["workers"][0]["running"][0]["job"], 42);
    }

    #[test]
    fn a_coordinator_that_does_not_come_up_is_explained() {
        let report = |phase: &str, failures| Report {
            pid: 5,
            requests: 0,
            programs: [(
                "server".to_owned(),
                ProgramReport {
                    phase: phase.to_owned(),
                    failures,
                    last_ending: "exited with 1".to_owned(),
                    ..ProgramReport::default()
                },
            )]
            .into(),
        };
        let message = |keeper: Option<&Report>| down_problem("127.0.0.1:1", None, keeper).message;
        assert_eq!(message(None), "qctl is not running");
        let hint = |folder| down_problem("127.0.0.1:1", folder, None).hint.unwrap();
        assert!(hint(None).contains("answers at 127.0.0.1:1"));
        let here = hint(Some(Path::new("/data")));
        assert!(
            here.contains("/data") && !here.contains("127.0.0.1"),
            "{here}"
        );
        assert!(
            message(Some(&report("backing_off", 2))).contains("exited with 1, 2 times in a row")
        );
        assert!(message(Some(&report("given_up", 0))).contains("configuration is wrong"));
        assert!(message(Some(&report("running", 0))).contains("starting or stopping"));
    }
}
