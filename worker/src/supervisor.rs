//! The agent's one owner of state: which attempts it holds, which shims it has, what the
//! coordinator knows. Everything that happens reaches it as an event; what to do is decided by
//! `qctl-worker-core`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use qctl_proto::v1::open_session_request::Message as Say;
use qctl_proto::v1::open_session_response::Message as Said;
use qctl_proto::v1::shim_request::Message as Ask;
use qctl_proto::v1::{
    Assignment, AssignmentReturned, HeldAttempt, OpenSessionRequest, PauseChanged, ResultCommitted,
    Revoke, SetPaused, ShimLease, ShimRequest, ShimRetire, ShimRun, SlotFreed, Stop, StopCause,
    Verdict as WireVerdict, Welcome, verdict,
};
use qctl_worker_core::lease_guard;
use qctl_worker_core::roster::{Effect, Roster, ShimId};
use qctl_worker_core::session::{
    self, Identity, Reconciled, Stage, Verdict, accept_assignment, reconcile,
};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::adoption::{Loss, Noticed, conclude};
use crate::follower::{Fact, Follower, Note};
use crate::held::{Change, Held, Terms};
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

/// Bounds of the pause after a shim that could not be started.
const FIRST_SPAWN_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_SPAWN_PAUSE: Duration = Duration::from_secs(30);

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
        let mut follower = Follower::new(Arc::new(file), self.with.pump.clone());
        let mut notes = Vec::new();
        loop {
            match follower.read(wall_now(), &mut notes) {
                Ok(true) => tokio::task::yield_now().await,
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(shim, %error, "segment {shim} is read up to its last good record: {error}");
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
            .map(|(fence, held)| (*fence, held.terms.waiting(*fence).slots));
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

    // What shims tell.

    fn heard(&mut self, shim: ShimId, event: LinkEvent) {
        match event {
            LinkEvent::Notes(notes) => self.note(shim, notes),
            LinkEvent::Idle => {
                if let Some(known) = self.shims.get_mut(&shim) {
                    known.ready = true;
                    self.spawn_failures = 0;
                }
                // A bell that rang before the shim read its assignment says nothing about it.
                if self.roster.attempt_of(shim).is_none() {
                    self.roster.idle(shim);
                }
            }
            LinkEvent::Retiring => self.roster.retiring(shim),
            LinkEvent::Gone(follower) => self.gone(shim, *follower, Noticed::Now),
        }
    }

    /// Takes what a segment tells.
    fn note(&mut self, shim: ShimId, notes: Vec<Note>) {
        for Note { fence, fact } in notes {
            if let Fact::Assigned(assignment) = &fact {
                let held = self
                    .attempts
                    .entry(fence)
                    .or_insert_with(|| Held::waiting(Terms::of(assignment)));
                held.shim = Some(shim);
                if let Some(shim) = self.shims.get_mut(&shim) {
                    shim.attempts.insert(fence);
                }
            }
            self.apply(fence, &fact);
        }
    }

    fn concluded(&mut self, notes: Vec<Note>) {
        for Note { fence, fact } in notes {
            self.apply(fence, &fact);
        }
    }

    fn apply(&mut self, fence: i64, fact: &Fact) {
        let Some(held) = self.attempts.get_mut(&fence) else {
            return;
        };
        match held.apply(fence, fact) {
            Change::Nothing => {}
            Change::Progress => {
                if let Some(progress) = held.progress_message(fence) {
                    self.say_if_room(Say::Progress(progress));
                }
            }
            Change::Started => {
                if let Some(started) = held.started_message(fence) {
                    self.say(Say::Started(started));
                }
            }
            Change::Paused => {
                let paused = held.paused.unwrap_or_default();
                self.say(Say::PauseChanged(PauseChanged { fence, paused }));
            }
            Change::Ended => {
                let (ended, freed) = (held.ended_message().cloned(), !held.slot_held());
                if let Some(ended) = ended {
                    self.say(Say::Ended(ended));
                }
                if freed {
                    self.freed(fence);
                }
            }
            Change::Freed => self.freed(fence),
        }
    }

    fn freed(&mut self, fence: i64) {
        self.roster.freed(fence);
        self.say(Say::SlotFreed(SlotFreed { fence }));
        self.settle(fence);
    }

    /// The shim is gone, and its segment belongs to this agent.
    fn gone(&mut self, shim: ShimId, follower: Follower, noticed: Noticed) {
        if let Some(known) = self.shims.get_mut(&shim) {
            known.link = None;
            if !known.ready {
                self.spawn_failed(shim, "it ended before it was ready; shim.log says why");
            }
        }
        let losses: Vec<Loss> = self
            .attempts
            .iter()
            .filter(|(_, held)| held.shim == Some(shim))
            .filter_map(|(fence, held)| Loss::of(*fence, held, &self.with.boot_id))
            .collect();
        let unswept = losses.iter().find(|loss| loss.unswept());
        let unswept = unswept.and_then(|loss| {
            let held = self.attempts.get(&loss.fence())?;
            Some((loss.fence(), held.terms.waiting(loss.fence()).slots))
        });
        self.roster.gone(shim, unswept);
        if losses.is_empty() {
            return;
        }
        let (pump, conclusions) = (self.with.pump.clone(), self.conclusions.clone());
        tokio::task::spawn_blocking(move || {
            let notes = conclude(&follower, &losses, noticed, &pump);
            // The agent is ending when nobody listens; its successor finds the same.
            let _ = conclusions.send(notes);
        });
    }

    fn stored(&mut self, fence: i64) {
        if let Some(held) = self.attempts.get_mut(&fence) {
            held.log_stored = u64::MAX;
            self.settle(fence);
        }
    }

    // What the coordinator tells.

    fn session(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Greeting(reply) => {
                self.greeting = true;
                let held = self.attempts.iter();
                let held = held.map(|(fence, held)| held.greeting(*fence)).collect();
                // Without a listener there is no greeting, and the next one asks again.
                let _ = reply.send(held);
            }
            SessionEvent::Welcomed(welcomed) => self.welcomed(*welcomed),
            SessionEvent::Said(said) => self.said(said),
            SessionEvent::Answered(sent) => {
                self.answered = Some(sent);
                self.renew_leases();
            }
            SessionEvent::Closed => self.session = None,
        }
    }

    fn welcomed(&mut self, welcomed: Welcomed) {
        let welcome = welcomed.welcome;
        self.session = Some(Session {
            outbox: welcomed.outbox,
            overflow: welcomed.overflow,
            term: welcome.term,
        });
        self.greeting = false;
        self.answered = Some(welcomed.greeted_at);
        let lost_after = welcome.lost_after.as_ref();
        self.lost_after = lost_after
            .and_then(|time| Duration::try_from(*time).ok())
            .unwrap_or(LOST_AFTER);
        self.roster.set_slots(welcome.slots.max(1) as u32);
        for verdict in welcome.verdicts {
            self.reconcile(&verdict);
        }
        self.renew_leases();
    }

    fn reconcile(&mut self, wire: &WireVerdict) {
        let fence = wire.fence;
        let Some(held) = self.attempts.get_mut(&fence) else {
            return;
        };
        let verdict = match wire.action() {
            // An action that this program does not know changes nothing.
            verdict::Action::Continue | verdict::Action::Unspecified => Verdict::Continue,
            verdict::Action::Stop => Verdict::Stop,
            verdict::Action::SendResult => Verdict::SendResult,
            verdict::Action::Forget => Verdict::Forget,
        };
        let action = reconcile(held.stage(), verdict);
        if !matches!(action, Reconciled::Forget | Reconciled::Drop) {
            held.log_stored = wire.log_stored.max(0) as u64;
            held.settled_at = None;
            self.with.pump.resume(fence, held.log_stored);
        }
        let started = held.started_message(fence).map(Say::Started);
        let paused = held.paused;
        let paused = paused.map(|paused| Say::PauseChanged(PauseChanged { fence, paused }));
        let progress = held.progress_message(fence).map(Say::Progress);
        let ended = held.ended_message().cloned().map(Say::Ended);
        let freed = (!held.slot_held()).then_some(Say::SlotFreed(SlotFreed { fence }));
        match action {
            Reconciled::Wait => {}
            Reconciled::Drop => self.drop_waiting(fence),
            Reconciled::TellStarted => {
                let says = [started, paused, progress].into_iter().flatten();
                says.for_each(|say| self.say(say));
            }
            Reconciled::Stop => self.ask(
                fence,
                Ask::Stop(Stop {
                    fence,
                    cause: StopCause::Superseded.into(),
                    grace: None,
                }),
            ),
            Reconciled::TellEnded => {
                let says = [ended, freed].into_iter().flatten();
                says.for_each(|say| self.say(say));
                self.settle(fence);
            }
            Reconciled::Forget => self.forget(fence),
        }
    }

    fn said(&mut self, said: Said) {
        match said {
            Said::Assign(assign) => {
                for assignment in assign.assignments {
                    self.assign(assignment);
                }
            }
            Said::Revoke(Revoke { fence }) => self.revoke(fence),
            Said::Stop(stop) => {
                if self.stage(stop.fence) == Some(Stage::Waiting) {
                    self.revoke(stop.fence);
                } else {
                    self.ask(stop.fence, Ask::Stop(stop));
                }
            }
            Said::ResultCommitted(ResultCommitted { fence }) => self.committed(fence),
            Said::SetSlots(slots) => self.roster.set_slots(slots.slots.max(1) as u32),
            Said::SetPaused(SetPaused { fence, paused }) => {
                self.ask(fence, Ask::SetPaused(SetPaused { fence, paused }));
            }
            // The session takes these itself.
            Said::Welcome(_) | Said::HeartbeatAck(_) => {}
        }
    }

    fn assign(&mut self, assignment: Assignment) {
        let fence = assignment.fence;
        let Some(session) = &self.session else {
            return;
        };
        if self.attempts.contains_key(&fence) {
            return;
        }
        let spool_id = self.with.spool.spool_id();
        let made = Identity {
            term: assignment.term,
            boot_id: &assignment.boot_id,
            spool_id: &assignment.spool_id,
        };
        let me = Identity {
            term: session.term,
            boot_id: &self.with.boot_id,
            spool_id: &spool_id,
        };
        let accepted = accept_assignment(made, me, self.roster.waiting_count());
        let has_command = assignment
            .spec
            .as_ref()
            .is_some_and(|spec| !spec.command.is_empty());
        let accepted = accepted.and(has_command.then_some(()).ok_or(session::Refusal::Empty));
        if let Err(refusal) = accepted {
            tracing::warn!(fence, %refusal, "the assignment with fence {fence} is returned: {refusal}");
            self.say(Say::Returned(AssignmentReturned {
                fence,
                returned: true,
                message: format!("the worker returned the assignment: {refusal}"),
            }));
            return;
        }
        let terms = Terms::of(&assignment);
        self.roster.assign(terms.waiting(fence));
        self.attempts.insert(fence, Held::waiting(terms));
        self.assignments.insert(fence, assignment);
    }

    fn revoke(&mut self, fence: i64) {
        let (returned, message) = match self.stage(fence) {
            Some(Stage::Waiting) => (true, "it had not started"),
            Some(Stage::Running) => (false, "it has started"),
            Some(Stage::Ended) => (false, "it has ended"),
            None => (true, "the worker does not hold it"),
        };
        if returned {
            self.drop_waiting(fence);
        }
        self.say(Say::Returned(AssignmentReturned {
            fence,
            returned,
            message: message.to_owned(),
        }));
    }

    fn drop_waiting(&mut self, fence: i64) {
        self.roster.revoke(fence);
        self.assignments.remove(&fence);
        self.attempts.remove(&fence);
    }

    fn committed(&mut self, fence: i64) {
        let Some(held) = self.attempts.get_mut(&fence) else {
            return;
        };
        held.committed = true;
        if held.succeeded() && held.may_have_checkpoints() {
            let (spool, job_id) = (Arc::clone(&self.with.spool), held.terms.job_id);
            tokio::task::spawn_blocking(move || {
                if let Err(error) = spool.remove_checkpoints(job_id) {
                    tracing::warn!(job_id, %error, "checkpoints of job {job_id} could not be removed: {error}");
                }
            });
        }
        self.ask(fence, Ask::Committed(ResultCommitted { fence }));
        self.settle(fence);
    }

    /// Notes when nothing is owed any more.
    fn settle(&mut self, fence: i64) {
        if let Some(held) = self.attempts.get_mut(&fence)
            && held.settled()
            && held.settled_at.is_none()
        {
            held.settled_at = Some(Instant::now());
        }
    }

    fn forget(&mut self, fence: i64) {
        self.with.pump.forget(fence);
        let shim = self.attempts.remove(&fence).and_then(|held| held.shim);
        if let Some(shim) = shim.and_then(|shim| self.shims.get_mut(&shim)) {
            shim.attempts.remove(&fence);
        }
    }

    fn renew_leases(&mut self) {
        let Some(answered) = self.answered else {
            return;
        };
        let exclusive: Vec<_> = self
            .attempts
            .iter()
            .filter(|(_, held)| held.terms.exclusive && held.stage() == Stage::Running)
            .map(|(fence, held)| (*fence, self.lease(answered, held.terms.grace)))
            .collect();
        for (fence, lease) in exclusive {
            let holds_for = lease.try_into().ok();
            self.ask(fence, Ask::Lease(ShimLease { fence, holds_for }));
        }
    }

    fn lease(&self, answered: Instant, grace: Duration) -> Duration {
        let now = self.clock.elapsed();
        let answered = answered.saturating_duration_since(self.clock);
        lease_guard::exclusive_lease(now, answered, self.lost_after, grace)
    }

    // What to do.

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
                        self.spawn_failed(shim, &format!("{error:#}"));
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

    fn spawn(&mut self, shim: ShimId) -> anyhow::Result<()> {
        let segment = self.with.spool.create_segment(shim)?;
        let result = self.start_shim(shim);
        let (child, stream) = match result {
            Ok(started) => started,
            Err(error) => {
                self.with.spool.remove_segment(shim)?;
                return Err(error);
            }
        };
        self.shims.insert(
            shim,
            Shim {
                link: None,
                child: Some(child),
                ready: false,
                attempts: BTreeSet::new(),
            },
        );
        let follower = Follower::new(Arc::new(segment), self.with.pump.clone());
        self.link(shim, Some(stream), follower);
        Ok(())
    }

    /// Starts a shim in a session of its own, so that nothing that ends the agent ends it.
    fn start_shim(&self, shim: ShimId) -> anyhow::Result<(Child, UnixStream)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let log: File = self.with.spool.shim_log()?;
        let child = Command::new(&self.with.shim_program)
            .arg0("qctl-worker")
            .arg("shim")
            .arg("--segment")
            .arg(spool::segment_name(shim))
            .arg("--socket")
            .arg(self.with.spool.socket(shim))
            .current_dir(self.with.spool.segments_dir())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()?;
        Ok((child, UnixStream::from_std(ours)?))
    }

    fn link(&mut self, shim: ShimId, stream: Option<UnixStream>, follower: Follower) {
        let link = Link::start(
            shim,
            stream,
            self.with.spool.socket(shim),
            follower,
            self.events.clone(),
            self.clock,
        );
        if let Some(shim) = self.shims.get_mut(&shim) {
            shim.link = Some(link);
        }
    }

    fn spawn_failed(&mut self, shim: ShimId, reason: &str) {
        let doubled = FIRST_SPAWN_PAUSE.saturating_mul(1 << self.spawn_failures.min(10));
        let pause = doubled.min(LONGEST_SPAWN_PAUSE);
        self.spawn_failures = self.spawn_failures.saturating_add(1);
        self.spawn_after = Instant::now() + pause;
        tracing::error!(
            shim,
            reason,
            ?pause,
            "shim {shim} could not be started: {reason}"
        );
    }

    // What is told.

    fn say(&mut self, message: Say) {
        let Some(session) = &self.session else {
            return;
        };
        let message = OpenSessionRequest {
            message: Some(message),
        };
        if session.outbox.try_send(message).is_err() {
            session.overflow.cancel();
            self.session = None;
        }
    }

    /// Says something that may be left out.
    fn say_if_room(&mut self, message: Say) {
        let room = self
            .session
            .as_ref()
            .is_some_and(|session| session.outbox.capacity() > session.outbox.max_capacity() / 2);
        if room {
            self.say(message);
        }
    }

    // What is left over.

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
                tracing::warn!(shim, %error, "segment {shim} is not needed but could not be removed: {error}");
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
                    tracing::warn!(%error, "something old could not be removed: {error}");
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
