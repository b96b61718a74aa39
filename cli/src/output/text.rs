//! Foreign text made fit for a terminal: no control characters, cut by width. Pure.

use qctl_proto::v1;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Text with its control characters escaped, so that it stays on one line and steers nothing.
pub fn printable(text: &str) -> String {
    if !text.chars().any(steers) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Control characters, and the marks that turn the direction of what follows them.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

/// Columns that a text takes on a terminal.
pub fn width(text: &str) -> usize {
    text.width()
}

/// Cuts a text to at most `columns`, ending in `…` where something was cut.
pub fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut taken = 0;
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if taken + wide + 1 > columns {
            break;
        }
        taken += wide;
        out.push(c);
    }
    if columns > 0 {
        out.push('…');
    }
    out
}

/// A command as a person could type it into a shell: words that need it are quoted.
pub fn shell_words(words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| shell_word(word)).collect();
    quoted.join(" ")
}

fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else if word.chars().any(steers) {
        let mut out = String::from("$'");
        for c in word.chars() {
            match c {
                '\'' | '\\' => out.extend(['\\', c]),
                c if steers(c) => out.extend(c.escape_default()),
                c => out.push(c),
            }
        }
        out.push('\'');
        out
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A number of bytes, such as `1.5 GiB`.
pub fn bytes(count: i64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count.unsigned_abs() < 1024 {
        return format!("{count} B");
    }
    #[allow(clippy::cast_precision_loss)]
    let mut value = count as f64;
    let mut unit = "B";
    for next in UNITS {
        if value.abs() < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value.abs() < 10.0 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

/// A count with its noun: `1 job`, `2 jobs`.
pub fn counted(count: i64, noun: &str) -> String {
    if count == 1 {
        format!("1 {noun}")
    } else {
        format!("{count} {noun}s")
    }
}

/// What is missing before a piece of output, and why, as a sentence without its full stop. `None`
/// when nothing is.
pub fn gap(piece: &v1::ReadLogResponse) -> Option<String> {
    if piece.hole_bytes == 0 {
        return None;
    }
    let lines = match piece.hole_lines {
        0 => String::new(),
        1 => " with 1 line end".to_owned(),
        lines => format!(" with {lines} line ends"),
    };
    let why = match piece.hole_cause() {
        v1::HoleCause::Unspecified => "",
        v1::HoleCause::NoRoom => ": the worker's disk was full",
        v1::HoleCause::Limit => ": over the job's log limit before the coordinator could take it",
        v1::HoleCause::Damaged => ": the worker's record of it is damaged",
        v1::HoleCause::Removed => ": removed to save room",
    };
    let bytes = bytes(piece.hole_bytes);
    Some(format!("{bytes} of output{lines} are missing here{why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_characters_are_cut_by_columns() {
        assert_eq!(cut("画像抽出", 8), "画像抽出");
        assert_eq!(cut("画像抽出", 7), "画像抽…");
        assert_eq!(cut("画像抽出", 6), "画像…");
        assert_eq!(width(&cut("画像抽出", 6)), 5);
        assert_eq!(cut("abc", 0), "");
    }

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(
            printable("a\nb\u{1b}[2J\u{202e}"),
            "a\\nb\\u{1b}[2J\\u{202e}"
        );
    }

    #[test]
    fn a_command_can_be_pasted_into_a_shell() {
        let words = ["echo", "two words", "it's", "", "a\nb", "x=1"].map(str::to_owned);
        assert_eq!(
            shell_words(&words),
            r"echo 'two words' 'it'\''s' '' $'a\nb' x=1"
        );
    }

    #[test]
    fn bytes_are_rounded() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(10_737_418_240), "10 GiB");
    }
}
