//! Looks at everything in a folder, within limits.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::manifest::{Entry, Kind};

/// Most files, links and empty folders in a checkpoint.
pub const MAX_ENTRIES: usize = 100_000;

/// Most folders inside of each other.
pub const MAX_DEPTH: usize = 64;

/// Why something cannot be a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// It is neither a file, a folder nor a link.
    #[error("`{0}` is neither a file nor a folder")]
    Special(PathBuf),
    /// A link does not stay inside.
    #[error("`{0}` is a link that leads outside of the checkpoint, or nowhere")]
    Link(PathBuf),
    /// A name is not UTF-8.
    #[error("`{0}` has a name that is not UTF-8")]
    Name(PathBuf),
    /// There is too much.
    #[error("there are more than {MAX_ENTRIES} files")]
    TooMany,
    /// Folders are nested too deep.
    #[error("`{0}` is more than {MAX_DEPTH} folders deep")]
    TooDeep(PathBuf),
    /// The file system refuses.
    #[error("cannot read {path}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl WalkError {
    /// True when it is known to hold what no checkpoint holds, or to be missing. False when only
    /// that could not be found out, which may be otherwise a moment later.
    pub fn is_proof(&self) -> bool {
        match self {
            Self::Special(_) | Self::Link(_) | Self::Name(_) | Self::TooMany | Self::TooDeep(_) => {
                true
            }
            Self::Io { source, .. } => is_absence(source),
        }
    }
}

/// True when an error says that there is nothing of this name.
pub(crate) fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

pub(crate) fn io_at(path: &Path) -> impl FnOnce(io::Error) -> WalkError + '_ {
    move |source| WalkError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Everything below a folder, in the order of the paths.
///
/// # Errors
/// When something in it cannot be part of a checkpoint, or cannot be read.
pub fn walk(root: &Path) -> Result<Vec<Entry>, WalkError> {
    let real_root = fs::canonicalize(root).map_err(io_at(root))?;
    let mut entries = Vec::new();
    let mut folders = vec![(root.to_owned(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = folders.pop() {
        if depth > MAX_DEPTH {
            return Err(WalkError::TooDeep(folder));
        }
        let mut is_empty = true;
        for found in fs::read_dir(&folder).map_err(io_at(&folder))? {
            let found = found.map_err(io_at(&folder))?;
            is_empty = false;
            let path = found.path();
            let Some(name) = found.file_name().to_str().map(str::to_owned) else {
                return Err(WalkError::Name(path));
            };
            let inside = match prefix.as_str() {
                "" => name,
                prefix => format!("{prefix}/{name}"),
            };
            let about = fs::symlink_metadata(&path).map_err(io_at(&path))?;
            let kind = if about.is_dir() {
                folders.push((path, inside, depth + 1));
                continue;
            } else if about.is_file() {
                Kind::File {
                    bytes: about.len(),
                    executable: about.permissions().mode() & 0o100 != 0,
                }
            } else if about.is_symlink() {
                let target = fs::read_link(&path).map_err(io_at(&path))?;
                let stays = target.is_relative()
                    && match fs::canonicalize(&path) {
                        Ok(real) => real.starts_with(&real_root),
                        Err(error) if is_absence(&error) || is_circle(&error) => false,
                        Err(error) => return Err(io_at(&path)(error)),
                    };
                match target.to_str() {
                    Some(target) if stays => Kind::Link {
                        target: target.to_owned(),
                    },
                    _ => return Err(WalkError::Link(path)),
                }
            } else {
                return Err(WalkError::Special(path));
            };
            add(&mut entries, Entry { path: inside, kind })?;
        }
        if is_empty && !prefix.is_empty() {
            let kind = Kind::Folder;
            add(&mut entries, Entry { path: prefix, kind })?;
        }
    }
    entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

fn is_circle(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

fn add(entries: &mut Vec<Entry>, entry: Entry) -> Result<(), WalkError> {
    if entries.len() >= MAX_ENTRIES {
        return Err(WalkError::TooMany);
    }
    entries.push(entry);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn everything_is_found_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("b/c")).unwrap();
        fs::write(root.join("b/x"), "12").unwrap();
        fs::write(root.join("a"), "1").unwrap();
        fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink("../a", root.join("b/link")).unwrap();
        let found: Vec<_> = walk(root)
            .unwrap()
            .into_iter()
            .map(|entry| (entry.path, entry.kind))
            .collect();
        let file = |bytes, executable| Kind::File { bytes, executable };
        let target = "../a".to_owned();
        assert_eq!(
            found,
            [
                ("a".to_owned(), file(1, true)),
                ("b/c".to_owned(), Kind::Folder),
                ("b/link".to_owned(), Kind::Link { target }),
                ("b/x".to_owned(), file(2, false)),
            ]
        );
    }

    #[test]
    fn links_that_escape_and_special_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("deep/er")).unwrap();
        fs::write(folder.path().join("secret"), "x").unwrap();
        // The last one stays inside as text; the folder link before it takes it outside.
        symlink("../..", root.join("deep/er/up")).unwrap();
        assert!(walk(&root).is_ok());
        for target in [
            "/etc/passwd",
            "../secret",
            "nowhere",
            "link",
            "deep/er/up/../secret",
        ] {
            let link = root.join("link");
            symlink(target, &link).unwrap();
            assert!(matches!(walk(&root), Err(WalkError::Link(_))), "{target}");
            fs::remove_file(&link).unwrap();
        }
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        assert!(matches!(walk(&root), Err(WalkError::Special(_))));
    }
}
