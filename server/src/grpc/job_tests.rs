//! Jobs through the services: read, listed, watched, explained, deleted.

use std::time::Duration;

use chrono::TimeDelta;
use qctl_proto::error::{Fault, Reason};
use qctl_proto::v1;
use qctl_server_core::{Demand, JobId, JobSpec, JobState, Progress};
use sqlx::PgPool;
use tonic::{Code, Status, Streaming};

use super::testing::{Coordinator, chunk, soon};
use crate::app::{Change, Role, Settings};
use crate::store::fixtures::{noon, today};

fn reason(status: &Status) -> Reason {
    Fault::from_status(status).expect("a fault").reason
}

async fn list(coordinator: &Coordinator, request: v1::ListJobsRequest) -> v1::ListJobsResponse {
    coordinator
        .jobs()
        .list_jobs(request)
        .await
        .unwrap()
        .into_inner()
}

fn ids(jobs: &[v1::Job]) -> Vec<i64> {
    jobs.iter().map(|job| job.id).collect()
}

fn filtered(filter: v1::JobFilter) -> v1::ListJobsRequest {
    v1::ListJobsRequest {
        filter: Some(filter),
        ..v1::ListJobsRequest::default()
    }
}

async fn watch(
    coordinator: &Coordinator,
    request: v1::WatchJobsRequest,
) -> Streaming<v1::WatchJobsResponse> {
    coordinator
        .jobs()
        .watch_jobs(request)
        .await
        .unwrap()
        .into_inner()
}

async fn next(stream: &mut Streaming<v1::WatchJobsResponse>) -> v1::WatchJobsResponse {
    soon("a change", stream.message())
        .await
        .unwrap()
        .expect("a message")
}

async fn why(coordinator: &Coordinator, job: JobId) -> Vec<String> {
    let request = v1::ExplainJobRequest { id: job.0 };
    coordinator
        .jobs()
        .explain_job(request)
        .await
        .unwrap()
        .into_inner()
        .sentences
}

fn spec(name: &str) -> JobSpec {
    JobSpec {
        name: name.to_owned(),
        command: vec!["true".to_owned()],
        cwd: "/".to_owned(),
        ..JobSpec::default()
    }
}

#[sqlx::test]
async fn a_job_is_shown_with_its_attempts_and_links(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let worker = coordinator.rows.worker("alpha", 1).await;
    let tracked = JobSpec {
        tracker: "INTG-088".to_owned(),
        ..spec("train")
    };
    let job = coordinator
        .rows
        .job_of(tracked, JobState::Queued, noon())
        .await;
    let first = coordinator.rows.attempt(job, worker).await;
    coordinator.rows.end_attempt(first, Some(10)).await;
    coordinator.rows.attempt(job, worker).await;
    let response = coordinator
        .jobs()
        .get_job(v1::GetJobRequest { id: job.0 })
        .await
        .unwrap()
        .into_inner();
    let shown = response.job.unwrap();
    assert_eq!(shown.state(), v1::job::State::Running);
    assert_eq!((shown.worker.as_str(), shown.attempt), ("alpha", 2));
    assert_eq!(shown.outcome.unwrap().kind(), v1::outcome::Kind::Succeeded);
    assert_eq!(shown.url, format!("http://queue.test/jobs/{job}?k=key"));
    assert_eq!(
        shown.tracker_url,
        "http://queue.test/tracker/INTG-088?k=key"
    );
    let states: Vec<_> = response.attempts.iter().map(v1::Attempt::state).collect();
    assert_eq!(
        states,
        [v1::attempt::State::Ended, v1::attempt::State::Running]
    );
    assert_eq!(response.attempts[0].duration.unwrap().seconds, 2);

    let missing = coordinator
        .jobs()
        .get_job(v1::GetJobRequest { id: 4_711 })
        .await;
    let status = missing.unwrap_err();
    assert_eq!(reason(&status), Reason::JobNotFound);
    assert_eq!(status.message(), "there is no job 4711");
}

#[sqlx::test]
async fn a_list_comes_page_by_page_and_each_filter_selects(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let worker = coordinator.rows.worker("alpha", 4).await;
    let mut jobs = Vec::new();
    for index in 0..7 {
        let labelled = JobSpec {
            tracker: if index % 2 == 0 {
                "INTG-088"
            } else {
                "OTHER-1"
            }
            .to_owned(),
            labels: [
                ("kind".to_owned(), format!("k{}", index % 3)),
                ("nightly".to_owned(), String::new()),
            ]
            .into(),
            ..spec("x")
        };
        let created = noon() + TimeDelta::minutes(index);
        jobs.push(
            coordinator
                .rows
                .job_of(labelled, JobState::Queued, created)
                .await,
        );
    }
    coordinator.rows.attempt(jobs[3], worker).await;
    coordinator
        .rows
        .end_job(jobs[0], JobState::Failed, noon())
        .await;

    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let page = list(
            &coordinator,
            v1::ListJobsRequest {
                page_size: 3,
                page_token: token,
                ..v1::ListJobsRequest::default()
            },
        )
        .await;
        assert!(page.jobs.len() <= 3);
        let total: i64 = page.counts.iter().map(|count| count.count).sum();
        assert_eq!(total, 7);
        seen.extend(ids(&page.jobs));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let mut newest_first: Vec<i64> = jobs.iter().map(|job| job.0).collect();
    newest_first.reverse();
    assert_eq!(seen, newest_first);

    let minute = |minutes| {
        let time = noon() + TimeDelta::minutes(minutes);
        Some(prost_types::Timestamp {
            seconds: time.timestamp(),
            nanos: 0,
        })
    };
    let none = v1::JobFilter::default;
    let cases: Vec<(&str, v1::JobFilter, Vec<usize>)> = vec![
        (
            "states",
            v1::JobFilter {
                states: vec![
                    v1::job::State::Running.into(),
                    v1::job::State::Failed.into(),
                ],
                ..none()
            },
            vec![3, 0],
        ),
        (
            "tracker",
            v1::JobFilter {
                tracker: "intg-88".to_owned(),
                ..none()
            },
            vec![6, 4, 2, 0],
        ),
        (
            "label with a value",
            v1::JobFilter {
                labels: [("kind".to_owned(), "k1".to_owned())].into(),
                ..none()
            },
            vec![4, 1],
        ),
        (
            "label with any value",
            v1::JobFilter {
                labels: [
                    ("kind".to_owned(), String::new()),
                    ("nightly".to_owned(), String::new()),
                ]
                .into(),
                ..none()
            },
            vec![6, 5, 4, 3, 2, 1, 0],
        ),
        (
            "label nobody has",
            v1::JobFilter {
                labels: [("weekly".to_owned(), String::new())].into(),
                ..none()
            },
            vec![],
        ),
        (
            "worker",
            v1::JobFilter {
                worker: "alpha".to_owned(),
                ..none()
            },
            vec![3],
        ),
        (
            "time",
            v1::JobFilter {
                created_after: minute(2),
                created_before: minute(4),
                ..none()
            },
            vec![3, 2],
        ),
        (
            "ids",
            v1::JobFilter {
                ids: vec![jobs[5].0, jobs[1].0, 999],
                ..none()
            },
            vec![5, 1],
        ),
        (
            "two at once",
            v1::JobFilter {
                tracker: "OTHER-1".to_owned(),
                states: vec![v1::job::State::Queued.into()],
                ..none()
            },
            vec![5, 1],
        ),
    ];
    for (name, filter, expected) in cases {
        let page = list(&coordinator, filtered(filter)).await;
        let expected: Vec<i64> = expected.into_iter().map(|index| jobs[index].0).collect();
        assert_eq!(ids(&page.jobs), expected, "by {name}");
        let counted: i64 = page.counts.iter().map(|count| count.count).sum();
        assert_eq!(counted as usize, expected.len(), "counted by {name}");
    }
}

#[sqlx::test]
async fn a_page_of_large_jobs_ends_early_and_loses_nothing(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    for _ in 0..5 {
        let large = JobSpec {
            command: vec!["true".to_owned(), "x".repeat(5 * 1024 * 1024)],
            ..spec("large")
        };
        coordinator
            .rows
            .job_of(large, JobState::Queued, noon())
            .await;
    }
    let first = list(&coordinator, v1::ListJobsRequest::default()).await;
    assert_eq!(first.jobs.len(), 2);
    let second = list(
        &coordinator,
        v1::ListJobsRequest {
            page_token: first.next_page_token,
            ..v1::ListJobsRequest::default()
        },
    )
    .await;
    assert_eq!(second.jobs.len(), 2);
    assert!(!second.next_page_token.is_empty());
}

#[sqlx::test]
async fn wrong_questions_name_their_field(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let wrong = [
        v1::ListJobsRequest {
            page_token: "bogus".to_owned(),
            ..v1::ListJobsRequest::default()
        },
        v1::ListJobsRequest {
            page_size: -1,
            ..v1::ListJobsRequest::default()
        },
        filtered(v1::JobFilter {
            states: vec![99],
            ..v1::JobFilter::default()
        }),
    ];
    for (request, field) in wrong
        .into_iter()
        .zip(["page_token", "page_size", "filter.states[0]"])
    {
        let status = coordinator.jobs().list_jobs(request).await.unwrap_err();
        let fault = Fault::from_status(&status).unwrap();
        assert_eq!(fault.reason, Reason::InvalidField);
        assert_eq!(fault.field.as_deref(), Some(field));
        assert!(fault.hint.is_some());
    }
}

#[sqlx::test]
async fn history_comes_oldest_first_and_in_pages(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let job = coordinator.rows.job("a", JobState::Queued).await;
    let other = coordinator.rows.job("b", JobState::Queued).await;
    for kind in ["submitted", "assigned", "started"] {
        coordinator.rows.event(Some(job), kind, noon()).await;
        coordinator.rows.event(Some(other), kind, noon()).await;
    }
    let ask = |job_id, after, page_size, page_token: &str| v1::ListEventsRequest {
        job_id,
        after,
        page_size,
        page_token: page_token.to_owned(),
    };
    let events = |request| async {
        coordinator
            .jobs()
            .list_events(request)
            .await
            .unwrap()
            .into_inner()
    };
    let first = events(ask(job.0, 0, 2, "")).await;
    let kinds: Vec<&str> = first
        .events
        .iter()
        .map(|event| event.kind.as_str())
        .collect();
    assert_eq!(kinds, ["submitted", "assigned"]);
    let second = events(ask(job.0, 0, 2, &first.next_page_token)).await;
    assert_eq!(second.events[0].kind, "started");
    assert_eq!(second.next_page_token, "");
    let all = events(ask(0, 0, 0, "")).await;
    assert_eq!(all.events.len(), 6);
    let later = events(ask(0, all.events[3].id, 0, "")).await;
    assert_eq!(later.events.len(), 2);
    let missing = coordinator.jobs().list_events(ask(999, 0, 0, "")).await;
    assert_eq!(reason(&missing.unwrap_err()), Reason::JobNotFound);
}

#[sqlx::test]
async fn a_watch_lists_then_tells_each_change_once_it_is_committed(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let worker = coordinator.rows.worker("alpha", 1).await;
    let first = coordinator.rows.job("a", JobState::Queued).await;
    let second = coordinator.rows.job("b", JobState::Queued).await;
    let mut stream = watch(&coordinator, v1::WatchJobsRequest::default()).await;
    assert_eq!(next(&mut stream).await.job.unwrap().id, second.0);
    assert_eq!(next(&mut stream).await.job.unwrap().id, first.0);
    assert!(next(&mut stream).await.caught_up);

    let fence = coordinator.rows.attempt(first, worker).await;
    coordinator.app.changes.tell_jobs([first]);
    let change = next(&mut stream).await.job.unwrap();
    assert_eq!(
        (change.id, change.state()),
        (first.0, v1::job::State::Running)
    );

    coordinator.rows.end_attempt(fence, Some(0)).await;
    coordinator
        .rows
        .end_job(first, JobState::Succeeded, noon())
        .await;
    let third = coordinator.rows.job("c", JobState::Queued).await;
    coordinator.app.changes.tell_jobs([first, third]);
    let change = next(&mut stream).await.job.unwrap();
    assert_eq!(
        (change.id, change.state()),
        (first.0, v1::job::State::Succeeded)
    );
    assert_eq!(next(&mut stream).await.job.unwrap().id, third.0);
}

#[sqlx::test]
async fn a_watch_of_a_state_tells_when_a_job_leaves_it(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let worker = coordinator.rows.worker("alpha", 1).await;
    let job = coordinator.rows.job("a", JobState::Queued).await;
    let other = coordinator.rows.job("b", JobState::Held).await;
    let mut stream = watch(
        &coordinator,
        v1::WatchJobsRequest {
            filter: Some(v1::JobFilter {
                states: vec![v1::job::State::Queued.into()],
                ..v1::JobFilter::default()
            }),
            after: 0,
        },
    )
    .await;
    assert_eq!(next(&mut stream).await.job.unwrap().id, job.0);
    assert!(next(&mut stream).await.caught_up);
    coordinator.rows.attempt(job, worker).await;
    coordinator.app.changes.tell_jobs([other, job]);
    let left = next(&mut stream).await.job.unwrap();
    assert_eq!((left.id, left.state()), (job.0, v1::job::State::Running));
    // It is no longer watched; the next message is about another job.
    coordinator
        .rows
        .end_job(job, JobState::Failed, noon())
        .await;
    let new = coordinator.rows.job("c", JobState::Queued).await;
    coordinator.app.changes.tell_jobs([job, new]);
    assert_eq!(next(&mut stream).await.job.unwrap().id, new.0);
}

#[sqlx::test]
async fn a_watch_that_comes_back_misses_nothing(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let jobs = [
        coordinator.rows.job("a", JobState::Queued).await,
        coordinator.rows.job("b", JobState::Queued).await,
    ];
    let long_ago = noon() - TimeDelta::hours(1);
    coordinator
        .rows
        .event(Some(jobs[0]), "submitted", long_ago)
        .await;
    let known = coordinator
        .rows
        .event(Some(jobs[0]), "queued", noon())
        .await;
    coordinator
        .rows
        .event(Some(jobs[1]), "submitted", noon())
        .await;
    let after = v1::WatchJobsRequest {
        after: known,
        ..v1::WatchJobsRequest::default()
    };
    let mut stream = watch(&coordinator, after).await;
    let mut told = Vec::new();
    loop {
        let message = next(&mut stream).await;
        match message.job {
            Some(job) => told.push(job.id),
            None => break,
        }
    }
    assert!(told.contains(&jobs[1].0), "{told:?}");
    // Events that are long over for someone who knows a later one are not told again.
    coordinator
        .rows
        .run("update events set time = time - interval '1 hour' where kind = 'queued'")
        .await;
    let last = coordinator.rows.event(Some(jobs[1]), "held", noon()).await;
    let after = v1::WatchJobsRequest {
        after: last,
        ..v1::WatchJobsRequest::default()
    };
    let mut stream = watch(&coordinator, after).await;
    assert_eq!(next(&mut stream).await.job.unwrap().id, jobs[1].0);
    assert!(next(&mut stream).await.caught_up);
}

#[sqlx::test]
async fn a_watch_that_fell_behind_reads_what_it_missed(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let job = coordinator.rows.job("a", JobState::Queued).await;
    coordinator.rows.event(Some(job), "submitted", noon()).await;
    let mut stream = watch(&coordinator, v1::WatchJobsRequest::default()).await;
    assert_eq!(next(&mut stream).await.job.unwrap().id, job.0);
    assert!(next(&mut stream).await.caught_up);
    let late = coordinator.rows.job("b", JobState::Queued).await;
    coordinator
        .rows
        .event(Some(late), "submitted", noon())
        .await;
    // More announcements than are kept, none of them about the new job.
    for _ in 0..5_000 {
        coordinator.app.changes.tell(Change::Workers);
    }
    loop {
        let message = next(&mut stream).await;
        if message.job.is_some_and(|job| job.id == late.0) {
            break;
        }
    }
}

#[sqlx::test]
async fn live_progress_is_told_at_most_ten_times_a_second(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let worker = coordinator.rows.worker("alpha", 1).await;
    let job = coordinator.rows.job("a", JobState::Queued).await;
    let fence = coordinator.rows.attempt(job, worker).await;
    coordinator.app.live.track(fence, job);
    let mut stream = watch(
        &coordinator,
        v1::WatchJobsRequest {
            filter: Some(v1::JobFilter {
                ids: vec![job.0],
                ..v1::JobFilter::default()
            }),
            after: 0,
        },
    )
    .await;
    next(&mut stream).await;
    assert!(next(&mut stream).await.caught_up);
    let began = tokio::time::Instant::now();
    let total = 200;
    let reporter = async {
        for done in 1..=total {
            let progress = Progress {
                done: f64::from(done),
                total: f64::from(total),
                ..Progress::default()
            };
            coordinator.app.live.set(fence, progress);
            coordinator
                .app
                .changes
                .tell(Change::Progress { job, fence });
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let mut told = 0;
    let watcher = async {
        loop {
            told += 1;
            let progress = next(&mut stream).await.job.unwrap().progress.unwrap();
            if progress.done == f64::from(total) {
                break;
            }
        }
    };
    tokio::join!(reporter, watcher);
    let tenths = began.elapsed().as_millis() / 100 + 2;
    assert!(
        told <= tenths,
        "{told} messages in {tenths} tenths of a second"
    );
}

#[sqlx::test]
async fn why_names_what_a_job_waits_for(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let job = coordinator.rows.job("a", JobState::Queued).await;
    assert_eq!(
        why(&coordinator, job).await,
        ["No worker has ever connected."]
    );

    let worker = coordinator.rows.worker("alpha", 1).await;
    let sentence = "The only worker, `alpha`, is not connected.";
    assert_eq!(why(&coordinator, job).await, [sentence]);

    let open = coordinator.app.sessions.open(
        worker,
        "alpha".to_owned(),
        "boot".to_owned(),
        uuid::Uuid::new_v4(),
        noon(),
    );
    let sentence = "It is first in the order and about to start.";
    assert_eq!(why(&coordinator, job).await, [sentence]);

    let holder = coordinator.rows.job("b", JobState::Queued).await;
    coordinator.rows.attempt(holder, worker).await;
    let later = coordinator.rows.job("c", JobState::Queued).await;
    assert_eq!(
        why(&coordinator, later).await,
        [
            format!("It waits for room on worker `alpha`, which is taken by job {holder}."),
            "1 job is ahead of it.".to_owned(),
        ]
    );

    let large = JobSpec {
        demand: Demand {
            gpus: 2,
            ..Demand::default()
        },
        ..spec("gpu")
    };
    let large = coordinator
        .rows
        .job_of(large, JobState::Queued, noon())
        .await;
    let told = why(&coordinator, large).await;
    assert_eq!(told, ["It needs 2 GPUs; the only worker, `alpha`, has 0."]);

    // A job that can never run is not in anybody's way.
    let behind = coordinator.rows.job("e", JobState::Queued).await;
    let told = why(&coordinator, behind).await;
    assert_eq!(told[1], "2 jobs are ahead of it.");

    let waiting = coordinator.rows.job("d", JobState::Waiting).await;
    coordinator.rows.depends(waiting, holder, "ok").await;
    let sentence = format!("It waits for job {holder} to succeed, which is running.");
    assert_eq!(why(&coordinator, waiting).await, [sentence]);

    coordinator
        .rows
        .run("update coordinator set queue_paused = true")
        .await;
    let told = why(&coordinator, job).await;
    assert!(told[0].starts_with("The queue is paused"), "{told:?}");
    drop(open);
}

#[sqlx::test]
async fn cleanup_deletes_what_is_old_and_only_that(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let worker = coordinator.rows.worker("alpha", 4).await;
    let mut ended = Vec::new();
    for days in [1, 10, 40] {
        let job = coordinator.rows.job("x", JobState::Queued).await;
        let fence = coordinator.rows.attempt(job, worker).await;
        coordinator
            .app
            .store
            .ensure_log_partition(today())
            .await
            .unwrap();
        let mut acks = coordinator
            .upload()
            .upload_log(tokio_stream::iter(vec![chunk(fence, 0, b"some output\n")]))
            .await
            .unwrap()
            .into_inner();
        while soon("an acknowledgement", acks.message())
            .await
            .unwrap()
            .is_some()
        {}
        coordinator.rows.end_attempt(fence, Some(12)).await;
        let at = noon() - TimeDelta::days(days);
        coordinator.rows.end_job(job, JobState::Succeeded, at).await;
        coordinator.rows.event(Some(job), "ended", at).await;
        ended.push(job);
    }
    let running = coordinator.rows.job("y", JobState::Queued).await;
    coordinator.rows.attempt(running, worker).await;
    let request = |dry_run, request_id: &str| v1::CleanupJobsRequest {
        request_id: request_id.to_owned(),
        older_than: Some(prost_types::Duration {
            seconds: 9 * 86_400,
            nanos: 0,
        }),
        dry_run,
    };
    let counted = coordinator
        .jobs()
        .cleanup_jobs(request(true, ""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(counted.deleted, 2);
    assert!(counted.log_bytes > 0);
    let deleted = coordinator
        .jobs()
        .cleanup_jobs(request(false, "once"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(deleted, counted);
    let left = list(&coordinator, v1::ListJobsRequest::default()).await;
    assert_eq!(ids(&left.jobs), [running.0, ended[0].0]);
    assert_eq!(
        coordinator
            .rows
            .count("select count(*) from log_chunks")
            .await,
        1
    );
    let orphans = "select count(*) from events where job_id not in (select id from jobs)";
    assert_eq!(coordinator.rows.count(orphans).await, 0);

    coordinator
        .rows
        .end_job(ended[0], JobState::Failed, noon() - TimeDelta::days(30))
        .await;
    let again = coordinator
        .jobs()
        .cleanup_jobs(request(false, "once"))
        .await
        .unwrap();
    assert_eq!(again.into_inner().deleted, 0);
    let reused = coordinator.jobs().cleanup_jobs(request(true, "once")).await;
    assert_eq!(reason(&reused.unwrap_err()), Reason::RequestIdReused);
}

#[sqlx::test]
async fn a_job_whose_processes_are_left_is_not_deleted(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let worker = coordinator.rows.worker("alpha", 1).await;
    let job = coordinator.rows.job("x", JobState::Queued).await;
    let fence = coordinator.rows.attempt(job, worker).await;
    coordinator.rows.end_attempt(fence, Some(0)).await;
    coordinator
        .rows
        .run("update attempts set slot_held = true")
        .await;
    coordinator
        .rows
        .end_job(job, JobState::Failed, noon() - TimeDelta::days(1))
        .await;
    let request = v1::CleanupJobsRequest::default();
    let deleted = coordinator
        .jobs()
        .cleanup_jobs(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(deleted.deleted, 0);
}

#[sqlx::test]
async fn old_output_goes_before_new_output_when_there_is_too_much(pool: PgPool) {
    let settings = Settings {
        log_bytes_kept: 1,
        ..Settings::default()
    };
    let coordinator = Coordinator::start_as(&pool, Role::Admin, settings).await;
    let worker = coordinator.rows.worker("alpha", 4).await;
    let mut jobs = Vec::new();
    for days in [3, 2] {
        let job = coordinator.rows.job("x", JobState::Queued).await;
        let fence = coordinator.rows.attempt(job, worker).await;
        let mut acks = coordinator
            .upload()
            .upload_log(tokio_stream::iter(vec![chunk(fence, 0, b"some output\n")]))
            .await
            .unwrap()
            .into_inner();
        while soon("an acknowledgement", acks.message())
            .await
            .unwrap()
            .is_some()
        {}
        coordinator.rows.end_attempt(fence, Some(12)).await;
        let at = noon() - TimeDelta::days(days);
        coordinator.rows.end_job(job, JobState::Succeeded, at).await;
        jobs.push(job);
    }
    let running = coordinator.rows.job("y", JobState::Queued).await;
    let fence = coordinator.rows.attempt(running, worker).await;
    let mut acks = coordinator
        .upload()
        .upload_log(tokio_stream::iter(vec![chunk(fence, 0, b"live\n")]))
        .await
        .unwrap()
        .into_inner();
    while soon("an acknowledgement", acks.message())
        .await
        .unwrap()
        .is_some()
    {}

    let deleted = coordinator.app.retain().await.unwrap();
    assert_eq!(deleted.jobs, 0);
    assert!(deleted.log_bytes > 0);
    let left = "select count(distinct fence) from log_chunks";
    assert_eq!(
        coordinator.rows.count(left).await,
        1,
        "only the running job keeps its output"
    );
    // What is gone is told as a hole, not waited for.
    let mut stream = coordinator
        .logs()
        .read_log(v1::ReadLogRequest {
            job_id: jobs[0].0,
            follow: true,
            ..v1::ReadLogRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    let piece = soon("a hole", stream.message()).await.unwrap().unwrap();
    assert_eq!((piece.hole_bytes, piece.offset), (12, 12));
    assert!(
        soon("the end", stream.message())
            .await
            .unwrap()
            .unwrap()
            .attempt_complete
    );
}

#[sqlx::test]
async fn partitions_come_ahead_and_go_with_their_last_job(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    coordinator.app.make_partitions().await.unwrap();
    let days = coordinator.app.store.log_partitions().await.unwrap();
    assert_eq!(days.len(), 8);
    let old = today() - TimeDelta::days(100);
    let kept = today() - TimeDelta::days(5);
    for day in [old, kept] {
        coordinator
            .app
            .store
            .ensure_log_partition(day)
            .await
            .unwrap();
        coordinator
            .app
            .store
            .ensure_log_partition(day)
            .await
            .unwrap();
    }
    coordinator
        .rows
        .job_of(spec("x"), JobState::Failed, noon() - TimeDelta::days(5))
        .await;
    coordinator.app.retain().await.unwrap();
    let days = coordinator.app.store.log_partitions().await.unwrap();
    assert!(!days.contains(&old) && days.contains(&kept), "{days:?}");
}

#[sqlx::test]
async fn history_goes_by_age_without_being_asked(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let old = noon() - TimeDelta::days(91);
    let job = coordinator
        .rows
        .job_of(spec("x"), JobState::Failed, old)
        .await;
    coordinator.rows.event(Some(job), "ended", old).await;
    coordinator.rows.event(None, "worker_connected", old).await;
    coordinator
        .rows
        .event(None, "worker_connected", noon())
        .await;
    let young = coordinator.rows.job("y", JobState::Succeeded).await;
    let deleted = coordinator.app.retain().await.unwrap();
    assert_eq!(deleted.jobs, 1);
    let left = list(&coordinator, v1::ListJobsRequest::default()).await;
    assert_eq!(ids(&left.jobs), [young.0]);
    assert_eq!(
        coordinator.rows.count("select count(*) from events").await,
        1
    );
}

#[sqlx::test]
async fn workers_show_what_they_run_and_did(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let alpha = coordinator.rows.worker("alpha", 2).await;
    coordinator.rows.worker("beta", 1).await;
    let done = coordinator.rows.job("done", JobState::Queued).await;
    let fence = coordinator.rows.attempt(done, alpha).await;
    coordinator.rows.end_attempt(fence, Some(0)).await;
    coordinator
        .rows
        .end_job(done, JobState::Succeeded, noon())
        .await;
    let live = coordinator.rows.job("live", JobState::Queued).await;
    coordinator.rows.attempt(live, alpha).await;
    let session = coordinator.app.sessions.open(
        alpha,
        "alpha".to_owned(),
        "boot".to_owned(),
        uuid::Uuid::new_v4(),
        noon(),
    );
    let page = coordinator
        .queue()
        .list_workers(v1::ListWorkersRequest {
            page_size: 1,
            ..v1::ListWorkersRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    let worker = &page.workers[0];
    assert_eq!(
        (worker.name.as_str(), worker.state()),
        ("alpha", v1::worker::State::Online)
    );
    assert_eq!((worker.slots, worker.slots_taken), (2, 1));
    assert_eq!(worker.running[0].job_id, live.0);
    assert_eq!((worker.ended_today, worker.last_job_id), (1, done.0));
    assert_eq!(worker.mean_duration.unwrap().seconds, 2);
    let rest = coordinator
        .queue()
        .list_workers(v1::ListWorkersRequest {
            page_token: page.next_page_token,
            ..v1::ListWorkersRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(rest.workers[0].name, "beta");
    assert_eq!(rest.workers[0].state(), v1::worker::State::Offline);

    coordinator.app.sessions.close(alpha, session.session);
    coordinator.clock.advance(Duration::from_secs(61));
    let status = coordinator
        .queue()
        .get_status(v1::GetStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.workers[0].state(), v1::worker::State::Unreachable);
    assert_eq!(status.url, "http://queue.test/?k=key");
    let counts: Vec<_> = status
        .counts
        .iter()
        .map(|count| (count.state(), count.count))
        .collect();
    assert!(counts.contains(&(v1::job::State::Running, 1)), "{counts:?}");
    assert!(
        counts.contains(&(v1::job::State::Succeeded, 1)),
        "{counts:?}"
    );
}

#[sqlx::test]
async fn a_reader_may_not_change_anything(pool: PgPool) {
    let coordinator = Coordinator::start_as(&pool, Role::Read, Settings::default()).await;
    let job = coordinator.rows.job("a", JobState::Queued).await;
    let cancel = v1::CancelJobRequest {
        id: job.0,
        ..v1::CancelJobRequest::default()
    };
    let refused = coordinator.jobs().cancel_job(cancel).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let paused = v1::SetQueuePausedRequest {
        paused: true,
        ..v1::SetQueuePausedRequest::default()
    };
    let refused = coordinator
        .queue()
        .set_queue_paused(paused)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(
        coordinator
            .jobs()
            .get_job(v1::GetJobRequest { id: job.0 })
            .await
            .is_ok()
    );
}

#[sqlx::test]
async fn a_submission_is_answered_with_its_jobs_in_order(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let job = |name: &str, after: Vec<v1::Dependency>| v1::JobSpec {
        name: name.to_owned(),
        command: vec!["true".to_owned()],
        cwd: "/".to_owned(),
        after,
        ..v1::JobSpec::default()
    };
    let first_of_batch = v1::Dependency {
        job_id: -1,
        condition: v1::dependency::Condition::Ok.into(),
    };
    let request = v1::SubmitJobsRequest {
        request_id: "r1".to_owned(),
        jobs: vec![job("one", vec![]), job("two", vec![first_of_batch])],
    };
    let answer = coordinator
        .jobs()
        .submit_jobs(request.clone())
        .await
        .unwrap()
        .into_inner();
    let names: Vec<_> = answer
        .jobs
        .iter()
        .map(|job| (job.spec.as_ref().unwrap().name.clone(), job.state()))
        .collect();
    assert_eq!(
        names,
        [
            ("one".to_owned(), v1::job::State::Queued),
            ("two".to_owned(), v1::job::State::Waiting),
        ]
    );
    let second = JobId(answer.jobs[1].id);
    let sentence = format!(
        "It waits for job {} to succeed, which is queued.",
        answer.jobs[0].id
    );
    assert_eq!(why(&coordinator, second).await, [sentence]);
    let again = coordinator
        .jobs()
        .submit_jobs(request)
        .await
        .unwrap()
        .into_inner();
    assert!(again.replayed);
    assert_eq!(ids(&again.jobs), ids(&answer.jobs));

    let bad = v1::SubmitJobsRequest {
        request_id: String::new(),
        jobs: vec![
            job("fine", vec![]),
            v1::JobSpec {
                cwd: "not/absolute".to_owned(),
                ..job("bad", vec![])
            },
        ],
    };
    let refused = coordinator.jobs().submit_jobs(bad).await.unwrap_err();
    assert_eq!(
        Fault::from_status(&refused).unwrap().field.as_deref(),
        Some("jobs[1].cwd")
    );
}
