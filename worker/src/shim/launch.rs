//! From an assignment to a program: environment, search path, and what to say when it cannot be
//! started.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};

use qctl_proto::v1::{Assignment, JobSpec};

use crate::process::marker::{self, Marker};
use crate::shim::spawn::{Program, SpawnError, Stage};

/// Search path of a job whose environment names none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Longest piece of a user's text that a message repeats, in characters.
const MAX_QUOTED: usize = 200;

/// A program ready to be started.
#[derive(Debug)]
pub(super) struct Launch {
    /// What to start.
    pub(super) program: Program,
    /// Limits that were asked for but are not enforced here, each a sentence.
    pub(super) not_enforced: Vec<String>,
}

/// What the shim adds to an assignment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings<'a> {
    /// This machine's name.
    pub(super) host: &'a str,
    /// Where progress reports go; `None` when no pipe could be made.
    pub(super) progress: Option<&'a Path>,
    /// Where checkpoints go; empty when nowhere.
    pub(super) checkpoint_dir: &'a str,
    /// Nobody sees whether its GPUs work.
    pub(super) gpu_use_unseen: bool,
}

/// Prepares an assignment.
///
/// # Errors
/// A sentence for people when the assignment cannot be started, whatever the machine says.
pub(super) fn prepare(
    assignment: &Assignment,
    spec: &JobSpec,
    surroundings: &Surroundings<'_>,
) -> Result<Launch, String> {
    let Some(command) = spec.command.first().filter(|command| !command.is_empty()) else {
        return Err("the job has no command".to_owned());
    };
    if !Path::new(&spec.cwd).is_absolute() {
        return Err(format!(
            "the working directory must be an absolute path, not `{}`",
            quoted(&spec.cwd)
        ));
    }
    let variables = variables(assignment, spec, surroundings);
    let path = variables.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    let mut environment = vec![format!(
        "{}={}",
        marker::VARIABLE,
        Marker::new(&assignment.spool_id, assignment.fence).value()
    )];
    for (name, value) in &variables {
        if name.is_empty() || name.contains('=') {
            return Err(format!(
                "`{}` cannot be the name of an environment variable",
                quoted(name)
            ));
        }
        environment.push(format!("{name}={value}"));
    }
    Ok(Launch {
        program: Program {
            candidates: strings("the command", candidates(command, path))?,
            arguments: strings("an argument", spec.command.iter().cloned())?,
            environment: strings("the environment", environment)?,
            cwd: string("the working directory", spec.cwd.clone())?,
        },
        not_enforced: not_enforced(assignment, spec, surroundings),
    })
}

fn variables(
    assignment: &Assignment,
    spec: &JobSpec,
    surroundings: &Surroundings<'_>,
) -> BTreeMap<String, String> {
    let mut variables: BTreeMap<String, String> = spec
        .env
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut preset = |name: &str, value: &str| {
        variables
            .entry(name.to_owned())
            .or_insert_with(|| value.to_owned());
    };
    preset("PYTHONUNBUFFERED", "1");
    if spec.pty {
        preset("TERM", "xterm-256color");
    }

    let job = assignment.job_id.to_string();
    let attempt = format!("{job}.{}", assignment.attempt);
    let gpus = assignment.gpus.join(",");
    let progress = surroundings.progress.and_then(Path::to_str);
    // What belongs to another job must not be taken for this one's, so absent values are removed:
    // a job may well be submitted from inside a job.
    for (name, value) in [
        ("QCTL_JOB", Some(job.as_str())),
        ("QCTL_ATTEMPT", Some(attempt.as_str())),
        ("QCTL_CHECKPOINT_DIR", Some(surroundings.checkpoint_dir)),
        ("QCTL_RESUME_FROM", Some(assignment.resume_from.as_str())),
        ("QCTL_PROGRESS", progress),
        (marker::VARIABLE, None),
    ] {
        match value.filter(|value| !value.is_empty()) {
            Some(value) => variables.insert(name.to_owned(), value.to_owned()),
            None => variables.remove(name),
        };
    }
    for (name, value) in [
        ("TRACKER_ID", &spec.tracker),
        ("TRACKER_WORKSPACE", &spec.workspace),
        ("CUDA_VISIBLE_DEVICES", &gpus),
    ] {
        if !value.is_empty() {
            variables.insert(name.to_owned(), value.clone());
        }
    }
    variables
}

/// The files that a command may mean, in order, as a shell searches them.
fn candidates(command: &str, path: &str) -> Vec<String> {
    if command.contains('/') {
        return vec![command.to_owned()];
    }
    path.split(':')
        .map(|folder| match folder {
            // An empty entry has always meant the current directory.
            "" => format!("./{command}"),
            folder => format!("{}/{command}", folder.trim_end_matches('/')),
        })
        .collect()
}

fn strings(what: &str, texts: impl IntoIterator<Item = String>) -> Result<Vec<CString>, String> {
    texts.into_iter().map(|text| string(what, text)).collect()
}

fn string(what: &str, text: String) -> Result<CString, String> {
    CString::new(text).map_err(|error| {
        let text = String::from_utf8_lossy(&error.into_vec()).into_owned();
        format!("{what} contains a zero byte: `{}`", quoted(&text))
    })
}

fn not_enforced(
    assignment: &Assignment,
    spec: &JobSpec,
    surroundings: &Surroundings<'_>,
) -> Vec<String> {
    let host = surroundings.host;
    let mut sentences = Vec::new();
    let memory = spec.demand.as_ref().map_or(0, |demand| demand.memory_bytes);
    if memory > 0 {
        sentences.push(format!(
            "The memory limit of {memory} bytes is not enforced on {host}: it decides where the \
             job runs, not how much it takes."
        ));
    }
    if !assignment.gpus.is_empty() {
        sentences.push(format!(
            "The job is told of its GPUs by CUDA_VISIBLE_DEVICES; nothing on {host} keeps it from \
             the others."
        ));
    }
    if surroundings.gpu_use_unseen {
        sentences.push(format!(
            "Nobody sees whether the job uses its GPUs: their driver on {host} does not tell how busy \
             they are."
        ));
    }
    sentences
}

/// Says in a sentence why a program could not be started.
pub(super) fn explain(
    failure: &SpawnError,
    program: &Program,
    spec: &JobSpec,
    host: &str,
) -> String {
    let errno = failure.error.raw_os_error().unwrap_or(0);
    let command = spec.command.first().map_or("", String::as_str);
    let cwd = quoted(&spec.cwd);
    match (failure.stage, errno) {
        (Stage::Directory, libc::ENOENT) if is_elsewhere(spec, host) => format!(
            "the working directory `{cwd}` does not exist on {host}; the job was submitted on {}",
            quoted(&spec.submit_host)
        ),
        (Stage::Directory, libc::ENOENT) => {
            format!("the working directory `{cwd}` does not exist on {host}")
        }
        (Stage::Directory, libc::ENOTDIR) => {
            format!("the working directory `{cwd}` is not a directory on {host}")
        }
        (Stage::Directory, libc::EACCES) => {
            format!("the worker on {host} may not enter the working directory `{cwd}`")
        }
        (Stage::Directory, _) => format!(
            "the working directory `{cwd}` cannot be entered on {host}: {}",
            failure.error
        ),
        (Stage::Program, libc::ENOENT | libc::ENOTDIR) => not_found(command, program, spec, host),
        (Stage::Program, libc::EACCES) => format!(
            "`{}` is not executable for the worker on {host}",
            quoted(command)
        ),
        (Stage::Program, libc::E2BIG) => {
            let total: usize = [&program.arguments, &program.environment]
                .into_iter()
                .flatten()
                .map(|text| text.as_bytes_with_nul().len())
                .sum();
            let longest = program
                .arguments
                .iter()
                .map(|text| text.as_bytes().len())
                .max();
            format!(
                "the arguments and the environment are too long for {host}: {total} bytes in all, \
                 the longest argument {} bytes; pass the data in a file",
                longest.unwrap_or(0)
            )
        }
        (Stage::Program, _) => format!(
            "`{}` cannot be started on {host}: {}",
            quoted(command),
            failure.error
        ),
        (Stage::Process, _) => format!("{host} cannot start a process: {}", failure.error),
        (Stage::Streams, _) => format!(
            "the output of the job cannot be connected on {host}: {}",
            failure.error
        ),
    }
}

fn is_elsewhere(spec: &JobSpec, host: &str) -> bool {
    !spec.submit_host.is_empty() && spec.submit_host != host
}

fn not_found(command: &str, program: &Program, spec: &JobSpec, host: &str) -> String {
    let exists = program.candidates.iter().find_map(|candidate| {
        let path = Path::new(&spec.cwd).join(to_path(candidate));
        path.is_file().then_some(path)
    });
    match exists {
        Some(path) => format!(
            "`{}` exists on {host}, but the interpreter or loader that it asks for does not",
            quoted(&path.to_string_lossy())
        ),
        None if command.contains('/') => {
            format!("the program `{}` does not exist on {host}", quoted(command))
        }
        None => {
            let folders: Vec<_> = program
                .candidates
                .iter()
                .filter_map(|candidate| to_path(candidate).parent().map(Path::to_path_buf))
                .map(|folder| folder.to_string_lossy().into_owned())
                .collect();
            format!(
                "the command `{}` was not found on {host} in the job's PATH, `{}`",
                quoted(command),
                quoted(&folders.join(":"))
            )
        }
    }
}

fn to_path(text: &CString) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::OsStr::from_bytes(text.as_bytes()).into()
}

/// A user's text, fit for a one-line message.
fn quoted(text: &str) -> String {
    let mut short: String = text
        .chars()
        .take(MAX_QUOTED)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if short.len() < text.len() && text.chars().nth(MAX_QUOTED).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use qctl_proto::v1::Demand;

    use super::*;

    fn assignment() -> Assignment {
        Assignment {
            fence: 5,
            job_id: 42,
            attempt: 2,
            spool_id: "s".into(),
            ..Assignment::default()
        }
    }

    fn spec(command: &[&str]) -> JobSpec {
        JobSpec {
            command: command.iter().map(|text| (*text).to_owned()).collect(),
            cwd: "/".into(),
            ..JobSpec::default()
        }
    }

    fn surroundings() -> Surroundings<'static> {
        Surroundings {
            host: "here",
            progress: Some(Path::new("/run/p")),
            checkpoint_dir: "/c/42/2",
            gpu_use_unseen: false,
        }
    }

    fn environment(assignment: &Assignment, spec: &JobSpec) -> Vec<String> {
        let launch = prepare(assignment, spec, &surroundings()).unwrap();
        let environment = launch.program.environment;
        environment
            .into_iter()
            .map(|text| text.into_string().unwrap())
            .collect()
    }

    #[test]
    fn the_job_learns_who_it_is() {
        let mut spec = spec(&["true"]);
        spec.tracker = "INTG-088".into();
        spec.workspace = "/w".into();
        let mut assignment = assignment();
        assignment.gpus = vec!["GPU-1".into(), "GPU-2".into()];
        assignment.resume_from = "/c/42/1".into();
        assert_eq!(
            environment(&assignment, &spec),
            [
                "QCTL_FENCE=s:5",
                "CUDA_VISIBLE_DEVICES=GPU-1,GPU-2",
                "PYTHONUNBUFFERED=1",
                "QCTL_ATTEMPT=42.2",
                "QCTL_CHECKPOINT_DIR=/c/42/2",
                "QCTL_JOB=42",
                "QCTL_PROGRESS=/run/p",
                "QCTL_RESUME_FROM=/c/42/1",
                "TRACKER_ID=INTG-088",
                "TRACKER_WORKSPACE=/w",
            ]
        );
    }

    #[test]
    fn the_users_choice_wins_and_another_jobs_variables_do_not_leak_in() {
        let mut spec = spec(&["true"]);
        for (name, value) in [
            ("PYTHONUNBUFFERED", ""),
            ("QCTL_RESUME_FROM", "/other"),
            ("QCTL_FENCE", "other:1"),
            ("TRACKER_ID", "MINE-1"),
        ] {
            spec.env.insert(name.into(), value.into());
        }
        let environment = environment(&assignment(), &spec);
        assert!(environment.contains(&"PYTHONUNBUFFERED=".to_owned()));
        assert!(environment.contains(&"TRACKER_ID=MINE-1".to_owned()));
        assert!(!environment.iter().any(|text| text.contains("other")));
    }

    #[test]
    fn commands_are_searched_as_a_shell_does() {
        assert_eq!(
            candidates("tool", "/a/:b::/c"),
            ["/a/tool", "b/tool", "./tool", "/c/tool"]
        );
        assert_eq!(candidates("./tool", "/a"), ["./tool"]);
    }

    #[test]
    fn what_can_never_start_is_refused_in_a_sentence() {
        let refused = |spec: &JobSpec| prepare(&assignment(), spec, &surroundings()).unwrap_err();
        assert!(refused(&spec(&[])).contains("no command"));
        assert!(refused(&spec(&["a\0b"])).contains("zero byte"));
        let mut relative = spec(&["true"]);
        relative.cwd = "here".into();
        assert!(refused(&relative).contains("absolute"));
        let mut named = spec(&["true"]);
        named.env.insert("A=B".into(), "1".into());
        assert!(refused(&named).contains("`A=B`"));
    }

    #[test]
    fn limits_that_only_guide_placement_are_told() {
        let mut spec = spec(&["true"]);
        spec.demand = Some(Demand {
            memory_bytes: 1000,
            ..Demand::default()
        });
        let mut assignment = assignment();
        assignment.gpus = vec!["GPU-1".into()];
        let launch = prepare(&assignment, &spec, &surroundings()).unwrap();
        assert_eq!(launch.not_enforced.len(), 2);
        assert!(launch.not_enforced[0].contains("1000 bytes"));
        let unseen = Surroundings {
            gpu_use_unseen: true,
            ..surroundings()
        };
        let launch = prepare(&assignment, &spec, &unseen).unwrap();
        assert!(launch.not_enforced[2].contains("how busy"));
    }

    #[test]
    fn long_and_wild_names_are_tamed() {
        assert_eq!(quoted("a\nb"), "a\u{fffd}b");
        assert_eq!(quoted(&"x".repeat(201)).chars().count(), 201);
        assert_eq!(quoted(&"ä".repeat(200)), "ä".repeat(200));
    }
}
