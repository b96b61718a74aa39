//! The commands beside submit.

use serde_json::Value;

use crate::harness::{Installation, run};

#[test]
fn list_filters_and_pages_newest_first() {
    let qctl = Installation::start();
    let mut ids = Vec::new();
    for i in 0..5 {
        let tracker = if i % 2 == 0 { "INTG-088" } else { "OTHER-1" };
        let label = format!("n={i}");
        ids.push(qctl.submit(&["--tracker", tracker, "--label", &label, "--", "true"]));
    }
    let held = qctl.submit(&["--hold", "--", "true"]);
    for id in &ids {
        qctl.until_ended(*id);
    }
    let listed = |args: &[&str]| -> Vec<i64> {
        let mut all = vec!["list"];
        all.extend_from_slice(args);
        qctl.json(&all)["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|job| job["id"].as_i64().unwrap())
            .collect()
    };
    let mut newest_first = ids.clone();
    newest_first.reverse();
    newest_first.insert(0, held);
    assert_eq!(listed(&[]), newest_first);
    assert_eq!(listed(&["--state", "held"]), [held]);
    assert_eq!(listed(&["--state", "held,succeeded"]).len(), 6);
    assert_eq!(listed(&["--tracker", "intg-88"]), [ids[4], ids[2], ids[0]]);
    assert_eq!(listed(&["--label", "n=3"]), [ids[3]]);
    assert_eq!(listed(&["--label", "n"]).len(), 5);
    assert_eq!(listed(&["--since", "1h"]).len(), 6);
    assert_eq!(listed(&["--worker", "nobody"]), Vec::<i64>::new());
    let first = qctl.json(&["list", "--limit", "4"]);
    let token = first["next_page_token"].as_str().unwrap();
    assert_eq!(first["jobs"].as_array().unwrap().len(), 4);
    assert_eq!(
        listed(&["--limit", "4", "--page-token", token]),
        newest_first[4..]
    );
    let table = qctl.qctl(&["list"]).ok();
    assert!(
        table.contains("INTG-088") && table.contains("succeeded"),
        "{table}"
    );
}

#[test]
fn retry_makes_a_new_job_that_names_the_old_one() {
    let qctl = Installation::start();
    let old = qctl.submit(&["--retries", "0", "--name", "flaky", "--", "false"]);
    qctl.until_ended(old);
    let new = qctl.json(&["retry", &old.to_string()]);
    let id = new["id"].as_i64().unwrap();
    assert_ne!(id, old);
    assert_eq!(new["retry_of"], old);
    let job = qctl.until_ended(id);
    assert_eq!(job["name"], "flaky");
    assert_eq!(qctl.job(old)["state"], "failed", "the old one is history");
    let running = qctl.submit(&["--", "sleep", "600"]);
    let told = qctl.qctl(&["retry", &running.to_string()]).fails();
    assert!(told.contains("not ended"), "{told}");
}

#[test]
fn hold_edit_and_release_a_waiting_job() {
    let qctl = Installation::start();
    qctl.qctl(&["queue", "pause"]).ok();
    let id = qctl.submit(&["--", "echo", "before"]);
    let text = id.to_string();
    qctl.qctl(&["hold", &text]).ok();
    assert_eq!(qctl.job(id)["state"], "held");
    qctl.qctl(&[
        "edit",
        &text,
        "--name",
        "renamed",
        "--env",
        "X=1",
        "--time-limit",
        "5m",
        "--notify",
        "never",
        "--log-limit",
        "2M",
        "--pty",
    ])
    .ok();
    let told = qctl
        .qctl(&["edit", &text, "--contradicted-by", "("])
        .fails();
    assert!(
        told.contains("--contradicted-by is not a regular"),
        "{told}"
    );
    qctl.qctl(&["queue", "resume"]).ok();
    qctl.qctl(&["release", &text]).ok();
    let job = qctl.until_ended(id);
    assert_eq!(job["name"], "renamed");
    assert_eq!(job["time_limit"], 300.0, "{job:#}");
    assert_eq!(
        (&job["notify"], &job["log_limit"], &job["pty"]),
        (&"never".into(), &2_097_152.into(), &true.into())
    );
    let told = qctl.qctl(&["edit", &text, "--name", "late"]).fails();
    assert!(told.contains("ended"), "{told}");
    let told = qctl.qctl(&["release", &text]).fails();
    assert!(told.contains("held"), "{told}");
}

#[test]
fn a_paused_queue_starts_nothing_and_execute_runs_the_next_one_anyway() {
    let qctl = Installation::start();
    qctl.qctl(&["queue", "pause"]).ok();
    let first = qctl.submit(&["--", "echo", "ran in the foreground"]);
    let second = qctl.submit(&["--", "true"]);
    let why = qctl.qctl(&["why", &first.to_string()]).ok();
    assert!(why.contains("paused"), "{why}");
    let ran = qctl.qctl(&["execute"]);
    assert!(ran.stdout.contains("ran in the foreground"), "{ran:?}");
    assert_eq!(ran.code, 0);
    assert_eq!(qctl.job(second)["state"], "queued");
    qctl.qctl(&["queue", "resume"]).ok();
    assert_eq!(qctl.until_ended(second)["state"], "succeeded");
    let told = qctl.qctl(&["execute"]).fails();
    assert!(told.contains("queued"), "{told}");
}

#[test]
fn workers_are_shown_paused_drained_and_resized() {
    let qctl = Installation::start_with(&["--name", "box"]);
    let workers = qctl.json(&["workers"]);
    let worker = &workers["workers"][0];
    assert_eq!(
        (&worker["name"], &worker["state"], &worker["slots"]),
        (&"box".into(), &"online".into(), &1.into())
    );

    qctl.qctl(&["worker", "pause", "box"]).ok();
    let id = qctl.submit(&["--", "true"]);
    let why = qctl.qctl(&["why", &id.to_string()]).ok();
    assert!(why.contains("paused"), "{why}");
    qctl.qctl(&["worker", "resume", "box"]).ok();
    assert_eq!(qctl.until_ended(id)["state"], "succeeded");

    qctl.qctl(&["worker", "slots", "2", "box"]).ok();
    let a = qctl.submit(&["--", "sleep", "600"]);
    let b = qctl.submit(&["--", "sleep", "600"]);
    qctl.until_state(a, "running");
    qctl.until_state(b, "running");
    let shown = qctl.qctl(&["workers"]).ok();
    assert!(shown.contains("box") && shown.contains("2/2"), "{shown}");

    qctl.qctl(&["worker", "drain", "box"]).ok();
    qctl.qctl(&["cancel", &a.to_string(), &b.to_string()]).ok();
    qctl.until("the drained worker is paused", || {
        (qctl.json(&["workers"])["workers"][0]["state"] == "paused").then_some(())
    });
}

#[test]
fn history_tells_what_happened_in_order() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--retries", "1", "--", "false"]);
    qctl.until_ended(id);
    let events = qctl.json(&["history", &id.to_string()]);
    let kinds: Vec<String> = events["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["kind"].as_str().unwrap().to_owned())
        .collect();
    let ended = kinds.iter().filter(|kind| *kind == "ended").count();
    assert_eq!(kinds[0], "submitted", "{kinds:?}");
    assert_eq!(ended, 2, "{kinds:?}");
    let shown = qctl.qctl(&["history", &id.to_string()]).ok();
    assert!(shown.lines().count() >= kinds.len(), "{shown}");
}

#[test]
fn delete_and_cleanup_remove_ended_jobs_only() {
    let qctl = Installation::start();
    let ended = qctl.submit(&["--", "echo", "bye"]);
    qctl.until_ended(ended);
    let held = qctl.submit(&["--hold", "--", "true"]);
    let told = qctl.qctl(&["delete", &held.to_string()]).fails();
    assert!(told.contains("not ended"), "{told}");
    qctl.qctl(&["delete", &ended.to_string()]).ok();
    assert!(
        qctl.qctl(&["show", &ended.to_string()])
            .fails()
            .contains("no job")
    );
    let other = qctl.submit(&["--", "true"]);
    qctl.until_ended(other);
    qctl.qctl(&["cleanup", "30", "--yes"]).ok();
    assert_eq!(
        qctl.job(other)["state"],
        "succeeded",
        "it is younger than 30 days"
    );
    qctl.qctl(&["cleanup", "0", "--dry-run"]).ok();
    assert_eq!(
        qctl.job(other)["state"],
        "succeeded",
        "a dry run deletes nothing"
    );
    qctl.qctl(&["cleanup", "0", "--yes"]).ok();
    qctl.qctl(&["show", &other.to_string()]).fails();
    assert_eq!(qctl.job(held)["state"], "held");
}

#[test]
fn status_says_what_there_is() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--name", "long one", "--", "sleep", "600"]);
    qctl.until_state(id, "running");
    let shown = qctl.qctl(&["status"]).ok();
    assert!(shown.contains("long one"), "{shown}");
    let status = qctl.json(&["status"]);
    assert_eq!(status["queue_paused"], false, "{status:#}");
    assert!(
        status["workers"]
            .as_array()
            .is_some_and(|workers| workers.len() == 1)
    );
}

#[test]
fn completions_and_man_pages_are_printed() {
    let qctl = Installation::prepare();
    for shell in ["bash", "zsh", "fish"] {
        let text = qctl.qctl(&["completions", shell]).ok();
        assert!(text.contains("submit"), "{shell}");
    }
    assert!(qctl.qctl(&["man"]).ok().contains(".TH"));
    let dir = qctl.folder().join("man");
    qctl.qctl(&["man", "--dir", dir.to_str().unwrap()]).ok();
    assert!(dir.join("qctl-submit.1").exists());
}

#[test]
fn every_command_has_help() {
    let qctl = Installation::prepare();
    let top = qctl.qctl(&["--help"]).ok();
    for command in [
        "up",
        "down",
        "status",
        "submit",
        "enqueue",
        "list",
        "show",
        "logs",
        "wait",
        "cancel",
        "retry",
        "hold",
        "release",
        "edit",
        "delete",
        "cleanup",
        "execute",
        "why",
        "history",
        "queue",
        "workers",
        "worker",
        "template",
        "completions",
        "man",
        "pause",
        "resume",
        "progress",
    ] {
        assert!(
            top.contains(&format!("  {command}")),
            "{command} is missing in:\n{top}"
        );
        qctl.qctl(&[command, "--help"]).ok();
    }
    let mut command = qctl.command("qctl");
    command.arg("frobnicate");
    assert_eq!(run(command).code, 2);
}

#[test]
fn several_ids_are_waited_for_and_the_first_failure_is_the_code() {
    let qctl = Installation::start_with(&["--slots", "2"]);
    let good = qctl.submit(&["--", "true"]);
    let bad = qctl.submit(&["--retries", "0", "--", "sh", "-c", "exit 9"]);
    let ran = qctl.qctl(&["wait", &good.to_string(), &bad.to_string()]);
    assert_eq!(ran.code, 9, "{ran:?}");
    let json: Value = qctl.job(good);
    assert_eq!(json["state"], "succeeded");
}
