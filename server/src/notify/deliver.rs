//! Sends messages through one channel, one after the other: marked before it is sent, and marked
//! with what became of it afterwards. What was cut off between the two is settled by asking the
//! channel, and never sent again unless the channel surely did not take it.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use qctl_notify::channel::{ASK_AFTER, Seen, ask_again, wait};
use qctl_notify::{Channel, Checked, Message, Outcome, Settled};
use qctl_server_core::notice::{Class, Details, Notice, Severity};

use super::Teller;
use crate::app::Error;
use crate::store::notices::{Delivery, Fate};

/// Longest wait before another look; the bell and the next due time shorten it.
const LOOK: Duration = Duration::from_secs(5);
/// A message that was begun this long ago is not being sent by anybody any more: longer than a
/// request may take.
const ABANDONED_AFTER: TimeDelta = TimeDelta::seconds(30);
/// Age at which a message that no try brought through is given up: it is no news any more. That a job
/// failed for good is tried for as long as the history is kept.
const OLDEST: TimeDelta = TimeDelta::days(2);
/// Notices of one message of which it is asked whether they are over; one that tells more is sent.
const MOST_ASKED: i64 = 500;
/// A channel that takes this many messages or fewer is nearly used up.
const FEW: i64 = 500;
/// What is said of a message whose fate stays unknown.
const NOBODY_KNOWS: &str = "the answer was lost, and nobody can tell whether it was taken";
/// Between two looks at whether urgent messages were acknowledged.
const RECEIPTS: Duration = Duration::from_secs(10);

/// Sends until the term ends. What is being sent then is sent to its end: nobody could tell
/// afterwards what became of it.
pub(super) async fn run(teller: Arc<Teller>, channel: Arc<dyn Channel>) {
    let name = channel.name();
    let stop = teller.app.stop().clone();
    if stop
        .run_until_cancelled(teller.check(&*channel))
        .await
        .is_none()
    {
        return;
    }
    let mut failing = false;
    let mut asked = None;
    let mut receipts_at = tokio::time::Instant::now();
    while !stop.is_cancelled() {
        qctl_notify::panics::provoked("delivery");
        if tokio::time::Instant::now() >= receipts_at {
            receipts_at = tokio::time::Instant::now() + RECEIPTS;
            if let Err(error) = teller.look_at_receipts(&*channel).await {
                tracing::debug!(error = %error, "urgent messages are looked at later");
            }
        }
        // Armed before looking, so that no bell is missed.
        let bell = teller.delivery_bell.notified();
        let wait = match teller.deliver_next(&*channel, &mut asked).await {
            Ok(wait) => {
                failing = false;
                wait
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        channel = name,
                        "messages by {name} wait: {error}; trying again"
                    );
                }
                failing = true;
                Duration::from_secs(1)
            }
        };
        if !wait.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = bell => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

/// What became of one try.
struct Tried {
    /// Its number.
    number: i32,
    fate: Fate,
    /// What the channel said, or what went wrong.
    detail: String,
    /// The channel decided, and not the age of the message.
    by_channel: bool,
}

impl Teller {
    /// Asks a channel whether it would take messages, and tells what it says against it.
    async fn check(&self, channel: &dyn Channel) {
        match channel.check().await {
            Checked::Right => self.channel_works(channel.name()).await,
            Checked::Wrong(why) => self.channel_refuses(channel.name(), &why).await,
            Checked::Unknown => {}
        }
    }

    async fn channel_refuses(&self, name: &str, why: &str) {
        let before = self.app.notices.set_problem(name, Some(why.to_owned()));
        if before.as_deref() == Some(why) {
            return;
        }
        tracing::error!(channel = name, "notices by {name} are refused: {why}");
        let details = Details {
            name: name.to_owned(),
            text: why.to_owned(),
            ..Details::default()
        };
        let notice = Notice::about(Class::ChannelRefused, format!("channel {name}"), details);
        if let Err(error) = self.app.tell(notice).await {
            tracing::warn!(error = %error, "that {name} refuses notices is not in the history");
        }
    }

    async fn channel_works(&self, name: &str) {
        self.app.notices.set_problem(name, None);
        let details = Details {
            name: name.to_owned(),
            ..Details::default()
        };
        let notice = Notice::about(Class::ChannelWorks, format!("channel {name}"), details);
        // Written only when the history says that it was refused before.
        if let Err(error) = self.app.tell(notice).await {
            tracing::debug!(error = %error, "that {name} takes notices is not in the history");
        }
    }

    /// Sends what is due next, if anything is. Returns how long to wait.
    async fn deliver_next(
        &self,
        channel: &dyn Channel,
        asked: &mut Option<DateTime<Utc>>,
    ) -> Result<Duration, Error> {
        let name = channel.name();
        let Some(delivery) = self.app.store.next_delivery(name).await? else {
            return Ok(LOOK);
        };
        let now = self.app.clock.now();
        let left = (delivery.next_at - now).to_std().unwrap_or_default();
        if !left.is_zero() {
            return Ok(left.min(LOOK));
        }
        let tried = match delivery.sending {
            true => Some(self.settle(channel, &delivery, asked).await),
            false => self.send(channel, &delivery).await?,
        };
        let Some(tried) = tried else {
            return Ok(Duration::ZERO);
        };
        if !matches!(tried.fate, Fate::Sending(_)) {
            *asked = None;
        }
        tracing::info!(
            channel = name,
            message = delivery.message,
            "message {} ({}) by {name}: {}",
            delivery.message,
            delivery.class,
            word(&tried.fate)
        );
        // What is not written here is settled by the next look.
        self.app
            .store
            .end_delivery(
                delivery.message,
                name,
                tried.number,
                self.app.clock.now(),
                &tried.fate,
                &tried.detail,
            )
            .await?;
        match tried.fate {
            Fate::Sent { .. } if self.app.notices.problem(name).is_some() => {
                self.channel_works(name).await;
            }
            // About a message that says so already, nothing more is said.
            Fate::Rejected if tried.by_channel && delivery.class != Class::ChannelRefused => {
                self.channel_refuses(name, &tried.detail).await;
            }
            _ => {}
        }
        Ok(Duration::ZERO)
    }

    async fn send(
        &self,
        channel: &dyn Channel,
        delivery: &Delivery,
    ) -> Result<Option<Tried>, Error> {
        let now = self.app.clock.now();
        let left = channel.left().await;
        let begun = self
            .app
            .store
            .begin_delivery(delivery, channel.name(), left, now + ABANDONED_AFTER)
            .await?;
        let Some(number) = begun else {
            return Ok(None);
        };
        let tried = |fate, detail: String, by_channel| Tried {
            number,
            fate,
            detail,
            by_channel,
        };
        if self.is_over(delivery).await? {
            let detail = "it was over before it could be sent";
            return Ok(Some(tried(Fate::Over, detail.to_owned(), false)));
        }
        if now - delivery.created_at > OLDEST && delivery.class != Class::JobFailed {
            let detail = "given up: it could not be sent for two days";
            return Ok(Some(tried(Fate::Rejected, detail.to_owned(), false)));
        }
        if left == Some(0) {
            // Asking again and again would have the service block this address.
            let detail = "the messages of this month are used up";
            return Ok(Some(tried(Fate::Rejected, detail.to_owned(), true)));
        }
        self.watch_left(channel.name(), left).await;
        // Who was held up for long may not lead any more: whoever leads now settles this one.
        if !self.app.store.lease().holds() {
            return Ok(None);
        }
        qctl_notify::panics::provoked("before-send");
        let outcome = channel.send(&message(delivery)).await;
        qctl_notify::panics::provoked("after-send");
        let now = self.app.clock.now();
        Ok(Some(match outcome {
            Outcome::Accepted { receipt } => tried(Fate::Sent { receipt }, String::new(), true),
            Outcome::Refused(why) => tried(Fate::Rejected, why, true),
            Outcome::NotNow { why, after } => {
                tried(Fate::Pending(now + wait(delivery.tries, after)), why, true)
            }
            Outcome::Unknown(why) => tried(Fate::Sending(now + ASK_AFTER), why, true),
        }))
    }

    /// True when everything that a message tells is over.
    async fn is_over(&self, delivery: &Delivery) -> Result<bool, Error> {
        let store = &self.app.store;
        let notices = store
            .notices_of_message(delivery.message, MOST_ASKED + 1)
            .await?;
        if notices.is_empty() || notices.len() as i64 > MOST_ASKED {
            return Ok(false);
        }
        let now = self.app.clock.now();
        Ok(notices.iter().all(|notice| notice.is_over(now)))
    }

    /// Tells, once a month, that a channel takes only few more messages.
    async fn watch_left(&self, name: &str, left: Option<i64>) {
        let Some(left) = left.filter(|left| *left <= FEW) else {
            return;
        };
        let details = Details {
            name: name.to_owned(),
            left: i32::try_from(left).ok(),
            ..Details::default()
        };
        let notice = Notice::about(Class::ChannelLow, format!("channel {name}"), details);
        if let Err(error) = self.app.tell(notice).await {
            tracing::debug!(error = %error, "that {name} is nearly used up is told later");
        }
    }

    /// Finds out what became of a message whose sending was cut off; `asked` is when the channel was
    /// first asked about it.
    async fn settle(
        &self,
        channel: &dyn Channel,
        delivery: &Delivery,
        asked: &mut Option<DateTime<Utc>>,
    ) -> Tried {
        let now = self.app.clock.now();
        let since = *asked.get_or_insert(now);
        let (fate, detail) = match channel.settle(delivery.left_before).await {
            Settled::Sent => (
                Fate::Sent { receipt: None },
                "the answer was lost; the counter says that it was taken",
            ),
            Settled::NotSent => (
                Fate::Pending(now),
                "the answer was lost; the counter says that it was not taken",
            ),
            Settled::AskAgain => match ask_again(now - since) {
                Some(wait) => (
                    Fate::Sending(now + wait),
                    "the answer was lost, and the channel cannot be asked now",
                ),
                None => (Fate::Unknown, NOBODY_KNOWS),
            },
            Settled::Unknown => (Fate::Unknown, NOBODY_KNOWS),
        };
        Tried {
            number: delivery.tries,
            fate,
            detail: detail.to_owned(),
            by_channel: true,
        }
    }

    /// Sees who has acknowledged urgent messages, and ends those whose cause has ended.
    async fn look_at_receipts(&self, channel: &dyn Channel) -> Result<(), Error> {
        let store = &self.app.store;
        let name = channel.name();
        for open in store.open_receipts(name).await? {
            match channel.seen(&open.receipt).await {
                Some(Seen::Acknowledged(at, by)) => {
                    let at = at.unwrap_or_else(|| self.app.clock.now());
                    store
                        .close_receipt(open.message, name, Some((at, &by)))
                        .await?;
                }
                Some(Seen::Expired) => store.close_receipt(open.message, name, None).await?,
                Some(Seen::NotYet) | None if open.over => {
                    if channel.cancel(&open.receipt).await {
                        store.close_receipt(open.message, name, None).await?;
                    }
                }
                Some(Seen::NotYet) | None => {}
            }
        }
        Ok(())
    }
}

fn word(fate: &Fate) -> &'static str {
    match fate {
        Fate::Pending(_) => "not now",
        Fate::Sending(_) => "no answer",
        Fate::Sent { .. } => "sent",
        Fate::Rejected => "refused",
        Fate::Unknown => "unknown",
        Fate::Over => "over",
    }
}

fn message(delivery: &Delivery) -> Message {
    Message {
        id: delivery.id.clone(),
        class: delivery.class.to_string(),
        severity: match delivery.severity {
            Severity::Info => qctl_notify::Severity::Info,
            Severity::Warning => qctl_notify::Severity::Warning,
            Severity::Error => qctl_notify::Severity::Error,
            Severity::Critical => qctl_notify::Severity::Critical,
        },
        title: delivery.title.clone(),
        body: delivery.body.clone(),
        url: delivery.url.clone(),
        url_title: String::new(),
        time: delivery.created_at,
    }
}
