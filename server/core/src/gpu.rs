//! Faults of GPUs, as workers tell them.

mod doubt;

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::notice::{Class, Details, Notice};
use crate::outcome::words;

pub use doubt::{Doubt, FIRST_REST, LONGEST_REST, Rest, Trial, blames_device, tried, trusted};

/// What is wrong with a GPU, or with how a job uses it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuFault {
    /// The device's UUID; empty when nobody knows which one it is.
    pub gpu: String,
    /// Its name; empty when it is not known.
    pub name: String,
    /// What kind of thing.
    pub kind: GpuFaultKind,
    /// The figure that belongs to the kind.
    pub number: i64,
    /// The same in a sentence, without a final full stop.
    pub message: String,
}

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuFaultKind {
    /// The driver has lost it.
    Lost,
    /// Its memory had errors that cannot be corrected, so many of them.
    Memory,
    /// The driver reports a critical Xid, which is the figure.
    Xid,
    /// A job's output says so.
    Output,
    /// The driver does not answer.
    Silent,
    /// A probe found something else.
    Unfit,
    /// The job it was given to has not used it for so many seconds.
    Unused,
    /// The job it was given to takes so many times as long for an item as it did before.
    Slow,
    /// So many jobs in a row failed on it, though its driver calls it well.
    FailsJobs,
}

words!(GpuFaultKind {
    Lost = "lost",
    Memory = "memory",
    Xid = "xid",
    Output = "output",
    Silent = "silent",
    Unfit = "unfit",
    Unused = "unused",
    Slow = "slow",
    FailsJobs = "fails_jobs",
});

impl GpuFaultKind {
    /// True for what ends a job on the GPU, which then tells people. What a probe finds, and a silent
    /// driver, end none.
    const fn ends_jobs(self) -> bool {
        match self {
            Self::Lost | Self::Memory | Self::Xid | Self::Output => true,
            Self::Silent | Self::Unfit | Self::Unused | Self::Slow | Self::FailsJobs => false,
        }
    }
}

impl GpuFault {
    /// The GPU as people may know it: its name, and enough of its UUID to tell it from another.
    pub fn called(&self) -> String {
        let short: String = self.gpu.chars().take(SHORT_UUID).collect();
        match (self.name.as_str(), short.as_str()) {
            ("", short) => short.to_owned(),
            (name, "") => name.to_owned(),
            (name, short) => format!("{name} ({short})"),
        }
    }
}

/// Characters of a UUID that are shown: `GPU-` and eight digits.
const SHORT_UUID: usize = 12;

/// A GPU that failed a job, which people hear of by the job, and works again sooner than this is not
/// told of once more.
pub const TOLD_WITH_JOB: TimeDelta = TimeDelta::minutes(2);

/// A GPU that does not work: it is given to no job until a probe of it passes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faulty {
    /// What is wrong with it.
    pub fault: GpuFault,
    /// Since when.
    pub since: DateTime<Utc>,
    /// People heard of it by the job that it failed.
    pub told_by_job: bool,
    /// What the notices of it are about.
    pub subject: String,
}

/// What a worker's word about a GPU changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What is recorded of it from now on.
    pub faulty: Option<Faulty>,
    /// What people are to be told.
    pub notice: Option<Notice>,
}

/// Decides what follows when `worker` says of `gpu` that it works or has a fault. `before` is what
/// was recorded, `by_job` whether a job that had it tells people. `None` when nothing changes.
pub fn checked(
    worker: &str,
    gpu: &str,
    before: Option<&Faulty>,
    fault: Option<GpuFault>,
    by_job: bool,
    now: DateTime<Utc>,
) -> Option<Checked> {
    match (before, fault) {
        (None, None) => None,
        (Some(before), Some(fault)) if before.fault == fault => None,
        // It is the same outage, whatever is found out about it.
        (Some(before), Some(fault)) => Some(Checked {
            faulty: Some(Faulty {
                fault: GpuFault {
                    name: non_empty(fault.name.clone(), &before.fault.name),
                    ..fault
                },
                ..before.clone()
            }),
            notice: None,
        }),
        (None, Some(fault)) => {
            let told_by_job = by_job && fault.kind.ends_jobs();
            // All GPUs of a silent driver went together and come back together.
            let subject = match fault.kind {
                GpuFaultKind::Silent => format!("GPU driver of worker {worker}"),
                _ => format!("GPU {gpu} of worker {worker}"),
            };
            let faulty = Faulty {
                fault,
                since: now,
                told_by_job,
                subject,
            };
            let mut notice = faulty.notice(Class::GpuFaulty, worker);
            notice.details.since = Some(now);
            notice.muted = told_by_job;
            Some(Checked {
                faulty: Some(faulty),
                notice: Some(notice),
            })
        }
        (Some(before), None) => {
            let mut notice = before.notice(Class::GpuWorks, worker);
            notice.muted = before.told_by_job && now - before.since < TOLD_WITH_JOB;
            Some(Checked {
                faulty: None,
                notice: Some(notice),
            })
        }
    }
}

fn non_empty(text: String, otherwise: &str) -> String {
    match text.as_str() {
        "" => otherwise.to_owned(),
        _ => text,
    }
}

impl Faulty {
    fn notice(&self, class: Class, worker: &str) -> Notice {
        let details = Details {
            text: self.fault.message.clone(),
            gpu: Some(self.fault.clone()),
            ..Details::default()
        };
        Notice {
            worker: worker.to_owned(),
            ..Notice::about(class, self.subject.clone(), details)
        }
    }
}

/// How a GPU driver answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// Not asked yet.
    #[default]
    Unknown,
    /// There is none, and so no GPU.
    Absent,
    /// It answers.
    Read,
    /// It does not answer.
    Hung,
    /// It cannot be asked.
    Failed,
}

/// What a driver said of a machine's GPUs at a moment. Absent, silent and unreadable are three
/// different things, and none of them is zero.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuLook {
    /// How it answers.
    pub driver: Driver,
    /// Why it cannot be asked.
    pub message: String,
    /// Its GPUs.
    pub gpus: Vec<GpuFigures>,
}

/// What a GPU uses. What it does not support is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuFigures {
    /// The device's UUID.
    pub uuid: String,
    /// It has fallen off the bus.
    pub lost: bool,
    /// Memory in use, in bytes.
    pub memory_used_bytes: Option<i64>,
    /// All its memory, in bytes.
    pub memory_total_bytes: Option<i64>,
    /// Share of the last moments in which it computed, 0 to 1.
    pub busy: Option<f64>,
    /// Temperature in degrees Celsius.
    pub temperature: Option<i32>,
    /// Power in watts.
    pub power: Option<f64>,
    /// Memory errors since the driver was loaded that could not be corrected.
    pub uncorrected_errors: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(kind: GpuFaultKind) -> GpuFault {
        GpuFault {
            gpu: "GPU-1".to_owned(),
            name: "X".to_owned(),
            kind,
            number: 0,
            message: "it is so".to_owned(),
        }
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    fn check(
        before: Option<&Faulty>,
        fault: Option<GpuFault>,
        by_job: bool,
        seconds: i64,
    ) -> (Option<Faulty>, Option<(Class, String)>) {
        let checked = checked("w", "GPU-1", before, fault, by_job, at(seconds)).unwrap();
        let told = checked.notice.filter(|told| !told.muted);
        let told = told.map(|told| (told.class, told.subject));
        (checked.faulty, told)
    }

    #[test]
    fn a_fault_and_its_end_are_told_once() {
        assert_eq!(checked("w", "GPU-1", None, None, false, at(0)), None);
        let (faulty, told) = check(None, Some(fault(GpuFaultKind::Lost)), false, 5);
        let subject = "GPU GPU-1 of worker w".to_owned();
        assert_eq!(told, Some((Class::GpuFaulty, subject.clone())));
        let faulty = faulty.unwrap();
        let lost = Some(fault(GpuFaultKind::Lost));
        assert_eq!(
            checked("w", "GPU-1", Some(&faulty), lost, false, at(9)),
            None
        );
        let (worse, told) = check(Some(&faulty), Some(fault(GpuFaultKind::Unfit)), false, 9);
        assert_eq!((worse.unwrap().since, told), (at(5), None));
        let (none, told) = check(Some(&faulty), None, false, 60);
        assert_eq!((none, told), (None, Some((Class::GpuWorks, subject))));
    }

    #[test]
    fn what_a_job_tells_is_not_told_again() {
        let (faulty, told) = check(None, Some(fault(GpuFaultKind::Xid)), true, 5);
        assert_eq!(told, None);
        assert_eq!(check(faulty.as_ref(), None, false, 10), (None, None));
        let (_, told) = check(faulty.as_ref(), None, false, 600);
        assert!(told.is_some(), "it works again after long");
        for ends_none in [GpuFaultKind::Silent, GpuFaultKind::Unfit] {
            let (faulty, told) = check(None, Some(fault(ends_none)), true, 5);
            assert!(!faulty.unwrap().told_by_job && told.is_some());
        }
    }
}
