//! Which coordinator leads, and in which term.

use sqlx::{AssertSqlSafe, Executor, PgConnection, query, query_scalar};

/// Key of the advisory lock that the leading coordinator holds for as long as it is connected.
/// Advisory locks belong to one database, so coordinators of other databases are no concern.
const LEADER: i64 = 0x7163_746c;

/// Tries to become the leader; false when another coordinator is.
pub(crate) async fn try_lead(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    query_scalar!(r#"select pg_try_advisory_lock($1) as "led!""#, LEADER)
        .fetch_one(connection)
        .await
}

/// What the leading coordinator calls itself; none when nobody leads any more.
pub(crate) async fn leader(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    query_scalar!(
        r#"select activity.application_name as "name!"
           from pg_locks locks join pg_stat_activity activity using (pid)
           where locks.locktype = 'advisory' and locks.granted and locks.objsubid = 1
             and locks.database = (select oid from pg_database where datname = current_database())
             and (locks.classid::bigint << 32) | locks.objid::bigint = $1"#,
        LEADER
    )
    .fetch_optional(connection)
    .await
}

/// Begins the next term and returns its number.
pub(crate) async fn begin_term(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    query_scalar!("update coordinator set term = term + 1 returning term")
        .fetch_one(connection)
        .await
}

/// The number of the latest term.
pub(crate) async fn latest_term(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    query_scalar!("select term from coordinator")
        .fetch_one(connection)
        .await
}

/// What the database says of its version, such as `15.18`.
pub(crate) async fn server_version(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    let version = query_scalar!(r#"select current_setting('server_version') as "version!""#)
        .fetch_one(connection)
        .await?;
    // Distributions append their package's version in brackets.
    Ok(version
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned())
}

/// Makes the database in a fresh cluster. The name is a constant of ours.
pub(crate) async fn create_database(
    connection: &mut PgConnection,
    name: &'static str,
) -> Result<(), sqlx::Error> {
    connection
        .execute(query(AssertSqlSafe(format!("create database {name}"))))
        .await?;
    Ok(())
}
