//! Asking this home's own coordinator, whatever other one the command line is pointed at.

use std::path::PathBuf;
use std::time::Duration;

use qctl_proto::MAX_MESSAGE_BYTES;
use qctl_proto::client::{AuthorizedChannel, Target};
use qctl_proto::home::Home;
use qctl_proto::v1;
use qctl_proto::v1::job_service_client::JobServiceClient;
use qctl_proto::v1::queue_service_client::QueueServiceClient;

/// Longest that connecting and asking may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// A connection to the home's own coordinator.
pub struct Coordinator {
    /// The address it was found at.
    pub address: String,
    channel: AuthorizedChannel,
}

impl Coordinator {
    /// Connects to the address that the home's coordinator wrote down. `None` when there is none,
    /// or nobody answers there.
    pub async fn find(home: &Home, authority: Option<PathBuf>) -> Option<Self> {
        let read = |path: PathBuf| {
            let text = std::fs::read_to_string(path).ok()?.trim().to_owned();
            (!text.is_empty()).then_some(text)
        };
        let target = Target {
            address: home.address().ok()??,
            token: read(home.token_file())?,
            authority,
        };
        let channel = tokio::time::timeout(PATIENCE, target.connect())
            .await
            .ok()?
            .ok()?;
        Some(Self {
            address: target.address,
            channel,
        })
    }

    /// The coordinator's state. `None` when it does not answer in time, or refuses.
    pub async fn status(&self) -> Option<v1::GetStatusResponse> {
        let mut request = tonic::Request::new(v1::GetStatusRequest {});
        request.set_timeout(PATIENCE);
        let answer = self.queue().get_status(request).await.ok()?;
        Some(answer.into_inner())
    }

    /// The queue and its workers.
    pub fn queue(&self) -> QueueServiceClient<AuthorizedChannel> {
        QueueServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The jobs.
    pub fn jobs(&self) -> JobServiceClient<AuthorizedChannel> {
        JobServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}
