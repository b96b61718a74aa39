//! Time limits, warnings, stopping, and what cannot be stopped politely.

use rustix::process::Signal;

use crate::harness::{Installation, is_alive, kill};

#[test]
fn a_time_limit_ends_the_attempt_as_a_failure() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--time-limit", "1s", "--retries", "0", "--", "sleep", "600"]);
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "failed");
    assert_eq!(job["outcome"]["cause"], "time_limit", "{job:#}");
    assert_eq!(qctl.qctl(&["wait", &id.to_string()]).code, 124);
}

#[test]
fn the_warning_comes_before_the_limit_and_can_save_the_work() {
    let qctl = Installation::start();
    let id = qctl.submit(&[
        "--time-limit",
        "60s",
        "--warn-before",
        "59s",
        "--shell",
        "trap 'echo warned; exit 0' USR1; while :; do sleep 0.05; done",
    ]);
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(qctl.raw_log(id), b"warned\n");
}

#[test]
fn kill_is_cancel_by_another_name_and_a_polite_job_may_clean_up() {
    let qctl = Installation::start();
    let id = qctl.submit(&[
        "--shell",
        "trap 'echo cleaned; exit 0' TERM; echo up; while :; do sleep 0.05; done",
    ]);
    qctl.until("it is up", || (qctl.raw_log(id) == b"up\n").then_some(()));
    qctl.qctl(&["kill", &id.to_string()]).ok();
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "cancelled", "{job:#}");
    assert!(
        qctl.raw_log(id).starts_with(b"up\ncleaned\n"),
        "the trap ran"
    );
}

#[test]
fn pause_freezes_the_tree_and_resume_thaws_it() {
    let qctl = Installation::start();
    let id = qctl.submit(&[
        "--shell",
        // In the background, because a shell that began it in the foreground may wait where no signal
        // reaches it until that has begun.
        "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02 & wait $!; done",
    ]);
    qctl.until_state(id, "running");
    qctl.qctl(&["pause", &id.to_string()]).ok();
    let job = qctl.until("it is paused", || {
        let job = qctl.job(id);
        (job["paused"] == true).then_some(job)
    });
    let pid = job["attempts"][0]["pid"].as_i64().unwrap() as i32;
    // A process takes its signal when the kernel next runs it.
    qctl.until("it is stopped", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.contains(") T ").then_some(())
    });
    qctl.qctl(&["resume", &id.to_string()]).ok();
    let length = qctl.raw_log(id).len();
    qctl.until("it writes again", || {
        (qctl.raw_log(id).len() > length).then_some(())
    });
    qctl.qctl(&["cancel", &id.to_string()]).ok();
    qctl.until_ended(id);
    assert!(!is_alive(pid));
}

#[test]
fn a_paused_job_can_be_cancelled() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--", "sleep", "600"]);
    qctl.until_state(id, "running");
    qctl.qctl(&["pause", &id.to_string()]).ok();
    qctl.qctl(&["cancel", &id.to_string()]).ok();
    assert_eq!(qctl.until_ended(id)["state"], "cancelled");
}

#[test]
fn a_signal_from_outside_is_a_failure_with_the_signal_named() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--retries", "0", "--", "sleep", "600"]);
    let job = qctl.until_state(id, "running");
    kill(
        job["attempts"][0]["pid"].as_i64().unwrap() as i32,
        Signal::SEGV,
    );
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "failed");
    assert_eq!(job["signal"], 11, "{job:#}");
    assert_eq!(job["outcome"]["cause"], "signal");
}
