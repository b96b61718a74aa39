//! The end of an attempt, in time or too late.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Applied, AttemptRow, COORDINATOR, GpuTrial, Ledger, NewEvent, Over, worker_actor};
use crate::attempt::{Asked, AttemptEvent, AttemptState};
use crate::gpu::{Trial, blames_device};
use crate::guard::{Guard, is_broken};
use crate::id::Fence;
use crate::job::{JobEvent, Late, LateResult};
use crate::outcome::{Cause, End, Facts, Outcome, OutcomeKind, outcome};
use crate::retry::Ended;

/// What a worker tells of an attempt's end beside the facts of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndReport {
    /// When the process was started, by the worker's clock.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended, by the worker's clock.
    pub ended_at: Option<DateTime<Utc>>,
    /// Run time by the worker's monotonic clock.
    pub duration: Option<Duration>,
    /// Process id.
    pub pid: Option<i32>,
    /// Bytes of its whole output and the checksum over them; `None` when nobody knows.
    pub log: Option<(i64, u32)>,
    /// Limits that could not be enforced.
    pub not_enforced: Vec<String>,
    /// Its worker refused it unasked.
    pub refused: bool,
}

impl Ledger {
    /// An attempt is over. A result that comes after the attempt was given up decides its job only if
    /// no successor runs.
    pub fn ended(&mut self, fence: Fence, facts: &Facts, report: EndReport) -> Applied {
        let Some(row) = self.attempts.get(&fence) else {
            return Applied::Fenced;
        };
        let outcome = outcome(facts);
        if row.attempt.state == AttemptState::Ended && !is_broken(Guard::Fence) {
            return self.ended_late(fence, facts, outcome, &report);
        }
        let (job, worker) = (row.job, row.worker);
        let actor = match facts.end {
            // Nobody heard of its worker: that is why.
            End::GivenUp | End::RecordGone => COORDINATOR.to_owned(),
            _ => worker_actor(&row.worker_name),
        };
        let never_started = never_started(facts);
        let (started_at, ended_at) = lived(row, facts, &report, self.now);
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
        let mut checkpoint = false;
        if let Some(row) = self.attempts.get_mut(&fence) {
            row.ended_at = Some(ended_at);
            row.duration_us = report.duration.map(micros);
            row.pid = report.pid.or(row.pid);
            row.outcome = Some(outcome.clone());
            checkpoint = row.published > 0;
            if !report.not_enforced.is_empty() {
                row.not_enforced = report.not_enforced;
            }
            if let Some((end, crc)) = report.log {
                row.log_end = Some(end);
                row.log_crc32c = Some(crc.into());
            }
        }
        self.gpus_tried(fence, &outcome, facts);
        self.after.over.push(Over {
            fence,
            worker,
            duration: report.duration,
        });
        self.after.dispatch = true;
        let event = JobEvent::AttemptEnded(
            Ended {
                outcome,
                started_at,
                ended_at,
                checkpoint,
                gpu_out_of_memory: facts.gpu_out_of_memory,
                gpu: facts.gpu.clone(),
                refused,
                cancel_requested: false,
            },
            self.backoff,
        );
        let _ = self.job_event(job, &event, &actor);
        Applied::Recorded
    }

    /// What the end of an attempt says about its GPUs.
    fn gpus_tried(&mut self, fence: Fence, outcome: &Outcome, facts: &Facts) {
        let Some(row) = self.attempts.get(&fence) else {
            return;
        };
        let (worker, job) = (row.worker, row.job);
        let tried = |gpu: &String, trial| GpuTrial {
            worker,
            gpu: gpu.clone(),
            trial,
        };
        match (outcome.kind, outcome.cause, &facts.gpu) {
            (OutcomeKind::Succeeded, _, _) => {
                let gpus = row.gpus.iter();
                self.trials
                    .extend(gpus.map(|gpu| tried(gpu, Trial::Passed)));
            }
            (_, Cause::GpuFault, Some(fault))
                if blames_device(fault) && row.gpus.contains(&fault.gpu) =>
            {
                let trial = Trial::Failed {
                    job,
                    fault: fault.clone(),
                };
                self.trials.push(tried(&fault.gpu, trial));
                self.after.notices = true;
            }
            _ => {}
        }
    }

    fn ended_late(
        &mut self,
        fence: Fence,
        facts: &Facts,
        outcome: Outcome,
        report: &EndReport,
    ) -> Applied {
        let now = self.now;
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
        let first_start = row.attempt.started_at.unwrap_or(row.assigned_at);
        let (started_at, ended_at) = lived(row, facts, report, now);
        let late = Late {
            attempt: row.number,
            worker: row.worker_name.clone(),
            outcome: outcome.clone(),
            started_at,
            ended_at,
            gpu: facts.gpu.clone(),
        };
        row.late_result = Some(outcome);
        self.touched_attempts.insert(fence);
        self.after.changed.insert(job);
        self.events.push(event);
        let is_superseded = self
            .job(job)
            .is_some_and(|row| row.job.started_at > Some(first_start));
        let result = LateResult {
            late,
            is_superseded,
            backoff: self.backoff,
        };
        let _ = self.job_event(job, &JobEvent::LateResult(result), &actor);
        Applied::Recorded
    }
}

fn never_started(facts: &Facts) -> bool {
    matches!(facts.end, End::NeverStarted | End::CannotStart)
}

/// When an attempt was started, if it was, and when it ended. The clock of its worker may be wrong, so
/// that neither is before its assignment or after `now`.
fn lived(
    row: &AttemptRow,
    facts: &Facts,
    report: &EndReport,
    now: DateTime<Utc>,
) -> (Option<DateTime<Utc>>, DateTime<Utc>) {
    let earliest = row.assigned_at;
    let latest = now.max(earliest);
    let started_at = row.attempt.started_at.or(match never_started(facts) {
        true => None,
        false => report.started_at.map(|at| at.clamp(earliest, latest)),
    });
    let first = started_at.unwrap_or(earliest);
    let ended_at = report
        .ended_at
        .unwrap_or(latest)
        .clamp(first, latest.max(first));
    (started_at, ended_at)
}

fn micros(length: Duration) -> i64 {
    i64::try_from(length.as_micros()).unwrap_or(i64::MAX)
}
