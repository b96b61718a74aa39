//! F37: a job that says nothing is told of in stages, stopped, and goes on.

use serde_json::Value;

use crate::harness::Installation;
use crate::phone::{Phone, TOKEN, USER};

/// What the notices may say of a process that was looked at for a second or two.
const DOING: [&str; 4] = [
    "What it is doing could not be seen.",
    "Its processes do nothing: it may hang.",
    "Its processes are computing.",
    "Its processes are reading or writing.",
];

fn kinds(qctl: &Installation, id: i64) -> Vec<(i64, String)> {
    let history = qctl.json(&["history", &id.to_string(), "-n", "1000"]);
    let events = history["events"].as_array().unwrap();
    let told = ["silent", "heard"];
    events
        .iter()
        .filter(|event| told.contains(&event["kind"].as_str().unwrap()))
        .map(|event| {
            let kind = event["kind"].as_str().unwrap().to_owned();
            (event["attempt"].as_i64().unwrap_or_default(), kind)
        })
        .collect()
}

fn silence(job: &Value, attempt: usize) -> &Value {
    &job["attempts"][attempt]["silence"]
}

#[test]
fn f37_silence_is_told_in_stages_once_per_job_and_ends_in_a_resume() {
    let phone = Phone::start();
    let qctl = Installation::prepare().env("QCTL_SILENCE", "3s,6s,9s");
    qctl.file("home/config/pushover-token", TOKEN);
    qctl.file("home/config/pushover-user", USER);
    let settings = format!(
        "language = \"en\"\ntime_zone = \"UTC\"\nper_hour = 20\n[pushover]\nurl = \"{}\"\n",
        phone.url()
    );
    qctl.file("home/config/notify.toml", settings);
    qctl.up(&["--slots", "3"]).ok();

    // One that says nothing because it is frozen, and one that says nothing because it computes.
    let frozen = qctl.submit(&["--silence", "12s,13s,14s", "--", "sleep", "300"]);
    qctl.until_state(frozen, "running");
    qctl.qctl(&["pause", &frozen.to_string()]).ok();
    let compute = "end=$(($(date +%s) + 12)); while [ $(date +%s) -lt $end ]; do \
                   i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; done";
    let busy = qctl.submit(&["--silence-counts", "activity", "--shell", compute]);

    // Output that ends without a newline, a word after the first warning, and then nothing more; its
    // second attempt says nothing at all.
    let script = "if [ ${QCTL_ATTEMPT#*.} = 1 ]; then \
                    echo 3 >$QCTL_CHECKPOINT_DIR/state; qctl checkpoint >/dev/null; \
                    sleep 5; printf 'epoch 3: '; \
                  fi; exec sleep 300";
    let id = qctl.submit(&["--name", "train", "--resumes", "1", "--shell", script]);
    let job = qctl.until("the job is shown as silent", || {
        let job = qctl.job(id);
        (silence(&job, 0)["stage"] == "reminded").then_some(job)
    });
    assert_eq!(
        silence(&job, 0)["evidence"]["last_lines"],
        "epoch 3:",
        "{job:#}"
    );
    assert_eq!(silence(&job, 0)["stop_after"], 9.0);
    let deepest = &silence(&job, 0)["evidence"]["processes"][0];
    assert_eq!(deepest["command"], "sleep 300", "{deepest}");
    assert!(!deepest["state"].as_str().unwrap().is_empty(), "{deepest}");
    let text = qctl.qctl(&["show", &id.to_string()]).ok();
    assert!(
        text.contains("silent for ") && text.contains("stopped at 9s"),
        "{text}"
    );
    assert!(
        text.contains("sleep 300") && text.contains("epoch 3:"),
        "{text}"
    );

    let ended = qctl.until_ended(id);
    assert_eq!(ended["state"], "failed", "{ended:#}");
    let causes = [0, 1].map(|at| ended["attempts"][at]["outcome"]["cause"].clone());
    assert_eq!(causes, ["silence", "silence"]);
    assert!(
        !ended["attempts"][1]["resumed_from"]
            .as_str()
            .unwrap()
            .is_empty()
    );
    let expected = [
        (1, "silent"),
        (1, "heard"),
        (1, "silent"),
        (1, "silent"),
        (2, "silent"),
        (2, "silent"),
    ];
    let expected: Vec<(i64, String)> = expected
        .into_iter()
        .map(|(attempt, kind)| (attempt, kind.to_owned()))
        .collect();
    assert_eq!(kinds(&qctl, id), expected, "the history has every stage");
    for quiet in [frozen, busy] {
        assert_eq!(kinds(&qctl, quiet), [], "job {quiet} is not silent");
    }

    let shown = qctl.until("the phone has shown everything", || {
        // The machine of the test may have alarms of its own.
        let mut shown = phone.shown();
        shown.retain(|push| push.title.starts_with("Job "));
        (shown.len() >= 4).then_some(shown)
    });
    assert_eq!(shown.len(), 4, "{shown:#?}");
    let worker = job["worker"].as_str().unwrap();
    let [warned, reminded, stopped, failed] = &shown[..] else {
        panic!("{shown:#?}");
    };
    let title = format!("Job {id} “train” has said nothing for ");
    assert!(warned.title.starts_with(&title), "{warned:?}");
    assert_eq!((warned.priority, warned.sound.as_str()), (0, ""));
    let title = format!("Job {id} “train” still says nothing, after ");
    assert!(reminded.title.starts_with(&title), "{reminded:?}");
    assert_eq!((reminded.priority, reminded.sound.as_str()), (0, "none"));
    for push in [warned, reminded] {
        let lines: Vec<&str> = push.message.lines().collect();
        assert!(
            lines[0].starts_with(&format!("On {worker}, since ")),
            "{push:?}"
        );
        assert!(
            DOING.iter().any(|doing| lines[0].ends_with(doing)),
            "{push:?}"
        );
        let did = "It is left alone. If it stays silent, it is stopped at ";
        assert!(lines[lines.len() - 2].starts_with(did), "{push:?}");
        assert_eq!(
            lines[lines.len() - 1],
            format!("To see what it is doing: qctl show {id}. To give it up: qctl cancel {id}")
        );
    }
    assert!(!warned.message.contains("Last line"), "{warned:?}");
    assert!(
        reminded.message.contains("\nLast line: epoch 3:\n"),
        "{reminded:?}"
    );
    assert_eq!(
        stopped.title,
        format!("Job {id} “train” was stopped because it said nothing, and goes on")
    );
    let goes_on = "It is started again at once, from checkpoint 1.1; it is the last time.";
    assert!(stopped.message.contains(goes_on), "{stopped:?}");
    assert_eq!(failed.title, format!("Job {id} “train” failed"));
    assert!(
        failed.message.contains("it said nothing for too long"),
        "{failed:?}"
    );
    phone.assert_rules_kept();
    qctl.qctl(&["cancel", &frozen.to_string()]).ok();
    assert_eq!(qctl.until_ended(busy)["state"], "succeeded");
}

/// Waits for a lock that it holds itself. Where the kernel lets only a parent look into a process, it
/// allows everybody else to (`PR_SET_PTRACER`, any).
const DEADLOCK: &str = "\
import ctypes, threading
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
def fetch_images():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
print(\"fetching\", flush=True)
fetch_images()
";

#[test]
fn f37_where_a_silent_python_program_stands_is_shown() {
    let spy = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/python/spy/bin");
    assert!(
        std::path::Path::new(spy).join("py-spy").exists(),
        "scripts/test installs py-spy into {spy}"
    );
    let qctl = Installation::prepare();
    let path = format!("{spy}:{}", std::env::var("PATH").unwrap());
    let qctl = qctl.env("PATH", path);
    qctl.up(&[]).ok();
    qctl.file("deadlock.py", DEADLOCK);
    let id = qctl.submit(&["--silence", "2s,1h,2h", "--", "python3", "deadlock.py"]);
    let job = qctl.until("somebody looked at the silent job", || {
        let job = qctl.job(id);
        silence(&job, 0)["evidence"].is_object().then_some(job)
    });
    let evidence = &silence(&job, 0)["evidence"];
    let stack = evidence["stack"].as_str().unwrap();
    assert!(
        stack.contains("fetch_images (deadlock.py:6)"),
        "{evidence:#}"
    );
    let deepest = &evidence["processes"][0];
    assert_eq!(deepest["command"], "python3 deadlock.py", "{evidence:#}");
    let shown = qctl.qctl(&["show", &id.to_string()]).ok();
    assert!(shown.contains("Python stands at"), "{shown}");
    qctl.qctl(&["cancel", &id.to_string()]).ok();
    qctl.until_ended(id);
}
