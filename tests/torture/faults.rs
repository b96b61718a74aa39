//! What is done to the parts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::proxy::Proxy;
use crate::harness::worker::Worker;
use crate::harness::{Installation, kill, parent_of, processes, wait_for};
use crate::random::Random;

/// Name of the worker behind the link.
pub(crate) const FAR: &str = "far";

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    KillAgent,
    StopAgent,
    PauseAgent,
    KillFarAgent,
    KillShim,
    KillJob,
    KillServer,
    StopServer,
    PauseServer,
    KillPostgres,
    KillPostgresAndJob,
    KillKeeper,
    KillServerAndAgent,
    KillEverything,
    ResetLink,
    CutLink,
    HoldLink,
    StrandLink,
}

use Fault::{
    CutLink, HoldLink, KillAgent, KillEverything, KillFarAgent, KillJob, KillKeeper, KillPostgres,
    KillPostgresAndJob, KillServer, KillServerAndAgent, KillShim, PauseAgent, PauseServer,
    ResetLink, StopAgent, StopServer, StrandLink,
};

const FAULTS: &[(u64, Fault)] = &[
    (10, KillAgent),
    (3, StopAgent),
    (4, PauseAgent),
    (6, KillFarAgent),
    (8, KillShim),
    (8, KillJob),
    (10, KillServer),
    (3, StopServer),
    (5, PauseServer),
    (6, KillPostgres),
    (4, KillPostgresAndJob),
    (3, KillKeeper),
    (5, KillServerAndAgent),
    (2, KillEverything),
    (5, ResetLink),
    (4, CutLink),
    (4, HoldLink),
    (3, StrandLink),
];

/// A round of the plan, which the seed alone decides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) fault: Fault,
    /// Wait before it.
    pub(crate) before: Duration,
    /// How long a pause or a cut lasts.
    lasts: Duration,
    /// Which of several shims or jobs.
    which: u64,
    /// Wait until everything works again before the next round.
    pub(crate) heal: bool,
}

impl Round {
    pub(crate) fn draw(random: &mut Random) -> Self {
        Self {
            fault: random.weighted(FAULTS),
            before: Duration::from_millis(random.below(600)),
            lasts: Duration::from_millis(100 + random.below(1_500)),
            which: random.below(u64::MAX),
            heal: random.below(2) == 0,
        }
    }
}

/// The parts, and how long the worst recoveries took.
pub(crate) struct Parts {
    pub(crate) qctl: Installation,
    pub(crate) link: Proxy,
    pub(crate) far: Worker,
    pub(crate) done: BTreeMap<Fault, usize>,
    pub(crate) worst_takeover: Duration,
    pub(crate) worst_adoption: Duration,
    pub(crate) worst_healing: Duration,
}

impl Parts {
    /// Length of the agent's log.
    pub(crate) fn log_length(&self) -> usize {
        self.log_since(0).len()
    }

    /// What the agent logged since its log had this length.
    fn log_since(&self, length: usize) -> String {
        let path = self.qctl.home().join("data/logs/worker.log");
        let log = std::fs::read_to_string(path).unwrap_or_default();
        // A log that was cut off begins anew.
        log.get(length..).unwrap_or(&log).to_owned()
    }

    /// Does what the round says.
    pub(crate) fn strike(&mut self, round: &Round) {
        *self.done.entry(round.fault).or_default() += 1;
        let qctl = &self.qctl;
        let local_agent = || -> Vec<i32> { qctl.agents() };
        match round.fault {
            KillAgent => all(&local_agent(), Signal::KILL),
            StopAgent => all(&local_agent(), Signal::TERM),
            PauseAgent => pause(&local_agent(), round.lasts),
            KillFarAgent => self.far.kill_agent(),
            KillShim => {
                // One that has a job, if there is one.
                let mut shims: Vec<i32> =
                    witnesses(qctl).into_iter().filter_map(parent_of).collect();
                if shims.is_empty() {
                    shims = qctl.shims();
                    shims.extend(self.far.shims());
                }
                one(&shims, round.which);
            }
            KillJob => one(&witnesses(qctl), round.which),
            KillServer => all(&qctl.pids("qctl-server"), Signal::KILL),
            StopServer => all(&qctl.pids("qctl-server"), Signal::TERM),
            PauseServer => pause(&qctl.pids("qctl-server"), round.lasts),
            KillPostgres => all(&qctl.postgres_pids(), Signal::KILL),
            KillPostgresAndJob => {
                one(&witnesses(qctl), round.which);
                all(&qctl.postgres_pids(), Signal::KILL);
            }
            KillKeeper => all(&qctl.pids("qctl keeper"), Signal::KILL),
            KillServerAndAgent => {
                all(&qctl.pids("qctl-server"), Signal::KILL);
                all(&local_agent(), Signal::KILL);
            }
            KillEverything => {
                all(&qctl.pids("qctl keeper"), Signal::KILL);
                all(&qctl.pids("qctl-"), Signal::KILL);
                all(&qctl.postgres_pids(), Signal::KILL);
                self.far.kill_agent();
                all(&self.far.shims(), Signal::KILL);
            }
            ResetLink => self.link.cut(),
            CutLink => {
                self.link.refuse();
                std::thread::sleep(round.lasts);
                self.link.thaw();
            }
            HoldLink => {
                self.link.freeze_all();
                std::thread::sleep(round.lasts);
                self.link.thaw();
            }
            StrandLink => self.link.freeze(),
        }
        self.restart();
    }

    /// Starts what nobody else starts again, and hurries those that would.
    fn restart(&mut self) {
        // A coordinator that is just being started may make this fail; the next round asks again.
        let _ = self.qctl.up(&[]);
        self.far.start_again();
    }

    /// Waits until the queue answers and the agent beside it is connected; says what took how long.
    /// Gives up with a sentence.
    pub(crate) fn heal(
        &mut self,
        struck: Instant,
        fault: Fault,
        log_before: usize,
    ) -> Result<(), String> {
        let replaced = matches!(fault, KillAgent | KillServerAndAgent);
        let deadline = struck + Duration::from_secs(60);
        while self.qctl.qctl(&["list"]).code != 0 {
            if Instant::now() > deadline {
                return Err(format!("the queue did not answer for 60 s after {fault:?}"));
            }
            self.restart();
        }
        if matches!(fault, KillServer | KillServerAndAgent | KillEverything) {
            self.worst_takeover = self.worst_takeover.max(struck.elapsed());
        }
        if matches!(fault, KillPostgres | KillPostgresAndJob) {
            self.worst_healing = self.worst_healing.max(struck.elapsed());
        }
        let connected = || {
            let workers = self.qctl.qctl(&["--json", "workers"]);
            let workers: serde_json::Value = serde_json::from_str(&workers.stdout).ok()?;
            let mut workers = workers["workers"].as_array()?.iter();
            let here = workers.any(|worker| worker["name"] != FAR && worker["state"] == "online");
            // After a kill the coordinator may not have noticed yet that the old agent is gone.
            let is_new = !replaced || self.log_since(log_before).contains("connected to the");
            (here && is_new).then_some(())
        };
        wait_for(connected).ok_or_else(|| format!("no worker came back after {fault:?}"))?;
        if replaced {
            self.worst_adoption = self.worst_adoption.max(struck.elapsed());
        }
        Ok(())
    }
}

fn all(pids: &[i32], signal: Signal) {
    for pid in pids {
        kill(*pid, signal);
    }
}

fn one(pids: &[i32], which: u64) {
    if let Some(pid) = pids.get(which as usize % pids.len().max(1)) {
        kill(*pid, Signal::KILL);
    }
}

fn pause(pids: &[i32], lasts: Duration) {
    all(pids, Signal::STOP);
    std::thread::sleep(lasts);
    all(pids, Signal::CONT);
}

/// Running witnesses of this torture.
fn witnesses(qctl: &Installation) -> Vec<i32> {
    let folder = qctl.evidence().display().to_string();
    processes(|_, cmdline| cmdline.contains("witness") && cmdline.contains(&folder))
}
