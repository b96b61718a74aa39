//! GPUs that fail.

use super::*;
use crate::gpu::{FIRST_PROBE_PAUSE, Fault, FaultKind};

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
    let probe = Effect::Probe {
        fence: Some(7),
        gpus: vec!["a".to_owned()],
    };
    assert!(effects.contains(&probe));
    assert_eq!(runs(&effects), [0; 0]);
    let effects = driver.tell(Event::Probed {
        fence: Some(7),
        gpus: vec![("a".to_owned(), None)],
    });
    assert_eq!(runs(&effects), [7]);
    let works = Say::Gpu {
        gpu: "a".to_owned(),
        fault: None,
    };
    assert_eq!(says(&effects), [&works]);
}

#[test]
fn f35_a_gpu_that_fails_its_probe_starts_nothing_until_a_later_one_passes() {
    let (mut driver, _) = assigned(with_gpu());
    let effects = driver.tell(Event::Probed {
        fence: Some(7),
        gpus: vec![("a".to_owned(), Some(fault("a")))],
    });
    assert_eq!(runs(&effects), [0; 0]);
    let faulty = Say::Gpu {
        gpu: "a".to_owned(),
        fault: Some(fault("a")),
    };
    let unfit = Say::Unfit {
        fence: 7,
        fault: fault("a"),
    };
    assert_eq!(says(&effects), [&faulty, &unfit], "the GPU is told first");
    assert_eq!(driver.agent.stage(7), None);
    // The next session hears of it again.
    assert!(says(&driver.greet(Vec::new())).contains(&&faulty));
    let again = Effect::Probe {
        fence: None,
        gpus: vec!["a".to_owned()],
    };
    assert!(driver.later(FIRST_PROBE_PAUSE).contains(&again));
    let effects = driver.tell(Event::Probed {
        fence: None,
        gpus: vec![("a".to_owned(), None)],
    });
    assert_eq!(
        says(&effects),
        [&Say::Gpu {
            gpu: "a".to_owned(),
            fault: None
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

#[test]
fn gpus_that_are_seen_first_are_probed_and_so_are_those_of_a_job_that_they_failed() {
    let mut driver = Driver::running(with_gpu());
    driver.tell(Event::GpusSeen(vec!["b".to_owned()]));
    let probe = |gpu: &str| Effect::Probe {
        fence: None,
        gpus: vec![gpu.to_owned()],
    };
    assert!(driver.tell(Event::Tick).contains(&probe("b")));
    let failed = Fact::Ended(Box::new(Ended {
        exit_code: Some(1),
        gpu_fault: true,
        ..Ended::of(End::Waited)
    }));
    let effects = driver.facts(1, [failed, Fact::Freed]);
    assert!(effects.contains(&probe("a")), "{effects:?}");
}
