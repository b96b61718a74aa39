//! GPUs, as NVML tells them. NVML can hang for good, so it is asked in a process of its own, which
//! is given up when it does not answer. No driver and no GPU is the normal case.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use nvml_wrapper::Nvml as Library;
use nvml_wrapper::error::NvmlError;
use qctl_proto::v1;
use qctl_worker_core::gpu::GpuReading;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::place::{Failed, Places, Taken, run};

/// How long NVML may take for one answer, unless the worker's settings say otherwise.
pub const DEADLINE: Duration = Duration::from_secs(15);

/// Has the place of the process that lists all GPUs.
const ALL: &str = "all";

/// On WSL the right library stands here, and a stub elsewhere may hide it.
const WSL_LIBRARY: &str = "/usr/lib/wsl/lib/libnvidia-ml.so.1";

/// How NVML is asked: by a process of its own, with a deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nvml {
    /// The worker's program.
    pub program: PathBuf,
    /// NVML's library, where it is not the system's.
    pub library: Option<PathBuf>,
    /// How long it may take for one answer.
    pub deadline: Duration,
}

impl Nvml {
    /// The program in one of the parts that ask NVML.
    pub(crate) fn command(&self, part: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(part);
        if let Some(library) = &self.library {
            command.arg("--library").arg(library);
        }
        command
    }
}

/// Arguments of a part that asks NVML once.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Args {
    /// NVML's library, where it is not the system's.
    #[arg(long)]
    pub library: Option<PathBuf>,
}

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
            ..Self::default()
        }
    }
}

impl From<&GpuReading> for Gpu {
    fn from(reading: &GpuReading) -> Self {
        Self {
            uuid: reading.uuid.clone(),
            name: reading.name.clone(),
            memory_bytes: reading.memory_total.unwrap_or(0),
        }
    }
}

/// Those of `seen` that are not among `known`.
pub(crate) fn beyond<'a>(known: &'a [Gpu], seen: &'a [Gpu]) -> impl Iterator<Item = &'a Gpu> {
    seen.iter()
        .filter(|gpu| known.iter().all(|known| known.uuid != gpu.uuid))
}

/// Why the GPUs are not known.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// The process could not be run.
    #[error("the process that asks for GPUs could not be run")]
    Spawn(#[source] std::io::Error),
    /// No answer in time.
    #[error("the GPU driver did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The process failed.
    #[error("the process that asks for GPUs failed: {0}")]
    Failed(String),
    /// The answer cannot be read.
    #[error("the answer about GPUs cannot be read")]
    Answer(#[source] serde_json::Error),
}

/// The machine's GPUs. While a process that was asked for them hangs, no other one is started.
///
/// # Errors
/// When the driver hangs or fails. Having no driver is not an error.
pub(crate) async fn list(nvml: &Nvml, places: &Places) -> Result<Vec<Gpu>, GpuError> {
    let place = places.take(ALL, nvml.deadline).await;
    let place = place.ok_or(GpuError::Silent(nvml.deadline))?;
    let answer = answer(nvml.command("gpus"), nvml.deadline, &[place]).await?;
    serde_json::from_slice(&answer).map_err(GpuError::Answer)
}

/// What a part prints that asks NVML once. If it hangs, `places` are held until it is gone.
///
/// # Errors
/// When it hangs or fails.
pub(crate) async fn answer(
    command: Command,
    deadline: Duration,
    places: &[Arc<Taken>],
) -> Result<Vec<u8>, GpuError> {
    let output = run(command, deadline, places).await;
    let output = output.map_err(|failed| match failed {
        Failed::Run(error) => GpuError::Spawn(error),
        Failed::Late => GpuError::Silent(deadline),
    })?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(GpuError::Failed(words.trim().chars().take(500).collect()));
    }
    Ok(output.stdout)
}

/// The program `qctl-worker gpus`: prints the GPUs as JSON.
pub fn main(args: &Args) -> ExitCode {
    match ask(args) {
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

fn ask(args: &Args) -> Result<Vec<Gpu>, NvmlError> {
    let nvml = match init(args.library.as_deref()) {
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
pub(crate) fn init(library: Option<&Path>) -> Result<Library, NvmlError> {
    if let Some(library) = library {
        return Library::builder().lib_path(library.as_ref()).init();
    }
    if Path::new(WSL_LIBRARY).exists() {
        return Library::builder().lib_path(WSL_LIBRARY.as_ref()).init();
    }
    Library::init()
}

/// True when there is no driver, which is no fault. A library that is there and cannot be loaded, as
/// with too many open files, says nothing of the driver.
pub(crate) fn is_absence(error: &NvmlError) -> bool {
    match error {
        NvmlError::DriverNotLoaded => true,
        // The loader tells its reasons in words only.
        NvmlError::LibloadingError(error) => error.to_string().contains("No such file"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn program(script: &str) -> (tempfile::TempPath, Nvml) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(file.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let nvml = Nvml {
            program: file.path().to_owned(),
            library: None,
            deadline: DEADLINE,
        };
        (file.into_temp_path(), nvml)
    }

    #[test]
    fn a_gpu_that_comes_later_is_told_from_those_that_are_known() {
        let gpu = |uuid: &str| {
            Gpu::from(&GpuReading {
                uuid: uuid.to_owned(),
                ..GpuReading::default()
            })
        };
        let same_with_figures = Gpu {
            memory_bytes: 5,
            ..gpu("a")
        };
        let seen = [same_with_figures, gpu("b")];
        let new: Vec<_> = beyond(&[gpu("a")], &seen).cloned().collect();
        assert_eq!(new, [gpu("b")]);
        assert_eq!(beyond(&seen, &[]).count(), 0);
    }

    #[test]
    fn a_library_that_is_not_there_is_told_from_one_that_cannot_be_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libnvidia-ml.so.1");
        assert!(is_absence(&init(Some(&library)).unwrap_err()));
        std::fs::write(&library, "torn").unwrap();
        assert!(!is_absence(&init(Some(&library)).unwrap_err()));
        assert!(is_absence(&NvmlError::DriverNotLoaded));
        assert!(!is_absence(&NvmlError::LibraryNotFound));
    }

    #[tokio::test]
    async fn answers_and_failures_are_told_apart() {
        let places = Places::default();
        let (_file, one) = program(r#"echo '[{"uuid":"GPU-1","name":"X","memory_bytes":5}]'"#);
        assert_eq!(list(&one, &places).await.unwrap()[0].uuid, "GPU-1");
        let (_file, none) = program("echo '[]'");
        assert_eq!(list(&none, &places).await.unwrap(), []);
        let (_file, failed) = program("echo driver lost >&2; exit 1");
        assert!(
            list(&failed, &places)
                .await
                .unwrap_err()
                .to_string()
                .contains("driver lost")
        );
        let (_file, nonsense) = program("echo hello");
        assert!(matches!(
            list(&nonsense, &places).await,
            Err(GpuError::Answer(_))
        ));
    }

    #[tokio::test]
    async fn f36_a_driver_that_hangs_is_given_up_and_not_asked_again_beside_it() {
        let asked = tempfile::NamedTempFile::new().unwrap();
        let script = format!("echo asked >> {}; exec sleep 1000", asked.path().display());
        let (_file, hangs) = program(&script);
        let hangs = Nvml {
            deadline: Duration::from_secs(1),
            ..hangs
        };
        let places = Places::default();
        for _ in 0..2 {
            let silent = list(&hangs, &places).await;
            assert!(matches!(silent, Err(GpuError::Silent(_))));
        }
        let asked = std::fs::read_to_string(asked.path()).unwrap();
        assert_eq!(asked, "asked\n", "the first one is not gone");
    }
}
