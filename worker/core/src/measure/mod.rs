//! What a process tree and a machine use: readings of the kernel's files, and the rates between two
//! of them. An absent figure is absent, never zero.

mod activity;
mod machine;
mod tree;

pub use activity::{ActivityMeter, CPUS, GPU_BUSY, IO_RATE, Life, Still, Usage};
pub use machine::{MachineMeter, MachineReading, MachineSample, Memory, Times};
pub use tree::{MAX_PROCESSES, Reading, TreeMeter, TreeSample};

use std::time::Duration;

/// A growing counter's rate per second. A counter that went backwards began anew.
fn rate(before: u64, now: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds <= 0.0 {
        return 0.0;
    }
    now.saturating_sub(before) as f64 / seconds
}

/// The number behind `key` in lines such as `VmRSS:     123 kB`.
fn field(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let rest = line.strip_prefix(':').unwrap_or(line);
    rest.split_whitespace().next()?.parse().ok()
}
