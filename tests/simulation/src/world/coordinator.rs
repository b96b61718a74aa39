//! The coordinator's shell: what `server/src/app` does around the core, with the store's double.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use qctl_server_core::dispatch::{NewAssignment, Round, Target, Turnover};
use qctl_server_core::job::JobEvent;
use qctl_server_core::leadership::{Leadership, Timing};
use qctl_server_core::lease::Leases;
use qctl_server_core::ledger::{
    AfterCommit, COORDINATOR, Holder, Ledger, Present, What, Which, lapsed,
};
use qctl_server_core::outcome::End;
use qctl_server_core::retry::Backoff;
use qctl_server_core::{Fence, JobId, StopCause, WorkerId};
use uuid::Uuid;

use super::faults::Fate;
use super::leadership::Answer;
use super::network::{Down, Given, Hello, Up, Welcome};
use super::{Happening, World, tell};
use crate::double::{Double, Refused, Worker};

/// Between two looks at the leases, the waits and the queue.
const LOOK: Duration = Duration::from_secs(4);
/// Between two searches for overlooked dependents.
const OVERLOOKED: Duration = Duration::from_secs(30);
/// Between two looks at what changes slowly.
const SLOW: Duration = Duration::from_secs(60);
/// Jobs or attempts in one transaction.
const BATCH: usize = 500;
/// Time between the stop signal and force of a job that names none.
const GRACE: Duration = Duration::from_secs(10);

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

    pub(super) fn want_dispatch(&mut self, coordinator: usize) {
        let Some(lead) = self.lead_of(coordinator) else {
            return;
        };
        if lead.dispatching {
            lead.dispatch_wanted = true;
            return;
        }
        lead.dispatching = true;
        self.soon(coordinator, Task::Dispatch);
    }

    fn round_is_over(&mut self, coordinator: usize) {
        if let Some(lead) = self.lead_of(coordinator) {
            lead.dispatching = false;
            if std::mem::take(&mut lead.dispatch_wanted) {
                self.want_dispatch(coordinator);
            }
        }
    }

    fn dispatch(&mut self, coordinator: usize) {
        let now = self.time_of(coordinator);
        let answers = self.database_answers(coordinator);
        let double = &self.database.double;
        let Some(lead) = self.coordinators[coordinator].lead.as_ref() else {
            return;
        };
        let ids: Vec<WorkerId> = lead.sessions.keys().copied().collect();
        if !answers || ids.is_empty() {
            return self.round_is_over(coordinator);
        }
        let mut fleet = double.fleet(&ids);
        for (worker, oldest) in fleet.workers.iter_mut().zip(&fleet.oldest_start) {
            let oldest = oldest.map(|start| (now - start).to_std().unwrap_or_default());
            worker.ready = lead
                .turnover
                .ready_places(worker.id, oldest)
                .max(self.settings.ready);
        }
        let targets = lead.sessions.iter().map(|(worker, session)| Target {
            worker: *worker,
            name: session.name.clone(),
            boot_id: session.boot_id.clone(),
            spool_id: session.spool_id,
        });
        let mut round = Round::new(fleet.workers, targets, now);
        if fleet.run_now {
            for queued in double.run_now_jobs() {
                round.start_now(&queued);
            }
        }
        let mut window = round.first_window().filter(|_| !fleet.queue_paused);
        while let Some(wanted) = window {
            let jobs = double.queued_jobs(round.accepting(), &wanted);
            window = round.offer(&wanted, &jobs);
        }
        let connections = lead
            .sessions
            .iter()
            .map(|(worker, session)| (*worker, session.connection))
            .collect();
        let decided = round.finish();
        if !decided.ask_back.is_empty() {
            let _ = self.change(
                coordinator,
                Which::Attempts(&decided.ask_back),
                |ledger, _| {
                    for fence in &decided.ask_back {
                        ledger.ask_back(*fence);
                    }
                    Ok(())
                },
            );
        }
        match decided.assign.is_empty() {
            true => self.round_is_over(coordinator),
            // Others write in between.
            false => self.soon(coordinator, Task::Assign(decided.assign, connections)),
        }
    }

    fn assign(
        &mut self,
        coordinator: usize,
        decided: &[NewAssignment],
        sessions: &BTreeMap<WorkerId, u32>,
    ) {
        let now = self.time_of(coordinator);
        let Some(term) = self.lead_of(coordinator).map(|lead| lead.term) else {
            return;
        };
        let made = self.transaction(coordinator, |double| Ok(double.assign(now, term, decided)));
        let made = match made {
            Ok(made) => made,
            Err(Trouble::Gone) => return,
            Err(_) => {
                // What may have been committed is found out by greeting anew.
                for new in decided {
                    if let Some(connection) = sessions.get(&new.worker) {
                        self.close_session(coordinator, new.worker, *connection);
                    }
                }
                return self.round_is_over(coordinator);
            }
        };
        for made in made {
            let Some(new) = decided.iter().find(|new| new.job == made.job) else {
                continue;
            };
            tell!(
                self,
                "job {} is assigned to {} as fence {}",
                made.job.0,
                new.worker_name,
                made.fence.0
            );
            let given = Given {
                fence: made.fence,
                job: made.job,
                number: made.number.0,
                term,
                boot_id: new.boot_id.clone(),
                spool_id: new.spool_id,
                slots: made.spec.demand.slots,
                beside_slots: new.beside_slots,
                exclusive: made.spec.exclusive,
                gpus: new.gpus.clone(),
                time_limit: made.spec.time_limit,
                grace: made.spec.stop_grace.unwrap_or(GRACE),
                resumes: !new.resume_from.is_empty(),
            };
            let target = sessions.get(&new.worker).copied().unwrap_or_default();
            let current = self.lead_of(coordinator).is_some_and(|lead| {
                lead.sessions
                    .get(&new.worker)
                    .is_some_and(|session| session.connection == target)
            });
            if current {
                self.send_down(target, Down::Assign(vec![given]));
            } else {
                self.incoming(coordinator, new.worker, target, made.fence, What::NotSent);
            }
        }
        self.round_is_over(coordinator);
    }

    fn close_session(&mut self, coordinator: usize, worker: WorkerId, connection: u32) {
        let Some(lead) = self.lead_of(coordinator) else {
            return;
        };
        if lead
            .sessions
            .get(&worker)
            .is_some_and(|session| session.connection == connection)
        {
            lead.sessions.remove(&worker);
            self.coordinator_closes(connection);
        }
    }

    pub(super) fn farewell(&mut self, coordinator: usize, machine: usize, connection: u32) {
        let worker = self.machines[machine].worker;
        self.close_session(coordinator, worker, connection);
    }

    pub(super) fn coordinator_hears(
        &mut self,
        coordinator: usize,
        machine: usize,
        connection: u32,
        message: Up,
    ) {
        let worker = self.machines[machine].worker;
        let trusted = self.is_trusted(coordinator);
        let Some(lead) = self.coordinators[coordinator].lead.as_mut() else {
            return self.coordinator_closes(connection);
        };
        match message {
            Up::Hello(hello) => {
                if let Some(session) = lead.sessions.get(&worker)
                    && session.spool_id != hello.spool_id
                {
                    return self.coordinator_closes(connection);
                }
                self.soon(
                    coordinator,
                    Task::Greet(machine, connection, Box::new(hello)),
                );
            }
            Up::Heartbeat(sequence) => {
                if !trusted {
                    return;
                }
                let now = self.now;
                if let Some(session) = lead.sessions.get(&worker)
                    && session.connection == connection
                {
                    lead.contacts.insert(worker, now);
                    let term = lead.term;
                    self.truth.heard(machine, now);
                    self.send_down(connection, Down::Ack(sequence, term));
                }
            }
            Up::Report(fence, what) => {
                self.incoming(coordinator, worker, connection, fence, *what);
            }
            Up::End => self.farewell(coordinator, machine, connection),
        }
    }

    fn incoming(
        &mut self,
        coordinator: usize,
        worker: WorkerId,
        connection: u32,
        fence: Fence,
        what: What,
    ) {
        let Some(lead) = self.lead_of(coordinator) else {
            return;
        };
        lead.inbox.push(Incoming {
            worker,
            connection,
            fence,
            what,
        });
        if !lead.writing {
            lead.writing = true;
            self.soon(coordinator, Task::Write);
        }
    }

    fn write_reports(&mut self, coordinator: usize) {
        let unguarded = self.flips.stale_session;
        let Some(lead) = self.lead_of(coordinator) else {
            return;
        };
        let batch = std::mem::take(&mut lead.inbox);
        // What an old connection still had to say is said again in the new one's greeting.
        let is_current = |report: &&Incoming| {
            matches!(report.what, What::NotSent)
                || unguarded
                || lead
                    .sessions
                    .get(&report.worker)
                    .is_some_and(|session| session.connection == report.connection)
        };
        let reports: Vec<Incoming> = batch.iter().filter(is_current).cloned().collect();
        let fences: Vec<Fence> = reports.iter().map(|report| report.fence).collect();
        let written = self.change(coordinator, Which::Attempts(&fences), |ledger, _| {
            for report in &reports {
                // A refused report is dropped, as the shell does.
                let _ = ledger.report(report.worker, report.fence, &report.what);
            }
            Ok(())
        });
        match written {
            Err(Trouble::Gone) => {}
            Err(Trouble::Unavailable | Trouble::Refused(_)) => {
                if let Some(lead) = self.lead_of(coordinator) {
                    let since = std::mem::replace(&mut lead.inbox, batch);
                    lead.inbox.extend(since);
                    self.task_after(coordinator, Duration::from_millis(500), Task::Write);
                }
            }
            Ok(()) => {
                for report in &reports {
                    tell!(self, "written: fence {} {:?}", report.fence.0, report.what);
                }
                if let Some(lead) = self.lead_of(coordinator) {
                    lead.writing = !lead.inbox.is_empty();
                    if lead.writing {
                        self.soon(coordinator, Task::Write);
                    }
                }
            }
        }
    }

    fn greet(&mut self, coordinator: usize, machine: usize, connection: u32, hello: &Hello) {
        let there = &self.machines[machine];
        let (worker, name) = (there.worker, there.name.clone());
        let (slots, gpus) = (there.slots, there.gpus.clone());
        let known = self.database.double.worker(worker);
        let slots = known.map_or(slots, |known| known.worker.slots);
        let row = Worker {
            id: worker,
            name: name.clone(),
            boot_id: hello.boot_id.clone(),
            spool_id: hello.spool_id,
            slots,
            gpus,
            memory_bytes: 0,
            greeting: hello.greeting,
        };
        let unguarded = self.flips.late_greeting;
        let recorded = self.transaction(coordinator, |double| {
            // A connection that was given up long ago may still carry a greeting.
            if let Some(known) = double.worker(worker).map(|known| &known.worker)
                && known.spool_id == row.spool_id
                && known.greeting >= row.greeting
                && !unguarded
            {
                return Err(Refused::Stale);
            }
            double.upsert_worker(row);
            Ok(())
        });
        if recorded.is_err() {
            return self.coordinator_closes(connection);
        }
        if let Some(lead) = self.lead_of(coordinator)
            && let Some(former) = lead.sessions.remove(&worker)
        {
            self.coordinator_closes(former.connection);
        }
        let mentioned: Vec<Fence> = hello.held.iter().map(|held| held.fence).collect();
        let fences = self.database.double.attempts_on(worker, &mentioned);
        let greeted = self.change_then(coordinator, Which::Attempts(&fences), |ledger| {
            ledger.greet(&Present {
                worker,
                name: &name,
                boot_id: &hello.boot_id,
                spool_id: hello.spool_id,
                held: &hello.held,
                checkpoints: &[],
            })
        });
        let Ok((greeted, after)) = greeted else {
            return self.coordinator_closes(connection);
        };
        let now = self.now;
        self.truth.heard(machine, now);
        let Some(lead) = self.lead_of(coordinator) else {
            return;
        };
        lead.sessions.insert(
            worker,
            Session {
                connection,
                name: name.clone(),
                boot_id: hello.boot_id.clone(),
                spool_id: hello.spool_id,
            },
        );
        lead.contacts.insert(worker, now);
        let term = lead.term;
        tell!(
            self,
            "coordinator {coordinator} greets {name}: {:?} -> {:?}",
            hello.held,
            greeted.verdicts
        );
        self.send_down(
            connection,
            Down::Welcome(Welcome {
                term,
                slots,
                verdicts: greeted.verdicts,
            }),
        );
        for message in greeted.messages {
            self.send_down(connection, Down::About(message));
        }
        self.carry_out(coordinator, after);
        self.want_dispatch(coordinator);
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

    fn watch_leases(&mut self, coordinator: usize) {
        let answers = self.database_answers(coordinator);
        let (now, heartbeat) = (self.now, self.settings.heartbeat);
        let current = self.database.double.current_attempts(usize::MAX);
        let Some(lead) = self.coordinators[coordinator].lead.as_mut() else {
            return;
        };
        if !answers {
            lead.looked = None;
            return;
        }
        let before = lead.looked;
        let elapsed = lead
            .looked
            .replace(now)
            .map_or(Duration::ZERO, |at| now - at);
        let (contacts, sessions) = (&lead.contacts, &lead.sessions);
        let heard = |worker: WorkerId| {
            let Some(at) = contacts.get(&worker) else {
                return false;
            };
            // A session may have come and gone between two looks.
            let in_session = sessions.contains_key(&worker) && now - *at <= heartbeat * 2;
            in_session || before.is_some_and(|before| *at > before)
        };
        let lapsed = lapsed(&mut lead.leases, &current, heard, elapsed, true);
        let after = self.settings.unreachable_after;
        let parts: [(&[Fence], Change<'_>); 3] = [
            (&lapsed.unreachable, &|ledger, fence| {
                ledger.unreachable(fence, after);
            }),
            (&lapsed.back, &Ledger::reachable),
            (&lapsed.lost, &Ledger::give_up),
        ];
        for (fences, apply) in parts {
            if fences.is_empty() {
                continue;
            }
            let done = self.change(coordinator, Which::Attempts(fences), |ledger, _| {
                fences.iter().for_each(|fence| apply(ledger, *fence));
                Ok(())
            });
            if done.is_err() {
                return;
            }
        }
    }

    fn queue_due(&mut self, coordinator: usize) {
        if !self.database_answers(coordinator) {
            return;
        }
        let now = self.time_of(coordinator);
        let (due, _) = self.database.double.due_jobs(now, BATCH);
        if !due.is_empty() {
            let _ = self.change(coordinator, Which::Jobs(&due), |ledger, _| {
                due.iter().for_each(|job| ledger.time_came(*job));
                Ok(())
            });
        }
    }

    fn resolve(&mut self, coordinator: usize) {
        let Some(lead) = self.lead_of(coordinator) else {
            return;
        };
        let ended: Vec<JobId> = std::mem::take(&mut lead.ended).into_iter().collect();
        if self.resolve_dependents(coordinator, &ended).is_err()
            && let Some(lead) = self.lead_of(coordinator)
        {
            lead.ended.extend(ended);
            self.task_after(coordinator, Duration::from_secs(1), Task::Resolve);
        }
    }

    pub(super) fn resolve_dependents(
        &mut self,
        coordinator: usize,
        ended: &[JobId],
    ) -> Result<(), Trouble> {
        if !self.database_answers(coordinator) {
            return Err(Trouble::Unavailable);
        }
        let jobs = self.database.double.dependents_of(ended, BATCH);
        self.settle_dependencies(coordinator, &jobs)
    }

    fn settle_dependencies(&mut self, coordinator: usize, jobs: &[JobId]) -> Result<(), Trouble> {
        if jobs.is_empty() {
            return Ok(());
        }
        self.change(coordinator, Which::Jobs(jobs), |ledger, double| {
            let open = double.open_of(jobs);
            let settled = ledger.settle_dependencies(&open);
            double.meet(&settled.met);
            Ok(())
        })
    }

    /// Output arrives, over a connection of its own.
    pub(super) fn chunk_arrives(
        &mut self,
        machine: usize,
        run: u64,
        fence: i64,
        offset: u64,
        length: u64,
    ) {
        let leader = (0..self.coordinators.len()).find(|index| {
            let here = &self.coordinators[*index];
            here.up && here.paused_until <= self.now && here.lead.is_some()
        });
        let Some(leader) = leader.filter(|_| self.machines[machine].cut_until <= self.now) else {
            return self.chunk_lost(machine, run, fence);
        };
        let stored = self.transaction(leader, |double| {
            Ok(double.store_log(Fence(fence), offset as i64, length as i64))
        });
        let delay = self.random.millis(0, 50);
        match stored {
            Ok(Some(stored)) => {
                let stored = Happening::ChunkStored(machine, run, fence, stored as u64);
                self.later(delay, stored);
            }
            Ok(None) => {}
            Err(_) => self.chunk_lost(machine, run, fence),
        }
    }

    fn chunk_lost(&mut self, machine: usize, run: u64, fence: i64) {
        let after = self.random.seconds(3, 8);
        self.later(after, Happening::ChunkStored(machine, run, fence, 0));
    }

    /// What holds a job for a person's look is released by one.
    pub(super) fn release_held(&mut self, coordinator: usize, jobs: &[JobId]) {
        let _ = self.change(coordinator, Which::Jobs(jobs), |ledger, _| {
            for job in jobs {
                let _ = ledger.job_event(*job, &JobEvent::Release, COORDINATOR);
            }
            Ok(())
        });
    }
}

/// The worker's name for a cause.
pub(super) fn cause_of(cause: StopCause) -> qctl_worker_core::enforcement::StopCause {
    use qctl_worker_core::enforcement::StopCause as There;
    match cause {
        StopCause::Cancel => There::Cancel,
        StopCause::TimeLimit => There::TimeLimit,
        StopCause::Silence => There::Silence,
        StopCause::Lease => There::Lease,
        StopCause::Superseded => There::Superseded,
        StopCause::Drill => There::Drill,
        StopCause::GpuFault => There::GpuFault,
        StopCause::GpuFallback => There::GpuFallback,
    }
}

/// The coordinator's name for a cause.
pub(super) fn cause_from(cause: qctl_worker_core::enforcement::StopCause) -> StopCause {
    use qctl_worker_core::enforcement::StopCause as There;
    match cause {
        There::Cancel => StopCause::Cancel,
        There::TimeLimit => StopCause::TimeLimit,
        There::Silence => StopCause::Silence,
        There::Lease => StopCause::Lease,
        There::Superseded => StopCause::Superseded,
        There::Drill => StopCause::Drill,
        There::GpuFault => StopCause::GpuFault,
        There::GpuFallback => StopCause::GpuFallback,
    }
}

/// The coordinator's name for an end.
pub(super) fn end_from(end: qctl_worker_core::agent::End) -> End {
    use qctl_worker_core::agent::End as There;
    match end {
        There::Waited => End::Waited,
        There::CannotStart => End::CannotStart,
        There::NeverStarted => End::NeverStarted,
        There::MachineLost => End::MachineLost,
        There::ShimLost | There::Unknown => End::ShimLost,
    }
}
