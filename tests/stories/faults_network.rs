//! F13 to F16: the network between an agent and its coordinator goes silent, breaks, or flaps.

use std::time::{Duration, Instant};

use crate::harness::proxy::Proxy;
use crate::harness::worker::Worker;
use crate::harness::{Installation, invariants, is_alive, kill, wait_for};

/// A coordinator without a worker of its own, and a link to it.
fn coordinator(settings: &[(&str, &str)]) -> (Installation, Proxy) {
    let mut qctl = Installation::prepare();
    for (name, value) in settings {
        qctl = qctl.env(name, *value);
    }
    qctl.up(&["--no-worker"]).ok();
    let link = Proxy::to_address_in(qctl.home().join("data/address"));
    (qctl, link)
}

/// What the job of this number has lived through, a word each.
fn history(qctl: &Installation, id: i64) -> Vec<String> {
    let job = qctl.job(id);
    let events = job["events"].as_array().unwrap();
    let kinds = events.iter().filter_map(|event| event["kind"].as_str());
    kinds.map(str::to_owned).collect()
}

#[test]
fn f13_f14_a_silent_network_is_noticed_and_costs_nothing() {
    let (qctl, link) = coordinator(&[]);
    let worker = Worker::start(&qctl, "far", 1, &link.address().to_string());
    let first = qctl.witness(&[], &["lines=300", "pause_ms=10", "until=go"]);
    qctl.until_begun(first, 1);
    let pid = qctl.job_pid(first);
    // Half-open: the peer is gone without a word, and a new connection would work.
    let before = link.accepted().len();
    let stranded = Instant::now();
    link.freeze();
    qctl.until("the agent dials again", || {
        (link.accepted().len() > before).then_some(())
    });
    let noticed = stranded.elapsed();
    println!("a half-open connection was noticed after {noticed:.1?}");
    assert!(noticed < Duration::from_secs(30), "{noticed:?}");
    assert!(is_alive(pid));
    qctl.until("the output goes on", || {
        (qctl.attempt_log(first, 1).len() > 5_000).then_some(())
    });
    // A partition: everything waits, and the job ends meanwhile.
    link.freeze_all();
    qctl.file("go", "");
    qctl.until("the job has ended unseen", || {
        (!is_alive(pid)).then_some(())
    });
    assert_eq!(qctl.job(first)["state"], "running", "nobody knows yet");
    link.thaw();
    let job = qctl.until_ended(first);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(job["attempt"], 1);
    assert!(worker.shims().len() <= 1);
    invariants::assert_all(&qctl, &qctl.evidence());
}

#[test]
fn f15_a_partition_that_lasts_moves_the_job_and_the_old_attempt_is_stopped() {
    let short = [("QCTL_UNREACHABLE_AFTER", "1s"), ("QCTL_LOST_AFTER", "4s")];
    let (qctl, link) = coordinator(&short);
    let _far = Worker::start(&qctl, "far", 1, &link.address().to_string());
    // No witness: without proof of death both attempts may run, which is what is looked at here.
    let script = "echo begun; while [ ! -e go.$QCTL_ATTEMPT ]; do sleep 0.05; done; echo done";
    let id = qctl.submit(&["--stop-grace", "500ms", "--shell", script]);
    let old = qctl.job_pid(id);
    let address = std::fs::read_to_string(qctl.home().join("data/address")).unwrap();
    let _near = Worker::start(&qctl, "near", 1, address.trim());
    qctl.until("the second worker is there", || {
        let workers = qctl.json(&["workers"]);
        (workers["workers"].as_array()?.len() == 2).then_some(())
    });
    let cut = Instant::now();
    link.refuse();
    qctl.until("it is told that the worker is away", || {
        (qctl.job(id)["attempts"][0]["unreachable"] == true).then_some(())
    });
    qctl.until("the job runs elsewhere", || {
        let job = qctl.job(id);
        (job["attempt"] == 2 && job["state"] == "running").then_some(())
    });
    let moved = cut.elapsed();
    // Silence is counted once a second, and may have begun just before.
    assert!(moved >= Duration::from_secs(3), "too early: {moved:?}");
    assert!(is_alive(old), "losing sight of it is not stopping it");
    link.thaw();
    qctl.until("the old attempt is stopped on its worker's return", || {
        (!is_alive(old)).then_some(())
    });
    qctl.file(&format!("go.{id}.2"), "");
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(job["attempt"], 2);
    assert_eq!(job["attempts"][0]["outcome"]["kind"], "interrupted");
    for word in ["unreachable", "late_result"] {
        qctl.until(&format!("{word} is told"), || {
            history(&qctl, id)
                .iter()
                .any(|kind| kind == word)
                .then_some(())
        });
    }
    invariants::assert_all(&qctl, &qctl.evidence());
}

#[test]
fn f15_an_exclusive_job_stops_itself_before_it_is_given_away() {
    // The lease ends a grace period and a minute before the job is given away: after ten seconds.
    let (qctl, link) = coordinator(&[("QCTL_LOST_AFTER", "71s")]);
    let mut far = Worker::start(&qctl, "far", 1, &link.address().to_string());
    let options = ["--exclusive", "--stop-grace", "1s"];
    let id = qctl.witness(&options, &["lines=20", "until=go"]);
    qctl.until_begun(id, 1);
    let pid = qctl.job_pid(id);
    let cut = Instant::now();
    link.refuse();
    qctl.until("it has stopped by itself", || {
        (!is_alive(pid)).then_some(())
    });
    let stopped = cut.elapsed();
    println!("an exclusive job stopped itself {stopped:.1?} after the cut");
    assert!(stopped < Duration::from_secs(15), "{stopped:?}");
    assert_eq!(qctl.job(id)["attempt"], 1, "nobody else has it yet");
    qctl.file("go", "");
    link.thaw();
    // A new agent does not wait for the old one's next dial; it finds the record of the stop.
    far.kill_agent();
    far.start_again();
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(job["attempt"], 2);
    assert_eq!(
        job["attempts"][0]["outcome"]["kind"], "interrupted",
        "{job:#}"
    );
    invariants::assert_all(&qctl, &qctl.evidence());
}

#[test]
fn f16_a_flapping_network_starts_nothing_twice() {
    let (qctl, link) = coordinator(&[]);
    let _worker = Worker::start(&qctl, "far", 3, &link.address().to_string());
    let jobs: Vec<i64> = (0..24)
        .map(|_| qctl.witness(&[], &["lines=30", "pause_ms=10", "width=2000"]))
        .collect();
    for round in 0..8_u64 {
        std::thread::sleep(Duration::from_millis(150 + 90 * round));
        link.cut();
    }
    for id in jobs {
        let job = qctl.until_ended(id);
        assert_eq!(job["state"], "succeeded", "{job:#}");
        let ran = job["attempts"].as_array().unwrap();
        let ran = ran
            .iter()
            .filter(|attempt| attempt["outcome"]["kind"] != "never_started");
        assert_eq!(ran.count(), 1, "{job:#}");
    }
    invariants::assert_all(&qctl, &qctl.evidence());
}

/// Processor time that a process has used, in seconds.
fn processor_time(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .collect();
    let ticks = |field: usize| fields.get(field).and_then(|text| text.parse::<f64>().ok());
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / per_second
}

#[test]
fn f16_fifty_agents_come_back_spread_out_and_cheaply() {
    const AGENTS: usize = 50;
    let (qctl, link) = coordinator(&[]);
    let _workers: Vec<Worker> = (0..AGENTS)
        .map(|number| Worker::start(&qctl, &format!("w{number}"), 1, &link.address().to_string()))
        .collect();
    let connected = || {
        let workers = qctl.json(&["workers"]);
        let workers = workers["workers"].as_array().cloned().unwrap_or_default();
        let here = workers
            .iter()
            .filter(|worker| worker["state"] != "unreachable" && worker["state"] != "offline");
        here.count()
    };
    qctl.until("all agents are connected", || {
        (connected() == AGENTS).then_some(())
    });
    for pid in qctl.pids("qctl-server") {
        kill(pid, rustix::process::Signal::KILL);
    }
    let before = link.accepted().len();
    qctl.up(&["--no-worker"]).ok();
    let begun = Instant::now();
    let server = qctl.pids("qctl-server")[0];
    let used = processor_time(server);
    // A job for each: all of them run only if all of them are back.
    let jobs: Vec<i64> = (0..AGENTS)
        .map(|number| qctl.submit(&["--worker", &format!("w{number}"), "--", "true"]))
        .collect();
    for id in jobs {
        assert_eq!(qctl.until_ended(id)["state"], "succeeded");
    }
    let took = begun.elapsed().as_secs_f64();
    let used = processor_time(server) - used;
    let mut dials = link.accepted()[before..].to_vec();
    dials.sort();
    println!(
        "{AGENTS} agents were back after {took:.1} s, {} connections; the coordinator used {used:.2} s",
        dials.len()
    );
    assert!(
        used < took,
        "less than one core: {used:.2} s in {took:.2} s"
    );
    let crowd = dials
        .iter()
        .map(|at| {
            let window = *at..*at + Duration::from_millis(100);
            dials
                .iter()
                .filter(|&&other| window.contains(&other))
                .count()
        })
        .max()
        .unwrap_or(0);
    assert!(
        crowd < dials.len() * 2 / 3,
        "{crowd} of {} within 100 ms",
        dials.len()
    );
    assert!(wait_for(|| (connected() == AGENTS).then_some(())).is_some());
}
