//! Keeps order among the checkpoints on the disk, one request after the other, in a thread of its
//! own.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};

use chrono::{SubsecRound as _, Utc};
use qctl_checkpoint::{
    PublishError, Published as OnDisk, Request as PublishRequest, publish, remove_leftovers,
};
use qctl_worker_core::agent::Event;
use qctl_worker_core::checkpoint::{Answer, CheckpointId, Published, surplus};
use tokio::sync::mpsc;

use super::announced::Announced;
use super::{Folders, Look, Told, hashing, spawn};
use crate::chain;

/// What is asked of the desk.
#[derive(Debug)]
pub(super) enum Request {
    /// Look for what an attempt has published.
    Look(Look),
    /// The coordinator has answered.
    Answered {
        /// Which.
        published: Published,
        /// What.
        answer: Answer,
    },
    /// Nobody wants the checkpoints of a job.
    RemoveJob(i64),
    /// Nobody wants what an attempt left unpublished.
    RemoveLeftovers {
        /// Its job.
        job: i64,
        /// Its number within the job.
        attempt: i32,
    },
}

pub(super) struct Desk {
    folders: Folders,
    keep: usize,
    hashing: Sender<PathBuf>,
    told: mpsc::UnboundedSender<Told>,
    announced: Announced,
}

impl Desk {
    pub(super) fn start(
        folders: Folders,
        keep: usize,
        told: mpsc::UnboundedSender<Told>,
    ) -> io::Result<Sender<Request>> {
        let (sender, requests) = channel();
        let announced = Announced::default();
        let desk = Self {
            folders,
            keep,
            hashing: hashing::start(announced.clone(), told.clone())?,
            told,
            announced,
        };
        spawn("checkpoints", move || desk.run(&requests))?;
        Ok(sender)
    }

    fn run(mut self, requests: &Receiver<Request>) {
        // What an earlier agent left may lack its hash, or be more than is kept.
        for job in self.folders.jobs().unwrap_or_default() {
            for on_disk in well(&self.folders, job) {
                // The agent has told it by itself.
                self.announced.is_news(&describe(&on_disk));
                self.hash_if_needed(&on_disk);
            }
        }
        for request in requests {
            match request {
                Request::Look(look) => self.look(&look),
                Request::Answered { published, answer } => self.answered(&published, answer),
                Request::RemoveJob(job) => self.remove_job(job),
                Request::RemoveLeftovers { job, attempt } => self.remove_leftovers(job, attempt),
            }
        }
    }

    /// What lies in the folder of an attempt that has ended becomes a checkpoint.
    fn publish(&self, look: &Look) {
        let folder = self.folders.job(look.job).join(look.attempt.to_string());
        let published = publish(&PublishRequest {
            job: look.job,
            attempt: look.attempt,
            fence: look.fence,
            folder: &folder,
            paths: &[],
            step: None,
            note: "published at its exit",
            upload: false,
            now: Utc::now().trunc_subsecs(6),
        });
        match published {
            // It may have published everything itself.
            Ok(_) | Err(PublishError::Empty(_) | PublishError::NoFolder(_)) => {}
            Err(error) => tracing::warn!(
                job = look.job,
                fence = look.fence,
                "attempt {} of job {} exited as checkpointed, and its folder cannot be published: {}",
                look.attempt,
                look.job,
                chain(&error)
            ),
        }
    }

    fn look(&mut self, look: &Look) {
        if look.publish {
            self.publish(look);
        }
        let mut found = Vec::new();
        let on_disk = well(&self.folders, look.job);
        let kept: Vec<_> = on_disk
            .iter()
            .filter(|on_disk| !on_disk.is_removed())
            .map(|on_disk| (on_disk.manifest.attempt, on_disk.manifest.number))
            .collect();
        let running = (!look.ended).then_some(look.attempt);
        let surplus = surplus(&kept, running, self.keep);
        for on_disk in on_disk {
            let key = (on_disk.manifest.attempt, on_disk.manifest.number);
            if surplus.contains(&key)
                && let Err(error) = on_disk.remove_files()
            {
                tracing::warn!(
                    "the contents of {} could not be removed: {}",
                    on_disk.folder().display(),
                    chain(&error)
                );
            }
            let published = describe(&on_disk);
            if self.announced.is_news(&published) {
                self.hash_if_needed(&on_disk);
                found.push(published);
            }
        }
        if !found.is_empty() {
            self.tell(Event::Published(found));
        }
        if look.ended {
            self.tell(Event::Looked(look.fence));
        }
    }

    fn hash_if_needed(&self, on_disk: &OnDisk) {
        if on_disk.has_files() && on_disk.hash().is_none() {
            // The thread ends only after the last sender.
            let _ = self.hashing.send(on_disk.folder().to_owned());
        }
    }

    fn answered(&mut self, published: &Published, answer: Answer) {
        let (job, id) = (published.job_id, published.id);
        let folder = self.folders.published(job, published.attempt, id.number);
        let Ok(on_disk) = qctl_checkpoint::open(&folder) else {
            return;
        };
        let done = match answer {
            Answer::Recorded if !published.removed => Ok(()),
            Answer::Recorded | Answer::Remove => {
                self.announced.forget(id);
                on_disk.remove()
            }
            Answer::Refused => {
                tracing::warn!(
                    job,
                    fence = id.fence,
                    "checkpoint {}.{} of job {job} came too late: its attempt had been given up",
                    published.attempt,
                    id.number
                );
                self.announced.forget(id);
                on_disk.refuse()
            }
        };
        if let Err(error) = done {
            tracing::warn!(
                job,
                "{} could not be changed: {}",
                folder.display(),
                chain(&error)
            );
        }
    }

    fn remove_job(&mut self, job: i64) {
        self.announced.forget_job(job);
        let folder = self.folders.job(job);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => tracing::warn!(
                job,
                "checkpoints of job {job} could not be removed from {}: {}",
                folder.display(),
                chain(&error)
            ),
            _ => {}
        }
    }

    fn remove_leftovers(&self, job: i64, attempt: i32) {
        if let Err(error) = remove_leftovers(&self.folders.job(job), attempt) {
            tracing::warn!(
                job,
                "what attempt {attempt} of job {job} left in its folder for checkpoints could not \
                 be removed: {}",
                chain(&error)
            );
        }
    }

    fn tell(&self, event: Event) {
        // The agent is ending when nobody listens; the next one finds the same.
        let _ = self.told.send(Told::Event(event));
    }
}

/// Everything that is published.
pub(super) fn scan(folders: &Folders) -> Vec<Published> {
    let jobs = folders.jobs().unwrap_or_else(|error| {
        tracing::warn!("checkpoints cannot be listed: {}", chain(&error));
        Vec::new()
    });
    let found = jobs.into_iter().flat_map(|job| well(folders, job));
    found.map(|on_disk| describe(&on_disk)).collect()
}

/// The published checkpoints of a job that are well and were not refused, oldest first.
fn well(folders: &Folders, job: i64) -> Vec<OnDisk> {
    let found = qctl_checkpoint::scan(&folders.job(job)).unwrap_or_else(|error| {
        tracing::warn!(
            job,
            "checkpoints of job {job} cannot be listed: {}",
            chain(&error)
        );
        Vec::new()
    });
    let readable = found
        .into_iter()
        .filter_map(|found| match found.checkpoint {
            Ok(on_disk) if on_disk.manifest.job == job => Some(on_disk),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(
                    job,
                    "checkpoint {}.{} of job {job} is not used: {}",
                    found.attempt,
                    found.number,
                    chain(&error)
                );
                None
            }
        });
    readable.filter(|on_disk| !on_disk.is_refused()).collect()
}

/// A checkpoint on the disk as it is told.
pub(super) fn describe(on_disk: &OnDisk) -> Published {
    let manifest = &on_disk.manifest;
    Published {
        id: CheckpointId {
            fence: manifest.fence,
            number: manifest.number,
        },
        job_id: manifest.job,
        attempt: manifest.attempt,
        step: manifest.step,
        note: manifest.note.clone(),
        path: on_disk.files().to_string_lossy().into_owned(),
        files: i32::try_from(manifest.files()).unwrap_or(i32::MAX),
        bytes: manifest.bytes,
        hash: on_disk
            .hash()
            .map(|hash| hash.to_string())
            .unwrap_or_default(),
        created_us: manifest.created_at.timestamp_micros(),
        removed: on_disk.is_removed(),
    }
}
