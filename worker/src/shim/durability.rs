//! Makes results durable that the coordinator has not committed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

/// Time that the coordinator has to commit a result before the shim makes it durable itself.
const PATIENCE: Duration = Duration::from_secs(1);

/// Stack of the thread that waits for the disk, in bytes.
const STACK_BYTES: usize = 128 * 1024;

/// Results that stand in the segment but perhaps not on the disk.
#[derive(Debug, Default)]
pub(super) struct Durability {
    /// Attempt and time of its result, oldest first.
    waiting: VecDeque<(i64, Duration)>,
    /// A disk may take seconds; the job's output and limits must not wait for it.
    at_work: Option<JoinHandle<()>>,
    folder_is_durable: bool,
}

impl Durability {
    /// A result was written.
    pub(super) fn written(&mut self, fence: i64, now: Duration) {
        self.waiting.push_back((fence, now));
    }

    /// The coordinator has a result.
    pub(super) fn committed(&mut self, fence: i64) {
        self.waiting.retain(|(waiting, _)| *waiting != fence);
    }

    /// When [`Durability::sync`] has something to do.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let (_, written) = self.waiting.front()?;
        Some(written.saturating_add(PATIENCE))
    }

    /// Makes everything that was written durable, once the oldest result has waited long enough.
    pub(super) fn sync(
        &mut self,
        now: Duration,
        files: impl FnOnce() -> io::Result<(Vec<OwnedFd>, PathBuf)>,
    ) {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        if self
            .at_work
            .as_ref()
            .is_some_and(|work| !work.is_finished())
        {
            // The disk is slow. The results that wait have their turn after the one at work.
            for (_, written) in &mut self.waiting {
                *written = now;
            }
            return;
        }
        self.waiting.clear();
        let with_folder = !std::mem::replace(&mut self.folder_is_durable, true);
        let started = files().and_then(|(files, path)| {
            std::thread::Builder::new()
                .name("sync".into())
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    if let Err(error) = write_out(&files, with_folder.then_some(path)) {
                        note!("a result may not survive a crash: {error}");
                    }
                })
        });
        match started {
            Ok(work) => self.at_work = Some(work),
            Err(error) => note!("cannot sync the segment: {error}"),
        }
    }

    /// Waits for the disk, before the shim ends.
    pub(super) fn finish(self, files: &[OwnedFd]) {
        if let Some(work) = self.at_work {
            let _ = work.join();
        }
        if !self.waiting.is_empty()
            && let Err(error) = write_out(files, None)
        {
            note!("a result may not survive a crash: {error}");
        }
    }
}

fn write_out(files: &[OwnedFd], with_folder_of: Option<PathBuf>) -> io::Result<()> {
    for file in files {
        rustix::fs::fdatasync(file)?;
    }
    if let Some(folder) = with_folder_of.as_deref().and_then(|path| path.parent()) {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_committed_result_is_not_synced() {
        let mut durability = Durability::default();
        durability.written(1, at(0));
        durability.written(2, at(500));
        assert_eq!(durability.deadline(), Some(at(1000)));
        durability.committed(1);
        assert_eq!(durability.deadline(), Some(at(1500)));
        durability.committed(2);
        assert_eq!(durability.deadline(), None);
        durability.sync(at(9000), || panic!("nothing waits"));
    }

    #[test]
    fn an_uncommitted_result_is_synced_with_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("segment");
        std::fs::write(&path, b"result").unwrap();
        let mut durability = Durability::default();
        durability.written(1, at(0));
        durability.sync(at(999), || panic!("too early"));
        durability.sync(at(1000), || {
            Ok((vec![std::fs::File::open(&path)?.into()], path.clone()))
        });
        assert_eq!(durability.deadline(), None);
        let file = std::fs::File::open(&path).unwrap();
        durability.finish(&[file.into()]);
    }
}
