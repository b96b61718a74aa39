//! What was measured, over the wire.

use std::sync::Arc;

use qctl_proto::v1;
use qctl_proto::v1::measures_service_server::MeasuresService;
use qctl_server_core::alarm::watch::{AttemptLook, MachineLook};
use qctl_server_core::gpu::{Driver, GpuFault, GpuFaultKind, GpuFigures, GpuLook};
use qctl_server_core::measures::{AttemptMeasures, MachineMeasures};
use qctl_server_core::{Fence, JobId};
use tonic::{Request, Response, Status};

use super::convert;
use super::status::{caller, status};
use crate::app::measures::{DEFAULT_POINTS, MAX_MINUTES, MAX_POINTS};
use crate::app::{App, Error, Role};

/// Minutes of an answer that names no number.
const DEFAULT_MINUTES: i64 = 60;

/// Longest text about a GPU, in characters, and most GPUs of a worker.
const MAX_WORDS: usize = 500;
const MAX_GPUS: usize = 256;

/// Serves what was measured.
pub(super) struct Measures {
    app: Arc<App>,
}

impl Measures {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { app }
    }
}

#[tonic::async_trait]
impl MeasuresService for Measures {
    async fn read_attempt_measures(
        &self,
        request: Request<v1::ReadAttemptMeasuresRequest>,
    ) -> Result<Response<v1::ReadAttemptMeasuresResponse>, Status> {
        caller(&request, Role::Read)?;
        let request = request.into_inner();
        if request.attempt < 0 {
            return Err(status(Error::field(
                "attempt",
                "is negative",
                "attempts count from 1, and 0 means the latest",
            )));
        }
        let number = (request.attempt > 0).then_some(request.attempt);
        let most = count(request.points).map_err(status)?;
        let history = self
            .app
            .attempt_history(JobId(request.job_id), number, most)
            .await
            .map_err(status)?;
        Ok(Response::new(v1::ReadAttemptMeasuresResponse {
            points: history
                .points
                .into_iter()
                .map(|(time, used)| v1::AttemptMeasures {
                    time: Some(convert::timestamp(time)),
                    ..attempt(used)
                })
                .collect(),
            most: history.most.map(attempt),
            latest: history.latest.map(attempt),
        }))
    }

    async fn read_machine_measures(
        &self,
        request: Request<v1::ReadMachineMeasuresRequest>,
    ) -> Result<Response<v1::ReadMachineMeasuresResponse>, Status> {
        caller(&request, Role::Read)?;
        let request = request.into_inner();
        let most = count(request.points).map_err(status)?;
        let minutes = match i64::from(request.minutes) {
            0 => DEFAULT_MINUTES,
            minutes if minutes < 0 => {
                return Err(status(Error::field(
                    "minutes",
                    "is negative",
                    "minutes count back from now",
                )));
            }
            minutes => minutes.min(MAX_MINUTES),
        };
        let history = self
            .app
            .machine_history(&request.worker, minutes, most)
            .await
            .map_err(status)?;
        Ok(Response::new(v1::ReadMachineMeasuresResponse {
            points: history
                .points
                .into_iter()
                .map(|(time, used)| v1::MachineMeasures {
                    time: Some(convert::timestamp(time)),
                    ..machine(used)
                })
                .collect(),
            latest: history.latest.map(machine),
        }))
    }
}

fn count(points: i32) -> Result<usize, Error> {
    match usize::try_from(points) {
        Ok(0) => Ok(DEFAULT_POINTS),
        Ok(points) => Ok(points.min(MAX_POINTS)),
        Err(_) => Err(Error::field(
            "points",
            "is negative",
            "leave it out for a usual number",
        )),
    }
}

/// What a worker says of an attempt; figures that make no sense are absent.
pub(super) fn read_attempt(told: &v1::AttemptMeasures) -> AttemptLook {
    let used = AttemptMeasures {
        cpus: amount(told.cpus),
        resident_bytes: told.resident_bytes.max(0),
        anonymous_bytes: told.anonymous_bytes.filter(|bytes| *bytes >= 0),
        read_rate: amount(told.read_rate),
        write_rate: amount(told.write_rate),
        processes: told.processes.max(0),
        threads: told.threads.max(0),
        zombies: told.zombies.max(0),
        uninterruptible: told.uninterruptible.max(0),
        gpu_busy: share(told.gpu_busy),
        gpu_memory_bytes: told.gpu_memory_bytes.filter(|bytes| *bytes >= 0),
    };
    AttemptLook {
        fence: Fence(told.fence),
        used,
        gpu_memory: share(told.gpu_memory_share),
    }
}

/// What a worker says of its machine; figures that make no sense are absent.
pub(super) fn read_machine(told: &v1::MachineMeasures) -> MachineLook {
    let bytes = |bytes: Option<i64>| bytes.filter(|bytes| *bytes >= 0);
    let gpus = told.gpus.as_ref().map_or(&[][..], |watch| &watch.gpus);
    let busy: Vec<f64> = gpus.iter().filter_map(|gpu| share(gpu.busy)).collect();
    let used: Vec<i64> = gpus
        .iter()
        .filter_map(|gpu| bytes(gpu.memory_used_bytes))
        .collect();
    let measured = MachineMeasures {
        busy: share(told.busy),
        load: amount(told.load),
        memory_available_bytes: bytes(told.memory_available_bytes),
        memory_total_bytes: bytes(told.memory_total_bytes),
        swap_used_bytes: bytes(told.swap_used_bytes),
        disk_free_bytes: bytes(told.disk_free_bytes),
        disk_total_bytes: bytes(told.disk_total_bytes),
        gpu_busy: (!busy.is_empty()).then(|| busy.iter().sum::<f64>() / busy.len() as f64),
        gpu_memory_bytes: (!used.is_empty())
            .then(|| used.iter().fold(0i64, |a, b| a.saturating_add(*b))),
        gpu_temperature: gpus.iter().filter_map(|gpu| gpu.temperature_celsius).max(),
    };
    let finite = |seconds: f64| if seconds.is_finite() { seconds } else { 0.0 };
    MachineLook {
        used: measured,
        oom_kills: told.oom_kills.unwrap_or(0).max(0),
        clock_jump: finite(told.clock_jump_seconds),
        slept: finite(told.slept_seconds).max(0.0),
    }
}

fn share(value: Option<f64>) -> Option<f64> {
    value.filter(|value| (0.0..=1.0).contains(value))
}

fn amount(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite() && *value >= 0.0)
}

fn attempt(used: AttemptMeasures) -> v1::AttemptMeasures {
    v1::AttemptMeasures {
        fence: 0,
        cpus: used.cpus,
        resident_bytes: used.resident_bytes,
        anonymous_bytes: used.anonymous_bytes,
        read_rate: used.read_rate,
        write_rate: used.write_rate,
        processes: used.processes,
        threads: used.threads,
        zombies: used.zombies,
        uninterruptible: used.uninterruptible,
        gpu_busy: used.gpu_busy,
        gpu_memory_bytes: used.gpu_memory_bytes,
        time: None,
        gpu_memory_share: None,
    }
}

fn machine(used: MachineMeasures) -> v1::MachineMeasures {
    let gpu = v1::GpuMeasures {
        memory_used_bytes: used.gpu_memory_bytes,
        busy: used.gpu_busy,
        temperature_celsius: used.gpu_temperature,
        ..v1::GpuMeasures::default()
    };
    let known = used.gpu_busy.is_some() || used.gpu_memory_bytes.is_some();
    v1::MachineMeasures {
        busy: used.busy,
        load: used.load,
        memory_available_bytes: used.memory_available_bytes,
        memory_total_bytes: used.memory_total_bytes,
        swap_used_bytes: used.swap_used_bytes,
        disk_free_bytes: used.disk_free_bytes,
        disk_total_bytes: used.disk_total_bytes,
        oom_kills: None,
        clock_jump_seconds: 0.0,
        gpus: known.then(|| v1::GpuWatch {
            state: v1::gpu_watch::State::Read.into(),
            message: String::new(),
            gpus: vec![gpu],
        }),
        time: None,
        slept_seconds: 0.0,
    }
}

/// What a GPU driver says, without figures that make no sense.
pub(super) fn read_gpus(told: &v1::GpuWatch) -> GpuLook {
    use v1::gpu_watch::State as Wire;
    let size = |bytes: Option<i64>| bytes.filter(|bytes| *bytes >= 0);
    let figures = |gpu: &v1::GpuMeasures| GpuFigures {
        uuid: gpu.uuid.chars().take(MAX_WORDS).collect(),
        lost: gpu.lost,
        memory_used_bytes: size(gpu.memory_used_bytes),
        memory_total_bytes: size(gpu.memory_total_bytes),
        busy: share(gpu.busy),
        temperature: gpu.temperature_celsius,
        power: gpu
            .power_watts
            .filter(|watts| watts.is_finite() && *watts >= 0.0),
        uncorrected_errors: gpu.uncorrected_errors.filter(|errors| *errors >= 0),
    };
    GpuLook {
        driver: match told.state() {
            Wire::Unspecified => Driver::Unknown,
            Wire::Absent => Driver::Absent,
            Wire::Read => Driver::Read,
            Wire::Hung => Driver::Hung,
            Wire::Failed => Driver::Failed,
        },
        message: told.message.chars().take(MAX_WORDS).collect(),
        gpus: told.gpus.iter().take(MAX_GPUS).map(figures).collect(),
    }
}

/// What a GPU driver said, as the contract writes it.
pub(super) fn gpu_watch(look: GpuLook) -> v1::GpuWatch {
    use v1::gpu_watch::State as Wire;
    let state = match look.driver {
        Driver::Unknown => Wire::Unspecified,
        Driver::Absent => Wire::Absent,
        Driver::Read => Wire::Read,
        Driver::Hung => Wire::Hung,
        Driver::Failed => Wire::Failed,
    };
    let measures = |gpu: GpuFigures| v1::GpuMeasures {
        uuid: gpu.uuid,
        lost: gpu.lost,
        memory_used_bytes: gpu.memory_used_bytes,
        memory_total_bytes: gpu.memory_total_bytes,
        busy: gpu.busy,
        temperature_celsius: gpu.temperature,
        power_watts: gpu.power,
        uncorrected_errors: gpu.uncorrected_errors,
        xid: None,
    };
    v1::GpuWatch {
        state: state.into(),
        message: look.message,
        gpus: look.gpus.into_iter().map(measures).collect(),
    }
}

/// A fault of a GPU, as the contract writes it.
pub(super) fn gpu_fault(fault: GpuFault) -> v1::GpuFault {
    use v1::gpu_fault::Kind as Wire;
    let kind = match fault.kind {
        GpuFaultKind::Lost => Wire::Lost,
        GpuFaultKind::Memory => Wire::Memory,
        GpuFaultKind::Xid => Wire::Xid,
        GpuFaultKind::Output => Wire::Output,
        GpuFaultKind::Silent => Wire::Silent,
        GpuFaultKind::Unfit => Wire::Unfit,
        GpuFaultKind::Unused => Wire::Unused,
        GpuFaultKind::Slow => Wire::Slow,
        GpuFaultKind::FailsJobs => Wire::FailsJobs,
    };
    v1::GpuFault {
        gpu: fault.gpu,
        name: fault.name,
        kind: kind.into(),
        number: fault.number,
        message: fault.message,
        // The sentence says it.
        users_hidden: false,
        item: None,
        usual_item: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_that_make_no_sense_are_absent() {
        let told = v1::AttemptMeasures {
            cpus: Some(f64::NAN),
            resident_bytes: -5,
            anonymous_bytes: Some(-1),
            gpu_busy: Some(7.0),
            read_rate: Some(-0.5),
            ..v1::AttemptMeasures::default()
        };
        assert_eq!(read_attempt(&told).used, AttemptMeasures::default());
        let told = v1::MachineMeasures {
            busy: Some(0.5),
            gpus: Some(v1::GpuWatch {
                gpus: vec![
                    v1::GpuMeasures {
                        busy: Some(0.2),
                        temperature_celsius: Some(50),
                        ..v1::GpuMeasures::default()
                    },
                    v1::GpuMeasures {
                        busy: Some(0.4),
                        temperature_celsius: Some(70),
                        ..v1::GpuMeasures::default()
                    },
                ],
                ..v1::GpuWatch::default()
            }),
            ..v1::MachineMeasures::default()
        };
        let machine = read_machine(&told).used;
        assert_eq!(
            (machine.busy, machine.gpu_temperature),
            (Some(0.5), Some(70))
        );
        assert!((machine.gpu_busy.unwrap() - 0.3).abs() < 1e-9);
        assert_eq!(machine.gpu_memory_bytes, None);
    }
}
