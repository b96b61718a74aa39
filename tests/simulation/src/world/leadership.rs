//! Which coordinator leads: the shell around the core's [`Leadership`]. Steps take time, and a
//! coordinator that is stopped in between hears their answers late.

use std::time::Duration;

use qctl_server_core::Term;
use qctl_server_core::leadership::{Leadership, Step, Timing};
use qctl_server_core::lease::{Leases, Limits};
use uuid::Uuid;

use super::coordinator::{Lead, Task};
use super::{Happening, World, tell};

/// What a step about leading has brought.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// The record, as it was read.
    Looked(qctl_server_core::leadership::Record),
    Claimed(Option<Term>),
    Renewed(bool),
    /// Nothing was heard.
    Failed,
}

impl World {
    pub(super) fn coordinator_starts(&mut self, coordinator: usize) {
        let here = &mut self.coordinators[coordinator];
        if here.up {
            return;
        }
        here.up = true;
        here.runs += 1;
        here.lead = None;
        let run = here.runs;
        let me = Uuid::from_u128((coordinator as u128 + 1) << 64 | u128::from(run));
        here.leadership = Leadership::new(me, Timing::default());
        here.me = me;
        tell!(self, "coordinator {coordinator} starts, run {run}");
        self.plan_step(coordinator);
    }

    /// Dies without a word. What it had committed stays.
    pub(super) fn coordinator_dies(&mut self, coordinator: usize) {
        if !self.coordinators[coordinator].up {
            return;
        }
        tell!(self, "coordinator {coordinator} dies");
        let after = match self.random.chance(30) {
            true => self.random.seconds(20, 300),
            false => self.random.seconds(1, 10),
        };
        let here = &mut self.coordinators[coordinator];
        here.up = false;
        here.paused_until = Duration::ZERO;
        if let Some(lead) = here.lead.take() {
            here.former = Some(lead.leases);
        }
        self.coordinator_of_connection_died(coordinator);
        self.later(after, Happening::CoordinatorStarts(coordinator));
    }

    fn plan_step(&mut self, coordinator: usize) {
        let here = &self.coordinators[coordinator];
        let (at, _) = here.leadership.next();
        let step = Happening::Task(coordinator, here.runs, 0, Task::Lead);
        self.at(at, step);
    }

    /// Asks the database about leading.
    pub(super) fn lead(&mut self, coordinator: usize) {
        self.lapse(coordinator, false);
        let started = self.now;
        let here = &self.coordinators[coordinator];
        let (run, me) = (here.runs, here.me);
        let (at, step) = here.leadership.next();
        if at > started {
            return self.plan_step(coordinator);
        }
        let answers = self.database_answers(coordinator);
        let double = &mut self.database.double;
        let answer = match step {
            _ if !answers => Answer::Failed,
            Step::Look => Answer::Looked(double.leader()),
            Step::Claim { term, renewals } => {
                Answer::Claimed(double.claim(term, renewals, me, Timing::default().lease))
            }
            Step::Renew(term) => Answer::Renewed(double.renew(term)),
        };
        if let Answer::Claimed(Some(term)) = answer {
            self.truth.term_began(term.0, started);
        }
        let lost = !self.calm && self.random.chance(2);
        let answer = if lost { Answer::Failed } else { answer };
        let after = self.random.millis(0, 30);
        let answered = Task::Answered(started, answer);
        self.later(after, Happening::Task(coordinator, run, 0, answered));
    }

    /// The database has answered, or has not.
    pub(super) fn lead_answered(&mut self, coordinator: usize, started: Duration, answer: Answer) {
        let now = self.now;
        let leadership = &mut self.coordinators[coordinator].leadership;
        match answer {
            Answer::Looked(record) => leadership.looked(now, record, false),
            Answer::Claimed(term) => leadership.claimed(started, now, term),
            Answer::Renewed(is_ours) => leadership.renewed(started, now, is_ours),
            Answer::Failed => leadership.failed(now),
        }
        self.lapse(coordinator, false);
        let here = &self.coordinators[coordinator];
        match (here.leadership.term(), &here.lead) {
            (Some(term), None) => self.takes_the_lead(coordinator, term.0),
            (None, Some(_)) => self.step_down(coordinator),
            _ => {}
        }
        self.plan_step(coordinator);
    }

    fn lapse(&mut self, coordinator: usize, is_fenced: bool) {
        let now = self.now;
        let unguarded = self.flips.lapsed_leader && !is_fenced;
        let here = &mut self.coordinators[coordinator];
        if !unguarded && here.leadership.lapse(now, is_fenced) {
            self.step_down(coordinator);
        }
    }

    /// The database has said that the term is over.
    pub(super) fn fenced(&mut self, coordinator: usize) {
        self.lapse(coordinator, true);
        self.step_down(coordinator);
        self.plan_step(coordinator);
    }

    fn takes_the_lead(&mut self, coordinator: usize, term: i64) {
        tell!(self, "coordinator {coordinator} leads in term {term}");
        let limits = Limits {
            unreachable_after: self.settings.unreachable_after,
            lost_after: self.settings.lost_after,
        };
        let kept = self
            .coordinators
            .iter()
            .find_map(|other| other.former.clone())
            .filter(|_| self.flips.silence_kept);
        let leases = kept.unwrap_or_else(|| Leases::new(limits));
        let run = self.coordinators[coordinator].runs;
        self.coordinators[coordinator].lead = Some(Lead::new(term, leases));
        for task in [Task::Look, Task::Overlooked, Task::Slow] {
            let task = Happening::Task(coordinator, run, term, task);
            self.later(Duration::ZERO, task);
        }
    }

    /// The leader's lease holds, as far as it can tell.
    pub(super) fn is_trusted(&self, coordinator: usize) -> bool {
        let here = &self.coordinators[coordinator];
        here.lead.is_some() && (self.flips.lapsed_leader || here.leadership.trusts(self.now))
    }

    /// No longer leads: every session is closed.
    pub(super) fn step_down(&mut self, coordinator: usize) {
        let Some(lead) = self.coordinators[coordinator].lead.take() else {
            return;
        };
        tell!(
            self,
            "coordinator {coordinator} leads no longer in term {}",
            lead.term
        );
        self.coordinator_of_connection_died(coordinator);
        self.coordinators[coordinator].former = Some(lead.leases);
    }

    pub(super) fn database_answers(&self, coordinator: usize) -> bool {
        self.database.down_until <= self.now && self.coordinators[coordinator].cut_until <= self.now
    }
}
