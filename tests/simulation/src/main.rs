//! Runs schedules and says what broke; or replays one and tells everything that happens in it.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use qctl_simulation::{Failure, Flips, Summary, World};

const USAGE: &str = "usage: simulate [--schedules N] [--seed S]
  --schedules N   how many schedules to run (100000)
  --seed S        the first one's seed (1); alone, tells what happens in that one";
/// After so many failures it stops.
const ENOUGH: u64 = 5;
/// How it goes is told every so many schedules.
const TOLD_EVERY: u64 = 50_000;

struct Wanted {
    first: u64,
    count: u64,
    trace: bool,
}

fn main() -> ExitCode {
    let wanted = match wanted(std::env::args().skip(1)) {
        Ok(Some(wanted)) => wanted,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if wanted.trace {
        return match World::new(wanted.first, Flips::default(), true).run() {
            Ok(_) => ExitCode::SUCCESS,
            Err(failure) => {
                println!("{failure}");
                ExitCode::FAILURE
            }
        };
    }
    let began = Instant::now();
    let (total, failures, ran) = run(&wanted);
    println!(
        "{} schedules, {} failed; {} steps, {} jobs, {} attempts, {:.0} days of virtual time; {:.0} s",
        ran,
        failures.len(),
        total.steps,
        total.jobs,
        total.attempts,
        total.lasted.as_secs_f64() / 86_400.0,
        began.elapsed().as_secs_f64()
    );
    match failures.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn wanted(mut arguments: impl Iterator<Item = String>) -> Result<Option<Wanted>, String> {
    let (mut count, mut first) = (None, None);
    while let Some(argument) = arguments.next() {
        let place = match argument.as_str() {
            "--schedules" => &mut count,
            "--seed" => &mut first,
            "-h" | "--help" => return Ok(None),
            other => return Err(format!("`{other}` is no option")),
        };
        let value = arguments.next().unwrap_or_default();
        let number = value
            .parse::<u64>()
            .map_err(|_| format!("`{argument}` needs a number, and got `{value}`"))?;
        *place = Some(number);
    }
    Ok(Some(Wanted {
        trace: first.is_some() && count.is_none(),
        first: first.unwrap_or(1),
        count: count.unwrap_or(100_000),
    }))
}

/// Runs the schedules on every core, until a few have failed. Says how many were begun, too.
fn run(wanted: &Wanted) -> (Summary, Vec<Failure>, u64) {
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let began = Instant::now();
    let found = Mutex::new((Summary::default(), Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut total = Summary::default();
                let mut failures = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    // After a few failures the rest is of no use.
                    if index >= wanted.count || failed.load(Ordering::Relaxed) >= ENOUGH {
                        break;
                    }
                    if index > 0 && index.is_multiple_of(TOLD_EVERY) {
                        let per_second = index as f64 / began.elapsed().as_secs_f64();
                        println!("{index} schedules, {per_second:.0} a second");
                    }
                    let seed = wanted.first.wrapping_add(index);
                    match World::new(seed, Flips::default(), false).run() {
                        Ok(summary) => total.add(summary),
                        Err(failure) => {
                            println!("{failure}");
                            failed.fetch_add(1, Ordering::Relaxed);
                            failures.push(failure);
                        }
                    }
                }
                if let Ok(mut found) = found.lock() {
                    found.0.add(total);
                    found.1.extend(failures);
                }
            });
        }
    });
    let (total, mut failures) = found.into_inner().unwrap_or_default();
    failures.sort_by_key(|failure| failure.seed);
    let ran = next.into_inner().min(wanted.count);
    (total, failures, ran)
}
