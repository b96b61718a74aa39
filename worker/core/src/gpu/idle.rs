//! Whether a job that was given GPUs uses them. A program that finds no GPU often goes on with its
//! processors, many times slower and without a word.

use std::time::Duration;

use super::GpuReading;

/// How long a job may leave its GPUs unused, unless something else is said.
pub const DEFAULT_WINDOW: Duration = Duration::from_secs(15 * 60);

/// Processors, kept busy or waited for, from which on a job computes.
const BUSY_CPUS: f64 = 0.5;

/// Processors that it must have kept busy of these: one that gets next to nothing may only be late.
const LEAST_CPUS: f64 = 0.1;

/// Bytes a second, read and written, from which on a job fetches or unpacks data.
const BUSY_BYTES: f64 = 1_000_000.0;

/// Windows that may pass in all while a job fetches or unpacks data.
const PREPARING: u32 = 6;

/// Longest time that one look stands for. What a machine slept through is not counted.
pub(super) const LONGEST_LOOK: Duration = Duration::from_secs(15);

/// How long a job may leave its GPUs unused; `None` for ever. What the job says counts before what its
/// worker says, and that before what holds in general. Zero is somebody's word for "for ever".
pub fn window(
    job: Option<Duration>,
    worker: Option<Duration>,
    general: Option<Duration>,
) -> Option<Duration> {
    let window = job.or(worker).or(general).unwrap_or(DEFAULT_WINDOW);
    (!window.is_zero()).then_some(window)
}

/// Whether GPUs work for a job, and how that is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuWork {
    /// Share of time in which the busiest of those computed that do; 0 when none does.
    pub busy: f64,
    /// Whose work it would be is not told.
    pub hidden: bool,
}

/// What a job did around one look.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Use {
    /// It used a GPU of its own; `None` when the platform does not tell.
    pub gpu: Option<bool>,
    /// Processors that it kept busy.
    pub cpus: Option<f64>,
    /// Processors that it would have kept busy besides, had others left it any.
    pub cpus_waited_for: f64,
    /// Bytes a second that it read and wrote.
    pub bytes: f64,
}

impl GpuWork {
    /// One of them works.
    pub fn works(&self) -> bool {
        self.busy > 0.0
    }
}

impl Use {
    /// Whether its processors worked, or would have, had it been alone on its machine.
    pub fn computes(&self) -> bool {
        self.cpus
            .is_some_and(|cpus| cpus >= LEAST_CPUS && cpus + self.cpus_waited_for >= BUSY_CPUS)
    }

    /// Whether one of `gpus` worked for the processes of a tree. Where the platform hides which
    /// processes use a GPU, or names one of which `is_known` says that nobody can tell here what it is,
    /// the work of any of them counts.
    pub fn of_gpu(
        gpus: &[&GpuReading],
        tree: &[u32],
        is_known: impl Fn(u32) -> bool,
    ) -> Option<GpuWork> {
        // One that cannot be read may be the one that works.
        if gpus.is_empty() || gpus.iter().any(|gpu| gpu.busy.is_none()) {
            return None;
        }
        let users = |gpu: &GpuReading| -> Option<Vec<u32>> {
            let users = gpu.processes.clone()?;
            users.iter().all(|pid| is_known(*pid)).then_some(users)
        };
        let is_mine = |gpu: &&&GpuReading| match users(gpu) {
            Some(users) if !users.is_empty() => users.iter().any(|pid| tree.contains(pid)),
            _ => true,
        };
        let own = gpus.iter().filter(is_mine).filter_map(|gpu| gpu.busy);
        Some(GpuWork {
            busy: own.fold(0.0, f64::max),
            hidden: gpus.iter().any(|gpu| users(gpu).is_none()),
        })
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
        } else if used.bytes >= BUSY_BYTES || used.computes() {
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
            ..Use::default()
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
    fn a_job_that_others_crowd_out_computes_all_the_same() {
        let crowded = |cpus, cpus_waited_for| Use {
            cpus_waited_for,
            ..job(Some(false), cpus, 0.0)
        };
        for (used, found) in [
            (crowded(0.3, 0.6), Some(120)),
            (crowded(0.3, 0.1), None),
            // It wakes often and each time has to queue, but has little to do.
            (crowded(0.05, 5.0), None),
        ] {
            let mut watch = IdleWatch::default();
            watch.observe(Use::default(), WINDOW, Duration::ZERO);
            assert_eq!(looks(&mut watch, used, 1_000), found, "{used:?}");
        }
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
    fn a_pause_does_not_count_and_does_not_begin_the_window_anew() {
        let mut watch = IdleWatch::default();
        watch.observe(Use::default(), WINDOW, Duration::ZERO);
        let computes = job(Some(false), 8.0, 0.0);
        assert_eq!(looks(&mut watch, computes, 100), None);
        assert_eq!(looks(&mut watch, job(Some(false), 0.0, 0.0), 10_000), None);
        assert_eq!(looks(&mut watch, computes, 100), Some(20));
    }

    #[test]
    fn the_most_particular_word_counts_and_off_is_one() {
        let minutes = |count: u64| Some(Duration::from_secs(count * 60));
        assert_eq!(window(None, None, None), Some(DEFAULT_WINDOW));
        assert_eq!(window(None, None, minutes(5)), minutes(5));
        assert_eq!(window(None, minutes(7), minutes(5)), minutes(7));
        assert_eq!(window(minutes(9), minutes(7), minutes(5)), minutes(9));
        assert_eq!(window(minutes(0), minutes(7), None), None);
        assert_eq!(window(minutes(9), minutes(0), None), minutes(9));
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
        let of = |gpus: &[&GpuReading]| Use::of_gpu(gpus, &[7, 8], |pid| pid < 100);
        let mine = |gpu: &GpuReading| of(&[gpu]).map(|work| work.works());
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
        let hides = |processes| of(&[&gpu(Some(0.0), processes)]).map(|work| work.hidden);
        assert_eq!(hides(None), Some(true));
        assert_eq!(hides(Some(vec![123_456])), Some(true));
        assert_eq!(hides(Some(vec![])), Some(false));
        assert_eq!(hides(Some(vec![9])), Some(false));
        // One that cannot be read may be the one that works.
        assert_eq!(of(&[&gpu(Some(0.0), None), &gpu(None, None)]), None);
        assert_eq!(of(&[]), None);
    }
}
