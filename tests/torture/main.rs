//! Kills, stops and cuts off the parts of an installation at random under load, and looks whether
//! everything still holds: see `scripts/torture`.
//!
//! The seed decides the whole plan: which fault strikes when and how long it lasts, and what is
//! submitted. What the machine makes of it is not decided by anyone, so a seed that found something
//! may have to be given several times.

#[path = "../harness/mod.rs"]
#[allow(dead_code)]
mod harness;

mod faults;
mod load;
mod random;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use faults::{FAR, Parts, Round};
use harness::Installation;
use harness::invariants;
use harness::proxy::Proxy;
use harness::worker::Worker;
use load::Load;
use random::Random;
use watch::Watch;

/// Longest time that everything may take to end after the last fault.
const CALM: Duration = Duration::from_secs(300);

struct Options {
    rounds: usize,
    seed: u64,
    evidence: PathBuf,
}

fn main() -> ExitCode {
    match options() {
        Ok(options) => torture(&options),
        Err(message) => {
            eprintln!("error: {message}");
            eprintln!("usage: scripts/torture [--rounds N] [--seed S] [--evidence FOLDER]");
            ExitCode::from(2)
        }
    }
}

fn options() -> Result<Options, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut options = Options {
        rounds: 100,
        seed: now.map_or(1, |now| now.as_nanos() as u64 % 1_000_000),
        evidence: PathBuf::from("target/torture"),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--bench" {
            continue;
        }
        let value = arguments
            .next()
            .ok_or_else(|| format!("{name} needs a value"))?;
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| format!("{name} is a number, not `{value}`"))
        };
        match name.as_str() {
            "--rounds" => options.rounds = number()? as usize,
            "--seed" => options.seed = number()?,
            "--evidence" => options.evidence = value.clone().into(),
            _ => return Err(format!("`{name}` is no option")),
        }
    }
    Ok(options)
}

fn torture(options: &Options) -> ExitCode {
    let begun = Instant::now();
    println!("seed {}, {} rounds", options.seed, options.rounds);
    let mut random = Random::new(options.seed);
    // Its own programs: a build while it runs must not change what is restarted.
    let qctl = Installation::prepare().with_own_programs();
    qctl.up(&["--slots", "4"]).ok();
    let link = Proxy::to_address_in(qctl.home().join("data/address"));
    let far = Worker::start(&qctl, FAR, 2, &link.address().to_string());
    let mut watch = Watch::new(&qctl);
    let mut load = Load::new(&qctl);
    let mut parts = Parts {
        qctl,
        link,
        far,
        done: BTreeMap::new(),
        worst_takeover: Duration::ZERO,
        worst_adoption: Duration::ZERO,
        worst_healing: Duration::ZERO,
    };
    for number in 1..=options.rounds {
        let round = Round::draw(&mut random);
        // While the database is away nobody can tell how much is open.
        let open = watch.open().unwrap_or(0);
        load.submit(&parts.qctl, &mut random, open);
        std::thread::sleep(round.before);
        let (log, struck) = (parts.log_length(), Instant::now());
        parts.strike(&round);
        let mut broken = watch.look(&parts.qctl);
        if round.heal
            && let Err(message) = parts.heal(struck, round.fault, log)
        {
            broken.push(message);
        }
        load.collect(false);
        if number % 10 == 0 {
            release_held(&parts.qctl, &watch);
            println!(
                "round {number}: {open} jobs open, {} acknowledged, {:.0?} since the start",
                load.acknowledged(),
                begun.elapsed()
            );
        }
        if !broken.is_empty() {
            let when = format!("round {number}, {:?}", round.fault);
            return failed(options, &parts, &when, &broken);
        }
    }
    load.collect(true);
    let broken = settle(&mut parts, &mut watch, &load);
    summary(options, &parts, &watch, &load, begun);
    if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        failed(options, &parts, "after the last round", &broken)
    }
}

/// Lets everything end, and looks at it.
fn settle(parts: &mut Parts, watch: &mut Watch, load: &Load) -> Vec<String> {
    let deadline = Instant::now() + CALM;
    while watch.open() != Some(0) && Instant::now() < deadline {
        let _ = parts.qctl.up(&[]);
        parts.far.start_again();
        release_held(&parts.qctl, watch);
        std::thread::sleep(Duration::from_millis(500));
    }
    let mut broken = watch.look(&parts.qctl);
    let evidence = parts.qctl.evidence();
    broken.extend(invariants::broken_at_rest(
        &parts.qctl,
        &watch.tables,
        &evidence,
    ));
    let names = watch.names();
    broken.extend(load.lost_or_doubled(names.iter().map(String::as_str)));
    broken
}

/// Does what a person does about jobs that were held because they lost their host twice.
fn release_held(qctl: &Installation, watch: &Watch) {
    let held = watch
        .tables
        .rows("select id from jobs where state = 'held'");
    for row in held.unwrap_or_default() {
        qctl.qctl(&["release", &row["id"].to_string()]);
    }
}

fn summary(options: &Options, parts: &Parts, watch: &Watch, load: &Load, begun: Instant) {
    let jobs = "select state as what, count(*) as n from jobs group by state order by n desc";
    let attempts = "select outcome_kind as what, count(*) as n from attempts
                    group by outcome_kind order by n desc";
    let done: Vec<_> = parts
        .done
        .iter()
        .map(|(fault, count)| format!("{fault:?} {count}"))
        .collect();
    println!("seed        {}", options.seed);
    println!("rounds      {} in {:.0?}", options.rounds, begun.elapsed());
    println!("faults      {}", done.join(", "));
    println!(
        "jobs        {} ({} acknowledged)",
        watch.counts(jobs),
        load.acknowledged()
    );
    println!("attempts    {}", watch.counts(attempts));
    println!("takeover    at most {:.1?}", parts.worst_takeover);
    println!("adoption    at most {:.1?}", parts.worst_adoption);
    println!(
        "healing     at most {:.1?} after Postgres was killed",
        parts.worst_healing
    );
}

/// Keeps what can tell why.
fn failed(options: &Options, parts: &Parts, when: &str, broken: &[String]) -> ExitCode {
    let folder = options.evidence.join(options.seed.to_string());
    println!("VIOLATED {when}, seed {}:", options.seed);
    for rule in broken {
        println!("  {rule}");
    }
    match keep(parts, &folder) {
        Ok(()) => println!("evidence    {}", folder.display()),
        Err(error) => println!("the evidence could not be kept: {error}"),
    }
    ExitCode::FAILURE
}

fn keep(parts: &Parts, folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let dump = parts
        .qctl
        .system_command("sh")
        .args([
            "-c",
            "cp -a home/data/logs home/data/worker home/data/database/postgres.log evidence workers \"$0\"; \
             qctl history --json > \"$0/history.jsonl\"",
        ])
        .arg(std::path::absolute(folder)?)
        .output()?;
    if !dump.stderr.is_empty() {
        println!("{}", String::from_utf8_lossy(&dump.stderr).trim_end());
    }
    Ok(())
}
