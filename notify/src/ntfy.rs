//! ntfy, by <https://docs.ntfy.sh/publish/#publish-as-json>.

use std::fmt;
use std::time::Duration;

use serde_json::json;

use crate::channel::{Channel, Message, Outcome, Pending, Severity};
use crate::channel::{answered, client, failed, told};
use crate::text::cut;

/// Longest message, in characters; ntfy allows 4,096 bytes.
const MAX_BODY: usize = 1_000;
/// Longest title, in characters.
const MAX_TITLE: usize = 250;
/// Shortest wait before a repetition.
const REPEAT_AFTER: Duration = Duration::from_secs(5);

/// A topic of an ntfy server.
pub struct Ntfy {
    client: reqwest::Client,
    server: String,
    topic: String,
    token: Option<String>,
}

impl fmt::Debug for Ntfy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Who knows the topic can read it.
        f.debug_struct("Ntfy")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Ntfy {
    /// A channel to a topic such as `https://ntfy.sh/my-topic`.
    ///
    /// # Errors
    /// When the address has no topic, or no client can be made.
    pub fn new(url: &str, token: Option<String>) -> Result<Self, String> {
        let (server, topic) = split(url).ok_or_else(|| {
            "is not the address of a topic, such as https://ntfy.sh/my-topic".to_owned()
        })?;
        Ok(Self {
            client: client().map_err(told)?,
            server,
            topic,
            token,
        })
    }
}

fn split(url: &str) -> Option<(String, String)> {
    let (server, topic) = url.trim_end_matches('/').rsplit_once('/')?;
    let has_host = ["http://", "https://"].iter().any(|scheme| {
        server
            .strip_prefix(scheme)
            .is_some_and(|host| !host.is_empty())
    });
    (has_host && !topic.is_empty()).then(|| (server.to_owned(), topic.to_owned()))
}

impl Channel for Ntfy {
    fn name(&self) -> &'static str {
        "ntfy"
    }

    fn send<'a>(&'a self, message: &'a Message) -> Pending<'a, Outcome> {
        Box::pin(async move {
            let priority = match message.severity {
                Severity::Info => 2,
                Severity::Warning => 3,
                Severity::Error => 4,
                Severity::Critical => 5,
            };
            let mut document = json!({
                "topic": self.topic,
                "title": cut(&message.title, MAX_TITLE),
                "message": cut(&message.body, MAX_BODY),
                "priority": priority,
                // What `qctl notices ack` takes.
                "tags": [format!("notice-{}", message.id)],
            });
            if !message.url.is_empty() {
                document["click"] = json!(message.url);
            }
            let mut request = self.client.post(&self.server).json(&document);
            if let Some(token) = &self.token {
                request = request.bearer_auth(token);
            }
            match request.send().await {
                Ok(response) => answered(&response, REPEAT_AFTER),
                Err(error) => failed(error, REPEAT_AFTER),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topic_is_the_last_part_of_the_address() {
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(
            split("https://ntfy.sh/mine/"),
            pair("https://ntfy.sh", "mine")
        );
        assert_eq!(split("http://h:1/sub/mine"), pair("http://h:1/sub", "mine"));
        for wrong in ["https://ntfy.sh", "https:///x", "mine", ""] {
            assert_eq!(split(wrong), None, "{wrong}");
        }
    }
}
