//! Where the private cluster's files are, and the lock that keeps a second coordinator out.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use super::EmbeddedError;
use crate::accounts::Account;

/// Postgres names its socket after its port, also when it listens on nothing else.
pub(super) const PORT: u16 = 5432;

/// `sun_path` holds 108 bytes, the last of which is a terminator.
const LONGEST_SOCKET_PATH: usize = 107;

/// The files of one cluster. The paths are canonical, so that they compare equal to what the
/// kernel says of a process's working directory.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// The cluster itself.
    pub(super) cluster: PathBuf,
    /// Where a cluster is made before it is renamed, so that a killed `initdb` leaves no cluster.
    pub(super) draft: PathBuf,
    /// Holds the socket.
    pub(super) run: PathBuf,
    /// Locked for as long as a coordinator uses the cluster.
    pub(super) lock: PathBuf,
    /// What Postgres prints.
    pub(super) log: PathBuf,
}

impl Layout {
    /// Makes the folder if it is absent and lays out the files in it.
    pub(super) fn open(folder: &Path) -> Result<Self, EmbeddedError> {
        let failed = |source| EmbeddedError::Folder {
            path: folder.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed)?;
        let folder = folder.canonicalize().map_err(failed)?;
        let run = folder.join("run");
        let run = if socket_in(&run).len() <= LONGEST_SOCKET_PATH {
            run
        } else {
            short_run_folder(&folder)
        };
        Ok(Self {
            cluster: folder.join("pg"),
            draft: folder.join("pg.tmp"),
            lock: folder.join("lock"),
            log: folder.join("postgres.log"),
            run,
        })
    }

    /// The folder that holds the cluster.
    pub(super) fn root(&self) -> &Path {
        self.cluster
            .parent()
            .expect("the cluster was joined to a folder")
    }

    /// What `postmaster.pid` is called in this cluster.
    pub(super) fn pid_file(&self) -> PathBuf {
        self.cluster.join("postmaster.pid")
    }

    /// The file that guards the socket, which a killed Postgres leaves behind.
    pub(super) fn socket_lock(&self) -> PathBuf {
        self.run.join(format!(".s.PGSQL.{PORT}.lock"))
    }

    /// The socket itself.
    pub(super) fn socket(&self) -> PathBuf {
        PathBuf::from(socket_in(&self.run))
    }

    /// Makes the socket's folder, private to the account that runs Postgres.
    ///
    /// A short run folder lies where others may write, so what is found there is not trusted: it
    /// must be a folder, belong to us, and be closed to everyone else.
    pub(super) fn prepare_run_folder(
        &self,
        account: Option<&Account>,
    ) -> Result<(), EmbeddedError> {
        let failed = |source| EmbeddedError::Folder {
            path: self.run.clone(),
            source,
        };
        match DirBuilder::new().mode(0o700).create(&self.run) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let found = std::fs::symlink_metadata(&self.run).map_err(failed)?;
                let ours = found.uid() == rustix::process::geteuid().as_raw()
                    || account.is_some_and(|account| account.uid == found.uid());
                if !found.is_dir() || !ours || found.mode() & 0o077 != 0 {
                    return Err(EmbeddedError::RunFolder {
                        path: self.run.clone(),
                    });
                }
            }
            Err(error) => return Err(failed(error)),
        }
        if let Some(account) = account {
            std::os::unix::fs::lchown(&self.run, Some(account.uid), Some(account.gid))
                .map_err(failed)?;
        }
        Ok(())
    }
}

fn socket_in(run: &Path) -> OsString {
    run.join(format!(".s.PGSQL.{PORT}")).into_os_string()
}

/// A folder with a short name, the same at every start, for a data folder with a long one.
fn short_run_folder(folder: &Path) -> PathBuf {
    let digest = Sha256::digest(folder.as_os_str().as_bytes());
    let name: String = digest[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let own = format!("/run/user/{}", rustix::process::geteuid().as_raw());
    let base = if rustix::process::geteuid().is_root() || !Path::new(&own).is_dir() {
        "/tmp".to_owned()
    } else {
        own
    };
    Path::new(&base).join(format!("qctl-{name}"))
}

/// The cluster's lock, released when dropped and by the kernel when the process dies.
#[derive(Debug)]
pub(super) struct ClusterLock {
    _file: File,
}

impl ClusterLock {
    /// Takes the lock at once, or says who has it.
    pub(super) fn take(path: &Path) -> Result<Self, EmbeddedError> {
        let failed = |source| EmbeddedError::Folder {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(failed(error.into()));
            }
            let mut holder = String::new();
            let _ = (&mut file).take(32).read_to_string(&mut holder);
            return Err(EmbeddedError::InUse {
                folder: path.parent().unwrap_or(path).to_owned(),
                pid: holder.trim().parse().ok(),
            });
        }
        // The number is only there for the message above.
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_folder_gets_a_short_place_for_its_socket_and_always_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(120));
        let layout = Layout::open(&deep).unwrap();
        assert!(layout.cluster.starts_with(folder.path()));
        assert!(layout.socket().as_os_str().len() <= LONGEST_SOCKET_PATH);
        assert_eq!(layout.run, Layout::open(&deep).unwrap().run);
        assert_ne!(
            layout.run,
            Layout::open(&folder.path().join("e".repeat(120)))
                .unwrap()
                .run
        );
    }

    #[test]
    fn a_run_folder_that_others_may_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::open(folder.path()).unwrap();
        layout.prepare_run_folder(None).unwrap();
        layout.prepare_run_folder(None).unwrap();
        std::fs::set_permissions(&layout.run, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(
            layout.prepare_run_folder(None),
            Err(EmbeddedError::RunFolder { .. })
        ));
    }

    #[test]
    fn the_second_to_lock_is_told_who_was_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = ClusterLock::take(&path).unwrap();
        match ClusterLock::take(&path) {
            Err(EmbeddedError::InUse { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(first);
        ClusterLock::take(&path).unwrap();
    }
}
