//! What is unusual: about a job, on its page, and about machines, above the queue.

use chrono::{DateTime, TimeDelta, Utc};
use maud::{Markup, html};
use qctl_server_core::alarm::{Kind, Subject};
use qctl_server_core::silence::Stage;
use qctl_server_core::{AttemptState, JobId};

use super::{PageError, Pages, format, parts, text};
use crate::app::alarms::AlarmRecord;
use crate::app::read::AttemptRecord;

/// Most alarms that are shown of a job.
const SHOWN: usize = 5;

/// Alarms among which those of machines are looked for.
const LOOKED_AT: usize = 100;

/// That a job says nothing, while it does.
pub(super) fn silence(attempts: &[AttemptRecord], now: DateTime<Utc>) -> Markup {
    let running = attempts
        .last()
        .filter(|attempt| attempt.state == AttemptState::Running);
    let silence = running.and_then(|attempt| attempt.silence.as_ref());
    let lasts = silence.filter(|silence| silence.stage != Stage::Over);
    html! {
        @if let Some(silence) = lasts {
            p.notice {
                (text::silent_for(&format::between(silence.since, now)))
                @if let Some(stop) = silence.stop_after {
                    " " (text::stopped_after(&format::duration(stop)))
                }
            }
        }
    }
}

/// The latest alarms of a job.
pub(super) async fn of_job(pages: &Pages, job: JobId) -> Result<Markup, PageError> {
    let alarms = pages.app.latest_alarms(Some(job), SHOWN).await?;
    if alarms.is_empty() {
        return Ok(html! {});
    }
    let now = pages.app.clock.now();
    Ok(html! {
        h2 { (text::ALARMS) }
        table {
            thead {
                tr {
                    th { (text::ALARM) }
                    th { (text::WORST) }
                    th { (text::SINCE) }
                    th { (text::LASTED) }
                }
            }
            tbody {
                @for alarm in &alarms {
                    tr {
                        td { (text::alarm(alarm.kind)) }
                        td { (worst(alarm)) }
                        td { (format::time(alarm.began_at)) }
                        td { (lasted(alarm, now)) }
                    }
                }
            }
        }
    })
}

/// What is unusual about machines now, a line each.
pub(super) async fn of_machines(pages: &Pages) -> Result<Markup, PageError> {
    let mut alarms = pages.app.latest_alarms(None, LOOKED_AT).await?;
    alarms.retain(|alarm| !matches!(alarm.subject, Subject::Job(_)));
    let now = pages.app.clock.now();
    Ok(html! {
        @for alarm in &alarms {
            p.notice {
                (alarm.machine) ": " (text::alarm(alarm.kind)) ", " (worst(alarm))
                ", " (lasted(alarm, now))
            }
        }
    })
}

/// The worst figure beside the limit.
fn worst(alarm: &AlarmRecord) -> String {
    let peak = figure(alarm.kind, alarm.peak);
    match alarm.kind {
        // Every one of these is an alarm.
        Kind::OutOfMemory | Kind::Clock => peak,
        kind => text::beyond(&peak, &figure(kind, alarm.limit)),
    }
}

fn lasted(alarm: &AlarmRecord, now: DateTime<Utc>) -> Markup {
    match alarm.ended_at {
        Some(ended) => html! { (format::between(alarm.began_at, ended)) },
        None => html! {
            (text::for_time(&format::between(alarm.began_at, now))) " "
            (parts::pill(text::LASTS))
        },
    }
}

/// A figure in the unit of its kind.
fn figure(kind: Kind, value: f64) -> String {
    match kind {
        Kind::Cpu | Kind::GpuMemory | Kind::Memory => format!("{value:.0} %"),
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Kind::MemoryGrowth | Kind::Disk => format::size(value.max(0.0) as u64),
        Kind::GpuTemperature => format!("{value:.0} °C"),
        #[allow(clippy::cast_possible_truncation)]
        Kind::RunTime | Kind::Clock | Kind::Looks => {
            let time = TimeDelta::seconds(value as i64);
            format::duration(time.to_std().unwrap_or_default())
        }
        Kind::OutOfMemory => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_the_unit_of_its_kind() {
        for (kind, value, shown) in [
            (Kind::Cpu, 97.4, "97 %"),
            (Kind::Disk, 3_221_225_472.0, "3.0 GiB"),
            (Kind::Disk, -1.0, "0 B"),
            (Kind::GpuTemperature, 91.0, "91 °C"),
            (Kind::RunTime, 7_440.0, "2 h 04 min"),
            (Kind::OutOfMemory, 2.0, "2"),
        ] {
            assert_eq!(figure(kind, value), shown);
        }
    }
}
