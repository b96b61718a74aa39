//! Whether GPUs are fit for work, as a process of its own finds out: NVML can hang for good.

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::{Device, Nvml as Library};
use qctl_worker_core::gpu::{Fault, FaultKind};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::gpu::{self, GpuError, Nvml, answer};
use crate::chain;
use crate::watch::nvml::is_loss;

/// NVML's name for "rows that could not be remapped": the card is to be replaced.
const REMAPPED_FAILURE: FieldId = FieldId(145);

/// Last bytes of what a probe's command printed that are repeated.
const MAX_WORDS: usize = 300;

/// Arguments of the program.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// NVML's library, where it is not the system's.
    #[arg(long)]
    library: Option<PathBuf>,
    /// The GPUs to probe, by UUID.
    #[arg(long = "gpu")]
    gpus: Vec<String>,
}

/// What was found about one GPU.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Found {
    uuid: String,
    #[serde(default)]
    name: String,
    /// The driver has lost it.
    #[serde(default)]
    lost: bool,
    /// What else is wrong with it.
    #[serde(default)]
    unfit: Option<String>,
}

/// How GPUs are probed.
#[derive(Clone, Debug)]
pub(crate) struct Prober {
    /// How NVML is asked.
    pub(crate) nvml: Nvml,
    /// What computes something on the GPUs of `CUDA_VISIBLE_DEVICES`, for `sh -c`.
    pub(crate) command: Option<String>,
}

impl Prober {
    /// Probes GPUs, and says of each what is wrong with it.
    pub(crate) async fn probe(self, gpus: Vec<String>) -> Vec<(String, Option<Fault>)> {
        let mut results: Vec<_> = match self.ask(&gpus).await {
            Ok(found) => gpus.iter().map(|gpu| judge(gpu, &found)).collect(),
            Err(error) => {
                let kind = match &error {
                    GpuError::Silent(_) => FaultKind::Silent,
                    other => FaultKind::Unfit(chain(other)),
                };
                let failed = |gpu: &String| (gpu.clone(), Some(fault(gpu, "", kind.clone())));
                gpus.iter().map(failed).collect()
            }
        };
        if let Some(command) = &self.command {
            for (gpu, fault_of) in &mut results {
                if fault_of.is_none()
                    && let Err(kind) = self.compute(command, gpu).await
                {
                    *fault_of = Some(fault(gpu, "", kind));
                }
            }
        }
        results
    }

    async fn ask(&self, gpus: &[String]) -> Result<Vec<Found>, GpuError> {
        let mut command = self.nvml.command("probe-gpus");
        for gpu in gpus {
            command.arg("--gpu").arg(gpu);
        }
        let answer = answer(command, self.nvml.deadline).await?;
        serde_json::from_slice(&answer).map_err(GpuError::Answer)
    }

    /// Has one GPU compute something.
    async fn compute(&self, command: &str, gpu: &str) -> Result<(), FaultKind> {
        let child = Command::new("sh")
            .args(["-c", command])
            .env("CUDA_VISIBLE_DEVICES", gpu)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| FaultKind::Unfit(format!("its probe cannot be run: {error}")))?;
        let ended = tokio::time::timeout(self.nvml.deadline, child.wait_with_output()).await;
        let seconds = self.nvml.deadline.as_secs();
        match ended {
            Err(_) => Err(FaultKind::Unfit(format!(
                "its probe did not end within {seconds} s"
            ))),
            Ok(Err(error)) => Err(FaultKind::Unfit(format!("its probe failed: {error}"))),
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let words = String::from_utf8_lossy(&output.stderr);
                let line = words.trim().lines().last().unwrap_or_default();
                let line: String = line.chars().take(MAX_WORDS).collect();
                let status = output.status;
                Err(FaultKind::Unfit(match line.as_str() {
                    "" => format!("its probe ended with {status}"),
                    line => format!("its probe ended with {status}: {line}"),
                }))
            }
        }
    }
}

fn judge(gpu: &str, found: &[Found]) -> (String, Option<Fault>) {
    let kind = match found.iter().find(|found| found.uuid == gpu) {
        None => Some((String::new(), FaultKind::Lost)),
        Some(found) if found.lost => Some((found.name.clone(), FaultKind::Lost)),
        Some(found) => {
            let unfit = found.unfit.clone();
            unfit.map(|words| (found.name.clone(), FaultKind::Unfit(words)))
        }
    };
    let fault = kind.map(|(name, kind)| fault(gpu, &name, kind));
    (gpu.to_owned(), fault)
}

fn fault(gpu: &str, name: &str, kind: FaultKind) -> Fault {
    Fault {
        gpu: gpu.to_owned(),
        name: name.to_owned(),
        kind,
    }
}

/// The program `qctl-worker probe-gpus`: prints what it finds as JSON.
pub fn main(args: &Args) -> ExitCode {
    match look(args) {
        Ok(found) => {
            println!("{}", serde_json::json!(found));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn look(args: &Args) -> Result<Vec<Found>, NvmlError> {
    let nvml = match gpu::init(args.library.as_deref()) {
        Ok(nvml) => nvml,
        // Without a driver there is no GPU, so none of them is found.
        Err(error) if gpu::is_absence(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(args.gpus.iter().map(|uuid| look_at(&nvml, uuid)).collect())
}

fn look_at(nvml: &Library, uuid: &str) -> Found {
    let mut found = Found {
        uuid: uuid.to_owned(),
        ..Found::default()
    };
    let examined = nvml.device_by_uuid(uuid).and_then(|device| {
        found.name = device.name().unwrap_or_default();
        examine(&device)
    });
    match examined {
        Ok(unfit) => found.unfit = unfit,
        Err(error) if cannot_tell(&error) => {}
        Err(error) if is_loss(&error) => found.lost = true,
        Err(error) => found.unfit = Some(chain(&error)),
    }
    found
}

/// What is wrong with a GPU that answers. What it cannot tell is not held against it: GPUs that share
/// the machine's memory, GPUs in slices and old drivers do not even tell their memory.
fn examine(device: &Device<'_>) -> Result<Option<String>, NvmlError> {
    // Asked because one that is lost or hangs shows it here.
    supported(device.memory_info())?;
    if supported(device.are_pages_pending_retired())? == Some(true) {
        return Ok(Some(
            "pages of its memory are to be retired, which needs a reset".to_owned(),
        ));
    }
    let fields = supported(device.field_values_for(&[REMAPPED_FAILURE]))?;
    let failed = fields.into_iter().flatten().flatten().any(|sample| {
        matches!(
            sample.value,
            Ok(SampleValue::U32(1..) | SampleValue::U64(1..) | SampleValue::I64(1..))
        )
    });
    Ok(failed.then(|| "rows of its memory could not be replaced by spare ones".to_owned()))
}

fn supported<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_loss(&error) || matches!(error, NvmlError::Timeout) => Err(error),
        Err(_) => Ok(None),
    }
}

/// The GPU, its driver or its administrator keeps the answer back, which says nothing of the GPU.
fn cannot_tell(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::NotSupported | NvmlError::NoPermission | NvmlError::FailedToLoadSymbol(_)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_found_is_lost() {
        let found = [
            Found {
                uuid: "a".to_owned(),
                ..Found::default()
            },
            Found {
                uuid: "b".to_owned(),
                unfit: Some("worn".to_owned()),
                ..Found::default()
            },
        ];
        let kind = |gpu| judge(gpu, &found).1.map(|fault| fault.kind);
        assert_eq!(kind("a"), None);
        assert_eq!(kind("b"), Some(FaultKind::Unfit("worn".to_owned())));
        assert_eq!(kind("c"), Some(FaultKind::Lost));
    }

    #[test]
    fn only_a_loss_and_a_timeout_are_held_against_a_gpu() {
        for silent in [
            NvmlError::NotSupported,
            NvmlError::NoPermission,
            NvmlError::FailedToLoadSymbol("nvmlDeviceGetMemoryInfo_v2".to_owned()),
        ] {
            assert!(cannot_tell(&silent), "{silent}");
            assert!(supported::<()>(Err(silent)).unwrap().is_none());
        }
        for failed in [NvmlError::GpuLost, NvmlError::Timeout] {
            assert!(!cannot_tell(&failed), "{failed}");
            assert!(supported::<()>(Err(failed)).is_err());
        }
    }

    #[tokio::test]
    async fn a_command_that_fails_makes_a_gpu_unfit() {
        let prober = |command: &str| Prober {
            nvml: Nvml {
                program: "true".into(),
                library: None,
                deadline: gpu::DEADLINE,
            },
            command: Some(command.to_owned()),
        };
        let run = async |command: &str| prober(command).compute(command, "GPU-1").await;
        assert_eq!(run("test $CUDA_VISIBLE_DEVICES = GPU-1").await, Ok(()));
        let failed = run("echo one; echo no kernel image >&2; exit 3").await;
        let words = "its probe ended with exit status: 3: no kernel image";
        assert_eq!(failed, Err(FaultKind::Unfit(words.to_owned())));
    }
}
