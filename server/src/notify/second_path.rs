//! Telling without the database, and about the coordinator itself: a file for everything that
//! cannot be written into the outbox, sent directly while the database is away, and moved into the
//! history once it is back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use qctl_notify::outbox::{Entry, Filed, FiledFate};
use qctl_server_core::alarm::watch::Disk;
use qctl_server_core::notice::{Class, Details, Notice, Severity};

use super::{Notifier, Teller, facts};
use crate::app::notices::Refusal;
use crate::app::{Clock, Error};
use crate::store::notices::{FiledDelivery, FiledMessage, FiledNotice};

/// Between two looks at the database and the files.
const EVERY: Duration = Duration::from_secs(1);
/// Between two signs that the coordinator lives.
const TOUCH: Duration = Duration::from_secs(10);
/// Between two looks at the disk.
const DISK: Duration = Duration::from_secs(5);
/// Longest wait for the database's answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// A refusal to write that lasts this long is told.
const REFUSED_LONG: TimeDelta = TimeDelta::seconds(60);
/// A term takes files within a second or two; what is older is sent from here.
const UNCLAIMED: TimeDelta = TimeDelta::seconds(60);

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
            if let Err(error) = teller.outbox.take() {
                tracing::warn!(error = %error, "a worker here cannot see who takes its notices");
            }
        }
        watch.look(&teller).await;
        if tokio::time::Instant::now() >= disk_at {
            disk_at = tokio::time::Instant::now() + DISK;
            if let Some(disk) = disk(&teller.data) {
                teller.app.saw_own_disk(&teller.machine, disk);
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// A database that does not answer may end the term before that was told: then it is told now.
pub(super) async fn after_term(teller: Arc<Teller>) {
    teller.app.stop().cancelled().await;
    let mut watch = teller.notifier.database.lock().await;
    if let Some(since) = watch.away {
        watch.tell_away(&teller, since, "");
    }
    // Leading is impossible while nothing is written, so that the end of the term is by that.
    if let Some(refusal) = teller.app.notices.refusal()
        && teller.app.clock.now() - refusal.until < REFUSED_LONG
    {
        watch.tell_refusal(&teller, &refusal);
    }
}

/// Sends what lies in files while the database is away, from the start of the program to its end:
/// the end of a term does not cut off what tells of it.
pub(super) async fn carry(notifier: Arc<Notifier>, clock: Clock) {
    loop {
        tokio::time::sleep(EVERY).await;
        qctl_notify::panics::provoked("carrier");
        let is_alone = notifier.is_alone.load(Ordering::Relaxed);
        let now = clock.now();
        let sent = notifier
            .outbox
            .send(&notifier.settings, &notifier.words, now, |filed| {
                is_alone || now - filed.at > UNCLAIMED
            })
            .await;
        if let Err(error) = sent {
            tracing::warn!(error = %error, "notices in files cannot be sent");
        }
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
    /// That it refuses to write was told.
    told_refusal: bool,
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
            told_refusal: false,
            begins: true,
        }
    }

    async fn look(&mut self, teller: &Teller) {
        let now = teller.app.clock.now();
        let answer = tokio::time::timeout(ANSWER_LIMIT, teller.app.store.database_started()).await;
        match answer {
            Ok(Ok(started)) => self.answered(teller, now, started).await,
            Ok(Err(error)) => self.failed(teller, now, &error.to_string()),
            // That it says nothing is all there is to say.
            Err(_) => self.failed(teller, now, ""),
        }
    }

    /// `text` is what the database says.
    fn failed(&mut self, teller: &Teller, now: DateTime<Utc>, text: &str) {
        let since = *self.away.get_or_insert(now);
        if now - since < facts::delta(teller.settings.database_away_after) {
            return;
        }
        self.tell_away(teller, since, text);
    }

    fn tell_away(&mut self, teller: &Teller, since: DateTime<Utc>, text: &str) {
        if self.told {
            return;
        }
        let details = Details {
            since: Some(since),
            text: text.to_owned(),
            ..Details::default()
        };
        self.told = teller.file(&teller.notice(Class::DatabaseAway, "database", details));
        teller.is_alone.store(true, Ordering::Relaxed);
    }

    fn tell_refusal(&mut self, teller: &Teller, refusal: &Refusal) {
        if self.told_refusal {
            return;
        }
        let details = Details {
            since: Some(refusal.since),
            text: refusal.text.clone(),
            ..Details::default()
        };
        let notice = teller.notice(Class::DatabaseRefuses, "database", details);
        self.told_refusal = teller.file(&notice);
        teller.is_alone.store(true, Ordering::Relaxed);
    }

    async fn answered(&mut self, teller: &Teller, now: DateTime<Utc>, started: DateTime<Utc>) {
        let restarted = self.started.is_some_and(|before| before != started);
        if let Some(refusal) = teller.app.notices.refusal()
            && refusal.until - refusal.since >= REFUSED_LONG
        {
            self.tell_refusal(teller, &refusal);
        }
        match self.catch_up(teller, now, restarted).await {
            Ok(()) => {
                self.started = Some(started);
                self.away = None;
                self.told = false;
                self.begins = false;
                teller.is_alone.store(false, Ordering::Relaxed);
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
        // What a channel is still asked about comes into the history later; it was told all the same.
        let mut was_away = self.told;
        if imported || self.told || self.told_refusal || self.begins {
            // Some writes find room on a full disk: it is over once none has been refused for a while.
            let refusal = teller.app.notices.refusal();
            let lasts = |refusal: &Refusal| now - refusal.until < REFUSED_LONG;
            if !refusal.as_ref().is_some_and(lasts) {
                // Written only when the history says that it refused.
                let stores = teller.notice(Class::DatabaseStores, "database", Details::default());
                teller.app.tell(stores).await?;
                teller.app.notices.end_refusal(refusal.as_ref());
                self.told_refusal = false;
            }
            let is_open = teller.has_open(Class::DatabaseAway).await?;
            was_away |= is_open;
            if is_open {
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
            worker: self.machine.host.clone(),
            ..Notice::about(class, subject, details)
        }
    }

    /// Files a notice. Returns whether one about this lies there now.
    fn file(&self, notice: &Notice) -> bool {
        let filed = Filed {
            class: notice.class.to_string(),
            severity: match notice.class.severity() {
                Severity::Info => qctl_notify::Severity::Info,
                Severity::Warning => qctl_notify::Severity::Warning,
                Severity::Error => qctl_notify::Severity::Error,
                Severity::Critical => qctl_notify::Severity::Critical,
            },
            subject: notice.subject.clone(),
            signature: notice.signature.clone(),
            facts: facts::of_filed(notice),
            at: self.app.clock.now(),
            deliveries: BTreeMap::new(),
        };
        self.outbox
            .put(&filed)
            .inspect_err(|error| {
                tracing::error!(error = %error, class = filed.class, "a notice cannot be filed");
            })
            .is_ok()
    }

    /// Moves what lies in files into the database, and what is still to be sent of it. Returns whether
    /// there were any.
    async fn import_files(&self) -> Result<bool, Error> {
        let unreadable =
            |error| Error::Internal(format!("notices in files cannot be read: {error}"));
        if self.outbox.entries().map_err(unreadable)?.is_empty() {
            return Ok(false);
        }
        let Some(turn) = self.outbox.turn().map_err(unreadable)? else {
            return Err(Error::Internal(
                "another program is sending notices in files".to_owned(),
            ));
        };
        let now = self.app.clock.now();
        self.outbox
            .settle(&turn, &self.settings.channels, now)
            .await
            .map_err(unreadable)?;
        let mut imported = false;
        for entry in self.outbox.entries().map_err(unreadable)? {
            if entry.is_open() {
                continue;
            }
            self.import(&entry, now).await?;
            imported = true;
            if let Err(error) = self.outbox.remove(&turn, &entry) {
                tracing::warn!(error = %error, "the file of a notice cannot be removed");
            }
        }
        Ok(imported)
    }

    async fn import(&self, entry: &Entry, now: DateTime<Utc>) -> Result<(), Error> {
        let filed = &entry.filed;
        let Some(notice) = facts::read_filed(filed) else {
            tracing::warn!("{entry} is of a newer version and is dropped");
            return Ok(());
        };
        let text = self.words.notice(&filed.class, &filed.facts, filed.at);
        let is_untried = |fate| matches!(fate, FiledFate::Pending | FiledFate::Withheld);
        let is_new = filed.channels().all(|(_, one)| is_untried(one.fate));
        let delivery = |channel: &String| {
            let tried = filed.deliveries.get(channel);
            FiledDelivery {
                channel: channel.clone(),
                state: tried.map_or("pending", |one| one.fate.as_str()),
                detail: tried.map_or_else(String::new, |one| one.detail.clone()),
                receipt: tried.and_then(|one| one.receipt.clone()),
            }
        };
        // Told elsewhere, it was too mild for these: there is nothing left to decide.
        let is_withheld = |channel: &&String| {
            let tried = filed.deliveries.get(*channel);
            tried.is_some_and(|one| one.fate == FiledFate::Withheld)
        };
        let channels = self.app.notices.channels().iter();
        let message = (!is_new).then(|| FiledMessage {
            title: text.title,
            body: text.body,
            deliveries: channels
                .filter(|channel| !is_withheld(channel))
                .map(delivery)
                .collect(),
        });
        let filed = FiledNotice {
            filed_as: entry.key.clone(),
            at: filed.at,
            notice,
            message,
        };
        self.app.store.import_filed(filed, now).await?;
        self.app.notices.ring();
        self.delivery_bell.notify_waiters();
        Ok(())
    }
}

/// The file that says that a coordinator runs here. One that is found at the start was left by a
/// coordinator that ended without having been asked to.
#[derive(Debug)]
pub(crate) struct Marker {
    path: PathBuf,
    crashed: Option<DateTime<Utc>>,
    /// This coordinator has led, so that the mark is its own.
    is_set: AtomicBool,
}

impl Marker {
    /// Reads the mark that is there. It is set by the first [`Marker::touch`], once a term has begun:
    /// a coordinator that ends before has nothing to recover from, and leaves an older mark for the
    /// next one to tell of.
    pub(crate) fn read(data: &Path) -> Self {
        let path = data.join("running");
        let crashed = std::fs::metadata(&path)
            .and_then(|file| file.modified())
            .ok()
            .map(DateTime::<Utc>::from);
        Self {
            path,
            crashed,
            is_set: AtomicBool::new(false),
        }
    }

    /// When the coordinator before this one was last seen alive, if it crashed.
    pub(crate) fn crashed(&self) -> Option<DateTime<Utc>> {
        self.crashed
    }

    /// Says that the coordinator lives. That it cannot is logged, and costs a notice at most.
    pub(crate) fn touch(&self) {
        self.is_set.store(true, Ordering::Relaxed);
        if let Err(error) = std::fs::write(&self.path, format!("{}\n", std::process::id())) {
            tracing::warn!(error = %error, "cannot write {}", self.path.display());
        }
    }

    /// Takes the mark away: the coordinator ends in order.
    pub(crate) fn remove(&self) {
        if !self.is_set.load(Ordering::Relaxed) {
            return;
        }
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
        let first = Marker::read(folder.path());
        assert_eq!(first.crashed(), None);
        first.touch();
        let after_crash = Marker::read(folder.path());
        let crashed = after_crash.crashed().unwrap();
        assert!((Utc::now() - crashed).num_seconds() < 60);
        after_crash.touch();
        after_crash.remove();
        assert_eq!(Marker::read(folder.path()).crashed(), None);
    }

    #[test]
    fn who_never_led_leaves_no_mark_and_keeps_the_one_that_was_there() {
        let folder = tempfile::tempdir().unwrap();
        // Killed before its first term, or ended in order.
        drop(Marker::read(folder.path()));
        Marker::read(folder.path()).remove();
        assert_eq!(Marker::read(folder.path()).crashed(), None);
        Marker::read(folder.path()).touch();
        Marker::read(folder.path()).remove();
        let next = Marker::read(folder.path());
        assert!(next.crashed().is_some(), "nobody told of that crash yet");
    }
}
