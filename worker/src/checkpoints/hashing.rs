//! Hashes published checkpoints in a thread of its own, off the path of the jobs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};

use qctl_checkpoint::{DamageError, verify};
use qctl_worker_core::agent::Event;
use tokio::sync::mpsc;

use super::{Told, desk, spawn};
use crate::chain;

/// Starts the thread. It hashes the checkpoints in the folders that it is given, records the hash
/// beside each, and tells it.
pub(super) fn start(told: mpsc::UnboundedSender<Told>) -> io::Result<Sender<PathBuf>> {
    let (sender, folders) = channel::<PathBuf>();
    spawn("hashing", move || {
        for folder in folders {
            match hash(&folder) {
                Ok(Some(event)) => {
                    // The agent is ending when nobody listens; the next one finds the same.
                    let _ = told.send(Told::Event(event));
                }
                Ok(None) => {}
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

/// Hashes one. `None` when it is gone or has been hashed.
fn hash(folder: &Path) -> Result<Option<Event>, HashError> {
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
    Ok(Some(Event::Published(vec![desk::describe(&on_disk)])))
}
