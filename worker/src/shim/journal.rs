//! Writes the segment and the ring of files beside it. A record is written whole or not at all, and
//! room for the records that end an attempt is kept even while the disk is full.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use qctl_proto::v1::SegmentTail;
use qctl_worker_core::position::Position;
use qctl_worker_core::ring::{self, Place, Ring};
use qctl_worker_core::segment::{self, HEADER_BYTES, Stream};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::shim::append_file::AppendFile;
use crate::shim::records::{self, Event};
use crate::tail_files;

/// Room that is kept for events behind any output, in bytes: the start, the stop, the end and the
/// release of an attempt, with the longest messages.
const RESERVE_BYTES: u64 = 64 * 1024;

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
    segment: AppendFile,
    path: PathBuf,
    /// Where the attempt's output goes.
    ring: Ring,
    /// The newest file of the ring.
    newest: Option<AppendFile>,
    /// Number of the next file.
    next_file: u64,
    /// Bytes written to the ring in all.
    ring_bytes: u64,
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
        let mut segment = AppendFile::new(file, RESERVE_BYTES);
        segment
            .reserve(RESERVE_BYTES)
            .map_err(|e| failed(e.into()))?;
        let header = segment::header();
        segment
            .write(&[IoSlice::new(&header)])
            .map_err(|e| failed(e.into()))?;
        Ok(Self {
            segment,
            path: path.to_owned(),
            ring: Ring::new(ring::DEFAULT_LIMIT_BYTES, 1),
            newest: None,
            next_file: 1,
            ring_bytes: 0,
            backlog: Vec::new(),
            scratch: Vec::new(),
        })
    }

    /// Makes ready for the output of the next attempt, of which at most `limit` bytes are kept.
    pub(super) fn begin_output(&mut self, limit: u64) {
        self.ring = Ring::new(limit, self.next_file);
        if let Some(newest) = self.newest.take() {
            newest.finish();
        }
    }

    /// True when output of an attempt has outgrown the segment.
    pub(super) fn has_overflowed(&self) -> bool {
        self.next_file > 1
    }

    /// Length of the segment, in bytes.
    pub(super) fn end(&self) -> u64 {
        self.segment.end()
    }

    /// Bytes written in all, the ring included: they grow with every record.
    pub(super) fn written(&self) -> u64 {
        self.segment.end() + self.ring_bytes
    }

    /// True when events wait for room.
    pub(super) fn is_behind(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// True when so many events wait for room that the agent's wishes cannot be recorded any more.
    pub(super) fn is_stuck(&self) -> bool {
        self.backlog.len() > MAX_BACKLOG_BYTES
    }

    /// Other handles of the files, the segment last, to make them durable from another thread.
    pub(super) fn duplicates(&self) -> io::Result<Vec<OwnedFd>> {
        let mut files = Vec::new();
        if self.has_overflowed() {
            for number in tail_files::numbers(&self.path)? {
                files.push(File::open(tail_files::path(&self.path, number))?.into());
            }
        }
        files.push(self.segment.file().as_fd().try_clone_to_owned()?);
        Ok(files)
    }

    /// Where the segment is.
    pub(super) fn path(&self) -> &Path {
        &self.path
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
        if self.catch_up() && self.segment.write(&[IoSlice::new(&bytes)]).is_ok() {
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
        self.catch_up() && self.segment.write_beside(&[IoSlice::new(&bytes)])
    }

    /// Writes output that begins at `at`. Returns false when there is no room.
    pub(super) fn append_output(
        &mut self,
        fence: i64,
        at: &Position,
        stream: Stream,
        wall_us: i64,
        data: &[u8],
    ) -> bool {
        let Ok(head) = segment::out_head(fence, at.offset, stream, wall_us, data) else {
            return false;
        };
        self.append_in_turn(fence, at, &[IoSlice::new(&head), IoSlice::new(data)])
    }

    /// Writes an event that has its place among the output, at `at`, and goes with it. Returns false
    /// when there is no room.
    pub(super) fn append_among_output(&mut self, fence: i64, at: &Position, event: &Event) -> bool {
        let mut bytes = Vec::new();
        records::encode(fence, event, &mut bytes).is_ok()
            && self.append_in_turn(fence, at, &[IoSlice::new(&bytes)])
    }

    /// True when there is room for `length` bytes where output goes at the moment.
    pub(super) fn has_room_in_turn(&mut self, length: usize) -> bool {
        match (self.ring.place(length as u64), &mut self.newest) {
            (Place::Segment, _) => self.segment.has_room(length),
            (Place::Newest, Some(newest)) => newest.has_room(length),
            // A new file shows when it is begun.
            (Place::Newest | Place::New { .. }, _) => true,
        }
    }

    fn append_in_turn(&mut self, fence: i64, at: &Position, pieces: &[IoSlice<'_>]) -> bool {
        if !self.catch_up() {
            return false;
        }
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        let written = loop {
            match self.ring.place(length) {
                Place::Segment => break self.segment.write_beside(pieces),
                Place::Newest => {
                    let newest = self.newest.as_mut();
                    let written = newest.is_some_and(|file| file.write_beside(pieces));
                    self.ring_bytes += if written { length } else { 0 };
                    break written;
                }
                Place::New {
                    remove: Some(oldest),
                    ..
                } => {
                    if let Err(error) = tail_files::remove(&self.path, oldest) {
                        note!("output of attempt {fence} cannot be removed: {error}");
                        break false;
                    }
                    self.ring.removed();
                }
                Place::New {
                    number,
                    remove: None,
                } => {
                    if !self.begin_file(number, fence, at) {
                        break false;
                    }
                }
            }
        };
        if written {
            self.ring.written(length);
        }
        written
    }

    /// Begins a file of the ring. The first one is announced in the segment.
    fn begin_file(&mut self, number: u64, fence: i64, at: &Position) -> bool {
        let signed = |number| i64::try_from(number).unwrap_or(i64::MAX);
        let tail = Event::Tail(SegmentTail {
            number: signed(number),
            offset: signed(at.offset),
            lines: signed(at.lines),
            crc32c: at.crc32c.unwrap_or_default(),
        });
        let mut bytes = segment::header().to_vec();
        if records::encode(fence, &tail, &mut bytes).is_err() {
            return false;
        }
        let path = tail_files::path(&self.path, number);
        let created = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        let Ok(file) = created else {
            return false;
        };
        let mut file = AppendFile::new(file, 0);
        if file.write(&[IoSlice::new(&bytes)]).is_err() {
            // Without its first record the file says nothing; the next attempt makes it anew.
            let _ = tail_files::remove(&self.path, number);
            return false;
        }
        if !self.ring.has_begun() && number == self.next_file {
            self.append(fence, &[tail]);
        }
        self.ring.begun(bytes.len() as u64);
        self.next_file = number + 1;
        if let Some(full) = self.newest.replace(file) {
            full.finish();
        }
        true
    }

    /// Writes events that waited for room. Returns whether none waits any more.
    pub(super) fn catch_up(&mut self) -> bool {
        if self.backlog.is_empty() {
            return true;
        }
        let backlog = std::mem::take(&mut self.backlog);
        let written = self.segment.write(&[IoSlice::new(&backlog)]).is_ok();
        if !written {
            self.backlog = backlog;
        }
        written
    }

    /// Gives room that was never used back to the disk.
    pub(super) fn finish(self) {
        if let Some(newest) = self.newest {
            newest.finish();
        }
        self.segment.finish();
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
        journal.segment.limit = 200 * 1024;
        let data = vec![b'x'; 50 * 1024];
        let mut at = Position::default();
        while journal.append_output(1, &at, Stream::Stdout, 0, &data) {
            at.pass(&data);
        }
        assert_eq!(at.offset, 2 * 50 * 1024);
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
        journal.segment.limit = journal.end();
        journal.append(1, &[Event::Void("first".into())]);
        journal.append(2, &[freed()]);
        assert!(journal.is_behind());
        assert_eq!(count(&path), 0);
        journal.segment.limit = u64::MAX;
        journal.append(3, &[freed()]);
        assert!(!journal.is_behind());
        assert_eq!(count(&path), 3);
    }

    /// The output that a reader finds in a file, with the position of the first.
    fn ring_output(path: &Path) -> (u64, Vec<u8>) {
        let mut reader = Reader::new();
        reader.feed(&std::fs::read(path).unwrap());
        let (mut first, mut output) = (None, Vec::new());
        while let Read::Record { record, .. } = reader.read().unwrap() {
            if let segment::Record::Out { offset, data, .. } = record {
                first.get_or_insert(offset);
                output.extend_from_slice(data);
            }
        }
        (first.unwrap(), output)
    }

    #[test]
    fn the_beginning_and_the_end_are_kept_within_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = create(folder.path());
        let mut journal = Journal::begin(&path).unwrap();
        journal.begin_output(ring::MIN_LIMIT_BYTES);
        let mut at = Position::default();
        let mut whole = Vec::new();
        let mut seen = 0;
        for index in 0..200_u32 {
            let data = format!("{index}\n").repeat(5000).into_bytes();
            assert!(journal.append_output(1, &at, Stream::Stdout, 0, &data));
            assert!(journal.written() > seen);
            seen = journal.written();
            at.pass(&data);
            whole.extend(data);
        }
        assert!(journal.has_overflowed());
        journal.append(1, &[freed()]);
        journal.finish();
        let kept: u64 = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(kept <= ring::MIN_LIMIT_BYTES + 4096, "{kept}");
        let numbers = tail_files::numbers(&path).unwrap();
        assert!(numbers.len() >= 2 && numbers[0] > 1, "{numbers:?}");
        let mut end = None;
        for number in numbers {
            let (begin, output) = ring_output(&tail_files::path(&path, number));
            assert!(end.is_none_or(|end| begin == end));
            let length = output.len() as u64;
            assert!(output == whole[begin as usize..(begin + length) as usize]);
            end = Some(begin + length);
        }
        assert_eq!(end, Some(whole.len() as u64));
        assert!(count(&path) > 3);
    }
}
