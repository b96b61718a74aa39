//! `qctl notices`: what people were told, what was held back and why.

use std::process::ExitCode;

use clap::Subcommand;
use qctl_proto::v1;
use serde::Serialize;
use v1::notice::State;
use v1::notice_delivery::State as DeliveryState;

use crate::args::values;
use crate::context::{Context, unary};
use crate::error::Error;
use crate::output::document;
use crate::output::table::{Cell, Column, Paint, Table};
use crate::output::{View, text, time};

/// Arguments of `qctl notices`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// What to do [default: list].
    #[command(subcommand)]
    pub action: Option<Action>,
    /// What to list.
    #[command(flatten)]
    pub list: ListArgs,
}

/// What to do with notices.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// List notices, newest first, also those that were held back
    List(ListArgs),
    /// Send a notice through every channel, to see whether it arrives
    Test,
    /// Say that you have seen a notice; an urgent one is not repeated any more
    Ack {
        /// Notices: their numbers, or the `id` that a program received
        #[arg(value_name = "NOTICE", required = true, value_parser = name)]
        notices: Vec<Name>,
    },
}

/// What a notice is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// Its number.
    Number(i64),
    /// What a message calls it that was sent while the database was away.
    File(String),
}

/// Reads what a notice is called.
fn name(text: &str) -> Result<Name, String> {
    match text.parse::<i64>() {
        Ok(number) if number > 0 => Ok(Name::Number(number)),
        Err(_) if text.len() <= 100 && text.contains('-') && !text.starts_with('-') => {
            Ok(Name::File(text.to_owned()))
        }
        _ => Err("this is not the number of a notice: `qctl notices` lists them".to_owned()),
    }
}

/// Which notices to list.
#[derive(Clone, Debug, clap::Args)]
pub struct ListArgs {
    /// Only those about this job
    #[arg(long, value_name = "JOB", value_parser = values::job)]
    pub job: Option<i64>,
    /// At most so many notices
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50, value_parser = values::whole::<i32>(1..=1_000))]
    pub limit: i32,
    /// Go on where an earlier list ended
    #[arg(long, value_name = "TOKEN")]
    pub page_token: Option<String>,
    /// Count them by kind and fate instead, over 30 days
    #[arg(long)]
    pub statistics: bool,
}

#[derive(Serialize)]
struct Document<'a> {
    notices: Vec<Notice<'a>>,
    next_page_token: &'a str,
    counts: Vec<Count<'a>>,
    deliveries: Vec<DeliveryCount<'a>>,
    channels: Vec<Channel<'a>>,
}

#[derive(Serialize)]
struct Notice<'a> {
    id: i64,
    created_at: Option<String>,
    class: &'a str,
    severity: &'static str,
    subject: &'a str,
    job: Option<i64>,
    attempt: Option<i32>,
    worker: &'a str,
    state: &'static str,
    reason: &'a str,
    waited: &'a str,
    filed_as: Option<&'a str>,
    repeats: i32,
    title: &'a str,
    body: &'a str,
    deliveries: Vec<Delivery<'a>>,
}

#[derive(Serialize)]
struct Delivery<'a> {
    channel: &'a str,
    state: &'static str,
    detail: &'a str,
    sent_at: Option<String>,
    acknowledged_at: Option<String>,
    acknowledged_by: &'a str,
}

#[derive(Serialize)]
struct Count<'a> {
    class: &'a str,
    state: &'static str,
    reason: &'a str,
    count: i64,
    repeats: i64,
    merged: i64,
    quiet: i64,
}

#[derive(Serialize)]
struct DeliveryCount<'a> {
    channel: &'a str,
    state: &'static str,
    count: i64,
}

#[derive(Serialize)]
struct Channel<'a> {
    name: &'a str,
    problem: &'a str,
}

#[derive(Serialize)]
struct Tested<'a> {
    channels: &'a [String],
}

#[derive(Serialize)]
#[serde(untagged)]
enum Acknowledged<'a> {
    Number { notice: i64 },
    File { notice: &'a str },
}

impl<'a> From<&'a v1::Notice> for Notice<'a> {
    fn from(notice: &'a v1::Notice) -> Self {
        Self {
            id: notice.id,
            created_at: document::moment(notice.created_at.as_ref()),
            class: &notice.class,
            severity: severity(notice.severity()),
            subject: &notice.subject,
            job: (notice.job_id != 0).then_some(notice.job_id),
            attempt: (notice.attempt != 0).then_some(notice.attempt),
            worker: &notice.worker,
            state: state(notice.state()),
            reason: &notice.reason,
            waited: &notice.waited,
            filed_as: (!notice.filed_as.is_empty()).then_some(&notice.filed_as),
            repeats: notice.repeats,
            title: &notice.title,
            body: &notice.body,
            deliveries: notice.deliveries.iter().map(Delivery::from).collect(),
        }
    }
}

impl<'a> From<&'a v1::NoticeDelivery> for Delivery<'a> {
    fn from(delivery: &'a v1::NoticeDelivery) -> Self {
        Self {
            channel: &delivery.channel,
            state: delivery_state(delivery.state()),
            detail: &delivery.detail,
            sent_at: document::moment(delivery.sent_at.as_ref()),
            acknowledged_at: document::moment(delivery.acknowledged_at.as_ref()),
            acknowledged_by: &delivery.acknowledged_by,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When the coordinator refuses.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    match args.action.unwrap_or(Action::List(args.list)) {
        Action::List(args) => list(context, args).await,
        Action::Test => test(context).await,
        Action::Ack { notices } => acknowledge(context, &notices).await,
    }
}

async fn list(context: &Context, args: ListArgs) -> Result<ExitCode, Error> {
    let request = v1::ListNoticesRequest {
        job_id: args.job.unwrap_or(0),
        page_size: args.limit,
        page_token: args.page_token.unwrap_or_default(),
    };
    let client = context.client().await?;
    let page = client
        .notices()
        .list_notices(unary(request))
        .await?
        .into_inner();
    if context.output.json {
        context.output.print_document(&Document {
            notices: page.notices.iter().map(Notice::from).collect(),
            next_page_token: &page.next_page_token,
            counts: page.counts.iter().map(Count::from).collect(),
            deliveries: page
                .deliveries
                .iter()
                .map(|count| DeliveryCount {
                    channel: &count.channel,
                    state: delivery_state(count.state()),
                    count: count.count,
                })
                .collect(),
            channels: page
                .channels
                .iter()
                .map(|channel| Channel {
                    name: &channel.name,
                    problem: &channel.problem,
                })
                .collect(),
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    if page.channels.is_empty() {
        context.output.remark(
            "No way to send notices is set up, so nobody is told; docs/notifications.md says how.",
        );
    }
    for channel in &page.channels {
        if !channel.problem.is_empty() {
            context.output.remark(&format!(
                "{} refuses notices: {}",
                channel.name, channel.problem
            ));
        }
    }
    let view = context.output.view();
    if args.statistics {
        return context
            .output
            .print(&statistics(&page, &view))
            .map(|()| ExitCode::SUCCESS);
    }
    if page.notices.is_empty() {
        context.output.remark("No notices.");
        return Ok(ExitCode::SUCCESS);
    }
    context.output.print(&table(&page.notices, &view))?;
    if !page.next_page_token.is_empty() {
        context.output.remark(&format!(
            "more: go on with: --page-token {}",
            page.next_page_token
        ));
    }
    Ok(ExitCode::SUCCESS)
}

impl<'a> From<&'a v1::NoticeCount> for Count<'a> {
    fn from(count: &'a v1::NoticeCount) -> Self {
        Self {
            class: &count.class,
            state: state(count.state()),
            reason: &count.reason,
            count: count.count,
            repeats: count.repeats,
            merged: count.merged,
            quiet: count.quiet,
        }
    }
}

async fn test(context: &Context) -> Result<ExitCode, Error> {
    let client = context.client().await?;
    let answer = client
        .notices()
        .test_notices(unary(v1::TestNoticesRequest {}))
        .await?
        .into_inner();
    if context.output.json {
        context.output.print_document(&Tested {
            channels: &answer.channels,
        })?;
    } else {
        context.output.print(&format!(
            "A test is on its way by {}. Whether it was taken: qctl notices\n",
            answer.channels.join(", ")
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn acknowledge(context: &Context, notices: &[Name]) -> Result<ExitCode, Error> {
    let client = context.client().await?;
    for notice in notices {
        let (request, document, shown) = match notice {
            Name::Number(number) => (
                v1::AcknowledgeNoticeRequest {
                    notice_id: *number,
                    filed_as: String::new(),
                },
                Acknowledged::Number { notice: *number },
                number.to_string(),
            ),
            Name::File(name) => (
                v1::AcknowledgeNoticeRequest {
                    notice_id: 0,
                    filed_as: name.clone(),
                },
                Acknowledged::File { notice: name },
                name.clone(),
            ),
        };
        client.notices().acknowledge_notice(unary(request)).await?;
        if context.output.json {
            context.output.print_document(&document)?;
        } else {
            context
                .output
                .print(&format!("Notice {shown} is acknowledged.\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(notices: &[v1::Notice], view: &View) -> String {
    let mut table = Table::new(&[
        Column::right("NOTICE"),
        Column::left("WHEN"),
        Column::left("SEVERITY"),
        Column::left("ABOUT").shrinking(12),
        Column::left("WHAT").shrinking(20),
        Column::left("FATE").shrinking(14),
    ]);
    for notice in notices {
        let at = time::instant(notice.created_at.as_ref())
            .map(|at| time::ago(at, view.now, view.zone))
            .unwrap_or_default();
        let what = match notice.title.is_empty() {
            true => notice.class.replace('_', " "),
            false => notice.title.clone(),
        };
        let what = match notice.repeats {
            0 => what,
            repeats => format!("{what} (+{repeats})"),
        };
        table.row(vec![
            Cell::from(&notice.id.to_string()),
            Cell::from(&at),
            Cell::painted(severity(notice.severity()), paint(notice.severity())),
            Cell::from(&notice.subject),
            Cell::from(&what),
            Cell::from(&fate(notice)),
        ]);
    }
    table.render(view)
}

/// What was told and what was not, and why: by kind, then by channel.
fn statistics(page: &v1::ListNoticesResponse, view: &View) -> String {
    if page.counts.is_empty() {
        return "No notices in the last 30 days.\n".to_owned();
    }
    let mut kinds = Table::new(&[
        Column::left("KIND").shrinking(16),
        Column::left("FATE").shrinking(14),
        Column::right("NOTICES"),
        Column::right("REPEATS"),
        Column::right("TOGETHER"),
        Column::right("AFTER THE NIGHT"),
    ]);
    for count in &page.counts {
        let fate = match count.reason.as_str() {
            "" => state(count.state()).replace('_', " "),
            reason => format!("held back: {}", reason.replace('_', " ")),
        };
        let number = |number: i64| match number {
            0 => Cell::from("-"),
            number => Cell::from(&number.to_string()),
        };
        kinds.row(vec![
            Cell::from(&count.class.replace('_', " ")),
            Cell::from(&fate),
            Cell::from(&count.count.to_string()),
            number(count.repeats),
            number(count.merged),
            number(count.quiet),
        ]);
    }
    let mut text = kinds.render(view);
    if !page.deliveries.is_empty() {
        let mut channels = Table::new(&[
            Column::left("CHANNEL"),
            Column::left("FATE"),
            Column::right("MESSAGES"),
        ]);
        for count in &page.deliveries {
            channels.row(vec![
                Cell::from(&count.channel),
                Cell::from(delivery_state(count.state())),
                Cell::from(&count.count.to_string()),
            ]);
        }
        text.push('\n');
        text.push_str(&channels.render(view));
    }
    text
}

/// What became of a notice, in words.
fn fate(notice: &v1::Notice) -> String {
    if notice.state() != State::Told {
        return match notice.reason.as_str() {
            "" if !notice.waited.is_empty() => {
                format!("waits: {}", notice.waited.replace('_', " "))
            }
            "" => state(notice.state()).replace('_', " "),
            reason => format!("held back: {}", reason.replace('_', " ")),
        };
    }
    let deliveries: Vec<String> = notice
        .deliveries
        .iter()
        .map(|delivery| {
            let mut words = format!("{} {}", delivery.channel, delivery_state(delivery.state()));
            if !delivery.acknowledged_by.is_empty() || delivery.acknowledged_at.is_some() {
                words.push_str(", seen");
            }
            if !delivery.detail.is_empty() {
                words.push_str(&format!(": {}", text::printable(&delivery.detail)));
            }
            words
        })
        .collect();
    deliveries.join("; ")
}

fn severity(severity: v1::notice::Severity) -> &'static str {
    match severity {
        v1::notice::Severity::Unspecified => "unknown",
        v1::notice::Severity::Info => "info",
        v1::notice::Severity::Warning => "warning",
        v1::notice::Severity::Error => "error",
        v1::notice::Severity::Critical => "critical",
    }
}

fn paint(severity: v1::notice::Severity) -> Paint {
    match severity {
        v1::notice::Severity::Unspecified | v1::notice::Severity::Info => Paint::Dim,
        v1::notice::Severity::Warning => Paint::Yellow,
        v1::notice::Severity::Error | v1::notice::Severity::Critical => Paint::Red,
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Unspecified => "unknown",
        State::New => "new",
        State::Waiting => "waiting",
        State::Told => "told",
        State::HeldBack => "held_back",
    }
}

fn delivery_state(state: DeliveryState) -> &'static str {
    match state {
        DeliveryState::Unspecified | DeliveryState::Unknown => "unknown",
        DeliveryState::Pending => "pending",
        DeliveryState::Sending => "sending",
        DeliveryState::Sent => "sent",
        DeliveryState::Rejected => "rejected",
        DeliveryState::Over => "over",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::time::Zone;

    #[test]
    fn a_notice_is_named_by_its_number_or_by_what_a_program_received() {
        assert_eq!(name("17"), Ok(Name::Number(17)));
        let file = "0011aabbccddeeff00112233-1795262400000000";
        assert_eq!(name(file), Ok(Name::File(file.to_owned())));
        for wrong in ["0", "-3", "", "seventeen"] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn statistics_say_what_was_told_and_what_was_not_and_why() {
        let count = |class: &str, state: State, reason: &str| v1::NoticeCount {
            class: class.to_owned(),
            state: state.into(),
            reason: reason.to_owned(),
            count: 4,
            repeats: 2,
            merged: 3,
            quiet: 0,
        };
        let page = v1::ListNoticesResponse {
            counts: vec![
                count("job_failed", State::Told, ""),
                count("attempt_failed", State::HeldBack, "told_before"),
            ],
            deliveries: vec![v1::NoticeDeliveryCount {
                channel: "pushover".to_owned(),
                state: DeliveryState::Rejected.into(),
                count: 1,
            }],
            ..Default::default()
        };
        let view = View {
            now: chrono::DateTime::UNIX_EPOCH,
            zone: Zone::Local,
            colour: false,
            width: None,
        };
        insta::assert_snapshot!(statistics(&page, &view), @r"
        KIND            FATE                    NOTICES  REPEATS  TOGETHER  AFTER THE NIGHT
        job failed      told                          4        2         3                -
        attempt failed  held back: told before        4        2         3                -

        CHANNEL   FATE      MESSAGES
        pushover  rejected         1
        ");
    }
}
