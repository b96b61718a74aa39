//! Sessions of workers over the wire.

use qctl_proto::error::{Fault, Reason};
use qctl_proto::v1;
use qctl_proto::v1::open_session_request::Message as Say;
use qctl_proto::v1::open_session_response::Message as Hear;
use sqlx::PgPool;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use uuid::Uuid;

use super::testing::{Coordinator, eventually, soon};
use crate::app::{Role, Settings};

struct Wire {
    say: mpsc::Sender<v1::OpenSessionRequest>,
    hear: Streaming<v1::OpenSessionResponse>,
}

impl Wire {
    async fn open(coordinator: &Coordinator, first: Say) -> Result<Self, Status> {
        let (say, requests) = mpsc::channel(64);
        let wire = |message| v1::OpenSessionRequest {
            message: Some(message),
        };
        say.send(wire(first)).await.expect("room");
        let mut client = coordinator.workers();
        let opened = client.open_session(ReceiverStream::new(requests));
        let hear = soon("an answer", opened).await?.into_inner();
        Ok(Self { say, hear })
    }

    async fn say(&self, message: Say) {
        let request = v1::OpenSessionRequest {
            message: Some(message),
        };
        self.say.send(request).await.expect("an open session");
    }

    async fn hear(&mut self) -> Hear {
        soon("a message", self.hear.message())
            .await
            .expect("an open session")
            .and_then(|response| response.message)
            .expect("a message")
    }
}

fn hello(name: &str) -> v1::Hello {
    v1::Hello {
        protocol: qctl_proto::PROTOCOL_VERSION,
        worker_id: Uuid::new_v4().to_string(),
        name: name.to_owned(),
        hostname: "host".to_owned(),
        boot_id: "boot".to_owned(),
        spool_id: Uuid::new_v4().to_string(),
        version: "0.1.0".to_owned(),
        slots: 1,
        cpus: 2,
        ..v1::Hello::default()
    }
}

fn spec() -> v1::JobSpec {
    v1::JobSpec {
        command: vec!["true".to_owned()],
        cwd: "/".to_owned(),
        ..v1::JobSpec::default()
    }
}

async fn submit(coordinator: &Coordinator, spec: v1::JobSpec) -> i64 {
    let request = v1::SubmitJobsRequest {
        jobs: vec![spec],
        ..v1::SubmitJobsRequest::default()
    };
    let response = coordinator
        .jobs()
        .submit_jobs(request)
        .await
        .expect("submitted");
    response.into_inner().jobs[0].id
}

fn reason(opened: Result<Wire, Status>) -> (Code, Reason) {
    match opened {
        Ok(_) => panic!("the session was opened"),
        Err(status) => {
            let fault = Fault::from_status(&status).expect("a fault");
            (status.code(), fault.reason)
        }
    }
}

#[sqlx::test]
async fn a_job_crosses_the_wire_and_back(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let mut wire = Wire::open(&coordinator, Say::Hello(hello("w")))
        .await
        .expect("opened");
    let Hear::Welcome(welcome) = wire.hear().await else {
        panic!("no welcome");
    };
    assert_eq!((welcome.term, welcome.slots), (1, 1));
    assert_eq!(
        welcome.heartbeat_interval.map(|interval| interval.seconds),
        Some(5)
    );
    wire.say(Say::Heartbeat(v1::Heartbeat {
        sequence: 3,
        load: Some(0.5),
        memory_used_bytes: None,
        ..v1::Heartbeat::default()
    }))
    .await;
    let ack = wire.hear().await;
    assert!(matches!(ack, Hear::HeartbeatAck(ack) if (ack.sequence, ack.term) == (3, 1)));
    let job = submit(&coordinator, spec()).await;
    let Hear::Assign(assign) = wire.hear().await else {
        panic!("no assignment");
    };
    let assignment = &assign.assignments[0];
    assert_eq!(
        (assignment.job_id, assignment.attempt, assignment.term),
        (job, 1, 1)
    );
    let fence = assignment.fence;
    wire.say(Say::Started(v1::AttemptStarted {
        fence,
        pid: 17,
        started_at: None,
        not_enforced: vec!["memory\0 is only watched".to_owned()],
    }))
    .await;
    // What the job printed may be in what the worker says of it.
    let progress = v1::Progress {
        done: 1.0,
        message: "a\0b".to_owned(),
        ..v1::Progress::default()
    };
    wire.say(Say::Progress(v1::ProgressReported {
        fence,
        progress: Some(progress),
    }))
    .await;
    wire.say(Say::Ended(v1::AttemptEnded {
        fence,
        end: v1::attempt_ended::End::Waited.into(),
        exit_code: Some(3),
        message: format!("nul\0 and {}", "ü".repeat(10_000)),
        ..v1::AttemptEnded::default()
    }))
    .await;
    let committed = wire.hear().await;
    assert!(matches!(committed, Hear::ResultCommitted(committed) if committed.fence == fence));
    let request = v1::GetJobRequest { id: job };
    let response = coordinator
        .jobs()
        .get_job(request)
        .await
        .expect("job")
        .into_inner();
    let attempt = &response.attempts[0];
    assert_eq!(attempt.pid, 17);
    assert_eq!(attempt.not_enforced, ["memory is only watched"]);
    let outcome = attempt.outcome.as_ref().expect("an outcome");
    assert_eq!(
        (outcome.exit_code, outcome.kind()),
        (Some(3), v1::outcome::Kind::Failed)
    );
    assert!(outcome.message.starts_with("exit 3: nul and ü") && outcome.message.len() < 9_000);
}

#[sqlx::test]
async fn who_may_not_open_a_session_is_told_why(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let refused = async |first| reason(Wire::open(&coordinator, first).await);
    let old = v1::Hello {
        protocol: 99,
        ..hello("w")
    };
    let mismatch = (Code::FailedPrecondition, Reason::ProtocolMismatch);
    assert_eq!(refused(Say::Hello(old)).await, mismatch);
    let invalid = (Code::InvalidArgument, Reason::InvalidField);
    assert_eq!(
        refused(Say::Heartbeat(v1::Heartbeat::default())).await,
        invalid
    );
    let nameless = v1::Hello {
        worker_id: "w".to_owned(),
        ..hello("w")
    };
    assert_eq!(refused(Say::Hello(nameless)).await, invalid);
    let first = hello("w");
    let _open = Wire::open(&coordinator, Say::Hello(first.clone()))
        .await
        .expect("opened");
    let namesake = (Code::AlreadyExists, Reason::WorkerNameTaken);
    assert_eq!(refused(Say::Hello(hello("w"))).await, namesake);
    let copy = v1::Hello {
        spool_id: Uuid::new_v4().to_string(),
        ..first
    };
    assert_eq!(
        refused(Say::Hello(copy)).await,
        (Code::AlreadyExists, Reason::SpoolInUse)
    );
}

#[sqlx::test]
async fn only_workers_may_open_sessions(pool: PgPool) {
    let coordinator = Coordinator::start_as(&pool, Role::Operate, Settings::default()).await;
    let opened = Wire::open(&coordinator, Say::Hello(hello("w"))).await;
    assert_eq!(
        reason(opened),
        (Code::PermissionDenied, Reason::PermissionDenied)
    );
}

#[sqlx::test]
async fn a_new_session_closes_the_old_one(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let same = hello("w");
    let mut old = Wire::open(&coordinator, Say::Hello(same.clone()))
        .await
        .expect("opened");
    assert!(matches!(old.hear().await, Hear::Welcome(_)));
    let mut new = Wire::open(&coordinator, Say::Hello(same))
        .await
        .expect("opened");
    assert!(matches!(new.hear().await, Hear::Welcome(_)));
    let end = soon("the end", old.hear.message())
        .await
        .expect_err("closed");
    assert_eq!(end.code(), Code::Aborted);
    submit(&coordinator, spec()).await;
    assert!(matches!(new.hear().await, Hear::Assign(_)));
    // A worker that hangs up is gone.
    drop(new);
    eventually("the goodbye", async || {
        coordinator.app.sessions.connected().is_empty()
    })
    .await;
}

#[sqlx::test]
async fn large_assignments_are_sent_one_by_one(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let jobs = (0..3).map(|_| v1::JobSpec {
        command: vec!["true".to_owned(), "x".repeat(3 << 20)],
        ..spec()
    });
    let request = v1::SubmitJobsRequest {
        jobs: jobs.collect(),
        ..v1::SubmitJobsRequest::default()
    };
    coordinator
        .jobs()
        .submit_jobs(request)
        .await
        .expect("submitted");
    let wide = v1::Hello {
        slots: 3,
        ..hello("w")
    };
    let mut wire = Wire::open(&coordinator, Say::Hello(wide))
        .await
        .expect("opened");
    assert!(matches!(wire.hear().await, Hear::Welcome(_)));
    for _ in 0..3 {
        let Hear::Assign(assign) = wire.hear().await else {
            panic!("no assignment");
        };
        assert_eq!(assign.assignments.len(), 1);
    }
}
