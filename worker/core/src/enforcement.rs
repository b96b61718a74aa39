//! What a shim enforces on a running attempt by itself: time limit and warning, silence, an exclusive
//! attempt's lease, pauses, and the ladder that ends a process tree.
//!
//! [`Enforcement`] is told what happens and when, and answers with what to do. `now` is the time
//! since any fixed moment by a clock that never jumps.

use std::time::Duration;

use crate::silence::{Clock, Due, Silence, Stages};

/// Time that processes surviving the attempt's own one are left alone.
pub const LINGER: Duration = Duration::from_secs(10);

/// Time after which processes that force does not end are told of: they wait for the kernel.
pub const STUCK_AFTER: Duration = Duration::from_secs(60);

/// Bounds of the time between two tries to freeze a tree that could not be frozen whole.
const FREEZE_AGAIN: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(1);

/// Time between the stop signal and force, unless the job says otherwise.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// Why an attempt is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCause {
    /// A person's wish.
    Cancel,
    /// Its time limit.
    TimeLimit,
    /// Silence.
    Silence,
    /// Its lease ran out.
    Lease,
    /// Another attempt took its place.
    Superseded,
    /// A drill: killed without a stop signal, as the loss of the machine would.
    Drill,
    /// A GPU of its own failed.
    GpuFault,
    /// It was given a GPU and computes without it.
    GpuFallback,
}

/// The limits of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest run time, without pauses.
    pub time_limit: Option<Duration>,
    /// How long before the time limit the warning goes out.
    pub warn_before: Option<Duration>,
    /// Time between the stop signal and force.
    pub grace: Duration,
    /// How long an exclusive attempt may run without a renewal, pauses included.
    pub lease: Option<Duration>,
    /// When it counts as silent, and what follows.
    pub silence: Stages,
}

/// What happens to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// The agent asks to stop it.
    Stop {
        /// Why.
        cause: StopCause,
        /// Time between the stop signal and force, instead of the job's own.
        grace: Option<Duration>,
    },
    /// The agent asks to freeze or thaw it.
    SetPaused(bool),
    /// Its lease holds for this much longer.
    LeaseRenewed(Duration),
    /// There is a sign of life: output, progress, or activity where that counts.
    Heard,
    /// The machine's clocks disagree with what they said before: it may have slept.
    ClockJumped,
    /// [`Action::Freeze`] was tried.
    Frozen {
        /// Every process of the tree stands. Otherwise it is tried again soon.
        whole: bool,
    },
    /// wait returned. `survivors` tells whether other processes of it live.
    Exited {
        /// Whether other processes of the attempt live.
        survivors: bool,
    },
    /// No process of it is left.
    TreeEmpty,
}

/// What to do, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Record why the attempt is stopped.
    RecordStopping(StopCause),
    /// Record that the tree is frozen, or runs again.
    RecordPaused(bool),
    /// Record that a silence has come to a stage, or is over.
    RecordSilence(Silence),
    /// Send the warning signal.
    Warn,
    /// Send the stop signal.
    Terminate,
    /// Freeze the tree, then tell [`Event::Frozen`].
    Freeze,
    /// Thaw the tree.
    Thaw,
    /// Freeze and kill the tree, again and again until it is empty.
    Kill,
    /// Record that processes do not end although they were killed.
    RecordStuck,
}

/// How far the ladder was climbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ladder {
    /// Nobody wants the tree to end.
    Ground,
    /// The attempt's own process has ended, others have until then.
    Lingering { until: Duration },
    /// The stop signal was sent; force follows then.
    Terminating { kill_at: Duration },
    /// By force. It is told then that force does not help; `None` once it was told.
    Killing { stuck_at: Option<Duration> },
    /// The tree is empty.
    Over,
}

/// The enforcement of one attempt.
#[derive(Debug, Clone)]
pub struct Enforcement {
    limits: Limits,
    ladder: Ladder,
    cause: Option<StopCause>,
    exited: bool,
    warned: bool,
    /// Frozen because somebody asked.
    paused: bool,
    /// Frozen because the lease may have passed while the machine slept.
    unconfirmed: bool,
    /// It was recorded that the tree stands.
    told_paused: bool,
    /// The tree does not stand yet: when that is tried again, and the time to the try after it.
    freeze_again: Option<(Duration, Duration)>,
    /// Run time before `running_since`.
    ran: Duration,
    /// When the clock of the run time was last set going; `None` while it stands.
    running_since: Option<Duration>,
    lease_until: Option<Duration>,
    silence: Clock,
}

impl Enforcement {
    /// Begins with the start of the process.
    pub fn start(now: Duration, limits: Limits) -> Self {
        Self {
            limits,
            ladder: Ladder::Ground,
            cause: None,
            exited: false,
            warned: false,
            paused: false,
            unconfirmed: false,
            told_paused: false,
            freeze_again: None,
            ran: Duration::ZERO,
            running_since: Some(now),
            lease_until: limits.lease.map(|lease| now.saturating_add(lease)),
            silence: Clock::new(limits.silence),
        }
    }

    /// Why the attempt was stopped, when that was begun before its process ended by itself.
    pub fn cause(&self) -> Option<StopCause> {
        self.cause
    }

    /// True once force was used.
    pub fn is_killing(&self) -> bool {
        matches!(self.ladder, Ladder::Killing { .. })
    }

    /// True while the tree is frozen.
    pub fn is_frozen(&self) -> bool {
        self.running_since.is_none() && !self.exited
    }

    /// True while a jump of the clocks must be told: an exclusive attempt may have lost its place
    /// meanwhile, and with it what it left behind.
    pub fn minds_clocks(&self) -> bool {
        let is_ending = matches!(self.ladder, Ladder::Killing { .. } | Ladder::Over);
        self.limits.lease.is_some() && !is_ending
    }

    /// How long nothing was heard, when it runs and activity would be a sign of life.
    pub fn idle(&self, now: Duration) -> Option<Duration> {
        let watched = self.limits.silence.activity && self.limits.silence.first().is_some();
        let runs = self.ladder == Ladder::Ground && self.running_since.is_some();
        (watched && runs).then(|| self.silence.silent(self.ran(now)))
    }

    /// Run time without pauses; after the exit, until the exit.
    pub fn ran(&self, now: Duration) -> Duration {
        let since = self.running_since.map(|since| now.saturating_sub(since));
        self.ran.saturating_add(since.unwrap_or_default())
    }

    /// When [`Event::Tick`] has something to do next. In the past or now: at once.
    pub fn deadline(&self) -> Option<Duration> {
        match self.ladder {
            Ladder::Ground => {
                let running = |limit: Duration| {
                    self.running_since
                        .map(|since| since.saturating_add(limit.saturating_sub(self.ran)))
                };
                [
                    self.limits.time_limit.and_then(running),
                    self.warn_after().and_then(running),
                    self.silence.deadline().and_then(running),
                    self.lease_until,
                    self.freeze_again.map(|(at, _)| at),
                ]
                .into_iter()
                .flatten()
                .min()
            }
            Ladder::Lingering { until } => Some(until),
            Ladder::Terminating { kill_at } => Some(kill_at),
            Ladder::Killing { stuck_at } => stuck_at,
            Ladder::Over => None,
        }
    }

    /// Takes what happened and answers with what to do.
    pub fn apply(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Tick => self.tick(now, &mut actions),
            Event::Stop { cause, grace } => {
                self.stop(now, cause, grace.unwrap_or(self.limits.grace), &mut actions);
            }
            Event::SetPaused(paused) => {
                self.paused = paused;
                self.settle_pause(now, &mut actions);
            }
            Event::LeaseRenewed(holds_for) => {
                if self.lease_until.is_some() {
                    self.lease_until = Some(now.saturating_add(holds_for));
                    self.unconfirmed = false;
                    self.settle_pause(now, &mut actions);
                }
            }
            Event::Heard => {
                let ran = self.ran(now);
                if self.ladder == Ladder::Ground {
                    let over = self.silence.heard(ran);
                    actions.extend(over.map(Action::RecordSilence));
                }
            }
            Event::ClockJumped if self.minds_clocks() => match self.ladder {
                Ladder::Ground => {
                    self.unconfirmed = true;
                    self.settle_pause(now, &mut actions);
                }
                // What is left of its time may be over long ago, and another one may run by now.
                _ => {
                    self.ladder = Ladder::Killing {
                        stuck_at: Some(now.saturating_add(STUCK_AFTER)),
                    };
                    actions.push(Action::Kill);
                }
            },
            Event::ClockJumped => {}
            Event::Frozen { whole } => self.frozen(now, whole, &mut actions),
            Event::Exited { survivors } => self.exited(now, survivors, &mut actions),
            Event::TreeEmpty => self.ladder = Ladder::Over,
        }
        actions
    }

    fn tick(&mut self, now: Duration, actions: &mut Vec<Action>) {
        match self.ladder {
            Ladder::Ground => {
                let ran = self.ran(now);
                let runs = self.running_since.is_some();
                let silence = runs.then(|| self.silence.look(ran)).flatten();
                if self.lease_until.is_some_and(|until| now >= until) {
                    self.stop(now, StopCause::Lease, self.limits.grace, actions);
                } else if self.limits.time_limit.is_some_and(|limit| ran >= limit) {
                    self.stop(now, StopCause::TimeLimit, self.limits.grace, actions);
                } else if let Some(due) = silence {
                    match due {
                        Due::Stage(silence) => actions.push(Action::RecordSilence(silence)),
                        Due::Stop => {
                            self.stop(now, StopCause::Silence, self.limits.grace, actions);
                        }
                    }
                } else if self.warn_after().is_some_and(|after| ran >= after) {
                    self.warned = true;
                    actions.push(Action::Warn);
                } else if self.freeze_again.is_some_and(|(at, _)| now >= at) {
                    actions.push(Action::Freeze);
                }
            }
            Ladder::Lingering { until } if now >= until => {
                self.ladder = Ladder::Terminating {
                    kill_at: now.saturating_add(self.limits.grace),
                };
                actions.push(Action::Terminate);
            }
            Ladder::Terminating { kill_at } if now >= kill_at => {
                self.ladder = Ladder::Killing {
                    stuck_at: Some(now.saturating_add(STUCK_AFTER)),
                };
                actions.push(Action::Kill);
            }
            Ladder::Killing {
                stuck_at: Some(stuck_at),
            } if now >= stuck_at => {
                self.ladder = Ladder::Killing { stuck_at: None };
                actions.push(Action::RecordStuck);
            }
            Ladder::Lingering { .. }
            | Ladder::Terminating { .. }
            | Ladder::Killing { .. }
            | Ladder::Over => {}
        }
    }

    fn stop(
        &mut self,
        now: Duration,
        cause: StopCause,
        grace: Duration,
        actions: &mut Vec<Action>,
    ) {
        let kill_at = now.saturating_add(grace);
        match self.ladder {
            // A machine that is lost gives no notice, so a drill of that gives none either. Where
            // another attempt may be running, an exclusive one does not get to act any more.
            Ladder::Ground
                if cause == StopCause::Drill
                    || self.unconfirmed
                    || (cause == StopCause::Superseded && self.lease_until.is_some()) =>
            {
                self.cause = Some(cause);
                self.ladder = Ladder::Killing {
                    stuck_at: Some(now.saturating_add(STUCK_AFTER)),
                };
                actions.extend([Action::RecordStopping(cause), Action::Kill]);
            }
            Ladder::Ground => {
                self.cause = Some(cause);
                self.ladder = Ladder::Terminating { kill_at };
                actions.extend([Action::RecordStopping(cause), Action::Terminate]);
                // A frozen process cannot act on the stop signal.
                self.paused = false;
                self.unconfirmed = false;
                if self.is_frozen() {
                    self.thaw(now, actions);
                }
            }
            // The result is recorded already, so there is no cause to record.
            Ladder::Lingering { .. } => {
                self.ladder = Ladder::Terminating { kill_at };
                actions.push(Action::Terminate);
            }
            // A second wish to stop can shorten the grace, never lengthen it.
            Ladder::Terminating { kill_at: before } => {
                self.ladder = Ladder::Terminating {
                    kill_at: before.min(kill_at),
                };
            }
            Ladder::Killing { .. } | Ladder::Over => {}
        }
    }

    fn settle_pause(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.ladder != Ladder::Ground {
            return;
        }
        let freeze = self.paused || self.unconfirmed;
        match (freeze, self.running_since) {
            (true, Some(_)) => {
                self.ran = self.ran(now);
                self.running_since = None;
                actions.push(Action::Freeze);
            }
            (false, None) => self.thaw(now, actions),
            (true, None) | (false, Some(_)) => {}
        }
    }

    fn thaw(&mut self, now: Duration, actions: &mut Vec<Action>) {
        self.running_since = Some(now);
        self.freeze_again = None;
        actions.push(Action::Thaw);
        if std::mem::take(&mut self.told_paused) {
            actions.push(Action::RecordPaused(false));
        }
    }

    fn frozen(&mut self, now: Duration, whole: bool, actions: &mut Vec<Action>) {
        if !self.is_frozen() || self.ladder != Ladder::Ground {
            return;
        }
        if whole {
            self.freeze_again = None;
            if !std::mem::replace(&mut self.told_paused, true) {
                actions.push(Action::RecordPaused(true));
            }
            return;
        }
        let wait = self
            .freeze_again
            .map_or(*FREEZE_AGAIN.start(), |(_, wait)| wait);
        let next = (wait * 2).min(*FREEZE_AGAIN.end());
        self.freeze_again = Some((now.saturating_add(wait), next));
    }

    fn exited(&mut self, now: Duration, survivors: bool, actions: &mut Vec<Action>) {
        if self.exited {
            return;
        }
        self.ran = self.ran(now);
        let was_frozen = self.running_since.is_none();
        self.running_since = None;
        self.exited = true;
        self.lease_until = None;
        self.freeze_again = None;
        if !survivors {
            self.ladder = Ladder::Over;
        } else if self.ladder == Ladder::Ground {
            self.ladder = Ladder::Lingering {
                until: now.saturating_add(LINGER),
            };
            if was_frozen {
                actions.push(Action::Thaw);
            }
        }
    }

    /// Run time after which the warning goes out; `None` when there is none to send any more.
    fn warn_after(&self) -> Option<Duration> {
        if self.warned {
            return None;
        }
        let before = self.limits.warn_before?;
        Some(self.limits.time_limit?.saturating_sub(before))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::silence::Stage;

    const NO_LIMITS: Limits = Limits {
        time_limit: None,
        warn_before: None,
        grace: Duration::from_secs(10),
        lease: None,
        silence: Stages {
            warn_after: None,
            remind_after: None,
            stop_after: None,
            activity: false,
        },
    };

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Lets every freeze succeed at once.
    fn apply(attempt: &mut Enforcement, now: Duration, event: Event) -> Vec<Action> {
        let mut actions = attempt.apply(now, event);
        if actions.contains(&Action::Freeze) {
            actions.extend(attempt.apply(now, Event::Frozen { whole: true }));
        }
        actions
    }

    fn cancel() -> Event {
        Event::Stop {
            cause: StopCause::Cancel,
            grace: None,
        }
    }

    #[test]
    fn the_time_limit_warns_stops_and_kills() {
        let mut attempt = Enforcement::start(
            s(100),
            Limits {
                time_limit: Some(s(60)),
                warn_before: Some(s(20)),
                ..NO_LIMITS
            },
        );
        assert_eq!(attempt.deadline(), Some(s(140)));
        assert_eq!(attempt.apply(s(139), Event::Tick), []);
        assert_eq!(attempt.apply(s(140), Event::Tick), [Action::Warn]);
        assert_eq!(attempt.deadline(), Some(s(160)));
        assert_eq!(
            attempt.apply(s(160), Event::Tick),
            [
                Action::RecordStopping(StopCause::TimeLimit),
                Action::Terminate
            ]
        );
        assert_eq!(attempt.deadline(), Some(s(170)));
        assert_eq!(attempt.apply(s(170), Event::Tick), [Action::Kill]);
        assert_eq!(attempt.deadline(), Some(s(230)));
        assert_eq!(attempt.apply(s(229), Event::Tick), []);
        assert_eq!(attempt.apply(s(230), Event::Tick), [Action::RecordStuck]);
        assert_eq!(attempt.deadline(), None);
        assert_eq!(attempt.cause(), Some(StopCause::TimeLimit));
    }

    #[test]
    fn a_pause_stops_the_clock_of_the_time_limit() {
        let mut attempt = Enforcement::start(
            s(0),
            Limits {
                time_limit: Some(s(60)),
                ..NO_LIMITS
            },
        );
        assert_eq!(
            apply(&mut attempt, s(50), Event::SetPaused(true)),
            [Action::Freeze, Action::RecordPaused(true)]
        );
        assert_eq!(attempt.apply(s(51), Event::SetPaused(true)), []);
        assert_eq!(attempt.deadline(), None);
        assert_eq!(attempt.apply(s(5000), Event::Tick), []);
        assert_eq!(
            attempt.apply(s(6000), Event::SetPaused(false)),
            [Action::Thaw, Action::RecordPaused(false)]
        );
        assert_eq!(attempt.deadline(), Some(s(6010)));
        attempt.apply(s(6005), Event::Exited { survivors: false });
        assert_eq!(attempt.ran(s(9999)), s(55));
    }

    #[test]
    fn f37_silence_is_told_and_then_stops_what_is_not_paused() {
        let mut attempt = Enforcement::start(
            s(100),
            Limits {
                silence: Stages {
                    warn_after: Some(s(10)),
                    stop_after: Some(s(20)),
                    ..Stages::default()
                },
                ..NO_LIMITS
            },
        );
        assert_eq!(attempt.apply(s(105), Event::Heard), []);
        assert_eq!(attempt.deadline(), Some(s(115)));
        assert_eq!(attempt.apply(s(114), Event::Tick), []);
        let told = |attempt: &mut Enforcement, now, event| match attempt.apply(now, event)[..] {
            [Action::RecordSilence(silence)] => (silence.stage, silence.lasted, silence.episode),
            ref other => panic!("{other:?}"),
        };
        let warned = told(&mut attempt, s(115), Event::Tick);
        assert_eq!(warned, (Stage::Warned, s(10), 1));
        assert_eq!(attempt.apply(s(116), Event::Tick), [], "once");
        // Three minutes of a pause are no silence.
        apply(&mut attempt, s(116), Event::SetPaused(true));
        assert_eq!(attempt.deadline(), None);
        assert_eq!(attempt.apply(s(290), Event::Tick), []);
        attempt.apply(s(296), Event::SetPaused(false));
        let over = told(&mut attempt, s(297), Event::Heard);
        assert_eq!(over, (Stage::Over, s(12), 1));
        let warned = told(&mut attempt, s(307), Event::Tick);
        assert_eq!(warned, (Stage::Warned, s(10), 2));
        let ending = told(&mut attempt, s(315), Event::Tick);
        assert_eq!(ending.0, Stage::Ending);
        assert_eq!(attempt.apply(s(316), Event::Tick), []);
        let stop = [
            Action::RecordStopping(StopCause::Silence),
            Action::Terminate,
        ];
        assert_eq!(attempt.apply(s(317), Event::Tick), stop);
        assert_eq!(attempt.apply(s(318), Event::Heard), [], "too late");
        assert_eq!(attempt.cause(), Some(StopCause::Silence));
    }

    #[test]
    fn a_tree_that_is_not_frozen_whole_is_frozen_again_and_told_once() {
        let mut attempt = Enforcement::start(s(0), NO_LIMITS);
        let paused = attempt.apply(s(1), Event::SetPaused(true));
        assert_eq!(paused, [Action::Freeze]);
        let part = Event::Frozen { whole: false };
        let mut now = s(1);
        for _ in 0..10 {
            assert_eq!(attempt.apply(now, part), []);
            let next = attempt.deadline().unwrap();
            assert!(next > now && next <= now + s(1));
            now = next;
            assert_eq!(attempt.apply(now, Event::Tick), [Action::Freeze]);
        }
        let whole = Event::Frozen { whole: true };
        assert_eq!(attempt.apply(now, whole), [Action::RecordPaused(true)]);
        assert_eq!(attempt.apply(now, whole), []);
        assert_eq!(attempt.deadline(), None);

        let mut attempt = Enforcement::start(s(0), NO_LIMITS);
        attempt.apply(s(1), Event::SetPaused(true));
        attempt.apply(s(1), part);
        let thawed = attempt.apply(s(2), Event::SetPaused(false));
        assert_eq!(thawed, [Action::Thaw], "what was frozen goes on");
        assert_eq!(attempt.deadline(), None);
    }

    #[test]
    fn an_exclusive_attempt_whose_place_may_be_taken_does_not_act_any_more() {
        let leased = Limits {
            lease: Some(s(60)),
            ..NO_LIMITS
        };
        let superseded = Event::Stop {
            cause: StopCause::Superseded,
            grace: None,
        };
        let killed = |cause| vec![Action::RecordStopping(cause), Action::Kill];
        let mut attempt = Enforcement::start(s(0), leased);
        let actions = attempt.apply(s(1), superseded);
        assert_eq!(actions, killed(StopCause::Superseded));

        // Nobody knows how long the machine slept: it stays frozen until it is dead.
        let mut attempt = Enforcement::start(s(0), leased);
        apply(&mut attempt, s(1), Event::ClockJumped);
        let actions = attempt.apply(s(60), Event::Tick);
        assert_eq!(actions, killed(StopCause::Lease));

        // Nor does it get the rest of a grace period that the machine slept through.
        let mut attempt = Enforcement::start(s(0), leased);
        attempt.apply(s(1), cancel());
        assert_eq!(attempt.apply(s(2), Event::ClockJumped), [Action::Kill]);

        // What it left behind is a part of it.
        for told_to_end in [false, true] {
            let mut attempt = Enforcement::start(s(0), leased);
            attempt.apply(s(1), Event::Exited { survivors: true });
            if told_to_end {
                assert_eq!(
                    attempt.apply(s(1) + LINGER, Event::Tick),
                    [Action::Terminate]
                );
            }
            assert!(attempt.minds_clocks());
            assert_eq!(attempt.apply(s(9), Event::ClockJumped), [Action::Kill]);
            assert!(!attempt.minds_clocks());
        }

        let mut attempt = Enforcement::start(s(0), NO_LIMITS);
        let actions = attempt.apply(s(1), superseded);
        assert!(actions.contains(&Action::Terminate), "others may clean up");
    }

    #[test]
    fn stopping_a_frozen_tree_thaws_it_after_the_signal() {
        let mut attempt = Enforcement::start(s(0), NO_LIMITS);
        apply(&mut attempt, s(1), Event::SetPaused(true));
        assert_eq!(
            attempt.apply(s(2), cancel()),
            [
                Action::RecordStopping(StopCause::Cancel),
                Action::Terminate,
                Action::Thaw,
                Action::RecordPaused(false),
            ]
        );
        assert_eq!(attempt.apply(s(3), Event::SetPaused(true)), []);
        assert!(!attempt.is_frozen());
    }

    #[test]
    fn the_first_cause_stays_and_a_second_stop_only_hurries() {
        let mut attempt = Enforcement::start(s(0), NO_LIMITS);
        attempt.apply(s(1), cancel());
        let later = Event::Stop {
            cause: StopCause::Superseded,
            grace: Some(s(100)),
        };
        assert_eq!(attempt.apply(s(2), later), []);
        assert_eq!(attempt.deadline(), Some(s(11)));
        let sooner = Event::Stop {
            cause: StopCause::Superseded,
            grace: Some(s(1)),
        };
        assert_eq!(attempt.apply(s(3), sooner), []);
        assert_eq!(attempt.deadline(), Some(s(4)));
        assert_eq!(attempt.cause(), Some(StopCause::Cancel));
    }

    #[test]
    fn a_drill_kills_without_a_word() {
        let drill = Event::Stop {
            cause: StopCause::Drill,
            grace: None,
        };
        let mut attempt = Enforcement::start(s(0), NO_LIMITS);
        attempt.apply(s(1), Event::SetPaused(true));
        assert_eq!(
            attempt.apply(s(2), drill),
            [Action::RecordStopping(StopCause::Drill), Action::Kill]
        );
        assert_eq!(attempt.apply(s(3), cancel()), []);
        assert_eq!(attempt.cause(), Some(StopCause::Drill));
        assert!(attempt.is_killing());
        // What has ended by itself is not drilled any more.
        let mut over = Enforcement::start(s(0), NO_LIMITS);
        over.apply(s(5), Event::Exited { survivors: true });
        assert_eq!(over.apply(s(6), drill), [Action::Terminate]);
        assert_eq!(over.cause(), None);
    }

    #[test]
    fn survivors_linger_and_are_then_stopped_without_a_cause() {
        let mut attempt = Enforcement::start(s(0), NO_LIMITS);
        assert_eq!(attempt.apply(s(5), Event::Exited { survivors: true }), []);
        assert_eq!(attempt.deadline(), Some(s(15)));
        assert_eq!(attempt.apply(s(15), Event::Tick), [Action::Terminate]);
        assert_eq!(attempt.apply(s(25), Event::Tick), [Action::Kill]);
        attempt.apply(s(26), Event::TreeEmpty);
        assert_eq!(attempt.apply(s(27), cancel()), []);
        assert_eq!(attempt.cause(), None);
        assert_eq!(attempt.ran(s(99)), s(5));
    }

    #[test]
    fn a_cancel_of_survivors_does_not_wait() {
        let mut attempt = Enforcement::start(s(0), NO_LIMITS);
        attempt.apply(s(5), Event::Exited { survivors: true });
        assert_eq!(attempt.apply(s(6), cancel()), [Action::Terminate]);
        assert_eq!(attempt.cause(), None);
        assert_eq!(attempt.deadline(), Some(s(16)));
    }

    #[test]
    fn a_lease_that_is_not_renewed_stops_even_a_paused_attempt() {
        let mut attempt = Enforcement::start(
            s(0),
            Limits {
                lease: Some(s(30)),
                ..NO_LIMITS
            },
        );
        attempt.apply(s(20), Event::LeaseRenewed(s(30)));
        assert_eq!(attempt.deadline(), Some(s(50)));
        attempt.apply(s(21), Event::SetPaused(true));
        assert_eq!(attempt.deadline(), Some(s(50)));
        let actions = attempt.apply(s(50), Event::Tick);
        assert_eq!(actions[0], Action::RecordStopping(StopCause::Lease));
        assert!(actions.contains(&Action::Thaw));
    }

    #[test]
    fn a_clock_jump_freezes_an_exclusive_attempt_until_its_lease_is_confirmed() {
        let mut attempt = Enforcement::start(
            s(0),
            Limits {
                lease: Some(s(30)),
                ..NO_LIMITS
            },
        );
        assert_eq!(
            apply(&mut attempt, s(5), Event::ClockJumped),
            [Action::Freeze, Action::RecordPaused(true)]
        );
        assert_eq!(attempt.apply(s(6), Event::SetPaused(true)), []);
        assert_eq!(attempt.apply(s(7), Event::LeaseRenewed(s(30))), []);
        assert_eq!(
            attempt.apply(s(8), Event::SetPaused(false)),
            [Action::Thaw, Action::RecordPaused(false)]
        );

        let mut other = Enforcement::start(s(0), NO_LIMITS);
        assert_eq!(other.apply(s(5), Event::ClockJumped), []);
        assert_eq!(other.apply(s(5), Event::LeaseRenewed(s(1))), []);
        assert_eq!(other.deadline(), None);
    }

    #[test]
    fn endless_limits_do_not_overflow() {
        let mut attempt = Enforcement::start(
            s(1),
            Limits {
                time_limit: Some(Duration::MAX),
                warn_before: Some(Duration::MAX),
                grace: Duration::MAX,
                lease: Some(Duration::MAX),
                silence: Stages {
                    warn_after: Some(Duration::MAX),
                    remind_after: None,
                    stop_after: Some(Duration::MAX),
                    activity: true,
                },
            },
        );
        assert_eq!(attempt.apply(s(1), Event::Tick), [Action::Warn]);
        attempt.apply(s(2), cancel());
        assert_eq!(attempt.deadline(), Some(Duration::MAX));
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let time = || (0_u64..50).prop_map(Duration::from_secs);
        let cause = prop_oneof![
            Just(StopCause::Cancel),
            Just(StopCause::Silence),
            Just(StopCause::Superseded)
        ];
        prop_oneof![
            4 => Just(Event::Tick),
            1 => (cause, proptest::option::of(time()))
                .prop_map(|(cause, grace)| Event::Stop { cause, grace }),
            2 => any::<bool>().prop_map(Event::SetPaused),
            1 => time().prop_map(Event::LeaseRenewed),
            1 => Just(Event::ClockJumped),
            2 => Just(Event::Heard),
            1 => any::<bool>().prop_map(|survivors| Event::Exited { survivors }),
        ]
    }

    proptest! {
        #[test]
        fn laws_of_the_ladder(
            time_limit in proptest::option::of(0_u64..200),
            warn_before in proptest::option::of(0_u64..200),
            lease in proptest::option::of(0_u64..200),
            silence in proptest::option::of(1_u64..100),
            steps in proptest::collection::vec((0_u64..40, any_event()), 0..40),
        ) {
            let mut attempt = Enforcement::start(s(0), Limits {
                time_limit: time_limit.map(s),
                warn_before: warn_before.map(s),
                grace: s(10),
                lease: lease.map(s),
                silence: Stages {
                    stop_after: silence.map(s),
                    ..Stages::default()
                },
            });
            let mut now = s(0);
            let mut done = Vec::new();
            let mut frozen = false;
            let mut exited = false;
            for (later, event) in steps {
                now += s(later);
                if exited && matches!(event, Event::Exited { .. }) {
                    continue;
                }
                exited |= matches!(event, Event::Exited { .. });
                let before = attempt.ran(now);
                for action in apply(&mut attempt, now, event) {
                    match action {
                        Action::Freeze => {
                            prop_assert!(!frozen);
                            frozen = true;
                        }
                        Action::Thaw => {
                            prop_assert!(frozen);
                            frozen = false;
                        }
                        Action::RecordStopping(_) => prop_assert!(!exited),
                        _ => {}
                    }
                    done.push(action);
                }
                if !exited {
                    prop_assert_eq!(frozen, attempt.is_frozen());
                }
                // An event never makes time, and nothing is due that a tick just looked at.
                prop_assert_eq!(before, attempt.ran(now));
                if event == Event::Tick {
                    let again = attempt.apply(now, Event::Tick);
                    done.extend(&again);
                }
            }
            let count = |wanted: fn(&Action) -> bool| done.iter().filter(|a| wanted(a)).count();
            prop_assert!(count(|a| matches!(a, Action::RecordStopping(_))) <= 1);
            prop_assert!(count(|a| matches!(a, Action::Terminate)) <= 1);
            prop_assert!(count(|a| matches!(a, Action::Warn)) <= 1);
            prop_assert!(count(|a| matches!(a, Action::Kill)) <= 1);
            let at = |wanted: Action| done.iter().position(|action| *action == wanted);
            if let Some(kill) = at(Action::Kill) {
                let warned = at(Action::Terminate).is_some_and(|terminate| terminate < kill);
                prop_assert!(warned || lease.is_some(), "only an exclusive one gets no notice");
            }
        }
    }
}
