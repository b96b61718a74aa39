//! GPUs that fail.

use super::*;
use crate::gpu::{Depth, FIRST_PROBE_PAUSE, Fault, FaultKind};

fn fault(gpu: &str) -> Fault {
    Fault {
        gpu: gpu.to_owned(),
        name: String::new(),
        kind: FaultKind::Lost,
    }
}

#[test]
fn f35_a_gpu_that_fails_stops_what_was_given_it_and_nothing_else() {
    let mut driver = Driver::running(with_gpu());
    assert_eq!(asks(&driver.tell(Event::GpuFailed(fault("b")))), []);
    let stop = Ask::Stop {
        fence: 7,
        cause: StopCause::GpuFault,
        grace: None,
        gpu: Some(fault("a")),
    };
    let effects = driver.tell(Event::GpuFailed(fault("a")));
    assert_eq!(asks(&effects), std::slice::from_ref(&stop));
    assert_eq!(asks(&driver.tell(Event::Connected(1))), [stop]);
}

#[test]
fn f35_a_persons_wish_to_stop_stays_the_reason() {
    let mut driver = Driver::running(with_gpu());
    driver.tell(Event::Stop {
        fence: 7,
        cause: StopCause::Cancel,
        grace: None,
    });
    assert_eq!(asks(&driver.tell(Event::GpuFailed(fault("a")))), []);
}

fn with_gpu() -> Terms {
    Terms {
        gpus: vec!["a".to_owned()],
        gpus_wanted: 1,
        ..terms()
    }
}

fn whole(fence: Option<i64>, gpu: &str) -> Effect {
    Effect::Probe {
        fence,
        gpus: vec![gpu.to_owned()],
        depth: Depth::Whole,
    }
}

fn probes(effects: &[Effect]) -> Vec<Effect> {
    let is_probe = |effect: &&Effect| matches!(effect, Effect::Probe { .. });
    effects.iter().filter(is_probe).cloned().collect()
}

/// A worker that was just given this.
fn assigned(terms: Terms) -> (Driver, Vec<Effect>) {
    let mut driver = Driver::connected();
    let effects = driver.tell(Event::Assign(Assignment {
        terms,
        ..assignment(7)
    }));
    (driver, effects)
}

#[test]
fn nothing_starts_on_a_gpu_before_it_has_passed_a_probe() {
    let (mut driver, effects) = assigned(with_gpu());
    assert_eq!(probes(&effects), [whole(Some(7), "a")]);
    assert_eq!(runs(&effects), [0; 0]);
    let effects = driver.tell(Event::Probed {
        fence: Some(7),
        gpus: vec![("a".to_owned(), None)],
        computed: false,
    });
    assert_eq!(runs(&effects), [7]);
    let works = Say::Gpu {
        gpu: "a".to_owned(),
        fault: None,
        computed: false,
    };
    assert_eq!(says(&effects), [&works]);
}

#[test]
fn f35_a_gpu_that_fails_its_probe_starts_nothing_until_a_later_one_passes() {
    let (mut driver, _) = assigned(with_gpu());
    let effects = driver.tell(Event::Probed {
        fence: Some(7),
        gpus: vec![("a".to_owned(), Some(fault("a")))],
        computed: false,
    });
    assert_eq!(runs(&effects), [0; 0]);
    let faulty = Say::Gpu {
        gpu: "a".to_owned(),
        fault: Some(fault("a")),
        computed: false,
    };
    let unfit = Say::Unfit {
        fence: 7,
        fault: fault("a"),
    };
    assert_eq!(says(&effects), [&faulty, &unfit], "the GPU is told first");
    assert_eq!(driver.agent.stage(7), None);
    // The next session hears of it again.
    assert!(says(&driver.greet(Vec::new())).contains(&&faulty));
    let again = driver.later(FIRST_PROBE_PAUSE);
    assert_eq!(probes(&again), [whole(None, "a")]);
    let effects = driver.tell(Event::Probed {
        fence: None,
        gpus: vec![("a".to_owned(), None)],
        computed: false,
    });
    assert_eq!(
        says(&effects),
        [&Say::Gpu {
            gpu: "a".to_owned(),
            fault: None,
            computed: false,
        }]
    );
}

#[test]
fn what_waits_for_a_gpu_that_fails_is_given_back() {
    let (mut driver, _) = assigned(with_gpu());
    let effects = driver.tell(Event::GpuFailed(fault("a")));
    let unfit = Say::Unfit {
        fence: 7,
        fault: fault("a"),
    };
    assert!(says(&effects).contains(&&unfit));
    assert_eq!(driver.agent.stage(7), None);
}

#[test]
fn an_attempt_that_leaves_its_gpu_unused_is_stopped_once_and_the_gpu_stays_in_use() {
    let unused = |fence| Event::GpuUnused {
        fence,
        fault: Fault {
            kind: FaultKind::Unused {
                seconds: 900,
                hidden: false,
            },
            ..fault("a")
        },
    };
    let mut driver = Driver::running(with_gpu());
    let effects = driver.tell(unused(7));
    assert!(matches!(
        asks(&effects)[..],
        [Ask::Stop {
            fence: 7,
            cause: StopCause::GpuFallback,
            gpu: Some(_),
            ..
        }]
    ));
    assert_eq!(says(&effects), Vec::<&Say>::new(), "the GPU has no fault");
    assert_eq!(asks(&driver.tell(unused(7))), []);
    assert_eq!(asks(&driver.tell(unused(8))), [], "nobody has it");

    let mut driver = Driver::running(with_gpu());
    driver.tell(Event::Stop {
        fence: 7,
        cause: StopCause::Cancel,
        grace: None,
    });
    assert_eq!(asks(&driver.tell(unused(7))), [], "a person came first");
}

#[test]
fn f36_a_silent_driver_stops_no_job() {
    let mut driver = Driver::running(with_gpu());
    let silent = Fault {
        kind: FaultKind::Silent,
        ..fault("a")
    };
    let effects = driver.tell(Event::GpuFailed(silent));
    assert_eq!(asks(&effects), []);
    assert!(matches!(
        says(&effects)[..],
        [Say::Gpu { fault: Some(_), .. }]
    ));
}

#[test]
fn a_job_that_asked_for_gpus_does_not_start_with_fewer() {
    let (_, effects) = assigned(Terms {
        gpus_wanted: 2,
        ..with_gpu()
    });
    assert_eq!(returned(&effects, 7), Some(true));
}

/// An attempt's process has ended by itself and says that its GPU failed it.
fn failed_by_gpu() -> Fact {
    Fact::Ended(Box::new(Ended {
        exit_code: Some(1),
        gpu_fault: true,
        ..Ended::of(End::Waited)
    }))
}

fn well(fence: Option<i64>, gpu: &str) -> Event {
    let gpus = vec![(gpu.to_owned(), None)];
    Event::Probed {
        fence,
        gpus,
        computed: false,
    }
}

#[test]
fn gpus_that_are_seen_first_are_probed_and_so_are_those_of_a_job_that_they_failed() {
    let mut driver = Driver::running(with_gpu());
    let effects = driver.tell(Event::GpusSeen(vec!["b".to_owned()]));
    assert_eq!(probes(&effects), [whole(None, "b")]);
    let effects = driver.facts(1, [failed_by_gpu()]);
    assert_eq!(probes(&effects), [], "processes of it may be left");
    let effects = driver.facts(1, [Fact::Freed]);
    assert_eq!(probes(&effects), [whole(None, "a")]);
}

#[test]
fn while_a_job_holds_a_gpu_only_its_driver_is_asked() {
    let mut driver = Driver::running(with_gpu());
    driver.tell(Event::GpuFailed(fault("a")));
    let effects = driver.later(FIRST_PROBE_PAUSE);
    let ask = Effect::Probe {
        fence: None,
        gpus: vec!["a".to_owned()],
        depth: Depth::Driver,
    };
    assert_eq!(probes(&effects), [ask]);
    let effects = driver.tell(well(None, "a"));
    assert_eq!(says(&effects), [] as [&Say; 0], "it stays in doubt");
    assert_eq!(probes(&driver.later(FIRST_PROBE_PAUSE * 2)), []);
    let effects = driver.facts(1, [failed_by_gpu(), Fact::Freed]);
    assert_eq!(probes(&effects), [whole(None, "a")]);
    let works = Say::Gpu {
        gpu: "a".to_owned(),
        fault: None,
        computed: false,
    };
    assert_eq!(says(&driver.tell(well(None, "a"))), [&works]);
}

#[test]
fn what_has_computed_after_a_doubt_is_told() {
    let mut driver = Driver::running(with_gpu());
    driver.facts(1, [failed_by_gpu(), Fact::Freed]);
    let computed = Event::Probed {
        fence: None,
        gpus: vec![("a".to_owned(), None)],
        computed: true,
    };
    let works = Say::Gpu {
        gpu: "a".to_owned(),
        fault: None,
        computed: true,
    };
    assert_eq!(says(&driver.tell(computed.clone())), [&works]);
    assert_eq!(says(&driver.tell(computed)), [] as [&Say; 0]);
}

#[test]
fn what_gets_a_gpu_that_is_held_or_probed_waits_for_its_own_probe() {
    let mut driver = Driver::running(with_gpu());
    driver.tell(Event::SetSlots(3));
    let effects = driver.tell(Event::Assign(Assignment {
        terms: with_gpu(),
        ..assignment(8)
    }));
    assert_eq!(probes(&effects), []);
    let effects = driver.facts(1, [failed_by_gpu(), Fact::Freed]);
    assert_eq!(probes(&effects), [whole(Some(8), "a")], "which serves both");
    // Another one comes while that lasts, and the first is taken back.
    driver.tell(Event::Assign(Assignment {
        terms: with_gpu(),
        ..assignment(9)
    }));
    driver.tell(Event::Revoke(8));
    let effects = driver.tell(well(Some(8), "a"));
    assert_eq!(probes(&effects), [whole(Some(9), "a")]);
    assert_eq!(runs(&effects), [0; 0]);
    assert_eq!(runs(&driver.tell(well(Some(9), "a"))), [9]);
}

#[test]
fn f35_what_fails_while_it_is_probed_starts_nothing() {
    for kind in [FaultKind::Lost, FaultKind::Silent] {
        let (mut driver, _) = assigned(with_gpu());
        let failed = Fault { kind, ..fault("a") };
        driver.tell(Event::GpuFailed(failed));
        let effects = driver.tell(well(Some(7), "a"));
        assert_eq!(runs(&effects), [0; 0]);
        assert_eq!(says(&effects), [] as [&Say; 0], "it does not work for that");
        assert_eq!(driver.agent.stage(7), None);
    }
}

#[test]
fn nothing_is_probed_before_it_is_known_what_runs() {
    let (boot, spool) = ("boot".to_owned(), "spool".to_owned());
    let mut agent = Agent::new(boot, spool, 0, 1, SECOND);
    agent.step(Event::Found(1), SECOND);
    let effects = agent.step(Event::GpusSeen(vec!["a".to_owned()]), SECOND);
    assert_eq!(probes(&effects), []);
    let facts = [
        Fact::Assigned(Box::new(with_gpu())),
        starting(),
        super::started(),
    ];
    let facts = Event::Facts {
        shim: Some(1),
        facts: facts.into_iter().map(|fact| (7, fact)).collect(),
    };
    agent.step(facts, SECOND);
    let lives = true;
    agent.step(Event::Adopted { shim: 1, lives }, SECOND);
    let effects = agent.step(Event::Began, SECOND);
    let depth = |effect: &Effect| match effect {
        Effect::Probe { depth, .. } => Some(*depth),
        _ => None,
    };
    let depths: Vec<_> = effects.iter().filter_map(depth).collect();
    assert_eq!(depths, [Depth::Driver]);
}
