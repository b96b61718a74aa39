//! Schedules on every change: a printed seed replays with `scripts/simulate --seed`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use qctl_simulation::{Failure, Flips, Summary, World};

/// So many on every change; `scripts/simulate` runs as many as one likes.
const SCHEDULES: u64 = 100_000;
/// After so many failures the rest is of no use.
const ENOUGH: usize = 5;

#[test]
fn whatever_breaks_every_rule_holds() {
    let next = AtomicU64::new(1);
    let failures: Mutex<Vec<Failure>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > SCHEDULES || failures.lock().unwrap().len() >= ENOUGH {
                        return;
                    }
                    if let Err(failure) = World::new(seed, Flips::default(), false).run() {
                        failures.lock().unwrap().push(failure);
                    }
                }
            });
        }
    });
    let failures: Vec<String> = failures
        .into_inner()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_seed_replays_exactly() {
    let run = |seed| World::new(seed, Flips::default(), false).run();
    let first: Vec<Result<Summary, Failure>> = (1..50).map(run).collect();
    let second: Vec<Result<Summary, Failure>> = (1..50).map(run).collect();
    assert_eq!(first, second);
    let busy = |summary: &Summary| summary.steps > 100 && summary.attempts > 0;
    assert!(first.iter().flatten().filter(|one| busy(one)).count() > 40);
}
