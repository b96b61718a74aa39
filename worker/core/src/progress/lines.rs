//! Cutting a stream into lines and frames, at a cost that does not depend on what the job prints.

/// Longest line that parsers see whole, in bytes. Of a longer one they see its two ends.
const MAX_LINE_BYTES: usize = 4096;

/// How much of each end of a longer line is kept, in bytes.
const KEPT_BYTES: usize = 1024;

/// Lines that are looked at from the beginning of a piece of output, and as many from its end.
/// Those between are skipped: nobody can watch that many.
const LINES_PER_END: usize = 64;

/// What ended a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// A newline.
    Newline,
    /// A carriage return: a frame that the next one overwrites, or the first half of `\r\n`.
    Return,
    /// Nothing yet; the same line comes again when more of it arrives.
    Open,
}

/// Collects a stream's current line.
#[derive(Debug, Default)]
pub(super) struct Lines {
    open: Vec<u8>,
}

impl Lines {
    /// Calls `on` for each line that `data` completes and for the one it leaves open.
    pub(super) fn feed(&mut self, data: &[u8], mut on: impl FnMut(&[u8], End)) {
        let mut rest = data;
        let mut looked_at = 0;
        while let Some(at) = memchr::memchr2(b'\n', b'\r', rest) {
            if looked_at == LINES_PER_END {
                let tail = last_lines(rest);
                if tail.len() < rest.len() {
                    self.open.clear();
                    rest = tail;
                    looked_at += 1;
                    continue;
                }
            }
            looked_at += 1;
            let end = if rest[at] == b'\n' {
                End::Newline
            } else {
                End::Return
            };
            if self.open.is_empty() {
                on(ends_of(&rest[..at], &mut Vec::new()), end);
            } else {
                self.extend(&rest[..at]);
                on(&self.open, end);
                self.open.clear();
            }
            rest = &rest[at + 1..];
        }
        if !rest.is_empty() {
            self.extend(rest);
            on(&self.open, End::Open);
        }
    }

    fn extend(&mut self, bytes: &[u8]) {
        // The middle of a long line goes before it is stored, so that no piece is copied twice.
        if bytes.len() > MAX_LINE_BYTES {
            let missing = KEPT_BYTES.saturating_sub(self.open.len());
            self.open.extend_from_slice(&bytes[..missing]);
            self.open
                .extend_from_slice(&bytes[bytes.len() - KEPT_BYTES..]);
        } else {
            self.open.extend_from_slice(bytes);
        }
        if self.open.len() > MAX_LINE_BYTES {
            let cut = self.open.len() - KEPT_BYTES;
            self.open.drain(KEPT_BYTES..cut);
        }
    }
}

/// The part of `bytes` that begins with the last [`LINES_PER_END`] complete lines.
fn last_lines(bytes: &[u8]) -> &[u8] {
    match memchr::memrchr2_iter(b'\n', b'\r', bytes).nth(LINES_PER_END) {
        Some(at) => &bytes[at + 1..],
        None => bytes,
    }
}

/// `line`, or its two ends put together in `room` when it is too long.
fn ends_of<'a>(line: &'a [u8], room: &'a mut Vec<u8>) -> &'a [u8] {
    if line.len() <= MAX_LINE_BYTES {
        return line;
    }
    room.extend_from_slice(&line[..KEPT_BYTES]);
    room.extend_from_slice(&line[line.len() - KEPT_BYTES..]);
    room
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<(String, End)> {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for piece in pieces {
            lines.feed(piece, |line, end| {
                seen.push((String::from_utf8_lossy(line).into_owned(), end));
            });
        }
        seen
    }

    fn line(text: &str, end: End) -> (String, End) {
        (text.to_owned(), end)
    }

    #[test]
    fn lines_frames_and_the_open_rest_are_told_apart() {
        assert_eq!(
            lines(&[b"one\n10%\r20", b"%\rx"]),
            [
                line("one", End::Newline),
                line("10%", End::Return),
                line("20", End::Open),
                line("20%", End::Return),
                line("x", End::Open),
            ]
        );
    }

    #[test]
    fn a_line_without_end_keeps_bounded_memory_and_both_its_ends() {
        let mut lines = Lines::default();
        lines.feed(b"begin ", |_, _| {});
        for _ in 0..100 {
            lines.feed(&[b'x'; 100_000], |line, _| {
                assert!(line.len() <= MAX_LINE_BYTES);
            });
        }
        let mut last = Vec::new();
        lines.feed(b" end\n", |line, _| last = line.to_vec());
        assert!(last.starts_with(b"begin xx") && last.ends_with(b"xx end"));
    }

    #[test]
    fn a_flood_is_seen_at_both_its_ends() {
        let flood: Vec<u8> = (0..100_000)
            .flat_map(|n| format!("{n}\n").into_bytes())
            .collect();
        let seen = lines(&[&flood]);
        assert_eq!(seen[0].0, "0");
        assert_eq!(seen.last().unwrap().0, "99999");
        assert!(seen.len() <= 2 * LINES_PER_END + 1);
    }
}
