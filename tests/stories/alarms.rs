//! What is unusual without being a failure reaches the phone once, and is listed.

use crate::harness::Installation;
use crate::phone::{Phone, TOKEN, USER};

/// Each second a further process takes 3 MB and keeps them.
const LEAK: &str = "while [ ! -e enough ]; do \
                    head -c 3000000 /dev/zero | tail -c 3000000 | sleep 300 & sleep 1; done";

#[test]
fn f38_a_job_that_leaks_is_told_once_with_its_figures() {
    let phone = Phone::start();
    let qctl = Installation::prepare()
        .env("QCTL_ALARM_GROWTH_WINDOW", "20s")
        .env("QCTL_ALARM", "disk=off,cpu=off");
    qctl.file("home/config/pushover-token", TOKEN);
    qctl.file("home/config/pushover-user", USER);
    let settings = format!(
        "language = \"en\"\ngather = \"1s\"\n[pushover]\nurl = \"{}\"\n",
        phone.url()
    );
    qctl.file("home/config/notify.toml", settings);
    qctl.up(&[]).ok();

    let refused = qctl.qctl(&["submit", "--alarm", "disk=off", "--", "true"]);
    assert!(refused.fails().contains("`disk` is about a machine"));
    let limit = ["--alarm", "memory-growth=10MB", "--name", "leak"];
    let options = [&limit[..], &["--shell", LEAK]].concat();
    let id = qctl.submit(&options);
    assert_eq!(qctl.job(id)["alarm"][0], "memory-growth=10MB");
    // As large, but no larger from one look to the next.
    let steady =
        "head -c 60000000 /dev/zero | tail -c 60000000 | while [ ! -e enough ]; do sleep 1; done";
    let options = [&limit[..3], &["steady", "--shell", steady]].concat();
    qctl.qctl(&["worker", "slots", "2", &worker(&qctl)]).ok();
    let other = qctl.submit(&options);

    let shown = qctl.until("the phone has shown it", || {
        let shown = phone.shown();
        (!shown.is_empty()).then_some(shown)
    });
    let worker = worker(&qctl);
    assert_eq!(
        shown[0].title,
        format!("Job {id} “leak” takes more and more memory")
    );
    let lines: Vec<&str> = shown[0].message.lines().collect();
    let grown = lines[0]
        .strip_prefix(&format!("On {worker} it has grown by "))
        .and_then(|rest| rest.strip_suffix(" MB without a break."))
        .unwrap_or_else(|| panic!("{lines:?}"));
    assert!(
        (10..500).contains(&grown.parse::<i64>().unwrap()),
        "{grown}"
    );
    assert_eq!(lines[1], "It goes on. This is told once for this job.");
    assert!(lines[2].ends_with(&format!("qctl show {id}")), "{lines:?}");
    assert_eq!(shown[0].url, qctl.job(id)["url"].as_str().unwrap());

    let alarms = qctl.json(&["alarms"]);
    let alarms = alarms["alarms"].as_array().unwrap();
    assert_eq!(alarms.len(), 1, "{alarms:#?}");
    assert_eq!(
        (&alarms[0]["kind"], &alarms[0]["job"]),
        (&"memory-growth".into(), &id.into())
    );
    assert_eq!(
        (&alarms[0]["limit"], &alarms[0]["told"]),
        (&1e7.into(), &true.into())
    );
    assert!(alarms[0]["ended_at"].is_null());
    let page = qctl.qctl(&["show", &id.to_string()]).ok();
    assert!(page.contains("memory-growth"), "{page}");

    let health = qctl.json(&["health"]);
    let machines = health["machines"].as_array().unwrap();
    assert_eq!(machines.len(), 2, "{health:#}");
    assert_eq!(
        (&machines[0]["coordinator"], &machines[1]["machine"]),
        (&true.into(), &worker.as_str().into())
    );
    let subjects: Vec<_> = machines[1]["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["subject"].as_str().unwrap())
        .collect();
    for subject in [
        "connection",
        "cpu",
        "memory",
        "disk",
        "clock",
        "looks",
        "queue",
        "errors",
    ] {
        assert!(subjects.contains(&subject), "{subjects:?}");
    }

    qctl.file("enough", "");
    qctl.until_ended(id);
    qctl.until_ended(other);
    qctl.until("the end of the job ends its alarm", || {
        let all = qctl.json(&["alarms", "--all", &id.to_string()]);
        (!all["alarms"][0]["ended_at"].is_null()).then_some(())
    });
    assert_eq!(phone.shown().len(), 1, "{:#?}", phone.shown());
    phone.assert_rules_kept();
}

fn worker(qctl: &Installation) -> String {
    let workers = qctl.json(&["workers"]);
    workers["workers"][0]["name"].as_str().unwrap().to_owned()
}
