//! What a checkpoint is and what belongs to it.

use std::collections::HashSet;
use std::path::{Component, Path};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// The version of the format that this program writes. Later ones are not read.
pub const FORMAT: u32 = 1;

/// Longest manifest that is read, in bytes.
pub(crate) const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// A checkpoint's description, written beside its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format.
    pub format: u32,
    /// The job.
    pub job: i64,
    /// The attempt's number within the job.
    pub attempt: i32,
    /// The attempt's fence.
    pub fence: i64,
    /// Counts from 1 within the attempt, with gaps.
    pub number: i32,
    /// How far the job was, as it counts itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<i64>,
    /// What the job says about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// The job wants it to be uploaded, whatever its size.
    #[serde(default)]
    pub upload: bool,
    /// When it was published, by the worker's clock.
    pub created_at: DateTime<Utc>,
    /// Size of all files, in bytes.
    pub bytes: u64,
    /// Everything in it, in the order of the paths.
    pub entries: Vec<Entry>,
}

/// Something in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its path within the checkpoint, with `/` between the parts.
    pub path: String,
    /// What it is.
    #[serde(flatten)]
    pub kind: Kind,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Kind {
    /// A file.
    File {
        /// Its size.
        bytes: u64,
        /// Its owner may execute it.
        #[serde(default)]
        executable: bool,
    },
    /// A symbolic link to something else in the checkpoint.
    Link {
        /// Where it points, relative to its own folder.
        target: String,
    },
    /// A folder with nothing in it.
    Folder,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is cut off or damaged.
    #[error("the manifest is cut off or damaged")]
    Json(#[source] serde_json::Error),
    /// A later version of the program wrote it.
    #[error("the manifest has format {0}, and this program reads up to {FORMAT}")]
    Format(u32),
    /// It names something outside of the checkpoint.
    #[error("the manifest names `{0}`, which is not inside of the checkpoint")]
    Path(String),
    /// Its entries do not follow each other.
    #[error("the manifest's entries are not in order at `{0}`")]
    Order(String),
    /// One entry lies inside of another that is no folder.
    #[error("the manifest names `{0}`, which lies inside of a file, a link or an empty folder")]
    Inside(String),
    /// Its sizes do not add up.
    #[error("the manifest says {said} bytes in all, and its files are {counted} bytes")]
    Bytes {
        /// What it says.
        said: u64,
        /// What its files come to.
        counted: u64,
    },
}

impl ManifestError {
    /// True when it is known to be damaged; a later version of the program may read what this one
    /// does not know.
    pub fn is_proof(&self) -> bool {
        !matches!(self, Self::Format(_))
    }
}

impl Manifest {
    /// The manifest as it is stored.
    pub fn encode(&self) -> Vec<u8> {
        // Plain data with text keys: this cannot fail.
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Reads a manifest, wherever it came from: nothing in it points outside of the checkpoint.
    ///
    /// # Errors
    /// When it is damaged, of a later version, or contradicts itself.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        if manifest.format > FORMAT {
            return Err(ManifestError::Format(manifest.format));
        }
        let mut counted = 0u64;
        let mut last: Option<&str> = None;
        for entry in &manifest.entries {
            if !is_inside(&entry.path) {
                return Err(ManifestError::Path(entry.path.clone()));
            }
            if last.is_some_and(|last| last >= entry.path.as_str()) {
                return Err(ManifestError::Order(entry.path.clone()));
            }
            last = Some(&entry.path);
            if let Kind::File { bytes, .. } = entry.kind {
                counted = counted.saturating_add(bytes);
            }
        }
        let paths: HashSet<&str> = manifest.entries.iter().map(|entry| &*entry.path).collect();
        for entry in &manifest.entries {
            let mut above = entry
                .path
                .match_indices('/')
                .map(|(at, _)| &entry.path[..at]);
            if above.any(|above| paths.contains(above)) {
                return Err(ManifestError::Inside(entry.path.clone()));
            }
        }
        if counted != manifest.bytes {
            return Err(ManifestError::Bytes {
                said: manifest.bytes,
                counted,
            });
        }
        Ok(manifest)
    }

    /// How many files and links it has.
    pub fn files(&self) -> usize {
        let is_file = |entry: &&Entry| !matches!(entry.kind, Kind::Folder);
        self.entries.iter().filter(is_file).count()
    }
}

/// True for a plain relative path: no root, no `.` and `..`, no empty part.
fn is_inside(path: &str) -> bool {
    let plain = Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    plain
        && !path.is_empty()
        && !path.contains("//")
        && !path.ends_with('/')
        && !path.contains('\0')
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn manifest() -> Manifest {
        Manifest {
            format: FORMAT,
            job: 42,
            attempt: 2,
            fence: 77,
            number: 3,
            step: Some(300),
            note: "after the third epoch".to_owned(),
            upload: false,
            created_at: DateTime::from_timestamp(1_795_000_000, 250_000_000).unwrap(),
            bytes: 12,
            entries: vec![
                Entry {
                    path: "empty".to_owned(),
                    kind: Kind::Folder,
                },
                Entry {
                    path: "latest".to_owned(),
                    kind: Kind::Link {
                        target: "model/weights".to_owned(),
                    },
                },
                Entry {
                    path: "model/weights".to_owned(),
                    kind: Kind::File {
                        bytes: 12,
                        executable: true,
                    },
                },
            ],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Manifest::decode(&manifest().encode()).unwrap(), manifest());
        assert_eq!(manifest().files(), 2);
    }

    #[test]
    fn a_manifest_cut_off_anywhere_is_refused() {
        let whole = manifest().encode();
        // The last byte is the newline behind the document.
        for length in 0..whole.len() - 1 {
            let error = Manifest::decode(&whole[..length]).unwrap_err();
            assert!(matches!(error, ManifestError::Json(_)), "{length}: {error}");
        }
    }

    #[test]
    fn a_manifest_that_leads_outside_is_refused() {
        for path in [
            "/etc/passwd",
            "../x",
            "a/../b",
            "./a",
            "a//b",
            "a/",
            "",
            "a\0b",
        ] {
            let mut outside = manifest();
            outside.entries[2].path = path.to_owned();
            outside.entries.drain(..2);
            let error = Manifest::decode(&outside.encode()).unwrap_err();
            assert!(matches!(error, ManifestError::Path(_)), "{path}: {error}");
        }
    }

    #[test]
    fn a_manifest_that_writes_through_a_link_is_refused() {
        let mut through = manifest();
        through.entries[2].path = "latest/weights".to_owned();
        let error = Manifest::decode(&through.encode()).unwrap_err();
        assert!(matches!(error, ManifestError::Inside(_)), "{error}");
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_refused() {
        let mut wrong = manifest();
        wrong.bytes = 13;
        assert!(Manifest::decode(&wrong.encode()).is_err());
        let mut twice = manifest();
        twice.entries[0].path = "latest".to_owned();
        assert!(Manifest::decode(&twice.encode()).is_err());
        let mut later = manifest();
        later.format = FORMAT + 1;
        assert!(Manifest::decode(&later.encode()).is_err());
    }

    #[test]
    fn a_manifest_of_the_first_version_stays_readable() {
        let first = br#"{"format":1,"job":1,"attempt":1,"fence":5,"number":1,
            "created_at":"2026-11-21T09:00:00Z","bytes":3,"entries":[
            {"path":"state","kind":"file","bytes":3}],"what_comes_later":true}"#;
        let manifest = Manifest::decode(first).unwrap();
        assert_eq!((manifest.step, manifest.note.as_str()), (None, ""));
        assert_eq!(manifest.files(), 1);
    }
}
