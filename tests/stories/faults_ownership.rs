//! Who starts or adopts whom: every pair of parts is killed at once, and comes back under the parent
//! that ARCHITECTURE.md names. A logout, too, is a part of somebody's life.

use std::process::Stdio;

use rustix::process::Signal;

use crate::harness::{Installation, invariants, is_alive, kill, parent_of, processes, session_of};

/// What can be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Keeper,
    Server,
    Agent,
    Postgres,
    Shim,
    Job,
}

use Part::{Agent, Job, Keeper, Postgres, Server, Shim};

/// The living parts of an installation that runs one job.
#[derive(Debug, PartialEq, Eq)]
struct Parts {
    keeper: i32,
    server: i32,
    agent: i32,
    postgres: i32,
    shim: i32,
    job: i32,
}

impl Parts {
    /// All of them, once each is there; `None` while one is missing.
    fn look(qctl: &Installation, id: i64) -> Option<Self> {
        let one = |pids: Vec<i32>| pids.first().copied().filter(|_| pids.len() == 1);
        let server = one(qctl.pids("qctl-server"))?;
        let postgres = qctl.postgres_pids();
        let postgres = postgres
            .into_iter()
            .find(|pid| parent_of(*pid) == Some(server))?;
        let job = qctl.json(&["show", &id.to_string()]);
        let job = job["attempts"].as_array()?.last()?["pid"].as_i64()? as i32;
        let shim = parent_of(job).filter(|_| is_alive(job))?;
        Some(Self {
            keeper: one(qctl.pids("qctl keeper"))?,
            server,
            agent: one(qctl.agents())?,
            postgres,
            shim,
            job,
        })
    }

    fn pid(&self, part: Part) -> i32 {
        match part {
            Keeper => self.keeper,
            Server => self.server,
            Agent => self.agent,
            Postgres => self.postgres,
            Shim => self.shim,
            Job => self.job,
        }
    }
}

/// Kills two parts at once and asserts who is back, and under whom.
fn kill_both(qctl: &Installation, pair: [Part; 2]) {
    let go = format!("go.{pair:?}").replace([' ', '[', ']', ','], "");
    let until = format!("until={go}");
    let id = qctl.witness(&[], &["lines=50", &until]);
    qctl.until_begun(id, 1);
    let look = || {
        (qctl.qctl(&["list"]).code == 0)
            .then(|| Parts::look(qctl, id))
            .flatten()
    };
    let before = qctl.until("all parts are there", look);
    for part in pair {
        kill(before.pid(part), Signal::KILL);
    }
    // A keeper that is still dying holds its lock, and `up` would find it alive.
    for part in pair {
        qctl.until(&format!("{part:?} is dead"), || {
            (!is_alive(before.pid(part))).then_some(())
        });
    }
    // A keeper is started by a person; one that lives is asked not to wait before it starts others.
    qctl.up(&[]).ok();
    qctl.until_answering();
    let ends = pair.contains(&Shim) || pair.contains(&Job);
    let now = qctl.until(&format!("{pair:?} are back"), || {
        let now = look()?;
        (!ends || now.job != before.job).then_some(now)
    });
    let new = |part| now.pid(part) != before.pid(part);
    for part in [Keeper, Server, Agent] {
        assert_eq!(
            new(part),
            pair.contains(&part),
            "{pair:?}, {part:?}: {before:?} {now:?}"
        );
    }
    // Postgres belongs to the coordinator and goes with it; a job belongs to its shim.
    let database = pair.contains(&Postgres) || pair.contains(&Server);
    assert_eq!(new(Postgres), database, "{pair:?}: {before:?} {now:?}");
    assert_eq!(new(Job), ends, "{pair:?}: {before:?} {now:?}");
    assert_eq!(
        new(Shim),
        pair.contains(&Shim),
        "{pair:?}: {before:?} {now:?}"
    );
    for part in [Server, Agent] {
        if pair.contains(&part) {
            let parent = parent_of(now.pid(part));
            assert_eq!(
                parent,
                Some(now.keeper),
                "{pair:?}: {part:?} belongs to the keeper"
            );
        }
    }
    qctl.file(&go, "");
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{pair:?}: {job:#}");
    assert_eq!(
        job["attempt"],
        if ends { 2 } else { 1 },
        "{pair:?}: {job:#}"
    );
    let expected = match (pair.contains(&Shim), pair.contains(&Job)) {
        (true, false) => &["interrupted"][..],
        (false, true) => &["failed"],
        // Whether the shim still saw the end of its job is for the machine to say.
        _ => &["interrupted", "failed", "succeeded"],
    };
    let first = job["attempts"][0]["outcome"]["kind"].as_str().unwrap();
    assert!(expected.contains(&first), "{pair:?}: {job:#}");
}

#[test]
fn parts_killed_beside_the_keeper_come_back_with_the_next_up() {
    let qctl = Installation::start();
    for other in [Server, Agent, Postgres, Shim, Job] {
        kill_both(&qctl, [Keeper, other]);
    }
    invariants::assert_all(&qctl, &qctl.evidence());
}

#[test]
fn parts_killed_under_the_keeper_come_back_by_themselves() {
    let qctl = Installation::start();
    for pair in [
        [Server, Agent],
        [Server, Postgres],
        [Server, Shim],
        [Server, Job],
        [Agent, Postgres],
        [Agent, Shim],
        [Agent, Job],
        [Shim, Job],
        [Postgres, Shim],
        [Postgres, Job],
    ] {
        kill_both(&qctl, pair);
    }
    invariants::assert_all(&qctl, &qctl.evidence());
}

#[test]
fn a_logout_ends_the_session_and_nothing_else() {
    let qctl = Installation::prepare();
    let mut login = qctl.system_command("setsid");
    let id_file = qctl.folder().join("id");
    let script = format!(
        "qctl up --listen 127.0.0.1:0 && qctl --json submit -- sleep 600 > '{}' && touch ready && exec sleep 600",
        id_file.display()
    );
    // Who leads no process group becomes the session's leader itself.
    login.args(["sh", "-c", &script]);
    login.stdout(Stdio::null()).stderr(Stdio::null());
    let mut login = login.spawn().unwrap();
    let session = login.id() as i32;
    let ready = qctl.folder().join("ready");
    qctl.until("the session has started a queue", || {
        ready.exists().then_some(())
    });
    assert_eq!(session_of(session), Some(session));
    let submitted = std::fs::read_to_string(id_file).unwrap();
    let submitted: serde_json::Value = serde_json::from_str(&submitted).unwrap();
    let id = submitted["id"].as_i64().unwrap();
    let job = qctl.job_pid(id);
    let before = (
        qctl.pids("qctl keeper"),
        qctl.pids("qctl-server"),
        qctl.agents(),
        qctl.shims(),
    );
    for signal in [Signal::HUP, Signal::TERM, Signal::KILL] {
        for pid in processes(|_, _| true) {
            if session_of(pid) == Some(session) {
                kill(pid, signal);
            }
        }
    }
    login.wait().unwrap();
    assert!(is_alive(job));
    let after = (
        qctl.pids("qctl keeper"),
        qctl.pids("qctl-server"),
        qctl.agents(),
        qctl.shims(),
    );
    assert_eq!(after, before);
    assert_eq!(qctl.job(id)["state"], "running");
    // What `down` says and does is in up_and_down.rs; here it ends all that is left.
    qctl.qctl(&["down", "--jobs"]).ok();
    assert!(!is_alive(job));
}
