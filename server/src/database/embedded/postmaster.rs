//! The thread that makes the cluster, runs Postgres, waits for it and starts it again.
//!
//! The kernel sends the death signal when the *thread* that started a process ends, so this thread
//! lives exactly as long as Postgres is wanted. It blocks in `wait`; others reach Postgres through
//! a process descriptor, which can never point at a stranger.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::watch;

use super::EmbeddedError;
use super::account;
use super::binaries::Binaries;
use super::layout::{Layout, PORT};
use super::{ROLE, orphans};
use crate::accounts::Account;

/// First and longest wait before Postgres is started again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// A run this long is a healthy one: the next death waits the first back-off again.
const HEALTHY: Duration = Duration::from_secs(60);

/// Settings of a small private cluster. Durability stays at its safe defaults.
const SETTINGS: &[&str] = &[
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "max_connections=40",
    "shared_buffers=24MB",
    "huge_pages=off",
    "jit=off",
    "wal_level=minimal",
    "max_wal_senders=0",
    "min_wal_size=32MB",
    "max_wal_size=512MB",
    "max_worker_processes=2",
    "max_parallel_workers=0",
    "max_parallel_workers_per_gather=0",
    "max_parallel_maintenance_workers=0",
    "max_logical_replication_workers=0",
    "autovacuum=on",
    "autovacuum_max_workers=1",
    "timezone=UTC",
    "log_timezone=UTC",
    "log_checkpoints=off",
    "log_min_messages=warning",
    "log_line_prefix=%m [%p] ",
];

/// What the thread does.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// Makes the cluster, clears away what is left of an earlier run.
    Preparing,
    /// Postgres runs as this process; it need not be ready.
    Running(i32),
    /// It ended, or could not be started; the thread starts it again.
    Down(Arc<EmbeddedError>),
    /// The thread has ended: it was told to, or the first start failed.
    Over(Option<Arc<EmbeddedError>>),
}

/// Everything the thread needs to know.
pub(super) struct Plan {
    pub(super) layout: Layout,
    pub(super) binaries: Binaries,
    pub(super) account: Option<Account>,
}

/// What the thread and those who stop it share.
#[derive(Default)]
pub(super) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stopping: bool,
    process: Option<OwnedFd>,
}

impl Control {
    /// Ends Postgres in this way and keeps the thread from starting it again.
    pub(super) fn stop(&self, how: Signal) {
        let mut state = self.lock();
        state.stopping = true;
        state.signal(how);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the process; one that was started while a stop was asked for is stopped at once.
    fn started(&self, process: OwnedFd) {
        let mut state = self.lock();
        state.process = Some(process);
        if state.stopping {
            state.signal(Signal::INT);
        }
    }

    /// Waits; true when Postgres shall be started again.
    fn wait(&self, back_off: Duration) -> bool {
        let state = self.lock();
        let (state, _) = self
            .changed
            .wait_timeout_while(state, back_off, |state| !state.stopping)
            .unwrap_or_else(PoisonError::into_inner);
        !state.stopping
    }
}

impl State {
    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            // A process that is gone needs no signal.
            let _ = pidfd_send_signal(process, signal);
        }
    }
}

/// The thread. Returns once Postgres is not wanted any more, or why its first start failed.
pub(super) fn supervise(
    plan: &Plan,
    control: &Control,
    phase: &watch::Sender<Phase>,
) -> Option<Arc<EmbeddedError>> {
    let mut back_off = BACK_OFF.0;
    let mut first = true;
    loop {
        let began = Instant::now();
        let error = match start(plan) {
            Ok(mut child) => {
                phase.send_replace(Phase::Running(child.id().cast_signed()));
                match wait(&mut child, control) {
                    Ok(status) => EmbeddedError::Ended {
                        status,
                        log: last_lines(&plan.layout.log),
                    },
                    Err(source) => EmbeddedError::Spawn {
                        program: plan.binaries.postgres(),
                        source,
                    },
                }
            }
            Err(error) if first => return Some(Arc::new(error)),
            Err(error) => error,
        };
        first = false;
        if began.elapsed() >= HEALTHY {
            back_off = BACK_OFF.0;
        }
        // Announced before the wait, so that a first start that fails is not waited for.
        let error = Arc::new(error);
        if !control.lock().stopping {
            tracing::error!(
                error = &*error as &dyn std::error::Error,
                "the embedded Postgres is down; starting it again in {back_off:?}"
            );
            phase.send_replace(Phase::Down(error));
        }
        if !control.wait(back_off) {
            return None;
        }
        back_off = (back_off * 2).min(BACK_OFF.1);
    }
}

fn wait(child: &mut Child, control: &Control) -> io::Result<ExitStatus> {
    let pid = Pid::from_child(child);
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => control.started(process),
        Err(error) => {
            // Without a descriptor nobody could stop it.
            child.kill()?;
            child.wait()?;
            return Err(error.into());
        }
    }
    let status = child.wait();
    control.lock().process = None;
    status
}

fn start(plan: &Plan) -> Result<Child, EmbeddedError> {
    let layout = &plan.layout;
    orphans::clear(layout)?;
    layout.prepare_run_folder(plan.account.as_ref())?;
    if !layout.cluster.exists() {
        make_cluster(plan)?;
    }
    trim_log(&layout.log);
    let log = open_log(&layout.log)?;
    let mut command = command(
        plan,
        &plan.binaries.postgres(),
        &layout.cluster,
        Signal::INT,
    );
    command.arg("-D").arg(&layout.cluster);
    command.arg("-p").arg(PORT.to_string());
    command.arg("-k").arg(quoted(&layout.run));
    for setting in SETTINGS {
        command.arg("-c").arg(setting);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(log);
    command
        .spawn()
        .map_err(|source| explain_spawn(plan, plan.binaries.postgres(), source))
}

/// Makes a cluster aside and gives it its name once it is whole.
fn make_cluster(plan: &Plan) -> Result<(), EmbeddedError> {
    let draft = &plan.layout.draft;
    let failed = |source| EmbeddedError::Folder {
        path: draft.clone(),
        source,
    };
    match std::fs::remove_dir_all(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    DirBuilder::new()
        .mode(0o700)
        .create(draft)
        .map_err(failed)?;
    if let Some(account) = &plan.account {
        std::os::unix::fs::chown(draft, Some(account.uid), Some(account.gid)).map_err(failed)?;
    }
    tracing::info!(
        "making a Postgres cluster in {}",
        plan.layout.cluster.display()
    );
    let output = command(plan, &plan.binaries.initdb(), draft, Signal::KILL)
        .arg("-D")
        .arg(draft)
        .args(["-U", ROLE, "-A", "trust", "-E", "UTF8", "--no-locale"])
        .args(["--data-checksums", "--no-instructions", "--no-sync"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(|source| explain_spawn(plan, plan.binaries.initdb(), source))?;
    if !output.status.success() {
        return Err(EmbeddedError::Initdb {
            status: output.status,
            output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    // One flush of the file system instead of one for each of a thousand files: the cluster is on
    // the disk before it has its name.
    let root = File::open(plan.layout.root()).map_err(failed)?;
    rustix::fs::syncfs(&root).map_err(|error| failed(error.into()))?;
    std::fs::rename(draft, &plan.layout.cluster).map_err(failed)?;
    root.sync_all().map_err(failed)
}

/// A command that runs as the right account, in its own session so that the terminal's Ctrl-C is
/// ours to act on, and that gets `death` when this thread or the whole program is gone.
fn command(plan: &Plan, program: &Path, folder: &Path, death: Signal) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C")
        .current_dir(folder);
    if let Some(account) = &plan.account {
        command.uid(account.uid).gid(account.gid);
    }
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec only system calls are made and nothing is allocated. It runs
    // after the change of account, which would clear the death signal.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(death))?;
            if rustix::process::getppid() != Some(parent) {
                // The parent died before the signal was set, so it would never come.
                return Err(rustix::io::Errno::SRCH.into());
            }
            rustix::process::setsid()?;
            Ok(())
        });
    }
    command
}

/// A refusal to enter the folder is explained by the folder on the way that is closed.
fn explain_spawn(plan: &Plan, program: std::path::PathBuf, source: io::Error) -> EmbeddedError {
    if source.kind() == io::ErrorKind::PermissionDenied
        && let Some(account) = &plan.account
        && let Some(folder) = account::barrier(&plan.layout.cluster, account)
    {
        return EmbeddedError::Barrier {
            folder,
            cluster: plan.layout.cluster.clone(),
            account: account.name.clone(),
        };
    }
    EmbeddedError::Spawn { program, source }
}

/// The folder as one element of Postgres's comma-separated list.
fn quoted(folder: &Path) -> OsString {
    let mut text = OsString::from("\"");
    let bytes = folder.as_os_str().as_encoded_bytes();
    if bytes.contains(&b'"') {
        text.push(folder.to_string_lossy().replace('"', "\"\""));
    } else {
        text.push(folder.as_os_str());
    }
    text.push("\"");
    text
}

/// Bytes of Postgres's own log that are kept: this, and once more as `postgres.log.1`.
const LOG_LIMIT: u64 = 8 * 1024 * 1024;

fn open_log(path: &Path) -> Result<File, EmbeddedError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| EmbeddedError::Folder {
            path: path.to_owned(),
            source,
        })
}

/// Moves a log that has grown large aside. Postgres appends to the open file, so the file is
/// copied and emptied rather than renamed.
pub(super) fn trim_log(path: &Path) {
    let is_large = std::fs::metadata(path).is_ok_and(|meta| meta.len() > LOG_LIMIT);
    if is_large {
        let kept = path.with_extension("log.1");
        let trimmed = std::fs::copy(path, &kept)
            .and_then(|_| OpenOptions::new().write(true).open(path))
            .and_then(|file| file.set_len(0));
        if let Err(error) = trimmed {
            tracing::warn!(error = %error, "cannot trim {}", path.display());
        }
    }
}

/// The end of Postgres's own log, which says why it would not start.
pub(super) fn last_lines(path: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};

    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let end = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(end.saturating_sub(4096)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(6)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_a_comma_or_a_quote_stays_one_element() {
        assert_eq!(quoted(Path::new("/a,b/run")), "\"/a,b/run\"");
        assert_eq!(quoted(Path::new("/a\"b")), "\"/a\"\"b\"");
    }

    #[test]
    fn a_large_log_is_moved_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postgres.log");
        let file = File::create(&path).unwrap();
        file.set_len(LOG_LIMIT).unwrap();
        trim_log(&path);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), LOG_LIMIT);
        file.set_len(LOG_LIMIT + 1).unwrap();
        trim_log(&path);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        let kept = folder.path().join("postgres.log.1");
        assert_eq!(std::fs::metadata(kept).unwrap().len(), LOG_LIMIT + 1);
    }

    #[test]
    fn the_reason_for_a_failure_is_the_end_of_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postgres.log");
        assert_eq!(last_lines(&path), "");
        std::fs::write(&path, "1\n2\n3\n4\n5\n6\n7\n8\n").unwrap();
        assert_eq!(last_lines(&path), "3\n4\n5\n6\n7\n8");
    }
}
