//! Which GPUs work, and when one that does not is looked at again.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Fault;

/// Bounds of the time between two probes of a faulty GPU.
pub const FIRST_PROBE_PAUSE: Duration = Duration::from_secs(5);
/// The upper one.
pub const LONGEST_PROBE_PAUSE: Duration = Duration::from_secs(300);

/// What is known of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A probe has passed since its last fault.
    Works,
    /// It has this fault, and no probe has passed since.
    Faulty(Fault),
}

#[derive(Clone, Debug)]
struct Known {
    /// `None` until the first probe.
    verdict: Option<Verdict>,
    /// When it is probed next; `None` while a probe is under way or none is needed.
    probe_at: Option<Duration>,
    pause: Duration,
}

/// The health of a machine's GPUs. A fault lasts until a probe passes.
#[derive(Clone, Debug, Default)]
pub struct GpuHealth {
    gpus: BTreeMap<String, Known>,
}

impl GpuHealth {
    /// The driver lists these GPUs. Those that are new here are probed.
    pub fn seen(&mut self, gpus: &[String], now: Duration) {
        for gpu in gpus {
            self.gpus.entry(gpu.clone()).or_insert(Known {
                verdict: None,
                probe_at: Some(now),
                pause: FIRST_PROBE_PAUSE,
            });
        }
    }

    /// A GPU has a fault. False when it was known to have this one.
    pub fn failed(&mut self, fault: &Fault, now: Duration) -> bool {
        let known = self.gpus.entry(fault.gpu.clone()).or_insert(Known {
            verdict: None,
            probe_at: None,
            pause: FIRST_PROBE_PAUSE,
        });
        let news = known.verdict != Some(Verdict::Faulty(fault.clone()));
        if !matches!(known.verdict, Some(Verdict::Faulty(_))) {
            known.pause = FIRST_PROBE_PAUSE;
        }
        known.verdict = Some(Verdict::Faulty(fault.clone()));
        known.probe_at = Some(now.saturating_add(known.pause));
        known.pause = (known.pause * 2).min(LONGEST_PROBE_PAUSE);
        news
    }

    /// A probe of a GPU has passed. True when that is news.
    pub fn passed(&mut self, gpu: &str) -> bool {
        let known = self.gpus.entry(gpu.to_owned()).or_insert(Known {
            verdict: None,
            probe_at: None,
            pause: FIRST_PROBE_PAUSE,
        });
        known.probe_at = None;
        known.pause = FIRST_PROBE_PAUSE;
        known.verdict.replace(Verdict::Works) != Some(Verdict::Works)
    }

    /// GPUs that are to be probed now; each is named once, until its probe has an answer.
    pub fn due(&mut self, now: Duration) -> Vec<String> {
        let mut due = Vec::new();
        for (gpu, known) in &mut self.gpus {
            if known.probe_at.is_some_and(|at| now >= at) {
                known.probe_at = None;
                due.push(gpu.clone());
            }
        }
        due
    }

    /// When [`GpuHealth::due`] names something next.
    pub fn deadline(&self) -> Option<Duration> {
        self.gpus.values().filter_map(|known| known.probe_at).min()
    }

    /// What is known, by UUID.
    pub fn verdicts(&self) -> impl Iterator<Item = (&str, &Verdict)> {
        self.gpus
            .iter()
            .filter_map(|(gpu, known)| Some((gpu.as_str(), known.verdict.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::FaultKind;

    fn fault(kind: FaultKind) -> Fault {
        Fault {
            gpu: "a".to_owned(),
            name: String::new(),
            kind,
        }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_fault_lasts_until_a_probe_passes() {
        let mut health = GpuHealth::default();
        health.seen(&["a".to_owned()], at(0));
        assert_eq!(
            health.verdicts().count(),
            0,
            "nothing is known before the probe"
        );
        assert_eq!(health.due(at(0)), ["a"]);
        assert_eq!(health.due(at(0)), [""; 0], "one probe at a time");
        assert!(health.passed("a"));
        assert!(!health.passed("a"), "no news");
        assert_eq!(health.deadline(), None);
        assert!(health.failed(&fault(FaultKind::Lost), at(100)));
        assert_eq!(health.deadline(), Some(at(105)));
        health.seen(&["a".to_owned()], at(101));
        assert_eq!(
            health.verdicts().next(),
            Some(("a", &Verdict::Faulty(fault(FaultKind::Lost))))
        );
        assert_eq!(health.due(at(105)), ["a"]);
        assert!(!health.failed(&fault(FaultKind::Lost), at(106)), "no news");
        assert_eq!(health.deadline(), Some(at(116)), "the pause grows");
        assert!(health.passed("a"));
        assert_eq!(health.verdicts().next(), Some(("a", &Verdict::Works)));
    }

    #[test]
    fn a_gpu_that_stays_broken_is_probed_ever_less() {
        let mut health = GpuHealth::default();
        let mut now = at(0);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            health.failed(&fault(FaultKind::Silent), now);
            let next = health.deadline().unwrap();
            pauses.push((next - now).as_secs());
            now = next;
            health.due(now);
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]);
    }
}
