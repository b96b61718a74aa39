//! Output: chunks, how far each attempt's output is stored, and the partitions that hold it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bytes::Bytes;
use chrono::{DateTime, Days, NaiveDate, Utc};
use qctl_server_core::ledger::{COORDINATOR, NewEvent};
use qctl_server_core::{Fence, HoleCause, JobId, WorkerId};
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqlSafeStr};

use super::{Store, StoreError, bounded};

/// How far an attempt's output is stored, read under its row lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogTail {
    /// The attempt.
    pub(crate) fence: Fence,
    /// Its job.
    pub(crate) job: JobId,
    /// Its number within the job.
    pub(crate) number: i32,
    /// Creation day of its job, which chooses the partition.
    pub(crate) day: NaiveDate,
    /// Bytes stored, holes included.
    pub(crate) stored: i64,
    /// Newlines stored, holes included.
    pub(crate) lines: i64,
    /// CRC-32C over everything before that as the job wrote it; `None` when some of it is missing
    /// and nobody knows what it was.
    pub(crate) crc32c: Option<u32>,
    /// What comparing the whole output came to.
    pub(crate) check: LogCheck,
    /// Some of the output is missing, and the history tells it.
    pub(crate) has_gaps: bool,
}

/// What comparing an attempt's whole output with its checksum came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogCheck {
    /// Nothing, or they are equal.
    #[default]
    Open,
    /// They differed, and it was asked for again.
    Resent,
    /// They differed after that as well.
    Differs,
}

impl LogCheck {
    fn as_str(self) -> &'static str {
        match self {
            Self::Open => "",
            Self::Resent => "resent",
            Self::Differs => "differs",
        }
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        [Self::Open, Self::Resent, Self::Differs]
            .into_iter()
            .find(|check| check.as_str() == text)
            .ok_or_else(|| StoreError::unreadable("log check", text))
    }
}

/// A run of bytes of one stream: stream number of the contract, length, microseconds since the
/// epoch.
pub(crate) type StoredRun = (i32, u32, i64);

/// A chunk as it lies in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredChunk {
    /// Position of its first byte, or of its hole.
    pub(crate) offset: i64,
    /// Bytes before compression; 0 for a hole.
    pub(crate) length: i32,
    /// Newlines before it.
    pub(crate) first_line: i64,
    /// Its runs, in order.
    pub(crate) runs: Vec<StoredRun>,
    /// Compressed bytes.
    pub(crate) data: Bytes,
    /// Checksum over the bytes before compression.
    pub(crate) crc32c: u32,
    /// Bytes missing at `offset`; then there are no data.
    pub(crate) hole_bytes: i64,
    /// Newlines missing.
    pub(crate) hole_lines: i64,
    /// Why they are missing.
    pub(crate) hole_cause: HoleCause,
    /// Control sequence that restores the colours at its start.
    pub(crate) colour_state: Vec<u8>,
}

/// A chunk on its way into the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewChunk {
    /// The attempt.
    pub(crate) fence: Fence,
    /// Creation day of the job.
    pub(crate) day: NaiveDate,
    /// The chunk.
    pub(crate) chunk: StoredChunk,
}

/// What a reader of output must know of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogSource {
    /// The attempt.
    pub(crate) fence: Fence,
    /// Its number within the job.
    pub(crate) number: i32,
    /// Creation day of the job.
    pub(crate) day: NaiveDate,
    /// Bytes stored.
    pub(crate) stored: i64,
    /// Newlines stored.
    pub(crate) lines: i64,
    /// True once the attempt has ended.
    pub(crate) ended: bool,
    /// Length of its whole output, once its result told it; 0 for one that never started.
    pub(crate) log_end: Option<i64>,
    /// Its worker.
    pub(crate) worker: WorkerId,
}

/// What a follower must know of a job to decide whether more attempts can come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogJob {
    /// Number of its latest attempt; 0 when there is none.
    pub(crate) attempts: i32,
    /// True once it is in a final state.
    pub(crate) ended: bool,
}

/// What is to be written of a batch of chunks.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    /// The chunks to store.
    pub(crate) chunks: Vec<NewChunk>,
    /// Attempts whose stored output is removed first, with the creation day of their jobs.
    pub(crate) restarted: Vec<(NaiveDate, Fence)>,
    /// Attempts whose whole output is stored and was compared.
    pub(crate) closed: BTreeSet<Fence>,
    /// What the history tells.
    pub(crate) events: Vec<NewEvent>,
}

impl Admission {
    /// True when nothing has to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.restarted.is_empty() && self.events.is_empty()
    }
}

/// What became of a batch of chunks.
#[derive(Debug)]
pub(crate) enum Appended {
    /// What fitted is committed. Carries how far each attempt that exists is stored now.
    Stored(BTreeMap<Fence, LogTail>, Admission),
    /// Nothing was stored, because these days have no partition yet.
    NoPartition(BTreeSet<NaiveDate>),
}

impl Store {
    /// Stores chunks behind what is stored of their attempts. `admit` is given the attempts' tails
    /// under their row locks, advances them, and returns the chunks to store. The commit does not
    /// wait for the disk. Must be waited for to its end.
    pub(crate) async fn append_chunks(
        &self,
        fences: &[i64],
        partitions: &HashSet<NaiveDate>,
        now: DateTime<Utc>,
        admit: impl FnOnce(&mut BTreeMap<Fence, LogTail>) -> Admission,
    ) -> Result<Appended, StoreError> {
        let mut connection = self.acquire().await?;
        let appended = async {
            let mut transaction = connection.begin_with(self.begin_asynchronous()).await?;
            let before: BTreeMap<Fence, LogTail> = lock_tails(&mut transaction, fences)
                .await?
                .into_iter()
                .map(|tail| (tail.fence, tail))
                .collect();
            let mut tails = before.clone();
            let admission = admit(&mut tails);
            let missing: BTreeSet<NaiveDate> = admission
                .chunks
                .iter()
                .map(|new| new.day)
                .filter(|day| !partitions.contains(day))
                .collect();
            if !missing.is_empty() {
                transaction.rollback().await?;
                return Ok(Appended::NoPartition(missing));
            }
            if admission.is_empty() {
                transaction.rollback().await?;
                return Ok(Appended::Stored(tails, admission));
            }
            let advanced: Vec<LogTail> = tails
                .values()
                .filter(|tail| before.get(&tail.fence) != Some(tail))
                .copied()
                .collect();
            for (day, fence) in &admission.restarted {
                sqlx::query!(
                    "delete from log_chunks where day = $1 and fence = $2",
                    day,
                    fence.0,
                )
                .execute(&mut *transaction)
                .await?;
            }
            insert_chunks(&mut transaction, &admission.chunks, &advanced).await?;
            for fence in &admission.closed {
                if tails.get(fence).is_some_and(|tail| tail.has_gaps) {
                    tell_all_that_is_missing(&mut transaction, now, *fence).await?;
                }
            }
            if !admission.events.is_empty() {
                super::ledger::tell(&mut transaction, now, &admission.events).await?;
            }
            transaction.commit().await?;
            Ok(Appended::Stored(tails, admission))
        };
        let appended = bounded(appended).await;
        if appended.is_err() {
            // Closing is what ends a transaction for certain.
            drop(connection.detach());
        }
        appended.map_err(|error| self.noted(error))
    }

    /// True when one of the attempts has ended. Asked after an asynchronous commit of chunks.
    pub(crate) async fn any_ended(&self, fences: &[i64]) -> Result<bool, StoreError> {
        let ended = sqlx::query_scalar!(
            r#"select exists (select from attempts where fence = any($1) and state = 'ended') as "ended!""#,
            fences,
        )
        .fetch_one(self.pool())
        .await?;
        Ok(ended)
    }

    /// Returns once everything that was committed before the call is on disk.
    pub(crate) async fn flush(&self) -> Result<(), StoreError> {
        // The message is a record of the write-ahead log and nothing else, so that this
        // transaction's synchronous commit flushes what asynchronous ones left behind.
        sqlx::query!("select pg_logical_emit_message(true, 'qctl', '')::text as at")
            .fetch_one(self.pool())
            .await?;
        Ok(())
    }

    /// Whether a job exists, how many attempts it has had and whether more can come.
    pub(crate) async fn log_job(&self, job: JobId) -> Result<Option<LogJob>, StoreError> {
        let found = sqlx::query_as!(
            LogJob,
            r#"select attempts, ended_at is not null as "ended!" from jobs where id = $1"#,
            job.0,
        )
        .fetch_optional(self.pool())
        .await?;
        Ok(found)
    }

    /// What a reader must know of one attempt.
    pub(crate) async fn log_source(
        &self,
        job: JobId,
        number: i32,
    ) -> Result<Option<LogSource>, StoreError> {
        let found = sqlx::query!(
            r#"select a.fence, a.number, j.day,
                      coalesce(l.log_stored, 0) as "stored!", coalesce(l.log_lines, 0) as "lines!",
                      a.state = 'ended' as "ended!",
                      coalesce(a.log_end, case when a.outcome_kind = 'never_started' then 0 end) as log_end,
                      a.worker_id
               from attempts a
               join jobs j on j.id = a.job_id
               left join attempts_live l on l.fence = a.fence
               where a.job_id = $1 and a.number = $2"#,
            job.0,
            number,
        )
        .map(|row| LogSource {
            fence: Fence(row.fence),
            number: row.number,
            day: row.day,
            stored: row.stored,
            lines: row.lines,
            ended: row.ended,
            log_end: row.log_end,
            worker: WorkerId(row.worker_id),
        })
        .fetch_optional(self.pool())
        .await?;
        Ok(found)
    }

    /// Chunks that begin at `offset` or later, in order, at most `limit`.
    pub(crate) async fn chunks_from(
        &self,
        source: &LogSource,
        offset: i64,
        limit: i64,
    ) -> Result<Vec<StoredChunk>, StoreError> {
        let rows = sqlx::query_as!(
            ChunkRow,
            r#"select "offset", length, first_line, runs as "runs: sqlx::types::Json<Vec<StoredRun>>",
                      data, crc32c, hole_bytes, hole_lines, hole_cause, colour_state
               from log_chunks
               where day = $1 and fence = $2 and "offset" >= $3
               order by "offset"
               limit $4"#,
            source.day,
            source.fence.0,
            offset,
            limit,
        )
        .fetch_all(self.pool())
        .await?;
        Ok(rows.into_iter().map(StoredChunk::from).collect())
    }

    /// Where the chunk begins that holds the byte at `offset`, or the last one before it.
    pub(crate) async fn chunk_start(
        &self,
        source: &LogSource,
        offset: i64,
    ) -> Result<i64, StoreError> {
        let start = sqlx::query_scalar!(
            r#"select max("offset") from log_chunks
               where day = $1 and fence = $2 and "offset" <= $3"#,
            source.day,
            source.fence.0,
            offset,
        )
        .fetch_one(self.pool())
        .await?;
        Ok(start.unwrap_or(0))
    }

    /// The chunk that holds the output's newline number `line`, counted from 1; a hole may have
    /// swallowed it.
    pub(crate) async fn chunk_with_newline(
        &self,
        source: &LogSource,
        line: i64,
    ) -> Result<Option<StoredChunk>, StoreError> {
        let row = sqlx::query_as!(
            ChunkRow,
            r#"select "offset", length, first_line, runs as "runs: sqlx::types::Json<Vec<StoredRun>>",
                      data, crc32c, hole_bytes, hole_lines, hole_cause, colour_state
               from log_chunks
               where day = $1 and fence = $2 and first_line < $3
               order by "offset" desc
               limit 1"#,
            source.day,
            source.fence.0,
            line,
        )
        .fetch_optional(self.pool())
        .await?;
        Ok(row.map(StoredChunk::from))
    }

    /// The last chunk before an offset that holds bytes of the stream (any stream when `None`).
    pub(crate) async fn chunk_before(
        &self,
        source: &LogSource,
        before: i64,
        stream: Option<i32>,
    ) -> Result<Option<StoredChunk>, StoreError> {
        let row = sqlx::query_as!(
            ChunkRow,
            r#"select "offset", length, first_line, runs as "runs: sqlx::types::Json<Vec<StoredRun>>",
                      data, crc32c, hole_bytes, hole_lines, hole_cause, colour_state
               from log_chunks
               where day = $1 and fence = $2 and "offset" < $3 and length > 0
                 and ($4::integer is null or exists (
                     select from jsonb_array_elements(runs) run where (run ->> 0)::integer = $4))
               order by "offset" desc
               limit 1"#,
            source.day,
            source.fence.0,
            before,
            stream,
        )
        .fetch_optional(self.pool())
        .await?;
        Ok(row.map(StoredChunk::from))
    }

    /// Offset of the first chunk that ends at or after a time (microseconds since the epoch).
    pub(crate) async fn offset_since(
        &self,
        source: &LogSource,
        micros: i64,
    ) -> Result<Option<i64>, StoreError> {
        let offset = sqlx::query_scalar!(
            r#"select "offset" from log_chunks
               where day = $1 and fence = $2 and (runs -> -1 ->> 2)::bigint >= $3
               order by "offset"
               limit 1"#,
            source.day,
            source.fence.0,
            micros,
        )
        .fetch_optional(self.pool())
        .await?;
        Ok(offset)
    }

    /// Makes the partition of a day unless it exists.
    pub(crate) async fn ensure_log_partition(&self, day: NaiveDate) -> Result<(), StoreError> {
        let Some(next) = day.checked_add_days(Days::new(1)) else {
            return Ok(());
        };
        let name = partition_name(day);
        // Attaching a finished table takes a weaker lock on the parent than creating it as a
        // partition, so that readers and writers of other days are not held up. The advisory lock
        // keeps two makers apart. All values are dates of ours.
        let statement = format!(
            "do $$ begin
               perform pg_advisory_xact_lock({PARTITION_LOCK});
               if to_regclass('{name}') is null then
                 create table {name} (like log_chunks including all);
                 alter table log_chunks attach partition {name}
                   for values from ('{day}') to ('{next}');
               end if;
             end $$"
        );
        sqlx::raw_sql(AssertSqlSafe(statement).into_sql_str())
            .execute(self.pool())
            .await?;
        Ok(())
    }

    /// Days that have a partition.
    pub(crate) async fn log_partitions(&self) -> Result<HashSet<NaiveDate>, StoreError> {
        let names = sqlx::query_scalar!(
            r#"select c.relname::text as "name!" from pg_inherits i join pg_class c on c.oid = i.inhrelid
               where i.inhparent = 'log_chunks'::regclass"#,
        )
        .fetch_all(self.pool())
        .await?;
        Ok(names
            .iter()
            .filter_map(|name| partition_day(name))
            .collect())
    }

    /// Drops the partitions of days before `today` that no job was created on any more. Returns
    /// the days dropped.
    pub(crate) async fn drop_unused_partitions(
        &self,
        today: NaiveDate,
    ) -> Result<Vec<NaiveDate>, StoreError> {
        let mut days: Vec<NaiveDate> = self
            .log_partitions()
            .await?
            .into_iter()
            .filter(|day| *day < today)
            .collect();
        days.sort_unstable();
        if days.is_empty() {
            return Ok(days);
        }
        let used = sqlx::query_scalar!(
            r#"select day as "day!" from unnest($1::date[]) as t (day)
               where exists (select from jobs where jobs.day = t.day)"#,
            &days,
        )
        .fetch_all(self.pool())
        .await?;
        days.retain(|day| !used.contains(day));
        for day in &days {
            let statement = format!("drop table if exists {}", partition_name(*day));
            self.transaction(move |conn| {
                Box::pin(async move {
                    sqlx::raw_sql(AssertSqlSafe(statement).into_sql_str())
                        .execute(conn)
                        .await?;
                    Ok::<_, StoreError>(())
                })
            })
            .await?;
        }
        Ok(days)
    }
}

/// Locks the rows of the attempts and reads how far their output is stored. An attempt that is not
/// in the answer does not exist any more.
async fn lock_tails(conn: &mut PgConnection, fences: &[i64]) -> Result<Vec<LogTail>, StoreError> {
    let rows = sqlx::query!(
        r#"select l.fence, a.job_id, a.number, j.day, l.log_stored, l.log_lines, l.log_crc32c,
                  l.log_check, l.log_gaps
           from attempts_live l
           join attempts a on a.fence = l.fence
           join jobs j on j.id = a.job_id
           where l.fence = any($1)
           order by l.fence
           for no key update of l"#,
        fences,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(LogTail {
                fence: Fence(row.fence),
                job: JobId(row.job_id),
                number: row.number,
                day: row.day,
                stored: row.log_stored,
                lines: row.log_lines,
                // The column is wider only because SQL has no unsigned integers.
                crc32c: row.log_crc32c.map(|crc| crc as u32),
                check: LogCheck::parse(&row.log_check)?,
                has_gaps: row.log_gaps,
            })
        })
        .collect()
}

/// Once an output is whole, the history tells of all that is missing in it. The first gap was told when
/// it was seen, and is all there is to tell when it stayed the only one.
async fn tell_all_that_is_missing(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    fence: Fence,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into events (time, job_id, attempt, kind, message, actor)
         select $2, m.job_id, m.number, 'output_missing', m.message, $3
         from (
           select a.job_id, a.number,
                  'in all, ' || sum(c.hole_bytes) || ' bytes of its output are missing, in '
                    || count(*) || ' places' as message
           from attempts a
           join jobs j on j.id = a.job_id
           join log_chunks c on c.day = j.day and c.fence = a.fence
           where a.fence = $1 and c.hole_bytes > 0
           group by a.job_id, a.number
           having count(*) > 1
         ) m
         where not exists (
           select from events e
           where e.job_id = m.job_id and e.attempt = m.number and e.kind = 'output_missing'
             and e.message = m.message)",
        fence.0,
        now,
        COORDINATOR,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes chunks and the attempts' new tails, both in one statement.
async fn insert_chunks(
    conn: &mut PgConnection,
    chunks: &[NewChunk],
    tails: &[LogTail],
) -> Result<(), sqlx::Error> {
    let days: Vec<NaiveDate> = chunks.iter().map(|new| new.day).collect();
    let fences: Vec<i64> = chunks.iter().map(|new| new.fence.0).collect();
    let offsets: Vec<i64> = chunks.iter().map(|new| new.chunk.offset).collect();
    let lengths: Vec<i32> = chunks.iter().map(|new| new.chunk.length).collect();
    let first_lines: Vec<i64> = chunks.iter().map(|new| new.chunk.first_line).collect();
    let runs: Vec<serde_json::Value> = chunks
        .iter()
        .map(|new| serde_json::json!(new.chunk.runs))
        .collect();
    let data: Vec<&[u8]> = chunks.iter().map(|new| new.chunk.data.as_ref()).collect();
    let checksums: Vec<i64> = chunks
        .iter()
        .map(|new| i64::from(new.chunk.crc32c))
        .collect();
    let hole_bytes: Vec<i64> = chunks.iter().map(|new| new.chunk.hole_bytes).collect();
    let hole_lines: Vec<i64> = chunks.iter().map(|new| new.chunk.hole_lines).collect();
    let causes: Vec<String> = chunks
        .iter()
        .map(|new| new.chunk.hole_cause.as_str().to_owned())
        .collect();
    let colours: Vec<&[u8]> = chunks
        .iter()
        .map(|new| new.chunk.colour_state.as_slice())
        .collect();
    let tail_fences: Vec<i64> = tails.iter().map(|tail| tail.fence.0).collect();
    let stored: Vec<i64> = tails.iter().map(|tail| tail.stored).collect();
    let lines: Vec<i64> = tails.iter().map(|tail| tail.lines).collect();
    let whole: Vec<Option<i64>> = tails
        .iter()
        .map(|tail| tail.crc32c.map(i64::from))
        .collect();
    let checks: Vec<String> = tails
        .iter()
        .map(|tail| tail.check.as_str().to_owned())
        .collect();
    let gaps: Vec<bool> = tails.iter().map(|tail| tail.has_gaps).collect();
    sqlx::query!(
        r#"with stored as (
             insert into log_chunks (day, fence, "offset", length, first_line, runs, data, crc32c,
                                     hole_bytes, hole_lines, colour_state, hole_cause)
             select * from unnest($1::date[], $2::bigint[], $3::bigint[], $4::integer[],
                                  $5::bigint[], $6::jsonb[], $7::bytea[], $8::bigint[],
                                  $9::bigint[], $10::bigint[], $11::bytea[], $12::text[])
           )
           update attempts_live l
           set log_stored = t.stored, log_lines = t.lines, log_crc32c = t.crc32c,
               log_check = t.checked, log_gaps = t.gaps
           from unnest($13::bigint[], $14::bigint[], $15::bigint[], $16::bigint[], $17::text[],
                       $18::boolean[]) as t (fence, stored, lines, crc32c, checked, gaps)
           where l.fence = t.fence"#,
        &days,
        &fences,
        &offsets,
        &lengths,
        &first_lines,
        &runs,
        &data as &[&[u8]],
        &checksums,
        &hole_bytes,
        &hole_lines,
        &colours as &[&[u8]],
        &causes,
        &tail_fences,
        &stored,
        &lines,
        &whole as &[Option<i64>],
        &checks,
        &gaps,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Key of the advisory lock under which partitions are made.
const PARTITION_LOCK: i64 = 0x7163_746c_0001;

/// Today and the days to come that need partitions.
pub(crate) fn partition_days(today: NaiveDate, ahead: u64) -> impl Iterator<Item = NaiveDate> {
    (0..=ahead).filter_map(move |days| today.checked_add_days(Days::new(days)))
}

fn partition_name(day: NaiveDate) -> String {
    format!("log_chunks_{}", day.format("%Y%m%d"))
}

fn partition_day(name: &str) -> Option<NaiveDate> {
    NaiveDate::parse_from_str(name.strip_prefix("log_chunks_")?, "%Y%m%d").ok()
}

struct ChunkRow {
    offset: i64,
    length: i32,
    first_line: i64,
    runs: sqlx::types::Json<Vec<StoredRun>>,
    data: Vec<u8>,
    crc32c: i64,
    hole_bytes: i64,
    hole_lines: i64,
    hole_cause: String,
    colour_state: Vec<u8>,
}

impl From<ChunkRow> for StoredChunk {
    fn from(row: ChunkRow) -> Self {
        Self {
            offset: row.offset,
            length: row.length,
            first_line: row.first_line,
            runs: row.runs.0,
            data: Bytes::from(row.data),
            // The column is wider only because SQL has no unsigned integers.
            crc32c: row.crc32c as u32,
            hole_bytes: row.hole_bytes,
            hole_lines: row.hole_lines,
            hole_cause: HoleCause::parse(&row.hole_cause),
            colour_state: row.colour_state,
        }
    }
}
