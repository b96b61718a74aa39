//! F28, F32, F33: the machine has no memory left, is lost, or sleeps.

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::worker::Worker;
use crate::harness::{Installation, invariants, is_alive, kill};

/// Runs a program as if the machine had been started anew: with another boot id, in a name space of
/// its own.
const ANOTHER_BOOT: &str = r#"mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@""#;

/// Runs a program that sees another count of what the kernel killed for memory, and no control group
/// that counts for itself.
const ANOTHER_COUNT: &str =
    r#"mount -t tmpfs none /sys/fs/cgroup && mount --bind "$0" /proc/vmstat && exec "$@""#;

/// True where a program can be shown other files than the others see; says so where it cannot.
fn name_spaces() -> bool {
    let made = Command::new("unshare").args(["-Urm", "true"]).status();
    let made = made.is_ok_and(|status| status.success());
    if !made {
        println!("left out: this machine gives no name spaces");
    }
    made
}

#[test]
fn f28_a_kill_for_memory_is_named_and_the_agent_survives() {
    if !name_spaces() {
        return;
    }
    let qctl = Installation::prepare();
    qctl.up(&["--no-worker"]).ok();
    let address = std::fs::read_to_string(qctl.home().join("data/address")).unwrap();
    let count = qctl.file("vmstat", "oom_kill 3\n");
    let file = count.to_string_lossy().into_owned();
    let wrapper = ["unshare", "-Urm", "sh", "-c", ANOTHER_COUNT, &file];
    let worker = Worker::start_under(&qctl, &wrapper, "box", 2, address.trim());
    let none = ["--retries", "0"];
    let [murdered, starved] = [(); 2].map(|()| {
        let id = qctl.witness(&none, &["lines=3", "until=never"]);
        qctl.until_begun(id, 1);
        id
    });
    let shims = worker.shims();
    kill(qctl.job_pid(murdered), Signal::KILL);
    assert_eq!(qctl.until_ended(murdered)["outcome"]["cause"], "signal");
    // What the kernel does, in its order: it counts, and it kills.
    std::fs::write(&count, "oom_kill 4\n").unwrap();
    kill(qctl.job_pid(starved), Signal::KILL);
    let job = qctl.until_ended(starved);
    assert_eq!(job["state"], "failed", "{job:#}");
    assert_eq!(job["outcome"]["cause"], "out_of_memory", "{job:#}");
    assert_eq!(worker.shims(), shims);
    assert_eq!(
        qctl.until_ended(qctl.witness(&[], &[]))["state"],
        "succeeded"
    );
    invariants::assert_all(&qctl, &qctl.evidence());
}

#[test]
fn f32_a_lost_machine_is_an_interruption_and_its_jobs_go_on() {
    if !name_spaces() {
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
