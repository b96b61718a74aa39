//! Where coordinators are, and how they are talked to.

use std::path::PathBuf;

use qctl_proto::client::{Target, addresses};
use qctl_proto::home::Home;

use crate::config::Server;

/// The coordinators that the agent was told of.
#[derive(Clone, Debug)]
pub(crate) struct Coordinators {
    pub(crate) server: Server,
    pub(crate) home: Home,
    pub(crate) token_file: PathBuf,
    /// Authority to trust for https, PEM.
    pub(crate) authority: Option<PathBuf>,
}

/// The token cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the token file {path}")]
pub(crate) struct TokenError {
    path: PathBuf,
    source: std::io::Error,
}

impl Coordinators {
    /// True when it is the one of the agent's own home.
    pub(crate) fn are_of_home(&self) -> bool {
        matches!(self.server, Server::OfHome { .. })
    }

    /// Where they may be. Read anew: one that was started again may be elsewhere.
    pub(crate) fn addresses(&self) -> Vec<String> {
        match &self.server {
            Server::At(text) => addresses(text),
            Server::OfHome { otherwise } => {
                let written = self.home.address().unwrap_or_else(|torn| {
                    tracing::warn!("{torn}");
                    None
                });
                vec![written.unwrap_or_else(|| otherwise.clone())]
            }
        }
    }

    /// How to talk to the one at this address, with the token as it is now.
    pub(crate) fn target(&self, address: &str) -> Result<Target, TokenError> {
        let token = std::fs::read_to_string(&self.token_file);
        let token = token.map_err(|source| TokenError {
            path: self.token_file.clone(),
            source,
        })?;
        Ok(Target {
            address: address.to_owned(),
            token: token.trim().to_owned(),
            authority: self.authority.clone(),
        })
    }
}
