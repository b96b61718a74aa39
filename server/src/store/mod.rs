//! All SQL. Nothing here decides: callers read, decide with the core, and write guarded by what
//! they read.

pub mod alarms;
pub mod checkpoint_copies;
pub mod checkpoints;
pub(crate) mod dependencies;
pub(crate) mod dispatch;
#[cfg(test)]
mod double_tests;
pub mod events;
#[cfg(test)]
pub(crate) mod fixtures;
pub(crate) mod gpus;
mod health;
pub(crate) mod leadership;
mod lease;
pub(crate) mod ledger;
pub mod logs;
pub(crate) mod measures;
pub mod notices;
pub(crate) mod pace;
pub mod read;
pub(crate) mod requests;
pub mod retention;
mod single;
pub(crate) mod submit;
mod tokens;
mod transaction;
pub(crate) mod workers;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool, Postgres};

pub use lease::Lease;
pub(crate) use lease::boot_time;
use single::Single;
use transaction::Begin;
pub(crate) use transaction::{Commit, Transaction, Work, confirm};

/// Longest time that a statement may take on our side of the connection. Postgres ends a statement
/// by itself; this is for a connection that carries nothing any more, of which nobody is told.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(10);

/// The same for what reads very much, now and then.
const SLOW_CALL_LIMIT: Duration = Duration::from_secs(40);

/// How long a connection may take to answer before it is used again.
const CHECK_LIMIT: Duration = Duration::from_secs(2);

/// A connection that was idle for less is used without asking it first.
const FRESH: Duration = Duration::from_secs(1);

/// The database, in one term of this coordinator.
#[derive(Clone, Debug)]
pub struct Store {
    pool: PgPool,
    lease: Lease,
    begin: Arc<Begin>,
}

/// A connection of one task that asks the same few questions all the time. Its statements are
/// planned once instead of at every execution, and nothing is asked before it is used.
#[derive(Debug, Default)]
pub(crate) struct Dedicated(Option<PoolConnection<Postgres>>);

impl Dedicated {
    /// The connection; opened when there is none.
    pub(crate) async fn get(&mut self, store: &Store) -> Result<&mut PgConnection, StoreError> {
        let connection = match self.0.take() {
            Some(connection) => connection,
            None => {
                let mut connection = store.pool.acquire().await?;
                // The setting must not find its way back into the pool.
                connection.close_on_drop();
                sqlx::query!("set plan_cache_mode = force_generic_plan")
                    .execute(&mut *connection)
                    .await?;
                connection
            }
        };
        Ok(self.0.insert(connection))
    }

    /// Begins a transaction that fails when the term is over. Whoever gets an error, or does not
    /// wait for the end, gives the connection up.
    pub(crate) async fn begin(&mut self, store: &Store) -> Result<Transaction<'_>, StoreError> {
        let begun = self
            .get(store)
            .await?
            .begin_with(store.begin.synchronous.clone())
            .await;
        begun.map_err(|error| store.noted(error.into()))
    }

    /// Gives the connection up after an error: it may be broken.
    pub(crate) fn give_up(&mut self) {
        self.0 = None;
    }
}

/// Why the database did not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, or is starting or stopping; the call may be repeated.
    #[error("the database cannot be reached")]
    Unavailable(#[source] Arc<sqlx::Error>),
    /// Its disk is full; nothing was stored.
    #[error("the disk of the database is full")]
    DiskFull(#[source] Arc<sqlx::Error>),
    /// It gave up waiting for another transaction, or lost against one; the call may be repeated.
    #[error("the database was busy with another transaction")]
    Conflict(#[source] Arc<sqlx::Error>),
    /// A row with this key exists already; carries the constraint's name.
    #[error("the database has such a row already (`{0}`)")]
    Exists(String),
    /// A row is no longer in the state that was read; nothing was stored.
    #[error("the row changed since it was read")]
    Stale,
    /// The connection broke before the commit was confirmed: it may have been carried out. Repeated
    /// under its request id, the call has one effect.
    #[error("the database did not confirm what it was given to store")]
    Unconfirmed(#[source] Arc<sqlx::Error>),
    /// The term is over: another coordinator leads, or this one in a later term. Nothing was stored.
    #[error("this coordinator does not lead any more")]
    Fenced,
    /// A stored value cannot be read, or a statement is wrong: a bug.
    #[error("the database refused a statement of the coordinator")]
    Broken(#[source] Arc<sqlx::Error>),
    /// A stored value has no meaning for this version of the coordinator.
    #[error("the database holds a value that this version cannot read: {0}")]
    Unreadable(String),
}

/// What the function `leads` of the schema fails with.
const TERM_IS_OVER: &str = "QC001";

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let code = error
            .as_database_error()
            .and_then(|error| error.code())
            .map(|code| code.into_owned());
        let error = Arc::new(error);
        match (code.as_deref(), &*error) {
            (Some("53100"), _) => Self::DiskFull(error),
            (Some(TERM_IS_OVER), _) => Self::Fenced,
            (Some("23505"), sqlx::Error::Database(database)) => {
                Self::Exists(database.constraint().unwrap_or_default().to_owned())
            }
            // Serialization failure, deadlock, lock timeout, statement timeout.
            (Some("40001" | "40P01" | "55P03" | "57014"), _) => Self::Conflict(error),
            // Connection exceptions, too many connections, shutdown, crash, starting up, idle timeout.
            (Some(code), _)
                if code.starts_with("08")
                    || code.starts_with("57P")
                    || matches!(code, "53300" | "25P03") =>
            {
                Self::Unavailable(error)
            }
            (
                None,
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed
                | sqlx::Error::Protocol(_),
            ) => Self::Unavailable(error),
            _ => Self::Broken(error),
        }
    }
}

impl StoreError {
    /// True when the same call may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_) | Self::Unconfirmed(_) | Self::Conflict(_) | Self::Stale
        )
    }

    /// True when the database answers and does not want to store anything: its disk is full, or it
    /// only reads.
    pub(crate) fn refuses_writes(&self) -> bool {
        match self {
            Self::DiskFull(_) => true,
            Self::Broken(error) => {
                let code = error.as_database_error().and_then(|error| error.code());
                code.as_deref() == Some("25006")
            }
            _ => false,
        }
    }

    /// For a call that the database did not answer in time.
    pub(crate) fn unanswered() -> Self {
        Self::Unavailable(Arc::new(single::unanswered()))
    }

    /// For a stored word or document that the core does not know.
    pub(crate) fn unreadable(what: &str, value: impl std::fmt::Display) -> Self {
        Self::Unreadable(format!("{what} `{value}`"))
    }
}

/// What every connection is told when it is opened: no statement, lock or idle transaction lasts
/// for ever, and no query is compiled. A transaction whose owner is stopped ends before its lease
/// would. Every query has an index to go by. Without being told so, Postgres plans to read a whole
/// table while it is small, and a prepared statement keeps that plan when the table has grown:
/// measured, a tenth of the jobs a second.
pub fn session_settings(options: PgConnectOptions) -> PgConnectOptions {
    options.options([
        ("statement_timeout", "30s"),
        ("lock_timeout", "10s"),
        ("idle_in_transaction_session_timeout", "5s"),
        ("jit", "off"),
        ("enable_seqscan", "off"),
    ])
}

/// Connections for a [`Store`], opened at first use, so that an idle coordinator holds few. One that
/// carries nothing any more is found when it is used or given back, and replaced.
pub fn pool(options: PgConnectOptions, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .min_connections(1)
        .acquire_timeout(Duration::from_secs(5))
        .idle_timeout(Duration::from_secs(120))
        .max_lifetime(Duration::from_secs(3600))
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move { Ok(meta.idle_for < FRESH || answers(connection).await) })
        })
        .after_release(|connection, _| Box::pin(async move { Ok(answers(connection).await) }))
        .connect_lazy_with(session_settings(options))
}

async fn answers(connection: &mut PgConnection) -> bool {
    let asked = tokio::time::timeout(CHECK_LIMIT, connection.ping());
    matches!(asked.await, Ok(Ok(())))
}

/// Bounds a statement or transaction over a connection that is given up when it fails.
///
/// # Errors
/// Its own, or that it was not answered in time.
pub(crate) async fn bounded<T>(
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(CALL_LIMIT, work)
        .await
        .unwrap_or_else(|_| Err(StoreError::unanswered()))
}

impl Store {
    /// A store over connections that were made by [`pool`], for as long as the lease lasts.
    pub fn new(pool: PgPool, lease: Lease) -> Self {
        let begin = Arc::new(Begin::of(lease.term()));
        Self { pool, lease, begin }
    }

    /// Whether this coordinator leads.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Connections for single statements, which may be dropped at any time.
    pub(crate) fn pool(&self) -> Single<'_> {
        Single::new(&self.pool, CALL_LIMIT)
    }

    /// The same for statements that read very much.
    pub(crate) fn slow(&self) -> Single<'_> {
        Single::new(&self.pool, SLOW_CALL_LIMIT)
    }

    /// A connection for a few single statements; its user bounds them.
    pub(crate) async fn acquire(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        Ok(self.pool.acquire().await?)
    }

    /// Ends the lease when the database says that the term is over.
    pub(crate) fn noted(&self, error: StoreError) -> StoreError {
        if matches!(error, StoreError::Fenced) {
            self.lease.end();
        }
        error
    }
}
