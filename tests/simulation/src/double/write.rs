//! What changes the store. Each refuses before it changes anything.

use chrono::{DateTime, Utc};
use std::time::Duration;

use qctl_server_core::leadership::Record;
use qctl_server_core::ledger::{Closed, NewEvent};
use qctl_server_core::{Fence, JobId, JobState, Term, WorkerId};
use uuid::Uuid;

use super::{Double, Known, Mode, NewJob, Refused, Request, StoredJob, Worker};

/// The checksum of all output that it stores: it counts the bytes and keeps none.
const CHECKSUM: i64 = 0;

impl Double {
    /// What is recorded of the leader.
    pub fn leader(&self) -> Record {
        Record {
            term: Term(self.term),
            renewals: self.renewals,
            leader: self.leader,
            released: self.released,
            lease: self.lease,
        }
    }

    /// Begins the term after this one, if nothing has changed since it was seen.
    pub fn claim(&mut self, term: Term, renewals: i64, me: Uuid, lease: Duration) -> Option<Term> {
        if (term.0, renewals) != (self.term, self.renewals) {
            return None;
        }
        self.version += 1;
        self.term += 1;
        self.renewals = 0;
        self.leader = Some(me);
        self.lease = lease;
        self.released = false;
        Some(Term(self.term))
    }

    /// Renews the leader's lease; false when its term is over.
    pub fn renew(&mut self, term: Term) -> bool {
        let is_ours = term.0 == self.term && !self.released;
        self.renewals += i64::from(is_ours);
        is_ours || self.unguarded.term
    }

    /// Gives the lease back, if the term is still this one.
    pub fn release(&mut self, term: Term) {
        self.released |= term.0 == self.term;
    }

    /// Every transaction of a coordinator reads the term in which it may write.
    ///
    /// # Errors
    /// [`Refused::Term`] when another coordinator leads by now.
    pub fn check_term(&self, term: i64) -> Result<(), Refused> {
        if term < self.term && !self.unguarded.term {
            return Err(Refused::Term);
        }
        Ok(())
    }

    /// Takes the next sequence numbers, in order.
    pub fn reserve_ids(&mut self, count: usize) -> Vec<JobId> {
        let first = self.last_job + 1;
        self.last_job += count as i64;
        (first..=self.last_job).map(JobId).collect()
    }

    /// Remembers a request id inside the transaction that carries the request out.
    ///
    /// # Errors
    /// [`Refused::Exists`] when it is known.
    pub fn remember(
        &mut self,
        now: DateTime<Utc>,
        id: &str,
        digest: u64,
        jobs: &[JobId],
    ) -> Result<(), Refused> {
        if self.requests.contains_key(id) {
            return Err(Refused::Exists);
        }
        self.version += 1;
        let request = Request {
            digest,
            jobs: jobs.to_vec(),
            at: now,
        };
        self.requests.insert(id.to_owned(), request);
        Ok(())
    }

    /// Writes new jobs with their dependencies and first history.
    pub fn insert_jobs(&mut self, now: DateTime<Utc>, submitter: &str, jobs: &[NewJob]) {
        self.version += 1;
        for new in jobs {
            for (dependency, met) in new.spec.after.iter().zip(&new.met) {
                self.dependencies
                    .insert((new.id, dependency.job), (dependency.condition, *met));
            }
            let stored = StoredJob {
                job: new.job.clone(),
                spec: new.spec.clone(),
                run_now_on: None,
                retry_of: new.retry_of,
                resume_from: None,
                created_at: now,
                attempts: 0,
                fence: None,
            };
            self.jobs.insert(new.id, stored);
            self.tell([NewEvent {
                job: Some(new.id),
                attempt: None,
                worker: String::new(),
                kind: "submitted",
                message: format!("submitted by {submitter}"),
                actor: submitter.to_owned(),
            }]);
        }
    }

    /// Writes what a ledger changed.
    ///
    /// # Errors
    /// [`Refused::Stale`] when a row is no longer in the state that was read.
    pub fn save(&mut self, changes: &Closed) -> Result<(), Refused> {
        if changes.is_empty() {
            return Ok(());
        }
        let jobs_are_as_read = changes.jobs.iter().all(|row| {
            self.jobs
                .get(&row.id)
                .is_some_and(|stored| stored.job.state == row.read)
        });
        let attempts_are_as_read = changes.attempts.iter().all(|row| {
            self.attempts
                .get(&row.fence)
                .is_some_and(|stored| stored.row.attempt.state == row.read)
        });
        if !(jobs_are_as_read && attempts_are_as_read) {
            return Err(Refused::Stale);
        }
        self.version += 1;
        for row in &changes.jobs {
            if let Some(stored) = self.jobs.get_mut(&row.id) {
                stored.job = row.job.clone();
                stored.job.attempt = None;
                stored.run_now_on = row.run_now_on;
            }
        }
        for row in &changes.attempts {
            if let Some(stored) = self.attempts.get_mut(&row.fence) {
                let log_stored = stored.row.log_stored;
                stored.row = row.clone();
                stored.row.log_stored = log_stored;
                stored.row.log_agrees = row.log_crc32c.is_none_or(|told| told == CHECKSUM);
            }
        }
        self.write_checkpoints(changes);
        self.tell(changes.events.iter().cloned());
        Ok(())
    }

    /// Writes history on its own.
    pub fn tell(&mut self, events: impl IntoIterator<Item = NewEvent>) {
        if self.keep_events {
            self.events.extend(events);
        }
    }

    /// Marks dependencies as met.
    pub fn meet(&mut self, met: &[(JobId, JobId)]) {
        self.version += 1;
        for pair in met {
            if let Some((_, met)) = self.dependencies.get_mut(pair) {
                *met = true;
            }
        }
    }

    /// Deletes a job that has ended, with everything that hangs on it.
    pub fn delete_job(&mut self, job: JobId) {
        self.version += 1;
        self.events.retain(|event| event.job != Some(job));
        if self
            .jobs
            .get(&job)
            .is_some_and(|stored| stored.job.ended_at.is_some())
        {
            self.jobs.remove(&job);
            self.attempts.retain(|_, attempt| attempt.row.job != job);
            self.dependencies.retain(|(waits, _), _| *waits != job);
            self.checkpoints.retain(|_, stored| stored.row.job != job);
        }
    }

    /// Records a worker as it says it is.
    pub fn upsert_worker(&mut self, worker: Worker) {
        self.version += 1;
        let mode = self
            .workers
            .get(&worker.id)
            .map_or(Mode::Active, |known| known.mode);
        self.workers.insert(worker.id, Known { worker, mode });
    }

    /// Changes how a worker takes jobs; false when there is no such worker.
    pub fn steer(&mut self, worker: WorkerId, mode: Option<Mode>, slots: Option<i32>) -> bool {
        self.version += 1;
        let Some(known) = self.workers.get_mut(&worker) else {
            return false;
        };
        known.mode = mode.unwrap_or(known.mode);
        known.worker.slots = slots.unwrap_or(known.worker.slots);
        true
    }

    /// Pauses or resumes the queue.
    pub fn pause_queue(&mut self, paused: bool) {
        self.version += 1;
        self.queue_paused = paused;
    }

    /// Workers that drain and hold nothing any more become paused. Returns their names.
    pub fn finish_drains(&mut self) -> Vec<String> {
        let attempts = &self.attempts;
        let mut names = Vec::new();
        for (id, known) in &mut self.workers {
            let holds = || {
                attempts
                    .values()
                    .any(|attempt| attempt.row.worker == *id && attempt.row.attempt.slot_held)
            };
            if known.mode == Mode::Draining && !holds() {
                known.mode = Mode::Paused;
                self.version += 1;
                names.push(known.worker.name.clone());
            }
        }
        names
    }

    /// Stores output of an attempt at the position where it ends so far. Returns where it ends now;
    /// `None` when there is no such attempt.
    pub fn store_log(&mut self, fence: Fence, offset: i64, length: i64) -> Option<i64> {
        let attempt = self.attempts.get_mut(&fence)?;
        if offset == attempt.row.log_stored && length > 0 {
            attempt.row.log_stored += length;
            self.version += 1;
        }
        Some(attempt.row.log_stored)
    }

    /// True when every job is in a final state.
    pub fn all_final(&self) -> bool {
        self.jobs
            .values()
            .all(|stored| JobState::is_final(stored.job.state))
    }
}
