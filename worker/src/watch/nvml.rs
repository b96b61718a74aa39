//! The program `qctl-worker watch-gpus`: asks NVML every few seconds and prints a line of JSON each
//! time. It is disposable: NVML can hang for good, and then this process is killed and forgotten.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, EventSet, Nvml};
use qctl_worker_core::gpu::{GpuReading, is_critical};
use serde::{Deserialize, Serialize};

use crate::inventory::gpu;

/// Most processes of one GPU that are told.
const MAX_PROCESSES: usize = 64;

/// Figures beyond these are no figures.
const MAX_DEGREES: u32 = 200;
const MAX_MILLIWATTS: u32 = 10_000_000;
const MAX_SANE: u64 = 1 << 50;

/// Arguments of the program.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Seconds between two looks.
    #[arg(long, default_value_t = 5)]
    pub every: u64,
    /// NVML's library, where it is not the system's.
    #[arg(long)]
    pub library: Option<PathBuf>,
}

/// One line: what NVML said at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// There is no driver, and so no GPU: normal on most machines.
    #[serde(default)]
    pub absent: bool,
    /// The GPUs.
    #[serde(default)]
    pub gpus: Vec<GpuReading>,
}

/// Runs until nobody reads any more.
pub fn main(args: &Args) -> ExitCode {
    match watch(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", crate::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn watch(args: &Args) -> Result<(), NvmlError> {
    let every = Duration::from_secs(args.every.max(1));
    let nvml = match gpu::init(args.library.as_deref()) {
        Ok(nvml) => nvml,
        Err(error) if gpu::is_absence(&error) => {
            print(&Look {
                absent: true,
                gpus: Vec::new(),
            });
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let count = nvml.device_count()?;
    // By index. A device that is lost later keeps its UUID here, so that the loss can be told by it.
    let mut known: Vec<Option<String>> = vec![None; count as usize];
    let events = listen(&nvml, count);
    let mut xids: Vec<Option<u64>> = vec![None; known.len()];
    loop {
        let mut gpus = Vec::new();
        for (index, (known, xid)) in (0..count).zip(known.iter_mut().zip(&mut xids)) {
            if known.is_none() {
                let device = nvml.device_by_index(index);
                *known = device.and_then(|device| device.uuid()).ok();
            }
            // Without a UUID nobody can be given the device, nor be told of it.
            if let Some(uuid) = known {
                gpus.push(GpuReading {
                    xid: xid.take(),
                    ..read(&nvml, index, uuid)
                });
            }
        }
        let look = Look {
            absent: false,
            gpus,
        };
        if !print(&look) {
            return Ok(());
        }
        let until = Instant::now() + every;
        pause(events.as_ref(), until, &known, &mut xids);
    }
}

/// Critical Xids of all GPUs that tell them; on some platforms, such as WSL, none does.
fn listen(nvml: &Nvml, count: u32) -> Option<EventSet<'_>> {
    let mut telling: Vec<u32> = (0..count).collect();
    while !telling.is_empty() {
        let mut set = Ok(nvml.create_event_set().ok()?);
        for index in &telling {
            set = set.and_then(|set| {
                let device = nvml.device_by_index(*index).map_err(|_| *index)?;
                let registered = device.register_events(EventTypes::CRITICAL_XID_ERROR, set);
                registered.map_err(|_| *index)
            });
        }
        match set {
            Ok(set) => return Some(set),
            // A refusal takes the set with it, so the others register anew.
            Err(refusing) => telling.retain(|index| *index != refusing),
        }
    }
    None
}

/// Waits until the next look, and notes Xids meanwhile.
fn pause(
    events: Option<&EventSet<'_>>,
    until: Instant,
    known: &[Option<String>],
    xids: &mut [Option<u64>],
) {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let Some(events) = events else {
            std::thread::sleep(left);
            continue;
        };
        let begun = Instant::now();
        let millis = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        let event = events.wait(millis.max(1));
        if let Ok(event) = &event {
            let uuid = event.device.uuid().ok();
            if let (Some(at), Some(XidError::Value(xid))) = (
                known
                    .iter()
                    .position(|known| known.is_some() && *known == uuid),
                &event.event_data,
            ) && is_critical(*xid)
            {
                // It is told at once.
                xids[at] = Some(*xid);
                return;
            }
        }
        // A library that returns at once must not keep a processor busy.
        if begun.elapsed() < Duration::from_millis(10) {
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
        if event.is_err_and(|error| is_loss(&error)) {
            // The look tells which one.
            return std::thread::sleep(left.min(Duration::from_secs(1)));
        }
    }
}

fn read(nvml: &Nvml, index: u32, uuid: &str) -> GpuReading {
    let mut reading = GpuReading {
        uuid: uuid.to_owned(),
        ..GpuReading::default()
    };
    let device = match nvml.device_by_index(index) {
        Ok(device) => device,
        Err(error) => {
            reading.lost = is_loss(&error);
            return reading;
        }
    };
    let mut lost = false;
    reading.name = told(device.name(), &mut lost).unwrap_or_default();
    let memory = told(device.memory_info(), &mut lost);
    reading.memory_used = memory.as_ref().map(|memory| memory.used).filter(is_sane);
    reading.memory_total = memory.map(|memory| memory.total).filter(is_sane);
    reading.busy = told(device.utilization_rates(), &mut lost)
        .filter(|utilization| utilization.gpu <= 100)
        .map(|utilization| f64::from(utilization.gpu) / 100.0);
    reading.temperature = told(device.temperature(TemperatureSensor::Gpu), &mut lost)
        .filter(|degrees| *degrees <= MAX_DEGREES);
    reading.power = told(device.power_usage(), &mut lost)
        .filter(|milliwatts| *milliwatts <= MAX_MILLIWATTS)
        .map(|milliwatts| f64::from(milliwatts) / 1000.0);
    reading.uncorrected = told(
        device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile),
        &mut lost,
    )
    .filter(is_sane);
    reading.processes = processes(&device, &mut lost);
    reading.lost = lost;
    reading
}

/// Processes that compute on a GPU. On Windows' driver model the list is there but says nothing of
/// their memory, and then it is not to be relied on.
fn processes(device: &Device<'_>, lost: &mut bool) -> Option<Vec<u32>> {
    let processes = told(device.running_compute_processes(), lost)?;
    let reliable = processes
        .iter()
        .all(|process| process.used_gpu_memory != UsedGpuMemory::Unavailable);
    reliable.then(|| {
        let pids = processes.iter().map(|process| process.pid);
        pids.take(MAX_PROCESSES).collect()
    })
}

/// Some drivers answer all ones for what they do not know.
fn is_sane(value: &u64) -> bool {
    *value <= MAX_SANE
}

fn told<T>(answer: Result<T, NvmlError>, lost: &mut bool) -> Option<T> {
    match answer {
        Ok(value) => Some(value),
        Err(error) => {
            *lost |= is_loss(&error);
            None
        }
    }
}

/// The device is there no more, or is of no use until it is reset.
pub(crate) fn is_loss(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::GpuLost | NvmlError::NotFound | NvmlError::ResetRequired
    )
}

/// False when nobody reads.
fn print(look: &Look) -> bool {
    let mut out = std::io::stdout().lock();
    let line = serde_json::json!(look);
    writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
}
