//! Lengths that other people's programs count in characters.

/// What stands for the part that was cut off.
const CUT: char = '…';

/// The text itself when it has at most `most` characters, else as many, of which the last says
/// that something was cut off. Never cuts inside a character.
pub fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some(_) => {
            let mut short: String = text.chars().take(most.saturating_sub(1)).collect();
            if most > 0 {
                short.push(CUT);
            }
            short
        }
    }
}

/// One line without control characters, which no phone shows as they were meant.
pub fn plain_line(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect::<String>()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_left_alone_and_what_does_not_says_so() {
        assert_eq!(cut("失敗した", 4), "失敗した");
        assert_eq!(cut("失敗した", 3), "失敗…");
        assert_eq!(cut("abc", 1), "…");
        assert_eq!(cut("abc", 0), "");
        assert_eq!(cut("", 5), "");
    }

    #[test]
    fn control_characters_become_blanks() {
        assert_eq!(plain_line(" a\u{1b}[1m\tb\r"), "a [1m b");
    }
}
