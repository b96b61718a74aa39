//! What the agent does about GPUs: a fault ends what runs on it, nothing starts on one that does not
//! pass a probe, and one that failed is probed until it does.

use std::collections::BTreeSet;

use super::attempt::{Ended, Held, Stop};
use super::message::{Effect, Say};
use super::{Agent, Phase};
use crate::enforcement::StopCause;
use crate::gpu::{Answer, Depth, Fault, FaultKind, Verdict};
use crate::session::Stage;

impl Agent {
    /// A GPU has failed: what was given it goes back, and what runs on it is stopped unless the driver
    /// is only silent. Others do not hear of it.
    pub(super) fn gpu_failed(&mut self, fault: &Fault) {
        // Told first, so that whoever hears of the job's end knows of the GPU.
        self.gpu_is_faulty(fault);
        let has_it = |held: &Held| held.terms.gpus.contains(&fault.gpu);
        let hit = self.attempts.iter().filter(|(_, held)| has_it(held));
        let hit: Vec<(i64, Stage)> = hit.map(|(fence, held)| (*fence, held.stage())).collect();
        for (fence, stage) in hit {
            match stage {
                Stage::Waiting => self.unfit(fence, fault.clone()),
                Stage::Running if fault.kind != FaultKind::Silent => {
                    self.stop_for_gpu(fence, StopCause::GpuFault, fault.clone());
                }
                Stage::Running | Stage::Ended => {}
            }
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
        let held = self.attempts.get(&fence);
        if held.is_some_and(|held| held.stop.is_some()) {
            return;
        }
        let stop = Stop {
            cause,
            grace: None,
            gpu: Some(fault),
        };
        self.stop(fence, stop);
    }

    /// A probe has ended.
    pub(super) fn probed(
        &mut self,
        fence: Option<i64>,
        gpus: Vec<(String, Option<Fault>)>,
        computed: bool,
    ) {
        let mut unfit = None;
        for (gpu, fault) in gpus {
            match (fault, self.gpus.answered(&gpu)) {
                (Some(fault), _) => {
                    self.gpu_is_faulty(&fault);
                    unfit.get_or_insert(fault);
                }
                (None, Answer::Of(depth)) => {
                    if self.gpus.passed(&gpu, depth) {
                        let fault = None;
                        self.say(Say::Gpu {
                            gpu,
                            fault,
                            computed,
                        });
                    }
                }
                (None, Answer::Outdated) => {
                    if let Some(fault) = self.gpus.fault_of(&gpu) {
                        unfit.get_or_insert(fault.clone());
                    }
                }
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

    /// Probes what is to be probed by now. Nothing but a job may compute on a GPU that a job holds, so
    /// an assignment whose GPU is held waits for its probe.
    pub(super) fn probe(&mut self) {
        let is_any = !self.unprobed.is_empty() || self.gpus.is_any_due(self.now);
        if self.phase != Phase::Working || !is_any {
            return;
        }
        let mut held = self.held_gpus();
        for fence in std::mem::take(&mut self.unprobed) {
            let waits = |held: &&Held| held.stage() == Stage::Waiting;
            let Some(attempt) = self.attempts.get(&fence).filter(waits) else {
                continue;
            };
            let gpus = attempt.terms.gpus.clone();
            let is_taken = |gpu: &String| held.contains(gpu) || self.gpus.is_asked(gpu);
            if gpus.iter().any(is_taken) {
                self.unprobed.insert(fence);
                continue;
            }
            let depth = Depth::Whole;
            gpus.iter().for_each(|gpu| self.gpus.ask(gpu, depth));
            held.extend(gpus.iter().cloned());
            let fence = Some(fence);
            self.effects.push(Effect::Probe { fence, gpus, depth });
        }
        for (depth, gpus) in self.gpus.due(self.now, |gpu| held.contains(gpu)) {
            let fence = None;
            self.effects.push(Effect::Probe { fence, gpus, depth });
        }
    }

    /// GPUs on which processes of an attempt may be left, or one may start at any moment.
    fn held_gpus(&self) -> BTreeSet<String> {
        let waiting = self.roster.waiting();
        let probed = waiting.filter(|fence| !self.unprobed.contains(fence));
        let holding = self.roster.holding().chain(probed);
        let held = holding.filter_map(|fence| self.attempts.get(&fence));
        held.flat_map(|held| held.terms.gpus.iter().cloned())
            .collect()
    }

    /// Tells what is known of each GPU.
    pub(super) fn tell_gpus(&mut self) {
        let known = self.gpus.verdicts().map(|(gpu, verdict)| Say::Gpu {
            gpu: gpu.to_owned(),
            fault: match verdict {
                Verdict::Works => None,
                Verdict::Faulty(fault) => Some(fault.clone()),
            },
            computed: false,
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
            held.terms.gpus.iter().for_each(|gpu| self.gpus.doubt(gpu));
        }
    }

    fn gpu_is_faulty(&mut self, fault: &Fault) {
        if self.gpus.failed(fault, self.now) {
            self.say(Say::Gpu {
                gpu: fault.gpu.clone(),
                fault: Some(fault.clone()),
                computed: false,
            });
        }
    }
}
