//! How far a job is, read from what it says: explicit reports, terminal progress sequences, a
//! pattern of the user's, tqdm, pytest and plain counters, in this order of trust.
//!
//! One [`Tracker`] follows one attempt. It is fed raw bytes as they were recorded and yields at most
//! ten readings a second. Time is an argument everywhere.

mod ansi;
mod counter;
mod estimator;
mod lines;
mod osc;
mod pattern;
mod pytest;
mod report;
mod tqdm;

use std::time::Duration;

pub(crate) use ansi::strip;
pub use pattern::{Pattern, PatternError};

use crate::segment::Stream;
use estimator::Estimator;
use lines::{End, Lines};

/// Shortest time between two readings that are sent.
pub const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// A finished source that has been silent for this long no longer hides a less trusted one.
const STALE_AFTER: Duration = Duration::from_secs(10);

/// Longest free text that is kept, in bytes.
const MAX_MESSAGE_BYTES: usize = 500;

/// Longest unit that is kept, in bytes.
const MAX_UNIT_BYTES: usize = 32;

/// Where a reading came from, least trusted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// `[12/30]` or `12/30` in the output.
    Counter,
    /// pytest's results and percentages.
    Pytest,
    /// A bar of tqdm.
    Tqdm,
    /// The pattern given at submission.
    Pattern,
    /// The terminal sequence OSC 9;4.
    Osc,
    /// A report that the job made on purpose.
    Report,
}

impl Source {
    /// The word that travels in the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Pytest => "pytest",
            Self::Tqdm => "tqdm",
            Self::Pattern => "pattern",
            Self::Osc => "osc",
            Self::Report => "report",
        }
    }
}

/// What a source said, before rates are estimated.
#[derive(Clone, Debug, PartialEq)]
struct Sighting {
    source: Source,
    done: f64,
    /// 0 when unknown.
    total: f64,
    unit: String,
    percent: Option<f64>,
    rate: Option<f64>,
    eta: Option<Duration>,
    message: String,
}

impl Sighting {
    fn count(source: Source, done: f64, total: f64) -> Self {
        Self {
            source,
            done,
            total,
            unit: String::new(),
            percent: percent_of(done, total),
            rate: None,
            eta: None,
            message: String::new(),
        }
    }

    fn percent(source: Source, percent: f64) -> Self {
        let percent = percent.clamp(0.0, 100.0);
        Self {
            unit: "%".to_owned(),
            ..Self::count(source, percent, 100.0)
        }
    }

    fn complete(&self) -> bool {
        self.percent.is_some_and(|percent| percent >= 100.0)
    }
}

/// How far an attempt is.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Items done.
    pub done: f64,
    /// Items in all; 0 when unknown.
    pub total: f64,
    /// What is counted; `%` when only a percentage is known, empty when unknown.
    pub unit: String,
    /// 0 to 100.
    pub percent: Option<f64>,
    /// Items a second.
    pub rate: Option<f64>,
    /// What remains, estimated.
    pub eta: Option<Duration>,
    /// Free text of an explicit report.
    pub message: String,
    /// Where it was read.
    pub source: Source,
    /// When it was read: the time passed in with the bytes.
    pub at: Duration,
}

/// Follows the progress of one attempt.
#[derive(Debug)]
pub struct Tracker {
    stdout: Scanner,
    stderr: Scanner,
    pattern: Option<Pattern>,
    current: Option<Current>,
    estimator: Estimator,
    pending: bool,
    sent_at: Option<Duration>,
    sent: Option<Reading>,
}

#[derive(Debug)]
struct Current {
    reading: Reading,
    complete: bool,
}

impl Tracker {
    /// A tracker for an attempt that begins.
    pub fn new(pattern: Option<Pattern>) -> Self {
        Self {
            stdout: Scanner::default(),
            stderr: Scanner::default(),
            pattern,
            current: None,
            estimator: Estimator::default(),
            pending: false,
            sent_at: None,
            sent: None,
        }
    }

    /// Takes output of the job. `at` is when it was read, since any fixed moment.
    pub fn output(&mut self, stream: Stream, data: &[u8], at: Duration) {
        let mut seen = Vec::new();
        let scanner = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let cleared = scanner.scan(data, self.pattern.as_ref(), &mut seen);
        if cleared && self.source() == Some(Source::Osc) {
            self.current = None;
        }
        for sighting in seen {
            self.accept(sighting, at);
        }
    }

    /// Takes a line that the job wrote to its progress pipe. A line that is no report is ignored.
    pub fn report(&mut self, line: &[u8], at: Duration) {
        if let Some(sighting) = report::parse(line) {
            self.accept(sighting, at);
        }
    }

    /// The newest reading, if there is one that was not taken yet and the last was taken long enough
    /// ago. `now` is measured by one monotonic clock.
    pub fn due(&mut self, now: Duration) -> Option<Reading> {
        if self.wait(now)? > Duration::ZERO {
            return None;
        }
        self.sent_at = Some(now);
        self.flush()
    }

    /// How long until [`Tracker::due`] has something; `None` when nothing is pending.
    pub fn wait(&self, now: Duration) -> Option<Duration> {
        if !self.pending {
            return None;
        }
        let ready = self.sent_at.map_or(Duration::ZERO, |at| at + MIN_INTERVAL);
        Some(ready.saturating_sub(now))
    }

    /// The newest reading if it was not taken yet, for the end of the attempt.
    pub fn flush(&mut self) -> Option<Reading> {
        if !std::mem::take(&mut self.pending) {
            return None;
        }
        let reading = &self.current.as_ref()?.reading;
        if self.sent.as_ref().is_some_and(|sent| same(sent, reading)) {
            return None;
        }
        self.sent = Some(reading.clone());
        self.sent.clone()
    }

    /// The newest reading, taken or not, for a coordinator that knows none.
    pub fn latest(&self) -> Option<&Reading> {
        self.current.as_ref().map(|current| &current.reading)
    }

    fn source(&self) -> Option<Source> {
        self.current.as_ref().map(|current| current.reading.source)
    }

    fn accept(&mut self, sighting: Sighting, at: Duration) {
        let hidden = self.current.as_ref().is_some_and(|current| {
            current.reading.source > sighting.source
                && !(current.complete && at.saturating_sub(current.reading.at) >= STALE_AFTER)
        });
        if hidden {
            return;
        }
        let changed = self.current.as_ref().is_none_or(|current| {
            current.reading.source != sighting.source
                || current.reading.total != sighting.total
                || current.reading.unit != sighting.unit
        });
        if changed {
            self.estimator = Estimator::default();
        }
        self.estimator.observe(sighting.done, at);
        let complete = sighting.complete();
        let rate = sighting.rate.or_else(|| self.estimator.rate());
        let remaining = (sighting.total - sighting.done).max(0.0);
        let eta = if complete {
            None
        } else {
            sighting
                .eta
                .or_else(|| estimate(remaining, sighting.total, rate))
        };
        let reading = Reading {
            done: sighting.done,
            total: sighting.total,
            unit: sighting.unit,
            percent: sighting.percent,
            rate,
            eta,
            message: sighting.message,
            source: sighting.source,
            at,
        };
        self.current = Some(Current { reading, complete });
        self.pending = true;
    }
}

/// Two readings that a person could not tell apart.
fn same(a: &Reading, b: &Reading) -> bool {
    a.done == b.done
        && a.total == b.total
        && a.unit == b.unit
        && a.percent == b.percent
        && a.message == b.message
        && a.source == b.source
}

fn percent_of(done: f64, total: f64) -> Option<f64> {
    (total > 0.0).then(|| (done * 100.0 / total).clamp(0.0, 100.0))
}

fn estimate(remaining: f64, total: f64, rate: Option<f64>) -> Option<Duration> {
    let rate = rate.filter(|rate| *rate > 0.0 && total > 0.0)?;
    Duration::try_from_secs_f64(remaining / rate).ok()
}

/// Cuts `text` to at most `limit` bytes at a character's edge and drops control characters.
fn clean(text: &str, limit: usize) -> String {
    let mut kept = String::new();
    for character in text.chars().filter(|c| !c.is_control()) {
        if kept.len() + character.len_utf8() > limit {
            break;
        }
        kept.push(character);
    }
    kept
}

/// The parsers of one stream.
#[derive(Debug, Default)]
struct Scanner {
    lines: Lines,
    osc: osc::Parser,
    tqdm: tqdm::Parser,
    pytest: pytest::Parser,
    counter: counter::Parser,
}

impl Scanner {
    /// Adds what `data` shows to `seen`. True when the terminal's progress was cleared.
    fn scan(&mut self, data: &[u8], pattern: Option<&Pattern>, seen: &mut Vec<Sighting>) -> bool {
        let cleared = self.osc.scan(data, seen);
        let (tqdm, pytest, counter) = (&mut self.tqdm, &mut self.pytest, &mut self.counter);
        self.lines.feed(data, |line, end| {
            if line.is_empty() {
                return;
            }
            let complete = end != End::Open;
            let sighting = None
                .or_else(|| pattern.filter(|_| complete).and_then(|p| p.find(line)))
                .or_else(|| tqdm.line(line, complete))
                .or_else(|| pytest.line(line, complete))
                .or_else(|| counter.line(line, complete));
            // Only the last of many is worth keeping, unless a better source stands before it.
            match (sighting, seen.last_mut()) {
                (Some(new), Some(last)) if last.source == new.source => *last = new,
                (Some(new), _) => seen.push(new),
                (None, _) => {}
            }
        });
        cleared
    }
}
