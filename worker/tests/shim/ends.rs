//! How attempts end, and what is left of a shim.

use std::time::{Duration, Instant};

use qctl_proto::v1::attempt_ended::End;
use qctl_proto::v1::shim_request::Message;
use qctl_proto::v1::{ResultCommitted, ShimRetire, StopCause};
use qctl_worker::shim::records::Event;

use crate::harness::{Shim, command, sh, wait_until};

#[test]
fn exit_codes_are_told() {
    let mut shim = Shim::start();
    for code in [0, 1, 7, 255] {
        let (fence, ended) = shim.finish(sh(&format!("exit {code}")));
        assert_eq!(ended.end(), End::Waited);
        assert_eq!(ended.exit_code, Some(code));
        assert_eq!(ended.signal, None);
        assert_eq!(ended.stop_cause(), StopCause::Unspecified);
        assert_eq!(ended.fence, fence);
        assert!(ended.pid > 0);
        assert!(ended.started_at.is_some() && ended.ended_at.is_some());
        assert_eq!(
            shim.story(fence),
            ["assigned", "starting", "pid", "exit", "freed"]
        );
    }
}

#[test]
fn signals_are_told() {
    let mut shim = Shim::start();
    for (name, number) in [("TERM", 15), ("KILL", 9), ("SEGV", 11)] {
        let (_, ended) = shim.finish(sh(&format!("ulimit -c 0; kill -{name} $$")));
        assert_eq!(ended.signal, Some(number));
        assert_eq!(ended.exit_code, None);
        assert!(!ended.out_of_memory);
    }
}

#[test]
fn a_child_that_holds_the_pipe_does_not_delay_the_exit() {
    let mut shim = Shim::start();
    let began = Instant::now();
    let fence = shim.run(sh("sleep 300 & exit 5"));
    let ended = shim.end(fence);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(ended.exit_code, Some(5));
    assert!(!shim.story(fence).contains(&"freed"));
    shim.stop(fence, 5000);
    shim.freed(fence);
    assert!(shim.survivors(fence).is_empty());
    // The exit was recorded before anybody wished for a stop.
    assert!(!shim.story(fence).contains(&"stopping"));
}

#[test]
fn children_left_behind_are_ended_after_ten_seconds() {
    let mut shim = Shim::start();
    let began = Instant::now();
    let (fence, ended) = shim.finish(sh("sleep 300 > /dev/null 2>&1 & exit 0"));
    assert_eq!(ended.exit_code, Some(0));
    assert!(began.elapsed() >= Duration::from_secs(9));
    assert!(shim.survivors(fence).is_empty());
}

#[test]
fn output_of_a_child_right_after_the_exit_still_counts() {
    let mut shim = Shim::start();
    let (fence, _) = shim.finish(sh("(sleep 0.1; echo late) & echo early"));
    assert_eq!(shim.text(fence), "early\nlate\n");
}

#[test]
fn an_exit_before_a_stop_is_not_a_stop() {
    let mut shim = Shim::start();
    let fence = shim.run(sh("exit 0"));
    let ended = shim.end(fence);
    shim.freed(fence);
    shim.stop(fence, 1000);
    let (other, _) = shim.finish(sh("exit 0"));
    assert_eq!(ended.stop_cause(), StopCause::Unspecified);
    assert!(!shim.story(fence).contains(&"stopping"));
    assert!(!shim.story(other).contains(&"stopping"));
}

#[test]
fn a_busy_shim_refuses_visibly_and_a_repeated_run_changes_nothing() {
    let mut shim = Shim::start();
    let assignment = shim.assignment(command(&["sleep", "300"]));
    let run = qctl_proto::v1::ShimRun {
        assignment: Some(assignment),
        ..Default::default()
    };
    let first = shim.run_as(run.clone());
    shim.pid(first);
    let second = shim.run(sh("exit 0"));
    let reason = shim.wait_for_event("void", second, |event| match event {
        Event::Void(reason) => Some(reason.clone()),
        _ => None,
    });
    assert!(reason.contains("busy"), "{reason}");
    shim.run_as(run.clone());
    shim.stop(first, 1000);
    shim.freed(first);
    shim.run_as(run);
    shim.finish(sh("exit 0"));
    assert_eq!(shim.story(second), ["void"]);
    let starts = shim.story(first);
    assert_eq!(starts.iter().filter(|name| **name == "starting").count(), 1);
    assert!(!starts.contains(&"void"));
}

#[test]
fn a_shim_retires_after_its_jobs_and_cleans_up() {
    let mut shim = Shim::start_with(&["--max-jobs", "2"]);
    shim.finish(sh("exit 0"));
    shim.finish(sh("exit 0"));
    wait_until("the end of the shim", || {
        shim.child.try_wait().unwrap().is_some_and(|s| s.success())
    });
    shim.hear();
    assert!(shim.events.last().unwrap().retiring);
    assert!(!shim.folder.path().join("socket").exists());
    assert!(!shim.folder.path().join("socket.progress").exists());
    let segment = std::fs::File::open(&shim.segment).unwrap();
    rustix::fs::flock(
        &segment,
        rustix::fs::FlockOperation::NonBlockingLockExclusive,
    )
    .unwrap();
}

#[test]
fn a_shim_retires_when_its_segment_is_long_or_when_asked() {
    let mut shim = Shim::start_with(&["--max-segment-bytes", "100000"]);
    shim.finish(sh("head -c 200000 /dev/zero"));
    wait_until("the end of the shim", || {
        shim.child.try_wait().unwrap().is_some()
    });

    let mut shim = Shim::start();
    let fence = shim.run(sh("sleep 0.2; echo done"));
    shim.send(Message::Retire(ShimRetire {}));
    shim.freed(fence);
    assert_eq!(shim.text(fence), "done\n");
    wait_until("the end of the shim", || {
        shim.child.try_wait().unwrap().is_some()
    });
}

#[test]
fn the_next_agent_goes_on() {
    let mut shim = Shim::start();
    let fence = shim.run(sh("echo begun; sleep 300"));
    shim.wait_for_output(fence, "begun");
    shim.reconnect();
    shim.stop(fence, 5000);
    let ended = shim.end(fence);
    assert_eq!(ended.stop_cause(), StopCause::Cancel);
    shim.freed(fence);
    shim.send(Message::Committed(ResultCommitted { fence }));
    let (_, ended) = shim.finish(command(&["true"]));
    assert_eq!(ended.exit_code, Some(0));
}

#[test]
fn killing_the_shim_kills_the_job() {
    let mut shim = Shim::start();
    let fence = shim.run(sh("echo begun; exec sleep 300"));
    shim.wait_for_output(fence, "begun");
    shim.child.kill().unwrap();
    shim.child.wait().unwrap();
    wait_until("the end of the job", || shim.survivors(fence).is_empty());
    shim.read_segment();
    assert!(!shim.story(fence).contains(&"exit"));
}

#[test]
fn an_agents_sigterm_to_everybody_lets_the_job_finish() {
    let mut shim = Shim::start();
    let fence = shim.run(sh("echo begun; sleep 0.3; echo done"));
    shim.wait_for_output(fence, "begun");
    let pid = rustix::process::Pid::from_raw(shim.child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = shim.end(fence);
    assert_eq!(ended.exit_code, Some(0));
    assert_eq!(shim.text(fence), "begun\ndone\n");
    wait_until("the end of the shim", || {
        shim.child.try_wait().unwrap().is_some()
    });
}

#[test]
fn a_segment_that_is_not_new_is_refused() {
    let mut first = Shim::start();
    first.finish(command(&["true"]));
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_qctl-worker"))
        .arg("shim")
        .arg("--segment")
        .arg(&first.segment)
        .arg("--socket")
        .arg(first.folder.path().join("other"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("belongs to another process"), "{message}");
}

#[test]
fn a_shim_is_small() {
    let mut shim = Shim::start();
    shim.finish(command(&["true"]));
    let status = std::fs::read_to_string(format!("/proc/{}/status", shim.child.id())).unwrap();
    let anonymous: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .and_then(|number| number.trim().parse().ok())
        .unwrap();
    assert!(anonymous < 2048, "{anonymous} kB");
}
