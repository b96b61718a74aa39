//! What workers report about attempts.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Applied, EndReport, Ledger, Message, NewEvent, worker_actor};
use crate::attempt::{AttemptEvent, AttemptState};
use crate::checkpoint::{Resumes, Told};
use crate::id::{Fence, WorkerId};
use crate::notice::{self, Wish};
use crate::outcome::{End, Facts, StopCause};
use crate::silence;

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
    /// Processes of it were killed and do not end, so its slot stays taken.
    SlotStuck {
        /// Their process ids.
        pids: Vec<i32>,
    },
    /// A silence of it has come to a stage, or is over.
    Silence(Box<silence::Told>),
    /// It published a checkpoint, or more is known of one.
    Checkpoint(Box<Told>),
    /// What it resumes from.
    Resumes(Box<Resumes>),
    /// A GPU that was given to it does not work, so its worker has not started it.
    Unfit(String),
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
    /// Bytes of its whole output.
    pub log_end: i64,
    /// Checksum over them.
    pub log_crc32c: u32,
    /// Limits that could not be enforced.
    pub not_enforced: Vec<String>,
}

/// Why a report was not recorded although it was well formed. A worker that keeps to the protocol
/// causes none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportRefusal {
    /// The attempt is another worker's.
    #[error("the attempt is not its own")]
    NotItsOwn,
    /// It returns what it said it had started, and a start cannot be undone.
    #[error("it returns an attempt that it has started")]
    HasStarted,
}

impl Ledger {
    /// Records what a worker reports about an attempt.
    ///
    /// # Errors
    /// [`ReportRefusal`] when it contradicts what is recorded; nothing was changed then.
    pub fn report(
        &mut self,
        worker: WorkerId,
        fence: Fence,
        what: &What,
    ) -> Result<(), ReportRefusal> {
        let known = self.attempt(fence);
        if known.is_some_and(|row| row.worker != worker) {
            return Err(ReportRefusal::NotItsOwn);
        }
        let known = known.cloned();
        match what {
            What::Started {
                pid,
                started_at,
                not_enforced,
            } => {
                let pid = (*pid > 0).then_some(*pid);
                if self.started(fence, *started_at, pid, not_enforced.clone()) == Applied::Fenced {
                    self.message(
                        worker,
                        Message::Stop {
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
                    log: Some((ended.log_end, ended.log_crc32c)),
                    not_enforced: ended.not_enforced.clone(),
                    refused: false,
                };
                // An attempt whose job was deleted is acknowledged as well: nobody wants its result.
                self.ended(fence, &ended.facts, report);
                self.message(worker, Message::ResultCommitted(fence));
            }
            What::SlotFreed => {
                if self.attempt_event(fence, AttemptEvent::SlotFreed) == Applied::Recorded {
                    self.dispatch();
                }
            }
            What::Returned { returned: true, .. }
                if known
                    .as_ref()
                    .is_some_and(|row| row.attempt.state == AttemptState::Running) =>
            {
                return Err(ReportRefusal::HasStarted);
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
                self.ended(fence, &facts, report);
            }
            What::Returned {
                returned: false, ..
            } => {
                self.attempt_event(fence, AttemptEvent::ReturnRefused);
            }
            What::Silence(told) => self.silent(fence, told),
            What::Checkpoint(told) => {
                self.checkpoint(worker, fence, told);
            }
            What::Resumes(resumes) => {
                self.resumes(fence, resumes);
            }
            What::Unfit(_)
                if known
                    .as_ref()
                    .is_some_and(|row| row.attempt.state == AttemptState::Running) =>
            {
                return Err(ReportRefusal::HasStarted);
            }
            // It goes back at once: the GPU was told as faulty before, and is given to nobody.
            What::Unfit(message) => {
                let facts = Facts {
                    message: message.clone(),
                    ..Facts::of(End::NeverStarted)
                };
                self.ended(fence, &facts, EndReport::default());
            }
            What::NotSent => {
                self.ended(fence, &Facts::of(End::NeverStarted), EndReport::default());
            }
            What::SlotStuck { pids } => {
                if let Some(row) = known.filter(|row| row.attempt.slot_held) {
                    self.tell(NewEvent {
                        job: Some(row.job),
                        attempt: Some(row.number),
                        kind: "stuck",
                        message: stuck(pids, &row.worker_name),
                        actor: worker_actor(&row.worker_name),
                        worker: row.worker_name,
                    });
                }
            }
            What::PauseChanged(paused) => {
                let applied = self.attempt_event(fence, AttemptEvent::Paused(*paused));
                if let (Applied::Recorded, Some(row)) = (applied, known) {
                    let (kind, message) = match paused {
                        true => ("paused", "its processes were frozen"),
                        false => ("resumed", "its processes go on"),
                    };
                    self.tell(NewEvent {
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
        Ok(())
    }
}

impl Ledger {
    /// Notes how far a silence has come, and has people told of what is new.
    fn silent(&mut self, fence: Fence, told: &silence::Told) {
        let now = self.now();
        let Some(row) = self.attempts.get_mut(&fence) else {
            return;
        };
        if row.attempt.state == AttemptState::Ended {
            return;
        }
        let Some((state, is_new)) = silence::step(row.silence.as_ref(), told, now) else {
            return;
        };
        row.silence = Some(state.clone());
        let row = row.clone();
        self.touched_attempts.insert(fence);
        self.changed(row.job);
        if !is_new {
            return;
        }
        if let Some((kind, message)) = silence::entry(told) {
            self.tell(NewEvent {
                job: Some(row.job),
                attempt: Some(row.number),
                kind,
                message,
                actor: worker_actor(&row.worker_name),
                worker: row.worker_name.clone(),
            });
        }
        let about = notice::job::About {
            job: row.job,
            attempt: Some(row.number),
            worker: &row.worker_name,
            wish: self.job(row.job).map_or(Wish::Default, |job| job.wish),
            success_after: self.success_after,
        };
        if let Some(notice) = notice::job::silent(&about, &state, told.lasted) {
            self.notice(notice);
        }
    }
}

/// Most process ids that a sentence names.
const MAX_NAMED: usize = 5;

fn stuck(pids: &[i32], worker: &str) -> String {
    let named: Vec<_> = pids.iter().take(MAX_NAMED).map(i32::to_string).collect();
    let more = match pids.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let (processes, they) = match pids.len() {
        1 => ("process", "it holds"),
        _ => ("processes", "they hold"),
    };
    format!(
        "{processes} {}{more} on {worker} cannot be ended, even by force: {they} the slot until the \
         kernel lets go or the machine is restarted",
        named.join(", ")
    )
}
