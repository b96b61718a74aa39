//! Tells people by itself that the coordinator is away, when this machine has `notify.toml`; and
//! what lies in the files of the outbox and nobody else tells.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use qctl_notify::outbox::{Filed, Outbox, Stage};
use qctl_notify::{Fact, Settings, Severity, Words};
use qctl_worker_core::dead_man::{DeadMan, Word};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::checkpoints::Coordinator;
use crate::clock;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// A coordinator on this machine takes files within a second; what is older is told from here.
const UNCLAIMED: TimeDelta = TimeDelta::seconds(60);
/// How long it is remembered what was told from here.
const REMEMBERED: TimeDelta = TimeDelta::days(1);

/// Watches the link to the coordinator until `stop`.
pub(crate) async fn run(
    settings: Settings,
    data: &Path,
    worker: String,
    link: watch::Receiver<Option<Coordinator>>,
    stop: CancellationToken,
) {
    if settings.channels.is_empty() || settings.dead_man_after.is_zero() {
        return;
    }
    let teller = Teller {
        words: Words::new(settings.language, settings.zone.clone()),
        outbox: Outbox::of(data),
        settings,
        worker,
    };
    let mut dead_man = DeadMan::new(teller.settings.dead_man_after);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        qctl_notify::panics::provoked("dead-man");
        let is_connected = link.borrow().is_some();
        match dead_man.look(is_connected, clock::now()) {
            Some(Word::Away(away)) => {
                teller.file(&teller.away(away));
                teller.send(|_| true).await;
            }
            Some(Word::Back) => teller.back().await,
            // Meanwhile a channel may have refused for a moment.
            None if !is_connected => teller.send(is_about_coordinator).await,
            None => {}
        }
        let old = Utc::now() - UNCLAIMED;
        teller.send(|filed| filed.at < old).await;
        teller.forget_old();
    }
}

fn is_about_coordinator(filed: &Filed) -> bool {
    filed.class == "coordinator_away"
}

struct Teller {
    settings: Settings,
    words: Words,
    outbox: Outbox,
    worker: String,
}

impl Teller {
    fn away(&self, away: Duration) -> Filed {
        let since = Utc::now() - TimeDelta::from_std(away).unwrap_or_default();
        self.notice(
            "coordinator_away",
            Severity::Critical,
            [("since", Fact::Time(since))],
        )
    }

    fn notice<const N: usize>(
        &self,
        class: &str,
        severity: Severity,
        facts: [(&str, Fact); N],
    ) -> Filed {
        let mut facts: BTreeMap<String, Fact> = facts
            .into_iter()
            .map(|(name, fact)| (name.to_owned(), fact))
            .collect();
        facts.insert("worker".to_owned(), Fact::Text(self.worker.clone()));
        Filed {
            class: class.to_owned(),
            severity,
            subject: "coordinator".to_owned(),
            signature: String::new(),
            facts,
            at: Utc::now(),
            receipts: BTreeMap::new(),
        }
    }

    fn file(&self, filed: &Filed) {
        if let Err(error) = self.outbox.put(filed) {
            tracing::error!(error = %error, "that the coordinator is away cannot be told");
        }
    }

    /// The coordinator is back: that is told if its absence was. A coordinator on this machine has
    /// taken the file by then, and tells it itself.
    async fn back(&self) {
        let known = self
            .entries()
            .into_iter()
            .find(|entry| is_about_coordinator(&entry.filed));
        let Some(entry) = known else { return };
        let told = matches!(entry.stage, Stage::Sent | Stage::Unknown);
        if let Err(error) = self.outbox.remove(&entry) {
            tracing::warn!(error = %error, "the file of a notice cannot be removed");
        }
        if !told {
            return;
        }
        let since = match entry.filed.facts.get("since") {
            Some(Fact::Time(since)) => *since,
            _ => entry.filed.at,
        };
        let seconds = (Utc::now() - since).num_seconds();
        for (channel, receipt) in &entry.filed.receipts {
            let channel = self
                .settings
                .channels
                .iter()
                .find(|known| known.name() == channel);
            if let Some(channel) = channel {
                channel.cancel(receipt).await;
            }
        }
        self.file(&self.notice(
            "coordinator_back",
            Severity::Info,
            [
                ("since", Fact::Time(since)),
                ("ran", Fact::Seconds(seconds)),
            ],
        ));
        self.send(|filed| filed.class == "coordinator_back").await;
        // The next return is news.
        for entry in self.entries() {
            if entry.filed.class == "coordinator_back" && entry.stage != Stage::New {
                let _ = self.outbox.remove(&entry);
            }
        }
    }

    async fn send(&self, which: impl Fn(&Filed) -> bool) {
        for entry in self.entries() {
            if entry.stage == Stage::New && which(&entry.filed) {
                self.outbox
                    .send(entry, &self.settings.channels, &self.words, Utc::now())
                    .await;
            }
        }
    }

    fn forget_old(&self) {
        let old = Utc::now() - REMEMBERED;
        for entry in self.entries() {
            let is_settled = entry.stage != Stage::New && !is_about_coordinator(&entry.filed);
            if is_settled && entry.filed.at < old {
                let _ = self.outbox.remove(&entry);
            }
        }
    }

    fn entries(&self) -> Vec<qctl_notify::outbox::Entry> {
        self.outbox.entries().unwrap_or_else(|error| {
            tracing::debug!(error = %error, "notices in files cannot be read");
            Vec::new()
        })
    }
}
