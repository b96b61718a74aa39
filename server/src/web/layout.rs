//! The frame that every page has.

use axum::response::IntoResponse;
use http::header;
use maud::{DOCTYPE, Markup, html};

use super::text::Message;

const STYLE: &str = include_str!("assets/page.css");
const SCRIPT: &str = include_str!("assets/page.js");

/// How a page keeps itself up to date.
pub(super) enum Refresh {
    /// What it shows will not change any more.
    Never,
    /// By fetching its live part from this path.
    From(String),
}

/// A whole page. `live` is the part that is fetched again.
pub(super) fn page(title: &str, refresh: &Refresh, live: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · qctl" }
                link rel="stylesheet" href="/assets/page.css";
                @if let Refresh::From(path) = refresh {
                    script src="/assets/page.js" defer data-from=(path) {}
                    noscript { meta http-equiv="refresh" content="5"; }
                }
            }
            body {
                header.top { a href="/" { "qctl" } }
                main #live { (live) }
            }
        }
    }
}

/// A page that says one thing.
pub(super) fn message(message: &Message) -> Markup {
    let live = html! {
        h1 { (message.title) }
        p.lead { (with_code(message.sentence)) }
    };
    page(message.title, &Refresh::Never, &live)
}

/// Sets what stands between backticks as code.
pub(super) fn with_code(sentence: &str) -> Markup {
    html! {
        @for (position, part) in sentence.split('`').enumerate() {
            @if position % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

/// The style sheet.
pub(super) async fn style() -> impl IntoResponse {
    asset("text/css; charset=utf-8", STYLE)
}

/// The script that fetches the live part.
pub(super) async fn script() -> impl IntoResponse {
    asset("text/javascript; charset=utf-8", SCRIPT)
}

fn asset(kind: &'static str, body: &'static str) -> impl IntoResponse {
    // Short, so that a new version of the program is seen soon.
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "max-age=60"),
    ];
    (headers, body)
}
