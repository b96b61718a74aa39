//! The connection to whichever coordinator leads.
//!
//! Several coordinators may share a database. A call that meets one which does not lead is made
//! again where it says the leader is, or at the next address; one whose connection breaks is made
//! again too where several addresses are known. That is safe: a call reads, or carries a request id
//! under which its repetition has one effect.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use qctl_proto::client::{AuthorizedChannel, ConnectError, Target, may_follow};
use qctl_proto::error::{Fault, Reason};
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

/// How long a call goes on looking for a coordinator that leads: a killed one is succeeded sooner.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pause between two tries, unless the coordinator says another.
const PAUSE: Duration = Duration::from_millis(250);

/// Longest pause, whatever the coordinator says.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Sends calls to the coordinator that leads. Cheap to clone; what one clone learns all know.
#[derive(Clone)]
pub struct LeaderChannel(Arc<Servers>);

struct Servers {
    addresses: Vec<String>,
    token: String,
    authority: Option<PathBuf>,
    present: Mutex<Present>,
}

#[derive(Clone)]
struct Present {
    address: String,
    channel: AuthorizedChannel,
}

impl LeaderChannel {
    /// Connects to the first of the addresses that answers.
    ///
    /// # Errors
    /// Why the last one did not, when none does.
    pub async fn connect(
        addresses: Vec<String>,
        token: String,
        authority: Option<PathBuf>,
    ) -> Result<Self, ConnectError> {
        let mut last = ConnectError::Address {
            address: String::new(),
        };
        for address in &addresses {
            let target = Target {
                address: address.clone(),
                token: token.clone(),
                authority: authority.clone(),
            };
            match target.connect().await {
                Ok(channel) => {
                    let present = Mutex::new(Present {
                        address: target.address,
                        channel,
                    });
                    return Ok(Self(Arc::new(Servers {
                        addresses,
                        token,
                        authority,
                        present,
                    })));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Servers {
    fn locked(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a coordinator for the leader that it names, or for another one that answers. Stays
    /// where none does.
    async fn leave(&self, left: &str, leader: Option<String>) {
        if self.locked().address != left {
            // Another call has found another one.
            return;
        }
        let position = self.addresses.iter().position(|known| known == left);
        let next = position.map_or(0, |position| position + 1);
        let others = (0..self.addresses.len())
            .map(|step| self.addresses[(next + step) % self.addresses.len()].clone());
        let leader = leader.filter(|leader| may_follow(left, leader));
        for address in leader.into_iter().chain(others) {
            let target = Target {
                address,
                token: self.token.clone(),
                authority: self.authority.clone(),
            };
            if let Ok(channel) = target.connect().await {
                *self.locked() = Present {
                    address: target.address,
                    channel,
                };
                return;
            }
        }
    }
}

type Answer = Result<http::Response<Body>, tonic::transport::Error>;

impl Service<http::Request<Body>> for LeaderChannel {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // Each call waits for its own connection.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let servers = Arc::clone(&self.0);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            // One message: the command line streams nothing to the coordinator. A body that cannot
            // be read is refused by whoever reads it next.
            let message = body.collect().await.map(|body| body.to_bytes());
            let message = message.unwrap_or_default();
            let deadline = Instant::now() + PATIENCE;
            loop {
                let present = servers.locked().clone();
                let request = http::Request::from_parts(head.clone(), whole(&message));
                let answer = send(present.channel, request).await;
                if Instant::now() >= deadline {
                    return answer;
                }
                let (leader, pause) = match &answer {
                    Ok(response) => match refused_by_a_follower(response) {
                        None => return answer,
                        Some(fault) => (fault.leader, fault.retry_after.unwrap_or(PAUSE)),
                    },
                    Err(_) if servers.addresses.len() < 2 => return answer,
                    Err(_) => (None, PAUSE),
                };
                let knows_leader = leader.is_some();
                servers.leave(&present.address, leader).await;
                let moved = servers.locked().address != present.address;
                if !(moved && knows_leader) {
                    tokio::time::sleep(pause.min(LONGEST_PAUSE)).await;
                }
            }
        })
    }
}

fn whole(message: &Bytes) -> Body {
    Body::new(Full::new(message.clone()))
}

async fn send(mut channel: AuthorizedChannel, request: http::Request<Body>) -> Answer {
    std::future::poll_fn(|context| channel.poll_ready(context)).await?;
    Ok(channel.call(request).await?.map(Body::new))
}

/// The refusal, when the answer is one of a coordinator that does not lead.
fn refused_by_a_follower(response: &http::Response<Body>) -> Option<Fault> {
    let status = Status::from_header_map(response.headers())?;
    Fault::from_status(&status).filter(|fault| fault.reason == Reason::NotLeader)
}
