//! Two coordinators share a database: one leads, the other takes over (F6, and F1 as seen by those
//! who use a queue).

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use qctl_server::database::embedded::Embedded;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{self, Installation, Ran, kill};

/// Longest that nobody may lead after the leader was killed or stopped.
const TAKEOVER: Duration = Duration::from_secs(15);

/// A Postgres for several coordinators, in this process.
struct Postgres {
    _folder: TempDir,
    url: String,
    _embedded: Embedded,
    _runtime: tokio::runtime::Runtime,
}

impl Postgres {
    fn start() -> Self {
        let folder = TempDir::with_prefix("qctl-postgres-").unwrap();
        // The database's user must be able to enter.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let place = folder.path().join("database");
        let embedded = runtime.block_on(Embedded::start(&place, None)).unwrap();
        let options = embedded.connect_options();
        let socket = options.get_socket().unwrap().display().to_string();
        Self {
            url: format!("postgres:///postgres?host={socket}&user=postgres"),
            _folder: folder,
            _embedded: embedded,
            _runtime: runtime,
        }
    }
}

/// One coordinator with a home of its own.
struct Coordinator {
    home: PathBuf,
    child: Child,
}

impl Coordinator {
    fn start(installation: &Installation, name: &str, url: &str) -> Self {
        let home = installation.folder().join(name);
        let data = home.join("data");
        std::fs::create_dir_all(&data).unwrap();
        // One token is good for both, so that clients can go from one to the other.
        for secret in ["token", "page-key"] {
            std::fs::write(
                data.join(secret),
                format!("the {secret} of both coordinators\n"),
            )
            .unwrap();
        }
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(installation.folder().join(format!("{name}.log")))
            .unwrap();
        let child = installation
            .command("qctl-server")
            .env("QCTL_HOME", &home)
            .env("DATABASE_URL", url)
            .env("QCTL_LISTEN", "127.0.0.1:0")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let coordinator = Self { home, child };
        installation.until(&format!("{name} answers"), || {
            coordinator.address().filter(|address| !address.is_empty())
        });
        coordinator
    }

    fn address(&self) -> Option<String> {
        let address = std::fs::read_to_string(self.home.join("data/address")).ok()?;
        Some(address.trim().to_owned())
    }

    fn signal(&self, signal: Signal) {
        kill(self.child.id() as i32, signal);
    }

    fn token_file(&self) -> PathBuf {
        self.home.join("data/token")
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command line of someone who knows these coordinators.
fn qctl(installation: &Installation, servers: &str, token: &Path, args: &[&str]) -> Ran {
    let mut command = installation.command("qctl");
    command
        .env("QCTL_SERVER", servers)
        .env("QCTL_TOKEN_FILE", token)
        .args(args);
    harness::run(command)
}

fn document(ran: Ran) -> Value {
    let text = ran.ok();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in: {text}"))
}

/// Waits until this coordinator leads, by asking for its health, which it tells without a leader's
/// help. Returns how long that took.
fn until_it_leads(installation: &Installation, coordinator: &Coordinator) -> Duration {
    let begun = Instant::now();
    let log = coordinator.home.with_extension("log");
    let terms = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.matches("coordinator on http").count()
    };
    let before = terms();
    installation.until("another coordinator leads", || {
        (terms() > before).then_some(())
    });
    begun.elapsed()
}

#[test]
fn f06_a_standby_takes_over_and_a_leader_that_was_stopped_writes_nothing() {
    let postgres = Postgres::start();
    let installation = Installation::prepare();
    let first = Coordinator::start(&installation, "first", &postgres.url);
    let second = Coordinator::start(&installation, "second", &postgres.url);
    let servers = format!("{},{}", first.address().unwrap(), second.address().unwrap());
    let token = second.token_file();
    let run = |args: &[&str]| qctl(&installation, &servers, &token, args);
    let mut worker = installation
        .command("qctl-worker")
        .env("QCTL_SERVER", &servers)
        .env("QCTL_TOKEN_FILE", &token)
        .env("QCTL_WORKER_SLOTS", "2")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();

    // Whoever asks only the standby is sent on.
    let ran = qctl(&installation, &second.address().unwrap(), &token, &["list"]);
    assert_eq!(ran.code, 0, "{ran:?}");

    let counting = "i=0; while [ $i -lt 150 ]; do echo line $i; i=$((i+1)); sleep 0.1; done";
    let job = document(run(&["--json", "submit", "--shell", counting]));
    let id = job["id"].to_string();
    installation.until("the job runs", || {
        let job = document(run(&["--json", "show", &id]));
        (job["state"] == "running").then_some(())
    });
    let follower = |args: &[&str]| {
        let mut command = installation.command("qctl");
        command
            .env("QCTL_SERVER", &servers)
            .env("QCTL_TOKEN_FILE", &token)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let waiting = follower(&["wait", &id]);
    let following = follower(&["logs", "-f", &id]);

    // Killed: the standby leads after the lease.
    first.signal(Signal::KILL);
    let took = until_it_leads(&installation, &second);
    eprintln!("after a SIGKILL of the leader the standby led within {took:.1?}");
    assert!(took < TAKEOVER, "{took:?}");
    let asked = Instant::now();
    let later = document(run(&["--json", "submit", "--", "true"]));
    eprintln!("and took a submission {:.1?} later", asked.elapsed());

    // Nobody noticed but by waiting.
    assert_eq!(harness::finish(waiting).code, 0);
    let followed = harness::finish(following);
    let lines: String = (0..150).map(|line| format!("line {line}\n")).collect();
    assert_eq!(followed.stdout, lines, "{}", followed.stderr);
    let job = document(run(&["--json", "show", &id]));
    assert_eq!(
        (&job["state"], &job["attempt"]),
        (&"succeeded".into(), &1.into())
    );
    run(&["wait", &later["id"].to_string()]).ok();

    // Stopped past its lease and continued: it has lost the lead, and knows it before it writes.
    drop(first);
    let first = Coordinator::start(&installation, "first", &postgres.url);
    let servers = format!("{},{}", first.address().unwrap(), second.address().unwrap());
    let run = |args: &[&str]| qctl(&installation, &servers, &token, args);
    let running = document(run(&["--json", "submit", "--", "sleep", "60"]));
    let running = running["id"].to_string();
    installation.until("the second job runs", || {
        let job = document(run(&["--json", "show", &running]));
        (job["state"] == "running").then_some(())
    });
    second.signal(Signal::STOP);
    let took = until_it_leads(&installation, &first);
    eprintln!("after a SIGSTOP of the leader the standby led within {took:.1?}");
    assert!(took < TAKEOVER, "{took:?}");
    second.signal(Signal::CONT);
    let log = second.home.with_extension("log");
    installation.until("the stopped one stands by", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let over = text.rfind("is over, because")?;
        text[over..].contains("standing by").then_some(())
    });
    run(&["submit", "--wait", "--", "true"]).ok();
    let job = document(run(&["--json", "show", &running]));
    assert_eq!(
        (&job["state"], &job["attempt"]),
        (&"running".into(), &1.into())
    );

    // Stopped in order: the lease is given back, and nobody waits for its end.
    first.signal(Signal::TERM);
    let took = until_it_leads(&installation, &second);
    eprintln!("after an orderly stop of the leader the standby led within {took:.1?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    let job = document(run(&["--json", "show", &running]));
    assert_eq!(job["state"], "running");
    run(&["cancel", &running]).ok();
    run(&["wait", &running]).fails();
    kill(worker.id() as i32, Signal::TERM);
    worker.wait().unwrap();
}
