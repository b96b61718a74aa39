//! The command line's configuration: flag, then variable, then `qctl.toml`, then default.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qctl_proto::DEFAULT_ADDRESS;
use qctl_proto::home::Home;
use serde::Deserialize;

use crate::args::Connection;
use crate::error::{Error, Problem};

/// Name of the file in the configuration folder.
pub const FILE: &str = "qctl.toml";

/// The checked configuration.
#[derive(Debug)]
pub struct Config {
    home: Result<Home, String>,
    server: Option<String>,
    token_file: Option<PathBuf>,
    authority: Option<PathBuf>,
}

/// `qctl.toml` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Address of the coordinator, or the name of one of `servers`.
    server: Option<String>,
    token_file: Option<PathBuf>,
    authority: Option<PathBuf>,
    /// Coordinators by name.
    #[serde(default)]
    servers: BTreeMap<String, Server>,
}

/// A named coordinator of `qctl.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Server {
    address: String,
    token_file: Option<PathBuf>,
    authority: Option<PathBuf>,
}

impl Config {
    /// Merges what was given with `qctl.toml`.
    ///
    /// # Errors
    /// When the file exists but cannot be read or understood.
    pub fn load(given: Connection) -> Result<Self, Error> {
        let home = Home::from_env();
        let file = match &home {
            Ok(home) => read(&home.config_file(FILE))?,
            Err(_) => File::default(),
        };
        Ok(Self::merge(given, file, home.map_err(|e| e.to_string())))
    }

    fn merge(given: Connection, file: File, home: Result<Home, String>) -> Self {
        let server = given.server.or(file.server);
        let named = server
            .as_ref()
            .and_then(|name| file.servers.get(name))
            .cloned();
        match named {
            Some(named) => Self {
                home,
                server: Some(named.address),
                token_file: given.token_file.or(named.token_file).or(file.token_file),
                authority: given.authority.or(named.authority).or(file.authority),
            },
            None => Self {
                home,
                server,
                token_file: given.token_file.or(file.token_file),
                authority: given.authority.or(file.authority),
            },
        }
    }

    /// This installation's folders.
    ///
    /// # Errors
    /// When the environment names none.
    pub fn home(&self) -> Result<&Home, Error> {
        self.home.as_ref().map_err(|message| {
            Problem::new("NO_HOME", crate::exit::ERROR, message)
                .hint("set QCTL_HOME to an absolute folder for qctl's files")
                .into()
        })
    }

    /// The coordinator's address, and whether the user named it: otherwise it is the one that
    /// this installation's coordinator wrote down, or the default.
    pub fn address(&self) -> (String, bool) {
        if let Some(server) = &self.server {
            return (server.clone(), true);
        }
        let written = self.home.as_ref().ok();
        let written = written.and_then(|home| home.address().ok().flatten());
        (written.unwrap_or_else(|| DEFAULT_ADDRESS.to_owned()), false)
    }

    /// The data folder of this installation, when its own coordinator is meant and does not run:
    /// it writes its address there for as long as it does. Another one that happens to listen
    /// on the default address must not be sent this installation's token.
    pub fn down_here(&self) -> Option<&Path> {
        let home = self.home.as_ref().ok()?;
        let own = self.server.is_none() && self.token_file.is_none();
        (own && !home.address_file().exists()).then(|| home.data_dir())
    }

    /// The file that holds the token.
    ///
    /// # Errors
    /// When neither it nor a home is known.
    pub fn token_file(&self) -> Result<PathBuf, Error> {
        match &self.token_file {
            Some(path) => Ok(path.clone()),
            None => Ok(self.home()?.token_file()),
        }
    }

    /// PEM file of the authority to trust, for `https`.
    pub fn authority(&self) -> Option<PathBuf> {
        self.authority.clone()
    }

    /// The result of the merge as TOML, for `--print-config`. Holds no secret: the token is named
    /// by its file.
    pub fn to_toml(&self) -> String {
        let mut table = toml::Table::new();
        let mut put = |key: &str, value: String| {
            table.insert(key.to_owned(), toml::Value::String(value));
        };
        put("server", self.address().0);
        if let Ok(path) = self.token_file() {
            put("token_file", path.display().to_string());
        }
        if let Some(path) = &self.authority {
            put("authority", path.display().to_string());
        }
        if let Ok(home) = &self.home {
            put("config_dir", home.config_dir().display().to_string());
            put("data_dir", home.data_dir().display().to_string());
        }
        table.to_string()
    }
}

fn read(path: &Path) -> Result<File, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).map_err(|error| {
            Problem::usage(format!("{} is not valid: {error}", path.display())).into()
        }),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(File::default())
        }
        Err(source) => Err(Error::file("read", path)(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(server: Option<&str>, file: &str) -> Config {
        let given = Connection {
            server: server.map(str::to_owned),
            token_file: None,
            authority: None,
        };
        Config::merge(
            given,
            toml::from_str(file).unwrap(),
            Ok(Home::at("/nowhere")),
        )
    }

    #[test]
    fn a_named_server_brings_its_own_token() {
        let file = r#"
            server = "lab"
            token_file = "/t/default"
            [servers.lab]
            address = "https://lab:7420"
            token_file = "/t/lab"
        "#;
        let config = merged(None, file);
        assert_eq!(config.address(), ("https://lab:7420".to_owned(), true));
        assert_eq!(config.token_file().unwrap(), Path::new("/t/lab"));
        let config = merged(Some("10.0.0.1:1"), file);
        assert_eq!(config.address().0, "10.0.0.1:1");
        assert_eq!(config.token_file().unwrap(), Path::new("/t/default"));
    }

    #[test]
    fn without_anything_the_default_address_is_used() {
        assert_eq!(
            merged(None, "").address(),
            (DEFAULT_ADDRESS.to_owned(), false)
        );
    }

    #[test]
    fn an_own_coordinator_that_wrote_no_address_is_down() {
        assert_eq!(
            merged(None, "").down_here(),
            Some(Path::new("/nowhere/data"))
        );
        assert_eq!(merged(Some("lab:1"), "").down_here(), None);
        assert_eq!(merged(None, "token_file = '/t'").down_here(), None);
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        std::fs::create_dir(home.data_dir()).unwrap();
        std::fs::write(home.address_file(), "127.0.0.1:1").unwrap();
        let given = Connection::default();
        assert_eq!(
            Config::merge(given, File::default(), Ok(home)).down_here(),
            None
        );
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(toml::from_str::<File>("sever = 'x'").is_err());
    }
}
