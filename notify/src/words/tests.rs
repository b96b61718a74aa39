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
    let text =
        words(Language::English).several("job_failed", &all[..Words::MOST_ITEMS], all.len(), now);
    assert_eq!(text.title, "30 jobs failed");
    assert_eq!(text.body.lines().count(), Words::MOST_ITEMS);
    assert_eq!(
        text.body.lines().next(),
        Some("42 train: it ended with exit code 3")
    );
    assert_eq!(text.body.lines().last(), Some("and 19 more"));
    let one = words(Language::English).several("job_failed", &all[..1], 1, now);
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
fn what_is_told_late_says_when_it_was_and_how_often() {
    let now = at("2026-11-20T22:00:00Z");
    let mut facts = failed();
    facts.insert("told".to_owned(), Fact::Text("late".into()));
    facts.insert("at".to_owned(), Fact::Time(at("2026-11-20T17:10:00Z")));
    facts.insert("next".to_owned(), Fact::Time(at("2026-11-20T17:15:00Z")));
    let english = words(Language::English).notice("attempt_failed", &facts, now);
    assert_eq!(
        english.body,
        "On gpu-1 after 12 min: it ended with exit code 3.\n\
         This was at 02:10.\n\
         Last line: ValueError: bad\n\
         It was to start again at 02:15; one more try is left after that.\n\
         Nothing needs to be done. To look: qctl logs 42"
    );
    let back: Facts = [
        ("worker", Fact::Text("gpu-1".into())),
        ("since", Fact::Time(at("2026-11-20T20:10:00Z"))),
        ("ran", Fact::Seconds(15 * 60)),
        ("times", Fact::Number(3)),
        ("first", Fact::Time(at("2026-11-20T17:10:00Z"))),
    ]
    .into_iter()
    .map(|(name, fact)| (name.to_owned(), fact))
    .collect();
    let english = words(Language::English).notice("worker_back", &back, now);
    assert_eq!(english.title, "Worker gpu-1 is back");
    assert_eq!(
        english.body,
        "It was away from 05:10 to 05:25, for 15 min.\n\
         Since 02:10 this happened 3 times."
    );
    let japanese = words(Language::Japanese).notice("worker_back", &back, now);
    assert_eq!(
        japanese.body,
        "05:10 から 05:25 まで(15分)、連絡がとれませんでした。\n\
         02:10 から 3 回ありました。"
    );
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

/// What every notice may say, with a value for each name.
fn everything() -> Facts {
    let text = |text: &str| Fact::Text(text.to_owned());
    [
        ("job", text("42")),
        ("name", text("学習")),
        ("other", text("41")),
        ("state", text("failed")),
        ("worker", text("gpu-1")),
        ("place", text("src/main.rs:7")),
        ("ran", Fact::Seconds(725)),
        ("since", Fact::Time(at("2026-11-21T04:31:00Z"))),
        ("next", Fact::Time(at("2026-11-21T05:05:00Z"))),
        ("left", Fact::Number(2)),
        ("cause", text("exit")),
        ("code", text("3")),
        ("signal", text("9")),
        ("held", text("crash_loop")),
        ("number", text("79")),
        ("unused", Fact::Seconds(900)),
        ("gpu", text("0")),
        ("limit", text("95")),
        ("value", text("97")),
        ("fault", text("xid")),
        ("text", text("123")),
        ("line", text("ValueError: bad")),
        ("quote", text("connection refused")),
    ]
    .into_iter()
    .map(|(name, fact)| (name.to_owned(), fact))
    .collect()
}

#[test]
fn a_gpu_that_rests_is_told_with_what_a_person_can_do() {
    let now = at("2026-11-21T05:00:00Z");
    let facts = [
        ("worker", Fact::Text("gpu-1".into())),
        ("gpu", Fact::Text("H200 (GPU-5f3ab2c1)".into())),
        ("fault", Fact::Text("fails_jobs".into())),
        ("since", Fact::Time(at("2026-11-21T05:00:00Z"))),
    ];
    let facts = facts.into_iter();
    let facts: Facts = facts.map(|(name, fact)| (name.to_owned(), fact)).collect();
    let english = words(Language::English).notice("gpu_faulty", &facts, now);
    assert_eq!(english.title, "A graphics card of gpu-1 does not work");
    assert_eq!(
        english.body,
        "H200 (GPU-5f3ab2c1), since 14:00: two jobs in a row failed on it, though its driver calls it well.\n\
         No job is started on it for half an hour. Then one job tries it; if that fails, it rests for \
         twice as long, up to 8 hours.\n\
         To look: qctl workers. To use it again at once: qctl worker resume gpu-1"
    );
    let japanese = words(Language::Japanese).notice("gpu_faulty", &facts, now);
    assert_eq!(
        japanese.body,
        "H200 (GPU-5f3ab2c1)(14:00 から): ドライバーは正常だと言いますが、ジョブが二つ続けて失敗しました。\n\
         この GPU では三十分間ジョブを始めません。そのあとジョブ一つで試し、また失敗すれば休みを倍にします(八時間まで)。\n\
         見るには: qctl workers すぐにまた使うには: qctl worker resume gpu-1"
    );
}

/// What a notice of this class typically says.
fn typical(class: &str) -> Facts {
    let mut facts = everything();
    if !["attempt_failed", "job_failed"].contains(&class) {
        facts.remove("line");
    }
    let name = match class {
        "panic" => "qctl-server",
        "trouble" | "trouble_over" => "dispatcher",
        "channel_refused" | "channel_works" | "channel_low" => "pushover",
        "submission_refused" | "test" => "alice",
        _ => "学習",
    };
    facts.insert("name".to_owned(), Fact::Text(name.to_owned()));
    let quotes = [
        "job_refused",
        "submission_refused",
        "database_away",
        "database_refuses",
        "panic",
        "trouble",
        "channel_refused",
    ];
    if !quotes.contains(&class) {
        facts.remove("quote");
    }
    facts
}

/// Every notice in a language, one after the other.
fn catalogue(language: Language) -> String {
    let words = words(language);
    let now = at("2026-11-21T05:00:00Z");
    let mut out = String::new();
    for class in words.classes() {
        let one = words.notice(class, &typical(class), now);
        let two = words.several(class, &[typical(class), typical(class)], 2, now);
        let item = two.body.lines().next().unwrap_or_default().to_owned();
        out.push_str(&format!(
            "{class}\n{}\n{}\n({} / {item})\n\n",
            one.title, one.body, two.title
        ));
    }
    out
}

#[test]
fn every_notice_in_english() {
    insta::assert_snapshot!("en", catalogue(Language::English));
}

#[test]
fn every_notice_in_japanese() {
    insta::assert_snapshot!("ja", catalogue(Language::Japanese));
}

/// English words in a Japanese notice are names, commands and quotes, and nothing else.
#[test]
fn japanese_notices_have_no_english_sentences() {
    let words = words(Language::Japanese);
    let now = at("2026-11-21T05:00:00Z");
    let mut causes: Vec<Facts> = Vec::new();
    for cause in [
        "exit",
        "signal",
        "time_limit",
        "out_of_memory",
        "cannot_start",
        "cancelled",
        "worker_lost",
        "shim_lost",
        "record_gone",
        "lease_expired",
        "gpu_fault",
        "gpu_fallback",
        "silence",
        "contradicted",
        "checkpointed",
        "drill",
        "void",
    ] {
        let mut facts = everything();
        facts.insert("cause".to_owned(), Fact::Text(cause.to_owned()));
        causes.push(facts);
    }
    let known = [
        "qctl",
        "GPU",
        "notify",
        "toml",
        "minimum",
        "statistics",
        "Xid",
    ];
    for class in words.classes() {
        for facts in &causes {
            let text = words.notice(class, facts, now);
            for line in format!("{}\n{}", text.title, text.body).lines() {
                if line.starts_with("最後の行") || line.starts_with("原文") {
                    continue;
                }
                let mut line = line.to_owned();
                for command in [
                    "notices test",
                    "health",
                    "logs",
                    "retry",
                    "release",
                    "cancel",
                    "show",
                    "why",
                    "workers",
                    "status",
                    "up",
                    "cleanup",
                    "notices",
                    "test",
                    "resume",
                    "checkpoints",
                ] {
                    line = line.replace(&format!("qctl {command}"), "");
                }
                for given in ["--silence stop=1h", "gpu-1", "src/main.rs:7", "py-spy"] {
                    line = line.replace(given, "");
                }
                let english: Vec<&str> = line
                    .split(|c: char| !c.is_ascii_alphabetic())
                    .filter(|word| word.len() > 2 && !known.contains(word))
                    .collect();
                assert!(english.is_empty(), "{class}: {english:?} in {line}");
            }
        }
    }
}

#[test]
fn no_name_is_left_without_a_value() {
    for language in Language::ALL {
        let text = catalogue(language);
        assert!(!text.contains('{'), "{text}");
    }
}
