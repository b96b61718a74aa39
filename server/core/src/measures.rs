//! What attempts and machines use: figures of every few seconds, summed up by the minute.

use chrono::{DateTime, DurationRound, TimeDelta, Utc};

/// What the processes of an attempt use. An absent figure could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AttemptMeasures {
    /// Processors kept busy, 1.0 for one.
    pub cpus: Option<f64>,
    /// Resident memory in bytes.
    pub resident_bytes: i64,
    /// Memory that no file backs, in bytes.
    pub anonymous_bytes: Option<i64>,
    /// Bytes a second read from storage.
    pub read_rate: Option<f64>,
    /// Bytes a second written to storage.
    pub write_rate: Option<f64>,
    /// Processes that live.
    pub processes: i32,
    /// Their threads.
    pub threads: i32,
    /// Ended processes that nobody waited for.
    pub zombies: i32,
    /// Processes that wait for a device and take no signal.
    pub uninterruptible: i32,
    /// Mean share of time in which its GPUs computed, 0 to 1.
    pub gpu_busy: Option<f64>,
    /// Memory in use on its GPUs, in bytes.
    pub gpu_memory_bytes: Option<i64>,
}

/// What a machine uses. An absent figure could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MachineMeasures {
    /// Share of all processors that was busy, 0 to 1.
    pub busy: Option<f64>,
    /// One-minute load average.
    pub load: Option<f64>,
    /// Memory that can be had without swapping, in bytes.
    pub memory_available_bytes: Option<i64>,
    /// All memory, in bytes.
    pub memory_total_bytes: Option<i64>,
    /// Swap space in use, in bytes.
    pub swap_used_bytes: Option<i64>,
    /// Free bytes on the file system that the worker writes to.
    pub disk_free_bytes: Option<i64>,
    /// All bytes of it.
    pub disk_total_bytes: Option<i64>,
    /// Mean share of time in which its GPUs computed, 0 to 1.
    pub gpu_busy: Option<f64>,
    /// Memory in use on its GPUs, in bytes.
    pub gpu_memory_bytes: Option<i64>,
    /// Temperature of its hottest GPU in degrees Celsius.
    pub gpu_temperature: Option<i32>,
}

/// Figures that can be summed up: shares and rates by their mean, amounts by their peak.
pub trait SumUp: Copy {
    /// Adds `other` to `self`, which sums up `count` others.
    fn add(&mut self, other: &Self, count: u32);
    /// The higher of each figure.
    fn peak(&mut self, other: &Self);
}

fn mean(sum: &mut Option<f64>, other: Option<f64>, count: u32) {
    *sum = match (*sum, other) {
        (Some(sum), Some(other)) => Some(sum + (other - sum) / f64::from(count + 1)),
        (sum, other) => sum.or(other),
    };
}

fn highest<T: PartialOrd + Copy>(most: &mut Option<T>, other: Option<T>) {
    if let Some(other) = other
        && most.is_none_or(|most| other > most)
    {
        *most = Some(other);
    }
}

fn lowest<T: PartialOrd + Copy>(least: &mut Option<T>, other: Option<T>) {
    if let Some(other) = other
        && least.is_none_or(|least| other < least)
    {
        *least = Some(other);
    }
}

impl SumUp for AttemptMeasures {
    fn add(&mut self, other: &Self, count: u32) {
        let Self {
            cpus,
            read_rate,
            write_rate,
            gpu_busy,
            ..
        } = *self;
        self.peak(other);
        (self.cpus, self.read_rate, self.write_rate, self.gpu_busy) =
            (cpus, read_rate, write_rate, gpu_busy);
        mean(&mut self.cpus, other.cpus, count);
        mean(&mut self.read_rate, other.read_rate, count);
        mean(&mut self.write_rate, other.write_rate, count);
        mean(&mut self.gpu_busy, other.gpu_busy, count);
    }

    fn peak(&mut self, other: &Self) {
        highest(&mut self.cpus, other.cpus);
        self.resident_bytes = self.resident_bytes.max(other.resident_bytes);
        highest(&mut self.anonymous_bytes, other.anonymous_bytes);
        highest(&mut self.read_rate, other.read_rate);
        highest(&mut self.write_rate, other.write_rate);
        self.processes = self.processes.max(other.processes);
        self.threads = self.threads.max(other.threads);
        self.zombies = self.zombies.max(other.zombies);
        self.uninterruptible = self.uninterruptible.max(other.uninterruptible);
        highest(&mut self.gpu_busy, other.gpu_busy);
        highest(&mut self.gpu_memory_bytes, other.gpu_memory_bytes);
    }
}

impl SumUp for MachineMeasures {
    fn add(&mut self, other: &Self, count: u32) {
        let Self {
            busy,
            load,
            gpu_busy,
            ..
        } = *self;
        self.peak(other);
        (self.busy, self.load, self.gpu_busy) = (busy, load, gpu_busy);
        mean(&mut self.busy, other.busy, count);
        mean(&mut self.load, other.load, count);
        mean(&mut self.gpu_busy, other.gpu_busy, count);
    }

    fn peak(&mut self, other: &Self) {
        highest(&mut self.busy, other.busy);
        highest(&mut self.load, other.load);
        // What matters about room is how little of it there was.
        lowest(
            &mut self.memory_available_bytes,
            other.memory_available_bytes,
        );
        highest(&mut self.memory_total_bytes, other.memory_total_bytes);
        highest(&mut self.swap_used_bytes, other.swap_used_bytes);
        lowest(&mut self.disk_free_bytes, other.disk_free_bytes);
        highest(&mut self.disk_total_bytes, other.disk_total_bytes);
        highest(&mut self.gpu_busy, other.gpu_busy);
        highest(&mut self.gpu_memory_bytes, other.gpu_memory_bytes);
        highest(&mut self.gpu_temperature, other.gpu_temperature);
    }
}

/// A minute's figures under way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Minute<M> {
    start: DateTime<Utc>,
    sum: M,
    count: u32,
}

impl<M: SumUp> Minute<M> {
    /// A minute that begins with these figures of the time `now`.
    pub fn begin(now: DateTime<Utc>, first: M) -> Self {
        Self {
            start: minute_of(now),
            sum: first,
            count: 1,
        }
    }

    /// Takes further figures. Returns the minute before, with its start, when another has begun.
    pub fn take(&mut self, now: DateTime<Utc>, figures: M) -> Option<(DateTime<Utc>, M)> {
        if minute_of(now) == self.start {
            self.sum.add(&figures, self.count);
            self.count += 1;
            return None;
        }
        let done = (self.start, self.sum);
        *self = Self::begin(now, figures);
        Some(done)
    }

    /// The figures so far, and the minute's start.
    pub fn so_far(&self) -> (DateTime<Utc>, M) {
        (self.start, self.sum)
    }
}

fn minute_of(time: DateTime<Utc>) -> DateTime<Utc> {
    time.duration_trunc(TimeDelta::minutes(1)).unwrap_or(time)
}

/// Sums figures in order of time up to at most `most` points that cover equal parts of the time. Each
/// point carries the middle of its part.
pub fn points<M: SumUp>(figures: &[(DateTime<Utc>, M)], most: usize) -> Vec<(DateTime<Utc>, M)> {
    let (Some((first, _)), Some((last, _))) = (figures.first(), figures.last()) else {
        return Vec::new();
    };
    if figures.len() <= most {
        return figures.to_vec();
    }
    let whole = (*last - *first).num_milliseconds().max(1) + 1;
    let most = i64::try_from(most.max(1)).unwrap_or(i64::MAX);
    let mut parts: Vec<(i64, M, u32)> = Vec::new();
    for (time, figure) in figures {
        let part = (*time - *first).num_milliseconds() * most / whole;
        match parts.last_mut() {
            Some((of, sum, count)) if *of == part => {
                sum.add(figure, *count);
                *count += 1;
            }
            _ => parts.push((part, *figure, 1)),
        }
    }
    parts
        .into_iter()
        .map(|(part, sum, _)| {
            let middle = (2 * part + 1) * whole / (2 * most);
            (*first + TimeDelta::milliseconds(middle), sum)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn used(cpus: f64, bytes: i64) -> AttemptMeasures {
        AttemptMeasures {
            cpus: Some(cpus),
            resident_bytes: bytes,
            ..AttemptMeasures::default()
        }
    }

    #[test]
    fn a_minute_has_the_mean_of_rates_and_the_peak_of_amounts() {
        let mut minute = Minute::begin(at(0), used(1.0, 10));
        assert_eq!(minute.take(at(5), used(2.0, 30)), None);
        assert_eq!(minute.take(at(59), used(3.0, 20)), None);
        let (start, done) = minute.take(at(60), used(9.0, 1)).unwrap();
        assert_eq!((start, done), (at(0), used(2.0, 30)));
        assert_eq!(minute.so_far(), (at(60), used(9.0, 1)));
    }

    #[test]
    fn an_absent_figure_is_no_zero() {
        let mut minute = Minute::begin(at(0), AttemptMeasures::default());
        assert_eq!(minute.so_far().1.cpus, None);
        minute.take(at(5), used(2.0, 0));
        minute.take(at(10), AttemptMeasures::default());
        assert_eq!(minute.so_far().1.cpus, Some(2.0));
    }

    #[test]
    fn room_is_judged_by_its_least() {
        let room = |bytes| MachineMeasures {
            memory_available_bytes: Some(bytes),
            ..MachineMeasures::default()
        };
        let mut minute = Minute::begin(at(0), room(5));
        minute.take(at(5), room(2));
        minute.take(at(10), room(7));
        assert_eq!(minute.so_far().1.memory_available_bytes, Some(2));
    }

    #[test]
    fn many_figures_become_few_points() {
        let figures: Vec<_> = (0..600)
            .map(|minute| (at(minute * 60), used(minute as f64, minute)))
            .collect();
        let few = points(&figures, 10);
        assert_eq!(few.len(), 10);
        assert!(few.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(few[9].1.resident_bytes, 599);
        assert_eq!(few[0].1.cpus, Some(29.5));
        assert_eq!(points(&figures[..3], 10), &figures[..3]);
        assert!(points::<AttemptMeasures>(&[], 10).is_empty());
        assert_eq!(points(&figures, 0).len(), 1);
    }
}
