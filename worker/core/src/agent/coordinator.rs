//! The side towards the coordinator: greets, reconciles, obeys, and tells.

use std::time::Duration;

use super::{Agent, HEARTBEAT, LOST_AFTER, SHORTEST_HEARTBEAT};
use crate::agent::attempt::{Held, Stop, Terms};
use crate::agent::message::{Ask, Assignment, Close, Effect, Holding, Judged, Say, Welcome};
use crate::enforcement::StopCause;
use crate::guard::{Guard, is_broken};
use crate::lease_guard::{self, Heartbeats};
use crate::roster::Waiting;
use crate::session::{
    Identity, Reconciled, Refusal, Stage, accept_assignment, accept_term, reconcile,
};

/// A session in which everything has been agreed.
#[derive(Debug)]
pub(super) struct Session {
    term: i64,
    heartbeats: Heartbeats,
    interval: Duration,
    /// When the next heartbeat is due.
    pub(super) heartbeat_at: Duration,
}

impl Agent {
    pub(super) fn greet(&mut self) {
        self.session = None;
        self.greeting = true;
        self.given_back.clear();
        let held = self.attempts.iter_mut();
        let held = held.map(|(fence, held)| Holding {
            fence: *fence,
            stage: held.stage(),
            log_end: held.log_end,
            slot_held: held.greet(),
        });
        let held = held.collect();
        let checkpoints = self.checkpoints_to_greet();
        self.effects.push(Effect::Greet { held, checkpoints });
    }

    pub(super) fn welcomed(&mut self, welcome: Welcome) {
        if self.jumped_at.is_some_and(|at| welcome.greeted_at <= at) {
            return self.close(Close::ClockJumped);
        }
        match accept_term(self.term, welcome.term) {
            Err(passed) => return self.close(passed.into()),
            Ok(term) if term > self.term => {
                self.term = term;
                self.effects.push(Effect::RememberTerm(term));
            }
            Ok(_) => {}
        }
        let interval = welcome.heartbeat_interval.unwrap_or(HEARTBEAT);
        self.session = Some(Session {
            term: welcome.term,
            heartbeats: Heartbeats::default(),
            interval: interval.max(SHORTEST_HEARTBEAT),
            heartbeat_at: self.now,
        });
        self.greeting = false;
        self.answered = Some(welcome.greeted_at);
        self.lost_after = welcome.lost_after.unwrap_or(LOST_AFTER);
        self.roster.set_slots(welcome.slots);
        self.tell_checkpoints();
        self.tell_gpus();
        for judged in welcome.verdicts {
            self.reconcile(judged);
        }
        self.renew_leases();
    }

    fn reconcile(&mut self, judged: Judged) {
        let fence = judged.fence;
        let Some(held) = self.attempts.get_mut(&fence) else {
            return self.tell_given_back(judged);
        };
        let action = reconcile(held.stage(), held.slot_held(), judged.verdict);
        match action {
            Reconciled::Forget | Reconciled::Drop => {}
            Reconciled::ForgetOnceFreed => {
                held.committed = true;
                held.log_stored = u64::MAX;
            }
            Reconciled::Wait
            | Reconciled::TellStarted
            | Reconciled::Stop
            | Reconciled::TellEnded => {
                held.log_stored = judged.log_stored;
                held.settled_at = None;
                let stored = judged.log_stored;
                self.effects.push(Effect::ResumeLog { fence, stored });
            }
        }
        match action {
            Reconciled::Wait => {}
            Reconciled::Drop => {
                // It may have been given up, and its slot kept because nobody knew more.
                self.drop_waiting(fence);
                self.say(Say::SlotFreed(fence));
            }
            Reconciled::Stop => {
                let stop = Stop {
                    cause: StopCause::Superseded,
                    grace: None,
                    gpu: None,
                };
                self.stop(fence, stop);
                self.tell_stuck(fence);
            }
            Reconciled::TellStarted => {
                self.tell_running(fence);
                self.tell_stuck(fence);
            }
            Reconciled::TellEnded => {
                self.tell_ended(fence);
                self.tell_stuck(fence);
                self.settle(fence);
            }
            Reconciled::ForgetOnceFreed => {
                self.effects.push(Effect::ForgetLog(fence));
                self.tell_stuck(fence);
            }
            Reconciled::Forget => {
                if held.freed_since_greeting() {
                    self.say(Say::SlotFreed(fence));
                }
                self.forget(fence);
            }
        }
    }

    /// Tells what was given back while its greeting was under way.
    fn tell_given_back(&mut self, judged: Judged) {
        let fence = judged.fence;
        let Some(say) = self.given_back.remove(&fence) else {
            return;
        };
        match reconcile(Stage::Waiting, false, judged.verdict) {
            Reconciled::Drop => self.say(Say::SlotFreed(fence)),
            _ => self.say(say),
        }
    }

    /// Tells everything about an attempt that runs.
    fn tell_running(&mut self, fence: i64) {
        let Some(held) = self.attempts.get(&fence) else {
            return;
        };
        let started = held.started.clone();
        let started = started.map(|started| Say::Started { fence, started });
        let paused = held.paused;
        let paused = paused.map(|paused| Say::PauseChanged { fence, paused });
        let progress = held.progress.clone();
        let progress = progress.map(|reading| Say::Progress { fence, reading });
        let says = [started, paused, progress].into_iter().flatten();
        says.for_each(|say| self.say(say));
        self.tell_silence(fence);
    }

    /// Tells everything about an attempt that has ended.
    pub(super) fn tell_ended(&mut self, fence: i64) {
        let Some(held) = self.attempts.get(&fence) else {
            return;
        };
        // What it has published counts only before its end.
        if held.ended.is_none() || !self.may_tell_end(fence) {
            return;
        }
        // How far it came; that it once was less is no news of what has ended.
        let silence = held.silence.last().cloned().map(Box::new);
        let silence = silence.map(|told| Say::Silence { fence, told });
        let ended = held.ended.clone().map(|ended| Say::Ended { fence, ended });
        let freed = (!held.slot_held()).then_some(Say::SlotFreed(fence));
        let says = [silence, ended, freed].into_iter().flatten();
        says.for_each(|say| self.say(say));
    }

    pub(super) fn answered(&mut self, sequence: i64, term: i64) {
        let Some(session) = &mut self.session else {
            return;
        };
        if term != session.term {
            let close = match accept_term(session.term, term) {
                Err(passed) => passed.into(),
                Ok(term) => Close::NewTerm(term),
            };
            return self.close(close);
        }
        if let Some(sent) = session.heartbeats.answer(sequence) {
            self.answered = Some(sent);
            self.renew_leases();
        }
    }

    /// Sends a heartbeat that is due, or finds that nobody answers them.
    pub(super) fn beat(&mut self) {
        let Some(session) = &mut self.session else {
            return;
        };
        if self.now < session.heartbeat_at {
            return;
        }
        if let Some(since) = session.heartbeats.silent_since(self.now, session.interval) {
            return self.close(Close::Silent(self.now.saturating_sub(since)));
        }
        session.heartbeat_at = self.now.saturating_add(session.interval);
        let sequence = session.heartbeats.send(self.now);
        self.say(Say::Heartbeat { sequence });
    }

    pub(super) fn assign(&mut self, assignment: Assignment) {
        let fence = assignment.fence;
        let Some(session) = &self.session else {
            return self.effects.push(Effect::Discard(fence));
        };
        // One that has come before is with a shim or will be; what is kept of it stays.
        if self.attempts.contains_key(&fence) {
            return;
        }
        let made = Identity {
            term: assignment.term,
            boot_id: &assignment.terms.boot_id,
            spool_id: &assignment.terms.spool_id,
        };
        let me = Identity {
            term: session.term,
            boot_id: &self.boot_id,
            spool_id: &self.spool_id,
        };
        let runnable = assignment.runnable.then_some(()).ok_or(Refusal::Empty);
        let accepted = accept_assignment(made, me, self.roster.waiting_count())
            .and(runnable)
            .and(enough_gpus(&assignment.terms));
        if let Err(refusal) = accepted {
            self.effects.push(Effect::Discard(fence));
            return self.say(Say::Returned {
                fence,
                returned: true,
                message: format!("the worker returned the assignment: {refusal}"),
            });
        }
        let needs_probe = !assignment.terms.gpus.is_empty();
        let preparing = u32::from(assignment.prepare) + u32::from(needs_probe);
        self.roster.assign(Waiting {
            prepared: preparing == 0,
            ..assignment.terms.waiting(fence)
        });
        let mut held = Held::waiting(assignment.terms);
        held.preparing = preparing;
        self.attempts.insert(fence, held);
        if assignment.prepare {
            self.effects.push(Effect::Prepare(fence));
        }
        if needs_probe {
            self.unprobed.insert(fence);
        }
    }

    /// One of the things that had to be done before an attempt can run is done.
    pub(super) fn prepared(&mut self, fence: i64) {
        let Some(held) = self.attempts.get_mut(&fence) else {
            return;
        };
        held.preparing = held.preparing.saturating_sub(1);
        if held.preparing == 0 {
            self.roster.prepared(fence);
        }
    }

    pub(super) fn unprepared(&mut self, fence: i64, reason: String) {
        if self.stage(fence) == Some(Stage::Waiting) {
            let returned = Say::Returned {
                fence,
                returned: true,
                message: reason,
            };
            self.give_back(fence, returned);
        }
    }

    /// Gives back what waits, and tells why: now, or once the greeting that names it is answered.
    pub(super) fn give_back(&mut self, fence: i64, why: Say) {
        self.drop_waiting(fence);
        if self.greeting {
            self.given_back.insert(fence, why);
        } else {
            self.say(why);
        }
    }

    pub(super) fn revoke(&mut self, fence: i64) {
        let (returned, message) = match self.stage(fence) {
            Some(Stage::Waiting) => (true, "it had not started"),
            Some(Stage::Running) => (is_broken(Guard::Revocation), "it has started"),
            Some(Stage::Ended) => (false, "it has ended"),
            None => (true, "the worker does not hold it"),
        };
        if returned {
            self.drop_waiting(fence);
        }
        self.say(Say::Returned {
            fence,
            returned,
            message: message.to_owned(),
        });
    }

    pub(super) fn drop_waiting(&mut self, fence: i64) {
        self.roster.revoke(fence);
        if self.attempts.remove(&fence).is_some() {
            self.effects.push(Effect::Discard(fence));
        }
    }

    pub(super) fn stop(&mut self, fence: i64, stop: Stop) {
        let Some(held) = self.attempts.get_mut(&fence) else {
            return;
        };
        if held.stage() == Stage::Waiting {
            return self.revoke(fence);
        }
        held.stop = Some(stop.clone());
        self.ask_about(fence, |fence| stop.ask(fence));
    }

    pub(super) fn set_paused(&mut self, fence: i64, paused: bool) {
        let Some(held) = self.attempts.get_mut(&fence) else {
            return;
        };
        held.pause = Some(paused);
        self.ask_about(fence, |fence| Ask::SetPaused { fence, paused });
    }

    pub(super) fn committed(&mut self, fence: i64) {
        let held = self.attempts.get_mut(&fence);
        let Some(held) = held.filter(|held| held.ended.is_some()) else {
            return;
        };
        held.committed = true;
        self.ask_about(fence, Ask::Committed);
        self.settle(fence);
    }

    fn renew_leases(&mut self) {
        let running = |held: &Held| held.terms.exclusive && held.stage() == Stage::Running;
        let exclusive = self.attempts.iter().filter(|(_, held)| running(held));
        let exclusive: Vec<_> = exclusive.map(|(fence, _)| *fence).collect();
        for fence in exclusive {
            if let Some(until) = self.lease_until(fence) {
                self.ask_about(fence, |fence| Ask::Lease { fence, until });
            }
        }
    }

    /// When an exclusive attempt's lease ends. `None` for others, and while nothing was answered.
    pub(super) fn lease_until(&self, fence: i64) -> Option<Duration> {
        let terms = &self.attempts.get(&fence)?.terms;
        let answered = self.answered.filter(|_| terms.exclusive)?;
        if is_broken(Guard::ExclusiveLease) {
            return Some(Duration::MAX);
        }
        Some(lease_guard::lease_until(
            answered,
            self.lost_after,
            terms.grace,
        ))
    }

    /// The lease with which an attempt is handed to a shim. An exclusive one always has one: while
    /// nothing was answered since a clock jumped, one that is over, with which it cannot start. A
    /// shim that had it before goes on; one that had not records that it never starts.
    pub(super) fn lease_to_start(&self, fence: i64) -> Option<Duration> {
        let lease_until = self.lease_until(fence);
        let is_exclusive = self.attempts.get(&fence)?.terms.exclusive;
        if !is_exclusive || is_broken(Guard::LeaseToStart) {
            return lease_until;
        }
        Some(lease_until.unwrap_or_default())
    }

    /// What was answered before says nothing about the time since, and the connection may be dead.
    pub(super) fn clock_jumped(&mut self) {
        self.answered = None;
        self.jumped_at = Some(self.now);
        if self.session.is_some() {
            self.close(Close::ClockJumped);
        }
    }

    fn close(&mut self, close: Close) {
        self.session = None;
        self.effects.push(Effect::Close(close));
    }

    pub(super) fn say(&mut self, say: Say) {
        if self.session.is_some() {
            self.effects.push(Effect::Say(say));
        }
    }
}

/// A job that asked for GPUs does not run with fewer.
fn enough_gpus(terms: &Terms) -> Result<(), Refusal> {
    let (wanted, given) = (terms.gpus_wanted, terms.gpus.len());
    if given < wanted as usize {
        return Err(Refusal::Gpus { wanted, given });
    }
    Ok(())
}
