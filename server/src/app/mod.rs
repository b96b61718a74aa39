//! Use cases: one file each.

pub mod alarms;
mod caller;
mod changes;
pub mod checkpoints;
pub mod cleanup;
mod clock;
mod control;
mod dispatch;
mod edit;
mod error;
mod explain;
mod gpus;
mod greeting;
pub mod health;
mod ledger;
pub mod links;
mod live;
pub mod logs;
pub(crate) mod measures;
pub mod notices;
pub mod read;
mod retention;
mod settings;
mod submit;
pub mod templates;
#[cfg(test)]
mod tests;
mod transitions;
mod trouble;
mod upkeep;
mod wake;
pub mod watch;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use qctl_server_core::Term;
use qctl_server_core::dispatch::Turnover;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use caller::{Caller, Role};
pub use changes::{Change, Changes};
pub use clock::{Clock, ManualClock};
pub use error::Error;
pub use greeting::{Greeting, Hello};
pub use live::LiveProgress;
pub use read::About;
pub use settings::Settings;
pub use submit::{FromCheckpoint, Submitted};
pub use transitions::Report;
pub(crate) use trouble::{Doing, Duty};
pub(crate) use upkeep::QueueWatch;

use crate::sessions::Sessions;
use crate::store::Store;
use alarms::Alarms;
use edit::Edits;
use links::Links;
use logs::Logs;
use measures::Measures;
use notices::NoticeBoard;
use transitions::Reports;
use upkeep::SignsOfLife;
use wake::Wake;
use watch::Watches;

/// What an [`App`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// The database, migrated.
    pub store: Store,
    /// The time.
    pub clock: Clock,
    /// How links look.
    pub links: Links,
    /// Times and sizes.
    pub settings: Settings,
    /// Since when the program runs; terms come and go meanwhile.
    pub started_at: DateTime<Utc>,
    /// What the status says of the coordinator itself.
    pub about: About,
}

/// The coordinator's use cases, shared by everything that serves a call.
#[derive(Debug)]
pub struct App {
    /// The database.
    pub store: Store,
    /// Connected workers.
    pub sessions: Sessions,
    /// What was committed.
    pub changes: Changes,
    /// The time.
    pub clock: Clock,
    /// How links look.
    pub links: Links,
    /// The latest progress of running attempts.
    pub live: LiveProgress,
    /// Output on its way in and out.
    pub logs: Logs,
    /// Bounds how many watch.
    pub watches: Watches,
    /// The ways to people.
    pub notices: NoticeBoard,
    /// Times and sizes.
    pub settings: Settings,
    /// The term in which this coordinator leads.
    pub term: Term,
    /// What the status says of the coordinator itself.
    pub about: About,
    /// Since when it runs.
    pub started_at: DateTime<Utc>,
    wake: Wake,
    turnover: Mutex<Turnover>,
    /// Held by the round of the dispatcher that is under way.
    dispatching: tokio::sync::Mutex<()>,
    edits: Edits,
    reports: Reports,
    signs: SignsOfLife,
    measures: Measures,
    alarms: Alarms,
    greetings: tokio::sync::Mutex<()>,
    stop: CancellationToken,
    fault: CancellationToken,
    tasks: TaskTracker,
}

impl App {
    /// Makes the use cases and starts the tasks behind them. They end after `stop` is cancelled;
    /// [`App::stopped`] waits for that.
    pub fn start(parts: Parts, stop: CancellationToken) -> Arc<Self> {
        let Parts {
            store,
            clock,
            links,
            settings,
            started_at,
            about,
        } = parts;
        let term = store.lease().term();
        let tasks = TaskTracker::new();
        let changes = Changes::default();
        let logs = Logs::start(
            store.clone(),
            clock.clone(),
            changes.clone(),
            &tasks,
            stop.clone(),
        );
        let alarms = Alarms::new(&settings);
        let (reports, inbox) = transitions::queue();
        let app = Arc::new(Self {
            store,
            sessions: Sessions::default(),
            changes,
            clock,
            links,
            live: LiveProgress::default(),
            logs,
            watches: Watches::default(),
            notices: NoticeBoard::default(),
            settings,
            term,
            about,
            started_at,
            wake: Wake::default(),
            turnover: Mutex::default(),
            dispatching: tokio::sync::Mutex::default(),
            edits: Edits::default(),
            reports,
            signs: SignsOfLife::default(),
            measures: Measures::default(),
            alarms,
            greetings: tokio::sync::Mutex::new(()),
            stop,
            fault: CancellationToken::new(),
            tasks,
        });
        app.spawn(Arc::clone(&app).write_reports(inbox));
        app.spawn(Arc::clone(&app).dispatch_forever());
        app.spawn(retention::run(Arc::clone(&app)));
        app
    }

    /// Cancelled when the coordinator stops; long answers end then.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Runs a task that [`App::stopped`] waits for; it must end after the stop. A panic of it is a
    /// fault of the whole, which then begins anew from the database: without one of its tasks it
    /// would stand still unnoticed.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let fault = self.fault.clone();
        self.tasks.spawn(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                tracing::error!("a task panicked; the coordinator begins anew");
                fault.cancel();
            }
        });
    }

    /// Cancelled once a task panicked.
    pub(crate) fn fault(&self) -> &CancellationToken {
        &self.fault
    }

    /// Returns once every task behind the use cases has ended.
    pub async fn stopped(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}
