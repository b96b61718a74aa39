//! Following a job of a coordinator that breaks its streams, restarts and forgets.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use qctl_proto::v1::job::State;
use qctl_proto::v1::job_service_server::{JobService, JobServiceServer};
use qctl_proto::v1::log_service_server::{LogService, LogServiceServer};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status};

use super::*;
use crate::args::{ColourChoice, Connection};
use crate::config::Config;
use crate::keeper::process::until;

const PATIENCE: Duration = Duration::from_secs(30);

type Answer<T> = Result<Response<T>, Status>;
type Pieces<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A coordinator that knows one job and plays a script: what each `ReadLog` answers before its
/// stream breaks.
#[derive(Clone, Default)]
struct Fake {
    job: Arc<watch::Sender<Option<v1::Job>>>,
    logs: Arc<Mutex<Vec<Vec<v1::ReadLogResponse>>>>,
    asked: Arc<Mutex<Vec<(i32, i64)>>>,
}

impl Fake {
    fn new(job: Option<v1::Job>) -> Self {
        Self {
            job: Arc::new(watch::Sender::new(job)),
            ..Self::default()
        }
    }

    fn change(&self, job: v1::Job) {
        self.job.send_replace(Some(job));
    }

    fn serve(&self) -> (std::net::SocketAddr, Server) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        (listener.local_addr().unwrap(), self.serve_on(listener))
    }

    fn serve_on(&self, listener: std::net::TcpListener) -> Server {
        listener.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let fake = self.clone();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let served = tonic::transport::Server::builder()
                .add_service(JobServiceServer::new(fake.clone()))
                .add_service(LogServiceServer::new(fake))
                .serve_with_incoming(TcpListenerStream::new(listener));
            served.await.unwrap();
        });
        Server(Some(runtime))
    }
}

/// A serving coordinator, which ends with all its connections when dropped.
struct Server(Option<tokio::runtime::Runtime>);

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[tonic::async_trait]
impl LogService for Fake {
    type ReadLogStream = Pieces<v1::ReadLogResponse>;

    async fn read_log(&self, request: Request<v1::ReadLogRequest>) -> Answer<Self::ReadLogStream> {
        let request = request.into_inner();
        self.asked
            .lock()
            .unwrap()
            .push((request.attempt, request.offset));
        let mut logs = self.logs.lock().unwrap();
        if logs.is_empty() {
            return Err(Status::unavailable("nothing is left of the script"));
        }
        let pieces = logs.remove(0).into_iter().map(Ok);
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }
}

/// Calls that no follower makes.
macro_rules! refused {
    ($($name:ident($request:ident) -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl JobService for Fake {
            type WatchJobsStream = Pieces<v1::WatchJobsResponse>;

            async fn watch_jobs(
                &self,
                _request: Request<v1::WatchJobsRequest>,
            ) -> Answer<Self::WatchJobsStream> {
                let mut jobs = self.job.subscribe();
                let (sender, receiver) = mpsc::channel(8);
                tokio::spawn(async move {
                    let mut caught_up = true;
                    loop {
                        let job = jobs.borrow_and_update().clone();
                        let change = v1::WatchJobsResponse { job, as_of: 1, caught_up };
                        caught_up = false;
                        if sender.send(Ok(change)).await.is_err() || jobs.changed().await.is_err() {
                            break;
                        }
                    }
                });
                Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
            }

            async fn explain_job(
                &self,
                _request: Request<v1::ExplainJobRequest>,
            ) -> Answer<v1::ExplainJobResponse> {
                Ok(Response::new(v1::ExplainJobResponse {
                    sentences: vec!["waits behind 2 jobs".to_owned(), "and more".to_owned()],
                    job: None,
                }))
            }

            $(async fn $name(
                &self,
                _request: Request<v1::$request>,
            ) -> Answer<v1::$response> {
                Err(Status::unimplemented("a follower does not call this"))
            })*
        }
    };
}

refused! {
    submit_jobs(SubmitJobsRequest) -> SubmitJobsResponse;
    get_job(GetJobRequest) -> GetJobResponse;
    list_jobs(ListJobsRequest) -> ListJobsResponse;
    cancel_job(CancelJobRequest) -> CancelJobResponse;
    retry_job(RetryJobRequest) -> RetryJobResponse;
    interrupt_job(InterruptJobRequest) -> InterruptJobResponse;
    hold_job(HoldJobRequest) -> HoldJobResponse;
    release_job(ReleaseJobRequest) -> ReleaseJobResponse;
    pause_job(PauseJobRequest) -> PauseJobResponse;
    resume_job(ResumeJobRequest) -> ResumeJobResponse;
    update_job(UpdateJobRequest) -> UpdateJobResponse;
    delete_job(DeleteJobRequest) -> DeleteJobResponse;
    cleanup_jobs(CleanupJobsRequest) -> CleanupJobsResponse;
    execute_next(ExecuteNextRequest) -> ExecuteNextResponse;
    list_events(ListEventsRequest) -> ListEventsResponse;
    list_checkpoints(ListCheckpointsRequest) -> ListCheckpointsResponse;
}

fn job(state: State, attempt: i32) -> v1::Job {
    v1::Job {
        id: 42,
        state: state.into(),
        attempt,
        spec: Some(v1::JobSpec::default()),
        ..Default::default()
    }
}

fn piece(attempt: i32, offset: i64, text: &str) -> v1::ReadLogResponse {
    v1::ReadLogResponse {
        attempt,
        offset,
        data: text.as_bytes().to_vec().into(),
        ..Default::default()
    }
}

fn end(attempt: i32, offset: i64) -> v1::ReadLogResponse {
    v1::ReadLogResponse {
        attempt_complete: true,
        ..piece(attempt, offset, "")
    }
}

fn context(folder: &tempfile::TempDir, address: std::net::SocketAddr) -> Context {
    let token = folder.path().join("token");
    std::fs::write(&token, "secret").unwrap();
    let config = Config::load(Connection {
        server: Some(address.to_string()),
        token_file: Some(token),
        authority: None,
    })
    .unwrap();
    Context::new(config, Output::detect(false, ColourChoice::Never))
}

/// Follows job 42 as `follow` does, but into memory. `watched` sees every line as it comes.
async fn gather(
    context: &Context,
    mut watched: impl FnMut(&Model, &[Line]),
) -> Result<(Model, Vec<Line>), Error> {
    let client = context.client().await?.clone();
    let (events, mut received) = mpsc::channel(WAITING_EVENTS);
    let (seen, known) = watch::channel(Seen::default());
    let source = Source {
        context,
        job: 42,
        events,
    };
    let collect = async {
        let mut model = Model::new(false, Utc::now());
        let mut lines = Vec::new();
        while !model.is_over(Utc::now()) {
            let event = received.recv().await.unwrap();
            lines.extend(take(&mut model, event));
            watched(&model, &lines);
        }
        Ok((model, lines))
    };
    let followed = async {
        tokio::select! {
            result = collect => result,
            error = source.watch_job(client.clone(), seen) => Err(error),
            error = source.read_output(client.clone(), known.clone()) => Err(error),
            () = source.ask_why(client, known) => unreachable!(),
        }
    };
    tokio::time::timeout(PATIENCE, followed)
        .await
        .expect("following ends")
}

fn output(lines: &[Line]) -> Vec<&str> {
    lines
        .iter()
        .filter_map(|line| match line {
            Line::Output(text) => Some(text.as_str()),
            Line::Remark(_) => None,
        })
        .collect()
}

#[tokio::test]
async fn broken_streams_go_on_at_the_byte_and_through_attempts() {
    let fake = Fake::new(Some(job(State::Running, 1)));
    *fake.logs.lock().unwrap() = vec![
        vec![piece(1, 0, "one\ntw")],
        vec![],
        vec![piece(1, 6, "o\n"), end(1, 8)],
        vec![piece(2, 0, "again\n"), end(2, 6)],
    ];
    let (address, _server) = fake.serve();
    let folder = tempfile::tempdir().unwrap();
    let context = context(&folder, address);
    let mut steps = 0;
    let (model, lines) = gather(&context, |_, lines| match steps {
        0 if output(lines).contains(&"two") => {
            steps = 1;
            fake.change(job(State::Running, 2));
        }
        1 if output(lines).contains(&"again") => {
            steps = 2;
            let mut failed = job(State::Failed, 2);
            failed.outcome = Some(v1::Outcome {
                cause: "exit".to_owned(),
                exit_code: Some(3),
                ..Default::default()
            });
            fake.change(failed);
        }
        _ => {}
    })
    .await
    .unwrap();
    assert_eq!(output(&lines), ["one", "two", "again"]);
    assert!(lines.contains(&Line::Remark("--- attempt 2".to_owned())));
    assert_eq!(exit::of_job(model.job().unwrap()), 3);
    assert_eq!(
        *fake.asked.lock().unwrap(),
        [(1, 0), (1, 6), (1, 6), (2, 0)]
    );
}

#[tokio::test]
async fn a_coordinator_that_restarts_is_waited_for() {
    let fake = Fake::new(Some(job(State::Running, 1)));
    let (address, server) = fake.serve();
    let folder = tempfile::tempdir().unwrap();
    let context = context(&folder, address);
    let deadline = std::time::Instant::now() + PATIENCE;
    let restarted = async {
        let asked = async || (!fake.asked.lock().unwrap().is_empty()).then_some(());
        until(deadline, asked).await.unwrap();
        drop(server);
        let rebound = async || std::net::TcpListener::bind(address).ok();
        let listener = until(deadline, rebound).await.unwrap();
        *fake.logs.lock().unwrap() = vec![vec![piece(1, 0, "whole\n"), end(1, 6)]];
        fake.change(job(State::Succeeded, 1));
        let _server = fake.serve_on(listener);
        std::future::pending::<()>().await;
    };
    let followed = gather(&context, |_, _| {});
    let (model, lines) = tokio::select! {
        followed = followed => followed.unwrap(),
        () = restarted => unreachable!(),
    };
    assert_eq!(output(&lines), ["whole"]);
    assert_eq!(exit::of_job(model.job().unwrap()), 0);
}

#[tokio::test]
async fn a_waiting_job_says_why_and_one_cancelled_before_its_start_ends() {
    let fake = Fake::new(Some(job(State::Queued, 0)));
    let (address, _server) = fake.serve();
    let folder = tempfile::tempdir().unwrap();
    let context = context(&folder, address);
    let (model, lines) = gather(&context, |model, _| {
        if model.why() == "waits behind 2 jobs" {
            fake.change(job(State::Cancelled, 0));
        }
    })
    .await
    .unwrap();
    assert_eq!(output(&lines), [""; 0]);
    assert_eq!(exit::of_job(model.job().unwrap()), exit::CANCELLED);
}

#[tokio::test]
async fn a_job_that_does_not_exist_is_an_error() {
    let fake = Fake::new(None);
    let (address, _server) = fake.serve();
    let folder = tempfile::tempdir().unwrap();
    let error = gather(&context(&folder, address), |_, _| {})
        .await
        .unwrap_err();
    assert_eq!(error.exit_code(), exit::NOT_FOUND);
    assert_eq!(error.report().message, "there is no job 42");
}
