//! The hash over a checkpoint's contents.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::manifest::{Entry, Kind};
use crate::walk::{WalkError, is_absence, walk};

/// Piece in which files are read, in bytes.
const PIECE_BYTES: usize = 256 * 1024;

/// SHA-256 over names, kinds, sizes and contents, in the order of the paths.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hash([u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not `sha256:` and 64 hexadecimal digits");
        let digits = text.strip_prefix("sha256:").ok_or_else(bad)?.as_bytes();
        let digit = |byte: u8| (byte as char).to_digit(16);
        let mut hash = [0; 32];
        if digits.len() != 64 {
            return Err(bad());
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let (high, low) = digit(pair[0]).zip(digit(pair[1])).ok_or_else(bad)?;
            *byte = (high * 16 + low) as u8;
        }
        Ok(Self(hash))
    }
}

/// Why a checkpoint is not what was published.
#[derive(Debug, thiserror::Error)]
pub enum DamageError {
    /// Something is in it that was not published, or the other way round.
    #[error("`{0}` is missing, new or of another kind or size")]
    Entry(String),
    /// The contents are others.
    #[error("its contents have changed: their hash is {found}, not {expected}")]
    Hash {
        /// The hash that was recorded.
        expected: Hash,
        /// The hash that it has.
        found: Hash,
    },
    /// A file changed its length while it was read.
    #[error("{0} changed while it was read")]
    Changing(PathBuf),
    /// The folder cannot be looked at, or holds what no checkpoint holds.
    #[error("its files cannot be listed")]
    Walk(#[from] WalkError),
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was not wanted any more.
    #[error("nobody waits for it any more")]
    Cancelled,
}

impl DamageError {
    /// True when it is known not to be what was published. False when only that could not be found
    /// out, which may be otherwise a moment later.
    pub fn is_proof(&self) -> bool {
        match self {
            Self::Entry(_) | Self::Hash { .. } | Self::Changing(_) => true,
            Self::Walk(error) => error.is_proof(),
            Self::Read { source, .. } => is_absence(source),
            Self::Cancelled => false,
        }
    }
}

/// Hashes the contents of a folder that should hold `entries`. Reads every byte; `wanted` is asked
/// now and then.
///
/// # Errors
/// When something cannot be read or has another size, or `wanted` says no.
pub fn digest(
    root: &Path,
    entries: &[Entry],
    wanted: &dyn Fn() -> bool,
) -> Result<Hash, DamageError> {
    let mut hasher = Sha256::new();
    let text = |parts: &[&str], hasher: &mut Sha256| {
        for part in parts {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
    };
    let mut piece = vec![0; PIECE_BYTES];
    for entry in entries {
        match &entry.kind {
            Kind::Folder => text(&["folder", &entry.path], &mut hasher),
            Kind::Link { target } => text(&["link", &entry.path, target], &mut hasher),
            Kind::File { bytes, executable } => {
                let kind = if *executable { "program" } else { "file" };
                text(&[kind, &entry.path], &mut hasher);
                hasher.update(bytes.to_be_bytes());
                let path = root.join(&entry.path);
                let read = hash_file(&path, &mut piece, &mut hasher, wanted)?;
                if read != *bytes {
                    return Err(DamageError::Changing(path));
                }
            }
        }
    }
    Ok(Hash(hasher.finalize().into()))
}

fn hash_file(
    path: &Path,
    piece: &mut [u8],
    hasher: &mut Sha256,
    wanted: &dyn Fn() -> bool,
) -> Result<u64, DamageError> {
    let at = |source| DamageError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(at)?;
    let mut total = 0;
    loop {
        if !wanted() {
            return Err(DamageError::Cancelled);
        }
        match file.read(piece) {
            Ok(0) => return Ok(total),
            Ok(length) => {
                hasher.update(&piece[..length]);
                total += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(at(error)),
        }
    }
}

/// Compares a folder with what was published: names and sizes first, because that is cheap, then
/// every byte. Returns its hash.
///
/// # Errors
/// When it differs, cannot be read, or `wanted` says no.
pub fn verify(
    root: &Path,
    entries: &[Entry],
    expected: Option<Hash>,
    wanted: &dyn Fn() -> bool,
) -> Result<Hash, DamageError> {
    let found = walk(root)?;
    if let Some(name) = difference(&found, entries) {
        return Err(DamageError::Entry(name.to_owned()));
    }
    let found = digest(root, entries, wanted)?;
    match expected {
        Some(expected) if expected != found => Err(DamageError::Hash { expected, found }),
        _ => Ok(found),
    }
}

/// The first path at which two lists differ.
fn difference<'a>(found: &'a [Entry], expected: &'a [Entry]) -> Option<&'a str> {
    let (first, second) = found
        .iter()
        .map(Some)
        .chain(std::iter::repeat(None))
        .zip(expected.iter().map(Some).chain(std::iter::repeat(None)))
        .take(found.len().max(expected.len()))
        .find(|(found, expected)| found != expected)?;
    let first = first.map(|entry| entry.path.as_str());
    let second = second.map(|entry| entry.path.as_str());
    match (first, second) {
        (Some(first), Some(second)) => Some(first.min(second)),
        (first, second) => first.or(second),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "one").unwrap();
        fs::write(folder.path().join("b"), "two").unwrap();
        folder
    }

    #[test]
    fn a_hash_is_read_as_it_is_written() {
        let folder = folder();
        let hash = digest(folder.path(), &walk(folder.path()).unwrap(), &|| true).unwrap();
        assert_eq!(hash.to_string().parse::<Hash>().unwrap(), hash);
        for bad in ["", "sha256:", "md5:00", &hash.to_string()[..70]] {
            assert!(bad.parse::<Hash>().is_err());
        }
        assert!(hash.to_string().replace(':', ":+").parse::<Hash>().is_err());
    }

    #[test]
    fn every_change_is_damage() {
        let folder = folder();
        let root = folder.path();
        let entries = walk(root).unwrap();
        let hash = verify(root, &entries, None, &|| true).unwrap();
        let check = || verify(root, &entries, Some(hash), &|| true);
        assert!(check().is_ok());

        fs::write(root.join("b"), "twp").unwrap();
        assert!(matches!(check(), Err(DamageError::Hash { .. })));
        fs::write(root.join("b"), "twos").unwrap();
        assert!(matches!(check(), Err(DamageError::Entry(name)) if name == "b"));
        fs::remove_file(root.join("b")).unwrap();
        assert!(matches!(check(), Err(DamageError::Entry(name)) if name == "b"));
        fs::write(root.join("b"), "two").unwrap();
        fs::write(root.join("aa"), "").unwrap();
        assert!(matches!(check(), Err(DamageError::Entry(name)) if name == "aa"));
    }

    #[test]
    fn what_belongs_to_a_name_counts_for_it_alone() {
        let first = folder();
        let second = tempfile::tempdir().unwrap();
        fs::write(second.path().join("a"), "onetwo").unwrap();
        fs::write(second.path().join("b"), "").unwrap();
        let hash = |root: &Path| digest(root, &walk(root).unwrap(), &|| true).unwrap();
        assert_ne!(hash(first.path()), hash(second.path()));
    }

    #[test]
    fn what_cannot_be_read_for_a_moment_is_no_damage() {
        use rustix::io::Errno;
        let read = |errno: Errno| DamageError::Read {
            path: PathBuf::from("a"),
            source: errno.into(),
        };
        for moment in [
            Errno::IO,
            Errno::MFILE,
            Errno::NFILE,
            Errno::ACCESS,
            Errno::NOMEM,
        ] {
            assert!(!read(moment).is_proof(), "{moment}");
            let path = PathBuf::from("a");
            let source = moment.into();
            assert!(!DamageError::from(WalkError::Io { path, source }).is_proof());
        }
        assert!(read(Errno::NOENT).is_proof() && read(Errno::NOTDIR).is_proof());

        // A file that is missing, and one that nothing can be said about: its path goes in circles.
        let folder = folder();
        let entries = walk(folder.path()).unwrap();
        let verified = |root: &Path| verify(root, &entries, None, &|| true).unwrap_err();
        assert!(verified(&folder.path().join("nowhere")).is_proof());
        let circle = folder.path().join("circle");
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        assert!(!verified(&circle).is_proof());
    }

    #[test]
    fn hashing_ends_when_nobody_wants_it() {
        let folder = folder();
        let entries = walk(folder.path()).unwrap();
        let ended = digest(folder.path(), &entries, &|| false);
        assert!(matches!(ended, Err(DamageError::Cancelled)));
    }
}
