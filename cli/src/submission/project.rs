//! A project's `.qctl.toml`: tracker, workspace and defaults for what is submitted below it.

use std::path::{Path, PathBuf};

use super::draft::{Draft, PROJECT_KEYS, unknown_key};
use super::template::to_json;
use crate::error::{Error, Problem};

/// Name of the file.
pub const FILE: &str = ".qctl.toml";

/// Keys at the top of the file.
const KEYS: &[&str] = &["tracker", "workspace", "defaults"];

/// A project's settings.
#[derive(Clone, Debug)]
pub struct Project {
    draft: Draft,
}

impl Project {
    /// Finds and reads the nearest file from `folder` upwards.
    ///
    /// # Errors
    /// When there is one that cannot be read or understood.
    pub fn find(folder: &Path) -> Result<Option<Self>, Error> {
        for root in folder.ancestors() {
            let path = root.join(FILE);
            match std::fs::read_to_string(&path) {
                Ok(text) => {
                    let project = Self::parse(&text, root).map_err(|problem| {
                        Problem::usage(format!("{}: {problem}", path.display()))
                    })?;
                    return Ok(Some(project));
                }
                Err(error) if is_absence(&error) => {}
                Err(source) => return Err(Error::file("read", path)(source)),
            }
        }
        Ok(None)
    }

    fn parse(text: &str, root: &Path) -> Result<Self, String> {
        let mut table: toml::Table = toml::from_str(text).map_err(|error| error.to_string())?;
        if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(unknown_key(key, KEYS));
        }
        let mut take = |key: &str| match table.remove(key) {
            None => Ok(None),
            Some(toml::Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(format!("{key}: expected a text")),
        };
        let tracker = take("tracker")?;
        let workspace = take("workspace")?
            .map(|path| within(root, &path))
            .transpose()?;
        let defaults = match table.remove("defaults") {
            None => Draft::default(),
            Some(toml::Value::Table(defaults)) => Draft::read(to_json(defaults)?, PROJECT_KEYS)
                .map_err(|problem| format!("[defaults] {problem}"))?,
            Some(_) => return Err("defaults: expected a table".to_owned()),
        };
        Ok(Self {
            draft: Draft {
                tracker,
                workspace,
                ..defaults
            },
        })
    }

    /// What it says about every job.
    pub fn draft(&self) -> Draft {
        self.draft.clone()
    }
}

/// A folder that is not there, or that nobody may look into, holds no file for us.
fn is_absence(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied
    )
}

fn within(root: &Path, path: &str) -> Result<String, String> {
    let joined: PathBuf = root.join(path).components().collect();
    joined
        .to_str()
        .map(str::to_owned)
        .ok_or_else(|| "workspace: the path is no UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_counts_from_the_file() {
        let text = "tracker = 'INTG-088'\nworkspace = 'out'\n[defaults]\nretries = 0\n";
        let draft = Project::parse(text, Path::new("/p")).unwrap().draft();
        assert_eq!(draft.tracker.as_deref(), Some("INTG-088"));
        assert_eq!(draft.workspace.as_deref(), Some("/p/out"));
        assert_eq!(draft.retries, Some(0));
    }

    #[test]
    fn a_project_cannot_decide_what_is_run() {
        for line in ["command = ['x']", "env = { LD_PRELOAD = 'x' }", "cwd = '/'"] {
            let text = format!("[defaults]\n{line}\n");
            assert!(Project::parse(&text, Path::new("/p")).is_err(), "{line}");
        }
        let told = Project::parse("traker = 'x'", Path::new("/p")).unwrap_err();
        assert_eq!(told, "unknown key `traker`; did you mean `tracker`?");
    }

    #[test]
    fn the_nearest_file_counts() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(folder.path().join(FILE), "tracker = 'OUTER-1'").unwrap();
        std::fs::write(folder.path().join("a").join(FILE), "tracker = 'INNER-1'").unwrap();
        let found = Project::find(&inner).unwrap().unwrap();
        assert_eq!(found.draft().tracker.as_deref(), Some("INNER-1"));
    }
}
