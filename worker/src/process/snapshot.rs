//! What `/proc` says about processes.

use std::collections::HashSet;
use std::io;

use rustix::fs::{Dir, Mode, OFlags, openat};

/// A process at the moment it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// State as `/proc` letters it: `R`, `S`, `D`, `T`, `Z`…
    pub state: u8,
    /// Parent.
    pub parent: i32,
    /// Process group.
    pub group: i32,
    /// Session.
    pub session: i32,
    /// Start time in clock ticks after boot.
    pub start_ticks: u64,
}

impl Process {
    /// True unless only its entry in the process table is left.
    pub fn lives(&self) -> bool {
        !matches!(self.state, b'Z' | b'X')
    }

    /// True when job control has stopped it.
    pub fn is_stopped(&self) -> bool {
        self.state == b'T'
    }

    /// Looks at one process; `None` when there is none of this number.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn look(pid: i32) -> io::Result<Option<Self>> {
        match std::fs::read(format!("/proc/{pid}/stat")) {
            Ok(stat) => Ok(parse(&stat)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// All processes of the machine that this one may see.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    processes: Vec<Process>,
}

impl Snapshot {
    /// Looks at every process. Processes that come or go meanwhile may be missing.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn take() -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let proc = rustix::fs::open("/proc", flags | OFlags::DIRECTORY, Mode::empty())?;
        let mut processes = Vec::new();
        let mut stat = [0; 1024];
        let mut path = String::new();
        for entry in Dir::read_from(&proc)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !name.iter().all(u8::is_ascii_digit) {
                continue;
            }
            path.clear();
            path.extend(name.iter().map(|&byte| char::from(byte)));
            path.push_str("/stat");
            let file = match openat(&proc, path.as_str(), flags, Mode::empty()) {
                Ok(file) => file,
                Err(error) if is_gone(&error.into()) => continue,
                Err(error) => return Err(error.into()),
            };
            match rustix::io::read(&file, &mut stat) {
                Ok(length) => processes.extend(parse(&stat[..length])),
                Err(error) if is_gone(&error.into()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self { processes })
    }

    /// All of them.
    pub fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// Children, their children and so on of the processes in `roots`, without these.
    pub fn descendants(&self, roots: &[i32]) -> Vec<Process> {
        let mut known: HashSet<i32> = roots.iter().copied().collect();
        let mut found = Vec::new();
        // The table is in no order that follows descent, so one pass may not meet parents first.
        loop {
            let before = found.len();
            for process in &self.processes {
                if known.contains(&process.parent) && known.insert(process.pid) {
                    found.push(*process);
                }
            }
            if found.len() == before {
                return found;
            }
        }
    }
}

/// Processes that ended while they were looked at are no error.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ESRCH | libc::EACCES | libc::EPERM)
    )
}

/// Parses `/proc/PID/stat`. The program's name stands in parentheses and may contain anything.
fn parse(stat: &[u8]) -> Option<Process> {
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let pid = number(stat.get(..open)?)?;
    let mut fields = stat
        .get(close + 1..)?
        .split(|byte| byte.is_ascii_whitespace())
        .filter(|field| !field.is_empty());
    let state = *fields.next()?.first()?;
    let parent = number(fields.next()?)?;
    let group = number(fields.next()?)?;
    let session = number(fields.next()?)?;
    // Start time is field 22 of the file; session, read last, is field 6.
    let start_ticks = number(fields.nth(15)?)?;
    Some(Process {
        pid,
        state,
        parent,
        group,
        session,
        start_ticks,
    })
}

fn number<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32) -> Process {
        Process {
            pid,
            state: b'S',
            parent,
            group: pid,
            session: pid,
            start_ticks: 1,
        }
    }

    #[test]
    fn a_name_full_of_parentheses_and_spaces_is_skipped() {
        let line = b"42 (a) S 1 (x\n) T 7 42 40 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 987 1 1\n";
        assert_eq!(
            parse(line),
            Some(Process {
                pid: 42,
                state: b'T',
                parent: 7,
                group: 42,
                session: 40,
                start_ticks: 987,
            })
        );
    }

    #[test]
    fn cut_and_foreign_lines_are_nobody() {
        let line = b"42 (a) T 7 42 40 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 987 1 1\n";
        for cut in 0..line.len() - 8 {
            assert_eq!(parse(&line[..cut]), None, "cut at {cut}");
        }
        assert_eq!(parse(b") ("), None);
    }

    #[test]
    fn descent_is_found_in_any_order() {
        let snapshot = Snapshot {
            processes: vec![process(5, 4), process(4, 3), process(3, 2), process(9, 1)],
        };
        let mut found: Vec<_> = snapshot.descendants(&[2]).iter().map(|p| p.pid).collect();
        found.sort();
        assert_eq!(found, [3, 4, 5]);
    }

    #[test]
    fn a_ring_of_parents_ends() {
        let snapshot = Snapshot {
            processes: vec![process(2, 3), process(3, 2)],
        };
        assert_eq!(snapshot.descendants(&[2]).len(), 1);
    }

    #[test]
    fn this_process_is_in_the_table_and_found_alone() {
        let me = std::process::id() as i32;
        let alone = Process::look(me).unwrap().unwrap();
        let snapshot = Snapshot::take().unwrap();
        let listed = snapshot.processes().iter().find(|p| p.pid == me).unwrap();
        assert_eq!(listed.start_ticks, alone.start_ticks);
        assert!(alone.lives());
    }
}
