//! Copies of checkpoints on their way to the coordinator and back, on connections of their own.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use qctl_checkpoint::{BundleReader, ReadError, UnpackError, Unpacker};
use qctl_proto::client::ConnectError;
use qctl_proto::error::{Fault, Reason};
use qctl_proto::v1::checkpoint_transfer_service_client::CheckpointTransferServiceClient;
use qctl_proto::v1::{FetchCheckpointRequest, FetchCheckpointResponse, UploadCheckpointRequest};
use qctl_proto::{MAX_CHUNK_BYTES, MAX_MESSAGE_BYTES};
use qctl_worker_core::checkpoint::CheckpointId;
use qctl_worker_core::session::redial_delay;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Coordinator;
use crate::chain;

/// Pieces between the disk and the connection.
const AHEAD: usize = 4;

/// The fastest level: what models write compresses badly, and the processor belongs to the jobs.
const COMPRESSION_LEVEL: i32 = 1;

/// Longest wait for the next piece or answer.
const SILENCE: Duration = Duration::from_secs(60);

/// How often an upload is tried while there is a session, before the next checkpoint has to do.
const TRIES: u32 = 10;

/// A checkpoint to upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Upload {
    /// The job.
    pub(super) job: i64,
    /// Which.
    pub(super) id: CheckpointId,
    /// Where it is.
    pub(super) folder: PathBuf,
}

/// The checkpoints that wait to be uploaded: of each job only the newest.
#[derive(Clone, Debug, Default)]
pub(super) struct Uploads {
    known: Arc<Mutex<Known>>,
    wake: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Known {
    /// By job.
    waiting: BTreeMap<i64, Upload>,
    /// The newest of each job that waits, is being uploaded, or was. It may be mentioned again, as
    /// after a connection broke, and is uploaded once.
    newest: BTreeMap<i64, CheckpointId>,
}

impl Uploads {
    /// Uploads one after the other, while there is a session.
    pub(super) fn start(coordinator: watch::Receiver<Option<Coordinator>>) -> Self {
        let uploads = Self::default();
        tokio::spawn(uploads.clone().run(coordinator));
        uploads
    }

    /// A checkpoint is there that the coordinator may want a copy of.
    pub(super) fn offer(&self, upload: Upload) {
        let mut known = self.known();
        let newest = known.newest.get(&upload.job);
        if newest.is_none_or(|newest| *newest < upload.id) {
            known.newest.insert(upload.job, upload.id);
            known.waiting.insert(upload.job, upload);
            self.wake.notify_one();
        }
    }

    /// Nobody wants the checkpoints of a job.
    pub(super) fn forget(&self, job: i64) {
        let mut known = self.known();
        known.waiting.remove(&job);
        known.newest.remove(&job);
    }

    fn take(&self) -> Option<Upload> {
        self.known().waiting.pop_first().map(|(_, upload)| upload)
    }

    /// It is given up, and may be offered again.
    fn failed(&self, upload: &Upload) {
        let mut known = self.known();
        if known.newest.get(&upload.job) == Some(&upload.id) {
            known.newest.remove(&upload.job);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self, mut coordinator: watch::Receiver<Option<Coordinator>>) {
        loop {
            let Some(next) = self.take() else {
                self.wake.notified().await;
                continue;
            };
            let mut tried = 0;
            loop {
                tried += 1;
                let known = match coordinator.wait_for(Option::is_some).await {
                    Ok(known) => known.clone(),
                    // The agent is ending.
                    Err(_) => return,
                };
                let Some(known) = known else { continue };
                match upload(&known, &next).await {
                    Ok(Uploaded::Whole(bytes)) => tracing::info!(
                        job = next.job,
                        bytes,
                        "checkpoint {} of job {} was uploaded ({bytes} bytes)",
                        next.id.number,
                        next.job
                    ),
                    Ok(Uploaded::NotWanted) => {}
                    Ok(Uploaded::Refused(why)) => tracing::warn!(
                        job = next.job,
                        "checkpoint {} of job {} is not uploaded: {why}",
                        next.id.number,
                        next.job
                    ),
                    Err(error) if tried < TRIES => {
                        let pause = redial_delay(tried, 1.0);
                        tracing::info!(
                            job = next.job,
                            ?pause,
                            "the upload of a checkpoint of job {} broke: {}",
                            next.job,
                            chain(&error)
                        );
                        tokio::time::sleep(pause).await;
                        continue;
                    }
                    Err(error) => {
                        tracing::warn!(
                            job = next.job,
                            "checkpoint {} of job {} could not be uploaded: {}",
                            next.id.number,
                            next.job,
                            chain(&error)
                        );
                        self.failed(&next);
                    }
                }
                break;
            }
        }
    }
}

/// What became of an upload.
enum Uploaded {
    /// The coordinator has so many bytes, which is all.
    Whole(u64),
    /// It is gone, too large to be uploaded without being asked for, there already, or outdated.
    NotWanted,
    /// The coordinator does not take it.
    Refused(String),
}

/// Why an upload broke.
#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error("cannot connect")]
    Connect(#[from] ConnectError),
    #[error("the connection broke")]
    Broken(#[from] Status),
    #[error("the coordinator did not answer")]
    Silent,
    #[error("the coordinator ended it")]
    Ended,
    #[error("it cannot be read")]
    Read(#[from] ReadError),
}

async fn upload(coordinator: &Coordinator, upload: &Upload) -> Result<Uploaded, UploadError> {
    let published = match qctl_checkpoint::open(&upload.folder) {
        Ok(published) => published,
        Err(error) if error.is_proof() => return Ok(Uploaded::NotWanted),
        Err(error) => return Err(error.into()),
    };
    let asked = published.manifest.upload;
    if !published.has_files() || (!asked && published.manifest.bytes > coordinator.upload_bytes) {
        return Ok(Uploaded::NotWanted);
    }
    let mut reader = BundleReader::new(&published);
    let total = reader.total();
    let channel = coordinator.target.connect().await?;
    let mut client = CheckpointTransferServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let (pieces, queue) = mpsc::channel(AHEAD);
    let first = UploadCheckpointRequest {
        fence: upload.id.fence,
        number: upload.id.number,
        total: total as i64,
        asked,
        ..UploadCheckpointRequest::default()
    };
    // The queue is new, so there is room.
    let _ = pieces.try_send(first);
    let mut answers = client
        .upload_checkpoint(ReceiverStream::new(queue))
        .await?
        .into_inner();
    let mut pieces = Some(pieces);
    loop {
        let answer = tokio::time::timeout(SILENCE, answers.message()).await;
        let answer = answer
            .map_err(|_| UploadError::Silent)??
            .ok_or(UploadError::Ended)?;
        if answer.superseded {
            return Ok(Uploaded::NotWanted);
        }
        if !answer.refused.is_empty() {
            return Ok(Uploaded::Refused(answer.refused));
        }
        if answer.complete {
            // Before any piece it means that all of it was there.
            return Ok(match pieces {
                Some(_) => Uploaded::NotWanted,
                None => Uploaded::Whole(total),
            });
        }
        // The first answer says where to begin.
        if let Some(pieces) = pieces.take() {
            reader.go_to(answer.stored.max(0) as u64);
            let offset = answer.stored.max(0);
            let mut reader = std::mem::replace(&mut reader, BundleReader::new(&published));
            tokio::task::spawn_blocking(move || {
                if let Err(error) = send_pieces(&mut reader, offset, &pieces) {
                    tracing::warn!("a checkpoint cannot be read for its upload: {error}");
                }
            });
        }
    }
}

/// Reads and compresses piece after piece, until the end or until nobody takes them.
fn send_pieces(
    reader: &mut BundleReader,
    mut offset: i64,
    pieces: &mpsc::Sender<UploadCheckpointRequest>,
) -> io::Result<()> {
    let mut raw = vec![0; MAX_CHUNK_BYTES];
    loop {
        let length = read_full(reader, &mut raw)?;
        if length == 0 {
            return Ok(());
        }
        let piece = UploadCheckpointRequest {
            offset,
            data: zstd::bulk::compress(&raw[..length], COMPRESSION_LEVEL)?.into(),
            length: length as u32,
            crc32c: crc32c::crc32c(&raw[..length]),
            ..UploadCheckpointRequest::default()
        };
        if pieces.blocking_send(piece).is_err() {
            return Ok(());
        }
        offset += length as i64;
    }
}

fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match reader.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Why a checkpoint was not fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("there is no session with the coordinator")]
    NoSession,
    #[error("cannot connect")]
    Connect(#[from] ConnectError),
    #[error("the connection broke")]
    Broken(#[source] Status),
    #[error("the coordinator did not answer")]
    Silent,
    #[error("it ended too early")]
    Short,
    #[error("the coordinator refuses: {0}")]
    Refused(Box<Fault>),
    #[error("a piece was damaged on its way")]
    Piece,
    #[error("it cannot be unpacked")]
    Unpack(#[from] UnpackError),
    #[error("nobody waits for it any more")]
    Cancelled,
}

impl FetchError {
    /// It may succeed a moment later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Refused(_) => !self.is_gone(),
            Self::NoSession | Self::Connect(_) | Self::Broken(_) | Self::Silent | Self::Piece => {
                true
            }
            // A full disk may have room later, and another machine's may have it now.
            Self::Unpack(UnpackError::Io { .. }) => true,
            Self::Short | Self::Unpack(_) | Self::Cancelled => false,
        }
    }

    /// The coordinator keeps no copy any more.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::Refused(fault) if fault.reason == Reason::CheckpointNotFound)
    }

    /// The copy is known to be damaged.
    pub(super) fn is_proof(&self) -> bool {
        match self {
            Self::Short => true,
            Self::Unpack(error) => error.is_proof(),
            _ => false,
        }
    }
}

impl From<Status> for FetchError {
    fn from(status: Status) -> Self {
        match Fault::from_status(&status) {
            Some(fault) => Self::Refused(Box::new(fault)),
            None => Self::Broken(status),
        }
    }
}

/// Fetches the coordinator's copy of a checkpoint into a folder.
pub(super) async fn fetch(
    coordinator: &watch::Receiver<Option<Coordinator>>,
    id: CheckpointId,
    folder: &Path,
    wanted: &Arc<AtomicBool>,
) -> Result<(), FetchError> {
    let known = coordinator.borrow().clone();
    let channel = known.ok_or(FetchError::NoSession)?.target.connect().await?;
    let mut client = CheckpointTransferServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let request = FetchCheckpointRequest {
        fence: id.fence,
        number: id.number,
        offset: 0,
    };
    let mut answers = client.fetch_checkpoint(request).await?.into_inner();
    let (pieces, mut queue) = mpsc::channel::<FetchCheckpointResponse>(AHEAD);
    let folder = folder.to_owned();
    // The disk may be slow, and the agent's loop must not wait for it.
    let unpacking = tokio::task::spawn_blocking(move || {
        let mut unpacker = Unpacker::new(folder)?;
        while let Some(piece) = queue.blocking_recv() {
            let bytes = zstd::bulk::decompress(&piece.data, MAX_CHUNK_BYTES)
                .map_err(|_| FetchError::Piece)?;
            let is_next = piece.offset.max(0) as u64 == unpacker.taken();
            if !is_next
                || bytes.len() != piece.length as usize
                || crc32c::crc32c(&bytes) != piece.crc32c
            {
                return Err(FetchError::Piece);
            }
            unpacker.take(&bytes)?;
        }
        unpacker.finish().map(drop).ok_or(FetchError::Short)
    });
    let mut broken = None;
    loop {
        if !wanted.load(Ordering::Relaxed) {
            broken = Some(FetchError::Cancelled);
            break;
        }
        match tokio::time::timeout(SILENCE, answers.message()).await {
            Err(_) => broken = Some(FetchError::Silent),
            Ok(Err(status)) => broken = Some(status.into()),
            Ok(Ok(None)) => {}
            Ok(Ok(Some(piece))) => {
                if pieces.send(piece).await.is_ok() {
                    continue;
                }
                // It failed to unpack, and says why.
            }
        }
        break;
    }
    drop(pieces);
    let unpacked = unpacking.await.unwrap_or(Err(FetchError::Cancelled));
    match (unpacked, broken) {
        (Ok(()), _) => Ok(()),
        (Err(FetchError::Short), Some(broken)) => Err(broken),
        (Err(error), _) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_uploaded_once_however_often_it_is_mentioned() {
        let uploads = Uploads::default();
        let upload = |number| Upload {
            job: 40,
            id: CheckpointId { fence: 7, number },
            folder: PathBuf::from("/c"),
        };
        uploads.offer(upload(1));
        uploads.offer(upload(2));
        uploads.offer(upload(1));
        assert_eq!(uploads.take(), Some(upload(2)), "only the newest");
        // While it is being uploaded, and after it was.
        for number in [1, 2] {
            uploads.offer(upload(number));
            assert_eq!(uploads.take(), None);
        }
        uploads.failed(&upload(2));
        uploads.offer(upload(2));
        assert_eq!(uploads.take(), Some(upload(2)));
        uploads.offer(upload(3));
        uploads.failed(&upload(2));
        uploads.offer(upload(2));
        assert_eq!(
            uploads.take(),
            Some(upload(3)),
            "a newer one has taken its place"
        );
        assert_eq!(uploads.take(), None);
        uploads.forget(40);
        uploads.offer(upload(1));
        assert_eq!(uploads.take(), Some(upload(1)));
    }
}
