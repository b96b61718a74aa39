//! Whether the queue stands still: jobs wait their turn and none runs anywhere. Pure.

use std::time::Duration;

use crate::id::JobId;

/// What is seen of the queue at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The job that has waited its turn for longest, of those that no worker was given.
    pub waiting: Option<JobId>,
    /// A job runs or is about to, as far as is known.
    pub runs: bool,
    /// People keep jobs from starting.
    pub on_purpose: bool,
}

/// What people should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The queue has stood still for so long, and this job has waited the longest.
    Stands(JobId, Duration),
    /// It does not stand still any more, if it ever did.
    Moves,
}

/// Measures for how long the queue has stood still.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    stood: Duration,
    /// Whether people were told that it stands; unknown after a restart of the coordinator.
    told: Option<bool>,
}

impl Watch {
    /// Takes a look, so long after the one before, and says what is news. It stays news until
    /// [`Watch::told`] is called.
    pub fn observe(&mut self, look: Look, passed: Duration, after: Duration) -> Option<News> {
        let stands = look.waiting.filter(|_| !look.runs && !look.on_purpose);
        let Some(job) = stands else {
            self.stood = Duration::ZERO;
            return (self.told != Some(false)).then_some(News::Moves);
        };
        self.stood += passed;
        let is_news = self.stood >= after && self.told != Some(true);
        is_news.then_some(News::Stands(job, self.stood))
    }

    /// This was told.
    pub fn told(&mut self, news: News) {
        self.told = Some(matches!(news, News::Stands(..)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(900);
    const WAITS: Look = Look {
        waiting: Some(JobId(7)),
        runs: false,
        on_purpose: false,
    };
    const EMPTY: Look = Look {
        waiting: None,
        ..WAITS
    };

    /// A watch of which people know that nothing stands still.
    fn calm() -> Watch {
        let mut watch = Watch::default();
        watch.told(News::Moves);
        watch
    }

    #[test]
    fn it_is_told_once_and_so_is_its_end() {
        let mut watch = calm();
        let minute = Duration::from_secs(60);
        for _ in 0..14 {
            assert_eq!(watch.observe(WAITS, minute, AFTER), None);
        }
        let stands = News::Stands(JobId(7), AFTER);
        assert_eq!(watch.observe(WAITS, minute, AFTER), Some(stands));
        watch.told(stands);
        assert_eq!(watch.observe(WAITS, minute, AFTER), None);
        assert_eq!(watch.observe(EMPTY, minute, AFTER), Some(News::Moves));
        watch.told(News::Moves);
        assert_eq!(watch.observe(EMPTY, minute, AFTER), None);
    }

    #[test]
    fn what_could_not_be_told_is_news_again() {
        let mut watch = calm();
        assert!(watch.observe(WAITS, AFTER, AFTER).is_some());
        assert!(watch.observe(WAITS, Duration::ZERO, AFTER).is_some());
    }

    #[test]
    fn a_job_that_runs_a_wish_of_people_and_an_empty_queue_begin_the_wait_anew() {
        let runs = Look {
            runs: true,
            ..WAITS
        };
        let paused = Look {
            on_purpose: true,
            ..WAITS
        };
        for look in [runs, paused, EMPTY] {
            let mut watch = calm();
            let most = AFTER - Duration::from_secs(1);
            assert_eq!(watch.observe(WAITS, most, AFTER), None);
            assert_eq!(watch.observe(look, AFTER, AFTER), None, "{look:?}");
            assert_eq!(watch.observe(WAITS, most, AFTER), None, "{look:?}");
        }
    }

    #[test]
    fn after_a_restart_it_counts_anew_and_ends_what_was_told_before() {
        let mut watch = Watch::default();
        assert_eq!(watch.observe(WAITS, Duration::ZERO, AFTER), None);
        assert_eq!(
            watch.observe(EMPTY, Duration::ZERO, AFTER),
            Some(News::Moves)
        );
    }
}
