//! Processes that outlive the one that started them: known by process id, start time and boot, so
//! that a later keeper can tell its programs from strangers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::supervision::Ending;

/// Longest that a record file may be, in bytes.
const RECORD_LIMIT: u64 = 64 * 1024;

/// A process by its number, and by its start time, which a later bearer of the number does not share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Process id.
    pub pid: i32,
    /// Clock ticks between boot and its start.
    pub start_ticks: u64,
}

impl Identity {
    /// Reads the identity of a living process; a zombie counts as dead.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        let (identity, state) = parse_stat(&stat)?;
        (identity.pid == pid && !matches!(state, b'Z' | b'X')).then_some(identity)
    }
}

/// What a record says of the process it was written for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The process.
    pub identity: Identity,
    /// Settings that it was started with.
    pub settings: BTreeMap<String, String>,
}

/// First line of a record.
#[derive(Serialize, Deserialize)]
struct Header {
    boot_id: String,
    settings: BTreeMap<String, String>,
}

/// A process of ours that can be signalled and waited for, whether child or adopted.
#[derive(Debug)]
pub struct Process {
    identity: Identity,
    pidfd: OwnedFd,
    child: Option<Child>,
}

impl Process {
    /// Starts a command in a process group of its own. The record is complete before the program
    /// itself runs: however early the keeper dies, its successor finds the process.
    ///
    /// # Errors
    /// When the record cannot be written or the program cannot be started.
    pub fn start(
        command: &mut Command,
        settings: &BTreeMap<String, String>,
        record: &Path,
    ) -> io::Result<Self> {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(record)?;
        let header = Header {
            boot_id: boot_id()?,
            settings: settings.clone(),
        };
        let mut line = serde_json::to_vec(&header)?;
        line.push(b'\n');
        file.write_all(&line)?;
        let descriptor = file.as_raw_fd();
        command.process_group(0);
        // SAFETY: the closure only makes system calls on a descriptor that stays open until the
        // child has started, and allocates nothing.
        unsafe {
            command.pre_exec(move || note_own_identity(descriptor));
        }
        let child = command.spawn()?;
        let pid = child.id().cast_signed();
        let identity = Identity::of(pid).unwrap_or(Identity {
            pid,
            start_ticks: 0,
        });
        Ok(Self {
            identity,
            pidfd: open(pid)?,
            child: Some(child),
        })
    }

    /// Finds the living process that a record names.
    pub fn adopt(record: &Path) -> Option<(Self, BTreeMap<String, String>)> {
        let recorded = read_record(record)?;
        let process = Self::find(recorded.identity)?;
        Some((process, recorded.settings))
    }

    /// Takes hold of a process that still has this identity.
    pub fn find(identity: Identity) -> Option<Self> {
        let pidfd = open(identity.pid).ok()?;
        // Looked at after the descriptor is open: from here on it cannot become a stranger's.
        (Identity::of(identity.pid) == Some(identity)).then_some(Self {
            identity,
            pidfd,
            child: None,
        })
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.identity.pid
    }

    /// Sends a signal; a process that has ended already is fine.
    pub fn signal(&self, signal: Signal) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> Ending {
        // SAFETY: the descriptor belongs to `self`, which outlives the registration in this scope.
        let registered =
            unsafe { AsyncFd::register_with_interest(self.pidfd.as_raw_fd(), Interest::READABLE) };
        match registered {
            Ok(ready) => {
                let _ = ready.readable().await;
            }
            Err(_) => {
                while self.is_running() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        self.reap()
    }

    /// Waits for the end, for at most this long. True when it has ended.
    pub async fn ended_within(&mut self, patience: Duration) -> bool {
        tokio::time::timeout(patience, self.ended()).await.is_ok()
    }

    fn is_running(&self) -> bool {
        Identity::of(self.identity.pid) == Some(self.identity)
    }

    fn reap(&mut self) -> Ending {
        let Some(child) = &mut self.child else {
            return Ending::Unknown;
        };
        match child.wait() {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => Ending::Exited(code),
                (None, Some(signal)) => Ending::Signalled(signal),
                (None, None) => Ending::Unknown,
            },
            Err(_) => Ending::Unknown,
        }
    }
}

/// Reads a record whole; a torn one, or one of an earlier boot, names nobody.
pub fn read_record(record: &Path) -> Option<Recorded> {
    let file = File::open(record).ok()?;
    if file.metadata().ok()?.len() > RECORD_LIMIT {
        return None;
    }
    let text = std::fs::read(record).ok()?;
    let split = text.iter().position(|byte| *byte == b'\n')?;
    let header: Header = serde_json::from_slice(&text[..split]).ok()?;
    if header.boot_id != boot_id().ok()? {
        return None;
    }
    let (identity, _) = parse_stat(&text[split + 1..])?;
    Some(Recorded {
        identity,
        settings: header.settings,
    })
}

/// Asks a process to end, and forces it when it does not within `grace`. True when it has ended.
pub async fn stop(process: &mut Process, grace: Duration) -> bool {
    process.signal(Signal::TERM);
    if process.ended_within(grace).await {
        return true;
    }
    process.signal(Signal::KILL);
    process.ended_within(Duration::from_secs(5)).await
}

/// Runs in the child between fork and exec: appends the child's own stat line to the record.
fn note_own_identity(record: RawFd) -> io::Result<()> {
    // SAFETY: the parent keeps the file open until the child has started.
    let record = unsafe { BorrowedFd::borrow_raw(record) };
    let stat = rustix::fs::open(
        c"/proc/self/stat",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let mut buffer = [0_u8; 1024];
    let length = rustix::io::read(&stat, &mut buffer)?;
    let mut rest = &buffer[..length];
    while !rest.is_empty() {
        let written = rustix::io::write(record, rest)?;
        rest = &rest[written..];
    }
    Ok(())
}

/// Process id, start time and state from a line of `/proc/PID/stat`. Only a whole line counts.
fn parse_stat(stat: &[u8]) -> Option<(Identity, u8)> {
    let line = stat.strip_suffix(b"\n")?;
    let open = line.iter().position(|byte| *byte == b'(')?;
    // The program's name stands in parentheses and may hold any byte, parentheses too.
    let close = line.iter().rposition(|byte| *byte == b')')?;
    let pid = std::str::from_utf8(line.get(..open)?)
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let mut fields = std::str::from_utf8(line.get(close + 1..)?)
        .ok()?
        .split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    // The state is field 3 of the line, the start time field 22.
    let start_ticks = fields.nth(18)?.parse().ok()?;
    Some((Identity { pid, start_ticks }, state))
}

fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Identifies this boot of the machine.
///
/// # Errors
/// When /proc is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// Looks at a condition often until it holds or the deadline passes.
pub async fn until<T>(
    deadline: Instant,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> Option<T> {
    loop {
        if let Some(value) = condition().await {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> BTreeMap<String, String> {
        BTreeMap::from([("QCTL_LISTEN".to_owned(), "127.0.0.1:1".to_owned())])
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let mut line = b"42 (a) (b c) S".to_vec();
        for field in 4..=52 {
            line.extend_from_slice(format!(" {field}").as_bytes());
        }
        assert_eq!(parse_stat(&line), None, "a line cut short is no record");
        line.push(b'\n');
        let (identity, state) = parse_stat(&line).unwrap();
        assert_eq!(
            identity,
            Identity {
                pid: 42,
                start_ticks: 22
            }
        );
        assert_eq!(state, b'S');
    }

    #[tokio::test]
    async fn a_started_process_is_found_again_by_its_record_and_reports_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let record = folder.path().join("program.process");
        let mut command = Command::new("sleep");
        command.arg("600");
        let mut process = Process::start(&mut command, &settings(), &record).unwrap();
        let (mut adopted, found) = Process::adopt(&record).expect("the process lives");
        assert_eq!(adopted.pid(), process.pid());
        assert_eq!(found, settings());
        adopted.signal(Signal::TERM);
        assert_eq!(process.ended().await, Ending::Signalled(15));
        assert_eq!(adopted.ended().await, Ending::Unknown);
        assert!(Process::adopt(&record).is_none());
    }

    #[tokio::test]
    async fn another_process_with_the_same_number_is_a_stranger() {
        let own = Identity::of(std::process::id().cast_signed()).unwrap();
        assert!(Process::find(own).is_some());
        let earlier = Identity {
            start_ticks: own.start_ticks.wrapping_sub(1),
            ..own
        };
        assert!(Process::find(earlier).is_none());
    }

    #[tokio::test]
    async fn a_record_of_another_boot_or_a_torn_one_names_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let record = folder.path().join("program.process");
        let mut command = Command::new("sleep");
        command.arg("600");
        let mut process = Process::start(&mut command, &settings(), &record).unwrap();
        let whole = std::fs::read(&record).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&record, &whole[..length]).unwrap();
            assert_eq!(read_record(&record), None, "cut at {length}");
        }
        let text = String::from_utf8(whole).unwrap();
        std::fs::write(&record, text.replace(&boot_id().unwrap(), "another-boot")).unwrap();
        assert_eq!(read_record(&record), None);
        assert!(stop(&mut process, Duration::from_secs(10)).await);
    }

    #[tokio::test]
    async fn a_program_that_ignores_the_polite_signal_is_forced() {
        let folder = tempfile::tempdir().unwrap();
        let ready = folder.path().join("ready");
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!(
            "trap '' TERM; touch '{}'; while :; do sleep 1 >/dev/null 2>&1; done",
            ready.display()
        ));
        let record = folder.path().join("program.process");
        let mut process = Process::start(&mut command, &settings(), &record).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        until(deadline, async || ready.exists().then_some(()))
            .await
            .expect("the script runs");
        assert!(stop(&mut process, Duration::from_millis(50)).await);
        assert!(Process::adopt(&record).is_none());
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(folder.path().join("absent"));
        let record = folder.path().join("program.process");
        let error = Process::start(&mut command, &settings(), &record).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
