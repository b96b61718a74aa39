//! `qctl checkpoint`: publishes a checkpoint from inside a job.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use chrono::{SubsecRound as _, Utc};
use qctl_checkpoint::{
    FolderError, MAX_NOTE_BYTES, PublishError, Published, Request, check_folder, publish,
};
use serde::Serialize;

use super::progress;
use crate::args::values;
use crate::context::Context;
use crate::error::{Error, Problem};
use crate::exit;
use crate::output::text;

/// Arguments of `qctl checkpoint`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files and folders to copy [default: take everything out of $QCTL_CHECKPOINT_DIR]
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// How far the job is, as it counts itself
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = values::whole::<i64>(0..))]
    pub step: Option<i64>,
    /// A word about it, at most 500 bytes
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = note)]
    pub note: String,
    /// Have it uploaded, so that other workers can resume from it, whatever its size
    #[arg(long)]
    pub upload: bool,
    /// Outside a job, do nothing instead of failing
    #[arg(long)]
    pub quiet_outside: bool,
}

fn note(text: &str) -> Result<String, String> {
    if text.len() > MAX_NOTE_BYTES {
        return Err(format!("it has more than {MAX_NOTE_BYTES} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err("it has control characters".to_owned());
    }
    Ok(text.to_owned())
}

#[derive(Serialize)]
struct Document<'a> {
    job: i64,
    attempt: i32,
    number: i32,
    step: Option<i64>,
    note: &'a str,
    path: &'a Path,
    files: usize,
    bytes: u64,
    created_at: String,
}

/// The job that this is run inside of.
#[derive(Debug, PartialEq, Eq)]
struct Inside {
    job: i64,
    attempt: i32,
    /// The spool of the worker that runs it.
    spool: String,
    fence: i64,
    folder: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// When it is not run inside a job, or there is nothing that can be published.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let inside = match inside(|name| std::env::var_os(name)) {
        Ok(inside) => inside,
        Err(_) if args.quiet_outside => return Ok(ExitCode::SUCCESS),
        Err(why) => {
            return Err(Problem::new(
                "NOT_IN_JOB",
                exit::ERROR,
                format!("this is not run inside a job: {why}"),
            )
            .hint("call it from a job's command, or add --quiet-outside to do nothing elsewhere")
            .into());
        }
    };
    check_folder(&inside.folder, &inside.spool, inside.job, inside.attempt).map_err(not_its)?;
    let published = publish(&Request {
        job: inside.job,
        attempt: inside.attempt,
        fence: inside.fence,
        folder: &inside.folder,
        paths: &args.paths,
        step: args.step,
        note: &args.note,
        upload: args.upload,
        now: Utc::now().trunc_subsecs(6),
    })
    .map_err(refused)?;
    ring(published.manifest.number);
    tell(context, &published)?;
    Ok(ExitCode::SUCCESS)
}

/// Reads from the environment which attempt this is part of, or says why it is of none.
fn inside(variable: impl Fn(&str) -> Option<OsString>) -> Result<Inside, String> {
    let given = |name: &str| {
        let value = variable(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| format!("{name} is not set"))
    };
    let text = |name: &str| {
        let value = given(name)?.into_string();
        value.map_err(|_| format!("{name} is not as a worker sets it"))
    };
    let attempt = text("QCTL_ATTEMPT")?;
    let marker = text("QCTL_FENCE")?;
    let folder = given("QCTL_CHECKPOINT_DIR")?.into();
    let read = || {
        let (job, number) = attempt.split_once('.')?;
        let (spool, fence) = marker.rsplit_once(':')?;
        Some(Inside {
            job: job.parse().ok()?,
            attempt: number.parse().ok()?,
            spool: spool.to_owned(),
            fence: fence.parse().ok()?,
            folder,
        })
    };
    read().ok_or_else(|| {
        format!("QCTL_ATTEMPT=`{attempt}` with QCTL_FENCE=`{marker}` is not as a worker sets it")
    })
}

/// Why nothing is published out of a folder, or beside it.
fn not_its(error: FolderError) -> Error {
    let message = told(&error);
    let (reason, message, hint) = match error {
        FolderError::Missing(_) => (
            "NO_CHECKPOINT_DIR",
            message,
            "has the job removed its $QCTL_CHECKPOINT_DIR?",
        ),
        FolderError::Another { .. } => (
            "WRONG_CHECKPOINT_DIR",
            format!("{message}: no later attempt would find what is published there"),
            "leave QCTL_CHECKPOINT_DIR as the job found it; files from elsewhere are named: \
             qctl checkpoint FILE …",
        ),
        FolderError::Io { .. } => (
            "CANNOT_PUBLISH",
            message,
            "nothing was published, and the files are where they were",
        ),
    };
    Problem::new(reason, exit::ERROR, message).hint(hint).into()
}

/// An error with its causes, in one line.
fn told(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    message
}

/// Tells the worker that there is something new. It finds it by itself as well, only later.
fn ring(number: i32) {
    if let Some(pipe) = std::env::var_os(progress::VARIABLE).filter(|path| !path.is_empty()) {
        let line = format!("{{\"checkpoint\":{number}}}\n");
        let _ = progress::send(Path::new(&pipe), line.as_bytes());
    }
}

fn tell(context: &Context, published: &Published) -> Result<(), Error> {
    let manifest = &published.manifest;
    let path = published.files();
    if context.output.json {
        return context.output.print_document(&Document {
            job: manifest.job,
            attempt: manifest.attempt,
            number: manifest.number,
            step: manifest.step,
            note: &manifest.note,
            path: &path,
            files: manifest.files(),
            bytes: manifest.bytes,
            created_at: manifest
                .created_at
                .to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true),
        });
    }
    let mut line = format!(
        "Published checkpoint {}.{}",
        manifest.attempt, manifest.number
    );
    if let Some(step) = manifest.step {
        let _ = write!(line, " at step {step}");
    }
    let files = i64::try_from(manifest.files()).unwrap_or(i64::MAX);
    let bytes = i64::try_from(manifest.bytes).unwrap_or(i64::MAX);
    let _ = writeln!(
        line,
        ": {}, {}",
        text::counted(files, "file"),
        text::bytes(bytes)
    );
    context.output.print(&line)
}

fn refused(error: PublishError) -> Error {
    let message = told(&error);
    let (reason, hint) = match &error {
        PublishError::NoFolder(_) => (
            "NO_CHECKPOINT_DIR",
            "has the job removed its $QCTL_CHECKPOINT_DIR?",
        ),
        PublishError::Empty(_) | PublishError::NoFiles => (
            "NOTHING_TO_PUBLISH",
            "write what a later attempt needs into $QCTL_CHECKPOINT_DIR first, or name files to copy",
        ),
        PublishError::Missing(_) | PublishError::NoName(_) | PublishError::SameName(_) => {
            return Problem::usage(message)
                .hint("name files and folders that exist, each with a name of its own")
                .into();
        }
        PublishError::Contents(_) => (
            "CANNOT_PUBLISH",
            "a checkpoint holds files, folders, and links that stay inside of it; nothing was moved",
        ),
        PublishError::Io { .. } => (
            "CANNOT_PUBLISH",
            "nothing was published, and the files are where they were",
        ),
    };
    Problem::new(reason, exit::ERROR, message).hint(hint).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attempt_is_read_from_the_environment() {
        let all = [
            ("QCTL_ATTEMPT", "42.3"),
            ("QCTL_FENCE", "5b0e:77"),
            ("QCTL_CHECKPOINT_DIR", "/c/42/3"),
        ];
        let read = |other: &str, value: Option<&str>| {
            inside(|name| {
                let found = all.iter().find(|(known, _)| *known == name);
                let value = if name == other { value } else { Some(found?.1) };
                value.map(OsString::from)
            })
        };
        let expected = Inside {
            job: 42,
            attempt: 3,
            spool: "5b0e".to_owned(),
            fence: 77,
            folder: "/c/42/3".into(),
        };
        assert_eq!(read("", None), Ok(expected));
        for (name, _) in all {
            for value in [None, Some("")] {
                assert_eq!(read(name, value), Err(format!("{name} is not set")));
            }
        }
        let odd = read("QCTL_ATTEMPT", Some("42")).unwrap_err();
        assert!(odd.contains("QCTL_ATTEMPT=`42`"), "{odd}");
    }

    #[test]
    fn a_note_is_short_and_on_one_line() {
        assert_eq!(note("第3回"), Ok("第3回".to_owned()));
        assert!(note("two\nlines").is_err());
        assert!(note(&"x".repeat(501)).is_err());
    }
}
