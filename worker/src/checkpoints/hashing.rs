//! Hashes published checkpoints in a thread of its own, off the path of the jobs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use qctl_checkpoint::{DamageError, verify};
use qctl_worker_core::agent::Event;
use qctl_worker_core::checkpoint::Published;
use tokio::sync::mpsc;

use super::announced::Announced;
use super::{Told, desk, spawn};
use crate::chain;

/// How often one that cannot be read or recorded is tried, and the pause between.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// Starts the thread. It hashes the checkpoints in the folders that it is given, records the hash
/// beside each, and tells it.
pub(super) fn start(
    announced: Announced,
    told: mpsc::UnboundedSender<Told>,
) -> io::Result<Sender<PathBuf>> {
    let (sender, folders) = channel::<PathBuf>();
    spawn("hashing", move || {
        for folder in folders {
            match persistently(&folder) {
                Ok(Some(published)) if announced.is_news(&published) => {
                    // The agent is ending when nobody listens; the next one finds the same.
                    let _ = told.send(Told::Event(Event::Published(vec![published])));
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(
                    "{} could not be hashed: {}",
                    folder.display(),
                    chain(&error)
                ),
            }
        }
    })?;
    Ok(sender)
}

#[derive(Debug, thiserror::Error)]
enum HashError {
    #[error("its contents are not what was published")]
    Damage(#[from] DamageError),
    #[error("its hash cannot be recorded")]
    Record(#[from] io::Error),
}

impl HashError {
    /// Nothing else will be found a moment later.
    fn is_final(&self) -> bool {
        matches!(self, Self::Damage(error) if error.is_proof())
    }
}

fn persistently(folder: &Path) -> Result<Option<Published>, HashError> {
    let mut tried = 1;
    loop {
        match hash(folder) {
            Err(error) if tried < TRIES && !error.is_final() => {
                tried += 1;
                std::thread::sleep(PAUSE);
            }
            hashed => return hashed,
        }
    }
}

/// Hashes one. `None` when it is gone or has been hashed.
fn hash(folder: &Path) -> Result<Option<Published>, HashError> {
    let Ok(on_disk) = qctl_checkpoint::open(folder) else {
        return Ok(None);
    };
    if on_disk.hash().is_some() || !on_disk.has_files() {
        return Ok(None);
    }
    let (files, entries) = (on_disk.files(), &on_disk.manifest.entries);
    let is_wanted = || files.exists();
    let hash = match verify(&files, entries, None, &is_wanted) {
        Err(_) if !is_wanted() => return Ok(None),
        hash => hash?,
    };
    on_disk.record_hash(hash)?;
    Ok(Some(desk::describe(&on_disk)))
}
