//! A batch: JSON lines, a job each. Pure, but for reading the file.

use std::io::Read as _;
use std::path::Path;

use serde_json::Value;

use super::draft::{BATCH_KEYS, Draft, must_be_absolute};
use crate::error::{Error, Problem};

/// Most jobs in a batch.
pub const MAX_JOBS: usize = 10_000;

/// Largest file. A submission is smaller still; this keeps a wrong file out of memory.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// A job of a batch and the line it is on, from 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The line.
    pub number: usize,
    /// What it says.
    pub draft: Draft,
}

/// Reads a whole batch file; `-` is standard input.
///
/// # Errors
/// When it cannot be read, is too large, or is no UTF-8.
pub fn load(path: &Path) -> Result<String, Error> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin()
            .lock()
            .take(MAX_BYTES + 1)
            .read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
    };
    read.map_err(Error::file("read", path))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Problem::usage(format!(
            "{} is larger than the limit of 64 MiB for a batch",
            path.display()
        ))
        .hint("split it into several batches")
        .into());
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        Problem::usage(format!("{}:{line}: not valid UTF-8", path.display())).into()
    })
}

/// Reads the lines of a batch. Empty lines are skipped.
///
/// # Errors
/// Names the file, the line and the key that is wrong.
pub fn parse(path: &Path, text: &str) -> Result<Vec<Line>, Problem> {
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let number = index + 1;
        let at = |problem: String| {
            Problem::usage(format!("{}:{number}: {problem}", path.display()))
                .hint("nothing was submitted")
        };
        let value: Value = serde_json::from_str(line).map_err(|error| {
            let text = error.to_string();
            let what = text.split(" at line ").next().unwrap_or(&text);
            at(format!(
                "not valid JSON at column {}: {what}",
                error.column()
            ))
        })?;
        let Value::Object(table) = value else {
            return Err(at("expected a JSON object, {…}".to_owned()));
        };
        let draft = Draft::read(table, BATCH_KEYS).map_err(at)?;
        must_be_absolute("cwd", draft.cwd.as_ref()).map_err(at)?;
        must_be_absolute("workspace", draft.workspace.as_ref()).map_err(at)?;
        if draft.args.is_some() && draft.command.is_some() {
            return Err(at("args: belong to a template, not to a command".to_owned()));
        }
        if draft.template.is_some() && draft.command.is_some() {
            return Err(at("template: brings its own command".to_owned()));
        }
        check_dependencies(&draft, lines.len()).map_err(at)?;
        if lines.len() == MAX_JOBS {
            return Err(
                at(format!("a batch holds at most {MAX_JOBS} jobs, the limit"))
                    .hint("split it into several batches; nothing was submitted"),
            );
        }
        lines.push(Line { number, draft });
    }
    if lines.is_empty() {
        return Err(Problem::usage(format!(
            "{}: there is no job in it",
            path.display()
        )));
    }
    Ok(lines)
}

/// A dependency inside the batch must name an earlier job.
fn check_dependencies(draft: &Draft, earlier: usize) -> Result<(), String> {
    for after in draft.after.iter().flatten().filter(|after| after.job < 0) {
        let position = usize::try_from(-after.job).unwrap_or(usize::MAX);
        if position > earlier {
            return Err(format!(
                "after: {} means job number {position} of this batch, which is not before this one",
                after.job
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        parse(Path::new("jobs.jsonl"), text).unwrap_err().message
    }

    #[test]
    fn lines_keep_their_numbers() {
        let text = "\n{\"command\": [\"a\"]}\n\n{\"shell\": \"b\", \"after\": -1}\n";
        let lines = parse(Path::new("x"), text).unwrap();
        let numbers: Vec<_> = lines.iter().map(|line| line.number).collect();
        assert_eq!(numbers, [2, 4]);
    }

    #[test]
    fn a_mistake_names_file_line_and_key() {
        let good = "{\"command\":[\"true\"]}\n".repeat(6);
        for (bad, message) in [
            (
                "{\"command\": [\"true\"",
                "jobs.jsonl:7: not valid JSON at column 19: EOF while parsing a list",
            ),
            (
                "{\"comand\": []}",
                "jobs.jsonl:7: unknown key `comand`; did you mean `command`?",
            ),
            ("[]", "jobs.jsonl:7: expected a JSON object, {…}"),
            (
                "{\"command\": [\"true\"], \"after\": -7}",
                "jobs.jsonl:7: after: -7 means job number 7 of this batch, which is not before this one",
            ),
            (
                "{\"command\": [\"true\"], \"cwd\": \"here\"}",
                "jobs.jsonl:7: cwd: `here` must be an absolute path, which means the same wherever it is read",
            ),
            (
                "{\"command\": [\"true\"], \"args\": []}",
                "jobs.jsonl:7: args: belong to a template, not to a command",
            ),
        ] {
            assert_eq!(told(&format!("{good}{bad}\n")), message);
        }
        assert_eq!(told("\n \n"), "jobs.jsonl: there is no job in it");
    }

    #[test]
    fn a_file_of_wrong_bytes_names_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b");
        std::fs::write(&path, b"{}\n{\xff}\n").unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.ends_with("b:2: not valid UTF-8"), "{error}");
    }
}
