//! What is over before it can be told is no news, and how a job ended always is; a storm is one
//! message.

use qctl_server_core::{JobSpec, JobState};

use super::*;
use crate::app::notices::NoticeRecord;

/// Noon, where every test begins, is in the night of these.
fn night(settings: &mut Settings, below: qctl_notify::Severity) {
    settings.quiet = Some(Quiet {
        from: wall("11:00"),
        to: wall("13:00"),
        below,
    });
}

fn fate_of(page: &NoticePage, class: Class) -> Vec<(&str, &str)> {
    let of_class = page.notices.iter().filter(|one| one.class == class);
    let mut fates: Vec<_> = of_class
        .map(|one| (one.state.as_str(), one.reason.as_str()))
        .collect();
    // They are listed newest first.
    fates.reverse();
    fates
}

fn is_delivered(notice: &NoticeRecord, state: &str) -> bool {
    notice.deliveries.iter().any(|one| one.state == state)
}

impl Bench {
    async fn advance(&self, minutes: u64) {
        self.clock.advance(Duration::from_secs(60 * minutes));
    }

    async fn submitted(&self, name: &str) -> JobId {
        let spec = JobSpec {
            name: name.to_owned(),
            command: vec!["true".to_owned()],
            cwd: "/".to_owned(),
            ..JobSpec::default()
        };
        let submitted = self.app.submit(&alice(), "", vec![spec]).await;
        submitted.unwrap().jobs[0]
    }

    async fn tell_of_job(&self, class: Class, job: JobId) {
        let details = Details {
            next_at: Some(self.app.clock.now()),
            ..Details::default()
        };
        let notice = Notice {
            job: Some(job),
            ..Notice::about(class, format!("job {job}"), details)
        };
        self.app.tell(notice).await.unwrap();
    }
}

fn alice() -> Caller {
    Caller {
        name: "alice".to_owned(),
        role: Role::Admin,
    }
}

#[sqlx::test]
async fn outages_that_passed_in_the_night_are_told_once_as_past(pool: PgPool) {
    let phone = Recorder::channel("phone");
    let bench = Bench::start(&pool, &[&phone], |settings| {
        night(settings, qctl_notify::Severity::Critical);
    });
    for _ in 0..3 {
        bench.tell(Class::WorkerUnreachable, "worker x").await;
        bench.advance(5).await;
        bench.tell(Class::WorkerBack, "worker x").await;
        bench.advance(5).await;
    }
    let page = bench
        .until("all but the last end are over", |page| {
            fate_of(page, Class::WorkerUnreachable) == [("held_back", "over"); 3]
                && fate_of(page, Class::WorkerBack)
                    == [
                        ("held_back", "over"),
                        ("held_back", "over"),
                        ("waiting", ""),
                    ]
        })
        .await;
    assert_eq!(page.notices.len(), 6);
    assert!(phone.titles().is_empty());
    bench.advance(60).await;
    bench
        .until("it is told", |page| is_sent(page, Class::WorkerBack, 1))
        .await;
    assert_eq!(phone.titles(), ["Worker ? is back"]);
    assert_eq!(
        phone.got.lock().unwrap()[0].body,
        "It was away from 12:20 to 12:25, for 5 min.\nSince 12:00 this happened 3 times."
    );
}

#[sqlx::test]
async fn an_outage_that_goes_on_after_the_night_tells_of_those_before_it(pool: PgPool) {
    let phone = Recorder::channel("phone");
    let bench = Bench::start(&pool, &[&phone], |settings| {
        night(settings, qctl_notify::Severity::Critical);
    });
    bench.tell(Class::DiskNearlyFull, "disk of x").await;
    bench.advance(5).await;
    bench.tell(Class::DiskWell, "disk of x").await;
    bench.advance(5).await;
    bench.tell(Class::DiskNearlyFull, "disk of x").await;
    bench.advance(50).await;
    bench
        .until("it is told", |page| is_sent(page, Class::DiskNearlyFull, 1))
        .await;
    let page = bench.page().await;
    assert_eq!(fate_of(&page, Class::DiskWell), [("held_back", "over")]);
    assert_eq!(phone.titles(), ["The disk of ? is nearly full"]);
    let body = phone.got.lock().unwrap()[0].body.clone();
    assert!(
        body.contains("Since 12:00 this happened 2 times."),
        "{body}"
    );
}

#[sqlx::test]
async fn an_end_that_did_not_last_is_not_told_in_the_morning(pool: PgPool) {
    let phone = Recorder::channel("phone");
    let bench = Bench::start(&pool, &[&phone], |settings| {
        night(settings, qctl_notify::Severity::Error);
    });
    for time in 1..=2 {
        bench.tell(Class::DiskNearlyFull, "disk of x").await;
        bench
            .until("it is told at once", |page| {
                is_sent(page, Class::DiskNearlyFull, time)
            })
            .await;
        bench.advance(5).await;
        if time == 1 {
            bench.tell(Class::DiskWell, "disk of x").await;
        }
    }
    bench
        .until("its end is over", |page| {
            fate_of(page, Class::DiskWell) == [("held_back", "over")]
        })
        .await;
    let body = phone.got.lock().unwrap()[1].body.clone();
    assert!(!body.contains("times"), "the first one was told: {body}");
}

#[sqlx::test]
async fn what_was_over_before_a_channel_could_take_it_is_not_sent(pool: PgPool) {
    let phone = Recorder::channel("phone");
    phone.busy.store(true, Ordering::Relaxed);
    let bench = Bench::start(&pool, &[&phone], |_| {});
    let job = bench.submitted("a").await;
    bench.tell(Class::DiskNearlyFull, "disk of x").await;
    bench.tell_of_job(Class::JobInterrupted, job).await;
    bench.tell_of_job(Class::JobFailed, job).await;
    let waits = |page: &NoticePage| {
        let tried = page.notices.iter().filter(|one| {
            one.deliveries
                .iter()
                .any(|one| one.state == "pending" && !one.detail.is_empty())
        });
        tried.count() == 3
    };
    bench.until("all wait for the channel", waits).await;
    bench.app.cancel(&alice(), "", job, None).await.unwrap();
    // Longer than any other message is tried.
    bench.advance(3 * 24 * 60).await;
    bench.tell(Class::DiskWell, "disk of x").await;
    bench
        .until("what is over is not tried any more", |page| {
            let over = |class| {
                page.notices
                    .iter()
                    .any(|one| one.class == class && is_delivered(one, "over"))
            };
            over(Class::DiskNearlyFull) && over(Class::JobInterrupted)
        })
        .await;
    phone.busy.store(false, Ordering::Relaxed);
    bench.advance(60).await;
    bench
        .until("the rest is sent", |page| {
            is_sent(page, Class::JobFailed, 1) && is_sent(page, Class::DiskWell, 1)
        })
        .await;
    let mut titles = phone.titles();
    titles.sort();
    let failed = format!("Job {job} “a” failed");
    assert_eq!(titles, [failed.as_str(), "The disk of ? has room again"]);
}

#[sqlx::test]
async fn after_the_night_a_job_that_ended_tells_its_end_and_one_that_goes_on_what_happened(
    pool: PgPool,
) {
    let phone = Recorder::channel("phone");
    let bench = Bench::start(&pool, &[&phone], |settings| {
        night(settings, qctl_notify::Severity::Critical);
    });
    let (ended, queued) = (bench.submitted("a").await, bench.submitted("b").await);
    for job in [ended, queued] {
        bench.tell_of_job(Class::AttemptFailed, job).await;
    }
    bench.tell_of_job(Class::JobFailed, ended).await;
    bench.tell_of_job(Class::JobHeld, queued).await;
    bench.app.cancel(&alice(), "", ended, None).await.unwrap();
    let rows = bench.app.store.jobs_by_id(&[ended, queued]).await.unwrap();
    assert!(rows.jobs.iter().any(|job| job.state == JobState::Cancelled));
    bench.advance(60).await;
    let page = bench
        .until("the morning is told", |page| {
            is_sent(page, Class::JobFailed, 1) && is_sent(page, Class::AttemptFailed, 1)
        })
        .await;
    assert_eq!(
        fate_of(&page, Class::AttemptFailed),
        [("held_back", "over"), ("told", "")]
    );
    assert_eq!(
        fate_of(&page, Class::JobHeld),
        [("held_back", "over")],
        "it is not held any more"
    );
    let got = phone.got.lock().unwrap();
    let again = format!("Job {queued} “b” failed, and is tried again");
    let told = got.iter().find(|message| message.title == again).unwrap();
    assert!(told.body.contains("This was at 12:00.\n"), "{}", told.body);
    assert!(
        told.body.contains("It was to start again at 12:00"),
        "{}",
        told.body
    );
}

#[sqlx::test]
async fn a_storm_is_one_message_with_its_true_count(pool: PgPool) {
    let phone = Recorder::channel("phone");
    let bench = Bench::start(&pool, &[&phone], |_| {});
    let notices = (1..=1_200)
        .map(|job| Notice::about(Class::JobSkipped, format!("job {job}"), Details::default()))
        .collect();
    let store = &bench.app.store;
    store
        .insert_notices(bench.app.clock.now(), notices)
        .await
        .unwrap();
    // All are due before any was looked at.
    bench.advance(2).await;
    let told = "select count(*) from notices where state = 'told'";
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let count: i64 = sqlx::query_scalar(told).fetch_one(&pool).await.unwrap();
        if count == 1_200 && !phone.titles().is_empty() {
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{count} are told: {:?}",
            phone.titles()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(phone.titles(), ["1200 jobs will not run"]);
    let body = phone.got.lock().unwrap()[0].body.clone();
    assert_eq!(body.lines().count(), Words::MOST_ITEMS);
    assert_eq!(body.lines().last(), Some("and 1189 more"));
}
