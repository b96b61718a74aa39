//! A whole installation for one test: its own home, its own database, its own programs.

pub(crate) mod invariants;
#[allow(
    dead_code,
    reason = "several test programs share it, and none uses all of it"
)]
pub(crate) mod nvml;
#[allow(
    dead_code,
    reason = "several test programs share it, and none uses all of it"
)]
pub(crate) mod proxy;
pub(crate) mod worker;

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Longest that a condition may take on a busy two-core machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A job that leaves evidence: see `programs/witness.rs`.
pub(crate) const WITNESS: &str = env!("CARGO_BIN_EXE_witness");

/// What a program printed and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Asserts success and returns what was printed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(
            self.code, 0,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self.stdout
    }

    /// Asserts failure and returns both outputs.
    #[track_caller]
    pub(crate) fn fails(self) -> String {
        assert_ne!(
            self.code, 0,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        format!("{}{}", self.stdout, self.stderr)
    }
}

const MACHINE_ALARMS_OFF: &str = "disk=off,memory=off,cpu=off,clock=off,out-of-memory=off";

/// An installation that runs. Dropping it stops everything it started.
pub(crate) struct Installation {
    folder: TempDir,
    bin: PathBuf,
    env: Vec<(String, String)>,
}

impl Installation {
    /// Prepares a home without starting anything.
    pub(crate) fn prepare() -> Self {
        let folder = TempDir::with_prefix("qctl-").unwrap();
        // The database's user must be able to enter.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            bin: programs(),
            folder,
            // How this machine does at the moment belongs to no story.
            env: vec![("QCTL_ALARM".to_owned(), MACHINE_ALARMS_OFF.to_owned())],
        }
    }

    /// Gives the installation its own copies of the programs, which a test may replace.
    #[must_use]
    pub(crate) fn with_own_programs(mut self) -> Self {
        let bin = self.folder().join("bin");
        std::fs::create_dir(&bin).unwrap();
        for name in ["qctl", "qctl-server", "qctl-worker"] {
            std::fs::copy(self.bin.join(name), bin.join(name)).unwrap();
        }
        self.bin = bin;
        self
    }

    /// `qctl up` with one worker of one slot.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// `qctl up` with more options.
    #[track_caller]
    pub(crate) fn start_with(options: &[&str]) -> Self {
        let installation = Self::prepare();
        installation.up(options).ok();
        installation
    }

    /// Runs `qctl up` on a free port.
    pub(crate) fn up(&self, options: &[&str]) -> Ran {
        let mut args = vec!["up", "--listen", "127.0.0.1:0"];
        args.extend_from_slice(options);
        self.qctl(&args)
    }

    /// Waits until the queue answers, asking the keeper not to wait before it starts what ended.
    #[track_caller]
    pub(crate) fn until_answering(&self) {
        self.until("the queue answers", || {
            if self.qctl(&["list"]).code == 0 {
                return Some(());
            }
            // It fails while the coordinator cannot start, and is asked again.
            let _ = self.up(&[]);
            None
        });
    }

    /// Adds a variable to the environment of every program started from here.
    #[must_use]
    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// A folder for the test's own files.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the installation keeps its files.
    pub(crate) fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// Where the programs are.
    pub(crate) fn bin(&self) -> &Path {
        &self.bin
    }

    /// Writes a file into the test's folder.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder().join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).unwrap();
        }
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A command with the installation's environment, started in the test's folder.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        self.surround(&mut command);
        command
    }

    /// A command of the system with the installation's environment, started in the test's folder.
    pub(crate) fn system_command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        self.surround(&mut command);
        command
    }

    fn surround(&self, command: &mut Command) {
        command
            .current_dir(self.folder())
            .env_clear()
            .env("QCTL_HOME", self.home())
            .env("HOME", self.folder())
            .env(
                "PATH",
                format!("{}:{}", self.bin.display(), std::env::var("PATH").unwrap()),
            )
            .env("LANG", "C.UTF-8")
            .env("TZ", "UTC")
            .env("RUST_BACKTRACE", "1")
            // A person can wait for the back-off of a retry; a test need not.
            .env("QCTL_RETRY_BASE", "1s")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
    }

    /// Runs the command line to its end.
    pub(crate) fn qctl(&self, args: &[&str]) -> Ran {
        let mut command = self.command("qctl");
        command.args(args);
        run(command)
    }

    /// Runs the command line with `--json` and reads the one document it prints.
    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend_from_slice(args);
        let text = self.qctl(&all).ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in: {text}"))
    }

    /// Submits with these arguments and returns the job's id.
    #[track_caller]
    pub(crate) fn submit(&self, args: &[&str]) -> i64 {
        let mut all = vec!["submit"];
        all.extend_from_slice(args);
        let job = self.json(&all);
        job["id"]
            .as_i64()
            .unwrap_or_else(|| panic!("no id in {job}"))
    }

    /// The job as `show --json` has it.
    #[track_caller]
    pub(crate) fn job(&self, id: i64) -> Value {
        self.json(&["show", &id.to_string()])
    }

    /// Waits until the job is in a state.
    #[track_caller]
    pub(crate) fn until_state(&self, id: i64, state: &str) -> Value {
        self.until(&format!("job {id} is {state}"), || {
            let job = self.job(id);
            if job["state"] == state {
                return Some(job);
            }
            let ended = ["succeeded", "failed", "cancelled"];
            assert!(
                !job["state"]
                    .as_str()
                    .is_some_and(|now| ended.contains(&now)),
                "job {id} should become {state}: {job:#}"
            );
            None
        })
    }

    /// Waits until the job has ended, whichever way.
    #[track_caller]
    pub(crate) fn until_ended(&self, id: i64) -> Value {
        self.qctl(&["wait", &id.to_string()]);
        let job = self.job(id);
        assert!(job["ended_at"].is_string(), "{job:#}");
        job
    }

    /// The job's whole raw output.
    #[track_caller]
    pub(crate) fn raw_log(&self, id: i64) -> Vec<u8> {
        let mut command = self.command("qctl");
        command.args(["logs", "--raw", &id.to_string()]);
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }

    /// The whole raw output of one attempt.
    #[track_caller]
    pub(crate) fn attempt_log(&self, id: i64, attempt: i64) -> Vec<u8> {
        let mut command = self.command("qctl");
        command.args(["logs", "--raw", "--attempt", &attempt.to_string()]);
        let output = command.arg(id.to_string()).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }

    /// Submits a witness with these options and more tasks of its own; returns the job's id.
    #[track_caller]
    pub(crate) fn witness(&self, options: &[&str], task: &[&str]) -> i64 {
        let folder = format!("folder={}", self.evidence().display());
        let mut args = options.to_vec();
        args.extend(["--", WITNESS, &folder]);
        args.extend_from_slice(task);
        self.submit(&args)
    }

    /// Where witnesses leave what they saw.
    pub(crate) fn evidence(&self) -> PathBuf {
        let folder = self.folder().join("evidence");
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// Waits until a witness's attempt has begun.
    #[track_caller]
    pub(crate) fn until_begun(&self, id: i64, attempt: i64) {
        let out = self.evidence().join(format!("{id}.{attempt}.out"));
        self.until(&format!("attempt {id}.{attempt} has begun"), || {
            out.exists().then_some(())
        });
    }

    /// Process id of the job's latest attempt.
    #[track_caller]
    pub(crate) fn job_pid(&self, id: i64) -> i32 {
        self.until(&format!("job {id} has a process"), || {
            let job = self.job(id);
            let attempt = job["attempts"].as_array()?.last()?.clone();
            Some(attempt["pid"].as_i64()? as i32)
        })
    }

    /// Process ids of agents: worker programs that are no shim.
    pub(crate) fn agents(&self) -> Vec<i32> {
        let shims = self.shims();
        let mut agents = self.pids("qctl-worker");
        agents.retain(|pid| !shims.contains(pid));
        agents
    }

    /// Process ids of shims.
    pub(crate) fn shims(&self) -> Vec<i32> {
        self.pids("qctl-worker shim")
    }

    /// Waits for a condition, looking often; panics with the installation's logs when it never holds.
    #[track_caller]
    pub(crate) fn until<T>(&self, what: &str, condition: impl FnMut() -> Option<T>) -> T {
        wait_for(condition)
            .unwrap_or_else(|| panic!("waited in vain until {what}\n{}", self.program_logs()))
    }

    /// Process ids of the installation's processes whose command line contains a text.
    pub(crate) fn pids(&self, text: &str) -> Vec<i32> {
        pids_of(&self.home(), text)
    }

    /// Process ids of the installation's Postgres, which is given no environment: it works in the
    /// cluster's folder.
    pub(crate) fn postgres_pids(&self) -> Vec<i32> {
        let cluster = self.home().join("data/database/pg");
        processes(|_, cmdline| cmdline.contains("postgres"))
            .into_iter()
            .filter(|pid| {
                std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == cluster)
            })
            .collect()
    }

    /// What the installation's own programs logged.
    pub(crate) fn program_logs(&self) -> String {
        let mut text = String::new();
        for name in ["keeper", "server", "worker"] {
            let path = self.home().join("data/logs").join(format!("{name}.log"));
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(40).collect();
            text.push_str(&format!("--- {name}.log\n"));
            for line in tail.into_iter().rev() {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.program_logs());
        }
        let _ = self.command("qctl").args(["down", "--jobs"]).output();
        // Whatever a test broke on purpose must not outlive it.
        for pid in self.pids("").into_iter().chain(self.postgres_pids()) {
            kill(pid, rustix::process::Signal::KILL);
        }
        // What still writes into the folder would keep it from being removed.
        wait_for(|| {
            let is_over = self.pids("").is_empty() && self.postgres_pids().is_empty();
            is_over.then_some(())
        });
    }
}

/// Process ids of the processes of the installation in a folder whose command line contains a text.
fn pids_of(home: &Path, text: &str) -> Vec<i32> {
    let marker = format!("QCTL_HOME={}\0", home.display());
    processes(|environ, cmdline| {
        environ
            .windows(marker.len())
            .any(|part| part == marker.as_bytes())
            && cmdline.contains(text)
    })
}

/// Sends a signal; a process that is gone already is fine.
pub(crate) fn kill(pid: i32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// True while a process exists and is no zombie.
pub(crate) fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or("")
            .trim_start()
            .starts_with('Z')
    })
}

/// A number from `/proc/PID/stat`, counted from the state, which is 0.
fn stat_field(pid: i32, field: usize) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = stat.rsplit(')').next()?;
    fields.split_whitespace().nth(field)?.parse().ok()
}

/// The process's parent.
pub(crate) fn parent_of(pid: i32) -> Option<i32> {
    stat_field(pid, 1)
}

/// The session that the process belongs to.
pub(crate) fn session_of(pid: i32) -> Option<i32> {
    stat_field(pid, 3)
}

/// Process ids whose environment and command line satisfy a predicate; zombies do not count.
pub(crate) fn processes(matches: impl Fn(&[u8], &str) -> bool) -> Vec<i32> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let Ok(mut environ) = std::fs::read(entry.path().join("environ")) else {
            continue;
        };
        environ.push(0);
        let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        if matches(&environ, &cmdline) && is_alive(pid) {
            pids.push(pid);
        }
    }
    pids
}

/// Looks at a condition until it holds or patience ends.
pub(crate) fn wait_for<T>(mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a command to its end; one that outlasts twice the patience is killed and fails the test.
pub(crate) fn run(mut command: Command) -> Ran {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    finish(child)
}

/// Waits for a child started with piped outputs.
pub(crate) fn finish(mut child: Child) -> Ran {
    let mut stdout = child.stdout.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let out = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_| bytes)
    });
    let err = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).map(|_| bytes)
    });
    let deadline = Instant::now() + 2 * PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            let status = child.wait().unwrap();
            let out = String::from_utf8_lossy(&out.join().unwrap().unwrap()).into_owned();
            let err = String::from_utf8_lossy(&err.join().unwrap().unwrap()).into_owned();
            panic!("a program did not end ({status})\nstdout: {out}\nstderr: {err}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran {
        code: status.code().unwrap_or(-1),
        stdout: text(out.join().unwrap().unwrap()),
        stderr: text(err.join().unwrap().unwrap()),
    }
}

/// A folder with the three programs under their own names, made once for all tests.
fn programs() -> PathBuf {
    // Beside the copies: two checkouts may share a build folder, and with it the folder for scratch.
    let bin = Path::new(env!("CARGO_BIN_EXE_copy-of-qctl")).with_file_name("programs");
    std::fs::create_dir_all(&bin).unwrap();
    for (name, copy) in [
        ("qctl", env!("CARGO_BIN_EXE_copy-of-qctl")),
        ("qctl-server", env!("CARGO_BIN_EXE_copy-of-qctl-server")),
        ("qctl-worker", env!("CARGO_BIN_EXE_copy-of-qctl-worker")),
    ] {
        let same = |a: &Path, b: &Path| {
            use std::os::unix::fs::MetadataExt;
            match (std::fs::metadata(a), std::fs::metadata(b)) {
                (Ok(a), Ok(b)) => a.ino() == b.ino() && a.dev() == b.dev(),
                _ => false,
            }
        };
        let path = bin.join(name);
        if !same(&path, Path::new(copy)) {
            // Tests run side by side: each links under a name of its own and renames it into place.
            let fresh = bin.join(format!(".{name}.{}", std::process::id()));
            let _ = std::fs::remove_file(&fresh);
            std::fs::hard_link(copy, &fresh).unwrap();
            std::fs::rename(&fresh, &path).unwrap();
        }
    }
    bin
}
