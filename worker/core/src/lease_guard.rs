//! How long a worker that hears nothing from the coordinator may go on.
//!
//! Times are measured by one monotonic clock, since any fixed moment.

use std::collections::VecDeque;
use std::time::Duration;

use crate::guard::{Guard, is_broken};

/// An exclusive attempt is gone this long before others may be given its job, in addition to its
/// own grace period.
pub const MARGIN: Duration = Duration::from_secs(60);

/// Waiting assignments are not started any more when the coordinator has been silent for this long:
/// it may be giving them to others.
pub const START_WITHIN: Duration = Duration::from_secs(60);

/// Heartbeats that may go unanswered before the connection is given up.
pub const MISSED_LIMIT: u32 = 3;

/// Most heartbeats that are remembered while they wait for an answer.
const MAX_OPEN: usize = 16;

/// Remembers when heartbeats were sent, and which was answered last.
#[derive(Debug, Default)]
pub struct Heartbeats {
    sequence: i64,
    open: VecDeque<(i64, Duration)>,
}

impl Heartbeats {
    /// The number of the next heartbeat, which is sent at `now`.
    pub fn send(&mut self, now: Duration) -> i64 {
        self.sequence += 1;
        if self.open.len() == MAX_OPEN {
            self.open.pop_front();
        }
        self.open.push_back((self.sequence, now));
        self.sequence
    }

    /// When the answered heartbeat was sent. `None` for a number that is not open.
    pub fn answer(&mut self, sequence: i64) -> Option<Duration> {
        let at = self.open.iter().position(|(open, _)| *open == sequence)?;
        self.open.drain(..=at).next_back().map(|(_, sent)| sent)
    }

    /// Since when so many heartbeats are unanswered that the connection must be taken for dead;
    /// `None` while it need not.
    pub fn silent_since(&self, now: Duration, interval: Duration) -> Option<Duration> {
        let (_, oldest) = self.open.front()?;
        (now.saturating_sub(*oldest) >= interval.saturating_mul(MISSED_LIMIT)).then_some(*oldest)
    }
}

/// Until when an exclusive attempt may run: its lease counts from the sending of the last answered
/// heartbeat and ends the grace period and [`MARGIN`] before `lost_after`. It may be over already.
pub fn lease_until(answered: Duration, lost_after: Duration, grace: Duration) -> Duration {
    let needed = grace.saturating_add(MARGIN);
    answered.saturating_add(lost_after).saturating_sub(needed)
}

/// True while a waiting assignment may be started. `answered` is when the last answered heartbeat
/// was sent, or the session was opened.
pub fn may_start(now: Duration, answered: Option<Duration>) -> bool {
    answered.is_some_and(|at| now.saturating_sub(at) < START_WITHIN)
        || is_broken(Guard::StartWithin)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_lease_counts_from_the_sending() {
        let mut heartbeats = Heartbeats::default();
        let first = heartbeats.send(10 * SECOND);
        let second = heartbeats.send(15 * SECOND);
        assert_eq!(heartbeats.answer(first), Some(10 * SECOND));
        assert_eq!(heartbeats.answer(first), None);
        assert_eq!(heartbeats.answer(second), Some(15 * SECOND));
        assert_eq!(heartbeats.answer(99), None);
    }

    #[test]
    fn a_later_answer_covers_earlier_heartbeats() {
        let mut heartbeats = Heartbeats::default();
        heartbeats.send(SECOND);
        let second = heartbeats.send(6 * SECOND);
        assert_eq!(heartbeats.answer(second), Some(6 * SECOND));
        assert_eq!(heartbeats.silent_since(1000 * SECOND, 5 * SECOND), None);
    }

    #[test]
    fn three_missed_answers_are_silence() {
        let mut heartbeats = Heartbeats::default();
        heartbeats.send(Duration::ZERO);
        assert_eq!(heartbeats.silent_since(14 * SECOND, 5 * SECOND), None);
        let silent = heartbeats.silent_since(15 * SECOND, 5 * SECOND);
        assert_eq!(silent, Some(Duration::ZERO));
        for _ in 0..1000 {
            heartbeats.send(SECOND);
        }
        assert!(heartbeats.open.len() <= MAX_OPEN);
    }

    #[test]
    fn an_exclusive_attempt_is_gone_before_its_job_is_given_away() {
        let lost_after = 1800 * SECOND;
        let grace = 10 * SECOND;
        assert_eq!(
            lease_until(100 * SECOND, lost_after, grace),
            (100 + 1800 - 10 - 60) * SECOND
        );
        assert_eq!(lease_until(SECOND, 60 * SECOND, lost_after), Duration::ZERO);
    }

    #[test]
    fn nothing_starts_without_a_coordinator() {
        assert!(!may_start(SECOND, None));
        assert!(may_start(59 * SECOND, Some(Duration::ZERO)));
        assert!(!may_start(60 * SECOND, Some(Duration::ZERO)));
    }
}
