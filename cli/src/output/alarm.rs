//! Alarms as people read them. Pure.

use std::time::Duration;

use qctl_proto::alarm;
use qctl_proto::v1::{self, AlarmKind};
use serde::Serialize;

use super::table::{Cell, Column, Paint, Table, facts};
use super::{View, document, text, time};

/// Alarms of a job that are shown with it; `qctl alarms --all JOB` lists all.
const SHOWN: usize = 5;

/// As wide as the titles of the measures that stand above.
const TITLE: &str = "Alarms    ";
const REST: &str = "          ";

/// An alarm, as a document.
#[derive(Debug, Serialize)]
pub struct Alarm<'a> {
    id: i64,
    kind: &'static str,
    job: Option<i64>,
    name: Option<&'a str>,
    attempt: Option<i32>,
    machine: &'a str,
    coordinator: bool,
    began_at: Option<String>,
    /// Absent while it lasts.
    ended_at: Option<String>,
    /// In percent, bytes, degrees Celsius, seconds or things.
    limit: f64,
    peak: f64,
    told: bool,
    /// One word for why nobody was told.
    untold: &'a str,
    /// One word for why it ended although what it tells of may go on.
    ended_because: &'a str,
}

impl<'a> From<&'a v1::Alarm> for Alarm<'a> {
    fn from(alarm: &'a v1::Alarm) -> Self {
        let is_job = alarm.job_id != 0;
        Self {
            id: alarm.id,
            kind: alarm::word(alarm.kind()),
            job: is_job.then_some(alarm.job_id),
            name: is_job.then_some(&alarm.job_name),
            attempt: is_job.then_some(alarm.attempt),
            machine: &alarm.machine,
            coordinator: alarm.coordinator,
            began_at: document::moment(alarm.began_at.as_ref()),
            ended_at: document::moment(alarm.ended_at.as_ref()),
            limit: alarm.limit,
            peak: alarm.peak,
            told: alarm.untold.is_empty(),
            untold: &alarm.untold,
            ended_because: &alarm.ended_because,
        }
    }
}

/// How often something was an alarm, as a document.
#[derive(Debug, Serialize)]
pub struct Count {
    kind: &'static str,
    of: &'static str,
    count: i64,
    told: i64,
    lasted: Option<f64>,
}

impl From<&v1::AlarmCount> for Count {
    fn from(count: &v1::AlarmCount) -> Self {
        Self {
            kind: alarm::word(count.kind()),
            of: if count.of_jobs { "jobs" } else { "machines" },
            count: count.count,
            told: count.told,
            lasted: time::span(count.lasted.as_ref()).map(|lasted| lasted.as_secs_f64()),
        }
    }
}

/// A table of alarms.
pub fn list(alarms: &[v1::Alarm], view: &View) -> String {
    let mut table = Table::new(&[
        Column::left("ALARM"),
        Column::left("OF").shrinking(10),
        Column::left("ON").shrinking(8),
        Column::left("SINCE"),
        Column::right("FOR"),
        Column::right("WORST"),
        Column::right("LIMIT"),
        Column::left("TOLD"),
    ]);
    for alarm in alarms {
        let of = match alarm.job_id {
            0 => String::new(),
            job => format!("{job}.{} {}", alarm.attempt, alarm.job_name),
        };
        let on = match alarm.coordinator {
            true => format!("{} (coordinator)", alarm.machine),
            false => alarm.machine.clone(),
        };
        let began = time::instant(alarm.began_at.as_ref());
        let ended = time::instant(alarm.ended_at.as_ref());
        let lasted = began.and_then(|began| (ended.unwrap_or(view.now) - began).to_std().ok());
        let paint = match ended {
            None => Paint::Yellow,
            Some(_) => Paint::Plain,
        };
        table.row(vec![
            Cell::painted(alarm::word(alarm.kind()), paint),
            Cell::from(&of),
            Cell::from(&on),
            began
                .map(|at| time::ago(at, view.now, view.zone))
                .unwrap_or_default()
                .into(),
            span(
                lasted.map(time::duration).unwrap_or_default(),
                &alarm.ended_because,
            )
            .into(),
            figure(alarm.kind(), alarm.peak).into(),
            figure(alarm.kind(), alarm.limit).into(),
            told(&alarm.untold).into(),
        ]);
    }
    table.render(view)
}

/// A table of how often something was an alarm.
pub fn counts(counts: &[v1::AlarmCount], view: &View) -> String {
    let mut table = Table::new(&[
        Column::left("ALARM"),
        Column::left("OF"),
        Column::right("COUNT"),
        Column::right("TOLD"),
        Column::right("LASTED"),
    ]);
    for count in counts {
        table.row(vec![
            alarm::word(count.kind()).to_owned().into(),
            if count.of_jobs { "jobs" } else { "machines" }
                .to_owned()
                .into(),
            count.count.to_string().into(),
            count.told.to_string().into(),
            time::span(count.lasted.as_ref())
                .map(time::duration)
                .unwrap_or_default()
                .into(),
        ]);
    }
    table.render(view)
}

/// An alarm in a phrase: `memory-growth 2.3 GiB (limit 1.9 GiB) for 5m`.
pub fn phrase(alarm: &v1::Alarm, view: &View) -> String {
    let ended = time::instant(alarm.ended_at.as_ref());
    let lasted = time::instant(alarm.began_at.as_ref())
        .and_then(|began| (ended.unwrap_or(view.now) - began).to_std().ok())
        .map(|lasted| format!(" for {}", time::duration(lasted)))
        .unwrap_or_default();
    let over = match (ended, alarm.ended_because.as_str()) {
        (None, _) => String::new(),
        (Some(_), "") => ", over".to_owned(),
        (Some(_), because) => format!(", {}", ended_because(because)),
    };
    let kind = alarm::word(alarm.kind());
    let (peak, limit) = (
        figure(alarm.kind(), alarm.peak),
        figure(alarm.kind(), alarm.limit),
    );
    if alarm.kind() == AlarmKind::RunTime {
        return format!("{kind} over {limit}{over}");
    }
    format!("{kind} {peak} (limit {limit}){lasted}{over}")
}

/// The latest of a job's alarms, a line each; empty when there is none.
pub fn of_job(alarms: &[v1::Alarm], view: &View) -> String {
    let lines: Vec<(&str, String)> = alarms
        .iter()
        .take(SHOWN)
        .enumerate()
        .map(|(index, alarm)| (if index == 0 { TITLE } else { REST }, phrase(alarm, view)))
        .collect();
    facts(&lines, view)
}

/// Alarms of machines that last, a line each.
pub fn of_machines(alarms: &[v1::Alarm], view: &View) -> String {
    alarms
        .iter()
        .filter(|alarm| alarm.job_id == 0)
        .map(|alarm| {
            let line = format!(
                "{}: {}",
                text::printable(&alarm.machine),
                phrase(alarm, view)
            );
            format!("{}\n", Paint::Yellow.on(&line, view.colour))
        })
        .collect()
}

/// How long it lasted, and why it ended although what it tells of may go on.
fn span(lasted: String, because: &str) -> String {
    match because {
        "" => lasted,
        because => format!("{lasted}, {}", ended_because(because)),
    }
}

/// Why an alarm ended although what it tells of may go on, in words.
fn ended_because(because: &str) -> &str {
    match because {
        "switched_off" => "switched off",
        "other_machine" => "other machine",
        "same_disk" => "same disk",
        other => other,
    }
}

/// Why nobody was told, in words.
fn told(untold: &str) -> &str {
    match untold {
        "" => "yes",
        "not_wanted" => "not wanted",
        "told_before" => "before",
        "told_with_job" => "by the job",
        "short" => "no, short",
        "slept" => "no, it slept",
        "away" => "no, away",
        other => other,
    }
}

/// A figure in the unit of its kind.
fn figure(kind: AlarmKind, value: f64) -> String {
    #[allow(clippy::cast_possible_truncation)]
    let whole = value.round() as i64;
    match kind {
        AlarmKind::Cpu | AlarmKind::GpuMemory | AlarmKind::Memory => format!("{value:.0} %"),
        AlarmKind::MemoryGrowth | AlarmKind::Disk => text::bytes(whole),
        AlarmKind::GpuTemperature => format!("{value:.0} °C"),
        AlarmKind::RunTime | AlarmKind::Clock | AlarmKind::Looks => {
            time::duration(Duration::try_from_secs_f64(value).unwrap_or_default())
        }
        AlarmKind::OutOfMemory | AlarmKind::Unspecified => whole.to_string(),
    }
}
