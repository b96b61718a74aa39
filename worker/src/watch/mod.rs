//! Looks every few seconds at the processes of every attempt, at the machine, and at its GPUs. What it
//! sees goes to the coordinator with the heartbeats; a look that hangs delays no heartbeat.

pub mod evidence;
mod gpu;
mod look;
pub mod nvml;
mod report;
mod unused;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use qctl_proto::v1;
use qctl_worker_core::agent::Event;
use qctl_worker_core::gpu::{self as gpus, FaultWatch, Usual};
use qctl_worker_core::measure::{GPU_BUSY, Life, MachineSample, Still, TreeSample};
use qctl_worker_core::progress::Reading;
use qctl_worker_core::silence::Evidence;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::follower::{Fact, Note};
use crate::inventory::gpu::{Gpu, Nvml};
use crate::wire;
use gpu::GpuState;
use look::Looker;
use unused::Unused;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(5);

/// The first process of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leader {
    pid: i32,
    /// Start time in clock ticks after boot.
    start_ticks: u64,
}

/// An attempt that is watched.
#[derive(Clone, Debug, Default, PartialEq)]
struct Watched {
    /// UUIDs of its GPUs.
    gpus: Vec<String>,
    /// How long it may leave them unused; `None` for ever.
    gpu_idle: Option<Duration>,
    /// How long its items took in earlier runs.
    usual: Option<Usual>,
    /// How far it is.
    progress: Option<Reading>,
    leader: Option<Leader>,
}

/// What was seen at one look.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    machine: MachineSample,
    /// Attempts, by fence.
    trees: Vec<(i64, TreeSample)>,
    /// The processes of each.
    processes: BTreeMap<i64, Vec<u32>>,
}

/// The watcher. Its thread ends with its last clone.
#[derive(Clone, Debug)]
pub(crate) struct Watcher(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    attempts: Mutex<BTreeMap<i64, Watched>>,
    /// What was seen and not told yet.
    seen: Mutex<Option<Seen>>,
    gpus: Mutex<GpuState>,
    /// When each attempt was last seen to work.
    lives: Mutex<BTreeMap<i64, Life>>,
    /// What this worker says about GPUs that a job leaves unused.
    gpu_idle: Option<Duration>,
}

impl Watcher {
    /// Starts looking. `folder` is where the worker writes; its file system is watched. `gpu_idle` is
    /// how long a job that says nothing about that may leave its GPUs unused; `tell` hears of those that
    /// do for longer.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub(crate) fn start(
        folder: PathBuf,
        gpu_idle: Option<Duration>,
        tell: mpsc::UnboundedSender<Event>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            gpu_idle,
            ..Shared::default()
        });
        let weak = Arc::downgrade(&shared);
        std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || look_until_dropped(&weak, folder, &tell))?;
        Ok(Self(shared))
    }

    /// Watches the GPUs until `stop`, and tells what is wrong with them, and in `seen` which there are.
    pub(crate) async fn watch_gpus(
        self,
        nvml: Nvml,
        tell: mpsc::UnboundedSender<Event>,
        seen: watch::Sender<Vec<Gpu>>,
        stop: CancellationToken,
    ) {
        let mut faults = FaultWatch::default();
        let told = |state| {
            // Nobody listens when the agent is ending.
            let tell = |event| drop(tell.send(event));
            let mut here = Vec::new();
            let found = match &state {
                GpuState::Read(gpus) => {
                    here.extend(gpus.iter().filter(|gpu| !gpu.lost).map(Gpu::from));
                    tell(Event::GpusSeen(
                        gpus.iter().map(|gpu| gpu.uuid.clone()).collect(),
                    ));
                    faults.observe(gpus)
                }
                GpuState::Hung => faults.silent(),
                // The probe before the next start finds out what that means.
                GpuState::Unknown | GpuState::Absent | GpuState::Failed(_) => Vec::new(),
            };
            found.into_iter().map(Event::GpuFailed).for_each(tell);
            seen.send_if_modified(|before| {
                let is_news = *before != here;
                *before = here;
                is_news
            });
            locked(&self.0.gpus).replace(state);
        };
        stop.run_until_cancelled(gpu::watch(&nvml, told)).await;
    }

    /// Takes what a segment tells: an attempt is watched from its start until no process is left.
    pub(crate) fn note(&self, note: &Note) {
        let mut attempts = locked(&self.0.attempts);
        match &note.fact {
            Fact::Assigned(assignment) => {
                let watched = Watched {
                    gpus: assignment.gpus.clone(),
                    gpu_idle: self.gpu_idle(assignment),
                    usual: wire::usual_item(assignment),
                    ..Watched::default()
                };
                attempts.insert(note.fence, watched);
            }
            Fact::Started(started) => {
                attempts.entry(note.fence).or_default().leader = Some(Leader {
                    pid: started.pid,
                    start_ticks: started.start_ticks,
                });
            }
            Fact::Progress(reading) => {
                if let Some(watched) = attempts.get_mut(&note.fence) {
                    watched.progress = Some(reading.clone());
                }
            }
            Fact::Void(_) | Fact::Freed => {
                attempts.remove(&note.fence);
            }
            _ => {}
        }
    }

    /// Nothing is left of an attempt.
    pub(crate) fn leave(&self, fence: i64) {
        locked(&self.0.attempts).remove(&fence);
    }

    /// How long an attempt may leave its GPUs unused; `None` for ever.
    fn gpu_idle(&self, assignment: &v1::Assignment) -> Option<Duration> {
        let told = |wire: Option<prost_types::Duration>| wire.and_then(crate::wire::duration);
        let job = assignment.spec.as_ref().and_then(|spec| spec.gpu_idle);
        gpus::window(
            told(job),
            self.0.gpu_idle,
            told(assignment.default_gpu_idle),
        )
    }

    /// Whether an attempt that is to use its GPUs could leave them unused and nobody would see it.
    pub(crate) fn gpu_use_is_unseen(&self, assignment: &v1::Assignment) -> bool {
        !assignment.gpus.is_empty()
            && self.gpu_idle(assignment).is_some()
            && locked(&self.0.gpus).hides_use(&assignment.gpus)
    }

    /// Attempts whose GPUs work now.
    pub(crate) fn working_gpus(&self) -> Vec<i64> {
        let gpus = locked(&self.0.gpus);
        let attempts = locked(&self.0.attempts);
        let works = |watched: &Watched| {
            let busy = busiest(&gpus, &watched.gpus);
            busy.is_some_and(|busy| busy >= GPU_BUSY)
        };
        let working = attempts.iter().filter(|(_, watched)| works(watched));
        working.map(|(fence, _)| *fence).collect()
    }

    /// Finds out what an attempt does; the processes are looked at through `program`.
    pub(crate) async fn look_into(self, fence: i64, program: PathBuf) -> Evidence {
        let now = clock::now();
        let life = locked(&self.0.lives).get(&fence).copied();
        let Still { cpu, io, gpu } = life.unwrap_or_default().still(now);
        let watched = locked(&self.0.attempts).get(&fence).cloned();
        let (processes, stack) = match watched.and_then(|watched| watched.leader) {
            Some(leader) => evidence::look_into(&program, leader).await,
            None => Default::default(),
        };
        Evidence {
            cpu_still: cpu,
            io_still: io,
            gpu_still: gpu,
            processes,
            stack,
            last_lines: String::new(),
        }
    }

    /// What was seen since the last call; nothing when no look has ended since.
    pub(crate) fn measures(&self) -> (Option<v1::MachineMeasures>, Vec<v1::AttemptMeasures>) {
        let Some(seen) = locked(&self.0.seen).take() else {
            return (None, Vec::new());
        };
        let mut gpus = locked(&self.0.gpus);
        let attempts = locked(&self.0.attempts);
        let trees = seen.trees.iter().map(|(fence, tree)| {
            let uuids = attempts.get(fence).map_or(&[][..], |watched| &watched.gpus);
            report::attempt(*fence, tree, gpus.of(uuids))
        });
        let trees = trees.collect();
        (Some(report::machine(&seen.machine, gpus.tell())), trees)
    }
}

fn look_until_dropped(shared: &Weak<Shared>, folder: PathBuf, tell: &mpsc::UnboundedSender<Event>) {
    let mut looker = Looker::new(folder);
    let mut unused = Unused::new();
    loop {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let attempts = locked(&shared.attempts).clone();
        let leaders = attempts
            .iter()
            .filter_map(|(fence, watched)| Some((*fence, watched.leader?)))
            .collect();
        let mut seen = looker.look(&leaders);
        note_lives(&shared, &attempts, &seen);
        let found = unused.look(&locked(&shared.gpus), &attempts, &seen, clock::now());
        // Nobody listens when the agent is ending.
        found.into_iter().for_each(|event| drop(tell.send(event)));
        let mut waiting = locked(&shared.seen);
        if let Some(earlier) = &*waiting {
            // Nobody was told of these, and they do not show in a later look.
            seen.machine.add_events(&earlier.machine);
        }
        *waiting = Some(seen);
        drop(waiting);
        drop(shared);
        std::thread::sleep(EVERY);
    }
}

fn note_lives(shared: &Shared, attempts: &BTreeMap<i64, Watched>, seen: &Seen) {
    let now = clock::now();
    let gpus = locked(&shared.gpus);
    let mut lives = locked(&shared.lives);
    lives.retain(|fence, _| attempts.contains_key(fence));
    for (fence, tree) in &seen.trees {
        let own: &[String] = attempts.get(fence).map_or(&[], |watched| &watched.gpus);
        let io = match (tree.read_rate, tree.write_rate) {
            (None, None) => None,
            (read, write) => Some(read.unwrap_or(0.0) + write.unwrap_or(0.0)),
        };
        let life = lives.entry(*fence).or_default();
        life.observe(now, tree.cpus, io, busiest(&gpus, own));
    }
}

/// The use of the busiest of these GPUs.
fn busiest(gpus: &GpuState, uuids: &[String]) -> Option<f64> {
    let busy = gpus.of(uuids).into_iter().filter_map(|gpu| gpu.busy);
    busy.reduce(f64::max)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a file of the kernel; `None` when it is not there or may not be read.
fn kernel_file(path: impl AsRef<Path>) -> Option<String> {
    let bytes = std::fs::read(path).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
