//! The agent's one owner of state: which attempts it holds, which shims it has, what the
//! coordinator knows. Everything that happens reaches it as an event; what to do is decided by
//! `qctl-worker-core`.

mod coordinator;
mod shims;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use qctl_proto::v1::open_session_response::Message as Said;
use qctl_proto::v1::shim_request::Message as Ask;
use qctl_proto::v1::{
    Assignment, HeldAttempt, OpenSessionRequest, ShimRequest, ShimRetire, ShimRun, Welcome,
};
use qctl_worker_core::lease_guard;
use qctl_worker_core::roster::{Effect, Roster, ShimId};
use qctl_worker_core::session::Stage;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::adoption::Noticed;
use crate::chain;
use crate::follower::{Follower, Note};
use crate::held::Held;
use crate::log_pump::Pump;
use crate::shim_link::{Events, Link, LinkEvent, wall_now};
use crate::spool::{self, Spool, SpoolError};

/// How often leftovers are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(2);

/// How often old checkpoints are looked for.
const REMOVE_OLD: Duration = Duration::from_secs(6 * 60 * 60);

/// A settled attempt's record is kept this long: a coordinator that crashes may ask again for what
/// it had acknowledged but not yet made durable.
const SETTLED_FOR: Duration = Duration::from_secs(30);

/// How long idle shims may take to end when the agent does. Whoever takes longer ends alone.
const RETIRE_WITHIN: Duration = Duration::from_secs(1);

/// Silence after which a coordinator gives attempts away, until it says how long it waits.
const LOST_AFTER: Duration = Duration::from_secs(30 * 60);

/// What the session tells the supervisor.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    /// A greeting is about to be sent; everything that is held must be in it.
    Greeting(oneshot::Sender<Vec<HeldAttempt>>),
    /// The coordinator has answered the greeting.
    Welcomed(Box<Welcomed>),
    /// The coordinator says something.
    Said(Said),
    /// The coordinator answered the heartbeat that was sent at this time.
    Answered(Instant),
    /// The session is over.
    Closed,
}

/// A session that has begun.
#[derive(Debug)]
pub(crate) struct Welcomed {
    /// The answer to the greeting.
    pub(crate) welcome: Welcome,
    /// When the greeting was sent.
    pub(crate) greeted_at: Instant,
    /// Where to say something.
    pub(crate) outbox: mpsc::Sender<OpenSessionRequest>,
    /// Cancelled when the outbox takes no more: a new session must tell everything anew.
    pub(crate) overflow: CancellationToken,
}

/// What the supervisor works with.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) spool: Arc<Spool>,
    pub(crate) boot_id: String,
    pub(crate) shim_program: PathBuf,
    pub(crate) slots: u32,
    pub(crate) pump: Pump,
    /// Attempts whose output is stored to its end.
    pub(crate) stored: mpsc::UnboundedReceiver<i64>,
    pub(crate) session: mpsc::Receiver<SessionEvent>,
}

/// A shim that lives, or whose segment still matters.
#[derive(Debug)]
struct Shim {
    link: Option<Link>,
    /// Absent for a shim that an earlier agent started.
    child: Option<Child>,
    /// It has said that it is ready.
    ready: bool,
    /// Its attempts of which the coordinator may still want something.
    attempts: BTreeSet<i64>,
}

#[derive(Debug)]
struct Session {
    outbox: mpsc::Sender<OpenSessionRequest>,
    overflow: CancellationToken,
    term: i64,
}

/// Why the supervisor cannot begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdoptError {
    #[error("the spool cannot be read")]
    Spool(#[from] SpoolError),
    #[error("cannot open the segment {path}")]
    Segment { path: PathBuf, source: io::Error },
}

/// The supervisor.
#[derive(Debug)]
pub(crate) struct Supervisor {
    with: Surroundings,
    clock: Instant,
    roster: Roster,
    attempts: BTreeMap<i64, Held>,
    /// What waiting attempts are to run.
    assignments: HashMap<i64, Assignment>,
    shims: BTreeMap<ShimId, Shim>,
    links: mpsc::Receiver<(ShimId, LinkEvent)>,
    events: Events,
    concluded: mpsc::UnboundedReceiver<Vec<Note>>,
    conclusions: mpsc::UnboundedSender<Vec<Note>>,
    session: Option<Session>,
    /// A greeting was sent and not answered: the coordinator may be taking back what waits.
    greeting: bool,
    /// When the last answered heartbeat was sent.
    answered: Option<Instant>,
    lost_after: Duration,
    spawn_failures: u32,
    spawn_after: Instant,
    removed_old_at: Option<Instant>,
}

impl Supervisor {
    /// Takes over what an earlier agent left: living shims are linked to, and for the others it is
    /// found out what became of their attempts.
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub(crate) async fn adopt(with: Surroundings) -> Result<Self, AdoptError> {
        let found = with.spool.shims()?;
        let (events, links) = mpsc::channel(1024);
        let (conclusions, concluded) = mpsc::unbounded_channel();
        let now = Instant::now();
        let mut supervisor = Self {
            clock: now,
            roster: Roster::new(with.slots, found.last().map_or(1, |last| last + 1)),
            attempts: BTreeMap::new(),
            assignments: HashMap::new(),
            shims: BTreeMap::new(),
            links,
            events,
            concluded,
            conclusions,
            session: None,
            greeting: false,
            answered: None,
            lost_after: LOST_AFTER,
            spawn_failures: 0,
            spawn_after: now,
            removed_old_at: None,
            with,
        };
        for shim in found {
            supervisor.adopt_shim(shim).await?;
        }
        Ok(supervisor)
    }

    async fn adopt_shim(&mut self, shim: ShimId) -> Result<(), AdoptError> {
        let path = self.with.spool.segment(shim);
        let failed = |source| AdoptError::Segment {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        let owned = spool::try_lock(&file).map_err(failed)?.is_some();
        // A living job may write faster than this reads: what comes from now on is left to the link.
        let length = file.metadata().map_err(failed)?.len();
        let mut follower = Follower::new(Arc::new(file), self.with.pump.clone());
        let mut notes = Vec::new();
        loop {
            match follower.read(wall_now(), &mut notes) {
                Ok(true) if follower.position() < length => tokio::task::yield_now().await,
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(
                        shim,
                        "segment {shim} is read up to its last good record: {}",
                        chain(&error)
                    );
                    break;
                }
            }
        }
        self.shims.insert(
            shim,
            Shim {
                link: None,
                child: None,
                ready: true,
                attempts: BTreeSet::new(),
            },
        );
        self.note(shim, notes);
        let attempts = self.shims.get(&shim).map_or(0, |shim| shim.attempts.len());
        let running = self
            .attempts
            .iter()
            .find(|(_, held)| held.shim == Some(shim) && held.slot_held())
            .map(|(fence, held)| (*fence, held.terms.waiting(*fence).takes()));
        if owned {
            tracing::info!(
                shim,
                attempts,
                "shim {shim} of an earlier agent is gone; it left {attempts} attempts"
            );
            self.roster.adopt(shim, running);
            self.gone(shim, follower, Noticed::Before);
        } else {
            tracing::info!(
                shim,
                attempts,
                "adopted living shim {shim} with {attempts} attempts"
            );
            self.roster.adopt(shim, running);
            self.link(shim, None, follower);
        }
        Ok(())
    }

    /// Works until `stop`. Jobs and their shims live on; shims without a job are sent home.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.retire_idle().await,
                Some((shim, event)) = self.links.recv() => self.heard(shim, event),
                Some(event) = self.with.session.recv() => self.session(event),
                Some(notes) = self.concluded.recv() => self.concluded(notes),
                Some(fence) = self.with.stored.recv() => self.stored(fence),
                _ = housekeeping.tick() => self.housekeep(),
            }
            self.plan();
        }
    }

    /// Ends the shims that have no job, so that a worker that is stopped leaves nothing behind but
    /// jobs.
    async fn retire_idle(mut self) {
        let mut idle = BTreeSet::new();
        for (shim, known) in &mut self.shims {
            if let Some(link) = &known.link
                && self.roster.attempt_of(*shim).is_none()
            {
                link.send(request(Ask::Retire(ShimRetire {})));
                known.ready = true;
                idle.insert(*shim);
            }
        }
        let deadline = Instant::now() + RETIRE_WITHIN;
        while !idle.is_empty() {
            let Ok(Some((shim, event))) = timeout_at(deadline, self.links.recv()).await else {
                break;
            };
            if matches!(event, LinkEvent::Gone(_)) {
                idle.remove(&shim);
            }
            self.heard(shim, event);
        }
        self.housekeep();
    }

    fn plan(&mut self) {
        let now = Instant::now();
        let answered = self
            .answered
            .map(|at| at.saturating_duration_since(self.clock));
        let may_start =
            !self.greeting && lease_guard::may_start(now.duration_since(self.clock), answered);
        for effect in self.roster.plan(may_start, now >= self.spawn_after) {
            match effect {
                Effect::Run { shim, fence } => self.run_attempt(shim, fence),
                Effect::Spawn { shim } => {
                    if let Err(error) = self.spawn(shim) {
                        self.roster.gone(shim, None);
                        self.spawn_failed(shim, &chain(&error));
                    }
                }
                Effect::Retire { shim } => {
                    if let Some(link) = self.shims.get(&shim).and_then(|shim| shim.link.as_ref()) {
                        link.send(request(Ask::Retire(ShimRetire {})));
                    }
                }
            }
        }
    }

    fn run_attempt(&mut self, shim: ShimId, fence: i64) {
        let Some(assignment) = self.assignments.remove(&fence) else {
            return;
        };
        let answered = self.answered.unwrap_or(self.clock);
        let Some(held) = self.attempts.get_mut(&fence) else {
            return;
        };
        held.shim = Some(shim);
        let (exclusive, grace) = (held.terms.exclusive, held.terms.grace);
        let checkpoint_dir = self
            .with
            .spool
            .checkpoint_dir(assignment.job_id, assignment.attempt);
        let run = ShimRun {
            lease: exclusive
                .then(|| self.lease(answered, grace).try_into().ok())
                .flatten(),
            checkpoint_dir: checkpoint_dir.to_string_lossy().into_owned(),
            assignment: Some(assignment),
        };
        if let Some(shim) = self.shims.get_mut(&shim) {
            shim.attempts.insert(fence);
        }
        self.ask(fence, Ask::Run(run));
    }

    /// Asks the shim that has an attempt, if there is one.
    fn ask(&self, fence: i64, message: Ask) {
        let shim = self.attempts.get(&fence).and_then(|held| held.shim);
        let link = shim
            .and_then(|shim| self.shims.get(&shim))
            .and_then(|shim| shim.link.as_ref());
        if let Some(link) = link {
            link.send(request(message));
        }
    }

    fn housekeep(&mut self) {
        let now = Instant::now();
        let settled: Vec<_> = self
            .attempts
            .iter()
            .filter(|(_, held)| {
                held.settled_at
                    .is_some_and(|at| now.duration_since(at) >= SETTLED_FOR)
            })
            .map(|(fence, _)| *fence)
            .collect();
        settled.into_iter().for_each(|fence| self.forget(fence));
        self.shims.retain(|shim, known| {
            let ended = known
                .child
                .as_mut()
                .is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            if known.link.is_some() || !known.attempts.is_empty() || !ended {
                return true;
            }
            if let Err(error) = self.with.spool.remove_segment(*shim) {
                tracing::warn!(
                    shim,
                    "segment {shim} is not needed but could not be removed: {}",
                    chain(&error)
                );
            }
            false
        });
        let due = self
            .removed_old_at
            .is_none_or(|at| now.duration_since(at) >= REMOVE_OLD);
        if due {
            self.removed_old_at = Some(now);
            let running: Vec<_> = self
                .attempts
                .values()
                .map(|held| held.terms.job_id)
                .collect();
            let spool = Arc::clone(&self.with.spool);
            tokio::task::spawn_blocking(move || {
                for error in spool.remove_old(SystemTime::now(), &running) {
                    tracing::warn!("something old could not be removed: {}", chain(&error));
                }
            });
        }
    }

    fn stage(&self, fence: i64) -> Option<Stage> {
        self.attempts.get(&fence).map(Held::stage)
    }
}

fn request(message: Ask) -> ShimRequest {
    ShimRequest {
        message: Some(message),
    }
}
