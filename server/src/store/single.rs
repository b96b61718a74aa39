//! Single statements, each over a connection of the pool and with a deadline of its own.

use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use sqlx::postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Describe, Either, Execute, Executor, PgPool, Postgres, SqlStr};
use tokio::time::timeout;

type BoxFuture<'e, T> = futures_util::future::BoxFuture<'e, Result<T, sqlx::Error>>;

/// Runs one statement. A connection that does not answer it in time is closed, not used again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Single<'p> {
    pool: &'p PgPool,
    limit: Duration,
}

impl<'p> Single<'p> {
    pub(super) fn new(pool: &'p PgPool, limit: Duration) -> Self {
        Self { pool, limit }
    }
}

/// That a statement was not answered in time.
pub(super) fn unanswered() -> sqlx::Error {
    let message = "the database did not answer in time";
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, message))
}

impl<'p> Executor<'p> for Single<'p> {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        // Together, because a deadline for each row would be none for all of them.
        let all = async move {
            let mut connection = self.pool.acquire().await?;
            let rows = timeout(
                self.limit,
                connection.fetch_many(query).try_collect::<Vec<_>>(),
            );
            match rows.await {
                Ok(rows) => rows,
                Err(_) => {
                    drop(connection.detach());
                    Err(unanswered())
                }
            }
        };
        stream::once(all)
            .map_ok(|rows| stream::iter(rows.into_iter().map(Ok)))
            .try_flatten()
            .boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Option<PgRow>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let mut connection = self.pool.acquire().await?;
            match timeout(self.limit, connection.fetch_optional(query)).await {
                Ok(row) => row,
                Err(_) => {
                    drop(connection.detach());
                    Err(unanswered())
                }
            }
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, PgStatement>
    where
        'p: 'e,
    {
        Box::pin(async move { self.pool.prepare_with(sql, parameters).await })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Describe<Postgres>>
    where
        'p: 'e,
    {
        Box::pin(async move { self.pool.describe(sql).await })
    }
}
