//! Postgres processes that an earlier coordinator left in the cluster.
//!
//! Two sets of processes on one cluster corrupt it. So every process that works in the cluster's
//! folder is stopped first, and only then the files that claim the cluster are removed; a process
//! number in `postmaster.pid` proves nothing, for a zombie and a stranger can bear it too.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::EmbeddedError;
use super::layout::Layout;

/// The stop ladder: fast shutdown, immediate shutdown, force; and how long each may take.
const LADDER: [(Signal, Duration); 3] = [
    (Signal::INT, Duration::from_secs(10)),
    (Signal::QUIT, Duration::from_secs(5)),
    (Signal::KILL, Duration::from_secs(5)),
];

/// Stops what is left of earlier runs, then removes the files that would keep a new one from
/// starting.
pub(super) fn clear(layout: &Layout) -> Result<(), EmbeddedError> {
    stop_in(&layout.draft)?;
    stop_in(&layout.cluster)?;
    for file in [layout.pid_file(), layout.socket_lock(), layout.socket()] {
        match std::fs::remove_file(&file) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(EmbeddedError::Folder { path: file, source });
            }
            _ => {}
        }
    }
    Ok(())
}

fn stop_in(folder: &Path) -> Result<(), EmbeddedError> {
    for (signal, patience) in LADDER {
        let deadline = Instant::now() + patience;
        let mut left = in_folder(folder);
        if left.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            count = left.len(),
            "stopping Postgres processes that an earlier coordinator left in {}",
            folder.display()
        );
        for (_, process) in &left {
            // One that has ended since cannot be signalled, which is what was wanted.
            let _ = pidfd_send_signal(process, signal);
        }
        while Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
            left = in_folder(folder);
            if left.is_empty() {
                return Ok(());
            }
        }
    }
    let left = in_folder(folder);
    if left.is_empty() {
        return Ok(());
    }
    Err(EmbeddedError::Unkillable {
        folder: folder.to_owned(),
        pids: left.into_iter().map(|(pid, _)| pid).collect(),
    })
}

/// Live Postgres processes whose working directory is this folder. Zombies have none.
fn in_folder(folder: &Path) -> Vec<(i32, OwnedFd)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let raw: i32 = entry.file_name().to_str()?.parse().ok()?;
            works_in(&entry.path(), folder).then_some(())?;
            // The number may have passed to a stranger before the handle was opened: look again.
            let handle = pidfd_open(Pid::from_raw(raw)?, PidfdFlags::empty()).ok()?;
            works_in(&entry.path(), folder).then_some((raw, handle))
        })
        .collect()
}

fn works_in(process: &Path, folder: &Path) -> bool {
    let is_here = std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == folder);
    is_here
        && std::fs::read_link(process.join("exe")).is_ok_and(|exe| {
            let name = exe.file_name().unwrap_or_default().to_string_lossy();
            // The kernel adds this to the name of a program that was upgraded under it.
            name.strip_suffix(" (deleted)").unwrap_or(&name) == "postgres"
        })
}
