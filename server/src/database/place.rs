//! The data folder as this coordinator's alone.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

/// Longest content of the lock file that is read, in bytes.
const LONGEST: u64 = 256;

/// Why the folder is not ours.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The file cannot be used.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another coordinator has it.
    #[error(
        "another coordinator{} works with the files in {folder}; stop it, or give this one a folder of its own with QCTL_HOME",
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(),
        folder = folder.display()
    )]
    InUse {
        /// The data folder.
        folder: PathBuf,
        /// The other coordinator, if it could be told.
        pid: Option<u32>,
    },
}

/// A locked data folder, with a name that no other folder and no other boot has. Whoever finds the
/// name of its own place in the database while it holds the lock knows that the coordinator which
/// wrote it is over: the kernel gives the lock to nobody before.
#[derive(Debug)]
pub struct Place {
    name: String,
    _lock: File,
}

impl Place {
    /// Locks the folder at once, or says who has it.
    ///
    /// # Errors
    /// When another coordinator has it, or the file in it cannot be used.
    pub fn take(folder: &Path) -> Result<Self, PlaceError> {
        let path = folder.join("coordinator.lock");
        let failed = |source| PlaceError::File {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
        let mut content = String::new();
        // What cannot be read is written anew.
        let _ = (&mut file).take(LONGEST).read_to_string(&mut content);
        let mut lines = content.lines();
        let pid = lines.next().and_then(|line| line.trim().parse().ok());
        match locked {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(PlaceError::InUse {
                    folder: folder.to_owned(),
                    pid,
                });
            }
            Err(error) => return Err(failed(error.into())),
        }
        let id = lines.next().and_then(|line| Uuid::parse_str(line).ok());
        let id = id.unwrap_or_else(Uuid::new_v4);
        file.rewind()
            .and_then(|()| file.set_len(0))
            .and_then(|()| writeln!(file, "{}\n{id}", std::process::id()))
            .map_err(failed)?;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(failed)?;
        Ok(Self {
            name: format!("{id}/{}", boot.trim()),
            _lock: file,
        })
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_coordinator_and_always_the_same_name() {
        let folder = tempfile::tempdir().unwrap();
        let first = Place::take(folder.path()).unwrap();
        let name = first.name().to_owned();
        let error = Place::take(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(first);
        assert_eq!(Place::take(folder.path()).unwrap().name(), name);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(Place::take(other.path()).unwrap().name(), name);
    }
}
