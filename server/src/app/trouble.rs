//! Loops that fail again and again: logged at the first failure, told when it is no passing one.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use qctl_server_core::notice::{Class, Details, Notice};

use super::{App, Error};
use crate::database::News;

/// Failures in a row after which people are told.
const TOLD_AFTER: u32 = 3;

macro_rules! duties {
    ($($duty:ident = $word:literal,)+) => {
        /// What a loop of the coordinator does; the catalogue of notices has words for each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the words beside them say it")]
        pub(crate) enum Duty {
            $($duty,)+
        }

        impl Duty {
            /// Every one.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$duty,)+];

            /// The word for it, in logs and histories.
            pub(crate) fn as_str(self) -> &'static str {
                match self {
                    $(Self::$duty => $word,)+
                }
            }
        }
    };
}

duties! {
    Dispatcher = "dispatcher",
    Dependents = "dependents",
    OverlookedDependents = "overlooked dependents",
    Waits = "waits",
    Leases = "leases",
    Standstill = "queue watch",
    Live = "heartbeats and progress",
    Measures = "measures",
    OldMeasures = "old measures",
    Alarms = "alarms",
    Checkpoints = "checkpoints",
    RequestIds = "request ids",
    Drains = "draining workers",
    Retention = "retention",
}

/// How a loop of the coordinator has been doing.
#[derive(Debug)]
pub(crate) struct Doing {
    what: &'static str,
    failures: u32,
    /// When the first of them was.
    since: Option<DateTime<Utc>>,
    told: bool,
    /// Whoever ran it before may have told that it fails.
    begins: bool,
}

impl Doing {
    /// A loop that does this, and has not failed.
    pub(crate) fn new(duty: Duty) -> Self {
        Self {
            what: duty.as_str(),
            failures: 0,
            since: None,
            told: false,
            begins: true,
        }
    }

    /// Notes how a round went.
    pub(crate) async fn note<T>(&mut self, app: &App, result: &Result<T, Error>) {
        let what = self.what;
        match result {
            Ok(_) => {
                self.failures = 0;
                self.since = None;
                let over = self.told || self.begins;
                if over && self.tell(app, Class::TroubleOver, String::new()).await {
                    self.told = false;
                    self.begins = false;
                }
            }
            Err(error) => {
                if self.failures == 0 {
                    tracing::warn!(
                        error = error as &dyn std::error::Error,
                        "{what}: {error}; trying again"
                    );
                }
                self.failures = self.failures.saturating_add(1);
                self.since.get_or_insert(app.clock.now());
                let refused = matches!(error, Error::Store(store) if store.refuses_writes());
                if refused {
                    app.notices.note_refusal(app.clock.now(), told(error));
                }
                // That the database is away or does not write is told by who watches it.
                let passes = refused
                    || matches!(error, Error::Store(store) if store.is_transient())
                    || matches!(error, Error::ShuttingDown);
                if !passes && !self.told && self.failures >= TOLD_AFTER {
                    self.told = self.tell(app, Class::Trouble, told(error)).await;
                }
            }
        }
    }

    async fn tell(&self, app: &App, class: Class, text: String) -> bool {
        let details = Details {
            name: self.what.to_owned(),
            since: self.since,
            text,
            ..Details::default()
        };
        let notice = Notice::about(class, format!("coordinator: {}", self.what), details);
        app.tell(notice).await.is_ok()
    }
}

impl App {
    /// Takes what was heard of the database while the lease was renewed.
    pub(crate) fn heard_of_database(self: &Arc<Self>, news: News) {
        match news {
            News::Reconnected => self.greet_everyone_anew(),
            News::Refused(error) => {
                self.notices
                    .note_refusal(self.clock.now(), told(&Error::Store(error)));
            }
        }
    }
}

/// An error with everything below it.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut below = std::error::Error::source(error);
    while let Some(source) = below {
        text.push_str(&format!(": {source}"));
        below = source.source();
    }
    text
}
