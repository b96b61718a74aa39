//! The attempt that a shim runs: its processes, and the end that is recorded of it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qctl_checkpoint::is_used;
use qctl_proto::v1::{AttemptEnded, GpuFault, attempt_ended::End};
use qctl_worker_core::enforcement::Enforcement;
use rustix::process::{Pid, Signal, WaitStatus, kill_process_group};

use crate::process::signal;
use crate::process::snapshot::{Process, Snapshot};
use crate::shim::activity::Activity;
use crate::shim::output::Output;
use crate::wire::{timestamp, wire_cause};

/// Time that output may still come after the attempt's process has ended, while others hold its
/// streams: a `tee` behind it finishes within that.
pub(super) const DRAIN: Duration = Duration::from_secs(1);

/// Times between two blows at a tree that does not die: short at first, because orphans only
/// appear when their parents are gone.
const KILL_AGAIN: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(1);

/// What runs.
#[derive(Debug)]
pub(super) struct Attempt {
    /// Its fence.
    pub(super) fence: i64,
    /// Process id of its own process. It means this process until `stage` leaves `Running`.
    pub(super) pid: i32,
    /// Its limits.
    pub(super) enforcement: Enforcement,
    /// Whether it works, where that is a sign of life.
    pub(super) activity: Option<Activity>,
    /// Its output.
    pub(super) output: Output,
    /// How far its end was recorded.
    pub(super) stage: Stage,
    /// The signal that warns it.
    pub(super) warn_signal: Signal,
    /// What the end tells besides.
    pub(super) facts: Facts,
    /// Processes that were frozen.
    pub(super) frozen: Vec<Process>,
    /// The next blow and the time to the one after it.
    pub(super) kill_again: Option<(Duration, Duration)>,
}

/// How far an attempt's end was recorded.
#[derive(Debug)]
pub(super) enum Stage {
    /// Its process has not been waited for.
    Running,
    /// wait returned; output may still come until then.
    Draining {
        /// When the end is recorded at the latest.
        until: Duration,
        /// The end, except what the output adds.
        ended: Box<AttemptEnded>,
    },
    /// The end is recorded; other processes of it may live.
    Recorded,
}

/// Facts of a start that its end repeats.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// When it was started, in microseconds since the Unix epoch; 0 when it was not.
    pub(super) started_us: i64,
    /// Directory for its checkpoints.
    pub(super) checkpoints: Option<CheckpointDir>,
    /// Limits that are not enforced.
    pub(super) not_enforced: Vec<String>,
    /// Exit code that means "checkpointed, run me again".
    pub(super) checkpoint_exit_code: Option<i32>,
    /// What is wrong with its GPU, where it is stopped for that.
    pub(super) gpu: Option<GpuFault>,
}

impl Attempt {
    /// What wait has told, as far as it is known before the output has ended.
    pub(super) fn ended(
        &self,
        status: WaitStatus,
        now: Duration,
        wall_us: i64,
        out_of_memory: bool,
    ) -> AttemptEnded {
        AttemptEnded {
            fence: self.fence,
            end: End::Waited.into(),
            exit_code: status.exit_status(),
            signal: status.terminating_signal(),
            stop_cause: wire_cause(self.enforcement.cause()).into(),
            out_of_memory,
            checkpointed: status.exit_status().is_some()
                && status.exit_status() == self.facts.checkpoint_exit_code,
            started_at: timestamp(self.facts.started_us),
            ended_at: timestamp(wall_us),
            duration: prost_types::Duration::try_from(self.enforcement.ran(now)).ok(),
            pid: self.pid,
            not_enforced: self.facts.not_enforced.clone(),
            gpu: self.facts.gpu.clone(),
            ..AttemptEnded::default()
        }
    }

    /// Sends the stop signal: to the process's group and the rest of its session, or, when the
    /// process has ended, to everything that is left.
    pub(super) fn terminate(&self) -> io::Result<()> {
        let is_running = matches!(self.stage, Stage::Running);
        if is_running && let Some(pid) = Pid::from_raw(self.pid) {
            match kill_process_group(pid, Signal::TERM) {
                Ok(()) | Err(rustix::io::Errno::SRCH | rustix::io::Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            }
        }
        for process in descendants(&Snapshot::take()?) {
            let is_in_session = process.session == self.pid && process.group != self.pid;
            if process.lives() && (!is_running || is_in_session) {
                // One that is gone or belongs to another user is met again by force.
                let _ = signal::send(&process, Signal::TERM);
            }
        }
        Ok(())
    }

    /// Sends the warning to all processes that are prepared for it: a warning must not end what
    /// does not know the signal.
    pub(super) fn warn(&self) -> io::Result<()> {
        for process in descendants(&Snapshot::take()?) {
            if signal::is_expected(process.pid, self.warn_signal) {
                let _ = signal::send(&process, self.warn_signal);
            }
        }
        Ok(())
    }

    /// Freezes the tree. False when it is not frozen whole.
    pub(super) fn freeze(&mut self) -> io::Result<bool> {
        signal::freeze(|snapshot| Ok(descendants(snapshot)), &mut self.frozen)
    }

    /// Process ids of its living processes.
    pub(super) fn living(&self) -> io::Result<Vec<i32>> {
        let mut living = descendants(&Snapshot::take()?);
        living.retain(Process::lives);
        Ok(living.iter().map(|process| process.pid).collect())
    }

    /// Thaws the tree.
    pub(super) fn thaw(&mut self) {
        signal::thaw(&std::mem::take(&mut self.frozen));
    }

    /// Freezes and kills the tree, and sets the time of the next blow.
    pub(super) fn kill(&mut self, now: Duration) -> io::Result<()> {
        let wait = self
            .kill_again
            .map_or(*KILL_AGAIN.start(), |(_, wait)| wait);
        self.kill_again = Some((now.saturating_add(wait), (wait * 2).min(*KILL_AGAIN.end())));
        signal::freeze_and_kill(|snapshot| Ok(descendants(snapshot)))?;
        Ok(())
    }
}

/// Everything below this process. Orphans come to it, because it is their subreaper.
fn descendants(snapshot: &Snapshot) -> Vec<Process> {
    snapshot.descendants(&[std::process::id() as i32])
}

/// The end of an attempt that could not be started.
pub(super) fn cannot_start(fence: i64, message: String, wall_us: i64) -> AttemptEnded {
    AttemptEnded {
        fence,
        end: End::CannotStart.into(),
        ended_at: timestamp(wall_us),
        message,
        ..AttemptEnded::default()
    }
}

/// A directory for checkpoints, and the folder above it where that was made too.
#[derive(Debug)]
pub(super) struct CheckpointDir {
    path: PathBuf,
    /// Those of the two that did not exist before, innermost first. Folders further up are shared
    /// by jobs that start at any moment.
    made: Vec<PathBuf>,
}

impl CheckpointDir {
    /// Makes the directory.
    pub(super) fn make(path: &Path) -> io::Result<Self> {
        let made = path
            .ancestors()
            .take(2)
            .take_while(|folder| !folder.exists())
            .map(Path::to_path_buf)
            .collect();
        std::fs::create_dir_all(path)?;
        Ok(Self {
            path: path.to_owned(),
            made,
        })
    }

    /// Removes what was made as far as it is empty. Returns the directory when something is in it or
    /// was published out of it.
    pub(super) fn finish(&self) -> Option<String> {
        if is_used(&self.path) {
            return Some(self.path.to_string_lossy().into_owned());
        }
        for folder in &self.made {
            if std::fs::remove_dir(folder).is_err() {
                break;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unused_checkpoint_directory_leaves_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("42").join("1");
        let directory = CheckpointDir::make(&path).unwrap();
        assert!(path.is_dir());
        assert_eq!(directory.finish(), None);
        assert!(!folder.path().join("42").exists());
        assert!(folder.path().exists());
    }

    #[test]
    fn a_used_checkpoint_directory_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("42").join("1");
        let directory = CheckpointDir::make(&path).unwrap();
        std::fs::write(path.join("state"), b"7").unwrap();
        assert_eq!(directory.finish().as_deref(), path.to_str());
        std::fs::remove_dir_all(&path).unwrap();
        assert_eq!(directory.finish(), None);
    }
}
