//! Notices in files: what a program has to tell when there is no database to put it into, or none
//! any more. The name of a file is what the notice is about, so that the same thing is told once.
//! What became of it at each channel stands in it: marked before it is sent, and marked with what
//! became of it afterwards. Of several programs on a machine one sends at a time.
//!
//! Whose they are: a coordinator says in the folder that it takes what lies there; elsewhere the
//! worker hands what is not about the coordinator to its coordinator. Either way a notice keeps its
//! key, so that whoever brings it brings it once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::channel::{ASK_AFTER, Channel, Message, Outcome, Settled, Severity, ask_again, wait};
use crate::settings::{Settings, Telling};
use crate::words::{Facts, Words};

/// Most files; what happens beyond that is logged only.
const MOST: usize = 500;
/// Ending of a notice's file.
const ENDING: &str = "notice";
/// The file of a coordinator that takes what lies in its folder.
const TAKER: &str = "coordinator";
/// A coordinator that has not said so for longer is gone, or leads no more.
const TAKER_LIVES: Duration = Duration::from_secs(30);
/// Stands for the coordinator among the channels that a notice was tried by.
const COORDINATOR: &str = "coordinator";
/// Between two tries to hand the same notice over.
const HAND_OVER_AGAIN: TimeDelta = TimeDelta::seconds(10);

/// A notice that waits in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Filed {
    /// What kind of thing happened, as the catalogue knows it.
    pub class: String,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about, such as `database` or `program qctl-worker`.
    pub subject: String,
    /// Tells apart what may go wrong with the same subject; may be empty.
    pub signature: String,
    /// What it says.
    pub facts: Facts,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// What became of it at each channel that it was tried by, and at the coordinator.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub deliveries: BTreeMap<String, FiledDelivery>,
}

impl Filed {
    /// True when a person was told, as far as anybody knows.
    pub fn was_told(&self) -> bool {
        self.deliveries
            .values()
            .any(|one| matches!(one.fate, FiledFate::Sent | FiledFate::Unknown))
    }

    /// True when a coordinator was given this and has not answered: it may have told it.
    pub fn is_offered(&self) -> bool {
        self.deliveries
            .get(COORDINATOR)
            .is_some_and(|one| one.fate == FiledFate::Sending)
    }

    /// What became of it at each channel that it was tried by.
    pub fn channels(&self) -> impl Iterator<Item = (&str, &FiledDelivery)> {
        self.deliveries
            .iter()
            .map(|(name, one)| (name.as_str(), one))
            .filter(|(name, _)| *name != COORDINATOR)
    }

    /// True when the coordinator is to be given this: nobody was told of it from here, and nobody is
    /// to be asked about that.
    fn is_to_hand_over(&self, now: DateTime<Utc>) -> bool {
        let is_tried = self.deliveries.get(COORDINATOR);
        is_tried.is_none_or(|one| one.next_at <= now)
            && !self.was_told()
            && self
                .channels()
                .all(|(_, one)| one.fate != FiledFate::Sending)
    }

    /// True when none of these channels is still to be tried or asked.
    pub fn is_settled(&self, channels: &[Arc<dyn Channel>]) -> bool {
        channels.iter().all(|channel| {
            self.deliveries
                .get(channel.name())
                .is_some_and(|one| !matches!(one.fate, FiledFate::Pending | FiledFate::Sending))
        })
    }
}

/// What became of a notice at one channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FiledDelivery {
    /// How far it is.
    pub fate: FiledFate,
    /// How often it was tried.
    pub tries: i32,
    /// It is not tried, or asked about, before this time.
    pub next_at: DateTime<Utc>,
    /// When the latest try began.
    pub tried_at: DateTime<Utc>,
    /// How many messages the channel still took before that.
    pub left_before: Option<i64>,
    /// What the channel said, or what went wrong.
    pub detail: String,
    /// Names an urgent message that the channel repeats until a person acknowledges it.
    pub receipt: Option<String>,
}

impl FiledDelivery {
    /// Nothing is known but how far it is.
    fn at(fate: FiledFate, now: DateTime<Utc>) -> Self {
        Self {
            fate,
            tries: 0,
            next_at: now,
            tried_at: now,
            left_before: None,
            detail: String::new(),
            receipt: None,
        }
    }
}

/// How far a notice is at a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FiledFate {
    /// It is to be sent, perhaps again.
    Pending,
    /// It is being sent, or that was cut off.
    Sending,
    /// It was sent.
    Sent,
    /// The channel refused it.
    Rejected,
    /// Nobody knows whether it was sent.
    Unknown,
    /// It is milder than what people want to be told.
    Withheld,
}

impl FiledFate {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sending => "sending",
            Self::Sent => "sent",
            Self::Rejected => "rejected",
            Self::Unknown => "unknown",
            Self::Withheld => "withheld",
        }
    }
}

/// What became of a notice that was given to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandedOver {
    /// It is in the history, and told from there.
    Taken,
    /// It is not, for this reason.
    NotTaken(String),
    /// Nobody knows, for this reason.
    Unknown(String),
}

/// A folder of notices in files.
#[derive(Clone, Debug)]
pub struct Outbox {
    folder: PathBuf,
}

/// The right to send, to move and to remove what lies in an outbox; one program has it at a time,
/// until this is dropped.
#[derive(Debug)]
pub struct Turn {
    _file: File,
}

/// A notice in a file.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The notice.
    pub filed: Filed,
    /// The same for every look at this file, and what the message that tells it is called.
    pub key: String,
    path: PathBuf,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} about {}", self.filed.class, self.filed.subject)
    }
}

impl Outbox {
    /// The outbox of an installation: a folder in that of its data.
    pub fn of(data: &Path) -> Self {
        Self {
            folder: data.join("outbox"),
        }
    }

    /// Files a notice, unless one about the same thing lies there. Returns whether it did. Blocks
    /// for as long as the disk takes.
    ///
    /// # Errors
    /// When the file cannot be written, or too many lie there.
    pub fn put(&self, filed: &Filed) -> io::Result<bool> {
        std::fs::create_dir_all(&self.folder)?;
        let stem = stem(filed);
        let path = self.folder.join(format!("{stem}.{ENDING}"));
        if path.exists() {
            return Ok(false);
        }
        if std::fs::read_dir(&self.folder)?.count() >= MOST {
            return Err(io::Error::other(format!(
                "{MOST} notices wait in {} already",
                self.folder.display()
            )));
        }
        let draft = self
            .folder
            .join(format!("{stem}.draft-{}", std::process::id()));
        std::fs::write(&draft, serde_json::to_vec(filed)?)?;
        // Of several that file the same thing, one is first.
        let placed = std::fs::hard_link(&draft, &path);
        let _ = std::fs::remove_file(&draft);
        match placed {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Every notice that lies there, oldest first.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn entries(&self) -> io::Result<Vec<Entry>> {
        let listing = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listing => listing?,
        };
        let mut entries = Vec::new();
        for file in listing {
            let path = file?.path();
            if path.extension().and_then(|ending| ending.to_str()) != Some(ENDING) {
                continue;
            }
            // Another program may have removed it since, and a torn one tells nobody anything.
            let Ok(text) = std::fs::read(&path) else {
                continue;
            };
            let Ok(filed) = serde_json::from_slice::<Filed>(&text) else {
                tracing::warn!("{} is no notice and is removed", path.display());
                let _ = std::fs::remove_file(&path);
                continue;
            };
            let key = format!("{}-{}", stem(&filed), filed.at.timestamp_micros());
            entries.push(Entry { filed, key, path });
        }
        entries.sort_by_key(|entry| entry.filed.at);
        Ok(entries)
    }

    /// The right to send, unless another program has it.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn turn(&self) -> io::Result<Option<Turn>> {
        std::fs::create_dir_all(&self.folder)?;
        let file = File::create(self.folder.join("sender.lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Turn { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Removes a notice that is kept elsewhere from now on, or is over.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove(&self, _: &Turn, entry: &Entry) -> io::Result<()> {
        match std::fs::remove_file(&entry.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Says that a coordinator takes what lies here. To be said again every ten seconds or so.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn take(&self) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        std::fs::write(self.folder.join(TAKER), "")
    }

    /// True while a coordinator takes what lies here.
    pub fn is_taken(&self) -> bool {
        let said = std::fs::metadata(self.folder.join(TAKER)).and_then(|file| file.modified());
        // A clock that was set back since says nothing about the coordinator.
        said.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < TAKER_LIVES))
    }

    /// Hands these notices to a coordinator elsewhere, unless another program is sending. What is
    /// taken is removed. What may have been taken is not sent from here any more, but handed over
    /// again, under the same key, until the coordinator has answered.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub async fn hand_over(
        &self,
        now: DateTime<Utc>,
        which: impl Fn(&Filed) -> bool,
        to_coordinator: impl AsyncFn(&Entry) -> HandedOver,
    ) -> io::Result<()> {
        let is_due = |entry: &Entry| which(&entry.filed) && entry.filed.is_to_hand_over(now);
        if !self.entries()?.iter().any(is_due) {
            return Ok(());
        }
        let Some(turn) = self.turn()? else {
            return Ok(());
        };
        for mut entry in self.entries()?.into_iter().filter(is_due) {
            let before = entry.filed.deliveries.get(COORDINATOR);
            let begun = FiledDelivery {
                tries: before.map_or(0, |one| one.tries).saturating_add(1),
                next_at: now + HAND_OVER_AGAIN,
                ..FiledDelivery::at(FiledFate::Sending, now)
            };
            // What was given away once may have been taken whatever becomes of this try.
            let otherwise = match entry.filed.is_offered() {
                true => FiledFate::Sending,
                false => FiledFate::Pending,
            };
            if !entry.note(COORDINATOR, begun.clone()) {
                // What is not marked may be told from here as well.
                continue;
            }
            let (fate, detail) = match to_coordinator(&entry).await {
                HandedOver::Taken => {
                    self.remove(&turn, &entry)?;
                    continue;
                }
                HandedOver::NotTaken(why) => (otherwise, why),
                HandedOver::Unknown(why) => (FiledFate::Sending, why),
            };
            tracing::debug!("{entry} waits for the coordinator: {detail}");
            let ended = FiledDelivery {
                fate,
                detail,
                ..begun
            };
            entry.note(COORDINATOR, ended);
        }
        Ok(())
    }

    /// Sends what is due of these notices by the channels, without any database, unless another
    /// program is sending: by the settings' rules, so that what is too mild is settled without being
    /// sent, and what is not urgent waits for the end of the quiet hours. One whose fate at a channel
    /// is not known is never sent there again; what a channel refuses for now is tried again by a
    /// later call.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub async fn send(
        &self,
        settings: &Settings,
        words: &Words,
        now: DateTime<Utc>,
        which: impl Fn(&Filed) -> bool,
    ) -> io::Result<()> {
        let channels = &settings.channels[..];
        let telling = |entry: &Entry| settings.telling(entry.filed.severity, now);
        let is_due = |entry: &Entry| {
            let filed = &entry.filed;
            which(filed)
                && !filed.is_offered()
                && !filed.is_settled(channels)
                && (entry.is_open() || telling(entry) != Telling::Later)
        };
        if channels.is_empty() || !self.entries()?.iter().any(is_due) {
            return Ok(());
        }
        let Some(turn) = self.turn()? else {
            return Ok(());
        };
        let mut busy = self.settle(&turn, channels, now).await?;
        for mut entry in self.entries()?.into_iter().filter(is_due) {
            match telling(&entry) {
                Telling::Now => {}
                Telling::Later => continue,
                Telling::Never => {
                    entry.withhold(channels, now);
                    continue;
                }
            }
            for channel in channels {
                // A counter tells what became of a message only while nothing else is sent.
                if !busy.contains(channel.name()) && !entry.send(&**channel, words, now).await {
                    busy.insert(channel.name());
                }
            }
        }
        Ok(())
    }

    /// Asks the channels about messages whose sending was cut off. Returns the channels that cannot
    /// tell yet.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub async fn settle(
        &self,
        _: &Turn,
        channels: &[Arc<dyn Channel>],
        now: DateTime<Utc>,
    ) -> io::Result<BTreeSet<&'static str>> {
        let mut busy = BTreeSet::new();
        for mut entry in self.entries()? {
            for channel in channels {
                if !entry.settle(&**channel, now).await {
                    busy.insert(channel.name());
                }
            }
        }
        Ok(busy)
    }
}

impl Entry {
    /// True while a channel is to be asked what became of this.
    pub fn is_open(&self) -> bool {
        let mut channels = self.filed.channels();
        channels.any(|(_, one)| one.fate == FiledFate::Sending)
    }

    /// Settles this, without sending it, at the channels that have not been tried.
    fn withhold(&mut self, channels: &[Arc<dyn Channel>], now: DateTime<Utc>) {
        for channel in channels {
            let before = self.filed.deliveries.get(channel.name());
            if before.is_none_or(|one| one.fate == FiledFate::Pending) {
                let withheld = FiledDelivery::at(FiledFate::Withheld, now);
                self.note(channel.name(), withheld);
            }
        }
    }

    /// Sends this by a channel if that is due. Returns false when nobody knows what became of it.
    async fn send(&mut self, channel: &dyn Channel, words: &Words, now: DateTime<Utc>) -> bool {
        let name = channel.name();
        let before = self.filed.deliveries.get(name);
        if before.is_some_and(|one| one.fate != FiledFate::Pending || one.next_at > now) {
            return true;
        }
        let tries = before.map_or(0, |one| one.tries);
        let begun = FiledDelivery {
            tries: tries.saturating_add(1),
            next_at: now + ASK_AFTER,
            left_before: channel.left().await,
            ..FiledDelivery::at(FiledFate::Sending, now)
        };
        if !self.note(name, begun.clone()) {
            // What is not marked may be sent twice.
            return true;
        }
        let text = words.notice(&self.filed.class, &self.filed.facts, now);
        let message = Message {
            id: self.key.clone(),
            class: self.filed.class.clone(),
            severity: self.filed.severity,
            title: text.title,
            body: text.body,
            url: String::new(),
            url_title: String::new(),
            time: self.filed.at,
        };
        crate::panics::provoked("before-send-file");
        let outcome = channel.send(&message).await;
        crate::panics::provoked("after-send-file");
        let ended = match outcome {
            Outcome::Accepted { receipt } => FiledDelivery {
                fate: FiledFate::Sent,
                receipt,
                ..begun
            },
            Outcome::Refused(why) => {
                tracing::error!("{name} refuses a notice: {why}");
                FiledDelivery {
                    fate: FiledFate::Rejected,
                    detail: why,
                    ..begun
                }
            }
            Outcome::NotNow { why, after } => FiledDelivery {
                fate: FiledFate::Pending,
                next_at: now + wait(tries, after),
                detail: why,
                ..begun
            },
            Outcome::Unknown(why) => FiledDelivery {
                detail: why,
                ..begun
            },
        };
        let fate = ended.fate;
        tracing::info!(
            class = self.filed.class,
            "{self}: {} by {name}",
            fate.as_str()
        );
        self.note(name, ended);
        fate != FiledFate::Sending
    }

    /// Asks a channel what became of this, if that is open. Returns false when it cannot tell yet.
    async fn settle(&mut self, channel: &dyn Channel, now: DateTime<Utc>) -> bool {
        let open = self
            .filed
            .deliveries
            .get(channel.name())
            .filter(|one| one.fate == FiledFate::Sending);
        let Some(open) = open.cloned() else {
            return true;
        };
        if open.next_at > now {
            return false;
        }
        let fate = match channel.settle(open.left_before).await {
            Settled::Sent => FiledFate::Sent,
            Settled::NotSent => FiledFate::Pending,
            Settled::Unknown => FiledFate::Unknown,
            Settled::AskAgain => match ask_again(now - open.tried_at) {
                Some(wait) => {
                    let next_at = now + wait;
                    self.note(channel.name(), FiledDelivery { next_at, ..open });
                    return false;
                }
                None => FiledFate::Unknown,
            },
        };
        tracing::info!(
            class = self.filed.class,
            "{self}: {} by {} after its answer was lost",
            fate.as_str(),
            channel.name()
        );
        self.note(channel.name(), FiledDelivery { fate, ..open });
        true
    }

    /// Writes down how far this is at a channel. Returns whether it is written.
    fn note(&mut self, channel: &str, delivery: FiledDelivery) -> bool {
        self.filed.deliveries.insert(channel.to_owned(), delivery);
        let written = || -> io::Result<()> {
            let draft = self.path.with_extension("rewritten");
            std::fs::write(&draft, serde_json::to_vec(&self.filed)?)?;
            std::fs::rename(&draft, &self.path)
        };
        written()
            .inspect_err(|error| tracing::error!(error = %error, "{self} cannot be marked"))
            .is_ok()
    }
}

fn stem(filed: &Filed) -> String {
    let mut digest = Sha256::new();
    for part in [&filed.subject, &filed.class, &filed.signature] {
        digest.update(part.as_bytes());
        digest.update([0]);
    }
    let digest = digest.finalize();
    digest[..12]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests;
