//! People are told, once, in the right words; and nothing else.

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::worker::Worker;
use crate::harness::{Installation, kill};
use crate::phone::{Mood, Phone, Push, TOKEN, USER};
pub(crate) use told::without_times;

/// An installation whose notices go to the phone. `settings` are lines of `notify.toml`.
pub(crate) fn prepared(phone: &Phone, settings: &str) -> Installation {
    // How full this machine is is no part of these stories.
    let qctl = Installation::prepare();
    qctl.file("home/config/pushover-token", TOKEN);
    qctl.file("home/config/pushover-user", USER);
    let text = format!(
        "language = \"en\"\ntime_zone = \"UTC\"\ngather = \"1s\"\nper_hour = 20\n{settings}\n[pushover]\nurl = \"{}\"\n",
        phone.url()
    );
    qctl.file("home/config/notify.toml", text);
    qctl
}

fn started(phone: &Phone, settings: &str) -> Installation {
    let qctl = prepared(phone, settings);
    qctl.up(&[]).ok();
    qctl
}

/// Waits until the phone has shown this many messages.
#[track_caller]
pub(crate) fn until_shown(qctl: &Installation, phone: &Phone, count: usize) -> Vec<Push> {
    qctl.until(&format!("the phone has shown {count}"), || {
        let shown = phone.shown();
        (shown.len() >= count).then_some(shown)
    })
}

/// Waits until nothing is on its way any more, and returns the history, newest first.
pub(crate) fn settled(qctl: &Installation) -> Vec<Value> {
    qctl.until("nothing is on its way", || {
        let page = qctl.json(&["notices"]);
        let notices = page["notices"].as_array().unwrap().clone();
        let open = ["new", "waiting", "pending", "sending"];
        let busy = notices.iter().any(|notice| {
            open.contains(&notice["state"].as_str().unwrap())
                || notice["deliveries"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|one| open.contains(&one["state"].as_str().unwrap()))
        });
        (!busy).then_some(notices)
    })
}

fn worker(qctl: &Installation) -> String {
    let workers = qctl.json(&["workers"]);
    workers["workers"][0]["name"].as_str().unwrap().to_owned()
}

mod told {
    /// Times of day and lengths in seconds differ from run to run.
    pub(crate) fn without_times(text: &str) -> String {
        let mut out = String::new();
        for (index, word) in text.split(' ').enumerate() {
            if index > 0 {
                out.push(' ');
            }
            let bytes = word.as_bytes();
            let is_time = bytes.len() >= 5
                && bytes[..2].iter().all(u8::is_ascii_digit)
                && bytes[2] == b':'
                && bytes[3..5].iter().all(u8::is_ascii_digit);
            match is_time {
                true => {
                    out.push_str("HH:MM");
                    out.push_str(&word[5..]);
                }
                false => out.push_str(word),
            }
        }
        for seconds in 0..60 {
            for before in ["after", "for"] {
                out = out.replace(&format!("{before} {seconds} s"), &format!("{before} N s"));
            }
        }
        out
    }
}

#[test]
fn a_failure_is_told_once_with_its_last_line_and_its_link() {
    let phone = Phone::start();
    let qctl = started(&phone, "");
    let script = "echo working; echo 'ValueError: bad value 17' >&2; exit 3";
    let id = qctl.submit(&["--retries", "0", "--name", "train", "--shell", script]);
    let job = qctl.until_ended(id);
    let shown = until_shown(&qctl, &phone, 1);
    let worker = worker(&qctl);
    assert_eq!(shown[0].title, format!("Job {id} “train” failed"));
    assert_eq!(
        without_times(&shown[0].message),
        format!(
            "On {worker} after N s: it ended with exit code 3.\n\
             Last line: ValueError: bad value 17\n\
             It is not tried again.\n\
             To look: qctl logs {id}. To run it again: qctl retry {id}"
        )
    );
    assert_eq!((shown[0].priority, shown[0].sound.as_str()), (0, ""));
    assert_eq!(shown[0].url, job["url"].as_str().unwrap());
    let history = settled(&qctl);
    assert_eq!(history.len(), 1, "{history:#?}");
    assert_eq!(history[0]["deliveries"][0]["state"], "sent");
    assert_eq!(phone.shown().len(), 1);
    let errors = qctl.json(&["errors"]);
    let group = &errors["errors"][0];
    assert_eq!(group["signature"], "exit 3: ValueError: bad value <n>");
    assert_eq!(group["exception"], "ValueError");
    assert_eq!(group["jobs"], serde_json::json!([id]));
    phone.assert_rules_kept();
}

#[test]
fn a_retry_is_told_before_it_and_its_good_end_without_sound() {
    let phone = Phone::start();
    let qctl = started(&phone, "");
    let script = "if [ -e once ]; then exit 0; fi; touch once; echo 'disk quota' ; exit 7";
    let id = qctl.submit(&["--name", "copy", "--shell", script]);
    qctl.until_ended(id);
    let shown = until_shown(&qctl, &phone, 2);
    let worker = worker(&qctl);
    assert_eq!(
        shown[0].title,
        format!("Job {id} “copy” failed, and is tried again")
    );
    assert_eq!(
        without_times(&shown[0].message),
        format!(
            "On {worker} after N s: it ended with exit code 7.\n\
             Last line: disk quota\n\
             It starts again at HH:MM; one more try is left after that.\n\
             Nothing needs to be done. To look: qctl logs {id}"
        )
    );
    assert_eq!((shown[0].priority, shown[0].sound.as_str()), (0, "none"));
    assert_eq!(shown[1].title, format!("Job {id} “copy” is done after all"));
    assert_eq!(
        without_times(&shown[1].message),
        format!("It had failed before; now it succeeded on {worker} after N s.")
    );
    assert_eq!(shown[1].priority, -1);
    settled(&qctl);
    assert_eq!(phone.shown().len(), 2);
    phone.assert_rules_kept();
}

#[test]
fn the_same_error_is_told_once_over_the_attempts_and_the_final_failure_once() {
    let phone = Phone::start();
    let qctl = started(&phone, "");
    let script = "echo \"KeyError: step $RANDOM at /tmp/$$/x\"; exit 1";
    let id = qctl.submit(&["--name", "j", "--shell", script]);
    qctl.until_ended(id);
    let shown = until_shown(&qctl, &phone, 2);
    let history = settled(&qctl);
    assert_eq!(phone.shown().len(), 2, "{shown:#?}");
    assert_eq!(
        shown[0].title,
        format!("Job {id} “j” failed, and is tried again")
    );
    assert_eq!(shown[1].title, format!("Job {id} “j” failed"));
    let held: Vec<_> = history
        .iter()
        .filter(|notice| notice["state"] == "held_back")
        .map(|notice| notice["reason"].as_str().unwrap())
        .collect();
    assert_eq!(held, ["told_before"]);
    assert_eq!(qctl.json(&["errors"])["errors"][0]["count"], 3);
}

#[test]
fn a_long_success_is_told_low_and_several_become_one() {
    let phone = Phone::start();
    let qctl = started(&phone, "success_after = \"1s\"");
    qctl.submit(&["--name", "quick", "true"]);
    let a = qctl.submit(&["--name", "a", "sleep", "1.1"]);
    let b = qctl.submit(&["--name", "b", "sleep", "1.1"]);
    qctl.until_ended(b);
    let shown = settled_and_shown(&qctl, &phone);
    // Whether both fell into one second of gathering depends on the machine.
    let titles: Vec<_> = shown.iter().map(|push| push.title.clone()).collect();
    let each = [
        format!("Job {a} “a” is done"),
        format!("Job {b} “b” is done"),
    ];
    assert!(
        titles == ["2 jobs are done"] || titles == each,
        "{titles:?}"
    );
    assert!(shown.iter().all(|push| push.priority == -1));
    let always = qctl.submit(&["--name", "c", "--notify", "always", "true"]);
    qctl.until_ended(always);
    let shown = until_shown(&qctl, &phone, shown.len() + 1);
    assert_eq!(
        shown.last().unwrap().title,
        format!("Job {always} “c” is done")
    );
    let never = qctl.submit(&["--notify", "never", "--retries", "0", "false"]);
    qctl.until_ended(never);
    let history = settled(&qctl);
    assert_eq!(history[0]["reason"], "not_wanted");
    assert_eq!(phone.shown().len(), shown.len());
    phone.assert_rules_kept();
}

fn settled_and_shown(qctl: &Installation, phone: &Phone) -> Vec<Push> {
    until_shown(qctl, phone, 1);
    settled(qctl);
    phone.shown()
}

#[test]
fn notices_speak_japanese_when_they_are_asked_to() {
    let phone = Phone::start();
    let qctl = prepared(&phone, "");
    let text = format!(
        "language = \"ja\"\ntime_zone = \"Asia/Tokyo\"\n[pushover]\nurl = \"{}\"\n",
        phone.url()
    );
    qctl.file("home/config/notify.toml", text);
    qctl.up(&[]).ok();
    let id = qctl.submit(&["--retries", "0", "--name", "学習", "--shell", "exit 3"]);
    qctl.until_ended(id);
    let shown = until_shown(&qctl, &phone, 1);
    let worker = worker(&qctl);
    assert_eq!(shown[0].title, format!("ジョブ {id}「学習」が失敗しました"));
    assert_eq!(
        shown[0].message,
        format!(
            "{worker} で開始から 0秒 後: 終了コード 3 で終わりました。\n\
             もうやり直しません。\n\
             見るには: qctl logs {id} もう一度動かすには: qctl retry {id}"
        )
    );
}

#[test]
fn a_killed_worker_is_told_once_and_its_return_once() {
    let phone = Phone::start();
    let qctl = prepared(&phone, "").env("QCTL_UNREACHABLE_AFTER", "12s");
    qctl.up(&[]).ok();
    let id = qctl.submit(&["--name", "long", "--shell", "sleep 60"]);
    qctl.until_state(id, "running");
    let worker = worker(&qctl);
    let shims = qctl.pids("qctl-worker shim");
    // Without the keeper nobody restarts the agent.
    for pid in qctl.pids("qctl keeper") {
        kill(pid, Signal::KILL);
    }
    for pid in qctl.pids("qctl-worker") {
        if !shims.contains(&pid) {
            kill(pid, Signal::KILL);
        }
    }
    let shown = until_shown(&qctl, &phone, 1);
    assert_eq!(shown[0].title, format!("Worker {worker} cannot be reached"));
    assert_eq!(
        without_times(&shown[0].message),
        format!(
            "Nothing was heard of it since HH:MM. Job {id} “long” was running there and may well be running still.\n\
             The job is left alone. It is started elsewhere only if the worker stays away for long.\n\
             Look whether the machine is on and has a network. To look from here: qctl workers"
        )
    );
    assert_eq!((shown[0].priority, shown[0].sound.as_str()), (0, ""));
    qctl.up(&[]).ok();
    let shown = until_shown(&qctl, &phone, 2);
    assert_eq!(shown[1].title, format!("Worker {worker} is back"));
    assert_eq!(shown[1].priority, -1);
    settled(&qctl);
    assert_eq!(phone.shown().len(), 2);
    qctl.qctl(&["cancel", &id.to_string()]).ok();
}

#[test]
fn jobs_that_wait_while_none_runs_are_told_once_and_so_is_the_end_of_that() {
    let phone = Phone::start();
    let qctl = prepared(&phone, "").env("QCTL_STANDSTILL_AFTER", "2s");
    qctl.up(&["--no-worker"]).ok();
    let id = qctl.submit(&["--name", "first", "true"]);
    let second = qctl.submit(&["true"]);
    let shown = until_shown(&qctl, &phone, 1);
    assert_eq!(shown[0].title, "Jobs wait and none is running");
    assert_eq!(
        without_times(&shown[0].message),
        format!(
            "None has been running since HH:MM. No worker is connected. Job {id} “first” has waited the longest.\n\
             They start as soon as a worker can take them.\n\
             To see what is missing: qctl why {id}, and qctl workers"
        )
    );
    assert_eq!((shown[0].priority, shown[0].sound.as_str()), (0, ""));
    qctl.up(&["--slots", "1"]).ok();
    for id in [id, second] {
        assert_eq!(qctl.until_ended(id)["state"], "succeeded");
    }
    let shown = until_shown(&qctl, &phone, 2);
    assert_eq!(shown[1].title, "Jobs no longer wait in vain");
    assert_eq!(shown[1].priority, -1);
    settled(&qctl);
    assert_eq!(phone.shown().len(), 2, "{:#?}", phone.shown());
}

#[test]
fn a_killed_database_is_told_once() {
    let phone = Phone::start();
    // A busy machine may need longer for it than the five seconds that are usually waited.
    let qctl = started(&phone, "database_away_after = \"60s\"\n");
    for pid in qctl.postgres_pids() {
        kill(pid, Signal::KILL);
    }
    let shown = until_shown(&qctl, &phone, 1);
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    assert_eq!(shown[0].title, "qctl's database was restarted");
    assert_eq!(
        without_times(&shown[0].message),
        format!(
            "On {host}. It is back; it was away for N s, since HH:MM.\n\
             Jobs that ran were left alone, and nothing was lost.\n\
             Nothing needs to be done. If it happens again, look at the memory and the disk of {host}."
        )
    );
    settled(&qctl);
    assert_eq!(phone.shown().len(), 1);
}

#[test]
fn a_killed_coordinator_is_told_once_by_its_successor() {
    let phone = Phone::start();
    let qctl = started(&phone, "");
    for pid in qctl.pids("qctl-server") {
        kill(pid, Signal::KILL);
    }
    let shown = until_shown(&qctl, &phone, 1);
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    assert_eq!(shown[0].title, "qctl crashed, and runs again");
    assert_eq!(
        without_times(&shown[0].message),
        format!(
            "The coordinator on {host} ended without warning at about HH:MM and is back since HH:MM.\n\
             Jobs that ran were left alone, and nothing was lost.\n\
             Nothing needs to be done. If it happens again, look at its log: logs/server.log"
        )
    );
    settled(&qctl);
    assert_eq!(phone.shown().len(), 1);
    // A restart that was asked for is no news.
    qctl.qctl(&["down"]).ok();
    qctl.up(&[]).ok();
    qctl.until("the history is read", || {
        (qctl.qctl(&["notices"]).code == 0).then_some(())
    });
    settled(&qctl);
    assert_eq!(phone.shown().len(), 1);
}

/// Row F40 of the faults: whatever the service does, nothing is shown twice.
#[test]
fn f40_a_service_that_fails_or_loses_answers_shows_nothing_twice() {
    let phone = Phone::start();
    let qctl = started(&phone, "");
    for (mood, calls, shown, state) in [
        (Mood::Failing, 2, 1, "sent"),
        (Mood::HangsUp, 2, 1, "sent"),
        (Mood::TakesAndHangsUp, 1, 1, "sent"),
        (Mood::Refusing, 1, 0, "rejected"),
        (Mood::UsedUp, 1, 0, "rejected"),
    ] {
        let (calls_before, shown_before) = (phone.calls(), phone.shown().len());
        phone.moods(&[mood]);
        qctl.qctl(&["notices", "test"]).ok();
        let fate = qctl.until(&format!("the fate with {mood:?}"), || {
            let history = settled(&qctl);
            let test = history.iter().find(|notice| notice["class"] == "test")?;
            Some(test["deliveries"][0]["state"].clone())
        });
        assert_eq!(fate, state, "{mood:?}");
        // That the service refuses is itself told, as far as it can be: once it takes messages.
        if mood == Mood::Refusing {
            qctl.until("it is told that the service takes messages again", || {
                let history = settled(&qctl);
                let works = |notice: &Value| notice["class"] == "channel_works";
                history.iter().any(works).then_some(())
            });
        }
        let others = settled(&qctl)
            .iter()
            .filter(|notice| notice["class"] != "test")
            .count();
        assert_eq!(
            phone
                .shown()
                .iter()
                .skip(shown_before)
                .filter(|push| push.title == "qctl can reach you")
                .count(),
            shown,
            "{mood:?}"
        );
        assert!(phone.calls() - calls_before <= calls + others, "{mood:?}");
    }
    phone.assert_rules_kept();
}

/// Row F40: the coordinator dies between sending and marking.
#[test]
fn f40_a_crash_after_sending_shows_nothing_twice() {
    let phone = Phone::start();
    let qctl = prepared(&phone, "");
    let switches = qctl.folder().join("panic");
    std::fs::create_dir(&switches).unwrap();
    let qctl = qctl.env("QCTL_TEST_PANIC", switches.display().to_string());
    qctl.up(&[]).ok();
    std::fs::write(switches.join("after-send"), "").unwrap();
    let id = qctl.submit(&["--retries", "0", "--name", "x", "false"]);
    until_shown(&qctl, &phone, 1);
    let title = format!("Job {id} “x” failed");
    let history = qctl.until("the message is settled", || {
        let ran = qctl.qctl(&["--json", "notices"]);
        let page: Value = serde_json::from_str(&ran.stdout).ok()?;
        let failed = page["notices"]
            .as_array()?
            .iter()
            .find(|notice| notice["class"] == "job_failed")?
            .clone();
        let state = failed["deliveries"][0]["state"].as_str()?.to_owned();
        ["sent", "unknown"]
            .contains(&state.as_str())
            .then_some(state)
    });
    assert!(["sent", "unknown"].contains(&history.as_str()));
    let same = phone
        .shown()
        .iter()
        .filter(|push| push.title == title)
        .count();
    assert_eq!(same, 1);
    // The fault itself is told as well.
    qctl.until("the fault is told", || {
        phone
            .shown()
            .iter()
            .any(|push| push.title == "A fault inside qctl: qctl-server")
            .then_some(())
    });
}

#[test]
fn a_wrong_token_is_told_at_once_where_it_can_be() {
    let phone = Phone::start();
    let qctl = prepared(&phone, "");
    qctl.file("home/config/pushover-token", "nonsense");
    qctl.up(&[]).ok();
    let problem = qctl.until("the channel has a problem", || {
        let page = qctl.json(&["notices"]);
        let problem = page["channels"][0]["problem"].as_str()?.to_owned();
        (!problem.is_empty()).then_some(problem)
    });
    assert!(
        problem.contains("application token is invalid"),
        "{problem}"
    );
    assert!(
        qctl.program_logs()
            .contains("notices by pushover are refused"),
        "{}",
        qctl.program_logs()
    );
    assert_eq!(phone.shown(), []);
}

/// A loop that is at fault ends the coordinator, which the keeper starts again after a pause that
/// doubles: the loops are shared out among installations.
#[test]
fn a_fault_in_any_loop_that_tells_or_begins_is_told_and_mended() {
    assert_faults_are_told(
        &["retention"],
        &["outbox", "second-path", "delivery", "dispatcher"],
    );
}

#[test]
fn a_fault_in_any_loop_that_keeps_the_state_is_told_and_mended() {
    assert_faults_are_told(
        &["overlooked dependents"],
        &["reports", "leases", "dependents", "waits"],
    );
}

#[test]
fn a_fault_in_a_loop_on_a_timer_is_told_and_mended() {
    // These share a place, which makes them one fault to the phone.
    assert_faults_are_told(&[], &["heartbeats and progress"]);
}

/// Provokes a fault in each of these loops of the coordinator: `first` while it starts, because they
/// turn rarely, then one after the other.
fn assert_faults_are_told(first: &[&str], then: &[&str]) {
    let phone = Phone::start();
    let qctl = prepared(&phone, "");
    let switches = qctl.folder().join("panic");
    std::fs::create_dir(&switches).unwrap();
    let provoke = |part: &str| std::fs::write(switches.join(part), "").unwrap();
    let qctl = qctl.env("QCTL_TEST_PANIC", switches.display().to_string());
    let until_told = |part: &str| {
        let words = format!("provoked in {part}");
        qctl.until(&format!("the fault in {part} is told"), || {
            let shown = phone.shown();
            let told = shown.iter().any(|push| {
                push.title == "A fault inside qctl: qctl-server" && push.message.contains(&words)
            });
            told.then_some(())
        });
    };
    first.iter().copied().for_each(provoke);
    qctl.up(&[]).ok();
    first.iter().copied().for_each(until_told);
    for part in then {
        provoke(part);
        // Some loops turn only when something happens: a job ends that another waits for.
        let waited_for = qctl.qctl(&["--json", "submit", "--hold", "true"]);
        if let Ok(job) = serde_json::from_str::<Value>(&waited_for.stdout) {
            let id = job["id"].to_string();
            let _ = qctl.qctl(&["submit", "--after", &id, "true"]);
            let _ = qctl.qctl(&["release", &id]);
        }
        until_told(part);
        let id = qctl.until("jobs run again", || {
            let ran = qctl.qctl(&["--json", "submit", "true"]);
            let job: Value = serde_json::from_str(&ran.stdout).ok()?;
            job["id"].as_i64()
        });
        qctl.until("the job ends", || {
            let ran = qctl.qctl(&["--json", "show", &id.to_string()]);
            let job: Value = serde_json::from_str(&ran.stdout).ok()?;
            (job["state"] == "succeeded").then_some(())
        });
    }
}

/// The database does not answer: that is told without it, and repeated until it is over.
#[test]
fn a_database_that_hangs_is_told_without_it_and_its_return_ends_the_repetition() {
    let phone = Phone::start();
    let qctl = Installation::prepare();
    qctl.file("home/config/pushover-token", TOKEN);
    qctl.file("home/config/pushover-user", USER);
    let text = format!(
        "language = \"en\"\ntime_zone = \"UTC\"\n[pushover]\nurl = \"{}\"\n\
         emergency = {{ retry = \"30s\", expire = \"1h\" }}\n",
        phone.url()
    );
    qctl.file("home/config/notify.toml", text);
    qctl.up(&[]).ok();
    let postgres = qctl.postgres_pids();
    for pid in &postgres {
        kill(*pid, Signal::STOP);
    }
    let shown = until_shown(&qctl, &phone, 1);
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    assert_eq!(shown[0].title, "qctl has lost its database");
    assert_eq!(shown[0].priority, 2);
    let message = without_times(&shown[0].message);
    assert!(
        message.starts_with(&format!("On {host}, it has not answered since HH:MM.\n")),
        "{message}"
    );
    assert!(
        message.contains("Jobs that run go on, and nothing is lost."),
        "{message}"
    );
    for pid in &postgres {
        kill(*pid, Signal::CONT);
    }
    let shown = until_shown(&qctl, &phone, 2);
    assert_eq!(shown[1].title, "qctl has its database again");
    assert_eq!(shown[1].priority, -1);
    qctl.until("the repetition is ended", || {
        (phone.cancelled() == 1).then_some(())
    });
    let history = settled(&qctl);
    assert_eq!(history.len(), 2, "{history:#?}");
    assert_eq!(phone.shown().len(), 2);
    phone.assert_rules_kept();
}

/// A fault of the worker or of the keeper is told by the coordinator of the machine.
#[test]
fn a_fault_of_the_worker_or_the_keeper_is_told() {
    let phone = Phone::start();
    let qctl = prepared(&phone, "");
    let switches = qctl.folder().join("panic");
    std::fs::create_dir(&switches).unwrap();
    let qctl = qctl.env("QCTL_TEST_PANIC", switches.display().to_string());
    qctl.up(&[]).ok();
    let programs = [
        ("agent", "qctl-worker"),
        ("pump", "qctl-worker"),
        ("dead-man", "qctl-worker"),
        ("shim", "qctl-worker shim"),
        // Last, for nobody starts the worker again without it.
        ("keeper", "qctl keeper"),
    ];
    for (part, program) in programs {
        std::fs::write(switches.join(part), "").unwrap();
        if part == "shim" {
            qctl.submit(&["--notify", "never", "true"]);
        }
        let words = format!("provoked in {part}");
        qctl.until(&format!("the fault in {part} is told"), || {
            phone
                .shown()
                .iter()
                .any(|push| {
                    push.title == format!("A fault inside qctl: {program}")
                        && push.message.contains(&words)
                })
                .then_some(())
        });
    }
    let id = qctl.submit(&["true"]);
    assert_eq!(qctl.until_ended(id)["state"], "succeeded");
    settled(&qctl);
    assert_eq!(faults(&phone).len(), programs.len(), "each is told once");
}

fn faults(phone: &Phone) -> Vec<Push> {
    let mut shown = phone.shown();
    shown.retain(|push| push.title.starts_with("A fault inside qctl"));
    shown
}

/// Nobody on the worker's machine tells anything: the agent that panicked, and its shim, reach the
/// phone by the coordinator, which is elsewhere.
#[test]
fn a_fault_of_a_worker_elsewhere_is_told_once() {
    let phone = Phone::start();
    let qctl = prepared(&phone, "");
    qctl.up(&["--no-worker"]).ok();
    let address = std::fs::read_to_string(qctl.home().join("data/address")).unwrap();
    let switches = qctl.folder().join("panic");
    std::fs::create_dir(&switches).unwrap();
    let variable = format!("QCTL_TEST_PANIC={}", switches.display());
    let wrapper = ["env", &variable];
    let mut worker = Worker::start_under(&qctl, &wrapper, "far", 1, address.trim());
    let outbox = qctl.folder().join("workers/far/data/outbox");
    let filed = || {
        let files = std::fs::read_dir(&outbox).into_iter().flatten();
        let is_notice = |name: &std::ffi::OsStr| name.to_string_lossy().ends_with(".notice");
        files
            .filter(|file| is_notice(&file.as_ref().unwrap().file_name()))
            .count()
    };
    let until_there = || {
        qctl.until("the worker is there", || {
            (qctl.json(&["workers"])["workers"][0]["state"] == "online").then_some(())
        });
    };
    let switch = |part: &str| std::fs::write(switches.join(part), "").unwrap();
    let until_met = |part: &str| {
        qctl.until("the fault is met", || {
            (!switches.join(part).exists()).then_some(())
        });
    };
    let mut provoke_agent = || {
        switch("agent");
        until_met("agent");
        let before = worker.pid();
        qctl.until("the agent is begun anew", || {
            worker.start_again();
            (worker.pid() != before).then_some(())
        });
        until_there();
    };
    until_there();
    provoke_agent();
    let shown = until_shown(&qctl, &phone, 1);
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    assert_eq!(shown[0].title, "A fault inside qctl: qctl-worker");
    assert_eq!(shown[0].priority, 0);
    let lines: Vec<_> = shown[0].message.lines().collect();
    let place = format!("On {host}, in worker/src/supervisor/mod.rs:");
    assert!(lines[0].starts_with(&place), "{lines:?}");
    assert_eq!(lines[1], "In its own words: “provoked in agent”");
    assert!(
        lines.contains(&"Please report it with these words."),
        "{lines:?}"
    );
    // It goes on panicking: nobody wants to know more often.
    provoke_agent();
    provoke_agent();
    switch("shim");
    let id = qctl.submit(&["--notify", "never", "true"]);
    until_met("shim");
    qctl.until_ended(id);
    let shown = until_shown(&qctl, &phone, 2);
    assert_eq!(shown[1].title, "A fault inside qctl: qctl-worker shim");
    qctl.until("the coordinator has taken everything", || {
        (filed() == 0).then_some(())
    });
    settled(&qctl);
    assert_eq!(phone.shown().len(), 2, "{:#?}", phone.shown());
    phone.assert_rules_kept();
}

/// Nobody restarts the coordinator: the worker tells.
#[test]
fn a_coordinator_that_stays_away_is_told_by_the_worker_and_its_return_by_itself() {
    let phone = Phone::start();
    let qctl = started(&phone, "dead_man_after = \"2s\"");
    let worker = worker(&qctl);
    for pid in qctl.pids("qctl keeper") {
        kill(pid, Signal::KILL);
    }
    for pid in qctl.pids("qctl-server") {
        kill(pid, Signal::KILL);
    }
    let shown = until_shown(&qctl, &phone, 1);
    assert_eq!(shown[0].title, "qctl's coordinator cannot be reached");
    assert_eq!(
        without_times(&shown[0].message),
        format!(
            "Worker {worker} has heard nothing of it since HH:MM.\n\
             Jobs that run go on, and their results are kept. No new ones are started. It is tried again all the time.\n\
             Look whether the machine of the coordinator is on. There: qctl status, or qctl up"
        )
    );
    assert_eq!(shown[0].priority, 1);
    qctl.up(&[]).ok();
    let shown = until_shown(&qctl, &phone, 2);
    assert_eq!(shown[1].title, "qctl's coordinator is back");
    settled(&qctl);
    assert_eq!(phone.shown().len(), 2, "{:#?}", phone.shown());
}
