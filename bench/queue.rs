//! What the queue costs, measured with the real programs in one run on this machine.
//!
//! Every figure stands beside what the machine does by itself: starting a process, writing a file.
//! Run it with `scripts/bench`; numbers between machines, or between runs on a busy one, do not
//! compare, the ratios within a run do.

#[path = "../tests/harness/mod.rs"]
#[allow(dead_code)]
mod harness;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use harness::Installation;
use serde_json::Value;

const JOBS: usize = 1_000;
const SUBMISSIONS: usize = 100;
const LINES: usize = 100;
/// Jobs that are watched, and how long.
const WATCHED: usize = 10;
const WATCHED_FOR: Duration = Duration::from_secs(30);

fn main() {
    // Cargo passes `--bench`; a name selects the measurements that contain it.
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let run =
        |name: &str| wanted.is_empty() || wanted.iter().any(|want| name.contains(want.as_str()));
    if run("throughput") {
        throughput();
    }
    if run("latency") {
        submit_to_start();
    }
    if run("follow") {
        followed_line();
    }
    if run("output") {
        output();
    }
    if run("idle") {
        idle();
    }
    if run("watching") {
        watching();
    }
}

fn report(what: &str, figure: String, beside: String) {
    println!("{what:<44} {figure:>16}   {beside}");
}

/// How often this machine starts `/bin/true` in a second, one after the other.
fn spawn_rate() -> f64 {
    let begun = Instant::now();
    for _ in 0..JOBS {
        Command::new("/bin/true").env_clear().status().unwrap();
    }
    JOBS as f64 / begun.elapsed().as_secs_f64()
}

fn throughput() {
    let qctl = Installation::start();
    let line = serde_json::json!({ "command": ["/bin/true"] });
    let file = qctl.file("jobs.jsonl", format!("{line}\n").repeat(JOBS));
    // One batch warms the programs up, the second one counts.
    for round in ["warm", "measured"] {
        let begun = Instant::now();
        let text = qctl
            .qctl(&["--json", "submit", "--batch", file.to_str().unwrap()])
            .ok();
        let submitted = begun.elapsed();
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        let last = last["id"].as_i64().unwrap();
        let first = last - JOBS as i64 + 1;
        qctl.qctl(&["wait", &last.to_string()]).ok();
        if round == "warm" {
            continue;
        }
        let start = time(&qctl.job(first)["started_at"]);
        let end = time(&qctl.job(last)["ended_at"]);
        let rate = (JOBS - 1) as f64 / (end - start);
        let raw = spawn_rate();
        report(
            "1,000 no-op jobs through one slot",
            format!("{rate:.0} jobs/s"),
            format!("fork+exec alone {raw:.0}/s, ratio {:.2}", rate / raw),
        );
        report(
            "the same, their submission as one batch",
            format!("{:.0} ms", submitted.as_secs_f64() * 1e3),
            String::new(),
        );
    }
    let begun = Instant::now();
    for _ in 0..SUBMISSIONS {
        // Waited for by the kernel: the harness asks every few milliseconds, as long as this takes.
        let mut command = qctl.command("qctl");
        command.args(["submit", "--", "/bin/true"]);
        assert!(command.stdout(Stdio::null()).status().unwrap().success());
    }
    let rate = SUBMISSIONS as f64 / begun.elapsed().as_secs_f64();
    report(
        "single submissions, one command line each",
        format!("{rate:.0} jobs/s"),
        "each acknowledged after its commit".to_owned(),
    );
}

fn submit_to_start() {
    let qctl = Installation::start();
    qctl.until_ended(qctl.submit(&["--", "/bin/true"]));
    let mut latencies = Vec::new();
    for _ in 0..SUBMISSIONS {
        let begun = now();
        let id = qctl.submit(&["--", "/bin/true"]);
        qctl.qctl(&["wait", &id.to_string()]).ok();
        latencies.push((time(&qctl.job(id)["started_at"]) - begun) * 1e3);
    }
    let raw = 1e3 / spawn_rate();
    report(
        "submit to process start, command line included",
        format!("{:.1} ms median", median(&mut latencies)),
        format!(
            "worst {:.1} ms; fork+exec alone {raw:.2} ms",
            latencies.last().unwrap()
        ),
    );
}

fn followed_line() {
    let qctl = Installation::start();
    let text = format!("for i in $(seq {LINES}); do date +%s%N; sleep 0.05; done");
    let id = qctl.submit(&["--shell", &text]);
    let mut command = qctl.command("qctl");
    command
        .args(["logs", "-f", &id.to_string()])
        .stdout(Stdio::piped());
    let mut follower = command.spawn().unwrap();
    let mut latencies = Vec::new();
    for line in BufReader::new(follower.stdout.take().unwrap()).lines() {
        let written = line.unwrap().parse::<f64>().unwrap() / 1e9;
        latencies.push((now() - written) * 1e3);
    }
    follower.wait().unwrap();
    // The first lines were written before the follower was there.
    latencies.drain(..LINES / 5);
    report(
        "a followed line is visible after",
        format!("{:.1} ms median", median(&mut latencies)),
        format!("worst {:.1} ms", latencies.last().unwrap()),
    );
}

fn output() {
    let qctl = Installation::start();
    let text = "seq 1 25000000";
    let plain = qctl.folder().join("plain");
    let mut alone = Vec::new();
    let mut queued = Vec::new();
    for _ in 0..3 {
        let begun = Instant::now();
        Command::new("sh")
            .args(["-c", &format!("{text} > {}", plain.display())])
            .status()
            .unwrap();
        alone.push(begun.elapsed().as_secs_f64());
        let id = qctl.submit(&["--shell", text]);
        let job = qctl.until_ended(id);
        queued.push(time(&job["ended_at"]) - time(&job["started_at"]));
    }
    let bytes = std::fs::metadata(&plain).unwrap().len() as f64 / 1e6;
    let (alone, queued) = (median(&mut alone), median(&mut queued));
    report(
        &format!("a job that writes {bytes:.0} MB"),
        format!("{queued:.2} s"),
        format!("into a file {alone:.2} s, ratio {:.2}", queued / alone),
    );
}

fn idle() {
    let qctl = Installation::start();
    qctl.until_ended(qctl.submit(&["--", "/bin/true"]));
    let pids = qctl.pids("qctl-");
    let resident = |pid: &i32| -> f64 {
        std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
            .unwrap_or_default()
            .lines()
            .find_map(|line| {
                line.strip_prefix("Pss:")?
                    .trim()
                    .strip_suffix(" kB")?
                    .trim()
                    .parse()
                    .ok()
            })
            .unwrap_or(0.0)
    };
    let used = share_of_a_core(&[&qctl.pids("")], Duration::from_secs(10));
    let memory: f64 = pids.iter().map(resident).sum::<f64>() / 1024.0;
    report(
        "coordinator, worker and shim when idle",
        format!("{memory:.1} MB"),
        format!(
            "proportional set size; all programs {:.1} % of a core",
            used[0]
        ),
    );
}

/// What ten running jobs of four processes each cost their worker while nothing happens, all alarms on
/// and signs of life looked for.
fn watching() {
    let qctl = Installation::prepare().env("QCTL_ALARM", "");
    qctl.up(&["--slots", &WATCHED.to_string()]).ok();
    let agents = || qctl.pids("qctl-worker");
    let agent = agents();
    let without = share_of_a_core(&[&agent], WATCHED_FOR)[0];
    let ids: Vec<i64> = (0..WATCHED)
        .map(|_| {
            let tree = "sleep 600 & sleep 600 & sleep 600 & wait";
            qctl.submit(&["--silence-counts", "activity", "--shell", tree])
        })
        .collect();
    for id in &ids {
        qctl.until_state(*id, "running");
    }
    let shims: Vec<i32> = agents()
        .into_iter()
        .filter(|pid| !agent.contains(pid))
        .collect();
    let used = share_of_a_core(&[&agent, &shims, &qctl.pids("qctl-server")], WATCHED_FOR);
    report(
        &format!("a worker that watches {WATCHED} jobs of 4 processes"),
        format!("{:.2} % of a core", used[0]),
        format!(
            "without jobs {without:.2} %; their shims {:.2} %, the coordinator {:.2} %",
            used[1], used[2]
        ),
    );
    for id in &ids {
        qctl.qctl(&["cancel", &id.to_string()]).ok();
    }
}

/// How much of one core each group of processes uses during a while, in percent.
fn share_of_a_core(groups: &[&[i32]], during: Duration) -> Vec<f64> {
    let used = || -> Vec<f64> {
        groups
            .iter()
            .map(|pids| pids.iter().map(|pid| nanoseconds(*pid)).sum())
            .collect()
    };
    let before = used();
    std::thread::sleep(during);
    let after = used();
    let share = |(before, after): (f64, f64)| (after - before) / during.as_nanos() as f64 * 100.0;
    before.into_iter().zip(after).map(share).collect()
}

/// Processor time of a process with the threads that it had. The kernel counts it in nanoseconds and
/// tells it in ticks of 10 ms.
fn nanoseconds(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold spaces and brackets; user and system time are the 12th and 13th after it.
    let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        * 1e7
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
}

/// Seconds since the epoch of an RFC 3339 time.
fn time(value: &Value) -> f64 {
    let time = chrono::DateTime::parse_from_rfc3339(value.as_str().unwrap()).unwrap();
    time.timestamp_micros() as f64 / 1e6
}
