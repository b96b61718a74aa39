//! The real agent and real shims against a coordinator that lives in the test.

mod coordinator;
mod output;
mod takeover;
mod unkillable;
mod worker;

use std::time::Duration;

use qctl_proto::v1::open_session_request::Message as Say;
use qctl_proto::v1::open_session_response::Message as Said;
use qctl_proto::v1::{
    Assign, Assignment, Demand, JobSpec, Revoke, SegmentPid, SegmentStarting, SetPaused, SetSlots,
    Stop, StopCause, attempt_ended, held_attempt,
};
use qctl_worker::shim::records::{self, Event};
use qctl_worker_core::segment::{self, Record, Stream};
use tonic::Status;

use coordinator::{Coordinator, spec};
use worker::{Worker, lives, signal, until};

async fn connected() -> (Coordinator, Worker) {
    let coordinator = Coordinator::start().await;
    let worker = Worker::start(&coordinator.address);
    coordinator
        .wait("a greeting", |s| s.hellos.len() == 1)
        .await;
    (coordinator, worker)
}

/// A script that prints numbered lines until `file` exists, and then exits with 3.
fn counting(file: &std::path::Path) -> String {
    format!(
        "n=0; while [ ! -e '{}' ]; do n=$((n+1)); echo line $n; sleep 0.01; done; echo end; exit 3",
        file.display()
    )
}

fn assert_counted(log: &[u8]) {
    let text = std::str::from_utf8(log).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.last(), Some(&"end"), "{text}");
    for (index, line) in lines[..lines.len() - 1].iter().enumerate() {
        assert_eq!(*line, format!("line {}", index + 1));
    }
}

#[tokio::test]
async fn a_job_runs_and_everything_about_it_is_told() {
    let (coordinator, worker) = connected().await;
    coordinator.assign(7, "echo out; echo err >&2; exit 5");
    let ended = coordinator.complete(7).await;
    assert_eq!(ended.end(), attempt_ended::End::Waited);
    assert_eq!(ended.exit_code, Some(5));
    let log = coordinator.log(7);
    assert_eq!(ended.log_crc32c, crc32c::crc32c(&log));
    let text = String::from_utf8(log).unwrap();
    assert!(text.contains("out\n") && text.contains("err\n"));
    let state = coordinator.state();
    assert!(state.started(7) && state.pid(7) > 0);
    let hello = &state.hellos[0];
    assert!(hello.cpus > 0 && hello.memory_bytes > 0 && hello.attempts.is_empty());
    drop(state);
    assert_eq!(worker.shims().len(), 1, "the shim stays warm");
}

/// Programs that wait with select(2) break where many files may be open, so only the agent may open
/// many.
#[tokio::test]
async fn the_agent_may_open_many_files_and_a_job_as_many_as_ever() {
    use std::os::unix::process::CommandExt as _;
    let coordinator = Coordinator::start().await;
    let mut worker = Worker::prepare(&coordinator.address);
    let mut command = worker.command();
    let limit = libc::rlimit {
        rlim_cur: 300,
        rlim_max: 2_000,
    };
    // SAFETY: setrlimit is a plain system call.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, &limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    worker.restart_as(command);
    coordinator
        .wait("a greeting", |s| s.hellos.len() == 1)
        .await;
    coordinator.assign(1, "ulimit -Sn; ulimit -Hn");
    coordinator.complete(1).await;
    assert_eq!(coordinator.log(1), b"300\n2000\n");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", worker.pid())).unwrap();
    let files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .unwrap();
    let files: Vec<_> = files.split_whitespace().collect();
    assert_eq!(files[..2], ["2000", "2000"]);
}

#[tokio::test]
async fn the_waiting_assignment_starts_without_asking() {
    let (coordinator, _worker) = connected().await;
    coordinator.assign(1, "sleep 0.2");
    coordinator.assign(2, "echo second");
    coordinator.state().withhold = true;
    // The first result is never committed, and still the second one starts.
    coordinator
        .wait("the second starts", |s| s.started(2))
        .await;
    coordinator
        .wait("the second's slot is free", |s| s.freed(2))
        .await;
}

#[tokio::test]
async fn what_waits_can_be_revoked_and_what_runs_cannot() {
    let (coordinator, worker) = connected().await;
    let go = worker.folder().join("go");
    coordinator.assign(1, &counting(&go));
    coordinator.assign(2, "echo never");
    coordinator.wait("the first starts", |s| s.started(1)).await;
    coordinator.say(Said::Revoke(Revoke { fence: 2 }));
    coordinator.say(Said::Revoke(Revoke { fence: 1 }));
    coordinator.say(Said::Revoke(Revoke { fence: 99 }));
    coordinator
        .wait("three answers", |s| s.returned(99).is_some())
        .await;
    assert_eq!(coordinator.state().returned(2), Some(true));
    assert_eq!(coordinator.state().returned(1), Some(false));
    assert_eq!(coordinator.state().returned(99), Some(true));
    std::fs::write(go, "").unwrap();
    coordinator.complete(1).await;
    coordinator.assign(3, "true");
    coordinator.complete(3).await;
    assert!(!coordinator.state().started(2));
}

#[tokio::test]
async fn an_agent_that_is_killed_loses_nothing() {
    let (coordinator, mut worker) = connected().await;
    let go = worker.folder().join("go");
    coordinator.assign(7, &counting(&go));
    coordinator
        .wait("some output", |s| {
            s.logs.get(&7).is_some_and(|log| log.len() > 50)
        })
        .await;
    let pid = coordinator.state().pid(7);
    for round in 2..4 {
        worker.kill();
        assert!(lives(pid), "the job runs on");
        worker.restart();
        coordinator
            .wait("a greeting", |s| s.hellos.len() == round)
            .await;
        let held = coordinator.state().hellos[round - 1].attempts[0];
        assert_eq!(
            (held.fence, held.state()),
            (7, held_attempt::State::Running)
        );
        assert!(held.slot_held && held.log_end > 0);
        assert!(held.adopted, "an earlier agent started it");
        let before = coordinator.log(7).len();
        coordinator
            .wait("more output", |s| s.logs[&7].len() > before + 50)
            .await;
    }
    coordinator.disconnect();
    coordinator
        .wait("a greeting", |s| s.hellos.len() == 4)
        .await;
    let held = coordinator.state().hellos[3].attempts[0];
    assert!(!held.adopted, "that is known by now");
    std::fs::write(go, "").unwrap();
    let ended = coordinator.complete(7).await;
    assert_eq!(ended.exit_code, Some(3));
    let log = coordinator.log(7);
    assert_eq!(
        (ended.log_end, ended.log_crc32c),
        (log.len() as i64, crc32c::crc32c(&log))
    );
    assert_counted(&log);
    assert_eq!(worker.shims().len(), 1);
}

#[tokio::test]
async fn a_job_that_ends_while_the_agent_is_away_keeps_its_exit_code() {
    let (coordinator, mut worker) = connected().await;
    let go = worker.folder().join("go");
    coordinator.assign(7, &counting(&go));
    coordinator.wait("it runs", |s| s.started(7)).await;
    let pid = coordinator.state().pid(7);
    worker.kill();
    std::fs::write(go, "").unwrap();
    until("the job has ended", || !lives(pid)).await;
    worker.restart();
    let ended = coordinator.complete(7).await;
    assert_eq!(ended.exit_code, Some(3));
    assert_eq!(coordinator.state().ended.len(), 1);
    assert_counted(&coordinator.log(7));
}

#[tokio::test]
async fn a_stopped_agent_leaves_quickly_and_its_jobs_run_on() {
    let (coordinator, mut worker) = connected().await;
    let go = worker.folder().join("go");
    coordinator.assign(7, &counting(&go));
    coordinator.wait("it runs", |s| s.started(7)).await;
    assert!(worker.terminate().success());
    assert!(lives(coordinator.state().pid(7)));
    let shim = rustix::process::Pid::from_raw(worker.shims()[0]);
    let session = rustix::process::getsid(shim).unwrap();
    assert_eq!(Some(session), shim, "a closed terminal does not reach it");
    worker.restart();
    std::fs::write(go, "").unwrap();
    assert_eq!(coordinator.complete(7).await.exit_code, Some(3));
}

#[tokio::test]
async fn a_stopped_agent_leaves_no_idle_shim_behind() {
    let (coordinator, mut worker) = connected().await;
    coordinator.assign(1, "true");
    coordinator.complete(1).await;
    assert!(worker.terminate().success());
    until("the shim is gone", || worker.shims().is_empty()).await;
    worker.restart();
    coordinator.assign_after_greeting(2, 2, "exit 6").await;
    assert_eq!(coordinator.complete(2).await.exit_code, Some(6));
}

#[tokio::test]
async fn a_machine_that_was_restarted_ends_what_ran() {
    let (coordinator, mut worker) = connected().await;
    worker.kill();
    for shim in worker.shims() {
        signal(shim, libc::SIGKILL);
    }
    until("the shim is gone", || worker.shims().is_empty()).await;
    let assignment = |fence: i64| Assignment {
        boot_id: "the boot before".to_owned(),
        ..coordinator.assignment(fence, spec(&["true"]))
    };
    let mut bytes = segment::header().to_vec();
    let mut put = |fence, event| records::encode(fence, &event, &mut bytes).unwrap();
    put(1, Event::Assigned(assignment(1)));
    put(
        1,
        Event::Starting(SegmentStarting {
            wall_us: 1_000_000,
            checkpoint_dir: String::new(),
        }),
    );
    put(
        1,
        Event::Pid(SegmentPid {
            pid: 4242,
            start_ticks: 1,
            wall_us: 2_000_000,
            not_enforced: Vec::new(),
        }),
    );
    let output = b"before the crash\n";
    let record = Record::Out {
        fence: 1,
        offset: 0,
        stream: Stream::Stdout,
        wall_us: 3_000_000,
        data: output,
    };
    segment::encode(&record, &mut bytes).unwrap();
    // The record behind it was cut off by the crash, and the file system left zeros.
    bytes.extend_from_slice(&[1, 2, 3]);
    bytes.extend_from_slice(&[0; 4096]);
    std::fs::write(worker.spool().join("40.segment"), bytes).unwrap();

    let mut bytes = segment::header().to_vec();
    records::encode(2, &Event::Assigned(assignment(2)), &mut bytes).unwrap();
    std::fs::write(worker.spool().join("41.segment"), bytes).unwrap();
    // An agent died between making this file and starting its shim.
    std::fs::write(worker.spool().join("42.segment"), b"").unwrap();

    worker.restart();
    let lost = coordinator.complete(1).await;
    assert_eq!(lost.end(), attempt_ended::End::MachineLost);
    assert_eq!((lost.exit_code, lost.pid), (None, 4242));
    assert_eq!(coordinator.log(1), output);
    assert_eq!(lost.log_crc32c, crc32c::crc32c(output));
    // Records are not synced before a start, so after a restart a missing one proves nothing.
    let unknown = coordinator.complete(2).await;
    assert_eq!(unknown.end(), attempt_ended::End::MachineLost);
    until("the empty segment is removed", || {
        !worker.spool().join("42.segment").exists()
    })
    .await;
    coordinator.assign(3, "true");
    coordinator.complete(3).await;
}

#[tokio::test]
async fn output_is_sent_again_from_wherever_the_coordinator_asks() {
    let (coordinator, worker) = connected().await;
    let go = worker.folder().join("go");
    coordinator.assign(7, &counting(&go));
    for (round, kept) in [(2, 30), (3, 0), (4, 7)] {
        coordinator
            .wait("some output", |s| {
                s.logs.get(&7).is_some_and(|log| log.len() > 100)
            })
            .await;
        coordinator.lose_output(7, kept);
        coordinator.disconnect();
        coordinator
            .wait("a greeting", |s| s.hellos.len() == round)
            .await;
    }
    std::fs::write(go, "").unwrap();
    coordinator.complete(7).await;
    assert_counted(&coordinator.log(7));
}

#[tokio::test]
async fn output_that_is_lost_in_the_middle_of_a_session_is_sent_again() {
    let (coordinator, worker) = connected().await;
    let go = worker.folder().join("go");
    coordinator.assign(7, &counting(&go));
    for kept in [20, 0, 13] {
        coordinator
            .wait("some output", |s| {
                s.logs.get(&7).is_some_and(|log| log.len() > 100)
            })
            .await;
        coordinator.lose_output(7, kept);
    }
    std::fs::write(go, "").unwrap();
    coordinator.complete(7).await;
    assert_counted(&coordinator.log(7));
}

#[tokio::test]
async fn a_result_is_told_until_it_is_committed() {
    let (coordinator, _worker) = connected().await;
    coordinator.state().withhold = true;
    coordinator.assign(7, "echo x; exit 4");
    coordinator.wait("its end", |s| s.freed(7)).await;
    coordinator.disconnect();
    coordinator
        .wait("a greeting", |s| s.hellos.len() == 2)
        .await;
    let held = coordinator.state().hellos[1].attempts[0];
    assert_eq!(held.state(), held_attempt::State::Ended);
    coordinator.state().withhold = false;
    coordinator.disconnect();
    let ended = coordinator.complete(7).await;
    assert_eq!(ended.exit_code, Some(4));
    let told = |s: &coordinator::State| {
        let ends = s.said.iter().filter(|say| matches!(say, Say::Ended(_)));
        ends.count()
    };
    assert!(told(&coordinator.state()) >= 2);
}

#[tokio::test]
async fn a_slot_is_freed_although_its_attempt_was_forgotten_before() {
    let (coordinator, _worker) = connected().await;
    coordinator.assign(7, "sleep 300 >/dev/null 2>&1 & echo $!");
    coordinator.wait("its end", |s| s.recorded(7)).await;
    assert!(!coordinator.state().freed(7));
    coordinator.disconnect();
    coordinator
        .wait("a greeting", |s| s.hellos.len() == 2)
        .await;
    assert!(coordinator.state().hellos[1].attempts[0].slot_held);
    coordinator.assign(8, "true");
    // Its answer proves that the one to the greeting was taken.
    coordinator.say(Said::Revoke(Revoke { fence: 9 }));
    coordinator
        .wait("an answer", |s| s.returned(9) == Some(true))
        .await;
    let survivor = String::from_utf8(coordinator.log(7)).unwrap();
    signal(survivor.trim().parse().unwrap(), libc::SIGKILL);
    coordinator.complete(8).await;
    coordinator.wait("its slot is free", |s| s.freed(7)).await;
}

#[tokio::test]
async fn an_adopted_attempt_beside_the_slots_takes_none() {
    let (coordinator, mut worker) = connected().await;
    let mut beside = coordinator.assignment(7, spec(&["sleep", "300"]));
    beside.beside_slots = true;
    coordinator.say(Said::Assign(Assign {
        assignments: vec![beside],
    }));
    coordinator.wait("it runs", |s| s.started(7)).await;
    worker.kill();
    worker.restart();
    coordinator.assign_after_greeting(2, 8, "true").await;
    coordinator.complete(8).await;
}

#[tokio::test]
async fn slots_run_side_by_side_and_can_change() {
    let coordinator = Coordinator::start().await;
    coordinator.state().slots = 2;
    let worker = Worker::start(&coordinator.address);
    coordinator
        .wait("a greeting", |s| s.hellos.len() == 1)
        .await;
    let go = worker.folder().join("go");
    for fence in 1..=4 {
        coordinator.assign(fence, &counting(&go));
    }
    coordinator
        .wait("two run", |s| s.started(1) && s.started(2))
        .await;
    assert!(!coordinator.state().started(3));
    coordinator.say(Said::SetSlots(SetSlots { slots: 3 }));
    coordinator.wait("a third runs", |s| s.started(3)).await;
    assert!(!coordinator.state().started(4));
    let mut beside = coordinator.assignment(5, spec(&["true"]));
    beside.beside_slots = true;
    coordinator.say(Said::Assign(Assign {
        assignments: vec![beside],
    }));
    coordinator.complete(5).await;
    assert!(!coordinator.state().started(4));
    std::fs::write(go, "").unwrap();
    for fence in 1..=4 {
        coordinator.complete(fence).await;
    }
}

#[tokio::test]
async fn a_wide_job_waits_for_all_its_slots() {
    let coordinator = Coordinator::start().await;
    coordinator.state().slots = 2;
    let worker = Worker::start(&coordinator.address);
    coordinator
        .wait("a greeting", |s| s.hellos.len() == 1)
        .await;
    let go = worker.folder().join("go");
    coordinator.assign(1, &counting(&go));
    let wide = JobSpec {
        demand: Some(Demand {
            slots: 2,
            ..Demand::default()
        }),
        ..spec(&["true"])
    };
    coordinator.assign_spec(2, wide);
    coordinator.wait("the first runs", |s| s.started(1)).await;
    coordinator.say(Said::Revoke(Revoke { fence: 99 }));
    coordinator
        .wait("an answer", |s| s.returned(99).is_some())
        .await;
    assert!(!coordinator.state().started(2));
    std::fs::write(go, "").unwrap();
    coordinator.complete(2).await;
}

#[tokio::test]
async fn a_stop_reaches_the_job() {
    let (coordinator, _worker) = connected().await;
    coordinator.assign(7, "sleep 300 & sleep 300");
    coordinator.wait("it runs", |s| s.started(7)).await;
    coordinator.say(Said::Stop(Stop {
        fence: 7,
        cause: StopCause::Cancel.into(),
        grace: None,
        gpu: None,
    }));
    let ended = coordinator.complete(7).await;
    assert_eq!(ended.stop_cause(), StopCause::Cancel);
    assert_eq!(ended.exit_code, None);
    assert_eq!(ended.signal, Some(libc::SIGTERM));
}

#[tokio::test]
async fn an_exclusive_job_stops_itself_when_the_coordinator_is_silent() {
    let coordinator = Coordinator::start().await;
    // Five seconds are left when the grace period and the margin are taken off.
    coordinator.state().lost_after = Duration::from_secs(60 + 2 + 5);
    let _worker = Worker::start(&coordinator.address);
    coordinator
        .wait("a greeting", |s| s.hellos.len() == 1)
        .await;
    let exclusive = JobSpec {
        exclusive: true,
        stop_grace: Duration::from_secs(2).try_into().ok(),
        ..spec(&["sleep", "300"])
    };
    coordinator.assign_spec(7, exclusive);
    coordinator.wait("it runs", |s| s.started(7)).await;
    // Two in a second, so that the first lease is over by then.
    let heartbeats = coordinator.state().heartbeats + 12;
    coordinator
        .wait("heartbeats", |s| s.heartbeats >= heartbeats)
        .await;
    assert!(
        coordinator.state().ended.is_empty(),
        "heartbeats renew its lease"
    );
    coordinator.state().refuse = Some(Status::unavailable("silence"));
    coordinator.disconnect();
    let pid = coordinator.state().pid(7);
    until("the job is gone", || !lives(pid)).await;
    coordinator.state().refuse = None;
    assert_eq!(coordinator.complete(7).await.stop_cause(), StopCause::Lease);
}

#[tokio::test]
async fn enormous_arguments_are_refused_and_harm_nobody() {
    let (coordinator, _worker) = connected().await;
    let word = "x".repeat(100_000);
    let mut command = vec!["/bin/echo"];
    command.extend(std::iter::repeat_n(word.as_str(), 100));
    coordinator.assign_spec(1, spec(&command));
    let ended = coordinator.complete(1).await;
    assert_eq!(ended.end(), attempt_ended::End::CannotStart);
    assert!(!ended.message.is_empty());
    coordinator.assign(2, "true");
    coordinator.complete(2).await;
}

#[tokio::test]
async fn a_pause_is_told_also_to_a_coordinator_that_missed_it() {
    let (coordinator, _worker) = connected().await;
    let paused = |s: &coordinator::State| {
        let changes = s.said.iter().filter_map(|say| match say {
            Say::PauseChanged(change) => Some(change.paused),
            _ => None,
        });
        changes.collect::<Vec<_>>()
    };
    coordinator.assign(7, "sleep 300");
    coordinator.wait("it runs", |s| s.started(7)).await;
    coordinator.say(Said::SetPaused(SetPaused {
        fence: 7,
        paused: true,
    }));
    coordinator
        .wait("it is paused", |s| paused(s) == [true])
        .await;
    coordinator.disconnect();
    coordinator
        .wait("it is told again", |s| paused(s) == [true, true])
        .await;
    coordinator.say(Said::SetPaused(SetPaused {
        fence: 7,
        paused: false,
    }));
    coordinator
        .wait("it goes on", |s| paused(s).last() == Some(&false))
        .await;
}

#[tokio::test]
async fn a_shim_that_is_killed_is_an_interruption_and_leaves_nobody_behind() {
    let (coordinator, worker) = connected().await;
    coordinator.assign(7, "echo begun; setsid sleep 301 & echo $!; wait");
    coordinator
        .wait("its output", |s| {
            let log = s.logs.get(&7);
            log.is_some_and(|log| log.iter().filter(|byte| **byte == b'\n').count() == 2)
        })
        .await;
    let log = String::from_utf8(coordinator.log(7)).unwrap();
    let escaped: i32 = log.lines().nth(1).unwrap().parse().unwrap();
    signal(worker.shims()[0], libc::SIGKILL);
    let ended = coordinator.complete(7).await;
    assert_eq!(ended.end(), attempt_ended::End::ShimLost);
    assert_eq!((ended.exit_code, ended.signal), (None, None));
    assert_eq!(ended.log_end, log.len() as i64);
    assert_eq!(ended.log_crc32c, crc32c::crc32c(log.as_bytes()));
    until("the escaped process is gone", || !lives(escaped)).await;
    coordinator.assign(8, "true");
    coordinator.complete(8).await;
}

#[tokio::test]
async fn a_shim_that_died_while_the_agent_was_away_is_found_out() {
    let (coordinator, mut worker) = connected().await;
    coordinator.assign(7, "setsid sleep 302 & echo $!; wait");
    coordinator
        .wait("its output", |s| {
            s.logs.get(&7).is_some_and(|log| log.ends_with(b"\n"))
        })
        .await;
    let log = String::from_utf8(coordinator.log(7)).unwrap();
    let escaped: i32 = log.trim().parse().unwrap();
    worker.kill();
    let shim = worker.shims()[0];
    signal(shim, libc::SIGKILL);
    until("the shim is gone", || worker.shims().is_empty()).await;
    worker.restart();
    let ended = coordinator.complete(7).await;
    assert_eq!(ended.end(), attempt_ended::End::ShimLost);
    until("the escaped process is gone", || !lives(escaped)).await;
    // The record says so too, so the next agent does not judge again.
    coordinator.state().said.clear();
    worker.kill();
    worker.restart();
    coordinator
        .wait("a greeting", |s| s.hellos.len() == 3)
        .await;
    let attempts = coordinator.state().hellos[2].attempts.clone();
    assert_eq!(attempts[0].state(), held_attempt::State::Ended);
    assert!(!attempts[0].slot_held);
}

#[tokio::test]
async fn progress_is_told_at_most_ten_times_a_second_and_the_last_before_the_end() {
    let (coordinator, _worker) = connected().await;
    coordinator.assign(
        7,
        "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo \"[$i/200]\"; sleep 0.002; done",
    );
    let ended = coordinator.complete(7).await;
    let seconds = ended
        .duration
        .map_or(0.0, |d| d.seconds as f64 + f64::from(d.nanos) / 1e9);
    let state = coordinator.state();
    assert!(state.progress.len() as f64 <= seconds * 10.0 + 3.0);
    let last = state.progress.last().unwrap().progress.as_ref().unwrap();
    assert_eq!(
        (last.done, last.total, last.source.as_str()),
        (200.0, 200.0, "counter")
    );
}

#[tokio::test]
async fn an_explicit_report_reaches_the_coordinator() {
    let (coordinator, _worker) = connected().await;
    let script =
        r#"echo '{"done":3,"total":9,"unit":"images","message":"cat"}' > "$QCTL_PROGRESS""#;
    coordinator.assign(7, script);
    coordinator.complete(7).await;
    let state = coordinator.state();
    let progress = state.progress[0].progress.as_ref().unwrap();
    assert_eq!((progress.done, progress.unit.as_str()), (3.0, "images"));
    assert_eq!(
        (progress.message.as_str(), progress.source.as_str()),
        ("cat", "report")
    );
}

#[tokio::test]
async fn assignments_for_someone_else_come_back() {
    let (coordinator, _worker) = connected().await;
    let good = coordinator.assignment(1, spec(&["true"]));
    let wrong = [
        Assignment {
            fence: 2,
            boot_id: "another".to_owned(),
            ..good.clone()
        },
        Assignment {
            fence: 3,
            spool_id: "another".to_owned(),
            ..good.clone()
        },
        Assignment {
            fence: 4,
            term: 0,
            ..good.clone()
        },
        Assignment {
            fence: 5,
            spec: Some(JobSpec::default()),
            ..good.clone()
        },
    ];
    coordinator.say(Said::Assign(Assign {
        assignments: wrong.to_vec(),
    }));
    for fence in 2..=5 {
        coordinator
            .wait("it comes back", |s| s.returned(fence) == Some(true))
            .await;
    }
}

#[tokio::test]
async fn a_coordinator_of_a_lower_term_is_refused() {
    let (coordinator, mut worker) = connected().await;
    coordinator.state().term = 5;
    coordinator.disconnect();
    coordinator
        .wait("a greeting", |s| s.hellos.len() == 2)
        .await;
    coordinator.wait("heartbeats", |s| s.heartbeats > 1).await;
    worker.kill();
    let heartbeats = {
        let mut state = coordinator.state();
        state.term = 4;
        state.heartbeats
    };
    worker.restart();
    // It greets again and again, and never goes on to heartbeats.
    coordinator
        .wait("two greetings", |s| s.hellos.len() >= 4)
        .await;
    assert_eq!(coordinator.state().heartbeats, heartbeats);
}

#[tokio::test]
async fn a_second_agent_on_the_same_folder_is_refused_and_a_copy_has_its_own_spool() {
    let (coordinator, worker) = connected().await;
    let mut second = worker.command();
    // The coordinator goes on answering meanwhile.
    let output = tokio::task::spawn_blocking(move || second.output());
    let output = output.await.unwrap().unwrap();
    assert!(!output.status.success());
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("another qctl-worker already runs"),
        "{message}"
    );

    let mut copy = Worker::start("127.0.0.1:1");
    until("it has an identity", || {
        copy.folder().join("identity.json").exists()
    })
    .await;
    copy.kill();
    let identity = |worker: &Worker| worker.folder().join("identity.json");
    std::fs::copy(identity(&worker), identity(&copy)).unwrap();
    copy.set_address(&coordinator.address);
    copy.restart();
    coordinator
        .wait("its greeting", |s| s.hellos.len() == 2)
        .await;
    let state = coordinator.state();
    assert_eq!(state.hellos[0].worker_id, state.hellos[1].worker_id);
    assert_ne!(state.hellos[0].spool_id, state.hellos[1].spool_id);
}

#[tokio::test]
async fn a_coordinator_that_moves_is_found_again() {
    let (coordinator, worker) = connected().await;
    let moved = Coordinator::start().await;
    worker.set_address(&moved.address);
    coordinator.disconnect();
    moved.wait("a greeting", |s| s.hellos.len() == 1).await;
}

#[tokio::test]
async fn a_taken_host_name_gets_an_addition() {
    use qctl_proto::error::{Fault, Reason};

    let coordinator = Coordinator::start().await;
    coordinator.state().refuse = Some(Fault::new(Reason::WorkerNameTaken, "taken").into());
    let _worker = Worker::start(&coordinator.address);
    coordinator.wait("a refusal", |s| s.refused > 0).await;
    coordinator.state().refuse = None;
    coordinator
        .wait("a greeting", |s| s.hellos.len() == 1)
        .await;
    let state = coordinator.state();
    let hello = &state.hellos[0];
    assert_eq!(
        hello.name,
        format!("{}-{}", hello.hostname, &hello.worker_id[..4])
    );
}

#[tokio::test]
async fn a_stop_reaches_a_job_that_floods() {
    let (coordinator, _worker) = connected().await;
    coordinator.assign(7, "yes");
    coordinator
        .wait("a flood", |s| {
            s.logs.get(&7).is_some_and(|log| log.len() > 20_000_000)
        })
        .await;
    coordinator.say(Said::Stop(Stop {
        fence: 7,
        cause: StopCause::Cancel.into(),
        grace: None,
        gpu: None,
    }));
    coordinator
        .wait("its end", |s| s.ended.contains_key(&7))
        .await;
}

#[tokio::test]
async fn a_flood_arrives_whole() {
    let (coordinator, _worker) = connected().await;
    coordinator.assign(7, "seq 1 2000000");
    let ended = coordinator.complete(7).await;
    let expected: Vec<u8> = (1..=2_000_000_u32)
        .flat_map(|n| format!("{n}\n").into_bytes())
        .collect();
    assert!(coordinator.log(7) == expected);
    assert_eq!(ended.log_crc32c, crc32c::crc32c(&expected));
}

#[tokio::test]
async fn a_job_that_succeeded_leaves_no_checkpoints_and_one_that_failed_does() {
    let (coordinator, worker) = connected().await;
    let script = "echo state > \"$QCTL_CHECKPOINT_DIR/state\"";
    coordinator.assign(1, script);
    coordinator.assign(2, &format!("{script}; exit 1"));
    assert!(!coordinator.complete(1).await.checkpoint.is_empty());
    let kept = coordinator.complete(2).await.checkpoint;
    let folder = worker.folder().join("checkpoints");
    until("they are removed", || !folder.join("1").exists()).await;
    assert_eq!(
        std::fs::read(std::path::Path::new(&kept).join("state")).unwrap(),
        b"state\n"
    );
}
