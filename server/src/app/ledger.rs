//! Applies events to jobs and attempts inside one transaction, and gathers what is to be done once
//! it is committed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use qctl_server_core::attempt::{self, Asked, AttemptEvent, AttemptRefusal};
use qctl_server_core::job::{self, JobEffect, JobEvent, JobRefusal};
use qctl_server_core::outcome::{End, outcome};
use qctl_server_core::retry::{Backoff, Ended};
use qctl_server_core::{
    AttemptNumber, AttemptState, Facts, Fence, JobId, JobState, Outcome, OutcomeKind, StopCause,
    WorkerId,
};
use sqlx::PgConnection;

use super::{App, Change};
use crate::sessions::ToWorker;
use crate::store::StoreError;
use crate::store::ledger::{AttemptRow, JobRow, NewEvent, Which, load, save};

/// Who acts when nobody asked.
pub(super) const COORDINATOR: &str = "coordinator";

/// What a worker tells of an attempt's end beside the facts of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EndReport {
    /// When the process was started, by the worker's clock.
    pub(super) started_at: Option<DateTime<Utc>>,
    /// When it ended, by the worker's clock.
    pub(super) ended_at: Option<DateTime<Utc>>,
    /// Run time by the worker's monotonic clock.
    pub(super) duration: Option<Duration>,
    /// Process id.
    pub(super) pid: Option<i32>,
    /// Directory with its checkpoint; empty when it left none.
    pub(super) checkpoint: String,
    /// Bytes of its whole output and the checksum over them; `None` when nobody knows.
    pub(super) log: Option<(i64, u32)>,
    /// Limits that could not be enforced.
    pub(super) not_enforced: Vec<String>,
    /// Its worker refused it unasked.
    pub(super) refused: bool,
}

/// What became of an event about an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    /// It was recorded.
    Recorded,
    /// Everything was that way already.
    Known,
    /// The attempt is over or gone: whoever speaks of it as alive must stop it.
    Fenced,
}

/// Jobs and attempts inside one transaction.
pub(super) struct Ledger {
    now: DateTime<Utc>,
    backoff: Backoff,
    jobs: BTreeMap<JobId, JobRow>,
    attempts: BTreeMap<Fence, AttemptRow>,
    touched_jobs: BTreeSet<JobId>,
    touched_attempts: BTreeSet<Fence>,
    events: Vec<NewEvent>,
    /// Overrides the time between the stop signal and force of what is stopped here.
    grace: Option<Duration>,
    after: AfterCommit,
}

/// What is to be done once a transaction is committed.
#[derive(Debug, Default)]
pub(super) struct AfterCommit {
    messages: Vec<(WorkerId, ToWorker)>,
    changed: BTreeSet<JobId>,
    dispatch: bool,
    wake_at: Option<DateTime<Utc>>,
    /// Jobs that have ended, for those that wait for them.
    ended: Vec<JobId>,
    /// Attempts that have ended, with their workers and run times.
    over: Vec<(Fence, WorkerId, Option<Duration>)>,
}

impl Ledger {
    /// Locks and loads what is to be changed.
    pub(super) async fn open(
        app: &App,
        conn: &mut PgConnection,
        which: Which<'_>,
    ) -> Result<Self, StoreError> {
        let (jobs, attempts) = load(conn, which).await?;
        Ok(Self {
            now: app.clock.now(),
            backoff: Backoff {
                base: app.settings.retry_base,
                most: app.settings.retry_most,
                random: random_unit(),
            },
            jobs: jobs.into_iter().map(|row| (row.id, row)).collect(),
            attempts: attempts.into_iter().map(|row| (row.fence, row)).collect(),
            touched_jobs: BTreeSet::new(),
            touched_attempts: BTreeSet::new(),
            events: Vec::new(),
            grace: None,
            after: AfterCommit::default(),
        })
    }

    /// A job that was loaded.
    pub(super) fn job(&self, job: JobId) -> Option<&JobRow> {
        self.jobs.get(&job)
    }

    /// An attempt that was loaded.
    pub(super) fn attempt(&self, fence: Fence) -> Option<&AttemptRow> {
        self.attempts.get(&fence)
    }

    /// The attempt of a job that has not ended.
    pub(super) fn current(&self, job: JobId) -> Option<&AttemptRow> {
        self.attempts
            .values()
            .find(|row| row.job == job && row.attempt.state != AttemptState::Ended)
    }

    /// Adds an entry to the history.
    pub(super) fn tell(&mut self, event: NewEvent) {
        self.events.push(event);
    }

    /// Asks for a message to be sent once everything is committed.
    pub(super) fn message(&mut self, worker: WorkerId, message: ToWorker) {
        self.after.messages.push((worker, message));
    }

    /// Notes that a job is to be read again by those who watch it.
    pub(super) fn changed(&mut self, job: JobId) {
        self.after.changed.insert(job);
    }

    /// Looks for work to assign once everything is committed.
    pub(super) fn dispatch(&mut self) {
        self.after.dispatch = true;
    }

    /// Has a worker start a job as soon as it can, beside its slots.
    pub(super) fn run_now(&mut self, job: JobId, worker: WorkerId) {
        if let Some(row) = self.jobs.get_mut(&job) {
            row.run_now_on = Some(worker);
            self.touched_jobs.insert(job);
            self.after.dispatch = true;
        }
    }

    /// Applies an event to a job.
    pub(super) fn job_event(
        &mut self,
        id: JobId,
        event: &JobEvent,
        actor: &str,
    ) -> Result<(), JobRefusal> {
        let row = self.jobs.get_mut(&id).ok_or(JobRefusal::NoAttempt)?;
        let step = job::step(&row.job, event, self.now)?;
        row.job = step.job;
        // A worker that had started it before it was asked back has fulfilled the wish as well.
        if row.job.state.is_final() || row.job.state == JobState::Running {
            row.run_now_on = None;
        }
        self.touched_jobs.insert(id);
        self.after.changed.insert(id);
        let (number, worker) = match self.latest(id) {
            Some(attempt) => (Some(attempt.number), attempt.worker_name.clone()),
            None => (None, String::new()),
        };
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
    pub(super) fn set_grace(&mut self, grace: Option<Duration>) {
        self.grace = grace;
    }

    /// Notes what a job's step asked for.
    pub(super) fn job_effect(&mut self, id: JobId, effect: JobEffect) {
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
                    ToWorker::Stop {
                        fence,
                        cause: StopCause::Cancel,
                        grace,
                    },
                );
            }
        }
    }

    /// Asks for an attempt back that has not started.
    pub(super) fn ask_back(&mut self, fence: Fence) {
        let Some(row) = self.attempts.get(&fence) else {
            return;
        };
        if row.attempt.state != AttemptState::Assigned {
            return;
        }
        let worker = row.worker;
        if self.attempt_event(fence, AttemptEvent::AskBack) == Applied::Recorded {
            self.message(worker, ToWorker::Revoke(fence));
        }
    }

    /// Applies an event to an attempt alone.
    pub(super) fn attempt_event(&mut self, fence: Fence, event: AttemptEvent) -> Applied {
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
    pub(super) fn started(
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

    /// An attempt is over. A result that comes after the attempt was given up decides its job only if
    /// no successor runs.
    pub(super) fn ended(&mut self, fence: Fence, facts: &Facts, report: EndReport) -> Applied {
        let Some(row) = self.attempts.get(&fence) else {
            return Applied::Fenced;
        };
        let outcome = outcome(facts);
        if row.attempt.state == AttemptState::Ended {
            return self.ended_late(fence, outcome, &report);
        }
        let (job, worker, actor) = (row.job, row.worker, worker_actor(&row.worker_name));
        let earliest = row.assigned_at;
        let latest = self.now.max(earliest);
        let never_started = matches!(facts.end, End::NeverStarted | End::CannotStart);
        let started_at = row.attempt.started_at.or(match never_started {
            true => None,
            false => report.started_at.map(|at| at.clamp(earliest, latest)),
        });
        let ended_at = report.ended_at.unwrap_or(latest).clamp(
            started_at.unwrap_or(earliest),
            latest.max(started_at.unwrap_or(earliest)),
        );
        if row.attempt.started_at.is_none()
            && let Some(at) = started_at
        {
            // The start was never heard of; the history tells it all the same.
            self.started(fence, Some(at), report.pid, Vec::new());
        }
        let refused = report.refused
            && self
                .attempt(fence)
                .is_some_and(|row| row.attempt.asked != Some(Asked::Return));
        self.attempt_event(
            fence,
            AttemptEvent::Ended {
                started_at,
                slot_held: !never_started,
            },
        );
        let checkpoint = !report.checkpoint.is_empty();
        if let Some(row) = self.attempts.get_mut(&fence) {
            row.ended_at = Some(ended_at);
            row.duration_us = report.duration.map(micros);
            row.pid = report.pid.or(row.pid);
            row.outcome = Some(outcome.clone());
            row.checkpoint = report.checkpoint;
            if !report.not_enforced.is_empty() {
                row.not_enforced = report.not_enforced;
            }
            if let Some((end, crc)) = report.log {
                row.log_end = Some(end);
                row.log_crc32c = Some(crc.into());
            }
        }
        self.after.over.push((fence, worker, report.duration));
        self.after.dispatch = true;
        let came_back = outcome.kind == OutcomeKind::NeverStarted;
        let event = JobEvent::AttemptEnded(
            Ended {
                outcome,
                started_at,
                ended_at,
                checkpoint,
                refused,
                cancel_requested: false,
            },
            self.backoff,
        );
        if self.job_event(job, &event, &actor).is_ok() && came_back {
            self.adopt_late_result(job);
        }
        Applied::Recorded
    }

    fn ended_late(&mut self, fence: Fence, outcome: Outcome, report: &EndReport) -> Applied {
        let Some(row) = self.attempts.get_mut(&fence) else {
            return Applied::Fenced;
        };
        if row.log_end.is_some() || report.log.is_none() {
            return Applied::Known;
        }
        if outcome.kind == OutcomeKind::NeverStarted {
            // It was returned, and its record only says so again: now the record can go.
            row.log_end = report.log.map(|(end, _)| end);
            row.log_crc32c = report.log.map(|(_, crc)| crc.into());
            self.touched_attempts.insert(fence);
            return Applied::Known;
        }
        let (job, actor) = (row.job, worker_actor(&row.worker_name));
        let event = NewEvent {
            job: Some(job),
            attempt: Some(row.number),
            worker: row.worker_name.clone(),
            kind: "late_result",
            message: format!(
                "the attempt had been given up, and ended after all: {}",
                outcome.message
            ),
            actor: actor.clone(),
        };
        if let Some((end, crc)) = report.log {
            row.log_end = Some(end);
            row.log_crc32c = Some(crc.into());
        }
        let decides = matches!(outcome.kind, OutcomeKind::Succeeded | OutcomeKind::Failed);
        row.late_result = Some(outcome.clone());
        self.touched_attempts.insert(fence);
        self.after.changed.insert(job);
        self.events.push(event);
        if decides {
            let _ = self.job_event(job, &JobEvent::LateResult(outcome), &actor);
        }
        Applied::Recorded
    }

    /// A successor came back: the late result of its predecessor decides now.
    fn adopt_late_result(&mut self, job: JobId) {
        let late = self
            .attempts
            .values()
            .rev()
            .filter(|row| row.job == job)
            .find_map(|row| {
                row.late_result
                    .clone()
                    .map(|outcome| (outcome, row.worker_name.clone()))
            });
        if let Some((outcome, worker)) = late
            && matches!(outcome.kind, OutcomeKind::Succeeded | OutcomeKind::Failed)
        {
            let _ = self.job_event(job, &JobEvent::LateResult(outcome), &worker_actor(&worker));
        }
    }

    fn latest(&self, job: JobId) -> Option<&AttemptRow> {
        self.attempts.values().rev().find(|row| row.job == job)
    }

    /// Writes what changed. What it returns is carried out after the commit.
    pub(super) async fn save(self, conn: &mut PgConnection) -> Result<AfterCommit, StoreError> {
        let jobs: Vec<&JobRow> = self
            .touched_jobs
            .iter()
            .filter_map(|id| self.jobs.get(id))
            .collect();
        let attempts: Vec<&AttemptRow> = self
            .touched_attempts
            .iter()
            .filter_map(|fence| self.attempts.get(fence))
            .collect();
        if !(jobs.is_empty() && attempts.is_empty() && self.events.is_empty()) {
            save(conn, self.now, &jobs, &attempts, &self.events).await?;
        }
        Ok(self.after)
    }
}

impl App {
    /// Carries out what a committed transaction asked for.
    pub(super) fn carry_out(&self, after: AfterCommit) {
        for (fence, worker, duration) in after.over {
            self.live.ended(fence);
            if let Some(duration) = duration {
                self.turnover.note(worker, duration);
            }
        }
        for (worker, message) in after.messages {
            self.sessions.send(worker, message);
        }
        if after.dispatch {
            self.wake.dispatch();
        }
        if let Some(at) = after.wake_at {
            self.wake.at(at);
        }
        if !after.ended.is_empty() {
            self.wake.ended(&after.ended);
        }
        if !after.changed.is_empty() {
            self.changes
                .tell(Change::Jobs(after.changed.into_iter().collect()));
        }
    }
}

/// How a worker is called in the history.
pub(super) fn worker_actor(name: &str) -> String {
    format!("worker {name}")
}

/// An entry about a worker or the queue.
pub(super) fn general_event(
    worker: &str,
    kind: &'static str,
    message: String,
    actor: &str,
) -> NewEvent {
    NewEvent {
        job: None,
        attempt: None::<AttemptNumber>,
        worker: worker.to_owned(),
        kind,
        message,
        actor: actor.to_owned(),
    }
}

fn micros(length: Duration) -> i64 {
    i64::try_from(length.as_micros()).unwrap_or(i64::MAX)
}

/// A random number from 0 to 1. Without randomness of the system the middle will do: it only spreads
/// retries.
fn random_unit() -> f64 {
    match getrandom::u32() {
        Ok(random) => f64::from(random) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}
