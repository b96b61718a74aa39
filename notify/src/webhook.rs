//! A webhook: the message as JSON, signed so that the receiver knows who sent it. The same `id`
//! comes with every repetition, so repeating does no harm.

use std::fmt;
use std::time::Duration;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::channel::{Channel, Message, Outcome, Pending, Settled, answered, client, told};

/// Shortest wait before a repetition.
const REPEAT_AFTER: Duration = Duration::from_secs(5);

/// An address that takes messages.
pub struct Webhook {
    client: reqwest::Client,
    url: String,
    secret: Option<String>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The address may hold a secret.
        f.debug_struct("Webhook").finish_non_exhaustive()
    }
}

impl Webhook {
    /// A channel to an address; with a secret, messages are signed with it.
    ///
    /// # Errors
    /// When no client can be made.
    pub fn new(url: String, secret: Option<String>) -> Result<Self, String> {
        Ok(Self {
            client: client().map_err(told)?,
            url,
            secret,
        })
    }
}

/// `sha256=` and the HMAC-SHA256 of the body in hexadecimal, as many services check it.
pub fn signature(secret: &str, body: &[u8]) -> String {
    let mut text = String::from("sha256=");
    // A key of any length will do.
    if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) {
        mac.update(body);
        for byte in mac.finalize().into_bytes() {
            text.push_str(&format!("{byte:02x}"));
        }
    }
    text
}

impl Channel for Webhook {
    fn name(&self) -> &'static str {
        "webhook"
    }

    fn send<'a>(&'a self, message: &'a Message) -> Pending<'a, Outcome> {
        Box::pin(async move {
            let body = match serde_json::to_vec(message) {
                Ok(body) => body,
                Err(error) => return Outcome::Refused(error.to_string()),
            };
            let mut request = self
                .client
                .post(&self.url)
                .header("Content-Type", "application/json")
                .header("X-Qctl-Notice", &message.id);
            if let Some(secret) = &self.secret {
                request = request.header("X-Qctl-Signature", signature(secret, &body));
            }
            match request.body(body).send().await {
                Ok(response) => answered(&response, REPEAT_AFTER),
                Err(error) => Outcome::NotNow {
                    why: told(error),
                    after: REPEAT_AFTER,
                },
            }
        })
    }

    fn settle(&self, _: Option<i64>) -> Pending<'_, Settled> {
        Box::pin(async { Settled::NotSent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test case 2 of RFC 4231.
    #[test]
    fn the_signature_is_the_one_of_the_standard() {
        assert_eq!(
            signature("Jefe", b"what do ya want for nothing?"),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
