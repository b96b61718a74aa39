//! Silence of running attempts, in words and in JSON.

use std::fmt::Write as _;

use qctl_proto::v1;
use qctl_proto::v1::silence::Counts;
use serde::Serialize;

use super::document::{moment, seconds};
use super::{View, text, time};

/// What a job says about silence; empty when it says nothing.
pub fn rules(spec: &v1::JobSpec) -> String {
    let Some(silence) = &spec.silence else {
        return String::new();
    };
    let mut parts = Vec::new();
    let stages = qctl_proto::silence::show(silence);
    if !stages.is_empty() {
        parts.push(stages);
    }
    match silence.counts() {
        Counts::Unspecified => {}
        Counts::Output => parts.push("only output counts".to_owned()),
        Counts::Activity => parts.push("activity counts".to_owned()),
    }
    parts.join("; ")
}

/// How long the job has been silent and when it is stopped for that; empty while it is not.
pub fn clock(attempts: &[v1::Attempt], view: &View) -> String {
    let Some(silence) = attempts.last().and_then(going_on) else {
        return String::new();
    };
    let Some(since) = time::instant(silence.since.as_ref()) else {
        return String::new();
    };
    let lasted = (view.now - since).to_std().unwrap_or_default();
    let mut line = format!("silent for {}", time::duration(lasted));
    if let Some(stop) = time::span(silence.stop_after.as_ref()) {
        let _ = write!(line, ", stopped at {}", time::exact(stop));
    }
    line
}

/// What an attempt did in its newest silence, if that goes on or was its end: lines below its row.
pub fn evidence(attempt: &v1::Attempt) -> String {
    let ended_by_it = attempt
        .outcome
        .as_ref()
        .is_some_and(|outcome| outcome.cause == "silence");
    let silence = match ended_by_it {
        true => attempt.silence.as_ref(),
        false => going_on(attempt),
    };
    let Some(found) = silence.and_then(|silence| silence.evidence.as_ref()) else {
        return String::new();
    };
    let mut out = format!("  attempt {} while it was silent:\n", attempt.number);
    let still: Vec<String> = [
        ("processor", &found.cpu_still),
        ("files", &found.io_still),
        ("GPU", &found.gpu_still),
    ]
    .into_iter()
    .filter_map(|(what, still)| {
        let still = time::span(still.as_ref())?;
        Some(format!("{what} for {}", time::duration(still)))
    })
    .collect();
    if !still.is_empty() {
        let _ = writeln!(out, "    hardly used: {}", still.join(", "));
    }
    for process in &found.processes {
        let waits = match process.wait_channel.as_str() {
            "" => String::new(),
            channel => format!(", waits in {}", text::printable(channel)),
        };
        let _ = writeln!(
            out,
            "    process {} {}{waits}: {}",
            process.pid,
            text::printable(&process.state),
            text::printable(&process.command),
        );
    }
    for (title, lines) in [
        ("last lines", &found.last_lines),
        ("Python stands at", &found.stack),
    ] {
        if !lines.is_empty() {
            let _ = writeln!(out, "    {title}:");
            for line in lines.lines() {
                let _ = writeln!(out, "      {}", text::printable(line));
            }
        }
    }
    out
}

/// The silence of an attempt that runs.
fn going_on(attempt: &v1::Attempt) -> Option<&v1::SilenceState> {
    let runs = attempt.state() == v1::attempt::State::Running;
    attempt
        .silence
        .as_ref()
        .filter(|silence| runs && silence.stage() != v1::SilenceStage::Over)
}

/// What a job says about silence, in seconds; 0 means never, null that it is left to others.
#[derive(Debug, Serialize)]
pub struct Rules {
    warn_after: Option<f64>,
    remind_after: Option<f64>,
    stop_after: Option<f64>,
    counts: Option<&'static str>,
}

impl From<&v1::Silence> for Rules {
    fn from(silence: &v1::Silence) -> Self {
        Self {
            warn_after: seconds(silence.warn_after.as_ref()),
            remind_after: seconds(silence.remind_after.as_ref()),
            stop_after: seconds(silence.stop_after.as_ref()),
            counts: match silence.counts() {
                Counts::Unspecified => None,
                Counts::Output => Some("output"),
                Counts::Activity => Some("activity"),
            },
        }
    }
}

/// An attempt's newest silence that came as far as any stage.
#[derive(Debug, Serialize)]
pub struct State<'a> {
    stage: &'static str,
    since: Option<String>,
    stop_after: Option<f64>,
    evidence: Option<Evidence<'a>>,
}

#[derive(Debug, Serialize)]
struct Evidence<'a> {
    cpu_still: Option<f64>,
    io_still: Option<f64>,
    gpu_still: Option<f64>,
    processes: Vec<Process<'a>>,
    stack: &'a str,
    last_lines: &'a str,
}

#[derive(Debug, Serialize)]
struct Process<'a> {
    pid: i32,
    command: &'a str,
    state: &'a str,
    wait_channel: &'a str,
}

impl<'a> From<&'a v1::SilenceState> for State<'a> {
    fn from(state: &'a v1::SilenceState) -> Self {
        Self {
            stage: match state.stage() {
                v1::SilenceStage::Unspecified => "unknown",
                v1::SilenceStage::Warned => "warned",
                v1::SilenceStage::Reminded => "reminded",
                v1::SilenceStage::Ending => "ending",
                v1::SilenceStage::Over => "over",
            },
            since: moment(state.since.as_ref()),
            stop_after: seconds(state.stop_after.as_ref()),
            evidence: state.evidence.as_ref().map(|found| Evidence {
                cpu_still: seconds(found.cpu_still.as_ref()),
                io_still: seconds(found.io_still.as_ref()),
                gpu_still: seconds(found.gpu_still.as_ref()),
                processes: found
                    .processes
                    .iter()
                    .map(|process| Process {
                        pid: process.pid,
                        command: &process.command,
                        state: &process.state,
                        wait_channel: &process.wait_channel,
                    })
                    .collect(),
                stack: &found.stack,
                last_lines: &found.last_lines,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chrono::{DateTime, TimeDelta};

    use super::*;

    fn silent(state: v1::attempt::State, stage: v1::SilenceStage) -> v1::Attempt {
        v1::Attempt {
            number: 2,
            state: state.into(),
            silence: Some(v1::SilenceState {
                stage: stage.into(),
                since: Some(prost_types::Timestamp {
                    seconds: 1_800_000_000,
                    nanos: 0,
                }),
                stop_after: Some(time::wire_span(Duration::from_secs(900))),
                evidence: Some(v1::SilenceEvidence {
                    cpu_still: Some(time::wire_span(Duration::from_secs(355))),
                    processes: vec![v1::SilentProcess {
                        pid: 4711,
                        command: "python train.py".to_owned(),
                        state: "S".to_owned(),
                        wait_channel: "futex_wait".to_owned(),
                    }],
                    last_lines: "epoch 3".to_owned(),
                    ..v1::SilenceEvidence::default()
                }),
            }),
            ..v1::Attempt::default()
        }
    }

    #[test]
    fn the_clock_shows_while_the_silence_goes_on() {
        use v1::SilenceStage::{Over, Warned};
        use v1::attempt::State::{Ended, Running};
        let since = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let view = View {
            now: since + TimeDelta::minutes(6),
            zone: time::Zone::Local,
            colour: false,
            width: None,
        };
        let now = silent(Running, Warned);
        assert_eq!(
            clock(std::slice::from_ref(&now), &view),
            "silent for 6m00s, stopped at 15m"
        );
        assert_eq!(
            evidence(&now),
            "  attempt 2 while it was silent:\n    hardly used: processor for 5m55s\n    \
             process 4711 S, waits in futex_wait: python train.py\n    last lines:\n      epoch 3\n"
        );
        for over in [silent(Running, Over), silent(Ended, Warned)] {
            assert_eq!(clock(std::slice::from_ref(&over), &view), "");
            assert_eq!(evidence(&over), "");
        }
    }
}
