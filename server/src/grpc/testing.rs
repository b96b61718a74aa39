//! The services in process, on a database of their own.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use qctl_proto::v1::checkpoint_transfer_service_client::CheckpointTransferServiceClient;
use qctl_proto::v1::job_service_client::JobServiceClient;
use qctl_proto::v1::log_service_client::LogServiceClient;
use qctl_proto::v1::log_upload_service_client::LogUploadServiceClient;
use qctl_proto::v1::notice_service_client::NoticeServiceClient;
use qctl_proto::v1::queue_service_client::QueueServiceClient;
use qctl_proto::v1::worker_session_service_client::WorkerSessionServiceClient;
use qctl_proto::{MAX_MESSAGE_BYTES, v1};
use qctl_server_core::{Fence, Term};
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};

use crate::app::links::Links;
use crate::app::{About, App, Caller, Clock, ManualClock, Parts, Role, Settings};
use crate::store::fixtures::{Fixtures, noon};
use crate::store::{Lease, Store};

/// Longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(20);

/// A coordinator without workers, auth and pages.
pub(crate) struct Coordinator {
    pub(crate) app: Arc<App>,
    pub(crate) rows: Fixtures,
    pub(crate) clock: ManualClock,
    channel: Channel,
    _stop: DropGuard,
}

impl Coordinator {
    pub(crate) async fn start(pool: &PgPool) -> Self {
        Self::start_as(pool, Role::Admin, Settings::default()).await
    }

    pub(crate) async fn start_as(pool: &PgPool, role: Role, settings: Settings) -> Self {
        let stop = CancellationToken::new();
        let (clock, moved) = Clock::manual(noon());
        let rows = Fixtures::new(pool);
        rows.run("update coordinator set term = 1").await;
        let app = App::start(
            Parts {
                store: Store::new(pool.clone(), Lease::unlimited(Term(1))),
                clock,
                links: Links::new("http://queue.test", "key"),
                settings,
                started_at: noon(),
                about: About {
                    database: "PostgreSQL (test)".to_owned(),
                    templates_file: PathBuf::from("/nonexistent/templates.toml"),
                },
            },
            stop.clone(),
        );
        let caller = Caller {
            name: "tester".to_owned(),
            role,
        };
        let router = super::routes(&app)
            .into_axum_router()
            .layer(axum::Extension(caller));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let serving = Server::builder()
            .add_routes(tonic::service::Routes::from(router))
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                stop.clone().cancelled_owned(),
            );
        tokio::spawn(serving);
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .expect("an endpoint")
            .connect_lazy();
        Self {
            app,
            rows,
            clock: moved,
            channel,
            _stop: stop.drop_guard(),
        }
    }

    pub(crate) fn logs(&self) -> LogServiceClient<Channel> {
        LogServiceClient::new(self.channel.clone())
    }

    pub(crate) fn upload(&self) -> LogUploadServiceClient<Channel> {
        LogUploadServiceClient::new(self.channel.clone())
    }

    pub(crate) fn transfers(&self) -> CheckpointTransferServiceClient<Channel> {
        CheckpointTransferServiceClient::new(self.channel.clone())
    }

    pub(crate) fn workers(&self) -> WorkerSessionServiceClient<Channel> {
        WorkerSessionServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn notices(&self) -> NoticeServiceClient<Channel> {
        NoticeServiceClient::new(self.channel.clone())
    }

    pub(crate) fn queue(&self) -> QueueServiceClient<Channel> {
        QueueServiceClient::new(self.channel.clone())
    }
}

/// Waits for something that must come.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come"),
    }
}

/// Asks until the answer is yes.
pub(crate) async fn eventually<F, Fut>(what: &str, mut ask: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    soon(what, async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// A chunk of standard output read at a second after the epoch.
pub(crate) fn chunk(fence: Fence, offset: i64, text: &[u8]) -> v1::UploadLogRequest {
    chunk_of(fence, offset, &[(v1::LogStream::Stdout, text, 1)])
}

/// A chunk of runs: stream, bytes, seconds since the epoch.
pub(crate) fn chunk_of(
    fence: Fence,
    offset: i64,
    runs: &[(v1::LogStream, &[u8], i64)],
) -> v1::UploadLogRequest {
    let text: Vec<u8> = runs.iter().flat_map(|(_, text, _)| text.to_vec()).collect();
    v1::UploadLogRequest {
        fence: fence.0,
        offset,
        runs: runs
            .iter()
            .map(|(stream, text, seconds)| v1::LogRun {
                stream: (*stream).into(),
                length: text.len() as u32,
                time: Some(prost_types::Timestamp {
                    seconds: *seconds,
                    nanos: 0,
                }),
            })
            .collect(),
        data: zstd::bulk::compress(&text, 1).expect("zstd").into(),
        length: text.len() as u32,
        crc32c: crc32c::crc32c(&text),
        ..v1::UploadLogRequest::default()
    }
}

/// Says that nothing follows `whole`.
pub(crate) fn closing(fence: Fence, whole: &[u8]) -> v1::UploadLogRequest {
    v1::UploadLogRequest {
        fence: fence.0,
        offset: whole.len() as i64,
        last: true,
        log_crc32c: crc32c::crc32c(whole),
        ..v1::UploadLogRequest::default()
    }
}

/// Bytes that the worker had no room for.
pub(crate) fn hole(fence: Fence, offset: i64, bytes: i64, lines: i64) -> v1::UploadLogRequest {
    v1::UploadLogRequest {
        fence: fence.0,
        offset,
        hole_bytes: bytes,
        hole_lines: lines,
        ..v1::UploadLogRequest::default()
    }
}
