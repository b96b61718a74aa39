//! GPUs, as NVML tells them. NVML can hang for good, so it is asked in a process of its own, which
//! is given up when it does not answer. No driver and no GPU is the normal case.

use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use qctl_proto::v1;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

/// How long NVML may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// On WSL the right library stands here, and a stub elsewhere may hide it.
const WSL_LIBRARY: &str = "/usr/lib/wsl/lib/libnvidia-ml.so.1";

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// The device's UUID.
    pub uuid: String,
    /// Its name.
    pub name: String,
    /// Memory in bytes; 0 when it cannot be read.
    pub memory_bytes: u64,
}

impl From<Gpu> for v1::Gpu {
    fn from(gpu: Gpu) -> Self {
        Self {
            uuid: gpu.uuid,
            name: gpu.name,
            memory_bytes: i64::try_from(gpu.memory_bytes).unwrap_or(i64::MAX),
        }
    }
}

/// Why the GPUs are not known.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// The process could not be run.
    #[error("the process that asks for GPUs could not be run")]
    Spawn(#[source] std::io::Error),
    /// No answer in time.
    #[error("the GPU driver did not answer within {} s", DEADLINE.as_secs())]
    Silent,
    /// The process failed.
    #[error("the process that asks for GPUs failed: {0}")]
    Failed(String),
    /// The answer cannot be read.
    #[error("the answer about GPUs cannot be read")]
    Answer(#[source] serde_json::Error),
}

/// The machine's GPUs, asked through `program gpus`.
///
/// # Errors
/// When the driver hangs or fails. Having no driver is not an error.
pub async fn list(program: &Path) -> Result<Vec<Gpu>, GpuError> {
    let child = Command::new(program)
        .arg("gpus")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(GpuError::Spawn)?;
    let output = tokio::time::timeout(DEADLINE, child.wait_with_output())
        .await
        .map_err(|_| GpuError::Silent)?
        .map_err(GpuError::Spawn)?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(GpuError::Failed(words.trim().chars().take(500).collect()));
    }
    let answer = &output.stdout[..output.stdout.len().min(MAX_ANSWER_BYTES)];
    serde_json::from_slice(answer).map_err(GpuError::Answer)
}

/// The program `qctl-worker gpus`: prints the GPUs as JSON.
pub fn main() -> ExitCode {
    match ask() {
        Ok(gpus) => {
            println!("{}", serde_json::json!(gpus));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}", crate::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn ask() -> Result<Vec<Gpu>, NvmlError> {
    let nvml = match init(None) {
        Ok(nvml) => nvml,
        Err(error) if is_absence(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut gpus = Vec::new();
    for index in 0..nvml.device_count()? {
        // A device that has fallen off the bus must not hide the others.
        let Ok(device) = nvml.device_by_index(index) else {
            continue;
        };
        let Ok(uuid) = device.uuid() else { continue };
        gpus.push(Gpu {
            uuid,
            name: device.name().unwrap_or_default(),
            memory_bytes: device.memory_info().map_or(0, |memory| memory.total),
        });
    }
    Ok(gpus)
}

/// Loads NVML from `library`, or from where it belongs.
///
/// # Errors
/// NVML's own; [`is_absence`] tells those of a machine without GPUs.
pub(crate) fn init(library: Option<&Path>) -> Result<Nvml, NvmlError> {
    if let Some(library) = library {
        return Nvml::builder().lib_path(library.as_ref()).init();
    }
    if Path::new(WSL_LIBRARY).exists() {
        return Nvml::builder().lib_path(WSL_LIBRARY.as_ref()).init();
    }
    Nvml::init()
}

/// True when there is no driver, which is no fault.
pub(crate) fn is_absence(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::LibloadingError(_)
            | NvmlError::LibraryNotFound
            | NvmlError::DriverNotLoaded
            | NvmlError::NotSupported
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn program(script: &str) -> tempfile::TempPath {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(file.path(), PermissionsExt::from_mode(0o755)).unwrap();
        file.into_temp_path()
    }

    #[tokio::test]
    async fn answers_and_failures_are_told_apart() {
        let one = program(r#"echo '[{"uuid":"GPU-1","name":"X","memory_bytes":5}]'"#);
        assert_eq!(list(&one).await.unwrap()[0].uuid, "GPU-1");
        let none = program("echo '[]'");
        assert_eq!(list(&none).await.unwrap(), []);
        let failed = program("echo driver lost >&2; exit 1");
        assert!(
            list(&failed)
                .await
                .unwrap_err()
                .to_string()
                .contains("driver lost")
        );
        let nonsense = program("echo hello");
        assert!(matches!(list(&nonsense).await, Err(GpuError::Answer(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_driver_that_hangs_is_given_up() {
        let hangs = program("exec sleep 1000");
        assert!(matches!(list(&hangs).await, Err(GpuError::Silent)));
    }
}
