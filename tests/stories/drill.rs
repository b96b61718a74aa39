//! Jobs are interrupted on purpose, and retried from a checkpoint.

use serde_json::{Value, json};

use crate::harness::{Installation, Ran};

/// Counts to `to`, from where its checkpoint was; publishes one every five steps.
fn counter(to: u32, then: &str) -> String {
    format!(
        "n=0; [ -z \"$QCTL_RESUME_FROM\" ] || n=$(cat \"$QCTL_RESUME_FROM/n\"); echo from $n; \
         while [ $n -lt {to} ]; do n=$((n+1)); \
         echo \"{{\\\"done\\\": $n, \\\"total\\\": {to}, \\\"unit\\\": \\\"steps\\\"}}\" > \"$QCTL_PROGRESS\"; \
         if [ $((n%5)) = 0 ]; then \
         echo $n > \"$QCTL_CHECKPOINT_DIR/n\"; qctl checkpoint --step $n > /dev/null; fi; \
         sleep 0.05; done; {then}"
    )
}

/// A job without what its worker may still tell of it after its end.
fn settled(mut job: Value) -> Value {
    job["as_of"].take();
    job["measures"].take();
    for attempt in job["attempts"].as_array_mut().unwrap() {
        attempt["log_stored"].take();
    }
    job
}

fn document(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}\n{}", ran.stdout, ran.stderr))
}

#[test]
fn a_drill_shows_that_a_job_resumes_and_leaves_the_job_alone() {
    let qctl = Installation::start();
    let script = counter(40, "echo for $TRACKER_ID");
    let original = qctl.submit(&["--tracker", "INTG-7", "--name", "count", "--shell", &script]);
    let before = qctl.until_ended(original);
    assert_eq!(before["state"], "succeeded", "{before:#}");
    let ran = qctl.qctl(&[
        "--json",
        "drill",
        "--at-checkpoint",
        "2",
        &original.to_string(),
    ]);
    let drill = document(&ran);
    assert_eq!(ran.code, 0, "{drill:#}");
    assert_eq!(drill["ok"], true);
    assert_eq!(drill["drill_of"], original);
    assert_eq!(drill["state"], "succeeded");
    assert_eq!(
        (&drill["interrupted_attempt"], &drill["resumed_attempt"]),
        (&json!(1), &json!(2))
    );
    assert_eq!(drill["verdict"], "resumes");
    assert_eq!(drill["unit"], "steps");
    let kept = drill["kept"].as_f64().unwrap();
    let redone = drill["redone"].as_f64().unwrap();
    assert!(kept >= 10.0 && redone >= 0.0, "{drill:#}");
    assert!(
        drill["seconds_redone"].as_f64().unwrap() >= 0.0,
        "{drill:#}"
    );

    let copy = qctl.job(drill["job"].as_i64().unwrap());
    assert_eq!(copy["labels"], json!({"drill": ""}));
    assert_eq!(copy["tracker"], "");
    let first = &copy["attempts"][0]["outcome"];
    assert_eq!(
        (&first["kind"], &first["cause"]),
        (&json!("interrupted"), &json!("drill"))
    );
    assert_eq!(copy["attempts"][0]["signal"], Value::Null);
    assert_eq!(copy["resumes_left"], 2, "as the loss of a machine would");
    let asked = copy["events"]
        .as_array()
        .unwrap()
        .iter()
        .any(|event| event["kind"] == "interrupt_requested");
    assert!(asked, "{copy:#}");
    let log = String::from_utf8(qctl.raw_log(copy["id"].as_i64().unwrap())).unwrap();
    assert!(
        log.starts_with("from ") && !log.starts_with("from 0\n"),
        "{log}"
    );
    assert!(log.ends_with("for INTG-7\n"), "{log}");
    let now = qctl.job(original);
    assert_eq!(settled(now), settled(before), "the original is as it was");
}

#[test]
fn a_drill_shows_what_does_not_resume() {
    let qctl = Installation::start();
    let never = qctl.qctl(&["--json", "drill", "--", "true"]);
    let told = document(&never);
    assert_eq!(
        (never.code, &told["ok"], &told["interrupted"]),
        (1, &json!(false), &json!(false))
    );
    assert_eq!(told["verdict"], "nothing_tested");
    assert!(
        told["message"]
            .as_str()
            .unwrap()
            .starts_with("It published no checkpoint"),
        "{told:#}"
    );
    // Long enough to be interrupted, however slowly that is asked for.
    let script = "case $QCTL_ATTEMPT in *.1) exec sleep 600;; esac; sleep 1";
    let afresh = qctl.qctl(&["drill", "--after", "200ms", "--", "sh", "-c", script]);
    assert_eq!(afresh.code, 1, "{}", afresh.stdout);
    assert!(
        afresh.stdout.contains("does not resume"),
        "{}",
        afresh.stdout
    );
    assert!(
        afresh
            .stdout
            .contains("It had published no checkpoint when it was interrupted, began afresh, and"),
        "{}",
        afresh.stdout
    );
    let held = qctl.submit(&["--hold", "--resumes", "0", "--", "sleep", "60"]);
    let held = held.to_string();
    let no_budget = qctl.qctl(&["--json", "drill", "--after", "1ms", &held]);
    let told = document(&no_budget);
    assert_eq!((no_budget.code, &told["state"]), (1, &json!("failed")));
    assert!(
        told["message"].as_str().unwrap().contains("not run again"),
        "{told:#}"
    );
    for (args, told) in [
        (&["drill"][..], "there is nothing to drill"),
        (&["drill", "7", "--", "true"], "only one can be drilled"),
        (
            &["drill", "--after", "1s", "--at-checkpoint", "1", "7"],
            "cannot be used with",
        ),
    ] {
        let ran = qctl.qctl(args);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(told), "{}", ran.stderr);
    }
    assert_eq!(qctl.qctl(&["drill", "999"]).code, 3);
}

#[test]
fn a_retry_begins_afresh_or_from_a_checkpoint() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--retries", "0", "--shell", &counter(12, "exit 3")]);
    assert_eq!(qctl.until_ended(id)["exit_code"], 3);
    let again = |options: &[&str]| {
        let id = id.to_string();
        let mut args = vec!["retry"];
        args.extend(options);
        args.push(&id);
        let job = qctl.json(&args)["id"].as_i64().unwrap();
        qctl.until_ended(job);
        let log = String::from_utf8(qctl.raw_log(job)).unwrap();
        (job, log)
    };
    assert_eq!(again(&[]).1, "from 0\n");
    let (newest, log) = again(&["--from-checkpoint"]);
    assert_eq!(log, "from 10\n");
    assert_eq!(again(&["--from-checkpoint=1.1"]).1, "from 5\n");
    let job = qctl.job(newest);
    assert_eq!(job["retry_of"], id);
    let told = job["events"].as_array().unwrap().iter().any(|event| {
        event["message"] == format!("its first attempt resumes from checkpoint 1.2 of job {id}")
    });
    assert!(told, "{job:#}");
    let missing = qctl.qctl(&["retry", "--from-checkpoint=1.9", &id.to_string()]);
    assert_eq!(missing.code, 3, "{}", missing.stderr);
    assert!(
        missing
            .stderr
            .contains(&format!("checkpoint 1.9 of job {id} is not kept")),
        "{}",
        missing.stderr
    );
    let bare = qctl.submit(&["--", "true"]);
    qctl.until_ended(bare);
    let none = qctl.qctl(&["retry", "--from-checkpoint", &bare.to_string()]);
    assert_eq!(none.code, 3, "{}", none.stderr);
}
