//! The pipe that jobs write progress reports to.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use qctl_worker_core::report::ReportLines;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

/// Piece in which reports are read, in bytes.
const PIECE_BYTES: usize = 4096;

/// Most bytes read at once, so that a flood of reports does not keep the shim from the rest.
const MAX_TURN_BYTES: usize = 256 * 1024;

/// The pipe, held open for reading and writing so that it never ends.
#[derive(Debug)]
pub(super) struct Progress {
    pipe: OwnedFd,
    path: PathBuf,
    lines: ReportLines,
}

impl Progress {
    /// Makes the pipe.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        rustix::fs::mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR)?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(Self {
            pipe: rustix::fs::open(&path, flags, Mode::empty())?,
            path,
            lines: ReportLines::default(),
        })
    }

    /// The pipe, for poll.
    pub(super) fn pipe(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Where jobs write.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what is there.
    pub(super) fn read(&mut self) {
        let mut piece = [0; PIECE_BYTES];
        let mut total = 0;
        while total < MAX_TURN_BYTES {
            match rustix::io::read(&self.pipe, &mut piece) {
                Ok(length) if length > 0 => {
                    self.lines.feed(&piece[..length]);
                    total += length;
                    if length < piece.len() {
                        return;
                    }
                }
                Err(Errno::INTR) => {}
                // The pipe is empty. Other errors cannot happen to a pipe that is held open.
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// When [`Progress::take`] has a report next.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.lines.deadline()
    }

    /// The report to record now, if any.
    pub(super) fn take(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.lines.take(now)
    }

    /// Reads the rest and returns the last report that was not taken. The next job begins afresh.
    pub(super) fn drain(&mut self) -> Option<Vec<u8>> {
        self.read();
        self.lines.finish()
    }

    /// Removes the pipe.
    pub(super) fn finish(self) {
        // A leftover is harmless, and removed with the segment.
        let _ = std::fs::remove_file(&self.path);
    }
}
