//! What really happened, and what must hold after every step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use qctl_server_core::attempt::AttemptState;
use qctl_server_core::checkpoint::CheckpointId;
use qctl_server_core::outcome::{Cause, Outcome, OutcomeKind};
use qctl_server_core::{Fence, JobId, JobState};
use qctl_worker_core::agent::{End, Fact};
use uuid::Uuid;

use super::World;
use super::process::{Exit, Tree};
use super::shim::Shim;
use crate::double::StoredAttempt;

/// How long two process trees of an exclusive job may both be awake: a machine that wakes from sleep
/// notices within a second.
const AWAKE_TOGETHER: Duration = Duration::from_secs(2);
/// A look at silence counts this much too early at most: the ticks around it.
const TICKS: Duration = Duration::from_secs(8);

/// What really happened.
#[derive(Debug, Default)]
pub(super) struct Truth {
    pub(super) broken: Option<String>,
    pub(super) submitted: u64,
    /// Submissions that were acknowledged, less those whose deletion was.
    pub(super) acked: BTreeSet<JobId>,
    /// Somebody asked for its deletion, and may have got it without hearing of it.
    pub(super) may_be_deleted: BTreeSet<JobId>,
    lived: BTreeMap<i64, Lived>,
    /// The latest greeting of each spool that was taken.
    greetings: BTreeMap<Uuid, i64>,
    term_began: Duration,
    heard: BTreeMap<usize, Duration>,
    finals: BTreeMap<JobId, JobState>,
    outcomes: BTreeMap<Fence, Outcome>,
    given_up: BTreeSet<Fence>,
    /// Records of it were lost with the power of its machine, so that output which had not been sent
    /// may be gone.
    pub(super) torn: BTreeSet<i64>,
    /// Times that a job was held because it kept losing its host.
    crash_loops: BTreeMap<JobId, i32>,
    was_held: BTreeSet<JobId>,
    most_slots: BTreeMap<usize, i32>,
    together_since: BTreeMap<i64, Duration>,
    looked_at: u64,
}

/// What became of an attempt's processes.
#[derive(Clone, Copy, Debug, Default)]
struct Lived {
    exit: Option<Exit>,
    output: u64,
    published: i32,
}

impl Truth {
    pub(super) fn term_began(&mut self, _term: i64, now: Duration) {
        self.term_began = now;
    }

    pub(super) fn heard(&mut self, machine: usize, now: Duration) {
        self.heard.insert(machine, now);
    }

    pub(super) fn printed(&mut self, fence: i64, output: u64) {
        self.lived.entry(fence).or_default().output = output;
    }

    pub(super) fn published(&mut self, fence: i64, number: i32) {
        self.lived.entry(fence).or_default().published = number;
    }

    pub(super) fn exited(&mut self, fence: i64, exit: Exit) {
        self.lived.entry(fence).or_default().exit = Some(exit);
    }

    pub(super) fn tree_is_gone(&mut self, fence: i64, main: bool, _now: Duration) {
        if main {
            self.exited(fence, Exit::Signal(9));
        }
    }

    /// Most slots that a machine was given.
    pub(super) fn most_slots_of(&self, machine: usize) -> i32 {
        self.most_slots.get(&machine).copied().unwrap_or_default()
    }

    pub(super) fn slots(&mut self, machine: usize, slots: i32) {
        let most = self.most_slots.entry(machine).or_default();
        *most = (*most).max(slots);
    }
}

impl World {
    /// A coordinator is about to acknowledge something.
    pub(super) fn acknowledges(&mut self, term: i64, what: &str) {
        let latest = self.database.double.term();
        if term < latest {
            self.breaks(|| format!("a leader of term {term} answers {what} in term {latest}"));
        }
    }

    /// A process was started: may it?
    pub(super) fn tree_started(&mut self, machine: usize, fence: i64) {
        self.truth.lived.entry(fence).or_default();
        let Some(tree) = self.machines[machine].trees.get(&fence).cloned() else {
            return;
        };
        let row = self.database.double.attempts().get(&Fence(fence));
        match row {
            // Its job was deleted, which needs an end.
            None => self.breaks(|| format!("fence {fence} starts although its job is gone")),
            // A machine that has just woken may start late what was given up meanwhile.
            Some(stored)
                if stored.row.attempt.state == AttemptState::Ended
                    && !(self.machines[machine].has_just_woken(self.now)
                        && !tree.exclusive
                        && self.truth.given_up.contains(&Fence(fence))) =>
            {
                let outcome = stored.row.outcome.clone();
                self.breaks(|| format!("fence {fence} starts after it has ended: {outcome:?}"));
            }
            Some(_) => {}
        }
        for (index, there) in self.machines.iter().enumerate() {
            for (other, running) in &there.trees {
                // What an attempt leaves running after its end may outlast it, unless its job is
                // exclusive.
                let is_over = !running.main && !tree.exclusive;
                if *other == fence || running.job != tree.job || is_over {
                    continue;
                }
                let given_up = &self.truth.given_up;
                if !given_up.contains(&Fence(*other)) && !given_up.contains(&Fence(fence)) {
                    let rule = format!(
                        "job {} runs twice: fence {fence} on m{machine}, and {other} on m{index}, \
                         which was not given up",
                        tree.job
                    );
                    return self.breaks(|| rule);
                }
            }
        }
        let there = &self.machines[machine];
        let most = self
            .truth
            .most_slots
            .get(&machine)
            .map_or(there.slots, |most| there.slots.max(*most));
        let taken: i32 = there
            .trees
            .values()
            .filter(|tree| !tree.beside_slots)
            .map(|tree| tree.slots)
            .sum();
        let alone = there
            .trees
            .values()
            .filter(|tree| !tree.beside_slots)
            .count()
            <= 1;
        if taken > most && !alone && !tree.beside_slots {
            return self.breaks(|| format!("m{machine} has {most} slots, and {taken} are taken"));
        }
        let shared = there.trees.iter().find(|(other, running)| {
            **other != fence && running.gpus.iter().any(|gpu| tree.gpus.contains(gpu))
        });
        if let Some((other, _)) = shared {
            let rule = format!("fences {other} and {fence} have the same GPU");
            return self.breaks(|| rule);
        }
        // A probe ends with its agent.
        let is_probed = |gpu: &&String| there.computing.get(*gpu) == Some(&there.runs);
        if let Some(gpu) = tree.gpus.iter().find(is_probed) {
            let rule = format!("fence {fence} starts on {gpu} while a probe computes there");
            self.breaks(|| rule);
        }
    }

    /// A probe computes on these GPUs from now on: may it?
    pub(super) fn computes(&mut self, machine: usize, run: u64, gpus: &[String]) {
        let there = &mut self.machines[machine];
        let has_one = |tree: &Tree| tree.gpus.iter().any(|gpu| gpus.contains(gpu));
        let mut trees = there.trees.iter();
        let beside = trees
            .find(|(_, tree)| has_one(tree))
            .map(|(fence, _)| *fence);
        let probed = gpus.iter().map(|gpu| (gpu.clone(), run));
        there.computing.extend(probed);
        if let Some(fence) = beside {
            self.breaks(|| format!("a probe on m{machine} computes beside fence {fence}"));
        }
    }

    /// Checks everything that must hold after a step.
    pub(super) fn look(&mut self) {
        self.look_at_exclusive();
        let version = self.database.double.version();
        if version == self.truth.looked_at || self.truth.broken.is_some() {
            return;
        }
        self.truth.looked_at = version;
        if let Err(rule) = self.look_at_store() {
            self.breaks(|| rule);
        }
    }

    fn look_at_exclusive(&mut self) {
        let now = self.now;
        let mut awake: BTreeMap<i64, usize> = BTreeMap::new();
        for there in &self.machines {
            if there.is_asleep(now) {
                continue;
            }
            for tree in there.trees.values() {
                // What the kernel does not let go of does nothing either. Where agent and shim are
                // both gone, nobody is left who could end what a job has left behind.
                let is_watched = there.agent.is_some() || there.is_watched_by_shim(tree);
                if tree.exclusive && !tree.frozen && tree.stuck_until <= now && is_watched {
                    *awake.entry(tree.job).or_default() += 1;
                }
            }
        }
        awake.retain(|_, trees| *trees > 1);
        self.truth
            .together_since
            .retain(|job, _| awake.contains_key(job));
        for job in awake.into_keys() {
            let since = *self.truth.together_since.entry(job).or_insert(now);
            if now - since > AWAKE_TOGETHER {
                self.breaks(|| format!("exclusive job {job} has run twice for {:?}", now - since));
            }
        }
    }

    fn look_at_store(&mut self) -> Result<(), String> {
        let double = &self.database.double;
        for there in &self.machines {
            let Some(known) = double.worker(there.worker) else {
                continue;
            };
            let (spool, greeting) = (known.worker.spool_id, known.worker.greeting);
            let latest = self.truth.greetings.entry(spool).or_default();
            if greeting < *latest {
                return Err(format!(
                    "greeting {greeting} of {} was taken after its greeting {latest}",
                    there.name
                ));
            }
            *latest = greeting;
        }
        for job in &self.truth.acked {
            if !double.jobs().contains_key(job) && !self.truth.may_be_deleted.contains(job) {
                return Err(format!("job {} was acknowledged and is gone", job.0));
            }
        }
        for (id, stored) in double.jobs() {
            let job = &stored.job;
            let mut current = None;
            let mut charged = 0;
            // A published checkpoint sets the count of the resumes back.
            let mut resets = 0;
            let mut succeeded = false;
            for (fence, attempt) in double.attempts() {
                if attempt.row.job != *id {
                    continue;
                }
                let row = &attempt.row;
                if row.attempt.state != AttemptState::Ended {
                    if current.is_some() {
                        return Err(format!("job {} has two current attempts", id.0));
                    }
                    if stored.fence != Some(*fence) {
                        return Err(format!("job {}'s current attempt is not its latest", id.0));
                    }
                    current = Some(row.attempt.state);
                }
                let outcomes = [&row.outcome, &row.late_result];
                for outcome in outcomes.into_iter().flatten() {
                    succeeded |= outcome.kind == OutcomeKind::Succeeded;
                }
                if row
                    .outcome
                    .as_ref()
                    .is_some_and(|outcome| outcome.kind != OutcomeKind::NeverStarted)
                {
                    charged += 1;
                }
                let lived = self.truth.lived.get(&fence.0);
                resets += i32::from(lived.is_some_and(|lived| lived.published > 0));
            }
            let running = current == Some(AttemptState::Running);
            if (job.state == JobState::Running) != running
                || (job.state.is_final() && current.is_some())
            {
                return Err(format!(
                    "job {} is {} and its attempt is {current:?}",
                    id.0, job.state
                ));
            }
            if job.state == JobState::Succeeded && !succeeded {
                return Err(format!("job {} succeeded, and no attempt of it did", id.0));
            }
            if let Some(known) = self.truth.finals.get(id)
                && *known != job.state
            {
                return Err(format!("job {} was {known} and is {} now", id.0, job.state));
            }
            if job.state.is_final() {
                self.truth.finals.insert(*id, job.state);
            }
            if job.state == JobState::Held && job.reason == "crash_loop" {
                if self.truth.was_held.insert(*id) {
                    *self.truth.crash_loops.entry(*id).or_default() += 1;
                }
            } else {
                self.truth.was_held.remove(id);
            }
            let loops = self.truth.crash_loops.get(id).copied().unwrap_or_default();
            let resumes = job.budget.resumes * (1 + resets);
            let most = job.budget.retries + resumes + 1 + loops;
            if charged > most {
                return Err(format!(
                    "job {} has {charged} attempts that count, and {most} are allowed",
                    id.0
                ));
            }
        }
        for (fence, attempt) in double.attempts() {
            self.truth_of(*fence, attempt)?;
            if let Some(outcome) = &attempt.row.outcome {
                if let Some(known) = self.truth.outcomes.get(fence)
                    && known != outcome
                {
                    return Err(format!(
                        "fence {} had ended with {known:?} and has ended with {outcome:?} now",
                        fence.0
                    ));
                }
                if !self.truth.outcomes.contains_key(fence) {
                    self.truth.outcomes.insert(*fence, outcome.clone());
                    match self.was_given_up(attempt, outcome)? {
                        true => {
                            self.truth.given_up.insert(*fence);
                        }
                        false => self.published_before_its_end(attempt)?,
                    }
                }
            } else if self.truth.outcomes.contains_key(fence) {
                return Err(format!("fence {} had ended and has not now", fence.0));
            }
        }
        Ok(())
    }

    /// What is recorded of an attempt is what happened.
    fn truth_of(&self, fence: Fence, attempt: &StoredAttempt) -> Result<(), String> {
        let row = &attempt.row;
        let lived = self.truth.lived.get(&fence.0);
        let outcomes = [&row.outcome, &row.late_result];
        for outcome in outcomes.into_iter().flatten() {
            let exit = lived.and_then(|lived| lived.exit);
            let said = match (outcome.exit_code, outcome.signal) {
                (Some(code), _) => Some(Exit::Code(code)),
                (_, Some(signal)) => Some(Exit::Signal(signal)),
                (None, None) => None,
            };
            if said.is_some() && said != exit {
                return Err(format!(
                    "fence {} is said to have ended with {said:?}, and it ended with {exit:?}",
                    fence.0
                ));
            }
            if outcome.kind == OutcomeKind::Succeeded && exit != Some(Exit::Code(0)) {
                return Err(format!(
                    "fence {} is said to have succeeded, and it ended with {exit:?}",
                    fence.0
                ));
            }
            if outcome.kind == OutcomeKind::NeverStarted && lived.is_some() {
                return Err(format!(
                    "fence {} is said to have never started, and it did",
                    fence.0
                ));
            }
        }
        if !row.attempt.slot_held
            && let Some(machine) = self
                .machines
                .iter()
                .find(|there| there.trees.contains_key(&fence.0))
        {
            return Err(format!(
                "processes of fence {} live on {}, and its slot is free",
                fence.0, machine.name
            ));
        }
        let printed = lived.map_or(0, |lived| lived.output) as i64;
        if row.log_stored > printed {
            return Err(format!(
                "{} bytes of fence {} are stored, and it wrote {printed}",
                row.log_stored, fence.0
            ));
        }
        Ok(())
    }

    /// Whatever an attempt has published is recorded before its end, unless it was lost with the spool.
    fn published_before_its_end(&self, attempt: &StoredAttempt) -> Result<(), String> {
        let row = &attempt.row;
        let mut machines = self.machines.iter();
        let is_there = machines.any(|there| there.spool_id == row.spool_id);
        let lived = self.truth.lived.get(&row.fence.0);
        let published = lived.map_or(0, |lived| lived.published);
        let known = (1..=published).all(|number| {
            let id = CheckpointId {
                fence: row.fence,
                number,
            };
            self.database.double.checkpoints().contains_key(&id)
        });
        match known || !is_there {
            true => Ok(()),
            false => Err(format!(
                "fence {} has ended, and of the {published} checkpoints that it published not all \
                 are recorded",
                row.fence.0
            )),
        }
    }

    /// A checkpoint is not there that was offered to be resumed from.
    pub(super) fn is_missing(
        &mut self,
        machine: usize,
        id: qctl_worker_core::checkpoint::CheckpointId,
    ) {
        let known = CheckpointId {
            fence: Fence(id.fence),
            number: id.number,
        };
        let checkpoints = self.database.double.checkpoints();
        let spool_id = checkpoints.get(&known).map(|stored| stored.row.spool_id);
        let is_wanted = checkpoints
            .get(&known)
            .is_some_and(|stored| stored.on_disk && !stored.damaged);
        if is_wanted && spool_id == Some(self.machines[machine].spool_id) {
            self.breaks(|| {
                format!(
                    "checkpoint {}.{} is gone from m{machine}, and a job would resume from it",
                    id.fence, id.number
                )
            });
        }
    }

    /// An attempt that ended because its worker was silent: it must have been, for long enough.
    fn was_given_up(&self, attempt: &StoredAttempt, outcome: &Outcome) -> Result<bool, String> {
        let row = &attempt.row;
        let Some(index) = self
            .machines
            .iter()
            .position(|there| there.worker == row.worker)
        else {
            return Ok(false);
        };
        let there = &self.machines[index];
        let is_lost = matches!(outcome.cause, Cause::WorkerLost | Cause::RecordGone);
        if !is_lost || !row.attempt.slot_held || row.log_end.is_some() {
            return Ok(false);
        }
        let least = self.settings.lost_after.saturating_sub(TICKS);
        let in_term = self.now - self.truth.term_began;
        let orphan = there.spool_id != row.spool_id;
        let silent = match self.truth.heard.get(&index).filter(|_| !orphan) {
            Some(at) => self.now - *at,
            None => in_term,
        };
        if in_term < least || silent < least {
            return Err(format!(
                "fence {} was given up {:.0} s into the term, {:.0} s after its worker was heard of",
                row.fence.0,
                in_term.as_secs_f64(),
                silent.as_secs_f64()
            ));
        }
        Ok(true)
    }

    /// A segment is removed: whatever it told must be known elsewhere.
    pub(super) fn segment_removed(&mut self, machine: usize, segment: &Shim) {
        for (fence, fact) in &segment.records {
            let Fact::Ended(ended) = fact else { continue };
            if ended.end == End::NeverStarted {
                continue;
            }
            let row = self.database.double.attempts().get(&Fence(*fence));
            let Some(stored) = row else { continue };
            let row = &stored.row;
            let known = row.log_end.is_some_and(|end| row.log_stored >= end);
            if !known && !self.truth.torn.contains(fence) {
                let rule = format!(
                    "m{machine} removes the record of fence {fence}, of which result {:?} and {} \
                     bytes are known",
                    row.log_end, row.log_stored
                );
                return self.breaks(|| rule);
            }
        }
    }

    /// Everything has come to its end.
    pub(super) fn is_over(&self) -> bool {
        let double = &self.database.double;
        double.all_final()
            && self.machines.iter().all(|there| there.trees.is_empty())
            && double
                .attempts()
                .values()
                .all(|attempt| !attempt.row.attempt.slot_held && !self.owes_output(attempt))
    }

    /// Output of it is still to come.
    fn owes_output(&self, attempt: &StoredAttempt) -> bool {
        let row = &attempt.row;
        row.log_end.is_some_and(|end| row.log_stored < end)
            && !self.truth.torn.contains(&row.fence.0)
    }

    /// What has not come to its end.
    pub(super) fn what_lies_there(&self) -> String {
        let double = &self.database.double;
        for (id, stored) in double.jobs() {
            if !stored.job.state.is_final() {
                return format!(
                    "job {} is {} for ever: {} {}",
                    id.0, stored.job.state, stored.job.reason, stored.job.message
                );
            }
        }
        for there in &self.machines {
            if let Some((fence, _)) = there.trees.first_key_value() {
                return format!("fence {fence} runs for ever on {}", there.name);
            }
        }
        for (fence, attempt) in double.attempts() {
            let row = &attempt.row;
            if row.attempt.slot_held {
                return format!("fence {} occupies its worker for ever", fence.0);
            }
            if self.owes_output(attempt) {
                return format!("output of fence {} never comes", fence.0);
            }
        }
        "nothing".to_owned()
    }
}
