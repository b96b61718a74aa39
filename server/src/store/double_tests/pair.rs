//! The store and its double, which are given the same operations.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use qctl_server_core::dispatch::NewAssignment;
use qctl_server_core::ledger::{AttemptRow, Closed, Ledger, Which};
use qctl_server_core::retry::Backoff;
use qctl_server_core::{Fence, JobId, Term, WorkerId};
use qctl_simulation::double::{Double, Refused, Unguarded};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, SqlSafeStr};
use uuid::Uuid;

use super::jobs::asked;
use super::steps::{Pick, Step, Told, Wanting, What};
use super::view::{Differs, EventView, events, same, same_rows};
use crate::store::fixtures::noon;
use crate::store::leadership::{self, Leader};
use crate::store::ledger::{load, save};
use crate::store::{Lease, Store, StoreError, Work, workers};

/// Who submits and asks.
pub(super) const PERSON: &str = "a person";
/// Machines with a worker.
pub(super) const MACHINES: usize = 3;

/// What becomes of an open ledger, on either side.
pub(super) type Decide = Arc<dyn Fn(&mut Ledger) + Send + Sync>;

/// Both, and what surrounds them.
pub(super) struct Pair {
    pub(super) pool: PgPool,
    pub(super) store: Store,
    /// The same in the term before.
    pub(super) former: Option<Store>,
    pub(super) double: Double,
    pub(super) now: DateTime<Utc>,
    pub(super) machines: Vec<Machine>,
    pub(super) requests: u64,
    /// What was decided and not written yet.
    pub(super) decided: Option<Closed>,
    /// Number of the latest entry of the history, and how many the double has.
    pub(super) last_event: i64,
    pub(super) told: usize,
}

/// A worker as it is, whether it has greeted or not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub(super) boot: u32,
    pub(super) spool: u32,
    pub(super) greeting: i64,
}

#[derive(Clone, Debug)]
pub(super) enum Chosen {
    Jobs(Vec<JobId>),
    Attempts(Vec<Fence>),
}

impl Chosen {
    fn as_which(&self) -> Which<'_> {
        match self {
            Self::Jobs(jobs) => Which::Jobs(jobs),
            Self::Attempts(fences) => Which::Attempts(fences),
        }
    }
}

pub(super) fn pick<T: Copy>(from: &[T], pick: Pick) -> Option<T> {
    let index = usize::from(pick).checked_rem(from.len())?;
    from.get(index).copied()
}

/// As [`pick`], and half of the time one of the latest.
fn lately<T: Copy>(from: &[T], wanted: Pick) -> Option<T> {
    let first = match wanted >= 128 {
        true => from.len().saturating_sub(3),
        false => 0,
    };
    pick(&from[first..], wanted)
}

/// How the double would call it; anything else is a bug of the store or of this test.
pub(super) fn refused(error: StoreError) -> Refused {
    match error {
        StoreError::Exists(_) => Refused::Exists,
        StoreError::Stale => Refused::Stale,
        StoreError::Fenced => Refused::Term,
        other => panic!("{other:?}"),
    }
}

/// Empties every table, and has every number begin anew.
async fn empty(pool: &PgPool) {
    let tables: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class
         where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')
           and not relispartition and relname not in ('_sqlx_migrations')",
    )
    .fetch_all(pool)
    .await
    .expect("tables");
    let statement = format!(
        "truncate {} restart identity cascade;
         alter sequence fences restart;
         insert into coordinator default values",
        tables.join(", ")
    );
    sqlx::raw_sql(AssertSqlSafe(statement).into_sql_str())
        .execute(pool)
        .await
        .expect("empty tables");
}

impl Pair {
    pub(super) async fn new(pool: &PgPool, unguarded: Unguarded) -> Self {
        empty(pool).await;
        let store = Store::new(pool.clone(), Lease::unlimited(Term(0)));
        let days = [noon(), noon() + TimeDelta::days(1)];
        for day in days.map(|day| day.date_naive()) {
            store.ensure_log_partition(day).await.expect("a partition");
        }
        let machine = Machine {
            boot: 1,
            spool: 1,
            greeting: 0,
        };
        Self {
            pool: pool.clone(),
            store,
            former: None,
            double: Double::new(true, unguarded),
            now: noon(),
            machines: vec![machine; MACHINES],
            requests: 0,
            decided: None,
            last_event: 0,
            told: 0,
        }
    }

    pub(super) async fn step(&mut self, step: Step) -> Result<(), Differs> {
        // Every step has a moment of its own.
        self.now += TimeDelta::milliseconds(1);
        let late = step.late;
        let mut in_order = true;
        match step.what {
            What::Submit { again, jobs } => self.submit(late, again, &jobs).await?,
            What::Retry { job, resumes } => {
                self.retry(late, job, resumes).await?;
                self.give_up_checkpoints(late, self.now).await?;
            }
            What::Delete(job) => self.delete(late, job).await?,
            What::Person(wish) => {
                if let Some((job, decide)) = self.wish(&wish) {
                    self.change(late, Chosen::Jobs(vec![job]), decide).await?;
                }
            }
            What::Decide(wish) => {
                if let Some((job, decide)) = self.wish(&wish) {
                    self.decide(job, &decide);
                }
            }
            What::Overtaken { attempt, length } => {
                if let Some(row) = self.attempt(attempt) {
                    self.decide(row.job, &asked(row.job, Wanting::Cancel, None));
                    self.output(late, attempt, false, length).await?;
                    self.write_late(late).await?;
                }
            }
            What::WriteLate => self.write_late(late).await?,
            What::Greet(greeting) => self.greet(late, &greeting).await?,
            What::Steer {
                worker,
                mode,
                slots,
            } => self.steer(late, worker, mode, slots).await?,
            What::PauseQueue(paused) => {
                let real = self.in_store(late, move |conn| {
                    Box::pin(async move { workers::pause_queue(conn, paused).await })
                });
                let real = real.await;
                let ours = self.check_term(late);
                let ours = ours.map(|()| self.double.pause_queue(paused));
                same("pausing the queue", &real, &ours)?;
            }
            What::FinishDrains => self.finish_drains(late).await?,
            What::Dispatch { ready } => {
                in_order = false;
                self.dispatch(late, ready).await?;
            }
            What::Assign(places) => {
                in_order = false;
                let mut jobs = HashSet::new();
                let new = places.into_iter().filter_map(|(job, worker)| {
                    let job = self.job(job).filter(|job| jobs.insert(*job))?;
                    Some(self.assignment(job, self.known_worker(worker)?))
                });
                let new: Vec<NewAssignment> = new.collect();
                self.assign(late, &new).await?;
            }
            What::Report {
                attempt,
                stranger,
                what,
            } => self.report(late, attempt, stranger, what).await?,
            What::Lives {
                attempt,
                checkpoints,
                code,
                freed,
            } => {
                let published = (1..=checkpoints).map(|number| Told::Checkpoint {
                    number,
                    hashed: number == 1,
                    removed: false,
                });
                let ended = Told::Ended {
                    end: 0,
                    code: Some(code),
                    stopped: false,
                    output: 0,
                };
                let told = [Told::Started].into_iter().chain(published);
                let end = [ended].into_iter().chain(freed.then_some(Told::Freed));
                for what in told.chain(end) {
                    self.report(late, attempt, false, what).await?;
                }
                if code > 0 {
                    // A retry waits for at most ten minutes.
                    self.now += TimeDelta::minutes(10);
                    self.look_around(late).await?;
                }
            }
            What::Silent { attempt, how } => self.silent(late, attempt, how).await?,
            What::LookAround => self.look_around(late).await?,
            What::Output {
                attempt,
                astray,
                length,
            } => self.output(late, attempt, astray, length).await?,
            What::Copy(checkpoint) => self.copy(late, checkpoint).await?,
            What::GiveUpCheckpoints { ended_for } => {
                let before = self.now - TimeDelta::seconds(ended_for.into());
                self.give_up_checkpoints(late, before).await?;
            }
            What::Claim { outdated } => self.claim(outdated).await?,
            What::Renew => {
                let term = self.led(late).1;
                let mut conn = self.pool.acquire().await.expect("a connection");
                let real = leadership::renew(&mut conn, term).await.expect("an answer");
                same("renewing", &real, &self.double.renew(term))?;
            }
            What::Release => {
                let term = self.led(late).1;
                let mut conn = self.pool.acquire().await.expect("a connection");
                let released = leadership::release(&mut conn, term).await;
                released.expect("an answer");
                self.double.release(term);
            }
            What::Wait { seconds } => self.now += TimeDelta::seconds(seconds.into()),
        }
        self.compare_history(in_order).await
    }

    /// What was told since the last step. Assignments of one statement are numbered in any order.
    pub(super) async fn compare_history(&mut self, in_order: bool) -> Result<(), Differs> {
        let mut conn = self.pool.acquire().await.expect("a connection");
        let (mut real, last) = events(&mut conn, self.last_event).await;
        // Deleting a job takes its history along.
        let ours = self.double.events();
        let since = ours.get(self.told.min(ours.len())..).unwrap_or_default();
        let mut since: Vec<EventView> = since
            .iter()
            .map(|event| {
                (
                    event.job.map(|job| job.0),
                    event.attempt.map(|attempt| attempt.0),
                    event.worker.clone(),
                    event.kind.to_owned(),
                    event.message.clone(),
                    event.actor.clone(),
                )
            })
            .collect();
        self.last_event = last;
        self.told = ours.len();
        if !in_order {
            real.sort();
            since.sort();
        }
        same_rows("the history", &real, &since)
    }

    pub(super) fn backoff(&self) -> Backoff {
        Backoff {
            base: Duration::from_secs(5),
            most: Duration::from_secs(600),
            random: 0.5,
        }
    }

    pub(super) fn led(&self, late: bool) -> (Store, Term) {
        let former = self.former.as_ref().filter(|_| late);
        let store = former.unwrap_or(&self.store).clone();
        let term = store.lease().term();
        (store, term)
    }

    pub(super) fn check_term(&self, late: bool) -> Result<(), Refused> {
        self.double.check_term(self.led(late).1.0)
    }

    pub(super) fn job(&self, wanted: Pick) -> Option<JobId> {
        let jobs: Vec<JobId> = self.double.jobs().keys().copied().collect();
        lately(&jobs, wanted)
    }

    pub(super) fn attempt(&self, wanted: Pick) -> Option<AttemptRow> {
        let fences: Vec<Fence> = self.double.attempts().keys().copied().collect();
        let fence = lately(&fences, wanted)?;
        Some(self.double.attempts()[&fence].row.clone())
    }

    pub(super) fn known_worker(&self, wanted: Pick) -> Option<WorkerId> {
        let known: Vec<WorkerId> = self.double.workers().keys().copied().collect();
        pick(&known, wanted)
    }

    pub(super) async fn in_store<T: Send + 'static>(
        &self,
        late: bool,
        work: impl for<'t> FnOnce(&'t mut PgConnection) -> Work<'t, T, StoreError> + Send + 'static,
    ) -> Result<T, Refused> {
        let done = self.led(late).0.transaction(work).await;
        done.map_err(refused)
    }

    /// Loads, decides and saves on both sides.
    pub(super) async fn change(
        &mut self,
        late: bool,
        which: Chosen,
        decide: Decide,
    ) -> Result<(), Differs> {
        let (now, backoff) = (self.now, self.backoff());
        let (theirs, their_way) = (which.clone(), Arc::clone(&decide));
        let real = self.in_store(late, move |conn| {
            Box::pin(async move {
                let (jobs, attempts) = load(&mut *conn, theirs.as_which()).await?;
                let mut ledger = Ledger::new(now, backoff, jobs.clone(), attempts.clone());
                their_way(&mut ledger);
                save(conn, now, &ledger.close()).await?;
                Ok((jobs, attempts))
            })
        });
        let real = real.await;
        let double = &mut self.double;
        let term = self.former.as_ref().filter(|_| late);
        let term = term.unwrap_or(&self.store).lease().term();
        let ours = double.check_term(term.0).and_then(|()| {
            let (jobs, attempts) = double.load(which.as_which());
            let mut ledger = Ledger::new(now, backoff, jobs.clone(), attempts.clone());
            decide(&mut ledger);
            double.save(&ledger.close())?;
            Ok((jobs, attempts))
        });
        same("a change", &real, &ours)
    }

    fn decide(&mut self, job: JobId, decide: &Decide) {
        let (jobs, attempts) = self.double.load(Which::Jobs(&[job]));
        let mut ledger = Ledger::new(self.now, self.backoff(), jobs, attempts);
        decide(&mut ledger);
        self.decided = Some(ledger.close());
    }

    pub(super) async fn write_late(&mut self, late: bool) -> Result<(), Differs> {
        let Some(closed) = self.decided.take() else {
            return Ok(());
        };
        let (now, theirs) = (self.now, closed.clone());
        let real = self.in_store(late, move |conn| {
            Box::pin(async move { save(conn, now, &theirs).await })
        });
        let real = real.await;
        let ours = self.check_term(late);
        let ours = ours.and_then(|()| self.double.save(&closed));
        same("writing late", &real, &ours)
    }

    pub(super) async fn claim(&mut self, outdated: bool) -> Result<(), Differs> {
        let known = self.double.leader();
        let renewals = known.renewals + i64::from(outdated);
        let run = Uuid::from_u128(known.term.0 as u128 + 1);
        let lease = Duration::from_secs(15);
        let leader = Leader {
            name: "a coordinator".to_owned(),
            url: "http://queue.test".to_owned(),
            place: String::new(),
        };
        let mut conn = self.pool.acquire().await.expect("a connection");
        let seen = (known.term, renewals);
        let real = leadership::claim(&mut conn, seen, run, &leader, lease).await;
        let real = real.expect("an answer");
        let ours = self.double.claim(known.term, renewals, run, lease);
        same("claiming", &real, &ours)?;
        if let Some(term) = real {
            let store = Store::new(self.pool.clone(), Lease::unlimited(term));
            self.former = Some(std::mem::replace(&mut self.store, store));
        }
        Ok(())
    }
}

pub(super) fn name(index: usize) -> String {
    format!("m{index}")
}

pub(super) fn worker_id(index: usize) -> WorkerId {
    WorkerId(Uuid::from_u128(0x100 + index as u128))
}
