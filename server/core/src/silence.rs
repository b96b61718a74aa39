//! Silence of running attempts: what a job says about it, what its worker tells of it, and which of
//! that people are to be told.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::outcome::words;
use crate::spec::{SpecError, micros};

/// Shortest and longest silence of a stage: a second, and ten years.
const STAGE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(10 * 366 * 24 * 60 * 60);

/// Processes that are told of at most.
pub const MAX_PROCESSES: usize = 5;

/// What counts as a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Counts {
    /// Output and reports of progress.
    Output,
    /// The use of processors, files and GPUs as well.
    Activity,
}

/// When an attempt counts as silent. What is not said is left to others; zero means never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rules {
    /// Silence after which people are told.
    #[serde(with = "micros")]
    pub warn_after: Option<Duration>,
    /// Silence after which they are told again, without a sound.
    #[serde(with = "micros")]
    pub remind_after: Option<Duration>,
    /// Silence after which the attempt is stopped.
    #[serde(with = "micros")]
    pub stop_after: Option<Duration>,
    /// What counts as a sign of life.
    pub counts: Option<Counts>,
}

impl Rules {
    /// Checks that the stages are possible and come in their order.
    ///
    /// # Errors
    /// The first that does not, named relative to the spec.
    pub fn validate(&self) -> Result<(), SpecError> {
        let mut before: Option<(&str, Duration)> = None;
        for (name, length) in [
            ("warn_after", self.warn_after),
            ("remind_after", self.remind_after),
            ("stop_after", self.stop_after),
        ] {
            let Some(length) = length.filter(|length| !length.is_zero()) else {
                continue;
            };
            if !STAGE.contains(&length) {
                return Err(SpecError::new(
                    format!("silence.{name}"),
                    "is not between a second and ten years",
                    "0 means that it never comes",
                ));
            }
            if let Some((earlier, at)) = before
                && at >= length
            {
                return Err(SpecError::new(
                    format!("silence.{name}"),
                    format!("is not longer than {earlier}"),
                    "warning, reminder and stop follow each other",
                ));
            }
            before = Some((name, length));
        }
        Ok(())
    }
}

/// How far a silence has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// People are told.
    Warned,
    /// They are told again.
    Reminded,
    /// The stop is seconds away.
    Ending,
    /// There was a sign of life.
    Over,
}

/// What an attempt does while it is silent. What could not be found out is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evidence {
    /// How long it has used next to no processor time.
    #[serde(with = "micros")]
    pub cpu_still: Option<Duration>,
    /// How long it has read and written next to nothing.
    #[serde(with = "micros")]
    pub io_still: Option<Duration>,
    /// How long its GPUs did next to nothing.
    #[serde(with = "micros")]
    pub gpu_still: Option<Duration>,
    /// Its deepest processes, the deepest first.
    pub processes: Vec<SilentProcess>,
    /// Where a Python program stands.
    pub stack: String,
    /// The last lines of its output.
    pub last_lines: String,
}

/// A process of a silent attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SilentProcess {
    /// Process id.
    pub pid: i32,
    /// Its command line, cut.
    pub command: String,
    /// Its state as `/proc` letters it.
    pub state: String,
    /// Where in the kernel it waits; empty when nobody knows.
    pub wait_channel: String,
}

/// The newest silence of an attempt that came as far as any stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Counts the silences of the attempt, from 1.
    pub episode: i32,
    /// How far it has come.
    pub stage: Stage,
    /// The last sign of life before it.
    pub since: DateTime<Utc>,
    /// After which silence the attempt is stopped, if it is.
    #[serde(default, with = "micros")]
    pub stop_after: Option<Duration>,
    /// What the attempt did, as far as anybody has looked.
    #[serde(default)]
    pub evidence: Option<Evidence>,
}

/// What a worker tells of a silence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Counts the silences of the attempt, from 1.
    pub episode: i32,
    /// How far it has come.
    pub stage: Stage,
    /// How long it has lasted.
    pub lasted: Duration,
    /// When, by the worker's clock.
    pub at: Option<DateTime<Utc>>,
    /// After which silence the attempt is stopped, if it is.
    pub stop_after: Option<Duration>,
    /// What the attempt does, if anybody has looked.
    pub evidence: Option<Evidence>,
}

/// What a silent attempt does, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Nobody could see.
    Unknown,
    /// A GPU of it works.
    Gpu,
    /// It computes.
    Computes,
    /// It reads or writes.
    Transfers,
    /// It waits for a device, and takes no signal.
    Device,
    /// Nothing at all.
    Nothing,
}

words!(Doing {
    Unknown = "unknown",
    Gpu = "gpu",
    Computes = "computes",
    Transfers = "transfers",
    Device = "device",
    Nothing = "nothing",
});

impl Evidence {
    /// What the attempt does in a silence that has lasted so long.
    pub fn doing(&self, lasted: Duration) -> Doing {
        // What moved in the latter half of the silence still moves, as far as a look every few
        // seconds can tell.
        let moved = |still: Option<Duration>| still.map(|still| still.saturating_mul(2) < lasted);
        match (
            moved(self.gpu_still),
            moved(self.cpu_still),
            moved(self.io_still),
        ) {
            (Some(true), _, _) => Doing::Gpu,
            (_, Some(true), _) => Doing::Computes,
            (_, _, Some(true)) => Doing::Transfers,
            _ if self.processes.iter().any(|process| process.state == "D") => Doing::Device,
            (_, Some(false), _) => Doing::Nothing,
            _ => Doing::Unknown,
        }
    }

    /// The last line of its output.
    pub fn last_line(&self) -> &str {
        self.last_lines.lines().last().unwrap_or_default()
    }

    /// The same for the history: what it does, and its deepest processes.
    fn sentence(&self, lasted: Duration) -> String {
        let mut sentence = match self.doing(lasted) {
            Doing::Unknown => String::new(),
            Doing::Gpu => "; its GPU works".to_owned(),
            Doing::Computes => "; it computes".to_owned(),
            Doing::Transfers => "; it reads or writes".to_owned(),
            Doing::Device => "; it waits for a device".to_owned(),
            Doing::Nothing => "; it uses no processor".to_owned(),
        };
        if let Some(deepest) = self.processes.first() {
            sentence.push_str(&format!("; process {}", deepest.pid));
            let words: Vec<&str> = [&deepest.command, &deepest.wait_channel]
                .into_iter()
                .map(String::as_str)
                .filter(|word| !word.is_empty())
                .collect();
            if !words.is_empty() {
                sentence.push_str(&format!(" ({})", words.join(", in ")));
            }
        }
        sentence
    }
}

impl State {
    /// When the attempt is stopped unless there is a sign of life.
    pub fn stop_at(&self) -> Option<DateTime<Utc>> {
        let after = TimeDelta::from_std(self.stop_after?).ok()?;
        self.since.checked_add_signed(after)
    }
}

/// What follows from what a worker tells: the new state, and whether it is a step that was not known.
/// `None` when it is known already.
pub fn step(before: Option<&State>, told: &Told, now: DateTime<Utc>) -> Option<(State, bool)> {
    let at = told.at.unwrap_or(now).min(now);
    let lasted = TimeDelta::from_std(told.lasted).unwrap_or(TimeDelta::MAX);
    let mut state = State {
        episode: told.episode,
        stage: told.stage,
        since: at.checked_sub_signed(lasted).unwrap_or(at),
        stop_after: told.stop_after,
        evidence: told.evidence.clone(),
    };
    let Some(before) = before else {
        // Of a silence that is over nobody was told.
        return (told.stage != Stage::Over).then_some((state, true));
    };
    let place = |state: &State| (state.episode, state.stage);
    if place(&state) < place(before) {
        return None;
    }
    let is_new = place(&state) > place(before);
    if state.episode == before.episode {
        state.since = before.since;
        state.evidence = state.evidence.or_else(|| before.evidence.clone());
    }
    (is_new || state.evidence != before.evidence).then_some((state, is_new))
}

/// A step of a silence as the history tells it: one word, and a sentence. Nothing of a stop that is
/// near: the stop itself follows.
pub fn entry(told: &Told) -> Option<(&'static str, String)> {
    let lasted = shown(told.lasted);
    match told.stage {
        Stage::Warned | Stage::Reminded => {
            let does = told.evidence.as_ref();
            let does = does.map_or_else(String::new, |found| found.sentence(told.lasted));
            let stop = told.stop_after.map_or_else(String::new, |stop| {
                format!("; it is stopped after {}", shown(stop))
            });
            Some(("silent", format!("silent for {lasted}{does}{stop}")))
        }
        Stage::Over => Some(("heard", format!("heard of again after {lasted} of silence"))),
        Stage::Ending => None,
    }
}

/// A length in whole seconds, minutes or hours, the way people say it.
fn shown(length: Duration) -> String {
    let seconds = length.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, 0) => format!("{minutes} min"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, 0, _) => format!("{hours} h"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn told(episode: i32, stage: Stage, lasted: u64) -> Told {
        Told {
            episode,
            stage,
            lasted: Duration::from_secs(lasted),
            at: Some(at(1_000)),
            stop_after: Some(Duration::from_secs(900)),
            evidence: None,
        }
    }

    #[test]
    fn stages_must_rise_and_may_be_off() {
        let rules = |warn: u64, remind: u64, stop: u64| Rules {
            warn_after: Some(Duration::from_secs(warn)),
            remind_after: Some(Duration::from_secs(remind)),
            stop_after: Some(Duration::from_secs(stop)),
            counts: None,
        };
        for fine in [
            rules(300, 600, 900),
            rules(0, 0, 0),
            rules(300, 0, 301),
            Rules::default(),
        ] {
            assert_eq!(fine.validate(), Ok(()));
        }
        for (wrong, field) in [
            (rules(300, 300, 900), "silence.remind_after"),
            (rules(300, 0, 200), "silence.stop_after"),
            (rules(1 << 40, 0, 0), "silence.warn_after"),
        ] {
            assert_eq!(wrong.validate().unwrap_err().field, field);
        }
        let text = serde_json::to_string(&rules(1, 2, 3)).unwrap();
        assert_eq!(
            serde_json::from_str::<Rules>(&text).unwrap(),
            rules(1, 2, 3)
        );
    }

    #[test]
    fn a_step_is_new_once_and_evidence_may_follow() {
        let (warned, new) = step(None, &told(1, Stage::Warned, 300), at(1_002)).unwrap();
        assert!(new);
        assert_eq!(warned.since, at(700));
        assert_eq!(warned.stop_at(), Some(at(1_600)));
        assert_eq!(
            step(Some(&warned), &told(1, Stage::Warned, 300), at(1_003)),
            None
        );
        let mut seen = told(1, Stage::Warned, 300);
        seen.evidence = Some(Evidence::default());
        let (with, new) = step(Some(&warned), &seen, at(1_003)).unwrap();
        assert!(!new && with.evidence.is_some());
        let (ending, new) = step(Some(&with), &told(1, Stage::Ending, 890), at(2_000)).unwrap();
        assert!(new && ending.evidence.is_some(), "what was seen stays");
        assert_eq!(ending.since, at(700), "pauses in between are no news");
        assert_eq!(
            step(Some(&ending), &told(1, Stage::Reminded, 600), at(2_000)),
            None
        );
        let (again, _) = step(Some(&ending), &told(2, Stage::Warned, 300), at(9_000)).unwrap();
        assert_eq!(again.evidence, None);
        assert_eq!(step(None, &told(3, Stage::Over, 300), at(0)), None);
    }

    #[test]
    fn what_moves_is_told_from_what_waits() {
        let five = Duration::from_secs(300);
        let s = |seconds| Some(Duration::from_secs(seconds));
        let found = |cpu, io, gpu| Evidence {
            cpu_still: cpu,
            io_still: io,
            gpu_still: gpu,
            ..Evidence::default()
        };
        assert_eq!(found(None, None, None).doing(five), Doing::Unknown);
        assert_eq!(found(s(3), s(290), None).doing(five), Doing::Computes);
        assert_eq!(found(s(290), s(290), s(2)).doing(five), Doing::Gpu);
        assert_eq!(found(s(290), s(2), s(299)).doing(five), Doing::Transfers);
        let still = found(s(290), s(290), None);
        assert_eq!(still.doing(five), Doing::Nothing);
        let device = Evidence {
            processes: vec![SilentProcess {
                pid: 7,
                command: "cat /mnt/nfs/x".to_owned(),
                state: "D".to_owned(),
                wait_channel: "rpc_wait_bit_killable".to_owned(),
            }],
            ..still
        };
        let mut warned = told(1, Stage::Warned, 300);
        warned.evidence = Some(device);
        assert_eq!(
            entry(&warned).unwrap(),
            (
                "silent",
                "silent for 5 min; it waits for a device; process 7 (cat /mnt/nfs/x, in \
                 rpc_wait_bit_killable); it is stopped after 15 min"
                    .to_owned()
            )
        );
        let over = entry(&told(1, Stage::Over, 3_720)).unwrap();
        assert_eq!(over.1, "heard of again after 1 h 2 min of silence");
        assert_eq!(entry(&told(1, Stage::Ending, 890)), None);
    }

    proptest! {
        /// Whatever comes twice or late, no step is new twice.
        #[test]
        fn no_step_is_new_twice(steps in proptest::collection::vec((1_i32..4, 0_usize..4), 0..40)) {
            let stages = [Stage::Warned, Stage::Reminded, Stage::Ending, Stage::Over];
            let mut state = None;
            let mut seen = std::collections::BTreeSet::new();
            for (episode, stage) in steps {
                let told = told(episode, stages[stage], 300);
                if let Some((next, new)) = step(state.as_ref(), &told, at(2_000)) {
                    prop_assert!(!new || seen.insert((episode, stages[stage])));
                    state = Some(next);
                }
            }
        }
    }
}
