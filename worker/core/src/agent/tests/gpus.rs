//! GPUs that fail.

use super::*;
use crate::gpu::{Fault, FaultKind};

fn fault(gpu: &str) -> Fault {
    Fault {
        gpu: gpu.to_owned(),
        name: String::new(),
        kind: FaultKind::Lost,
    }
}

#[test]
fn f35_a_gpu_that_fails_stops_what_was_given_it_and_nothing_else() {
    let mut driver = Driver::running(Terms {
        gpus: vec!["a".to_owned()],
        ..terms()
    });
    assert_eq!(asks(&driver.tell(Event::GpuFailed(fault("b")))), []);
    let stop = Ask::Stop {
        fence: 7,
        cause: StopCause::GpuFault,
        grace: None,
        gpu: Some(fault("a")),
    };
    let effects = driver.tell(Event::GpuFailed(fault("a")));
    assert_eq!(asks(&effects), [stop.clone()]);
    assert_eq!(asks(&driver.tell(Event::Connected(1))), [stop]);
}

#[test]
fn f35_a_persons_wish_to_stop_stays_the_reason() {
    let mut driver = Driver::running(Terms {
        gpus: vec!["a".to_owned()],
        ..terms()
    });
    driver.tell(Event::Stop {
        fence: 7,
        cause: StopCause::Cancel,
        grace: None,
    });
    assert_eq!(asks(&driver.tell(Event::GpuFailed(fault("a")))), []);
}
