//! The way out: from a position on, the last lines, or along while it grows.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use qctl_server_core::{HoleCause, JobId};
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc};
use tokio::time::Instant;

use super::{LogWaiter, Run, decompress};
use crate::app::{App, Change, Error};
use crate::store::StoreError;
use crate::store::logs::{LogSource, StoredChunk};

/// Most lines that may be asked for from the end.
pub const MAX_TAIL_LINES: u32 = 10_000_000;

/// Chunks read from the database at once, and pieces that wait for a slow reader. Together they
/// bound what one reader holds in memory.
const READ_AHEAD: i64 = 4;
const PIECES_AHEAD: usize = 4;

/// How often a follower looks by itself, should a wake-up be lost.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How long a reader waits for the rest of an ended attempt's output while nothing of it comes:
/// while its worker is connected, and a follower also while it is not.
const REST_CONNECTED: Duration = Duration::from_secs(60);
const REST_AWAY: Duration = Duration::from_secs(10);

/// What is asked of a job's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogQuery {
    /// The job.
    pub job: JobId,
    /// The attempt, from 1; `None` means the latest, and with `follow` the later ones too.
    pub attempt: Option<i32>,
    /// Where to begin.
    pub start: LogStart,
    /// Only this stream, as the contract numbers it.
    pub stream: Option<i32>,
    /// Only output read at or after this time.
    pub since: Option<DateTime<Utc>>,
    /// Go on until the job has ended and its output is complete.
    pub follow: bool,
}

/// Where in an attempt's output to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStart {
    /// At this byte of the merged output.
    Offset(i64),
    /// At the last lines, as many as this; a last line without a newline counts.
    Lines(u32),
}

/// A piece of output: neighbouring bytes, or one of the marks at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogPiece {
    /// The attempt.
    pub attempt: i32,
    /// Position of the first byte in the attempt's merged output.
    pub offset: i64,
    /// Runs in order, which cover `data`.
    pub runs: Vec<Run>,
    /// The bytes.
    pub data: Bytes,
    /// Bytes missing before this piece.
    pub hole_bytes: i64,
    /// Newlines among them; all of the hole's when reading began inside it.
    pub hole_lines: i64,
    /// Why they are missing.
    pub hole_cause: HoleCause,
    /// The attempt has ended, and all of its output was sent.
    pub complete: bool,
    /// The attempt has ended, and some of its output has not arrived.
    pub incomplete: bool,
}

/// The end of an attempt's output, for a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogText {
    /// The attempt.
    pub attempt: i32,
    /// Position of the first byte.
    pub offset: i64,
    /// The bytes, both streams merged.
    pub data: Vec<u8>,
    /// Bytes stored in all.
    pub stored: i64,
    /// What is missing between or before these, in order.
    pub gaps: Vec<LogGap>,
    /// The attempt has ended, and all of its output is stored.
    pub complete: bool,
}

impl LogText {
    /// The text in parts, each with the gap before it.
    pub fn parts(&self) -> impl Iterator<Item = (Option<&LogGap>, &[u8])> {
        let begins = std::iter::once(None).chain(self.gaps.iter().map(Some));
        let ends = self.gaps.iter().map(|gap| gap.at);
        begins
            .zip(ends.chain([self.data.len()]))
            .map(|(gap, end)| (gap, &self.data[gap.map_or(0, |gap| gap.at)..end]))
    }
}

/// Output that is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogGap {
    /// Bytes of the text that stand before it.
    pub at: usize,
    /// Bytes that are missing.
    pub bytes: i64,
    /// Newlines among them; all of the gap's when the text begins inside it.
    pub lines: i64,
    /// Why they are missing.
    pub cause: HoleCause,
}

impl App {
    /// Reads or follows a job's output. The pieces come in order; an error is the last item. The
    /// reading stops soon after the receiver is dropped.
    ///
    /// # Errors
    /// When the job or attempt does not exist, too many read at the same time, or the database is
    /// away.
    pub async fn read_log(
        self: &Arc<Self>,
        query: LogQuery,
    ) -> Result<mpsc::Receiver<Result<LogPiece, Error>>, Error> {
        let permit = Arc::clone(&self.logs.readers)
            .try_acquire_owned()
            .map_err(|_| Error::LimitExceeded {
                what: "another reader of output".to_owned(),
                limit: super::MAX_READERS as u64,
            })?;
        let changes = self.changes.subscribe();
        let first = self.first_source(&query).await?;
        let (pieces, receiver) = mpsc::channel(PIECES_AHEAD);
        let reader = Reader {
            app: Arc::clone(self),
            query,
            changes,
            pieces,
            _permit: permit,
        };
        tokio::spawn(reader.run(first));
        Ok(receiver)
    }

    /// The last lines of an attempt's output (of the latest one when `attempt` is `None`), at most
    /// `max_bytes` of them. `None` when the job has no such attempt.
    ///
    /// # Errors
    /// When the job does not exist, or the database is away.
    pub async fn log_text(
        &self,
        job: JobId,
        attempt: Option<i32>,
        lines: u32,
        max_bytes: usize,
    ) -> Result<Option<LogText>, Error> {
        let known = self
            .store
            .log_job(job)
            .await?
            .ok_or(Error::JobNotFound(job))?;
        let number = attempt.unwrap_or(known.attempts);
        let Some(source) = self.store.log_source(job, number).await? else {
            return Ok(None);
        };
        let wanted = self
            .last_lines(&source, lines, None)
            .await?
            .max(source.stored - max_bytes as i64);
        let mut text = LogText {
            attempt: source.number,
            offset: wanted,
            stored: source.stored,
            complete: source.ended && source.log_end == Some(source.stored),
            ..LogText::default()
        };
        let mut next = self.store.chunk_start(&source, wanted).await?;
        while next < source.stored && text.data.len() < max_bytes {
            let chunks = self.store.chunks_from(&source, next, READ_AHEAD).await?;
            if chunks.is_empty() {
                break;
            }
            for chunk in chunks {
                next = end_of(&chunk);
                for piece in cut(&source, &chunk, wanted, None, None)? {
                    if piece.hole_bytes > 0 {
                        text.gaps.push(LogGap {
                            at: text.data.len(),
                            bytes: piece.hole_bytes,
                            lines: piece.hole_lines,
                            cause: piece.hole_cause,
                        });
                    }
                    text.data.extend_from_slice(&piece.data);
                }
            }
        }
        Ok(Some(text))
    }

    /// The attempt to begin with; `None` when a follower has to wait for the first one.
    async fn first_source(&self, query: &LogQuery) -> Result<Option<LogSource>, Error> {
        let known = self
            .store
            .log_job(query.job)
            .await?
            .ok_or(Error::JobNotFound(query.job))?;
        let number = match query.attempt {
            Some(number) => number,
            None if known.attempts == 0 && query.follow => return Ok(None),
            None => known.attempts,
        };
        match self.store.log_source(query.job, number).await? {
            Some(source) => Ok(Some(source)),
            None => Err(Error::AttemptNotFound {
                job: query.job,
                number,
            }),
        }
    }

    /// Position of the last `lines` lines, of one stream or of all.
    async fn last_lines(
        &self,
        source: &LogSource,
        lines: u32,
        stream: Option<i32>,
    ) -> Result<i64, Error> {
        if lines == 0 || source.stored == 0 {
            return Ok(source.stored);
        }
        match stream {
            None => self.last_merged_lines(source, lines).await,
            Some(stream) => self.last_lines_of(source, lines, stream).await,
        }
    }

    /// Chunks carry the number of their first line, so this opens two of them, however long the
    /// output is.
    async fn last_merged_lines(&self, source: &LogSource, lines: u32) -> Result<i64, Error> {
        let open_line = match self.store.chunk_before(source, i64::MAX, None).await? {
            Some(last) if end_of(&last) == source.stored => {
                bytes_of(source, &last)?.last() != Some(&b'\n')
            }
            _ => false,
        };
        let newline = source.lines - i64::from(lines) + i64::from(open_line);
        if newline <= 0 {
            return Ok(0);
        }
        let Some(chunk) = self.store.chunk_with_newline(source, newline).await? else {
            return Ok(0);
        };
        if chunk.hole_bytes > 0 {
            return Ok(chunk.offset);
        }
        let bytes = bytes_of(source, &chunk)?;
        let within = (newline - chunk.first_line - 1) as usize;
        let position = bytes
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'\n')
            .nth(within)
            .map_or(bytes.len(), |(position, _)| position + 1);
        Ok(chunk.offset + position as i64)
    }

    /// Lines of one stream are not numbered, so its chunks are read from the end on, one at a time.
    async fn last_lines_of(
        &self,
        source: &LogSource,
        lines: u32,
        stream: i32,
    ) -> Result<i64, Error> {
        let mut before = i64::MAX;
        let mut ends = 0;
        let mut last_byte = true;
        while let Some(chunk) = self
            .store
            .chunk_before(source, before, Some(stream))
            .await?
        {
            let bytes = bytes_of(source, &chunk)?;
            let mut end = bytes.len();
            for &(run_stream, length, _) in chunk.runs.iter().rev() {
                let start = end.saturating_sub(length as usize);
                if run_stream == stream {
                    for (position, byte) in bytes[start..end].iter().enumerate().rev() {
                        if *byte == b'\n' && !std::mem::take(&mut last_byte) {
                            ends += 1;
                            if ends == lines {
                                return Ok(chunk.offset + (start + position) as i64 + 1);
                            }
                        }
                        last_byte = false;
                    }
                }
                end = start;
            }
            before = chunk.offset;
        }
        Ok(0)
    }
}

struct Reader {
    app: Arc<App>,
    query: LogQuery,
    changes: broadcast::Receiver<Change>,
    pieces: mpsc::Sender<Result<LogPiece, Error>>,
    _permit: OwnedSemaphorePermit,
}

/// Why reading stopped before its end.
enum Stop {
    /// Nobody listens any more.
    Gone,
    /// It cannot go on.
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Since when the rest of an ended attempt's output has not grown.
#[derive(Debug, Default)]
struct Rest {
    stalled: Option<(i64, Instant)>,
}

impl Rest {
    /// False once nothing has come for as long as `patience`.
    fn may_come(&mut self, stored: i64, patience: Duration) -> bool {
        match self.stalled {
            Some((before, since)) if before == stored => since.elapsed() < patience,
            _ => {
                self.stalled = Some((stored, Instant::now()));
                !patience.is_zero()
            }
        }
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.into())
    }
}

impl Reader {
    async fn run(mut self, first: Option<LogSource>) {
        if let Err(Stop::Failed(error)) = self.read(first).await {
            // A reader that has gone needs no error.
            let _ = self.pieces.send(Err(error)).await;
        }
    }

    async fn read(&mut self, first: Option<LogSource>) -> Result<(), Stop> {
        let mut start = self.query.start;
        let mut source = match first {
            Some(source) => source,
            None => match self.attempt_after(0).await? {
                Some(source) => source,
                None => return Ok(()),
            },
        };
        loop {
            let number = source.number;
            let mut wanted = match start {
                LogStart::Offset(offset) => offset,
                LogStart::Lines(lines) => {
                    if source.ended {
                        source = self.settled(source).await?;
                    }
                    self.app
                        .last_lines(&source, lines, self.query.stream)
                        .await?
                }
            };
            if let Some(since) = self.query.since {
                let from = self
                    .app
                    .store
                    .offset_since(&source, since.timestamp_micros())
                    .await?
                    .unwrap_or(source.stored);
                wanted = wanted.max(from);
            }
            self.read_attempt(source, wanted).await?;
            if !self.query.follow || self.query.attempt.is_some() {
                return Ok(());
            }
            start = LogStart::Offset(0);
            source = match self.attempt_after(number).await? {
                Some(source) => source,
                None => return Ok(()),
            };
        }
    }

    /// Sends an attempt's output from `wanted` on, and its closing mark.
    async fn read_attempt(&mut self, mut source: LogSource, wanted: i64) -> Result<(), Stop> {
        let app = Arc::clone(&self.app);
        let mut waiter = app.logs.wake.listen(source.fence);
        let mut next = app.store.chunk_start(&source, wanted).await?;
        let mut rest = Rest::default();
        loop {
            next = self.send_stored(&source, next, wanted).await?;
            source = app
                .store
                .log_source(self.query.job, source.number)
                .await?
                .ok_or(Error::JobNotFound(self.query.job))?;
            if source.stored > next {
                continue;
            }
            if source.ended && source.log_end.is_some_and(|end| end <= source.stored) {
                return self.close(&source, true).await;
            }
            if !source.ended && !self.query.follow {
                return Ok(());
            }
            if source.ended && !rest.may_come(source.stored, self.patience(&source)) {
                return self.close(&source, false).await;
            }
            self.wait(Some(&mut waiter)).await?;
        }
    }

    /// Waits until an ended attempt's output is stored whole, or no more of it can be expected: its
    /// last lines are the last ones only then.
    async fn settled(&mut self, mut source: LogSource) -> Result<LogSource, Stop> {
        let app = Arc::clone(&self.app);
        let mut waiter = app.logs.wake.listen(source.fence);
        let mut rest = Rest::default();
        loop {
            source = app
                .store
                .log_source(self.query.job, source.number)
                .await?
                .ok_or(Error::JobNotFound(self.query.job))?;
            let whole = source.log_end.is_some_and(|end| end <= source.stored);
            if whole || !rest.may_come(source.stored, self.patience(&source)) {
                return Ok(source);
            }
            self.wait(Some(&mut waiter)).await?;
        }
    }

    /// How long to wait for the rest of an ended attempt's output while nothing of it comes. The
    /// result overtakes the output of a job that wrote much, so its worker usually still sends.
    fn patience(&self, source: &LogSource) -> Duration {
        // An attempt whose length nobody knows was given up; nothing says that more will come.
        let expected = source.log_end.is_some() && self.app.sessions.is_connected(source.worker);
        match (expected, self.query.follow) {
            (true, _) => REST_CONNECTED,
            (false, true) => REST_AWAY,
            (false, false) => Duration::ZERO,
        }
    }

    /// Sends what is stored from the chunk at `next` on. Returns where it ended.
    async fn send_stored(
        &mut self,
        source: &LogSource,
        mut next: i64,
        wanted: i64,
    ) -> Result<i64, Stop> {
        let mut wanted = wanted;
        loop {
            let mut chunks = self.app.store.chunks_from(source, next, READ_AHEAD).await?;
            let joins = chunks.first().is_some_and(|chunk| chunk.offset == next);
            if !joins && (source.stored > next || !chunks.is_empty()) {
                // A crash of the database can undo chunks whose commit had not reached the disk,
                // and the worker may cut them differently the second time.
                wanted = wanted.max(next);
                let start = self.app.store.chunk_start(source, next).await?;
                chunks = self
                    .app
                    .store
                    .chunks_from(source, start, READ_AHEAD)
                    .await?;
            }
            chunks.retain(|chunk| end_of(chunk) > next);
            if chunks.is_empty() {
                // What was stored when `source` was read and is not there now was deleted to save
                // room.
                let hole_bytes = source.stored - next.max(wanted);
                if hole_bytes > 0 {
                    self.send(LogPiece {
                        attempt: source.number,
                        offset: source.stored,
                        hole_bytes,
                        hole_cause: HoleCause::Removed,
                        ..LogPiece::default()
                    })
                    .await?;
                }
                return Ok(next.max(source.stored));
            }
            for chunk in &chunks {
                for piece in cut(source, chunk, wanted, self.query.stream, self.query.since)? {
                    self.send(piece).await?;
                }
                next = end_of(chunk);
            }
        }
    }

    async fn close(&self, source: &LogSource, complete: bool) -> Result<(), Stop> {
        self.send(LogPiece {
            attempt: source.number,
            offset: source.stored,
            complete,
            incomplete: !complete,
            ..LogPiece::default()
        })
        .await
    }

    async fn send(&self, piece: LogPiece) -> Result<(), Stop> {
        tokio::select! {
            sent = self.pieces.send(Ok(piece)) => sent.map_err(|_| Stop::Gone),
            () = self.app.stop.cancelled() => Err(Error::ShuttingDown.into()),
        }
    }

    /// Waits for the attempt after `number`; `None` once the job has ended without one.
    async fn attempt_after(&mut self, number: i32) -> Result<Option<LogSource>, Stop> {
        loop {
            let job = self.query.job;
            let known = self
                .app
                .store
                .log_job(job)
                .await?
                .ok_or(Error::JobNotFound(job))?;
            if known.attempts > number
                && let Some(source) = self.app.store.log_source(job, number + 1).await?
            {
                return Ok(Some(source));
            }
            if known.ended {
                return Ok(None);
            }
            self.wait(None).await?;
        }
    }

    /// Waits until more may be there: more output, a change of the job, or time to look again.
    async fn wait(&mut self, waiter: Option<&mut LogWaiter>) -> Result<(), Stop> {
        let output = async {
            match waiter {
                Some(waiter) => waiter.more().await,
                None => std::future::pending().await,
            }
        };
        let job = self.query.job;
        let changes = &mut self.changes;
        let change = async {
            loop {
                match changes.recv().await {
                    Ok(Change::Jobs(jobs)) if jobs.contains(&job) => return,
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => return,
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            () = output => Ok(()),
            () = change => Ok(()),
            () = tokio::time::sleep(LOOK_AGAIN) => Ok(()),
            () = self.pieces.closed() => Err(Stop::Gone),
            () = self.app.stop.cancelled() => Err(Error::ShuttingDown.into()),
        }
    }
}

fn end_of(chunk: &StoredChunk) -> i64 {
    chunk.offset + i64::from(chunk.length) + chunk.hole_bytes
}

fn bytes_of(source: &LogSource, chunk: &StoredChunk) -> Result<Vec<u8>, Error> {
    let length = chunk.length.unsigned_abs();
    decompress(&chunk.data, length)
        .filter(|bytes| crc32c::crc32c(bytes) == chunk.crc32c)
        .ok_or_else(|| {
            Error::Internal(format!(
                "the stored output of the attempt with fence {} is damaged at offset {}",
                source.fence, chunk.offset
            ))
        })
}

/// The parts of a chunk that are wanted: from position `wanted` on, of one stream, read since a
/// time. Each piece is contiguous, so that a reader can come back to the byte after it.
fn cut(
    source: &LogSource,
    chunk: &StoredChunk,
    wanted: i64,
    stream: Option<i32>,
    since: Option<DateTime<Utc>>,
) -> Result<Vec<LogPiece>, Error> {
    let end = end_of(chunk);
    if end <= wanted {
        return Ok(Vec::new());
    }
    if chunk.hole_bytes > 0 {
        return Ok(vec![LogPiece {
            attempt: source.number,
            offset: end,
            hole_bytes: end - chunk.offset.max(wanted),
            hole_lines: chunk.hole_lines,
            hole_cause: chunk.hole_cause,
            ..LogPiece::default()
        }]);
    }
    let bytes = Bytes::from(bytes_of(source, chunk)?);
    let mut pieces: Vec<LogPiece> = Vec::new();
    let since = since.map_or(i64::MIN, |time| time.timestamp_micros());
    let mut position = 0;
    for run in chunk.runs.iter().copied().map(Run::from_stored) {
        let start = position;
        position = (position + run.length as usize).min(bytes.len());
        let skipped = (wanted - chunk.offset - start as i64).clamp(0, (position - start) as i64);
        let start = start + skipped as usize;
        let other = stream.is_some_and(|stream| stream != run.stream);
        if other || run.micros < since || start == position {
            continue;
        }
        let offset = chunk.offset + start as i64;
        let run = Run {
            length: (position - start) as u32,
            ..run
        };
        match pieces.last_mut() {
            Some(piece) if piece.offset + piece.data.len() as i64 == offset => {
                let from = (piece.offset - chunk.offset) as usize;
                piece.data = bytes.slice(from..position);
                piece.runs.push(run);
            }
            _ => pieces.push(LogPiece {
                attempt: source.number,
                offset,
                runs: vec![run],
                data: bytes.slice(start..position),
                ..LogPiece::default()
            }),
        }
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use chrono::NaiveDate;
    use qctl_server_core::{Fence, WorkerId};

    use super::*;

    fn source() -> LogSource {
        LogSource {
            fence: Fence(1),
            number: 1,
            day: NaiveDate::from_ymd_opt(2026, 11, 21).unwrap(),
            stored: 100,
            lines: 3,
            ended: false,
            log_end: None,
            worker: WorkerId(uuid::Uuid::nil()),
        }
    }

    /// A chunk at offset 100: 4 bytes of stdout, 4 of stderr, 4 of stdout.
    fn chunk() -> StoredChunk {
        let text = b"out1err1out2";
        StoredChunk {
            offset: 100,
            length: 12,
            first_line: 0,
            runs: vec![(1, 4, 1_000), (2, 4, 2_000), (1, 4, 3_000)],
            data: zstd::bulk::compress(text, 1).unwrap().into(),
            crc32c: crc32c::crc32c(text),
            hole_bytes: 0,
            hole_lines: 0,
            hole_cause: HoleCause::Unknown,
            colour_state: Vec::new(),
        }
    }

    fn parts(wanted: i64, stream: Option<i32>, since: Option<i64>) -> Vec<(i64, String)> {
        let since = since.map(|micros| DateTime::from_timestamp_micros(micros).unwrap());
        let pieces = cut(&source(), &chunk(), wanted, stream, since).unwrap();
        for piece in &pieces {
            let covered: u32 = piece.runs.iter().map(|run| run.length).sum();
            assert_eq!(covered as usize, piece.data.len());
        }
        pieces
            .into_iter()
            .map(|piece| {
                (
                    piece.offset,
                    String::from_utf8(piece.data.to_vec()).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn a_whole_chunk_is_one_piece() {
        assert_eq!(parts(0, None, None), [(100, "out1err1out2".to_owned())]);
    }

    #[test]
    fn reading_begins_in_the_middle_of_a_run() {
        assert_eq!(parts(106, None, None), [(106, "r1out2".to_owned())]);
        assert_eq!(parts(112, None, None), []);
    }

    #[test]
    fn one_stream_comes_in_contiguous_pieces() {
        assert_eq!(
            parts(0, Some(1), None),
            [(100, "out1".to_owned()), (108, "out2".to_owned())]
        );
    }

    #[test]
    fn what_was_read_earlier_is_left_out() {
        assert_eq!(parts(0, None, Some(2_000)), [(104, "err1out2".to_owned())]);
    }

    #[test]
    fn a_hole_is_told_in_front_of_what_follows_it() {
        let hole = StoredChunk {
            length: 0,
            runs: vec![],
            data: Bytes::new(),
            hole_bytes: 50,
            ..chunk()
        };
        let pieces = cut(&source(), &hole, 120, None, None).unwrap();
        assert_eq!((pieces[0].offset, pieces[0].hole_bytes), (150, 30));
    }

    #[test]
    fn damage_is_noticed() {
        let damaged = StoredChunk {
            crc32c: 1,
            ..chunk()
        };
        assert!(matches!(
            cut(&source(), &damaged, 0, None, None),
            Err(Error::Internal(message)) if message.ends_with("damaged at offset 100")
        ));
    }
}
