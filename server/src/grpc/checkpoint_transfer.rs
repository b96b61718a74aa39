//! Contents of checkpoints on their way in and out, over a connection of their own.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use qctl_proto::error::{Fault, Reason};
use qctl_proto::v1::checkpoint_transfer_service_server::CheckpointTransferService;
use qctl_proto::{MAX_CHUNK_BYTES, v1};
use qctl_server_core::Fence;
use qctl_server_core::checkpoint::CheckpointId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::status::{caller, status};
use crate::app::checkpoints::{CopyAnswer, Piece};
use crate::app::{App, Error, Role};

/// Answers and pieces on their way to a slow worker.
const AHEAD: usize = 8;

/// Carries contents of checkpoints.
pub(super) struct CheckpointTransfer {
    app: Arc<App>,
}

impl CheckpointTransfer {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { app }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Sender<T> = mpsc::Sender<Result<T, Status>>;

#[tonic::async_trait]
impl CheckpointTransferService for CheckpointTransfer {
    type UploadCheckpointStream = Answers<v1::UploadCheckpointResponse>;
    type FetchCheckpointStream = Answers<v1::FetchCheckpointResponse>;

    async fn upload_checkpoint(
        &self,
        request: Request<Streaming<v1::UploadCheckpointRequest>>,
    ) -> Result<Response<Self::UploadCheckpointStream>, Status> {
        caller(&request, Role::Worker)?;
        let (sender, receiver) = mpsc::channel(AHEAD);
        let app = Arc::clone(&self.app);
        let pieces = request.into_inner();
        self.app.spawn(async move {
            let ended = tokio::select! {
                ended = take_in(&app, pieces, &sender) => ended,
                () = sender.closed() => return,
                () = app.stop().cancelled() => Err(status(Error::ShuttingDown)),
            };
            if let Err(status) = ended {
                // A worker that has gone needs no error, and one that does not read none either.
                let _ = sender.try_send(Err(status));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn fetch_checkpoint(
        &self,
        request: Request<v1::FetchCheckpointRequest>,
    ) -> Result<Response<Self::FetchCheckpointStream>, Status> {
        caller(&request, Role::Worker)?;
        let request = request.into_inner();
        let id = CheckpointId {
            fence: Fence(request.fence),
            number: request.number,
        };
        let total = self.app.copy_length(id).await.map_err(status)?;
        let (sender, receiver) = mpsc::channel(AHEAD);
        let app = Arc::clone(&self.app);
        self.app.spawn(async move {
            let ended = tokio::select! {
                ended = send_out(&app, id, request.offset.max(0), total, &sender) => ended,
                () = sender.closed() => return,
                () = app.stop().cancelled() => Err(status(Error::ShuttingDown)),
            };
            if let Err(status) = ended {
                let _ = sender.try_send(Err(status));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Takes one checkpoint, until the worker ends its side or all of it is there.
async fn take_in(
    app: &Arc<App>,
    mut pieces: Streaming<v1::UploadCheckpointRequest>,
    answers: &Sender<v1::UploadCheckpointResponse>,
) -> Result<(), Status> {
    let Some(first) = pieces.message().await? else {
        return Ok(());
    };
    let id = CheckpointId {
        fence: Fence(first.fence),
        number: first.number,
    };
    let opened = app
        .open_copy(id, first.total, first.asked)
        .await
        .map_err(status)?;
    let mut go_on = answer(answers, opened).await;
    while go_on && let Some(request) = pieces.message().await? {
        let piece = verified(request)?;
        let copied = app.copy_piece(id, piece).await.map_err(status)?;
        go_on = answer(answers, copied).await;
    }
    Ok(())
}

/// Sends an answer; false when nothing more is to be said.
async fn answer(answers: &Sender<v1::UploadCheckpointResponse>, answer: CopyAnswer) -> bool {
    let response = match answer {
        CopyAnswer::Stored { bytes, complete } => v1::UploadCheckpointResponse {
            stored: bytes,
            complete,
            ..v1::UploadCheckpointResponse::default()
        },
        CopyAnswer::Refused(why) => v1::UploadCheckpointResponse {
            refused: why,
            ..v1::UploadCheckpointResponse::default()
        },
        CopyAnswer::Superseded => v1::UploadCheckpointResponse {
            refused: "newer ones of its job are copied already".to_owned(),
            superseded: true,
            ..v1::UploadCheckpointResponse::default()
        },
    };
    let last = response.complete || !response.refused.is_empty();
    answers.send(Ok(response)).await.is_ok() && !last
}

/// A piece whose bytes are what they were when they were sent.
fn verified(request: v1::UploadCheckpointRequest) -> Result<Piece, Status> {
    let length = usize::try_from(request.length).unwrap_or(usize::MAX);
    let refused = |why: &str| {
        Status::from(
            Fault::new(Reason::InvalidField, format!("the piece {why}"))
                .field("data")
                .hint("the worker and the coordinator may be of different versions"),
        )
    };
    if !(1..=MAX_CHUNK_BYTES).contains(&length) || request.offset < 0 {
        return Err(refused("has an impossible place or length"));
    }
    let bytes = zstd::bulk::decompress(&request.data, length)
        .map_err(|_| refused("cannot be decompressed"))?;
    if bytes.len() != length || crc32c::crc32c(&bytes) != request.crc32c {
        return Err(refused("was damaged on its way"));
    }
    Ok(Piece {
        offset: request.offset,
        length: request.length as i32,
        crc32c: request.crc32c,
        data: request.data.into(),
    })
}

async fn send_out(
    app: &App,
    id: CheckpointId,
    mut offset: i64,
    total: i64,
    sender: &Sender<v1::FetchCheckpointResponse>,
) -> Result<(), Status> {
    while offset < total {
        let pieces = app.copy_pieces(id, offset).await.map_err(status)?;
        if pieces.is_empty() {
            // It was given up in the meantime.
            return Err(status(Error::CheckpointNotFound));
        }
        for piece in pieces {
            offset = piece.offset + i64::from(piece.length);
            let response = v1::FetchCheckpointResponse {
                offset: piece.offset,
                data: piece.data.into(),
                length: piece.length as u32,
                crc32c: piece.crc32c,
                total,
            };
            if sender.send(Ok(response)).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
