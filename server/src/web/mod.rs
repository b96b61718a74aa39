//! Pages for people: rendered here, readable on a phone, refreshing by themselves.
//!
//! A page shows; it changes nothing. Everything it shows comes from `app`, and every word of ours
//! stands in [`text`].

mod layout;
mod text;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderName, HeaderValue, StatusCode, header};
use maud::Markup;
use tonic::Status;

use crate::app::App;
use crate::auth::{PageDoor, admit_to_pages};

/// Nothing is loaded from elsewhere, nothing runs that we did not write, nobody frames us.
const CONTENT_SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// The pages, behind the key in links. They answer whatever no other route does.
pub(crate) fn routes(_app: &Arc<App>, door: PageDoor) -> Router {
    let pages = Router::new()
        .fallback(not_found)
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
    let is_call = request
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

async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, layout::message(&text::NO_SUCH_PAGE)).into_response()
}

/// The page for someone without the key; `given` when a key was given and is not the right one.
pub(crate) fn not_signed_in(given: bool) -> (StatusCode, Markup) {
    let message = if given {
        &text::WRONG_KEY
    } else {
        &text::NO_KEY
    };
    (StatusCode::UNAUTHORIZED, layout::message(message))
}

/// The page for a request that was sent to a name that is not ours.
pub(crate) fn foreign_name() -> (StatusCode, Markup) {
    (
        StatusCode::MISDIRECTED_REQUEST,
        layout::message(&text::FOREIGN_NAME),
    )
}
