//! The queue at a glance.

use axum::extract::State;
use maud::{Markup, html};
use qctl_server_core::JobState;

use super::layout::{self, Every, Live};
use super::{PageError, Pages, alarms, format, parts, text};
use crate::app::read::{JobFilter, JobPage, JobView, PageRequest, WorkerView};

/// Running jobs that are listed, and waiting or ended ones.
const RUNNING: usize = 20;
const OTHERS: usize = 8;

/// Waiting jobs that are looked at to find the ones that come next. Beyond that many, the newest
/// are listed.
const SORTED: usize = 500;

pub(super) async fn page(State(pages): State<Pages>) -> Result<Markup, PageError> {
    Ok(layout::page("/live", &live(&pages).await?))
}

pub(super) async fn fragment(State(pages): State<Pages>) -> Result<Live, PageError> {
    live(&pages).await
}

async fn live(pages: &Pages) -> Result<Live, PageError> {
    let app = &pages.app;
    let status = app.queue_status().await?;
    let jobs = async |states: &[JobState], size| {
        let filter = JobFilter {
            states: states.to_vec(),
            ..JobFilter::default()
        };
        let page = PageRequest {
            size,
            token: String::new(),
        };
        app.jobs(&filter, &page).await
    };
    let running = jobs(&[JobState::Running], RUNNING).await?;
    let mut waiting = jobs(
        &[JobState::Queued, JobState::Waiting, JobState::Held],
        SORTED,
    )
    .await?;
    if waiting.next_page_token.is_empty() {
        waiting.jobs.sort_by_key(|view| {
            let is_queued = view.job.state == JobState::Queued;
            (!is_queued, -i64::from(view.job.spec.priority), view.job.id)
        });
    }
    let ended = jobs(
        &[JobState::Succeeded, JobState::Failed, JobState::Cancelled],
        OTHERS,
    )
    .await?;
    let alarms = alarms::of_machines(pages).await?;
    let now = app.clock.now();
    let list = |jobs: &[JobView]| {
        html! { ul.jobs { @for view in jobs { (parts::job_entry(view, now)) } } }
    };
    let is_empty = running.jobs.is_empty() && waiting.jobs.is_empty() && ended.jobs.is_empty();
    let parts = vec![
        (
            "summary",
            html! {
                h1 { (text::QUEUE) }
                (parts::counts(&status.counts))
                @if status.paused { p.notice { (layout::with_code(text::QUEUE_PAUSED)) } }
                (alarms)
                @if is_empty { p.lead { (layout::with_code(text::NOTHING_YET)) } }
            },
        ),
        (
            "running",
            html! {
                h2 { (text::RUNNING) }
                @if running.jobs.is_empty() { p.counts { (text::NOTHING_RUNS) } }
                (list(&running.jobs))
                (rest(&running, RUNNING))
            },
        ),
        (
            "waiting",
            html! {
                @if !waiting.jobs.is_empty() {
                    h2 { (text::WAITING) }
                    (list(&waiting.jobs[..waiting.jobs.len().min(OTHERS)]))
                    (rest(&waiting, OTHERS))
                }
            },
        ),
        (
            "ended",
            html! {
                @if !ended.jobs.is_empty() {
                    h2 { (text::RECENTLY_ENDED) }
                    (list(&ended.jobs))
                }
            },
        ),
        (
            "workers",
            html! {
                h2 { (text::WORKERS) }
                @if status.workers.is_empty() { p.counts { (text::NO_WORKERS) } }
                ul.jobs { @for worker in &status.workers { (worker_entry(worker)) } }
            },
        ),
    ];
    Ok(Live {
        title: text::QUEUE.to_owned(),
        every: Every::Seconds(if running.jobs.is_empty() { 5 } else { 2 }),
        parts,
    })
}

fn rest(page: &JobPage, most: usize) -> Markup {
    let selected: i64 = page.counts.iter().map(|(_, count)| count).sum();
    let listed = page.jobs.len().min(most) as i64;
    html! { @if selected > listed { p.counts { (text::and_more(selected - listed)) } } }
}

fn worker_entry(view: &WorkerView) -> Markup {
    let worker = &view.worker;
    html! {
        li.job {
            span.name { (worker.name) } " " (parts::pill(text::worker_state(view.state)))
            p.counts {
                (text::slots(worker.taken.slots, worker.total.slots))
                @for gpu in &worker.gpus { " · " (gpu.name) }
                @if let Some(seen) = worker.last_seen {
                    " · " (text::last_seen()) " " (format::time(seen))
                }
            }
        }
    }
}
