//! Sessions of workers: greeting first, then both sides talk.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::Stream;
use prost::Message as _;
use qctl_proto::v1::open_session_request::Message as FromWorker;
use qctl_proto::v1::open_session_response::Message as ToWire;
use qctl_proto::v1::worker_session_service_server::WorkerSessionService;
use qctl_proto::{PROTOCOL_VERSION, v1};
use qctl_server_core::alarm::setting;
use qctl_server_core::checkpoint::{
    Answer, CheckpointId, Damaged, Finding, MAX_CANDIDATES, Resumes, Told,
};
use qctl_server_core::gpu::{GpuFault, GpuFaultKind};
use qctl_server_core::ledger::{EndedReport, Message, What};
use qctl_server_core::outcome::End;
use qctl_server_core::reconcile::{Action, Held};
use qctl_server_core::{
    AttemptNumber, AttemptState, Facts, Fence, JobId, StopCause, WorkerId, silence,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::status::{caller, status};
use super::{convert, measures_service};
use crate::app::read::GpuRecord;
use crate::app::{App, Error, Greeting, Hello, Report, Role};
use crate::sessions::{Assignment, Outbox, SessionId, ToWorker};

/// Time in which a worker must have said hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// Messages on their way to the connection.
const WIRE_QUEUE: usize = 16;
/// Encoded bytes of assignments in one message, at most; a single larger one goes alone.
const ASSIGN_BYTES: usize = 4 * 1024 * 1024;
/// Longest sentence that a worker may say, in bytes; the rest is cut off.
const SENTENCE: usize = 8 * 1024;
/// Longest path, name or unit.
const WORD: usize = 4 * 1024;
/// Most attempts of which one heartbeat says what they use.
const MAX_MEASURED: usize = 1_000;
/// Most sentences about limits that cannot be enforced, and most GPUs.
const ITEMS: usize = 256;

type Answers = Pin<Box<dyn Stream<Item = Result<v1::OpenSessionResponse, Status>> + Send>>;

/// Serves workers.
pub(super) struct WorkerSessions {
    app: Arc<App>,
}

impl WorkerSessions {
    /// Serves workers with these use cases.
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { app }
    }
}

#[tonic::async_trait]
impl WorkerSessionService for WorkerSessions {
    type OpenSessionStream = Answers;

    async fn open_session(
        &self,
        request: Request<Streaming<v1::OpenSessionRequest>>,
    ) -> Result<Response<Answers>, Status> {
        caller(&request, Role::Worker)?;
        let mut incoming = request.into_inner();
        let hello = tokio::time::timeout(HELLO_WITHIN, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let hello = match hello.and_then(|request| request.message) {
            Some(FromWorker::Hello(hello)) => hello_from(hello).map_err(status)?,
            _ => {
                return Err(status(Error::InvalidField {
                    field: "message".to_owned(),
                    problem: "is not the hello, which must come first".to_owned(),
                    hint: "update the worker".to_owned(),
                }));
            }
        };
        let worker = hello.worker;
        let name = hello.name.clone();
        let greeting = self.app.greet(hello).await.map_err(status)?;
        let (wire, answers) = mpsc::channel(WIRE_QUEUE);
        let welcome = welcome(&self.app, &greeting);
        // The queue is empty, so that this cannot fail.
        let _ = wire.try_send(Ok(response(ToWire::Welcome(welcome))));
        let session = Session {
            app: Arc::clone(&self.app),
            worker,
            name,
            id: greeting.outbox.session,
        };
        self.app.spawn(session.run(incoming, greeting.outbox, wire));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

struct Session {
    app: Arc<App>,
    worker: WorkerId,
    name: String,
    id: SessionId,
}

impl Session {
    /// Carries messages both ways until either side or the coordinator ends it.
    async fn run(
        self,
        mut incoming: Streaming<v1::OpenSessionRequest>,
        mut outbox: Outbox,
        wire: mpsc::Sender<Result<v1::OpenSessionResponse, Status>>,
    ) {
        let closed = outbox.closed.clone();
        let stop = self.app.stop().clone();
        let reading = async {
            loop {
                match incoming.message().await {
                    Ok(Some(request)) => {
                        if let Err(error) = self.take(request).await {
                            return Some(status(error));
                        }
                    }
                    Ok(None) => return None,
                    Err(broken) => {
                        tracing::debug!(worker = %self.name, session = %self.id, status = %broken, "worker `{}`: its connection broke: {broken}", self.name);
                        return None;
                    }
                }
            }
        };
        let writing = async {
            while let Some(message) = outbox.messages.recv().await {
                for response in to_wire(message) {
                    let Ok(place) = wire.reserve().await else {
                        return;
                    };
                    // Who does not lead any more keeps no worker.
                    if !self.app.store.lease().holds() {
                        return;
                    }
                    place.send(Ok(response));
                }
            }
        };
        let last = tokio::select! {
            last = reading => last,
            () = writing => None,
            () = wire.closed() => None,
            () = closed.cancelled() => None,
            () = stop.cancelled() => Some(status(Error::ShuttingDown)),
        };
        // Closing also ends the queue of messages, so that either may have been seen first.
        let last = match last {
            None if closed.is_cancelled() => {
                Some(Status::aborted("a newer session took this one's place"))
            }
            last => last,
        };
        self.app.farewell(self.worker, &outbox).await;
        if let Some(last) = last {
            // Nobody may be reading any more.
            let _ = wire.try_send(Err(last));
        }
        tracing::info!(worker = %self.name, session = %self.id, "worker `{}` disconnected (session {})", self.name, self.id);
    }

    async fn take(&self, request: v1::OpenSessionRequest) -> Result<(), Error> {
        let Some(message) = request.message else {
            // A newer worker says something that this coordinator does not know.
            return Ok(());
        };
        let (fence, what) = match message {
            FromWorker::Hello(_) => {
                return Err(Error::InvalidField {
                    field: "hello".to_owned(),
                    problem: "came a second time".to_owned(),
                    hint: "open a new session".to_owned(),
                });
            }
            FromWorker::Heartbeat(beat) => {
                self.app
                    .heartbeat(self.worker, self.id, beat.load, beat.memory_used_bytes);
                match &beat.machine {
                    Some(machine) => {
                        let attempts: Vec<_> = beat
                            .attempts
                            .iter()
                            .take(MAX_MEASURED)
                            .map(measures_service::read_attempt)
                            .collect();
                        if let Some(gpus) = &machine.gpus {
                            let look = measures_service::read_gpus(gpus);
                            self.app.gpus_seen(self.worker, look);
                        }
                        let machine = measures_service::read_machine(machine);
                        self.app.measured(self.worker, &machine, &attempts);
                    }
                    None => self.app.not_measured(self.worker),
                }
                let ack = ToWorker::HeartbeatAck {
                    sequence: beat.sequence,
                    term: self.app.term,
                };
                self.app.sessions.send_to(self.worker, self.id, ack);
                return Ok(());
            }
            FromWorker::Progress(progress) => {
                if let Some(told) = progress.progress {
                    let mut told = convert::read_progress(told);
                    told.unit = clean(told.unit, WORD);
                    told.message = clean(told.message, SENTENCE);
                    told.source = clean(told.source, WORD);
                    self.app.progressed(Fence(progress.fence), told);
                }
                return Ok(());
            }
            FromWorker::Started(started) => (
                started.fence,
                What::Started {
                    pid: started.pid,
                    started_at: time(started.started_at.as_ref()),
                    not_enforced: clean_all(started.not_enforced),
                },
            ),
            FromWorker::Ended(ended) => (ended.fence, What::Ended(Box::new(ended_from(ended)?))),
            FromWorker::SlotFreed(freed) => (freed.fence, What::SlotFreed),
            FromWorker::GpuChecked(checked) => {
                let gpu = clean(checked.gpu, WORD);
                let fault = checked.fault.and_then(gpu_fault_from);
                let computed = checked.computed;
                let told = (gpu, fault, computed);
                return self.app.gpu_checked(self.worker, self.id, told).await;
            }
            FromWorker::Returned(v1::AssignmentReturned {
                fence,
                returned: true,
                message,
                gpu: Some(_),
            }) => (fence, What::Unfit(clean(message, SENTENCE))),
            FromWorker::Returned(returned) => (
                returned.fence,
                What::Returned {
                    returned: returned.returned,
                    message: clean(returned.message, SENTENCE),
                },
            ),
            FromWorker::PauseChanged(change) => (change.fence, What::PauseChanged(change.paused)),
            FromWorker::SlotStuck(stuck) => {
                let pids = stuck.pids.into_iter().take(ITEMS).collect();
                (stuck.fence, What::SlotStuck { pids })
            }
            FromWorker::Silence(told) => {
                let fence = told.fence;
                match silence_from(told) {
                    Some(told) => (fence, What::Silence(Box::new(told))),
                    // A newer worker knows more stages.
                    None => return Ok(()),
                }
            }
            FromWorker::Checkpoint(told) => {
                let (fence, told) = checkpoint_from(told)?;
                (fence.0, What::Checkpoint(Box::new(told)))
            }
            FromWorker::Resume(chosen) => {
                (chosen.fence, What::Resumes(Box::new(resumes_from(chosen))))
            }
        };
        self.app
            .report(Report {
                worker: self.worker,
                session: self.id,
                fence: Fence(fence),
                what,
            })
            .await
    }
}

fn hello_from(hello: v1::Hello) -> Result<Hello, Error> {
    if hello.protocol != PROTOCOL_VERSION {
        return Err(Error::ProtocolMismatch {
            theirs: hello.protocol,
            ours: PROTOCOL_VERSION,
        });
    }
    let uuid = |field: &str, text: &str| {
        Uuid::parse_str(text).map_err(|_| Error::InvalidField {
            field: format!("hello.{field}"),
            problem: "is not a UUID".to_owned(),
            hint: "remove the worker's identity file, so that it makes a new one".to_owned(),
        })
    };
    let held = hello
        .attempts
        .iter()
        .map(|held| Held {
            fence: Fence(held.fence),
            state: match held.state() {
                v1::held_attempt::State::Running => AttemptState::Running,
                v1::held_attempt::State::Ended => AttemptState::Ended,
                v1::held_attempt::State::Unspecified | v1::held_attempt::State::Assigned => {
                    AttemptState::Assigned
                }
            },
            slot_held: held.slot_held,
        })
        .collect();
    let adopted = hello
        .attempts
        .iter()
        .filter(|held| held.adopted)
        .map(|held| Fence(held.fence))
        .collect();
    Ok(Hello {
        adopted,
        worker: WorkerId(uuid("worker_id", &hello.worker_id)?),
        spool_id: uuid("spool_id", &hello.spool_id)?,
        name: hello.name,
        hostname: hello.hostname,
        boot_id: hello.boot_id,
        version: hello.version,
        slots: (hello.slots != 0).then_some(hello.slots),
        gpus: hello
            .gpus
            .into_iter()
            .take(ITEMS)
            .map(|gpu| GpuRecord {
                uuid: clean(gpu.uuid, WORD),
                name: clean(gpu.name, WORD),
                memory_bytes: gpu.memory_bytes.max(0),
                faulty: None,
            })
            .collect(),
        memory_bytes: hello.memory_bytes,
        cpus: hello.cpus,
        alarms: alarms_from(&hello.alarms)?,
        greeting: hello.greeting,
        held,
        checkpoints: hello
            .checkpoints
            .into_iter()
            .map(checkpoint_from)
            .collect::<Result<_, _>>()?,
    })
}

fn alarms_from(settings: &[v1::AlarmSetting]) -> Result<setting::Settings, Error> {
    let settings = convert::read_alarms(settings, "alarms")?;
    match setting::first_impossible(&settings, false) {
        None => Ok(settings),
        Some((kind, problem)) => Err(Error::InvalidField {
            field: format!("alarms[{kind}]"),
            problem,
            hint: "change `alarm` in the worker's settings".to_owned(),
        }),
    }
}

fn checkpoint_from(told: v1::CheckpointPublished) -> Result<(Fence, Told), Error> {
    let impossible = |field: &str, problem: &str| Error::InvalidField {
        field: format!("checkpoint.{field}"),
        problem: problem.to_owned(),
        hint: "update the worker".to_owned(),
    };
    if told.number <= 0 {
        return Err(impossible("number", "is not positive"));
    }
    if told.bytes < 0 || told.files < 0 {
        return Err(impossible("bytes", "is a negative size"));
    }
    let created_at = time(told.created_at.as_ref())
        .ok_or_else(|| impossible("created_at", "is missing or not a time"))?;
    let fence = Fence(told.fence);
    let told = Told {
        number: told.number,
        step: told.step,
        note: clean(told.note, SENTENCE),
        path: clean(told.path, WORD),
        files: told.files,
        bytes: told.bytes,
        hash: clean(told.hash, WORD),
        created_at,
        removed: told.removed,
    };
    Ok((fence, told))
}

fn resumes_from(chosen: v1::ResumeChosen) -> Resumes {
    use v1::damaged_checkpoint::Finding as Wire;
    let publisher = |job: i64| (job > 0).then_some(JobId(job));
    let id = |fence, number| CheckpointId {
        fence: Fence(fence),
        number,
    };
    Resumes {
        from: (chosen.from_fence > 0).then(|| {
            (
                id(chosen.from_fence, chosen.from_number),
                AttemptNumber(chosen.from_attempt),
            )
        }),
        from_job: publisher(chosen.from_job_id),
        path: clean(chosen.path, WORD),
        damaged: chosen
            .damaged
            .into_iter()
            .take(MAX_CANDIDATES)
            .map(|damaged| Damaged {
                id: id(damaged.fence, damaged.number),
                job: publisher(damaged.job_id),
                attempt: AttemptNumber(damaged.attempt),
                finding: match damaged.finding() {
                    Wire::Unspecified | Wire::Damaged => Finding::Damaged,
                    Wire::Unreadable => Finding::Unreadable,
                    Wire::Mended => Finding::Mended,
                },
                message: clean(damaged.message, SENTENCE),
            })
            .collect(),
    }
}

fn welcome(app: &App, greeting: &Greeting) -> v1::Welcome {
    let verdicts = greeting
        .verdicts
        .iter()
        .map(|answer| {
            let action = match answer.action {
                Action::Continue => v1::verdict::Action::Continue,
                Action::Stop => v1::verdict::Action::Stop,
                Action::SendResult => v1::verdict::Action::SendResult,
                Action::Forget => v1::verdict::Action::Forget,
            };
            v1::Verdict {
                fence: answer.fence.0,
                action: action.into(),
                log_stored: answer.log_stored,
            }
        })
        .collect();
    v1::Welcome {
        session_id: greeting.outbox.session.to_string(),
        term: app.term.0,
        verdicts,
        heartbeat_interval: Some(convert::duration(app.settings.heartbeat_interval)),
        lost_after: Some(convert::duration(app.settings.lost_after)),
        slots: greeting.slots,
        checkpoint_upload_bytes: i64::try_from(app.settings.checkpoint_upload_bytes)
            .unwrap_or(i64::MAX),
    }
}

fn ended_from(ended: v1::AttemptEnded) -> Result<EndedReport, Error> {
    use v1::attempt_ended::End as Wire;
    let end = match ended.end() {
        Wire::Waited => End::Waited,
        Wire::CannotStart => End::CannotStart,
        Wire::NeverStarted => End::NeverStarted,
        Wire::ShimLost => End::ShimLost,
        Wire::MachineLost => End::MachineLost,
        Wire::Unspecified => {
            return Err(Error::InvalidField {
                field: "ended.end".to_owned(),
                problem: "is not one that this coordinator knows".to_owned(),
                hint: "update the coordinator".to_owned(),
            });
        }
    };
    let stopped = match ended.stop_cause() {
        v1::StopCause::Unspecified => None,
        v1::StopCause::Cancel => Some(StopCause::Cancel),
        v1::StopCause::TimeLimit => Some(StopCause::TimeLimit),
        v1::StopCause::Silence => Some(StopCause::Silence),
        v1::StopCause::Lease => Some(StopCause::Lease),
        v1::StopCause::Superseded => Some(StopCause::Superseded),
        v1::StopCause::Drill => Some(StopCause::Drill),
        v1::StopCause::GpuFault => Some(StopCause::GpuFault),
        v1::StopCause::GpuFallback => Some(StopCause::GpuFallback),
    };
    let facts = Facts {
        exit_code: ended.exit_code,
        signal: ended.signal,
        stopped,
        out_of_memory: ended.out_of_memory,
        gpu_fault: ended.gpu_fault,
        gpu: ended.gpu.and_then(gpu_fault_from),
        contradiction: Some(clean(ended.contradiction, SENTENCE))
            .filter(|line| !line.trim().is_empty())
            .map(|line| format!("its output says: {}", line.trim())),
        gpu_out_of_memory: ended.gpu_out_of_memory,
        checkpointed: ended.checkpointed,
        message: clean(ended.message, SENTENCE),
        ..Facts::of(end)
    };
    Ok(EndedReport {
        facts,
        started_at: time(ended.started_at.as_ref()),
        ended_at: time(ended.ended_at.as_ref()),
        duration: ended
            .duration
            .and_then(|length| Duration::try_from(length).ok()),
        pid: (ended.pid > 0).then_some(ended.pid),
        log_end: ended.log_end.max(0),
        log_crc32c: ended.log_crc32c,
        not_enforced: clean_all(ended.not_enforced),
    })
}

/// A fault of a GPU; `None` for a kind that this coordinator does not know.
fn gpu_fault_from(told: v1::GpuFault) -> Option<GpuFault> {
    use v1::gpu_fault::Kind as Wire;
    let kind = match told.kind() {
        Wire::Unspecified => return None,
        Wire::Lost => GpuFaultKind::Lost,
        Wire::Memory => GpuFaultKind::Memory,
        Wire::Xid => GpuFaultKind::Xid,
        Wire::Output => GpuFaultKind::Output,
        Wire::Silent => GpuFaultKind::Silent,
        Wire::Unfit => GpuFaultKind::Unfit,
        Wire::Unused => GpuFaultKind::Unused,
        Wire::Slow => GpuFaultKind::Slow,
        Wire::FailsJobs => GpuFaultKind::FailsJobs,
    };
    Some(GpuFault {
        gpu: clean(told.gpu, WORD),
        name: clean(told.name, WORD),
        kind,
        number: told.number.max(0),
        message: clean(told.message, SENTENCE),
    })
}

/// What a program printed can have found its way into what a worker says: NUL bytes, which the
/// database does not take, go, and the length is bounded.
pub(super) fn clean(mut text: String, most: usize) -> String {
    text.retain(|c| c != '\0');
    if text.len() > most {
        let whole = (0..=most).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(whole.unwrap_or_default());
    }
    text
}

fn clean_all(texts: Vec<String>) -> Vec<String> {
    texts
        .into_iter()
        .take(ITEMS)
        .map(|text| clean(text, SENTENCE))
        .collect()
}

fn to_wire(message: ToWorker) -> Vec<v1::OpenSessionResponse> {
    let one = |message| vec![response(message)];
    match message {
        ToWorker::HeartbeatAck { sequence, term } => one(ToWire::HeartbeatAck(v1::HeartbeatAck {
            sequence,
            term: term.0,
        })),
        ToWorker::Assign(assignments) => assign(assignments),
        ToWorker::RemoveCheckpoints(jobs) => {
            one(ToWire::RemoveCheckpoints(v1::RemoveCheckpoints {
                job_ids: jobs.into_iter().map(|job| job.0).collect(),
            }))
        }
        ToWorker::SetSlots(slots) => one(ToWire::SetSlots(v1::SetSlots { slots })),
        ToWorker::Attempt(message) => one(about_attempt(message)),
    }
}

fn about_attempt(message: Message) -> ToWire {
    match message {
        Message::Revoke(fence) => ToWire::Revoke(v1::Revoke { fence: fence.0 }),
        Message::Stop {
            fence,
            cause,
            grace,
        } => ToWire::Stop(v1::Stop {
            fence: fence.0,
            cause: stop_cause(cause).into(),
            grace: grace.map(convert::duration),
            gpu: None,
        }),
        Message::ResultCommitted(fence) => {
            ToWire::ResultCommitted(v1::ResultCommitted { fence: fence.0 })
        }
        Message::CheckpointAnswered { id, answer } => {
            use v1::checkpoint_answered::Answer as Wire;
            ToWire::CheckpointAnswered(v1::CheckpointAnswered {
                fence: id.fence.0,
                number: id.number,
                answer: match answer {
                    Answer::Recorded => Wire::Recorded,
                    Answer::Refused => Wire::Refused,
                    Answer::Remove => Wire::Remove,
                }
                .into(),
            })
        }
        Message::SetPaused { fence, paused } => ToWire::SetPaused(v1::SetPaused {
            fence: fence.0,
            paused,
        }),
    }
}

/// Packs assignments into messages of bounded size.
fn assign(assignments: Vec<Assignment>) -> Vec<v1::OpenSessionResponse> {
    let mut messages = Vec::new();
    let mut pack = v1::Assign::default();
    let mut bytes = 0;
    for assignment in assignments {
        let assignment = assignment_to_wire(assignment);
        let size = assignment.encoded_len();
        if bytes > 0 && bytes + size > ASSIGN_BYTES {
            messages.push(response(ToWire::Assign(std::mem::take(&mut pack))));
            bytes = 0;
        }
        bytes += size;
        pack.assignments.push(assignment);
    }
    if !pack.assignments.is_empty() {
        messages.push(response(ToWire::Assign(pack)));
    }
    messages
}

/// A silence as it is told; `None` for a stage that this coordinator does not know.
fn silence_from(told: v1::SilenceReported) -> Option<silence::Told> {
    let length = |wire: Option<prost_types::Duration>| Duration::try_from(wire?).ok();
    Some(silence::Told {
        episode: told.episode,
        stage: match v1::SilenceStage::try_from(told.stage) {
            Ok(v1::SilenceStage::Warned) => silence::Stage::Warned,
            Ok(v1::SilenceStage::Reminded) => silence::Stage::Reminded,
            Ok(v1::SilenceStage::Ending) => silence::Stage::Ending,
            Ok(v1::SilenceStage::Over) => silence::Stage::Over,
            Ok(v1::SilenceStage::Unspecified) | Err(_) => return None,
        },
        lasted: length(told.lasted).unwrap_or_default(),
        at: time(told.time.as_ref()),
        stop_after: length(told.stop_after),
        evidence: told.evidence.map(|found| silence::Evidence {
            cpu_still: length(found.cpu_still),
            io_still: length(found.io_still),
            gpu_still: length(found.gpu_still),
            processes: found
                .processes
                .into_iter()
                .take(silence::MAX_PROCESSES)
                .map(|process| silence::SilentProcess {
                    pid: process.pid,
                    command: clean(process.command, 200),
                    state: clean(process.state, 1),
                    wait_channel: clean(process.wait_channel, 64),
                })
                .collect(),
            stack: clean(found.stack, SENTENCE),
            last_lines: clean(found.last_lines, 1_024),
        }),
    })
}

fn assignment_to_wire(assignment: Assignment) -> v1::Assignment {
    v1::Assignment {
        fence: assignment.fence.0,
        job_id: assignment.job.0,
        attempt: assignment.number.0,
        spec: Some(convert::spec(assignment.spec)),
        term: assignment.term.0,
        boot_id: assignment.boot_id,
        spool_id: assignment.spool_id.to_string(),
        resume_from: assignment.resume_from,
        gpus: assignment.gpus,
        beside_slots: assignment.beside_slots,
        checkpoints: assignment
            .checkpoints
            .into_iter()
            .map(|candidate| v1::ResumeCandidate {
                fence: candidate.id.fence.0,
                attempt: candidate.attempt.0,
                number: candidate.id.number,
                hash: candidate.hash,
                here: candidate.here,
                uploaded: candidate.uploaded,
                job_id: candidate.job.0,
            })
            .collect(),
        default_silence: convert::silence_rules(assignment.default_silence),
        default_gpu_idle: assignment.default_gpu_idle.map(convert::duration),
        usual_item: assignment.usual_item.map(|usual| v1::UsualItem {
            time: Some(convert::duration(usual.time)),
            unit: usual.unit,
            source: usual.source,
            same_command: usual.same_command,
        }),
    }
}

fn stop_cause(cause: StopCause) -> v1::StopCause {
    match cause {
        StopCause::Cancel => v1::StopCause::Cancel,
        StopCause::TimeLimit => v1::StopCause::TimeLimit,
        StopCause::Silence => v1::StopCause::Silence,
        StopCause::Lease => v1::StopCause::Lease,
        StopCause::Superseded => v1::StopCause::Superseded,
        StopCause::Drill => v1::StopCause::Drill,
        StopCause::GpuFault => v1::StopCause::GpuFault,
        StopCause::GpuFallback => v1::StopCause::GpuFallback,
    }
}

fn response(message: ToWire) -> v1::OpenSessionResponse {
    v1::OpenSessionResponse {
        message: Some(message),
    }
}

/// A time of the wire; `None` when it is absent or not one. The database keeps whole microseconds.
fn time(at: Option<&prost_types::Timestamp>) -> Option<DateTime<Utc>> {
    let at = at?;
    let nanos = u32::try_from(at.nanos).ok()?;
    DateTime::from_timestamp(at.seconds, nanos / 1_000 * 1_000)
}
