//! One job: what it is, how far it is, how it ended, and what it prints.

use std::path::PathBuf;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use http::{HeaderValue, header};
use maud::{Markup, html};
use qctl_server_core::{AttemptState, JobId, JobState};
use serde::Deserialize;
use tokio::io::AsyncReadExt;

use super::artifacts::{self, Listing};
use super::layout::{self, Every, Live};
use super::{PageError, Pages, alarms, format, parts, terminal, text};
use crate::app::logs::LogText;
use crate::app::read::{AttemptRecord, JobDetail, JobRecord, PageRequest};

/// Lines of output that are shown, and bytes of it at most.
const LINES: u32 = 200;
const BYTES: usize = 128 * 1024;

/// Declared paths that are shown.
const DECLARED: usize = 16;

/// Checkpoints that are shown.
const CHECKPOINTS: usize = 5;

/// Bytes of a picture sent at a time.
const PIECE: usize = 64 * 1024;

/// Which attempt's output to show.
#[derive(Deserialize)]
pub(super) struct Choice {
    attempt: Option<String>,
}

impl Choice {
    fn number(self) -> Result<Option<i32>, PageError> {
        let number = self.attempt.map(|attempt| attempt.parse());
        number.transpose().map_err(|_| PageError::NoSuchPage)
    }
}

pub(super) async fn page(
    State(pages): State<Pages>,
    Path(id): Path<String>,
    Query(choice): Query<Choice>,
) -> Result<Markup, PageError> {
    let (id, attempt) = (number(&id)?, choice.number()?);
    let mut from = format!("/jobs/{id}/live");
    if let Some(attempt) = attempt {
        from = format!("{from}?attempt={attempt}");
    }
    Ok(layout::page(&from, &live(&pages, id, attempt).await?))
}

pub(super) async fn fragment(
    State(pages): State<Pages>,
    Path(id): Path<String>,
    Query(choice): Query<Choice>,
) -> Result<Live, PageError> {
    live(&pages, number(&id)?, choice.number()?).await
}

fn number(text: &str) -> Result<JobId, PageError> {
    text.parse().map(JobId).map_err(|_| PageError::NoSuchJob)
}

async fn live(pages: &Pages, id: JobId, attempt: Option<i32>) -> Result<Live, PageError> {
    let detail = pages.app.job(id).await?;
    let job = &detail.job.job;
    let sentences = match job.state {
        JobState::Waiting | JobState::Held | JobState::Queued => pages.app.explain(id).await?.1,
        _ => Vec::new(),
    };
    let log = pages.app.log_text(id, attempt, LINES, BYTES).await?;
    let is_settled = job.state.is_final() && log.as_ref().is_none_or(|log| log.complete);
    let results = results(pages, job).await?;
    Ok(Live {
        title: format!("{id} {}", job.spec.name),
        every: if is_settled {
            Every::Never
        } else if job.state == JobState::Running || job.state.is_final() {
            Every::Seconds(2)
        } else {
            Every::Seconds(3)
        },
        parts: vec![
            ("state", head(&detail, &sentences, pages.app.clock.now())),
            // What changes first, what explains it after: a phone shows the top.
            ("output", output(job, log.as_ref())),
            ("results", results),
            ("alarms", alarms::of_job(pages, id).await?),
            ("attempts", attempts(&detail.attempts, attempt)),
            ("checkpoints", checkpoints(pages, job).await?),
            ("facts", facts(job)),
        ],
    })
}

fn head(detail: &JobDetail, sentences: &[String], now: DateTime<Utc>) -> Markup {
    let job = &detail.job.job;
    html! {
        @if !job.spec.tracker.is_empty() {
            p.crumb { a href=(parts::tracker_path(&job.spec.tracker)) { (job.spec.tracker) } }
        }
        h1 { span.number { (job.id) } " " (job.spec.name) }
        p.lead {
            (parts::state_pill(job.state))
            @if job.paused { " " (parts::pill("paused")) }
            @if job.unreachable { " " (parts::pill("unreachable")) }
            " "
            @for sentence in sentences { (sentence) " " }
            @if sentences.is_empty() { (ending(job)) }
        }
        @if let Some(started) = job.started_at {
            p.counts {
                @match job.ended_at {
                    Some(ended) => (text::ran(&format::between(started, ended))),
                    None => (text::for_time(&format::between(started, now))),
                }
                @if !job.worker.is_empty() { " · " (job.worker) }
            }
        }
        @if job.paused { p.notice { (layout::with_code(text::PAUSED)) } }
        @if job.unreachable { p.notice { (text::UNREACHABLE) } }
        (alarms::silence(&detail.attempts, now))
        @if job.cancel_requested && !job.state.is_final() {
            p.notice { (text::CANCEL_REQUESTED) }
        }
        @if let Some(known) = &job.progress { (parts::progress(known)) }
    }
}

/// How it ended, or why it is where it is, in a sentence.
fn ending(job: &JobRecord) -> String {
    match &job.outcome {
        _ if !job.message.is_empty() => job.message.clone(),
        Some(outcome) if job.state.is_final() => outcome.message.clone(),
        _ => String::new(),
    }
}

fn facts(job: &JobRecord) -> Markup {
    let spec = &job.spec;
    html! {
        h2 { (text::DETAILS) }
        dl.facts {
            @if let Some(started) = job.started_at {
                dt { (text::STARTED) }
                dd { (format::time(started)) }
            }
            @if let Some(ended) = job.ended_at {
                dt { (text::ENDED) }
                dd { (format::time(ended)) }
            }
            dt { (text::SUBMITTED) }
            dd {
                (format::time(job.created_at))
                @if !job.submitted_by.is_empty() { " · " (job.submitted_by) }
            }
            @if !job.worker.is_empty() {
                dt { (text::WORKER) }
                dd { (job.worker) }
            }
            dt { (text::COMMAND) }
            dd { code { (format::command(&spec.command)) } }
            @if !spec.cwd.is_empty() {
                dt { (text::FOLDER) }
                dd { code { (spec.cwd) } }
            }
            @if !spec.labels.is_empty() {
                dt { (text::LABELS) }
                dd {
                    @for (label, value) in &spec.labels {
                        span.label { (label) @if !value.is_empty() { "=" (value) } } " "
                    }
                }
            }
            @if let Some(other) = job.retry_of {
                dt { (text::REPEATS) }
                dd { a href={ "/jobs/" (other) } { (text::job(other)) } }
            }
            @if !job.state.is_final() {
                dt { (text::BUDGET) }
                dd { (text::budget(job.retries_left, job.resumes_left)) }
            }
            @if let Some(rules) = text::retry_rules(spec) {
                dt { (text::RETRIES) }
                dd { (rules) }
            }
            @if !job.checkpoint.is_empty() {
                dt { (text::CHECKPOINT) }
                dd { (job.checkpoint_name) " " code { (job.checkpoint) } }
            }
        }
    }
}

fn attempts(attempts: &[AttemptRecord], chosen: Option<i32>) -> Markup {
    if attempts.is_empty() {
        return html! {};
    }
    let chosen = chosen.or(attempts.last().map(|attempt| attempt.number));
    html! {
        h2 { (text::ATTEMPTS) }
        table {
            thead {
                tr {
                    th { (text::ATTEMPT) }
                    th { (text::HOW_IT_ENDED) }
                    th { (text::RUN_TIME) }
                    th { (text::WORKER) }
                }
            }
            tbody {
                @for attempt in attempts {
                    tr aria-current=[(Some(attempt.number) == chosen).then_some("true")] {
                        td { a href={ "?attempt=" (attempt.number) } { (attempt.number) } }
                        td { (how_it_ended(attempt)) }
                        td {
                            @if let Some(duration) = attempt.duration {
                                (format::duration(duration))
                            }
                        }
                        td { (attempt.worker) }
                    }
                }
            }
        }
    }
}

/// The newest checkpoints of a job that has published any.
async fn checkpoints(pages: &Pages, job: &JobRecord) -> Result<Markup, PageError> {
    let request = PageRequest {
        size: CHECKPOINTS,
        token: String::new(),
    };
    let page = pages.app.checkpoints(job.id, &request).await?;
    if page.checkpoints.is_empty() {
        return Ok(html! {});
    }
    Ok(html! {
        h2 { (text::CHECKPOINTS) }
        table {
            thead {
                tr {
                    th { (text::CHECKPOINT) }
                    th { (text::STEP) }
                    th { (text::PUBLISHED) }
                    th { (text::SIZE) }
                    th { (text::STATE) }
                }
            }
            tbody {
                @for checkpoint in &page.checkpoints {
                    tr {
                        td { (checkpoint.attempt) "." (checkpoint.id.number) }
                        td {
                            @if let Some(step) = checkpoint.step { (step) }
                            @if !checkpoint.note.is_empty() { " " (checkpoint.note) }
                        }
                        td { (format::time(checkpoint.created_at)) }
                        td { (format::size(checkpoint.bytes.unsigned_abs())) }
                        td {
                            (text::checkpoint(checkpoint.state, checkpoint.latest))
                            @if checkpoint.uploaded { ", " (text::UPLOADED) }
                        }
                    }
                }
            }
        }
    })
}

fn how_it_ended(attempt: &AttemptRecord) -> Markup {
    html! {
        @if let Some(outcome) = &attempt.outcome {
            (parts::pill(text::outcome(outcome.kind))) " " (outcome.message)
        } @else if attempt.state == AttemptState::Running {
            (parts::pill(text::STILL_RUNNING))
        } @else {
            (text::ABOUT_TO_START)
        }
        @for limit in &attempt.not_enforced {
            p.counts { (text::NOT_ENFORCED) ": " (limit) }
        }
    }
}

fn output(job: &JobRecord, log: Option<&LogText>) -> Markup {
    let log = log.filter(|log| !log.data.is_empty() || !log.gaps.is_empty());
    html! {
        h2 { (text::OUTPUT) }
        @if let Some(log) = log {
            @for (gap, data) in log.parts() {
                @if let Some(gap) = gap {
                    p.notice {
                        (text::gap(&format::size(gap.bytes.unsigned_abs()), gap.lines, gap.cause))
                    }
                }
                @if !data.is_empty() {
                    // The newline after the tag is the tag's own, so one of the output's is kept.
                    pre.log tabindex="0" { "\n" (terminal::render(data)) }
                }
            }
            p.counts {
                @if log.offset > 0 {
                    (layout::with_code(&text::tail_of(
                        &format::size(log.data.len() as u64),
                        &format::size(log.stored.unsigned_abs()),
                        job.id,
                    )))
                } @else if !job.state.is_final() {
                    (layout::with_code(&text::whole(job.id)))
                }
            }
        } @else {
            p.counts {
                @if job.state.is_final() { (text::NO_OUTPUT_AT_ALL) } @else { (text::NO_OUTPUT) }
            }
        }
    }
}

/// What a job's declared paths hold: shown when its worker is this machine, else only named.
async fn results(pages: &Pages, job: &JobRecord) -> Result<Markup, PageError> {
    if job.spec.artifacts.is_empty() || job.attempt == 0 {
        return Ok(html! {});
    }
    let paths: Vec<_> = (0..job.spec.artifacts.len().min(DECLARED))
        .filter_map(|index| Some((index, artifacts::declared(&job.spec, index)?)))
        .collect();
    let listed = if is_here(pages, job).await {
        Some(list(pages, paths.clone()).await?)
    } else {
        None
    };
    let more = job.spec.artifacts.len() as i64 - paths.len() as i64;
    Ok(html! {
        h2 { (text::RESULTS) }
        @for (position, (index, path)) in paths.iter().enumerate() {
            p {
                code { (path.display()) }
                @match &listed {
                    None => { " " (text::ELSEWHERE) " " (job.worker) },
                    Some(found) => @if found.get(position).is_none_or(Option::is_none) {
                        " (" (text::NOTHING_THERE_YET) ")"
                    },
                }
            }
            @if let Some(Some(listing)) = listed.as_ref().and_then(|found| found.get(position)) {
                (shown(job.id, *index, listing))
            }
        }
        @if more > 0 { p.counts { (text::and_more(more)) } }
    })
}

fn shown(job: JobId, index: usize, listing: &Listing) -> Markup {
    html! {
        @if !listing.pictures.is_empty() {
            div.pictures {
                @for name in &listing.pictures {
                    @let path = format!(
                        "/jobs/{job}/artifacts/{index}/{}",
                        crate::app::links::encode_path(name)
                    );
                    a href=(path) title=(name) {
                        img src=(path) alt=(name) loading="lazy" decoding="async";
                    }
                }
            }
        }
        @if !listing.others.is_empty() {
            p.counts { @for name in &listing.others { code { (name) } " " } }
        }
        @if listing.more > 0 { p.counts { (text::and_more(listing.more as i64)) } }
    }
}

/// True when the job's latest worker is this machine, so that its paths are ours.
async fn is_here(pages: &Pages, job: &JobRecord) -> bool {
    let Ok(view) = pages.app.worker(&job.worker).await else {
        return false;
    };
    // Machines can share a name; connected ones do not share a boot.
    let same_boot = pages
        .app
        .sessions
        .get(view.worker.id)
        .is_none_or(|session| session.boot_id == pages.machine.boot_id);
    view.worker.hostname == pages.machine.hostname && same_boot
}

async fn list(
    pages: &Pages,
    paths: Vec<(usize, PathBuf)>,
) -> Result<Vec<Option<Listing>>, PageError> {
    // Never closed, so this only waits for its turn.
    let _turn = pages.file_readers.acquire().await;
    tokio::task::spawn_blocking(move || {
        paths
            .iter()
            .map(|(_, path)| artifacts::list(path))
            .collect()
    })
    .await
    .map_err(|_| PageError::Broken)
}

/// A picture among a job's results.
pub(super) async fn artifact(
    State(pages): State<Pages>,
    Path((id, index, below)): Path<(String, String, String)>,
) -> Result<Response, PageError> {
    let view = pages.app.job_view(number(&id)?).await?;
    if !is_here(&pages, &view.job).await {
        return Err(PageError::NoSuchPage);
    }
    let path = index
        .parse()
        .ok()
        .and_then(|index| artifacts::declared(&view.job.spec, index))
        .ok_or(PageError::NoSuchPage)?;
    let turn = pages.file_readers.acquire().await;
    let picture = tokio::task::spawn_blocking(move || artifacts::open(&path, &below))
        .await
        .map_err(|_| PageError::Broken)?
        .ok_or(PageError::NoSuchPage)?;
    drop(turn);
    let file = tokio::fs::File::from_std(picture.file).take(picture.length);
    let pieces = futures_util::stream::try_unfold(file, |mut file| async move {
        let mut piece = Vec::with_capacity(PIECE);
        let read = (&mut file)
            .take(PIECE as u64)
            .read_to_end(&mut piece)
            .await?;
        Ok::<_, std::io::Error>((read > 0).then_some((Bytes::from(piece), file)))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(picture.kind)),
        (
            header::CACHE_CONTROL,
            HeaderValue::from_static("private, max-age=30"),
        ),
        (header::CONTENT_LENGTH, HeaderValue::from(picture.length)),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_number_is_a_job() {
        assert!(matches!(number("42"), Ok(JobId(42))));
        for strange in ["", "x", "42.1", "99999999999999999999"] {
            assert!(number(strange).is_err(), "{strange}");
        }
    }
}
