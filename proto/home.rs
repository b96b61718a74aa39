//! Where an installation keeps its files.
//!
//! `QCTL_HOME` moves everything under one folder, so that several installations live side by side.
//! Otherwise a user's files follow the XDG base directories, and root's are in `/etc/qctl` and
//! `/var/lib/qctl`.

use std::path::{Path, PathBuf};

/// The folders of one installation. Creating them is the caller's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    config: PathBuf,
    data: PathBuf,
}

/// Why no folder could be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HomeError {
    /// `QCTL_HOME` names a relative path, which would depend on the current directory.
    #[error("QCTL_HOME must be an absolute path, not `{0}`")]
    Relative(PathBuf),
    /// Neither `QCTL_HOME` nor `HOME` is set.
    #[error("neither QCTL_HOME nor HOME is set, so there is no place for qctl's files")]
    NoHome,
    /// The file with the coordinator's address is not whole.
    #[error("{0} is torn: only a part of the coordinator's address is left in it")]
    Torn(PathBuf),
}

impl Home {
    /// Chooses the folders from the process environment.
    ///
    /// # Errors
    /// When `QCTL_HOME` is relative, or no home folder is known.
    pub fn from_env() -> Result<Self, HomeError> {
        let is_root = std::fs::metadata("/proc/self")
            .map(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
            .unwrap_or(false);
        Self::choose(|name| std::env::var_os(name).map(PathBuf::from), is_root)
    }

    /// An installation wholly under one folder.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        Self {
            config: folder.join("config"),
            data: folder.join("data"),
        }
    }

    fn choose(var: impl Fn(&str) -> Option<PathBuf>, is_root: bool) -> Result<Self, HomeError> {
        let var = |name: &str| var(name).filter(|value| !value.as_os_str().is_empty());
        if let Some(home) = var("QCTL_HOME") {
            if home.is_relative() {
                return Err(HomeError::Relative(home));
            }
            return Ok(Self::at(home));
        }
        if is_root {
            return Ok(Self {
                config: "/etc/qctl".into(),
                data: "/var/lib/qctl".into(),
            });
        }
        let folder = |name: &str, below: &str| {
            var(name)
                .filter(|path| path.is_absolute())
                .or_else(|| var("HOME").map(|home| home.join(below)))
                .map(|path| path.join("qctl"))
                .ok_or(HomeError::NoHome)
        };
        Ok(Self {
            config: folder("XDG_CONFIG_HOME", ".config")?,
            data: folder("XDG_DATA_HOME", ".local/share")?,
        })
    }

    /// Folder of the TOML files: `qctl.toml`, `server.toml`, `worker.toml`, `templates.toml`.
    pub fn config_dir(&self) -> &Path {
        &self.config
    }

    /// Folder of everything that programs write.
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// A configuration file by name.
    pub fn config_file(&self, name: &str) -> PathBuf {
        self.config.join(name)
    }

    /// The token of the installation's own user, mode 0600.
    pub fn token_file(&self) -> PathBuf {
        self.data.join("token")
    }

    /// Address that the running coordinator really listens on, one line; written by the coordinator.
    pub fn address_file(&self) -> PathBuf {
        self.data.join("address")
    }

    /// The address that the running coordinator wrote down; `None` when none did.
    ///
    /// # Errors
    /// [`HomeError::Torn`] when only a part of it is there, which may be another address.
    pub fn address(&self) -> Result<Option<String>, HomeError> {
        let path = self.address_file();
        let Ok(text) = std::fs::read_to_string(&path) else {
            return Ok(None);
        };
        match text.strip_suffix('\n') {
            Some(line) if !line.trim().is_empty() => Ok(Some(line.trim().to_owned())),
            _ => Err(HomeError::Torn(path)),
        }
    }

    /// Folder of the programs' own logs: `keeper.log`, `server.log`, `worker.log`.
    pub fn logs_dir(&self) -> PathBuf {
        self.data.join("logs")
    }

    /// Folder of the embedded Postgres: `pg`, `run`, `lock`, `postgres.log`.
    pub fn database_dir(&self) -> PathBuf {
        self.data.join("database")
    }

    /// Folder of the worker: identity, spool and checkpoints.
    pub fn worker_dir(&self) -> PathBuf {
        self.data.join("worker")
    }

    /// Lock held by the keeper for as long as it lives; contains its process id.
    pub fn keeper_lock(&self) -> PathBuf {
        self.data.join("keeper.lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F30: half an address may be another one.
    #[test]
    fn an_address_that_is_cut_at_any_byte_is_told_and_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        std::fs::create_dir(home.data_dir()).unwrap();
        assert_eq!(home.address(), Ok(None));
        let whole = "127.0.0.1:7420\n";
        for cut in 0..whole.len() {
            std::fs::write(home.address_file(), &whole[..cut]).unwrap();
            assert_eq!(home.address(), Err(HomeError::Torn(home.address_file())));
        }
        std::fs::write(home.address_file(), whole).unwrap();
        assert_eq!(home.address(), Ok(Some("127.0.0.1:7420".to_owned())));
    }

    fn choose(vars: &[(&str, &str)], is_root: bool) -> Result<Home, HomeError> {
        let vars: Vec<_> = vars
            .iter()
            .map(|(k, v)| (k.to_string(), PathBuf::from(v)))
            .collect();
        Home::choose(
            |name| {
                vars.iter()
                    .find(|(key, _)| key == name)
                    .map(|(_, value)| value.clone())
            },
            is_root,
        )
    }

    #[test]
    fn qctl_home_moves_everything_even_for_root() {
        let home = choose(&[("QCTL_HOME", "/srv/q"), ("HOME", "/root")], true).unwrap();
        assert_eq!(home, Home::at("/srv/q"));
        assert_eq!(home.token_file(), Path::new("/srv/q/data/token"));
    }

    #[test]
    fn a_relative_qctl_home_is_refused() {
        assert!(matches!(
            choose(&[("QCTL_HOME", "q")], false),
            Err(HomeError::Relative(_))
        ));
    }

    #[test]
    fn a_user_follows_xdg_and_ignores_relative_xdg_folders() {
        let home = choose(
            &[
                ("HOME", "/home/a"),
                ("XDG_CONFIG_HOME", "rel"),
                ("XDG_DATA_HOME", "/d"),
            ],
            false,
        );
        let home = home.unwrap();
        assert_eq!(home.config_dir(), Path::new("/home/a/.config/qctl"));
        assert_eq!(home.data_dir(), Path::new("/d/qctl"));
    }

    #[test]
    fn root_keeps_out_of_its_home_because_postgres_could_not_enter_it() {
        let home = choose(&[("HOME", "/root")], true).unwrap();
        assert_eq!(home.data_dir(), Path::new("/var/lib/qctl"));
    }
}
