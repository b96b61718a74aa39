//! Workers, the queue as a whole, and templates, over the wire.

use std::sync::Arc;

use qctl_proto::v1;
use qctl_proto::v1::queue_service_server::QueueService;
use qctl_server_core::JobState;
use tonic::{Request, Response, Status};

use super::convert;
use super::status::{caller, status};
use crate::app::read::WorkerMode;
use crate::app::{App, Error, Role};

/// Serves workers, the queue and templates.
pub(super) struct Queue {
    app: Arc<App>,
}

impl Queue {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { app }
    }
}

#[tonic::async_trait]
impl QueueService for Queue {
    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        caller(&request, Role::Read)?;
        let queue = self.app.queue_status().await.map_err(status)?;
        Ok(Response::new(v1::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: Some(convert::timestamp(self.app.started_at)),
            queue_paused: queue.paused,
            counts: queue
                .counts
                .into_iter()
                .map(|(state, count)| v1::QueueCount {
                    state: convert::job_state(state).into(),
                    count,
                })
                .collect(),
            workers: queue.workers.into_iter().map(convert::worker).collect(),
            as_of: queue.as_of,
            public_url: self.app.links.public_url().to_owned(),
            database: self.app.about.database.clone(),
            term: self.app.term.0,
            pid: std::process::id() as i32,
            url: self.app.links.queue(),
            notice_channels: super::notice_service::channels(&self.app.notices),
        }))
    }

    async fn set_queue_paused(
        &self,
        request: Request<v1::SetQueuePausedRequest>,
    ) -> Result<Response<v1::SetQueuePausedResponse>, Status> {
        let caller = caller(&request, Role::Operate)?;
        let request = request.into_inner();
        self.app
            .set_queue_paused(&caller, &request.request_id, request.paused)
            .await
            .map_err(status)?;
        let queue = self.app.queue_status().await.map_err(status)?;
        let count = |wanted: &[JobState]| {
            queue
                .counts
                .iter()
                .filter(|(state, _)| wanted.contains(state))
                .map(|(_, count)| count)
                .sum()
        };
        Ok(Response::new(v1::SetQueuePausedResponse {
            waiting: count(&[JobState::Waiting, JobState::Held, JobState::Queued]),
            running: count(&[JobState::Running]),
        }))
    }

    async fn update_worker(
        &self,
        request: Request<v1::UpdateWorkerRequest>,
    ) -> Result<Response<v1::UpdateWorkerResponse>, Status> {
        let caller = caller(&request, Role::Operate)?;
        let request = request.into_inner();
        let mode = match v1::update_worker_request::Mode::try_from(request.mode) {
            Ok(v1::update_worker_request::Mode::Unspecified) => None,
            Ok(v1::update_worker_request::Mode::Active) => Some(WorkerMode::Active),
            Ok(v1::update_worker_request::Mode::Paused) => Some(WorkerMode::Paused),
            Ok(v1::update_worker_request::Mode::Draining) => Some(WorkerMode::Draining),
            Err(_) => {
                return Err(status(Error::field(
                    "mode",
                    "has a value that this coordinator does not know",
                    "the client may be newer than the coordinator",
                )));
            }
        };
        self.app
            .update_worker(
                &caller,
                &request.request_id,
                &request.worker,
                mode,
                request.slots,
            )
            .await
            .map_err(status)?;
        let worker = self.app.worker(&request.worker).await.map_err(status)?;
        Ok(Response::new(v1::UpdateWorkerResponse {
            worker: Some(convert::worker(worker)),
        }))
    }

    async fn list_workers(
        &self,
        request: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        caller(&request, Role::Read)?;
        let request = request.into_inner();
        let page = convert::read_page(request.page_size, request.page_token).map_err(status)?;
        let page = self.app.workers(&page).await.map_err(status)?;
        Ok(Response::new(v1::ListWorkersResponse {
            workers: page.workers.into_iter().map(convert::worker).collect(),
            next_page_token: page.next_page_token,
        }))
    }

    async fn list_templates(
        &self,
        request: Request<v1::ListTemplatesRequest>,
    ) -> Result<Response<v1::ListTemplatesResponse>, Status> {
        caller(&request, Role::Read)?;
        let templates = self.app.templates().await.map_err(status)?;
        Ok(Response::new(v1::ListTemplatesResponse {
            templates: templates
                .into_iter()
                .map(|template| v1::Template {
                    name: template.name,
                    definition: template.definition,
                })
                .collect(),
        }))
    }
}
