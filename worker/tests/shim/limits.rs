//! Time limits, warnings, leases, pauses and stops.

use std::time::Duration;

use qctl_proto::v1::shim_request::Message;
use qctl_proto::v1::{ShimLease, ShimRun, StopCause};
use qctl_worker::process::snapshot::Process;
use qctl_worker::shim::records::Event;
use qctl_worker_core::segment::Stream;

use crate::harness::{Shim, command, duration_ms, sh, wait_until};

#[test]
fn a_stop_signals_first_and_kills_after_the_grace() {
    let mut shim = Shim::start();
    let fence = shim.run(sh(
        "trap 'echo stopping; exit 3' TERM; echo begun; while :; do sleep 0.05; done",
    ));
    shim.wait_for_output(fence, "begun");
    shim.stop(fence, 30_000);
    let ended = shim.end(fence);
    assert_eq!(ended.exit_code, Some(3));
    assert_eq!(ended.stop_cause(), StopCause::Cancel);
    // The shell may tell of its own child on the other stream.
    assert_eq!(shim.stream(fence, Stream::Stdout), b"begun\nstopping\n");
    shim.freed(fence);

    let fence = shim.run(sh("trap '' TERM; echo begun; while :; do sleep 0.05; done"));
    shim.wait_for_output(fence, "begun");
    shim.stop(fence, 200);
    let ended = shim.end(fence);
    assert_eq!(ended.signal, Some(9));
    assert_eq!(ended.stop_cause(), StopCause::Cancel);
    assert!(!ended.out_of_memory);
    shim.freed(fence);
    assert_eq!(
        shim.story(fence),
        ["assigned", "starting", "pid", "stopping", "exit", "freed"]
    );
}

#[test]
fn the_time_limit_stops_and_is_the_cause() {
    let mut shim = Shim::start();
    let mut spec = command(&["sleep", "300"]);
    spec.time_limit = Some(duration_ms(200));
    let (_, ended) = shim.finish(spec);
    assert_eq!(ended.signal, Some(15));
    assert_eq!(ended.stop_cause(), StopCause::TimeLimit);
    let ran = Duration::try_from(ended.duration.unwrap()).unwrap();
    assert!(ran >= Duration::from_millis(200), "{ran:?}");
}

/// The agent is gone for good: warning, limit and force come all the same.
#[test]
fn without_an_agent_the_limit_is_enforced_and_recorded() {
    let mut shim = Shim::start();
    let mut spec = sh(
        "trap 'echo warned' USR1; trap 'echo asked' TERM; echo begun; \
                       while :; do sleep 0.05; done",
    );
    spec.time_limit = Some(duration_ms(4_000));
    spec.warn_before = Some(duration_ms(1_000));
    spec.stop_grace = Some(duration_ms(3_000));
    let fence = shim.run(spec);
    shim.wait_for_output(fence, "begun");
    shim.leave_alone();
    let ended = shim.end(fence);
    assert_eq!(ended.stop_cause(), StopCause::TimeLimit);
    assert_eq!(ended.signal, Some(9));
    let said = shim.stream(fence, Stream::Stdout);
    assert_eq!(said, b"begun\nwarned\nasked\n");
    shim.freed(fence);
}

#[test]
fn a_warning_reaches_those_who_listen_and_harms_nobody() {
    let mut shim = Shim::start();
    // The shell handles the signal, its child does not and would die of it.
    let mut spec = sh("trap 'echo warned' USR1; sleep 300 & \
                       while kill -0 $!; do sleep 0.05; done");
    spec.time_limit = Some(duration_ms(2500));
    spec.warn_before = Some(duration_ms(1000));
    spec.stop_grace = Some(duration_ms(500));
    let (fence, ended) = shim.finish(spec);
    assert_eq!(shim.stream(fence, Stream::Stdout), b"warned\n");
    assert_eq!(ended.stop_cause(), StopCause::TimeLimit);
}

#[test]
fn another_warning_signal_can_be_chosen() {
    let mut shim = Shim::start();
    let mut spec = sh("trap 'exit 9' USR2; while :; do sleep 0.05; done");
    spec.time_limit = Some(duration_ms(60_000));
    spec.warn_before = Some(duration_ms(57_000));
    spec.warn_signal = 12;
    let (_, ended) = shim.finish(spec);
    assert_eq!(ended.exit_code, Some(9));
    assert_eq!(ended.stop_cause(), StopCause::Unspecified);
}

#[test]
fn a_pause_freezes_the_tree_and_its_clock() {
    let mut shim = Shim::start();
    let mut spec = sh("sleep 2 & sleep 2 & echo begun; wait; echo done");
    spec.time_limit = Some(duration_ms(20_000));
    let fence = shim.run(spec);
    shim.wait_for_output(fence, "begun");
    wait_until("both children", || shim.survivors(fence).len() == 3);
    shim.set_paused(fence, true);
    shim.wait_for_event("pause", fence, |event| match event {
        Event::PauseChanged(change) if change.paused => Some(()),
        _ => None,
    });
    wait_until("the stop of all three", || {
        let frozen = shim.survivors(fence);
        frozen.len() == 3 && frozen.iter().all(Process::is_stopped)
    });
    // A clock that ran on would show this second.
    std::process::Command::new("sleep")
        .arg("1")
        .status()
        .unwrap();
    shim.set_paused(fence, false);
    let ended = shim.end(fence);
    assert_eq!(ended.exit_code, Some(0));
    let started = ended.started_at.unwrap();
    let finished = ended.ended_at.unwrap();
    let by_wall = (finished.seconds - started.seconds) as f64
        + f64::from(finished.nanos - started.nanos) / 1e9;
    let ran = Duration::try_from(ended.duration.unwrap()).unwrap();
    assert!(ran.as_secs_f64() + 0.9 < by_wall, "{ran:?} of {by_wall} s");
    assert_eq!(shim.text(fence), "begun\ndone\n");
}

#[test]
fn a_frozen_job_can_be_stopped() {
    let mut shim = Shim::start();
    let fence = shim.run(sh(
        "trap 'echo stopping; exit 4' TERM; echo begun; while :; do sleep 0.05; done",
    ));
    shim.wait_for_output(fence, "begun");
    shim.set_paused(fence, true);
    shim.wait_for_event("pause", fence, |event| match event {
        Event::PauseChanged(_) => Some(()),
        _ => None,
    });
    shim.stop(fence, 30_000);
    assert_eq!(shim.end(fence).exit_code, Some(4));
    shim.freed(fence);
    assert_eq!(
        shim.story(fence),
        [
            "assigned", "starting", "pid", "pause", "stopping", "pause", "exit", "freed"
        ]
    );
}

#[test]
fn an_exclusive_attempt_ends_with_its_lease() {
    let mut shim = Shim::start();
    let assignment = shim.assignment(command(&["sleep", "300"]));
    let fence = shim.run_as(ShimRun {
        assignment: Some(assignment),
        lease: Some(duration_ms(60_000)),
        ..ShimRun::default()
    });
    shim.pid(fence);
    shim.send(Message::Lease(ShimLease {
        fence,
        holds_for: Some(duration_ms(100)),
        ..ShimLease::default()
    }));
    let ended = shim.end(fence);
    assert_eq!(ended.stop_cause(), StopCause::Lease);
    assert_eq!(ended.signal, Some(15));
}

/// Time by the clock that leases are told by.
fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(now).unwrap()
}

/// How far the wall clock is ahead of it.
fn clock_offset() -> Duration {
    let wall = std::time::SystemTime::now();
    wall.duration_since(std::time::UNIX_EPOCH).unwrap() - monotonic()
}

fn wire(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

#[test]
fn a_renewal_that_lay_unread_gives_no_more_time_than_it_did_when_it_was_sent() {
    let mut shim = Shim::start();
    let assignment = shim.assignment(command(&["sleep", "300"]));
    let fence = shim.run_as(ShimRun {
        assignment: Some(assignment),
        lease: Some(duration_ms(60_000)),
        ..ShimRun::default()
    });
    shim.pid(fence);
    shim.stopped(|shim| {
        let until = monotonic() + Duration::from_millis(100);
        shim.send(Message::Lease(ShimLease {
            fence,
            holds_for: Some(duration_ms(100_000)),
            until: wire(until),
            clock_offset: wire(clock_offset()),
        }));
        wait_until("the lease is over", || monotonic() > until);
    });
    assert_eq!(shim.end(fence).stop_cause(), StopCause::Lease);
}

#[test]
fn a_renewal_from_before_a_jump_of_the_clock_does_not_count() {
    let mut shim = Shim::start();
    let assignment = shim.assignment(command(&["sleep", "300"]));
    let fence = shim.run_as(ShimRun {
        assignment: Some(assignment),
        lease: Some(duration_ms(1500)),
        ..ShimRun::default()
    });
    shim.pid(fence);
    shim.send(Message::Lease(ShimLease {
        fence,
        until: wire(monotonic() + Duration::from_secs(600)),
        clock_offset: wire(clock_offset() - Duration::from_secs(7200)),
        ..ShimLease::default()
    }));
    assert_eq!(shim.end(fence).stop_cause(), StopCause::Lease);
}

#[test]
fn an_exclusive_attempt_does_not_start_on_a_lease_that_means_nothing_any_more() {
    let mut shim = Shim::start();
    let good = ShimRun {
        lease: Some(duration_ms(60_000)),
        lease_until: wire(monotonic() + Duration::from_secs(60)),
        clock_offset: wire(clock_offset()),
        ..ShimRun::default()
    };
    let slept = wire(clock_offset() - Duration::from_secs(7200));
    let over = wire(monotonic() - Duration::from_secs(1));
    for (lease_until, clock_offset, starts) in [
        (good.lease_until, slept, false),
        (over, good.clock_offset, false),
        (good.lease_until, good.clock_offset, true),
    ] {
        let assignment = shim.assignment(command(&["true"]));
        let fence = shim.run_as(ShimRun {
            assignment: Some(assignment),
            lease_until,
            clock_offset,
            ..good.clone()
        });
        let ended = shim.wait_for_event("result", fence, |event| match event {
            Event::Void(_) => Some(false),
            Event::Exit(_) => Some(true),
            _ => None,
        });
        assert_eq!(ended, starts);
    }
}
