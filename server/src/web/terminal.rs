//! Terminal output as lines of styled text.
//!
//! Carriage-return frames collapse into the last one, colours become styles, and every other
//! control sequence is dropped, so that output can neither hide itself nor reach the reader's
//! machine.

use maud::{Markup, html};

/// Longest line that is shown, in characters.
const LONGEST_LINE: usize = 2_000;

/// How a piece of text looks. Colours are the sixteen that terminals name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Style {
    colour: Option<u8>,
    bold: bool,
    dim: bool,
    italic: bool,
    underlined: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    style: Style,
    text: String,
}

/// Where in a control sequence the reading is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Text,
    Escape,
    /// After `ESC [`, with the parameters so far.
    Control(String),
    /// After `ESC ]` and the like, up to its terminator; true after the `ESC` that may begin it.
    Quoted(bool),
}

/// Turns output into lines.
struct Screen {
    lines: Vec<Vec<Span>>,
    line: Vec<Span>,
    length: usize,
    style: Style,
    /// A carriage return was read: the next text begins the line anew.
    rewrites: bool,
    state: State,
}

/// Output as markup, a line of the output a line of text.
pub(super) fn render(output: &[u8]) -> Markup {
    let lines = lines(output);
    html! {
        @for line in &lines {
            @for span in line {
                @if span.style == Style::default() {
                    (span.text)
                } @else {
                    span class=(span.style.classes()) { (span.text) }
                }
            }
            "\n"
        }
    }
}

fn lines(output: &[u8]) -> Vec<Vec<Span>> {
    let mut screen = Screen {
        lines: Vec::new(),
        line: Vec::new(),
        length: 0,
        style: Style::default(),
        rewrites: false,
        state: State::Text,
    };
    for c in String::from_utf8_lossy(output).chars() {
        screen.read(c);
    }
    if !screen.line.is_empty() {
        screen.end_line();
    }
    screen.lines
}

impl Screen {
    fn read(&mut self, c: char) {
        match std::mem::replace(&mut self.state, State::Text) {
            State::Text => self.read_text(c),
            State::Escape => match c {
                '[' => self.state = State::Control(String::new()),
                ']' | 'P' | 'X' | '^' | '_' => self.state = State::Quoted(false),
                // Designates a character set: one more character follows.
                '(' | ')' | '*' | '+' | '#' | '%' | ' ' => self.state = State::Escape,
                '\n' => self.end_line(),
                _ => {}
            },
            State::Control(mut parameters) => match c {
                'm' => self.style.apply(&parameters),
                '\u{40}'..='\u{7e}' => {}
                '\u{20}'..='\u{3f}' if parameters.len() < 64 => {
                    parameters.push(c);
                    self.state = State::Control(parameters);
                }
                // Broken off: what follows is text again.
                _ => self.read_text(c),
            },
            State::Quoted(true) if c == '\\' => {}
            State::Quoted(_) => match c {
                '\u{7}' | '\u{9c}' => {}
                '\u{1b}' => self.state = State::Quoted(true),
                // Nobody writes titles over several lines: the terminator was lost.
                '\n' => self.end_line(),
                _ => self.state = State::Quoted(false),
            },
        }
    }

    fn read_text(&mut self, c: char) {
        match c {
            '\n' => self.end_line(),
            '\r' => self.rewrites = true,
            '\u{1b}' => self.state = State::Escape,
            '\u{8}' => self.erase_last(),
            '\t' => self.write('\t'),
            // Control characters, and those that reorder the text around them.
            '\u{0}'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{200e}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => {}
            c => self.write(c),
        }
    }

    fn write(&mut self, c: char) {
        if std::mem::take(&mut self.rewrites) {
            self.line.clear();
            self.length = 0;
        }
        self.length += 1;
        let c = match self.length.cmp(&LONGEST_LINE) {
            std::cmp::Ordering::Less => c,
            std::cmp::Ordering::Equal => '…',
            std::cmp::Ordering::Greater => return,
        };
        match self.line.last_mut() {
            Some(span) if span.style == self.style => span.text.push(c),
            _ => self.line.push(Span {
                style: self.style,
                text: c.to_string(),
            }),
        }
    }

    fn erase_last(&mut self) {
        if let Some(span) = self.line.last_mut()
            && self.length <= LONGEST_LINE
        {
            span.text.pop();
            self.length -= 1;
            if span.text.is_empty() {
                self.line.pop();
            }
        }
    }

    fn end_line(&mut self) {
        self.lines.push(std::mem::take(&mut self.line));
        self.length = 0;
        self.rewrites = false;
    }
}

impl Style {
    /// Applies the parameters of `ESC [ … m`.
    fn apply(&mut self, parameters: &str) {
        let mut numbers = parameters
            .split([';', ':'])
            .map(|number| number.parse().unwrap_or(0_u16));
        while let Some(number) = numbers.next() {
            match number {
                0 => *self = Self::default(),
                1 => self.bold = true,
                2 => self.dim = true,
                3 => self.italic = true,
                4 => self.underlined = true,
                22 => (self.bold, self.dim) = (false, false),
                23 => self.italic = false,
                24 => self.underlined = false,
                30..=37 => self.colour = Some((number - 30) as u8),
                90..=97 => self.colour = Some((number - 90 + 8) as u8),
                39 => self.colour = None,
                // A colour of a larger palette: only its first sixteen have names.
                38 | 48 => {
                    let colour = match numbers.next() {
                        Some(5) => numbers.next().filter(|colour| *colour < 16),
                        Some(2) => {
                            let _ = numbers.by_ref().take(3).count();
                            None
                        }
                        _ => None,
                    };
                    if number == 38 {
                        self.colour = colour.map(|colour| colour as u8);
                    }
                }
                _ => {}
            }
        }
    }

    fn classes(self) -> String {
        let mut classes = Vec::new();
        if let Some(colour) = self.colour {
            classes.push(format!("c{colour}"));
        }
        for (is_set, class) in [
            (self.bold, "b"),
            (self.dim, "d"),
            (self.italic, "i"),
            (self.underlined, "u"),
        ] {
            if is_set {
                classes.push(class.to_owned());
            }
        }
        classes.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(output: &[u8]) -> Vec<String> {
        lines(output)
            .into_iter()
            .map(|line| line.into_iter().map(|span| span.text).collect())
            .collect()
    }

    #[test]
    fn frames_collapse_into_the_last_one() {
        assert_eq!(text(b"10%\r20%\r100%\ndone\r\n"), ["100%", "done"]);
        assert_eq!(text(b"a\r\r\nb\r"), ["a", "b"]);
        assert_eq!(text(b"abc\x08\x08x\n"), ["ax"]);
    }

    #[test]
    fn control_sequences_are_dropped_and_colours_are_kept() {
        let output =
            b"\x1b]0;title\x07\x1b[2K\x1b[1;31mred\x1b[0m plain\x1b]8;;http://x\x1b\\link\x1b(B!\n";
        assert_eq!(text(output), ["red plainlink!"]);
        let spans = &lines(output)[0];
        assert_eq!(spans[0].style.classes(), "c1 b");
        assert_eq!(spans[1].style, Style::default());
    }

    #[test]
    fn larger_palettes_are_read_to_their_end() {
        let spans = &lines(b"\x1b[38;5;9mA\x1b[38;2;1;2;3mB\x1b[38;5;200;1mC\n")[0];
        assert_eq!(spans[0].style.colour, Some(9));
        assert_eq!(spans[1].style.colour, None);
        assert!(spans[2].style.bold);
    }

    #[test]
    fn markup_in_output_is_only_text() {
        let page = render(b"<script>alert(1)</script>\x1b[31m&\x1b[0m").into_string();
        assert_eq!(
            page,
            "&lt;script&gt;alert(1)&lt;/script&gt;<span class=\"c1\">&amp;</span>\n"
        );
    }

    #[test]
    fn broken_sequences_lose_little() {
        assert_eq!(text(b"\x1b]0;title never ends\nnext\n"), ["", "next"]);
        assert_eq!(text(b"\xffbytes\n"), ["\u{fffd}bytes"]);
        assert_eq!(text("a\u{202e}b\n".as_bytes()), ["ab"]);
        let long = vec![b'x'; 10_000];
        assert_eq!(text(&long)[0].chars().count(), LONGEST_LINE);
    }
}
