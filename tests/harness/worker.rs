//! A worker that a test starts by hand, with a folder of its own, perhaps behind a bad network.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use super::{Installation, kill, pids_of, wait_for};

/// A running agent. Dropping it ends it, its shims and their jobs.
pub(crate) struct Worker {
    home: PathBuf,
    command: Command,
    child: Child,
}

impl Worker {
    /// Starts an agent of this name that finds its coordinator at `address`.
    pub(crate) fn start(qctl: &Installation, name: &str, slots: u32, address: &str) -> Self {
        Self::start_under(qctl, &[], name, slots, address)
    }

    /// The same, started by another program, which is given the agent's command line.
    pub(crate) fn start_under(
        qctl: &Installation,
        wrapper: &[&str],
        name: &str,
        slots: u32,
        address: &str,
    ) -> Self {
        let home = qctl.folder().join("workers").join(name);
        std::fs::create_dir_all(home.join("data")).unwrap();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(home.join("worker.log"))
            .unwrap();
        let program = qctl.bin().join("qctl-worker");
        let mut command = match wrapper.split_first() {
            None => qctl.command("qctl-worker"),
            Some((wrapper, arguments)) => {
                let mut command = qctl.system_command(wrapper);
                command.args(arguments).arg(program);
                command
            }
        };
        command
            .env("QCTL_HOME", &home)
            .args(["--name", name, "--slots", &slots.to_string()])
            .args(["--server", address, "--token-file"])
            .arg(qctl.home().join("data/token"))
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn().unwrap();
        Self {
            home,
            command,
            child,
        }
    }

    /// Starts the agent again, if it has ended.
    pub(crate) fn start_again(&mut self) {
        if self.child.try_wait().unwrap().is_some() {
            self.child = self.command.spawn().unwrap();
        }
    }

    /// Process id of the agent, or of what started it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("worker.log")).unwrap_or_default()
    }

    /// Its shims.
    pub(crate) fn shims(&self) -> Vec<i32> {
        pids_of(&self.home, "qctl-worker shim")
    }

    /// Kills the agent and leaves everything else alone.
    pub(crate) fn kill_agent(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Kills the agent and the shims, and with them the jobs: as if the machine were lost.
    pub(crate) fn kill_machine(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in pids_of(&self.home, "") {
            kill(pid, Signal::KILL);
        }
        wait_for(|| pids_of(&self.home, "").is_empty().then_some(()));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(40).collect();
            eprintln!("--- worker.log of {}", self.home.display());
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        self.end();
    }
}
