//! Watching jobs: as they are, then whenever they change.
//!
//! A watch listens before it lists, so that nothing falls between. What it hears is only a hint:
//! it reads the jobs again, and a watch that fell behind reads everything that changed since the
//! last event it knew. A job may be told twice; a change is never missed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use qctl_server_core::{JobId, JobState};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc};
use tokio::time::{Instant, sleep_until};

use super::read::{JobFilter, JobView, check_filter};
use super::{App, Change, Error};

/// Watches that are served at the same time.
const MAX_WATCHES: usize = 1_000;

/// Messages that wait for a slow watcher.
const AHEAD: usize = 64;

/// Jobs read at once.
const BATCH: usize = 500;

/// Changed jobs that a watch reads one by one; after more, it lists again.
const MAX_CHANGED: usize = 10_000;

/// Time between two messages about one job's progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Running jobs whose last message is kept, so that their progress needs no reading.
const MAX_REMEMBERED: usize = 1_000;

/// What a watch says.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchItem {
    /// A job as it is now.
    Job {
        /// The job.
        job: Box<JobView>,
        /// Number of the latest event that this item knows.
        as_of: i64,
    },
    /// The initial list is complete. Said once.
    CaughtUp {
        /// Number of the latest event that the list knows.
        as_of: i64,
    },
}

/// Bounds how many watch.
#[derive(Clone, Debug)]
pub struct Watches(Arc<Semaphore>);

impl Default for Watches {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_WATCHES)))
    }
}

impl App {
    /// Watches the jobs that the filter selects: sends them as they are, then `CaughtUp`, then each
    /// again when it or its progress changes. With `after`, the number of an event, the list holds
    /// only what changed since. A job that was sent is told of once more when a change takes it
    /// out of the filter. An error is the last item.
    ///
    /// # Errors
    /// When the filter is wrong or too many watch at the same time.
    pub async fn watch_jobs(
        self: &Arc<Self>,
        filter: JobFilter,
        after: Option<i64>,
    ) -> Result<mpsc::Receiver<Result<WatchItem, Error>>, Error> {
        check_filter(&filter)?;
        let permit = Arc::clone(&self.watches.0)
            .try_acquire_owned()
            .map_err(|_| Error::LimitExceeded {
                what: "another watch".to_owned(),
                limit: MAX_WATCHES as u64,
            })?;
        let (items, receiver) = mpsc::channel(AHEAD);
        let watch = Watch {
            app: Arc::clone(self),
            changes: self.changes.subscribe(),
            tracked: Tracked::new(&filter),
            filter,
            items,
            remembered: HashMap::new(),
            as_of: 0,
            _permit: permit,
        };
        tokio::spawn(watch.run(after));
        Ok(receiver)
    }
}

/// Why a watch ended.
enum Stop {
    Gone,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Jobs that were sent and can fall out of the filter by changing.
enum Tracked {
    /// The filter selects by what a job keeps for ever.
    Nothing,
    /// Jobs that have not ended.
    Live(HashSet<JobId>),
}

impl Tracked {
    fn new(filter: &JobFilter) -> Self {
        let changing = !filter.states.is_empty()
            || filter.worker.is_some()
            || filter.tracker_key.is_some()
            || !filter.labels.is_empty();
        if changing {
            Self::Live(HashSet::new())
        } else {
            Self::Nothing
        }
    }

    fn contains(&self, job: JobId) -> bool {
        match self {
            Self::Nothing => false,
            Self::Live(jobs) => jobs.contains(&job),
        }
    }

    fn forget(&mut self, job: JobId) {
        if let Self::Live(jobs) = self {
            jobs.remove(&job);
        }
    }

    fn sent(&mut self, job: JobId, state: JobState) {
        if let Self::Live(jobs) = self {
            if state.is_final() {
                jobs.remove(&job);
            } else {
                jobs.insert(job);
            }
        }
    }
}

struct Watch {
    app: Arc<App>,
    changes: broadcast::Receiver<Change>,
    filter: JobFilter,
    tracked: Tracked,
    items: mpsc::Sender<Result<WatchItem, Error>>,
    /// Running jobs as they were last sent, and when.
    remembered: HashMap<JobId, (JobView, Instant)>,
    as_of: i64,
    _permit: OwnedSemaphorePermit,
}

/// What was heard and not acted on yet.
#[derive(Default)]
struct Heard {
    changed: BTreeSet<JobId>,
    progressed: HashSet<JobId>,
    missed: bool,
}

impl Heard {
    fn note(&mut self, change: Result<Change, broadcast::error::RecvError>) {
        match change {
            Ok(Change::Jobs(jobs)) => {
                self.changed.extend(jobs.iter().copied());
                self.missed |= self.changed.len() > MAX_CHANGED;
            }
            Ok(Change::Progress { job, .. }) => {
                self.progressed.insert(job);
            }
            Ok(Change::Workers | Change::Queue) => {}
            Err(_) => self.missed = true,
        }
    }
}

impl Watch {
    async fn run(mut self, after: Option<i64>) {
        if let Err(Stop::Failed(error)) = self.watch(after).await {
            // A watcher that has gone needs no error.
            let _ = self.items.send(Err(error)).await;
        }
    }

    async fn watch(&mut self, after: Option<i64>) -> Result<(), Stop> {
        self.catch_up(after).await?;
        self.send(WatchItem::CaughtUp { as_of: self.as_of }).await?;
        let mut heard = Heard::default();
        loop {
            self.listen(&mut heard).await?;
            if std::mem::take(&mut heard.missed) {
                heard = Heard::default();
                self.catch_up(Some(self.as_of)).await?;
                continue;
            }
            if !heard.changed.is_empty() {
                let changed = std::mem::take(&mut heard.changed);
                self.send_changed(changed.into_iter().collect()).await?;
            }
            self.send_progress(&mut heard.progressed).await?;
        }
    }

    /// Waits until there is something to tell, and takes in all that was announced.
    async fn listen(&mut self, heard: &mut Heard) -> Result<(), Stop> {
        let due = heard
            .progressed
            .iter()
            .filter_map(|job| self.remembered.get(job))
            .map(|(_, sent)| *sent + PROGRESS_EVERY)
            .min();
        let progress_due = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = self.changes.recv() => heard.note(change),
            () = progress_due => {}
            () = self.items.closed() => return Err(Stop::Gone),
            () = self.app.stop.cancelled() => return Err(Error::ShuttingDown.into()),
        }
        loop {
            match self.changes.try_recv() {
                Ok(change) => heard.note(Ok(change)),
                Err(broadcast::error::TryRecvError::Lagged(_)) => heard.missed = true,
                Err(_) => return Ok(()),
            }
        }
    }

    /// Sends everything that the filter selects, or of it what changed after an event.
    async fn catch_up(&mut self, after: Option<i64>) -> Result<(), Stop> {
        let as_of = self.app.store.latest_event().await.map_err(Error::from)?;
        let changed = match after {
            None => None,
            Some(after) => self
                .app
                .store
                .jobs_changed_since(after, MAX_CHANGED)
                .await
                .map_err(Error::from)?,
        };
        if let Some(changed) = changed {
            self.as_of = as_of;
            return self.send_changed(changed).await;
        }
        let mut before = None;
        loop {
            let rows = self
                .app
                .store
                .jobs(&self.filter, before, BATCH)
                .await
                .map_err(Error::from)?;
            before = rows.jobs.last().map(|job| job.id);
            self.as_of = as_of;
            for job in rows.jobs {
                let view = self.app.view(job);
                self.send_job(view).await?;
            }
            if !rows.more {
                return Ok(());
            }
        }
    }

    /// Reads changed jobs again and sends those that are or were selected.
    async fn send_changed(&mut self, changed: Vec<JobId>) -> Result<(), Stop> {
        let selected_ids: HashSet<JobId> = self.filter.ids.iter().copied().collect();
        let changed: Vec<JobId> = changed
            .into_iter()
            .filter(|job| selected_ids.is_empty() || selected_ids.contains(job))
            .collect();
        for ids in changed.chunks(BATCH) {
            self.as_of = self.app.store.latest_event().await.map_err(Error::from)?;
            let filter = JobFilter {
                ids: ids.to_vec(),
                ..self.filter.clone()
            };
            let selected = self.read(&filter).await?;
            let found: HashSet<JobId> = selected.iter().map(|view| view.job.id).collect();
            let left: Vec<JobId> = ids
                .iter()
                .copied()
                .filter(|job| !found.contains(job) && self.tracked.contains(*job))
                .collect();
            for view in selected {
                self.send_job(view).await?;
            }
            if !left.is_empty() {
                for view in self.app.job_views(&left).await? {
                    let id = view.job.id;
                    self.send_job(view).await?;
                    self.tracked.forget(id);
                    self.remembered.remove(&id);
                }
            }
        }
        Ok(())
    }

    async fn read(&self, filter: &JobFilter) -> Result<Vec<JobView>, Stop> {
        let mut views = Vec::new();
        let mut before = None;
        loop {
            let rows = self
                .app
                .store
                .jobs(filter, before, BATCH)
                .await
                .map_err(Error::from)?;
            before = rows.jobs.last().map(|job| job.id);
            views.extend(rows.jobs.into_iter().map(|job| self.app.view(job)));
            if !rows.more {
                // Oldest first, the order in which most changes happen.
                views.reverse();
                return Ok(views);
            }
        }
    }

    /// Sends newer progress of remembered jobs, of each at most every tenth of a second; what is
    /// not due stays noted.
    async fn send_progress(&mut self, progressed: &mut HashSet<JobId>) -> Result<(), Stop> {
        let now = Instant::now();
        progressed.retain(|job| self.remembered.contains_key(job));
        let due: Vec<JobId> = progressed
            .iter()
            .copied()
            .filter(|job| now >= self.remembered[job].1 + PROGRESS_EVERY)
            .collect();
        for job in due {
            progressed.remove(&job);
            let Some((view, _)) = self.remembered.get(&job) else {
                continue;
            };
            let latest = view.job.fence.and_then(|fence| self.app.live.get(fence));
            if latest.is_some() && latest != view.job.progress {
                let mut view = view.clone();
                view.job.progress = latest;
                self.send_job(view).await?;
            }
        }
        Ok(())
    }

    async fn send_job(&mut self, view: JobView) -> Result<(), Stop> {
        let id = view.job.id;
        self.tracked.sent(id, view.job.state);
        if view.job.state == JobState::Running {
            if self.remembered.len() < MAX_REMEMBERED || self.remembered.contains_key(&id) {
                self.remembered.insert(id, (view.clone(), Instant::now()));
            }
        } else {
            self.remembered.remove(&id);
        }
        self.send(WatchItem::Job {
            job: Box::new(view),
            as_of: self.as_of,
        })
        .await
    }

    async fn send(&self, item: WatchItem) -> Result<(), Stop> {
        tokio::select! {
            sent = self.items.send(Ok(item)) => sent.map_err(|_| Stop::Gone),
            () = self.app.stop.cancelled() => Err(Error::ShuttingDown.into()),
        }
    }
}
