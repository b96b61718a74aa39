//! Notices, the messages made of them, and their deliveries. A notice is inserted in the
//! transaction of its event; one loop of the leader moves it on from there, each step guarded by
//! the state that it was in.

mod deliveries;
mod errors;
mod filed;
mod history;
mod outbox;

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use qctl_server_core::notice::{Class, Details, Notice, Severity, Wish};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::{Store, StoreError};

pub use deliveries::NoticeName;
pub(crate) use deliveries::{Delivery, Fate};
pub use errors::ErrorGroup;
pub(crate) use errors::UNGROUPED_WINDOW;
pub(crate) use filed::{FiledDelivery, FiledMessage, FiledNotice};
pub use history::{DeliveryCount, DeliveryRecord, NoticeCount, NoticeRecord};
pub(crate) use outbox::{NewMessage, OpenNotice, Which};

/// Why a notice is never told; stored words.
pub mod held_back {
    /// The job's submitter does not want it.
    pub const NOT_WANTED: &str = "not_wanted";
    /// The same error was told already.
    pub const TOLD_BEFORE: &str = "told_before";
    /// It is milder than the user wants to be told.
    pub const TOO_MILD: &str = "too_mild";
    /// No way to a person is set up.
    pub const NO_CHANNEL: &str = "no_channel";
    /// It was over before it could be told.
    pub const OVER: &str = "over";
}

/// Writes notices, in order. One that ends an episode is written only when there is one to end; one
/// that was told in its present episode is counted instead.
pub(crate) async fn insert(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    notices: &[Notice],
) -> Result<(), StoreError> {
    let mut plain: Vec<&Notice> = Vec::new();
    let mut seen = HashSet::new();
    for notice in notices {
        if let Some(ended) = notice.class.ends() {
            end_episode(conn, now, ended, notice).await?;
        } else if !seen.insert((&notice.subject, notice.class, &notice.signature)) {
            continue;
        } else if let Some(end) = notice.class.ended_by() {
            let mut notice = notice.clone();
            let untold = overtake(conn, now, end, &notice.subject).await?;
            untold.tell_in(&mut notice.details, 1);
            insert_plain(conn, now, &[&notice]).await?;
        } else {
            plain.push(notice);
        }
    }
    insert_plain(conn, now, &plain).await
}

/// Outages that were over before anybody was told of them.
#[derive(Clone, Copy, Debug, Default)]
struct Untold {
    times: i32,
    first: Option<DateTime<Utc>>,
}

impl Untold {
    fn and(self, details: &Details, at: DateTime<Utc>, times: i32) -> Self {
        let first = details.first.or(details.since).unwrap_or(at);
        Self {
            times: self.times.max(details.times.unwrap_or(times)),
            first: Some(self.first.map_or(first, |known| known.min(first))),
        }
    }

    /// Has a notice tell of them as well, which tells of `others` besides.
    fn tell_in(self, details: &mut Details, others: i32) {
        if self.times > 0 {
            details.times = Some(self.times.saturating_add(others));
            details.first = self.first;
        }
    }
}

/// Ends an episode of which nobody knows whether it is over; its end is not told.
pub(crate) async fn end_untold(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    class: Class,
    subject: &str,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update notices set over_at = $1, ended_at = $1
         where subject = $2 and class = $3 and over_at is null",
        now,
        subject,
        class.as_str(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// What notices of a class that are still to be told tell is over.
pub(crate) async fn outdate(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    class: Class,
    subject: &str,
) -> Result<(), StoreError> {
    overtake(conn, now, class, subject).await.map(|_| ())
}

/// The end of an outage that is still to be told is none any more: the next one has begun. Returns
/// the outages that it would have told of.
async fn overtake(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    class: Class,
    subject: &str,
) -> Result<Untold, StoreError> {
    let open = sqlx::query!(
        r#"with open as (
             select id from notices
             where class = $2 and state in ('new', 'waiting') and subject = $3
             union
             select n.id from deliveries d join notices n on n.message_id = d.message_id
             where d.state in ('pending', 'sending') and n.class = $2 and n.subject = $3
           )
           update notices n set ended_at = $1
           from open where n.id = open.id and n.ended_at is null
           returning n.created_at, n.details as "details: Json<Details>", n.state"#,
        now,
        class.as_str(),
        subject,
    )
    .fetch_all(conn)
    .await?;
    let untold = open.iter().filter(|row| row.state != "told");
    Ok(untold.fold(Untold::default(), |untold, row| {
        untold.and(&row.details, row.created_at, 0)
    }))
}

async fn end_episode(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    ended: Class,
    notice: &Notice,
) -> Result<(), StoreError> {
    let open = sqlx::query!(
        r#"update notices set over_at = $1, ended_at = $1
           where subject = $2 and class = $3 and over_at is null
           returning created_at, details as "details: Json<Details>", state"#,
        now,
        notice.subject,
        ended.as_str(),
    )
    .fetch_all(&mut *conn)
    .await?;
    let since = open
        .iter()
        .map(|row| row.details.since.unwrap_or(row.created_at))
        .min();
    let Some(since) = since else { return Ok(()) };
    let mut notice = notice.clone();
    // Of an outage that nobody was told of its end tells all.
    let untold = open
        .iter()
        .filter(|row| ["new", "waiting"].contains(&row.state.as_str()))
        .fold(Untold::default(), |untold, row| {
            untold.and(&row.details, row.created_at, 1)
        });
    untold.tell_in(&mut notice.details, 0);
    let before = overtake(conn, now, notice.class, &notice.subject).await?;
    before.tell_in(&mut notice.details, 1);
    notice.details.since = Some(since);
    notice.details.seconds = Some((now - since).num_seconds());
    insert_plain(conn, now, &[&notice]).await
}

async fn insert_plain(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    notices: &[&Notice],
) -> Result<(), StoreError> {
    if notices.is_empty() {
        return Ok(());
    }
    let classes: Vec<String> = notices.iter().map(|n| n.class.to_string()).collect();
    let severities: Vec<String> = notices
        .iter()
        .map(|n| n.class.severity().to_string())
        .collect();
    let subjects: Vec<String> = notices.iter().map(|n| n.subject.clone()).collect();
    let signatures: Vec<String> = notices.iter().map(|n| n.signature.clone()).collect();
    let jobs: Vec<Option<i64>> = notices.iter().map(|n| n.job.map(|job| job.0)).collect();
    let attempts: Vec<Option<i32>> = notices
        .iter()
        .map(|n| n.attempt.map(|attempt| attempt.0))
        .collect();
    let workers: Vec<String> = notices.iter().map(|n| n.worker.clone()).collect();
    let details: Vec<serde_json::Value> = notices
        .iter()
        .map(|n| serde_json::json!(n.details))
        .collect();
    let muted: Vec<bool> = notices.iter().map(|n| n.muted).collect();
    let over: Vec<bool> = notices.iter().map(|n| n.class.is_over_at_once()).collect();
    sqlx::query!(
        "insert into notices (created_at, class, severity, subject, signature, job_id, attempt,
                              worker, details, state, reason, over_at)
         select $1::timestamptz, u.class, u.severity, u.subject, u.signature, u.job_id, u.attempt,
                u.worker, u.details, case when u.muted then 'held_back' else 'new' end,
                case when u.muted then $12::text else '' end,
                case when u.over then $1::timestamptz end
         from unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::integer[],
                     $8::text[], $9::jsonb[], $10::boolean[], $11::boolean[])
           with ordinality as u (class, severity, subject, signature, job_id, attempt, worker,
                                 details, muted, over, position)
         order by u.position
         on conflict (subject, class, signature) where over_at is null and state <> 'held_back'
         do update set repeats = notices.repeats + 1, repeated_at = $1::timestamptz",
        now,
        &classes,
        &severities,
        &subjects,
        &signatures,
        &jobs as &[Option<i64>],
        &attempts as &[Option<i32>],
        &workers,
        &details,
        &muted,
        &over,
        held_back::NOT_WANTED,
    )
    .execute(conn)
    .await?;
    Ok(())
}

impl Store {
    /// Writes notices on their own, for what happens outside of any transaction.
    pub(crate) async fn insert_notices(
        &self,
        now: DateTime<Utc>,
        notices: Vec<Notice>,
    ) -> Result<(), StoreError> {
        self.transaction(move |conn| Box::pin(async move { insert(conn, now, &notices).await }))
            .await
    }

    /// Subjects and workers of a class whose episodes go on.
    pub(crate) async fn open_episodes(
        &self,
        class: Class,
    ) -> Result<Vec<(String, String)>, StoreError> {
        let rows = sqlx::query!(
            "select distinct subject, worker from notices
             where class = $1 and over_at is null and created_at > $2",
            class.as_str(),
            DateTime::UNIX_EPOCH,
        )
        .fetch_all(self.pool())
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| (row.subject, row.worker))
            .collect())
    }

    /// Ends the episodes of a class that began before a time.
    pub(crate) async fn end_episodes(
        &self,
        class: Class,
        before: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "update notices set over_at = $3
             where class = $1 and over_at is null and created_at <= $2 and state <> 'held_back'",
            class.as_str(),
            before,
            now,
        )
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// Forgets what was told long ago. Returns how many notices went.
    pub(crate) async fn delete_notices(
        &self,
        until: DateTime<Utc>,
        limit: i64,
    ) -> Result<u64, StoreError> {
        let gone = sqlx::query!(
            "with old as (
               select id, message_id from notices where created_at <= $1
               order by created_at limit $2
             ), messages_gone as (
               delete from messages m using old
               where m.id = old.message_id and m.created_at <= $1
             )
             delete from notices n using old where n.id = old.id",
            until,
            limit,
        )
        .execute(self.pool())
        .await?;
        Ok(gone.rows_affected())
    }

    /// When the database's server was started, which changes when it is started anew.
    pub(crate) async fn database_started(&self) -> Result<DateTime<Utc>, StoreError> {
        let at = sqlx::query_scalar!(r#"select pg_postmaster_start_time() as "at!""#)
            .fetch_one(self.pool())
            .await?;
        Ok(at)
    }
}

fn class(text: &str) -> Result<Class, StoreError> {
    Class::parse(text).ok_or_else(|| StoreError::unreadable("class of notices", text))
}

fn severity(text: &str) -> Result<Severity, StoreError> {
    Severity::parse(text).ok_or_else(|| StoreError::unreadable("severity", text))
}

/// What a stored word says of a job's submitter.
pub(crate) fn wish(text: &str) -> Result<Wish, StoreError> {
    Wish::parse(text).ok_or_else(|| StoreError::unreadable("wish", text))
}
