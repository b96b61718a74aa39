//! Checkpoints on a machine's disk: published by jobs, found and told by agents, resumed from.

use qctl_server_core::Fence;
use qctl_server_core::checkpoint::{
    Answer as Answered, Damaged, Finding, ResumeCandidate, Resumes, Told,
};
use qctl_server_core::ledger::What;
use qctl_worker_core::agent::{Event, Fact};
use qctl_worker_core::checkpoint::{Answer, CheckpointId, Published};

use super::network::Up;
use super::{Happening, World, tell};

/// A checkpoint on a disk.
#[derive(Clone, Debug)]
pub(super) struct OnDisk {
    published: Published,
    /// The coordinator has answered for what is known of it: it is not told again.
    answered: bool,
}

impl World {
    /// A job publishes: from here on it is on the disk, whoever hears of it.
    pub(super) fn publishes(&mut self, machine: usize, fence: i64) {
        let created_us = self.wall(chrono::TimeDelta::zero()).timestamp_micros();
        let there = &mut self.machines[machine];
        let Some(tree) = there.trees.get_mut(&fence) else {
            return;
        };
        if !tree.main || tree.frozen {
            return;
        }
        tree.published += 1;
        let number = tree.published;
        let id = CheckpointId { fence, number };
        let published = Published {
            id,
            job_id: tree.job,
            attempt: tree.number,
            step: None,
            note: String::new(),
            path: format!("/c/{fence}.{number}"),
            files: 1,
            bytes: 1,
            hash: String::new(),
            created_us,
            removed: false,
        };
        let shim = tree.shim;
        let on_disk = OnDisk {
            published,
            answered: false,
        };
        there.published.insert(id, on_disk);
        self.truth.published(fence, number);
        tell!(
            self,
            "m{machine} fence {fence} publishes checkpoint {number}"
        );
        let there = &mut self.machines[machine];
        if let Some(segment) = there.shims.get_mut(&shim).filter(|segment| segment.alive) {
            segment.records.push((fence, Fact::Bell));
            self.ring(machine, shim);
        }
    }

    /// Where an attempt's checkpoints went, if there are any.
    pub(super) fn checkpoint_folder(&self, machine: usize, fence: i64) -> String {
        let mut published = self.machines[machine].published.keys();
        match published.any(|id| id.fence == fence) {
            true => format!("/c/{fence}"),
            false => String::new(),
        }
    }

    /// Tells the agent of everything that has not been answered for: of an attempt, or of all.
    pub(super) fn looks_for_checkpoints(&mut self, machine: usize, of: Option<i64>) {
        let found: Vec<Published> = self.machines[machine]
            .published
            .values()
            .filter(|on_disk| !on_disk.answered)
            .map(|on_disk| on_disk.published.clone())
            .filter(|published| of.is_none_or(|fence| published.id.fence == fence))
            .collect();
        let run = self.machines[machine].runs;
        for published in found.iter().filter(|published| published.hash.is_empty()) {
            let after = self.random.millis(10, 3_000);
            self.later(after, Happening::Hashed(machine, run, published.id));
        }
        self.agent(machine, Event::Published(found));
    }

    /// What was looked for is found.
    pub(super) fn looked(&mut self, machine: usize, run: u64, fence: i64, ended: bool) {
        if !self.is_run(machine, run) {
            return;
        }
        self.looks_for_checkpoints(machine, Some(fence));
        if ended {
            self.agent(machine, Event::Looked(fence));
        }
    }

    /// The hash of a checkpoint is known.
    pub(super) fn hashed(&mut self, machine: usize, run: u64, id: CheckpointId) {
        if !self.is_run(machine, run) {
            return;
        }
        let Some(on_disk) = self.machines[machine].published.get_mut(&id) else {
            return;
        };
        if !on_disk.published.hash.is_empty() {
            return;
        }
        on_disk.published.hash = "sha256:00".to_owned();
        on_disk.answered = false;
        let published = on_disk.published.clone();
        self.agent(machine, Event::Published(vec![published]));
    }

    /// The coordinator has answered for a checkpoint.
    pub(super) fn checkpoint_is_answered(
        &mut self,
        machine: usize,
        published: &Published,
        answer: Answer,
    ) {
        let on_disks = &mut self.machines[machine].published;
        match answer {
            Answer::Remove => {
                on_disks.remove(&published.id);
            }
            Answer::Recorded | Answer::Refused => {
                if let Some(on_disk) = on_disks.get_mut(&published.id) {
                    on_disk.answered |=
                        answer == Answer::Refused || on_disk.published == *published;
                }
            }
        }
    }

    pub(super) fn remove_checkpoints(&mut self, machine: usize, job: i64) {
        let published = &mut self.machines[machine].published;
        published.retain(|_, on_disk| on_disk.published.job_id != job);
    }

    /// An attempt is prepared: the newest checkpoint that is whole is what it resumes from.
    pub(super) fn chooses_checkpoint(
        &mut self,
        machine: usize,
        fence: i64,
        offered: &[ResumeCandidate],
    ) {
        let mut resumes = Resumes::default();
        for candidate in offered {
            let id = CheckpointId {
                fence: candidate.id.fence.0,
                number: candidate.id.number,
            };
            let is_there = self.machines[machine].published.contains_key(&id);
            if is_there && (self.calm || !self.random.chance(5)) {
                resumes.from = Some((candidate.id, candidate.attempt));
                resumes.from_job = Some(candidate.job);
                resumes.path = format!("/c/{}.{}", id.fence, id.number);
                break;
            }
            if !is_there {
                self.is_missing(machine, id);
            }
            resumes.damaged.push(Damaged {
                id: candidate.id,
                attempt: candidate.attempt,
                job: Some(candidate.job),
                finding: Finding::Damaged,
                message: "it is not whole".to_owned(),
            });
        }
        tell!(self, "m{machine} prepares fence {fence}: {resumes:?}");
        let connection = self.machines[machine].agent.as_ref();
        if let Some(connection) = connection.and_then(|shell| shell.connection) {
            let what = Box::new(What::Resumes(Box::new(resumes)));
            self.send_up(connection, Up::Report(Fence(fence), what));
        }
    }
}

/// What a worker tells of a checkpoint, as the coordinator takes it.
pub(super) fn told_of(published: &Published) -> (Fence, Told) {
    let told = Told {
        number: published.id.number,
        step: published.step,
        note: published.note.clone(),
        path: published.path.clone(),
        files: published.files,
        bytes: published.bytes as i64,
        hash: published.hash.clone(),
        created_at: chrono::DateTime::from_timestamp_micros(published.created_us)
            .unwrap_or_default(),
        removed: published.removed,
    };
    (Fence(published.id.fence), told)
}

/// The coordinator's answer, as the worker takes it.
pub(super) fn answer_of(answer: Answered) -> Answer {
    match answer {
        Answered::Recorded => Answer::Recorded,
        Answered::Refused => Answer::Refused,
        Answered::Remove => Answer::Remove,
    }
}
