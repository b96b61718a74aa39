//! F3, F4, F5, F20: the database is killed, silent or without room, and a coordinator stops among
//! silent clients.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::worker::Worker;
use crate::harness::{Installation, invariants, is_alive, kill, run};

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

/// Runs a program that finds a folder on a small disk of its own, and is not root there: Postgres
/// refuses to be.
const SMALL_DISK: &str = r#"mount -t tmpfs -o size=160m none "$0" &&
    exec unshare -U --map-user=1000 --map-group=1000 "$@""#;

#[test]
fn f05_a_full_disk_refuses_clearly_and_loses_nothing() {
    let qctl = Installation::prepare();
    let disk = qctl.home().join("data/database");
    std::fs::create_dir_all(&disk).unwrap();
    let on_disk = |program: &str, args: &[&str]| {
        let mut command = qctl.system_command("unshare");
        command.args(["-Urm", "sh", "-c", SMALL_DISK]);
        command.arg(&disk).arg(program).args(args);
        run(command)
    };
    if on_disk("true", &[]).code != 0 {
        println!("left out: this machine gives no name spaces");
        return;
    }
    on_disk("qctl", &["up", "--no-worker", "--listen", "127.0.0.1:0"]).ok();
    let address = std::fs::read_to_string(qctl.home().join("data/address")).unwrap();
    let _worker = Worker::start(&qctl, "box", 2, address.trim());
    let go = qctl.folder().join("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done", go.display());
    let running = qctl.submit(&["--shell", &script]);
    qctl.until_state(running, "running");
    let process = qctl.job_pid(running);

    // The disk is seen by those only that live on it.
    let inside = format!("/proc/{}/root{}", qctl.postgres_pids()[0], disk.display());
    let filler = std::path::Path::new(&inside).join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    let full = std::io::copy(&mut std::io::repeat(0).take(256 << 20), &mut file).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
    drop(file);
    let mut acknowledged = Vec::new();
    let refused = qctl.until("a submission is refused", || {
        let ran = qctl.qctl(&["--json", "submit", "--", "true"]);
        if ran.code != 0 {
            return Some(ran);
        }
        let job: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        acknowledged.push(job["id"].as_i64().unwrap());
        None
    });
    assert_eq!(refused.code, 75, "{}", refused.stderr);
    assert!(
        refused
            .stderr
            .contains("disk is full, and nothing was stored"),
        "{}",
        refused.stderr
    );
    // What ends meanwhile is recorded once there is room.
    qctl.file("go", "");
    qctl.until("the job has ended", || (!is_alive(process)).then_some(()));
    assert_eq!(qctl.qctl(&["submit", "--", "true"]).code, 75);
    std::fs::remove_file(&filler).unwrap();
    assert_eq!(qctl.until_ended(running)["state"], "succeeded");
    acknowledged.push(qctl.submit(&["--", "true"]));
    for id in acknowledged {
        assert_eq!(qctl.until_ended(id)["state"], "succeeded");
    }
}
