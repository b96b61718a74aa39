//! F24 to F27: shims are killed, jobs escape, ignore signals, and hold their pipes open.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Installation, invariants, kill, processes};

/// Every living process that bears a text in its environment.
fn bearing(text: &str) -> Vec<i32> {
    processes(|environ, _| {
        environ
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    })
}

/// A variable that no other test's processes have.
fn mark() -> String {
    format!("FAULTS_TEST={}", uuid::Uuid::new_v4())
}

#[test]
fn f24_a_killed_shim_is_an_interruption_and_its_tree_is_swept() {
    let qctl = Installation::start();
    let mark = mark();
    let task = ["lines=200", "until=go", "escape=2"];
    let id = qctl.witness(&["--env", &mark, "--resumes", "2"], &task);
    // Once under the agent's eyes, once with the agent killed at the same moment.
    for attempt in 1..=2 {
        qctl.until_begun(id, attempt);
        qctl.until("the escapee runs", || {
            (bearing(&mark).len() >= 2).then_some(())
        });
        let old = bearing(&mark);
        let agents = if attempt == 2 {
            qctl.agents()
        } else {
            Vec::new()
        };
        for pid in qctl.shims().into_iter().chain(agents) {
            kill(pid, Signal::KILL);
        }
        if attempt == 2 {
            // Two hosts lost within minutes of a start look as if the job did it.
            qctl.until_state(id, "held");
            qctl.qctl(&["release", &id.to_string()]).ok();
        }
        qctl.until_begun(id, attempt + 1);
        let left: Vec<_> = bearing(&mark)
            .into_iter()
            .filter(|pid| old.contains(pid))
            .collect();
        assert!(
            left.is_empty(),
            "the old tree is gone before the next attempt begins: {left:?}"
        );
    }
    qctl.file("go", "");
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    for attempt in 0..2 {
        let outcome = &job["attempts"][attempt]["outcome"];
        assert_eq!(outcome["kind"], "interrupted", "{job:#}");
        assert_eq!(outcome["cause"], "shim_lost");
    }
    assert_eq!(job["retries_left"], 2, "an interruption is no failure");
    invariants::assert_all(&qctl, &qctl.evidence());
    assert!(bearing(&mark).is_empty());
}

/// A tree that tries everything: new sessions, double forks, an emptied environment, deafness to
/// signals, and a loop that forks faster than one can count.
const ESCAPE: &str = r#"
trap '' TERM HUP INT
setsid sh -c 'trap "" TERM HUP; sleep 600 & wait' &
(setsid sh -c '(sleep 600 &) ; exit 0' &)
env -i setsid sleep 600 &
setsid sh -c 'env -i setsid sh -c "sleep 600 & exec sleep 600" &' 
sh -c 'trap "" TERM; while :; do sleep 0.05 & wait; done' &
echo up
while :; do sleep 1; done
"#;

#[test]
fn f25_nobody_escapes() {
    let qctl = Installation::start();
    let mark = mark();
    // The loop runs in a folder of its own, by which those are found who emptied their environment.
    let folder = qctl.folder().join("escape");
    std::fs::create_dir(&folder).unwrap();
    let inside = || {
        processes(|_, _| true)
            .into_iter()
            .filter(|pid| {
                std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == folder)
            })
            .count()
    };
    let cwd = folder.to_string_lossy().into_owned();
    for shim_dies in [false, true] {
        let id = qctl.submit(&[
            "--env",
            &mark,
            "--cwd",
            &cwd,
            "--resumes",
            "0",
            "--shell",
            ESCAPE,
        ]);
        qctl.until("everyone has escaped", || (inside() >= 9).then_some(()));
        let begun = Instant::now();
        if shim_dies {
            for pid in qctl.shims() {
                kill(pid, Signal::KILL);
            }
        } else {
            let grace = ["cancel", "--grace", "1s", &id.to_string()];
            qctl.qctl(&grace).ok();
        }
        let job = qctl.until_ended(id);
        assert_ne!(job["state"], "succeeded", "{job:#}");
        if shim_dies {
            // Who emptied the environment and left the tree can only be found by its parents, and
            // these died with the shim: see docs/faults.md.
            qctl.until("all that can be known are gone", || {
                bearing(&mark).is_empty().then_some(())
            });
        } else {
            qctl.until("nobody is left", || (inside() == 0).then_some(()));
        }
        println!("swept after {:.1?}", begun.elapsed());
    }
    // What was given up on purpose is not left to the machine.
    for pid in processes(|_, _| true) {
        if std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == folder) {
            kill(pid, Signal::KILL);
        }
    }
    // The slot is free again.
    assert_eq!(
        qctl.until_ended(qctl.witness(&[], &[]))["state"],
        "succeeded"
    );
    invariants::assert_all(&qctl, &qctl.evidence());
}

#[test]
fn f26_f27_a_deaf_job_is_killed_and_an_open_pipe_delays_no_exit() {
    let qctl = Installation::start_with(&["--slots", "3"]);
    let begun = Instant::now();
    let open = qctl.submit(&["--retries", "0", "--shell", "sleep 300 & echo gone; exit 5"]);
    let deaf = qctl.submit(&[
        "--time-limit",
        "3s",
        "--stop-grace",
        "1s",
        "--retries",
        "0",
        "--shell",
        "trap '' TERM; echo deaf; while :; do sleep 0.1; done",
    ]);
    let job = qctl.until_ended(open);
    assert_eq!(job["exit_code"], 5, "{job:#}");
    let took = begun.elapsed();
    // Whoever holds the pipe is waited for ten seconds; the end is told before.
    assert!(took < Duration::from_secs(10), "told after {took:?}");
    let job = qctl.until_ended(deaf);
    assert_eq!(job["outcome"]["cause"], "time_limit", "{job:#}");
    assert!(
        job["signal"].as_i64().is_none_or(|signal| signal == 9),
        "{job:#}"
    );
    let ran = job["attempts"][0]["duration"].as_f64().unwrap();
    assert!(ran >= 4.0, "the limit and the grace went by: {ran}");
    // The slot that the grandchild holds is freed once the tree is empty, after ten seconds.
    invariants::assert_all(&qctl, &qctl.evidence());
}
