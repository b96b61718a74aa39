//! What became of an attempt whose shim is gone, judged from its segment.

use crate::guard::{Guard, is_broken};

/// What the segment tells about an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The machine has not been restarted since.
    pub same_boot: bool,
    /// The process was about to be started.
    pub starting: bool,
    /// The end is recorded.
    pub exit: bool,
    /// It was recorded that it never starts.
    pub void: bool,
    /// It was recorded that no process is left.
    pub freed: bool,
}

/// What the new owner of the segment does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Everything is known and no process is left.
    Settled,
    /// It never started: record `void`, so that a late shim does not start it either.
    NeverStarted,
    /// The machine was restarted: no process can be left, and how it ended is unknown.
    MachineLost,
    /// Kill what is left of its processes; then it ended in an unknown way.
    Sweep,
    /// Its end is known; kill what is left of its processes.
    SweepRest,
}

/// Judges an attempt. Only the owner of the segment's lock may ask: while a shim lives, it is the
/// shim that knows.
pub fn judge(evidence: Evidence) -> Finding {
    if evidence.void || (evidence.exit && evidence.freed) {
        Finding::Settled
    } else if evidence.exit {
        // After a restart there is nothing to sweep, but that its slot is free is not recorded yet.
        Finding::SweepRest
    } else if !evidence.same_boot && !is_broken(Guard::MissingRecord) {
        // Records are not synced before a start: that one is missing proves nothing now.
        Finding::MachineLost
    } else if !evidence.starting {
        Finding::NeverStarted
    } else {
        Finding::Sweep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_restart_a_missing_record_proves_nothing_and_a_slot_is_freed() {
        let lost = Evidence::default();
        assert_eq!(judge(lost), Finding::MachineLost);
        let ended = Evidence {
            starting: true,
            exit: true,
            ..lost
        };
        assert_eq!(judge(ended), Finding::SweepRest);
    }

    #[test]
    fn every_combination_has_its_finding() {
        for bits in 0_u8..32 {
            let evidence = Evidence {
                same_boot: bits & 1 != 0,
                starting: bits & 2 != 0,
                exit: bits & 4 != 0,
                void: bits & 8 != 0,
                freed: bits & 16 != 0,
            };
            let finding = judge(evidence);
            match finding {
                Finding::Settled => assert!(evidence.void || evidence.exit),
                Finding::NeverStarted => {
                    assert!(evidence.same_boot && !evidence.starting && !evidence.exit);
                }
                Finding::MachineLost => assert!(!evidence.same_boot && !evidence.exit),
                Finding::Sweep => assert!(evidence.starting && !evidence.exit),
                Finding::SweepRest => assert!(evidence.exit && !evidence.freed),
            }
            // An unknown end is never taken for a known one, nor the other way round.
            if evidence.void || evidence.exit {
                assert!(matches!(finding, Finding::Settled | Finding::SweepRest));
            }
        }
    }
}
