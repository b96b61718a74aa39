//! Process trees that try to get away.

use std::os::unix::fs::PermissionsExt;

use qctl_worker::process::snapshot::Process;

use crate::harness::{Shim, sh, wait_until};

#[test]
fn double_forks_and_new_sessions_do_not_escape() {
    let mut shim = Shim::start();
    let fence = shim.run(sh(
        "(setsid sh -c 'trap \"\" TERM; (setsid sleep 300 &) ; (env -i sleep 301 &); sleep 302' &) ; \
         echo begun; sleep 303",
    ));
    shim.wait_for_output(fence, "begun");
    wait_until("all escapees", || shim.survivors(fence).len() >= 5);
    shim.stop(fence, 300);
    shim.freed(fence);
    let ended = shim.end(fence);
    assert_eq!(ended.signal, Some(15));
    assert!(shim.survivors(fence).is_empty());
    for seconds in ["300", "301", "302", "303"] {
        assert!(!is_running(&shim, &["sleep", seconds]), "sleep {seconds}");
    }
}

/// Looks for a command among the shim's descendants, whatever their environment says.
fn is_running(shim: &Shim, words: &[&str]) -> bool {
    let snapshot = qctl_worker::process::snapshot::Snapshot::take().unwrap();
    let wanted = words.join("\0") + "\0";
    snapshot
        .descendants(&[shim.child.id() as i32])
        .iter()
        .any(|process| {
            std::fs::read(format!("/proc/{}/cmdline", process.pid))
                .is_ok_and(|line| line == wanted.as_bytes())
        })
}

#[test]
fn a_fork_loop_is_caught() {
    let mut shim = Shim::start();
    // Every process starts its successor and leaves, so that nobody is met twice.
    let script = shim.folder.path().join("loop");
    std::fs::write(&script, "#!/bin/sh\ntrap '' TERM\n\"$0\" &\n").unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let script = script.to_str().unwrap().to_owned();
    let fence = shim.run(sh(&format!(
        "{script} > /dev/null 2>&1 & echo begun; sleep 300"
    )));
    shim.wait_for_output(fence, "begun");
    shim.stop(fence, 200);
    shim.freed(fence);
    assert!(shim.survivors(fence).is_empty());
}

#[test]
fn a_wide_tree_is_frozen_and_killed() {
    let mut shim = Shim::start();
    let fence = shim.run(sh(
        "trap '' TERM; i=0; while [ $i -lt 60 ]; do sleep 300 & i=$((i+1)); done; echo begun; wait",
    ));
    shim.wait_for_output(fence, "begun");
    wait_until("all children", || shim.survivors(fence).len() == 61);
    shim.set_paused(fence, true);
    wait_until("the freeze", || {
        shim.survivors(fence).iter().all(Process::is_stopped)
    });
    shim.stop(fence, 0);
    shim.freed(fence);
    assert!(shim.survivors(fence).is_empty());
}

#[test]
fn the_next_job_runs_only_when_the_tree_is_empty() {
    let mut shim = Shim::start();
    let fence = shim.run(sh("(trap '' TERM; sleep 300) > /dev/null 2>&1 & exit 0"));
    shim.end(fence);
    let early = shim.run(sh("exit 0"));
    shim.wait_for_event("void", early, |event| match event {
        qctl_worker::shim::records::Event::Void(_) => Some(()),
        _ => None,
    });
    shim.stop(fence, 100);
    shim.freed(fence);
    let (_, ended) = shim.finish(sh("exit 6"));
    assert_eq!(ended.exit_code, Some(6));
}
