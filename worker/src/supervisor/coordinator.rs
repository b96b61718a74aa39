//! The supervisor's side towards the coordinator: greets, reconciles, obeys, and tells.

use std::sync::Arc;
use std::time::Duration;

use qctl_proto::v1::open_session_request::Message as Say;
use qctl_proto::v1::open_session_response::Message as Said;
use qctl_proto::v1::shim_request::Message as Ask;
use qctl_proto::v1::{
    Assignment, AssignmentReturned, OpenSessionRequest, PauseChanged, ResultCommitted, Revoke,
    SetPaused, ShimLease, SlotFreed, Stop, StopCause, Verdict as WireVerdict, verdict,
};
use qctl_worker_core::lease_guard;
use qctl_worker_core::session::{
    self, Identity, Reconciled, Stage, Verdict, accept_assignment, reconcile,
};
use tokio::time::Instant;

use super::{LOST_AFTER, Session, SessionEvent, Supervisor, Welcomed};
use crate::chain;
use crate::held::{Held, Terms};

impl Supervisor {
    pub(super) fn session(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Greeting(reply) => {
                self.greeting = true;
                let held = self.attempts.iter_mut();
                let held = held.map(|(fence, held)| held.greeting(*fence)).collect();
                // Without a listener there is no greeting, and the next one asks again.
                let _ = reply.send(held);
            }
            SessionEvent::Welcomed(welcomed) => self.welcomed(*welcomed),
            SessionEvent::Said(said) => self.said(said),
            SessionEvent::Answered(sent) => {
                self.answered = Some(sent);
                self.renew_leases();
            }
            SessionEvent::Closed => self.session = None,
        }
    }

    fn welcomed(&mut self, welcomed: Welcomed) {
        let welcome = welcomed.welcome;
        self.session = Some(Session {
            outbox: welcomed.outbox,
            overflow: welcomed.overflow,
            term: welcome.term,
        });
        self.greeting = false;
        self.answered = Some(welcomed.greeted_at);
        let lost_after = welcome.lost_after.as_ref();
        self.lost_after = lost_after
            .and_then(|time| Duration::try_from(*time).ok())
            .unwrap_or(LOST_AFTER);
        self.roster.set_slots(welcome.slots.max(1) as u32);
        for verdict in welcome.verdicts {
            self.reconcile(&verdict);
        }
        self.renew_leases();
    }

    fn reconcile(&mut self, wire: &WireVerdict) {
        let fence = wire.fence;
        let Some(held) = self.attempts.get_mut(&fence) else {
            return;
        };
        let verdict = match wire.action() {
            // An action that this program does not know changes nothing.
            verdict::Action::Continue | verdict::Action::Unspecified => Verdict::Continue,
            verdict::Action::Stop => Verdict::Stop,
            verdict::Action::SendResult => Verdict::SendResult,
            verdict::Action::Forget => Verdict::Forget,
        };
        let action = reconcile(held.stage(), held.slot_held(), verdict);
        if action == Reconciled::ForgetOnceFreed {
            held.committed = true;
            held.log_stored = u64::MAX;
        } else if !matches!(action, Reconciled::Forget | Reconciled::Drop) {
            held.log_stored = wire.log_stored.max(0) as u64;
            held.settled_at = None;
            self.with.pump.resume(fence, held.log_stored);
        }
        let started = held.started_message(fence).map(Say::Started);
        let paused = held.paused;
        let paused = paused.map(|paused| Say::PauseChanged(PauseChanged { fence, paused }));
        let progress = held.progress_message(fence).map(Say::Progress);
        let ended = held.ended_message().cloned().map(Say::Ended);
        let freed = (!held.slot_held()).then_some(Say::SlotFreed(SlotFreed { fence }));
        let freed_since = held.freed_since_greeting();
        match action {
            Reconciled::Wait => {}
            Reconciled::ForgetOnceFreed => self.with.pump.forget(fence),
            Reconciled::Drop => self.drop_waiting(fence),
            Reconciled::TellStarted => {
                let says = [started, paused, progress].into_iter().flatten();
                says.for_each(|say| self.say(say));
            }
            Reconciled::Stop => self.ask(
                fence,
                Ask::Stop(Stop {
                    fence,
                    cause: StopCause::Superseded.into(),
                    grace: None,
                }),
            ),
            Reconciled::TellEnded => {
                let says = [ended, freed].into_iter().flatten();
                says.for_each(|say| self.say(say));
                self.settle(fence);
            }
            Reconciled::Forget => {
                if freed_since {
                    self.say(Say::SlotFreed(SlotFreed { fence }));
                }
                self.forget(fence);
            }
        }
    }

    fn said(&mut self, said: Said) {
        match said {
            Said::Assign(assign) => {
                for assignment in assign.assignments {
                    self.assign(assignment);
                }
            }
            Said::Revoke(Revoke { fence }) => self.revoke(fence),
            Said::Stop(stop) => {
                if self.stage(stop.fence) == Some(Stage::Waiting) {
                    self.revoke(stop.fence);
                } else {
                    self.ask(stop.fence, Ask::Stop(stop));
                }
            }
            Said::ResultCommitted(ResultCommitted { fence }) => self.committed(fence),
            Said::SetSlots(slots) => self.roster.set_slots(slots.slots.max(1) as u32),
            Said::SetPaused(SetPaused { fence, paused }) => {
                self.ask(fence, Ask::SetPaused(SetPaused { fence, paused }));
            }
            // The session takes these itself.
            Said::Welcome(_) | Said::HeartbeatAck(_) => {}
        }
    }

    fn assign(&mut self, assignment: Assignment) {
        let fence = assignment.fence;
        let Some(session) = &self.session else {
            return;
        };
        if self.attempts.contains_key(&fence) {
            return;
        }
        let spool_id = self.with.spool.spool_id();
        let made = Identity {
            term: assignment.term,
            boot_id: &assignment.boot_id,
            spool_id: &assignment.spool_id,
        };
        let me = Identity {
            term: session.term,
            boot_id: &self.with.boot_id,
            spool_id: &spool_id,
        };
        let accepted = accept_assignment(made, me, self.roster.waiting_count());
        let has_command = assignment
            .spec
            .as_ref()
            .is_some_and(|spec| !spec.command.is_empty());
        let accepted = accepted.and(has_command.then_some(()).ok_or(session::Refusal::Empty));
        if let Err(refusal) = accepted {
            tracing::warn!(fence, %refusal, "the assignment with fence {fence} is returned: {refusal}");
            self.say(Say::Returned(AssignmentReturned {
                fence,
                returned: true,
                message: format!("the worker returned the assignment: {refusal}"),
            }));
            return;
        }
        let terms = Terms::of(&assignment);
        self.roster.assign(terms.waiting(fence));
        self.attempts.insert(fence, Held::waiting(terms));
        self.assignments.insert(fence, assignment);
    }

    fn revoke(&mut self, fence: i64) {
        let (returned, message) = match self.stage(fence) {
            Some(Stage::Waiting) => (true, "it had not started"),
            Some(Stage::Running) => (false, "it has started"),
            Some(Stage::Ended) => (false, "it has ended"),
            None => (true, "the worker does not hold it"),
        };
        if returned {
            self.drop_waiting(fence);
        }
        self.say(Say::Returned(AssignmentReturned {
            fence,
            returned,
            message: message.to_owned(),
        }));
    }

    fn drop_waiting(&mut self, fence: i64) {
        self.roster.revoke(fence);
        self.assignments.remove(&fence);
        self.attempts.remove(&fence);
    }

    fn committed(&mut self, fence: i64) {
        let Some(held) = self.attempts.get_mut(&fence) else {
            return;
        };
        held.committed = true;
        if held.succeeded() && held.may_have_checkpoints() {
            let (spool, job_id) = (Arc::clone(&self.with.spool), held.terms.job_id);
            tokio::task::spawn_blocking(move || {
                if let Err(error) = spool.remove_checkpoints(job_id) {
                    tracing::warn!(
                        job_id,
                        "checkpoints of job {job_id} could not be removed: {}",
                        chain(&error)
                    );
                }
            });
        }
        self.ask(fence, Ask::Committed(ResultCommitted { fence }));
        self.settle(fence);
    }

    /// Notes when nothing is owed any more.
    pub(super) fn settle(&mut self, fence: i64) {
        if let Some(held) = self.attempts.get_mut(&fence)
            && held.settled()
            && held.settled_at.is_none()
        {
            held.settled_at = Some(Instant::now());
        }
    }

    pub(super) fn forget(&mut self, fence: i64) {
        self.with.pump.forget(fence);
        let shim = self.attempts.remove(&fence).and_then(|held| held.shim);
        if let Some(shim) = shim.and_then(|shim| self.shims.get_mut(&shim)) {
            shim.attempts.remove(&fence);
        }
    }

    fn renew_leases(&mut self) {
        let Some(answered) = self.answered else {
            return;
        };
        let exclusive: Vec<_> = self
            .attempts
            .iter()
            .filter(|(_, held)| held.terms.exclusive && held.stage() == Stage::Running)
            .map(|(fence, held)| (*fence, self.lease(answered, held.terms.grace)))
            .collect();
        for (fence, lease) in exclusive {
            let holds_for = lease.try_into().ok();
            self.ask(fence, Ask::Lease(ShimLease { fence, holds_for }));
        }
    }

    pub(super) fn lease(&self, answered: Instant, grace: Duration) -> Duration {
        let now = self.clock.elapsed();
        let answered = answered.saturating_duration_since(self.clock);
        lease_guard::exclusive_lease(now, answered, self.lost_after, grace)
    }

    pub(super) fn say(&mut self, message: Say) {
        let Some(session) = &self.session else {
            return;
        };
        let message = OpenSessionRequest {
            message: Some(message),
        };
        if session.outbox.try_send(message).is_err() {
            session.overflow.cancel();
            self.session = None;
        }
    }

    /// Says something that may be left out.
    pub(super) fn say_if_room(&mut self, message: Say) {
        let room = self
            .session
            .as_ref()
            .is_some_and(|session| session.outbox.capacity() > session.outbox.max_capacity() / 2);
        if room {
            self.say(message);
        }
    }
}
