//! The terminal sequence `ESC ] 9 ; 4 ; state ; percent`, ended by BEL or `ESC \`.

use super::{Sighting, Source};

const INTRODUCER: &[u8] = b"\x1b]9;4;";

/// Longest sequence, in bytes.
const MAX_BYTES: usize = 24;

/// Finds sequences in a stream, also when they are cut by the edge of a piece.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// The end of the stream so far, when it may be the beginning of a sequence.
    open: Vec<u8>,
}

enum Found {
    Percent(f64),
    Cleared,
    Nothing,
}

impl Parser {
    /// Adds the last percentage in `data` to `seen`. True when the last sequence cleared it.
    pub(super) fn scan(&mut self, data: &[u8], seen: &mut Vec<Sighting>) -> bool {
        if self.open.is_empty() {
            return self.search(data, seen);
        }
        let mut joined = std::mem::take(&mut self.open);
        joined.extend_from_slice(data);
        self.search(&joined, seen)
    }

    fn search(&mut self, data: &[u8], seen: &mut Vec<Sighting>) -> bool {
        let mut last = Found::Nothing;
        let mut from = 0;
        while let Some(at) = memchr::memchr(INTRODUCER[0], &data[from..]) {
            let sequence = &data[from + at..];
            from += at + 1;
            let complete = match sequence.strip_prefix(INTRODUCER) {
                Some(body) => match parse(body) {
                    Some(found) => {
                        last = found;
                        true
                    }
                    None => sequence.len() > MAX_BYTES,
                },
                None => !INTRODUCER.starts_with(sequence),
            };
            if !complete {
                self.open = sequence.to_vec();
                break;
            }
        }
        match last {
            Found::Percent(percent) => {
                seen.push(Sighting::percent(Source::Osc, percent));
                false
            }
            Found::Cleared => true,
            Found::Nothing => false,
        }
    }
}

/// Reads `state ; percent` up to the terminator; `None` while it is incomplete.
fn parse(body: &[u8]) -> Option<Found> {
    let end = body.iter().position(|&byte| byte == 0x07 || byte == 0x1b);
    let end = end.filter(|end| body[*end] == 0x07 || body.get(end + 1).is_some())?;
    let text = std::str::from_utf8(&body[..end]).unwrap_or_default();
    let (state, percent) = text.split_once(';').unwrap_or((text, ""));
    Some(match (state, percent.parse::<u8>()) {
        ("0", _) => Found::Cleared,
        // Normal, error and paused; 3 is indeterminate and tells no percentage.
        ("1" | "2" | "4", Ok(percent)) => Found::Percent(f64::from(percent)),
        _ => Found::Nothing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(parser: &mut Parser, data: &[u8]) -> (Option<f64>, bool) {
        let mut seen = Vec::new();
        let cleared = parser.scan(data, &mut seen);
        (seen.last().and_then(|s| s.percent), cleared)
    }

    #[test]
    fn both_terminators_and_all_states() {
        let mut parser = Parser::default();
        assert_eq!(
            scan(&mut parser, b"a\x1b]9;4;1;25\x07b"),
            (Some(25.0), false)
        );
        assert_eq!(
            scan(&mut parser, b"\x1b]9;4;2;70\x1b\\"),
            (Some(70.0), false)
        );
        assert_eq!(scan(&mut parser, b"\x1b]9;4;3;\x07"), (None, false));
        assert_eq!(
            scan(&mut parser, b"\x1b]9;4;1;9\x07\x1b]9;4;0;\x07"),
            (None, true)
        );
        assert_eq!(scan(&mut parser, b"\x1b]9;hello\x07\x1b[1m"), (None, false));
    }

    #[test]
    fn a_sequence_cut_anywhere_is_found() {
        let sequence = b"xx\x1b]9;4;1;42\x1b\\yy";
        for cut in 0..sequence.len() {
            let mut parser = Parser::default();
            let first = scan(&mut parser, &sequence[..cut]).0;
            let second = scan(&mut parser, &sequence[cut..]).0;
            assert_eq!(first.or(second), Some(42.0), "cut at {cut}");
        }
    }

    #[test]
    fn an_endless_sequence_is_given_up() {
        let mut parser = Parser::default();
        for _ in 0..100 {
            scan(&mut parser, b"\x1b]9;4;1;");
            assert!(parser.open.len() <= 2 * MAX_BYTES);
        }
    }
}
