//! Output of attempts: taken in chunk by chunk, kept, and read or followed.
//!
//! A chunk is stored only at the exact end of what is stored already, so that the table always
//! holds a prefix of the attempt's output. Whoever uploads is told how far that prefix goes, and
//! goes on from there.

mod admission;
mod intake;
mod reader;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use qctl_proto::MAX_CHUNK_BYTES;
use qctl_server_core::{Fence, HoleCause};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use intake::Writer;
pub use intake::{Ack, Acks, Intake};
pub use reader::{LogGap, LogPiece, LogQuery, LogStart, LogText, MAX_TAIL_LINES};

use super::{Changes, Clock};
use crate::store::Store;
use crate::store::logs::StoredRun;

/// Readers of output that are served at the same time.
const MAX_READERS: usize = 1_000;

/// Runs in a chunk. The worker joins neighbouring reads of one stream, so real chunks have few.
pub const MAX_RUNS: usize = 65_536;

/// Longest control sequence that a chunk may carry to restore colours, in bytes.
const MAX_COLOUR_STATE: usize = 256;

/// A run of bytes of one stream, read at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The stream, as the contract numbers it.
    pub stream: i32,
    /// Bytes.
    pub length: u32,
    /// When the shim read them, in microseconds since the epoch.
    pub micros: i64,
}

impl Run {
    fn stored(self) -> StoredRun {
        (self.stream, self.length, self.micros)
    }

    fn from_stored((stream, length, micros): StoredRun) -> Self {
        Self {
            stream,
            length,
            micros,
        }
    }
}

/// A chunk as a worker sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The attempt.
    pub fence: Fence,
    /// Position of the first byte in the attempt's merged output.
    pub offset: i64,
    /// Runs in order.
    pub runs: Vec<Run>,
    /// The bytes, zstd-compressed.
    pub data: Bytes,
    /// Length before compression.
    pub length: u32,
    /// CRC-32C over the bytes before compression.
    pub crc32c: u32,
    /// Bytes missing at `offset`.
    pub hole_bytes: i64,
    /// Newlines missing.
    pub hole_lines: i64,
    /// Why they are missing.
    pub hole_cause: HoleCause,
    /// Newlines before the end of the hole.
    pub lines_behind: Option<i64>,
    /// CRC-32C over everything that the job wrote before the end of the hole; `None` when nobody
    /// knows.
    pub crc32c_behind: Option<u32>,
    /// Control sequence that restores the colours at the chunk's start.
    pub colour_state: Bytes,
    /// No output follows, and this is the CRC-32C over everything that the job wrote.
    pub closes: Option<u32>,
}

/// Why a chunk is refused. All of these are mistakes of whoever sent it.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// The fence or the offset cannot be.
    #[error("a chunk names fence {fence} and offset {offset}; neither may be negative")]
    Position {
        /// The fence it named.
        fence: i64,
        /// The offset it named.
        offset: i64,
    },
    /// Bytes and a hole, or neither although more follows.
    #[error(
        "a chunk carries either bytes or a hole, this one has {length} bytes and a hole of {hole_bytes}"
    )]
    Content {
        /// Bytes it carries.
        length: u32,
        /// Bytes it says are missing.
        hole_bytes: i64,
    },
    /// Too many bytes.
    #[error("a chunk of {length} bytes is over the limit of {MAX_CHUNK_BYTES}")]
    TooLong {
        /// Bytes it carries.
        length: u32,
    },
    /// Too many runs, or a colour state that is too long.
    #[error(
        "a chunk with {runs} runs and a colour state of {colour_state} bytes is over the limits of {MAX_RUNS} and {MAX_COLOUR_STATE}"
    )]
    TooDetailed {
        /// Its runs.
        runs: usize,
        /// Bytes of its colour state.
        colour_state: usize,
    },
    /// The runs do not cover the bytes.
    #[error("the runs of a chunk cover {covered} bytes, but it carries {length}")]
    Runs {
        /// Sum of the runs' lengths.
        covered: u64,
        /// Bytes it carries.
        length: u32,
    },
    /// The bytes cannot be decompressed to the length told.
    #[error("the bytes of a chunk cannot be decompressed to {length} bytes")]
    Compression {
        /// Bytes it should carry.
        length: u32,
    },
    /// The bytes are not those that were sent.
    #[error("the checksum of a chunk is {found:#010x}, but {told:#010x} was told")]
    Checksum {
        /// What was told.
        told: u32,
        /// What the bytes have.
        found: u32,
    },
}

/// A chunk whose bytes are known to be those that its worker read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedChunk {
    chunk: Chunk,
    newlines: i64,
}

impl Chunk {
    /// Checks everything that can be checked without knowing the attempt, decompressing the bytes
    /// once.
    ///
    /// # Errors
    /// When a field cannot be right, or the bytes do not fit their length or checksum.
    pub fn verify(self) -> Result<VerifiedChunk, ChunkError> {
        let negative = [
            self.offset,
            self.hole_bytes,
            self.hole_lines,
            self.lines_behind.unwrap_or_default(),
        ]
        .into_iter()
        .any(|number| number < 0);
        if self.fence.0 <= 0 || negative || self.offset.checked_add(self.hole_bytes).is_none() {
            return Err(ChunkError::Position {
                fence: self.fence.0,
                offset: self.offset,
            });
        }
        let both = self.length > 0 && self.hole_bytes > 0;
        let neither = self.length == 0 && self.hole_bytes == 0;
        if both || (neither && self.closes.is_none()) {
            return Err(ChunkError::Content {
                length: self.length,
                hole_bytes: self.hole_bytes,
            });
        }
        if self.length as usize > MAX_CHUNK_BYTES {
            return Err(ChunkError::TooLong {
                length: self.length,
            });
        }
        if self.runs.len() > MAX_RUNS || self.colour_state.len() > MAX_COLOUR_STATE {
            return Err(ChunkError::TooDetailed {
                runs: self.runs.len(),
                colour_state: self.colour_state.len(),
            });
        }
        let covered: u64 = self.runs.iter().map(|run| u64::from(run.length)).sum();
        if covered != u64::from(self.length) {
            return Err(ChunkError::Runs {
                covered,
                length: self.length,
            });
        }
        if self.length == 0 {
            let newlines = self.hole_lines;
            return Ok(VerifiedChunk {
                chunk: self,
                newlines,
            });
        }
        let bytes = decompress(&self.data, self.length).ok_or(ChunkError::Compression {
            length: self.length,
        })?;
        let found = crc32c::crc32c(&bytes);
        if found != self.crc32c {
            return Err(ChunkError::Checksum {
                told: self.crc32c,
                found,
            });
        }
        Ok(VerifiedChunk {
            chunk: self,
            newlines: count_newlines(&bytes),
        })
    }
}

/// Decompresses to exactly `length` bytes; `None` when that is not what comes out.
fn decompress(data: &[u8], length: u32) -> Option<Vec<u8>> {
    let bytes = zstd::bulk::decompress(data, length as usize).ok()?;
    (bytes.len() == length as usize).then_some(bytes)
}

fn count_newlines(bytes: &[u8]) -> i64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as i64
}

/// Wakes those who follow an attempt's output, within this process.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogWake {
    attempts: Arc<Mutex<HashMap<Fence, watch::Sender<()>>>>,
}

/// Hears that more output of one attempt is stored.
#[derive(Debug)]
pub(crate) struct LogWaiter {
    fence: Fence,
    attempts: Arc<Mutex<HashMap<Fence, watch::Sender<()>>>>,
    receiver: watch::Receiver<()>,
}

impl LogWake {
    /// Listens for one attempt. What was stored before the call is not told.
    pub(crate) fn listen(&self, fence: Fence) -> LogWaiter {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = attempts
            .entry(fence)
            .or_insert_with(|| watch::channel(()).0)
            .subscribe();
        LogWaiter {
            fence,
            attempts: Arc::clone(&self.attempts),
            receiver,
        }
    }

    fn wake(&self, fence: Fence) {
        let attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = attempts.get(&fence) {
            sender.send_replace(());
        }
    }
}

impl LogWaiter {
    /// Returns once more is stored since the last call.
    async fn more(&mut self) {
        // The sender lives in the map for as long as this waiter does.
        if self.receiver.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for LogWaiter {
    fn drop(&mut self) {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        // This waiter's own receiver still counts.
        if attempts
            .get(&self.fence)
            .is_some_and(|sender| sender.receiver_count() <= 1)
        {
            attempts.remove(&self.fence);
        }
    }
}

/// Everything in memory that output needs: the way in, and those who wait for it.
#[derive(Clone, Debug)]
pub struct Logs {
    /// Takes chunks in.
    pub intake: Intake,
    wake: LogWake,
    readers: Arc<Semaphore>,
}

impl Logs {
    /// Starts the task that writes output.
    pub(super) fn start(
        store: Store,
        clock: Clock,
        changes: Changes,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let wake = LogWake::default();
        let writer = Writer::new(store, clock, changes, wake.clone());
        Self {
            intake: Intake::start(writer, tasks, stop),
            wake,
            readers: Arc::new(Semaphore::new(MAX_READERS)),
        }
    }

    /// Readers that are being served.
    pub fn open_readers(&self) -> usize {
        MAX_READERS - self.readers.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(text: &[u8]) -> Chunk {
        Chunk {
            fence: Fence(7),
            offset: 0,
            runs: vec![Run {
                stream: 1,
                length: text.len() as u32,
                micros: 1,
            }],
            data: zstd::bulk::compress(text, 1).unwrap().into(),
            length: text.len() as u32,
            crc32c: crc32c::crc32c(text),
            hole_bytes: 0,
            hole_lines: 0,
            hole_cause: HoleCause::Unknown,
            lines_behind: None,
            crc32c_behind: None,
            colour_state: Bytes::new(),
            closes: None,
        }
    }

    #[test]
    fn a_good_chunk_counts_its_newlines() {
        let verified = chunk(b"one\ntwo\nthr").verify().unwrap();
        assert_eq!(verified.newlines, 2);
    }

    #[test]
    fn a_hole_counts_the_newlines_it_swallowed() {
        let hole = Chunk {
            runs: vec![],
            data: Bytes::new(),
            length: 0,
            crc32c: 0,
            hole_bytes: 1_000,
            hole_lines: 40,
            ..chunk(b"x")
        };
        assert_eq!(hole.verify().unwrap().newlines, 40);
    }

    #[test]
    fn what_cannot_be_right_is_refused() {
        let good = || chunk(b"hello\n");
        let cases: Vec<(&str, Chunk)> = vec![
            (
                "neither may be negative",
                Chunk {
                    offset: -1,
                    ..good()
                },
            ),
            (
                "neither may be negative",
                Chunk {
                    fence: Fence(0),
                    ..good()
                },
            ),
            (
                "either bytes or a hole",
                Chunk {
                    hole_bytes: 5,
                    ..good()
                },
            ),
            (
                "cover 6 bytes, but it carries 7",
                Chunk {
                    length: 7,
                    ..good()
                },
            ),
            (
                "checksum",
                Chunk {
                    crc32c: 1,
                    ..good()
                },
            ),
            (
                "cannot be decompressed",
                Chunk {
                    data: Bytes::from_static(b"junk"),
                    ..good()
                },
            ),
            (
                "over the limit",
                Chunk {
                    length: 300_000,
                    ..good()
                },
            ),
            (
                "colour state of 300 bytes",
                Chunk {
                    colour_state: vec![b'm'; 300].into(),
                    ..good()
                },
            ),
        ];
        for (expected, chunk) in cases {
            let message = chunk.verify().unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let bomb = zstd::bulk::compress(&vec![0; 8 * 1024 * 1024], 19).unwrap();
        let chunk = Chunk {
            data: bomb.into(),
            ..chunk(b"hello\n")
        };
        assert!(matches!(
            chunk.verify(),
            Err(ChunkError::Compression { length: 6 })
        ));
    }

    #[tokio::test]
    async fn a_waiter_hears_what_came_after_it_began_to_listen() {
        let wake = LogWake::default();
        let mut waiter = wake.listen(Fence(1));
        let other = wake.listen(Fence(2));
        wake.wake(Fence(1));
        waiter.more().await;
        drop(waiter);
        drop(other);
        assert!(wake.attempts.lock().unwrap().is_empty());
    }
}
