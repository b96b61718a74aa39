//! Output through the services: uploaded, read, followed.

use qctl_proto::error::{Fault, Reason};
use qctl_proto::v1;
use qctl_server_core::{Fence, JobId, JobState};
use sqlx::PgPool;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::testing::{Coordinator, chunk, chunk_of, closing, eventually, hole, soon};
use crate::app::{Change, Role, Settings};
use crate::store::fixtures::noon;

async fn running(coordinator: &Coordinator) -> (JobId, Fence) {
    let worker = coordinator.rows.worker("alpha", 1).await;
    let job = coordinator.rows.job("a", JobState::Queued).await;
    let fence = coordinator.rows.attempt(job, worker).await;
    (job, fence)
}

/// Sends chunks over one connection and returns all acknowledgements.
async fn upload(
    coordinator: &Coordinator,
    chunks: Vec<v1::UploadLogRequest>,
) -> Vec<v1::UploadLogResponse> {
    let mut acks = coordinator
        .upload()
        .upload_log(tokio_stream::iter(chunks))
        .await
        .unwrap()
        .into_inner();
    let mut all = Vec::new();
    while let Some(ack) = soon("an acknowledgement", acks.message()).await.unwrap() {
        all.push(ack);
    }
    all
}

fn stored(acks: &[v1::UploadLogResponse], fence: Fence) -> Option<i64> {
    acks.iter()
        .rev()
        .find(|ack| ack.fence == fence.0)
        .map(|ack| ack.stored)
}

async fn open(
    coordinator: &Coordinator,
    request: v1::ReadLogRequest,
) -> Streaming<v1::ReadLogResponse> {
    coordinator
        .logs()
        .read_log(request)
        .await
        .unwrap()
        .into_inner()
}

async fn next(stream: &mut Streaming<v1::ReadLogResponse>) -> Option<v1::ReadLogResponse> {
    soon("a piece of output", stream.message()).await.unwrap()
}

async fn read(coordinator: &Coordinator, request: v1::ReadLogRequest) -> Vec<v1::ReadLogResponse> {
    let mut stream = open(coordinator, request).await;
    let mut pieces = Vec::new();
    while let Some(piece) = next(&mut stream).await {
        pieces.push(piece);
    }
    pieces
}

fn text(pieces: &[v1::ReadLogResponse]) -> String {
    let bytes: Vec<u8> = pieces
        .iter()
        .flat_map(|piece| piece.data.to_vec())
        .collect();
    String::from_utf8(bytes).unwrap()
}

fn from_start(job: JobId) -> v1::ReadLogRequest {
    v1::ReadLogRequest {
        job_id: job.0,
        ..v1::ReadLogRequest::default()
    }
}

#[sqlx::test]
async fn what_was_uploaded_is_read_back(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let (job, fence) = running(&coordinator).await;
    let acks = upload(
        &coordinator,
        vec![
            chunk(fence, 0, b"one\n"),
            chunk(fence, 4, b"two\n"),
            chunk(fence, 8, &[0xff, 0xfe, b'\n']),
        ],
    )
    .await;
    assert_eq!(stored(&acks, fence), Some(11));
    let pieces = read(&coordinator, from_start(job)).await;
    let bytes: Vec<u8> = pieces
        .iter()
        .flat_map(|piece| piece.data.to_vec())
        .collect();
    assert_eq!(bytes, b"one\ntwo\n\xff\xfe\n");
    assert!(pieces.iter().all(|piece| !piece.attempt_complete));
    let run = &pieces[0].runs[0];
    assert_eq!((run.length, run.time.unwrap().seconds), (4, 1));

    coordinator.rows.end_attempt(fence, Some(11)).await;
    let pieces = read(&coordinator, from_start(job)).await;
    assert!(pieces.last().unwrap().attempt_complete);
}

/// A worker takes an answer that repeats the one before as a refusal, and sends again from there.
#[sqlx::test]
async fn what_joins_on_is_never_answered_twice(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let (_, fence) = running(&coordinator).await;
    let chunks = (0..2_000).map(|index| chunk(fence, index * 4, b"abc\n"));
    let acks = upload(&coordinator, chunks.collect()).await;
    let told: Vec<i64> = acks.iter().map(|ack| ack.stored).collect();
    assert!(told.is_sorted_by(|one, next| one < next), "{told:?}");
    assert_eq!(told.last(), Some(&8_000));
}

#[sqlx::test]
async fn repeated_lost_and_foreign_chunks_change_nothing(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let (job, fence) = running(&coordinator).await;
    let acks = upload(
        &coordinator,
        vec![
            chunk(fence, 0, b"one\n"),
            chunk(fence, 0, b"one\n"),
            chunk(fence, 8, b"three\n"),
            chunk(Fence(999), 0, b"of nobody\n"),
        ],
    )
    .await;
    assert_eq!(stored(&acks, fence), Some(4));
    let unknown = acks.iter().find(|ack| ack.fence == 999).unwrap();
    assert!(unknown.unknown);
    assert_eq!(text(&read(&coordinator, from_start(job)).await), "one\n");
}

#[sqlx::test]
async fn a_damaged_chunk_ends_the_upload_and_is_not_stored(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let (job, fence) = running(&coordinator).await;
    let damaged = v1::UploadLogRequest {
        crc32c: 1,
        ..chunk(fence, 0, b"one\n")
    };
    let mut acks = coordinator
        .upload()
        .upload_log(tokio_stream::iter(vec![damaged]))
        .await
        .unwrap()
        .into_inner();
    let status = soon("a refusal", acks.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(read(&coordinator, from_start(job)).await, []);
}

#[sqlx::test]
async fn many_chunks_of_many_attempts_arrive_whole(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let worker = coordinator.rows.worker("alpha", 8).await;
    let mut uploads = Vec::new();
    let mut jobs = Vec::new();
    for index in 0..8_u8 {
        let job = coordinator.rows.job("a", JobState::Queued).await;
        let fence = coordinator.rows.attempt(job, worker).await;
        let mut offset = 0;
        let mut chunks = Vec::new();
        let mut whole = String::new();
        for line in 0..50 {
            let piece = format!("{index}:{line}\n").repeat(usize::from(index) * 40 + 1);
            chunks.push(chunk(fence, offset, piece.as_bytes()));
            offset += piece.len() as i64;
            whole.push_str(&piece);
        }
        uploads.push(chunks);
        jobs.push((job, fence, whole));
    }
    let acks = futures_util::future::join_all(
        uploads
            .into_iter()
            .map(|chunks| upload(&coordinator, chunks)),
    )
    .await;
    for (acks, (job, fence, whole)) in acks.iter().zip(&jobs) {
        assert_eq!(stored(acks, *fence), Some(whole.len() as i64));
        assert!(text(&read(&coordinator, from_start(*job)).await) == *whole);
    }
}

#[sqlx::test]
async fn the_last_lines_are_found_without_reading_the_rest(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let (job, fence) = running(&coordinator).await;
    upload(
        &coordinator,
        vec![
            chunk(fence, 0, b"1\n2\n"),
            chunk(fence, 4, b"3\n4"),
            chunk(fence, 7, b"4\n5\n6"),
        ],
    )
    .await;
    for (lines, expected) in [
        (0, ""),
        (1, "6"),
        (2, "5\n6"),
        (3, "44\n5\n6"),
        (5, "2\n3\n44\n5\n6"),
        (6, "1\n2\n3\n44\n5\n6"),
        (100, "1\n2\n3\n44\n5\n6"),
    ] {
        let request = v1::ReadLogRequest {
            tail_lines: Some(lines),
            ..from_start(job)
        };
        let pieces = read(&coordinator, request).await;
        assert_eq!(text(&pieces), expected, "the last {lines} lines");
    }
    upload(&coordinator, vec![chunk(fence, 12, b"\n")]).await;
    let request = v1::ReadLogRequest {
        tail_lines: Some(1),
        ..from_start(job)
    };
    assert_eq!(text(&read(&coordinator, request).await), "6\n");
}

#[sqlx::test]
async fn one_stream_a_time_and_an_offset_select(pool: PgPool) {
    use v1::LogStream::{Stderr, Stdout};
    let coordinator = Coordinator::start(&pool).await;
    let (job, fence) = running(&coordinator).await;
    upload(
        &coordinator,
        vec![
            chunk_of(fence, 0, &[(Stdout, b"o1\n", 10), (Stderr, b"e1\n", 20)]),
            chunk_of(fence, 6, &[(Stdout, b"o2\n", 30)]),
            chunk_of(fence, 9, &[(Stderr, b"e2\n", 40), (Stdout, b"o3\n", 50)]),
        ],
    )
    .await;
    let base = from_start(job);
    let stderr = v1::ReadLogRequest {
        stream: Stderr.into(),
        ..base
    };
    let pieces = read(&coordinator, stderr).await;
    assert_eq!(text(&pieces), "e1\ne2\n");
    let offsets: Vec<i64> = pieces.iter().map(|piece| piece.offset).collect();
    assert_eq!(offsets, [3, 9]);
    let last = v1::ReadLogRequest {
        tail_lines: Some(1),
        ..stderr
    };
    assert_eq!(text(&read(&coordinator, last).await), "e2\n");
    let since = v1::ReadLogRequest {
        since: Some(prost_types::Timestamp {
            seconds: 20,
            nanos: 0,
        }),
        ..base
    };
    assert_eq!(text(&read(&coordinator, since).await), "e1\no2\ne2\no3\n");
    let future = v1::ReadLogRequest {
        since: Some(prost_types::Timestamp {
            seconds: 51,
            nanos: 0,
        }),
        ..base
    };
    assert_eq!(text(&read(&coordinator, future).await), "");
    let middle = v1::ReadLogRequest { offset: 7, ..base };
    assert_eq!(text(&read(&coordinator, middle).await), "2\ne2\no3\n");
}

#[sqlx::test]
async fn a_hole_is_told_and_its_lines_count(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let (job, fence) = running(&coordinator).await;
    let acks = upload(
        &coordinator,
        vec![
            chunk(fence, 0, b"head\n"),
            hole(fence, 5, 1_000, 30),
            chunk(fence, 1_005, b"tail\n"),
        ],
    )
    .await;
    assert_eq!(stored(&acks, fence), Some(1_010));
    let pieces = read(&coordinator, from_start(job)).await;
    let told: Vec<_> = pieces
        .iter()
        .map(|piece| (piece.offset, piece.hole_bytes, piece.data.as_ref()))
        .collect();
    assert_eq!(
        told,
        [
            (0, 0, b"head\n".as_slice()),
            (1_005, 1_000, b""),
            (1_005, 0, b"tail\n"),
        ]
    );
    let last = v1::ReadLogRequest {
        tail_lines: Some(2),
        ..from_start(job)
    };
    let pieces = read(&coordinator, last).await;
    assert_eq!(
        (pieces[0].hole_bytes, text(&pieces)),
        (1_000, "tail\n".to_owned())
    );
}

/// Kinds of the events of a job, in order.
async fn kinds(coordinator: &Coordinator, job: JobId) -> Vec<String> {
    let events = coordinator.app.store.events(Some(job), 0, 100).await;
    let events = events.unwrap().into_iter();
    events.map(|event| event.kind).collect()
}

#[sqlx::test]
async fn a_whole_output_is_compared_with_what_was_written(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let (job, fence) = running(&coordinator).await;
    let whole = b"one\ntwo\n";
    let chunks = vec![
        chunk(fence, 0, b"one\n"),
        v1::UploadLogRequest {
            last: true,
            log_crc32c: crc32c::crc32c(whole),
            ..chunk(fence, 4, b"two\n")
        },
    ];
    let acks = upload(&coordinator, chunks).await;
    let last = acks.last().unwrap();
    assert_eq!((last.stored, last.closed), (8, true));
    // Asked again, perhaps by another agent, it is as true.
    let acks = upload(&coordinator, vec![closing(fence, whole)]).await;
    assert!(acks[0].closed && acks[0].stored == 8);
    // What is not all there yet is not closed.
    let acks = upload(&coordinator, vec![closing(fence, b"one\ntwo\nthree\n")]).await;
    assert!(!acks[0].closed && acks[0].stored == 8);
    assert_eq!(kinds(&coordinator, job).await, [""; 0]);
}

#[sqlx::test]
async fn output_that_differs_is_taken_again_and_told_if_it_still_does(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let (job, fence) = running(&coordinator).await;
    let (right, wrong) = (b"right\n", b"wrong\n");
    let acks = upload(
        &coordinator,
        vec![chunk(fence, 0, wrong), closing(fence, right)],
    )
    .await;
    assert_eq!(stored(&acks, fence), Some(0));
    assert!(acks.iter().all(|ack| !ack.closed));
    assert_eq!(read(&coordinator, from_start(job)).await, []);
    assert_eq!(kinds(&coordinator, job).await, ["output_resent"]);

    let acks = upload(
        &coordinator,
        vec![chunk(fence, 0, wrong), closing(fence, right)],
    )
    .await;
    let last = acks.last().unwrap();
    assert_eq!((last.stored, last.closed), (6, true));
    assert_eq!(text(&read(&coordinator, from_start(job)).await), "wrong\n");
    assert_eq!(
        kinds(&coordinator, job).await,
        ["output_resent", "output_differs"]
    );
}

#[sqlx::test]
async fn a_gap_says_why_and_is_told_once(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let (job, fence) = running(&coordinator).await;
    let missing = "x\n".repeat(500);
    let whole = format!("head\n{missing}tail\n");
    let gap = v1::UploadLogRequest {
        hole_cause: v1::HoleCause::Limit.into(),
        lines_behind: Some(501),
        crc32c_behind: Some(crc32c::crc32c(&whole.as_bytes()[..1_005])),
        ..hole(fence, 5, 1_000, 9)
    };
    let acks = upload(
        &coordinator,
        vec![
            chunk(fence, 0, b"head\n"),
            gap,
            chunk(fence, 1_005, b"tail\n"),
            closing(fence, whole.as_bytes()),
        ],
    )
    .await;
    assert!(acks.last().unwrap().closed);
    let pieces = read(&coordinator, from_start(job)).await;
    assert_eq!((pieces[1].hole_bytes, pieces[1].hole_lines), (1_000, 500));
    assert_eq!(pieces[1].hole_cause(), v1::HoleCause::Limit);
    let page = coordinator.app.log_text(job, None, 1_000, 10_000).await;
    let page = page.unwrap().unwrap();
    let parts: Vec<_> = page
        .parts()
        .map(|(gap, text)| (gap.map(|gap| gap.lines), text))
        .collect();
    assert_eq!(
        parts,
        [
            (None, b"head\n".as_slice()),
            (Some(500), b"tail\n".as_slice())
        ]
    );
    assert_eq!(kinds(&coordinator, job).await, ["output_missing"]);
}

#[sqlx::test]
async fn a_follower_sees_a_line_soon_after_it_was_sent(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let (job, fence) = running(&coordinator).await;
    let (chunks, receiver) = mpsc::channel(8);
    let mut acks = coordinator
        .upload()
        .upload_log(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    let mut stream = open(
        &coordinator,
        v1::ReadLogRequest {
            follow: true,
            ..from_start(job)
        },
    )
    .await;
    let mut offset = 0;
    let mut waits = Vec::new();
    for index in 0..50 {
        let line = format!("line {index}\n");
        let sent = Instant::now();
        chunks
            .send(chunk(fence, offset, line.as_bytes()))
            .await
            .unwrap();
        let piece = next(&mut stream).await.unwrap();
        waits.push(sent.elapsed());
        assert_eq!(piece.data, line.as_bytes());
        offset += line.len() as i64;
    }
    waits.sort_unstable();
    // A follower that had to look by itself would take two seconds. The benchmark measures.
    assert!(waits[25].as_millis() < 500, "the median is {:?}", waits[25]);

    coordinator.rows.end_attempt(fence, Some(offset)).await;
    coordinator
        .rows
        .end_job(job, JobState::Succeeded, noon())
        .await;
    coordinator.app.changes.tell_jobs([job]);
    assert!(next(&mut stream).await.unwrap().attempt_complete);
    assert_eq!(next(&mut stream).await, None);
    drop(chunks);
    while soon("the end", acks.message()).await.unwrap().is_some() {}
}

#[sqlx::test]
async fn a_follower_waits_for_the_first_attempt_and_goes_on_into_the_next(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let worker = coordinator.rows.worker("alpha", 1).await;
    let job = coordinator.rows.job("a", JobState::Queued).await;
    let mut stream = open(
        &coordinator,
        v1::ReadLogRequest {
            follow: true,
            ..from_start(job)
        },
    )
    .await;
    for (number, line) in [(1, b"first\n"), (2, b"again\n")] {
        let fence = coordinator.rows.attempt(job, worker).await;
        coordinator.app.changes.tell_jobs([job]);
        upload(&coordinator, vec![chunk(fence, 0, line)]).await;
        let piece = next(&mut stream).await.unwrap();
        assert_eq!(
            (piece.attempt, piece.data.as_ref()),
            (number, line.as_slice())
        );
        coordinator.rows.end_attempt(fence, Some(6)).await;
        coordinator.app.changes.tell_jobs([job]);
        assert!(next(&mut stream).await.unwrap().attempt_complete);
    }
    coordinator
        .rows
        .end_job(job, JobState::Failed, noon())
        .await;
    coordinator.app.changes.tell(Change::Jobs([job].into()));
    assert_eq!(next(&mut stream).await, None);
}

#[sqlx::test]
async fn output_that_never_arrived_is_called_incomplete(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let (job, fence) = running(&coordinator).await;
    upload(&coordinator, vec![chunk(fence, 0, b"some\n")]).await;
    coordinator.rows.end_attempt(fence, Some(500)).await;
    let pieces = read(&coordinator, from_start(job)).await;
    let last = pieces.last().unwrap();
    assert!(last.incomplete && !last.attempt_complete);
}

#[sqlx::test]
async fn an_attempt_that_was_given_up_is_read_without_waiting(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let worker = coordinator.rows.worker("alpha", 1).await;
    let job = coordinator.rows.job("a", JobState::Queued).await;
    let fence = coordinator.rows.attempt(job, worker).await;
    upload(&coordinator, vec![chunk(fence, 0, b"some\n")]).await;
    coordinator.rows.end_attempt(fence, None).await;
    let _session = coordinator.app.sessions.open(
        worker,
        "alpha".to_owned(),
        "boot".to_owned(),
        uuid::Uuid::new_v4(),
        noon(),
    );
    let pieces = read(&coordinator, from_start(job)).await;
    assert_eq!(text(&pieces), "some\n");
    assert!(pieces.last().unwrap().incomplete);
}

#[sqlx::test]
async fn a_follower_of_a_deleted_job_is_told(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let (job, fence) = running(&coordinator).await;
    upload(&coordinator, vec![chunk(fence, 0, b"some\n")]).await;
    let mut stream = open(
        &coordinator,
        v1::ReadLogRequest {
            follow: true,
            ..from_start(job)
        },
    )
    .await;
    next(&mut stream).await.unwrap();
    coordinator.rows.run("delete from jobs").await;
    coordinator.app.changes.tell_jobs([job]);
    let status = soon("an error", stream.message()).await.unwrap_err();
    assert_eq!(
        Fault::from_status(&status).unwrap().reason,
        Reason::JobNotFound
    );
}

#[sqlx::test]
async fn what_is_not_there_is_refused_at_once(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let job = coordinator.rows.job("a", JobState::Queued).await;
    let missing = coordinator.logs().read_log(from_start(JobId(77))).await;
    assert_eq!(missing.err().unwrap().code(), Code::NotFound);
    let early = coordinator.logs().read_log(from_start(job)).await;
    let fault = Fault::from_status(&early.err().unwrap()).unwrap();
    assert_eq!(fault.reason, Reason::AttemptNotFound);
    assert!(fault.message.contains("not been started"));
    let beyond = v1::ReadLogRequest {
        attempt: 3,
        follow: true,
        ..from_start(job)
    };
    let beyond = coordinator.logs().read_log(beyond).await;
    assert_eq!(beyond.err().unwrap().code(), Code::NotFound);
}

#[sqlx::test]
async fn roles_are_checked(pool: PgPool) {
    let coordinator = Coordinator::start_as(&pool, Role::Read, Settings::default()).await;
    let refused = coordinator
        .upload()
        .upload_log(tokio_stream::iter(Vec::new()))
        .await;
    assert_eq!(refused.err().unwrap().code(), Code::PermissionDenied);
    let worker = Coordinator::start_as(&pool, Role::Worker, Settings::default()).await;
    let refused = worker.logs().read_log(from_start(JobId(1))).await;
    assert_eq!(refused.err().unwrap().code(), Code::PermissionDenied);
}

#[sqlx::test]
async fn a_stopping_coordinator_ends_its_streams(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let (job, _) = running(&coordinator).await;
    let mut stream = open(
        &coordinator,
        v1::ReadLogRequest {
            follow: true,
            ..from_start(job)
        },
    )
    .await;
    coordinator.app.stop().cancel();
    let status = soon("an error", stream.message()).await.unwrap_err();
    assert_eq!(
        Fault::from_status(&status).unwrap().reason,
        Reason::ShuttingDown
    );
}

#[sqlx::test]
async fn a_follower_wakes_no_one_else_once_it_has_gone(pool: PgPool) {
    let coordinator = Coordinator::start(&pool).await;
    let (job, _) = running(&coordinator).await;
    for _ in 0..20 {
        let stream = open(
            &coordinator,
            v1::ReadLogRequest {
                follow: true,
                ..from_start(job)
            },
        )
        .await;
        drop(stream);
    }
    eventually("the end of all readers", || async {
        coordinator.app.logs.open_readers() == 0
    })
    .await;
}
