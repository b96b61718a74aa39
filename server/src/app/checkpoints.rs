//! Checkpoints: listing them, copies of the small ones, and giving up those that nobody needs.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use chrono::TimeDelta;
use qctl_server_core::checkpoint::CheckpointId;
use qctl_server_core::{Fence, JobId};

use super::read::{PAGE, PageRequest, page_size, read_token, write_token};
use super::{App, Error};
use crate::sessions::ToWorker;
pub use crate::store::checkpoint_copies::Piece;
use crate::store::checkpoint_copies::{append, begin_copy, copied_bytes, is_superseded, lock_copy};
pub use crate::store::checkpoints::{CheckpointRecord, CheckpointState};

/// Longest manifest in front of a copy's contents.
const MAX_MANIFEST: i64 = 64 * 1024 * 1024;
/// Pieces of a copy in one look.
const PIECES: i64 = 8;
/// Jobs whose checkpoints are given up in one transaction.
const BATCH: i64 = 500;

/// A page of a job's checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointPage {
    /// Newest first.
    pub checkpoints: Vec<CheckpointRecord>,
    /// Empty on the last page.
    pub next_page_token: String,
}

/// How far a copy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyAnswer {
    /// Bytes that are stored.
    Stored {
        /// So many.
        bytes: i64,
        /// That is all of it.
        complete: bool,
    },
    /// It is not taken.
    Refused(String),
    /// It is not taken because as many newer ones of its job are copied as are kept.
    Superseded,
}

/// A place in the list, for page tokens.
struct Position(CheckpointId);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0.fence, self.0.number)
    }
}

impl FromStr for Position {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (fence, number) = text.split_once('.').unwrap_or((text, ""));
        Ok(Self(CheckpointId {
            fence: Fence(fence.parse()?),
            number: number.parse()?,
        }))
    }
}

impl App {
    /// A page of a job's published checkpoints, newest first.
    ///
    /// # Errors
    /// When there is no such job, the page token is wrong, or the database is away.
    pub async fn checkpoints(
        &self,
        job: JobId,
        page: &PageRequest,
    ) -> Result<CheckpointPage, Error> {
        if self.store.log_job(job).await?.is_none() {
            return Err(Error::JobNotFound(job));
        }
        let before = match page.token.as_str() {
            "" => None,
            token => Some(read_token::<Position>(token, "checkpoints")?.0),
        };
        let size = page_size(page.size, PAGE);
        let mut checkpoints = self.store.checkpoints(job, before, size + 1).await?;
        let more = checkpoints.len() > size;
        checkpoints.truncate(size);
        let next_page_token = match checkpoints.last() {
            Some(last) if more => write_token("checkpoints", Position(last.id)),
            _ => String::new(),
        };
        Ok(CheckpointPage {
            checkpoints,
            next_page_token,
        })
    }

    /// Begins or goes on with the copy of a checkpoint that is `total` bytes long with its manifest.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn open_copy(
        self: &Arc<Self>,
        id: CheckpointId,
        total: i64,
        asked: bool,
    ) -> Result<CopyAnswer, Error> {
        let limit = as_signed(self.settings.checkpoint_upload_bytes);
        let room = as_signed(self.settings.checkpoint_bytes_kept);
        let refused = |why: String| Ok(CopyAnswer::Refused(why));
        self.store
            .transaction(move |conn| {
                Box::pin(async move {
                    let Some(copy) = lock_copy(conn, id).await?.filter(|copy| copy.wanted) else {
                        return refused("nobody needs a copy of it".to_owned());
                    };
                    if total <= copy.bytes || total - copy.bytes > MAX_MANIFEST {
                        return refused(format!(
                            "its length of {total} bytes does not fit its contents of {}",
                            copy.bytes
                        ));
                    }
                    if !asked && copy.bytes > limit {
                        return refused(format!("it is larger than {limit} bytes"));
                    }
                    if copy.total == Some(total) {
                        return Ok(CopyAnswer::Stored {
                            bytes: copy.stored,
                            complete: copy.complete,
                        });
                    }
                    if is_superseded(conn, id).await? {
                        return Ok(CopyAnswer::Superseded);
                    }
                    if copied_bytes(conn).await?.saturating_add(total) > room {
                        return refused(format!(
                            "copies of checkpoints may take {room} bytes, and there is no room left"
                        ));
                    }
                    begin_copy(conn, id, total).await?;
                    Ok::<_, Error>(CopyAnswer::Stored {
                        bytes: 0,
                        complete: false,
                    })
                })
            })
            .await
    }

    /// Stores a piece, when it goes on where the copy ends; says in any case where that is.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn copy_piece(
        self: &Arc<Self>,
        id: CheckpointId,
        piece: Piece,
    ) -> Result<CopyAnswer, Error> {
        let answer = self
            .store
            .transaction(move |conn| {
                Box::pin(async move {
                    let Some(copy) = lock_copy(conn, id).await?.filter(|copy| copy.wanted) else {
                        return Ok(CopyAnswer::Refused("nobody needs a copy of it".to_owned()));
                    };
                    let total = copy.total.unwrap_or_default();
                    let end = piece.offset.saturating_add(piece.length.into());
                    if copy.complete || piece.offset != copy.stored || end > total {
                        return Ok(CopyAnswer::Stored {
                            bytes: copy.stored,
                            complete: copy.complete,
                        });
                    }
                    append(conn, id, &piece).await?;
                    Ok::<_, Error>(CopyAnswer::Stored {
                        bytes: end,
                        complete: end == total,
                    })
                })
            })
            .await?;
        if matches!(answer, CopyAnswer::Stored { complete: true, .. }) {
            // A job that waited for the machine may start anywhere now.
            self.wake_dispatcher();
        }
        Ok(answer)
    }

    /// Length of the complete copy of a checkpoint.
    ///
    /// # Errors
    /// [`Error::CheckpointNotFound`], or when the database is away.
    pub async fn copy_length(&self, id: CheckpointId) -> Result<i64, Error> {
        let length = self.store.copy_length(id).await?;
        length.ok_or(Error::CheckpointNotFound)
    }

    /// The next pieces of a copy from an offset on; none behind its end.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn copy_pieces(&self, id: CheckpointId, offset: i64) -> Result<Vec<Piece>, Error> {
        Ok(self.store.copy_pieces(id, offset, PIECES).await?)
    }

    /// Tells the connected workers that nobody wants the checkpoints of some jobs any more. Others
    /// are told when they mention them.
    pub(super) fn remove_checkpoints(&self, jobs: Vec<JobId>) {
        if jobs.is_empty() {
            return;
        }
        for connected in self.sessions.connected() {
            self.sessions
                .send(connected.worker, ToWorker::RemoveCheckpoints(jobs.clone()));
        }
    }

    /// Gives up the checkpoints of jobs that ended well, and of those that ended long ago.
    pub(crate) async fn give_up_checkpoints(&self) -> Result<(), Error> {
        let kept = TimeDelta::from_std(self.settings.checkpoints_kept).unwrap_or(TimeDelta::MAX);
        let Some(before) = self.clock.now().checked_sub_signed(kept) else {
            return Ok(());
        };
        loop {
            let jobs = self.store.give_up_checkpoints(before, BATCH).await?;
            let full = jobs.len() as i64 == BATCH;
            self.remove_checkpoints(jobs);
            if !full {
                return Ok(());
            }
        }
    }
}

fn as_signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
