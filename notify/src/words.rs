//! The words of a notice, from a catalogue per language. Nothing that people read on a phone is
//! written anywhere else.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Datelike, NaiveDateTime, TimeDelta, Timelike, Utc};
use fluent_bundle::concurrent::FluentBundle;
use fluent_bundle::{FluentArgs, FluentResource};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use unic_langid::LanguageIdentifier;

use crate::text::{cut, plain_line};

/// Longest part of a notice that comes from outside, in characters: a last line of output must
/// leave room for what to do about it.
const MAX_FOREIGN: usize = 300;
/// A language that people are told in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Language {
    /// English.
    #[default]
    #[serde(rename = "en")]
    English,
    /// Japanese.
    #[serde(rename = "ja")]
    Japanese,
}

impl Language {
    /// Every language.
    pub const ALL: [Self; 2] = [Self::English, Self::Japanese];

    /// Its tag, as settings have it.
    pub fn tag(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Japanese => "ja",
        }
    }

    /// The language of a locale such as `ja_JP.UTF-8`; English when it is another one.
    pub fn of_locale(locale: &str) -> Self {
        match locale.split(['_', '.', '@']).next() {
            Some("ja") => Self::Japanese,
            _ => Self::English,
        }
    }

    fn source(self) -> &'static str {
        match self {
            Self::English => include_str!("words/en.ftl"),
            Self::Japanese => include_str!("words/ja.ftl"),
        }
    }
}

/// The zone that people's clocks show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Zone {
    /// The zone of this machine.
    #[default]
    Local,
    /// A zone by name, such as `Asia/Tokyo`.
    Named(TimeZone),
}

impl Zone {
    /// The zone of this name in the machine's database, or in the one that the program brings along.
    pub fn named(name: &str) -> Option<Self> {
        TimeZone::get(name).ok().map(Self::Named)
    }

    /// What a clock on the wall shows.
    pub fn wall(&self, at: DateTime<Utc>) -> NaiveDateTime {
        match self {
            Self::Local => at.with_timezone(&chrono::Local).naive_local(),
            Self::Named(zone) => {
                // No year that a clock shows is out of range; were it so, UTC is not wrong by much.
                let instant = Timestamp::from_second(at.timestamp()).unwrap_or_default();
                let offset = zone.to_offset(instant).seconds();
                at.naive_utc() + TimeDelta::seconds(i64::from(offset))
            }
        }
    }
}

/// Something that a notice says, by the name that the catalogue knows it by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// Words of a person or a program; shown in one line, cut when long.
    Text(String),
    /// A number of things.
    Number(i64),
    /// A moment.
    Time(DateTime<Utc>),
    /// A length in seconds.
    Seconds(i64),
}

/// What a notice says.
pub type Facts = BTreeMap<String, Fact>;

/// A notice in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// One line.
    pub title: String,
    /// What, where, since when, what qctl did, what a person can do; a line each.
    pub body: String,
}

/// The catalogue in one language, with the clock of one zone.
pub struct Words {
    language: Language,
    zone: Zone,
    bundle: FluentBundle<FluentResource>,
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Words")
            .field("language", &self.language)
            .field("zone", &self.zone)
            .finish_non_exhaustive()
    }
}

impl Words {
    /// Things named one by one, at most, when several are told in one message.
    pub const MOST_ITEMS: usize = 12;

    /// The catalogue of a language.
    pub fn new(language: Language, zone: Zone) -> Self {
        let identifier: LanguageIdentifier = language.tag().parse().unwrap_or_default();
        let mut bundle = FluentBundle::new_concurrent(vec![identifier]);
        // Phones show the marks that isolate writing directions as boxes.
        bundle.set_use_isolating(false);
        // The catalogues are part of the program; a test reads them for mistakes.
        let resource = match FluentResource::try_new(language.source().to_owned()) {
            Ok(resource) | Err((resource, _)) => resource,
        };
        let _ = bundle.add_resource(resource);
        Self {
            language,
            zone,
            bundle,
        }
    }

    /// The zone of its clock.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// True when the catalogue knows this class of notice.
    pub fn knows(&self, class: &str) -> bool {
        self.bundle.has_message(class)
    }

    /// Every class of notice that the catalogue knows, in its order.
    pub fn classes(&self) -> Vec<&'static str> {
        self.language
            .source()
            .lines()
            .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
            .filter_map(|line| line.split(" =").next())
            .filter(|id| {
                let message = self.bundle.get_message(id);
                message.is_some_and(|message| message.get_attribute("many").is_some())
            })
            .collect()
    }

    /// One notice in words. `now` decides whether a time needs its date.
    pub fn notice(&self, class: &str, facts: &Facts, now: DateTime<Utc>) -> Text {
        let args = self.args(facts, now);
        let mut body: Vec<String> = Vec::new();
        body.extend(self.part(class, "what", &args));
        for (fact, line) in [("at", "at"), ("times", "times")] {
            if facts.contains_key(fact) {
                body.extend(self.message(line, &args));
            }
        }
        if facts.contains_key("line") {
            body.extend(self.message("last-line", &args));
        }
        if facts.contains_key("quote") {
            body.extend(self.message("quote", &args));
        }
        body.extend(self.part(class, "did", &args));
        body.extend(self.part(class, "can", &args));
        Text {
            // A class that the catalogue does not know is told all the same.
            title: self
                .message(class, &args)
                .unwrap_or_else(|| format!("qctl: {class}")),
            body: body.join("\n"),
        }
    }

    /// Several notices of one class in one message. `first` are the first of them, all or at least
    /// [`Self::MOST_ITEMS`].
    pub fn several(&self, class: &str, first: &[Facts], count: usize, now: DateTime<Utc>) -> Text {
        if let ([one], 0..=1) = (first, count) {
            return self.notice(class, one, now);
        }
        let counted = |count: usize| {
            let mut args = FluentArgs::new();
            args.set("count", i64::try_from(count).unwrap_or(i64::MAX));
            args
        };
        let named = match count > Self::MOST_ITEMS {
            true => Self::MOST_ITEMS - 1,
            false => count,
        };
        let mut body: Vec<String> = first
            .iter()
            .take(named)
            .filter_map(|facts| self.part(class, "item", &self.args(facts, now)))
            .map(|line| cut(&line, 80))
            .collect();
        if named < count {
            body.extend(self.message("and-more", &counted(count - named)));
        }
        Text {
            title: self
                .part(class, "many", &counted(count))
                .unwrap_or_else(|| format!("qctl: {count} × {class}")),
            body: body.join("\n"),
        }
    }

    fn message(&self, id: &str, args: &FluentArgs<'_>) -> Option<String> {
        let pattern = self.bundle.get_message(id)?.value()?;
        let text = self
            .bundle
            .format_pattern(pattern, Some(args), &mut Vec::new());
        Some(text.into_owned())
    }

    fn part(&self, id: &str, attribute: &str, args: &FluentArgs<'_>) -> Option<String> {
        let attribute = self.bundle.get_message(id)?.get_attribute(attribute)?;
        let text = self
            .bundle
            .format_pattern(attribute.value(), Some(args), &mut Vec::new());
        Some(text.into_owned())
    }

    fn args(&self, facts: &Facts, now: DateTime<Utc>) -> FluentArgs<'static> {
        let mut args = FluentArgs::new();
        for (name, fact) in facts {
            match fact {
                Fact::Text(text) => args.set(name.clone(), cut(&plain_line(text), MAX_FOREIGN)),
                Fact::Number(number) => args.set(name.clone(), *number),
                Fact::Time(at) => args.set(name.clone(), self.clock(*at, now)),
                Fact::Seconds(seconds) => args.set(name.clone(), self.length(*seconds)),
            }
        }
        // An end is told with the beginning and the length, and says until when.
        if let (Some(Fact::Time(since)), Some(Fact::Seconds(seconds))) =
            (facts.get("since"), facts.get("ran"))
            && let Some(until) =
                TimeDelta::try_seconds(*seconds).and_then(|length| since.checked_add_signed(length))
        {
            args.set("until", self.clock(until, now));
        }
        if facts.contains_key("cause") {
            let reason = self.message("cause", &args).unwrap_or_default();
            args.set("reason", reason);
        }
        if let Some(Fact::Text(name)) = facts.get("name") {
            let key: String = name
                .chars()
                .filter(|c| *c != ',')
                .map(|c| if c == ' ' { '-' } else { c })
                .collect();
            args.set("key", key);
            let part = self.message("part", &args).unwrap_or_default();
            args.set("part", part);
        }
        args
    }

    /// A time of day, with its date unless that is today's.
    fn clock(&self, at: DateTime<Utc>, now: DateTime<Utc>) -> String {
        let (at, now) = (self.zone.wall(at), self.zone.wall(now));
        let time = format!("{:02}:{:02}", at.hour(), at.minute());
        if at.date() == now.date() {
            return time;
        }
        match self.language {
            Language::English => format!("{} {time}", at.format("%b %-d")),
            Language::Japanese => format!("{}月{}日 {time}", at.month(), at.day()),
        }
    }

    /// A length as people say it: the two largest units that matter.
    fn length(&self, seconds: i64) -> String {
        let length = TimeDelta::seconds(seconds.max(0));
        let (days, hours) = (length.num_days(), length.num_hours() % 24);
        let (minutes, rest) = (length.num_minutes() % 60, length.num_seconds() % 60);
        let [day, hour, minute, second, gap] = match self.language {
            Language::English => [" d", " h", " min", " s", " "],
            Language::Japanese => ["日", "時間", "分", "秒", ""],
        };
        let two = |large: i64, unit: &str, small: i64, small_unit: &str| match small {
            0 => format!("{large}{unit}"),
            small => format!("{large}{unit}{gap}{small}{small_unit}"),
        };
        if days > 0 {
            two(days, day, hours, hour)
        } else if hours > 0 {
            two(hours, hour, minutes, minute)
        } else if minutes >= 5 {
            format!("{minutes}{minute}")
        } else if minutes > 0 {
            two(minutes, minute, rest, second)
        } else {
            format!("{rest}{second}")
        }
    }
}

#[cfg(test)]
mod tests;
