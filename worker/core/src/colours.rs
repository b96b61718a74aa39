//! The colours that a terminal would show at a position of the output, so that a reader can begin
//! anywhere.

/// Longest control sequence that is understood, in bytes.
const MAX_SEQUENCE_BYTES: usize = 64;

/// Most parameters of one sequence that are understood.
const MAX_PARAMETERS: usize = 32;

/// The attributes that a sequence can switch on, with the parameters that do it.
const ATTRIBUTES: [u16; 8] = [1, 2, 3, 4, 5, 7, 8, 9];

/// Follows the colours and attributes (SGR sequences) of raw output. Cheap to copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Colours {
    /// A bit for each of [`ATTRIBUTES`].
    attributes: u8,
    foreground: Colour,
    background: Colour,
    /// The parameters of a sequence that is still incomplete.
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Colour {
    #[default]
    Default,
    /// The parameter itself, such as 31 or 104.
    Named(u8),
    Indexed(u8),
    Rgb(u8, u8, u8),
}

/// A sequence that has begun.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Open {
    bracket: bool,
    parameters: Vec<u8>,
}

impl Colours {
    /// Takes the output that follows what was taken before.
    pub fn feed(&mut self, data: &[u8]) {
        let mut rest = data;
        while !rest.is_empty() {
            if self.open.is_none() {
                let Some(at) = memchr::memchr(0x1b, rest) else {
                    return;
                };
                self.open = Some(Open::default());
                rest = &rest[at + 1..];
                continue;
            }
            rest = self.sequence(rest);
        }
    }

    /// True when nothing differs from a terminal's default.
    pub fn is_default(&self) -> bool {
        self.attributes == 0
            && self.foreground == Colour::Default
            && self.background == Colour::Default
    }

    /// The control sequence that brings a fresh terminal into this state; empty for the default.
    pub fn restore(&self) -> Vec<u8> {
        if self.is_default() {
            return Vec::new();
        }
        let mut parameters: Vec<String> = ATTRIBUTES
            .iter()
            .enumerate()
            .filter(|(bit, _)| self.attributes & (1 << bit) != 0)
            .map(|(_, parameter)| parameter.to_string())
            .collect();
        for (colour, extended) in [(self.foreground, 38), (self.background, 48)] {
            match colour {
                Colour::Default => {}
                Colour::Named(parameter) => parameters.push(parameter.to_string()),
                Colour::Indexed(index) => parameters.push(format!("{extended};5;{index}")),
                Colour::Rgb(r, g, b) => parameters.push(format!("{extended};2;{r};{g};{b}")),
            }
        }
        format!("\x1b[{}m", parameters.join(";")).into_bytes()
    }

    /// Goes on with the open sequence; returns what follows it.
    fn sequence<'a>(&mut self, data: &'a [u8]) -> &'a [u8] {
        let Some(open) = &mut self.open else {
            return data;
        };
        for (at, &byte) in data.iter().enumerate() {
            match byte {
                b'[' if !open.bracket => open.bracket = true,
                b'0'..=b'9' | b';' | b':' if open.bracket => {
                    if open.parameters.len() == MAX_SEQUENCE_BYTES {
                        self.open = None;
                        return &data[at + 1..];
                    }
                    open.parameters.push(byte);
                }
                b'm' if open.bracket => {
                    let parameters = std::mem::take(&mut open.parameters);
                    self.open = None;
                    self.apply(&parameters);
                    return &data[at + 1..];
                }
                0x1b => *open = Open::default(),
                _ => {
                    self.open = None;
                    return &data[at + 1..];
                }
            }
        }
        &[]
    }

    fn apply(&mut self, parameters: &[u8]) {
        // `38:2::r:g:b` has an empty colour space between; its other form uses semicolons only.
        let text = String::from_utf8_lossy(parameters).replace("2::", "2:");
        let mut numbers = text
            .split([';', ':'])
            .take(MAX_PARAMETERS)
            .map(|number| number.parse().unwrap_or(0_u16));
        while let Some(number) = numbers.next() {
            match number {
                0 => {
                    *self = Self {
                        open: self.open.take(),
                        ..Self::default()
                    }
                }
                // Bold and dim go off together.
                22 => self.off(&[1, 2]),
                21 | 23..=29 => self.off(&[number - 20]),
                30..=37 | 90..=97 => self.foreground = Colour::Named(number as u8),
                40..=47 | 100..=107 => self.background = Colour::Named(number as u8),
                38 => self.foreground = extended(&mut numbers).unwrap_or(self.foreground),
                48 => self.background = extended(&mut numbers).unwrap_or(self.background),
                39 => self.foreground = Colour::Default,
                49 => self.background = Colour::Default,
                _ => {
                    if let Some(bit) = ATTRIBUTES.iter().position(|known| *known == number) {
                        self.attributes |= 1 << bit;
                    }
                }
            }
        }
    }

    fn off(&mut self, parameters: &[u16]) {
        for (bit, known) in ATTRIBUTES.iter().enumerate() {
            if parameters.contains(known) {
                self.attributes &= !(1 << bit);
            }
        }
    }
}

fn extended(numbers: &mut impl Iterator<Item = u16>) -> Option<Colour> {
    let mut byte = || numbers.next().map(|number| number.min(255) as u8);
    match byte()? {
        5 => Some(Colour::Indexed(byte()?)),
        2 => Some(Colour::Rgb(byte()?, byte()?, byte()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(data: &[u8]) -> String {
        let mut colours = Colours::default();
        colours.feed(data);
        String::from_utf8(colours.restore()).unwrap()
    }

    #[test]
    fn colours_and_attributes_are_kept_until_reset() {
        assert_eq!(after(b"plain"), "");
        assert_eq!(after(b"\x1b[1;31mred"), "\x1b[1;31m");
        assert_eq!(after(b"\x1b[1;31mred\x1b[0mplain"), "");
        assert_eq!(after(b"\x1b[31m\x1b[m"), "");
        assert_eq!(after(b"\x1b[1;4m\x1b[22m"), "\x1b[4m");
        assert_eq!(after(b"\x1b[31;42m\x1b[39m"), "\x1b[42m");
        assert_eq!(
            after(b"\x1b[38;5;208;48;2;1;2;3m"),
            "\x1b[38;5;208;48;2;1;2;3m"
        );
        assert_eq!(after(b"\x1b[38:2::9:8:7m"), "\x1b[38;2;9;8;7m");
        assert_eq!(after(b"\x1b[97;101m"), "\x1b[97;101m");
    }

    #[test]
    fn other_sequences_change_nothing() {
        assert_eq!(
            after(b"\x1b[2J\x1b[10;20H\x1b]0;31m\x07\x1b(B\x1b[?25l"),
            ""
        );
        assert_eq!(after(b"\x1b\x1b[32m"), "\x1b[32m");
    }

    #[test]
    fn a_sequence_may_be_cut_anywhere() {
        let data = b"a\x1b[1;38;5;208mb";
        for cut in 0..data.len() {
            let mut colours = Colours::default();
            colours.feed(&data[..cut]);
            colours.feed(&data[cut..]);
            assert_eq!(colours.restore(), b"\x1b[1;38;5;208m", "cut at {cut}");
        }
    }

    #[test]
    fn an_endless_sequence_is_given_up() {
        let mut colours = Colours::default();
        colours.feed(b"\x1b[");
        colours.feed(&[b'1'; 100_000]);
        assert_eq!(colours, Colours::default());
    }

    proptest! {
        #[test]
        fn what_is_restored_is_the_same_state(
            data in "(\u{1b}\\[[0-9;:]{0,12}m|[a-z\u{1b}\\[]){0,20}"
        ) {
            let mut colours = Colours::default();
            colours.feed(data.as_bytes());
            let mut again = Colours::default();
            again.feed(&colours.restore());
            colours.open = None;
            prop_assert_eq!(again, colours);
        }
    }
}
