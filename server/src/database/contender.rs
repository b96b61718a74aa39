//! Carries out what the core decides about leading, over a connection of its own.

use std::time::Duration;

use qctl_server_core::leadership::{Leadership, Step, Timing};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

use super::Place;
use crate::store::leadership::{self, Leader};
use crate::store::{Lease, StoreError, boot_time, session_settings};

/// Longest that one step may take; a connection that takes longer is replaced.
const STEP_LIMIT: Duration = Duration::from_millis(2_500);

/// The same for a claim, which waits for transactions of the term before to end.
const CLAIM_LIMIT: Duration = Duration::from_secs(12);

/// Longest that giving the lease back may take at a stop.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);

/// Longest name of a connection in Postgres, in bytes.
const LONGEST_NAME: usize = 63;

/// What a coordinator that does not lead knows about who does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Nothing yet, or it is about to lead.
    #[default]
    Starting,
    /// Another coordinator leads.
    Behind {
        /// What it calls itself.
        name: String,
        /// Where clients reach it, with a scheme.
        url: String,
    },
    /// The database does not answer, so that nobody knows.
    Blind,
}

/// What is heard of the database while the lease is renewed.
#[derive(Debug)]
pub enum News {
    /// It answers over another connection: it may have been restarted meanwhile, and have forgotten
    /// what was committed asynchronously.
    Reconnected,
    /// It answers, and does not want to store anything. The lease is renewed also when nothing else is
    /// written, so that this is heard of in an idle queue as well.
    Refused(StoreError),
}

/// One run of a coordinator among those that would lead.
pub(super) struct Contender {
    options: PgConnectOptions,
    timing: Timing,
    rules: Leadership,
    run: Uuid,
    me: Leader,
    /// What the coordinator that leads or led calls itself.
    seen: String,
    connection: Option<PgConnection>,
    /// The connection was replaced since this was last asked.
    is_replaced: bool,
    is_silent: bool,
    _place: Place,
}

impl Contender {
    pub(super) fn new(options: &PgConnectOptions, url: &str, place: Place) -> Self {
        let run = Uuid::new_v4();
        let timing = Timing::default();
        let name = own_name(run);
        Self {
            options: session_settings(options.clone().application_name(&name)),
            timing,
            rules: Leadership::new(run, timing),
            run,
            me: Leader {
                name,
                url: url.to_owned(),
                place: place.name().to_owned(),
            },
            seen: String::new(),
            connection: None,
            is_replaced: false,
            is_silent: false,
            _place: place,
        }
    }

    /// What its connections are called.
    pub(super) fn name(&self) -> &str {
        &self.me.name
    }

    /// Returns once it leads. Tells meanwhile who does.
    pub(super) async fn contend(&mut self, standing: &watch::Sender<Standing>) -> Lease {
        loop {
            let (at, step) = self.rules.next();
            sleep_until(at).await;
            if let Err(error) = self.take(step, standing).await {
                self.rules.failed(boot_time());
                self.not_answered(&error);
                standing.send_if_modified(|known| replace(known, Standing::Blind));
            }
            if let (Some(term), Some(until)) = (self.rules.term(), self.rules.trusted_until()) {
                standing.send_if_modified(|known| replace(known, Standing::Starting));
                return Lease::new(term, until);
            }
        }
    }

    async fn take(
        &mut self,
        step: Step,
        standing: &watch::Sender<Standing>,
    ) -> Result<(), StoreError> {
        let started = boot_time();
        match step {
            Step::Look => {
                let looked = self
                    .ask(STEP_LIMIT, async |connection| {
                        leadership::look(connection).await
                    })
                    .await;
                let (record, leader) = looked?;
                self.rules
                    .looked(boot_time(), record, leader.place == self.me.place);
                self.seen.clone_from(&leader.name);
                if matches!(self.rules.next().1, Step::Look) {
                    let news = Standing::Behind {
                        name: leader.name,
                        url: leader.url,
                    };
                    let is_new = standing.send_if_modified(|known| replace(known, news));
                    if is_new {
                        tracing::info!(
                            term = record.term.0,
                            "standing by: {} leads in term {}",
                            self.seen,
                            record.term
                        );
                    }
                }
            }
            Step::Claim { term, renewals } => {
                let (seen, me) = (self.seen.clone(), self.me.clone());
                let (run, lease) = (self.run, self.timing.lease);
                let claimed = self
                    .ask(CLAIM_LIMIT, async |connection| {
                        // A transaction that its owner cannot end would keep the term for long.
                        if !seen.is_empty()
                            && let Err(error) = leadership::end_connections(connection, &seen).await
                        {
                            tracing::debug!(error = %error, "cannot end connections of {seen}");
                        }
                        leadership::claim(connection, (term, renewals), run, &me, lease).await
                    })
                    .await?;
                self.rules.claimed(started, boot_time(), claimed);
            }
            Step::Renew(term) => {
                let renewed = self
                    .ask(STEP_LIMIT, async |connection| {
                        leadership::renew(connection, term).await
                    })
                    .await?;
                self.rules.renewed(started, boot_time(), renewed);
            }
        }
        Ok(())
    }

    /// Renews the lease until it is over. Nothing is committed in its term after that. Passes on what
    /// there is to hear meanwhile.
    pub(super) async fn keep(&mut self, lease: &Lease, hear: impl Fn(News)) {
        // Nobody is told while it leads.
        let (standing, _) = watch::channel(Standing::Starting);
        self.is_replaced = false;
        loop {
            if self.rules.lapse(boot_time(), !lease.is_live()) || self.rules.term().is_none() {
                lease.end();
                return;
            }
            let (at, step) = self.rules.next();
            let lapses_at = self.rules.trusted_until().unwrap_or_default();
            tokio::select! {
                () = sleep_until(at.min(lapses_at)) => {}
                () = lease.ended() => continue,
            }
            if boot_time() < at {
                continue;
            }
            // An answer after the trust has ended would come too late.
            let left = lapses_at.saturating_sub(boot_time());
            let taken = tokio::select! {
                taken = timeout(left, self.take(step, &standing)) => taken,
                () = lease.ended() => continue,
            };
            match taken {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    self.rules.failed(boot_time());
                    self.not_answered(&error);
                    if error.refuses_writes() {
                        hear(News::Refused(error));
                    }
                }
                Err(_) => self.connection = None,
            }
            if std::mem::take(&mut self.is_replaced) {
                hear(News::Reconnected);
            }
            if let Some(until) = self.rules.trusted_until() {
                lease.extend(until);
            }
        }
    }

    /// Gives the lease back, so that another coordinator, or the next one here, need not wait.
    pub(super) async fn release(&mut self, lease: &Lease) {
        let term = lease.term();
        lease.end();
        let released = self.ask(RELEASE_LIMIT, async |connection| {
            leadership::release(connection, term).await
        });
        if let Err(error) = released.await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the lease is not given back; the next coordinator waits for its end: {error}"
            );
        }
        if let Some(connection) = self.connection.take() {
            let _ = timeout(RELEASE_LIMIT, connection.close()).await;
        }
    }

    /// Asks the database one thing. A connection with any trouble is not used again.
    async fn ask<T>(
        &mut self,
        limit: Duration,
        question: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let held = self.connection.take();
        let is_new = held.is_none();
        let asked = async {
            let mut connection = match held {
                Some(connection) => connection,
                None => self.options.connect().await?,
            };
            let answer = question(&mut connection).await?;
            Ok::<_, sqlx::Error>((connection, answer))
        };
        match timeout(limit, asked).await {
            Ok(Ok((connection, answer))) => {
                self.connection = Some(connection);
                self.is_replaced |= is_new;
                if std::mem::take(&mut self.is_silent) {
                    tracing::info!("the database answers again");
                }
                Ok(answer)
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(StoreError::unanswered()),
        }
    }

    /// Logs the first failure in a row.
    fn not_answered(&mut self, error: &StoreError) {
        if !std::mem::replace(&mut self.is_silent, true) {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                "cannot ask who leads: {error}; trying again"
            );
        }
    }
}

/// Returns at a [`boot_time`].
async fn sleep_until(at: Duration) {
    tokio::time::sleep(at.saturating_sub(boot_time())).await;
}

fn replace(known: &mut Standing, news: Standing) -> bool {
    let is_new = *known != news;
    *known = news;
    is_new
}

/// What `pg_stat_activity` and the other coordinators show.
fn own_name(run: Uuid) -> String {
    let run = run.simple().to_string();
    let tail = format!("/{}/{}", std::process::id(), &run[..8]);
    let mut name = format!(
        "qctl-server {}",
        rustix::system::uname().nodename().to_string_lossy()
    );
    while name.len() + tail.len() > LONGEST_NAME {
        name.pop();
    }
    name + &tail
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing else need be written for it to be noticed.
    #[sqlx::test(migrations = "./migrations")]
    async fn a_renewal_that_is_refused_is_heard_of(pool: sqlx::PgPool) {
        let folder = tempfile::tempdir().unwrap();
        let options = (*pool.connect_options()).clone();
        let place = Place::take(folder.path()).unwrap();
        let mut contender = Contender::new(&options, "http://queue.test", place);
        let (standing, _) = watch::channel(Standing::Starting);
        let lease = contender.contend(&standing).await;
        for statement in [
            "create function refuse() returns trigger language plpgsql as $$
             begin raise exception 'only reads' using errcode = '25006'; end $$",
            "create trigger refuse before update on coordinator
             for each statement execute function refuse()",
        ] {
            sqlx::query(statement).execute(&pool).await.unwrap();
        }
        let (heard, mut refusals) = tokio::sync::mpsc::unbounded_channel();
        let keep = contender.keep(&lease, |news| {
            if let News::Refused(error) = news {
                let _ = heard.send(error);
            }
        });
        let refused = tokio::select! {
            () = keep => None,
            refused = refusals.recv() => refused,
        };
        let refused = refused.expect("the refusal is heard of before the lease is over");
        assert!(refused.refuses_writes(), "{refused}");
    }

    #[test]
    fn no_name_is_cut_off_by_postgres() {
        let name = own_name(Uuid::new_v4());
        assert!(name.len() <= LONGEST_NAME && name.starts_with("qctl-server "));
        assert_ne!(name, own_name(Uuid::new_v4()));
    }
}
