//! The agent's connection to the coordinator: dials out, greets, keeps alive, and dials again for
//! as long as the agent lives.

use std::sync::Arc;
use std::time::Duration;

use qctl_proto::client::{AuthorizedChannel, ConnectError, Target, may_follow};
use qctl_proto::error::{Fault, Reason};
use qctl_proto::v1::open_session_request::Message as Say;
use qctl_proto::v1::open_session_response::Message as Said;
use qctl_proto::v1::worker_session_service_client::WorkerSessionServiceClient;
use qctl_proto::v1::{AlarmSetting, Hello, OpenSessionRequest, OpenSessionResponse, Welcome};
use qctl_proto::{MAX_MESSAGE_BYTES, PROTOCOL_VERSION};
use qctl_worker_core::session::{Route, redial_delay};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::checkpoints::Coordinator;
use crate::coordinators::{Coordinators, TokenError};
use crate::inventory::gpu::{self, Gpu, Nvml};
use crate::inventory::host::Host;
use crate::inventory::place::Places;
use crate::log_pump::{Pump, uplink};
use crate::spool::{Spool, SpoolError};
use crate::supervisor::{Ending, Greeting, SessionEvent, Welcomed};
use crate::{chain, clock};

/// Messages that wait to be sent. A session that falls further behind is begun anew.
const OUTBOX: usize = 65_536;

/// How long the coordinator may take to answer the greeting.
const GREETING_WITHIN: Duration = Duration::from_secs(20);

/// A session that lasted for less counts as a failure: a coordinator that breaks each one at once
/// must not be dialled without pause.
const STEADY: Duration = Duration::from_secs(10);

/// Age of the list of GPUs at which it is asked for again.
const GPUS_FRESH: Duration = Duration::from_secs(60);

/// Failures that are counted at most where the coordinator is likely to let us in soon: two seconds.
const SOON: u32 = 2;

/// What the session works with.
#[derive(Debug)]
pub(crate) struct Dialler {
    pub(crate) coordinators: Coordinators,
    pub(crate) name: Option<String>,
    pub(crate) slots: Option<u32>,
    /// From which figure on something is an alarm here.
    pub(crate) alarms: Vec<AlarmSetting>,
    pub(crate) boot_id: String,
    pub(crate) host: Host,
    pub(crate) nvml: Nvml,
    /// One process at a time asks it.
    pub(crate) places: Places,
    /// The GPUs that the driver tells now; none while it does not answer.
    pub(crate) seen_gpus: watch::Receiver<Vec<Gpu>>,
    pub(crate) spool: Arc<Spool>,
    pub(crate) pump: Pump,
    pub(crate) supervisor: mpsc::Sender<SessionEvent>,
    /// Told where the coordinator is while there is a session.
    pub(crate) link: watch::Sender<Option<Coordinator>>,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("the greeting cannot be numbered")]
    Greeting(#[from] SpoolError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("cannot connect")]
    Connect(#[from] ConnectError),
    #[error("the coordinator refuses: {0}")]
    Refused(Box<Fault>),
    #[error("the connection broke")]
    Broken(#[source] Status),
    #[error("the coordinator closed the session")]
    Closed,
    #[error("the coordinator did not answer the greeting")]
    NoWelcome,
    #[error(transparent)]
    Ended(#[from] Ending),
    #[error("this machine has a GPU that the coordinator does not know yet")]
    NewGpu,
    #[error("the agent is ending")]
    Stopped,
}

impl From<Status> for SessionError {
    fn from(status: Status) -> Self {
        match Fault::from_status(&status) {
            Some(fault) => Self::Refused(Box::new(fault)),
            None => Self::Broken(status),
        }
    }
}

/// What is kept from one session to the next.
struct Memory {
    gpus: Option<(Instant, Vec<Gpu>)>,
    /// The host name belongs to another worker; ours gets an addition.
    name_taken: bool,
    connections: u64,
    route: Route,
}

impl Memory {
    fn gpus(&self) -> &[Gpu] {
        self.gpus.as_ref().map_or(&[], |(_, gpus)| gpus)
    }
}

impl Dialler {
    /// Keeps a session until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut memory = Memory {
            gpus: None,
            name_taken: false,
            connections: 0,
            route: Route::default(),
        };
        let mut failures = 0;
        let mut told = String::new();
        loop {
            let mut welcomed = None;
            let error = tokio::select! {
                () = stop.cancelled() => return,
                result = self.session(&mut memory, &mut welcomed) => match result {
                    Ok(never) => match never {},
                    Err(error) => error,
                },
            };
            self.link.send_replace(None);
            if self.supervisor.send(SessionEvent::Closed).await.is_err() {
                return;
            }
            if welcomed.is_some_and(|at: Instant| at.elapsed() >= STEADY) {
                failures = 0;
                told.clear();
            }
            if let SessionError::Refused(fault) = &error
                && fault.reason == Reason::WorkerNameTaken
                && self.name.is_none()
                && !memory.name_taken
            {
                memory.name_taken = true;
                continue;
            }
            if welcomed.is_none() {
                self.turn_elsewhere(&mut memory, &error);
            }
            let delay = redial_delay(self.counted(failures, &error), random());
            failures = failures.saturating_add(1);
            let message = chain(&error);
            // A coordinator that is away for hours is one line in the log, not thousands.
            if message == told {
                tracing::debug!(?delay, "still no session: {message}");
            } else {
                tracing::warn!(?delay, "no session, dialling again: {message}");
                told = message;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// How many failures in a row the wait before dialling again is reckoned from.
    fn counted(&self, failures: u32, error: &SessionError) -> u32 {
        let soon = match error {
            // The one agent of the coordinator's own home is no crowd, and one of them has just been
            // started when the other is.
            _ if self.coordinators.are_of_home() => true,
            // One leads soon, if not already; a database that is away is looked for all the time.
            SessionError::Refused(fault) => matches!(
                fault.reason,
                Reason::NotLeader | Reason::DatabaseUnavailable
            ),
            _ => false,
        };
        match soon {
            true => failures.min(SOON),
            false => failures / self.coordinators.addresses().len().max(1) as u32,
        }
    }

    /// One session, from dialling to its end.
    async fn session(
        &self,
        memory: &mut Memory,
        welcomed: &mut Option<Instant>,
    ) -> Result<std::convert::Infallible, SessionError> {
        self.look_for_gpus(memory).await;
        let target = self.target(memory)?;
        let channel = target.connect().await?;
        let mut client = WorkerSessionServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (outbox, queue) = mpsc::channel(OUTBOX);
        let hello = self.hello(memory).await?;
        let greeted_at = clock::now();
        let hello = OpenSessionRequest {
            message: Some(Say::Hello(hello)),
        };
        // The outbox is new, so there is room.
        let _ = outbox.try_send(hello);
        let opened = async {
            let mut inbound = client
                .open_session(ReceiverStream::new(queue))
                .await?
                .into_inner();
            let welcome = greet(&mut inbound).await?;
            Ok::<_, SessionError>((inbound, welcome))
        };
        let (inbound, welcome) = timeout(GREETING_WITHIN, opened)
            .await
            .map_err(|_| SessionError::NoWelcome)??;
        let (term, slots) = (welcome.term, welcome.slots);
        let upload_bytes = welcome.checkpoint_upload_bytes.max(0) as u64;
        let session = welcome.session_id.clone();
        let (accepted, answer) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        self.tell(SessionEvent::Welcomed(Box::new(Welcomed {
            welcome,
            greeted_at,
            outbox,
            accepted,
            end,
        })))
        .await?;
        answer.await.map_err(|_| SessionError::Stopped)??;
        *welcomed = Some(Instant::now());
        tracing::info!(
            address = %target.address,
            %session,
            term,
            slots,
            "connected to the coordinator at {} (session {session})",
            target.address,
        );
        self.link.send_replace(Some(Coordinator {
            target: target.clone(),
            upload_bytes,
        }));
        memory.connections += 1;
        let first_connection = memory.connections << 32;
        tokio::select! {
            heard = self.hear(inbound) => heard,
            ended = ended => Err(ended.map_or(SessionError::Stopped, SessionError::Ended)),
            () = self.until_new_gpu(memory.gpus()) => Err(SessionError::NewGpu),
            never = self.carry_output(&target, first_connection) => match never {},
        }
    }

    /// Passes on what the coordinator says.
    async fn hear(
        &self,
        mut inbound: Streaming<OpenSessionResponse>,
    ) -> Result<std::convert::Infallible, SessionError> {
        loop {
            let message = inbound.message().await?.ok_or(SessionError::Closed)?;
            match message.message {
                Some(said) => self.tell(SessionEvent::Said(said)).await?,
                None => tracing::debug!("the coordinator said something unknown"),
            }
        }
    }

    /// Keeps a connection for output while the session lasts.
    async fn carry_output(&self, target: &Target, first: u64) -> std::convert::Infallible {
        let mut connection = first;
        let mut failures = 0;
        loop {
            connection += 1;
            let begun = Instant::now();
            let error = match target.connect().await {
                Ok(channel) => self.carry_once(channel, connection).await,
                Err(error) => chain(&error),
            };
            failures = if begun.elapsed() > GREETING_WITHIN {
                0
            } else {
                failures + 1
            };
            let delay = redial_delay(failures, random()).max(uplink::PAUSE);
            tracing::warn!(
                ?delay,
                "the connection for output broke, dialling again: {error}"
            );
            tokio::time::sleep(delay).await;
        }
    }

    async fn carry_once(&self, channel: AuthorizedChannel, connection: u64) -> String {
        match uplink::carry(channel, &self.pump, connection).await {
            Ok(()) => "the coordinator closed it".to_owned(),
            Err(status) => chain(&SessionError::from(status)),
        }
    }

    /// Waits for a GPU that the greeting did not have: a driver may come up after the worker.
    async fn until_new_gpu(&self, greeted: &[Gpu]) {
        let mut seen = self.seen_gpus.clone();
        let is_new = |seen: &Vec<Gpu>| gpu::beyond(greeted, seen).next().is_some();
        let come = seen.wait_for(is_new).await.is_ok();
        if !come {
            // Nobody looks any more: the agent is ending.
            std::future::pending().await
        }
    }

    /// What is announced has all that the watcher sees, so that a session ends once for each new GPU.
    async fn look_for_gpus(&self, memory: &mut Memory) {
        self.list_gpus(memory).await;
        let seen = self.seen_gpus.borrow().clone();
        if let Some((_, gpus)) = &mut memory.gpus {
            let new: Vec<Gpu> = gpu::beyond(gpus, &seen).cloned().collect();
            gpus.extend(new);
        }
    }

    async fn list_gpus(&self, memory: &mut Memory) {
        let fresh = memory
            .gpus
            .as_ref()
            .is_some_and(|(at, _)| at.elapsed() < GPUS_FRESH);
        if fresh {
            return;
        }
        match gpu::list(&self.nvml, &self.places).await {
            Ok(gpus) => memory.gpus = Some((Instant::now(), gpus)),
            Err(error) => {
                tracing::warn!("the GPUs of this machine are not known: {}", chain(&error));
                // Those that were seen before are still announced.
                let known = memory.gpus.take().map(|(_, gpus)| gpus).unwrap_or_default();
                memory.gpus = Some((Instant::now(), known));
            }
        }
    }

    async fn hello(&self, memory: &Memory) -> Result<Hello, SessionError> {
        let (reply, held) = oneshot::channel();
        self.tell(SessionEvent::Greeting(reply)).await?;
        let Greeting {
            attempts,
            checkpoints,
        } = held.await.map_err(|_| SessionError::Stopped)?;
        let spool = Arc::clone(&self.spool);
        // It waits for the disk, and jobs have news meanwhile.
        let greeting = tokio::task::spawn_blocking(move || spool.next_greeting())
            .await
            .map_err(|_| SessionError::Stopped)??;
        let host = &self.host;
        let worker_id = self.spool.worker_id();
        let name = match &self.name {
            Some(name) => name.clone(),
            None if memory.name_taken => format!("{}-{}", host.name, &worker_id[..4]),
            None => host.name.clone(),
        };
        Ok(Hello {
            protocol: PROTOCOL_VERSION,
            worker_id,
            name,
            hostname: host.name.clone(),
            boot_id: self.boot_id.clone(),
            spool_id: self.spool.spool_id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            slots: self.slots.map_or(0, |slots| slots as i32),
            gpus: memory.gpus().iter().cloned().map(Into::into).collect(),
            memory_bytes: host.memory_bytes,
            cpus: host.cpus,
            alarms: self.alarms.clone(),
            attempts,
            checkpoints,
            greeting,
        })
    }

    /// Chooses who is dialled next, after one that did not let us in.
    fn turn_elsewhere(&self, memory: &mut Memory, error: &SessionError) {
        match error {
            SessionError::Refused(fault) if fault.reason == Reason::NotLeader => {
                let known = self.coordinators.addresses();
                let asked = memory.route.next(&known).unwrap_or_default();
                let leader = fault.leader.clone();
                let leader = leader.filter(|leader| may_follow(asked, leader));
                memory.route.refused(leader);
            }
            _ => memory.route.failed(),
        }
    }

    /// Whom to dial, with the token as it is now.
    fn target(&self, memory: &Memory) -> Result<Target, SessionError> {
        let known = self.coordinators.addresses();
        let address = memory.route.next(&known).unwrap_or_default();
        Ok(self.coordinators.target(address)?)
    }

    async fn tell(&self, event: SessionEvent) -> Result<(), SessionError> {
        let told = self.supervisor.send(event).await;
        told.map_err(|_| SessionError::Stopped)
    }
}

async fn greet(inbound: &mut Streaming<OpenSessionResponse>) -> Result<Welcome, SessionError> {
    let first = inbound.message().await?.ok_or(SessionError::Closed)?;
    match first.message {
        Some(Said::Welcome(welcome)) => Ok(welcome),
        _ => Err(SessionError::NoWelcome),
    }
}

/// A number in `0.0..1.0`.
fn random() -> f64 {
    let bits = getrandom::u32().unwrap_or(u32::MAX / 2);
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}
