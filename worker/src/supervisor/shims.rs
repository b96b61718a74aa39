//! Starts shims, adopts those of an earlier agent, and hears what they say.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use qctl_proto::daemon::NOTIFY_SOCKET;
use qctl_worker_core::agent::{Event, Fact, Loss};
use qctl_worker_core::roster::ShimId;
use tokio::net::UnixStream;

use super::Supervisor;
use crate::adoption;
use crate::follower::{self, FollowError, Follower, Note};
use crate::shim_link::{Link, LinkEvent, wall_now};
use crate::spool::{self, SpoolError};
use crate::{chain, wire};

/// Why the supervisor cannot begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdoptError {
    #[error("the spool cannot be read")]
    Spool(#[from] SpoolError),
    #[error("cannot open the segment {path}")]
    Segment { path: PathBuf, source: io::Error },
    #[error(
        "{path} was left by another version of qctl-worker, and its jobs may still run; start that \
         version again, or a newer one"
    )]
    Unknown { path: PathBuf, source: FollowError },
    #[error("cannot read the segment {path}, whose jobs may have ended or still run")]
    Unread { path: PathBuf, source: FollowError },
}

/// Why a shim cannot be started.
#[derive(Debug, thiserror::Error)]
enum SpawnError {
    #[error("its segment cannot be made")]
    Segment(#[from] SpoolError),
    #[error("its program cannot be run")]
    Program(#[from] io::Error),
}

/// How often a segment that cannot be read is tried again, and after how long.
const READ_TRIES: u32 = 10;
const READ_AGAIN: Duration = Duration::from_secs(1);

impl Supervisor {
    pub(super) async fn adopt_shim(&mut self, shim: ShimId) -> Result<(), AdoptError> {
        let path = self.with.spool.segment(shim);
        let failed = |source| AdoptError::Segment {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        let lives = spool::try_lock(&file).map_err(failed)?.is_none();
        // A living job may write faster than this reads: what comes from now on is left to the link.
        let length = file.metadata().map_err(failed)?.len();
        let mut follower = Follower::new(Arc::new(file), path.clone(), self.with.pump.clone());
        self.step(Event::Found(shim)).await;
        let mut failures = 0;
        let mut running = BTreeSet::new();
        loop {
            let mut notes = Vec::new();
            let read = follower.read(wall_now(), &mut notes);
            for Note { fence, fact } in &notes {
                match fact {
                    follower::Fact::Started(_) => {
                        running.insert(*fence);
                    }
                    follower::Fact::Ended(_) => {
                        running.remove(fence);
                    }
                    _ => {}
                }
            }
            let event = self.told(shim, notes);
            self.step(event).await;
            match read {
                Ok(true) if !lives || (follower.position() < length && !follower.is_in_ring()) => {
                    tokio::task::yield_now().await;
                }
                Ok(_) => break,
                // What a newer program wrote may be a job that runs. Nobody must be told that it
                // does not.
                Err(source @ FollowError::Corrupt(_)) => {
                    return Err(AdoptError::Unknown { path, source });
                }
                Err(error) if error.is_passing() && failures < READ_TRIES => {
                    failures += 1;
                    tracing::warn!(shim, "segment {shim} cannot be read on: {}", chain(&error));
                    tokio::time::sleep(READ_AGAIN).await;
                }
                // What cannot be read may be an end, and nobody must be told that there is none.
                Err(source) => return Err(AdoptError::Unread { path, source }),
            }
        }
        if lives {
            tracing::info!(shim, "shim {shim} of an earlier agent lives and is adopted");
            self.adopted.extend(running);
            self.link(shim, None, follower);
        } else {
            tracing::info!(shim, "shim {shim} of an earlier agent is gone");
            self.followers.insert(shim, follower);
        }
        self.step(Event::Adopted { shim, lives }).await;
        Ok(())
    }

    pub(super) fn link_event(&mut self, shim: ShimId, event: LinkEvent) -> Event {
        match event {
            LinkEvent::Connected => Event::Connected(shim),
            LinkEvent::Notes(notes) => self.told(shim, notes),
            LinkEvent::Idle => Event::Idle(shim),
            LinkEvent::Retiring => Event::Retiring(shim),
            LinkEvent::Gone(follower) => {
                self.links.remove(&shim);
                self.followers.insert(shim, *follower);
                Event::Gone(shim)
            }
        }
    }

    /// Finds out what became of the attempts of a vanished shim, which may take long.
    pub(super) fn conclude(&mut self, shim: ShimId, losses: Vec<Loss>, seen: bool) {
        let Some(follower) = self.followers.remove(&shim) else {
            return;
        };
        let (pump, conclusions) = (self.with.pump.clone(), self.conclusions.clone());
        tokio::task::spawn_blocking(move || {
            adoption::conclude(&follower, &losses, seen, &pump, |facts| {
                // The agent is ending when nobody listens; its successor finds the same.
                let _ = conclusions.send(facts);
            });
        });
    }

    pub(super) fn spawn(&mut self, shim: ShimId) {
        if let Err(error) = self.try_spawn(shim) {
            let reason = chain(&error);
            tracing::error!(shim, reason, "shim {shim} could not be started: {reason}");
            self.followed.push_back(Event::SpawnFailed(shim));
        }
    }

    fn try_spawn(&mut self, shim: ShimId) -> Result<(), SpawnError> {
        let segment = self.with.spool.create_segment(shim)?;
        let (child, stream) = match self.start_shim(shim) {
            Ok(started) => started,
            Err(error) => {
                self.with.spool.remove_segment(shim)?;
                return Err(error);
            }
        };
        self.children.insert(shim, child);
        let path = self.with.spool.segment(shim);
        let follower = Follower::new(Arc::new(segment), path, self.with.pump.clone());
        self.link(shim, Some(stream), follower);
        Ok(())
    }

    /// Starts a shim, which leaves this agent's session, so that nothing that ends the agent ends it.
    fn start_shim(&self, shim: ShimId) -> Result<(Child, UnixStream), SpawnError> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let log = self.with.spool.shim_log()?;
        let mut command = Command::new(&self.with.shim_program);
        command
            .arg0("qctl-worker")
            .arg("shim")
            .arg("--segment")
            .arg(spool::segment_name(shim))
            .arg("--socket")
            .arg(self.with.spool.socket(shim))
            .arg("--data")
            .arg(&self.with.data);
        if let Some(files) = self.with.open_files {
            command.arg("--open-files").arg(files.to_string());
        }
        let child = command
            .env_remove(NOTIFY_SOCKET)
            .current_dir(self.with.spool.segments_dir())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok((child, UnixStream::from_std(ours)?))
    }

    fn link(&mut self, shim: ShimId, stream: Option<UnixStream>, follower: Follower) {
        let link = Link::start(
            shim,
            stream,
            self.with.spool.socket(shim),
            follower,
            self.events.clone(),
            self.started,
        );
        self.links.insert(shim, link);
    }

    /// Waits for shims that have ended, so that they do not stay in the process table.
    pub(super) fn reap(&mut self) {
        let links = &self.links;
        self.children
            .retain(|shim, child| links.contains_key(shim) || matches!(child.try_wait(), Ok(None)));
    }

    fn told(&self, shim: ShimId, notes: Vec<Note>) -> Event {
        for note in &notes {
            self.with.watcher.note(note);
        }
        let fact = |note: Note| wire::fact(note.fact).map(|fact: Fact| (note.fence, fact));
        Event::Facts {
            shim: Some(shim),
            facts: notes.into_iter().filter_map(fact).collect(),
        }
    }
}
