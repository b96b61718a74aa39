//! The pattern that a user gives at submission: a regular expression with the named groups `done`
//! and `total`, or `percent`.

use regex::bytes::{Captures, Regex, RegexBuilder};

use super::{MAX_UNIT_BYTES, Sighting, Source, clean};

/// Most memory a compiled pattern may take, in bytes.
const MAX_COMPILED_BYTES: usize = 1 << 20;

/// A compiled pattern. It is searched in every line; a match without a number is ignored.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

/// Why a pattern cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    /// It is no regular expression, or an enormous one.
    #[error("the progress pattern is not a usable regular expression")]
    Syntax(#[source] regex::Error),
    /// Nothing in it says how far the job is.
    #[error(
        "the progress pattern needs a named group: (?<done>…) with (?<total>…), or (?<percent>…)"
    )]
    NoGroup,
}

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// When it is not a regular expression, or has neither a group `done` nor `percent`.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let regex = RegexBuilder::new(text)
            .size_limit(MAX_COMPILED_BYTES)
            .dfa_size_limit(MAX_COMPILED_BYTES)
            .build()
            .map_err(PatternError::Syntax)?;
        let names: Vec<_> = regex.capture_names().flatten().collect();
        if !names.contains(&"done") && !names.contains(&"percent") {
            return Err(PatternError::NoGroup);
        }
        Ok(Self(regex))
    }

    pub(super) fn find(&self, line: &[u8]) -> Option<Sighting> {
        let found = self.0.captures(line)?;
        let mut sighting = match (number(&found, "done"), number(&found, "percent")) {
            (Some(done), percent) => {
                let total = number(&found, "total").unwrap_or(0.0);
                let mut sighting = Sighting::count(Source::Pattern, done, total);
                sighting.percent = percent.map(|p| p.min(100.0)).or(sighting.percent);
                sighting
            }
            (None, Some(percent)) => Sighting::percent(Source::Pattern, percent),
            (None, None) => return None,
        };
        if let Some(unit) = text(&found, "unit") {
            sighting.unit = clean(unit, MAX_UNIT_BYTES);
        }
        Some(sighting)
    }
}

fn text<'a>(found: &Captures<'a>, group: &str) -> Option<&'a str> {
    std::str::from_utf8(found.name(group)?.as_bytes()).ok()
}

fn number(found: &Captures<'_>, group: &str) -> Option<f64> {
    let number: f64 = text(found, group)?.trim().replace(',', "").parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_become_numbers() {
        let pattern =
            Pattern::parse(r"step (?<done>[\d,]+) of (?<total>[\d,]+) (?<unit>\w+)").unwrap();
        let seen = pattern.find(b"at step 1,200 of 4,000 frames").unwrap();
        assert_eq!(
            (seen.done, seen.total, seen.percent),
            (1200.0, 4000.0, Some(30.0))
        );
        assert_eq!(seen.unit, "frames");
        assert_eq!(pattern.find(b"nothing"), None);

        let pattern = Pattern::parse(r"(?P<percent>[\d.]+) ?percent").unwrap();
        assert_eq!(pattern.find(b"12.5 percent").unwrap().percent, Some(12.5));
        assert_eq!(pattern.find(b".. percent"), None);
    }

    #[test]
    fn unusable_patterns_are_refused() {
        assert!(matches!(Pattern::parse("("), Err(PatternError::Syntax(_))));
        assert!(matches!(
            Pattern::parse(r"(\d+)"),
            Err(PatternError::NoGroup)
        ));
        assert!(matches!(
            Pattern::parse(r"(?<done>\w{1000}{1000})"),
            Err(PatternError::Syntax(_))
        ));
    }
}
