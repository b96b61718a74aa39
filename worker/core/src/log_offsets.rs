//! How far an attempt's output was sent, and how far the coordinator has it.
//!
//! The coordinator owns the offset: whatever it names, upward or downward, is where sending goes on.

use std::collections::VecDeque;
use std::time::Duration;

/// Most bytes of one attempt that are on their way without an answer.
pub const WINDOW_BYTES: u64 = 4 * 1024 * 1024;

/// Output that does not fill a chunk waits for more this long, while an earlier chunk is on its way.
pub const FLUSH_AFTER: Duration = Duration::from_millis(5);

/// A chunk without an answer for this long is sent again.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// One attempt's upload.
#[derive(Debug)]
pub struct Upload {
    /// Bytes that the coordinator has, as it said last.
    stored: u64,
    /// Bytes that were sent.
    sent: u64,
    /// End and time of each chunk on its way.
    open: VecDeque<(u64, Duration)>,
    /// After a seek only one chunk is sent, until it is taken: answers to what was on its way
    /// before still arrive, and must not cause another seek each.
    probing: bool,
}

/// What an answer of the coordinator changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing.
    Nothing,
    /// More is stored.
    Advanced,
    /// Sending goes on from here.
    Seek(u64),
}

/// When the next chunk is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// At once.
    Now,
    /// After so long, unless more output arrives before.
    In(Duration),
    /// Not before an answer or new output arrives.
    Blocked,
}

impl Upload {
    /// An upload that goes on behind `stored` bytes.
    pub fn new(stored: u64) -> Self {
        Self {
            stored,
            sent: stored,
            open: VecDeque::new(),
            probing: false,
        }
    }

    /// Bytes that the coordinator has.
    pub fn stored(&self) -> u64 {
        self.stored
    }

    /// Position of the next byte to send.
    pub fn next(&self) -> u64 {
        self.sent
    }

    /// Chunks without an answer.
    pub fn on_its_way(&self) -> usize {
        self.open.len()
    }

    /// Whether to send a chunk now, when `end` bytes are recorded, the oldest unsent ones since
    /// `waiting_since`, and a full chunk has `full` bytes. `last` says that no more will come.
    pub fn ready(
        &self,
        end: u64,
        full: u64,
        waiting_since: Duration,
        last: bool,
        now: Duration,
    ) -> Ready {
        let unsent = end.saturating_sub(self.sent);
        if unsent == 0 || self.sent - self.stored.min(self.sent) >= WINDOW_BYTES {
            return Ready::Blocked;
        }
        if self.open.is_empty() {
            return Ready::Now;
        }
        if self.probing {
            return Ready::Blocked;
        }
        let waited = now.saturating_sub(waiting_since);
        if last || unsent >= full || waited >= FLUSH_AFTER {
            Ready::Now
        } else {
            Ready::In(FLUSH_AFTER - waited)
        }
    }

    /// Notes that everything before `end` was sent.
    pub fn sent(&mut self, end: u64, now: Duration) {
        self.sent = end;
        self.open.push_back((end, now));
    }

    /// Takes an answer: the coordinator has `stored` bytes.
    pub fn answer(&mut self, stored: u64) -> Answer {
        if stored > self.stored
            && let Some(at) = self.open.iter().position(|(end, _)| *end == stored)
        {
            self.open.drain(..=at);
            self.stored = stored;
            self.probing = false;
            return Answer::Advanced;
        }
        let echo = stored == self.stored && (self.probing || self.open.is_empty());
        if echo {
            return Answer::Nothing;
        }
        self.seek(stored)
    }

    /// Begins anew behind `stored` bytes, on a new connection for example.
    pub fn seek(&mut self, stored: u64) -> Answer {
        self.probing = !self.open.is_empty();
        self.open.clear();
        self.stored = stored;
        self.sent = stored;
        Answer::Seek(stored)
    }

    /// Forgets what was on its way: the connection is gone.
    pub fn disconnected(&mut self) -> Answer {
        let answer = self.seek(self.stored);
        self.probing = false;
        answer
    }

    /// True when a chunk has had no answer for too long.
    pub fn overdue(&self, now: Duration) -> bool {
        let oldest = self.open.front();
        oldest.is_some_and(|(_, sent)| now.saturating_sub(*sent) >= ANSWER_WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::ZERO;
    const FULL: u64 = 100;

    #[test]
    fn answers_at_chunk_ends_advance() {
        let mut upload = Upload::new(0);
        upload.sent(10, NOW);
        upload.sent(30, NOW);
        upload.sent(35, NOW);
        assert_eq!(upload.answer(30), Answer::Advanced);
        assert_eq!((upload.stored(), upload.next()), (30, 35));
        assert_eq!(upload.answer(35), Answer::Advanced);
        assert_eq!(upload.answer(35), Answer::Nothing);
    }

    #[test]
    fn a_lower_answer_goes_back_once() {
        let mut upload = Upload::new(0);
        for end in [10, 20, 30, 40] {
            upload.sent(end, NOW);
        }
        assert_eq!(upload.answer(10), Answer::Advanced);
        // The coordinator lost a chunk: it refuses each of the three that were on their way.
        assert_eq!(upload.answer(5), Answer::Seek(5));
        upload.sent(15, NOW);
        assert_eq!(upload.answer(5), Answer::Nothing);
        assert_eq!(upload.answer(5), Answer::Nothing);
        assert_eq!(upload.ready(99, FULL, NOW, true, NOW), Ready::Blocked);
        assert_eq!(upload.answer(15), Answer::Advanced);
        assert_eq!(upload.ready(99, FULL, NOW, true, NOW), Ready::Now);
    }

    #[test]
    fn a_higher_answer_skips_forward() {
        let mut upload = Upload::new(0);
        upload.sent(10, NOW);
        assert_eq!(upload.answer(25), Answer::Seek(25));
        assert_eq!((upload.stored(), upload.next()), (25, 25));
    }

    #[test]
    fn a_lost_connection_begins_behind_what_is_stored() {
        let mut upload = Upload::new(7);
        upload.sent(10, NOW);
        assert_eq!(upload.disconnected(), Answer::Seek(7));
        assert_eq!(upload.ready(9, FULL, NOW, false, NOW), Ready::Now);
    }

    #[test]
    fn output_gathers_only_while_something_is_on_its_way() {
        let mut upload = Upload::new(0);
        assert_eq!(upload.ready(0, FULL, NOW, false, NOW), Ready::Blocked);
        assert_eq!(upload.ready(1, FULL, NOW, false, NOW), Ready::Now);
        upload.sent(1, NOW);
        assert_eq!(
            upload.ready(2, FULL, NOW, false, NOW),
            Ready::In(FLUSH_AFTER)
        );
        assert_eq!(upload.ready(2, FULL, NOW, false, FLUSH_AFTER), Ready::Now);
        assert_eq!(upload.ready(101, FULL, NOW, false, NOW), Ready::Now);
        assert_eq!(upload.ready(2, FULL, NOW, true, NOW), Ready::Now);
        upload.sent(WINDOW_BYTES + 1, NOW);
        assert_eq!(
            upload.ready(WINDOW_BYTES * 2, FULL, NOW, true, NOW),
            Ready::Blocked
        );
    }

    #[test]
    fn silence_is_noticed() {
        let mut upload = Upload::new(0);
        assert!(!upload.overdue(ANSWER_WITHIN));
        upload.sent(1, NOW);
        assert!(!upload.overdue(ANSWER_WITHIN - FLUSH_AFTER));
        assert!(upload.overdue(ANSWER_WITHIN));
    }

    proptest! {
        /// A coordinator that takes chunks at its own offset only, loses some of what it took, and
        /// is sometimes disconnected, still gets everything.
        #[test]
        fn everything_arrives(
            events in proptest::collection::vec((0_u8..10, 1_u64..50), 0..200),
        ) {
            let end = 1000;
            let mut upload = Upload::new(0);
            let mut server = 0_u64;
            let mut wire: VecDeque<(u64, u64)> = VecDeque::new();
            let mut answers: VecDeque<u64> = VecDeque::new();
            let calm = std::iter::repeat_n([(0, 40), (1, 0), (2, 0)], 2000).flatten();
            for (event, size) in events.into_iter().chain(calm) {
                match event {
                    0 | 3..=5 => {
                        if upload.ready(end, 1, NOW, true, NOW) == Ready::Now {
                            let from = upload.next();
                            let to = (from + size).min(end);
                            wire.push_back((from, to));
                            upload.sent(to, NOW);
                        }
                    }
                    1 | 6 => if let Some((from, to)) = wire.pop_front() {
                        if from == server {
                            server = to;
                        }
                        answers.push_back(server);
                    },
                    2 | 7 => if let Some(stored) = answers.pop_front() {
                        upload.answer(stored);
                    },
                    8 => server = server.saturating_sub(size),
                    _ => {
                        wire.clear();
                        answers.clear();
                        upload.disconnected();
                    }
                }
                prop_assert!(upload.next() <= end);
            }
            prop_assert_eq!(server, end);
        }
    }
}
