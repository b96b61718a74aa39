//! Operations, as they are generated. What they are about is a number that chooses among whatever is
//! there when its turn comes, so that a sequence from which operations were left out still makes sense.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use qctl_server_core::Condition;

/// Chooses among what is there.
pub(super) type Pick = u8;

/// An operation, in the term that began last or in the one before.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// By a coordinator that leads no more, if there was one.
    pub(super) late: bool,
    pub(super) what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Submit {
        /// Under the request id of the submission before.
        again: bool,
        jobs: Vec<Wanted>,
    },
    /// Submits an ended job again, from its newest checkpoint when it is wanted and there is one.
    Retry {
        job: Pick,
        resumes: bool,
    },
    Delete(Pick),
    Person(Wish),
    /// Decides now, and writes later, when much may have changed.
    Decide(Wish),
    WriteLate,
    Greet(Greeting),
    Steer {
        worker: Pick,
        mode: Option<Pick>,
        slots: Option<i32>,
    },
    PauseQueue(bool),
    FinishDrains,
    /// A round of the dispatcher, with so many jobs kept ready at each worker.
    Dispatch {
        ready: usize,
    },
    /// Assigns jobs whatever they are.
    Assign(Vec<(Pick, Pick)>),
    Report {
        attempt: Pick,
        /// By a worker that does not have it.
        stranger: bool,
        what: Told,
    },
    /// An attempt starts, publishes so many checkpoints, ends, and leaves processes behind or none.
    Lives {
        attempt: Pick,
        checkpoints: i32,
        code: i32,
        freed: bool,
    },
    Silent {
        attempt: Pick,
        how: Silence,
    },
    /// Ends waits, and settles dependencies that were overlooked.
    LookAround,
    /// Stores output of an attempt, at the right place or beside it.
    Output {
        attempt: Pick,
        astray: bool,
        length: i32,
    },
    /// Output is stored between what is decided about its attempt and the writing of that.
    Overtaken {
        attempt: Pick,
        length: i32,
    },
    Copy(Pick),
    GiveUpCheckpoints {
        ended_for: u32,
    },
    /// Another term begins, unless the record has changed since it was seen.
    Claim {
        outdated: bool,
    },
    Renew,
    /// The leader gives its lease back.
    Release,
    Wait {
        seconds: u32,
    },
}

/// A job to be submitted.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) slots: i32,
    pub(super) gpus: i32,
    pub(super) memory_bytes: i64,
    pub(super) priority: i32,
    pub(super) retries: i32,
    pub(super) resumes: i32,
    pub(super) exclusive: bool,
    pub(super) hold: bool,
    pub(super) time_limit: Option<u64>,
    pub(super) pinned: Option<Pick>,
    pub(super) after: Vec<(Pick, Condition)>,
}

/// What a person wants of a job.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) job: Pick,
    pub(super) what: Wanting,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Wanting {
    Cancel,
    Hold,
    HoldForCheckpoint,
    /// Held because its checkpoint is away, and let go on without it.
    Anywhere,
    Release,
    Interrupt,
    RunNow(Pick),
}

/// A worker that connects.
#[derive(Clone, Debug)]
pub(super) struct Greeting {
    pub(super) worker: Pick,
    pub(super) rebooted: bool,
    pub(super) lost_its_spool: bool,
    /// How far each attempt that it may hold has come there; `None` for one it knows nothing of.
    pub(super) holds: Vec<Option<Pick>>,
    /// Attempts and numbers of checkpoints that were not answered.
    pub(super) checkpoints: Vec<(Pick, i32)>,
}

/// What a worker reports.
#[derive(Clone, Debug)]
pub(super) enum Told {
    Started,
    Ended {
        end: Pick,
        code: Option<i32>,
        stopped: bool,
        output: i64,
    },
    Freed,
    Returned(bool),
    Paused(bool),
    Stuck,
    Checkpoint {
        number: i32,
        hashed: bool,
        removed: bool,
    },
    /// It resumes, and finds the newest checkpoint damaged or not.
    Resumes {
        damaged: bool,
    },
    NotSent,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Silence {
    Unreachable,
    RecordGone,
    Back,
    GivenUp,
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        Just(Condition::Ok),
        Just(Condition::Failed),
        Just(Condition::Any)
    ]
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let demand = (1..4, 0..3, 0_i64..3);
    let budget = (-1..2, 0..3, 0..3);
    let flags = (
        prop::bool::weighted(0.4),
        prop::bool::weighted(0.15),
        option::weighted(0.2, 1_u64..1_000),
        option::weighted(0.15, any::<Pick>()),
    );
    let after = vec((any::<Pick>(), condition()), 0..3);
    (demand, budget, flags, after).prop_map(
        |(
            (slots, gpus, memory),
            (priority, retries, resumes),
            (exclusive, hold, limit, pinned),
            after,
        )| {
            Wanted {
                slots,
                gpus,
                memory_bytes: memory << 30,
                priority,
                retries,
                resumes,
                exclusive,
                hold,
                time_limit: limit,
                pinned,
                after,
            }
        },
    )
}

fn wish() -> impl Strategy<Value = Wish> {
    let what = prop_oneof![
        3 => Just(Wanting::Cancel),
        2 => Just(Wanting::Hold),
        1 => Just(Wanting::HoldForCheckpoint),
        3 => Just(Wanting::Anywhere),
        3 => Just(Wanting::Release),
        1 => Just(Wanting::Interrupt),
        2 => any::<Pick>().prop_map(Wanting::RunNow),
    ];
    (any::<Pick>(), what).prop_map(|(job, what)| Wish { job, what })
}

fn greeting() -> impl Strategy<Value = Greeting> {
    (
        any::<Pick>(),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.1),
        vec(option::weighted(0.8, any::<Pick>()), 0..6),
        vec((any::<Pick>(), 1..5), 0..3),
    )
        .prop_map(
            |(worker, rebooted, lost_its_spool, holds, checkpoints)| Greeting {
                worker,
                rebooted,
                lost_its_spool,
                holds,
                checkpoints,
            },
        )
}

fn told() -> impl Strategy<Value = Told> {
    let ended = (
        any::<Pick>(),
        option::weighted(0.8, 0..3),
        prop::bool::weighted(0.1),
        0_i64..200,
    );
    let checkpoint = (1..6, any::<bool>(), prop::bool::weighted(0.1));
    prop_oneof![
        5 => Just(Told::Started),
        5 => ended.prop_map(|(end, code, stopped, output)| Told::Ended { end, code, stopped, output }),
        3 => Just(Told::Freed),
        2 => any::<bool>().prop_map(Told::Returned),
        1 => any::<bool>().prop_map(Told::Paused),
        1 => Just(Told::Stuck),
        4 => checkpoint.prop_map(|(number, hashed, removed)| Told::Checkpoint { number, hashed, removed }),
        1 => any::<bool>().prop_map(|damaged| Told::Resumes { damaged }),
        1 => Just(Told::NotSent),
    ]
}

/// Operations, after two workers have greeted.
pub(super) fn any_steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let greets = |worker| Step {
        late: false,
        what: What::Greet(Greeting {
            worker,
            rebooted: false,
            lost_its_spool: false,
            holds: Vec::new(),
            checkpoints: Vec::new(),
        }),
    };
    vec(any_step(), 1..most).prop_map(move |steps| {
        let begun = [1, 2].map(greets);
        begun.into_iter().chain(steps).collect()
    })
}

/// Any operation, those more often without which others find nothing to do.
fn any_step() -> impl Strategy<Value = Step> {
    let silence = prop_oneof![
        Just(Silence::Unreachable),
        Just(Silence::RecordGone),
        Just(Silence::Back),
        Just(Silence::GivenUp)
    ];
    let steer = (any::<Pick>(), option::of(any::<Pick>()), option::of(1..5));
    let report = (any::<Pick>(), prop::bool::weighted(0.05), told());
    let submit = (prop::bool::weighted(0.1), vec(wanted(), 1..3));
    let output = (any::<Pick>(), prop::bool::weighted(0.2), 1..200);
    let what = prop_oneof![
        6 => submit.prop_map(|(again, jobs)| What::Submit { again, jobs }),
        3 => (any::<Pick>(), prop::bool::weighted(0.8)).prop_map(|(job, resumes)| What::Retry { job, resumes }),
        1 => any::<Pick>().prop_map(What::Delete),
        6 => wish().prop_map(What::Person),
        3 => wish().prop_map(What::Decide),
        3 => Just(What::WriteLate),
        6 => greeting().prop_map(What::Greet),
        1 => steer.prop_map(|(worker, mode, slots)| What::Steer { worker, mode, slots }),
        1 => prop::bool::weighted(0.3).prop_map(What::PauseQueue),
        1 => Just(What::FinishDrains),
        8 => (0_usize..3).prop_map(|ready| What::Dispatch { ready }),
        2 => vec((any::<Pick>(), any::<Pick>()), 1..3).prop_map(What::Assign),
        16 => report
            .prop_map(|(attempt, stranger, what)| What::Report { attempt, stranger, what }),
        8 => (any::<Pick>(), 0..3, 0..3, prop::bool::weighted(0.6)).prop_map(
            |(attempt, checkpoints, code, freed)| What::Lives {
                attempt,
                checkpoints,
                code,
                freed,
            }
        ),
        3 => (any::<Pick>(), silence).prop_map(|(attempt, how)| What::Silent { attempt, how }),
        3 => Just(What::LookAround),
        3 => output.prop_map(|(attempt, astray, length)| What::Output { attempt, astray, length }),
        2 => (any::<Pick>(), 1..200)
            .prop_map(|(attempt, length)| What::Overtaken { attempt, length }),
        1 => any::<Pick>().prop_map(What::Copy),
        3 => (0_u32..600).prop_map(|ended_for| What::GiveUpCheckpoints { ended_for }),
        1 => prop::bool::weighted(0.3).prop_map(|outdated| What::Claim { outdated }),
        1 => Just(What::Renew),
        1 => Just(What::Release),
        3 => (1_u32..900).prop_map(|seconds| What::Wait { seconds }),
    ];
    (prop::bool::weighted(0.05), what).prop_map(|(late, what)| Step { late, what })
}
