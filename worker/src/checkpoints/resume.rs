//! Finds the newest checkpoint that is whole, before an attempt starts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use qctl_checkpoint::{DamageError, Hash, Published, ReadError, verify};
use qctl_proto::v1::damaged_checkpoint::Finding;
use qctl_proto::v1::{DamagedCheckpoint, ResumeCandidate, ResumeChosen};
use qctl_worker_core::checkpoint::CheckpointId;
use tokio::sync::watch;

use super::transfer::{FetchError, fetch};
use super::{Coordinator, Folders, Told};
use crate::chain;

/// How often a copy is asked for before the assignment is given back, and the first pause between.
const FETCHES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// How often a checkpoint that cannot be read is tried, and the first pause between.
const READS: u32 = 4;
const FIRST_READ_PAUSE: Duration = Duration::from_millis(500);

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

/// Why a candidate is not used, or not from where it was looked for first.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("its description cannot be read")]
    Manifest(#[from] ReadError),
    #[error("it is not what was published")]
    Damage(#[source] DamageError),
    #[error("it cannot be read")]
    Unreadable(#[source] DamageError),
    #[error("its folder {0} cannot be looked at")]
    Folder(PathBuf, #[source] io::Error),
    #[error("its files are missing")]
    Missing,
    #[error("it is not here")]
    NotHere,
    #[error("the coordinator keeps no copy of it any more")]
    CopyGone,
    #[error("the coordinator's copy of it is not whole")]
    Copy(#[source] Box<FetchError>),
}

impl Unusable {
    /// True when it is known to be damaged. What merely could not be read may be well.
    fn is_proof(&self) -> bool {
        match self {
            Self::Manifest(error) => error.is_proof(),
            Self::Damage(_) | Self::Missing => true,
            Self::Copy(error) => error.is_proof(),
            Self::Unreadable(_) | Self::Folder(..) | Self::NotHere | Self::CopyGone => false,
        }
    }
}

/// What became of a candidate.
enum Tried {
    /// It can be resumed from. Its files here could not be used when there is a reason.
    Whole {
        path: String,
        instead_of: Option<Unusable>,
    },
    /// It cannot, here and now.
    Unusable { why: Unusable, finding: Finding },
    /// The copy may be had a moment later.
    NotNow(FetchError),
}

impl Search {
    /// Looks through the candidates. `None` when nobody waits any more.
    pub(super) async fn run(self) -> Option<Told> {
        let found = self.search().await;
        if found.is_none() {
            let own = self.folders.fetched(self.job, self.fence);
            // Left over, it goes with its job, or when a later attempt looks.
            let _ = tokio::task::spawn_blocking(move || fs::remove_dir_all(own)).await;
        }
        found
    }

    async fn search(&self) -> Option<Told> {
        let mut told = Vec::new();
        for candidate in &self.candidates {
            let name = format!("{}.{}", candidate.attempt, candidate.number);
            let (why, finding, path) = match self.try_one(candidate).await? {
                Tried::Whole {
                    path,
                    instead_of: None,
                } => return Some(self.chosen(candidate, path, told)),
                Tried::Whole {
                    path,
                    instead_of: Some(why),
                } => (why, Finding::Mended, Some(path)),
                Tried::Unusable { why, finding } => (why, finding, None),
                Tried::NotNow(error) => {
                    return Some(Told::NotNow {
                        fence: self.fence,
                        reason: format!(
                            "checkpoint {name} could not be fetched from the coordinator: {}",
                            chain(&error)
                        ),
                    });
                }
            };
            let message = chain(&why);
            tracing::warn!(
                fence = self.fence,
                "checkpoint {name} of job {} cannot be resumed from{}: {message}",
                candidate.job_id,
                match &path {
                    Some(_) => " here, and its copy is used",
                    None => "",
                }
            );
            told.push(DamagedCheckpoint {
                fence: candidate.fence,
                number: candidate.number,
                message,
                attempt: candidate.attempt,
                finding: finding.into(),
                job_id: candidate.job_id,
            });
            if let Some(path) = path {
                return Some(self.chosen(candidate, path, told));
            }
        }
        let chosen = ResumeChosen {
            fence: self.fence,
            damaged: told,
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
            from_job_id: candidate.job_id,
        };
        Told::Chosen {
            resume_from: path,
            chosen,
        }
    }

    /// Tries a candidate here, then its copy. `None` when nobody waits any more.
    async fn try_one(&self, candidate: &ResumeCandidate) -> Option<Tried> {
        let mut here = None;
        if candidate.here {
            let (job, attempt) = (candidate.job_id, candidate.attempt);
            let folder = self.folders.published(job, attempt, candidate.number);
            match self.check(folder, candidate).await? {
                Ok(path) => {
                    return Some(Tried::Whole {
                        path,
                        instead_of: None,
                    });
                }
                Err(unusable) => here = Some(unusable),
            }
        }
        let mut copy = None;
        if candidate.uploaded {
            let id = CheckpointId {
                fence: candidate.fence,
                number: candidate.number,
            };
            let checked = match self.fetch(id).await? {
                Ok(folder) => self.check(folder, candidate).await?,
                Err(error) if error.is_gone() => Err(Unusable::CopyGone),
                Err(error) if error.is_transient() => return Some(Tried::NotNow(error)),
                Err(error) => Err(Unusable::Copy(Box::new(error))),
            };
            match checked {
                Ok(path) => {
                    return Some(Tried::Whole {
                        path,
                        instead_of: here,
                    });
                }
                Err(unusable) => copy = Some(unusable),
            }
        }
        // It is given up for good only when no place is left where it may be whole.
        let is_damaged = match (&here, &copy) {
            (Some(here), Some(copy)) => {
                here.is_proof() && (copy.is_proof() || matches!(copy, Unusable::CopyGone))
            }
            (Some(only), None) | (None, Some(only)) => only.is_proof(),
            (None, None) => false,
        };
        Some(Tried::Unusable {
            why: here.or(copy).unwrap_or(Unusable::NotHere),
            finding: match is_damaged {
                true => Finding::Damaged,
                false => Finding::Unreadable,
            },
        })
    }

    /// Verifies the checkpoint in a folder, again and again while it cannot be read. `None` when
    /// nobody waits any more.
    async fn check(
        &self,
        folder: PathBuf,
        candidate: &ResumeCandidate,
    ) -> Option<Result<String, Unusable>> {
        let expected: Option<Hash> = candidate.hash.parse().ok();
        let (fence, number) = (candidate.fence, candidate.number);
        let mut pause = FIRST_READ_PAUSE;
        for tried in 1.. {
            let folder = folder.clone();
            let wanted = Arc::clone(&self.wanted);
            let checked = tokio::task::spawn_blocking(move || {
                let checked = check(&folder, (fence, number), expected, &|| {
                    wanted.load(Ordering::Relaxed)
                });
                checked.map(|published| published.files().to_string_lossy().into_owned())
            });
            // An error of the task means that the agent is ending.
            let checked = checked.await.ok()?;
            if !self.wanted.load(Ordering::Relaxed) {
                return None;
            }
            match checked {
                Err(error) if !error.is_proof() && tried < READS => {
                    tracing::info!(
                        fence = self.fence,
                        ?pause,
                        "checkpoint {}.{number} of job {} could not be read, trying again: {}",
                        candidate.attempt,
                        candidate.job_id,
                        chain(&error)
                    );
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                checked => return Some(checked),
            }
        }
        None
    }

    /// Fetches the coordinator's copy, again and again while it cannot be reached.
    async fn fetch(&self, id: CheckpointId) -> Option<Result<PathBuf, FetchError>> {
        let (all, fence) = (self.folders.all_fetched(self.job), self.fence);
        // They may be large, and this thread carries the heartbeats.
        let _ = tokio::task::spawn_blocking(move || remove_older(&all, fence)).await;
        let own = self.folders.fetched(self.job, self.fence);
        let folder = own.join(format!("{}.{}", id.fence, id.number));
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

/// Removes the copies of earlier attempts, none of which runs any more, and what this one fetched
/// before. Those of a later attempt stay: a search may go on for a while after its attempt was given
/// up. What cannot be removed goes with its job.
fn remove_older(all: &Path, fence: i64) {
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let of = name.to_str().and_then(|name| name.parse::<i64>().ok());
        if of.is_none_or(|of| of <= fence) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The checkpoint in a folder, when it is the one that was published and every byte is as it was.
fn check(
    folder: &Path,
    (fence, number): (i64, i32),
    expected: Option<Hash>,
    wanted: &dyn Fn() -> bool,
) -> Result<Published, Unusable> {
    let at = |error| Unusable::Folder(folder.to_owned(), error);
    if !folder.try_exists().map_err(at)? {
        return Err(Unusable::Missing);
    }
    let published = qctl_checkpoint::open(folder)?;
    let manifest = &published.manifest;
    if (manifest.fence, manifest.number) != (fence, number)
        || !published.find_files().map_err(at)?
    {
        return Err(Unusable::Missing);
    }
    // The coordinator's word counts more than the record beside the files, which may be damaged with
    // them. Without either the checkpoint was published moments before the machine was lost.
    let expected = expected.or_else(|| published.hash());
    let verified = verify(&published.files(), &manifest.entries, expected, wanted);
    verified.map_err(|error| match error.is_proof() {
        true => Unusable::Damage(error),
        false => Unusable::Unreadable(error),
    })?;
    Ok(published)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use qctl_checkpoint::{Request, publish};

    use super::*;

    const JOB: i64 = 40;

    /// A machine with the checkpoints 1.1 and 1.2 of a job, and a search for its second attempt.
    struct Machine {
        home: tempfile::TempDir,
        wanted: Arc<AtomicBool>,
    }

    impl Machine {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            let folder = home.path().join("40/1");
            fs::create_dir_all(&folder).unwrap();
            for state in ["one", "two"] {
                fs::write(folder.join("state"), state).unwrap();
                publish(&Request {
                    job: JOB,
                    attempt: 1,
                    fence: 7,
                    folder: &folder,
                    paths: &[],
                    step: None,
                    note: "",
                    upload: false,
                    now: chrono::DateTime::UNIX_EPOCH,
                })
                .unwrap();
            }
            let wanted = Arc::new(AtomicBool::new(true));
            Self { home, wanted }
        }

        fn published(&self, number: i32) -> PathBuf {
            self.home.path().join(format!("40/published/1.{number}"))
        }

        fn fetched(&self, name: &str) -> PathBuf {
            self.home.path().join("40/fetched").join(name)
        }

        /// Nothing can be found out about it: its path goes in circles.
        fn hide(&self, number: i32) {
            let folder = self.published(number);
            fs::rename(&folder, folder.with_extension("aside")).unwrap();
            symlink(folder.file_name().unwrap(), &folder).unwrap();
        }

        fn show(&self, number: i32) {
            let folder = self.published(number);
            fs::remove_file(&folder).unwrap();
            fs::rename(folder.with_extension("aside"), &folder).unwrap();
        }

        fn search(&self, fence: i64, uploaded: bool) -> Search {
            let candidate = |number| ResumeCandidate {
                fence: 7,
                attempt: 1,
                number,
                hash: String::new(),
                here: !uploaded,
                uploaded,
                job_id: JOB,
            };
            Search {
                fence,
                job: JOB,
                candidates: vec![candidate(2), candidate(1)],
                folders: Folders(self.home.path().to_owned()),
                // No session.
                coordinator: watch::channel(None).1,
                wanted: Arc::clone(&self.wanted),
            }
        }
    }

    fn chosen(told: Option<Told>) -> ResumeChosen {
        match told {
            Some(Told::Chosen { chosen, .. }) => chosen,
            other => panic!("{other:?}"),
        }
    }

    fn findings(chosen: &ResumeChosen) -> Vec<(i32, Finding)> {
        let found = chosen.damaged.iter();
        found.map(|found| (found.number, found.finding())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_for_a_moment_is_resumed_from() {
        let machine = Machine::new();
        machine.hide(2);
        let search = tokio::spawn(machine.search(9, false).run());
        // In the first pause: the clock moves once everything waits.
        tokio::time::sleep(FIRST_READ_PAUSE / 2).await;
        assert!(!search.is_finished());
        machine.show(2);
        let chosen = chosen(search.await.unwrap());
        assert_eq!((chosen.from_number, findings(&chosen)), (2, vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_at_all_is_left_out_and_not_condemned() {
        let machine = Machine::new();
        machine.hide(2);
        let found = chosen(machine.search(9, false).run().await);
        assert_eq!(found.from_number, 1);
        assert_eq!(findings(&found), [(2, Finding::Unreadable)]);
        assert_eq!(found.damaged[0].job_id, JOB);
        machine.show(2);

        fs::write(machine.published(2).join("files/state"), "twos").unwrap();
        fs::remove_dir_all(machine.published(1)).unwrap();
        let found = chosen(machine.search(9, false).run().await);
        let damaged = [(2, Finding::Damaged), (1, Finding::Damaged)];
        assert_eq!((found.from_fence, findings(&found)), (0, damaged.to_vec()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_search_that_was_given_up_takes_nothing_from_the_next_one() {
        let machine = Machine::new();
        for name in ["5", "9", "11", "7.2"] {
            fs::create_dir_all(machine.fetched(name).join("7.2/files")).unwrap();
        }
        // It finds no session, and waits to try again.
        let search = tokio::spawn(machine.search(9, true).run());
        tokio::time::sleep(FIRST_PAUSE / 2).await;
        assert!(machine.fetched("11").join("7.2/files").exists());
        assert!(!machine.fetched("5").exists() && !machine.fetched("7.2").exists());
        machine.wanted.store(false, Ordering::Relaxed);
        assert!(search.await.unwrap().is_none());
        assert!(machine.fetched("11").join("7.2/files").exists());

        // Who is wanted says that it is not possible now.
        machine.wanted.store(true, Ordering::Relaxed);
        let told = machine.search(12, true).run().await;
        assert!(
            matches!(told, Some(Told::NotNow { fence: 12, .. })),
            "{told:?}"
        );
    }
}
