//! What a notice says, by the names that the catalogue of words knows.

use chrono::{DateTime, TimeDelta, Utc};
use qctl_notify::{Fact, Facts};
use qctl_server_core::Cause;
use qctl_server_core::gpu::GpuFaultKind;
use qctl_server_core::notice::over::LATE;
use qctl_server_core::notice::{Class, Details, Notice};

use crate::store::notices::OpenNotice;

/// The facts of a notice in the outbox.
pub(super) fn of(notice: &OpenNotice, now: DateTime<Utc>) -> Facts {
    let mut facts = of_details(notice.class, &notice.details, &notice.worker);
    if now - notice.created_at >= LATE {
        facts.insert("told".to_owned(), Fact::Text("late".to_owned()));
    }
    let happened_at = notice.details.happened_at.unwrap_or(notice.created_at);
    // Others say since when.
    let has_time = notice.details.since.is_some() || notice.class == Class::Test;
    if now - happened_at >= LATE && !has_time {
        facts.insert("at".to_owned(), Fact::Time(happened_at));
    }
    if let (Some(times), Some(first)) = (notice.details.times, notice.details.first)
        && times > 1
    {
        facts.insert("times".to_owned(), Fact::Number(times.into()));
        facts.insert("first".to_owned(), Fact::Time(first));
    }
    if let Some(job) = notice.job {
        facts.insert("job".to_owned(), Fact::Text(job.to_string()));
        facts.insert("name".to_owned(), Fact::Text(notice.job_name.clone()));
    }
    facts
}

fn of_details(class: Class, details: &Details, worker: &str) -> Facts {
    let mut facts = Facts::new();
    let mut fact = |name: &str, fact: Fact| {
        facts.insert(name.to_owned(), fact);
    };
    let worker = match worker {
        // A job that never ran anywhere.
        "" => "?",
        worker => worker,
    };
    fact("worker", Fact::Text(worker.to_owned()));
    if let Some(cause) = details.cause {
        fact("cause", Fact::Text(cause.as_str().to_owned()));
    }
    let number = |number: Option<i32>| number.map(|number| Fact::Text(number.to_string()));
    for (name, value) in [
        ("code", number(details.exit_code)),
        ("signal", number(details.signal)),
        ("ran", Some(Fact::Seconds(details.seconds.unwrap_or(0)))),
        ("since", details.since.map(Fact::Time)),
        ("next", details.next_at.map(Fact::Time)),
        ("left", details.left.map(|left| Fact::Number(left.into()))),
    ] {
        if let Some(value) = value {
            fact(name, value);
        }
    }
    for (name, text) in [
        ("checkpoint", &details.checkpoint),
        ("doing", &details.doing),
        ("held", &details.held),
        ("name", &details.name),
        // A job that is skipped is told with the one that it waited for, and what became of that.
        ("other", &details.name),
        ("state", &details.held),
        ("place", &details.place),
        ("text", &details.text),
        ("value", &details.value),
        ("limit", &details.limit),
    ] {
        fact(name, Fact::Text(text.clone()));
    }
    if let Some(fault) = &details.gpu {
        fact("gpu", Fact::Text(fault.called()));
        fact("fault", Fact::Text(fault.kind.as_str().to_owned()));
        fact("number", Fact::Text(fault.number.to_string()));
        fact("unused", Fact::Seconds(fault.number));
    }
    // A catalogue can tell words apart, not whether there is one.
    let word =
        |yes: bool, is: &str, is_not: &str| Fact::Text(if yes { is } else { is_not }.to_owned());
    fact("stops", word(details.next_at.is_some(), "yes", "no"));
    fact(
        "from",
        word(details.checkpoint.is_empty(), "start", "checkpoint"),
    );
    // Why a program could not be started is what the shim says about it, as good as a last line.
    let line = match details.cause {
        Some(Cause::CannotStart) if details.line.is_empty() => &details.text,
        _ => &details.line,
    };
    if !line.is_empty() {
        fact("line", Fact::Text(line.clone()));
    }
    let quote = quoted(class, details);
    if !quote.is_empty() {
        fact("quote", Fact::Text(quote.to_owned()));
    }
    facts
}

/// What a program said in its own words, which no catalogue can translate.
fn quoted(class: Class, details: &Details) -> &str {
    match (class, details.cause) {
        (
            Class::JobRefused
            | Class::SubmissionRefused
            | Class::DatabaseAway
            | Class::DatabaseRefuses
            | Class::CoordinatorAway
            | Class::Panic
            | Class::Trouble
            | Class::ChannelRefused,
            _,
        ) => &details.text,
        // What is to be known of it has its own words.
        (Class::JobHeld, _) => "",
        // These are shown as the last line, or are said by it.
        (_, Some(Cause::CannotStart | Cause::Contradicted)) => "",
        // The catalogue names every fault of a GPU, except what only a probe can say.
        (Class::GpuFaulty, _) => match &details.gpu {
            Some(fault) if fault.kind == GpuFaultKind::Unfit => &details.text,
            _ => "",
        },
        (_, Some(Cause::GpuFault | Cause::GpuFallback)) if details.gpu.is_some() => "",
        // What the worker says about the end of an attempt follows our own sentence about it.
        (_, Some(_)) => details.text.split_once(": ").map_or("", |(_, said)| said),
        _ => "",
    }
}

/// The facts of a notice that goes by a file.
pub(super) fn of_filed(notice: &Notice) -> Facts {
    of_details(notice.class, &notice.details, &notice.worker)
}

/// A notice of a file, as the history keeps it. `None` when this version knows no such class.
pub(super) fn read_filed(filed: &qctl_notify::outbox::Filed) -> Option<Notice> {
    let text = |name: &str| match filed.facts.get(name) {
        Some(Fact::Text(text)) => text.clone(),
        _ => String::new(),
    };
    let time = |name: &str| match filed.facts.get(name) {
        Some(Fact::Time(at)) => Some(*at),
        _ => None,
    };
    let details = Details {
        seconds: match filed.facts.get("ran") {
            Some(Fact::Seconds(seconds)) => Some(*seconds),
            _ => None,
        },
        since: time("since"),
        next_at: time("next"),
        name: text("name"),
        place: text("place"),
        text: text("text"),
        ..Details::default()
    };
    Some(Notice {
        signature: filed.signature.clone(),
        worker: text("worker"),
        ..Notice::about(Class::parse(&filed.class)?, filed.subject.clone(), details)
    })
}

/// A length as the core counts it.
pub(super) fn delta(length: std::time::Duration) -> TimeDelta {
    TimeDelta::from_std(length).unwrap_or(TimeDelta::MAX)
}
