//! Raw output turned into lines for people. Pure.
//!
//! A program that redraws its last line by carriage returns has, to a reader, written only the
//! last of those frames. [`Collapser`] is fed pieces of any size and gives the text with every
//! line's earlier frames left out.

/// Longest line that is kept whole; beyond it, what there is is given out as it comes.
const MAX_LINE: usize = 64 * 1024;

/// Leaves out the frames that carriage returns overwrote.
#[derive(Debug, Default)]
pub struct Collapser {
    line: Vec<u8>,
    /// A carriage return was the last byte; whether it began a new frame or a line end is not
    /// known yet.
    returned: bool,
    /// The beginning of the line was given out already, because it is too long.
    overlong: bool,
}

impl Collapser {
    /// Takes a piece of output and appends the lines that it completes to `out`.
    pub fn feed(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        let mut rest = piece;
        while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
            self.text(&rest[..at], out);
            if rest[at] == b'\n' {
                self.end_line(out);
            } else {
                self.returned = true;
            }
            rest = &rest[at + 1..];
        }
        self.text(rest, out);
    }

    /// Gives out what is left when no more will come; an unfinished line gets no newline.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.line);
        self.returned = false;
        self.overlong = false;
    }

    /// Bytes that wait for the end of their line.
    pub fn pending(&self) -> &[u8] {
        &self.line
    }

    fn text(&mut self, text: &[u8], out: &mut Vec<u8>) {
        if text.is_empty() {
            return;
        }
        if std::mem::take(&mut self.returned) {
            if self.overlong {
                out.push(b'\n');
                self.overlong = false;
            }
            self.line.clear();
        }
        self.line.extend_from_slice(text);
        if self.line.len() > MAX_LINE {
            out.append(&mut self.line);
            self.overlong = true;
        }
    }

    fn end_line(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.line);
        out.push(b'\n');
        self.returned = false;
        self.overlong = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collapse(pieces: &[&str]) -> String {
        let mut collapser = Collapser::default();
        let mut out = Vec::new();
        for piece in pieces {
            collapser.feed(piece.as_bytes(), &mut out);
        }
        collapser.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn only_the_last_frame_of_a_line_is_kept() {
        assert_eq!(
            collapse(&["\rframe 1\rframe 2\rframe 3\ndone\n"]),
            "frame 3\ndone\n"
        );
        assert_eq!(collapse(&["a\r\nb\r\n"]), "a\nb\n");
        assert_eq!(collapse(&["10%\r20%\r"]), "20%");
        assert_eq!(collapse(&["x\r\r\ny"]), "x\ny");
    }

    #[test]
    fn pieces_may_be_cut_anywhere() {
        let text = "one\r\ntwo\rthree\nfour\r\r\n\nfive";
        let whole = collapse(&[text]);
        for cut in 0..=text.len() {
            assert_eq!(collapse(&[&text[..cut], &text[cut..]]), whole, "at {cut}");
        }
        assert_eq!(whole, "one\nthree\nfour\n\nfive");
    }

    #[test]
    fn a_line_without_end_does_not_gather_in_memory() {
        let mut collapser = Collapser::default();
        let mut out = Vec::new();
        for _ in 0..100 {
            collapser.feed(&[b'x'; 10_000], &mut out);
            assert!(collapser.pending().len() <= MAX_LINE);
        }
        collapser.feed(b"\rlast\n", &mut out);
        assert_eq!(out.len(), 980_000 + 1 + 5);
        assert!(out.ends_with(b"x\nlast\n"));
    }
}
