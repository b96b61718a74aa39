//! Use cases: one file each.

mod caller;
mod changes;
pub mod cleanup;
mod clock;
mod error;
mod explain;
pub mod links;
mod live;
pub mod logs;
pub mod read;
mod retention;
mod settings;
pub mod templates;
pub mod watch;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use qctl_server_core::Term;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use caller::{Caller, Role};
pub use changes::{Change, Changes};
pub use clock::{Clock, ManualClock};
pub use error::Error;
pub use live::LiveProgress;
pub use read::About;
pub use settings::Settings;

use crate::sessions::Sessions;
use crate::store::Store;
use links::Links;
use logs::Logs;
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
    /// The term in which this coordinator leads.
    pub term: Term,
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
    /// Times and sizes.
    pub settings: Settings,
    /// The term in which this coordinator leads.
    pub term: Term,
    /// What the status says of the coordinator itself.
    pub about: About,
    /// Since when it runs.
    pub started_at: DateTime<Utc>,
    stop: CancellationToken,
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
            term,
            about,
        } = parts;
        let started_at = clock.now();
        let tasks = TaskTracker::new();
        let logs = Logs::start(store.clone(), &tasks, stop.clone());
        let app = Arc::new(Self {
            store,
            sessions: Sessions::default(),
            changes: Changes::default(),
            clock,
            links,
            live: LiveProgress::default(),
            logs,
            watches: Watches::default(),
            settings,
            term,
            about,
            started_at,
            stop,
            tasks,
        });
        app.tasks.spawn(retention::run(Arc::clone(&app)));
        app
    }

    /// Cancelled when the coordinator stops; long answers end then.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Returns once every task behind the use cases has ended.
    pub async fn stopped(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}
