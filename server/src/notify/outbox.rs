//! Decides what of the outbox is told, and makes messages of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use qctl_notify::{Facts, Words};
use qctl_server_core::notice::signature::{ErrorLine, error_line, signature};
use qctl_server_core::notice::timing::{Decision, Quiet, Rules, WINDOW, decide};
use qctl_server_core::notice::{Class, Details, Notice, Severity};

use super::{Teller, facts};
use crate::app::Error;
use crate::store::notices::{NewMessage, OpenNotice, UNGROUPED_WINDOW, Which, held_back};

/// Before another look at what is not ready, such as output that is still coming.
const SOON: Duration = Duration::from_millis(500);
/// Between two looks when nothing is due before. The bell shortens both.
const LATER: Duration = Duration::from_secs(5);
/// Between two rounds of what changes slowly.
const SLOW: TimeDelta = TimeDelta::seconds(60);
/// How long the rest of an attempt's output is waited for.
const OUTPUT_WAIT: TimeDelta = TimeDelta::seconds(10);
/// How long one message waits for those of its class that have not been looked at yet.
const STORM_WAIT: TimeDelta = TimeDelta::minutes(5);
/// Notices of a class that are looked at at once.
const BATCH: i64 = 500;
/// The end of an output that is searched for an error.
const OUTPUT_LINES: u32 = 80;
const OUTPUT_BYTES: usize = 32 * 1024;

/// Works the outbox off until the coordinator stops.
pub(super) async fn run(teller: Arc<Teller>) {
    let mut failing = false;
    let mut slow_at = teller.app.clock.now();
    loop {
        qctl_notify::panics::provoked("outbox");
        let round = async {
            let due = teller.round().await?;
            if teller.app.clock.now() >= slow_at {
                slow_at = teller.app.clock.now() + SLOW;
                teller.slow_round().await?;
            }
            Ok::<Option<DateTime<Utc>>, Error>(due)
        };
        let wait = match round.await {
            Ok(due) => {
                failing = false;
                let left = due.map(|due| due - teller.app.clock.now());
                left.map_or(LATER, |left| left.to_std().unwrap_or_default().min(LATER))
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "notices wait: {error}; trying again"
                    );
                }
                failing = true;
                SOON
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = teller.app.notices.rung() => {}
        }
    }
}

impl Teller {
    /// One look. Returns when something is to be done next, if that is known.
    async fn round(&self) -> Result<Option<DateTime<Utc>>, Error> {
        self.end_silence().await?;
        let new = self.app.store.open_notices("new", BATCH).await?;
        let new = self.without_over(new).await?;
        let soon = self.app.clock.now() + facts::delta(SOON);
        let mut due = (!new.is_empty()).then_some(soon);
        for notice in &new {
            self.prepare(notice).await?;
        }
        let waiting = self.app.store.open_notices("waiting", BATCH).await?;
        let waiting = self.without_over(waiting).await?;
        let mut classes: BTreeMap<Class, Vec<OpenNotice>> = BTreeMap::new();
        for notice in waiting {
            classes.entry(notice.class).or_default().push(notice);
        }
        for (class, notices) in classes {
            if let Some(until) = self.tell_class(class, &notices).await? {
                // A clock that was set back, or a rule that is due at once, makes no busy loop.
                let until = until.max(soon);
                due = Some(due.map_or(until, |due| due.min(until)));
            }
        }
        Ok(due)
    }

    /// Holds back what is over before it could be told, and returns the rest.
    async fn without_over(&self, notices: Vec<OpenNotice>) -> Result<Vec<OpenNotice>, Error> {
        let now = self.app.clock.now();
        let (over, rest): (Vec<_>, Vec<_>) =
            notices.into_iter().partition(|notice| notice.is_over(now));
        if !over.is_empty() {
            let ids: Vec<i64> = over.iter().map(|notice| notice.id).collect();
            self.app.store.hold_back(&ids, held_back::OVER).await?;
        }
        Ok(rest)
    }

    /// A worker that is heard of again ends the episode of its silence.
    async fn end_silence(&self) -> Result<(), Error> {
        for (subject, worker) in self
            .app
            .store
            .open_episodes(Class::WorkerUnreachable)
            .await?
        {
            if !self.app.is_worker_heard(&worker) {
                continue;
            }
            let notice = Notice {
                worker,
                ..Notice::about(Class::WorkerBack, subject, Details::default())
            };
            self.app.tell(notice).await?;
        }
        Ok(())
    }

    /// Finds out what a new notice does not say yet, and whether it is to be told at all.
    async fn prepare(&self, notice: &OpenNotice) -> Result<(), Error> {
        let now = self.app.clock.now();
        let mut details = notice.details.clone();
        let mut found = None;
        if notice.class.has_error() {
            let patient = now - notice.created_at < OUTPUT_WAIT;
            if !notice.log_complete && patient {
                return Ok(());
            }
            let (error, signature) = self.error_of(notice).await?;
            self.group(notice, &error, &signature).await?;
            details.line = error.line;
            // A job fails for good once, whatever its error.
            found = (notice.class == Class::AttemptFailed).then_some(signature);
        }
        if notice.class == Class::JobSilenceEnded
            && let Some(job) = notice.job
        {
            let rows = self.app.store.jobs_by_id(&[job]).await?;
            let name = rows.jobs.into_iter().next().map(|job| job.checkpoint_name);
            details.checkpoint = name.unwrap_or_default();
        }
        if self.settings.channels.is_empty() {
            self.app
                .store
                .hold_back(&[notice.id], held_back::NO_CHANNEL)
                .await?;
            return Ok(());
        }
        self.app
            .store
            .prepare_notice(notice.id, found.as_deref(), &details, now)
            .await?;
        Ok(())
    }

    /// What the end of an attempt's output says went wrong.
    async fn error_of(&self, notice: &OpenNotice) -> Result<(ErrorLine, String), Error> {
        let text = match notice.job {
            Some(job) => {
                let read = self
                    .app
                    .log_text(job, notice.attempt, OUTPUT_LINES, OUTPUT_BYTES)
                    .await;
                match read {
                    Ok(text) => text.map(|text| text.data).unwrap_or_default(),
                    Err(Error::Store(store)) if store.is_transient() => {
                        return Err(Error::Store(store));
                    }
                    // What happened is told all the same, whatever became of the output.
                    Err(error) => {
                        if !matches!(error, Error::JobNotFound(_)) {
                            tracing::warn!(
                                error = &error as &dyn std::error::Error,
                                %job,
                                "job {job} is told without its last line: {error}"
                            );
                        }
                        Vec::new()
                    }
                }
            }
            None => Vec::new(),
        };
        let error = error_line(&String::from_utf8_lossy(&text));
        let signature = match &notice.outcome {
            Some(outcome) => signature(outcome, &error),
            None => String::new(),
        };
        Ok((error, signature))
    }

    async fn group(
        &self,
        notice: &OpenNotice,
        error: &ErrorLine,
        signature: &str,
    ) -> Result<(), Error> {
        let (Some(job), Some(attempt)) = (notice.job, notice.attempt) else {
            return Ok(());
        };
        let line: String = error.line.chars().take(500).collect();
        self.app
            .store
            .record_error(
                job,
                attempt,
                notice.created_at,
                signature,
                &error.exception,
                &line,
            )
            .await?;
        Ok(())
    }

    /// Tells what waits of one class, if it is time. Returns when it is to be looked at again.
    async fn tell_class(
        &self,
        class: Class,
        notices: &[OpenNotice],
    ) -> Result<Option<DateTime<Utc>>, Error> {
        let Some(oldest) = notices.first() else {
            return Ok(None);
        };
        let now = self.app.clock.now();
        let rules = self.rules();
        let mut told = self.app.store.messages_since(class, now - WINDOW).await?;
        let wall = self.words.zone().wall(now).time();
        let decided = |oldest: &OpenNotice, told: &[_]| {
            decide(&rules, class, oldest.created_at, told, now, wall)
        };
        match decided(oldest, &told) {
            Decision::Wait(until, waits) => {
                let ids: Vec<i64> = notices
                    .iter()
                    .filter(|notice| !notice.waits)
                    .map(|notice| notice.id)
                    .collect();
                if !ids.is_empty() {
                    self.app.store.note_wait(&ids, waits).await?;
                }
                return Ok(Some(until));
            }
            Decision::TooMild => {
                let ids: Vec<i64> = notices.iter().map(|notice| notice.id).collect();
                self.app.store.hold_back(&ids, held_back::TOO_MILD).await?;
            }
            Decision::Together => {
                let patient = now - oldest.created_at < rules.gather + STORM_WAIT;
                let looked_at = now - OUTPUT_WAIT;
                if patient && self.app.store.has_new_notices(class, looked_at).await? {
                    return Ok(Some(now));
                }
                self.make_of_all(class).await?;
            }
            Decision::Each => {
                for notice in notices {
                    if decided(notice, &told) != Decision::Each {
                        return Ok(Some(now));
                    }
                    self.make(notice).await?;
                    told.push(now);
                }
            }
        }
        Ok(None)
    }

    /// Tells everything of a class that waits in one message.
    async fn make_of_all(&self, class: Class) -> Result<(), Error> {
        let mut named = Vec::new();
        let mut refusing = BTreeSet::new();
        let mut count = 0;
        let mut last = 0;
        loop {
            let page = self.app.store.waiting_notices(class, last, BATCH).await?;
            let Some(end) = page.last().map(|notice| notice.id) else {
                break;
            };
            last = end;
            let page = self.without_over(page).await?;
            count += page.len();
            for notice in page {
                if class == Class::ChannelRefused {
                    refusing.insert(notice.details.name.clone());
                }
                if named.len() < Words::MOST_ITEMS {
                    named.push(notice);
                }
            }
        }
        match count {
            0 => Ok(()),
            _ => {
                self.write(class, &named, count, Which::UpTo(last), &refusing)
                    .await
            }
        }
    }

    async fn make(&self, notice: &OpenNotice) -> Result<(), Error> {
        let refusing = match notice.class {
            Class::ChannelRefused => BTreeSet::from([notice.details.name.clone()]),
            _ => BTreeSet::new(),
        };
        let one = std::slice::from_ref(notice);
        self.write(notice.class, one, 1, Which::Of(&[notice.id]), &refusing)
            .await
    }

    /// Makes a message of `count` notices, of which the first are given.
    async fn write(
        &self,
        class: Class,
        named: &[OpenNotice],
        count: usize,
        which: Which<'_>,
        refusing: &BTreeSet<String>,
    ) -> Result<(), Error> {
        let now = self.app.clock.now();
        let facts: Vec<Facts> = named.iter().map(|notice| facts::of(notice, now)).collect();
        let text = self.words.several(class.as_str(), &facts, count, now);
        let url = match named {
            [OpenNotice { job: Some(job), .. }] => self.app.links.job(*job),
            _ => self.app.links.queue(),
        };
        let message = NewMessage {
            class,
            which,
            title: &text.title,
            body: &text.body,
            url: &url,
            channels: &self.channels_without(refusing),
        };
        self.app.store.make_message(now, &message).await?;
        self.delivery_bell.notify_waiters();
        Ok(())
    }

    /// That channels refuse is told by the others, if there are any.
    fn channels_without(&self, refusing: &BTreeSet<String>) -> Vec<String> {
        let all = self.app.notices.channels();
        let others: Vec<String> = all
            .iter()
            .filter(|one| !refusing.contains(*one))
            .cloned()
            .collect();
        match others.is_empty() {
            true => all.to_vec(),
            false => others,
        }
    }

    fn rules(&self) -> Rules {
        let severity = |severity: qctl_notify::Severity| match severity {
            qctl_notify::Severity::Info => Severity::Info,
            qctl_notify::Severity::Warning => Severity::Warning,
            qctl_notify::Severity::Error => Severity::Error,
            qctl_notify::Severity::Critical => Severity::Critical,
        };
        Rules {
            minimum: severity(self.settings.minimum),
            quiet: self.settings.quiet.map(|quiet| Quiet {
                from: quiet.from,
                to: quiet.to,
                below: severity(quiet.below),
            }),
            gather: facts::delta(self.settings.gather),
            per_hour: self.settings.per_hour,
        }
    }

    /// What need not be done often: errors of jobs that nobody is told of, and forgetting.
    async fn slow_round(&self) -> Result<(), Error> {
        let now = self.app.clock.now();
        let since = now - UNGROUPED_WINDOW;
        for notice in self.app.store.ungrouped_errors(since, BATCH).await? {
            let (error, signature) = self.error_of(&notice).await?;
            self.group(&notice, &error, &signature).await?;
        }
        for class in Class::ALL {
            if let Some(length) = class.episode() {
                self.app
                    .store
                    .end_episodes(*class, now - length, now)
                    .await?;
            }
        }
        let kept = facts::delta(self.app.settings.history_kept);
        if let Some(until) = now.checked_sub_signed(kept) {
            self.app.store.delete_notices(until, BATCH).await?;
        }
        Ok(())
    }
}
