//! What every command is given: folders, connection, and how to print.

use std::path::Path;
use std::time::Duration;

use qctl_proto::MAX_MESSAGE_BYTES;
use qctl_proto::client::{ConnectError, addresses};
use qctl_proto::home::Home;
use qctl_proto::v1::alarm_service_client::AlarmServiceClient;
use qctl_proto::v1::job_service_client::JobServiceClient;
use qctl_proto::v1::log_service_client::LogServiceClient;
use qctl_proto::v1::measures_service_client::MeasuresServiceClient;
use qctl_proto::v1::notice_service_client::NoticeServiceClient;
use qctl_proto::v1::queue_service_client::QueueServiceClient;
use tokio::sync::OnceCell;

use crate::channel::LeaderChannel;
use crate::config::Config;
use crate::error::{Error, Problem};
use crate::exit;
use crate::output::Output;

/// Reason of the problem that this installation's coordinator does not run.
const DOWN_HERE: &str = "UNREACHABLE";

/// How long one call may take before it counts as unanswered.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// What every command is given.
pub struct Context {
    /// Where and how to print.
    pub output: Output,
    config: Config,
    client: OnceCell<Client>,
}

impl Context {
    /// A context that connects when a command first asks for it.
    pub fn new(config: Config, output: Output) -> Self {
        Self {
            output,
            config,
            client: OnceCell::new(),
        }
    }

    /// The checked configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// This installation's folders.
    ///
    /// # Errors
    /// When the environment names none.
    pub fn home(&self) -> Result<&Home, Error> {
        self.config.home()
    }

    /// The connection to the coordinator, made on the first call and then kept.
    ///
    /// # Errors
    /// When there is no token, or nobody answers.
    pub async fn client(&self) -> Result<&Client, Error> {
        self.client.get_or_try_init(|| self.connect()).await
    }

    /// A new connection, for a command that goes on after the coordinator restarted, perhaps
    /// at another address.
    ///
    /// # Errors
    /// When there is no token, or nobody answers.
    pub async fn connect(&self) -> Result<Client, Error> {
        if let Some(folder) = self.config.down_here() {
            return Err(down_here(folder).into());
        }
        let (address, chosen) = self.config.address();
        if !chosen && let Ok(home) = self.home() {
            home.address().map_err(|torn| {
                Problem::new("FILE", exit::ERROR, torn.to_string())
                    .hint("the coordinator writes it anew when it is started again")
                    .next("qctl down && qctl up")
            })?;
        }
        let path = self.config.token_file()?;
        let token = match std::fs::read_to_string(&path) {
            Ok(token) => Some(token.trim().to_owned()).filter(|token| !token.is_empty()),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(Error::file("read", path)(source)),
        };
        let has_token = token.is_some();
        let channel = LeaderChannel::connect(
            addresses(&address),
            token.unwrap_or_default(),
            self.config.authority(),
        );
        let channel = channel.await.map_err(|source| Error::Connect {
            address: address.clone(),
            chosen,
            source: Box::new(source),
        })?;
        if !has_token {
            // Only now, because that nobody answers is the better thing to tell.
            return Err(no_token(&address, &path).into());
        }
        Ok(Client { channel })
    }

    /// Where this context connects to, such as `127.0.0.1:7420`.
    pub fn address(&self) -> String {
        self.config.address().0
    }
}

fn down_here(folder: &Path) -> Problem {
    Problem::new(
        DOWN_HERE,
        exit::UNREACHABLE,
        format!("no coordinator runs here (files in {})", folder.display()),
    )
    .hint("start it, or name another one by --server or QCTL_SERVER")
    .next("qctl up")
}

fn no_token(address: &str, path: &Path) -> Problem {
    Problem::new(
        "NO_TOKEN",
        exit::DENIED,
        format!(
            "a coordinator answers at {address}, but there is no token for it in {}",
            path.display()
        ),
    )
    .hint("give its token file by --token-file or QCTL_TOKEN_FILE; `qctl up` makes one at first start")
}

/// A connection to the coordinator. Cheap to clone; calls may overlap.
#[derive(Clone)]
pub struct Client {
    channel: LeaderChannel,
}

impl Client {
    /// Jobs: submit, read, change.
    pub fn jobs(&self) -> JobServiceClient<LeaderChannel> {
        JobServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Output of jobs.
    pub fn logs(&self) -> LogServiceClient<LeaderChannel> {
        LogServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Alarms, and how machines do.
    pub fn alarms(&self) -> AlarmServiceClient<LeaderChannel> {
        AlarmServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// What was measured.
    pub fn measures(&self) -> MeasuresServiceClient<LeaderChannel> {
        MeasuresServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// What people were told, and what went wrong.
    pub fn notices(&self) -> NoticeServiceClient<LeaderChannel> {
        NoticeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Workers, the queue as a whole, templates.
    pub fn queue(&self) -> QueueServiceClient<LeaderChannel> {
        QueueServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}

/// A request that counts as unanswered after a minute. Streams take their message as it is.
pub fn unary<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_DEADLINE);
    request
}

/// A fresh request id.
pub fn request_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// True when a connection error means that nobody listens, rather than that the call was wrong.
pub fn nobody_listens(error: &Error) -> bool {
    match error {
        Error::Connect { source, .. } => matches!(**source, ConnectError::Unreachable { .. }),
        Error::Problem(problem) => problem.reason == DOWN_HERE,
        _ => false,
    }
}
