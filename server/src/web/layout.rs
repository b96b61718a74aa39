//! The frame that every page has, and how a page keeps itself up to date.
//!
//! A page is a frame around parts. Its script asks for the parts again and exchanges those that
//! changed; without a script the whole page is loaded again.

use axum::response::{Html, IntoResponse, Response};
use http::{HeaderName, HeaderValue, header};
use maud::{DOCTYPE, Markup, html};

use super::text::Message;

const STYLE: &str = include_str!("assets/page.css");
const SCRIPT: &str = include_str!("assets/page.js");

/// Tells the script when to ask again.
const REFRESH: HeaderName = HeaderName::from_static("qctl-refresh");

/// When to ask for the parts again.
#[derive(Clone, Copy)]
pub(super) enum Every {
    /// After so many seconds.
    Seconds(u16),
    /// Not at all: nothing changes any more.
    Never,
}

impl Every {
    fn value(self) -> String {
        match self {
            Self::Seconds(seconds) => seconds.to_string(),
            Self::Never => "never".to_owned(),
        }
    }
}

/// What changes on a page.
pub(super) struct Live {
    pub(super) title: String,
    pub(super) every: Every,
    /// Parts by name, in order. Each page has the same names at all times.
    pub(super) parts: Vec<(&'static str, Markup)>,
}

impl Live {
    fn markup(&self) -> Markup {
        html! {
            main #live data-title=(title(&self.title)) {
                @for (name, part) in &self.parts {
                    section data-part=(name) { (part) }
                }
            }
        }
    }
}

/// The parts alone, as the script asks for them.
impl IntoResponse for Live {
    fn into_response(self) -> Response {
        let every = HeaderValue::try_from(self.every.value()).expect("a number or a word");
        ([(REFRESH, every)], Html(self.markup().into_string())).into_response()
    }
}

/// A whole page, which asks for its parts again from this path.
pub(super) fn page(from: &str, live: &Live) -> Markup {
    let again = match live.every {
        Every::Never => html! {},
        Every::Seconds(seconds) => html! {
            noscript { meta http-equiv="refresh" content=(seconds.max(5)); }
        },
    };
    let script = html! {
        script src="/assets/page.js" defer data-from=(from) data-every=(live.every.value()) {}
        (again)
    };
    frame(&live.title, &script, &live.markup())
}

/// A page that says one thing; `retry` when it may say something else soon.
pub(super) fn message(message: &Message, retry: bool) -> Markup {
    let head = html! { @if retry { meta http-equiv="refresh" content="3"; } };
    let main = html! {
        main #live {
            h1 { (message.title) }
            p.lead { (with_code(message.sentence)) }
        }
    };
    frame(message.title, &head, &main)
}

fn frame(name: &str, head: &Markup, main: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title(name)) }
                link rel="stylesheet" href="/assets/page.css";
                (head)
            }
            body {
                header.top { a href="/" { "qctl" } span #link role="status" data-lost=(super::text::CONNECTION_LOST) {} }
                (main)
            }
        }
    }
}

fn title(name: &str) -> String {
    format!("{name} · qctl")
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

/// The script that asks for the parts again.
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
