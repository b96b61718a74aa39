//! Copies of checkpoints: chunks that go in at the expected place only, and come out in order.

use qctl_server_core::checkpoint::CheckpointId;
use sqlx::PgConnection;

use super::{Store, StoreError};

/// Copies that are kept of a job's checkpoints; the newest may turn out to be damaged.
const COPIES_KEPT: i64 = 2;

/// A checkpoint whose copy is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    /// Size of its contents.
    pub(crate) bytes: i64,
    /// Length of the whole copy; `None` before the first chunk.
    pub(crate) total: Option<i64>,
    /// Bytes of it that are stored.
    pub(crate) stored: i64,
    /// All of it is.
    pub(crate) complete: bool,
    /// Somebody may still want it.
    pub(crate) wanted: bool,
}

/// A piece of a copy, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its place.
    pub offset: i64,
    /// Its length before compression.
    pub length: i32,
    /// CRC-32C over it before compression.
    pub crc32c: u32,
    /// The bytes, compressed.
    pub data: Vec<u8>,
}

/// Reads and locks what is known of a copy.
pub(crate) async fn lock_copy(
    conn: &mut PgConnection,
    id: CheckpointId,
) -> Result<Option<Copy>, StoreError> {
    let row = sqlx::query!(
        r#"select c.bytes, c.upload_total, c.upload_end, c.uploaded,
                  not c.damaged and j.state <> 'succeeded' as "wanted!"
           from checkpoints c join jobs j on j.id = c.job_id
           where c.fence = $1 and c.number = $2
           for update of c"#,
        id.fence.0,
        id.number,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| Copy {
        bytes: row.bytes,
        total: row.upload_total,
        stored: row.upload_end,
        complete: row.uploaded,
        wanted: row.wanted,
    }))
}

/// True when complete copies of newer checkpoints of its job take all the places: it would be
/// dropped as soon as it is whole.
pub(crate) async fn is_superseded(
    conn: &mut PgConnection,
    id: CheckpointId,
) -> Result<bool, StoreError> {
    let newer = sqlx::query_scalar!(
        r#"select count(*) as "count!" from checkpoints
           where upload_end > 0 and uploaded and (fence, number) > ($1, $2)
             and job_id = (select job_id from checkpoints where fence = $1 and number = $2)"#,
        id.fence.0,
        id.number,
    )
    .fetch_one(conn)
    .await?;
    Ok(newer >= COPIES_KEPT)
}

/// Begins a copy anew.
pub(crate) async fn begin_copy(
    conn: &mut PgConnection,
    id: CheckpointId,
    total: i64,
) -> Result<(), StoreError> {
    sqlx::query!(
        "delete from checkpoint_chunks where fence = $1 and number = $2",
        id.fence.0,
        id.number,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "update checkpoints set upload_total = $3, upload_end = 0, uploaded = false
         where fence = $1 and number = $2",
        id.fence.0,
        id.number,
        total,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Bytes that copies take or are going to take, before compression.
pub(crate) async fn copied_bytes(conn: &mut PgConnection) -> Result<i64, StoreError> {
    let bytes = sqlx::query_scalar!(
        r#"select coalesce(sum(upload_total), 0)::bigint as "bytes!"
           from checkpoints where upload_end > 0"#,
    )
    .fetch_one(conn)
    .await?;
    Ok(bytes)
}

/// Stores a piece of a locked copy that goes on where it ends.
pub(crate) async fn append(
    conn: &mut PgConnection,
    id: CheckpointId,
    piece: &Piece,
) -> Result<(), StoreError> {
    sqlx::query!(
        r#"insert into checkpoint_chunks (fence, number, "offset", length, crc32c, data)
           values ($1, $2, $3, $4, $5, $6)"#,
        id.fence.0,
        id.number,
        piece.offset,
        piece.length,
        i64::from(piece.crc32c),
        piece.data,
    )
    .execute(&mut *conn)
    .await?;
    let end = piece.offset + i64::from(piece.length);
    let complete = sqlx::query_scalar!(
        r#"update checkpoints set upload_end = $3, uploaded = upload_total = $3
           where fence = $1 and number = $2
           returning uploaded"#,
        id.fence.0,
        id.number,
        end,
    )
    .fetch_one(&mut *conn)
    .await?;
    if complete {
        drop_older_copies(conn, id).await?;
    }
    Ok(())
}

/// Of a job's copies only the newest are kept.
async fn drop_older_copies(conn: &mut PgConnection, id: CheckpointId) -> Result<(), StoreError> {
    let older = sqlx::query!(
        "select fence, number from checkpoints
         where upload_end > 0
           and job_id = (select job_id from checkpoints where fence = $1 and number = $2)
         order by uploaded desc, fence desc, number desc offset $3",
        id.fence.0,
        id.number,
        COPIES_KEPT,
    )
    .fetch_all(&mut *conn)
    .await?;
    for row in older {
        sqlx::query!(
            "delete from checkpoint_chunks where fence = $1 and number = $2",
            row.fence,
            row.number,
        )
        .execute(&mut *conn)
        .await?;
        sqlx::query!(
            "update checkpoints set uploaded = false, upload_end = 0, upload_total = null
             where fence = $1 and number = $2",
            row.fence,
            row.number,
        )
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

impl Store {
    /// Length of a complete copy; `None` when there is none.
    pub(crate) async fn copy_length(&self, id: CheckpointId) -> Result<Option<i64>, StoreError> {
        let length = sqlx::query_scalar!(
            "select upload_total from checkpoints where fence = $1 and number = $2 and uploaded",
            id.fence.0,
            id.number,
        )
        .fetch_optional(self.pool())
        .await?;
        Ok(length.flatten())
    }

    /// Pieces of a copy from the one on that holds an offset, in order, at most `limit`.
    pub(crate) async fn copy_pieces(
        &self,
        id: CheckpointId,
        offset: i64,
        limit: i64,
    ) -> Result<Vec<Piece>, StoreError> {
        let pieces = sqlx::query!(
            r#"select "offset", length, crc32c, data from checkpoint_chunks
               where fence = $1 and number = $2 and "offset" + length > $3
               order by "offset" limit $4"#,
            id.fence.0,
            id.number,
            offset,
            limit,
        )
        .map(|row| Piece {
            offset: row.offset,
            length: row.length,
            crc32c: row.crc32c as u32,
            data: row.data,
        })
        .fetch_all(self.pool())
        .await?;
        Ok(pieces)
    }
}
