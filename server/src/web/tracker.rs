//! Everything of one tracker.

use axum::extract::{Path, State};
use maud::{Markup, html};
use qctl_server_core::tracker;

use super::layout::{self, Every, Live};
use super::{PageError, Pages, parts, text};
use crate::app::read::{JobFilter, PageRequest};

/// Jobs that are listed.
const LISTED: usize = 100;

pub(super) async fn page(
    State(pages): State<Pages>,
    Path(name): Path<String>,
) -> Result<Markup, PageError> {
    let from = format!("{}/live", parts::tracker_path(&name));
    Ok(layout::page(&from, &live(&pages, &name).await?))
}

pub(super) async fn fragment(
    State(pages): State<Pages>,
    Path(name): Path<String>,
) -> Result<Live, PageError> {
    live(&pages, &name).await
}

async fn live(pages: &Pages, name: &str) -> Result<Live, PageError> {
    let key = tracker::key(name);
    if key.is_empty() {
        return Err(PageError::NoSuchTracker);
    }
    let filter = JobFilter {
        tracker_key: Some(key),
        ..JobFilter::default()
    };
    let request = PageRequest {
        size: LISTED,
        token: String::new(),
    };
    let page = pages.app.jobs(&filter, &request).await?;
    let Some(newest) = page.jobs.first() else {
        return Err(PageError::NoSuchTracker);
    };
    // As it was spelled last.
    let title = newest.job.spec.tracker.clone();
    let latest = page
        .jobs
        .iter()
        .filter_map(|view| Some((view, view.job.ended_at?)))
        .max_by_key(|(_, ended)| *ended);
    let is_live = page.jobs.iter().any(|view| !view.job.state.is_final());
    let now = pages.app.clock.now();
    let selected: i64 = page.counts.iter().map(|(_, count)| count).sum();
    let parts = vec![
        (
            "summary",
            html! {
                p.crumb { (text::TRACKER) }
                h1 { (title) }
                (parts::counts(&page.counts))
                @if let Some((view, _)) = latest {
                    p {
                        (text::LATEST_OUTCOME) ": "
                        a href={ "/jobs/" (view.job.id) } { (text::job(view.job.id)) }
                        " " (parts::state_pill(view.job.state))
                    }
                }
            },
        ),
        (
            "jobs",
            html! {
                h2 { (text::JOBS) }
                ul.jobs { @for view in &page.jobs { (parts::job_entry(view, now)) } }
                @if selected > page.jobs.len() as i64 {
                    p.counts { (text::and_more(selected - page.jobs.len() as i64)) }
                }
            },
        ),
    ];
    Ok(Live {
        title,
        every: Every::Seconds(if is_live { 2 } else { 15 }),
        parts,
    })
}
