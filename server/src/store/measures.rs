//! What attempts and machines used, by the minute.

use chrono::{DateTime, Utc};
use qctl_server_core::measures::{AttemptMeasures, MachineMeasures};
use qctl_server_core::{Fence, JobId, WorkerId};

use super::{Store, StoreError};

/// A minute of an attempt.
pub(crate) type AttemptMinute = (Fence, DateTime<Utc>, AttemptMeasures);

/// A minute of a machine.
pub(crate) type MachineMinute = (WorkerId, DateTime<Utc>, MachineMeasures);

/// Most minutes of one attempt that are read: thinned out, these are months.
const MAX_ROWS: i64 = 20_000;

impl Store {
    /// Writes minutes; a crash of the machine may lose them. Those of deleted attempts are dropped.
    pub(crate) async fn save_measures(
        &self,
        attempts: &[AttemptMinute],
        machines: &[MachineMinute],
    ) -> Result<(), StoreError> {
        let (attempts, machines) = (attempts.to_vec(), machines.to_vec());
        self.asynchronous_transaction(move |conn| {
            Box::pin(async move {
                for (fence, minute, used) in &attempts {
                    sqlx::query!(
                        "insert into attempt_measures (fence, minute, cpus, resident_bytes,
                     anonymous_bytes, read_rate, write_rate, processes, threads, zombies,
                     uninterruptible, gpu_busy, gpu_memory_bytes)
                 select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13
                 where exists (select from attempts where fence = $1)
                 on conflict (fence, minute) do nothing",
                        fence.0,
                        minute,
                        used.cpus,
                        used.resident_bytes,
                        used.anonymous_bytes,
                        used.read_rate,
                        used.write_rate,
                        used.processes,
                        used.threads,
                        used.zombies,
                        used.uninterruptible,
                        used.gpu_busy,
                        used.gpu_memory_bytes,
                    )
                    .execute(&mut *conn)
                    .await?;
                }
                for (worker, minute, used) in &machines {
                    sqlx::query!(
                        "insert into machine_measures (worker_id, minute, busy, load,
                     memory_available_bytes, memory_total_bytes, swap_used_bytes, disk_free_bytes,
                     disk_total_bytes, gpu_busy, gpu_memory_bytes, gpu_temperature)
                 select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12
                 where exists (select from workers where id = $1)
                 on conflict (worker_id, minute) do nothing",
                        worker.0,
                        minute,
                        used.busy,
                        used.load,
                        used.memory_available_bytes,
                        used.memory_total_bytes,
                        used.swap_used_bytes,
                        used.disk_free_bytes,
                        used.disk_total_bytes,
                        used.gpu_busy,
                        used.gpu_memory_bytes,
                        used.gpu_temperature,
                    )
                    .execute(&mut *conn)
                    .await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// The fence of an attempt, the latest one without a number; `None` when there is no such job, and
    /// within it `None` when there is no such attempt.
    pub(crate) async fn fence_of(
        &self,
        job: JobId,
        number: Option<i32>,
    ) -> Result<Option<Option<Fence>>, StoreError> {
        let row = sqlx::query!(
            r#"select (select a.fence from attempts a
                       where a.job_id = j.id and ($2::integer is null or a.number = $2)
                       order by a.number desc limit 1) as "fence?"
               from jobs j where j.id = $1"#,
            job.0,
            number,
        )
        .fetch_optional(self.pool())
        .await?;
        Ok(row.map(|row| row.fence.map(Fence)))
    }

    /// An attempt's minutes, oldest first.
    pub(crate) async fn attempt_measures(
        &self,
        fence: Fence,
    ) -> Result<Vec<(DateTime<Utc>, AttemptMeasures)>, StoreError> {
        let rows = sqlx::query!(
            "select * from attempt_measures where fence = $1 order by minute limit $2",
            fence.0,
            MAX_ROWS,
        )
        .fetch_all(self.pool())
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let used = AttemptMeasures {
                    cpus: row.cpus,
                    resident_bytes: row.resident_bytes,
                    anonymous_bytes: row.anonymous_bytes,
                    read_rate: row.read_rate,
                    write_rate: row.write_rate,
                    processes: row.processes,
                    threads: row.threads,
                    zombies: row.zombies,
                    uninterruptible: row.uninterruptible,
                    gpu_busy: row.gpu_busy,
                    gpu_memory_bytes: row.gpu_memory_bytes,
                };
                (row.minute, used)
            })
            .collect())
    }

    /// A machine's minutes since `since`, oldest first.
    pub(crate) async fn machine_measures(
        &self,
        worker: WorkerId,
        since: DateTime<Utc>,
    ) -> Result<Vec<(DateTime<Utc>, MachineMeasures)>, StoreError> {
        let rows = sqlx::query!(
            "select * from machine_measures
             where worker_id = $1 and minute >= $2 order by minute limit $3",
            worker.0,
            since,
            MAX_ROWS,
        )
        .fetch_all(self.pool())
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let used = MachineMeasures {
                    busy: row.busy,
                    load: row.load,
                    memory_available_bytes: row.memory_available_bytes,
                    memory_total_bytes: row.memory_total_bytes,
                    swap_used_bytes: row.swap_used_bytes,
                    disk_free_bytes: row.disk_free_bytes,
                    disk_total_bytes: row.disk_total_bytes,
                    gpu_busy: row.gpu_busy,
                    gpu_memory_bytes: row.gpu_memory_bytes,
                    gpu_temperature: row.gpu_temperature,
                };
                (row.minute, used)
            })
            .collect())
    }

    /// Of minutes before `thin_before` keeps every tenth, and of machines' none before
    /// `machines_before`.
    pub(crate) async fn thin_measures(
        &self,
        thin_before: DateTime<Utc>,
        machines_before: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        self.transaction(move |conn| {
Box::pin(async move {
        sqlx::query!(
            "delete from attempt_measures
             where minute < $1 and extract(minute from minute at time zone 'UTC')::integer % 10 <> 0",
            thin_before,
        )
        .execute(&mut *conn)
        .await?;
        sqlx::query!(
            "delete from machine_measures
             where minute < $2 or (minute < $1
                and extract(minute from minute at time zone 'UTC')::integer % 10 <> 0)",
            thin_before,
            machines_before,
        )
        .execute(&mut *conn)
        .await?;
        Ok(())
})
})
.await
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use qctl_server_core::{JobState, Term};
    use sqlx::PgPool;

    use super::*;
    use crate::store::Lease;
    use crate::store::fixtures::{Fixtures, noon};

    fn used(cpus: f64) -> AttemptMeasures {
        AttemptMeasures {
            cpus: Some(cpus),
            resident_bytes: 7,
            ..AttemptMeasures::default()
        }
    }

    #[sqlx::test]
    async fn minutes_are_kept_whole_for_a_day_and_thinned_out_after_it(pool: PgPool) {
        let fixtures = Fixtures::new(&pool);
        let worker = fixtures.worker("w", 1).await;
        let job = fixtures.job("a", JobState::Queued).await;
        let fence = fixtures.attempt(job, worker).await;
        let store = Store::new(pool, Lease::unlimited(Term(0)));
        let minute = |number: i64| noon() + TimeDelta::minutes(number);
        let attempts: Vec<AttemptMinute> = (0..40)
            .map(|number| (fence, minute(number), used(number as f64)))
            .chain([(Fence(fence.0 + 1), noon(), used(0.0))])
            .collect();
        let machine = MachineMeasures {
            busy: Some(0.25),
            ..MachineMeasures::default()
        };
        let machines: Vec<MachineMinute> = (0..40)
            .map(|number| (worker, minute(number), machine))
            .collect();
        store.save_measures(&attempts, &machines).await.unwrap();
        // Written again after an answer that was lost, they are there once.
        store.save_measures(&attempts, &machines).await.unwrap();

        let kept = store.attempt_measures(fence).await.unwrap();
        assert_eq!(kept.len(), 40);
        assert_eq!(kept[3], (minute(3), used(3.0)));
        let recent = store.machine_measures(worker, minute(30)).await.unwrap();
        assert_eq!((recent.len(), recent[0].1), (10, machine));

        store.thin_measures(minute(20), minute(10)).await.unwrap();
        let kept = store.attempt_measures(fence).await.unwrap();
        let minutes: Vec<_> = kept.iter().map(|(at, _)| *at).take(3).collect();
        assert_eq!(minutes, [minute(0), minute(10), minute(20)]);
        assert_eq!(kept.len(), 22);
        let machines = store.machine_measures(worker, noon()).await.unwrap();
        assert_eq!(machines[0].0, minute(10));
        assert_eq!(machines.len(), 21);
    }

    #[sqlx::test]
    async fn an_attempt_is_found_by_its_job(pool: PgPool) {
        let fixtures = Fixtures::new(&pool);
        let worker = fixtures.worker("w", 1).await;
        let job = fixtures.job("a", JobState::Queued).await;
        let store = Store::new(pool, Lease::unlimited(Term(0)));
        assert_eq!(store.fence_of(job, None).await.unwrap(), Some(None));
        let fence = fixtures.attempt(job, worker).await;
        assert_eq!(store.fence_of(job, None).await.unwrap(), Some(Some(fence)));
        assert_eq!(store.fence_of(job, Some(2)).await.unwrap(), Some(None));
        assert_eq!(store.fence_of(JobId(999), None).await.unwrap(), None);
    }
}
