//! What the agent does about GPUs: a fault ends what runs on it, nothing starts on one that does not
//! pass a probe, and one that failed is probed until it does.

use super::Agent;
use super::attempt::{Ended, Held, Stop};
use super::message::{Effect, Say};
use crate::enforcement::StopCause;
use crate::gpu::{Fault, FaultKind, Verdict};
use crate::session::Stage;

impl Agent {
    /// A GPU has failed: what was given it and runs is stopped. Others do not hear of it. A driver
    /// that is silent has not failed a job, but nothing more is started there.
    pub(super) fn gpu_failed(&mut self, fault: &Fault) {
        // Told first, so that whoever hears of the job's end knows of the GPU.
        self.gpu_is_faulty(fault);
        if fault.kind == FaultKind::Silent {
            return;
        }
        let has_it = |held: &Held| held.terms.gpus.contains(&fault.gpu);
        let hit = self.attempts.iter().filter(|(_, held)| has_it(held));
        let hit: Vec<(i64, Stage)> = hit.map(|(fence, held)| (*fence, held.stage())).collect();
        for (fence, stage) in hit {
            match stage {
                Stage::Waiting => self.unfit(fence, fault.clone()),
                Stage::Running => self.stop_for_gpu(fence, fault.clone()),
                Stage::Ended => {}
            }
        }
    }

    fn stop_for_gpu(&mut self, fence: i64, fault: Fault) {
        // A person's wish came first, and stays the reason.
        let held = self.attempts.get(&fence);
        if held.is_some_and(|held| held.stop.is_some()) {
            return;
        }
        let stop = Stop {
            cause: StopCause::GpuFault,
            grace: None,
            gpu: Some(fault),
        };
        self.stop(fence, stop);
    }

    /// A probe has ended.
    pub(super) fn probed(&mut self, fence: Option<i64>, gpus: Vec<(String, Option<Fault>)>) {
        let mut unfit = None;
        for (gpu, fault) in gpus {
            match fault {
                Some(fault) => {
                    self.gpu_is_faulty(&fault);
                    unfit.get_or_insert(fault);
                }
                None if self.gpus.passed(&gpu) => self.say(Say::Gpu { gpu, fault: None }),
                None => {}
            }
        }
        let waits = |fence: &i64| self.stage(*fence) == Some(Stage::Waiting);
        match (fence.filter(waits), unfit) {
            (Some(fence), None) => self.prepared(fence),
            (Some(fence), Some(fault)) => self.unfit(fence, fault),
            (None, _) => {}
        }
    }

    fn unfit(&mut self, fence: i64, fault: Fault) {
        self.give_back(fence, Say::Unfit { fence, fault });
    }

    /// Probes what is to be probed by now.
    pub(super) fn probe_due(&mut self) {
        let gpus = self.gpus.due(self.now);
        if !gpus.is_empty() {
            self.effects.push(Effect::Probe { fence: None, gpus });
        }
    }

    /// Tells what is known of each GPU.
    pub(super) fn tell_gpus(&mut self) {
        let known = self.gpus.verdicts().map(|(gpu, verdict)| Say::Gpu {
            gpu: gpu.to_owned(),
            fault: match verdict {
                Verdict::Works => None,
                Verdict::Faulty(fault) => Some(fault.clone()),
            },
        });
        let known: Vec<Say> = known.collect();
        known.into_iter().for_each(|say| self.say(say));
    }

    /// What ended says that a GPU failed it: each of its GPUs has to pass a probe.
    pub(super) fn doubt_gpus_of(&mut self, fence: i64) {
        let Some(held) = self.attempts.get(&fence) else {
            return;
        };
        let is_doubt = |ended: &Ended| ended.gpu_fault;
        if held.ended.as_deref().is_some_and(is_doubt) {
            let gpus = held.terms.gpus.clone();
            self.effects.push(Effect::Probe { fence: None, gpus });
        }
    }

    fn gpu_is_faulty(&mut self, fault: &Fault) {
        if self.gpus.failed(fault, self.now) {
            self.say(Say::Gpu {
                gpu: fault.gpu.clone(),
                fault: Some(fault.clone()),
            });
        }
    }
}
