//! The coordinator's silence, as a worker counts it: whoever is told by the coordinator would not be
//! told that the coordinator is gone.

use std::time::Duration;

/// Counts how long the coordinator has been away, by the clock that never jumps.
#[derive(Clone, Debug)]
pub struct DeadMan {
    after: Duration,
    away_since: Option<Duration>,
    told: bool,
}

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The coordinator has been away for this long.
    Away(Duration),
    /// It is back. Only what was told before is to be told.
    Back,
}

impl DeadMan {
    /// Tells after the coordinator was away for `after`.
    pub fn new(after: Duration) -> Self {
        Self {
            after,
            away_since: None,
            told: false,
        }
    }

    /// Looks whether something is to be told. The first look that finds it there says so too: an
    /// earlier agent may have told that it was away.
    pub fn look(&mut self, connected: bool, now: Duration) -> Option<Word> {
        if connected {
            let was_known = self.away_since.take().is_none() && self.told;
            self.told = true;
            return (!was_known).then_some(Word::Back);
        }
        let since = match self.away_since {
            Some(since) => since,
            None => {
                self.told = false;
                *self.away_since.insert(now)
            }
        };
        let away = now.saturating_sub(since);
        if self.told || away < self.after {
            return None;
        }
        self.told = true;
        Some(Word::Away(away))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_absence_is_told_once_and_so_is_the_return() {
        let mut dead_man = DeadMan::new(seconds(300));
        let words: Vec<_> = [
            (true, 0),
            (true, 5),
            (false, 10),
            (false, 309),
            (false, 310),
            (false, 900),
            (true, 905),
            (true, 910),
            (false, 1_000),
            (true, 1_100),
            (false, 1_200),
            (false, 1_500),
        ]
        .into_iter()
        .map(|(connected, at)| dead_man.look(connected, seconds(at)))
        .collect();
        assert_eq!(
            words,
            [
                Some(Word::Back),
                None,
                None,
                None,
                Some(Word::Away(seconds(300))),
                None,
                Some(Word::Back),
                None,
                None,
                Some(Word::Back),
                None,
                Some(Word::Away(seconds(300))),
            ]
        );
    }

    #[test]
    fn a_worker_that_never_met_its_coordinator_tells_as_well() {
        let mut dead_man = DeadMan::new(seconds(60));
        assert_eq!(dead_man.look(false, seconds(0)), None);
        assert_eq!(
            dead_man.look(false, seconds(60)),
            Some(Word::Away(seconds(60)))
        );
    }
}
