//! What the agent adds to a job: `cargo bench -p qctl-worker --bench agent`.
//!
//! A coordinator in this process keeps one assignment ready at a real agent, so that the figures are
//! the agent's and its shim's alone. Beside them stands how long this machine takes to start
//! `/bin/true` and wait for it.

#[path = "../tests/agent/coordinator.rs"]
#[allow(dead_code)]
mod coordinator;
#[path = "../tests/agent/worker.rs"]
#[allow(dead_code)]
mod worker;

use std::time::{Duration, Instant};

use coordinator::{Coordinator, spec};
use worker::Worker;

const JOBS: i64 = 2_000;
/// Assignments that wait at the agent.
const AHEAD: i64 = 2;
const FLOOD: &str = "head -c 200000000 /dev/zero | tr '\\0' 'x'";
const LINES: &str = "seq 1 25000000 | head -c 200000000";

#[tokio::main]
async fn main() {
    let alone = spawn_time();
    println!("start and wait, this machine alone    {alone:>10.1?} a job");
    jobs(alone).await;
    output("200 MB without newlines", FLOOD).await;
    output("200 MB in short lines", LINES).await;
}

fn spawn_time() -> Duration {
    let begun = Instant::now();
    for _ in 0..JOBS {
        let status = std::process::Command::new("/bin/true").env_clear().status();
        assert!(status.unwrap().success());
    }
    begun.elapsed() / JOBS as u32
}

async fn jobs(alone: Duration) {
    let coordinator = Coordinator::start().await;
    let worker = Worker::start(&coordinator.address);
    coordinator
        .wait("a greeting", |s| s.hellos.len() == 1)
        .await;
    let assign = |fence| coordinator.assign_spec(fence, spec(&["/bin/true"]));
    assign(1);
    coordinator.complete(1).await;
    let before = processor_time(worker.pid());
    let begun = Instant::now();
    (2..2 + AHEAD).for_each(assign);
    for fence in 2..=JOBS {
        coordinator
            .wait("its end", |s| s.ended.contains_key(&fence))
            .await;
        if fence + AHEAD <= JOBS {
            assign(fence + AHEAD);
        }
    }
    let each = begun.elapsed() / (JOBS - 1) as u32;
    let ratio = alone.as_secs_f64() / each.as_secs_f64() * 100.0;
    println!(
        "through the agent, one slot           {each:>10.1?} a job, {ratio:.0} % of the bare rate"
    );
    let used = (processor_time(worker.pid()) - before) / (JOBS - 1) as u32;
    println!("processor time of the agent           {used:>10.1?} a job");
    println!(
        "memory of the agent                   {:>10} kB",
        resident_kb(worker.pid())
    );
}

async fn output(what: &str, script: &str) {
    let begun = Instant::now();
    let file = tempfile::tempfile().unwrap();
    let status = std::process::Command::new("/bin/sh")
        .args(["-c", script])
        .stdout(file)
        .status();
    assert!(status.unwrap().success());
    let alone = begun.elapsed();

    let coordinator = Coordinator::start().await;
    let worker = Worker::start(&coordinator.address);
    coordinator
        .wait("a greeting", |s| s.hellos.len() == 1)
        .await;
    let begun = Instant::now();
    coordinator.assign(1, script);
    coordinator
        .wait("its end", |s| s.ended.contains_key(&1))
        .await;
    let job = begun.elapsed();
    coordinator.complete(1).await;
    let stored = begun.elapsed();
    println!(
        "{what:<38}{job:>10.1?} (into a file {alone:.1?}), stored after {stored:.1?}, agent {:.1?} \
         of processor time, {} kB",
        processor_time(worker.pid()),
        resident_kb(worker.pid())
    );
}

/// Processor time that a process has used.
fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split(' ').collect();
    let ticks: u64 = fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Memory that a process has resident, in kilobytes.
fn resident_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.unwrap().split_whitespace().next().unwrap();
    number.parse().unwrap()
}
