//! The pages as a browser gets them, from a real coordinator on a real Postgres.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use qctl_proto::home::Home;
use qctl_server::app::Settings;
use qctl_server::config::{Config, LogFormat};
use qctl_server::database::{self, Source};
use qctl_server_core::JobSpec;
use sqlx::types::Json;
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The first bytes of a PNG are enough to be one.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\nrest";

/// A coordinator with an embedded database in a folder of its own.
struct Coordinator {
    folder: tempfile::TempDir,
    address: SocketAddr,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), qctl_server::RunError>>,
    key: String,
}

/// An answer, taken apart.
struct Answer {
    code: u16,
    headers: String,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

impl Coordinator {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Postgres runs as another account when the tests run as root.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let home = Home::at(folder.path());
        let config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            public_url: Some("https://queue.example.net".to_owned()),
            database: database::Settings {
                source: Source::Embedded {
                    folder: home.database_dir(),
                    programs: None,
                },
                connections: 4,
            },
            tls: None,
            settings: Settings::default(),
            log: "info".to_owned(),
            log_format: LogFormat::Compact,

            notify: Default::default(),
            home: home.clone(),
        };
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(qctl_server::run(config, shutdown.clone()));
        let address = loop {
            if let Ok(line) = std::fs::read_to_string(home.address_file()) {
                break line.trim().parse().unwrap();
            }
            assert!(!running.is_finished(), "{:?}", running.await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let mut coordinator = Self {
            folder,
            address,
            shutdown,
            running,
            key: String::new(),
        };
        coordinator.key = coordinator.find_key();
        coordinator
    }

    /// The key, made from its secret as the coordinator does: HMAC-SHA-256, 18 bytes, base64.
    fn find_key(&self) -> String {
        use base64::Engine;
        use hmac::{Hmac, Mac};

        let path = Home::at(self.folder.path()).data_dir().join("page-key");
        let secret = std::fs::read_to_string(path).unwrap();
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.trim().as_bytes()).unwrap();
        mac.update(b"read pages");
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&mac.finalize().into_bytes()[..18])
    }

    async fn request(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            request.push_str(&format!("Host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let end = answer
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .unwrap();
        let headers = String::from_utf8(answer[..end].to_vec()).unwrap();
        let code = headers.split(' ').nth(1).unwrap().parse().unwrap();
        Answer {
            code,
            headers,
            body: answer[end + 4..].to_vec(),
        }
    }

    /// A page as someone sees it who has signed in.
    async fn get(&self, path: &str) -> Answer {
        let first = self.request(&format!("/?k={}", self.key), &[]).await;
        let cookie = first.header("set-cookie").unwrap();
        let cookie = cookie.split(';').next().unwrap().to_owned();
        self.request(path, &[("Cookie", &cookie)]).await
    }

    async fn connect(&self) -> PgConnection {
        let run = self.folder.path().join("data/database/run");
        let url = format!("postgres:///qctl?host={}&user=postgres", run.display());
        PgConnection::connect(&url).await.unwrap()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
        let address = Home::at(self.folder.path()).address_file();
        assert!(!address.exists(), "the address is withdrawn");
    }
}

fn spec(name: &str, tracker: &str, cwd: &Path) -> JobSpec {
    JobSpec {
        name: name.to_owned(),
        command: vec!["sh".to_owned(), "-c".to_owned(), "echo '<b>'".to_owned()],
        cwd: cwd.to_str().unwrap().to_owned(),
        tracker: tracker.to_owned(),
        artifacts: vec!["out".to_owned()],
        ..JobSpec::default()
    }
}

/// Puts a job into the database as it is after its first attempt ended.
async fn ended_job(db: &mut PgConnection, spec: &JobSpec, hostname: &str, log: &[u8]) -> i64 {
    let day = NaiveDate::from_ymd_opt(2020, 1, 1).unwrap();
    let now: DateTime<Utc> = Utc::now();
    let started = now - TimeDelta::seconds(65);
    let job: i64 = sqlx::query_scalar(
        "insert into jobs (day, state, reason, name, tracker, tracker_key, attempts, fence,
                           retries, retries_left, resumes, resumes_left, created_at, started_at, ended_at)
         values ($1, 'succeeded', 'exit', $2, $3, $4, 1, nextval('fences'), 2, 2, 3, 3, $5, $5, $6)
         returning id",
    )
    .bind(day)
    .bind(&spec.name)
    .bind(&spec.tracker)
    .bind(qctl_server_core::tracker::key(&spec.tracker))
    .bind(started)
    .bind(now)
    .fetch_one(&mut *db)
    .await
    .unwrap();
    sqlx::query("insert into job_specs (job_id, spec) values ($1, $2)")
        .bind(job)
        .bind(Json(spec))
        .execute(&mut *db)
        .await
        .unwrap();
    let worker: Uuid = sqlx::query_scalar(
        "insert into workers (id, name, hostname, boot_id, spool_id, version, slots, first_seen)
         values ($1, $2, $3, 'boot', $1, '0', 1, $4)
         on conflict (name) do update set name = excluded.name returning id",
    )
    .bind(Uuid::new_v4())
    .bind(format!("worker on {hostname}"))
    .bind(hostname)
    .bind(now)
    .fetch_one(&mut *db)
    .await
    .unwrap();
    let fence: i64 = sqlx::query_scalar(
        "insert into attempts (fence, job_id, number, state, worker_id, boot_id, spool_id, term,
                               slots, gpus, memory_bytes, slot_held, assigned_at, started_at,
                               ended_at, duration_us, outcome_kind, outcome_cause,
                               outcome_message, exit_code, log_end)
         select fence, id, 1, 'ended', $2, 'boot', $2, 1, 1, 0, 0, false, $3, $3, $4, 65000000,
                'succeeded', 'exit', 'exited with 0', 0, $5
         from jobs where id = $1
         returning fence",
    )
    .bind(job)
    .bind(worker)
    .bind(started)
    .bind(now)
    .bind(log.len() as i64)
    .fetch_one(&mut *db)
    .await
    .unwrap();
    let lines = log.iter().filter(|byte| **byte == b'\n').count() as i64;
    sqlx::query("insert into attempts_live (fence, log_stored, log_lines) values ($1, $2, $3)")
        .bind(fence)
        .bind(log.len() as i64)
        .bind(lines)
        .execute(&mut *db)
        .await
        .unwrap();
    sqlx::query(
        "create table if not exists log_chunks_test partition of log_chunks
         for values from ('2020-01-01') to ('2020-01-02')",
    )
    .execute(&mut *db)
    .await
    .unwrap();
    sqlx::query(
        r#"insert into log_chunks (day, fence, "offset", length, first_line, runs, data, crc32c)
           values ($1, $2, 0, $3, 0, $4, $5, $6)"#,
    )
    .bind(day)
    .bind(fence)
    .bind(log.len() as i32)
    .bind(Json(vec![(1, log.len(), started.timestamp_micros())]))
    .bind(zstd::bulk::compress(log, 1).unwrap())
    .bind(i64::from(crc32c::crc32c(log)))
    .execute(&mut *db)
    .await
    .unwrap();
    job
}

fn hostname() -> String {
    let name = rustix::system::uname();
    name.nodename().to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_job_is_shown_with_its_output_and_its_pictures() {
    let coordinator = Coordinator::start().await;
    let workspace = tempfile::tempdir().unwrap();
    std::fs::create_dir(workspace.path().join("out")).unwrap();
    std::fs::write(workspace.path().join("out/cut 1.png"), PNG).unwrap();
    std::fs::write(workspace.path().join("secret.png"), PNG).unwrap();
    let mut db = coordinator.connect().await;
    let log = b"10%\r100%\n\x1b[32mok\x1b[0m <script>\n";
    let spec = spec("extract", "INTG-088", workspace.path());
    let job = ended_job(&mut db, &spec, &hostname(), log).await;

    let answer = coordinator.get(&format!("/jobs/{job}")).await;
    let page = answer.text();
    assert_eq!(answer.code, 200, "{page}");
    for expected in [
        "<span class=\"pill succeeded\">succeeded</span>",
        "extract",
        "exited with 0",
        "1 min 05 s",
        "href=\"/tracker/INTG-088\"",
        "sh -c 'echo '\\''&lt;b&gt;'\\'''",
        "100%\n<span class=\"c2\">ok</span> &lt;script&gt;",
        "/artifacts/0/cut%201.png",
        "data-every=\"never\"",
    ] {
        assert!(page.contains(expected), "{expected} is not in {page}");
    }
    assert!(!page.contains("10%\r"), "frames are collapsed");
    let policy = answer.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));

    let picture = coordinator
        .get(&format!("/jobs/{job}/artifacts/0/cut%201.png"))
        .await;
    assert_eq!(picture.code, 200);
    assert_eq!(picture.header("content-type"), Some("image/png"));
    assert_eq!(picture.body, PNG);
    for below in ["..%2Fsecret.png", "../secret.png", "absent.png"] {
        let path = format!("/jobs/{job}/artifacts/0/{below}");
        assert_eq!(coordinator.get(&path).await.code, 404, "{below}");
    }

    let live = coordinator.get(&format!("/jobs/{job}/live")).await;
    assert_eq!(live.header("qctl-refresh"), Some("never"));
    assert!(live.text().starts_with("<main id=\"live\""));
    coordinator.stop().await;
}

#[tokio::test]
async fn results_on_another_machine_are_named_and_not_read() {
    let coordinator = Coordinator::start().await;
    let workspace = tempfile::tempdir().unwrap();
    std::fs::create_dir(workspace.path().join("out")).unwrap();
    std::fs::write(workspace.path().join("out/a.png"), PNG).unwrap();
    let mut db = coordinator.connect().await;
    let spec = spec("far away", "", workspace.path());
    let job = ended_job(&mut db, &spec, "another.example", b"x\n").await;
    let page = coordinator.get(&format!("/jobs/{job}")).await.text();
    assert!(page.contains("worker on another.example"));
    assert!(!page.contains("<img"), "{page}");
    let picture = format!("/jobs/{job}/artifacts/0/a.png");
    assert_eq!(coordinator.get(&picture).await.code, 404);
    coordinator.stop().await;
}

#[tokio::test]
async fn the_queue_and_a_tracker_list_their_jobs() {
    let coordinator = Coordinator::start().await;
    let empty = coordinator.get("/").await;
    assert_eq!(empty.code, 200);
    assert!(empty.text().contains("No jobs yet"), "{}", empty.text());

    let mut db = coordinator.connect().await;
    let folder = Path::new("/");
    let first = ended_job(&mut db, &spec("one", "INTG-088", folder), "h", b"1\n").await;
    let second = ended_job(&mut db, &spec("two", "INTG-088", folder), "h", b"2\n").await;
    let page = coordinator.get("/").await.text();
    for expected in [format!("/jobs/{first}"), "worker on h".to_owned()] {
        assert!(page.contains(&expected), "{expected} is not in {page}");
    }
    // Without the zero, too.
    for spelling in ["INTG-088", "intg-88"] {
        let page = coordinator
            .get(&format!("/tracker/{spelling}"))
            .await
            .text();
        for expected in [
            "<h1>INTG-088</h1>".to_owned(),
            "<b>2</b> succeeded".to_owned(),
            format!("href=\"/jobs/{second}\""),
        ] {
            assert!(page.contains(&expected), "{expected} is not in {page}");
        }
    }
    for absent in [
        "/tracker/INTG-089",
        "/jobs/999",
        "/jobs/x",
        "/nothing",
        "/jobs",
    ] {
        let answer = coordinator.get(absent).await;
        assert_eq!(answer.code, 404, "{absent}");
        assert!(answer.text().contains("<h1>No "), "{}", answer.text());
    }
    coordinator.stop().await;
}

#[tokio::test]
async fn the_key_opens_the_door_and_nothing_else_does() {
    let coordinator = Coordinator::start().await;
    let closed = coordinator.request("/jobs/1", &[]).await;
    assert_eq!(closed.code, 401);
    assert!(closed.text().contains("opens with a link"));
    let wrong = coordinator.request("/jobs/1?k=wrong", &[]).await;
    assert_eq!(wrong.code, 401);
    assert!(wrong.text().contains("not the coordinator"));

    let key = coordinator.key.clone();
    let opened = coordinator.request(&format!("/jobs/1?k={key}"), &[]).await;
    assert_eq!(opened.code, 303);
    assert_eq!(opened.header("location"), Some("/jobs/1"));
    let cookie = opened.header("set-cookie").unwrap();
    assert!(cookie.contains("HttpOnly; SameSite=Lax"), "{cookie}");
    assert!(!cookie.contains("Secure"), "it came over plain HTTP");
    let public = [("Host", "queue.example.net")];
    let proxied = coordinator.request(&format!("/?k={key}"), &public).await;
    assert!(proxied.header("set-cookie").unwrap().contains("; Secure"));

    for strange in ["evil.example", "evil.example:7420"] {
        let answer = coordinator
            .request(&format!("/?k={key}"), &[("Host", strange)])
            .await;
        assert_eq!(answer.code, 421, "{strange}");
    }
    let origin = [("Origin", "https://evil.example")];
    let answer = coordinator.request(&format!("/?k={key}"), &origin).await;
    assert_eq!(answer.code, 421);
    let style = coordinator.request("/assets/page.css", &[]).await;
    assert_eq!(
        style.header("content-type"),
        Some("text/css; charset=utf-8")
    );
    coordinator.stop().await;
}
