//! F18, F19, F29 and F30: output that floods a slow link, has one endless line, finds no room, or is
//! torn in its spool.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::proxy::Proxy;
use crate::harness::worker::Worker;
use crate::harness::{Installation, kill};

/// A coordinator without a worker of its own, and a link to it.
fn coordinator() -> (Installation, Proxy) {
    let qctl = Installation::prepare();
    qctl.up(&["--no-worker"]).ok();
    let link = Proxy::to_address_in(qctl.home().join("data/address"));
    (qctl, link)
}

/// Bytes of memory that are a process's own.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kilobytes.map_or(0, |number| number.trim().parse::<u64>().unwrap() * 1024)
}

#[test]
fn f18_a_flood_over_a_slow_link_delays_no_heartbeat_and_fills_no_memory() {
    let (qctl, link) = coordinator();
    link.throttle(128 * 1024);
    let worker = Worker::start(&qctl, "far", 1, &link.address().to_string());
    // Nothing that compresses: the link has to carry every byte.
    let id = qctl.submit(&["--log-limit", "8M", "--shell", "exec cat /dev/urandom"]);
    qctl.until_state(id, "running");
    let begun = Instant::now();
    let (mut oldest, mut largest) = (Duration::ZERO, 0);
    while begun.elapsed() < Duration::from_secs(20) {
        let workers = qctl.json(&["workers"]);
        let seen = workers["workers"][0]["last_seen"].as_str().unwrap();
        let seen = chrono::DateTime::parse_from_rfc3339(seen).unwrap();
        let age = (chrono::Utc::now() - seen.to_utc()).to_std();
        oldest = oldest.max(age.unwrap_or_default());
        largest = largest.max(resident(worker.pid()));
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("heartbeats were at most {oldest:.1?} old, the agent had {largest} bytes");
    // One is due every five seconds.
    assert!(oldest < Duration::from_secs(15), "{oldest:?}");
    assert!(largest < 64 << 20, "{largest} bytes");
    assert!(!qctl.job(id)["unreachable"].as_bool().unwrap_or_default());
    let stored = || qctl.job(id)["attempts"][0]["log_stored"].as_i64();
    assert!(stored() > Some(1 << 20), "{:?}", stored());
    qctl.qctl(&["cancel", &id.to_string()]).ok();
    assert_eq!(qctl.until_ended(id)["state"], "cancelled");
}

#[test]
fn f19_a_line_of_a_hundred_megabytes_is_stored_whole() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--shell", "head -c 100000000 /dev/zero | tr '\\0' x"]);
    assert_eq!(qctl.until_ended(id)["state"], "succeeded");
    let log = qctl.raw_log(id);
    assert_eq!(log.len(), 100_000_000);
    assert!(log.iter().all(|byte| *byte == b'x'));
}

#[test]
fn f29_a_full_spool_costs_output_in_words_and_not_the_job() {
    let (qctl, link) = coordinator();
    let spool = qctl.folder().join("workers/far/data/worker");
    std::fs::create_dir_all(&spool).unwrap();
    // A private disk of 16 MB, where this user may make one.
    let script =
        "mount -t tmpfs -o size=16m none \"$0\" && head -c 6000000 /dev/zero > \"$0/filler\"";
    let disk = spool.to_str().unwrap();
    let mut probe = qctl.system_command("unshare");
    probe.args(["-Urm", "sh", "-c", script, disk]);
    if !probe.status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: this user cannot mount a disk of his own");
        return;
    }
    let script = format!("{script} && exec \"$@\"");
    let wrapper = ["unshare", "-Urm", "sh", "-c", &script, disk];
    let address = link.address().to_string();
    let _worker = Worker::start_under(&qctl, &wrapper, "far", 1, &address);
    let job = format!("seq 1 3000000; rm '{disk}/filler'; sleep 0.6; echo behind; exit 3");
    let id = qctl.submit(&["--retries", "0", "--shell", &job]);
    let job = qctl.until_ended(id);
    assert_eq!(job["exit_code"], 3, "{job:#}");
    let told = qctl.until("the whole log is there", || {
        let ran = qctl.qctl(&["logs", &id.to_string()]);
        ran.stdout.ends_with("behind\n").then_some(ran.stderr)
    });
    assert!(
        told.contains("missing here: the worker's disk was full"),
        "{told}"
    );
    let events = qctl.job(id)["events"].as_array().unwrap().clone();
    let missing: Vec<_> = events
        .iter()
        .filter(|event| event["kind"] == "output_missing")
        .collect();
    assert_eq!(missing.len(), 1, "{events:#?}");
    // Every byte is there or told to be missing.
    let written = (1..=3_000_000)
        .map(|n| format!("{n}\n").len())
        .sum::<usize>()
        + "behind\n".len();
    let stored = &qctl.job(id)["attempts"][0]["log_stored"];
    assert_eq!(stored.as_u64(), Some(written as u64));
}

#[test]
fn f30_a_torn_spool_is_never_a_success_and_its_log_is_a_beginning() {
    let (qctl, link) = coordinator();
    let mut worker = Worker::start(&qctl, "far", 1, &link.address().to_string());
    for (round, left) in [1_000_000, 50_000, 300, 20].into_iter().enumerate() {
        let go = format!("go{round}");
        let script = format!(
            "seq 1 30000; while [ ! -e {go} ]; do sleep 0.02; done; echo attempt $QCTL_ATTEMPT"
        );
        let id = qctl.submit(&["--shell", &script]);
        let whole: Vec<u8> = (1..=30_000)
            .flat_map(|n| format!("{n}\n").into_bytes())
            .collect();
        qctl.until("it has printed", || {
            (qctl.raw_log(id) == whole).then_some(())
        });
        // The machine loses power, and with it the end of what it had written.
        worker.kill_agent();
        for shim in worker.shims() {
            kill(shim, Signal::KILL);
        }
        qctl.until("the shim is gone", || {
            worker.shims().is_empty().then_some(())
        });
        tear(&qctl.folder().join("workers/far/data/worker/spool"), left);
        qctl.file(&go, "");
        worker.start_again();
        let job = qctl.until_ended(id);
        assert_eq!(job["state"], "succeeded", "{job:#}");
        let attempts = job["attempts"].as_array().unwrap();
        assert!(attempts.len() >= 2, "{job:#}");
        assert_eq!(attempts[0]["outcome"]["kind"], "interrupted", "{job:#}");
        assert!(whole.starts_with(&qctl.attempt_log(id, 1)));
        let last = [
            &whole[..],
            format!("attempt {id}.{}\n", attempts.len()).as_bytes(),
        ]
        .concat();
        assert!(qctl.attempt_log(id, attempts.len() as i64) == last);
    }
}

/// Cuts the longest segment to at most so many bytes.
fn tear(spools: &Path, left: u64) {
    let files = std::fs::read_dir(spools).unwrap().flatten();
    let segments = files.flat_map(|spool| std::fs::read_dir(spool.path()).unwrap().flatten());
    let longest = segments
        .filter(|file| file.path().extension().is_some_and(|end| end == "segment"))
        .max_by_key(|file| file.metadata().unwrap().len())
        .unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(longest.path())
        .unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length.min(left).min(length - 1)).unwrap();
}
