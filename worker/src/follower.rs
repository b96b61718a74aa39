//! Reads a segment as it grows and turns its records into facts.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use qctl_proto::v1::{
    Assignment, AttemptEnded, SegmentHole, SegmentPid, SegmentSilence, SegmentTail, StopCause,
    attempt_ended,
};
use qctl_worker_core::ending::{Contradiction, Ending};
use qctl_worker_core::gpu::{Fault, FaultKind};
use qctl_worker_core::position::Position;
use qctl_worker_core::progress::{Pattern, Reading, Tracker};
use qctl_worker_core::report;
use qctl_worker_core::segment::{Corrupt, Found, Reader, Record, Stream};

use crate::chain;
use crate::log_pump::{Place, Pump};
use crate::process::identity;
use crate::shim::records::{self, Event};
use crate::tail_reader::TailReader;
use crate::wire;

/// Bytes read at once while there is much to read. Between two pieces other work has its turn.
const PIECE_BYTES: usize = 256 * 1024;

/// Bytes read at first; also the buffer that is kept while little arrives.
const FIRST_PIECE_BYTES: usize = 16 * 1024;

/// Reads that found little after which a larger buffer is given back. Giving it back after each
/// would cost a flood more than reading it.
const CALM_READS: u32 = 32;

/// Something that a segment tells about an attempt.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    /// The attempt.
    pub(crate) fence: i64,
    /// What it tells.
    pub(crate) fact: Fact,
}

/// What a segment tells.
#[derive(Clone, Debug)]
pub(crate) enum Fact {
    /// A shim took the assignment.
    Assigned(Box<Assignment>),
    /// Its process is about to be started.
    Starting {
        /// Where its checkpoints go.
        checkpoint_dir: String,
        /// When, in microseconds since the Unix epoch.
        wall_us: i64,
    },
    /// Its process exists.
    Started(SegmentPid),
    /// The shim began to stop it.
    Stopping(StopCause),
    /// Its tree was frozen or thawed.
    Paused(bool),
    /// So much of its output is recorded.
    Output {
        /// Position behind the last byte.
        end: u64,
        /// CRC-32C over everything before.
        crc32c: u32,
        /// When the last of it was read, in microseconds since the Unix epoch.
        wall_us: i64,
    },
    /// It is so far.
    Progress(Reading),
    /// It ended.
    Ended(Box<AttemptEnded>),
    /// It never started and never will.
    Void(String),
    /// Processes of it do not end although they were killed.
    Stuck(Vec<i32>),
    /// Its silence has come to a stage, or is over.
    Silence {
        /// What the shim has recorded.
        recorded: SegmentSilence,
        /// The last lines of its output until then.
        last_lines: String,
    },
    /// It says that it has published a checkpoint.
    Bell,
    /// No process of it is left.
    Freed,
}

/// Why a segment cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    #[error("cannot read the segment")]
    Io(#[from] io::Error),
    #[error("the segment is not understood")]
    Corrupt(#[from] Corrupt),
}

impl FollowError {
    /// True when reading again may work: no file handle was free, say, or no memory.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Io(_))
    }
}

/// Follows one segment and the ring of files beside it.
#[derive(Debug)]
pub(crate) struct Follower {
    file: Arc<File>,
    path: Arc<Path>,
    reader: Reader,
    /// The segment was fed with records that wait until the ring is read.
    waiting: bool,
    /// Where the attempt's newest output is, once it has outgrown the segment.
    ring: Option<TailReader>,
    /// Size of the next piece, in bytes.
    piece: usize,
    /// Reads in a row that found little.
    calm: u32,
    pump: Pump,
    attempt: Option<Attempt>,
    /// The last attempt whose output nobody wants, because its beginning is missing.
    stranger: Option<i64>,
    /// It cannot be read on, and that was told.
    failed: bool,
}

/// The attempt that the records are about.
#[derive(Debug)]
struct Attempt {
    fence: i64,
    /// Position in the file behind its assignment.
    begin: u64,
    tracker: Tracker,
    ending: Ending,
    /// UUIDs of its GPUs.
    gpus: Vec<String>,
    position: Position,
    wall_us: i64,
    /// True when output was read since it was last told.
    grown: bool,
}

/// Whose records are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Segment,
    Ring,
}

impl Follower {
    /// Follows the segment at `path` from its beginning. Output is announced to `pump`.
    pub(crate) fn new(file: Arc<File>, path: PathBuf, pump: Pump) -> Self {
        Self {
            file,
            path: path.into(),
            reader: Reader::new(),
            waiting: false,
            ring: None,
            piece: FIRST_PIECE_BYTES,
            calm: 0,
            pump,
            attempt: None,
            stranger: None,
            failed: false,
        }
    }

    /// The segment.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Position behind the last whole record.
    pub(crate) fn position(&self) -> u64 {
        self.reader.position()
    }

    /// True when everything that is in the segment was read and understood, up to a last record that is
    /// not whole.
    ///
    /// # Errors
    /// When its length cannot be read.
    pub(crate) fn has_read_all(&self) -> io::Result<bool> {
        let is_fed = self.reader.feed_position() >= self.file.metadata()?.len();
        Ok(is_fed && !self.failed && !self.waiting)
    }

    /// True while output is read from the files beside the segment.
    pub(crate) fn is_in_ring(&self) -> bool {
        self.ring.is_some()
    }

    /// Reads one piece and adds what it tells to `notes`. False when the end was reached. `now` is
    /// the time by the wall clock since the Unix epoch.
    ///
    /// # Errors
    /// When the file cannot be read, or another version wrote it; what was read before stands. A
    /// second call then finds the end.
    pub(crate) fn read(
        &mut self,
        now: Duration,
        notes: &mut Vec<Note>,
    ) -> Result<bool, FollowError> {
        if self.failed {
            return Ok(false);
        }
        let result = self.read_piece(now, notes);
        self.tell_output(notes);
        self.failed = matches!(result, Err(FollowError::Corrupt(_)));
        result
    }

    fn read_piece(&mut self, now: Duration, notes: &mut Vec<Note>) -> Result<bool, FollowError> {
        let mut more = self.waiting || self.feed()?;
        // A record of the segment stands behind all output that was in the ring before it.
        if let Some(ring) = &mut self.ring {
            let was_fed = ring.feed(PIECE_BYTES)?;
            let again = self.records(Origin::Ring, now, notes)?;
            if was_fed || again {
                self.waiting = more;
                return Ok(true);
            }
        }
        self.waiting = false;
        more |= self.records(Origin::Segment, now, notes)?;
        Ok(more)
    }

    /// Feeds the next piece of the segment. False when that was the last one for now.
    fn feed(&mut self) -> Result<bool, FollowError> {
        let from = self.reader.feed_position();
        let asked = self.piece;
        let read = self.file.read_at(self.reader.space(asked), from);
        let length = *read.as_ref().unwrap_or(&0);
        self.reader.unfill(asked - length);
        read?;
        let more = length == asked;
        if more {
            self.piece = PIECE_BYTES;
            self.calm = 0;
        } else {
            self.calm = self.calm.saturating_add(1);
        }
        if self.calm == CALM_READS {
            self.piece = FIRST_PIECE_BYTES;
            self.reader.shrink(FIRST_PIECE_BYTES);
        }
        Ok(more)
    }

    /// Reads to the end of the file.
    ///
    /// # Errors
    /// As [`Follower::read`].
    pub(crate) fn read_all(
        &mut self,
        now: Duration,
        notes: &mut Vec<Note>,
    ) -> Result<(), FollowError> {
        while self.read(now, notes)? {}
        Ok(())
    }

    /// How long until [`Follower::progress`] has something to tell.
    pub(crate) fn progress_wait(&self, monotonic: Duration) -> Option<Duration> {
        self.attempt.as_ref()?.tracker.wait(monotonic)
    }

    /// The newest progress, at most ten times a second.
    pub(crate) fn progress(&mut self, monotonic: Duration) -> Option<Note> {
        let attempt = self.attempt.as_mut()?;
        let reading = attempt.tracker.due(monotonic)?;
        Some(attempt.note(Fact::Progress(reading)))
    }

    /// True when the end of an attempt's output tells that a GPU had no memory left.
    pub(crate) fn tells_of_gpu_memory(&self, fence: i64) -> bool {
        let attempt = self.attempt.as_ref().filter(|a| a.fence == fence);
        attempt.is_some_and(|attempt| attempt.ending.gpu_out_of_memory())
    }

    /// Adds what the end of its output tells to the end of an attempt.
    fn judge(&self, ended: &mut AttemptEnded) {
        let Some(attempt) = self.attempt.as_ref().filter(|a| a.fence == ended.fence) else {
            return;
        };
        ended.gpu_out_of_memory |= attempt.ending.gpu_out_of_memory();
        let is_success = ended.end() == attempt_ended::End::Waited
            && ended.exit_code == Some(0)
            && ended.stop_cause() == StopCause::Unspecified;
        if is_success && let Some(line) = attempt.ending.contradiction() {
            ended.contradiction = line;
        }
        let failed_by_itself = ended.end() == attempt_ended::End::Waited
            && ended.exit_code != Some(0)
            && ended.stop_cause() == StopCause::Unspecified
            && !ended.out_of_memory
            && !ended.checkpointed;
        // Only a GPU that was given to it can be at fault.
        if failed_by_itself
            && let [first, others @ ..] = &attempt.gpus[..]
            && let Some(line) = attempt.ending.gpu_fault()
        {
            ended.gpu_fault = true;
            ended.gpu = Some(wire::wire_gpu_fault(Fault {
                // With several nobody knows which one it was.
                gpu: if others.is_empty() {
                    first.clone()
                } else {
                    String::new()
                },
                name: String::new(),
                kind: FaultKind::Output(line),
            }));
        }
    }

    /// Takes the records that were fed. True when there is more to read at once.
    fn records(
        &mut self,
        origin: Origin,
        now: Duration,
        notes: &mut Vec<Note>,
    ) -> Result<bool, FollowError> {
        loop {
            let reader = match (origin, &mut self.ring) {
                (Origin::Segment, _) => &mut self.reader,
                (Origin::Ring, Some(ring)) => &mut ring.reader,
                (Origin::Ring, None) => return Ok(false),
            };
            let (record, end) = match reader.read_past_damage()? {
                Found::Record { record, end } => (record, end),
                Found::Incomplete => return Ok(false),
                Found::Again => return Ok(true),
                Found::Damage(damage) => {
                    tracing::error!(
                        segment = %self.path.display(),
                        "{} is damaged, and what can be read behind that is read: {damage}",
                        self.path.display()
                    );
                    continue;
                }
            };
            match record {
                Record::Out {
                    fence,
                    offset,
                    stream,
                    wall_us,
                    data,
                } => match self.attempt.as_mut().filter(|a| a.fence == fence) {
                    Some(attempt) => attempt.output(offset, data, stream, wall_us),
                    None if self.stranger == Some(fence) => {}
                    None => {
                        self.stranger = Some(fence);
                        tracing::warn!(
                            fence,
                            "a segment has output of an attempt it does not name"
                        );
                    }
                },
                Record::Event { payload, .. } => match records::decode(payload) {
                    Ok((fence, Event::Tail(tail))) => {
                        self.tail(origin, fence, &tail);
                        if origin == Origin::Segment {
                            // What follows in the segment stands behind the output of the ring.
                            return Ok(true);
                        }
                    }
                    Ok((fence, event)) => {
                        let fact = self.event(fence, event, end, now, notes);
                        notes.extend(fact.map(|fact| Note { fence, fact }));
                    }
                    // What this program does not know was written by a newer shim.
                    Err(error) => tracing::warn!("a segment record is skipped: {}", chain(&error)),
                },
            }
        }
    }

    /// Output goes on in a file of the ring, or that file begins.
    fn tail(&mut self, origin: Origin, fence: i64, tail: &SegmentTail) {
        if origin == Origin::Segment {
            let number = tail.number.max(0) as u64;
            self.ring = Some(TailReader::new(&self.path, number, 0));
            return;
        }
        let attempt = self.attempt.as_mut().filter(|a| a.fence == fence);
        if let Some(attempt) = attempt
            && let Some(begin) = tail_position(tail)
            && begin.offset > attempt.position.offset
        {
            attempt.position = begin;
            attempt.grown = true;
        }
    }

    fn event(
        &mut self,
        fence: i64,
        event: Event,
        position: u64,
        now: Duration,
        notes: &mut Vec<Note>,
    ) -> Option<Fact> {
        let is_known = self.attempt.as_ref().is_some_and(|a| a.fence == fence);
        let tells_of_another = matches!(event, Event::Starting(_) | Event::Pid(_) | Event::Exit(_));
        if !is_known && tells_of_another {
            // Its assignment cannot be read. Even so it ran, and must not be taken for one that did
            // not.
            self.tell_output(notes);
            self.attempt = Some(Attempt::begin(fence, position, None));
            let fact = Fact::Assigned(Box::new(self.unnamed(fence)));
            notes.push(Note { fence, fact });
        }
        let current = self
            .attempt
            .as_mut()
            .filter(|attempt| attempt.fence == fence);
        Some(match event {
            Event::Assigned(assignment) => {
                self.tell_output(notes);
                self.attempt = Some(Attempt::begin(fence, position, Some(&assignment)));
                self.ring = None;
                Fact::Assigned(Box::new(assignment))
            }
            Event::Starting(starting) => Fact::Starting {
                checkpoint_dir: starting.checkpoint_dir,
                wall_us: starting.wall_us,
            },
            Event::Pid(pid) => Fact::Started(pid),
            Event::Stopping(stopping) => Fact::Stopping(stopping.cause()),
            Event::PauseChanged(change) => Fact::Paused(change.paused),
            Event::Report(line) if report::is_bell(&line) => Fact::Bell,
            Event::Report(line) => {
                current?.tracker.report(&line, now);
                return None;
            }
            Event::Hole(hole) => {
                current?.hole(&hole);
                return None;
            }
            Event::Exit(mut ended) => {
                ended.fence = fence;
                self.judge(&mut ended);
                let log_end = ended.log_end.max(0) as u64;
                let current = self
                    .attempt
                    .as_mut()
                    .filter(|attempt| attempt.fence == fence);
                if let Some(attempt) = current {
                    if let Some(reading) = attempt.tracker.flush() {
                        notes.push(attempt.note(Fact::Progress(reading)));
                    }
                    // What is not in the files by now is lost.
                    attempt.reach(log_end);
                }
                self.tell_output(notes);
                self.pump.ended(fence, log_end, ended.log_crc32c);
                Fact::Ended(Box::new(ended))
            }
            Event::Void(reason) => Fact::Void(reason),
            Event::Stuck(stuck) => Fact::Stuck(stuck.pids),
            Event::Silence(recorded) => Fact::Silence {
                recorded,
                last_lines: current
                    .map(|attempt| attempt.ending.last_lines())
                    .unwrap_or_default(),
            },
            Event::Freed(_) => Fact::Freed,
            Event::Tail(_) => return None,
        })
    }

    /// What can be said of an assignment that cannot be read. It counts as one of this boot, so that
    /// its processes are looked for.
    fn unnamed(&self, fence: i64) -> Assignment {
        let spool = self.path.parent().and_then(Path::file_name);
        Assignment {
            fence,
            spool_id: spool.unwrap_or_default().to_string_lossy().into_owned(),
            boot_id: identity::boot_id().unwrap_or_default(),
            ..Assignment::default()
        }
    }

    /// Tells how far the output has come, once for all that was read.
    fn tell_output(&mut self, notes: &mut Vec<Note>) {
        let Some(attempt) = self.attempt.as_mut().filter(|attempt| attempt.grown) else {
            return;
        };
        attempt.grown = false;
        let place = Place {
            file: Arc::clone(&self.file),
            path: Arc::clone(&self.path),
            begin: attempt.begin,
        };
        self.pump
            .grown(attempt.fence, place, attempt.position.offset);
        notes.push(attempt.note(Fact::Output {
            end: attempt.position.offset,
            crc32c: attempt.position.crc32c.unwrap_or_default(),
            wall_us: attempt.wall_us,
        }));
    }
}

impl Attempt {
    fn begin(fence: i64, begin: u64, assignment: Option<&Assignment>) -> Self {
        let given = assignment
            .and_then(|assignment| assignment.spec.as_ref())
            .map(|spec| spec.progress_pattern.as_str());
        let pattern = given.filter(|text| !text.is_empty()).and_then(|text| {
            Pattern::parse(text)
                .inspect_err(|error| {
                    tracing::warn!(
                        fence,
                        "the attempt with fence {fence} has a pattern that is not used: {}",
                        chain(&error)
                    );
                })
                .ok()
        });
        let contradicted_by = assignment
            .and_then(|assignment| assignment.spec.as_ref())
            .map(|spec| spec.contradicted_by.as_str());
        let contradiction = contradicted_by
            .filter(|text| !text.is_empty())
            .and_then(|text| {
                Contradiction::parse(text)
                    .inspect_err(|error| {
                        tracing::warn!(
                            fence,
                            "the attempt with fence {fence} has a pattern that is not used: {}",
                            chain(&error)
                        );
                    })
                    .ok()
            });
        Self {
            fence,
            begin,
            tracker: Tracker::new(pattern),
            ending: Ending::new(contradiction),
            gpus: assignment.map_or_else(Vec::new, |assignment| assignment.gpus.clone()),
            position: Position::default(),
            wall_us: 0,
            grown: false,
        }
    }

    fn output(&mut self, offset: u64, data: &[u8], stream: Stream, wall_us: i64) {
        self.reach(offset);
        let known = (self.position.offset - offset).min(data.len() as u64);
        self.position.pass(&data[known as usize..]);
        self.tracker.output(stream, data, wall_time(wall_us));
        self.ending.output(data);
        self.wall_us = wall_us;
        self.grown = true;
    }

    fn hole(&mut self, hole: &SegmentHole) {
        let end = (hole.offset + hole.bytes).max(0) as u64;
        if end > self.position.offset {
            self.position
                .skip_to(end, hole.lines.max(0) as u64, hole.crc32c_behind);
            self.grown = true;
        }
    }

    /// Goes over what is missing before `offset` without a record of it.
    fn reach(&mut self, offset: u64) {
        if offset > self.position.offset {
            self.position.skip_to(offset, 0, None);
            self.grown = true;
        }
    }

    fn note(&self, fact: Fact) -> Note {
        Note {
            fence: self.fence,
            fact,
        }
    }
}

/// Where a file of a ring begins in the output; `None` when its record has no meaning.
pub(crate) fn tail_position(tail: &SegmentTail) -> Option<Position> {
    Some(Position {
        offset: u64::try_from(tail.offset).ok()?,
        lines: u64::try_from(tail.lines).ok()?,
        crc32c: Some(tail.crc32c),
    })
}

fn wall_time(wall_us: i64) -> Duration {
    Duration::from_micros(wall_us.max(0) as u64)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use qctl_proto::v1::{SegmentFreed, SegmentStarting};
    use qctl_worker_core::segment;

    use super::*;
    use crate::tail_files;

    const FENCE: i64 = 7;

    /// A spool's segment and ring: one attempt that printed in both and exited with 3.
    struct Spool {
        folder: tempfile::TempDir,
        pump: Pump,
        segment: Vec<u8>,
        ring: Vec<u8>,
        output: Vec<u8>,
    }

    impl Spool {
        fn new() -> Self {
            let mut segment = segment::header().to_vec();
            let mut ring = segment::header().to_vec();
            let mut position = Position::default();
            let write = |event: Event, bytes: &mut Vec<u8>| {
                records::encode(FENCE, &event, bytes).unwrap();
            };
            write(Event::Assigned(Assignment::default()), &mut segment);
            write(Event::Starting(SegmentStarting::default()), &mut segment);
            write(Event::Pid(SegmentPid::default()), &mut segment);
            print(b"one\n", &mut position, &mut segment);
            print(b"two\n", &mut position, &mut segment);
            let tail = Event::Tail(SegmentTail {
                number: 1,
                offset: position.offset as i64,
                lines: position.lines as i64,
                crc32c: position.crc32c.unwrap(),
            });
            write(tail.clone(), &mut segment);
            write(tail, &mut ring);
            print(b"three\n", &mut position, &mut ring);
            print(b"four\n", &mut position, &mut ring);
            let ended = AttemptEnded {
                end: attempt_ended::End::Waited.into(),
                exit_code: Some(3),
                log_end: position.offset as i64,
                log_crc32c: position.crc32c.unwrap(),
                ..AttemptEnded::default()
            };
            write(Event::Exit(ended), &mut segment);
            write(Event::Freed(SegmentFreed {}), &mut segment);
            Self {
                folder: tempfile::tempdir().unwrap(),
                pump: Pump::start(|_| {}).unwrap(),
                segment,
                ring,
                output: b"one\ntwo\nthree\nfour\n".to_vec(),
            }
        }

        /// Everything that a fresh agent reads when the files hold this.
        fn read(&self, segment: &[u8], ring: &[u8]) -> Result<Vec<Note>, FollowError> {
            let path = self.folder.path().join("1.segment");
            std::fs::write(&path, segment).unwrap();
            std::fs::write(tail_files::path(&path, 1), ring).unwrap();
            let file = Arc::new(File::open(&path).unwrap());
            let mut follower = Follower::new(file, path, self.pump.clone());
            let mut notes = Vec::new();
            follower.read_all(Duration::ZERO, &mut notes)?;
            Ok(notes)
        }

        /// What was read is true, as far as it goes. Returns whether the exit was found.
        fn check(&self, notes: &[Note], what: &str) -> bool {
            let mut exits = 0;
            for note in notes {
                assert_eq!(note.fence, FENCE, "{what}");
                match &note.fact {
                    Fact::Ended(ended) => {
                        exits += 1;
                        assert_eq!(ended.exit_code, Some(3), "{what}");
                        assert_eq!(ended.log_end, self.output.len() as i64, "{what}");
                    }
                    Fact::Output { end, .. } => {
                        assert!(*end <= self.output.len() as u64, "{what}: {end}");
                    }
                    _ => {}
                }
            }
            assert!(exits <= 1, "{what}");
            exits == 1
        }
    }

    fn print(data: &[u8], position: &mut Position, bytes: &mut Vec<u8>) {
        let record = Record::Out {
            fence: FENCE,
            offset: position.offset,
            stream: Stream::Stdout,
            wall_us: 1,
            data,
        };
        segment::encode(&record, bytes).unwrap();
        position.pass(data);
    }

    #[test]
    fn whole_files_tell_everything() {
        let spool = Spool::new();
        let notes = spool.read(&spool.segment, &spool.ring).unwrap();
        assert!(spool.check(&notes, "whole"));
        let crc = notes.iter().rev().find_map(|note| match note.fact {
            Fact::Output { end, crc32c, .. } => Some((end, crc32c)),
            _ => None,
        });
        let whole = (spool.output.len() as u64, crc32c::crc32c(&spool.output));
        assert_eq!(crc, Some(whole));
    }

    /// F30: whatever is left of the files, what is read of them is true.
    #[test]
    fn files_that_are_cut_at_any_byte_tell_no_lie() {
        let spool = Spool::new();
        for cut in 0..spool.segment.len() {
            let what = format!("segment cut at {cut}");
            let notes = spool.read(&spool.segment[..cut], &spool.ring).unwrap();
            spool.check(&notes, &what);
        }
        for cut in 0..spool.ring.len() {
            let what = format!("ring cut at {cut}");
            let notes = spool.read(&spool.segment, &spool.ring[..cut]).unwrap();
            assert!(spool.check(&notes, &what), "{what}");
        }
    }

    #[test]
    fn files_with_any_bit_flipped_tell_no_lie() {
        let spool = Spool::new();
        for byte in 0..spool.segment.len() {
            let what = format!("bit of byte {byte} of the segment");
            let mut damaged = spool.segment.clone();
            damaged[byte] ^= 1 << (byte % 8);
            let notes = spool.read(&damaged, &spool.ring).unwrap();
            let is_in_the_exit = byte > spool.segment.len() - 120;
            assert!(spool.check(&notes, &what) || is_in_the_exit, "{what}");
        }
        for byte in 0..spool.ring.len() {
            let what = format!("bit of byte {byte} of the ring");
            let mut damaged = spool.ring.clone();
            damaged[byte] ^= 1 << (byte % 8);
            let notes = spool.read(&spool.segment, &damaged).unwrap();
            assert!(spool.check(&notes, &what), "{what}");
        }
    }

    #[test]
    fn a_ring_that_is_gone_leaves_the_exit() {
        let spool = Spool::new();
        let path = spool.folder.path().join("1.segment");
        let mut file = File::create(&path).unwrap();
        file.write_all(&spool.segment).unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        let mut follower = Follower::new(file, path, spool.pump.clone());
        let mut notes = Vec::new();
        follower.read_all(Duration::ZERO, &mut notes).unwrap();
        assert!(spool.check(&notes, "no ring"));
    }

    #[test]
    fn another_version_is_refused_once_and_then_left_alone() {
        let spool = Spool::new();
        let mut newer = segment::header();
        newer[8] = 9;
        let check = crc32c::crc32c(&newer[..12]);
        newer[12..].copy_from_slice(&check.to_le_bytes());
        let path = spool.folder.path().join("1.segment");
        std::fs::write(&path, newer).unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        let mut follower = Follower::new(file, path, spool.pump.clone());
        let mut notes = Vec::new();
        assert!(follower.read(Duration::ZERO, &mut notes).is_err());
        assert!(!follower.read(Duration::ZERO, &mut notes).unwrap());
    }
}
