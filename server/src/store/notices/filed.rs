//! Notices of the local outbox on their way into the history.

use chrono::{DateTime, Utc};
use qctl_server_core::notice::Notice;

use super::super::{Store, StoreError};

/// A notice of the local outbox on its way into the history.
#[derive(Clone, Debug)]
pub(crate) struct FiledNotice<'a> {
    /// Names its file.
    pub(crate) filed_as: &'a str,
    /// When it happened.
    pub(crate) at: DateTime<Utc>,
    /// The notice.
    pub(crate) notice: &'a Notice,
    /// What was sent of it; `None` when nothing was, so that it is told like any other.
    pub(crate) message: Option<FiledMessage<'a>>,
}

/// How the local outbox told a notice.
#[derive(Clone, Debug)]
pub(crate) struct FiledMessage<'a> {
    /// One line.
    pub(crate) title: &'a str,
    /// The rest.
    pub(crate) body: &'a str,
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
    /// Moves a notice of the local outbox into the history. A repetition changes nothing. What a
    /// channel did not take yet is sent from there.
    pub(crate) async fn import_filed(
        &self,
        filed: &FiledNotice<'_>,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let notice = filed.notice;
        let message = filed.message.as_ref();
        let deliveries = message.map_or(&[][..], |message| &message.deliveries);
        let channels: Vec<String> = deliveries.iter().map(|one| one.channel.clone()).collect();
        let states: Vec<String> = deliveries.iter().map(|one| one.state.to_owned()).collect();
        let said: Vec<String> = deliveries.iter().map(|one| one.detail.clone()).collect();
        let receipts: Vec<Option<String>> =
            deliveries.iter().map(|one| one.receipt.clone()).collect();
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
            message.map(|message| message.title),
            message.map(|message| message.body).unwrap_or_default(),
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
        .execute(self.pool())
        .await?;
        Ok(())
    }
}
