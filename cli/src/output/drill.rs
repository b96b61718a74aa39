//! What a drill has shown, for people and for programs. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use qctl_proto::v1;
use serde::Serialize;

use super::table::{Paint, facts};
use super::{View, document, job, text, time};

/// Cause of an attempt that a drill has interrupted.
const DRILL: &str = "drill";

/// When a drill interrupts its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// So long after the start.
    After(Duration),
    /// At an attempt's checkpoint of this number.
    Checkpoint(i32),
}

impl Default for Moment {
    fn default() -> Self {
        Self::Checkpoint(1)
    }
}

/// What a drill has shown in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// It resumed from a checkpoint and succeeded.
    Resumes,
    /// It resumed from a checkpoint, and ended in another way.
    ResumesAndFails,
    /// It was interrupted and did not go on where it was.
    DoesNotResume,
    /// It was not interrupted, or somebody ended it before it could go on.
    NothingTested,
}

impl Verdict {
    fn sentence(self) -> (&'static str, Paint) {
        match self {
            Self::Resumes => ("it resumes", Paint::Green),
            Self::ResumesAndFails => ("it resumes, and does not end well", Paint::Red),
            Self::DoesNotResume => ("it does not resume", Paint::Red),
            Self::NothingTested => ("nothing was tested", Paint::Yellow),
        }
    }
}

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
    /// When it was to be interrupted.
    pub moment: Moment,
    /// Number of the attempt that was to be interrupted; 0 when that moment never came.
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
    verdict: Verdict,
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
    /// Items that were not done again, by what the job reports: at most so many, because its first
    /// report after the interruption may come late.
    kept: Option<f64>,
    /// Items that were done again: at least so many.
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
        let verdict = match (interrupted, next.is_some(), seen.job.state()) {
            (false, _, _) | (true, false, v1::job::State::Cancelled) => Verdict::NothingTested,
            (true, _, v1::job::State::Succeeded) if resumed => Verdict::Resumes,
            (true, _, _) if resumed => Verdict::ResumesAndFails,
            (true, _, _) => Verdict::DoesNotResume,
        };
        let again = redone.filter(|items| resumed && *items > 0.0);
        let again = again.map(|items| count(items, unit));
        Self {
            job: seen.job.id,
            drill_of: seen.of,
            ok: verdict == Verdict::Resumes,
            verdict,
            message: message(seen, interrupted, next, name.as_deref(), again.as_deref()),
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
        let (verdict, paint) = self.verdict.sentence();
        let mut out = format!(
            "Drill {}: {}\n{}\n\n",
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
        let kept = self.kept.map(|items| match items {
            items if items > 0.0 => format!("up to {}", count(items, self.unit)),
            _ => "nothing".to_owned(),
        });
        let redone = self.redone.filter(|items| *items > 0.0);
        let redone = redone.map(|items| format!("{} or more", count(items, self.unit)));
        let mut redone: Vec<String> = redone.into_iter().collect();
        redone.extend(
            self.seconds_redone
                .map(|lost| format!("{} of work", seconds(lost))),
        );
        out.push_str(&facts(
            &[
                ("Interrupted", interrupted),
                ("Went on in", resumed),
                ("Kept", kept.unwrap_or_default()),
                ("Redone", redone.join(", ")),
                ("Ended", job::ended(&seen.job, view).trim_end().to_owned()),
                ("Page", text::printable(self.url)),
            ],
            view,
        ));
        out
    }
}

/// A number of items in words. Jobs name what they count in the plural.
fn count(items: f64, unit: &str) -> String {
    let number = job::number(items);
    let unit = match (unit, number.as_str()) {
        ("", "1") => "item",
        ("", _) => "items",
        (unit, "1") => match unit.strip_suffix('s') {
            Some(single) if !single.is_empty() && !single.ends_with('s') => single,
            _ => unit,
        },
        (unit, _) => unit,
    };
    format!("{number} {}", text::printable(unit))
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
    again: Option<&str>,
) -> String {
    let end = ended(&seen.job);
    if !interrupted {
        return missed(seen, &end);
    }
    let from = match (next, checkpoint) {
        (None, _) => return format!("It was interrupted and not run again: it {end}"),
        (Some(attempt), _) if attempt.resumed_from.is_empty() => {
            let earlier = |checkpoint: &&v1::Checkpoint| checkpoint.attempt <= seen.target;
            let published = seen.checkpoints.iter().filter(earlier).count();
            return match i64::try_from(published).unwrap_or(i64::MAX) {
                0 => format!(
                    "It had published no checkpoint when it was interrupted, began afresh, and {end}"
                ),
                published => format!(
                    "It was interrupted, began afresh although it had published {}, and {end}",
                    text::counted(published, "checkpoint")
                ),
            };
        }
        (Some(_), Some(name)) => format!("checkpoint {name}"),
        (Some(attempt), None) => attempt.resumed_from.clone(),
    };
    let again = again.map_or_else(String::new, |items| format!(" did {items} or more again,"));
    format!("It was interrupted, resumed from {from},{again} and {end}")
}

/// Why the moment to interrupt it was missed.
fn missed(seen: &Seen, end: &str) -> String {
    if seen.target != 0 {
        return format!("It {end} before it could be interrupted");
    }
    match seen.moment {
        Moment::After(after) => {
            let after = time::duration(after);
            format!("It {end} before it had run for {after}, when it was to be interrupted")
        }
        Moment::Checkpoint(_) if seen.checkpoints.is_empty() => format!(
            "It published no checkpoint before it {end}, so there was nothing to resume from. \
             A job publishes what it wrote to $QCTL_CHECKPOINT_DIR with `qctl checkpoint`"
        ),
        Moment::Checkpoint(number) => format!(
            "It {end} before it had published checkpoint {number}, at which it was to be interrupted"
        ),
    }
}

/// How a job has ended, with why.
fn ended(job: &v1::Job) -> String {
    let state = match job.state() {
        v1::job::State::Succeeded => return "succeeded".to_owned(),
        v1::job::State::Cancelled => "was cancelled",
        state => document::job_state(state),
    };
    match (job.message.as_str(), &job.outcome) {
        ("", None) => state.to_owned(),
        ("", Some(outcome)) if outcome.message.is_empty() => state.to_owned(),
        ("", Some(outcome)) => format!("{state}: {}", outcome.message),
        (message, _) => format!("{state}: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::time::Zone;

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
            moment: Moment::Checkpoint(1),
            target: 1,
            before: progress(131.0),
            after: progress(120.0),
        }
    }

    fn told(seen: &Seen) -> (Verdict, String) {
        let account = Account::of(seen);
        assert_eq!(account.is_ok(), account.verdict == Verdict::Resumes);
        (account.verdict, account.message)
    }

    fn people(seen: &Seen) -> String {
        let view = View {
            now: chrono::DateTime::UNIX_EPOCH,
            zone: Zone::Fixed(chrono::FixedOffset::east_opt(0).unwrap()),
            colour: false,
            width: None,
        };
        Account::of(seen).for_people(seen, &view)
    }

    #[test]
    fn a_job_that_resumes_and_succeeds_passes() {
        use v1::job::State;
        let mut good = seen(
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
            "It was interrupted, resumed from checkpoint 1.4, did 11 images or more again, and \
             succeeded"
        );
        let shown = people(&good);
        assert!(shown.starts_with("Drill 57: it resumes\n"), "{shown}");
        assert!(shown.contains("up to 120 images"), "{shown}");
        assert!(shown.contains("11 images or more, 5.0s of work"), "{shown}");
        good.after = progress(130.0);
        assert!(people(&good).contains("  1 image or more, 5.0s of work"));
        // The checkpoint came with the last report: nothing is known to be done again.
        good.after = progress(131.0);
        let resumed = "It was interrupted, resumed from checkpoint 1.4, and succeeded";
        assert_eq!(told(&good), (Verdict::Resumes, resumed.to_owned()));
        assert!(people(&good).contains("Redone       5.0s of work"));
    }

    #[test]
    fn everything_else_is_told_as_it_was() {
        use v1::job::State;
        let is = |seen: &Seen, verdict, message: &str| {
            assert_eq!(told(seen), (verdict, message.to_owned()));
        };
        let afresh = seen(
            State::Succeeded,
            vec![attempt(1, "drill", ""), attempt(2, "exit", "")],
        );
        is(
            &afresh,
            Verdict::DoesNotResume,
            "It was interrupted, began afresh although it had published 1 checkpoint, and succeeded",
        );
        assert_eq!(Account::of(&afresh).kept, Some(0.0));
        assert!(people(&afresh).contains("Kept         nothing"));
        let unpublished = Seen {
            checkpoints: Vec::new(),
            ..afresh
        };
        is(
            &unpublished,
            Verdict::DoesNotResume,
            "It had published no checkpoint when it was interrupted, began afresh, and succeeded",
        );
        let failed = seen(
            State::Failed,
            vec![attempt(1, "drill", ""), attempt(2, "exit", "/c/4")],
        );
        is(
            &failed,
            Verdict::ResumesAndFails,
            "It was interrupted, resumed from checkpoint 1.4, did 11 images or more again, and \
             failed: exit 3",
        );
        let gone = seen(State::Failed, vec![attempt(1, "drill", "")]);
        is(
            &gone,
            Verdict::DoesNotResume,
            "It was interrupted and not run again: it failed: exit 3",
        );
        let cancelled = seen(State::Cancelled, vec![attempt(1, "drill", "")]);
        is(
            &cancelled,
            Verdict::NothingTested,
            "It was interrupted and not run again: it was cancelled: exit 3",
        );
    }

    #[test]
    fn where_nothing_was_interrupted_nothing_was_tested() {
        use v1::job::State;
        let quick = |target, moment, checkpoints: usize| {
            let mut seen = seen(State::Succeeded, vec![attempt(1, "exit", "")]);
            seen.checkpoints.truncate(checkpoints);
            let seen = Seen {
                target,
                moment,
                ..seen
            };
            assert!(people(&seen).starts_with("Drill 57: nothing was tested\n"));
            let (verdict, message) = told(&seen);
            assert_eq!(verdict, Verdict::NothingTested);
            message
        };
        assert_eq!(
            quick(1, Moment::Checkpoint(1), 1),
            "It succeeded before it could be interrupted"
        );
        assert_eq!(
            quick(0, Moment::After(Duration::from_secs(600)), 0),
            "It succeeded before it had run for 10m00s, when it was to be interrupted"
        );
        assert_eq!(
            quick(0, Moment::Checkpoint(5), 1),
            "It succeeded before it had published checkpoint 5, at which it was to be interrupted"
        );
        assert!(
            quick(0, Moment::Checkpoint(1), 0)
                .starts_with("It published no checkpoint before it succeeded")
        );
    }

    #[test]
    fn one_is_not_told_as_many() {
        assert_eq!(count(1.0, ""), "1 item");
        assert_eq!(count(2.0, ""), "2 items");
        assert_eq!(count(1.5, ""), "1.5 items");
        assert_eq!(count(1.0, "images"), "1 image");
        assert_eq!(count(1.0, "class"), "1 class");
        assert_eq!(count(3.0, "steps"), "3 steps");
        assert_eq!(count(1.0, "枚"), "1 枚");
    }
}
