//! What people were told and what went wrong, over the wire.

use std::sync::Arc;

use qctl_proto::v1;
use qctl_proto::v1::notice_service_server::NoticeService;
use qctl_server_core::JobId;
use qctl_server_core::notice::Severity;
use tonic::{Request, Response, Status};

use super::convert;
use super::status::{caller, status};
use super::worker_session::clean;
use crate::app::notices::{
    DeliveryCount, DeliveryRecord, ErrorGroup, NoticeBoard, NoticeCount, NoticeName, NoticeRecord,
    PanicReport,
};
use crate::app::{App, Error, Role};

/// Longest parts of what a worker tells of a panic, in bytes.
const MAX_KEY: usize = 100;
const MAX_PROGRAM: usize = 100;
const MAX_HOST: usize = 255;
const MAX_PLACE: usize = 4 * 1024;
const MAX_TEXT: usize = 8 * 1024;

/// Serves notices and errors.
pub(super) struct Notices {
    app: Arc<App>,
}

impl Notices {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { app }
    }
}

#[tonic::async_trait]
impl NoticeService for Notices {
    async fn list_notices(
        &self,
        request: Request<v1::ListNoticesRequest>,
    ) -> Result<Response<v1::ListNoticesResponse>, Status> {
        caller(&request, Role::Read)?;
        let request = request.into_inner();
        let page = convert::read_page(request.page_size, request.page_token).map_err(status)?;
        let job = (request.job_id != 0).then_some(JobId(request.job_id));
        let page = self.app.notice_page(job, &page).await.map_err(status)?;
        Ok(Response::new(v1::ListNoticesResponse {
            notices: page.notices.into_iter().map(notice).collect(),
            next_page_token: page.next_page_token,
            counts: page.counts.into_iter().map(count).collect(),
            channels: channels(&self.app.notices),
            deliveries: page.deliveries.into_iter().map(delivery_count).collect(),
        }))
    }

    async fn test_notices(
        &self,
        request: Request<v1::TestNoticesRequest>,
    ) -> Result<Response<v1::TestNoticesResponse>, Status> {
        let caller = caller(&request, Role::Operate)?;
        let channels = self.app.test_notices(&caller).await.map_err(status)?;
        Ok(Response::new(v1::TestNoticesResponse { channels }))
    }

    async fn acknowledge_notice(
        &self,
        request: Request<v1::AcknowledgeNoticeRequest>,
    ) -> Result<Response<v1::AcknowledgeNoticeResponse>, Status> {
        let caller = caller(&request, Role::Operate)?;
        let request = request.into_inner();
        let name = match request.filed_as.is_empty() {
            true => NoticeName::Number(request.notice_id),
            false => NoticeName::File(request.filed_as),
        };
        self.app
            .acknowledge_notice(&caller, name)
            .await
            .map_err(status)?;
        Ok(Response::new(v1::AcknowledgeNoticeResponse {}))
    }

    async fn list_errors(
        &self,
        request: Request<v1::ListErrorsRequest>,
    ) -> Result<Response<v1::ListErrorsResponse>, Status> {
        caller(&request, Role::Read)?;
        let request = request.into_inner();
        let page = convert::read_page(request.page_size, request.page_token).map_err(status)?;
        let since = request
            .since
            .as_ref()
            .map(|since| convert::read_timestamp(since, "since"))
            .transpose()
            .map_err(status)?;
        let page = self.app.error_page(since, &page).await.map_err(status)?;
        Ok(Response::new(v1::ListErrorsResponse {
            groups: page.groups.into_iter().map(group).collect(),
            next_page_token: page.next_page_token,
        }))
    }

    async fn report_panic(
        &self,
        request: Request<v1::ReportPanicRequest>,
    ) -> Result<Response<v1::ReportPanicResponse>, Status> {
        caller(&request, Role::Worker)?;
        let report = panic_report(request.into_inner()).map_err(status)?;
        self.app.panic_reported(report).await.map_err(status)?;
        Ok(Response::new(v1::ReportPanicResponse {}))
    }
}

fn panic_report(told: v1::ReportPanicRequest) -> Result<PanicReport, Error> {
    let impossible = |field, problem| Error::field(field, problem, "update the worker");
    let is_key = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if !(1..=MAX_KEY).contains(&told.key.len()) || !told.key.chars().all(is_key) {
        return Err(impossible(
            "key",
            "is not 1 to 100 letters, digits and hyphens",
        ));
    }
    let name = |field, text: String, most| match clean(text, most) {
        name if name.trim().is_empty() => Err(impossible(field, "is missing")),
        name => Ok(name),
    };
    let time = told.time.as_ref();
    Ok(PanicReport {
        key: told.key,
        program: name("program", told.program, MAX_PROGRAM)?,
        host: name("host", told.host, MAX_HOST)?,
        place: clean(told.place, MAX_PLACE),
        text: clean(told.text, MAX_TEXT),
        at: time
            .map(|time| convert::read_timestamp(time, "time"))
            .transpose()?,
    })
}

/// The channels that are set up, with what they refuse.
pub(super) fn channels(board: &NoticeBoard) -> Vec<v1::NoticeChannel> {
    board
        .channels()
        .iter()
        .map(|name| v1::NoticeChannel {
            name: name.clone(),
            problem: board.problem(name).unwrap_or_default(),
        })
        .collect()
}

fn notice(record: NoticeRecord) -> v1::Notice {
    v1::Notice {
        id: record.id,
        created_at: Some(convert::timestamp(record.created_at)),
        class: record.class.to_string(),
        severity: match record.severity {
            Severity::Info => v1::notice::Severity::Info,
            Severity::Warning => v1::notice::Severity::Warning,
            Severity::Error => v1::notice::Severity::Error,
            Severity::Critical => v1::notice::Severity::Critical,
        }
        .into(),
        subject: record.subject,
        job_id: record.job.map_or(0, |job| job.0),
        attempt: record.attempt.unwrap_or(0),
        worker: record.worker,
        state: state(&record.state).into(),
        reason: record.reason,
        repeats: record.repeats,
        title: record.title,
        body: record.body,
        deliveries: record.deliveries.into_iter().map(delivery).collect(),
        waited: record.waited,
        filed_as: record.filed_as,
    }
}

fn state(word: &str) -> v1::notice::State {
    match word {
        "new" => v1::notice::State::New,
        "waiting" => v1::notice::State::Waiting,
        "told" => v1::notice::State::Told,
        "held_back" => v1::notice::State::HeldBack,
        _ => v1::notice::State::Unspecified,
    }
}

fn delivery(record: DeliveryRecord) -> v1::NoticeDelivery {
    v1::NoticeDelivery {
        channel: record.channel,
        state: delivery_state(&record.state).into(),
        detail: record.detail,
        sent_at: record.sent_at.map(convert::timestamp),
        acknowledged_at: record.acknowledged_at.map(convert::timestamp),
        acknowledged_by: record.acknowledged_by,
    }
}

fn delivery_state(word: &str) -> v1::notice_delivery::State {
    match word {
        "pending" => v1::notice_delivery::State::Pending,
        "sending" => v1::notice_delivery::State::Sending,
        "sent" => v1::notice_delivery::State::Sent,
        "rejected" => v1::notice_delivery::State::Rejected,
        "unknown" => v1::notice_delivery::State::Unknown,
        "over" => v1::notice_delivery::State::Over,
        _ => v1::notice_delivery::State::Unspecified,
    }
}

fn delivery_count(count: DeliveryCount) -> v1::NoticeDeliveryCount {
    v1::NoticeDeliveryCount {
        channel: count.channel,
        state: delivery_state(&count.state).into(),
        count: count.count,
    }
}

fn count(count: NoticeCount) -> v1::NoticeCount {
    v1::NoticeCount {
        class: count.class.to_string(),
        state: state(&count.state).into(),
        reason: count.reason,
        count: count.count,
        repeats: count.repeats,
        merged: count.merged,
        quiet: count.quiet,
    }
}

fn group(group: ErrorGroup) -> v1::ErrorGroup {
    v1::ErrorGroup {
        signature: group.signature,
        exception: group.exception,
        example: group.example,
        count: group.count,
        first_seen: Some(convert::timestamp(group.first_seen)),
        last_seen: Some(convert::timestamp(group.last_seen)),
        job_ids: group.jobs.into_iter().map(|job| job.0).collect(),
        job_count: group.job_count,
    }
}
