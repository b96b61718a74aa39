//! Sends the output of all attempts to the coordinator, from a thread of its own: reading and
//! compressing a flood must not delay a heartbeat, and its low priority leaves the processor to the
//! jobs.

mod source;
pub(crate) mod uplink;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use bytes::Bytes;
use qctl_proto::MAX_CHUNK_BYTES;
use qctl_proto::v1::UploadLogRequest;
use qctl_worker_core::log_offsets::{Answer, Ready, Upload};
use tokio::sync::mpsc as async_mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::chain;
use crate::follower::FollowError;
use source::Source;

/// Most chunks of all attempts together that are on their way.
const MAX_ON_THE_WAY: usize = 32;

/// The fastest level: output compresses well, and the processor belongs to the jobs.
const COMPRESSION_LEVEL: i32 = 1;

/// How much less important than the jobs the thread is, as `nice` counts.
const NICENESS: i32 = 10;

/// How often chunks without an answer are looked for.
const LOOK_FOR_OVERDUE: Duration = Duration::from_secs(5);

/// Pause when the connection takes no more at the moment.
const FULL_PAUSE: Duration = Duration::from_millis(20);

/// Stack of the thread, in bytes.
const STACK_BYTES: usize = 512 * 1024;

/// What the pump is told.
#[derive(Debug)]
enum Message {
    /// An attempt has output up to `end`; its records begin at `begin` in the file.
    Grown {
        fence: i64,
        file: Arc<File>,
        begin: u64,
        end: u64,
    },
    /// An attempt's output is complete.
    Ended { fence: i64, end: u64 },
    /// The coordinator has so much of an attempt's output.
    Resume { fence: i64, stored: u64 },
    /// Nothing more is to be sent of an attempt.
    Forget { fence: i64 },
    /// Chunks go here from now on.
    Connected {
        connection: u64,
        chunks: async_mpsc::Sender<UploadLogRequest>,
    },
    /// The connection is gone.
    Disconnected { connection: u64 },
    /// The coordinator's answer to a chunk.
    Answer {
        fence: i64,
        stored: u64,
        unknown: bool,
    },
}

/// Hands the pump its work. Cheap to clone; the pump ends with the last clone.
#[derive(Clone, Debug)]
pub(crate) struct Pump(Sender<Message>);

impl Pump {
    /// Starts the pump. `stored` is called with an attempt's fence once its whole output is stored.
    ///
    /// # Errors
    /// When no thread can be made.
    pub(crate) fn start(stored: impl Fn(i64) + Send + 'static) -> std::io::Result<Self> {
        let (sender, messages) = mpsc::channel();
        let compressor = zstd::bulk::Compressor::new(COMPRESSION_LEVEL)?;
        std::thread::Builder::new()
            .name("log-pump".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let me = rustix::thread::gettid();
                // Priority is a courtesy; where it is not granted the pump works all the same.
                let _ = rustix::process::setpriority_process(Some(me), NICENESS);
                let worker = Worker {
                    messages,
                    stored: Box::new(stored),
                    packer: Packer {
                        compressor,
                        raw: Vec::new(),
                        packed: vec![0; zstd::zstd_safe::compress_bound(MAX_CHUNK_BYTES)],
                    },
                    connection: None,
                    attempts: BTreeMap::new(),
                    active: BTreeSet::new(),
                    last: i64::MIN,
                    started: Instant::now(),
                };
                worker.run();
            })?;
        Ok(Self(sender))
    }

    pub(crate) fn grown(&self, fence: i64, file: &Arc<File>, begin: u64, end: u64) {
        self.tell(Message::Grown {
            fence,
            file: Arc::clone(file),
            begin,
            end,
        });
    }

    pub(crate) fn ended(&self, fence: i64, end: u64) {
        // An attempt without output has nothing to send.
        if end > 0 {
            self.tell(Message::Ended { fence, end });
        }
    }

    pub(crate) fn resume(&self, fence: i64, stored: u64) {
        self.tell(Message::Resume { fence, stored });
    }

    pub(crate) fn forget(&self, fence: i64) {
        self.tell(Message::Forget { fence });
    }

    fn tell(&self, message: Message) {
        // The thread ends only after the last sender.
        let _ = self.0.send(message);
    }
}

/// One attempt's upload.
struct Attempt {
    file: Arc<File>,
    begin: u64,
    end: u64,
    complete: bool,
    upload: Upload,
    /// Opened when there is something to send.
    source: Option<Source>,
    /// Since when output waits to be sent.
    waiting_since: Duration,
    /// The segment cannot be read on; told once.
    broken: bool,
}

/// Why a chunk cannot be made.
#[derive(Debug, thiserror::Error)]
enum PackError {
    #[error("it cannot be read")]
    Read(#[from] FollowError),
    #[error("it cannot be compressed")]
    Compress(#[from] std::io::Error),
}

/// Compresses chunks, with memory that is used again for each.
struct Packer {
    compressor: zstd::bulk::Compressor<'static>,
    raw: Vec<u8>,
    packed: Vec<u8>,
}

struct Worker {
    messages: Receiver<Message>,
    stored: Box<dyn Fn(i64) + Send>,
    packer: Packer,
    connection: Option<(u64, async_mpsc::Sender<UploadLogRequest>)>,
    attempts: BTreeMap<i64, Attempt>,
    /// Attempts with output that is not stored.
    active: BTreeSet<i64>,
    /// The attempt that was served last, so that all have their turn.
    last: i64,
    started: Instant,
}

/// What to do after looking at all attempts.
enum Next {
    /// Something was sent; there may be more.
    Again,
    /// Wait for a message, at most so long.
    Wait(Duration),
}

impl Worker {
    fn run(mut self) {
        let mut next = Next::Wait(LOOK_FOR_OVERDUE);
        loop {
            let message = match next {
                Next::Again => self.messages.try_recv().ok(),
                Next::Wait(time) => match self.messages.recv_timeout(time) {
                    Ok(message) => Some(message),
                    Err(RecvTimeoutError::Timeout) => {
                        if time == LOOK_FOR_OVERDUE {
                            self.rest();
                        }
                        None
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                },
            };
            for message in message
                .into_iter()
                .chain(self.messages.try_iter().collect::<Vec<_>>())
            {
                self.take(message);
            }
            next = self.send_one();
        }
    }

    /// Gives memory back while nothing happens.
    fn rest(&mut self) {
        let sources = self.attempts.values_mut();
        sources
            .filter_map(|attempt| attempt.source.as_mut())
            .for_each(Source::shrink);
        self.packer.raw = Vec::new();
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn take(&mut self, message: Message) {
        let now = self.now();
        match message {
            Message::Grown {
                fence,
                file,
                begin,
                end,
            } => {
                let attempt = self.attempts.entry(fence).or_insert_with(|| Attempt {
                    file,
                    begin,
                    end: 0,
                    complete: false,
                    upload: Upload::new(0),
                    source: None,
                    waiting_since: now,
                    broken: false,
                });
                if attempt.upload.next() >= attempt.end {
                    attempt.waiting_since = now;
                }
                attempt.end = attempt.end.max(end);
                self.active.insert(fence);
            }
            Message::Ended { fence, end } => {
                if let Some(attempt) = self.attempts.get_mut(&fence) {
                    attempt.end = attempt.end.max(end);
                    attempt.complete = true;
                    self.settle(fence);
                }
            }
            Message::Resume { fence, stored } => {
                if let Some(attempt) = self.attempts.get_mut(&fence) {
                    attempt.upload = Upload::new(stored);
                    attempt.go_to(stored);
                    self.active.insert(fence);
                    self.settle(fence);
                }
            }
            Message::Forget { fence } => {
                self.attempts.remove(&fence);
                self.active.remove(&fence);
            }
            Message::Connected { connection, chunks } => {
                self.disconnected();
                self.connection = Some((connection, chunks));
            }
            Message::Disconnected { connection } => {
                if self
                    .connection
                    .as_ref()
                    .is_some_and(|(known, _)| *known == connection)
                {
                    self.disconnected();
                }
            }
            Message::Answer {
                fence,
                stored,
                unknown,
            } => self.answer(fence, stored, unknown),
        }
    }

    fn disconnected(&mut self) {
        self.connection = None;
        for fence in &self.active {
            if let Some(attempt) = self.attempts.get_mut(fence)
                && let Answer::Seek(offset) = attempt.upload.disconnected()
            {
                attempt.go_to(offset);
            }
        }
    }

    fn answer(&mut self, fence: i64, stored: u64, unknown: bool) {
        let Some(attempt) = self.attempts.get_mut(&fence) else {
            return;
        };
        if unknown {
            // The job was deleted: nobody wants its output.
            self.attempts.remove(&fence);
            self.active.remove(&fence);
            (self.stored)(fence);
            return;
        }
        if let Answer::Seek(offset) = attempt.upload.answer(stored.min(attempt.end)) {
            tracing::info!(
                fence,
                offset,
                "the coordinator asks for output from another place"
            );
            attempt.go_to(offset);
            self.active.insert(fence);
        }
        self.settle(fence);
    }

    /// Tells when the whole output of an ended attempt is stored.
    fn settle(&mut self, fence: i64) {
        let Some(attempt) = self.attempts.get_mut(&fence) else {
            return;
        };
        if attempt.upload.stored() < attempt.end {
            return;
        }
        self.active.remove(&fence);
        if attempt.complete {
            attempt.source = None;
            (self.stored)(fence);
        }
    }

    /// Sends one chunk of the next attempt that has one ready.
    fn send_one(&mut self) -> Next {
        let now = self.now();
        let on_the_way: usize = self
            .active
            .iter()
            .filter_map(|fence| self.attempts.get(fence))
            .map(|attempt| attempt.upload.on_its_way())
            .sum();
        let Some((_, chunks)) = self.connection.as_ref() else {
            return Next::Wait(LOOK_FOR_OVERDUE);
        };
        let mut wait = LOOK_FOR_OVERDUE;
        let behind = (Bound::Excluded(self.last), Bound::Unbounded);
        let before = (Bound::Unbounded, Bound::Included(self.last));
        let turns = self.active.range(behind).chain(self.active.range(before));
        for &fence in turns {
            let Some(attempt) = self.attempts.get_mut(&fence) else {
                continue;
            };
            if attempt.upload.overdue(now) {
                tracing::warn!(
                    fence,
                    "output with fence {fence} has had no answer and is sent again"
                );
                if let Answer::Seek(offset) = attempt.upload.disconnected() {
                    attempt.go_to(offset);
                }
            }
            match attempt.ready(now) {
                Ready::Blocked => continue,
                Ready::In(time) => {
                    wait = wait.min(time);
                    continue;
                }
                Ready::Now if on_the_way >= MAX_ON_THE_WAY => continue,
                Ready::Now => {}
            }
            let Some((chunk, end)) = attempt.chunk(fence, &mut self.packer) else {
                continue;
            };
            match chunks.try_send(chunk) {
                Ok(()) => {
                    attempt.upload.sent(end, now);
                    attempt.waiting_since = now;
                    self.last = fence;
                    return Next::Again;
                }
                Err(TrySendError::Full(_)) => {
                    let next = attempt.upload.next();
                    attempt.go_to(next);
                    return Next::Wait(FULL_PAUSE);
                }
                Err(TrySendError::Closed(_)) => {
                    self.disconnected();
                    return Next::Wait(LOOK_FOR_OVERDUE);
                }
            }
        }
        Next::Wait(wait)
    }
}

impl Attempt {
    fn ready(&self, now: Duration) -> Ready {
        if self.broken {
            return Ready::Blocked;
        }
        let full = MAX_CHUNK_BYTES as u64;
        self.upload
            .ready(self.end, full, self.waiting_since, self.complete, now)
    }

    fn go_to(&mut self, offset: u64) {
        if let Some(source) = &mut self.source {
            source.seek(offset);
        }
    }

    /// The next chunk, compressed, and the position behind it.
    fn chunk(&mut self, fence: i64, packer: &mut Packer) -> Option<(UploadLogRequest, u64)> {
        let source = match &mut self.source {
            Some(source) => source,
            none => {
                let mut source = Source::new(Arc::clone(&self.file), fence, self.begin);
                source.seek(self.upload.next());
                none.insert(source)
            }
        };
        let read = source.next(&mut packer.raw).map_err(PackError::from);
        let packed = read.and_then(|chunk| {
            let Some(mut chunk) = chunk else {
                return Ok(None);
            };
            let bytes = i64::from(chunk.length) + chunk.hole_bytes;
            let end = (chunk.offset + bytes).max(0) as u64;
            if chunk.hole_bytes == 0 {
                let (raw, packed) = (&packer.raw, &mut packer.packed[..]);
                let length = packer.compressor.compress_to_buffer(raw, packed)?;
                chunk.data = Bytes::copy_from_slice(&packer.packed[..length]);
            }
            Ok(Some((chunk, end)))
        });
        packed.unwrap_or_else(|error| {
            tracing::error!(
                fence,
                "the rest of the output with fence {fence} cannot be sent: {}",
                chain(&error),
            );
            self.broken = true;
            None
        })
    }
}
