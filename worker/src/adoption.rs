//! What to do with segments whose shim is gone: find out what became of their attempts, end what is
//! left of them, and write it down.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use qctl_proto::v1::{SegmentFreed, attempt_ended};
use qctl_worker_core::adoption::{Finding, judge};
use qctl_worker_core::segment;

use crate::chain;
use crate::follower::{Fact, Follower, Note};
use crate::held::Held;
use crate::log_pump::Pump;
use crate::process::identity::Identity;
use crate::process::marker::Marker;
use crate::process::sweep::{Trace, sweep};
use crate::shim::records::{self, Event};
use crate::shim_link::wall_now;

/// Time after which a sweep that still finds processes is reported, and goes on.
const REPORT_AFTER: Duration = Duration::from_secs(10);

/// Pause when processes cannot be listed.
const PAUSE: Duration = Duration::from_secs(1);

const SHIM_LOST: &str = "the process that watched over the job vanished, so its end was not seen";
const MACHINE_LOST: &str = "the machine was restarted while the job ran, so its end was not seen";
const NEVER_STARTED: &str = "the process that was to start the job vanished before it did";

/// When an attempt was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Noticed {
    /// The shim vanished under this agent's eyes.
    Now,
    /// At some time before this agent was started.
    Before,
}

/// An attempt of a vanished shim, and what must be done about it.
#[derive(Debug)]
pub(crate) struct Loss {
    fence: i64,
    finding: Finding,
    held: Held,
    trace: Trace,
}

impl Loss {
    /// Judges an attempt; `None` when nothing is left to do about it.
    pub(crate) fn of(fence: i64, held: &Held, boot_id: &str) -> Option<Self> {
        let finding = judge(held.evidence(boot_id));
        let leader = held.leader().map(|pid| Identity {
            boot_id: held.terms.boot_id.clone(),
            pid: pid.pid,
            start_ticks: pid.start_ticks,
        });
        (finding != Finding::Settled).then(|| Self {
            fence,
            finding,
            held: held.clone(),
            trace: Trace {
                marker: Marker::new(&held.terms.spool_id, fence),
                leader,
            },
        })
    }

    /// The attempt.
    pub(crate) fn fence(&self) -> i64 {
        self.fence
    }

    /// True when processes of it may be left.
    pub(crate) fn unswept(&self) -> bool {
        matches!(self.finding, Finding::Sweep | Finding::SweepRest)
    }

    /// The records that settle it, once no process is left.
    fn records(&self, noticed: Noticed, changed: Option<SystemTime>) -> Vec<Event> {
        use attempt_ended::End;

        let at = match (noticed, changed) {
            (Noticed::Before, Some(changed)) => changed
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default(),
            _ => wall_now(),
        };
        let at_us = i64::try_from(at.as_micros()).unwrap_or(i64::MAX);
        let at_us = at_us.max(self.held.last_seen_us());
        let lost = |end: End, message: &str| {
            let checkpoint = used_folder(self.held.checkpoint_dir());
            let ended = self.held.lost(self.fence, end, at_us, checkpoint, message);
            vec![Event::Exit(ended), Event::Freed(SegmentFreed {})]
        };
        match self.finding {
            Finding::Settled => Vec::new(),
            Finding::NeverStarted => vec![Event::Void(NEVER_STARTED.to_owned())],
            Finding::MachineLost => lost(End::MachineLost, MACHINE_LOST),
            Finding::Sweep => lost(End::ShimLost, SHIM_LOST),
            Finding::SweepRest => vec![Event::Freed(SegmentFreed {})],
        }
    }
}

/// Settles the losses of a segment, whose lock this agent holds. Ends what is left of their
/// processes, however long that takes, and returns what is true then. Blocks.
pub(crate) fn conclude(
    follower: &Follower,
    losses: &[Loss],
    noticed: Noticed,
    pump: &Pump,
) -> Vec<Note> {
    let file = follower.file();
    let changed = file.metadata().and_then(|meta| meta.modified()).ok();
    let mut notes = Vec::new();
    let mut bytes = Vec::new();
    for loss in losses {
        if loss.unswept() {
            end_processes(loss);
        }
        for mut event in loss.records(noticed, changed) {
            if let Event::Exit(ended) = &mut event {
                follower.judge(ended);
            }
            let encoded = records::encode(loss.fence, &event, &mut bytes);
            debug_assert!(encoded.is_ok(), "these records are short");
            let fact = match event {
                Event::Exit(ended) => {
                    pump.ended(loss.fence, ended.log_end.max(0) as u64);
                    Fact::Ended(Box::new(ended))
                }
                Event::Void(reason) => Fact::Void(reason),
                _ => Fact::Freed,
            };
            notes.push(Note {
                fence: loss.fence,
                fact,
            });
        }
    }
    // The facts hold either way; without the record the next agent finds them out again.
    if let Err(error) = append(file, follower.position(), &bytes) {
        tracing::error!(
            "what became of lost attempts could not be recorded: {}",
            chain(&error)
        );
    }
    notes
}

/// Writes records behind the last whole one, cutting off what a vanished shim left half-written.
fn append(file: &Arc<File>, position: u64, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    file.set_len(position)?;
    let mut at = position;
    if at == 0 {
        let header = segment::header();
        file.write_all_at(&header, 0)?;
        at = header.len() as u64;
    }
    file.write_all_at(bytes, at)?;
    file.sync_data()
}

/// Ends every process of an attempt. Its slot stays taken until that has worked.
fn end_processes(loss: &Loss) {
    let fence = loss.fence;
    loop {
        match sweep(&loss.trace, Instant::now() + REPORT_AFTER) {
            Ok(left) if left.is_empty() => return,
            Ok(left) => {
                let pids: Vec<_> = left.iter().map(|process| process.pid).collect();
                tracing::warn!(
                    fence,
                    ?pids,
                    "processes of a lost attempt cannot be ended yet"
                );
            }
            Err(error) => {
                tracing::error!(
                    fence,
                    "processes of the lost attempt with fence {fence} cannot be looked for: {}",
                    chain(&error)
                );
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// The folder, when something is in it.
fn used_folder(path: &str) -> String {
    let used = std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    if used { path.to_owned() } else { String::new() }
}
