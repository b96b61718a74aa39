//! GPUs on which one job after the other fails although their driver calls them well. A probe does not
//! find that unless it computes, and without this such a GPU would fail the whole queue.

use chrono::{DateTime, TimeDelta, Utc};

use super::{Faulty, GpuFault, GpuFaultKind};
use crate::id::JobId;
use crate::notice::{Class, Notice};

/// So many jobs in a row must have failed.
const ENOUGH: usize = 2;

/// How long a GPU rests before one job tries it, at first and at most. It doubles with each try that
/// fails.
pub const FIRST_REST: TimeDelta = TimeDelta::minutes(30);
/// The upper one.
pub const LONGEST_REST: TimeDelta = TimeDelta::hours(8);

/// How CUDA and NVIDIA's tools say that the device or its driver is at fault, in lower case. What a
/// program can do wrong by itself, such as an illegal memory access, an assertion or a failed launch,
/// is left out: two programs with bugs say nothing of a GPU.
const OF_DEVICE: [&str; 20] = [
    "no cuda-capable device",
    "cuda_error_no_device",
    "cudaerrornodevice",
    "no cuda gpus are available",
    "found no nvidia driver",
    "cuda driver version is insufficient",
    "cudaerrorinsufficientdriver",
    "cuda driver initialization failed",
    "initialization error",
    "cuda_error_not_initialized",
    "cudaerrorinitializationerror",
    "unknown error",
    "cuda_error_unknown",
    "cudaerrorunknown",
    "uncorrectable ecc",
    "ecc_uncorrectable",
    "eccuncorrectable",
    "gpu is lost",
    "unable to determine the device handle",
    "busy or unavailable",
];

/// What is remembered of a GPU on which a job failed last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubt {
    /// The jobs that failed on it since one succeeded there, by the first one each is a retry of; no
    /// more than matter.
    pub jobs: Vec<JobId>,
    /// It gets no job for a while.
    pub rest: Option<Rest>,
}

/// A GPU that rests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rest {
    /// What is told of it.
    pub faulty: Faulty,
    /// How often a job has tried it since.
    pub tries: i32,
    /// From then on the next job may try it.
    pub until: DateTime<Utc>,
}

/// Something that tells whether a GPU computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// A job that had it succeeded, or a probe has computed on it.
    Passed,
    /// A job that had it failed by it.
    Failed {
        /// The job, or the first one that it is a retry of.
        job: JobId,
        /// What is said of the GPU.
        fault: GpuFault,
    },
}

/// True when a fault that ended a job speaks of the GPU or its driver, and names the GPU.
pub fn blames_device(fault: &GpuFault) -> bool {
    let speaks_of_it = match fault.kind {
        GpuFaultKind::Lost | GpuFaultKind::Memory | GpuFaultKind::Xid => true,
        GpuFaultKind::Output => {
            let line = fault.message.to_lowercase();
            OF_DEVICE.iter().any(|words| line.contains(words))
        }
        GpuFaultKind::Silent
        | GpuFaultKind::Unfit
        | GpuFaultKind::Unused
        | GpuFaultKind::Slow
        | GpuFaultKind::FailsJobs => false,
    };
    speaks_of_it && !fault.gpu.is_empty()
}

/// Decides what is remembered of a GPU of `worker` after a trial, and what people are to be told. `None`
/// in place of the first: nothing.
pub fn tried(
    worker: &str,
    before: Doubt,
    trial: &Trial,
    now: DateTime<Utc>,
) -> (Option<Doubt>, Option<Notice>) {
    let (job, fault) = match trial {
        Trial::Passed => {
            let notice = before
                .rest
                .map(|rest| rest.faulty.notice(Class::GpuWorks, worker));
            return (None, notice);
        }
        Trial::Failed { job, fault } => (*job, fault),
    };
    let Doubt { mut jobs, rest } = before;
    if let Some(rest) = rest {
        let tries = rest.tries.saturating_add(1);
        let rest = Rest {
            tries,
            until: now + pause(tries),
            ..rest
        };
        let rest = Some(rest);
        return (Some(Doubt { jobs, rest }), None);
    }
    if !jobs.contains(&job) {
        jobs.push(job);
    }
    if jobs.len() < ENOUGH {
        return (Some(Doubt { jobs, rest: None }), None);
    }
    let faulty = Faulty {
        fault: GpuFault {
            kind: GpuFaultKind::FailsJobs,
            number: ENOUGH as i64,
            message: format!(
                "two jobs in a row failed on it though its driver calls it well; the last one said: {}",
                fault.message
            ),
            ..fault.clone()
        },
        since: now,
        told_by_job: false,
        subject: format!("jobs on GPU {} of worker {worker}", fault.gpu),
    };
    let mut notice = faulty.notice(Class::GpuFaulty, worker);
    notice.details.since = Some(now);
    let rest = Some(Rest {
        faulty,
        tries: 0,
        until: now + pause(0),
    });
    (Some(Doubt { jobs, rest }), Some(notice))
}

fn pause(tries: i32) -> TimeDelta {
    let doublings = tries.clamp(0, 10) as u32;
    let pause = FIRST_REST.checked_mul(1 << doublings);
    pause.unwrap_or(LONGEST_REST).min(LONGEST_REST)
}

/// A person trusts a GPU again: what ends the telling of its fault, without a word to anyone.
pub fn trusted(worker: &str, rest: &Rest) -> Notice {
    Notice {
        muted: true,
        ..rest.faulty.notice(Class::GpuWorks, worker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(kind: GpuFaultKind, message: &str) -> GpuFault {
        GpuFault {
            gpu: "GPU-1".to_owned(),
            name: "X".to_owned(),
            kind,
            number: 0,
            message: message.to_owned(),
        }
    }

    fn failed(job: i64) -> Trial {
        Trial::Failed {
            job: JobId(job),
            fault: fault(
                GpuFaultKind::Output,
                "CUDA error: no CUDA-capable device is detected",
            ),
        }
    }

    fn at(minutes: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::minutes(minutes)
    }

    /// Trials one after the other; the doubt in the end, and what was told.
    fn all(trials: &[(i64, Trial)]) -> (Option<Doubt>, Vec<Class>) {
        let mut told = Vec::new();
        let mut doubt = None;
        for (minute, trial) in trials {
            let before = doubt.take().unwrap_or_default();
            let (after, notice) = tried("w", before, trial, at(*minute));
            told.extend(notice.map(|notice| notice.class));
            doubt = after;
        }
        (doubt, told)
    }

    fn until(doubt: Option<Doubt>) -> Option<DateTime<Utc>> {
        doubt?.rest.map(|rest| rest.until)
    }

    #[test]
    fn f35_a_gpu_on_which_two_jobs_fail_in_a_row_rests_and_that_is_told_once() {
        let (doubt, told) = all(&[(0, failed(1))]);
        assert_eq!((until(doubt), told), (None, vec![]));
        let (doubt, told) = all(&[(0, failed(1)), (5, failed(2))]);
        assert_eq!((until(doubt), told), (Some(at(35)), vec![Class::GpuFaulty]));
    }

    #[test]
    fn one_job_alone_or_a_success_between_says_nothing_of_a_gpu() {
        let (doubt, told) = all(&[(0, failed(1)), (1, failed(1)), (2, failed(1))]);
        assert_eq!((until(doubt), told), (None, vec![]));
        let (doubt, told) = all(&[(0, failed(1)), (1, Trial::Passed), (2, failed(2))]);
        assert_eq!((until(doubt), told), (None, vec![]));
    }

    #[test]
    fn a_try_that_fails_doubles_the_rest_and_one_that_succeeds_ends_it() {
        let mut trials = vec![(0, failed(1)), (0, failed(2))];
        let mut rests = Vec::new();
        let mut now = 0;
        for _ in 0..6 {
            let (doubt, told) = all(&trials);
            assert_eq!(told, [Class::GpuFaulty], "once");
            let rest = (until(doubt).unwrap() - at(now)).num_minutes();
            rests.push(rest);
            now += rest;
            // Whoever tries it.
            trials.push((now, failed(2)));
        }
        assert_eq!(rests, [30, 60, 120, 240, 480, 480]);
        trials.push((now, Trial::Passed));
        let (doubt, told) = all(&trials);
        assert_eq!(
            (doubt, told),
            (None, vec![Class::GpuFaulty, Class::GpuWorks])
        );
    }

    #[test]
    fn what_a_program_does_wrong_says_nothing_of_a_gpu() {
        use GpuFaultKind as K;
        let output = |line: &str| blames_device(&fault(K::Output, line));
        for line in [
            "RuntimeError: No CUDA GPUs are available",
            "CUDA error: unknown error",
            "CUDA error: uncorrectable ECC error encountered",
            "Unable to determine the device handle for GPU0000:01:00.0: Unknown Error",
            "CUDA driver version is insufficient for CUDA runtime version",
            "CUDA error: all CUDA-capable devices are busy or unavailable",
        ] {
            assert!(output(line), "{line}");
        }
        for line in [
            "RuntimeError: CUDA error: an illegal memory access was encountered",
            "CUDA error: device-side assert triggered",
            "CUDA error: unspecified launch failure",
            "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
            "but torch.cuda.is_available() is False.",
            "NCCL error in: ProcessGroupNCCL.cpp:1970",
        ] {
            assert!(!output(line), "{line}");
        }
        assert!(blames_device(&fault(K::Lost, "")));
        assert!(!blames_device(&fault(K::Unused, "")));
        let nobody = GpuFault {
            gpu: String::new(),
            ..fault(K::Output, "GPU is lost")
        };
        assert!(!blames_device(&nobody), "with several nobody knows which");
    }
}
