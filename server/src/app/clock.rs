//! The coordinator's time: the wall clock at the start of its term plus a clock that never jumps.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};

/// How far the wall clock may be away before a new term takes it over. Less is what a clock that is
/// kept in time is corrected by anyway.
const TOLERANCE: TimeDelta = TimeDelta::seconds(2);

/// Tells the time. Steps of the wall clock within a term do not move it.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System {
        wall: DateTime<Utc>,
        start: Instant,
        /// What the wall clock moved beside the other one, in microseconds.
        moved_us: Arc<AtomicI64>,
    },
    Manual {
        wall: DateTime<Utc>,
        moved_us: Arc<AtomicI64>,
    },
}

/// Moves a clock of a test.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicI64>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Source::System {
            wall: Utc::now(),
            start: Instant::now(),
            moved_us: Arc::default(),
        })
    }

    /// Takes the wall clock over as it is now, for this clock and its clones. A machine that slept
    /// ends its term, and the clock that never jumps has stood still meanwhile.
    pub(crate) fn take_over_wall(&self) {
        self.follow(Utc::now());
    }

    fn follow(&self, wall_now: DateTime<Utc>) {
        let Source::System { moved_us, .. } = &self.0 else {
            return;
        };
        let away = wall_now - self.now();
        if away.abs() > TOLERANCE {
            tracing::warn!(
                seconds = away.num_seconds(),
                "the machine's clock moved by {} s, or it slept; times are right again",
                away.num_seconds()
            );
            moved_us.fetch_add(away.num_microseconds().unwrap_or(0), Ordering::Relaxed);
        }
    }

    /// A clock that stands still until it is moved.
    pub fn manual(wall: DateTime<Utc>) -> (Self, ManualClock) {
        let moved_us = Arc::new(AtomicI64::new(0));
        let clock = Self(Source::Manual {
            wall,
            moved_us: Arc::clone(&moved_us),
        });
        (clock, ManualClock(moved_us))
    }

    /// Now, in whole microseconds, because the database keeps no more.
    pub fn now(&self) -> DateTime<Utc> {
        let now = match &self.0 {
            Source::System {
                wall,
                start,
                moved_us,
            } => {
                *wall + start.elapsed() + TimeDelta::microseconds(moved_us.load(Ordering::Relaxed))
            }
            Source::Manual { wall, moved_us } => {
                *wall + TimeDelta::microseconds(moved_us.load(Ordering::Relaxed))
            }
        };
        now.trunc_subsecs(6)
    }
}

impl ManualClock {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let by = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        self.0.fetch_add(by, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_term_takes_over_what_the_wall_clock_moved_by() {
        let clock = Clock::system();
        let shared = clock.clone();
        let away = |hours| Utc::now() + TimeDelta::hours(hours) - shared.now();
        clock.follow(Utc::now() + TimeDelta::hours(8));
        assert!(away(8).abs() < TimeDelta::minutes(1));
        clock.follow(Utc::now() - TimeDelta::hours(1));
        assert!(away(-1).abs() < TimeDelta::minutes(1));
    }

    #[test]
    fn small_differences_move_nothing() {
        let clock = Clock::system();
        let before = clock.now();
        clock.follow(before + TimeDelta::seconds(1));
        assert!(clock.now() - before < TimeDelta::seconds(1));
    }
}
