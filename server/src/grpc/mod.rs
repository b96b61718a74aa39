//! The services of the contract. Wire types live here and in `web` only.

mod alarm_service;
#[cfg(test)]
mod checkpoint_tests;
mod checkpoint_transfer;
mod convert;
mod job_service;
#[cfg(test)]
mod job_tests;
mod log_service;
#[cfg(test)]
mod log_tests;
mod log_upload;
mod measures_service;
mod notice_service;
#[cfg(test)]
mod notice_tests;
mod queue_service;
mod status;
#[cfg(test)]
mod testing;
mod worker_session;
#[cfg(test)]
mod worker_tests;

use std::sync::Arc;

use qctl_proto::MAX_MESSAGE_BYTES;
use qctl_proto::v1::alarm_service_server::AlarmServiceServer;
use qctl_proto::v1::checkpoint_transfer_service_server::CheckpointTransferServiceServer;
use qctl_proto::v1::job_service_server::JobServiceServer;
use qctl_proto::v1::log_service_server::LogServiceServer;
use qctl_proto::v1::log_upload_service_server::LogUploadServiceServer;
use qctl_proto::v1::measures_service_server::MeasuresServiceServer;
use qctl_proto::v1::notice_service_server::NoticeServiceServer;
use qctl_proto::v1::queue_service_server::QueueServiceServer;
use qctl_proto::v1::worker_session_service_server::WorkerSessionServiceServer;
use tonic::service::Routes;

use crate::app::App;

/// Every service but the health of the program, which is there before these are. Callers are known by then: each request has a `Caller` among its extensions.
pub(crate) fn routes(app: &Arc<App>) -> Routes {
    let mut routes = Routes::default();
    macro_rules! serve {
        ($($server:ident($service:expr);)*) => {
            $(routes = routes.add_service(
                $server::new($service)
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(MAX_MESSAGE_BYTES),
            );)*
        };
    }
    serve! {
        WorkerSessionServiceServer(worker_session::WorkerSessions::new(Arc::clone(app)));
        JobServiceServer(job_service::Jobs::new(Arc::clone(app)));
        QueueServiceServer(queue_service::Queue::new(Arc::clone(app)));
        NoticeServiceServer(notice_service::Notices::new(Arc::clone(app)));
        LogServiceServer(log_service::Logs::new(Arc::clone(app)));
        AlarmServiceServer(alarm_service::Alarms::new(Arc::clone(app)));
        MeasuresServiceServer(measures_service::Measures::new(Arc::clone(app)));
        CheckpointTransferServiceServer(
            checkpoint_transfer::CheckpointTransfer::new(Arc::clone(app)));
        LogUploadServiceServer(log_upload::LogUpload::new(Arc::clone(app)));
    }
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(qctl_proto::DESCRIPTOR)
        .build_v1();
    match reflection {
        Ok(reflection) => routes = routes.add_service(reflection),
        // The descriptor is made by our own build; without it everything else still works.
        Err(error) => tracing::error!(error = %error, "server reflection is not available"),
    }
    routes
}
