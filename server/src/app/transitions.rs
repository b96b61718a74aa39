//! What workers report about attempts. One task writes it: while a transaction is under way it
//! gathers what comes in, so that many transitions share one commit.

use std::sync::Arc;
use std::time::Duration;

use qctl_server_core::ledger::{AfterCommit, What, Which};
use qctl_server_core::{Fence, Progress, WorkerId};
use tokio::sync::mpsc;

use super::{App, Change, Error};
use crate::sessions::SessionId;
use crate::store::{Dedicated, StoreError, Transaction, bounded};

/// Reports in one transaction.
const BATCH: usize = 256;
/// Reports that wait. Sessions wait when there are more.
const QUEUED: usize = 1_024;
/// How long to wait before a batch that the database could not take is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// How often a batch is tried at once when it loses against another transaction.
const ATTEMPTS: u32 = 5;

/// Something that a worker reports about an attempt.
#[derive(Clone, Debug)]
pub struct Report {
    /// The worker.
    pub worker: WorkerId,
    /// The session in which it was said.
    pub session: SessionId,
    /// The attempt.
    pub fence: Fence,
    /// What happened.
    pub what: What,
}

/// Where reports go.
#[derive(Clone, Debug)]
pub(super) struct Reports(mpsc::Sender<Report>);

/// Where they come out.
#[derive(Debug)]
pub(super) struct Inbox(mpsc::Receiver<Report>);

/// A bounded queue of reports.
pub(super) fn queue() -> (Reports, Inbox) {
    let (sender, receiver) = mpsc::channel(QUEUED);
    (Reports(sender), Inbox(receiver))
}

impl App {
    /// Takes a report; waits while too many are waiting already. What it leads to is told to the
    /// worker's session.
    ///
    /// # Errors
    /// [`Error::ShuttingDown`] when the coordinator takes no more; the worker repeats what matters
    /// after it has connected again.
    pub async fn report(&self, report: Report) -> Result<(), Error> {
        self.reports
            .0
            .send(report)
            .await
            .map_err(|_| Error::ShuttingDown)
    }

    /// Takes newer progress of an attempt. That of unknown or ended attempts is ignored.
    pub fn progressed(&self, fence: Fence, progress: Progress) {
        if let Some(job) = self.live.set(fence, progress) {
            self.changes.tell(Change::Progress { job, fence });
        }
    }

    /// Writes reports until the coordinator stops.
    pub(super) async fn write_reports(self: Arc<Self>, mut inbox: Inbox) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut database = Dedicated::default();
        loop {
            qctl_notify::panics::provoked("reports");
            batch.clear();
            let received = tokio::select! {
                biased;
                received = inbox.0.recv_many(&mut batch, BATCH) => received,
                () = self.stop.cancelled() => break,
            };
            if received == 0 {
                break;
            }
            self.write_until_done(&mut database, &batch).await;
        }
    }

    /// Tries until the batch is written or the coordinator stops. Nothing that is not committed was
    /// acknowledged, so workers repeat what is lost then.
    async fn write_until_done(&self, database: &mut Dedicated, batch: &[Report]) {
        let mut tried = 0;
        loop {
            tried += 1;
            let written = self.write_batch(database, batch).await;
            if written.is_err() {
                database.give_up();
            }
            match written {
                Ok(()) => return,
                Err(StoreError::Conflict(_) | StoreError::Stale) if tried < ATTEMPTS => {}
                Err(error) if error.is_transient() || matches!(error, StoreError::DiskFull(_)) => {
                    if tried == 1 {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "reports of workers wait: {error}"
                        );
                    }
                    tokio::select! {
                        () = tokio::time::sleep(RETRY_AFTER) => {}
                        () = self.stop.cancelled() => return,
                    }
                }
                // Workers say it again to whoever leads.
                Err(StoreError::Fenced) => return,
                Err(error) if batch.len() > 1 => {
                    // One report must not keep the others from being written.
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "a batch of reports failed; writing them one by one: {error}"
                    );
                    for report in batch {
                        Box::pin(self.write_until_done(database, std::slice::from_ref(report)))
                            .await;
                    }
                    return;
                }
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        fence = %batch[0].fence,
                        "a report about the attempt with fence {} is dropped: {error}",
                        batch[0].fence,
                    );
                    return;
                }
            }
        }
    }

    async fn write_batch(
        &self,
        database: &mut Dedicated,
        batch: &[Report],
    ) -> Result<(), StoreError> {
        let worked = bounded(self.apply(database, batch));
        let (transaction, after) = worked.await?;
        self.commit(transaction, after).await
    }

    async fn apply<'d>(
        &self,
        database: &'d mut Dedicated,
        batch: &[Report],
    ) -> Result<(Transaction<'d>, AfterCommit), StoreError> {
        let fences: Vec<Fence> = batch.iter().map(|report| report.fence).collect();
        let mut transaction = database.begin(&self.store).await?;
        let mut ledger = self
            .open_ledger(&mut transaction, Which::Attempts(&fences))
            .await?;
        for report in batch {
            // What an old connection still had to say is said again in the new one's greeting.
            let stale = !matches!(report.what, What::NotSent)
                && !self.sessions.is_current(report.worker, report.session);
            if stale {
                continue;
            }
            let (worker, fence) = (report.worker, report.fence);
            if let Err(refusal) = ledger.report(worker, fence, &report.what) {
                tracing::warn!(
                    %worker,
                    %fence,
                    "a report of worker {worker} about fence {fence} is dropped: {refusal}",
                );
            }
        }
        let after = self.save_ledger(&mut transaction, ledger).await?;
        Ok((transaction, after))
    }
}
