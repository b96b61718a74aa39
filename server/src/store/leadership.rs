//! Which coordinator leads, and in which term.

use std::time::Duration;

use qctl_server_core::Term;
use qctl_server_core::leadership::Record;
use sqlx::{AssertSqlSafe, Executor, PgConnection, query, query_scalar};
use uuid::Uuid;

/// Key of the advisory lock by which coordinators of version 0.1 led. Advisory locks belong to one
/// database, so coordinators of other databases are no concern.
const FORMER_LEADER: i64 = 0x7163_746c;

/// A run of a coordinator, as the others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leader {
    /// What its connections are called; at most 63 bytes.
    pub(crate) name: String,
    /// Where clients reach it, with a scheme.
    pub(crate) url: String,
    /// The data folder and boot that it lives in; empty when it keeps no lock there.
    pub(crate) place: String,
}

/// True when the tables are there and know of leases.
pub(crate) async fn is_prepared(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    query_scalar!(
        r#"select exists (select from pg_attribute
                          where attrelid = to_regclass('coordinator') and attname = 'renewals')
             as "prepared!""#
    )
    .fetch_one(connection)
    .await
}

/// True when no coordinator of version 0.1 leads, which knows nothing of leases. It cannot begin to
/// while this connection lives.
pub(crate) async fn keep_former_out(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    query_scalar!(
        r#"select pg_try_advisory_lock($1) as "free!""#,
        FORMER_LEADER
    )
    .fetch_one(connection)
    .await
}

/// What a leading coordinator of version 0.1 calls itself; none when none leads any more.
pub(crate) async fn former_leader(
    connection: &mut PgConnection,
) -> Result<Option<String>, sqlx::Error> {
    query_scalar!(
        r#"select activity.application_name as "name!"
           from pg_locks locks join pg_stat_activity activity using (pid)
           where locks.locktype = 'advisory' and locks.granted and locks.objsubid = 1
             and locks.database = (select oid from pg_database where datname = current_database())
             and (locks.classid::bigint << 32) | locks.objid::bigint = $1"#,
        FORMER_LEADER
    )
    .fetch_optional(connection)
    .await
}

/// Reads who leads or led last.
pub(crate) async fn look(connection: &mut PgConnection) -> Result<(Record, Leader), sqlx::Error> {
    let row = query!(
        "select term, renewals, leader, leader_name, leader_url, leader_place, lease_ms, released
         from coordinator"
    )
    .fetch_one(connection)
    .await?;
    Ok((
        Record {
            term: Term(row.term),
            renewals: row.renewals,
            leader: row.leader,
            released: row.released,
            lease: Duration::from_millis(row.lease_ms.unsigned_abs()),
        },
        Leader {
            name: row.leader_name,
            url: row.leader_url,
            place: row.leader_place,
        },
    ))
}

/// Begins the term after `term`, if the record still is what was seen. Waits for transactions that
/// keep the old term; returns the new one.
pub(crate) async fn claim(
    connection: &mut PgConnection,
    (term, renewals): (Term, i64),
    run: Uuid,
    leader: &Leader,
    lease: Duration,
) -> Result<Option<Term>, sqlx::Error> {
    let lease_ms = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
    // An update of these columns alone would not wait for those who keep the term.
    let begun = query_scalar!(
        "with held as (
           select one from coordinator where term = $1 and renewals = $2 for update
         )
         update coordinator c
         set term = c.term + 1, renewals = 0, leader = $3, leader_name = $4, leader_url = $5,
             leader_place = $6, lease_ms = $7, released = false
         from held where c.one = held.one
         returning c.term",
        term.0,
        renewals,
        run,
        leader.name,
        leader.url,
        leader.place,
        lease_ms,
    )
    .fetch_optional(connection)
    .await?;
    Ok(begun.map(Term))
}

/// Ends the connections of a leader that has lapsed, with the transactions that keep its term. Only
/// those of the same role can be ended; others end by their own limits.
pub(crate) async fn end_connections(
    connection: &mut PgConnection,
    name: &str,
) -> Result<(), sqlx::Error> {
    query!(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and application_name = $1 and pid <> pg_backend_pid()",
        name,
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}

/// Renews the lease; false when the term is over.
pub(crate) async fn renew(connection: &mut PgConnection, term: Term) -> Result<bool, sqlx::Error> {
    let renewed = query!(
        "update coordinator set renewals = renewals + 1 where term = $1 and not released",
        term.0,
    )
    .execute(connection)
    .await?;
    Ok(renewed.rows_affected() > 0)
}

/// Gives the lease back, if the term is still this one.
pub(crate) async fn release(connection: &mut PgConnection, term: Term) -> Result<(), sqlx::Error> {
    query!(
        "update coordinator set released = true where term = $1",
        term.0
    )
    .execute(connection)
    .await?;
    Ok(())
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
