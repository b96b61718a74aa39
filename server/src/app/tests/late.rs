//! What comes too late: results of attempts that were given up, and greetings that were overtaken.

use super::*;

/// What a job gets that says nothing else.
const RESUMES: i32 = 3;
const RETRIES: i32 = 2;

/// A job whose attempt was given up while its worker was away.
async fn given_up(queue: &Coordinator) -> (JobId, Hello, Fence) {
    let mut first = queue.worker("first", 1).await;
    let job = queue.one(spec("a")).await;
    let lost = first.assigned().await;
    first.started(lost.fence).await;
    queue.becomes(job, JobState::Running).await;
    let mut hello = first.leave().await;
    queue.becomes(job, JobState::Queued).await;
    // Its slot is not free yet, so that the worker gets no other attempt first.
    hello.held = vec![Held {
        slot_held: true,
        ..held(lost.fence, AttemptState::Ended)
    }];
    (job, hello, lost.fence)
}

/// The worker comes back and tells how the attempt ended.
async fn told(queue: &Coordinator, hello: Hello, fence: Fence, code: i32) -> Worker {
    let (mut first, verdicts) = queue.connect_and_hear(hello).await;
    assert_eq!(verdicts, [(fence, Action::SendResult)]);
    first.ended(fence, exit(code)).await;
    first.freed(fence).await;
    first.committed(fence).await;
    first
}

/// A job's resumes and retries that are left.
async fn left(queue: &Coordinator, job: JobId) -> (i32, i32) {
    sqlx::query_as("select resumes_left, retries_left from jobs where id = $1")
        .bind(job.0)
        .fetch_one(&queue.pool)
        .await
        .expect("job")
}

#[sqlx::test]
async fn a_late_success_ends_a_job_that_waits_for_its_next_attempt(pool: PgPool) {
    let queue = Coordinator::start_with(pool, impatient());
    let (job, hello, fence) = given_up(&queue).await;
    assert_eq!(left(&queue, job).await, (RESUMES - 1, RETRIES));
    told(&queue, hello, fence, 0).await;
    queue.becomes(job, JobState::Succeeded).await;
    assert_eq!(
        queue.count("select count(*) from attempts").await,
        1,
        "it did not run again"
    );
    // What had ended stays as it was recorded, with what is known of it now beside it.
    let beside = "select count(*) from attempts
                  where late_result is not null and outcome_kind = 'interrupted'";
    assert_eq!(queue.count(beside).await, 1);
}

#[sqlx::test]
async fn a_late_failure_costs_a_retry_in_place_of_the_resume(pool: PgPool) {
    let queue = Coordinator::start_with(pool, impatient());
    let (job, hello, fence) = given_up(&queue).await;
    told(&queue, hello, fence, 3).await;
    queue.becomes(job, JobState::Waiting).await;
    assert_eq!(queue.state(job).await.1, "retry_backoff");
    assert_eq!(left(&queue, job).await, (RESUMES, RETRIES - 1));
}

#[sqlx::test]
async fn a_late_failure_waits_for_a_successor_that_can_still_come_back(pool: PgPool) {
    let queue = Coordinator::start_with(pool, impatient());
    let (job, hello, fence) = given_up(&queue).await;
    let mut second = queue.worker("second", 1).await;
    let successor = second.assigned().await;
    let _first = told(&queue, hello, fence, 3).await;
    let revoked = second.next().await;
    assert!(
        matches!(
            revoked,
            ToWorker::Attempt(Message::Revoke(fence))
                if fence == successor.fence
        ),
        "{revoked:?}"
    );
    let returned = What::Returned {
        returned: true,
        message: String::new(),
    };
    second.say(successor.fence, returned).await;
    queue.becomes(job, JobState::Waiting).await;
    assert_eq!(left(&queue, job).await, (RESUMES, RETRIES - 1));
}

#[sqlx::test]
async fn a_late_failure_is_only_told_once_a_successor_has_started(pool: PgPool) {
    let queue = Coordinator::start_with(pool, impatient());
    let (job, hello, fence) = given_up(&queue).await;
    let mut second = queue.worker("second", 1).await;
    let successor = second.assigned().await;
    second.started(successor.fence).await;
    queue.becomes(job, JobState::Running).await;
    let _first = told(&queue, hello, fence, 3).await;
    assert_eq!(left(&queue, job).await, (RESUMES - 1, RETRIES));
    assert_eq!(queue.state(job).await.0, JobState::Running);
    second.ended(successor.fence, exit(0)).await;
    second.committed(successor.fence).await;
    assert_eq!(queue.state(job).await.0, JobState::Succeeded);
    let kept = "select count(*) from attempts where number = 1 and late_result is not null";
    assert_eq!(queue.count(kept).await, 1);
    let history = queue.history(job).await;
    let told = history.iter().filter(|kind| *kind == "late_result");
    assert_eq!(told.count(), 1, "{history:?}");
}

#[sqlx::test]
async fn a_greeting_that_was_overtaken_changes_nothing(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let greeting = |hello: &Hello, number| Hello {
        greeting: number,
        ..hello.clone()
    };
    let worker = hello("w", 1);
    let mut first = queue.connect(greeting(&worker, 5)).await;
    let job = queue.one(spec("a")).await;
    let running = first.assigned().await;
    first.started(running.fence).await;
    queue.becomes(job, JobState::Running).await;
    let mut now = greeting(&worker, 7);
    now.held = vec![held(running.fence, AttemptState::Running)];
    let (mut current, verdicts) = queue.connect_and_hear(now).await;
    assert_eq!(verdicts, [(running.fence, Action::Continue)]);

    // Sent before that one, when nothing was held, and heard only now; and one that comes twice.
    for number in [6, 7] {
        let mut old = greeting(&worker, number);
        old.boot_id = "an earlier boot".to_owned();
        let refused = queue.app.greet(old).await;
        assert!(
            matches!(refused, Err(Error::GreetingOvertaken { .. })),
            "{number}"
        );
    }
    assert_eq!(queue.state(job).await.0, JobState::Running);
    let kept = "select count(*) from workers where greeting = 7 and boot_id = 'boot-1'";
    assert_eq!(queue.count(kept).await, 1);
    current.ended(running.fence, exit(0)).await;
    current.committed(running.fence).await;
    assert_eq!(queue.state(job).await.0, JobState::Succeeded);

    // A worker that does not count is taken at its word, and another spool counts anew.
    let left = current.leave().await;
    queue.connect(greeting(&left, 0)).await.leave().await;
    let mut anew = greeting(&left, 1);
    anew.spool_id = Uuid::new_v4();
    queue.connect(anew).await;
}
