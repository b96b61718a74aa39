//! Pages for people: rendered here, readable on a phone, refreshing by themselves.
//!
//! A page shows; it changes nothing. Everything it shows comes from `app`, and every word of ours
//! stands in [`text`].

mod alarms;
mod artifacts;
mod format;
mod job;
mod layout;
mod overview;
mod parts;
mod terminal;
mod text;
mod tracker;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use maud::Markup;
use tokio::sync::Semaphore;
use tonic::Status;

use crate::app::{App, Error};
use crate::auth::{PageDoor, admit_to_pages};

/// Nothing is loaded from elsewhere, nothing runs that we did not write, nobody frames us.
const CONTENT_SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// Requests that look at files at once: a slow disk shall not take every thread.
const FILE_READERS: usize = 4;

/// What every page needs.
#[derive(Clone)]
struct Pages {
    app: Arc<App>,
    machine: Arc<Machine>,
    file_readers: Arc<Semaphore>,
}

/// This machine, as a worker on it names it.
struct Machine {
    hostname: String,
    boot_id: String,
}

impl Machine {
    fn this() -> Self {
        Self {
            hostname: crate::notify::host(),
            boot_id: crate::notify::boot_id(),
        }
    }
}

/// The pages, behind the key in links. They answer whatever no other route does.
pub(crate) fn routes(app: &Arc<App>, door: PageDoor) -> Router {
    let pages = Pages {
        app: Arc::clone(app),
        machine: Arc::new(Machine::this()),
        file_readers: Arc::new(Semaphore::new(FILE_READERS)),
    };
    let pages = Router::new()
        .route("/", get(overview::page))
        .route("/live", get(overview::fragment))
        .route("/jobs/{id}", get(job::page))
        .route("/jobs/{id}/live", get(job::fragment))
        .route("/jobs/{id}/artifacts/{index}/{*below}", get(job::artifact))
        .route("/tracker/{name}", get(tracker::page))
        .route("/tracker/{name}/live", get(tracker::fragment))
        .fallback(async || PageError::NoSuchPage)
        .with_state(pages)
        .layer(middleware::from_fn_with_state(door, admit_to_pages));
    Router::new()
        .route("/assets/page.css", get(layout::style))
        .route("/assets/page.js", get(layout::script))
        .fallback_service(pages)
        .layer(middleware::from_fn(finish))
}

/// Answers a gRPC call to a service that we do not have as gRPC does, and puts the headers of
/// every page on the others.
async fn finish(request: Request, next: Next) -> Response {
    let is_call = request.method() == Method::POST
        && request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if is_call {
        return Status::unimplemented("there is no such service").into_http();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY);
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Why there is no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageError {
    NoSuchPage,
    NoSuchJob,
    NoSuchTracker,
    Unavailable,
    Broken,
}

impl From<Error> for PageError {
    fn from(error: Error) -> Self {
        match error {
            Error::JobNotFound(_) => Self::NoSuchJob,
            Error::Store(error) if error.is_transient() => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a page could not be read from the database"
                );
                Self::Unavailable
            }
            Error::ShuttingDown => Self::Unavailable,
            error => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a page could not be made"
                );
                Self::Broken
            }
        }
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let (code, message) = match self {
            Self::NoSuchPage => (StatusCode::NOT_FOUND, &text::NO_SUCH_PAGE),
            Self::NoSuchJob => (StatusCode::NOT_FOUND, &text::NO_SUCH_JOB),
            Self::NoSuchTracker => (StatusCode::NOT_FOUND, &text::NO_SUCH_TRACKER),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, &text::UNAVAILABLE),
            Self::Broken => (StatusCode::INTERNAL_SERVER_ERROR, &text::BROKEN),
        };
        let retry = self == Self::Unavailable;
        (code, layout::message(message, retry)).into_response()
    }
}

/// The page for someone without the key; `given` when a key was given and is not the right one.
pub(crate) fn not_signed_in(given: bool) -> (StatusCode, Markup) {
    let message = if given {
        &text::WRONG_KEY
    } else {
        &text::NO_KEY
    };
    (StatusCode::UNAUTHORIZED, layout::message(message, false))
}

/// The page while no coordinator is known to lead.
pub(crate) fn nobody_leads() -> (StatusCode, Markup) {
    (
        StatusCode::SERVICE_UNAVAILABLE,
        layout::message(&text::NOBODY_LEADS, true),
    )
}

/// The page for a request that was sent to a name that is not ours.
pub(crate) fn foreign_name() -> (StatusCode, Markup) {
    (
        StatusCode::MISDIRECTED_REQUEST,
        layout::message(&text::FOREIGN_NAME, false),
    )
}
