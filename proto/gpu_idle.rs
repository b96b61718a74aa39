//! What people say about GPUs that a job leaves unused: `15m`, `off`.

use std::time::Duration;

use crate::length;

/// Shortest time after which a job is stopped for that.
pub const SHORTEST: Duration = Duration::from_secs(1);

/// Longest one: ten years, as that of a time limit.
pub const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

/// Reads how long a job may leave its GPUs unused. Zero means that nobody minds.
///
/// # Errors
/// When it is neither a length in range nor `off`; says what was expected.
pub fn parse(text: &str) -> Result<Duration, String> {
    if text.trim() == "off" {
        return Ok(Duration::ZERO);
    }
    let length = length::parse(text).map_err(|problem| format!("{problem}, or off"))?;
    match is_possible(length) && !length.is_zero() {
        true => Ok(length),
        false => Err("expected a time from 1s to ten years, such as 15m, or off".to_owned()),
    }
}

/// Whether it can be meant: zero, or from a second to ten years.
pub fn is_possible(length: Duration) -> bool {
    length.is_zero() || (SHORTEST..=LONGEST).contains(&length)
}

/// Writes what [`parse`] reads.
pub fn show(length: Duration) -> String {
    match length.is_zero() {
        true => "off".to_owned(),
        false => length::show(length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_off_are_read_and_written_again() {
        for text in ["15m", "off", "1s", "1h30m"] {
            assert_eq!(show(parse(text).unwrap()), text);
        }
        for (text, word) in [
            ("", "a duration"),
            ("15", "needs a unit"),
            ("never", "a duration"),
            ("1ms", "or off"),
            ("0s", "or off"),
            ("20000d", "ten years"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
