//! Which of the machine's Postgres programs to run.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::EmbeddedError;

/// Oldest major version whose SQL the migrations can use.
const OLDEST: u32 = 13;

/// Folders in which distributions keep one `bin` a major version, as prefix and suffix of it.
const VERSIONED: [(&str, &str, &str); 3] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr/lib/postgresql", "", "usr/bin"),
    ("/usr", "pgsql-", "bin"),
];

/// A folder with `postgres` and `initdb` of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binaries {
    pub(super) folder: PathBuf,
    pub(super) major: u32,
}

impl Binaries {
    pub(super) fn postgres(&self) -> PathBuf {
        self.folder.join("postgres")
    }

    pub(super) fn initdb(&self) -> PathBuf {
        self.folder.join("initdb")
    }
}

/// Chooses the programs: the given folder, or the ones that fit the cluster's version, or the
/// newest.
pub(super) fn choose(given: Option<&Path>, cluster: &Path) -> Result<Binaries, EmbeddedError> {
    let wanted = cluster_major(cluster)?;
    let found = match given {
        Some(folder) => {
            let binaries = inspect(folder).ok_or_else(|| EmbeddedError::NotPostgres {
                folder: folder.to_owned(),
            })?;
            vec![binaries]
        }
        None => installed(std::env::var_os("PATH")),
    };
    pick(found, wanted, cluster)
}

fn pick(
    found: Vec<Binaries>,
    wanted: Option<u32>,
    cluster: &Path,
) -> Result<Binaries, EmbeddedError> {
    let newest = found.iter().map(|binaries| binaries.major).max();
    let suitable = found
        .into_iter()
        .filter(|binaries| match wanted {
            Some(major) => binaries.major == major,
            None => binaries.major >= OLDEST,
        })
        // The first of equals stands: versioned folders come before PATH.
        .reduce(
            |best, next| {
                if next.major > best.major { next } else { best }
            },
        );
    match (suitable, wanted, newest) {
        (Some(binaries), _, _) => Ok(binaries),
        (None, Some(wanted), Some(found)) => Err(EmbeddedError::OtherMajor {
            cluster: cluster.to_owned(),
            wanted,
            found,
        }),
        (None, None, Some(found)) => Err(EmbeddedError::TooOld {
            found,
            oldest: OLDEST,
        }),
        (None, wanted, None) => Err(EmbeddedError::NoPrograms { wanted }),
    }
}

/// The major version that made the cluster; none when there is no cluster yet.
fn cluster_major(cluster: &Path) -> Result<Option<u32>, EmbeddedError> {
    let path = cluster.join("PG_VERSION");
    match std::fs::read_to_string(&path) {
        Ok(text) => match text.trim().split('.').next().map(str::parse) {
            Some(Ok(major)) => Ok(Some(major)),
            _ => Err(EmbeddedError::UnknownCluster { path }),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if cluster.exists() {
                Err(EmbeddedError::UnknownCluster { path })
            } else {
                Ok(None)
            }
        }
        Err(source) => Err(EmbeddedError::Folder { path, source }),
    }
}

fn installed(path: Option<OsString>) -> Vec<Binaries> {
    let versioned = VERSIONED.iter().flat_map(|(base, prefix, suffix)| {
        let entries = std::fs::read_dir(base).into_iter().flatten().flatten();
        entries.filter_map(move |entry| {
            let name = entry.file_name();
            let version = name.to_str()?.strip_prefix(prefix)?;
            version.parse::<u32>().ok()?;
            Some(entry.path().join(suffix))
        })
    });
    let path = path.unwrap_or_default();
    let listed: Vec<_> = std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .collect();
    versioned
        .chain(listed)
        .filter_map(|folder| inspect(&folder))
        .collect()
}

/// Reads the version of the programs in a folder; none when one of them is missing or does not run.
fn inspect(folder: &Path) -> Option<Binaries> {
    // A distribution may put a wrapper or a link into PATH: the folder of the real program is the
    // one that holds all the others.
    let folder = folder.join("postgres").canonicalize().ok()?;
    let folder = folder.parent()?.to_owned();
    if !folder.join("initdb").is_file() {
        return None;
    }
    let output = Command::new(folder.join("postgres"))
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let major = major_in(std::str::from_utf8(&output.stdout).ok()?)?;
    Some(Binaries { folder, major })
}

/// The major version in `postgres (PostgreSQL) 15.18 (Debian 15.18-1)` or `… 17beta2`.
fn major_in(version: &str) -> Option<u32> {
    let number = version.split_once("(PostgreSQL) ")?.1;
    let digits = number
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(number.len());
    number[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binaries(folder: &str, major: u32) -> Binaries {
        Binaries {
            folder: folder.into(),
            major,
        }
    }

    #[test]
    fn versions_are_read_as_distributions_print_them() {
        assert_eq!(
            major_in("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(major_in("postgres (PostgreSQL) 19beta2\n"), Some(19));
        assert_eq!(major_in("something else"), None);
    }

    #[test]
    fn a_new_cluster_takes_the_newest_and_an_old_one_its_own() {
        let found = vec![binaries("/a", 14), binaries("/b", 17), binaries("/c", 17)];
        let cluster = Path::new("/data/pg");
        assert_eq!(
            pick(found.clone(), None, cluster).unwrap(),
            binaries("/b", 17)
        );
        assert_eq!(
            pick(found.clone(), Some(14), cluster).unwrap(),
            binaries("/a", 14)
        );
        assert!(matches!(
            pick(found, Some(15), cluster),
            Err(EmbeddedError::OtherMajor {
                wanted: 15,
                found: 17,
                ..
            })
        ));
    }

    #[test]
    fn no_programs_and_too_old_ones_are_told_apart() {
        let cluster = Path::new("/data/pg");
        assert!(matches!(
            pick(vec![], None, cluster),
            Err(EmbeddedError::NoPrograms { wanted: None })
        ));
        assert!(matches!(
            pick(vec![binaries("/a", 9)], None, cluster),
            Err(EmbeddedError::TooOld { found: 9, .. })
        ));
    }

    #[test]
    fn a_folder_without_a_version_is_no_cluster_to_overwrite() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            cluster_major(folder.path()),
            Err(EmbeddedError::UnknownCluster { .. })
        ));
        assert_eq!(cluster_major(&folder.path().join("absent")).unwrap(), None);
    }
}
