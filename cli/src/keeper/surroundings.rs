//! What the machine may do to a queue that runs on it: end it at logout, or hold its port already.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Facts about the session that `up` runs in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// This process's control group, such as `/user.slice/user-1000.slice/session-3.scope`.
    pub control_group: String,
    /// Whether logind ends a session's processes at logout; `None` when it does not say.
    pub kills_at_logout: Option<bool>,
    /// Whether the user's service manager outlives the user's sessions.
    pub lingers: bool,
    /// True inside the Windows Subsystem for Linux.
    pub is_wsl: bool,
    /// The job that `up` runs in, when it does.
    pub job: Option<String>,
    /// The user's name, when it is known.
    pub user: Option<String>,
}

impl Session {
    /// Looks at the session of this process.
    pub fn observe() -> Self {
        let control_group = std::fs::read_to_string("/proc/self/cgroup")
            .ok()
            .and_then(|text| {
                let line = text.lines().find(|line| line.starts_with("0::"))?;
                Some(line[3..].to_owned())
            })
            .unwrap_or_default();
        let in_session = is_session(&control_group);
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let user = user_name();
        Self {
            kills_at_logout: in_session.then(ask_logind).flatten(),
            lingers: user
                .as_ref()
                .is_some_and(|name| Path::new("/var/lib/systemd/linger").join(name).exists()),
            user,
            is_wsl: kernel.to_ascii_lowercase().contains("microsoft"),
            job: std::env::var("QCTL_JOB").ok().filter(|job| !job.is_empty()),
            control_group,
        }
    }

    /// What would end the queue against its user's expectation, and what to do about it.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let user = self.user.as_deref().unwrap_or("USER");
        let service = format!(
            "install the system service (docs/operations.md) and `sudo systemctl enable --now qctl-server@{user} qctl-worker@{user}`"
        );
        if let Some(job) = &self.job {
            warnings.push(format!(
                "this runs inside job {job} and is stopped when that job ends; run `qctl up` outside of it to keep it"
            ));
        }
        if is_session(&self.control_group) && self.kills_at_logout == Some(true) {
            warnings.push(format!(
                "logging out stops the queue and its jobs (KillUserProcesses=yes in logind.conf); to keep it, {service}"
            ));
        }
        if is_user_service(&self.control_group) && !self.lingers {
            warnings.push(format!(
                "logging out may stop the queue and its jobs; to keep it, `loginctl enable-linger`, or {service}"
            ));
        }
        if self.is_wsl {
            warnings.push(
                "WSL stops this virtual machine when no terminal is open; to keep the queue, set instanceIdleTimeout=-1 under [general] and vmIdleTimeout=-1 under [wsl2] in .wslconfig: see docs/operations.md"
                    .to_owned(),
            );
        }
        warnings
    }
}

fn is_session(control_group: &str) -> bool {
    control_group
        .split('/')
        .any(|part| part.starts_with("session-") && part.ends_with(".scope"))
}

fn is_user_service(control_group: &str) -> bool {
    control_group
        .split('/')
        .any(|part| part.starts_with("user@") && part.ends_with(".service"))
}

fn ask_logind() -> Option<bool> {
    let output = Command::new("loginctl")
        .args(["show-session", "--property=KillUserProcesses"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    match String::from_utf8(output.stdout).ok()?.trim() {
        "KillUserProcesses=yes" => Some(true),
        "KillUserProcesses=no" => Some(false),
        _ => None,
    }
}

fn user_name() -> Option<String> {
    let uid = rustix::process::getuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    })
}

/// Who listens on a port already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortOwner {
    /// Its process id, when this user may know it.
    pub pid: Option<i32>,
    /// The program's name.
    pub program: Option<String>,
    /// Its `QCTL_HOME`, when it is one of ours.
    pub home: Option<PathBuf>,
}

impl std::fmt::Display for PortOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.program, self.pid) {
            (Some(program), Some(pid)) => write!(f, "{program} (pid {pid})")?,
            _ => f.write_str("another program")?,
        }
        if let Some(home) = &self.home {
            write!(f, " of the home {}", home.display())?;
        }
        Ok(())
    }
}

/// Finds who listens where we want to. `None` when the address is free, or is not ours to take
/// for another reason, which the coordinator then tells better.
pub fn port_owner(address: SocketAddr) -> Option<PortOwner> {
    match TcpListener::bind(address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        _ => return None,
    }
    let inode = listening_inode(address);
    let pid = inode.and_then(process_of_socket);
    let proc = |file: &str| pid.map(|pid| PathBuf::from(format!("/proc/{pid}/{file}")));
    Some(PortOwner {
        pid,
        program: proc("exe")
            .and_then(|path| std::fs::read_link(path).ok())
            .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned())),
        home: proc("environ")
            .and_then(|path| std::fs::read(path).ok())
            .and_then(|environment| qctl_home(&environment)),
    })
}

fn qctl_home(environment: &[u8]) -> Option<PathBuf> {
    let value = environment
        .split(|byte| *byte == 0)
        .find_map(|variable| variable.strip_prefix(b"QCTL_HOME="))?;
    Some(PathBuf::from(String::from_utf8_lossy(value).into_owned()))
}

/// The inode of the socket that listens at an address or at all addresses.
fn listening_inode(address: SocketAddr) -> Option<u64> {
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|path| {
        let table = std::fs::read_to_string(path).ok()?;
        table
            .lines()
            .skip(1)
            .filter_map(parse_socket)
            .find(|(local, _)| {
                local.port() == address.port()
                    && (local.ip() == address.ip()
                        || local.ip().is_unspecified()
                        || address.ip().is_unspecified())
            })
            .map(|(_, inode)| inode)
    })
}

/// Address and inode of a listening socket, from a line of `/proc/net/tcp`.
fn parse_socket(line: &str) -> Option<(SocketAddr, u64)> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace();
    let (ip, port) = fields.nth(1)?.split_once(':')?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?.parse().ok()?;
    if state != LISTEN {
        return None;
    }
    let port = u16::from_str_radix(port, 16).ok()?;
    // The kernel prints each 32-bit word of the address in the machine's own byte order.
    let word = |index: usize| {
        let digits = ip.get(8 * index..8 * index + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match ip.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for index in 0..4 {
                bytes[4 * index..4 * index + 4].copy_from_slice(&word(index)?);
            }
            IpAddr::from(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some((SocketAddr::new(ip, port), inode))
}

fn process_of_socket(inode: u64) -> Option<i32> {
    let wanted = format!("socket:[{inode}]");
    std::fs::read_dir("/proc")
        .ok()?
        .flatten()
        .find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let descriptors = std::fs::read_dir(entry.path().join("fd")).ok()?;
            let holds = descriptors.flatten().any(|descriptor| {
                std::fs::read_link(descriptor.path())
                    .is_ok_and(|target| target.as_os_str() == wanted.as_str())
            });
            holds.then_some(pid)
        })
}

/// True when a path lies on a Windows drive, which is too slow and too unreliable for a database.
pub fn is_windows_drive(path: &Path) -> bool {
    let existing = path.ancestors().find(|path| path.exists());
    let Some(existing) = existing else {
        return false;
    };
    let Ok(device) = std::fs::metadata(existing).map(|metadata| metadata.dev()) else {
        return false;
    };
    std::fs::read_to_string("/proc/self/mountinfo").is_ok_and(|table| {
        table
            .lines()
            .any(|line| parse_mount(line) == Some((device, true)))
    })
}

/// Device of a mount, and whether it is a 9p file system, from a line of `mountinfo`.
fn parse_mount(line: &str) -> Option<(u64, bool)> {
    let (major, minor) = line.split_ascii_whitespace().nth(2)?.split_once(':')?;
    let device = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
    let (_, behind) = line.split_once(" - ")?;
    let kind = behind.split_ascii_whitespace().next()?;
    Some((device, kind == "9p" || kind == "drvfs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(control_group: &str) -> Session {
        Session {
            control_group: control_group.to_owned(),
            ..Session::default()
        }
    }

    #[test]
    fn a_session_that_is_killed_at_logout_is_warned_of() {
        let mut here = session("/user.slice/user-1000.slice/session-3.scope");
        assert!(
            here.warnings().is_empty(),
            "logind does not kill by default"
        );
        here.kills_at_logout = Some(true);
        here.user = Some("alice".to_owned());
        assert!(here.warnings()[0].contains("systemctl enable --now qctl-server@alice"));
    }

    #[test]
    fn a_user_service_needs_lingering() {
        let mut here =
            session("/user.slice/user-1000.slice/user@1000.service/app.slice/terminal.scope");
        assert!(here.warnings()[0].contains("enable-linger"));
        here.lingers = true;
        assert!(here.warnings().is_empty());
    }

    #[test]
    fn a_system_service_needs_nothing() {
        assert!(session("/system.slice/cron.service").warnings().is_empty());
    }

    #[test]
    fn wsl_and_an_outer_job_are_told() {
        let here = Session {
            is_wsl: true,
            job: Some("42".to_owned()),
            ..Session::default()
        };
        let warnings = here.warnings();
        assert!(warnings[0].contains("inside job 42"));
        assert!(warnings[1].contains("instanceIdleTimeout"));
    }

    #[test]
    fn the_owner_of_a_taken_port_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let owner = port_owner(listener.local_addr().unwrap()).expect("the port is taken");
        assert_eq!(owner.pid, Some(std::process::id().cast_signed()));
        assert!(owner.program.is_some());
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(port_owner(address), None);
    }

    #[test]
    fn a_taken_port_of_version_six_is_found_too() {
        // A machine without IPv6 has nothing to look at.
        let Ok(listener) = TcpListener::bind("[::1]:0") else {
            return;
        };
        let owner = port_owner(listener.local_addr().unwrap()).unwrap();
        assert_eq!(owner.pid, Some(std::process::id().cast_signed()));
    }

    #[test]
    fn the_owner_is_named_as_well_as_it_is_known() {
        assert_eq!(PortOwner::default().to_string(), "another program");
        let owner = PortOwner {
            pid: Some(7),
            program: Some("qctl-server".to_owned()),
            home: qctl_home(b"A=b\0QCTL_HOME=/srv/q\0C=d"),
        };
        assert_eq!(owner.to_string(), "qctl-server (pid 7) of the home /srv/q");
    }

    #[test]
    fn a_windows_drive_is_recognised_by_its_file_system() {
        let drive = r"99 60 0:46 / /mnt/c rw,noatime - 9p C:\134 rw,aname=drvfs";
        assert_eq!(parse_mount(drive), Some((rustix::fs::makedev(0, 46), true)));
        let disk = "60 1 8:16 / / rw,relatime - ext4 /dev/sdb rw";
        assert_eq!(parse_mount(disk), Some((rustix::fs::makedev(8, 16), false)));
    }
}
