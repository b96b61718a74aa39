//! Links that people can open.

use std::fmt::Write;

use qctl_server_core::JobId;

/// Makes links to pages. Each carries the key that lets its reader in.
#[derive(Clone)]
pub struct Links {
    public_url: String,
    key: String,
}

/// A link lets its bearer read, so the key is not printed by accident.
impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links")
            .field("public_url", &self.public_url)
            .finish_non_exhaustive()
    }
}

impl Links {
    /// Links below `public_url` (such as `https://queue.example.net`), letting the reader in with
    /// `key`.
    pub fn new(public_url: &str, key: &str) -> Self {
        Self {
            public_url: public_url.trim_end_matches('/').to_owned(),
            key: key.to_owned(),
        }
    }

    /// The address in links, without the key.
    pub fn public_url(&self) -> &str {
        &self.public_url
    }

    /// Link to the queue's page.
    pub fn queue(&self) -> String {
        self.to("/")
    }

    /// Link to a job's page.
    pub fn job(&self, job: JobId) -> String {
        self.to(&format!("/jobs/{job}"))
    }

    /// Link to a tracker's page.
    pub fn tracker(&self, tracker: &str) -> String {
        self.to(&format!("/tracker/{}", encode(tracker)))
    }

    fn to(&self, path: &str) -> String {
        format!("{}{path}?k={}", self.public_url, self.key)
    }
}

/// Text as one segment of a path.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// A relative path, segment by segment.
pub(crate) fn encode_path(path: &str) -> String {
    let segments: Vec<_> = path.split('/').map(encode).collect();
    segments.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_carry_the_key_and_whatever_a_tracker_is_called() {
        let links = Links::new("https://q.example/", "KEY");
        assert_eq!(links.queue(), "https://q.example/?k=KEY");
        assert_eq!(links.job(JobId(42)), "https://q.example/jobs/42?k=KEY");
        assert_eq!(
            links.tracker("INTG-088"),
            "https://q.example/tracker/INTG-088?k=KEY"
        );
        assert_eq!(
            links.tracker("a/b c?"),
            "https://q.example/tracker/a%2Fb%20c%3F?k=KEY"
        );
        assert!(!format!("{links:?}").contains("KEY"));
    }

    #[test]
    fn a_path_keeps_its_slashes() {
        assert_eq!(encode_path("a b/ü.png"), "a%20b/%C3%BC.png");
    }
}
