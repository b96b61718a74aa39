//! Templates that the coordinator offers: the built-in ones, and those of its own file over them.
//! What a template means is the command line's business; here a file is only taken apart.

use std::collections::BTreeMap;
use std::io::Read;

use super::{App, Error};

/// Templates that come with qctl.
const BUILT_IN: &str = include_str!("../../templates.toml");

/// Largest file of templates, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// A named job with defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Its name.
    pub name: String,
    /// The table that defines it, TOML.
    pub definition: String,
}

impl App {
    /// The templates by name. The file is read anew each time, so that it can be edited.
    ///
    /// # Errors
    /// When the file exists and cannot be read or understood.
    pub async fn templates(&self) -> Result<Vec<Template>, Error> {
        let path = self.about.templates_file.clone();
        let shown = path.display().to_string();
        let read = tokio::task::spawn_blocking(move || -> std::io::Result<Option<String>> {
            let file = match std::fs::File::open(path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                opened => opened?,
            };
            let mut text = String::new();
            file.take(MAX_FILE + 1).read_to_string(&mut text)?;
            Ok(Some(text))
        });
        let own = match read.await {
            Ok(Ok(text)) => text.unwrap_or_default(),
            Ok(Err(error)) => return Err(broken(&shown, &format!("cannot be read: {error}"))),
            Err(_) => return Err(Error::ShuttingDown),
        };
        if own.len() as u64 > MAX_FILE {
            return Err(broken(&shown, "is larger than 1 MiB"));
        }
        let mut templates =
            split(BUILT_IN).map_err(|error| Error::Internal(format!("templates.toml {error}")))?;
        templates.extend(split(&own).map_err(|problem| broken(&shown, &problem))?);
        Ok(templates
            .into_iter()
            .map(|(name, definition)| Template { name, definition })
            .collect())
    }
}

fn broken(file: &str, problem: &str) -> Error {
    Error::field(
        format!("the coordinator's file {file}"),
        problem,
        "correct that file on the coordinator's machine",
    )
}

/// Takes a file of `[template.NAME]` tables apart.
fn split(text: &str) -> Result<BTreeMap<String, String>, String> {
    let file: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        format!("is not TOML: {}", error.to_string().trim_end())
    })?;
    let mut templates = BTreeMap::new();
    for (key, value) in file {
        let toml::Value::Table(tables) = value else {
            return Err(format!("has the unknown key `{key}`"));
        };
        if key != "template" {
            return Err(format!("has the unknown table `{key}`"));
        }
        for (name, definition) in tables {
            let toml::Value::Table(definition) = definition else {
                return Err(format!("has `template.{name}`, which is not a table"));
            };
            let definition = toml::to_string(&definition)
                .map_err(|error| format!("has `template.{name}`, which cannot be told: {error}"))?;
            templates.insert(name, definition);
        }
    }
    Ok(templates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_templates_can_be_taken_apart() {
        let names: Vec<String> = split(BUILT_IN).unwrap().into_keys().collect();
        assert!(names.contains(&"pytest".to_owned()), "{names:?}");
        assert!(names.contains(&"extract".to_owned()), "{names:?}");
    }

    #[test]
    fn each_table_becomes_a_definition_of_its_own() {
        let templates = split(
            "[template.train]\ncommand = [\"python\", \"{args}\"]\n\
             [template.train.batch]\ndefault_args = [\"all\"]\n\
             [template.other]\ndescription = \"x\"\n",
        )
        .unwrap();
        let train: toml::Table = templates["train"].parse().unwrap();
        assert_eq!(train["command"][1].as_str(), Some("{args}"));
        assert_eq!(train["batch"]["default_args"][0].as_str(), Some("all"));
        assert_eq!(templates.len(), 2);
    }

    #[test]
    fn mistakes_are_named() {
        assert!(
            split("[templates.x]\n")
                .unwrap_err()
                .contains("`templates`")
        );
        assert!(
            split("template.x = 3\n")
                .unwrap_err()
                .contains("`template.x`")
        );
        assert!(split("[template").unwrap_err().contains("line 1"));
    }
}
