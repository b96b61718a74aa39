//! Memory that grows and grows. A program that takes much at once and stays there does not leak, and
//! neither does one that takes and gives back.

use std::collections::VecDeque;

use chrono::{DateTime, TimeDelta, Utc};

use super::level::GAP;

/// Parts of a window. In each of them the least memory counts, so that what is given back between two
/// collections of garbage is no growth.
const PARTS: usize = 6;

/// Windows: the shortest, and three that are each four times as long as the one before.
const WINDOWS: i32 = 4;
const LONGER: i32 = 4;

/// A part must bring at least this share of what all of them bring on average.
const STEADY: f64 = 1.0 / 3.0;

/// What an attempt's memory did lately, in windows of several lengths.
#[derive(Clone, Debug, PartialEq)]
pub struct Growth {
    windows: Vec<Window>,
}

#[derive(Clone, Debug, PartialEq)]
struct Window {
    part: TimeDelta,
    looked_at: DateTime<Utc>,
    begun: DateTime<Utc>,
    least: i64,
    /// The least memory of each part before this one.
    done: VecDeque<i64>,
}

impl Growth {
    /// Begins with a first look. `shortest` is the length of the shortest window.
    pub fn begin(shortest: TimeDelta, bytes: i64, now: DateTime<Utc>) -> Self {
        let parts = i32::try_from(PARTS).unwrap_or(i32::MAX);
        let windows = (0..WINDOWS).map(|index| Window {
            part: shortest * LONGER.pow(index.unsigned_abs()) / parts,
            looked_at: now,
            begun: now,
            least: bytes,
            done: VecDeque::new(),
        });
        Self {
            windows: windows.collect(),
        }
    }

    /// Takes a look. Returns by how many bytes the memory grew in the window in which it grew most, of
    /// those in which it grew all the time; 0 when there is none.
    pub fn observe(&mut self, bytes: i64, now: DateTime<Utc>) -> i64 {
        let grown = self.windows.iter_mut().map(|window| {
            window.observe(bytes, now);
            window.steady()
        });
        grown.max().unwrap_or(0)
    }
}

impl Window {
    fn observe(&mut self, bytes: i64, now: DateTime<Utc>) {
        let unseen = now - self.looked_at;
        self.looked_at = now;
        if unseen < TimeDelta::zero() || unseen > self.part.max(GAP) {
            self.done.clear();
            (self.begun, self.least) = (now, bytes);
            return;
        }
        if now - self.begun < self.part {
            self.least = self.least.min(bytes);
            return;
        }
        if self.done.len() == PARTS {
            self.done.pop_front();
        }
        self.done.push_back(self.least);
        (self.begun, self.least) = (now, bytes);
    }

    fn steady(&self) -> i64 {
        let (Some(first), Some(last)) = (self.done.front(), self.done.back()) else {
            return 0;
        };
        let grown = last.saturating_sub(*first);
        if self.done.len() < PARTS || grown <= 0 {
            return 0;
        }
        let least = grown as f64 / (PARTS - 1) as f64 * STEADY;
        let is_steady = self
            .done
            .iter()
            .zip(self.done.iter().skip(1))
            .all(|(before, after)| after.saturating_sub(*before) as f64 >= least);
        if is_steady { grown } else { 0 }
    }
}
