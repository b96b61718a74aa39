//! Counters in plain text: `[12/30] cat.jpg` and `12/30`.

use super::{Sighting, Source, ansi};

/// Only this much of each line is searched, in bytes.
const SEARCHED_BYTES: usize = 256;

/// Follows the counters of one stream.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// The last counter without brackets. It counts once a second one continues it, because dates,
    /// versions and fractions look the same.
    bare: Option<(u64, u64)>,
}

impl Parser {
    pub(super) fn line(&mut self, line: &[u8], complete: bool) -> Option<Sighting> {
        let line = &line[..line.len().min(SEARCHED_BYTES)];
        memchr::memchr(b'/', line)?;
        let text = ansi::strip(line);
        if let Some((done, total)) = bracketed(&text) {
            return Some(Sighting::count(Source::Counter, done as f64, total as f64));
        }
        let (done, total) = bare(&text).filter(|_| complete)?;
        let before = self.bare.replace((done, total));
        let continues = before.is_some_and(|before| before.1 == total && before.0 < done);
        continues.then(|| Sighting::count(Source::Counter, done as f64, total as f64))
    }
}

/// The first `[12/30]`, which may be padded with spaces.
fn bracketed(text: &[u8]) -> Option<(u64, u64)> {
    memchr::memchr_iter(b'[', text).find_map(|open| {
        let inside = &text[open + 1..];
        let close = inside.iter().position(|&byte| byte == b']')?;
        pair(&inside[..close])
    })
}

/// The first word that is `12/30` and nothing else.
fn bare(text: &[u8]) -> Option<(u64, u64)> {
    text.split(|byte| byte.is_ascii_whitespace())
        .find_map(|word| {
            let word = word.strip_prefix(b"(").unwrap_or(word);
            let end = word
                .iter()
                .rposition(|byte| !b"):,.;".contains(byte))
                .map_or(0, |at| at + 1);
            pair(&word[..end])
        })
}

fn pair(text: &[u8]) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(text).ok()?;
    let (done, total) = text.split_once('/')?;
    let number = |text: &str| {
        let text = text.trim();
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_: &u64| digits)
    };
    let (done, total) = (number(done)?, number(total)?);
    (total > 0 && done <= total).then_some((done, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(lines: &[&str]) -> Option<(f64, f64)> {
        let mut parser = Parser::default();
        let seen = lines.iter().filter_map(|l| parser.line(l.as_bytes(), true));
        seen.last().map(|seen| (seen.done, seen.total))
    }

    #[test]
    fn brackets_are_believed_at_once() {
        assert_eq!(last(&["[12/30] cat.jpg"]), Some((12.0, 30.0)));
        assert_eq!(last(&["Extracting [ 2/30] cat.jpg"]), Some((2.0, 30.0)));
        assert_eq!(last(&["\x1b[1m[7/9]\x1b[0m compiling"]), Some((7.0, 9.0)));
    }

    #[test]
    fn bare_counters_must_go_on() {
        assert_eq!(last(&["processed 12/30 images"]), None);
        assert_eq!(last(&["image 12/30", "image 13/30:"]), Some((13.0, 30.0)));
        assert_eq!(last(&["on 1/2", "on 1/3"]), None);
    }

    #[test]
    fn dates_paths_and_impossible_counts_are_none() {
        for line in [
            "[31/12]",
            "2026/11/21",
            "/usr/30",
            "[a/b]",
            "[1/0]",
            "[-1/3]",
            "[1/2/3]",
            "[+1/3]",
        ] {
            assert_eq!(last(&[line, line]), None, "{line:?}");
        }
    }
}
