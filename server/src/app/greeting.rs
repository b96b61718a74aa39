//! A worker connects: who it is, and what to do with every attempt that it holds or should hold.

use std::sync::Arc;

use qctl_server_core::alarm::setting;
use qctl_server_core::alarm::watch::MachineFacts;
use qctl_server_core::checkpoint::Told;
use qctl_server_core::ledger::{AfterCommit, Answer, Greeted, Present, Which};
use qctl_server_core::reconcile::Held;
use qctl_server_core::{Fence, WorkerId};
use uuid::Uuid;

use super::read::GpuRecord;
use super::{App, Change, Error};
use crate::sessions::{Outbox, ToWorker};
use crate::store::Commit;
use crate::store::workers::{self, KnownWorker, WorkerRow};

/// Longest name of a worker or host, in bytes.
const MAX_NAME: usize = 200;
/// Most attempts that a worker may hold: the results of a long absence.
const MAX_HELD: usize = 100_000;
/// Most checkpoints that a hello may tell of; a worker tells further ones afterwards.
const MAX_CHECKPOINTS: usize = 500;
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
    /// From which figure on something is an alarm there, where that is not as usual.
    pub alarms: setting::Settings,
    /// Its number among the greetings of its spool; 0 when the worker counts none.
    pub greeting: i64,
    /// Every attempt it has a record of.
    pub held: Vec<Held>,
    /// Those among them that run and were started by an earlier agent, which is news.
    pub adopted: Vec<Fence>,
    /// Published checkpoints that it has had no answer for.
    pub checkpoints: Vec<(Fence, Told)>,
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

impl App {
    /// Admits a worker: closes its former session, settles every attempt, and opens a new session.
    /// Nothing is assigned to it before this is done.
    ///
    /// # Errors
    /// [`Error::InvalidField`] for a hello that makes no sense, [`Error::SpoolInUse`] for a copy of a
    /// connected worker, [`Error::WorkerNameTaken`], [`Error::GreetingOvertaken`].
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

    /// Closes every session, so that each worker greets again and is told how much of its output is
    /// stored: a database that was killed has forgotten what it had not written out, and that may
    /// have been acknowledged.
    pub fn greet_everyone_anew(&self) {
        let closed = self.sessions.close_all();
        if closed > 0 {
            tracing::info!(
                closed,
                "the database was away: {closed} sessions are closed, to learn what it has forgotten"
            );
        }
    }

    async fn greet_in_turn(self: &Arc<Self>, hello: Hello) -> Result<Greeting, Error> {
        if let Some(session) = self.sessions.get(hello.worker)
            && session.spool_id != hello.spool_id
        {
            return Err(Error::SpoolInUse { name: hello.name });
        }
        let hello = Arc::new(hello);
        let (slots, renamed) = self.record_worker(&hello).await?;
        self.sessions.close_any(hello.worker);
        if let Some(name) = renamed {
            tracing::info!(worker = %hello.name, "worker `{}` takes over its name; the former one is now called `{name}`", hello.name);
        }
        let (greeted, after) = self.reconcile(&hello).await?;
        let outbox = self.sessions.open(
            hello.worker,
            hello.name.clone(),
            hello.boot_id.clone(),
            hello.spool_id,
            self.clock.now(),
        );
        self.alarms.connected(
            hello.worker,
            MachineFacts {
                name: hello.name.clone(),
                boot: hello.boot_id.clone(),
                processors: hello.cpus,
                settings: hello.alarms.clone(),
            },
            self.clock.now(),
        );
        for (fence, job) in greeted.current {
            self.live.track(fence, job);
        }
        for message in greeted.messages {
            let message = ToWorker::Attempt(message);
            self.sessions.send_to(hello.worker, outbox.session, message);
        }
        self.carry_out(after);
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
            verdicts: greeted.verdicts,
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
                    // A connection that was given up long ago may still carry a greeting, and what
                    // that one held says nothing about now.
                    if let Some(former) = former
                        && former.spool_id == hello.spool_id
                        && (1..=former.greeting).contains(&hello.greeting)
                    {
                        return Err(Error::GreetingOvertaken {
                            name: hello.name.clone(),
                        });
                    }
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
                        greeting: hello.greeting,
                    };
                    workers::upsert(conn, now, &row).await?;
                    Ok((slots, renamed))
                })
            })
            .await
    }

    async fn reconcile(
        self: &Arc<Self>,
        hello: &Arc<Hello>,
    ) -> Result<(Greeted, AfterCommit), Error> {
        let app = Arc::clone(self);
        let hello = Arc::clone(hello);
        let unconfirmed = Arc::clone(self);
        self.store
            .transaction_then(
                move |conn| {
                    Box::pin(async move {
                        let mentioned: Vec<Fence> = hello
                            .held
                            .iter()
                            .map(|held| held.fence)
                            .chain(hello.checkpoints.iter().map(|(fence, _)| *fence))
                            .collect();
                        let fences = workers::attempts_on(conn, hello.worker, &mentioned).await?;
                        let mut ledger = app.open_ledger(conn, Which::Attempts(&fences)).await?;
                        let greeted = ledger.greet(&Present {
                            worker: hello.worker,
                            name: &hello.name,
                            boot_id: &hello.boot_id,
                            spool_id: hello.spool_id,
                            held: &hello.held,
                            checkpoints: &hello.checkpoints,
                        });
                        ledger.adopted(hello.worker, &hello.adopted);
                        let after = app.save_ledger(conn, ledger).await?;
                        Ok::<_, Error>((greeted, after))
                    })
                },
                move |(greeted, after), commit| {
                    if commit == Commit::Unconfirmed {
                        unconfirmed.carry_out_unconfirmed(after.clone());
                    }
                    (greeted, after)
                },
            )
            .await
    }

    /// A worker's session is over.
    pub async fn farewell(&self, worker: WorkerId, outbox: &Outbox) {
        if self.sessions.close(worker, outbox.session) {
            self.changes.tell(Change::Workers);
        }
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
    if hello.checkpoints.len() > MAX_CHECKPOINTS {
        return Err(Error::LimitExceeded {
            what: "the number of checkpoints in a hello".to_owned(),
            limit: MAX_CHECKPOINTS as u64,
        });
    }
    Ok(())
}
