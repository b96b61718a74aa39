//! Starting, stopping, and finding again what was running.

use crate::harness::Installation;

#[test]
fn a_second_up_finds_everything_running() {
    let qctl = Installation::start();
    let before = qctl.pids("qctl-server");
    let again = qctl.up(&[]).ok();
    assert!(again.contains("already"), "{again}");
    assert_eq!(qctl.pids("qctl-server"), before);
}

#[test]
fn down_leaves_jobs_running_and_up_finds_them_again() {
    let qctl = Installation::start();
    let id = qctl.submit(&[
        "--shell",
        "echo begun; while [ ! -e go ]; do sleep 0.02; done; echo finished",
    ]);
    qctl.until_state(id, "running");
    let told = qctl.qctl(&["down"]).ok();
    assert!(
        told.contains(&id.to_string()),
        "it says which job goes on: {told}"
    );
    qctl.until("the programs are gone", || {
        (qctl.pids("qctl-server").is_empty() && qctl.pids("qctl-worker --").is_empty())
            .then_some(())
    });
    assert_eq!(qctl.qctl(&["list"]).code, 69);
    qctl.file("go", "");
    qctl.up(&[]).ok();
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(job["attempt"], 1, "it never stopped");
    assert_eq!(qctl.raw_log(id), b"begun\nfinished\n");
}

#[test]
fn down_with_jobs_stops_them() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--", "sleep", "600"]);
    let job = qctl.until_state(id, "running");
    let pid = job["attempts"][0]["pid"].as_i64().unwrap() as i32;
    qctl.qctl(&["down", "--jobs"]).ok();
    assert!(!crate::harness::is_alive(pid));
    qctl.up(&[]).ok();
    assert_eq!(qctl.job(id)["state"], "cancelled");
}

#[test]
fn down_twice_is_fine_and_the_queue_comes_back() {
    let qctl = Installation::start();
    qctl.qctl(&["queue", "pause"]).ok();
    let id = qctl.submit(&["--", "true"]);
    qctl.qctl(&["down"]).ok();
    qctl.qctl(&["down"]).ok();
    qctl.up(&[]).ok();
    assert_eq!(
        qctl.json(&["status"])["queue_paused"],
        true,
        "a pause survives"
    );
    qctl.qctl(&["queue", "resume"]).ok();
    assert_eq!(qctl.until_ended(id)["state"], "succeeded");
}

#[test]
fn a_taken_port_is_named() {
    let qctl = Installation::start();
    let address = std::fs::read_to_string(qctl.home().join("data/address")).unwrap();
    let other = Installation::prepare();
    let told = other.qctl(&["up", "--listen", address.trim()]).fails();
    assert!(
        told.contains(address.trim().rsplit(':').next().unwrap()),
        "{told}"
    );
}

#[test]
fn an_open_address_without_tls_is_refused() {
    let qctl = Installation::prepare();
    let told = qctl.qctl(&["up", "--listen", "0.0.0.0:0"]).fails();
    assert!(told.contains("TLS") || told.contains("tls"), "{told}");
}

#[test]
fn a_killed_keeper_is_replaced_and_adopts_what_lives() {
    let qctl = Installation::start();
    let server = qctl.pids("qctl-server");
    for pid in qctl.pids("qctl keeper") {
        crate::harness::kill(pid, rustix::process::Signal::KILL);
    }
    qctl.until("the keeper is gone", || {
        qctl.pids("qctl keeper").is_empty().then_some(())
    });
    assert_eq!(qctl.qctl(&["list"]).code, 0, "the coordinator lives on");
    qctl.up(&[]).ok();
    assert_eq!(qctl.pids("qctl keeper").len(), 1);
    assert_eq!(qctl.pids("qctl-server"), server);
    assert_eq!(
        qctl.until_ended(qctl.submit(&["--", "true"]))["state"],
        "succeeded"
    );
}
