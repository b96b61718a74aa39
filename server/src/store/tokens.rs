//! Tokens beside the installation's own.

use chrono::{DateTime, Utc};
use sqlx::query_as;

use super::{Store, StoreError};

/// Whose token it is.
pub(crate) struct TokenRecord {
    pub(crate) name: String,
    /// The stored word.
    pub(crate) role: String,
}

impl Store {
    /// Whose token has this hash; none when there is no such token, it has expired or was revoked.
    pub(crate) async fn token(
        &self,
        hash: &[u8],
        now: DateTime<Utc>,
    ) -> Result<Option<TokenRecord>, StoreError> {
        let row = query_as!(
            TokenRecord,
            "select name, role from tokens
             where hash = $1 and revoked_at is null and (expires_at is null or expires_at > $2)",
            hash,
            now,
        )
        .fetch_optional(self.pool())
        .await?;
        Ok(row)
    }
}
