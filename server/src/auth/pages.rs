//! The key that lets people read pages.

use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use sha2::Sha256;

use super::{Origins, SecretError, equal, secret};
use crate::web;

/// Seconds that a browser keeps the key: a year.
const REMEMBERED: u32 = 365 * 24 * 60 * 60;

/// The key in links. It is made from a secret file, so removing that file makes every old link
/// useless.
#[derive(Clone)]
pub(crate) struct PageKey {
    key: String,
    cookie: String,
}

impl PageKey {
    /// Makes the key, and the secret behind it if there is none.
    pub(crate) fn open(path: &Path) -> Result<Self, SecretError> {
        Ok(Self::from_secret(&secret::read_or_make(path)?))
    }

    fn from_secret(secret: &str) -> Self {
        let derive = |purpose: &str| {
            let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes())
                .expect("a key of any length is a key");
            mac.update(purpose.as_bytes());
            URL_SAFE_NO_PAD.encode(&mac.finalize().into_bytes()[..18])
        };
        Self {
            key: derive("read pages"),
            // Cookies ignore ports: each installation of a machine needs a name of its own.
            cookie: format!("qctl_{}", &derive("name of the cookie")[..8]),
        }
    }

    /// The key, for links.
    pub(crate) fn as_str(&self) -> &str {
        &self.key
    }

    fn is_in_cookies(&self, headers: &HeaderMap) -> bool {
        headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .any(|(name, value)| name == self.cookie && self.is(value))
    }

    fn is(&self, given: &str) -> bool {
        equal(given.as_bytes(), self.key.as_bytes())
    }

    fn cookie(&self, is_secure: bool) -> HeaderValue {
        let secure = if is_secure { "; Secure" } else { "" };
        let text = format!(
            "{}={}; Path=/; Max-Age={REMEMBERED}; HttpOnly; SameSite=Lax{secure}",
            self.cookie, self.key
        );
        HeaderValue::try_from(text).expect("base64 is plain text")
    }
}

/// What [`admit`] needs.
#[derive(Clone)]
pub(crate) struct PageDoor {
    pub(crate) key: PageKey,
    pub(crate) origins: Arc<Origins>,
}

/// Lets people with the key pass. The first visit, with the key in the address, moves it into a
/// cookie and goes on to the address without it, so that it is not shared by accident.
pub(crate) async fn admit(State(door): State<PageDoor>, request: Request, next: Next) -> Response {
    let (uri, headers) = (request.uri(), request.headers());
    if !door.origins.admits_host(uri, headers) || !door.origins.admits_origin(headers) {
        return web::foreign_name().into_response();
    }
    let is_known = door.key.is_in_cookies(headers);
    let is_secure = door.origins.is_secure(uri, headers);
    match split_key(uri) {
        Some((given, clean)) if is_known || door.key.is(&given) => {
            let location = HeaderValue::try_from(clean).unwrap_or(HeaderValue::from_static("/"));
            let mut response =
                (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response();
            response
                .headers_mut()
                .insert(header::SET_COOKIE, door.key.cookie(is_secure));
            response
        }
        None if is_known => next.run(request).await,
        given => web::not_signed_in(given.is_some()).into_response(),
    }
}

/// The key in the address, and the address without it; none when there is no key.
fn split_key(uri: &Uri) -> Option<(String, String)> {
    let pairs: Vec<_> = uri.query()?.split('&').collect();
    let key = pairs.iter().find_map(|pair| pair.strip_prefix("k="))?;
    let rest: Vec<_> = pairs
        .iter()
        .filter(|pair| !pair.starts_with("k="))
        .copied()
        .collect();
    // Two slashes at the start would name another host.
    let mut clean = format!("/{}", uri.path().trim_start_matches('/'));
    if !rest.is_empty() {
        clean = format!("{clean}?{}", rest.join("&"));
    }
    Some((key.to_owned(), clean))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_leaves_the_address_and_everything_else_stays() {
        let split = |uri: &'static str| split_key(&Uri::from_static(uri));
        assert_eq!(split("/jobs/1"), None);
        assert_eq!(split("/jobs/1?a=b"), None);
        let parts = |key: &str, rest: &str| Some((key.to_owned(), rest.to_owned()));
        assert_eq!(split("/jobs/1?k=x"), parts("x", "/jobs/1"));
        assert_eq!(split("/jobs?a=b&k=x&c=d"), parts("x", "/jobs?a=b&c=d"));
        assert_eq!(split("//evil.example/?k=x"), parts("x", "/evil.example/"));
    }

    #[test]
    fn the_cookie_is_known_again_and_no_other_is() {
        let key = PageKey::from_secret("one secret");
        let other = PageKey::from_secret("another secret");
        let cookie = key.cookie(true);
        let cookie = cookie.to_str().unwrap();
        assert!(cookie.contains("HttpOnly") && cookie.contains("Secure"));
        let sent = format!("a=b; {}", cookie.split(';').next().unwrap());
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, sent.parse().unwrap());
        assert!(key.is_in_cookies(&headers));
        assert!(!other.is_in_cookies(&headers));
        assert_ne!(key.cookie, other.cookie);
    }
}
