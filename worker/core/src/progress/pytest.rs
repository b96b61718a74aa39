//! pytest's output: `collected 412 items`, result letters, `[ 37%]`, and the same with xdist.

use super::{Sighting, Source, ansi};

/// Result letters of one test each.
const RESULTS: &[u8] = b".FEsxXpP";

/// Words that end a test in verbose output.
const WORDS: &[&[u8]] = &[
    b"PASSED", b"FAILED", b"ERROR", b"SKIPPED", b"XFAIL", b"XPASS",
];

/// Follows one test run.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// True from the first line that only pytest prints.
    active: bool,
    total: Option<u64>,
    /// Results on complete lines.
    counted: u64,
    /// The newest percentage.
    percent: Option<u64>,
}

impl Parser {
    pub(super) fn line(&mut self, line: &[u8], complete: bool) -> Option<Sighting> {
        let text = ansi::strip(line);
        let text = text.trim_ascii_end();
        if complete && self.header(text) {
            return self.sighting(0);
        }
        let (body, percent) = match text.strip_prefix(b"[gw") {
            Some(rest) => (text, xdist_percent(rest)),
            None => split_percent(text),
        };
        let results = results(body);
        let quiet = self.total.is_none();
        // Without pytest's header (`-q`) only result letters in front of a percentage are proof.
        if results == 0 || (!self.active && percent.is_none()) {
            return None;
        }
        if percent.is_some() {
            self.percent = percent;
            self.active |= quiet;
        }
        if complete {
            self.counted += results;
            return self.sighting(0);
        }
        self.sighting(results)
    }

    /// Reads what comes before the results. True when the line was understood.
    fn header(&mut self, text: &[u8]) -> bool {
        if text.starts_with(b"====") && contains(text, b" test session starts ") {
            *self = Self {
                active: true,
                ..Self::default()
            };
            return true;
        }
        let collected = text.strip_prefix(b"collecting ... ").unwrap_or(text);
        let total = match collected.strip_prefix(b"collected ") {
            Some(rest) => collected_total(rest),
            None if self.active => xdist_total(text),
            None => None,
        };
        if let Some(total) = total {
            self.active = true;
            self.total = Some(total);
        }
        total.is_some()
    }

    fn sighting(&self, open: u64) -> Option<Sighting> {
        let counted = self.counted + open;
        let Some(total) = self.total else {
            let percent = self.percent?;
            return Some(Sighting::percent(Source::Pytest, percent as f64));
        };
        // Lines may have been skipped in a flood; the percentage then knows better than the count.
        let told = self.percent.unwrap_or(0).min(100) * total;
        let least = told.div_ceil(100);
        let done = counted.max(least).min(total);
        let mut sighting = Sighting::count(Source::Pytest, done as f64, total as f64);
        sighting.unit = "tests".to_owned();
        Some(sighting)
    }
}

/// `412 items`, `412 items / 12 deselected / 400 selected`, `1 item / 2 errors`.
fn collected_total(rest: &[u8]) -> Option<u64> {
    let rest = std::str::from_utf8(rest).ok()?;
    let mut parts = rest.split(" / ");
    let total = parts.next()?;
    let total = total
        .strip_suffix(" items")
        .or_else(|| total.strip_suffix(" item"))?;
    let selected = parts.find_map(|part| part.strip_suffix(" selected"));
    selected.unwrap_or(total).parse().ok()
}

/// `2 workers [412 items]`, or `gw0 [412] / gw1 [412]` of older versions.
fn xdist_total(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let (head, rest) = text.split_once(" [")?;
    if head.ends_with(" workers") || head.ends_with(" worker") {
        let items = rest.strip_suffix(']')?;
        let items = items
            .strip_suffix(" items")
            .or_else(|| items.strip_suffix(" item"))?;
        return items.parse().ok();
    }
    let node = head.strip_prefix("gw")?;
    if !node.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    rest.split(']').next()?.parse().ok()
}

/// Splits `[ 37%]` or `[ 37/412]` off the end; of the second only the line before it is used.
fn split_percent(text: &[u8]) -> (&[u8], Option<u64>) {
    let Some(open) = text.iter().rposition(|&byte| byte == b'[') else {
        return (text, None);
    };
    let inside = text[open + 1..].strip_suffix(b"]").map(<[u8]>::trim_ascii);
    match inside {
        Some(inside) if inside.ends_with(b"%") => {
            let number = std::str::from_utf8(&inside[..inside.len() - 1]).ok();
            match number.and_then(|number| number.parse().ok()) {
                Some(percent) => (text[..open].trim_ascii_end(), Some(percent)),
                None => (text, None),
            }
        }
        Some(inside) if contains(inside, b"/") => (text[..open].trim_ascii_end(), None),
        _ => (text, None),
    }
}

/// Reads the percentage of `[gw0] [ 12%] PASSED tests/test_a.py::test_x` behind `[gw`.
fn xdist_percent(rest: &[u8]) -> Option<u64> {
    let rest = std::str::from_utf8(rest).ok()?;
    let (_, rest) = rest.split_once("] [")?;
    let (percent, _) = rest.split_once("%]")?;
    percent.trim().parse().ok()
}

/// How many results a line tells, without its percentage.
fn results(body: &[u8]) -> u64 {
    // xdist: `[gw0] [ 12%] PASSED tests/test_a.py::test_x`.
    if body.starts_with(b"[gw") {
        let mut words = body.split(|&byte| byte == b' ');
        return u64::from(words.any(|word| WORDS.contains(&word)));
    }
    let last = body.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
    // Verbose: `tests/test_a.py::test_x PASSED`, or with a reason `… SKIPPED (why)`.
    if contains(body, b"::") {
        let mut words = body.split(|&byte| byte == b' ');
        return u64::from(words.any(|word| WORDS.contains(&word)));
    }
    // `tests/test_a.py ..F.` and its continuation `....`.
    let letters = !last.is_empty() && last.iter().all(|byte| RESULTS.contains(byte));
    let path = &body[..body.len() - last.len()];
    let path = path.trim_ascii_end();
    let fits = path.is_empty() || (!path.contains(&b' ') && path.contains(&b'.'));
    if letters && fits {
        last.len() as u64
    } else {
        0
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(text, part).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(lines: &[&str]) -> Option<(f64, f64)> {
        let mut parser = Parser::default();
        let mut last = None;
        for line in lines {
            if let Some(seen) = parser.line(line.as_bytes(), true) {
                last = Some((seen.done, seen.total));
            }
        }
        last
    }

    #[test]
    fn letters_count_also_while_the_line_grows() {
        let mut parser = Parser::default();
        parser.line(b"collected 10 items", true);
        for (line, done) in [("a.py .", 1.0), ("a.py .F", 2.0), ("a.py .Fs", 3.0)] {
            assert_eq!(parser.line(line.as_bytes(), false).unwrap().done, done);
        }
        parser.line(b"a.py .Fs    [ 30%]", true);
        assert_eq!(parser.line(b"b.py x", false).unwrap().done, 4.0);
    }

    #[test]
    fn every_way_to_tell_the_total() {
        assert_eq!(last(&["collected 412 items"]), Some((0.0, 412.0)));
        assert_eq!(last(&["collecting ... collected 1 item"]), Some((0.0, 1.0)));
        assert_eq!(
            last(&["collected 101 items / 19 deselected / 82 selected"]),
            Some((0.0, 82.0))
        );
        let header = "===== test session starts =====";
        assert_eq!(last(&[header, "2 workers [101 items]"]), Some((0.0, 101.0)));
        assert_eq!(last(&[header, "gw0 [101] / gw1 [101]"]), Some((0.0, 101.0)));
    }

    #[test]
    fn without_a_total_the_percentage_is_all() {
        assert_eq!(last(&["....F....     [ 37%]"]), Some((37.0, 100.0)));
    }

    #[test]
    fn ordinary_text_is_no_test_run() {
        for line in [
            "...",
            "Es",
            "loading ....",
            "[ 37%]",
            "Building CXX object [ 37%]",
            "x [12/30]",
            "",
        ] {
            assert_eq!(last(&[line]), None, "{line:?}");
        }
    }

    #[test]
    fn a_count_that_missed_lines_follows_the_percentage() {
        assert_eq!(
            last(&["collected 1000 items", "a.py ....   [ 50%]"]),
            Some((500.0, 1000.0))
        );
    }
}
