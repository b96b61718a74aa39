//! Whether what a notice tells is so no longer by the time that it can be told: after the quiet hours,
//! after an outage of a channel, or after an hour in which others of its kind were told.

use chrono::TimeDelta;

use super::Class;
use crate::job::JobState;

/// What is told sooner than this after it happened is news, whatever has become of it since.
pub const LATE: TimeDelta = TimeDelta::minutes(5);

/// What has become of what a notice tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// Its end was recorded.
    pub ended: bool,
    /// How its job is now; `None` when it is about none, or that was deleted.
    pub job: Option<JobState>,
    /// Its job was started after it.
    pub started: bool,
    /// The silence of its attempt goes on.
    pub silent: bool,
    /// Its attempt goes on, and its worker has no record of it.
    pub record_gone: bool,
}

/// True when it is not told, because it is over. How a job ended is never over.
pub fn is_over(class: Class, since: &Since, age: TimeDelta) -> bool {
    if class.ends().is_some() || class.ended_by().is_some() {
        // The end of a fault tells since when it was; a newer fault tells that it is back.
        return since.ended;
    }
    if age < LATE {
        return false;
    }
    let job_ended = since.job.is_none_or(JobState::is_final);
    match class {
        // The end of the job says it all, or nothing is wrong any more.
        Class::AttemptFailed | Class::JobInterrupted | Class::JobSilenceEnded => job_ended,
        Class::JobRecordGone => !since.record_gone,
        Class::JobHeld => since.job != Some(JobState::Held),
        Class::JobSilent | Class::JobStillSilent => job_ended || !since.silent,
        Class::JobRefused => job_ended || since.started,
        Class::JobBusy | Class::JobGrows | Class::JobGpuFull | Class::JobLong => {
            job_ended || since.ended
        }
        Class::MachineBusy | Class::GpuHot => since.ended,
        // These happened, whatever came after.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(class: Class, since: Since) -> bool {
        is_over(class, &since, LATE)
    }

    #[test]
    fn a_fault_that_ended_is_told_by_its_end_and_an_end_that_did_not_last_by_the_next_fault() {
        let ended = Since {
            ended: true,
            ..Since::default()
        };
        for class in Class::ALL {
            let is_pair = class.ends().is_some() || class.ended_by().is_some();
            assert_eq!(
                is_over(*class, &ended, TimeDelta::zero()),
                is_pair,
                "{class}"
            );
        }
        assert!(!over(Class::WorkerUnreachable, Since::default()));
        assert!(!over(Class::WorkerBack, Since::default()));
    }

    #[test]
    fn how_a_job_ended_is_told_whatever_came_after() {
        for class in [
            Class::JobFailed,
            Class::JobSucceeded,
            Class::JobRecovered,
            Class::JobCancelled,
            Class::JobSkipped,
        ] {
            for job in [None, Some(JobState::Succeeded), Some(JobState::Queued)] {
                let since = Since {
                    ended: true,
                    job,
                    started: true,
                    silent: false,
                    record_gone: false,
                };
                assert!(!over(class, since), "{class} {job:?}");
            }
        }
    }

    #[test]
    fn what_a_job_went_through_is_no_news_after_its_end() {
        let job = |job| Since {
            job,
            silent: true,
            ..Since::default()
        };
        for class in [
            Class::AttemptFailed,
            Class::JobInterrupted,
            Class::JobSilenceEnded,
            Class::JobSilent,
            Class::JobStillSilent,
            Class::JobRefused,
            Class::JobBusy,
            Class::JobGrows,
            Class::JobGpuFull,
            Class::JobLong,
        ] {
            assert!(!over(class, job(Some(JobState::Running))), "{class}");
            assert!(over(class, job(Some(JobState::Succeeded))), "{class}");
            assert!(over(class, job(None)), "{class}: it was deleted");
            // A retry may be quicker than its notice.
            let at_once = is_over(class, &job(Some(JobState::Failed)), TimeDelta::zero());
            assert!(!at_once, "{class}");
        }
    }

    #[test]
    fn what_passes_while_the_job_goes_on_is_over_then() {
        let running = Since {
            job: Some(JobState::Running),
            silent: true,
            ..Since::default()
        };
        let heard = Since {
            silent: false,
            ..running
        };
        assert!(over(Class::JobSilent, heard) && over(Class::JobStillSilent, heard));
        let started = Since {
            started: true,
            ..running
        };
        assert!(over(Class::JobRefused, started));
        let calm = Since {
            ended: true,
            ..running
        };
        assert!(over(Class::JobBusy, calm) && over(Class::GpuHot, calm));
        assert!(over(Class::JobHeld, running), "it was released");
        assert!(over(Class::JobRecordGone, running), "it was found again");
        let gone = Since {
            record_gone: true,
            ..running
        };
        assert!(!over(Class::JobRecordGone, gone));
        let held = Since {
            job: Some(JobState::Held),
            ..Since::default()
        };
        assert!(!over(Class::JobHeld, held));
    }
}
