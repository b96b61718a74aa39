//! Flags, environment and file, checked once.
//!
//! A flag beats its variable, which beats `server.toml`, which beats the default. Nothing is read
//! from the environment anywhere else, except what OpenTelemetry itself reads.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::TimeDelta;
use clap::{Parser, ValueEnum};
use figment::Figment;
use figment::providers::{Format, Serialized, Toml};
use qctl_proto::alarm;
use qctl_proto::home::{Home, HomeError};
use qctl_proto::v1::AlarmSetting;
use qctl_proto::v1::silence::Counts;
use qctl_server_core::alarm::setting::{self, Setting};
use qctl_server_core::alarm::{Kind, Pace};
use qctl_server_core::silence;
use serde::{Deserialize, Serialize};

use crate::app::Settings;
use crate::database;

/// The coordinator: keeps the queue and its history, and serves workers, users and pages.
#[derive(Debug, Default, Parser, Serialize)]
#[command(name = "qctl-server", version)]
pub struct Args {
    /// Address to listen on, as HOST:PORT; port 0 takes any free one [default: 127.0.0.1:7420]
    #[arg(long, env = "QCTL_LISTEN", value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<String>,
    /// Address that people reach the pages by, for links [default: the address listened on]
    #[arg(long, env = "QCTL_PUBLIC_URL", value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    public_url: Option<String>,
    /// Postgres to use instead of an embedded one, as postgres://USER@HOST:PORT/DATABASE
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    database_url: Option<String>,
    /// Most connections to the database, 2 to 30 [default: 10]
    #[arg(long, env = "QCTL_DATABASE_CONNECTIONS", value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    database_connections: Option<u32>,
    /// Folder of the Postgres programs for the embedded database [default: looked for]
    #[arg(long, env = "QCTL_PG_BIN", value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pg_bin: Option<PathBuf>,
    /// Certificate chain to serve TLS with, PEM
    #[arg(long, env = "QCTL_TLS_CERT", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(long, env = "QCTL_TLS_KEY", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_key: Option<PathBuf>,
    /// Silence of a worker after which its jobs are shown as unreachable [default: 60s]
    #[arg(long, env = "QCTL_UNREACHABLE_AFTER", value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    unreachable_after: Option<String>,
    /// Silence of a worker after which its jobs may start elsewhere [default: 30m]
    #[arg(long, env = "QCTL_LOST_AFTER", value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_after: Option<String>,
    /// How long jobs may wait while none runs anywhere before people are told [default: 15m]
    #[arg(long, env = "QCTL_STANDSTILL_AFTER", value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    standstill_after: Option<String>,
    /// When a silent job is warned of, warned of again and stopped, such as 5m,10m,15m or stop=30m, or
    /// off; a worker and a submission may say otherwise [default: 5m,10m,15m]
    #[arg(long, env = "QCTL_SILENCE", value_name = "STAGES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    silence: Option<String>,
    /// What counts as a sign of life of a job: output, or activity of its processes as well; a worker
    /// and a submission may say otherwise [default: output]
    #[arg(long, env = "QCTL_SILENCE_COUNTS", value_name = "WHAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    silence_counts: Option<String>,
    /// How long a job that computes may leave its GPUs unused before it is stopped, such as 15m, or off;
    /// a worker and a submission may say otherwise [default: 15m]
    #[arg(long, env = "QCTL_GPU_IDLE", value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_idle: Option<String>,
    /// Mean wait before a job's first retry; doubles with each further one [default: 5s]
    #[arg(long, env = "QCTL_RETRY_BASE", value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_base: Option<String>,
    /// Age at which ended jobs and their output are deleted [default: 90days]
    #[arg(long, env = "QCTL_HISTORY_KEPT", value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    history_kept: Option<String>,
    /// Stored output above which the oldest ended jobs lose theirs [default: 1GiB]
    #[arg(long, env = "QCTL_LOG_BYTES_KEPT", value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_bytes_kept: Option<String>,
    /// How long checkpoints of jobs that did not end well are kept [default: 7days]
    #[arg(long, env = "QCTL_CHECKPOINTS_KEPT", value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoints_kept: Option<String>,
    /// Checkpoints up to this size are copied here, so that any worker can resume [default: 64MiB]
    #[arg(long, env = "QCTL_CHECKPOINT_UPLOAD_BYTES", value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_upload_bytes: Option<String>,
    /// Room that the copies of all checkpoints may take [default: 8GiB]
    #[arg(long, env = "QCTL_CHECKPOINT_BYTES_KEPT", value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_bytes_kept: Option<String>,
    /// From which figure on something is an alarm, such as cpu=off or run-time=6h; a worker or a job may
    /// say otherwise; can be given several times
    #[arg(
        long,
        env = "QCTL_ALARM",
        value_name = "KIND=LIMIT",
        value_delimiter = ','
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    alarm: Vec<String>,
    /// How long processors or a card's memory must be full before that is an alarm [default: 10m]
    #[arg(long, env = "QCTL_ALARM_AFTER", value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    alarm_after: Option<String>,
    /// How long memory must grow without a break before that is an alarm [default: 30m]
    #[arg(long, env = "QCTL_ALARM_GROWTH_WINDOW", value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    alarm_growth_window: Option<String>,
    /// What to log, such as `info` or `qctl_server=debug,warn` [default: info,sqlx=warn]
    #[arg(long, env = "QCTL_LOG", value_name = "FILTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
    /// How log lines look [default: compact]
    #[arg(long, env = "QCTL_LOG_FORMAT", value_name = "FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_format: Option<LogFormat>,
    /// Print the configuration, without secrets, and exit
    #[arg(long)]
    #[serde(skip)]
    pub print_config: bool,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line for people.
    #[default]
    Compact,
    /// One JSON object a line.
    Json,
}

/// What `server.toml` may say, after flags and variables were laid over it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    listen: String,
    public_url: Option<String>,
    database_url: Option<String>,
    database_connections: u32,
    pg_bin: Option<PathBuf>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    unreachable_after: Option<String>,
    lost_after: Option<String>,
    standstill_after: Option<String>,
    silence: Option<String>,
    silence_counts: Option<String>,
    gpu_idle: Option<String>,
    retry_base: Option<String>,
    history_kept: Option<String>,
    log_bytes_kept: Option<String>,
    checkpoints_kept: Option<String>,
    checkpoint_upload_bytes: Option<String>,
    checkpoint_bytes_kept: Option<String>,
    #[serde(default)]
    alarm: Vec<String>,
    alarm_after: Option<String>,
    alarm_growth_window: Option<String>,
    log: String,
    log_format: LogFormat,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            listen: qctl_proto::DEFAULT_ADDRESS.to_owned(),
            public_url: None,
            database_url: None,
            database_connections: 10,
            pg_bin: None,
            tls_cert: None,
            tls_key: None,
            unreachable_after: None,
            lost_after: None,
            standstill_after: None,
            silence: None,
            silence_counts: None,
            gpu_idle: None,
            retry_base: None,
            history_kept: None,
            log_bytes_kept: None,
            checkpoints_kept: None,
            checkpoint_upload_bytes: None,
            checkpoint_bytes_kept: None,
            alarm: Vec::new(),
            alarm_after: None,
            alarm_growth_window: None,
            // sqlx repeats every notice of the database as information.
            log: "info,sqlx=warn".to_owned(),
            log_format: LogFormat::Compact,
        }
    }
}

/// The checked configuration of one coordinator.
#[derive(Clone)]
pub struct Config {
    /// Where its files are.
    pub home: Home,
    /// Where to listen. Loopback unless `tls` is given.
    pub listen: SocketAddr,
    /// Address for links, without a slash at its end; none means the address listened on.
    pub public_url: Option<String>,
    /// Which database.
    pub database: database::Settings,
    /// Certificate and key; none means plain text, on loopback only.
    pub tls: Option<TlsFiles>,
    /// Times and sizes.
    pub settings: Settings,
    /// Filter of the log.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Whom to tell, and how.
    pub notify: qctl_notify::Settings,
}

/// Files to serve TLS with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, PEM.
    pub certificate: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no place for qctl's files.
    #[error("no folder for the coordinator's files")]
    Home(#[from] HomeError),
    /// The file cannot be read.
    #[error("cannot read {path}")]
    File {
        /// `server.toml`.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file, or a variable, says something that has no meaning.
    #[error("the configuration has no meaning (flags, variables and {path})")]
    Read {
        /// `server.toml`.
        path: PathBuf,
        /// Why.
        source: Box<figment::Error>,
    },
    /// The address to listen on is not one.
    #[error("--listen `{given}` is not an address of this machine such as 127.0.0.1:7420")]
    Listen {
        /// What was given.
        given: String,
        /// Why.
        source: std::io::Error,
    },
    /// Plain text where others could listen.
    #[error(
        "--listen {address} can be reached from other machines, which needs TLS: give --tls-cert and --tls-key, or listen on 127.0.0.1"
    )]
    OpenWithoutTls {
        /// The address.
        address: SocketAddr,
    },
    /// One of the two TLS files is missing.
    #[error("--tls-cert and --tls-key need each other")]
    HalfTls,
    /// The public address cannot be used in links.
    #[error(
        "--public-url `{given}` is not an address such as https://queue.example.net (no path, no query)"
    )]
    PublicUrl {
        /// What was given.
        given: String,
    },
    /// A number is out of its range.
    #[error("--database-connections must be between 2 and 30, not {given}")]
    Connections {
        /// What was given.
        given: u32,
    },
    /// A time cannot be read, or may not be used.
    #[error(
        "--{name} `{given}` is not a time between 1 second and 100 years, such as `90s` or `30m`"
    )]
    Time {
        /// The setting.
        name: &'static str,
        /// What was given.
        given: String,
    },
    /// What is an alarm cannot be read.
    #[error("--alarm: {0}")]
    Alarm(String),
    /// A size cannot be read, or may not be used.
    #[error("--{name} `{given}` is not a size of at least 1 MiB, such as `500MiB` or `2GiB`")]
    Size {
        /// The setting.
        name: &'static str,
        /// What was given.
        given: String,
    },
    /// What is said about silence has no meaning.
    #[error("--{name} cannot be `{given}`: {expected}")]
    Silence {
        /// The setting.
        name: &'static str,
        /// What was given.
        given: String,
        /// What may be.
        expected: String,
    },
    /// What is said about unused GPUs has no meaning.
    #[error("--gpu-idle cannot be `{given}`: {expected}")]
    GpuIdle {
        /// What was given.
        given: String,
        /// What may be.
        expected: String,
    },
    /// A worker would be given up before it is shown as unreachable.
    #[error("--lost-after {lost:?} must be longer than --unreachable-after {unreachable:?}")]
    LostTooSoon {
        /// `--lost-after`.
        lost: Duration,
        /// `--unreachable-after`.
        unreachable: Duration,
    },
    /// The settings of notices cannot be used.
    #[error("nobody can be told by these settings")]
    Notify(#[from] qctl_notify::settings::SettingsError),
    /// The filter of the log cannot be read.
    #[error("--log `{given}` is not a filter such as `info` or `qctl_server=debug`")]
    Log {
        /// What was given.
        given: String,
        /// Why.
        source: tracing_subscriber::filter::ParseError,
    },
}

impl Config {
    /// Lays the flags and variables over `server.toml` of this installation and checks the result.
    ///
    /// # Errors
    /// When a value cannot be read or may not be used.
    pub fn load(args: &Args) -> Result<Self, ConfigError> {
        let home = Home::from_env()?;
        Self::from_args(args, home)
    }

    fn from_args(args: &Args, home: Home) -> Result<Self, ConfigError> {
        let path = home.config_file("server.toml");
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read.map_err(|source| ConfigError::File {
                path: path.clone(),
                source,
            })?,
        };
        let raw: Raw = Figment::from(Serialized::defaults(Raw::default()))
            .merge(Toml::string(&text))
            .merge(Serialized::defaults(args))
            .extract()
            .map_err(|source| ConfigError::Read {
                path,
                source: Box::new(source),
            })?;
        Self::check(raw, home)
    }

    fn check(raw: Raw, home: Home) -> Result<Self, ConfigError> {
        let tls = match (raw.tls_cert, raw.tls_key) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
            (None, None) => None,
            _ => return Err(ConfigError::HalfTls),
        };
        let listen = resolve(&raw.listen)?;
        if tls.is_none() && !listen.ip().is_loopback() {
            return Err(ConfigError::OpenWithoutTls { address: listen });
        }
        let public_url = raw.public_url.filter(|url| !url.is_empty());
        let public_url = public_url.map(|url| check_public_url(&url)).transpose()?;
        if !(2..=30).contains(&raw.database_connections) {
            return Err(ConfigError::Connections {
                given: raw.database_connections,
            });
        }
        let defaults = Settings::default();
        let notify = qctl_notify::Settings::load(home.config_dir())?;
        let settings = Settings {
            success_told_after: notify.success_after,
            unreachable_after: time(
                "unreachable-after",
                raw.unreachable_after,
                defaults.unreachable_after,
            )?,
            lost_after: time("lost-after", raw.lost_after, defaults.lost_after)?,
            standstill_after: time(
                "standstill-after",
                raw.standstill_after,
                defaults.standstill_after,
            )?,
            silence: silence_rules(raw.silence, raw.silence_counts)?,
            gpu_idle: gpu_idle(raw.gpu_idle)?,
            retry_base: time("retry-base", raw.retry_base, defaults.retry_base)?,
            history_kept: time("history-kept", raw.history_kept, defaults.history_kept)?,
            log_bytes_kept: size(
                "log-bytes-kept",
                raw.log_bytes_kept,
                defaults.log_bytes_kept,
            )?,
            checkpoints_kept: time(
                "checkpoints-kept",
                raw.checkpoints_kept,
                defaults.checkpoints_kept,
            )?,
            checkpoint_upload_bytes: size(
                "checkpoint-upload-bytes",
                raw.checkpoint_upload_bytes,
                defaults.checkpoint_upload_bytes,
            )?,
            checkpoint_bytes_kept: size(
                "checkpoint-bytes-kept",
                raw.checkpoint_bytes_kept,
                defaults.checkpoint_bytes_kept,
            )?,
            alarms: alarms(&raw.alarm)?,
            alarm_pace: Pace {
                sustained: span(
                    "alarm-after",
                    raw.alarm_after,
                    defaults.alarm_pace.sustained,
                )?,
                growth_window: span(
                    "alarm-growth-window",
                    raw.alarm_growth_window,
                    defaults.alarm_pace.growth_window,
                )?,
            },
            ..defaults
        };
        if settings.lost_after <= settings.unreachable_after {
            return Err(ConfigError::LostTooSoon {
                lost: settings.lost_after,
                unreachable: settings.unreachable_after,
            });
        }
        tracing_subscriber::EnvFilter::try_new(&raw.log).map_err(|source| ConfigError::Log {
            given: raw.log.clone(),
            source,
        })?;
        let source = match raw.database_url.filter(|url| !url.is_empty()) {
            Some(url) => database::Source::Url(url),
            None => database::Source::Embedded {
                folder: home.database_dir(),
                programs: raw.pg_bin.filter(|folder| !folder.as_os_str().is_empty()),
            },
        };
        Ok(Self {
            home,
            listen,
            public_url,
            database: database::Settings {
                source,
                connections: raw.database_connections,
            },
            tls,
            settings,
            log: raw.log,
            log_format: raw.log_format,
            notify,
        })
    }
}

fn resolve(given: &str) -> Result<SocketAddr, ConfigError> {
    let failed = |source| ConfigError::Listen {
        given: given.to_owned(),
        source,
    };
    given
        .to_socket_addrs()
        .map_err(failed)?
        // `localhost` may stand for both families; workers on the same machine expect IPv4.
        .min_by_key(SocketAddr::is_ipv6)
        .ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))
}

fn time(
    name: &'static str,
    given: Option<String>,
    default: Duration,
) -> Result<Duration, ConfigError> {
    const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 60 * 60);
    let Some(given) = given.filter(|given| !given.is_empty()) else {
        return Ok(default);
    };
    humantime::parse_duration(&given)
        .ok()
        .filter(|time| (Duration::from_secs(1)..=LONGEST).contains(time))
        .ok_or(ConfigError::Time { name, given })
}

fn span(
    name: &'static str,
    given: Option<String>,
    default: TimeDelta,
) -> Result<TimeDelta, ConfigError> {
    let usual = default.to_std().unwrap_or_default();
    let chosen = time(name, given, usual)?;
    // More than a month would be no alarm at all.
    TimeDelta::from_std(chosen)
        .ok()
        .filter(|chosen| *chosen <= TimeDelta::days(31))
        .ok_or_else(|| ConfigError::Time {
            name,
            given: shown(chosen),
        })
}

fn alarms(given: &[String]) -> Result<setting::Settings, ConfigError> {
    let given = given.iter().filter(|text| !text.is_empty());
    let settings = alarm::parse_all(given.map(String::as_str)).map_err(ConfigError::Alarm)?;
    let chosen = settings.iter().filter_map(|setting| {
        let word = alarm::word(setting.kind()).replace('-', "_");
        let chosen = match (setting.off, setting.limit) {
            (true, _) => Setting::Off,
            (false, None) => Setting::On,
            (false, Some(limit)) => Setting::At(limit),
        };
        Some((Kind::parse(&word)?, chosen))
    });
    Ok(chosen.collect())
}

/// A choice as `--alarm` has it.
fn shown_alarm(kind: Kind, chosen: Setting) -> String {
    let word = kind.as_str().replace('_', "-");
    let wire = alarm::KINDS.iter().find(|(_, known)| *known == word);
    alarm::shown(&AlarmSetting {
        kind: wire.map_or(0, |(wire, _)| (*wire).into()),
        off: chosen == Setting::Off,
        limit: match chosen {
            Setting::At(limit) => Some(limit),
            Setting::Off | Setting::On => None,
        },
    })
}

fn silence_rules(
    stages: Option<String>,
    counts: Option<String>,
) -> Result<silence::Rules, ConfigError> {
    let wrong = |name, given: &str| {
        let given = given.to_owned();
        move |expected| ConfigError::Silence {
            name,
            given,
            expected,
        }
    };
    let mut rules = silence::Rules::default();
    if let Some(text) = stages.filter(|text| !text.is_empty()) {
        let read = qctl_proto::silence::parse(&text).map_err(wrong("silence", &text))?;
        let length = |wire: Option<prost_types::Duration>| Duration::try_from(wire?).ok();
        rules.warn_after = length(read.warn_after);
        rules.remind_after = length(read.remind_after);
        rules.stop_after = length(read.stop_after);
    }
    if let Some(text) = counts.filter(|text| !text.is_empty()) {
        let read = qctl_proto::silence::counts(&text).map_err(wrong("silence-counts", &text))?;
        rules.counts = match read {
            Counts::Unspecified => None,
            Counts::Output => Some(silence::Counts::Output),
            Counts::Activity => Some(silence::Counts::Activity),
        };
    }
    Ok(rules)
}

fn gpu_idle(given: Option<String>) -> Result<Option<Duration>, ConfigError> {
    let given = given.filter(|text| !text.is_empty());
    given
        .map(|given| {
            qctl_proto::gpu_idle::parse(&given)
                .map_err(|expected| ConfigError::GpuIdle { given, expected })
        })
        .transpose()
}

/// The rules as the setting says them; empty when nothing is said.
fn shown_silence(rules: &silence::Rules) -> String {
    let length = |length: Option<Duration>| length.and_then(|length| length.try_into().ok());
    qctl_proto::silence::show(&qctl_proto::v1::Silence {
        warn_after: length(rules.warn_after),
        remind_after: length(rules.remind_after),
        stop_after: length(rules.stop_after),
        ..qctl_proto::v1::Silence::default()
    })
}

fn size(name: &'static str, given: Option<String>, default: u64) -> Result<u64, ConfigError> {
    let Some(given) = given.filter(|given| !given.is_empty()) else {
        return Ok(default);
    };
    given
        .parse::<bytesize::ByteSize>()
        .ok()
        .map(|size| size.as_u64())
        .filter(|size| *size >= 1024 * 1024)
        .ok_or(ConfigError::Size { name, given })
}

fn check_public_url(given: &str) -> Result<String, ConfigError> {
    let wrong = || ConfigError::PublicUrl {
        given: given.to_owned(),
    };
    let uri: http::Uri = given.parse().map_err(|_| wrong())?;
    let is_plain = matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.host().is_some_and(|host| !host.is_empty())
        && uri.path() == "/"
        && uri.query().is_none()
        && uri.authority().is_some_and(|a| !a.as_str().contains('@'));
    if !is_plain {
        return Err(wrong());
    }
    Ok(given.trim_end_matches('/').to_owned())
}

/// The configuration as TOML, without secrets: what `--print-config` shows.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &str| toml::Value::from(value).to_string();
        let path = |path: &Path| text(&path.to_string_lossy());
        writeln!(f, "# {}", self.home.config_file("server.toml").display())?;
        writeln!(f, "listen = {}", text(&self.listen.to_string()))?;
        if let Some(url) = &self.public_url {
            writeln!(f, "public_url = {}", text(url))?;
        }
        match &self.database.source {
            database::Source::Url(url) => {
                writeln!(f, "database_url = {}", text(&without_password(url)))?;
            }
            database::Source::Embedded { folder, programs } => {
                writeln!(f, "# embedded database in {}", folder.display())?;
                if let Some(programs) = programs {
                    writeln!(f, "pg_bin = {}", path(programs))?;
                }
            }
        }
        writeln!(f, "database_connections = {}", self.database.connections)?;
        if let Some(tls) = &self.tls {
            writeln!(f, "tls_cert = {}", path(&tls.certificate))?;
            writeln!(f, "tls_key = {}", path(&tls.key))?;
        }
        for (name, time) in [
            ("unreachable_after", self.settings.unreachable_after),
            ("lost_after", self.settings.lost_after),
            ("standstill_after", self.settings.standstill_after),
            ("retry_base", self.settings.retry_base),
            ("history_kept", self.settings.history_kept),
            ("checkpoints_kept", self.settings.checkpoints_kept),
            (
                "alarm_after",
                self.settings
                    .alarm_pace
                    .sustained
                    .to_std()
                    .unwrap_or_default(),
            ),
            (
                "alarm_growth_window",
                self.settings
                    .alarm_pace
                    .growth_window
                    .to_std()
                    .unwrap_or_default(),
            ),
        ] {
            writeln!(f, "{name} = {}", text(&shown(time)))?;
        }
        for (name, size) in [
            ("log_bytes_kept", self.settings.log_bytes_kept),
            (
                "checkpoint_upload_bytes",
                self.settings.checkpoint_upload_bytes,
            ),
            ("checkpoint_bytes_kept", self.settings.checkpoint_bytes_kept),
        ] {
            writeln!(f, "{name} = {}", text(&format!("{size} B")))?;
        }
        let alarms: Vec<String> = self
            .settings
            .alarms
            .iter()
            .map(|(kind, chosen)| text(&shown_alarm(*kind, *chosen)))
            .collect();
        writeln!(f, "alarm = [{}]", alarms.join(", "))?;
        match shown_silence(&self.settings.silence).as_str() {
            "" => writeln!(f, "# silence is not set")?,
            stages => writeln!(f, "silence = {}", text(stages))?,
        }
        match self.settings.silence.counts {
            None => writeln!(f, "# silence_counts is not set")?,
            Some(silence::Counts::Output) => writeln!(f, "silence_counts = \"output\"")?,
            Some(silence::Counts::Activity) => writeln!(f, "silence_counts = \"activity\"")?,
        }
        match self.settings.gpu_idle {
            None => writeln!(f, "# gpu_idle is not set")?,
            Some(idle) => writeln!(f, "gpu_idle = {}", text(&qctl_proto::gpu_idle::show(idle)))?,
        }
        writeln!(f, "log = {}", text(&self.log))?;
        let format = match self.log_format {
            LogFormat::Compact => "compact",
            LogFormat::Json => "json",
        };
        writeln!(f, "log_format = {}", text(format))?;
        write!(f, "{}", self.notify)
    }
}

/// A time in the largest unit that divides it: `90days` rather than months of an odd length.
fn shown(time: Duration) -> String {
    let seconds = time.as_secs();
    if time.subsec_nanos() != 0 || seconds == 0 {
        return humantime::format_duration(time).to_string();
    }
    [(86_400, "days"), (3_600, "h"), (60, "m")]
        .iter()
        .find(|(unit, _)| seconds.is_multiple_of(*unit))
        .map_or_else(
            || format!("{seconds}s"),
            |(unit, name)| format!("{}{name}", seconds / unit),
        )
}

/// An address that may be shown. One that cannot be taken apart is not shown at all.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return "(not shown)".to_owned();
    };
    let (address, query) = rest.split_once('?').map_or((rest, ""), |(a, q)| (a, q));
    let address = match address.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{user}@{host}")
        }
        None => address.to_owned(),
    };
    let kept: Vec<_> = query
        .split('&')
        .filter(|pair| !pair.is_empty() && !pair.starts_with("password"))
        .collect();
    if kept.is_empty() {
        format!("{scheme}://{address}")
    } else {
        format!("{scheme}://{address}?{}", kept.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(args: Args) -> Result<Config, ConfigError> {
        let home = tempfile::tempdir().unwrap();
        Config::from_args(&args, Home::at(home.path()))
    }

    fn with_file(text: &str, args: &Args) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        std::fs::create_dir_all(home.config_dir()).unwrap();
        std::fs::write(home.config_file("server.toml"), text).unwrap();
        Config::from_args(args, home)
    }

    #[test]
    fn nothing_given_means_loopback_and_an_embedded_database() {
        let config = load(Args::default()).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:7420");
        assert!(matches!(
            config.database.source,
            database::Source::Embedded { programs: None, .. }
        ));
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let args = Args {
            listen: Some("127.0.0.1:1".to_owned()),
            ..Args::default()
        };
        let text = "listen = \"127.0.0.1:2\"\nlog = \"debug\"\n";
        let config = with_file(text, &args).unwrap();
        assert_eq!(config.listen.port(), 1);
        assert_eq!(config.log, "debug");
        assert_eq!(config.database.connections, 10);
    }

    #[test]
    fn a_misspelt_key_in_the_file_is_named() {
        let error = with_file("listne = \"127.0.0.1:2\"\n", &Args::default())
            .err()
            .unwrap();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("listne"), "{source}");
    }

    #[test]
    fn an_open_address_needs_tls_and_tls_needs_both_files() {
        let open = |tls_cert, tls_key| {
            load(Args {
                listen: Some("0.0.0.0:0".to_owned()),
                tls_cert,
                tls_key,
                ..Args::default()
            })
        };
        assert!(matches!(
            open(None, None),
            Err(ConfigError::OpenWithoutTls { .. })
        ));
        assert!(matches!(
            open(Some("c".into()), None),
            Err(ConfigError::HalfTls)
        ));
        assert!(open(Some("c".into()), Some("k".into())).is_ok());
    }

    #[test]
    fn public_addresses_are_origins() {
        assert_eq!(
            check_public_url("https://queue.example.net/").unwrap(),
            "https://queue.example.net"
        );
        for wrong in [
            "queue.example.net",
            "ftp://a",
            "https://",
            "https://a/b",
            "https://a/?k=1",
            "https://u:p@a",
        ] {
            assert!(check_public_url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_printed_configuration_can_be_read_back_and_holds_no_password() {
        let args = Args {
            database_url: Some("postgres://me:secret@db:5432/q?password=secret&a=b".to_owned()),
            public_url: Some("https://q.example".to_owned()),
            ..Args::default()
        };
        let printed = load(args).unwrap().to_string();
        assert!(!printed.contains("secret"), "{printed}");
        assert!(printed.contains("postgres://me@db:5432/q?a=b"), "{printed}");
        let again = with_file(&printed, &Args::default()).unwrap();
        assert_eq!(again.public_url.as_deref(), Some("https://q.example"));
        assert_eq!(again.settings, Settings::default());
    }

    #[test]
    fn times_and_sizes_are_read_and_nonsense_is_named() {
        let args = |lost_after: &str, log_bytes_kept: &str| Args {
            lost_after: Some(lost_after.to_owned()),
            log_bytes_kept: Some(log_bytes_kept.to_owned()),
            ..Args::default()
        };
        let config = load(args("2h", "2GiB")).unwrap();
        assert_eq!(config.settings.lost_after, Duration::from_secs(7_200));
        assert_eq!(config.settings.log_bytes_kept, 2 << 30);
        for (lost_after, log_bytes_kept, named) in [
            ("soon", "2GiB", "--lost-after `soon`"),
            ("0s", "2GiB", "--lost-after `0s`"),
            ("2h", "much", "--log-bytes-kept `much`"),
            ("30s", "2GiB", "--unreachable-after"),
        ] {
            let error = load(args(lost_after, log_bytes_kept)).err().unwrap();
            assert!(error.to_string().contains(named), "{error}");
        }
    }
}
