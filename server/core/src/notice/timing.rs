//! When a notice is told: at once, with others, after the night, or not at all.

use chrono::{DateTime, NaiveTime, TimeDelta, Utc};

use super::{Class, Severity};

/// The window in which notices of one class are counted.
pub const WINDOW: TimeDelta = TimeDelta::hours(1);

/// Hours in which only what is bad enough is told; they may span midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet {
    /// They begin at this time of the wall clock.
    pub from: NaiveTime,
    /// They end at this one.
    pub to: NaiveTime,
    /// What is milder than this waits until they end.
    pub below: Severity,
}

impl Quiet {
    /// How much is left of them at this time of the wall clock.
    pub fn left(&self, wall: NaiveTime) -> Option<TimeDelta> {
        let inside = match self.from < self.to {
            true => (self.from..self.to).contains(&wall),
            false => wall >= self.from || wall < self.to,
        };
        let left = self.to.signed_duration_since(wall);
        inside.then(|| match left > TimeDelta::zero() {
            true => left,
            false => left + TimeDelta::days(1),
        })
    }
}

/// The user's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What is milder is kept in the history only.
    pub minimum: Severity,
    /// When to wait with what is not urgent.
    pub quiet: Option<Quiet>,
    /// How long a notice waits for others that it may be told with.
    pub gather: TimeDelta,
    /// Messages of one class in an hour, beyond which what comes is told as one.
    pub per_hour: usize,
}

/// What notices wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// The end of the quiet hours.
    QuietHours,
    /// Others of their class, to be told as one.
    Others,
}

/// What is done about the notices of one class that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Each is told in a message of its own.
    Each,
    /// All are told in one message.
    Together,
    /// Nothing is told before this time.
    Wait(DateTime<Utc>, Waits),
    /// They are never told.
    TooMild,
}

/// Decides about the notices of one class that wait. `oldest` is when the first of them happened;
/// `told` are the times at which messages of this class were made in the last hour, in order;
/// `wall` is the wall clock of the person.
pub fn decide(
    rules: &Rules,
    class: Class,
    oldest: DateTime<Utc>,
    told: &[DateTime<Utc>],
    now: DateTime<Utc>,
    wall: NaiveTime,
) -> Decision {
    let severity = class.severity();
    if class == Class::Test {
        return Decision::Each;
    }
    if severity < rules.minimum {
        return Decision::TooMild;
    }
    if let Some(quiet) = rules.quiet
        && severity < quiet.below
        && let Some(left) = quiet.left(wall)
    {
        return Decision::Wait(now + left, Waits::QuietHours);
    }
    let gathered = oldest + rules.gather;
    if severity == Severity::Critical || told.len() < rules.per_hour && !class.gathers() {
        return Decision::Each;
    }
    if told.len() <= rules.per_hour {
        return match gathered <= now {
            true => Decision::Together,
            false => Decision::Wait(gathered, Waits::Others),
        };
    }
    // One message more than allowed was made of many; the next comes when one left the window.
    let next = told[told.len() - 1 - rules.per_hour] + WINDOW;
    match next.max(gathered) <= now {
        true => Decision::Together,
        false => Decision::Wait(next.max(gathered), Waits::Others),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn wall(text: &str) -> NaiveTime {
        NaiveTime::parse_from_str(text, "%H:%M").unwrap()
    }

    fn rules() -> Rules {
        Rules {
            minimum: Severity::Info,
            quiet: None,
            gather: TimeDelta::seconds(60),
            per_hour: 3,
        }
    }

    #[test]
    fn quiet_hours_span_midnight() {
        let quiet = Quiet {
            from: wall("23:00"),
            to: wall("07:00"),
            below: Severity::Error,
        };
        for (time, left) in [
            ("22:59", None),
            ("23:00", Some(8 * 60)),
            ("00:00", Some(7 * 60)),
            ("06:59", Some(1)),
            ("07:00", None),
        ] {
            assert_eq!(
                quiet.left(wall(time)),
                left.map(TimeDelta::minutes),
                "{time}"
            );
        }
        let noon = Quiet {
            from: wall("12:00"),
            to: wall("13:00"),
            below: Severity::Error,
        };
        assert_eq!(noon.left(wall("12:30")), Some(TimeDelta::minutes(30)));
        assert_eq!(noon.left(wall("13:00")), None);
    }

    #[test]
    fn the_night_is_for_what_is_bad_enough() {
        let rules = Rules {
            quiet: Some(Quiet {
                from: wall("23:00"),
                to: wall("07:00"),
                below: Severity::Error,
            }),
            ..rules()
        };
        let night = wall("02:00");
        let decided = |class| decide(&rules, class, at(0), &[], at(100), night);
        assert_eq!(decided(Class::JobFailed), Decision::Each);
        assert_eq!(
            decided(Class::AttemptFailed),
            Decision::Wait(at(100 + 5 * 3_600), Waits::QuietHours)
        );
        assert_eq!(decided(Class::Test), Decision::Each);
    }

    #[test]
    fn what_is_too_mild_is_not_told() {
        let rules = Rules {
            minimum: Severity::Warning,
            ..rules()
        };
        let decided = |class| decide(&rules, class, at(0), &[], at(100), wall("12:00"));
        assert_eq!(decided(Class::JobSucceeded), Decision::TooMild);
        assert_eq!(decided(Class::AttemptFailed), Decision::Each);
    }

    #[test]
    fn good_news_wait_for_each_other() {
        let decided = |now| {
            decide(
                &rules(),
                Class::JobSucceeded,
                at(0),
                &[],
                at(now),
                wall("12:00"),
            )
        };
        assert_eq!(decided(59), Decision::Wait(at(60), Waits::Others));
        assert_eq!(decided(60), Decision::Together);
    }

    #[test]
    fn three_an_hour_then_one_of_many_then_an_hour_of_rest() {
        let decided = |told: &[i64], oldest, now| {
            let told: Vec<_> = told.iter().map(|second| at(*second)).collect();
            decide(
                &rules(),
                Class::JobFailed,
                at(oldest),
                &told,
                at(now),
                wall("12:00"),
            )
        };
        assert_eq!(decided(&[0, 1], 2, 2), Decision::Each);
        assert_eq!(
            decided(&[0, 1, 2], 3, 3),
            Decision::Wait(at(63), Waits::Others)
        );
        assert_eq!(decided(&[0, 1, 2], 3, 63), Decision::Together);
        assert_eq!(
            decided(&[0, 1, 2, 63], 70, 200),
            Decision::Wait(at(3_600), Waits::Others)
        );
        assert_eq!(decided(&[1, 2, 63], 70, 3_601), Decision::Together);
    }

    #[test]
    fn what_is_critical_never_waits() {
        let told: Vec<_> = (0..9).map(at).collect();
        let decided = decide(
            &rules(),
            Class::DatabaseAway,
            at(9),
            &told,
            at(9),
            wall("02:00"),
        );
        assert_eq!(decided, Decision::Each);
    }
}
