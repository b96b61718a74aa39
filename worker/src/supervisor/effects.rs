//! Carries out what the agent decides.

use std::sync::Arc;
use std::time::SystemTime;

use qctl_proto::v1::held_attempt::State as HeldState;
use qctl_proto::v1::open_session_request::Message as Wire;
use qctl_proto::v1::shim_request::Message as Ask;
use qctl_proto::v1::{
    Assignment, Heartbeat, HeldAttempt, OpenSessionRequest, ShimRequest, ShimRun, Silence,
};
use qctl_worker_core::agent::{Effect, Event, Say};
use qctl_worker_core::gpu::Depth;
use qctl_worker_core::roster::ShimId;

use super::{Ending, Greeting, Supervisor};
use crate::checkpoints::Look;
use crate::wire;
use crate::{chain, clock};

impl Supervisor {
    pub(super) async fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Greet { held, checkpoints } => {
                if let Some(reply) = self.greeting.take() {
                    let is_running = HeldState::Running as i32;
                    let attempts = held.iter().map(|holding| {
                        let held = wire::held(holding);
                        HeldAttempt {
                            adopted: held.state == is_running && self.adopted.contains(&held.fence),
                            ..held
                        }
                    });
                    // Without a listener there is no greeting, and the next one asks again.
                    let _ = reply.send(Greeting {
                        attempts: attempts.collect(),
                        checkpoints: checkpoints.into_iter().map(wire::checkpoint).collect(),
                    });
                }
            }
            Effect::RememberTerm(term) => {
                let spool = Arc::clone(&self.with.spool);
                // What follows may rest on it, so this waits; others need not wait for the disk.
                let kept = tokio::task::spawn_blocking(move || spool.set_term(term)).await;
                // It fails to be run only when the agent is ending.
                if let Ok(Err(error)) = kept {
                    self.end_session(Ending::Term(error));
                    self.followed.push_back(Event::Closed);
                }
            }
            Effect::Say(say) => self.say(say),
            Effect::Close(close) => self.end_session(Ending::Decided(close)),
            Effect::Prepare(fence) => {
                if let Some(assignment) = self.assignments.get_mut(&fence) {
                    let candidates = std::mem::take(&mut assignment.checkpoints);
                    self.with
                        .checkpoints
                        .prepare(fence, assignment.job_id, candidates);
                }
            }
            Effect::Probe { fence, gpus, depth } => {
                let computed = depth == Depth::Whole && self.with.prober.command.is_some();
                let probe = self.with.prober.clone().probe(gpus, depth);
                let tell = self.with.tell_gpus.clone();
                tokio::spawn(async move {
                    let gpus = probe.await;
                    // Nobody listens when the agent is ending.
                    let _ = tell.send(Event::Probed {
                        fence,
                        gpus,
                        computed,
                    });
                });
            }
            Effect::Discard(fence) => {
                self.assignments.remove(&fence);
                self.chosen.remove(&fence);
                self.with.checkpoints.discard(fence);
            }
            Effect::Spawn(shim) => self.spawn(shim),
            Effect::PauseSpawning { shim, pause } => tracing::error!(
                shim,
                ?pause,
                "no shim is started for now: shim {shim} ended before it was ready"
            ),
            Effect::Run {
                shim,
                fence,
                lease_until,
            } => {
                let Some(assignment) = self.assignments.get(&fence).cloned() else {
                    return;
                };
                let checkpoint_dir = self
                    .with
                    .spool
                    .checkpoint_dir(assignment.job_id, assignment.attempt);
                let moment = self.moment();
                let lease = lease_until.map(|until| until.saturating_sub(moment.now));
                let run = ShimRun {
                    lease: lease.and_then(wire::wire_duration),
                    lease_until: lease_until.and_then(wire::wire_duration),
                    clock_offset: wire::wire_duration(moment.clock_offset),
                    agent: self.number,
                    checkpoint_dir: checkpoint_dir.to_string_lossy().into_owned(),
                    log_limit_bytes: i64::try_from(self.with.log_limit).unwrap_or(i64::MAX),
                    silence: Some(self.silence_of(&assignment)),
                    gpu_use_unseen: self.with.watcher.gpu_use_is_unseen(&assignment),
                    assignment: Some(assignment),
                };
                self.ask(shim, Ask::Run(run));
            }
            Effect::Ask { shim, ask } => self.ask(shim, wire::ask(ask, self.moment())),
            Effect::Conclude { shim, losses, seen } => self.conclude(shim, losses, seen),
            Effect::RemoveSegment(shim) => {
                self.followers.remove(&shim);
                if let Err(error) = self.with.spool.remove_segment(shim) {
                    tracing::warn!(
                        shim,
                        "segment {shim} is not needed but could not be removed: {}",
                        chain(&error)
                    );
                }
            }
            Effect::ResumeLog { fence, stored } => self.with.pump.resume(fence, stored),
            Effect::ForgetLog(fence) => self.with.pump.forget(fence),
            Effect::LookForCheckpoints {
                fence,
                job_id,
                attempt,
                ended,
                publish,
            } => self.with.checkpoints.look(Look {
                fence,
                job: job_id,
                attempt,
                ended,
                publish,
            }),
            Effect::LookInto { fence, silence } => {
                let program = self.with.shim_program.clone();
                let watcher = self.with.watcher.clone();
                let told = self.look.clone();
                tokio::spawn(async move {
                    let evidence = Box::new(watcher.look_into(fence, program).await);
                    // Nobody listens any more once the agent is ending.
                    let _ = told.send(Event::LookedInto {
                        fence,
                        silence,
                        evidence,
                    });
                });
            }
            Effect::CheckpointAnswered { published, answer } => {
                self.with.checkpoints.answered(published, answer);
            }
            Effect::RemoveCheckpoints(job) => self.with.checkpoints.remove_job(job),
            Effect::RemoveLeftovers { job_id, attempt } => {
                self.with.checkpoints.remove_leftovers(job_id, attempt);
            }
            Effect::RemoveOld(running) => {
                let spool = Arc::clone(&self.with.spool);
                tokio::task::spawn_blocking(move || {
                    for error in spool.remove_old(SystemTime::now(), &running) {
                        tracing::warn!("something old could not be removed: {}", chain(&error));
                    }
                });
            }
        }
    }

    /// What holds about silence: the job's word counts before the worker's, and that before the
    /// coordinator's.
    fn silence_of(&self, assignment: &Assignment) -> Silence {
        let wish = |told: Option<&Silence>| told.map(wire::silence_wish).unwrap_or_default();
        let job = assignment.spec.as_ref();
        let job = wish(job.and_then(|spec| spec.silence.as_ref()));
        let general = wish(assignment.default_silence.as_ref());
        wire::wire_silence(job.over(self.with.silence).over(general))
    }

    fn moment(&self) -> wire::Moment {
        wire::Moment {
            now: clock::now(),
            clock_offset: self.clocks.latest(),
        }
    }

    fn ask(&self, shim: ShimId, message: Ask) {
        if let Some(link) = self.links.get(&shim) {
            link.send(ShimRequest {
                message: Some(message),
            });
        }
    }

    fn say(&mut self, say: Say) {
        let Some(session) = &self.session else {
            return;
        };
        let crowded = session.outbox.capacity() <= session.outbox.max_capacity() / 2;
        if crowded && matches!(say, Say::Progress { .. }) {
            return;
        }
        if let Say::SlotStuck { fence, pids } = &say {
            tracing::error!(
                fence,
                ?pids,
                "processes {pids:?} of the attempt with fence {fence} were killed and do not end; \
                 they hold its slot"
            );
        }
        match &say {
            Say::Gpu {
                gpu, fault: None, ..
            } => tracing::info!(%gpu, "GPU {gpu} passes its probe"),
            Say::Gpu {
                gpu,
                fault: Some(fault),
                ..
            } => {
                tracing::error!(%gpu, "GPU {gpu} is given to no job until it passes a probe: {fault}")
            }
            _ => {}
        }
        if let Say::Returned { fence, message, .. } = &say {
            tracing::info!(fence, "the assignment with fence {fence}: {message}");
        }
        let message = match say {
            Say::Heartbeat { sequence } => {
                let load = self.with.observer.load();
                let (machine, attempts) = self.with.watcher.measures();
                Wire::Heartbeat(Heartbeat {
                    sequence,
                    load: load.load,
                    memory_used_bytes: load.memory_used_bytes,
                    machine,
                    attempts,
                })
            }
            other => match wire::say(other) {
                Some(message) => message,
                None => return,
            },
        };
        self.send(message);
    }

    fn send(&mut self, message: Wire) {
        let Some(session) = &self.session else {
            return;
        };
        let message = OpenSessionRequest {
            message: Some(message),
        };
        if session.outbox.try_send(message).is_err() {
            self.end_session(Ending::Overflow);
            self.followed.push_back(Event::Closed);
        }
    }

    /// Tells what attempts resume from, as far as that was not told.
    pub(super) fn tell_chosen(&mut self) {
        if self.session.is_none() {
            return;
        }
        for (_, chosen) in std::mem::take(&mut self.chosen) {
            self.send(Wire::Resume(chosen));
        }
    }

    fn end_session(&mut self, why: Ending) {
        // Nobody listens when the connection is gone already.
        if let Some(session) = self.session.take() {
            match session.accepted {
                Some(accepted) => drop(accepted.send(Err(why))),
                None => drop(session.end.send(why)),
            }
        }
    }
}
