//! F1, F2: the coordinator is killed at any step of a job's way, and restarted with jobs running.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Installation, finish, invariants, kill};

#[test]
fn f01_a_coordinator_killed_at_random_moments_loses_and_doubles_nothing() {
    let qctl = Installation::start_with(&["--slots", "3"]);
    let witness = |tasks: &[&str]| {
        let mut command = vec![crate::harness::WITNESS.to_owned()];
        command.push(format!("folder={}", qctl.evidence().display()));
        command.extend(tasks.iter().map(|task| (*task).to_owned()));
        command
    };
    let mut batch = String::new();
    for number in 0..24 {
        let command = match number % 3 {
            0 => witness(&["lines=3"]),
            1 => witness(&["lines=20", "pause_ms=5"]),
            _ => witness(&["lines=2", "exit=3", "good_from=2"]),
        };
        let line = serde_json::json!({"name": format!("job {number}"), "command": command});
        batch.push_str(&format!("{line}\n"));
    }
    let batch = qctl.file("batch.jsonl", batch);
    let batch = batch.to_str().unwrap();
    let tables = invariants::Tables::of(&qctl);
    let mut takeovers = Vec::new();
    let mut submitted = 0;
    for round in 0..5_u64 {
        // A batch goes in with its own answer lost now and then: the command asks again under the
        // same request id.
        let mut submitting = (round % 2 == 0).then(|| start(&qctl, &["submit", "--batch", batch]));
        // One that finds no coordinator at its start says so and ends, which is another story.
        if let Some(child) = &mut submitting {
            qctl.until("it has connected", || {
                let ended = child.try_wait().unwrap().is_some();
                (ended || has_connected(child.id())).then_some(())
            });
        }
        // Everywhere between a submission's first byte and its jobs' ends.
        std::thread::sleep(Duration::from_millis(20 + 47 * round * round % 400));
        let killed = Instant::now();
        for pid in qctl.pids("qctl-server") {
            kill(pid, Signal::KILL);
        }
        qctl.until_answering();
        takeovers.push(killed.elapsed());
        assert_eq!(invariants::broken_now(&tables).unwrap(), [""; 0]);
        if let Some(submitting) = submitting {
            finish(submitting).ok();
            submitted += 24;
        }
    }
    println!("takeover: {takeovers:.1?} from kill -9 of the coordinator to its successor's answer");
    qctl.until("every job has ended", || {
        let open = "select id from jobs where ended_at is null limit 1";
        tables.rows(open).ok()?.is_empty().then_some(())
    });
    let jobs = tables
        .rows("select name, count(*) as n from jobs group by name")
        .unwrap();
    let total: i64 = jobs.iter().filter_map(|row| row["n"].as_i64()).sum();
    assert_eq!(total, submitted, "each acknowledged batch is there once");
    let wrong = tables
        .rows("select id, state, message from jobs where state <> 'succeeded'")
        .unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
    invariants::assert_all(&qctl, &qctl.evidence());
}

fn start(qctl: &Installation, args: &[&str]) -> Child {
    let mut command = qctl.command("qctl");
    command.args(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Processes of every job, and the shims.
fn processes_of(qctl: &Installation, jobs: &[i64]) -> (Vec<i32>, BTreeMap<i64, i32>) {
    let pids = jobs.iter().map(|id| (*id, qctl.job_pid(*id))).collect();
    (qctl.shims(), pids)
}

/// True once a process has an established connection.
fn has_connected(pid: u32) -> bool {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    let sockets: Vec<String> = links
        .flatten()
        .filter_map(|entry| {
            let link = std::fs::read_link(entry.path()).ok()?;
            let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // State and inode, as proc(5) numbers them; 01 is ESTABLISHED.
        fields.get(3) == Some(&"01")
            && fields
                .get(9)
                .is_some_and(|inode| sockets.iter().any(|one| one == inode))
    })
}

#[test]
fn f02_a_planned_restart_leaves_twenty_jobs_and_their_followers_alone() {
    let qctl = Installation::start_with(&["--slots", "20"]);
    let jobs: Vec<i64> = (0..20)
        .map(|number| {
            let exit = format!("exit={}", number % 2);
            let task = ["lines=40", "pause_ms=50", "until=go", &exit];
            qctl.witness(&["--retries", "0"], &task)
        })
        .collect();
    for id in &jobs {
        qctl.until_begun(*id, 1);
    }
    let before = processes_of(&qctl, &jobs);
    assert_eq!(before.0.len(), 20);
    let (first, second) = (jobs[0].to_string(), jobs[1].to_string());
    let following = start(&qctl, &["logs", "-f", &first]);
    let waiting = start(&qctl, &["wait", &second]);
    // One that finds no coordinator at its start says so and ends, which is another story.
    for child in [&following, &waiting] {
        qctl.until("it has connected", || {
            has_connected(child.id()).then_some(())
        });
    }
    let server = qctl.pids("qctl-server");
    for pid in &server {
        kill(*pid, Signal::TERM);
    }
    let submitted = {
        let mut command = qctl.command("qctl");
        let folder = format!("folder={}", qctl.evidence().display());
        command.args(["submit", "--follow", "--", crate::harness::WITNESS, &folder]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        qctl.until("another coordinator runs", || {
            let now = qctl.pids("qctl-server");
            (!now.is_empty() && now != server && qctl.qctl(&["list"]).code == 0).then_some(())
        });
        command.spawn().unwrap()
    };
    assert_eq!(processes_of(&qctl, &jobs), before, "no process changed");
    qctl.file("go", "");
    let followed = finish(following);
    let out = std::fs::read_to_string(qctl.evidence().join(format!("{first}.1.out"))).unwrap();
    assert_eq!(followed.stdout, out, "stderr: {}", followed.stderr);
    let waited = finish(waiting);
    assert_eq!(waited.code, 1, "the job's own code: {waited:?}");
    assert_eq!(finish(submitted).code, 0);
    for (number, id) in jobs.iter().enumerate() {
        let job = qctl.until_ended(*id);
        assert_eq!(job["exit_code"], number as i64 % 2, "{job:#}");
        assert_eq!(job["attempt"], 1);
    }
    invariants::assert_all(&qctl, &qctl.evidence());
}
