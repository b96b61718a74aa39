//! Notices, the messages made of them, and their deliveries. A notice is inserted in the
//! transaction of its event; one loop of the leader moves it on from there, each step guarded by
//! the state that it was in.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use qctl_server_core::notice::{Class, Details, Notice, Severity, Wish};
use qctl_server_core::{Cause, JobId, Outcome, OutcomeKind};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::{Store, StoreError};

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
    /// It came by the local outbox, which could not tell it.
    pub const NOT_SENT: &str = "not_sent";
}

/// A notice as the outbox needs it.
#[derive(Clone, Debug)]
pub(crate) struct OpenNotice {
    /// Its number.
    pub(crate) id: i64,
    /// When it happened.
    pub(crate) created_at: DateTime<Utc>,
    /// Its kind.
    pub(crate) class: Class,
    /// The job it is about.
    pub(crate) job: Option<JobId>,
    /// The job's name; empty when it has none any more.
    pub(crate) job_name: String,
    /// The attempt it is about.
    pub(crate) attempt: Option<i32>,
    /// The worker it is about, or that of the job's latest attempt.
    pub(crate) worker: String,
    /// What happened.
    pub(crate) details: Details,
    /// How the attempt ended.
    pub(crate) outcome: Option<Outcome>,
    /// All of the attempt's output is stored, as far as anybody knows.
    pub(crate) log_complete: bool,
}

/// A message on its way through one channel.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    /// The message.
    pub(crate) message: i64,
    /// Its kind.
    pub(crate) class: Class,
    /// How bad it is.
    pub(crate) severity: Severity,
    /// One line.
    pub(crate) title: String,
    /// The rest.
    pub(crate) body: String,
    /// Where to look; empty for nowhere.
    pub(crate) url: String,
    /// When it was made.
    pub(crate) created_at: DateTime<Utc>,
    /// It was being sent when that was cut off.
    pub(crate) sending: bool,
    /// How often it was tried.
    pub(crate) tries: i32,
    /// What the channel still took before it was sent.
    pub(crate) left_before: Option<i64>,
    /// Not before this time.
    pub(crate) next_at: DateTime<Utc>,
}

/// Where a delivery goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is tried again.
    Pending(DateTime<Utc>),
    /// Nobody knows yet; the channel is asked again at this time.
    Sending(DateTime<Utc>),
    /// It was taken.
    Sent {
        /// Names it until a person has acknowledged it.
        receipt: Option<String>,
    },
    /// It was refused.
    Rejected,
    /// Nobody knows, and it is not tried again.
    Unknown,
}

/// A message that is repeated until a person acknowledges it.
#[derive(Clone, Debug)]
pub(crate) struct OpenReceipt {
    /// The message.
    pub(crate) message: i64,
    /// Its name at the channel.
    pub(crate) receipt: String,
    /// Its cause has ended, or a person has acknowledged it here.
    pub(crate) over: bool,
}

/// A message to be made.
#[derive(Clone, Debug)]
pub(crate) struct NewMessage<'a> {
    /// The notices it tells; those that are told already are left out.
    pub(crate) notices: &'a [i64],
    /// Their class.
    pub(crate) class: Class,
    /// One line.
    pub(crate) title: &'a str,
    /// The rest.
    pub(crate) body: &'a str,
    /// Where to look; empty for nowhere.
    pub(crate) url: &'a str,
    /// The channels that carry it.
    pub(crate) channels: &'a [String],
}

/// A notice of the local outbox on its way into the history.
#[derive(Clone, Debug)]
pub(crate) struct FiledNotice<'a> {
    /// Names its file.
    pub(crate) filed_as: &'a str,
    /// When it happened.
    pub(crate) at: DateTime<Utc>,
    /// The notice.
    pub(crate) notice: &'a Notice,
    /// How a person was told already; `None` when it is still to be told.
    pub(crate) told: Option<FiledFate<'a>>,
}

/// How the local outbox told a notice.
#[derive(Clone, Debug)]
pub(crate) struct FiledFate<'a> {
    /// One line.
    pub(crate) title: &'a str,
    /// The rest.
    pub(crate) body: &'a str,
    /// The channels that were tried.
    pub(crate) channels: &'a [String],
    /// For each of them, the name of a message that it repeats until a person acknowledges it.
    pub(crate) receipts: &'a [Option<String>],
    /// `sent`, `rejected` or `unknown`.
    pub(crate) state: &'a str,
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
        } else if seen.insert((&notice.subject, notice.class, &notice.signature)) {
            plain.push(notice);
        }
    }
    insert_plain(conn, now, &plain).await
}

async fn end_episode(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    ended: Class,
    notice: &Notice,
) -> Result<(), StoreError> {
    let open = sqlx::query!(
        r#"update notices set over_at = $1
           where subject = $2 and class = $3 and over_at is null
           returning created_at, details as "details: Json<Details>""#,
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

struct OpenRow {
    id: i64,
    created_at: DateTime<Utc>,
    class: String,
    job_id: Option<i64>,
    name: Option<String>,
    attempt: Option<i32>,
    worker: String,
    details: Json<Details>,
    outcome_kind: Option<String>,
    outcome_cause: Option<String>,
    outcome_message: Option<String>,
    exit_code: Option<i32>,
    signal: Option<i32>,
    log_end: Option<i64>,
    log_stored: Option<i64>,
}

impl OpenRow {
    fn read(self) -> Result<OpenNotice, StoreError> {
        let outcome = match (self.outcome_kind, self.outcome_cause) {
            (Some(kind), Some(cause)) => Some(Outcome {
                kind: OutcomeKind::parse(&kind)
                    .ok_or_else(|| StoreError::unreadable("outcome", &kind))?,
                cause: Cause::parse(&cause)
                    .ok_or_else(|| StoreError::unreadable("cause", &cause))?,
                exit_code: self.exit_code,
                signal: self.signal,
                message: self.outcome_message.unwrap_or_default(),
            }),
            _ => None,
        };
        Ok(OpenNotice {
            id: self.id,
            created_at: self.created_at,
            class: class(&self.class)?,
            job: self.job_id.map(JobId),
            job_name: self.name.unwrap_or_default(),
            attempt: self.attempt,
            worker: self.worker,
            details: self.details.0,
            outcome,
            log_complete: match (self.log_end, self.log_stored) {
                // Nobody knows how long it is: what there is will do.
                (None, _) => true,
                (Some(end), stored) => stored.unwrap_or_default() >= end,
            },
        })
    }
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

    /// Notices in a state (`new` or `waiting`), oldest first.
    ///
    /// One kind's notices that have to wait do not hide those of another; one that this version
    /// cannot read is left for a newer one.
    pub(crate) async fn open_notices(
        &self,
        state: &str,
        limit: i64,
    ) -> Result<Vec<OpenNotice>, StoreError> {
        let rows = sqlx::query_as!(
            OpenRow,
            r#"select n.id, n.created_at, n.class, n.job_id, j.name as "name?",
                      coalesce(n.attempt, nullif(j.attempts, 0)) as attempt,
                      case when n.worker <> '' then n.worker else coalesce(w.name, '') end as "worker!",
                      n.details as "details: Json<Details>", a.outcome_kind as "outcome_kind?",
                      a.outcome_cause as "outcome_cause?", a.outcome_message as "outcome_message?",
                      a.exit_code as "exit_code?", a.signal as "signal?", a.log_end as "log_end?",
                      l.log_stored as "log_stored?"
               from (select o.*, row_number() over (partition by o.class
                                                    order by o.created_at, o.id) as place
                     from notices o where o.state in ('new', 'waiting') and o.state = $1) n
               left join jobs j on j.id = n.job_id
               left join attempts a on a.job_id = n.job_id
                 and a.number = coalesce(n.attempt, nullif(j.attempts, 0))
               left join attempts_live l on l.fence = a.fence
               left join workers w on w.id = a.worker_id
               where n.place <= $2
               order by n.created_at, n.id"#,
            state,
            limit,
        )
        .fetch_all(self.pool())
        .await?;
        let read = |row: OpenRow| {
            let id = row.id;
            row.read()
                .inspect_err(|error| tracing::error!(id, "notice {id} is left alone: {error}"))
                .ok()
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    /// Makes a new notice wait to be told, with what was found out about it; without a signature it
    /// keeps its own. When the same thing was told before in its episode, it is held back instead,
    /// and false is returned.
    pub(crate) async fn prepare_notice(
        &self,
        id: i64,
        signature: Option<&str>,
        details: &Details,
        now: DateTime<Utc>,
    ) -> Result<bool, StoreError> {
        let prepared = sqlx::query!(
            r#"with told as (
                 update notices o set repeats = o.repeats + 1, repeated_at = $4
                 from notices n
                 where n.id = $1 and $2::text is not null and o.subject = n.subject
                   and o.class = n.class and o.signature = $2 and o.id <> n.id
                   and o.over_at is null and o.state <> 'held_back'
                 returning o.id
               )
               update notices
               set state = case when exists (select from told) then 'held_back' else 'waiting' end,
                   reason = case when exists (select from told) then $5 else '' end,
                   signature = coalesce($2, signature), details = $3
               where id = $1 and state = 'new'
               returning state"#,
            id,
            signature,
            serde_json::json!(details),
            now,
            held_back::TOLD_BEFORE,
        )
        .fetch_optional(self.pool())
        .await?;
        Ok(prepared.is_some_and(|row| row.state == "waiting"))
    }

    /// Says that notices are never told.
    pub(crate) async fn hold_back(&self, notices: &[i64], reason: &str) -> Result<(), StoreError> {
        sqlx::query!(
            "update notices set state = 'held_back', reason = $2
             where id = any($1) and state in ('new', 'waiting')",
            notices,
            reason,
        )
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// When messages of a class were made since a time, in order.
    pub(crate) async fn messages_since(
        &self,
        class: Class,
        since: DateTime<Utc>,
    ) -> Result<Vec<DateTime<Utc>>, StoreError> {
        let times = sqlx::query_scalar!(
            "select created_at from messages where class = $1 and created_at > $2
             order by created_at",
            class.as_str(),
            since,
        )
        .fetch_all(self.pool())
        .await?;
        Ok(times)
    }

    /// Makes a message of notices that wait. None is made when none of them waits any more.
    pub(crate) async fn make_message(
        &self,
        now: DateTime<Utc>,
        message: &NewMessage<'_>,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "with open as (
               select id from notices where id = any($2) and state = 'waiting' for update
             ), made as (
               insert into messages (created_at, class, severity, title, body, url, notices)
               select $1, $3, $4, $5, $6, $7, count(*) from open having count(*) > 0
               returning id
             ), told as (
               update notices n set state = 'told', message_id = made.id
               from made, open where n.id = open.id
             )
             insert into deliveries (message_id, channel, next_at)
             select made.id, u.channel, $1 from made, unnest($8::text[]) as u (channel)",
            now,
            message.notices,
            message.class.as_str(),
            message.class.severity().as_str(),
            message.title,
            message.body,
            message.url,
            message.channels,
        )
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// The delivery of a channel that is due next, whenever that is.
    pub(crate) async fn next_delivery(
        &self,
        channel: &str,
    ) -> Result<Option<Delivery>, StoreError> {
        let row = sqlx::query!(
            "select d.message_id, d.state, d.tries, d.left_before, d.next_at, m.class, m.severity,
                    m.title, m.body, m.url, m.created_at
             from deliveries d join messages m on m.id = d.message_id
             where d.channel = $1 and d.state in ('pending', 'sending')
             order by d.next_at, d.message_id
             limit 1",
            channel,
        )
        .fetch_optional(self.pool())
        .await?;
        row.map(|row| {
            Ok(Delivery {
                message: row.message_id,
                class: class(&row.class)?,
                severity: severity(&row.severity)?,
                title: row.title,
                body: row.body,
                url: row.url,
                created_at: row.created_at,
                sending: row.state == "sending",
                tries: row.tries,
                left_before: row.left_before,
                next_at: row.next_at,
            })
        })
        .transpose()
    }

    /// Marks a delivery as being sent, before it is; if nothing more is written, what became of it is
    /// asked for at `settle_at`. False when it is not to be sent any more.
    pub(crate) async fn begin_delivery(
        &self,
        message: i64,
        channel: &str,
        left_before: Option<i64>,
        settle_at: DateTime<Utc>,
    ) -> Result<bool, StoreError> {
        let begun = sqlx::query!(
            "update deliveries
             set state = 'sending', tries = tries + 1, left_before = $3, next_at = $4
             where message_id = $1 and channel = $2 and state = 'pending'",
            message,
            channel,
            left_before,
            settle_at,
        )
        .execute(self.pool())
        .await?;
        Ok(begun.rows_affected() == 1)
    }

    /// Writes what became of a delivery that was being sent.
    pub(crate) async fn end_delivery(
        &self,
        message: i64,
        channel: &str,
        now: DateTime<Utc>,
        fate: &Fate,
        detail: &str,
    ) -> Result<(), StoreError> {
        let (state, next_at, sent_at, receipt) = match fate {
            Fate::Pending(next) => ("pending", *next, None, None),
            Fate::Sending(next) => ("sending", *next, None, None),
            Fate::Sent { receipt } => ("sent", now, Some(now), receipt.as_deref()),
            Fate::Rejected => ("rejected", now, None, None),
            Fate::Unknown => ("unknown", now, None, None),
        };
        sqlx::query!(
            "update deliveries set state = $3, next_at = $4, sent_at = $5, receipt = $6, detail = $7
             where message_id = $1 and channel = $2 and state = 'sending'",
            message,
            channel,
            state,
            next_at,
            sent_at,
            receipt,
            detail,
        )
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// Urgent messages of a channel whose repetition has not ended.
    pub(crate) async fn open_receipts(
        &self,
        channel: &str,
    ) -> Result<Vec<OpenReceipt>, StoreError> {
        let rows = sqlx::query_as!(
            OpenReceipt,
            r#"select d.message_id as message, d.receipt as "receipt!",
                      d.acknowledged_at is not null
                        or not exists (select from notices n
                                       where n.message_id = d.message_id and n.over_at is null)
                        as "over!"
               from deliveries d
               where d.channel = $1 and d.receipt is not null and not d.receipt_over
               order by d.message_id
               limit 50"#,
            channel,
        )
        .fetch_all(self.pool())
        .await?;
        Ok(rows)
    }

    /// Ends the repetition of an urgent message; with the person who acknowledged it, if one did.
    pub(crate) async fn close_receipt(
        &self,
        message: i64,
        channel: &str,
        acknowledged: Option<(DateTime<Utc>, &str)>,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "update deliveries
             set receipt_over = true,
                 acknowledged_at = coalesce(acknowledged_at, $3),
                 acknowledged_by = case when acknowledged_at is null then $4 else acknowledged_by end
             where message_id = $1 and channel = $2",
            message,
            channel,
            acknowledged.map(|(at, _)| at),
            acknowledged.map(|(_, by)| by).unwrap_or_default(),
        )
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// Notes that a person has seen the message of a notice. `None` when there is no such notice,
    /// false when it was never told.
    pub(crate) async fn acknowledge_notice(
        &self,
        notice: i64,
        now: DateTime<Utc>,
        by: &str,
    ) -> Result<Option<bool>, StoreError> {
        let row = sqlx::query!(
            r#"with n as (
                 select id, message_id from notices where id = $1
               ), seen as (
                 update deliveries d set acknowledged_at = $2, acknowledged_by = $3
                 from n where d.message_id = n.message_id and d.acknowledged_at is null
                 returning 1
               )
               select n.message_id from n"#,
            notice,
            now,
            by,
        )
        .fetch_optional(self.pool())
        .await?;
        Ok(row.map(|row| row.message_id.is_some()))
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

    /// Writes what went wrong in a failed attempt.
    pub(crate) async fn record_error(
        &self,
        job: JobId,
        attempt: i32,
        time: DateTime<Utc>,
        signature: &str,
        exception: &str,
        line: &str,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "insert into attempt_errors (job_id, attempt, time, signature, exception, line)
             select $1, $2, $3, $4, $5, $6 from jobs where id = $1
             on conflict (job_id, attempt) do nothing",
            job.0,
            attempt,
            time,
            signature,
            exception,
            line,
        )
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// Failed attempts whose notice was held back before its error was looked at, so that they are
    /// grouped as well; oldest first.
    pub(crate) async fn ungrouped_errors(
        &self,
        since: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<OpenNotice>, StoreError> {
        let rows = sqlx::query_as!(
            OpenRow,
            r#"select n.id, n.created_at, n.class, n.job_id, j.name as "name?", n.attempt,
                      n.worker, n.details as "details: Json<Details>",
                      a.outcome_kind as "outcome_kind?", a.outcome_cause as "outcome_cause?",
                      a.outcome_message as "outcome_message?", a.exit_code as "exit_code?",
                      a.signal as "signal?", a.log_end as "log_end?", l.log_stored as "log_stored?"
               from notices n
               join jobs j on j.id = n.job_id
               join attempts a on a.job_id = n.job_id and a.number = n.attempt
               left join attempts_live l on l.fence = a.fence
               where n.created_at > $1 and n.state = 'held_back' and n.reason = $2
                 and n.class in ('attempt_failed', 'job_failed')
                 and not exists (select from attempt_errors e
                                 where e.job_id = n.job_id and e.attempt = n.attempt)
               order by n.created_at
               limit $3"#,
            since,
            held_back::NOT_WANTED,
            limit,
        )
        .fetch_all(self.pool())
        .await?;
        rows.into_iter().map(OpenRow::read).collect()
    }

    /// Moves a notice of the local outbox into the history. A repetition changes nothing.
    pub(crate) async fn import_filed(&self, filed: &FiledNotice<'_>) -> Result<(), StoreError> {
        let notice = filed.notice;
        let fate = filed.told.as_ref();
        sqlx::query!(
            "with made as (
               insert into messages (created_at, class, severity, title, body, notices)
               select $1, $2, $3, $4::text, $5, 1
               where $4 is not null
                 and not exists (select from notices where filed_as = $6)
               returning id
             ), delivered as (
               insert into deliveries (message_id, channel, state, tries, next_at, sent_at, detail,
                                       receipt)
               select made.id, u.channel, $7, 1, $1, case when $7 = 'sent' then $1 end,
                      'by the local outbox', u.receipt
               from made, unnest($8::text[], $14::text[]) as u (channel, receipt)
             )
             insert into notices (created_at, class, severity, subject, signature, worker, details,
                                  state, message_id, over_at, filed_as)
             select $1, $2, $3, $9, $10, $11, $12,
                    case when $4::text is null then 'new' else 'told' end,
                    (select id from made), case when $13 then $1 end, $6
             on conflict do nothing",
            filed.at,
            notice.class.as_str(),
            notice.class.severity().as_str(),
            fate.map(|fate| fate.title),
            fate.map(|fate| fate.body).unwrap_or_default(),
            filed.filed_as,
            fate.map(|fate| fate.state).unwrap_or_default(),
            fate.map(|fate| fate.channels).unwrap_or_default(),
            notice.subject,
            notice.signature,
            notice.worker,
            serde_json::json!(notice.details),
            notice.class.is_over_at_once(),
            fate.map(|fate| fate.receipts).unwrap_or_default() as &[Option<String>],
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
    /// `pending`, `sending`, `sent`, `rejected` or `unknown`.
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
}

/// Failures with the same signature.
#[derive(Clone, Debug)]
pub struct ErrorGroup {
    /// What they have in common.
    pub signature: String,
    /// Type of the exception of the latest; empty when it has none.
    pub exception: String,
    /// Line of output of the latest.
    pub example: String,
    /// How many attempts failed so.
    pub count: i64,
    /// The first of them.
    pub first_seen: DateTime<Utc>,
    /// The latest.
    pub last_seen: DateTime<Utc>,
    /// The latest jobs that failed so, newest first.
    pub jobs: Vec<JobId>,
    /// How many jobs failed so.
    pub job_count: i64,
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
                      n.worker, n.state, n.reason, n.repeats, m.title as "title?", m.body as "body?",
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
                    repeats: row.repeats,
                    title: row.title.unwrap_or_default(),
                    body: row.body.unwrap_or_default(),
                    deliveries: row.deliveries.0,
                })
            })
            .collect()
    }

    /// Notices since a time, counted by class and fate.
    pub(crate) async fn count_notices(
        &self,
        since: DateTime<Utc>,
    ) -> Result<Vec<NoticeCount>, StoreError> {
        let rows = sqlx::query!(
            r#"select class, state, reason, count(*) as "count!", coalesce(sum(repeats), 0) as "repeats!"
               from notices where created_at > $1
               group by class, state, reason
               order by class, state, reason"#,
            since,
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
                })
            })
            .collect()
    }

    /// Failures since a time in groups, the latest first; `skip` groups are left out.
    pub(crate) async fn error_groups(
        &self,
        since: DateTime<Utc>,
        skip: i64,
        limit: i64,
    ) -> Result<Vec<ErrorGroup>, StoreError> {
        let rows = sqlx::query!(
            r#"select signature as "signature!", count(*) as "count!", min(time) as "first!",
                      max(time) as "last!", count(distinct job_id) as "job_count!",
                      (array_agg(exception order by time desc))[1] as "exception!",
                      (array_agg(line order by time desc))[1] as "line!",
                      (array_agg(job_id order by time desc))[1:20] as "jobs!"
               from attempt_errors where time > $1
               group by signature
               order by max(time) desc, signature
               offset $2 limit $3"#,
            since,
            skip,
            limit,
        )
        .fetch_all(self.pool())
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let mut jobs: Vec<JobId> = Vec::new();
                for job in row.jobs {
                    if !jobs.contains(&JobId(job)) {
                        jobs.push(JobId(job));
                    }
                }
                ErrorGroup {
                    signature: row.signature,
                    exception: row.exception,
                    example: row.line,
                    count: row.count,
                    first_seen: row.first,
                    last_seen: row.last,
                    jobs,
                    job_count: row.job_count,
                }
            })
            .collect())
    }
}

/// How far back failures are looked for that were not grouped.
pub(crate) const UNGROUPED_WINDOW: TimeDelta = TimeDelta::hours(1);

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
