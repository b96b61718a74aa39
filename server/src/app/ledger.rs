//! Opens the core's ledger inside a transaction, writes it back, and carries out what follows the
//! commit.

use std::sync::Arc;

use chrono::TimeDelta;
use qctl_server_core::ledger::{AfterCommit, Ledger, Which};
use qctl_server_core::retry::Backoff;
use sqlx::PgConnection;

use super::{App, Change, Error};
use crate::sessions::ToWorker;
use crate::store::ledger::{load, save};
use crate::store::{Commit, StoreError, Transaction, Work, confirm};

impl App {
    /// Runs `work` in a transaction, and carries out what follows the commit: also when the caller
    /// has gone in the meantime, and as far as possible when the commit was not confirmed.
    ///
    /// # Errors
    /// What `work` returned (then nothing is stored), or the database's error.
    pub(super) async fn transact<T, F>(self: &Arc<Self>, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut PgConnection) -> Work<'t, (T, AfterCommit), Error>
            + Send
            + 'static,
    {
        let app = Arc::clone(self);
        self.store
            .transaction_then(work, move |(value, after), commit| {
                match commit {
                    Commit::Done => app.carry_out(after),
                    Commit::Unconfirmed => app.carry_out_unconfirmed(after),
                }
                value
            })
            .await
    }

    /// Commits over a connection that is given up after an error, and carries out what follows.
    pub(super) async fn commit(
        &self,
        transaction: Transaction<'_>,
        after: AfterCommit,
    ) -> Result<(), StoreError> {
        match confirm(transaction).await {
            Ok(()) => {
                self.carry_out(after);
                Ok(())
            }
            Err(error) => {
                if matches!(error, StoreError::Unconfirmed(_)) {
                    self.carry_out_unconfirmed(after);
                }
                Err(error)
            }
        }
    }

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
        let mut ledger = Ledger::new(self.clock.now(), backoff, jobs, attempts);
        ledger.set_success_after(
            TimeDelta::from_std(self.settings.success_told_after).unwrap_or(TimeDelta::MAX),
        );
        Ok(ledger)
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

    /// Carries out what can be carried out although nobody knows whether the transaction was
    /// committed. Hints to look again do no harm. What workers would be told must not be said of
    /// something that may not be so: their sessions end instead, and when they greet again they are
    /// told what is recorded by then.
    pub(super) fn carry_out_unconfirmed(&self, after: AfterCommit) {
        for (worker, _) in &after.messages {
            self.sessions.close_any(*worker);
        }
        self.carry_out(AfterCommit {
            messages: Vec::new(),
            over: Vec::new(),
            dispatch: true,
            ..after
        });
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
        if after.notices {
            self.notices.ring();
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
