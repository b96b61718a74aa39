//! F3: the database is killed while work runs.

use rustix::process::Signal;

use crate::harness::{Installation, invariants, kill};

#[test]
fn f03_a_killed_database_comes_back_with_everything() {
    let qctl = Installation::start();
    let id = qctl.witness(&[], &["lines=300", "pause_ms=10"]);
    qctl.until_begun(id, 1);
    let postgres = qctl.postgres_pids();
    assert!(!postgres.is_empty());
    for pid in postgres {
        kill(pid, Signal::KILL);
    }
    qctl.until("the queue answers again", || {
        (qctl.qctl(&["list"]).code == 0).then_some(())
    });
    let job = qctl.until("the job ends", || {
        let ran = qctl.qctl(&["--json", "show", &id.to_string()]);
        let job: serde_json::Value = serde_json::from_str(&ran.stdout).ok()?;
        job["ended_at"].is_string().then_some(job)
    });
    assert_eq!(job["state"], "succeeded", "{job:#}");
    invariants::assert_all(&qctl, &qctl.evidence());
}
