//! The command line's grammar. Each command keeps its own arguments beside what it does, in
//! `commands/NAME.rs`; here are the list of commands and what several of them share.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use qctl_proto::v1::AlarmSetting;

use crate::commands;

pub mod causes;
pub mod values;

/// A job queue for long work on GPU machines.
#[derive(Debug, Parser)]
#[command(
    name = "qctl",
    version,
    propagate_version = false,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "Exit codes: 0 well, 1 error, 2 usage, 3 not found, 4 not possible now, 69 coordinator\n\
                  unreachable, 75 try again, 77 not allowed, 130 interrupted. A command that waits for a\n\
                  job exits with the job's own code: 124 time limit, 126 not startable, 128+N signal N."
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Print one stable JSON document, or one line an item for streams and batches
    #[arg(long, global = true)]
    pub json: bool,
    /// When to use colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColourChoice,
    /// Print the merged configuration, without secrets, and end
    #[arg(long)]
    pub print_config: bool,
    /// Where the coordinator is.
    #[command(flatten)]
    pub connection: Connection,
}

/// Where the coordinator is and how to be let in.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct Connection {
    /// Coordinator: HOST:PORT, https://HOST:PORT, several of these with commas between them, or a
    /// name from qctl.toml
    #[arg(long, global = true, env = "QCTL_SERVER", value_name = "ADDRESS", hide_env_values = true, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub server: Option<String>,
    /// File that holds the token
    #[arg(
        long,
        global = true,
        env = "QCTL_TOKEN_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub token_file: Option<PathBuf>,
    /// PEM file of the authority to trust for https
    #[arg(
        long,
        global = true,
        env = "QCTL_AUTHORITY",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub authority: Option<PathBuf>,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColourChoice {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// The commands, in the order of the help.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the coordinator and a worker on this machine
    Up(commands::up::Args),
    /// Stop the coordinator and the worker; running jobs go on
    Down(commands::down::Args),
    /// Show the coordinator, its workers and how much waits
    Status(commands::status::Args),
    /// Submit a job: a command, a shell text, a template, or a batch of them
    Submit(Box<commands::submit::Args>),
    /// Submit a command under a name: enqueue NAME COMMAND ARGS...
    Enqueue(Box<commands::enqueue::Args>),
    /// List jobs, newest first
    #[command(visible_alias = "ls")]
    List(commands::list::Args),
    /// Show everything about one job
    Show(commands::show::Args),
    /// Print a job's output
    Logs(commands::logs::Args),
    /// Wait until jobs have ended; exits with the job's own code
    Wait(commands::wait::Args),
    /// Say why a job is not running
    Why(commands::why::Args),
    /// Show what happened, to one job or to all
    History(commands::history::Args),
    /// List the checkpoints that a job has published
    Checkpoints(commands::checkpoints::Args),
    /// Cancel jobs: stop a running one's whole process tree
    #[command(visible_alias = "kill")]
    Cancel(commands::cancel::Args),
    /// Submit ended jobs again, as new jobs
    Retry(commands::retry::Args),
    /// Interrupt a copy of a job on purpose, and report whether it really resumes
    Drill(Box<commands::drill::Args>),
    /// Keep waiting jobs from starting
    Hold(commands::hold::Args),
    /// Let held jobs go on
    Release(commands::release::Args),
    /// Freeze running jobs and their clocks
    Pause(commands::pause::Args),
    /// Thaw paused jobs
    Resume(commands::resume::Args),
    /// Change a job that has not started
    Edit(Box<commands::edit::Args>),
    /// Delete ended jobs with their history and logs
    Delete(commands::delete::Args),
    /// Delete all jobs that ended long ago
    Cleanup(commands::cleanup::Args),
    /// Have a worker start the next job now, and follow it
    ///
    /// The job starts even while the queue or the worker is paused, and beside the worker's slots.
    Execute(commands::execute::Args),
    /// Stop or allow new starts everywhere
    Queue(commands::queue::Args),
    /// List workers and what they run
    Workers(commands::workers::Args),
    /// Steer one worker
    Worker(commands::worker::Args),
    /// Show what is unusual about jobs and machines, and what was
    Alarms(commands::alarms::Args),
    /// Show how every machine does, and what to do about it
    Health(commands::health::Args),
    /// Show what people were told, and try whether notices arrive
    Notices(commands::notices::Args),
    /// Show failures in groups of the same error
    Errors(commands::errors::Args),
    /// Show the templates that jobs can be made from
    Template(commands::template::Args),
    /// Report a job's progress, from inside the job
    Progress(commands::progress::Args),
    /// Publish a checkpoint to resume from, from inside the job
    Checkpoint(commands::checkpoint::Args),
    /// Print completions for a shell
    Completions(commands::completions::Args),
    /// Print or write the manual pages
    Man(commands::man::Args),
    /// Keep the coordinator and the worker running
    #[command(hide = true)]
    Keeper(commands::keeper::Args),
}

/// What `submit`, `enqueue` and `edit` can say about a job.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Job options")]
pub struct SpecArgs {
    /// Label for filtering; can be given several times
    #[arg(long = "label", value_name = "KEY[=VALUE]", value_parser = values::label)]
    pub labels: Vec<(String, String)>,
    /// Ticket the job belongs to, such as INTG-088
    #[arg(long, value_name = "ID")]
    pub tracker: Option<String>,
    /// Folder where the tracker's outputs go
    #[arg(long, value_name = "DIR")]
    pub workspace: Option<PathBuf>,
    /// Working directory of the job [default: the present one]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Environment variable for the job; without a value, the present one is copied
    #[arg(long = "env", value_name = "NAME[=VALUE]", value_parser = values::variable)]
    pub env: Vec<values::Variable>,
    /// Higher runs first; everyone's default is 0
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = values::whole::<i32>(..))]
    pub priority: Option<i32>,
    /// Run only after another job ended: ok (the default), failed, or any
    #[arg(long, value_name = "JOB[:ok|:failed|:any]", value_delimiter = ',', value_parser = values::after)]
    pub after: Vec<values::After>,
    /// Longest run time of one attempt, such as 90s, 10m or 1h30m
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub time_limit: Option<Duration>,
    /// Send a warning signal this long before the time limit
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub warn_before: Option<Duration>,
    /// Automatic retries after failures [default: 2]
    #[arg(long, value_name = "N", value_parser = values::whole::<i32>(0..=1000))]
    pub retries: Option<i32>,
    /// Automatic resumes after interruptions [default: 3]
    #[arg(long, value_name = "N", value_parser = values::whole::<i32>(0..=1000))]
    pub resumes: Option<i32>,
    /// Retry only these failures, such as exit:1,137, exit, signal:KILL, time-limit, out-of-memory
    /// [default: all that a retry can mend]
    #[arg(long, value_name = "CAUSE,...", value_parser = causes::causes)]
    pub retry_on: Vec<causes::Causes>,
    /// Never retry these failures; wins over --retry-on
    #[arg(long, value_name = "CAUSE,...", value_parser = causes::causes)]
    pub no_retry_on: Vec<causes::Causes>,
    /// Exit code by which the job asks to be run again from its checkpoint; uses up nothing
    #[arg(long, value_name = "CODE", value_parser = causes::checkpoint_exit_code)]
    pub checkpoint_exit_code: Option<i32>,
    /// Slots that the job occupies on its worker [default: 1]
    #[arg(long, value_name = "N", value_parser = values::whole::<i32>(1..=1000))]
    pub slots: Option<i32>,
    /// Whole GPUs that the job needs
    #[arg(long, value_name = "N", value_parser = values::whole::<i32>(0..=1000))]
    pub gpus: Option<i32>,
    /// Memory that the job needs, such as 512M or 2G
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub memory: Option<i64>,
    /// When a silent attempt is warned of, warned of again and stopped, such as 5m,10m,15m; or single
    /// stages, such as stop=30m or warn=10m,stop=off; or off [default: the worker's, 5m,10m,15m]
    #[arg(long, value_name = "STAGES", value_parser = values::silence)]
    pub silence: Option<qctl_proto::v1::Silence>,
    /// What counts as a sign of life: output, or activity of its processes as well [default: the
    /// worker's, output]
    #[arg(long, value_name = "WHAT", value_parser = values::silence_counts)]
    pub silence_counts: Option<qctl_proto::v1::silence::Counts>,
    /// How long the job may compute without using its GPUs before it is stopped, such as 15m, or off
    /// [default: the worker's, 15m]
    #[arg(long, value_name = "DURATION", value_parser = values::gpu_idle)]
    pub gpu_idle: Option<Duration>,
    /// Run only on this worker
    #[arg(long, value_name = "NAME")]
    pub worker: Option<String>,
    /// From which figure on something is an alarm, such as cpu=off, memory-growth=8GB or run-time=6h; can
    /// be given several times [default: the worker's choice]
    #[arg(long = "alarm", value_name = "KIND=LIMIT", value_delimiter = ',', value_parser = values::alarm)]
    pub alarms: Vec<AlarmSetting>,
    /// Never run two attempts at once, even when a worker cannot be reached
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", action = ArgAction::Set)]
    pub exclusive: Option<bool>,
    /// Signal of the warning, by name or number [default: USR1]
    #[arg(long, value_name = "SIGNAL", value_parser = values::signal)]
    pub warn_signal: Option<i32>,
    /// Time between the stop signal and force [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub stop_grace: Option<Duration>,
    /// Pattern that recognises progress, with groups named done and total, or percent
    #[arg(long, value_name = "REGEX", value_parser = values::progress_pattern)]
    pub progress: Option<String>,
    /// Pattern of a line near the end of the output that makes exit 0 a failure
    #[arg(long, value_name = "REGEX", value_parser = values::pattern)]
    pub contradicted_by: Option<String>,
    /// Run on a pseudo-terminal, which merges the output streams
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", action = ArgAction::Set)]
    pub pty: Option<bool>,
    /// Most output of an attempt to keep on its worker's disk, such as 512M: its beginning and its
    /// end [default: the worker's, 1G]
    #[arg(long, value_name = "SIZE", value_parser = values::log_limit)]
    pub log_limit: Option<i64>,
    /// File or folder with the job's results; can be given several times
    #[arg(long = "artifact", value_name = "PATH")]
    pub artifacts: Vec<String>,
    /// Tell people of its end, of failures only, or of nothing [default: of what goes wrong, and of
    /// a success that took two minutes]
    #[arg(long, value_name = "WHEN", value_parser = values::notify)]
    pub notify: Option<qctl_proto::v1::job_spec::Notify>,
}

/// What `submit` and `enqueue` can say besides.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Job options")]
pub struct SubmissionArgs {
    /// What `edit` can say too.
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Wait for `qctl release` before the first start
    #[arg(long)]
    pub hold: bool,
    /// Submitting twice with the same id makes one job [default: a new one]
    #[arg(long, value_name = "ID", value_parser = values::request_id, help_heading = "Submission options")]
    pub request_id: Option<String>,
    /// Follow the job's progress and output; exits with the job's own code
    #[arg(
        long,
        short = 'f',
        conflicts_with = "wait",
        help_heading = "Submission options"
    )]
    pub follow: bool,
    /// Wait silently until the job has ended; exits with the job's own code
    #[arg(long, help_heading = "Submission options")]
    pub wait: bool,
}

/// Jobs to act on.
#[derive(Clone, Debug, Args)]
pub struct Jobs {
    /// Job numbers
    #[arg(value_name = "JOB", required = true, value_parser = values::job)]
    pub jobs: Vec<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }
}
