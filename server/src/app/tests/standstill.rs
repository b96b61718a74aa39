//! A queue that stands still, on a real Postgres.

use super::*;
use crate::app::QueueWatch;

impl Coordinator {
    /// What was told of the queue, with the reason of each.
    async fn told_of_queue(&self) -> Vec<(String, Option<String>)> {
        sqlx::query_as(
            "select class, details ->> 'doing' from notices where subject = 'queue' order by id",
        )
        .fetch_all(&self.pool)
        .await
        .expect("notices")
    }
}

fn stands(doing: &str) -> (String, Option<String>) {
    ("queue_stands".to_owned(), Some(doing.to_owned()))
}

fn moves() -> (String, Option<String>) {
    ("queue_moves".to_owned(), None)
}

#[sqlx::test]
async fn a_queue_that_stands_still_is_told_with_its_reason_and_so_is_its_end(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut watch = QueueWatch::new(Duration::ZERO);
    let mut look = async || queue.app.watch_queue(&mut watch).await.expect("a look");
    look().await;
    assert_eq!(queue.told_of_queue().await, [], "nothing waits");
    let wide = JobSpec {
        demand: Demand {
            slots: 2,
            ..Demand::default()
        },
        ..spec("wide")
    };
    queue.one(wide).await;
    look().await;
    look().await;
    assert_eq!(queue.told_of_queue().await, [stands("away")]);

    let mut narrow = queue.worker("narrow", 1).await;
    let job = queue.one(spec("a")).await;
    let running = narrow.assigned().await;
    assert_eq!(running.job, job);
    look().await;
    assert_eq!(queue.told_of_queue().await, [stands("away"), moves()]);

    narrow.started(running.fence).await;
    narrow.ended(running.fence, exit(0)).await;
    narrow.committed(running.fence).await;
    look().await;
    let told = queue.told_of_queue().await;
    assert_eq!(told, [stands("away"), moves(), stands("full")]);
}

#[sqlx::test]
async fn a_queue_that_people_stop_is_not_told(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut watch = QueueWatch::new(Duration::ZERO);
    let mut look = async || queue.app.watch_queue(&mut watch).await.expect("a look");
    let paused = queue.app.set_queue_paused(&queue.user, "", true).await;
    paused.expect("paused");
    queue.one(spec("a")).await;
    look().await;
    let _worker = queue.worker("w", 1).await;
    let mode = Some(WorkerMode::Paused);
    let paused = queue.app.update_worker(&queue.user, "", "w", mode, None);
    paused.await.expect("paused");
    let resumed = queue.app.set_queue_paused(&queue.user, "", false).await;
    resumed.expect("resumed");
    look().await;
    assert_eq!(queue.told_of_queue().await, []);
}
