//! Sends the output of all attempts to the coordinator, from a thread of its own: reading and
//! compressing a flood must not delay a heartbeat, and its low priority leaves the processor to the
//! jobs.

mod source;
pub(crate) mod uplink;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use bytes::Bytes;
use qctl_proto::MAX_CHUNK_BYTES;
use qctl_proto::v1::UploadLogRequest;
use qctl_worker_core::log_offsets::{ANSWER_WITHIN, Answer, Link, Ready, Upload};
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

/// Pause before output that could not be read is tried again.
const READ_AGAIN: Duration = Duration::from_secs(30);

/// Stack of the thread, in bytes.
const STACK_BYTES: usize = 512 * 1024;

/// Where an attempt's records are.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The segment.
    pub(crate) file: Arc<File>,
    /// Where it is; the files of its ring are beside it.
    pub(crate) path: Arc<Path>,
    /// Position in it where the attempt's output begins.
    pub(crate) begin: u64,
}

/// What the pump is told.
#[derive(Debug)]
enum Message {
    /// An attempt has output up to `end`.
    Grown { fence: i64, place: Place, end: u64 },
    /// An attempt's output is complete, and has this checksum.
    Ended { fence: i64, end: u64, crc32c: u32 },
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
        closed: bool,
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
                    link: Link::default(),
                    last: i64::MIN,
                    started: Instant::now(),
                };
                worker.run();
            })?;
        Ok(Self(sender))
    }

    pub(crate) fn grown(&self, fence: i64, place: Place, end: u64) {
        self.tell(Message::Grown { fence, place, end });
    }

    pub(crate) fn ended(&self, fence: i64, end: u64, crc32c: u32) {
        // An attempt without output has nothing to send.
        if end > 0 {
            self.tell(Message::Ended { fence, end, crc32c });
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
    place: Place,
    end: u64,
    /// The checksum over the whole output, once that is complete.
    crc32c: Option<u32>,
    upload: Upload,
    /// Opened when there is something to send.
    source: Option<Source>,
    /// Since when output waits to be sent.
    waiting_since: Duration,
    /// When it was last said that nothing follows.
    closed_at: Option<Duration>,
    /// The coordinator has compared the whole output.
    closed: bool,
    /// The coordinator wants nothing of it.
    unwanted: bool,
    /// The files could not be read, and are not tried before this.
    read_again_at: Option<Duration>,
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
    /// Attempts of which something is to be sent or answered.
    active: BTreeSet<i64>,
    link: Link,
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
            qctl_notify::panics::provoked("pump");
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
            Message::Grown { fence, place, end } => {
                let attempt = self.attempts.entry(fence).or_insert_with(|| Attempt {
                    place,
                    end: 0,
                    crc32c: None,
                    upload: Upload::new(0),
                    source: None,
                    waiting_since: now,
                    closed_at: None,
                    closed: false,
                    unwanted: false,
                    read_again_at: None,
                });
                if attempt.upload.next() >= attempt.end {
                    attempt.waiting_since = now;
                }
                attempt.end = attempt.end.max(end);
                self.settle(fence);
            }
            Message::Ended { fence, end, crc32c } => {
                if let Some(attempt) = self.attempts.get_mut(&fence) {
                    attempt.end = attempt.end.max(end);
                    attempt.crc32c = Some(crc32c);
                    self.settle(fence);
                }
            }
            Message::Resume { fence, stored } => {
                if let Some(attempt) = self.attempts.get_mut(&fence) {
                    attempt.unwanted = false;
                    attempt.upload.seek(stored, &mut self.link);
                    attempt.go_to(stored);
                    self.settle(fence);
                }
            }
            Message::Forget { fence } => {
                if let Some(mut attempt) = self.attempts.remove(&fence) {
                    attempt.upload.disconnected(&mut self.link);
                }
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
                closed,
            } => self.answer(fence, stored, unknown, closed),
        }
    }

    fn disconnected(&mut self) {
        self.connection = None;
        for attempt in self.attempts.values_mut() {
            attempt.begin_anew(&mut self.link);
        }
    }

    fn answer(&mut self, fence: i64, stored: u64, unknown: bool, closed: bool) {
        let now = self.now();
        let Some(attempt) = self.attempts.get_mut(&fence) else {
            return;
        };
        if unknown {
            // The job was deleted: nobody wants its output, unless a greeting says otherwise.
            attempt.begin_anew(&mut self.link);
            attempt.unwanted = true;
            attempt.source = None;
            self.active.remove(&fence);
            (self.stored)(fence);
            return;
        }
        let stored = stored.min(attempt.end);
        if let Answer::Seek(offset) = attempt.upload.answer(stored, now, &mut self.link) {
            tracing::info!(
                fence,
                offset,
                "the coordinator asks for output from another place"
            );
            attempt.go_to(offset);
        }
        attempt.closed |= closed && attempt.crc32c.is_some() && stored == attempt.end;
        self.settle(fence);
    }

    /// Notes whether there is something to send of an attempt, and tells when its whole output is
    /// stored and compared.
    fn settle(&mut self, fence: i64) {
        let Some(attempt) = self.attempts.get_mut(&fence) else {
            return;
        };
        let unsettled = attempt.upload.stored() < attempt.end;
        attempt.closed &= !unsettled;
        if attempt.closed {
            attempt.source = None;
            (self.stored)(fence);
        }
        let to_close = attempt.crc32c.is_some() && !attempt.closed;
        if !attempt.unwanted && (unsettled || to_close) {
            self.active.insert(fence);
        } else {
            self.active.remove(&fence);
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
            if attempt.upload.overdue(now, &self.link) {
                tracing::warn!(
                    fence,
                    "output with fence {fence} has had no answer and is sent again"
                );
                attempt.begin_anew(&mut self.link);
            }
            match attempt.ready(now) {
                Ready::Blocked => continue,
                Ready::In(time) => {
                    wait = wait.min(time);
                    continue;
                }
                Ready::Now if on_the_way >= MAX_ON_THE_WAY || !self.link.has_room() => continue,
                Ready::Now => {}
            }
            let made = match attempt.closing(fence, now) {
                Some(closing) => Some((closing, attempt.end)),
                None => attempt.chunk(fence, now, &mut self.packer),
            };
            let Some((chunk, end)) = made else {
                continue;
            };
            let (bytes, is_last) = (chunk.data.len() as u64, chunk.last);
            match chunks.try_send(chunk) {
                Ok(()) => {
                    if end > attempt.upload.next() {
                        attempt.upload.sent(end, bytes, now, &mut self.link);
                    }
                    if is_last {
                        attempt.closed_at = Some(now);
                    }
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
        if self.read_again_at.is_some_and(|at| now < at) {
            return Ready::Blocked;
        }
        if self.is_to_close(now) {
            return Ready::Now;
        }
        let full = MAX_CHUNK_BYTES as u64;
        let is_complete = self.crc32c.is_some();
        self.upload
            .ready(self.end, full, self.waiting_since, is_complete, now)
    }

    /// Everything is stored, and nobody has said so in vain just now.
    fn is_to_close(&self, now: Duration) -> bool {
        let is_stored = self.upload.stored() >= self.end && self.upload.next() >= self.end;
        let waits = self
            .closed_at
            .is_some_and(|at| now.saturating_sub(at) < ANSWER_WITHIN);
        self.crc32c.is_some() && !self.closed && is_stored && !waits
    }

    /// Asks whether all is stored as it was written, when that is the next thing to say.
    fn closing(&self, fence: i64, now: Duration) -> Option<UploadLogRequest> {
        let crc32c = self.crc32c.filter(|_| self.is_to_close(now))?;
        Some(UploadLogRequest {
            fence,
            offset: self.end as i64,
            last: true,
            log_crc32c: crc32c,
            ..UploadLogRequest::default()
        })
    }

    /// Begins again behind what is stored: what was on its way is lost.
    fn begin_anew(&mut self, link: &mut Link) {
        if let Answer::Seek(offset) = self.upload.disconnected(link) {
            self.go_to(offset);
        }
        self.closed_at = None;
    }

    fn go_to(&mut self, offset: u64) {
        self.closed_at = None;
        if let Some(source) = &mut self.source {
            source.seek(offset);
        }
    }

    /// The next chunk, compressed, and the position behind it.
    fn chunk(
        &mut self,
        fence: i64,
        now: Duration,
        packer: &mut Packer,
    ) -> Option<(UploadLogRequest, u64)> {
        let source = match &mut self.source {
            Some(source) => source,
            none => {
                let mut source = Source::new(self.place.clone(), fence);
                source.seek(self.upload.next());
                none.insert(source)
            }
        };
        let whole = self.crc32c.map(|_| self.end);
        let read = source.next(&mut packer.raw, whole).map_err(PackError::from);
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
            if let Some(crc32c) = self.crc32c.filter(|_| end == self.end) {
                chunk.last = true;
                chunk.log_crc32c = crc32c;
            }
            Ok(Some((chunk, end)))
        });
        packed.unwrap_or_else(|error| {
            if self.read_again_at.is_none() {
                tracing::error!(
                    fence,
                    "the output with fence {fence} cannot be sent, and is tried again every {} s: {}",
                    READ_AGAIN.as_secs(),
                    chain(&error),
                );
            }
            self.read_again_at = Some(now.saturating_add(READ_AGAIN));
            None
        })
    }
}
