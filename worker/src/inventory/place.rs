//! One process at a time asks about a GPU. One that hangs inside the driver takes no signal; it keeps its
//! place until the kernel lets it go, and no other one joins it meanwhile.

use std::collections::BTreeMap;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{sleep, timeout};

use crate::process::snapshot::Snapshot;

/// Time between two looks whether a process that hung is gone.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Most that is read of what a process prints, in bytes.
const MAX_OUTPUT: u64 = 1 << 20;

/// A place for each GPU, by UUID, and one for whoever asks about all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places(Arc<Mutex<BTreeMap<String, Arc<Place>>>>);

#[derive(Debug, Default)]
struct Place {
    taken: Arc<tokio::sync::Mutex<()>>,
    /// Whoever has it did not end in time.
    stuck: AtomicBool,
}

/// A place that is taken, until this is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    place: Arc<Place>,
    _guard: OwnedMutexGuard<()>,
}

impl Places {
    /// Takes the place of a GPU once it is free; `None` when that takes too long, and at once when it
    /// is held by a process that hangs.
    pub(crate) async fn take(&self, gpu: &str, within: Duration) -> Option<Arc<Taken>> {
        let place = {
            let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(places.entry(gpu.to_owned()).or_default())
        };
        if place.stuck.load(Ordering::Acquire) {
            return None;
        }
        let guard = timeout(within, Arc::clone(&place.taken).lock_owned());
        let guard = guard.await.ok()?;
        Some(Arc::new(Taken {
            place,
            _guard: guard,
        }))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.place.stuck.store(false, Ordering::Release);
    }
}

/// Why there is no output.
#[derive(Debug)]
pub(crate) enum Failed {
    Run(io::Error),
    /// It did not end in time, and was killed.
    Late,
}

/// What a process printed.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// Runs a command in a process group of its own. When it does not end in time the group is killed, and
/// the places are held until nothing of it is left.
pub(crate) async fn run(
    mut command: Command,
    within: Duration,
    places: &[Arc<Taken>],
) -> Result<Output, Failed> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(Failed::Run)?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let mut group = Group(pid.and_then(Pid::from_raw));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = async { tokio::join!(read(stdout), read(stderr), child.wait()) };
    match timeout(within, ended).await {
        Ok((stdout, stderr, status)) => {
            group.0 = None;
            Ok(Output {
                status: status.map_err(Failed::Run)?,
                stdout,
                stderr,
            })
        }
        Err(_) => {
            for taken in places {
                taken.place.stuck.store(true, Ordering::Release);
            }
            let places = places.to_vec();
            tokio::spawn(async move {
                group.kill();
                // It was killed, so how it ended is no news.
                let _ = child.wait().await;
                while group.lives() {
                    sleep(LOOK_AGAIN).await;
                }
                drop(places);
            });
            Err(Failed::Late)
        }
    }
}

async fn read(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut told = Vec::new();
    if let Some(mut from) = from {
        // What cannot be read was not said; the exit tells the rest.
        let _ = (&mut from).take(MAX_OUTPUT).read_to_end(&mut told).await;
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    }
    told
}

/// A process group, killed when it is dropped.
struct Group(Option<Pid>);

impl Group {
    fn kill(&self) {
        if let Some(group) = self.0 {
            // It fails when nothing is left to kill.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    fn lives(&self) -> bool {
        // What only waits to be waited for, by whoever adopted it, is gone.
        let is_left = |group: Pid| match Snapshot::take() {
            Ok(all) => {
                let mut processes = all.processes().iter();
                processes
                    .any(|process| process.group == group.as_raw_nonzero().get() && process.lives())
            }
            // Nobody can say, so the next probe finds out.
            Err(_) => false,
        };
        self.0.is_some_and(is_left)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn what_does_not_end_is_killed_with_its_children_and_holds_its_place_until_it_is_gone() {
        let places = Places::default();
        let place = places.take("a", SOON).await.unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & sleep 1000; true"]);
        let late = run(command, Duration::from_millis(300), &[place]).await;
        assert!(matches!(late, Err(Failed::Late)));
        assert!(places.take("a", SOON).await.is_none(), "at once");
        assert!(
            places.take("b", SOON).await.is_some(),
            "another one is free"
        );
        let begun = std::time::Instant::now();
        while places.take("a", SOON).await.is_none() {
            assert!(begun.elapsed() < SOON, "nothing of it is left");
            sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn a_place_is_waited_for_while_its_holder_may_end() {
        let places = Places::default();
        let place = places.take("a", SOON).await.unwrap();
        let (next, ()) = tokio::join!(places.take("a", SOON), async { drop(place) });
        assert!(next.is_some());
    }
}
