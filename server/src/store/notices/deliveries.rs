//! Messages on their way through channels, and who has seen them.

use chrono::{DateTime, Utc};
use qctl_server_core::notice::{Class, Severity};

use super::super::{Store, StoreError};
use super::{class, severity};

/// A message on its way through one channel.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    /// The message.
    pub(crate) message: i64,
    /// What people and programs call it: the number of the first notice that it tells, or the name
    /// of its file when it was sent without the database before.
    pub(crate) id: String,
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
    /// How often it was tried; names the latest try.
    pub(crate) tries: i32,
    /// What the channel still took before it was sent.
    pub(crate) left_before: Option<i64>,
    /// Not before this time.
    pub(crate) next_at: DateTime<Utc>,
}

/// What a notice is called by those who were told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoticeName {
    /// Its number.
    Number(i64),
    /// Its file in the local outbox, when it was sent without the database.
    File(String),
}

impl std::fmt::Display for NoticeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::File(name) => f.write_str(name),
        }
    }
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
    /// It was not sent, because what it tells is over.
    Over,
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

impl Store {
    /// The delivery of a channel that is due next, whenever that is. One whose fate is open comes
    /// before all others: a counter tells what became of it only while nothing else is sent.
    pub(crate) async fn next_delivery(
        &self,
        channel: &str,
    ) -> Result<Option<Delivery>, StoreError> {
        let row = sqlx::query!(
            r#"select d.message_id, d.state, d.tries, d.left_before, d.next_at, m.class, m.severity,
                      m.title, m.body, m.url, m.created_at,
                      coalesce((select coalesce(n.filed_as, n.id::text) from notices n
                                where n.message_id = m.id order by n.id limit 1), '') as "id!"
               from deliveries d join messages m on m.id = d.message_id
               where d.channel = $1 and d.state in ('pending', 'sending')
               order by d.state = 'sending' desc, d.next_at, d.message_id
               limit 1"#,
            channel,
        )
        .fetch_optional(self.pool())
        .await?;
        row.map(|row| {
            Ok(Delivery {
                message: row.message_id,
                id: row.id,
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
    /// asked for at `settle_at`. Returns the number of this try, or `None` when the delivery is not
    /// what was read any more. Fails when the term is over.
    pub(crate) async fn begin_delivery(
        &self,
        delivery: &Delivery,
        channel: &str,
        left_before: Option<i64>,
        settle_at: DateTime<Utc>,
    ) -> Result<Option<i32>, StoreError> {
        let (message, tries, channel) = (delivery.message, delivery.tries, channel.to_owned());
        self.transaction(move |conn| {
            Box::pin(async move {
                let begun = sqlx::query_scalar!(
                    "update deliveries
                     set state = 'sending', tries = tries + 1, left_before = $4, next_at = $5
                     where message_id = $1 and channel = $2 and state = 'pending' and tries = $3
                     returning tries",
                    message,
                    channel,
                    tries,
                    left_before,
                    settle_at,
                )
                .fetch_optional(conn)
                .await?;
                Ok(begun)
            })
        })
        .await
    }

    /// Writes what became of a try. False when that try is settled already, or a later one has begun.
    ///
    /// A term that has ended does not stop it: nobody else knows what became of the try, and its
    /// number keeps it from touching another one.
    pub(crate) async fn end_delivery(
        &self,
        message: i64,
        channel: &str,
        tried: i32,
        now: DateTime<Utc>,
        fate: &Fate,
        detail: &str,
    ) -> Result<bool, StoreError> {
        let (state, next_at, sent_at, receipt) = match fate {
            Fate::Pending(next) => ("pending", *next, None, None),
            Fate::Sending(next) => ("sending", *next, None, None),
            Fate::Sent { receipt } => ("sent", now, Some(now), receipt.as_deref()),
            Fate::Rejected => ("rejected", now, None, None),
            Fate::Unknown => ("unknown", now, None, None),
            Fate::Over => ("over", now, None, None),
        };
        let ended = sqlx::query!(
            "update deliveries set state = $4, next_at = $5, sent_at = $6, receipt = $7, detail = $8
             where message_id = $1 and channel = $2 and tries = $3 and state = 'sending'",
            message,
            channel,
            tried,
            state,
            next_at,
            sent_at,
            receipt,
            detail,
        )
        .execute(self.pool())
        .await?;
        Ok(ended.rows_affected() == 1)
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

    /// Notes that a person has seen the message of a notice, named by its number or its file. `None`
    /// when there is no such notice, false when it was never told.
    pub(crate) async fn acknowledge_notice(
        &self,
        notice: &NoticeName,
        now: DateTime<Utc>,
        by: &str,
    ) -> Result<Option<bool>, StoreError> {
        let (number, file) = match notice {
            NoticeName::Number(number) => (Some(*number), None),
            NoticeName::File(file) => (None, Some(file.as_str())),
        };
        let row = sqlx::query!(
            r#"with n as (
                 select id, message_id from notices where id = $1 or filed_as = $2
               ), seen as (
                 update deliveries d set acknowledged_at = $3, acknowledged_by = $4
                 from n where d.message_id = n.message_id and d.acknowledged_at is null
                 returning 1
               )
               select n.message_id from n"#,
            number,
            file,
            now,
            by,
        )
        .fetch_optional(self.pool())
        .await?;
        Ok(row.map(|row| row.message_id.is_some()))
    }
}
