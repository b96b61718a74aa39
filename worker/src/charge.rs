//! Which agent is in charge of the shims of a spool.
//!
//! What an agent asks may lie unread in a shim's socket when the agent dies. Its successor finds no
//! trace of it in the segment and says so to the coordinator, which gives the job to somebody else;
//! the shim must not read it then and start. So agents are numbered in a file beside the segments,
//! and a shim takes an assignment only from the agent that the file names, holding a lock on the
//! file until its record stands in the segment. An agent that has taken charge therefore sees every
//! start of its predecessors, and none can follow.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Name of the file.
const FILE: &str = "charge";

/// Takes charge of the shims whose segments are in a folder, and returns this agent's number. `None`
/// while a shim is writing that it takes an assignment.
///
/// # Errors
/// When the file cannot be used.
pub(crate) fn take(folder: &Path) -> io::Result<Option<u64>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(folder.join(FILE))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let number = read(&file)?.unwrap_or(0) + 1;
    // Never shorter than what it replaces, so what is read is never half of either.
    file.write_all_at(format!("{number:020}\n").as_bytes(), 0)?;
    Ok(Some(number))
}

/// The file as a shim sees it.
#[derive(Debug)]
pub(crate) struct Charge {
    path: PathBuf,
    file: Option<Arc<File>>,
}

/// Until it is dropped nobody takes charge.
#[derive(Debug)]
pub(crate) struct Hold(Option<Arc<File>>);

impl Charge {
    /// The file beside a segment.
    pub(crate) fn beside(segment: &Path) -> Self {
        Self {
            path: segment.with_file_name(FILE),
            file: None,
        }
    }

    /// Holds the agent of this number in charge; `None` when another one is or is about to be.
    /// Agents that have no number, 0, are taken at their word.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub(crate) fn hold(&mut self, number: u64) -> io::Result<Option<Hold>> {
        if number == 0 {
            return Ok(Some(Hold(None)));
        }
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => Arc::clone(self.file.insert(Arc::new(File::open(&self.path)?))),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let in_charge = read(&file);
        let hold = Hold(Some(file));
        Ok((in_charge? == Some(number)).then_some(hold))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            // Closing the file would release it too, so this cannot matter.
            let _ = flock(file, FlockOperation::Unlock);
        }
    }
}

fn read(file: &File) -> io::Result<Option<u64>> {
    let mut text = [0; 20];
    let length = file.read_at(&mut text, 0)?;
    let text = std::str::from_utf8(&text[..length]).unwrap_or_default();
    Ok(text.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_agent_in_charge_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let mut charge = Charge::beside(&folder.path().join("1.segment"));
        assert!(charge.hold(1).is_err(), "there is no file");
        assert!(charge.hold(0).unwrap().is_some());
        let first = take(folder.path()).unwrap().unwrap();
        let hold = charge.hold(first).unwrap();
        assert!(hold.is_some());
        assert_eq!(take(folder.path()).unwrap(), None, "a shim is writing");
        drop(hold);
        let second = take(folder.path()).unwrap().unwrap();
        assert!(second > first);
        assert!(charge.hold(first).unwrap().is_none());
        assert!(charge.hold(second).unwrap().is_some());
        // A refusal leaves nothing locked.
        assert!(charge.hold(first).unwrap().is_none());
        assert!(take(folder.path()).unwrap().is_some());
    }
}
