//! The way in: one task writes the chunks of all workers, and while one transaction is under way
//! the next batch gathers.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::NaiveDate;
use qctl_server_core::Fence;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::admit;
use super::{Changes, Clock, LogWake, VerifiedChunk};
use crate::app::Change;
use crate::store::logs::{Appended, LogTail};
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
    /// Everything is stored, and was compared with what the job wrote.
    pub closed: bool,
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
    latest: BTreeMap<Fence, Ack>,
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
                    return Ok(Some(latest.into_values().collect()));
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

    fn put(&self, ack: Ack) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let known = state.latest.entry(ack.fence).or_insert(ack);
        // What was closed and not told yet stays so while nothing has changed since.
        let closed = ack.closed || (known.closed && known.stored == ack.stored);
        *known = Ack { closed, ..ack };
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
    pub(super) fn start(writer: Writer, tasks: &TaskTracker, stop: CancellationToken) -> Self {
        let (queue, submissions) = mpsc::channel(BATCH);
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

/// Writes output.
pub(super) struct Writer {
    store: Store,
    clock: Clock,
    changes: Changes,
    wake: LogWake,
    /// Days whose partition is known to exist.
    partitions: HashSet<NaiveDate>,
}

/// What a batch came to.
struct Written {
    /// How far each attempt that exists is stored now.
    tails: BTreeMap<Fence, LogTail>,
    /// Attempts whose whole output was compared.
    closed: BTreeSet<Fence>,
}

impl Writer {
    pub(super) fn new(store: Store, clock: Clock, changes: Changes, wake: LogWake) -> Self {
        Self {
            store,
            clock,
            changes,
            wake,
            partitions: HashSet::new(),
        }
    }

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
            Ok(written) => self.answer(batch, &written),
            // One chunk that the database refuses must not keep others from being stored.
            Err(error) if !error.is_transient() && batch.len() > 1 => {
                for submission in batch {
                    let alone = std::slice::from_ref(submission);
                    match self.write_with_retries(alone).await {
                        Ok(written) => self.answer(alone, &written),
                        Err(error) => fail(alone, &error),
                    }
                }
            }
            Err(error) => fail(batch, &error),
        }
    }

    fn answer(&self, batch: &[Submission], written: &Written) {
        for fence in written.tails.keys() {
            self.wake.wake(*fence);
        }
        // Once a batch: an answer that repeats the one before says that a chunk was refused.
        let mut told = HashSet::new();
        for submission in batch {
            let fence = submission.chunk.chunk.fence;
            if told.insert((Arc::as_ptr(&submission.acks), fence)) {
                submission.acks.put(Ack {
                    fence,
                    stored: written.tails.get(&fence).map(|tail| tail.stored),
                    closed: written.closed.contains(&fence),
                });
            }
            submission.acks.answered();
        }
    }

    async fn write_with_retries(&mut self, batch: &[Submission]) -> Result<Written, StoreError> {
        let mut tried = 0;
        loop {
            tried += 1;
            match self.write(batch).await {
                Err(StoreError::Conflict(_)) if tried < ATTEMPTS => {}
                result => return result,
            }
        }
    }

    /// Stores what fits.
    async fn write(&mut self, batch: &[Submission]) -> Result<Written, StoreError> {
        let mut fences: Vec<i64> = batch
            .iter()
            .map(|submission| submission.chunk.chunk.fence.0)
            .collect();
        fences.sort_unstable();
        fences.dedup();
        let now = self.clock.now();
        let (tails, admission) = loop {
            let chunks = batch.iter().map(|submission| &submission.chunk);
            let appended = self
                .store
                .append_chunks(&fences, &self.partitions, now, |tails| admit(tails, chunks))
                .await?;
            match appended {
                Appended::Stored(tails, admission) => break (tails, admission),
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
        if !admission.is_empty() && self.store.any_ended(&fences).await? {
            self.store.flush().await?;
        }
        let jobs: Vec<_> = admission.events.iter().filter_map(|e| e.job).collect();
        if !jobs.is_empty() {
            self.changes.tell(Change::Jobs(jobs.into()));
        }
        Ok(Written {
            tails,
            closed: admission.closed,
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn acknowledgements_of_one_attempt_replace_each_other() {
        let acks = Acks::default();
        let ack = |fence, stored, closed| Ack {
            fence: Fence(fence),
            stored,
            closed,
        };
        acks.put(ack(1, Some(10), false));
        acks.put(ack(2, None, false));
        acks.put(ack(1, Some(20), true));
        acks.put(ack(1, Some(20), false));
        acks.put(ack(3, Some(5), true));
        acks.put(ack(3, Some(0), false));
        let taken = acks.next().await.unwrap();
        assert_eq!(
            taken.unwrap(),
            [
                ack(1, Some(20), true),
                ack(2, None, false),
                ack(3, Some(0), false)
            ]
        );
    }

    #[tokio::test]
    async fn acknowledgements_end_with_the_last_chunk() {
        let acks = Acks::default();
        acks.expect();
        acks.finish();
        acks.put(Ack {
            fence: Fence(1),
            stored: Some(10),
            closed: false,
        });
        acks.answered();
        assert!(acks.next().await.unwrap().is_some());
        assert_eq!(acks.next().await.unwrap(), None);
    }
}
