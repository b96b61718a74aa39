//! From what happened to a person: the outbox in the database is worked off by one loop that decides
//! what is told and makes messages of it, and one loop per channel that sends them. What cannot be
//! written into the database goes by files instead; see [`second_path`].

mod deliver;
mod facts;
mod outbox;
mod second_path;

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use qctl_notify::outbox::Outbox;
use qctl_notify::{Settings, Words};
use qctl_server_core::alarm::watch::OwnMachine;

use crate::app::{App, Clock};
use second_path::{DatabaseWatch, Marker};

/// What tells people, from term to term.
#[derive(Debug)]
pub(crate) struct Notifier {
    settings: Settings,
    words: Words,
    outbox: Outbox,
    marker: Marker,
    /// The coordinator's folder.
    data: PathBuf,
    /// This machine.
    machine: OwnMachine,
    /// What is known of the database; used by the loop of the present term.
    database: tokio::sync::Mutex<DatabaseWatch>,
    /// The database is away, so that what lies in files is sent from there.
    is_alone: AtomicBool,
}

impl Notifier {
    /// What tells people by these settings; `data` is the coordinator's folder.
    pub(crate) fn new(settings: Settings, data: &Path) -> Self {
        let marker = Marker::read(data);
        Self {
            words: Words::new(settings.language, settings.zone.clone()),
            settings,
            outbox: Outbox::of(data),
            database: tokio::sync::Mutex::new(DatabaseWatch::new(marker.crashed())),
            marker,
            is_alone: AtomicBool::new(false),
            data: data.to_owned(),
            machine: OwnMachine {
                host: host(),
                boot: boot_id(),
            },
        }
    }

    /// Sends what lies in files while there is no database to put it into; never returns.
    pub(crate) async fn carry(self: Arc<Self>, clock: Clock) {
        second_path::carry(self, clock).await;
    }

    /// The coordinator ends because it was asked to: its next start is no recovery from a crash.
    pub(crate) fn ended_in_order(&self) {
        self.marker.remove();
    }
}

/// What every loop of a term needs.
#[derive(Debug)]
struct Teller {
    app: Arc<App>,
    notifier: Arc<Notifier>,
    /// Rung when there is a new message.
    delivery_bell: tokio::sync::Notify,
}

impl Deref for Teller {
    type Target = Notifier;

    fn deref(&self) -> &Notifier {
        &self.notifier
    }
}

/// Starts every loop of a term. They end with it.
pub(crate) fn start(notifier: &Arc<Notifier>, app: &Arc<App>) {
    let names = notifier.settings.channel_names();
    app.notices
        .set_channels(names.iter().map(|name| (*name).to_owned()).collect());
    let teller = Arc::new(Teller {
        app: Arc::clone(app),
        notifier: Arc::clone(notifier),
        delivery_bell: tokio::sync::Notify::new(),
    });
    for channel in &teller.settings.channels {
        app.spawn(deliver::run(Arc::clone(&teller), Arc::clone(channel)));
    }
    spawn(app, outbox::run(Arc::clone(&teller)));
    // Outlives the term on purpose.
    tokio::spawn(second_path::after_term(Arc::clone(&teller)));
    spawn(app, second_path::run(teller));
}

fn spawn(app: &Arc<App>, work: impl Future<Output = ()> + Send + 'static) {
    let stop = app.stop().clone();
    app.spawn(async move {
        stop.run_until_cancelled_owned(work).await;
    });
}

/// The name of this machine.
pub(crate) fn host() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// What tells this machine apart from all others until it is restarted; empty when that cannot be
/// read.
pub(crate) fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    text.unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests;
