//! `qctl health`: how every machine does, and what to do about it.

use std::process::ExitCode;

use qctl_proto::v1::{self, Health};
use serde::Serialize;

use crate::context::{Context, unary};
use crate::error::Error;
use crate::output::table::{Cell, Column, Paint, Table};
use crate::output::{View, text};

/// Arguments of `qctl health`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this worker
    #[arg(value_name = "WORKER")]
    pub worker: Option<String>,
}

#[derive(Serialize)]
struct Document<'a> {
    health: &'static str,
    machines: Vec<Machine<'a>>,
}

#[derive(Serialize)]
struct Machine<'a> {
    machine: &'a str,
    coordinator: bool,
    health: &'static str,
    findings: Vec<Finding<'a>>,
}

#[derive(Serialize)]
struct Finding<'a> {
    subject: &'a str,
    health: &'static str,
    message: &'a str,
    advice: &'a str,
}

/// Runs the command.
///
/// # Errors
/// When there is no such worker, or the coordinator cannot be asked.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let client = context.client().await?;
    let mut answer = client
        .alarms()
        .get_health(unary(v1::GetHealthRequest {}))
        .await?
        .into_inner();
    if let Some(name) = &args.worker {
        answer
            .machines
            .retain(|machine| !machine.coordinator && machine.machine == *name);
        let Some(machine) = answer.machines.first() else {
            return Err(no_worker(name));
        };
        answer.health = machine.health;
    }
    if context.output.json {
        context.output.print_document(&document(&answer))?;
    } else {
        let view = context.output.view();
        context.output.print(&for_people(&answer, &view))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn no_worker(name: &str) -> Error {
    use qctl_proto::error::{Fault, Reason};
    let fault = Fault::new(
        Reason::WorkerNotFound,
        format!("there is no worker `{}`", text::printable(name)),
    )
    .next("qctl workers".to_owned());
    Error::Refused(Box::new(fault))
}

fn word(health: Health) -> &'static str {
    match health {
        Health::Well => "well",
        Health::Watch => "watch",
        Health::Bad => "bad",
        Health::Unspecified => "unknown",
    }
}

fn document(answer: &v1::GetHealthResponse) -> Document<'_> {
    let finding = |finding: &'_ v1::HealthFinding| word(finding.health());
    Document {
        health: word(answer.health()),
        machines: answer
            .machines
            .iter()
            .map(|machine| Machine {
                machine: &machine.machine,
                coordinator: machine.coordinator,
                health: word(machine.health()),
                findings: machine
                    .findings
                    .iter()
                    .map(|found| Finding {
                        subject: &found.subject,
                        health: finding(found),
                        message: &found.message,
                        advice: &found.advice,
                    })
                    .collect(),
            })
            .collect(),
    }
}

/// A line for each thing that was looked at, and below it what to do.
fn for_people(answer: &v1::GetHealthResponse, view: &View) -> String {
    let mut table = Table::new(&[
        Column::left("MACHINE").shrinking(8),
        Column::left("OF"),
        Column::left("HEALTH"),
        Column::left("WHAT").shrinking(30),
    ]);
    let mut advice = String::new();
    for machine in &answer.machines {
        let mut name = match machine.coordinator {
            true => format!("{} (coordinator)", machine.machine),
            false => machine.machine.clone(),
        };
        for found in &machine.findings {
            if !found.advice.is_empty() {
                advice.push_str(&format!(
                    "{}, {}: {}\n",
                    text::printable(&name_of(machine)),
                    text::printable(&found.subject),
                    text::printable(&found.advice)
                ));
            }
            table.row(vec![
                Cell::from(&std::mem::take(&mut name)),
                Cell::from(&found.subject),
                Cell::painted(word(found.health()), paint(found.health())),
                Cell::from(&found.message),
            ]);
        }
    }
    let mut out = table.render(view);
    if !advice.is_empty() {
        out.push_str("\nWhat to do:\n");
        out.push_str(&advice);
    }
    out
}

fn name_of(machine: &v1::MachineHealth) -> String {
    match machine.coordinator {
        true => "coordinator".to_owned(),
        false => machine.machine.clone(),
    }
}

fn paint(health: Health) -> Paint {
    match health {
        Health::Well => Paint::Green,
        Health::Watch => Paint::Yellow,
        Health::Bad => Paint::Red,
        Health::Unspecified => Paint::Dim,
    }
}

#[cfg(test)]
mod tests {
    use chrono::{FixedOffset, TimeZone as _, Utc};

    use super::*;
    use crate::output::time::Zone;

    #[test]
    fn each_finding_is_a_line_and_advice_follows() {
        let found =
            |subject: &str, health: Health, message: &str, advice: &str| v1::HealthFinding {
                subject: subject.to_owned(),
                health: health.into(),
                message: message.to_owned(),
                advice: advice.to_owned(),
            };
        let answer = v1::GetHealthResponse {
            health: Health::Bad.into(),
            machines: vec![
                v1::MachineHealth {
                    machine: "home".to_owned(),
                    coordinator: true,
                    health: Health::Well.into(),
                    findings: vec![found("queue", Health::Well, "no job waits", "")],
                },
                v1::MachineHealth {
                    machine: "gpu1".to_owned(),
                    coordinator: false,
                    health: Health::Bad.into(),
                    findings: vec![
                        found("cpu", Health::Well, "3 % of the processors are busy", ""),
                        found(
                            "disk",
                            Health::Bad,
                            "the disk of gpu1 has 3.0 GB left",
                            "make room",
                        ),
                    ],
                },
            ],
        };
        let view = View {
            now: Utc.with_ymd_and_hms(2026, 11, 21, 12, 0, 0).unwrap(),
            zone: Zone::Fixed(FixedOffset::east_opt(0).unwrap()),
            colour: false,
            width: Some(100),
        };
        insta::assert_snapshot!(for_people(&answer, &view), @r"
        MACHINE             OF     HEALTH  WHAT
        home (coordinator)  queue  well    no job waits
        gpu1                cpu    well    3 % of the processors are busy
                            disk   bad     the disk of gpu1 has 3.0 GB left

        What to do:
        gpu1, disk: make room
        ");
    }
}
