//! Jobs, attempts and events as people read them. Pure.

use std::fmt::Write as _;

use qctl_proto::v1;
use v1::job::State;

use super::table::{Cell, Column, Paint, Table, facts};
use super::{View, document, silence, text, time};
use crate::args::{causes, values};

/// The colour of a job's state.
pub fn paint(job: &v1::Job) -> Paint {
    if job.unreachable {
        return Paint::Yellow;
    }
    match job.state() {
        State::Succeeded => Paint::Green,
        State::Failed => Paint::Red,
        State::Running => Paint::Blue,
        State::Held => Paint::Yellow,
        State::Cancelled => Paint::Dim,
        State::Unspecified | State::Waiting | State::Queued => Paint::Plain,
    }
}

/// A job's state with what qualifies it: `running (paused)`, `failed (exit 3)`.
pub fn state(job: &v1::Job) -> String {
    let word = document::job_state(job.state());
    let note = match job.state() {
        State::Running if job.unreachable => "unreachable".to_owned(),
        State::Running if job.paused => "paused".to_owned(),
        State::Failed => job.outcome.as_ref().map(short_outcome).unwrap_or_default(),
        _ => String::new(),
    };
    if note.is_empty() {
        word.to_owned()
    } else {
        format!("{word} ({note})")
    }
}

/// How an attempt ended, in a word or two: `exit 3`, `SIGKILL`, `time limit`.
fn short_outcome(outcome: &v1::Outcome) -> String {
    match (outcome.cause.as_str(), outcome.exit_code, outcome.signal) {
        ("exit", Some(code), _) => format!("exit {code}"),
        ("signal", _, Some(signal)) => values::signal_name(signal),
        (cause, _, _) => cause.replace('_', " "),
    }
}

/// How an attempt ended, with its class: `failed (exit 3)`.
fn outcome(outcome: &v1::Outcome) -> String {
    let kind = document::outcome_kind(outcome.kind()).replace('_', " ");
    match outcome.kind() {
        v1::outcome::Kind::Succeeded | v1::outcome::Kind::Cancelled => kind,
        _ => match short_outcome(outcome) {
            how if how == kind => kind,
            how => format!("{kind} ({how})"),
        },
    }
}

/// Progress in one phrase: `12/30 images, 40 %, 2.1/s, 8.6s left`.
pub fn progress(progress: &v1::Progress) -> String {
    let mut parts = Vec::new();
    if progress.unit == "%" {
        // Only the percentage is known, and it follows.
    } else if progress.total > 0.0 {
        parts.push(
            format!(
                "{}/{} {}",
                number(progress.done),
                number(progress.total),
                progress.unit
            )
            .trim_end()
            .to_owned(),
        );
    } else if progress.done > 0.0 {
        parts.push(
            format!("{} {}", number(progress.done), progress.unit)
                .trim_end()
                .to_owned(),
        );
    }
    if let Some(percent) = progress.percent {
        parts.push(format!("{percent:.0} %"));
    }
    if let Some(rate) = progress.rate.filter(|rate| *rate > 0.0) {
        parts.push(if rate >= 1.0 {
            format!("{rate:.1}/s")
        } else {
            format!("{:.1}/min", rate * 60.0)
        });
    }
    if let Some(eta) = time::span(progress.eta.as_ref()) {
        parts.push(format!("{} left", time::duration(eta)));
    }
    let mut phrase = parts.join(", ");
    if !progress.message.is_empty() {
        if !phrase.is_empty() {
            phrase.push_str(" · ");
        }
        phrase.push_str(&text::printable(&progress.message));
    }
    phrase
}

/// The shortest that says how far a job is: `12/30` or `40 %`.
fn short_progress(job: &v1::Job) -> String {
    let Some(progress) = job
        .progress
        .as_ref()
        .filter(|_| job.state() == State::Running)
    else {
        return String::new();
    };
    match progress.percent {
        Some(percent) => format!("{percent:.0} %"),
        None if progress.total > 0.0 => {
            format!("{}/{}", number(progress.done), number(progress.total))
        }
        None => number(progress.done),
    }
}

/// A count as people read it.
pub fn number(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

/// How long a job has run, or ran: from its latest start to its end or now. Empty when it never
/// started.
fn run_time(job: &v1::Job, view: &View) -> String {
    let Some(started) = time::instant(job.started_at.as_ref()) else {
        return String::new();
    };
    let until = match job.state() {
        State::Running => view.now,
        _ => match time::instant(job.ended_at.as_ref()) {
            Some(ended) => ended,
            None => return String::new(),
        },
    };
    time::duration((until - started).to_std().unwrap_or_default())
}

fn spec(job: &v1::Job) -> v1::JobSpec {
    job.spec.clone().unwrap_or_default()
}

fn name(job: &v1::Job) -> &str {
    job.spec.as_ref().map_or("", |spec| spec.name.as_str())
}

/// A table of jobs.
pub fn list(jobs: &[v1::Job], view: &View) -> String {
    let mut table = Table::new(&[
        Column::right("JOB"),
        Column::left("STATE").shrinking(9),
        Column::left("NAME").shrinking(12).plain_at_most(40),
        Column::right("PROGRESS"),
        Column::right("TIME"),
        Column::left("SUBMITTED"),
        Column::left("TRACKER").shrinking(8),
        Column::left("WORKER").shrinking(8),
    ]);
    for job in jobs {
        let submitted = time::instant(job.created_at.as_ref())
            .map(|at| time::ago(at, view.now, view.zone))
            .unwrap_or_default();
        let tracker = job.spec.as_ref().map_or("", |spec| spec.tracker.as_str());
        table.row(vec![
            job.id.to_string().into(),
            Cell::painted(state(job), paint(job)),
            name(job).into(),
            short_progress(job).into(),
            run_time(job, view).into(),
            Cell::painted(submitted, Paint::Dim),
            tracker.into(),
            Cell::painted(&job.worker, Paint::Dim),
        ]);
    }
    table.render(view)
}

/// Two or three lines after a submission: what was made, and its links.
pub fn submitted(job: &v1::Job, replayed: bool, view: &View) -> String {
    let mut out = String::new();
    let id = Paint::Bold.on(&job.id.to_string(), view.colour);
    let verb = if replayed {
        "Already submitted as job"
    } else {
        "Submitted job"
    };
    let _ = write!(out, "{verb} {id}  {}", text::printable(name(job)));
    if job.retry_of != 0 {
        let _ = write!(out, "  (again, after job {})", job.retry_of);
    }
    if !matches!(job.state(), State::Queued | State::Running) {
        let _ = write!(out, "  ({})", document::job_state(job.state()));
    }
    out.push('\n');
    out.push_str(&links(job));
    out
}

/// The lines with a job's links.
pub fn links(job: &v1::Job) -> String {
    let mut out = String::new();
    if !job.url.is_empty() {
        let _ = writeln!(out, "  {}", text::printable(&job.url));
    }
    if !job.tracker_url.is_empty() {
        let tracker = job.spec.as_ref().map_or("", |spec| spec.tracker.as_str());
        let _ = writeln!(
            out,
            "  {}: {}",
            text::printable(tracker),
            text::printable(&job.tracker_url)
        );
    }
    out
}

/// One sentence on how a job ended, or where it is: `Job 42 pictures succeeded after 3m12s`.
pub fn ended(job: &v1::Job, view: &View) -> String {
    let word = Paint::on(paint(job), &state(job), view.colour);
    let mut out = format!("Job {} {} {word}", job.id, text::printable(name(job)));
    let time = run_time(job, view);
    if !time.is_empty() {
        let _ = write!(out, " after {time}");
    }
    if job.attempt > 1 {
        let _ = write!(out, ", attempt {}", job.attempt);
    }
    out.push('\n');
    out
}

/// What is to be said about a job's state, unless the state says it already. How an earlier attempt
/// ended is no news of a job that goes on.
fn news(job: &v1::Job) -> &str {
    let ended = matches!(job.state(), State::Failed | State::Cancelled);
    let message = match (&job.outcome, job.state()) {
        (_, State::Succeeded) => "",
        (Some(outcome), _) if job.message.is_empty() && ended => &outcome.message,
        _ => &job.message,
    };
    let state = state(job);
    let is_said = state == message || state.ends_with(&format!("({message})"));
    if is_said { "" } else { message }
}

/// Everything about a job. `used` are the lines of [`measures::attempt`](super::measures::attempt).
pub fn show(
    job: &v1::Job,
    attempts: &[v1::Attempt],
    used: &str,
    events: &[v1::Event],
    view: &View,
) -> String {
    let spec = spec(job);
    let at = |stamp: Option<&prost_types::Timestamp>| {
        time::instant(stamp).map_or_else(String::new, |at| {
            let full = time::full(at, view.zone);
            let ago = time::ago(at, view.now, view.zone);
            // Long ago is told by its day, which stands there already.
            if full.starts_with(&ago) {
                full
            } else {
                format!("{full} ({ago})")
            }
        })
    };
    let message = news(job);
    let printable = |value: &str| text::printable(value);
    let mut out = format!(
        "{} {}  {}\n",
        Paint::Bold.on(&format!("Job {}", job.id), view.colour),
        printable(&spec.name),
        paint(job).on(&state(job), view.colour)
    );
    if !message.is_empty() {
        let _ = writeln!(out, "{}", printable(message));
    }
    out.push('\n');
    let mut labels: Vec<_> = spec.labels.iter().collect();
    labels.sort();
    let labels: Vec<String> = labels
        .into_iter()
        .map(|(key, value)| match value.as_str() {
            "" => printable(key),
            value => format!("{}={}", printable(key), printable(value)),
        })
        .collect();
    let command = if spec.shell {
        spec.command.last().map(|text| text::printable(text))
    } else {
        Some(text::shell_words(&spec.command))
    };
    let worker = match (job.worker.as_str(), spec.worker.as_str()) {
        ("", "") => String::new(),
        ("", wanted) => format!("waits for {}", printable(wanted)),
        (worker, _) => printable(worker),
    };
    out.push_str(&facts(
        &[
            ("Command", command.unwrap_or_default()),
            ("Directory", printable(&spec.cwd)),
            ("Worker", worker),
            ("Tracker", printable(&spec.tracker)),
            ("Workspace", printable(&spec.workspace)),
            ("Labels", labels.join(", ")),
            ("Template", printable(&spec.template)),
            ("Needs", needs(&spec)),
            ("Limits", limits(job, &spec)),
            ("On silence", silence::rules(&spec)),
            ("Retries", retry_rules(&spec)),
            ("Notices", notices(&spec).to_owned()),
            ("After", after(&spec)),
            ("Repeats", known(job.retry_of, |id| format!("job {id}"))),
            ("Submitted", at(job.created_at.as_ref())),
            ("Not before", at(job.not_before.as_ref())),
            ("Started", at(job.started_at.as_ref())),
            ("Ended", at(job.ended_at.as_ref())),
            ("Run time", run_time(job, view)),
            ("Silence", silence::clock(attempts, view)),
            (
                "Progress",
                job.progress.as_ref().map(progress).unwrap_or_default(),
            ),
            ("Checkpoint", checkpoint(job)),
            (
                "Artifacts",
                spec.artifacts
                    .iter()
                    .map(|path| printable(path))
                    .collect::<Vec<_>>()
                    .join(", "),
            ),
            ("Page", printable(&job.url)),
            ("Tracker's page", printable(&job.tracker_url)),
        ],
        view,
    ));
    if !attempts.is_empty() {
        out.push('\n');
        out.push_str(&attempts_table(attempts, view));
        for attempt in attempts {
            if attempt.log_missing > 0 {
                let _ = writeln!(
                    out,
                    "  attempt {}: {} of its output are missing ({} bytes); the log marks where",
                    attempt.number,
                    text::bytes(attempt.log_missing),
                    attempt.log_missing
                );
            }
            for note in &attempt.not_enforced {
                let _ = writeln!(out, "  attempt {}: {}", attempt.number, printable(note));
            }
            out.push_str(&silence::evidence(attempt));
        }
    }
    if !used.is_empty() {
        out.push('\n');
        out.push_str(used);
    }
    if !events.is_empty() {
        out.push('\n');
        out.push_str(&history(events, false, view));
    }
    out
}

fn checkpoint(job: &v1::Job) -> String {
    match job.checkpoint_name.as_str() {
        "" => String::new(),
        name => format!(
            "{} in {}",
            text::printable(name),
            text::printable(&job.checkpoint)
        ),
    }
}

fn known(value: i64, show: impl Fn(i64) -> String) -> String {
    if value == 0 {
        String::new()
    } else {
        show(value)
    }
}

fn needs(spec: &v1::JobSpec) -> String {
    let demand = spec.demand.unwrap_or_default();
    let mut parts = Vec::new();
    if demand.slots > 1 {
        parts.push(format!("{} slots", demand.slots));
    }
    if demand.gpus > 0 {
        parts.push(text::counted(demand.gpus.into(), "GPU"));
    }
    if demand.memory_bytes > 0 {
        parts.push(format!("{} of memory", text::bytes(demand.memory_bytes)));
    }
    if spec.exclusive {
        parts.push("one attempt at a time".to_owned());
    }
    if spec.pty {
        parts.push("a pseudo-terminal".to_owned());
    }
    parts.join(", ")
}

fn limits(job: &v1::Job, spec: &v1::JobSpec) -> String {
    let mut parts = Vec::new();
    if spec.log_limit_bytes > 0 {
        parts.push(format!("{} of output", text::bytes(spec.log_limit_bytes)));
    }
    if let Some(limit) = time::span(spec.time_limit.as_ref()) {
        parts.push(format!("{} an attempt", time::exact(limit)));
    }
    if let Some(before) = time::span(spec.warn_before.as_ref()) {
        let signal = match spec.warn_signal {
            0 => "SIGUSR1".to_owned(),
            signal => values::signal_name(signal),
        };
        parts.push(format!("{signal} {} before", time::exact(before)));
    }
    if let Some(idle) = time::span(spec.gpu_idle.as_ref()) {
        parts.push(match idle.is_zero() {
            true => "may leave its GPUs unused".to_owned(),
            false => format!("{} without using its GPUs", time::exact(idle)),
        });
    }
    parts.push(match job.retries_left {
        1 => "1 retry left".to_owned(),
        left => format!("{left} retries left"),
    });
    parts.push(format!(
        "{} left",
        text::counted(job.resumes_left.into(), "resume")
    ));
    if spec.priority != 0 {
        parts.push(format!("priority {}", spec.priority));
    }
    parts.join(", ")
}

/// What the budget of retries is used for, where the job says something about that.
fn retry_rules(spec: &v1::JobSpec) -> String {
    let list = |found: &[v1::FailureCause]| {
        let words: Vec<String> = found.iter().map(causes::shown).collect();
        words.join(", ")
    };
    let mut parts = Vec::new();
    if !spec.retry_on.is_empty() {
        parts.push(format!("only {}", list(&spec.retry_on)));
    }
    if !spec.no_retry_on.is_empty() {
        parts.push(format!("not {}", list(&spec.no_retry_on)));
    }
    if let Some(code) = spec.checkpoint_exit_code {
        parts.push(format!("exit {code} goes on from its checkpoint"));
    }
    if !spec.contradicted_by.is_empty() {
        let pattern = text::printable(&spec.contradicted_by);
        parts.push(format!("a line like {pattern} is a failure"));
    }
    parts.join("; ")
}

/// When people are told of the job, where it is not as usual.
fn notices(spec: &v1::JobSpec) -> &'static str {
    use v1::job_spec::Notify;
    match spec.notify() {
        Notify::Unspecified => "",
        Notify::Always => "of its end, however it ends",
        Notify::Failure => "of what goes wrong only",
        Notify::Never => "none",
    }
}

fn after(spec: &v1::JobSpec) -> String {
    let parts: Vec<String> = spec
        .after
        .iter()
        .map(|after| match after.condition() {
            v1::dependency::Condition::Any => format!("job {} ended", after.job_id),
            v1::dependency::Condition::Failed => format!("job {} failed", after.job_id),
            _ => format!("job {} succeeded", after.job_id),
        })
        .collect();
    parts.join(", ")
}

fn attempts_table(attempts: &[v1::Attempt], view: &View) -> String {
    let mut table = Table::new(&[
        Column::right("ATTEMPT"),
        Column::left("STATE").shrinking(10),
        Column::left("WORKER").shrinking(8),
        Column::left("STARTED"),
        Column::right("TIME"),
        Column::right("OUTPUT"),
        Column::left("RESUMED FROM").shrinking(12),
    ]);
    for attempt in attempts {
        let (word, paint) = match &attempt.outcome {
            Some(how) => (
                outcome(how),
                match how.kind() {
                    v1::outcome::Kind::Succeeded => Paint::Green,
                    v1::outcome::Kind::Failed => Paint::Red,
                    _ => Paint::Yellow,
                },
            ),
            None if attempt.unreachable => ("unreachable".to_owned(), Paint::Yellow),
            None => (
                document::attempt_state(attempt.state()).to_owned(),
                Paint::Blue,
            ),
        };
        let started = time::instant(attempt.started_at.as_ref());
        let duration = time::span(attempt.duration.as_ref()).or_else(|| {
            let running = attempt.state() == v1::attempt::State::Running;
            started
                .filter(|_| running)
                .and_then(|started| (view.now - started).to_std().ok())
        });
        table.row(vec![
            attempt.number.to_string().into(),
            Cell::painted(word, paint),
            Cell::from(&attempt.worker),
            started
                .map(|at| time::clock(at, view.now, view.zone))
                .unwrap_or_default()
                .into(),
            duration.map(time::duration).unwrap_or_default().into(),
            text::bytes(attempt.log_end.unwrap_or(attempt.log_stored)).into(),
            Cell::from(&attempt.resumed_from),
        ]);
    }
    table.render(view)
}

/// Events, oldest first; with the job's number where they are of several, else with the attempt's.
pub fn history(events: &[v1::Event], of_several: bool, view: &View) -> String {
    let mut table = Table::new(&[
        Column::left("TIME"),
        Column::right(if of_several { "JOB" } else { "ATTEMPT" }),
        Column::left("EVENT"),
        Column::left("WHAT").shrinking(20),
        Column::left("BY").shrinking(8),
    ]);
    for event in events {
        let subject = match (event.job_id, event.attempt) {
            (0, _) => String::new(),
            (_, 0) if !of_several => String::new(),
            (_, attempt) if !of_several => attempt.to_string(),
            (job, 0) => job.to_string(),
            (job, attempt) => format!("{job}.{attempt}"),
        };
        table.row(vec![
            Cell::painted(
                time::instant(event.time.as_ref())
                    .map(|at| time::clock(at, view.now, view.zone))
                    .unwrap_or_default(),
                Paint::Dim,
            ),
            subject.into(),
            event.kind.replace('_', " ").into(),
            Cell::from(&event.message),
            Cell::painted(&event.actor, Paint::Dim),
        ]);
    }
    table.render(view)
}
