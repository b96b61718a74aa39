//! The contract's spelling of what the core calls by its own names.

mod gpu;

use std::time::Duration;

use chrono::DateTime;
use prost_types::Timestamp;
use qctl_proto::v1::open_session_request::Message as Say;
use qctl_proto::v1::shim_request::Message as Ask;
use qctl_proto::v1::silence::Counts;
use qctl_proto::v1::{
    Assignment, AssignmentReturned, AttemptEnded, AttemptStarted, CheckpointPublished, GpuChecked,
    HeldAttempt, PauseChanged, Progress, ProgressReported, ResultCommitted, SegmentFreed,
    SegmentPid, SegmentSilence, SegmentStuck, SetPaused, ShimActivity, ShimLease, ShimRetire,
    Silence as WireSilence, SilenceEvidence, SilenceReported, SilenceStage, SilentProcess,
    SlotFreed, SlotStuck, Stop, StopCause as WireCause, Verdict as WireVerdict, Welcome,
    attempt_ended, checkpoint_answered, held_attempt, verdict,
};
use qctl_worker_core::agent::{self, End, Ended, Fact, Holding, Judged, Started, Terms};
use qctl_worker_core::checkpoint::{Answer, Published};
use qctl_worker_core::enforcement::{DEFAULT_GRACE, StopCause};
use qctl_worker_core::progress::Reading;
use qctl_worker_core::session::{Stage, Verdict};
use qctl_worker_core::silence::{self, Evidence, Silence};

use crate::follower;
use crate::shim::records;
pub(crate) use gpu::{gpu_fault_from, usual_item, wire_gpu_fault};

/// Microseconds since the Unix epoch as the contract has it.
pub(crate) fn timestamp(wall_us: i64) -> Option<Timestamp> {
    let time = DateTime::from_timestamp_micros(wall_us)?;
    Some(Timestamp {
        seconds: time.timestamp(),
        nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap_or(0),
    })
}

fn micros(time: &Timestamp) -> Option<i64> {
    let whole = time.seconds.checked_mul(1_000_000)?;
    whole.checked_add(i64::from(time.nanos / 1000))
}

/// A duration of the contract; a negative one is none at all.
pub(crate) fn duration(wire: prost_types::Duration) -> Option<Duration> {
    Duration::try_from(wire).ok()
}

pub(crate) fn wire_duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

/// What is said about silence; what means nothing here is left to others.
pub(crate) fn silence_wish(wire: &WireSilence) -> silence::Wish {
    silence::Wish {
        warn_after: wire.warn_after.and_then(duration),
        remind_after: wire.remind_after.and_then(duration),
        stop_after: wire.stop_after.and_then(duration),
        counts: match wire.counts() {
            Counts::Unspecified => None,
            Counts::Output => Some(silence::Counts::Output),
            Counts::Activity => Some(silence::Counts::Activity),
        },
    }
}

/// The same as the contract spells it.
pub(crate) fn wire_silence(wish: silence::Wish) -> WireSilence {
    let counts = match wish.counts {
        None => Counts::Unspecified,
        Some(silence::Counts::Output) => Counts::Output,
        Some(silence::Counts::Activity) => Counts::Activity,
    };
    WireSilence {
        warn_after: wish.warn_after.and_then(wire_duration),
        remind_after: wish.remind_after.and_then(wire_duration),
        stop_after: wish.stop_after.and_then(wire_duration),
        counts: counts.into(),
    }
}

/// When an attempt counts as silent: what the agent says, or, when that is an older one, the job.
pub(crate) fn stages(told: Option<&WireSilence>, assignment: &Assignment) -> silence::Stages {
    let spec = assignment.spec.as_ref();
    told.or_else(|| spec.and_then(|spec| spec.silence.as_ref()))
        .map(silence_wish)
        .unwrap_or_default()
        .stages()
}

/// A step of a silence as the shim records it.
pub(crate) fn segment_silence(silence: Silence, wall_us: i64) -> SegmentSilence {
    SegmentSilence {
        episode: i32::try_from(silence.episode).unwrap_or(i32::MAX),
        stage: wire_stage(silence.stage).into(),
        lasted: wire_duration(silence.lasted),
        stop_after: silence.stop_after.and_then(wire_duration),
        wall_us,
    }
}

/// What a shim has recorded of a silence; `None` for a stage that this program does not know.
pub(crate) fn silence(recorded: &SegmentSilence) -> Option<Silence> {
    Some(Silence {
        episode: recorded.episode.max(0) as u32,
        stage: match recorded.stage() {
            SilenceStage::Unspecified => return None,
            SilenceStage::Warned => silence::Stage::Warned,
            SilenceStage::Reminded => silence::Stage::Reminded,
            SilenceStage::Ending => silence::Stage::Ending,
            SilenceStage::Over => silence::Stage::Over,
        },
        lasted: recorded.lasted.and_then(duration).unwrap_or_default(),
        stop_after: recorded.stop_after.and_then(duration),
    })
}

fn wire_stage(stage: silence::Stage) -> SilenceStage {
    match stage {
        silence::Stage::Warned => SilenceStage::Warned,
        silence::Stage::Reminded => SilenceStage::Reminded,
        silence::Stage::Ending => SilenceStage::Ending,
        silence::Stage::Over => SilenceStage::Over,
    }
}

/// A cause as the contract spells it.
pub(crate) fn wire_cause(cause: Option<StopCause>) -> WireCause {
    match cause {
        None => WireCause::Unspecified,
        Some(StopCause::Cancel) => WireCause::Cancel,
        Some(StopCause::TimeLimit) => WireCause::TimeLimit,
        Some(StopCause::Silence) => WireCause::Silence,
        Some(StopCause::Lease) => WireCause::Lease,
        Some(StopCause::Superseded) => WireCause::Superseded,
        Some(StopCause::Drill) => WireCause::Drill,
        Some(StopCause::GpuFault) => WireCause::GpuFault,
        Some(StopCause::GpuFallback) => WireCause::GpuFallback,
    }
}

/// A cause that the contract spells; `None` when it names none.
pub(crate) fn cause(wire: WireCause) -> Option<StopCause> {
    match wire {
        WireCause::Unspecified => None,
        WireCause::Cancel => Some(StopCause::Cancel),
        WireCause::TimeLimit => Some(StopCause::TimeLimit),
        WireCause::Silence => Some(StopCause::Silence),
        WireCause::Lease => Some(StopCause::Lease),
        WireCause::Superseded => Some(StopCause::Superseded),
        WireCause::Drill => Some(StopCause::Drill),
        WireCause::GpuFault => Some(StopCause::GpuFault),
        WireCause::GpuFallback => Some(StopCause::GpuFallback),
    }
}

/// What the agent must remember of an assignment.
pub(crate) fn terms(assignment: &Assignment) -> Terms {
    let spec = assignment.spec.as_ref();
    let demand = spec.and_then(|spec| spec.demand);
    let grace = spec.and_then(|spec| spec.stop_grace);
    Terms {
        job_id: assignment.job_id,
        attempt: assignment.attempt,
        boot_id: assignment.boot_id.clone(),
        spool_id: assignment.spool_id.clone(),
        slots: demand.map_or(1, |demand| demand.slots.max(1) as u32),
        beside_slots: assignment.beside_slots,
        exclusive: spec.is_some_and(|spec| spec.exclusive),
        grace: grace.and_then(duration).unwrap_or(DEFAULT_GRACE),
        gpus: assignment.gpus.clone(),
        gpus_wanted: demand.map_or(0, |demand| demand.gpus.max(0) as u32),
    }
}

/// An assignment, as far as the agent decides by it.
pub(crate) fn assignment(assignment: &Assignment) -> agent::Assignment {
    let spec = assignment.spec.as_ref();
    agent::Assignment {
        fence: assignment.fence,
        term: assignment.term,
        terms: terms(assignment),
        runnable: spec.is_some_and(|spec| !spec.command.is_empty()),
        prepare: !assignment.checkpoints.is_empty(),
    }
}

/// What the coordinator answered to a greeting that was sent at `greeted_at`.
pub(crate) fn welcome(welcome: Welcome, greeted_at: Duration) -> agent::Welcome {
    agent::Welcome {
        term: welcome.term,
        greeted_at,
        slots: slots(welcome.slots),
        heartbeat_interval: welcome.heartbeat_interval.and_then(duration),
        lost_after: welcome.lost_after.and_then(duration),
        verdicts: welcome.verdicts.iter().map(judged).collect(),
    }
}

/// A number of slots.
pub(crate) fn slots(wire: i32) -> u32 {
    wire.max(1) as u32
}

fn judged(wire: &WireVerdict) -> Judged {
    Judged {
        fence: wire.fence,
        verdict: match wire.action() {
            // An action that this program does not know changes nothing.
            verdict::Action::Continue | verdict::Action::Unspecified => Verdict::Continue,
            verdict::Action::Stop => Verdict::Stop,
            verdict::Action::SendResult => Verdict::SendResult,
            verdict::Action::Forget => Verdict::Forget,
        },
        log_stored: wire.log_stored.max(0) as u64,
    }
}

/// An attempt in a greeting.
pub(crate) fn held(holding: &Holding) -> HeldAttempt {
    let state = match holding.stage {
        Stage::Waiting => held_attempt::State::Assigned,
        Stage::Running => held_attempt::State::Running,
        Stage::Ended => held_attempt::State::Ended,
    };
    HeldAttempt {
        fence: holding.fence,
        state: state.into(),
        log_end: holding.log_end as i64,
        slot_held: holding.slot_held,
        adopted: false,
    }
}

/// What is told to the coordinator; `None` for a heartbeat, which needs more than the core knows.
pub(crate) fn say(say: agent::Say) -> Option<Say> {
    Some(match say {
        agent::Say::Heartbeat { .. } => return None,
        agent::Say::Started { fence, started } => Say::Started(AttemptStarted {
            fence,
            pid: started.pid,
            started_at: timestamp(started.wall_us),
            not_enforced: started.not_enforced,
        }),
        agent::Say::Ended { fence, ended } => Say::Ended(attempt_ended(fence, *ended)),
        agent::Say::SlotFreed(fence) => Say::SlotFreed(SlotFreed { fence }),
        agent::Say::SlotStuck { fence, pids } => Say::SlotStuck(SlotStuck { fence, pids }),
        agent::Say::Returned {
            fence,
            returned,
            message,
        } => Say::Returned(AssignmentReturned {
            fence,
            returned,
            message,
            gpu: None,
        }),
        agent::Say::Unfit { fence, fault } => Say::Returned(AssignmentReturned {
            fence,
            returned: true,
            message: fault.to_string(),
            gpu: Some(wire_gpu_fault(fault)),
        }),
        agent::Say::Gpu {
            gpu,
            fault,
            computed,
        } => Say::GpuChecked(GpuChecked {
            gpu,
            fault: fault.map(wire_gpu_fault),
            computed,
        }),
        agent::Say::Progress { fence, reading } => Say::Progress(progress(fence, reading)),
        agent::Say::Checkpoint(published) => Say::Checkpoint(checkpoint(*published)),
        agent::Say::PauseChanged { fence, paused } => {
            Say::PauseChanged(PauseChanged { fence, paused })
        }
        agent::Say::Silence { fence, told } => Say::Silence(silence_report(fence, *told)),
    })
}

/// A step of a silence, and what was found.
fn silence_report(fence: i64, told: silence::Told) -> SilenceReported {
    let silence::Told {
        silence,
        wall_us,
        evidence,
    } = told;
    SilenceReported {
        fence,
        episode: i32::try_from(silence.episode).unwrap_or(i32::MAX),
        stage: wire_stage(silence.stage).into(),
        lasted: wire_duration(silence.lasted),
        time: timestamp(wall_us),
        stop_after: silence.stop_after.and_then(wire_duration),
        evidence: (evidence != Evidence::default()).then(|| SilenceEvidence {
            cpu_still: evidence.cpu_still.and_then(wire_duration),
            io_still: evidence.io_still.and_then(wire_duration),
            gpu_still: evidence.gpu_still.and_then(wire_duration),
            processes: evidence
                .processes
                .into_iter()
                .map(|process| SilentProcess {
                    pid: process.pid,
                    command: process.command,
                    state: process.state,
                    wait_channel: process.wait_channel,
                })
                .collect(),
            stack: evidence.stack,
            last_lines: evidence.last_lines,
        }),
    }
}

/// A published checkpoint.
pub(crate) fn checkpoint(published: Published) -> CheckpointPublished {
    CheckpointPublished {
        fence: published.id.fence,
        number: published.id.number,
        step: published.step,
        note: published.note,
        path: published.path,
        files: published.files,
        bytes: i64::try_from(published.bytes).unwrap_or(i64::MAX),
        hash: published.hash,
        created_at: timestamp(published.created_us),
        removed: published.removed,
    }
}

/// The coordinator's answer to a checkpoint; `None` for one that this program does not know.
pub(crate) fn checkpoint_answer(answer: checkpoint_answered::Answer) -> Option<Answer> {
    match answer {
        checkpoint_answered::Answer::Unspecified => None,
        checkpoint_answered::Answer::Recorded => Some(Answer::Recorded),
        checkpoint_answered::Answer::Refused => Some(Answer::Refused),
        checkpoint_answered::Answer::Remove => Some(Answer::Remove),
    }
}

fn progress(fence: i64, reading: Reading) -> ProgressReported {
    ProgressReported {
        fence,
        progress: Some(Progress {
            done: reading.done,
            total: reading.total,
            unit: reading.unit,
            percent: reading.percent,
            rate: reading.rate,
            eta: reading.eta.and_then(wire_duration),
            message: reading.message,
            source: reading.source.as_str().to_owned(),
            observed_at: i64::try_from(reading.at.as_micros())
                .ok()
                .and_then(timestamp),
        }),
    }
}

/// The moment at which something is asked of a shim.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// By the clock that never jumps.
    pub(crate) now: Duration,
    /// How far the wall clock was ahead of that one when the agent looked last. It must be the look
    /// before the agent decided, so that a jump in between is noticed by the shim.
    pub(crate) clock_offset: Duration,
}

/// What is asked of a shim.
pub(crate) fn ask(ask: agent::Ask, moment: Moment) -> Ask {
    match ask {
        agent::Ask::Stop {
            fence,
            cause,
            grace,
            gpu,
        } => Ask::Stop(Stop {
            fence,
            cause: wire_cause(Some(cause)).into(),
            grace: grace.and_then(wire_duration),
            gpu: gpu.map(wire_gpu_fault),
        }),
        agent::Ask::SetPaused { fence, paused } => Ask::SetPaused(SetPaused { fence, paused }),
        agent::Ask::Lease { fence, until } => Ask::Lease(ShimLease {
            fence,
            holds_for: wire_duration(until.saturating_sub(moment.now)),
            until: wire_duration(until),
            clock_offset: wire_duration(moment.clock_offset),
        }),
        agent::Ask::Committed(fence) => Ask::Committed(ResultCommitted { fence }),
        agent::Ask::Activity(fence) => Ask::Activity(ShimActivity { fence }),
        agent::Ask::Retire => Ask::Retire(ShimRetire {}),
    }
}

/// What a segment tells.
pub(crate) fn fact(fact: follower::Fact) -> Option<Fact> {
    Some(match fact {
        follower::Fact::Assigned(assignment) => Fact::Assigned(Box::new(terms(&assignment))),
        follower::Fact::Starting {
            checkpoint_dir,
            wall_us,
        } => Fact::Starting {
            checkpoint_dir,
            wall_us,
        },
        follower::Fact::Started(pid) => Fact::Started(started(pid)),
        // A stop without a cause is one that changes no outcome.
        follower::Fact::Stopping(wire) => Fact::Stopping(cause(wire)?),
        follower::Fact::Paused(paused) => Fact::Paused(paused),
        follower::Fact::Output {
            end,
            crc32c,
            wall_us,
        } => Fact::Output {
            end,
            crc32c,
            wall_us,
        },
        follower::Fact::Progress(reading) => Fact::Progress(reading),
        follower::Fact::Ended(wire) => Fact::Ended(Box::new(ended(*wire))),
        follower::Fact::Void(reason) => Fact::Void(reason),
        follower::Fact::Stuck(pids) => Fact::Stuck(pids),
        follower::Fact::Silence {
            recorded,
            last_lines,
        } => Fact::Silence(Box::new(silence::Told {
            silence: silence(&recorded)?,
            wall_us: recorded.wall_us,
            evidence: Evidence {
                last_lines,
                ..Evidence::default()
            },
        })),
        follower::Fact::Bell => Fact::Bell,
        follower::Fact::Freed => Fact::Freed,
    })
}

fn started(pid: SegmentPid) -> Started {
    Started {
        pid: pid.pid,
        start_ticks: pid.start_ticks,
        wall_us: pid.wall_us,
        not_enforced: pid.not_enforced,
    }
}

/// The record of a fact that the agent found out itself; `None` for facts that only shims record.
pub(crate) fn record(fence: i64, fact: &Fact) -> Option<records::Event> {
    match fact {
        Fact::Ended(ended) => {
            let ended = attempt_ended(fence, Ended::clone(ended));
            Some(records::Event::Exit(ended))
        }
        Fact::Void(reason) => Some(records::Event::Void(reason.clone())),
        Fact::Freed => Some(records::Event::Freed(SegmentFreed {})),
        Fact::Stuck(pids) => {
            let pids = pids.clone();
            Some(records::Event::Stuck(SegmentStuck { pids }))
        }
        Fact::Assigned(_)
        | Fact::Starting { .. }
        | Fact::Started(_)
        | Fact::Stopping(_)
        | Fact::Paused(_)
        | Fact::Output { .. }
        | Fact::Silence(_)
        | Fact::Bell
        | Fact::Progress(_) => None,
    }
}

/// An attempt's end. Every field is named, so that a new one is not forgotten.
fn ended(wire: AttemptEnded) -> Ended {
    let end = wire.end();
    let stop_cause = cause(wire.stop_cause());
    let AttemptEnded {
        fence: _,
        end: _,
        exit_code,
        signal,
        stop_cause: _,
        out_of_memory,
        started_at,
        ended_at,
        duration: ran,
        log_end,
        log_crc32c,
        checkpoint,
        message,
        pid,
        not_enforced,
        gpu_fault,
        contradiction,
        gpu_out_of_memory,
        checkpointed,
        gpu,
    } = wire;
    Ended {
        end: match end {
            attempt_ended::End::Unspecified => End::Unknown,
            attempt_ended::End::Waited => End::Waited,
            attempt_ended::End::CannotStart => End::CannotStart,
            attempt_ended::End::NeverStarted => End::NeverStarted,
            attempt_ended::End::ShimLost => End::ShimLost,
            attempt_ended::End::MachineLost => End::MachineLost,
        },
        exit_code,
        signal,
        stop_cause,
        out_of_memory,
        started_us: started_at.as_ref().and_then(micros),
        ended_us: ended_at.as_ref().and_then(micros),
        duration: ran.and_then(duration),
        log_end: log_end.max(0) as u64,
        log_crc32c,
        checkpoint,
        message,
        pid,
        not_enforced,
        gpu_fault,
        contradiction,
        gpu_out_of_memory,
        checkpointed,
        gpu: gpu.and_then(gpu_fault_from),
    }
}

fn attempt_ended(fence: i64, ended: Ended) -> AttemptEnded {
    let Ended {
        end,
        exit_code,
        signal,
        stop_cause,
        out_of_memory,
        started_us,
        ended_us,
        duration: ran,
        log_end,
        log_crc32c,
        checkpoint,
        message,
        pid,
        not_enforced,
        gpu_fault,
        contradiction,
        gpu_out_of_memory,
        checkpointed,
        gpu,
    } = ended;
    let end = match end {
        End::Unknown => attempt_ended::End::Unspecified,
        End::Waited => attempt_ended::End::Waited,
        End::CannotStart => attempt_ended::End::CannotStart,
        End::NeverStarted => attempt_ended::End::NeverStarted,
        End::ShimLost => attempt_ended::End::ShimLost,
        End::MachineLost => attempt_ended::End::MachineLost,
    };
    AttemptEnded {
        fence,
        end: end.into(),
        exit_code,
        signal,
        stop_cause: wire_cause(stop_cause).into(),
        out_of_memory,
        started_at: started_us.and_then(timestamp),
        ended_at: ended_us.and_then(timestamp),
        duration: ran.and_then(wire_duration),
        log_end: log_end as i64,
        log_crc32c,
        checkpoint,
        message,
        pid,
        not_enforced,
        gpu_fault,
        contradiction,
        gpu_out_of_memory,
        checkpointed,
        gpu: gpu.map(wire_gpu_fault),
    }
}

#[cfg(test)]
mod tests {
    use qctl_proto::v1::{GpuFault, gpu_fault};

    use super::*;

    #[test]
    fn an_end_is_told_as_it_was_recorded() {
        let recorded = AttemptEnded {
            fence: 7,
            end: attempt_ended::End::Waited.into(),
            exit_code: Some(3),
            signal: Some(9),
            stop_cause: WireCause::TimeLimit.into(),
            out_of_memory: true,
            started_at: timestamp(1_700_000_000_000_001),
            ended_at: timestamp(1_700_000_005_000_002),
            duration: wire_duration(Duration::from_millis(4999)),
            log_end: 77,
            log_crc32c: 5,
            checkpoint: "/c".to_owned(),
            message: "m".to_owned(),
            pid: 42,
            not_enforced: vec!["n".to_owned()],
            gpu_fault: true,
            contradiction: "2 failed".to_owned(),
            gpu_out_of_memory: true,
            checkpointed: true,
            gpu: Some(GpuFault {
                gpu: "GPU-1".to_owned(),
                name: "X".to_owned(),
                kind: gpu_fault::Kind::Xid.into(),
                number: 79,
                message: "the driver reports a serious error of X (GPU-1): Xid 79".to_owned(),
                users_hidden: false,
                item: None,
                usual_item: None,
            }),
        };
        assert_eq!(attempt_ended(7, ended(recorded.clone())), recorded);
    }

    #[test]
    fn every_cause_comes_back() {
        for number in 0..=8 {
            let wire = WireCause::try_from(number).unwrap();
            assert_eq!(wire_cause(cause(wire)), wire);
        }
    }
}
