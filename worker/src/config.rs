//! Flags, environment and file, checked once.
//!
//! A flag beats its variable, which beats `worker.toml`, which beats the default.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use figment::Figment;
use figment::providers::{Format, Serialized, Toml};
use qctl_proto::home::{Home, HomeError};
use qctl_proto::v1::silence::Counts;
use qctl_proto::v1::{AlarmSetting, Silence};
use qctl_proto::{alarm, gpu_idle, silence, size};
use qctl_worker_core::ring::DEFAULT_LIMIT_BYTES;
use qctl_worker_core::roster::MAX_SLOTS;
use serde::{Deserialize, Serialize};

use crate::inventory::{gpu, probe};
use crate::shim;
use crate::watch::{evidence, nvml};

/// Checkpoints of a job that are kept: the newest may turn out to be damaged.
const CHECKPOINTS: u32 = 3;
const MAX_CHECKPOINTS: u32 = 1_000;

/// What the GPU driver's deadline may be.
const GPU_DEADLINES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);

/// Longest name of a worker, in bytes.
const MAX_NAME_BYTES: usize = 100;

/// The worker: runs jobs of this machine and tells the coordinator about them.
#[derive(Debug, Default, Parser, Serialize)]
#[command(name = "qctl-worker", version, subcommand_negates_reqs = true)]
pub struct Args {
    /// Where the coordinator is, as HOST:PORT or https://HOST:PORT; several that share a database with
    /// commas between them [default: where the one of this installation listens]
    #[arg(long, env = "QCTL_SERVER", value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    /// File with the token [default: the installation's own]
    #[arg(long, env = "QCTL_TOKEN_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<PathBuf>,
    /// Authority to trust for https, PEM [default: those that the machine trusts]
    #[arg(long, env = "QCTL_AUTHORITY", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<PathBuf>,
    /// Name of this worker [default: the host name]
    #[arg(long, env = "QCTL_WORKER_NAME", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Jobs to run at once [default: what was set before, or 1]
    #[arg(long, env = "QCTL_WORKER_SLOTS", value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    slots: Option<u32>,
    /// Most output of a job to keep on this machine's disk, such as 512M or 2G; a submission may say
    /// otherwise [default: 1G]
    #[arg(long, env = "QCTL_LOG_LIMIT", value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_limit: Option<String>,
    /// Checkpoints of a job that keep their contents here, the newest ones [default: 3]
    #[arg(long, env = "QCTL_CHECKPOINTS_PER_JOB", value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoints_per_job: Option<u32>,
    /// NVIDIA's management library, libnvidia-ml.so.1, where it is not found by itself
    #[arg(long, env = "QCTL_NVML_LIBRARY", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    nvml_library: Option<PathBuf>,
    /// How long the GPU driver may take for an answer before it counts as hung [default: 15s]
    #[arg(long, env = "QCTL_GPU_DEADLINE", value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_deadline: Option<String>,
    /// From which figure on something is an alarm here, such as cpu=off or gpu-temperature=85; can be
    /// given several times [default: the coordinator's]
    #[arg(
        long,
        env = "QCTL_WORKER_ALARM",
        value_name = "KIND=LIMIT",
        value_delimiter = ','
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    alarm: Vec<String>,
    /// When a silent job is warned of, warned of again and stopped, such as 5m,10m,15m or stop=30m, or
    /// off; a submission may say otherwise [default: the coordinator's, 5m,10m,15m]
    #[arg(long, env = "QCTL_WORKER_SILENCE", value_name = "STAGES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    silence: Option<String>,
    /// What counts as a sign of life of a job: output, or activity of its processes as well; a
    /// submission may say otherwise [default: the coordinator's, output]
    #[arg(long, env = "QCTL_WORKER_SILENCE_COUNTS", value_name = "WHAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    silence_counts: Option<String>,
    /// How long a job that computes may leave its GPUs unused before it is stopped, such as 15m, or off;
    /// a submission may say otherwise [default: the coordinator's, 15m]
    #[arg(long, env = "QCTL_WORKER_GPU_IDLE", value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_idle: Option<String>,
    /// Command that computes something on the GPU of CUDA_VISIBLE_DEVICES; it is run before a job gets a
    /// GPU, and one for which it fails or takes longer than a minute is given to nobody
    #[arg(long, env = "QCTL_GPU_PROBE", value_name = "COMMAND")]
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_probe: Option<String>,
    /// What to log, such as `info` or `qctl_worker=debug,warn` [default: info]
    #[arg(long, env = "QCTL_LOG", value_name = "FILTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
    /// How log lines look [default: compact]
    #[arg(long, env = "QCTL_LOG_FORMAT", value_name = "FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_format: Option<LogFormat>,
    /// Print the configuration and exit
    #[arg(long)]
    #[serde(skip)]
    pub print_config: bool,
    /// What else the program can be.
    #[command(subcommand)]
    #[serde(skip)]
    pub command: Option<Command>,
}

/// What the program can be instead of an agent; the agent starts these itself.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Own the processes of jobs.
    #[command(hide = true)]
    Shim(shim::Args),
    /// Print this machine's GPUs as JSON.
    #[command(hide = true)]
    Gpus(gpu::Args),
    /// Print which of these GPUs are fit for work.
    #[command(hide = true)]
    ProbeGpus(probe::Args),
    /// Print what the GPUs do, a line of JSON every few seconds.
    #[command(hide = true)]
    WatchGpus(nvml::Args),
    /// Print what an attempt's processes do, as JSON.
    #[command(hide = true)]
    LookInto(evidence::Args),
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

/// What `worker.toml` may say, after flags and variables were laid over it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    server: Option<String>,
    token_file: Option<PathBuf>,
    authority: Option<PathBuf>,
    name: Option<String>,
    slots: Option<u32>,
    log_limit: Option<String>,
    checkpoints_per_job: Option<u32>,
    nvml_library: Option<PathBuf>,
    gpu_deadline: Option<String>,
    #[serde(default)]
    alarm: Vec<String>,
    silence: Option<String>,
    silence_counts: Option<String>,
    gpu_idle: Option<String>,
    gpu_probe: Option<String>,
    log: Option<String>,
    log_format: Option<LogFormat>,
}

/// The checked configuration of one worker.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where its files are.
    pub home: Home,
    /// How to find the coordinator.
    pub server: Server,
    /// File with the token.
    pub token_file: PathBuf,
    /// Authority to trust for https, PEM.
    pub authority: Option<PathBuf>,
    /// Its name; none means the host name, changed if that is taken.
    pub name: Option<String>,
    /// Slots; none leaves what the coordinator remembers.
    pub slots: Option<u32>,
    /// Most bytes of an attempt's output to keep, unless its job says otherwise.
    pub log_limit: u64,
    /// Checkpoints of a job that keep their contents.
    pub checkpoints_per_job: usize,
    /// NVML's library, where it is not the system's.
    pub nvml_library: Option<PathBuf>,
    /// How long the GPU driver may take for an answer.
    pub gpu_deadline: Duration,
    /// From which figure on something is an alarm here.
    pub alarms: Vec<AlarmSetting>,
    /// What holds about silence where a job says nothing.
    pub silence: Silence,
    /// How long a job that says nothing about that may leave its GPUs unused; zero for ever.
    pub gpu_idle: Option<Duration>,
    /// Command that computes something on a GPU.
    pub gpu_probe: Option<String>,
    /// Filter of the log.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// The program to run as shim: this one.
    pub shim_program: PathBuf,
}

/// How to find the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// At this address, or these with commas between them.
    At(String),
    /// Where the installation's own coordinator wrote that it listens; until it has, at `otherwise`.
    OfHome {
        /// `HOST:PORT`.
        otherwise: String,
    },
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no place for qctl's files.
    #[error("no folder for the worker's files")]
    Home(#[from] HomeError),
    /// The file cannot be read.
    #[error("cannot read {path}")]
    File {
        /// `worker.toml`.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file, or a variable, says something that has no meaning.
    #[error("the configuration has no meaning (flags, variables and {path})")]
    Read {
        /// `worker.toml`.
        path: PathBuf,
        /// Why.
        source: Box<figment::Error>,
    },
    /// The name cannot be used.
    #[error(
        "--name `{given}` cannot be a worker's name: 1 to {MAX_NAME_BYTES} letters, digits, dots, hyphens or underscores"
    )]
    Name {
        /// What was given, without control characters.
        given: String,
    },
    /// The number of slots is out of its range.
    #[error("--slots must be between 1 and {MAX_SLOTS}, not {given}")]
    Slots {
        /// What was given.
        given: u32,
    },
    /// The limit of the output is no size, or out of its range.
    #[error("--log-limit cannot be `{given}`: {expected}")]
    LogLimit {
        /// What was given.
        given: String,
        /// What may be.
        expected: String,
    },
    /// What is an alarm cannot be read.
    #[error("--alarm: {0}")]
    Alarm(String),
    /// The number of checkpoints is out of its range.
    #[error("--checkpoints-per-job must be between 1 and {MAX_CHECKPOINTS}, not {given}")]
    Checkpoints {
        /// What was given.
        given: u32,
    },
    /// The deadline of the GPU driver is no length of time, or out of its range.
    #[error("--gpu-deadline cannot be `{given}`: a time such as 15s, from 1s to 10m")]
    GpuDeadline {
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
    /// The filter of the log cannot be read.
    #[error("--log `{given}` is not a filter such as `info` or `qctl_worker=debug`")]
    Log {
        /// What was given.
        given: String,
        /// Why.
        source: tracing_subscriber::filter::ParseError,
    },
}

impl Config {
    /// Lays the flags and variables over `worker.toml` of this installation and checks the result.
    ///
    /// # Errors
    /// When a value cannot be read or may not be used.
    pub fn load(args: &Args) -> Result<Self, ConfigError> {
        // The coordinator of this installation will listen there, even before it says so.
        let listen = std::env::var("QCTL_LISTEN").ok();
        Self::from_args(args, Home::from_env()?, listen)
    }

    fn from_args(args: &Args, home: Home, listen: Option<String>) -> Result<Self, ConfigError> {
        let path = home.config_file("worker.toml");
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
        Self::check(raw, home, listen)
    }

    fn check(raw: Raw, home: Home, listen: Option<String>) -> Result<Self, ConfigError> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let server = match given(raw.server) {
            Some(address) => Server::At(address),
            None => Server::OfHome {
                otherwise: given(listen)
                    .filter(|listen| !listen.ends_with(":0"))
                    .unwrap_or_else(|| qctl_proto::DEFAULT_ADDRESS.to_owned()),
            },
        };
        let name = given(raw.name).map(check_name).transpose()?;
        if let Some(given) = raw.slots.filter(|slots| !(1..=MAX_SLOTS).contains(slots)) {
            return Err(ConfigError::Slots { given });
        }
        let log_limit = given(raw.log_limit).map(|text| {
            size::log_limit(&text).map_err(|expected| ConfigError::LogLimit {
                given: text,
                expected,
            })
        });
        let checkpoints_per_job = raw.checkpoints_per_job.unwrap_or(CHECKPOINTS);
        if !(1..=MAX_CHECKPOINTS).contains(&checkpoints_per_job) {
            return Err(ConfigError::Checkpoints {
                given: checkpoints_per_job,
            });
        }
        let gpu_deadline = match given(raw.gpu_deadline) {
            None => gpu::DEADLINE,
            Some(given) => humantime::parse_duration(&given)
                .ok()
                .filter(|time| GPU_DEADLINES.contains(time))
                .ok_or(ConfigError::GpuDeadline { given })?,
        };
        let alarms = raw.alarm.iter().filter(|text| !text.is_empty());
        let alarms = alarm::parse_all(alarms.map(String::as_str)).map_err(ConfigError::Alarm)?;
        let silence = check_silence(given(raw.silence), given(raw.silence_counts))?;
        let gpu_idle = given(raw.gpu_idle).map(|text| {
            gpu_idle::parse(&text).map_err(|expected| ConfigError::GpuIdle {
                given: text,
                expected,
            })
        });
        let log = given(raw.log).unwrap_or_else(|| "info".to_owned());
        tracing_subscriber::EnvFilter::try_new(&log).map_err(|source| ConfigError::Log {
            given: log.clone(),
            source,
        })?;
        let path = |path: Option<PathBuf>| path.filter(|path| !path.as_os_str().is_empty());
        Ok(Self {
            token_file: path(raw.token_file).unwrap_or_else(|| home.token_file()),
            authority: path(raw.authority),
            server,
            name,
            slots: raw.slots,
            log_limit: log_limit.transpose()?.unwrap_or(DEFAULT_LIMIT_BYTES),
            checkpoints_per_job: checkpoints_per_job as usize,
            nvml_library: path(raw.nvml_library),
            gpu_deadline,
            alarms,
            silence,
            gpu_idle: gpu_idle.transpose()?,
            gpu_probe: given(raw.gpu_probe),
            log,
            log_format: raw.log_format.unwrap_or_default(),
            // Survives an upgrade that replaces the file while this agent runs.
            shim_program: PathBuf::from("/proc/self/exe"),
            home,
        })
    }
}

fn check_silence(stages: Option<String>, counts: Option<String>) -> Result<Silence, ConfigError> {
    let wrong = |name, given: &str| {
        let given = given.to_owned();
        move |expected| ConfigError::Silence {
            name,
            given,
            expected,
        }
    };
    let mut silence = match stages {
        Some(text) => silence::parse(&text).map_err(wrong("silence", &text))?,
        None => Silence::default(),
    };
    if let Some(text) = counts {
        let counts = silence::counts(&text).map_err(wrong("silence-counts", &text))?;
        silence.set_counts(counts);
    }
    Ok(silence)
}

fn check_name(given: String) -> Result<String, ConfigError> {
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    if given.len() <= MAX_NAME_BYTES && given.chars().all(fits) {
        return Ok(given);
    }
    Err(ConfigError::Name {
        given: given
            .chars()
            .filter(|c| !c.is_control())
            .take(100)
            .collect(),
    })
}

impl fmt::Display for Config {
    /// The configuration as `worker.toml` would say it. It holds no secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, key: &str, value: Option<String>| match value {
            Some(value) => writeln!(f, "{key} = {value}"),
            None => writeln!(f, "# {key} is not set"),
        };
        let text = |text: &str| Some(format!("{text:?}"));
        let path = |path: &Path| Some(format!("{:?}", path.display().to_string()));
        writeln!(f, "# worker of {}", self.home.data_dir().display())?;
        match &self.server {
            Server::At(address) => line(f, "server", text(address))?,
            Server::OfHome { otherwise } => writeln!(
                f,
                "# server is what {} says, otherwise {otherwise}",
                self.home.address_file().display()
            )?,
        }
        line(f, "token_file", path(&self.token_file))?;
        line(f, "authority", self.authority.as_deref().and_then(path))?;
        line(f, "name", self.name.as_deref().and_then(text))?;
        line(f, "slots", self.slots.map(|slots| slots.to_string()))?;
        line(f, "log_limit", text(&self.log_limit.to_string()))?;
        let kept = self.checkpoints_per_job.to_string();
        line(f, "checkpoints_per_job", Some(kept))?;
        line(
            f,
            "nvml_library",
            self.nvml_library.as_deref().and_then(path),
        )?;
        let deadline = humantime::format_duration(self.gpu_deadline).to_string();
        line(f, "gpu_deadline", text(&deadline))?;
        let alarms: Vec<String> = self
            .alarms
            .iter()
            .map(|setting| format!("{:?}", alarm::shown(setting)))
            .collect();
        line(f, "alarm", Some(format!("[{}]", alarms.join(", "))))?;
        let stages = silence::show(&self.silence);
        let stages = Some(stages).filter(|stages| !stages.is_empty());
        line(f, "silence", stages.as_deref().and_then(text))?;
        let counts = match self.silence.counts() {
            Counts::Unspecified => None,
            Counts::Output => text("output"),
            Counts::Activity => text("activity"),
        };
        line(f, "silence_counts", counts)?;
        let idle = self.gpu_idle.map(gpu_idle::show);
        line(f, "gpu_idle", idle.as_deref().and_then(text))?;
        line(f, "gpu_probe", self.gpu_probe.as_deref().and_then(text))?;
        line(f, "log", text(&self.log))?;
        let format = match self.log_format {
            LogFormat::Compact => "compact",
            LogFormat::Json => "json",
        };
        line(f, "log_format", text(format))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(flags: &[&str], file: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        std::fs::create_dir_all(home.config_dir()).unwrap();
        std::fs::write(home.config_file("worker.toml"), file).unwrap();
        let args = Args::parse_from(std::iter::once(&"qctl-worker").chain(flags));
        Config::from_args(&args, home, Some("127.0.0.1:0".to_owned()))
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_the_default() {
        let config = load(&["--name", "a"], "name = 'b'\nslots = 3\n").unwrap();
        assert_eq!(config.name.as_deref(), Some("a"));
        assert_eq!(config.slots, Some(3));
        assert_eq!(
            config.server,
            Server::OfHome {
                otherwise: qctl_proto::DEFAULT_ADDRESS.to_owned()
            }
        );
        let config = load(&[], "server = 'https://queue:7420'").unwrap();
        assert_eq!(config.server, Server::At("https://queue:7420".to_owned()));
    }

    #[test]
    fn bad_values_are_named() {
        for (flags, file, words) in [
            (&["--slots", "0"][..], "", "between 1 and 1000"),
            (&["--checkpoints-per-job", "0"], "", "between 1 and 1000"),
            (&["--name", "a b"], "", "`a b`"),
            (&["--gpu-deadline", "0s"], "", "from 1s to 10m"),
            (&["--gpu-deadline", "soon"], "", "`soon`"),
            (&["--log", "a=b=c"], "", "--log"),
            (&["--log-limit", "none"], "", "a size such as"),
            (&["--alarm", "cup=off"], "", "`cup` is no kind of alarm"),
            (
                &[],
                "alarm = ['cpu=off', 'cpu=on']",
                "`cpu` is chosen twice",
            ),
            (&["--log-limit", "0"], "", "at least 1 MiB"),
            (&[], "log_limit = '9999T'", "--log-limit"),
            (&[], "colour = 'red'", "worker.toml"),
            (&[], "slots = -1", "worker.toml"),
        ] {
            let error = load(flags, file).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn what_is_printed_can_be_read_again() {
        let flags = "--name a --slots 2 --log-limit 3M --gpu-deadline 90s --nvml-library /n.so";
        let flags: Vec<&str> = flags.split(' ').collect();
        let config = load(&flags, "").unwrap();
        assert_eq!(config.log_limit, 3 << 20);
        assert_eq!(config.gpu_deadline, Duration::from_secs(90));
        let again = load(&[], &config.to_string()).unwrap();
        assert_eq!(
            (again.name, again.slots, again.log_limit),
            (config.name, config.slots, config.log_limit)
        );
        assert_eq!(
            (again.gpu_deadline, again.nvml_library),
            (config.gpu_deadline, config.nvml_library)
        );
    }
}
