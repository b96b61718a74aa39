//! Tells people that the coordinator does not come up: nobody else on its machine knows before its
//! worker has waited for long, and a coordinator that does not start tells nothing itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use qctl_notify::outbox::{Filed, Outbox};
use qctl_notify::{Fact, Settings, Severity, Words};
use qctl_proto::home::Home;

use super::{Program, log_file, note};

/// Between two looks at whether a channel takes what it refused for now.
const AGAIN: Duration = Duration::from_secs(1);
/// The class of the notice, which is also that of a worker that does not reach the coordinator: it
/// is one outage, and told once.
const CLASS: &str = "coordinator_away";

/// How long the coordinator has been failing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outage {
    since: Option<(Instant, DateTime<Utc>)>,
    told: bool,
}

impl Outage {
    /// The coordinator ended without having been asked to, or could not be started. One that had
    /// come up before begins a new outage.
    pub fn ended(&mut self, had_come_up: bool, now: Instant, at: DateTime<Utc>) {
        if had_come_up {
            *self = Self::default();
        }
        self.since.get_or_insert((now, at));
    }

    /// It came up, or is not wanted any more.
    pub fn over(&mut self) {
        *self = Self::default();
    }

    /// True until it came up.
    pub fn is_going_on(&self) -> bool {
        self.since.is_some()
    }

    /// When [`Outage::look`] has something to say next. `after` zero means never.
    pub fn deadline(&self, after: Duration) -> Option<Instant> {
        let (since, _) = self.since?;
        (!self.told && !after.is_zero()).then(|| since + after)
    }

    /// Since when it has been failing, once, when that is to be told.
    pub fn look(&mut self, now: Instant, after: Duration) -> Option<DateTime<Utc>> {
        let due = self.deadline(after).is_some_and(|at| now >= at);
        self.told |= due;
        self.since.filter(|_| due).map(|(_, at)| at)
    }
}

/// What tells people, by `notify.toml` of the installation.
#[derive(Debug)]
pub struct Teller {
    home: Home,
    settings: Option<Settings>,
    sending: Option<tokio::task::JoinHandle<()>>,
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Teller {
    /// Reads the settings. A mistake in them is noted; the coordinator refuses them anyway.
    pub fn new(home: Home) -> Self {
        let settings = Settings::load(home.config_dir())
            .inspect_err(|error| note(&format!("nobody is told from here: {error}")))
            .ok();
        Self {
            home,
            settings,
            sending: None,
        }
    }

    /// After how long an outage is told; zero means never.
    pub fn after(&self) -> Duration {
        match &self.settings {
            Some(settings) if !settings.channels.is_empty() => settings.coordinator_down_after,
            _ => Duration::ZERO,
        }
    }

    /// Tells that the coordinator has been failing since a time, unless its worker told it before.
    pub fn tell(&mut self, since: DateTime<Utc>) {
        let Some(settings) = self.settings.clone() else {
            return;
        };
        let outbox = Outbox::of(self.home.data_dir());
        if let Err(error) = outbox.put(&self.filed(since)) {
            note(&format!(
                "that the coordinator fails cannot be told: {error}"
            ));
        }
        note("telling that the coordinator does not come up");
        self.stop();
        self.sending = Some(tokio::spawn(async move {
            let words = Words::new(settings.language, settings.zone.clone());
            loop {
                let sent = outbox
                    .send(&settings, &words, Utc::now(), is_about_coordinator)
                    .await;
                if let Err(error) = sent {
                    note(&format!("notices in files cannot be sent: {error}"));
                }
                tokio::time::sleep(AGAIN).await;
            }
        }));
    }

    /// A coordinator that has come up takes what lies in files itself.
    pub fn stop(&mut self) {
        if let Some(sending) = self.sending.take() {
            sending.abort();
        }
    }

    fn filed(&self, since: DateTime<Utc>) -> Filed {
        let log: PathBuf = Program::Server.log(&self.home);
        let last = log_file::last_lines(&log, 1).pop().unwrap_or_default();
        let host = rustix::system::uname();
        let mut facts: BTreeMap<String, Fact> = [
            ("name", Fact::Text("fails".to_owned())),
            (
                "worker",
                Fact::Text(host.nodename().to_string_lossy().into_owned()),
            ),
            ("since", Fact::Time(since)),
        ]
        .into_iter()
        .map(|(name, fact)| (name.to_owned(), fact))
        .collect();
        if !last.trim().is_empty() {
            for name in ["text", "quote"] {
                facts.insert(name.to_owned(), Fact::Text(last.clone()));
            }
        }
        Filed {
            class: CLASS.to_owned(),
            severity: Severity::Critical,
            subject: "coordinator".to_owned(),
            signature: String::new(),
            facts,
            at: Utc::now(),
            deliveries: BTreeMap::new(),
        }
    }
}

fn is_about_coordinator(filed: &Filed) -> bool {
    filed.class == CLASS
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(30);

    #[test]
    fn an_outage_is_told_once_however_often_the_coordinator_ends() {
        let (start, at) = (Instant::now(), Utc::now());
        let later = |seconds| start + Duration::from_secs(seconds);
        let mut outage = Outage::default();
        assert_eq!(outage.deadline(AFTER), None);
        outage.ended(true, start, at);
        assert_eq!(outage.deadline(AFTER), Some(later(30)));
        assert_eq!(outage.deadline(Duration::ZERO), None);
        outage.ended(false, later(10), at + chrono::TimeDelta::seconds(10));
        assert_eq!(outage.look(later(29), AFTER), None);
        assert_eq!(outage.look(later(30), AFTER), Some(at));
        outage.ended(false, later(40), at);
        assert_eq!(outage.look(later(90), AFTER), None);
        // It came up, and fails again: that is a new one.
        outage.ended(true, later(100), at);
        assert_eq!(outage.look(later(130), AFTER), Some(at));
        outage.over();
        assert_eq!(outage.look(later(900), AFTER), None);
    }
}
