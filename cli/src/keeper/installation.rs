//! What must be there before anything can run: folders, the token, the programs.

use std::fmt::Write as _;
use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use qctl_proto::home::Home;

use super::{Program, report};

/// Bytes of a token, before they are written as hexadecimal digits.
const TOKEN_BYTES: usize = 32;

/// Why the installation could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum InstallationError {
    /// A folder cannot be made.
    #[error("cannot create the folder {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The token cannot be read or made.
    #[error("cannot prepare the token {path}")]
    Token {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The token file is there but empty.
    #[error("the token file {0} is empty")]
    EmptyToken(PathBuf),
    /// No random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
    /// This program's own place is unknown.
    #[error("cannot tell where this program is")]
    OwnPlace(#[source] io::Error),
    /// A program is not where it must be.
    #[error("{program} is not beside qctl in {folder}")]
    Missing {
        /// The executable's name.
        program: &'static str,
        /// Where it was looked for.
        folder: PathBuf,
    },
}

/// Makes the folders and the token where they are not there yet.
///
/// # Errors
/// When one of them cannot be made.
pub fn prepare(home: &Home) -> Result<(), InstallationError> {
    let is_root = rustix::process::geteuid().is_root();
    // The database of a root installation runs as another user, who must be able to pass.
    let passable = if is_root { 0o711 } else { 0o700 };
    for (path, mode) in [
        (home.data_dir().to_owned(), passable),
        (home.config_dir().to_owned(), 0o755),
        (home.logs_dir(), 0o700),
        (report::folder(home), 0o700),
    ] {
        create_folder(&path, mode).map_err(|source| InstallationError::Folder { path, source })?;
    }
    prepare_token(&home.token_file())
}

fn create_folder(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    // The mode asked for, whatever the umask.
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

fn prepare_token(path: &Path) -> Result<(), InstallationError> {
    let wrong = |source| InstallationError::Token {
        path: path.to_owned(),
        source,
    };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.size() == 0 => {
            return Err(InstallationError::EmptyToken(path.to_owned()));
        }
        Ok(metadata) if metadata.mode() & 0o077 != 0 => {
            return std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(wrong);
        }
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(wrong(error)),
    }
    let mut secret = [0_u8; TOKEN_BYTES];
    getrandom::fill(&mut secret).map_err(InstallationError::Random)?;
    let token = secret.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    place_token(path, &token).map_err(wrong)
}

/// Puts a whole token in place unless another one got there first.
fn place_token(path: &Path, token: &str) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    let _ = std::fs::remove_file(&fresh);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    let placed = writeln!(file, "{token}")
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::hard_link(&fresh, path));
    let _ = std::fs::remove_file(&fresh);
    match placed {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// The folder of this program, in which the other two must be.
///
/// # Errors
/// When one of them is not there or cannot be run.
pub fn programs() -> Result<PathBuf, InstallationError> {
    let own = std::env::current_exe().map_err(InstallationError::OwnPlace)?;
    let folder = own.parent().unwrap_or(Path::new("/")).to_owned();
    for program in Program::ALL {
        let path = folder.join(program.executable());
        let can_run = std::fs::metadata(&path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0);
        if !can_run {
            return Err(InstallationError::Missing {
                program: program.executable(),
                folder,
            });
        }
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_is_nobody_elses_business() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path().join("home"));
        prepare(&home).unwrap();
        let token = std::fs::read_to_string(home.token_file()).unwrap();
        assert_eq!(token.trim().len(), 2 * TOKEN_BYTES);
        let mode = || std::fs::metadata(home.token_file()).unwrap().mode() & 0o777;
        assert_eq!(mode(), 0o600);

        std::fs::set_permissions(home.token_file(), Permissions::from_mode(0o644)).unwrap();
        prepare(&home).unwrap();
        assert_eq!(mode(), 0o600);
        assert_eq!(std::fs::read_to_string(home.token_file()).unwrap(), token);
    }

    #[test]
    fn two_at_once_agree_on_one_token() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        place_token(&path, "first").unwrap();
        place_token(&path, "second").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "first\n");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_empty_token_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        std::fs::create_dir_all(home.data_dir()).unwrap();
        std::fs::write(home.token_file(), "").unwrap();
        let error = prepare(&home).unwrap_err();
        assert!(matches!(error, InstallationError::EmptyToken(_)));
    }
}
