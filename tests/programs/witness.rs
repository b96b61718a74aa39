//! A job that leaves evidence of what it did, beside what the queue says of it.
//!
//! In the folder given, for the job 7 and its second attempt:
//!
//! - `7.lock` is locked while it runs; who finds it locked adds a line to `twice`.
//! - `7.runs` gets a line when an attempt begins.
//! - `7.2.out` gets every byte that was written to the standard output, right after it was.
//! - `7.2.end` holds the exit code, from right before the end.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// Exit code of an attempt that met another one of its job.
const NOT_ALONE: u8 = 97;

/// What to do; each is given as NAME=VALUE.
struct Task {
    folder: PathBuf,
    /// Lines to write.
    lines: u64,
    /// Pause after each line.
    pause: Duration,
    /// Bytes of a line.
    width: usize,
    /// Do not end before this file is there.
    until: Option<PathBuf>,
    /// Exit code.
    exit: u8,
    /// From this attempt on, the exit code is 0.
    good_from: Option<u32>,
    /// Publish a checkpoint after each so many lines; the next attempt goes on after the last one.
    checkpoint: u64,
    /// Up to this attempt, leave a process behind that left the session and the process tree.
    escape: u32,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("witness: {error}");
            ExitCode::from(98)
        }
    }
}

fn run() -> io::Result<u8> {
    let task = Task::from_arguments()?;
    let (job, attempt) = who()?;
    let file = |name: String| task.folder.join(name);
    let lock = File::create(file(format!("{job}.lock")))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            append(&file("twice".to_owned()), &format!("{job}.{attempt}\n"))?;
            return Ok(NOT_ALONE);
        }
        Err(TryLockError::Error(error)) => return Err(error),
    }
    append(&file(format!("{job}.runs")), &format!("{attempt}\n"))?;
    if attempt <= task.escape {
        escape()?;
    }
    let mut out = io::stdout().lock();
    let mut copy = File::create(file(format!("{job}.{attempt}.out")))?;
    let mut say = |line: String| -> io::Result<()> {
        out.write_all(line.as_bytes())?;
        out.flush()?;
        copy.write_all(line.as_bytes())
    };
    let first = if task.checkpoint > 0 {
        resumed_from()?
    } else {
        0
    };
    for number in first..task.lines {
        let head = format!("{job}.{attempt} line {number} ");
        let rest = task.width.saturating_sub(head.len() + 1);
        let filling = "abcdefghij".bytes().cycle().skip(number as usize % 10);
        let filling: String = filling.take(rest).map(char::from).collect();
        say(format!("{head}{filling}\n"))?;
        std::thread::sleep(task.pause);
        if task.checkpoint > 0 && (number + 1) % task.checkpoint == 0 {
            publish(number + 1)?;
        }
    }
    if let Some(until) = &task.until {
        while !until.exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        say("released\n".to_owned())?;
    }
    let good = task.good_from.is_some_and(|good| attempt >= good);
    let code = if good { 0 } else { task.exit };
    std::fs::write(file(format!("{job}.{attempt}.end")), code.to_string())?;
    Ok(code)
}

impl Task {
    fn from_arguments() -> io::Result<Self> {
        let mut task = Self {
            folder: PathBuf::new(),
            lines: 1,
            pause: Duration::ZERO,
            width: 40,
            until: None,
            exit: 0,
            good_from: None,
            checkpoint: 0,
            escape: 0,
        };
        for argument in std::env::args().skip(1) {
            let wrong = || io::Error::other(format!("`{argument}` means nothing to a witness"));
            let (name, value) = argument.split_once('=').ok_or_else(wrong)?;
            let number = || value.parse::<u64>().map_err(|_| wrong());
            match name {
                "folder" => task.folder = value.into(),
                "lines" => task.lines = number()?,
                "pause_ms" => task.pause = Duration::from_millis(number()?),
                "width" => task.width = number()? as usize,
                "until" => task.until = Some(value.into()),
                "exit" => task.exit = number()? as u8,
                "good_from" => task.good_from = Some(number()? as u32),
                "checkpoint" => task.checkpoint = number()?,
                "escape" => task.escape = number()? as u32,
                _ => return Err(wrong()),
            }
        }
        if !task.folder.is_dir() {
            return Err(io::Error::other("folder=… must name a folder"));
        }
        Ok(task)
    }
}

/// The job and the attempt that this is.
fn who() -> io::Result<(u64, u32)> {
    let attempt = std::env::var("QCTL_ATTEMPT").unwrap_or_default();
    attempt
        .split_once('.')
        .and_then(|(job, attempt)| Some((job.parse().ok()?, attempt.parse().ok()?)))
        .ok_or_else(|| io::Error::other("QCTL_ATTEMPT names no attempt: this is no job"))
}

fn append(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(text.as_bytes())
}

/// The line after the last checkpoint.
fn resumed_from() -> io::Result<u64> {
    let Some(folder) = std::env::var_os("QCTL_RESUME_FROM") else {
        return Ok(0);
    };
    let text = std::fs::read_to_string(Path::new(&folder).join("line"))?;
    text.parse()
        .map_err(|_| io::Error::other("the checkpoint holds no line"))
}

/// Publishes a checkpoint that says which line is next.
fn publish(line: u64) -> io::Result<()> {
    let folder = std::env::var_os("QCTL_CHECKPOINT_DIR").unwrap_or_default();
    std::fs::write(Path::new(&folder).join("line"), line.to_string())?;
    let output = Command::new("qctl")
        .args(["checkpoint", "--step", &line.to_string()])
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(told))
}

/// Starts a process in a session of its own whose parent has gone, and which no pipe holds.
fn escape() -> io::Result<()> {
    Command::new("setsid")
        .args(["sh", "-c", "trap '' TERM HUP; sleep 600 & exit 0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map(drop)
}
