//! The worker's folder: who it is, the segments of its shims, and the checkpoints of its jobs.
//!
//! ```text
//! lock                      held by the agent for as long as it lives
//! identity.json             worker id and spool id
//! term                      highest leadership term seen
//! greeting                  number of the latest greeting
//! shim.log                  what shims say on standard error; shim.log.1 what they said before
//! spool/SPOOL/charge        which agent is in charge of the shims
//! spool/SPOOL/7.segment     journal of shim 7
//! spool/SPOOL/7.sock        its socket
//! spool/SPOOL/7.progress    the pipe on which its jobs report progress
//! checkpoints/JOB/ATTEMPT/  where attempts write, and beside it what they have published
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use qctl_worker_core::roster::ShimId;
use qctl_worker_core::segment;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::charge;
use crate::tail_files;

/// Age at which checkpoints and spools that nobody owns are removed.
const KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How long the lock of the folder may still be held by what a killed agent was about to start: a
/// process has its parent's files until it runs a program of its own.
const LOCKED_FOR: Duration = Duration::from_secs(1);

/// Pause between two tries to take the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Length at which the log of the shims is begun anew, in bytes. Shims that write into the old one
/// stop at [`crate::shim::MAX_LOG_BYTES`].
const ROTATED_LOG_BYTES: u64 = crate::shim::MAX_LOG_BYTES / 2;

/// The worker's folder, owned by this agent.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    segments: PathBuf,
    identity: Identity,
    /// The highest leadership term that was remembered before.
    term: i64,
    /// Dropping it lets another agent in.
    _lock: File,
}

/// Who the worker is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    worker_id: Uuid,
    spool_id: Uuid,
    /// The lock file's number in its file system: a copy of the folder has another one.
    inode: u64,
    /// CRC-32C over both ids: a worker must not become another one by a bit. Absent in files of
    /// earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    check: Option<u32>,
}

impl Identity {
    fn checksum(&self) -> u32 {
        let check = crc32c::crc32c(self.worker_id.as_bytes());
        crc32c::crc32c_append(check, self.spool_id.as_bytes())
    }
}

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another agent has it.
    #[error("another qctl-worker already runs on {folder} (process {pid})")]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// What it wrote about itself.
        pid: String,
    },
    /// The identity is damaged.
    #[error(
        "{path} does not say who this worker is; restore it, or remove it to begin as a new worker"
    )]
    Identity {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The identity is not what was written.
    #[error(
        "{path} is damaged: its checksum does not fit who it says this worker is; restore it, or \
         remove it to begin as a new worker"
    )]
    IdentityDamaged {
        /// The file.
        path: PathBuf,
    },
    /// The highest leadership term cannot be read.
    #[error(
        "{path} does not hold a leadership term but `{found}`; remove it once the coordinator in \
         charge is known to be the right one"
    )]
    Term {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
    },
    /// The file system refuses.
    #[error("cannot use {path}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> SpoolError + '_ {
    move |source| SpoolError::Io {
        path: path.to_owned(),
        source,
    }
}

impl Spool {
    /// Takes the folder, making it when it does not exist.
    ///
    /// # Errors
    /// When another agent has it, its identity cannot be read, or the file system refuses.
    pub fn open(folder: &Path) -> Result<Self, SpoolError> {
        make_folder(folder)?;
        let lock = take_lock(folder)?;
        let inode = lock.metadata().map_err(io_at(folder))?.ino();
        let identity = identify(folder, inode)?;
        let term = read_term(&folder.join("term"))?;
        let segments = folder.join("spool").join(identity.spool_id.to_string());
        make_folder(&segments)?;
        Ok(Self {
            folder: folder.to_owned(),
            segments,
            identity,
            term,
            _lock: lock,
        })
    }

    /// The worker's UUID.
    pub fn worker_id(&self) -> String {
        self.identity.worker_id.to_string()
    }

    /// The spool's UUID.
    pub fn spool_id(&self) -> String {
        self.identity.spool_id.to_string()
    }

    /// Folder of the segments. Shims run in it, so that short names of sockets are enough.
    pub fn segments_dir(&self) -> &Path {
        &self.segments
    }

    /// File of a shim's segment.
    pub fn segment(&self, shim: ShimId) -> PathBuf {
        self.segments.join(segment_name(shim))
    }

    /// Path of a shim's socket.
    pub fn socket(&self, shim: ShimId) -> PathBuf {
        self.segments.join(socket_name(shim))
    }

    /// Shims that have left a segment, in order.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn shims(&self) -> Result<Vec<ShimId>, SpoolError> {
        let mut shims = Vec::new();
        for entry in fs::read_dir(&self.segments).map_err(io_at(&self.segments))? {
            let name = entry.map_err(io_at(&self.segments))?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".segment"));
            shims.extend(number.and_then(|number| number.parse::<ShimId>().ok()));
        }
        shims.sort_unstable();
        Ok(shims)
    }

    /// Makes a shim's segment, which must not exist.
    ///
    /// # Errors
    /// When it exists or cannot be written.
    pub fn create_segment(&self, shim: ShimId) -> Result<File, SpoolError> {
        let path = self.segment(shim);
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_at(&path))?;
        file.write_all(&segment::header()).map_err(io_at(&path))?;
        Ok(file)
    }

    /// Takes charge of the shims of this spool and returns this agent's number. `None` while a shim
    /// is in the middle of a start.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(crate) fn take_charge(&self) -> Result<Option<u64>, SpoolError> {
        charge::take(&self.segments).map_err(io_at(&self.segments))
    }

    /// Removes a shim's segment, its socket, and the pipe and the ring of files beside it.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove_segment(&self, shim: ShimId) -> Result<(), SpoolError> {
        // The segment goes last: without it nobody would look for the others.
        let segment = self.segment(shim);
        for number in tail_files::numbers(&segment).map_err(io_at(&self.segments))? {
            let path = tail_files::path(&segment, number);
            tail_files::remove(&segment, number).map_err(io_at(&path))?;
        }
        let socket = self.socket(shim);
        for path in [socket.with_extension("progress"), socket, segment] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_at(&path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// File that collects what shims say on standard error.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn shim_log(&self) -> Result<File, SpoolError> {
        let path = self.folder.join("shim.log");
        let long = |meta: fs::Metadata| meta.len() >= ROTATED_LOG_BYTES;
        if fs::metadata(&path).is_ok_and(long) {
            fs::rename(&path, self.folder.join("shim.log.1")).map_err(io_at(&path))?;
        }
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_at(&path))
    }

    /// The highest leadership term that was seen before this agent; 0 when none was.
    pub fn term(&self) -> i64 {
        self.term
    }

    /// Remembers a term.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_term(&self, term: i64) -> Result<(), SpoolError> {
        replace(&self.folder.join("term"), term_text(term).as_bytes())
    }

    /// Folder of the checkpoints of all jobs.
    pub fn checkpoints_dir(&self) -> PathBuf {
        self.folder.join("checkpoints")
    }

    /// The number of the next greeting: above every one before. Copies of a machine that was set
    /// back do not fall behind for long, because it is never below the wall clock in milliseconds.
    ///
    /// # Errors
    /// When it cannot be remembered.
    pub fn next_greeting(&self) -> Result<i64, SpoolError> {
        let path = self.folder.join("greeting");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let latest: i64 = text.trim().parse().unwrap_or(0);
        let wall = crate::clock::wall_us() / 1_000;
        let next = latest.saturating_add(1).max(wall);
        replace(&path, format!("{next}\n").as_bytes())?;
        Ok(next)
    }

    /// Folder for the checkpoints of an attempt.
    pub fn checkpoint_dir(&self, job_id: i64, attempt: i32) -> PathBuf {
        let job = self.checkpoints_dir().join(job_id.to_string());
        job.join(attempt.to_string())
    }

    /// Removes checkpoints of jobs not in `running`, and spools that nobody owns, once nothing in
    /// them has changed for 30 days. Goes on after failures and returns them.
    pub fn remove_old(&self, now: SystemTime, running: &[i64]) -> Vec<SpoolError> {
        let mut errors = Vec::new();
        let running: Vec<_> = running.iter().map(i64::to_string).collect();
        let own = [self.identity.spool_id.to_string()];
        for (folder, kept) in [("checkpoints", &running[..]), ("spool", &own[..])] {
            let Ok(entries) = fs::read_dir(self.folder.join(folder)) else {
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let kept = kept.iter().any(|kept| name.to_str() == Some(kept.as_str()));
                let old = now
                    .duration_since(newest_change(&entry.path()))
                    .is_ok_and(|age| age > KEPT);
                if old && !kept {
                    let path = entry.path();
                    errors.extend(fs::remove_dir_all(&path).map_err(io_at(&path)).err());
                }
            }
        }
        errors
    }
}

/// Name of a shim's segment within its folder.
pub fn segment_name(shim: ShimId) -> String {
    format!("{shim}.segment")
}

/// Name of a shim's socket within its folder.
pub fn socket_name(shim: ShimId) -> String {
    format!("{shim}.sock")
}

/// Takes the lock of a segment. `None` while a shim holds it.
///
/// # Errors
/// When the file system refuses.
pub fn try_lock(file: &File) -> io::Result<Option<()>> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(())),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn take_lock(folder: &Path) -> Result<File, SpoolError> {
    let path = folder.join("lock");
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io_at(&path))?;
    let deadline = Instant::now() + LOCKED_FOR;
    while try_lock(&lock).map_err(io_at(&path))?.is_none() {
        if Instant::now() < deadline {
            std::thread::sleep(LOCK_PAUSE);
            continue;
        }
        let pid = fs::read_to_string(&path).unwrap_or_default();
        return Err(SpoolError::InUse {
            folder: folder.to_owned(),
            pid: pid.trim().to_owned(),
        });
    }
    lock.set_len(0)
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .map_err(io_at(&path))?;
    Ok(lock)
}

/// A term with its checksum: one digit less would let a former leader in.
fn term_text(term: i64) -> String {
    format!("{term} {:08x}\n", crc32c::crc32c(&term.to_le_bytes()))
}

/// Reads a term; 0 when there is none. Earlier versions wrote no checksum.
fn read_term(path: &Path) -> Result<i64, SpoolError> {
    let text = match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(io_at(path)(error)),
    };
    let number = text.split_whitespace().next().and_then(|t| t.parse().ok());
    number
        .filter(|term| text == term_text(*term) || text == format!("{term}\n"))
        .ok_or_else(|| SpoolError::Term {
            path: path.to_owned(),
            found: text.trim().chars().take(40).collect(),
        })
}

/// Reads who the worker is; a new worker, and a copy of one, get a new spool id.
fn identify(folder: &Path, inode: u64) -> Result<Identity, SpoolError> {
    let path = folder.join("identity.json");
    let worker_id = match fs::read(&path) {
        Ok(text) => {
            let known: Identity =
                serde_json::from_slice(&text).map_err(|source| SpoolError::Identity {
                    path: path.clone(),
                    source,
                })?;
            if known.check.is_some_and(|check| check != known.checksum()) {
                return Err(SpoolError::IdentityDamaged { path });
            }
            if known.inode == inode {
                return Ok(known);
            }
            tracing::warn!(
                folder = %folder.display(),
                "this folder is a copy of another worker's: it keeps the worker's id, and is \
                 refused while the other one is connected"
            );
            known.worker_id
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Uuid::new_v4(),
        Err(error) => return Err(io_at(&path)(error)),
    };
    let mut identity = Identity {
        worker_id,
        spool_id: Uuid::new_v4(),
        inode,
        check: None,
    };
    identity.check = Some(identity.checksum());
    let text = serde_json::to_vec_pretty(&identity).map_err(|source| SpoolError::Identity {
        path: path.clone(),
        source,
    })?;
    replace(&path, &text)?;
    Ok(identity)
}

/// Replaces a small file durably.
fn replace(path: &Path, contents: &[u8]) -> Result<(), SpoolError> {
    let new = path.with_extension("new");
    let written = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        match path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    written().map_err(io_at(path))
}

fn make_folder(path: &Path) -> Result<(), SpoolError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_at(path))
}

/// When the folder or something directly in it or its folders changed last.
fn newest_change(path: &Path) -> SystemTime {
    let changed = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let mut newest = changed(path).unwrap_or(SystemTime::UNIX_EPOCH);
    let below = fs::read_dir(path).into_iter().flatten().flatten();
    for entry in below {
        newest = newest.max(changed(&entry.path()).unwrap_or(SystemTime::UNIX_EPOCH));
        let files = fs::read_dir(entry.path()).into_iter().flatten().flatten();
        for file in files {
            newest = newest.max(changed(&file.path()).unwrap_or(SystemTime::UNIX_EPOCH));
        }
    }
    newest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_refused_while_the_first_one_lives() {
        let folder = tempfile::tempdir().unwrap();
        let first = Spool::open(folder.path()).unwrap();
        let error = Spool::open(folder.path()).unwrap_err();
        assert!(matches!(error, SpoolError::InUse { .. }));
        assert!(error.to_string().contains(&std::process::id().to_string()));
        let ids = (first.worker_id(), first.spool_id());
        drop(first);
        let again = Spool::open(folder.path()).unwrap();
        assert_eq!((again.worker_id(), again.spool_id()), ids);
    }

    #[test]
    fn a_lock_that_is_let_go_within_a_moment_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        drop(Spool::open(folder.path()).unwrap());
        let lingering = File::open(folder.path().join("lock")).unwrap();
        assert!(try_lock(&lingering).unwrap().is_some());
        let opened = std::thread::scope(|scope| {
            let opening = scope.spawn(|| Spool::open(folder.path()));
            std::thread::sleep(LOCK_PAUSE * 2);
            drop(lingering);
            opening.join().unwrap()
        });
        opened.unwrap();
    }

    #[test]
    fn a_copy_keeps_the_worker_id_and_gets_a_spool_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let original = folder.path().join("a");
        let spool = Spool::open(&original).unwrap();
        spool.create_segment(1).unwrap();
        let copy = folder.path().join("b");
        fs::create_dir(&copy).unwrap();
        for name in ["lock", "identity.json"] {
            fs::copy(original.join(name), copy.join(name)).unwrap();
        }
        let copied = Spool::open(&copy).unwrap();
        assert_eq!(copied.worker_id(), spool.worker_id());
        assert_ne!(copied.spool_id(), spool.spool_id());
        assert_eq!(copied.shims().unwrap(), [0; 0]);
    }

    #[test]
    fn jobs_know_their_folder_for_checkpoints_by_the_identity() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path()).unwrap();
        let own = spool.checkpoint_dir(42, 1);
        fs::create_dir_all(&own).unwrap();
        assert!(qctl_checkpoint::check_folder(&own, &spool.spool_id(), 42, 1).is_ok());
    }

    #[test]
    fn a_damaged_identity_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("identity.json"), "{").unwrap();
        let error = Spool::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("identity.json"));
        assert_eq!(fs::read(folder.path().join("identity.json")).unwrap(), b"{");
    }

    #[test]
    fn segments_are_listed_in_order_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path()).unwrap();
        for shim in [10, 9] {
            spool.create_segment(shim).unwrap();
        }
        fs::write(spool.segments_dir().join("other"), "").unwrap();
        let tail = tail_files::path(&spool.segment(9), 1);
        fs::write(&tail, "").unwrap();
        assert_eq!(spool.shims().unwrap(), [9, 10]);
        assert!(spool.create_segment(9).is_err());
        spool.remove_segment(9).unwrap();
        assert!(!tail.exists());
        spool.remove_segment(9).unwrap();
        assert_eq!(spool.shims().unwrap(), [10]);
    }

    #[test]
    fn old_checkpoints_go_and_running_jobs_keep_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path()).unwrap();
        for job in [1, 2] {
            fs::create_dir_all(spool.checkpoint_dir(job, 1)).unwrap();
        }
        let now = SystemTime::now();
        assert!(spool.remove_old(now, &[2]).is_empty());
        assert!(spool.checkpoint_dir(1, 1).exists());
        assert!(spool.remove_old(now + KEPT * 2, &[2]).is_empty());
        assert!(!spool.checkpoint_dir(1, 1).exists());
        assert!(spool.checkpoint_dir(2, 1).exists());
        assert!(spool.segments_dir().exists());
    }

    #[test]
    fn the_log_of_the_shims_is_begun_anew_when_it_is_long() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path()).unwrap();
        for round in 0..3 {
            let mut log = spool.shim_log().unwrap();
            let line = vec![b'0' + round; ROTATED_LOG_BYTES as usize];
            log.write_all(&line).unwrap();
        }
        spool.shim_log().unwrap();
        let first = |name: &str| fs::read(folder.path().join(name)).unwrap().first().copied();
        assert_eq!((first("shim.log"), first("shim.log.1")), (None, Some(b'2')));
    }

    #[test]
    fn the_term_survives() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path()).unwrap();
        assert_eq!(spool.term(), 0);
        spool.set_term(7).unwrap();
        drop(spool);
        assert_eq!(Spool::open(folder.path()).unwrap().term(), 7);
        fs::write(folder.path().join("term"), "6\n").unwrap();
        assert_eq!(Spool::open(folder.path()).unwrap().term(), 6);
    }

    /// F30: a torn or damaged file is what it was, or is refused by its name.
    #[test]
    fn state_that_is_cut_or_flipped_anywhere_is_never_taken_for_another() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path()).unwrap();
        spool.set_term(4711).unwrap();
        let ids = (spool.worker_id(), spool.spool_id());
        drop(spool);
        for name in ["identity.json", "term"] {
            let path = folder.path().join(name);
            let whole = fs::read(&path).unwrap();
            let cuts = (0..whole.len()).map(|cut| whole[..cut].to_vec());
            let flips = (0..whole.len()).flat_map(|byte| {
                let whole = &whole;
                (0..8).map(move |bit| {
                    let mut damaged = whole.clone();
                    damaged[byte] ^= 1 << bit;
                    damaged
                })
            });
            for damaged in cuts.chain(flips) {
                fs::write(&path, &damaged).unwrap();
                let text = String::from_utf8_lossy(&damaged).into_owned();
                match Spool::open(folder.path()) {
                    // A flipped bit may leave the words as they were, such as a space for a tab, or
                    // make this folder look like a copy, which keeps the worker's id.
                    Ok(spool) => {
                        assert_eq!(spool.worker_id(), ids.0, "{name}: {text}");
                        let is_same = spool.spool_id() == ids.1;
                        let is_copy = spool.spool_id() != ids.1 && name == "identity.json";
                        assert!(is_same || is_copy, "{name}: {text}");
                        let known = spool.term() == 4711 || text == format!("{}\n", spool.term());
                        assert!(known, "{name}: {text}");
                    }
                    Err(error) => assert!(error.to_string().contains(name), "{error}"),
                }
                fs::write(&path, &whole).unwrap();
            }
        }
    }
}
