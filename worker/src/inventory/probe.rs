//! Whether GPUs are fit for work, as a process of its own finds out: NVML can hang for good.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::{Device, Nvml as Library};
use qctl_worker_core::gpu::{Depth, Fault, FaultKind};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::task::spawn_blocking;

use super::gpu::{self, GpuError, Nvml, answer};
use super::place::{Failed, Places, Taken, run};
use crate::chain;
use crate::process::marker::{self, Marker};
use crate::process::sweep::{Trace, sweep};
use crate::watch::nvml::is_loss;

/// NVML's name for "rows that could not be remapped": the card is to be replaced.
const REMAPPED_FAILURE: FieldId = FieldId(145);

/// How long a probe's command may compute: the first start on a cold GPU takes its time.
const COMMAND_WITHIN: Duration = Duration::from_secs(60);

/// How long a new agent waits for the end of what an earlier one's probes left.
const ENDED_WITHIN: Duration = Duration::from_secs(5);

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
    /// Marks what that command starts.
    pub(crate) marker: Marker,
    /// One probe of a GPU at a time.
    pub(crate) places: Places,
}

/// Ends the commands with which an agent that was killed probed GPUs: nobody waits for them, and they
/// would compute beside the jobs of the next one.
pub(crate) async fn end_leftovers(marker: Marker) {
    let trace = Trace {
        marker,
        leader: None,
    };
    let swept = spawn_blocking(move || sweep(&trace, Instant::now() + ENDED_WITHIN)).await;
    match swept {
        Ok(Ok(left)) if left.is_empty() => {}
        Ok(Ok(left)) => {
            let pids: Vec<_> = left.iter().map(|process| process.pid).collect();
            tracing::warn!("an earlier agent's probe of a GPU cannot be ended: processes {pids:?}");
        }
        Ok(Err(error)) => {
            let error = chain(&error);
            tracing::warn!("an earlier agent's probes of GPUs cannot be looked for: {error}");
        }
        // It panicked, which was told, or everything is ending.
        Err(_) => {}
    }
}

impl Prober {
    /// Probes GPUs so deep, and says of each what is wrong with it.
    pub(crate) async fn probe(
        self,
        mut gpus: Vec<String>,
        depth: Depth,
    ) -> Vec<(String, Option<Fault>)> {
        // In one order, so that no two probes wait for each other.
        gpus.sort();
        gpus.dedup();
        let patience = self.nvml.deadline + COMMAND_WITHIN;
        let (mut free, mut places, mut silent) = (Vec::new(), Vec::new(), Vec::new());
        for gpu in gpus {
            match self.places.take(&gpu, patience).await {
                Some(place) => {
                    free.push(gpu);
                    places.push(place);
                }
                None => silent.push((gpu.clone(), Some(fault(&gpu, "", FaultKind::Silent)))),
            }
        }
        let mut results = match free.is_empty() {
            true => Vec::new(),
            false => self.probe_free(free, depth, &places).await,
        };
        results.append(&mut silent);
        results
    }

    async fn probe_free(
        &self,
        gpus: Vec<String>,
        depth: Depth,
        places: &[Arc<Taken>],
    ) -> Vec<(String, Option<Fault>)> {
        let mut results: Vec<_> = match self.ask(&gpus, places).await {
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
        if depth == Depth::Whole
            && let Some(command) = &self.command
        {
            for ((gpu, fault_of), place) in results.iter_mut().zip(places) {
                if fault_of.is_none()
                    && let Err(kind) = compute(self.shell(command, gpu), place).await
                {
                    *fault_of = Some(fault(gpu, "", kind));
                }
            }
        }
        results
    }

    fn shell(&self, command: &str, gpu: &str) -> Command {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", command])
            .env("CUDA_VISIBLE_DEVICES", gpu)
            .env(marker::VARIABLE, self.marker.value());
        shell
    }

    async fn ask(&self, gpus: &[String], places: &[Arc<Taken>]) -> Result<Vec<Found>, GpuError> {
        let mut command = self.nvml.command("probe-gpus");
        for gpu in gpus {
            command.arg("--gpu").arg(gpu);
        }
        let answer = answer(command, self.nvml.deadline, places).await?;
        serde_json::from_slice(&answer).map_err(GpuError::Answer)
    }
}

/// Has one GPU compute something.
async fn compute(shell: Command, place: &Arc<Taken>) -> Result<(), FaultKind> {
    let output = match run(shell, COMMAND_WITHIN, std::slice::from_ref(place)).await {
        Ok(output) => output,
        Err(Failed::Late) => {
            let seconds = COMMAND_WITHIN.as_secs();
            return Err(FaultKind::Unfit(format!(
                "its probe did not end within {seconds} s"
            )));
        }
        Err(Failed::Run(error)) => {
            return Err(FaultKind::Unfit(format!(
                "its probe cannot be run: {error}"
            )));
        }
    };
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let line = words.trim().lines().last().unwrap_or_default();
    let line: String = line.chars().take(MAX_WORDS).collect();
    let status = output.status;
    Err(FaultKind::Unfit(match line.as_str() {
        "" => format!("its probe ended with {status}"),
        line => format!("its probe ended with {status}: {line}"),
    }))
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
        let prober = Prober {
            nvml: Nvml {
                program: PathBuf::new(),
                library: None,
                deadline: COMMAND_WITHIN,
            },
            command: None,
            marker: Marker::of_probes("s"),
            places: Places::default(),
        };
        let run = async |command: &str| {
            let place = prober.places.take("GPU-1", COMMAND_WITHIN).await.unwrap();
            compute(prober.shell(command, "GPU-1"), &place).await
        };
        assert_eq!(run("test $CUDA_VISIBLE_DEVICES = GPU-1").await, Ok(()));
        let failed = run("echo one; echo no kernel image >&2; exit 3").await;
        let words = "its probe ended with exit status: 3: no kernel image";
        assert_eq!(failed, Err(FaultKind::Unfit(words.to_owned())));
    }
}
