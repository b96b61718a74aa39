//! What the agent does about GPUs: a fault ends what runs on it.

use super::Agent;
use super::attempt::{Held, Stop};
use crate::enforcement::StopCause;
use crate::gpu::Fault;
use crate::session::Stage;

impl Agent {
    /// A GPU has failed: what was given it and runs is stopped. Others do not hear of it.
    pub(super) fn gpu_failed(&mut self, fault: &Fault) {
        let is_hit =
            |held: &Held| held.stage() == Stage::Running && held.terms.gpus.contains(&fault.gpu);
        let hit = self.attempts.iter().filter(|(_, held)| is_hit(held));
        let hit: Vec<i64> = hit.map(|(fence, _)| *fence).collect();
        for fence in hit {
            self.stop_for_gpu(fence, StopCause::GpuFault, fault.clone());
        }
    }

    /// An attempt computes without the GPUs it was given.
    pub(super) fn gpu_unused(&mut self, fence: i64, fault: Fault) {
        if self.stage(fence) == Some(Stage::Running) {
            self.stop_for_gpu(fence, StopCause::GpuFallback, fault);
        }
    }

    fn stop_for_gpu(&mut self, fence: i64, cause: StopCause, fault: Fault) {
        // A person's wish came first, and stays the reason.
        if self
            .attempts
            .get(&fence)
            .is_some_and(|held| held.stop.is_some())
        {
            return;
        }
        let stop = Stop {
            cause,
            grace: None,
            gpu: Some(fault),
        };
        self.stop(fence, stop);
    }
}
