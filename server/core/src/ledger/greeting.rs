//! A worker connects: what to do with every attempt that it holds or should hold.

use std::collections::HashMap;

use uuid::Uuid;

use super::{COORDINATOR, EndReport, Ledger, Message, NewEvent};
use crate::attempt::{AttemptEvent, AttemptState};
use crate::checkpoint::Told;
use crate::guard::{Guard, is_broken};
use crate::id::{Fence, JobId, WorkerId};
use crate::outcome::{Facts, StopCause};
use crate::reconcile::{Action, Finding, Held, Recorded, verdict};

/// A worker as it presents itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present<'a> {
    /// Its identity.
    pub worker: WorkerId,
    /// Its name.
    pub name: &'a str,
    /// The boot it runs in.
    pub boot_id: &'a str,
    /// The spool it owns.
    pub spool_id: Uuid,
    /// Every attempt it has a record of.
    pub held: &'a [Held],
    /// Checkpoints that it has had no answer for, in the order of their numbers.
    pub checkpoints: &'a [(Fence, Told)],
}

/// The verdict on one attempt that a worker holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The attempt.
    pub fence: Fence,
    /// What to do with it.
    pub action: Action,
    /// Bytes of its output that are stored.
    pub log_stored: i64,
}

/// What a worker is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Greeted {
    /// A verdict for each attempt that it holds.
    pub verdicts: Vec<Answer>,
    /// What to tell it after the greeting, in this very session.
    pub messages: Vec<Message>,
    /// Its attempts that have not ended, with their jobs.
    pub current: Vec<(Fence, JobId)>,
}

impl Ledger {
    /// Settles every attempt that the worker holds, and every one among the loaded that it is thought
    /// to hold. Loaded must be the attempts that occupy it and those it holds, as far as they are
    /// recorded.
    pub fn greet(&mut self, present: &Present<'_>) -> Greeted {
        let held: HashMap<Fence, Held> = present
            .held
            .iter()
            .map(|held| (held.fence, *held))
            .collect();
        let mut fences: Vec<Fence> = held.keys().copied().collect();
        fences.extend(
            self.attempts
                .values()
                .filter(|row| row.worker == present.worker)
                .map(|row| row.fence),
        );
        fences.sort_unstable();
        fences.dedup();
        let mut greeted = Greeted::default();
        // Published before they ended, and told only now: they count before any verdict ends them.
        if !is_broken(Guard::PublishFirst) {
            self.take_checkpoints(present);
        }
        for fence in fences {
            let settled = self.settle(present, held.get(&fence), fence);
            greeted.verdicts.extend(settled);
            let Some(row) = self.attempt(fence) else {
                continue;
            };
            if row.worker != present.worker || row.attempt.state == AttemptState::Ended {
                continue;
            }
            greeted.current.push((fence, row.job));
            greeted.messages.extend(self.wish(fence));
        }
        if is_broken(Guard::PublishFirst) {
            self.take_checkpoints(present);
        }
        self.tell(NewEvent::general(
            present.name,
            "worker_connected",
            format!("worker `{}` connected", present.name),
            COORDINATOR,
        ));
        greeted
    }

    /// A new agent has taken over attempts that an earlier one had left running: the history of those
    /// that still run tells it.
    pub fn adopted(&mut self, worker: WorkerId, fences: &[Fence]) {
        for fence in fences {
            let Some(row) = self.attempt(*fence) else {
                continue;
            };
            if row.worker != worker || row.attempt.state != AttemptState::Running {
                continue;
            }
            let event = NewEvent {
                job: Some(row.job),
                attempt: Some(row.number),
                worker: row.worker_name.clone(),
                kind: "adopted",
                message: format!(
                    "the agent of worker `{}` was started again; the job ran on meanwhile",
                    row.worker_name
                ),
                actor: COORDINATOR.to_owned(),
            };
            self.tell(event);
        }
    }

    fn take_checkpoints(&mut self, present: &Present<'_>) {
        for (fence, told) in present.checkpoints {
            let is_its_own = self
                .attempt(*fence)
                .is_none_or(|row| row.worker == present.worker);
            if is_its_own {
                self.checkpoint(present.worker, *fence, told);
            }
        }
    }

    /// Records what one attempt's verdict finds. Returns the answer when the worker holds it.
    fn settle(
        &mut self,
        present: &Present<'_>,
        held: Option<&Held>,
        fence: Fence,
    ) -> Option<Answer> {
        let row = self
            .attempt(fence)
            .filter(|row| row.worker == present.worker);
        let log_stored = row.map_or(0, |row| row.log_stored);
        let recorded = row.map(|row| Recorded {
            fence,
            state: row.attempt.state,
            slot_held: row.attempt.slot_held,
            same_boot: row.boot_id == present.boot_id,
            same_spool: row.spool_id == present.spool_id,
            has_result: row.log_end.is_some(),
            // The worker sends it again, or says once more that it is whole, and then it is compared.
            log_complete: row
                .log_end
                .is_some_and(|end| row.log_stored > end || row.log_stored == end && row.log_agrees),
        });
        let verdict = verdict(held.copied(), recorded)?;
        match verdict.finding {
            None => {}
            Some(Finding::Started) => {
                self.started(fence, None, None, Vec::new());
            }
            Some(Finding::SlotFree) => {
                self.attempt_event(fence, AttemptEvent::SlotFreed);
                self.dispatch();
            }
            Some(Finding::Over(end)) => {
                self.ended(fence, &Facts::of(end), EndReport::default());
                // Nothing of it is left: that is what the verdict rests on.
                self.attempt_event(fence, AttemptEvent::SlotFreed);
            }
        }
        // An attempt of a spool that the worker lost is not heard of again by this.
        if held.is_some() || recorded.is_some_and(|recorded| recorded.same_spool) {
            self.attempt_event(fence, AttemptEvent::WorkerBack);
        }
        verdict.action.map(|action| Answer {
            fence,
            action,
            log_stored,
        })
    }

    /// What a person wanted of an attempt while its worker was away.
    fn wish(&self, fence: Fence) -> Option<Message> {
        let row = self.attempt(fence)?;
        let job = self.job(row.job)?;
        match (row.attempt.state, row.attempt.asked) {
            (AttemptState::Running, _) if job.job.cancel_requested => Some(Message::Stop {
                fence,
                cause: StopCause::Cancel,
                grace: None,
            }),
            (AttemptState::Assigned, Some(_)) => Some(Message::Revoke(fence)),
            _ => None,
        }
    }
}
