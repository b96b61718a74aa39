//! From which figure on something is an alarm, as people write it: `cpu=off`, `memory-growth=8GB`,
//! `gpu-temperature=85`, `run-time=6h`, `disk=on`.

use crate::size;
use crate::v1::{AlarmKind, AlarmSetting};

/// Most choices in one place: one of each kind.
pub const KINDS: [(AlarmKind, &str); 10] = [
    (AlarmKind::Cpu, "cpu"),
    (AlarmKind::MemoryGrowth, "memory-growth"),
    (AlarmKind::GpuMemory, "gpu-memory"),
    (AlarmKind::GpuTemperature, "gpu-temperature"),
    (AlarmKind::RunTime, "run-time"),
    (AlarmKind::Memory, "memory"),
    (AlarmKind::Disk, "disk"),
    (AlarmKind::OutOfMemory, "out-of-memory"),
    (AlarmKind::Clock, "clock"),
    (AlarmKind::Looks, "looks"),
];

/// Those of them that jobs are watched for.
pub const OF_JOBS: [AlarmKind; 4] = [
    AlarmKind::Cpu,
    AlarmKind::MemoryGrowth,
    AlarmKind::GpuMemory,
    AlarmKind::RunTime,
];

const MEGABYTE: i64 = 1_000_000;
const PEBIBYTE: i64 = 1 << 50;
const TEN_YEARS: i64 = 10 * 366 * 24 * 60 * 60;

/// How a kind is written; empty for one that this version does not know.
pub fn word(kind: AlarmKind) -> &'static str {
    KINDS
        .iter()
        .find(|(known, _)| *known == kind)
        .map_or("", |(_, word)| word)
}

/// Reads `KIND=off`, `KIND=on` or `KIND=FIGURE`.
///
/// # Errors
/// Says what is wrong and what was expected.
pub fn parse(text: &str) -> Result<AlarmSetting, String> {
    let words = KINDS.map(|(_, word)| word).join(", ");
    let Some((kind, value)) = text.split_once('=') else {
        return Err(format!(
            "expected KIND=off, KIND=on or KIND=FIGURE, such as memory-growth=8GB; kinds are {words}"
        ));
    };
    let (kind, value) = (kind.trim().replace('_', "-"), value.trim());
    let Some((kind, _)) = KINDS.iter().find(|(_, word)| *word == kind) else {
        return Err(format!("`{kind}` is no kind of alarm; expected {words}"));
    };
    let setting = |limit, off| AlarmSetting {
        kind: (*kind).into(),
        limit,
        off,
    };
    match value {
        "off" => Ok(setting(None, true)),
        "on" => Ok(setting(None, false)),
        value => figure(*kind, value)
            .map(|limit| setting(Some(limit), false))
            .map_err(|expected| {
                format!(
                    "`{value}` is no limit of {}: {expected}, off or on",
                    word(*kind)
                )
            }),
    }
}

/// Reads several with commas between them.
///
/// # Errors
/// Names the one that is wrong, or a kind that is named twice.
pub fn parse_all<'a>(
    texts: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<AlarmSetting>, String> {
    let mut settings: Vec<AlarmSetting> = Vec::new();
    for text in texts {
        for part in text.split(',') {
            let setting = parse(part)?;
            if settings.iter().any(|other| other.kind == setting.kind) {
                return Err(format!("`{}` is chosen twice", word(setting.kind())));
            }
            settings.push(setting);
        }
    }
    Ok(settings)
}

/// The first choice that is not about jobs.
pub fn not_of_jobs(settings: &[AlarmSetting]) -> Option<&'static str> {
    settings
        .iter()
        .map(AlarmSetting::kind)
        .find(|kind| !OF_JOBS.contains(kind))
        .map(word)
}

/// A choice as it is written.
pub fn shown(setting: &AlarmSetting) -> String {
    let kind = setting.kind();
    let value = match (setting.off, setting.limit) {
        (true, _) => "off".to_owned(),
        (false, None) => "on".to_owned(),
        (false, Some(limit)) => written(kind, limit),
    };
    format!("{}={value}", word(kind))
}

fn figure(kind: AlarmKind, text: &str) -> Result<i64, String> {
    let number = |text: &str| text.trim().parse::<i64>().ok();
    let (read, range, expected) = match kind {
        AlarmKind::Cpu | AlarmKind::GpuMemory | AlarmKind::Memory => (
            number(text.strip_suffix('%').unwrap_or(text)),
            1..=100,
            "expected a share from 1% to 100%",
        ),
        AlarmKind::MemoryGrowth | AlarmKind::Disk => (
            size::parse(text)
                .ok()
                .and_then(|bytes| i64::try_from(bytes).ok()),
            MEGABYTE..=PEBIBYTE,
            "expected a size of at least 1MB, such as 8GB",
        ),
        AlarmKind::GpuTemperature => (
            number(text.trim_end_matches(['C', '°'])),
            20..=150,
            "expected degrees Celsius from 20 to 150",
        ),
        AlarmKind::RunTime | AlarmKind::Clock | AlarmKind::Looks => (
            seconds(text),
            1..=TEN_YEARS,
            "expected a time such as 90s, 30m or 6h",
        ),
        AlarmKind::OutOfMemory => (number(text), 1..=1_000, "expected a number from 1 to 1000"),
        AlarmKind::Unspecified => (None, 0..=0, "expected nothing"),
    };
    read.filter(|figure| range.contains(figure))
        .ok_or_else(|| expected.to_owned())
}

fn written(kind: AlarmKind, limit: i64) -> String {
    match kind {
        AlarmKind::Cpu | AlarmKind::GpuMemory | AlarmKind::Memory => format!("{limit}%"),
        AlarmKind::MemoryGrowth | AlarmKind::Disk => {
            let units = [
                (1_000_000_000_000, "TB"),
                (1_000_000_000, "GB"),
                (MEGABYTE, "MB"),
            ];
            let unit = units.iter().find(|(unit, _)| limit % unit == 0);
            unit.map_or_else(
                || limit.to_string(),
                |(unit, name)| format!("{}{name}", limit / unit),
            )
        }
        AlarmKind::RunTime | AlarmKind::Clock | AlarmKind::Looks => {
            let units = [(86_400, "d"), (3_600, "h"), (60, "m")];
            let unit = units.iter().find(|(unit, _)| limit % unit == 0);
            unit.map_or_else(
                || format!("{limit}s"),
                |(unit, name)| format!("{}{name}", limit / unit),
            )
        }
        AlarmKind::GpuTemperature | AlarmKind::OutOfMemory | AlarmKind::Unspecified => {
            limit.to_string()
        }
    }
}

/// Reads `90s`, `30m`, `1h30m`, `2d`; a bare number counts seconds.
fn seconds(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total: i64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let number: i64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let unit = match rest[..letters].trim() {
            "" | "s" | "sec" => 1,
            "m" | "min" => 60,
            "h" => 3_600,
            "d" | "days" => 86_400,
            _ => return None,
        };
        rest = &rest[letters..];
        total = total.checked_add(number.checked_mul(unit)?)?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_and_written() {
        for (text, limit, off) in [
            ("cpu=off", None, true),
            ("disk=on", None, false),
            ("cpu=80%", Some(80), false),
            ("memory-growth=8GB", Some(8_000_000_000), false),
            ("gpu-temperature=85", Some(85), false),
            ("run-time=6h", Some(21_600), false),
            ("looks=90s", Some(90), false),
        ] {
            let setting = parse(text).unwrap();
            assert_eq!((setting.limit, setting.off), (limit, off), "{text}");
            assert_eq!(shown(&setting), text);
        }
        assert_eq!(parse("memory_growth = 2GiB").unwrap().limit, Some(1 << 31));
        assert_eq!(parse("run-time=1h30m").unwrap().limit, Some(5_400));
        assert_eq!(parse("gpu-temperature=85°C").unwrap().limit, Some(85));
        assert_eq!(
            parse_all(["cpu=off,disk=5GB", "looks=off"]).unwrap().len(),
            3
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (text, told) in [
            ("cpu", "expected KIND=off"),
            (
                "cup=off",
                "`cup` is no kind of alarm; expected cpu, memory-growth",
            ),
            ("cpu=", "`` is no limit of cpu: expected a share"),
            (
                "cpu=101%",
                "`101%` is no limit of cpu: expected a share from 1% to 100%",
            ),
            ("run-time=soon", "`soon` is no limit of run-time"),
            ("run-time=", "`` is no limit of run-time"),
            ("memory-growth=1k", "`1k` is no limit of memory-growth"),
            (
                "gpu-temperature=9000",
                "`9000` is no limit of gpu-temperature",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(told), "{text}: {error}");
        }
        let twice = parse_all(["cpu=off", "cpu=80%"]).unwrap_err();
        assert_eq!(twice, "`cpu` is chosen twice");
        let machine = parse_all(["cpu=off", "disk=off"]).unwrap();
        assert_eq!(not_of_jobs(&machine), Some("disk"));
    }
}
