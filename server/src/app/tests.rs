//! The writing side on a real Postgres, with workers played by the test.

mod alarms;
mod faults;
mod gpus;
mod late;
#[allow(
    dead_code,
    reason = "several test programs share it, and none uses all of it"
)]
#[path = "../../../tests/harness/proxy.rs"]
mod proxy;
mod standstill;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use qctl_server_core::ledger::{EndedReport, Message, What};
use qctl_server_core::outcome::End;
use qctl_server_core::reconcile::{Action, Held};
use qctl_server_core::{
    AttemptState, Condition, Demand, Dependency, Facts, Fence, JobId, JobSpec, JobState, StopCause,
    Term, WorkerId,
};
use sqlx::PgPool;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::links::Links;
use super::read::WorkerMode;
use super::{About, App, Caller, Clock, Error, Hello, ManualClock, Parts, Report, Role, Settings};
use crate::sessions::{Assignment, Outbox, SessionId, ToWorker};
use crate::store::fixtures::noon;
use crate::store::{Dedicated, Lease, Store};

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

struct Coordinator {
    app: Arc<App>,
    clock: ManualClock,
    pool: PgPool,
    user: Caller,
    _stop: DropGuard,
}

impl Coordinator {
    fn start(pool: PgPool) -> Self {
        Self::start_with(pool, Settings::default())
    }

    fn start_with(pool: PgPool, settings: Settings) -> Self {
        let stop = CancellationToken::new();
        let (clock, moved) = Clock::manual(noon());
        let app = App::start(
            Parts {
                // Nobody has led a fresh database.
                store: Store::new(pool.clone(), Lease::unlimited(Term(0))),
                clock,
                links: Links::new("http://queue.test", "key"),
                settings,
                started_at: noon(),
                about: About {
                    database: "PostgreSQL (test)".to_owned(),
                    templates_file: PathBuf::from("/nonexistent/templates.toml"),
                },
            },
            stop.clone(),
        );
        crate::reconcilers::start(&app);
        Self {
            app,
            clock: moved,
            pool,
            user: Caller {
                name: "alice".to_owned(),
                role: Role::Admin,
            },
            _stop: stop.drop_guard(),
        }
    }

    async fn submit(&self, specs: Vec<JobSpec>) -> Vec<JobId> {
        self.app
            .submit(&self.user, "", specs)
            .await
            .expect("submitted")
            .jobs
    }

    async fn one(&self, spec: JobSpec) -> JobId {
        self.submit(vec![spec]).await[0]
    }

    async fn worker(&self, name: &str, slots: i32) -> Worker {
        let hello = hello(name, slots);
        self.connect(hello).await
    }

    async fn connect(&self, hello: Hello) -> Worker {
        let (worker, _) = self.connect_and_hear(hello).await;
        worker
    }

    async fn connect_and_hear(&self, hello: Hello) -> (Worker, Vec<(Fence, Action)>) {
        let greeting = self.app.greet(hello.clone()).await.expect("greeted");
        let verdicts = greeting
            .verdicts
            .iter()
            .map(|answer| (answer.fence, answer.action))
            .collect();
        let worker = Worker {
            app: Arc::clone(&self.app),
            session: greeting.outbox.session,
            outbox: greeting.outbox,
            hello,
            ready: VecDeque::new(),
        };
        (worker, verdicts)
    }

    async fn state(&self, job: JobId) -> (JobState, String) {
        let (state, reason): (String, String) =
            sqlx::query_as("select state, reason from jobs where id = $1")
                .bind(job.0)
                .fetch_one(&self.pool)
                .await
                .expect("job");
        (JobState::parse(&state).expect("state"), reason)
    }

    async fn becomes(&self, job: JobId, wanted: JobState) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let (state, reason) = self.state(job).await;
            if state == wanted {
                return;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "job {job} is {state} ({reason}), not {wanted}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn count(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query)
            .fetch_one(&self.pool)
            .await
            .expect("count")
    }

    async fn history(&self, job: JobId) -> Vec<String> {
        sqlx::query_scalar("select kind from events where job_id = $1 order by id")
            .bind(job.0)
            .fetch_all(&self.pool)
            .await
            .expect("history")
    }
}

struct Worker {
    app: Arc<App>,
    session: SessionId,
    outbox: Outbox,
    hello: Hello,
    /// Assignments that came and were not looked at yet.
    ready: VecDeque<Assignment>,
}

impl Worker {
    /// Sends a heartbeat.
    fn lives(&self) {
        self.app
            .heartbeat(self.hello.worker, self.session, None, None);
    }

    async fn next(&mut self) -> ToWorker {
        tokio::time::timeout(PATIENCE, self.outbox.messages.recv())
            .await
            .expect("a message in time")
            .expect("an open session")
    }

    async fn assigned(&mut self) -> Assignment {
        loop {
            if let Some(assignment) = self.ready.pop_front() {
                return assignment;
            }
            match self.next().await {
                ToWorker::Assign(assignments) => self.ready.extend(assignments),
                ToWorker::Attempt(Message::ResultCommitted(_)) => {}
                other => panic!("{other:?} instead of an assignment"),
            }
        }
    }

    fn has_nothing_to_read(&mut self) {
        if let Ok(message) = self.outbox.messages.try_recv() {
            panic!("{message:?}");
        }
    }

    async fn say(&self, fence: Fence, what: What) {
        let report = Report {
            worker: self.hello.worker,
            session: self.session,
            fence,
            what,
        };
        self.app.report(report).await.expect("taken");
    }

    async fn started(&self, fence: Fence) {
        let what = What::Started {
            pid: 4_711,
            started_at: None,
            not_enforced: Vec::new(),
        };
        self.say(fence, what).await;
    }

    async fn ended(&self, fence: Fence, facts: Facts) {
        self.say(fence, What::Ended(Box::new(result(facts)))).await;
    }

    async fn freed(&self, fence: Fence) {
        self.say(fence, What::SlotFreed).await;
    }

    async fn committed(&mut self, fence: Fence) {
        loop {
            if let ToWorker::Attempt(Message::ResultCommitted(committed)) = self.next().await {
                assert_eq!(committed, fence);
                return;
            }
        }
    }

    async fn run(&mut self, fence: Fence, facts: Facts) {
        self.started(fence).await;
        self.ended(fence, facts).await;
        self.freed(fence).await;
    }

    async fn leave(self) -> Hello {
        self.app.farewell(self.hello.worker, &self.outbox).await;
        self.hello
    }
}

fn hello(name: &str, slots: i32) -> Hello {
    Hello {
        alarms: Default::default(),
        worker: WorkerId(Uuid::new_v4()),
        name: name.to_owned(),
        hostname: format!("{name}.test"),
        boot_id: "boot-1".to_owned(),
        spool_id: Uuid::new_v4(),
        version: "0.1.0".to_owned(),
        slots: Some(slots),
        gpus: Vec::new(),
        memory_bytes: 1 << 30,
        cpus: 2,
        greeting: 0,
        adopted: Vec::new(),
        held: Vec::new(),
        checkpoints: Vec::new(),
    }
}

fn result(facts: Facts) -> EndedReport {
    EndedReport {
        facts,
        started_at: None,
        ended_at: None,
        duration: Some(Duration::from_millis(3)),
        pid: None,
        log_end: 0,
        log_crc32c: 0,
        not_enforced: Vec::new(),
    }
}

fn exit(code: i32) -> Facts {
    Facts {
        exit_code: Some(code),
        ..Facts::of(End::Waited)
    }
}

fn spec(name: &str) -> JobSpec {
    JobSpec {
        name: name.to_owned(),
        command: vec!["true".to_owned()],
        cwd: "/".to_owned(),
        ..JobSpec::default()
    }
}

fn after(on: &[(i64, Condition)]) -> Vec<Dependency> {
    on.iter()
        .map(|(job, condition)| Dependency {
            job: JobId(*job),
            condition: *condition,
        })
        .collect()
}

fn held(fence: Fence, state: AttemptState) -> Held {
    Held {
        fence,
        state,
        slot_held: state != AttemptState::Ended,
    }
}

#[sqlx::test]
async fn a_job_runs_from_submission_to_its_end(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("w", 1).await;
    let job = queue.one(spec("a")).await;
    let assignment = worker.assigned().await;
    assert_eq!((assignment.job, assignment.number.0), (job, 1));
    assert_eq!(
        (assignment.boot_id.as_str(), assignment.spec.name.as_str()),
        ("boot-1", "a")
    );
    assert_eq!(
        queue.state(job).await,
        (JobState::Queued, "assigned".to_owned())
    );
    worker.started(assignment.fence).await;
    queue.becomes(job, JobState::Running).await;
    worker.ended(assignment.fence, exit(0)).await;
    worker.committed(assignment.fence).await;
    assert_eq!(queue.state(job).await.0, JobState::Succeeded);
    assert_eq!(
        queue.history(job).await,
        ["submitted", "assigned", "started", "ended"]
    );
    // The same result a second time changes nothing and is acknowledged.
    worker.ended(assignment.fence, exit(1)).await;
    worker.committed(assignment.fence).await;
    assert_eq!(queue.state(job).await.0, JobState::Succeeded);
    assert_eq!(queue.history(job).await.len(), 4);
}

#[sqlx::test]
async fn jobs_run_in_the_order_of_priority_and_submission(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut jobs = Vec::new();
    for number in 0..6 {
        jobs.push(queue.one(spec(&format!("plain-{number}"))).await);
    }
    let urgent = JobSpec {
        priority: 5,
        ..spec("urgent")
    };
    jobs.insert(0, queue.one(urgent).await);
    let mut worker = queue.worker("w", 1).await;
    let mut order = Vec::new();
    for _ in 0..jobs.len() {
        let assignment = worker.assigned().await;
        order.push(assignment.job);
        worker.run(assignment.fence, exit(0)).await;
    }
    assert_eq!(order, jobs);
}

#[sqlx::test]
async fn a_quick_worker_has_its_next_job_ready(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let jobs = queue
        .submit((0..3).map(|number| spec(&number.to_string())).collect())
        .await;
    let mut worker = queue.worker("w", 1).await;
    let first = worker.assigned().await;
    worker.run(first.fence, exit(0)).await;
    let second = worker.assigned().await;
    // The second one runs, and the third is there before it has ended.
    let third = worker.assigned().await;
    assert_eq!([first.job, second.job, third.job], jobs[..]);
    // A better one takes its place.
    let urgent = queue
        .one(JobSpec {
            priority: 1,
            ..spec("urgent")
        })
        .await;
    let revoked = worker.next().await;
    let revoked = match revoked {
        ToWorker::Attempt(Message::ResultCommitted(_)) => worker.next().await,
        other => other,
    };
    assert!(
        matches!(revoked, ToWorker::Attempt(Message::Revoke(fence)) if fence == third.fence),
        "{revoked:?}"
    );
    let returned = What::Returned {
        returned: true,
        message: String::new(),
    };
    worker.say(third.fence, returned).await;
    assert_eq!(worker.assigned().await.job, urgent);
    assert_eq!(queue.state(third.job).await.0, JobState::Queued);
}

#[sqlx::test]
async fn the_first_job_that_does_not_fit_reserves_the_worker(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("w", 2).await;
    let wide = |name: &str, slots| JobSpec {
        demand: Demand {
            slots,
            ..Demand::default()
        },
        ..spec(name)
    };
    let first = queue.one(wide("first", 1)).await;
    let running = worker.assigned().await;
    worker.started(running.fence).await;
    queue.becomes(first, JobState::Running).await;
    let impossible = queue.one(wide("impossible", 3)).await;
    let wide_job = queue.one(wide("wide", 2)).await;
    let narrow = queue.one(wide("narrow", 1)).await;
    queue
        .app
        .dispatch_round(&mut Dedicated::default())
        .await
        .expect("round");
    worker.has_nothing_to_read();
    worker.ended(running.fence, exit(0)).await;
    worker.freed(running.fence).await;
    assert_eq!(worker.assigned().await.job, wide_job);
    for waiting in [impossible, narrow] {
        assert_eq!(queue.state(waiting).await.0, JobState::Queued);
    }
}

#[sqlx::test]
async fn the_same_submission_a_hundred_times_makes_one_job(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let calls = (0..100).map(|_| {
        let (app, user) = (Arc::clone(&queue.app), queue.user.clone());
        tokio::spawn(async move { app.submit(&user, "once", vec![spec("a")]).await })
    });
    let mut made = 0;
    let mut jobs = Vec::new();
    for call in calls.collect::<Vec<_>>() {
        let submitted = call.await.expect("joined").expect("submitted");
        made += usize::from(!submitted.replayed);
        jobs.extend(submitted.jobs);
    }
    jobs.dedup();
    assert_eq!((made, jobs.len()), (1, 1));
    assert_eq!(queue.count("select count(*) from jobs").await, 1);
    let other = queue.app.submit(&queue.user, "once", vec![spec("b")]).await;
    assert!(matches!(other, Err(Error::RequestIdReused(id)) if id == "once"));
    let bob = Caller {
        name: "bob".to_owned(),
        role: Role::Submit,
    };
    assert!(
        !queue
            .app
            .submit(&bob, "once", vec![spec("b")])
            .await
            .expect("bob's")
            .replayed
    );
}

#[sqlx::test]
async fn a_batch_is_stored_whole_or_not_at_all(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let chain = |on: i64| JobSpec {
        after: after(&[(on, Condition::Ok)]),
        ..spec("next")
    };
    let jobs = queue
        .submit(vec![spec("first"), chain(-1), chain(-2)])
        .await;
    assert!(jobs.is_sorted());
    assert_eq!(
        queue.state(jobs[1]).await,
        (JobState::Waiting, "dependency".to_owned())
    );
    let broken = JobSpec {
        cwd: "relative".to_owned(),
        ..spec("broken")
    };
    let field = |result: Result<_, Error>| match result {
        Err(Error::InvalidField { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    let submit = async |specs| queue.app.submit(&queue.user, "", specs).await;
    assert_eq!(field(submit(vec![spec("a"), broken]).await), "jobs[1].cwd");
    assert_eq!(
        field(submit(vec![spec("a"), chain(-2)]).await),
        "jobs[1].after[0]"
    );
    assert_eq!(
        field(submit(vec![spec("a"), chain(999)]).await),
        "jobs[1].after[0]"
    );
    assert_eq!(queue.count("select count(*) from jobs").await, 3);
    let reader = Caller {
        name: "carol".to_owned(),
        role: Role::Read,
    };
    let refused = queue.app.submit(&reader, "", vec![spec("a")]).await;
    assert!(matches!(refused, Err(Error::PermissionDenied { .. })));
}

#[sqlx::test]
async fn dependents_follow_and_what_can_never_run_is_cancelled(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let on = |job: JobId, condition| JobSpec {
        after: after(&[(job.0, condition)]),
        ..spec("dependent")
    };
    let failing = JobSpec {
        retries: Some(0),
        ..spec("failing")
    };
    let first = queue.one(failing).await;
    let on_ok = queue.one(on(first, Condition::Ok)).await;
    let on_failed = queue.one(on(first, Condition::Failed)).await;
    let behind = queue.one(on(on_ok, Condition::Ok)).await;
    let mut worker = queue.worker("w", 1).await;
    let assignment = worker.assigned().await;
    assert_eq!(assignment.job, first);
    worker.run(assignment.fence, exit(7)).await;
    queue.becomes(first, JobState::Failed).await;
    queue.becomes(on_ok, JobState::Cancelled).await;
    queue.becomes(behind, JobState::Cancelled).await;
    assert_eq!(queue.state(behind).await.1, "dependency_failed");
    assert_eq!(worker.assigned().await.job, on_failed);
    let late = queue
        .app
        .submit(&queue.user, "", vec![on(first, Condition::Ok)])
        .await;
    assert!(matches!(late, Err(Error::DependencyImpossible { on, .. }) if on == first));
    let met = queue.one(on(first, Condition::Any)).await;
    assert_eq!(queue.state(met).await.0, JobState::Queued);
}

#[sqlx::test]
async fn a_failure_is_tried_again_after_its_wait(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("w", 1).await;
    let job = queue.one(spec("a")).await;
    let first = worker.assigned().await;
    worker.run(first.fence, exit(1)).await;
    queue.becomes(job, JobState::Waiting).await;
    assert_eq!(queue.state(job).await.1, "retry_backoff");
    queue.app.queue_due().await.expect("looked");
    assert_eq!(queue.state(job).await.0, JobState::Waiting);
    queue.clock.advance(Duration::from_secs(60));
    queue.app.queue_due().await.expect("looked");
    worker.lives();
    let second = worker.assigned().await;
    assert_eq!((second.job, second.number.0), (job, 2));
    assert!(second.fence > first.fence);
    worker.run(second.fence, Facts::of(End::CannotStart)).await;
    queue.becomes(job, JobState::Failed).await;
    assert_eq!(queue.state(job).await.1, "cannot_start");
}

#[sqlx::test]
async fn a_cancel_and_an_end_meet(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("w", 2).await;
    let cancel = async |job| {
        let grace = Some(Duration::from_secs(3));
        queue.app.cancel(&queue.user, "", job, grace).await
    };
    let [wins, obeys] = [
        queue.one(spec("wins")).await,
        queue.one(spec("obeys")).await,
    ];
    let [first, second] = [worker.assigned().await, worker.assigned().await];
    for assignment in [&first, &second] {
        worker.started(assignment.fence).await;
        queue.becomes(assignment.job, JobState::Running).await;
        cancel(assignment.job).await.expect("cancelled");
        let message = worker.next().await;
        assert!(
            matches!(message, ToWorker::Attempt(Message::Stop { fence, cause: StopCause::Cancel, grace: Some(grace) })
                if fence == assignment.fence && grace.as_secs() == 3),
            "{message:?}"
        );
    }
    worker.ended(first.fence, exit(0)).await;
    let stopped = Facts {
        signal: Some(15),
        stopped: Some(StopCause::Cancel),
        ..Facts::of(End::Waited)
    };
    worker.ended(second.fence, stopped).await;
    queue.becomes(wins, JobState::Succeeded).await;
    queue.becomes(obeys, JobState::Cancelled).await;
    assert!(matches!(
        cancel(wins).await,
        Err(Error::JobEnded {
            state: JobState::Succeeded,
            ..
        })
    ));
    cancel(obeys).await.expect("cancelled already");
    assert!(matches!(
        cancel(JobId(9_999)).await,
        Err(Error::JobNotFound(_))
    ));
}

#[sqlx::test]
async fn what_waits_is_cancelled_at_once_and_what_is_ready_is_taken_back(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let queued = queue.one(spec("queued")).await;
    queue
        .app
        .cancel(&queue.user, "", queued, None)
        .await
        .expect("cancelled");
    assert_eq!(queue.state(queued).await.0, JobState::Cancelled);
    let mut worker = queue.worker("w", 1).await;
    let ready = queue.one(spec("ready")).await;
    let assignment = worker.assigned().await;
    queue
        .app
        .cancel(&queue.user, "", ready, None)
        .await
        .expect("asked");
    assert!(
        matches!(worker.next().await, ToWorker::Attempt(Message::Revoke(fence)) if fence == assignment.fence)
    );
    let returned = What::Returned {
        returned: true,
        message: String::new(),
    };
    worker.say(assignment.fence, returned).await;
    queue.becomes(ready, JobState::Cancelled).await;
}

#[sqlx::test]
async fn a_hold_and_an_edit_keep_a_job_that_is_ready(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("w", 1).await;
    let job = queue.one(spec("a")).await;
    let assignment = worker.assigned().await;
    queue.app.hold(&queue.user, "", job).await.expect("held");
    assert!(matches!(
        worker.next().await,
        ToWorker::Attempt(Message::Revoke(_))
    ));
    let edit = {
        let (app, user) = (Arc::clone(&queue.app), queue.user.clone());
        let wanted = JobSpec {
            command: vec!["false".to_owned()],
            priority: 3,
            ..JobSpec::default()
        };
        tokio::spawn(async move {
            let mask = vec!["command".to_owned(), "priority".to_owned()];
            app.update(&user, "", job, wanted, mask).await
        })
    };
    let returned = What::Returned {
        returned: true,
        message: String::new(),
    };
    worker.say(assignment.fence, returned).await;
    edit.await.expect("joined").expect("edited");
    assert_eq!(queue.state(job).await, (JobState::Held, "held".to_owned()));
    queue
        .app
        .release(&queue.user, "", job)
        .await
        .expect("released");
    let again = worker.assigned().await;
    assert_eq!(
        (again.spec.command.as_slice(), again.spec.priority),
        (&["false".to_owned()][..], 3)
    );
    worker.started(again.fence).await;
    queue.becomes(job, JobState::Running).await;
    assert!(matches!(
        queue.app.hold(&queue.user, "", job).await,
        Err(Error::JobRunning(_))
    ));
    let release = queue.app.release(&queue.user, "", job).await;
    assert!(matches!(
        release,
        Err(Error::JobNotHeld {
            state: JobState::Running,
            ..
        })
    ));
    let edit = queue
        .app
        .update(&queue.user, "", job, spec("b"), vec!["name".into()])
        .await;
    assert!(matches!(edit, Err(Error::JobRunning(_))));
    let unknown = queue
        .app
        .update(&queue.user, "", job, spec("b"), vec!["template".into()])
        .await;
    assert!(matches!(unknown, Err(Error::InvalidField { .. })));
}

#[sqlx::test]
async fn an_edit_wins_against_the_dispatcher_that_would_give_the_job_away_again(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("w", 1).await;
    let job = queue.one(spec("a")).await;
    for priority in 1..=20 {
        let ready = worker.assigned().await;
        let edit = {
            let (app, user) = (Arc::clone(&queue.app), queue.user.clone());
            let wanted = JobSpec {
                priority,
                ..JobSpec::default()
            };
            let mask = vec!["priority".to_owned()];
            tokio::spawn(async move { app.update(&user, "", job, wanted, mask).await })
        };
        assert!(matches!(
            worker.next().await,
            ToWorker::Attempt(Message::Revoke(fence)) if fence == ready.fence
        ));
        let returned = What::Returned {
            returned: true,
            message: String::new(),
        };
        worker.say(ready.fence, returned).await;
        edit.await.expect("joined").expect("edited");
    }
    assert_eq!(worker.assigned().await.spec.priority, 20);
}

#[sqlx::test]
async fn a_job_cannot_be_edited_to_wait_for_itself(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let first = queue.one(spec("first")).await;
    let second = queue
        .one(JobSpec {
            after: after(&[(first.0, Condition::Any)]),
            ..spec("second")
        })
        .await;
    let circle = JobSpec {
        after: after(&[(second.0, Condition::Any)]),
        ..JobSpec::default()
    };
    let edit = queue
        .app
        .update(&queue.user, "", first, circle, vec!["after".into()])
        .await;
    assert!(matches!(edit, Err(Error::InvalidField { field, .. }) if field == "spec.after"));
    let free = queue
        .app
        .update(&queue.user, "", second, spec("x"), vec!["after".into()])
        .await;
    free.expect("edited");
    assert_eq!(queue.state(second).await.0, JobState::Queued);
}

#[sqlx::test]
async fn a_retry_names_the_old_job_and_is_made_once(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("w", 1).await;
    let job = queue.one(spec("a")).await;
    let early = queue.app.retry(&queue.user, "r", job, None).await;
    assert!(matches!(early, Err(Error::JobNotEnded { .. })));
    let assignment = worker.assigned().await;
    worker.run(assignment.fence, exit(0)).await;
    queue.becomes(job, JobState::Succeeded).await;
    let again = queue
        .app
        .retry(&queue.user, "r", job, None)
        .await
        .expect("retried");
    assert_eq!(
        queue
            .app
            .retry(&queue.user, "r", job, None)
            .await
            .expect("replayed"),
        again
    );
    assert_eq!(worker.assigned().await.job, again);
    let retry_of: Option<i64> = sqlx::query_scalar("select retry_of from jobs where id = $1")
        .bind(again.0)
        .fetch_one(&queue.pool)
        .await
        .expect("job");
    assert_eq!(retry_of, Some(job.0));
    queue
        .app
        .delete(&queue.user, "", job)
        .await
        .expect("deleted");
    assert!(matches!(
        queue.app.delete(&queue.user, "", again).await,
        Err(Error::JobNotEnded { .. })
    ));
}

#[sqlx::test]
async fn a_job_is_deleted_only_when_no_process_of_it_is_left(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("w", 1).await;
    let job = queue.one(spec("a")).await;
    let fence = worker.assigned().await.fence;
    worker.started(fence).await;
    worker.ended(fence, exit(0)).await;
    queue.becomes(job, JobState::Succeeded).await;
    assert!(matches!(
        queue.app.delete(&queue.user, "", job).await,
        Err(Error::ProcessesLeft(left)) if left == job
    ));
    // Whoever waited for its end and deletes it at once need not know of them.
    let mut delete = std::pin::pin!(queue.app.delete(&queue.user, "", job));
    let waits = tokio::time::timeout(Duration::from_secs(1), &mut delete).await;
    assert!(waits.is_err(), "it is not refused at once: {waits:?}");
    worker.freed(fence).await;
    delete.await.expect("deleted");
}

#[sqlx::test]
async fn execute_starts_the_next_job_beside_the_slots_of_a_paused_queue(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("w", 1).await;
    let running = queue.one(spec("running")).await;
    let busy = worker.assigned().await;
    worker.started(busy.fence).await;
    queue.becomes(running, JobState::Running).await;
    queue
        .app
        .set_queue_paused(&queue.user, "", true)
        .await
        .expect("paused");
    let nothing = queue.app.execute_next(&queue.user, "", "w").await;
    assert!(matches!(nothing, Err(Error::NothingQueued { .. })));
    let next = queue.one(spec("next")).await;
    assert_eq!(
        queue
            .app
            .execute_next(&queue.user, "", "w")
            .await
            .expect("started"),
        next
    );
    let assignment = worker.assigned().await;
    assert_eq!((assignment.job, assignment.beside_slots), (next, true));
    let unknown = queue.app.execute_next(&queue.user, "", "nobody").await;
    assert!(matches!(unknown, Err(Error::WorkerNotFound(_))));
}

#[sqlx::test]
async fn a_job_that_started_before_it_came_back_is_not_executed_again_by_its_retry(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("w", 1).await;
    let job = queue.one(spec("a")).await;
    let assignment = worker.assigned().await;
    let executed = queue.app.execute_next(&queue.user, "", "w").await;
    assert_eq!(executed.expect("asked back"), job);
    assert!(matches!(
        worker.next().await,
        ToWorker::Attempt(Message::Revoke(_))
    ));
    worker.started(assignment.fence).await;
    let refused = What::Returned {
        returned: false,
        message: String::new(),
    };
    worker.say(assignment.fence, refused).await;
    queue.becomes(job, JobState::Running).await;
    assert_eq!(
        queue
            .count("select count(*) from jobs where run_now_on is not null")
            .await,
        0
    );
}

#[sqlx::test]
async fn a_job_is_edited_although_the_one_it_waited_for_was_deleted(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("w", 1).await;
    let first = queue.one(spec("first")).await;
    let assignment = worker.assigned().await;
    worker.run(assignment.fence, exit(0)).await;
    queue.becomes(first, JobState::Succeeded).await;
    let second = JobSpec {
        after: after(&[(first.0, Condition::Ok)]),
        hold: true,
        ..spec("second")
    };
    let second = queue.one(second).await;
    let deleted = queue.app.delete(&queue.user, "", first).await;
    deleted.expect("deleted");
    queue
        .app
        .update(&queue.user, "", second, spec("new"), vec!["name".into()])
        .await
        .expect("edited");
    let release = queue.app.release(&queue.user, "", second).await;
    release.expect("released");
    assert_eq!(worker.assigned().await.spec.name, "new");
}

#[sqlx::test]
async fn a_paused_queue_and_a_draining_worker_take_nothing(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("w", 2).await;
    let first = queue.one(spec("first")).await;
    let assignment = worker.assigned().await;
    assert_eq!(assignment.job, first);
    let mode = async |mode| {
        let (app, user) = (&queue.app, &queue.user);
        app.update_worker(user, "", "w", Some(mode), None)
            .await
            .expect("steered");
    };
    mode(WorkerMode::Draining).await;
    let second = queue.one(spec("second")).await;
    queue
        .app
        .dispatch_round(&mut Dedicated::default())
        .await
        .expect("round");
    worker.has_nothing_to_read();
    worker.run(assignment.fence, exit(0)).await;
    worker.committed(assignment.fence).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while queue
        .count("select count(*) from workers where mode = 'paused'")
        .await
        == 0
    {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the drain did not end"
        );
        queue.app.finish_drains().await.expect("looked");
    }
    mode(WorkerMode::Active).await;
    assert_eq!(worker.assigned().await.job, second);
    let (app, user) = (&queue.app, &queue.user);
    app.update_worker(user, "", "w", None, Some(4))
        .await
        .expect("steered");
    assert!(matches!(worker.next().await, ToWorker::SetSlots(4)));
    let bad = app.update_worker(user, "", "w", None, Some(0)).await;
    assert!(matches!(bad, Err(Error::InvalidField { .. })));
}

#[sqlx::test]
async fn a_pause_is_carried_to_the_processes(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("w", 1).await;
    let job = queue.one(spec("a")).await;
    let early = queue.app.set_paused(&queue.user, "", job, true).await;
    assert!(matches!(early, Err(Error::JobNotRunning { .. })));
    let assignment = worker.assigned().await;
    worker.started(assignment.fence).await;
    queue.becomes(job, JobState::Running).await;
    let not_paused = queue.app.set_paused(&queue.user, "", job, false).await;
    assert!(matches!(not_paused, Err(Error::JobNotPaused(_))));
    let call = {
        let (app, user) = (Arc::clone(&queue.app), queue.user.clone());
        tokio::spawn(async move { app.set_paused(&user, "", job, true).await })
    };
    assert!(matches!(
        worker.next().await,
        ToWorker::Attempt(Message::SetPaused { paused: true, .. })
    ));
    worker.say(assignment.fence, What::PauseChanged(true)).await;
    call.await.expect("joined").expect("paused");
    assert_eq!(
        queue
            .count("select count(*) from attempts where paused")
            .await,
        1
    );
}

#[sqlx::test]
async fn a_hello_settles_every_attempt(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("w", 6).await;
    let mut fences = Vec::new();
    for number in 0..6 {
        queue.one(spec(&number.to_string())).await;
        fences.push(worker.assigned().await);
    }
    let [ready, unheard, running, done, lost, vanished] = &fences[..] else {
        panic!("six attempts");
    };
    for assignment in [running, done, vanished] {
        worker.started(assignment.fence).await;
        queue.becomes(assignment.job, JobState::Running).await;
    }
    let mut hello = worker.leave().await;
    hello.held = vec![
        held(ready.fence, AttemptState::Assigned),
        held(unheard.fence, AttemptState::Running),
        held(running.fence, AttemptState::Running),
        held(done.fence, AttemptState::Ended),
        held(Fence(1_000_000), AttemptState::Running),
        held(Fence(1_000_001), AttemptState::Ended),
    ];
    let (mut worker, verdicts) = queue.connect_and_hear(hello).await;
    assert_eq!(
        verdicts,
        [
            (ready.fence, Action::Continue),
            (unheard.fence, Action::Continue),
            (running.fence, Action::Continue),
            (done.fence, Action::SendResult),
            (Fence(1_000_000), Action::Stop),
            (Fence(1_000_001), Action::Forget),
        ]
    );
    assert_eq!(queue.state(unheard.job).await.0, JobState::Running);
    // What was never started and what vanished come again, with new fences.
    let again = [worker.assigned().await, worker.assigned().await];
    let mut jobs = again
        .iter()
        .map(|assignment| assignment.job)
        .collect::<Vec<_>>();
    jobs.sort();
    assert_eq!(jobs, [lost.job, vanished.job]);
    assert!(
        again
            .iter()
            .all(|assignment| assignment.fence > vanished.fence)
    );
    let budgets: Vec<i32> =
        sqlx::query_scalar("select resumes_left from jobs where id = any($1) order by id")
            .bind(vec![lost.job.0, vanished.job.0])
            .fetch_all(&queue.pool)
            .await
            .expect("jobs");
    assert_eq!(budgets, [3, 2]);
    worker.ended(done.fence, exit(0)).await;
    worker.committed(done.fence).await;
    // After a reboot nothing of it is alive.
    let mut hello = worker.leave().await;
    hello.boot_id = "boot-2".to_owned();
    hello.held.clear();
    let (_worker, verdicts) = queue.connect_and_hear(hello).await;
    assert_eq!(verdicts, []);
    assert_eq!(queue.state(done.job).await.0, JobState::Succeeded);
    assert_eq!(
        queue
            .count("select count(*) from attempts where outcome_cause = 'worker_lost'")
            .await,
        5
    );
}

#[sqlx::test]
async fn a_start_that_is_heard_of_late_keeps_its_time(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("w", 1).await;
    let job = queue.one(spec("a")).await;
    let assignment = worker.assigned().await;
    let mut hello = worker.leave().await;
    queue.clock.advance(Duration::from_secs(7_200));
    hello.held = vec![held(assignment.fence, AttemptState::Running)];
    let mut worker = queue.connect(hello).await;
    queue.becomes(job, JobState::Running).await;
    let at = noon() + TimeDelta::seconds(1);
    let started = What::Started {
        pid: 4_711,
        started_at: Some(at),
        not_enforced: Vec::new(),
    };
    worker.say(assignment.fence, started).await;
    worker.ended(assignment.fence, exit(0)).await;
    worker.committed(assignment.fence).await;
    let times: Vec<DateTime<Utc>> =
        sqlx::query_scalar("select started_at from jobs union all select started_at from attempts")
            .fetch_all(&queue.pool)
            .await
            .expect("times");
    assert_eq!(times, [at, at]);
}

#[sqlx::test]
async fn a_copy_and_a_namesake_are_refused_and_a_successor_takes_the_name(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("w", 1).await;
    let mut copy = worker.hello.clone();
    copy.spool_id = Uuid::new_v4();
    assert!(matches!(
        queue.app.greet(copy).await,
        Err(Error::SpoolInUse { .. })
    ));
    let namesake = queue.app.greet(hello("w", 1)).await;
    assert!(matches!(namesake, Err(Error::WorkerNameTaken { .. })));
    // The same worker again: the new session takes the place of the old one.
    let again = queue.connect(worker.hello.clone()).await;
    tokio::time::timeout(PATIENCE, worker.outbox.closed.cancelled())
        .await
        .expect("closed");
    assert!(worker.outbox.messages.recv().await.is_none());
    let _ = again.leave().await;
    // Nobody is connected and nothing is held: the name is free.
    let successor = queue.worker("w", 1).await;
    assert_eq!(
        queue
            .count("select count(*) from workers where name like 'w~%'")
            .await,
        1
    );
    drop(successor);
}

fn impatient() -> Settings {
    Settings {
        unreachable_after: Duration::ZERO,
        lost_after: Duration::ZERO,
        ..Settings::default()
    }
}

#[sqlx::test]
async fn a_lost_attempt_is_given_up_and_its_late_end_is_kept(pool: PgPool) {
    let queue = Coordinator::start_with(pool, impatient());
    let mut first = queue.worker("first", 1).await;
    let job = queue.one(spec("a")).await;
    let lost = first.assigned().await;
    first.started(lost.fence).await;
    queue.becomes(job, JobState::Running).await;
    let mut hello = first.leave().await;
    queue.becomes(job, JobState::Queued).await;
    let mut second = queue.worker("second", 1).await;
    let successor = second.assigned().await;
    assert_eq!((successor.job, successor.number.0), (job, 2));
    second.started(successor.fence).await;
    queue.becomes(job, JobState::Running).await;
    hello.held = vec![held(lost.fence, AttemptState::Running)];
    let (first, verdicts) = queue.connect_and_hear(hello).await;
    assert_eq!(verdicts, [(lost.fence, Action::Stop)]);
    let mut first = first;
    first.ended(lost.fence, exit(0)).await;
    first.committed(lost.fence).await;
    assert_eq!(queue.state(job).await.0, JobState::Running);
    assert_eq!(
        queue
            .count("select count(*) from attempts where late_result is not null")
            .await,
        1
    );
    second.ended(successor.fence, exit(3)).await;
    second.committed(successor.fence).await;
    assert_eq!(queue.state(job).await.0, JobState::Waiting);
    // A start that is told after all is stopped.
    first.started(lost.fence).await;
    let stop = first.next().await;
    assert!(
        matches!(
            stop,
            ToWorker::Attempt(Message::Stop {
                cause: StopCause::Superseded,
                ..
            })
        ),
        "{stop:?}"
    );
}

#[sqlx::test]
async fn a_late_end_wins_against_a_successor_that_has_not_started(pool: PgPool) {
    let queue = Coordinator::start_with(pool, impatient());
    let mut first = queue.worker("first", 1).await;
    let job = queue.one(spec("a")).await;
    let lost = first.assigned().await;
    first.started(lost.fence).await;
    queue.becomes(job, JobState::Running).await;
    let mut hello = first.leave().await;
    queue.becomes(job, JobState::Queued).await;
    let mut second = queue.worker("second", 1).await;
    let successor = second.assigned().await;
    hello.held = vec![held(lost.fence, AttemptState::Ended)];
    let (mut first, verdicts) = queue.connect_and_hear(hello).await;
    assert_eq!(verdicts, [(lost.fence, Action::SendResult)]);
    first.ended(lost.fence, exit(0)).await;
    first.committed(lost.fence).await;
    assert!(
        matches!(second.next().await, ToWorker::Attempt(Message::Revoke(fence)) if fence == successor.fence)
    );
    let returned = What::Returned {
        returned: true,
        message: String::new(),
    };
    second.say(successor.fence, returned).await;
    queue.becomes(job, JobState::Succeeded).await;
}

#[sqlx::test]
async fn a_worker_that_is_gone_at_the_moment_of_assignment_costs_nothing(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("w", 1).await;
    worker.outbox.messages.close();
    let job = queue.one(spec("a")).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while queue
        .count("select count(*) from attempts where outcome_cause = 'void'")
        .await
        == 0
    {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the assignment was not taken back"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    queue.becomes(job, JobState::Queued).await;
    let mut again = queue.connect(worker.hello.clone()).await;
    assert_eq!(again.assigned().await.number.0, 2);
}

#[sqlx::test]
async fn reports_of_strangers_and_old_sessions_are_ignored(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut owner = queue.worker("owner", 1).await;
    let job = queue.one(spec("a")).await;
    let assignment = owner.assigned().await;
    let mut stranger = queue.worker("stranger", 1).await;
    stranger.started(assignment.fence).await;
    let old = owner.session;
    let mut hello = owner.leave().await;
    hello.held = vec![held(assignment.fence, AttemptState::Assigned)];
    let mut owner = queue.connect(hello).await;
    let current = std::mem::replace(&mut owner.session, old);
    owner.started(assignment.fence).await;
    owner.session = current;
    // Reports are written in their order: once this one is, the others were seen.
    stranger.ended(Fence(1_000_000), exit(0)).await;
    stranger.committed(Fence(1_000_000)).await;
    assert_eq!(queue.state(job).await.0, JobState::Queued);
    owner.started(assignment.fence).await;
    queue.becomes(job, JobState::Running).await;
}

#[sqlx::test]
async fn f07_callers_who_go_away_leave_no_transaction_open(pool: PgPool) {
    let queue = Coordinator::start(pool);
    for number in 0..200_u64 {
        let call = queue.app.submit(&queue.user, "", vec![spec("a")]);
        // Each caller goes away at another point of the call.
        let _ = tokio::time::timeout(Duration::from_micros(number * 10), call).await;
    }
    let job = queue.one(spec("last")).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let open = "select count(*) from pg_stat_activity
                where datname = current_database() and state like 'idle in transaction%'";
    while queue.count(open).await > 0 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "a transaction stays open"
        );
    }
    assert_eq!(queue.state(job).await.0, JobState::Queued);
}
