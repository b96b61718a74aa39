//! A real agent with real shims, in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use qctl_proto::home::Home;

use crate::coordinator::DEADLINE;

pub(crate) struct Worker {
    home: tempfile::TempDir,
    agent: Option<Child>,
}

impl Worker {
    /// Starts an agent that dials `address`.
    pub(crate) fn start(address: &str) -> Self {
        let mut worker = Self::prepare(address);
        worker.restart();
        worker
    }

    /// A worker whose agent is not started yet.
    pub(crate) fn prepare(address: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let worker = Self { home, agent: None };
        std::fs::create_dir_all(worker.home().data_dir()).unwrap();
        std::fs::write(worker.home().token_file(), "secret\n").unwrap();
        worker.set_address(address);
        worker
    }

    /// The agent's process, which must be running.
    #[allow(dead_code, reason = "for the benchmark")]
    pub(crate) fn pid(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    pub(crate) fn home(&self) -> Home {
        Home::at(self.home.path())
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.home().worker_dir()
    }

    /// Folder of the segments.
    pub(crate) fn spool(&self) -> PathBuf {
        let mut spools = std::fs::read_dir(self.folder().join("spool")).unwrap();
        spools.next().unwrap().unwrap().path()
    }

    pub(crate) fn set_address(&self, address: &str) {
        std::fs::write(self.home().address_file(), format!("{address}\n")).unwrap();
    }

    /// Starts the agent, which must not be running.
    pub(crate) fn restart(&mut self) {
        self.restart_as(self.command());
    }

    /// The agent's command line.
    pub(crate) fn command(&self) -> Command {
        command(self.home.path())
    }

    /// Starts the agent, which must not be running, by a command of the caller's.
    pub(crate) fn restart_as(&mut self, mut command: Command) {
        assert!(self.agent.is_none());
        self.agent = Some(command.spawn().unwrap());
    }

    /// Kills the agent as a crash does.
    pub(crate) fn kill(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// Ends the agent as a service manager does.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let mut agent = self.agent.take().unwrap();
        signal(agent.id() as i32, libc::SIGTERM);
        agent.wait().unwrap()
    }

    /// Processes that bear the marker of an attempt of this worker.
    fn jobs(&self) -> Vec<i32> {
        let Ok(spools) = std::fs::read_dir(self.folder().join("spool")) else {
            return Vec::new();
        };
        let markers: Vec<_> = spools
            .flatten()
            .map(|spool| format!("QCTL_FENCE={}:", spool.file_name().display()))
            .collect();
        let marked = |environ: &[u8]| {
            let mut variables = environ.split(|byte| *byte == 0);
            variables.any(|variable| markers.iter().any(|m| variable.starts_with(m.as_bytes())))
        };
        let environ = |pid: &i32| std::fs::read(format!("/proc/{pid}/environ"));
        processes(|pid| environ(pid).is_ok_and(|environ| marked(&environ)))
    }

    /// Processes that run in the spool: the shims.
    pub(crate) fn shims(&self) -> Vec<i32> {
        let spool = self.folder().join("spool");
        processes_in(&spool)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.agent.is_some() {
            self.kill();
        }
        for pid in self.shims().into_iter().chain(self.jobs()) {
            signal(pid, libc::SIGKILL);
        }
    }
}

/// The agent's command line.
fn command(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qctl-worker"));
    command
        .env_clear()
        .env("QCTL_HOME", home)
        .env("QCTL_LOG", "warn")
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null());
    command
}

fn processes_in(folder: &Path) -> Vec<i32> {
    processes(|pid| {
        std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(folder))
    })
}

fn processes(wanted: impl Fn(&i32) -> bool) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(wanted).collect()
}

pub(crate) fn signal(pid: i32, signal: i32) {
    // SAFETY: kill touches no memory of this process.
    unsafe { libc::kill(pid, signal) };
}

pub(crate) fn lives(pid: i32) -> bool {
    // SAFETY: signal 0 only asks.
    unsafe { libc::kill(pid, 0) == 0 }
}

/// Polls a condition that nothing announces.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
