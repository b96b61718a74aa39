//! `notify.toml` of an installation: whom to tell, how, and when not. Coordinator, worker and
//! keeper of one machine read the same file, because each of them may have to tell alone.
//! Secrets are files of their own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, NaiveTime, Utc};
use serde::Deserialize;

use crate::channel::{Channel, Severity};
use crate::command::Command;
use crate::desktop::Desktop;
use crate::ntfy::Ntfy;
use crate::pushover::{Emergency, Pushover};
use crate::webhook::Webhook;
use crate::words::{Language, Zone};

/// Pushover's own address.
pub const PUSHOVER: &str = "https://api.pushover.net";
/// Largest file that holds a secret.
const MAX_SECRET: usize = 4_096;

/// Hours in which only what is bad enough is told; they may span midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet {
    /// They begin at this time of the wall clock.
    pub from: NaiveTime,
    /// They end at this one.
    pub to: NaiveTime,
    /// What is milder than this waits until they end.
    pub below: Severity,
}

impl Quiet {
    /// True at this time of the wall clock.
    pub fn contains(&self, wall: NaiveTime) -> bool {
        match self.from < self.to {
            true => (self.from..self.to).contains(&wall),
            false => wall >= self.from || wall < self.to,
        }
    }
}

/// Whether something is told to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// At once.
    Now,
    /// After the quiet hours.
    Later,
    /// It is too mild.
    Never,
}

/// The checked settings of one installation.
#[derive(Clone)]
pub struct Settings {
    /// The language of notices.
    pub language: Language,
    /// The zone of times in them.
    pub zone: Zone,
    /// What is milder is kept in the history only.
    pub minimum: Severity,
    /// When to wait with what is not urgent.
    pub quiet: Option<Quiet>,
    /// A success is told when the job ran at least this long.
    pub success_after: Duration,
    /// Good news wait this long for others, to be told as one.
    pub gather: Duration,
    /// Notices of one class in an hour, beyond which they are told as one.
    pub per_hour: usize,
    /// A worker tells that the coordinator is away after this; zero means never.
    pub dead_man_after: Duration,
    /// The coordinator does not come up for this long before the keeper tells; zero means never.
    pub coordinator_down_after: Duration,
    /// The database is away for this long before that is told.
    pub database_away_after: Duration,
    /// The ways to a person, in order; empty when none is set up.
    pub channels: Vec<Arc<dyn Channel>>,
    /// What was configured, for `--print-config`; holds no secrets.
    shown: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            language: Language::default(),
            zone: Zone::default(),
            minimum: Severity::Info,
            quiet: None,
            success_after: Duration::from_secs(120),
            gather: Duration::from_secs(60),
            per_hour: 3,
            dead_man_after: Duration::from_secs(300),
            coordinator_down_after: Duration::from_secs(30),
            database_away_after: Duration::from_secs(5),
            channels: Vec::new(),
            shown: String::new(),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Display for Settings {
    /// The settings as comments of TOML.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML, or has a key that means nothing.
    #[error("{path} has no meaning")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<toml::de::Error>,
    },
    /// A value may not be used.
    #[error("{path}: {key} {problem}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong; continues a sentence that begins with the key.
        problem: String,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Raw {
    language: Option<String>,
    time_zone: Option<String>,
    minimum: Option<String>,
    quiet: Option<String>,
    quiet_below: Option<String>,
    success_after: Option<String>,
    gather: Option<String>,
    per_hour: Option<usize>,
    dead_man_after: Option<String>,
    coordinator_down_after: Option<String>,
    database_away_after: Option<String>,
    pushover: Option<RawPushover>,
    webhook: Option<RawWebhook>,
    ntfy: Option<RawNtfy>,
    desktop: Option<RawDesktop>,
    command: Option<RawCommand>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawPushover {
    token_file: Option<PathBuf>,
    user_file: Option<PathBuf>,
    device: String,
    url: Option<String>,
    emergency: Option<RawEmergency>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEmergency {
    retry: String,
    expire: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWebhook {
    url_file: PathBuf,
    secret_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNtfy {
    url_file: PathBuf,
    token_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDesktop {
    #[serde(default = "notify_send")]
    program: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCommand {
    command: Vec<String>,
}

fn notify_send() -> String {
    "notify-send".to_owned()
}

impl Settings {
    /// Reads `notify.toml` of a configuration folder. Without it, Pushover is used when the folder
    /// has the files `pushover-token` and `pushover-user`, and nobody is told otherwise.
    /// `QCTL_PUSHOVER_TOKEN_FILE`, `QCTL_PUSHOVER_USER_FILE` and `QCTL_PUSHOVER_URL` go before the
    /// file.
    ///
    /// # Errors
    /// When a file cannot be read or a value may not be used.
    pub fn load(folder: &Path) -> Result<Self, SettingsError> {
        Self::read(folder, |name| {
            std::env::var(name).ok().filter(|value| !value.is_empty())
        })
    }

    fn read(
        folder: &Path,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        let path = folder.join("notify.toml");
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read.map_err(|source| SettingsError::File {
                path: path.clone(),
                source,
            })?,
        };
        let raw: Raw = toml::from_str(&text).map_err(|source| SettingsError::Read {
            path: path.clone(),
            source: Box::new(source),
        })?;
        let reader = Reader { folder, path };
        let defaults = Self::default();
        let locale = ["LC_ALL", "LC_MESSAGES", "LANG"]
            .iter()
            .find_map(|name| variable(name))
            .unwrap_or_default();
        let language = match raw.language.as_deref() {
            None => Language::of_locale(&locale),
            Some(tag) => Language::ALL
                .into_iter()
                .find(|language| language.tag() == tag)
                .ok_or_else(|| reader.wrong("language", format!("is `{tag}`, not `en` or `ja`")))?,
        };
        let zone = match raw.time_zone.as_deref() {
            None => Zone::Local,
            Some(name) => Zone::named(name).ok_or_else(|| {
                reader.wrong(
                    "time_zone",
                    format!("is `{name}`, not a zone such as `Asia/Tokyo`"),
                )
            })?,
        };
        let below = reader.severity("quiet_below", raw.quiet_below, Severity::Error)?;
        let quiet = match raw.quiet.as_deref() {
            None => None,
            Some(hours) => {
                let (from, to) = read_hours(hours).ok_or_else(|| {
                    reader.wrong(
                        "quiet",
                        format!("is `{hours}`, not hours such as `23:00-07:00`"),
                    )
                })?;
                Some(Quiet { from, to, below })
            }
        };
        let mut settings = Self {
            language,
            zone,
            minimum: reader.severity("minimum", raw.minimum, defaults.minimum)?,
            quiet,
            success_after: reader.time(
                "success_after",
                raw.success_after,
                defaults.success_after,
            )?,
            gather: reader.time("gather", raw.gather, defaults.gather)?,
            per_hour: raw.per_hour.unwrap_or(defaults.per_hour).clamp(1, 1_000),
            dead_man_after: reader.time(
                "dead_man_after",
                raw.dead_man_after,
                defaults.dead_man_after,
            )?,
            coordinator_down_after: reader.time(
                "coordinator_down_after",
                raw.coordinator_down_after,
                defaults.coordinator_down_after,
            )?,
            database_away_after: reader.time(
                "database_away_after",
                raw.database_away_after,
                defaults.database_away_after,
            )?,
            channels: Vec::new(),
            shown: String::new(),
        };
        let pushover = reader.pushover(raw.pushover, &variable)?;
        settings.channels.extend(pushover);
        if let Some(raw) = raw.webhook {
            let url = reader.secret("webhook.url_file", &raw.url_file)?;
            let secret =
                reader.optional_secret("webhook.secret_file", raw.secret_file.as_deref())?;
            let made = Webhook::new(url, secret).map_err(|why| reader.wrong("webhook", why))?;
            settings.channels.push(Arc::new(made));
        }
        if let Some(raw) = raw.ntfy {
            let url = reader.secret("ntfy.url_file", &raw.url_file)?;
            let token = reader.optional_secret("ntfy.token_file", raw.token_file.as_deref())?;
            let made = Ntfy::new(&url, token).map_err(|why| reader.wrong("ntfy.url_file", why))?;
            settings.channels.push(Arc::new(made));
        }
        if let Some(raw) = raw.desktop {
            settings.channels.push(Arc::new(Desktop::new(raw.program)));
        }
        if let Some(raw) = raw.command {
            if raw.command.first().is_none_or(String::is_empty) {
                return Err(reader.wrong("command.command", "names no program".to_owned()));
            }
            settings.channels.push(Arc::new(Command::new(raw.command)));
        }
        settings.shown = settings.describe(&reader.path);
        Ok(settings)
    }

    /// Whether something this bad is told at this moment. What is critical always is.
    pub fn telling(&self, severity: Severity, now: DateTime<Utc>) -> Telling {
        if severity < self.minimum {
            return Telling::Never;
        }
        let waits = self.quiet.is_some_and(|quiet| {
            severity < quiet.below && quiet.contains(self.zone.wall(now).time())
        });
        match waits {
            true => Telling::Later,
            false => Telling::Now,
        }
    }

    /// The names of the channels, in order.
    pub fn channel_names(&self) -> Vec<&'static str> {
        self.channels.iter().map(|channel| channel.name()).collect()
    }

    fn describe(&self, path: &Path) -> String {
        let zone = match &self.zone {
            Zone::Local => "of this machine".to_owned(),
            Zone::Named(zone) => zone.iana_name().unwrap_or_default().to_owned(),
        };
        let quiet = self.quiet.map_or_else(String::new, |quiet| {
            format!(
                "# quiet {}-{} below {}\n",
                quiet.from.format("%H:%M"),
                quiet.to.format("%H:%M"),
                quiet.below
            )
        });
        let channels = match self.channels.is_empty() {
            true => "none, so that nobody is told".to_owned(),
            false => self.channel_names().join(", "),
        };
        format!(
            "# {}\n# notices by {channels}\n# language {}, time zone {zone}, from severity {}\n{quiet}",
            path.display(),
            self.language.tag(),
            self.minimum,
        )
    }
}

struct Reader<'a> {
    folder: &'a Path,
    path: PathBuf,
}

impl Reader<'_> {
    fn wrong(&self, key: &'static str, problem: String) -> SettingsError {
        SettingsError::Value {
            path: self.path.clone(),
            key,
            problem,
        }
    }

    fn severity(
        &self,
        key: &'static str,
        given: Option<String>,
        default: Severity,
    ) -> Result<Severity, SettingsError> {
        let Some(given) = given else {
            return Ok(default);
        };
        Severity::parse(&given).ok_or_else(|| {
            self.wrong(
                key,
                format!("is `{given}`, not `info`, `warning`, `error` or `critical`"),
            )
        })
    }

    fn time(
        &self,
        key: &'static str,
        given: Option<String>,
        default: Duration,
    ) -> Result<Duration, SettingsError> {
        const LONGEST: Duration = Duration::from_secs(31 * 24 * 60 * 60);
        let Some(given) = given else {
            return Ok(default);
        };
        humantime::parse_duration(&given)
            .ok()
            .filter(|time| *time <= LONGEST)
            .ok_or_else(|| {
                self.wrong(
                    key,
                    format!("is `{given}`, not a time of at most 31 days such as `90s` or `5m`"),
                )
            })
    }

    /// A secret from a file; a relative path lies beside the settings.
    fn secret(&self, key: &'static str, path: &Path) -> Result<String, SettingsError> {
        let path = self.folder.join(path);
        let text = std::fs::read_to_string(&path).map_err(|source| SettingsError::File {
            path: path.clone(),
            source,
        })?;
        let text = text.trim();
        if text.is_empty() || text.len() > MAX_SECRET || text.contains(char::is_whitespace) {
            return Err(self.wrong(
                key,
                format!("names {}, which is not one word", path.display()),
            ));
        }
        Ok(text.to_owned())
    }

    fn optional_secret(
        &self,
        key: &'static str,
        path: Option<&Path>,
    ) -> Result<Option<String>, SettingsError> {
        path.map(|path| self.secret(key, path)).transpose()
    }

    fn pushover(
        &self,
        raw: Option<RawPushover>,
        variable: &impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Arc<dyn Channel>>, SettingsError> {
        let asked_for = raw.is_some();
        let raw = raw.unwrap_or_default();
        let file = |name: &str, given: Option<PathBuf>, default: &str| -> (bool, PathBuf) {
            let given = variable(name).map(PathBuf::from).or(given);
            (
                given.is_some(),
                given.unwrap_or_else(|| self.folder.join(default)),
            )
        };
        let (names_token, token) =
            file("QCTL_PUSHOVER_TOKEN_FILE", raw.token_file, "pushover-token");
        let (names_user, user) = file("QCTL_PUSHOVER_USER_FILE", raw.user_file, "pushover-user");
        let there = |path: &Path| self.folder.join(path).exists();
        if !(asked_for || names_token || names_user || there(&token) || there(&user)) {
            return Ok(None);
        }
        let emergency = match raw.emergency {
            None => None,
            Some(raw) => {
                let emergency = Emergency {
                    retry: self.time(
                        "pushover.emergency.retry",
                        Some(raw.retry),
                        Duration::ZERO,
                    )?,
                    expire: self.time(
                        "pushover.emergency.expire",
                        Some(raw.expire),
                        Duration::ZERO,
                    )?,
                };
                if emergency.retry < Duration::from_secs(30)
                    || emergency.expire > Duration::from_secs(10_800)
                    || emergency.expire < emergency.retry
                {
                    return Err(self.wrong(
                        "pushover.emergency",
                        "must repeat at most every 30s and end after at most 3h".to_owned(),
                    ));
                }
                Some(emergency)
            }
        };
        let url = variable("QCTL_PUSHOVER_URL")
            .or(raw.url)
            .unwrap_or_else(|| PUSHOVER.to_owned());
        let made = Pushover::new(
            &url,
            self.secret("pushover.token_file", &token)?,
            self.secret("pushover.user_file", &user)?,
            raw.device,
            emergency,
        )
        .map_err(|why| self.wrong("pushover", why))?;
        Ok(Some(Arc::new(made)))
    }
}

fn read_hours(text: &str) -> Option<(NaiveTime, NaiveTime)> {
    let (from, to) = text.split_once('-')?;
    let read = |part: &str| NaiveTime::parse_from_str(part.trim(), "%H:%M").ok();
    let (from, to) = (read(from)?, read(to)?);
    (from != to).then_some((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, files: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        if !text.is_empty() {
            std::fs::write(folder.path().join("notify.toml"), text).unwrap();
        }
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        Settings::read(folder.path(), |_| None)
    }

    const BOTH: &[(&str, &str)] = &[("pushover-token", "ttt\n"), ("pushover-user", "uuu\n")];

    #[test]
    fn two_files_are_enough_for_pushover_and_no_file_means_nobody() {
        assert_eq!(read("", BOTH).unwrap().channel_names(), ["pushover"]);
        let none = read("", &[]).unwrap();
        assert!(none.channels.is_empty());
        assert!(none.to_string().contains("nobody is told"), "{none}");
        let half = read("", &BOTH[..1]).unwrap_err();
        assert!(half.to_string().contains("pushover-user"), "{half}");
    }

    #[test]
    fn everything_can_be_said_and_no_secret_is_shown() {
        let text = r#"
            language = "ja"
            time_zone = "Asia/Tokyo"
            minimum = "warning"
            quiet = "23:00-07:00"
            quiet_below = "critical"
            success_after = "10m"
            gather = "0s"
            per_hour = 5
            dead_man_after = "1m"
            coordinator_down_after = "10s"
            database_away_after = "1s"
            [pushover]
            device = "phone"
            emergency = { retry = "60s", expire = "1h" }
            [webhook]
            url_file = "hook"
            secret_file = "hook-secret"
            [ntfy]
            url_file = "topic"
            [desktop]
            [command]
            command = ["/bin/true", "x"]
        "#;
        let mut files = BOTH.to_vec();
        files.extend([
            ("hook", "https://h.example/hidden"),
            ("hook-secret", "hidden2"),
            ("topic", "https://ntfy.sh/hidden3"),
        ]);
        let settings = read(text, &files).unwrap();
        assert_eq!(
            settings.channel_names(),
            ["pushover", "webhook", "ntfy", "desktop", "command"]
        );
        assert_eq!(settings.language, Language::Japanese);
        assert_eq!(settings.quiet.unwrap().below, Severity::Critical);
        let shown = format!("{settings}{settings:?}{:?}", settings.channels);
        for secret in ["ttt", "uuu", "hidden"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    #[test]
    fn the_mild_is_never_told_and_the_night_is_for_what_is_bad_enough() {
        use Severity::{Critical, Error, Info, Warning};
        let at = |text: &str| -> DateTime<Utc> { text.parse().unwrap() };
        let text = "time_zone = 'Asia/Tokyo'\nminimum = 'warning'\nquiet = '23:00-07:00'";
        let settings = read(text, &[]).unwrap();
        let night = "2026-01-05T14:00:00Z";
        for (severity, time, telling) in [
            (Info, "2026-01-05T03:00:00Z", Telling::Never),
            (Info, night, Telling::Never),
            (Warning, "2026-01-05T13:59:59Z", Telling::Now),
            (Warning, night, Telling::Later),
            (Warning, "2026-01-05T21:59:59Z", Telling::Later),
            (Warning, "2026-01-05T22:00:00Z", Telling::Now),
            (Error, night, Telling::Now),
        ] {
            assert_eq!(
                settings.telling(severity, at(time)),
                telling,
                "{severity} {time}"
            );
        }
        let text = "minimum = 'critical'\nquiet = '00:00-23:59'\nquiet_below = 'critical'";
        let strictest = read(text, &[]).unwrap();
        assert_eq!(strictest.telling(Error, at(night)), Telling::Never);
        assert_eq!(strictest.telling(Critical, at(night)), Telling::Now);
        let noon = read("time_zone = 'UTC'\nquiet = '12:00-13:00'", &[]).unwrap();
        assert_eq!(
            noon.telling(Warning, at("2026-01-05T12:30:00Z")),
            Telling::Later
        );
        assert_eq!(noon.telling(Warning, at(night)), Telling::Now);
    }

    #[test]
    fn nonsense_is_named() {
        for (text, named) in [
            ("language = 'fr'", "language is `fr`"),
            ("time_zone = 'Mars/Base'", "time_zone is `Mars/Base`"),
            ("minimum = 'loud'", "minimum is `loud`"),
            ("quiet = '7 to 9'", "quiet is `7 to 9`"),
            ("quiet = '07:00-07:00'", "quiet is"),
            ("gather = 'soon'", "gather is `soon`"),
            (
                "[command]\ncommand = []",
                "command.command names no program",
            ),
            (
                "[pushover]\nemergency = { retry = '5s', expire = '1h' }",
                "every 30s",
            ),
        ] {
            let error = read(text, BOTH).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        let error = read("langauge = 'ja'", &[]).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("langauge"), "{source}");
    }
}
