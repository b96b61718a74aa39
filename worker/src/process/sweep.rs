//! Finds and ends what is left of an attempt whose shim is gone, or of a probe whose agent is.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::process::identity::{self, Identity};
use crate::process::marker::Marker;
use crate::process::signal::freeze_and_kill;
use crate::process::snapshot::{Process, Snapshot};

/// Longest wait between two looks. A kill is normally noticed at once.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What a sweep looks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The marker of the attempt or the probe.
    pub marker: Marker,
    /// The attempt's first process, when it is known.
    pub leader: Option<Identity>,
}

/// Living processes of an attempt: those that carry its marker, those in the session of its first
/// process while that process is there to prove whose session it is, and all their descendants.
/// Empty is proof that nothing is left, as far as this user may look.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn survivors(trace: &Trace) -> io::Result<Vec<Process>> {
    let boot_id = identity::boot_id()?;
    Ok(select(trace, &boot_id, &Snapshot::take()?))
}

/// Freezes and kills all survivors until none is left or `deadline` passes. Returns what is left;
/// empty is proof of the attempt's end. Blocks.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn sweep(trace: &Trace, deadline: Instant) -> io::Result<Vec<Process>> {
    let boot_id = identity::boot_id()?;
    loop {
        let left = select(trace, &boot_id, &Snapshot::take()?);
        if left.is_empty() || Instant::now() >= deadline {
            return Ok(left);
        }
        let waiting: Vec<OwnedFd> = left.iter().filter_map(open).collect();
        freeze_and_kill(|snapshot| Ok(select(trace, &boot_id, snapshot)))?;
        wait_for_all(&waiting, deadline.min(Instant::now() + LOOK_AGAIN));
    }
}

fn select(trace: &Trace, boot_id: &str, snapshot: &Snapshot) -> Vec<Process> {
    let me = std::process::id() as i32;
    let leader = trace
        .leader
        .as_ref()
        .filter(|leader| snapshot.processes().iter().any(|p| leader.is(boot_id, p)));
    let mut found: Vec<Process> = snapshot
        .processes()
        .iter()
        .filter(|process| {
            leader.is_some_and(|leader| process.session == leader.pid)
                // Processes of other users cannot be read, and are not ours.
                || trace.marker.is_on(process.pid).unwrap_or(false)
        })
        .copied()
        .collect();
    let roots: Vec<i32> = found.iter().map(|process| process.pid).collect();
    found.extend(snapshot.descendants(&roots));
    found.retain(|process| process.lives() && process.pid != me);
    found
}

fn open(process: &Process) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(process.pid)?, PidfdFlags::empty()).ok()
}

/// Waits until all of the processes have ended or the deadline passes.
fn wait_for_all(pidfds: &[OwnedFd], deadline: Instant) {
    for pidfd in pidfds {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(timeout) = Timespec::try_from(left) else {
            return;
        };
        let _ = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::process::marker::VARIABLE;

    /// A spool id that no other test run uses.
    fn marker(name: &str) -> Marker {
        Marker::new(&format!("{name}-{}", std::process::id()), 7)
    }

    fn sleeper(marker: &Marker) -> Child {
        Command::new("sleep")
            .arg("300")
            .env(VARIABLE, marker.value())
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    /// Waits until the marked process has passed exec, where its environment becomes visible.
    fn wait_until_marked(trace: &Trace, count: usize) {
        let deadline = soon();
        while survivors(trace).unwrap().len() < count {
            assert!(Instant::now() < deadline, "the processes never appeared");
            std::thread::yield_now();
        }
    }

    #[test]
    fn marked_processes_are_found_and_killed_and_others_left_alone() {
        let trace = Trace {
            marker: marker("found"),
            leader: None,
        };
        let mut ours = sleeper(&trace.marker);
        let mut other = sleeper(&marker("other"));
        wait_until_marked(&trace, 1);
        assert_eq!(sweep(&trace, soon()).unwrap(), []);
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&ours.wait().unwrap()),
            Some(libc::SIGKILL)
        );
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn a_descendant_that_cleared_its_environment_is_found() {
        let trace = Trace {
            marker: marker("cleared"),
            leader: None,
        };
        let mut child = Command::new("sh")
            .args(["-c", "env -i sleep 300 & wait"])
            .env(VARIABLE, trace.marker.value())
            .spawn()
            .unwrap();
        wait_until_marked(&trace, 2);
        assert_eq!(sweep(&trace, soon()).unwrap(), []);
        child.wait().unwrap();
    }

    #[test]
    fn a_forged_start_time_spares_the_stranger() {
        let mut stranger = sleeper(&marker("stranger"));
        let seen = Process::look(stranger.id() as i32).unwrap().unwrap();
        let trace = Trace {
            marker: marker("reused"),
            leader: Some(Identity {
                boot_id: identity::boot_id().unwrap(),
                pid: seen.pid,
                start_ticks: seen.start_ticks + 1,
            }),
        };
        assert_eq!(sweep(&trace, soon()).unwrap(), []);
        let forged = Process {
            start_ticks: seen.start_ticks + 1,
            ..seen
        };
        assert!(!crate::process::signal::send(&forged, rustix::process::Signal::KILL).unwrap());
        assert!(stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
}
