//! Opens the core's ledger inside a transaction, writes it back, and carries out what follows the
//! commit.

use qctl_server_core::ledger::{AfterCommit, Ledger, Which};
use qctl_server_core::retry::Backoff;
use sqlx::PgConnection;

use super::{App, Change};
use crate::sessions::ToWorker;
use crate::store::StoreError;
use crate::store::ledger::{load, save};

impl App {
    /// Locks and loads what is to be changed.
    pub(super) async fn open_ledger(
        &self,
        conn: &mut PgConnection,
        which: Which<'_>,
    ) -> Result<Ledger, StoreError> {
        let (jobs, attempts) = load(conn, which).await?;
        let backoff = Backoff {
            base: self.settings.retry_base,
            most: self.settings.retry_most,
            random: random_unit(),
        };
        Ok(Ledger::new(self.clock.now(), backoff, jobs, attempts))
    }

    /// Writes what changed. What it returns is carried out after the commit.
    pub(super) async fn save_ledger(
        &self,
        conn: &mut PgConnection,
        ledger: Ledger,
    ) -> Result<AfterCommit, StoreError> {
        let now = ledger.now();
        let changes = ledger.close();
        save(conn, now, &changes).await?;
        Ok(changes.after)
    }

    /// Carries out what a committed transaction asked for.
    pub(super) fn carry_out(&self, after: AfterCommit) {
        for over in after.over {
            self.live.ended(over.fence);
            if let Some(duration) = over.duration {
                self.turnover().note(over.worker, duration);
            }
        }
        for (worker, message) in after.messages {
            self.sessions.send(worker, ToWorker::Attempt(message));
        }
        if after.dispatch {
            self.wake.dispatch();
        }
        if let Some(at) = after.wake_at {
            self.wake.at(at);
        }
        if !after.ended.is_empty() {
            self.wake.ended(&after.ended);
        }
        if !after.changed.is_empty() {
            self.changes
                .tell(Change::Jobs(after.changed.into_iter().collect()));
        }
    }
}

/// A random number from 0 to 1. Without randomness of the system the middle will do: it only spreads
/// retries.
fn random_unit() -> f64 {
    match getrandom::u32() {
        Ok(random) => f64::from(random) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}
