//! F22, F23: the agent is killed, upgraded or away while jobs run.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Installation, invariants, is_alive, kill};

/// Longest time from an agent's end to the next one's having taken over.
const ADOPTED_WITHIN: Duration = Duration::from_secs(15);

/// Waits until the agent that was started last says that it is connected; gives the time that took.
fn adopted(qctl: &Installation, since: Instant, connections: usize) -> Duration {
    qctl.until("the next agent is connected", || {
        let log = std::fs::read_to_string(qctl.home().join("data/logs/worker.log")).ok()?;
        (log.matches("connected to the coordinator").count() > connections).then_some(())
    });
    since.elapsed()
}

fn connections(qctl: &Installation) -> usize {
    let log = std::fs::read_to_string(qctl.home().join("data/logs/worker.log"));
    let log = log.unwrap_or_default();
    log.matches("connected to the coordinator").count()
}

#[test]
fn f22_killed_agents_find_their_jobs_again_and_the_log_is_whole() {
    let qctl = Installation::start_with(&["--slots", "2"]);
    let steady = qctl.witness(&[], &["lines=100000", "width=200", "until=go"]);
    let other = qctl.witness(&[], &["lines=500", "pause_ms=10", "until=go"]);
    qctl.until_begun(steady, 1);
    qctl.until_begun(other, 1);
    let (shims, job) = (qctl.shims(), qctl.job_pid(steady));
    let mut worst = Duration::ZERO;
    for _ in 0..3 {
        let before = connections(&qctl);
        let killed = Instant::now();
        for pid in qctl.agents() {
            kill(pid, Signal::KILL);
        }
        qctl.up(&[]).ok();
        worst = worst.max(adopted(&qctl, killed, before));
        assert_eq!(qctl.shims(), shims, "the shims live on");
        assert!(is_alive(job));
    }
    println!("adoption: at most {worst:.1?} from kill -9 of the agent to its successor's welcome");
    assert!(worst < ADOPTED_WITHIN, "{worst:?}");
    qctl.file("go", "");
    for id in [steady, other] {
        let job = qctl.until_ended(id);
        assert_eq!(job["state"], "succeeded", "{job:#}");
        assert_eq!(job["attempt"], 1);
    }
    invariants::assert_all(&qctl, &qctl.evidence());
}

#[test]
fn f22_an_upgraded_agent_adopts_what_the_old_one_started() {
    let qctl = Installation::prepare().with_own_programs();
    qctl.up(&[]).ok();
    let id = qctl.witness(&[], &["lines=300", "pause_ms=10", "until=go"]);
    qctl.until_begun(id, 1);
    let shims = qctl.shims();
    // The program is replaced as an installation does it: another file under the same name.
    let program = qctl.bin().join("qctl-worker");
    let fresh = qctl.bin().join("qctl-worker.new");
    std::fs::copy(&program, &fresh).unwrap();
    std::fs::rename(&fresh, &program).unwrap();
    let before = connections(&qctl);
    let stopped = Instant::now();
    for pid in qctl.agents() {
        kill(pid, Signal::TERM);
    }
    let took = adopted(&qctl, stopped, before);
    assert!(took < ADOPTED_WITHIN, "{took:?}");
    let runs = |pid: i32| std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert_eq!(runs(qctl.agents()[0]), program, "the new program runs");
    assert_eq!(qctl.shims(), shims);
    assert!(
        runs(shims[0]).to_string_lossy().ends_with("(deleted)"),
        "the shim still is the old one"
    );
    qctl.file("go", "");
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(job["attempt"], 1);
    // What is started from now on is the new program.
    assert_eq!(
        qctl.until_ended(qctl.witness(&[], &[]))["state"],
        "succeeded"
    );
    invariants::assert_all(&qctl, &qctl.evidence());
}

#[test]
fn f23_a_job_that_ends_while_the_agent_is_away_has_its_true_code() {
    let qctl = Installation::start_with(&["--slots", "2"]);
    let none = ["--retries", "0"];
    let failing = qctl.witness(&none, &["lines=2000", "until=go", "exit=21"]);
    let good = qctl.witness(&none, &["lines=2000", "until=go"]);
    let jobs = [failing, good];
    let pids = jobs.map(|id| {
        qctl.until_begun(id, 1);
        qctl.job_pid(id)
    });
    // Without the keeper nobody restarts the agent.
    for pid in qctl.pids("qctl keeper").into_iter().chain(qctl.agents()) {
        kill(pid, Signal::KILL);
    }
    qctl.file("go", "");
    qctl.until("the jobs have ended unseen", || {
        pids.iter().all(|pid| !is_alive(*pid)).then_some(())
    });
    for id in jobs {
        assert_eq!(qctl.job(id)["state"], "running", "nobody knows yet");
    }
    qctl.up(&[]).ok();
    let job = qctl.until_ended(failing);
    assert_eq!(job["exit_code"], 21, "{job:#}");
    assert_eq!(job["attempt"], 1);
    assert_eq!(qctl.until_ended(good)["state"], "succeeded");
    invariants::assert_all(&qctl, &qctl.evidence());
}
