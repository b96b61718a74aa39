//! Episodes on a real Postgres: written once with their notice, over restarts and attempts.

use qctl_server_core::alarm::setting::Setting;
use qctl_server_core::alarm::watch::{AttemptLook, MachineLook};
use qctl_server_core::alarm::{Because, Kind};
use qctl_server_core::measures::{AttemptMeasures, MachineMeasures};
use qctl_server_core::notice::Wish;

use super::*;
use crate::app::read::PageRequest;

/// What a worker with two processors sees of a job that keeps so many of them busy.
fn busy(fence: Fence, cpus: f64) -> AttemptLook {
    AttemptLook {
        fence,
        used: AttemptMeasures {
            cpus: Some(cpus),
            ..AttemptMeasures::default()
        },
        gpu_memory: None,
    }
}

fn hot(degrees: i32) -> MachineLook {
    MachineLook {
        used: MachineMeasures {
            gpu_temperature: Some(degrees),
            ..MachineMeasures::default()
        },
        ..MachineLook::default()
    }
}

impl Coordinator {
    /// Looks every five seconds for so many minutes.
    async fn look(&self, worker: &Worker, minutes: i64, machine: &MachineLook, of: &[AttemptLook]) {
        // What is not known of an attempt is found out between two looks.
        self.app.measured(worker.hello.worker, machine, of);
        self.app.save_alarms().await.expect("saved");
        for _ in 0..minutes * 12 {
            self.clock.advance(Duration::from_secs(5));
            worker.lives();
            self.app.measured(worker.hello.worker, machine, of);
        }
        self.app.save_alarms().await.expect("saved");
    }

    /// Episodes as `kind`, whether it is over, and why nobody was told.
    async fn episodes(&self, wanted: usize) -> Vec<(String, bool, String)> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let rows: Vec<(String, bool, String)> =
                sqlx::query_as("select kind, ended_at is not null, untold from alarms order by id")
                    .fetch_all(&self.pool)
                    .await
                    .expect("alarms");
            if rows.len() >= wanted || tokio::time::Instant::now() > deadline {
                return rows;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn told(&self) -> Vec<(String, String, i32)> {
        sqlx::query_as("select class, state, repeats from notices order by id")
            .fetch_all(&self.pool)
            .await
            .expect("notices")
    }

    async fn running(&self, worker: &mut Worker, job: JobId) -> Fence {
        let fence = worker.assigned().await.fence;
        worker.started(fence).await;
        self.becomes(job, JobState::Running).await;
        fence
    }
}

fn one(kind: &str, is_over: bool, untold: &str) -> (String, bool, String) {
    (kind.to_owned(), is_over, untold.to_owned())
}

#[sqlx::test]
async fn an_alarm_is_told_once_over_restarts_and_attempts(pool: PgPool) {
    let queue = Coordinator::start(pool.clone());
    let mut worker = queue.worker("gpu1", 1).await;
    let job = queue.one(spec("train")).await;
    let fence = queue.running(&mut worker, job).await;
    let cool = hot(40);
    queue.look(&worker, 12, &cool, &[busy(fence, 2.0)]).await;
    assert_eq!(queue.episodes(1).await, [one("cpu", false, "")]);
    assert_eq!(
        queue.told().await,
        [("job_busy".to_owned(), "new".to_owned(), 0)]
    );

    // Another coordinator takes over: the episode goes on.
    let mut hello = worker.leave().await;
    hello.held = vec![held(fence, AttemptState::Running)];
    drop(queue);
    let queue = Coordinator::start(pool.clone());
    queue.clock.advance(Duration::from_secs(12 * 60));
    let worker = queue.connect(hello).await;
    queue.look(&worker, 12, &cool, &[busy(fence, 2.0)]).await;
    assert_eq!(queue.episodes(1).await, [one("cpu", false, "")]);
    queue.look(&worker, 12, &cool, &[busy(fence, 0.1)]).await;
    assert_eq!(queue.episodes(1).await, [one("cpu", true, "")]);

    // The same of the same job is in the history, and on nobody's phone.
    queue.look(&worker, 12, &cool, &[busy(fence, 2.0)]).await;
    assert_eq!(queue.episodes(2).await[1], one("cpu", false, "told_before"));
    worker.ended(fence, exit(1)).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !queue.episodes(2).await[1].1 {
        queue.app.save_alarms().await.expect("saved");
        assert!(
            tokio::time::Instant::now() < deadline,
            "the end of the attempt ends it"
        );
    }
    let told = queue.told().await;
    let busy_ones: Vec<_> = told
        .iter()
        .filter(|(class, ..)| class == "job_busy")
        .collect();
    assert_eq!(busy_ones, [&("job_busy".to_owned(), "new".to_owned(), 1)]);

    let page = queue
        .app
        .alarm_page(Some(job), None, true, &PageRequest::default())
        .await
        .expect("page");
    assert_eq!(page.alarms.len(), 2);
    assert_eq!(page.alarms[0].attempt, Some(1));
    assert_eq!((page.counts[0].count, page.counts[0].told), (2, 1));
    let page = queue
        .app
        .alarm_page(None, None, false, &PageRequest::default())
        .await
        .expect("page");
    assert!(page.alarms.is_empty(), "{:?}", page.alarms);
}

#[sqlx::test]
async fn what_is_not_wanted_is_recorded_and_not_told(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("gpu1", 2).await;
    let silent = JobSpec {
        notify: Wish::Never,
        ..spec("silent")
    };
    let off = JobSpec {
        alarms: [(Kind::Cpu, Setting::Off)].into(),
        ..spec("off")
    };
    let (first, second) = (queue.one(silent).await, queue.one(off).await);
    let a = queue.running(&mut worker, first).await;
    let b = queue.running(&mut worker, second).await;
    queue
        .look(&worker, 12, &hot(40), &[busy(a, 2.0), busy(b, 2.0)])
        .await;
    assert_eq!(queue.episodes(1).await, [one("cpu", false, "not_wanted")]);
    assert_eq!(
        queue.told().await,
        [("job_busy".to_owned(), "held_back".to_owned(), 0)]
    );
    let refused = queue
        .app
        .submit(
            &queue.user,
            "",
            vec![JobSpec {
                alarms: [(Kind::Disk, Setting::Off)].into(),
                ..spec("disk")
            }],
        )
        .await
        .expect_err("about machines");
    assert!(refused.to_string().contains("alarms[disk]"), "{refused}");
}

#[sqlx::test]
async fn a_machine_is_told_of_by_its_own_limits_and_old_alarms_go(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let worker = queue
        .connect(Hello {
            alarms: [(Kind::GpuTemperature, Setting::At(60))].into(),
            ..hello("gpu1", 1)
        })
        .await;
    queue.look(&worker, 2, &hot(65), &[]).await;
    queue.look(&worker, 6, &hot(50), &[]).await;
    assert_eq!(queue.episodes(1).await, [one("gpu_temperature", true, "")]);
    assert_eq!(queue.told().await[0].0, "gpu_hot");
    let over = "select count(*) from notices where ended_at is not null";
    assert_eq!(queue.count(over).await, 1, "it is no news any more");
    let page = queue
        .app
        .alarm_page(None, Some("gpu1"), true, &PageRequest::default())
        .await
        .expect("page");
    assert_eq!((page.alarms[0].limit, page.alarms[0].peak), (60.0, 65.0));
    let nobody = queue
        .app
        .alarm_page(None, Some("nobody"), true, &PageRequest::default())
        .await;
    assert!(
        matches!(nobody, Err(Error::WorkerNotFound(_))),
        "{nobody:?}"
    );

    queue.app.forget_alarms().await.expect("deleted");
    assert_eq!(queue.count("select count(*) from alarms").await, 1);
    queue.clock.advance(Duration::from_secs(91 * 24 * 60 * 60));
    queue.app.forget_alarms().await.expect("deleted");
    assert_eq!(queue.count("select count(*) from alarms").await, 0);
}

#[sqlx::test]
async fn what_is_switched_off_ends_without_a_word_and_is_told_anew_when_it_is_on(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let worker = queue.worker("gpu1", 1).await;
    let full = MachineLook {
        used: MachineMeasures {
            disk_free_bytes: Some(1_000_000_000),
            disk_total_bytes: Some(1_000_000_000_000),
            ..MachineMeasures::default()
        },
        ..MachineLook::default()
    };
    queue.look(&worker, 1, &full, &[]).await;
    assert_eq!(queue.episodes(1).await, [one("disk", false, "")]);
    let off = Hello {
        alarms: [(Kind::Disk, Setting::Off)].into(),
        ..worker.leave().await
    };
    let worker = queue.connect(off).await;
    queue.look(&worker, 1, &full, &[]).await;
    assert_eq!(queue.episodes(1).await, [one("disk", true, "")]);
    let page = queue
        .app
        .alarm_page(None, Some("gpu1"), true, &PageRequest::default())
        .await
        .expect("page");
    assert_eq!(page.alarms[0].because, Some(Because::SwitchedOff));
    let on = Hello {
        alarms: [].into(),
        ..worker.leave().await
    };
    let worker = queue.connect(on).await;
    queue.look(&worker, 1, &full, &[]).await;
    assert_eq!(queue.episodes(2).await[1], one("disk", false, ""));
    let told = queue.told().await;
    let classes: Vec<_> = told.iter().map(|(class, ..)| class.as_str()).collect();
    assert_eq!(classes, ["disk_nearly_full", "disk_nearly_full"]);
}

#[sqlx::test]
async fn a_kill_for_memory_is_told_by_its_job_alone(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.worker("gpu1", 1).await;
    let job = queue.one(spec("greedy")).await;
    let fence = queue.running(&mut worker, job).await;
    let killed = Facts {
        signal: Some(9),
        out_of_memory: true,
        ..Facts::of(End::Waited)
    };
    worker.ended(fence, killed).await;
    worker.committed(fence).await;
    let victim = MachineLook {
        oom_kills: 1,
        ..hot(40)
    };
    queue.look(&worker, 0, &victim, &[]).await;
    queue.look(&worker, 1, &hot(40), &[]).await;
    assert_eq!(
        queue.episodes(1).await,
        [one("out_of_memory", false, "told_with_job")]
    );
    queue.look(&worker, 11, &hot(40), &[]).await;
    queue.look(&worker, 0, &victim, &[]).await;
    queue.look(&worker, 1, &hot(40), &[]).await;
    assert_eq!(queue.episodes(2).await[1], one("out_of_memory", false, ""));
    let told = queue.told().await;
    let kills = told
        .iter()
        .filter(|(class, ..)| class == "out_of_memory")
        .count();
    assert_eq!(kills, 1, "{told:?}");
}
