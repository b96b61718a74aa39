//! What comes too late: results of attempts that were given up, and greetings that were overtaken.

use qctl_notify::channel::Pending;
use qctl_notify::{Channel, Zone};

use super::*;
use crate::app::read::PageRequest;
use crate::notify::Notifier;

/// What a job gets that says nothing else.
const RESUMES: i32 = 3;
const RETRIES: i32 = 2;

/// A job whose attempt was given up while its worker was away, eight hours ago.
async fn given_up(queue: &Coordinator, retries: i32) -> (JobId, Hello, Fence) {
    let mut first = queue.worker("first", 1).await;
    let spec = JobSpec {
        retries: Some(retries),
        ..spec("a")
    };
    let job = queue.one(spec).await;
    let lost = first.assigned().await;
    first.started(lost.fence).await;
    queue.becomes(job, JobState::Running).await;
    let mut hello = first.leave().await;
    queue.becomes(job, JobState::Queued).await;
    queue.clock.advance(Duration::from_secs(8 * 3_600));
    // Its slot is not free yet, so that the worker gets no other attempt first.
    hello.held = vec![Held {
        slot_held: true,
        ..held(lost.fence, AttemptState::Ended)
    }];
    (job, hello, lost.fence)
}

/// The worker comes back and tells how the attempt ended, an hour ago.
async fn told(queue: &Coordinator, hello: Hello, fence: Fence, code: i32) -> Worker {
    let (mut first, verdicts) = queue.connect_and_hear(hello).await;
    assert_eq!(verdicts, [(fence, Action::SendResult)]);
    let report = EndedReport {
        ended_at: Some(noon() + TimeDelta::hours(7)),
        ..result(exit(code))
    };
    first.say(fence, What::Ended(Box::new(report))).await;
    first.freed(fence).await;
    first.committed(fence).await;
    first
}

/// Takes every message.
#[derive(Debug)]
struct Phone;

impl Channel for Phone {
    fn name(&self) -> &'static str {
        "phone"
    }

    fn send<'a>(&'a self, _: &'a qctl_notify::Message) -> Pending<'a, qctl_notify::Outcome> {
        Box::pin(async { qctl_notify::Outcome::Accepted { receipt: None } })
    }
}

/// Has a phone told, while the folder is kept.
fn with_phone(queue: &Coordinator) -> tempfile::TempDir {
    let mut settings = qctl_notify::Settings::default();
    settings.zone = Zone::named("UTC").expect("a zone");
    settings.gather = Duration::ZERO;
    settings.channels.push(Arc::new(Phone));
    let folder = tempfile::tempdir().expect("a folder");
    let notifier = Arc::new(Notifier::new(settings, folder.path()));
    crate::notify::start(&notifier, &queue.app);
    folder
}

impl Coordinator {
    /// What the phone is told of a job in this class: title and body.
    async fn message(&self, job: JobId, class: &str) -> (String, String) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let told: Option<(String, String)> = sqlx::query_as(
                "select m.title, m.body from messages m join notices n on n.message_id = m.id
                 where n.job_id = $1 and n.class = $2",
            )
            .bind(job.0)
            .bind(class)
            .fetch_optional(&self.pool)
            .await
            .expect("messages");
            if let Some(told) = told {
                return told;
            }
            if tokio::time::Instant::now() >= deadline {
                panic!("{class} is not told: {:?}", self.classes().await);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What was told or held back, in order.
    async fn classes(&self) -> Vec<String> {
        sqlx::query_scalar("select class from notices order by id")
            .fetch_all(&self.pool)
            .await
            .expect("notices")
    }

    /// The failures are one group.
    async fn has_error(&self, signature: &str) {
        let page = PageRequest {
            size: 0,
            token: String::new(),
        };
        let errors = self.app.error_page(None, &page).await.expect("errors");
        let groups: Vec<_> = errors
            .groups
            .iter()
            .map(|group| group.signature.as_str())
            .collect();
        assert_eq!(groups, [signature]);
    }
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
    let _phone = with_phone(&queue);
    let (job, hello, fence) = given_up(&queue, RETRIES).await;
    assert_eq!(left(&queue, job).await, (RESUMES - 1, RETRIES));
    told(&queue, hello, fence, 0).await;
    queue.becomes(job, JobState::Succeeded).await;
    assert_eq!(
        queue.count("select count(*) from attempts").await,
        1,
        "it did not run again"
    );
    let (title, body) = queue.message(job, "job_succeeded").await;
    assert_eq!(title, format!("Job {job} “a” is done"));
    assert_eq!(body, "It succeeded on first after 7 h.\nThis was at 19:00.");
    // What had ended stays as it was recorded, with what is known of it now beside it.
    let beside = "select count(*) from attempts
                  where late_result is not null and outcome_kind = 'interrupted'";
    assert_eq!(queue.count(beside).await, 1);
}

#[sqlx::test]
async fn a_late_failure_costs_a_retry_in_place_of_the_resume(pool: PgPool) {
    let queue = Coordinator::start_with(pool, impatient());
    let _phone = with_phone(&queue);
    let (job, hello, fence) = given_up(&queue, RETRIES).await;
    told(&queue, hello, fence, 3).await;
    queue.becomes(job, JobState::Waiting).await;
    assert_eq!(queue.state(job).await.1, "retry_backoff");
    assert_eq!(left(&queue, job).await, (RESUMES, RETRIES - 1));
    let (title, body) = queue.message(job, "attempt_failed").await;
    assert_eq!(title, format!("Job {job} “a” failed, and is tried again"));
    assert_eq!(
        body,
        format!(
            "On first after 7 h: it ended with exit code 3.\n\
             This was at 19:00.\n\
             It starts again at 20:00; one more try is left after that.\n\
             Nothing needs to be done. To look: qctl logs {job}"
        )
    );
    queue.has_error("exit 3").await;
}

#[sqlx::test]
async fn a_late_failure_waits_for_a_successor_that_can_still_come_back(pool: PgPool) {
    let queue = Coordinator::start_with(pool, impatient());
    let _phone = with_phone(&queue);
    let (job, hello, fence) = given_up(&queue, 0).await;
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
    assert!(!queue.classes().await.contains(&"job_failed".to_owned()));
    second.say(successor.fence, returned).await;
    queue.becomes(job, JobState::Failed).await;
    assert_eq!(left(&queue, job).await, (RESUMES, 0));
    let (title, body) = queue.message(job, "job_failed").await;
    assert_eq!(title, format!("Job {job} “a” failed"));
    assert_eq!(
        body,
        format!(
            "On first after 7 h: it ended with exit code 3.\n\
             This was at 19:00.\n\
             It is not tried again.\n\
             To look: qctl logs {job}. To run it again: qctl retry {job}"
        )
    );
    queue.has_error("exit 3").await;
}

/// No single look counts so much silence, so that a worker may come back between two.
const TWO_LOOKS: Duration = Duration::from_secs(6);

#[sqlx::test]
async fn a_job_whose_record_is_gone_is_told_of_and_its_worker_is_well(pool: PgPool) {
    let settings = Settings {
        unreachable_after: TWO_LOOKS,
        // No single look counts so much, so one falls between the two.
        lost_after: TWO_LOOKS + Duration::from_secs(6),
        ..Settings::default()
    };
    let queue = Coordinator::start_with(pool, settings);
    let _phone = with_phone(&queue);
    let mut worker = queue.worker("w", 1).await;
    let job = queue.one(spec("a")).await;
    let running = worker.assigned().await;
    worker.started(running.fence).await;
    queue.becomes(job, JobState::Running).await;
    // Its folder is replaced while the machine runs on.
    let mut hello = worker.leave().await;
    hello.spool_id = Uuid::new_v4();
    let _worker = queue.connect(hello).await;
    let (title, body) = queue.message(job, "job_record_gone").await;
    assert_eq!(title, format!("Job {job} “a” cannot be seen any more"));
    assert_eq!(
        body,
        "Since 11:59, worker w has had no record of this job among its files, as if its folder had \
         been emptied or replaced. The job may well be running there still.\n\
         It is left alone. If nothing is heard of it until 12:00, it is given up and started again, \
         from its last saved state if it has one.\n\
         If the worker’s folder was moved, put it back and restart the worker. Otherwise see on w \
         whether the program still runs, and end it there if it must not run twice."
    );
    let (_, body) = queue.message(job, "job_interrupted").await;
    assert!(
        body.starts_with(
            "On w after 0 s: its worker lost the record of it, and it was not heard of for too long."
        ),
        "{body}"
    );
    assert_eq!(
        queue.classes().await,
        ["job_record_gone", "job_interrupted"]
    );
    assert_eq!(
        queue.history(job).await[3..],
        ["record_gone", "ended", "resume_scheduled"]
    );
}

#[sqlx::test]
async fn a_late_failure_is_only_told_once_a_successor_has_started(pool: PgPool) {
    let queue = Coordinator::start_with(pool, impatient());
    let (job, hello, fence) = given_up(&queue, RETRIES).await;
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
