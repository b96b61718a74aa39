//! Why a job is not running, in sentences.

use chrono::{DateTime, TimeDelta, Utc};

use crate::id::JobId;
use crate::job::JobState;
use crate::spec::{Condition, Demand};

/// Jobs that are named one by one before the rest is only counted.
const NAMED: usize = 5;

/// What the answer depends on, by where the job is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Situation {
    /// It waits for other jobs or a time.
    Waiting {
        /// Dependencies that are not met.
        dependencies: Vec<Unmet>,
        /// It may not run before this time.
        not_before: Option<DateTime<Utc>>,
    },
    /// A person must look or release it.
    Held {
        /// Why, in a sentence; empty when nobody said.
        message: String,
    },
    /// It waits its turn.
    Queued(Queued),
    /// It is given to a worker and has not started.
    Assigned {
        /// The worker.
        worker: String,
        /// True when the worker is connected.
        connected: bool,
        /// Jobs that occupy the worker.
        holders: Vec<JobId>,
    },
    /// It runs.
    Running {
        /// The worker.
        worker: String,
        /// Since when.
        since: DateTime<Utc>,
        /// When the worker was last heard of, where that is too long ago.
        unreachable_since: Option<DateTime<Utc>>,
        /// A person froze it.
        paused: bool,
        /// It was told to stop.
        stopping: bool,
    },
    /// It is over.
    Ended {
        /// Its final state.
        state: JobState,
        /// How, in a sentence; may be empty.
        message: String,
        /// When.
        at: DateTime<Utc>,
    },
}

/// A dependency that is not met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet {
    /// The other job.
    pub job: JobId,
    /// Its state; `None` when it was deleted.
    pub state: Option<JobState>,
    /// How it has to end.
    pub condition: Condition,
}

/// What a queued job's turn depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// What it needs.
    pub needs: Demand,
    /// The only worker that may run it.
    pub pinned: Option<String>,
    /// The only worker that has its checkpoint.
    pub checkpoint_on: Option<String>,
    /// True when it has a time limit, so that it may fill in before a reservation.
    pub limited: bool,
    /// True when new starts are stopped.
    pub queue_paused: bool,
    /// Its latest attempt that ended and has processes left, while it is exclusive.
    pub left_behind: Option<LeftBehind>,
    /// How many queued jobs come before it.
    pub ahead: i64,
    /// The first of them.
    pub first_ahead: Option<JobId>,
    /// Every known worker.
    pub workers: Vec<Candidate>,
}

/// An attempt that ended, and of which processes are left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftBehind {
    /// Its number.
    pub attempt: i32,
    /// Where they are.
    pub worker: String,
}

/// A worker that might run a queued job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// True while it has a session.
    pub connected: bool,
    /// When it was last heard of.
    pub last_seen: Option<DateTime<Utc>>,
    /// True while a person keeps it from taking jobs.
    pub paused: bool,
    /// True while it takes no jobs because it drains.
    pub draining: bool,
    /// What it has.
    pub total: Demand,
    /// What is taken.
    pub taken: Demand,
    /// How many of its GPUs do not work, and what is wrong with the first of them.
    pub faulty: Option<(i32, String)>,
    /// Jobs that took it.
    pub holders: Vec<JobId>,
}

impl Candidate {
    /// True when it could take this much if it were idle.
    fn could_take(&self, needs: Demand) -> bool {
        self.takes_beside(needs, NOTHING)
    }

    /// True when it has room for this much now.
    fn has_room(&self, needs: Demand) -> bool {
        self.takes_beside(needs, self.taken) && self.has_gpus(needs)
    }

    fn takes_beside(&self, needs: Demand, taken: Demand) -> bool {
        takes_beside(needs, self.total, taken)
    }

    /// True when enough of its GPUs work.
    fn has_gpus(&self, needs: Demand) -> bool {
        let faulty = self.faulty.as_ref().map_or(0, |(count, _)| *count);
        needs.gpus <= self.total.gpus - faulty
    }
}

fn takes_beside(needs: Demand, total: Demand, taken: Demand) -> bool {
    // A worker whose memory is unknown is not limited by it.
    let memory = match total.memory_bytes {
        0 => true,
        known => needs.memory_bytes <= known - taken.memory_bytes,
    };
    memory && needs.slots <= total.slots - taken.slots && needs.gpus <= total.gpus - taken.gpus
}

const NOTHING: Demand = Demand {
    slots: 0,
    gpus: 0,
    memory_bytes: 0,
};

/// Says in sentences why a job is not running, the most important first. There is always one.
pub fn explain(situation: &Situation, now: DateTime<Utc>) -> Vec<String> {
    match situation {
        Situation::Waiting {
            dependencies,
            not_before,
        } => waiting(dependencies, *not_before, now),
        Situation::Held { message } if message.is_empty() => {
            vec!["It is on hold; releasing it lets it go on.".to_owned()]
        }
        Situation::Held { message } => vec![format!(
            "It is on hold: {}. Releasing it lets it go on.",
            without_stop(message)
        )],
        Situation::Queued(queued) => turn(queued, now),
        Situation::Assigned {
            worker,
            connected,
            holders,
        } => vec![assigned(worker, *connected, holders)],
        Situation::Running {
            worker,
            since,
            unreachable_since,
            paused,
            stopping,
        } => {
            let mut sentences = Vec::new();
            if let Some(heard) = unreachable_since {
                sentences.push(format!(
                    "It was started on worker `{worker}`, which was last heard of {} ago; the job may well be running there.",
                    span(now - *heard)
                ));
            } else {
                sentences.push(format!(
                    "It has been running on worker `{worker}` for {}.",
                    span(now - *since)
                ));
            }
            if *stopping {
                sentences.push(
                    "It was told to stop, and its processes have not all ended yet.".to_owned(),
                );
            }
            if *paused {
                sentences.push("Its processes are frozen; resuming it thaws them.".to_owned());
            }
            sentences
        }
        Situation::Ended { state, message, at } => {
            let ago = span(now - *at);
            vec![if message.is_empty() {
                format!("It {} {ago} ago.", ended_verb(*state))
            } else {
                format!(
                    "It {} {ago} ago: {}.",
                    ended_verb(*state),
                    without_stop(message)
                )
            }]
        }
    }
}

fn ended_verb(state: JobState) -> &'static str {
    match state {
        JobState::Cancelled => "was cancelled",
        other => other.as_str(),
    }
}

fn waiting(
    dependencies: &[Unmet],
    not_before: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Vec<String> {
    let mut sentences: Vec<String> = dependencies
        .iter()
        .take(NAMED)
        .map(|unmet| {
            let wish = match unmet.condition {
                Condition::Ok => "to succeed",
                Condition::Failed => "to fail",
                Condition::Any => "to end",
            };
            match unmet.state {
                Some(state) => format!("It waits for job {} {wish}, which is {state}.", unmet.job),
                None => format!(
                    "It waits for job {} {wish}, which was deleted; only a person can let this job go on.",
                    unmet.job
                ),
            }
        })
        .collect();
    if dependencies.len() > NAMED {
        sentences.push(format!(
            "It waits for {} in all.",
            count(dependencies.len() as i64, "other job", "other jobs")
        ));
    }
    if let Some(time) = not_before.filter(|time| *time > now) {
        sentences.push(format!(
            "It may not run before {}, {} from now.",
            time.format("%Y-%m-%d %H:%M:%S UTC"),
            span(time - now)
        ));
    }
    if sentences.is_empty() {
        sentences.push("What it waited for is there; it is about to be queued.".to_owned());
    }
    sentences
}

fn assigned(worker: &str, connected: bool, holders: &[JobId]) -> String {
    if !connected {
        format!(
            "It is given to worker `{worker}`, which is not connected; whether it started is known once the worker is back."
        )
    } else if holders.is_empty() {
        format!("It is given to worker `{worker}` and about to start.")
    } else {
        format!(
            "It is next on worker `{worker}` and starts once there is room, which {}.",
            taken_by(holders)
        )
    }
}

fn turn(queued: &Queued, now: DateTime<Utc>) -> Vec<String> {
    let mut sentences = Vec::new();
    if queued.queue_paused {
        sentences.push(
            "The queue is paused, so nothing starts; resuming the queue lets jobs start."
                .to_owned(),
        );
    }
    if let Some(LeftBehind { attempt, worker }) = &queued.left_behind {
        sentences.push(format!(
            "Attempt {attempt} ended, but processes of it are left on worker `{worker}`; because the job is exclusive, it starts again once they are gone."
        ));
        return sentences;
    }
    let only = queued.pinned.as_ref().or(queued.checkpoint_on.as_ref());
    let eligible: Vec<&Candidate> = queued
        .workers
        .iter()
        .filter(|worker| only.is_none_or(|name| *name == worker.name))
        .collect();
    if let Some(obstacle) = no_worker(queued, &eligible, now) {
        sentences.push(obstacle);
        return sentences;
    }
    let active: Vec<&&Candidate> = eligible
        .iter()
        .filter(|worker| {
            worker.connected
                && !worker.paused
                && !worker.draining
                && worker.could_take(queued.needs)
        })
        .collect();
    let roomy = active.iter().find(|worker| worker.has_room(queued.needs));
    match (roomy, queued.first_ahead) {
        (None, _) => {
            for worker in active.iter().take(NAMED) {
                sentences.push(no_room(worker));
            }
            if active.len() > NAMED {
                sentences.push(format!(
                    "None of the {} workers that could run it has room.",
                    active.len()
                ));
            }
        }
        (Some(worker), Some(first)) if !queued.queue_paused => {
            let fill_in = if queued.limited {
                "this one may only fill in if its time limit ends before that"
            } else {
                "this one has no time limit, so it cannot fill in before that"
            };
            sentences.push(format!(
                "There is room on worker `{}`, but job {first} comes first and may need it; {fill_in}.",
                worker.name
            ));
        }
        (Some(_), None) if !queued.queue_paused => {
            sentences.push("It is first in the order and about to start.".to_owned());
        }
        (Some(_), _) => {}
    }
    if queued.ahead > 0 {
        sentences.push(format!(
            "{} {} ahead of it.",
            count(queued.ahead, "job", "jobs"),
            if queued.ahead == 1 { "is" } else { "are" }
        ));
    }
    sentences
}

/// Why no worker could take the job even if it were idle.
fn no_worker(queued: &Queued, eligible: &[&Candidate], now: DateTime<Utc>) -> Option<String> {
    if eligible.is_empty() {
        return Some(match &queued.pinned {
            Some(name) => unknown_worker(name),
            None => "No worker has ever connected.".to_owned(),
        });
    }
    let large: Vec<&&Candidate> = eligible
        .iter()
        .filter(|worker| worker.could_take(queued.needs))
        .collect();
    if large.is_empty() {
        let only = queued.pinned.as_ref().or(queued.checkpoint_on.as_ref());
        let totals: Vec<(&str, Demand)> = eligible
            .iter()
            .map(|worker| (worker.name.as_str(), worker.total))
            .collect();
        return Some(too_large(queued.needs, only.map(String::as_str), &totals));
    }
    let only = |worker: &Candidate| {
        if queued.pinned.is_some() {
            format!("Only worker `{}` may run it, and it", worker.name)
        } else if queued.checkpoint_on.is_some() {
            format!("Its checkpoint lies on worker `{}`, which", worker.name)
        } else if eligible.len() == 1 {
            format!("The only worker, `{}`,", worker.name)
        } else {
            format!("The only worker that could run it, `{}`,", worker.name)
        }
    };
    let connected: Vec<&&&Candidate> = large.iter().filter(|worker| worker.connected).collect();
    if connected.is_empty() {
        let last = large.iter().max_by_key(|worker| worker.last_seen)?;
        let heard = last.last_seen.map_or_else(String::new, |time| {
            format!(" (last heard of {} ago)", span(now - time))
        });
        return Some(if large.len() == 1 {
            format!("{} is not connected{heard}.", only(last))
        } else {
            format!(
                "None of the {} workers that could run it is connected; the last one was `{}`{heard}.",
                large.len(),
                last.name
            )
        });
    }
    if connected
        .iter()
        .all(|worker| worker.paused || worker.draining)
    {
        return Some(if let [worker] = connected.as_slice() {
            if worker.draining {
                format!(
                    "{} drains: it takes no new jobs until it is resumed.",
                    only(worker)
                )
            } else {
                format!("{} is paused; resuming it lets jobs start.", only(worker))
            }
        } else {
            format!(
                "All {} connected workers that could run it are paused or drain.",
                connected.len()
            )
        });
    }
    let without = |worker: &&&Candidate| {
        worker
            .faulty
            .clone()
            .filter(|_| !worker.has_gpus(queued.needs))
    };
    let broken: Option<Vec<_>> = connected.iter().map(|worker| without(worker)).collect();
    if let (Some(broken), [first, ..]) = (broken, connected.as_slice()) {
        let (number, fault) = broken.into_iter().next()?;
        return Some(format!(
            "{} has {} not work: {}. It starts once enough of them work.",
            only(first),
            count(number.into(), "GPU that does", "GPUs that do"),
            without_stop(&fault),
        ));
    }
    None
}

/// Why no known worker can ever take a job, in a sentence; `None` when one can, or when nothing is
/// known because no worker has ever connected. `workers` are all known ones with what they have.
pub fn never(needs: Demand, pinned: Option<&str>, workers: &[(&str, Demand)]) -> Option<String> {
    let eligible: Vec<(&str, Demand)> = workers
        .iter()
        .copied()
        .filter(|(name, _)| pinned.is_none_or(|pinned| pinned == *name))
        .collect();
    if eligible.is_empty() {
        return pinned.map(unknown_worker);
    }
    let fits = eligible
        .iter()
        .any(|(_, total)| takes_beside(needs, *total, NOTHING));
    (!fits).then(|| too_large(needs, pinned, &eligible))
}

fn unknown_worker(name: &str) -> String {
    format!("Only worker `{name}` may run it, and no worker of that name has ever connected.")
}

fn too_large(needs: Demand, only: Option<&str>, eligible: &[(&str, Demand)]) -> String {
    let mut lacking = Vec::new();
    let most = |amount: fn(&Demand) -> i64| {
        eligible
            .iter()
            .map(|(_, total)| amount(total))
            .max()
            .unwrap_or(0)
    };
    let gpus = most(|total| total.gpus.into());
    if i64::from(needs.gpus) > gpus {
        lacking.push((count(needs.gpus.into(), "GPU", "GPUs"), gpus.to_string()));
    }
    let slots = most(|total| total.slots.into());
    if i64::from(needs.slots) > slots {
        lacking.push((
            count(needs.slots.into(), "slot", "slots"),
            slots.to_string(),
        ));
    }
    let memory = most(|total| total.memory_bytes);
    if needs.memory_bytes > memory {
        lacking.push((
            format!("{} of memory", size(needs.memory_bytes)),
            size(memory),
        ));
    }
    let holder = match (only, eligible) {
        (Some(name), _) => format!("worker `{name}`, the only one that may run it,"),
        (None, [(name, _)]) => format!("the only worker, `{name}`,"),
        (None, _) => "the largest worker".to_owned(),
    };
    if lacking.is_empty() {
        return "No single worker has everything that it needs at once.".to_owned();
    }
    let needed: Vec<&str> = lacking.iter().map(|(need, _)| need.as_str()).collect();
    let has: Vec<&str> = lacking.iter().map(|(_, has)| has.as_str()).collect();
    format!(
        "It needs {}; {holder} has {}.",
        needed.join(" and "),
        has.join(" and ")
    )
}

fn no_room(worker: &Candidate) -> String {
    if worker.holders.is_empty() {
        return format!("Worker `{}` has no room at the moment.", worker.name);
    }
    format!(
        "It waits for room on worker `{}`, which {}.",
        worker.name,
        taken_by(&worker.holders)
    )
}

/// `is taken by jobs 38 and 39`.
fn taken_by(holders: &[JobId]) -> String {
    let named: Vec<String> = holders.iter().take(NAMED).map(JobId::to_string).collect();
    let more = holders.len().saturating_sub(NAMED);
    match (named.as_slice(), more) {
        ([one], _) => format!("is taken by job {one}"),
        ([first @ .., last], 0) => {
            format!("is taken by jobs {} and {last}", first.join(", "))
        }
        (all, more) => format!("is taken by jobs {} and {more} more", all.join(", ")),
    }
}

fn without_stop(sentence: &str) -> &str {
    sentence.trim_end().trim_end_matches('.')
}

fn count(number: i64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A length of time as people say it: `14 s`, `3 min 12 s`, `2 h 5 min`, `4 days 3 h`.
pub(crate) fn span(length: TimeDelta) -> String {
    let seconds = length.num_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!(
            "{} {} h",
            count(seconds / 86_400, "day", "days"),
            seconds % 86_400 / 3_600
        ),
    }
}

/// Bytes as people say them: `512 MiB`, `1.5 GiB`.
fn size(bytes: i64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(value.fract() > 0.05 && unit > 0);
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_000_000 + seconds, 0).unwrap()
    }

    fn worker(name: &str, slots: i32, taken: i32, holders: &[i64]) -> Candidate {
        Candidate {
            name: name.to_owned(),
            connected: true,
            last_seen: Some(at(0)),
            paused: false,
            draining: false,
            total: Demand {
                slots,
                gpus: 0,
                memory_bytes: 16 << 30,
            },
            faulty: None,
            taken: Demand {
                slots: taken,
                ..Demand::default()
            },
            holders: holders.iter().copied().map(JobId).collect(),
        }
    }

    fn queued(workers: Vec<Candidate>) -> Queued {
        Queued {
            needs: Demand::default(),
            pinned: None,
            checkpoint_on: None,
            limited: false,
            queue_paused: false,
            left_behind: None,
            ahead: 0,
            first_ahead: None,
            workers,
        }
    }

    fn said(queued: Queued) -> Vec<String> {
        explain(&Situation::Queued(queued), at(300))
    }

    #[test]
    fn an_exclusive_job_waits_for_what_an_attempt_left_behind() {
        let told = said(Queued {
            left_behind: Some(LeftBehind {
                attempt: 1,
                worker: "a".into(),
            }),
            ..queued(Vec::new())
        });
        assert_eq!(
            told,
            [
                "Attempt 1 ended, but processes of it are left on worker `a`; because the job is exclusive, it starts again once they are gone."
            ]
        );
    }

    #[test]
    fn what_can_never_run_is_known_at_once() {
        let total = |slots, gpus, memory_bytes| Demand {
            slots,
            gpus,
            memory_bytes,
        };
        let workers = [("a", total(2, 0, 1 << 30)), ("b", total(1, 2, 0))];
        let told = |needs, pinned| never(needs, pinned, &workers);
        assert_eq!(told(total(2, 0, 0), None), None);
        assert_eq!(told(total(1, 2, 1 << 40), None), None);
        assert_eq!(
            told(total(1, 3, 0), None).unwrap(),
            "It needs 3 GPUs; the largest worker has 2."
        );
        assert_eq!(
            told(total(2, 1, 0), None).unwrap(),
            "No single worker has everything that it needs at once."
        );
        assert_eq!(
            told(total(1, 1, 0), Some("a")).unwrap(),
            "It needs 1 GPU; worker `a`, the only one that may run it, has 0."
        );
        assert!(told(total(1, 0, 0), Some("c")).is_some());
        // Before the first worker has come, nothing is impossible.
        assert_eq!(never(total(9, 9, 0), None, &[]), None);
    }

    #[test]
    fn dependencies_are_named_with_their_state() {
        let situation = Situation::Waiting {
            dependencies: vec![
                Unmet {
                    job: JobId(40),
                    state: Some(JobState::Running),
                    condition: Condition::Ok,
                },
                Unmet {
                    job: JobId(41),
                    state: None,
                    condition: Condition::Any,
                },
            ],
            not_before: Some(at(14)),
        };
        assert_eq!(
            explain(&situation, at(0)),
            [
                "It waits for job 40 to succeed, which is running.",
                "It waits for job 41 to end, which was deleted; only a person can let this job go on.",
                "It may not run before 2026-11-18 11:06:54 UTC, 14 s from now.",
            ]
        );
    }

    #[test]
    fn a_time_that_has_come_is_no_reason() {
        let situation = Situation::Waiting {
            dependencies: vec![],
            not_before: Some(at(0)),
        };
        assert_eq!(
            explain(&situation, at(5)),
            ["What it waited for is there; it is about to be queued."]
        );
    }

    #[test]
    fn a_taken_slot_names_its_job_and_the_line_is_counted() {
        let mut facts = queued(vec![worker("alpha", 1, 1, &[38])]);
        facts.ahead = 12;
        facts.first_ahead = Some(JobId(39));
        assert_eq!(
            said(facts),
            [
                "It waits for room on worker `alpha`, which is taken by job 38.",
                "12 jobs are ahead of it.",
            ]
        );
    }

    #[test]
    fn many_holders_are_counted() {
        let facts = queued(vec![worker("alpha", 8, 8, &[1, 2, 3, 4, 5, 6, 7, 8])]);
        assert_eq!(
            said(facts),
            [
                "It waits for room on worker `alpha`, which is taken by jobs 1, 2, 3, 4, 5 and 3 more."
            ]
        );
    }

    #[test]
    fn the_first_in_an_idle_queue_is_about_to_start() {
        assert_eq!(
            said(queued(vec![worker("alpha", 1, 0, &[])])),
            ["It is first in the order and about to start."]
        );
    }

    #[test]
    fn a_reservation_is_told_with_the_way_around_it() {
        let mut facts = queued(vec![worker("alpha", 4, 2, &[38])]);
        facts.ahead = 1;
        facts.first_ahead = Some(JobId(39));
        assert_eq!(
            said(facts),
            [
                "There is room on worker `alpha`, but job 39 comes first and may need it; this one has no time limit, so it cannot fill in before that.",
                "1 job is ahead of it.",
            ]
        );
    }

    #[test]
    fn a_paused_queue_comes_first() {
        let mut facts = queued(vec![worker("alpha", 1, 0, &[])]);
        facts.queue_paused = true;
        assert_eq!(
            said(facts),
            ["The queue is paused, so nothing starts; resuming the queue lets jobs start."]
        );
    }

    #[test]
    fn what_no_worker_has_is_told_with_what_they_have() {
        let mut facts = queued(vec![worker("alpha", 1, 0, &[]), worker("beta", 2, 0, &[])]);
        facts.needs = Demand {
            slots: 1,
            gpus: 2,
            memory_bytes: 24 << 30,
        };
        assert_eq!(
            said(facts),
            ["It needs 2 GPUs and 24 GiB of memory; the largest worker has 0 and 16 GiB."]
        );
        let mut facts = queued(vec![worker("alpha", 1, 0, &[])]);
        facts.needs.slots = 3;
        assert_eq!(
            said(facts),
            ["It needs 3 slots; the only worker, `alpha`, has 1."]
        );
    }

    #[test]
    fn amounts_that_only_different_workers_have_are_told() {
        let mut gpu = worker("gpu", 1, 0, &[]);
        gpu.total.gpus = 4;
        let mut facts = queued(vec![worker("big", 8, 0, &[]), gpu]);
        facts.needs = Demand {
            slots: 4,
            gpus: 1,
            memory_bytes: 0,
        };
        assert_eq!(
            said(facts),
            ["No single worker has everything that it needs at once."]
        );
    }

    #[test]
    fn a_pinned_worker_that_is_missing_away_or_paused_is_told() {
        let pinned = |workers: Vec<Candidate>| Queued {
            pinned: Some("alpha".to_owned()),
            ..queued(workers)
        };
        assert_eq!(
            said(pinned(vec![worker("beta", 1, 0, &[])])),
            ["Only worker `alpha` may run it, and no worker of that name has ever connected."]
        );
        let away = Candidate {
            connected: false,
            ..worker("alpha", 1, 0, &[])
        };
        assert_eq!(
            said(pinned(vec![away, worker("beta", 1, 0, &[])])),
            [
                "Only worker `alpha` may run it, and it is not connected (last heard of 5 min 0 s ago)."
            ]
        );
        let paused = Candidate {
            paused: true,
            ..worker("alpha", 1, 0, &[])
        };
        assert_eq!(
            said(pinned(vec![paused])),
            ["Only worker `alpha` may run it, and it is paused; resuming it lets jobs start."]
        );
    }

    #[test]
    fn a_checkpoint_elsewhere_is_told() {
        let away = Candidate {
            connected: false,
            ..worker("alpha", 1, 0, &[])
        };
        let facts = Queued {
            checkpoint_on: Some("alpha".to_owned()),
            ..queued(vec![away, worker("beta", 1, 0, &[])])
        };
        assert_eq!(
            said(facts),
            [
                "Its checkpoint lies on worker `alpha`, which is not connected (last heard of 5 min 0 s ago)."
            ]
        );
    }

    #[test]
    fn unknown_memory_limits_nothing() {
        let mut unknown = worker("alpha", 1, 0, &[]);
        unknown.total.memory_bytes = 0;
        let mut facts = queued(vec![unknown]);
        facts.needs.memory_bytes = 1 << 40;
        assert_eq!(
            said(facts),
            ["It is first in the order and about to start."]
        );
    }

    #[test]
    fn no_worker_at_all_is_told() {
        assert_eq!(said(queued(vec![])), ["No worker has ever connected."]);
    }

    #[test]
    fn a_silent_worker_does_not_make_its_job_fail() {
        let situation = Situation::Running {
            worker: "alpha".to_owned(),
            since: at(0),
            unreachable_since: Some(at(60)),
            paused: false,
            stopping: true,
        };
        assert_eq!(
            explain(&situation, at(252)),
            [
                "It was started on worker `alpha`, which was last heard of 3 min 12 s ago; the job may well be running there.",
                "It was told to stop, and its processes have not all ended yet.",
            ]
        );
    }

    #[test]
    fn an_end_is_told_once_with_one_full_stop() {
        let situation = Situation::Ended {
            state: JobState::Failed,
            message: "It exited with code 3.".to_owned(),
            at: at(0),
        };
        assert_eq!(
            explain(&situation, at(7_500)),
            ["It failed 2 h 5 min ago: It exited with code 3."]
        );
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(512 << 20), "512 MiB");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(size(100), "100 bytes");
    }
}
