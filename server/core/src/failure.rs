//! Which failures are worth another try: the causes that a job's owner can name, and the rule that
//! follows from those they named.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::outcome::{Cause, Outcome};

/// Most causes in one list.
pub const MAX_CAUSES: usize = 64;
/// Exit codes that say that something failed.
pub const EXIT_CODES: std::ops::RangeInclusive<i32> = 1..=255;
/// Signals that Linux has.
pub const SIGNALS: std::ops::RangeInclusive<i32> = 1..=64;

/// What a failed attempt ended by. Stored and shown as the text that `Display` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FailureCause {
    /// It exited by itself: with this code, or with any but 0.
    Exit(Option<i32>),
    /// A signal that qctl did not send: this one, or any.
    Signal(Option<i32>),
    /// Its time limit.
    TimeLimit,
    /// The kernel killed it for memory.
    OutOfMemory,
    /// It exited 0, but its own output says otherwise.
    Contradicted,
}

impl FailureCause {
    /// Whether an attempt ended by this.
    pub fn matches(self, outcome: &Outcome) -> bool {
        match (self, outcome.cause) {
            (Self::Exit(code), Cause::Exit) => code.is_none() || code == outcome.exit_code,
            (Self::Signal(signal), Cause::Signal) => signal.is_none() || signal == outcome.signal,
            (Self::TimeLimit, Cause::TimeLimit)
            | (Self::OutOfMemory, Cause::OutOfMemory)
            | (Self::Contradicted, Cause::Contradicted) => true,
            _ => false,
        }
    }

    /// Whether its number is one that exists.
    pub fn is_possible(self) -> bool {
        match self {
            Self::Exit(Some(code)) => EXIT_CODES.contains(&code),
            Self::Signal(Some(signal)) => SIGNALS.contains(&signal),
            _ => true,
        }
    }
}

impl fmt::Display for FailureCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(None) => f.write_str("exit"),
            Self::Exit(Some(code)) => write!(f, "exit:{code}"),
            Self::Signal(None) => f.write_str("signal"),
            Self::Signal(Some(signal)) => write!(f, "signal:{signal}"),
            Self::TimeLimit => f.write_str("time-limit"),
            Self::OutOfMemory => f.write_str("out-of-memory"),
            Self::Contradicted => f.write_str("contradicted"),
        }
    }
}

/// A stored text that names no cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no cause of a failure")]
pub struct UnknownCause(String);

impl FromStr for FailureCause {
    type Err = UnknownCause;

    fn from_str(text: &str) -> Result<Self, UnknownCause> {
        let unknown = || UnknownCause(text.to_owned());
        let (word, number) = match text.split_once(':') {
            None => (text, None),
            Some((word, number)) => (word, Some(number.parse().map_err(|_| unknown())?)),
        };
        match (word, number) {
            ("exit", code) => Ok(Self::Exit(code)),
            ("signal", signal) => Ok(Self::Signal(signal)),
            ("time-limit", None) => Ok(Self::TimeLimit),
            ("out-of-memory", None) => Ok(Self::OutOfMemory),
            ("contradicted", None) => Ok(Self::Contradicted),
            _ => Err(unknown()),
        }
    }
}

impl TryFrom<String> for FailureCause {
    type Error = UnknownCause;

    fn try_from(text: String) -> Result<Self, UnknownCause> {
        text.parse()
    }
}

impl From<FailureCause> for String {
    fn from(cause: FailureCause) -> Self {
        cause.to_string()
    }
}

/// Which failures a job's owner wants retried. The default is every one that a retry can mend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryRules {
    /// Only these; empty means all.
    #[serde(default)]
    pub retry_on: Vec<FailureCause>,
    /// Never these.
    #[serde(default)]
    pub no_retry_on: Vec<FailureCause>,
}

impl RetryRules {
    /// True when they leave everything as it is without them.
    pub fn is_default(&self) -> bool {
        self.retry_on.is_empty() && self.no_retry_on.is_empty()
    }

    /// Why a failure must not be retried, continuing a sentence; `None` when it may be. A start that
    /// is impossible and a broken GPU are the same the next time, whatever the rules say.
    pub fn refusal(&self, outcome: &Outcome) -> Option<String> {
        match outcome.cause {
            Cause::CannotStart => return Some("another try would not start either".to_owned()),
            Cause::GpuFault => return Some("another try needs a GPU that works".to_owned()),
            Cause::GpuFallback => {
                return Some("another try would most likely go the same way".to_owned());
            }
            _ => {}
        }
        if let Some(cause) = self.no_retry_on.iter().find(|cause| cause.matches(outcome)) {
            return Some(format!("{cause} is in --no-retry-on"));
        }
        if self.retry_on.is_empty() || self.retry_on.iter().any(|cause| cause.matches(outcome)) {
            return None;
        }
        let named: Vec<String> = self.retry_on.iter().map(ToString::to_string).collect();
        Some(format!("--retry-on names only {}", named.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::outcome::{End, Facts, StopCause, outcome};

    fn exit(code: i32) -> Outcome {
        outcome(&Facts {
            exit_code: Some(code),
            ..Facts::of(End::Waited)
        })
    }

    fn signal(signal: i32) -> Outcome {
        outcome(&Facts {
            signal: Some(signal),
            ..Facts::of(End::Waited)
        })
    }

    fn time_limit() -> Outcome {
        outcome(&Facts {
            stopped: Some(StopCause::TimeLimit),
            signal: Some(15),
            ..Facts::of(End::Waited)
        })
    }

    fn rules(retry_on: &[&str], no_retry_on: &[&str]) -> RetryRules {
        let read = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        RetryRules {
            retry_on: read(retry_on),
            no_retry_on: read(no_retry_on),
        }
    }

    #[test]
    fn the_whole_table() {
        let out_of_memory = outcome(&Facts {
            out_of_memory: true,
            signal: Some(9),
            ..Facts::of(End::Waited)
        });
        let contradicted = outcome(&Facts {
            exit_code: Some(0),
            contradiction: Some("2 failed".to_owned()),
            ..Facts::of(End::Waited)
        });
        let outcomes = [
            exit(1),
            exit(137),
            signal(9),
            signal(15),
            time_limit(),
            out_of_memory,
            contradicted,
        ];
        let row = |rules: RetryRules| outcomes.each_ref().map(|out| rules.refusal(out).is_none());
        for (retry_on, no_retry_on, expected) in [
            (&[][..], &[][..], [true; 7]),
            (
                &["exit:1"],
                &[],
                [true, false, false, false, false, false, false],
            ),
            (
                &["exit"],
                &[],
                [true, true, false, false, false, false, false],
            ),
            (
                &["exit"],
                &["exit:1"],
                [false, true, false, false, false, false, false],
            ),
            (
                &[],
                &["exit:1"],
                [false, true, true, true, true, true, true],
            ),
            (
                &["signal:9"],
                &[],
                [false, false, true, false, false, false, false],
            ),
            (
                &[],
                &["signal"],
                [true, true, false, false, true, true, true],
            ),
            (
                &["time-limit", "out-of-memory"],
                &[],
                [false, false, false, false, true, true, false],
            ),
            (
                &[],
                &["contradicted"],
                [true, true, true, true, true, true, false],
            ),
        ] {
            assert_eq!(
                row(rules(retry_on, no_retry_on)),
                expected,
                "{retry_on:?} {no_retry_on:?}"
            );
        }
    }

    #[test]
    fn a_refusal_names_the_rule() {
        assert_eq!(
            rules(&[], &["exit:2"]).refusal(&exit(2)).unwrap(),
            "exit:2 is in --no-retry-on"
        );
        assert_eq!(
            rules(&["exit:1", "time-limit"], &[])
                .refusal(&signal(9))
                .unwrap(),
            "--retry-on names only exit:1, time-limit"
        );
    }

    #[test]
    fn what_is_hopeless_is_never_retried() {
        let cannot = outcome(&Facts::of(End::CannotStart));
        let gpu = outcome(&Facts {
            gpu_fault: true,
            exit_code: Some(1),
            ..Facts::of(End::Waited)
        });
        let all = rules(&["exit", "signal", "time-limit"], &[]);
        assert!(all.refusal(&cannot).is_some() && all.refusal(&gpu).is_some());
        assert!(RetryRules::default().refusal(&gpu).is_some());
    }

    proptest! {
        #[test]
        fn a_cause_is_read_as_it_is_written(kind in 0..5, number in prop::option::of(any::<i32>())) {
            let cause = match kind {
                0 => FailureCause::Exit(number),
                1 => FailureCause::Signal(number),
                2 => FailureCause::TimeLimit,
                3 => FailureCause::OutOfMemory,
                _ => FailureCause::Contradicted,
            };
            let stored = serde_json::to_string(&cause).unwrap();
            prop_assert_eq!(serde_json::from_str::<FailureCause>(&stored).unwrap(), cause);
        }
    }
}
