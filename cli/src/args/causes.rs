//! Causes of failures as people type them in `--retry-on` and `--no-retry-on`. Pure.

use qctl_proto::v1::FailureCause;
use qctl_proto::v1::failure_cause::Kind;

use super::values;

const EXPECTED: &str = "expected exit, exit:CODE, signal, signal:NAME, time-limit, out-of-memory or contradicted, separated by commas";

/// Several causes, as one option names them.
#[derive(Clone, Debug, PartialEq)]
pub struct Causes(pub Vec<FailureCause>);

/// Reads `exit:1,137`, `exit`, `signal:SIGKILL`, `time-limit,out-of-memory`. A bare number or name
/// belongs to the `exit:` or `signal:` before it.
///
/// # Errors
/// Names the part that is no cause.
pub fn causes(text: &str) -> Result<Causes, String> {
    let mut causes = Vec::new();
    let mut numbered: Option<Kind> = None;
    for part in text.split(',').map(str::trim) {
        let (word, value) = match part.split_once(':') {
            Some((word, value)) => (word, Some(value)),
            None => (part, None),
        };
        let plain = |kind| Ok((kind, None));
        let (kind, number) = match (word.replace('_', "-").to_ascii_lowercase().as_str(), value) {
            ("", _) => Err(EXPECTED.to_owned()),
            ("exit", None) => plain(Kind::Exit),
            ("exit", Some(code)) => exit_code(code).map(|code| (Kind::Exit, Some(code))),
            ("signal", None) => plain(Kind::Signal),
            ("signal", Some(name)) => signal(name).map(|signal| (Kind::Signal, Some(signal))),
            ("time-limit", None) => plain(Kind::TimeLimit),
            ("out-of-memory", None) => plain(Kind::OutOfMemory),
            ("contradicted", None) => plain(Kind::Contradicted),
            ("time-limit" | "out-of-memory" | "contradicted", Some(value)) => {
                Err(format!("`{word}` has no number, and `{value}` is one"))
            }
            (_, None) if numbered == Some(Kind::Exit) => {
                exit_code(part).map(|code| (Kind::Exit, Some(code)))
            }
            (_, None) if numbered == Some(Kind::Signal) => {
                signal(part).map(|signal| (Kind::Signal, Some(signal)))
            }
            _ => Err(format!("`{part}` is no cause of a failure; {EXPECTED}")),
        }?;
        numbered = number.map(|_| kind);
        let cause = FailureCause {
            kind: kind.into(),
            number,
        };
        if causes.contains(&cause) {
            return Err(format!("`{}` is named twice", shown(&cause)));
        }
        causes.push(cause);
    }
    Ok(Causes(causes))
}

fn exit_code(text: &str) -> Result<i32, String> {
    checkpoint_exit_code(text).map_err(|_| {
        format!("`{text}` is no exit code of a failure; expected a number from 1 to 255")
    })
}

/// Reads an exit code that is not 0.
///
/// # Errors
/// When it is none.
pub fn checkpoint_exit_code(text: &str) -> Result<i32, String> {
    text.parse()
        .ok()
        .filter(|code| (1..=255).contains(code))
        .ok_or_else(|| "expected a number from 1 to 255".to_owned())
}

fn signal(text: &str) -> Result<i32, String> {
    values::any_signal(text).ok_or_else(|| {
        format!("`{text}` is no signal; expected a name such as SIGKILL, or 1 to 64")
    })
}

/// A cause as it is typed.
pub fn shown(cause: &FailureCause) -> String {
    match (cause.kind(), cause.number) {
        (Kind::Exit, None) => "exit".to_owned(),
        (Kind::Exit, Some(code)) => format!("exit:{code}"),
        (Kind::Signal, None) => "signal".to_owned(),
        (Kind::Signal, Some(signal)) => format!("signal:{signal}"),
        (Kind::TimeLimit, _) => "time-limit".to_owned(),
        (Kind::OutOfMemory, _) => "out-of-memory".to_owned(),
        (Kind::Contradicted, _) => "contradicted".to_owned(),
        (Kind::Unspecified, _) => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        causes(text).map(|causes| causes.0.iter().map(shown).collect())
    }

    #[test]
    fn causes_are_words_with_numbers() {
        for (text, expected) in [
            ("exit:1,137", &["exit:1", "exit:137"][..]),
            ("exit", &["exit"]),
            ("exit:1,exit:2", &["exit:1", "exit:2"]),
            ("signal:9,SIGTERM", &["signal:9", "signal:15"]),
            ("signal:SIGKILL", &["signal:9"]),
            ("signal:kill , exit", &["signal:9", "exit"]),
            (
                "time-limit,out_of_memory,contradicted",
                &["time-limit", "out-of-memory", "contradicted"],
            ),
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, told) in [
            ("exit:0", "`0` is no exit code of a failure"),
            ("exit:1,300", "`300` is no exit code of a failure"),
            ("exit,1", "`1` is no cause of a failure"),
            ("signal:FOO", "`FOO` is no signal"),
            ("signal:65", "`65` is no signal"),
            ("time-limit:3", "`time-limit` has no number"),
            ("oom", "`oom` is no cause of a failure"),
            ("exit:1,,2", "expected exit"),
            ("", "expected exit"),
            ("exit:1,1", "`exit:1` is named twice"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(told), "{text}: {error}");
        }
    }
}
