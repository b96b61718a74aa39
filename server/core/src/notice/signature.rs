//! What an attempt's output says went wrong, and the same with everything taken out that differs
//! from one time to the next: paths, numbers, addresses, times.

use crate::outcome::{Cause, Outcome};

/// Longest signature, in characters.
const MAX_SIGNATURE: usize = 200;
/// Longest line of output that is looked at, in characters.
const MAX_LINE: usize = 2_000;
/// Lines from the end that are searched for an error.
const SEARCHED: usize = 60;

/// The line that tells what went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorLine {
    /// Type of the exception, such as `ValueError`; empty when there is none.
    pub exception: String,
    /// The line; empty when the output has none.
    pub line: String,
}

/// Finds the line that tells what went wrong in the end of an output.
pub fn error_line(output: &str) -> ErrorLine {
    let lines: Vec<String> = output
        .lines()
        .rev()
        .map(shown)
        .filter(|line| !line.is_empty())
        .take(SEARCHED)
        .collect();
    if let Some((exception, line)) = lines
        .iter()
        .find_map(|line| Some((exception_of(line)?, line)))
    {
        return ErrorLine {
            exception: exception.to_owned(),
            line: line.clone(),
        };
    }
    let says_so = |line: &&String| {
        let lower = line.to_lowercase();
        [
            "error",
            "fatal",
            "panicked",
            "exception",
            "abort",
            "cannot ",
            "not found",
            "no such ",
            "failed",
        ]
        .iter()
        .any(|word| lower.contains(word))
    };
    let line = lines.iter().find(says_so).or_else(|| lines.first());
    ErrorLine {
        exception: String::new(),
        line: line.cloned().unwrap_or_default(),
    }
}

/// What a terminal shows of a line in the end: what stands behind the last return of the carriage,
/// without colours.
fn shown(line: &str) -> String {
    let line = line.trim_end_matches('\r');
    let line = line.rsplit('\r').find(|part| !part.trim().is_empty());
    let mut text = String::new();
    let mut chars = line.unwrap_or_default().chars().take(MAX_LINE);
    while let Some(char) = chars.next() {
        match char {
            '\u{1b}' => {
                // An escape sequence ends with a letter; its parameters are none.
                if chars.next() == Some('[') {
                    chars.by_ref().find(|char| ('@'..='~').contains(char));
                }
            }
            char if char.is_control() => text.push(' '),
            char => text.push(char),
        }
    }
    text.trim().to_owned()
}

/// The exception that a line names, such as `torch.OutOfMemoryError: CUDA …`.
fn exception_of(line: &str) -> Option<&str> {
    let name = line.split(':').next()?.trim();
    let last = name.rsplit('.').next()?;
    let is_name = name
        .chars()
        .all(|char| char.is_ascii_alphanumeric() || char == '_' || char == '.');
    let begins_large = last
        .chars()
        .next()
        .is_some_and(|char| char.is_ascii_uppercase());
    let is_error = [
        "Error",
        "Exception",
        "Interrupt",
        "Exit",
        "Iteration",
        "Warning",
        "Timeout",
    ]
    .iter()
    .any(|ending| last.ends_with(ending));
    // `Error: …` alone names no type.
    (is_name && begins_large && is_error && last.len() > "Error".len()).then_some(name)
}

/// How an attempt ended and what its output says about it, the same for the same fault.
pub fn signature(outcome: &Outcome, error: &ErrorLine) -> String {
    let end = match (outcome.cause, outcome.exit_code, outcome.signal) {
        (Cause::Exit, Some(code), _) => format!("exit {code}"),
        (Cause::Signal, _, Some(signal)) => format!("signal {signal}"),
        (cause, _, _) => cause.as_str().to_owned(),
    };
    let tells = matches!(
        outcome.cause,
        Cause::Exit | Cause::Signal | Cause::Contradicted | Cause::GpuFault
    );
    if !tells || error.line.is_empty() {
        return end;
    }
    let whole = format!("{end}: {}", normalised(&error.line));
    whole.chars().take(MAX_SIGNATURE).collect()
}

/// A line with everything taken out that differs from one time to the next.
pub fn normalised(line: &str) -> String {
    let mut words = Vec::new();
    for word in line.split_whitespace() {
        let word = normalised_word(word);
        // `1 2 3` and `1 2` are the same list.
        if words.last() != Some(&word) || !word.starts_with('<') {
            words.push(word);
        }
    }
    words.join(" ").chars().take(MAX_SIGNATURE).collect()
}

const AROUND: &[char] = &[
    '"', '\'', '`', '(', ')', '[', ']', '{', '}', ',', ';', '!', '?', '<', '>',
];

fn normalised_word(word: &str) -> String {
    let inner = word.trim_matches(AROUND);
    let Some(start) = (!inner.is_empty()).then(|| word.find(inner)).flatten() else {
        return word.to_owned();
    };
    let (before, after) = (&word[..start], &word[start + inner.len()..]);
    // A full stop or colon at the end of a word belongs to the sentence.
    let core = inner.trim_end_matches([':', '.']);
    let end = &inner[core.len()..];
    format!("{before}{}{end}{after}", replaced(core))
}

fn replaced(core: &str) -> String {
    if let Some((name, value)) = core.split_once('=')
        && !name.is_empty()
        && !value.is_empty()
        && !core.contains("://")
    {
        return format!("{name}={}", normalised_word(value));
    }
    if core.contains("://") {
        return "<url>".to_owned();
    }
    let is_path = core.starts_with(['/', '~']) && core.len() > 1
        || core.starts_with("./")
        || core.starts_with("../")
        || core.matches('/').count() >= 2 && !core.contains(' ');
    if is_path {
        // `file.py:12` names a place, and the place moves.
        return "<path>".to_owned();
    }
    if let Some(digits) = core.strip_prefix("0x").or_else(|| core.strip_prefix("0X"))
        && digits.chars().all(|char| char.is_ascii_hexdigit())
    {
        return "<hex>".to_owned();
    }
    if is_uuid(core) {
        return "<id>".to_owned();
    }
    if is_time(core) {
        return "<time>".to_owned();
    }
    let has = |test: fn(&char) -> bool| core.chars().any(|char| test(&char));
    if core.len() >= 7
        && core.chars().all(|char| char.is_ascii_hexdigit())
        && has(char::is_ascii_digit)
        && has(char::is_ascii_alphabetic)
    {
        return "<hex>".to_owned();
    }
    without_numbers(core)
}

fn is_uuid(core: &str) -> bool {
    let parts: Vec<&str> = core.split('-').collect();
    parts.len() == 5
        && parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12])
        && parts
            .iter()
            .all(|part| part.chars().all(|char| char.is_ascii_hexdigit()))
}

/// `12:03:04`, `2026-11-21`, `2026-11-21T12:03:04.5Z` and the like.
fn is_time(core: &str) -> bool {
    let digits = core.chars().filter(char::is_ascii_digit).count();
    let others = core.chars().all(|char| {
        char.is_ascii_digit() || matches!(char, ':' | '-' | '.' | ',' | 'T' | 'Z' | '+' | '/')
    });
    let is_date = core.matches('-').count() >= 2 && digits >= 8;
    let is_clock = core.matches(':').count() >= 1 && digits >= 3 && !core.contains('/');
    others && core.starts_with(|char: char| char.is_ascii_digit()) && (is_date || is_clock)
}

/// Every number becomes `<n>`, also inside a word, with its sign, fraction and exponent.
fn without_numbers(core: &str) -> String {
    let chars: Vec<char> = core.chars().collect();
    let mut text = String::new();
    let mut at = 0;
    while at < chars.len() {
        if !chars[at].is_ascii_digit() {
            text.push(chars[at]);
            at += 1;
            continue;
        }
        if text.ends_with('-') && text.len() == 1 {
            text.clear();
        }
        while at < chars.len()
            && (chars[at].is_ascii_digit()
                || matches!(chars[at], '.' | ',' | '_' | 'e' | 'E')
                    && chars.get(at + 1).is_some_and(char::is_ascii_digit)
                || matches!(chars[at], 'e' | 'E')
                    && matches!(chars.get(at + 1), Some('-' | '+'))
                    && chars.get(at + 2).is_some_and(char::is_ascii_digit)
                || matches!(chars[at], '-' | '+') && matches!(chars[at - 1], 'e' | 'E'))
        {
            at += 1;
        }
        text.push_str("<n>");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{End, Facts, outcome};

    #[test]
    fn what_differs_from_time_to_time_is_taken_out() {
        for (line, expected) in [
            ("ValueError: bad value 17", "ValueError: bad value <n>"),
            ("ValueError: bad value -1.5e-7", "ValueError: bad value <n>"),
            ("loss is 1e10 at step 12,345", "loss is <n> at step <n>"),
            (
                "FileNotFoundError: [Errno 2] No such file or directory: '/home/u/data_17/x.bin'",
                "FileNotFoundError: [Errno <n>] No such file or directory: '<path>'",
            ),
            ("open ./a/b.txt failed", "open <path> failed"),
            ("open ~/b.txt failed", "open <path> failed"),
            ("at src/train/loop.py:88: boom", "at <path>: boom"),
            ("segfault at 0x7ffd12ab", "segfault at <hex>"),
            ("commit 9f3c2ab7 is gone", "commit <hex> is gone"),
            ("the word deadbeef stays", "the word deadbeef stays"),
            (
                "run 0d9b6f4c-1f6e-4a4e-9b58-1d2c3b4a5f60 lost",
                "run <id> lost",
            ),
            ("12:03:04 ERROR died", "<time> ERROR died"),
            ("2026-11-21 12:03:04,123 ERROR died", "<time> ERROR died"),
            ("2026-11-21T12:03:04.5Z died", "<time> died"),
            ("GET https://a.example/x?id=1 failed", "GET <url> failed"),
            (
                "shape (3, 224, 224) is wrong",
                "shape (<n>, <n>, <n>) is wrong",
            ),
            ("sizes 1 2 3 4", "sizes <n>"),
            ("step=17 lr=0.001 name=x", "step=<n> lr=<n> name=x"),
            ("worker3 died", "worker<n> died"),
            ("cuda:0 and cuda:1", "cuda:<n> and cuda:<n>"),
            ("either/or", "either/or"),
            ("", ""),
            ("日本語のエラー 3 件", "日本語のエラー <n> 件"),
        ] {
            assert_eq!(normalised(line), expected, "{line}");
        }
    }

    #[test]
    fn normalising_twice_changes_nothing() {
        for line in ["a 1 /b/c 0x1f", "x=3: (4, 5)", "12:00 at /p", "'/a/b'"] {
            let once = normalised(line);
            assert_eq!(normalised(&once), once, "{line}");
        }
    }

    #[test]
    fn the_last_exception_is_found() {
        let python = "epoch 1\nTraceback (most recent call last):\n  File \"/a.py\", line 3, in <module>\n    f()\nValueError: bad value 3\n\n";
        let found = error_line(python);
        assert_eq!(found.exception, "ValueError");
        assert_eq!(found.line, "ValueError: bad value 3");
        let torch =
            "x\r50%\r99%\ntorch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\n[rank0] bye\n";
        let found = error_line(torch);
        assert_eq!(found.exception, "torch.OutOfMemoryError");
        assert_eq!(
            error_line("KeyboardInterrupt\n").exception,
            "KeyboardInterrupt"
        );
    }

    #[test]
    fn without_an_exception_a_line_that_says_error_or_the_last_one() {
        for (output, line) in [
            (
                "a\nmake: *** [all] Error 2\nbye\n",
                "make: *** [all] Error 2",
            ),
            (
                "a\nthread 'main' panicked at x.rs:1:\nno\n",
                "thread 'main' panicked at x.rs:1:",
            ),
            ("one\ntwo\n\n  \n", "two"),
            ("10%\r20%\r\n", "20%"),
            ("\u{1b}[31mError: red\u{1b}[0m\n", "Error: red"),
            ("", ""),
        ] {
            let found = error_line(output);
            assert_eq!(
                (found.line.as_str(), found.exception.as_str()),
                (line, ""),
                "{output:?}"
            );
        }
    }

    #[test]
    fn the_end_and_the_line_make_the_signature() {
        let error = error_line("ValueError: bad value 3");
        let exit = outcome(&Facts {
            exit_code: Some(1),
            ..Facts::of(End::Waited)
        });
        assert_eq!(
            signature(&exit, &error),
            "exit 1: ValueError: bad value <n>"
        );
        assert_eq!(signature(&exit, &ErrorLine::default()), "exit 1");
        let lost = outcome(&Facts::of(End::ShimLost));
        assert_eq!(signature(&lost, &error), "shim_lost");
        let long = error_line(&format!("ValueError: {}", "語 ".repeat(500)));
        assert_eq!(signature(&exit, &long).chars().count(), MAX_SIGNATURE);
    }
}
