//! The shim: the small, synchronous program that owns a job's processes.
//!
//! `qctl-worker shim --segment FILE --socket PATH` takes the lock of the segment, which an agent
//! has just created, and runs one assignment after the other. It outlives the agent: what happens
//! is written into the segment, limits are enforced here, and over the socket it only rings. When
//! its standard input is a connected socket, that is the connection of the agent that started it.
//!
//! One loop ([`event_loop`]) waits for everything; what to do about limits is decided by
//! [`qctl_worker_core::enforcement`].

/// Writes a line for whoever reads the worker's log. Unlike `eprintln!` it cannot panic when
/// nobody does: the job must outlive its audience.
macro_rules! note {
    ($($argument:tt)*) => {
        $crate::shim::note(format_args!($($argument)*))
    };
}

mod activity;
mod append_file;
mod attempt;
mod control;
mod durability;
mod event_loop;
mod journal;
mod launch;
mod out_of_memory;
mod output;
mod progress;
pub mod records;
mod signals;
mod spawn;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use qctl_proto::daemon;

pub use control::connect;
pub use journal::JournalError;

use crate::shim::event_loop::Shim;
use crate::shim::journal::Journal;

/// Length of the log at which shims fall silent, in bytes: a shim can live for months, and the agent
/// that begins a new log may be away.
pub(crate) const MAX_LOG_BYTES: u64 = 1024 * 1024;

fn note(what: std::fmt::Arguments<'_>) {
    let stderr = io::stderr();
    let full = rustix::fs::fstat(&stderr).is_ok_and(|stat| is_full(&stat));
    if !full {
        let line = format!("qctl-worker shim: {what}\n");
        let _ = io::Write::write_all(&mut stderr.lock(), line.as_bytes());
    }
}

fn is_full(log: &rustix::fs::Stat) -> bool {
    let is_file = rustix::fs::FileType::from_raw_mode(log.st_mode).is_file();
    is_file && u64::try_from(log.st_size).is_ok_and(|size| size >= MAX_LOG_BYTES)
}

/// What a shim is told when it is started.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Segment to write: a new file, empty or with nothing but a header
    #[arg(long, value_name = "FILE")]
    pub segment: PathBuf,
    /// Socket to listen on; the progress pipe is made beside it
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Folder of the installation's data, where a bug of the shim is told from
    #[arg(long, value_name = "FOLDER")]
    pub data: Option<PathBuf>,
    /// Jobs after which the shim retires
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000)]
    pub max_jobs: u64,
    /// Length of the segment after which the shim retires, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 64 * 1024 * 1024)]
    pub max_segment_bytes: u64,
    /// Files that a job may open at once, unless it asks for more [default: as many as the shim may]
    #[arg(long, value_name = "NUMBER")]
    pub open_files: Option<u64>,
}

/// Why a shim gave up.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The segment cannot be begun.
    #[error("cannot begin")]
    Journal(#[from] JournalError),
    /// The socket cannot be made.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Something that every process may do was refused.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Runs a shim until it retires. Errors are told on standard error.
pub fn main(args: &Args) -> ExitCode {
    if let Some(data) = &args.data {
        let outbox = qctl_notify::outbox::Outbox::of(data);
        qctl_notify::panics::tell("qctl-worker shim", crate::host_name(), outbox);
    }
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut message = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                message.push_str(": ");
                message.push_str(&cause.to_string());
                source = cause.source();
            }
            note!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a shim until it retires. The caller's process belongs to it: it leaves its session, its
/// standard input and its way of handling signals.
///
/// # Errors
/// When the segment or the socket cannot be had, or the kernel refuses what every process may do.
pub fn run(args: &Args) -> Result<(), ShimError> {
    let system = |what| move |source| ShimError::System { what, source };
    // Fails when this process leads its group already, which a shell may have arranged; then it is
    // as far from the agent as it can be.
    let _ = rustix::process::setsid();
    if args.open_files.is_some() {
        // A shim needs few, and what it may is what its jobs may.
        daemon::set_open_files(args.open_files).map_err(system("limit open files"))?;
    }
    let first = take_stdin().map_err(system("take standard input"))?;
    let journal = Journal::begin(&args.segment)?;
    let shim = Shim::new(args, journal, first)?;
    shim.run().map_err(system("wait for events"))
}

/// The agent's connection, when standard input is one.
fn take_stdin() -> io::Result<Option<UnixStream>> {
    let stdin = io::stdin();
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&stdin)?.st_mode);
    if kind != rustix::fs::FileType::Socket {
        return Ok(None);
    }
    let first = stdin.as_fd().try_clone_to_owned()?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(Some(first.into()))
}
