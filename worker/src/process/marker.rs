//! The environment variable that every process of an attempt or a probe carries.

use std::fs::File;
use std::io::{self, Read};

/// Name of the variable.
pub const VARIABLE: &str = "QCTL_FENCE";

/// Longest environment that is searched, in bytes. The kernel's own limit is lower.
const MAX_ENVIRON_BYTES: u64 = 16 * 1024 * 1024;

/// Marks the processes of one attempt, or those of a worker's probes. Fences are unique within a coordinator only, and several
/// workers may share a machine, so the marker names the worker's spool too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    value: String,
}

impl Marker {
    /// The marker of an attempt of the worker that owns a spool.
    pub fn new(spool_id: &str, fence: i64) -> Self {
        Self {
            value: format!("{spool_id}:{fence}"),
        }
    }

    /// The marker of what a worker runs to try its GPUs. Fences are numbers, so none looks like it.
    pub fn of_probes(spool_id: &str) -> Self {
        Self {
            value: format!("{spool_id}:probe"),
        }
    }

    /// The variable's value.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// True when a process began its program with this marker.
    ///
    /// # Errors
    /// When the process's environment may not be read, or the process is gone.
    pub fn is_on(&self, pid: i32) -> io::Result<bool> {
        let mut environ = Vec::new();
        File::open(format!("/proc/{pid}/environ"))?
            .take(MAX_ENVIRON_BYTES)
            .read_to_end(&mut environ)?;
        Ok(self.is_in(&environ))
    }

    fn is_in(&self, environ: &[u8]) -> bool {
        environ.split(|&byte| byte == 0).any(|entry| {
            entry
                .strip_prefix(VARIABLE.as_bytes())
                .and_then(|rest| rest.strip_prefix(b"="))
                == Some(self.value.as_bytes())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_value_of_the_right_variable_counts() {
        let marker = Marker::new("a", 12);
        assert!(marker.is_in(b"A=1\0QCTL_FENCE=a:12\0B=2\0"));
        assert!(!marker.is_in(b"QCTL_FENCE=a:123\0"));
        assert!(!marker.is_in(b"QCTL_FENCE=b:12\0"));
        assert!(!marker.is_in(b"X=QCTL_FENCE=a:12\0"));
        assert!(!marker.is_in(b""));
    }
}
