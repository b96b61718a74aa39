//! The coordinator's shell: what `server/src/app` does around the core, with the store's double. Here
//! are its state, its tasks and its transactions.

mod dispatch;
mod output;
mod sessions;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use qctl_server_core::dispatch::{NewAssignment, Turnover};
use qctl_server_core::leadership::{Leadership, Timing};
use qctl_server_core::lease::Leases;
use qctl_server_core::ledger::{AfterCommit, Holder, Ledger, What, Which};
use qctl_server_core::retry::Backoff;
use qctl_server_core::{Fence, JobId, WorkerId};
use uuid::Uuid;

use super::faults::Fate;
use super::leadership::Answer;
use super::network::{Down, Hello};
use super::{Happening, World, tell};
use crate::double::{Double, Refused};

/// Between two looks at the leases, the waits and the queue.
const LOOK: Duration = Duration::from_secs(4);
/// Between two searches for overlooked dependents.
const OVERLOOKED: Duration = Duration::from_secs(30);
/// Between two looks at what changes slowly.
const SLOW: Duration = Duration::from_secs(60);
/// Jobs or attempts in one transaction.
const BATCH: usize = 500;

/// What becomes of an attempt.
type Change<'a> = &'a dyn Fn(&mut Ledger, Fence);

/// A coordinator.
#[derive(Debug)]
pub(super) struct Coordinator {
    pub(super) up: bool,
    /// How often it was started.
    pub(super) runs: u64,
    /// Stopped, until then.
    pub(super) paused_until: Duration,
    /// Without a database, until then.
    pub(super) cut_until: Duration,
    skew: TimeDelta,
    pub(super) leadership: Leadership,
    /// The name of this run.
    pub(super) me: Uuid,
    pub(super) lead: Option<Lead>,
    /// What it had counted when it led last. Only a flipped guard looks at it.
    pub(super) former: Option<Leases<Holder>>,
}

impl Coordinator {
    pub(super) fn new(skew: TimeDelta) -> Self {
        Self {
            up: false,
            runs: 0,
            paused_until: Duration::ZERO,
            cut_until: Duration::ZERO,
            skew,
            leadership: Leadership::new(Uuid::nil(), Timing::default()),
            me: Uuid::nil(),
            lead: None,
            former: None,
        }
    }
}

/// What a coordinator knows while it leads.
#[derive(Debug)]
pub(super) struct Lead {
    pub(super) term: i64,
    pub(super) sessions: BTreeMap<WorkerId, Session>,
    /// When workers were last heard of, in whichever session.
    contacts: BTreeMap<WorkerId, Duration>,
    inbox: Vec<Incoming>,
    writing: bool,
    pub(super) leases: Leases<Holder>,
    looked: Option<Duration>,
    /// The same, whatever the database said since.
    looked_at: Option<Duration>,
    turnover: Turnover,
    /// Jobs that have ended, for those that wait for them.
    ended: BTreeSet<JobId>,
    dispatching: bool,
    dispatch_wanted: bool,
}

impl Lead {
    pub(super) fn new(term: i64, leases: Leases<Holder>) -> Self {
        Self {
            term,
            sessions: BTreeMap::new(),
            contacts: BTreeMap::new(),
            inbox: Vec::new(),
            writing: false,
            leases,
            looked: None,
            looked_at: None,
            turnover: Turnover::default(),
            ended: BTreeSet::new(),
            dispatching: false,
            dispatch_wanted: false,
        }
    }
}

/// A worker's session.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) connection: u32,
    name: String,
    boot_id: String,
    pub(super) spool_id: Uuid,
}

/// A report that waits to be written.
#[derive(Clone, Debug)]
struct Incoming {
    worker: WorkerId,
    connection: u32,
    fence: Fence,
    what: What,
}

/// A task of a coordinator.
#[derive(Clone, Debug)]
pub(super) enum Task {
    /// Ask about leading.
    Lead,
    /// What was asked at that time is answered.
    Answered(Duration, Answer),
    /// Count silence, end waits, look for work.
    Look,
    Overlooked,
    Slow,
    /// Write reports.
    Write,
    /// Settle a greeting.
    Greet(usize, u32, Box<Hello>),
    /// Read the queue and decide.
    Dispatch,
    /// Write what was decided, for the sessions of that moment.
    Assign(Vec<NewAssignment>, BTreeMap<WorkerId, u32>),
    /// Tell the dependents of jobs that have ended.
    Resolve,
}

/// Why a transaction did not happen, as far as its coordinator knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The database does not answer; it may have done what was asked.
    Unavailable,
    /// Another coordinator leads, or this one has died over it.
    Gone,
    /// The store refused, and nothing was done.
    Refused(Refused),
}

impl World {
    pub(super) fn time_of(&self, coordinator: usize) -> DateTime<Utc> {
        self.wall(self.coordinators[coordinator].skew)
    }

    pub(super) fn task(&mut self, coordinator: usize, run: u64, term: i64, task: Task) {
        let here = &self.coordinators[coordinator];
        if !here.up || here.runs != run {
            return;
        }
        match task {
            Task::Lead => return self.lead(coordinator),
            Task::Answered(started, answer) => {
                return self.lead_answered(coordinator, started, answer);
            }
            _ => {}
        }
        // What a leader left unfinished ends with its leadership.
        if here.lead.as_ref().is_none_or(|lead| lead.term != term) {
            return;
        }
        let again = |world: &mut Self, after, task| {
            world.later(after, Happening::Task(coordinator, run, term, task));
        };
        match task {
            Task::Lead | Task::Answered(..) => {}
            Task::Look => {
                again(self, LOOK, Task::Look);
                self.watch_leases(coordinator);
                self.queue_due(coordinator);
                self.want_dispatch(coordinator);
            }
            Task::Overlooked => {
                again(self, OVERLOOKED, Task::Overlooked);
                let jobs = self.database.double.overlooked_dependents(BATCH);
                // Nothing was announced, so nobody waits for the answer.
                let _ = self.settle_dependencies(coordinator, &jobs);
            }
            Task::Slow => {
                again(self, SLOW, Task::Slow);
                let _ = self.transaction(coordinator, |double| {
                    double.finish_drains();
                    Ok(())
                });
                self.hold_for_checkpoints(coordinator);
                self.give_up_checkpoints(coordinator);
            }
            Task::Write => self.write_reports(coordinator),
            Task::Greet(machine, connection, hello) => {
                self.greet(coordinator, machine, connection, &hello);
            }
            Task::Dispatch => self.dispatch(coordinator),
            Task::Assign(decided, sessions) => self.assign(coordinator, &decided, &sessions),
            Task::Resolve => self.resolve(coordinator),
        }
    }

    fn soon(&mut self, coordinator: usize, task: Task) {
        let after = self.random.millis(0, 20);
        self.task_after(coordinator, after, task);
    }

    fn task_after(&mut self, coordinator: usize, after: Duration, task: Task) {
        let here = &self.coordinators[coordinator];
        if let Some(lead) = &here.lead {
            let task = Happening::Task(coordinator, here.runs, lead.term, task);
            self.later(after, task);
        }
    }

    fn lead_of(&mut self, coordinator: usize) -> Option<&mut Lead> {
        self.coordinators[coordinator].lead.as_mut()
    }

    /// Carries out one transaction. What comes back is what the coordinator learns of it.
    pub(super) fn transaction<T>(
        &mut self,
        coordinator: usize,
        work: impl FnOnce(&mut Double) -> Result<T, Refused>,
    ) -> Result<T, Trouble> {
        if !self.database_answers(coordinator) {
            return Err(Trouble::Unavailable);
        }
        let Some(term) = self.lead_of(coordinator).map(|lead| lead.term) else {
            return Err(Trouble::Gone);
        };
        if self.database.double.check_term(term).is_err() {
            self.fenced(coordinator);
            return Err(Trouble::Gone);
        }
        let fate = self.fate.take();
        if fate == Some(Fate::DiesBefore) {
            self.coordinator_dies(coordinator);
            return Err(Trouble::Gone);
        }
        let before = self.database.double.version();
        let done = work(&mut self.database.double);
        let latest = self.database.double.term();
        if term < latest && self.database.double.version() != before {
            self.breaks(|| format!("a leader of term {term} writes in term {latest}"));
        }
        match fate {
            Some(Fate::DiesAfter) => {
                self.coordinator_dies(coordinator);
                Err(Trouble::Gone)
            }
            Some(Fate::AnswerLost) => {
                tell!(self, "the answer to a commit is lost");
                Err(Trouble::Unavailable)
            }
            _ => done.map_err(Trouble::Refused),
        }
    }

    /// Loads, decides, saves; and carries out what follows once it is committed.
    pub(super) fn change<T>(
        &mut self,
        coordinator: usize,
        which: Which<'_>,
        decide: impl FnOnce(&mut Ledger, &mut Double) -> Result<T, Refused>,
    ) -> Result<T, Trouble> {
        let now = self.time_of(coordinator);
        let backoff = Backoff {
            base: Duration::from_secs(5),
            most: Duration::from_secs(600),
            random: self.random.unit(),
        };
        let (value, after) = self.transaction(coordinator, |double| {
            let (jobs, attempts) = double.load(which);
            let mut ledger = Ledger::new(now, backoff, jobs, attempts);
            let value = decide(&mut ledger, double)?;
            let closed = ledger.close();
            double.save(&closed)?;
            Ok((value, closed.after))
        })?;
        self.carry_out(coordinator, after);
        Ok(value)
    }

    /// As [`World::change`], for those who have something to do before what follows is carried out.
    fn change_then<T>(
        &mut self,
        coordinator: usize,
        which: Which<'_>,
        decide: impl FnOnce(&mut Ledger) -> T,
    ) -> Result<(T, AfterCommit), Trouble> {
        let now = self.time_of(coordinator);
        let backoff = Backoff {
            base: Duration::from_secs(5),
            most: Duration::from_secs(600),
            random: self.random.unit(),
        };
        self.transaction(coordinator, |double| {
            let (jobs, attempts) = double.load(which);
            let mut ledger = Ledger::new(now, backoff, jobs, attempts);
            let value = decide(&mut ledger);
            let closed = ledger.close();
            double.save(&closed)?;
            Ok((value, closed.after))
        })
    }

    pub(super) fn carry_out(&mut self, coordinator: usize, after: AfterCommit) {
        let mut stale = Vec::new();
        let Some(lead) = self.lead_of(coordinator) else {
            return;
        };
        for over in &after.over {
            if let Some(duration) = over.duration {
                lead.turnover.note(over.worker, duration);
            }
        }
        for (worker, message) in after.messages {
            if let Some(session) = lead.sessions.get(&worker) {
                stale.push((session.connection, message));
            }
        }
        let resolve = !after.ended.is_empty();
        lead.ended.extend(&after.ended);
        for (connection, message) in stale {
            self.send_down(connection, Down::About(message));
        }
        if after.dispatch {
            self.want_dispatch(coordinator);
        }
        if resolve {
            self.soon(coordinator, Task::Resolve);
        }
    }
}
