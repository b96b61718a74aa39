//! An attempt that this worker holds, put together from the facts of its segment.

use std::time::Duration;

use chrono::DateTime;
use prost_types::Timestamp;
use qctl_proto::v1::{
    Assignment, AttemptEnded, AttemptStarted, HeldAttempt, Progress, ProgressReported, SegmentPid,
    StopCause, attempt_ended, held_attempt,
};
use qctl_worker_core::adoption::Evidence;
use qctl_worker_core::progress::Reading;
use qctl_worker_core::roster::{ShimId, Waiting};
use qctl_worker_core::session::Stage;
use tokio::time::Instant;

use crate::follower::Fact;

/// Grace period of a job that names none.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// What the agent must remember of an assignment once a shim has it.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) job_id: i64,
    pub(crate) attempt: i32,
    pub(crate) boot_id: String,
    pub(crate) spool_id: String,
    pub(crate) slots: u32,
    pub(crate) beside_slots: bool,
    pub(crate) exclusive: bool,
    pub(crate) grace: Duration,
}

impl Terms {
    pub(crate) fn of(assignment: &Assignment) -> Self {
        let spec = assignment.spec.as_ref();
        let demand = spec.and_then(|spec| spec.demand);
        let grace = spec.and_then(|spec| spec.stop_grace);
        Self {
            job_id: assignment.job_id,
            attempt: assignment.attempt,
            boot_id: assignment.boot_id.clone(),
            spool_id: assignment.spool_id.clone(),
            slots: demand.map_or(1, |demand| demand.slots.max(1) as u32),
            beside_slots: assignment.beside_slots,
            exclusive: spec.is_some_and(|spec| spec.exclusive),
            grace: grace
                .and_then(|grace| Duration::try_from(grace).ok())
                .unwrap_or(DEFAULT_GRACE),
        }
    }

    /// As the roster sees it while it waits.
    pub(crate) fn waiting(&self, fence: i64) -> Waiting {
        Waiting {
            fence,
            slots: self.slots,
            beside_slots: self.beside_slots,
        }
    }
}

/// An attempt.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) terms: Terms,
    /// The shim that has it; none while it waits.
    pub(crate) shim: Option<ShimId>,
    starting: bool,
    checkpoint_dir: String,
    pid: Option<SegmentPid>,
    stopping: StopCause,
    pub(crate) paused: Option<bool>,
    /// The newest progress.
    pub(crate) progress: Option<Reading>,
    log_end: u64,
    log_crc32c: u32,
    /// When something was recorded last, in microseconds since the Unix epoch.
    wall_us: i64,
    ended: Option<AttemptEnded>,
    freed: bool,
    /// The last greeting said that processes of it may be left.
    greeted_with_slot: bool,
    /// The coordinator has the result.
    pub(crate) committed: bool,
    /// The coordinator has this much of the output.
    pub(crate) log_stored: u64,
    /// Since when nothing is owed to the coordinator.
    pub(crate) settled_at: Option<Instant>,
}

/// What changed, as far as someone must be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Nothing,
    Progress,
    Started,
    Paused,
    Ended,
    Freed,
}

impl Held {
    /// An attempt that waits.
    pub(crate) fn waiting(terms: Terms) -> Self {
        Self {
            terms,
            shim: None,
            starting: false,
            checkpoint_dir: String::new(),
            pid: None,
            stopping: StopCause::Unspecified,
            paused: None,
            progress: None,
            log_end: 0,
            log_crc32c: 0,
            wall_us: 0,
            ended: None,
            freed: false,
            greeted_with_slot: false,
            committed: false,
            log_stored: 0,
            settled_at: None,
        }
    }

    /// Takes a fact. This is the only place where an attempt's state changes.
    pub(crate) fn apply(&mut self, fence: i64, fact: &Fact) -> Change {
        match fact {
            Fact::Assigned(_) => {}
            Fact::Starting {
                checkpoint_dir,
                wall_us,
            } => {
                self.starting = true;
                self.checkpoint_dir.clone_from(checkpoint_dir);
                self.wall_us = *wall_us;
            }
            Fact::Started(pid) => {
                self.wall_us = pid.wall_us;
                self.pid = Some(pid.clone());
                return Change::Started;
            }
            Fact::Stopping(cause) => self.stopping = *cause,
            Fact::Paused(paused) => {
                self.paused = Some(*paused);
                return Change::Paused;
            }
            Fact::Output {
                end,
                crc32c,
                wall_us,
            } => {
                self.log_end = *end;
                self.log_crc32c = *crc32c;
                self.wall_us = *wall_us;
            }
            Fact::Ended(ended) if self.ended.is_none() => {
                self.ended = Some(AttemptEnded::clone(ended));
                return Change::Ended;
            }
            Fact::Void(reason) if self.ended.is_none() => {
                self.freed = true;
                self.ended = Some(AttemptEnded {
                    fence,
                    end: attempt_ended::End::NeverStarted.into(),
                    message: reason.clone(),
                    ..AttemptEnded::default()
                });
                return Change::Ended;
            }
            Fact::Freed if !self.freed => {
                self.freed = true;
                return Change::Freed;
            }
            Fact::Progress(reading) => {
                self.progress = Some(reading.clone());
                return Change::Progress;
            }
            Fact::Ended(_) | Fact::Void(_) | Fact::Freed => {}
        }
        Change::Nothing
    }

    /// How far it has come.
    pub(crate) fn stage(&self) -> Stage {
        if self.ended.is_some() {
            Stage::Ended
        } else if self.shim.is_some() {
            Stage::Running
        } else {
            Stage::Waiting
        }
    }

    /// Processes of it may be left.
    pub(crate) fn slot_held(&self) -> bool {
        self.shim.is_some() && !self.freed
    }

    /// Its output has reached the coordinator to the end, and the result too.
    pub(crate) fn settled(&self) -> bool {
        let ended = self.ended.as_ref();
        self.committed
            && self.freed
            && ended.is_some_and(|ended| self.log_stored >= ended.log_end.max(0) as u64)
    }

    /// It ended by itself with exit code 0.
    pub(crate) fn succeeded(&self) -> bool {
        self.ended.as_ref().is_some_and(|ended| {
            ended.end() == attempt_ended::End::Waited
                && ended.exit_code == Some(0)
                && ended.stop_cause() == StopCause::Unspecified
        })
    }

    /// It or an attempt before it may have left checkpoints.
    pub(crate) fn may_have_checkpoints(&self) -> bool {
        let left = |ended: &AttemptEnded| !ended.checkpoint.is_empty();
        self.terms.attempt > 1 || self.ended.as_ref().is_some_and(left)
    }

    /// What to judge it by when its shim is gone.
    pub(crate) fn evidence(&self, boot_id: &str) -> Evidence {
        let void = |ended: &AttemptEnded| ended.end() == attempt_ended::End::NeverStarted;
        Evidence {
            same_boot: self.terms.boot_id == boot_id,
            starting: self.starting,
            exit: self.ended.as_ref().is_some_and(|ended| !void(ended)),
            void: self.ended.as_ref().is_some_and(void),
            freed: self.freed,
        }
    }

    /// Its first process.
    pub(crate) fn leader(&self) -> Option<&SegmentPid> {
        self.pid.as_ref()
    }

    /// The end of an attempt whose shim is gone: nobody saw how it ended, at `now_us` at the latest.
    pub(crate) fn lost(
        &self,
        fence: i64,
        end: attempt_ended::End,
        now_us: i64,
        checkpoint: String,
        message: &str,
    ) -> AttemptEnded {
        let started_us = self.pid.as_ref().map(|pid| pid.wall_us);
        let ran_us = started_us.map(|started| (now_us - started).max(0));
        AttemptEnded {
            fence,
            end: end.into(),
            stop_cause: self.stopping.into(),
            started_at: started_us.and_then(timestamp),
            ended_at: timestamp(now_us),
            duration: ran_us
                .map(|us| Duration::from_micros(us as u64))
                .and_then(|duration| duration.try_into().ok()),
            log_end: self.log_end as i64,
            log_crc32c: self.log_crc32c,
            checkpoint,
            message: message.to_owned(),
            pid: self.pid.as_ref().map_or(0, |pid| pid.pid),
            not_enforced: self
                .pid
                .as_ref()
                .map(|pid| pid.not_enforced.clone())
                .unwrap_or_default(),
            ..AttemptEnded::default()
        }
    }

    /// Where its checkpoints go.
    pub(crate) fn checkpoint_dir(&self) -> &str {
        &self.checkpoint_dir
    }

    /// When something was recorded last, in microseconds since the Unix epoch.
    pub(crate) fn last_seen_us(&self) -> i64 {
        self.wall_us
    }

    /// Its last process ended after the greeting, which said otherwise.
    pub(crate) fn freed_since_greeting(&self) -> bool {
        self.greeted_with_slot && !self.slot_held()
    }

    /// For the greeting.
    pub(crate) fn greeting(&mut self, fence: i64) -> HeldAttempt {
        self.greeted_with_slot = self.slot_held();
        let state = match self.stage() {
            Stage::Waiting => held_attempt::State::Assigned,
            Stage::Running => held_attempt::State::Running,
            Stage::Ended => held_attempt::State::Ended,
        };
        HeldAttempt {
            fence,
            state: state.into(),
            log_end: self.log_end as i64,
            slot_held: self.slot_held(),
        }
    }

    /// Tells that it was started, once its process exists.
    pub(crate) fn started_message(&self, fence: i64) -> Option<AttemptStarted> {
        let pid = self.pid.as_ref()?;
        Some(AttemptStarted {
            fence,
            pid: pid.pid,
            started_at: timestamp(pid.wall_us),
            not_enforced: pid.not_enforced.clone(),
        })
    }

    /// Tells how far it is.
    pub(crate) fn progress_message(&self, fence: i64) -> Option<ProgressReported> {
        let reading = self.progress.as_ref()?;
        Some(ProgressReported {
            fence,
            progress: Some(Progress {
                done: reading.done,
                total: reading.total,
                unit: reading.unit.clone(),
                percent: reading.percent,
                rate: reading.rate,
                eta: reading.eta.and_then(|eta| eta.try_into().ok()),
                message: reading.message.clone(),
                source: reading.source.as_str().to_owned(),
                observed_at: i64::try_from(reading.at.as_micros())
                    .ok()
                    .and_then(timestamp),
            }),
        })
    }

    /// Tells its end.
    pub(crate) fn ended_message(&self) -> Option<&AttemptEnded> {
        self.ended.as_ref()
    }
}

/// Microseconds since the Unix epoch as the contract has it.
pub(crate) fn timestamp(wall_us: i64) -> Option<Timestamp> {
    let time = DateTime::from_timestamp_micros(wall_us)?;
    Some(Timestamp {
        seconds: time.timestamp(),
        nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap_or(0),
    })
}
