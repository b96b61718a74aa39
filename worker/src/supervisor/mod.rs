//! The agent's one loop. Everything that happens reaches it as an event; what to do about it is
//! decided by [`qctl_worker_core::agent`], and carried out here.

mod effects;
mod shims;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use qctl_proto::v1::open_session_response::Message as Said;
use qctl_proto::v1::{
    Assignment, CheckpointPublished, HeldAttempt, OpenSessionRequest, ResultCommitted,
    ResumeChosen, Revoke, SetPaused, Welcome,
};
use qctl_worker_core::agent::{Agent, Close, Effect, Event, Fact};
use qctl_worker_core::checkpoint::CheckpointId;
use qctl_worker_core::enforcement::StopCause;
use qctl_worker_core::roster::ShimId;
use qctl_worker_core::silence;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::checkpoints::{Checkpoints, Told};
use crate::clock::{self, JumpWatch};
use crate::follower::Follower;
use crate::inventory::host::Observer;
use crate::inventory::probe::Prober;
use crate::log_pump::Pump;
use crate::shim_link::{Events, Link, LinkEvent};
use crate::spool::{Spool, SpoolError};
use crate::watch::Watcher;
use crate::wire;
pub(crate) use shims::AdoptError;

/// How long idle shims may take to end when the agent does. Whoever takes longer ends alone.
const RETIRE_WITHIN: Duration = Duration::from_secs(1);

/// Pause between two tries to take charge of the shims.
const CHARGE_PAUSE: Duration = Duration::from_millis(20);

/// Time between two looks at the GPUs of jobs.
const LOOK_AT_GPUS: Duration = Duration::from_secs(5);

/// Events of links that wait for the supervisor.
const QUEUED_EVENTS: usize = 1024;

/// What the session tells the supervisor.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    /// A greeting is about to be sent; everything that is held must be in it.
    Greeting(oneshot::Sender<Greeting>),
    /// The coordinator has answered the greeting.
    Welcomed(Box<Welcomed>),
    /// The coordinator says something.
    Said(Said),
    /// The session is over.
    Closed,
}

/// Everything that is held.
#[derive(Debug)]
pub(crate) struct Greeting {
    /// The attempts.
    pub(crate) attempts: Vec<HeldAttempt>,
    /// Checkpoints that the coordinator has not answered for.
    pub(crate) checkpoints: Vec<CheckpointPublished>,
}

/// A session that begins.
#[derive(Debug)]
pub(crate) struct Welcomed {
    /// The answer to the greeting.
    pub(crate) welcome: Welcome,
    /// When the greeting was sent, by the clock that never jumps.
    pub(crate) greeted_at: Duration,
    /// Where to say something.
    pub(crate) outbox: mpsc::Sender<OpenSessionRequest>,
    /// Told whether the session is accepted.
    pub(crate) accepted: oneshot::Sender<Result<(), Ending>>,
    /// Told when it must end later on.
    pub(crate) end: oneshot::Sender<Ending>,
}

/// Why this side ends a session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ending {
    /// As decided.
    #[error(transparent)]
    Decided(#[from] Close),
    /// A new session must tell everything anew.
    #[error("too much waits to be told")]
    Overflow,
    /// Without its memory a worker might obey a coordinator that no longer leads.
    #[error("the leadership term cannot be remembered")]
    Term(#[from] SpoolError),
}

/// What the supervisor works with.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) spool: Arc<Spool>,
    pub(crate) boot_id: String,
    pub(crate) shim_program: PathBuf,
    /// How many files a job may open at once; `None` for any number.
    pub(crate) open_files: Option<u64>,
    /// Folder of the installation's data.
    pub(crate) data: PathBuf,
    pub(crate) slots: u32,
    /// Most bytes of an attempt's output to keep, unless the job says otherwise.
    pub(crate) log_limit: u64,
    /// What holds about silence where a job says nothing.
    pub(crate) silence: silence::Wish,
    pub(crate) pump: Pump,
    pub(crate) checkpoints: Checkpoints,
    /// What is found out about checkpoints.
    pub(crate) found: mpsc::UnboundedReceiver<Told>,
    pub(crate) observer: Observer,
    pub(crate) watcher: Watcher,
    /// How GPUs are probed, and where the result is told.
    pub(crate) prober: Prober,
    pub(crate) tell_gpus: mpsc::UnboundedSender<Event>,
    /// What is found out about GPUs.
    pub(crate) gpus: mpsc::UnboundedReceiver<Event>,
    /// Attempts whose output is stored to its end.
    pub(crate) stored: mpsc::UnboundedReceiver<i64>,
    pub(crate) session: mpsc::Receiver<SessionEvent>,
}

#[derive(Debug)]
struct Session {
    outbox: mpsc::Sender<OpenSessionRequest>,
    accepted: Option<oneshot::Sender<Result<(), Ending>>>,
    end: oneshot::Sender<Ending>,
}

/// The supervisor.
#[derive(Debug)]
pub(crate) struct Supervisor {
    with: Surroundings,
    agent: Agent,
    /// Attempts that an earlier agent had started and that run on, until the coordinator knows.
    adopted: BTreeSet<i64>,
    /// This agent's number: shims start nothing for another one.
    number: u64,
    clocks: JumpWatch,
    /// For the links' own timing.
    started: Instant,
    /// What is to run, until a shim has it.
    assignments: HashMap<i64, Assignment>,
    links: BTreeMap<ShimId, Link>,
    /// Shims that this agent started, until they were waited for.
    children: BTreeMap<ShimId, Child>,
    /// Segments of vanished shims, until what became of their attempts is being found out.
    followers: BTreeMap<ShimId, Follower>,
    events: Events,
    heard: mpsc::Receiver<(ShimId, LinkEvent)>,
    conclusions: mpsc::UnboundedSender<Vec<(i64, Fact)>>,
    concluded: mpsc::UnboundedReceiver<Vec<(i64, Fact)>>,
    /// What silent attempts do: one look a stage.
    look: mpsc::UnboundedSender<Event>,
    looked: mpsc::UnboundedReceiver<Event>,
    session: Option<Session>,
    /// Who waits for the greeting.
    greeting: Option<oneshot::Sender<Greeting>>,
    /// What attempts resume from, until it is told.
    chosen: BTreeMap<i64, ResumeChosen>,
    /// What effects have brought about, in order.
    followed: VecDeque<Event>,
}

impl Supervisor {
    /// Takes over what an earlier agent left: living shims are linked to, and for the others it is
    /// found out what became of their attempts.
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub(crate) async fn adopt(with: Surroundings) -> Result<Self, AdoptError> {
        // First: from here on no shim starts anything that an earlier agent asked for.
        let number = take_charge(&with.spool).await?;
        let found = with.spool.shims()?;
        let (events, heard) = mpsc::channel(QUEUED_EVENTS);
        let (conclusions, concluded) = mpsc::unbounded_channel();
        let (look, looked) = mpsc::unbounded_channel();
        let agent = Agent::new(
            with.boot_id.clone(),
            with.spool.spool_id(),
            with.spool.term(),
            with.slots,
            clock::now(),
        );
        let mut supervisor = Self {
            agent,
            adopted: BTreeSet::new(),
            number,
            clocks: JumpWatch::new(),
            started: Instant::now(),
            assignments: HashMap::new(),
            links: BTreeMap::new(),
            children: BTreeMap::new(),
            followers: BTreeMap::new(),
            events,
            heard,
            conclusions,
            concluded,
            look,
            looked,
            session: None,
            greeting: None,
            chosen: BTreeMap::new(),
            followed: VecDeque::new(),
            with,
        };
        for shim in found {
            supervisor.adopt_shim(shim).await?;
        }
        let published = supervisor.with.checkpoints.scan();
        supervisor.step(Event::Published(published)).await;
        supervisor.step(Event::Began).await;
        Ok(supervisor)
    }

    /// Works until `stop`. Jobs and their shims live on; shims without a job are sent home.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut gpus = tokio::time::interval(LOOK_AT_GPUS);
        gpus.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            qctl_notify::panics::provoked("agent");
            let due = self.agent.deadline().saturating_sub(clock::now());
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => return self.retire_idle().await,
                () = tokio::time::sleep(due) => Some(Event::Tick),
                Some(event) = self.with.session.recv() => self.session_event(event).await,
                Some((shim, event)) = self.heard.recv() => Some(self.link_event(shim, event)),
                Some(facts) = self.concluded.recv() => {
                    facts.iter().for_each(|(fence, _)| self.with.watcher.leave(*fence));
                    Some(Event::Facts { shim: None, facts })
                }
                Some(event) = self.with.gpus.recv() => Some(event),
                Some(fence) = self.with.stored.recv() => Some(Event::Stored(fence)),
                Some(told) = self.with.found.recv() => Some(self.checkpoint_event(told)),
                Some(event) = self.looked.recv() => Some(event),
                _ = gpus.tick() => {
                    for fence in self.with.watcher.working_gpus() {
                        self.step(Event::Works(fence)).await;
                    }
                    None
                }
            };
            if self.clocks.has_jumped() {
                tracing::warn!("the machine slept or its clock was set; agreeing everything anew");
                self.step(Event::ClockJumped).await;
            }
            if let Some(event) = event {
                self.step(event).await;
            }
            self.reap();
        }
    }

    /// Ends the shims that have no job.
    async fn retire_idle(mut self) {
        let effects = self.agent.step(Event::Ending, clock::now());
        let mut idle: BTreeSet<_> = effects.iter().filter_map(asked).collect();
        for effect in effects {
            self.carry_out(effect).await;
        }
        let deadline = Instant::now() + RETIRE_WITHIN;
        while !idle.is_empty() {
            let Ok(Some((shim, event))) = timeout_at(deadline, self.heard.recv()).await else {
                break;
            };
            if matches!(event, LinkEvent::Gone(_)) {
                idle.remove(&shim);
            }
            let event = self.link_event(shim, event);
            self.step(event).await;
        }
    }

    /// Tells the agent what happened, and carries out what it wants, until nothing follows.
    async fn step(&mut self, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next {
            for effect in self.agent.step(event, clock::now()) {
                self.carry_out(effect).await;
            }
            next = self.followed.pop_front();
        }
        self.tell_chosen();
        if let Some(session) = &mut self.session
            && let Some(accepted) = session.accepted.take()
        {
            self.adopted.clear();
            // Nobody listens when the agent is ending.
            let _ = accepted.send(Ok(()));
        }
    }

    fn checkpoint_event(&mut self, told: Told) -> Event {
        match told {
            Told::Event(event) => event,
            Told::NotNow { fence, reason } => Event::Unprepared { fence, reason },
            Told::Chosen {
                resume_from,
                chosen,
            } => {
                let fence = chosen.fence;
                if let Some(assignment) = self.assignments.get_mut(&fence) {
                    assignment.resume_from = resume_from;
                    self.chosen.insert(fence, chosen);
                    // Before its start, which follows.
                    self.tell_chosen();
                }
                Event::Prepared(fence)
            }
        }
    }

    async fn session_event(&mut self, event: SessionEvent) -> Option<Event> {
        Some(match event {
            SessionEvent::Greeting(reply) => {
                self.session = None;
                self.greeting = Some(reply);
                Event::Greeting
            }
            SessionEvent::Welcomed(welcomed) => {
                self.session = Some(Session {
                    outbox: welcomed.outbox,
                    accepted: Some(welcomed.accepted),
                    end: welcomed.end,
                });
                Event::Welcomed(wire::welcome(welcomed.welcome, welcomed.greeted_at))
            }
            SessionEvent::Closed => {
                self.session = None;
                Event::Closed
            }
            SessionEvent::Said(said) => return self.said(said).await,
        })
    }

    async fn said(&mut self, said: Said) -> Option<Event> {
        Some(match said {
            Said::HeartbeatAck(ack) => Event::Answered {
                sequence: ack.sequence,
                term: ack.term,
            },
            Said::Assign(assign) => {
                for assignment in assign.assignments {
                    self.assign(assignment).await;
                }
                return None;
            }
            Said::Revoke(Revoke { fence }) => Event::Revoke(fence),
            Said::Stop(stop) => {
                let fence = stop.fence;
                // A coordinator that names no cause acts for a person.
                let cause = wire::cause(stop.cause()).unwrap_or(StopCause::Cancel);
                let grace = stop.grace.and_then(wire::duration);
                match stop.gpu.and_then(wire::gpu_fault_from) {
                    Some(fault) => Event::GpuUnused { fence, fault },
                    None => Event::Stop {
                        fence,
                        cause,
                        grace,
                    },
                }
            }
            Said::ResultCommitted(ResultCommitted { fence }) => Event::Committed(fence),
            Said::CheckpointAnswered(answered) => Event::CheckpointAnswered {
                id: CheckpointId {
                    fence: answered.fence,
                    number: answered.number,
                },
                answer: wire::checkpoint_answer(answered.answer())?,
            },
            Said::RemoveCheckpoints(remove) => Event::RemoveCheckpoints(remove.job_ids),
            Said::SetSlots(slots) => Event::SetSlots(wire::slots(slots.slots)),
            Said::SetPaused(SetPaused { fence, paused }) => Event::SetPaused { fence, paused },
            // A second greeting has no meaning.
            Said::Welcome(_) => return None,
        })
    }

    async fn assign(&mut self, mut assignment: Assignment) {
        let told = wire::assignment(&assignment);
        // Only what was verified here is handed to a job.
        assignment.resume_from.clear();
        if self.agent.stage(assignment.fence).is_none() {
            self.assignments.insert(assignment.fence, assignment);
        }
        self.step(Event::Assign(told)).await;
    }
}

/// Takes charge of the shims, once none of them is in the middle of a start.
async fn take_charge(spool: &Spool) -> Result<u64, SpoolError> {
    let mut told = false;
    loop {
        if let Some(number) = spool.take_charge()? {
            return Ok(number);
        }
        tokio::time::sleep(CHARGE_PAUSE).await;
        if !std::mem::replace(&mut told, true) {
            tracing::warn!("waiting for a shim that is in the middle of a start");
        }
    }
}

/// The shim that an effect asks for something.
fn asked(effect: &Effect) -> Option<ShimId> {
    match effect {
        Effect::Ask { shim, .. } => Some(*shim),
        _ => None,
    }
}
