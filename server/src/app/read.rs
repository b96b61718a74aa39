//! What people see: jobs, attempts, history, workers and the queue as a whole.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use qctl_server_core::gpu::GpuLook;
use qctl_server_core::{JobId, JobState, Progress};

use super::{App, Error};
pub use crate::store::events::EventRecord;
pub use crate::store::read::{
    AttemptRecord, GpuRecord, HeldAttempt, JobFilter, JobRecord, WorkerMode, WorkerRecord,
};

/// Items on a page unless asked otherwise, and at most.
pub(super) const PAGE: usize = 50;
const PAGE_EVENTS: usize = 200;
const PAGE_MOST: usize = 1_000;

/// Ids, labels and states in one filter, at most.
const FILTER_MOST: usize = 10_000;

/// Workers in one status.
const STATUS_WORKERS: usize = 1_000;

/// The period of a worker's statistics and of the status's ended jobs.
const DAY: TimeDelta = TimeDelta::hours(24);

/// What the status says of the coordinator itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// What the database says of itself, such as `PostgreSQL 15.18 (embedded)`.
    pub database: String,
    /// File of the templates that this coordinator offers beside the built-in ones; need not exist.
    pub templates_file: PathBuf,
}

/// A job as people see it.
#[derive(Clone, Debug, PartialEq)]
pub struct JobView {
    /// What is known of it, with the latest progress.
    pub job: JobRecord,
    /// Link to its page.
    pub url: String,
    /// Link to its tracker's page, when it has a tracker.
    pub tracker_url: Option<String>,
}

/// One job with its attempts.
#[derive(Clone, Debug, PartialEq)]
pub struct JobDetail {
    /// The job.
    pub job: JobView,
    /// Its attempts, oldest first.
    pub attempts: Vec<AttemptRecord>,
    /// Number of the latest event that this answer knows.
    pub as_of: i64,
}

/// How much of a list to give, and from where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// Items; 0 means the usual number, and there is an upper limit.
    pub size: usize,
    /// From an earlier answer; empty for the first page.
    pub token: String,
}

/// A page of jobs.
#[derive(Clone, Debug, PartialEq)]
pub struct JobPage {
    /// Newest first.
    pub jobs: Vec<JobView>,
    /// Empty on the last page.
    pub next_page_token: String,
    /// Number of the latest event that this answer knows.
    pub as_of: i64,
    /// How many jobs are selected in each state, on all pages.
    pub counts: Vec<(JobState, i64)>,
}

/// A page of history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPage {
    /// Oldest first.
    pub events: Vec<EventRecord>,
    /// Empty on the last page.
    pub next_page_token: String,
}

/// A page of workers.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerPage {
    /// By name.
    pub workers: Vec<WorkerView>,
    /// Empty on the last page.
    pub next_page_token: String,
}

/// Whether and how a worker takes jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// Connected and takes jobs.
    Online,
    /// Connected, takes no new jobs until resumed.
    Paused,
    /// Connected, takes no new jobs, and is paused once its last one has ended.
    Draining,
    /// Not connected for less than a minute.
    Reconnecting,
    /// Not heard of for a minute or more; its jobs may well be running.
    Unreachable,
    /// Not connected and running nothing.
    Offline,
}

/// A worker as people see it.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerView {
    /// What is known of it, with the latest progress of what it runs.
    pub worker: WorkerRecord,
    /// Whether and how it takes jobs.
    pub state: WorkerState,
    /// What its GPU driver says, when it was heard of lately.
    pub gpus: Option<GpuLook>,
}

/// The queue as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueStatus {
    /// True while new starts are stopped.
    pub paused: bool,
    /// Jobs by state; ended ones of the last 24 hours only.
    pub counts: Vec<(JobState, i64)>,
    /// The workers by name.
    pub workers: Vec<WorkerView>,
    /// Number of the latest event that this answer knows.
    pub as_of: i64,
}

impl App {
    /// One job with its attempts.
    ///
    /// # Errors
    /// When there is no such job, or the database is away.
    pub async fn job(&self, id: JobId) -> Result<JobDetail, Error> {
        let as_of = self.store.latest_event().await?;
        let job = self.job_view(id).await?;
        let mut attempts = self.store.attempts_of(id).await?;
        for attempt in &mut attempts {
            let latest = self.live.get(attempt.fence);
            attempt.progress = newer(attempt.progress.take(), latest);
        }
        Ok(JobDetail {
            job,
            attempts,
            as_of,
        })
    }

    /// One job.
    ///
    /// # Errors
    /// When there is no such job, or the database is away.
    pub async fn job_view(&self, id: JobId) -> Result<JobView, Error> {
        self.job_views(&[id])
            .await?
            .pop()
            .ok_or(Error::JobNotFound(id))
    }

    /// These jobs, in the order of `ids`; jobs that do not exist are left out.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn job_views(&self, ids: &[JobId]) -> Result<Vec<JobView>, Error> {
        let mut found = BTreeMap::new();
        let mut left = ids.to_vec();
        left.sort_unstable();
        while !left.is_empty() {
            let batch = &left[left.len().saturating_sub(PAGE_MOST)..];
            let rows = self.store.jobs_by_id(batch).await?;
            // An answer that was cut short holds the newest of the batch.
            let done = match rows.jobs.last() {
                Some(last) if rows.more => last.id,
                _ => batch[0],
            };
            left.retain(|id| *id < done);
            found.extend(rows.jobs.into_iter().map(|job| (job.id, job)));
        }
        Ok(ids
            .iter()
            .filter_map(|id| found.remove(id))
            .map(|job| self.view(job))
            .collect())
    }

    /// A page of jobs, newest first.
    ///
    /// # Errors
    /// When the filter or the page token is wrong, or the database is away.
    pub async fn jobs(&self, filter: &JobFilter, page: &PageRequest) -> Result<JobPage, Error> {
        check_filter(filter)?;
        let before = match page.token.as_str() {
            "" => None,
            token => Some(JobId(read_token(token, "jobs")?)),
        };
        let as_of = self.store.latest_event().await?;
        let rows = self
            .store
            .jobs(filter, before, page_size(page.size, PAGE))
            .await?;
        let counts = self.store.job_counts(filter).await?;
        let next_page_token = match rows.jobs.last() {
            Some(last) if rows.more => write_token("jobs", last.id),
            _ => String::new(),
        };
        Ok(JobPage {
            jobs: rows.jobs.into_iter().map(|job| self.view(job)).collect(),
            next_page_token,
            as_of,
            counts,
        })
    }

    /// A page of history, oldest first; of one job, or of everything.
    ///
    /// # Errors
    /// When there is no such job, the page token is wrong, or the database is away.
    pub async fn events(
        &self,
        job: Option<JobId>,
        after: i64,
        page: &PageRequest,
    ) -> Result<EventPage, Error> {
        if let Some(job) = job
            && self.store.log_job(job).await?.is_none()
        {
            return Err(Error::JobNotFound(job));
        }
        let after = match page.token.as_str() {
            "" => after,
            token => read_token(token, "events")?,
        };
        let size = page_size(page.size, PAGE_EVENTS);
        let mut events = self.store.events(job, after, size + 1).await?;
        let more = events.len() > size;
        events.truncate(size);
        let next_page_token = match events.last() {
            Some(last) if more => write_token("events", last.id),
            _ => String::new(),
        };
        Ok(EventPage {
            events,
            next_page_token,
        })
    }

    /// A page of workers, by name.
    ///
    /// # Errors
    /// When the page token is wrong, or the database is away.
    pub async fn workers(&self, page: &PageRequest) -> Result<WorkerPage, Error> {
        let after: String = match page.token.as_str() {
            "" => String::new(),
            token => read_token(token, "workers")?,
        };
        let size = page_size(page.size, PAGE);
        let mut workers = self.worker_views(&after, None, size + 1).await?;
        let more = workers.len() > size;
        workers.truncate(size);
        let next_page_token = match workers.last() {
            Some(last) if more => write_token("workers", &last.worker.name),
            _ => String::new(),
        };
        Ok(WorkerPage {
            workers,
            next_page_token,
        })
    }

    /// One worker.
    ///
    /// # Errors
    /// When no worker has this name, or the database is away.
    pub async fn worker(&self, name: &str) -> Result<WorkerView, Error> {
        self.worker_views("", Some(name), 1)
            .await?
            .pop()
            .ok_or_else(|| Error::WorkerNotFound(name.to_owned()))
    }

    /// The queue as a whole.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn queue_status(&self) -> Result<QueueStatus, Error> {
        let as_of = self.store.latest_event().await?;
        Ok(QueueStatus {
            paused: self.store.queue_is_paused().await?,
            counts: self.store.queue_counts(self.clock.now() - DAY).await?,
            workers: self.worker_views("", None, STATUS_WORKERS).await?,
            as_of,
        })
    }

    pub(super) fn view(&self, mut job: JobRecord) -> JobView {
        let latest = job.fence.and_then(|fence| self.live.get(fence));
        job.progress = newer(job.progress.take(), latest);
        JobView {
            url: self.links.job(job.id),
            tracker_url: (!job.spec.tracker.is_empty())
                .then(|| self.links.tracker(&job.spec.tracker)),
            job,
        }
    }

    pub(super) async fn worker_views(
        &self,
        after: &str,
        name: Option<&str>,
        limit: usize,
    ) -> Result<Vec<WorkerView>, Error> {
        let now = self.clock.now();
        let records = self
            .store
            .workers_page(after, name, limit, now - DAY, now)
            .await?;
        Ok(records
            .into_iter()
            .map(|mut worker| {
                for attempt in &mut worker.attempts {
                    let latest = self.live.get(attempt.fence);
                    attempt.progress = newer(attempt.progress.take(), latest);
                }
                let session = self.sessions.get(worker.id);
                let heard = session.as_ref().map(|session| session.last_contact);
                worker.last_seen = worker.last_seen.max(heard);
                let state = worker_state(
                    &worker,
                    session.is_some(),
                    now,
                    self.settings.unreachable_after,
                );
                WorkerView {
                    gpus: self.gpu_look(worker.id),
                    worker,
                    state,
                }
            })
            .collect())
    }
}

fn worker_state(
    worker: &WorkerRecord,
    connected: bool,
    now: DateTime<Utc>,
    unreachable_after: Duration,
) -> WorkerState {
    if connected {
        return match worker.mode {
            WorkerMode::Active => WorkerState::Online,
            WorkerMode::Paused => WorkerState::Paused,
            WorkerMode::Draining => WorkerState::Draining,
        };
    }
    let recently = worker
        .last_seen
        .is_some_and(|seen| now - seen < TimeDelta::from_std(unreachable_after).unwrap_or(DAY));
    if recently {
        WorkerState::Reconnecting
    } else if worker.attempts.is_empty() {
        WorkerState::Offline
    } else {
        WorkerState::Unreachable
    }
}

/// Progress in memory is never older than what was written of it.
fn newer(stored: Option<Progress>, live: Option<Progress>) -> Option<Progress> {
    live.or(stored)
}

pub(super) fn check_filter(filter: &JobFilter) -> Result<(), Error> {
    for (field, have) in [
        ("filter.ids", filter.ids.len()),
        ("filter.labels", filter.labels.len()),
        ("filter.states", filter.states.len()),
    ] {
        if have > FILTER_MOST {
            return Err(Error::field(
                field,
                format!("has {have} entries, and {FILTER_MOST} are allowed"),
                "ask in several calls",
            ));
        }
    }
    if let (Some(after), Some(before)) = (filter.created_after, filter.created_before)
        && after >= before
    {
        return Err(Error::field(
            "filter.created_before",
            "is not later than the beginning, so nothing can be found",
            "exchange the two times",
        ));
    }
    Ok(())
}

pub(super) fn page_size(asked: usize, usual: usize) -> usize {
    match asked {
        0 => usual,
        asked => asked.min(PAGE_MOST),
    }
}

/// A token says which list it belongs to, so that one of another list is noticed.
pub(super) fn write_token(list: &str, position: impl std::fmt::Display) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(format!("{list}:{position}"))
}

pub(super) fn read_token<T: std::str::FromStr>(token: &str, list: &str) -> Result<T, Error> {
    BASE64_URL_SAFE_NO_PAD
        .decode(token)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| text.strip_prefix(list)?.strip_prefix(':')?.parse().ok())
        .ok_or_else(|| {
            Error::field(
                "page_token",
                "is not one that this list gave out",
                "take next_page_token of the page before, or leave it empty for the first page",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_by_its_own_list_only() {
        let token = write_token("jobs", JobId(42));
        assert_eq!(read_token::<i64>(&token, "jobs").unwrap(), 42);
        assert!(read_token::<i64>(&token, "events").is_err());
        assert!(read_token::<i64>("%%%", "jobs").is_err());
        let token = write_token("workers", "größer:1");
        assert_eq!(read_token::<String>(&token, "workers").unwrap(), "größer:1");
    }

    #[test]
    fn a_page_has_a_usual_and_a_greatest_size() {
        assert_eq!(page_size(0, PAGE), 50);
        assert_eq!(page_size(7, PAGE), 7);
        assert_eq!(page_size(1_000_000, PAGE), 1_000);
    }
}
