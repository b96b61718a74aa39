//! What a silent attempt does: its deepest processes and where they wait, found out by a process of
//! its own, because reading about a process that hangs can hang as well.

use std::path::Path;
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::Duration;

use qctl_worker_core::silence::SilentProcess;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::Leader;
use crate::process::snapshot::{Process, Snapshot};

/// Processes that are told of.
const MAX_TOLD: usize = 5;

/// Longest part of a command line that is told, in bytes.
const MAX_COMMAND: usize = 200;

/// Longest stack that is told, in bytes.
const MAX_STACK: usize = 8 * 1024;

/// Most that is read of an answer, in bytes.
const MAX_ANSWER: u64 = 64 * 1024;

/// How long the processes may be looked at.
const PROCESSES_WITHIN: Duration = Duration::from_secs(3);

/// How long py-spy may take.
const STACK_WITHIN: Duration = Duration::from_secs(5);

/// How long all of it may take, with the wait for a place: the look before a stop begins ten seconds
/// before it.
const ALL_WITHIN: Duration = Duration::from_secs(9);

/// Looks under way at a time. One that hangs keeps its place until the kernel lets it go.
static LOOKS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(4));

/// Runs of py-spy under way at a time, which are slower and must not keep others from looking.
static SPIES: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(4));

/// What to look into.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The first process of the attempt
    #[arg(long, value_name = "PID")]
    pid: i32,
    /// Its start time in clock ticks after boot
    #[arg(long, value_name = "TICKS")]
    start_ticks: u64,
}

/// What was found.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Found {
    processes: Vec<FoundProcess>,
    /// The deepest process that runs Python.
    python: Option<i32>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct FoundProcess {
    pid: i32,
    command: String,
    state: String,
    wait_channel: String,
}

/// Looks at the processes of an attempt through `program`, and asks py-spy about one that runs
/// Python. Whatever does not answer in time is left out.
pub(super) async fn look_into(program: &Path, leader: Leader) -> (Vec<SilentProcess>, String) {
    let by = Instant::now() + ALL_WITHIN;
    let mut look = Command::new(program);
    look.arg("look-into")
        .args(["--pid", &leader.pid.to_string()])
        .args(["--start-ticks", &leader.start_ticks.to_string()]);
    let found: Found = match answer(&LOOKS, look, PROCESSES_WITHIN, by).await {
        Some(answer) => serde_json::from_slice(&answer).unwrap_or_default(),
        None => Found::default(),
    };
    let stack = match found.python {
        Some(pid) => stack(pid, by).await,
        None => String::new(),
    };
    let processes = found.processes.into_iter().take(MAX_TOLD);
    let processes = processes.map(|process| SilentProcess {
        pid: process.pid,
        command: cut(&process.command, MAX_COMMAND),
        state: cut(&process.state, 1),
        wait_channel: cut(&process.wait_channel, 64),
    });
    (processes.collect(), stack)
}

/// Where a Python program stands; empty where py-spy is not installed or may not look.
async fn stack(pid: i32, by: Instant) -> String {
    let mut spy = Command::new("py-spy");
    // It must not stop the program that it looks at.
    spy.args(["dump", "--nonblocking", "--pid", &pid.to_string()]);
    let told = answer(&SPIES, spy, STACK_WITHIN, by)
        .await
        .unwrap_or_default();
    cut(String::from_utf8_lossy(&told).trim_end(), MAX_STACK)
}

/// What a command says when it gets a place and succeeds in time. One that does not end is left
/// behind.
async fn answer(
    places: &'static Semaphore,
    mut command: Command,
    within: Duration,
    by: Instant,
) -> Option<Vec<u8>> {
    let place = timeout_at(by, places.acquire()).await.ok()?.ok()?;
    let by = by.min(Instant::now() + within);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    let mut stdout = child.stdout.take()?.take(MAX_ANSWER);
    let mut told = Vec::new();
    let answered = timeout_at(by, async {
        stdout.read_to_end(&mut told).await.ok()?;
        drop(stdout);
        child.wait().await.ok().filter(|status| status.success())
    });
    match answered.await {
        Ok(success) => success.map(|_| told),
        Err(_) => {
            let _ = child.start_kill();
            tokio::spawn(async move {
                let _ = child.wait().await;
                drop(place);
            });
            None
        }
    }
}

fn cut(text: &str, most: usize) -> String {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Prints what is found out about an attempt's processes, as JSON.
pub fn main(args: &Args) -> std::process::ExitCode {
    let leader = Leader {
        pid: args.pid,
        start_ticks: args.start_ticks,
    };
    let found = Snapshot::take().map(|snapshot| find(&snapshot, leader));
    match found {
        Ok(found) => {
            println!("{}", serde_json::json!(found));
            std::process::ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: processes cannot be looked at: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn find(snapshot: &Snapshot, leader: Leader) -> Found {
    let is_leader =
        |process: &&Process| process.pid == leader.pid && process.start_ticks == leader.start_ticks;
    let Some(first) = snapshot.processes().iter().find(is_leader) else {
        return Found::default();
    };
    let mut tree = snapshot.descendants(&[first.pid]);
    tree.push(*first);
    let depth = |process: &Process| {
        let mut depth = 0;
        let mut at = *process;
        while let Some(parent) = tree.iter().find(|other| other.pid == at.parent)
            && depth < tree.len()
        {
            depth += 1;
            at = *parent;
        }
        depth
    };
    let mut living: Vec<(usize, Process)> = tree
        .iter()
        .filter(|process| process.lives())
        .map(|process| (depth(process), *process))
        .collect();
    living.sort_by_key(|(depth, process)| (std::cmp::Reverse(*depth), process.pid));
    Found {
        python: living
            .iter()
            .map(|(_, process)| process.pid)
            .find(|pid| is_python(*pid)),
        processes: living
            .iter()
            .take(MAX_TOLD)
            .map(|(_, process)| look_at(process))
            .collect(),
    }
}

fn look_at(process: &Process) -> FoundProcess {
    let read = |file: &str| {
        let bytes = std::fs::read(format!("/proc/{}/{file}", process.pid)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let command: String = read("cmdline")
        .trim_end_matches('\0')
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    FoundProcess {
        pid: process.pid,
        command: cut(&command, MAX_COMMAND),
        state: char::from(process.state).to_string(),
        // 0 stands for nowhere, and for what may not be known.
        wait_channel: Some(read("wchan").trim().to_owned())
            .filter(|channel| channel != "0")
            .unwrap_or_default(),
    }
}

fn is_python(pid: i32) -> bool {
    let program = std::fs::read_link(format!("/proc/{pid}/exe"));
    program.is_ok_and(|program| {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("python") || name.starts_with("pypy")
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_deepest_process_comes_first_with_its_command_and_state() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 1000; true"])
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let start_ticks = Process::look(pid).unwrap().unwrap().start_ticks;
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let found = loop {
            let leader = Leader { pid, start_ticks };
            let found = find(&Snapshot::take().unwrap(), leader);
            // Until it has begun to sleep it may still be running.
            let sleeps = |p: &FoundProcess| p.command == "sleep 1000" && p.state == "S";
            if found.processes.first().is_some_and(sleeps) {
                break found;
            }
            assert!(std::time::Instant::now() < deadline, "{found:?}");
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(found.processes.len(), 2);
        assert_eq!(found.processes[1].pid, pid);
        assert_eq!(found.python, None);
        let sleep = rustix::process::Pid::from_raw(found.processes[0].pid).unwrap();
        rustix::process::kill_process(sleep, rustix::process::Signal::KILL).unwrap();
        let _ = child.kill();
        let _ = child.wait();
        let gone = Leader { pid, start_ticks };
        assert!(find(&Snapshot::take().unwrap(), gone).processes.is_empty());
    }

    #[tokio::test]
    async fn attempts_that_fall_silent_together_are_all_looked_into() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("look");
        let found = r#"{"processes":[{"pid":5,"command":"","state":"S","wait_channel":""}]}"#;
        std::fs::write(&program, format!("#!/bin/sh\nsleep 0.2\necho '{found}'\n")).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let mut looks = tokio::task::JoinSet::new();
        for pid in 1..=9 {
            let program = program.clone();
            let leader = Leader {
                pid,
                start_ticks: 1,
            };
            looks.spawn(async move { look_into(&program, leader).await });
        }
        let found = looks.join_all().await;
        let seen = found.iter().filter(|(processes, _)| processes.len() == 1);
        assert_eq!(seen.count(), 9, "{found:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_answer_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("look");
        let script = |script: &str| {
            std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        };
        let leader = Leader {
            pid: 1,
            start_ticks: 1,
        };
        script("exec sleep 1000");
        assert_eq!(
            look_into(&program, leader).await,
            (Vec::new(), String::new())
        );
        script("echo nonsense");
        assert_eq!(
            look_into(&program, leader).await,
            (Vec::new(), String::new())
        );
    }
}
