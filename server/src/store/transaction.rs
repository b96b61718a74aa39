//! Transactions: each in a task of its own, in the coordinator's term, and with a deadline.
//!
//! sqlx hands a connection whose `begin` was dropped back to the pool with the transaction still
//! open. So no transaction lives in a future that a caller can drop, and a connection whose
//! transaction did not come to its end is closed.

use std::pin::Pin;
use std::time::Duration;

use qctl_server_core::Term;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres, SqlSafeStr, SqlStr};

use tokio::time::timeout;

use super::{CALL_LIMIT, Store, StoreError};

/// Longest time that a transaction may take until its commit.
const LIMIT: Duration = Duration::from_secs(15);

/// A transaction under way, over a connection that is given up unless it is committed.
pub(crate) type Transaction<'c> = sqlx::Transaction<'c, Postgres>;

/// Work inside a transaction, as [`Store::transaction`] takes it.
pub(crate) type Work<'t, T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 't>>;

/// What became of a transaction that did all its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Commit {
    /// It is committed.
    Done,
    /// The connection broke before the database said so.
    Unconfirmed,
}

/// The statements that begin a transaction in one round trip, and fail when the term is over.
#[derive(Debug)]
pub(super) struct Begin {
    pub(super) synchronous: SqlStr,
    asynchronous: SqlStr,
}

impl Begin {
    pub(super) fn of(term: Term) -> Self {
        let statement = |more: &str| {
            AssertSqlSafe(format!("begin; {more}select leads({})", term.0)).into_sql_str()
        };
        Self {
            synchronous: statement(""),
            asynchronous: statement("set local synchronous_commit = off; "),
        }
    }
}

impl Store {
    /// Runs `work` inside a transaction and commits. A caller who goes away in the middle changes
    /// nothing about it.
    ///
    /// # Errors
    /// What `work` returned (then nothing is stored), or the database's error.
    pub(crate) async fn transaction<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> FnOnce(&'t mut PgConnection) -> Work<'t, T, E> + Send + 'static,
    {
        self.transaction_then(work, |value, _| value).await
    }

    /// The same; `then` acts on what was committed, also when the caller has gone. It is called as
    /// well when nobody knows whether the commit was carried out, and then the call fails.
    ///
    /// # Errors
    /// Like [`Store::transaction`].
    pub(crate) async fn transaction_then<T, U, E, F, G>(&self, work: F, then: G) -> Result<U, E>
    where
        T: Send + 'static,
        U: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> FnOnce(&'t mut PgConnection) -> Work<'t, T, E> + Send + 'static,
        G: FnOnce(T, Commit) -> U + Send + 'static,
    {
        let begin = self.begin.synchronous.clone();
        self.in_task(begin, work, then).await
    }

    /// Like [`Store::transaction`], with a commit that does not wait for the disk: a crash of the
    /// machine may undo it, a crash of the coordinator does not. For heartbeats, progress and output.
    ///
    /// # Errors
    /// Like [`Store::transaction`].
    pub(crate) async fn asynchronous_transaction<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> FnOnce(&'t mut PgConnection) -> Work<'t, T, E> + Send + 'static,
    {
        let begin = self.begin.asynchronous.clone();
        self.in_task(begin, work, |value, _| value).await
    }

    /// Begins a transaction whose commit does not wait for the disk, for the few that need more
    /// than [`Store::asynchronous_transaction`]. The connection is to be closed after any error.
    pub(super) fn begin_asynchronous(&self) -> SqlStr {
        self.begin.asynchronous.clone()
    }

    async fn in_task<T, U, E, F, G>(&self, begin: SqlStr, work: F, then: G) -> Result<U, E>
    where
        T: Send + 'static,
        U: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> FnOnce(&'t mut PgConnection) -> Work<'t, T, E> + Send + 'static,
        G: FnOnce(T, Commit) -> U + Send + 'static,
    {
        let store = self.clone();
        let task = tokio::spawn(async move {
            let mut connection = store.pool.acquire().await.map_err(StoreError::from)?;
            let mut end = End::Unfinished;
            let result = match carry_out(&mut connection, begin, work, then, &mut end).await {
                Ok(value) => Ok(value),
                Err(Failure::Work(error)) => Err(error),
                Err(Failure::Store(error)) => Err(store.noted(error).into()),
            };
            if end == End::Unfinished {
                // Closing is what ends a transaction for certain.
                drop(connection.detach());
            }
            result
        });
        match task.await {
            Ok(result) => result,
            Err(join) if join.is_panic() => std::panic::resume_unwind(join.into_panic()),
            Err(_) => Err(StoreError::unanswered().into()),
        }
    }
}

/// Commits a transaction.
///
/// # Errors
/// [`StoreError::Unconfirmed`] when nobody knows whether it is committed; anything else says that it
/// is not.
pub(crate) async fn confirm(transaction: Transaction<'_>) -> Result<(), StoreError> {
    let error = match timeout(CALL_LIMIT, transaction.commit()).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.into(),
        Err(_) => StoreError::unanswered(),
    };
    Err(match error {
        StoreError::Unavailable(error) => StoreError::Unconfirmed(error),
        other => other,
    })
}

/// Whether the connection is out of the transaction for certain.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    Unfinished,
}

enum Failure<E> {
    Store(StoreError),
    Work(E),
}

async fn carry_out<T, U, E, F, G>(
    connection: &mut PgConnection,
    begin: SqlStr,
    work: F,
    then: G,
    end: &mut End,
) -> Result<U, Failure<E>>
where
    F: for<'t> FnOnce(&'t mut PgConnection) -> Work<'t, T, E> + Send,
    G: FnOnce(T, Commit) -> U + Send,
{
    let worked = async {
        let mut transaction = connection
            .begin_with(begin)
            .await
            .map_err(|error| Failure::Store(error.into()))?;
        match work(&mut transaction).await {
            Ok(value) => Ok((transaction, value)),
            Err(error) => {
                match transaction.rollback().await {
                    Ok(()) => *end = End::Finished,
                    Err(rollback) => tracing::debug!(error = %rollback, "could not roll back"),
                }
                Err(Failure::Work(error))
            }
        }
    };
    let (transaction, value) = timeout(LIMIT, worked)
        .await
        .unwrap_or_else(|_| Err(Failure::Store(StoreError::unanswered())))?;
    match confirm(transaction).await {
        Ok(()) => {
            *end = End::Finished;
            Ok(then(value, Commit::Done))
        }
        Err(error @ StoreError::Unconfirmed(_)) => {
            then(value, Commit::Unconfirmed);
            Err(Failure::Store(error))
        }
        Err(error) => Err(Failure::Store(error)),
    }
}
