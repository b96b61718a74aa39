//! What workers tell of checkpoints. Only the current attempt of a job publishes.

use super::{Applied, Ledger, Message, NewEvent, worker_actor};
use crate::attempt::AttemptState;
use crate::checkpoint::{
    Answer, CheckpointId, CheckpointRow, Finding, Resumes, Told, is_told, name, published,
};
use crate::id::{Fence, WorkerId};
use crate::job::JobState;

impl Ledger {
    /// Records a published checkpoint, or what has become known of one, and answers its worker.
    pub(super) fn checkpoint(&mut self, worker: WorkerId, fence: Fence, told: &Told) -> Applied {
        let (answer, applied) = self.take_checkpoint(fence, told);
        self.message(
            worker,
            Message::CheckpointAnswered {
                id: CheckpointId {
                    fence,
                    number: told.number,
                },
                answer,
            },
        );
        applied
    }

    fn take_checkpoint(&mut self, fence: Fence, told: &Told) -> (Answer, Applied) {
        let Some(row) = self.attempts.get_mut(&fence) else {
            return (Answer::Remove, Applied::Fenced);
        };
        let job = row.job;
        let is_new = told.number > row.published;
        let mut event = NewEvent {
            job: Some(job),
            attempt: Some(row.number),
            worker: row.worker_name.clone(),
            kind: "checkpoint_published",
            message: published(told),
            actor: worker_actor(&row.worker_name),
        };
        let over = self
            .jobs
            .get(&job)
            .is_some_and(|row| row.job.state == JobState::Succeeded);
        // What the attempt's own worker said before the end it told counts; an attempt that was given
        // up may have a successor that has begun without this checkpoint.
        if is_new && row.attempt.state == AttemptState::Ended {
            if over {
                return (Answer::Remove, Applied::Fenced);
            }
            if is_told(told.number) {
                event.kind = "checkpoint_refused";
                event.message = format!(
                    "checkpoint {} came too late: the attempt had ended or been given up by then, \
                     and nothing resumes from it",
                    told.number
                );
                self.events.push(event);
            }
            return (Answer::Refused, Applied::Fenced);
        }
        self.checkpoints.push(CheckpointRow {
            id: CheckpointId {
                fence,
                number: told.number,
            },
            job,
            attempt: row.number,
            worker: row.worker,
            spool_id: row.spool_id,
            told: told.clone(),
        });
        if is_new {
            row.published = told.number;
            row.checkpoints_kept |= !told.removed;
            row.checkpoint.clone_from(&told.path);
            self.touched_attempts.insert(fence);
            if is_told(told.number) {
                self.events.push(event);
            }
        }
        self.after.changed.insert(job);
        // Until they are given up, another job may be submitted to resume from those of any job.
        let is_kept = row.checkpoints_kept || row.attempt.state != AttemptState::Ended;
        match (is_new, is_kept) {
            (true, _) => (Answer::Recorded, Applied::Recorded),
            (false, true) => (Answer::Recorded, Applied::Known),
            (false, false) => (Answer::Remove, Applied::Known),
        }
    }

    /// Records what an attempt resumes from, and which checkpoints turned out to be damaged.
    pub(super) fn resumes(&mut self, fence: Fence, resumes: &Resumes) -> Applied {
        let Some(row) = self.attempts.get(&fence) else {
            return Applied::Fenced;
        };
        if row.attempt.state != AttemptState::Assigned {
            return Applied::Known;
        }
        self.resumed.push((fence, resumes.path.clone()));
        self.after.changed.insert(row.job);
        let (job, attempt, worker) = (row.job, row.number, row.worker_name.clone());
        let mut tell = |kind, message| {
            self.events.push(NewEvent {
                job: Some(job),
                attempt: Some(attempt),
                worker: worker.clone(),
                kind,
                message,
                actor: worker_actor(&worker),
            });
        };
        for found in &resumes.damaged {
            let (name, message) = (
                name(job, found.job, found.attempt, found.id),
                &found.message,
            );
            let (kind, message) = match found.finding {
                Finding::Damaged => (
                    "checkpoint_damaged",
                    format!("{name} cannot be resumed from: {message}"),
                ),
                Finding::Unreadable => (
                    "checkpoint_unreadable",
                    format!("{name} could not be read, and is left out this time: {message}"),
                ),
                Finding::Mended => (
                    "checkpoint_mended",
                    format!(
                        "the files of {name} on {worker} cannot be used, and the coordinator's \
                         copy of them takes their place: {message}"
                    ),
                ),
            };
            tell(kind, message);
        }
        let found = |finding| {
            let mut found = resumes.damaged.iter();
            found.any(|found| found.finding == finding)
        };
        let message = match &resumes.from {
            Some((id, of)) => {
                let why = match (found(Finding::Damaged), found(Finding::Unreadable)) {
                    (_, true) => ", the newest that can be read",
                    (true, false) => ", the newest that is whole",
                    (false, false) => "",
                };
                format!(
                    "resumes from {}{why}",
                    name(job, resumes.from_job, *of, *id)
                )
            }
            None => "begins afresh: none of its checkpoints can be resumed from".to_owned(),
        };
        tell("resumes", message);
        let damaged = resumes.damaged.iter().cloned();
        let damaged = damaged.filter(|found| found.finding == Finding::Damaged);
        self.damaged.extend(damaged);
        Applied::Recorded
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{JOB, OTHER, WORKER, at, attempt, ledger};
    use super::super::{Closed, Present, ReportRefusal, What};
    use super::*;
    use crate::checkpoint::Damaged;
    use crate::id::{AttemptNumber, JobId};
    use crate::outcome::{End, Facts};
    use crate::reconcile::Held;

    const FENCE: Fence = Fence(1);

    fn told(number: i32) -> Told {
        Told {
            number,
            step: Some(100),
            note: String::new(),
            path: format!("/c/1.{number}/files"),
            files: 1,
            bytes: 10,
            hash: String::new(),
            created_at: at(5),
            removed: false,
        }
    }

    fn tell(ledger: &mut Ledger, worker: WorkerId, told: Told) -> Result<(), ReportRefusal> {
        ledger.report(worker, FENCE, &What::Checkpoint(Box::new(told)))
    }

    fn answers(closed: &Closed) -> Vec<Answer> {
        let messages = closed.after.messages.iter();
        messages
            .filter_map(|(_, message)| match message {
                Message::CheckpointAnswered { answer, .. } => Some(*answer),
                _ => None,
            })
            .collect()
    }

    fn kinds(closed: &Closed) -> Vec<&'static str> {
        closed.events.iter().map(|event| event.kind).collect()
    }

    #[test]
    fn the_current_attempt_publishes_and_says_more_later() {
        let mut running = ledger(vec![attempt(1, AttemptState::Running)]);
        tell(&mut running, WORKER, told(1)).unwrap();
        let hashed = Told {
            hash: "sha256:00".to_owned(),
            ..told(1)
        };
        tell(&mut running, WORKER, hashed).unwrap();
        let row = running.attempt(FENCE).unwrap();
        assert_eq!(
            (row.published, row.checkpoint.as_str()),
            (1, "/c/1.1/files")
        );
        let closed = running.close();
        assert_eq!(answers(&closed), [Answer::Recorded, Answer::Recorded]);
        assert_eq!(kinds(&closed), ["checkpoint_published"]);
        assert_eq!(closed.checkpoints.len(), 2);
    }

    #[test]
    fn another_worker_publishes_nothing() {
        let mut running = ledger(vec![attempt(1, AttemptState::Running)]);
        let refused = tell(&mut running, OTHER, told(1));
        assert_eq!(refused, Err(ReportRefusal::NotItsOwn));
        assert!(running.close().is_empty());
    }

    #[test]
    fn what_was_given_up_is_refused_and_said_so() {
        let mut given_up = ledger(vec![attempt(1, AttemptState::Ended)]);
        tell(&mut given_up, WORKER, told(1)).unwrap();
        let closed = given_up.close();
        assert_eq!(answers(&closed), [Answer::Refused]);
        assert_eq!(kinds(&closed), ["checkpoint_refused"]);
        assert_eq!(closed.checkpoints, []);
    }

    #[test]
    fn what_was_known_before_the_end_may_still_get_its_hash() {
        let mut row = attempt(1, AttemptState::Ended);
        row.published = 1;
        row.checkpoints_kept = true;
        let mut ended = ledger(vec![row]);
        tell(&mut ended, WORKER, told(1)).unwrap();
        let closed = ended.close();
        assert_eq!(answers(&closed), [Answer::Recorded]);
        assert_eq!(closed.checkpoints.len(), 1);
        assert_eq!(closed.events, []);
    }

    #[test]
    fn those_of_a_success_stay_until_they_are_given_up() {
        let mut well = ledger(vec![attempt(1, AttemptState::Running)]);
        tell(&mut well, WORKER, told(1)).unwrap();
        let facts = Facts {
            exit_code: Some(0),
            ..Facts::of(End::Waited)
        };
        well.ended(FENCE, &facts, super::super::EndReport::default());
        assert_eq!(well.job(JOB).unwrap().job.state, JobState::Succeeded);
        // Its hash is told after the end, and a retry may have begun from it by then.
        tell(&mut well, WORKER, told(1)).unwrap();
        assert_eq!(answers(&well.close()), [Answer::Recorded; 2]);
    }

    #[test]
    fn what_was_given_up_while_its_worker_was_away_is_removed() {
        let mut row = attempt(1, AttemptState::Ended);
        row.published = 1;
        row.checkpoints_kept = false;
        let mut ended = ledger(vec![row]);
        tell(&mut ended, WORKER, told(1)).unwrap();
        assert_eq!(answers(&ended.close()), [Answer::Remove]);
    }

    #[test]
    fn nobody_wants_those_of_a_deleted_job_or_new_ones_of_a_success() {
        let mut deleted = ledger(Vec::new());
        tell(&mut deleted, WORKER, told(1)).unwrap();
        assert_eq!(answers(&deleted.close()), [Answer::Remove]);

        let mut well = ledger(vec![attempt(1, AttemptState::Running)]);
        let facts = Facts {
            exit_code: Some(0),
            ..Facts::of(End::Waited)
        };
        well.ended(FENCE, &facts, super::super::EndReport::default());
        assert_eq!(well.job(JOB).unwrap().job.state, JobState::Succeeded);
        tell(&mut well, WORKER, told(1)).unwrap();
        assert_eq!(answers(&well.close()), [Answer::Remove]);
    }

    /// A guard of the simulation: publish before the verdict.
    #[test]
    fn a_greeting_publishes_before_it_ends() {
        // Another boot: the greeting itself finds that the attempt is over.
        let mut lost = ledger(vec![attempt(1, AttemptState::Running)]);
        let checkpoints = [(FENCE, told(1)), (FENCE, told(2))];
        lost.greet(&Present {
            worker: WORKER,
            name: "box",
            boot_id: "another boot",
            spool_id: lost.attempt(FENCE).unwrap().spool_id,
            held: &[] as &[Held],
            checkpoints: &checkpoints,
        });
        let row = lost.attempt(FENCE).unwrap();
        assert_eq!(row.attempt.state, AttemptState::Ended);
        assert_eq!(row.published, 2);
        let budget = lost.job(JOB).unwrap().job.budget;
        assert_eq!(budget.resumes_left, budget.resumes - 1);
        let closed = lost.close();
        assert_eq!(answers(&closed), [Answer::Recorded, Answer::Recorded]);
    }

    #[test]
    fn a_flood_does_not_fill_the_history() {
        let mut running = ledger(vec![attempt(1, AttemptState::Running)]);
        for number in 1..=1_000 {
            tell(&mut running, WORKER, told(number)).unwrap();
        }
        let closed = running.close();
        assert_eq!(closed.checkpoints.len(), 1_000);
        assert_eq!(closed.events.len(), 50 + 19);
    }

    #[test]
    fn a_resume_is_told_in_words() {
        let id = |number| CheckpointId {
            fence: FENCE,
            number,
        };
        let damaged = |number| Damaged {
            id: id(number),
            job: Some(JOB),
            attempt: AttemptNumber(1),
            finding: Finding::Damaged,
            message: "its files are missing".to_owned(),
        };
        let mut second = ledger(vec![attempt(2, AttemptState::Assigned)]);
        let resumes = Resumes {
            from: Some((id(6), AttemptNumber(1))),
            from_job: Some(JOB),
            path: "/c/1.6/files".to_owned(),
            damaged: vec![damaged(7)],
        };
        let what = What::Resumes(Box::new(resumes));
        second.report(WORKER, Fence(2), &what).unwrap();
        let closed = second.close();
        assert_eq!(closed.resumed, [(Fence(2), "/c/1.6/files".to_owned())]);
        assert_eq!(closed.damaged, [damaged(7)]);
        let sentences: Vec<_> = closed.events.iter().map(|event| &*event.message).collect();
        assert_eq!(
            sentences,
            [
                "checkpoint 1.7 cannot be resumed from: its files are missing",
                "resumes from checkpoint 1.6, the newest that is whole",
            ]
        );

        let mut afresh = ledger(vec![attempt(2, AttemptState::Assigned)]);
        let resumes = Resumes {
            damaged: vec![damaged(7)],
            ..Resumes::default()
        };
        let what = What::Resumes(Box::new(resumes));
        afresh.report(WORKER, Fence(2), &what).unwrap();
        let closed = afresh.close();
        assert!(closed.events[1].message.starts_with("begins afresh"));

        // Of another job that it was retried from; nothing of it is condemned.
        let of_another = |number, finding| Damaged {
            job: Some(JobId(7)),
            finding,
            message: "why".to_owned(),
            ..damaged(number)
        };
        let mut retried = ledger(vec![attempt(2, AttemptState::Assigned)]);
        let resumes = Resumes {
            from: Some((id(5), AttemptNumber(1))),
            from_job: Some(JobId(7)),
            damaged: vec![
                of_another(6, Finding::Unreadable),
                of_another(5, Finding::Mended),
            ],
            ..Resumes::default()
        };
        let what = What::Resumes(Box::new(resumes));
        retried.report(WORKER, Fence(2), &what).unwrap();
        let closed = retried.close();
        assert_eq!(closed.damaged, []);
        let sentences: Vec<_> = closed.events.iter().map(|event| &*event.message).collect();
        assert_eq!(
            sentences,
            [
                "checkpoint 1.6 of job 7 could not be read, and is left out this time: why",
                "the files of checkpoint 1.5 of job 7 on box cannot be used, and the coordinator's \
                 copy of them takes their place: why",
                "resumes from checkpoint 1.5 of job 7, the newest that can be read",
            ]
        );
    }
}
