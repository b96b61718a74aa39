//! The double of the store, on which the simulation rests, does what this store does: generated
//! operations go to both, and whatever can be read must be the same after each.

mod jobs;
mod output;
mod pair;
mod queue;
mod steps;
mod view;
mod workers;

use std::time::Instant;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use qctl_simulation::double::Unguarded;
use sqlx::PgPool;
use tokio::runtime::Handle;

use pair::Pair;
use steps::{Step, any_steps};

/// Sequences of operations in a run.
const CASES: u32 = 48;
/// Operations in the longest.
const STEPS: usize = 40;
/// Tries to make a sequence shorter that fails.
const SHRINKS: u32 = 4_096;
/// Set to a seed that a failure has printed, this repeats its sequences.
const SEED: &str = "QCTL_DOUBLE_SEED";

fn seed() -> u64 {
    let wanted = std::env::var(SEED).ok();
    let wanted = wanted.map(|text| text.parse().expect("a seed is a number"));
    wanted.unwrap_or_else(|| getrandom::u64().expect("randomness"))
}

async fn carry_out(
    pool: &PgPool,
    unguarded: Unguarded,
    steps: Vec<Step>,
) -> Result<(), TestCaseError> {
    let mut pair = Pair::new(pool, unguarded).await;
    for (index, step) in steps.into_iter().enumerate() {
        let told = format!("{step:?}");
        let differs = |difference: view::Differs| {
            TestCaseError::fail(format!("after step {index}, {told}: {difference}"))
        };
        pair.step(step).await.map_err(differs)?;
        pair.compare().await.map_err(differs)?;
    }
    Ok(())
}

/// Gives sequences of operations to both sides until they differ. The first that does is made as
/// short as `shrinks` tries allow.
async fn run(pool: &PgPool, unguarded: Unguarded, seed: u64, shrinks: u32) -> Result<(), String> {
    let (pool, runtime) = (pool.clone(), Handle::current());
    let run = move || {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let config = Config {
            cases: CASES,
            failure_persistence: None,
            max_shrink_iters: shrinks,
            ..Config::default()
        };
        let steps = any_steps(STEPS);
        let carry_out = |steps| runtime.block_on(carry_out(&pool, unguarded, steps));
        TestRunner::new_with_rng(config, random)
            .run(&steps, carry_out)
            .map_err(|error| error.to_string())
    };
    tokio::task::spawn_blocking(run).await.expect("a run")
}

#[sqlx::test]
async fn the_double_and_postgres_pass_the_same_operations(pool: PgPool) {
    let (seed, began) = (seed(), Instant::now());
    let passed = run(&pool, Unguarded::default(), seed, SHRINKS).await;
    println!("{CASES} sequences of seed {seed} in {:?}", began.elapsed());
    if let Err(failure) = passed {
        panic!("{failure}\nrepeat it with {SEED}={seed}");
    }
}

/// What passes here would not be noticed if the double were wrong, unless this fails.
#[sqlx::test]
async fn a_double_without_its_guards_does_not_pass(pool: PgPool) {
    let whole = Unguarded::default();
    for unguarded in [
        Unguarded {
            term: true,
            ..whole
        },
        Unguarded {
            assign: true,
            ..whole
        },
        Unguarded {
            leftovers: true,
            ..whole
        },
    ] {
        let failure = run(&pool, unguarded, 1, 0).await;
        assert!(failure.is_err(), "nobody misses it: {unguarded:?}");
    }
}
