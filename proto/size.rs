//! Sizes as people write them.

/// Least output of a job that can be asked to be kept, in bytes.
pub const MIN_LOG_LIMIT: u64 = 1 << 20;

/// Most output of a job that can be asked to be kept, in bytes.
pub const MAX_LOG_LIMIT: u64 = 1 << 50;

/// Reads a size in bytes: `4096`, `512M`, `1.5GiB`, `2GB`. Units count in 1024 unless they are
/// spelled with a B alone.
///
/// # Errors
/// When it is no number, its unit is unknown, or it is larger than an exbibyte; says what was
/// expected.
pub fn parse(text: &str) -> Result<u64, String> {
    let expected = "expected a size such as 512M, 2G or 1.5GiB";
    let text = text.trim();
    let digits = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| expected.to_owned())?;
    let unit: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1_048_576.0,
        "g" | "gib" => 1_073_741_824.0,
        "t" | "tib" => 1_099_511_627_776.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        other => return Err(format!("`{other}` is no unit of size; {expected}")),
    };
    let bytes = number * unit;
    // 2^60 bytes is an exbibyte, which a double still counts exactly enough.
    if bytes > 1_152_921_504_606_846_976.0 {
        return Err("larger than an exbibyte".to_owned());
    }
    Ok(bytes.round() as u64)
}

/// Reads how much output of a job to keep. There is always a limit: a job that never stops writing
/// must not fill its machine's disk.
///
/// # Errors
/// When it is no size, or out of range; says what was expected.
pub fn log_limit(text: &str) -> Result<u64, String> {
    let bytes = parse(text)?;
    if (MIN_LOG_LIMIT..=MAX_LOG_LIMIT).contains(&bytes) {
        return Ok(bytes);
    }
    Err("expected a size of at least 1 MiB and at most 1024T; there is always a limit".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_count_in_1024_unless_spelled_with_b() {
        assert_eq!(parse("512M").unwrap(), 536_870_912);
        assert_eq!(parse("2g").unwrap(), 2_147_483_648);
        assert_eq!(parse("2GB").unwrap(), 2_000_000_000);
        assert_eq!(parse("1.5GiB").unwrap(), 1_610_612_736);
        assert_eq!(parse("4096").unwrap(), 4096);
        for bad in ["", "G", "-1G", "2X", "9999999T"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_limit_is_never_nothing_and_never_none() {
        assert_eq!(log_limit("1M").unwrap(), MIN_LOG_LIMIT);
        assert_eq!(log_limit("1024T").unwrap(), MAX_LOG_LIMIT);
        for bad in ["0", "none", "1000K", "1025T"] {
            assert!(
                log_limit(bad).unwrap_err().contains("expected a size"),
                "{bad}"
            );
        }
    }
}
