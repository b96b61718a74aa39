//! Lengths of time as people write them.

use std::fmt::Write as _;
use std::time::Duration;

/// Longest length accepted: a hundred years of 365 days.
pub const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Reads `90s`, `10m`, `1h30m`, `2d`, `1.5h`, `250ms`.
///
/// # Errors
/// A bare number is refused with a suggestion, because its unit would be a guess.
pub fn parse(text: &str) -> Result<Duration, String> {
    let expected = "expected a duration such as 90s, 10m, 1h30m or 2d";
    let text = text.trim();
    if text.is_empty() {
        return Err(expected.to_owned());
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!(
            "a number needs a unit: {text}s for seconds, {text}m for minutes, {text}h for hours"
        ));
    }
    let mut seconds = 0.0f64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let letters = after
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let number: f64 = number.parse().map_err(|_| expected.to_owned())?;
        let unit = match unit {
            "ms" => 0.001,
            "s" | "sec" | "second" | "seconds" => 1.0,
            "m" | "min" | "minute" | "minutes" => 60.0,
            "h" | "hour" | "hours" => 3_600.0,
            "d" | "day" | "days" => 86_400.0,
            "w" | "week" | "weeks" => 604_800.0,
            "" => return Err(format!("the last number has no unit; {expected}")),
            other => return Err(format!("`{other}` is no unit of time; {expected}")),
        };
        seconds += number * unit;
        rest = after.trim_start();
    }
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        _ => Err("longer than a hundred years".to_owned()),
    }
}

/// Writes a length so that [`parse`] reads the same again, down to milliseconds: `1h30m`.
pub fn show(length: Duration) -> String {
    let whole = length.as_secs();
    let mut text = String::new();
    for (count, unit) in [
        (whole / 86_400, "d"),
        (whole / 3_600 % 24, "h"),
        (whole / 60 % 60, "m"),
        (whole % 60, "s"),
        (u64::from(length.subsec_millis()), "ms"),
    ] {
        if count > 0 {
            let _ = write!(text, "{count}{unit}");
        }
    }
    if text.is_empty() {
        text.push_str("0s");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for text in ["1h30m", "90d", "1d1s", "250ms", "15m", "0s"] {
            assert_eq!(show(parse(text).unwrap()), text);
        }
        assert_eq!(show(parse("90s").unwrap()), "1m30s");
        for bad in ["", "5", "5x", "m", "1h30", "9999999d"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
