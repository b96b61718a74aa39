//! The worker agent, and the shim that owns a job's processes.
//!
//! The agent dials the coordinator (`session`), hands assignments to shims and tells what becomes
//! of them (`supervisor`), and sends their output (`log_pump`). It may be killed at any moment: a
//! job belongs to its shim, and what a shim wrote into its segment (`spool`) is everything that the
//! next agent needs (`adoption`). Decisions are in `qctl-worker-core`.

mod adoption;
mod charge;
mod checkpoints;
mod clock;
pub mod config;
mod coordinators;
mod dead_man;
mod follower;
pub mod inventory;
mod log_pump;
mod panics;
pub mod process;
mod session;
pub mod shim;
mod shim_link;
pub mod spool;
mod supervisor;
mod tail_files;
mod tail_reader;
pub mod watch;
mod wire;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use qctl_notify::outbox::Outbox;
use qctl_proto::daemon;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use checkpoints::{Checkpoints, Coordinator};
use config::{Args, Command, Config, LogFormat};
use coordinators::Coordinators;
use inventory::gpu::{self, Nvml};
use inventory::host::Observer;
use inventory::place::Places;
use inventory::probe::{self, Prober};
use log_pump::Pump;
use panics::Panics;
use process::identity;
use process::marker::Marker;
use session::Dialler;
use spool::Spool;
use supervisor::{Supervisor, Surroundings};
use watch::Watcher;

/// Events of a session that wait for the supervisor.
const QUEUED_EVENTS: usize = 1024;

/// The program `qctl-worker`.
pub fn main() -> ExitCode {
    let args = Args::parse();
    match &args.command {
        Some(Command::Shim(args)) => {
            // It was started as /proc/self/exe, which would be its name in `ps` and `top`.
            let _ = rustix::thread::set_name(c"qctl-shim");
            return shim::main(args);
        }
        Some(Command::Gpus(args)) => return gpu::main(args),
        Some(Command::ProbeGpus(args)) => return probe::main(args),
        Some(Command::WatchGpus(args)) => return watch::nvml::main(args),
        Some(Command::LookInto(args)) => return watch::evidence::main(args),
        None => {}
    }
    match agent(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn agent(args: &Args) -> anyhow::Result<()> {
    let config = Config::load(args)?;
    if args.print_config {
        print!("{config}");
        return Ok(());
    }
    log_to_stderr(&config)?;
    qctl_notify::panics::end(
        "qctl-worker",
        host_name(),
        Outbox::of(config.home.data_dir()),
    );
    // Only fails when a provider is installed already, which is just as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // One thread: everything heavy has a thread of its own, and what is left is a few messages a
    // job, which would spend more on waking another thread than on themselves.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let result = runtime.block_on(run_until_signal(config));
    // A sweep may block for long; the next agent goes on with it.
    runtime.shutdown_background();
    result
}

async fn run_until_signal(config: Config) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; jobs run on, and the next agent takes them over");
        stopped.cancel();
    });
    run(config, stop).await
}

/// Runs an agent until `stop`. Jobs and their shims live on.
///
/// # Errors
/// When the worker's folder cannot be used, or its segments cannot be read.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let open_files = daemon::raise_open_files();
    let (link, coordinator) = tokio::sync::watch::channel(None);
    let coordinators = Coordinators {
        server: config.server.clone(),
        home: config.home.clone(),
        token_file: config.token_file.clone(),
        authority: config.authority.clone(),
    };
    let panics = Panics {
        outbox: Outbox::of(config.home.data_dir()),
        coordinators: coordinators.clone(),
        link: coordinator.clone(),
    };
    panics.hand_over_first().await;
    let spool = Arc::new(Spool::open(&config.home.worker_dir())?);
    // Only now is it sure that no other agent probes.
    let probes = Marker::of_probes(&spool.spool_id());
    probe::end_leftovers(probes.clone()).await;
    let boot_id = identity::boot_id().context("cannot read the machine's boot id")?;
    let (tell_stored, stored) = mpsc::unbounded_channel();
    let pump = Pump::start(move |fence| {
        // Nobody listens any more once the agent is ending.
        let _ = tell_stored.send(fence);
    })
    .context("cannot start the thread that sends output")?;
    let (tell_gpus, gpus) = mpsc::unbounded_channel();
    let watcher = Watcher::start(
        config.home.worker_dir().to_owned(),
        config.gpu_idle,
        tell_gpus.clone(),
    )
    .context("cannot start the thread that watches processes")?;
    let observer = Observer::new();
    let host = observer.host();
    let (events, session) = mpsc::channel(QUEUED_EVENTS);
    let (checkpoints, found) = Checkpoints::start(
        spool.checkpoints_dir(),
        config.checkpoints_per_job,
        coordinator.clone(),
    )
    .context("cannot start the threads that look after checkpoints")?;
    let nvml = Nvml {
        program: config.shim_program.clone(),
        library: config.nvml_library.clone(),
        deadline: config.gpu_deadline,
    };
    let places = Places::default();
    let supervisor = Supervisor::adopt(Surroundings {
        spool: Arc::clone(&spool),
        boot_id: boot_id.clone(),
        shim_program: config.shim_program.clone(),
        open_files,
        data: config.home.data_dir().to_owned(),
        slots: config.slots.unwrap_or(1),
        log_limit: config.log_limit,
        silence: wire::silence_wish(&config.silence),
        pump: pump.clone(),
        checkpoints,
        found,
        observer,
        watcher: watcher.clone(),
        prober: Prober {
            nvml: nvml.clone(),
            command: config.gpu_probe.clone(),
            marker: probes,
            places: places.clone(),
        },
        tell_gpus: tell_gpus.clone(),
        gpus,
        stored,
        session,
    })
    .await?;
    let (see_gpus, seen_gpus) = tokio::sync::watch::channel(Vec::new());
    let gpus = watcher.watch_gpus(nvml.clone(), tell_gpus, see_gpus, stop.clone());
    let watching = watch_coordinator(&config, host.name.clone(), coordinator, stop.clone());
    let dialler = Dialler {
        coordinators,
        name: config.name,
        slots: config.slots,
        alarms: config.alarms.clone(),
        boot_id,
        host,
        nvml,
        places,
        seen_gpus,
        spool,
        pump,
        supervisor: events,
        link,
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        folder = %config.home.worker_dir().display(),
        "worker started"
    );
    // Ready without a coordinator too: jobs of an earlier agent are in good hands by now.
    daemon::tell_manager("READY=1");
    let ending = async {
        stop.cancelled().await;
        daemon::tell_manager("STOPPING=1");
    };
    tokio::join!(
        ending,
        supervisor.run(stop.clone()),
        dialler.run(stop.clone()),
        watching,
        panics.run(stop.clone()),
        gpus,
    );
    Ok(())
}

/// Tells people when the coordinator is away. A mistake in the settings is logged, and tells nobody:
/// jobs do not wait for it, and the coordinator of this machine refuses them anyway.
fn watch_coordinator(
    config: &Config,
    host: String,
    link: tokio::sync::watch::Receiver<Option<Coordinator>>,
    stop: CancellationToken,
) -> impl Future<Output = ()> + use<> {
    let name = config.name.clone().unwrap_or(host);
    let data = config.home.data_dir().to_owned();
    let settings = qctl_notify::Settings::load(config.home.config_dir())
        .inspect_err(|error| tracing::error!("nobody is told from here: {}", chain(error)))
        .unwrap_or_default();
    async move { dead_man::run(settings, &data, name, link, stop).await }
}

/// The name of this machine.
fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

fn log_to_stderr(config: &Config) -> anyhow::Result<()> {
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&config.log)?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match config.log_format {
        LogFormat::Compact => lines.compact().try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started
        .map_err(|error| anyhow::anyhow!(error))
        .context("cannot log")
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(": ");
        message.push_str(&error.to_string());
        cause = error.source();
    }
    message
}
