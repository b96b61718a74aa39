//! Explicit reports: JSON lines such as `{"done":12,"total":30,"unit":"images"}`, or plain
//! `12/30 images` and `40%`.

use serde::Deserialize;

use super::{MAX_MESSAGE_BYTES, MAX_UNIT_BYTES, Sighting, Source, clean, percent_of};

/// Longest line that is read, in bytes.
const MAX_LINE_BYTES: usize = 4096;

#[derive(Deserialize)]
struct Report {
    done: Option<f64>,
    total: Option<f64>,
    percent: Option<f64>,
    unit: Option<String>,
    message: Option<String>,
}

/// Reads a line of the progress pipe.
pub(super) fn parse(line: &[u8]) -> Option<Sighting> {
    if line.len() > MAX_LINE_BYTES {
        return None;
    }
    let text = std::str::from_utf8(line).ok()?.trim();
    if text.starts_with('{') {
        json(serde_json::from_str(text).ok()?)
    } else {
        plain(text)
    }
}

fn json(report: Report) -> Option<Sighting> {
    let known = |number: Option<f64>| number.filter(|n| n.is_finite() && *n >= 0.0);
    let percent = known(report.percent);
    let mut sighting = match (known(report.done), percent) {
        (Some(done), _) => {
            let total = known(report.total).unwrap_or(0.0);
            let mut sighting = Sighting::count(Source::Report, done, total);
            sighting.percent = percent
                .map(|percent| percent.min(100.0))
                .or_else(|| percent_of(done, total));
            sighting
        }
        (None, Some(percent)) => Sighting::percent(Source::Report, percent),
        (None, None) => return None,
    };
    if let Some(unit) = report.unit {
        sighting.unit = clean(&unit, MAX_UNIT_BYTES);
    }
    sighting.message = clean(&report.message.unwrap_or_default(), MAX_MESSAGE_BYTES);
    Some(sighting)
}

fn plain(text: &str) -> Option<Sighting> {
    let (first, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let number = |text: &str| {
        let number = text.trim().parse::<f64>().ok();
        number.filter(|n| n.is_finite() && *n >= 0.0)
    };
    if let Some(percent) = first.strip_suffix('%') {
        let mut sighting = Sighting::percent(Source::Report, number(percent)?);
        sighting.message = clean(rest.trim(), MAX_MESSAGE_BYTES);
        return Some(sighting);
    }
    let (done, total) = first.split_once('/')?;
    let mut sighting = Sighting::count(Source::Report, number(done)?, number(total)?);
    sighting.unit = clean(rest.trim(), MAX_UNIT_BYTES);
    Some(sighting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_understood() {
        let full = parse(br#"{"done":12,"total":30,"unit":"images","message":"cat.jpg"}"#).unwrap();
        assert_eq!(
            (full.done, full.total, full.percent),
            (12.0, 30.0, Some(40.0))
        );
        assert_eq!(
            (full.unit.as_str(), full.message.as_str()),
            ("images", "cat.jpg")
        );

        let percent = parse(br#"{"percent": 40}"#).unwrap();
        assert_eq!((percent.percent, percent.unit.as_str()), (Some(40.0), "%"));

        let plain = parse(b"12/30 images\n").unwrap();
        assert_eq!(
            (plain.done, plain.total, plain.unit.as_str()),
            (12.0, 30.0, "images")
        );
        assert_eq!(parse(b"40%").unwrap().percent, Some(40.0));
        assert_eq!(parse(br#"{"done": 7}"#).unwrap().percent, None);
        assert_eq!(parse(br#"{"done": 7, "new_key": [1]}"#).unwrap().done, 7.0);
    }

    #[test]
    fn what_is_no_report_is_ignored() {
        for line in [
            &b""[..],
            b"hello",
            b"{}",
            b"{\"done\":-1}",
            b"{\"done\":",
            b"nan/3",
            b"\xff/3",
            b"1e999%",
            b"2026/11/21",
        ] {
            assert_eq!(parse(line), None, "{:?}", String::from_utf8_lossy(line));
        }
        assert_eq!(parse(&vec![b'1'; 5000]), None);
    }

    #[test]
    fn text_is_cut_and_freed_of_control_characters() {
        let line = serde_json::json!({"done": 1, "message": "é\u{1b}[2J".repeat(200)}).to_string();
        let message = parse(line.as_bytes()).unwrap().message;
        assert!(message.len() <= MAX_MESSAGE_BYTES && !message.contains('\u{1b}'));
    }
}
