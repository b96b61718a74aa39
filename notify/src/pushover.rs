//! Pushover, by the rules of <https://pushover.net/api>: form fields, lengths in characters, no
//! repetition of what was refused, at least five seconds before what failed is repeated, at most
//! two connections (this keeps one). There is no key against repetitions, so a message whose
//! answer was lost is settled by the counter of messages that are left in the month.

use std::fmt;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use chrono::DateTime;
use serde::Deserialize;

use crate::channel::{Channel, Checked, Message, Outcome, Pending, Seen, Settled, Severity};
use crate::channel::{body, client, failed, told};
use crate::text::cut;

/// Longest message, in characters.
pub const MAX_BODY: usize = 1_024;
/// Longest title, in characters.
pub const MAX_TITLE: usize = 250;
/// Longest link, in characters.
pub const MAX_URL: usize = 512;
/// Longest name of a link, in characters.
pub const MAX_URL_TITLE: usize = 100;
/// Shortest wait before something that failed is repeated.
pub const REPEAT_AFTER: Duration = Duration::from_secs(5);
/// How long a counter that was read may be used.
const COUNTER_FRESH: Duration = Duration::from_secs(10);

/// How an urgent message is repeated until a person acknowledges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emergency {
    /// Between two repetitions, at least 30 seconds.
    pub retry: Duration,
    /// After which it stops, at most three hours.
    pub expire: Duration,
}

/// One user of one application at Pushover.
pub struct Pushover {
    client: reqwest::Client,
    url: String,
    token: String,
    user: String,
    device: String,
    emergency: Option<Emergency>,
    left: Mutex<Option<(i64, Instant)>>,
}

impl fmt::Debug for Pushover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pushover")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// An answer of any call; what a call does not send is absent.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    status: i64,
    errors: Vec<String>,
    receipt: Option<String>,
    remaining: Option<i64>,
    acknowledged: i64,
    acknowledged_at: i64,
    acknowledged_by_device: String,
    expired: i64,
}

impl Answer {
    fn why(&self, code: reqwest::StatusCode) -> String {
        match self.errors.is_empty() {
            true => format!("it answered {code}"),
            false => self.errors.join("; "),
        }
    }
}

impl Pushover {
    /// A channel to `user` (or a group) by the application of `token`, at the service of `url`.
    ///
    /// # Errors
    /// When no client can be made, which is a mistake in this machine's set-up of TLS.
    pub fn new(
        url: &str,
        token: String,
        user: String,
        device: String,
        emergency: Option<Emergency>,
    ) -> Result<Self, String> {
        Ok(Self {
            client: client().map_err(told)?,
            url: url.trim_end_matches('/').to_owned(),
            token,
            user,
            device,
            emergency,
            left: Mutex::new(None),
        })
    }

    fn form(&self, message: &Message) -> Vec<(&'static str, String)> {
        let (priority, sound) = match message.severity {
            Severity::Info => ("-1", ""),
            Severity::Warning => ("0", "none"),
            Severity::Error => ("0", ""),
            Severity::Critical if self.emergency.is_some() => ("2", ""),
            Severity::Critical => ("1", ""),
        };
        let mut body = cut(&message.body, MAX_BODY);
        if body.trim().is_empty() {
            // An empty message is refused.
            body = cut(&message.title, MAX_BODY);
        }
        let mut form = vec![
            ("token", self.token.clone()),
            ("user", self.user.clone()),
            ("title", cut(&message.title, MAX_TITLE)),
            ("message", body),
            ("priority", priority.to_owned()),
            ("timestamp", message.time.timestamp().to_string()),
        ];
        let mut some = |name: &'static str, value: String| {
            if !value.is_empty() {
                form.push((name, value));
            }
        };
        some("sound", sound.to_owned());
        some("device", self.device.clone());
        // A link that was cut leads nowhere.
        if message.url.chars().count() <= MAX_URL {
            some("url", message.url.clone());
            some("url_title", cut(&message.url_title, MAX_URL_TITLE));
        }
        if let (Severity::Critical, Some(emergency)) = (message.severity, self.emergency) {
            some("retry", emergency.retry.as_secs().to_string());
            some("expire", emergency.expire.as_secs().to_string());
        }
        form
    }

    fn note_left(&self, left: Option<i64>) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) =
            left.map(|left| (left, Instant::now()));
    }

    async fn ask(&self, path: &str) -> Result<(reqwest::StatusCode, Answer), reqwest::Error> {
        let token = encoded(&self.token);
        let request = self
            .client
            .get(format!("{}/1/{path}?token={token}", self.url));
        let response = request.send().await?;
        let code = response.status();
        let text = body(response).await?;
        Ok((code, serde_json::from_str(&text).unwrap_or_default()))
    }

    async fn counter(&self) -> Option<i64> {
        match self.ask("apps/limits.json").await {
            Ok((code, answer)) if code.is_success() => answer.remaining,
            _ => None,
        }
    }
}

/// A value as a query may hold it.
fn encoded(value: &str) -> String {
    value
        .bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

impl Channel for Pushover {
    fn name(&self) -> &'static str {
        "pushover"
    }

    fn check(&self) -> Pending<'_, Checked> {
        Box::pin(async {
            let mut form = vec![("token", &self.token), ("user", &self.user)];
            if !self.device.is_empty() {
                form.push(("device", &self.device));
            }
            let request = self
                .client
                .post(format!("{}/1/users/validate.json", self.url))
                .form(&form);
            let Ok(response) = request.send().await else {
                return Checked::Unknown;
            };
            let code = response.status();
            let Ok(text) = body(response).await else {
                return Checked::Unknown;
            };
            let answer: Answer = serde_json::from_str(&text).unwrap_or_default();
            match code {
                // Too many questions or messages are no mistake in the settings.
                reqwest::StatusCode::TOO_MANY_REQUESTS => Checked::Unknown,
                code if code.is_success() && answer.status == 1 => Checked::Right,
                code if code.is_success() || code.is_client_error() => {
                    Checked::Wrong(answer.why(code))
                }
                _ => Checked::Unknown,
            }
        })
    }

    fn left(&self) -> Pending<'_, Option<i64>> {
        Box::pin(async {
            let known = *self.left.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((left, at)) = known
                && at.elapsed() < COUNTER_FRESH
            {
                return Some(left);
            }
            let left = self.counter().await;
            self.note_left(left);
            left
        })
    }

    fn send<'a>(&'a self, message: &'a Message) -> Pending<'a, Outcome> {
        Box::pin(async {
            // Whatever happens from here on, the counter that is known is out of date.
            self.note_left(None);
            let request = self
                .client
                .post(format!("{}/1/messages.json", self.url))
                .form(&self.form(message));
            let response = match request.send().await {
                Ok(response) => response,
                Err(error) => return failed(error, REPEAT_AFTER),
            };
            let code = response.status();
            let left = response
                .headers()
                .get("X-Limit-App-Remaining")
                .and_then(|value| value.to_str().ok()?.parse().ok());
            let text = match body(response).await {
                Ok(text) => text,
                // The head of the answer has come, and says whether it was taken.
                Err(error) if code.is_success() => return Outcome::Unknown(told(error)),
                Err(_) => String::new(),
            };
            let answer: Answer = serde_json::from_str(&text).unwrap_or_default();
            if code.is_success() && answer.status == 1 {
                self.note_left(left);
                return Outcome::Accepted {
                    receipt: answer.receipt,
                };
            }
            if code.is_success() || code.is_client_error() {
                let mut why = answer.why(code);
                if code == reqwest::StatusCode::TOO_MANY_REQUESTS {
                    why = format!("the messages of this month are used up ({why})");
                }
                return Outcome::Refused(why);
            }
            Outcome::NotNow {
                why: answer.why(code),
                after: REPEAT_AFTER,
            }
        })
    }

    fn settle(&self, left_before: Option<i64>) -> Pending<'_, Settled> {
        Box::pin(async move {
            let Some(before) = left_before else {
                return Settled::Unknown;
            };
            let now = self.counter().await;
            self.note_left(now);
            match now {
                None => Settled::AskAgain,
                Some(now) if now == before => Settled::NotSent,
                Some(now) if now == before - 1 => Settled::Sent,
                // Another program uses the same application, or a new month has begun.
                Some(_) => Settled::Unknown,
            }
        })
    }

    fn seen<'a>(&'a self, receipt: &'a str) -> Pending<'a, Option<Seen>> {
        Box::pin(async move {
            let (code, answer) = self.ask(&format!("receipts/{receipt}.json")).await.ok()?;
            if code.is_client_error() {
                // Receipts are kept for a week.
                return Some(Seen::Expired);
            }
            if !code.is_success() {
                return None;
            }
            Some(match (answer.acknowledged, answer.expired) {
                (1, _) => Seen::Acknowledged(
                    DateTime::from_timestamp(answer.acknowledged_at, 0),
                    answer.acknowledged_by_device,
                ),
                (_, 1) => Seen::Expired,
                _ => Seen::NotYet,
            })
        })
    }

    fn cancel<'a>(&'a self, receipt: &'a str) -> Pending<'a, bool> {
        Box::pin(async move {
            let request = self
                .client
                .post(format!("{}/1/receipts/{receipt}/cancel.json", self.url))
                .form(&[("token", &self.token)]);
            match request.send().await {
                Ok(response) => !response.status().is_server_error(),
                Err(_) => false,
            }
        })
    }
}
