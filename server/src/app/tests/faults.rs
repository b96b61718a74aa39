//! What breaks between the coordinator and its database, with a real Postgres behind a proxy. Each
//! test names its row of docs/faults.md.

use std::time::Instant;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::proxy::Proxy;
use super::*;
use crate::store::StoreError;

/// Longest that the coordinator may take to find its way around dead connections.
const HEALED: Duration = Duration::from_secs(15);

/// A coordinator whose way to the database can be spoiled.
struct Spoiled {
    queue: Coordinator,
    proxy: Proxy,
}

impl Spoiled {
    fn start(pool: &PgPool) -> Self {
        let options = pool.connect_options();
        let proxy = match options.get_socket() {
            Some(folder) => {
                Proxy::to_unix(&folder.join(format!(".s.PGSQL.{}", options.get_port())))
            }
            None => {
                let address = (options.get_host(), options.get_port());
                let mut found = std::net::ToSocketAddrs::to_socket_addrs(&address).unwrap();
                Proxy::to_tcp(found.next().unwrap())
            }
        };
        let options = PgConnectOptions::new()
            .host("127.0.0.1")
            .port(proxy.address().port())
            .username(options.get_username())
            .database(options.get_database().unwrap())
            // Each statement is sent with its text, by which the proxy knows it.
            .statement_cache_capacity(0)
            .ssl_mode(PgSslMode::Disable);
        let queue = Coordinator::start(crate::store::pool(options, 4));
        Self { queue, proxy }
    }
}

#[sqlx::test]
async fn f03_a_submission_whose_commit_was_not_confirmed_has_one_effect(pool: PgPool) {
    let Spoiled { queue, proxy } = Spoiled::start(&pool);
    let mut worker = queue.worker("w", 1).await;
    proxy.lose_answer_after("insert into requests", "COMMIT");
    let submit = async || queue.app.submit(&queue.user, "once", vec![spec("a")]).await;
    let unconfirmed = submit().await;
    assert!(
        matches!(unconfirmed, Err(Error::Store(StoreError::Unconfirmed(_)))),
        "{unconfirmed:?}"
    );
    proxy.until_lost(1);
    // The dispatcher was woken all the same, and does not wait for its timer.
    let assignment = worker.assigned().await;
    let again = submit().await.expect("replayed");
    assert!(again.replayed);
    assert_eq!(again.jobs, [assignment.job]);
    assert_eq!(queue.count("select count(*) from jobs").await, 1);
}

#[sqlx::test]
async fn f03_a_cancel_whose_commit_was_not_confirmed_reaches_the_worker(pool: PgPool) {
    let Spoiled { queue, proxy } = Spoiled::start(&pool);
    let mut worker = queue.worker("w", 1).await;
    let job = queue.one(spec("a")).await;
    let assignment = worker.assigned().await;
    worker.started(assignment.fence).await;
    queue.becomes(job, JobState::Running).await;
    proxy.lose_answer_after("insert into requests", "COMMIT");
    let cancel = async || queue.app.cancel(&queue.user, "once", job, None).await;
    let unconfirmed = cancel().await;
    assert!(
        matches!(unconfirmed, Err(Error::Store(StoreError::Unconfirmed(_)))),
        "{unconfirmed:?}"
    );
    // Nobody knows what is recorded, so the worker is asked to greet again, and then told.
    tokio::time::timeout(PATIENCE, worker.outbox.closed.cancelled())
        .await
        .expect("the session ends");
    let mut hello = worker.leave().await;
    hello.held = vec![held(assignment.fence, AttemptState::Running)];
    let mut worker = queue.connect(hello).await;
    let message = worker.next().await;
    assert!(
        matches!(message, ToWorker::Attempt(Message::Stop { fence, cause: StopCause::Cancel, .. })
            if fence == assignment.fence),
        "{message:?}"
    );
    cancel().await.expect("replayed");
    worker.has_nothing_to_read();
}

#[sqlx::test]
async fn f03_a_result_whose_commit_was_not_confirmed_is_recorded_once(pool: PgPool) {
    let Spoiled { queue, proxy } = Spoiled::start(&pool);
    let mut worker = queue.worker("w", 1).await;
    let job = queue.one(spec("a")).await;
    let fence = worker.assigned().await.fence;
    worker.started(fence).await;
    queue.becomes(job, JobState::Running).await;
    proxy.lose_answer_after("with j as (", "COMMIT");
    worker.ended(fence, exit(0)).await;
    queue.becomes(job, JobState::Succeeded).await;
    tokio::time::timeout(PATIENCE, worker.outbox.closed.cancelled())
        .await
        .expect("the session ends");
    let mut hello = worker.leave().await;
    hello.held = vec![held(fence, AttemptState::Ended)];
    let (_, verdicts) = queue.connect_and_hear(hello).await;
    assert_eq!(verdicts, [(fence, Action::Forget)]);
    let history = ["submitted", "assigned", "started", "ended"];
    assert_eq!(queue.history(job).await, history);
}

#[sqlx::test]
async fn f04_half_open_connections_are_found_and_replaced(pool: PgPool) {
    let Spoiled { queue, proxy } = Spoiled::start(&pool);
    let mut worker = queue.worker("w", 1).await;
    queue.one(spec("before")).await;
    worker.assigned().await;
    proxy.freeze();
    let frozen = Instant::now();
    let job = loop {
        match queue
            .app
            .submit(&queue.user, "after", vec![spec("after")])
            .await
        {
            Ok(submitted) => break submitted.jobs[0],
            Err(Error::Store(error)) => assert!(error.is_transient(), "{error:?}"),
            Err(error) => panic!("{error}"),
        }
    };
    assert!(frozen.elapsed() < HEALED, "{:?}", frozen.elapsed());
    queue.becomes(job, JobState::Queued).await;
}

#[sqlx::test]
async fn f05_a_full_disk_refuses_clearly_and_loses_nothing(pool: PgPool) {
    let queue = Coordinator::start(pool.clone());
    let mut worker = queue.worker("w", 1).await;
    let job = queue.one(spec("a")).await;
    let fence = worker.assigned().await.fence;
    worker.started(fence).await;
    queue.becomes(job, JobState::Running).await;
    for statement in [
        "create function full_disk() returns trigger language plpgsql as $$
         begin raise exception 'no space left' using errcode = '53100'; end $$",
        "create trigger full_disk before insert or update on jobs
         for each statement execute function full_disk()",
    ] {
        sqlx::query(statement)
            .execute(&pool)
            .await
            .expect(statement);
    }
    let refused = queue.app.submit(&queue.user, "b", vec![spec("b")]).await;
    assert!(
        matches!(refused, Err(Error::Store(StoreError::DiskFull(_)))),
        "{refused:?}"
    );
    worker.ended(fence, exit(0)).await;
    assert_eq!(queue.count("select count(*) from jobs").await, 1);
    sqlx::query("drop trigger full_disk on jobs")
        .execute(&pool)
        .await
        .expect("room again");
    // What the worker said was kept until there was room.
    queue.becomes(job, JobState::Succeeded).await;
    let later = queue.app.submit(&queue.user, "b", vec![spec("b")]).await;
    assert!(!later.expect("submitted").replayed);
}

#[sqlx::test]
async fn f08_a_job_that_nobody_announced_is_found_by_the_timer(pool: PgPool) {
    let settings = Settings {
        wake_interval: Duration::from_millis(200),
        ..Settings::default()
    };
    let queue = Coordinator::start_with(pool.clone(), settings);
    let mut worker = queue.worker("w", 1).await;
    let rows = crate::store::fixtures::Fixtures::new(&pool);
    let job = rows.job("a", JobState::Queued).await;
    assert_eq!(worker.assigned().await.job, job);
}

#[sqlx::test]
async fn f09_a_slow_submission_holds_up_no_other_and_changes_no_order(pool: PgPool) {
    let queue = Coordinator::start(pool.clone());
    let on = queue
        .one(JobSpec {
            hold: true,
            ..spec("on")
        })
        .await;
    let mut lock = pool.begin().await.expect("begun");
    sqlx::query("select from jobs where id = $1 for update")
        .bind(on.0)
        .execute(&mut *lock)
        .await
        .expect("locked");
    let app = Arc::clone(&queue.app);
    let (user, dependent) = (queue.user.clone(), spec("slow"));
    let slow = tokio::spawn(async move {
        let after = after(&[(on.0, Condition::Any)]);
        app.submit(&user, "", vec![JobSpec { after, ..dependent }])
            .await
    });
    let first = queue.one(spec("first")).await;
    let second = queue.one(spec("second")).await;
    assert!(!slow.is_finished());
    let mut worker = queue.worker("w", 2).await;
    let order = [worker.assigned().await.job, worker.assigned().await.job];
    assert_eq!(order, [first, second]);
    lock.rollback().await.expect("unlocked");
    slow.await.expect("no panic").expect("submitted");
}

#[sqlx::test]
async fn f10_a_long_transaction_does_not_hold_up_dispatching(pool: PgPool) {
    let queue = Coordinator::start(pool.clone());
    let mut worker = queue.worker("w", 1).await;
    let mut snapshot = pool.begin().await.expect("begun");
    sqlx::query("set transaction isolation level repeatable read")
        .execute(&mut *snapshot)
        .await
        .expect("set");
    let jobs: i64 = sqlx::query_scalar("select count(*) from jobs")
        .fetch_one(&mut *snapshot)
        .await
        .expect("a snapshot");
    let mut waits = Vec::new();
    for _ in 0..60 {
        let begun = Instant::now();
        queue.one(spec("a")).await;
        let fence = worker.assigned().await.fence;
        waits.push(begun.elapsed());
        worker.run(fence, exit(0)).await;
        worker.committed(fence).await;
    }
    waits.sort_unstable();
    let middle = waits[waits.len() / 2];
    // Whoever is not woken looks every five seconds.
    assert!(middle < Duration::from_secs(1), "{middle:?} of {waits:?}");
    let still: i64 = sqlx::query_scalar("select count(*) from jobs")
        .fetch_one(&mut *snapshot)
        .await
        .expect("the same snapshot");
    assert_eq!(still, jobs);
}

#[sqlx::test]
async fn f11_the_same_submission_a_hundred_times_at_once_is_one_job(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let (app, user) = (Arc::clone(&queue.app), queue.user.clone());
            tokio::spawn(async move { app.submit(&user, "once", vec![spec("a")]).await })
        })
        .collect();
    let mut jobs = Vec::new();
    for call in calls {
        jobs.extend(call.await.expect("no panic").expect("submitted").jobs);
    }
    assert_eq!(jobs, [jobs[0]; 100]);
    assert_eq!(queue.count("select count(*) from jobs").await, 1);
}

#[sqlx::test]
async fn f06_nothing_is_written_once_another_term_began(pool: PgPool) {
    let queue = Coordinator::start(pool.clone());
    let mut worker = queue.worker("w", 2).await;
    let job = queue.one(spec("a")).await;
    let fence = worker.assigned().await.fence;
    worker.started(fence).await;
    queue.becomes(job, JobState::Running).await;
    let events = queue.count("select count(*) from events").await;
    sqlx::query("update coordinator set term = term + 1")
        .execute(&pool)
        .await
        .expect("another term");
    worker.ended(fence, exit(0)).await;
    let refused = queue.app.submit(&queue.user, "", vec![spec("b")]).await;
    assert!(
        matches!(refused, Err(Error::Store(StoreError::Fenced))),
        "{refused:?}"
    );
    assert!(!queue.app.store.lease().holds(), "it knows by then");
    let cancelled = queue.app.cancel(&queue.user, "", job, None).await;
    assert!(matches!(cancelled, Err(Error::Store(StoreError::Fenced))));
    assert_eq!(queue.state(job).await.0, JobState::Running);
    assert_eq!(queue.count("select count(*) from events").await, events);
    worker.has_nothing_to_read();
}
