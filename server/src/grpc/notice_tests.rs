//! What a worker's machine has to tell, over the wire.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use qctl_proto::v1;
use qctl_proto::v1::notice_service_client::NoticeServiceClient;
use qctl_server_core::notice::Class;
use sqlx::PgPool;
use tonic::Code;
use tonic::transport::Channel;

use super::convert::timestamp;
use super::testing::Coordinator;
use crate::app::notices::NoticeRecord;
use crate::app::read::PageRequest;
use crate::app::{Role, Settings};
use crate::store::fixtures::noon;

async fn start(pool: &PgPool, role: Role) -> (Coordinator, NoticeServiceClient<Channel>) {
    let coordinator = Coordinator::start_as(pool, role, Settings::default()).await;
    let client = coordinator.notices();
    (coordinator, client)
}

fn panic(key: &str, at: DateTime<Utc>) -> v1::ReportPanicRequest {
    v1::ReportPanicRequest {
        key: key.to_owned(),
        program: "qctl-worker".to_owned(),
        host: "gpu-1".to_owned(),
        place: "worker/src/x.rs:7".to_owned(),
        text: "index out of bounds\0".to_owned(),
        time: Some(timestamp(at)),
    }
}

async fn history(coordinator: &Coordinator) -> Vec<NoticeRecord> {
    let page = PageRequest {
        size: 0,
        token: String::new(),
    };
    coordinator
        .app
        .notice_page(None, &page)
        .await
        .unwrap()
        .notices
}

#[sqlx::test]
async fn a_panic_that_is_reported_again_is_one_notice(pool: PgPool) {
    let (coordinator, mut client) = start(&pool, Role::Worker).await;
    let at = noon() - TimeDelta::minutes(3);
    client.report_panic(panic("a-1", at)).await.unwrap();
    // The answer was lost; then the agent panics at the same place again.
    client.report_panic(panic("a-1", at)).await.unwrap();
    client.report_panic(panic("a-2", noon())).await.unwrap();
    let known = history(&coordinator).await;
    assert_eq!(known.len(), 1, "{known:#?}");
    assert_eq!(known[0].class, Class::Panic);
    assert_eq!(known[0].subject, "program qctl-worker on gpu-1");
    assert_eq!(known[0].created_at, at);
    // Even after a day, when the same fault would be news, an old report is none.
    coordinator.clock.advance(Duration::from_secs(25 * 3_600));
    coordinator
        .rows
        .run("update notices set over_at = created_at")
        .await;
    client.report_panic(panic("a-1", at)).await.unwrap();
    assert_eq!(history(&coordinator).await.len(), 1);
    client.report_panic(panic("a-3", at)).await.unwrap();
    assert_eq!(history(&coordinator).await.len(), 2);
}

#[sqlx::test]
async fn a_clock_that_cannot_be_right_tells_no_time(pool: PgPool) {
    let (coordinator, mut client) = start(&pool, Role::Worker).await;
    let reports = [
        ("1970", DateTime::UNIX_EPOCH),
        ("later", noon() + TimeDelta::hours(1)),
    ];
    for (program, at) in reports {
        let report = v1::ReportPanicRequest {
            program: program.to_owned(),
            ..panic(program, at)
        };
        client.report_panic(report).await.unwrap();
    }
    let known = history(&coordinator).await;
    assert_eq!(known.len(), 2);
    assert!(known.iter().all(|notice| notice.created_at == noon()));
}

#[sqlx::test]
async fn a_report_that_says_nothing_is_refused_and_so_is_who_is_no_worker(pool: PgPool) {
    let (coordinator, mut client) = start(&pool, Role::Worker).await;
    let whole = panic("a-1", noon());
    for (report, named) in [
        (panic("", noon()), "key"),
        (panic("a/b", noon()), "key"),
        (panic(&"a".repeat(101), noon()), "key"),
        (
            v1::ReportPanicRequest {
                program: " ".to_owned(),
                ..whole.clone()
            },
            "program",
        ),
        (
            v1::ReportPanicRequest {
                host: String::new(),
                ..whole.clone()
            },
            "host",
        ),
    ] {
        let refused = client.report_panic(report).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{named}");
        assert!(refused.message().contains(named), "{}", refused.message());
    }
    assert!(history(&coordinator).await.is_empty());
    let (_reader, mut client) = start(&pool, Role::Read).await;
    let refused = client.report_panic(whole).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}
