//! The pages behind the links, in a real browser.

use std::process::Command;

use crate::harness::Installation;

fn link(qctl: &Installation, id: i64) -> String {
    qctl.job(id)["url"].as_str().unwrap().to_owned()
}

/// The document as Chromium shows it, after its scripts ran.
fn browse(qctl: &Installation, url: &str) -> String {
    let profile = qctl
        .folder()
        .join(format!("profile-{}", uuid::Uuid::new_v4().simple()));
    let mut command = Command::new("chromium");
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ])
        .args([
            "--disable-dev-shm-usage",
            "--virtual-time-budget=6000",
            "--window-size=390,844",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!(
            "--screenshot={}",
            qctl.folder().join("page.png").display()
        ))
        .args(["--dump-dom", url]);
    let ran = crate::harness::run(command);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran.stdout
}

#[test]
fn a_link_opens_the_jobs_page_with_its_log() {
    let qctl = Installation::start();
    let id = qctl.submit(&[
        "--name",
        "<b>bold</b> & wide 画像",
        "--tracker",
        "INTG-088",
        "--shell",
        "echo '<script>alert(1)</script>'; echo '[2/3] x'; exit 0",
    ]);
    qctl.until_ended(id);
    let page = browse(&qctl, &link(&qctl, id));
    assert!(page.contains("succeeded"), "{page}");
    assert!(
        page.contains("&lt;b&gt;bold&lt;/b&gt; &amp; wide 画像"),
        "{page}"
    );
    assert!(
        page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"),
        "{page}"
    );
    assert!(page.contains("INTG-088"));
}

#[test]
fn the_page_follows_a_running_job_by_itself() {
    let qctl = Installation::start();
    let id = qctl.submit(&[
        "--shell",
        "echo early; while [ ! -e go ]; do sleep 0.05; done; echo late",
    ]);
    qctl.until("it runs", || (qctl.raw_log(id) == b"early\n").then_some(()));
    let page = browse(&qctl, &link(&qctl, id));
    assert!(page.contains("running") && page.contains("early"), "{page}");
    qctl.file("go", "");
    qctl.until_ended(id);
    let page = browse(&qctl, &link(&qctl, id));
    assert!(page.contains("late"), "{page}");
}

#[test]
fn what_is_unusual_is_on_the_pages_that_a_notice_leads_to() {
    // No disk has that much room.
    let qctl = Installation::prepare().env("QCTL_ALARM", "disk=1000000GB,memory=off,cpu=off");
    qctl.up(&[]).ok();
    let id = qctl.submit(&[
        "--silence",
        "1s,5m,10m",
        "--alarm",
        "run-time=1s",
        "--shell",
        "while [ ! -e go ]; do sleep 0.05; done",
    ]);
    let page = qctl.until("the page says what is unusual", || {
        let page = browse(&qctl, &link(&qctl, id));
        let has = |words: &str| page.contains(words);
        (has("It has said nothing for") && has("runs for long")).then_some(page)
    });
    assert!(
        page.contains("It is stopped after 10 min 00 s without a sign of life."),
        "{page}"
    );
    assert!(page.contains("(limit 1 s)"), "{page}");
    let queue = link(&qctl, id).replace(&format!("/jobs/{id}"), "/");
    qctl.until("the queue's page says what is unusual", || {
        let page = browse(&qctl, &queue);
        let unusual = page.contains("little room left on a disk");
        assert!(!page.contains("runs for long"), "that is the job's: {page}");
        unusual.then_some(())
    });
    qctl.file("go", "");
    qctl.until_ended(id);
    let page = browse(&qctl, &link(&qctl, id));
    assert!(!page.contains("It has said nothing"), "{page}");
    assert!(page.contains("runs for long"), "{page}");
}

#[test]
fn the_trackers_page_lists_its_jobs_under_either_spelling() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--name", "alpha", "--tracker", "INTG-088", "--", "true"]);
    qctl.submit(&["--name", "beta", "--tracker", "INTG-88", "--", "true"]);
    qctl.submit(&["--name", "gamma", "--tracker", "OTHER-1", "--", "true"]);
    let url = qctl.job(id)["tracker_url"].as_str().unwrap().to_owned();
    let page = browse(&qctl, &url);
    assert!(
        page.contains("alpha") && page.contains("beta") && !page.contains("gamma"),
        "{page}"
    );
}

#[test]
fn without_the_key_nothing_is_shown_and_strangers_hosts_are_refused() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--name", "secret name", "--", "true"]);
    let address = std::fs::read_to_string(qctl.home().join("data/address")).unwrap();
    let url = format!("http://{}/jobs/{id}", address.trim());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.get(&url).send().await.unwrap();
        assert_eq!(answer.status(), 401);
        assert!(!answer.text().await.unwrap().contains("secret name"));
        let with_key = link(&qctl, id);
        let answer = client
            .get(&with_key)
            .header("host", "evil.example")
            .send()
            .await
            .unwrap();
        assert!(answer.status().is_client_error(), "{}", answer.status());
        let client = reqwest::Client::builder()
            .no_proxy()
            .cookie_store(true)
            .build()
            .unwrap();
        let answer = client.get(&with_key).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(
            !answer.url().as_str().contains("k="),
            "the key is not left in the address bar"
        );
        assert!(answer.text().await.unwrap().contains("secret name"));
        let answer = client
            .get(format!("http://{}/jobs/999", address.trim()))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 404);
    });
}
