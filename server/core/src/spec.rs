//! What a user asks to be run, and which of it is acceptable.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::alarm::setting::{self, Settings};
use crate::failure::{EXIT_CODES, FailureCause, MAX_CAUSES, RetryRules};
use crate::id::JobId;
use crate::notice::Wish;
use crate::silence;

/// Most jobs of one submission.
pub const MAX_BATCH: usize = 10_000;
/// Longest name and label, in bytes.
pub const MAX_NAME_BYTES: usize = 200;
/// Longest path, in bytes.
pub const MAX_PATH_BYTES: usize = 4_095;
/// Most bytes of arguments and environment together: more than Linux hands to a program by default.
pub const MAX_ARGUMENT_BYTES: usize = 16 * 1024 * 1024;
/// Most labels of a job.
pub const MAX_LABELS: usize = 64;
/// Most dependencies of a job.
pub const MAX_DEPENDENCIES: usize = 1_000;
/// Most automatic retries or resumes.
pub const MAX_BUDGET: i32 = 1_000;
/// Most slots or GPUs that a job may ask for.
pub const MAX_DEMAND: i32 = 1_000;
/// Longest time limit: ten years.
pub const MAX_TIME_LIMIT: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);
/// Longest time between the stop signal and force: a day.
pub const MAX_STOP_GRACE: Duration = Duration::from_secs(24 * 60 * 60);
/// Least and most output, in bytes, that a worker can be asked to keep: 1 MiB and 1 PiB.
pub const LOG_LIMIT_BYTES: std::ops::RangeInclusive<i64> = 1 << 20..=1 << 50;
/// Time between the stop signal and force unless the job says otherwise.
pub const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(10);
/// Automatic retries after failures unless the job says otherwise.
pub const DEFAULT_RETRIES: i32 = 2;
/// How long GPUs may be left unused, where that is not for ever.
const GPU_IDLE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(10 * 366 * 24 * 60 * 60);

/// Automatic resumes after interruptions unless the job says otherwise.
pub const DEFAULT_RESUMES: i32 = 3;

/// What a user asks to be run. Stored as JSON: fields are only ever added, with a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobSpec {
    /// Short name for people.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// True when the user asked for a shell; the command is then the shell's argument vector.
    pub shell: bool,
    /// Absolute working directory on the worker.
    pub cwd: String,
    /// The whole environment of the job.
    pub env: BTreeMap<String, String>,
    /// Ticket the job belongs to; empty when none.
    pub tracker: String,
    /// Absolute folder for the tracker's outputs; empty when none.
    pub workspace: String,
    /// Labels for filtering; a bare label has an empty value.
    pub labels: BTreeMap<String, String>,
    /// Higher runs first.
    pub priority: i32,
    /// Jobs that must have ended first.
    pub after: Vec<Dependency>,
    /// Longest run time of one attempt.
    #[serde(with = "micros")]
    pub time_limit: Option<Duration>,
    /// How long before the time limit the warning signal is sent.
    #[serde(with = "micros")]
    pub warn_before: Option<Duration>,
    /// Signal number of the warning; 0 means SIGUSR1.
    pub warn_signal: i32,
    /// Automatic retries after failures.
    pub retries: Option<i32>,
    /// Automatic resumes after interruptions.
    pub resumes: Option<i32>,
    /// What one attempt occupies.
    pub demand: Demand,
    /// Name of the only worker that may run it; empty means any.
    pub worker: String,
    /// True when two attempts must never run at once.
    pub exclusive: bool,
    /// True when the job waits for an explicit release.
    pub hold: bool,
    /// Pattern that recognises progress in the output.
    pub progress_pattern: String,
    /// Run on a pseudo-terminal.
    pub pty: bool,
    /// Template that the job was made from.
    pub template: String,
    /// Machine that submitted the job.
    pub submit_host: String,
    /// Time between the stop signal and force.
    #[serde(with = "micros")]
    pub stop_grace: Option<Duration>,
    /// Files or folders whose contents are the job's results.
    pub artifacts: Vec<String>,
    /// Most bytes of one attempt's output that its worker keeps; 0 means the worker's default.
    pub log_limit_bytes: i64,
    /// Which failures are retried.
    pub retry_rules: RetryRules,
    /// Exit code that means "checkpointed, run me again".
    pub checkpoint_exit_code: Option<i32>,
    /// Pattern of a line near the end of the output that makes exit 0 a failure; empty when none.
    pub contradicted_by: String,
    /// Which of its events its submitter wants to be told.
    pub notify: Wish,
    /// From which figure on something is an alarm, where that is not as usual.
    pub alarms: Settings,
    /// When an attempt counts as silent, as far as the job chooses that.
    pub silence: silence::Rules,
    /// How long an attempt that computes may leave its GPUs unused; zero for ever.
    #[serde(with = "micros")]
    pub gpu_idle: Option<Duration>,
}

/// What an attempt occupies, or what a worker offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Demand {
    /// Slots, at least 1.
    pub slots: i32,
    /// Whole GPUs.
    pub gpus: i32,
    /// Memory in bytes; 0 means not stated.
    pub memory_bytes: i64,
}

impl Default for Demand {
    fn default() -> Self {
        Self {
            slots: 1,
            gpus: 0,
            memory_bytes: 0,
        }
    }
}

/// A job that must have ended first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// The other job; in a submission a negative number counts the jobs of the batch from 1.
    pub job: JobId,
    /// How it must have ended.
    pub condition: Condition,
}

/// How another job must have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// It succeeded.
    #[default]
    Ok,
    /// It failed or was cancelled.
    Failed,
    /// It ended, however.
    Any,
}

impl Condition {
    /// Every condition.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Failed, Self::Any];

    /// The stored word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Any => "any",
        }
    }

    /// Reads the stored word.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|condition| condition.as_str() == text)
    }
}

impl JobSpec {
    /// Automatic retries after failures.
    pub fn retries(&self) -> i32 {
        self.retries.unwrap_or(DEFAULT_RETRIES)
    }

    /// Automatic resumes after interruptions.
    pub fn resumes(&self) -> i32 {
        self.resumes.unwrap_or(DEFAULT_RESUMES)
    }

    /// Time between the stop signal and force.
    pub fn stop_grace(&self) -> Duration {
        self.stop_grace.unwrap_or(DEFAULT_STOP_GRACE)
    }

    /// Fills in what is derived from the rest: the name from the command, and at least one slot.
    #[must_use]
    pub fn normalised(mut self) -> Self {
        if self.name.is_empty() {
            self.name = derived_name(&self.command, self.shell);
        }
        if self.demand.slots == 0 {
            self.demand.slots = 1;
        }
        self
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is wrong, named relative to the spec.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.validate_program()?;
        self.validate_words()?;
        self.validate_retry_rules()?;
        self.validate_alarms()?;
        self.silence.validate()?;
        self.validate_numbers()
    }

    fn validate_program(&self) -> Result<(), SpecError> {
        match self.command.first() {
            None => {
                return Err(SpecError::new(
                    "command",
                    "is empty",
                    "name a program to run",
                ));
            }
            Some(program) if program.is_empty() => {
                return Err(SpecError::new(
                    "command[0]",
                    "is an empty program name",
                    "name a program to run",
                ));
            }
            Some(_) => {}
        }
        for (index, argument) in self.command.iter().enumerate() {
            no_nul(&format!("command[{index}]"), argument)?;
        }
        absolute("cwd", &self.cwd)?;
        if !self.workspace.is_empty() {
            absolute("workspace", &self.workspace)?;
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(SpecError::new(
                    "env",
                    format!("has a variable with the impossible name `{}`", shown(name)),
                    "a variable's name is not empty and has no `=`",
                ));
            }
            no_nul(&format!("env.{}", shown(name)), value)?;
        }
        let bytes = self
            .command
            .iter()
            .map(|argument| argument.len() + 1)
            .sum::<usize>()
            + self
                .env
                .iter()
                .map(|(name, value)| name.len() + value.len() + 2)
                .sum::<usize>();
        if bytes > MAX_ARGUMENT_BYTES {
            return Err(SpecError::new(
                "command",
                format!(
                    "has {bytes} bytes of arguments and environment, and {MAX_ARGUMENT_BYTES} are allowed"
                ),
                "pass the data in a file",
            ));
        }
        for (index, path) in self.artifacts.iter().enumerate() {
            let field = format!("artifacts[{index}]");
            no_nul(&field, path)?;
            at_most(&field, path.len(), MAX_PATH_BYTES)?;
        }
        at_most("artifacts", self.artifacts.len(), MAX_LABELS)
    }

    fn validate_words(&self) -> Result<(), SpecError> {
        for (field, text) in [
            ("name", &self.name),
            ("tracker", &self.tracker),
            ("worker", &self.worker),
            ("template", &self.template),
            ("submit_host", &self.submit_host),
        ] {
            word(field, text)?;
        }
        at_most("labels", self.labels.len(), MAX_LABELS)?;
        for (label, value) in &self.labels {
            if label.is_empty() {
                return Err(SpecError::new(
                    "labels",
                    "has a label without a name",
                    "give it a name",
                ));
            }
            word("labels", label)?;
            word(&format!("labels.{label}"), value)?;
        }
        for (field, pattern) in [
            ("progress_pattern", &self.progress_pattern),
            ("contradicted_by", &self.contradicted_by),
        ] {
            no_nul(field, pattern)?;
            at_most(field, pattern.len(), 1_000)?;
        }
        Ok(())
    }

    fn validate_alarms(&self) -> Result<(), SpecError> {
        match setting::first_impossible(&self.alarms, true) {
            None => Ok(()),
            Some((kind, problem)) => Err(SpecError::new(
                format!("alarms[{kind}]"),
                problem,
                "`off` is possible too; docs/monitoring.md has the kinds and their limits",
            )),
        }
    }

    fn validate_retry_rules(&self) -> Result<(), SpecError> {
        let RetryRules {
            retry_on,
            no_retry_on,
        } = &self.retry_rules;
        for (field, causes) in [("retry_on", retry_on), ("no_retry_on", no_retry_on)] {
            at_most(field, causes.len(), MAX_CAUSES)?;
            for (index, cause) in causes.iter().enumerate() {
                if !cause.is_possible() {
                    return Err(SpecError::new(
                        format!("{field}[{index}]"),
                        format!("is {cause}, which no attempt ends by"),
                        "exit codes of failures are 1 to 255, signals 1 to 64",
                    ));
                }
            }
        }
        if let Some(index) = no_retry_on
            .iter()
            .position(|cause| retry_on.contains(cause))
        {
            return Err(SpecError::new(
                format!("no_retry_on[{index}]"),
                format!("is {}, which is to be retried as well", no_retry_on[index]),
                "name it in one of them",
            ));
        }
        let Some(code) = self.checkpoint_exit_code else {
            return Ok(());
        };
        if !EXIT_CODES.contains(&code) {
            return Err(SpecError::new(
                "checkpoint_exit_code",
                format!("is {code}, not between 1 and 255"),
                "85 is a common choice",
            ));
        }
        for (named, causes) in [("to retry", retry_on), ("not to retry", no_retry_on)] {
            if causes.contains(&FailureCause::Exit(Some(code))) {
                return Err(SpecError::new(
                    "checkpoint_exit_code",
                    format!("is {code}, which is named among the failures {named}"),
                    "an exit with it is no failure: take it out there",
                ));
            }
        }
        Ok(())
    }

    fn validate_numbers(&self) -> Result<(), SpecError> {
        for (field, value) in [("retries", self.retries), ("resumes", self.resumes)] {
            if value.is_some_and(|value| !(0..=MAX_BUDGET).contains(&value)) {
                return Err(SpecError::new(
                    field,
                    format!("is not between 0 and {MAX_BUDGET}"),
                    "0 means never",
                ));
            }
        }
        let demand = &self.demand;
        if !(1..=MAX_DEMAND).contains(&demand.slots) {
            return Err(SpecError::new(
                "demand.slots",
                format!("is {}, not between 1 and {MAX_DEMAND}", demand.slots),
                "a job takes at least one slot",
            ));
        }
        if !(0..=MAX_DEMAND).contains(&demand.gpus) {
            return Err(SpecError::new(
                "demand.gpus",
                format!("is {}, not between 0 and {MAX_DEMAND}", demand.gpus),
                "0 means none",
            ));
        }
        if self.log_limit_bytes != 0 && !LOG_LIMIT_BYTES.contains(&self.log_limit_bytes) {
            return Err(SpecError::new(
                "log_limit_bytes",
                format!("is {}, not between 1 MiB and 1 PiB", self.log_limit_bytes),
                "leave it out for the worker's default; there is always a limit",
            ));
        }
        if demand.memory_bytes < 0 {
            return Err(SpecError::new(
                "demand.memory_bytes",
                "is negative",
                "0 means not stated",
            ));
        }
        if let Some(limit) = self.time_limit
            && (limit < Duration::from_millis(1) || limit > MAX_TIME_LIMIT)
        {
            return Err(SpecError::new(
                "time_limit",
                "is not between a millisecond and ten years",
                "leave it out for no limit",
            ));
        }
        match (self.warn_before, self.time_limit) {
            (Some(_), None) => {
                return Err(SpecError::new(
                    "warn_before",
                    "is set, but there is no time limit to warn of",
                    "set a time limit too",
                ));
            }
            (Some(warn), Some(limit)) if warn >= limit => {
                return Err(SpecError::new(
                    "warn_before",
                    "is not shorter than the time limit",
                    "the warning comes that long before the limit",
                ));
            }
            _ => {}
        }
        if !(0..=64).contains(&self.warn_signal) {
            return Err(SpecError::new(
                "warn_signal",
                format!("is {}, which is no signal", self.warn_signal),
                "give a number from 1 to 64, or 0 for SIGUSR1",
            ));
        }
        if self.stop_grace.is_some_and(|grace| grace > MAX_STOP_GRACE) {
            return Err(SpecError::new(
                "stop_grace",
                "is longer than a day",
                "shorten it",
            ));
        }
        if let Some(idle) = self.gpu_idle
            && !idle.is_zero()
            && !GPU_IDLE.contains(&idle)
        {
            return Err(SpecError::new(
                "gpu_idle",
                "is not between a second and ten years",
                "give a time such as 15m, or 0 for never",
            ));
        }
        at_most("after", self.after.len(), MAX_DEPENDENCIES)?;
        for (index, dependency) in self.after.iter().enumerate() {
            if dependency.job.0 == 0 {
                return Err(SpecError::new(
                    format!("after[{index}]"),
                    "names no job",
                    "give the number of the job to wait for",
                ));
            }
            let earlier = &self.after[..index];
            if earlier.iter().any(|other| other.job == dependency.job) {
                return Err(SpecError::new(
                    format!("after[{index}]"),
                    format!("names job {} a second time", dependency.job),
                    "name each job once",
                ));
            }
        }
        Ok(())
    }
}

/// A field of a spec that cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct SpecError {
    /// The field, relative to the spec, such as `cwd` or `command[2]`.
    pub field: String,
    /// What is wrong with it; continues a sentence that begins with the field.
    pub problem: String,
    /// What to do about it.
    pub hint: String,
}

impl SpecError {
    pub(crate) fn new(
        field: impl Into<String>,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
            hint: hint.into(),
        }
    }
}

fn derived_name(command: &[String], shell: bool) -> String {
    let text = match (shell, command) {
        (true, [.., script]) => script.as_str(),
        (_, [program, ..]) => program.rsplit('/').next().unwrap_or(program),
        _ => "",
    };
    let mut name: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    while name.len() > 80 {
        name.pop();
    }
    match name.trim() {
        "" => "job".to_owned(),
        trimmed => trimmed.to_owned(),
    }
}

fn shown(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_debug).collect()
}

fn no_nul(field: &str, text: &str) -> Result<(), SpecError> {
    if text.contains('\0') {
        return Err(SpecError::new(
            field,
            "contains a NUL byte, which no program can be given",
            "take it out",
        ));
    }
    Ok(())
}

fn at_most(field: &str, have: usize, most: usize) -> Result<(), SpecError> {
    if have > most {
        return Err(SpecError::new(
            field,
            format!("is too long: {have}, and {most} are allowed"),
            "shorten it",
        ));
    }
    Ok(())
}

fn word(field: &str, text: &str) -> Result<(), SpecError> {
    at_most(field, text.len(), MAX_NAME_BYTES)?;
    if text.chars().any(char::is_control) {
        return Err(SpecError::new(
            field,
            format!("contains a control character: `{}`", shown(text)),
            "use printable characters in one line",
        ));
    }
    Ok(())
}

fn absolute(field: &str, path: &str) -> Result<(), SpecError> {
    no_nul(field, path)?;
    if path.is_empty() {
        return Err(SpecError::new(field, "is empty", "give an absolute path"));
    }
    if !path.starts_with('/') {
        return Err(SpecError::new(
            field,
            format!("is not absolute: `{}`", shown(path)),
            "give an absolute path, because the worker has another current directory",
        ));
    }
    at_most(field, path.len(), MAX_PATH_BYTES)
}

/// Lengths of time are stored as whole microseconds.
pub(crate) mod micros {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[allow(clippy::ref_option)]
    pub(crate) fn serialize<S: Serializer>(
        length: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        length
            .map(|length| u64::try_from(length.as_micros()).unwrap_or(u64::MAX))
            .serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_micros))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec() -> JobSpec {
        JobSpec {
            command: vec!["python".to_owned(), "train.py".to_owned()],
            cwd: "/srv".to_owned(),
            ..JobSpec::default()
        }
        .normalised()
    }

    fn refused(change: impl FnOnce(&mut JobSpec)) -> String {
        let mut spec = spec();
        change(&mut spec);
        spec.validate().expect_err("refused").field
    }

    #[test]
    fn each_field_is_refused_by_its_name() {
        assert_eq!(spec().validate(), Ok(()));
        assert_eq!(refused(|spec| spec.command.clear()), "command");
        assert_eq!(refused(|spec| spec.command[0].clear()), "command[0]");
        assert_eq!(refused(|spec| spec.command[1].push('\0')), "command[1]");
        assert_eq!(
            refused(|spec| spec.command[1] = "x".repeat(MAX_ARGUMENT_BYTES)),
            "command"
        );
        assert_eq!(refused(|spec| spec.cwd = "srv".to_owned()), "cwd");
        assert_eq!(
            refused(|spec| spec.workspace = "../w".to_owned()),
            "workspace"
        );
        assert_eq!(
            refused(|spec| drop(spec.env.insert("A=B".to_owned(), String::new()))),
            "env"
        );
        assert_eq!(refused(|spec| spec.name = "two\nlines".to_owned()), "name");
        assert_eq!(refused(|spec| spec.tracker = "x".repeat(201)), "tracker");
        assert_eq!(
            refused(|spec| drop(spec.labels.insert("a".to_owned(), "\u{7}".to_owned()))),
            "labels.a"
        );
        assert_eq!(refused(|spec| spec.retries = Some(-1)), "retries");
        assert_eq!(refused(|spec| spec.resumes = Some(1_001)), "resumes");
        assert_eq!(refused(|spec| spec.demand.slots = 1_001), "demand.slots");
        assert_eq!(refused(|spec| spec.demand.gpus = -1), "demand.gpus");
        assert_eq!(
            refused(|spec| spec.demand.memory_bytes = -1),
            "demand.memory_bytes"
        );
        assert_eq!(
            refused(|spec| spec.time_limit = Some(Duration::from_micros(10))),
            "time_limit"
        );
        let minute = Some(Duration::from_secs(60));
        assert_eq!(refused(|spec| spec.warn_before = minute), "warn_before");
        assert_eq!(
            refused(|spec| (spec.warn_before, spec.time_limit) = (minute, minute)),
            "warn_before"
        );
        assert_eq!(refused(|spec| spec.warn_signal = 65), "warn_signal");
        let on = |spec: &mut JobSpec, causes: &[&str]| {
            spec.retry_rules.retry_on = causes.iter().map(|cause| cause.parse().unwrap()).collect();
        };
        assert_eq!(
            refused(|spec| on(spec, &["exit:1", "exit:0"])),
            "retry_on[1]"
        );
        assert_eq!(refused(|spec| on(spec, &["exit:256"])), "retry_on[0]");
        assert_eq!(refused(|spec| on(spec, &["signal:65"])), "retry_on[0]");
        assert_eq!(refused(|spec| on(spec, &["exit"; 65])), "retry_on");
        assert_eq!(
            refused(|spec| {
                on(spec, &["exit:1"]);
                spec.retry_rules.no_retry_on = vec![FailureCause::Exit(Some(1))];
            }),
            "no_retry_on[0]"
        );
        for code in [0, 256, -1] {
            assert_eq!(
                refused(|spec| spec.checkpoint_exit_code = Some(code)),
                "checkpoint_exit_code"
            );
        }
        assert_eq!(
            refused(|spec| {
                on(spec, &["exit:85"]);
                spec.checkpoint_exit_code = Some(85);
            }),
            "checkpoint_exit_code"
        );
        assert_eq!(
            refused(|spec| spec.contradicted_by = "x".repeat(1_001)),
            "contradicted_by"
        );
        assert_eq!(
            refused(|spec| spec.stop_grace = Some(MAX_STOP_GRACE + Duration::from_secs(1))),
            "stop_grace"
        );
        assert_eq!(
            refused(|spec| spec.gpu_idle = Some(Duration::from_millis(1))),
            "gpu_idle"
        );
        let on = |job| Dependency {
            job: JobId(job),
            condition: Condition::Ok,
        };
        assert_eq!(refused(|spec| spec.after = vec![on(1), on(0)]), "after[1]");
        assert_eq!(
            refused(|spec| spec.after = vec![on(1), on(2), on(1)]),
            "after[2]"
        );
    }

    #[test]
    fn a_name_is_derived_from_the_command() {
        let name = |command: &[&str], shell| {
            let spec = JobSpec {
                command: command.iter().map(|part| (*part).to_owned()).collect(),
                shell,
                ..JobSpec::default()
            };
            spec.normalised().name
        };
        assert_eq!(name(&["/usr/bin/make", "all"], false), "make");
        assert_eq!(name(&["sh", "-c", "make all\n"], true), "make all");
        assert_eq!(name(&["/"], false), "job");
        assert!(name(&["sh", "-c", &"ü".repeat(200)], true).len() <= 80);
    }

    #[test]
    fn a_stored_spec_of_an_older_version_is_read() {
        let stored: JobSpec = serde_json::from_str(r#"{"command":["true"],"cwd":"/"}"#).unwrap();
        assert_eq!((stored.retries(), stored.resumes()), (2, 3));
        assert_eq!(stored.stop_grace(), Duration::from_secs(10));
        assert_eq!(stored.demand.slots, 1);
        let fields = r#"{"time_limit":1500000,"after":[{"job":3,"condition":"any"}],"future":1}"#;
        let stored: JobSpec = serde_json::from_str(fields).unwrap();
        assert_eq!(stored.time_limit, Some(Duration::from_millis(1_500)));
        assert_eq!(stored.after[0].condition, Condition::Any);
    }

    proptest! {
        #[test]
        fn what_is_accepted_survives_storage(
            name in ".{0,40}",
            argument in ".{0,40}",
            seconds in proptest::option::of(0..10_000_000_u64),
            label in "[a-z]{1,8}",
        ) {
            let mut spec = JobSpec {
                name,
                time_limit: seconds.map(Duration::from_secs),
                ..spec()
            };
            spec.command.push(argument);
            spec.labels.insert(label, String::new());
            let spec = spec.normalised();
            if spec.validate().is_ok() {
                let stored = serde_json::to_string(&spec).unwrap();
                // The database refuses this escape.
                prop_assert!(!stored.contains("\\u0000"));
                prop_assert_eq!(serde_json::from_str::<JobSpec>(&stored).unwrap(), spec);
            }
        }
    }
}
