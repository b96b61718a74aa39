//! Lines of a job's progress pipe, bounded in length and rate.

use std::time::Duration;

/// Longest line that is taken, in bytes. Longer ones are dropped as a whole.
pub const MAX_LINE_BYTES: usize = 4096;

/// Shortest time between two reports. Of what comes faster, the latest line is kept.
pub const INTERVAL: Duration = Duration::from_millis(50);

/// How a line begins that only rings: a checkpoint was published. It must not take a report's place.
const BELL: &[u8] = b"{\"checkpoint\":";

/// True for a line that tells of a published checkpoint.
pub fn is_bell(line: &[u8]) -> bool {
    line.starts_with(BELL)
}

/// Cuts what a job writes into lines, and lets at most one through per [`INTERVAL`].
///
/// `now` is the time since any fixed moment by a clock that never jumps.
#[derive(Debug, Default)]
pub struct ReportLines {
    partial: Vec<u8>,
    /// The line being read is too long.
    skipping: bool,
    latest: Option<Vec<u8>>,
    /// The latest line that rings; it comes after the report that was written before it.
    bell: Option<Vec<u8>>,
    /// When the next report may go out.
    open_at: Duration,
}

impl ReportLines {
    /// Takes what was read from the pipe.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut pieces = bytes.split(|&byte| byte == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            if self.partial.len() + piece.len() > MAX_LINE_BYTES {
                self.skipping = true;
            }
            if !self.skipping {
                self.partial.extend_from_slice(piece);
            }
            if pieces.peek().is_some() {
                self.end_line();
            }
        }
    }

    /// When [`ReportLines::take`] has a line next.
    pub fn deadline(&self) -> Option<Duration> {
        let waits = self.latest.is_some() || self.bell.is_some();
        waits.then_some(self.open_at)
    }

    /// The line to report now, if any.
    pub fn take(&mut self, now: Duration) -> Option<Vec<u8>> {
        if now < self.open_at {
            return None;
        }
        let line = self.latest.take().or_else(|| self.bell.take())?;
        self.open_at = now.saturating_add(INTERVAL);
        Some(line)
    }

    /// The last line, whenever it came; it need not end in a newline. The next job begins afresh.
    /// Nothing rings any more: who hears of a job's end looks for its checkpoints.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        self.end_line();
        self.bell = None;
        self.open_at = Duration::ZERO;
        self.latest.take()
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.partial);
        if !self.skipping && is_bell(&line) {
            self.bell = Some(line);
        } else if !self.skipping && !line.trim_ascii().is_empty() {
            self.latest = Some(line);
        }
        self.skipping = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn lines_come_whole_and_the_latest_wins() {
        let mut lines = ReportLines::default();
        lines.feed(b"1/3");
        assert_eq!(lines.take(ms(0)), None);
        lines.feed(b"0\n2/30\n3/");
        assert_eq!(lines.take(ms(0)), Some(b"2/30".to_vec()));
        lines.feed(b"30\n");
        assert_eq!(lines.take(ms(10)), None);
        assert_eq!(lines.deadline(), Some(ms(50)));
        assert_eq!(lines.take(ms(50)), Some(b"3/30".to_vec()));
        assert_eq!(lines.deadline(), None);
    }

    #[test]
    fn the_last_line_is_never_lost() {
        let mut lines = ReportLines::default();
        lines.feed(b"1\n");
        lines.take(ms(0));
        lines.feed(b"2\n3");
        assert_eq!(lines.finish(), Some(b"3".to_vec()));
        assert_eq!(lines.finish(), None);
        lines.feed(b"4\n");
        assert_eq!(lines.take(ms(1)), Some(b"4".to_vec()));
    }

    #[test]
    fn a_bell_and_a_report_do_not_take_each_others_place() {
        let mut lines = ReportLines::default();
        lines.feed(b"29/30\n30/30\n{\"checkpoint\":1}\n{\"checkpoint\":2}\n");
        assert_eq!(lines.take(ms(0)), Some(b"30/30".to_vec()));
        assert_eq!(lines.deadline(), Some(ms(50)));
        assert_eq!(lines.take(ms(50)), Some(b"{\"checkpoint\":2}".to_vec()));
        assert_eq!(lines.deadline(), None);
        lines.feed(b"1/3\n{\"checkpoint\":3}\n");
        assert_eq!(lines.finish(), Some(b"1/3".to_vec()));
        assert_eq!(lines.take(ms(200)), None);
    }

    #[test]
    fn a_line_without_end_takes_no_memory_and_spares_the_next() {
        let mut lines = ReportLines::default();
        for _ in 0..10_000 {
            lines.feed(&[b'x'; 1000]);
        }
        assert!(lines.partial.capacity() <= 2 * MAX_LINE_BYTES);
        lines.feed(b"\n\n  \nshort\n");
        assert_eq!(lines.finish(), Some(b"short".to_vec()));
    }
}
