//! How far an attempt's output was sent, and how far the coordinator has it.
//!
//! The coordinator owns the offset: whatever it names, upward or downward, is where sending goes on.

use std::collections::VecDeque;
use std::time::Duration;

/// Most bytes of one attempt that are on their way without an answer.
pub const WINDOW_BYTES: u64 = 4 * 1024 * 1024;

/// Output that does not fill a chunk waits for more this long, while an earlier chunk is on its way.
pub const FLUSH_AFTER: Duration = Duration::from_millis(5);

/// A chunk without an answer for this long is sent again, unless others are answered meanwhile: a
/// slow link is no lost chunk.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Least and most compressed bytes of all attempts that are on their way.
const LINK_BYTES: std::ops::RangeInclusive<u64> = 64 * 1024..=8 * 1024 * 1024;

/// While answers take longer than this, less is put on the way.
const SLOW_ANSWER: Duration = Duration::from_secs(2);

/// While answers come within this, more is.
const QUICK_ANSWER: Duration = Duration::from_millis(500);

/// How much may be on its way: as much as the link carries in a moment, so that what else goes over
/// it, heartbeats above all, does not queue behind minutes of output.
#[derive(Debug)]
pub struct Link {
    room: u64,
    on_the_way: u64,
    /// The last answer, or the first chunk since nothing was on its way.
    heard_at: Duration,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            room: *LINK_BYTES.start() * 16,
            on_the_way: 0,
            heard_at: Duration::ZERO,
        }
    }
}

impl Link {
    /// True when another chunk may be put on its way.
    pub fn has_room(&self) -> bool {
        self.on_the_way < self.room
    }

    /// A chunk of `bytes` was put on its way.
    pub fn sent(&mut self, bytes: u64, now: Duration) {
        if self.on_the_way == 0 {
            self.heard_at = now;
        }
        self.on_the_way = self.on_the_way.saturating_add(bytes);
    }

    /// A chunk of `bytes` was answered, so long after it was sent.
    pub fn answered(&mut self, bytes: u64, after: Duration, now: Duration) {
        self.heard_at = now;
        self.dropped(bytes);
        if after > SLOW_ANSWER {
            self.room -= self.room / 8;
        } else if after < QUICK_ANSWER {
            self.room = self.room.saturating_add(bytes);
        }
        self.room = self.room.clamp(*LINK_BYTES.start(), *LINK_BYTES.end());
    }

    /// A chunk of `bytes` is not on its way any more.
    pub fn dropped(&mut self, bytes: u64) {
        self.on_the_way = self.on_the_way.saturating_sub(bytes);
    }

    /// The coordinator answered something.
    pub fn heard(&mut self, now: Duration) {
        self.heard_at = now;
    }

    /// True when nothing at all was answered for too long.
    pub fn is_silent(&self, now: Duration) -> bool {
        now.saturating_sub(self.heard_at) >= ANSWER_WITHIN
    }
}

/// One attempt's upload.
#[derive(Debug)]
pub struct Upload {
    /// Bytes that the coordinator has, as it said last.
    stored: u64,
    /// Bytes that were sent.
    sent: u64,
    /// The chunks on their way.
    open: VecDeque<Open>,
    /// After a seek only one chunk is sent, until it is taken: answers to what was on its way
    /// before still arrive, and must not cause another seek each.
    probing: bool,
}

/// A chunk on its way.
#[derive(Clone, Copy, Debug)]
struct Open {
    end: u64,
    /// Compressed bytes.
    bytes: u64,
    sent: Duration,
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

    /// Notes that everything before `end` was sent, the last of it as a chunk of `bytes` compressed.
    pub fn sent(&mut self, end: u64, bytes: u64, now: Duration, link: &mut Link) {
        self.sent = end;
        self.open.push_back(Open {
            end,
            bytes,
            sent: now,
        });
        link.sent(bytes, now);
    }

    /// Takes an answer: the coordinator has `stored` bytes.
    pub fn answer(&mut self, stored: u64, now: Duration, link: &mut Link) -> Answer {
        link.heard(now);
        if stored > self.stored
            && let Some(at) = self.open.iter().position(|open| open.end == stored)
        {
            for open in self.open.drain(..=at) {
                link.answered(open.bytes, now.saturating_sub(open.sent), now);
            }
            self.stored = stored;
            self.probing = false;
            return Answer::Advanced;
        }
        let echo = stored == self.stored && (self.probing || self.open.is_empty());
        if echo {
            return Answer::Nothing;
        }
        self.seek(stored, link)
    }

    /// Begins anew behind `stored` bytes, on a new connection for example.
    pub fn seek(&mut self, stored: u64, link: &mut Link) -> Answer {
        self.probing = !self.open.is_empty();
        for open in self.open.drain(..) {
            link.dropped(open.bytes);
        }
        self.stored = stored;
        self.sent = stored;
        Answer::Seek(stored)
    }

    /// Forgets what was on its way: the connection is gone.
    pub fn disconnected(&mut self, link: &mut Link) -> Answer {
        let answer = self.seek(self.stored, link);
        self.probing = false;
        answer
    }

    /// True when a chunk has had no answer for too long, and no other one has.
    pub fn overdue(&self, now: Duration, link: &Link) -> bool {
        let oldest = self.open.front();
        link.is_silent(now)
            && oldest.is_some_and(|open| now.saturating_sub(open.sent) >= ANSWER_WITHIN)
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
        let (mut upload, mut link) = (Upload::new(0), Link::default());
        upload.sent(10, 1, NOW, &mut link);
        upload.sent(30, 1, NOW, &mut link);
        upload.sent(35, 1, NOW, &mut link);
        assert_eq!(upload.answer(30, NOW, &mut link), Answer::Advanced);
        assert_eq!((upload.stored(), upload.next()), (30, 35));
        assert_eq!(upload.answer(35, NOW, &mut link), Answer::Advanced);
        assert_eq!(upload.answer(35, NOW, &mut link), Answer::Nothing);
    }

    #[test]
    fn a_lower_answer_goes_back_once() {
        let (mut upload, mut link) = (Upload::new(0), Link::default());
        for end in [10, 20, 30, 40] {
            upload.sent(end, 1, NOW, &mut link);
        }
        assert_eq!(upload.answer(10, NOW, &mut link), Answer::Advanced);
        // The coordinator lost a chunk: it refuses each of the three that were on their way.
        assert_eq!(upload.answer(5, NOW, &mut link), Answer::Seek(5));
        upload.sent(15, 1, NOW, &mut link);
        assert_eq!(upload.answer(5, NOW, &mut link), Answer::Nothing);
        assert_eq!(upload.answer(5, NOW, &mut link), Answer::Nothing);
        assert_eq!(upload.ready(99, FULL, NOW, true, NOW), Ready::Blocked);
        assert_eq!(upload.answer(15, NOW, &mut link), Answer::Advanced);
        assert_eq!(upload.ready(99, FULL, NOW, true, NOW), Ready::Now);
    }

    #[test]
    fn a_higher_answer_skips_forward() {
        let (mut upload, mut link) = (Upload::new(0), Link::default());
        upload.sent(10, 1, NOW, &mut link);
        assert_eq!(upload.answer(25, NOW, &mut link), Answer::Seek(25));
        assert_eq!((upload.stored(), upload.next()), (25, 25));
    }

    #[test]
    fn a_lost_connection_begins_behind_what_is_stored() {
        let (mut upload, mut link) = (Upload::new(7), Link::default());
        upload.sent(10, 1, NOW, &mut link);
        assert_eq!(upload.disconnected(&mut link), Answer::Seek(7));
        assert_eq!(upload.ready(9, FULL, NOW, false, NOW), Ready::Now);
    }

    #[test]
    fn output_gathers_only_while_something_is_on_its_way() {
        let (mut upload, mut link) = (Upload::new(0), Link::default());
        assert_eq!(upload.ready(0, FULL, NOW, false, NOW), Ready::Blocked);
        assert_eq!(upload.ready(1, FULL, NOW, false, NOW), Ready::Now);
        upload.sent(1, 1, NOW, &mut link);
        assert_eq!(
            upload.ready(2, FULL, NOW, false, NOW),
            Ready::In(FLUSH_AFTER)
        );
        assert_eq!(upload.ready(2, FULL, NOW, false, FLUSH_AFTER), Ready::Now);
        assert_eq!(upload.ready(101, FULL, NOW, false, NOW), Ready::Now);
        assert_eq!(upload.ready(2, FULL, NOW, true, NOW), Ready::Now);
        upload.sent(WINDOW_BYTES + 1, 1, NOW, &mut link);
        assert_eq!(
            upload.ready(WINDOW_BYTES * 2, FULL, NOW, true, NOW),
            Ready::Blocked
        );
    }

    #[test]
    fn silence_is_noticed() {
        let (mut upload, mut link) = (Upload::new(0), Link::default());
        assert!(!upload.overdue(ANSWER_WITHIN, &link));
        upload.sent(1, 1, NOW, &mut link);
        assert!(!upload.overdue(ANSWER_WITHIN - FLUSH_AFTER, &link));
        assert!(upload.overdue(ANSWER_WITHIN, &link));
    }

    #[test]
    fn a_slow_link_is_no_lost_chunk() {
        let (mut upload, mut link) = (Upload::new(0), Link::default());
        upload.sent(1, 1, NOW, &mut link);
        upload.sent(2, 1, NOW, &mut link);
        upload.answer(1, ANSWER_WITHIN / 2, &mut link);
        assert!(!upload.overdue(ANSWER_WITHIN, &link));
        assert!(upload.overdue(ANSWER_WITHIN * 2, &link));
    }

    #[test]
    fn less_is_on_its_way_while_answers_are_slow_and_more_while_they_are_quick() {
        let piece = 100_000;
        let mut link = Link::default();
        let fill = |link: &mut Link, after| {
            let mut sent = 0;
            while link.has_room() {
                link.sent(piece, NOW);
                sent += 1;
            }
            for _ in 0..sent {
                link.answered(piece, after, NOW);
            }
            sent
        };
        let first = fill(&mut link, Duration::from_millis(10));
        for _ in 0..20 {
            fill(&mut link, Duration::from_millis(10));
        }
        let quick = fill(&mut link, SLOW_ANSWER * 3);
        assert!(quick > first && quick < 100, "{quick}");
        for _ in 0..20 {
            fill(&mut link, SLOW_ANSWER * 3);
        }
        assert_eq!(fill(&mut link, SLOW_ANSWER * 3), 1);
    }

    proptest! {
        /// A coordinator that takes chunks at its own offset only, loses some of what it took, and
        /// is sometimes disconnected, still gets everything.
        #[test]
        fn everything_arrives(
            events in proptest::collection::vec((0_u8..10, 1_u64..50), 0..200),
        ) {
            let end = 1000;
            let (mut upload, mut link) = (Upload::new(0), Link::default());
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
                            upload.sent(to, 1, NOW, &mut link);
                        }
                    }
                    1 | 6 => if let Some((from, to)) = wire.pop_front() {
                        if from == server {
                            server = to;
                        }
                        answers.push_back(server);
                    },
                    2 | 7 => if let Some(stored) = answers.pop_front() {
                        upload.answer(stored, NOW, &mut link);
                    },
                    8 => server = server.saturating_sub(size),
                    _ => {
                        wire.clear();
                        answers.clear();
                        upload.disconnected(&mut link);
                    }
                }
                prop_assert!(upload.next() <= end);
            }
            prop_assert_eq!(server, end);
        }
    }
}
