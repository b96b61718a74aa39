//! One look at processes and machine, through `/proc`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use qctl_worker_core::measure::{
    MAX_PROCESSES, MachineMeter, MachineReading, Memory, Reading, Times, TreeMeter,
};
use rustix::time::{ClockId, clock_gettime};

use super::{Leader, Seen, kernel_file};
use crate::process::snapshot::{Process, Snapshot};

/// Looks, and remembers what rates need.
#[derive(Debug)]
pub(super) struct Looker {
    folder: PathBuf,
    machine: MachineMeter,
    trees: BTreeMap<i64, Tree>,
    ticks_per_second: u64,
}

#[derive(Debug, Default)]
struct Tree {
    meter: TreeMeter,
    /// The shim, once it was seen as the leader's parent: what the leader leaves behind is its.
    shim: Option<i32>,
}

impl Looker {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            machine: MachineMeter::default(),
            trees: BTreeMap::new(),
            ticks_per_second: rustix::param::clock_ticks_per_second(),
        }
    }

    pub(super) fn look(&mut self, attempts: &BTreeMap<i64, Leader>) -> Seen {
        self.trees.retain(|fence, _| attempts.contains_key(fence));
        let now = read_clock(ClockId::Monotonic);
        let mut seen = Seen {
            machine: self.machine.observe(self.read_machine(now)),
            ..Seen::default()
        };
        self.look_at_trees(attempts, now, &mut seen);
        seen
    }

    fn look_at_trees(&mut self, attempts: &BTreeMap<i64, Leader>, now: Duration, seen: &mut Seen) {
        if attempts.is_empty() {
            return;
        }
        let snapshot = match Snapshot::take() {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::debug!("processes cannot be looked at: {error}");
                return;
            }
        };
        for (fence, leader) in attempts {
            let tree = self.trees.entry(*fence).or_default();
            let readings = read_tree(&snapshot, *leader, &mut tree.shim);
            let sample = tree.meter.observe(&readings, now, self.ticks_per_second);
            let pids = readings.iter().map(|reading| reading.pid.unsigned_abs());
            seen.processes.insert(*fence, pids.collect());
            seen.trees.push((*fence, sample));
        }
    }

    fn read_machine(&self, now: Duration) -> MachineReading {
        let wall = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let since_start = read_clock(ClockId::Boottime);
        let disk = rustix::fs::statvfs(&self.folder).ok();
        MachineReading {
            times: kernel_file("/proc/stat").and_then(|text| Times::parse(&text)),
            memory: kernel_file("/proc/meminfo").and_then(|text| Memory::parse(&text)),
            oom_kills: kernel_file("/proc/vmstat")
                .and_then(|text| MachineReading::oom_kills(&text)),
            disk: disk.map(|disk| {
                (
                    disk.f_bavail.saturating_mul(disk.f_frsize),
                    disk.f_blocks.saturating_mul(disk.f_frsize),
                )
            }),
            load: kernel_file("/proc/loadavg")
                .and_then(|text| text.split_whitespace().next()?.parse().ok()),
            clock_offset: wall.saturating_sub(since_start),
            slept: since_start.saturating_sub(now),
        }
    }
}

fn read_clock(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// Reads every process of an attempt: what descends from its shim, or without one from its leader.
fn read_tree(snapshot: &Snapshot, leader: Leader, shim: &mut Option<i32>) -> Vec<Reading> {
    let first = snapshot
        .processes()
        .iter()
        .find(|process| process.pid == leader.pid && process.start_ticks == leader.start_ticks);
    // Once the shim is gone, init or another reaper is the parent, whose other children are strangers.
    if let Some(first) = first
        && shim.is_none()
        && first.parent > 1
    {
        *shim = Some(first.parent);
    }
    let of_shim = shim.filter(|shim| {
        first.is_none_or(|first| first.parent == *shim)
            && snapshot.processes().iter().any(|other| other.pid == *shim)
    });
    let mut processes: Vec<Process> = match (of_shim, first) {
        (Some(shim), _) => snapshot.descendants(&[shim]),
        (None, Some(first)) => {
            let mut tree = snapshot.descendants(&[first.pid]);
            tree.push(*first);
            tree
        }
        (None, None) => Vec::new(),
    };
    processes.truncate(MAX_PROCESSES);
    processes.iter().filter_map(read).collect()
}

fn read(process: &Process) -> Option<Reading> {
    let folder = PathBuf::from(format!("/proc/{}", process.pid));
    let mut reading = Reading::parse(&kernel_file(folder.join("stat"))?)?;
    if reading.start_ticks != process.start_ticks {
        return None;
    }
    if process.lives() {
        if let Some(status) = kernel_file(folder.join("status")) {
            reading.add_memory(&status);
        }
        if let Some(schedstat) = kernel_file(folder.join("schedstat")) {
            reading.add_waiting(&schedstat);
        }
        if let Some(io) = kernel_file(folder.join("io")) {
            reading.add_io(&io);
        }
    }
    Some(reading)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_tree_with_a_busy_child_is_measured() {
        let mut child = Command::new("sh")
            .args([
                "-c",
                "head -c 30000000 /dev/zero | tail -c 30000000 | sleep 100 & while :; do :; done",
            ])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let start_ticks = Process::look(pid).unwrap().unwrap().start_ticks;
        let attempts = BTreeMap::from([(7, Leader { pid, start_ticks })]);
        let mut looker = Looker::new(std::env::temp_dir());
        // This test's process stands where a shim would, and may have other children of other tests.
        looker.trees.insert(
            7,
            Tree {
                shim: Some(i32::MAX),
                ..Tree::default()
            },
        );
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        let sample = loop {
            let seen = looker.look(&attempts);
            let sample = seen.trees[0].1;
            let held = sample
                .anonymous_bytes
                .is_some_and(|bytes| bytes > 30_000_000);
            if held && sample.cpus.is_some_and(|cpus| cpus > 0.0) {
                assert!(seen.machine.memory.is_some() && seen.machine.disk.is_some());
                break sample;
            }
            assert!(std::time::Instant::now() < deadline, "{sample:?}");
            std::thread::sleep(Duration::from_millis(100));
        };
        assert!(sample.processes >= 3, "{sample:?}");
        for process in Snapshot::take().unwrap().descendants(&[pid]) {
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_raw(process.pid).unwrap(),
                rustix::process::Signal::KILL,
            );
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(looker.look(&attempts).trees[0].1.processes, 0);
    }
}
