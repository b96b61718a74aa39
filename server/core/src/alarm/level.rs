//! When a figure is an alarm, and when it is over: neither a spike nor a figure that wavers around its
//! limit makes more than one episode.

use chrono::{DateTime, TimeDelta, Utc};

/// Looks further apart than this say nothing of the time between them.
pub const GAP: TimeDelta = TimeDelta::seconds(20);

/// When a figure is an alarm. A higher one is worse.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// The figure from which on it is one.
    pub limit: f64,
    /// Below this it is over. Lower than the limit, so that wavering is no end.
    pub release: f64,
    /// How long it must have lasted. At least half of that time is at or above the limit, and none
    /// below the release.
    pub after: TimeDelta,
    /// How long it must have been below the release without a break.
    pub calm: TimeDelta,
}

/// What a look changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is an alarm, since then.
    Opened(DateTime<Utc>),
    /// It is over.
    Closed,
}

/// A figure on its way to an alarm.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Raised {
    since: DateTime<Utc>,
    watched: TimeDelta,
    hot: TimeDelta,
    peak: f64,
}

/// One figure of one subject.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Level {
    looked_at: Option<DateTime<Utc>>,
    raised: Option<Raised>,
    calm: TimeDelta,
    /// The worst figure of the episode that is open.
    open: Option<f64>,
}

impl Level {
    /// One whose episode is open already.
    pub fn opened(peak: f64) -> Self {
        Self {
            open: Some(peak),
            ..Self::default()
        }
    }

    /// The worst figure of the episode that is open; `None` when none is.
    pub fn peak(&self) -> Option<f64> {
        self.open
    }

    /// Takes a figure. Time in which nobody looked counts for neither side.
    pub fn observe(&mut self, rule: &Rule, value: f64, now: DateTime<Utc>) -> Option<Step> {
        let elapsed = self.looked_at.replace(now).map(|before| now - before);
        let elapsed = match elapsed {
            Some(elapsed) if elapsed >= TimeDelta::zero() && elapsed <= GAP => elapsed,
            Some(_) => {
                self.raised = None;
                self.calm = TimeDelta::zero();
                TimeDelta::zero()
            }
            None => TimeDelta::zero(),
        };
        match &mut self.open {
            Some(peak) => {
                *peak = peak.max(value);
                self.settle(rule, value, elapsed)
            }
            None => self.rise(rule, value, elapsed, now),
        }
    }

    fn settle(&mut self, rule: &Rule, value: f64, elapsed: TimeDelta) -> Option<Step> {
        if value >= rule.release {
            self.calm = TimeDelta::zero();
            return None;
        }
        self.calm += elapsed;
        if self.calm < rule.calm {
            return None;
        }
        self.open = None;
        self.calm = TimeDelta::zero();
        Some(Step::Closed)
    }

    fn rise(
        &mut self,
        rule: &Rule,
        value: f64,
        elapsed: TimeDelta,
        now: DateTime<Utc>,
    ) -> Option<Step> {
        let begun = Raised {
            since: now,
            watched: TimeDelta::zero(),
            hot: TimeDelta::zero(),
            peak: value,
        };
        let is_hot = value >= rule.limit;
        let raised = match &mut self.raised {
            Some(raised) if value >= rule.release => {
                raised.watched += elapsed;
                raised.peak = raised.peak.max(value);
                if is_hot {
                    raised.hot += elapsed;
                }
                *raised
            }
            _ if is_hot => *self.raised.insert(begun),
            _ => {
                self.raised = None;
                return None;
            }
        };
        if raised.watched < rule.after {
            return None;
        }
        // Mostly in between is no alarm; what follows is judged on its own.
        self.raised = is_hot.then_some(begun);
        if raised.hot * 2 < raised.watched {
            return None;
        }
        self.raised = None;
        self.calm = TimeDelta::zero();
        self.open = Some(raised.peak);
        Some(Step::Opened(raised.since))
    }
}
