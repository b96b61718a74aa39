//! A coordinator that answers what a test tells it to, and remembers what it was asked.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};

use qctl_proto::error::{Fault, Reason};
use qctl_proto::v1;
use tempfile::TempDir;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use v1::alarm_service_server::{AlarmService, AlarmServiceServer};
use v1::job_service_server::{JobService, JobServiceServer};
use v1::log_service_server::{LogService, LogServiceServer};
use v1::queue_service_server::{QueueService, QueueServiceServer};

const TOKEN: &str = "the-test-token";

type Stream<T> = tokio_stream::wrappers::ReceiverStream<Result<T, Status>>;

/// What a stream of the fake does: its messages, then its end.
pub(crate) struct Scripted<T> {
    pub(crate) messages: Vec<T>,
    /// The error it ends with; a stream without one ends well.
    pub(crate) error: Option<Status>,
}

/// What the fake answers, and what it was asked.
#[derive(Default)]
pub(crate) struct Script {
    /// Jobs that exist.
    pub(crate) jobs: Vec<v1::Job>,
    pub(crate) attempts: Vec<v1::Attempt>,
    pub(crate) events: Vec<v1::Event>,
    /// Checkpoints of every job.
    pub checkpoints: Vec<v1::Checkpoint>,
    pub(crate) workers: Vec<v1::Worker>,
    /// What is unusual, and how often what was.
    pub(crate) alarms: v1::ListAlarmsResponse,
    pub(crate) health: v1::GetHealthResponse,
    pub(crate) templates: Vec<v1::Template>,
    /// The next calls that are not streams fail with these.
    pub(crate) faults: VecDeque<Status>,
    pub(crate) watches: VecDeque<Scripted<v1::WatchJobsResponse>>,
    pub(crate) logs: VecDeque<Scripted<v1::ReadLogResponse>>,
    /// Every request, as its Rust text.
    pub(crate) asked: Vec<String>,
    /// What every submission is warned of.
    pub(crate) warnings: Vec<String>,
    pub(crate) submitted: Vec<v1::SubmitJobsRequest>,
    pub(crate) updated: Vec<v1::UpdateJobRequest>,
    pub(crate) read: Vec<v1::ReadLogRequest>,
}

/// What the command line printed and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A running fake and a home whose files lead to it.
pub(crate) struct Fake {
    home: TempDir,
    script: Arc<Mutex<Script>>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Fake {
    pub(crate) fn start() -> Self {
        let home = TempDir::with_prefix("qctl-cli-").unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        std::fs::create_dir_all(home.path().join("data")).unwrap();
        std::fs::create_dir_all(home.path().join("config")).unwrap();
        std::fs::create_dir_all(home.path().join("work")).unwrap();
        std::fs::write(home.path().join("data/token"), format!("{TOKEN}\n")).unwrap();
        std::fs::write(home.path().join("data/address"), format!("{address}\n")).unwrap();
        let script = Arc::new(Mutex::new(Script::default()));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let service = Service(Arc::clone(&script));
        std::thread::spawn(move || serve(listener, service, stopped));
        Self {
            home,
            script,
            _stop: stop,
        }
    }

    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    /// The directory that commands are run in.
    pub(crate) fn work(&self) -> PathBuf {
        self.home.path().join("work")
    }

    /// Writes a file below the home.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        command(self.home.path(), args)
    }

    pub(crate) fn qctl(&self, args: &[&str]) -> Ran {
        run(self.command(args))
    }

    /// What was printed, with everything that differs from run to run replaced.
    pub(crate) fn tidy(&self, text: &str) -> String {
        let host = rustix::system::uname();
        text.replace(self.home.path().to_str().unwrap(), "[home]")
            .replace(
                &format!("{:?}", host.nodename().to_string_lossy()),
                "\"[host]\"",
            )
    }
}

/// A command line in an environment of its own.
pub(crate) fn command(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qctl"));
    command
        .args(args)
        .current_dir(home.join("work"))
        .env_clear()
        .env("QCTL_HOME", home)
        .env("PATH", "/usr/bin:/bin")
        .env("LANG", "C.UTF-8")
        .env("TZ", "JST-9")
        .env("SECRET_TOKEN", "not to be captured")
        .stdin(Stdio::null());
    command
}

pub(crate) fn run(mut command: Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn serve(
    listener: std::net::TcpListener,
    service: Service,
    stopped: tokio::sync::oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(
                JobServiceServer::new(service.clone())
                    .max_decoding_message_size(qctl_proto::MAX_MESSAGE_BYTES),
            )
            .add_service(LogServiceServer::new(service.clone()))
            .add_service(AlarmServiceServer::new(service.clone()))
            .add_service(QueueServiceServer::new(service))
            .serve_with_incoming(incoming);
        tokio::select! {
            result = server => result.unwrap(),
            _ = stopped => {}
        }
    });
}

#[derive(Clone)]
struct Service(Arc<Mutex<Script>>);

impl Service {
    /// Checks the token, remembers the request, and fails where the script says so.
    fn ask<T: std::fmt::Debug>(
        &self,
        request: &Request<T>,
    ) -> Result<MutexGuard<'_, Script>, Status> {
        let mut script = self.enter(request)?;
        match script.faults.pop_front() {
            Some(fault) => Err(fault),
            None => Ok(script),
        }
    }

    fn enter<T: std::fmt::Debug>(
        &self,
        request: &Request<T>,
    ) -> Result<MutexGuard<'_, Script>, Status> {
        let token = request.metadata().get("authorization");
        if token.is_none_or(|token| token != format!("Bearer {TOKEN}").as_str()) {
            return Err(
                Fault::new(Reason::Unauthenticated, "this token is not known")
                    .hint("give the coordinator's token")
                    .into(),
            );
        }
        let mut script = self.0.lock().unwrap();
        script.asked.push(format!("{:?}", request.get_ref()));
        Ok(script)
    }

    /// Reads a job; `None` in the message is never sent by the fake.
    fn job<T: std::fmt::Debug>(
        &self,
        request: &Request<T>,
        id: i64,
    ) -> Result<Option<v1::Job>, Status> {
        let script = self.ask(request)?;
        find(&script, id).map(Some)
    }
}

fn find(script: &Script, id: i64) -> Result<v1::Job, Status> {
    let found = script.jobs.iter().find(|job| job.id == id).cloned();
    found.ok_or_else(|| {
        Fault::new(Reason::JobNotFound, format!("there is no job {id}"))
            .next("qctl list")
            .into()
    })
}

fn play<T: Send + 'static>(script: Option<Scripted<T>>) -> Response<Stream<T>> {
    let script = script.unwrap_or(Scripted {
        messages: Vec::new(),
        error: None,
    });
    let (sender, receiver) = tokio::sync::mpsc::channel(script.messages.len() + 1);
    for message in script.messages {
        sender.try_send(Ok(message)).ok().unwrap();
    }
    if let Some(error) = script.error {
        sender.try_send(Err(error)).ok().unwrap();
    }
    Response::new(Stream::new(receiver))
}

#[tonic::async_trait]
impl JobService for Service {
    type WatchJobsStream = Stream<v1::WatchJobsResponse>;

    async fn submit_jobs(
        &self,
        request: Request<v1::SubmitJobsRequest>,
    ) -> Result<Response<v1::SubmitJobsResponse>, Status> {
        let mut script = self.enter(&request)?;
        script.submitted.push(request.get_ref().clone());
        if let Some(fault) = script.faults.pop_front() {
            return Err(fault);
        }
        let jobs = request.into_inner().jobs.into_iter().zip(42..);
        let jobs = jobs.map(|(spec, id)| job(id, v1::job::State::Queued, spec));
        Ok(Response::new(v1::SubmitJobsResponse {
            jobs: jobs.collect(),
            replayed: false,
            warnings: script.warnings.clone(),
        }))
    }

    async fn get_job(
        &self,
        request: Request<v1::GetJobRequest>,
    ) -> Result<Response<v1::GetJobResponse>, Status> {
        let job = self.job(&request, request.get_ref().id)?;
        let script = self.0.lock().unwrap();
        Ok(Response::new(v1::GetJobResponse {
            job,
            attempts: script.attempts.clone(),
            as_of: 99,
        }))
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        let script = self.ask(&request)?;
        let size = usize::try_from(request.get_ref().page_size).unwrap();
        let more = script.jobs.len() > size;
        Ok(Response::new(v1::ListJobsResponse {
            jobs: script.jobs.iter().take(size).cloned().collect(),
            next_page_token: if more { "next" } else { "" }.to_owned(),
            as_of: 99,
            counts: vec![v1::StateCount {
                state: v1::job::State::Queued.into(),
                count: i64::try_from(script.jobs.len()).unwrap(),
            }],
        }))
    }

    async fn watch_jobs(
        &self,
        request: Request<v1::WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        let mut script = self.enter(&request)?;
        Ok(play(script.watches.pop_front()))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let job = self.job(&request, request.get_ref().id)?;
        Ok(Response::new(v1::CancelJobResponse { job }))
    }

    async fn retry_job(
        &self,
        request: Request<v1::RetryJobRequest>,
    ) -> Result<Response<v1::RetryJobResponse>, Status> {
        let job = self.job(&request, request.get_ref().id)?;
        Ok(Response::new(v1::RetryJobResponse { job }))
    }

    async fn interrupt_job(
        &self,
        request: Request<v1::InterruptJobRequest>,
    ) -> Result<Response<v1::InterruptJobResponse>, Status> {
        let job = self.job(&request, request.get_ref().id)?;
        Ok(Response::new(v1::InterruptJobResponse { job }))
    }

    async fn hold_job(
        &self,
        request: Request<v1::HoldJobRequest>,
    ) -> Result<Response<v1::HoldJobResponse>, Status> {
        let job = self.job(&request, request.get_ref().id)?;
        Ok(Response::new(v1::HoldJobResponse { job }))
    }

    async fn release_job(
        &self,
        request: Request<v1::ReleaseJobRequest>,
    ) -> Result<Response<v1::ReleaseJobResponse>, Status> {
        let job = self.job(&request, request.get_ref().id)?;
        Ok(Response::new(v1::ReleaseJobResponse { job }))
    }

    async fn pause_job(
        &self,
        request: Request<v1::PauseJobRequest>,
    ) -> Result<Response<v1::PauseJobResponse>, Status> {
        let job = self.job(&request, request.get_ref().id)?;
        Ok(Response::new(v1::PauseJobResponse { job }))
    }

    async fn resume_job(
        &self,
        request: Request<v1::ResumeJobRequest>,
    ) -> Result<Response<v1::ResumeJobResponse>, Status> {
        let job = self.job(&request, request.get_ref().id)?;
        Ok(Response::new(v1::ResumeJobResponse { job }))
    }

    async fn update_job(
        &self,
        request: Request<v1::UpdateJobRequest>,
    ) -> Result<Response<v1::UpdateJobResponse>, Status> {
        let job = self.job(&request, request.get_ref().id)?;
        self.0.lock().unwrap().updated.push(request.into_inner());
        Ok(Response::new(v1::UpdateJobResponse { job }))
    }

    async fn delete_job(
        &self,
        request: Request<v1::DeleteJobRequest>,
    ) -> Result<Response<v1::DeleteJobResponse>, Status> {
        self.job(&request, request.get_ref().id)?;
        Ok(Response::new(v1::DeleteJobResponse {}))
    }

    async fn cleanup_jobs(
        &self,
        request: Request<v1::CleanupJobsRequest>,
    ) -> Result<Response<v1::CleanupJobsResponse>, Status> {
        drop(self.ask(&request)?);
        Ok(Response::new(v1::CleanupJobsResponse {
            deleted: 3,
            log_bytes: 4096,
        }))
    }

    async fn execute_next(
        &self,
        request: Request<v1::ExecuteNextRequest>,
    ) -> Result<Response<v1::ExecuteNextResponse>, Status> {
        let script = self.ask(&request)?;
        let job = script.jobs.first().cloned();
        if job.is_none() {
            return Err(Fault::new(Reason::NothingQueued, "no job is queued").into());
        }
        Ok(Response::new(v1::ExecuteNextResponse { job }))
    }

    async fn explain_job(
        &self,
        request: Request<v1::ExplainJobRequest>,
    ) -> Result<Response<v1::ExplainJobResponse>, Status> {
        let job = self.job(&request, request.get_ref().id)?;
        Ok(Response::new(v1::ExplainJobResponse {
            sentences: vec!["It waits behind 2 jobs".to_owned()],
            job,
        }))
    }

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        let script = self.ask(&request)?;
        Ok(Response::new(v1::ListEventsResponse {
            events: script.events.clone(),
            next_page_token: String::new(),
        }))
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        let script = self.ask(&request)?;
        Ok(Response::new(v1::ListCheckpointsResponse {
            checkpoints: script.checkpoints.clone(),
            next_page_token: String::new(),
        }))
    }
}

#[tonic::async_trait]
impl LogService for Service {
    type ReadLogStream = Stream<v1::ReadLogResponse>;

    async fn read_log(
        &self,
        request: Request<v1::ReadLogRequest>,
    ) -> Result<Response<Self::ReadLogStream>, Status> {
        let mut script = self.ask(&request)?;
        script.read.push(request.into_inner());
        Ok(play(script.logs.pop_front()))
    }
}

#[tonic::async_trait]
impl QueueService for Service {
    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let script = self.ask(&request)?;
        Ok(Response::new(v1::GetStatusResponse {
            workers: script.workers.clone(),
            ..Default::default()
        }))
    }

    async fn set_queue_paused(
        &self,
        request: Request<v1::SetQueuePausedRequest>,
    ) -> Result<Response<v1::SetQueuePausedResponse>, Status> {
        drop(self.ask(&request)?);
        Ok(Response::new(v1::SetQueuePausedResponse {
            waiting: 3,
            running: 1,
        }))
    }

    async fn list_workers(
        &self,
        request: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let script = self.ask(&request)?;
        Ok(Response::new(v1::ListWorkersResponse {
            workers: script.workers.clone(),
            next_page_token: String::new(),
        }))
    }

    async fn update_worker(
        &self,
        request: Request<v1::UpdateWorkerRequest>,
    ) -> Result<Response<v1::UpdateWorkerResponse>, Status> {
        let script = self.ask(&request)?;
        let worker = script
            .workers
            .iter()
            .find(|worker| worker.name == request.get_ref().worker)
            .cloned();
        Ok(Response::new(v1::UpdateWorkerResponse { worker }))
    }

    async fn list_templates(
        &self,
        request: Request<v1::ListTemplatesRequest>,
    ) -> Result<Response<v1::ListTemplatesResponse>, Status> {
        let script = self.ask(&request)?;
        Ok(Response::new(v1::ListTemplatesResponse {
            templates: script.templates.clone(),
        }))
    }
}

/// A job in a state, submitted at a fixed time.
pub(crate) fn job(id: i64, state: v1::job::State, spec: v1::JobSpec) -> v1::Job {
    let at = |seconds: i64| {
        Some(prost_types::Timestamp {
            seconds: 1_600_000_000 + seconds,
            nanos: 0,
        })
    };
    let ended = matches!(
        state,
        v1::job::State::Succeeded | v1::job::State::Failed | v1::job::State::Cancelled
    );
    let started = ended || state == v1::job::State::Running;
    let tracker_url = match spec.tracker.as_str() {
        "" => String::new(),
        tracker => format!("http://127.0.0.1:7420/tracker/{tracker}"),
    };
    v1::Job {
        id,
        state: state.into(),
        attempt: started.into(),
        created_at: at(0),
        started_at: at(1).filter(|_| started),
        ended_at: at(193).filter(|_| ended),
        retries_left: 2,
        resumes_left: 3,
        url: format!("http://127.0.0.1:7420/jobs/{id}"),
        tracker_url,
        spec: Some(spec),
        ..Default::default()
    }
}

/// A spec with a name.
pub(crate) fn named(name: &str) -> v1::JobSpec {
    v1::JobSpec {
        name: name.to_owned(),
        command: vec!["true".to_owned()],
        cwd: "/srv".to_owned(),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl AlarmService for Service {
    async fn list_alarms(
        &self,
        request: Request<v1::ListAlarmsRequest>,
    ) -> Result<Response<v1::ListAlarmsResponse>, Status> {
        Ok(Response::new(self.ask(&request)?.alarms.clone()))
    }

    async fn get_health(
        &self,
        request: Request<v1::GetHealthRequest>,
    ) -> Result<Response<v1::GetHealthResponse>, Status> {
        Ok(Response::new(self.ask(&request)?.health.clone()))
    }
}
