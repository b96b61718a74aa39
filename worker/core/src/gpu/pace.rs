//! Whether a job takes many times longer for its items than earlier runs did, while its GPUs hardly work.
//! A program can fall back to its processors for most of what it does and use a GPU for the rest.

use std::time::Duration;

use super::idle::LONGEST_LOOK;
use crate::progress::Reading;

/// How many times longer than usual an item must take.
const SLOWER: f64 = 10.0;

/// Items that must be as slow as that one after the other: one alone is a validation or a checkpoint.
const LEAST_ITEMS: f64 = 3.0;

/// Share of time in which a GPU computes from which on it is used.
const HARDLY_BUSY: f64 = 0.05;

/// How long an item took in earlier runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Usual {
    /// The time for one.
    pub item: Duration,
    /// What was counted.
    pub unit: String,
    /// Where it was read.
    pub source: String,
    /// Those runs had the same command, not only the same template.
    pub same_command: bool,
}

/// What GPUs did for a job around one look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GpuShare {
    /// The busiest of them computed for this share of the time.
    Busy(f64),
    /// The driver never tells that.
    Unreadable,
    /// The driver cannot be asked now.
    Unknown,
}

/// What was seen of a job at one look.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// How far it is.
    pub progress: Option<&'a Reading>,
    /// Its GPUs.
    pub gpu: GpuShare,
    /// Its processors worked since the look before.
    pub computes: bool,
}

/// Measures how long items take.
#[derive(Clone, Debug, Default)]
pub struct PaceWatch {
    looked_at: Option<Duration>,
    /// The count when it last grew.
    done: Option<f64>,
    /// Time in which it computed since then.
    step: Duration,
    /// Time for the slow items so far, and their number.
    slow: Duration,
    items: f64,
}

impl PaceWatch {
    /// Takes a look at `now`, a monotonic time. Returns the time for an item once all items of a span
    /// of at least `window` in which the job computed, and at least three, were many times slower than
    /// usual and its GPUs hardly worked all the while. One item at a better pace begins that anew.
    pub fn observe(
        &mut self,
        look: Look<'_>,
        usual: &Usual,
        window: Duration,
        now: Duration,
    ) -> Option<Duration> {
        let before = self.looked_at.replace(now);
        let counted = look.progress.filter(|reading| {
            reading.unit == usual.unit && reading.source.as_str() == usual.source
        });
        let without_gpu = match look.gpu {
            GpuShare::Busy(share) => share < HARDLY_BUSY,
            // With another command, slow items alone say nothing.
            GpuShare::Unreadable => usual.same_command,
            GpuShare::Unknown => false,
        };
        let (Some(reading), Some(before), true) = (counted, before, without_gpu) else {
            self.begin(counted.map(|reading| reading.done));
            return None;
        };
        let Some(items) = self.done.map(|done| reading.done - done) else {
            self.begin(Some(reading.done));
            return None;
        };
        if look.computes {
            self.step += now.saturating_sub(before).min(LONGEST_LOOK);
        }
        if items == 0.0 {
            return None;
        }
        let at_least = usual.item.as_secs_f64() * SLOWER * items;
        // A count that falls is that of another bar.
        if items < 0.0 || self.step.as_secs_f64() < at_least {
            self.begin(Some(reading.done));
            return None;
        }
        self.slow += std::mem::take(&mut self.step);
        self.items += items;
        self.done = Some(reading.done);
        let found = self.items >= LEAST_ITEMS && self.slow >= window;
        found.then(|| self.slow.div_f64(self.items))
    }

    fn begin(&mut self, done: Option<f64>) {
        *self = Self {
            looked_at: self.looked_at,
            done,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Source;

    const WINDOW: Duration = Duration::from_secs(900);
    const EVERY: u64 = 5;

    fn usual() -> Usual {
        Usual {
            item: Duration::from_secs(2),
            unit: "it".to_owned(),
            source: "tqdm".to_owned(),
            same_command: true,
        }
    }

    /// Looks for three hours at a job that has done so many items after so many seconds; returns after
    /// how many seconds it was found, with the time for an item.
    fn found(
        usual: &Usual,
        gpu: impl Fn(u64) -> GpuShare,
        computes: bool,
        done: impl Fn(u64) -> f64,
    ) -> Option<(u64, Duration)> {
        let mut watch = PaceWatch::default();
        (0..3 * 3_600).step_by(EVERY as usize).find_map(|second| {
            let reading = Reading {
                done: done(second),
                total: 0.0,
                unit: "it".to_owned(),
                percent: None,
                rate: None,
                eta: None,
                message: String::new(),
                source: Source::Tqdm,
                at: Duration::from_secs(second),
            };
            let look = Look {
                progress: Some(&reading),
                gpu: gpu(second),
                computes,
            };
            let now = Duration::from_secs(second);
            let item = watch.observe(look, usual, WINDOW, now)?;
            Some((second, item))
        })
    }

    fn each(seconds: f64) -> impl Fn(u64) -> f64 {
        move |second| (second as f64 / seconds).floor()
    }

    fn idle(_: u64) -> GpuShare {
        GpuShare::Busy(0.02)
    }

    #[test]
    fn items_that_take_ten_times_longer_are_found_after_the_window() {
        let (second, item) = found(&usual(), idle, true, each(25.0)).unwrap();
        assert_eq!((second, item), (900, Duration::from_secs(25)));
        // At least three of them.
        let (second, _) = found(&usual(), idle, true, each(700.0)).unwrap();
        assert_eq!(second, 2_100);
        let unreadable = |_| GpuShare::Unreadable;
        assert!(found(&usual(), unreadable, true, each(25.0)).is_some());
    }

    #[test]
    fn nothing_else_is() {
        let usual = usual();
        assert_eq!(found(&usual, idle, true, each(15.0)), None, "not as slow");
        assert_eq!(found(&usual, idle, false, each(25.0)), None, "it waits");
        assert_eq!(found(&usual, idle, true, |_| 7.0), None, "no item at all");
        let busy = |second| GpuShare::Busy(if second % 600 == 0 { 0.3 } else { 0.0 });
        assert_eq!(found(&usual, busy, true, each(25.0)), None, "it is used");
        let hung = |_| GpuShare::Unknown;
        assert_eq!(found(&usual, hung, true, each(25.0)), None);
        let other = Usual {
            same_command: false,
            ..usual.clone()
        };
        let unreadable = |_| GpuShare::Unreadable;
        assert_eq!(found(&other, unreadable, true, each(25.0)), None);
        let other = Usual {
            unit: "epoch".to_owned(),
            ..usual
        };
        assert_eq!(found(&other, idle, true, each(25.0)), None);
    }

    #[test]
    fn a_validation_after_each_epoch_and_a_slow_beginning_are_none() {
        // Twenty minutes of each half hour nothing is counted, then a hundred items in 10.
        let epochs = |second: u64| {
            let (epoch, within) = (second / 1_800, second % 1_800);
            (epoch * 100) as f64 + (within.saturating_sub(1_200) as f64 / 6.0).floor()
        };
        assert_eq!(found(&usual(), idle, true, epochs), None);
        // The first two items compile something.
        let begins = |second: u64| match second {
            0..500 => 0.0,
            500..1_000 => 1.0,
            1_000..1_003 => 2.0,
            _ => 2.0 + (second - 1_000) as f64 / 2.0,
        };
        assert_eq!(found(&usual(), idle, true, begins), None);
        // Bars of ten items, one after the other.
        let bars = |second: u64| (second as f64 / 250.0 % 3.0).floor();
        assert_eq!(found(&usual(), idle, true, bars), None);
    }
}
