//! First in, first out; priorities, dependencies, reservations.

use crate::harness::Installation;

#[test]
fn jobs_start_in_the_order_they_were_submitted() {
    let qctl = Installation::start();
    let log = qctl.folder().join("order");
    let blocker = qctl.submit(&["--", "sleep", "600"]);
    qctl.until_state(blocker, "running");
    let write = format!("echo $QCTL_JOB >> {}", log.display());
    let ids: Vec<_> = (0..8).map(|_| qctl.submit(&["--shell", &write])).collect();
    qctl.qctl(&["cancel", &blocker.to_string()]).ok();
    for id in &ids {
        qctl.until_ended(*id);
    }
    let order: Vec<i64> = std::fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(order, ids);
}

#[test]
fn a_higher_priority_goes_first_and_edit_can_give_it_later() {
    let qctl = Installation::start();
    let log = qctl.folder().join("order");
    qctl.qctl(&["queue", "pause"]).ok();
    let write = format!("echo $QCTL_JOB >> {}", log.display());
    let plain = qctl.submit(&["--shell", &write]);
    let urgent = qctl.submit(&["--priority", "5", "--shell", &write]);
    let raised = qctl.submit(&["--shell", &write]);
    qctl.qctl(&["edit", &raised.to_string(), "--priority", "9"])
        .ok();
    qctl.qctl(&["queue", "resume"]).ok();
    for id in [plain, urgent, raised] {
        qctl.until_ended(id);
    }
    let order: Vec<i64> = std::fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(order, [raised, urgent, plain]);
}

#[test]
fn dependencies_are_met_or_end_the_job() {
    let qctl = Installation::start();
    qctl.qctl(&["queue", "pause"]).ok();
    let good = qctl.submit(&["--", "true"]);
    let bad = qctl.submit(&["--retries", "0", "--", "false"]);
    let after = |on: i64, how: &str| qctl.submit(&["--after", &format!("{on}{how}"), "--", "true"]);
    let after_good = after(good, "");
    let after_bad = after(bad, ":ok");
    let after_failure = after(bad, ":failed");
    let after_any = after(bad, ":any");
    assert_eq!(qctl.job(after_good)["state"], "waiting");
    let why = qctl.qctl(&["why", &after_good.to_string()]).ok();
    assert!(why.contains(&good.to_string()), "{why}");
    qctl.qctl(&["queue", "resume"]).ok();
    assert_eq!(qctl.until_ended(after_good)["state"], "succeeded");
    assert_eq!(qctl.until_ended(after_failure)["state"], "succeeded");
    assert_eq!(qctl.until_ended(after_any)["state"], "succeeded");
    let impossible = qctl.until_ended(after_bad);
    assert_eq!(impossible["state"], "cancelled", "{impossible:#}");
    assert_eq!(impossible["attempt"], 0);
    // A dependency on a job that has ended already is judged at once.
    assert_eq!(qctl.until_ended(after(good, ":ok"))["state"], "succeeded");
}

#[test]
fn a_wide_job_reserves_and_short_ones_fill_in() {
    let qctl = Installation::start_with(&["--slots", "2"]);
    let running = qctl.submit(&["--time-limit", "1h", "--", "sleep", "600"]);
    qctl.until_state(running, "running");
    let wide = qctl.submit(&["--slots", "2", "--", "true"]);
    let unbounded = qctl.submit(&["--", "true"]);
    let short = qctl.submit(&["--time-limit", "1m", "--", "true"]);
    assert_eq!(qctl.until_ended(short)["state"], "succeeded");
    assert_eq!(
        qctl.job(unbounded)["state"],
        "queued",
        "it could delay the wide job"
    );
    let why = qctl.qctl(&["why", &unbounded.to_string()]).ok();
    assert!(why.contains(&wide.to_string()), "{why}");
    qctl.qctl(&["cancel", &running.to_string()]).ok();
    assert_eq!(qctl.until_ended(wide)["state"], "succeeded");
    assert_eq!(qctl.until_ended(unbounded)["state"], "succeeded");
}
