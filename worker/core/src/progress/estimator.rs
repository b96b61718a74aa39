//! A smoothed rate.

use std::time::Duration;

/// How far back the average looks.
const MEMORY: f64 = 15.0;

/// Estimates items per second as an exponentially fading average. While little has been seen, all
/// of it counts alike.
#[derive(Debug, Default)]
pub(super) struct Estimator {
    last: Option<(f64, Duration)>,
    items: f64,
    seconds: f64,
}

impl Estimator {
    /// Takes a count at a time. A count that falls begins anew; time that does not pass adds to the
    /// next interval.
    pub(super) fn observe(&mut self, done: f64, at: Duration) {
        let Some((before, since)) = self.last else {
            self.last = Some((done, at));
            return;
        };
        if done < before || at < since {
            *self = Self {
                last: Some((done, at)),
                ..Self::default()
            };
            return;
        }
        let passed = (at - since).as_secs_f64();
        // An interval without items is not over yet: it counts when the next item ends it.
        if passed <= 0.0 || done == before {
            return;
        }
        let fade = (-passed / MEMORY).exp();
        self.items = self.items * fade + (done - before) * (1.0 - fade) / passed;
        self.seconds = self.seconds * fade + (1.0 - fade);
        self.last = Some((done, at));
    }

    /// Items per second, once two counts are known.
    pub(super) fn rate(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.items / self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(counts: impl IntoIterator<Item = (f64, f64)>) -> Option<f64> {
        let mut estimator = Estimator::default();
        for (done, seconds) in counts {
            estimator.observe(done, Duration::from_secs_f64(seconds));
        }
        estimator.rate()
    }

    fn close(rate: Option<f64>, expected: f64) -> bool {
        (rate.unwrap() - expected).abs() < expected * 0.05
    }

    #[test]
    fn a_steady_rate_is_found_at_once_and_kept() {
        assert_eq!(after([(3.0, 0.0)]), None);
        assert!(close(after([(0.0, 0.0), (2.0, 1.0)]), 2.0));
        assert!(close(
            after((0..300).map(|n| (f64::from(n), f64::from(n) * 0.5))),
            2.0
        ));
    }

    #[test]
    fn a_change_is_followed_within_a_minute() {
        let slow = (0..100).map(|n| (f64::from(n), f64::from(n)));
        let fast = (1..600).map(|n| (100.0 + f64::from(n), 99.0 + f64::from(n) * 0.1));
        assert!(close(after(slow.chain(fast)), 10.0));
    }

    #[test]
    fn a_new_phase_begins_anew() {
        assert_eq!(after([(0.0, 0.0), (50.0, 1.0), (0.0, 2.0)]), None);
        assert!(close(
            after([(0.0, 0.0), (50.0, 1.0), (0.0, 2.0), (1.0, 4.0)]),
            0.5
        ));
    }

    #[test]
    fn counts_without_time_between_them_are_one() {
        assert!(close(
            after([(0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (4.0, 2.0)]),
            2.0
        ));
    }
}
