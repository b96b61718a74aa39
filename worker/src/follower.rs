//! Reads a segment as it grows and turns its records into facts.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use qctl_proto::v1::{Assignment, AttemptEnded, SegmentPid, StopCause, attempt_ended};
use qctl_worker_core::ending::{Contradiction, Ending};
use qctl_worker_core::progress::{Pattern, Reading, Tracker};
use qctl_worker_core::segment::{Corrupt, Read, Reader, Record};

use crate::chain;
use crate::log_pump::Pump;
use crate::shim::records::{self, Event};

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
    /// No process of it is left.
    Freed,
}

/// Why a segment cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    #[error("cannot read the segment")]
    Io(#[from] io::Error),
    #[error("the segment is damaged")]
    Corrupt(#[from] Corrupt),
}

/// Follows one segment.
#[derive(Debug)]
pub(crate) struct Follower {
    file: Arc<File>,
    reader: Reader,
    /// Size of the next piece, in bytes.
    piece: usize,
    /// Reads in a row that found little.
    calm: u32,
    pump: Pump,
    attempt: Option<Attempt>,
}

/// The attempt that the records are about.
#[derive(Debug)]
struct Attempt {
    fence: i64,
    /// Position in the file behind its assignment.
    begin: u64,
    tracker: Tracker,
    ending: Ending,
    end: u64,
    crc32c: u32,
    wall_us: i64,
    /// True when output was read since it was last told.
    grown: bool,
}

impl Follower {
    /// Follows a segment from its beginning. Output is announced to `pump`.
    pub(crate) fn new(file: Arc<File>, pump: Pump) -> Self {
        Self {
            file,
            reader: Reader::new(),
            piece: FIRST_PIECE_BYTES,
            calm: 0,
            pump,
            attempt: None,
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

    /// Reads one piece and adds what it tells to `notes`. False when the end was reached. `now` is
    /// the time by the wall clock since the Unix epoch.
    ///
    /// # Errors
    /// When the file cannot be read, or is damaged; what was read before stands.
    pub(crate) fn read(
        &mut self,
        now: Duration,
        notes: &mut Vec<Note>,
    ) -> Result<bool, FollowError> {
        let from = self.reader.feed_position();
        let asked = self.piece;
        let read = self.file.read_at(self.reader.space(asked), from);
        let length = *read.as_ref().unwrap_or(&0);
        self.reader.unfill(asked - length);
        read?;
        let result = self.records(now, notes);
        self.tell_output(notes);
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
        result?;
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
    }

    fn records(&mut self, now: Duration, notes: &mut Vec<Note>) -> Result<(), FollowError> {
        loop {
            let (record, position) = match self.reader.read()? {
                Read::Record { record, end } => (record, end),
                Read::Incomplete { .. } => return Ok(()),
            };
            match record {
                Record::Out {
                    fence,
                    offset,
                    stream,
                    wall_us,
                    data,
                } => {
                    let Some(attempt) = self.attempt.as_mut().filter(|a| a.fence == fence) else {
                        tracing::warn!(
                            fence,
                            "a segment has output of an attempt it does not name"
                        );
                        continue;
                    };
                    attempt.crc32c = crc32c::crc32c_append(attempt.crc32c, data);
                    attempt.advance(offset + data.len() as u64, wall_us);
                    attempt.tracker.output(stream, data, wall_time(wall_us));
                    attempt.ending.output(data);
                }
                Record::Event { payload, .. } => match records::decode(payload) {
                    Ok((fence, event)) => {
                        let fact = self.event(fence, event, position, now, notes);
                        notes.extend(fact.map(|fact| Note { fence, fact }));
                    }
                    // What this program does not know was written by a newer shim.
                    Err(error) => tracing::warn!("a segment record is skipped: {}", chain(&error)),
                },
            }
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
        let current = self
            .attempt
            .as_mut()
            .filter(|attempt| attempt.fence == fence);
        Some(match event {
            Event::Assigned(assignment) => {
                self.tell_output(notes);
                self.attempt = Some(Attempt::begin(fence, position, &assignment));
                Fact::Assigned(Box::new(assignment))
            }
            Event::Starting(starting) => Fact::Starting {
                checkpoint_dir: starting.checkpoint_dir,
                wall_us: starting.wall_us,
            },
            Event::Pid(pid) => Fact::Started(pid),
            Event::Stopping(stopping) => Fact::Stopping(stopping.cause()),
            Event::PauseChanged(change) => Fact::Paused(change.paused),
            Event::Report(line) => {
                current?.tracker.report(&line, now);
                return None;
            }
            Event::Hole(hole) => {
                let attempt = current?;
                attempt.advance((hole.offset + hole.bytes).max(0) as u64, attempt.wall_us);
                return None;
            }
            Event::Exit(mut ended) => {
                ended.fence = fence;
                self.judge(&mut ended);
                let current = self
                    .attempt
                    .as_mut()
                    .filter(|attempt| attempt.fence == fence);
                if let Some(attempt) = current
                    && let Some(reading) = attempt.tracker.flush()
                {
                    notes.push(attempt.note(Fact::Progress(reading)));
                }
                self.tell_output(notes);
                self.pump.ended(fence, ended.log_end.max(0) as u64);
                Fact::Ended(Box::new(ended))
            }
            Event::Void(reason) => Fact::Void(reason),
            Event::Stuck(stuck) => Fact::Stuck(stuck.pids),
            Event::Freed(_) => Fact::Freed,
        })
    }

    /// Tells how far the output has come, once for all that was read.
    fn tell_output(&mut self, notes: &mut Vec<Note>) {
        let Some(attempt) = self.attempt.as_mut().filter(|attempt| attempt.grown) else {
            return;
        };
        attempt.grown = false;
        self.pump
            .grown(attempt.fence, &self.file, attempt.begin, attempt.end);
        notes.push(attempt.note(Fact::Output {
            end: attempt.end,
            crc32c: attempt.crc32c,
            wall_us: attempt.wall_us,
        }));
    }
}

impl Attempt {
    fn begin(fence: i64, begin: u64, assignment: &Assignment) -> Self {
        let given = assignment
            .spec
            .as_ref()
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
            .spec
            .as_ref()
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
            end: 0,
            crc32c: 0,
            wall_us: 0,
            grown: false,
        }
    }

    fn advance(&mut self, end: u64, wall_us: i64) {
        self.end = self.end.max(end);
        self.wall_us = wall_us;
        self.grown = true;
    }

    fn note(&self, fact: Fact) -> Note {
        Note {
            fence: self.fence,
            fact,
        }
    }
}

fn wall_time(wall_us: i64) -> Duration {
    Duration::from_micros(wall_us.max(0) as u64)
}
