//! Published checkpoints: recording, choosing, and those that nobody needs any more.

use chrono::{DateTime, Utc};
use qctl_server_core::checkpoint::{CheckpointId, CheckpointRow, MAX_CANDIDATES, ResumeCandidate};
use qctl_server_core::ledger::Closed;
use qctl_server_core::{AttemptNumber, JobId, JobState, WorkerId};

use super::{Double, StoredCheckpoint};

/// Copies that are kept of a job's checkpoints.
const COPIES_KEPT: usize = 2;
/// Of checkpoints whose contents are gone, so many are remembered for a job.
const REMEMBERED: usize = 1_000;
/// How often older ones are looked for, in numbers given.
const FORGET_EVERY: i32 = 100;

impl StoredCheckpoint {
    /// It can be resumed from, at least somewhere.
    fn is_usable(&self) -> bool {
        !self.damaged && (self.on_disk || self.uploaded)
    }
}

impl Double {
    /// Writes what a transaction changes about checkpoints.
    pub(super) fn write_checkpoints(&mut self, changes: &Closed) {
        for row in &changes.checkpoints {
            self.write_checkpoint(row);
            if row.id.number % FORGET_EVERY == 0 {
                self.forget_checkpoints(row.job);
            }
        }
        for damaged in &changes.damaged {
            if let Some(stored) = self.checkpoints.get_mut(&damaged.id) {
                stored.damaged = true;
            }
        }
        for (fence, folder) in &changes.resumed {
            if let Some(attempt) = self.attempts.get_mut(fence) {
                attempt.resumed_from.clone_from(folder);
            }
        }
    }

    fn write_checkpoint(&mut self, row: &CheckpointRow) {
        let is_kept = !row.told.removed;
        let Some(stored) = self.checkpoints.get_mut(&row.id) else {
            let stored = StoredCheckpoint {
                row: row.clone(),
                on_disk: is_kept,
                damaged: false,
                uploaded: false,
            };
            self.checkpoints.insert(row.id, stored);
            return;
        };
        if !row.told.hash.is_empty() {
            stored.row.told.hash.clone_from(&row.told.hash);
        }
        stored.row.told.path.clone_from(&row.told.path);
        stored.on_disk &= is_kept;
    }

    fn forget_checkpoints(&mut self, job: JobId) {
        let gone: Vec<CheckpointId> = self
            .checkpoints
            .iter()
            .rev()
            .filter(|(_, stored)| stored.row.job == job && !stored.on_disk && !stored.uploaded)
            .map(|(id, _)| *id)
            .skip(REMEMBERED)
            .collect();
        for id in gone {
            self.checkpoints.remove(&id);
        }
    }

    /// What a job can resume from, the newest first: its own before the one that it was submitted
    /// with and those before that one.
    fn usable_of(&self, job: JobId) -> impl Iterator<Item = (CheckpointId, &StoredCheckpoint)> {
        let own = self
            .checkpoints
            .iter()
            .rev()
            .filter(move |(_, stored)| stored.row.job == job);
        let named = self.jobs.get(&job).and_then(|stored| stored.resume_from);
        let named = named.and_then(|id| self.checkpoints.get(&id));
        let given = named.into_iter().flat_map(|named| {
            let until = self.checkpoints.range(..=named.row.id).rev();
            until.filter(|(_, stored)| stored.row.job == named.row.job)
        });
        own.chain(given)
            .filter(|(_, stored)| stored.is_usable())
            .map(|(id, stored)| (*id, stored))
    }

    /// The newest checkpoint that a job would resume from.
    pub(super) fn newest_of(&self, job: JobId) -> Option<&StoredCheckpoint> {
        let stored = self.jobs.get(&job)?;
        if stored.attempts == 0 && stored.resume_from.is_none() {
            return None;
        }
        self.usable_of(job).next().map(|(_, stored)| stored)
    }

    /// What a job can resume from when a worker is about to start it, the newest first.
    pub fn candidates(&self, job: JobId, worker: WorkerId) -> Vec<ResumeCandidate> {
        self.usable_of(job)
            .map(|(id, stored)| ResumeCandidate {
                id,
                attempt: stored.row.attempt,
                job: stored.row.job,
                hash: stored.row.told.hash.clone(),
                here: stored.on_disk && stored.row.worker == worker,
                uploaded: stored.uploaded,
            })
            .filter(|candidate| candidate.here || candidate.uploaded)
            .take(MAX_CANDIDATES)
            .collect()
    }

    /// The newest checkpoint that a job can resume from, or its own with these numbers, with the job
    /// and the attempt that published it.
    pub fn usable(
        &self,
        job: JobId,
        named: Option<(i32, i32)>,
    ) -> Option<(CheckpointId, JobId, AttemptNumber)> {
        let is_wanted = |id: &CheckpointId, stored: &StoredCheckpoint| {
            named.is_none_or(|(attempt, number)| {
                let row = &stored.row;
                (row.job, row.attempt.0, id.number) == (job, attempt, number)
            })
        };
        self.usable_of(job)
            .find(|(id, stored)| is_wanted(id, stored))
            .map(|(id, stored)| (id, stored.row.job, stored.row.attempt))
    }

    /// Has a new job's first attempt resume from a checkpoint of another job.
    pub fn begin_from(&mut self, job: JobId, checkpoint: CheckpointId) {
        self.version += 1;
        if let Some(stored) = self.jobs.get_mut(&job) {
            stored.resume_from = Some(checkpoint);
        }
    }

    /// The coordinator has a whole copy of a checkpoint. Of a job's copies only the newest are kept.
    pub fn upload(&mut self, id: CheckpointId) {
        let Some(stored) = self.checkpoints.get_mut(&id) else {
            return;
        };
        self.version += 1;
        stored.uploaded = true;
        let job = stored.row.job;
        let copies = self
            .checkpoints
            .values_mut()
            .rev()
            .filter(|stored| stored.row.job == job && stored.uploaded);
        for older in copies.skip(COPIES_KEPT) {
            older.uploaded = false;
        }
    }

    /// Gives up the contents of checkpoints that nobody needs. Returns the jobs, in order.
    pub fn give_up_checkpoints(&mut self, ended_before: DateTime<Utc>) -> Vec<JobId> {
        let is_over = |job: JobId| {
            self.jobs.get(&job).is_some_and(|stored| {
                stored.job.state == JobState::Succeeded
                    || stored.job.ended_at.is_some_and(|at| at < ended_before)
            })
        };
        let is_wanted = |job: JobId| {
            let others = self.jobs.values().filter(|one| one.job.ended_at.is_none());
            let mut wanted = others.filter_map(|one| one.resume_from);
            wanted.any(|id| {
                let of_job = |stored: &StoredCheckpoint| stored.row.job == job;
                let mut of_fence = self.checkpoints.iter();
                of_fence.any(|(known, stored)| known.fence == id.fence && of_job(stored))
            })
        };
        let mut jobs: Vec<JobId> = self
            .checkpoints
            .values()
            .filter(|stored| stored.is_usable())
            .map(|stored| stored.row.job)
            .filter(|job| is_over(*job) && !is_wanted(*job))
            .collect();
        jobs.sort_unstable();
        jobs.dedup();
        self.version += u64::from(!jobs.is_empty());
        for stored in self.checkpoints.values_mut() {
            if jobs.contains(&stored.row.job) {
                stored.on_disk = false;
                stored.uploaded = false;
            }
        }
        jobs
    }

    /// Queued jobs whose checkpoint lies on a worker, and whose last attempt ended before `before`.
    pub fn waiting_for_checkpoint(&self, before: DateTime<Utc>) -> Vec<(JobId, WorkerId, String)> {
        self.jobs
            .iter()
            .filter(|(_, stored)| stored.job.state == JobState::Queued && !stored.job.anywhere)
            .filter(|(_, stored)| {
                let latest = stored.fence.and_then(|fence| self.attempts.get(&fence));
                let ended = latest.and_then(|attempt| attempt.row.ended_at);
                ended.unwrap_or(stored.created_at) < before
            })
            .filter_map(|(id, _)| {
                let newest = self.newest_of(*id).filter(|newest| !newest.uploaded)?;
                let worker = newest.row.worker;
                let known = self.workers.get(&worker)?;
                Some((*id, worker, known.worker.name.clone()))
            })
            .collect()
    }
}
