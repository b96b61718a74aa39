//! How a program connects to a coordinator: address, TLS, token and keepalive.

use std::path::PathBuf;
use std::time::Duration;

use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// A channel that sends the token with every call.
pub type AuthorizedChannel = InterceptedService<Channel, BearerToken>;

/// Where the coordinator is and how to be let in.
#[derive(Clone)]
pub struct Target {
    /// `host:port`, `http://host:port` or `https://host:port`.
    pub address: String,
    /// The token; never printed.
    pub token: String,
    /// PEM file of the authority to trust instead of the machine's own, for `https`.
    pub authority: Option<PathBuf>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target")
            .field("address", &self.address)
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

/// The addresses in a text such as `a:7420,b:7420`: those of coordinators that share a database.
pub fn addresses(text: &str) -> Vec<String> {
    text.split(',')
        .map(str::trim)
        .filter(|address| !address.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Whether someone who was sent to `address` may go on to where that coordinator says the leader is.
/// The token goes there too, so never from TLS to plain text.
pub fn may_follow(address: &str, leader: &str) -> bool {
    leader.starts_with("https://") || !address.starts_with("https://")
}

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address cannot be read.
    #[error("`{address}` is not an address: expected HOST:PORT or http(s)://HOST:PORT")]
    Address {
        /// What was given.
        address: String,
    },
    /// The token holds characters that no header can carry.
    #[error("the token is not plain text")]
    Token,
    /// The authority's file cannot be read.
    #[error("cannot read the authority file {path}")]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody answered, or TLS failed.
    #[error("no coordinator answers at {address}")]
    Unreachable {
        /// The address tried.
        address: String,
        /// Why.
        source: tonic::transport::Error,
    },
}

impl Target {
    /// Connects, within 5 seconds.
    ///
    /// # Errors
    /// When the address or token is malformed, or nobody answers.
    pub async fn connect(&self) -> Result<AuthorizedChannel, ConnectError> {
        let token = self.bearer()?;
        let endpoint = self.endpoint()?;
        let channel = endpoint
            .connect()
            .await
            .map_err(|source| ConnectError::Unreachable {
                address: self.address.clone(),
                source,
            })?;
        Ok(InterceptedService::new(channel, token))
    }

    fn bearer(&self) -> Result<BearerToken, ConnectError> {
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", self.token)
            .parse()
            .map_err(|_| ConnectError::Token)?;
        value.set_sensitive(true);
        Ok(BearerToken(value))
    }

    fn endpoint(&self) -> Result<Endpoint, ConnectError> {
        let bad = || ConnectError::Address {
            address: self.address.clone(),
        };
        let uri = if self.address.contains("://") {
            self.address.clone()
        } else {
            format!("http://{}", self.address)
        };
        let secure = uri.starts_with("https://");
        let mut endpoint = Endpoint::from_shared(uri)
            .map_err(|_| bad())?
            .connect_timeout(Duration::from_secs(5))
            .tcp_nodelay(true)
            .tcp_keepalive(Some(Duration::from_secs(10)))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true);
        if endpoint.uri().host().is_none_or(str::is_empty) || endpoint.uri().port_u16().is_none() {
            return Err(bad());
        }
        if secure {
            let mut tls = ClientTlsConfig::new().with_native_roots();
            if let Some(path) = &self.authority {
                let pem = std::fs::read(path).map_err(|source| ConnectError::Authority {
                    path: path.clone(),
                    source,
                })?;
                tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            }
            endpoint = endpoint
                .tls_config(tls)
                .map_err(|source| ConnectError::Unreachable {
                    address: self.address.clone(),
                    source,
                })?;
        }
        Ok(endpoint)
    }
}

/// Adds `authorization: Bearer …` to every call.
#[derive(Clone)]
pub struct BearerToken(MetadataValue<Ascii>);

impl Interceptor for BearerToken {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        request
            .metadata_mut()
            .insert("authorization", self.0.clone());
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(address: &str) -> Target {
        Target {
            address: address.to_owned(),
            token: "secret".to_owned(),
            authority: None,
        }
    }

    #[test]
    fn an_address_without_scheme_is_plain_http() {
        assert_eq!(
            target("127.0.0.1:7420").endpoint().unwrap().uri(),
            "http://127.0.0.1:7420"
        );
    }

    #[test]
    fn nonsense_addresses_are_refused_before_anything_is_sent() {
        for address in ["", "localhost", "http://", ":7420", "a b:1"] {
            assert!(
                matches!(
                    target(address).endpoint(),
                    Err(ConnectError::Address { .. })
                ),
                "{address:?}"
            );
        }
    }

    #[test]
    fn several_addresses_are_taken_apart() {
        assert_eq!(addresses("a:1, https://b:2,,"), ["a:1", "https://b:2"]);
        assert!(addresses(" , ").is_empty());
    }

    #[test]
    fn a_leader_is_not_followed_out_of_tls() {
        assert!(may_follow("a:1", "http://b:1"));
        assert!(may_follow("a:1", "https://b:1"));
        assert!(may_follow("https://a:1", "https://b:1"));
        assert!(!may_follow("https://a:1", "http://b:1"));
    }

    #[test]
    fn the_token_is_not_shown() {
        assert!(!format!("{:?}", target("127.0.0.1:1")).contains("secret"));
    }
}
