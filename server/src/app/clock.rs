//! The coordinator's time: the wall clock at its start plus a clock that never jumps.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};

/// Tells the time. Steps of the wall clock while the coordinator runs do not move it.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System {
        wall: DateTime<Utc>,
        start: Instant,
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
        })
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
            Source::System { wall, start } => *wall + start.elapsed(),
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
