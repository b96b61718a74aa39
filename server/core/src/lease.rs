//! How long a worker has been silent, counted only while the coordinator and its database were
//! healthy: a coordinator that could not have heard anything holds nothing against anyone.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use crate::guard::{Guard, is_broken};

/// Longest time that one tick may count. A coordinator that was paused for longer (a suspended
/// machine, a stopped process) could not have heard anything in between.
const MOST_PER_TICK: Duration = Duration::from_secs(5);

/// When silence matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Silence after which a worker counts as unreachable.
    pub unreachable_after: Duration,
    /// Silence after which its attempts are given up.
    pub lost_after: Duration,
}

/// Something that became true at a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lapse<K> {
    /// It has been silent for so long that people should know.
    Unreachable(K),
    /// It has been silent for so long that its attempts are given up.
    Lost(K),
}

/// Counts the silence of everything that holds attempts. Begins from zero in a new term.
#[derive(Clone, Debug)]
pub struct Leases<K> {
    limits: Limits,
    silent: HashMap<K, Duration>,
}

impl<K: Copy + Eq + Hash + Ord> Leases<K> {
    /// Counts nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            silent: HashMap::new(),
        }
    }

    /// Counts `elapsed` for everything that holds attempts and was not heard of since the last tick,
    /// unless the coordinator was unhealthy, and returns what became true by it. A lapse is repeated
    /// at every tick until the silence ends, so that one which could not be carried out is not lost.
    pub fn tick(
        &mut self,
        holders: impl IntoIterator<Item = (K, bool)>,
        elapsed: Duration,
        healthy: bool,
    ) -> Vec<Lapse<K>> {
        let counted = match healthy {
            true => elapsed.min(MOST_PER_TICK),
            false => Duration::ZERO,
        };
        let mut silent = HashMap::new();
        let mut lapses = Vec::new();
        for (holder, heard) in holders {
            if heard {
                continue;
            }
            let so_far = self.silent.get(&holder).copied().unwrap_or_default() + counted;
            silent.insert(holder, so_far);
            let is_unreachable = so_far >= self.limits.unreachable_after;
            if so_far >= self.limits.lost_after || is_unreachable && is_broken(Guard::LostAfter) {
                lapses.push(Lapse::Lost(holder));
            } else if is_unreachable {
                lapses.push(Lapse::Unreachable(holder));
            }
        }
        self.silent = silent;
        lapses.sort_by_key(|lapse| match lapse {
            Lapse::Unreachable(holder) | Lapse::Lost(holder) => *holder,
        });
        lapses
    }

    /// How long something has been silent, as counted.
    pub fn silence(&self, holder: K) -> Duration {
        self.silent.get(&holder).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        unreachable_after: Duration::from_secs(60),
        lost_after: Duration::from_secs(1800),
    };
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn silence_is_told_and_then_given_up() {
        let mut leases = Leases::new(LIMITS);
        for second in 1..=1800 {
            let lapses = leases.tick([(1, false), (2, true)], SECOND, true);
            let expected = match second {
                ..60 => vec![],
                60..1800 => vec![Lapse::Unreachable(1)],
                _ => vec![Lapse::Lost(1)],
            };
            assert_eq!(lapses, expected, "second {second}");
        }
        assert_eq!(leases.tick([(1, true)], SECOND, true), []);
        assert_eq!(leases.silence(1), Duration::ZERO);
    }

    #[test]
    fn f34_an_unhealthy_or_paused_coordinator_counts_nothing_against_anyone() {
        let mut leases = Leases::new(LIMITS);
        for _ in 0..5_000 {
            assert_eq!(leases.tick([(1, false)], SECOND, false), []);
        }
        assert_eq!(
            leases.tick([(1, false)], Duration::from_secs(7_200), true),
            []
        );
        assert_eq!(leases.silence(1), MOST_PER_TICK);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_sooner_than_its_time(ticks in prop::collection::vec((any::<bool>(), any::<bool>(), 0..10u64), 0..400)) {
            let mut leases = Leases::new(Limits { unreachable_after: Duration::from_secs(6), lost_after: Duration::from_secs(60) });
            let mut healthy_silence = Duration::ZERO;
            for (heard, healthy, seconds) in ticks {
                if heard {
                    healthy_silence = Duration::ZERO;
                } else if healthy {
                    healthy_silence += Duration::from_secs(seconds);
                }
                let lapses = leases.tick([((), heard)], Duration::from_secs(seconds), healthy);
                if lapses.contains(&Lapse::Lost(())) {
                    prop_assert!(healthy_silence >= Duration::from_secs(60));
                }
                prop_assert!(!heard || lapses.is_empty());
            }
        }
    }
}
