//! What has to happen without anybody asking: waits that end, dependencies, silent workers, signs of
//! life and progress on their way to the database. Each finds its work in the database, can be run at
//! any time and any number of times, and is called by `reconcilers` on a timer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use qctl_server_core::job::{JobEvent, JobRefusal};
use qctl_server_core::lease::{Leases, Limits};
use qctl_server_core::ledger::{COORDINATOR, Holder, Ledger, Which, lapsed};
use qctl_server_core::notice::{Class, Details, Notice};
use qctl_server_core::standstill;
use qctl_server_core::{Fence, JobId, WorkerId};

use super::read::{WorkerState, WorkerView};
use super::{App, Error};
use crate::sessions::SessionId;
use crate::store::dependencies;
use crate::store::workers::SignOfLife;

/// Jobs or attempts in one transaction.
const BATCH: usize = 500;
/// Attempts whose leases are watched.
const MAX_CURRENT: i64 = 1_000_000;
/// Workers that are looked at when the queue stands still.
const MAX_WORKERS: usize = 1_000;
/// Request ids forgotten in one statement.
const FORGET_BATCH: i64 = 5_000;

/// Signs of life on their way to the database.
#[derive(Debug, Default)]
pub(super) struct SignsOfLife(Mutex<HashMap<WorkerId, SignOfLife>>);

/// Counts silence between two looks.
#[derive(Debug)]
pub(crate) struct LeaseWatch {
    leases: Leases<Holder>,
    last: Option<tokio::time::Instant>,
    /// The last look, by the clock that signs of life are told by.
    looked_at: Option<DateTime<Utc>>,
}

/// Watches whether the queue stands still.
#[derive(Debug)]
pub(crate) struct QueueWatch {
    watch: standstill::Watch,
    /// How long it may.
    after: Duration,
    /// The last look; this clock does not count the time in which the machine slept.
    looked: Option<tokio::time::Instant>,
}

impl QueueWatch {
    /// Begins to watch whether it stands still for so long.
    pub(crate) fn new(after: Duration) -> Self {
        Self {
            watch: standstill::Watch::default(),
            after,
            looked: None,
        }
    }
}

impl App {
    /// A worker lives.
    pub fn heartbeat(
        &self,
        worker: WorkerId,
        session: SessionId,
        load: Option<f64>,
        memory_used_bytes: Option<i64>,
    ) {
        let seen = self.clock.now();
        let silence = self.sessions.heard(worker, session, seen);
        if silence.is_some_and(|silence| silence > self.silent_after()) {
            // The dispatcher gave it nothing meanwhile.
            self.wake.dispatch();
        }
        let sign = SignOfLife {
            seen,
            load: load.filter(|load| load.is_finite()),
            memory_used_bytes,
        };
        self.signs
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(worker, sign);
    }

    /// Silence after which a worker is given nothing and its silence counts.
    pub(super) fn silent_after(&self) -> Duration {
        self.settings.heartbeat_interval * 2
    }

    /// Writes what workers said about themselves and their progress since the last time.
    pub(crate) async fn save_live(&self) -> Result<(), Error> {
        let signs: Vec<(WorkerId, SignOfLife)> = {
            let mut signs = self.signs.0.lock().unwrap_or_else(PoisonError::into_inner);
            signs.drain().collect()
        };
        // A sign of life that cannot be written is followed by another one soon.
        if !signs.is_empty() {
            self.store.save_signs_of_life(&signs).await?;
        }
        let progress = self.live.take_unsaved(BATCH);
        if progress.is_empty() {
            return Ok(());
        }
        let fences: Vec<Fence> = progress.iter().map(|(fence, _)| *fence).collect();
        match self.store.save_progress(&progress).await {
            Ok(()) => {
                self.live.saved(fences);
                Ok(())
            }
            Err(error) => {
                self.live.not_saved(fences);
                Err(error.into())
            }
        }
    }

    /// Queues jobs whose wait is over. Returns when the next wait ends.
    pub(crate) async fn queue_due(self: &Arc<Self>) -> Result<Option<DateTime<Utc>>, Error> {
        loop {
            let (due, next) = self.store.due_jobs(self.clock.now(), BATCH as i64).await?;
            if due.is_empty() {
                return Ok(next);
            }
            self.change_jobs(&due, Ledger::time_came).await?;
            if due.len() < BATCH {
                return Ok(next);
            }
        }
    }

    /// Tells jobs that wait for one of these, which have ended.
    pub(crate) async fn resolve_dependents(self: &Arc<Self>, ended: &[JobId]) -> Result<(), Error> {
        loop {
            let jobs = self.store.dependents_of(ended, BATCH as i64).await?;
            if jobs.is_empty() || !self.settle_dependencies(&jobs).await? {
                return Ok(());
            }
        }
    }

    /// Finds jobs that wait for one that has ended, and were not told.
    pub(crate) async fn resolve_overlooked(self: &Arc<Self>) -> Result<(), Error> {
        loop {
            let jobs = self.store.overlooked_dependents(BATCH as i64).await?;
            if jobs.is_empty() || !self.settle_dependencies(&jobs).await? {
                return Ok(());
            }
        }
    }

    /// Settles what these jobs wait for. Returns whether anything was changed.
    async fn settle_dependencies(self: &Arc<Self>, jobs: &[JobId]) -> Result<bool, Error> {
        let (app, jobs) = (Arc::clone(self), jobs.to_vec());
        self.transact(move |conn| {
            Box::pin(async move {
                let mut ledger = app.open_ledger(conn, Which::Jobs(&jobs)).await?;
                let open = dependencies::open_of(conn, &jobs).await?;
                let settled = ledger.settle_dependencies(&open);
                dependencies::meet(conn, &settled.met).await?;
                let after = app.save_ledger(conn, ledger).await?;
                Ok((settled.changed, after))
            })
        })
        .await
    }

    /// Begins to count silence.
    pub(crate) fn lease_watch(&self) -> LeaseWatch {
        LeaseWatch {
            leases: Leases::new(Limits {
                unreachable_after: self.settings.unreachable_after,
                lost_after: self.settings.lost_after,
            }),
            last: None,
            looked_at: None,
        }
    }

    /// Counts the silence of everything that holds attempts, shows what is unreachable, and gives up
    /// what is lost. A database that does not answer makes the time since the last look count nothing.
    pub(crate) async fn watch_leases(
        self: &Arc<Self>,
        watch: &mut LeaseWatch,
    ) -> Result<(), Error> {
        let current = match self.store.current_attempts(MAX_CURRENT).await {
            Ok(current) => current,
            Err(error) => {
                watch.last = None;
                return Err(error.into());
            }
        };
        let looked = tokio::time::Instant::now();
        let elapsed = watch
            .last
            .replace(looked)
            .map_or(Duration::ZERO, |last| looked - last);
        let now = self.clock.now();
        let silent_after = self.silent_after();
        let looked_at = watch.looked_at.replace(now);
        let heard = |worker: WorkerId| {
            let in_session = self.sessions.get(worker).is_some_and(|session| {
                (now - session.last_contact).to_std().unwrap_or_default() <= silent_after
            });
            // A session may have come and gone between two looks.
            let since = self.sessions.last_contact(worker);
            in_session || looked_at.is_some_and(|before| since > Some(before))
        };
        let lapsed = lapsed(&mut watch.leases, &current, heard, elapsed, true);
        let after = self.settings.unreachable_after;
        self.change_attempts(&lapsed.unreachable, move |ledger, fence| {
            ledger.unreachable(fence, after);
        })
        .await?;
        let lost_after = self.settings.lost_after;
        self.change_attempts(&lapsed.record_gone, move |ledger, fence| {
            ledger.record_gone(fence, after, lost_after);
        })
        .await?;
        self.change_attempts(&lapsed.back, Ledger::reachable)
            .await?;
        self.change_attempts(&lapsed.lost, Ledger::give_up).await
    }

    /// Has people told when jobs wait and none runs anywhere, and when that is over. Time in which the
    /// database did not answer does not count.
    pub(crate) async fn watch_queue(&self, watch: &mut QueueWatch) -> Result<(), Error> {
        let before = watch.looked.take();
        let now = self.clock.now();
        let (look, away) = self.look_at_queue(now).await?;
        let looked = tokio::time::Instant::now();
        watch.looked = Some(looked);
        let passed = before.map_or(Duration::ZERO, |before| looked - before);
        let Some(news) = watch.watch.observe(look, passed, watch.after) else {
            return Ok(());
        };
        self.tell(queue_news(news, away, now)).await?;
        watch.watch.told(news);
        Ok(())
    }

    /// The queue, and whether no worker is connected.
    async fn look_at_queue(&self, now: DateTime<Utc>) -> Result<(standstill::Look, bool), Error> {
        let look = standstill::Look {
            waiting: None,
            runs: !self.store.current_attempts(1).await?.is_empty(),
            on_purpose: false,
        };
        // Nobody needs to know what waits meanwhile, and to find out takes long in a long queue.
        if look.runs {
            return Ok((look, false));
        }
        let oldest = self.store.oldest_queued(None, now).await?;
        let workers = self.worker_views("", None, MAX_WORKERS).await?;
        let is_connected = |worker: &&WorkerView| {
            use WorkerState::{Draining, Online, Paused};
            matches!(worker.state, Online | Paused | Draining)
        };
        let mut connected = workers.iter().filter(is_connected).peekable();
        let away = connected.peek().is_none();
        let may_start = connected.any(|worker| worker.state == WorkerState::Online);
        let look = standstill::Look {
            waiting: oldest.map(|(job, _)| job),
            on_purpose: !away && !may_start || self.store.queue_is_paused().await?,
            ..look
        };
        Ok((look, away))
    }

    /// Holds queued jobs that have waited too long for the worker that has their checkpoint.
    pub(crate) async fn hold_for_checkpoints(self: &Arc<Self>) -> Result<(), Error> {
        let wait = self.settings.checkpoint_wait;
        let before = self.clock.now() - wait;
        let waiting = self.store.waiting_for_checkpoint(before).await?;
        let away: HashMap<JobId, String> = waiting
            .into_iter()
            .filter(|(_, worker, _)| !self.sessions.is_connected(*worker))
            .map(|(job, _, name)| (job, name))
            .collect();
        let jobs: Vec<JobId> = away.keys().copied().collect();
        let hours = wait.as_secs() / 3_600;
        self.change_jobs(&jobs, move |ledger, job| {
            let name = away.get(&job).map(String::as_str).unwrap_or_default();
            let message = format!(
                "held because its checkpoint is on worker `{name}`, which has been away for {hours} h; \
                 release it to begin afresh on another worker"
            );
            let refusal = ledger.job_event(job, &JobEvent::HoldForCheckpoint(message), COORDINATOR);
            debug_assert!(!matches!(refusal, Err(JobRefusal::Running)));
        })
        .await
    }

    /// Forgets request ids that are older than they are kept.
    pub(crate) async fn forget_requests(&self) -> Result<(), Error> {
        let before = self.clock.now() - self.settings.requests_kept;
        while self.store.forget_requests(before, FORGET_BATCH).await? == FORGET_BATCH as u64 {}
        Ok(())
    }

    /// Asks for a look at the queue.
    pub(crate) fn wake_dispatcher(&self) {
        self.wake.dispatch();
    }

    /// Returns jobs that have ended since the last time, once there are any.
    pub(crate) async fn next_ended(&self) -> Vec<JobId> {
        loop {
            let ended = self.wake.take_ended(BATCH);
            if !ended.is_empty() {
                return ended;
            }
            self.wake.some_ended().await;
        }
    }

    /// Puts jobs back that could not be announced.
    pub(crate) fn ended_again(&self, jobs: &[JobId]) {
        self.wake.ended(jobs);
    }

    /// Returns once the time of an earlier wait than `until` is announced, or `until` has come.
    pub(crate) async fn time_passed(&self, until: DateTime<Utc>) {
        let mut until = until;
        loop {
            if let Some(earlier) = self.wake.take_next() {
                until = until.min(earlier);
            }
            let left = (until - self.clock.now()).to_std().unwrap_or_default();
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left) => return,
                () = self.wake.time_changed() => {}
            }
        }
    }

    async fn change_jobs<F>(self: &Arc<Self>, jobs: &[JobId], change: F) -> Result<(), Error>
    where
        F: Fn(&mut Ledger, JobId) + Clone + Send + 'static,
    {
        for part in jobs.chunks(BATCH) {
            let (app, part, change) = (Arc::clone(self), part.to_vec(), change.clone());
            self.transact(move |conn| {
                Box::pin(async move {
                    let mut ledger = app.open_ledger(conn, Which::Jobs(&part)).await?;
                    for job in part {
                        change(&mut ledger, job);
                    }
                    Ok(((), app.save_ledger(conn, ledger).await?))
                })
            })
            .await?;
        }
        Ok(())
    }

    async fn change_attempts<F>(self: &Arc<Self>, fences: &[Fence], change: F) -> Result<(), Error>
    where
        F: Fn(&mut Ledger, Fence) + Clone + Send + 'static,
    {
        for part in fences.chunks(BATCH) {
            let (app, part, change) = (Arc::clone(self), part.to_vec(), change.clone());
            self.transact(move |conn| {
                Box::pin(async move {
                    let mut ledger = app.open_ledger(conn, Which::Attempts(&part)).await?;
                    for fence in part {
                        change(&mut ledger, fence);
                    }
                    Ok(((), app.save_ledger(conn, ledger).await?))
                })
            })
            .await?;
        }
        Ok(())
    }
}

/// How people are told of the queue.
fn queue_news(news: standstill::News, away: bool, now: DateTime<Utc>) -> Notice {
    const SUBJECT: &str = "queue";
    match news {
        standstill::News::Stands(job, stood) => {
            let since = TimeDelta::from_std(stood).map_or(now, |stood| now - stood);
            let details = Details {
                since: Some(since),
                doing: if away { "away" } else { "full" }.to_owned(),
                ..Details::default()
            };
            Notice {
                job: Some(job),
                ..Notice::about(Class::QueueStands, SUBJECT, details)
            }
        }
        standstill::News::Moves => Notice::about(Class::QueueMoves, SUBJECT, Details::default()),
    }
}
