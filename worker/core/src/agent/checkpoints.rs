//! Published checkpoints: each is told until the coordinator has answered, and always before the end
//! of its attempt, which would fence it.

use super::Agent;
use crate::agent::message::{Effect, Say};
use crate::checkpoint::{Answer, CheckpointId, GREETED, IN_FLIGHT, Published};
use crate::guard::{Guard, is_broken};

/// A checkpoint that the coordinator has not answered for.
#[derive(Clone, Debug)]
pub(super) struct Unanswered {
    published: Published,
    /// What is known now has not been said in this session.
    unsaid: bool,
    /// Answers that are still to come in this session.
    pending: u32,
}

impl Agent {
    /// Looks for what an attempt has published, when nothing else tells.
    pub(super) fn look_for_checkpoints(&mut self, fence: i64) {
        let Some(held) = self.attempts.get(&fence) else {
            return;
        };
        self.effects.push(Effect::LookForCheckpoints {
            fence,
            job_id: held.terms.job_id,
            attempt: held.terms.attempt,
            ended: held.looking,
            publish: held.ended.as_ref().is_some_and(|ended| ended.checkpointed),
        });
    }

    pub(super) fn published(&mut self, found: Vec<Published>) {
        for published in found {
            let known = self
                .checkpoints
                .entry(published.id)
                .or_insert_with(|| Unanswered {
                    published: published.clone(),
                    unsaid: true,
                    pending: 0,
                });
            if known.published != published {
                known.published = published;
                known.unsaid = true;
            }
        }
        self.tell_checkpoints();
    }

    /// Everything that an ended attempt published is known: its end may be told.
    pub(super) fn looked(&mut self, fence: i64) {
        if let Some(held) = self.attempts.get_mut(&fence)
            && held.looking
        {
            held.looking = false;
            self.tell_ended(fence);
        }
    }

    pub(super) fn checkpoint_answered(&mut self, id: CheckpointId, answer: Answer) {
        let Some(known) = self.checkpoints.get_mut(&id) else {
            return;
        };
        known.pending = known.pending.saturating_sub(1);
        let is_done = !known.unsaid && known.pending == 0;
        if answer != Answer::Recorded || is_done {
            let published = known.published.clone();
            let was_unsaid = known.unsaid;
            self.checkpoints.remove(&id);
            if was_unsaid {
                // Nothing is said of it any more that its attempt's end could wait for.
                self.tell_ended(id.fence);
            }
            self.effects
                .push(Effect::CheckpointAnswered { published, answer });
        }
        self.tell_checkpoints();
    }

    /// Nobody wants the checkpoints of a job.
    pub(super) fn remove_checkpoints(&mut self, job_id: i64) {
        let is_held = |agent: &Self| {
            let mut held = agent.attempts.values();
            held.any(|held| held.terms.job_id == job_id && held.ended.is_none())
        };
        if !is_held(self) {
            self.checkpoints
                .retain(|_, known| known.published.job_id != job_id);
            self.effects.push(Effect::RemoveCheckpoints(job_id));
            let of_job = self.attempts.iter();
            let owed = of_job.filter(|(_, held)| held.terms.job_id == job_id && !held.committed);
            let owed: Vec<i64> = owed.map(|(fence, _)| *fence).collect();
            owed.into_iter().for_each(|fence| self.tell_ended(fence));
        }
    }

    /// For the greeting, which begins all telling anew.
    pub(super) fn checkpoints_to_greet(&mut self) -> Vec<Published> {
        for known in self.checkpoints.values_mut() {
            known.unsaid = true;
            known.pending = 0;
        }
        let greeted = self.checkpoints.values_mut().take(GREETED);
        let greeted = greeted.map(|known| {
            known.unsaid = false;
            known.pending = 1;
            known.published.clone()
        });
        greeted.collect()
    }

    /// Says what is unsaid, as far as answers keep up, and the ends that waited for it.
    pub(super) fn tell_checkpoints(&mut self) {
        if self.session.is_none() {
            return;
        }
        let pending: u32 = self.checkpoints.values().map(|known| known.pending).sum();
        let room = IN_FLIGHT.saturating_sub(pending);
        let unsaid = self
            .checkpoints
            .iter_mut()
            .filter(|(_, known)| known.unsaid);
        let mut said = Vec::new();
        for (_, known) in unsaid.take(room as usize) {
            known.unsaid = false;
            known.pending += 1;
            said.push(known.published.clone());
        }
        let mut fences: Vec<i64> = said.iter().map(|published| published.id.fence).collect();
        fences.dedup();
        for published in said {
            self.say(Say::Checkpoint(Box::new(published)));
        }
        for fence in fences {
            self.tell_ended(fence);
        }
    }

    /// True when nothing of an attempt has to be told before its end.
    pub(super) fn may_tell_end(&self, fence: i64) -> bool {
        let of_attempt = CheckpointId {
            fence,
            number: i32::MIN,
        }..=CheckpointId {
            fence,
            number: i32::MAX,
        };
        let looking = self.attempts.get(&fence).is_some_and(|held| held.looking);
        let mut known = self.checkpoints.range(of_attempt);
        !looking && !known.any(|(_, known)| known.unsaid) || is_broken(Guard::EndLast)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Driver, SECOND, judged, started, starting, terms};
    use super::super::{End, Ended, Event, Fact};
    use super::*;
    use crate::session::Verdict;

    fn published(number: i32) -> Published {
        Published {
            id: CheckpointId { fence: 7, number },
            job_id: 40,
            attempt: 1,
            step: None,
            note: String::new(),
            path: format!("/c/40/published/1.{number}/files"),
            files: 1,
            bytes: 2,
            hash: String::new(),
            created_us: 1,
            removed: false,
        }
    }

    fn ended_with_a_folder() -> Fact {
        Fact::Ended(Box::new(Ended {
            exit_code: Some(1),
            checkpoint: "/c/40/1".to_owned(),
            ..Ended::of(End::Waited)
        }))
    }

    /// What is told, as far as it matters here.
    fn said(effects: &[Effect]) -> Vec<String> {
        let says = effects.iter().filter_map(|effect| match effect {
            Effect::Say(say) => Some(say),
            _ => None,
        });
        says.filter_map(|say| match say {
            Say::Checkpoint(published) => Some(format!("checkpoint {}", published.id.number)),
            Say::Ended { .. } => Some("ended".to_owned()),
            Say::SlotFreed(_) => Some("freed".to_owned()),
            _ => None,
        })
        .collect()
    }

    fn answered(number: i32, answer: Answer) -> Event {
        let id = CheckpointId { fence: 7, number };
        Event::CheckpointAnswered { id, answer }
    }

    #[test]
    fn a_bell_makes_it_look_and_what_is_found_is_told() {
        let mut driver = Driver::running(terms());
        let effects = driver.facts(1, [Fact::Bell]);
        assert_eq!(
            effects,
            [Effect::LookForCheckpoints {
                fence: 7,
                job_id: 40,
                attempt: 1,
                ended: false,
                publish: false,
            }]
        );
        let effects = driver.tell(Event::Published(vec![published(1)]));
        assert_eq!(said(&effects), ["checkpoint 1"]);
        assert_eq!(driver.tell(Event::Published(vec![published(1)])), []);
        // More becomes known before the first answer: both are answered before it is done.
        let hashed = Published {
            hash: "sha256:00".to_owned(),
            ..published(1)
        };
        let effects = driver.tell(Event::Published(vec![hashed.clone()]));
        assert_eq!(said(&effects), ["checkpoint 1"]);
        assert_eq!(driver.tell(answered(1, Answer::Recorded)), []);
        let done = Effect::CheckpointAnswered {
            published: hashed,
            answer: Answer::Recorded,
        };
        assert_eq!(driver.tell(answered(1, Answer::Recorded)), [done]);
    }

    #[test]
    fn the_end_is_told_after_everything_that_was_published() {
        let mut driver = Driver::running(terms());
        let effects = driver.facts(1, [ended_with_a_folder(), Fact::Freed]);
        assert_eq!(said(&effects), [""; 0], "it looks first");
        let effects = driver.tell(Event::Published(vec![published(1), published(2)]));
        assert_eq!(said(&effects), ["checkpoint 1", "checkpoint 2"]);
        let effects = driver.tell(Event::Looked(7));
        assert_eq!(said(&effects), ["ended", "freed"]);
    }

    #[test]
    fn an_exit_that_says_so_publishes_what_is_in_the_folder() {
        let mut driver = Driver::running(terms());
        let ended = Fact::Ended(Box::new(Ended {
            exit_code: Some(85),
            checkpointed: true,
            checkpoint: "/c/40/1".to_owned(),
            ..Ended::of(End::Waited)
        }));
        let look = Effect::LookForCheckpoints {
            fence: 7,
            job_id: 40,
            attempt: 1,
            ended: true,
            publish: true,
        };
        assert!(driver.facts(1, [ended]).contains(&look));
    }

    #[test]
    fn an_end_without_a_folder_waits_for_nothing() {
        let mut driver = Driver::running(terms());
        let ended = Fact::Ended(Box::new(Ended::of(End::Waited)));
        assert_eq!(said(&driver.facts(1, [ended])), ["ended"]);
    }

    #[test]
    fn fifty_that_were_made_in_silence_are_in_the_greeting() {
        let mut driver = Driver::running(terms());
        driver.tell(Event::Closed);
        driver.tell(Event::Published((1..=50).map(published).collect()));
        driver.facts(1, [ended_with_a_folder(), Fact::Freed]);
        driver.tell(Event::Looked(7));
        let effects = driver.tell(Event::Greeting);
        let Effect::Greet { checkpoints, .. } = &effects[0] else {
            panic!("no greeting");
        };
        assert_eq!(checkpoints.len(), 50);
        let effects = driver.greet(vec![judged(7, Verdict::SendResult)]);
        assert_eq!(said(&effects), ["ended", "freed"]);
    }

    #[test]
    fn a_flood_is_told_as_answers_come_and_the_end_comes_last() {
        let mut driver = Driver::running(terms());
        driver.tell(Event::Closed);
        let all = GREETED as i32 + IN_FLIGHT as i32 + 1;
        driver.tell(Event::Published((1..=all).map(published).collect()));
        driver.facts(1, [ended_with_a_folder()]);
        driver.tell(Event::Looked(7));
        let mut told = said(&driver.greet(vec![judged(7, Verdict::SendResult)]));
        assert_eq!(told, [""; 0], "the greeting is still unanswered");
        for number in 1..=all {
            told.extend(said(&driver.tell(answered(number, Answer::Recorded))));
        }
        let (last, before) = told.split_last().unwrap();
        assert_eq!(last, "ended");
        assert_eq!(before.len(), IN_FLIGHT as usize + 1);
        assert!(before.iter().all(|told| told.starts_with("checkpoint")));
    }

    #[test]
    fn a_refusal_is_final_and_holds_no_end_back() {
        let mut driver = Driver::running(terms());
        driver.tell(Event::Published(vec![published(1)]));
        let effects = driver.tell(answered(1, Answer::Refused));
        let refused = Effect::CheckpointAnswered {
            published: published(1),
            answer: Answer::Refused,
        };
        assert_eq!(effects, [refused]);
        assert_eq!(driver.tell(answered(1, Answer::Refused)), []);
        driver.facts(1, [ended_with_a_folder()]);
        assert_eq!(said(&driver.tell(Event::Looked(7))), ["ended"]);
    }

    #[test]
    fn nobody_removes_the_checkpoints_of_a_job_that_runs() {
        let mut driver = Driver::running(terms());
        assert_eq!(driver.tell(Event::RemoveCheckpoints(vec![40])), []);
        let removed = [Effect::RemoveCheckpoints(41)];
        assert_eq!(driver.tell(Event::RemoveCheckpoints(vec![41])), removed);
    }

    #[test]
    fn what_a_success_left_unpublished_goes_once_nothing_of_it_is_left() {
        let leftovers = |exit_code| {
            let mut driver = Driver::running(terms());
            let ended = Fact::Ended(Box::new(Ended {
                exit_code: Some(exit_code),
                checkpoint: "/c/40/1".to_owned(),
                ..Ended::of(End::Waited)
            }));
            driver.facts(1, [ended]);
            driver.tell(Event::Looked(7));
            let committed = driver.tell(Event::Committed(7));
            let removes = |effect: &Effect| matches!(effect, Effect::RemoveLeftovers { .. });
            assert!(
                !committed.iter().any(removes),
                "a process of it may be left"
            );
            let freed = driver.facts(1, [Fact::Freed]);
            freed.into_iter().find(removes)
        };
        let removed = Effect::RemoveLeftovers {
            job_id: 40,
            attempt: 1,
        };
        assert_eq!(leftovers(0), Some(removed));
        assert_eq!(leftovers(1), None);
    }

    #[test]
    fn a_new_agent_tells_what_it_finds() {
        let mut driver = Driver::new();
        driver.tell(Event::Published(vec![published(1)]));
        driver.later(SECOND);
        driver.facts(
            1,
            [Fact::Assigned(Box::new(terms())), starting(), started()],
        );
        let effects = driver.tell(Event::Greeting);
        assert!(matches!(&effects[0], Effect::Greet { checkpoints, .. } if checkpoints.len() == 1));
    }
}
