//! Which GPUs work, and when one that does not is looked at again.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Fault, FaultKind};

/// Bounds of the time between two probes of a faulty GPU.
pub const FIRST_PROBE_PAUSE: Duration = Duration::from_secs(5);
/// The upper one.
pub const LONGEST_PROBE_PAUSE: Duration = Duration::from_secs(300);

/// How much of a GPU is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The driver is asked, which disturbs no job.
    Driver,
    /// Everything. The worker's own command may compute on the GPU, so no job may be there.
    Whole,
}

/// What is known of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has passed since its last fault.
    Works,
    /// It has this fault, and has not passed since.
    Faulty(Fault),
}

/// What the answer to a probe is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It tells so much about the GPU.
    Of(Depth),
    /// The GPU has failed while it was probed, or nobody has asked.
    Outdated,
}

#[derive(Clone, Debug)]
struct Known {
    /// `None` until the first whole probe, or the first fault.
    verdict: Option<Verdict>,
    /// A whole probe has to pass.
    doubted: bool,
    /// When it is probed next, however deep. Without one a GPU in doubt is probed once nothing holds it.
    probe_at: Option<Duration>,
    pause: Duration,
    /// The probe that is under way.
    asked: Option<Answer>,
}

impl Known {
    /// One that nobody has looked at.
    fn new(probe_at: Option<Duration>) -> Self {
        Self {
            verdict: None,
            doubted: true,
            probe_at,
            pause: FIRST_PROBE_PAUSE,
            asked: None,
        }
    }

    fn is_due(&self, now: Duration, depth: Depth) -> bool {
        let is_time = match self.probe_at {
            Some(at) => now >= at,
            None => depth == Depth::Whole,
        };
        is_time && self.doubted && self.asked.is_none()
    }
}

/// The health of a machine's GPUs. A fault lasts until a whole probe passes, only a driver's silence
/// ends with its answer. One probe of a GPU is under way at a time.
#[derive(Clone, Debug, Default)]
pub struct GpuHealth {
    gpus: BTreeMap<String, Known>,
}

impl GpuHealth {
    /// The driver lists these GPUs. Those that are new here are probed.
    pub fn seen(&mut self, gpus: &[String], now: Duration) {
        for gpu in gpus {
            let known = self.gpus.entry(gpu.clone());
            known.or_insert_with(|| Known::new(Some(now)));
        }
    }

    /// A GPU has a fault. False when that is no news.
    pub fn failed(&mut self, fault: &Fault, now: Duration) -> bool {
        let known = self.known(&fault.gpu);
        known.asked = known.asked.map(|_| Answer::Outdated);
        known.doubted = true;
        let before = match &known.verdict {
            Some(Verdict::Faulty(before)) => Some(before.clone()),
            _ => None,
        };
        if before.is_none() {
            known.pause = FIRST_PROBE_PAUSE;
        }
        known.probe_at = Some(now.saturating_add(known.pause));
        known.pause = (known.pause * 2).min(LONGEST_PROBE_PAUSE);
        // That the driver does not answer either says nothing new of a GPU that has failed, and its
        // answer later does not mend it.
        let is_graver = |before: &Fault| fault.kind != FaultKind::Silent && before != fault;
        let news = before.as_ref().is_none_or(is_graver);
        if news {
            known.verdict = Some(Verdict::Faulty(fault.clone()));
        }
        news
    }

    /// A job says that a GPU failed it: a whole probe has to pass, as soon as nothing holds the GPU.
    pub fn doubt(&mut self, gpu: &str) {
        self.known(gpu).doubted = true;
    }

    /// A probe of a GPU begins.
    pub fn ask(&mut self, gpu: &str, depth: Depth) {
        let known = self.known(gpu);
        known.asked = Some(Answer::Of(depth));
        known.probe_at = None;
    }

    /// A probe of a GPU is under way.
    pub fn is_asked(&self, gpu: &str) -> bool {
        self.gpus
            .get(gpu)
            .is_some_and(|known| known.asked.is_some())
    }

    /// The probe of a GPU has ended; how much it says.
    pub fn answered(&mut self, gpu: &str) -> Answer {
        let asked = self.gpus.get_mut(gpu).and_then(|known| known.asked.take());
        asked.unwrap_or(Answer::Outdated)
    }

    /// A probe of this depth has found nothing wrong. True when that is news.
    pub fn passed(&mut self, gpu: &str, depth: Depth) -> bool {
        let known = self.known(gpu);
        let was_silent = matches!(&known.verdict, Some(Verdict::Faulty(fault)) if fault.kind == FaultKind::Silent);
        let is_news = match depth {
            Depth::Driver if !was_silent => return false,
            Depth::Driver => true,
            Depth::Whole => std::mem::take(&mut known.doubted),
        };
        known.probe_at = None;
        known.pause = FIRST_PROBE_PAUSE;
        known.verdict = Some(Verdict::Works);
        is_news
    }

    /// GPUs that are to be probed now, and how deep: of those that something holds only the driver is
    /// asked. Each is named once, until its probe has an answer.
    pub fn due(
        &mut self,
        now: Duration,
        is_held: impl Fn(&str) -> bool,
    ) -> impl Iterator<Item = (Depth, Vec<String>)> {
        let (mut driver, mut whole) = (Vec::new(), Vec::new());
        for (gpu, known) in &mut self.gpus {
            let (depth, due) = match is_held(gpu) {
                true => (Depth::Driver, &mut driver),
                false => (Depth::Whole, &mut whole),
            };
            if known.is_due(now, depth) {
                known.probe_at = None;
                known.asked = Some(Answer::Of(depth));
                due.push(gpu.clone());
            }
        }
        let due = [(Depth::Driver, driver), (Depth::Whole, whole)];
        due.into_iter().filter(|(_, gpus)| !gpus.is_empty())
    }

    /// True when [`GpuHealth::due`] may name something.
    pub fn is_any_due(&self, now: Duration) -> bool {
        let mut gpus = self.gpus.values();
        gpus.any(|known| known.is_due(now, Depth::Whole))
    }

    /// When [`GpuHealth::due`] may name something because time has passed.
    pub fn deadline(&self) -> Option<Duration> {
        let unasked = self.gpus.values().filter(|known| known.asked.is_none());
        unasked.filter_map(|known| known.probe_at).min()
    }

    /// What is known, by UUID.
    pub fn verdicts(&self) -> impl Iterator<Item = (&str, &Verdict)> {
        self.gpus
            .iter()
            .filter_map(|(gpu, known)| Some((gpu.as_str(), known.verdict.as_ref()?)))
    }

    /// What is wrong with a GPU, as far as is known.
    pub fn fault_of(&self, gpu: &str) -> Option<&Fault> {
        match self.gpus.get(gpu)?.verdict.as_ref()? {
            Verdict::Works => None,
            Verdict::Faulty(fault) => Some(fault),
        }
    }

    fn known(&mut self, gpu: &str) -> &mut Known {
        let known = self.gpus.entry(gpu.to_owned());
        known.or_insert_with(|| Known::new(None))
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

    /// What is probed at a moment while nothing, or this, is held.
    fn due(health: &mut GpuHealth, now: Duration, held: &str) -> Vec<(Depth, Vec<String>)> {
        health.due(now, |gpu| gpu == held).collect()
    }

    fn whole() -> Vec<(Depth, Vec<String>)> {
        vec![(Depth::Whole, vec!["a".to_owned()])]
    }

    fn driver() -> Vec<(Depth, Vec<String>)> {
        vec![(Depth::Driver, vec!["a".to_owned()])]
    }

    /// A probe that is under way finds nothing; true when that is news.
    fn pass(health: &mut GpuHealth) -> bool {
        match health.answered("a") {
            Answer::Of(depth) => health.passed("a", depth),
            Answer::Outdated => panic!("it says nothing"),
        }
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
        assert!(health.is_any_due(at(0)));
        assert_eq!(due(&mut health, at(0), ""), whole());
        assert_eq!(due(&mut health, at(0), ""), [], "one probe at a time");
        assert!(pass(&mut health));
        health.ask("a", Depth::Whole);
        assert!(!pass(&mut health), "no news");
        assert_eq!(health.deadline(), None);
        assert!(health.failed(&fault(FaultKind::Lost), at(100)));
        assert_eq!(health.deadline(), Some(at(105)));
        health.seen(&["a".to_owned()], at(101));
        assert_eq!(
            health.verdicts().next(),
            Some(("a", &Verdict::Faulty(fault(FaultKind::Lost))))
        );
        assert_eq!(due(&mut health, at(104), ""), []);
        assert_eq!(due(&mut health, at(105), ""), whole());
        assert_eq!(health.answered("a"), Answer::Of(Depth::Whole));
        assert!(!health.failed(&fault(FaultKind::Lost), at(106)), "no news");
        assert_eq!(health.deadline(), Some(at(116)), "the pause grows");
        assert_eq!(due(&mut health, at(116), ""), whole());
        assert!(pass(&mut health));
        assert_eq!(health.verdicts().next(), Some(("a", &Verdict::Works)));
    }

    #[test]
    fn of_a_gpu_that_is_held_only_the_driver_is_asked_and_that_mends_nothing() {
        let mut health = GpuHealth::default();
        health.failed(&fault(FaultKind::Lost), at(0));
        assert_eq!(due(&mut health, at(5), "a"), driver());
        assert!(!pass(&mut health));
        assert_eq!(health.fault_of("a"), Some(&fault(FaultKind::Lost)));
        assert_eq!(due(&mut health, at(900), "a"), [], "it is asked once");
        assert_eq!(health.deadline(), None);
        assert_eq!(due(&mut health, at(901), ""), whole(), "it is free");
        assert!(pass(&mut health));
        health.doubt("a");
        assert_eq!(due(&mut health, at(902), "a"), []);
        assert_eq!(due(&mut health, at(902), ""), whole());
    }

    #[test]
    fn f36_a_silence_ends_with_an_answer_and_leaves_other_faults_as_they_are() {
        let mut health = GpuHealth::default();
        health.seen(&["a".to_owned()], at(0));
        assert!(health.failed(&fault(FaultKind::Silent), at(0)));
        assert_eq!(due(&mut health, at(5), "a"), driver());
        assert!(pass(&mut health), "it answers");
        assert_eq!(
            due(&mut health, at(6), ""),
            whole(),
            "and is still in doubt"
        );
        assert_eq!(health.answered("a"), Answer::Of(Depth::Whole));
        health.failed(&fault(FaultKind::Lost), at(6));
        assert!(!health.failed(&fault(FaultKind::Silent), at(7)));
        assert_eq!(health.fault_of("a"), Some(&fault(FaultKind::Lost)));
    }

    #[test]
    fn a_probe_that_began_before_a_fault_says_nothing_of_it() {
        let mut health = GpuHealth::default();
        health.ask("a", Depth::Whole);
        health.failed(&fault(FaultKind::Lost), at(0));
        assert_eq!(due(&mut health, at(900), ""), [], "it has not ended");
        assert_eq!(health.answered("a"), Answer::Outdated);
        assert_eq!(health.answered("a"), Answer::Outdated, "nobody has asked");
        assert_eq!(due(&mut health, at(900), ""), whole());
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
            assert_eq!(due(&mut health, now, ""), whole());
            health.answered("a");
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]);
    }
}
