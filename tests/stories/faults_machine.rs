//! F32, F33: the machine is lost, or sleeps.

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::worker::Worker;
use crate::harness::{Installation, invariants, is_alive, kill};

/// A program that runs another one as if the machine had been started anew: with another boot id,
/// in a name space of its own.
const ANOTHER_BOOT: &str = r#"mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@""#;

#[test]
fn f32_a_lost_machine_is_an_interruption_and_its_jobs_go_on() {
    let can = Command::new("unshare").args(["-Urm", "true"]).status();
    if !can.is_ok_and(|status| status.success()) {
        println!("left out: this machine gives no name spaces, so its boot id cannot be another");
        return;
    }
    let qctl = Installation::prepare();
    qctl.up(&["--no-worker"]).ok();
    let address = std::fs::read_to_string(qctl.home().join("data/address")).unwrap();
    let worker = Worker::start(&qctl, "box", 2, address.trim());
    let running = qctl.witness(&[], &["lines=100", "until=go"]);
    let ended = qctl.witness(&["--retries", "0"], &["lines=3", "exit=9"]);
    qctl.until_begun(running, 1);
    qctl.until_ended(ended);
    worker.kill_machine();
    let boot = qctl.file("boot_id", "12345678-0000-4000-8000-000000000000\n");
    let boot = boot.to_string_lossy().into_owned();
    let wrapper = ["unshare", "-Urm", "sh", "-c", ANOTHER_BOOT, &boot];
    let _again = Worker::start_under(&qctl, &wrapper, "box", 2, address.trim());
    qctl.until_begun(running, 2);
    qctl.file("go", "");
    let job = qctl.until_ended(running);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    let outcome = &job["attempts"][0]["outcome"];
    assert_eq!(outcome["kind"], "interrupted", "{job:#}");
    assert_eq!(outcome["cause"], "worker_lost", "{job:#}");
    assert_eq!(job["retries_left"], 2, "an interruption is no failure");
    assert_eq!(
        qctl.job(ended)["exit_code"],
        9,
        "what had ended stays as it was"
    );
    invariants::assert_all(&qctl, &qctl.evidence());
}

#[test]
fn f33_a_machine_that_sleeps_loses_nothing() {
    let qctl = Installation::prepare()
        .env("QCTL_UNREACHABLE_AFTER", "1s")
        .env("QCTL_LOST_AFTER", "6s");
    qctl.up(&[]).ok();
    let id = qctl.witness(&[], &["lines=600", "pause_ms=10", "until=go"]);
    qctl.until_begun(id, 1);
    let job = qctl.job_pid(id);
    let mut all = qctl.pids("");
    all.extend(qctl.postgres_pids());
    all.push(job);
    for pid in &all {
        kill(*pid, Signal::STOP);
    }
    // Longer than the time after which a silent worker's jobs are given away.
    std::thread::sleep(Duration::from_millis(7_500));
    for pid in &all {
        kill(*pid, Signal::CONT);
    }
    qctl.file("go", "");
    assert!(is_alive(job));
    let ended = qctl.until_ended(id);
    assert_eq!(ended["state"], "succeeded", "{ended:#}");
    assert_eq!(ended["attempt"], 1, "nothing was given away: {ended:#}");
    invariants::assert_all(&qctl, &qctl.evidence());
}
