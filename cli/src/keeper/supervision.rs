//! When a program is started, stopped and left alone. Decisions only: the caller starts and signals.

use std::time::{Duration, Instant};

/// First wait before a program that ended is started again.
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// Longest wait.
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// A program that ran this long has recovered; its next failure counts as the first.
const STABLE: Duration = Duration::from_secs(60);
/// Exit codes by which a program says that its configuration is wrong: trying again cannot help.
const BAD_CONFIGURATION: [i32; 2] = [2, 78];

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signalled(i32),
    /// It was not this keeper's child, so nobody told how.
    Unknown,
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ending::Exited(code) => write!(f, "exited with {code}"),
            Ending::Signalled(signal) => write!(f, "was ended by signal {signal}"),
            Ending::Unknown => f.write_str("ended"),
        }
    }
}

/// Where a supervised program is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not running, and not to be started.
    Idle,
    /// Running since then.
    Running {
        /// When it was started or adopted.
        since: Instant,
    },
    /// Asked to end; killed at the deadline.
    Stopping {
        /// When force follows; absent once force was used.
        kill_at: Option<Instant>,
    },
    /// Ended by itself; started again at this time.
    BackingOff {
        /// When.
        until: Instant,
    },
    /// Ended because its configuration is wrong; started again only when asked.
    GivenUp,
}

/// What the caller must do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start the program and report `started` or `ended`.
    Start,
    /// Send it SIGTERM.
    Terminate,
    /// Send it SIGKILL.
    Kill,
}

/// One program under supervision.
#[derive(Clone, Debug)]
pub struct Supervision {
    phase: Phase,
    wanted: bool,
    /// Endings in a row without a stable minute or somebody's request between them.
    failures: u32,
    grace: Duration,
}

impl Supervision {
    /// A program that is not running and not wanted yet. `grace` is the time between SIGTERM and SIGKILL.
    pub fn new(grace: Duration) -> Self {
        Self {
            phase: Phase::Idle,
            wanted: false,
            failures: 0,
            grace,
        }
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How often in a row it ended by itself, since it was last wanted.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// True when no process of it is left and none will be started.
    pub fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Idle | Phase::GivenUp) && !self.wanted
    }

    /// A process of an earlier keeper was found alive.
    pub fn adopted(&mut self, now: Instant) {
        self.wanted = true;
        self.phase = Phase::Running { since: now };
    }

    /// It should run from now on; waiting and giving up end here, and what failed before is forgotten.
    #[must_use]
    pub fn want(&mut self, _now: Instant) -> Option<Action> {
        self.wanted = true;
        // What seems to run may have ended a moment ago; that ending is the first to count.
        self.failures = 0;
        match self.phase {
            Phase::Running { .. } | Phase::Stopping { .. } => None,
            Phase::Idle | Phase::BackingOff { .. } | Phase::GivenUp => {
                self.phase = Phase::Idle;
                Some(Action::Start)
            }
        }
    }

    /// It should not run any more.
    #[must_use]
    pub fn unwant(&mut self, now: Instant) -> Option<Action> {
        self.wanted = false;
        self.end_running(now)
    }

    /// It should run with other settings: what runs is stopped, and started again once it has ended.
    #[must_use]
    pub fn replace(&mut self, now: Instant) -> Option<Action> {
        self.failures = 0;
        self.end_running(now)
    }

    fn end_running(&mut self, now: Instant) -> Option<Action> {
        match self.phase {
            Phase::Running { .. } => {
                self.phase = Phase::Stopping {
                    kill_at: Some(now + self.grace),
                };
                Some(Action::Terminate)
            }
            Phase::BackingOff { .. } => {
                self.phase = Phase::Idle;
                None
            }
            Phase::Idle | Phase::Stopping { .. } | Phase::GivenUp => None,
        }
    }

    /// Force follows at once instead of at the deadline.
    #[must_use]
    pub fn hurry(&mut self) -> Option<Action> {
        match self.phase {
            Phase::Stopping { kill_at: Some(_) } => {
                self.phase = Phase::Stopping { kill_at: None };
                Some(Action::Kill)
            }
            _ => None,
        }
    }

    /// The caller started it.
    pub fn started(&mut self, now: Instant) {
        self.phase = Phase::Running { since: now };
    }

    /// Its process has ended, or could not be started.
    #[must_use]
    pub fn ended(&mut self, now: Instant, ending: Ending) -> Option<Action> {
        let asked_to_end = matches!(self.phase, Phase::Stopping { .. });
        if !self.wanted {
            self.phase = Phase::Idle;
            return None;
        }
        if asked_to_end {
            self.phase = Phase::Idle;
            return Some(Action::Start);
        }
        if matches!(ending, Ending::Exited(code) if BAD_CONFIGURATION.contains(&code)) {
            self.phase = Phase::GivenUp;
            return None;
        }
        if matches!(self.phase, Phase::Running { since } if now.duration_since(since) >= STABLE) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.phase = Phase::BackingOff {
            until: now + delay(self.failures),
        };
        None
    }

    /// Time has passed.
    #[must_use]
    pub fn tick(&mut self, now: Instant) -> Option<Action> {
        match self.phase {
            Phase::BackingOff { until } if now >= until => {
                self.phase = Phase::Idle;
                Some(Action::Start)
            }
            Phase::Stopping {
                kill_at: Some(kill_at),
            } if now >= kill_at => self.hurry(),
            _ => None,
        }
    }

    /// When `tick` has something to do next.
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::BackingOff { until } => Some(until),
            Phase::Stopping { kill_at } => kill_at,
            Phase::Idle | Phase::Running { .. } | Phase::GivenUp => None,
        }
    }
}

/// Doubles from half a second to half a minute.
fn delay(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    FIRST_DELAY
        .saturating_mul(1 << doublings)
        .min(LONGEST_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    fn seconds(number: f64) -> Duration {
        Duration::from_secs_f64(number)
    }

    fn running(now: Instant) -> Supervision {
        let mut program = Supervision::new(GRACE);
        assert_eq!(program.want(now), Some(Action::Start));
        program.started(now);
        program
    }

    #[test]
    fn the_wait_doubles_up_to_half_a_minute() {
        let delays: Vec<_> = (1..=9)
            .map(|failures| delay(failures).as_secs_f64())
            .collect();
        assert_eq!(delays, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]);
        assert_eq!(delay(u32::MAX), LONGEST_DELAY);
    }

    #[test]
    fn a_program_that_ends_is_started_again_after_its_wait() {
        let now = Instant::now();
        let mut program = running(now);
        assert_eq!(program.ended(now, Ending::Signalled(9)), None);
        assert_eq!(program.tick(now + seconds(0.49)), None);
        assert_eq!(program.deadline(), Some(now + FIRST_DELAY));
        assert_eq!(program.tick(now + FIRST_DELAY), Some(Action::Start));
        program.started(now + FIRST_DELAY);
        assert_eq!(program.ended(now + seconds(1.0), Ending::Unknown), None);
        assert_eq!(program.failures(), 2);
        assert_eq!(program.deadline(), Some(now + seconds(2.0)));
    }

    #[test]
    fn a_stable_minute_forgives_earlier_failures() {
        let now = Instant::now();
        let mut program = running(now);
        for _ in 0..5 {
            assert_eq!(program.ended(now, Ending::Exited(1)), None);
            assert_eq!(program.tick(now + LONGEST_DELAY), Some(Action::Start));
            program.started(now);
        }
        assert_eq!(program.failures(), 5);
        assert_eq!(program.ended(now + STABLE, Ending::Exited(1)), None);
        assert_eq!(program.failures(), 1);
    }

    #[test]
    fn who_asks_for_it_forgives_earlier_failures_even_while_it_seems_to_run() {
        let now = Instant::now();
        let mut program = running(now);
        for _ in 0..2 {
            assert_eq!(program.ended(now, Ending::Signalled(9)), None);
            assert_eq!(program.tick(now + LONGEST_DELAY), Some(Action::Start));
            program.started(now);
        }
        assert_eq!(program.want(now), None);
        assert_eq!(program.ended(now, Ending::Signalled(9)), None);
        assert_eq!(program.failures(), 1);
        assert_eq!(program.deadline(), Some(now + FIRST_DELAY));
    }

    #[test]
    fn a_wrong_configuration_ends_the_loop_until_someone_asks() {
        let now = Instant::now();
        for code in BAD_CONFIGURATION {
            let mut program = running(now);
            assert_eq!(program.ended(now, Ending::Exited(code)), None);
            assert_eq!(program.phase(), Phase::GivenUp);
            assert_eq!(program.tick(now + seconds(1e6)), None);
            assert_eq!(program.want(now), Some(Action::Start));
        }
    }

    #[test]
    fn stopping_is_polite_first_and_forced_at_the_deadline() {
        let now = Instant::now();
        let mut program = running(now);
        assert_eq!(program.unwant(now), Some(Action::Terminate));
        assert_eq!(program.unwant(now), None, "asked once only");
        assert_eq!(program.tick(now + seconds(9.9)), None);
        assert_eq!(program.tick(now + GRACE), Some(Action::Kill));
        assert_eq!(program.tick(now + GRACE * 2), None, "killed once only");
        assert!(!program.is_settled());
        assert_eq!(program.ended(now + GRACE, Ending::Signalled(9)), None);
        assert!(program.is_settled());
    }

    #[test]
    fn stopping_a_program_that_waits_to_be_restarted_leaves_it_down() {
        let now = Instant::now();
        let mut program = running(now);
        assert_eq!(program.ended(now, Ending::Exited(1)), None);
        assert_eq!(program.unwant(now), None);
        assert_eq!(program.tick(now + LONGEST_DELAY), None);
        assert!(program.is_settled());
    }

    #[test]
    fn a_replaced_program_starts_again_as_soon_as_it_has_ended() {
        let now = Instant::now();
        let mut program = running(now);
        assert_eq!(program.replace(now), Some(Action::Terminate));
        assert_eq!(program.ended(now, Ending::Exited(0)), Some(Action::Start));
    }

    #[test]
    fn a_program_wanted_again_while_it_stops_comes_back() {
        let now = Instant::now();
        let mut program = running(now);
        assert_eq!(program.unwant(now), Some(Action::Terminate));
        assert_eq!(program.want(now), None);
        assert_eq!(program.ended(now, Ending::Exited(0)), Some(Action::Start));
    }
}
