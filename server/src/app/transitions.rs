//! What workers report about attempts. One task writes it: while a transaction is under way it
//! gathers what comes in, so that many transitions share one commit.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use qctl_server_core::attempt::AttemptEvent;
use qctl_server_core::outcome::End;
use qctl_server_core::{AttemptState, Facts, Fence, Progress, StopCause, WorkerId};
use tokio::sync::mpsc;

use super::ledger::{AfterCommit, Applied, EndReport, Ledger, worker_actor};
use super::{App, Change, Error};
use crate::sessions::{SessionId, ToWorker};
use crate::store::ledger::{NewEvent, Which};
use crate::store::{Dedicated, StoreError};

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

/// What happened to an attempt.
#[derive(Clone, Debug)]
pub enum What {
    /// Its process was started.
    Started {
        /// Process id.
        pid: i32,
        /// When, by the worker's clock.
        started_at: Option<DateTime<Utc>>,
        /// Limits that cannot be enforced.
        not_enforced: Vec<String>,
    },
    /// Its process ended.
    Ended(Box<EndedReport>),
    /// No process of it is left.
    SlotFreed,
    /// It was given back, or refused; or it had started already when it was wanted back.
    Returned {
        /// False when it had started.
        returned: bool,
        /// Why, for people.
        message: String,
    },
    /// Its process tree was frozen or thawed.
    PauseChanged(bool),
    /// It could not be handed to its worker, which had gone: it never started.
    NotSent,
}

/// The recorded facts of an attempt's end.
#[derive(Clone, Debug)]
pub struct EndedReport {
    /// The facts that decide the outcome.
    pub facts: Facts,
    /// When the process was started, by the worker's clock.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended, by the worker's clock.
    pub ended_at: Option<DateTime<Utc>>,
    /// Run time by the worker's monotonic clock.
    pub duration: Option<Duration>,
    /// Process id.
    pub pid: Option<i32>,
    /// Directory with its checkpoint; empty when it left none.
    pub checkpoint: String,
    /// Bytes of its whole output.
    pub log_end: i64,
    /// Checksum over them.
    pub log_crc32c: u32,
    /// Limits that could not be enforced.
    pub not_enforced: Vec<String>,
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
                Ok(after) => {
                    self.carry_out(after);
                    return;
                }
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
    ) -> Result<AfterCommit, StoreError> {
        let fences: Vec<Fence> = batch.iter().map(|report| report.fence).collect();
        let mut transaction = database.begin(&self.store).await?;
        let mut ledger = Ledger::open(self, &mut transaction, Which::Attempts(&fences)).await?;
        for report in batch {
            // What an old connection still had to say is said again in the new one's greeting.
            let stale = !matches!(report.what, What::NotSent)
                && !self.sessions.is_current(report.worker, report.session);
            if !stale {
                apply(&mut ledger, report);
            }
        }
        let after = ledger.save(&mut transaction).await?;
        transaction.commit().await?;
        Ok(after)
    }
}

fn apply(ledger: &mut Ledger, report: &Report) {
    let Report {
        worker,
        fence,
        ref what,
        ..
    } = *report;
    let known = ledger.attempt(fence);
    if known.is_some_and(|row| row.worker != worker) {
        tracing::warn!(%worker, %fence, "worker {worker} reports about fence {fence}, which is not its own");
        return;
    }
    let known = known.cloned();
    match what {
        What::Started {
            pid,
            started_at,
            not_enforced,
        } => {
            let pid = (*pid > 0).then_some(*pid);
            if ledger.started(fence, *started_at, pid, not_enforced.clone()) == Applied::Fenced {
                ledger.message(
                    worker,
                    ToWorker::Stop {
                        fence,
                        cause: StopCause::Superseded,
                        grace: None,
                    },
                );
            }
        }
        What::Ended(ended) => {
            let report = EndReport {
                started_at: ended.started_at,
                ended_at: ended.ended_at,
                duration: ended.duration,
                pid: ended.pid,
                checkpoint: ended.checkpoint.clone(),
                log: Some((ended.log_end, ended.log_crc32c)),
                not_enforced: ended.not_enforced.clone(),
                refused: false,
            };
            // An attempt whose job was deleted is acknowledged as well: nobody wants its result.
            ledger.ended(fence, &ended.facts, report);
            ledger.message(worker, ToWorker::ResultCommitted(fence));
        }
        What::SlotFreed => {
            if ledger.attempt_event(fence, AttemptEvent::SlotFreed) == Applied::Recorded {
                ledger.dispatch();
            }
        }
        What::Returned { returned: true, .. }
            if known
                .as_ref()
                .is_some_and(|row| row.attempt.state == AttemptState::Running) =>
        {
            // It said before that it had started it, and a start cannot be undone.
            tracing::warn!(%worker, %fence, "worker {worker} returns fence {fence}, which it has started");
        }
        What::Returned {
            returned: true,
            message,
        } => {
            let facts = Facts {
                message: message.clone(),
                ..Facts::of(End::NeverStarted)
            };
            let report = EndReport {
                refused: true,
                ..EndReport::default()
            };
            ledger.ended(fence, &facts, report);
        }
        What::Returned {
            returned: false, ..
        } => {
            ledger.attempt_event(fence, AttemptEvent::ReturnRefused);
        }
        What::NotSent => {
            ledger.ended(fence, &Facts::of(End::NeverStarted), EndReport::default());
        }
        What::PauseChanged(paused) => {
            let applied = ledger.attempt_event(fence, AttemptEvent::Paused(*paused));
            if let (Applied::Recorded, Some(row)) = (applied, known) {
                let (kind, message) = match paused {
                    true => ("paused", "its processes were frozen"),
                    false => ("resumed", "its processes go on"),
                };
                ledger.tell(NewEvent {
                    job: Some(row.job),
                    attempt: Some(row.number),
                    kind,
                    message: message.to_owned(),
                    actor: worker_actor(&row.worker_name),
                    worker: row.worker_name,
                });
            }
        }
    }
}
