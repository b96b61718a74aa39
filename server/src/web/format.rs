//! Times, durations, counts and sizes as people read them.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use maud::{Markup, html};

/// A duration with two units at most: `7 ms`, `0.4 s`, `12 s`, `3 min 05 s`, `2 h 04 min`, `3 d 2 h`.
pub(super) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration.as_millis() < 100 => format!("{} ms", duration.as_millis()),
        0..10 => {
            // Rounded down, so that 9.96 s does not show as 10.0 s.
            let tenths = duration.subsec_millis() / 100;
            if tenths == 0 {
                format!("{seconds} s")
            } else {
                format!("{seconds}.{tenths} s")
            }
        }
        10..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {:02} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// The time between two moments; nothing when the clock says that it is negative.
pub(super) fn between(from: DateTime<Utc>, to: DateTime<Utc>) -> String {
    duration((to - from).to_std().unwrap_or_default())
}

/// A moment in UTC, which the page's script shows in the reader's own time.
pub(super) fn time(time: DateTime<Utc>) -> Markup {
    html! {
        time datetime=(time.to_rfc3339_opts(SecondsFormat::Secs, true)) {
            (time.format("%Y-%m-%d %H:%M UTC"))
        }
    }
}

/// A count of items: whole when it is whole, with thousands apart.
pub(super) fn count(value: f64) -> String {
    if !value.is_finite() {
        return "?".to_owned();
    }
    if value.fract() != 0.0 && value.abs() < 1e6 {
        return format!("{value:.1}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    if value < 0.0 {
        format!("-{text}")
    } else {
        text
    }
}

/// A rate in items a second, or a minute or hour when they are few.
pub(super) fn rate(per_second: f64, unit: &str) -> String {
    let unit = if unit.is_empty() { "items" } else { unit };
    let (value, per) = match per_second {
        rate if rate >= 1.0 => (rate, "s"),
        rate if rate * 60.0 >= 1.0 => (rate * 60.0, "min"),
        rate => (rate * 3_600.0, "h"),
    };
    let value = if value >= 100.0 {
        count(value.round())
    } else {
        format!("{value:.1}")
    };
    if unit == "%" {
        format!("{value} %/{per}")
    } else {
        format!("{value} {unit}/{per}")
    }
}

/// A size in bytes.
pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

/// A command as it could be typed into a shell.
pub(super) fn command(arguments: &[String]) -> String {
    let quoted: Vec<_> = arguments.iter().map(|argument| quote(argument)).collect();
    quoted.join(" ")
}

fn quote(argument: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:=@%+,".contains(c);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units_at_most() {
        for (millis, text) in [
            (0, "0 ms"),
            (7, "7 ms"),
            (430, "0.4 s"),
            (9_000, "9 s"),
            (9_960, "9.9 s"),
            (12_700, "12 s"),
            (185_000, "3 min 05 s"),
            (7_470_000, "2 h 04 min"),
            (270_000_000, "3 d 3 h"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn counts_and_rates_read_well() {
        assert_eq!(count(12.0), "12");
        assert_eq!(count(1_234_567.0), "1 234 567");
        assert_eq!(count(12.5), "12.5");
        assert_eq!(count(f64::NAN), "?");
        assert_eq!(rate(3.21, "images"), "3.2 images/s");
        assert_eq!(rate(0.05, ""), "3.0 items/min");
        assert_eq!(rate(0.001, "epochs"), "3.6 epochs/h");
        assert_eq!(rate(1500.4, "rows"), "1 500 rows/s");
        assert_eq!(rate(2.0, "%"), "2.0 %/s");
    }

    #[test]
    fn commands_can_be_typed() {
        let arguments = ["python3", "-c", "print('a b')", ""].map(str::to_owned);
        assert_eq!(command(&arguments), r"python3 -c 'print('\''a b'\'')' ''");
    }
}
