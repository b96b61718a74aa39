//! The program as people and service managers run it.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use qctl_proto::client::Target;
use qctl_proto::error::{Fault, Reason};
use qctl_proto::home::Home;
use qctl_proto::v1::ListJobsRequest;
use qctl_proto::v1::job_service_client::JobServiceClient;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A certificate for 127.0.0.1 that nobody trusts outside these tests, good for a hundred years.
const CERTIFICATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cert.pem");
const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/key.pem");

struct Program {
    home: tempfile::TempDir,
    child: Child,
}

impl Program {
    fn command(home: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qctl-server"));
        command
            .env_remove("DATABASE_URL")
            .env_remove("NOTIFY_SOCKET")
            .env("QCTL_HOME", home)
            .env("QCTL_LISTEN", "127.0.0.1:0")
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    fn home() -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        // Postgres runs as another account when the tests run as root.
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        home
    }

    fn start(settings: impl FnOnce(&mut Command)) -> Self {
        let home = Self::home();
        let mut command = Self::command(home.path());
        settings(&mut command);
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        let mut program = Self { home, child };
        eventually("the coordinator listens", || {
            assert!(program.child.try_wait().unwrap().is_none(), "it ended");
            program.address_file().exists()
        });
        program
    }

    fn address_file(&self) -> PathBuf {
        Home::at(self.home.path()).address_file()
    }

    fn target(&self) -> Target {
        let home = Home::at(self.home.path());
        let read = |path| std::fs::read_to_string(path).unwrap().trim().to_owned();
        Target {
            address: read(home.address_file()),
            token: read(home.token_file()),
            authority: None,
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the coordinator ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    // A cluster is synced to the disk with whatever else is on its way there.
    let deadline = Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs it to its end, which comes at once, and gives its exit code and what it said.
fn refused(settings: impl FnOnce(&mut Command)) -> (Option<i32>, String) {
    let home = Program::home();
    let mut command = Program::command(home.path());
    settings(&mut command);
    let output = command.output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn a_stop_that_was_asked_for_leaves_nothing_behind() {
    let mut program = Program::start(|_| {});
    let pid_file = program.home.path().join("data/database/pg/postmaster.pid");
    assert!(pid_file.exists());
    program.signal(Signal::TERM);
    assert_eq!(program.wait().code(), Some(0));
    assert!(!program.address_file().exists());
    assert!(!pid_file.exists(), "Postgres stopped in order");
}

#[test]
fn a_service_manager_is_told_when_it_is_ready_and_when_it_stops() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let mut program = Program::start(|command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    let told = || {
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    assert_eq!(told(), "READY=1");
    program.signal(Signal::INT);
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(program.wait().code(), Some(0));
}

#[test]
fn a_second_one_on_the_same_home_is_refused_and_the_first_stays_reachable() {
    let program = Program::start(|_| {});
    let address = std::fs::read_to_string(program.address_file()).unwrap();
    let output = Program::command(program.home.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let first = format!("another coordinator (process {})", program.child.id());
    assert!(said.contains(&first), "{said}");
    assert_eq!(
        std::fs::read_to_string(program.address_file()).unwrap(),
        address
    );
}

#[test]
fn wrong_configuration_is_explained_and_exits_with_2() {
    let (code, said) = refused(|command| {
        command.env("QCTL_LISTEN", "0.0.0.0:0");
    });
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("needs TLS"), "{said}");

    let (code, said) = refused(|command| {
        command.arg("--listen").arg("nowhere");
    });
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("`nowhere`"), "{said}");

    let home = Program::home();
    let file = Home::at(home.path()).config_file("server.toml");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "listne = \"127.0.0.1:1\"\n").unwrap();
    let output = Program::command(home.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("listne") && said.contains("server.toml"),
        "{said}"
    );
}

#[test]
fn a_taken_port_and_an_absent_database_are_explained_and_exit_with_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, said) = refused(|command| {
        command.env("QCTL_LISTEN", &address);
    });
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains(&format!("cannot listen on {address}")),
        "{said}"
    );

    let (code, said) = refused(|command| {
        command.env("DATABASE_URL", "postgres://me:secret@127.0.0.1:1/none");
    });
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("127.0.0.1:1, database none"), "{said}");
    assert!(!said.contains("secret"), "{said}");
}

#[test]
fn the_configuration_is_printed_without_starting_anything() {
    let home = Program::home();
    let output = Program::command(home.path())
        .arg("--print-config")
        .env("DATABASE_URL", "postgres://me:secret@db/q")
        .output()
        .unwrap();
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("listen = \"127.0.0.1:0\""), "{printed}");
    assert!(!printed.contains("secret"), "{printed}");
    assert!(!home.path().join("data").exists());
}

async fn list_jobs(target: &Target) -> Result<usize, Fault> {
    let channel = target.connect().await.unwrap();
    JobServiceClient::new(channel)
        .list_jobs(ListJobsRequest::default())
        .await
        .map(|answer| answer.into_inner().jobs.len())
        .map_err(|status| Fault::from_status(&status).unwrap_or_else(|| panic!("{status}")))
}

#[tokio::test]
async fn calls_need_the_token() {
    let program = Program::start(|_| {});
    let mut target = program.target();
    assert_eq!(list_jobs(&target).await, Ok(0));
    target.token = "not the token, but as long as one".to_owned();
    let fault = list_jobs(&target).await.unwrap_err();
    assert_eq!(fault.reason, Reason::Unauthenticated);
    assert!(fault.hint.is_some());
}

#[tokio::test]
async fn tls_serves_calls_and_pages_on_one_port() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let program = Program::start(|command| {
        command.env("QCTL_LISTEN", "0.0.0.0:0");
        command.env("QCTL_TLS_CERT", CERTIFICATE);
        command.env("QCTL_TLS_KEY", KEY);
    });
    let mut target = program.target();
    assert!(target.address.starts_with("https://127.0.0.1:"));
    target.authority = Some(CERTIFICATE.into());
    assert_eq!(list_jobs(&target).await, Ok(0));

    // A browser that speaks HTTP/1.1, and one that does not speak TLS at all.
    let address = target.address.strip_prefix("https://").unwrap();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(CERTIFICATE).unwrap();
    let certificate =
        <rustls::pki_types::CertificateDer as rustls::pki_types::pem::PemObject>::from_pem_slice(
            &pem,
        );
    roots.add(certificate.unwrap()).unwrap();
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config))
        .connect("127.0.0.1".try_into().unwrap(), stream)
        .await
        .unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The end of the connection may come without a farewell.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");

    let mut plain = tokio::net::TcpStream::connect(address).await.unwrap();
    plain.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "nothing is told in the clear");
}
