//! Checkpoints over the wire: told, listed, copied and given up.

use chrono::TimeDelta;
use qctl_proto::error::{Fault, Reason};
use qctl_proto::v1;
use qctl_server_core::JobState;
use qctl_server_core::checkpoint::{CheckpointId, CheckpointRow, Told};
use qctl_server_core::ledger::{Closed, Ledger};
use qctl_server_core::retry::Backoff;
use qctl_server_core::{AttemptNumber, Fence, JobId, WorkerId};
use sqlx::PgPool;
use tokio_stream::StreamExt;
use tonic::Status;
use uuid::Uuid;

use super::testing::{Coordinator, soon};
use crate::app::{Role, Settings};
use crate::store::checkpoints::{Place, begin_from, candidates, give_up, hold_checkpoints, usable};
use crate::store::fixtures::noon;
use crate::store::ledger::save;

/// A job with an attempt on a worker.
struct Published {
    job: JobId,
    worker: WorkerId,
    fence: Fence,
}

impl Published {
    async fn new(coordinator: &Coordinator) -> Self {
        let worker = coordinator.rows.worker("w", 1).await;
        let job = coordinator.rows.job("j", JobState::Queued).await;
        let fence = coordinator.rows.attempt(job, worker).await;
        Self { job, worker, fence }
    }

    /// Records a checkpoint as a transaction about a worker's report does.
    async fn tell(&self, coordinator: &Coordinator, told: Told) {
        let backoff = Backoff {
            base: std::time::Duration::ZERO,
            most: std::time::Duration::ZERO,
            random: 0.5,
        };
        let row = CheckpointRow {
            id: self.id(told.number),
            job: self.job,
            attempt: AttemptNumber(1),
            worker: self.worker,
            spool_id: Uuid::nil(),
            told,
        };
        let changes = Closed {
            checkpoints: vec![row],
            ..Ledger::new(noon(), backoff, [], []).close()
        };
        let mut conn = coordinator.app.store.acquire().await.expect("a connection");
        save(&mut conn, noon(), &changes).await.expect("saved");
    }

    fn id(&self, number: i32) -> CheckpointId {
        CheckpointId {
            fence: self.fence,
            number,
        }
    }

    /// What another worker could resume from.
    async fn candidates(&self, coordinator: &Coordinator, worker: WorkerId) -> Vec<i32> {
        let mut conn = coordinator.app.store.acquire().await.expect("a connection");
        let place = Place {
            job: self.job,
            worker,
        };
        let found = candidates(&mut conn, &[place]).await.expect("candidates");
        let found = found.get(&self.job).cloned().unwrap_or_default();
        found.iter().map(|candidate| candidate.id.number).collect()
    }

    /// Uploads a copy in pieces; returns the answers.
    async fn upload(
        &self,
        coordinator: &Coordinator,
        number: i32,
        contents: &[u8],
        pieces: impl IntoIterator<Item = std::ops::Range<usize>>,
    ) -> Result<Vec<v1::UploadCheckpointResponse>, Status> {
        let mut requests = vec![v1::UploadCheckpointRequest {
            fence: self.fence.0,
            number,
            total: contents.len() as i64,
            ..Default::default()
        }];
        requests.extend(pieces.into_iter().map(|range| {
            v1::UploadCheckpointRequest {
                offset: range.start as i64,
                data: zstd::bulk::compress(&contents[range.clone()], 1)
                    .expect("compressed")
                    .into(),
                length: range.len() as u32,
                crc32c: crc32c::crc32c(&contents[range]),
                ..Default::default()
            }
        }));
        let mut client = coordinator.transfers();
        let answers = client
            .upload_checkpoint(tokio_stream::iter(requests))
            .await?;
        soon(
            "the answers",
            answers.into_inner().collect::<Result<_, _>>(),
        )
        .await
    }

    async fn fetch(
        &self,
        coordinator: &Coordinator,
        number: i32,
        offset: i64,
    ) -> Result<Vec<u8>, Status> {
        let request = v1::FetchCheckpointRequest {
            fence: self.fence.0,
            number,
            offset,
        };
        let mut client = coordinator.transfers();
        let mut pieces = client.fetch_checkpoint(request).await?.into_inner();
        let mut contents = Vec::new();
        while let Some(piece) = soon("a piece", pieces.message()).await? {
            let bytes = zstd::bulk::decompress(&piece.data, piece.length as usize).expect("zstd");
            assert_eq!(crc32c::crc32c(&bytes), piece.crc32c);
            contents.extend(bytes);
        }
        Ok(contents)
    }
}

fn told(number: i32) -> Told {
    Told {
        number,
        step: Some(i64::from(number) * 100),
        note: String::new(),
        path: format!("/c/1.{number}/files"),
        files: 1,
        bytes: 900,
        hash: String::new(),
        created_at: noon(),
        removed: false,
    }
}

async fn listed(coordinator: &Coordinator, job: JobId, page_size: i32) -> Vec<v1::Checkpoint> {
    let mut checkpoints = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListCheckpointsRequest {
            job_id: job.0,
            page_size,
            page_token,
        };
        let page = coordinator.jobs().list_checkpoints(request).await;
        let page = page.expect("a page").into_inner();
        checkpoints.extend(page.checkpoints);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return checkpoints;
        }
    }
}

#[sqlx::test]
async fn checkpoints_are_listed_page_by_page_and_learn(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let published = Published::new(&coordinator).await;
    for number in 1..=5 {
        published.tell(&coordinator, told(number)).await;
    }
    let removed = Told {
        removed: true,
        ..told(1)
    };
    published.tell(&coordinator, removed).await;
    let hashed = Told {
        hash: "sha256:00".to_owned(),
        ..told(5)
    };
    published.tell(&coordinator, hashed).await;
    // An older message that comes again takes nothing back.
    published.tell(&coordinator, told(5)).await;
    published.tell(&coordinator, told(1)).await;
    let all = listed(&coordinator, published.job, 2).await;
    let numbers: Vec<_> = all.iter().map(|checkpoint| checkpoint.number).collect();
    assert_eq!(numbers, [5, 4, 3, 2, 1]);
    let latest: Vec<_> = all.iter().map(|checkpoint| checkpoint.latest).collect();
    assert_eq!(latest, [true, false, false, false, false]);
    assert_eq!((&*all[0].hash, all[0].step), ("sha256:00", Some(500)));
    assert_eq!(all[4].state(), v1::checkpoint::State::Removed);
    let here = published.candidates(&coordinator, published.worker).await;
    assert_eq!(here, [5, 4, 3, 2]);
    let other = coordinator.rows.worker("other", 1).await;
    assert_eq!(published.candidates(&coordinator, other).await, [0; 0]);

    let request = v1::ListCheckpointsRequest {
        job_id: 999,
        ..Default::default()
    };
    let missing = coordinator.jobs().list_checkpoints(request).await;
    let fault = Fault::from_status(&missing.unwrap_err()).expect("a fault");
    assert_eq!(fault.reason, Reason::JobNotFound);
}

#[sqlx::test]
async fn a_copy_goes_on_where_it_ended_and_comes_back_whole(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let published = Published::new(&coordinator).await;
    published.tell(&coordinator, told(1)).await;
    let contents: Vec<u8> = (0..1_000u32).map(|byte| byte as u8).collect();
    let missing = published.fetch(&coordinator, 1, 0).await.unwrap_err();
    let fault = Fault::from_status(&missing).expect("a fault");
    assert_eq!(fault.reason, Reason::CheckpointNotFound);

    let upload = published
        .upload(&coordinator, 1, &contents, std::iter::once(0..400))
        .await;
    let stored: Vec<_> = upload.unwrap().iter().map(|answer| answer.stored).collect();
    assert_eq!(stored, [0, 400]);
    // One that is not the next is answered with where to go on.
    let pieces = [0..400, 500..1_000, 400..1_000];
    let upload = published.upload(&coordinator, 1, &contents, pieces).await;
    let answers = upload.unwrap();
    let stored: Vec<_> = answers.iter().map(|answer| answer.stored).collect();
    assert_eq!(stored, [400, 400, 400, 1_000]);
    assert!(answers[3].complete);

    assert!(published.fetch(&coordinator, 1, 0).await.unwrap() == contents);
    assert!(published.fetch(&coordinator, 1, 500).await.unwrap() == contents[400..]);
    let other = coordinator.rows.worker("other", 1).await;
    assert_eq!(published.candidates(&coordinator, other).await, [1]);
    assert!(listed(&coordinator, published.job, 0).await[0].uploaded);
}

#[sqlx::test]
async fn a_piece_that_was_damaged_on_its_way_is_refused(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let published = Published::new(&coordinator).await;
    published.tell(&coordinator, told(1)).await;
    let first = v1::UploadCheckpointRequest {
        fence: published.fence.0,
        number: 1,
        total: 1_000,
        ..Default::default()
    };
    let damaged = v1::UploadCheckpointRequest {
        data: zstd::bulk::compress(b"abc", 1).unwrap().into(),
        length: 3,
        crc32c: 7,
        ..Default::default()
    };
    let requests = tokio_stream::iter([first, damaged]);
    let mut client = coordinator.transfers();
    let mut answers = client
        .upload_checkpoint(requests)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().stored, 0);
    let fault = Fault::from_status(&answers.message().await.unwrap_err()).expect("a fault");
    assert_eq!(fault.reason, Reason::InvalidField);
}

#[sqlx::test]
async fn copies_are_bounded_in_size_and_number(pool: PgPool) {
    let settings = Settings {
        checkpoint_upload_bytes: 1_000,
        checkpoint_bytes_kept: 3_500,
        ..Settings::default()
    };
    let coordinator = Coordinator::start_as(&pool, Role::Worker, settings).await;
    let published = Published::new(&coordinator).await;
    let contents = vec![7; 1_000];
    let refused = |answers: Result<Vec<v1::UploadCheckpointResponse>, Status>| {
        answers.unwrap().pop().unwrap().refused
    };
    let unknown = published.upload(&coordinator, 9, &contents, []).await;
    assert!(refused(unknown).contains("nobody needs"));
    let large = Told {
        bytes: 1_001,
        ..told(1)
    };
    published.tell(&coordinator, large).await;
    let large = published.upload(&coordinator, 1, &vec![7; 1_100], []).await;
    assert!(refused(large).contains("larger than 1000 bytes"));
    for number in 2..=4 {
        published.tell(&coordinator, told(number)).await;
        let whole = published
            .upload(&coordinator, number, &contents, std::iter::once(0..1_000))
            .await;
        assert!(whole.unwrap().pop().unwrap().complete);
    }
    let older = published.upload(&coordinator, 2, &contents, []).await;
    let older = older.unwrap().pop().unwrap();
    assert!(older.superseded && !older.refused.is_empty());
    // Of one job the two newest stay.
    let other = coordinator.rows.worker("other", 1).await;
    assert_eq!(published.candidates(&coordinator, other).await, [4, 3]);
    published.tell(&coordinator, told(5)).await;
    let larger = vec![7; 1_600];
    let no_room = published.upload(&coordinator, 5, &larger, []).await;
    assert!(refused(no_room).contains("no room left"));
}

#[sqlx::test]
async fn checkpoints_go_when_their_job_has_ended_well_or_long_ago(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let published = Published::new(&coordinator).await;
    published.tell(&coordinator, told(1)).await;
    let contents = vec![7; 1_000];
    let whole = published
        .upload(&coordinator, 1, &contents, std::iter::once(0..1_000))
        .await;
    assert!(whole.unwrap().pop().unwrap().complete);
    let kept = async || {
        coordinator.app.give_up_checkpoints().await.unwrap();
        let chunks = "select count(*) from checkpoint_chunks";
        (
            published
                .candidates(&coordinator, published.worker)
                .await
                .len(),
            coordinator.rows.count(chunks).await,
        )
    };
    assert_eq!(kept().await, (1, 1));
    coordinator.rows.end_attempt(published.fence, None).await;
    let failed = JobState::Failed;
    coordinator
        .rows
        .end_job(published.job, failed, noon())
        .await;
    assert_eq!(kept().await, (1, 1), "it may be retried from it");
    let long_ago = noon() - TimeDelta::days(8);
    coordinator
        .rows
        .end_job(published.job, failed, long_ago)
        .await;
    assert_eq!(kept().await, (0, 0));
}

/// A job that failed long ago, with three checkpoints.
async fn failed_long_ago(coordinator: &Coordinator) -> Published {
    let published = Published::new(coordinator).await;
    for number in 1..=3 {
        published.tell(coordinator, told(number)).await;
    }
    coordinator.rows.end_attempt(published.fence, None).await;
    let long_ago = noon() - TimeDelta::days(8);
    let failed = JobState::Failed;
    coordinator
        .rows
        .end_job(published.job, failed, long_ago)
        .await;
    published
}

#[sqlx::test]
async fn what_a_retry_is_about_to_resume_from_is_not_given_up(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let published = failed_long_ago(&coordinator).await;
    let kept = async || {
        coordinator.app.give_up_checkpoints().await.unwrap();
        let kept = published.candidates(&coordinator, published.worker).await;
        kept.len()
    };
    // In the order of `submit`, and not committed yet.
    let again = coordinator.rows.job("again", JobState::Queued).await;
    let mut retry = pool.begin().await.unwrap();
    hold_checkpoints(&mut retry, published.job).await.unwrap();
    let found = usable(&mut retry, published.job, None).await.unwrap();
    let (id, ..) = found.expect("a checkpoint");
    begin_from(&mut retry, again, id).await.unwrap();
    assert_eq!(kept().await, 3);
    retry.commit().await.unwrap();
    assert_eq!(kept().await, 3);
    let cancelled = JobState::Cancelled;
    coordinator.rows.end_job(again, cancelled, noon()).await;
    assert_eq!(kept().await, 0);
}

#[sqlx::test]
async fn a_retry_waits_for_what_is_being_given_up(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let published = failed_long_ago(&coordinator).await;
    let mut giving_up = pool.begin().await.unwrap();
    let given_up = give_up(&mut giving_up, noon(), 10).await.unwrap();
    assert_eq!(given_up, [published.job]);
    let (of, retries) = (published.job, pool.clone());
    let retry = tokio::spawn(async move {
        let mut retry = retries.begin().await.unwrap();
        hold_checkpoints(&mut retry, of).await.unwrap();
        usable(&mut retry, of, None).await.unwrap()
    });
    soon("the retry waits for a lock", async {
        let waiting = "select count(*) from pg_stat_activity
                       where datname = current_database() and wait_event_type = 'Lock'";
        while coordinator.rows.count(waiting).await == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    giving_up.commit().await.unwrap();
    assert_eq!(retry.await.unwrap(), None, "there is nothing left");
}

#[sqlx::test]
async fn a_retry_from_a_checkpoint_falls_back_to_those_before_it(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let published = failed_long_ago(&coordinator).await;
    let again = coordinator.rows.job("again", JobState::Queued).await;
    let mut conn = pool.acquire().await.unwrap();
    begin_from(&mut conn, again, published.id(2)).await.unwrap();
    let retried = Published {
        job: again,
        worker: published.worker,
        fence: Fence(0),
    };
    // Those after the one that was named are not what was asked for.
    let found = retried.candidates(&coordinator, published.worker).await;
    assert_eq!(found, [2, 1]);
    let newest = async || {
        let mut conn = pool.acquire().await.unwrap();
        let found = usable(&mut conn, again, None).await.unwrap();
        found.map(|(id, job, _)| (id.number, job))
    };
    assert_eq!(newest().await, Some((2, published.job)));
    let damaged = "update checkpoints set damaged = true where number = 2";
    sqlx::raw_sql(damaged).execute(&pool).await.unwrap();
    assert_eq!(newest().await, Some((1, published.job)));
}
