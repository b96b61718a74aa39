//! What is tried again, what is not, and what is held instead.

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Installation, kill};

fn messages(job: &Value, kind: &str) -> Vec<String> {
    job["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["kind"] == kind)
        .map(|event| event["message"].as_str().unwrap().to_owned())
        .collect()
}

fn kinds(job: &Value) -> Vec<&str> {
    job["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|attempt| attempt["outcome"]["kind"].as_str().unwrap_or(""))
        .collect()
}

/// Kills the shims while the job runs, so that how it ended is unknown, and waits until that is known.
#[track_caller]
fn lose_the_shim(qctl: &Installation, id: i64, attempt: i64) {
    qctl.until(&format!("attempt {attempt} runs"), || {
        let job = qctl.job(id);
        let runs = job["state"] == "running" && job["attempt"] == attempt;
        let written = !qctl.raw_log(id).is_empty();
        (runs && written).then_some(())
    });
    for pid in qctl.pids("qctl-worker shim") {
        kill(pid, Signal::KILL);
    }
    qctl.until(&format!("attempt {attempt} is lost"), || {
        let job = qctl.job(id);
        let ended = &job["attempts"][attempt as usize - 1]["outcome"];
        (ended["cause"] == "shim_lost").then_some(())
    });
}

#[test]
fn causes_decide_what_is_retried_and_the_history_names_the_rule() {
    let qctl = Installation::start();
    let refused = qctl.submit(&["--no-retry-on", "exit:2", "--shell", "exit 2"]);
    let retried = qctl.submit(&[
        "--retry-on",
        "exit:1,3",
        "--retries",
        "1",
        "--shell",
        "exit 3",
    ]);
    let other = qctl.submit(&["--retry-on", "exit:1,signal", "--shell", "exit 4"]);
    let limit = qctl.submit(&[
        "--no-retry-on",
        "time-limit",
        "--time-limit",
        "300ms",
        "--",
        "sleep",
        "60",
    ]);
    let job = qctl.until_ended(refused);
    assert_eq!(
        (&job["state"], &job["attempt"]),
        (&"failed".into(), &1.into())
    );
    let told = "exit 2; not retried: exit:2 is in --no-retry-on";
    assert_eq!(job["message"], told);
    assert_eq!(messages(&job, "ended"), [told]);
    assert_eq!(job["retries_left"], 2, "nothing was spent");
    let why = qctl.qctl(&["why", &refused.to_string()]).ok();
    assert!(why.contains("exit:2 is in --no-retry-on"), "{why}");

    let job = qctl.until_ended(retried);
    assert_eq!(
        (&job["attempt"], &job["retries_left"]),
        (&2.into(), &0.into())
    );
    assert_eq!(job["retry_on"], serde_json::json!(["exit:1", "exit:3"]));
    let job = qctl.until_ended(other);
    assert_eq!(job["attempt"], 1);
    let told = job["message"].as_str().unwrap();
    assert!(
        told.ends_with("--retry-on names only exit:1, signal"),
        "{told}"
    );
    let job = qctl.until_ended(limit);
    assert_eq!(
        (&job["attempt"], &job["outcome"]["cause"]),
        (&1.into(), &"time_limit".into())
    );
    let shown = qctl.qctl(&["show", &limit.to_string()]).ok();
    assert!(shown.contains("not time-limit"), "{shown}");
}

#[test]
fn a_checkpoint_exit_runs_again_and_costs_nothing() {
    let qctl = Installation::start();
    let id = qctl.submit(&[
        "--checkpoint-exit-code",
        "85",
        "--retries",
        "0",
        "--resumes",
        "0",
        "--shell",
        // Each attempt counts one further, from what the one before left.
        "n=0; [ -z \"$QCTL_RESUME_FROM\" ] || n=$(cat \"$QCTL_RESUME_FROM/n\"); n=$((n+1)); \
         echo $n; echo $n > \"$QCTL_CHECKPOINT_DIR/n\"; [ $n -lt 4 ] && exit 85; exit 0",
    ]);
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(
        kinds(&job),
        ["checkpointed", "checkpointed", "checkpointed", "succeeded"]
    );
    assert_eq!(
        (&job["retries_left"], &job["resumes_left"]),
        (&0.into(), &0.into())
    );
    assert_eq!(qctl.raw_log(id), b"4\n", "each went on from the one before");
}

#[test]
fn checkpoint_exits_that_lead_nowhere_are_held_and_a_release_counts_anew() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--checkpoint-exit-code", "85", "--shell", "exit 85"]);
    let job = qctl.until_state(id, "held");
    assert_eq!(
        (&job["reason"], &job["attempt"]),
        (&"checkpoint_loop".into(), &5.into())
    );
    assert_eq!(messages(&job, "held").len(), 1);
    assert_eq!(
        (&job["retries_left"], &job["resumes_left"]),
        (&2.into(), &3.into())
    );
    qctl.qctl(&["release", &id.to_string()]).ok();
    qctl.until("it is held again", || {
        let job = qctl.job(id);
        (job["state"] == "held" && job["attempt"] == 10).then_some(())
    });
}

#[test]
fn a_contradicted_exit_is_no_success() {
    let qctl = Installation::start();
    let summary = "printf '\\033[31m==== 1 failed, 2 passed in 0.05s ====\\033[0m\\n'";
    let piped = format!("({summary}; exit 1) | cat");
    let pattern = "[1-9][0-9]* failed";
    let options = [
        "--retries",
        "0",
        "--contradicted-by",
        pattern,
        "--shell",
        &piped,
    ];
    let id = qctl.submit(&options);
    let job = qctl.until_ended(id);
    assert_eq!(job["outcome"]["cause"], "contradicted", "{job:#}");
    assert_eq!(
        job["message"],
        "exit 0, but its output says: ==== 1 failed, 2 passed in 0.05s ===="
    );
    assert_eq!(qctl.qctl(&["wait", &id.to_string()]).code, 1);
    let fine = qctl.submit(&["--contradicted-by", pattern, "--shell", "echo 0 failed"]);
    assert_eq!(qctl.until_ended(fine)["state"], "succeeded");
    // The template knows pytest's own summary, whatever runs in its place.
    let fake = qctl.file(
        "bin/python3",
        "#!/bin/sh\necho '==== no tests ran in 0.01s ===='\n",
    );
    std::fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut submit = qctl.command("qctl");
    let path = format!("{}:/usr/bin:/bin", fake.parent().unwrap().display());
    submit
        .env("PATH", path)
        .args(["--json", "submit", "--template", "pytest"]);
    let made: Value = serde_json::from_str(&crate::harness::run(submit).ok()).unwrap();
    let job = qctl.until_ended(made["id"].as_i64().unwrap());
    assert_eq!(job["outcome"]["cause"], "contradicted", "{job:#}");
}

#[test]
fn a_host_that_is_lost_again_and_again_holds_the_job() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--shell", "echo up; sleep 600"]);
    lose_the_shim(&qctl, id, 1);
    lose_the_shim(&qctl, id, 2);
    let job = qctl.until_state(id, "held");
    assert_eq!(job["reason"], "crash_loop", "{job:#}");
    assert_eq!(job["resumes_left"], 2, "the second loss cost nothing");
    qctl.qctl(&["release", &id.to_string()]).ok();
    lose_the_shim(&qctl, id, 3);
    qctl.until("it runs on", || {
        (qctl.job(id)["attempt"] == 4).then_some(())
    });
    qctl.qctl(&["cancel", &id.to_string()]).ok();

    // Right after a GPU had no memory left, once is enough.
    let id = qctl.submit(&[
        "--shell",
        "echo 'torch.OutOfMemoryError: CUDA out of memory.'; sleep 600",
    ]);
    lose_the_shim(&qctl, id, 1);
    let job = qctl.until_state(id, "held");
    assert_eq!(job["reason"], "crash_loop", "{job:#}");
    assert!(
        job["message"]
            .as_str()
            .unwrap()
            .contains("GPU had no memory"),
        "{job:#}"
    );
}

#[test]
fn what_no_worker_can_run_is_said_at_once_and_accepted() {
    let qctl = Installation::start();
    qctl.until("the worker is known", || {
        let workers = qctl.json(&["workers"]);
        workers["workers"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
            .then_some(())
    });
    let ran = qctl.qctl(&["--json", "submit", "--slots", "9", "--", "true"]);
    assert!(ran.stderr.starts_with("warning: Job "), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("It needs 9 slots; the only worker, "),
        "{}",
        ran.stderr
    );
    let job: Value = serde_json::from_str(&ran.ok()).unwrap();
    assert_eq!(job["state"], "queued");
    let ran = qctl.qctl(&["submit", "--worker", "nobody", "--", "true"]);
    assert!(
        ran.stderr.contains("no worker of that name"),
        "{}",
        ran.stderr
    );
    assert_eq!(qctl.qctl(&["submit", "--", "true"]).stderr, "");
}

#[test]
fn rules_that_mean_nothing_are_refused_by_name() {
    let qctl = Installation::start();
    for (options, told) in [
        (
            &["--retry-on", "exit:0"][..],
            "`0` is no exit code of a failure",
        ),
        (&["--retry-on", "oom"], "`oom` is no cause of a failure"),
        (&["--no-retry-on", "signal:FOO"], "`FOO` is no signal"),
        (
            &["--checkpoint-exit-code", "256"],
            "expected a number from 1 to 255",
        ),
        (
            &["--retry-on", "exit:85", "--checkpoint-exit-code", "85"],
            "--checkpoint-exit-code is 85, which is named among the failures to retry",
        ),
        (
            &["--retry-on", "exit", "--no-retry-on", "exit"],
            "--no-retry-on is exit, which is to be retried as well",
        ),
        (
            &["--contradicted-by", "("],
            "--contradicted-by is not a regular expression",
        ),
        (
            &["--progress", "(?<percent>"],
            "--progress is not a regular expression",
        ),
    ] {
        let mut args = vec!["submit"];
        args.extend(options);
        args.extend(["--", "true"]);
        let ran = qctl.qctl(&args);
        assert_eq!(ran.code, 2, "{options:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(told), "{options:?}: {}", ran.stderr);
    }
    assert_eq!(qctl.json(&["list"])["jobs"].as_array().unwrap().len(), 0);
}

#[test]
fn a_job_that_a_worker_has_ready_can_be_edited_while_others_come_and_go() {
    let qctl = Installation::start();
    let first = qctl.submit(&["--", "sleep", "600"]);
    qctl.until_state(first, "running");
    let next = qctl.submit(&["--", "false"]);
    for round in 0..10 {
        let seconds = format!("{}s", 60 + round);
        qctl.qctl(&[
            "edit",
            &next.to_string(),
            "--time-limit",
            &seconds,
            "--retry-on",
            "exit:7",
        ])
        .ok();
    }
    qctl.qctl(&[
        "edit",
        &next.to_string(),
        "--clear",
        "retry-on",
        "--",
        "true",
    ])
    .ok();
    let job = qctl.job(next);
    assert_eq!(
        (&job["time_limit"], &job["retry_on"]),
        (&69.0.into(), &serde_json::json!([]))
    );
    qctl.qctl(&["cancel", &first.to_string()]).ok();
    assert_eq!(qctl.until_ended(next)["state"], "succeeded");
}

/// F39: a cancel that races the end leaves one final state, which never changes.
#[test]
fn cancels_that_race_the_end_leave_one_final_state() {
    let qctl = Installation::start_with(&["--slots", "4"]);
    let ids: Vec<i64> = (0..16)
        .map(|_| qctl.submit(&["--", "sleep", "0.2"]))
        .collect();
    let words: Vec<String> = ids.iter().map(i64::to_string).collect();
    for id in &words {
        // Refused where the job had ended already.
        qctl.qctl(&["cancel", id]);
    }
    for id in ids {
        let job = qctl.until_ended(id);
        let state = job["state"].as_str().unwrap();
        assert!(["succeeded", "cancelled"].contains(&state), "{job:#}");
        let ends = messages(&job, "ended").len() + messages(&job, "cancelled").len();
        assert_eq!(ends, 1, "{job:#}");
        let last = job["attempts"].as_array().unwrap().last();
        if let Some(kind) = last.map(|attempt| attempt["outcome"]["kind"].as_str().unwrap()) {
            assert_eq!(kind == "succeeded", state == "succeeded", "{job:#}");
        }
        assert_eq!(qctl.job(id)["ended_at"], job["ended_at"]);
    }
}
