//! Notices in files: what a program has to tell when there is no database to put it into, or none
//! any more. The name of a file is what the notice is about, so that the same thing is told once;
//! its ending is how far it is, and only a rename changes that, so that of several programs on a
//! machine one takes it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::channel::{Channel, Message, Outcome, Settled, Severity};
use crate::words::{Facts, Words};

/// Most files; what happens beyond that is logged only.
const MOST: usize = 500;
/// Wait before the counter of messages is read after an answer was lost.
const SETTLE_AFTER: Duration = Duration::from_secs(5);

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
    /// Names of urgent messages that channels repeat until a person acknowledges them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub receipts: BTreeMap<String, String>,
}

/// How far a notice in a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nobody has taken it.
    New,
    /// A program is sending it, or died while it did.
    Sending,
    /// It was sent.
    Sent,
    /// A channel refused it.
    Rejected,
    /// Nobody knows whether it was sent.
    Unknown,
}

impl Stage {
    const ALL: [Self; 5] = [
        Self::New,
        Self::Sending,
        Self::Sent,
        Self::Rejected,
        Self::Unknown,
    ];

    fn ending(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Sending => "sending",
            Self::Sent => "sent",
            Self::Rejected => "rejected",
            Self::Unknown => "unknown",
        }
    }
}

/// A folder of notices in files.
#[derive(Clone, Debug)]
pub struct Outbox {
    folder: PathBuf,
}

/// A notice in a file.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The notice.
    pub filed: Filed,
    /// How far it is.
    pub stage: Stage,
    /// The same for every look at this file.
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
        if Stage::ALL
            .iter()
            .any(|stage| self.path(&stem, *stage).exists())
        {
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
        let text = serde_json::to_vec(filed).map_err(io::Error::other)?;
        std::fs::write(&draft, text)?;
        std::fs::rename(&draft, self.path(&stem, Stage::New))?;
        Ok(true)
    }

    /// Forgets a notice about this, so that it is told when it happens again. Returns how far it
    /// was.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn forget(&self, filed: &Filed) -> io::Result<Option<Stage>> {
        let stem = stem(filed);
        for stage in Stage::ALL {
            match std::fs::remove_file(self.path(&stem, stage)) {
                Ok(()) => return Ok(Some(stage)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
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
            let ending = path.extension().and_then(|ending| ending.to_str());
            let Some(stage) = Stage::ALL
                .into_iter()
                .find(|stage| Some(stage.ending()) == ending)
            else {
                continue;
            };
            // Another program may have taken it since, and a torn one tells nobody anything.
            let Ok(text) = std::fs::read(&path) else {
                continue;
            };
            let Ok(filed) = serde_json::from_slice::<Filed>(&text) else {
                tracing::warn!("{} is no notice and is removed", path.display());
                let _ = std::fs::remove_file(&path);
                continue;
            };
            let key = format!("{}-{}", stem(&filed), filed.at.timestamp_micros());
            entries.push(Entry {
                filed,
                stage,
                key,
                path,
            });
        }
        entries.sort_by_key(|entry| entry.filed.at);
        Ok(entries)
    }

    /// Moves a notice on. Returns false when another program was faster.
    pub fn advance(&self, entry: &mut Entry, stage: Stage) -> bool {
        let to = entry.path.with_extension(stage.ending());
        if std::fs::rename(&entry.path, &to).is_err() {
            return false;
        }
        entry.path = to;
        entry.stage = stage;
        true
    }

    /// Removes a notice that is kept elsewhere from now on.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove(&self, entry: &Entry) -> io::Result<()> {
        match std::fs::remove_file(&entry.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Sends a notice by the channels, without any database. One whose fate is not known is never
    /// sent again. What every channel refuses for now stays as it is, for a later try.
    pub async fn send(
        &self,
        mut entry: Entry,
        channels: &[std::sync::Arc<dyn Channel>],
        words: &Words,
        now: DateTime<Utc>,
    ) {
        if channels.is_empty() || !self.advance(&mut entry, Stage::Sending) {
            return;
        }
        let text = words.notice(&entry.filed.class, &entry.filed.facts, now);
        let message = Message {
            id: entry.key.clone(),
            class: entry.filed.class.clone(),
            severity: entry.filed.severity,
            title: text.title,
            body: text.body,
            url: String::new(),
            url_title: String::new(),
            time: entry.filed.at,
        };
        let mut stage = None;
        for channel in channels {
            let (fate, receipt) = by(&**channel, &message).await;
            if let Some(receipt) = receipt {
                entry
                    .filed
                    .receipts
                    .insert(channel.name().to_owned(), receipt);
            }
            tracing::info!(
                class = entry.filed.class,
                "{entry}: {} by {}",
                fate.map_or("not taken", Stage::ending),
                channel.name()
            );
            // The best that any channel did is what is remembered.
            stage = match (stage, fate) {
                (Some(Stage::Sent), _) | (_, Some(Stage::Sent)) => Some(Stage::Sent),
                (Some(Stage::Unknown), _) | (_, Some(Stage::Unknown)) => Some(Stage::Unknown),
                (_, None) => stage,
                (_, fate) => fate,
            };
        }
        if !entry.filed.receipts.is_empty()
            && let Err(error) = rewrite(&entry)
        {
            tracing::warn!(error = %error, "{entry}: its repetition cannot be ended from here");
        }
        self.advance(&mut entry, stage.unwrap_or(Stage::New));
    }

    fn path(&self, stem: &str, stage: Stage) -> PathBuf {
        self.folder.join(format!("{stem}.{}", stage.ending()))
    }
}

/// Writes what is known of a notice into its file.
fn rewrite(entry: &Entry) -> io::Result<()> {
    let draft = entry.path.with_extension("rewritten");
    std::fs::write(&draft, serde_json::to_vec(&entry.filed)?)?;
    std::fs::rename(&draft, &entry.path)
}

/// Sends a message by one channel. No stage when it may be tried again; with the receipt of one
/// that is repeated until a person acknowledges it.
async fn by(channel: &dyn Channel, message: &Message) -> (Option<Stage>, Option<String>) {
    let before = channel.left().await;
    let stage = match channel.send(message).await {
        Outcome::Accepted { receipt } => return (Some(Stage::Sent), receipt),
        Outcome::Refused(why) => {
            tracing::error!("{} refuses a notice: {why}", channel.name());
            Some(Stage::Rejected)
        }
        Outcome::NotNow { .. } => None,
        Outcome::Unknown(_) => {
            tokio::time::sleep(SETTLE_AFTER).await;
            match channel.settle(before).await {
                Settled::Sent => Some(Stage::Sent),
                Settled::NotSent => None,
                Settled::Unknown | Settled::AskAgain => Some(Stage::Unknown),
            }
        }
    };
    (stage, None)
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
mod tests {
    use super::*;

    fn filed(signature: &str) -> Filed {
        Filed {
            class: "panic".into(),
            severity: Severity::Error,
            subject: "program".into(),
            signature: signature.into(),
            facts: Facts::new(),
            at: DateTime::UNIX_EPOCH,
            receipts: BTreeMap::new(),
        }
    }

    #[test]
    fn the_same_thing_is_filed_once_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::of(folder.path());
        assert!(outbox.entries().unwrap().is_empty());
        assert!(outbox.put(&filed("a")).unwrap());
        assert!(!outbox.put(&filed("a")).unwrap());
        assert!(outbox.put(&filed("b")).unwrap());
        let mut first = outbox.entries().unwrap().remove(0);
        let mut again = first.clone();
        assert!(outbox.advance(&mut first, Stage::Sending));
        assert!(!outbox.advance(&mut again, Stage::Sending), "taken already");
        assert!(outbox.advance(&mut first, Stage::Sent));
        assert!(!outbox.put(&first.filed).unwrap(), "it was told");
        assert_eq!(outbox.forget(&first.filed).unwrap(), Some(Stage::Sent));
        assert!(outbox.put(&first.filed).unwrap());
    }

    #[test]
    fn a_torn_file_harms_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::of(folder.path());
        outbox.put(&filed("a")).unwrap();
        let path = outbox.entries().unwrap()[0].path.clone();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(outbox.entries().unwrap().is_empty());
        }
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(outbox.entries().unwrap().len(), 1);
    }
}
