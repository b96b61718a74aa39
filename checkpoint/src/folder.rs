//! Whether a folder is the one that a worker gave to an attempt.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Longest identity that is read, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// What is read of a worker's identity.
#[derive(Deserialize)]
struct Identity {
    spool_id: String,
}

/// Why a folder is not an attempt's folder for checkpoints.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// There is no such folder.
    #[error("the folder for checkpoints, {0}, is not there")]
    Missing(PathBuf),
    /// It is another folder: nobody would find what is published there.
    #[error("{folder} is not the folder for checkpoints of attempt {job}.{attempt}")]
    Another {
        /// The folder.
        folder: PathBuf,
        /// The job.
        job: i64,
        /// The attempt's number within the job.
        attempt: i32,
    },
    /// It cannot be found out.
    #[error("cannot read {path}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Checks that a folder is the one that the worker with this spool gives to an attempt. A folder of
/// any other name, or below anything that is not that worker's folder, is not looked into by it.
///
/// # Errors
/// When it is not, is not there, or this cannot be found out.
pub fn check_folder(
    folder: &Path,
    spool_id: &str,
    job: i64,
    attempt: i32,
) -> Result<(), FolderError> {
    let io_at = |path: &Path, source| FolderError::Io {
        path: path.to_owned(),
        source,
    };
    match fs::metadata(folder) {
        Ok(about) if about.is_dir() => {}
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_at(folder, error)),
        _ => return Err(FolderError::Missing(folder.to_owned())),
    }
    let another = || FolderError::Another {
        folder: folder.to_owned(),
        job,
        attempt,
    };
    let mut above = folder.ancestors();
    for name in [&attempt.to_string(), &job.to_string(), "checkpoints"] {
        let part = above.next().ok_or_else(another)?;
        if part.file_name() != Some(name.as_ref()) {
            return Err(another());
        }
    }
    let identity = above.next().ok_or_else(another)?.join("identity.json");
    let mut text = Vec::new();
    match File::open(&identity) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(another()),
        opened => opened.and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text)),
    }
    .map_err(|error| io_at(&identity, error))?;
    let known: Identity = serde_json::from_slice(&text).map_err(|_| another())?;
    if known.spool_id == spool_id {
        Ok(())
    } else {
        Err(another())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_folder_that_the_worker_gave_is_the_attempts() {
        let worker = tempfile::tempdir().unwrap();
        let identity = worker.path().join("identity.json");
        fs::write(&identity, r#"{"worker_id": "w", "spool_id": "s"}"#).unwrap();
        let folder = worker.path().join("checkpoints/42/1");
        fs::create_dir_all(&folder).unwrap();
        assert!(check_folder(&folder, "s", 42, 1).is_ok());
        let is_another = |folder: &Path, spool: &str, job, attempt| {
            let checked = check_folder(folder, spool, job, attempt);
            matches!(checked, Err(FolderError::Another { .. }))
        };
        assert!(is_another(&folder, "copy", 42, 1));
        assert!(is_another(&folder, "s", 42, 2));
        assert!(is_another(&folder, "s", 43, 1));
        assert!(is_another(worker.path(), "s", 42, 1));
        assert!(is_another(&folder.join(".."), "s", 42, 1));
        assert!(is_another(Path::new("/"), "s", 42, 1));
        // Of the same name, in a place of the job's own.
        let own = tempfile::tempdir().unwrap();
        let same_name = own.path().join("checkpoints/42/1");
        fs::create_dir_all(&same_name).unwrap();
        assert!(is_another(&same_name, "s", 42, 1));
        fs::write(own.path().join("identity.json"), "{}").unwrap();
        assert!(is_another(&same_name, "s", 42, 1));

        let missing = check_folder(&folder.join("nowhere"), "s", 42, 1);
        assert!(matches!(missing, Err(FolderError::Missing(_))));
    }
}
