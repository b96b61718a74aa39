//! Reads an attempt's output and records it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use qctl_proto::v1::{HoleCause, SegmentHole};
use qctl_worker_core::position::Position;
use qctl_worker_core::segment::{MAX_OUT_BYTES, Stream};
use rustix::io::Errno;

use crate::shim::journal::Journal;
use crate::shim::records::Event;
use crate::shim::spawn::Channels;

/// Size a pipe is given once a job fills it, so that a burst does not have to wait for the shim.
const LARGE_PIPE_BYTES: usize = 1024 * 1024;

/// A read of this many bytes means that the job fills the pipe.
const FULL_READ_BYTES: usize = 60 * 1024;

/// Reads shorter than this, coming one after the other, are put off to be read together.
const SHORT_READ_BYTES: usize = 4096;

/// How long short reads are put off. A reader does not notice, and the job is not disturbed for
/// every line.
const PUT_OFF: Duration = Duration::from_millis(2);

/// Time between two attempts to record output while the disk is full.
const RETRY_ROOM: Duration = Duration::from_millis(200);

/// Most bytes read in one go when the process has ended but others go on writing.
const MAX_DRAIN_BYTES: usize = 8 * 1024 * 1024;

/// The streams of one attempt and what was recorded of them.
#[derive(Debug)]
pub(super) struct Output {
    fence: i64,
    sources: Vec<Source>,
    /// Behind everything that was read.
    position: Position,
    /// Where what found no room begins.
    hole: Option<Position>,
    retry_room_at: Duration,
    /// That output is lost was told; once is enough.
    has_lost: bool,
    /// The result is recorded: what still comes is read and dropped, so that nobody blocks on it.
    is_closed: bool,
}

#[derive(Debug)]
struct Source {
    fd: OwnedFd,
    stream: Stream,
    read_at: Duration,
    not_before: Duration,
    is_large: bool,
}

/// What one read brought.
enum Got {
    Bytes(usize),
    Nothing,
    End,
}

impl Output {
    /// Takes the shim's ends of the channels.
    pub(super) fn new(fence: i64, channels: Channels) -> Self {
        let source = |fd, stream| Source {
            fd,
            stream,
            read_at: Duration::ZERO,
            not_before: Duration::ZERO,
            is_large: false,
        };
        let mut sources = vec![source(channels.stdout, Stream::Stdout)];
        sources.extend(channels.stderr.map(|fd| source(fd, Stream::Stderr)));
        Self {
            fence,
            sources,
            position: Position::default(),
            hole: None,
            retry_room_at: Duration::ZERO,
            has_lost: false,
            is_closed: false,
        }
    }

    /// Streams that are to be polled now.
    pub(super) fn to_poll(&self, now: Duration) -> impl Iterator<Item = (Stream, BorrowedFd<'_>)> {
        self.sources
            .iter()
            .filter(move |source| source.not_before <= now)
            .map(|source| (source.stream, source.fd.as_fd()))
    }

    /// When a stream that was put off is polled again.
    pub(super) fn deadline(&self, now: Duration) -> Option<Duration> {
        self.sources
            .iter()
            .map(|source| source.not_before)
            .filter(|&not_before| not_before > now)
            .min()
    }

    /// True when nobody holds the other ends any more.
    pub(super) fn has_ended(&self) -> bool {
        self.sources.is_empty()
    }

    /// Behind everything that was read, also what was not recorded.
    pub(super) fn position(&self) -> &Position {
        &self.position
    }

    /// Reads a stream once.
    pub(super) fn read(
        &mut self,
        stream: Stream,
        now: Duration,
        wall_us: i64,
        buffer: &mut [u8],
        journal: &mut Journal,
    ) {
        let Some(index) = self.sources.iter().position(|s| s.stream == stream) else {
            return;
        };
        match self.read_once(index, now, wall_us, buffer, journal) {
            Got::Bytes(length) => {
                let source = &mut self.sources[index];
                let is_quick = now.saturating_sub(source.read_at) < PUT_OFF;
                source.read_at = now;
                if length < SHORT_READ_BYTES && is_quick {
                    source.not_before = now.saturating_add(PUT_OFF);
                }
                if length >= FULL_READ_BYTES && !source.is_large {
                    source.is_large = true;
                    // The user's share of pipe memory may be used up; then the pipe stays small.
                    let _ = rustix::pipe::fcntl_setpipe_size(&source.fd, LARGE_PIPE_BYTES);
                }
            }
            Got::Nothing => {}
            Got::End => {
                self.sources.remove(index);
            }
        }
    }

    /// Reads everything that is there now.
    pub(super) fn drain(
        &mut self,
        now: Duration,
        wall_us: i64,
        buffer: &mut [u8],
        journal: &mut Journal,
    ) {
        let mut index = 0;
        let mut total = 0;
        while index < self.sources.len() && total < MAX_DRAIN_BYTES {
            match self.read_once(index, now, wall_us, buffer, journal) {
                Got::Bytes(length) => total += length,
                Got::Nothing => index += 1,
                Got::End => {
                    self.sources.remove(index);
                }
            }
        }
    }

    /// Records what is known of missing output; whatever comes later is dropped.
    pub(super) fn close(&mut self, journal: &mut Journal) {
        self.is_closed = true;
        if let Some(begin) = self.hole.take() {
            let hole = missing(&begin, &self.position);
            if !journal.append_among_output(self.fence, &self.position, &hole) {
                journal.append(self.fence, &[hole]);
            }
        }
    }

    fn read_once(
        &mut self,
        index: usize,
        now: Duration,
        wall_us: i64,
        buffer: &mut [u8],
        journal: &mut Journal,
    ) -> Got {
        let Some(source) = self.sources.get(index) else {
            return Got::Nothing;
        };
        let room = buffer.len().min(MAX_OUT_BYTES);
        let stream = source.stream;
        match rustix::io::read(&source.fd, &mut buffer[..room]) {
            Ok(0) => Got::End,
            Ok(length) => {
                self.record(stream, now, wall_us, &buffer[..length], journal);
                Got::Bytes(length)
            }
            Err(Errno::AGAIN | Errno::INTR) => Got::Nothing,
            // A terminal that nobody has open any more says so by an error.
            Err(_) => Got::End,
        }
    }

    fn record(
        &mut self,
        stream: Stream,
        now: Duration,
        wall_us: i64,
        data: &[u8],
        journal: &mut Journal,
    ) {
        if self.is_closed {
            return;
        }
        let at = self.position;
        self.position.pass(data);
        if self.fill_hole(now, &at, data.len(), journal)
            && journal.append_output(self.fence, &at, stream, wall_us, data)
        {
            return;
        }
        if !std::mem::replace(&mut self.has_lost, true) {
            note!(
                "attempt {}: output is lost because {} cannot grow",
                self.fence,
                journal.path().display()
            );
        }
        if self.hole.is_none() {
            self.retry_room_at = now.saturating_add(RETRY_ROOM);
            self.hole = Some(at);
        }
    }

    /// Closes the hole, if there is one, at `at`, when there is room for it and for `length` more
    /// bytes. Returns whether there is none any more.
    fn fill_hole(
        &mut self,
        now: Duration,
        at: &Position,
        length: usize,
        journal: &mut Journal,
    ) -> bool {
        let Some(begin) = self.hole else {
            return true;
        };
        if now < self.retry_room_at {
            return false;
        }
        self.retry_room_at = now.saturating_add(RETRY_ROOM);
        if !journal.has_room_in_turn(length + 4096)
            || !journal.append_among_output(self.fence, at, &missing(&begin, at))
        {
            return false;
        }
        self.hole = None;
        true
    }
}

/// What is missing between two positions, because there was no room.
fn missing(begin: &Position, end: &Position) -> Event {
    let signed = |number| i64::try_from(number).unwrap_or(i64::MAX);
    Event::Hole(SegmentHole {
        offset: signed(begin.offset),
        bytes: signed(end.offset - begin.offset),
        lines: signed(end.lines - begin.lines),
        crc32c_behind: end.crc32c,
        cause: HoleCause::NoRoom.into(),
    })
}
