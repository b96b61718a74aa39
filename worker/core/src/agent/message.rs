//! What the agent is told, and what it wants done.

use std::time::Duration;

use crate::agent::attempt::{Ended, Fact, Loss, Started, Terms};
use crate::checkpoint::{Answer, CheckpointId, Published};
use crate::enforcement::StopCause;
use crate::gpu::{Depth, Fault};
use crate::progress::Reading;
use crate::roster::ShimId;
use crate::session::{Stage, TermPassed, Verdict};
use crate::silence::{Evidence, Silence, Told};

/// What the coordinator answered to a greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The coordinator's leadership term.
    pub term: i64,
    /// When the greeting was sent.
    pub greeted_at: Duration,
    /// Slots to keep ready.
    pub slots: u32,
    /// Time between heartbeats; none leaves what there is.
    pub heartbeat_interval: Option<Duration>,
    /// Silence after which the coordinator gives attempts away.
    pub lost_after: Option<Duration>,
    /// What to do about each attempt of the greeting.
    pub verdicts: Vec<Judged>,
}

/// The coordinator's verdict about one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The attempt.
    pub fence: i64,
    /// What to do about it.
    pub verdict: Verdict,
    /// Bytes of its output that the coordinator has.
    pub log_stored: u64,
}

/// An assignment, as far as the agent decides by it. Whoever drives the agent keeps the rest, until
/// [`Effect::Discard`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The attempt.
    pub fence: i64,
    /// The leadership term in which it was made.
    pub term: i64,
    /// What was agreed about it.
    pub terms: Terms,
    /// It names something to run.
    pub runnable: bool,
    /// Something must be done before it can run, such as looking after the checkpoint it resumes
    /// from. It can be revoked meanwhile.
    pub prepare: bool,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// At the start, before [`Event::Began`]: an earlier agent's shim has left a segment. What it
    /// tells follows as [`Event::Facts`].
    Found(ShimId),
    /// At the start: everything that the segment held when it was found has been told.
    Adopted {
        /// The shim.
        shim: ShimId,
        /// It lives and has been linked to. Otherwise its segment belongs to this agent.
        lives: bool,
    },
    /// Everything that an earlier agent left is known.
    Began,

    /// A greeting is about to be sent. Answered by [`Effect::Greet`] at once.
    Greeting,
    /// The coordinator has answered the greeting.
    Welcomed(Welcome),
    /// The coordinator answered a heartbeat.
    Answered {
        /// Its number.
        sequence: i64,
        /// The coordinator's term.
        term: i64,
    },
    /// Work.
    Assign(Assignment),
    /// The coordinator takes an assignment back.
    Revoke(i64),
    /// The coordinator stops an attempt.
    Stop {
        /// The attempt.
        fence: i64,
        /// Why.
        cause: StopCause,
        /// Time between the stop signal and force, instead of the job's own.
        grace: Option<Duration>,
    },
    /// The coordinator freezes or thaws an attempt.
    SetPaused {
        /// The attempt.
        fence: i64,
        /// True freezes.
        paused: bool,
    },
    /// The coordinator has committed a result.
    Committed(i64),
    /// The coordinator changes how many slots to keep ready.
    SetSlots(u32),
    /// The session is over.
    Closed,

    /// Segments have told something.
    Facts {
        /// The shim that wrote it; none when this agent found it out itself.
        shim: Option<ShimId>,
        /// What, with the attempts it is about.
        facts: Vec<(i64, Fact)>,
    },
    /// A connection to the shim was made, the first one or another.
    Connected(ShimId),
    /// The shim can take an assignment.
    Idle(ShimId),
    /// The shim takes no more.
    Retiring(ShimId),
    /// The shim is gone, its segment was read to the end and belongs to this agent.
    Gone(ShimId),
    /// The shim could not be spawned.
    SpawnFailed(ShimId),

    /// What [`Effect::Prepare`] asked for is done.
    Prepared(i64),
    /// It cannot be done, for this reason.
    Unprepared {
        /// The attempt.
        fence: i64,
        /// Why, for people.
        reason: String,
    },
    /// Checkpoints were published, or more is known of some. At the start, before
    /// [`Event::Began`]: all that there are.
    Published(Vec<Published>),
    /// Everything that an ended attempt published has been told as [`Event::Published`].
    Looked(i64),
    /// The coordinator's answer to a published checkpoint.
    CheckpointAnswered {
        /// Which.
        id: CheckpointId,
        /// What became of it there.
        answer: Answer,
    },
    /// Nobody wants the checkpoints of these jobs any more.
    RemoveCheckpoints(Vec<i64>),
    /// A GPU has failed. What runs on it is stopped, unless the driver is only silent.
    GpuFailed(Fault),
    /// The driver lists these GPUs.
    GpusSeen(Vec<String>),
    /// What [`Effect::Probe`] has found.
    Probed {
        /// The attempt that waits for it.
        fence: Option<i64>,
        /// Each GPU, with what is wrong with it.
        gpus: Vec<(String, Option<Fault>)>,
        /// Those without a fault have computed something.
        computed: bool,
    },
    /// An attempt computes without the GPUs that were given to it, as the fault says.
    GpuUnused {
        /// The attempt.
        fence: i64,
        /// What was seen.
        fault: Fault,
    },
    /// An attempt's output is stored to its end.
    Stored(i64),
    /// What [`Effect::LookInto`] has found.
    LookedInto {
        /// The attempt.
        fence: i64,
        /// The step of its silence.
        silence: Silence,
        /// What was found.
        evidence: Box<Evidence>,
    },
    /// An attempt's GPU works.
    Works(i64),
    /// The machine has slept or its clock was set: nobody knows how much time has passed.
    ClockJumped,
    /// Time has passed.
    Tick,
    /// The agent is to end.
    Ending,
}

/// Something to be done, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Put this into the greeting.
    Greet {
        /// The attempts.
        held: Vec<Holding>,
        /// Checkpoints that were not answered for.
        checkpoints: Vec<Published>,
    },
    /// Remember the term durably, before any other effect of the same step. If that fails, end the
    /// session instead.
    RememberTerm(i64),
    /// Tell the coordinator. [`Say::Progress`] may be left out when too much waits to be told.
    Say(Say),
    /// End the session. [`Event::Closed`] need not follow, and does no harm.
    Close(Close),
    /// Get an assignment ready, then tell [`Event::Prepared`] or [`Event::Unprepared`].
    Prepare(i64),
    /// Probe these GPUs in a process of its own, with a deadline, then tell [`Event::Probed`] of all
    /// of them. None of them is named again before that.
    Probe {
        /// The attempt that waits for it.
        fence: Option<i64>,
        /// Their UUIDs.
        gpus: Vec<String>,
        /// How much of them.
        depth: Depth,
    },
    /// What is kept of the assignment for [`Effect::Prepare`] and [`Effect::Run`] can go.
    Discard(i64),
    /// Start a shim, or tell [`Event::SpawnFailed`].
    Spawn(ShimId),
    /// Nothing is spawned for so long, because this shim ended before it was ready or could not be
    /// spawned.
    PauseSpawning {
        /// The shim.
        shim: ShimId,
        /// For how long.
        pause: Duration,
    },
    /// Hand an assignment to a shim. It may come again for the same shim, which takes a fence once.
    Run {
        /// The shim.
        shim: ShimId,
        /// The attempt.
        fence: i64,
        /// When an exclusive attempt's lease ends, by the agent's clock; in the past for any attempt
        /// that must not begin any more: a shim that has not taken it records that it never starts.
        lease_until: Option<Duration>,
    },
    /// Ask a shim for something.
    Ask {
        /// The shim.
        shim: ShimId,
        /// What.
        ask: Ask,
    },
    /// Deal with attempts of a vanished shim, whose segment this agent owns: end what is left of
    /// their processes, record [`Loss::facts`] in the segment, and tell them as [`Event::Facts`].
    Conclude {
        /// The shim.
        shim: ShimId,
        /// Its attempts.
        losses: Vec<Loss>,
        /// The shim vanished while this agent lived.
        seen: bool,
    },
    /// Remove the segment of a vanished shim: nothing in it is needed.
    RemoveSegment(ShimId),
    /// The coordinator has so much of an attempt's output: send the rest.
    ResumeLog {
        /// The attempt.
        fence: i64,
        /// Bytes that the coordinator has.
        stored: u64,
    },
    /// Send no more of an attempt's output.
    ForgetLog(i64),
    /// Look for checkpoints that an attempt has published and tell new ones as
    /// [`Event::Published`], then, if it has ended, [`Event::Looked`].
    LookForCheckpoints {
        /// The attempt.
        fence: i64,
        /// Its job.
        job_id: i64,
        /// Its number within the job.
        attempt: i32,
        /// It has ended.
        ended: bool,
        /// It exited with the code that means "checkpointed": what is in its folder is published
        /// first.
        publish: bool,
    },
    /// An attempt is silent: find out what it does, soon, then tell [`Event::LookedInto`], whatever was
    /// found.
    LookInto {
        /// The attempt.
        fence: i64,
        /// The step of its silence.
        silence: Silence,
    },
    /// The coordinator has answered for a checkpoint. One that it refuses must not be told again;
    /// one that nobody wants, or whose contents are gone, is removed.
    CheckpointAnswered {
        /// Which.
        published: Published,
        /// The answer.
        answer: Answer,
    },
    /// Remove all checkpoints of a job: nobody wants them.
    RemoveCheckpoints(i64),
    /// Remove what an attempt that ended well left unpublished. Its checkpoints are for the
    /// coordinator to give up.
    RemoveLeftovers {
        /// The job.
        job_id: i64,
        /// The attempt's number within the job.
        attempt: i32,
    },
    /// Look for checkpoints and spools that are old and belong to none of these jobs.
    RemoveOld(Vec<i64>),
}

/// An attempt in a greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The attempt.
    pub fence: i64,
    /// How far it has come.
    pub stage: Stage,
    /// Bytes of output recorded.
    pub log_end: u64,
    /// Processes of it may be left.
    pub slot_held: bool,
}

/// Something to tell the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub enum Say {
    /// The worker lives.
    Heartbeat {
        /// Its number within the session.
        sequence: i64,
    },
    /// An attempt's process exists.
    Started {
        /// The attempt.
        fence: i64,
        /// The process.
        started: Started,
    },
    /// An attempt ended.
    Ended {
        /// The attempt.
        fence: i64,
        /// How.
        ended: Box<Ended>,
    },
    /// Processes of an attempt do not end although they were killed.
    SlotStuck {
        /// The attempt.
        fence: i64,
        /// Their process ids.
        pids: Vec<i32>,
    },
    /// No process of an ended attempt is left.
    SlotFreed(i64),
    /// An assignment is given back, or the answer to a revocation.
    Returned {
        /// The attempt.
        fence: i64,
        /// False when it had already started.
        returned: bool,
        /// Why, for people.
        message: String,
    },
    /// A GPU was found faulty, or passed a probe.
    Gpu {
        /// Its UUID.
        gpu: String,
        /// What is wrong with it.
        fault: Option<Fault>,
        /// It has computed something since it was last in doubt.
        computed: bool,
    },
    /// An assignment is given back because a GPU that was given to it does not work.
    Unfit {
        /// The attempt.
        fence: i64,
        /// What is wrong.
        fault: Fault,
    },
    /// An attempt has published a checkpoint, or more is known of one.
    Checkpoint(Box<Published>),
    /// An attempt is so far.
    Progress {
        /// The attempt.
        fence: i64,
        /// How far.
        reading: Reading,
    },
    /// An attempt's tree was frozen or thawed.
    PauseChanged {
        /// The attempt.
        fence: i64,
        /// True when it is frozen.
        paused: bool,
    },
    /// An attempt's silence has come to a stage, or is over.
    Silence {
        /// The attempt.
        fence: i64,
        /// The step, and what was found.
        told: Box<Told>,
    },
}

/// Something to ask of a shim. All of it may be asked twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Stop the attempt.
    Stop {
        /// The attempt.
        fence: i64,
        /// Why.
        cause: StopCause,
        /// Time between the stop signal and force, instead of the job's own.
        grace: Option<Duration>,
        /// What is wrong with its GPU, where that is the cause.
        gpu: Option<Fault>,
    },
    /// Freeze or thaw the attempt.
    SetPaused {
        /// The attempt.
        fence: i64,
        /// True freezes.
        paused: bool,
    },
    /// The lease of an exclusive attempt holds until then, by the agent's clock.
    Lease {
        /// The attempt.
        fence: i64,
        /// When it ends.
        until: Duration,
    },
    /// The coordinator has committed the attempt's result.
    Committed(i64),
    /// The attempt works, which may count as a sign of life.
    Activity(i64),
    /// Exit as soon as nothing runs.
    Retire,
}

/// Why a session is ended from this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Close {
    /// Another coordinator has succeeded this one.
    #[error("a coordinator that no longer leads")]
    Term(#[from] TermPassed),
    /// The coordinator leads in a new term, so everything must be agreed anew.
    #[error("the coordinator now leads in term {0}")]
    NewTerm(i64),
    /// Heartbeats were not answered for this long.
    #[error("the coordinator did not answer for {}s", .0.as_secs())]
    Silent(Duration),
    /// The machine has slept or its clock was set.
    #[error("the machine slept or its clock was set, so everything must be agreed anew")]
    ClockJumped,
}
