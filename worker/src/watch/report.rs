//! What was seen, as the contract has it.

use qctl_proto::v1;
use qctl_proto::v1::gpu_watch::State;
use qctl_worker_core::gpu::GpuReading;
use qctl_worker_core::measure::{MachineSample, TreeSample};

use super::gpu::GpuState;

/// What an attempt uses, on these GPUs.
pub(super) fn attempt(
    fence: i64,
    tree: &TreeSample,
    gpus: Vec<&GpuReading>,
) -> v1::AttemptMeasures {
    let busy: Vec<f64> = gpus.iter().filter_map(|gpu| gpu.busy).collect();
    let memory: Vec<u64> = gpus.iter().filter_map(|gpu| gpu.memory_used).collect();
    v1::AttemptMeasures {
        fence,
        cpus: tree.cpus,
        resident_bytes: signed(tree.resident_bytes),
        anonymous_bytes: tree.anonymous_bytes.map(signed),
        read_rate: tree.read_rate,
        write_rate: tree.write_rate,
        processes: count(tree.processes),
        threads: count(tree.threads),
        zombies: count(tree.zombies),
        uninterruptible: count(tree.uninterruptible),
        gpu_busy: (!busy.is_empty()).then(|| busy.iter().sum::<f64>() / busy.len() as f64),
        gpu_memory_bytes: (!memory.is_empty()).then(|| signed(memory.iter().sum())),
        time: None,
        gpu_memory_share: fullest(&gpus),
    }
}

/// The part of its memory that is in use, on the fullest of some GPUs.
fn fullest(gpus: &[&GpuReading]) -> Option<f64> {
    gpus.iter()
        .filter_map(|gpu| gpu.memory_used.zip(gpu.memory_total))
        .filter(|(_, total)| *total > 0)
        .map(|(used, total)| (used as f64 / total as f64).min(1.0))
        .reduce(f64::max)
}

/// What the machine uses.
pub(super) fn machine(seen: &MachineSample, gpus: GpuState) -> v1::MachineMeasures {
    v1::MachineMeasures {
        busy: seen.busy,
        load: seen.load,
        memory_available_bytes: seen.memory.map(|memory| signed(memory.available)),
        memory_total_bytes: seen.memory.map(|memory| signed(memory.total)),
        swap_used_bytes: seen
            .memory
            .map(|memory| signed(memory.swap_total.saturating_sub(memory.swap_free))),
        disk_free_bytes: seen.disk.map(|(free, _)| signed(free)),
        disk_total_bytes: seen.disk.map(|(_, total)| signed(total)),
        oom_kills: seen.oom_kills.map(signed),
        clock_jump_seconds: seen.clock_jump,
        slept_seconds: seen.slept,
        gpus: Some(watch(gpus)),
        time: None,
    }
}

fn watch(gpus: GpuState) -> v1::GpuWatch {
    let (state, message, gpus) = match gpus {
        GpuState::Unknown => (State::Unspecified, String::new(), Vec::new()),
        GpuState::Absent => (State::Absent, String::new(), Vec::new()),
        GpuState::Read(gpus) => (State::Read, String::new(), gpus),
        GpuState::Hung => (State::Hung, String::new(), Vec::new()),
        GpuState::Failed(reason) => (State::Failed, reason, Vec::new()),
    };
    v1::GpuWatch {
        state: state.into(),
        message,
        gpus: gpus.into_iter().map(gpu).collect(),
    }
}

fn gpu(reading: GpuReading) -> v1::GpuMeasures {
    v1::GpuMeasures {
        uuid: reading.uuid,
        lost: reading.lost,
        memory_used_bytes: reading.memory_used.map(signed),
        memory_total_bytes: reading.memory_total.map(signed),
        busy: reading.busy,
        temperature_celsius: reading
            .temperature
            .and_then(|degrees| degrees.try_into().ok()),
        power_watts: reading.power,
        uncorrected_errors: reading.uncorrected.map(signed),
        xid: reading.xid.map(signed),
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn count(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}
