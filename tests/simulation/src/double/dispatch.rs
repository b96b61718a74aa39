//! What the dispatcher reads, and the one operation with which it assigns.

use chrono::{DateTime, TimeDelta, Utc};
use qctl_server_core::attempt::{Attempt, AttemptState};
use qctl_server_core::dispatch::{Fleet, MadeAssignment, NewAssignment, Newest, QueuedJob, Window};
use qctl_server_core::ledger::{AttemptRow, NewEvent};
use qctl_server_core::placement::{Candidate, Holding, Order, Worker};
use qctl_server_core::{AttemptNumber, Fence, JobId, JobState, WorkerId};

use super::{Double, Mode, StoredAttempt, StoredJob};

impl Double {
    /// Workers with what occupies them.
    pub fn fleet(&self, workers: &[WorkerId]) -> Fleet {
        let mut fleet = Fleet {
            workers: Vec::new(),
            queue_paused: false,
            run_now: false,
            oldest_start: Vec::new(),
        };
        for (id, known) in &self.workers {
            if !workers.contains(id) {
                continue;
            }
            fleet.queue_paused = self.queue_paused;
            fleet.run_now = self.jobs.values().any(|job| job.run_now_on.is_some());
            let held: Vec<&StoredAttempt> = self
                .attempts
                .values()
                .filter(|attempt| attempt.row.worker == *id && attempt.row.attempt.slot_held)
                .collect();
            fleet.oldest_start.push(
                held.iter()
                    .filter(|attempt| attempt.row.attempt.state == AttemptState::Running)
                    .filter_map(|attempt| attempt.row.attempt.started_at)
                    .min(),
            );
            fleet.workers.push(Worker {
                id: *id,
                name: known.worker.name.clone(),
                accepts: known.mode == Mode::Active && !self.queue_paused,
                slots: known.worker.slots,
                gpus: known.worker.gpus.clone(),
                memory_bytes: known.worker.memory_bytes,
                ready: 0,
                held: held
                    .into_iter()
                    .filter_map(|attempt| self.holding(attempt))
                    .collect(),
            });
        }
        fleet
    }

    fn holding(&self, attempt: &StoredAttempt) -> Option<Holding> {
        let row = &attempt.row;
        let job = self.jobs.get(&row.job)?;
        let running = row.attempt.state == AttemptState::Running;
        let frozen = row.attempt.paused || !running;
        Some(Holding {
            fence: row.fence,
            order: Order::new(job.spec.priority, row.job),
            demand: attempt.demand,
            gpus: attempt.gpus.clone(),
            beside_slots: attempt.beside_slots,
            assigned: row.attempt.state == AttemptState::Assigned,
            asked_back: row.attempt.asked.is_some(),
            bound: !job.spec.worker.is_empty() || !attempt.resumed_from.is_empty(),
            ends_by: match (row.attempt.started_at, job.spec.time_limit) {
                (Some(start), Some(limit)) if !frozen => {
                    Some(start + TimeDelta::from_std(limit).unwrap_or(TimeDelta::MAX))
                }
                _ => None,
            },
        })
    }

    /// Queued jobs that no worker has, in order, leaving out those that none of `workers` could take.
    pub fn queued_jobs(&self, workers: &[Worker], window: &Window) -> Vec<QueuedJob> {
        let could = |stored: &StoredJob, worker: &Worker| {
            let demand = &stored.spec.demand;
            (stored.spec.worker.is_empty() || stored.spec.worker == worker.name)
                && demand.slots <= worker.slots
                && demand.gpus as usize <= worker.gpus.len()
                && (worker.memory_bytes == 0 || demand.memory_bytes <= worker.memory_bytes)
        };
        let mut found: Vec<QueuedJob> = self
            .jobs
            .iter()
            .filter(|(id, stored)| {
                stored.job.state == JobState::Queued && self.is_free(**id, stored.spec.exclusive)
            })
            .filter(|(id, stored)| {
                window.after.is_none_or(|(priority, job)| {
                    stored.spec.priority < priority
                        || (stored.spec.priority == priority && **id > job)
                })
            })
            .filter(|(_, stored)| workers.iter().any(|worker| could(stored, worker)))
            .map(|(id, stored)| self.queued(*id, stored))
            .collect();
        found.sort_by_key(|queued| queued.candidate.order);
        found.truncate(usize::try_from(window.limit).unwrap_or_default());
        found
    }

    /// Queued jobs that a person wants to start now, and that no worker has.
    pub fn run_now_jobs(&self) -> Vec<QueuedJob> {
        let mut found: Vec<QueuedJob> = self
            .jobs
            .iter()
            .filter(|(id, stored)| {
                stored.run_now_on.is_some()
                    && stored.job.state == JobState::Queued
                    && self.is_free(**id, stored.spec.exclusive)
            })
            .map(|(id, stored)| {
                let mut queued = self.queued(*id, stored);
                queued.candidate.pinned = None;
                queued.candidate.checkpoint_on = None;
                queued.candidate.time_limit = None;
                queued
            })
            .collect();
        found.sort_by_key(|queued| queued.candidate.order);
        found
    }

    fn queued(&self, id: JobId, stored: &StoredJob) -> QueuedJob {
        let checkpoint = self.newest_of(id).map(|newest| Newest {
            worker: newest.row.worker,
            folder: newest.row.told.path.clone(),
            uploaded: newest.uploaded,
        });
        QueuedJob {
            candidate: Candidate {
                job: id,
                order: Order::new(stored.spec.priority, id),
                demand: stored.spec.demand,
                pinned: Some(stored.spec.worker.clone()).filter(|name| !name.is_empty()),
                checkpoint_on: checkpoint
                    .as_ref()
                    .filter(|newest| !stored.job.anywhere && !newest.uploaded)
                    .map(|newest| newest.worker),
                time_limit: stored
                    .spec
                    .time_limit
                    .and_then(|limit| TimeDelta::from_std(limit).ok()),
            },
            priority: stored.spec.priority,
            run_now_on: stored.run_now_on,
            checkpoint,
        }
    }

    /// The next attempt gets this fence: a database may leave numbers out.
    pub fn number_from(&mut self, fence: Fence) {
        self.last_fence = fence.0 - 1;
    }

    /// Makes attempts: each job must still be queued and without an attempt. What comes back is what
    /// was made.
    pub fn assign(
        &mut self,
        now: DateTime<Utc>,
        term: i64,
        assignments: &[NewAssignment],
    ) -> Vec<MadeAssignment> {
        let mut made = Vec::new();
        for new in assignments {
            let exclusive = self.spec_of(new.job).is_some_and(|spec| spec.exclusive);
            let free = self.is_free(new.job, exclusive);
            let unguarded = self.unguarded.assign;
            let Some(stored) = self.jobs.get_mut(&new.job) else {
                continue;
            };
            if !(unguarded || free && stored.job.state == JobState::Queued) {
                continue;
            }
            self.version += 1;
            self.last_fence += 1;
            let fence = Fence(self.last_fence);
            stored.attempts += 1;
            stored.fence = Some(fence);
            stored.run_now_on = None;
            new.reason.clone_into(&mut stored.job.reason);
            stored.job.message.clone_from(&new.message);
            let number = AttemptNumber(stored.attempts);
            let attempt = StoredAttempt {
                row: AttemptRow {
                    fence,
                    job: new.job,
                    number,
                    attempt: Attempt {
                        state: AttemptState::Assigned,
                        slot_held: true,
                        unreachable: false,
                        record_gone: false,
                        paused: false,
                        asked: None,
                        started_at: None,
                    },
                    worker: new.worker,
                    worker_name: new.worker_name.clone(),
                    boot_id: new.boot_id.clone(),
                    spool_id: new.spool_id,
                    assigned_at: now,
                    ended_at: None,
                    duration_us: None,
                    pid: None,
                    outcome: None,
                    published: 0,
                    checkpoints_kept: false,
                    checkpoint: String::new(),
                    not_enforced: Vec::new(),
                    gpus: new.gpus.clone(),
                    log_end: None,
                    log_crc32c: None,
                    log_stored: 0,
                    log_agrees: true,
                    has_dependents: false,
                    late_result: None,
                    silence: None,
                    read: AttemptState::Assigned,
                },
                term,
                demand: stored.spec.demand,
                gpus: new.gpus.clone(),
                beside_slots: new.beside_slots,
                resumed_from: new.resume_from.clone(),
            };
            made.push(MadeAssignment {
                job: new.job,
                fence,
                number,
                spec: stored.spec.clone(),
            });
            self.attempts.insert(fence, attempt);
            self.tell([NewEvent {
                job: Some(new.job),
                attempt: Some(number),
                worker: new.worker_name.clone(),
                kind: "assigned",
                message: new.message.clone(),
                actor: "coordinator".to_owned(),
            }]);
        }
        made
    }
}
