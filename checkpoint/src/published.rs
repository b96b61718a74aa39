//! Published checkpoints as the worker finds them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::digest::Hash;
use crate::manifest::{MAX_BYTES, Manifest, ManifestError};
use crate::publish::write_durably;
use crate::walk::is_absence;

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const FILES: &str = "files";
const HASH: &str = "hash";
const REFUSED: &str = "refused";
const REMOVED: &str = "removed";
/// Files on their way out.
const GONE: &str = "gone";

/// Where the published checkpoints of a job are, below the folder with its attempts' folders.
pub fn published_folder(job_folder: &Path) -> PathBuf {
    job_folder.join("published")
}

/// True when an attempt has left something in its folder, or has published out of it.
pub fn is_used(attempt_folder: &Path) -> bool {
    let has_entries =
        fs::read_dir(attempt_folder).is_ok_and(|mut entries| entries.next().is_some());
    let name = attempt_folder.file_name().and_then(|name| name.to_str());
    let lock = attempt_folder
        .parent()
        .zip(name)
        .map(|(job_folder, name)| published_folder(job_folder).join(format!("{name}.lock")));
    has_entries || lock.is_some_and(|lock| lock.exists())
}

/// A published checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    folder: PathBuf,
    /// What it is.
    pub manifest: Manifest,
}

/// Something that has the name of a published checkpoint.
#[derive(Debug)]
pub struct Found {
    /// Number of the attempt, from the name.
    pub attempt: i32,
    /// Its number within the attempt, from the name.
    pub number: i32,
    /// The checkpoint, when its manifest is well.
    pub checkpoint: Result<Published, ReadError>,
}

/// Why a checkpoint cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The manifest is not well.
    #[error("{path} cannot be used")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ManifestError,
    },
    /// The manifest is of another checkpoint.
    #[error("{path} belongs to checkpoint {attempt}.{number}")]
    Other {
        /// The file.
        path: PathBuf,
        /// The attempt that it names.
        attempt: i32,
        /// The number that it names.
        number: i32,
    },
    /// The file system refuses.
    #[error("cannot read {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ReadError {
    /// True when it is known not to be what was published. False when only that could not be found
    /// out: by this version of the program, or at this moment.
    pub fn is_proof(&self) -> bool {
        match self {
            Self::Manifest { source, .. } => source.is_proof(),
            Self::Other { .. } => true,
            Self::Io { source, .. } => is_absence(source),
        }
    }
}

/// Attempts and numbers of the published checkpoints in a folder, in order.
pub(crate) fn numbers(home: &Path) -> io::Result<Vec<(i32, i32)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(home)? {
        let name = entry?.file_name();
        let parts = name.to_str().and_then(|name| name.split_once('.'));
        found.extend(parts.and_then(|(attempt, number)| {
            Some((attempt.parse::<i32>().ok()?, number.parse::<i32>().ok()?))
        }));
    }
    found.sort_unstable();
    Ok(found)
}

/// The published checkpoints of a job, oldest first. No folder means none.
///
/// # Errors
/// When the folder cannot be read.
pub fn scan(job_folder: &Path) -> io::Result<Vec<Found>> {
    let home = published_folder(job_folder);
    let numbers = match numbers(&home) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        numbers => numbers?,
    };
    let found = numbers.into_iter().map(|(attempt, number)| Found {
        attempt,
        number,
        checkpoint: read(&home, attempt, number),
    });
    Ok(found.collect())
}

fn read(home: &Path, attempt: i32, number: i32) -> Result<Published, ReadError> {
    let published = open(&home.join(format!("{attempt}.{number}")))?;
    let manifest = &published.manifest;
    if (manifest.attempt, manifest.number) != (attempt, number) {
        return Err(ReadError::Other {
            path: published.folder.join(MANIFEST),
            attempt: manifest.attempt,
            number: manifest.number,
        });
    }
    Ok(published)
}

/// Reads the checkpoint in a folder.
///
/// # Errors
/// When its manifest is missing, damaged, or cannot be read.
pub fn open(folder: &Path) -> Result<Published, ReadError> {
    let path = folder.join(MANIFEST);
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|source| ReadError::Io {
            path: path.clone(),
            source,
        })?;
    let manifest =
        Manifest::decode(&bytes).map_err(|source| ReadError::Manifest { path, source })?;
    Ok(Published::new(folder.to_owned(), manifest))
}

impl Published {
    pub(crate) fn new(folder: PathBuf, manifest: Manifest) -> Self {
        Self { folder, manifest }
    }

    /// Makes the folder of a checkpoint that came from elsewhere; its files follow.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn create(folder: &Path, manifest: Manifest) -> io::Result<Self> {
        fs::create_dir_all(folder.join(FILES))?;
        write_durably(&folder.join(MANIFEST), &manifest.encode())?;
        Ok(Self::new(folder.to_owned(), manifest))
    }

    /// The folder that is the checkpoint.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder with its contents, to resume from.
    pub fn files(&self) -> PathBuf {
        self.folder.join(FILES)
    }

    /// True while its contents are kept.
    pub fn has_files(&self) -> bool {
        self.files().is_dir()
    }

    /// The same, where it matters whether they are missing or only cannot be looked at.
    ///
    /// # Errors
    /// When the file system does not tell.
    pub fn find_files(&self) -> io::Result<bool> {
        match fs::metadata(self.files()) {
            Ok(about) => Ok(about.is_dir()),
            Err(error) if is_absence(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The hash that was recorded; `None` when none was, or the record is damaged.
    pub fn hash(&self) -> Option<Hash> {
        let text = fs::read_to_string(self.folder.join(HASH)).ok()?;
        text.trim().parse().ok()
    }

    /// Records the hash of its contents, durably.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn record_hash(&self, hash: Hash) -> io::Result<()> {
        let new = self.folder.join("hash.new");
        write_durably(&new, format!("{hash}\n").as_bytes())?;
        fs::rename(&new, self.folder.join(HASH))?;
        File::open(&self.folder)?.sync_all()
    }

    /// True when the coordinator did not take it.
    pub fn is_refused(&self) -> bool {
        self.folder.join(REFUSED).exists()
    }

    /// Notes that the coordinator did not take it, so that it is not told again.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn refuse(&self) -> io::Result<()> {
        write_durably(&self.folder.join(REFUSED), b"")
    }

    /// True when its contents were removed on purpose. Without them otherwise, it is damaged.
    pub fn is_removed(&self) -> bool {
        self.folder.join(REMOVED).exists()
    }

    /// Removes its contents and leaves what it was.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove_files(&self) -> io::Result<()> {
        write_durably(&self.folder.join(REMOVED), b"")?;
        let gone = self.folder.join(GONE);
        match fs::rename(self.files(), &gone) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        absent(fs::remove_dir_all(&gone))
    }

    /// Removes it altogether.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove(&self) -> io::Result<()> {
        // Without its contents it is never taken for a whole one, even if the rest does not succeed.
        if self.folder.exists() {
            self.remove_files()?;
        }
        absent(fs::remove_dir_all(&self.folder))
    }
}

/// Removes what an attempt without any process left unpublished, and the folders that are empty then.
/// What was published stays.
///
/// # Errors
/// When the file system refuses.
pub fn remove_leftovers(job_folder: &Path, attempt: i32) -> io::Result<()> {
    absent(fs::remove_dir_all(job_folder.join(attempt.to_string())))?;
    let home = published_folder(job_folder);
    let has_published = match numbers(&home) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        numbers => numbers?.iter().any(|(of, _)| *of == attempt),
    };
    if !has_published {
        for entry in fs::read_dir(&home).into_iter().flatten() {
            let path = entry?.path();
            if is_half_made(&path, attempt) {
                absent(fs::remove_dir_all(&path))?;
            }
        }
        absent(fs::remove_file(home.join(format!("{attempt}.lock"))))?;
    }
    for folder in [&home, job_folder] {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            removed => absent(removed)?,
        }
    }
    Ok(())
}

/// True for the name of a checkpoint of an attempt that is being made, or never was finished.
fn is_half_made(path: &Path, attempt: i32) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| {
        ["taking", "copying"]
            .iter()
            .any(|verb| name.starts_with(&format!("{verb}.{attempt}.")))
    })
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
