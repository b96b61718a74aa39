//! Links that people can open.

use qctl_server_core::JobId;

/// Makes links to pages.
#[derive(Clone, Debug)]
pub struct Links {
    public_url: String,
    key: String,
}

impl Links {
    /// Links below `public_url`, letting the reader in with `key`.
    pub fn new(public_url: &str, key: &str) -> Self {
        Self {
            public_url: public_url.trim_end_matches('/').to_owned(),
            key: key.to_owned(),
        }
    }

    /// The address that links begin with, without the key.
    pub fn public_url(&self) -> &str {
        &self.public_url
    }

    /// Link to the queue's page.
    pub fn queue(&self) -> String {
        format!("{}/?k={}", self.public_url, self.key)
    }

    /// Link to a job's page.
    pub fn job(&self, job: JobId) -> String {
        format!("{}/jobs/{job}?k={}", self.public_url, self.key)
    }

    /// Link to a tracker's page.
    pub fn tracker(&self, tracker: &str) -> String {
        format!("{}/tracker/{tracker}?k={}", self.public_url, self.key)
    }
}
