//! Reading output over the wire.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use qctl_proto::v1;
use qctl_proto::v1::log_service_server::LogService;
use qctl_server_core::JobId;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::convert;
use super::status::{caller, status};
use crate::app::logs::{LogQuery, LogStart, MAX_TAIL_LINES};
use crate::app::{App, Error, Role};

/// Serves stored output, and follows it.
pub(super) struct Logs {
    app: Arc<App>,
}

impl Logs {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { app }
    }
}

#[tonic::async_trait]
impl LogService for Logs {
    type ReadLogStream = Pin<Box<dyn Stream<Item = Result<v1::ReadLogResponse, Status>> + Send>>;

    async fn read_log(
        &self,
        request: Request<v1::ReadLogRequest>,
    ) -> Result<Response<Self::ReadLogStream>, Status> {
        caller(&request, Role::Read)?;
        let query = read_query(&request.into_inner()).map_err(status)?;
        let pieces = self.app.read_log(query).await.map_err(status)?;
        let responses =
            ReceiverStream::new(pieces).map(|piece| piece.map(convert::log_piece).map_err(status));
        Ok(Response::new(Box::pin(responses)))
    }
}

fn read_query(request: &v1::ReadLogRequest) -> Result<LogQuery, Error> {
    if request.attempt < 0 {
        return Err(Error::field(
            "attempt",
            "is negative",
            "attempts count from 1, and 0 means the latest",
        ));
    }
    let start = match request.tail_lines {
        Some(_) if request.offset != 0 => {
            return Err(Error::field(
                "tail_lines",
                "cannot go together with an offset",
                "leave one of them out",
            ));
        }
        Some(lines) => match u32::try_from(lines) {
            Ok(lines) if lines <= MAX_TAIL_LINES => LogStart::Lines(lines),
            _ => {
                return Err(Error::field(
                    "tail_lines",
                    format!("is {lines}, not between 0 and {MAX_TAIL_LINES}"),
                    "leave it out for everything",
                ));
            }
        },
        None if request.offset < 0 => {
            return Err(Error::field("offset", "is negative", "0 is the beginning"));
        }
        None => LogStart::Offset(request.offset),
    };
    let stream = match v1::LogStream::try_from(request.stream) {
        Ok(v1::LogStream::Unspecified) => None,
        Ok(stream) => Some(stream.into()),
        Err(_) => {
            return Err(Error::field(
                "stream",
                "is one that this coordinator does not know",
                "leave it out for both streams",
            ));
        }
    };
    let since = request
        .since
        .as_ref()
        .map(|time| convert::read_timestamp(time, "since"))
        .transpose()?;
    Ok(LogQuery {
        job: JobId(request.job_id),
        attempt: (request.attempt > 0).then_some(request.attempt),
        start,
        stream,
        since,
        follow: request.follow,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_that_makes_no_sense_names_its_field() {
        let base = v1::ReadLogRequest {
            job_id: 1,
            ..v1::ReadLogRequest::default()
        };
        let cases = [
            (
                "attempt",
                v1::ReadLogRequest {
                    attempt: -1,
                    ..base
                },
            ),
            ("offset", v1::ReadLogRequest { offset: -1, ..base }),
            ("stream", v1::ReadLogRequest { stream: 9, ..base }),
            (
                "tail_lines",
                v1::ReadLogRequest {
                    tail_lines: Some(-1),
                    ..base
                },
            ),
            (
                "tail_lines",
                v1::ReadLogRequest {
                    tail_lines: Some(3),
                    offset: 7,
                    ..base
                },
            ),
        ];
        for (field, request) in cases {
            let error = read_query(&request).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
        let query = read_query(&v1::ReadLogRequest {
            tail_lines: Some(0),
            ..base
        })
        .unwrap();
        assert_eq!(query.start, LogStart::Lines(0));
        assert_eq!(query.attempt, None);
    }
}
