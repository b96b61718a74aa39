//! The way in: one task writes the chunks of all workers, and while one transaction is under way
//! the next batch gathers.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::NaiveDate;
use qctl_server_core::Fence;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{LogWake, VerifiedChunk};
use crate::store::logs::{Appended, LogTail, NewChunk, StoredChunk};
use crate::store::{Store, StoreError};

/// Chunks in one transaction, and as many again that wait for it. Together at most 16 MiB.
const BATCH: usize = 32;

/// How often a batch is tried when it loses against another transaction.
const ATTEMPTS: usize = 5;

/// What the uploader of an attempt is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The attempt.
    pub fence: Fence,
    /// Bytes that are stored; uploading goes on from here. `None` when the attempt is unknown, so
    /// that nothing more of it is wanted.
    pub stored: Option<i64>,
}

/// The acknowledgements of one connection. A newer one of an attempt replaces an older one that
/// was not sent yet, so what waits here is bounded by the attempts that a connection uploads.
#[derive(Debug, Default)]
pub struct Acks {
    state: Mutex<AckState>,
    ready: Notify,
}

#[derive(Debug, Default)]
struct AckState {
    latest: BTreeMap<Fence, Option<i64>>,
    /// Chunks that were handed over and not answered.
    pending: usize,
    /// No more will be handed over.
    finished: bool,
    failed: Option<StoreError>,
}

impl Acks {
    /// Waits for acknowledgements and takes all there are; `None` once everything is acknowledged
    /// and no more will be handed over.
    ///
    /// # Errors
    /// When chunks of this connection could not be stored; it has to end, and its worker to begin
    /// again from what was acknowledged.
    pub async fn next(&self) -> Result<Option<Vec<Ack>>, StoreError> {
        loop {
            let ready = self.ready.notified();
            {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if !state.latest.is_empty() {
                    let latest = std::mem::take(&mut state.latest);
                    let acks = latest.into_iter();
                    return Ok(Some(
                        acks.map(|(fence, stored)| Ack { fence, stored }).collect(),
                    ));
                }
                if let Some(error) = &state.failed {
                    return Err(error.clone());
                }
                if state.finished && state.pending == 0 {
                    return Ok(None);
                }
            }
            ready.await;
        }
    }

    /// Says that no more chunks will be handed over for this connection.
    pub fn finish(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.finished = true;
        drop(state);
        self.ready.notify_one();
    }

    fn expect(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.pending += 1;
    }

    /// One chunk fewer waits for its answer.
    fn answered(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.pending = state.pending.saturating_sub(1);
        drop(state);
        self.ready.notify_one();
    }

    fn put(&self, fence: Fence, stored: Option<i64>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.latest.insert(fence, stored);
        drop(state);
        self.ready.notify_one();
    }

    fn fail(&self, error: &StoreError) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.failed = Some(error.clone());
        drop(state);
        self.ready.notify_one();
    }
}

struct Submission {
    chunk: VerifiedChunk,
    acks: Arc<Acks>,
}

/// Hands chunks to the task that writes them.
#[derive(Clone, Debug)]
pub struct Intake {
    queue: mpsc::Sender<Submission>,
}

impl Intake {
    /// Starts the writing task, which ends after `stop`.
    pub(super) fn start(
        store: Store,
        wake: LogWake,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (queue, submissions) = mpsc::channel(BATCH);
        let writer = Writer {
            store,
            wake,
            partitions: HashSet::new(),
        };
        tasks.spawn(writer.run(submissions, stop));
        Self { queue }
    }

    /// Hands over a chunk; `acks` hears of it. Waits while the database is slower than the worker.
    /// False when the coordinator is stopping.
    pub async fn submit(&self, chunk: VerifiedChunk, acks: &Arc<Acks>) -> bool {
        let acks = Arc::clone(acks);
        acks.expect();
        self.queue.send(Submission { chunk, acks }).await.is_ok()
    }
}

struct Writer {
    store: Store,
    wake: LogWake,
    /// Days whose partition is known to exist.
    partitions: HashSet<NaiveDate>,
}

impl Writer {
    async fn run(mut self, mut submissions: mpsc::Receiver<Submission>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let taken = tokio::select! {
                taken = submissions.recv_many(&mut batch, BATCH) => taken,
                // What was not acknowledged is sent again to the next coordinator.
                () = stop.cancelled() => return,
            };
            if taken == 0 {
                return;
            }
            self.take_in(&batch).await;
            batch.clear();
        }
    }

    async fn take_in(&mut self, batch: &[Submission]) {
        match self.write_with_retries(batch).await {
            Ok(tails) => self.answer(batch, &tails),
            // One chunk that the database refuses must not keep others from being stored.
            Err(error) if !error.is_transient() && batch.len() > 1 => {
                for submission in batch {
                    let alone = std::slice::from_ref(submission);
                    match self.write_with_retries(alone).await {
                        Ok(tails) => self.answer(alone, &tails),
                        Err(error) => fail(alone, &error),
                    }
                }
            }
            Err(error) => fail(batch, &error),
        }
    }

    fn answer(&self, batch: &[Submission], tails: &BTreeMap<Fence, LogTail>) {
        for fence in tails.keys() {
            self.wake.wake(*fence);
        }
        // Once a batch: an answer that repeats the one before says that a chunk was refused.
        let mut told = HashSet::new();
        for submission in batch {
            let fence = submission.chunk.chunk.fence;
            if told.insert((Arc::as_ptr(&submission.acks), fence)) {
                let stored = tails.get(&fence).map(|tail| tail.stored);
                submission.acks.put(fence, stored);
            }
            submission.acks.answered();
        }
    }

    async fn write_with_retries(
        &mut self,
        batch: &[Submission],
    ) -> Result<BTreeMap<Fence, LogTail>, StoreError> {
        let mut tried = 0;
        loop {
            tried += 1;
            match self.write(batch).await {
                Err(StoreError::Conflict(_)) if tried < ATTEMPTS => {}
                result => return result,
            }
        }
    }

    /// Stores what fits. Returns how far each attempt that exists is stored now.
    async fn write(
        &mut self,
        batch: &[Submission],
    ) -> Result<BTreeMap<Fence, LogTail>, StoreError> {
        let mut fences: Vec<i64> = batch
            .iter()
            .map(|submission| submission.chunk.chunk.fence.0)
            .collect();
        fences.sort_unstable();
        fences.dedup();
        let tails = loop {
            let chunks = batch.iter().map(|submission| &submission.chunk);
            let appended = self
                .store
                .append_chunks(&fences, &self.partitions, |tails| admit(tails, chunks))
                .await?;
            match appended {
                Appended::Stored(tails) => break tails,
                Appended::NoPartition(days) => {
                    for day in days {
                        self.store.ensure_log_partition(day).await?;
                        self.partitions.insert(day);
                    }
                }
            }
        };
        // A worker may drop its copy once the result is committed and all output acknowledged. The
        // synchronous commit of a result that comes later flushes these chunks as well; for one
        // that came first they are flushed here, before the acknowledgement.
        if self.store.any_ended(&fences).await? {
            self.store.flush().await?;
        }
        Ok(tails)
    }
}

/// Ends the connections of chunks that could not be stored; their workers begin again.
fn fail(batch: &[Submission], error: &StoreError) {
    tracing::warn!(
        chunks = batch.len(),
        error = error as &dyn std::error::Error,
        "{} chunks of output could not be stored; their workers send them again",
        batch.len()
    );
    for submission in batch {
        submission.acks.fail(error);
    }
}

/// Decides which chunks are stored: those that begin exactly where their attempt's output ends,
/// each advancing it. The tails that come back are what is acknowledged.
fn admit<'a>(
    tails: &mut BTreeMap<Fence, LogTail>,
    chunks: impl Iterator<Item = &'a VerifiedChunk>,
) -> Vec<NewChunk> {
    let mut admitted = Vec::new();
    for VerifiedChunk { chunk, newlines } in chunks {
        let Some(tail) = tails.get_mut(&chunk.fence) else {
            continue;
        };
        if chunk.offset != tail.stored {
            continue;
        }
        admitted.push(NewChunk {
            fence: chunk.fence,
            day: tail.day,
            chunk: StoredChunk {
                offset: chunk.offset,
                length: chunk.length as i32,
                first_line: tail.lines,
                runs: chunk.runs.iter().map(|run| run.stored()).collect(),
                data: chunk.data.clone(),
                crc32c: chunk.crc32c,
                hole_bytes: chunk.hole_bytes,
                hole_lines: chunk.hole_lines,
                colour_state: chunk.colour_state.to_vec(),
            },
        });
        tail.stored += i64::from(chunk.length) + chunk.hole_bytes;
        tail.lines += newlines;
    }
    admitted
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::{Chunk, Run};
    use super::*;

    fn chunk(fence: i64, offset: i64, text: &str) -> VerifiedChunk {
        Chunk {
            fence: Fence(fence),
            offset,
            runs: vec![Run {
                stream: 1,
                length: text.len() as u32,
                micros: 0,
            }],
            data: zstd::bulk::compress(text.as_bytes(), 1).unwrap().into(),
            length: text.len() as u32,
            crc32c: crc32c::crc32c(text.as_bytes()),
            hole_bytes: 0,
            hole_lines: 0,
            colour_state: Bytes::new(),
        }
        .verify()
        .unwrap()
    }

    fn tails(list: &[(i64, i64, i64)]) -> BTreeMap<Fence, LogTail> {
        list.iter()
            .map(|&(fence, stored, lines)| {
                let tail = LogTail {
                    fence: Fence(fence),
                    day: NaiveDate::from_ymd_opt(2026, 11, 21).unwrap(),
                    stored,
                    lines,
                };
                (Fence(fence), tail)
            })
            .collect()
    }

    #[test]
    fn only_what_joins_on_is_stored() {
        let mut known = tails(&[(1, 4, 1)]);
        let sent = [
            chunk(1, 0, "abc\n"),
            chunk(1, 4, "def\n"),
            chunk(2, 0, "of a deleted attempt"),
            chunk(1, 20, "too far"),
            chunk(1, 8, "ghi"),
        ];
        let stored = admit(&mut known, sent.iter());
        let offsets: Vec<_> = stored
            .iter()
            .map(|new| (new.chunk.offset, new.chunk.first_line))
            .collect();
        assert_eq!(offsets, [(4, 1), (8, 2)]);
        assert_eq!(known, tails(&[(1, 11, 2)]));
    }

    proptest! {
        /// However chunks are repeated, lost and reordered on their way, what is stored is a
        /// prefix of what was written, without gaps or overlaps.
        #[test]
        fn what_is_stored_is_a_prefix(
            lengths in proptest::collection::vec(1usize..20, 1..20),
            order in proptest::collection::vec(0usize..20, 0..80),
        ) {
            let mut written = Vec::new();
            let mut offset = 0;
            for (index, length) in lengths.iter().enumerate() {
                let text = format!("{index:x}\n").repeat(*length);
                written.push(chunk(1, offset, &text));
                offset += text.len() as i64;
            }
            let mut known = tails(&[(1, 0, 0)]);
            let sent = order.iter().filter_map(|index| written.get(*index));
            let stored = admit(&mut known, sent);
            let mut end = 0;
            let mut lines = 0;
            for (new, original) in stored.iter().zip(&written) {
                prop_assert_eq!(new.chunk.offset, end);
                prop_assert_eq!(new.chunk.first_line, lines);
                prop_assert_eq!(&new.chunk.data, &original.chunk.data);
                end += i64::from(new.chunk.length);
                lines += original.newlines;
            }
            prop_assert_eq!(known[&Fence(1)].stored, end);
            prop_assert_eq!(known[&Fence(1)].lines, lines);
        }
    }

    #[tokio::test]
    async fn acknowledgements_of_one_attempt_replace_each_other() {
        let acks = Acks::default();
        acks.put(Fence(1), Some(10));
        acks.put(Fence(2), None);
        acks.put(Fence(1), Some(20));
        let taken = acks.next().await.unwrap();
        assert_eq!(
            taken.unwrap(),
            [
                Ack {
                    fence: Fence(1),
                    stored: Some(20)
                },
                Ack {
                    fence: Fence(2),
                    stored: None
                },
            ]
        );
    }

    #[tokio::test]
    async fn acknowledgements_end_with_the_last_chunk() {
        let acks = Acks::default();
        acks.expect();
        acks.finish();
        acks.put(Fence(1), Some(10));
        acks.answered();
        assert!(acks.next().await.unwrap().is_some());
        assert_eq!(acks.next().await.unwrap(), None);
    }
}
