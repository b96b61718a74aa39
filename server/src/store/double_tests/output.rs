//! Output, copies of checkpoints, and those that nobody needs.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use qctl_server_core::HoleCause;
use qctl_server_core::checkpoint::CheckpointId;

use super::pair::{Pair, pick, refused};
use super::steps::Pick;
use super::view::{Differs, same};
use crate::store::checkpoint_copies::{Piece, append, begin_copy};
use crate::store::logs::{Admission, Appended, NewChunk, StoredChunk};

impl Pair {
    pub(super) async fn output(
        &mut self,
        late: bool,
        attempt: Pick,
        astray: bool,
        length: i32,
    ) -> Result<(), Differs> {
        let Some(row) = self.attempt(attempt) else {
            return Ok(());
        };
        let (fence, offset) = (row.fence, row.log_stored + i64::from(astray));
        let days = self.store.log_partitions().await.expect("partitions");
        let (store, fences) = (self.led(late).0, [fence.0]);
        let stored = store.append_chunks(&fences, &days, self.now, |tails| {
            let Some(tail) = tails.get_mut(&fence).filter(|tail| tail.stored == offset) else {
                return Admission::default();
            };
            tail.stored += i64::from(length);
            let chunk = NewChunk {
                fence,
                day: tail.day,
                chunk: StoredChunk {
                    offset,
                    length,
                    first_line: 0,
                    runs: Vec::new(),
                    data: Bytes::from_static(b"output"),
                    crc32c: 0,
                    hole_bytes: 0,
                    hole_lines: 0,
                    hole_cause: HoleCause::Unknown,
                    colour_state: Vec::new(),
                },
            };
            Admission {
                chunks: vec![chunk],
                ..Admission::default()
            }
        });
        let real = stored
            .await
            .map_err(refused)
            .map(|appended| match appended {
                Appended::Stored(tails, _) => tails.get(&fence).map(|tail| tail.stored),
                Appended::NoPartition(days) => panic!("{days:?} have no partition"),
            });
        let ours = self.check_term(late);
        let length = i64::from(length);
        let ours = ours.map(|()| self.double.store_log(fence, offset, length));
        same("storing output", &real, &ours)
    }

    pub(super) async fn copy(&mut self, late: bool, checkpoint: Pick) -> Result<(), Differs> {
        let known: Vec<CheckpointId> = self.double.checkpoints().keys().copied().collect();
        let Some(id) = pick(&known, checkpoint) else {
            return Ok(());
        };
        let real = self.in_store(late, move |conn| {
            Box::pin(async move {
                begin_copy(conn, id, 4).await?;
                let piece = Piece {
                    offset: 0,
                    length: 4,
                    crc32c: 0,
                    data: b"copy".to_vec(),
                };
                append(conn, id, &piece).await
            })
        });
        let real = real.await;
        let ours = self.check_term(late);
        let ours = ours.map(|()| self.double.upload(id));
        same("copying a checkpoint", &real, &ours)
    }

    pub(super) async fn give_up_checkpoints(
        &mut self,
        late: bool,
        ended_before: DateTime<Utc>,
    ) -> Result<(), Differs> {
        let store = self.led(late).0;
        let real = store.give_up_checkpoints(ended_before, 1_000).await;
        let real = real.map_err(refused).map(|mut jobs| {
            jobs.sort_unstable();
            jobs
        });
        let ours = self.check_term(late);
        let ours = ours.map(|()| self.double.give_up_checkpoints(ended_before));
        same("checkpoints that are given up", &real, &ours)
    }
}
