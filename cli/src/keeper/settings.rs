//! What `qctl up` was told, remembered in `data/up.toml` so that a later bare `up` repeats it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use qctl_proto::home::Home;
use serde::{Deserialize, Serialize};

use crate::keeper::Program;

/// Name of the file in the data folder.
const FILE: &str = "up.toml";

/// The remembered options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Address to listen on; absent means the coordinator's own configuration or default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Address in links.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
    /// Slots of the worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// Name of the worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Folder of the Postgres programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pg_bin: Option<PathBuf>,
    /// True when no worker runs here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_worker: bool,
}

/// Why the remembered options cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what `up` writes.
    #[error("{path} is not valid: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
}

impl Settings {
    /// Where the options are remembered.
    pub fn file(home: &Home) -> PathBuf {
        home.data_dir().join(FILE)
    }

    /// Reads what was remembered; nothing when there is no file.
    ///
    /// # Errors
    /// When the file is there but cannot be read or understood.
    pub fn load(home: &Home) -> Result<Self, SettingsError> {
        let path = Self::file(home);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(SettingsError::Read { path, source }),
        };
        toml::from_str(&text).map_err(|error| SettingsError::Invalid {
            path,
            message: error.to_string(),
        })
    }

    /// Remembers the options, replacing what was there.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, home: &Home) -> Result<(), SettingsError> {
        let path = Self::file(home);
        let text = toml::to_string(self).map_err(|error| SettingsError::Invalid {
            path: path.clone(),
            message: error.to_string(),
        })?;
        replace(&path, text.as_bytes()).map_err(|source| SettingsError::Write { path, source })
    }

    /// Lays newly given options over the remembered ones. A worker refused earlier stays refused
    /// until an option about the worker is given.
    #[must_use]
    pub fn overlaid(self, given: Self) -> Self {
        let asks_for_worker = given.slots.is_some() || given.name.is_some();
        Self {
            listen: given.listen.or(self.listen),
            public_url: given.public_url.or(self.public_url),
            slots: given.slots.or(self.slots),
            name: given.name.or(self.name),
            pg_bin: given.pg_bin.or(self.pg_bin),
            no_worker: given.no_worker || (self.no_worker && !asks_for_worker),
        }
    }

    /// The variables by which a program is told of these options.
    pub fn variables(&self, program: Program) -> BTreeMap<String, String> {
        let mut variables = BTreeMap::new();
        let mut put = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                variables.insert(name.to_owned(), value);
            }
        };
        match program {
            Program::Server => {
                put("QCTL_LISTEN", self.listen.clone());
                put("QCTL_PUBLIC_URL", self.public_url.clone());
                let folder = self.pg_bin.as_ref();
                put("QCTL_PG_BIN", folder.map(|path| path.display().to_string()));
            }
            Program::Worker => {
                put("QCTL_WORKER_NAME", self.name.clone());
                put(
                    "QCTL_WORKER_SLOTS",
                    self.slots.map(|slots| slots.to_string()),
                );
            }
        }
        variables
    }

    /// The address to listen on when it is a plain one with a fixed port.
    pub fn fixed_address(&self) -> Option<SocketAddr> {
        let listen = self
            .listen
            .as_deref()
            .unwrap_or(qctl_proto::DEFAULT_ADDRESS);
        listen
            .parse()
            .ok()
            .filter(|address: &SocketAddr| address.port() != 0)
    }
}

/// Writes a file under another name and renames it into place, so that nobody reads half of it.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    std::fs::write(&fresh, content)?;
    std::fs::rename(&fresh, path).inspect_err(|_| {
        let _ = std::fs::remove_file(&fresh);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(folder: &tempfile::TempDir) -> Home {
        let home = Home::at(folder.path());
        std::fs::create_dir_all(home.data_dir()).unwrap();
        home
    }

    fn some() -> Settings {
        Settings {
            listen: Some("127.0.0.1:7999".to_owned()),
            slots: Some(3),
            ..Settings::default()
        }
    }

    #[test]
    fn a_bare_up_repeats_what_an_earlier_one_was_told() {
        let folder = tempfile::tempdir().unwrap();
        let home = home(&folder);
        assert_eq!(Settings::load(&home).unwrap(), Settings::default());
        some().save(&home).unwrap();
        let later = Settings::load(&home).unwrap().overlaid(Settings::default());
        assert_eq!(later, some());
    }

    #[test]
    fn a_newly_given_option_wins_and_the_others_stay() {
        let given = Settings {
            slots: Some(1),
            name: Some("box".to_owned()),
            ..Settings::default()
        };
        let merged = some().overlaid(given);
        assert_eq!(merged.listen.as_deref(), Some("127.0.0.1:7999"));
        assert_eq!(merged.slots, Some(1));
        assert_eq!(merged.name.as_deref(), Some("box"));
    }

    #[test]
    fn a_refused_worker_stays_refused_until_one_is_asked_for() {
        let refused = Settings {
            no_worker: true,
            ..Settings::default()
        };
        assert!(refused.clone().overlaid(Settings::default()).no_worker);
        assert!(!refused.overlaid(some()).no_worker);
    }

    #[test]
    fn a_broken_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let home = home(&folder);
        std::fs::write(Settings::file(&home), "slots = \"many\"").unwrap();
        let error = Settings::load(&home).unwrap_err().to_string();
        assert!(error.contains("up.toml is not valid"), "{error}");
    }

    #[test]
    fn each_program_is_told_only_what_concerns_it() {
        let server = some().variables(Program::Server);
        assert_eq!(server.keys().collect::<Vec<_>>(), ["QCTL_LISTEN"]);
        let worker = some().variables(Program::Worker);
        assert_eq!(
            worker.get("QCTL_WORKER_SLOTS").map(String::as_str),
            Some("3")
        );
        assert_eq!(worker.len(), 1);
    }

    #[test]
    fn only_a_fixed_port_can_be_looked_at_beforehand() {
        let listen = |listen: &str| {
            Settings {
                listen: Some(listen.to_owned()),
                ..Settings::default()
            }
            .fixed_address()
        };
        assert_eq!(listen("127.0.0.1:0"), None);
        assert_eq!(listen("queue.example:7420"), None);
        assert!(listen("[::1]:7420").is_some());
        assert!(Settings::default().fixed_address().is_some());
    }
}
