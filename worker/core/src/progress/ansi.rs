//! Removing terminal control sequences from a line.

use std::borrow::Cow;

const ESCAPE: u8 = 0x1b;

/// The line without control sequences. Most lines have none and are not copied.
pub(crate) fn strip(line: &[u8]) -> Cow<'_, [u8]> {
    if !line.contains(&ESCAPE) {
        return Cow::Borrowed(line);
    }
    let mut kept = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some((&byte, behind)) = rest.split_first() {
        if byte == ESCAPE {
            rest = skip(behind);
        } else {
            kept.push(byte);
            rest = behind;
        }
    }
    Cow::Owned(kept)
}

/// What follows the sequence whose escape character stands before `rest`.
fn skip(rest: &[u8]) -> &[u8] {
    match rest.first() {
        // Control sequence: ends with a byte from `@` to `~`.
        Some(b'[') => after(&rest[1..], |byte| (0x40..=0x7e).contains(&byte)),
        // Operating system command: ends with BEL, or with ESC and a backslash.
        Some(b']') => {
            let body = &rest[1..];
            match body.iter().position(|&byte| byte == 0x07 || byte == ESCAPE) {
                Some(at) if body[at] == ESCAPE => body.get(at + 2..).unwrap_or_default(),
                Some(at) => &body[at + 1..],
                None => &[],
            }
        }
        Some(_) => &rest[1..],
        None => rest,
    }
}

fn after(bytes: &[u8], last: impl Fn(u8) -> bool) -> &[u8] {
    match bytes.iter().position(|&byte| last(byte)) {
        Some(at) => &bytes[at + 1..],
        None => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_vanish_and_text_stays() {
        for (line, text) in [
            (&b"plain"[..], &b"plain"[..]),
            (b"\x1b[32m.\x1b[0m\x1b[31mF\x1b[0m", b".F"),
            (b"\x1b]0;title\x07a\x1b]8;;x\x1b\\b", b"ab"),
            (b"cut \x1b[3", b"cut "),
            (b"cut \x1b", b"cut "),
            (b"cut \x1b]9;4", b"cut "),
        ] {
            assert_eq!(&*strip(line), text);
        }
    }
}
