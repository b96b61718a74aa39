//! From what happened to what a channel gets, on a real Postgres, by a clock that a test moves.

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::NaiveTime;
use qctl_notify::channel::Pending;
use qctl_notify::outbox::{Filed, FiledDelivery, FiledFate, Outbox};
use qctl_notify::settings::Quiet;
use qctl_notify::{Channel, Checked, Language, Message, Outcome, Settings, Zone};
use qctl_server_core::notice::{Class, Details, Notice};
use qctl_server_core::{JobId, Term};
use sqlx::PgPool;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::app::links::Links;
use crate::app::notices::{NoticeName, NoticePage, NoticeRecord};
use crate::app::read::PageRequest;
use crate::app::{About, Caller, ManualClock, Parts, Role};
use crate::app::{Doing, Duty, Error};
use crate::database::News;
use crate::store::fixtures::noon;
use crate::store::notices::Fate;
use crate::store::{Lease, Store};

mod over;

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Keeps what it gets; refuses or is busy while told to, and takes as long as its gate is shut.
#[derive(Debug)]
struct Recorder {
    name: &'static str,
    got: Mutex<Vec<Message>>,
    refuses: Mutex<Option<String>>,
    says: Mutex<Checked>,
    busy: AtomicBool,
    left: Mutex<Option<i64>>,
    gate: Semaphore,
}

impl Recorder {
    fn channel(name: &'static str) -> Arc<Self> {
        Arc::new(Self {
            name,
            got: Mutex::new(Vec::new()),
            refuses: Mutex::new(None),
            says: Mutex::new(Checked::Unknown),
            busy: AtomicBool::new(false),
            left: Mutex::new(None),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
        })
    }

    fn titles(&self) -> Vec<String> {
        let got = self.got.lock().unwrap();
        got.iter().map(|message| message.title.clone()).collect()
    }
}

impl Channel for Recorder {
    fn name(&self) -> &'static str {
        self.name
    }

    fn check(&self) -> Pending<'_, Checked> {
        let says = self.says.lock().unwrap().clone();
        Box::pin(async move { says })
    }

    fn left(&self) -> Pending<'_, Option<i64>> {
        let left = *self.left.lock().unwrap();
        Box::pin(async move { left })
    }

    fn send<'a>(&'a self, message: &'a Message) -> Pending<'a, Outcome> {
        Box::pin(async {
            if self.busy.load(Ordering::Relaxed) {
                return Outcome::NotNow {
                    why: "it is busy".to_owned(),
                    after: Duration::from_secs(5),
                };
            }
            self.got.lock().unwrap().push(message.clone());
            let _open = self.gate.acquire().await.unwrap();
            match self.refuses.lock().unwrap().clone() {
                Some(why) => Outcome::Refused(why),
                None => Outcome::Accepted { receipt: None },
            }
        })
    }
}

struct Bench {
    app: Arc<App>,
    clock: ManualClock,
    stop: CancellationToken,
    folder: tempfile::TempDir,
    carrier: tokio::task::JoinHandle<()>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
        self.carrier.abort();
    }
}

impl Bench {
    fn start(pool: &PgPool, channels: &[&Arc<Recorder>], edit: impl FnOnce(&mut Settings)) -> Self {
        let stop = CancellationToken::new();
        let (clock, moved) = Clock::manual(noon());
        let app = App::start(
            Parts {
                store: Store::new(pool.clone(), Lease::unlimited(Term(0))),
                clock: clock.clone(),
                links: Links::new("http://queue.test", "key"),
                settings: crate::app::Settings::default(),
                started_at: noon(),
                about: About {
                    database: "PostgreSQL (test)".to_owned(),
                    templates_file: PathBuf::from("/nonexistent/templates.toml"),
                },
            },
            stop.clone(),
        );
        let mut settings = Settings::default();
        settings.zone = Zone::named("UTC").unwrap();
        for channel in channels {
            settings
                .channels
                .push(Arc::clone(channel) as Arc<dyn Channel>);
        }
        edit(&mut settings);
        let folder = tempfile::tempdir().unwrap();
        let notifier = Arc::new(Notifier::new(settings, folder.path()));
        let carrier = tokio::spawn(Arc::clone(&notifier).carry(clock));
        super::start(&notifier, &app);
        Self {
            app,
            clock: moved,
            stop,
            folder,
            carrier,
        }
    }

    async fn tell(&self, class: Class, subject: &str) {
        let details = Details {
            name: subject.to_owned(),
            since: Some(self.app.clock.now()),
            seconds: Some(1),
            ..Details::default()
        };
        self.app
            .tell(Notice::about(class, subject, details))
            .await
            .unwrap();
    }

    async fn page(&self) -> NoticePage {
        let page = PageRequest {
            size: 0,
            token: String::new(),
        };
        self.app.notice_page(None, &page).await.unwrap()
    }

    async fn until(&self, what: &str, holds: impl Fn(&NoticePage) -> bool) -> NoticePage {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let page = self.page().await;
            if holds(&page) {
                return page;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "waited in vain until {what}: {page:#?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn is_sent(page: &NoticePage, class: Class, count: usize) -> bool {
    let sent = page.notices.iter().filter(|notice| {
        notice.class == class && notice.deliveries.iter().any(|one| one.state == "sent")
    });
    sent.count() == count
}

fn wall(text: &str) -> NaiveTime {
    NaiveTime::parse_from_str(text, "%H:%M").unwrap()
}

#[test]
fn every_duty_of_the_coordinator_has_words_of_its_own() {
    for language in [Language::English, Language::Japanese] {
        let words = Words::new(language, Zone::named("UTC").unwrap());
        for duty in Duty::ALL {
            let name = duty.as_str();
            let details = Details {
                name: name.to_owned(),
                since: Some(noon()),
                ..Details::default()
            };
            let notice = Notice::about(Class::Trouble, "x", details);
            let text = words.notice("trouble", &facts::of_filed(&notice), noon());
            let what = text.body.lines().next().unwrap();
            let is_default = [format!(": {name}."), format!(": {name}。")]
                .iter()
                .any(|end| what.ends_with(end.as_str()));
            assert!(!is_default, "{what}");
        }
    }
}

#[sqlx::test]
async fn quiet_hours_hold_what_is_mild_until_they_end(pool: PgPool) {
    let phone = Recorder::channel("phone");
    let bench = Bench::start(&pool, &[&phone], |settings| {
        settings.quiet = Some(Quiet {
            from: wall("11:00"),
            to: wall("13:00"),
            below: qctl_notify::Severity::Error,
        });
    });
    bench.tell(Class::Trouble, "dispatcher").await;
    bench.tell(Class::Panic, "program x").await;
    let page = bench
        .until("the bad one is told and the mild one waits", |page| {
            is_sent(page, Class::Panic, 1)
                && page.notices.iter().any(|one| one.waited == "quiet_hours")
        })
        .await;
    assert_eq!(page.notices.len(), 2);
    assert_eq!(phone.titles().len(), 1);
    bench.clock.advance(Duration::from_secs(3_600));
    let page = bench
        .until("the mild one is told", |page| {
            is_sent(page, Class::Trouble, 1)
        })
        .await;
    assert_eq!(phone.titles().len(), 2);
    let counted = page.counts.iter().find(|one| one.class == Class::Trouble);
    assert_eq!(counted.map(|one| (one.count, one.quiet)), Some((1, 1)));
}

#[sqlx::test]
async fn bursts_become_one_message_and_the_mildest_are_kept_in_the_history(pool: PgPool) {
    let phone = Recorder::channel("phone");
    let bench = Bench::start(&pool, &[&phone], |settings| {
        settings.minimum = qctl_notify::Severity::Warning;
    });
    bench.tell(Class::JobRecovered, "job 1").await;
    for number in 1..=6 {
        bench.tell(Class::Trouble, &format!("part {number}")).await;
    }
    // The same thing again is counted, and not told.
    bench.tell(Class::Trouble, "part 1").await;
    bench
        .until("three are told one by one", |page| {
            is_sent(page, Class::Trouble, 3)
        })
        .await;
    assert_eq!(phone.titles().len(), 3);
    bench.clock.advance(Duration::from_secs(61));
    let page = bench
        .until("the rest is told as one", |page| {
            is_sent(page, Class::Trouble, 6)
        })
        .await;
    assert_eq!(phone.titles().len(), 4);
    assert_eq!(phone.titles()[3], "qctl could not do 3 parts of its work");
    let troubles = page.counts.iter().find(|one| one.class == Class::Trouble);
    let counted = troubles.map(|one| (one.count, one.repeats, one.merged));
    assert_eq!(counted, Some((6, 1, 3)));
    let mild = page
        .counts
        .iter()
        .find(|one| one.class == Class::JobRecovered);
    assert_eq!(mild.map(|one| one.reason.as_str()), Some("too_mild"));
    let sent: Vec<_> = page
        .deliveries
        .iter()
        .map(|one| (one.channel.as_str(), one.state.as_str(), one.count))
        .collect();
    assert_eq!(sent, [("phone", "sent", 4)]);
}

#[sqlx::test]
async fn counts_of_a_job_are_of_that_job(pool: PgPool) {
    let phone = Recorder::channel("phone");
    let bench = Bench::start(&pool, &[&phone], |_| {});
    for job in [1, 1, 2] {
        let notice = Notice {
            job: Some(JobId(job)),
            ..Notice::about(Class::JobHeld, format!("job {job}"), Details::default())
        };
        bench.app.tell(notice).await.unwrap();
    }
    bench
        .until("all are told", |page| is_sent(page, Class::JobHeld, 3))
        .await;
    let page = PageRequest {
        size: 0,
        token: String::new(),
    };
    let page = bench.app.notice_page(Some(JobId(1)), &page).await.unwrap();
    assert_eq!(page.counts.iter().map(|one| one.count).sum::<i64>(), 2);
    assert_eq!(page.deliveries.iter().map(|one| one.count).sum::<i64>(), 2);
}

#[sqlx::test]
async fn what_a_program_receives_is_what_can_be_acknowledged(pool: PgPool) {
    let phone = Recorder::channel("phone");
    let bench = Bench::start(&pool, &[&phone], |_| {});
    // Messages and notices are counted apart: the first message tells the second notice.
    let muted = Notice {
        muted: true,
        ..Notice::about(Class::JobHeld, "job 1", Details::default())
    };
    bench.app.tell(muted).await.unwrap();
    bench.tell(Class::Panic, "program x").await;
    bench
        .until("it is told", |page| is_sent(page, Class::Panic, 1))
        .await;
    let id = phone.got.lock().unwrap()[0].id.clone();
    let caller = Caller {
        name: "alice".to_owned(),
        role: Role::Admin,
    };
    let name = NoticeName::Number(id.parse().unwrap());
    bench.app.acknowledge_notice(&caller, name).await.unwrap();
    let page = bench.page().await;
    let told = page
        .notices
        .iter()
        .find(|one| one.class == Class::Panic)
        .unwrap();
    assert_eq!(told.id.to_string(), id);
    assert_eq!(told.deliveries[0].acknowledged_by, "alice");
    let nobody = NoticeName::File("0011-22".to_owned());
    assert!(bench.app.acknowledge_notice(&caller, nobody).await.is_err());
}

#[sqlx::test]
async fn a_late_end_of_an_old_try_does_not_touch_a_newer_one(pool: PgPool) {
    let store = Store::new(pool.clone(), Lease::unlimited(Term(0)));
    let now = noon();
    let notice = Notice::about(Class::Panic, "program x", Details::default());
    store.insert_notices(now, vec![notice]).await.unwrap();
    let new = store.open_notices("new", 10).await.unwrap();
    store
        .prepare_notice(new[0].id, None, &Details::default(), now)
        .await
        .unwrap();
    let message = crate::store::notices::NewMessage {
        class: Class::Panic,
        which: crate::store::notices::Which::Of(&[new[0].id]),
        title: "t",
        body: "b",
        url: "",
        channels: &["phone".to_owned()],
    };
    store.make_message(now, &message).await.unwrap();
    let begin = async |store: &Store| {
        let next = store.next_delivery("phone").await.unwrap().unwrap();
        let begun = store.begin_delivery(&next, "phone", None, now).await;
        (next.message, begun.unwrap().unwrap(), next)
    };
    let (message, first, read) = begin(&store).await;
    let settled = Fate::Pending(now);
    assert!(
        store
            .end_delivery(message, "phone", first, now, &settled, "")
            .await
            .unwrap()
    );
    // Whoever read it before that try cannot begin another one.
    let stale = store
        .begin_delivery(&read, "phone", None, now)
        .await
        .unwrap();
    assert_eq!(stale, None);
    let (_, second, _) = begin(&store).await;
    let sent = Fate::Sent { receipt: None };
    assert!(
        !store
            .end_delivery(message, "phone", first, now, &sent, "")
            .await
            .unwrap()
    );
    let open = store.next_delivery("phone").await.unwrap().unwrap();
    assert!(open.sending, "the second try goes on");
    assert!(
        store
            .end_delivery(message, "phone", second, now, &sent, "")
            .await
            .unwrap()
    );
    assert!(store.next_delivery("phone").await.unwrap().is_none());
}

#[sqlx::test]
async fn a_coordinator_that_was_replaced_begins_no_try(pool: PgPool) {
    let store = Store::new(pool.clone(), Lease::unlimited(Term(0)));
    let now = noon();
    sqlx::query("update coordinator set term = term + 1")
        .execute(&pool)
        .await
        .unwrap();
    let delivery = crate::store::notices::Delivery {
        message: 1,
        id: "1".to_owned(),
        class: Class::Panic,
        severity: Class::Panic.severity(),
        title: String::new(),
        body: String::new(),
        url: String::new(),
        created_at: now,
        sending: false,
        tries: 0,
        left_before: None,
        next_at: now,
    };
    assert!(
        store
            .begin_delivery(&delivery, "phone", None, now)
            .await
            .is_err()
    );
}

#[sqlx::test]
async fn that_a_channel_refuses_is_told_by_another_one_and_not_by_itself(pool: PgPool) {
    let (phone, desk) = (Recorder::channel("phone"), Recorder::channel("desk"));
    *phone.refuses.lock().unwrap() = Some("token is invalid".to_owned());
    let bench = Bench::start(&pool, &[&phone, &desk], |_| {});
    bench.tell(Class::Panic, "program x").await;
    bench
        .until("the refusal is told", |page| {
            is_sent(page, Class::ChannelRefused, 1)
        })
        .await;
    assert_eq!(phone.titles().len(), 1, "{:?}", phone.titles());
    assert_eq!(desk.titles()[1], "Notices cannot be sent by phone");
    assert_eq!(
        bench.app.notices.problem("phone").as_deref(),
        Some("token is invalid")
    );
}

#[sqlx::test]
async fn that_a_channel_cannot_be_asked_at_a_start_does_not_mean_that_it_works(pool: PgPool) {
    let phone = Recorder::channel("phone");
    *phone.refuses.lock().unwrap() = Some("token is invalid".to_owned());
    *phone.says.lock().unwrap() = Checked::Wrong("token is invalid".to_owned());
    let count = |page: &NoticePage, class| {
        let notices = page.notices.iter();
        notices.filter(|notice| notice.class == class).count()
    };
    let bench = Bench::start(&pool, &[&phone], |_| {});
    bench
        .until("it is refused", |page| {
            count(page, Class::ChannelRefused) == 1
        })
        .await;
    drop(bench);
    *phone.says.lock().unwrap() = Checked::Unknown;
    let bench = Bench::start(&pool, &[&phone], |_| {});
    bench.tell(Class::Panic, "program x").await;
    let page = bench
        .until("a message is refused", |page| {
            let of_panic = |notice: &&NoticeRecord| notice.class == Class::Panic;
            let panic = page.notices.iter().find(of_panic);
            panic.is_some_and(|one| one.deliveries.iter().any(|one| one.state == "rejected"))
        })
        .await;
    assert_eq!(count(&page, Class::ChannelWorks), 0);
    assert_eq!(count(&page, Class::ChannelRefused), 1, "it is no news");
    drop(bench);
    *phone.says.lock().unwrap() = Checked::Right;
    let bench = Bench::start(&pool, &[&phone], |_| {});
    bench
        .until("it works", |page| count(page, Class::ChannelWorks) == 1)
        .await;
}

#[sqlx::test]
async fn a_channel_with_nothing_left_is_not_called_and_one_with_little_left_says_so(pool: PgPool) {
    let phone = Recorder::channel("phone");
    *phone.left.lock().unwrap() = Some(300);
    let bench = Bench::start(&pool, &[&phone], |_| {});
    bench.tell(Class::Panic, "program x").await;
    bench
        .until("it is said", |page| is_sent(page, Class::ChannelLow, 1))
        .await;
    assert_eq!(
        phone.titles()[1],
        "phone takes only 300 more messages this month"
    );
    *phone.left.lock().unwrap() = Some(0);
    bench.tell(Class::Panic, "program y").await;
    bench
        .until("it is refused", |page| {
            let refused = page.notices.iter().filter(|one| {
                one.deliveries
                    .iter()
                    .any(|delivery| delivery.state == "rejected")
            });
            refused.count() > 0
        })
        .await;
    assert_eq!(phone.titles().len(), 2, "{:?}", phone.titles());
}

/// Since it failed, and not since somebody was told.
#[sqlx::test]
async fn trouble_is_told_with_the_time_of_its_first_failure(pool: PgPool) {
    let phone = Recorder::channel("phone");
    let bench = Bench::start(&pool, &[&phone], |_| {});
    let mut doing = Doing::new(Duty::Retention);
    for _ in 0..3 {
        let error = Error::Internal("it is broken".to_owned());
        doing.note(&bench.app, &Err::<(), _>(error)).await;
        bench.clock.advance(Duration::from_secs(600));
    }
    bench
        .until("it is told", |page| is_sent(page, Class::Trouble, 1))
        .await;
    let body = phone.got.lock().unwrap()[0].body.clone();
    assert!(body.contains("12:00"), "{body}");
}

/// The database answers all the time, and stores nothing.
#[sqlx::test]
async fn a_database_that_only_reads_is_told_once_and_so_is_its_end(pool: PgPool) {
    let phone = Recorder::channel("phone");
    let bench = Bench::start(&pool, &[&phone], |_| {});
    for statement in [
        "create function refuse() returns trigger language plpgsql as $$
         begin raise exception 'only reads' using errcode = '25006'; end $$",
        "create trigger refuse before insert on notices
         for each statement execute function refuse()",
    ] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    let mut doing = Doing::new(Duty::Measures);
    let fail = async |doing: &mut Doing| {
        let mut transaction = pool.begin_with("begin read only").await.unwrap();
        let refused = sqlx::query("update coordinator set renewals = renewals")
            .execute(&mut *transaction)
            .await;
        let error = Error::Store(refused.unwrap_err().into());
        doing.note(&bench.app, &Err::<(), _>(error)).await;
    };
    fail(&mut doing).await;
    bench.clock.advance(Duration::from_secs(59));
    fail(&mut doing).await;
    assert!(phone.titles().is_empty(), "it does not last yet");
    bench.clock.advance(Duration::from_secs(2));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while phone.titles().is_empty() {
        fail(&mut doing).await;
        assert!(tokio::time::Instant::now() < deadline, "nothing is sent");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(phone.titles(), ["The database refuses to write"]);
    let body = phone.got.lock().unwrap()[0].body.clone();
    assert!(body.contains("read-only transaction"), "{body}");
    sqlx::query("drop trigger refuse on notices")
        .execute(&pool)
        .await
        .unwrap();
    bench.clock.advance(Duration::from_secs(61));
    bench
        .until("its end is told", |page| {
            is_sent(page, Class::DatabaseStores, 1)
        })
        .await;
    assert_eq!(
        phone.titles(),
        ["The database refuses to write", "The database writes again"]
    );
}

/// Nothing but the lease is written in an idle queue, and what is not renewed ends the term.
#[sqlx::test]
async fn a_lease_that_the_database_refuses_to_renew_is_told_with_the_end_of_the_term(pool: PgPool) {
    let phone = Recorder::channel("phone");
    let bench = Bench::start(&pool, &[&phone], |_| {});
    let mut transaction = pool.begin_with("begin read only").await.unwrap();
    let refused = sqlx::query("update coordinator set renewals = renewals")
        .execute(&mut *transaction)
        .await;
    let refused = News::Refused(refused.unwrap_err().into());
    bench.app.heard_of_database(refused);
    bench.stop.cancel();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while phone.titles().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "nothing is sent");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(phone.titles(), ["The database refuses to write"]);
    let body = phone.got.lock().unwrap()[0].body.clone();
    assert!(body.contains("read-only transaction"), "{body}");
}

/// What was decided, or begun, about a file before it is in the history.
#[sqlx::test]
async fn what_was_too_mild_in_a_file_is_held_back_and_what_was_offered_elsewhere_is_told(
    pool: PgPool,
) {
    let phone = Recorder::channel("phone");
    let bench = Bench::start(&pool, &[&phone], |settings| {
        settings.minimum = qctl_notify::Severity::Warning;
    });
    let file = |class: Class, severity, channel: &str, fate| {
        let begun = FiledDelivery {
            fate,
            tries: 1,
            next_at: noon(),
            tried_at: noon(),
            left_before: None,
            detail: String::new(),
            receipt: None,
        };
        let filed = Filed {
            class: class.to_string(),
            severity,
            subject: "x".to_owned(),
            signature: String::new(),
            facts: qctl_notify::Facts::new(),
            at: noon(),
            deliveries: [(channel.to_owned(), begun)].into(),
        };
        Outbox::of(bench.folder.path()).put(&filed).unwrap();
    };
    let (info, error) = (qctl_notify::Severity::Info, qctl_notify::Severity::Error);
    file(Class::JobRecovered, info, "phone", FiledFate::Withheld);
    file(Class::Panic, error, "coordinator", FiledFate::Sending);
    let page = bench
        .until("all is settled", |page| {
            is_sent(page, Class::Panic, 1)
                && page.notices.len() == 2
                && page.notices.iter().any(|one| one.reason == "too_mild")
        })
        .await;
    let mild = page.notices.iter().find(|one| one.reason == "too_mild");
    assert_eq!(mild.map(|one| one.class), Some(Class::JobRecovered));
}

/// The term ends because the database is away, while the message that says so is being sent.
#[sqlx::test]
async fn the_end_of_a_term_does_not_cut_off_what_tells_of_it(pool: PgPool) {
    let phone = Recorder::channel("phone");
    let bench = Bench::start(&pool, &[&phone], |settings| {
        settings.database_away_after = Duration::ZERO;
    });
    phone.gate.forget_permits(Semaphore::MAX_PERMITS);
    pool.close().await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while phone.titles().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "nothing is sent");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bench.stop.cancel();
    bench.app.stopped().await;
    phone.gate.add_permits(1);
    let outbox = Outbox::of(bench.folder.path());
    let fate = loop {
        let entries = outbox.entries().unwrap();
        let fate = entries[0].filed.deliveries["phone"].fate;
        if fate != FiledFate::Sending {
            break fate;
        }
        assert!(tokio::time::Instant::now() < deadline, "it stays unsent");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(fate, FiledFate::Sent);
    assert_eq!(phone.titles(), ["qctl has lost its database"]);
}
