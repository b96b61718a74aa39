//! The connection that carries output. It is not the session's, so that a flood of output never
//! delays a heartbeat.

use std::time::Duration;

use qctl_proto::MAX_MESSAGE_BYTES;
use qctl_proto::client::AuthorizedChannel;
use qctl_proto::v1::log_upload_service_client::LogUploadServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Message, Pump};

/// Chunks between the pump and the connection.
const QUEUED_CHUNKS: usize = super::MAX_ON_THE_WAY;

/// Tells the pump that the connection is gone, however it goes.
struct Connected<'a> {
    pump: &'a Pump,
    connection: u64,
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.pump.tell(Message::Disconnected {
            connection: self.connection,
        });
    }
}

/// Carries chunks and answers until the connection breaks. `connection` is a number that was not
/// used before.
///
/// # Errors
/// Why the connection broke.
pub(crate) async fn carry(
    channel: AuthorizedChannel,
    pump: &Pump,
    connection: u64,
) -> Result<(), Status> {
    let (chunks, queue) = mpsc::channel(QUEUED_CHUNKS);
    pump.tell(Message::Connected { connection, chunks });
    let _connected = Connected { pump, connection };
    let mut client = LogUploadServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let mut answers = client
        .upload_log(ReceiverStream::new(queue))
        .await?
        .into_inner();
    while let Some(answer) = answers.message().await? {
        pump.tell(Message::Answer {
            fence: answer.fence,
            stored: answer.stored.max(0) as u64,
            unknown: answer.unknown,
            closed: answer.closed,
        });
    }
    Ok(())
}

/// Shortest time between two connections that broke at once.
pub(crate) const PAUSE: Duration = Duration::from_millis(500);
