//! A coordinator that lives in the test: it keeps what it is told in memory and says what the test
//! wants.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use qctl_proto::v1::log_upload_service_server::{LogUploadService, LogUploadServiceServer};
use qctl_proto::v1::open_session_request::Message as Say;
use qctl_proto::v1::open_session_response::Message as Said;
use qctl_proto::v1::worker_session_service_server::{
    WorkerSessionService, WorkerSessionServiceServer,
};
use qctl_proto::v1::{
    Assign, Assignment, AttemptEnded, Demand, HeartbeatAck, Hello, HoleCause, JobSpec,
    OpenSessionRequest, OpenSessionResponse, ProgressReported, ResultCommitted, UploadLogRequest,
    UploadLogResponse, Verdict, Welcome, held_attempt, verdict,
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// How long anything may take before a test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Everything the coordinator knows.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) term: i64,
    pub(crate) slots: i32,
    pub(crate) lost_after: Duration,
    pub(crate) hellos: Vec<Hello>,
    /// What was said, in order, except greetings, heartbeats and progress.
    pub(crate) said: Vec<Say>,
    pub(crate) heartbeats: usize,
    pub(crate) progress: Vec<ProgressReported>,
    pub(crate) ended: BTreeMap<i64, AttemptEnded>,
    pub(crate) logs: BTreeMap<i64, Vec<u8>>,
    /// Newlines in each log.
    lines: BTreeMap<i64, i64>,
    pub(crate) chunks: usize,
    /// Attempts whose output is not wanted.
    pub(crate) unknown: BTreeSet<i64>,
    /// Ends the connection that carries output.
    output: CancellationToken,
    /// No output is taken while this is set.
    pub(crate) hold_output: bool,
    /// What is missing of each log: position, length, newlines, cause.
    pub(crate) holes: BTreeMap<i64, Vec<(usize, usize, i64, HoleCause)>>,
    /// CRC-32C over everything that was written of each log; none when nobody knows.
    crcs: BTreeMap<i64, Option<u32>>,
    /// Logs that were compared with what was written.
    pub(crate) closed: BTreeSet<i64>,
    /// Results are not committed while this is set.
    pub(crate) withhold: bool,
    /// Sessions are refused with this.
    pub(crate) refuse: Option<Status>,
    /// How many were.
    pub(crate) refused: usize,
    session: Option<mpsc::Sender<Result<OpenSessionResponse, Status>>>,
}

impl State {
    pub(crate) fn started(&self, fence: i64) -> bool {
        let mut said = self.said.iter();
        said.any(|say| matches!(say, Say::Started(started) if started.fence == fence))
    }

    pub(crate) fn freed(&self, fence: i64) -> bool {
        let mut said = self.said.iter();
        said.any(|say| matches!(say, Say::SlotFreed(freed) if freed.fence == fence))
    }

    pub(crate) fn returned(&self, fence: i64) -> Option<bool> {
        self.said.iter().find_map(|say| match say {
            Say::Returned(returned) if returned.fence == fence => Some(returned.returned),
            _ => None,
        })
    }

    pub(crate) fn pid(&self, fence: i64) -> i32 {
        let pid = self.said.iter().find_map(|say| match say {
            Say::Started(started) if started.fence == fence => Some(started.pid),
            _ => None,
        });
        pid.unwrap_or_default()
    }

    /// The result is here, its output is complete and its slot is free.
    pub(crate) fn complete(&self, fence: i64) -> bool {
        self.freed(fence) && self.recorded(fence)
    }

    /// The result is here and its output is complete.
    pub(crate) fn recorded(&self, fence: i64) -> bool {
        let stored = self.logs.get(&fence).map_or(0, Vec::len) as i64;
        let ended = self.ended.get(&fence);
        ended.is_some_and(|ended| stored >= ended.log_end)
    }

    fn verdicts(&self, hello: &Hello) -> Vec<Verdict> {
        let verdict = |held: &qctl_proto::v1::HeldAttempt| {
            let action = match held.state() {
                held_attempt::State::Ended if self.recorded(held.fence) => verdict::Action::Forget,
                held_attempt::State::Ended => verdict::Action::SendResult,
                _ => verdict::Action::Continue,
            };
            Verdict {
                fence: held.fence,
                action: action.into(),
                log_stored: self.logs.get(&held.fence).map_or(0, Vec::len) as i64,
            }
        };
        hello.attempts.iter().map(verdict).collect()
    }
}

/// The coordinator.
#[derive(Clone)]
pub(crate) struct Coordinator {
    pub(crate) address: String,
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<()>>,
}

impl Coordinator {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let coordinator = Self {
            address: listener.local_addr().unwrap().to_string(),
            state: Arc::new(Mutex::new(State {
                term: 1,
                slots: 1,
                lost_after: Duration::from_secs(1800),
                ..State::default()
            })),
            changed: Arc::new(watch::channel(()).0),
        };
        let service = Arc::new(coordinator.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(WorkerSessionServiceServer::from_arc(Arc::clone(&service)))
                .add_service(LogUploadServiceServer::from_arc(service))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        coordinator
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.send_replace(());
        result
    }

    /// Waits until something holds.
    pub(crate) async fn wait(&self, what: &str, mut holds: impl FnMut(&State) -> bool) {
        let mut changed = self.changed.subscribe();
        let waited = tokio::time::timeout(DEADLINE, async {
            while !holds(&self.state()) {
                changed.changed().await.unwrap();
            }
        });
        if waited.await.is_err() {
            let state = self.state();
            let logs: Vec<_> = state.logs.iter().map(|(f, log)| (f, log.len())).collect();
            panic!(
                "never: {what}; said {:?}; logs {logs:?}; last greeting {:?}",
                state.said,
                state.hellos.last()
            );
        }
    }

    /// Waits until an attempt's result, output and slot are settled; returns the result.
    pub(crate) async fn complete(&self, fence: i64) -> AttemptEnded {
        self.wait(&format!("attempt {fence} is complete"), |s| {
            s.complete(fence)
        })
        .await;
        self.state().ended[&fence].clone()
    }

    pub(crate) fn log(&self, fence: i64) -> Vec<u8> {
        self.state().logs.get(&fence).cloned().unwrap_or_default()
    }

    pub(crate) fn say(&self, message: Said) {
        let session = self.state().session.clone().expect("no session");
        let message = OpenSessionResponse {
            message: Some(message),
        };
        session.try_send(Ok(message)).unwrap();
    }

    /// Ends the session as a coordinator does that is stopped.
    pub(crate) fn disconnect(&self) {
        self.change(|state| state.session = None);
    }

    /// Ends the connection that carries output.
    pub(crate) fn disconnect_output(&self) {
        self.state().output.cancel();
    }

    /// Assigns a shell script to the worker that greeted last.
    pub(crate) fn assign(&self, fence: i64, script: &str) {
        let spec = spec(&["/bin/sh", "-c", script]);
        self.assign_spec(fence, spec);
    }

    /// The same, once so many greetings have come.
    pub(crate) async fn assign_after_greeting(&self, greetings: usize, fence: i64, script: &str) {
        self.wait("a greeting", |state| state.hellos.len() >= greetings)
            .await;
        self.assign(fence, script);
    }

    pub(crate) fn assign_spec(&self, fence: i64, spec: JobSpec) {
        self.say(Said::Assign(Assign {
            assignments: vec![self.assignment(fence, spec)],
        }));
    }

    pub(crate) fn assignment(&self, fence: i64, spec: JobSpec) -> Assignment {
        let state = self.state();
        let hello = state.hellos.last().expect("no worker");
        Assignment {
            fence,
            job_id: fence,
            attempt: 1,
            spec: Some(spec),
            term: state.term,
            boot_id: hello.boot_id.clone(),
            spool_id: hello.spool_id.clone(),
            ..Assignment::default()
        }
    }

    /// Waits until an attempt's whole output was compared with what it wrote.
    pub(crate) async fn closed(&self, fence: i64) {
        self.wait(&format!("the output of {fence} is closed"), |s| {
            s.closed.contains(&fence)
        })
        .await;
    }

    /// Loses the end of an output that was acknowledged, as a database does that crashes.
    pub(crate) fn lose_output(&self, fence: i64, kept: usize) {
        self.change(|state| {
            if let Some(log) = state.logs.get_mut(&fence) {
                log.truncate(kept);
                state.lines.insert(fence, newlines(log));
                state.crcs.insert(fence, Some(crc32c::crc32c(log)));
                state.closed.remove(&fence);
            }
        });
    }

    fn hear(&self, message: Say) -> Option<Said> {
        self.change(|state| match message {
            Say::Heartbeat(heartbeat) => {
                state.heartbeats += 1;
                Some(Said::HeartbeatAck(HeartbeatAck {
                    sequence: heartbeat.sequence,
                    term: state.term,
                }))
            }
            Say::Progress(progress) => {
                state.progress.push(progress);
                None
            }
            Say::Ended(ended) => {
                let fence = ended.fence;
                state.said.push(Say::Ended(ended.clone()));
                if state.withhold {
                    return None;
                }
                state.ended.entry(fence).or_insert(ended);
                Some(Said::ResultCommitted(ResultCommitted { fence }))
            }
            other => {
                state.said.push(other);
                None
            }
        })
    }

    fn store(&self, chunk: &UploadLogRequest) -> UploadLogResponse {
        self.change(|state| {
            state.chunks += 1;
            let log = state.logs.entry(chunk.fence).or_default();
            let lines = state.lines.entry(chunk.fence).or_default();
            if chunk.offset == log.len() as i64 {
                let crc = state.crcs.entry(chunk.fence).or_insert(Some(0));
                if chunk.hole_bytes > 0 {
                    let missing = chunk.lines_behind.unwrap() - *lines;
                    state.holes.entry(chunk.fence).or_default().push((
                        log.len(),
                        chunk.hole_bytes as usize,
                        missing,
                        chunk.hole_cause(),
                    ));
                    *crc = chunk.crc32c_behind;
                    log.resize(log.len() + chunk.hole_bytes as usize, b'?');
                    *lines += missing;
                } else if chunk.length > 0 {
                    let data = zstd::bulk::decompress(&chunk.data, 1 << 20).unwrap();
                    assert_eq!(data.len(), chunk.length as usize);
                    assert_eq!(crc32c::crc32c(&data), chunk.crc32c);
                    assert_eq!(chunk.first_line, *lines);
                    *lines += newlines(&data);
                    *crc = crc.map(|crc| crc32c::crc32c_append(crc, &data));
                    log.extend(data);
                }
            }
            let is_whole = chunk.last && chunk.offset + i64::from(chunk.length) == log.len() as i64;
            if is_whole {
                state.closed.insert(chunk.fence);
                let known = state.crcs.get(&chunk.fence).copied().flatten();
                assert_eq!(chunk.log_crc32c, known.unwrap_or(chunk.log_crc32c));
            }
            UploadLogResponse {
                fence: chunk.fence,
                stored: log.len() as i64,
                unknown: state.unknown.contains(&chunk.fence),
                closed: is_whole,
            }
        })
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl WorkerSessionService for Coordinator {
    type OpenSessionStream = Answers<OpenSessionResponse>;

    async fn open_session(
        &self,
        request: Request<Streaming<OpenSessionRequest>>,
    ) -> Result<Response<Self::OpenSessionStream>, Status> {
        let refuse = self.change(|state| {
            state.refused += usize::from(state.refuse.is_some());
            state.refuse.clone()
        });
        if let Some(status) = refuse {
            return Err(status);
        }
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.and_then(|first| first.message);
        let Some(Say::Hello(hello)) = first else {
            return Err(Status::invalid_argument("no greeting"));
        };
        let (outbox, queue) = mpsc::channel(1024);
        let answer = |message| {
            Ok(OpenSessionResponse {
                message: Some(message),
            })
        };
        self.change(|state| {
            let verdicts = state.verdicts(&hello);
            state.hellos.push(hello);
            let welcome = Welcome {
                session_id: state.hellos.len().to_string(),
                term: state.term,
                verdicts,
                heartbeat_interval: Duration::from_millis(500).try_into().ok(),
                lost_after: state.lost_after.try_into().ok(),
                slots: state.slots,
                ..Welcome::default()
            };
            outbox.try_send(answer(Said::Welcome(welcome))).unwrap();
            state.session = Some(outbox.clone());
        });
        let this = self.clone();
        // The stream to the worker ends when the test drops the session, so this task must not
        // keep it alive.
        let weak = outbox.downgrade();
        drop(outbox);
        tokio::spawn(async move {
            while let Ok(Some(message)) = inbound.message().await {
                let reply = message.message.and_then(|message| this.hear(message));
                let Some(outbox) = weak.upgrade() else { return };
                if let Some(reply) = reply {
                    let _ = outbox.send(answer(reply)).await;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }
}

#[tonic::async_trait]
impl LogUploadService for Coordinator {
    type UploadLogStream = Answers<UploadLogResponse>;

    async fn upload_log(
        &self,
        request: Request<Streaming<UploadLogRequest>>,
    ) -> Result<Response<Self::UploadLogStream>, Status> {
        if self.state().hold_output {
            return Err(Status::unavailable("no output is taken now"));
        }
        let this = self.clone();
        let over = CancellationToken::new();
        self.state().output = over.clone();
        let answers = request
            .into_inner()
            .map(move |chunk| chunk.map(|chunk| this.store(&chunk)));
        Ok(Response::new(Box::pin(
            futures_util::StreamExt::take_until(answers, over.cancelled_owned()),
        )))
    }
}

/// A job that takes one slot.
pub(crate) fn spec(command: &[&str]) -> JobSpec {
    JobSpec {
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        cwd: "/".to_owned(),
        env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
        demand: Some(Demand {
            slots: 1,
            ..Demand::default()
        }),
        ..JobSpec::default()
    }
}

fn newlines(data: &[u8]) -> i64 {
    data.iter().filter(|byte| **byte == b'\n').count() as i64
}
