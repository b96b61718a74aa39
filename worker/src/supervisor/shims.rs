//! The supervisor's side towards shims: starts them, hears them, and finds out what became of
//! those that are gone.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use qctl_proto::v1::open_session_request::Message as Say;
use qctl_proto::v1::{PauseChanged, SlotFreed};
use qctl_worker_core::roster::ShimId;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::{Shim, Supervisor};
use crate::adoption::{Loss, Noticed, conclude};
use crate::follower::{Fact, Follower, Note};
use crate::held::{Change, Held, Terms};
use crate::shim_link::{Link, LinkEvent};
use crate::spool::{self, SpoolError};

/// Bounds of the pause after a shim that could not be started.
const FIRST_SPAWN_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_SPAWN_PAUSE: Duration = Duration::from_secs(30);

/// Why a shim cannot be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpawnError {
    #[error("its segment cannot be made")]
    Segment(#[from] SpoolError),
    #[error("its program cannot be run")]
    Program(#[from] io::Error),
}

impl Supervisor {
    pub(super) fn heard(&mut self, shim: ShimId, event: LinkEvent) {
        match event {
            LinkEvent::Notes(notes) => self.note(shim, notes),
            LinkEvent::Idle => {
                if let Some(known) = self.shims.get_mut(&shim) {
                    known.ready = true;
                    self.spawn_failures = 0;
                }
                // A bell that rang before the shim read its assignment says nothing about it.
                if self.roster.attempt_of(shim).is_none() {
                    self.roster.idle(shim);
                }
            }
            LinkEvent::Retiring => self.roster.retiring(shim),
            LinkEvent::Gone(follower) => self.gone(shim, *follower, Noticed::Now),
        }
    }

    /// Takes what a segment tells.
    pub(super) fn note(&mut self, shim: ShimId, notes: Vec<Note>) {
        for Note { fence, fact } in notes {
            if let Fact::Assigned(assignment) = &fact {
                let held = self
                    .attempts
                    .entry(fence)
                    .or_insert_with(|| Held::waiting(Terms::of(assignment)));
                held.shim = Some(shim);
                if let Some(shim) = self.shims.get_mut(&shim) {
                    shim.attempts.insert(fence);
                }
            }
            self.apply(fence, &fact);
        }
    }

    pub(super) fn concluded(&mut self, notes: Vec<Note>) {
        for Note { fence, fact } in notes {
            self.apply(fence, &fact);
        }
    }

    fn apply(&mut self, fence: i64, fact: &Fact) {
        let Some(held) = self.attempts.get_mut(&fence) else {
            return;
        };
        match held.apply(fence, fact) {
            Change::Nothing => {}
            Change::Progress => {
                if let Some(progress) = held.progress_message(fence) {
                    self.say_if_room(Say::Progress(progress));
                }
            }
            Change::Started => {
                if let Some(started) = held.started_message(fence) {
                    self.say(Say::Started(started));
                }
            }
            Change::Paused => {
                let paused = held.paused.unwrap_or_default();
                self.say(Say::PauseChanged(PauseChanged { fence, paused }));
            }
            Change::Ended => {
                let (ended, freed) = (held.ended_message().cloned(), !held.slot_held());
                if let Some(ended) = ended {
                    self.say(Say::Ended(ended));
                }
                if freed {
                    self.freed(fence);
                }
            }
            Change::Freed => self.freed(fence),
        }
    }

    fn freed(&mut self, fence: i64) {
        self.roster.freed(fence);
        self.say(Say::SlotFreed(SlotFreed { fence }));
        self.settle(fence);
    }

    /// The shim is gone, and its segment belongs to this agent.
    pub(super) fn gone(&mut self, shim: ShimId, follower: Follower, noticed: Noticed) {
        if let Some(known) = self.shims.get_mut(&shim) {
            known.link = None;
            if !known.ready {
                self.spawn_failed(shim, "it ended before it was ready; shim.log says why");
            }
        }
        let losses: Vec<Loss> = self
            .attempts
            .iter()
            .filter(|(_, held)| held.shim == Some(shim))
            .filter_map(|(fence, held)| Loss::of(*fence, held, &self.with.boot_id))
            .collect();
        let unswept = losses.iter().find(|loss| loss.unswept());
        let unswept = unswept.and_then(|loss| {
            let held = self.attempts.get(&loss.fence())?;
            Some((loss.fence(), held.terms.waiting(loss.fence()).takes()))
        });
        self.roster.gone(shim, unswept);
        if losses.is_empty() {
            return;
        }
        let (pump, conclusions) = (self.with.pump.clone(), self.conclusions.clone());
        tokio::task::spawn_blocking(move || {
            let notes = conclude(&follower, &losses, noticed, &pump);
            // The agent is ending when nobody listens; its successor finds the same.
            let _ = conclusions.send(notes);
        });
    }

    pub(super) fn stored(&mut self, fence: i64) {
        if let Some(held) = self.attempts.get_mut(&fence) {
            held.log_stored = u64::MAX;
            self.settle(fence);
        }
    }

    pub(super) fn spawn(&mut self, shim: ShimId) -> Result<(), SpawnError> {
        let segment = self.with.spool.create_segment(shim)?;
        let result = self.start_shim(shim);
        let (child, stream) = match result {
            Ok(started) => started,
            Err(error) => {
                self.with.spool.remove_segment(shim)?;
                return Err(error);
            }
        };
        self.shims.insert(
            shim,
            Shim {
                link: None,
                child: Some(child),
                ready: false,
                attempts: BTreeSet::new(),
            },
        );
        let follower = Follower::new(Arc::new(segment), self.with.pump.clone());
        self.link(shim, Some(stream), follower);
        Ok(())
    }

    /// Starts a shim, which leaves this agent's session, so that nothing that ends the agent ends it.
    fn start_shim(&self, shim: ShimId) -> Result<(Child, UnixStream), SpawnError> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let log = self.with.spool.shim_log()?;
        let child = Command::new(&self.with.shim_program)
            .arg0("qctl-worker")
            .arg("shim")
            .arg("--segment")
            .arg(spool::segment_name(shim))
            .arg("--socket")
            .arg(self.with.spool.socket(shim))
            .current_dir(self.with.spool.segments_dir())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok((child, UnixStream::from_std(ours)?))
    }

    pub(super) fn link(&mut self, shim: ShimId, stream: Option<UnixStream>, follower: Follower) {
        let link = Link::start(
            shim,
            stream,
            self.with.spool.socket(shim),
            follower,
            self.events.clone(),
            self.clock,
        );
        if let Some(shim) = self.shims.get_mut(&shim) {
            shim.link = Some(link);
        }
    }

    pub(super) fn spawn_failed(&mut self, shim: ShimId, reason: &str) {
        let doubled = FIRST_SPAWN_PAUSE.saturating_mul(1 << self.spawn_failures.min(10));
        let pause = doubled.min(LONGEST_SPAWN_PAUSE);
        self.spawn_failures = self.spawn_failures.saturating_add(1);
        self.spawn_after = Instant::now() + pause;
        tracing::error!(
            shim,
            reason,
            ?pause,
            "shim {shim} could not be started: {reason}"
        );
    }
}
