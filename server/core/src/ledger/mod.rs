//! Jobs and attempts inside one transaction: what is loaded is changed by events, and what is to be
//! done once everything is committed is gathered. The shell loads the rows under lock, writes back
//! what [`Ledger::close`] returns guarded by what was read, and only then acts.

mod checkpoint;
mod end;
mod greeting;
mod report;
mod row;
mod silence;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

pub use end::EndReport;
pub use greeting::{Answer, Greeted, Present};
pub use report::{EndedReport, ReportRefusal, What};
pub use row::{AttemptRow, JobRow, NewEvent, Which};
pub use silence::{Current, Holder, Lapsed, lapsed};
pub use waiting::Settled;

use crate::attempt::{self, AttemptEvent, AttemptRefusal, AttemptState};
use crate::checkpoint::{Answer as CheckpointAnswer, CheckpointId, CheckpointRow, Damaged};
use crate::gpu::Trial;
use crate::id::{Fence, JobId, WorkerId};
use crate::job::{self, JobEffect, JobEvent, JobRefusal, JobState};
use crate::notice::{self, Notice};
use crate::outcome::StopCause;
use crate::retry::Backoff;

/// Who acts when nobody asked.
pub const COORDINATOR: &str = "coordinator";

/// What became of an event about an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It was recorded.
    Recorded,
    /// Everything was that way already.
    Known,
    /// The attempt is over or gone: whoever speaks of it as alive must stop it.
    Fenced,
}

/// Jobs and attempts inside one transaction.
#[derive(Debug)]
pub struct Ledger {
    now: DateTime<Utc>,
    backoff: Backoff,
    jobs: BTreeMap<JobId, JobRow>,
    attempts: BTreeMap<Fence, AttemptRow>,
    touched_jobs: BTreeSet<JobId>,
    touched_attempts: BTreeSet<Fence>,
    events: Vec<NewEvent>,
    notices: Vec<Notice>,
    success_after: TimeDelta,
    checkpoints: Vec<CheckpointRow>,
    damaged: Vec<Damaged>,
    resumed: Vec<(Fence, String)>,
    trials: Vec<GpuTrial>,
    /// Overrides the time between the stop signal and force of what is stopped here.
    grace: Option<Duration>,
    after: AfterCommit,
}

/// What is said to a worker about one of its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Give it back if it has not started.
    Revoke(Fence),
    /// Stop it.
    Stop {
        /// The attempt.
        fence: Fence,
        /// Why.
        cause: StopCause,
        /// Overrides the job's time between the stop signal and force.
        grace: Option<Duration>,
    },
    /// Its result is committed.
    ResultCommitted(Fence),
    /// Answers what was told of a checkpoint.
    CheckpointAnswered {
        /// The checkpoint.
        id: CheckpointId,
        /// What became of it here.
        answer: CheckpointAnswer,
    },
    /// Freeze or thaw it.
    SetPaused {
        /// The attempt.
        fence: Fence,
        /// True freezes.
        paused: bool,
    },
}

/// An attempt that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over {
    /// The attempt.
    pub fence: Fence,
    /// Its worker.
    pub worker: WorkerId,
    /// Its run time, when the worker measured it.
    pub duration: Option<Duration>,
}

/// What is to be done once a transaction is committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AfterCommit {
    /// What to tell workers, in order.
    pub messages: Vec<(WorkerId, Message)>,
    /// Jobs to be read again by those who watch them.
    pub changed: BTreeSet<JobId>,
    /// There may be something to assign.
    pub dispatch: bool,
    /// The earliest end of a wait that began.
    pub wake_at: Option<DateTime<Utc>>,
    /// Jobs that have ended and that others wait for.
    pub ended: Vec<JobId>,
    /// Attempts that have ended.
    pub over: Vec<Over>,
    /// There is something to tell people.
    pub notices: bool,
}

/// What the end of an attempt tells about a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuTrial {
    /// Whose GPU it is.
    pub worker: WorkerId,
    /// Its UUID.
    pub gpu: String,
    /// What was found.
    pub trial: Trial,
}

/// What a transaction has to write, and what follows its commit.
#[derive(Clone, Debug)]
pub struct Closed {
    /// Jobs that changed.
    pub jobs: Vec<JobRow>,
    /// Attempts that changed.
    pub attempts: Vec<AttemptRow>,
    /// New history, in order.
    pub events: Vec<NewEvent>,
    /// What people are to be told, in order.
    pub notices: Vec<Notice>,
    /// Checkpoints that are new or of which more is known, in order.
    pub checkpoints: Vec<CheckpointRow>,
    /// Checkpoints that turned out to be damaged.
    pub damaged: Vec<Damaged>,
    /// Attempts of which it is known now what they resume from: the folder, empty to begin afresh.
    pub resumed: Vec<(Fence, String)>,
    /// What has been tried on GPUs, in order.
    pub trials: Vec<GpuTrial>,
    /// What to do after the commit, and only then.
    pub after: AfterCommit,
}

impl Closed {
    /// True when there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
            && self.attempts.is_empty()
            && self.events.is_empty()
            && self.notices.is_empty()
            && self.checkpoints.is_empty()
            && self.resumed.is_empty()
    }
}

impl Ledger {
    /// Begins with rows that the caller holds the locks of.
    pub fn new(
        now: DateTime<Utc>,
        backoff: Backoff,
        jobs: impl IntoIterator<Item = JobRow>,
        attempts: impl IntoIterator<Item = AttemptRow>,
    ) -> Self {
        Self {
            now,
            backoff,
            jobs: jobs.into_iter().map(|row| (row.id, row)).collect(),
            attempts: attempts.into_iter().map(|row| (row.fence, row)).collect(),
            touched_jobs: BTreeSet::new(),
            touched_attempts: BTreeSet::new(),
            events: Vec::new(),
            notices: Vec::new(),
            success_after: notice::job::SUCCESS_AFTER,
            checkpoints: Vec::new(),
            damaged: Vec::new(),
            resumed: Vec::new(),
            trials: Vec::new(),
            grace: None,
            after: AfterCommit::default(),
        }
    }

    /// The time at which everything here happens.
    pub fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// A job that was loaded.
    pub fn job(&self, job: JobId) -> Option<&JobRow> {
        self.jobs.get(&job)
    }

    /// An attempt that was loaded.
    pub fn attempt(&self, fence: Fence) -> Option<&AttemptRow> {
        self.attempts.get(&fence)
    }

    /// The attempt of a job that has not ended.
    pub fn current(&self, job: JobId) -> Option<&AttemptRow> {
        self.attempts
            .values()
            .find(|row| row.job == job && row.attempt.state != AttemptState::Ended)
    }

    /// Adds an entry to the history.
    pub fn tell(&mut self, event: NewEvent) {
        self.events.push(event);
    }

    /// Has people told of something.
    pub fn notice(&mut self, notice: Notice) {
        self.after.notices = true;
        self.notices.push(notice);
    }

    /// From which run time on a success is told.
    pub fn set_success_after(&mut self, success_after: TimeDelta) {
        self.success_after = success_after;
    }

    /// Asks for a message to be sent once everything is committed.
    pub fn message(&mut self, worker: WorkerId, message: Message) {
        self.after.messages.push((worker, message));
    }

    /// Notes that a job is to be read again by those who watch it.
    pub fn changed(&mut self, job: JobId) {
        self.after.changed.insert(job);
    }

    /// Looks for work to assign once everything is committed.
    pub fn dispatch(&mut self) {
        self.after.dispatch = true;
    }

    /// Has a worker start a job as soon as it can, beside its slots.
    pub fn run_now(&mut self, job: JobId, worker: WorkerId) {
        if let Some(row) = self.jobs.get_mut(&job) {
            row.run_now_on = Some(worker);
            self.touched_jobs.insert(job);
            self.after.dispatch = true;
        }
    }

    /// Applies an event to a job.
    pub fn job_event(
        &mut self,
        id: JobId,
        event: &JobEvent,
        actor: &str,
    ) -> Result<(), JobRefusal> {
        let row = self.jobs.get_mut(&id).ok_or(JobRefusal::NoAttempt)?;
        let step = job::step(&row.job, event, self.now)?;
        let wish = row.wish;
        let before = std::mem::replace(&mut row.job, step.job);
        // A worker that had started it before it was asked back has fulfilled the wish as well.
        if row.job.state.is_final() || row.job.state == JobState::Running {
            row.run_now_on = None;
        }
        let after = row.job.clone();
        self.touched_jobs.insert(id);
        self.after.changed.insert(id);
        let (number, worker, silence) = match self.latest(id) {
            Some(attempt) => (
                Some(attempt.number),
                attempt.worker_name.clone(),
                attempt.silence.clone(),
            ),
            None => (None, String::new(), None),
        };
        let about = notice::job::About {
            job: id,
            attempt: number,
            worker: &worker,
            wish,
            success_after: self.success_after,
        };
        if let Some(mut told) = notice::job::told(&about, &before, event, &after) {
            notice::job::add_silence(&mut told, silence.as_ref(), self.now);
            self.notice(told);
        }
        for entry in step.entries {
            self.events.push(NewEvent {
                job: Some(id),
                attempt: number,
                worker: worker.clone(),
                kind: entry.kind,
                message: entry.message,
                actor: actor.to_owned(),
            });
        }
        for effect in step.effects {
            self.job_effect(id, effect);
        }
        Ok(())
    }

    /// Gives what is stopped in this transaction another time between the stop signal and force.
    pub fn set_grace(&mut self, grace: Option<Duration>) {
        self.grace = grace;
    }

    /// Notes what a job's step asked for.
    pub fn job_effect(&mut self, id: JobId, effect: JobEffect) {
        match effect {
            JobEffect::Dispatch => self.after.dispatch = true,
            JobEffect::WakeAt(at) => {
                self.after.wake_at = Some(self.after.wake_at.map_or(at, |other| other.min(at)));
            }
            // Attempts are read under the job's lock, which keeps new dependents waiting: what they
            // say about dependents is so.
            JobEffect::ResolveDependents => {
                if self.latest(id).is_none_or(|row| row.has_dependents) {
                    self.after.ended.push(id);
                }
            }
            JobEffect::Interrupt => {
                let Some(row) = self.current(id) else { return };
                let (fence, worker) = (row.fence, row.worker);
                self.message(
                    worker,
                    Message::Stop {
                        fence,
                        cause: StopCause::Drill,
                        grace: None,
                    },
                );
            }
            JobEffect::AskBack | JobEffect::Stop => {
                let Some(row) = self.current(id) else { return };
                let (fence, worker) = (row.fence, row.worker);
                if row.attempt.state == AttemptState::Assigned {
                    self.ask_back(fence);
                    return;
                }
                self.attempt_event(fence, AttemptEvent::AskStop);
                // Asked a second time, the worker is told a second time: it may bring another grace.
                let grace = self.grace;
                self.message(
                    worker,
                    Message::Stop {
                        fence,
                        cause: StopCause::Cancel,
                        grace,
                    },
                );
            }
        }
    }

    /// Asks for an attempt back that has not started.
    pub fn ask_back(&mut self, fence: Fence) {
        let Some(row) = self.attempts.get(&fence) else {
            return;
        };
        if row.attempt.state != AttemptState::Assigned {
            return;
        }
        let worker = row.worker;
        if self.attempt_event(fence, AttemptEvent::AskBack) == Applied::Recorded {
            self.message(worker, Message::Revoke(fence));
        }
    }

    /// Applies an event to an attempt alone.
    pub fn attempt_event(&mut self, fence: Fence, event: AttemptEvent) -> Applied {
        let Some(row) = self.attempts.get_mut(&fence) else {
            return Applied::Fenced;
        };
        match attempt::step(&row.attempt, event) {
            Ok(next) => {
                row.attempt = next;
                self.touched_attempts.insert(fence);
                self.after.changed.insert(row.job);
                Applied::Recorded
            }
            Err(AttemptRefusal::Ended) => Applied::Fenced,
            Err(AttemptRefusal::Already | AttemptRefusal::NotStarted | AttemptRefusal::Started) => {
                Applied::Known
            }
        }
    }

    /// An attempt's process was started.
    pub fn started(
        &mut self,
        fence: Fence,
        started_at: Option<DateTime<Utc>>,
        pid: Option<i32>,
        not_enforced: Vec<String>,
    ) -> Applied {
        let Some(row) = self.attempts.get(&fence) else {
            return Applied::Fenced;
        };
        let (job, actor) = (row.job, worker_actor(&row.worker_name));
        let at = started_at
            .unwrap_or(self.now)
            .clamp(row.assigned_at, self.now.max(row.assigned_at));
        let applied = self.attempt_event(fence, AttemptEvent::Started(at));
        if applied != Applied::Fenced
            && let Some(row) = self.attempts.get_mut(&fence)
            && (pid.is_some() && row.pid != pid || !not_enforced.is_empty())
        {
            row.pid = pid.or(row.pid);
            if !not_enforced.is_empty() {
                row.not_enforced = not_enforced;
            }
            self.touched_attempts.insert(fence);
        }
        if applied == Applied::Recorded {
            let _ = self.job_event(job, &JobEvent::AttemptStarted(at), &actor);
        }
        applied
    }

    fn latest(&self, job: JobId) -> Option<&AttemptRow> {
        self.attempts.values().rev().find(|row| row.job == job)
    }

    /// What is to be written.
    pub fn close(mut self) -> Closed {
        Closed {
            jobs: self
                .touched_jobs
                .iter()
                .filter_map(|id| self.jobs.remove(id))
                .collect(),
            attempts: self
                .touched_attempts
                .iter()
                .filter_map(|fence| self.attempts.remove(fence))
                .collect(),
            events: self.events,
            notices: self.notices,
            checkpoints: self.checkpoints,
            damaged: self.damaged,
            resumed: self.resumed,
            trials: self.trials,
            after: self.after,
        }
    }
}

/// How a worker is called in the history.
fn worker_actor(name: &str) -> String {
    format!("worker {name}")
}
