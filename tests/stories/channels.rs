//! The other ways than Pushover: each is a real server or a real program.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::harness::Installation;
use crate::receiver::Receiver;

/// A program that writes its arguments, a line each, and its standard input into a file.
fn program(qctl: &Installation, name: &str, into: &str) {
    let text = format!(
        "#!/bin/sh\n{{ for part in \"$@\"; do echo \"$part\"; done; cat; }} > '{}'\n",
        qctl.folder().join(into).display()
    );
    let path = qctl.file(name, text);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn every_channel_gets_the_same_notice_and_its_name_can_be_acknowledged() {
    // The first answer of the webhook is lost in a failure of its server.
    let (hook, topic) = (Receiver::start(&[500]), Receiver::start(&[]));
    let qctl = Installation::prepare();
    let path = format!(
        "{}:{}:{}",
        qctl.folder().join("programs").display(),
        qctl.bin().display(),
        std::env::var("PATH").unwrap()
    );
    let qctl = qctl.env("PATH", path);
    program(&qctl, "programs/notify-send", "desktop");
    program(&qctl, "tell-me", "command");
    qctl.file("home/config/webhook-url", hook.url("hook"));
    qctl.file("home/config/webhook-secret", "very-secret");
    qctl.file("home/config/ntfy-url", topic.url("my-topic"));
    qctl.file("home/config/ntfy-token", "tk_secret");
    qctl.file(
        "home/config/notify.toml",
        format!(
            "language = \"en\"\n\
             [webhook]\nurl_file = \"webhook-url\"\nsecret_file = \"webhook-secret\"\n\
             [ntfy]\nurl_file = \"ntfy-url\"\ntoken_file = \"ntfy-token\"\n\
             [desktop]\n[command]\ncommand = [\"{}\", \"extra\"]\n",
            qctl.folder().join("tell-me").display()
        ),
    );
    qctl.up(&[]).ok();
    let id = qctl.submit(&[
        "--retries",
        "0",
        "--name",
        "train",
        "--shell",
        "echo 'E: no'; exit 3",
    ]);
    let job = qctl.until_ended(id);
    let notice = qctl.until("every channel has taken it", || {
        let page = qctl.json(&["notices", "--job", &id.to_string()]);
        let notice = page["notices"].as_array()?.first()?.clone();
        let deliveries = notice["deliveries"].as_array()?.clone();
        let sent = deliveries.iter().filter(|one| one["state"] == "sent");
        (sent.count() == 4).then_some(notice)
    });
    let title = format!("Job {id} “train” failed");
    let (number, url) = (notice["id"].to_string(), job["url"].as_str().unwrap());

    // The webhook was repeated with the same id, and each time is signed.
    let received = hook.received();
    assert_eq!(received.len(), 2);
    for one in &received {
        assert_eq!(one.path, "/hook");
        let message: Value = serde_json::from_slice(&one.body).unwrap();
        assert_eq!(message["id"], number.as_str());
        assert_eq!(message["title"], title.as_str());
        assert_eq!(message["class"], "job_failed");
        assert_eq!(message["severity"], "error");
        assert_eq!(message["url"], url);
        assert_eq!(one.headers["x-qctl-notice"], number);
        let signature = qctl_notify::webhook::signature("very-secret", &one.body);
        assert_eq!(one.headers["x-qctl-signature"], signature);
    }

    let received = topic.received();
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].headers["authorization"], "Bearer tk_secret");
    let message: Value = serde_json::from_slice(&received[0].body).unwrap();
    assert_eq!(message["topic"], "my-topic");
    assert_eq!(message["title"], title.as_str());
    assert_eq!(message["priority"], 4);
    assert_eq!(message["click"], url);
    assert_eq!(
        message["tags"],
        serde_json::json!([format!("notice-{number}")])
    );

    let desktop = std::fs::read_to_string(qctl.folder().join("desktop")).unwrap();
    let mut lines = desktop.lines();
    assert_eq!(lines.next(), Some("--app-name=qctl"));
    assert_eq!(lines.next(), Some("--urgency=normal"));
    assert_eq!(lines.next(), Some("--"));
    assert_eq!(lines.next(), Some(title.as_str()));
    assert!(desktop.contains("Last line: E: no"), "{desktop}");

    let command = std::fs::read_to_string(qctl.folder().join("command")).unwrap();
    let (argument, message) = command.split_once('\n').unwrap();
    assert_eq!(argument, "extra");
    let message: Value = serde_json::from_str(message).unwrap();
    assert_eq!(message["id"], number.as_str());

    qctl.qctl(&["notices", "ack", &number]).ok();
    let page = qctl.json(&["notices"]);
    let deliveries = page["notices"][0]["deliveries"].as_array().unwrap();
    assert!(
        deliveries
            .iter()
            .all(|one| one["acknowledged_at"].is_string())
    );
    let shown = qctl.qctl(&["notices", "--statistics"]).ok();
    assert!(
        shown.contains("job failed") && shown.contains("webhook"),
        "{shown}"
    );
    let status = qctl.qctl(&["status"]).ok();
    assert!(
        status.contains("by webhook, by ntfy, by desktop, by command"),
        "{status}"
    );
}
