//! The keeper: parent of coordinator and worker on one machine, from `qctl up` to `qctl down`.
//!
//! It starts both, starts again what ended, keeps their logs small, and adopts what an earlier
//! keeper of the same home left alive. Jobs are not its business: they belong to their shims and
//! outlive everything here.
//!
//! It listens to signals: SIGTERM and SIGINT stop worker and coordinator (a second one forces them),
//! SIGHUP reads the remembered options again and starts what is missing, SIGUSR1 stops the worker.

pub mod coordinator;
pub mod detach;
pub mod installation;
pub mod lock;
pub mod log_file;
pub mod outage;
pub mod process;
pub mod report;
pub mod settings;
pub mod supervision;
pub mod surroundings;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chrono::{SecondsFormat, Utc};
use qctl_proto::home::Home;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use lock::Lock;
use outage::{Outage, Teller};
use process::Process;
use report::{ProgramReport, Report};
use settings::Settings;
use supervision::{Action, Ending, Phase, Supervision};

/// How often the logs' sizes are looked at.
const LOG_LOOK: Duration = Duration::from_secs(10);
/// How often a starting coordinator is looked at.
const START_LOOK: Duration = Duration::from_millis(20);
/// How often a coordinator is looked at that ended without having been asked to.
const OUTAGE_LOOK: Duration = Duration::from_millis(100);
/// How long a worker waits for the coordinator before it is started anyhow.
const WORKER_WAIT: Duration = Duration::from_secs(10);

/// One of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The coordinator.
    Server,
    /// The worker's agent.
    Worker,
}

impl Program {
    /// Both, in the order in which they are started.
    pub const ALL: [Program; 2] = [Program::Server, Program::Worker];

    /// Its name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Program::Server => "server",
            Program::Worker => "worker",
        }
    }

    /// Its name for people.
    pub fn title(self) -> &'static str {
        match self {
            Program::Server => "coordinator",
            Program::Worker => "worker",
        }
    }

    /// Name of its executable.
    pub fn executable(self) -> &'static str {
        match self {
            Program::Server => "qctl-server",
            Program::Worker => "qctl-worker",
        }
    }

    /// Its own log.
    pub fn log(self, home: &Home) -> PathBuf {
        home.logs_dir().join(format!("{}.log", self.name()))
    }

    /// The record by which its process is found again.
    pub fn record(self, home: &Home) -> PathBuf {
        report::folder(home).join(format!("{}.process", self.name()))
    }

    /// Time between SIGTERM and SIGKILL. The coordinator drains its calls and stops its database.
    pub fn grace(self) -> Duration {
        match self {
            Program::Server => Duration::from_secs(25),
            Program::Worker => Duration::from_secs(10),
        }
    }
}

/// Why the keeper did not run.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Another keeper holds the lock.
    #[error("a keeper of this home runs already")]
    AlreadyRuns,
    /// The lock cannot be taken.
    #[error("cannot lock {path}")]
    Lock {
        /// The lock's file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The remembered options cannot be used.
    #[error("the remembered options cannot be used")]
    Settings(#[source] settings::SettingsError),
    /// Signals cannot be listened to.
    #[error("cannot listen to signals")]
    Signals(#[source] io::Error),
}

/// Runs the keeper until it is told to stop and both programs have ended.
///
/// # Errors
/// When another keeper runs for this home, or the keeper cannot begin its work.
pub async fn run(home: &Home, programs: &Path) -> Result<(), KeeperError> {
    // Listening comes before the lock: whoever finds the lock held may send a signal.
    let mut signals = Signals::listen().map_err(KeeperError::Signals)?;
    let path = home.keeper_lock();
    let lock = Lock::take(&path).map_err(|source| KeeperError::Lock { path, source })?;
    let _lock = lock.ok_or(KeeperError::AlreadyRuns)?;
    let host = rustix::system::uname();
    qctl_notify::panics::tell(
        "qctl keeper",
        host.nodename().to_string_lossy().into_owned(),
        qctl_notify::outbox::Outbox::of(home.data_dir()),
    );
    let settings = Settings::load(home).map_err(KeeperError::Settings)?;
    let mut keeper = Keeper::new(home.clone(), programs.to_owned(), settings);
    keeper.begin();
    while !keeper.is_done() {
        qctl_notify::panics::provoked("keeper");
        let event = keeper.next_event(&mut signals).await;
        keeper.handle(event);
    }
    Report::remove(home);
    note("stopped");
    Ok(())
}

/// Everything the keeper reacts to.
#[derive(Debug)]
enum Event {
    Stop,
    Reload,
    StopWorker,
    Ended(Program, Ending),
    Time,
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
    stop_worker: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            stop_worker: signal(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> Event {
        tokio::select! {
            _ = self.terminate.recv() => Event::Stop,
            _ = self.interrupt.recv() => Event::Stop,
            _ = self.hang_up.recv() => Event::Reload,
            _ = self.stop_worker.recv() => Event::StopWorker,
        }
    }
}

/// A program with its process, when it has one.
struct Supervised {
    program: Program,
    supervision: Supervision,
    process: Option<Process>,
    /// The variables that the process was started with.
    variables: BTreeMap<String, String>,
    last_ending: String,
}

impl Supervised {
    fn new(program: Program) -> Self {
        Self {
            program,
            supervision: Supervision::new(program.grace()),
            process: None,
            variables: BTreeMap::new(),
            last_ending: String::new(),
        }
    }

    /// Waits for the end of the process; for ever when there is none.
    async fn ended(&mut self) -> (Program, Ending) {
        match &mut self.process {
            Some(process) => (self.program, process.ended().await),
            None => std::future::pending().await,
        }
    }

    fn report(&self) -> ProgramReport {
        let pid = self.process.as_ref().map(Process::pid);
        ProgramReport::of(&self.supervision, pid, &self.last_ending)
    }
}

/// A starting coordinator that the worker waits for.
struct Awaited {
    /// The address file as it was before the start.
    before: Option<(u64, i64, i64)>,
    until: Instant,
}

struct Keeper {
    home: Home,
    folder: PathBuf,
    settings: Settings,
    server: Supervised,
    worker: Supervised,
    awaited: Option<Awaited>,
    /// The address file as it was before the coordinator was started.
    address_before: Option<(u64, i64, i64)>,
    outage: Outage,
    teller: Teller,
    stopping: bool,
    /// How often it was told to start what is missing.
    requests: u32,
    next_log_look: Instant,
    told: Report,
}

impl Keeper {
    fn new(home: Home, folder: PathBuf, settings: Settings) -> Self {
        Self {
            teller: Teller::new(home.clone()),
            home,
            folder,
            settings,
            address_before: None,
            outage: Outage::default(),
            server: Supervised::new(Program::Server),
            worker: Supervised::new(Program::Worker),
            awaited: None,
            stopping: false,
            requests: 0,
            next_log_look: Instant::now(),
            told: Report::default(),
        }
    }

    fn supervised(&mut self, program: Program) -> &mut Supervised {
        match program {
            Program::Server => &mut self.server,
            Program::Worker => &mut self.worker,
        }
    }

    /// Adopts what lives and starts the rest.
    fn begin(&mut self) {
        let now = Instant::now();
        for program in Program::ALL {
            if let Some((process, variables)) = Process::adopt(&program.record(&self.home)) {
                note(&format!(
                    "adopted the {} that an earlier keeper left (pid {})",
                    program.title(),
                    process.pid()
                ));
                let supervised = self.supervised(program);
                supervised.process = Some(process);
                supervised.variables = variables;
                supervised.supervision.adopted(now);
            }
        }
        self.apply_settings(now);
        self.tell();
    }

    fn is_done(&self) -> bool {
        self.stopping
            && self.server.supervision.is_settled()
            && self.worker.supervision.is_settled()
    }

    async fn next_event(&mut self, signals: &mut Signals) -> Event {
        let wake = [
            self.server.supervision.deadline(),
            self.worker.supervision.deadline(),
            self.awaited
                .as_ref()
                .map(|awaited| awaited.until.min(Instant::now() + START_LOOK)),
            self.outage.deadline(self.teller.after()),
            // That it has come up must be seen before it can end again.
            (self.outage.is_going_on() && self.server.process.is_some())
                .then(|| Instant::now() + OUTAGE_LOOK),
        ]
        .into_iter()
        .flatten()
        .fold(self.next_log_look, Instant::min);
        tokio::select! {
            event = signals.next() => event,
            (program, ending) = self.server.ended() => Event::Ended(program, ending),
            (program, ending) = self.worker.ended() => Event::Ended(program, ending),
            () = tokio::time::sleep_until(wake.into()) => Event::Time,
        }
    }

    fn handle(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Stop => self.stop(now),
            Event::Reload if self.stopping => {}
            Event::Reload => self.reload(now),
            Event::StopWorker => {
                self.awaited = None;
                let action = self.worker.supervision.unwant(now);
                self.act(Program::Worker, action);
            }
            Event::Ended(program, ending) => self.ended(program, ending, now),
            Event::Time => {
                for program in Program::ALL {
                    let action = self.supervised(program).supervision.tick(now);
                    self.act(program, action);
                }
            }
        }
        self.start_awaiting_worker(now);
        // The worker goes first: while it leaves, the coordinator can still take its last words.
        if self.stopping && self.worker.supervision.is_settled() {
            let action = self.server.supervision.unwant(now);
            self.act(Program::Server, action);
        }
        self.look_at_outage(now);
        if now >= self.next_log_look {
            self.next_log_look = now + LOG_LOOK;
            self.look_at_logs();
        }
        self.tell();
    }

    /// Tells people when the coordinator has not come up for long.
    fn look_at_outage(&mut self, now: Instant) {
        let is_up = self.server.process.is_some() && self.has_come_up();
        if is_up || self.stopping {
            self.outage.over();
            self.teller.stop();
        } else if let Some(since) = self.outage.look(now, self.teller.after()) {
            self.teller.tell(since);
        }
    }

    /// The coordinator that was started last has written down where it listens.
    fn has_come_up(&self) -> bool {
        stamp(&self.home.address_file()).is_some_and(|stamp| Some(stamp) != self.address_before)
    }

    fn stop(&mut self, now: Instant) {
        self.awaited = None;
        if self.stopping {
            note("told to stop again: forcing what still runs");
            for program in Program::ALL {
                let _ = self.supervised(program).supervision.unwant(now);
                let action = self.supervised(program).supervision.hurry();
                self.act(program, action);
            }
            return;
        }
        note("told to stop");
        self.stopping = true;
        let action = self.worker.supervision.unwant(now);
        self.act(Program::Worker, action);
    }

    fn reload(&mut self, now: Instant) {
        self.teller = Teller::new(self.home.clone());
        self.outage.over();
        self.requests = self.requests.wrapping_add(1);
        match Settings::load(&self.home) {
            Ok(settings) => self.settings = settings,
            Err(error) => note(&format!("keeping the options in force: {error}")),
        }
        self.apply_settings(now);
    }

    /// Starts what should run and does not, and restarts what runs with other options.
    fn apply_settings(&mut self, now: Instant) {
        for program in Program::ALL {
            let variables = self.settings.variables(program);
            let is_worker = program == Program::Worker;
            let refused = is_worker && self.settings.no_worker;
            let follows = is_worker && self.awaited.is_some();
            let supervised = self.supervised(program);
            let is_running = matches!(supervised.supervision.phase(), Phase::Running { .. });
            let action = if refused {
                supervised.supervision.unwant(now)
            } else if is_running && supervised.variables != variables {
                note(&format!(
                    "restarting the {} with new options",
                    program.title()
                ));
                supervised.supervision.replace(now)
            } else if follows {
                // It follows as soon as the coordinator has an address.
                None
            } else {
                supervised.supervision.want(now)
            };
            self.act(program, action);
        }
    }

    fn ended(&mut self, program: Program, ending: Ending, now: Instant) {
        if program == Program::Server && !self.stopping {
            let had_come_up = self.has_come_up();
            self.outage.ended(had_come_up, now, Utc::now());
        }
        let supervised = self.supervised(program);
        let pid = supervised.process.take().map_or(0, |process| process.pid());
        supervised.last_ending = ending.to_string();
        let action = supervised.supervision.ended(now, ending);
        let what_next = match supervised.supervision.phase() {
            Phase::BackingOff { until } => format!(
                "; starting it again in {:.1} s",
                until.duration_since(now).as_secs_f64()
            ),
            Phase::GivenUp => format!(
                "; its configuration is wrong, see {}. Put it right, then `qctl up`",
                program.log(&self.home).display()
            ),
            _ => String::new(),
        };
        let _ = std::fs::remove_file(program.record(&self.home));
        note(&format!(
            "the {} (pid {pid}) {ending}{what_next}",
            program.title()
        ));
        self.act(program, action);
    }

    fn act(&mut self, program: Program, action: Option<Action>) {
        match action {
            None => {}
            Some(Action::Start) => self.start(program),
            Some(Action::Terminate) => self.signal(program, Signal::TERM),
            Some(Action::Kill) => {
                note(&format!(
                    "the {} did not stop in time: forcing it",
                    program.title()
                ));
                self.signal(program, Signal::KILL);
            }
        }
    }

    fn signal(&mut self, program: Program, signal: Signal) {
        if let Some(process) = &self.supervised(program).process {
            process.signal(signal);
        }
    }

    fn start(&mut self, program: Program) {
        let now = Instant::now();
        let variables = self.settings.variables(program);
        if program == Program::Server && self.worker.process.is_none() && !self.settings.no_worker {
            self.awaited = Some(Awaited {
                before: stamp(&self.home.address_file()),
                until: now + WORKER_WAIT,
            });
        }
        if program == Program::Server {
            self.address_before = stamp(&self.home.address_file());
        }
        let started = self.command(program, &variables).and_then(|mut command| {
            Process::start(&mut command, &variables, &program.record(&self.home))
        });
        match started {
            Ok(process) => {
                note(&format!(
                    "started the {} (pid {})",
                    program.title(),
                    process.pid()
                ));
                let supervised = self.supervised(program);
                supervised.process = Some(process);
                supervised.variables = variables;
                supervised.supervision.started(now);
            }
            Err(error) => {
                note(&format!("cannot start the {}: {error}", program.title()));
                let supervised = self.supervised(program);
                supervised.last_ending = format!("could not be started: {error}");
                // A start that failed is answered by waiting, never by another start at once.
                let _ = supervised.supervision.ended(now, Ending::Unknown);
                if program == Program::Server {
                    self.outage.ended(false, now, Utc::now());
                }
            }
        }
    }

    fn command(
        &self,
        program: Program,
        variables: &BTreeMap<String, String>,
    ) -> io::Result<Command> {
        let log = log_file::open(&program.log(&self.home))?;
        let mut command = Command::new(self.folder.join(program.executable()));
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .current_dir("/")
            // These speak of some other coordinator; this installation's two programs find each
            // other by its own files.
            .env_remove("QCTL_SERVER")
            .env_remove("QCTL_TOKEN_FILE")
            .envs(variables);
        Ok(command)
    }

    /// A worker that dials before anyone listens waits longer than it must.
    fn start_awaiting_worker(&mut self, now: Instant) {
        let Some(awaited) = &self.awaited else { return };
        let is_listening =
            stamp(&self.home.address_file()).is_some_and(|stamp| Some(stamp) != awaited.before);
        let is_starting = matches!(self.server.supervision.phase(), Phase::Running { .. });
        if is_listening || !is_starting || now >= awaited.until {
            self.awaited = None;
            let action = self.worker.supervision.want(now);
            self.act(Program::Worker, action);
        }
    }

    fn look_at_logs(&self) {
        let own = self.home.logs_dir().join("keeper.log");
        let logs = Program::ALL.map(|program| program.log(&self.home));
        for path in logs.iter().chain([&own]) {
            if let Err(error) = log_file::rotate(path, log_file::CAP) {
                note(&format!("cannot set {} aside: {error}", path.display()));
            }
        }
    }

    /// Lets others know, when there is something new.
    fn tell(&mut self) {
        let report = Report {
            pid: std::process::id().cast_signed(),
            requests: self.requests,
            programs: [&self.server, &self.worker]
                .map(|supervised| (supervised.program.name().to_owned(), supervised.report()))
                .into(),
        };
        if report == self.told {
            return;
        }
        if let Err(error) = report.save(&self.home) {
            note(&format!("cannot write the keeper's state: {error}"));
        }
        self.told = report;
    }
}

/// Identifies one version of a file.
fn stamp(path: &Path) -> Option<(u64, i64, i64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}

/// A line of the keeper's own log.
fn note(text: &str) {
    let time = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    eprintln!("{time} keeper: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A home with two scripts in place of the programs.
    struct Fake {
        folder: tempfile::TempDir,
        home: Home,
    }

    impl Fake {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let home = Home::at(folder.path().join("home"));
            installation::prepare(&home).unwrap();
            let fake = Self { folder, home };
            let announce = format!(
                "echo 127.0.0.1:1 > '{0}.new'; mv '{0}.new' '{0}'",
                fake.home.address_file().display()
            );
            fake.script(Program::Server, &announce);
            fake.script(Program::Worker, "");
            fake
        }

        /// A script that does something, notes its start and waits for SIGTERM, which it notes too.
        fn script(&self, program: Program, first: &str) {
            self.raw_script(
                program,
                &format!(
                    "{first}\nname={name}; notes='{notes}'\ntrap 'echo $name stopped >> \"$notes\"; exit 0' TERM\necho $name started $QCTL_WORKER_SLOTS >> \"$notes\"\nwhile :; do sleep 0.02; done",
                    name = program.name(),
                    notes = self.notes().display(),
                ),
            );
        }

        fn raw_script(&self, program: Program, body: &str) {
            let path = self.folder.path().join(program.executable());
            let fresh = path.with_extension("new");
            std::fs::write(&fresh, format!("#!/bin/sh\n{body}\n")).unwrap();
            std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::rename(&fresh, &path).unwrap();
        }

        fn notes(&self) -> PathBuf {
            self.folder.path().join("notes")
        }

        fn noted(&self) -> Vec<String> {
            std::fs::read_to_string(self.notes())
                .unwrap_or_default()
                .lines()
                .map(|line| line.trim().to_owned())
                .collect()
        }

        fn keeper(&self, settings: Settings) -> Keeper {
            let mut keeper =
                Keeper::new(self.home.clone(), self.folder.path().to_owned(), settings);
            keeper.begin();
            keeper
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            for program in Program::ALL {
                if let Some((process, _)) = Process::adopt(&program.record(&self.home)) {
                    process.signal(Signal::KILL);
                }
            }
        }
    }

    /// Lets the keeper work until a condition holds.
    async fn until(
        keeper: &mut Keeper,
        signals: &mut Signals,
        what: &str,
        condition: impl Fn(&Keeper) -> bool,
    ) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(keeper) {
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            // A short look now and then, because a condition may depend on what a script wrote.
            let look = Duration::from_millis(20);
            if let Ok(event) = tokio::time::timeout(look, keeper.next_event(signals)).await {
                keeper.handle(event);
            }
        }
    }

    async fn both_started(keeper: &mut Keeper, signals: &mut Signals, fake: &Fake) {
        until(keeper, signals, "both run", |_| {
            let noted = fake.noted();
            ["server started", "worker started"]
                .iter()
                .all(|line| noted.iter().any(|noted| noted.starts_with(line)))
        })
        .await;
    }

    fn pid(keeper: &Keeper, program: Program) -> Option<i32> {
        let supervised = match program {
            Program::Server => &keeper.server,
            Program::Worker => &keeper.worker,
        };
        supervised.process.as_ref().map(Process::pid)
    }

    #[tokio::test]
    async fn both_are_started_and_the_worker_leaves_first() {
        let fake = Fake::new();
        let mut signals = Signals::listen().unwrap();
        let mut keeper = fake.keeper(Settings::default());
        both_started(&mut keeper, &mut signals, &fake).await;
        keeper.handle(Event::Stop);
        until(&mut keeper, &mut signals, "it is done", Keeper::is_done).await;
        // Which of the two wrote first is for the machine to say; who left first is not.
        let noted = fake.noted();
        let mut started = noted[..2].to_vec();
        started.sort();
        assert_eq!(started, ["server started", "worker started"]);
        assert_eq!(noted[2..], ["worker stopped", "server stopped"]);
        for program in Program::ALL {
            assert!(!program.record(&fake.home).exists());
        }
    }

    #[tokio::test]
    async fn what_is_killed_comes_back_under_another_number() {
        let fake = Fake::new();
        let mut signals = Signals::listen().unwrap();
        let mut keeper = fake.keeper(Settings::default());
        both_started(&mut keeper, &mut signals, &fake).await;
        let first = pid(&keeper, Program::Server);
        keeper.signal(Program::Server, Signal::KILL);
        until(&mut keeper, &mut signals, "the server is back", |keeper| {
            pid(keeper, Program::Server).is_some_and(|pid| Some(pid) != first)
        })
        .await;
        let report = Report::load(&fake.home);
        assert_eq!(report.programs["server"].failures, 1);
        assert_eq!(
            report.programs["server"].last_ending,
            "was ended by signal 9"
        );
        assert_eq!(report.programs["worker"].failures, 0);
    }

    #[tokio::test]
    async fn a_new_keeper_adopts_what_the_old_one_left() {
        let fake = Fake::new();
        let mut signals = Signals::listen().unwrap();
        let mut old = fake.keeper(Settings::default());
        both_started(&mut old, &mut signals, &fake).await;
        let pids = Program::ALL.map(|program| pid(&old, program));
        // As after kill -9: nothing is stopped, nothing is handed over.
        drop(old);
        let mut new = fake.keeper(Settings::default());
        assert_eq!(Program::ALL.map(|program| pid(&new, program)), pids);
        assert_eq!(fake.noted().len(), 2, "nothing was started twice");
        // An adopted program is looked after like a child.
        new.signal(Program::Worker, Signal::KILL);
        until(&mut new, &mut signals, "the worker is back", |keeper| {
            pid(keeper, Program::Worker).is_some_and(|pid| Some(pid) != pids[1])
        })
        .await;
        new.handle(Event::Stop);
        until(&mut new, &mut signals, "it is done", Keeper::is_done).await;
    }

    #[tokio::test]
    async fn a_wrong_configuration_is_not_tried_again_until_told() {
        let fake = Fake::new();
        fake.raw_script(
            Program::Server,
            "echo 'listen: not an address' >&2; exit 78",
        );
        let mut signals = Signals::listen().unwrap();
        let mut keeper = fake.keeper(Settings::default());
        until(&mut keeper, &mut signals, "it is given up", |_| {
            Report::load(&fake.home)
                .programs
                .get("server")
                .is_some_and(ProgramReport::has_given_up)
        })
        .await;
        let log = log_file::last_lines(&Program::Server.log(&fake.home), 1);
        assert_eq!(log, ["listen: not an address"]);
        fake.script(Program::Server, "");
        keeper.handle(Event::Reload);
        until(&mut keeper, &mut signals, "the server runs", |_| {
            fake.noted().contains(&"server started".to_owned())
        })
        .await;
    }

    #[tokio::test]
    async fn other_options_restart_only_the_program_they_concern() {
        let fake = Fake::new();
        let mut signals = Signals::listen().unwrap();
        let mut keeper = fake.keeper(Settings::default());
        both_started(&mut keeper, &mut signals, &fake).await;
        let server = pid(&keeper, Program::Server);
        let settings = Settings {
            slots: Some(3),
            ..Settings::default()
        };
        settings.save(&fake.home).unwrap();
        keeper.handle(Event::Reload);
        until(
            &mut keeper,
            &mut signals,
            "the worker was restarted",
            |_| fake.noted().contains(&"worker started 3".to_owned()),
        )
        .await;
        assert_eq!(pid(&keeper, Program::Server), server);
        assert_eq!(Report::load(&fake.home).requests, 1);
        keeper.handle(Event::StopWorker);
        until(&mut keeper, &mut signals, "the worker is gone", |keeper| {
            pid(keeper, Program::Worker).is_none()
        })
        .await;
        assert!(matches!(keeper.worker.supervision.phase(), Phase::Idle));
    }

    #[tokio::test]
    async fn a_program_that_does_not_stop_is_forced_by_a_second_request() {
        let fake = Fake::new();
        let ready = fake.folder.path().join("ready");
        fake.raw_script(
            Program::Worker,
            &format!(
                "trap '' TERM\ntouch '{}'\nwhile :; do sleep 0.02; done",
                ready.display()
            ),
        );
        let mut signals = Signals::listen().unwrap();
        let mut keeper = fake.keeper(Settings::default());
        until(&mut keeper, &mut signals, "the worker runs", |_| {
            ready.exists()
        })
        .await;
        keeper.handle(Event::Stop);
        assert!(!keeper.is_done());
        keeper.handle(Event::Stop);
        until(&mut keeper, &mut signals, "it is done", Keeper::is_done).await;
    }

    #[tokio::test]
    async fn a_program_that_cannot_be_started_is_waited_for() {
        let fake = Fake::new();
        std::fs::remove_file(fake.folder.path().join("qctl-worker")).unwrap();
        let mut signals = Signals::listen().unwrap();
        let mut keeper = fake.keeper(Settings::default());
        until(&mut keeper, &mut signals, "the start failed", |keeper| {
            keeper.worker.supervision.failures() > 0
        })
        .await;
        assert!(
            Report::load(&fake.home).programs["worker"]
                .last_ending
                .contains("could not be started")
        );
        fake.script(Program::Worker, "");
        both_started(&mut keeper, &mut signals, &fake).await;
    }
}
