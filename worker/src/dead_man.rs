//! Tells people by itself that the coordinator is away, when this machine has `notify.toml`; and
//! what lies in the files of the outbox and nobody else tells.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use qctl_notify::outbox::{Filed, Outbox};
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
/// A coordinator on this machine takes the file that tells of its absence, and tells of its return;
/// after this, no coordinator of this machine was meant.
const CLAIMED: Duration = Duration::from_secs(10);
/// How long it is remembered what was told from here.
const REMEMBERED: TimeDelta = TimeDelta::days(1);

/// Watches the link to the coordinator, unless the settings switch that off, and tells what nobody
/// else has told, until `stop`.
pub(crate) async fn run(
    settings: Settings,
    data: &Path,
    worker: String,
    link: watch::Receiver<Option<Coordinator>>,
    stop: CancellationToken,
) {
    // Its return is told all the same: an earlier agent may have told that it was away.
    let after = match settings.channels.is_empty() || settings.dead_man_after.is_zero() {
        true => Duration::MAX,
        false => settings.dead_man_after,
    };
    let teller = Teller {
        words: Words::new(settings.language, settings.zone.clone()),
        outbox: Outbox::of(data),
        settings,
        worker,
    };
    let mut dead_man = DeadMan::new(after);
    let mut away_since = None;
    let mut back_at = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        qctl_notify::panics::provoked("dead-man");
        let is_connected = link.borrow().is_some();
        match dead_man.look(is_connected, clock::now()) {
            Some(Word::Away(away)) => {
                away_since = Some(Utc::now() - TimeDelta::from_std(away).unwrap_or_default());
                back_at = None;
            }
            Some(Word::Back) => {
                away_since = None;
                back_at = Some(clock::now() + CLAIMED);
            }
            None => {}
        }
        // A coordinator without its database takes nobody, and tells that itself.
        if let Some(since) = away_since
            && !teller.is_database_told()
        {
            away_since = None;
            teller.forget(is_return);
            teller.file(&teller.away(since));
        }
        if back_at.is_some_and(|at| clock::now() >= at) && teller.is_back_told() {
            back_at = None;
        }
        let old = Utc::now() - UNCLAIMED;
        teller
            .send(|filed| {
                filed.at < old || !is_connected && is_about_coordinator(filed) || is_return(filed)
            })
            .await;
        teller.forget_old();
    }
}

fn is_about_coordinator(filed: &Filed) -> bool {
    filed.class == "coordinator_away"
}

fn is_return(filed: &Filed) -> bool {
    filed.class == "coordinator_back"
}

struct Teller {
    settings: Settings,
    words: Words,
    outbox: Outbox,
    worker: String,
}

impl Teller {
    fn is_database_told(&self) -> bool {
        let entries = self.entries();
        let mut filed = entries.iter().map(|entry| &entry.filed);
        filed.any(|filed| filed.class == "database_away" && filed.was_told())
    }

    fn away(&self, since: DateTime<Utc>) -> Filed {
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
            deliveries: BTreeMap::new(),
        }
    }

    fn file(&self, filed: &Filed) {
        if let Err(error) = self.outbox.put(filed) {
            tracing::error!(error = %error, "that the coordinator is away cannot be told");
        }
    }

    /// The coordinator is back: files that if its absence was told, unless a coordinator on this
    /// machine has taken the file by then and tells it itself. Returns false while another program
    /// uses the files.
    fn is_back_told(&self) -> bool {
        let known = self
            .entries()
            .into_iter()
            .find(|entry| is_about_coordinator(&entry.filed));
        let Some(entry) = known else { return true };
        let Ok(Some(turn)) = self.outbox.turn() else {
            return false;
        };
        let since = match entry.filed.facts.get("since") {
            Some(Fact::Time(since)) => *since,
            _ => entry.filed.at,
        };
        if entry.filed.was_told() {
            let seconds = (Utc::now() - since).num_seconds();
            self.file(&self.notice(
                "coordinator_back",
                Severity::Info,
                [
                    ("since", Fact::Time(since)),
                    ("ran", Fact::Seconds(seconds)),
                ],
            ));
        }
        if let Err(error) = self.outbox.remove(&turn, &entry) {
            tracing::warn!(error = %error, "the file of a notice cannot be removed");
        }
        for (channel, delivery) in entry.filed.deliveries {
            let channel = self
                .settings
                .channels
                .iter()
                .find(|one| one.name() == channel);
            if let (Some(channel), Some(receipt)) = (channel, delivery.receipt) {
                let channel = std::sync::Arc::clone(channel);
                tokio::spawn(async move { channel.cancel(&receipt).await });
            }
        }
        true
    }

    async fn send(&self, which: impl Fn(&Filed) -> bool) {
        let sent = self
            .outbox
            .send(&self.settings, &self.words, Utc::now(), which)
            .await;
        if let Err(error) = sent {
            tracing::debug!(error = %error, "notices in files cannot be sent");
        }
    }

    /// What was told long ago is news again when it happens again; a return always is. What nobody
    /// was told of stays for the coordinator.
    fn forget_old(&self) {
        let old = Utc::now() - REMEMBERED;
        self.forget(|filed| match filed.class.as_str() {
            "coordinator_away" => false,
            "coordinator_back" => filed.is_settled(&self.settings.channels),
            _ => filed.was_told() && filed.is_settled(&self.settings.channels) && filed.at < old,
        });
    }

    fn forget(&self, which: impl Fn(&Filed) -> bool) {
        let over: Vec<_> = self
            .entries()
            .into_iter()
            .filter(|entry| which(&entry.filed))
            .collect();
        if over.is_empty() {
            return;
        }
        if let Ok(Some(turn)) = self.outbox.turn() {
            for entry in over {
                let _ = self.outbox.remove(&turn, &entry);
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use qctl_notify::channel::Pending;
    use qctl_notify::{Channel, Message, Outcome};

    use super::*;

    /// Longest wait for something that must happen.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Takes everything.
    #[derive(Debug, Default)]
    struct Phone(Mutex<Vec<String>>);

    impl Channel for Phone {
        fn name(&self) -> &'static str {
            "phone"
        }

        fn send<'a>(&'a self, message: &'a Message) -> Pending<'a, Outcome> {
            self.0.lock().unwrap().push(message.class.clone());
            Box::pin(async { Outcome::Accepted { receipt: None } })
        }
    }

    fn filed(class: &str, severity: Severity, age: TimeDelta) -> Filed {
        Filed {
            class: class.to_owned(),
            severity,
            subject: class.to_owned(),
            signature: String::new(),
            facts: BTreeMap::new(),
            at: Utc::now() - age,
            deliveries: BTreeMap::new(),
        }
    }

    /// Runs by these settings until nothing lies in the outbox but what is expected to stay. Returns
    /// what the phone got.
    async fn told(
        edit: impl FnOnce(&mut Settings),
        filed: &[Filed],
        stays: &[&str],
    ) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::of(folder.path());
        for one in filed {
            outbox.put(one).unwrap();
        }
        let phone = Arc::new(Phone::default());
        let mut settings = Settings::default();
        settings.channels = vec![Arc::clone(&phone) as Arc<dyn Channel>];
        edit(&mut settings);
        let (_link, linked) = watch::channel(None);
        let stop = CancellationToken::new();
        let until = async {
            loop {
                let entries = outbox.entries().unwrap();
                let left: Vec<_> = entries.iter().map(|entry| &entry.filed).collect();
                let is_done = left.iter().all(|filed| {
                    stays.contains(&filed.class.as_str())
                        && (settings.channels.is_empty() || filed.is_settled(&settings.channels))
                });
                if is_done && left.len() == stays.len() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let running = run(
            settings.clone(),
            folder.path(),
            "box".to_owned(),
            linked,
            stop.clone(),
        );
        tokio::select! {
            () = running => unreachable!("nobody stops it"),
            done = tokio::time::timeout(PATIENCE, until) => done.expect("all is settled"),
        }
        phone.0.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn without_the_check_on_the_coordinator_the_rest_is_sent_and_forgotten() {
        let long_ago = REMEMBERED + TimeDelta::minutes(1);
        let filed = [
            filed("panic", Severity::Error, TimeDelta::minutes(2)),
            filed("old", Severity::Error, long_ago),
        ];
        let off = |settings: &mut Settings| settings.dead_man_after = Duration::ZERO;
        let mut got = told(off, &filed, &["panic"]).await;
        got.sort();
        assert_eq!(got, ["old", "panic"]);
    }

    #[tokio::test]
    async fn what_is_too_mild_is_not_sent_and_a_return_is_forgotten_all_the_same() {
        let filed = [
            filed("coordinator_back", Severity::Info, TimeDelta::zero()),
            filed("panic", Severity::Error, TimeDelta::minutes(2)),
        ];
        let strict = |settings: &mut Settings| settings.minimum = Severity::Error;
        assert_eq!(told(strict, &filed, &["panic"]).await, ["panic"]);
    }

    #[tokio::test]
    async fn what_was_told_is_forgotten_although_no_channel_is_left_and_the_rest_is_kept() {
        let long_ago = REMEMBERED + TimeDelta::minutes(1);
        let mut known = filed("told", Severity::Error, long_ago);
        let json = serde_json::json!({
            "fate": "sent", "tries": 1, "next_at": known.at, "tried_at": known.at,
            "left_before": null, "detail": "", "receipt": null,
        });
        let sent = serde_json::from_value(json).unwrap();
        known.deliveries.insert("phone".to_owned(), sent);
        let filed = [known, filed("panic", Severity::Error, long_ago)];
        let none = |settings: &mut Settings| settings.channels.clear();
        assert!(told(none, &filed, &["panic"]).await.is_empty());
    }
}
