//! Whether the running attempt works although it says nothing.

use std::time::Duration;

use qctl_worker_core::measure::{ActivityMeter, MAX_PROCESSES, Usage};
use qctl_worker_core::silence::Stages;

use crate::process::snapshot::{Process, Snapshot};

/// Bounds of the time between two looks. A look costs some microseconds a process.
const EVERY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(250)..=Duration::from_secs(15);

/// Looks in the time of the first stage, at least: the first of them only begins to count.
const LOOKS: u32 = 4;

/// Looks at the attempt's processes now and then.
#[derive(Debug)]
pub(super) struct Activity {
    meter: ActivityMeter,
    every: Duration,
    look_at: Duration,
    ticks_per_second: u64,
}

impl Activity {
    /// Begins at `now`; `None` where activity is no sign of life.
    pub(super) fn watch(stages: &Stages, now: Duration) -> Option<Self> {
        let first = stages.first().filter(|_| stages.activity)?;
        let every = (first / LOOKS).clamp(*EVERY.start(), *EVERY.end());
        Some(Self {
            meter: ActivityMeter::default(),
            every,
            look_at: now.saturating_add(every),
            ticks_per_second: rustix::param::clock_ticks_per_second(),
        })
    }

    /// When it is to be looked at.
    pub(super) fn deadline(&self) -> Duration {
        self.look_at
    }

    /// Looks when it is time. True when the processes have worked since the look before. `idle` is
    /// how long nothing was heard of the attempt; `None` while that does not count.
    pub(super) fn look(&mut self, now: Duration, idle: Option<Duration>) -> bool {
        if now < self.look_at {
            return false;
        }
        self.look_at = now.saturating_add(self.every);
        // Who talks need not be looked at.
        if idle.is_none_or(|idle| idle < self.every) {
            self.meter.forget();
            return false;
        }
        match usage() {
            Some(usage) => self.meter.observe(now, usage, self.ticks_per_second) == Some(true),
            None => {
                self.meter.forget();
                false
            }
        }
    }
}

/// What everything below this process has used.
fn usage() -> Option<Usage> {
    let mut usage = Usage::default();
    // Orphans that have ended were waited for by this process.
    let own = std::fs::read("/proc/self/stat").ok()?;
    usage.add_children(&String::from_utf8_lossy(&own));
    let below = Snapshot::take()
        .ok()?
        .descendants(&[std::process::id() as i32]);
    for process in below.iter().take(MAX_PROCESSES) {
        add(&mut usage, process);
    }
    Some(usage)
}

fn add(usage: &mut Usage, process: &Process) {
    let read = |file: &str| {
        let bytes = std::fs::read(format!("/proc/{}/{file}", process.pid)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    // One that ends meanwhile counts with its parent from now on.
    if let Some(stat) = read("stat") {
        usage.add_stat(&stat);
    }
    // This file waits for a process that is being replaced by another program, and one that waits for
    // a device then would hold up everything here.
    if process.state != b'D'
        && let Some(io) = read("io")
    {
        usage.add_io(&io);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_children_have_used_stays_counted_when_they_are_gone() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done"])
            .spawn()
            .unwrap();
        child.wait().unwrap();
        assert!(usage().unwrap().cpu_ticks > 0);
    }
}
