//! Parts that several pages show.

use std::time::Duration;

use maud::{Markup, html};
use qctl_server_core::{JobState, Progress};

use super::{format, text};
use crate::app::read::JobView;

/// A state as a coloured word.
pub(super) fn pill(word: &str) -> Markup {
    html! { span class={ "pill " (word.replace(' ', "-")) } { (word) } }
}

/// The state of a job as a coloured word.
pub(super) fn state_pill(state: JobState) -> Markup {
    pill(text::state(state))
}

/// How far a job is: a bar where there is a share, and what is known in words.
pub(super) fn progress(progress: &Progress) -> Markup {
    let percent = percent(progress);
    let words = progress_words(progress);
    html! {
        div.progress {
            @if let Some(percent) = percent {
                progress max="100" value=(format!("{percent:.1}")) {}
                // Rounded down: what is nearly done is not done.
                span.percent { (format!("{:.0}", percent.floor())) " %" }
            }
            @if !words.is_empty() { p.counts { (words) } }
            @if !progress.message.is_empty() { p.counts { (progress.message) } }
        }
    }
}

fn percent(progress: &Progress) -> Option<f64> {
    let percent = match progress.percent {
        Some(percent) => percent,
        None if progress.total > 0.0 => progress.done / progress.total * 100.0,
        None => return None,
    };
    percent.is_finite().then(|| percent.clamp(0.0, 100.0))
}

fn progress_words(progress: &Progress) -> String {
    let mut words = Vec::new();
    // A percentage alone is in the bar already.
    if progress.unit != "%" {
        if progress.total > 0.0 {
            words.push(text::of(
                &format::count(progress.done),
                &format::count(progress.total),
                &progress.unit,
            ));
        } else if progress.done > 0.0 {
            words.push(format!(
                "{} {}",
                format::count(progress.done),
                progress.unit
            ));
        }
    }
    if let Some(rate) = progress.rate.filter(|rate| rate.is_finite() && *rate > 0.0) {
        words.push(format::rate(rate, &progress.unit));
    }
    if let Some(seconds) = progress.eta.map(|eta| eta.as_secs()).filter(|eta| *eta > 0) {
        // An estimate has no tenths.
        words.push(text::left(&format::duration(Duration::from_secs(seconds))));
    }
    words.join(" · ")
}

/// A job as an entry of a list.
pub(super) fn job_entry(view: &JobView, now: chrono::DateTime<chrono::Utc>) -> Markup {
    let job = &view.job;
    html! {
        li.job {
            a href={ "/jobs/" (job.id) } {
                span.number { (job.id) } " "
                span.name { (job.spec.name) }
            }
            " " (state_pill(job.state))
            p.counts {
                @if job.state == JobState::Running {
                    @if let Some(started) = job.started_at {
                        (text::for_time(&format::between(started, now)))
                    }
                    @if !job.worker.is_empty() { " · " (job.worker) }
                } @else if let Some(ended) = job.ended_at {
                    (format::time(ended))
                    @if let Some(started) = job.started_at {
                        " · " (format::between(started, ended))
                    }
                } @else {
                    (format::time(job.created_at))
                }
                @if !job.spec.tracker.is_empty() {
                    " · " a href=(tracker_path(&job.spec.tracker)) { (job.spec.tracker) }
                }
            }
            @if job.state == JobState::Running {
                @if let Some(known) = &job.progress { (progress(known)) }
            } @else if !job.message.is_empty() {
                p.counts { (job.message) }
            }
        }
    }
}

/// Path of a tracker's page.
pub(super) fn tracker_path(tracker: &str) -> String {
    format!("/tracker/{}", crate::app::links::encode(tracker))
}

/// How many jobs are in each state.
pub(super) fn counts(counts: &[(JobState, i64)]) -> Markup {
    html! {
        p.summary {
            @for (state, count) in counts {
                @if *count > 0 {
                    span class={ "tally " (text::state(*state)) } {
                        b { (count) } " " (text::state(*state))
                    }
                    " "
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_what_is_known_and_no_more() {
        let known = Progress {
            done: 12.0,
            total: 30.0,
            unit: "images".to_owned(),
            rate: Some(3.2),
            eta: Some(Duration::from_secs(6)),
            ..Progress::default()
        };
        assert_eq!(
            progress_words(&known),
            "12 of 30 images · 3.2 images/s · about 6 s left"
        );
        assert_eq!(percent(&known), Some(40.0));
        let percent_only = Progress {
            done: 70.0,
            total: 100.0,
            unit: "%".to_owned(),
            percent: Some(70.0),
            ..Progress::default()
        };
        assert_eq!(progress_words(&percent_only), "");
        let count_only = Progress {
            done: 7.0,
            unit: "files".to_owned(),
            ..Progress::default()
        };
        assert_eq!(progress_words(&count_only), "7 files");
        assert_eq!(percent(&count_only), None);
    }

    #[test]
    fn nonsense_from_a_job_does_not_reach_the_bar() {
        let nonsense = Progress {
            done: f64::INFINITY,
            total: f64::NAN,
            percent: Some(1e9),
            ..Progress::default()
        };
        assert_eq!(percent(&nonsense), Some(100.0));
        assert!(
            progress(&nonsense)
                .into_string()
                .contains("value=\"100.0\"")
        );
    }
}
