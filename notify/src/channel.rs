//! What every way to a person has in common.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

/// Longest that one request to another program's server may take.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(20);
/// Longest that a program on this machine may take to show a notice.
pub const PROGRAM_LIMIT: Duration = Duration::from_secs(10);

/// Longest wait before a message is tried again, unless the channel asks for a longer one.
const LONGEST_WAIT: TimeDelta = TimeDelta::minutes(10);

/// How long to wait before a message is tried again that was tried `tries` times before: at least
/// what the channel asks for, doubled each time.
pub fn wait(tries: i32, after: Duration) -> TimeDelta {
    let asked = after.clamp(Duration::from_secs(1), LONGEST_RETRY);
    let asked = TimeDelta::from_std(asked).unwrap_or(LONGEST_WAIT);
    (asked * (1 << tries.clamp(0, 16)))
        .min(LONGEST_WAIT)
        .max(asked)
}

/// How long a channel that cannot be asked is asked what became of a message: outages of a network
/// are shorter, as a rule, and beyond that a counter tells of other messages.
const ASK_LIMIT: TimeDelta = TimeDelta::hours(1);
/// Shortest and longest wait between two such questions. Nothing else is sent meanwhile.
pub const ASK_AFTER: TimeDelta = TimeDelta::seconds(5);
const ASK_AT_MOST: TimeDelta = TimeDelta::minutes(1);

/// How long to wait before a channel that could not be asked is asked again, `asked` after the first
/// time, doubled each time. `None` when that is given up.
pub fn ask_again(asked: TimeDelta) -> Option<TimeDelta> {
    (asked < ASK_LIMIT).then(|| asked.clamp(ASK_AFTER, ASK_AT_MOST))
}

/// Work of a channel.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How bad it is, from the mildest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Something went wrong, and qctl goes on by itself.
    Warning,
    /// Something is over, or stands still until a person looks.
    Error,
    /// Everything stands still.
    Critical,
}

impl Severity {
    /// Every severity, from the mildest.
    pub const ALL: [Self; 4] = [Self::Info, Self::Warning, Self::Error, Self::Critical];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }

    /// Reads the word for it.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|severity| severity.as_str() == text)
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a person is to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The same for every attempt to send it, so that a receiver can tell a repetition.
    pub id: String,
    /// What kind of thing happened, such as `job_failed`.
    pub class: String,
    /// How bad it is.
    pub severity: Severity,
    /// One line.
    pub title: String,
    /// The rest.
    pub body: String,
    /// Where to look; empty for nowhere.
    pub url: String,
    /// What the link is called; empty when there is none.
    pub url_title: String,
    /// When it happened.
    pub time: DateTime<Utc>,
}

/// What became of sending a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The channel took it.
    Accepted {
        /// Names it while a person has not acknowledged it; none when nobody has to.
        receipt: Option<String>,
    },
    /// The channel does not want it, and repeating it would be wrong.
    Refused(String),
    /// The channel did not take it; it may be repeated after a while.
    NotNow {
        /// Why.
        why: String,
        /// Not sooner than after this.
        after: Duration,
    },
    /// Nobody knows whether the channel took it.
    Unknown(String),
}

/// What was found out about a message of unknown fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It was taken.
    Sent,
    /// It was not taken, and may be sent again.
    NotSent,
    /// That cannot be told, so it must not be sent again.
    Unknown,
    /// The channel cannot be asked now; ask later.
    AskAgain,
}

/// Whether a person has seen an urgent message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Not yet.
    NotYet,
    /// A person acknowledged it at this time; the text names who.
    Acknowledged(Option<DateTime<Utc>>, String),
    /// Nobody did, and it is not repeated any more.
    Expired,
}

/// What the other side says of the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// They are right.
    Right,
    /// They are wrong: why.
    Wrong(String),
    /// It was not asked, or cannot be asked now, which is no mistake in them.
    Unknown,
}

/// A way to a person.
pub trait Channel: Send + Sync + fmt::Debug {
    /// Its name, as settings and histories have it.
    fn name(&self) -> &'static str;

    /// Checks the settings with the other side.
    fn check(&self) -> Pending<'_, Checked> {
        Box::pin(async { Checked::Unknown })
    }

    /// How many more messages the channel takes, read before a message is sent so that
    /// [`Channel::settle`] can compare. `None` when it does not count, or cannot be asked now.
    fn left(&self) -> Pending<'_, Option<i64>> {
        Box::pin(async { None })
    }

    /// Sends a message, once.
    fn send<'a>(&'a self, message: &'a Message) -> Pending<'a, Outcome>;

    /// Finds out what became of a message whose sending was cut off. `left_before` is what
    /// [`Channel::left`] said before it was sent.
    fn settle(&self, left_before: Option<i64>) -> Pending<'_, Settled> {
        let _ = left_before;
        Box::pin(async { Settled::Unknown })
    }

    /// Asks whether a person has acknowledged an urgent message. `None` when that is not known now.
    fn seen<'a>(&'a self, receipt: &'a str) -> Pending<'a, Option<Seen>> {
        let _ = receipt;
        Box::pin(async { None })
    }

    /// Ends the repetition of an urgent message. Returns whether the other side took that.
    fn cancel<'a>(&'a self, receipt: &'a str) -> Pending<'a, bool> {
        let _ = receipt;
        Box::pin(async { true })
    }
}

/// An error with everything below it, without addresses that may hold secrets.
pub(crate) fn told(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut below = std::error::Error::source(&error);
    while let Some(source) = below {
        text.push_str(": ");
        text.push_str(&source.to_string());
        below = source.source();
    }
    text
}

/// What a failed request means: nobody was reached, or nobody knows.
pub(crate) fn failed(error: reqwest::Error, after: Duration) -> Outcome {
    match error.is_connect() || error.is_builder() {
        true => Outcome::NotNow {
            why: told(error),
            after,
        },
        false => Outcome::Unknown(told(error)),
    }
}

/// Longest wait that a server may ask for.
const LONGEST_RETRY: Duration = Duration::from_secs(60 * 60);

/// What the answer of a server that counts nothing means. A server that is late, early or too busy
/// may take the message later, and may say when; `after` is the shortest wait before that.
pub(crate) fn answered(response: &reqwest::Response, after: Duration) -> Outcome {
    use reqwest::StatusCode;
    let code = response.status();
    if code.is_success() {
        return Outcome::Accepted { receipt: None };
    }
    let why = format!("it answered {code}");
    let may_pass = code.is_server_error()
        || [
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::TOO_EARLY,
            StatusCode::TOO_MANY_REQUESTS,
        ]
        .contains(&code);
    if !may_pass {
        return Outcome::Refused(why);
    }
    let asked = response
        .headers()
        .get(reqwest::header::RETRY_AFTER)
        .and_then(|value| retry_after(value.to_str().ok()?, Utc::now()));
    Outcome::NotNow {
        why,
        after: asked.unwrap_or_default().clamp(after, LONGEST_RETRY),
    }
}

/// Reads `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3).
fn retry_after(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = DateTime::parse_from_rfc2822(text.trim()).ok()?;
    Some((at.to_utc() - now).to_std().unwrap_or_default())
}

/// The beginning of an answer's body, as text.
pub(crate) async fn body(mut response: reqwest::Response) -> Result<String, reqwest::Error> {
    const MOST: usize = 64 * 1024;
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MOST {
            bytes.truncate(MOST);
            break;
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A client that waits no longer than [`REQUEST_LIMIT`]. It keeps no connection that it does not use:
/// several programs of a machine may send, and Pushover allows two connections in all.
pub(crate) fn client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .timeout(REQUEST_LIMIT)
        .connect_timeout(Duration::from_secs(10))
        .pool_max_idle_per_host(0)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("qctl/", env!("CARGO_PKG_VERSION")))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_when_to_come_back_in_seconds_or_by_date() {
        let now = DateTime::from_timestamp(784_111_770, 0).unwrap();
        let read = |text| retry_after(text, now).map(|wait| wait.as_secs());
        assert_eq!(read(" 120 "), Some(120));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(7));
        assert_eq!(read("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        assert_eq!(read("soon"), None);
        assert_eq!(read("-1"), None);
    }

    /// Answers everything with one code, and with `Retry-After` when there is one to say.
    async fn server(code: u16, retry: Option<&'static str>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = move || async move {
            let mut response = axum::http::Response::builder().status(code);
            if let Some(retry) = retry {
                response = response.header("Retry-After", retry);
            }
            response.body(axum::body::Body::empty()).unwrap()
        };
        let router = axum::Router::new().fallback(answer);
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    #[tokio::test]
    async fn a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let message = Message {
            id: "1".into(),
            class: "panic".into(),
            severity: Severity::Error,
            title: "t".into(),
            body: "b".into(),
            url: String::new(),
            url_title: String::new(),
            time: DateTime::UNIX_EPOCH,
        };
        for (code, retry, after) in [
            (408, None, Some(5)),
            (425, Some("nonsense"), Some(5)),
            (429, Some("1"), Some(5)),
            (429, Some("90"), Some(90)),
            (429, Some("99999"), Some(3_600)),
            (503, Some("30"), Some(30)),
            (403, Some("30"), None),
            (302, None, None),
        ] {
            let url = server(code, retry).await;
            let ntfy = crate::ntfy::Ntfy::new(&format!("{url}/mine"), None).unwrap();
            let webhook = crate::webhook::Webhook::new(url, None).unwrap();
            for channel in [&ntfy as &dyn Channel, &webhook] {
                let waits = match channel.send(&message).await {
                    Outcome::NotNow { after, .. } => Some(after.as_secs()),
                    Outcome::Refused(_) => None,
                    other => panic!("{code}: {other:?}"),
                };
                assert_eq!(waits, after, "{code} {retry:?} by {}", channel.name());
            }
        }
    }

    #[test]
    fn waits_double_from_what_the_channel_asks_for() {
        let five = Duration::from_secs(5);
        assert_eq!(wait(0, five), TimeDelta::seconds(5));
        assert_eq!(wait(3, five), TimeDelta::seconds(40));
        assert_eq!(wait(100, five), LONGEST_WAIT);
        let hour = TimeDelta::hours(1);
        let after = Duration::from_secs(3_599);
        assert_eq!(wait(0, after), hour - TimeDelta::seconds(1));
        assert_eq!(wait(100, after), hour - TimeDelta::seconds(1));
        assert_eq!(wait(100, Duration::MAX), hour);
    }
}
