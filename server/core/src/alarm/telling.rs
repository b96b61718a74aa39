//! What people are told of an episode.

use super::{Episode, Kind, Subject, Unit};
use crate::id::AttemptNumber;
use crate::notice::{Class, Details, Notice, Severity, Wish};

/// What is known of the attempt that an episode is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// Its number.
    pub attempt: AttemptNumber,
    /// What the job's submitter wants to be told.
    pub wish: Wish,
}

/// The notice of an episode that begins. `about` is of a job's.
pub fn begins(episode: &Episode, about: Option<&About>) -> Notice {
    let class = class(episode.subject, episode.kind);
    let details = Details {
        since: Some(episode.began_at),
        seconds: (episode.kind.unit() == Unit::Seconds).then_some(episode.peak.round() as i64),
        value: figure(episode.kind, episode.peak),
        limit: figure(episode.kind, episode.limit),
        ..Details::default()
    };
    let job = match episode.subject {
        Subject::Job(job) => Some(job),
        Subject::Worker(_) | Subject::Coordinator => None,
    };
    let mild = class.severity() == Severity::Info;
    Notice {
        job,
        attempt: about.map(|about| about.attempt),
        worker: episode.machine.clone(),
        muted: about.is_some_and(|about| match about.wish {
            Wish::Never => true,
            // Full processors are nothing that goes wrong.
            Wish::Failure => mild,
            Wish::Default | Wish::Always => false,
        }),
        ..Notice::about(class, told_as(episode), details)
    }
}

/// The notice of an episode that is over; `None` when that is no news.
pub fn ends(subject: Subject, kind: Kind, machine: &str) -> Option<Notice> {
    let class = match (subject, kind) {
        (Subject::Job(_), _) => return None,
        (_, Kind::Disk) => Class::DiskWell,
        (_, Kind::Memory) => Class::MemoryWell,
        (_, Kind::Looks) => Class::LooksBack,
        _ => return None,
    };
    Some(Notice {
        worker: machine.to_owned(),
        ..Notice::about(
            class,
            subject_of(subject, kind, machine),
            Details::default(),
        )
    })
}

/// What people know the subject by; that of its notices.
pub fn told_as(episode: &Episode) -> String {
    subject_of(episode.subject, episode.kind, &episode.machine)
}

/// What people know a subject by.
pub fn subject_of(subject: Subject, kind: Kind, machine: &str) -> String {
    match (subject, kind) {
        (Subject::Job(job), _) => format!("job {job}"),
        (_, Kind::Disk) => format!("disk of {machine}"),
        _ => Notice::worker_subject(machine),
    }
}

/// The class of what is told.
pub fn class(subject: Subject, kind: Kind) -> Class {
    let is_job = matches!(subject, Subject::Job(_));
    match kind {
        Kind::Cpu if is_job => Class::JobBusy,
        Kind::Cpu => Class::MachineBusy,
        Kind::MemoryGrowth => Class::JobGrows,
        Kind::GpuMemory => Class::JobGpuFull,
        Kind::RunTime => Class::JobLong,
        Kind::GpuTemperature => Class::GpuHot,
        Kind::Memory => Class::MemoryNearlyFull,
        Kind::Disk => Class::DiskNearlyFull,
        Kind::OutOfMemory => Class::OutOfMemory,
        Kind::Clock => Class::ClockJumped,
        Kind::Looks => Class::LooksMissed,
    }
}

/// A figure as people read it, in any language; empty where it is told as a length of time.
pub fn figure(kind: Kind, value: f64) -> String {
    match kind.unit() {
        Unit::Percent => format!("{value:.0} %"),
        Unit::Bytes if value >= 1e9 => format!("{:.1} GB", value / 1e9),
        Unit::Bytes => format!("{:.0} MB", value / 1e6),
        Unit::Degrees => format!("{value:.0} °C"),
        Unit::Count => format!("{value:.0}"),
        Unit::Seconds => String::new(),
    }
}
