//! Processes that not even SIGKILL ends.

use std::time::Duration;

use qctl_proto::v1::open_session_request::Message as Say;
use qctl_proto::v1::open_session_response::Message as Said;
use qctl_proto::v1::{Stop, StopCause, attempt_ended};

use crate::connected;
use crate::coordinator::{Coordinator, DEADLINE, State};
use crate::worker::signal;

/// Holds a process back when it dies, as a device does that does not answer: not even SIGKILL ends
/// it until it is let go. The thread that asked for it must let it go.
struct Unkillable(i32);

impl Unkillable {
    fn make(pid: i32) -> Self {
        let options = libc::PTRACE_O_TRACEEXIT as libc::c_long;
        // SAFETY: seizing a process touches no memory of this one.
        let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0 as libc::c_long, options) };
        assert_eq!(seized, 0, "{}", std::io::Error::last_os_error());
        Self(pid)
    }

    fn let_go(self) {
        // SAFETY: as above. The process stands in its exit, so it can be detached from.
        let done = unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0_usize, 0_usize) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
}

fn stuck(state: &State, fence: i64) -> Option<Vec<i32>> {
    state.said.iter().find_map(|say| match say {
        Say::SlotStuck(stuck) if stuck.fence == fence => Some(stuck.pids.clone()),
        _ => None,
    })
}

/// Waits, longer than anything else takes, until it is told that force does not help.
async fn until_stuck(coordinator: &Coordinator, fence: i64) -> Vec<i32> {
    for _ in 0..4 {
        let told = coordinator.wait("it is told", |s| stuck(s, fence).is_some());
        if tokio::time::timeout(DEADLINE - Duration::from_secs(1), told)
            .await
            .is_ok()
        {
            break;
        }
    }
    stuck(&coordinator.state(), fence).expect("it is told that force does not help")
}

#[tokio::test]
async fn f26_a_process_that_force_does_not_end_is_told_and_holds_its_slot() {
    let (coordinator, _worker) = connected().await;
    coordinator.assign(7, "exec sleep 300");
    coordinator.wait("it runs", |s| s.started(7)).await;
    let pid = coordinator.state().pid(7);
    let process = Unkillable::make(pid);
    coordinator.assign(8, "true");
    coordinator.say(Said::Stop(Stop {
        fence: 7,
        cause: StopCause::Cancel.into(),
        grace: Duration::from_millis(100).try_into().ok(),
        gpu: None,
    }));
    assert_eq!(until_stuck(&coordinator, 7).await, [pid]);
    assert!(!coordinator.state().started(8), "its slot is taken");
    process.let_go();
    let ended = coordinator.complete(7).await;
    assert_eq!(ended.stop_cause(), StopCause::Cancel);
    coordinator.complete(8).await;
}

#[tokio::test]
async fn f26_a_sweep_that_does_not_end_a_process_is_told_and_holds_its_slot() {
    let (coordinator, mut worker) = connected().await;
    coordinator.assign(7, "exec sleep 300");
    coordinator.wait("it runs", |s| s.started(7)).await;
    let pid = coordinator.state().pid(7);
    let process = Unkillable::make(pid);
    worker.kill();
    let shims = worker.shims();
    shims.iter().for_each(|shim| signal(*shim, libc::SIGKILL));
    worker.restart();
    coordinator.assign_after_greeting(2, 8, "true").await;
    let held = coordinator.state().hellos[1].attempts[0];
    assert!(held.slot_held);
    assert_eq!(until_stuck(&coordinator, 7).await, [pid]);
    assert!(!coordinator.state().started(8), "its slot is taken");
    assert!(
        !coordinator.state().ended.contains_key(&7),
        "nothing proves its end"
    );
    process.let_go();
    let ended = coordinator.complete(7).await;
    assert_eq!(ended.end(), attempt_ended::End::ShimLost);
    coordinator.complete(8).await;
}
