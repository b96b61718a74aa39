//! What follow mode knows of a job, and what it shows of it. Decisions only: drawing is the caller's.

use std::fmt::Write as _;
use std::time::Duration;

use chrono::{DateTime, Utc};
use qctl_proto::v1;
use qctl_proto::v1::job::State;

use super::output_lines::{OutputLines, Stream};
use crate::output::table::Paint;
use crate::output::{View, job, text, time};

/// How long the last output of an ended job is waited for.
const OUTPUT_PATIENCE: chrono::Duration = chrono::Duration::seconds(30);
/// Narrowest and widest bar, in columns, its brackets included.
const BAR: std::ops::RangeInclusive<usize> = 12..=40;
/// Frames of the sign that something is alive.
const SPINNER: [char; 4] = ['|', '/', '-', '\\'];

/// A line that stays, for which the screen moves up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// The job's own.
    Output(String),
    /// Ours, about the job.
    Remark(String),
}

/// A job being followed.
#[derive(Debug)]
pub(super) struct Model {
    colour: bool,
    lines: OutputLines,
    job: Option<v1::Job>,
    /// Why it is not running, in a sentence.
    why: String,
    /// True while the coordinator does not answer.
    away: bool,
    /// When the progress shown was received; its remaining time counts down from here.
    progress_at: DateTime<Utc>,
    /// The attempt whose output came last.
    attempt_shown: i32,
    output_complete: bool,
    ended_at: Option<DateTime<Utc>>,
}

impl Model {
    /// Nothing is known yet.
    pub(super) fn new(colour: bool, now: DateTime<Utc>) -> Self {
        Self {
            colour,
            lines: OutputLines::new(colour),
            job: None,
            why: String::new(),
            away: false,
            progress_at: now,
            attempt_shown: 0,
            output_complete: false,
            ended_at: None,
        }
    }

    /// The job as it was last heard of.
    pub(super) fn job(&self) -> Option<&v1::Job> {
        self.job.as_ref()
    }

    /// The job has changed. Gives the lines that tell what a reader should know of it.
    pub(super) fn job_changed(&mut self, new: v1::Job, now: DateTime<Utc>) -> Vec<Line> {
        let told = self
            .job
            .as_ref()
            .map_or_else(Vec::new, |old| changes(old, &new));
        let progress = |job: &v1::Job| job.progress.clone().map(|it| (it.done, it.percent, it.eta));
        if self.job.as_ref().and_then(progress) != progress(&new) {
            self.progress_at = now;
        }
        if !is_pending(&new) {
            self.why.clear();
        }
        if has_ended(&new) {
            self.ended_at.get_or_insert(now);
        }
        self.job = Some(new);
        told.into_iter().map(|line| self.remark(&line)).collect()
    }

    /// Why it is not running was asked and answered.
    pub(super) fn explained(&mut self, sentence: &str) {
        if self.job.as_ref().is_some_and(is_pending) {
            self.why = text::printable(sentence);
        }
    }

    /// Why it is not running. Empty when that is not known, or it runs.
    pub(super) fn why(&self) -> &str {
        &self.why
    }

    /// The coordinator went away or came back. Gives the line that tells it, once.
    pub(super) fn set_away(&mut self, away: bool) -> Option<Line> {
        if self.away == away {
            return None;
        }
        self.away = away;
        let line = if away {
            "the coordinator is away; the job goes on, and this view comes back to it"
        } else {
            "the coordinator is back"
        };
        Some(self.remark(line))
    }

    /// A piece of output came. Gives the lines that it completes.
    pub(super) fn output(&mut self, piece: &v1::ReadLogResponse) -> Vec<Line> {
        let mut out = Vec::new();
        if piece.attempt > self.attempt_shown {
            self.end_lines(&mut out);
            if self.attempt_shown > 0 || piece.attempt > 1 {
                out.push(self.remark(&format!("attempt {}", piece.attempt)));
            }
            self.attempt_shown = piece.attempt;
        }
        if let Some(gap) = text::gap(piece) {
            self.end_lines(&mut out);
            out.push(self.remark(&gap));
        }
        let mut lines = Vec::new();
        let mut start = 0;
        for run in &piece.runs {
            let end = piece.data.len().min(start + run.length as usize);
            let stream = match run.stream() {
                v1::LogStream::Stderr => Stream::Error,
                _ => Stream::Output,
            };
            self.lines.feed(stream, &piece.data[start..end], &mut lines);
            start = end;
        }
        self.lines
            .feed(Stream::Output, &piece.data[start..], &mut lines);
        out.extend(lines.into_iter().map(Line::Output));
        // Of an attempt that was given back before it started there is nothing to miss.
        let was_given_back = piece.offset == 0
            && self
                .job
                .as_ref()
                .is_some_and(|job| job.attempt > piece.attempt);
        if piece.incomplete && !was_given_back {
            self.end_lines(&mut out);
            out.push(
                self.remark(
                    "a part of the output has not arrived: its worker has not been heard of",
                ),
            );
        }
        out
    }

    /// All output of the last attempt was received. Gives the lines that were left unfinished.
    pub(super) fn output_complete(&mut self) -> Vec<Line> {
        self.output_complete = true;
        let mut out = Vec::new();
        self.end_lines(&mut out);
        out
    }

    fn end_lines(&mut self, out: &mut Vec<Line>) {
        let mut lines = Vec::new();
        self.lines.finish(&mut lines);
        out.extend(lines.into_iter().map(Line::Output));
    }

    /// Nothing more will come: the job has ended and so has its output, or waiting for it.
    pub(super) fn is_over(&self, now: DateTime<Utc>) -> bool {
        match self.ended_at {
            None => false,
            Some(ended) => self.output_complete || now - ended > OUTPUT_PATIENCE,
        }
    }

    /// The last lines: how the job ended and where its pages are.
    pub(super) fn closing(&self, view: &View) -> String {
        let Some(job) = &self.job else {
            return String::new();
        };
        let mut out = String::new();
        if !self.output_complete {
            out.push_str("--- the end of the output has not arrived yet\n");
        }
        let ended = job::ended(job, view);
        out.push_str(&ended);
        let explains = job
            .outcome
            .as_ref()
            .filter(|_| job.state() != State::Succeeded)
            .map(|outcome| text::printable(&outcome.message))
            .filter(|message| !message.is_empty() && !ended.contains(message.as_str()));
        if let Some(message) = explains {
            let _ = writeln!(out, "  {message}");
        }
        out.push_str(&job::links(job));
        out
    }

    /// The lines that are drawn below the output and move: the bar, and the unfinished line.
    ///
    /// `width` is the terminal's, in columns; `beat` counts the drawings.
    pub(super) fn frame(&self, now: DateTime<Utc>, width: usize, beat: usize) -> Vec<String> {
        // A line that fills the last column wraps on some terminals.
        let width = width.saturating_sub(1);
        let Some(job) = &self.job else {
            return Vec::new();
        };
        let mut frame = Vec::new();
        let unfinished = self.lines.unfinished();
        let is_drawn_as_bar = job
            .progress
            .as_ref()
            .is_some_and(|progress| matches!(progress.source.as_str(), "tqdm" | "osc"));
        if !unfinished.trim().is_empty() && !is_drawn_as_bar {
            // Cut by columns, colours would count; the plain text is enough for a moving line.
            let plain = without_colours(&unfinished);
            frame.push(self.paint(Paint::Dim, &text::cut(plain.trim_end(), width)));
        }
        let spinner = SPINNER[beat % SPINNER.len()];
        let head = format!("{} {}", job.id, text::printable(name(job)));
        frame.push(if self.away {
            let line = format!("{spinner} {head}  the coordinator is away; the job goes on");
            text::cut(&line, width)
        } else {
            self.state_line(job, &head, spinner, now, width)
        });
        frame
    }

    fn state_line(
        &self,
        job: &v1::Job,
        head: &str,
        spinner: char,
        now: DateTime<Utc>,
        width: usize,
    ) -> String {
        let since = |at: Option<&prost_types::Timestamp>| {
            time::instant(at)
                .map(|at| time::duration((now - at).to_std().unwrap_or_default()))
                .unwrap_or_default()
        };
        let line = match job.state() {
            State::Running => {
                let elapsed = since(job.started_at.as_ref());
                let note = match (job.unreachable, job.paused) {
                    (true, _) => ", not heard of",
                    (_, true) => ", paused",
                    _ => "",
                };
                let progress = job
                    .progress
                    .as_ref()
                    .map(|progress| self.counted_down(progress, now));
                let fraction = progress.as_ref().and_then(fraction);
                match (progress, fraction) {
                    (Some(progress), Some(fraction)) => {
                        let tail = format!("{}, {elapsed}{note}", job::progress(&progress));
                        return self.with_bar(head, fraction, &tail, width);
                    }
                    (Some(progress), None) => {
                        format!(
                            "{spinner} {head}  {}, {elapsed}{note}",
                            job::progress(&progress)
                        )
                    }
                    (None, _) => {
                        let worker = text::printable(&job.worker);
                        format!("{spinner} {head}  running on {worker} for {elapsed}{note}")
                    }
                }
            }
            _ if has_ended(job) => {
                format!("{spinner} {head}  ended, its last output is on its way")
            }
            _ => {
                let waited = since(job.created_at.as_ref());
                let why = if self.why.is_empty() {
                    &job.message
                } else {
                    &self.why
                };
                let state = crate::output::document::job_state(job.state());
                let mut line = format!("{spinner} {head}  {state} for {waited}");
                if !why.is_empty() {
                    let _ = write!(line, ": {}", text::printable(why));
                }
                line
            }
        };
        text::cut(&line, width)
    }

    /// Progress whose remaining time has gone on since it was received.
    fn counted_down(&self, progress: &v1::Progress, now: DateTime<Utc>) -> v1::Progress {
        let mut progress = progress.clone();
        let passed = (now - self.progress_at).to_std().unwrap_or_default();
        if let Some(eta) = time::span(progress.eta.as_ref()) {
            // An estimate that has run out says nothing any more.
            progress.eta = eta.checked_sub(passed).map(time::wire_span);
        }
        progress
    }

    /// `42 pictures [=====>      ] 12/30 …`, the bar taking the columns that are left.
    fn with_bar(&self, head: &str, fraction: f64, tail: &str, width: usize) -> String {
        let head = text::cut(head, width / 3);
        let taken = text::width(&head) + text::width(tail) + 2;
        let bar = width.saturating_sub(taken).min(*BAR.end());
        if bar < *BAR.start() {
            return text::cut(&format!("{head} {tail}"), width);
        }
        let bar = self.paint(Paint::Blue, &draw_bar(fraction, bar));
        format!("{head} {bar} {tail}")
    }

    fn remark(&self, line: &str) -> Line {
        let line = format!("--- {}", text::printable(line));
        Line::Remark(self.paint(Paint::Dim, &line))
    }

    fn paint(&self, paint: Paint, text: &str) -> String {
        paint.on(text, self.colour)
    }
}

/// What a reader should know of the difference between two states of a job.
fn changes(old: &v1::Job, new: &v1::Job) -> Vec<String> {
    let mut told = Vec::new();
    if old.state() == State::Running && is_pending(new) {
        let outcome = new.outcome.as_ref().map_or("", |it| it.message.as_str());
        // The job's own sentence begins with the outcome and goes on with what follows from it.
        let how = [new.message.as_str(), outcome]
            .into_iter()
            .find(|text| !text.is_empty())
            .unwrap_or("it ended");
        told.push(format!("attempt {} is over: {how}", old.attempt));
    }
    if new.state() == State::Held && old.state() != State::Held {
        told.push(format!(
            "the job is held until someone lets it go on: qctl release {}",
            new.id
        ));
    }
    if old.state() == State::Held && is_pending(new) && new.state() != State::Held {
        told.push("the job was released".to_owned());
    }
    match (old.unreachable, new.unreachable) {
        (false, true) => told.push(format!(
            "nothing was heard of the job on worker {} for a minute; it may well be running",
            new.worker
        )),
        (true, false) if !has_ended(new) => told.push(format!(
            "the job on worker {} is heard of again",
            new.worker
        )),
        _ => {}
    }
    match (old.paused, new.paused) {
        (false, true) => told.push(format!(
            "the job is paused; qctl resume {} thaws it",
            new.id
        )),
        (true, false) if !has_ended(new) => told.push("the job was resumed".to_owned()),
        _ => {}
    }
    told
}

/// True while a job waits, for whatever.
pub(super) fn is_pending(job: &v1::Job) -> bool {
    matches!(job.state(), State::Waiting | State::Queued | State::Held)
}

/// True once a job's state is final.
pub(super) fn has_ended(job: &v1::Job) -> bool {
    matches!(
        job.state(),
        State::Succeeded | State::Failed | State::Cancelled
    )
}

fn name(job: &v1::Job) -> &str {
    job.spec.as_ref().map_or("", |spec| spec.name.as_str())
}

/// How much is done, from 0 to 1.
fn fraction(progress: &v1::Progress) -> Option<f64> {
    let fraction = match progress.percent {
        Some(percent) => percent / 100.0,
        None if progress.total > 0.0 => progress.done / progress.total,
        None => return None,
    };
    fraction.is_finite().then(|| fraction.clamp(0.0, 1.0))
}

fn draw_bar(fraction: f64, columns: usize) -> String {
    let room = columns.saturating_sub(2);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    let filled = ((room as f64 * fraction).floor() as usize).min(room);
    let mut bar = String::from("[");
    bar.extend(std::iter::repeat_n('=', filled));
    if filled < room {
        bar.push('>');
        bar.extend(std::iter::repeat_n(' ', room - filled - 1));
    }
    bar.push(']');
    bar
}

fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut in_sequence = false;
    for c in line.chars() {
        match c {
            '\u{1b}' => in_sequence = true,
            _ if in_sequence => in_sequence = c != 'm',
            _ => plain.push(c),
        }
    }
    plain
}

/// How often progress is worth a line where lines stay: not within ten seconds of the one before,
/// and then at each tenth of the way or once a minute.
#[derive(Debug, Default)]
pub(super) struct Pace {
    last: Option<(DateTime<Utc>, f64)>,
    why: Option<(DateTime<Utc>, String)>,
}

impl Pace {
    const LEAST: chrono::Duration = chrono::Duration::seconds(10);
    const MOST: chrono::Duration = chrono::Duration::seconds(60);
    const STEP: f64 = 0.1;

    /// The line to print for this progress, when one is due.
    pub(super) fn progress(
        &mut self,
        progress: &v1::Progress,
        now: DateTime<Utc>,
    ) -> Option<String> {
        let fraction = fraction(progress).unwrap_or(0.0);
        if let Some((at, shown)) = self.last {
            let passed = now - at;
            let moved = (fraction - shown).abs();
            let due = passed >= Self::LEAST && (moved >= Self::STEP || passed >= Self::MOST);
            if !due {
                return None;
            }
        }
        let line = job::progress(progress);
        if line.is_empty() {
            return None;
        }
        self.last = Some((now, fraction));
        Some(line)
    }

    /// The line to print for this reason of waiting, when it is new and one is due.
    pub(super) fn why(&mut self, why: &str, now: DateTime<Utc>) -> Option<String> {
        if why.is_empty() {
            return None;
        }
        if let Some((at, shown)) = &self.why
            && (shown == why || now - *at < Self::LEAST)
        {
            return None;
        }
        self.why = Some((now, why.to_owned()));
        Some(why.to_owned())
    }
}

/// Pause before the next attempt to reach the coordinator: 0.1 s, doubling up to 5 s.
pub(super) fn pause(failures: u32) -> Duration {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);
    FIRST.saturating_mul(1 << failures.min(10)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::time::Zone;
    use chrono::{FixedOffset, TimeZone as _};

    fn at(seconds: i64) -> DateTime<Utc> {
        Utc.with_ymd_and_hms(2026, 11, 21, 12, 0, 0).unwrap() + chrono::Duration::seconds(seconds)
    }

    fn stamp(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(time::timestamp(at(seconds)))
    }

    fn job(state: State) -> v1::Job {
        v1::Job {
            id: 42,
            state: state.into(),
            attempt: 1,
            worker: "box".to_owned(),
            created_at: stamp(0),
            started_at: (state != State::Queued).then(|| stamp(2)).flatten(),
            spec: Some(v1::JobSpec {
                name: "画像抽出".to_owned(),
                tracker: "INTG-088".to_owned(),
                ..Default::default()
            }),
            url: "http://127.0.0.1:7420/jobs/42?k=x".to_owned(),
            tracker_url: "http://127.0.0.1:7420/tracker/INTG-088?k=x".to_owned(),
            ..Default::default()
        }
    }

    fn progress(done: f64, source: &str) -> v1::Progress {
        v1::Progress {
            done,
            total: 30.0,
            unit: "images".to_owned(),
            percent: Some(done / 0.3),
            rate: Some(2.1),
            eta: Some(time::wire_span(Duration::from_secs(20))),
            source: source.to_owned(),
            ..Default::default()
        }
    }

    fn piece(attempt: i32, text: &[u8]) -> v1::ReadLogResponse {
        v1::ReadLogResponse {
            attempt,
            data: text.to_vec().into(),
            runs: vec![v1::LogRun {
                stream: v1::LogStream::Stdout.into(),
                length: u32::try_from(text.len()).unwrap(),
                time: None,
            }],
            ..Default::default()
        }
    }

    fn texts(lines: impl IntoIterator<Item = Line>) -> Vec<String> {
        lines
            .into_iter()
            .map(|line| match line {
                Line::Output(text) | Line::Remark(text) => text,
            })
            .collect()
    }

    fn view(seconds: i64) -> View {
        View {
            now: at(seconds),
            zone: Zone::Fixed(FixedOffset::east_opt(0).unwrap()),
            colour: false,
            width: Some(100),
        }
    }

    fn frame(model: &Model, seconds: i64, width: usize) -> String {
        model.frame(at(seconds), width, 0).join("\n")
    }

    #[test]
    fn the_frame_tells_of_every_state() {
        let mut model = Model::new(false, at(0));
        assert_eq!(frame(&model, 0, 80), "");
        model.job_changed(job(State::Queued), at(0));
        model.explained("waits behind 2 jobs: 40, 41");
        let queued = frame(&model, 12, 80);
        model.job_changed(job(State::Running), at(12));
        let running = frame(&model, 14, 80);
        let mut counted = job(State::Running);
        counted.progress = Some(progress(12.0, "counter"));
        model.job_changed(counted.clone(), at(20));
        let with_bar = frame(&model, 25, 100);
        let narrow = frame(&model, 25, 40);
        model.output(&piece(1, b"loading the model ... "));
        let with_line = frame(&model, 25, 100);
        counted.paused = true;
        model.job_changed(counted, at(26));
        let paused = frame(&model, 26, 100);
        model.set_away(true);
        let away = frame(&model, 30, 80);
        insta::assert_snapshot!(
            [queued, running, with_bar, narrow, with_line, paused, away].join("\n"),
            @r"
        | 42 画像抽出  queued for 12s: waits behind 2 jobs: 40, 41
        | 42 画像抽出  running on box for 12s
        42 画像抽出 [===============>                      ] 12/30 images, 40 %, 2.1/s, 15s left, 23s
        42 画像抽出 12/30 images, 40 %, 2.1/s,…
        loading the model ...
        42 画像抽出 [===============>                      ] 12/30 images, 40 %, 2.1/s, 15s left, 23s
        loading the model ...
        42 画像抽出 [==============>                     ] 12/30 images, 40 %, 2.1/s, 14s left, 24s, paused
        loading the model ...
        | 42 画像抽出  the coordinator is away; the job goes on
        "
        );
    }

    #[test]
    fn no_line_of_a_frame_is_wider_than_the_terminal() {
        let mut model = Model::new(true, at(0));
        let mut counted = job(State::Running);
        counted.progress = Some(v1::Progress {
            message: "画像".repeat(40),
            ..progress(12.0, "report")
        });
        model.job_changed(counted, at(0));
        model.output(&piece(1, "\x1b[31m長い行".repeat(40).as_bytes()));
        for width in 1..200 {
            for line in model.frame(at(5), width, 3) {
                let columns = text::width(&without_colours(&line));
                assert!(columns < width.max(1), "{columns} of {width}: {line}");
            }
        }
    }

    #[test]
    fn a_frame_of_tqdm_is_shown_as_the_bar_only() {
        let mut model = Model::new(false, at(0));
        let mut counted = job(State::Running);
        counted.progress = Some(progress(12.0, "tqdm"));
        model.job_changed(counted, at(0));
        model.output(&piece(1, b"\r 40%|####      | 12/30"));
        assert_eq!(model.frame(at(1), 100, 0).len(), 1);
    }

    #[test]
    fn the_bar_is_full_only_at_the_end() {
        assert_eq!(draw_bar(0.0, 12), "[>         ]");
        assert_eq!(draw_bar(0.999, 12), "[=========>]");
        assert_eq!(draw_bar(1.0, 12), "[==========]");
    }

    #[test]
    fn a_retry_is_told_with_its_cause_and_marks_the_output() {
        let mut model = Model::new(false, at(0));
        model.job_changed(job(State::Running), at(0));
        assert!(model.output(&piece(1, b"first")).is_empty());
        let mut waiting = job(State::Waiting);
        waiting.outcome = Some(v1::Outcome {
            message: "exited with 3".to_owned(),
            ..Default::default()
        });
        assert_eq!(
            texts(
                changes(&job(State::Running), &waiting)
                    .into_iter()
                    .map(Line::Remark)
            ),
            ["attempt 1 is over: exited with 3"]
        );
        waiting.message = "exited with 3; retry 1 of 2 starts in 4 s".to_owned();
        assert_eq!(
            texts(model.job_changed(waiting, at(1))),
            ["--- attempt 1 is over: exited with 3; retry 1 of 2 starts in 4 s"]
        );
        assert_eq!(
            texts(model.output(&piece(2, b"second\n"))),
            ["first", "--- attempt 2", "second"]
        );
    }

    #[test]
    fn trouble_on_the_way_is_told_once() {
        let mut model = Model::new(false, at(0));
        let running = job(State::Running);
        assert!(model.job_changed(running.clone(), at(0)).is_empty());
        let lost = v1::Job {
            unreachable: true,
            ..running.clone()
        };
        assert_eq!(model.job_changed(lost.clone(), at(60)).len(), 1);
        assert!(model.job_changed(lost, at(65)).is_empty());
        assert_eq!(
            texts(model.job_changed(running, at(70))),
            ["--- the job on worker box is heard of again"]
        );
        assert!(model.set_away(true).is_some());
        assert!(model.set_away(true).is_none());
        assert!(model.set_away(false).is_some());
    }

    #[test]
    fn it_is_over_when_the_output_is_whole_or_was_waited_for() {
        let mut model = Model::new(false, at(0));
        model.job_changed(job(State::Succeeded), at(5));
        assert!(!model.is_over(at(6)));
        assert!(model.is_over(at(36)));
        assert!(model.closing(&view(36)).contains("has not arrived"));
        model.output(&piece(1, b"last"));
        assert_eq!(model.output_complete(), [Line::Output("last".to_owned())]);
        assert!(model.is_over(at(6)));
    }

    #[test]
    fn the_end_has_outcome_duration_and_links() {
        let mut model = Model::new(false, at(0));
        let mut failed = job(State::Failed);
        failed.ended_at = stamp(194);
        failed.attempt = 3;
        failed.outcome = Some(v1::Outcome {
            cause: "exit".to_owned(),
            exit_code: Some(3),
            message: "it exited with 3".to_owned(),
            ..Default::default()
        });
        model.job_changed(failed, at(194));
        model.output_complete();
        insta::assert_snapshot!(model.closing(&view(200)), @r"
        Job 42 画像抽出 failed (exit 3) after 3m12s, attempt 3
          it exited with 3
          http://127.0.0.1:7420/jobs/42?k=x
          INTG-088: http://127.0.0.1:7420/tracker/INTG-088?k=x
        ");
    }

    #[test]
    fn lost_output_is_told_where_it_is_missing() {
        let mut model = Model::new(false, at(0));
        let mut hole = piece(1, b"after\n");
        hole.hole_bytes = 2048;
        hole.hole_lines = 30;
        hole.set_hole_cause(v1::HoleCause::NoRoom);
        model.output(&piece(1, b"bef"));
        assert_eq!(
            texts(model.output(&hole)),
            [
                "bef",
                "--- 2.0 KiB of output with 30 line ends are missing here: the worker's disk was full",
                "after"
            ]
        );
    }

    #[test]
    fn lines_that_stay_are_few() {
        let mut pace = Pace::default();
        let told = |pace: &mut Pace, done, seconds| {
            pace.progress(&progress(done, "counter"), at(seconds))
                .is_some()
        };
        assert!(told(&mut pace, 1.0, 0), "the first is told at once");
        assert!(!told(&mut pace, 20.0, 5), "not within ten seconds");
        assert!(told(&mut pace, 20.0, 10));
        assert!(!told(&mut pace, 21.0, 30), "not without a tenth of the way");
        assert!(told(&mut pace, 21.0, 70), "but once a minute");
        assert!(pace.why("waits behind 2 jobs", at(0)).is_some());
        assert!(pace.why("waits behind 2 jobs", at(60)).is_none());
        assert!(pace.why("waits behind 1 job", at(61)).is_some());
        assert!(pace.why("waits behind 0 jobs", at(62)).is_none());
    }

    #[test]
    fn the_pause_of_an_outage_grows() {
        assert_eq!(pause(0), Duration::from_millis(100));
        assert_eq!(pause(1), Duration::from_millis(200));
        assert_eq!(pause(u32::MAX), Duration::from_secs(5));
    }
}
