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
/// Things named one by one when several are told in one message.
const MAX_ITEMS: usize = 12;

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

    /// One notice in words. `now` decides whether a time needs its date.
    pub fn notice(&self, class: &str, facts: &Facts, now: DateTime<Utc>) -> Text {
        let args = self.args(facts, now);
        let mut body: Vec<String> = Vec::new();
        body.extend(self.part(class, "what", &args));
        if facts.contains_key("line") {
            body.extend(self.message("last-line", &args));
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

    /// Several notices of one class in one message.
    pub fn several(&self, class: &str, all: &[Facts], now: DateTime<Utc>) -> Text {
        if let [one] = all {
            return self.notice(class, one, now);
        }
        let count = |count: usize| {
            let mut args = FluentArgs::new();
            args.set("count", i64::try_from(count).unwrap_or(i64::MAX));
            args
        };
        let named = if all.len() > MAX_ITEMS {
            MAX_ITEMS - 1
        } else {
            all.len()
        };
        let mut body: Vec<String> = all[..named]
            .iter()
            .filter_map(|facts| self.part(class, "item", &self.args(facts, now)))
            .map(|line| cut(&line, 80))
            .collect();
        if named < all.len() {
            body.extend(self.message("and-more", &count(all.len() - named)));
        }
        Text {
            title: self
                .part(class, "many", &count(all.len()))
                .unwrap_or_else(|| format!("qctl: {} × {class}", all.len())),
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
        if facts.contains_key("cause") {
            let reason = self.message("cause", &args).unwrap_or_default();
            args.set("reason", reason);
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
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn words(language: Language) -> Words {
        Words::new(language, Zone::named("Asia/Tokyo").unwrap())
    }

    fn failed() -> Facts {
        [
            ("job", Fact::Text("42".into())),
            ("name", Fact::Text("train".into())),
            ("worker", Fact::Text("gpu-1".into())),
            ("ran", Fact::Seconds(725)),
            ("cause", Fact::Text("exit".into())),
            ("code", Fact::Text("3".into())),
            ("line", Fact::Text("ValueError: bad\u{1b}".into())),
            ("next", Fact::Time(at("2026-11-21T05:05:00Z"))),
            ("left", Fact::Number(1)),
        ]
        .into_iter()
        .map(|(name, fact)| (name.to_owned(), fact))
        .collect()
    }

    #[test]
    fn a_failure_in_both_languages() {
        let now = at("2026-11-21T05:00:00Z");
        let english = words(Language::English).notice("attempt_failed", &failed(), now);
        assert_eq!(english.title, "Job 42 “train” failed, and is tried again");
        assert_eq!(
            english.body,
            "On gpu-1 after 12 min: it ended with exit code 3.\n\
             Last line: ValueError: bad\n\
             It starts again at 14:05; one more try is left after that.\n\
             Nothing needs to be done. To look: qctl logs 42"
        );
        let japanese = words(Language::Japanese).notice("attempt_failed", &failed(), now);
        assert_eq!(
            japanese.title,
            "ジョブ 42「train」が失敗しました(やり直します)"
        );
        assert_eq!(
            japanese.body,
            "gpu-1 で開始から 12分 後: 終了コード 3 で終わりました。\n\
             最後の行: ValueError: bad\n\
             14:05 に自動でやり直します。そのあとさらに 1 回やり直せます。\n\
             何もしなくて大丈夫です。見るには: qctl logs 42"
        );
    }

    #[test]
    fn several_become_one_with_the_rest_counted() {
        let now = at("2026-11-21T05:00:00Z");
        let all = vec![failed(); 30];
        let text = words(Language::English).several("job_failed", &all, now);
        assert_eq!(text.title, "30 jobs failed");
        assert_eq!(text.body.lines().count(), MAX_ITEMS);
        assert_eq!(
            text.body.lines().next(),
            Some("42 train: it ended with exit code 3")
        );
        assert_eq!(text.body.lines().last(), Some("and 19 more"));
        let one = words(Language::English).several("job_failed", &all[..1], now);
        assert_eq!(one.title, "Job 42 “train” failed");
    }

    #[test]
    fn times_have_a_date_when_it_is_not_todays_there() {
        let words = words(Language::Japanese);
        let now = at("2026-11-20T16:00:00Z");
        assert_eq!(words.clock(at("2026-11-20T15:30:00Z"), now), "00:30");
        assert_eq!(
            words.clock(at("2026-11-20T14:30:00Z"), now),
            "11月20日 23:30"
        );
    }

    #[test]
    fn lengths_are_said_as_people_do() {
        let (en, ja) = (words(Language::English), words(Language::Japanese));
        for (seconds, english, japanese) in [
            (-1, "0 s", "0秒"),
            (59, "59 s", "59秒"),
            (60, "1 min", "1分"),
            (61, "1 min 1 s", "1分1秒"),
            (3_599, "59 min", "59分"),
            (3_600, "1 h", "1時間"),
            (90_000, "1 d 1 h", "1日1時間"),
        ] {
            assert_eq!(en.length(seconds), english);
            assert_eq!(ja.length(seconds), japanese);
        }
    }

    #[test]
    fn both_catalogues_say_the_same_things_without_mistakes() {
        let ids = |language: Language| -> Vec<String> {
            let resource = FluentResource::try_new(language.source().to_owned());
            assert!(resource.is_ok(), "{language:?}: {:?}", resource.err());
            language
                .source()
                .lines()
                .filter(|line| !line.starts_with('#') && line.contains(" ="))
                .filter(|line| {
                    line.starts_with(|c: char| c.is_alphabetic()) || line.starts_with("    .")
                })
                .filter_map(|line| line.split(" =").next())
                .map(|id| id.trim().to_owned())
                .collect()
        };
        assert_eq!(ids(Language::English), ids(Language::Japanese));
        for language in Language::ALL {
            let mut bundle = FluentBundle::new_concurrent(vec![Default::default()]);
            let resource = FluentResource::try_new(language.source().to_owned()).unwrap();
            assert!(bundle.add_resource(resource).is_ok(), "{language:?}");
        }
    }

    #[test]
    fn an_unknown_class_is_told_all_the_same() {
        let text = words(Language::English).notice("new_thing", &Facts::new(), Utc::now());
        assert_eq!(text.title, "qctl: new_thing");
    }

    #[test]
    fn locales_choose_the_language() {
        assert_eq!(Language::of_locale("ja_JP.UTF-8"), Language::Japanese);
        assert_eq!(Language::of_locale("ja"), Language::Japanese);
        assert_eq!(Language::of_locale("C.UTF-8"), Language::English);
        assert_eq!(Language::of_locale(""), Language::English);
    }
}
