//! How machines do, in words: what is looked at, how it is, and what a person can do about it. Pure.

use crate::alarm::Kind;
use crate::id::JobId;
use crate::outcome::words;
use std::fmt;

/// A job that could start waits so long, in seconds, before that is worth a look.
const WAITS_LONG: i64 = 60;
/// Failures within an hour from which on a machine fails its jobs rather than the jobs themselves.
const MANY_FAILURES: i64 = 3;

/// How something does, from the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Well.
    Well,
    /// Something should be looked at.
    Watch,
    /// Something must be done.
    Bad,
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// Whether it can be reached.
    Connection,
    /// The database.
    Database,
    /// Processors.
    Cpu,
    /// Memory.
    Memory,
    /// The disk that qctl writes to.
    Disk,
    /// Graphics cards.
    Gpu,
    /// The clock.
    Clock,
    /// Whether it sees what its jobs do.
    Looks,
    /// How long jobs wait that could run.
    Queue,
    /// How many attempts fail.
    Errors,
    /// Whether people can be told.
    Notices,
}

words!(Topic {
    Connection = "connection",
    Database = "database",
    Cpu = "cpu",
    Memory = "memory",
    Disk = "disk",
    Gpu = "gpu",
    Clock = "clock",
    Looks = "looks",
    Queue = "queue",
    Errors = "errors",
    Notices = "notices",
});

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub topic: Topic,
    /// How it does.
    pub health: Health,
    /// The same in a sentence, with its figures.
    pub message: String,
    /// What to do about it; empty when nothing is to be done.
    pub advice: String,
}

/// Attempts that ended in the last hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// All of them.
    pub all: i64,
    /// Those that failed.
    pub failed: i64,
}

/// The job that has waited longest of those that could run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oldest {
    /// It.
    pub job: JobId,
    /// How long it has waited, in seconds.
    pub seconds: i64,
}

/// A worker's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// It is heard.
    Heard,
    /// It is not, for so many seconds, and runs so many jobs as far as is known.
    Silent {
        /// For so long.
        seconds: i64,
        /// Jobs there.
        jobs: i64,
    },
    /// It is not, and has nothing to do.
    Off,
}

/// A disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Room that is left.
    pub free: i64,
    /// Its size.
    pub total: i64,
    /// Less than this is an alarm; `None` when that alarm was switched off.
    pub few: Option<i64>,
}

/// What is known of a worker and its machine.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerFacts {
    /// Its name.
    pub name: String,
    /// Its connection.
    pub connection: Connection,
    /// Whether it takes jobs.
    pub takes_jobs: bool,
    /// Slots that are free.
    pub free_slots: i64,
    /// Share of its processors that is busy, 0 to 1.
    pub busy: Option<f64>,
    /// Memory that can be had, and all of it, in bytes.
    pub memory: Option<(i64, i64)>,
    /// Room on its disk.
    pub disk: Option<Room>,
    /// Temperature of its hottest card.
    pub gpu_temperature: Option<i32>,
    /// Alarms about the machine that last.
    pub alarms: Vec<Kind>,
    /// The job that has waited longest of those that could run there.
    pub oldest: Option<Oldest>,
    /// What ended there.
    pub ends: Ends,
}

/// What is known of the coordinator and its machine.
#[derive(Clone, Debug, PartialEq)]
pub struct CoordinatorFacts {
    /// The name of its machine.
    pub host: String,
    /// What its database is; it answers, or nobody could ask.
    pub database: String,
    /// Room on its disk.
    pub disk: Option<Room>,
    /// Alarms about the machine that last.
    pub alarms: Vec<Kind>,
    /// Nothing new is started because a person wants it so.
    pub paused: bool,
    /// Jobs that wait their turn.
    pub queued: i64,
    /// The job that has waited longest of them.
    pub oldest: Option<Oldest>,
    /// What ended anywhere.
    pub ends: Ends,
    /// Ways to people, and what each refuses with, if it does.
    pub channels: Vec<(String, Option<String>)>,
}

/// How a worker does.
pub fn of_worker(facts: &WorkerFacts) -> Vec<Finding> {
    let mut found = vec![connection(facts)];
    if facts.connection == Connection::Heard {
        found.extend(facts.busy.map(|busy| cpu(facts, busy)));
        found.extend(facts.memory.map(|(free, all)| memory(facts, free, all)));
        found.extend(
            facts
                .disk
                .map(|room| disk(&facts.name, &facts.alarms, room)),
        );
        found.extend(facts.gpu_temperature.map(|degrees| gpu(facts, degrees)));
        found.push(clock(facts));
        found.push(looks(facts));
        found.push(queue_of_worker(facts));
    }
    found.push(errors(facts.ends, &facts.name));
    found
}

/// How the coordinator does.
pub fn of_coordinator(facts: &CoordinatorFacts) -> Vec<Finding> {
    let mut found = vec![Finding::well(
        Topic::Database,
        format!("{} answers", facts.database),
    )];
    found.extend(
        facts
            .disk
            .map(|room| disk(&facts.host, &facts.alarms, room)),
    );
    found.push(queue(facts));
    found.push(errors(facts.ends, "all workers together"));
    found.push(notices(facts));
    found
}

/// The worst of some findings.
pub fn worst<'a>(findings: impl IntoIterator<Item = &'a Finding>) -> Health {
    let healths = findings.into_iter().map(|finding| finding.health);
    healths.max().unwrap_or(Health::Well)
}

impl Finding {
    fn well(topic: Topic, message: impl Into<String>) -> Self {
        Self::new(topic, Health::Well, message, "")
    }

    fn new(
        topic: Topic,
        health: Health,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            topic,
            health,
            message: message.into(),
            advice: advice.into(),
        }
    }
}

fn connection(facts: &WorkerFacts) -> Finding {
    let topic = Topic::Connection;
    match facts.connection {
        Connection::Heard if facts.takes_jobs => Finding::well(topic, "connected"),
        Connection::Heard => Finding::new(
            topic,
            Health::Watch,
            "connected, but takes no new jobs",
            format!(
                "let it take jobs again: `qctl worker resume {}`",
                facts.name
            ),
        ),
        Connection::Silent { seconds, jobs } => Finding::new(
            topic,
            Health::Bad,
            format!(
                "not heard of for {}, and {}",
                length(seconds),
                match jobs {
                    0 => "had no job".to_owned(),
                    1 => "its job may be running".to_owned(),
                    _ => format!("{jobs} of its jobs may be running"),
                }
            ),
            format!(
                "look whether {} is on and has a network; its jobs are left alone meanwhile",
                facts.name
            ),
        ),
        Connection::Off => Finding::new(
            topic,
            Health::Watch,
            "not connected, and runs nothing",
            format!("to use it, start it there: `qctl up` on {}", facts.name),
        ),
    }
}

fn cpu(facts: &WorkerFacts, busy: f64) -> Finding {
    let message = format!("{:.0} % of the processors are busy", busy * 100.0);
    if facts.alarms.contains(&Kind::Cpu) {
        return Finding::new(
            Topic::Cpu,
            Health::Watch,
            format!("{message}, for a while now"),
            format!(
                "run fewer jobs at a time there (`--slots` of the worker on {}), or end other programs",
                facts.name
            ),
        );
    }
    Finding::well(Topic::Cpu, message)
}

fn memory(facts: &WorkerFacts, free: i64, all: i64) -> Finding {
    let message = format!("{} of {} are free", bytes(free), bytes(all));
    let share = 1.0 - free as f64 / all.max(1) as f64;
    let health = match share {
        share if share >= 0.95 || facts.alarms.contains(&Kind::Memory) => Health::Bad,
        share if share >= 0.9 || facts.alarms.contains(&Kind::OutOfMemory) => Health::Watch,
        _ => return Finding::well(Topic::Memory, message),
    };
    let message = match facts.alarms.contains(&Kind::OutOfMemory) {
        true => format!("{message}; the system ended programs there for want of memory"),
        false => message,
    };
    Finding::new(
        Topic::Memory,
        health,
        message,
        format!(
            "end what is not needed on {}, or run fewer jobs at a time; `qctl workers` shows what they use",
            facts.name
        ),
    )
}

fn disk(machine: &str, alarms: &[Kind], room: Room) -> Finding {
    let Room { free, total, few } = room;
    let message = format!("{} of {} are free", bytes(free), bytes(total));
    let few = few.unwrap_or_default();
    let health = if alarms.contains(&Kind::Disk) || free < few {
        Health::Bad
    } else if free < few.saturating_mul(2) {
        Health::Watch
    } else {
        return Finding::well(Topic::Disk, message);
    };
    Finding::new(
        Topic::Disk,
        health,
        format!("the disk of {machine} has {} left", bytes(free)),
        "delete old jobs with their output and saved states by `qctl cleanup 7`, or make room otherwise",
    )
}

fn gpu(facts: &WorkerFacts, degrees: i32) -> Finding {
    let message = format!("the hottest card has {degrees} °C");
    if facts.alarms.contains(&Kind::GpuTemperature) {
        return Finding::new(
            Topic::Gpu,
            Health::Watch,
            message,
            "look at its fans, the dust, and the room",
        );
    }
    Finding::well(Topic::Gpu, message)
}

fn clock(facts: &WorkerFacts) -> Finding {
    if facts.alarms.contains(&Kind::Clock) {
        return Finding::new(
            Topic::Clock,
            Health::Watch,
            "the clock was put back a short while ago",
            "look whether the machine sets its clock by the network",
        );
    }
    Finding::well(Topic::Clock, "the clock runs evenly")
}

fn looks(facts: &WorkerFacts) -> Finding {
    if facts.alarms.contains(&Kind::Looks) {
        return Finding::new(
            Topic::Looks,
            Health::Bad,
            "it answers, but cannot look at its machine, so its jobs are not watched",
            "often a disk or network folder there does not answer; look at that machine",
        );
    }
    Finding::well(Topic::Looks, "its jobs are watched")
}

fn queue_of_worker(facts: &WorkerFacts) -> Finding {
    let Some(oldest) = facts.oldest else {
        return Finding::well(Topic::Queue, "no job waits that could run there");
    };
    let message = format!(
        "job {} has waited for {}",
        oldest.job,
        length(oldest.seconds)
    );
    if facts.takes_jobs && facts.free_slots > 0 && oldest.seconds >= WAITS_LONG {
        return Finding::new(
            Topic::Queue,
            Health::Watch,
            format!("{message} although {} slots are free", facts.free_slots),
            format!("see why it does not start: `qctl why {}`", oldest.job),
        );
    }
    Finding::well(Topic::Queue, format!("{message} for its turn"))
}

fn queue(facts: &CoordinatorFacts) -> Finding {
    let waits = match facts.oldest {
        None => "no job waits".to_owned(),
        Some(oldest) if facts.queued <= 1 => {
            format!("job {} has waited {}", oldest.job, length(oldest.seconds))
        }
        Some(oldest) => format!(
            "{} jobs wait, job {} longest: {}",
            facts.queued,
            oldest.job,
            length(oldest.seconds)
        ),
    };
    if facts.paused {
        return Finding::new(
            Topic::Queue,
            Health::Watch,
            format!("paused, so nothing new starts; {waits}"),
            "let it go on: `qctl queue resume`",
        );
    }
    Finding::well(Topic::Queue, waits)
}

fn errors(ends: Ends, of: &str) -> Finding {
    let Ends { all, failed } = ends;
    if all == 0 {
        return Finding::well(Topic::Errors, "nothing ended in the last hour");
    }
    let message = format!("{failed} of {all} attempts failed in the last hour");
    if failed == 0 {
        return Finding::well(Topic::Errors, message);
    }
    let health = match failed * 2 >= all {
        true if failed >= MANY_FAILURES => Health::Bad,
        true => Health::Watch,
        false => return Finding::well(Topic::Errors, message),
    };
    Finding::new(
        Topic::Errors,
        health,
        message,
        format!("see what failures of {of} have in common: `qctl errors --since 1h`"),
    )
}

fn notices(facts: &CoordinatorFacts) -> Finding {
    if facts.channels.is_empty() {
        return Finding::new(
            Topic::Notices,
            Health::Watch,
            "nobody is told when something stops working",
            "set up a way to your phone: docs/notifications.md",
        );
    }
    let refusing = facts
        .channels
        .iter()
        .find_map(|(name, problem)| Some((name, problem.as_ref()?)));
    if let Some((name, problem)) = refusing {
        return Finding::new(
            Topic::Notices,
            Health::Bad,
            format!("{name} refuses: {problem}"),
            "correct its settings and try: `qctl notices test`",
        );
    }
    let names: Vec<&str> = facts
        .channels
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    Finding::well(
        Topic::Notices,
        format!("people are told by {}", names.join(", ")),
    )
}

/// Bytes as people read them.
fn bytes(bytes: i64) -> String {
    match bytes as f64 {
        bytes if bytes >= 1e9 => format!("{:.1} GB", bytes / 1e9),
        bytes => format!("{:.0} MB", bytes / 1e6),
    }
}

/// A length as people read it.
fn length(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(free: i64) -> Room {
        Room {
            free,
            total: 1_000_000_000_000,
            few: Some(20_000_000_000),
        }
    }

    fn worker() -> WorkerFacts {
        WorkerFacts {
            name: "gpu1".into(),
            connection: Connection::Heard,
            takes_jobs: true,
            free_slots: 0,
            busy: Some(0.5),
            memory: Some((32_000_000_000, 64_000_000_000)),
            disk: Some(room(500_000_000_000)),
            gpu_temperature: Some(60),
            alarms: Vec::new(),
            oldest: None,
            ends: Ends::default(),
        }
    }

    fn coordinator() -> CoordinatorFacts {
        CoordinatorFacts {
            host: "home".into(),
            database: "PostgreSQL 17".into(),
            disk: None,
            alarms: Vec::new(),
            paused: false,
            queued: 0,
            oldest: None,
            ends: Ends::default(),
            channels: Vec::new(),
        }
    }

    fn bad(facts: &WorkerFacts) -> Vec<(Topic, Health)> {
        of_worker(facts)
            .into_iter()
            .filter(|finding| finding.health != Health::Well)
            .map(|finding| {
                assert!(!finding.advice.is_empty(), "{finding:?}");
                (finding.topic, finding.health)
            })
            .collect()
    }

    #[test]
    fn a_healthy_worker_needs_nothing() {
        assert!(bad(&worker()).is_empty());
        assert!(
            of_worker(&worker())
                .iter()
                .all(|finding| finding.advice.is_empty())
        );
        let waiting = WorkerFacts {
            oldest: Some(Oldest {
                job: JobId(7),
                seconds: 9_000,
            }),
            ends: Ends { all: 10, failed: 2 },
            ..worker()
        };
        assert!(
            bad(&waiting).is_empty(),
            "full slots and few failures are normal"
        );
    }

    #[test]
    fn one_and_none_are_told_as_such() {
        let silent = |jobs| {
            let seconds = 9;
            let facts = WorkerFacts {
                connection: Connection::Silent { seconds, jobs },
                ..worker()
            };
            connection(&facts).message
        };
        assert_eq!(silent(0), "not heard of for 9 s, and had no job");
        assert_eq!(
            silent(1),
            "not heard of for 9 s, and its job may be running"
        );
        assert_eq!(
            silent(2),
            "not heard of for 9 s, and 2 of its jobs may be running"
        );
        let waits = |queued| {
            let facts = CoordinatorFacts {
                queued,
                oldest: Some(Oldest {
                    job: JobId(7),
                    seconds: 9,
                }),
                ..coordinator()
            };
            queue(&facts).message
        };
        assert_eq!(waits(1), "job 7 has waited 9 s");
        assert_eq!(waits(2), "2 jobs wait, job 7 longest: 9 s");
    }

    #[test]
    fn a_disk_is_judged_by_the_limit_that_was_chosen() {
        for (free, few, expected) in [
            (12, Some(20), Health::Bad),
            (12, Some(5), Health::Well),
            (8, Some(5), Health::Watch),
            (1, None, Health::Well),
        ] {
            let gigabytes = |count: i64| count * 1_000_000_000;
            let room = Room {
                few: few.map(gigabytes),
                ..room(gigabytes(free))
            };
            assert_eq!(disk("gpu1", &[], room).health, expected, "{room:?}");
        }
    }

    #[test]
    fn what_is_wrong_has_figures_and_advice() {
        let full = WorkerFacts {
            disk: Some(room(3_000_000_000)),
            ..worker()
        };
        let found = of_worker(&full);
        let disk = found
            .iter()
            .find(|finding| finding.topic == Topic::Disk)
            .unwrap();
        assert_eq!(disk.message, "the disk of gpu1 has 3.0 GB left");
        assert!(disk.advice.contains("qctl cleanup"), "{disk:?}");
        for (facts, expected) in [
            (full, (Topic::Disk, Health::Bad)),
            (
                WorkerFacts {
                    memory: Some((1_000_000_000, 64_000_000_000)),
                    ..worker()
                },
                (Topic::Memory, Health::Bad),
            ),
            (
                WorkerFacts {
                    free_slots: 1,
                    oldest: Some(Oldest {
                        job: JobId(7),
                        seconds: 840,
                    }),
                    ..worker()
                },
                (Topic::Queue, Health::Watch),
            ),
            (
                WorkerFacts {
                    ends: Ends { all: 4, failed: 4 },
                    ..worker()
                },
                (Topic::Errors, Health::Bad),
            ),
            (
                WorkerFacts {
                    alarms: vec![Kind::Looks],
                    ..worker()
                },
                (Topic::Looks, Health::Bad),
            ),
            (
                WorkerFacts {
                    connection: Connection::Silent {
                        seconds: 400,
                        jobs: 1,
                    },
                    ..worker()
                },
                (Topic::Connection, Health::Bad),
            ),
        ] {
            assert_eq!(bad(&facts), [expected]);
        }
    }

    #[test]
    fn a_coordinator_that_tells_nobody_says_so() {
        let facts = coordinator();
        let found = of_coordinator(&facts);
        assert_eq!(worst(&found), Health::Watch);
        let told = CoordinatorFacts {
            channels: vec![("pushover".into(), None)],
            ..facts.clone()
        };
        assert_eq!(worst(&of_coordinator(&told)), Health::Well);
        let refused = CoordinatorFacts {
            channels: vec![("pushover".into(), Some("token is wrong".into()))],
            ..facts
        };
        assert_eq!(worst(&of_coordinator(&refused)), Health::Bad);
    }
}
