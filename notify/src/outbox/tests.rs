use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::channel::Pending;
use crate::settings::Quiet;
use crate::words::{Language, Zone};

fn filed(signature: &str) -> Filed {
    Filed {
        class: "panic".into(),
        severity: Severity::Error,
        subject: "program".into(),
        signature: signature.into(),
        facts: Facts::new(),
        at: DateTime::UNIX_EPOCH,
        deliveries: BTreeMap::new(),
    }
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap()
}

/// Answers what it is told to, the last first; then it takes everything.
#[derive(Debug)]
struct Scripted {
    name: &'static str,
    answers: Mutex<Vec<Outcome>>,
    settled: Mutex<Settled>,
    asked: AtomicUsize,
    got: Mutex<Vec<String>>,
}

impl Scripted {
    fn channel(name: &'static str, settled: Settled, answers: &[Outcome]) -> Arc<Self> {
        Arc::new(Self {
            name,
            answers: Mutex::new(answers.iter().rev().cloned().collect()),
            settled: Mutex::new(settled),
            asked: AtomicUsize::new(0),
            got: Mutex::new(Vec::new()),
        })
    }

    fn got(&self) -> usize {
        self.got.lock().unwrap().len()
    }
}

impl Channel for Scripted {
    fn name(&self) -> &'static str {
        self.name
    }

    fn left(&self) -> Pending<'_, Option<i64>> {
        Box::pin(async { Some(100) })
    }

    fn send<'a>(&'a self, message: &'a Message) -> Pending<'a, Outcome> {
        self.got.lock().unwrap().push(message.id.clone());
        let answer = self.answers.lock().unwrap().pop();
        Box::pin(async move { answer.unwrap_or(Outcome::Accepted { receipt: None }) })
    }

    fn settle(&self, left_before: Option<i64>) -> Pending<'_, Settled> {
        assert_eq!(left_before, Some(100), "what was counted is remembered");
        self.asked.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { *self.settled.lock().unwrap() })
    }
}

fn not_now() -> Outcome {
    Outcome::NotNow {
        why: "busy".into(),
        after: Duration::from_secs(5),
    }
}

fn settings(channels: &[Arc<Scripted>]) -> Settings {
    let mut settings = Settings::default();
    settings.zone = Zone::named("UTC").unwrap();
    settings.channels = channels
        .iter()
        .map(|one| Arc::clone(one) as Arc<dyn Channel>)
        .collect();
    settings
}

async fn send(outbox: &Outbox, channels: &[Arc<Scripted>], now: i64) {
    send_by(outbox, &settings(channels), now).await;
}

async fn send_by(outbox: &Outbox, settings: &Settings, now: i64) {
    let words = Words::new(Language::English, Zone::Local);
    outbox
        .send(settings, &words, at(now), |_| true)
        .await
        .unwrap();
}

fn fates(outbox: &Outbox) -> Vec<(String, &'static str)> {
    let entries = outbox.entries().unwrap();
    entries
        .iter()
        .flat_map(|entry| &entry.filed.deliveries)
        .map(|(name, one)| (name.clone(), one.fate.as_str()))
        .collect()
}

#[test]
fn the_same_thing_is_filed_once_until_it_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = Outbox::of(folder.path());
    assert!(outbox.entries().unwrap().is_empty());
    assert!(outbox.put(&filed("a")).unwrap());
    assert!(!outbox.put(&filed("a")).unwrap());
    assert!(outbox.put(&filed("b")).unwrap());
    let turn = outbox.turn().unwrap().unwrap();
    assert!(outbox.turn().unwrap().is_none(), "one at a time");
    let first = outbox.entries().unwrap().remove(0);
    outbox.remove(&turn, &first).unwrap();
    drop(turn);
    assert!(outbox.turn().unwrap().is_some());
    assert!(outbox.put(&first.filed).unwrap());
}

#[test]
fn a_torn_file_harms_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = Outbox::of(folder.path());
    outbox.put(&filed("a")).unwrap();
    let path = outbox.entries().unwrap()[0].path.clone();
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(outbox.entries().unwrap().is_empty());
    }
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(outbox.entries().unwrap().len(), 1);
}

#[tokio::test]
async fn each_channel_has_a_fate_of_its_own_and_waits_as_long_as_it_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = Outbox::of(folder.path());
    outbox.put(&filed("a")).unwrap();
    let phone = Scripted::channel("phone", Settled::Unknown, &[not_now(), not_now()]);
    let desk = Scripted::channel("desk", Settled::Unknown, &[Outcome::Refused("no".into())]);
    let both = [Arc::clone(&phone), Arc::clone(&desk)];
    for (now, calls) in [(0, 1), (4, 1), (5, 2), (14, 2), (15, 3), (900, 3)] {
        send(&outbox, &both, now).await;
        assert_eq!(phone.got(), calls, "at {now}");
    }
    assert_eq!(desk.got(), 1, "what is refused is not repeated");
    let expected = [
        ("desk".to_owned(), "rejected"),
        ("phone".to_owned(), "sent"),
    ];
    assert_eq!(fates(&outbox), expected);
    assert!(outbox.entries().unwrap()[0].filed.was_told());
}

#[tokio::test]
async fn what_was_cut_off_is_settled_by_whoever_comes_next() {
    for (settled, fate, calls) in [
        (Settled::Sent, "sent", 1),
        (Settled::NotSent, "sent", 2),
        (Settled::Unknown, "unknown", 1),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::of(folder.path());
        outbox.put(&filed("a")).unwrap();
        outbox.put(&filed("b")).unwrap();
        let lost = Outcome::Unknown("no answer".into());
        let phone = [Scripted::channel("phone", settled, &[lost])];
        send(&outbox, &phone, 0).await;
        assert_eq!(phone[0].got(), 1, "nothing else is sent meanwhile");
        send(&outbox, &phone, 4).await;
        assert_eq!(phone[0].got(), 1);
        // Another program has the outbox now.
        let outbox = Outbox::of(folder.path());
        send(&outbox, &phone, 5).await;
        let first = phone[0].got.lock().unwrap()[0].clone();
        let repeats = phone[0]
            .got
            .lock()
            .unwrap()
            .iter()
            .filter(|id| **id == first)
            .count();
        assert_eq!(repeats, calls, "{settled:?}");
        let entry = outbox
            .entries()
            .unwrap()
            .into_iter()
            .find(|entry| entry.key == first);
        let entry = entry.unwrap();
        assert_eq!(
            entry.filed.deliveries["phone"].fate.as_str(),
            fate,
            "{settled:?}"
        );
        assert_eq!(phone[0].got(), calls + 1, "the other one is sent once");
    }
}

#[tokio::test]
async fn an_outage_of_the_network_does_not_lose_sight_of_what_was_in_flight() {
    let begin = async || {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::of(folder.path());
        outbox.put(&filed("a")).unwrap();
        let lost = Outcome::Unknown("no answer".into());
        let phone = [Scripted::channel("phone", Settled::AskAgain, &[lost])];
        (folder, outbox, phone)
    };
    let (_folder, outbox, phone) = begin().await;
    for now in (0..3_000).step_by(5) {
        send(&outbox, &phone, now).await;
    }
    assert_eq!(fates(&outbox)[0].1, "sending");
    let asked = phone[0].asked.load(Ordering::Relaxed);
    assert!((50..60).contains(&asked), "asked {asked} times");
    *phone[0].settled.lock().unwrap() = Settled::NotSent;
    for now in (3_000..3_065).step_by(5) {
        send(&outbox, &phone, now).await;
    }
    assert_eq!(fates(&outbox)[0].1, "sent");
    assert_eq!(phone[0].got(), 2);

    let (_folder, outbox, phone) = begin().await;
    for now in (0..3_700).step_by(5) {
        send(&outbox, &phone, now).await;
    }
    assert_eq!(fates(&outbox)[0].1, "unknown");
    assert_eq!(phone[0].got(), 1, "never sent twice");
}

#[tokio::test]
async fn what_is_too_mild_is_settled_unsent_and_the_night_is_waited_out() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = Outbox::of(folder.path());
    for (signature, severity) in [
        ("mild", Severity::Info),
        ("bad", Severity::Warning),
        ("worse", Severity::Critical),
    ] {
        let filed = Filed {
            severity,
            ..filed(signature)
        };
        outbox.put(&filed).unwrap();
    }
    let phone = [Scripted::channel("phone", Settled::Unknown, &[])];
    let mut settings = settings(&phone);
    settings.minimum = Severity::Warning;
    let wall = |hour| chrono::NaiveTime::from_hms_opt(hour, 0, 0).unwrap();
    settings.quiet = Some(Quiet {
        from: wall(0),
        to: wall(7),
        below: Severity::Error,
    });
    let fate_of = |signature: &str| {
        let entries = outbox.entries().unwrap();
        let entry = entries
            .into_iter()
            .find(|entry| entry.filed.signature == signature);
        let deliveries = entry.unwrap().filed.deliveries;
        deliveries.get("phone").map(|one| one.fate)
    };
    send_by(&outbox, &settings, 0).await;
    send_by(&outbox, &settings, 7 * 3_600 - 1).await;
    assert_eq!(phone[0].got(), 1, "in the night");
    assert_eq!(fate_of("worse"), Some(FiledFate::Sent));
    assert_eq!(fate_of("bad"), None);
    assert_eq!(fate_of("mild"), Some(FiledFate::Withheld));
    send_by(&outbox, &settings, 7 * 3_600).await;
    assert_eq!(phone[0].got(), 2, "in the morning");
    assert_eq!(fate_of("bad"), Some(FiledFate::Sent));
    // It was decided, and is not decided again by other settings.
    settings.minimum = Severity::Info;
    send_by(&outbox, &settings, 8 * 3_600).await;
    assert_eq!(phone[0].got(), 2);
    let mild = outbox
        .entries()
        .unwrap()
        .into_iter()
        .find(|entry| entry.filed.severity == Severity::Info)
        .unwrap();
    assert!(mild.filed.is_settled(&settings.channels) && !mild.filed.was_told());
}

/// A coordinator that answers as it is told to, and keeps the keys of what it got.
async fn hand_over(outbox: &Outbox, now: i64, answer: HandedOver, got: &Mutex<Vec<String>>) {
    outbox
        .hand_over(
            at(now),
            |filed| filed.class == "panic",
            async |entry| {
                got.lock().unwrap().push(entry.key.clone());
                answer.clone()
            },
        )
        .await
        .unwrap();
}

#[tokio::test]
async fn what_a_coordinator_may_have_taken_is_told_by_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = Outbox::of(folder.path());
    let phone = [Scripted::channel("phone", Settled::Unknown, &[])];
    let got = Mutex::new(Vec::new());
    outbox.put(&filed("a")).unwrap();
    let refused = HandedOver::NotTaken("it does not lead".into());
    hand_over(&outbox, 0, HandedOver::Unknown("no answer".into()), &got).await;
    hand_over(&outbox, 9, HandedOver::Taken, &got).await;
    assert_eq!(got.lock().unwrap().len(), 1, "not again so soon");
    // That it is refused now says nothing about the first time.
    hand_over(&outbox, 10, refused.clone(), &got).await;
    send(&outbox, &phone, 15).await;
    assert_eq!(phone[0].got(), 0);
    assert!(!outbox.entries().unwrap()[0].is_open(), "no channel has it");
    hand_over(&outbox, 20, HandedOver::Taken, &got).await;
    let got = got.into_inner().unwrap();
    assert!(got.len() == 3 && got.iter().all(|key| *key == got[0]));
    assert!(outbox.entries().unwrap().is_empty(), "its file is removed");

    // What was not taken for certain is told from here, and then kept from the coordinator.
    let got = Mutex::new(Vec::new());
    outbox.put(&filed("b")).unwrap();
    hand_over(&outbox, 0, refused, &got).await;
    send(&outbox, &phone, 1).await;
    assert_eq!(phone[0].got(), 1);
    hand_over(&outbox, 100, HandedOver::Taken, &got).await;
    assert_eq!(got.into_inner().unwrap().len(), 1);
}

#[test]
fn a_coordinator_that_says_no_more_that_it_takes_what_lies_here_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = Outbox::of(folder.path());
    assert!(!outbox.is_taken());
    outbox.take().unwrap();
    assert!(outbox.is_taken());
    assert!(outbox.entries().unwrap().is_empty());
    let said = File::options()
        .write(true)
        .open(outbox.folder.join(TAKER))
        .unwrap();
    said.set_modified(std::time::SystemTime::now() - TAKER_LIVES)
        .unwrap();
    assert!(!outbox.is_taken());
}
