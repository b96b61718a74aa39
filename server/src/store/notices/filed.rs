//! Notices that were filed, here or on a worker's machine, on their way into the history.

use chrono::{DateTime, Utc};
use qctl_server_core::notice::Notice;
use sqlx::PgConnection;

use super::super::{Store, StoreError};

/// A notice of a file on its way into the history.
#[derive(Clone, Debug)]
pub(crate) struct FiledNotice {
    /// Names its file.
    pub(crate) filed_as: String,
    /// When it happened.
    pub(crate) at: DateTime<Utc>,
    /// The notice.
    pub(crate) notice: Notice,
    /// What was sent of it; `None` when nothing was, so that it is told like any other.
    pub(crate) message: Option<FiledMessage>,
}

/// How the local outbox told a notice.
#[derive(Clone, Debug)]
pub(crate) struct FiledMessage {
    /// One line.
    pub(crate) title: String,
    /// The rest.
    pub(crate) body: String,
    /// What became of it at each channel.
    pub(crate) deliveries: Vec<FiledDelivery>,
}

/// What became of a message of the local outbox at one channel.
#[derive(Clone, Debug)]
pub(crate) struct FiledDelivery {
    /// The channel.
    pub(crate) channel: String,
    /// `pending`, `sent`, `rejected` or `unknown`.
    pub(crate) state: &'static str,
    /// What the channel said, or what went wrong.
    pub(crate) detail: String,
    /// Its name at the channel, which repeats it until a person acknowledges it.
    pub(crate) receipt: Option<String>,
}

impl Store {
    /// Moves a notice of a file into the history. A repetition changes nothing. What a channel did
    /// not take yet is sent from there.
    pub(crate) async fn import_filed(
        &self,
        filed: FiledNotice,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        self.transaction(move |conn| Box::pin(async move { insert(conn, &filed, now).await }))
            .await
    }
}

async fn insert(
    conn: &mut PgConnection,
    filed: &FiledNotice,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let notice = &filed.notice;
    let message = filed.message.as_ref();
    let deliveries = message.map_or(&[][..], |message| &message.deliveries);
    let channels: Vec<String> = deliveries.iter().map(|one| one.channel.clone()).collect();
    let states: Vec<String> = deliveries.iter().map(|one| one.state.to_owned()).collect();
    let said: Vec<String> = deliveries.iter().map(|one| one.detail.clone()).collect();
    let receipts: Vec<Option<String>> = deliveries.iter().map(|one| one.receipt.clone()).collect();
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
           select made.id, u.channel, u.state, 1, $7, case when u.state = 'sent' then $1 end,
                  u.detail, u.receipt
           from made, unnest($8::text[], $9::text[], $10::text[], $11::text[])
             as u (channel, state, detail, receipt)
         )
         insert into notices (created_at, class, severity, subject, signature, worker, details,
                              state, message_id, over_at, filed_as)
         select $1, $2, $3, $12, $13, $14, $15,
                case when $4::text is null then 'new' else 'told' end,
                (select id from made), case when $16 then $1 end, $6
         on conflict do nothing",
        filed.at,
        notice.class.as_str(),
        notice.class.severity().as_str(),
        message.map(|message| message.title.as_str()),
        message
            .map(|message| message.body.as_str())
            .unwrap_or_default(),
        filed.filed_as,
        now,
        &channels,
        &states,
        &said,
        &receipts as &[Option<String>],
        notice.subject,
        notice.signature,
        notice.worker,
        serde_json::json!(notice.details),
        notice.class.is_over_at_once(),
    )
    .execute(conn)
    .await?;
    Ok(())
}
