//! Values as people type them: durations, sizes, job numbers, signals. Pure.
//!
//! Each parser answers with a sentence that names what would have been right, because clap puts
//! it behind the name of the option.

use std::fmt::Write as _;
use std::num::IntErrorKind;
use std::ops::{Bound, RangeBounds};
use std::time::Duration;

use qctl_proto::alarm;
use qctl_proto::v1::AlarmSetting;
use qctl_proto::v1::dependency::Condition;

/// Reads `90s`, `10m`, `1h30m`, `2d`, `1.5h`, `250ms`.
///
/// # Errors
/// A bare number is refused with a suggestion, because its unit would be a guess.
pub fn duration(text: &str) -> Result<Duration, String> {
    qctl_proto::length::parse(text)
}

/// Reads when an attempt counts as silent.
///
/// # Errors
/// Says what was expected.
pub fn silence(text: &str) -> Result<qctl_proto::v1::Silence, String> {
    qctl_proto::silence::parse(text)
}

/// Reads how long a job may leave its GPUs unused; zero for ever.
///
/// # Errors
/// Says what was expected.
pub fn gpu_idle(text: &str) -> Result<Duration, String> {
    qctl_proto::gpu_idle::parse(text)
}

/// Reads what counts as a sign of life.
///
/// # Errors
/// Says what was expected.
pub fn silence_counts(text: &str) -> Result<qctl_proto::v1::silence::Counts, String> {
    qctl_proto::silence::counts(text)
}

/// Reads a size in bytes: `512M`, `2G`, `1.5TiB`, `4096`. K, M, G and T count in 1024, as does
/// the `iB` spelling; KB, MB, GB and TB count in 1000.
///
/// # Errors
/// When it is no number, its unit is unknown, or it is too large.
pub fn size(text: &str) -> Result<i64, String> {
    Ok(i64::try_from(qctl_proto::size::parse(text)?).unwrap_or(i64::MAX))
}

/// Reads how much of a job's output its worker keeps.
///
/// # Errors
/// When it is no size, or out of range.
pub fn log_limit(text: &str) -> Result<i64, String> {
    Ok(i64::try_from(qctl_proto::size::log_limit(text)?).unwrap_or(i64::MAX))
}

/// A reader of whole numbers within a range.
///
/// # Errors
/// The reader's, when a text is no whole number or out of range: says what is accepted.
pub fn whole<T: TryFrom<i64>>(
    range: impl RangeBounds<i64> + Clone + Send + Sync + 'static,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    let expected = match (range.start_bound(), range.end_bound()) {
        (Bound::Included(least), Bound::Included(most)) => {
            format!("expected a whole number from {least} to {most}")
        }
        (Bound::Included(least), _) => format!("expected a whole number from {least} on"),
        _ => "expected a whole number such as 3 or -3".to_owned(),
    };
    let is_open = matches!(range.end_bound(), Bound::Unbounded);
    move |text: &str| {
        let out_of_range = || "this number is out of range".to_owned();
        match text.trim().parse::<i64>() {
            Ok(number) if range.contains(&number) => {
                T::try_from(number).map_err(|_| out_of_range())
            }
            Err(error) if is_open && *error.kind() == IntErrorKind::PosOverflow => {
                Err(out_of_range())
            }
            _ => Err(expected.clone()),
        }
    }
}

/// Reads a pattern that a line is compared with.
///
/// # Errors
/// When it is empty, which every line would match.
pub fn pattern(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("expected a pattern; an empty one would match every line".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads a job number: `42`, `#42`, or the link to its page.
///
/// # Errors
/// When it is none; an attempt such as `42.1` is refused by name.
pub fn job(text: &str) -> Result<i64, String> {
    match attempt(text)? {
        Attempt {
            job, number: None, ..
        } => Ok(job),
        Attempt { job, .. } => Err(format!(
            "this is an attempt; the job's number alone is {job}"
        )),
    }
}

/// A job, perhaps with one of its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The job.
    pub job: i64,
    /// The attempt, from 1.
    pub number: Option<i32>,
}

/// Reads a job number or an attempt: `42`, `#42`, `42.1`, or the link to the job's page.
///
/// # Errors
/// When it is none.
pub fn attempt(text: &str) -> Result<Attempt, String> {
    let expected = || "expected a job number such as 42 (`qctl list` shows them)".to_owned();
    let plain = match text.rsplit_once("/jobs/") {
        Some((_, tail)) => tail.split(['?', '#', '/']).next().unwrap_or(tail),
        None => text.strip_prefix('#').unwrap_or(text),
    };
    let (job, number) = match plain.split_once('.') {
        Some((job, number)) => (job, Some(number)),
        None => (plain, None),
    };
    let positive = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| text.parse::<i64>().ok())
            .flatten()
            .filter(|number| *number > 0)
    };
    let job = positive(job).ok_or_else(expected)?;
    let number = match number {
        None => None,
        Some(number) => Some(
            positive(number)
                .and_then(|number| i32::try_from(number).ok())
                .ok_or_else(|| "expected an attempt such as 42.1".to_owned())?,
        ),
    };
    Ok(Attempt { job, number })
}

/// A checkpoint of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The attempt that published it.
    pub attempt: i32,
    /// Its number within that attempt.
    pub number: i32,
}

/// Reads `1.7`: the seventh checkpoint of the first attempt.
///
/// # Errors
/// When it is no such name.
pub fn checkpoint(text: &str) -> Result<Checkpoint, String> {
    let positive = |text: &str| text.parse::<i32>().ok().filter(|number| *number > 0);
    text.split_once('.')
        .and_then(|(attempt, number)| {
            Some(Checkpoint {
                attempt: positive(attempt)?,
                number: positive(number)?,
            })
        })
        .ok_or_else(|| "expected a checkpoint such as 1.7 (attempt 1, number 7)".to_owned())
}

/// A job that must have ended first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct After {
    /// The other job; in a batch, -1 is the batch's first.
    pub job: i64,
    /// How it must have ended.
    pub condition: Condition,
}

/// Reads `42`, `42:ok`, `42:failed`, `42:any`.
///
/// # Errors
/// When the job is no number or the condition unknown.
pub fn after(text: &str) -> Result<After, String> {
    let (id, condition) = condition(text)?;
    Ok(After {
        job: job(id)?,
        condition,
    })
}

/// Reads the same in a batch, where `-1` means the batch's first job.
///
/// # Errors
/// When the job is no number or the condition unknown.
pub fn after_in_batch(text: &str) -> Result<After, String> {
    let (id, condition) = condition(text)?;
    let job = match id.strip_prefix('-') {
        Some(position) => -job(position)?,
        None => job(id)?,
    };
    Ok(After { job, condition })
}

fn condition(text: &str) -> Result<(&str, Condition), String> {
    // A link holds a colon of its own, so the condition is what stands behind the last one.
    match text.rsplit_once(':') {
        None => Ok((text, Condition::Ok)),
        Some((id, "ok")) => Ok((id, Condition::Ok)),
        Some((id, "failed")) => Ok((id, Condition::Failed)),
        Some((id, "any")) => Ok((id, Condition::Any)),
        Some((_, tail)) if tail.contains("/jobs/") => Ok((text, Condition::Ok)),
        Some((_, other)) => Err(format!(
            "`{other}` is no condition: expected ok, failed or any"
        )),
    }
}

/// Reads `key` or `key=value`.
///
/// # Errors
/// When the key is empty.
pub fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err("a label needs a key: KEY or KEY=VALUE".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// A variable for the job's environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Variable {
    /// Set to this value.
    Set(String, String),
    /// Copied from the present environment.
    Copy(String),
}

/// Reads `NAME=VALUE` or `NAME`.
///
/// # Errors
/// When the name is empty.
pub fn variable(text: &str) -> Result<Variable, String> {
    match text.split_once('=') {
        Some(("", _)) | None if text.is_empty() || text.starts_with('=') => {
            Err("a variable needs a name: NAME=VALUE, or NAME to copy the present value".to_owned())
        }
        Some((name, value)) => Ok(Variable::Set(name.to_owned(), value.to_owned())),
        None => Ok(Variable::Copy(text.to_owned())),
    }
}

/// Reads from which figure on something is an alarm for a job.
///
/// # Errors
/// Says what is wrong and what was expected.
pub fn alarm(text: &str) -> Result<AlarmSetting, String> {
    let setting = alarm::parse(text)?;
    of_job(&[setting])?;
    Ok(setting)
}

/// Refuses what is watched of machines only.
///
/// # Errors
/// Names it.
pub fn of_job(settings: &[AlarmSetting]) -> Result<(), String> {
    match alarm::not_of_jobs(settings) {
        None => Ok(()),
        Some(kind) => Err(format!(
            "`{kind}` is about a machine, not about a job: choose it in worker.toml or server.toml"
        )),
    }
}

/// Reads when people are told of a job.
///
/// # Errors
/// When it is none of the words.
pub fn notify(text: &str) -> Result<qctl_proto::v1::job_spec::Notify, String> {
    use qctl_proto::v1::job_spec::Notify;
    match text {
        "always" => Ok(Notify::Always),
        "failure" => Ok(Notify::Failure),
        "never" => Ok(Notify::Never),
        "default" => Ok(Notify::Unspecified),
        _ => Err("expected always, failure, never or default".to_owned()),
    }
}

const SIGNALS: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ABRT", 6),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("BUS", 7),
    ("FPE", 8),
    ("ILL", 4),
    ("XCPU", 24),
    ("XFSZ", 25),
];

/// Reads `USR1`, `SIGUSR1`, `usr1` or `10`, for a signal that a program can handle.
///
/// # Errors
/// When there is no such signal, or it cannot be handled.
pub fn signal(text: &str) -> Result<i32, String> {
    match any_signal(text) {
        Some(9 | 19) => Err("no program can handle this signal".to_owned()),
        Some(number) => Ok(number),
        None => Err("expected a signal such as USR1, TERM or 10".to_owned()),
    }
}

/// Reads a signal by name or number, whether a program can handle it or not.
pub fn any_signal(text: &str) -> Option<i32> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    match name.parse::<i32>() {
        Ok(number) => Some(number).filter(|n| (1..=64).contains(n)),
        Err(_) => SIGNALS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| *number),
    }
}

/// The name of a signal, such as `SIGKILL`.
pub fn signal_name(number: i32) -> String {
    match SIGNALS.iter().find(|(_, known)| *known == number) {
        Some((name, _)) => format!("SIG{name}"),
        None => format!("signal {number}"),
    }
}

/// Checks that a progress pattern names what it counts; the worker compiles it.
///
/// # Errors
/// When the groups `done` and `total`, or `percent`, are missing.
pub fn progress_pattern(text: &str) -> Result<String, String> {
    let names = |name: &str| {
        [format!("(?P<{name}>"), format!("(?<{name}>")]
            .iter()
            .any(|group| text.contains(group.as_str()))
    };
    if names("percent") || (names("done") && names("total")) {
        Ok(text.to_owned())
    } else {
        Err("the pattern needs groups named done and total, such as (?<done>\\d+)/(?<total>\\d+), or percent".to_owned())
    }
}

/// Checks a request id: 1 to 128 bytes without control characters.
///
/// # Errors
/// When it is empty, too long, or not printable.
pub fn request_id(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 128 || text.chars().any(char::is_control) {
        return Err("expected 1 to 128 bytes without control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads a point in time: `2d` ago, `2026-11-21`, `2026-11-21T08:30`, or RFC 3339. Times without
/// a zone are in `zone`.
///
/// # Errors
/// When it is neither.
pub fn moment(
    text: &str,
    now: chrono::DateTime<chrono::Utc>,
    zone: crate::output::time::Zone,
) -> Result<chrono::DateTime<chrono::Utc>, String> {
    use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
    if let Ok(ago) = duration(text) {
        return chrono::Duration::from_std(ago)
            .ok()
            .and_then(|ago| now.checked_sub_signed(ago))
            .ok_or_else(|| "too long ago".to_owned());
    }
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.with_timezone(&Utc));
    }
    let local = [
        "%Y-%m-%dT%H:%M:%S",
        "%Y-%m-%d %H:%M:%S",
        "%Y-%m-%dT%H:%M",
        "%Y-%m-%d %H:%M",
    ]
    .iter()
    .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
    .or_else(|| {
        let day = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
        Some(day.and_time(NaiveTime::MIN))
    });
    let mut expected =
        String::from("expected an age such as 2d, a day such as 2026-11-21, or a time");
    let _ = write!(expected, " such as 2026-11-21T08:30");
    local.and_then(|local| zone.instant(local)).ok_or(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, seconds) in [
            ("90s", 90.0),
            ("10m", 600.0),
            ("1h30m", 5_400.0),
            ("1h 30m", 5_400.0),
            ("1.5h", 5_400.0),
            ("2d", 172_800.0),
            ("250ms", 0.25),
        ] {
            assert_eq!(duration(text).unwrap().as_secs_f64(), seconds, "{text}");
        }
    }

    #[test]
    fn a_bare_number_is_refused_with_a_suggestion() {
        assert_eq!(
            duration("90").unwrap_err(),
            "a number needs a unit: 90s for seconds, 90m for minutes, 90h for hours"
        );
        assert_eq!(
            duration("1h30").unwrap_err(),
            "the last number has no unit; expected a duration such as 90s, 10m, 1h30m or 2d"
        );
        for bad in ["", "m", "-5s", "5 parsecs", "1e9d", "1..5s", "99999999999w"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn whole_numbers_say_what_is_accepted() {
        assert_eq!(whole::<i32>(0..=1000)("7"), Ok(7));
        assert_eq!(whole::<i32>(..)("-3"), Ok(-3));
        assert_eq!(whole::<i64>(1..)("9223372036854775807"), Ok(i64::MAX));
        for bad in [
            "abc",
            "1e9",
            "1.5",
            "",
            "-",
            "1001",
            "-1",
            "99999999999999999999",
        ] {
            assert_eq!(
                whole::<i32>(0..=1000)(bad).unwrap_err(),
                "expected a whole number from 0 to 1000",
                "{bad}"
            );
        }
        let told = |text: &str| whole::<i32>(..)(text).unwrap_err();
        assert_eq!(told("1e9"), "expected a whole number such as 3 or -3");
        assert_eq!(told("99999999999"), "this number is out of range");
        let told = |text: &str| whole::<i32>(1..)(text).unwrap_err();
        assert_eq!(told("0"), "expected a whole number from 1 on");
        for large in ["3000000000", "99999999999999999999"] {
            assert_eq!(told(large), "this number is out of range");
        }
    }

    #[test]
    fn jobs_are_numbers_or_links() {
        assert_eq!(job("42"), Ok(42));
        assert_eq!(job("#42"), Ok(42));
        assert_eq!(job("http://127.0.0.1:7420/jobs/42?k=x"), Ok(42));
        assert_eq!(
            attempt("42.3"),
            Ok(Attempt {
                job: 42,
                number: Some(3)
            })
        );
        assert!(job("42.1").unwrap_err().contains("attempt"));
        for bad in [
            "",
            "0",
            "-1",
            "x",
            "42.",
            "42.0",
            "99999999999999999999",
            "+1",
        ] {
            assert!(attempt(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn dependencies_name_how_the_other_must_end() {
        let read = |text| after(text).map(|a| (a.job, a.condition));
        assert_eq!(read("7"), Ok((7, Condition::Ok)));
        assert_eq!(read("7:failed"), Ok((7, Condition::Failed)));
        assert_eq!(read("7:any"), Ok((7, Condition::Any)));
        assert_eq!(read("http://h:1/jobs/7"), Ok((7, Condition::Ok)));
        assert!(read("7:done").unwrap_err().contains("`done`"));
        assert!(read("-1").is_err());
        assert_eq!(after_in_batch("-1:any").unwrap().job, -1);
    }

    #[test]
    fn checkpoints_are_an_attempt_and_a_number() {
        let expected = Checkpoint {
            attempt: 1,
            number: 7,
        };
        assert_eq!(checkpoint("1.7"), Ok(expected));
        for bad in ["", "7", "1.", "0.1", "1.0", "-1.2", "1.2.3", "a.b"] {
            assert!(checkpoint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn variables_are_set_or_copied() {
        assert_eq!(
            variable("A=b=c"),
            Ok(Variable::Set("A".into(), "b=c".into()))
        );
        assert_eq!(variable("A"), Ok(Variable::Copy("A".into())));
        assert!(variable("").is_err());
        assert!(variable("=x").is_err());
    }

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal("usr1"), Ok(10));
        assert_eq!(signal("SIGTERM"), Ok(15));
        assert_eq!(signal("12"), Ok(12));
        assert!(signal("KILL").is_err());
        assert!(signal("NOPE").is_err());
        assert!(signal("0").is_err());
        assert_eq!(signal_name(9), "SIGKILL");
        assert_eq!(signal_name(40), "signal 40");
    }

    #[test]
    fn moments_are_ages_days_or_times() {
        use chrono::{FixedOffset, TimeZone, Utc};
        let now = Utc.with_ymd_and_hms(2026, 11, 21, 12, 0, 0).unwrap();
        let tokyo = crate::output::time::Zone::Fixed(FixedOffset::east_opt(9 * 3600).unwrap());
        let read = |text: &str| moment(text, now, tokyo).map(|time| time.to_rfc3339());
        assert_eq!(read("2d").unwrap(), "2026-11-19T12:00:00+00:00");
        assert_eq!(read("2026-11-21").unwrap(), "2026-11-20T15:00:00+00:00");
        assert_eq!(
            read("2026-11-21T08:30").unwrap(),
            "2026-11-20T23:30:00+00:00"
        );
        assert_eq!(
            read("2026-11-21T08:30:00Z").unwrap(),
            "2026-11-21T08:30:00+00:00"
        );
        assert!(read("yesterday").is_err());
    }
}
