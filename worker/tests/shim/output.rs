//! Output and progress reports.

use std::os::unix::process::CommandExt;
use std::process::Command;

use qctl_proto::v1::HoleCause;
use qctl_worker::shim::records::Event;
use qctl_worker_core::segment::Stream;

use crate::harness::{Entry, Shim, duration_ms, sh, wait_until};

#[test]
fn both_streams_are_kept_apart_and_in_order() {
    let mut shim = Shim::start();
    let folder = tempfile::tempdir().unwrap();
    let seen = |word: &str| folder.path().join(word);
    // Only what is read before the other stream has anything can be put in order.
    let wait = |word: &str| {
        format!(
            "until [ -e '{}' ]; do sleep 0.02; done",
            seen(word).display()
        )
    };
    let script = format!(
        "echo one; {}; echo two >&2; {}; echo three",
        wait("one"),
        wait("two")
    );
    let fence = shim.run(sh(&script));
    for word in ["one", "two"] {
        shim.wait_for_output(fence, word);
        std::fs::write(seen(word), "").unwrap();
    }
    let ended = shim.end(fence);
    shim.freed(fence);
    assert_eq!(shim.text(fence), "one\ntwo\nthree\n");
    assert_eq!(shim.stream(fence, Stream::Stdout), b"one\nthree\n");
    assert_eq!(shim.stream(fence, Stream::Stderr), b"two\n");
    assert_eq!(ended.log_end, 14);
    assert_eq!(ended.log_crc32c, crc32c::crc32c(&shim.output(fence)));
}

#[test]
fn any_bytes_and_no_newline_are_carried_through() {
    let mut shim = Shim::start();
    let (fence, _) = shim.finish(sh(r"printf '\377\376\000\r\033[31mx'"));
    assert_eq!(shim.output(fence), b"\xff\xfe\0\r\x1b[31mx");
}

#[test]
fn a_huge_line_is_cut_into_records() {
    let mut shim = Shim::start();
    let (fence, ended) = shim.finish(sh("head -c 20000000 /dev/zero | tr '\\0' x"));
    let output = shim.output(fence);
    assert_eq!(output.len(), 20_000_000);
    assert!(output.iter().all(|&byte| byte == b'x'));
    assert_eq!(ended.log_crc32c, crc32c::crc32c(&output));
}

#[test]
fn many_short_lines_are_read_together() {
    let mut shim = Shim::start();
    let (fence, _) = shim.finish(sh(
        "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done",
    ));
    let lines = shim.text(fence).lines().count();
    let records = shim
        .entries
        .iter()
        .filter(|entry| matches!(entry, Entry::Out { .. }))
        .count();
    assert_eq!(lines, 20_000);
    assert!(records < 10_000, "{records} records");
}

#[test]
fn nobody_types() {
    let mut shim = Shim::start();
    let (fence, ended) = shim.finish(sh("cat; readlink /proc/self/fd/0"));
    assert_eq!(ended.exit_code, Some(0));
    assert_eq!(shim.text(fence), "/dev/null\n");
}

#[test]
fn a_terminal_is_one_and_passes_newlines_on() {
    let mut shim = Shim::start();
    let mut spec = sh("test -t 1 && test -t 2 && echo yes; echo $TERM >&2; echo own > /dev/tty");
    spec.pty = true;
    let (fence, ended) = shim.finish(spec);
    assert_eq!(ended.exit_code, Some(0));
    assert_eq!(shim.text(fence), "yes\nxterm-256color\nown\n");
    assert_eq!(shim.stream(fence, Stream::Stderr), b"");
}

#[test]
fn reports_are_recorded_and_the_last_is_never_lost() {
    let mut shim = Shim::start();
    let (fence, _) = shim.finish(sh(
        "i=0; while [ $i -lt 500 ]; do echo $i/500; i=$((i+1)); done > \"$QCTL_PROGRESS\"; \
         echo '{\"done\":500,\"total\":500}' > \"$QCTL_PROGRESS\"",
    ));
    let reports: Vec<_> = shim
        .entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Event(_, Event::Report(line)) => Some(line.clone()),
            _ => None,
        })
        .collect();
    assert!(reports.len() < 200, "{} reports", reports.len());
    assert_eq!(
        reports.last().unwrap().as_ref(),
        b"{\"done\":500,\"total\":500}"
    );
    assert_eq!(shim.story(fence).last(), Some(&"freed"));
    let (next, _) = shim.finish(sh("exit 0"));
    assert!(!shim.story(next).contains(&"report"));
}

#[test]
fn a_full_disk_loses_output_but_not_the_job_nor_its_end() {
    let mut shim = Shim::start_changed(|command, _| {
        // SAFETY: setrlimit is a plain system call.
        unsafe {
            command.pre_exec(|| {
                let limit = libc::rlimit {
                    rlim_cur: 300 * 1024,
                    rlim_max: 300 * 1024,
                };
                match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
    });
    let (fence, ended) = shim.finish(sh("seq 1 200000; exit 4"));
    assert_eq!(ended.exit_code, Some(4));
    let hole = hole(&shim, fence);
    let whole: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    let output = shim.output(fence);
    assert!(!output.is_empty());
    assert_eq!(ended.log_end as usize, whole.len());
    assert_eq!(output.len() as i64 + hole.bytes, ended.log_end);
    assert_eq!(output, &whole.as_bytes()[..output.len()]);
    let lines = output.iter().filter(|&&byte| byte == b'\n').count() as i64;
    assert_eq!(lines + hole.lines, 200_000);
    assert_eq!(ended.log_crc32c, crc32c::crc32c(whole.as_bytes()));
    assert_eq!(hole.crc32c_behind, Some(ended.log_crc32c));
    assert_eq!(hole.cause(), HoleCause::NoRoom);

    // There is still no room, which the next job is told rather than left to find out.
    let next = shim.run(sh(&": ".repeat(100_000)));
    shim.wait_for_event("void", next, |event| match event {
        Event::Void(reason) if reason.contains("no room") => Some(()),
        _ => None,
    });
}

fn hole(shim: &Shim, fence: i64) -> qctl_proto::v1::SegmentHole {
    shim.entries
        .iter()
        .find_map(|entry| match entry {
            Entry::Event(of, Event::Hole(hole)) if *of == fence => Some(*hole),
            _ => None,
        })
        .expect("a hole")
}

#[test]
fn output_goes_on_behind_the_hole_once_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    // A private disk of a megabyte, where this user may make one.
    let script = "mount -t tmpfs -o size=1m none \"$1\" && head -c 600000 /dev/zero > \"$1/filler\" \
                  && : > \"$1/segment\" && exec \"$2\" shim --segment \"$1/segment\" --socket \"$3\"";
    let mut probe = Command::new("unshare");
    probe.args([
        "-Urm",
        "sh",
        "-c",
        "mount -t tmpfs -o size=1m none \"$1\"",
        "sh",
    ]);
    if !probe
        .arg(&disk)
        .status()
        .is_ok_and(|status| status.success())
    {
        eprintln!("skipped: this user cannot mount a disk of his own");
        return;
    }
    let mut command = Command::new("unshare");
    command
        .args(["-Urm", "sh", "-c", script, "sh"])
        .arg(&disk)
        .arg(env!("CARGO_BIN_EXE_qctl-worker"))
        .arg(folder.path().join("socket"));
    let mut shim = Shim::spawn(command, folder, disk.join("segment"));
    // The disk is only visible from inside.
    let inside = format!("/proc/{}/root{}", shim.child.id(), disk.display());
    shim.segment = format!("{inside}/segment").into();
    wait_until("the segment", || {
        std::fs::metadata(&shim.segment).is_ok_and(|meta| meta.len() > 0)
    });
    let mut spec = sh(&format!(
        "seq 1 200000; rm {}/filler; sleep 0.5; echo behind; exit 3",
        disk.display()
    ));
    spec.stop_grace = Some(duration_ms(100));
    let (fence, ended) = shim.finish(spec);
    assert_eq!(ended.exit_code, Some(3));
    let hole = hole(&shim, fence);
    assert!(hole.bytes > 0);
    let output = shim.output(fence);
    assert!(output.ends_with(b"behind\n"));
    assert_eq!(output.len() as i64 + hole.bytes, ended.log_end);
}
