//! Telling without the database, and about the coordinator itself: a file for everything that
//! cannot be written into the outbox, sent directly while the database is away, and moved into the
//! history once it is back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use qctl_notify::outbox::{Entry, Filed, Stage};
use qctl_server_core::alarm::watch::Disk;
use qctl_server_core::notice::{Class, Details, Notice};

use super::{Teller, facts};
use crate::app::Error;
use crate::store::notices::{FiledFate, FiledNotice};

/// Between two looks at the database and the files.
const EVERY: Duration = Duration::from_secs(1);
/// Between two signs that the coordinator lives.
const TOUCH: Duration = Duration::from_secs(10);
/// Between two looks at the disk.
const DISK: Duration = Duration::from_secs(5);
/// Longest wait for the database's answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// Watches the database until the coordinator stops.
pub(super) async fn run(teller: Arc<Teller>) {
    let mut watch = teller.notifier.database.lock().await;
    watch.begins = true;
    let mut touch_at = tokio::time::Instant::now();
    let mut disk_at = touch_at;
    loop {
        qctl_notify::panics::provoked("second-path");
        if tokio::time::Instant::now() >= touch_at {
            touch_at = tokio::time::Instant::now() + TOUCH;
            teller.marker.touch();
        }
        watch.look(&teller).await;
        if tokio::time::Instant::now() >= disk_at {
            disk_at = tokio::time::Instant::now() + DISK;
            if let Some(disk) = disk(&teller.data) {
                teller.app.saw_own_disk(&teller.host, disk);
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// A database that does not answer may end the term before that was told: then it is told now.
pub(super) async fn after_term(teller: Arc<Teller>) {
    teller.app.stop().cancelled().await;
    let mut watch = teller.notifier.database.lock().await;
    if let Some(since) = watch.away
        && !watch.told
    {
        let text = "it did not answer until the coordinator had to stop leading";
        watch.tell_away(&teller, since, text).await;
    }
}

/// Room left and size of the disk below a folder. What only root may fill is no room.
fn disk(folder: &Path) -> Option<Disk> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    let bytes =
        |blocks: u64| i64::try_from(blocks.saturating_mul(disk.f_frsize)).unwrap_or(i64::MAX);
    Some(Disk {
        free: bytes(disk.f_bavail),
        total: bytes(disk.f_blocks),
    })
}

/// What is known of the database, and what is still to be told of the coordinator before this one.
#[derive(Debug)]
pub(super) struct DatabaseWatch {
    /// When that one was last seen alive, if it crashed.
    crashed: Option<DateTime<Utc>>,
    /// When its server was started.
    started: Option<DateTime<Utc>>,
    /// Since when it does not answer.
    away: Option<DateTime<Utc>>,
    /// That it is away was told.
    told: bool,
    /// A term begins: what an earlier one, or a worker, told of an absence may be over.
    begins: bool,
}

impl DatabaseWatch {
    /// Nothing is known yet; the coordinator before this one was last seen alive at `crashed`, if it
    /// crashed.
    pub(super) fn new(crashed: Option<DateTime<Utc>>) -> Self {
        Self {
            crashed,
            started: None,
            away: None,
            told: false,
            begins: true,
        }
    }

    async fn look(&mut self, teller: &Teller) {
        let now = teller.app.clock.now();
        let answer = tokio::time::timeout(ANSWER_LIMIT, teller.app.store.database_started()).await;
        match answer {
            Ok(Ok(started)) => self.answered(teller, now, started).await,
            Ok(Err(error)) => self.failed(teller, now, &error.to_string()).await,
            Err(_) => {
                let text = format!("it has not answered for {} s", ANSWER_LIMIT.as_secs());
                self.failed(teller, now, &text).await;
            }
        }
    }

    async fn failed(&mut self, teller: &Teller, now: DateTime<Utc>, text: &str) {
        let since = *self.away.get_or_insert(now);
        if now - since < facts::delta(teller.settings.database_away_after) {
            return;
        }
        self.tell_away(teller, since, text).await;
    }

    async fn tell_away(&mut self, teller: &Teller, since: DateTime<Utc>, text: &str) {
        if !self.told {
            self.told = true;
            let details = Details {
                since: Some(since),
                text: text.to_owned(),
                ..Details::default()
            };
            teller.file(&teller.notice(Class::DatabaseAway, "database", details));
        }
        teller.send_files().await;
    }

    async fn answered(&mut self, teller: &Teller, now: DateTime<Utc>, started: DateTime<Utc>) {
        let restarted = self.started.is_some_and(|before| before != started);
        match self.catch_up(teller, now, restarted).await {
            Ok(()) => {
                self.started = Some(started);
                self.away = None;
                self.told = false;
                self.begins = false;
            }
            // What was seen is told by the next look.
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "notices in files wait: {error}"
            ),
        }
    }

    async fn catch_up(
        &mut self,
        teller: &Teller,
        now: DateTime<Utc>,
        restarted: bool,
    ) -> Result<(), Error> {
        let imported = teller.import_files().await?;
        let mut was_away = false;
        if imported || self.told || self.begins {
            was_away = teller.has_open(Class::DatabaseAway).await?;
            if was_away {
                let back = teller.notice(Class::DatabaseBack, "database", Details::default());
                teller.app.tell(back).await?;
            }
            if teller.has_open(Class::CoordinatorAway).await? {
                // A worker told that the coordinator was away: that it is back says it all.
                let back = teller.notice(Class::CoordinatorBack, "coordinator", Details::default());
                teller.app.tell(back).await?;
                self.crashed = None;
            }
        }
        if let Some(crashed) = self.crashed {
            let details = Details {
                since: Some(crashed),
                next_at: Some(teller.app.started_at),
                text: "logs/server.log".to_owned(),
                ..Details::default()
            };
            let notice = teller.notice(Class::CoordinatorCrashed, "coordinator", details);
            teller.app.tell(notice).await?;
            self.crashed = None;
        }
        if restarted && !was_away {
            let since = self.away.unwrap_or(now);
            let details = Details {
                since: Some(since),
                seconds: Some((now - since).num_seconds()),
                ..Details::default()
            };
            let notice = teller.notice(Class::DatabaseRestarted, "database", details);
            return teller.app.tell(notice).await;
        }
        Ok(())
    }
}

impl Teller {
    /// True while an episode of this class goes on.
    async fn has_open(&self, class: Class) -> Result<bool, Error> {
        Ok(!self.app.store.open_episodes(class).await?.is_empty())
    }

    fn notice(&self, class: Class, subject: &str, details: Details) -> Notice {
        Notice {
            worker: self.host.clone(),
            ..Notice::about(class, subject, details)
        }
    }

    fn file(&self, notice: &Notice) {
        let filed = Filed {
            class: notice.class.to_string(),
            severity: match notice.class.severity() {
                qctl_server_core::notice::Severity::Info => qctl_notify::Severity::Info,
                qctl_server_core::notice::Severity::Warning => qctl_notify::Severity::Warning,
                qctl_server_core::notice::Severity::Error => qctl_notify::Severity::Error,
                qctl_server_core::notice::Severity::Critical => qctl_notify::Severity::Critical,
            },
            subject: notice.subject.clone(),
            signature: notice.signature.clone(),
            facts: facts::of_filed(notice),
            at: self.app.clock.now(),
            receipts: BTreeMap::new(),
        };
        if let Err(error) = self.outbox.put(&filed) {
            tracing::error!(error = %error, class = filed.class, "a notice cannot be filed");
        }
    }

    /// Sends what lies in files and was not sent.
    async fn send_files(&self) {
        let entries = match self.outbox.entries() {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!(error = %error, "notices in files cannot be read");
                return;
            }
        };
        for entry in entries {
            if entry.stage == Stage::New {
                let now = self.app.clock.now();
                self.outbox
                    .send(entry, &self.settings.channels, &self.words, now)
                    .await;
            }
        }
    }

    /// Moves what lies in files into the database: what was told into the history, the rest into
    /// the outbox. Returns whether there were any.
    async fn import_files(&self) -> Result<bool, Error> {
        let entries = self.outbox.entries().map_err(|error| {
            Error::Internal(format!("notices in files cannot be read: {error}"))
        })?;
        for entry in &entries {
            self.import(entry).await?;
            if let Err(error) = self.outbox.remove(entry) {
                tracing::warn!(error = %error, "the file of a notice cannot be removed");
            }
        }
        Ok(!entries.is_empty())
    }

    async fn import(&self, entry: &Entry) -> Result<(), Error> {
        let Some(notice) = facts::read_filed(&entry.filed) else {
            tracing::warn!("{entry} is of a newer version and is dropped");
            return Ok(());
        };
        let text = self
            .words
            .notice(&entry.filed.class, &entry.filed.facts, entry.filed.at);
        let state = match entry.stage {
            Stage::New => None,
            Stage::Sent => Some("sent"),
            Stage::Rejected => Some("rejected"),
            // The program that was sending it is gone.
            Stage::Sending | Stage::Unknown => Some("unknown"),
        };
        let receipts: Vec<Option<String>> = self
            .app
            .notices
            .channels()
            .iter()
            .map(|channel| entry.filed.receipts.get(channel).cloned())
            .collect();
        let filed = FiledNotice {
            filed_as: &entry.key,
            at: entry.filed.at,
            notice: &notice,
            told: state.map(|state| FiledFate {
                title: &text.title,
                body: &text.body,
                channels: self.app.notices.channels(),
                receipts: &receipts,
                state,
            }),
        };
        self.app.store.import_filed(&filed).await?;
        self.app.notices.ring();
        Ok(())
    }
}

/// The file that says that a coordinator runs here. One that is found at the start was left by a
/// coordinator that ended without having been asked to.
#[derive(Debug)]
pub(crate) struct Marker {
    path: PathBuf,
    crashed: Option<DateTime<Utc>>,
}

impl Marker {
    /// Sets the mark. That it cannot be set is logged, and costs a notice at most.
    pub(crate) fn set(data: &Path) -> Self {
        let path = data.join("running");
        let crashed = std::fs::metadata(&path)
            .and_then(|file| file.modified())
            .ok()
            .map(DateTime::<Utc>::from);
        let marker = Self { path, crashed };
        marker.touch();
        marker
    }

    /// When the coordinator before this one was last seen alive, if it crashed.
    pub(crate) fn crashed(&self) -> Option<DateTime<Utc>> {
        self.crashed
    }

    /// Says that the coordinator lives.
    pub(crate) fn touch(&self) {
        if let Err(error) = std::fs::write(&self.path, format!("{}\n", std::process::id())) {
            tracing::warn!(error = %error, "cannot write {}", self.path.display());
        }
    }

    /// Takes the mark away: the coordinator ends in order.
    pub(crate) fn remove(&self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(error = %error, "cannot remove {}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_that_was_left_says_when_its_coordinator_was_last_seen() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Marker::set(folder.path()).crashed(), None);
        let after_crash = Marker::set(folder.path());
        let crashed = after_crash.crashed().unwrap();
        assert!((Utc::now() - crashed).num_seconds() < 60);
        after_crash.touch();
        after_crash.remove();
        assert_eq!(Marker::set(folder.path()).crashed(), None);
    }
}
