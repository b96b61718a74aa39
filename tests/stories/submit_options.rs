//! Every option of `submit` does what it says.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Installation, finish};

#[test]
fn name_labels_tracker_and_workspace_are_kept_and_reach_the_job() {
    let qctl = Installation::start();
    let workspace = qctl.folder().join("outputs");
    std::fs::create_dir(&workspace).unwrap();
    let id = qctl.submit(&[
        "--name",
        "tagged",
        "--label",
        "kind=test",
        "--label",
        "slow",
        "--tracker",
        "INTG-088",
        "--workspace",
        workspace.to_str().unwrap(),
        "--",
        "sh",
        "-c",
        "echo $TRACKER_ID $TRACKER_WORKSPACE $QCTL_JOB $QCTL_ATTEMPT",
    ]);
    let job = qctl.until_ended(id);
    assert_eq!(job["labels"], json!({"kind": "test", "slow": ""}));
    let log = String::from_utf8(qctl.raw_log(id)).unwrap();
    assert_eq!(
        log,
        format!("INTG-088 {} {id} {id}.1\n", workspace.display())
    );
}

#[test]
fn tracker_and_workspace_come_from_the_environment_unless_given() {
    let qctl = Installation::start()
        .env("TRACKER_ID", "ENV-7")
        .env("TRACKER_WORKSPACE", "/tmp");
    let id = qctl.submit(&["--", "sh", "-c", "echo $TRACKER_ID $TRACKER_WORKSPACE"]);
    qctl.until_ended(id);
    assert_eq!(qctl.raw_log(id), b"ENV-7 /tmp\n");
    let id = qctl.submit(&["--tracker", "OWN-1", "--", "sh", "-c", "echo $TRACKER_ID"]);
    qctl.until_ended(id);
    assert_eq!(qctl.raw_log(id), b"OWN-1\n");
}

#[test]
fn cwd_and_env_are_the_jobs() {
    let qctl = Installation::start().env("COPIED", "from here");
    let id = qctl.submit(&[
        "--cwd",
        "/usr",
        "--env",
        "GIVEN=a b",
        "--env",
        "COPIED",
        "--",
        "sh",
        "-c",
        "echo \"$PWD|$GIVEN|$COPIED|$HOME_NOT_CAPTURED\"",
    ]);
    qctl.until_ended(id);
    assert_eq!(qctl.raw_log(id), b"/usr|a b|from here|\n");
}

#[test]
fn a_shell_text_is_run_by_a_shell_and_a_vector_is_not() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--shell", "echo one && echo $((1 + 1)) | cat"]);
    assert_eq!(qctl.until_ended(id)["state"], "succeeded");
    assert_eq!(qctl.raw_log(id), b"one\n2\n");
    let id = qctl.submit(&["--", "echo", "a; rm -rf $HOME", "b  c"]);
    qctl.until_ended(id);
    assert_eq!(qctl.raw_log(id), b"a; rm -rf $HOME b  c\n");
}

#[test]
fn retries_are_spent_on_failures_and_then_the_job_has_failed() {
    let qctl = Installation::start();
    let id = qctl.submit(&[
        "--retries",
        "1",
        "--",
        "sh",
        "-c",
        "echo $QCTL_ATTEMPT; exit 3",
    ]);
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "failed");
    assert_eq!(job["attempt"], 2, "{job:#}");
    assert_eq!(job["retries_left"], 0);
    assert_eq!(job["exit_code"], 3);
}

#[test]
fn resumes_are_spent_on_interruptions_and_checkpoints_are_handed_on() {
    let qctl = Installation::start();
    // The first attempt leaves a checkpoint and loses its shim; the second one finds the checkpoint.
    let publish = format!(
        "{} checkpoint > /dev/null",
        qctl.bin().join("qctl").display()
    );
    let id = qctl.submit(&[
        "--resumes",
        "1",
        "--shell",
        &"if [ -n \"$QCTL_RESUME_FROM\" ]; then cat $QCTL_RESUME_FROM/state; else \
         echo 17 > $QCTL_CHECKPOINT_DIR/state; PUBLISH; echo ready; exec sleep 600; fi"
            .replace("PUBLISH", &publish),
    ]);
    qctl.until_state(id, "running");
    qctl.until("the checkpoint is written", || {
        (qctl.raw_log(id) == b"ready\n").then_some(())
    });
    for shim in shims_of(&qctl, id) {
        crate::harness::kill(shim, rustix::process::Signal::KILL);
    }
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(job["attempt"], 2);
    assert_eq!(job["resumes_left"], 0);
    assert_eq!(job["retries_left"], 2, "an interruption costs no retry");
    assert_eq!(job["attempts"][0]["outcome"]["kind"], "interrupted");
    assert_eq!(qctl.raw_log(id), b"17\n");
}

#[test]
fn without_resumes_an_interruption_ends_the_job() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--resumes", "0", "--", "sleep", "600"]);
    qctl.until_state(id, "running");
    for shim in shims_of(&qctl, id) {
        crate::harness::kill(shim, rustix::process::Signal::KILL);
    }
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "failed", "{job:#}");
    assert_eq!(job["outcome"]["kind"], "interrupted");
}

/// The shim that runs a job is the parent of the job's process.
fn shims_of(qctl: &Installation, id: i64) -> Vec<i32> {
    let job = qctl.job(id);
    let pid = job["attempts"].as_array().unwrap().last().unwrap()["pid"]
        .as_i64()
        .unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    vec![
        after_name
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap(),
    ]
}

#[test]
fn a_held_job_waits_for_release() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--hold", "--", "true"]);
    assert_eq!(qctl.job(id)["state"], "held");
    let behind = qctl.submit(&["--wait", "--", "true"]);
    assert_eq!(
        qctl.job(behind)["state"],
        "succeeded",
        "a held job blocks nobody"
    );
    assert_eq!(qctl.job(id)["state"], "held");
    qctl.qctl(&["release", &id.to_string()]).ok();
    assert_eq!(qctl.until_ended(id)["state"], "succeeded");
}

#[test]
fn the_same_request_id_makes_one_job() {
    let qctl = Installation::start();
    let first = qctl.submit(&["--request-id", "once", "--", "true"]);
    let second = qctl.submit(&["--request-id", "once", "--", "true"]);
    assert_eq!(first, second);
    let told = qctl
        .qctl(&["submit", "--request-id", "once", "--", "false"])
        .fails();
    assert!(told.contains("once"), "{told}");
    assert_eq!(qctl.json(&["list"])["jobs"].as_array().unwrap().len(), 1);
}

#[test]
fn a_job_for_a_named_worker_waits_for_it_and_says_so() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--worker", "elsewhere", "--", "true"]);
    let why = qctl.qctl(&["why", &id.to_string()]).ok();
    assert!(why.contains("elsewhere"), "{why}");
    assert_eq!(qctl.job(id)["state"], "queued");
    let behind = qctl.submit(&["--", "true"]);
    assert_eq!(qctl.until_ended(behind)["state"], "succeeded");
}

#[test]
fn demands_that_no_worker_meets_wait_and_say_so() {
    let qctl = Installation::start();
    for (option, value, word) in [
        ("--slots", "9", "slot"),
        ("--gpus", "64", "GPU"),
        ("--memory", "900T", "memory"),
    ] {
        let id = qctl.submit(&[option, value, "--", "true"]);
        let why = qctl.qctl(&["why", &id.to_string()]).ok();
        assert!(why.contains(word), "{option}: {why}");
        assert_eq!(qctl.job(id)["state"], "queued");
    }
    let behind = qctl.submit(&["--", "true"]);
    assert_eq!(
        qctl.until_ended(behind)["state"],
        "succeeded",
        "they block nobody"
    );
}

#[test]
fn slots_bound_what_runs_side_by_side() {
    let qctl = Installation::start_with(&["--slots", "3"]);
    let wide = qctl.submit(&["--slots", "2", "--", "sleep", "600"]);
    qctl.until_state(wide, "running");
    let fits = qctl.submit(&["--", "sleep", "600"]);
    qctl.until_state(fits, "running");
    let third = qctl.submit(&["--", "true"]);
    let why = qctl.qctl(&["why", &third.to_string()]).ok();
    assert!(
        why.contains(&wide.to_string()) && why.contains(&fits.to_string()),
        "{why}"
    );
    assert_eq!(qctl.job(third)["state"], "queued");
    qctl.qctl(&["cancel", &fits.to_string()]).ok();
    assert_eq!(qctl.until_ended(third)["state"], "succeeded");
}

#[test]
fn a_memory_demand_is_placed_and_says_what_is_not_enforced() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--memory", "1M", "--", "true"]);
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded");
    let notes = job["attempts"][0]["not_enforced"].as_array().unwrap();
    let enforced = notes.is_empty();
    assert!(
        enforced || notes[0].as_str().unwrap().contains("memory"),
        "either a control group bounds it, or the record says that nothing does: {job:#}"
    );
}

#[test]
fn an_exclusive_job_stops_itself_before_its_place_is_given_away() {
    let qctl = Installation::prepare();
    // The lease ends one minute and the grace before the attempt would be given up.
    qctl.file(
        "home/config/server.toml",
        "unreachable_after = \"5s\"\nlost_after = \"72s\"\n",
    );
    qctl.up(&["--slots", "2"]).ok();
    let plain = qctl.submit(&["--", "sleep", "600"]);
    let exclusive = qctl.submit(&["--exclusive", "--stop-grace", "1s", "--", "sleep", "601"]);
    let pid = |id: i64| {
        let job = qctl.until_state(id, "running");
        assert_eq!(job["exclusive"], id == exclusive, "{job:#}");
        job["attempts"][0]["pid"].as_i64().unwrap() as i32
    };
    let (plain_pid, exclusive_pid) = (pid(plain), pid(exclusive));
    for pid in qctl
        .pids("qctl keeper")
        .into_iter()
        .chain(qctl.pids("qctl-server"))
    {
        crate::harness::kill(pid, rustix::process::Signal::KILL);
    }
    qctl.until("the exclusive job stopped itself", || {
        (!crate::harness::is_alive(exclusive_pid)).then_some(())
    });
    assert!(
        crate::harness::is_alive(plain_pid),
        "losing sight is not failing"
    );
    qctl.up(&[]).ok();
    let job = qctl.until("it is resumed", || {
        let job = qctl.job(exclusive);
        (job["attempt"] == 2).then_some(job)
    });
    assert_eq!(
        job["attempts"][0]["outcome"]["cause"], "lease_expired",
        "{job:#}"
    );
    assert_eq!(qctl.job(plain)["attempt"], 1);
}

#[test]
fn a_chosen_warning_signal_is_sent() {
    let qctl = Installation::start();
    let id = qctl.submit(&[
        "--time-limit",
        "60s",
        "--warn-before",
        "59s",
        "--warn-signal",
        "USR2",
        "--shell",
        "trap 'echo two; exit 0' USR2; trap 'echo one; exit 1' USR1; while :; do sleep 0.05; done",
    ]);
    assert_eq!(qctl.until_ended(id)["state"], "succeeded");
    assert_eq!(qctl.raw_log(id), b"two\n");
}

#[test]
fn a_pseudo_terminal_is_given_on_request_only() {
    let qctl = Installation::start();
    let ask = "if [ -t 1 ] && [ -t 2 ]; then echo terminal; else echo pipe; fi";
    let plain = qctl.submit(&["--shell", ask]);
    let terminal = qctl.submit(&["--pty", "--shell", ask]);
    qctl.until_ended(plain);
    qctl.until_ended(terminal);
    assert_eq!(qctl.raw_log(plain), b"pipe\n");
    assert_eq!(qctl.raw_log(terminal), b"terminal\n");
}

#[test]
fn the_stop_grace_bounds_how_long_a_job_may_clean_up() {
    let qctl = Installation::start();
    let stubborn = "trap '' TERM; echo up; while :; do sleep 0.05; done";
    let id = qctl.submit(&["--stop-grace", "1s", "--shell", stubborn]);
    qctl.until("it is up", || (qctl.raw_log(id) == b"up\n").then_some(()));
    let begun = std::time::Instant::now();
    qctl.qctl(&["cancel", &id.to_string()]).ok();
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "cancelled");
    assert_eq!(job["signal"], 9, "force came after the grace: {job:#}");
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[test]
fn artifacts_are_shown_by_reference() {
    let qctl = Installation::start();
    let id = qctl.submit(&[
        "--artifact",
        "out",
        "--shell",
        "mkdir -p out; echo x > out/result.txt",
    ]);
    let job = qctl.until_ended(id);
    let text = job["artifacts"].to_string();
    assert!(text.contains("out"), "{job:#}");
}

#[test]
fn wait_keeps_quiet_and_follow_shows_the_output() {
    let qctl = Installation::start();
    let ran = qctl.qctl(&["submit", "--wait", "--", "echo", "from the job"]);
    assert_eq!(ran.code, 0);
    assert!(!ran.stdout.contains("from the job"), "{ran:?}");
    let ran = qctl.qctl(&[
        "submit",
        "--follow",
        "--",
        "sh",
        "-c",
        "echo from the job; exit 4",
    ]);
    assert!(ran.stdout.contains("from the job"), "{ran:?}");
    let ran = qctl.qctl(&[
        "submit",
        "--follow",
        "--retries",
        "0",
        "--",
        "sh",
        "-c",
        "exit 4",
    ]);
    assert_eq!(ran.code, 4, "{ran:?}");
}

#[test]
fn a_submission_that_nobody_waits_for_returns_at_once_with_its_links() {
    let qctl = Installation::start_with(&["--public-url", "https://box.example.ts.net"]);
    let mut command = qctl.command("qctl");
    command.args(["submit", "--tracker", "INTG-88", "--", "sleep", "600"]);
    let child = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    let told = finish(child).ok();
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert!(told.contains("https://box.example.ts.net/jobs/1"), "{told}");
    assert!(
        told.contains("https://box.example.ts.net/tracker/INTG-88"),
        "{told}"
    );
    assert!(told.lines().count() <= 3, "{told}");
}

#[test]
fn enqueue_is_submit_in_positional_form() {
    let qctl = Installation::start();
    qctl.qctl(&["enqueue", "greeting", "echo", "--loud", "hello"])
        .ok();
    let job = qctl.until_ended(1);
    assert_eq!(job["name"], "greeting");
    assert_eq!(qctl.raw_log(1), b"--loud hello\n");
}
