//! Which names the coordinator answers to in a browser.
//!
//! A page of a stranger can have its own name resolve to our address and then read our pages as if
//! they were its own. The name it uses betrays it: only names that are ours are answered.

use std::net::IpAddr;
use std::str::FromStr;

use http::uri::Authority;
use http::{HeaderMap, Uri, header};

/// The names that are ours.
#[derive(Clone, Debug)]
pub(crate) struct Origins {
    bound: IpAddr,
    public_host: Option<String>,
    public_is_secure: bool,
    tls: bool,
}

impl Origins {
    /// Those of a coordinator that is bound to this address, known by this public one, and
    /// serves TLS itself or does not.
    pub(crate) fn new(bound: IpAddr, public_url: Option<&str>, tls: bool) -> Self {
        let public = public_url.and_then(|url| url.parse::<Uri>().ok());
        let public = public.as_ref();
        Self {
            bound,
            public_host: public.and_then(|uri| uri.host().map(normal)),
            public_is_secure: public.is_some_and(|uri| uri.scheme_str() == Some("https")),
            tls,
        }
    }

    /// True when the request was sent to one of our names.
    pub(crate) fn admits_host(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        host(uri, headers).is_some_and(|host| self.is_ours(&host))
    }

    /// True when the browser came over TLS: ours, or that of a proxy at the public address.
    pub(crate) fn is_secure(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        self.tls || (self.public_is_secure && host(uri, headers) == self.public_host)
    }

    /// True when no page of a stranger sent the request: it has no origin, or one of ours.
    pub(crate) fn admits_origin(&self, headers: &HeaderMap) -> bool {
        headers.get_all(header::ORIGIN).iter().all(|value| {
            value
                .to_str()
                .ok()
                .and_then(|value| value.parse::<Uri>().ok())
                .and_then(|uri| uri.host().map(normal))
                .is_some_and(|host| self.is_ours(&host))
        })
    }

    fn is_ours(&self, host: &str) -> bool {
        if self.public_host.as_deref() == Some(host) || host == "localhost" {
            return true;
        }
        let Ok(address) = host.parse::<IpAddr>() else {
            return false;
        };
        // An address instead of a name cannot be resolved to something else. Bound to every
        // interface, any of our addresses may be meant.
        address.is_loopback() || address == self.bound || self.bound.is_unspecified()
    }
}

/// The name that the request was sent to. HTTP/2 carries it in the address instead of a header.
fn host(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    uri.host().map(normal).or_else(|| {
        let value = headers.get(header::HOST)?.to_str().ok()?;
        Some(normal(Authority::from_str(value).ok()?.host()))
    })
}

fn normal(host: &str) -> String {
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .trim_end_matches('.')
        .to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent_to(host: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        headers
    }

    fn admits(origins: &Origins, host: &str) -> bool {
        origins.admits_host(&Uri::from_static("/jobs/1"), &sent_to(host))
    }

    #[test]
    fn loopback_the_bound_address_and_the_public_name_are_ours() {
        let origins = Origins::new(
            "192.0.2.7".parse().unwrap(),
            Some("https://Queue.example.net:8443"),
            false,
        );
        for ours in [
            "127.0.0.1:7420",
            "localhost:7420",
            "[::1]:7420",
            "192.0.2.7:7420",
            "queue.example.net",
            "QUEUE.example.net:8443",
        ] {
            assert!(admits(&origins, ours), "{ours}");
        }
        for strange in [
            "evil.example",
            "192.0.2.8",
            "queue.example.net.evil.example",
            "localhost.evil.example",
            "",
        ] {
            assert!(!admits(&origins, strange), "{strange}");
        }
    }

    #[test]
    fn bound_everywhere_any_address_is_ours_but_no_strange_name() {
        let origins = Origins::new("0.0.0.0".parse().unwrap(), None, false);
        assert!(admits(&origins, "198.51.100.3:7420"));
        assert!(!admits(&origins, "evil.example"));
    }

    #[test]
    fn a_strange_origin_is_refused_and_none_is_fine() {
        let origins = Origins::new("127.0.0.1".parse().unwrap(), None, false);
        let mut headers = HeaderMap::new();
        assert!(origins.admits_origin(&headers));
        headers.insert(header::ORIGIN, "http://127.0.0.1:7420".parse().unwrap());
        assert!(origins.admits_origin(&headers));
        for strange in ["https://evil.example", "null"] {
            headers.insert(header::ORIGIN, strange.parse().unwrap());
            assert!(!origins.admits_origin(&headers), "{strange}");
        }
    }

    #[test]
    fn only_a_browser_that_came_over_tls_counts_as_secure() {
        let bound = "127.0.0.1".parse().unwrap();
        let uri = Uri::from_static("/");
        let proxied = Origins::new(bound, Some("https://queue.example.net"), false);
        assert!(proxied.is_secure(&uri, &sent_to("queue.example.net")));
        assert!(!proxied.is_secure(&uri, &sent_to("127.0.0.1:7420")));
        let direct = Origins::new(bound, None, true);
        assert!(direct.is_secure(&uri, &sent_to("127.0.0.1:7420")));
    }
}
