//! What is read to decide about jobs and attempts.

use chrono::{DateTime, Utc};
use qctl_server_core::attempt::AttemptState;
use qctl_server_core::checkpoint::CheckpointId;
use qctl_server_core::dependency::Open;
use qctl_server_core::ledger::{AttemptRow, Current, JobRow, Which};
use qctl_server_core::{Fence, JobId, JobSpec, JobState, WorkerId};

use super::{Double, Request, StoredAttempt};

impl Double {
    /// Jobs with their attempts: the current ones and those asked for.
    pub fn load(&self, which: Which<'_>) -> (Vec<JobRow>, Vec<AttemptRow>) {
        let (mut ids, fences): (Vec<JobId>, &[Fence]) = match which {
            Which::Jobs(jobs) => (jobs.to_vec(), &[]),
            Which::Attempts(fences) => (
                fences
                    .iter()
                    .filter_map(|fence| self.attempts.get(fence))
                    .map(|attempt| attempt.row.job)
                    .collect(),
                fences,
            ),
        };
        ids.sort_unstable();
        ids.dedup();
        let mut attempts: Vec<AttemptRow> = Vec::new();
        let mut jobs = Vec::new();
        for id in ids {
            let Some(stored) = self.jobs.get(&id) else {
                continue;
            };
            let mut job = stored.job.clone();
            job.attempt = None;
            for attempt in self.attempts_of(id) {
                let row = &attempt.row;
                let current = row.attempt.state != AttemptState::Ended;
                if current {
                    job.attempt = Some(row.attempt.state);
                }
                if current || fences.contains(&row.fence) {
                    attempts.push(self.filled_in(attempt));
                }
            }
            jobs.push(JobRow {
                id,
                read: job.state,
                job,
                run_now_on: stored.run_now_on,
                wish: stored.spec.notify,
            });
        }
        attempts.sort_by_key(|row| row.fence);
        (jobs, attempts)
    }

    /// An attempt's row with what follows from other tables.
    fn filled_in(&self, attempt: &StoredAttempt) -> AttemptRow {
        let mut row = attempt.row.clone();
        row.worker_name = self
            .workers
            .get(&row.worker)
            .map(|known| known.worker.name.clone())
            .unwrap_or_default();
        row.has_dependents = self
            .dependencies
            .iter()
            .any(|((_, on), (_, met))| *on == row.job && !met);
        row.published = self.published(row.fence);
        row.checkpoints_kept = self
            .checkpoints
            .iter()
            .any(|(id, stored)| id.fence == row.fence && (stored.on_disk || stored.uploaded));
        row.read = row.attempt.state;
        row
    }

    /// Number of the newest checkpoint of an attempt; 0 when there is none.
    /// True while processes of a job's attempts may be left.
    pub fn has_processes(&self, job: JobId) -> bool {
        let mut attempts = self.attempts.values();
        attempts.any(|attempt| attempt.row.job == job && attempt.row.attempt.slot_held)
    }

    fn published(&self, fence: Fence) -> i32 {
        let of_attempt = CheckpointId {
            fence,
            number: i32::MIN,
        }..=CheckpointId {
            fence,
            number: i32::MAX,
        };
        let newest = self.checkpoints.range(of_attempt).next_back();
        newest.map_or(0, |(id, _)| id.number)
    }

    pub(super) fn attempts_of(&self, job: JobId) -> impl Iterator<Item = &StoredAttempt> {
        self.attempts
            .values()
            .filter(move |attempt| attempt.row.job == job)
    }

    /// A job that may have an attempt: it has none, and when it is exclusive no processes of one that
    /// is known to have ended.
    pub(super) fn is_free(&self, job: JobId, exclusive: bool) -> bool {
        self.attempts_of(job).all(|attempt| {
            let row = &attempt.row;
            let exclusive = exclusive && !self.unguarded.leftovers;
            let leftover = exclusive && row.attempt.slot_held && row.log_end.is_some();
            row.attempt.state == AttemptState::Ended && !leftover
        })
    }

    /// What a job was asked to run.
    pub fn spec_of(&self, job: JobId) -> Option<&JobSpec> {
        self.jobs.get(&job).map(|stored| &stored.spec)
    }

    /// In which states jobs are. Those that do not exist are missing.
    pub fn states(&self, jobs: &[JobId]) -> Vec<(JobId, JobState)> {
        jobs.iter()
            .filter_map(|id| Some((*id, self.jobs.get(id)?.job.state)))
            .collect()
    }

    /// What a request id stood for.
    pub fn request(&self, id: &str) -> Option<&Request> {
        self.requests.get(id)
    }

    /// Attempts that have not ended, at most `most`.
    pub fn current_attempts(&self, most: usize) -> Vec<Current> {
        self.attempts
            .values()
            .filter(|attempt| attempt.row.attempt.state != AttemptState::Ended)
            .take(most)
            .map(|attempt| Current {
                fence: attempt.row.fence,
                worker: attempt.row.worker,
                same_spool: self
                    .workers
                    .get(&attempt.row.worker)
                    .is_some_and(|known| known.worker.spool_id == attempt.row.spool_id),
                unreachable: attempt.row.attempt.unreachable,
                record_gone: attempt.row.attempt.record_gone,
            })
            .collect()
    }

    /// The attempts that a worker is thought to hold, and of `fences` its own that are recorded.
    pub fn attempts_on(&self, worker: WorkerId, fences: &[Fence]) -> Vec<Fence> {
        self.attempts
            .values()
            .filter(|attempt| attempt.row.worker == worker)
            .filter(|attempt| attempt.row.attempt.slot_held || fences.contains(&attempt.row.fence))
            .map(|attempt| attempt.row.fence)
            .collect()
    }

    /// Dependencies of these jobs that are not met.
    pub fn open_of(&self, jobs: &[JobId]) -> Vec<Open> {
        self.open_dependencies(jobs)
    }

    /// Jobs that have not ended and wait for one of these, at most `most`, in order.
    pub fn dependents_of(&self, ended: &[JobId], most: usize) -> Vec<JobId> {
        self.waiting_ones(most, |_, on| ended.contains(&on))
    }

    /// Jobs that wait for a job which has ended or is gone, at most `most`, in order.
    pub fn overlooked_dependents(&self, most: usize) -> Vec<JobId> {
        self.waiting_ones(most, |double, on| {
            double
                .jobs
                .get(&on)
                .is_none_or(|other| other.job.ended_at.is_some())
        })
    }

    fn waiting_ones(&self, most: usize, wanted: impl Fn(&Self, JobId) -> bool) -> Vec<JobId> {
        let mut found: Vec<JobId> = self
            .dependencies
            .iter()
            .filter(|((_, on), (_, met))| !met && wanted(self, *on))
            .map(|((job, _), _)| *job)
            .filter(|job| {
                self.jobs
                    .get(job)
                    .is_some_and(|stored| stored.job.ended_at.is_none())
            })
            .collect();
        found.dedup();
        found.truncate(most);
        found
    }

    /// Jobs whose wait is over, at most `most`, and when the next wait ends.
    pub fn due_jobs(&self, now: DateTime<Utc>, most: usize) -> (Vec<JobId>, Option<DateTime<Utc>>) {
        let waits = || {
            self.jobs
                .iter()
                .filter(|(_, stored)| stored.job.state == JobState::Waiting)
                .filter_map(|(id, stored)| Some((stored.job.not_before?, *id)))
        };
        let mut due: Vec<_> = waits().filter(|(until, _)| *until <= now).collect();
        due.sort_unstable();
        due.truncate(most);
        let next = waits().map(|(until, _)| until).filter(|until| *until > now);
        (due.into_iter().map(|(_, id)| id).collect(), next.min())
    }
}
