//! `qctl down`: stops the coordinator and the worker.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use qctl_proto::error::{Fault, Reason};
use qctl_proto::home::Home;
use qctl_proto::v1;
use rustix::process::Signal;
use serde::Serialize;

use crate::context::{Context, request_id, unary};
use crate::error::{Error, Problem};
use crate::exit;
use crate::keeper::coordinator::Coordinator;
use crate::keeper::process::{self, Process};
use crate::keeper::report::Report;
use crate::keeper::{Program, lock};
use crate::output::text;

/// Jobs that are named one by one; more are only counted.
const NAMED_JOBS: usize = 8;
/// How long cancelled jobs may take to end, beyond their own grace.
const CANCEL_PATIENCE: Duration = Duration::from_secs(120);
/// How long the programs may take to stop before `--force` forces them.
const FORCE_AFTER: Duration = Duration::from_secs(3);
/// Running jobs asked for at once.
const PAGE: i32 = 1000;

/// Arguments of `qctl down`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Cancel running jobs first, and wait until they have ended
    #[arg(long)]
    pub jobs: bool,
    /// Kill what does not stop at once; with --jobs, the jobs too
    #[arg(long)]
    pub force: bool,
}

/// What `down --json` prints.
#[derive(Debug, Default, Serialize)]
struct Document {
    state: &'static str,
    was_running: bool,
    /// Jobs that go on without the coordinator; `null` when it could not be asked.
    running_jobs: Option<Vec<i64>>,
    cancelled_jobs: Vec<i64>,
}

/// The processes of one home.
struct Found {
    keeper: Option<Process>,
    server: Option<Process>,
    worker: Option<Process>,
}

impl Found {
    fn look(home: &Home) -> Result<Self, Error> {
        let adopt = |program: Program| {
            Process::adopt(&program.record(home)).map(|(process, _settings)| process)
        };
        Ok(Self {
            keeper: lock::holder(&home.keeper_lock())
                .map_err(Error::file("look at", home.keeper_lock()))?,
            server: adopt(Program::Server),
            worker: adopt(Program::Worker),
        })
    }

    fn is_nothing(&self) -> bool {
        self.keeper.is_none() && self.server.is_none() && self.worker.is_none()
    }
}

/// Runs the command.
///
/// # Errors
/// When jobs or programs do not stop.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let home = context.home()?.clone();
    let mut found = Found::look(&home)?;
    if found.is_nothing() {
        return tell_nothing_ran(context);
    }
    let coordinator = match &found.server {
        Some(_) => Coordinator::find(&home, context.config().authority()).await,
        None => None,
    };
    let mut cancelled = BTreeSet::new();
    if args.jobs {
        let coordinator = coordinator.as_ref().ok_or_else(cannot_cancel)?;
        let was_paused = coordinator
            .status()
            .await
            .ok_or_else(cannot_cancel)?
            .queue_paused;
        // Without the pause every cancelled job would make room for the next one.
        set_paused(coordinator, true).await?;
        let stopped = tokio::select! {
            stopped = cancel_all(coordinator, &mut found, args.force) => Some(stopped),
            _ = tokio::signal::ctrl_c() => None,
        };
        // The pause was ours and must not meet the user at the next start.
        let unpaused = if was_paused {
            Ok(())
        } else {
            set_paused(coordinator, false).await
        };
        let Some(stopped) = stopped else {
            unpaused?;
            context
                .output
                .remark("interrupted: the queue goes on; jobs that were cancelled already end");
            return Ok(ExitCode::from(exit::INTERRUPTED));
        };
        cancelled = stopped?;
        unpaused?;
    }
    let running = match &coordinator {
        Some(coordinator) => running_jobs(coordinator).await.ok(),
        None => None,
    };
    stop(&mut found, args.force).await?;
    sweep(&home, args.force).await?;
    Report::remove(&home);
    tell(context, running.as_deref(), &cancelled)?;
    Ok(ExitCode::SUCCESS)
}

fn tell_nothing_ran(context: &Context) -> Result<ExitCode, Error> {
    if context.output.json {
        context.output.print_document(&Document {
            state: "down",
            ..Document::default()
        })?;
    } else {
        context.output.print("qctl is not running\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(
    context: &Context,
    running: Option<&[v1::Job]>,
    cancelled: &BTreeSet<i64>,
) -> Result<(), Error> {
    if context.output.json {
        return context.output.print_document(&Document {
            state: "down",
            was_running: true,
            running_jobs: running.map(|jobs| jobs.iter().map(|job| job.id).collect()),
            cancelled_jobs: cancelled.iter().copied().collect(),
        });
    }
    let mut message = String::from("qctl is down");
    if !cancelled.is_empty() {
        let count = i64::try_from(cancelled.len()).unwrap_or(i64::MAX);
        message.push_str(&format!("; {} cancelled", text::counted(count, "job")));
    }
    message.push('\n');
    match running {
        None => message.push_str(
            "  the coordinator did not answer, so running jobs are not known; they go on\n",
        ),
        Some([]) => {}
        Some(jobs) => message.push_str(&left_running(jobs)),
    }
    context.output.print(&message)
}

/// Which jobs go on, and how they are found again.
fn left_running(jobs: &[v1::Job]) -> String {
    let count = i64::try_from(jobs.len()).unwrap_or(i64::MAX);
    let mut named: Vec<String> = jobs
        .iter()
        .take(NAMED_JOBS)
        .map(|job| {
            let name = job.spec.as_ref().map_or("", |spec| spec.name.as_str());
            format!("{} {}", job.id, text::printable(name))
        })
        .collect();
    if jobs.len() > NAMED_JOBS {
        named.push(format!("and {} more", jobs.len() - NAMED_JOBS));
    }
    let (goes, is) = if count == 1 {
        ("goes", "its result is")
    } else {
        ("go", "their results are")
    };
    format!(
        "  {} {goes} on without it: {}\n  {is} collected at the next `qctl up`; `qctl down --jobs` would have stopped them\n",
        text::counted(count, "running job"),
        named.join(", "),
    )
}

fn cannot_cancel() -> Error {
    Problem::new(
        "UNREACHABLE",
        exit::UNREACHABLE,
        "the coordinator does not answer, so jobs cannot be cancelled; nothing was stopped",
    )
    .hint("bring it up again first, or stop without cancelling jobs")
    .next("qctl up")
    .into()
}

/// Cancels what runs, and what starts meanwhile, until nothing runs; then stops the worker, so that
/// nothing can start any more.
async fn cancel_all(
    coordinator: &Coordinator,
    found: &mut Found,
    force: bool,
) -> Result<BTreeSet<i64>, Error> {
    let cancelled = cancel_running(coordinator, force).await?;
    stop_worker(found).await;
    Ok(cancelled)
}

async fn cancel_running(coordinator: &Coordinator, force: bool) -> Result<BTreeSet<i64>, Error> {
    let mut cancelled = BTreeSet::new();
    let deadline = Instant::now() + CANCEL_PATIENCE;
    loop {
        let running = running_jobs(coordinator).await?;
        if running.is_empty() {
            return Ok(cancelled);
        }
        for job in &running {
            if cancelled.insert(job.id) {
                cancel(coordinator, job.id, force).await?;
            }
        }
        if Instant::now() >= deadline {
            if force {
                return Ok(cancelled);
            }
            let ids: Vec<_> = running.iter().map(|job| job.id.to_string()).collect();
            return Err(Problem::new(
                "JOBS_RUN_ON",
                exit::TEMPORARY,
                format!(
                    "{} did not end within {} seconds: {}",
                    text::counted(i64::try_from(ids.len()).unwrap_or(i64::MAX), "job"),
                    CANCEL_PATIENCE.as_secs(),
                    ids.join(", ")
                ),
            )
            .hint("nothing else was stopped")
            .next("qctl down --jobs --force")
            .into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn running_jobs(coordinator: &Coordinator) -> Result<Vec<v1::Job>, Error> {
    let request = v1::ListJobsRequest {
        filter: Some(v1::JobFilter {
            states: vec![v1::job::State::Running.into()],
            ..Default::default()
        }),
        page_size: PAGE,
        page_token: String::new(),
    };
    let answer = coordinator.jobs().list_jobs(unary(request)).await?;
    let mut jobs = answer.into_inner().jobs;
    jobs.sort_unstable_by_key(|job| job.id);
    Ok(jobs)
}

async fn cancel(coordinator: &Coordinator, id: i64, force: bool) -> Result<(), Error> {
    let request = v1::CancelJobRequest {
        request_id: request_id(),
        id,
        grace: force.then(prost_types::Duration::default),
    };
    match coordinator.jobs().cancel_job(unary(request)).await {
        Ok(_) => Ok(()),
        // It ended by itself, which is as good.
        Err(status)
            if Fault::from_status(&status).is_some_and(|fault| {
                matches!(fault.reason, Reason::JobEnded | Reason::JobNotFound)
            }) =>
        {
            Ok(())
        }
        Err(status) => Err(status.into()),
    }
}

async fn set_paused(coordinator: &Coordinator, paused: bool) -> Result<(), Error> {
    let request = v1::SetQueuePausedRequest {
        request_id: request_id(),
        paused,
    };
    coordinator.queue().set_queue_paused(unary(request)).await?;
    Ok(())
}

async fn stop_worker(found: &mut Found) {
    let Some(worker) = &mut found.worker else {
        return;
    };
    match &found.keeper {
        Some(keeper) => {
            keeper.signal(Signal::USR1);
            worker
                .ended_within(Program::Worker.grace() + Duration::from_secs(5))
                .await;
        }
        None => {
            process::stop(worker, Program::Worker.grace()).await;
        }
    }
}

/// Stops the keeper, which stops the others; without a keeper, the others themselves.
async fn stop(found: &mut Found, force: bool) -> Result<(), Error> {
    let Some(keeper) = &mut found.keeper else {
        return Ok(());
    };
    let patience = if force {
        FORCE_AFTER
    } else {
        Program::Server.grace() + Program::Worker.grace() + Duration::from_secs(5)
    };
    keeper.signal(Signal::TERM);
    if keeper.ended_within(patience).await {
        return Ok(());
    }
    if !force {
        return Err(Problem::new(
            "NOT_DOWN",
            exit::TEMPORARY,
            format!(
                "the keeper (pid {}) did not stop within {} seconds",
                keeper.pid(),
                patience.as_secs()
            ),
        )
        .next("qctl down --force")
        .into());
    }
    // A second request makes the keeper force its programs; one that is stuck is forced itself.
    keeper.signal(Signal::TERM);
    if !keeper.ended_within(FORCE_AFTER).await {
        keeper.signal(Signal::KILL);
        keeper.ended_within(FORCE_AFTER).await;
    }
    Ok(())
}

/// Stops programs that no keeper looks after.
async fn sweep(home: &Home, force: bool) -> Result<(), Error> {
    for program in [Program::Worker, Program::Server] {
        let record = program.record(home);
        let Some((mut process, _settings)) = Process::adopt(&record) else {
            continue;
        };
        let grace = if force { FORCE_AFTER } else { program.grace() };
        if !process::stop(&mut process, grace).await {
            return Err(Problem::new(
                "NOT_DOWN",
                exit::TEMPORARY,
                format!(
                    "the {} (pid {}) cannot be stopped, not even by force",
                    program.title(),
                    process.pid()
                ),
            )
            .hint("it hangs in the kernel, on a disk that does not answer, say; nothing but a restart of the machine helps")
            .into());
        }
        let _ = std::fs::remove_file(&record);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs(count: i64) -> Vec<v1::Job> {
        (1..=count)
            .map(|id| v1::Job {
                id,
                spec: Some(v1::JobSpec {
                    name: format!("job\n{id}"),
                    ..Default::default()
                }),
                ..Default::default()
            })
            .collect()
    }

    #[test]
    fn jobs_that_go_on_are_named_and_the_many_counted() {
        assert_eq!(
            left_running(&jobs(1)),
            "  1 running job goes on without it: 1 job\\n1\n  its result is collected at the next `qctl up`; `qctl down --jobs` would have stopped them\n"
        );
        let many = left_running(&jobs(12));
        assert!(many.contains("12 running jobs go on"), "{many}");
        assert!(many.contains("8 job\\n8, and 4 more"), "{many}");
    }

    #[tokio::test]
    async fn programs_without_a_keeper_are_stopped_too() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        std::fs::create_dir_all(crate::keeper::report::folder(&home)).unwrap();
        let record = Program::Worker.record(&home);
        let mut command = std::process::Command::new("sleep");
        command.arg("600");
        let mut orphan = Process::start(&mut command, &Default::default(), &record).unwrap();
        let found = Found::look(&home).unwrap();
        assert!(found.keeper.is_none() && found.worker.is_some());
        sweep(&home, false).await.unwrap();
        assert!(orphan.ended_within(Duration::from_secs(30)).await);
        assert!(Found::look(&home).unwrap().is_nothing());
    }
}
