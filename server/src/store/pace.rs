//! Earlier runs of jobs that are about to start.

use std::collections::HashMap;
use std::time::Duration;

use qctl_server_core::pace::{MAX_RUNS, Run};
use qctl_server_core::{JobId, Progress};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::StoreError;

/// The newest jobs that succeeded with GPUs under the same name and with the same command or the same
/// template, for each of these jobs, newest first.
pub(crate) async fn earlier_runs(
    conn: &mut PgConnection,
    jobs: &[JobId],
) -> Result<HashMap<JobId, Vec<Run>>, StoreError> {
    let jobs: Vec<i64> = jobs.iter().map(|job| job.0).collect();
    let rows = sqlx::query!(
        r#"select j.id as "job!", c.same as "same_command!", a.duration_us as "duration_us!",
                  l.progress as "progress!: Json<Progress>"
           from unnest($1::bigint[]) as u (job_id)
           join jobs j on j.id = u.job_id
           join job_specs s on s.job_id = j.id
           cross join lateral (
             select e.id, e.fence from jobs e
             where e.name = j.name and e.state = 'succeeded' and e.gpus > 0
             order by e.id desc
             limit $2
           ) e
           join job_specs t on t.job_id = e.id
           join attempts a on a.fence = e.fence
           join attempts_live l on l.fence = a.fence
           cross join lateral (
             select t.spec -> 'command' = s.spec -> 'command'
                    and t.spec -> 'shell' = s.spec -> 'shell' as same
           ) c
           where (c.same or s.spec ->> 'template' <> ''
                            and t.spec ->> 'template' = s.spec ->> 'template')
             and a.resumed_from = '' and a.duration_us >= 0 and l.progress is not null
           order by j.id, e.id desc"#,
        &jobs,
        MAX_RUNS,
    )
    .fetch_all(conn)
    .await?;
    let mut runs: HashMap<JobId, Vec<Run>> = HashMap::new();
    for row in rows {
        runs.entry(JobId(row.job)).or_default().push(Run {
            same_command: row.same_command,
            duration: Duration::from_micros(row.duration_us.unsigned_abs()),
            progress: row.progress.0,
        });
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use qctl_server_core::{Demand, JobSpec, JobState, WorkerId};
    use sqlx::PgPool;

    use super::*;
    use crate::store::fixtures::{Fixtures, noon};

    fn spec(name: &str, template: &str, command: &str) -> JobSpec {
        JobSpec {
            name: name.to_owned(),
            template: template.to_owned(),
            command: vec![command.to_owned()],
            cwd: "/".to_owned(),
            demand: Demand {
                gpus: 1,
                ..Demand::default()
            },
            ..JobSpec::default()
        }
    }

    /// A job that succeeded after two seconds, with so many items done.
    async fn ran(fixtures: &Fixtures, worker: WorkerId, spec: JobSpec, done: i64) -> JobId {
        let job = fixtures.job_of(spec, JobState::Queued, noon()).await;
        let fence = fixtures.attempt(job, worker).await;
        fixtures.end_attempt(fence, Some(0)).await;
        fixtures.end_job(job, JobState::Succeeded, noon()).await;
        fixtures.progress(fence, done).await;
        job
    }

    #[sqlx::test]
    async fn earlier_runs_have_the_name_and_the_command_or_the_template(
        pool: PgPool,
    ) -> Result<(), StoreError> {
        let fixtures = Fixtures::new(&pool);
        let worker = fixtures.worker("w", 1).await;
        ran(&fixtures, worker, spec("train", "", "a"), 1).await;
        ran(&fixtures, worker, spec("train", "t", "b"), 2).await;
        ran(&fixtures, worker, spec("train", "", "b"), 3).await;
        ran(&fixtures, worker, spec("other", "t", "a"), 4).await;
        let without_gpu = JobSpec {
            demand: Demand::default(),
            ..spec("train", "t", "a")
        };
        ran(&fixtures, worker, without_gpu, 5).await;
        let failed = ran(&fixtures, worker, spec("train", "t", "a"), 6).await;
        fixtures.end_job(failed, JobState::Failed, noon()).await;
        let resumed = ran(&fixtures, worker, spec("train", "t", "a"), 7).await;
        fixtures
            .run(
                "update attempts set resumed_from = '/c' where job_id = (select max(id) from jobs)",
            )
            .await;
        assert!(resumed > failed);
        let queued = JobState::Queued;
        let of_template = fixtures
            .job_of(spec("train", "t", "a"), queued, noon())
            .await;
        let of_none = fixtures
            .job_of(spec("train", "", "b"), queued, noon())
            .await;
        let alone = fixtures.job_of(spec("new", "", "a"), queued, noon()).await;

        let mut conn = pool.acquire().await.map_err(StoreError::from)?;
        let found = earlier_runs(&mut conn, &[of_template, of_none, alone]).await?;
        let told = |job: JobId| -> Vec<(bool, f64)> {
            let runs = found.get(&job).map_or(&[][..], Vec::as_slice);
            let told = runs.iter().map(|run| (run.same_command, run.progress.done));
            told.collect()
        };
        assert_eq!(told(of_template), [(false, 2.0), (true, 1.0)]);
        assert_eq!(told(of_none), [(true, 3.0), (true, 2.0)]);
        assert_eq!(told(alone), []);
        assert_eq!(found[&of_none][0].duration, Duration::from_secs(2));
        Ok(())
    }
}
