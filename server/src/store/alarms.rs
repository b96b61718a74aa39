//! Episodes of alarms. One that begins is written in one transaction with its notice.

use chrono::{DateTime, TimeDelta, Utc};
use qctl_server_core::alarm::telling::{self, About};
use qctl_server_core::alarm::watch::AttemptFacts;
use qctl_server_core::alarm::{Because, Change, Episode, Kind, Subject, Untold};
use qctl_server_core::notice::Notice;
use qctl_server_core::{AttemptNumber, Fence, JobId, JobSpec, WorkerId};
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::notices::{self, wish};
use super::{Store, StoreError};

/// A job that the kernel killed for memory tells it itself: one that ended so shortly before or after.
const SAME_KILL: TimeDelta = TimeDelta::minutes(1);

/// An alarm as people see it.
#[derive(Clone, Debug, PartialEq)]
pub struct AlarmRecord {
    /// Its number.
    pub id: i64,
    /// What was seen.
    pub kind: Kind,
    /// Who it is about.
    pub subject: Subject,
    /// The job's name; empty when it is about none.
    pub job_name: String,
    /// Number of the attempt, for a job.
    pub attempt: Option<i32>,
    /// Name of the machine.
    pub machine: String,
    /// Since when.
    pub began_at: DateTime<Utc>,
    /// Until when; `None` while it lasts.
    pub ended_at: Option<DateTime<Utc>>,
    /// From which figure on it is an alarm.
    pub limit: f64,
    /// The worst figure.
    pub peak: f64,
    /// Why nobody was told; `None` when somebody was.
    pub untold: Option<Untold>,
    /// Why it ended, unless it lasts or what it tells of is over.
    pub because: Option<Because>,
}

/// How often something was an alarm.
#[derive(Clone, Debug, PartialEq)]
pub struct AlarmCount {
    /// What was seen.
    pub kind: Kind,
    /// True when jobs are meant, false for machines.
    pub of_jobs: bool,
    /// Episodes.
    pub count: i64,
    /// Those of them that people were told of.
    pub told: i64,
    /// How long they lasted together, in seconds; those that last count until now.
    pub seconds: i64,
}

/// Which alarms to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlarmFilter {
    /// Of this job.
    pub job: Option<JobId>,
    /// Of this worker.
    pub worker: Option<WorkerId>,
    /// Those that are over as well.
    pub all: bool,
}

struct Row {
    id: i64,
    kind: String,
    subject: String,
    job_name: String,
    attempt: Option<i32>,
    machine: String,
    began_at: DateTime<Utc>,
    ended_at: Option<DateTime<Utc>>,
    limit_value: f64,
    peak: f64,
    untold: String,
    ended_because: String,
}

impl Row {
    fn read(self) -> Result<AlarmRecord, StoreError> {
        let untold = match self.untold.as_str() {
            "" => None,
            word => {
                Some(Untold::parse(word).ok_or_else(|| StoreError::unreadable("untold", word))?)
            }
        };
        let because = match self.ended_because.as_str() {
            "" => None,
            word => Some(
                Because::parse(word)
                    .ok_or_else(|| StoreError::unreadable("why an alarm ended", word))?,
            ),
        };
        Ok(AlarmRecord {
            id: self.id,
            kind: kind(&self.kind)?,
            subject: subject(&self.subject)?,
            job_name: self.job_name,
            attempt: self.attempt,
            machine: self.machine,
            began_at: self.began_at,
            ended_at: self.ended_at,
            limit: self.limit_value,
            peak: self.peak,
            untold,
            because,
        })
    }
}

fn kind(text: &str) -> Result<Kind, StoreError> {
    Kind::parse(text).ok_or_else(|| StoreError::unreadable("kind of alarm", text))
}

fn subject(text: &str) -> Result<Subject, StoreError> {
    Subject::parse(text).ok_or_else(|| StoreError::unreadable("subject of an alarm", text))
}

/// The job and the worker that rows of a subject hang on.
fn owners(subject: Subject) -> (Option<i64>, Option<Uuid>) {
    match subject {
        Subject::Job(job) => (Some(job.0), None),
        Subject::Worker(worker) => (None, Some(worker.0)),
        Subject::Coordinator => (None, None),
    }
}

impl Store {
    /// Records what changed, in order, each beginning with its notice.
    pub(crate) async fn save_alarms(
        &self,
        now: DateTime<Utc>,
        changes: Vec<Change>,
    ) -> Result<(), StoreError> {
        self.transaction(move |conn| {
            Box::pin(async move {
                for change in &changes {
                    match change {
                        Change::Open(episode) => open(conn, now, episode).await?,
                        Change::Close {
                            subject,
                            kind,
                            at,
                            peak,
                            because,
                        } => {
                            let close = Closed {
                                at: *at,
                                peak: *peak,
                                because: *because,
                            };
                            close.record(conn, now, *subject, *kind).await?;
                        }
                        Change::Past { episode, at, why } => {
                            insert(conn, episode, Some(*at), Some(*why)).await?;
                        }
                    }
                }
                Ok(())
            })
        })
        .await
    }

    /// Records worst figures of episodes that last; a crash may lose the last of them.
    pub(crate) async fn save_peaks(
        &self,
        peaks: Vec<(Subject, Kind, f64)>,
    ) -> Result<(), StoreError> {
        self.asynchronous_transaction(move |conn| {
            Box::pin(async move {
                for (subject, kind, peak) in &peaks {
                    sqlx::query!(
                        "update alarms set peak = $3
                         where subject = $1 and kind = $2 and ended_at is null",
                        subject.key(),
                        kind.as_str(),
                        peak,
                    )
                    .execute(&mut *conn)
                    .await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Episodes that last, as far as is recorded.
    pub(crate) async fn open_alarms(&self) -> Result<Vec<Episode>, StoreError> {
        let rows = sqlx::query!(
            "select kind, subject, fence, machine, began_at, limit_value, peak from alarms
             where ended_at is null",
        )
        .fetch_all(self.pool())
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(Episode {
                    subject: subject(&row.subject)?,
                    kind: kind(&row.kind)?,
                    fence: row.fence.map(Fence),
                    machine: row.machine,
                    began_at: row.began_at,
                    limit: row.limit_value,
                    peak: row.peak,
                })
            })
            .collect()
    }

    /// What is to be known of running attempts before they are judged.
    pub(crate) async fn attempt_facts(
        &self,
        fences: &[Fence],
    ) -> Result<Vec<(Fence, AttemptFacts)>, StoreError> {
        let fences: Vec<i64> = fences.iter().map(|fence| fence.0).collect();
        let rows = sqlx::query!(
            r#"select a.fence, a.job_id, a.started_at as "started_at!",
                      s.spec as "spec: Json<JobSpec>"
               from attempts a join job_specs s on s.job_id = a.job_id
               where a.fence = any($1) and a.state = 'running' and a.started_at is not null"#,
            &fences,
        )
        .fetch_all(self.pool())
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let facts = AttemptFacts {
                    job: JobId(row.job_id),
                    started_at: row.started_at,
                    settings: row.spec.0.alarms,
                };
                (Fence(row.fence), facts)
            })
            .collect())
    }

    /// Those of some attempts that have ended or are forgotten.
    pub(crate) async fn ended_among(&self, fences: &[Fence]) -> Result<Vec<Fence>, StoreError> {
        let fences: Vec<i64> = fences.iter().map(|fence| fence.0).collect();
        let ended = sqlx::query_scalar!(
            r#"select u.fence as "fence!" from unnest($1::bigint[]) as u (fence)
               left join attempts a on a.fence = u.fence
               where a.fence is null or a.state = 'ended'"#,
            &fences,
        )
        .fetch_all(self.pool())
        .await?;
        Ok(ended.into_iter().map(Fence).collect())
    }

    /// Alarms, newest first, with smaller numbers than `before` unless that is 0.
    pub(crate) async fn alarms(
        &self,
        filter: &AlarmFilter,
        before: i64,
        limit: i64,
    ) -> Result<Vec<AlarmRecord>, StoreError> {
        let rows = sqlx::query_as!(
            Row,
            r#"select l.id, l.kind, l.subject, coalesce(j.name, '') as "job_name!",
                      a.number as "attempt?", l.machine, l.began_at, l.ended_at, l.limit_value,
                      l.peak, l.untold, l.ended_because
               from alarms l
               left join jobs j on j.id = l.job_id
               left join attempts a on a.fence = l.fence
               where ($1::bigint is null or l.job_id = $1)
                 and ($2::uuid is null or l.worker_id = $2)
                 and ($3 or l.ended_at is null)
                 and ($4 = 0::bigint or l.id < $4)
               order by l.id desc
               limit $5"#,
            filter.job.map(|job| job.0),
            filter.worker.map(|worker| worker.0),
            filter.all,
            before,
            limit,
        )
        .fetch_all(self.pool())
        .await?;
        rows.into_iter().map(Row::read).collect()
    }

    /// How often what was an alarm since a time.
    pub(crate) async fn count_alarms(
        &self,
        since: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<Vec<AlarmCount>, StoreError> {
        let rows = sqlx::query!(
            r#"select kind, job_id is not null as "of_jobs!", count(*) as "count!",
                      count(*) filter (where untold = '') as "told!",
                      extract(epoch from sum(coalesce(ended_at, greatest($2, began_at)) - began_at))
                        ::bigint as "seconds!"
               from alarms where began_at >= $1
               group by 1, 2 order by 3 desc, 1"#,
            since,
            now,
        )
        .fetch_all(self.pool())
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(AlarmCount {
                    kind: kind(&row.kind)?,
                    of_jobs: row.of_jobs,
                    count: row.count,
                    told: row.told,
                    seconds: row.seconds,
                })
            })
            .collect()
    }

    /// Deletes alarms that ended before a time, at most `limit`. Those of jobs also go with their job.
    pub(crate) async fn delete_alarms(
        &self,
        before: DateTime<Utc>,
        limit: i64,
    ) -> Result<u64, StoreError> {
        self.transaction(move |conn| {
            Box::pin(async move {
                let deleted = sqlx::query!(
                    "delete from alarms where id in (
                       select id from alarms where began_at < $1 and ended_at < $1
                       order by began_at limit $2)",
                    before,
                    limit,
                )
                .execute(conn)
                .await?;
                Ok(deleted.rows_affected())
            })
        })
        .await
    }
}

/// Records an episode that begins, and has people told unless there is a reason not to. One that is
/// recorded already was told already.
async fn open(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    episode: &Episode,
) -> Result<(), StoreError> {
    let about = about(conn, episode).await?;
    if matches!(episode.subject, Subject::Job(_)) && about.is_none() {
        // It was deleted meanwhile.
        return Ok(());
    }
    let notice = telling::begins(episode, about.as_ref());
    let untold = untold(conn, episode, &notice).await?;
    let is_new = insert(conn, episode, None, untold).await?;
    if is_new && untold != Some(Untold::ToldWithJob) {
        notices::insert(conn, now, &[notice]).await?;
    }
    Ok(())
}

async fn about(conn: &mut PgConnection, episode: &Episode) -> Result<Option<About>, StoreError> {
    let Some(fence) = episode.fence else {
        return Ok(None);
    };
    let row = sqlx::query!(
        "select a.number, j.notify from attempts a join jobs j on j.id = a.job_id
         where a.fence = $1",
        fence.0,
    )
    .fetch_optional(conn)
    .await?;
    row.map(|row| {
        Ok(About {
            attempt: AttemptNumber(row.number),
            wish: wish(&row.notify)?,
        })
    })
    .transpose()
}

async fn untold(
    conn: &mut PgConnection,
    episode: &Episode,
    notice: &Notice,
) -> Result<Option<Untold>, StoreError> {
    if notice.muted {
        return Ok(Some(Untold::NotWanted));
    }
    if let (Kind::OutOfMemory, Subject::Worker(worker)) = (episode.kind, episode.subject) {
        let is_jobs = sqlx::query_scalar!(
            r#"select exists (
                 select from attempts
                 where worker_id = $1 and outcome_cause = 'out_of_memory'
                   and ended_at between $2 and $3) as "is_jobs!""#,
            worker.0,
            episode.began_at - SAME_KILL,
            episode.began_at + SAME_KILL,
        )
        .fetch_one(&mut *conn)
        .await?;
        if is_jobs {
            return Ok(Some(Untold::ToldWithJob));
        }
    }
    let is_told = sqlx::query_scalar!(
        r#"select exists (
             select from notices
             where subject = $1 and class = $2 and signature = $3 and over_at is null
               and state <> 'held_back') as "is_told!""#,
        notice.subject,
        notice.class.as_str(),
        notice.signature,
    )
    .fetch_one(conn)
    .await?;
    Ok(is_told.then_some(Untold::ToldBefore))
}

/// Returns whether it was not recorded before.
async fn insert(
    conn: &mut PgConnection,
    episode: &Episode,
    ended_at: Option<DateTime<Utc>>,
    untold: Option<Untold>,
) -> Result<bool, StoreError> {
    let (job, worker) = owners(episode.subject);
    let inserted = sqlx::query!(
        "insert into alarms (kind, subject, job_id, fence, worker_id, machine, began_at, ended_at,
                             limit_value, peak, untold)
         select $1, $2, $3, $4, $5, $6, $7::timestamptz,
                case when $8::timestamptz is not null then greatest($8, $7) end, $9, $10, $11
         where ($4::bigint is null or exists (select from attempts where fence = $4))
           and ($5::uuid is null or exists (select from workers where id = $5))
         on conflict (subject, kind) where ended_at is null do nothing",
        episode.kind.as_str(),
        episode.subject.key(),
        job,
        episode.fence.map(|fence| fence.0),
        worker,
        episode.machine,
        episode.began_at,
        ended_at,
        episode.limit,
        episode.peak,
        untold.map_or("", Untold::as_str),
    )
    .execute(conn)
    .await?;
    Ok(inserted.rows_affected() > 0)
}

/// The end of an episode.
struct Closed {
    at: DateTime<Utc>,
    peak: f64,
    because: Option<Because>,
}

impl Closed {
    async fn record(
        &self,
        conn: &mut PgConnection,
        now: DateTime<Utc>,
        subject: Subject,
        kind: Kind,
    ) -> Result<(), StoreError> {
        let closed = sqlx::query!(
            "update alarms set ended_at = greatest($3, began_at), peak = $4, ended_because = $5
             where subject = $1 and kind = $2 and ended_at is null
             returning machine",
            subject.key(),
            kind.as_str(),
            self.at,
            self.peak,
            self.because.map_or("", Because::as_str),
        )
        .fetch_optional(&mut *conn)
        .await?;
        let Some(closed) = closed else { return Ok(()) };
        let class = telling::class(subject, kind);
        let told_as = telling::subject_of(subject, kind, &closed.machine);
        match (self.because, telling::ends(subject, kind, &closed.machine)) {
            (None, Some(notice)) => notices::insert(conn, now, &[notice]).await,
            // That it ended is no news, but what still waits to be told is over.
            (Some(_), Some(_)) => notices::end_untold(conn, now, class, &told_as).await,
            (_, None) => notices::outdate(conn, now, class, &told_as).await,
        }
    }
}
