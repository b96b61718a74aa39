//! Finds the newest checkpoint that is whole, before an attempt starts.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use qctl_checkpoint::{DamageError, Hash, Published, ReadError, verify};
use qctl_proto::v1::{DamagedCheckpoint, ResumeCandidate, ResumeChosen};
use qctl_worker_core::checkpoint::CheckpointId;
use tokio::sync::watch;

use super::transfer::{FetchError, fetch};
use super::{Coordinator, Folders, Told};
use crate::chain;

/// How often a copy is asked for before the assignment is given back, and the first pause between.
const FETCHES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// A search for one attempt.
pub(super) struct Search {
    pub(super) fence: i64,
    pub(super) job: i64,
    /// The newest first.
    pub(super) candidates: Vec<ResumeCandidate>,
    pub(super) folders: Folders,
    pub(super) coordinator: watch::Receiver<Option<Coordinator>>,
    pub(super) wanted: Arc<AtomicBool>,
}

/// Why a candidate is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("its description cannot be read")]
    Manifest(#[from] ReadError),
    #[error("it is not what was published")]
    Damage(#[from] DamageError),
    #[error("its files are missing")]
    Missing,
    #[error("the coordinator's copy of it is not whole")]
    Copy(#[source] Box<FetchError>),
}

impl Search {
    /// Looks through the candidates. `None` when nobody waits any more.
    pub(super) async fn run(self) -> Option<Told> {
        let mut damaged = Vec::new();
        for candidate in &self.candidates {
            let id = CheckpointId {
                fence: candidate.fence,
                number: candidate.number,
            };
            let mut reason = None;
            if candidate.here {
                let (job, attempt) = (candidate.job_id, candidate.attempt);
                let folder = self.folders.published(job, attempt, id.number);
                match self.check(folder, candidate).await? {
                    Ok(path) => return Some(self.chosen(candidate, path, damaged)),
                    Err(unusable) => reason = Some(unusable),
                }
            }
            if candidate.uploaded {
                match self.fetch(id).await? {
                    Ok(folder) => match self.check(folder, candidate).await? {
                        Ok(path) => return Some(self.chosen(candidate, path, damaged)),
                        Err(unusable) => reason = reason.or(Some(unusable)),
                    },
                    Err(error) if error.is_transient() => {
                        return Some(Told::NotNow {
                            fence: self.fence,
                            reason: format!(
                                "checkpoint {}.{} could not be fetched from the coordinator: {}",
                                candidate.attempt,
                                candidate.number,
                                chain(&error)
                            ),
                        });
                    }
                    Err(error) => reason = reason.or(Some(Unusable::Copy(Box::new(error)))),
                }
            }
            let message = reason.map_or_else(|| "it is not here".to_owned(), |why| chain(&why));
            tracing::warn!(
                fence = self.fence,
                "checkpoint {}.{} of job {} cannot be resumed from: {message}",
                candidate.attempt,
                candidate.number,
                candidate.job_id
            );
            damaged.push(DamagedCheckpoint {
                fence: candidate.fence,
                number: candidate.number,
                message,
                attempt: candidate.attempt,
            });
        }
        let chosen = ResumeChosen {
            fence: self.fence,
            damaged,
            ..ResumeChosen::default()
        };
        Some(Told::Chosen {
            resume_from: String::new(),
            chosen,
        })
    }

    fn chosen(
        &self,
        candidate: &ResumeCandidate,
        path: String,
        damaged: Vec<DamagedCheckpoint>,
    ) -> Told {
        let chosen = ResumeChosen {
            fence: self.fence,
            from_fence: candidate.fence,
            from_number: candidate.number,
            path: path.clone(),
            damaged,
            from_attempt: candidate.attempt,
        };
        Told::Chosen {
            resume_from: path,
            chosen,
        }
    }

    /// Verifies the checkpoint in a folder. `None` when nobody waits any more.
    async fn check(
        &self,
        folder: PathBuf,
        candidate: &ResumeCandidate,
    ) -> Option<Result<String, Unusable>> {
        let expected: Option<Hash> = candidate.hash.parse().ok();
        let wanted = Arc::clone(&self.wanted);
        let (fence, number) = (candidate.fence, candidate.number);
        let checked = tokio::task::spawn_blocking(move || {
            let checked = check(&folder, (fence, number), expected, &|| {
                wanted.load(Ordering::Relaxed)
            });
            checked.map(|published| published.files().to_string_lossy().into_owned())
        });
        match checked.await {
            Ok(Err(Unusable::Damage(DamageError::Cancelled))) => None,
            Ok(checked) => Some(checked),
            // The agent is ending.
            Err(_) => None,
        }
    }

    /// Fetches the coordinator's copy, again and again while it cannot be reached.
    async fn fetch(&self, id: CheckpointId) -> Option<Result<PathBuf, FetchError>> {
        let folder = self.folders.fetched(self.job, id);
        if let Some(others) = folder.parent().map(Path::to_owned) {
            // Copies for earlier attempts; none of them runs any more. They may be large, and this
            // thread carries the heartbeats.
            let _ = tokio::task::spawn_blocking(move || fs::remove_dir_all(others)).await;
        }
        let mut pause = FIRST_PAUSE;
        for tried in 1.. {
            if !self.wanted.load(Ordering::Relaxed) {
                return None;
            }
            match fetch(&self.coordinator, id, &folder, &self.wanted).await {
                Ok(()) => return Some(Ok(folder)),
                Err(FetchError::Cancelled) => return None,
                Err(error) if error.is_transient() && tried < FETCHES => {
                    tracing::info!(
                        fence = self.fence,
                        ?pause,
                        "a checkpoint could not be fetched, trying again: {}",
                        chain(&error)
                    );
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(error) => return Some(Err(error)),
            }
        }
        None
    }
}

/// The checkpoint in a folder, when it is the one that was published and every byte is as it was.
fn check(
    folder: &std::path::Path,
    (fence, number): (i64, i32),
    expected: Option<Hash>,
    wanted: &dyn Fn() -> bool,
) -> Result<Published, Unusable> {
    if !folder.exists() {
        return Err(Unusable::Missing);
    }
    let published = qctl_checkpoint::open(folder)?;
    let manifest = &published.manifest;
    if !published.has_files() || (manifest.fence, manifest.number) != (fence, number) {
        return Err(Unusable::Missing);
    }
    // The coordinator's word counts more than the record beside the files, which may be damaged with
    // them. Without either the checkpoint was published moments before the machine was lost.
    let expected = expected.or_else(|| published.hash());
    verify(&published.files(), &manifest.entries, expected, wanted)?;
    Ok(published)
}
