//! What an agent finds that takes over from another, and what it tells about itself.

use std::time::Duration;

use qctl_proto::v1::open_session_response::Message as Said;
use qctl_proto::v1::{Revoke, Stop, StopCause, attempt_ended, held_attempt};

use crate::connected;
use crate::coordinator::{Coordinator, DEADLINE};
use crate::worker::{Worker, signal};

/// Stops a shim, or lets it go on.
fn stand(shim: i32, stand: bool) {
    signal(shim, if stand { libc::SIGSTOP } else { libc::SIGCONT });
}

#[tokio::test]
async fn what_a_dead_agent_asked_and_nobody_read_never_starts() {
    let (coordinator, mut worker) = connected().await;
    coordinator.assign(1, "true");
    coordinator.complete(1).await;
    let shim = worker.shims()[0];
    stand(shim, true);
    let ran = worker.folder().join("ran");
    coordinator.assign(7, &format!("echo ran >> '{}'", ran.display()));
    // Its answer proves that the assignment was handed to the shim, where it lies unread.
    coordinator.say(Said::Revoke(Revoke { fence: 7 }));
    coordinator
        .wait("an answer", |s| s.returned(7) == Some(false))
        .await;
    worker.kill();
    worker.restart();
    coordinator
        .wait("a greeting", |s| s.hellos.len() == 2)
        .await;
    let held = coordinator.state().hellos[1].attempts.clone();
    assert!(held.iter().all(|held| held.fence != 7), "{held:?}");
    // The coordinator gives the job a new fence.
    coordinator.assign(8, &format!("echo ran >> '{}'", ran.display()));
    stand(shim, false);
    coordinator.complete(8).await;
    assert_eq!(std::fs::read(&ran).unwrap(), b"ran\n");
    assert!(!coordinator.state().started(7));
}

#[tokio::test]
async fn a_request_that_a_broken_connection_lost_is_made_again() {
    let (coordinator, worker) = connected().await;
    coordinator.assign(1, "true");
    coordinator.complete(1).await;
    let shim = worker.shims()[0];
    let socket = worker.spool().join("1.sock");
    // A shim drops its oldest connection when there are too many, with what it has not read.
    let crowd = || -> Vec<_> {
        let connect = |_| qctl_worker::shim::connect(&socket).unwrap();
        (0..6).map(connect).collect()
    };
    stand(shim, true);
    coordinator.assign(7, "echo begun; exec sleep 300");
    coordinator.say(Said::Revoke(Revoke { fence: 7 }));
    coordinator
        .wait("an answer", |s| s.returned(7) == Some(false))
        .await;
    drop({
        let crowd = crowd();
        stand(shim, false);
        coordinator.wait("it starts", |s| s.started(7)).await;
        crowd
    });
    stand(shim, true);
    coordinator.say(Said::Stop(Stop {
        fence: 7,
        cause: StopCause::Cancel.into(),
        grace: None,
        gpu: None,
    }));
    coordinator.say(Said::Revoke(Revoke { fence: 9 }));
    coordinator
        .wait("an answer", |s| s.returned(9).is_some())
        .await;
    let _crowd = crowd();
    stand(shim, false);
    assert_eq!(
        coordinator.complete(7).await.stop_cause(),
        StopCause::Cancel
    );
}

#[tokio::test]
async fn a_service_manager_is_told_when_the_agent_is_ready_and_when_it_stops() {
    let mut worker = Worker::prepare("127.0.0.1:1");
    let path = worker.home().data_dir().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut command = worker.command();
    command.env("NOTIFY_SOCKET", &path);
    worker.restart_as(command);
    let hear = || {
        let mut buffer = [0; 32];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert_eq!(hear(), "READY=1", "although there is no coordinator");
    assert!(worker.terminate().success());
    assert_eq!(hear(), "STOPPING=1");
}

#[tokio::test]
async fn twenty_jobs_are_adopted_within_seconds_although_one_has_written_much() {
    let coordinator = Coordinator::start().await;
    coordinator.state().slots = 20;
    let mut worker = Worker::start(&coordinator.address);
    coordinator
        .wait("a greeting", |s| s.hellos.len() == 1)
        .await;
    coordinator.assign(1, "seq 1 4000000; exec sleep 300");
    for fence in 2..=20 {
        coordinator.assign(fence, "exec sleep 300");
    }
    coordinator
        .wait("all run", |s| {
            (1..=20).all(|fence| s.started(fence))
                && s.logs
                    .get(&1)
                    .is_some_and(|log| log.ends_with(b"4000000\n"))
        })
        .await;
    let killed = std::time::Instant::now();
    worker.kill();
    worker.restart();
    coordinator
        .wait("a greeting", |s| s.hellos.len() == 2)
        .await;
    let adopted = killed.elapsed();
    println!("20 jobs, one with 30 MB of output, adopted {adopted:.1?} after the agent was killed");
    assert!(adopted < Duration::from_secs(15), "{adopted:?}");
    let held = coordinator.state().hellos[1].attempts.clone();
    assert_eq!(held.len(), 20);
    assert!(
        held.iter()
            .all(|held| held.state() == held_attempt::State::Running)
    );
    let written = held.iter().find(|held| held.fence == 1).unwrap().log_end;
    assert_eq!(written, coordinator.log(1).len() as i64);
}

/// A segment as programs of version 1 wrote it: attempt 7 printed on both streams and exited with 3,
/// attempt 8 was refused.
const SEGMENT_1: &[u8] = include_bytes!("../data/segment-1");

#[tokio::test]
async fn a_segment_of_the_version_before_is_adopted() {
    let (coordinator, mut worker) = connected().await;
    worker.kill();
    std::fs::write(worker.spool().join("40.segment"), SEGMENT_1).unwrap();
    worker.restart();
    let ended = coordinator.complete(7).await;
    assert_eq!(ended.end(), attempt_ended::End::Waited);
    assert_eq!(ended.exit_code, Some(3));
    assert_eq!(coordinator.log(7), b"out\nerr\n");
    assert_eq!(ended.log_crc32c, crc32c::crc32c(b"out\nerr\n"));
    let held = coordinator.state().hellos[1].attempts.clone();
    let fences: Vec<_> = held.iter().map(|held| held.fence).collect();
    assert_eq!(fences, [7], "a refused attempt never was here");
}
