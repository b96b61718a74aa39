//! The embedded Postgres against the real programs: first start, restart, and everything that a
//! killed coordinator can leave behind.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use qctl_server::database::embedded::{Embedded, EmbeddedError};
use qctl_server::database::{self, Database, Place, Settings, Source, Standing};
use qctl_server::store::Lease;
use rustix::process::{Pid, Signal, kill_process};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Row};
use tokio::sync::watch;

/// Names the folder to the stand-in below.
const FOLDER: &str = "QCTL_TEST_DATABASE_FOLDER";

/// A data folder that Postgres can reach when the tests run as root, who drops to another account.
fn data_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn settings(folder: &Path) -> Settings {
    Settings {
        source: Source::Embedded {
            folder: folder.join("database"),
            programs: None,
        },
        connections: 4,
    }
}

async fn start(folder: &Path) -> Embedded {
    Embedded::start(&folder.join("database"), None)
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

async fn maintenance(embedded: &Embedded) -> PgConnectOptions {
    embedded.connect_options().database("postgres")
}

/// Polls until `condition` holds.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    // A cluster is synced to the disk with whatever else is on its way there.
    let deadline = Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn postmaster(folder: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(folder.join("database/pg/postmaster.pid")).ok()?;
    text.lines().next()?.parse().ok()
}

fn is_alive(pid: i32) -> bool {
    // A zombie has no executable any more.
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Another process that holds an embedded Postgres until it is killed: this very test program,
/// asked for the one ignored test.
fn stand_in(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "stand_in_coordinator", "--ignored"])
        .env(FOLDER, folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
#[ignore = "runs only in a process of its own, as the coordinator of other tests"]
async fn stand_in_coordinator() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let _embedded = start(Path::new(&folder)).await;
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn the_first_start_makes_everything_and_a_later_one_finds_it() {
    let folder = data_folder();
    let led = lead(folder.path()).await;
    assert_eq!(led.lease.term().0, 1);
    let description = &led.database.description;
    assert!(
        description.starts_with("PostgreSQL ") && description.ends_with(" (embedded)"),
        "{description}"
    );
    for (name, wanted) in [
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("listen_addresses", ""),
        ("jit", "off"),
        ("autovacuum", "on"),
    ] {
        let row = sqlx::query("select current_setting($1)")
            .bind(name)
            .fetch_one(&led.pool)
            .await
            .unwrap();
        assert_eq!(row.get::<String, _>(0), wanted, "{name}");
    }
    for private in ["database/pg", "database/run"] {
        let mode = std::fs::metadata(folder.path().join(private)).unwrap();
        assert_eq!(mode.mode() & 0o777, 0o700, "{private}");
    }
    let pid = postmaster(folder.path()).unwrap();
    led.close().await;
    assert!(!is_alive(pid));

    let led = lead(folder.path()).await;
    assert_eq!(led.lease.term().0, 2, "the tables were kept");
    led.close().await;
}

/// An embedded database that a coordinator leads.
struct Led {
    database: Database,
    pool: sqlx::PgPool,
    lease: Lease,
}

async fn lead(folder: &Path) -> Led {
    let place = Place::take(folder).unwrap();
    let settings = settings(folder);
    let opened = database::open(&settings, "http://first:1", place);
    let mut database = opened.await.unwrap();
    let (standing, _) = watch::channel(Standing::default());
    let (pool, lease) = within(database.lead(&standing)).await.unwrap();
    Led {
        database,
        pool,
        lease,
    }
}

impl Led {
    async fn close(mut self) {
        self.pool.close().await;
        self.database.release(&self.lease).await;
        self.database.stop().await;
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("in time")
}

#[tokio::test]
async fn a_second_coordinator_is_refused_by_name_and_does_no_harm() {
    let folder = data_folder();
    let embedded = start(folder.path()).await;
    match Embedded::start(&folder.path().join("database"), None).await {
        Err(error @ EmbeddedError::InUse { .. }) => {
            let text = error.to_string();
            assert!(
                text.contains(&format!("process {}", std::process::id())),
                "{text}"
            );
        }
        other => panic!("{:?}", other.err()),
    }
    let options = maintenance(&embedded).await;
    options.connect().await.unwrap().ping().await.unwrap();
    embedded.stop().await;
}

#[tokio::test]
async fn postgres_ends_with_a_killed_coordinator_and_the_next_one_recovers() {
    let folder = data_folder();
    let child = stand_in(folder.path());
    eventually("the stand-in is ready", || socket_answers(folder.path()));
    let first = postmaster(folder.path()).unwrap();
    kill(child);
    // At once, while the old one is still stopping.
    let embedded = start(folder.path()).await;
    let second = postmaster(folder.path()).unwrap();
    assert_ne!(first, second);
    assert!(!is_alive(first));
    embedded.stop().await;

    let child = stand_in(folder.path());
    eventually("the stand-in is ready again", || {
        socket_answers(folder.path())
    });
    let third = postmaster(folder.path()).unwrap();
    kill(child);
    eventually("Postgres stopped by itself", || !is_alive(third));
}

fn socket_answers(folder: &Path) -> bool {
    let text = std::fs::read_to_string(folder.join("database/pg/postmaster.pid"));
    text.is_ok_and(|text| {
        text.lines()
            .nth(7)
            .is_some_and(|line| line.trim() == "ready")
    })
}

#[tokio::test]
async fn an_orphan_and_a_strangers_number_in_the_pid_file_are_cleared_away() {
    let folder = data_folder();
    let embedded = start(folder.path()).await;
    let mut connection = maintenance(&embedded).await.connect().await.unwrap();
    sqlx::query("create table kept (value integer)")
        .execute(&mut connection)
        .await
        .unwrap();
    let exe =
        std::fs::read_link(format!("/proc/{}/exe", postmaster(folder.path()).unwrap())).unwrap();
    connection.close().await.unwrap();
    embedded.stop().await;

    // An orphan: nobody waits for it, and it stays a zombie of this process once it is stopped.
    let mut orphan = postgres(&exe, folder.path());
    eventually("the orphan is ready", || socket_answers(folder.path()));
    let embedded = start(folder.path()).await;
    assert!(!is_alive(orphan.id().cast_signed()));
    let mut connection = maintenance(&embedded).await.connect().await.unwrap();
    sqlx::query("insert into kept values (1)")
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    embedded.stop().await;
    orphan.wait().unwrap();

    // A number that a live stranger bears.
    let path = folder.path().join("database/pg/postmaster.pid");
    let text = format!(
        "{}\n/nowhere\n1\n5432\n/nowhere\n\n1 2\nready\n",
        std::process::id()
    );
    std::fs::write(&path, text).unwrap();
    let embedded = start(folder.path()).await;
    let mut connection = maintenance(&embedded).await.connect().await.unwrap();
    let row = sqlx::query("select count(*) from kept")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(row.get::<i64, _>(0), 1);
    connection.close().await.unwrap();
    embedded.stop().await;
}

/// Postgres on the cluster, as its owner, started by nobody's rules.
fn postgres(exe: &Path, folder: &Path) -> Child {
    let cluster = folder.join("database/pg").canonicalize().unwrap();
    let owner = std::fs::metadata(&cluster).unwrap();
    let mut command = Command::new(exe);
    command
        .arg("-D")
        .arg(&cluster)
        .arg("-k")
        .arg(folder.join("database/run").canonicalize().unwrap())
        .args(["-c", "listen_addresses="])
        .current_dir(&cluster)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    if rustix::process::geteuid().is_root() {
        command.uid(owner.uid()).gid(owner.gid());
    }
    command.spawn().unwrap()
}

#[tokio::test]
async fn a_killed_initdb_leaves_nothing_that_passes_for_a_cluster() {
    let folder = data_folder();
    let child = stand_in(folder.path());
    let draft = folder.path().join("database/pg.tmp/PG_VERSION");
    eventually("initdb is under way", || draft.exists());
    kill(child);
    assert!(!folder.path().join("database/pg").exists());
    let embedded = start(folder.path()).await;
    let options = maintenance(&embedded).await;
    options.connect().await.unwrap().ping().await.unwrap();
    assert!(!folder.path().join("database/pg.tmp").exists());
    embedded.stop().await;
}

#[tokio::test]
async fn a_postgres_that_dies_is_started_again() {
    let folder = data_folder();
    let embedded = start(folder.path()).await;
    let first = postmaster(folder.path()).unwrap();
    signal(first, Signal::KILL);
    eventually("another one is ready", || {
        postmaster(folder.path()).is_some_and(|pid| pid != first) && socket_answers(folder.path())
    });
    let options = maintenance(&embedded).await;
    options.connect().await.unwrap().ping().await.unwrap();
    embedded.stop().await;
    assert!(postmaster(folder.path()).is_none(), "a clean stop");
}

#[tokio::test]
async fn a_machine_without_postgres_is_told_what_to_install() {
    let folder = data_folder();
    let empty = tempfile::tempdir().unwrap();
    let error = Embedded::start(&folder.path().join("database"), Some(empty.path()))
        .await
        .err()
        .unwrap();
    assert!(
        matches!(error, EmbeddedError::NotPostgres { .. }),
        "{error}"
    );
    assert!(!folder.path().join("database/pg").exists());
    let message = EmbeddedError::NoPrograms { wanted: Some(15) }.to_string();
    assert!(message.contains("postgresql-15") && message.contains("--pg-bin"));
}

#[tokio::test]
async fn a_folder_that_postgres_may_not_reach_is_named_when_we_are_root() {
    if !rustix::process::geteuid().is_root() {
        // Anyone else runs Postgres as themselves, who can reach their own folder.
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let closed = folder.path().join("closed");
    std::fs::create_dir_all(closed.join("data")).unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    let error = Embedded::start(&closed.join("data/database"), None)
        .await
        .err()
        .unwrap();
    let text = error.to_string();
    let named: PathBuf = closed.canonicalize().unwrap();
    assert!(
        text.contains(&format!("chmod o+x {}", named.display())),
        "{text}"
    );
}

/// Another coordinator of the same database, which comes by its address and has a folder of its own.
async fn second(folder: &Path, own: &Path) -> Database {
    let socket = folder.join("database/run").canonicalize().unwrap();
    let url = format!("postgres:///qctl?host={}&user=postgres", socket.display());
    let settings = Settings {
        source: Source::Url(url),
        connections: 4,
    };
    let place = Place::take(own).unwrap();
    database::open(&settings, "http://second:1", place)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_second_coordinator_stands_by_and_leads_at_once_when_the_lease_is_given_back() {
    let (folder, own) = (data_folder(), data_folder());
    let mut first = lead(folder.path()).await;
    let mut second = second(folder.path(), own.path()).await;
    let (standing, mut news) = watch::channel(Standing::default());
    let waiting = tokio::spawn(async move {
        let led = second.lead(&standing).await.unwrap();
        (second, led)
    });
    let is_behind = |standing: &Standing| match standing {
        Standing::Behind { name, url } => {
            name.starts_with("qctl-server ") && url == "http://first:1"
        }
        _ => false,
    };
    within(news.wait_for(is_behind)).await.unwrap();

    let given_back = Instant::now();
    first.database.release(&first.lease).await;
    let (mut second, (pool, lease)) = within(waiting).await.unwrap();
    assert!(
        given_back.elapsed() < Duration::from_secs(6),
        "sooner than a lease"
    );
    assert_eq!(lease.term().0, first.lease.term().0 + 1);
    assert!(lease.holds() && !first.lease.holds());

    // What the former leader would write, it cannot.
    let leads = |term| sqlx::query("select leads($1)").bind(term);
    let fenced = leads(first.lease.term().0).execute(&first.pool).await;
    let code = fenced.unwrap_err().into_database_error().unwrap();
    assert_eq!(code.code().as_deref(), Some("QC001"));
    leads(lease.term().0).execute(&pool).await.unwrap();

    second.release(&lease).await;
    pool.close().await;
    second.stop().await;
    first.close().await;
}

#[tokio::test]
async fn f06_another_term_begins_only_when_nothing_is_written_in_the_one_before() {
    let (folder, own) = (data_folder(), data_folder());
    let mut first = lead(folder.path()).await;
    let mut writing = first.pool.begin().await.unwrap();
    sqlx::query("select leads($1)")
        .bind(first.lease.term().0)
        .execute(&mut *writing)
        .await
        .unwrap();
    // Renewing is not held up by it.
    let renewed = renewals(&first.pool).await;
    let renewing = async {
        while renewals(&first.pool).await == renewed {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = first.database.keep(&first.lease, |_| {}) => panic!("the lease is lost"),
        () = within(renewing) => {}
    }
    first.database.release(&first.lease).await;

    let mut second = second(folder.path(), own.path()).await;
    let (standing, _) = watch::channel(Standing::default());
    let (pool, lease) = within(second.lead(&standing)).await.unwrap();
    // Its connection was ended to get the term from it, and with it all that it had done.
    let committed = writing.commit().await;
    assert!(committed.is_err());
    second.release(&lease).await;
    pool.close().await;
    second.stop().await;
    first.close().await;
}

#[tokio::test]
async fn f03_the_lease_is_kept_through_a_crash_of_the_database() {
    let folder = data_folder();
    let mut led = lead(folder.path()).await;
    let killed = postmaster(folder.path()).unwrap();
    signal(killed, Signal::KILL);
    let pool = led.pool.clone();
    let renewed_again = async {
        while postmaster(folder.path()).is_none_or(|pid| pid == killed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut before = None;
        loop {
            match (before, renewals(&pool).await) {
                (Some(before), Some(now)) if now > before => return,
                (None, now) => before = now,
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = led.database.keep(&led.lease, |_| {}) => panic!("the lease is lost"),
        () = within(renewed_again) => {}
    }
    assert!(led.lease.holds());
    led.close().await;
}

async fn renewals(pool: &sqlx::PgPool) -> Option<i64> {
    let renewals = sqlx::query_scalar("select renewals from coordinator");
    renewals.fetch_one(pool).await.ok()
}

#[tokio::test]
async fn f06_a_term_that_another_began_is_over_at_the_next_renewal() {
    let folder = data_folder();
    let mut led = lead(folder.path()).await;
    sqlx::query("update coordinator set term = term + 1")
        .execute(&led.pool)
        .await
        .unwrap();
    within(led.database.keep(&led.lease, |_| {})).await;
    assert!(!led.lease.holds());
    led.close().await;
}

#[tokio::test]
async fn a_killed_coordinator_is_succeeded_in_its_own_folder_without_waiting_for_its_lease() {
    let folder = data_folder();
    let led = lead(folder.path()).await;
    let term = led.lease.term().0;
    // Nothing is given back, as when it is killed.
    drop(led.pool);
    led.database.stop().await;
    let started = Instant::now();
    let again = lead(folder.path()).await;
    assert_eq!(again.lease.term().0, term + 1);
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "less than a lease"
    );
    again.close().await;
}
