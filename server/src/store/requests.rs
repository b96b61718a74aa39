//! Request ids, so that a call which is repeated has one effect.

use chrono::{DateTime, Utc};
use qctl_server_core::JobId;
use sqlx::PgConnection;

use super::{Store, StoreError};

/// What a request id stood for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    /// Digest of the payload.
    pub(crate) digest: Vec<u8>,
    /// The jobs that the call made or changed.
    pub(crate) jobs: Vec<JobId>,
}

/// Remembers a request id. It belongs to the transaction that does what was asked for.
///
/// # Errors
/// [`StoreError::Exists`] when the id is known; [`Store::request`] says what for.
pub(crate) async fn remember(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    submitter: &str,
    request_id: &str,
    digest: &[u8],
    jobs: &[JobId],
) -> Result<(), StoreError> {
    let jobs: Vec<i64> = jobs.iter().map(|job| job.0).collect();
    sqlx::query!(
        "insert into requests (submitter, request_id, digest, job_ids, created_at)
         values ($1, $2, $3, $4, $5)",
        submitter,
        request_id,
        digest,
        &jobs,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

impl Store {
    /// What a request id stood for, if it is known.
    pub(crate) async fn request(
        &self,
        submitter: &str,
        request_id: &str,
    ) -> Result<Option<Recorded>, StoreError> {
        let row = sqlx::query!(
            "select digest, job_ids from requests where submitter = $1 and request_id = $2",
            submitter,
            request_id,
        )
        .fetch_optional(self.pool())
        .await?;
        Ok(row.map(|row| Recorded {
            digest: row.digest,
            jobs: row.job_ids.into_iter().map(JobId).collect(),
        }))
    }

    /// Forgets request ids that are older, at most `most` of them. Returns how many.
    pub(crate) async fn forget_requests(
        &self,
        before: DateTime<Utc>,
        most: i64,
    ) -> Result<u64, StoreError> {
        self.transaction(move |conn| {
            Box::pin(async move {
                let done = sqlx::query!(
                    "delete from requests r
                     using (select submitter, request_id from requests
                            where created_at < $1 order by created_at limit $2) old
                     where r.submitter = old.submitter and r.request_id = old.request_id",
                    before,
                    most,
                )
                .execute(conn)
                .await?;
                Ok(done.rows_affected())
            })
        })
        .await
    }
}
