//! What people say about silence: `5m,10m,15m`, `off`, `warn=10m,stop=off`.

use std::time::Duration;

use crate::length;
use crate::v1::Silence;
use crate::v1::silence::Counts;

/// Shortest silence of a stage.
pub const SHORTEST: Duration = Duration::from_secs(1);

/// Longest silence of a stage: ten years, as that of a time limit.
pub const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

const EXPECTED: &str = "expected three lengths such as 5m,10m,15m (warning, reminder, stop), off, or single ones such \
     as stop=30m or warn=10m,stop=off";

/// Reads all stages, or some by their names.
///
/// # Errors
/// When it is neither, or the stages do not rise; says what was expected.
pub fn parse(text: &str) -> Result<Silence, String> {
    let never = prost_types::Duration::default();
    if text.trim() == "off" {
        return Ok(Silence {
            warn_after: Some(never),
            remind_after: Some(never),
            stop_after: Some(never),
            ..Silence::default()
        });
    }
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    let mut silence = Silence::default();
    if let [warn, remind, stop] = parts[..]
        && parts.iter().all(|part| !part.contains('='))
    {
        silence.warn_after = Some(stage(warn)?);
        silence.remind_after = Some(stage(remind)?);
        silence.stop_after = Some(stage(stop)?);
    } else {
        for part in parts {
            let (name, value) = part.split_once('=').ok_or(EXPECTED)?;
            let place = match name.trim() {
                "warn" => &mut silence.warn_after,
                "remind" => &mut silence.remind_after,
                "stop" => &mut silence.stop_after,
                other => {
                    return Err(format!(
                        "`{other}` is no stage of silence: they are warn, remind and stop"
                    ));
                }
            };
            if place.replace(stage(value)?).is_some() {
                return Err(format!("{} is given twice", name.trim()));
            }
        }
    }
    in_order(&silence)?;
    Ok(silence)
}

/// Reads what counts as a sign of life.
///
/// # Errors
/// When it is neither `output` nor `activity`.
pub fn counts(text: &str) -> Result<Counts, String> {
    match text.trim() {
        "output" => Ok(Counts::Output),
        "activity" => Ok(Counts::Activity),
        _ => Err(
            "expected output, or activity (the use of processors, files and GPUs counts too)"
                .to_owned(),
        ),
    }
}

/// The stages as [`parse`] reads them; empty when nothing is said.
pub fn show(silence: &Silence) -> String {
    let [warn, remind, stop] = stages(silence).map(|stage| stage.1);
    let one = |length: Duration| match length.is_zero() {
        true => "off".to_owned(),
        false => length::show(length),
    };
    match (warn, remind, stop) {
        (Some(Duration::ZERO), Some(Duration::ZERO), Some(Duration::ZERO)) => "off".to_owned(),
        (Some(warn), Some(remind), Some(stop)) => [warn, remind, stop].map(one).join(","),
        _ => stages(silence)
            .into_iter()
            .filter_map(|(name, length)| Some(format!("{name}={}", one(length?))))
            .collect::<Vec<_>>()
            .join(","),
    }
}

/// Checks that stages that come do so in their order.
///
/// # Errors
/// Names the two that do not, or the one that is out of range.
pub fn in_order(silence: &Silence) -> Result<(), String> {
    let mut before: Option<(&str, Duration)> = None;
    for (name, length) in stages(silence) {
        let Some(length) = length.filter(|length| !length.is_zero()) else {
            continue;
        };
        if !(SHORTEST..=LONGEST).contains(&length) {
            return Err(format!(
                "{name} is {}, not between a second and ten years",
                length::show(length)
            ));
        }
        if let Some((earlier, at)) = before
            && at >= length
        {
            return Err(format!(
                "{name} ({}) must be longer than {earlier} ({})",
                length::show(length),
                length::show(at)
            ));
        }
        before = Some((name, length));
    }
    Ok(())
}

fn stage(text: &str) -> Result<prost_types::Duration, String> {
    if text.trim() == "off" {
        return Ok(prost_types::Duration::default());
    }
    let length = length::parse(text)?;
    if length < SHORTEST {
        return Err("a silence lasts at least a second; off means never".to_owned());
    }
    prost_types::Duration::try_from(length).map_err(|_| EXPECTED.to_owned())
}

/// The stages by their names, in their order. Negative lengths count as none.
fn stages(silence: &Silence) -> [(&'static str, Option<Duration>); 3] {
    [
        ("warn", silence.warn_after),
        ("remind", silence.remind_after),
        ("stop", silence.stop_after),
    ]
    .map(|(name, length)| {
        let length = length.map(|length| Duration::try_from(length).unwrap_or_default());
        (name, length)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_read_together_and_singly_and_written_again() {
        for text in [
            "5m,10m,15m",
            "off",
            "stop=30m",
            "warn=10m,stop=off",
            "5m,off,15m",
        ] {
            assert_eq!(show(&parse(text).unwrap()), text);
        }
        assert_eq!(
            show(&parse(" warn=2m , remind=4m,stop=6m").unwrap()),
            "2m,4m,6m"
        );
        assert_eq!(show(&Silence::default()), "");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_could() {
        for (text, word) in [
            ("", "expected three lengths"),
            ("5m", "expected three lengths"),
            ("5m,10m", "expected three lengths"),
            ("10m,5m,15m", "remind (5m) must be longer than warn (10m)"),
            (
                "warn=15m,stop=15m",
                "stop (15m) must be longer than warn (15m)",
            ),
            ("stop=5", "a number needs a unit"),
            ("stop=1ms", "at least a second"),
            ("stop=20000d", "ten years"),
            ("halt=5m", "warn, remind and stop"),
            ("stop=5m,stop=6m", "given twice"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert!(counts("cpu").unwrap_err().contains("output"));
        assert_eq!(counts("activity"), Ok(Counts::Activity));
    }
}
