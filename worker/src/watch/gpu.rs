//! Keeps the process that asks NVML, and gives it up when it hangs.

use std::process::Stdio;
use std::time::Duration;

use qctl_worker_core::gpu::GpuReading;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Child;
use tokio::time::timeout;

use super::EVERY;
use super::nvml::Look;
use crate::chain;
use crate::inventory::gpu::Nvml;

/// How long to wait before it is asked again by a new process, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Longest line that is read, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// What is known of the GPUs. Absent, silent and failing are three different things.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum GpuState {
    /// Not asked yet.
    #[default]
    Unknown,
    /// This machine has no driver, and had none before.
    Absent,
    /// What the driver said last.
    Read(Vec<GpuReading>),
    /// The driver does not answer.
    Hung,
    /// The driver cannot be asked; the sentence says why.
    Failed(String),
}

impl GpuState {
    /// Takes what is news. An Xid that nobody was told of yet stays.
    pub(super) fn replace(&mut self, mut news: Self) {
        if let (Self::Read(before), Self::Read(now)) = (&*self, &mut news) {
            for gpu in now {
                let untold = before.iter().find(|other| other.uuid == gpu.uuid);
                gpu.xid = gpu.xid.or(untold.and_then(|other| other.xid));
            }
        }
        *self = news;
    }

    /// The state to be told; Xids are told once.
    pub(super) fn tell(&mut self) -> Self {
        let told = self.clone();
        if let Self::Read(gpus) = self {
            gpus.iter_mut().for_each(|gpu| gpu.xid = None);
        }
        told
    }

    /// Whether the driver does not tell if these GPUs work. One that was not asked yet, or is silent,
    /// may tell later.
    pub(super) fn hides_use(&self, uuids: &[String]) -> bool {
        match self {
            Self::Read(_) => self.of(uuids).iter().any(|gpu| gpu.busy.is_none()),
            Self::Failed(_) | Self::Absent => true,
            Self::Unknown | Self::Hung => false,
        }
    }

    /// What is known of the GPUs with these UUIDs.
    pub(super) fn of(&self, uuids: &[String]) -> Vec<&GpuReading> {
        match self {
            Self::Read(gpus) => gpus
                .iter()
                .filter(|gpu| uuids.contains(&gpu.uuid))
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// Asks for ever, and tells `told` whatever is news.
pub(super) async fn watch(nvml: &Nvml, mut told: impl FnMut(GpuState)) {
    let mut pause = FIRST_PAUSE;
    let mut ever_answered = false;
    loop {
        let mut answered = false;
        let read = |gpus| {
            answered = true;
            told(GpuState::Read(gpus));
        };
        let (state, child) = ask(nvml, read).await;
        if answered {
            pause = FIRST_PAUSE;
        }
        ever_answered |= answered;
        let state = missed(state, ever_answered);
        pause = match &state {
            GpuState::Absent => LONGEST_PAUSE,
            _ => (pause * 2).min(LONGEST_PAUSE),
        };
        match &state {
            GpuState::Hung => tracing::error!(
                "the GPU driver did not answer for {} s; asking again in {} s",
                nvml.deadline.as_secs(),
                pause.as_secs()
            ),
            GpuState::Failed(reason) => tracing::error!(
                "the GPUs cannot be watched: {reason}; asking again in {} s",
                pause.as_secs()
            ),
            GpuState::Unknown | GpuState::Absent | GpuState::Read(_) => {}
        }
        told(state);
        if let Some(mut child) = child {
            // One that hangs inside the driver takes no signal. Another one would hang beside it.
            let _ = child.kill().await;
        }
        tokio::time::sleep(pause).await;
    }
}

/// A driver that has answered and is then not found may be on its way to a newer one: its GPUs are not
/// lost for that.
fn missed(state: GpuState, ever_answered: bool) -> GpuState {
    match state {
        GpuState::Absent if ever_answered => {
            GpuState::Failed("the driver is not loaded any more".to_owned())
        }
        state => state,
    }
}

/// Reads one process until it ends or hangs, and says which; with the process, if it was started.
async fn ask(nvml: &Nvml, read: impl FnMut(Vec<GpuReading>)) -> (GpuState, Option<Child>) {
    match start(nvml) {
        Ok(mut child) => (listen(&mut child, nvml.deadline, read).await, Some(child)),
        Err(error) => {
            let state = GpuState::Failed(format!("its process cannot be run: {error}"));
            (state, None)
        }
    }
}

async fn listen(
    child: &mut Child,
    deadline: Duration,
    mut read: impl FnMut(Vec<GpuReading>),
) -> GpuState {
    let Some(stdout) = child.stdout.take() else {
        return GpuState::Failed("its process has no output".to_owned());
    };
    let mut lines = BufReader::new(stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        let next = (&mut lines).take(MAX_LINE);
        let read_line = async {
            let mut next = next;
            next.read_until(b'\n', &mut line).await
        };
        match timeout(deadline + EVERY, read_line).await {
            Err(_) => return GpuState::Hung,
            Ok(Err(error)) => return GpuState::Failed(chain(&error)),
            Ok(Ok(0)) => return ended(child).await,
            Ok(Ok(_)) => match serde_json::from_slice::<Look>(&line) {
                Ok(look) if look.absent => return GpuState::Absent,
                Ok(look) => read(look.gpus),
                Err(error) => {
                    return GpuState::Failed(format!("its answer is unreadable: {error}"));
                }
            },
        }
    }
}

fn start(nvml: &Nvml) -> std::io::Result<Child> {
    nvml.command("watch-gpus")
        .arg("--every")
        .arg(EVERY.as_secs().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
}

async fn ended(child: &mut Child) -> GpuState {
    let mut words = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // What cannot be read is not told; the failure itself is.
        let _ = timeout(EVERY, stderr.take(4_096).read_to_end(&mut words)).await;
    }
    let words = String::from_utf8_lossy(&words);
    match words.trim() {
        "" => GpuState::Failed("its process ended without a word".to_owned()),
        words => GpuState::Failed(words.chars().take(300).collect()),
    }
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

    async fn looks(script: &str) -> (Vec<Vec<GpuReading>>, GpuState) {
        let program = program(script);
        let nvml = Nvml {
            program: program.to_path_buf(),
            library: None,
            deadline: Duration::from_secs(15),
        };
        let mut looks = Vec::new();
        let (state, _) = ask(&nvml, |gpus| looks.push(gpus)).await;
        (looks, state)
    }

    #[test]
    fn f35_an_xid_is_told_once_and_never_lost() {
        let read = |xid| {
            GpuState::Read(vec![GpuReading {
                uuid: "GPU-1".to_owned(),
                xid,
                ..GpuReading::default()
            }])
        };
        let mut state = GpuState::default();
        state.replace(read(Some(79)));
        state.replace(read(None));
        assert_eq!(state.tell(), read(Some(79)));
        assert_eq!(state.tell(), read(None));
        assert_eq!(state.of(&["GPU-1".to_owned()]).len(), 1);
        assert_eq!(state.of(&["GPU-2".to_owned()]).len(), 0);
    }

    #[tokio::test]
    async fn f36_absent_failing_and_reading_are_told_apart() {
        let (_, state) = looks(r#"echo '{"absent":true}'"#).await;
        assert_eq!(state, GpuState::Absent);
        assert_eq!(missed(state.clone(), false), GpuState::Absent);
        assert!(matches!(missed(state, true), GpuState::Failed(_)));
        let (seen, state) =
            looks(r#"echo '{"gpus":[{"uuid":"GPU-1","temperature":61}]}'; echo gone >&2"#).await;
        assert_eq!(seen[0][0].temperature, Some(61));
        assert_eq!(seen[0][0].busy, None, "what is not supported is absent");
        assert_eq!(state, GpuState::Failed("gone".to_owned()));
        let (_, state) = looks("echo hello").await;
        assert!(matches!(state, GpuState::Failed(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn f36_a_driver_that_hangs_is_given_up() {
        let (seen, state) = looks("exec sleep 1000").await;
        assert_eq!((seen.len(), state), (0, GpuState::Hung));
    }
}
