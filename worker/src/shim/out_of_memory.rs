//! Whether the kernel killed something because memory ran out.

use std::path::PathBuf;
use std::time::Duration;

/// Counts older than this are read again before a job starts. Jobs that follow each other more
/// quickly share one.
const FRESH_FOR: Duration = Duration::from_millis(250);

/// Compares the kernel's counts before and after.
#[derive(Debug)]
pub(super) struct OutOfMemory {
    source: Source,
    count: Option<u64>,
    read_at: Option<Duration>,
}

#[derive(Debug)]
enum Source {
    /// Counts kills in the shim's own control group.
    Group(PathBuf),
    /// Counts kills on the whole machine.
    Machine,
}

impl OutOfMemory {
    /// Chooses where to read.
    pub(super) fn new() -> Self {
        let group = std::fs::read_to_string("/proc/self/cgroup")
            .ok()
            .and_then(|text| events_file(&text))
            .filter(|path| std::fs::read_to_string(path).is_ok());
        Self {
            source: group.map_or(Source::Machine, Source::Group),
            count: None,
            read_at: None,
        }
    }

    /// Remembers the count before a job starts.
    pub(super) fn arm(&mut self, now: Duration) {
        if self
            .read_at
            .is_none_or(|read_at| now.saturating_sub(read_at) > FRESH_FOR)
        {
            self.count = self.read();
            self.read_at = Some(now);
        }
    }

    /// What to say with it when the count cannot tell whom the kernel killed.
    pub(super) fn doubt(&self) -> &'static str {
        match self.source {
            Source::Group(_) => "",
            Source::Machine => {
                "probably so, because this machine's count of such kills rose while the job ran; \
                 nothing tells whom they hit"
            }
        }
    }

    /// True when the count has risen since [`OutOfMemory::arm`].
    pub(super) fn has_struck(&mut self, now: Duration) -> bool {
        let before = self.count;
        self.count = self.read();
        self.read_at = Some(now);
        matches!((before, self.count), (Some(before), Some(after)) if after > before)
    }

    fn read(&self) -> Option<u64> {
        let text = match &self.source {
            Source::Group(path) => std::fs::read_to_string(path),
            Source::Machine => std::fs::read_to_string("/proc/vmstat"),
        };
        parse(&text.ok()?)
    }
}

/// The counter file of the control group (version 2) that `/proc/self/cgroup` names.
fn events_file(cgroup: &str) -> Option<PathBuf> {
    let group = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut path = PathBuf::from("/sys/fs/cgroup");
    path.push(group);
    path.push("memory.events");
    Some(path)
}

fn parse(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_files_are_understood() {
        assert_eq!(
            parse("low 0\noom 3\noom_kill 2\noom_group_kill 9\n"),
            Some(2)
        );
        assert_eq!(parse("pgfault 1\noom_kill 7\n"), Some(7));
        assert_eq!(parse("pgfault 1\n"), None);
        assert_eq!(
            events_file("1:cpu:/x\n0::/user.slice/a\n"),
            Some(PathBuf::from("/sys/fs/cgroup/user.slice/a/memory.events"))
        );
        assert_eq!(events_file("1:cpu:/x\n"), None);
    }

    #[test]
    fn only_a_rise_since_the_start_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.events");
        let write = |count: u64| std::fs::write(&path, format!("oom_kill {count}\n")).unwrap();
        let mut watch = OutOfMemory {
            source: Source::Group(path.clone()),
            count: None,
            read_at: None,
        };
        let at = Duration::from_secs;
        write(3);
        watch.arm(at(1));
        assert!(!watch.has_struck(at(2)));
        write(4);
        assert!(watch.has_struck(at(3)));
        assert!(!watch.has_struck(at(4)));
        write(5);
        watch.arm(at(5));
        assert!(!watch.has_struck(at(6)));
        assert_eq!(watch.doubt(), "");
        watch.source = Source::Machine;
        assert!(watch.doubt().starts_with("probably"));
    }
}
