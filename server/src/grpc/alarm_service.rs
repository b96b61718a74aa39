//! Alarms, over the wire.

use std::sync::Arc;

use qctl_proto::v1;
use qctl_proto::v1::alarm_service_server::AlarmService;
use qctl_server_core::JobId;
use qctl_server_core::alarm::Subject;
use qctl_server_core::health::Health;
use tonic::{Request, Response, Status};

use super::convert;
use super::status::{caller, status};
use crate::app::alarms::{AlarmCount, AlarmRecord};
use crate::app::health::MachineHealth;
use crate::app::{App, Role};

/// Serves alarms.
pub(super) struct Alarms {
    app: Arc<App>,
}

impl Alarms {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { app }
    }
}

#[tonic::async_trait]
impl AlarmService for Alarms {
    async fn list_alarms(
        &self,
        request: Request<v1::ListAlarmsRequest>,
    ) -> Result<Response<v1::ListAlarmsResponse>, Status> {
        caller(&request, Role::Read)?;
        let request = request.into_inner();
        let page = convert::read_page(request.page_size, request.page_token).map_err(status)?;
        let job = (request.job_id != 0).then_some(JobId(request.job_id));
        let worker = (!request.worker.is_empty()).then_some(request.worker.as_str());
        let page = self
            .app
            .alarm_page(job, worker, request.all, &page)
            .await
            .map_err(status)?;
        Ok(Response::new(v1::ListAlarmsResponse {
            alarms: page.alarms.into_iter().map(alarm).collect(),
            next_page_token: page.next_page_token,
            counts: page.counts.into_iter().map(count).collect(),
        }))
    }

    async fn get_health(
        &self,
        request: Request<v1::GetHealthRequest>,
    ) -> Result<Response<v1::GetHealthResponse>, Status> {
        caller(&request, Role::Read)?;
        let machines = self.app.health().await.map_err(status)?;
        let worst = machines.iter().map(MachineHealth::health).max();
        Ok(Response::new(v1::GetHealthResponse {
            health: worst.map_or(v1::Health::Unspecified, health).into(),
            machines: machines.into_iter().map(machine).collect(),
        }))
    }
}

fn alarm(record: AlarmRecord) -> v1::Alarm {
    let job = match record.subject {
        Subject::Job(job) => job.0,
        Subject::Worker(_) | Subject::Coordinator => 0,
    };
    v1::Alarm {
        id: record.id,
        kind: convert::alarm_kind(record.kind).into(),
        job_id: job,
        job_name: record.job_name,
        attempt: record.attempt.unwrap_or(0),
        machine: record.machine,
        coordinator: record.subject == Subject::Coordinator,
        began_at: Some(convert::timestamp(record.began_at)),
        ended_at: record.ended_at.map(convert::timestamp),
        limit: record.limit,
        peak: record.peak,
        untold: record.untold.map_or("", |why| why.as_str()).to_owned(),
        ended_because: record.because.map_or("", |why| why.as_str()).to_owned(),
    }
}

fn machine(machine: MachineHealth) -> v1::MachineHealth {
    v1::MachineHealth {
        health: health(machine.health()).into(),
        machine: machine.machine,
        coordinator: machine.is_coordinator,
        findings: machine
            .findings
            .into_iter()
            .map(|finding| v1::HealthFinding {
                subject: finding.topic.to_string(),
                health: health(finding.health).into(),
                message: finding.message,
                advice: finding.advice,
            })
            .collect(),
    }
}

fn health(health: Health) -> v1::Health {
    match health {
        Health::Well => v1::Health::Well,
        Health::Watch => v1::Health::Watch,
        Health::Bad => v1::Health::Bad,
    }
}

fn count(counted: AlarmCount) -> v1::AlarmCount {
    v1::AlarmCount {
        kind: convert::alarm_kind(counted.kind).into(),
        of_jobs: counted.of_jobs,
        count: counted.count,
        told: counted.told,
        lasted: Some(prost_types::Duration {
            seconds: counted.seconds,
            nanos: 0,
        }),
    }
}
