//! Jobs over the wire: every call reads its message, asks the application, and writes the answer.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use prost::Message;
use qctl_proto::v1::job_service_server::JobService;
use qctl_proto::{MAX_MESSAGE_BYTES, v1};
use qctl_server_core::JobId;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::convert;
use super::status::{caller, status};
use crate::app::watch::WatchItem;
use crate::app::{App, Error, FromCheckpoint, Role};

/// Room that an answer leaves for what is around it.
const MARGIN: usize = 64 * 1024;

/// Serves jobs.
pub(super) struct Jobs {
    app: Arc<App>,
}

impl Jobs {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { app }
    }

    /// The job as it is now, for the answer of a call that changed it.
    async fn now(&self, id: JobId) -> Result<Option<v1::Job>, Status> {
        let view = self.app.job_view(id).await.map_err(status)?;
        Ok(Some(convert::job(view)))
    }
}

#[tonic::async_trait]
impl JobService for Jobs {
    async fn submit_jobs(
        &self,
        request: Request<v1::SubmitJobsRequest>,
    ) -> Result<Response<v1::SubmitJobsResponse>, Status> {
        let caller = caller(&request, Role::Submit)?;
        let request = request.into_inner();
        let specs = request
            .jobs
            .into_iter()
            .enumerate()
            .map(|(index, spec)| convert::read_spec(spec, &format!("jobs[{index}].")))
            .collect::<Result<_, _>>()
            .map_err(status)?;
        let submitted = self
            .app
            .submit(&caller, &request.request_id, specs)
            .await
            .map_err(status)?;
        let views = self.app.job_views(&submitted.jobs).await.map_err(status)?;
        let mut response = v1::SubmitJobsResponse {
            jobs: views.into_iter().map(convert::job).collect(),
            replayed: submitted.replayed,
            warnings: submitted.warnings,
        };
        shorten(&mut response);
        Ok(Response::new(response))
    }

    async fn get_job(
        &self,
        request: Request<v1::GetJobRequest>,
    ) -> Result<Response<v1::GetJobResponse>, Status> {
        caller(&request, Role::Read)?;
        let id = JobId(request.into_inner().id);
        let detail = self.app.job(id).await.map_err(status)?;
        Ok(Response::new(v1::GetJobResponse {
            job: Some(convert::job(detail.job)),
            attempts: detail.attempts.into_iter().map(convert::attempt).collect(),
            as_of: detail.as_of,
        }))
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        caller(&request, Role::Read)?;
        let request = request.into_inner();
        let filter = convert::read_filter(request.filter).map_err(status)?;
        let page = convert::read_page(request.page_size, request.page_token).map_err(status)?;
        let page = self.app.jobs(&filter, &page).await.map_err(status)?;
        Ok(Response::new(v1::ListJobsResponse {
            jobs: page.jobs.into_iter().map(convert::job).collect(),
            next_page_token: page.next_page_token,
            as_of: page.as_of,
            counts: page
                .counts
                .into_iter()
                .map(|(state, count)| v1::StateCount {
                    state: convert::job_state(state).into(),
                    count,
                })
                .collect(),
        }))
    }

    type WatchJobsStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchJobsResponse, Status>> + Send>>;

    async fn watch_jobs(
        &self,
        request: Request<v1::WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        caller(&request, Role::Read)?;
        let request = request.into_inner();
        let filter = convert::read_filter(request.filter).map_err(status)?;
        let after = match request.after {
            0 => None,
            after if after > 0 => Some(after),
            _ => {
                return Err(status(Error::field(
                    "after",
                    "is negative",
                    "take as_of of an earlier answer, or 0 for everything",
                )));
            }
        };
        let items = self.app.watch_jobs(filter, after).await.map_err(status)?;
        let responses = ReceiverStream::new(items).map(|item| item.map(watch_item).map_err(status));
        Ok(Response::new(Box::pin(responses)))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let caller = caller(&request, Role::Submit)?;
        let request = request.into_inner();
        let id = JobId(request.id);
        let grace = request
            .grace
            .as_ref()
            .map(|grace| convert::read_duration(grace, "grace"))
            .transpose()
            .map_err(status)?;
        self.app
            .cancel(&caller, &request.request_id, id, grace)
            .await
            .map_err(status)?;
        let job = self.now(id).await?;
        Ok(Response::new(v1::CancelJobResponse { job }))
    }

    async fn interrupt_job(
        &self,
        request: Request<v1::InterruptJobRequest>,
    ) -> Result<Response<v1::InterruptJobResponse>, Status> {
        let caller = caller(&request, Role::Submit)?;
        let request = request.into_inner();
        let id = JobId(request.id);
        self.app
            .interrupt(&caller, &request.request_id, id)
            .await
            .map_err(status)?;
        let job = self.now(id).await?;
        Ok(Response::new(v1::InterruptJobResponse { job }))
    }

    async fn retry_job(
        &self,
        request: Request<v1::RetryJobRequest>,
    ) -> Result<Response<v1::RetryJobResponse>, Status> {
        let caller = caller(&request, Role::Submit)?;
        let request = request.into_inner();
        let from = match request.from_checkpoint {
            None => None,
            Some(v1::FromCheckpoint {
                attempt: 0,
                number: 0,
            }) => Some(FromCheckpoint::Newest),
            Some(v1::FromCheckpoint { attempt, number }) if attempt > 0 && number > 0 => {
                Some(FromCheckpoint::Named { attempt, number })
            }
            Some(_) => {
                return Err(status(Error::field(
                    "from_checkpoint",
                    "names half a checkpoint",
                    "give attempt and number, or neither for the newest",
                )));
            }
        };
        let id = self
            .app
            .retry(&caller, &request.request_id, JobId(request.id), from)
            .await
            .map_err(status)?;
        let job = self.now(id).await?;
        Ok(Response::new(v1::RetryJobResponse { job }))
    }

    async fn hold_job(
        &self,
        request: Request<v1::HoldJobRequest>,
    ) -> Result<Response<v1::HoldJobResponse>, Status> {
        let caller = caller(&request, Role::Submit)?;
        let request = request.into_inner();
        let id = JobId(request.id);
        self.app
            .hold(&caller, &request.request_id, id)
            .await
            .map_err(status)?;
        let job = self.now(id).await?;
        Ok(Response::new(v1::HoldJobResponse { job }))
    }

    async fn release_job(
        &self,
        request: Request<v1::ReleaseJobRequest>,
    ) -> Result<Response<v1::ReleaseJobResponse>, Status> {
        let caller = caller(&request, Role::Submit)?;
        let request = request.into_inner();
        let id = JobId(request.id);
        self.app
            .release(&caller, &request.request_id, id)
            .await
            .map_err(status)?;
        let job = self.now(id).await?;
        Ok(Response::new(v1::ReleaseJobResponse { job }))
    }

    async fn pause_job(
        &self,
        request: Request<v1::PauseJobRequest>,
    ) -> Result<Response<v1::PauseJobResponse>, Status> {
        let caller = caller(&request, Role::Submit)?;
        let request = request.into_inner();
        let id = JobId(request.id);
        self.app
            .set_paused(&caller, &request.request_id, id, true)
            .await
            .map_err(status)?;
        let job = self.now(id).await?;
        Ok(Response::new(v1::PauseJobResponse { job }))
    }

    async fn resume_job(
        &self,
        request: Request<v1::ResumeJobRequest>,
    ) -> Result<Response<v1::ResumeJobResponse>, Status> {
        let caller = caller(&request, Role::Submit)?;
        let request = request.into_inner();
        let id = JobId(request.id);
        self.app
            .set_paused(&caller, &request.request_id, id, false)
            .await
            .map_err(status)?;
        let job = self.now(id).await?;
        Ok(Response::new(v1::ResumeJobResponse { job }))
    }

    async fn update_job(
        &self,
        request: Request<v1::UpdateJobRequest>,
    ) -> Result<Response<v1::UpdateJobResponse>, Status> {
        let caller = caller(&request, Role::Submit)?;
        let request = request.into_inner();
        let id = JobId(request.id);
        let spec = convert::read_spec(request.spec.unwrap_or_default(), "spec.").map_err(status)?;
        let mask = request.update_mask.unwrap_or_default().paths;
        self.app
            .update(&caller, &request.request_id, id, spec, mask)
            .await
            .map_err(status)?;
        let job = self.now(id).await?;
        Ok(Response::new(v1::UpdateJobResponse { job }))
    }

    async fn delete_job(
        &self,
        request: Request<v1::DeleteJobRequest>,
    ) -> Result<Response<v1::DeleteJobResponse>, Status> {
        let caller = caller(&request, Role::Submit)?;
        let request = request.into_inner();
        self.app
            .delete(&caller, &request.request_id, JobId(request.id))
            .await
            .map_err(status)?;
        Ok(Response::new(v1::DeleteJobResponse {}))
    }

    async fn cleanup_jobs(
        &self,
        request: Request<v1::CleanupJobsRequest>,
    ) -> Result<Response<v1::CleanupJobsResponse>, Status> {
        let caller = caller(&request, Role::Operate)?;
        let request = request.into_inner();
        let older_than =
            convert::read_duration(&request.older_than.unwrap_or_default(), "older_than")
                .map_err(status)?;
        let deleted = self
            .app
            .cleanup(&caller, &request.request_id, older_than, request.dry_run)
            .await
            .map_err(status)?;
        Ok(Response::new(v1::CleanupJobsResponse {
            deleted: deleted.jobs,
            log_bytes: deleted.log_bytes,
        }))
    }

    async fn execute_next(
        &self,
        request: Request<v1::ExecuteNextRequest>,
    ) -> Result<Response<v1::ExecuteNextResponse>, Status> {
        let caller = caller(&request, Role::Operate)?;
        let request = request.into_inner();
        let id = self
            .app
            .execute_next(&caller, &request.request_id, &request.worker)
            .await
            .map_err(status)?;
        let job = self.now(id).await?;
        Ok(Response::new(v1::ExecuteNextResponse { job }))
    }

    async fn explain_job(
        &self,
        request: Request<v1::ExplainJobRequest>,
    ) -> Result<Response<v1::ExplainJobResponse>, Status> {
        caller(&request, Role::Read)?;
        let id = JobId(request.into_inner().id);
        let (view, sentences) = self.app.explain(id).await.map_err(status)?;
        Ok(Response::new(v1::ExplainJobResponse {
            sentences,
            job: Some(convert::job(view)),
        }))
    }

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        caller(&request, Role::Read)?;
        let request = request.into_inner();
        let job = (request.job_id != 0).then_some(JobId(request.job_id));
        let page = convert::read_page(request.page_size, request.page_token).map_err(status)?;
        let page = self
            .app
            .events(job, request.after, &page)
            .await
            .map_err(status)?;
        Ok(Response::new(v1::ListEventsResponse {
            events: page.events.into_iter().map(convert::event).collect(),
            next_page_token: page.next_page_token,
        }))
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        caller(&request, Role::Read)?;
        let request = request.into_inner();
        let page = convert::read_page(request.page_size, request.page_token).map_err(status)?;
        let page = self
            .app
            .checkpoints(JobId(request.job_id), &page)
            .await
            .map_err(status)?;
        Ok(Response::new(v1::ListCheckpointsResponse {
            checkpoints: page
                .checkpoints
                .into_iter()
                .map(convert::checkpoint)
                .collect(),
            next_page_token: page.next_page_token,
        }))
    }
}

fn watch_item(item: WatchItem) -> v1::WatchJobsResponse {
    match item {
        WatchItem::Job { job, as_of } => v1::WatchJobsResponse {
            job: Some(convert::job(*job)),
            as_of,
            caught_up: false,
        },
        WatchItem::CaughtUp { as_of } => v1::WatchJobsResponse {
            job: None,
            as_of,
            caught_up: true,
        },
    }
}

/// The jobs are stored by now, so an answer that is too long to be sent loses the parts that the
/// submitter has itself rather than become an error.
fn shorten(response: &mut v1::SubmitJobsResponse) {
    if response.encoded_len() <= MAX_MESSAGE_BYTES - MARGIN {
        return;
    }
    for job in &mut response.jobs {
        if let Some(spec) = &mut job.spec {
            spec.env.clear();
            spec.command.truncate(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_fits_although_the_submission_hardly_did() {
        let spec = v1::JobSpec {
            command: vec!["true".to_owned(), "x".repeat(10_000)],
            ..v1::JobSpec::default()
        };
        let job = v1::Job {
            spec: Some(spec),
            url: "http://queue.test/jobs/1?k=key".to_owned(),
            ..v1::Job::default()
        };
        let mut response = v1::SubmitJobsResponse {
            jobs: vec![job; 4_000],
            replayed: false,
            warnings: Vec::new(),
        };
        shorten(&mut response);
        assert!(response.encoded_len() < MAX_MESSAGE_BYTES);
        assert_eq!(response.jobs.len(), 4_000);
    }
}
