//! Tokens beside the installation's own.

use chrono::{DateTime, Utc};
use sqlx::query;

use super::{Store, StoreError};
use crate::app::{Caller, Role};

impl Store {
    /// Whose token has this hash; none when there is no such token, it has expired or was revoked.
    pub(crate) async fn token(
        &self,
        hash: &[u8],
        now: DateTime<Utc>,
    ) -> Result<Option<Caller>, StoreError> {
        let row = query!(
            "select name, role from tokens
             where hash = $1 and revoked_at is null and (expires_at is null or expires_at > $2)",
            hash,
            now,
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| {
            let role =
                Role::parse(&row.role).ok_or_else(|| StoreError::unreadable("role", &row.role))?;
            Ok(Caller {
                name: row.name,
                role,
            })
        })
        .transpose()
    }
}
