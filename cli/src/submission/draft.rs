//! What one source says about a job. Pure.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use qctl_proto::alarm;
use qctl_proto::v1::{AlarmSetting, FailureCause};
use serde_json::Value;

use crate::args::causes;
use crate::args::values::{self, After};

/// A command as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Words {
    /// Program and arguments.
    Vector(Vec<String>),
    /// A text for a shell.
    Shell(String),
}

/// What one source says about a job; absent and empty where it says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draft {
    /// Name for people.
    pub name: Option<String>,
    /// What to run.
    pub command: Option<Words>,
    /// Template to make it from.
    pub template: Option<String>,
    /// Arguments of the template.
    pub args: Option<Vec<String>>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Ticket.
    pub tracker: Option<String>,
    /// Folder of the ticket's outputs.
    pub workspace: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Priority.
    pub priority: Option<i32>,
    /// Dependencies.
    pub after: Option<Vec<After>>,
    /// Longest run time.
    pub time_limit: Option<Duration>,
    /// Warning before it.
    pub warn_before: Option<Duration>,
    /// Signal of the warning.
    pub warn_signal: Option<i32>,
    /// Time between the stop signal and force.
    pub stop_grace: Option<Duration>,
    /// Retries after failures.
    pub retries: Option<i32>,
    /// Resumes after interruptions.
    pub resumes: Option<i32>,
    /// The only failures that are retried.
    pub retry_on: Option<Vec<FailureCause>>,
    /// Failures that are never retried.
    pub no_retry_on: Option<Vec<FailureCause>>,
    /// Exit code that asks for another run from the checkpoint.
    pub checkpoint_exit_code: Option<i32>,
    /// Slots.
    pub slots: Option<i32>,
    /// GPUs.
    pub gpus: Option<i32>,
    /// Memory in bytes.
    pub memory: Option<i64>,
    /// The only worker.
    pub worker: Option<String>,
    /// Never two attempts at once.
    pub exclusive: Option<bool>,
    /// Wait for release.
    pub hold: Option<bool>,
    /// Progress pattern.
    pub progress: Option<String>,
    /// Pattern of a line that makes exit 0 a failure.
    pub contradicted_by: Option<String>,
    /// Run on a pseudo-terminal.
    pub pty: Option<bool>,
    /// Results.
    pub artifacts: Option<Vec<String>>,
    /// Most bytes of output that the worker keeps.
    pub log_limit: Option<i64>,
    /// When people are told of it.
    pub notify: Option<qctl_proto::v1::job_spec::Notify>,
    /// From which figure on something is an alarm; a kind at most once.
    pub alarms: Vec<AlarmSetting>,
    /// When an attempt counts as silent.
    pub silence: Option<qctl_proto::v1::Silence>,
    /// What counts as a sign of life.
    pub silence_counts: Option<qctl_proto::v1::silence::Counts>,
    /// How long it may leave its GPUs unused; zero for ever.
    pub gpu_idle: Option<Duration>,
}

/// Keys that a line of a batch may have.
pub const BATCH_KEYS: &[&str] = &[
    "name",
    "command",
    "shell",
    "template",
    "args",
    "cwd",
    "env",
    "tracker",
    "workspace",
    "labels",
    "priority",
    "after",
    "time_limit",
    "warn_before",
    "warn_signal",
    "stop_grace",
    "retries",
    "resumes",
    "retry_on",
    "no_retry_on",
    "checkpoint_exit_code",
    "slots",
    "gpus",
    "memory",
    "worker",
    "exclusive",
    "hold",
    "progress",
    "contradicted_by",
    "pty",
    "artifacts",
    "log_limit",
    "notify",
    "alarm",
    "silence",
    "silence_counts",
    "gpu_idle",
];

/// Keys that a template may have besides its own.
pub const TEMPLATE_KEYS: &[&str] = &[
    "name",
    "command",
    "cwd",
    "env",
    "tracker",
    "workspace",
    "labels",
    "priority",
    "time_limit",
    "warn_before",
    "warn_signal",
    "stop_grace",
    "retries",
    "resumes",
    "retry_on",
    "no_retry_on",
    "checkpoint_exit_code",
    "slots",
    "gpus",
    "memory",
    "worker",
    "exclusive",
    "hold",
    "progress",
    "contradicted_by",
    "pty",
    "artifacts",
    "log_limit",
    "notify",
    "alarm",
    "silence",
    "silence_counts",
    "gpu_idle",
];

/// Keys of a project's defaults. None of them decides what is run: a folder that someone else
/// prepared must not make a submission run their program.
pub const PROJECT_KEYS: &[&str] = &[
    "labels",
    "priority",
    "time_limit",
    "warn_before",
    "warn_signal",
    "stop_grace",
    "retries",
    "resumes",
    "retry_on",
    "no_retry_on",
    "checkpoint_exit_code",
    "slots",
    "gpus",
    "memory",
    "exclusive",
    "progress",
    "contradicted_by",
    "pty",
    "artifacts",
    "log_limit",
    "notify",
    "alarm",
    "silence",
    "silence_counts",
    "gpu_idle",
];

impl Draft {
    /// Reads a table of keys and values.
    ///
    /// # Errors
    /// Names the key and what is wrong with it.
    pub fn read(
        table: impl IntoIterator<Item = (String, Value)>,
        allowed: &[&str],
    ) -> Result<Self, String> {
        let mut draft = Self::default();
        for (key, value) in table {
            if !allowed.contains(&key.as_str()) {
                return Err(unknown_key(&key, allowed));
            }
            draft
                .set(&key, value)
                .map_err(|problem| format!("{key}: {problem}"))?;
        }
        Ok(draft)
    }

    fn set(&mut self, key: &str, value: Value) -> Result<(), String> {
        match key {
            "name" => self.name = Some(text(value)?),
            "command" | "shell" if self.command.is_some() => {
                return Err("command and shell say the same: give one of them".to_owned());
            }
            "command" => self.command = Some(words(value)?),
            "shell" => self.command = Some(Words::Shell(text(value)?)),
            "template" => self.template = Some(text(value)?),
            "args" => self.args = Some(texts(value)?),
            "cwd" => self.cwd = Some(text(value)?),
            "env" => self.env = table(value)?,
            "tracker" => self.tracker = Some(text(value)?),
            "workspace" => self.workspace = Some(text(value)?),
            "labels" => self.labels = labels(value)?,
            "priority" => self.priority = Some(number(&value, i32::MIN, i32::MAX)?),
            "after" => self.after = Some(after(value)?),
            "time_limit" => self.time_limit = Some(duration(&value)?),
            "warn_before" => self.warn_before = Some(duration(&value)?),
            "warn_signal" => self.warn_signal = Some(values::signal(&scalar(&value)?)?),
            "stop_grace" => self.stop_grace = Some(duration(&value)?),
            "retries" => self.retries = Some(number(&value, 0, 1000)?),
            "resumes" => self.resumes = Some(number(&value, 0, 1000)?),
            "retry_on" => self.retry_on = Some(failures(&value)?),
            "no_retry_on" => self.no_retry_on = Some(failures(&value)?),
            "checkpoint_exit_code" => {
                self.checkpoint_exit_code = Some(number(&value, 1, 255)?);
            }
            "slots" => self.slots = Some(number(&value, 1, 1000)?),
            "gpus" => self.gpus = Some(number(&value, 0, 1000)?),
            "memory" => self.memory = Some(values::size(&scalar(&value)?)?),
            "worker" => self.worker = Some(text(value)?),
            "exclusive" => self.exclusive = Some(truth(&value)?),
            "hold" => self.hold = Some(truth(&value)?),
            "progress" => self.progress = Some(values::progress_pattern(&text(value)?)?),
            "contradicted_by" => self.contradicted_by = Some(values::pattern(&text(value)?)?),
            "pty" => self.pty = Some(truth(&value)?),
            "artifacts" => self.artifacts = Some(texts(value)?),
            "log_limit" => self.log_limit = Some(values::log_limit(&scalar(&value)?)?),
            "alarm" => self.alarms = alarms(value)?,
            "notify" => self.notify = Some(values::notify(&text(value)?)?),
            "silence" => self.silence = Some(values::silence(&text(value)?)?),
            "silence_counts" => {
                self.silence_counts = Some(values::silence_counts(&text(value)?)?);
            }
            "gpu_idle" => self.gpu_idle = Some(values::gpu_idle(&text(value)?)?),
            other => return Err(format!("`{other}` is no key of a job")),
        }
        Ok(())
    }

    /// Whether it says something under this key.
    pub fn has(&self, key: &str) -> bool {
        match key {
            "name" => self.name.is_some(),
            "command" | "shell" => self.command.is_some(),
            "template" => self.template.is_some(),
            "args" => self.args.is_some(),
            "cwd" => self.cwd.is_some(),
            "env" => !self.env.is_empty(),
            "tracker" => self.tracker.is_some(),
            "workspace" => self.workspace.is_some(),
            "labels" => !self.labels.is_empty(),
            "priority" => self.priority.is_some(),
            "after" => self.after.is_some(),
            "time_limit" => self.time_limit.is_some(),
            "warn_before" => self.warn_before.is_some(),
            "warn_signal" => self.warn_signal.is_some(),
            "stop_grace" => self.stop_grace.is_some(),
            "retries" => self.retries.is_some(),
            "resumes" => self.resumes.is_some(),
            "retry_on" => self.retry_on.is_some(),
            "no_retry_on" => self.no_retry_on.is_some(),
            "checkpoint_exit_code" => self.checkpoint_exit_code.is_some(),
            "slots" => self.slots.is_some(),
            "gpus" => self.gpus.is_some(),
            "memory" => self.memory.is_some(),
            "worker" => self.worker.is_some(),
            "exclusive" => self.exclusive.is_some(),
            "hold" => self.hold.is_some(),
            "progress" => self.progress.is_some(),
            "contradicted_by" => self.contradicted_by.is_some(),
            "pty" => self.pty.is_some(),
            "artifacts" => self.artifacts.is_some(),
            "log_limit" => self.log_limit.is_some(),
            "notify" => self.notify.is_some(),
            "gpu_idle" => self.gpu_idle.is_some(),
            _ => false,
        }
    }

    /// This draft laid over another one: what it does not say, the other one does. Variables and
    /// labels of both are joined.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        let mut env = below.env;
        env.extend(self.env);
        let mut labels = below.labels;
        labels.extend(self.labels);
        Self {
            name: self.name.or(below.name),
            command: self.command.or(below.command),
            template: self.template.or(below.template),
            args: self.args.or(below.args),
            cwd: self.cwd.or(below.cwd),
            env,
            tracker: self.tracker.or(below.tracker),
            workspace: self.workspace.or(below.workspace),
            labels,
            priority: self.priority.or(below.priority),
            after: self.after.or(below.after),
            time_limit: self.time_limit.or(below.time_limit),
            warn_before: self.warn_before.or(below.warn_before),
            warn_signal: self.warn_signal.or(below.warn_signal),
            stop_grace: self.stop_grace.or(below.stop_grace),
            retries: self.retries.or(below.retries),
            resumes: self.resumes.or(below.resumes),
            retry_on: self.retry_on.or(below.retry_on),
            no_retry_on: self.no_retry_on.or(below.no_retry_on),
            checkpoint_exit_code: self.checkpoint_exit_code.or(below.checkpoint_exit_code),
            slots: self.slots.or(below.slots),
            gpus: self.gpus.or(below.gpus),
            memory: self.memory.or(below.memory),
            worker: self.worker.or(below.worker),
            exclusive: self.exclusive.or(below.exclusive),
            hold: self.hold.or(below.hold),
            progress: self.progress.or(below.progress),
            contradicted_by: self.contradicted_by.or(below.contradicted_by),
            pty: self.pty.or(below.pty),
            artifacts: self.artifacts.or(below.artifacts),
            log_limit: self.log_limit.or(below.log_limit),
            notify: self.notify.or(below.notify),
            alarms: laid_over(self.alarms, below.alarms),
            silence: self.silence.or(below.silence),
            silence_counts: self.silence_counts.or(below.silence_counts),
            gpu_idle: self.gpu_idle.or(below.gpu_idle),
        }
    }
}

/// Alarms of both, those of the first where they choose the same kind; the last choice counts.
pub fn laid_over(own: Vec<AlarmSetting>, below: Vec<AlarmSetting>) -> Vec<AlarmSetting> {
    let mut laid: Vec<AlarmSetting> = Vec::new();
    for setting in below.into_iter().chain(own) {
        laid.retain(|other| other.kind != setting.kind);
        laid.push(setting);
    }
    laid
}

/// Checks that a path needs no folder to count from.
///
/// # Errors
/// When it is relative.
pub fn must_be_absolute(key: &str, path: Option<&String>) -> Result<(), String> {
    match path {
        Some(path) if !Path::new(path).is_absolute() => Err(format!(
            "{key}: `{path}` must be an absolute path, which means the same wherever it is read"
        )),
        _ => Ok(()),
    }
}

/// The refusal of a key, with the one that was probably meant.
pub fn unknown_key(key: &str, allowed: &[&str]) -> String {
    let near = allowed
        .iter()
        .map(|known| (distance(key, known), known))
        .filter(|(distance, _)| *distance <= 2)
        .min_by_key(|(distance, _)| *distance);
    match near {
        Some((_, known)) => format!("unknown key `{key}`; did you mean `{known}`?"),
        None => format!("unknown key `{key}`; known are {}", allowed.join(", ")),
    }
}

/// How many letters must be changed, added or left out to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn text(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(format!("expected a text, not {}", kind(&other))),
    }
}

fn texts(value: Value) -> Result<Vec<String>, String> {
    match value {
        Value::Array(items) => items.into_iter().map(text).collect(),
        other => Err(format!("expected a list of texts, not {}", kind(&other))),
    }
}

/// One text with commas, or a list of texts.
fn alarms(value: Value) -> Result<Vec<AlarmSetting>, String> {
    let texts = match value {
        Value::String(text) => vec![text],
        other => texts(other)?,
    };
    let settings = alarm::parse_all(texts.iter().map(String::as_str))?;
    values::of_job(&settings)?;
    Ok(settings)
}

fn words(value: Value) -> Result<Words, String> {
    match value {
        Value::String(text) => Ok(Words::Shell(text)),
        Value::Array(items) if items.is_empty() => {
            Err("at least a program must be named".to_owned())
        }
        Value::Array(_) => Ok(Words::Vector(texts(value)?)),
        other => Err(format!(
            "expected a list of words, or a text for a shell, not {}",
            kind(&other)
        )),
    }
}

/// A text, or a number as it is written.
fn scalar(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(truth) => Ok(truth.to_string()),
        other => Err(format!("expected a text or a number, not {}", kind(other))),
    }
}

fn table(value: Value) -> Result<BTreeMap<String, String>, String> {
    match value {
        Value::Object(table) => table
            .into_iter()
            .map(|(name, value)| {
                let value = scalar(&value).map_err(|problem| format!("{name}: {problem}"))?;
                Ok((name, value))
            })
            .collect(),
        other => Err(format!("expected a table, not {}", kind(&other))),
    }
}

fn labels(value: Value) -> Result<BTreeMap<String, String>, String> {
    match value {
        Value::Array(items) => items
            .into_iter()
            .map(|item| values::label(&text(item)?))
            .collect(),
        other => table(other),
    }
}

fn after(value: Value) -> Result<Vec<After>, String> {
    let one = |value: &Value| values::after_in_batch(&scalar(value)?);
    match &value {
        Value::Array(items) => items.iter().map(one).collect(),
        single => Ok(vec![one(single)?]),
    }
}

/// One text as an option has it, or a list of causes. An empty list says that none is named.
fn failures(value: &Value) -> Result<Vec<FailureCause>, String> {
    let Value::Array(items) = value else {
        return Ok(causes::causes(&scalar(value)?)?.0);
    };
    let mut all = Vec::new();
    for item in items {
        all.extend(causes::causes(&scalar(item)?)?.0);
    }
    Ok(all)
}

fn duration(value: &Value) -> Result<Duration, String> {
    values::duration(&scalar(value)?)
}

fn number(value: &Value, least: i32, most: i32) -> Result<i32, String> {
    value
        .as_i64()
        .and_then(|number| i32::try_from(number).ok())
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| {
            if (least, most) == (i32::MIN, i32::MAX) {
                "expected a whole number".to_owned()
            } else {
                format!("expected a whole number from {least} to {most}")
            }
        })
}

fn truth(value: &Value) -> Result<bool, String> {
    value
        .as_bool()
        .ok_or_else(|| format!("expected true or false, not {}", kind(value)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qctl_proto::v1::dependency::Condition;
    use serde_json::json;

    fn read(value: Value) -> Result<Draft, String> {
        let Value::Object(table) = value else {
            panic!("a table")
        };
        Draft::read(table, BATCH_KEYS)
    }

    #[test]
    fn every_key_is_understood() {
        let draft = read(json!({
            "name": "n", "command": ["a", "b"], "template": "t", "args": ["x"], "cwd": "/d",
            "env": {"A": "b", "N": 1}, "tracker": "T-1", "workspace": "/w", "labels": ["k=v", "bare"],
            "priority": -3, "after": [7, "8:any", -1], "time_limit": "10m", "warn_before": "1m",
            "warn_signal": "TERM", "stop_grace": "5s", "retries": 0, "resumes": 1, "slots": 2,
            "gpus": 1, "memory": "2G", "worker": "w", "exclusive": true, "hold": true,
            "progress": "(?<percent>\\d+)", "pty": true, "artifacts": ["out"], "log_limit": "2M",
            "retry_on": "exit:1,137", "no_retry_on": ["time-limit", "signal:9"],
            "checkpoint_exit_code": 85, "contradicted_by": "[1-9] failed",
            "notify": "never",
        }))
        .unwrap();
        assert_eq!(
            draft.command,
            Some(Words::Vector(vec!["a".into(), "b".into()]))
        );
        assert_eq!(draft.env["N"], "1");
        assert_eq!(draft.labels["bare"], "");
        assert_eq!(draft.memory, Some(2_147_483_648));
        assert_eq!(draft.log_limit, Some(2_097_152));
        assert_eq!(draft.warn_signal, Some(15));
        assert_eq!(draft.retry_on.map(|causes| causes.len()), Some(2));
        assert_eq!(draft.no_retry_on.map(|causes| causes.len()), Some(2));
        let after: Vec<_> = draft
            .after
            .unwrap()
            .iter()
            .map(|a| (a.job, a.condition))
            .collect();
        assert_eq!(
            after,
            [(7, Condition::Ok), (8, Condition::Any), (-1, Condition::Ok)]
        );
        for key in BATCH_KEYS {
            assert!(
                !Draft::default()
                    .set(key, Value::Null)
                    .unwrap_err()
                    .contains("is no key"),
                "{key}"
            );
        }
    }

    #[test]
    fn mistakes_name_their_key() {
        let told = |value| read(value).unwrap_err();
        assert_eq!(
            told(json!({"comand": ["true"]})),
            "unknown key `comand`; did you mean `command`?"
        );
        assert_eq!(
            told(json!({"command": []})),
            "command: at least a program must be named"
        );
        assert_eq!(
            told(json!({"time_limit": 90})),
            "time_limit: a number needs a unit: 90s for seconds, 90m for minutes, 90h for hours"
        );
        assert_eq!(
            told(json!({"slots": 0})),
            "slots: expected a whole number from 1 to 1000"
        );
        assert_eq!(
            told(json!({"hold": "yes"})),
            "hold: expected true or false, not a text"
        );
        assert_eq!(
            told(json!({"command": ["a"], "shell": "b"})),
            "shell: command and shell say the same: give one of them"
        );
        assert_eq!(
            told(json!({"env": {"A": []}})),
            "env: A: expected a text or a number, not a list"
        );
    }

    #[test]
    fn the_upper_draft_wins_and_tables_are_joined() {
        let upper = read(json!({"name": "u", "env": {"A": "u"}, "labels": {"x": "u"}})).unwrap();
        let lower = read(
            json!({"name": "l", "retries": 1, "env": {"A": "l", "B": "l"}, "labels": {"y": "l"}}),
        )
        .unwrap();
        let both = upper.over(lower);
        assert_eq!(both.name.as_deref(), Some("u"));
        assert_eq!(both.retries, Some(1));
        assert_eq!((both.env["A"].as_str(), both.env["B"].as_str()), ("u", "l"));
        assert_eq!(both.labels.len(), 2);
    }
}
