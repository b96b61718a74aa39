//! Secrets in files: 32 random bytes in hexadecimal, readable by their owner only.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Longest secret file, in bytes.
const LONGEST: u64 = 4096;

/// Digits of a secret that was made here.
const DIGITS: usize = 64;

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read or written.
    #[error("cannot use the secret file {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds nothing that could be a secret.
    #[error("the secret file {path} holds no secret; remove it, and a new one is made")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file holds only a part of the secret that was made.
    #[error(
        "the secret file {path} is torn: it holds {digits} of {DIGITS} digits; restore it, or remove \
         it, and a new one is made"
    )]
    Torn {
        /// The file.
        path: PathBuf,
        /// How many digits are left.
        digits: usize,
    },
    /// The system has no random numbers.
    #[error("the system gives no random numbers")]
    Random(#[from] getrandom::Error),
}

/// Reads the secret, making it first if the file is absent.
pub(super) fn read_or_make(path: &Path) -> Result<String, SecretError> {
    match read(path) {
        Err(SecretError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            make(path)?;
            read(path)
        }
        read => read,
    }
}

/// Reads the secret.
pub(super) fn read(path: &Path) -> Result<String, SecretError> {
    let failed = |source| SecretError::File {
        path: path.to_owned(),
        source,
    };
    let meta = std::fs::metadata(path).map_err(failed)?;
    if meta.mode() & 0o077 != 0 {
        tracing::warn!(
            "others may read the secret file {path}: chmod 600 {path}",
            path = path.display()
        );
    }
    if meta.len() > LONGEST {
        return Err(SecretError::Empty {
            path: path.to_owned(),
        });
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let secret = text.trim();
    let is_ours = secret.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_ours && (1..DIGITS).contains(&secret.len()) && !text.ends_with('\n') {
        return Err(SecretError::Torn {
            path: path.to_owned(),
            digits: secret.len(),
        });
    }
    if secret.len() < 16 {
        return Err(SecretError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(secret.to_owned())
}

/// Makes the secret aside and links it into its place, so that nobody reads half of one and of two
/// programs that make it at once both use the same.
fn make(path: &Path) -> Result<(), SecretError> {
    let failed = |source| SecretError::File {
        path: path.to_owned(),
        source,
    };
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let draft = path.with_extension(format!("new-{}", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| {
            writeln!(file, "{text}")?;
            file.sync_all()
        })
        .and_then(|()| match std::fs::hard_link(&draft, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        });
    let removed = std::fs::remove_file(&draft);
    written.and(removed).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once_and_only_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data/token");
        let secret = read_or_make(&path).unwrap();
        assert_eq!(secret.len(), 64);
        assert_eq!(read_or_make(&path).unwrap(), secret);
        let mode = std::fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        let files = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(files, 1);
    }

    /// F30: a part of a secret is easier to guess, and no other program has it.
    #[test]
    fn a_secret_that_is_cut_at_any_byte_is_told_and_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let secret = read_or_make(&path).unwrap();
        for cut in 0..secret.len() {
            std::fs::write(&path, &secret[..cut]).unwrap();
            let told = read_or_make(&path).unwrap_err().to_string();
            assert!(told.contains("remove it"), "{cut}: {told}");
        }
        std::fs::write(&path, &secret).unwrap();
        assert_eq!(read_or_make(&path).unwrap(), secret);
    }

    #[test]
    fn an_empty_file_is_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(
            read_or_make(&path),
            Err(SecretError::Empty { .. })
        ));
    }
}
