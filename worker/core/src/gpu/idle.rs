//! Whether a job that was given GPUs uses them. A program that finds no GPU often goes on with its
//! processors, many times slower and without a word.

use std::time::Duration;

use super::GpuReading;

/// How long a job may leave its GPUs unused, unless something else is said.
pub const DEFAULT_WINDOW: Duration = Duration::from_secs(600);

/// Processors kept busy from which on a job computes.
pub const BUSY_CPUS: f64 = 0.5;

/// Bytes a second, read and written, from which on a job fetches or unpacks data.
const BUSY_BYTES: f64 = 1_000_000.0;

/// Windows that may pass in all while a job fetches or unpacks data.
pub const PREPARING: u32 = 6;

/// Longest time that one look stands for. What a machine slept through is not counted.
const LONGEST_LOOK: Duration = Duration::from_secs(15);

/// What a job did around one look.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Use {
    /// It used a GPU of its own; `None` when the platform does not tell.
    pub gpu: Option<bool>,
    /// Processors that it kept busy.
    pub cpus: Option<f64>,
    /// Bytes a second that it read and wrote.
    pub bytes: f64,
}

impl Use {
    /// Whether one of `gpus` worked for the processes of a tree. Where the platform hides which
    /// processes use a GPU, or names some that do not exist here, the work of any of them counts.
    pub fn of_gpu(
        gpus: &[&GpuReading],
        tree: &[u32],
        exists: impl Fn(u32) -> bool,
    ) -> Option<bool> {
        let mut readable = gpus.iter().filter(|gpu| gpu.busy.is_some()).peekable();
        readable.peek()?;
        Some(readable.any(|gpu| {
            let works = gpu.busy.is_some_and(|busy| busy > 0.0);
            let users = gpu.processes.as_deref().unwrap_or_default();
            let is_told = !users.is_empty() && users.iter().all(|pid| exists(*pid));
            works && (!is_told || users.iter().any(|pid| tree.contains(pid)))
        }))
    }
}

/// Counts how long a job has computed without its GPUs.
#[derive(Clone, Debug, Default)]
pub struct IdleWatch {
    looked_at: Option<Duration>,
    /// Time without its GPUs in which its processors worked.
    unused: Duration,
    /// Time without its GPUs in which it fetched or unpacked data.
    preparing: Duration,
}

impl IdleWatch {
    /// Takes a look at `now`, a monotonic time. Returns how long the GPUs were not used once that
    /// reaches `window`, counted from the start or from their last use.
    pub fn observe(&mut self, used: Use, window: Duration, now: Duration) -> Option<Duration> {
        let before = self.looked_at.replace(now)?;
        let passed = now.saturating_sub(before).min(LONGEST_LOOK);
        match used.gpu {
            // What nobody can see is not held against it.
            None => return None,
            Some(true) => {
                *self = Self {
                    looked_at: Some(now),
                    ..Self::default()
                };
                return None;
            }
            Some(false) => {}
        }
        if used.bytes >= BUSY_BYTES && self.preparing < window * PREPARING {
            self.preparing += passed;
        } else if used.bytes >= BUSY_BYTES || used.cpus.is_some_and(|cpus| cpus >= BUSY_CPUS) {
            self.unused += passed;
        }
        (self.unused >= window).then_some(self.unused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(600);

    /// How many looks, 5 seconds apart, until a job that goes on like this is found.
    fn looks(watch: &mut IdleWatch, used: Use, most: u32) -> Option<u32> {
        let begun = watch.looked_at.unwrap_or_default();
        (1..=most).find(|look| {
            let now = begun + Duration::from_secs(5) * *look;
            watch.observe(used, WINDOW, now).is_some()
        })
    }

    fn job(gpu: Option<bool>, cpus: f64, bytes: f64) -> Use {
        Use {
            gpu,
            cpus: Some(cpus),
            bytes,
        }
    }

    #[test]
    fn a_job_that_computes_without_its_gpu_is_found_after_the_window() {
        let mut watch = IdleWatch::default();
        watch.observe(Use::default(), WINDOW, Duration::ZERO);
        assert_eq!(
            looks(&mut watch, job(Some(false), 7.9, 0.0), 200),
            Some(120)
        );
    }

    #[test]
    fn its_last_use_begins_the_window_anew() {
        let mut watch = IdleWatch::default();
        watch.observe(Use::default(), WINDOW, Duration::ZERO);
        assert_eq!(looks(&mut watch, job(Some(false), 1.0, 0.0), 119), None);
        assert_eq!(looks(&mut watch, job(Some(true), 1.0, 0.0), 1), None);
        assert_eq!(
            looks(&mut watch, job(Some(false), 1.0, 0.0), 200),
            Some(120)
        );
    }

    #[test]
    fn waiting_is_no_fall_back_and_what_is_hidden_is_not_judged() {
        for used in [
            job(Some(false), 0.1, 0.0),
            job(None, 8.0, 0.0),
            job(Some(true), 8.0, 9e9),
            Use::default(),
        ] {
            let mut watch = IdleWatch::default();
            assert_eq!(looks(&mut watch, used, 10_000), None, "{used:?}");
        }
    }

    #[test]
    fn data_may_be_fetched_for_long_but_not_for_ever() {
        let mut watch = IdleWatch::default();
        watch.observe(Use::default(), WINDOW, Duration::ZERO);
        let fetching = job(Some(false), 0.1, 5e6);
        assert_eq!(looks(&mut watch, fetching, 10_000), Some(7 * 120));
    }

    #[test]
    fn a_sleep_of_the_machine_does_not_count() {
        let mut watch = IdleWatch::default();
        watch.observe(Use::default(), WINDOW, Duration::ZERO);
        let night = Duration::from_secs(30_000);
        assert_eq!(
            watch.observe(job(Some(false), 8.0, 0.0), WINDOW, night),
            None
        );
    }

    #[test]
    fn whose_work_it_is_counts_where_the_platform_tells() {
        let gpu = |busy, processes| GpuReading {
            busy,
            processes,
            ..GpuReading::default()
        };
        let mine = |gpu: &GpuReading| Use::of_gpu(&[gpu], &[7, 8], |pid| pid < 100);
        assert_eq!(mine(&gpu(None, Some(vec![7]))), None, "not readable");
        assert_eq!(mine(&gpu(Some(0.0), Some(vec![7]))), Some(false));
        assert_eq!(mine(&gpu(Some(0.3), Some(vec![8, 9]))), Some(true));
        assert_eq!(
            mine(&gpu(Some(0.3), Some(vec![9]))),
            Some(false),
            "another's"
        );
        // Hidden, or numbered by another namespace: the card's work is all that is known.
        for hidden in [None, Some(vec![]), Some(vec![123_456])] {
            assert_eq!(mine(&gpu(Some(0.3), hidden)), Some(true));
        }
    }
}
