//! `qctl progress`: reports progress from inside a job.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use rustix::event::{PollFd, PollFlags, Timespec};
use serde::Serialize;

use crate::context::Context;
use crate::error::{Error, Problem};
use crate::exit;

/// Where a job's reports go.
pub(super) const VARIABLE: &str = "QCTL_PROGRESS";
/// Longest report that reaches the other end in one piece, in bytes (`PIPE_BUF`).
const LINE_LIMIT: usize = 4096;
/// Longest unit and message, in bytes; what is longer is cut.
const UNIT_LIMIT: usize = 64;
const MESSAGE_LIMIT: usize = 500;
/// How long a report waits for room.
const PATIENCE_SECONDS: i64 = 1;

/// Arguments of `qctl progress`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How far the job is: 12/30 or 40%
    #[arg(value_name = "DONE/TOTAL|PERCENT%")]
    pub position: Position,
    /// What is counted, such as images; cut after 64 bytes
    #[arg(long, value_name = "NOUN")]
    pub unit: Option<String>,
    /// What the job does at present; cut after 500 bytes
    #[arg(long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Outside a job, do nothing instead of failing
    #[arg(long)]
    pub quiet_outside: bool,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Position {
    /// Items done, of items in all.
    Count {
        /// Done.
        done: f64,
        /// In all.
        total: f64,
    },
    /// A percentage.
    Percent(f64),
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected DONE/TOTAL such as 12/30, or a percentage such as 40%";
        let number = |text: &str| {
            text.trim()
                .parse::<f64>()
                .ok()
                .filter(|number| number.is_finite() && *number >= 0.0)
                .ok_or_else(|| expected.to_owned())
        };
        if let Some(percent) = text.trim().strip_suffix('%') {
            return match number(percent)? {
                percent if percent <= 100.0 => Ok(Self::Percent(percent)),
                _ => Err("a percentage is at most 100".to_owned()),
            };
        }
        let (done, total) = text.split_once('/').ok_or(expected)?;
        let (done, total) = (number(done)?, number(total)?);
        if done > total {
            return Err(format!("{done} done is more than {total} in all"));
        }
        Ok(Self::Count { done, total })
    }
}

/// One report, as the worker reads it.
#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

/// Runs the command.
///
/// # Errors
/// When it is not run inside a job, or the job's worker takes no report.
pub async fn run(_context: &Context, args: Args) -> Result<ExitCode, Error> {
    let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) else {
        if args.quiet_outside {
            return Ok(ExitCode::SUCCESS);
        }
        return Err(Problem::new(
            "NOT_IN_JOB",
            exit::ERROR,
            format!("this is not run inside a job: {VARIABLE} is not set"),
        )
        .hint("call it from a job's command, or add --quiet-outside to do nothing elsewhere")
        .into());
    };
    let path = PathBuf::from(path);
    send(&path, &line(&args)).map_err(|source| refused(&path, &source))?;
    Ok(ExitCode::SUCCESS)
}

/// The report on one line that fits into a pipe whole.
fn line(args: &Args) -> Vec<u8> {
    let (done, total, percent) = match args.position {
        Position::Count { done, total } => (Some(done), Some(total), None),
        Position::Percent(percent) => (None, None, Some(percent)),
    };
    let report = Report {
        done,
        total,
        percent,
        unit: args.unit.as_deref().map(|unit| start(unit, UNIT_LIMIT)),
        message: args
            .message
            .as_deref()
            .map(|message| start(message, MESSAGE_LIMIT)),
    };
    // Numbers and short texts: even with every byte of them escaped this stays below the limit.
    let mut line = serde_json::to_vec(&report).unwrap_or_default();
    line.push(b'\n');
    debug_assert!(line.len() <= LINE_LIMIT);
    line
}

/// The longest beginning of a text that has at most `limit` bytes.
fn start(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// Writes the line whole, or not at all.
pub(super) fn send(path: &Path, line: &[u8]) -> io::Result<()> {
    let mut pipe = OpenOptions::new()
        .append(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    loop {
        match pipe.write(line) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_for_room(&pipe)?,
            Err(error) => return Err(error),
        }
    }
}

fn wait_for_room(pipe: &File) -> io::Result<()> {
    let patience = Timespec {
        tv_sec: PATIENCE_SECONDS,
        tv_nsec: 0,
    };
    let mut watched = [PollFd::new(pipe, PollFlags::OUT)];
    match rustix::event::poll(&mut watched, Some(&patience))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

fn refused(path: &Path, error: &io::Error) -> Error {
    let why = match (error.raw_os_error(), error.kind()) {
        (Some(libc::ENXIO), _) | (_, io::ErrorKind::NotFound) => {
            "the job's supervisor is gone".to_owned()
        }
        (_, io::ErrorKind::TimedOut) => "the worker takes no reports at present".to_owned(),
        _ => error.to_string(),
    };
    Problem::new(
        "NO_REPORT",
        exit::ERROR,
        format!("cannot report to {}: {why}", path.display()),
    )
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader};

    fn args(position: &str) -> Args {
        Args {
            position: position.parse().unwrap(),
            unit: Some("images".to_owned()),
            message: None,
            quiet_outside: false,
        }
    }

    fn fifo(folder: &Path) -> PathBuf {
        let path = folder.join("progress");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        path
    }

    #[test]
    fn positions_are_counts_or_percentages() {
        let count = |done, total| Ok(Position::Count { done, total });
        assert_eq!("12/30".parse(), count(12.0, 30.0));
        assert_eq!(" 1.5 / 3 ".parse(), count(1.5, 3.0));
        assert_eq!("40%".parse(), Ok(Position::Percent(40.0)));
        for bad in [
            "", "12", "12/", "/", "a/b", "-1/3", "nan/3", "4/3", "101%", "inf%",
        ] {
            assert!(bad.parse::<Position>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_report_is_one_line_however_long_its_texts_are() {
        assert_eq!(
            String::from_utf8(line(&args("12/30"))).unwrap(),
            "{\"done\":12.0,\"total\":30.0,\"unit\":\"images\"}\n"
        );
        let long = Args {
            unit: Some("\u{1}".repeat(10_000)),
            message: Some("画\n".repeat(10_000)),
            ..args("40%")
        };
        let line = line(&long);
        assert!(line.len() <= LINE_LIMIT, "{}", line.len());
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let read: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(read["percent"], 40.0);
    }

    #[test]
    fn a_report_reaches_the_other_end_of_the_pipe() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        let error = send(&path, b"nobody listens\n").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENXIO));
        let reader = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        send(&path, &line(&args("12/30"))).unwrap();
        let mut read = String::new();
        BufReader::new(reader).read_line(&mut read).unwrap();
        assert!(read.contains("\"done\":12.0"), "{read}");
    }

    #[test]
    fn a_full_pipe_is_an_error_and_not_a_hang() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        let _reader = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let line = vec![b'x'; LINE_LIMIT];
        let error = (0..1000).find_map(|_| send(&path, &line).err()).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
