//! How an attempt ended: one function of recorded facts.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::gpu::{GpuFault, GpuFaultKind};

/// The classes that budgets and dependencies look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeKind {
    /// Exit 0 and nothing that contradicts it.
    Succeeded,
    /// The job's own fault; uses a retry.
    Failed,
    /// Not the job's fault; uses a resume.
    Interrupted,
    /// A person's wish.
    Cancelled,
    /// The process was never started; uses nothing.
    NeverStarted,
    /// It asked to be run again from its checkpoint; uses nothing.
    Checkpointed,
}

/// What brought an attempt to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It exited by itself.
    Exit,
    /// A signal that qctl did not send.
    Signal,
    /// Its time limit.
    TimeLimit,
    /// The kernel killed it for memory.
    OutOfMemory,
    /// The process could not be started.
    CannotStart,
    /// A person's wish.
    Cancelled,
    /// Its machine went away or was restarted.
    WorkerLost,
    /// Its shim vanished.
    ShimLost,
    /// Its worker lost its record of it.
    RecordGone,
    /// It stopped itself because its lease ran out, or its place was given away.
    LeaseExpired,
    /// A GPU of its own failed.
    GpuFault,
    /// It was silent for too long.
    Silence,
    /// It exited 0, but its own output says otherwise.
    Contradicted,
    /// It exited with the code that means "checkpointed, run me again".
    Checkpointed,
    /// A person interrupted it to see whether it resumes.
    Drill,
    /// It was given a GPU and computed without it.
    GpuFallback,
    /// It was never started and never will be.
    Void,
}

macro_rules! words {
    ($type:ident { $($variant:ident = $text:literal,)* }) => {
        impl $type {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The stored word.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// Reads the stored word.
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.as_str() == text)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use words;

words!(OutcomeKind {
    Succeeded = "succeeded",
    Failed = "failed",
    Interrupted = "interrupted",
    Cancelled = "cancelled",
    NeverStarted = "never_started",
    Checkpointed = "checkpointed",
});

words!(Cause {
    Exit = "exit",
    Signal = "signal",
    TimeLimit = "time_limit",
    OutOfMemory = "out_of_memory",
    CannotStart = "cannot_start",
    Cancelled = "cancelled",
    WorkerLost = "worker_lost",
    ShimLost = "shim_lost",
    RecordGone = "record_gone",
    LeaseExpired = "lease_expired",
    GpuFault = "gpu_fault",
    Silence = "silence",
    Contradicted = "contradicted",
    Checkpointed = "checkpointed",
    Drill = "drill",
    GpuFallback = "gpu_fallback",
    Void = "void",
});

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The class.
    pub kind: OutcomeKind,
    /// What brought it about.
    pub cause: Cause,
    /// Exit status, when the process exited by itself.
    pub exit_code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// The same in a sentence, without a final full stop.
    pub message: String,
}

/// What became of the process, as its worker recorded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// wait returned an exit code or a signal.
    Waited,
    /// The process could not be started.
    CannotStart,
    /// It was never started and never will be.
    NeverStarted,
    /// The shim vanished and no process of the attempt is left.
    ShimLost,
    /// The machine was restarted.
    MachineLost,
    /// Its worker was not heard of for so long that the attempt was given up.
    GivenUp,
    /// It was given up because its worker has no record of it any more.
    RecordGone,
}

/// Why the shim stopped an attempt, recorded before it sent the first signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// A person's wish.
    Cancel,
    /// Its time limit.
    TimeLimit,
    /// Silence.
    Silence,
    /// Its lease ran out while the coordinator could not be reached.
    Lease,
    /// Another attempt took its place.
    Superseded,
    /// A drill: killed as if its machine had been lost.
    Drill,
    /// A GPU of its own failed.
    GpuFault,
    /// It was given a GPU and computes without it.
    GpuFallback,
}

/// The recorded facts of an attempt's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// What became of the process.
    pub end: End,
    /// Exit status, when it exited.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Signal, when one ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// Why the shim stopped it, when it acted before wait returned.
    #[serde(default)]
    pub stopped: Option<StopCause>,
    /// The kernel killed it for memory.
    #[serde(default)]
    pub out_of_memory: bool,
    /// A GPU that was assigned to it failed.
    #[serde(default)]
    pub gpu_fault: bool,
    /// What is wrong with it, or with how it was used.
    #[serde(default)]
    pub gpu: Option<GpuFault>,
    /// Its own output says that it did not succeed; the sentence says how.
    #[serde(default)]
    pub contradiction: Option<String>,
    /// The end of its output tells that a GPU had no memory left.
    #[serde(default)]
    pub gpu_out_of_memory: bool,
    /// It exited by itself with the code that means "checkpointed, run me again".
    #[serde(default)]
    pub checkpointed: bool,
    /// What the worker says about it, for people.
    #[serde(default)]
    pub message: String,
}

impl Facts {
    /// Facts that say only what became of the process.
    pub fn of(end: End) -> Self {
        Self {
            end,
            exit_code: None,
            signal: None,
            stopped: None,
            out_of_memory: false,
            gpu_fault: false,
            gpu: None,
            contradiction: None,
            gpu_out_of_memory: false,
            checkpointed: false,
            message: String::new(),
        }
    }
}

/// Decides how an attempt ended. The first of these that was recorded wins: a cancel that was acted
/// upon before the end, a GPU fault, a stop for silence, the time limit, a stop by lease or for a
/// drill, what wait returned, the loss of machine or shim, that it never started. What is unknown is
/// never a success.
pub fn outcome(facts: &Facts) -> Outcome {
    use {Cause as C, OutcomeKind as K};
    let gpu = facts.gpu.as_ref().map_or("", |fault| &fault.message);
    let told = |kind: K, cause: C, sentence: &str| Outcome {
        kind,
        cause,
        exit_code: facts.exit_code,
        signal: facts.signal,
        message: match [gpu, &facts.message]
            .map(|said| said.trim().trim_end_matches('.'))
            .into_iter()
            .find(|said| !said.is_empty())
            .unwrap_or_default()
        {
            "" => sentence.to_owned(),
            said if sentence.is_empty() => said.to_owned(),
            said => format!("{sentence}: {said}"),
        },
    };
    match facts.stopped {
        Some(StopCause::Cancel) => return told(K::Cancelled, C::Cancelled, "cancelled"),
        Some(StopCause::GpuFault) => return told(K::Failed, C::GpuFault, "its GPU failed"),
        _ if facts.gpu_fault => return told(K::Failed, C::GpuFault, "its GPU failed"),
        Some(StopCause::GpuFallback) => {
            let is_slow = |fault: &GpuFault| fault.kind == GpuFaultKind::Slow;
            let sentence = match facts.gpu.as_ref().is_some_and(is_slow) {
                true => "stopped because it computed as if without its GPU",
                false => "stopped because it computed without its GPU",
            };
            return told(K::Failed, C::GpuFallback, sentence);
        }
        Some(StopCause::Silence) => {
            return told(
                K::Interrupted,
                C::Silence,
                "stopped because it was silent for too long",
            );
        }
        Some(StopCause::TimeLimit) => {
            return told(K::Failed, C::TimeLimit, "stopped at its time limit");
        }
        Some(StopCause::Lease) => {
            return told(
                K::Interrupted,
                C::LeaseExpired,
                "stopped itself because its worker could not reach the coordinator",
            );
        }
        Some(StopCause::Superseded) => {
            return told(
                K::Interrupted,
                C::LeaseExpired,
                "stopped because another attempt took its place",
            );
        }
        Some(StopCause::Drill) => {
            return told(
                K::Interrupted,
                C::Drill,
                "interrupted on purpose, as if its machine had been lost",
            );
        }
        None => {}
    }
    // What the worker says of these is the whole sentence already.
    let unless_said = |sentence: &'static str| match facts.message.trim() {
        "" => sentence,
        _ => "",
    };
    match facts.end {
        End::Waited => waited(facts, told),
        End::CannotStart => told(
            K::Failed,
            C::CannotStart,
            unless_said("it could not be started"),
        ),
        End::MachineLost => told(
            K::Interrupted,
            C::WorkerLost,
            unless_said("its machine was restarted, so how it ended is unknown"),
        ),
        End::ShimLost => told(
            K::Interrupted,
            C::ShimLost,
            unless_said("the process that watched over it vanished, so how it ended is unknown"),
        ),
        End::GivenUp => told(
            K::Interrupted,
            C::WorkerLost,
            "its worker was not heard of for too long",
        ),
        End::RecordGone => told(
            K::Interrupted,
            C::RecordGone,
            "its worker lost the record of it, and nothing was heard of it for too long",
        ),
        End::NeverStarted => told(K::NeverStarted, C::Void, "it was never started"),
    }
}

fn waited(facts: &Facts, told: impl Fn(OutcomeKind, Cause, &str) -> Outcome) -> Outcome {
    use {Cause as C, OutcomeKind as K};
    if facts.out_of_memory {
        return told(
            K::Failed,
            C::OutOfMemory,
            "killed by the kernel for lack of memory",
        );
    }
    match (facts.exit_code, facts.signal) {
        (Some(0), None) => match &facts.contradiction {
            Some(contradiction) => told(
                K::Failed,
                C::Contradicted,
                &format!("exit 0, but {contradiction}"),
            ),
            None => told(K::Succeeded, C::Exit, "exit 0"),
        },
        (Some(code), None) if facts.checkpointed => told(
            K::Checkpointed,
            C::Checkpointed,
            &format!("exit {code}, which asks to be run again from its checkpoint"),
        ),
        (Some(code), None) => told(K::Failed, C::Exit, &format!("exit {code}")),
        (_, Some(signal)) => told(
            K::Failed,
            C::Signal,
            &format!("ended by signal {}", signal_name(signal)),
        ),
        (None, None) => told(
            K::Interrupted,
            C::ShimLost,
            "its end was recorded without exit code or signal, so how it ended is unknown",
        ),
    }
}

/// `9 (SIGKILL)`, or the bare number of a signal without a common name.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return signal.to_string(),
    };
    format!("{signal} ({name})")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gpu::GpuFaultKind;

    fn exit(code: i32) -> Facts {
        Facts {
            exit_code: Some(code),
            ..Facts::of(End::Waited)
        }
    }

    fn verdict(facts: &Facts) -> (OutcomeKind, Cause) {
        let outcome = outcome(facts);
        (outcome.kind, outcome.cause)
    }

    #[test]
    fn the_order_of_causes() {
        use {Cause as C, OutcomeKind as K};
        let everything = Facts {
            stopped: Some(StopCause::Cancel),
            gpu_fault: true,
            out_of_memory: true,
            ..exit(0)
        };
        assert_eq!(verdict(&everything), (K::Cancelled, C::Cancelled));
        let stop = |stopped| Facts {
            stopped,
            ..everything.clone()
        };
        assert_eq!(
            verdict(&stop(Some(StopCause::Silence))),
            (K::Failed, C::GpuFault)
        );
        let no_gpu = |stopped| Facts {
            gpu_fault: false,
            ..stop(stopped)
        };
        for (stopped, expected) in [
            (Some(StopCause::Silence), (K::Interrupted, C::Silence)),
            (Some(StopCause::TimeLimit), (K::Failed, C::TimeLimit)),
            (Some(StopCause::Lease), (K::Interrupted, C::LeaseExpired)),
            (
                Some(StopCause::Superseded),
                (K::Interrupted, C::LeaseExpired),
            ),
            (Some(StopCause::Drill), (K::Interrupted, C::Drill)),
            (Some(StopCause::GpuFault), (K::Failed, C::GpuFault)),
            (Some(StopCause::GpuFallback), (K::Failed, C::GpuFallback)),
            (None, (K::Failed, C::OutOfMemory)),
        ] {
            assert_eq!(verdict(&no_gpu(stopped)), expected, "{stopped:?}");
        }
        assert_eq!(verdict(&exit(0)), (K::Succeeded, C::Exit));
        assert_eq!(verdict(&exit(3)), (K::Failed, C::Exit));
        let contradicted = Facts {
            contradiction: Some("3 tests failed".into()),
            ..exit(0)
        };
        assert_eq!(verdict(&contradicted), (K::Failed, C::Contradicted));
        let checkpointed = |facts: Facts| Facts {
            checkpointed: true,
            ..facts
        };
        assert_eq!(
            verdict(&checkpointed(exit(85))),
            (K::Checkpointed, C::Checkpointed)
        );
        // A success needs no further run, and a stop was not the job's own wish.
        assert_eq!(verdict(&checkpointed(exit(0))), (K::Succeeded, C::Exit));
        let stopped = Facts {
            stopped: Some(StopCause::TimeLimit),
            ..checkpointed(exit(85))
        };
        assert_eq!(verdict(&stopped), (K::Failed, C::TimeLimit));
        for (end, expected) in [
            (End::CannotStart, (K::Failed, C::CannotStart)),
            (End::NeverStarted, (K::NeverStarted, C::Void)),
            (End::ShimLost, (K::Interrupted, C::ShimLost)),
            (End::MachineLost, (K::Interrupted, C::WorkerLost)),
            (End::GivenUp, (K::Interrupted, C::WorkerLost)),
            (End::RecordGone, (K::Interrupted, C::RecordGone)),
            (End::Waited, (K::Interrupted, C::ShimLost)),
        ] {
            assert_eq!(verdict(&Facts::of(end)), expected, "{end:?}");
        }
    }

    #[test]
    fn sentences_name_what_happened() {
        let killed = Facts {
            signal: Some(9),
            ..Facts::of(End::Waited)
        };
        assert_eq!(outcome(&killed).message, "ended by signal 9 (SIGKILL)");
        let missing = Facts {
            message: "no program `pytset` in its PATH.".into(),
            ..Facts::of(End::CannotStart)
        };
        assert_eq!(outcome(&missing).message, "no program `pytset` in its PATH");
        let lost = Facts {
            stopped: Some(StopCause::GpuFault),
            signal: Some(15),
            gpu: Some(GpuFault {
                gpu: "GPU-1".into(),
                name: "X".into(),
                kind: GpuFaultKind::Lost,
                number: 0,
                message: "the driver has lost X (GPU-1)".into(),
            }),
            ..Facts::of(End::Waited)
        };
        assert_eq!(
            outcome(&lost).message,
            "its GPU failed: the driver has lost X (GPU-1)"
        );
    }

    fn facts() -> impl Strategy<Value = Facts> {
        let end = prop::sample::select(vec![
            End::Waited,
            End::CannotStart,
            End::NeverStarted,
            End::ShimLost,
            End::MachineLost,
            End::GivenUp,
        ]);
        let stopped = prop::option::of(prop::sample::select(vec![
            StopCause::Cancel,
            StopCause::TimeLimit,
            StopCause::Silence,
            StopCause::Lease,
            StopCause::Superseded,
            StopCause::Drill,
            StopCause::GpuFault,
            StopCause::GpuFallback,
        ]));
        (
            end,
            prop::option::of(-1..256),
            prop::option::of(1..65),
            stopped,
            any::<bool>(),
            any::<bool>(),
            prop::option::of(Just("it says so".to_owned())),
            any::<bool>(),
        )
            .prop_map(
                |(
                    end,
                    exit_code,
                    signal,
                    stopped,
                    out_of_memory,
                    gpu_fault,
                    contradiction,
                    checkpointed,
                )| {
                    Facts {
                        end,
                        exit_code,
                        signal,
                        stopped,
                        out_of_memory,
                        gpu_fault,
                        gpu: None,
                        contradiction,
                        gpu_out_of_memory: false,
                        checkpointed,
                        message: String::new(),
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn success_is_exit_zero_and_nothing_else(facts in facts()) {
            let succeeded = outcome(&facts).kind == OutcomeKind::Succeeded;
            let clean = facts.end == End::Waited
                && facts.exit_code == Some(0)
                && facts.signal.is_none()
                && facts.stopped.is_none()
                && !facts.out_of_memory
                && !facts.gpu_fault
                && facts.contradiction.is_none();
            prop_assert_eq!(succeeded, clean);
        }

        #[test]
        fn every_outcome_says_something(facts in facts()) {
            prop_assert!(!outcome(&facts).message.is_empty());
        }
    }
}
