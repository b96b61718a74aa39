//! What people are told: asking for it, reading it, and saying that it was seen.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use qctl_server_core::JobId;
use qctl_server_core::notice::signature::normalised;
use qctl_server_core::notice::{Class, Details, Notice};

use super::read::{PageRequest, page_size, read_token, write_token};
use super::{App, Caller, Error, Role};
use crate::store::notices::FiledNotice;
pub use crate::store::notices::{
    DeliveryCount, DeliveryRecord, ErrorGroup, NoticeCount, NoticeName, NoticeRecord,
};

/// Notices on a page unless asked otherwise.
const PAGE: usize = 50;
/// How far back notices are counted and errors grouped unless asked otherwise.
const STATISTICS: TimeDelta = TimeDelta::days(30);

/// Writes that are refused this long after each other are of two episodes.
const REFUSAL_GAP: TimeDelta = TimeDelta::minutes(5);

/// The database has been refusing to write.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// The first time.
    pub(crate) since: DateTime<Utc>,
    /// The latest time.
    pub(crate) until: DateTime<Utc>,
    /// What it says.
    pub(crate) text: String,
}

/// The ways to people, as far as use cases know them, and the bell that says there is something to
/// tell.
#[derive(Debug, Default)]
pub struct NoticeBoard {
    channels: OnceLock<Vec<String>>,
    problems: Mutex<BTreeMap<String, String>>,
    refusal: Mutex<Option<Refusal>>,
    bell: tokio::sync::Notify,
}

impl NoticeBoard {
    /// Notes that the database refused to write.
    pub(super) fn note_refusal(&self, now: DateTime<Utc>, text: String) {
        let mut refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match &*refusal {
            Some(before) if now - before.until < REFUSAL_GAP => before.since,
            _ => now,
        };
        *refusal = Some(Refusal {
            since,
            until: now,
            text,
        });
    }

    /// Since when the database has been refusing to write, if it has.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.refusal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Forgets that the database refused: it writes again. What was noted since `seen` was read is
    /// kept.
    pub(crate) fn end_refusal(&self, seen: Option<&Refusal>) {
        let mut refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        let until = |refusal: &Refusal| refusal.until;
        if refusal.as_ref().map(until) == seen.map(until) {
            *refusal = None;
        }
    }

    /// Names the channels that are set up; the first call decides.
    pub(crate) fn set_channels(&self, names: Vec<String>) {
        let _ = self.channels.set(names);
    }

    /// The channels that are set up.
    pub fn channels(&self) -> &[String] {
        self.channels.get().map(Vec::as_slice).unwrap_or_default()
    }

    /// Notes that a channel refuses what it is given, or does so no longer. Returns what it refused
    /// with before.
    pub(crate) fn set_problem(&self, channel: &str, problem: Option<String>) -> Option<String> {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        match problem {
            Some(problem) => problems.insert(channel.to_owned(), problem),
            None => problems.remove(channel),
        }
    }

    /// What a channel refuses what it is given with.
    pub fn problem(&self, channel: &str) -> Option<String> {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.get(channel).cloned()
    }

    /// There is something to tell.
    pub(crate) fn ring(&self) {
        self.bell.notify_one();
    }

    /// Returns once there is something to tell.
    pub(crate) async fn rung(&self) {
        self.bell.notified().await;
    }
}

/// What a program on a worker's machine panicked about.
#[derive(Clone, Debug)]
pub struct PanicReport {
    /// Names it, the same in each repetition.
    pub key: String,
    /// The program.
    pub program: String,
    /// The machine.
    pub host: String,
    /// Where in the program.
    pub place: String,
    /// What it said.
    pub text: String,
    /// When, by the clock of the machine, if it says so.
    pub at: Option<DateTime<Utc>>,
}

/// A page of notices.
#[derive(Clone, Debug)]
pub struct NoticePage {
    /// Newest first.
    pub notices: Vec<NoticeRecord>,
    /// Empty on the last page.
    pub next_page_token: String,
    /// How many there were lately, by class and fate.
    pub counts: Vec<NoticeCount>,
    /// How many messages there were lately, by channel and fate.
    pub deliveries: Vec<DeliveryCount>,
}

/// A page of groups of errors.
#[derive(Clone, Debug)]
pub struct ErrorPage {
    /// The group with the latest failure first.
    pub groups: Vec<ErrorGroup>,
    /// Empty on the last page.
    pub next_page_token: String,
}

impl App {
    /// Has people told of something that happens outside of any transaction.
    ///
    /// # Errors
    /// When the database is away.
    pub(crate) async fn tell(&self, notice: Notice) -> Result<(), Error> {
        self.store
            .insert_notices(self.clock.now(), vec![notice])
            .await?;
        self.notices.ring();
        Ok(())
    }

    /// Has people told that a program on a worker's machine panicked. A repetition changes nothing.
    ///
    /// # Errors
    /// When the database is away. The worker tells it again.
    pub(crate) async fn panic_reported(&self, report: PanicReport) -> Result<(), Error> {
        let now = self.clock.now();
        let kept = TimeDelta::from_std(self.settings.history_kept).unwrap_or(TimeDelta::MAX);
        // A clock that is wrong by more than the history goes back tells no time.
        let is_possible = |at: &DateTime<Utc>| *at <= now && now - *at < kept;
        let at = report.at.filter(is_possible).unwrap_or(now);
        let subject = format!("program {} on {}", report.program, report.host);
        let details = Details {
            name: report.program,
            place: report.place.clone(),
            text: report.text,
            ..Details::default()
        };
        let notice = Notice {
            signature: report.place,
            worker: report.host,
            ..Notice::about(Class::Panic, subject, details)
        };
        let filed = FiledNotice {
            filed_as: report.key,
            at,
            notice,
            message: None,
        };
        self.store.import_filed(filed, now).await?;
        self.notices.ring();
        Ok(())
    }

    /// Has people told that a submission was refused: whoever submitted may be a program that nobody
    /// watches.
    pub(super) async fn tell_refusal(&self, caller: &Caller, error: &Error) {
        if !matches!(
            error,
            Error::InvalidField { .. }
                | Error::DependencyImpossible { .. }
                | Error::LimitExceeded { .. }
                | Error::RequestIdReused(_)
        ) {
            return;
        }
        let text = error.to_string();
        let details = Details {
            name: caller.name.clone(),
            text: text.clone(),
            ..Details::default()
        };
        let notice = Notice {
            signature: normalised(&text),
            ..Notice::about(
                Class::SubmissionRefused,
                format!("submitter {}", caller.name),
                details,
            )
        };
        if let Err(error) = self.tell(notice).await {
            tracing::warn!(error = %error, "a refused submission is not told");
        }
    }

    /// True while a worker of this name is connected and has been heard of lately.
    pub(crate) fn is_worker_heard(&self, name: &str) -> bool {
        let silent = self.settings.heartbeat_interval * 2;
        let now = self.clock.now();
        self.sessions.connected().iter().any(|session| {
            session.name == name
                && (now - session.last_contact).to_std().unwrap_or_default() <= silent
        })
    }

    /// A page of notices, newest first; of one job, or all.
    ///
    /// # Errors
    /// When the page token is wrong, or the database is away.
    pub async fn notice_page(
        &self,
        job: Option<JobId>,
        page: &PageRequest,
    ) -> Result<NoticePage, Error> {
        let before = match page.token.as_str() {
            "" => 0,
            token => read_token(token, "notices")?,
        };
        let size = page_size(page.size, PAGE);
        let limit = i64::try_from(size).unwrap_or(i64::MAX).saturating_add(1);
        let mut notices = self.store.notices(before, job, limit).await?;
        let more = notices.len() > size;
        notices.truncate(size);
        let next_page_token = match notices.last() {
            Some(last) if more => write_token("notices", last.id),
            _ => String::new(),
        };
        let since = self.clock.now() - STATISTICS;
        let counts = self.store.count_notices(since, job).await?;
        let deliveries = self.store.count_deliveries(since, job).await?;
        Ok(NoticePage {
            notices,
            next_page_token,
            counts,
            deliveries,
        })
    }

    /// Sends a notice through every channel, to see whether it arrives. Returns their names.
    ///
    /// # Errors
    /// [`Error::NoChannel`], or when the database is away.
    pub async fn test_notices(&self, caller: &Caller) -> Result<Vec<String>, Error> {
        caller.require(Role::Operate)?;
        if self.notices.channels().is_empty() {
            return Err(Error::NoChannel);
        }
        let details = Details {
            name: caller.name.clone(),
            ..Details::default()
        };
        self.tell(Notice::about(Class::Test, "test", details))
            .await?;
        Ok(self.notices.channels().to_vec())
    }

    /// Notes that a person has seen a notice; an urgent one is not repeated any more.
    ///
    /// # Errors
    /// [`Error::NoticeNotFound`], also for one that was never told.
    pub async fn acknowledge_notice(
        &self,
        caller: &Caller,
        notice: NoticeName,
    ) -> Result<(), Error> {
        caller.require(Role::Operate)?;
        let seen = self
            .store
            .acknowledge_notice(&notice, self.clock.now(), &caller.name)
            .await?;
        match seen {
            Some(true) => {
                self.notices.ring();
                Ok(())
            }
            Some(false) | None => Err(Error::NoticeNotFound(notice)),
        }
    }

    /// A page of failures in groups of the same error.
    ///
    /// # Errors
    /// When the page token is wrong, or the database is away.
    pub async fn error_page(
        &self,
        since: Option<DateTime<Utc>>,
        page: &PageRequest,
    ) -> Result<ErrorPage, Error> {
        let skip: i64 = match page.token.as_str() {
            "" => 0,
            token => read_token(token, "errors")?,
        };
        let size = page_size(page.size, PAGE);
        let limit = i64::try_from(size).unwrap_or(i64::MAX).saturating_add(1);
        let since = since.unwrap_or_else(|| self.clock.now() - STATISTICS);
        let mut groups = self.store.error_groups(since, skip.max(0), limit).await?;
        let more = groups.len() > size;
        groups.truncate(size);
        let next_page_token = match more {
            true => write_token("errors", skip + groups.len() as i64),
            false => String::new(),
        };
        Ok(ErrorPage {
            groups,
            next_page_token,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_that_was_noted_meanwhile_is_not_forgotten() {
        let board = NoticeBoard::default();
        let at = |seconds: i64| DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap();
        let none = board.refusal();
        board.note_refusal(at(0), "first".to_owned());
        board.end_refusal(none.as_ref());
        let first = board.refusal().expect("kept");
        board.note_refusal(at(1), "second".to_owned());
        board.end_refusal(Some(&first));
        let second = board.refusal().expect("kept");
        assert_eq!((second.since, second.until), (at(0), at(1)));
        board.end_refusal(Some(&second));
        assert!(board.refusal().is_none());
    }
}
