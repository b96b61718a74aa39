//! Somebody goes to bed. Whatever stops working reaches the phone, once, in words that say what it
//! is, and nothing else does.

use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;

use crate::harness::worker::Worker;
use crate::harness::{Installation, is_alive, kill};
use crate::phone::{Phone, Push, TOKEN, USER};

/// An installation whose notices go to the phone, with short times.
fn prepared(phone: &Phone, settings: &str, pushover: &str) -> Installation {
    let qctl = Installation::prepare()
        .with_own_programs()
        .env("QCTL_UNREACHABLE_AFTER", "12s")
        // How full this machine is is no part of the story.
        .env("QCTL_ALARM", "disk=off,memory=off,cpu=off");
    qctl.file("home/config/pushover-token", TOKEN);
    qctl.file("home/config/pushover-user", USER);
    let text = format!(
        "{settings}\ntime_zone = \"UTC\"\nper_hour = 20\n\
         [pushover]\nurl = \"{}\"\n{pushover}",
        phone.url()
    );
    qctl.file("home/config/notify.toml", text);
    qctl
}

fn titles(phone: &Phone) -> Vec<String> {
    let shown = phone.shown();
    shown.iter().map(|push| push.title.clone()).collect()
}

/// Waits until the phone shows this one, which must be the next.
#[track_caller]
fn until_told(qctl: &Installation, phone: &Phone, told: &mut Vec<String>, title: &str) -> Push {
    told.push(title.to_owned());
    let count = told.len();
    let shown = qctl.until(&format!("the phone says: {title}"), || {
        let shown = phone.shown();
        (shown.len() >= count).then_some(shown)
    });
    assert_eq!(titles(phone), *told);
    shown[count - 1].clone()
}

fn end(qctl: &Installation, pids: &[i32]) {
    for pid in pids {
        kill(*pid, Signal::KILL);
    }
    qctl.until("they are dead", || {
        pids.iter().all(|pid| !is_alive(*pid)).then_some(())
    });
}

#[test]
fn what_stops_at_night_is_told_once_and_nothing_else_is() {
    let phone = Phone::start();
    let qctl = prepared(&phone, "language = \"en\"", "");
    qctl.up(&[]).ok();
    let address = std::fs::read_to_string(qctl.home().join("data/address")).unwrap();
    let mut other = Worker::start(&qctl, "gpu-box", 1, address.trim());
    let mut told = Vec::new();
    let id = qctl.submit(&["--name", "train", "--worker", "gpu-box", "sleep", "600"]);
    let quick = qctl.submit(&["true"]);
    qctl.until_ended(quick);
    qctl.until_state(id, "running");

    // A worker dies, and nobody starts it again.
    other.kill_agent();
    let away = until_told(&qctl, &phone, &mut told, "Worker gpu-box cannot be reached");
    assert!(
        away.message
            .contains(&format!("Job {id} “train” was running there")),
        "{}",
        away.message
    );
    assert_eq!(away.url, qctl.job(id)["url"].as_str().unwrap());
    other.start_again();
    until_told(&qctl, &phone, &mut told, "Worker gpu-box is back");
    assert_eq!(qctl.job(id)["attempt"], 1, "the job slept through it");
    qctl.qctl(&["cancel", &id.to_string()]).ok();
    qctl.until_ended(id);
    // A machine without a job may be switched off.
    other.kill_machine();
    let id = qctl.submit(&["--name", "train", "sleep", "600"]);
    qctl.until_state(id, "running");

    // The database dies, and cannot start.
    let control = qctl.home().join("data/database/pg/global");
    let hidden = control.with_extension("hidden");
    std::fs::rename(&control, &hidden).unwrap();
    end(&qctl, &qctl.postgres_pids());
    let lost = until_told(&qctl, &phone, &mut told, "qctl has lost its database");
    assert_eq!(lost.priority, 1);
    assert!(
        lost.message
            .contains("Jobs that run go on, and nothing is lost."),
        "{}",
        lost.message
    );
    std::fs::rename(&hidden, &control).unwrap();
    let back = until_told(&qctl, &phone, &mut told, "qctl has its database again");
    assert_eq!(back.priority, -1);
    qctl.until_answering();

    // The coordinator dies, and the keeper starts it again.
    end(&qctl, &qctl.pids("qctl-server"));
    until_told(&qctl, &phone, &mut told, "qctl crashed, and runs again");

    qctl.until_state(id, "running");
    assert_eq!(
        qctl.job(id)["attempt"],
        1,
        "the job slept through all of it"
    );
    qctl.qctl(&["cancel", &id.to_string()]).ok();
    qctl.until_ended(id);
    let open = ["new", "waiting", "pending", "sending"];
    qctl.until("nothing is on its way", || {
        let page = qctl.json(&["notices"]).to_string();
        let is_open = |word: &&str| page.contains(&format!("\"state\":\"{word}\""));
        (!open.iter().any(is_open)).then_some(())
    });
    assert_eq!(titles(&phone), told);
    phone.assert_rules_kept();
}

/// A coordinator that does not come up tells nobody: the keeper does, in Japanese as well, and the
/// alarm rings until a person has seen it.
#[test]
fn a_coordinator_that_cannot_start_is_told_by_the_keeper() {
    let phone = Phone::start();
    let emergency = "emergency = { retry = \"30s\", expire = \"1h\" }\n";
    let qctl = prepared(
        &phone,
        "language = \"ja\"\ncoordinator_down_after = \"3s\"",
        emergency,
    );
    qctl.up(&[]).ok();
    let program = qctl.bin().join("qctl-server");
    let kept = qctl.bin().join("qctl-server.kept");
    let broken = qctl.bin().join("qctl-server.broken");
    std::fs::write(
        &broken,
        "#!/bin/sh\necho 'no space left on device' >&2\nexit 1\n",
    )
    .unwrap();
    std::fs::set_permissions(&broken, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(&program, &kept).unwrap();
    std::fs::rename(&broken, &program).unwrap();
    end(&qctl, &qctl.pids("qctl-server"));
    let mut told = Vec::new();
    let away = "qctl のコーディネーターと連絡がとれません";
    let push = until_told(&qctl, &phone, &mut told, away);
    assert_eq!(push.priority, 2);
    assert!(
        push.message
            .contains("何度も終わってしまうか、起動できません。"),
        "{}",
        push.message
    );
    assert!(
        push.message.contains("原文:「no space left on device」"),
        "{}",
        push.message
    );
    phone.acknowledge("phone");
    std::fs::rename(&kept, &program).unwrap();
    qctl.until_answering();
    until_told(
        &qctl,
        &phone,
        &mut told,
        "qctl のコーディネーターが戻りました",
    );
    let seen = qctl.until("who saw it is known", || {
        let page = qctl.json(&["notices"]);
        let notices = page["notices"].as_array()?;
        let away = notices
            .iter()
            .find(|one| one["class"] == "coordinator_away")?;
        let by = away["deliveries"][0]["acknowledged_by"]
            .as_str()?
            .to_owned();
        (!by.is_empty()).then_some((by, away["filed_as"].as_str()?.to_owned()))
    });
    assert_eq!(seen.0, "phone");
    // What a program was told without the database has a name that the command line takes.
    qctl.qctl(&["notices", "ack", &seen.1]).ok();
    assert_eq!(titles(&phone), told);
    phone.assert_rules_kept();
}
