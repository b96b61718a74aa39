//! Named jobs with defaults: the user's own, and the coordinator's. `docs/templates.md` explains
//! the format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qctl_proto::v1;
use serde_json::Value;

use super::draft::{Draft, TEMPLATE_KEYS, Words, unknown_key};
use crate::context::{Context, unary};
use crate::error::{Error, Problem};
use crate::exit;

/// The user's file in the configuration folder.
const FILE: &str = "templates.toml";

/// Longest name of a job that is made from a template's name and arguments.
const MAX_JOB_NAME: usize = 80;

/// Where a template comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The user's `templates.toml`.
    User,
    /// The coordinator.
    Coordinator,
}

impl Source {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Coordinator => "coordinator",
        }
    }
}

/// A named job with defaults.
#[derive(Clone, Debug)]
pub struct Template {
    /// Its name.
    pub name: String,
    /// One line for people; may be empty.
    pub description: String,
    /// Where it comes from.
    pub source: Source,
    /// The table as it was written.
    pub definition: toml::Table,
    draft: Draft,
    default_args: Vec<String>,
    /// What differs for `--batch` without a file, and the arguments then.
    batch: Option<(Draft, Option<Vec<String>>)>,
}

/// All templates by name; the user's own replace the coordinator's.
///
/// # Errors
/// When the file cannot be understood, or the coordinator not be asked.
pub async fn all(context: &Context) -> Result<Vec<Template>, Error> {
    let mut templates = BTreeMap::new();
    for template in of_coordinator(context).await? {
        templates.insert(template.name.clone(), template);
    }
    for (name, definition) in of_user(context)? {
        let template = read_user(context, &name, definition)?;
        templates.insert(name, template);
    }
    Ok(templates.into_values().collect())
}

/// One template; the coordinator is asked only for what the user does not have.
///
/// # Errors
/// When there is none of that name, or it cannot be understood.
pub async fn find(context: &Context, name: &str) -> Result<Template, Error> {
    if let Some(definition) = of_user(context)?.remove(name) {
        return read_user(context, name, definition);
    }
    let templates = of_coordinator(context).await?;
    let known: Vec<String> = templates.iter().map(|t| t.name.clone()).collect();
    templates
        .into_iter()
        .find(|template| template.name == name)
        .ok_or_else(|| {
            Problem::new(
                "TEMPLATE_NOT_FOUND",
                exit::NOT_FOUND,
                format!("there is no template `{name}`"),
            )
            .hint(format!("the coordinator has {}", known.join(", ")))
            .next("qctl template list")
            .into()
        })
}

fn user_file(context: &Context) -> Option<PathBuf> {
    context.home().ok().map(|home| home.config_file(FILE))
}

fn of_user(context: &Context) -> Result<BTreeMap<String, toml::Table>, Error> {
    let Some(path) = user_file(context) else {
        return Ok(BTreeMap::new());
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => split(&text)
            .map_err(|problem| Problem::usage(format!("{}: {problem}", path.display())).into()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(source) => Err(Error::file("read", path)(source)),
    }
}

/// Splits a file into its `[template.NAME]` tables.
fn split(text: &str) -> Result<BTreeMap<String, toml::Table>, String> {
    let mut file: toml::Table = toml::from_str(text).map_err(|error| error.to_string())?;
    let templates = file.remove("template");
    if let Some(key) = file.keys().next() {
        return Err(format!(
            "unknown key `{key}`; a template is a table [template.NAME]"
        ));
    }
    match templates {
        None => Ok(BTreeMap::new()),
        Some(toml::Value::Table(templates)) => templates
            .into_iter()
            .map(|(name, value)| match value {
                toml::Value::Table(table) => Ok((name, table)),
                _ => Err(format!("template.{name}: expected a table")),
            })
            .collect(),
        Some(_) => Err("template: expected a table".to_owned()),
    }
}

fn read_user(context: &Context, name: &str, definition: toml::Table) -> Result<Template, Error> {
    Template::read(name, definition, Source::User).map_err(|problem| {
        let path = user_file(context).unwrap_or_default();
        Problem::usage(format!("{}: {problem}", path.display())).into()
    })
}

async fn of_coordinator(context: &Context) -> Result<Vec<Template>, Error> {
    let client = context.client().await?;
    let response = client
        .queue()
        .list_templates(unary(v1::ListTemplatesRequest {}))
        .await?
        .into_inner();
    response
        .templates
        .into_iter()
        .map(|template| {
            let read = toml::from_str(&template.definition)
                .map_err(|error| error.to_string())
                .and_then(|table| Template::read(&template.name, table, Source::Coordinator));
            read.map_err(|problem| {
                Problem::new(
                    "TEMPLATE_INVALID",
                    exit::ERROR,
                    format!("of the coordinator: {problem}"),
                )
                .hint("the coordinator's templates.toml must be corrected")
                .into()
            })
        })
        .collect()
}

impl Template {
    fn read(name: &str, definition: toml::Table, source: Source) -> Result<Self, String> {
        let at = |problem: String| format!("template `{name}`: {problem}");
        let mut table = definition.clone();
        let description = match table.remove("description") {
            None => String::new(),
            Some(toml::Value::String(text)) => text,
            Some(_) => return Err(at("description: expected a text".to_owned())),
        };
        let default_args = arguments(&mut table).map_err(at)?.unwrap_or_default();
        let batch = match table.remove("batch") {
            None => None,
            Some(toml::Value::Table(mut batch)) => {
                let args =
                    arguments(&mut batch).map_err(|problem| at(format!("[batch] {problem}")))?;
                let draft = read_keys(batch).map_err(|problem| at(format!("[batch] {problem}")))?;
                Some((draft, args))
            }
            Some(_) => return Err(at("batch: expected a table".to_owned())),
        };
        let draft = read_keys(table).map_err(at)?;
        match (&draft.command, &batch) {
            (Some(Words::Vector(_)), _) => {}
            (Some(Words::Shell(_)), _) => {
                return Err(at(
                    "command: expected a list of words; for a shell, write [\"sh\", \"-c\", …]"
                        .to_owned(),
                ));
            }
            (None, _) => return Err(at("command: is missing".to_owned())),
        }
        Ok(Self {
            name: name.to_owned(),
            description,
            source,
            definition,
            draft,
            default_args,
            batch,
        })
    }

    /// The definition as a file would have it.
    pub fn to_toml(&self) -> String {
        let mut named = toml::Table::new();
        named.insert(
            self.name.clone(),
            toml::Value::Table(self.definition.clone()),
        );
        let mut file = toml::Table::new();
        file.insert("template".to_owned(), toml::Value::Table(named));
        toml::to_string(&file).unwrap_or_else(|_| file.to_string())
    }

    /// What it says about a job, for one job or for `--batch` without a file.
    ///
    /// # Errors
    /// When it has nothing for `--batch`.
    pub fn draft(&self, bare_batch: bool) -> Result<Draft, Problem> {
        if !bare_batch {
            return Ok(self.draft.clone());
        }
        match &self.batch {
            Some((batch, _)) => Ok(batch.clone().over(self.draft.clone())),
            None => Err(Problem::usage(format!(
                "template `{}` has no [batch] table, so --batch needs a file",
                self.name
            ))
            .hint("give a file of JSON lines, or - for standard input")),
        }
    }

    /// Its command with the arguments put in: those given, or else its defaults.
    ///
    /// # Errors
    /// When it takes no arguments, or a placeholder has no value.
    pub fn command(
        &self,
        given: Vec<String>,
        bare_batch: bool,
        placeholders: &Placeholders<'_>,
    ) -> Result<Vec<String>, Problem> {
        let draft = self.draft(bare_batch)?;
        let Some(Words::Vector(words)) = draft.command else {
            return Err(Problem::usage(format!(
                "template `{}` has no command",
                self.name
            )));
        };
        let takes_arguments = words.iter().any(|word| word == "{args}");
        if !given.is_empty() && !takes_arguments {
            return Err(Problem::usage(format!(
                "template `{}` takes no arguments, and `{}` is one",
                self.name, given[0]
            ))
            .next(format!("qctl template show {}", self.name)));
        }
        let arguments = if given.is_empty() {
            let defaults = match &self.batch {
                Some((_, Some(args))) if bare_batch => args,
                _ => &self.default_args,
            };
            let filled: Result<Vec<_>, _> = defaults
                .iter()
                .map(|word| placeholders.fill(word))
                .collect();
            filled?
        } else {
            given
        };
        let mut command = Vec::new();
        for word in &words {
            if word == "{args}" {
                command.extend(arguments.iter().cloned());
            } else {
                command.push(placeholders.fill(word)?);
            }
        }
        Ok(command)
    }
}

fn arguments(table: &mut toml::Table) -> Result<Option<Vec<String>>, String> {
    match table.remove("default_args") {
        None => Ok(None),
        Some(toml::Value::Array(items)) => items
            .into_iter()
            .map(|item| match item {
                toml::Value::String(text) => Ok(text),
                _ => Err("default_args: expected a list of texts".to_owned()),
            })
            .collect::<Result<_, _>>()
            .map(Some),
        Some(_) => Err("default_args: expected a list of texts".to_owned()),
    }
}

fn read_keys(table: toml::Table) -> Result<Draft, String> {
    let own = ["description", "default_args", "batch"];
    let known: Vec<&str> = TEMPLATE_KEYS.iter().copied().chain(own).collect();
    if let Some(key) = table
        .keys()
        .find(|key| !TEMPLATE_KEYS.contains(&key.as_str()))
    {
        return Err(unknown_key(key, &known));
    }
    Draft::read(to_json(table)?, TEMPLATE_KEYS)
}

/// TOML values as a draft reads them.
pub(super) fn to_json(table: toml::Table) -> Result<serde_json::Map<String, Value>, String> {
    table
        .into_iter()
        .map(|(key, value)| {
            let value = json_value(value).map_err(|problem| format!("{key}: {problem}"))?;
            Ok((key, value))
        })
        .collect()
}

fn json_value(value: toml::Value) -> Result<Value, String> {
    Ok(match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(truth) => Value::Bool(truth),
        toml::Value::Datetime(_) => return Err("a time is not understood here".to_owned()),
        toml::Value::Array(items) => Value::Array(
            items
                .into_iter()
                .map(json_value)
                .collect::<Result<_, _>>()?,
        ),
        toml::Value::Table(table) => Value::Object(to_json(table)?),
    })
}

/// A job's name: the template's, and the arguments that were given.
pub fn job_name(template: &str, arguments: &[String]) -> String {
    let name = std::iter::once(template)
        .chain(arguments.iter().map(String::as_str))
        .collect::<Vec<_>>()
        .join(" ");
    if name.chars().any(char::is_control) {
        return template.to_owned();
    }
    name.chars().take(MAX_JOB_NAME).collect()
}

/// The values of placeholders in a template.
#[derive(Clone, Debug)]
pub struct Placeholders<'a> {
    /// Name of the template, for messages.
    pub template: &'a str,
    /// `{tracker}`.
    pub tracker: Option<String>,
    /// `{workspace}`.
    pub workspace: Option<String>,
    /// `{project}`: the folder around the current directory that a `.qctl.toml` or `.git` marks.
    pub project: Option<PathBuf>,
    /// `{home}`: qctl's data folder.
    pub home: Option<&'a Path>,
}

impl Placeholders<'_> {
    /// Replaces every placeholder of a text.
    ///
    /// # Errors
    /// When one has no value or is not known.
    pub fn fill(&self, text: &str) -> Result<String, Problem> {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            let after = &rest[open + 1..];
            // Braces around anything but a word in lower case are the text's own.
            let name = after.find('}').map(|close| &after[..close]).filter(|name| {
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            });
            let Some(name) = name else {
                out.push_str(&rest[..=open]);
                rest = after;
                continue;
            };
            out.push_str(&rest[..open]);
            out.push_str(&self.value(name)?);
            rest = &after[name.len() + 1..];
        }
        out.push_str(rest);
        Ok(out)
    }

    fn value(&self, name: &str) -> Result<String, Problem> {
        let missing = |hint: &str| {
            Problem::usage(format!(
                "template `{}` needs a {name}, and there is none",
                self.template
            ))
            .hint(hint)
        };
        match name {
            "tracker" => self.tracker.clone().ok_or_else(|| {
                missing("give --tracker ID, set TRACKER_ID, or write tracker = \"…\" in .qctl.toml")
            }),
            "workspace" => self.workspace.clone().ok_or_else(|| {
                missing(
                    "give --workspace DIR, set TRACKER_WORKSPACE, or write workspace = \"…\" in .qctl.toml",
                )
            }),
            "project" => self
                .project
                .as_ref()
                .map(|root| root.display().to_string())
                .ok_or_else(|| missing("run it below a folder with a .qctl.toml or .git")),
            "home" => self
                .home
                .map(|home| home.display().to_string())
                .ok_or_else(|| missing("set QCTL_HOME or HOME")),
            "args" => Err(Problem::usage(format!(
                "template `{}`: {{args}} must be a word of its own in command",
                self.template
            ))),
            other => Err(Problem::usage(format!(
                "template `{}`: unknown placeholder {{{other}}}",
                self.template
            ))
            .hint("known are {args}, {tracker}, {workspace}, {project} and {home}")),
        }
    }

    /// Replaces placeholders in everything that a template says besides its command. Relative
    /// working directories count from `cwd`.
    ///
    /// # Errors
    /// When one has no value or is not known.
    pub fn fill_all(&self, draft: Draft, cwd: &Path) -> Result<Draft, Problem> {
        let fill = |text: Option<String>| text.map(|text| self.fill(&text)).transpose();
        let fill_table = |table: BTreeMap<String, String>| {
            table
                .into_iter()
                .map(|(key, value)| Ok((key, self.fill(&value)?)))
                .collect::<Result<_, Problem>>()
        };
        Ok(Draft {
            name: fill(draft.name)?,
            cwd: fill(draft.cwd)?.map(|path| cwd.join(path).display().to_string()),
            env: fill_table(draft.env)?,
            labels: fill_table(draft.labels)?,
            artifacts: draft
                .artifacts
                .map(|paths| paths.iter().map(|path| self.fill(path)).collect())
                .transpose()?,
            ..draft
        })
    }
}
