//! All SQL. Nothing here decides: callers read, decide with the core, and write guarded by what
//! they read.

pub(crate) mod dependencies;
pub(crate) mod dispatch;
pub mod events;
#[cfg(test)]
pub(crate) mod fixtures;
pub(crate) mod leadership;
pub(crate) mod ledger;
pub mod logs;
pub(crate) mod measures;
pub mod read;
pub(crate) mod requests;
pub mod retention;
pub(crate) mod submit;
mod tokens;
pub(crate) mod workers;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use sqlx::pool::PoolConnection;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, PgPool, Postgres};

/// A transaction under way. Rolled back when it is dropped without a commit.
pub(crate) type Transaction = sqlx::Transaction<'static, Postgres>;

/// Work inside a transaction, as [`Store::transaction`] takes it.
pub(crate) type Work<'t, T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 't>>;

/// The database.
#[derive(Clone, Debug)]
pub struct Store {
    pool: PgPool,
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

    /// Begins a transaction, under the same rule as [`Store::begin`].
    pub(crate) async fn begin(
        &mut self,
        store: &Store,
    ) -> Result<sqlx::Transaction<'_, Postgres>, StoreError> {
        Ok(self.get(store).await?.begin().await?)
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
    /// A stored value cannot be read, or a statement is wrong: a bug.
    #[error("the database refused a statement of the coordinator")]
    Broken(#[source] Arc<sqlx::Error>),
    /// A stored value has no meaning for this version of the coordinator.
    #[error("the database holds a value that this version cannot read: {0}")]
    Unreadable(String),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let code = error
            .as_database_error()
            .and_then(|error| error.code())
            .map(|code| code.into_owned());
        let error = Arc::new(error);
        match (code.as_deref(), &*error) {
            (Some("53100"), _) => Self::DiskFull(error),
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
        matches!(self, Self::Unavailable(_) | Self::Conflict(_) | Self::Stale)
    }

    /// For a stored word or document that the core does not know.
    pub(crate) fn unreadable(what: &str, value: impl std::fmt::Display) -> Self {
        Self::Unreadable(format!("{what} `{value}`"))
    }
}

/// What every connection is told when it is opened: no statement, lock or idle transaction lasts
/// for ever, and no query is compiled. Every query has an index to go by. Without being told so,
/// Postgres plans to read a whole table while it is small, and a prepared statement keeps that plan
/// when the table has grown: measured, a tenth of the jobs a second.
pub fn session_settings(options: PgConnectOptions) -> PgConnectOptions {
    options.options([
        ("statement_timeout", "30s"),
        ("lock_timeout", "10s"),
        ("idle_in_transaction_session_timeout", "20s"),
        ("jit", "off"),
        ("enable_seqscan", "off"),
        ("application_name", "qctl-server"),
    ])
}

impl Store {
    /// A store over connections that were made with [`session_settings`].
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Connections for single statements, which may be dropped at any time.
    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// A connection for a few single statements.
    pub(crate) async fn acquire(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        Ok(self.pool.acquire().await?)
    }

    /// Runs `work` inside a transaction in a task of its own and commits, so that a caller who goes
    /// away in the middle leaves no open transaction behind: sqlx hands a connection whose `begin`
    /// was dropped back to the pool with the transaction still open.
    ///
    /// # Errors
    /// What `work` returned (then nothing is stored), or the database's error.
    pub(crate) async fn transaction<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> FnOnce(&'t mut PgConnection) -> Work<'t, T, E> + Send + 'static,
    {
        let store = self.clone();
        let task = tokio::spawn(async move {
            let mut transaction = store.begin().await?;
            match work(&mut transaction).await {
                Ok(value) => {
                    transaction.commit().await.map_err(StoreError::from)?;
                    Ok(value)
                }
                Err(error) => {
                    // A failed rollback closes the connection, which rolls back as well.
                    if let Err(rollback) = transaction.rollback().await {
                        tracing::debug!(error = %rollback, "could not roll back");
                    }
                    Err(error)
                }
            }
        });
        match task.await {
            Ok(result) => result,
            Err(join) if join.is_panic() => std::panic::resume_unwind(join.into_panic()),
            Err(_) => Err(StoreError::Unavailable(Arc::new(sqlx::Error::PoolClosed)).into()),
        }
    }

    /// Begins a transaction. Only for tasks that are never dropped in the middle; everything that
    /// serves a call uses [`Store::transaction`].
    pub(crate) async fn begin(&self) -> Result<Transaction, StoreError> {
        Ok(self.pool.begin().await?)
    }

    /// Begins a transaction whose commit does not wait for the disk: a crash of the machine may undo
    /// it, a crash of the coordinator does not. For heartbeats, progress and output, under the same
    /// rule as [`Store::begin`].
    pub(crate) async fn begin_asynchronous(&self) -> Result<Transaction, StoreError> {
        Ok(self
            .pool
            .begin_with("begin; set local synchronous_commit = off")
            .await?)
    }
}
