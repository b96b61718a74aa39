//! Whether a process tree works or only waits, from what the kernel has counted of it.

use std::time::Duration;

use super::{field, rate};

/// Processors kept busy from which on a tree works. A loop that polls, or a library's thread that
/// watches something, stays far below that; a computation on a crowded machine stays above.
pub const CPUS: f64 = 0.1;

/// Bytes a second that storage is asked for, from which on a tree works: a mebibyte a minute.
pub const IO_RATE: f64 = 1024.0 * 1024.0 / 60.0;

/// The same of bytes that calls have moved. A shell that starts `sleep` five times a second moves more
/// than [`IO_RATE`] only by loading it.
const MOVED_RATE: f64 = 10.0 * IO_RATE;

/// Use of a GPU from which on its job works.
pub const GPU_BUSY: f64 = 0.1;

/// What a tree has used since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time in clock ticks, with that of children that were waited for.
    pub cpu_ticks: u64,
    /// Bytes that storage was asked for.
    pub storage_bytes: u64,
    /// Bytes that calls such as read and write have moved, from and to whatever.
    pub moved_bytes: u64,
}

impl Usage {
    /// Adds a process, by its `/proc/PID/stat`. Nothing is added of one that cannot be read.
    pub fn add_stat(&mut self, stat: &str) {
        self.add_ticks(stat, 14..=17);
    }

    /// Adds the children of a process that it has waited for, by its `/proc/PID/stat`.
    pub fn add_children(&mut self, stat: &str) {
        self.add_ticks(stat, 16..=17);
    }

    /// Adds what a process has read and written, by its `/proc/PID/io`.
    pub fn add_io(&mut self, io: &str) {
        let sum = |keys: [&str; 2]| {
            keys.into_iter()
                .filter_map(|key| field(io, key))
                .sum::<u64>()
        };
        self.storage_bytes += sum(["read_bytes", "write_bytes"]);
        self.moved_bytes += sum(["rchar", "wchar"]);
    }

    /// Adds fields of the table in proc(5).
    fn add_ticks(&mut self, stat: &str, fields: std::ops::RangeInclusive<usize>) {
        let Some((_, after)) = stat.rsplit_once(')') else {
            return;
        };
        let ticks = after
            .split_whitespace()
            .skip(fields.start() - 3)
            .take(fields.end() - fields.start() + 1)
            .filter_map(|field| field.parse::<u64>().ok());
        self.cpu_ticks += ticks.sum::<u64>();
    }
}

/// Tells from two looks whether a tree has worked in between.
#[derive(Clone, Copy, Debug, Default)]
pub struct ActivityMeter {
    before: Option<(Duration, Usage)>,
}

impl ActivityMeter {
    /// Forgets the look before: the time since then is not to be judged.
    pub fn forget(&mut self) {
        self.before = None;
    }

    /// Takes a look at `now`, a monotonic time. Whether the tree has worked since the look before;
    /// `None` when there was none.
    pub fn observe(&mut self, now: Duration, usage: Usage, ticks_per_second: u64) -> Option<bool> {
        let (at, before) = self.before.replace((now, usage))?;
        let elapsed = now.saturating_sub(at);
        let ticks = rate(before.cpu_ticks, usage.cpu_ticks, elapsed);
        let storage = rate(before.storage_bytes, usage.storage_bytes, elapsed);
        let moved = rate(before.moved_bytes, usage.moved_bytes, elapsed);
        let computes = ticks / ticks_per_second.max(1) as f64 >= CPUS;
        Some(computes || storage >= IO_RATE || moved >= MOVED_RATE)
    }
}

/// When a tree was last seen to work, by what it uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Life {
    cpu: Option<Seen>,
    io: Option<Seen>,
    gpu: Option<Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    first: Duration,
    worked: Option<Duration>,
}

/// Of what was looked at for less than this and did not work nothing is said.
const TOO_SHORT: Duration = Duration::from_secs(10);

/// How long a tree has used next to nothing; absent where nobody could see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Still {
    /// Of the processors.
    pub cpu: Option<Duration>,
    /// Of files and storage.
    pub io: Option<Duration>,
    /// Of the GPUs that it was given.
    pub gpu: Option<Duration>,
}

impl Life {
    /// Takes a look at `now`, a monotonic time: processors kept busy, bytes a second, and the use of
    /// the busiest GPU, each absent where it cannot be seen.
    pub fn observe(
        &mut self,
        now: Duration,
        cpus: Option<f64>,
        io_rate: Option<f64>,
        gpu_busy: Option<f64>,
    ) {
        let works = |seen: &mut Option<Seen>, used: Option<f64>, least: f64| {
            let Some(used) = used else { return };
            let seen = seen.get_or_insert(Seen {
                first: now,
                worked: None,
            });
            if used >= least {
                seen.worked = Some(now);
            }
        };
        works(&mut self.cpu, cpus, CPUS);
        works(&mut self.io, io_rate, IO_RATE);
        works(&mut self.gpu, gpu_busy, GPU_BUSY);
    }

    /// How long it has been still at `now`.
    pub fn still(&self, now: Duration) -> Still {
        let since = |seen: Option<Seen>| {
            let seen = seen?;
            match seen.worked {
                Some(worked) => Some(now.saturating_sub(worked)),
                None => Some(now.saturating_sub(seen.first)).filter(|still| *still >= TOO_SHORT),
            }
        };
        Still {
            cpu: since(self.cpu),
            io: since(self.io),
            gpu: since(self.gpu),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str =
        "42 (a) S 1 (x\n) D 7 42 40 0 -1 4194304 1 2 3 4 500 60 7 8 20 0 3 0 987 1 1";

    #[test]
    fn the_kernels_counts_are_added() {
        let mut usage = Usage::default();
        usage.add_stat(STAT);
        assert_eq!(usage.cpu_ticks, 575);
        usage.add_children(STAT);
        assert_eq!(usage.cpu_ticks, 590);
        usage.add_io("rchar: 9\nwchar: 1\nread_bytes: 4096\nwrite_bytes: 8192\n");
        usage.add_io("rchar: 5\n");
        assert_eq!((usage.moved_bytes, usage.storage_bytes), (15, 12_288));
        usage.add_stat("nothing");
        assert_eq!(usage.cpu_ticks, 590);
    }

    fn worked(ticks: u64, bytes: u64, seconds: u64) -> Option<bool> {
        let mut meter = ActivityMeter::default();
        let used = |ticks, bytes| Usage {
            cpu_ticks: 1_000 + ticks,
            storage_bytes: 0,
            moved_bytes: 1_000 + bytes,
        };
        assert_eq!(meter.observe(Duration::from_secs(5), used(0, 0), 100), None);
        meter.observe(Duration::from_secs(5 + seconds), used(ticks, bytes), 100)
    }

    #[test]
    fn a_computation_works_and_a_loop_that_polls_does_not() {
        assert_eq!(worked(15 * 100, 0, 15), Some(true), "a whole processor");
        assert_eq!(worked(15 * 12, 0, 15), Some(true), "one shared by eight");
        assert_eq!(worked(15, 0, 15), Some(false), "a spin of 1 %");
        assert_eq!(
            worked(15 * 5, 64 * 1024, 15),
            Some(false),
            "a polling thread"
        );
        assert_eq!(worked(0, 4 << 20, 15), Some(true), "a copy");
        assert_eq!(worked(0, 400 << 10, 15), Some(false), "a shell that polls");
        assert_eq!(worked(0, 0, 15), Some(false));
    }

    #[test]
    fn what_works_is_told_from_what_stands_and_from_what_nobody_sees() {
        let s = Duration::from_secs;
        let mut life = Life::default();
        life.observe(s(10), Some(0.0), None, None);
        life.observe(s(15), Some(1.0), None, Some(0.5));
        life.observe(s(20), Some(0.01), None, Some(0.9));
        let expected = Still {
            cpu: Some(s(10)),
            io: None,
            gpu: Some(s(5)),
        };
        assert_eq!(life.still(s(25)), expected);
        let mut idle = Life::default();
        idle.observe(s(10), Some(0.0), None, None);
        assert_eq!(idle.still(s(12)).cpu, None, "too soon to tell");
        assert_eq!(idle.still(s(20)).cpu, Some(s(10)));
    }

    #[test]
    fn what_was_used_before_a_gap_is_not_judged() {
        let mut meter = ActivityMeter::default();
        meter.observe(Duration::ZERO, Usage::default(), 100);
        meter.forget();
        let much = Usage {
            cpu_ticks: 1_000_000,
            ..Usage::default()
        };
        assert_eq!(meter.observe(Duration::from_secs(9), much, 100), None);
    }
}
