//! A worker connects: who it is, and what to do with every attempt that it holds or should hold.

use std::collections::HashMap;
use std::sync::Arc;

use qctl_server_core::attempt::AttemptEvent;
use qctl_server_core::reconcile::{Action, Finding, Held, Recorded, verdict};
use qctl_server_core::{AttemptState, Facts, Fence, StopCause, WorkerId};
use uuid::Uuid;

use super::ledger::{COORDINATOR, EndReport, Ledger, general_event};
use super::read::GpuRecord;
use super::{App, Change, Error};
use crate::sessions::{Outbox, ToWorker};
use crate::store::ledger::Which;
use crate::store::workers::{self, KnownWorker, WorkerRow};

/// Longest name of a worker or host, in bytes.
const MAX_NAME: usize = 200;
/// Most attempts that a worker may hold: the results of a long absence.
const MAX_HELD: usize = 100_000;
/// Most slots of a worker.
const MAX_SLOTS: i32 = 1_000;

/// What a worker says when it connects.
#[derive(Clone, Debug)]
pub struct Hello {
    /// Its identity.
    pub worker: WorkerId,
    /// The name it wants.
    pub name: String,
    /// The machine's host name.
    pub hostname: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// The spool that it owns.
    pub spool_id: Uuid,
    /// Version of the agent.
    pub version: String,
    /// Slots it was configured with; `None` leaves what is remembered, or 1.
    pub slots: Option<i32>,
    /// Its GPUs.
    pub gpus: Vec<GpuRecord>,
    /// Its memory in bytes.
    pub memory_bytes: i64,
    /// Its logical processors.
    pub cpus: i32,
    /// Every attempt it has a record of.
    pub held: Vec<HeldHere>,
}

/// An attempt that a worker has a record of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldHere {
    /// The attempt.
    pub fence: Fence,
    /// How far it came there.
    pub state: AttemptState,
    /// Processes of it are left.
    pub slot_held: bool,
}

/// The answer to a hello.
#[derive(Debug)]
pub struct Greeting {
    /// What follows.
    pub outbox: Outbox,
    /// A verdict for each attempt of the hello.
    pub verdicts: Vec<Answer>,
    /// Slots to keep ready.
    pub slots: i32,
}

/// The verdict on one attempt that a worker holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The attempt.
    pub fence: Fence,
    /// What to do with it.
    pub action: Action,
    /// Bytes of its output that are stored.
    pub log_stored: i64,
}

struct Reconciled {
    verdicts: Vec<Answer>,
    /// What to tell the worker after the greeting.
    messages: Vec<ToWorker>,
    after: super::ledger::AfterCommit,
    tracked: Vec<(Fence, qctl_server_core::JobId)>,
}

impl App {
    /// Admits a worker: closes its former session, settles every attempt, and opens a new session.
    /// Nothing is assigned to it before this is done.
    ///
    /// # Errors
    /// [`Error::InvalidField`] for a hello that makes no sense, [`Error::SpoolInUse`] for a copy of a
    /// connected worker, [`Error::WorkerNameTaken`].
    pub async fn greet(self: &Arc<Self>, hello: Hello) -> Result<Greeting, Error> {
        check(&hello)?;
        // A caller who goes away in the middle must not leave half a greeting behind.
        let app = Arc::clone(self);
        let task = tokio::spawn(async move {
            // One greeting at a time: two connections of one worker must not interleave.
            let _turn = app.greetings.lock().await;
            app.greet_in_turn(hello).await
        });
        task.await.map_err(|_| Error::ShuttingDown)?
    }

    async fn greet_in_turn(self: &Arc<Self>, hello: Hello) -> Result<Greeting, Error> {
        if let Some(session) = self.sessions.get(hello.worker)
            && session.spool_id != hello.spool_id
        {
            return Err(Error::SpoolInUse { name: hello.name });
        }
        self.sessions.close_any(hello.worker);
        let hello = Arc::new(hello);
        let (slots, renamed) = self.record_worker(&hello).await?;
        if let Some(name) = renamed {
            tracing::info!(worker = %hello.name, "worker `{}` takes over its name; the former one is now called `{name}`", hello.name);
        }
        let reconciled = self.reconcile(&hello).await?;
        let outbox = self.sessions.open(
            hello.worker,
            hello.name.clone(),
            hello.boot_id.clone(),
            hello.spool_id,
            self.clock.now(),
        );
        for (fence, job) in reconciled.tracked {
            self.live.track(fence, job);
        }
        for message in reconciled.messages {
            self.sessions.send_to(hello.worker, outbox.session, message);
        }
        self.carry_out(reconciled.after);
        self.wake.dispatch();
        self.changes.tell(Change::Workers);
        tracing::info!(
            worker = %hello.name,
            session = %outbox.session,
            held = hello.held.len(),
            "worker `{}` connected (session {}, {} attempts held)",
            hello.name,
            outbox.session,
            hello.held.len(),
        );
        Ok(Greeting {
            outbox,
            verdicts: reconciled.verdicts,
            slots,
        })
    }

    /// Records the worker as it says it is. Returns its slots, and the new name of a worker that had
    /// its name before.
    async fn record_worker(&self, hello: &Arc<Hello>) -> Result<(i32, Option<String>), Error> {
        let hello = Arc::clone(hello);
        let now = self.clock.now();
        let sessions = self.sessions.clone();
        self.store
            .transaction(move |conn| {
                Box::pin(async move {
                    let known = workers::known(conn, hello.worker, &hello.name).await?;
                    let mut renamed = None;
                    let owner = known
                        .iter()
                        .find(|known| known.name == hello.name && known.id != hello.worker);
                    if let Some(owner) = owner {
                        if owner.holds || sessions.is_connected(owner.id) {
                            return Err(Error::WorkerNameTaken {
                                name: hello.name.clone(),
                                owner: owner.id,
                            });
                        }
                        // It is gone and holds nothing: most likely this machine's, installed anew.
                        let name = former_name(owner);
                        workers::rename(conn, owner.id, &name).await?;
                        renamed = Some(name);
                    }
                    let former = known.iter().find(|known| known.id == hello.worker);
                    let slots = hello
                        .slots
                        .or(former.map(|former| former.slots))
                        .unwrap_or(1);
                    let row = WorkerRow {
                        id: hello.worker,
                        name: hello.name.clone(),
                        hostname: hello.hostname.clone(),
                        boot_id: hello.boot_id.clone(),
                        spool_id: hello.spool_id,
                        version: hello.version.clone(),
                        slots,
                        gpus: hello.gpus.clone(),
                        memory_bytes: hello.memory_bytes,
                        cpus: hello.cpus,
                    };
                    workers::upsert(conn, now, &row).await?;
                    Ok((slots, renamed))
                })
            })
            .await
    }

    async fn reconcile(self: &Arc<Self>, hello: &Arc<Hello>) -> Result<Reconciled, Error> {
        let app = Arc::clone(self);
        let hello = Arc::clone(hello);
        self.store
            .transaction(move |conn| {
                Box::pin(async move {
                    let held: HashMap<Fence, HeldHere> =
                        hello.held.iter().map(|held| (held.fence, *held)).collect();
                    let mentioned: Vec<Fence> = held.keys().copied().collect();
                    let mut fences = workers::attempts_on(conn, hello.worker, &mentioned).await?;
                    let mut ledger = Ledger::open(&app, conn, Which::Attempts(&fences)).await?;
                    fences.extend(mentioned);
                    fences.sort_unstable();
                    fences.dedup();
                    let mut verdicts = Vec::with_capacity(held.len());
                    let mut messages = Vec::new();
                    let mut tracked = Vec::new();
                    for fence in fences {
                        let settled = settle(&mut ledger, &hello, held.get(&fence), fence);
                        verdicts.extend(settled);
                        let Some(row) = ledger.attempt(fence) else {
                            continue;
                        };
                        if row.worker != hello.worker || row.attempt.state == AttemptState::Ended {
                            continue;
                        }
                        tracked.push((fence, row.job));
                        messages.extend(wishes(&ledger, fence));
                    }
                    let events = [general_event(
                        &hello.name,
                        "worker_connected",
                        format!("worker `{}` connected", hello.name),
                        COORDINATOR,
                    )];
                    for event in events {
                        ledger.tell(event);
                    }
                    let after = ledger.save(conn).await?;
                    Ok::<_, Error>(Reconciled {
                        verdicts,
                        messages,
                        after,
                        tracked,
                    })
                })
            })
            .await
    }

    /// A worker's session is over.
    pub async fn farewell(&self, worker: WorkerId, outbox: &Outbox) {
        if self.sessions.close(worker, outbox.session) {
            self.changes.tell(Change::Workers);
        }
    }
}

/// Records what one attempt's verdict finds. Returns the answer when the worker holds it.
fn settle(
    ledger: &mut Ledger,
    hello: &Hello,
    held: Option<&HeldHere>,
    fence: Fence,
) -> Option<Answer> {
    let row = ledger
        .attempt(fence)
        .filter(|row| row.worker == hello.worker);
    let log_stored = row.map_or(0, |row| row.log_stored);
    let recorded = row.map(|row| Recorded {
        fence,
        state: row.attempt.state,
        slot_held: row.attempt.slot_held,
        same_boot: row.boot_id == hello.boot_id,
        same_spool: row.spool_id == hello.spool_id,
        has_result: row.log_end.is_some(),
        log_complete: row.log_end.is_some_and(|end| row.log_stored >= end),
    });
    let held = held.map(|held| Held {
        fence,
        state: held.state,
        slot_held: held.slot_held,
    });
    let verdict = verdict(held, recorded)?;
    match verdict.finding {
        None => {}
        Some(Finding::Started) => {
            ledger.started(fence, None, None, Vec::new());
        }
        Some(Finding::SlotFree) => {
            ledger.attempt_event(fence, AttemptEvent::SlotFreed);
            ledger.dispatch();
        }
        Some(Finding::Over(end)) => {
            ledger.ended(fence, &Facts::of(end), EndReport::default());
            // Nothing of it is left: that is what the verdict rests on.
            ledger.attempt_event(fence, AttemptEvent::SlotFreed);
        }
    }
    // It is heard of again.
    ledger.attempt_event(fence, AttemptEvent::WorkerBack);
    verdict.action.map(|action| Answer {
        fence,
        action,
        log_stored,
    })
}

/// What a person wanted of an attempt while its worker was away.
fn wishes(ledger: &Ledger, fence: Fence) -> Option<ToWorker> {
    let row = ledger.attempt(fence)?;
    let job = ledger.job(row.job)?;
    match (row.attempt.state, row.attempt.asked) {
        (AttemptState::Running, _) if job.job.cancel_requested => Some(ToWorker::Stop {
            fence,
            cause: StopCause::Cancel,
            grace: None,
        }),
        (AttemptState::Assigned, Some(_)) => Some(ToWorker::Revoke(fence)),
        _ => None,
    }
}

fn former_name(owner: &KnownWorker) -> String {
    let id = owner.id.0.simple().to_string();
    // Room for the suffix.
    let mut name = owner.name.clone();
    while name.len() > MAX_NAME - 9 {
        name.pop();
    }
    format!("{name}~{}", &id[..8])
}

fn check(hello: &Hello) -> Result<(), Error> {
    for (field, text, may_be_empty) in [
        ("hello.name", &hello.name, false),
        ("hello.hostname", &hello.hostname, true),
        ("hello.boot_id", &hello.boot_id, false),
        ("hello.version", &hello.version, true),
    ] {
        if text.is_empty() && !may_be_empty {
            return Err(Error::field(field, "is empty", ""));
        }
        if text.len() > MAX_NAME || text.chars().any(char::is_control) {
            return Err(Error::field(
                field,
                format!("is longer than {MAX_NAME} bytes or has control characters"),
                "set another one in the worker's configuration",
            ));
        }
    }
    if hello
        .slots
        .is_some_and(|slots| !(1..=MAX_SLOTS).contains(&slots))
    {
        return Err(Error::field(
            "hello.slots",
            format!("is not between 1 and {MAX_SLOTS}"),
            "set another number in the worker's configuration",
        ));
    }
    if hello.memory_bytes < 0 || hello.cpus < 0 {
        return Err(Error::field("hello", "has a negative size", ""));
    }
    if hello.held.len() > MAX_HELD {
        return Err(Error::LimitExceeded {
            what: "the number of attempts that a worker holds".to_owned(),
            limit: MAX_HELD as u64,
        });
    }
    Ok(())
}
