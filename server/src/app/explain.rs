//! Why is it not running? Gathers what the core's answer depends on.

use qctl_server_core::explain::{Candidate, Queued, Situation, Unmet, explain};
use qctl_server_core::{AttemptState, JobId, JobState};

use super::read::{JobRecord, JobView, WorkerMode, WorkerView};
use super::{App, Error};

/// Workers and dependencies that are looked at.
const MAX_WORKERS: usize = 1_000;
const MAX_DEPENDENCIES: i64 = 1_000;

impl App {
    /// Says in sentences why a job is not running (or that it is), the most important first.
    ///
    /// # Errors
    /// When there is no such job, or the database is away.
    pub async fn explain(&self, id: JobId) -> Result<(JobView, Vec<String>), Error> {
        let view = self.job_view(id).await?;
        let situation = self.situation(&view.job).await?;
        let sentences = explain(&situation, self.clock.now());
        Ok((view, sentences))
    }

    async fn situation(&self, job: &JobRecord) -> Result<Situation, Error> {
        Ok(match job.state {
            JobState::Waiting => Situation::Waiting {
                dependencies: self
                    .store
                    .unmet_dependencies(job.id, MAX_DEPENDENCIES)
                    .await?
                    .into_iter()
                    .map(|unmet| Unmet {
                        job: unmet.job,
                        state: unmet.state,
                        condition: unmet.condition,
                    })
                    .collect(),
                not_before: job.not_before,
            },
            JobState::Held => Situation::Held {
                message: job.message.clone(),
            },
            JobState::Queued if job.attempt_state == Some(AttemptState::Assigned) => {
                self.assigned(job).await?
            }
            JobState::Queued => Situation::Queued(self.queued(job).await?),
            JobState::Running => self.running(job).await?,
            JobState::Succeeded | JobState::Failed | JobState::Cancelled => Situation::Ended {
                state: job.state,
                message: ending(job),
                at: job.ended_at.unwrap_or(job.created_at),
            },
        })
    }

    async fn assigned(&self, job: &JobRecord) -> Result<Situation, Error> {
        let worker = self.worker(&job.worker).await?;
        let before: Vec<_> = worker
            .worker
            .attempts
            .iter()
            .take_while(|attempt| Some(attempt.fence) != job.fence)
            .map(|attempt| attempt.job)
            .collect();
        // It is counted among what is taken; when everything together fits, it only has to start.
        let room = worker.worker.taken.slots <= worker.worker.total.slots;
        Ok(Situation::Assigned {
            worker: job.worker.clone(),
            connected: self.sessions.is_connected(worker.worker.id),
            holders: if room { Vec::new() } else { before },
        })
    }

    async fn running(&self, job: &JobRecord) -> Result<Situation, Error> {
        let unreachable_since = if job.unreachable {
            self.worker(&job.worker).await?.worker.last_seen
        } else {
            None
        };
        Ok(Situation::Running {
            worker: job.worker.clone(),
            since: job.started_at.unwrap_or(job.created_at),
            unreachable_since,
            paused: job.paused,
            stopping: job.cancel_requested,
        })
    }

    async fn queued(&self, job: &JobRecord) -> Result<Queued, Error> {
        let (ahead, first_ahead) = self.store.queue_ahead(job.id, job.spec.priority).await?;
        let workers = self.worker_views("", None, MAX_WORKERS).await?;
        Ok(Queued {
            needs: job.spec.demand,
            pinned: (!job.spec.worker.is_empty()).then(|| job.spec.worker.clone()),
            checkpoint_on: (!job.checkpoint_worker.is_empty())
                .then(|| job.checkpoint_worker.clone()),
            limited: job.spec.time_limit.is_some(),
            queue_paused: self.store.queue_is_paused().await?,
            left_behind: match job.spec.exclusive {
                true => self.store.left_behind(job.id).await?,
                false => None,
            },
            ahead,
            first_ahead,
            workers: workers.iter().map(|view| self.candidate(view)).collect(),
        })
    }

    fn candidate(&self, view: &WorkerView) -> Candidate {
        let worker = &view.worker;
        let mut faulty = worker.gpus.iter().filter_map(|gpu| gpu.faulty.as_ref());
        let first = faulty.next().map(|first| first.fault.message.clone());
        Candidate {
            faulty: first.map(|fault| {
                let others = i32::try_from(faulty.count()).unwrap_or(i32::MAX - 1);
                (1 + others, fault)
            }),
            name: worker.name.clone(),
            connected: self.sessions.is_connected(worker.id),
            last_seen: worker.last_seen,
            paused: worker.mode == WorkerMode::Paused,
            draining: worker.mode == WorkerMode::Draining,
            total: worker.total,
            taken: worker.taken,
            holders: worker.attempts.iter().map(|attempt| attempt.job).collect(),
        }
    }
}

fn ending(job: &JobRecord) -> String {
    match &job.outcome {
        _ if !job.message.is_empty() => job.message.clone(),
        Some(outcome) => outcome.message.clone(),
        None => String::new(),
    }
}
