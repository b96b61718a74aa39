//! What workers find out about their GPUs.

use qctl_server_core::WorkerId;
use qctl_server_core::gpu::{GpuFault, TOLD_WITH_JOB, Trial, checked};
use qctl_server_core::ledger::GpuTrial;

use super::{App, Change, Error};
use crate::sessions::SessionId;
use crate::store::{gpus, notices};

impl App {
    /// Takes a worker's word that one of its GPUs works or has a fault. A faulty one is given to no
    /// job, and people are told once, and once when it works again. One that has computed is not
    /// doubted for the jobs that failed on it.
    ///
    /// # Errors
    /// When the database is away. The worker says it again in its next session.
    pub(crate) async fn gpu_checked(
        &self,
        worker: WorkerId,
        session: SessionId,
        (gpu, fault, computed): (String, Option<GpuFault>, bool),
    ) -> Result<(), Error> {
        let current = self.sessions.get(worker);
        if current.is_none_or(|current| current.session != session) {
            return Ok(());
        }
        let now = self.clock.now();
        let changed = self
            .store
            .transaction(move |conn| {
                Box::pin(async move {
                    if computed && fault.is_none() {
                        let passed = GpuTrial {
                            worker,
                            gpu: gpu.clone(),
                            trial: Trial::Passed,
                        };
                        gpus::tried(conn, now, &[passed]).await?;
                    }
                    let lately = now - TOLD_WITH_JOB;
                    let row = gpus::of_worker(conn, worker, &gpu, lately).await?;
                    let Some(row) = row else { return Ok(false) };
                    let before = row.faulty.as_ref();
                    let verdict = checked(&row.worker, &gpu, before, fault, row.by_job, now);
                    let Some(verdict) = verdict else {
                        return Ok(computed);
                    };
                    gpus::record(conn, worker, &gpu, verdict.faulty.as_ref()).await?;
                    let told: Vec<_> = verdict.notice.into_iter().collect();
                    notices::insert(conn, now, &told).await?;
                    Ok::<_, Error>(true)
                })
            })
            .await?;
        if changed {
            self.notices.ring();
            self.wake.dispatch();
            self.changes.tell(Change::Workers);
        }
        Ok(())
    }
}
