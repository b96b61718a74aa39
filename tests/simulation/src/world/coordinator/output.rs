//! Output on its way into the store.

use qctl_server_core::Fence;

use crate::world::{Happening, World};

impl World {
    /// Output arrives, over a connection of its own.
    pub(in crate::world) fn chunk_arrives(
        &mut self,
        machine: usize,
        run: u64,
        fence: i64,
        offset: u64,
        length: u64,
    ) {
        let leader = (0..self.coordinators.len()).find(|index| {
            let here = &self.coordinators[*index];
            here.up && here.paused_until <= self.now && here.lead.is_some()
        });
        let Some(leader) = leader.filter(|_| self.machines[machine].cut_until <= self.now) else {
            return self.chunk_lost(machine, run, fence);
        };
        let stored = self.transaction(leader, |double| {
            Ok(double.store_log(Fence(fence), offset as i64, length as i64))
        });
        let delay = self.random.millis(0, 50);
        match stored {
            Ok(Some(stored)) => {
                let stored = Happening::ChunkStored(machine, run, fence, stored as u64);
                self.later(delay, stored);
            }
            Ok(None) => {}
            Err(_) => self.chunk_lost(machine, run, fence),
        }
    }

    pub(super) fn chunk_lost(&mut self, machine: usize, run: u64, fence: i64) {
        let after = self.random.seconds(3, 8);
        self.later(after, Happening::ChunkStored(machine, run, fence, 0));
    }
}
