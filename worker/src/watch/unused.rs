//! Which attempts compute without the GPUs that were given to them, or as if they did.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use qctl_worker_core::agent::Event;
use qctl_worker_core::gpu::{Fault, FaultKind, GpuShare, IdleWatch, Look, PaceWatch, Use};
use qctl_worker_core::measure::MAX_PROCESSES;

use super::gpu::GpuState;
use super::{Seen, Watched, kernel_file};

/// Where numbers of processes are those that drivers tell: the first namespace, by the number that
/// Linux gives it (`PROC_PID_INIT_INO` in `include/linux/proc_ns.h`).
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

/// How the process begins that computes for all clients of NVIDIA's MPS, as far as the kernel keeps it.
const MPS_SERVER: &str = "nvidia-cuda-mps";

/// Counts for every attempt with GPUs how long it has not used them.
#[derive(Debug)]
pub(super) struct Unused {
    watches: BTreeMap<i64, (IdleWatch, PaceWatch)>,
    /// A process has the number here that the driver tells.
    numbers_agree: bool,
}

impl Unused {
    pub(super) fn new() -> Self {
        let namespace = std::fs::read_link("/proc/self/ns/pid");
        Self {
            watches: BTreeMap::new(),
            numbers_agree: namespace.is_ok_and(|name| name == Path::new(FIRST_NAMESPACE)),
        }
    }

    /// Takes what was seen at `now`, a monotonic time. Tells of an attempt at every look from the one
    /// on that is too much; the agent stops it once.
    pub(super) fn look(
        &mut self,
        gpus: &GpuState,
        attempts: &BTreeMap<i64, Watched>,
        seen: &Seen,
        now: Duration,
    ) -> Vec<Event> {
        self.watches.retain(|fence, _| attempts.contains_key(fence));
        let mut found = Vec::new();
        for (fence, tree) in &seen.trees {
            let Some(watched) = attempts.get(fence) else {
                continue;
            };
            let (Some(window), false) = (watched.gpu_idle, watched.gpus.is_empty()) else {
                continue;
            };
            let own = gpus.of(&watched.gpus);
            let processes = seen.processes.get(fence).map_or(&[][..], Vec::as_slice);
            // Of a tree that was not read to its end nobody can say what is not in it.
            let whole = processes.len() < MAX_PROCESSES;
            let is_known = |pid: u32| {
                let name = || kernel_file(format!("/proc/{pid}/comm"));
                let is_told = whole && self.numbers_agree;
                is_told && name().is_some_and(|name| !name.starts_with(MPS_SERVER))
            };
            let all_told = own.len() == watched.gpus.len();
            let work = match all_told {
                true => Use::of_gpu(&own, processes, is_known),
                false => None,
            };
            let used = Use {
                gpu: work.map(|work| work.works()),
                cpus: tree.cpus,
                cpus_waited_for: tree.cpus_waited_for.unwrap_or(0.0),
                bytes: tree.read_rate.unwrap_or(0.0) + tree.write_rate.unwrap_or(0.0),
            };
            let (idle, pace) = self.watches.entry(*fence).or_default();
            let unused = idle.observe(used, window, now);
            let unused = unused.zip(work).map(|(unused, work)| FaultKind::Unused {
                seconds: unused.as_secs(),
                hidden: work.hidden,
            });
            let slow = watched.usual.as_ref().and_then(|usual| {
                let look = Look {
                    progress: watched.progress.as_ref(),
                    gpu: match (work, all_told) {
                        (Some(work), _) => GpuShare::Busy(work.busy),
                        (None, true) => GpuShare::Unreadable,
                        (None, false) => GpuShare::Unknown,
                    },
                    computes: used.computes(),
                };
                let item = pace.observe(look, usual, window, now)?;
                Some(FaultKind::Slow {
                    item,
                    usual: usual.item,
                })
            });
            if let (Some(kind), Some(gpu)) = (unused.or(slow), own.first()) {
                found.push(Event::GpuUnused {
                    fence: *fence,
                    fault: Fault {
                        gpu: gpu.uuid.clone(),
                        name: gpu.name.clone(),
                        kind,
                    },
                });
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use qctl_worker_core::gpu::GpuReading;
    use qctl_worker_core::measure::TreeSample;

    use super::*;

    /// Whether a job that computes beside a GPU which works for this process is found.
    fn found(numbers_agree: bool, tree: Vec<u32>) -> bool {
        let uuid = "GPU-1".to_owned();
        let gpus = GpuState::Read(vec![GpuReading {
            uuid: uuid.clone(),
            busy: Some(0.5),
            processes: Some(vec![std::process::id()]),
            ..GpuReading::default()
        }]);
        let window = Duration::from_secs(5);
        let watched = Watched {
            gpus: vec![uuid],
            gpu_idle: Some(window),
            ..Watched::default()
        };
        let computes = TreeSample {
            cpus: Some(1.0),
            ..TreeSample::default()
        };
        let seen = Seen {
            trees: vec![(7, computes)],
            processes: BTreeMap::from([(7, tree)]),
            ..Seen::default()
        };
        let attempts = BTreeMap::from([(7, watched)]);
        let mut unused = Unused {
            numbers_agree,
            ..Unused::new()
        };
        let mut look = |now| !unused.look(&gpus, &attempts, &seen, now).is_empty();
        assert!(!look(Duration::ZERO), "there was no look before");
        look(window)
    }

    #[test]
    fn the_work_of_others_counts_only_where_nobody_can_tell_whose_it_is() {
        assert!(!found(true, vec![std::process::id()]));
        assert!(found(true, vec![1]));
        assert!(!found(false, vec![1]), "as in a container");
        assert!(!found(true, vec![1; MAX_PROCESSES]), "not read to its end");
    }
}
