//! A position in an attempt's output, with what stands before it.

/// Everything that is known of the output before a position. The default is the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Bytes before it.
    pub offset: u64,
    /// Newlines before it.
    pub lines: u64,
    /// CRC-32C over all of those bytes as the job wrote them. `None` when some are missing and
    /// nobody knows what they were.
    pub crc32c: Option<u32>,
}

impl Default for Position {
    fn default() -> Self {
        Self {
            offset: 0,
            lines: 0,
            crc32c: Some(0),
        }
    }
}

impl Position {
    /// Goes over output.
    pub fn pass(&mut self, data: &[u8]) {
        self.offset += data.len() as u64;
        self.lines += newlines(data);
        self.crc32c = self.crc32c.map(|crc| crc32c::crc32c_append(crc, data));
    }

    /// Goes over missing output to `offset`, which is ahead. Of what is missing, `lines` newlines
    /// are known, and with it everything before `offset` has the checksum `crc32c`.
    pub fn skip_to(&mut self, offset: u64, lines: u64, crc32c: Option<u32>) {
        self.offset = offset;
        self.lines = self.lines.saturating_add(lines);
        self.crc32c = crc32c;
    }
}

/// Newlines in a piece of output.
pub fn newlines(data: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', data).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_add_up_to_the_whole() {
        let text = b"one\ntwo\n\nthree";
        let mut position = Position::default();
        for piece in text.chunks(3) {
            position.pass(piece);
        }
        assert_eq!(position.offset, text.len() as u64);
        assert_eq!(position.lines, 3);
        assert_eq!(position.crc32c, Some(crc32c::crc32c(text)));
    }

    #[test]
    fn what_is_missing_without_a_checksum_leaves_it_unknown() {
        let mut position = Position::default();
        position.pass(b"a\n");
        position.skip_to(10, 2, None);
        position.pass(b"b\n");
        assert_eq!((position.offset, position.lines), (12, 4));
        assert_eq!(position.crc32c, None);
        position.skip_to(20, 0, Some(7));
        assert_eq!(position.crc32c, Some(7));
    }
}
