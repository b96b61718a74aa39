//! F3, F4, F20: the database is killed or silent, and a coordinator stops among silent clients.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Installation, invariants, is_alive, kill};

#[test]
fn f03_a_killed_database_comes_back_with_everything() {
    let qctl = Installation::start();
    let id = qctl.witness(&[], &["lines=300", "pause_ms=10"]);
    qctl.until_begun(id, 1);
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
    invariants::assert_all(&qctl, &qctl.evidence());
}

#[test]
fn f04_a_silent_database_is_told_loses_no_job_and_heals_soon() {
    // A worker that is not heard of for this long loses its jobs, but only while the database answers.
    const LOST_AFTER: Duration = Duration::from_secs(6);
    let qctl = Installation::prepare()
        .env("QCTL_UNREACHABLE_AFTER", "1s")
        .env("QCTL_LOST_AFTER", format!("{}s", LOST_AFTER.as_secs()));
    qctl.up(&[]).ok();
    let id = qctl.witness(&[], &["lines=500", "pause_ms=10", "until=go"]);
    qctl.until_begun(id, 1);
    let postgres = qctl.postgres_pids();
    for pid in &postgres {
        kill(*pid, Signal::STOP);
    }
    let silent = Instant::now();
    let told = qctl.qctl(&["submit", "--", "true"]).fails();
    println!(
        "a submission was refused after {:.1?}: {told}",
        silent.elapsed()
    );
    assert!(
        told.contains("database") || told.contains("coordinator"),
        "{told}"
    );
    let left = (LOST_AFTER + Duration::from_secs(2)).saturating_sub(silent.elapsed());
    std::thread::sleep(left);
    for pid in &postgres {
        kill(*pid, Signal::CONT);
    }
    let back = Instant::now();
    qctl.until("the queue answers again", || {
        (qctl.qctl(&["list"]).code == 0).then_some(())
    });
    let healed = back.elapsed();
    println!("the pool healed after {healed:.1?}");
    assert!(healed < Duration::from_secs(15), "{healed:?}");
    qctl.file("go", "");
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(job["attempt"], 1, "{job:#}");
    // What was refused may have been stored all the same: it is there once or not at all, and ends.
    let tables = invariants::Tables::of(&qctl);
    qctl.until("whatever was stored has ended", || {
        let open = tables
            .rows("select id from jobs where ended_at is null")
            .ok()?;
        open.is_empty().then_some(())
    });
    assert!(tables.rows("select id from jobs").unwrap().len() <= 2);
    invariants::assert_all(&qctl, &qctl.evidence());
}

#[test]
fn f20_a_coordinator_stops_although_its_clients_are_silent() {
    let qctl = Installation::start();
    let id = qctl.witness(&[], &["lines=5", "until=go"]);
    qctl.until_begun(id, 1);
    let address = std::fs::read_to_string(qctl.home().join("data/address")).unwrap();
    // One that says nothing, one that stops in the middle of a greeting, and a follower that is frozen.
    let connect = || TcpStream::connect(address.trim()).unwrap();
    let (_mute, mut half) = (connect(), connect());
    half.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0")
        .unwrap();
    let mut follower = qctl.command("qctl");
    follower.args(["logs", "-f", &id.to_string()]);
    follower.stdout(std::process::Stdio::null());
    let mut follower = follower.spawn().unwrap();
    qctl.until("it follows", || {
        let sockets = std::fs::read_dir(format!("/proc/{}/fd", follower.id())).ok()?;
        let links = sockets
            .flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok());
        let mut links = links.filter(|link| link.to_string_lossy().starts_with("socket:"));
        links.next().map(|_| ())
    });
    kill(follower.id() as i32, Signal::STOP);
    let server = qctl.pids("qctl-server")[0];
    let asked = Instant::now();
    kill(server, Signal::TERM);
    qctl.until("the coordinator has stopped", || {
        (!is_alive(server)).then_some(())
    });
    let took = asked.elapsed();
    println!("stopped {took:.1?} after SIGTERM");
    // Ten seconds for open calls, and a moment for its own Postgres.
    assert!(took < Duration::from_secs(15), "{took:?}");
    follower.kill().unwrap();
    follower.wait().unwrap();
    qctl.up(&[]).ok();
    qctl.file("go", "");
    assert_eq!(qctl.until_ended(id)["state"], "succeeded");
    invariants::assert_all(&qctl, &qctl.evidence());
}
