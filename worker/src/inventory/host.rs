//! The machine: its name, processors, memory and load.

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// What does not change while the machine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Host name.
    pub name: String,
    /// Logical processors this program may use.
    pub cpus: i32,
    /// Memory in bytes; 0 when it cannot be read.
    pub memory_bytes: i64,
}

/// What changes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Load average of one minute.
    pub load: Option<f64>,
    /// Memory in use, in bytes.
    pub memory_used_bytes: Option<i64>,
}

/// Looks at the machine. Reading its load is cheap enough for every heartbeat.
#[derive(Debug)]
pub struct Observer {
    system: Option<System>,
}

impl Default for Observer {
    fn default() -> Self {
        Self::new()
    }
}

impl Observer {
    /// An observer. A machine that cannot be observed is not an error: its figures are absent.
    pub fn new() -> Self {
        let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
        Self {
            system: System::new_with_specifics(memory).ok(),
        }
    }

    /// The machine's name, processors and memory.
    pub fn host(&self) -> Host {
        let total = self.system.as_ref().map_or(0, System::total_memory);
        Host {
            name: host_name(),
            cpus: std::thread::available_parallelism()
                .map_or(1, |cpus| i32::try_from(cpus.get()).unwrap_or(i32::MAX)),
            memory_bytes: i64::try_from(total).unwrap_or(i64::MAX),
        }
    }

    /// The load now.
    pub fn load(&mut self) -> Load {
        let memory_used_bytes = self.system.as_mut().and_then(|system| {
            system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
            i64::try_from(system.used_memory()).ok()
        });
        Load {
            load: System::load_average().ok().map(|average| average.one),
            memory_used_bytes,
        }
    }
}

/// The machine's name; `localhost` when it has none.
pub fn host_name() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_processors_and_memory() {
        let mut observer = Observer::new();
        let host = observer.host();
        assert!(host.cpus >= 1 && host.memory_bytes > 0 && !host.name.is_empty());
        let used = observer.load().memory_used_bytes.unwrap();
        assert!(used > 0 && used <= host.memory_bytes);
    }
}
