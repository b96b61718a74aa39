//! Publishing: from files that a job has written to a checkpoint that survives everything.
//!
//! The attempt's folder is taken as it is, by exchanging it for an empty one in a single step. So
//! nothing is copied, however large it is, and a job that later writes a file of the same name
//! makes a new file: were the published one only linked, rewriting it in place would destroy every
//! checkpoint that shares it. Files from elsewhere stay where they are, and are copied.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use crate::manifest::{Entry, FORMAT, Kind, Manifest};
use crate::published::{FILES, MANIFEST, Published, numbers, published_folder};
use crate::walk::{WalkError, walk};

/// From this many files on, the whole file system is asked to write instead of each of them.
const SYNC_EACH: usize = 64;

/// A copy that is being made, beside the files of the checkpoint that it will be part of.
const OWN_COPY: &str = "own-copy";

/// What to publish.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The job.
    pub job: i64,
    /// The attempt's number within the job.
    pub attempt: i32,
    /// The attempt's fence.
    pub fence: i64,
    /// The attempt's folder for checkpoints.
    pub folder: &'a Path,
    /// Files and folders to copy; none takes everything out of the attempt's folder.
    pub paths: &'a [PathBuf],
    /// How far the job is, as it counts itself.
    pub step: Option<i64>,
    /// What the job says about it; at most [`crate::MAX_NOTE_BYTES`].
    pub note: &'a str,
    /// Upload it whatever its size.
    pub upload: bool,
    /// The time.
    pub now: DateTime<Utc>,
}

/// Why nothing was published. What was to be published is where it was.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The attempt's folder does not exist.
    #[error("the folder for checkpoints, {0}, is not there")]
    NoFolder(PathBuf),
    /// There is nothing to publish.
    #[error("{0} is empty")]
    Empty(PathBuf),
    /// What was named holds no file.
    #[error("there is no file in what is to be published")]
    NoFiles,
    /// A path does not exist.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// A path has no name of its own, such as `/` or `..`.
    #[error("{0} has no name of its own")]
    NoName(PathBuf),
    /// Two paths would have one name in the checkpoint.
    #[error("two of the paths are called `{0}`")]
    SameName(String),
    /// It cannot be a checkpoint.
    #[error("this cannot be published")]
    Contents(#[from] WalkError),
    /// The file system refuses.
    #[error("cannot write {path}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> PublishError + '_ {
    move |source| PublishError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Publishes a checkpoint. When it returns, the checkpoint has reached the disk.
///
/// # Errors
/// When there is nothing to publish, it breaks a limit, or the file system refuses. Then nothing is
/// published, and the files are where they were.
pub fn publish(request: &Request<'_>) -> Result<Published, PublishError> {
    let missing = || PublishError::NoFolder(request.folder.to_owned());
    if !request.folder.is_dir() {
        return Err(missing());
    }
    let job_folder = request.folder.parent().ok_or_else(missing)?;
    let home = published_folder(job_folder);
    make_folder(&home).map_err(io_at(&home))?;
    let mut lock = Lock::take(&home, request.attempt)?;
    recover(&home, request.attempt, request.folder)?;
    let number = lock.next_number(&home, request.attempt)?;

    let takes = request.paths.is_empty();
    let verb = if takes { "taking" } else { "copying" };
    let staging = home.join(format!("{verb}.{}.{number}", request.attempt));
    // Checked before anything moves, so that a mistake changes nothing.
    match takes {
        true if !has_files(&walk(request.folder)?) => {
            return Err(PublishError::Empty(request.folder.to_owned()));
        }
        true => {}
        false => check_paths(request.paths)?,
    }
    make_folder(&staging).map_err(io_at(&staging))?;
    let target = home.join(format!("{}.{number}", request.attempt));
    let published = fill(request, &staging)
        .and_then(|()| finish(request, number, &staging))
        .and_then(|manifest| {
            lock.give(number)?;
            name(&staging, &target)?;
            Ok(Published::new(target, manifest))
        });
    published.or_else(|error| {
        // What was taken goes back; what was copied goes.
        recover(&home, request.attempt, request.folder)?;
        Err(error)
    })
}

/// True when there is something in it that a later attempt could read.
fn has_files(entries: &[Entry]) -> bool {
    entries
        .iter()
        .any(|entry| !matches!(entry.kind, Kind::Folder))
}

/// Puts the contents into the staging folder.
fn fill(request: &Request<'_>, staging: &Path) -> Result<(), PublishError> {
    let files = staging.join(FILES);
    let mode = fs::metadata(request.folder)
        .map_err(io_at(request.folder))?
        .mode();
    DirBuilder::new()
        .mode(mode & 0o777)
        .create(&files)
        .map_err(io_at(&files))?;
    if request.paths.is_empty() {
        exchange(request.folder, &files).map_err(io_at(request.folder))?;
        return unshare(&files, &staging.join(OWN_COPY));
    }
    for path in request.paths {
        let name = path
            .file_name()
            .ok_or_else(|| PublishError::NoName(path.clone()))?;
        copy(path, &files.join(name))?;
    }
    Ok(())
}

/// Writes the manifest and brings everything to the disk.
fn finish(request: &Request<'_>, number: i32, staging: &Path) -> Result<Manifest, PublishError> {
    let files = staging.join(FILES);
    let entries = walk(&files)?;
    if !has_files(&entries) {
        return Err(PublishError::NoFiles);
    }
    sync_files(&files, &entries)?;
    let bytes = entries.iter().map(|entry| match entry.kind {
        Kind::File { bytes, .. } => bytes,
        Kind::Link { .. } | Kind::Folder => 0,
    });
    let manifest = Manifest {
        format: FORMAT,
        job: request.job,
        attempt: request.attempt,
        fence: request.fence,
        number,
        step: request.step,
        note: request.note.to_owned(),
        upload: request.upload,
        created_at: request.now,
        bytes: bytes.sum(),
        entries,
    };
    let path = staging.join(MANIFEST);
    write_durably(&path, &manifest.encode()).map_err(io_at(&path))?;
    sync_folder(staging)?;
    Ok(manifest)
}

/// Gives a checkpoint that is whole its name.
fn name(staging: &Path, target: &Path) -> Result<(), PublishError> {
    renameat_with(CWD, staging, CWD, target, RenameFlags::NOREPLACE)
        .or_else(|error| match error {
            // Some file systems know only the plain kind; the lock keeps others away.
            Errno::INVAL | Errno::NOSYS => rustix::fs::rename(staging, target),
            error => Err(error),
        })
        .map_err(|error| io_at(target)(error.into()))?;
    // The folders above may be as new as the checkpoint.
    let mut above = target.ancestors().skip(1).take(4);
    above.try_for_each(sync_folder).inspect_err(|_| {
        // It may not outlive the machine, so it is none. What cannot be taken back stays published.
        let _ = fs::rename(target, staging);
    })
}

/// Who publishes for an attempt: one at a time.
struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    fn take(home: &Path, attempt: i32) -> Result<Self, PublishError> {
        let path = home.join(format!("{attempt}.lock"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io_at(&path))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| io_at(&path)(error.into()))?;
        Ok(Self { file, path })
    }

    /// A number that no checkpoint of the attempt has had. Those of removed ones are not used again:
    /// the coordinator knows them.
    fn next_number(&mut self, home: &Path, attempt: i32) -> Result<i32, PublishError> {
        let mut said = String::new();
        // A file that was cut off says nothing; the checkpoints that are there still count.
        let _ = self.file.read_to_string(&mut said);
        let given: i32 = said.trim().parse().unwrap_or(0);
        let newest = numbers(home)
            .map_err(io_at(home))?
            .into_iter()
            .filter(|(of, _)| *of == attempt)
            .map(|(_, number)| number)
            .max();
        Ok(given.max(newest.unwrap_or(0)).saturating_add(1))
    }

    /// Records durably that a number is given. Before its checkpoint has its name: by the next call
    /// it may have been told and removed again.
    fn give(&self, number: i32) -> Result<(), PublishError> {
        let text = format!("{number}\n");
        // In place, which needs no room on the disk. Numbers only grow, and so does their text.
        let written = self
            .file
            .write_all_at(text.as_bytes(), 0)
            .and_then(|()| self.file.set_len(text.len() as u64))
            .and_then(|()| self.file.sync_all());
        written.map_err(io_at(&self.path))
    }
}

/// Removes what was left half-made, by this call or by one that was killed. What had been taken out
/// of the attempt's folder goes back into it, unless something newer has its name. Under the lock.
fn recover(home: &Path, attempt: i32, folder: &Path) -> Result<(), PublishError> {
    for entry in fs::read_dir(home).map_err(io_at(home))?.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let is_ours = |verb: &str| name.starts_with(&format!("{verb}.{attempt}."));
        let path = entry.path();
        if is_ours("taking") {
            let taken = fs::read_dir(path.join(FILES)).into_iter().flatten();
            for taken in taken.flatten() {
                let back = folder.join(taken.file_name());
                if fs::symlink_metadata(&back).is_err() {
                    fs::rename(taken.path(), &back).map_err(io_at(&back))?;
                }
            }
        } else if !is_ours("copying") {
            continue;
        }
        fs::remove_dir_all(&path).map_err(io_at(&path))?;
    }
    Ok(())
}

/// Exchanges two folders in one step. Where the file system cannot, the attempt's folder is missing
/// for a moment.
fn exchange(folder: &Path, empty: &Path) -> io::Result<()> {
    match renameat_with(CWD, folder, CWD, empty, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            let mode = fs::metadata(empty)?.mode();
            fs::rename(folder, empty)?;
            DirBuilder::new().mode(mode & 0o777).create(folder)
        }
        Err(error) => Err(error.into()),
    }
}

/// Gives files with several names a content of their own: whoever has the other name may rewrite it.
/// The copies are made under another name outside of `root`, so that one which fails or is cut off
/// never becomes part of a checkpoint.
fn unshare(root: &Path, own: &Path) -> Result<(), PublishError> {
    for entry in walk(root)? {
        let path = root.join(&entry.path);
        let about = fs::symlink_metadata(&path).map_err(io_at(&path))?;
        if about.is_file() && about.nlink() > 1 {
            copy_file(&path, own)?;
            fs::rename(own, &path).map_err(io_at(&path))?;
        }
    }
    Ok(())
}

fn check_paths(paths: &[PathBuf]) -> Result<(), PublishError> {
    let mut names = BTreeSet::new();
    for path in paths {
        if fs::metadata(path).is_err() {
            return Err(PublishError::Missing(path.clone()));
        }
        let name = path
            .file_name()
            .ok_or_else(|| PublishError::NoName(path.clone()))?;
        let Some(text) = name.to_str() else {
            return Err(WalkError::Name(path.clone()).into());
        };
        if !names.insert(text.to_owned()) {
            return Err(PublishError::SameName(text.to_owned()));
        }
    }
    Ok(())
}

/// Copies a file, or a folder with everything in it. A link that is named itself is followed.
fn copy(from: &Path, to: &Path) -> Result<(), PublishError> {
    if fs::metadata(from).map_err(io_at(from))?.is_file() {
        return copy_file(from, to);
    }
    let entries = walk(from)?;
    fs::create_dir(to).map_err(io_at(to))?;
    for entry in entries {
        let (source, target) = (from.join(&entry.path), to.join(&entry.path));
        let folder = target.parent().unwrap_or(to);
        fs::create_dir_all(folder).map_err(io_at(folder))?;
        match entry.kind {
            Kind::File { .. } => copy_file(&source, &target)?,
            Kind::Link { target: to } => symlink(to, &target).map_err(io_at(&target))?,
            Kind::Folder => fs::create_dir_all(&target).map_err(io_at(&target))?,
        }
    }
    Ok(())
}

/// Copies a file; where the file system can, the two share their blocks until one is changed.
fn copy_file(from: &Path, to: &Path) -> Result<(), PublishError> {
    let source = File::open(from).map_err(io_at(from))?;
    let mode = source.metadata().map_err(io_at(from))?.mode();
    let mut target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode & 0o777)
        .open(to)
        .map_err(io_at(to))?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    // The kernel copies between files by itself.
    io::copy(&mut &source, &mut target).map_err(io_at(to))?;
    Ok(())
}

/// Brings files and the folders that hold them to the disk.
fn sync_files(root: &Path, entries: &[Entry]) -> Result<(), PublishError> {
    if entries.len() > SYNC_EACH {
        let folder = File::open(root).map_err(io_at(root))?;
        return rustix::fs::syncfs(&folder).map_err(|error| io_at(root)(error.into()));
    }
    let mut folders = BTreeSet::from([root.to_owned()]);
    for entry in entries {
        let path = root.join(&entry.path);
        folders.extend(
            path.ancestors()
                .skip(1)
                .take_while(|above| above.starts_with(root))
                .map(Path::to_owned),
        );
        match entry.kind {
            Kind::File { .. } => File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(io_at(&path))?,
            Kind::Folder => {
                folders.insert(path);
            }
            Kind::Link { .. } => {}
        }
    }
    folders.iter().try_for_each(|folder| sync_folder(folder))
}

fn sync_folder(path: &Path) -> Result<(), PublishError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(io_at(path))
}

fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a new file and brings it to the disk.
pub(crate) fn write_durably(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(contents)?;
    file.sync_all()
}
