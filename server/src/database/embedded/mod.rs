//! A private Postgres in the data folder, run by the coordinator from the programs on the machine.
//!
//! It listens on a Unix socket in a folder closed to everyone else, lives exactly as long as the
//! coordinator (the kernel stops it when the coordinator is killed), and is started again with a
//! growing pause when it dies. `fsync` is on: what was acknowledged survives.

mod account;
mod binaries;
mod layout;
mod orphans;
mod postmaster;

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use layout::{ClusterLock, Layout, PORT};
use postmaster::{Control, Phase, Plan};

/// The cluster's superuser, and the owner of everything in it.
const ROLE: &str = "postgres";

/// The database that holds the queue.
pub(super) const DATABASE: &str = "qctl";

/// Longest time that a start may take: recovery after a crash reads up to `max_wal_size`.
const START_LIMIT: Duration = Duration::from_secs(300);

/// How long a fast shutdown may take before an immediate one, which costs the next start a recovery.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Why there is no embedded Postgres.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// A file or folder cannot be used.
    #[error("cannot use {path}")]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another coordinator has the cluster.
    #[error(
        "another coordinator{} uses the database in {}; stop it, or give this one a folder of its own with QCTL_HOME",
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(),
        folder.display()
    )]
    InUse {
        /// The folder of the cluster.
        folder: PathBuf,
        /// The other coordinator, if it could be told.
        pid: Option<u32>,
    },
    /// What stands in the place of the socket's folder is not safe.
    #[error("{path} is not a private folder of ours (mode 0700); remove it", path = path.display())]
    RunFolder {
        /// The folder.
        path: PathBuf,
    },
    /// We are root, and so is the cluster's owner.
    #[error(
        "{cluster} belongs to root, and Postgres does not run as root; give it to an account: chown -R postgres: {cluster}",
        cluster = cluster.display()
    )]
    OwnedByRoot {
        /// The cluster.
        cluster: PathBuf,
    },
    /// The cluster belongs to someone else.
    #[error(
        "{cluster} belongs to {owner}; run the coordinator as {owner} or as root",
        cluster = cluster.display()
    )]
    OwnedByAnother {
        /// The cluster.
        cluster: PathBuf,
        /// Its owner.
        owner: String,
    },
    /// We are root and there is nobody to drop to.
    #[error(
        "Postgres does not run as root, and this machine has neither an account `postgres` nor `nobody`; run the coordinator as an ordinary user"
    )]
    NoAccount,
    /// The account may not pass through a folder.
    #[error(
        "Postgres runs as {account}, who may not pass through {folder} on the way to {cluster}; choose another place with QCTL_HOME, or allow it: chmod o+x {folder}",
        folder = folder.display(),
        cluster = cluster.display()
    )]
    Barrier {
        /// The closed folder.
        folder: PathBuf,
        /// Where the cluster is or should be.
        cluster: PathBuf,
        /// The account.
        account: String,
    },
    /// There is no Postgres on the machine.
    #[error(
        "no Postgres programs on this machine; install them (Debian and Ubuntu: apt install {package}), name their folder with --pg-bin, or name a database with DATABASE_URL",
        package = wanted.map_or("postgresql".to_owned(), |major| format!("postgresql-{major}"))
    )]
    NoPrograms {
        /// The major version that the existing cluster needs.
        wanted: Option<u32>,
    },
    /// The folder given does not hold Postgres.
    #[error("{folder} holds no `postgres` and `initdb` that run here", folder = folder.display())]
    NotPostgres {
        /// The folder.
        folder: PathBuf,
    },
    /// The machine's Postgres is too old.
    #[error("Postgres {found} is too old; {oldest} or newer is needed")]
    TooOld {
        /// What was found.
        found: u32,
        /// What is needed.
        oldest: u32,
    },
    /// The cluster was made by another major version.
    #[error(
        "{cluster} was made by Postgres {wanted} and the newest here is {found}; install postgresql-{wanted}, or move the data with that version's pg_dump",
        cluster = cluster.display()
    )]
    OtherMajor {
        /// The cluster.
        cluster: PathBuf,
        /// The version it needs.
        wanted: u32,
        /// The version that was found.
        found: u32,
    },
    /// The folder is there but is no cluster that we understand.
    #[error("{path} is missing or unreadable, so its folder is no Postgres cluster; move that folder away", path = path.display())]
    UnknownCluster {
        /// The version file.
        path: PathBuf,
    },
    /// Processes of an earlier run do not end.
    #[error(
        "Postgres processes {pids:?} of an earlier run in {folder} do not end, not even when killed",
        folder = folder.display()
    )]
    Unkillable {
        /// The cluster.
        folder: PathBuf,
        /// The processes.
        pids: Vec<i32>,
    },
    /// `initdb` failed.
    #[error("making the Postgres cluster failed ({status}): {output}")]
    Initdb {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        output: String,
    },
    /// A program could not be run.
    #[error("cannot run {program}", program = program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Postgres ended by itself.
    #[error("Postgres ended ({status}): {log}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its log.
        log: String,
    },
    /// Postgres did not become ready.
    #[error("Postgres was not ready after {limit:?}: {log}", limit = START_LIMIT)]
    NotReady {
        /// The last lines of its log.
        log: String,
    },
    /// The first start failed, in the thread that supervises Postgres.
    #[error(transparent)]
    Start(Arc<EmbeddedError>),
    /// The thread that supervises Postgres ended without a word, which is a bug.
    #[error("the thread that supervises Postgres is gone")]
    ThreadGone,
}

/// A running private Postgres.
pub struct Embedded {
    layout: Layout,
    control: Arc<Control>,
    phase: watch::Receiver<Phase>,
    tending: JoinHandle<()>,
    // Held until Postgres has stopped, so that the next coordinator finds the cluster at rest.
    _lock: Arc<ClusterLock>,
}

impl Embedded {
    /// Starts Postgres in this folder, making the cluster first if there is none, and returns when
    /// it takes connections. `programs` names the folder of `postgres` and `initdb`.
    ///
    /// # Errors
    /// When another coordinator has the folder, no suitable programs are found, or Postgres does
    /// not come up.
    pub async fn start(folder: &Path, programs: Option<&Path>) -> Result<Self, EmbeddedError> {
        let layout = Layout::open(folder)?;
        let lock = Arc::new(ClusterLock::take(&layout.lock)?);
        let account = account::choose(&layout.cluster)?;
        let binaries = binaries::choose(programs, &layout.cluster)?;
        if account.is_some() {
            account::open_own_folders(layout.root()).map_err(|source| EmbeddedError::Folder {
                path: layout.root().to_owned(),
                source,
            })?;
        }
        let control = Arc::new(Control::default());
        let (report, phase) = watch::channel(Phase::Preparing);
        let plan = Plan {
            layout: layout.clone(),
            binaries,
            account,
        };
        let thread = {
            let (control, lock) = (Arc::clone(&control), Arc::clone(&lock));
            move || {
                let failure = postmaster::supervise(&plan, &control, &report);
                // Before the end is told: who hears of it may start the next one at once.
                drop(lock);
                report.send_replace(Phase::Over(failure));
            }
        };
        std::thread::Builder::new()
            .name("postgres".to_owned())
            .spawn(thread)
            .map_err(|source| EmbeddedError::Folder {
                path: layout.root().to_owned(),
                source,
            })?;
        let tending = tokio::spawn(tend_log(layout.log.clone()));
        let embedded = Self {
            layout,
            control,
            phase,
            tending,
            _lock: lock,
        };
        embedded.ready().await?;
        Ok(embedded)
    }

    /// How to connect to it.
    pub fn connect_options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(&self.layout.run)
            .port(PORT)
            .username(ROLE)
            .database(DATABASE)
            .ssl_mode(PgSslMode::Disable)
    }

    /// Stops Postgres and returns when it has stopped.
    pub async fn stop(mut self) {
        for (signal, patience) in [
            (Signal::INT, STOP_LIMIT),
            (Signal::QUIT, Duration::from_secs(5)),
            (Signal::KILL, Duration::from_secs(5)),
        ] {
            self.control.stop(signal);
            let over = self.phase.wait_for(|phase| matches!(phase, Phase::Over(_)));
            if tokio::time::timeout(patience, over).await.is_ok() {
                return;
            }
            tracing::warn!("the embedded Postgres does not stop");
        }
    }

    /// Waits until Postgres takes connections. Its state is the eighth line of `postmaster.pid`,
    /// and nothing announces a change of that file.
    async fn ready(&self) -> Result<(), EmbeddedError> {
        let deadline = Instant::now() + START_LIMIT;
        let mut phase = self.phase.clone();
        loop {
            let current = phase.borrow_and_update().clone();
            match current {
                Phase::Preparing => {
                    phase
                        .changed()
                        .await
                        .map_err(|_| EmbeddedError::ThreadGone)?;
                    continue;
                }
                Phase::Running(pid) if is_ready(&self.layout.pid_file(), pid) => return Ok(()),
                Phase::Running(_) => {}
                Phase::Down(error) | Phase::Over(Some(error)) => {
                    return Err(EmbeddedError::Start(error));
                }
                Phase::Over(None) => return Err(EmbeddedError::ThreadGone),
            }
            if Instant::now() >= deadline {
                return Err(EmbeddedError::NotReady {
                    log: postmaster::last_lines(&self.layout.log),
                });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.tending.abort();
        self.control.stop(Signal::INT);
    }
}

/// Keeps Postgres's own log small while it runs.
async fn tend_log(log: PathBuf) {
    let mut timer = tokio::time::interval(Duration::from_secs(600));
    loop {
        timer.tick().await;
        postmaster::trim_log(&log);
    }
}

fn is_ready(pid_file: &Path, pid: i32) -> bool {
    let Ok(text) = std::fs::read_to_string(pid_file) else {
        return false;
    };
    let mut lines = text.lines().map(str::trim);
    lines.next() == Some(pid.to_string().as_str()) && lines.nth(6) == Some("ready")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_eighth_line_of_our_own_process_says_ready() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postmaster.pid");
        assert!(!is_ready(&path, 7));
        std::fs::write(&path, "7\n/data/pg\n1\n5432\n/run\n\n1 2\nstarting\n").unwrap();
        assert!(!is_ready(&path, 7));
        std::fs::write(&path, "7\n/data/pg\n1\n5432\n/run\n\n1 2\nready   \n").unwrap();
        assert!(is_ready(&path, 7));
        assert!(!is_ready(&path, 8));
    }
}
