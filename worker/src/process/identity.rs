//! What identifies a process.

use std::io;

use crate::process::snapshot::Process;

/// A process, told apart from every other that ever had its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The kernel's boot id.
    pub boot_id: String,
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks after boot.
    pub start_ticks: u64,
}

impl Identity {
    /// True when `process`, seen in the boot `boot_id`, is this one.
    pub fn is(&self, boot_id: &str, process: &Process) -> bool {
        self.boot_id == boot_id
            && self.pid == process.pid
            && self.start_ticks == process.start_ticks
    }
}

/// The kernel's boot id: another one after every restart of the machine.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn boot_id() -> io::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().to_owned())
}
