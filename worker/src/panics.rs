//! Hands what programs of this machine panicked about to the coordinator, so that people are told
//! of it. A coordinator of the same home takes the files itself.

use std::time::Duration;

use chrono::Utc;
use qctl_notify::Fact;
use qctl_notify::outbox::{Entry, Filed, HandedOver, Outbox};
use qctl_proto::client::Target;
use qctl_proto::error::{Fault, Reason};
use qctl_proto::v1::ReportPanicRequest;
use qctl_proto::v1::notice_service_client::NoticeServiceClient;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::chain;
use crate::checkpoints::Coordinator;
use crate::coordinators::Coordinators;

/// Between two looks at the files.
const EVERY: Duration = Duration::from_secs(1);
/// Longest wait for one coordinator.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Longest time that other programs do not send because this one hands over.
const LONGEST: Duration = Duration::from_secs(20);
/// Longest time by which an agent begins later because of an earlier one's end.
const AT_START: Duration = Duration::from_secs(5);

/// Hands over what lies in the outbox of this machine.
#[derive(Debug)]
pub(crate) struct Panics {
    pub(crate) outbox: Outbox,
    pub(crate) coordinators: Coordinators,
    /// The coordinator that there is a session with.
    pub(crate) link: watch::Receiver<Option<Coordinator>>,
}

impl Panics {
    /// Hands over what an earlier agent left, before this one looks at anything that may end it too.
    pub(crate) async fn hand_over_first(&self) {
        if timeout(AT_START, self.look()).await.is_err() {
            tracing::warn!("the coordinator was not told yet that an earlier agent panicked");
        }
    }

    /// Hands over what comes, until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            // What was cut off is handed over again.
            let _ = timeout(LONGEST, self.look()).await;
        }
    }

    async fn look(&self) {
        if self.outbox.is_taken() {
            return;
        }
        let handed = self
            .outbox
            .hand_over(Utc::now(), is_panic, async |entry| self.tell(entry).await)
            .await;
        if let Err(error) = handed {
            tracing::debug!(error = %error, "notices in files cannot be handed over");
        }
    }

    /// Tells the coordinator that there is a session with, otherwise whichever leads of those known.
    async fn tell(&self, entry: &Entry) -> HandedOver {
        let linked = self.link.borrow().as_ref().map(|link| link.target.clone());
        let linked = linked.map(|target| target.address);
        let known = self.coordinators.addresses();
        let others = known.into_iter().filter(|one| Some(one) != linked.as_ref());
        let addresses: Vec<String> = linked.iter().cloned().chain(others).collect();
        let mut why = String::new();
        for address in addresses {
            let told = match self.coordinators.target(&address) {
                Ok(target) => tell_one(target, entry).await,
                Err(error) => HandedOver::NotTaken(chain(&error)),
            };
            match told {
                HandedOver::NotTaken(reason) => why = format!("{address}: {reason}"),
                told => return told,
            }
        }
        HandedOver::NotTaken(why)
    }
}

async fn tell_one(target: Target, entry: &Entry) -> HandedOver {
    let channel = match timeout(ANSWER_LIMIT, target.connect()).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return HandedOver::NotTaken(chain(&error)),
        Err(_) => return HandedOver::NotTaken("it does not answer".to_owned()),
    };
    let mut client = NoticeServiceClient::new(channel);
    match timeout(ANSWER_LIMIT, client.report_panic(report(entry))).await {
        Ok(Ok(_)) => HandedOver::Taken,
        Ok(Err(status)) => refused(status),
        Err(_) => HandedOver::Unknown("it does not answer".to_owned()),
    }
}

fn refused(status: Status) -> HandedOver {
    let why = status.to_string();
    let is_not_leader =
        || Fault::from_status(&status).is_some_and(|fault| fault.reason == Reason::NotLeader);
    match status.code() {
        Code::Unimplemented
        | Code::InvalidArgument
        | Code::Unauthenticated
        | Code::PermissionDenied => HandedOver::NotTaken(why),
        _ if is_not_leader() => HandedOver::NotTaken(why),
        _ => HandedOver::Unknown(why),
    }
}

/// True for what the coordinator takes: everything else that is filed on a worker's machine is about
/// the coordinator itself.
fn is_panic(filed: &Filed) -> bool {
    filed.class == "panic"
}

fn report(entry: &Entry) -> ReportPanicRequest {
    let text = |name: &str| match entry.filed.facts.get(name) {
        Some(Fact::Text(text)) => text.clone(),
        _ => String::new(),
    };
    let at = entry.filed.at;
    ReportPanicRequest {
        key: entry.key.clone(),
        program: text("name"),
        host: text("worker"),
        place: text("place"),
        text: text("text"),
        time: Some(prost_types::Timestamp {
            seconds: at.timestamp(),
            nanos: at.timestamp_subsec_nanos() as i32,
        }),
    }
}
