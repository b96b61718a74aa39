//! Which changes of what is seen of a GPU are faults.

use std::collections::{BTreeMap, BTreeSet};

use super::{Fault, FaultKind, GpuReading};

/// Xids after which the GPU itself cannot be trusted until it is reset, and those after which the
/// work on it is lost. NVIDIA's catalogue (docs.nvidia.com/deploy/xid-errors) resolves them by a
/// reset, a restart of the machine, or a restart of the application for 94. What it lays to the
/// application, such as 13, 31, 43 and 45, ends the job by itself where it matters.
const CRITICAL: [u64; 13] = [46, 48, 62, 64, 74, 79, 94, 95, 110, 119, 120, 140, 143];

/// Looks in a row in which the driver does not name a GPU that it named before: one error of the driver
/// is no loss. One that it calls lost is lost at once.
const MISSING_LOOKS: u32 = 3;

/// Growth of an error counter beyond which it is no counter: some drivers answer nonsense.
const MAX_NEW_ERRORS: u64 = 1 << 32;

/// True for an Xid that ends the work on its GPU.
pub fn is_critical(xid: u64) -> bool {
    CRITICAL.contains(&xid)
}

/// Watches readings for faults. Each is told when it begins.
#[derive(Clone, Debug, Default)]
pub struct FaultWatch {
    /// What was said of each GPU last.
    known: BTreeMap<String, Known>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    name: String,
    uncorrected: Option<u64>,
    lost: bool,
    /// Looks in a row that did not name it.
    missing: u32,
}

impl FaultWatch {
    /// Takes what the driver says of all GPUs; one that it leaves out again and again is lost.
    pub fn observe(&mut self, readings: &[GpuReading]) -> Vec<Fault> {
        let mut faults = Vec::new();
        for reading in readings {
            let known = self.known.entry(reading.uuid.clone()).or_default();
            if !reading.name.is_empty() {
                known.name.clone_from(&reading.name);
            }
            let mut found = |kind| {
                faults.push(Fault {
                    gpu: reading.uuid.clone(),
                    name: known.name.clone(),
                    kind,
                });
            };
            if reading.lost && !known.lost {
                found(FaultKind::Lost);
            }
            if let Some(xid) = reading.xid.filter(|xid| is_critical(*xid)) {
                found(FaultKind::Xid(xid));
            }
            // A counter that is seen for the first time, or fell because of a reset, counts from here.
            let new = known.uncorrected.zip(reading.uncorrected);
            let new = new.map_or(0, |(before, now)| now.saturating_sub(before));
            if (1..MAX_NEW_ERRORS).contains(&new) {
                found(FaultKind::Memory(new));
            }
            known.lost = reading.lost;
            known.missing = 0;
            known.uncorrected = reading.uncorrected.or(known.uncorrected);
        }
        let seen: BTreeSet<&str> = readings.iter().map(|gpu| gpu.uuid.as_str()).collect();
        for (uuid, known) in &mut self.known {
            if seen.contains(uuid.as_str()) || known.lost {
                continue;
            }
            known.missing += 1;
            if known.missing >= MISSING_LOOKS {
                known.lost = true;
                faults.push(Fault {
                    gpu: uuid.clone(),
                    name: known.name.clone(),
                    kind: FaultKind::Lost,
                });
            }
        }
        faults
    }

    /// The driver has stopped to answer: every GPU that is known has that fault.
    pub fn silent(&self) -> Vec<Fault> {
        let silent = |(uuid, known): (&String, &Known)| Fault {
            gpu: uuid.clone(),
            name: known.name.clone(),
            kind: FaultKind::Silent,
        };
        self.known.iter().map(silent).collect()
    }

    /// The name of a GPU; empty when it is not known.
    pub fn name_of(&self, gpu: &str) -> &str {
        self.known.get(gpu).map_or("", |known| &known.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(uuid: &str) -> GpuReading {
        GpuReading {
            uuid: uuid.to_owned(),
            name: "X".to_owned(),
            uncorrected: Some(3),
            ..GpuReading::default()
        }
    }

    fn kinds(faults: Vec<Fault>) -> Vec<(String, FaultKind)> {
        let kind = |fault: Fault| (fault.gpu, fault.kind);
        faults.into_iter().map(kind).collect()
    }

    #[test]
    fn f35_a_loss_an_error_and_an_xid_are_found_once() {
        let mut watch = FaultWatch::default();
        assert_eq!(watch.observe(&[gpu("a"), gpu("b")]), []);
        let lost = GpuReading {
            lost: true,
            uncorrected: None,
            ..gpu("a")
        };
        let b = "b".to_owned();
        let a = "a".to_owned();
        let found = watch.observe(&[lost.clone(), gpu("b")]);
        assert_eq!(kinds(found), [(a.clone(), FaultKind::Lost)]);
        assert_eq!(watch.observe(&[lost, gpu("b")]), [], "told once");
        let worse = GpuReading {
            uncorrected: Some(5),
            ..gpu("b")
        };
        let found = watch.observe(&[gpu("a"), worse.clone()]);
        assert_eq!(kinds(found), [(b.clone(), FaultKind::Memory(2))]);
        let xid = |xid| GpuReading {
            xid: Some(xid),
            ..worse.clone()
        };
        assert_eq!(watch.observe(&[gpu("a"), xid(31)]), [], "the application's");
        let found = watch.observe(&[gpu("a"), xid(79)]);
        assert_eq!(kinds(found), [(b.clone(), FaultKind::Xid(79))]);
        for _ in 1..MISSING_LOOKS {
            assert_eq!(
                watch.observe(std::slice::from_ref(&worse)),
                [],
                "one error is no loss"
            );
        }
        let found = watch.observe(std::slice::from_ref(&worse));
        assert_eq!(kinds(found), [(a, FaultKind::Lost)], "it is left out");
        assert_eq!(watch.observe(&[worse]), [], "told once");
        assert_eq!(watch.silent().len(), 2);
    }

    #[test]
    fn f36_nonsense_and_resets_of_a_counter_are_no_errors() {
        let mut watch = FaultWatch::default();
        let count = |uncorrected| GpuReading {
            uncorrected,
            ..gpu("a")
        };
        for uncorrected in [
            None,
            Some(0),
            Some(u64::MAX),
            Some(7),
            None,
            Some(7),
            Some(1),
        ] {
            assert_eq!(watch.observe(&[count(uncorrected)]), [], "{uncorrected:?}");
        }
        assert_eq!(watch.observe(&[count(Some(2))]).len(), 1);
    }
}
