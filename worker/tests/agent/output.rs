//! Output that is more than is kept, that is damaged, or that was not wanted for a while.

use std::os::unix::fs::FileExt;

use qctl_proto::v1::{HoleCause, JobSpec};

use crate::connected;
use crate::coordinator::{Coordinator, spec};
use crate::worker::{Worker, until};

const MIB: usize = 1 << 20;

/// A shell script of whose output a mebibyte is kept.
fn limited(script: &str) -> JobSpec {
    JobSpec {
        log_limit_bytes: MIB as i64,
        ..spec(&["/bin/sh", "-c", script])
    }
}

fn numbers(last: u32) -> Vec<u8> {
    (1..=last)
        .flat_map(|n| format!("{n}\n").into_bytes())
        .collect()
}

/// Bytes that the files of a worker's spool take, as far as they were written.
fn spooled(worker: &Worker) -> u64 {
    let files = std::fs::read_dir(worker.spool()).unwrap().flatten();
    files
        .filter_map(|file| file.metadata().ok())
        .map(|meta| meta.len())
        .sum()
}

/// Checks a log with one hole against what was written; returns the hole's place.
fn check(coordinator: &Coordinator, fence: i64, whole: &[u8], cause: HoleCause) -> (usize, usize) {
    let log = coordinator.log(fence);
    let holes = coordinator.state().holes[&fence].clone();
    let [(at, bytes, lines, told)] = holes[..] else {
        panic!("{holes:?}");
    };
    assert_eq!((log.len(), told), (whole.len(), cause));
    assert!(log[..at] == whole[..at]);
    assert!(log[at + bytes..] == whole[at + bytes..]);
    if cause != HoleCause::Damaged {
        let missing = &whole[at..at + bytes];
        let counted = missing.iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(lines, counted as i64);
    }
    (at, bytes)
}

#[tokio::test]
async fn output_over_its_limit_keeps_its_beginning_and_its_end() {
    let (coordinator, mut worker) = connected().await;
    coordinator.state().hold_output = true;
    coordinator.disconnect_output();
    let go = worker.folder().join("go");
    let script = format!(
        "seq 1 600000; while [ ! -e '{0}' ]; do sleep 0.02; done; seq 600001 700000; exit 3",
        go.display()
    );
    coordinator.assign_spec(7, limited(&script));
    coordinator.wait("it runs", |s| s.started(7)).await;
    let tails = || {
        let files = std::fs::read_dir(worker.spool()).unwrap().flatten();
        let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
        let numbers = names.filter_map(|name| name.split_once(".tail-")?.1.parse::<u32>().ok());
        numbers.max().unwrap_or(0)
    };
    until("the ring has turned", || tails() > 6).await;
    // The next agent has to find its way into the ring.
    worker.kill();
    std::fs::write(&go, "").unwrap();
    until("the job has ended", || {
        let segments = worker.spool().join("1.segment");
        let text = std::fs::read(segments).unwrap_or_default();
        spooled(&worker) > 0 && worker.shims().is_empty() && !text.is_empty()
    })
    .await;
    let kept = spooled(&worker);
    assert!(kept <= MIB as u64 + 64 * 1024, "{kept} bytes in the spool");
    coordinator.state().hold_output = false;
    worker.restart();
    let ended = coordinator.complete(7).await;
    coordinator.closed(7).await;
    assert_eq!(ended.exit_code, Some(3));
    let whole = numbers(700_000);
    assert_eq!(ended.log_crc32c, crc32c::crc32c(&whole));
    let (at, bytes) = check(&coordinator, 7, &whole, HoleCause::Limit);
    assert!(at > 0);
    assert!(whole.len() - at - bytes > MIB / 4);
}

#[tokio::test]
async fn a_coordinator_that_keeps_up_misses_nothing_although_little_is_kept() {
    let (coordinator, worker) = connected().await;
    let go = worker.folder().join("go");
    let script = format!(
        "i=0; while [ $i -lt 12 ]; do i=$((i+1)); seq -f 'round %.0f' 1 40000; \
         while [ ! -e '{0}'.$i ]; do sleep 0.01; done; done",
        go.display()
    );
    coordinator.assign_spec(7, limited(&script));
    let round: Vec<u8> = (1..=40_000)
        .flat_map(|n| format!("round {n}\n").into_bytes())
        .collect();
    for number in 1..=12 {
        coordinator
            .wait("a round", |s| {
                s.logs
                    .get(&7)
                    .is_some_and(|log| log.len() >= number * round.len())
            })
            .await;
        let kept = spooled(&worker);
        assert!(kept <= MIB as u64 + 64 * 1024, "{kept} bytes in the spool");
        std::fs::write(go.with_extension(number.to_string()), "").unwrap();
    }
    let ended = coordinator.complete(7).await;
    coordinator.closed(7).await;
    assert!(coordinator.log(7) == round.repeat(12));
    assert_eq!(ended.log_crc32c, crc32c::crc32c(&round.repeat(12)));
    assert!(coordinator.state().holes.is_empty());
}

#[tokio::test]
async fn damage_costs_what_it_hits_and_neither_the_rest_nor_the_exit() {
    let (coordinator, mut worker) = connected().await;
    coordinator.state().hold_output = true;
    coordinator.disconnect_output();
    let go = worker.folder().join("go");
    let script = format!(
        "go() {{ while [ ! -e '{0}'.$1 ]; do sleep 0.02; done; }}; \
         echo first; go 1; seq 1 1000; go 2; echo last; go 3; echo end; exit 5",
        go.display()
    );
    let goes = |number: u32| std::fs::write(go.with_extension(number.to_string()), "").unwrap();
    coordinator.assign_spec(7, limited(&script));
    coordinator.wait("it runs", |s| s.started(7)).await;
    let segment = worker.spool().join("1.segment");
    let find = |text: &[u8]| {
        let bytes = std::fs::read(&segment).unwrap();
        bytes.windows(text.len()).position(|part| part == text)
    };
    // Each in a record of its own.
    for (number, text) in [(1, &b"first\n"[..]), (2, b"\n1000\n")] {
        until("a part is written", || find(text).is_some()).await;
        goes(number);
    }
    until("all is written", || find(b"last\n").is_some()).await;
    worker.kill();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&segment)
        .unwrap();
    file.write_all_at(b"#", find(b"\n500\n").unwrap() as u64)
        .unwrap();
    coordinator.state().hold_output = false;
    worker.restart();
    coordinator
        .wait("the output around it", |s| {
            s.logs.get(&7).is_some_and(|log| log.ends_with(b"last\n"))
        })
        .await;
    goes(3);
    let ended = coordinator.complete(7).await;
    coordinator.closed(7).await;
    assert_eq!(ended.exit_code, Some(5));
    let whole = [b"first\n", &numbers(1000)[..], b"last\nend\n"].concat();
    let (at, bytes) = check(&coordinator, 7, &whole, HoleCause::Damaged);
    assert!(at >= 6 && at + bytes <= whole.len() - 9, "{at} {bytes}");
}

#[tokio::test]
async fn a_job_whose_assignment_cannot_be_read_is_still_told_and_ends_truly() {
    let (coordinator, mut worker) = connected().await;
    let go = worker.folder().join("go");
    let script = format!(
        ": some-word; echo begun; while [ ! -e '{0}' ]; do sleep 0.02; done; exit 6",
        go.display()
    );
    coordinator.assign_spec(7, limited(&script));
    coordinator.wait("it runs", |s| s.started(7)).await;
    worker.kill();
    let segment = worker.spool().join("1.segment");
    let bytes = std::fs::read(&segment).unwrap();
    let word = bytes
        .windows(9)
        .position(|part| part == b"some-word")
        .unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&segment)
        .unwrap();
    file.write_all_at(b"#", word as u64).unwrap();
    worker.restart();
    coordinator
        .wait("a greeting", |s| s.hellos.len() == 2)
        .await;
    let held = coordinator.state().hellos[1].attempts.clone();
    assert_eq!((held.len(), held[0].fence, held[0].slot_held), (1, 7, true));
    std::fs::write(&go, "").unwrap();
    assert_eq!(coordinator.complete(7).await.exit_code, Some(6));
}

#[tokio::test]
async fn output_that_was_not_wanted_is_sent_when_it_is_asked_for() {
    let (coordinator, worker) = connected().await;
    coordinator.state().unknown.insert(7);
    let go = worker.folder().join("go");
    let script = format!(
        "echo one; while [ ! -e '{0}' ]; do sleep 0.02; done; echo two",
        go.display()
    );
    coordinator.assign_spec(7, limited(&script));
    coordinator.wait("it was refused", |s| s.chunks > 0).await;
    coordinator.lose_output(7, 0);
    coordinator.state().unknown.clear();
    coordinator.disconnect();
    std::fs::write(&go, "").unwrap();
    coordinator.complete(7).await;
    coordinator.closed(7).await;
    assert_eq!(coordinator.log(7), b"one\ntwo\n");
}
