//! `qctl up`: starts the coordinator and a worker on this machine.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::time::{Duration, Instant};

use qctl_proto::home::Home;
use qctl_proto::v1;
use rustix::process::Signal;
use serde::Serialize;

use crate::args::values;
use crate::context::Context;
use crate::error::{Error, Problem};
use crate::exit;
use crate::keeper::coordinator::Coordinator;
use crate::keeper::installation::{self, InstallationError};
use crate::keeper::process::{self, Process};
use crate::keeper::report::Report;
use crate::keeper::settings::Settings;
use crate::keeper::surroundings::{self, Session};
use crate::keeper::{self, KeeperError, Program, detach, lock, log_file};
use crate::output::text;

/// How long the programs may take to answer. The first start makes a database cluster.
const PATIENCE: Duration = Duration::from_secs(60);
/// A coordinator that ended this often in a row will not come up by waiting.
const HOPELESS: u32 = 3;
/// Lines of a log that are shown with a failure.
const SHOWN_LINES: usize = 5;

/// Arguments of `qctl up`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Stay in the foreground instead of detaching
    #[arg(long)]
    pub foreground: bool,
    /// Address the coordinator listens on; port 0 takes any free one, and keeps it
    #[arg(
        long,
        env = "QCTL_LISTEN",
        hide_env_values = true,
        value_name = "ADDRESS"
    )]
    pub listen: Option<SocketAddr>,
    /// Address that links to this machine's pages begin with
    #[arg(
        long,
        env = "QCTL_PUBLIC_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub public_url: Option<String>,
    /// Slots of the worker
    #[arg(long, env = "QCTL_WORKER_SLOTS", hide_env_values = true, value_name = "N", value_parser = values::whole::<u32>(1..=1000))]
    pub slots: Option<u32>,
    /// Name of the worker
    #[arg(
        long,
        env = "QCTL_WORKER_NAME",
        hide_env_values = true,
        value_name = "NAME"
    )]
    pub name: Option<String>,
    /// Start the coordinator only
    #[arg(long, conflicts_with_all = ["slots", "name"])]
    pub no_worker: bool,
    /// Folder with the programs of Postgres
    #[arg(long, env = "QCTL_PG_BIN", hide_env_values = true, value_name = "DIR")]
    pub pg_bin: Option<PathBuf>,
}

impl Args {
    fn settings(&self) -> Result<Settings, Error> {
        let pg_bin = match &self.pg_bin {
            // The keeper and its programs run in another folder.
            Some(path) => Some(std::path::absolute(path).map_err(Error::file("find", path))?),
            None => None,
        };
        Ok(Settings {
            listen: self.listen.map(|address| address.to_string()),
            public_url: self.public_url.clone(),
            slots: self.slots,
            name: self.name.clone(),
            pg_bin,
            no_worker: self.no_worker,
        })
    }
}

/// Runs the command.
///
/// # Errors
/// When something cannot be started.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let home = context.home()?.clone();
    if surroundings::is_windows_drive(home.data_dir()) {
        return Err(windows_drive(home.data_dir()).into());
    }
    installation::prepare(&home).map_err(|error| installation_problem(&error))?;
    let programs = installation::programs().map_err(|error| installation_problem(&error))?;
    let remembered = Settings::load(&home).map_err(|error| settings_problem(&error, &home))?;
    let settings = remembered.clone().overlaid(args.settings()?);
    let keeper =
        lock::holder(&home.keeper_lock()).map_err(Error::file("look at", home.keeper_lock()))?;
    if let Some(keeper) = keeper {
        if args.foreground {
            return Err(already_runs(keeper.pid()).into());
        }
        if settings.listen != remembered.listen {
            refuse_taken_port(&home, &settings)?;
        }
        settings
            .save(&home)
            .map_err(|error| settings_problem(&error, &home))?;
        // It reads the options again and starts what is missing.
        let requests = Report::load(&home).requests;
        keeper.signal(Signal::HUP);
        let keeper = Keeper::Found { keeper, requests };
        return wait_and_tell(context, &home, &settings, &remembered, keeper).await;
    }
    if Process::adopt(&Program::Server.record(&home)).is_none() {
        refuse_foreign_coordinator(context, &home).await?;
        refuse_taken_port(&home, &settings)?;
    }
    settings
        .save(&home)
        .map_err(|error| settings_problem(&error, &home))?;
    if args.foreground {
        return in_foreground(context, &home, &settings, &programs).await;
    }
    let child = detach::start(&home).map_err(Error::file("start", "the keeper"))?;
    let keeper = Keeper::Started(child);
    wait_and_tell(context, &home, &settings, &remembered, keeper).await
}

/// Runs the keeper in this process, and tells when everything answers.
async fn in_foreground(
    context: &Context,
    home: &Home,
    settings: &Settings,
    programs: &Path,
) -> Result<ExitCode, Error> {
    let told = async {
        let told = wait_and_tell(context, home, settings, settings, Keeper::Own).await;
        if let Err(error) = told {
            // The keeper goes on trying, so this is not the end of the program.
            context
                .output
                .print_error(&error.report().for_people(context.output.colour_errors));
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = keeper::run(home, programs) => ended.map_err(|error| keeper_problem(&error))?,
        () = told => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// The keeper that this command relies on.
enum Keeper {
    /// It ran before.
    Found {
        keeper: Process,
        /// What it had carried out when this command asked it to look again.
        requests: u32,
    },
    /// It runs in this process.
    Own,
    /// This command started it.
    Started(Child),
}

/// Everything answers.
struct Ready {
    coordinator: Coordinator,
    status: v1::GetStatusResponse,
    /// The worker of this machine; absent when none is wanted.
    worker: Option<v1::Worker>,
}

/// What is not ready yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Coordinator,
    Worker,
}

/// How the waiting ended without success.
enum Failure {
    /// The keeper ended by itself.
    KeeperEnded,
    /// A program will not come up by waiting.
    Hopeless(Program),
    /// Time is up.
    TimeUp(Missing),
}

/// What a failed start left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Everything is stopped again.
    Nothing,
    /// What ran before goes on with the options it had.
    EarlierOptions,
    /// The keeper goes on trying.
    Trying,
}

async fn wait_and_tell(
    context: &Context,
    home: &Home,
    settings: &Settings,
    remembered: &Settings,
    mut keeper: Keeper,
) -> Result<ExitCode, Error> {
    let was_running = matches!(keeper, Keeper::Found { .. });
    let deadline = Instant::now() + PATIENCE;
    let failure = match wait(context, home, settings, &mut keeper, deadline).await {
        Ok(ready) => {
            tell(context, home, settings, was_running, &ready)?;
            return Ok(ExitCode::SUCCESS);
        }
        Err(failure) => failure,
    };
    let ending = last_ending(home, &failure);
    let left = undo(home, settings, remembered, keeper, &failure).await;
    let (problem, log) = failed(home, &failure, &ending, left);
    show_end(context, &log);
    Err(problem.into())
}

/// What this command began and could not finish must not go on by itself, nor be remembered.
async fn undo(
    home: &Home,
    settings: &Settings,
    remembered: &Settings,
    keeper: Keeper,
    failure: &Failure,
) -> Left {
    let coordinator_is_up = matches!(
        failure,
        Failure::TimeUp(Missing::Worker) | Failure::Hopeless(Program::Worker)
    );
    let restored = settings != remembered && remembered.save(home).is_ok();
    match keeper {
        Keeper::Started(_) if !coordinator_is_up && stop_keeper(home).await => Left::Nothing,
        Keeper::Found { keeper, .. } if restored => {
            keeper.signal(Signal::HUP);
            Left::EarlierOptions
        }
        _ => Left::Trying,
    }
}

async fn wait(
    context: &Context,
    home: &Home,
    settings: &Settings,
    keeper: &mut Keeper,
    deadline: Instant,
) -> Result<Ready, Failure> {
    let mut missing = Missing::Coordinator;
    // Until a keeper has carried out what this command asks, it reports failures from before.
    let asked = match keeper {
        Keeper::Found { requests, .. } => Some(*requests),
        Keeper::Started(_) | Keeper::Own => None,
    };
    let ready = process::until(deadline, async || {
        if keeper_ended(keeper, home) {
            return Some(Err(Failure::KeeperEnded));
        }
        let report = Report::load(home);
        if asked.is_none_or(|requests| report.requests != requests)
            && let Some(program) = hopeless(&report)
            // Without a coordinator a worker may well give up first; that is not the cause.
            && (program == Program::Server || missing == Missing::Worker)
        {
            return Some(Err(Failure::Hopeless(program)));
        }
        match look(context, home, settings).await {
            Ok(ready) => Some(Ok(ready)),
            Err(still) => {
                missing = still;
                None
            }
        }
    })
    .await;
    ready.unwrap_or(Err(Failure::TimeUp(missing)))
}

fn keeper_ended(keeper: &mut Keeper, home: &Home) -> bool {
    match keeper {
        Keeper::Found { .. } | Keeper::Own => false,
        // Another `up` at the same time may have been quicker; then its keeper serves us.
        Keeper::Started(child) => {
            !matches!(child.try_wait(), Ok(None))
                && !matches!(lock::holder(&home.keeper_lock()), Ok(Some(_)))
        }
    }
}

fn hopeless(report: &Report) -> Option<Program> {
    Program::ALL.into_iter().find(|program| {
        report
            .programs
            .get(program.name())
            .is_some_and(|report| report.has_given_up() || report.failures >= HOPELESS)
    })
}

async fn look(context: &Context, home: &Home, settings: &Settings) -> Result<Ready, Missing> {
    // A program that still runs with earlier options is about to be restarted.
    let recorded = |program: Program| {
        process::read_record(&program.record(home))
            .filter(|recorded| recorded.settings == settings.variables(program))
    };
    let expected = recorded(Program::Server).ok_or(Missing::Coordinator)?;
    let coordinator = Coordinator::find(home, context.config().authority())
        .await
        .ok_or(Missing::Coordinator)?;
    // The address may be an old one, at which a coordinator of another home listens by now.
    let status = coordinator
        .status()
        .await
        .filter(|status| status.pid == expected.identity.pid)
        .ok_or(Missing::Coordinator)?;
    if settings.no_worker {
        return Ok(Ready {
            coordinator,
            status,
            worker: None,
        });
    }
    recorded(Program::Worker).ok_or(Missing::Worker)?;
    let worker = own_worker(&status, settings).ok_or(Missing::Worker)?;
    Ok(Ready {
        worker: Some(worker.clone()),
        coordinator,
        status,
    })
}

/// This machine's worker, when it is connected.
fn own_worker<'a>(
    status: &'a v1::GetStatusResponse,
    settings: &Settings,
) -> Option<&'a v1::Worker> {
    use v1::worker::State;
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy();
    status.workers.iter().find(|worker| {
        let connected = matches!(
            worker.state(),
            State::Online | State::Paused | State::Draining
        );
        connected
            && match &settings.name {
                Some(name) => worker.name == *name,
                None => worker.hostname == host,
            }
    })
}

/// What `up --json` prints.
#[derive(Debug, Serialize)]
struct Document<'a> {
    state: &'static str,
    was_running: bool,
    address: &'a str,
    url: &'a str,
    pid: i32,
    version: &'a str,
    worker: Option<WorkerDocument<'a>>,
    config_dir: &'a Path,
    data_dir: &'a Path,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct WorkerDocument<'a> {
    name: &'a str,
    slots: i32,
    gpus: usize,
}

fn tell(
    context: &Context,
    home: &Home,
    settings: &Settings,
    was_running: bool,
    ready: &Ready,
) -> Result<(), Error> {
    let status = &ready.status;
    let plain_url = format!("http://{}/", ready.coordinator.address);
    let url = [&status.url, &status.public_url, &plain_url]
        .into_iter()
        .find(|url| !url.is_empty())
        .unwrap_or(&plain_url);
    let mut warnings = Session::observe().warnings();
    if let (Some(worker), Some(slots)) = (&ready.worker, settings.slots)
        && i64::from(worker.slots) != i64::from(slots)
    {
        warnings.push(format!(
            "the worker has {}, as it was told later; `qctl worker slots {slots}` changes that",
            text::counted(worker.slots.into(), "slot"),
        ));
    }
    if context.output.json {
        return context.output.print_document(&Document {
            state: "up",
            was_running,
            address: &ready.coordinator.address,
            url,
            pid: status.pid,
            version: &status.version,
            worker: ready.worker.as_ref().map(|worker| WorkerDocument {
                name: &worker.name,
                slots: worker.slots,
                gpus: worker.gpus.len(),
            }),
            config_dir: home.config_dir(),
            data_dir: home.data_dir(),
            warnings,
        });
    }
    let what = if was_running {
        "qctl is running already"
    } else {
        "qctl is up"
    };
    let worker = match &ready.worker {
        Some(worker) => format!(
            "worker {} with {}{}",
            text::printable(&worker.name),
            text::counted(worker.slots.into(), "slot"),
            match worker.gpus.len() {
                0 => String::new(),
                gpus => format!(
                    " and {}",
                    text::counted(i64::try_from(gpus).unwrap_or(i64::MAX), "GPU")
                ),
            },
        ),
        None => "no worker (--no-worker; `qctl up --slots 1` starts one)".to_owned(),
    };
    context.output.print(&format!(
        "{what}: coordinator at {}, {worker}\n  page:  {url}\n  files: {}\n  try:   qctl submit --follow -- echo hello\n",
        ready.coordinator.address,
        home.data_dir().display(),
    ))?;
    for warning in warnings {
        context.output.remark(&format!("warning: {warning}"));
    }
    Ok(())
}

async fn stop_keeper(home: &Home) -> bool {
    let Ok(Some(mut keeper)) = lock::holder(&home.keeper_lock()) else {
        return true;
    };
    keeper.signal(Signal::TERM);
    keeper
        .ended_within(Program::Server.grace() + Program::Worker.grace())
        .await
}

/// Shows people the last lines of a log.
fn show_end(context: &Context, log: &Path) {
    let lines = log_file::last_lines(log, SHOWN_LINES);
    if !lines.is_empty() {
        context
            .output
            .remark(&format!("{} ends with:", log.display()));
    }
    for line in lines {
        context
            .output
            .remark(&format!("    {}", text::printable(&line)));
    }
}

/// How the program that failed ended last.
fn last_ending(home: &Home, failure: &Failure) -> String {
    let Failure::Hopeless(program) = failure else {
        return String::new();
    };
    Report::load(home)
        .programs
        .remove(program.name())
        .map(|report| report.last_ending)
        .unwrap_or_default()
}

/// What to tell, and the log that says more.
fn failed(home: &Home, failure: &Failure, ending: &str, left: Left) -> (Problem, PathBuf) {
    let seconds = PATIENCE.as_secs();
    let (what, log) = match failure {
        Failure::KeeperEnded => (
            "the keeper ended right after its start".to_owned(),
            home.logs_dir().join("keeper.log"),
        ),
        Failure::Hopeless(program) => (
            format!("the {} does not run: it {ending}", program.title()),
            program.log(home),
        ),
        Failure::TimeUp(Missing::Coordinator) => (
            format!("the coordinator did not answer within {seconds} seconds"),
            Program::Server.log(home),
        ),
        Failure::TimeUp(Missing::Worker) => (
            format!(
                "the coordinator runs, but its worker did not connect within {seconds} seconds"
            ),
            Program::Worker.log(home),
        ),
    };
    let (hint, next) = match left {
        Left::Nothing => (
            "nothing was left running; put right what the log tells, then start again",
            "qctl up",
        ),
        Left::EarlierOptions => (
            "the options it had before are in force again",
            "qctl status",
        ),
        Left::Trying => (
            "the keeper goes on trying; `qctl down` ends it",
            "qctl status",
        ),
    };
    let message = format!("{what} (its log is {})", log.display());
    let problem = Problem::new("NOT_UP", exit::ERROR, message)
        .hint(hint)
        .next(next);
    (problem, log)
}

/// A coordinator of this home that no keeper started: the system service's, most likely.
async fn refuse_foreign_coordinator(context: &Context, home: &Home) -> Result<(), Error> {
    let Some(coordinator) = Coordinator::find(home, context.config().authority()).await else {
        return Ok(());
    };
    // Only a coordinator that knows this home's token is this home's.
    let Some(status) = coordinator.status().await else {
        return Ok(());
    };
    Err(Problem::new(
        "ALREADY_UP",
        exit::REFUSED,
        format!(
            "the coordinator of this home runs already (pid {} at {}), and was not started by `qctl up`",
            status.pid, coordinator.address
        ),
    )
    .hint("it is the system service, most likely; stop that first, or leave it in charge")
    .next("qctl status")
    .into())
}

/// An address that someone else listens on is told before anything is started.
fn refuse_taken_port(home: &Home, settings: &Settings) -> Result<(), Error> {
    // The coordinator's own file may name another address, which only it reads.
    if settings.listen.is_none() && home.config_file("server.toml").exists() {
        return Ok(());
    }
    let Some(address) = settings.fixed_address() else {
        return Ok(());
    };
    let Some(owner) = surroundings::port_owner(address) else {
        return Ok(());
    };
    let own = process::read_record(&Program::Server.record(home));
    if own.is_some_and(|own| owner.pid == Some(own.identity.pid)) {
        return Ok(());
    }
    Err(Problem::new(
        "ADDRESS_IN_USE",
        exit::ERROR,
        format!("{address} is taken by {owner}"),
    )
    .hint("choose another port; it is remembered for this home")
    .next(format!(
        "qctl up --listen {}",
        SocketAddr::new(address.ip(), address.port().checked_add(1).unwrap_or(0))
    ))
    .into())
}

fn already_runs(pid: i32) -> Problem {
    Problem::new(
        "ALREADY_UP",
        exit::REFUSED,
        format!("qctl is running already for this home, in the background (keeper {pid})"),
    )
    .hint("stop it first; running jobs go on")
    .next("qctl down && qctl up --foreground")
}

fn windows_drive(path: &Path) -> Problem {
    Problem::usage(format!(
        "{} lies on a Windows drive, where a database loses data",
        path.display()
    ))
    .hint("set QCTL_HOME to a folder of the Linux file system, such as ~/.qctl")
}

fn settings_problem(error: &keeper::settings::SettingsError, home: &Home) -> Problem {
    Problem::new("SETTINGS", exit::ERROR, with_causes(error)).hint(format!(
        "put it right, or remove {} to begin without remembered options",
        Settings::file(home).display()
    ))
}

/// A missing folder, token or program, as it is told.
pub(super) fn installation_problem(error: &InstallationError) -> Problem {
    let problem = Problem::new("INSTALLATION", exit::ERROR, with_causes(error));
    match error {
        InstallationError::Missing { .. } => problem.hint(
            "the three programs belong together: build them all with `cargo build --release`, or install them into one folder",
        ),
        InstallationError::Folder { .. } => {
            problem.hint("set QCTL_HOME to a folder that you may write to")
        }
        InstallationError::EmptyToken(path) => problem.hint(format!(
            "remove {} and a new token is made; clients with a copy need the new one",
            path.display()
        )),
        InstallationError::Token { .. }
        | InstallationError::Random(_)
        | InstallationError::OwnPlace(_) => problem,
    }
}

/// A keeper that did not run, as it is told.
pub(super) fn keeper_problem(error: &KeeperError) -> Problem {
    let problem = Problem::new("KEEPER", exit::ERROR, with_causes(error));
    match error {
        KeeperError::AlreadyRuns => problem.next("qctl status"),
        _ => problem,
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(": ");
        message.push_str(&error.to_string());
        cause = error.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::report::ProgramReport;
    use std::net::TcpListener;

    #[test]
    fn a_taken_port_is_named_with_its_owner_and_a_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let settings = Settings {
            listen: Some(address.to_string()),
            ..Settings::default()
        };
        let home = Home::at(folder.path());
        let error = refuse_taken_port(&home, &settings).unwrap_err();
        let report = error.report();
        assert!(report.message.contains(&address.to_string()), "{report:?}");
        assert!(report.message.contains(&std::process::id().to_string()));
        assert!(
            report
                .next
                .unwrap()
                .starts_with("qctl up --listen 127.0.0.1:")
        );
        drop(listener);
        assert!(refuse_taken_port(&home, &settings).is_ok());
    }

    #[test]
    fn a_program_that_ends_again_and_again_is_not_waited_for() {
        let report = |phase: &str, failures| Report {
            pid: 1,
            requests: 0,
            programs: [(
                "server".to_owned(),
                ProgramReport {
                    phase: phase.to_owned(),
                    failures,
                    ..ProgramReport::default()
                },
            )]
            .into(),
        };
        assert_eq!(hopeless(&report("backing_off", 2)), None);
        assert_eq!(hopeless(&report("backing_off", 3)), Some(Program::Server));
        assert_eq!(hopeless(&report("given_up", 0)), Some(Program::Server));
    }

    #[test]
    fn the_worker_of_another_machine_is_not_ours() {
        let mut status = v1::GetStatusResponse {
            workers: vec![v1::Worker {
                name: "box".to_owned(),
                hostname: "elsewhere".to_owned(),
                state: v1::worker::State::Online.into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        assert!(own_worker(&status, &Settings::default()).is_none());
        let named = Settings {
            name: Some("box".to_owned()),
            ..Settings::default()
        };
        assert!(own_worker(&status, &named).is_some());
        status.workers[0].set_state(v1::worker::State::Offline);
        assert!(own_worker(&status, &named).is_none());
    }

    #[test]
    fn a_failure_names_the_log_and_what_was_left_running() {
        let home = Home::at("/nowhere");
        let waited = Failure::TimeUp(Missing::Coordinator);
        let (problem, log) = failed(&home, &waited, "", Left::Nothing);
        assert_eq!(log, Program::Server.log(&home));
        assert!(problem.message.contains("/nowhere/data/logs/server.log"));
        assert!(problem.hint.unwrap().contains("nothing was left running"));
        let (problem, log) = failed(
            &home,
            &Failure::Hopeless(Program::Worker),
            "exited with 1",
            Left::Trying,
        );
        assert!(problem.message.contains("does not run: it exited with 1"));
        assert_eq!(log, Program::Worker.log(&home));
        assert!(problem.hint.unwrap().contains("goes on trying"));
    }
}
