//! When a running attempt counts as silent, and how far its silence has come.
//!
//! The clock counts run time: what passes while the attempt is frozen is no silence, and neither is
//! time in which nobody looked, because the machine slept or had no time for the shim.

use std::time::Duration;

/// Silence after which people are told, unless someone says otherwise.
pub const WARN_AFTER: Duration = Duration::from_secs(5 * 60);

/// Silence after which they are told again, without a sound.
pub const REMIND_AFTER: Duration = Duration::from_secs(10 * 60);

/// Silence after which the attempt is stopped.
pub const STOP_AFTER: Duration = Duration::from_secs(15 * 60);

/// Time between two stages of which the later one was not chosen, at least.
const APART: Duration = Duration::from_secs(5 * 60);

/// Longest time between two looks at the clock.
const LOOK_EVERY: Duration = Duration::from_secs(20);

/// Time without a look that does not count: whoever should have looked did not run, and the attempt
/// hardly did either.
const ASLEEP: Duration = Duration::from_secs(60);

/// How long before the stop someone looks at what the attempt does, at most. A shorter stop shortens
/// it.
const LAST_LOOK: Duration = Duration::from_secs(10);

/// What counts as a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// Output and reports of progress.
    Output,
    /// The use of processors, files and GPUs as well.
    Activity,
}

/// What someone has said about silence. Who says nothing about a stage leaves it to others; zero
/// means that it never comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Silence after which people are told.
    pub warn_after: Option<Duration>,
    /// Silence after which they are told again.
    pub remind_after: Option<Duration>,
    /// Silence after which the attempt is stopped.
    pub stop_after: Option<Duration>,
    /// What counts as a sign of life.
    pub counts: Option<Counts>,
}

impl Wish {
    /// This wish laid over another one.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        // A stage of the wish below that contradicts the order of those above was chosen for other
        // times. What never comes is in nobody's way.
        let fits = |early: Option<Duration>, late: Option<Duration>| {
            let comes = |at: &Duration| !at.is_zero();
            match (early.filter(comes), late.filter(comes)) {
                (Some(early), Some(late)) => early < late,
                _ => true,
            }
        };
        let (warn, remind, stop) = (self.warn_after, self.remind_after, self.stop_after);
        Self {
            warn_after: warn.or(below
                .warn_after
                .filter(|at| fits(Some(*at), remind) && fits(Some(*at), stop))),
            remind_after: remind.or(below
                .remind_after
                .filter(|at| fits(warn, Some(*at)) && fits(Some(*at), stop))),
            stop_after: stop.or(below
                .stop_after
                .filter(|at| fits(warn, Some(*at)) && fits(remind, Some(*at)))),
            counts: self.counts.or(below.counts),
        }
    }

    /// What holds in the end. A stage that nobody chose comes at its usual time, or later when an
    /// earlier stage was put off; a stage that a later one has overtaken does not come.
    pub fn stages(self) -> Stages {
        let chosen = |wish: Option<Duration>, usual: Duration, before: Option<Duration>| {
            let after = before.map_or(Duration::ZERO, |before| before.saturating_add(APART));
            let at = wish.unwrap_or_else(|| usual.max(after));
            Some(at).filter(|at| !at.is_zero())
        };
        let warn_after = chosen(self.warn_after, WARN_AFTER, None);
        let remind_after = chosen(self.remind_after, REMIND_AFTER, warn_after);
        let stop_after = chosen(self.stop_after, STOP_AFTER, warn_after.max(remind_after));
        let before_stop = |at: &Duration| stop_after.is_none_or(|stop| *at < stop);
        let remind_after = remind_after.filter(before_stop);
        Stages {
            warn_after: warn_after
                .filter(before_stop)
                .filter(|warn| remind_after.is_none_or(|remind| *warn < remind)),
            remind_after,
            stop_after,
            activity: self.counts == Some(Counts::Activity),
        }
    }
}

/// The stages of one attempt's silence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// Silence after which people are told.
    pub warn_after: Option<Duration>,
    /// Silence after which they are told again.
    pub remind_after: Option<Duration>,
    /// Silence after which the attempt is stopped.
    pub stop_after: Option<Duration>,
    /// Whether the use of processors, files and GPUs is a sign of life too.
    pub activity: bool,
}

impl Stages {
    /// The first stage that comes; none when silence is not watched.
    pub fn first(&self) -> Option<Duration> {
        [self.warn_after, self.remind_after, self.stop_after]
            .into_iter()
            .flatten()
            .min()
    }
}

/// How far a silence has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// People are told.
    Warned,
    /// They are told again.
    Reminded,
    /// The stop is near: the last moment to look at what the attempt does.
    Ending,
    /// There was a sign of life.
    Over,
}

/// A step of a silence, as the shim records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Counts the silences of one attempt that came as far as any stage, from 1.
    pub episode: u32,
    /// How far it has come.
    pub stage: Stage,
    /// How long it has lasted.
    pub lasted: Duration,
    /// After which silence the attempt is stopped, if it is.
    pub stop_after: Option<Duration>,
}

/// What an attempt does while it is silent. What could not be found out is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// How long it has used next to no processor time.
    pub cpu_still: Option<Duration>,
    /// How long it has read and written next to nothing.
    pub io_still: Option<Duration>,
    /// How long its GPUs did next to nothing.
    pub gpu_still: Option<Duration>,
    /// Its deepest processes, the deepest first.
    pub processes: Vec<SilentProcess>,
    /// Where a Python program stands; empty when nobody knows.
    pub stack: String,
    /// The last lines of its output.
    pub last_lines: String,
}

/// A process of a silent attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SilentProcess {
    /// Process id.
    pub pid: i32,
    /// Its command line, cut.
    pub command: String,
    /// Its state as `/proc` letters it.
    pub state: String,
    /// Where in the kernel it waits; empty when nobody knows.
    pub wait_channel: String,
}

/// A step of a silence, and what is known of the attempt then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The step.
    pub silence: Silence,
    /// When, in microseconds since the Unix epoch.
    pub wall_us: i64,
    /// What the attempt does, as far as anybody has looked.
    pub evidence: Evidence,
}

/// What the clock finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// A stage has come.
    Stage(Silence),
    /// The attempt is to be stopped.
    Stop,
}

/// The clock of one attempt's silence. All times are run times of the attempt.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    stages: Stages,
    /// The last sign of life.
    heard: Duration,
    /// When somebody looked last.
    looked: Duration,
    episode: u32,
    told: Option<Stage>,
}

impl Clock {
    /// A clock that begins with the attempt.
    pub fn new(stages: Stages) -> Self {
        Self {
            stages,
            heard: Duration::ZERO,
            looked: Duration::ZERO,
            episode: 0,
            told: None,
        }
    }

    /// How long nothing was heard at `ran`, when that was looked at in time.
    pub fn silent(&self, ran: Duration) -> Duration {
        ran.saturating_sub(self.heard)
    }

    /// There is a sign of life. Tells the end of a silence of which a stage was told.
    pub fn heard(&mut self, ran: Duration) -> Option<Silence> {
        self.pass(ran);
        let lasted = self.silent(ran);
        self.heard = ran;
        self.told.take()?;
        Some(self.silence(Stage::Over, lasted))
    }

    /// Time has passed: what is due, one after the other.
    pub fn look(&mut self, ran: Duration) -> Option<Due> {
        self.pass(ran);
        let (stage, at) = self.next()?;
        if self.silent(ran) < at {
            return None;
        }
        let Some(stage) = stage else {
            return Some(Due::Stop);
        };
        if self.told.is_none() {
            self.episode = self.episode.saturating_add(1);
        }
        self.told = Some(stage);
        Some(Due::Stage(self.silence(stage, self.silent(ran))))
    }

    /// The run time at which to look next.
    pub fn deadline(&self) -> Option<Duration> {
        let next = self.next().map(|(_, at)| self.heard.saturating_add(at));
        // After the last stage someone still looks: that it is over is told with its length.
        let watched = next.is_some() || self.told.is_some();
        let look = watched.then(|| self.looked.saturating_add(LOOK_EVERY))?;
        Some(next.map_or(look, |next| next.min(look)))
    }

    /// Leaves out the time in which nobody looked.
    fn pass(&mut self, ran: Duration) {
        let unseen = ran.saturating_sub(self.looked);
        if unseen > ASLEEP {
            self.heard = self.heard.saturating_add(unseen);
        }
        self.looked = self.looked.max(ran);
    }

    /// The next stage and its silence; no stage means the stop.
    fn next(&self) -> Option<(Option<Stage>, Duration)> {
        let stop = self.stages.stop_after;
        let last_look = stop.map(|stop| stop.saturating_sub(LAST_LOOK.min(stop / 10)));
        [
            (Stage::Warned, self.stages.warn_after),
            (Stage::Reminded, self.stages.remind_after),
            (Stage::Ending, last_look),
        ]
        .into_iter()
        .filter(|(stage, _)| self.told.is_none_or(|told| told < *stage))
        .filter_map(|(stage, at)| Some((Some(stage), at?)))
        .chain(stop.map(|stop| (None, stop)))
        .next()
    }

    fn silence(&self, stage: Stage, lasted: Duration) -> Silence {
        Silence {
            episode: self.episode,
            stage,
            lasted,
            stop_after: self.stages.stop_after,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn clock(warn: u64, remind: u64, stop: u64) -> Clock {
        let at = |seconds| Some(s(seconds)).filter(|at| !at.is_zero());
        Clock::new(Stages {
            warn_after: at(warn),
            remind_after: at(remind),
            stop_after: at(stop),
            activity: false,
        })
    }

    /// Looks whenever the clock wants it, until `end`. What came, and when.
    fn until(clock: &mut Clock, from: Duration, end: Duration) -> Vec<(u64, Option<Stage>)> {
        let mut found = Vec::new();
        let mut now = from;
        while let Some(next) = clock.deadline().filter(|next| *next <= end) {
            now = next.max(now);
            match clock.look(now) {
                Some(Due::Stage(silence)) => found.push((now.as_secs(), Some(silence.stage))),
                Some(Due::Stop) => {
                    found.push((now.as_secs(), None));
                    break;
                }
                None => {}
            }
        }
        found
    }

    #[test]
    fn f37_each_stage_comes_once_and_then_the_stop() {
        let mut clock = clock(300, 600, 900);
        let found = until(&mut clock, s(0), s(10_000));
        let expected = [
            (300, Some(Stage::Warned)),
            (600, Some(Stage::Reminded)),
            (890, Some(Stage::Ending)),
            (900, None),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn f37_output_resets_the_clock_and_tells_that_the_silence_is_over() {
        let mut clock = clock(300, 600, 900);
        assert_eq!(clock.heard(s(10)), None, "nobody was told of a silence");
        assert_eq!(
            until(&mut clock, s(10), s(400)),
            [(310, Some(Stage::Warned))]
        );
        let over = clock.heard(s(400)).unwrap();
        assert_eq!((over.stage, over.episode), (Stage::Over, 1));
        assert_eq!(over.lasted, s(390));
        assert_eq!(clock.heard(s(401)), None, "it is told once");
        assert_eq!(
            until(&mut clock, s(401), s(800)),
            [(701, Some(Stage::Warned))]
        );
        assert_eq!(clock.heard(s(800)).unwrap().episode, 2);
    }

    #[test]
    fn f33_time_in_which_nobody_looked_is_no_silence() {
        let mut clock = clock(300, 600, 900);
        until(&mut clock, s(0), s(200));
        // Two hours of sleep, by a clock that went on.
        assert_eq!(clock.look(s(7_400)), None);
        let found = until(&mut clock, s(7_400), s(7_520));
        assert_eq!(found, [(7_500, Some(Stage::Warned))], "100 s were left");
        // What is heard after a sleep tells how long the attempt was silent while it ran.
        let over = clock.heard(s(20_000)).unwrap();
        assert_eq!(over.lasted, s(320));
    }

    #[test]
    fn f37_the_length_of_a_silence_that_stops_nothing_is_known_at_its_end() {
        let mut clock = clock(300, 600, 0);
        let hours = s(7 * 3_600);
        let found = until(&mut clock, s(0), hours);
        assert_eq!(
            found,
            [(300, Some(Stage::Warned)), (600, Some(Stage::Reminded))]
        );
        assert_eq!(clock.heard(hours).unwrap().lasted, hours);
        let unwatched = Clock::new(Stages::default());
        assert_eq!(unwatched.deadline(), None);
    }

    #[test]
    fn stages_that_were_not_chosen_keep_their_distance() {
        let stages = |wish: Wish| {
            let stages = wish.stages();
            let seconds = |at: Option<Duration>| at.map_or(0, |at| at.as_secs());
            [
                seconds(stages.warn_after),
                seconds(stages.remind_after),
                seconds(stages.stop_after),
            ]
        };
        let none = Wish::default();
        assert_eq!(stages(none), [300, 600, 900]);
        let warn = Wish {
            warn_after: Some(s(1_200)),
            ..none
        };
        assert_eq!(stages(warn), [1_200, 1_500, 1_800]);
        let stop = Wish {
            stop_after: Some(s(480)),
            ..none
        };
        assert_eq!(
            stages(stop),
            [300, 0, 480],
            "the reminder would come too late"
        );
        // The worker's reminder and stop were chosen for another warning.
        let worker = Wish {
            remind_after: Some(s(600)),
            stop_after: Some(s(1_000)),
            ..none
        };
        assert_eq!(stages(warn.over(worker)), [1_200, 1_500, 1_800]);
        assert_eq!(stages(stop.over(worker)), [300, 0, 480]);
    }

    #[test]
    fn a_wish_is_laid_over_another_stage_by_stage() {
        let server = Wish {
            warn_after: Some(s(60)),
            stop_after: Some(s(180)),
            counts: Some(Counts::Activity),
            ..Wish::default()
        };
        let job = Wish {
            stop_after: Some(Duration::ZERO),
            ..Wish::default()
        };
        let stages = job.over(server).stages();
        assert_eq!((stages.warn_after, stages.stop_after), (Some(s(60)), None));
        assert!(stages.activity);
        let off = Wish {
            warn_after: Some(Duration::ZERO),
            remind_after: Some(Duration::ZERO),
            stop_after: Some(Duration::ZERO),
            counts: None,
        };
        assert_eq!(off.over(server).stages().first(), None);
    }

    proptest! {
        #[test]
        fn laws_of_the_clock(
            warn in 0_u64..100, remind in 0_u64..200, stop in 0_u64..300,
            steps in proptest::collection::vec((0_u64..90, prop::bool::weighted(0.2)), 0..80),
        ) {
            let wish = |seconds| Some(s(seconds));
            let stages = Wish {
                warn_after: wish(warn),
                remind_after: wish(remind),
                stop_after: wish(stop),
                counts: None,
            }.stages();
            let mut clock = Clock::new(stages);
            let (mut now, mut heard, mut looked, mut unseen) = (s(0), s(0), s(0), s(0));
            let mut last: Option<(u32, Stage)> = None;
            for (later, sign) in steps {
                now += s(later);
                if now - looked > ASLEEP {
                    unseen += now - looked;
                }
                looked = now;
                if sign {
                    if let Some(over) = clock.heard(now) {
                        prop_assert_eq!(over.stage, Stage::Over);
                        prop_assert!(last < Some((over.episode, over.stage)));
                        last = Some((over.episode, over.stage));
                    }
                    (heard, unseen) = (now, s(0));
                    prop_assert_eq!(clock.silent(now), s(0));
                    continue;
                }
                let silent = (now - heard).saturating_sub(unseen);
                while let Some(due) = clock.look(now) {
                    match due {
                        Due::Stop => {
                            prop_assert!(stages.stop_after.is_some_and(|at| silent >= at));
                            break;
                        }
                        Due::Stage(told) => {
                            // Never twice, never backwards, never early.
                            prop_assert!(last < Some((told.episode, told.stage)));
                            last = Some((told.episode, told.stage));
                            prop_assert_eq!(told.lasted, silent);
                            prop_assert!(stages.first().is_some_and(|first| silent >= first.mul_f64(0.89)));
                        }
                    }
                }
                // Nothing that is due is left, and what is not due has its time.
                if let Some(at) = clock.deadline() {
                    prop_assert!(at > now || stages.stop_after.is_some_and(|stop| silent >= stop));
                }
            }
        }
    }
}
