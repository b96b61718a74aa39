//! Every word of ours on the pages, in one place.

use qctl_server_core::alarm::Kind;
use qctl_server_core::{FailureCause, HoleCause, JobSpec, JobState, OutcomeKind};

use crate::app::checkpoints::CheckpointState;
use crate::app::read::WorkerState;

/// A page that says one thing.
pub(super) struct Message {
    pub(super) title: &'static str,
    pub(super) sentence: &'static str,
}

pub(super) const NO_KEY: Message = Message {
    title: "Open a link from qctl",
    sentence: "This page opens with a link that carries a key: run `qctl status` or `qctl show JOB` on your machine and open the link it prints.",
};

pub(super) const WRONG_KEY: Message = Message {
    title: "This link is out of date",
    sentence: "The key in this link is not the coordinator's key any more: run `qctl status` on your machine and open the link it prints.",
};

pub(super) const FOREIGN_NAME: Message = Message {
    title: "Not one of my names",
    sentence: "The coordinator answers pages only under its address or its public URL: open it by that, or start it with `--public-url` set to the address you use.",
};

pub(super) const NOBODY_LEADS: Message = Message {
    title: "One moment",
    sentence: "The coordinator is starting, or waits for its database. Jobs that run go on meanwhile.",
};

pub(super) const NO_SUCH_PAGE: Message = Message {
    title: "No such page",
    sentence: "There is nothing at this address.",
};

pub(super) const NO_SUCH_JOB: Message = Message {
    title: "No such job",
    sentence: "There is no job with this number; it may have been deleted, by hand or by age.",
};

pub(super) const NO_SUCH_TRACKER: Message = Message {
    title: "No job of this tracker",
    sentence: "No job carries this tracker; those of long ago may have been deleted by age.",
};

pub(super) const UNAVAILABLE: Message = Message {
    title: "One moment",
    sentence: "The coordinator cannot reach its database right now; the jobs run on. This page tries again by itself.",
};

pub(super) const BROKEN: Message = Message {
    title: "Something went wrong",
    sentence: "The coordinator could not make this page; its own log says why.",
};

pub(super) const CONNECTION_LOST: &str = "connection lost, trying again";
pub(super) const QUEUE: &str = "Queue";
pub(super) const QUEUE_PAUSED: &str =
    "The queue is paused: nothing new starts until `qctl queue resume`.";
pub(super) const NOTHING_YET: &str = "No jobs yet. `qctl submit -- COMMAND` makes the first one.";
pub(super) const RUNNING: &str = "Running";
pub(super) const NOTHING_RUNS: &str = "Nothing is running.";
pub(super) const WAITING: &str = "Waiting";
pub(super) const RECENTLY_ENDED: &str = "Recently ended";
pub(super) const WORKERS: &str = "Workers";
pub(super) const NO_WORKERS: &str = "No worker has connected yet.";
pub(super) const TRACKER: &str = "Tracker";
pub(super) const LATEST_OUTCOME: &str = "Latest outcome";
pub(super) const JOBS: &str = "Jobs";

pub(super) const ALARMS: &str = "Alarms";
pub(super) const ALARM: &str = "What";
pub(super) const WORST: &str = "Worst";
pub(super) const SINCE: &str = "Since";
pub(super) const LASTED: &str = "Lasted";
pub(super) const LASTS: &str = "now";
pub(super) const DETAILS: &str = "Details";
pub(super) const SUBMITTED: &str = "Submitted";
pub(super) const STARTED: &str = "Started";
pub(super) const ENDED: &str = "Ended";
pub(super) const RUN_TIME: &str = "Run time";
pub(super) const WORKER: &str = "Worker";
pub(super) const COMMAND: &str = "Command";
pub(super) const FOLDER: &str = "Folder";
pub(super) const BUDGET: &str = "Budget";
pub(super) const RETRIES: &str = "Retries";
pub(super) const REPEATS: &str = "Repeats";
pub(super) const CHECKPOINT: &str = "Checkpoint";
pub(super) const LABELS: &str = "Labels";
pub(super) const NOT_ENFORCED: &str = "Not enforced";

pub(super) const ATTEMPTS: &str = "Attempts";
pub(super) const ATTEMPT: &str = "Attempt";
pub(super) const HOW_IT_ENDED: &str = "How it ended";
pub(super) const STILL_RUNNING: &str = "running";
pub(super) const ABOUT_TO_START: &str = "about to start";

pub(super) const CHECKPOINTS: &str = "Checkpoints";
pub(super) const STEP: &str = "Step";
pub(super) const PUBLISHED: &str = "Published";
pub(super) const SIZE: &str = "Size";
pub(super) const STATE: &str = "State";
pub(super) const UPLOADED: &str = "uploaded";

/// What became of a checkpoint.
pub(super) fn checkpoint(state: CheckpointState, latest: bool) -> &'static str {
    match state {
        CheckpointState::Kept if latest => "latest",
        CheckpointState::Kept => "kept",
        CheckpointState::Damaged => "damaged",
        CheckpointState::Removed => "removed",
    }
}

pub(super) const OUTPUT: &str = "Output";
pub(super) const NO_OUTPUT: &str = "No output yet.";
pub(super) const NO_OUTPUT_AT_ALL: &str = "It printed nothing.";

/// Some of the output that is shown is missing.
pub(super) fn gap(size: &str, lines: i64, cause: HoleCause) -> String {
    format!(
        "{size} of the output ({lines} line ends) are missing here, {}.",
        cause.because()
    )
}

pub(super) const RESULTS: &str = "Results";
pub(super) const ELSEWHERE: &str = "on";
pub(super) const NOTHING_THERE_YET: &str = "nothing there yet";

pub(super) const UNREACHABLE: &str =
    "Nothing has been heard of it for a while; it may well be running.";
pub(super) const PAUSED: &str = "Its processes are frozen until `qctl resume`.";
pub(super) const CANCEL_REQUESTED: &str = "It was asked to stop.";

pub(super) fn state(state: JobState) -> &'static str {
    match state {
        JobState::Waiting => "waiting",
        JobState::Held => "held",
        JobState::Queued => "queued",
        JobState::Running => "running",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

pub(super) fn worker_state(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Online => "online",
        WorkerState::Paused => "paused",
        WorkerState::Draining => "draining",
        WorkerState::Reconnecting => "reconnecting",
        WorkerState::Unreachable => "unreachable",
        WorkerState::Offline => "offline",
    }
}

pub(super) fn outcome(kind: OutcomeKind) -> &'static str {
    match kind {
        OutcomeKind::Succeeded => "succeeded",
        OutcomeKind::Failed => "failed",
        OutcomeKind::Interrupted => "interrupted",
        OutcomeKind::Cancelled => "cancelled",
        OutcomeKind::NeverStarted => "never started",
        OutcomeKind::Checkpointed => "checkpointed",
    }
}

pub(super) fn budget(retries: i32, resumes: i32) -> String {
    format!(
        "{retries} {} after failures and {resumes} {} after interruptions left",
        if retries == 1 { "retry" } else { "retries" },
        if resumes == 1 { "resume" } else { "resumes" },
    )
}

/// Which failures are retried, where the job says something about that.
pub(super) fn retry_rules(spec: &JobSpec) -> Option<String> {
    let list = |causes: &[FailureCause]| {
        let words: Vec<String> = causes.iter().map(ToString::to_string).collect();
        words.join(", ")
    };
    let mut parts = Vec::new();
    let rules = &spec.retry_rules;
    if !rules.retry_on.is_empty() {
        parts.push(format!("only after {}", list(&rules.retry_on)));
    }
    if !rules.no_retry_on.is_empty() {
        parts.push(format!("never after {}", list(&rules.no_retry_on)));
    }
    if let Some(code) = spec.checkpoint_exit_code {
        parts.push(format!("exit {code} goes on from the checkpoint"));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

pub(super) fn job(number: impl std::fmt::Display) -> String {
    format!("job {number}")
}

pub(super) fn of(done: &str, total: &str, unit: &str) -> String {
    if unit.is_empty() {
        format!("{done} of {total}")
    } else {
        format!("{done} of {total} {unit}")
    }
}

pub(super) fn left(time: &str) -> String {
    format!("about {time} left")
}

pub(super) fn slots(taken: i32, total: i32) -> String {
    format!(
        "{taken} of {total} {} taken",
        if total == 1 { "slot" } else { "slots" }
    )
}

pub(super) fn and_more(count: i64) -> String {
    format!("and {count} more")
}

pub(super) fn for_time(time: &str) -> String {
    format!("for {time}")
}

pub(super) fn ran(time: &str) -> String {
    format!("ran {time}")
}

pub(super) fn last_seen() -> &'static str {
    "last heard of"
}

pub(super) fn tail_of(shown: &str, stored: &str, job: impl std::fmt::Display) -> String {
    format!("The last {shown} of {stored}; `qctl logs {job}` prints all of it.")
}

pub(super) fn whole(job: impl std::fmt::Display) -> String {
    format!("`qctl logs -f {job}` follows it in a terminal.")
}

pub(super) fn silent_for(time: &str) -> String {
    format!("It has said nothing for {time}.")
}

pub(super) fn stopped_after(time: &str) -> String {
    format!("It is stopped after {time} without a sign of life.")
}

/// A figure that is beyond its limit.
pub(super) fn beyond(worst: &str, limit: &str) -> String {
    format!("{worst} (limit {limit})")
}

/// What an alarm is about.
pub(super) fn alarm(kind: Kind) -> &'static str {
    match kind {
        Kind::Cpu => "processors full",
        Kind::MemoryGrowth => "its memory grows and grows",
        Kind::GpuMemory => "GPU memory full",
        Kind::GpuTemperature => "a GPU is hot",
        Kind::RunTime => "runs for long",
        Kind::Memory => "memory full",
        Kind::Disk => "little room left on a disk",
        Kind::OutOfMemory => "processes killed for memory",
        Kind::Clock => "the clock jumped",
        Kind::Looks => "nobody could look",
    }
}
