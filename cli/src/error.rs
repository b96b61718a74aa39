//! What can go wrong in a command, and how it is told: what was wrong, what to do, what to type.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

use qctl_proto::client::ConnectError;
use qctl_proto::error::Fault;
use serde::Serialize;

use crate::exit;
use crate::submission::origin;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A problem found on this side of the connection.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The coordinator refused.
    #[error("{}", .0.message)]
    Refused(Box<Fault>),
    /// No connection was made.
    #[error("cannot reach the coordinator at {address}")]
    Connect {
        /// The address tried.
        address: String,
        /// True when the user named the address, rather than this installation's own.
        chosen: bool,
        /// Why.
        source: Box<ConnectError>,
    },
    /// The connection broke during a call.
    #[error("the coordinator did not answer")]
    Broken(#[source] Box<tonic::Status>),
    /// A file or stream could not be read or written.
    #[error("cannot {doing} {path}")]
    File {
        /// `read`, `write`, `create`, …
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Standard output does not take more.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
}

/// A problem with all that a person needs to go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// Stable word for programs, upper case.
    pub reason: &'static str,
    /// What was wrong, a sentence without a final full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// A command to type next.
    pub next: Option<String>,
    /// Exit code.
    pub code: u8,
}

impl Problem {
    /// A problem with its reason, exit code and sentence.
    pub fn new(reason: &'static str, code: u8, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            hint: None,
            next: None,
            code,
        }
    }

    /// Something in the command line, or in a file that it names, is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new("USAGE", exit::USAGE, message)
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a command to type next.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        match Fault::from_status(&status) {
            Some(fault) => Self::Refused(Box::new(in_the_users_words(fault))),
            None => Self::Broken(Box::new(status)),
        }
    }
}

/// Names a wrong field by the option that the user typed. The fields of a submission are named where
/// it is known whether an option or a file said them.
fn in_the_users_words(fault: Fault) -> Fault {
    let name = fault.field.as_deref().and_then(|field| {
        let name = match field.split_once('.')? {
            ("spec", path) => origin::option(path),
            ("filter", path) => filter_option(path)?.to_owned(),
            _ => return None,
        };
        let problem = fault.message.strip_prefix(field)?;
        Some(format!("{name}{problem}"))
    });
    match name {
        Some(message) => Fault { message, ..fault },
        None => fault,
    }
}

/// The option of `list` behind a field of a filter.
fn filter_option(path: &str) -> Option<&'static str> {
    Some(match path.split('[').next()? {
        "states" => "--state",
        "tracker" => "--tracker",
        "labels" => "--label",
        "worker" => "--worker",
        "created_after" => "--since",
        "created_before" => "--until",
        "ids" => "the list of jobs",
        _ => return None,
    })
}

impl Error {
    /// An error of a file, for `map_err`.
    pub fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            doing,
            path,
            source,
        }
    }

    /// The exit code of a program that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Problem(problem) => problem.code,
            Self::Refused(fault) => exit::of_fault(fault),
            Self::Connect { source, .. } => match **source {
                ConnectError::Unreachable { .. } => exit::UNREACHABLE,
                ConnectError::Token => exit::DENIED,
                ConnectError::Address { .. } | ConnectError::Authority { .. } => exit::USAGE,
            },
            Self::Broken(_) => exit::UNREACHABLE,
            Self::File { .. } => exit::ERROR,
            // As if SIGPIPE had ended the program.
            Self::Output(source) if source.kind() == io::ErrorKind::BrokenPipe => 141,
            Self::Output(_) => exit::ERROR,
        }
    }

    /// True when waiting and calling again may help: the coordinator is away or restarts.
    pub fn is_outage(&self) -> bool {
        self.exit_code() == exit::UNREACHABLE
    }

    /// True when nobody is left to read a message.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Output(source) if source.kind() == io::ErrorKind::BrokenPipe)
    }

    /// What to tell, for people and programs.
    pub fn report(&self) -> Report {
        match self {
            Self::Problem(problem) => Report {
                reason: problem.reason.to_owned(),
                message: problem.message.clone(),
                field: None,
                hint: problem.hint.clone(),
                next: problem.next.clone(),
            },
            Self::Refused(fault) => Report {
                reason: fault.reason.as_str().to_owned(),
                message: fault.message.clone(),
                field: fault.field.clone(),
                hint: fault.hint.clone(),
                next: fault.next.clone(),
            },
            Self::Connect {
                address,
                chosen,
                source,
            } => connect_report(address, *chosen, source),
            Self::Broken(status) => Report {
                reason: "UNREACHABLE".to_owned(),
                message: format!("the coordinator did not answer: {}", broken_cause(status)),
                field: None,
                hint: Some("it may be restarting; try again".to_owned()),
                next: Some("qctl status".to_owned()),
            },
            Self::File { .. } | Self::Output(_) => Report {
                reason: "FILE".to_owned(),
                message: self.message_with_causes(),
                field: None,
                hint: None,
                next: None,
            },
        }
    }

    fn message_with_causes(&self) -> String {
        let mut message = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        message
    }
}

fn connect_report(address: &str, chosen: bool, source: &ConnectError) -> Report {
    let report = |reason: &str, message: String, hint: &str, next: Option<&str>| Report {
        reason: reason.to_owned(),
        message,
        field: None,
        hint: Some(hint.to_owned()),
        next: next.map(str::to_owned),
    };
    match source {
        ConnectError::Unreachable { source, .. } => {
            let message = format!(
                "no coordinator answers at {address} ({})",
                deepest_cause(source)
            );
            if chosen {
                report(
                    "UNREACHABLE",
                    message,
                    "check the address given by --server, QCTL_SERVER or qctl.toml; on the machine itself, the queue is started by `qctl up`",
                    None,
                )
            } else {
                report(
                    "UNREACHABLE",
                    message,
                    "the queue is not running on this machine; start it",
                    Some("qctl up"),
                )
            }
        }
        ConnectError::Address { .. } => report(
            "USAGE",
            source.to_string(),
            "give an address such as 127.0.0.1:7420 or https://queue.example:7420",
            None,
        ),
        ConnectError::Token => report(
            "UNAUTHENTICATED",
            source.to_string(),
            "the token file must hold one line of plain text",
            None,
        ),
        ConnectError::Authority {
            path,
            source: cause,
        } => report(
            "USAGE",
            format!("cannot read the authority file {}: {cause}", path.display()),
            "give --authority or QCTL_AUTHORITY a readable PEM file",
            None,
        ),
    }
}

/// What lies at the bottom of a chain, such as `Connection refused (os error 111)`.
fn deepest_cause(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

fn broken_cause(status: &tonic::Status) -> String {
    match status.source() {
        Some(source) => deepest_cause(source),
        None if status.message().is_empty() => status.code().description().to_owned(),
        None => status.message().to_owned(),
    }
}

/// An error as it is printed. The field names are those of `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Stable word, such as `JOB_NOT_FOUND`.
    pub reason: String,
    /// What was wrong.
    pub message: String,
    /// Field of the request that was wrong.
    pub field: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// A command to type next.
    pub next: Option<String>,
}

impl Report {
    /// The lines for a person: what was wrong, a hint, a command to try.
    ///
    /// Control characters of foreign text are shown escaped, so that a message stays on its line.
    pub fn for_people(&self, colour: bool) -> String {
        let (red, dim, reset) = if colour {
            ("\x1b[1;31m", "\x1b[2m", "\x1b[0m")
        } else {
            ("", "", "")
        };
        let mut text = format!("{red}error:{reset} {}\n", one_line(&self.message));
        if let Some(hint) = &self.hint {
            text.push_str(&format!("  {dim}hint:{reset} {}\n", one_line(hint)));
        }
        if let Some(next) = &self.next {
            text.push_str(&format!("  {dim}try:{reset} {}\n", one_line(next)));
        }
        text
    }

    /// The document for programs: `{"error": {…}}` on one line.
    pub fn for_programs(&self) -> String {
        #[derive(Serialize)]
        struct Document<'a> {
            error: &'a Report,
        }
        let mut text = serde_json::to_string(&Document { error: self })
            .unwrap_or_else(|_| r#"{"error":{"reason":"INTERNAL"}}"#.to_owned());
        text.push('\n');
        text
    }
}

fn one_line(text: &str) -> String {
    crate::output::text::printable(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use qctl_proto::error::Reason;

    #[test]
    fn a_refusal_shows_what_hint_and_next_command() {
        let fault = Fault::new(Reason::JobNotFound, "there is no job 42")
            .hint("ids are in the first column of the list")
            .next("qctl list");
        let error = Error::from(tonic::Status::from(fault));
        assert_eq!(error.exit_code(), exit::NOT_FOUND);
        assert_eq!(
            error.report().for_people(false),
            "error: there is no job 42\n  hint: ids are in the first column of the list\n  try: qctl list\n"
        );
        assert_eq!(
            error.report().for_programs(),
            "{\"error\":{\"reason\":\"JOB_NOT_FOUND\",\"message\":\"there is no job 42\",\"field\":null,\"hint\":\"ids are in the first column of the list\",\"next\":\"qctl list\"}}\n"
        );
    }

    #[test]
    fn a_field_is_named_as_the_user_knows_it() {
        for (field, told) in [
            ("spec.cwd", "--cwd"),
            ("spec.no_retry_on[0]", "--no-retry-on"),
            ("spec.demand.slots", "--slots"),
            ("filter.created_before", "--until"),
            ("filter.states[0]", "--state"),
            ("page_size", "page_size"),
        ] {
            let fault = Fault::new(Reason::InvalidField, format!("{field} is bad")).field(field);
            let error = Error::from(tonic::Status::from(fault));
            assert_eq!(error.to_string(), format!("{told} is bad"));
        }
    }

    #[test]
    fn a_message_cannot_break_out_of_its_line() {
        let problem = Problem::usage("name `a\nb\x1b[31m` is bad");
        assert_eq!(
            Error::from(problem).report().for_people(false),
            "error: name `a\\nb\\u{1b}[31m` is bad\n"
        );
    }

    #[test]
    fn a_closed_pipe_is_not_told() {
        let error = Error::Output(io::ErrorKind::BrokenPipe.into());
        assert!(error.is_silent());
        assert_eq!(error.exit_code(), 141);
    }
}
