//! Times and durations for people. Pure, but for the local time zone.

use std::time::Duration;

use chrono::{DateTime, FixedOffset, Local, NaiveDateTime, Offset as _, TimeZone as _, Utc};

/// The zone that times are shown in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// The user's own.
    Local,
    /// A fixed one, for tests.
    Fixed(FixedOffset),
}

impl Zone {
    /// The time as it is read there.
    pub fn show(self, time: DateTime<Utc>) -> DateTime<FixedOffset> {
        match self {
            Self::Local => {
                let local = time.with_timezone(&Local);
                time.with_timezone(&local.offset().fix())
            }
            Self::Fixed(offset) => time.with_timezone(&offset),
        }
    }

    /// The instant that a clock there shows as `local`; the earlier one where clocks were put
    /// back, none where they skipped it.
    pub fn instant(self, local: NaiveDateTime) -> Option<DateTime<Utc>> {
        match self {
            Self::Local => Some(Local.from_local_datetime(&local).earliest()?.to_utc()),
            Self::Fixed(offset) => Some(offset.from_local_datetime(&local).single()?.to_utc()),
        }
    }
}

/// A time of the wire. Times outside the calendar are none.
pub fn instant(time: Option<&prost_types::Timestamp>) -> Option<DateTime<Utc>> {
    let time = time?;
    DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).ok()?)
}

/// A time for the wire.
pub fn timestamp(time: DateTime<Utc>) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.timestamp(),
        // A leap second's nanoseconds go beyond what the wire knows.
        nanos: i32::try_from(time.timestamp_subsec_nanos().min(999_999_999)).unwrap_or(0),
    }
}

/// A duration of the wire; negative ones are zero.
pub fn span(duration: Option<&prost_types::Duration>) -> Option<Duration> {
    let duration = duration?;
    let seconds = u64::try_from(duration.seconds).unwrap_or(0);
    let nanos = u32::try_from(duration.nanos).unwrap_or(0);
    Some(Duration::new(seconds, nanos.min(999_999_999)))
}

/// A duration for the wire.
pub fn wire_span(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// A duration in at most two units: `0.4s`, `7.2s`, `45s`, `3m12s`, `2h05m`, `3d04h`.
pub fn duration(span: Duration) -> String {
    let tenths = (span.as_millis() + 50) / 100;
    if tenths < 100 {
        return format!("{}.{}s", tenths / 10, tenths % 10);
    }
    let seconds = (span.as_millis() + 500) / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// A duration that was chosen, without rounding: `10m`, `1h30m`, `90s` as `1m30s`.
pub fn exact(span: Duration) -> String {
    qctl_proto::length::show(span)
}

/// How long ago: `now`, `12s ago`, `5m ago`, `3h ago`, `2d ago`, then the day.
pub fn ago(time: DateTime<Utc>, now: DateTime<Utc>, zone: Zone) -> String {
    let seconds = (now - time).num_seconds();
    match seconds {
        // Clocks of two machines differ a little.
        ..=1 if seconds > -60 => "now".to_owned(),
        2..60 => format!("{seconds}s ago"),
        60..3_600 => format!("{}m ago", seconds / 60),
        3_600..86_400 => format!("{}h ago", seconds / 3_600),
        86_400..1_209_600 => format!("{}d ago", seconds / 86_400),
        _ => zone.show(time).format("%Y-%m-%d").to_string(),
    }
}

/// A time in full, in the user's zone: `2026-11-21 17:30:05 +09:00`.
pub fn full(time: DateTime<Utc>, zone: Zone) -> String {
    zone.show(time).format("%Y-%m-%d %H:%M:%S %:z").to_string()
}

/// A time of day on today's date, and with its date otherwise.
pub fn clock(time: DateTime<Utc>, now: DateTime<Utc>, zone: Zone) -> String {
    let shown = zone.show(time);
    let format = if shown.date_naive() == zone.show(now).date_naive() {
        "%H:%M:%S"
    } else {
        "%Y-%m-%d %H:%M:%S"
    };
    shown.format(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_keep_two_units() {
        for (millis, text) in [
            (0, "0.0s"),
            (412, "0.4s"),
            (7_249, "7.2s"),
            (9_960, "10s"),
            (45_400, "45s"),
            (59_700, "1m00s"),
            (192_000, "3m12s"),
            (7_500_000, "2h05m"),
            (273_600_000, "3d04h"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn chosen_durations_are_exact() {
        for (millis, text) in [
            (600_000, "10m"),
            (5_400_000, "1h30m"),
            (90_000, "1m30s"),
            (1_500, "1s500ms"),
            (0, "0s"),
        ] {
            assert_eq!(exact(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn long_ago_is_a_day_in_the_users_zone() {
        let tokyo = Zone::Fixed(FixedOffset::east_opt(9 * 3600).unwrap());
        let now = Utc.with_ymd_and_hms(2026, 11, 21, 12, 0, 0).unwrap();
        let before = |seconds| ago(now - chrono::Duration::seconds(seconds), now, tokyo);
        assert_eq!(before(0), "now");
        assert_eq!(before(-5), "now");
        assert_eq!(before(45), "45s ago");
        assert_eq!(before(7_300), "2h ago");
        assert_eq!(before(3 * 86_400), "3d ago");
        let time = Utc.with_ymd_and_hms(2026, 9, 30, 20, 0, 0).unwrap();
        assert_eq!(ago(time, now, tokyo), "2026-10-01");
        assert_eq!(full(time, tokyo), "2026-10-01 05:00:00 +09:00");
        assert_eq!(clock(time, now, tokyo), "2026-10-01 05:00:00");
        assert_eq!(clock(now, now, tokyo), "21:00:00");
    }

    #[test]
    fn times_survive_the_wire() {
        let time = Utc.timestamp_nanos(1_795_267_805_123_456_789);
        assert_eq!(instant(Some(&timestamp(time))), Some(time));
        let span_ = Duration::from_millis(1_500);
        assert_eq!(span(Some(&wire_span(span_))), Some(span_));
    }
}
