//! A job's raw output as lines that are safe to show above a moving bar. Pure.
//!
//! Each stream has its own line, so that a progress bar on standard error never tears a line of
//! standard output. Carriage returns begin the line anew, so only a line's last frame is shown.
//! Colours are kept where wanted and end with their line; every other control sequence is dropped,
//! because it would move the cursor away from where the bar expects it.

use unicode_width::UnicodeWidthChar as _;

/// Longest line, in bytes; what is longer is shown in pieces.
const MAX_LINE: usize = 32 * 1024;
/// Longest control sequence that is still understood, in bytes; longer ones are dropped.
const MAX_SEQUENCE: usize = 256;
/// Columns between tab stops.
const TAB: usize = 8;

/// Which of a job's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// Standard output, and everything on a pseudo-terminal.
    Output,
    /// Standard error.
    Error,
}

/// The lines of both streams.
#[derive(Debug)]
pub(super) struct OutputLines {
    streams: [Line; 2],
    /// The stream that wrote last.
    latest: Stream,
}

impl OutputLines {
    /// Lines with the job's own colours, or without.
    pub(super) fn new(colour: bool) -> Self {
        Self {
            streams: [Line::new(colour), Line::new(colour)],
            latest: Stream::Output,
        }
    }

    /// Takes a piece of output and appends the lines that it completes.
    pub(super) fn feed(&mut self, stream: Stream, bytes: &[u8], out: &mut Vec<String>) {
        self.latest = stream;
        let line = &mut self.streams[stream as usize];
        for byte in bytes {
            line.feed(*byte, out);
        }
    }

    /// What the stream that wrote last has on its unfinished line. Empty when there is nothing.
    pub(super) fn unfinished(&self) -> String {
        self.streams[self.latest as usize].unfinished()
    }

    /// Gives out unfinished lines when no more will come.
    pub(super) fn finish(&mut self, out: &mut Vec<String>) {
        for line in &mut self.streams {
            line.finish(out);
        }
    }
}

/// Where a line is in reading a control sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Text,
    /// ESC came.
    Escape,
    /// ESC and intermediate bytes came; one more byte ends it.
    Designation,
    /// ESC [ came; the sequence is gathered.
    Control,
    /// A string for the terminal, such as a title: up to BEL or ESC \.
    TerminalString,
    /// ESC came within such a string.
    StringEscape,
}

#[derive(Debug)]
struct Line {
    colour: bool,
    reading: Reading,
    text: Vec<u8>,
    /// The control sequence being read, without ESC [.
    sequence: Vec<u8>,
    /// Colours in force, as the sequences that set them.
    style: Vec<u8>,
    /// A carriage return came: what follows overwrites the line.
    returned: bool,
}

impl Line {
    fn new(colour: bool) -> Self {
        Self {
            colour,
            reading: Reading::Text,
            text: Vec::new(),
            sequence: Vec::new(),
            style: Vec::new(),
            returned: false,
        }
    }

    fn feed(&mut self, byte: u8, out: &mut Vec<String>) {
        // A new line ends whatever was begun: a program that died within a sequence must not
        // swallow what follows.
        if byte == b'\n' {
            self.reading = Reading::Text;
            self.end(out);
            return;
        }
        match self.reading {
            Reading::Text => self.text_byte(byte, out),
            Reading::Escape => self.after_escape(byte),
            Reading::Designation => {
                if !matches!(byte, 0x20..=0x2f) {
                    self.reading = Reading::Text;
                }
            }
            Reading::Control => self.control_byte(byte),
            Reading::TerminalString => match byte {
                0x07 => self.reading = Reading::Text,
                0x1b => self.reading = Reading::StringEscape,
                _ => {}
            },
            Reading::StringEscape => match byte {
                b'\\' => self.reading = Reading::Text,
                _ => self.reading = Reading::TerminalString,
            },
        }
    }

    fn text_byte(&mut self, byte: u8, out: &mut Vec<String>) {
        match byte {
            0x1b => self.reading = Reading::Escape,
            b'\r' => self.returned = true,
            0x08 => self.erase_character(),
            b'\t' | 0x20..=0x7e | 0x80..=0xff => {
                if std::mem::take(&mut self.returned) {
                    self.restart();
                }
                self.text.push(byte);
                if self.text.len() >= MAX_LINE && is_whole(&self.text) {
                    self.end(out);
                }
            }
            _ => {}
        }
    }

    fn after_escape(&mut self, byte: u8) {
        self.reading = match byte {
            b'[' => {
                self.sequence.clear();
                Reading::Control
            }
            b']' | b'P' | b'X' | b'^' | b'_' => Reading::TerminalString,
            0x20..=0x2f => Reading::Designation,
            0x1b => Reading::Escape,
            _ => Reading::Text,
        };
    }

    fn control_byte(&mut self, byte: u8) {
        match byte {
            0x20..=0x3f if self.sequence.len() < MAX_SEQUENCE => self.sequence.push(byte),
            0x40..=0x7e => {
                self.reading = Reading::Text;
                self.obey(byte);
            }
            0x1b => self.reading = Reading::Escape,
            _ => {}
        }
    }

    /// A whole sequence: colours and the erasing of the line are understood.
    fn obey(&mut self, last: u8) {
        match (last, self.sequence.as_slice()) {
            (b'm', _) => self.set_style(),
            (b'K', b"2") => self.restart(),
            (b'K', b"" | b"0") if self.returned => self.restart(),
            _ => {}
        }
    }

    fn set_style(&mut self) {
        let plain = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b';' | b':');
        if !self.colour || !self.sequence.iter().all(plain) {
            return;
        }
        if std::mem::take(&mut self.returned) {
            self.restart();
        }
        let mut sequence = b"\x1b[".to_vec();
        sequence.extend_from_slice(&self.sequence);
        sequence.push(b'm');
        self.text.extend_from_slice(&sequence);
        let resets = self.sequence.is_empty() || self.sequence == b"0";
        if resets || self.style.len() > MAX_SEQUENCE {
            self.style.clear();
        }
        if !resets {
            self.style.extend_from_slice(&sequence);
        }
    }

    fn restart(&mut self) {
        self.returned = false;
        self.text.clear();
        self.text.extend_from_slice(&self.style);
    }

    fn erase_character(&mut self) {
        // A colour's last letter is not a character of the line.
        if self.text.last() == Some(&b'm') && self.text.contains(&0x1b) {
            return;
        }
        while let Some(byte) = self.text.pop() {
            if byte & 0xc0 != 0x80 {
                break;
            }
        }
    }

    fn end(&mut self, out: &mut Vec<String>) {
        out.push(self.shown());
        self.returned = false;
        self.text.clear();
        self.text.extend_from_slice(&self.style);
    }

    fn finish(&mut self, out: &mut Vec<String>) {
        if !self.unfinished().is_empty() {
            self.end(out);
        }
        self.reading = Reading::Text;
        self.text.clear();
        self.style.clear();
    }

    fn unfinished(&self) -> String {
        if self.text == self.style {
            return String::new();
        }
        self.shown()
    }

    /// The line as it is shown: valid, tabs made spaces, colours ended.
    fn shown(&self) -> String {
        let text = String::from_utf8_lossy(&self.text);
        let mut line = String::with_capacity(text.len());
        let mut column = 0;
        let mut in_sequence = false;
        for c in text.chars() {
            match c {
                '\t' => {
                    let spaces = TAB - column % TAB;
                    column += spaces;
                    line.extend(std::iter::repeat_n(' ', spaces));
                }
                '\u{1b}' => {
                    in_sequence = true;
                    line.push(c);
                }
                _ if in_sequence => {
                    in_sequence = c != 'm';
                    line.push(c);
                }
                // Those of the second control range, which begin sequences in some terminals.
                _ if c.is_control() => {}
                _ => {
                    column += c.width().unwrap_or(0);
                    line.push(c);
                }
            }
        }
        if line.contains('\u{1b}') {
            line.push_str("\x1b[0m");
        }
        line
    }
}

/// False when the bytes end within a character.
fn is_whole(text: &[u8]) -> bool {
    match std::str::from_utf8(text) {
        Ok(_) => true,
        Err(error) => error.error_len().is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(colour: bool, pieces: &[&[u8]]) -> Vec<String> {
        let mut view = OutputLines::new(colour);
        let mut out = Vec::new();
        for piece in pieces {
            view.feed(Stream::Output, piece, &mut out);
        }
        view.finish(&mut out);
        out
    }

    #[test]
    fn only_the_last_frame_of_a_line_is_shown() {
        let frames = b"10%\r20%\r30%\ndone\r\n\r\x1b[K100%";
        assert_eq!(lines(false, &[frames]), ["30%", "done", "100%"]);
        assert_eq!(lines(false, &[b"gone\x1b[2Kkept\n"]), ["kept"]);
        assert_eq!(lines(false, &[b"-\x08\\\x08|\x08/ ok\n"]), ["/ ok"]);
    }

    #[test]
    fn a_bar_on_one_stream_does_not_tear_lines_of_the_other() {
        let mut view = OutputLines::new(false);
        let mut out = Vec::new();
        view.feed(Stream::Output, b"img_", &mut out);
        view.feed(Stream::Error, b"\r 40%|####      |", &mut out);
        assert_eq!(view.unfinished(), " 40%|####      |");
        view.feed(Stream::Output, b"1.png\n", &mut out);
        assert_eq!(out, ["img_1.png"]);
        assert_eq!(view.unfinished(), "");
        view.finish(&mut out);
        assert_eq!(out, ["img_1.png", " 40%|####      |"]);
    }

    #[test]
    fn sequences_that_would_move_the_cursor_are_dropped() {
        let text = b"a\x1b[2J\x1b[3A\x1b[?25lb\x1b]0;title\x07c\x1b]9;4;1;50\x1b\\d\x1b(Be\x1bPq\x1b\\f\x07\x0c\x1b7\n";
        assert_eq!(lines(true, &[text]), ["abcdef"]);
        assert_eq!(lines(false, &["x\u{9b}2Jy\n".as_bytes()]), ["x2Jy"]);
    }

    #[test]
    fn a_sequence_without_end_swallows_no_later_line() {
        assert_eq!(
            lines(true, &[b"a\x1b]0;title\nb\x1b[12\nc\n"]),
            ["a", "b", "c"]
        );
    }

    #[test]
    fn colours_end_with_their_line_and_begin_again_on_the_next() {
        let text = b"\x1b[31mred\nstill\x1b[0m plain\nplain\n";
        assert_eq!(
            lines(true, &[text]),
            [
                "\x1b[31mred\x1b[0m",
                "\x1b[31mstill\x1b[0m plain\x1b[0m",
                "plain"
            ]
        );
        assert_eq!(lines(false, &[text]), ["red", "still plain", "plain"]);
    }

    #[test]
    fn pieces_may_be_cut_anywhere() {
        let text = "\x1b[1m画像\x1b[0m\r\x1b[K抽出\t|\n\x1b]0;x\x07ä\x08o\nend".as_bytes();
        let whole = lines(true, &[text]);
        assert_eq!(whole.len(), 3);
        for cut in 0..=text.len() {
            assert_eq!(lines(true, &[&text[..cut], &text[cut..]]), whole, "{cut}");
        }
    }

    #[test]
    fn tabs_reach_the_next_stop_by_columns() {
        assert_eq!(lines(false, &["画像\t|\n".as_bytes()]), ["画像    |"]);
        assert_eq!(lines(false, &[b"12345678\t|\n"]), ["12345678        |"]);
    }

    #[test]
    fn invalid_bytes_are_replaced_and_long_lines_come_in_pieces() {
        assert_eq!(lines(false, &[b"a\xff\xfeb\n"]), ["a\u{fffd}\u{fffd}b"]);
        let long = "画".repeat(MAX_LINE);
        let pieces = lines(false, &[long.as_bytes(), b"\n"]);
        assert!(pieces.iter().all(|piece| piece.len() <= MAX_LINE + 4));
        assert_eq!(pieces.concat(), long);
    }

    #[test]
    fn no_bytes_whatever_bring_it_to_a_halt() {
        let mut state = 1_u32;
        let noise: Vec<u8> = (0..200_000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                [
                    0x1b,
                    b'[',
                    b']',
                    b'm',
                    b'\r',
                    b'\n',
                    b'K',
                    0x08,
                    b'3',
                    (state >> 8) as u8,
                ][(state >> 20) as usize % 10]
            })
            .collect();
        for line in lines(true, &[&noise]) {
            assert!(!line.contains(['\r', '\n', '\u{8}', '\u{7}']));
        }
    }
}
