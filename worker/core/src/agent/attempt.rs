//! An attempt that this worker holds, put together from the facts of its segment.

use std::time::Duration;

use super::message::Ask;
use crate::adoption::{Evidence, Finding, judge};
use crate::enforcement::StopCause;
use crate::gpu::Fault;
use crate::progress::Reading;
use crate::roster::{ShimId, Waiting};
use crate::session::Stage;
use crate::silence::{self, Silence, Told};

/// What the agent must remember of an assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The job.
    pub job_id: i64,
    /// The attempt's number within the job.
    pub attempt: i32,
    /// The boot in which alone it may start.
    pub boot_id: String,
    /// The spool whose owner alone may start it.
    pub spool_id: String,
    /// Slots it takes.
    pub slots: u32,
    /// It starts at once, whatever is taken.
    pub beside_slots: bool,
    /// It must not run twice at a time, so it ends when its lease does.
    pub exclusive: bool,
    /// Time between the stop signal and force.
    pub grace: Duration,
    /// UUIDs of the GPUs that are given to it.
    pub gpus: Vec<String>,
    /// GPUs that it asked for.
    pub gpus_wanted: u32,
}

impl Terms {
    /// As the roster sees it while it waits.
    pub fn waiting(&self, fence: i64) -> Waiting {
        Waiting {
            fence,
            slots: self.slots,
            beside_slots: self.beside_slots,
            prepared: true,
        }
    }
}

/// A process that was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its process id.
    pub pid: i32,
    /// Its start time in clock ticks after boot.
    pub start_ticks: u64,
    /// When, in microseconds since the Unix epoch.
    pub wall_us: i64,
    /// Limits that are not enforced, each a sentence.
    pub not_enforced: Vec<String>,
}

/// What became of an attempt's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// wait returned an exit code or a signal.
    Waited,
    /// It could not be started.
    CannotStart,
    /// It was never started and never will be.
    NeverStarted,
    /// The shim vanished; how the process ended is unknown.
    ShimLost,
    /// The machine was restarted; how the process ended is unknown.
    MachineLost,
    /// Something that a newer shim wrote and this program does not know.
    Unknown,
}

/// The recorded facts of an attempt's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// What became of the process.
    pub end: End,
    /// Exit status, when it exited.
    pub exit_code: Option<i32>,
    /// Signal, when one ended it.
    pub signal: Option<i32>,
    /// Why the shim stopped it, when it acted before wait returned.
    pub stop_cause: Option<StopCause>,
    /// The kernel killed it for memory.
    pub out_of_memory: bool,
    /// When its process was started, in microseconds since the Unix epoch.
    pub started_us: Option<i64>,
    /// When it ended, in microseconds since the Unix epoch.
    pub ended_us: Option<i64>,
    /// Run time without pauses.
    pub duration: Option<Duration>,
    /// Bytes of output in all.
    pub log_end: u64,
    /// CRC-32C over all of them.
    pub log_crc32c: u32,
    /// The checkpoint directory, when something is in it.
    pub checkpoint: String,
    /// For people.
    pub message: String,
    /// Its process id; 0 when there was none.
    pub pid: i32,
    /// Limits that were not enforced, each a sentence.
    pub not_enforced: Vec<String>,
    /// A GPU that was assigned to it failed.
    pub gpu_fault: bool,
    /// What is wrong with it, or with how it was used.
    pub gpu: Option<Fault>,
    /// The line of its output that contradicts exit 0; empty when none does.
    pub contradiction: String,
    /// The end of its output tells that a GPU had no memory left.
    pub gpu_out_of_memory: bool,
    /// It exited with the code that means "checkpointed, run me again".
    pub checkpointed: bool,
}

impl Ended {
    /// An end of which nothing else is known.
    pub fn of(end: End) -> Self {
        Self {
            end,
            exit_code: None,
            signal: None,
            stop_cause: None,
            out_of_memory: false,
            started_us: None,
            ended_us: None,
            duration: None,
            log_end: 0,
            log_crc32c: 0,
            checkpoint: String::new(),
            message: String::new(),
            pid: 0,
            not_enforced: Vec::new(),
            gpu_fault: false,
            gpu: None,
            contradiction: String::new(),
            gpu_out_of_memory: false,
            checkpointed: false,
        }
    }
}

/// Something that a segment tells about an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// A shim took the assignment.
    Assigned(Box<Terms>),
    /// Its process is about to be started.
    Starting {
        /// Where its checkpoints go.
        checkpoint_dir: String,
        /// When, in microseconds since the Unix epoch.
        wall_us: i64,
    },
    /// Its process exists.
    Started(Started),
    /// The shim began to stop it.
    Stopping(StopCause),
    /// Its tree was frozen or thawed.
    Paused(bool),
    /// So much of its output is recorded.
    Output {
        /// Position behind the last byte.
        end: u64,
        /// CRC-32C over everything before.
        crc32c: u32,
        /// When the last of it was read, in microseconds since the Unix epoch.
        wall_us: i64,
    },
    /// It is so far.
    Progress(Reading),
    /// It ended.
    Ended(Box<Ended>),
    /// It never started and never will.
    Void(String),
    /// Processes of it do not end although they were killed.
    Stuck(Vec<i32>),
    /// Its silence has come to a stage, or is over.
    Silence(Box<Told>),
    /// It says that it has published a checkpoint.
    Bell,
    /// No process of it is left.
    Freed,
}

/// What changed, as far as someone must be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    Progress,
    Started,
    Paused,
    Bell,
    Ended,
    Stuck,
    Silence,
    Freed,
}

/// A wish to end an attempt.
#[derive(Clone, Debug)]
pub(super) struct Stop {
    pub(super) cause: StopCause,
    /// Time between the stop signal and force, instead of the job's own.
    pub(super) grace: Option<Duration>,
    /// What is wrong with its GPU, where that is the cause.
    pub(super) gpu: Option<Fault>,
}

impl Stop {
    pub(super) fn ask(self, fence: i64) -> Ask {
        let Self { cause, grace, gpu } = self;
        Ask::Stop {
            fence,
            cause,
            grace,
            gpu,
        }
    }
}

/// An attempt.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) terms: Terms,
    /// The shim that has it; none while it waits.
    pub(super) shim: Option<ShimId>,
    /// What is still to be done before it can run.
    pub(super) preparing: u32,
    /// Its shim has written that it has it.
    pub(super) taken: bool,
    /// Somebody wants it to end: why, and with what grace period.
    pub(super) stop: Option<Stop>,
    /// Somebody wants it frozen, or thawed again.
    pub(super) pause: Option<bool>,
    starting: bool,
    checkpoint_dir: String,
    pub(super) started: Option<Started>,
    stopping: Option<StopCause>,
    pub(super) paused: Option<bool>,
    /// The newest progress.
    pub(super) progress: Option<Reading>,
    pub(super) log_end: u64,
    log_crc32c: u32,
    /// When something was recorded last, in microseconds since the Unix epoch.
    wall_us: i64,
    pub(super) ended: Option<Box<Ended>>,
    freed: bool,
    /// Its processes that do not end although they were killed, until that was told.
    pub(super) stuck: Option<Vec<i32>>,
    /// The stages of its newest silence, as they came. Of one that is over, only that.
    pub(super) silence: Vec<Told>,
    /// The last greeting said that processes of it may be left.
    greeted_with_slot: bool,
    /// It has ended, and what it published is still being looked for: its end is not told before.
    pub(super) looking: bool,
    /// The coordinator has the result.
    pub(super) committed: bool,
    /// The coordinator has this much of the output.
    pub(super) log_stored: u64,
    /// Since when nothing is owed to the coordinator.
    pub(super) settled_at: Option<Duration>,
}

impl Held {
    /// An attempt that waits.
    pub(super) fn waiting(terms: Terms) -> Self {
        Self {
            terms,
            shim: None,
            preparing: 0,
            taken: false,
            stop: None,
            pause: None,
            starting: false,
            checkpoint_dir: String::new(),
            started: None,
            stopping: None,
            paused: None,
            progress: None,
            log_end: 0,
            log_crc32c: 0,
            wall_us: 0,
            ended: None,
            freed: false,
            stuck: None,
            silence: Vec::new(),
            greeted_with_slot: false,
            looking: false,
            committed: false,
            log_stored: 0,
            settled_at: None,
        }
    }

    /// Takes a fact. This is the only place where an attempt's state changes.
    pub(super) fn apply(&mut self, fact: Fact) -> Change {
        match fact {
            Fact::Assigned(_) => self.taken = true,
            Fact::Starting {
                checkpoint_dir,
                wall_us,
            } => {
                self.starting = true;
                self.checkpoint_dir = checkpoint_dir;
                self.wall_us = wall_us;
            }
            Fact::Started(started) => {
                self.wall_us = started.wall_us;
                self.started = Some(started);
                return Change::Started;
            }
            Fact::Stopping(cause) => self.stopping = Some(cause),
            Fact::Paused(paused) => {
                self.paused = Some(paused);
                return Change::Paused;
            }
            Fact::Output {
                end,
                crc32c,
                wall_us,
            } => {
                self.log_end = end;
                self.log_crc32c = crc32c;
                self.wall_us = wall_us;
            }
            Fact::Progress(reading) => {
                self.progress = Some(reading);
                return Change::Progress;
            }
            Fact::Silence(told) if self.ended.is_none() => {
                let Silence { episode, stage, .. } = told.silence;
                self.silence.retain(|before| {
                    let before = before.silence;
                    stage != silence::Stage::Over
                        && before.episode == episode
                        && before.stage < stage
                });
                self.silence.push(*told);
                return Change::Silence;
            }
            Fact::Bell => return Change::Bell,
            Fact::Ended(ended) if self.ended.is_none() => {
                self.looking = !ended.checkpoint.is_empty();
                self.ended = Some(ended);
                return Change::Ended;
            }
            Fact::Void(reason) if self.ended.is_none() => {
                self.freed = true;
                let message = reason;
                self.ended = Some(Box::new(Ended {
                    message,
                    ..Ended::of(End::NeverStarted)
                }));
                return Change::Ended;
            }
            Fact::Stuck(pids) if !self.freed => {
                self.stuck = Some(pids);
                return Change::Stuck;
            }
            Fact::Freed if !self.freed => {
                self.freed = true;
                self.stuck = None;
                return Change::Freed;
            }
            Fact::Ended(_) | Fact::Void(_) | Fact::Stuck(_) | Fact::Silence(_) | Fact::Freed => {}
        }
        Change::Nothing
    }

    /// How far it has come.
    pub(super) fn stage(&self) -> Stage {
        if self.ended.is_some() {
            Stage::Ended
        } else if self.shim.is_some() {
            Stage::Running
        } else {
            Stage::Waiting
        }
    }

    /// Processes of it may be left.
    pub(super) fn slot_held(&self) -> bool {
        self.shim.is_some() && !self.freed
    }

    /// A shim was given it and has not written that it has it.
    pub(super) fn is_on_its_way(&self) -> bool {
        self.shim.is_some() && !self.taken && self.ended.is_none()
    }

    /// Its output has reached the coordinator to the end, and the result too.
    pub(super) fn settled(&self) -> bool {
        let ended = self.ended.as_ref();
        self.committed && self.freed && ended.is_some_and(|ended| self.log_stored >= ended.log_end)
    }

    /// It has exited with 0 by itself and left something in its folder for checkpoints: nobody will
    /// look into that, as a person may after a failure.
    pub(super) fn leaves_nothing_to_look_at(&self) -> bool {
        self.ended.as_ref().is_some_and(|ended| {
            ended.end == End::Waited
                && ended.exit_code == Some(0)
                && ended.stop_cause.is_none()
                && ended.contradiction.is_empty()
                && !ended.checkpointed
                && !ended.checkpoint.is_empty()
        })
    }

    /// Notes what the greeting says; returns whether processes of it may be left.
    pub(super) fn greet(&mut self) -> bool {
        self.greeted_with_slot = self.slot_held();
        self.greeted_with_slot
    }

    /// Its last process ended after the greeting, which said otherwise.
    pub(super) fn freed_since_greeting(&self) -> bool {
        self.greeted_with_slot && !self.slot_held()
    }

    /// What to judge it by when its shim is gone.
    fn evidence(&self, boot_id: &str) -> Evidence {
        let void = |ended: &Ended| ended.end == End::NeverStarted;
        let ended = self.ended.as_deref();
        Evidence {
            same_boot: self.terms.boot_id == boot_id,
            starting: self.starting,
            exit: ended.is_some_and(|ended| !void(ended)),
            void: ended.is_some_and(void),
            freed: self.freed,
        }
    }
}

const SHIM_LOST: &str = "the process that watched over the job vanished, so its end was not seen";
const MACHINE_LOST: &str = "the machine was restarted while the job ran, so its end was not seen";
const NEVER_STARTED: &str = "the process that was to start the job vanished before it did";

/// An attempt of a vanished shim, and what must be done about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// The attempt.
    pub fence: i64,
    /// What must be done.
    pub finding: Finding,
    /// What was agreed about it.
    pub terms: Terms,
    /// Its first process, when it is known.
    pub started: Option<Started>,
    /// Where its checkpoints went; empty when nowhere.
    pub checkpoint_dir: String,
    stopping: Option<StopCause>,
    log_end: u64,
    log_crc32c: u32,
    last_seen_us: i64,
}

impl Loss {
    /// Judges an attempt; `None` when nothing is left to do about it.
    pub(super) fn of(fence: i64, held: &Held, boot_id: &str) -> Option<Self> {
        let finding = judge(held.evidence(boot_id));
        (finding != Finding::Settled).then(|| Self {
            fence,
            finding,
            terms: held.terms.clone(),
            started: held.started.clone(),
            checkpoint_dir: held.checkpoint_dir.clone(),
            stopping: held.stopping,
            log_end: held.log_end,
            log_crc32c: held.log_crc32c,
            last_seen_us: held.wall_us,
        })
    }

    /// True when processes of it may be left, and must be ended before [`Loss::facts`] are true.
    pub fn unswept(&self) -> bool {
        matches!(self.finding, Finding::Sweep | Finding::SweepRest)
    }

    /// What is true of it once no process of it is left. It was gone at `at_us` at the latest, in
    /// microseconds since the Unix epoch; `checkpoint` is its checkpoint directory if something is
    /// in that.
    pub fn facts(&self, at_us: i64, checkpoint: String) -> Vec<Fact> {
        match self.finding {
            Finding::Settled => Vec::new(),
            Finding::NeverStarted => vec![Fact::Void(NEVER_STARTED.to_owned())],
            Finding::MachineLost => self.lost(End::MachineLost, MACHINE_LOST, at_us, checkpoint),
            Finding::Sweep => self.lost(End::ShimLost, SHIM_LOST, at_us, checkpoint),
            Finding::SweepRest => vec![Fact::Freed],
        }
    }

    fn lost(&self, end: End, message: &str, at_us: i64, checkpoint: String) -> Vec<Fact> {
        let at_us = at_us.max(self.last_seen_us);
        let started_us = self.started.as_ref().map(|started| started.wall_us);
        let ran = started_us
            .map(|started| Duration::from_micros(at_us.saturating_sub(started).max(0) as u64));
        let ended = Ended {
            stop_cause: self.stopping,
            started_us,
            ended_us: Some(at_us),
            duration: ran,
            log_end: self.log_end,
            log_crc32c: self.log_crc32c,
            checkpoint,
            message: message.to_owned(),
            pid: self.started.as_ref().map_or(0, |started| started.pid),
            not_enforced: self
                .started
                .as_ref()
                .map(|started| started.not_enforced.clone())
                .unwrap_or_default(),
            ..Ended::of(end)
        };
        vec![Fact::Ended(Box::new(ended)), Fact::Freed]
    }
}
