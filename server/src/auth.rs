//! Who calls: tokens for programs, the key in links for people.
//!
//! Programs send `authorization: Bearer TOKEN` with every call. The installation's own token, in a
//! file, is its user's and may do everything; others are hashed in the database. Pages are opened
//! with a link that carries a key, which only lets read; the first visit puts it into a cookie.

mod origin;
mod pages;
mod secret;

use std::collections::HashMap;
use std::error::Error;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderMap, header};
use qctl_proto::error::{Fault, Reason};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tonic::Status;

use crate::accounts::Accounts;
use crate::app::{App, Caller, Role};

pub(crate) use origin::Origins;
pub(crate) use pages::{PageDoor, PageKey, admit as admit_to_pages};
pub use secret::SecretError;

/// How long a token from the database is believed without asking again; a revocation takes as long.
const BELIEVED: Duration = Duration::from_secs(10);

/// Tokens remembered at once.
const REMEMBERED: usize = 1_024;

/// Tokens looked up at once, so that a flood of wrong ones leaves connections for others.
const LOOKED_UP: usize = 2;

type Hash = [u8; 32];

/// Knows callers by their tokens.
pub(crate) struct Tokens {
    own: Mutex<OwnToken>,
    known: Mutex<HashMap<Hash, (Caller, Instant)>>,
    lookups: Semaphore,
}

/// The token in the installation's file, read again when the file changes.
struct OwnToken {
    path: PathBuf,
    modified: Option<SystemTime>,
    hash: Hash,
    owner: String,
}

impl Tokens {
    /// Reads the installation's own token, making it first if there is none.
    pub(crate) fn open(path: &Path) -> Result<Self, SecretError> {
        let token = secret::read_or_make(path)?;
        let mut own = OwnToken {
            path: path.to_owned(),
            modified: None,
            hash: Hash::default(),
            owner: String::new(),
        };
        own.take(&token);
        Ok(Self {
            own: Mutex::new(own),
            known: Mutex::default(),
            lookups: Semaphore::new(LOOKED_UP),
        })
    }

    /// Whose token the headers carry.
    async fn caller(&self, app: &App, headers: &HeaderMap) -> Result<Caller, Fault> {
        let token = bearer(headers).map_err(|(message, hint)| unauthenticated(message, hint))?;
        let hash: Hash = Sha256::digest(token).into();
        if let Some(owner) = self.own(&hash) {
            return Ok(Caller {
                name: owner,
                role: Role::Admin,
            });
        }
        if let Some(caller) = self.remembered(&hash) {
            return Ok(caller);
        }
        // Never closed, so this only waits.
        let _turn = self.lookups.acquire().await;
        let found = app.store.token(&hash, app.clock.now()).await;
        let known = found.map(|token| {
            let token = token?;
            let Some(role) = Role::parse(&token.role) else {
                tracing::error!(
                    "the token of {} has the unknown role {}",
                    token.name,
                    token.role
                );
                return None;
            };
            Some(Caller {
                name: token.name,
                role,
            })
        });
        match known {
            Ok(Some(caller)) => {
                self.remember(hash, &caller);
                Ok(caller)
            }
            Ok(None) => Err(unauthenticated(
                "the coordinator does not know this token",
                "it may have expired or been revoked, or belong to another coordinator",
            )),
            Err(error) => {
                tracing::warn!(error = &error as &dyn Error, "cannot look up a token");
                Err(Fault::new(
                    Reason::DatabaseUnavailable,
                    "the token cannot be looked up, because the database cannot be reached",
                )
                .retry_after(Duration::from_secs(1)))
            }
        }
    }

    fn own(&self, hash: &Hash) -> Option<String> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if !equal(&own.hash, hash) {
            own.refresh();
        }
        equal(&own.hash, hash).then(|| own.owner.clone())
    }

    fn remembered(&self, hash: &Hash) -> Option<Caller> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(hash) {
            Some((caller, since)) if since.elapsed() < BELIEVED => Some(caller.clone()),
            Some(_) => {
                known.remove(hash);
                None
            }
            None => None,
        }
    }

    fn remember(&self, hash: Hash, caller: &Caller) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(hash, (caller.clone(), Instant::now()));
    }
}

impl OwnToken {
    fn refresh(&mut self) {
        let modified = std::fs::metadata(&self.path).and_then(|meta| meta.modified());
        if modified.ok() == self.modified {
            return;
        }
        match secret::read(&self.path) {
            Ok(token) => self.take(&token),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn Error,
                    "the token file is not read again"
                );
            }
        }
    }

    fn take(&mut self, token: &str) {
        let meta = std::fs::metadata(&self.path).ok();
        self.modified = meta.as_ref().and_then(|meta| meta.modified().ok());
        self.hash = Sha256::digest(token).into();
        self.owner = meta.map_or_else(
            || "admin".to_owned(),
            |meta| Accounts::read().name_of(meta.uid()),
        );
    }
}

/// The token that the headers carry; otherwise what is wrong, and a hint.
fn bearer(headers: &HeaderMap) -> Result<&str, (&'static str, &'static str)> {
    let value = headers.get(header::AUTHORIZATION).ok_or((
        "the call carries no token",
        "qctl reads it from the token file of its home; name another with QCTL_TOKEN_FILE",
    ))?;
    value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or((
            "the call's authorization is not a token",
            "send `authorization: Bearer TOKEN`",
        ))
}

fn unauthenticated(message: &str, hint: &str) -> Fault {
    Fault::new(Reason::Unauthenticated, message).hint(hint)
}

/// Compares without telling by its duration where the difference is.
fn equal(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len()
        && left
            .iter()
            .zip(right)
            .fold(0, |difference, (l, r)| difference | (l ^ r))
            == 0
}

/// What [`admit`] needs.
#[derive(Clone)]
pub(crate) struct Doorkeeper {
    pub(crate) app: Arc<App>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) origins: Arc<Origins>,
}

/// Lets calls with a good token pass, with their [`Caller`] among the request's extensions.
pub(crate) async fn admit(
    State(door): State<Doorkeeper>,
    mut request: Request,
    next: Next,
) -> Response {
    if !door.origins.admits_origin(request.headers()) {
        let fault = Fault::new(
            Reason::PermissionDenied,
            "the call comes from a page of another origin",
        );
        return Status::from(fault).into_http();
    }
    match door.tokens.caller(&door.app, request.headers()).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(fault) => Status::from(fault).into_http(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_token_file_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let tokens = Tokens::open(&path).unwrap();
        let first = std::fs::read_to_string(&path).unwrap();
        let hash = |token: &str| Hash::from(Sha256::digest(token.trim()));
        assert!(tokens.own(&hash(&first)).is_some());
        assert!(tokens.own(&hash("another token of some length")).is_none());

        std::fs::write(&path, "another token of some length\n").unwrap();
        let later = SystemTime::now() + Duration::from_secs(5);
        std::fs::File::open(&path)
            .unwrap()
            .set_modified(later)
            .unwrap();
        assert!(tokens.own(&hash("another token of some length")).is_some());
        assert!(tokens.own(&hash(&first)).is_none());
    }

    #[test]
    fn only_a_bearer_token_counts() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(with("Bearer abc").unwrap(), "abc");
        assert_eq!(with("bearer abc").unwrap(), "abc");
        assert!(with("Basic abc").is_err());
        assert!(with("abc").is_err());
        assert_eq!(
            bearer(&HeaderMap::new()).unwrap_err().0,
            "the call carries no token"
        );
    }
}
