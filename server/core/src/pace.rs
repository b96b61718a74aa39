//! How long an item of a job usually takes, by earlier runs that succeeded.

use std::time::Duration;

use crate::Progress;

/// Earlier runs that are looked at, the newest first.
pub const MAX_RUNS: i64 = 20;

/// Of those that tell something, the newest so many count.
const COUNTED: usize = 5;

/// A shorter run, or one with fewer items, tells more of its start than of its items.
const SHORTEST: Duration = Duration::from_secs(60);
const FEWEST_ITEMS: f64 = 10.0;

/// Items faster than that are no work worth comparing.
const SHORTEST_ITEM: Duration = Duration::from_millis(1);

/// An earlier run that succeeded with GPUs, and did not begin at a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// It had the same command, not only the same template.
    pub same_command: bool,
    /// How long it ran.
    pub duration: Duration,
    /// How far it was at its end.
    pub progress: Progress,
}

/// How long an item usually takes.
#[derive(Clone, Debug, PartialEq)]
pub struct UsualItem {
    /// The time for one.
    pub time: Duration,
    /// What was counted.
    pub unit: String,
    /// Where it was read.
    pub source: String,
    /// All those runs had the same command.
    pub same_command: bool,
}

impl Run {
    /// Time for one of its items. The whole run and its end each tell one; the longer counts, so that
    /// neither a count that did not begin at 0 nor a quick last bar makes what follows look slow.
    fn item(&self) -> Option<Duration> {
        let Progress {
            done, unit, rate, ..
        } = &self.progress;
        if self.duration < SHORTEST || *done < FEWEST_ITEMS || unit == "%" {
            return None;
        }
        let at_end = 1.0 / rate.filter(|rate| *rate > 0.0)?;
        let longer = at_end.max(self.duration.as_secs_f64() / done);
        let item = Duration::try_from_secs_f64(longer).ok()?;
        (item >= SHORTEST_ITEM).then_some(item)
    }
}

/// The usual time for an item: the median of the newest of `runs`, which come newest first. Runs of the
/// same command count before others, and only runs that counted the same as the newest.
pub fn usual_item(runs: &[Run]) -> Option<UsualItem> {
    let told: Vec<(Duration, &Run)> = runs
        .iter()
        .filter_map(|run| Some((run.item()?, run)))
        .collect();
    let same_command = told.iter().any(|(_, run)| run.same_command);
    let (_, newest) = told
        .iter()
        .find(|(_, run)| run.same_command == same_command)?;
    let Progress { unit, source, .. } = &newest.progress;
    let mut times: Vec<Duration> = told
        .iter()
        .filter(|(_, run)| {
            let same_count = run.progress.unit == *unit && run.progress.source == *source;
            same_count && run.same_command == same_command
        })
        .map(|(time, _)| *time)
        .take(COUNTED)
        .collect();
    times.sort_unstable();
    Some(UsualItem {
        // Of two in the middle the longer one.
        time: *times.get(times.len() / 2)?,
        unit: unit.clone(),
        source: source.clone(),
        same_command,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seconds: u64, done: f64) -> Run {
        Run {
            same_command: true,
            duration: Duration::from_secs(seconds),
            progress: Progress {
                done,
                unit: "it".to_owned(),
                rate: Some(1_000.0),
                source: "tqdm".to_owned(),
                ..Progress::default()
            },
        }
    }

    fn millis(runs: &[Run]) -> Option<u128> {
        usual_item(runs).map(|usual| usual.time.as_millis())
    }

    #[test]
    fn the_median_of_the_newest_counts() {
        assert_eq!(millis(&[]), None);
        assert_eq!(millis(&[run(100, 100.0)]), Some(1_000));
        let runs = [100, 900, 200, 400, 300, 9_000].map(|seconds| run(seconds, 100.0));
        assert_eq!(millis(&runs), Some(3_000));
        assert_eq!(millis(&runs[..2]), Some(9_000));
    }

    #[test]
    fn what_says_little_of_items_does_not_count() {
        let percent = |mut run: Run| {
            run.progress.unit = "%".to_owned();
            run
        };
        let without_rate = |mut run: Run| {
            run.progress.rate = None;
            run
        };
        let quick = |mut run: Run| {
            run.progress.rate = Some(10_000.0);
            run
        };
        for run in [
            run(59, 100.0),
            run(600, 9.0),
            quick(run(100, 1_000_000.0)),
            percent(run(600, 100.0)),
            without_rate(run(600, 100.0)),
        ] {
            assert_eq!(millis(std::slice::from_ref(&run)), None, "{run:?}");
        }
    }

    #[test]
    fn a_count_that_went_on_where_another_had_ended_makes_nothing_look_slow() {
        let mut resumed = run(60, 100_000.0);
        resumed.progress.rate = Some(0.5);
        assert_eq!(millis(&[resumed]), Some(2_000));
    }

    #[test]
    fn the_same_command_counts_before_the_same_template() {
        let template = Run {
            same_command: false,
            ..run(100, 100.0)
        };
        let usual = usual_item(std::slice::from_ref(&template)).unwrap();
        assert!(!usual.same_command);
        let mut other_bar = run(700, 100.0);
        other_bar.progress.unit = "epoch".to_owned();
        let usual = usual_item(&[template, run(300, 100.0), other_bar]).unwrap();
        assert!(usual.same_command);
        assert_eq!(usual.time, Duration::from_secs(3));
    }
}
