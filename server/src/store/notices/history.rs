//! What was told and what was held back, for people.

use chrono::{DateTime, Utc};
use qctl_server_core::JobId;
use qctl_server_core::notice::{Class, Severity};
use sqlx::types::Json;

use super::super::{Store, StoreError};
use super::{class, severity};

/// A notice as people see it in the history.
#[derive(Clone, Debug)]
pub struct NoticeRecord {
    /// Its number.
    pub id: i64,
    /// When it happened.
    pub created_at: DateTime<Utc>,
    /// Its kind.
    pub class: Class,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub subject: String,
    /// The job it is about.
    pub job: Option<JobId>,
    /// The attempt it is about.
    pub attempt: Option<i32>,
    /// The worker it is about; empty when none.
    pub worker: String,
    /// `new`, `waiting`, `told` or `held_back`.
    pub state: String,
    /// Why it is held back; one word.
    pub reason: String,
    /// What it waited for: `quiet_hours` or `others`; empty for nothing.
    pub waited: String,
    /// What it is called in messages that were sent without the database; empty for most.
    pub filed_as: String,
    /// How often the same thing happened again.
    pub repeats: i32,
    /// What was told; empty when it was not.
    pub title: String,
    /// The rest of it.
    pub body: String,
    /// What became of it at each channel.
    pub deliveries: Vec<DeliveryRecord>,
}

/// What became of a message at one channel.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct DeliveryRecord {
    /// The channel.
    pub channel: String,
    /// `pending`, `sending`, `sent`, `rejected`, `unknown` or `over`.
    pub state: String,
    /// What the channel said, or what went wrong.
    pub detail: String,
    /// When it was taken.
    pub sent_at: Option<DateTime<Utc>>,
    /// When a person acknowledged it.
    pub acknowledged_at: Option<DateTime<Utc>>,
    /// Who did.
    pub acknowledged_by: String,
}

/// Notices of one class and fate.
#[derive(Clone, Debug)]
pub struct NoticeCount {
    /// The class.
    pub class: Class,
    /// `new`, `waiting`, `told` or `held_back`.
    pub state: String,
    /// Why they were held back; empty otherwise.
    pub reason: String,
    /// How many.
    pub count: i64,
    /// How often the same things happened again.
    pub repeats: i64,
    /// How many of them were told in one message with others.
    pub merged: i64,
    /// How many of them waited for the end of the quiet hours.
    pub quiet: i64,
}

/// Messages of one channel and fate.
#[derive(Clone, Debug)]
pub struct DeliveryCount {
    /// The channel.
    pub channel: String,
    /// `pending`, `sending`, `sent`, `rejected`, `unknown` or `over`.
    pub state: String,
    /// How many.
    pub count: i64,
}

impl Store {
    /// Notices before a number, newest first; 0 means from the newest.
    pub(crate) async fn notices(
        &self,
        before: i64,
        job: Option<JobId>,
        limit: i64,
    ) -> Result<Vec<NoticeRecord>, StoreError> {
        let rows = sqlx::query!(
            r#"select n.id, n.created_at, n.class, n.severity, n.subject, n.job_id, n.attempt,
                      n.worker, n.state, n.reason, n.waited, coalesce(n.filed_as, '') as "filed_as!",
                      n.repeats, m.title as "title?", m.body as "body?",
                      coalesce((select jsonb_agg(jsonb_build_object(
                                  'channel', d.channel, 'state', d.state, 'detail', d.detail,
                                  'sent_at', d.sent_at, 'acknowledged_at', d.acknowledged_at,
                                  'acknowledged_by', d.acknowledged_by) order by d.channel)
                                from deliveries d where d.message_id = m.id), '[]'::jsonb)
                        as "deliveries!: Json<Vec<DeliveryRecord>>"
               from notices n left join messages m on m.id = n.message_id
               where ($1::bigint = 0 or n.id < $1) and ($2::bigint is null or n.job_id = $2)
               order by n.id desc
               limit $3"#,
            before,
            job.map(|job| job.0),
            limit,
        )
        .fetch_all(self.pool())
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(NoticeRecord {
                    id: row.id,
                    created_at: row.created_at,
                    class: class(&row.class)?,
                    severity: severity(&row.severity)?,
                    subject: row.subject,
                    job: row.job_id.map(JobId),
                    attempt: row.attempt,
                    worker: row.worker,
                    state: row.state,
                    reason: row.reason,
                    waited: row.waited,
                    filed_as: row.filed_as,
                    repeats: row.repeats,
                    title: row.title.unwrap_or_default(),
                    body: row.body.unwrap_or_default(),
                    deliveries: row.deliveries.0,
                })
            })
            .collect()
    }

    /// Notices since a time, of one job or all, counted by class and fate.
    pub(crate) async fn count_notices(
        &self,
        since: DateTime<Utc>,
        job: Option<JobId>,
    ) -> Result<Vec<NoticeCount>, StoreError> {
        let rows = sqlx::query!(
            r#"select n.class, n.state, n.reason, count(*) as "count!",
                      coalesce(sum(n.repeats), 0) as "repeats!",
                      count(*) filter (where m.notices > 1) as "merged!",
                      count(*) filter (where n.waited = 'quiet_hours') as "quiet!"
               from notices n left join messages m on m.id = n.message_id
               where n.created_at > $1 and ($2::bigint is null or n.job_id = $2)
               group by n.class, n.state, n.reason
               order by n.class, n.state, n.reason"#,
            since,
            job.map(|job| job.0),
        )
        .fetch_all(self.pool())
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(NoticeCount {
                    class: class(&row.class)?,
                    state: row.state,
                    reason: row.reason,
                    count: row.count,
                    repeats: row.repeats,
                    merged: row.merged,
                    quiet: row.quiet,
                })
            })
            .collect()
    }

    /// Messages of notices since a time, of one job or all, counted by channel and fate.
    pub(crate) async fn count_deliveries(
        &self,
        since: DateTime<Utc>,
        job: Option<JobId>,
    ) -> Result<Vec<DeliveryCount>, StoreError> {
        let counts = sqlx::query_as!(
            DeliveryCount,
            r#"select d.channel, d.state, count(*) as "count!"
               from deliveries d
               where d.message_id in (select n.message_id from notices n
                                      where n.created_at > $1
                                        and ($2::bigint is null or n.job_id = $2))
               group by d.channel, d.state
               order by d.channel, d.state"#,
            since,
            job.map(|job| job.0),
        )
        .fetch_all(self.pool())
        .await?;
        Ok(counts)
    }
}
