//! One round of the dispatcher: what is read for it, what is asked back, and what is assigned. The
//! rules of placing are [`crate::placement`]'s.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::id::{AttemptNumber, Fence, JobId, WorkerId};
use crate::job;
use crate::placement::{Candidate, Placed, Placement, Worker};
use crate::spec::JobSpec;

/// Jobs in one look at the queue, at most.
pub const WINDOW: i64 = 500;
/// Mean run time below which keeping a job ready at a worker pays.
const QUICK: Duration = Duration::from_secs(2);
/// Work that is kept ready at a worker with shorter jobs: enough for a commit on a slow disk.
const READY_FOR: Duration = Duration::from_millis(50);
/// Most jobs that are kept ready.
const MAX_READY: usize = 16;

/// Workers with what occupies them.
#[derive(Clone, Debug, PartialEq)]
pub struct Fleet {
    /// The workers that were asked for, as far as they exist.
    pub workers: Vec<Worker>,
    /// The queue is paused.
    pub queue_paused: bool,
    /// A person wants a job to start now.
    pub run_now: bool,
    /// When the oldest attempt that runs there started, by worker.
    pub oldest_start: Vec<Option<DateTime<Utc>>>,
}

/// A queued job with what placing it needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct QueuedJob {
    /// What is offered.
    pub candidate: Candidate,
    /// Its priority.
    pub priority: i32,
    /// Worker that must start it now, beside its slots.
    pub run_now_on: Option<WorkerId>,
    /// The newest checkpoint that it can resume from.
    pub checkpoint: Option<Newest>,
}

/// The newest checkpoint that a job can resume from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newest {
    /// The worker that has it.
    pub worker: WorkerId,
    /// Folder with its contents there.
    pub folder: String,
    /// The coordinator has a copy, so that every worker can resume from it.
    pub uploaded: bool,
}

/// An assignment to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct NewAssignment {
    /// The job.
    pub job: JobId,
    /// The worker.
    pub worker: WorkerId,
    /// The worker's name.
    pub worker_name: String,
    /// The boot it runs in.
    pub boot_id: String,
    /// The spool it owns.
    pub spool_id: Uuid,
    /// The GPUs that the attempt gets.
    pub gpus: Vec<String>,
    /// It starts beside the slots.
    pub beside_slots: bool,
    /// Folder to resume from when it is the worker's own; empty otherwise.
    pub resume_from: String,
    /// There is a checkpoint somewhere: the worker is told which it may resume from.
    pub resumable: bool,
    /// One word for why the job is where it is.
    pub reason: &'static str,
    /// The same in a sentence.
    pub message: String,
}

/// An assignment that was made.
#[derive(Clone, Debug, PartialEq)]
pub struct MadeAssignment {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub fence: Fence,
    /// Its number within the job.
    pub number: AttemptNumber,
    /// What to run.
    pub spec: JobSpec,
}

/// Which queued jobs to load.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Behind this place; `None` begins at the front.
    pub after: Option<(i32, JobId)>,
    /// At most this many.
    pub limit: i64,
}

/// A connected worker, as an assignment names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The worker.
    pub worker: WorkerId,
    /// Its name.
    pub name: String,
    /// The boot it runs in.
    pub boot_id: String,
    /// The spool it owns.
    pub spool_id: Uuid,
}

/// What a round has decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decided {
    /// Attempts to be asked back, before anything is assigned: a worker never has two jobs ready
    /// because of one that must make room.
    pub ask_back: Vec<Fence>,
    /// Assignments to be made, in order.
    pub assign: Vec<NewAssignment>,
}

/// One round: jobs that a person wants now come first, then the queue window by window.
#[derive(Clone, Debug)]
pub struct Round {
    placement: Placement,
    accepting: Vec<Worker>,
    targets: HashMap<WorkerId, Target>,
    taken: HashSet<JobId>,
    assign: Vec<NewAssignment>,
}

impl Round {
    /// Begins with the workers that are connected, and who they are.
    pub fn new(
        workers: Vec<Worker>,
        targets: impl IntoIterator<Item = Target>,
        now: DateTime<Utc>,
    ) -> Self {
        Self {
            accepting: workers
                .iter()
                .filter(|worker| worker.accepts)
                .cloned()
                .collect(),
            placement: Placement::new(workers, now),
            targets: targets
                .into_iter()
                .map(|target| (target.worker, target))
                .collect(),
            taken: HashSet::new(),
            assign: Vec::new(),
        }
    }

    /// Workers that take jobs.
    pub fn accepting(&self) -> &[Worker] {
        &self.accepting
    }

    /// Leaves jobs where they are in this round.
    pub fn leave(&mut self, jobs: impl IntoIterator<Item = JobId>) {
        self.taken.extend(jobs);
    }

    /// Takes a job that a person wants to start now, when its worker is there and has room for it.
    pub fn start_now(&mut self, queued: &QueuedJob) {
        let target = queued.run_now_on.and_then(|id| self.targets.get(&id));
        let Some(target) = target else { return };
        if self.taken.contains(&queued.candidate.job) {
            return;
        }
        let placed = self
            .placement
            .place_now(target.worker, &queued.candidate.demand);
        if let Some(gpus) = placed {
            self.taken.insert(queued.candidate.job);
            self.assign.push(assignment(queued, target, gpus, true));
        }
    }

    /// The part of the queue to look at first; `None` when it is of no use to look.
    pub fn first_window(&self) -> Option<Window> {
        // One more than there is room for, so that the first that has to wait reserves.
        let places = i64::try_from(self.placement.places()).unwrap_or(WINDOW);
        (!self.accepting.is_empty() && places > 0).then(|| Window {
            after: None,
            limit: (places + 1).min(WINDOW),
        })
    }

    /// Offers what a window has brought to the workers. Returns the window to look at next; `None`
    /// when there is nothing more or no room for it.
    pub fn offer(&mut self, window: &Window, jobs: &[QueuedJob]) -> Option<Window> {
        for queued in jobs {
            let candidate = &queued.candidate;
            if !self.placement.wants(candidate.order) {
                return None;
            }
            if self.taken.contains(&candidate.job) {
                continue;
            }
            if let Placed::Assign { worker, gpus } = self.placement.offer(candidate)
                && let Some(target) = self.targets.get(&worker)
            {
                self.taken.insert(candidate.job);
                self.assign.push(assignment(queued, target, gpus, false));
            }
        }
        let last = jobs.last().filter(|_| jobs.len() as i64 == window.limit)?;
        Some(Window {
            after: Some((last.priority, last.candidate.job)),
            limit: WINDOW,
        })
    }

    /// Ends the round.
    pub fn finish(self) -> Decided {
        Decided {
            ask_back: self.placement.finish(),
            assign: self.assign,
        }
    }
}

fn assignment(
    queued: &QueuedJob,
    target: &Target,
    gpus: Vec<String>,
    beside_slots: bool,
) -> NewAssignment {
    let resume_from = match &queued.checkpoint {
        Some(newest) if newest.worker == target.worker && !newest.uploaded => newest.folder.clone(),
        _ => String::new(),
    };
    NewAssignment {
        job: queued.candidate.job,
        worker: target.worker,
        worker_name: target.name.clone(),
        boot_id: target.boot_id.clone(),
        spool_id: target.spool_id,
        gpus,
        beside_slots,
        resume_from,
        resumable: queued.checkpoint.is_some(),
        reason: job::reason::ASSIGNED,
        message: job::assigned_message(&target.name),
    }
}

/// How long jobs have been running on each worker lately.
#[derive(Clone, Debug, Default)]
pub struct Turnover(HashMap<WorkerId, Duration>);

impl Turnover {
    /// Notes an attempt's run time.
    pub fn note(&mut self, worker: WorkerId, duration: Duration) {
        let mean = self.0.entry(worker).or_insert(duration);
        *mean = (*mean + duration) / 2;
    }

    /// How many jobs the worker may keep ready beyond its slots: none when its jobs have not been
    /// short lately, or the oldest that runs there has been running for long.
    pub fn ready_places(&self, worker: WorkerId, oldest: Option<Duration>) -> usize {
        if oldest.is_some_and(|age| age >= QUICK) {
            return 0;
        }
        match self.0.get(&worker) {
            Some(mean) if *mean < QUICK => {
                let fitting = READY_FOR.as_micros() / mean.as_micros().max(1);
                usize::try_from(fitting)
                    .unwrap_or(MAX_READY)
                    .clamp(1, MAX_READY)
            }
            _ => 0,
        }
    }
}
