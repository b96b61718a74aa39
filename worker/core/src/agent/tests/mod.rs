mod gpus;
mod laws;
mod silence;

use super::*;
use crate::enforcement::StopCause;
use crate::gpu::{Fault, FaultKind};
use crate::lease_guard::START_WITHIN;
use crate::session::{TermPassed, Verdict};

pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) fn terms() -> Terms {
    Terms {
        job_id: 40,
        attempt: 1,
        boot_id: "boot".to_owned(),
        spool_id: "spool".to_owned(),
        slots: 1,
        beside_slots: false,
        exclusive: false,
        grace: 10 * SECOND,
        gpus: Vec::new(),
        gpus_wanted: 0,
    }
}

fn assignment(fence: i64) -> Assignment {
    Assignment {
        fence,
        term: 3,
        terms: terms(),
        runnable: true,
        prepare: false,
    }
}

fn welcome(verdicts: Vec<Judged>, greeted_at: Duration) -> Welcome {
    Welcome {
        term: 3,
        greeted_at,
        slots: 2,
        heartbeat_interval: Some(5 * SECOND),
        lost_after: Some(1800 * SECOND),
        verdicts,
    }
}

pub(super) fn judged(fence: i64, verdict: Verdict) -> Judged {
    Judged {
        fence,
        verdict,
        log_stored: 0,
    }
}

pub(super) fn started() -> Fact {
    Fact::Started(Started {
        pid: 99,
        start_ticks: 7,
        wall_us: 1_000_000,
        not_enforced: Vec::new(),
    })
}

pub(super) fn starting() -> Fact {
    Fact::Starting {
        checkpoint_dir: String::new(),
        wall_us: 1_000_000,
    }
}

fn ended(exit_code: i32, log_end: u64) -> Fact {
    Fact::Ended(Box::new(Ended {
        exit_code: Some(exit_code),
        log_end,
        ..Ended::of(End::Waited)
    }))
}

/// An agent, and the clock that it is told.
pub(super) struct Driver {
    pub(super) agent: Agent,
    now: Duration,
}

impl Driver {
    /// A new worker's agent.
    pub(super) fn new() -> Self {
        let (boot, spool) = ("boot".to_owned(), "spool".to_owned());
        let mut driver = Self {
            agent: Agent::new(boot, spool, 0, 1, 100 * SECOND),
            now: 100 * SECOND,
        };
        driver.tell(Event::Began);
        driver
    }

    /// One in a session, with warm shims 1 and 2.
    pub(super) fn connected() -> Self {
        let mut driver = Self::new();
        driver.greet(Vec::new());
        [1, 2].into_iter().for_each(|shim| {
            driver.tell(Event::Connected(shim));
            driver.tell(Event::Idle(shim));
        });
        driver
    }

    /// One that runs attempt 7 in shim 1.
    pub(super) fn running(terms: Terms) -> Self {
        let mut driver = Self::connected();
        driver.tell(Event::Assign(Assignment {
            terms: terms.clone(),
            ..assignment(7)
        }));
        driver.tell(Event::Probed {
            fence: Some(7),
            gpus: terms.gpus.iter().map(|gpu| (gpu.clone(), None)).collect(),
            computed: false,
        });
        driver.facts(1, [Fact::Assigned(Box::new(terms)), starting(), started()]);
        driver
    }

    pub(super) fn tell(&mut self, event: Event) -> Vec<Effect> {
        self.agent.step(event, self.now)
    }

    pub(super) fn later(&mut self, by: Duration) -> Vec<Effect> {
        self.now += by;
        self.tell(Event::Tick)
    }

    pub(super) fn greet(&mut self, verdicts: Vec<Judged>) -> Vec<Effect> {
        self.tell(Event::Greeting);
        self.tell(Event::Welcomed(welcome(verdicts, self.now)))
    }

    pub(super) fn facts(
        &mut self,
        shim: ShimId,
        facts: impl IntoIterator<Item = Fact>,
    ) -> Vec<Effect> {
        self.tell(Event::Facts {
            shim: Some(shim),
            facts: facts.into_iter().map(|fact| (7, fact)).collect(),
        })
    }
}

fn runs(effects: &[Effect]) -> Vec<i64> {
    let runs = effects.iter().filter_map(|effect| match effect {
        Effect::Run { fence, .. } => Some(*fence),
        _ => None,
    });
    runs.collect()
}

fn says(effects: &[Effect]) -> Vec<&Say> {
    let says = effects.iter().filter_map(|effect| match effect {
        Effect::Say(say) => Some(say),
        _ => None,
    });
    says.collect()
}

fn asks(effects: &[Effect]) -> Vec<Ask> {
    let asks = effects.iter().filter_map(|effect| match effect {
        Effect::Ask { ask, .. } => Some(ask.clone()),
        _ => None,
    });
    asks.collect()
}

fn returned(effects: &[Effect], wanted: i64) -> Option<bool> {
    says(effects).into_iter().find_map(|say| match say {
        Say::Returned {
            fence, returned, ..
        } if *fence == wanted => Some(*returned),
        _ => None,
    })
}

fn close(effects: &[Effect]) -> Option<Close> {
    effects.iter().find_map(|effect| match effect {
        Effect::Close(close) => Some(*close),
        _ => None,
    })
}

#[test]
fn a_job_goes_its_way_and_its_record_goes_last() {
    let mut driver = Driver::connected();
    let effects = driver.tell(Event::Assign(assignment(7)));
    let run = Effect::Run {
        shim: 1,
        fence: 7,
        lease_until: None,
    };
    assert!(effects.contains(&run));
    assert_eq!(
        driver.facts(1, [Fact::Assigned(Box::new(terms())), starting()]),
        [Effect::Discard(7)]
    );
    assert!(matches!(
        says(&driver.facts(1, [started()]))[..],
        [Say::Started { fence: 7, .. }]
    ));
    let effects = driver.facts(1, [ended(0, 10), Fact::Freed]);
    assert!(matches!(
        says(&effects)[..],
        [Say::Ended { fence: 7, .. }, Say::SlotFreed(7)]
    ));
    assert_eq!(asks(&driver.tell(Event::Committed(7))), [Ask::Committed(7)]);
    driver.later(SETTLED_FOR * 2);
    assert!(driver.agent.stage(7).is_some(), "its output is not stored");
    driver.tell(Event::Stored(7));
    driver.later(SETTLED_FOR - SECOND);
    assert!(driver.agent.stage(7).is_some());
    let effects = driver.later(HOUSEKEEPING + SECOND);
    assert!(effects.contains(&Effect::ForgetLog(7)));
    assert_eq!(driver.agent.stage(7), None);
}

#[test]
fn nothing_starts_without_a_session_that_was_answered_lately() {
    let mut driver = Driver::new();
    for shim in [1, 2] {
        driver.tell(Event::Idle(shim));
    }
    assert_eq!(runs(&driver.tell(Event::Assign(assignment(7)))), [0; 0]);
    assert_eq!(driver.agent.stage(7), None, "no session, so nobody's work");
    driver.greet(Vec::new());
    driver.tell(Event::Idle(2));
    driver.tell(Event::Assign(assignment(1)));
    driver.tell(Event::Assign(assignment(2)));
    driver.tell(Event::Assign(assignment(3)));
    driver.tell(Event::Closed);
    driver.now += START_WITHIN;
    let freed = Event::Facts {
        shim: Some(1),
        facts: vec![(1, ended(0, 0)), (1, Fact::Freed)],
    };
    driver.tell(freed);
    assert_eq!(runs(&driver.tell(Event::Idle(1))), [0; 0]);
    driver.tell(Event::Greeting);
    assert_eq!(runs(&driver.tell(Event::Tick)), [0; 0]);
    let verdicts = vec![judged(3, Verdict::Continue)];
    let welcome = Event::Welcomed(welcome(verdicts, driver.now));
    assert_eq!(runs(&driver.tell(welcome)), [3]);
}

#[test]
fn a_greeting_says_everything_and_holds_back_what_waits() {
    let mut driver = Driver::running(terms());
    driver.tell(Event::Assign(assignment(8)));
    driver.tell(Event::Assign(assignment(9)));
    driver.facts(
        1,
        [Fact::Output {
            end: 5,
            crc32c: 1,
            wall_us: 2_000_000,
        }],
    );
    let effects = driver.tell(Event::Greeting);
    let Effect::Greet { held, .. } = &effects[0] else {
        panic!("{effects:?}");
    };
    let told = |holding: &Holding| (holding.fence, holding.stage, holding.log_end);
    assert_eq!(
        held.iter().map(told).collect::<Vec<_>>(),
        [
            (7, Stage::Running, 5),
            (8, Stage::Running, 0),
            (9, Stage::Waiting, 0)
        ]
    );
    let effects = driver.facts(1, [ended(0, 5), Fact::Freed]);
    assert_eq!(says(&effects), [] as [&Say; 0], "not before the answer");
    assert_eq!(runs(&driver.tell(Event::Idle(1))), [0; 0]);
    let verdicts = vec![
        judged(7, Verdict::Continue),
        judged(8, Verdict::Continue),
        judged(9, Verdict::Forget),
    ];
    let effects = driver.tell(Event::Welcomed(welcome(verdicts, driver.now)));
    assert!(effects.contains(&Effect::ResumeLog {
        fence: 7,
        stored: 0
    }));
    assert!(matches!(
        says(&effects)[..],
        [
            Say::Ended { fence: 7, .. },
            Say::SlotFreed(7),
            Say::SlotFreed(9)
        ]
    ));
    assert!(effects.contains(&Effect::Discard(9)));
    assert_eq!(driver.agent.stage(9), None);
}

#[test]
fn what_a_coordinator_wants_stopped_is_stopped() {
    let mut driver = Driver::running(terms());
    let effects = driver.greet(vec![judged(7, Verdict::Stop)]);
    assert_eq!(
        asks(&effects),
        [Ask::Stop {
            fence: 7,
            cause: StopCause::Superseded,
            grace: None,
            gpu: None,
        }]
    );
    let stop = Event::Stop {
        fence: 8,
        cause: StopCause::Cancel,
        grace: None,
    };
    assert!(driver.tell(stop).is_empty(), "it holds no such attempt");
}

#[test]
fn stopping_what_waits_gives_it_back() {
    let mut driver = Driver::running(terms());
    driver.tell(Event::Assign(assignment(8)));
    driver.tell(Event::Assign(assignment(9)));
    let stop = Event::Stop {
        fence: 9,
        cause: StopCause::Cancel,
        grace: None,
    };
    assert_eq!(returned(&driver.tell(stop), 9), Some(true));
    for (fence, back) in [(7, false), (8, false), (9, true), (1000, true)] {
        let effects = driver.tell(Event::Revoke(fence));
        assert_eq!(returned(&effects, fence), Some(back), "{fence}");
    }
    driver.facts(1, [ended(0, 0), Fact::Freed]);
    assert_eq!(runs(&driver.tell(Event::Idle(1))), [0; 0]);
}

#[test]
fn assignments_for_someone_else_are_given_back() {
    let mut driver = Driver::connected();
    let good = assignment(7);
    let of = |terms| Assignment {
        terms,
        ..good.clone()
    };
    for refused in [
        Assignment {
            term: 2,
            ..good.clone()
        },
        Assignment {
            term: 4,
            ..good.clone()
        },
        Assignment {
            runnable: false,
            ..good.clone()
        },
        of(Terms {
            boot_id: "another".to_owned(),
            ..terms()
        }),
        of(Terms {
            spool_id: "another".to_owned(),
            ..terms()
        }),
    ] {
        let effects = driver.tell(Event::Assign(refused));
        assert_eq!(returned(&effects, 7), Some(true));
        assert!(effects.contains(&Effect::Discard(7)));
        assert_eq!(driver.agent.stage(7), None);
    }
    assert_eq!(runs(&driver.tell(Event::Assign(good.clone()))), [7]);
    assert!(driver.tell(Event::Assign(good)).is_empty(), "known already");
}

#[test]
fn a_lower_term_ends_the_session_and_a_higher_one_is_remembered_first() {
    let mut driver = Driver::new();
    driver.tell(Event::Greeting);
    let effects = driver.tell(Event::Welcomed(welcome(Vec::new(), driver.now)));
    assert_eq!(effects[0], Effect::RememberTerm(3));
    driver.tell(Event::Tick);
    let passed = TermPassed {
        seen: 3,
        offered: 2,
    };
    let answered = |term| Event::Answered { sequence: 1, term };
    assert_eq!(close(&driver.tell(answered(2))), Some(Close::Term(passed)));
    assert!(!driver.agent.in_session());

    driver.tell(Event::Greeting);
    let lower = Welcome {
        term: 2,
        ..welcome(Vec::new(), driver.now)
    };
    let effects = driver.tell(Event::Welcomed(lower));
    assert_eq!(close(&effects), Some(Close::Term(passed)));
    assert!(!driver.agent.in_session());

    driver.greet(Vec::new());
    assert_eq!(close(&driver.tell(answered(4))), Some(Close::NewTerm(4)));
}

#[test]
fn heartbeats_go_out_on_time_and_silence_ends_the_session() {
    let mut driver = Driver::connected();
    let effects = driver.tell(Event::Tick);
    assert_eq!(says(&effects), [&Say::Heartbeat { sequence: 1 }]);
    assert_eq!(driver.agent.deadline(), driver.now + HOUSEKEEPING);
    driver.later(4 * SECOND);
    assert_eq!(driver.agent.deadline(), driver.now + SECOND);
    for sequence in 2..=3 {
        driver.now += SECOND;
        let effects = driver.tell(Event::Tick);
        assert_eq!(says(&effects), [&Say::Heartbeat { sequence }]);
        driver.now += 4 * SECOND;
    }
    driver.now += SECOND;
    let silent = Close::Silent(15 * SECOND);
    assert_eq!(close(&driver.tell(Event::Tick)), Some(silent));
}

#[test]
fn a_lease_counts_from_the_sending_of_the_answered_heartbeat() {
    let exclusive = Terms {
        exclusive: true,
        ..terms()
    };
    let mut driver = Driver::running(exclusive);
    driver.tell(Event::Tick);
    let sent = driver.now;
    driver.now += 4 * SECOND;
    let effects = driver.tell(Event::Answered {
        sequence: 1,
        term: 3,
    });
    let until = sent + (1800 - 10 - 60) * SECOND;
    assert_eq!(asks(&effects), [Ask::Lease { fence: 7, until }]);
    // A connection that was made anew is told the same, not a longer one.
    driver.now += 100 * SECOND;
    let effects = driver.tell(Event::Connected(1));
    assert_eq!(asks(&effects), [Ask::Lease { fence: 7, until }]);
}

#[test]
fn after_a_jump_of_the_clock_nothing_from_before_counts() {
    let exclusive = Terms {
        exclusive: true,
        ..terms()
    };
    let mut driver = Driver::running(exclusive);
    driver.tell(Event::Tick);
    let effects = driver.tell(Event::ClockJumped);
    assert_eq!(close(&effects), Some(Close::ClockJumped));
    let answer = Event::Answered {
        sequence: 1,
        term: 3,
    };
    assert_eq!(driver.tell(answer), [], "it was sent before");
    assert_eq!(asks(&driver.tell(Event::Connected(1))), []);
    // Nor does a greeting that was on its way.
    let before = driver.now;
    driver.tell(Event::Greeting);
    driver.now += SECOND;
    driver.tell(Event::ClockJumped);
    let effects = driver.tell(Event::Welcomed(welcome(Vec::new(), before)));
    assert_eq!(close(&effects), Some(Close::ClockJumped));
    driver.now += SECOND;
    let effects = driver.greet(vec![judged(7, Verdict::Continue)]);
    assert!(matches!(asks(&effects)[..], [Ask::Lease { fence: 7, .. }]));
}

#[test]
fn what_a_broken_connection_may_have_lost_is_asked_again() {
    let mut driver = Driver::connected();
    driver.tell(Event::Assign(assignment(7)));
    assert_eq!(runs(&driver.tell(Event::Connected(1))), [7]);
    assert_eq!(runs(&driver.tell(Event::Connected(2))), [0; 0]);
    driver.facts(
        1,
        [Fact::Assigned(Box::new(terms())), starting(), started()],
    );
    assert_eq!(driver.tell(Event::Connected(1)), []);
    driver.tell(Event::SetPaused {
        fence: 7,
        paused: true,
    });
    let pause = Ask::SetPaused {
        fence: 7,
        paused: true,
    };
    assert_eq!(asks(&driver.tell(Event::Connected(1))), [pause]);
    driver.facts(1, [Fact::Paused(true)]);
    assert_eq!(driver.tell(Event::Connected(1)), []);
    driver.tell(Event::Stop {
        fence: 7,
        cause: StopCause::Cancel,
        grace: Some(SECOND),
    });
    let stop = Ask::Stop {
        fence: 7,
        cause: StopCause::Cancel,
        grace: Some(SECOND),
        gpu: None,
    };
    assert_eq!(asks(&driver.tell(Event::Connected(1))), [stop]);
    driver.facts(1, [ended(0, 0), Fact::Freed]);
    assert_eq!(driver.tell(Event::Connected(1)), []);
    let effects = driver.tell(Event::Ending);
    assert_eq!(asks(&effects), [Ask::Retire, Ask::Retire]);
    assert_eq!(asks(&driver.tell(Event::Connected(2))), [Ask::Retire]);
}

#[test]
fn an_exclusive_attempt_on_its_way_when_a_clock_jumps_starts_with_a_lease_or_never() {
    let exclusive = Terms {
        exclusive: true,
        ..terms()
    };
    let mut driver = Driver::connected();
    let leases = |effects: &[Effect]| {
        let runs = effects.iter().filter_map(|effect| match effect {
            Effect::Run { lease_until, .. } => Some(*lease_until),
            _ => None,
        });
        runs.collect::<Vec<_>>()
    };
    let effects = driver.tell(Event::Assign(Assignment {
        terms: exclusive,
        ..assignment(7)
    }));
    let lease = driver.now + (1800 - 10 - 60) * SECOND;
    assert_eq!(leases(&effects), [Some(lease)]);
    driver.tell(Event::ClockJumped);
    // Nobody knows whether the shim has it. If not, it must not start by what was answered before.
    let effects = driver.tell(Event::Connected(1));
    assert_eq!(leases(&effects), [Some(Duration::ZERO)]);
    let never =
        Fact::Void("its lease was over, or it was taken back, before it could start".to_owned());
    driver.facts(1, [never]);
    driver.now += SECOND;
    let effects = driver.greet(vec![judged(7, Verdict::Continue)]);
    let [Say::Ended { fence: 7, ended }, Say::SlotFreed(7)] = says(&effects)[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(ended.end, End::NeverStarted);
}

#[test]
fn what_is_to_be_stopped_does_not_begin_over_a_new_connection() {
    let mut driver = Driver::connected();
    driver.tell(Event::Assign(assignment(7)));
    driver.tell(Event::Stop {
        fence: 7,
        cause: StopCause::Cancel,
        grace: None,
    });
    // Nobody knows whether the shim has it: one that has it stops it, one that has not never starts.
    let effects = driver.tell(Event::Connected(1));
    let [
        Effect::Run { lease_until, .. },
        Effect::Ask {
            ask: Ask::Stop { .. },
            ..
        },
    ] = &effects[..]
    else {
        panic!("{effects:?}");
    };
    assert_eq!(*lease_until, Some(Duration::ZERO));
}

#[test]
fn a_committed_success_removes_no_checkpoint() {
    // A result may be late, and another attempt may be resuming from them: the coordinator decides.
    let mut driver = Driver::running(Terms {
        attempt: 2,
        ..terms()
    });
    driver.facts(1, [ended(0, 0), Fact::Freed]);
    let effects = driver.tell(Event::Committed(7));
    assert_eq!(
        effects,
        [Effect::Ask {
            shim: 1,
            ask: Ask::Committed(7)
        }]
    );
}

#[test]
fn an_attempt_in_preparation_can_be_revoked() {
    let mut driver = Driver::connected();
    let prepare = |fence| {
        Event::Assign(Assignment {
            prepare: true,
            ..assignment(fence)
        })
    };
    assert!(driver.tell(prepare(7)).contains(&Effect::Prepare(7)));
    assert_eq!(driver.agent.stage(7), Some(Stage::Waiting));
    assert_eq!(returned(&driver.tell(Event::Revoke(7)), 7), Some(true));
    assert_eq!(runs(&driver.tell(Event::Prepared(7))), [0; 0]);
    driver.tell(prepare(8));
    assert_eq!(runs(&driver.tell(Event::Prepared(8))), [8]);
    driver.tell(prepare(9));
    let reason = "its checkpoint is gone".to_owned();
    let effects = driver.tell(Event::Unprepared { fence: 9, reason });
    assert_eq!(returned(&effects, 9), Some(true));
    assert_eq!(driver.agent.stage(9), None);
}

#[test]
fn what_is_given_back_while_a_greeting_is_under_way_is_told_once_it_is_answered() {
    let verdicts = |verdict| (7..10).map(|fence| judged(fence, verdict)).collect();
    for verdict in [Verdict::Continue, Verdict::Stop] {
        let mut driver = Driver::connected();
        let prepared = Event::Assign(Assignment {
            prepare: true,
            ..assignment(7)
        });
        let probed = Event::Assign(Assignment {
            terms: Terms {
                gpus: vec!["GPU-1".to_owned()],
                ..terms()
            },
            ..assignment(8)
        });
        driver.tell(prepared);
        driver.tell(probed);
        driver.tell(Event::Closed);
        driver.tell(Event::Greeting);
        // The coordinator reads in the greeting that both wait here.
        let reason = "its checkpoint is gone".to_owned();
        let effects = driver.tell(Event::Unprepared { fence: 7, reason });
        assert!(says(&effects).is_empty());
        let fault = Fault {
            gpu: "GPU-1".to_owned(),
            name: String::new(),
            kind: FaultKind::Unfit("it does not compute".to_owned()),
        };
        driver.tell(Event::Probed {
            fence: Some(8),
            gpus: vec![("GPU-1".to_owned(), Some(fault))],
            computed: false,
        });
        let welcome = welcome(verdicts(verdict), driver.now);
        let effects = driver.tell(Event::Welcomed(welcome));
        let said = says(&effects);
        let told = |fence| match verdict {
            Verdict::Stop => said.contains(&&Say::SlotFreed(fence)),
            _ => said.iter().any(|say| match say {
                Say::Returned { fence: of, .. } | Say::Unfit { fence: of, .. } => *of == fence,
                _ => false,
            }),
        };
        assert_eq!([7, 8, 9].map(told), [true, true, false], "{effects:?}");
    }
}

#[test]
fn a_lost_shim_keeps_its_slot_until_its_processes_are_gone() {
    let mut driver = Driver::running(terms());
    driver.tell(Event::Assign(assignment(8)));
    driver.tell(Event::Assign(assignment(9)));
    let effects = driver.tell(Event::Gone(1));
    let Some(Effect::Conclude { losses, seen, .. }) = effects
        .iter()
        .find(|effect| matches!(effect, Effect::Conclude { .. }))
    else {
        panic!("{effects:?}");
    };
    assert!(*seen && losses[0].unswept());
    assert_eq!(driver.agent.taken(), 2);
    assert_eq!(driver.agent.stage(9), Some(Stage::Waiting));
    let facts = losses[0].facts(9_000_000, String::new());
    let facts = facts.into_iter().map(|fact| (7, fact)).collect();
    let effects = driver.tell(Event::Facts { shim: None, facts });
    let [Say::Ended { fence: 7, ended }, Say::SlotFreed(7)] = says(&effects)[..] else {
        panic!("{effects:?}");
    };
    assert_eq!((ended.end, ended.exit_code), (End::ShimLost, None));
    assert_eq!(ended.duration, Some(8 * SECOND));
    assert!(effects.contains(&Effect::Spawn(3)));
    assert_eq!(runs(&driver.tell(Event::Idle(3))), [9]);
    driver.tell(Event::Committed(7));
    driver.tell(Event::Stored(7));
    let mut effects = driver.later(SETTLED_FOR);
    effects.extend(driver.later(HOUSEKEEPING));
    assert!(effects.contains(&Effect::RemoveSegment(1)));
}

#[test]
fn processes_that_do_not_end_are_told_once_and_keep_their_slot() {
    let mut driver = Driver::running(terms());
    driver.facts(1, [ended(0, 0)]);
    driver.tell(Event::Closed);
    let stuck = || Fact::Stuck(vec![42]);
    assert_eq!(driver.facts(1, [stuck()]), []);
    let tells = |effects: &[Effect]| {
        says(effects).contains(&&Say::SlotStuck {
            fence: 7,
            pids: vec![42],
        })
    };
    assert!(tells(&driver.greet(vec![judged(7, Verdict::SendResult)])));
    assert!(!tells(&driver.greet(vec![judged(7, Verdict::Forget)])));
    assert_eq!(driver.agent.taken(), 1);
    driver.facts(1, [Fact::Freed, stuck()]);
    assert!(!tells(&driver.greet(vec![judged(7, Verdict::SendResult)])));
    assert_eq!(driver.agent.taken(), 0);
}

#[test]
fn a_shim_that_is_never_ready_is_tried_again_ever_more_slowly() {
    let mut driver = Driver::new();
    let mut pauses = Vec::new();
    for shim in 1..20 {
        let effects = driver.tell(match shim % 2 {
            0 => Event::Gone(shim),
            _ => Event::SpawnFailed(shim),
        });
        let pause = effects.iter().find_map(|effect| match effect {
            Effect::PauseSpawning { pause, .. } => Some(*pause),
            _ => None,
        });
        assert!(!effects.contains(&Effect::Spawn(shim + 1)));
        pauses.extend(pause);
        driver.now = driver.now.max(driver.agent.deadline());
        while !driver.tell(Event::Tick).contains(&Effect::Spawn(shim + 1)) {
            driver.now = driver.agent.deadline();
        }
    }
    assert_eq!(pauses[0], Duration::from_millis(200));
    assert_eq!(*pauses.last().unwrap(), 30 * SECOND);
}
