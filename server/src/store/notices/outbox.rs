//! From a notice to a message: the steps of the outbox.

use chrono::{DateTime, Utc};
use qctl_server_core::notice::over::{Since, is_over};
use qctl_server_core::notice::timing::Waits;
use qctl_server_core::notice::{Class, Details};
use qctl_server_core::{Cause, JobId, JobState, Outcome, OutcomeKind};
use sqlx::types::Json;

use super::super::{Store, StoreError};
use super::{class, held_back};

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
    /// The end of the attempt that it is about: of two, one came after it had been given up.
    pub(crate) outcome: Option<Outcome>,
    /// All of the attempt's output is stored, as far as anybody knows.
    pub(crate) log_complete: bool,
    /// It is known what it waits for.
    pub(crate) waits: bool,
    /// What has become of what it tells.
    pub(crate) since: Since,
}

impl OpenNotice {
    /// True when it is not told any more, because it is over.
    pub(crate) fn is_over(&self, now: DateTime<Utc>) -> bool {
        is_over(self.class, &self.since, now - self.created_at)
    }
}

/// Notices of a class that wait.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which<'a> {
    /// These.
    Of(&'a [i64]),
    /// All up to this number.
    UpTo(i64),
}

/// A message to be made.
#[derive(Clone, Debug)]
pub(crate) struct NewMessage<'a> {
    /// The class of what it tells.
    pub(crate) class: Class,
    /// Which of those that wait it tells.
    pub(crate) which: Which<'a>,
    /// One line.
    pub(crate) title: &'a str,
    /// The rest.
    pub(crate) body: &'a str,
    /// Where to look; empty for nowhere.
    pub(crate) url: &'a str,
    /// The channels that carry it.
    pub(crate) channels: &'a [String],
}

pub(super) struct OpenRow {
    pub(super) id: i64,
    pub(super) created_at: DateTime<Utc>,
    pub(super) class: String,
    pub(super) job_id: Option<i64>,
    pub(super) name: Option<String>,
    pub(super) job_state: Option<String>,
    pub(super) attempt: Option<i32>,
    pub(super) worker: String,
    pub(super) details: Json<Details>,
    pub(super) outcome_kind: Option<String>,
    pub(super) outcome_cause: Option<String>,
    pub(super) outcome_message: Option<String>,
    pub(super) exit_code: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) late_result: Option<Json<Outcome>>,
    pub(super) log_end: Option<i64>,
    pub(super) log_stored: Option<i64>,
    pub(super) waited: String,
    pub(super) ended: bool,
    pub(super) started: bool,
    pub(super) silent: bool,
    pub(super) record_gone: bool,
}

impl OpenRow {
    pub(super) fn read(self) -> Result<OpenNotice, StoreError> {
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
        let is_told = |late: &Outcome| self.details.cause == Some(late.cause);
        let late = self.late_result.map(|late| late.0).filter(is_told);
        let job = self
            .job_state
            .map(|word| {
                JobState::parse(&word).ok_or_else(|| StoreError::unreadable("job state", &word))
            })
            .transpose()?;
        Ok(OpenNotice {
            id: self.id,
            created_at: self.created_at,
            class: class(&self.class)?,
            job: self.job_id.map(JobId),
            job_name: self.name.unwrap_or_default(),
            attempt: self.attempt,
            worker: self.worker,
            details: self.details.0,
            outcome: late.or(outcome),
            waits: !self.waited.is_empty(),
            since: Since {
                ended: self.ended,
                job,
                started: self.started,
                silent: self.silent,
                record_gone: self.record_gone,
            },
            log_complete: match (self.log_end, self.log_stored) {
                // Nobody knows how long it is: what there is will do.
                (None, _) => true,
                (Some(end), stored) => stored.unwrap_or_default() >= end,
            },
        })
    }
}

impl Store {
    /// Notices in a state (`new` or `waiting`), oldest first, of each class at most so many: one kind's
    /// notices that have to wait do not hide those of another.
    pub(crate) async fn open_notices(
        &self,
        state: &str,
        limit: i64,
    ) -> Result<Vec<OpenNotice>, StoreError> {
        let ids = sqlx::query_scalar!(
            "select id
             from (select id, row_number() over (partition by class
                                                 order by created_at, id) as place
                   from notices where state in ('new', 'waiting') and state = $1) n
             where place <= $2",
            state,
            limit,
        )
        .fetch_all(self.pool())
        .await?;
        self.notices_by_id(&ids).await
    }

    /// Notices of a class that wait, by number, those after a number.
    pub(crate) async fn waiting_notices(
        &self,
        class: Class,
        after: i64,
        limit: i64,
    ) -> Result<Vec<OpenNotice>, StoreError> {
        let ids = sqlx::query_scalar!(
            "select id from notices
             where class = $1 and state = 'waiting' and id > $2
             order by id limit $3",
            class.as_str(),
            after,
            limit,
        )
        .fetch_all(self.pool())
        .await?;
        let mut notices = self.notices_by_id(&ids).await?;
        notices.sort_by_key(|notice| notice.id);
        Ok(notices)
    }

    /// Notices that a message tells, at most so many.
    pub(crate) async fn notices_of_message(
        &self,
        message: i64,
        limit: i64,
    ) -> Result<Vec<OpenNotice>, StoreError> {
        let ids = sqlx::query_scalar!(
            "select id from notices where message_id = $1 limit $2",
            message,
            limit,
        )
        .fetch_all(self.pool())
        .await?;
        self.notices_by_id(&ids).await
    }

    /// True when notices of a class that happened before a time have not been looked at yet.
    pub(crate) async fn has_new_notices(
        &self,
        class: Class,
        before: DateTime<Utc>,
    ) -> Result<bool, StoreError> {
        let has = sqlx::query_scalar!(
            r#"select exists (select from notices
                              where class = $1 and state = 'new' and created_at < $2) as "has!""#,
            class.as_str(),
            before,
        )
        .fetch_one(self.pool())
        .await?;
        Ok(has)
    }

    /// Notices by number, oldest first. One that this version cannot read is left for a newer one.
    pub(super) async fn notices_by_id(&self, ids: &[i64]) -> Result<Vec<OpenNotice>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = sqlx::query_as!(
            OpenRow,
            r#"select n.id, n.created_at, n.class, n.job_id, j.name as "name?", j.state as "job_state?",
                      coalesce(n.attempt, nullif(j.attempts, 0)) as attempt,
                      case when n.worker <> '' then n.worker else coalesce(w.name, '') end as "worker!",
                      n.details as "details: Json<Details>", a.outcome_kind as "outcome_kind?",
                      a.outcome_cause as "outcome_cause?", a.outcome_message as "outcome_message?",
                      a.exit_code as "exit_code?", a.signal as "signal?",
                      a.late_result as "late_result?: Json<Outcome>", a.log_end as "log_end?",
                      l.log_stored as "log_stored?", n.waited, n.ended_at is not null as "ended!",
                      coalesce(j.started_at > n.created_at, false) as "started!",
                      coalesce(a.state <> 'ended' and a.silence ->> 'stage' <> 'over', false)
                        as "silent!",
                      coalesce(a.record_gone, false) as "record_gone!"
               from notices n
               left join jobs j on j.id = n.job_id
               left join attempts a on a.job_id = n.job_id
                 and a.number = coalesce(n.attempt, nullif(j.attempts, 0))
               left join attempts_live l on l.fence = a.fence
               left join workers w on w.id = a.worker_id
               where n.id = any($1)
               order by n.created_at, n.id"#,
            ids,
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

    /// Notes what notices wait for.
    pub(crate) async fn note_wait(&self, notices: &[i64], waits: Waits) -> Result<(), StoreError> {
        let word = match waits {
            Waits::QuietHours => "quiet_hours",
            Waits::Others => "others",
        };
        sqlx::query!(
            "update notices set waited = $2 where id = any($1) and state = 'waiting' and waited = ''",
            notices,
            word,
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
        let (ids, up_to) = match message.which {
            Which::Of(ids) => (ids, 0),
            Which::UpTo(last) => (&[][..], last),
        };
        sqlx::query!(
            "with open as (
               select id from notices
               where class = $3 and state = 'waiting' and (id = any($2) or id <= $9) for update
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
            ids,
            message.class.as_str(),
            message.class.severity().as_str(),
            message.title,
            message.body,
            message.url,
            message.channels,
            up_to,
        )
        .execute(self.pool())
        .await?;
        Ok(())
    }
}
