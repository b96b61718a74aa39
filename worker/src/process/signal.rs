//! Signals to exactly the process that was meant, and to whole trees of them.

use std::collections::HashSet;
use std::io;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::process::snapshot::{Process, Snapshot};

/// Passes after which freezing gives up for now: a tree that still grows is met again later.
const MAX_PASSES: usize = 64;

/// A signal by its number; `None` when there is none of it, or the C library keeps it for itself.
pub fn from_number(number: i32) -> Option<Signal> {
    match number {
        1..=31 | 34..=64 => {
            // SAFETY: these are the signals of Linux except the two that the C library uses.
            Some(unsafe { Signal::from_raw_unchecked(number) })
        }
        _ => None,
    }
}

/// True when a process has a handler for a signal, or holds it back to fetch it by itself.
pub fn is_expected(pid: i32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    is_expected_by(&status, signal)
}

fn is_expected_by(status: &str, signal: Signal) -> bool {
    let bit = 1_u64 << (signal.as_raw() - 1);
    status.lines().any(|line| {
        line.strip_prefix("SigCgt:")
            .or_else(|| line.strip_prefix("SigBlk:"))
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_some_and(|mask| mask & bit != 0)
    })
}

/// Sends a signal to a process, unless its number belongs to another one by now. Returns whether
/// it was sent.
///
/// # Errors
/// When the signal is not permitted or `/proc` cannot be read.
pub fn send(process: &Process, signal: Signal) -> io::Result<bool> {
    let Some(pid) = Pid::from_raw(process.pid) else {
        return Ok(false);
    };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    // The descriptor holds whoever had the number when it was opened; looking afterwards tells
    // whether that was the process that was meant.
    match Process::look(process.pid)? {
        Some(now) if now.start_ticks == process.start_ticks => {}
        _ => return Ok(false),
    }
    match pidfd_send_signal(&pidfd, signal) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Stops all processes that `select` picks out of a snapshot, until a pass finds no new one, and
/// adds those that ran before to `frozen`, also when that fails halfway. A stopped process cannot
/// fork, so what is stopped stays whole. False when the tree grew faster than it could be stopped.
///
/// # Errors
/// When `/proc` cannot be read. Processes that may not be signalled are left out.
pub fn freeze(
    mut select: impl FnMut(&Snapshot) -> io::Result<Vec<Process>>,
    frozen: &mut Vec<Process>,
) -> io::Result<bool> {
    let mut seen = HashSet::new();
    for _ in 0..MAX_PASSES {
        let snapshot = Snapshot::take()?;
        let mut grew = false;
        for process in select(&snapshot)? {
            if !process.lives() || !seen.insert((process.pid, process.start_ticks)) {
                continue;
            }
            grew = true;
            if matches!(send(&process, Signal::STOP), Ok(true)) && !process.is_stopped() {
                frozen.push(process);
            }
        }
        if !grew {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Lets stopped processes go on.
pub fn thaw(processes: &[Process]) {
    for process in processes {
        // One that is gone needs no thawing, and there is nobody to tell about the others.
        let _ = send(process, Signal::CONT);
    }
}

/// Freezes and then kills all living processes that `select` picks, once. Returns how many there
/// were; a caller repeats until there are none, because killing hands orphans to new parents.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn freeze_and_kill(
    mut select: impl FnMut(&Snapshot) -> io::Result<Vec<Process>>,
) -> io::Result<usize> {
    freeze(&mut select, &mut Vec::new())?;
    let mut killed = 0;
    for process in select(&Snapshot::take()?)? {
        if process.lives() {
            killed += 1;
            // A process that may not be killed stays in the next snapshot, where it is counted.
            let _ = send(&process, Signal::KILL);
        }
    }
    Ok(killed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handled_or_blocked_signal_is_expected() {
        let status = "Name:\tx\nSigBlk:\t0000000000000800\nSigIgn:\t0000000000000200\n\
                      SigCgt:\t0000000000004000\n";
        assert!(is_expected_by(status, Signal::USR2));
        assert!(is_expected_by(status, Signal::TERM));
        assert!(!is_expected_by(status, Signal::USR1));
        assert!(!is_expected_by("", Signal::USR1));
    }

    #[test]
    fn what_was_frozen_before_a_failure_is_known() {
        let mut child = std::process::Command::new("sleep")
            .arg("300")
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let mut passes = 0;
        let mut frozen = Vec::new();
        let failed = freeze(
            |snapshot| {
                passes += 1;
                let all = snapshot.processes().iter().copied();
                match passes {
                    1 => Ok(all.filter(|process| process.pid == pid).collect()),
                    _ => Err(io::Error::other("no more descriptors")),
                }
            },
            &mut frozen,
        );
        assert!(failed.is_err());
        let pids: Vec<_> = frozen.iter().map(|process| process.pid).collect();
        assert_eq!(pids, [pid]);
        thaw(&frozen);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while Process::look(pid).unwrap().unwrap().is_stopped() {
            assert!(std::time::Instant::now() < deadline, "it stays frozen");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn only_signals_have_numbers() {
        for number in [-1, 0, 32, 33, 65] {
            assert_eq!(from_number(number), None);
        }
        assert_eq!(from_number(10), Some(Signal::USR1));
    }
}
