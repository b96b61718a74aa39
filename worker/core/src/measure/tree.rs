//! The processes of one attempt, taken together.

use std::collections::HashMap;
use std::time::Duration;

use super::{field, rate};

/// Most processes of one tree that are looked into; of the others only the number is known.
pub const MAX_PROCESSES: usize = 512;

/// What the kernel says of one process at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks after boot; tells it from others that had its number.
    pub start_ticks: u64,
    /// State as `/proc` letters it.
    pub state: u8,
    /// Processor time in clock ticks, in user and kernel mode.
    pub cpu_ticks: u64,
    /// Nanoseconds that its first thread waited for a processor; absent where the kernel does not count.
    pub waited_nanos: Option<u64>,
    /// Threads.
    pub threads: u32,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Its part that no file backs, in bytes: what a leak grows.
    pub anonymous_bytes: Option<u64>,
    /// Bytes read from storage since it began.
    pub read_bytes: Option<u64>,
    /// Bytes written to storage since it began.
    pub written_bytes: Option<u64>,
}

impl Reading {
    /// Reads `/proc/PID/stat`. The program's name stands in parentheses and may contain anything.
    pub fn parse(stat: &str) -> Option<Self> {
        let (before, after) = stat.rsplit_once(')')?;
        let pid = before.split_once('(')?.0.trim().parse().ok()?;
        // The first of these is field 3 of proc(5)'s table.
        let fields: Vec<&str> = after.split_whitespace().collect();
        let number = |index: usize| fields.get(index - 3)?.parse::<u64>().ok();
        Some(Self {
            pid,
            start_ticks: number(22)?,
            state: *fields.first()?.as_bytes().first()?,
            cpu_ticks: number(14)? + number(15)?,
            threads: u32::try_from(number(20)?).ok()?,
            ..Self::default()
        })
    }

    /// Adds what `/proc/PID/status` says of its memory.
    pub fn add_memory(&mut self, status: &str) {
        self.resident_bytes = field(status, "VmRSS").unwrap_or(0) * 1024;
        self.anonymous_bytes = field(status, "RssAnon").map(|kib| kib * 1024);
    }

    /// Adds what `/proc/PID/schedstat` says of its first thread.
    pub fn add_waiting(&mut self, schedstat: &str) {
        let waited = schedstat.split_whitespace().nth(1);
        self.waited_nanos = waited.and_then(|nanos| nanos.parse().ok());
    }

    /// Adds what `/proc/PID/io` says; only its owner and root may read that.
    pub fn add_io(&mut self, io: &str) {
        self.read_bytes = field(io, "read_bytes");
        self.written_bytes = field(io, "write_bytes");
    }
}

/// What a tree used since the look before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TreeSample {
    /// Processors kept busy, 1.0 for one; absent at the first look.
    pub cpus: Option<f64>,
    /// Processors that first threads would have kept busy besides, had others left them any.
    pub cpus_waited_for: Option<f64>,
    /// Resident memory in bytes; pages that processes share count for each of them.
    pub resident_bytes: u64,
    /// Anonymous memory in bytes.
    pub anonymous_bytes: Option<u64>,
    /// Bytes a second read from storage.
    pub read_rate: Option<f64>,
    /// Bytes a second written to storage.
    pub write_rate: Option<f64>,
    /// Processes that live.
    pub processes: u32,
    /// Their threads.
    pub threads: u32,
    /// Processes that ended and nobody waited for.
    pub zombies: u32,
    /// Processes that wait for a device and take no signal.
    pub uninterruptible: u32,
}

/// Turns readings of one tree into samples.
#[derive(Debug, Default)]
pub struct TreeMeter {
    before: HashMap<(i32, u64), Reading>,
    at: Option<Duration>,
}

impl TreeMeter {
    /// Takes the readings of all processes of the tree at `now`, a monotonic time. What a process
    /// used between the last look and its end is not seen.
    pub fn observe(
        &mut self,
        readings: &[Reading],
        now: Duration,
        ticks_per_second: u64,
    ) -> TreeSample {
        let elapsed = self.at.replace(now).map(|at| now.saturating_sub(at));
        let mut sample = TreeSample::default();
        let mut ticks = 0;
        let mut waited = None;
        let (mut read, mut written) = (None, None);
        let none = Reading::default();
        for reading in readings {
            if matches!(reading.state, b'Z' | b'X') {
                sample.zombies += 1;
                continue;
            }
            sample.processes += 1;
            sample.threads += reading.threads;
            sample.uninterruptible += u32::from(reading.state == b'D');
            sample.resident_bytes += reading.resident_bytes;
            add(&mut sample.anonymous_bytes, reading.anonymous_bytes);
            // What a process that is new here has used, it used since the look before.
            let before = self
                .before
                .get(&(reading.pid, reading.start_ticks))
                .unwrap_or(&none);
            ticks += reading.cpu_ticks.saturating_sub(before.cpu_ticks);
            add(
                &mut waited,
                since(before.waited_nanos, reading.waited_nanos),
            );
            add(&mut read, since(before.read_bytes, reading.read_bytes));
            add(
                &mut written,
                since(before.written_bytes, reading.written_bytes),
            );
        }
        if let Some(elapsed) = elapsed.filter(|elapsed| !elapsed.is_zero()) {
            sample.cpus = Some(rate(0, ticks, elapsed) / ticks_per_second.max(1) as f64);
            sample.cpus_waited_for = waited.map(|nanos| rate(0, nanos, elapsed) / 1e9);
            sample.read_rate = read.map(|bytes| rate(0, bytes, elapsed));
            sample.write_rate = written.map(|bytes| rate(0, bytes, elapsed));
        }
        self.before = readings
            .iter()
            .map(|reading| ((reading.pid, reading.start_ticks), *reading))
            .collect();
        sample
    }
}

fn since(before: Option<u64>, now: Option<u64>) -> Option<u64> {
    now.map(|now| now.saturating_sub(before.unwrap_or(0)))
}

fn add(sum: &mut Option<u64>, part: Option<u64>) {
    if let Some(part) = part {
        *sum = Some(sum.unwrap_or(0) + part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str =
        "42 (a) S 1 (x\n) D 7 42 40 0 -1 4194304 1 2 3 4 500 60 7 8 20 0 3 0 987 1 1";

    #[test]
    fn the_kernels_files_are_read() {
        let mut reading = Reading::parse(STAT).unwrap();
        reading.add_memory("Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t    1024 kB\n");
        reading.add_waiting("9000 1500000000 12\n");
        reading.add_io("rchar: 9\nread_bytes: 4096\nwrite_bytes: 8192\n");
        assert_eq!(
            reading,
            Reading {
                pid: 42,
                start_ticks: 987,
                state: b'D',
                cpu_ticks: 560,
                waited_nanos: Some(1_500_000_000),
                threads: 3,
                resident_bytes: 2 << 20,
                anonymous_bytes: Some(1 << 20),
                read_bytes: Some(4096),
                written_bytes: Some(8192),
            }
        );
        for cut in 0..STAT.len() - 6 {
            assert_eq!(Reading::parse(&STAT[..cut]), None, "cut at {cut}");
        }
    }

    fn process(pid: i32, cpu_ticks: u64) -> Reading {
        Reading {
            pid,
            start_ticks: 1,
            state: b'R',
            cpu_ticks,
            threads: 1,
            ..Reading::default()
        }
    }

    #[test]
    fn processor_time_counts_between_looks() {
        let mut meter = TreeMeter::default();
        let first = meter.observe(&[process(1, 1000)], Duration::from_secs(10), 100);
        assert_eq!(first.cpus, None, "there was no look before");
        let second = [process(1, 1500), process(2, 250)];
        let sample = meter.observe(&second, Duration::from_secs(15), 100);
        assert_eq!(sample.cpus, Some(1.5));
        // One ended, and its number was taken by another process.
        let other = Reading {
            start_ticks: 7,
            ..process(2, 100)
        };
        let sample = meter.observe(&[process(1, 1500), other], Duration::from_secs(20), 100);
        assert_eq!(sample.cpus, Some(0.2));
    }

    #[test]
    fn a_process_that_others_crowd_out_waits_for_processors() {
        let crowded = |cpu_ticks, waited| Reading {
            waited_nanos: Some(waited),
            ..process(1, cpu_ticks)
        };
        let mut meter = TreeMeter::default();
        meter.observe(&[crowded(0, 0)], Duration::ZERO, 100);
        let sample = meter.observe(&[crowded(100, 4_000_000_000)], Duration::from_secs(5), 100);
        assert_eq!(
            (sample.cpus, sample.cpus_waited_for),
            (Some(0.2), Some(0.8))
        );
        let sample = meter.observe(&[process(1, 200)], Duration::from_secs(10), 100);
        assert_eq!(sample.cpus_waited_for, None, "this kernel does not count");
    }

    #[test]
    fn what_may_not_be_read_is_absent_and_zombies_use_nothing() {
        let mut meter = TreeMeter::default();
        let zombie = Reading {
            state: b'Z',
            resident_bytes: 1,
            ..process(3, 9)
        };
        meter.observe(&[], Duration::ZERO, 100);
        let sample = meter.observe(&[process(1, 0), zombie], Duration::from_secs(5), 100);
        assert_eq!((sample.processes, sample.zombies), (1, 1));
        assert_eq!((sample.anonymous_bytes, sample.read_rate), (None, None));
        assert_eq!(sample.resident_bytes, 0);
    }
}
