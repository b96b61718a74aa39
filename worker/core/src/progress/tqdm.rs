//! Bars of tqdm: `label:  37%|###7      | 37/100 [00:03<00:06, 10.0it/s]`, and without a total
//! `37it [00:03, 10.0it/s]`.

use std::time::Duration;

use super::{MAX_UNIT_BYTES, Sighting, Source, ansi, clean};

/// Follows the bars of one stream. The first bar is the outer one; bars that tqdm draws below it
/// are left out.
#[derive(Debug, Default)]
pub(super) struct Parser {
    outer: Option<String>,
}

impl Parser {
    pub(super) fn line(&mut self, line: &[u8], complete: bool) -> Option<Sighting> {
        if !line.ends_with(b"]") && !line.ends_with(b"m") && !line.ends_with(b"A") {
            return None;
        }
        // tqdm moves the cursor up again behind a bar that stands below another.
        let inner = line.ends_with(b"\x1b[A");
        let text = ansi::strip(line);
        let text = std::str::from_utf8(text.trim_ascii()).ok()?;
        let (label, sighting) = with_total(text).or_else(|| without_total(text))?;
        let known = self.outer.as_deref();
        let other = known.is_some_and(|outer| outer != label);
        if (inner && known.is_some()) || (other && !complete) {
            return None;
        }
        if !inner && known != Some(label) {
            self.outer = Some(label.to_owned());
        }
        Some(sighting)
    }
}

fn with_total(text: &str) -> Option<(&str, Sighting)> {
    let (head, rest) = text.split_once("%|")?;
    let digits = head.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| {
        at + head[at..].chars().next().map_or(1, char::len_utf8)
    });
    let percent: f64 = head[digits..].parse().ok()?;
    let label = head[..digits].trim().trim_end_matches(':');
    let (_, counts) = rest.split_once('|')?;
    let (counts, timing) = counts.split_once('[')?;
    let (done_text, total_text) = counts.trim().split_once('/')?;
    let done = Number::parse(done_text)?;
    let total = Number::parse(total_text)?;
    // `unit_scale` puts the scale behind the numbers, and the unit behind the scale of the rate.
    let scaled = !done.letters.is_empty() || !total.letters.is_empty();
    let (remaining, speed) = parse_timing(timing)?;
    let mut sighting = Sighting::count(Source::Tqdm, done.scaled()?, total.scaled()?);
    if sighting.total <= 0.0 {
        sighting.percent = Some(percent.min(100.0));
    }
    sighting.eta = remaining;
    if let Some(speed) = speed {
        sighting.rate = speed.rate(scaled);
        sighting.unit = speed.unit(scaled);
    }
    Some((label, sighting))
}

fn without_total(text: &str) -> Option<(&str, Sighting)> {
    let (head, timing) = text.split_once(" [")?;
    let (label, count) = match head.rsplit_once(' ') {
        Some((label, count)) => (label.trim().trim_end_matches(':'), count),
        None => ("", head),
    };
    let done = Number::parse(count)?;
    if done.letters.is_empty() {
        return None;
    }
    let (_, speed) = parse_timing(timing)?;
    let speed = speed?;
    let scaled = done.digits.contains('.');
    let unit = speed.unit(scaled);
    // `letters` is the scale and the unit, and the unit ends both the count and the rate.
    let full_unit = if unit.is_empty() { "it" } else { &unit };
    let scale = done.letters.strip_suffix(full_unit)?;
    let number = Number {
        digits: done.digits,
        letters: scale,
    };
    let mut sighting = Sighting::count(Source::Tqdm, number.scaled()?, 0.0);
    sighting.rate = speed.rate(scaled);
    sighting.unit = unit;
    Some((label, sighting))
}

/// Reads `00:03<00:06, 10.0it/s, loss=0.1]`, or `00:03, 10.0it/s]`: what remains, and the speed.
fn parse_timing(timing: &str) -> Option<(Option<Duration>, Option<Speed<'_>>)> {
    let timing = timing.strip_suffix(']')?;
    let (times, rest) = timing.split_once(", ")?;
    let (elapsed, remaining) = times.split_once('<').unwrap_or((times, "?"));
    clock(elapsed)?;
    let speed = rest.split(", ").next().unwrap_or_default().trim();
    Some((clock(remaining), Speed::parse(speed)))
}

/// `MM:SS` or `H:MM:SS`.
fn clock(text: &str) -> Option<Duration> {
    let mut seconds = 0_u64;
    let mut parts = 0;
    for part in text.trim().split(':') {
        seconds = seconds.checked_mul(60)?.checked_add(part.parse().ok()?)?;
        parts += 1;
    }
    (2..=3)
        .contains(&parts)
        .then(|| Duration::from_secs(seconds))
}

/// A number and the letters behind it.
#[derive(Clone, Copy)]
struct Number<'a> {
    digits: &'a str,
    letters: &'a str,
}

impl<'a> Number<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let text = text.trim();
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (digits, letters) = text.split_at(end);
        (!digits.is_empty()).then_some(Self { digits, letters })
    }

    fn value(&self) -> Option<f64> {
        self.digits.parse().ok()
    }

    fn scaled(&self) -> Option<f64> {
        Some(self.value()? * factor(self.letters)?)
    }
}

fn factor(scale: &str) -> Option<f64> {
    Some(match scale {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        _ => return None,
    })
}

/// `10.0it/s`, or `2.50s/it` when one item takes longer than a second.
struct Speed<'a> {
    number: Number<'a>,
    inverse: bool,
}

impl<'a> Speed<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let text = text.trim();
        // tqdm shows `?` before it knows.
        let text = text
            .strip_prefix('?')
            .map_or((text, false), |rest| (rest, true));
        let (unknown, text) = (text.1, text.0);
        let number = if unknown {
            Number {
                digits: "",
                letters: text,
            }
        } else {
            Number::parse(text)?
        };
        let (letters, inverse) = match number.letters.strip_suffix("/s") {
            Some(letters) => (letters, false),
            None => (number.letters.strip_prefix("s/")?, true),
        };
        Some(Self {
            number: Number { letters, ..number },
            inverse,
        })
    }

    /// Splits the letters into scale and unit.
    fn split(&self, scaled: bool) -> (&'a str, &'a str) {
        let letters = self.number.letters;
        let has_scale = scaled
            && !self.inverse
            && letters.len() > 1
            && letters.is_char_boundary(1)
            && factor(&letters[..1]).is_some();
        letters.split_at(usize::from(has_scale))
    }

    fn rate(&self, scaled: bool) -> Option<f64> {
        let value = self.number.value()?;
        if self.inverse {
            return (value > 0.0).then(|| 1.0 / value);
        }
        Some(value * factor(self.split(scaled).0)?)
    }

    /// The unit; tqdm's own `it` says nothing.
    fn unit(&self, scaled: bool) -> String {
        match self.split(scaled).1 {
            "it" => String::new(),
            unit => clean(unit, MAX_UNIT_BYTES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<Sighting> {
        Parser::default().line(line.as_bytes(), true)
    }

    #[test]
    fn the_usual_bar() {
        let bar =
            parse("frames:  37%|███▋      | 37/100 [00:03<00:06, 10.5img/s, loss=0.1]").unwrap();
        assert_eq!(
            (bar.done, bar.total, bar.percent),
            (37.0, 100.0, Some(37.0))
        );
        assert_eq!((bar.rate, bar.unit.as_str()), (Some(10.5), "img"));
        assert_eq!(bar.eta, Some(Duration::from_secs(6)));
    }

    #[test]
    fn slow_scaled_and_open_ended_bars() {
        let slow = parse(" 5%|5   | 1/20 [00:30<1:02:03, 30.00s/it]").unwrap();
        assert_eq!(slow.eta, Some(Duration::from_secs(3723)));
        assert_eq!((slow.rate, slow.unit.as_str()), (Some(1.0 / 30.0), ""));

        let scaled = parse(" 10%|#    | 500k/5.00M [00:00<00:00, 16.6MB/s]").unwrap();
        assert_eq!((scaled.done, scaled.total), (500e3, 5e6));
        assert_eq!(
            (scaled.rate.map(f64::round), scaled.unit.as_str()),
            (Some(16.6e6), "B")
        );

        let open = parse("load: 37it [00:03, 10.0it/s]").unwrap();
        assert_eq!((open.done, open.total, open.rate), (37.0, 0.0, Some(10.0)));
        let open = parse("1.23MB [00:03, 400kB/s]").unwrap();
        assert_eq!(
            (open.done, open.rate, open.unit.as_str()),
            (1.23e6, Some(400e3), "B")
        );

        let first = parse("  0%|          | 0/100 [00:00<?, ?it/s]").unwrap();
        assert_eq!((first.done, first.rate, first.eta), (0.0, None, None));
    }

    #[test]
    fn other_lines_are_no_bars() {
        for line in [
            "",
            "]",
            "[12/30]",
            "100%|",
            "50%|x| 1/2 [x]",
            "50%|x| a/b [00:01<00:02, 1it/s]",
            "see [1, 2]",
            "5 apples [00:01]",
            "%|%|%|[[[/]",
            "\u{20ac}%|\u{20ac}| 1/2 [00:01<00:02, 1\u{20ac}/s]",
        ] {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn an_inner_bar_does_not_hide_the_outer_one() {
        let mut parser = Parser::default();
        let outer = b"epoch:  33%|###   | 1/3 [00:00<00:00,  6.58it/s]";
        let inner = b"batch:  20%|##   | 1/5 [00:00<00:00, 33.17it/s]\x1b[A";
        assert!(parser.line(outer, true).is_some());
        assert_eq!(parser.line(inner, true), None);
        assert_eq!(parser.line(&inner[..inner.len() - 3], false), None);
        assert!(parser.line(outer, false).is_some());
    }
}
