//! The machine as a whole.

use std::time::Duration;

use super::field;

/// Processor time of the machine since its start, in clock ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Spent on something.
    pub busy: u64,
    /// All of it, of all processors.
    pub all: u64,
}

impl Times {
    /// Reads the first line of `/proc/stat`.
    pub fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        // Guest time is part of user time, so only the first eight count.
        let numbers: Vec<u64> = line
            .split_whitespace()
            .take(8)
            .map_while(|number| number.parse().ok())
            .collect();
        let [_, _, _, idle, waiting, ..] = numbers[..] else {
            return None;
        };
        let all = numbers.iter().sum();
        Some(Self {
            busy: all - idle - waiting,
            all,
        })
    }
}

/// Memory of the machine, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What can be had without swapping; the page cache counts as free.
    pub available: u64,
    /// Swap space.
    pub swap_total: u64,
    /// Its free part.
    pub swap_free: u64,
}

impl Memory {
    /// Reads `/proc/meminfo`.
    pub fn parse(meminfo: &str) -> Option<Self> {
        let bytes = |key| field(meminfo, key).map(|kib| kib * 1024);
        Some(Self {
            total: bytes("MemTotal")?,
            available: bytes("MemAvailable")?,
            swap_total: bytes("SwapTotal").unwrap_or(0),
            swap_free: bytes("SwapFree").unwrap_or(0),
        })
    }
}

/// What the machine says at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MachineReading {
    /// Processor time.
    pub times: Option<Times>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Processes that the kernel has killed for memory since the machine was started.
    pub oom_kills: Option<u64>,
    /// Free and total bytes of the file system that the spool is on.
    pub disk: Option<(u64, u64)>,
    /// One-minute load average.
    pub load: Option<f64>,
    /// The wall clock less the time since the machine's start; jumps when somebody sets the time.
    pub clock_offset: Duration,
    /// How long the machine slept since its start.
    pub slept: Duration,
}

impl MachineReading {
    /// Reads the counter in `/proc/vmstat`.
    pub fn oom_kills(vmstat: &str) -> Option<u64> {
        field(vmstat, "oom_kill ")
    }
}

/// What the machine did since the look before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MachineSample {
    /// Share of all processors that was busy, 0 to 1; absent at the first look.
    pub busy: Option<f64>,
    /// One-minute load average.
    pub load: Option<f64>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Free and total bytes of the spool's file system.
    pub disk: Option<(u64, u64)>,
    /// Processes killed for memory since the look before.
    pub oom_kills: Option<u64>,
    /// How far the wall clock jumped since the look before, in seconds; forward is positive.
    pub clock_jump: f64,
    /// How long the machine slept since the look before, in seconds.
    pub slept: f64,
}

impl MachineSample {
    /// Adds what happened before an earlier sample that was told to nobody.
    pub fn add_events(&mut self, earlier: &Self) {
        self.oom_kills = match (self.oom_kills, earlier.oom_kills) {
            (Some(now), Some(before)) => Some(now + before),
            (now, before) => now.or(before),
        };
        self.clock_jump += earlier.clock_jump;
        self.slept += earlier.slept;
    }
}

/// Turns readings of the machine into samples.
#[derive(Debug, Default)]
pub struct MachineMeter {
    before: Option<MachineReading>,
}

impl MachineMeter {
    /// Takes a reading.
    pub fn observe(&mut self, now: MachineReading) -> MachineSample {
        let before = self.before.replace(now).unwrap_or_default();
        let first = before == MachineReading::default();
        let busy = before.times.zip(now.times).and_then(|(before, now)| {
            let all = now.all.saturating_sub(before.all);
            (all > 0).then(|| now.busy.saturating_sub(before.busy) as f64 / all as f64)
        });
        let oom_kills = before.oom_kills.zip(now.oom_kills);
        let slept = now.slept.saturating_sub(before.slept);
        let jump = now.clock_offset.as_secs_f64() - before.clock_offset.as_secs_f64();
        MachineSample {
            busy,
            load: now.load,
            memory: now.memory,
            disk: now.disk,
            oom_kills: oom_kills.map(|(before, now)| now.saturating_sub(before)),
            clock_jump: if first { 0.0 } else { jump },
            slept: if first { 0.0 } else { slept.as_secs_f64() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let times = Times::parse("cpu  100 5 45 800 50 1 2 3 40 0\ncpu0 1 2 3 4\n").unwrap();
        assert_eq!(
            times,
            Times {
                busy: 156,
                all: 1006
            }
        );
        assert_eq!(Times::parse("cpu  1 2 3"), None);
        assert_eq!(Times::parse(""), None);
        let memory = Memory::parse("MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable: 60 kB\n");
        let memory = memory.unwrap();
        assert_eq!((memory.total, memory.available), (102_400, 61_440));
        assert_eq!(memory.swap_total, 0);
        assert_eq!(
            MachineReading::oom_kills("oom_kill_x 1\noom_kill 7\n"),
            Some(7)
        );
    }

    #[test]
    fn a_first_look_has_no_rates_and_no_jump() {
        let mut meter = MachineMeter::default();
        let reading = |busy, all, oom, offset| MachineReading {
            times: Some(Times { busy, all }),
            oom_kills: Some(oom),
            clock_offset: Duration::from_secs(offset),
            ..MachineReading::default()
        };
        let first = meter.observe(reading(50, 100, 3, 1_000));
        assert_eq!((first.busy, first.oom_kills), (None, None));
        assert_eq!(first.clock_jump, 0.0);
        let second = meter.observe(reading(75, 200, 5, 900));
        assert_eq!((second.busy, second.oom_kills), (Some(0.25), Some(2)));
        assert_eq!((second.clock_jump, second.slept), (-100.0, 0.0));
        let woken = MachineReading {
            slept: Duration::from_secs(3_600),
            ..reading(75, 200, 5, 900)
        };
        let woken = meter.observe(woken);
        assert_eq!((woken.clock_jump, woken.slept), (0.0, 3_600.0));
    }
}
