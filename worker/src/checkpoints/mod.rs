//! Published checkpoints on this machine: found, hashed, kept or removed, verified before a job
//! resumes from them, and copied to the coordinator and back. All of it happens beside the agent's
//! loop, which is told what there is as events.

mod announced;
mod desk;
mod hashing;
mod resume;
mod transfer;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use qctl_proto::client::Target;
use qctl_proto::v1::{ResumeCandidate, ResumeChosen};
use qctl_worker_core::agent::Event;
use qctl_worker_core::checkpoint::{Answer, Published};
use tokio::sync::{mpsc, watch};

use desk::{Desk, Request};
use transfer::{Upload, Uploads};

/// How much less important than the jobs the threads are, as `nice` counts.
const NICENESS: i32 = 10;

/// Stack of a thread, in bytes.
const STACK_BYTES: usize = 512 * 1024;

/// What is found out about checkpoints.
#[derive(Debug)]
pub(crate) enum Told {
    /// Something for the agent.
    Event(Event),
    /// What an assignment resumes from.
    Chosen {
        /// The folder; empty to begin afresh.
        resume_from: String,
        /// The same for the coordinator.
        chosen: ResumeChosen,
    },
    /// An assignment cannot be got ready now.
    NotNow {
        /// The attempt.
        fence: i64,
        /// Why, for people.
        reason: String,
    },
}

/// Where the coordinator is, while there is a session, and what it takes.
#[derive(Clone, Debug)]
pub(crate) struct Coordinator {
    /// How to connect.
    pub(crate) target: Target,
    /// Checkpoints up to this size are uploaded without being asked for.
    pub(crate) upload_bytes: u64,
}

/// Where the jobs' folders for checkpoints are.
#[derive(Clone, Debug)]
pub(crate) struct Folders(PathBuf);

impl Folders {
    /// Folder of a job.
    fn job(&self, job: i64) -> PathBuf {
        self.0.join(job.to_string())
    }

    /// A published checkpoint.
    fn published(&self, job: i64, attempt: i32, number: i32) -> PathBuf {
        qctl_checkpoint::published_folder(&self.job(job)).join(format!("{attempt}.{number}"))
    }

    /// Where an attempt's copies of checkpoints are that came from the coordinator. Each attempt has
    /// a folder of its own: one that was given up may still be looking when the next one does.
    fn fetched(&self, job: i64, fence: i64) -> PathBuf {
        self.all_fetched(job).join(fence.to_string())
    }

    /// Where those of all attempts of a job are.
    fn all_fetched(&self, job: i64) -> PathBuf {
        self.job(job).join("fetched")
    }

    /// Jobs that have a folder.
    fn jobs(&self) -> io::Result<Vec<i64>> {
        let entries = match std::fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut jobs = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            jobs.extend(name.to_str().and_then(|name| name.parse::<i64>().ok()));
        }
        jobs.sort_unstable();
        Ok(jobs)
    }
}

/// The checkpoints of this worker.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    folders: Folders,
    desk: Sender<Request>,
    uploads: Uploads,
    coordinator: watch::Receiver<Option<Coordinator>>,
    told: mpsc::UnboundedSender<Told>,
    /// Assignments that are being got ready; false once nobody waits for them.
    preparing: HashMap<i64, Arc<AtomicBool>>,
}

impl Checkpoints {
    /// Takes over the checkpoints in a folder. What is found out comes out of the second value, at
    /// first everything that is there. `keep` is how many of a job keep their contents.
    ///
    /// # Errors
    /// When no thread can be made.
    pub(crate) fn start(
        folder: PathBuf,
        keep: usize,
        coordinator: watch::Receiver<Option<Coordinator>>,
    ) -> io::Result<(Self, mpsc::UnboundedReceiver<Told>)> {
        let folders = Folders(folder);
        let (told, found) = mpsc::unbounded_channel();
        let desk = Desk::start(folders.clone(), keep, told.clone())?;
        let uploads = Uploads::start(coordinator.clone());
        let checkpoints = Self {
            folders,
            desk,
            uploads,
            coordinator,
            told,
            preparing: HashMap::new(),
        };
        Ok((checkpoints, found))
    }

    /// Everything that is published here. Reads descriptions only.
    pub(crate) fn scan(&self) -> Vec<Published> {
        desk::scan(&self.folders)
    }

    /// Looks for what an attempt has published; when it has ended, tells also once that is done.
    pub(crate) fn look(&self, look: Look) {
        self.ask(Request::Look(look));
    }

    /// Does what follows from the coordinator's answer.
    pub(crate) fn answered(&self, published: Published, answer: Answer) {
        if answer == Answer::Recorded && !published.hash.is_empty() && !published.removed {
            self.uploads.offer(Upload {
                job: published.job_id,
                id: published.id,
                folder: self.folders.published(
                    published.job_id,
                    published.attempt,
                    published.id.number,
                ),
            });
        }
        self.ask(Request::Answered { published, answer });
    }

    /// Removes all checkpoints of a job.
    pub(crate) fn remove_job(&self, job: i64) {
        self.uploads.forget(job);
        self.ask(Request::RemoveJob(job));
    }

    /// Removes what an attempt left unpublished.
    pub(crate) fn remove_leftovers(&self, job: i64, attempt: i32) {
        self.ask(Request::RemoveLeftovers { job, attempt });
    }

    /// Finds the checkpoint that an assignment resumes from.
    pub(crate) fn prepare(&mut self, fence: i64, job: i64, candidates: Vec<ResumeCandidate>) {
        let wanted = Arc::new(AtomicBool::new(true));
        self.preparing.insert(fence, Arc::clone(&wanted));
        let search = resume::Search {
            fence,
            job,
            candidates,
            folders: self.folders.clone(),
            coordinator: self.coordinator.clone(),
            wanted,
        };
        let told = self.told.clone();
        tokio::spawn(async move {
            if let Some(found) = search.run().await {
                // The agent is ending when nobody listens.
                let _ = told.send(found);
            }
        });
    }

    /// Nobody waits for an assignment any more.
    pub(crate) fn discard(&mut self, fence: i64) {
        if let Some(wanted) = self.preparing.remove(&fence) {
            wanted.store(false, Ordering::Relaxed);
        }
    }

    fn ask(&self, request: Request) {
        // The thread ends only after the last sender.
        let _ = self.desk.send(request);
    }
}

/// What to look for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// The attempt.
    pub(crate) fence: i64,
    /// Its job.
    pub(crate) job: i64,
    /// Its number within the job.
    pub(crate) attempt: i32,
    /// It has ended.
    pub(crate) ended: bool,
    /// Publish what is in its folder first.
    pub(crate) publish: bool,
}

/// Starts a thread whose work yields to the jobs.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let me = rustix::thread::gettid();
            // Priority is a courtesy; where it is not granted all works the same.
            let _ = rustix::process::setpriority_process(Some(me), NICENESS);
            work();
        })?;
    Ok(())
}
