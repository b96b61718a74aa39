//! Parts are killed while work runs.

use rustix::process::Signal;

use crate::harness::{Installation, kill};

const COUNT: &str = "for i in $(seq 400); do echo line $i; sleep 0.01; done";

fn counted() -> Vec<u8> {
    (1..=400)
        .map(|i| format!("line {i}\n"))
        .collect::<String>()
        .into_bytes()
}

/// The agent: the worker program that is no shim.
fn agents(qctl: &Installation) -> Vec<i32> {
    let shims = qctl.pids("qctl-worker shim");
    qctl.pids("qctl-worker")
        .into_iter()
        .filter(|pid| !shims.contains(pid))
        .collect()
}

#[test]
fn a_killed_agent_finds_its_job_again_and_the_log_is_whole() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--shell", COUNT]);
    qctl.until_state(id, "running");
    for pid in agents(&qctl) {
        kill(pid, Signal::KILL);
    }
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(job["attempt"], 1);
    assert!(qctl.raw_log(id) == counted());
}

#[test]
fn a_killed_coordinator_restarts_no_job_and_followers_go_on() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--shell", COUNT]);
    let mut command = qctl.command("qctl");
    command.args(["logs", "-f", &id.to_string()]);
    command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let follower = command.spawn().unwrap();
    qctl.until_state(id, "running");
    for pid in qctl.pids("qctl-server") {
        kill(pid, Signal::KILL);
    }
    let ran = crate::harness::finish(follower);
    assert_eq!(ran.stdout.as_bytes(), counted(), "stderr: {}", ran.stderr);
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(job["attempt"], 1);
}

#[test]
fn a_killed_database_comes_back_with_everything() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--shell", COUNT]);
    qctl.until_state(id, "running");
    let postgres = qctl.postgres_pids();
    assert!(!postgres.is_empty());
    for pid in postgres {
        kill(pid, Signal::KILL);
    }
    qctl.until("the queue answers again", || {
        (qctl.qctl(&["list"]).code == 0).then_some(())
    });
    let job = qctl.until("the job ends", || {
        let ran = qctl.qctl(&["--json", "show", &id.to_string()]);
        let job: serde_json::Value = serde_json::from_str(&ran.stdout).ok()?;
        job["ended_at"].is_string().then_some(job)
    });
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert!(qctl.raw_log(id) == counted());
}

#[test]
fn a_job_that_ends_while_the_agent_is_away_has_its_true_code() {
    let qctl = Installation::start();
    let id = qctl.submit(&[
        "--retries",
        "0",
        "--shell",
        "echo up; while [ ! -e go ]; do sleep 0.02; done; exit 21",
    ]);
    qctl.until("it is up", || (qctl.raw_log(id) == b"up\n").then_some(()));
    // Without the keeper nobody restarts the agent.
    for pid in qctl.pids("qctl keeper").into_iter().chain(agents(&qctl)) {
        kill(pid, Signal::KILL);
    }
    let pid = qctl.job(id)["attempts"][0]["pid"].as_i64().unwrap() as i32;
    qctl.file("go", "");
    qctl.until("the job has ended unseen", || {
        (!crate::harness::is_alive(pid)).then_some(())
    });
    assert_eq!(qctl.job(id)["state"], "running", "nobody knows yet");
    qctl.up(&[]).ok();
    let job = qctl.until_ended(id);
    assert_eq!(job["exit_code"], 21, "{job:#}");
    assert_eq!(job["attempt"], 1);
}
