//! What a submission takes from the process that makes it.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::draft::Draft;
use crate::args::values::Variable;
use crate::error::{Error, Problem};
use crate::exit;

/// Variables that are captured, so that a command that works here works as a job.
const CAPTURED: [&str; 4] = ["PATH", "VIRTUAL_ENV", "LANG", "TZ"];

/// The same, by how their names begin.
const CAPTURED_PREFIXES: [&str; 2] = ["CONDA_", "LC_"];

/// Shells that understand `-c` and the text that a person of this machine would write.
const SHELLS: [&str; 6] = ["sh", "bash", "zsh", "dash", "ksh", "mksh"];

/// What a submission takes from the process that makes it.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The working directory.
    pub cwd: PathBuf,
    /// Captured variables.
    pub captured: BTreeMap<String, String>,
    /// This machine's host name.
    pub host: String,
    variables: BTreeMap<String, String>,
}

impl Surroundings {
    /// Looks at the process.
    ///
    /// # Errors
    /// When the working directory is gone or cannot be entered.
    pub fn capture() -> Result<Self, Error> {
        let cwd = std::env::current_dir().map_err(|source| {
            Problem::new(
                "FILE",
                exit::ERROR,
                format!("the current directory cannot be used: {source}"),
            )
            .hint("go to a directory that exists, or name one by --cwd")
        })?;
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Ok(Self::new(cwd, variables, host_name()))
    }

    /// Surroundings of given values.
    pub fn new(cwd: PathBuf, variables: BTreeMap<String, String>, host: String) -> Self {
        let captured = variables
            .iter()
            .filter(|(name, _)| {
                CAPTURED.contains(&name.as_str())
                    || CAPTURED_PREFIXES
                        .iter()
                        .any(|prefix| name.starts_with(prefix))
            })
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        Self {
            cwd,
            captured,
            host,
            variables,
        }
    }

    /// The working directory as text.
    ///
    /// # Errors
    /// When it is no UTF-8.
    pub fn cwd_text(&self) -> Result<String, Problem> {
        path_text(&self.cwd)
    }

    /// A path made absolute from the working directory.
    ///
    /// # Errors
    /// When it is no UTF-8.
    pub fn absolute(&self, path: &Path) -> Result<String, Problem> {
        let joined = self.cwd.join(path);
        // Only the file system knows what `..` behind a link means.
        let climbs = joined.components().any(|part| part == Component::ParentDir);
        let resolved = climbs.then(|| joined.canonicalize().ok()).flatten();
        path_text(&resolved.unwrap_or_else(|| joined.components().collect()))
    }

    /// Variables for a job, from what `--env` said.
    ///
    /// # Errors
    /// When one that was to be copied is not set here.
    pub fn variables_of(&self, asked: &[Variable]) -> Result<BTreeMap<String, String>, Problem> {
        asked
            .iter()
            .map(|variable| match variable {
                Variable::Set(name, value) => Ok((name.clone(), value.clone())),
                Variable::Copy(name) => match self.variables.get(name) {
                    Some(value) => Ok((name.clone(), value.clone())),
                    None => Err(Problem::usage(format!(
                        "--env {name}: there is no such variable here to copy"
                    ))
                    .hint(format!("give its value: --env {name}=VALUE"))),
                },
            })
            .collect()
    }

    /// What `TRACKER_ID` and `TRACKER_WORKSPACE` say. A relative workspace counts from here.
    pub fn draft(&self) -> Draft {
        let set = |name: &str| {
            self.variables
                .get(name)
                .filter(|value| !value.is_empty())
                .cloned()
        };
        Draft {
            tracker: set("TRACKER_ID"),
            workspace: set("TRACKER_WORKSPACE")
                .and_then(|path| self.absolute(Path::new(&path)).ok()),
            ..Draft::default()
        }
    }

    /// The nearest folder upwards that a `.qctl.toml` or `.git` marks as a project's.
    pub fn project_root(&self) -> Option<PathBuf> {
        self.cwd
            .ancestors()
            .find(|folder| {
                folder.join(super::project::FILE).exists() || folder.join(".git").exists()
            })
            .map(Path::to_path_buf)
    }

    /// The argument vector that has the user's shell run a text; `/bin/sh` where theirs is of
    /// another family.
    pub fn shell_command(&self, text: String) -> Vec<String> {
        let shell = self
            .variables
            .get("SHELL")
            .filter(|shell| {
                let path = Path::new(shell);
                let name = path.file_name().and_then(|name| name.to_str());
                path.is_absolute() && name.is_some_and(|name| SHELLS.contains(&name))
            })
            .map_or("/bin/sh", String::as_str);
        vec![shell.to_owned(), "-c".to_owned(), text]
    }
}

/// This machine's host name.
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

fn path_text(path: &Path) -> Result<String, Problem> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Problem::usage(format!("the path {} is no UTF-8", path.display()))
            .hint("rename the folder, or reach it through a link with a plain name")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surroundings(variables: &[(&str, &str)]) -> Surroundings {
        let variables = variables
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        Surroundings::new("/work/dir".into(), variables, "here".to_owned())
    }

    #[test]
    fn only_what_a_command_needs_is_captured() {
        let all = surroundings(&[
            ("PATH", "/bin"),
            ("LC_ALL", "C"),
            ("CONDA_PREFIX", "/c"),
            ("AWS_SECRET_ACCESS_KEY", "x"),
            ("HOME", "/root"),
        ]);
        let names: Vec<_> = all.captured.keys().map(String::as_str).collect();
        assert_eq!(names, ["CONDA_PREFIX", "LC_ALL", "PATH"]);
    }

    #[test]
    fn variables_are_copied_from_here() {
        let here = surroundings(&[("TOKEN", "t")]);
        let asked = [
            Variable::Copy("TOKEN".into()),
            Variable::Set("A".into(), "b".into()),
        ];
        let given = here.variables_of(&asked).unwrap();
        assert_eq!(given["TOKEN"], "t");
        assert_eq!(given["A"], "b");
        let told = here
            .variables_of(&[Variable::Copy("NOPE".into())])
            .unwrap_err();
        assert_eq!(
            told.hint.as_deref(),
            Some("give its value: --env NOPE=VALUE")
        );
    }

    #[test]
    fn paths_count_from_the_working_directory() {
        let here = surroundings(&[("TRACKER_WORKSPACE", "out"), ("TRACKER_ID", "")]);
        assert_eq!(here.absolute(Path::new("a/./b")).unwrap(), "/work/dir/a/b");
        assert_eq!(here.absolute(Path::new("/x/")).unwrap(), "/x");
        let draft = here.draft();
        assert_eq!(draft.workspace.as_deref(), Some("/work/dir/out"));
        assert_eq!(draft.tracker, None);
    }

    #[test]
    fn a_text_is_run_by_the_users_shell_if_it_is_of_the_family() {
        let shell =
            |shell: &str| surroundings(&[("SHELL", shell)]).shell_command("x".into())[0].clone();
        assert_eq!(shell("/usr/bin/zsh"), "/usr/bin/zsh");
        assert_eq!(shell("/usr/bin/fish"), "/bin/sh");
        assert_eq!(shell("bash"), "/bin/sh");
        assert_eq!(
            surroundings(&[]).shell_command("x".into()),
            ["/bin/sh", "-c", "x"]
        );
    }
}
