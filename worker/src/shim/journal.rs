//! Writes the segment. A record is written whole or not at all, and room for the records that end
//! an attempt is kept even while the disk is full.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use qctl_worker_core::segment::{self, HEADER_BYTES, Stream};
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, ftruncate};
use rustix::io::Errno;

use crate::shim::records::{self, Event};

/// Room that is kept for events behind any output, in bytes: the start, the stop, the end and the
/// release of an attempt, with the longest messages.
const RESERVE_BYTES: u64 = 64 * 1024;

/// Room is taken from the disk in pieces from the first size to the second, growing with the
/// segment.
const STRIDE_BYTES: std::ops::RangeInclusive<u64> = 64 * 1024..=4 * 1024 * 1024;

/// Most bytes of events that wait in memory for room on the disk.
const MAX_BACKLOG_BYTES: usize = 64 * 1024;

/// Why a segment cannot be begun.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Opening, locking or writing failed.
    #[error("cannot use the segment {}", path.display())]
    Io {
        /// The segment.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Somebody else holds the lock.
    #[error("the segment {} belongs to another process", .0.display())]
    Locked(PathBuf),
    /// An agent has written into it or removed it before this shim had the lock.
    #[error("the segment {} is not a new one", .0.display())]
    NotNew(PathBuf),
}

/// The segment that this shim writes; the lock is held as long as it is open.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    end: u64,
    /// The disk has given room up to here.
    reserved: u64,
    /// Longest file that this process may write.
    limit: u64,
    /// Whether the file system can set room aside.
    can_reserve: bool,
    /// Events that found no room, in order.
    backlog: Vec<u8>,
    scratch: Vec<u8>,
}

impl Journal {
    /// Takes the lock of a segment that an agent has just created, and makes it ready.
    pub(super) fn begin(path: &Path) -> Result<Self, JournalError> {
        let failed = |source: io::Error| JournalError::Io {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(JournalError::Locked(path.to_owned())),
            Err(error) => return Err(failed(error.into())),
        }
        let meta = file.metadata().map_err(failed)?;
        let is_new = match meta.len() {
            0 => true,
            length if length == HEADER_BYTES as u64 => {
                let mut head = [0; HEADER_BYTES];
                std::os::unix::fs::FileExt::read_exact_at(&file, &mut head, 0).map_err(failed)?;
                head == segment::header()
            }
            _ => false,
        };
        if !is_new || meta.nlink() == 0 {
            return Err(JournalError::NotNew(path.to_owned()));
        }
        let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
        let mut journal = Self {
            file,
            path: path.to_owned(),
            end: 0,
            reserved: 0,
            limit: limit.unwrap_or(u64::MAX),
            can_reserve: true,
            backlog: Vec::new(),
            scratch: Vec::new(),
        };
        journal
            .reserve(RESERVE_BYTES)
            .map_err(|e| failed(e.into()))?;
        let header = segment::header();
        journal
            .write(&[IoSlice::new(&header)])
            .map_err(|e| failed(e.into()))?;
        Ok(journal)
    }

    /// Length of the segment, in bytes.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// True when events wait for room.
    pub(super) fn is_behind(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// True when so many events wait for room that the agent's wishes cannot be recorded any more.
    pub(super) fn is_stuck(&self) -> bool {
        self.backlog.len() > MAX_BACKLOG_BYTES
    }

    /// Another handle of the file, to make it durable from another thread.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// Where the segment is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// True when there is room for `length` bytes beside what is kept for events.
    pub(super) fn has_room(&mut self, length: usize) -> bool {
        let wanted = self.end.saturating_add(length as u64);
        self.reserve(wanted.saturating_add(RESERVE_BYTES)).is_ok()
    }

    /// Writes events in one piece. They may use the room that is kept; without any they wait in
    /// memory and are written before everything else.
    pub(super) fn append(&mut self, fence: i64, events: &[Event]) {
        let mut bytes = std::mem::take(&mut self.scratch);
        for event in events {
            // Only an assignment can be too long, and those are checked before they are taken.
            if let Err(error) = records::encode(fence, event, &mut bytes) {
                note!("attempt {fence}: {error}");
            }
        }
        if self.catch_up() && self.write(&[IoSlice::new(&bytes)]).is_ok() {
            bytes.clear();
        } else {
            self.backlog.append(&mut bytes);
        }
        // An assignment may have been large, and the next one seldom is.
        bytes.shrink_to(RESERVE_BYTES as usize);
        self.scratch = bytes;
    }

    /// Writes events like [`Journal::append`], but only when there is room beside what is kept.
    /// Returns whether there was.
    pub(super) fn append_if_room(&mut self, fence: i64, events: &[Event]) -> bool {
        let mut bytes = Vec::new();
        for event in events {
            if records::encode(fence, event, &mut bytes).is_err() {
                return false;
            }
        }
        self.catch_up() && self.has_room(bytes.len()) && self.write(&[IoSlice::new(&bytes)]).is_ok()
    }

    /// Writes output. Returns false when there is no room.
    pub(super) fn append_output(
        &mut self,
        fence: i64,
        offset: u64,
        stream: Stream,
        wall_us: i64,
        data: &[u8],
    ) -> bool {
        let Ok(head) = segment::out_head(fence, offset, stream, wall_us, data) else {
            return false;
        };
        self.catch_up()
            && self.has_room(head.len() + data.len())
            && self
                .write(&[IoSlice::new(&head), IoSlice::new(data)])
                .is_ok()
    }

    /// Writes events that waited for room. Returns whether none waits any more.
    pub(super) fn catch_up(&mut self) -> bool {
        if self.backlog.is_empty() {
            return true;
        }
        let backlog = std::mem::take(&mut self.backlog);
        let written = self.write(&[IoSlice::new(&backlog)]).is_ok();
        if !written {
            self.backlog = backlog;
        }
        written
    }

    /// Gives room that was never used back to the disk.
    pub(super) fn finish(self) {
        // Nobody misses the room if this fails, and the lock is released either way.
        let _ = ftruncate(&self.file, self.end);
    }

    fn write(&mut self, pieces: &[IoSlice<'_>]) -> Result<(), Errno> {
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        let end = self.end.saturating_add(total as u64);
        if end > self.limit {
            return Err(Errno::FBIG);
        }
        let mut at = self.end;
        let mut rest: Vec<IoSlice<'_>> = pieces.to_vec();
        let mut rest = rest.as_mut_slice();
        while at < end {
            match rustix::io::pwritev(&self.file, rest, at) {
                Ok(0) => return self.take_back(at, Errno::NOSPC),
                Ok(written) => {
                    at += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(Errno::INTR) => {}
                Err(error) => return self.take_back(at, error),
            }
        }
        self.end = end;
        Ok(())
    }

    /// Removes the beginning of a record whose end found no room.
    fn take_back(&mut self, written_to: u64, error: Errno) -> Result<(), Errno> {
        if written_to > self.end {
            // Cutting the file gives the room behind its end back too, so it is taken anew. If the
            // cut fails, the next record overwrites what is there.
            let _ = ftruncate(&self.file, self.end);
            self.reserved = self.end;
            let _ = self.reserve(self.end.saturating_add(RESERVE_BYTES));
        }
        Err(error)
    }

    /// Makes sure that the disk has room up to `wanted`.
    fn reserve(&mut self, wanted: u64) -> Result<(), Errno> {
        if wanted > self.limit {
            return Err(Errno::FBIG);
        }
        if wanted <= self.reserved || !self.can_reserve {
            return Ok(());
        }
        let needed = wanted - self.reserved;
        let stride = (self.end / 4).clamp(*STRIDE_BYTES.start(), *STRIDE_BYTES.end());
        let mut result = Err(Errno::NOSPC);
        for length in [needed.max(stride), needed] {
            result = fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.reserved, length);
            match result {
                Ok(()) => {
                    self.reserved += length;
                    break;
                }
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    self.can_reserve = false;
                    return Ok(());
                }
                Err(_) => {}
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use qctl_proto::v1::SegmentFreed;
    use qctl_worker_core::segment::{Read, Reader};

    use super::*;

    fn create(folder: &Path) -> PathBuf {
        let path = folder.join("segment");
        File::create_new(&path).unwrap();
        path
    }

    fn freed() -> Event {
        Event::Freed(SegmentFreed {})
    }

    fn count(path: &Path) -> usize {
        let mut reader = Reader::new();
        reader.feed(&std::fs::read(path).unwrap());
        let mut count = 0;
        loop {
            match reader.read().unwrap() {
                Read::Record { .. } => count += 1,
                Read::Incomplete { waiting } => {
                    assert_eq!(waiting, 0);
                    return count;
                }
            }
        }
    }

    #[test]
    fn a_segment_is_begun_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = create(folder.path());
        let mut journal = Journal::begin(&path).unwrap();
        assert!(matches!(
            Journal::begin(&path),
            Err(JournalError::Locked(_))
        ));
        journal.append(1, &[freed()]);
        journal.finish();
        assert!(matches!(
            Journal::begin(&path),
            Err(JournalError::NotNew(_))
        ));
        assert_eq!(count(&path), 1);
    }

    #[test]
    fn a_segment_that_does_not_exist_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing");
        assert!(matches!(
            Journal::begin(&path),
            Err(JournalError::Io { .. })
        ));
        assert!(!path.exists());
    }

    #[test]
    fn output_stops_before_the_room_for_events_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = create(folder.path());
        let mut journal = Journal::begin(&path).unwrap();
        journal.limit = 200 * 1024;
        let data = vec![b'x'; 50 * 1024];
        let mut offset = 0;
        while journal.append_output(1, offset, Stream::Stdout, 0, &data) {
            offset += data.len() as u64;
        }
        assert_eq!(offset, 2 * 50 * 1024);
        assert!(!journal.append_if_room(1, &[Event::Report(vec![0; 40_000].into())]));
        journal.append(1, &[freed()]);
        assert!(!journal.is_behind());
        assert_eq!(count(&path), 3);
    }

    #[test]
    fn events_without_room_are_written_later_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = create(folder.path());
        let mut journal = Journal::begin(&path).unwrap();
        journal.limit = journal.end();
        journal.append(1, &[Event::Void("first".into())]);
        journal.append(2, &[freed()]);
        assert!(journal.is_behind());
        assert_eq!(count(&path), 0);
        journal.limit = u64::MAX;
        journal.append(3, &[freed()]);
        assert!(!journal.is_behind());
        assert_eq!(count(&path), 3);
    }
}
