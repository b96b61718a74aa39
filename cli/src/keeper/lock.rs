//! The keeper's lock: one keeper a home, and who it is.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::process::{Identity, Process};

/// How long a keeper that finds the lock held looks again: someone may only be asking who holds it.
const PATIENCE: Duration = Duration::from_secs(1);

/// The lock, held until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock and writes this process's id into it. `None` when another process holds it.
    ///
    /// # Errors
    /// When the file cannot be opened, locked or written.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let mut file = open(path)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Some(Self { _file: file }))
    }
}

/// Finds the process that holds the lock. `None` when nobody does.
///
/// # Errors
/// When the file cannot be read, or its holder does not say who it is.
pub fn holder(path: &Path) -> io::Result<Option<Process>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            // The lock goes with the descriptor, at the end of this function.
            Ok(()) => return Ok(None),
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
        let text = std::fs::read_to_string(path)?;
        let pid = text.strip_suffix('\n').and_then(|text| text.parse().ok());
        if let Some(process) = pid.and_then(Identity::of).and_then(Process::find) {
            return Ok(Some(process));
        }
        // Between taking the lock and writing its number the holder is unknown for an instant.
        if Instant::now() >= deadline {
            let message = format!("{} is locked, but names no living process", path.display());
            return Err(io::Error::other(message));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_known_while_it_holds_and_gone_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keeper.lock");
        assert!(holder(&path).unwrap().is_none(), "nobody ever held it");
        let lock = Lock::take(&path).unwrap().expect("it is free");
        let found = holder(&path).unwrap().expect("it is held");
        assert_eq!(found.pid().cast_unsigned(), std::process::id());
        assert!(Lock::take(&path).unwrap().is_none(), "held once only");
        drop(lock);
        assert!(holder(&path).unwrap().is_none());
        assert!(Lock::take(&path).unwrap().is_some());
    }
}
