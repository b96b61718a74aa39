//! Output on its way in, over a connection of its own.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use qctl_proto::error::{Fault, Reason};
use qctl_proto::v1;
use qctl_proto::v1::log_upload_service_server::LogUploadService;
use qctl_server_core::Fence;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use super::status::{caller, status};
use crate::app::logs::{Acks, Chunk};
use crate::app::{App, Error, Role};
use crate::store::StoreError;

/// Acknowledgements that wait for a slow worker; more are merged per attempt.
const ACKS_AHEAD: usize = 16;

/// Takes output.
pub(super) struct LogUpload {
    app: Arc<App>,
}

impl LogUpload {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { app }
    }
}

type Responses = mpsc::Sender<Result<v1::UploadLogResponse, Status>>;

#[tonic::async_trait]
impl LogUploadService for LogUpload {
    type UploadLogStream =
        Pin<Box<dyn Stream<Item = Result<v1::UploadLogResponse, Status>> + Send>>;

    async fn upload_log(
        &self,
        request: Request<Streaming<v1::UploadLogRequest>>,
    ) -> Result<Response<Self::UploadLogStream>, Status> {
        caller(&request, Role::Worker)?;
        let (responses, receiver) = mpsc::channel(ACKS_AHEAD);
        let app = Arc::clone(&self.app);
        let chunks = request.into_inner();
        tokio::spawn(async move {
            let acks = Arc::new(Acks::default());
            let ended = tokio::select! {
                ended = take_in(&app, chunks, &acks) => ended,
                ended = acknowledge(&app, &acks, &responses) => ended,
                () = responses.closed() => return,
                () = app.stop().cancelled() => Err(status(Error::ShuttingDown)),
            };
            if let Err(status) = ended {
                // A worker that has gone needs no error.
                let _ = responses.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Verifies chunks and hands them on, until the worker ends its side.
async fn take_in(
    app: &App,
    mut chunks: Streaming<v1::UploadLogRequest>,
    acks: &Arc<Acks>,
) -> Result<(), Status> {
    while let Some(request) = chunks.message().await? {
        let (fence, offset) = (request.fence, request.offset);
        let chunk = chunk(request).verify().map_err(|error| {
            tracing::warn!(
                fence,
                offset,
                "a chunk of output with fence {fence} at offset {offset} is refused: {error}"
            );
            Status::from(
                Fault::new(Reason::InvalidField, error.to_string())
                    .field(format!("chunk of fence {fence} at offset {offset}"))
                    .hint("the worker and the coordinator may be of different versions"),
            )
        })?;
        if !app.logs.intake.submit(chunk, acks).await {
            return Err(status(Error::ShuttingDown));
        }
    }
    // What was handed on is still acknowledged, and then the answers end.
    acks.finish();
    std::future::pending().await
}

async fn acknowledge(app: &App, acks: &Acks, responses: &Responses) -> Result<(), Status> {
    while let Some(acks) = acks
        .next()
        .await
        .map_err(|error| status(Error::from(error)))?
    {
        if !app.store.lease().holds() {
            return Err(status(StoreError::Fenced.into()));
        }
        for ack in acks {
            let response = v1::UploadLogResponse {
                fence: ack.fence.0,
                stored: ack.stored.unwrap_or(0),
                unknown: ack.stored.is_none(),
                closed: ack.closed,
            };
            if responses.send(Ok(response)).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn chunk(request: v1::UploadLogRequest) -> Chunk {
    let hole_cause = convert::read_hole_cause(request.hole_cause());
    Chunk {
        fence: Fence(request.fence),
        offset: request.offset,
        runs: request.runs.iter().map(convert::read_run).collect(),
        data: request.data,
        length: request.length,
        crc32c: request.crc32c,
        hole_bytes: request.hole_bytes,
        hole_lines: request.hole_lines,
        hole_cause,
        lines_behind: request.lines_behind,
        crc32c_behind: request.crc32c_behind,
        colour_state: request.colour_state,
        closes: request.last.then_some(request.log_crc32c),
    }
}
