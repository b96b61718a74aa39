//! How a person knows a field of a job that the coordinator refused: by the option they typed, the
//! key of the file it stands in, or the line of their batch. Pure.

use std::path::PathBuf;

use qctl_proto::error::Fault;

use super::draft::Draft;

/// Where the values of a submission come from.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The file and the line of each job, when they are of a batch.
    pub lines: Option<(PathBuf, Vec<usize>)>,
    /// What the options say.
    pub options: Draft,
    /// Files with defaults and what each of them says, those that win first.
    pub files: Vec<(String, Draft)>,
}

impl Origin {
    /// Puts the place of a wrong field into the submitter's words.
    #[must_use]
    pub fn told(&self, fault: Fault) -> Fault {
        let Some(field) = fault.field.clone() else {
            return fault;
        };
        let Some((index, path)) = of_a_batch(&field) else {
            return fault;
        };
        let line = self
            .lines
            .as_ref()
            .and_then(|(file, lines)| Some((file, lines.get(index)?)));
        let name = match line {
            Some(_) => in_a_file(path),
            None => self.name(path),
        };
        let message = match fault.message.strip_prefix(&field) {
            Some(problem) => format!("{name}{problem}"),
            None if path.is_empty() => fault.message.clone(),
            None => match fault.message.strip_prefix(path) {
                Some(problem) => format!("{name}{problem}"),
                None if fault.message.contains(path) => fault.message.clone(),
                None => format!("{name}: {}", fault.message),
            },
        };
        let message = match line {
            Some((file, line)) => format!("{}:{line}: {message}", file.display()),
            None => message,
        };
        Fault { message, ..fault }
    }

    fn name(&self, path: &str) -> String {
        let key = key(path);
        if self.options.has(key) {
            return option(path);
        }
        match self.files.iter().find(|(_, draft)| draft.has(key)) {
            Some((file, _)) => format!("{} of {file}", in_a_file(path)),
            None => option(path),
        }
    }
}

/// The job's place in the submission, and the path within its spec.
fn of_a_batch(field: &str) -> Option<(usize, &str)> {
    let (index, path) = field.strip_prefix("jobs[")?.split_once(']')?;
    Some((index.parse().ok()?, path.trim_start_matches('.')))
}

/// A field of a spec as the options have it, such as `--no-retry-on` for `no_retry_on[0]`.
pub fn option(path: &str) -> String {
    let option = match key(path) {
        "" => return String::new(),
        "command" | "shell" => return "the command".to_owned(),
        "labels" => "--label".to_owned(),
        "artifacts" => "--artifact".to_owned(),
        key => format!("--{}", key.replace('_', "-")),
    };
    match entry(path) {
        Some(name) => format!("{option} {name}"),
        None => option,
    }
}

/// A field of a spec as files have it, such as `no_retry_on` for `no_retry_on[0]`.
fn in_a_file(path: &str) -> String {
    match entry(path) {
        Some(name) => format!("{}.{name}", key(path)),
        None => key(path).to_owned(),
    }
}

/// The key of a field of a spec in batches, templates and projects.
fn key(path: &str) -> &str {
    let path = path.strip_prefix("demand.").unwrap_or(path);
    let end = path.find(['.', '[']).unwrap_or(path.len());
    match &path[..end] {
        "memory_bytes" => "memory",
        "log_limit_bytes" => "log_limit",
        "progress_pattern" => "progress",
        other => other,
    }
}

/// The variable or label within a table.
fn entry(path: &str) -> Option<&str> {
    ["env.", "labels."]
        .iter()
        .find_map(|table| path.strip_prefix(table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use qctl_proto::error::Reason;

    fn fault(field: &str, problem: &str) -> Fault {
        Fault::new(Reason::InvalidField, format!("{field} {problem}")).field(field)
    }

    #[test]
    fn a_field_of_a_batch_is_told_by_its_line_and_key() {
        let origin = Origin {
            lines: Some((PathBuf::from("jobs.jsonl"), vec![3, 7])),
            ..Origin::default()
        };
        for (field, told) in [
            ("jobs[1].cwd", "jobs.jsonl:7: cwd is bad"),
            ("jobs[1].no_retry_on[0]", "jobs.jsonl:7: no_retry_on is bad"),
            ("jobs[0].demand.memory_bytes", "jobs.jsonl:3: memory is bad"),
            ("jobs[0].env.A B", "jobs.jsonl:3: env.A B is bad"),
        ] {
            assert_eq!(origin.told(fault(field, "is bad")).message, told);
        }
        let short = Fault::new(Reason::InvalidField, "cwd must be absolute").field("jobs[1].cwd");
        assert_eq!(
            origin.told(short).message,
            "jobs.jsonl:7: cwd must be absolute"
        );
    }

    #[test]
    fn a_field_is_told_by_the_option_or_the_file_that_said_it() {
        let pattern = |text: &str| Draft {
            contradicted_by: Some(text.to_owned()),
            ..Draft::default()
        };
        let bad = || fault("jobs[0].contradicted_by", "is bad");
        let of_options = Origin {
            options: pattern("("),
            ..Origin::default()
        };
        assert_eq!(of_options.told(bad()).message, "--contradicted-by is bad");
        let of_template = Origin {
            files: vec![("template `t`".to_owned(), pattern("("))],
            ..Origin::default()
        };
        assert_eq!(
            of_template.told(bad()).message,
            "contradicted_by of template `t` is bad"
        );
        let nowhere = Origin::default();
        for (field, told) in [
            ("jobs[0].retry_on[1].kind", "--retry-on is bad"),
            ("jobs[0].labels.a", "--label a is bad"),
            ("jobs[0].command[0]", "the command is bad"),
            ("jobs[0].log_limit_bytes", "--log-limit is bad"),
            ("jobs[0].demand.slots", "--slots is bad"),
        ] {
            assert_eq!(nowhere.told(fault(field, "is bad")).message, told);
        }
        let bare = Fault::new(Reason::InvalidField, "must be absolute").field("jobs[0].cwd");
        assert_eq!(nowhere.told(bare).message, "--cwd: must be absolute");
    }
}
