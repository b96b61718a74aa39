//! GPUs on which jobs fail one after the other, on a real Postgres.

use qctl_server_core::gpu::{GpuFault, GpuFaultKind};

use super::*;
use crate::store::read::GpuRecord;

const GPU: &str = "GPU-1";

fn wants_gpu(name: &str) -> JobSpec {
    JobSpec {
        demand: Demand {
            gpus: 1,
            ..Demand::default()
        },
        ..spec(name)
    }
}

/// An end that its output lays to the GPU.
fn no_device() -> Facts {
    Facts {
        gpu_fault: true,
        gpu: Some(GpuFault {
            gpu: GPU.to_owned(),
            name: String::new(),
            kind: GpuFaultKind::Output,
            number: 0,
            message: "CUDA error: no CUDA-capable device is detected".to_owned(),
        }),
        ..exit(1)
    }
}

impl Coordinator {
    async fn gpu_worker(&self) -> Worker {
        let gpu = GpuRecord {
            uuid: GPU.to_owned(),
            name: "H200".to_owned(),
            memory_bytes: 1 << 30,
            ..GpuRecord::default()
        };
        self.connect(Hello {
            gpus: vec![gpu],
            ..hello("w", 1)
        })
        .await
    }

    /// So many minutes pass, and the dispatcher looks.
    async fn minutes(&self, worker: &Worker, minutes: i64) {
        for _ in 0..minutes * 3 {
            self.clock.advance(Duration::from_secs(20));
            worker.lives();
        }
        let looked = self.app.dispatch_round(&mut Dedicated::default()).await;
        looked.expect("looked");
    }

    /// The next job runs and ends so.
    async fn runs(&self, worker: &mut Worker, job: JobId, facts: Facts) {
        let assignment = worker.assigned().await;
        assert_eq!(assignment.job, job);
        worker.run(assignment.fence, facts).await;
        worker.committed(assignment.fence).await;
    }

    /// What people were told of GPUs.
    async fn told_of_gpus(&self) -> Vec<(String, String)> {
        sqlx::query_as(
            "select class, state from notices where class in ('gpu_faulty', 'gpu_works') order by id",
        )
        .fetch_all(&self.pool)
        .await
        .expect("notices")
    }
}

fn told(class: &str, state: &str) -> (String, String) {
    (class.to_owned(), state.to_owned())
}

#[sqlx::test]
async fn f35_a_gpu_on_which_two_jobs_fail_in_a_row_rests_then_is_tried_by_one(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.gpu_worker().await;
    let names = ["a", "b", "c", "d", "e"];
    let jobs = queue.submit(names.map(wants_gpu).to_vec()).await;
    queue.runs(&mut worker, jobs[0], no_device()).await;
    queue.runs(&mut worker, jobs[1], no_device()).await;
    queue.minutes(&worker, 29).await;
    worker.has_nothing_to_read();
    let (_, why) = queue.app.explain(jobs[2]).await.expect("known");
    let why = why.join(" ");
    assert!(
        why.contains("two jobs in a row failed on it though its driver calls it well"),
        "{why}"
    );
    let faulty = told("gpu_faulty", "new");
    assert_eq!(queue.told_of_gpus().await, std::slice::from_ref(&faulty));

    // Another coordinator knows it too, and one job tries the GPU, which fails it again.
    queue.minutes(&worker, 1).await;
    queue.runs(&mut worker, jobs[2], no_device()).await;
    queue.minutes(&worker, 59).await;
    worker.has_nothing_to_read();
    assert_eq!(queue.told_of_gpus().await, std::slice::from_ref(&faulty));
    queue.minutes(&worker, 1).await;
    queue.runs(&mut worker, jobs[3], exit(0)).await;
    queue.runs(&mut worker, jobs[4], exit(0)).await;
    let works = told("gpu_works", "new");
    assert_eq!(queue.told_of_gpus().await, [faulty, works]);
    assert_eq!(queue.count("select count(*) from gpu_doubts").await, 0);
}

#[sqlx::test]
async fn a_person_or_a_probe_that_computed_trusts_a_gpu_at_once(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.gpu_worker().await;
    let names = ["a", "b", "c", "d", "e", "f"];
    let jobs = queue.submit(names.map(wants_gpu).to_vec()).await;
    queue.runs(&mut worker, jobs[0], no_device()).await;
    queue.runs(&mut worker, jobs[1], no_device()).await;
    queue.minutes(&worker, 1).await;
    worker.has_nothing_to_read();
    let (app, user) = (&queue.app, &queue.user);
    let resumed = app.update_worker(user, "", "w", Some(WorkerMode::Active), None);
    resumed.await.expect("steered");
    queue.runs(&mut worker, jobs[2], no_device()).await;
    let computed = (GPU.to_owned(), None, true);
    let passed = app.gpu_checked(worker.hello.worker, worker.session, computed);
    passed.await.expect("taken");
    queue.runs(&mut worker, jobs[3], no_device()).await;
    // Its bug is no other job's, whoever tries it again.
    sqlx::query("update jobs set retry_of = $1 where id = $2")
        .bind(jobs[3].0)
        .bind(jobs[4].0)
        .execute(&queue.pool)
        .await
        .expect("written");
    queue.runs(&mut worker, jobs[4], no_device()).await;
    queue.runs(&mut worker, jobs[5], exit(0)).await;
    let told_in_all = queue.told_of_gpus().await;
    assert_eq!(told_in_all[0], told("gpu_faulty", "new"));
    assert_eq!(told_in_all.len(), 2, "{told_in_all:?}");
    assert_ne!(told_in_all[1].1, "new", "who did it knows");
}

#[sqlx::test]
async fn jobs_with_bugs_do_not_cost_a_gpu(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.gpu_worker().await;
    let jobs = queue.submit(["a", "b", "c"].map(wants_gpu).to_vec()).await;
    let mut bug = no_device();
    if let Some(fault) = &mut bug.gpu {
        fault.message = "CUDA error: an illegal memory access was encountered".to_owned();
    }
    for job in jobs {
        queue.runs(&mut worker, job, bug.clone()).await;
    }
    assert_eq!(queue.told_of_gpus().await, []);
}

#[sqlx::test]
async fn f35_a_gpu_is_told_by_itself_where_its_job_tells_nothing_of_it(pool: PgPool) {
    let queue = Coordinator::start(pool);
    let mut worker = queue.gpu_worker().await;
    let job = queue.one(wants_gpu("a")).await;
    let assignment = worker.assigned().await;
    worker.started(assignment.fence).await;
    queue.becomes(job, JobState::Running).await;
    let lost = GpuFault {
        gpu: GPU.to_owned(),
        name: String::new(),
        kind: GpuFaultKind::Lost,
        number: 0,
        message: "the driver has lost it".to_owned(),
    };
    let fails = async |fault: Option<GpuFault>| {
        let checked = (GPU.to_owned(), fault, false);
        let checked = queue
            .app
            .gpu_checked(worker.hello.worker, worker.session, checked);
        checked.await.expect("taken");
    };
    fails(Some(lost.clone())).await;
    let told_in_all = queue.told_of_gpus().await;
    assert_eq!(told_in_all.len(), 1);
    assert_ne!(told_in_all[0].1, "new", "its job is stopped, and tells it");
    fails(None).await;
    // What is being cancelled ends by that, whatever its GPU does meanwhile.
    let cancelled = queue.app.cancel(&queue.user, "", job, None).await;
    cancelled.expect("cancelled");
    fails(Some(lost)).await;
    let told_in_all = queue.told_of_gpus().await;
    assert_eq!(told_in_all.last(), Some(&told("gpu_faulty", "new")));
}
