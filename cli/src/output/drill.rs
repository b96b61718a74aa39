//! What a drill has shown, for people and for programs. Pure.

use std::fmt::Write as _;

use qctl_proto::v1;
use serde::Serialize;

use super::table::{Paint, facts};
use super::{View, document, job, text, time};

/// Cause of an attempt that a drill has interrupted.
const DRILL: &str = "drill";

/// What was seen while a drill went on.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The job that was copied; `None` when a command was given.
    pub of: Option<i64>,
    /// The job, once it had ended.
    pub job: v1::Job,
    /// Its attempts, oldest first.
    pub attempts: Vec<v1::Attempt>,
    /// The checkpoints it published.
    pub checkpoints: Vec<v1::Checkpoint>,
    /// Number of the attempt that was to be interrupted; 0 when none was.
    pub target: i32,
    /// The last progress before the interruption.
    pub before: Option<v1::Progress>,
    /// The first progress after it.
    pub after: Option<v1::Progress>,
}

/// What a drill has shown.
#[derive(Debug, Serialize)]
pub struct Account<'a> {
    job: i64,
    drill_of: Option<i64>,
    /// It was interrupted, resumed from a checkpoint, and ended well.
    ok: bool,
    message: String,
    interrupted: bool,
    resumed: bool,
    state: &'static str,
    interrupted_attempt: Option<i32>,
    resumed_attempt: Option<i32>,
    checkpoint: Option<String>,
    resumed_from: &'a str,
    progress_before: Option<document::Progress<'a>>,
    progress_after: Option<document::Progress<'a>>,
    /// Items that were not done again, by what the job reports.
    kept: Option<f64>,
    /// Items that were done again.
    redone: Option<f64>,
    unit: &'a str,
    /// Run time of the interrupted attempt.
    seconds_before: Option<f64>,
    /// The part of it since the checkpoint that was resumed from.
    seconds_redone: Option<f64>,
    url: &'a str,
}

impl<'a> Account<'a> {
    /// Judges what was seen.
    pub fn of(seen: &'a Seen) -> Self {
        let target = seen
            .attempts
            .iter()
            .find(|attempt| attempt.number == seen.target);
        let cause = target.and_then(|attempt| attempt.outcome.as_ref());
        let interrupted = cause.is_some_and(|outcome| outcome.cause == DRILL);
        let next = seen
            .attempts
            .iter()
            .find(|attempt| interrupted && attempt.number > seen.target && has_started(attempt));
        let resumed_from = next.map_or("", |attempt| attempt.resumed_from.as_str());
        let resumed = !resumed_from.is_empty();
        let checkpoint = seen
            .checkpoints
            .iter()
            .find(|checkpoint| resumed && checkpoint.path == resumed_from);
        let name = checkpoint.map(|found| format!("{}.{}", found.attempt, found.number));
        let (kept, redone, unit) = items(seen, resumed);
        let lost = target
            .zip(checkpoint)
            .and_then(|(attempt, checkpoint)| {
                let ended = time::instant(attempt.ended_at.as_ref())?;
                let published = time::instant(checkpoint.created_at.as_ref())?;
                (ended - published).to_std().ok()
            })
            .map(|length| length.as_secs_f64());
        let succeeded = seen.job.state() == v1::job::State::Succeeded;
        Self {
            job: seen.job.id,
            drill_of: seen.of,
            ok: resumed && succeeded,
            message: message(seen, interrupted, next, name.as_deref()),
            interrupted,
            resumed,
            state: document::job_state(seen.job.state()),
            interrupted_attempt: interrupted.then_some(seen.target),
            resumed_attempt: next.map(|attempt| attempt.number),
            checkpoint: name,
            resumed_from,
            progress_before: seen.before.as_ref().map(document::Progress::from),
            progress_after: seen.after.as_ref().map(document::Progress::from),
            kept,
            redone,
            unit,
            seconds_before: target.and_then(|attempt| document::seconds(attempt.duration.as_ref())),
            seconds_redone: lost,
            url: &seen.job.url,
        }
    }

    /// Whether the job really resumes.
    pub fn is_ok(&self) -> bool {
        self.ok
    }

    /// The same for people.
    pub fn for_people(&self, seen: &Seen, view: &View) -> String {
        let paint = if self.ok { Paint::Green } else { Paint::Red };
        let verdict = if self.ok {
            "resumes"
        } else {
            "does not resume"
        };
        let mut out = format!(
            "Drill {}: it {}\n{}\n\n",
            Paint::Bold.on(&self.job.to_string(), view.colour),
            paint.on(verdict, view.colour),
            text::printable(&self.message)
        );
        let seconds = |length: f64| {
            time::duration(std::time::Duration::try_from_secs_f64(length).unwrap_or_default())
        };
        let mut interrupted = String::new();
        if let Some(attempt) = self.interrupted_attempt {
            let _ = write!(interrupted, "attempt {attempt}");
            if let Some(ran) = self.seconds_before {
                let _ = write!(interrupted, " after {}", seconds(ran));
            }
            if let Some(progress) = &seen.before {
                let _ = write!(interrupted, ", at {}", job::progress(progress));
            }
        }
        let mut resumed = String::new();
        if let Some(attempt) = self.resumed_attempt {
            let _ = write!(resumed, "attempt {attempt}");
            match (&self.checkpoint, self.resumed_from) {
                (Some(name), _) => {
                    let _ = write!(resumed, " from checkpoint {name}");
                }
                (None, "") => resumed.push_str(" from the beginning"),
                (None, folder) => {
                    let _ = write!(resumed, " from {}", text::printable(folder));
                }
            }
        }
        let count = |items: f64| {
            let unit = if self.unit.is_empty() {
                "items"
            } else {
                self.unit
            };
            format!("{} {}", job::number(items), text::printable(unit))
        };
        let mut redone: Vec<String> = self.redone.map(count).into_iter().collect();
        redone.extend(
            self.seconds_redone
                .map(|lost| format!("{} of work", seconds(lost))),
        );
        out.push_str(&facts(
            &[
                ("Interrupted", interrupted),
                ("Went on in", resumed),
                ("Kept", self.kept.map(count).unwrap_or_default()),
                ("Redone", redone.join(", ")),
                ("Ended", job::ended(&seen.job, view).trim_end().to_owned()),
                ("Page", text::printable(self.url)),
            ],
            view,
        ));
        out
    }
}

fn has_started(attempt: &v1::Attempt) -> bool {
    attempt.started_at.is_some()
}

/// Items kept and redone, where both attempts counted the same thing.
fn items(seen: &Seen, resumed: bool) -> (Option<f64>, Option<f64>, &str) {
    let (Some(before), Some(after)) = (&seen.before, &seen.after) else {
        return (None, None, "");
    };
    if before.unit != after.unit || before.done <= 0.0 {
        return (None, None, "");
    }
    // What began afresh may have done some again before its first report.
    let kept = match resumed {
        true => after.done.min(before.done),
        false => 0.0,
    };
    (Some(kept), Some(before.done - kept), &before.unit)
}

fn message(
    seen: &Seen,
    interrupted: bool,
    next: Option<&v1::Attempt>,
    checkpoint: Option<&str>,
) -> String {
    let job = &seen.job;
    let end = match job.state() {
        v1::job::State::Succeeded => "succeeded".to_owned(),
        state => {
            let why = match (job.message.as_str(), &job.outcome) {
                ("", Some(outcome)) => outcome.message.as_str(),
                (message, _) => message,
            };
            let state = document::job_state(state);
            if why.is_empty() {
                state.to_owned()
            } else {
                format!("{state}: {why}")
            }
        }
    };
    if seen.target == 0 && seen.checkpoints.is_empty() {
        return format!(
            "It published no checkpoint before it {end}, so there was nothing to resume from. \
             A job publishes what it wrote to $QCTL_CHECKPOINT_DIR with `qctl checkpoint`"
        );
    }
    if !interrupted {
        return format!("It {end} before it could be interrupted");
    }
    match (next, checkpoint) {
        (None, _) => format!("It was interrupted and not run again: it {end}"),
        (Some(attempt), _) if attempt.resumed_from.is_empty() => {
            format!("It was interrupted, began afresh, and {end}")
        }
        (Some(_), Some(name)) => {
            format!("It was interrupted, resumed from checkpoint {name}, and {end}")
        }
        (Some(attempt), None) => format!(
            "It was interrupted, resumed from {}, and {end}",
            attempt.resumed_from
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    fn attempt(number: i32, cause: &str, resumed_from: &str) -> v1::Attempt {
        v1::Attempt {
            number,
            started_at: at(100),
            ended_at: at(130),
            resumed_from: resumed_from.to_owned(),
            outcome: Some(v1::Outcome {
                cause: cause.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn progress(done: f64) -> Option<v1::Progress> {
        Some(v1::Progress {
            done,
            total: 300.0,
            unit: "images".to_owned(),
            ..Default::default()
        })
    }

    fn seen(state: v1::job::State, attempts: Vec<v1::Attempt>) -> Seen {
        Seen {
            of: Some(42),
            job: v1::Job {
                id: 57,
                state: state.into(),
                message: "exit 3".to_owned(),
                ..Default::default()
            },
            attempts,
            checkpoints: vec![v1::Checkpoint {
                attempt: 1,
                number: 4,
                path: "/c/4".to_owned(),
                created_at: at(125),
                ..Default::default()
            }],
            target: 1,
            before: progress(131.0),
            after: progress(120.0),
        }
    }

    #[test]
    fn a_job_that_resumes_and_succeeds_passes() {
        use v1::job::State;
        let good = seen(
            State::Succeeded,
            vec![attempt(1, "drill", ""), attempt(2, "exit", "/c/4")],
        );
        let account = Account::of(&good);
        assert!(account.is_ok());
        assert_eq!(account.checkpoint.as_deref(), Some("1.4"));
        assert_eq!((account.kept, account.redone), (Some(120.0), Some(11.0)));
        assert_eq!(account.seconds_redone, Some(5.0));
        assert_eq!(
            account.message,
            "It was interrupted, resumed from checkpoint 1.4, and succeeded"
        );
    }

    #[test]
    fn everything_else_fails_with_the_reason() {
        use v1::job::State;
        let told = |seen: &Seen| {
            let account = Account::of(seen);
            assert!(!account.is_ok());
            account.message
        };
        let afresh = seen(
            State::Succeeded,
            vec![attempt(1, "drill", ""), attempt(2, "exit", "")],
        );
        assert_eq!(
            told(&afresh),
            "It was interrupted, began afresh, and succeeded"
        );
        assert_eq!(Account::of(&afresh).kept, Some(0.0));
        let failed = seen(
            State::Failed,
            vec![attempt(1, "drill", ""), attempt(2, "exit", "/c/4")],
        );
        assert_eq!(
            told(&failed),
            "It was interrupted, resumed from checkpoint 1.4, and failed: exit 3"
        );
        let gone = seen(State::Failed, vec![attempt(1, "drill", "")]);
        assert_eq!(
            told(&gone),
            "It was interrupted and not run again: it failed: exit 3"
        );
        let quick = seen(State::Succeeded, vec![attempt(1, "exit", "")]);
        assert_eq!(told(&quick), "It succeeded before it could be interrupted");
        let never = Seen {
            target: 0,
            checkpoints: Vec::new(),
            ..quick
        };
        assert!(told(&never).starts_with("It published no checkpoint before it succeeded"));
    }
}
