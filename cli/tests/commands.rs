//! The command line against a coordinator that a test scripts.

use std::process::Stdio;

use qctl_proto::error::{Fault, Reason};
use qctl_proto::v1;
use serde_json::{Value, json};
use tonic::Status;
use v1::job::State;

use fake::{Fake, Scripted, command, job, named, run};

mod fake;

fn document(text: &str) -> Value {
    assert_eq!(text.lines().count(), 1, "one document on one line: {text}");
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_submission_carries_what_the_command_needs_and_no_more() {
    let fake = Fake::start();
    let ran = fake.qctl(&[
        "submit",
        "--name",
        "pictures",
        "--label",
        "kind=test",
        "--label",
        "slow",
        "--tracker",
        "INTG-088",
        "--workspace",
        "out",
        "--env",
        "MODE=fast",
        "--priority",
        "-3",
        "--after",
        "7,8:any",
        "--time-limit",
        "1h30m",
        "--warn-before",
        "5m",
        "--warn-signal",
        "TERM",
        "--stop-grace",
        "20s",
        "--retries",
        "0",
        "--resumes",
        "1",
        "--slots",
        "2",
        "--gpus",
        "1",
        "--memory",
        "2G",
        "--worker",
        "box",
        "--exclusive",
        "--hold",
        "--progress",
        r"(?<percent>\d+)",
        "--pty",
        "--artifact",
        "out",
        "--",
        "python",
        "train.py",
        "--epochs",
        "3",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        ran.stdout,
        "Submitted job 42  pictures\n  http://127.0.0.1:7420/jobs/42\n  INTG-088: http://127.0.0.1:7420/tracker/INTG-088\n"
    );
    let script = fake.script();
    let request = &script.submitted[0];
    assert_eq!(request.request_id.len(), 36, "an id of its own");
    let spec = request.jobs[0].clone();
    let mut names: Vec<_> = spec.env.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["LANG", "MODE", "PATH", "TZ"]);
    assert_eq!(spec.workspace, fake.work().join("out").to_str().unwrap());
    assert_eq!(spec.cwd, fake.work().to_str().unwrap());
    assert!(!spec.submit_host.is_empty());
    assert_eq!(spec.command, ["python", "train.py", "--epochs", "3"]);
    assert_eq!(spec.labels["kind"], "test");
    assert_eq!(spec.labels["slow"], "");
    let after: Vec<_> = spec
        .after
        .iter()
        .map(|after| (after.job_id, after.condition()))
        .collect();
    use v1::dependency::Condition;
    assert_eq!(after, [(7, Condition::Ok), (8, Condition::Any)]);
    let rest = v1::JobSpec {
        env: Default::default(),
        labels: Default::default(),
        after: Vec::new(),
        command: Vec::new(),
        cwd: String::new(),
        workspace: String::new(),
        submit_host: String::new(),
        ..spec
    };
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    assert_eq!(
        rest,
        v1::JobSpec {
            name: "pictures".into(),
            tracker: "INTG-088".into(),
            priority: -3,
            time_limit: seconds(5_400),
            warn_before: seconds(300),
            warn_signal: 15,
            stop_grace: seconds(20),
            retries: Some(0),
            resumes: Some(1),
            demand: Some(v1::Demand {
                slots: 2,
                gpus: 1,
                memory_bytes: 2_147_483_648,
            }),
            worker: "box".into(),
            exclusive: true,
            hold: true,
            progress_pattern: r"(?<percent>\d+)".into(),
            pty: true,
            artifacts: vec!["out".into()],
            ..Default::default()
        }
    );
}

#[test]
fn a_plain_submission_is_one_call() {
    let fake = Fake::start();
    let ran = fake.qctl(&["submit", "true"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(fake.script().asked.len(), 1);
}

#[test]
fn a_submission_whose_answer_is_lost_is_repeated_under_its_id() {
    let fake = Fake::start();
    fake.script().faults.extend([
        Status::from(Fault::new(
            Reason::DatabaseUnavailable,
            "the database is away",
        )),
        Status::unavailable("connection reset"),
    ]);
    let ran = fake.qctl(&["submit", "--", "true"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let script = fake.script();
    assert_eq!(script.submitted.len(), 3);
    assert_eq!(script.submitted[0], script.submitted[2]);
}

#[test]
fn enqueue_takes_a_name_and_leaves_the_commands_options_alone() {
    let fake = Fake::start();
    let ran = fake.qctl(&[
        "enqueue",
        "--priority",
        "2",
        "build",
        "make",
        "-j",
        "--priority",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let spec = fake.script().submitted[0].jobs[0].clone();
    assert_eq!(spec.name, "build");
    assert_eq!(spec.priority, 2);
    assert_eq!(spec.command, ["make", "-j", "--priority"]);
}

#[test]
fn a_text_is_given_to_a_shell_only_on_request() {
    let fake = Fake::start();
    assert_eq!(fake.qctl(&["submit", "--shell", "a && b"]).code, 0);
    let spec = fake.script().submitted[0].jobs[0].clone();
    assert_eq!(spec.command, ["/bin/sh", "-c", "a && b"]);
    assert!(spec.shell);
    let ran = fake.qctl(&["submit", "a && b"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains("qctl submit --shell 'a && b'"),
        "{ran:?}"
    );
}

#[test]
fn tracker_and_workspace_are_explicit_then_environment_then_project() {
    let fake = Fake::start();
    fake.file(
        "work/.qctl.toml",
        "tracker = 'P-1'\nworkspace = 'proj'\n[defaults]\nretries = 0\nlabels = { from = 'project' }\n",
    );
    let submit = |env: bool, args: &[&str]| {
        let mut all = vec!["submit"];
        all.extend_from_slice(args);
        all.extend_from_slice(&["--", "true"]);
        let mut command = fake.command(&all);
        if env {
            command
                .env("TRACKER_ID", "E-1")
                .env("TRACKER_WORKSPACE", "/e");
        }
        let ran = run(command);
        assert_eq!(ran.code, 0, "{ran:?}");
        fake.script().submitted.pop().unwrap().jobs.remove(0)
    };
    let spec = submit(false, &[]);
    assert_eq!(spec.tracker, "P-1");
    assert_eq!(spec.workspace, fake.work().join("proj").to_str().unwrap());
    assert_eq!(
        (spec.retries, spec.labels["from"].as_str()),
        (Some(0), "project")
    );
    let spec = submit(true, &[]);
    assert_eq!(
        (spec.tracker.as_str(), spec.workspace.as_str()),
        ("E-1", "/e")
    );
    let spec = submit(
        true,
        &["--tracker", "X-1", "--workspace", "/x", "--retries", "4"],
    );
    assert_eq!(
        (spec.tracker.as_str(), spec.workspace.as_str()),
        ("X-1", "/x")
    );
    assert_eq!(spec.retries, Some(4));
}

#[test]
fn a_batch_is_one_call_and_one_line_a_job() {
    let fake = Fake::start();
    let file = fake.file(
        "jobs.jsonl",
        "{\"command\": [\"a\"], \"name\": \"first\"}\n\n{\"command\": \"b | c\", \"after\": [-1], \"labels\": [\"x\"]}\n",
    );
    let args = [
        "submit",
        "--json",
        "--tracker",
        "T-1",
        "--batch",
        file.to_str().unwrap(),
    ];
    let ran = fake.qctl(&args);
    assert_eq!(ran.code, 0, "{ran:?}");
    let ids: Vec<i64> = ran
        .stdout
        .lines()
        .map(|line| document(line)["id"].as_i64().unwrap())
        .collect();
    assert_eq!(ids, [42, 43]);
    let jobs = fake.script().submitted[0].jobs.clone();
    assert_eq!(fake.script().submitted.len(), 1);
    assert_eq!(jobs[1].command, ["/bin/sh", "-c", "b | c"]);
    assert_eq!(jobs[1].after[0].job_id, -1);
    assert_eq!(
        (jobs[0].tracker.as_str(), jobs[1].tracker.as_str()),
        ("T-1", "T-1")
    );
}

#[test]
fn a_batch_comes_from_standard_input_too() {
    use std::io::Write as _;
    let fake = Fake::start();
    let mut command = fake.command(&["submit", "--batch", "-"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input
        .write_all(b"{\"command\": [\"a\"]}\n{\"command\": [\"b\"]}\n")
        .unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("Submitted 2 jobs\n  42"), "{text}");
}

#[test]
fn a_field_that_the_coordinator_refuses_is_told_by_its_line() {
    let fake = Fake::start();
    let fault = Fault::new(Reason::InvalidField, "must not hold control characters")
        .field("jobs[1].name")
        .hint("leave the newline out");
    fake.script().faults.push_back(fault.into());
    let file = fake.file(
        "jobs.jsonl",
        "{\"command\": [\"a\"]}\n\n{\"command\": [\"b\"], \"name\": \"x\\ny\"}\n",
    );
    let ran = fake.qctl(&["submit", "--batch", file.to_str().unwrap()]);
    assert_eq!(ran.code, 2);
    assert_eq!(
        fake.tidy(&ran.stderr),
        "error: [home]/jobs.jsonl:3: name: must not hold control characters\n  hint: leave the newline out\n"
    );
}

#[test]
fn a_submission_over_the_limit_is_refused_before_it_is_sent() {
    let fake = Fake::start();
    let line = json!({"command": ["x", "y".repeat(1024 * 1024)]}).to_string() + "\n";
    let file = fake.file("big.jsonl", &line.repeat(33));
    let ran = fake.qctl(&["submit", "--batch", file.to_str().unwrap()]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("limit of 32 MiB"), "{ran:?}");
    assert!(fake.script().asked.is_empty());
    let ran = fake.qctl(&[
        "submit",
        "--batch",
        fake.file("fits.jsonl", &line.repeat(10)).to_str().unwrap(),
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn mistakes_are_told_before_anything_is_asked() {
    let fake = Fake::start();
    for (args, words) in [
        (&["submit"][..], &["--", "--shell"][..]),
        (&["submit", "--time-limit", "90", "--", "a"], &["90s"]),
        (&["submit", "--memory", "lots", "--", "a"], &["lots"]),
        (&["submit", "--after", "1:maybe", "--", "a"], &["maybe"]),
        (
            &["submit", "--env", "NOT_SET_HERE", "--", "a"],
            &["NOT_SET_HERE=VALUE"],
        ),
        (
            &["submit", "--warn-before", "1m", "--", "a"],
            &["needs a time limit", "--time-limit"],
        ),
        (
            &[
                "submit",
                "--time-limit",
                "1m",
                "--warn-before",
                "2m",
                "--",
                "a",
            ],
            &["2m before a time limit of 1m"],
        ),
        (&["submit", "--batch"], &["--template"]),
        (&["submit", "--batch", "/no/such/file"], &["/no/such/file"]),
        (&["submit", "--shell", "a", "b"], &["quotes"]),
        (&["submit", "--follow", "--json", "--", "a"], &["--wait"]),
        (&["submit", "--follow", "--wait", "--", "a"], &["--wait"]),
        (&["show", "abc"], &["abc"]),
        (&["cancel", "42.1"], &["attempt"]),
        (&["list", "--state", "happy"], &["happy", "running"]),
        (&["list", "--since", "yesterday"], &["yesterday", "--since"]),
        (&["logs", "42.1", "--attempt", "2"], &["two attempts"]),
        (&["edit", "42"], &["nothing to change"]),
        (
            &["submit", "--contradicted-by", "", "--", "a"],
            &["--contradicted-by", "empty"],
        ),
        (
            &["submit", "--priority", "1e9", "--", "a"],
            &["--priority", "whole number"],
        ),
        (
            &["checkpoint", "--step", "abc", "x"],
            &["--step", "whole number"],
        ),
        (
            &["notices", "ack", "abc"],
            &["NOTICE", "not the number of a notice"],
        ),
        (&["frobnicate"], &["frobnicate"]),
    ] {
        let ran = fake.qctl(args);
        for word in words {
            assert!(ran.stderr.contains(word), "{args:?}: {ran:?}");
        }
        let code = if args.contains(&"/no/such/file") {
            1
        } else {
            2
        };
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (code, ""),
            "{args:?}: {ran:?}"
        );
    }
    assert!(fake.script().asked.is_empty());
}

#[test]
fn templates_are_filled_in_and_the_users_own_win() {
    let fake = Fake::start();
    let template = |name: &str, definition: &str| v1::Template {
        name: name.to_owned(),
        definition: definition.to_owned(),
    };
    fake.script().templates = vec![
        template("greet", "command = ['echo', 'theirs']"),
        template(
            "extract",
            "description = 'Cuts'\ncommand = ['{home}/x', '{args}']\ntime_limit = '12h'\nlabels = { kind = 'x' }\n\
             [batch]\ndefault_args = ['{workspace}/in']\nartifacts = ['{workspace}/out']",
        ),
    ];
    fake.file(
        "config/templates.toml",
        "[template.greet]\ncommand = ['echo', 'a{2}', '{args}']\ndefault_args = ['world']\nretries = 0\n",
    );
    let spec = |args: &[&str]| {
        let ran = fake.qctl(args);
        assert_eq!(ran.code, 0, "{ran:?}");
        fake.script().submitted.pop().unwrap().jobs.remove(0)
    };
    let greet = spec(&["submit", "--template", "greet"]);
    assert_eq!(greet.command, ["echo", "a{2}", "world"]);
    assert_eq!((greet.template.as_str(), greet.retries), ("greet", Some(0)));
    assert_eq!(
        fake.script().asked.len(),
        1,
        "their templates were not asked for"
    );
    let greet = spec(&[
        "submit",
        "--template",
        "greet",
        "--retries",
        "1",
        "you",
        "--two",
    ]);
    assert_eq!(greet.command, ["echo", "a{2}", "you", "--two"]);
    assert_eq!(
        (greet.name.as_str(), greet.retries),
        ("greet you --two", Some(1))
    );
    let extract = spec(&[
        "submit",
        "--template",
        "extract",
        "--workspace",
        "/w",
        "--batch",
    ]);
    let data = fake.work().join("../data/x").components().count();
    assert!(
        extract.command[0].ends_with("/data/x") && data > 0,
        "{extract:?}"
    );
    assert_eq!(extract.command[1], "/w/in");
    assert_eq!(extract.artifacts, ["/w/out"]);
    assert_eq!(extract.labels["kind"], "x");

    let ran = fake.qctl(&["submit", "--template", "extract", "--batch"]);
    assert_eq!(ran.code, 2);
    assert_eq!(
        ran.stderr,
        "error: template `extract` needs a workspace, and there is none\n  \
         hint: give --workspace DIR, set TRACKER_WORKSPACE, or write workspace = \"…\" in .qctl.toml\n"
    );
    let ran = fake.qctl(&["submit", "--template", "greet", "--batch"]);
    assert!(ran.stderr.contains("has no [batch] table"), "{ran:?}");
    let ran = fake.qctl(&["submit", "--template", "nothing"]);
    assert_eq!(ran.code, 3);
    assert!(
        ran.stderr.contains("there is no template `nothing`"),
        "{ran:?}"
    );

    let ran = fake.qctl(&["template", "list"]);
    insta::assert_snapshot!("template_list", ran.stdout);
    let ran = fake.qctl(&["template", "show", "greet"]);
    assert!(ran.stdout.starts_with("[template.greet]\n"), "{ran:?}");
    let shown = document(&fake.qctl(&["--json", "template", "show", "extract"]).stdout);
    assert_eq!(
        shown["definition"]["batch"]["default_args"],
        json!(["{workspace}/in"])
    );
}

#[test]
fn a_broken_template_names_file_and_key() {
    let fake = Fake::start();
    fake.file(
        "config/templates.toml",
        "[template.a]\ncommand = ['x']\nretrys = 1\n",
    );
    let ran = fake.qctl(&["submit", "--template", "a"]);
    assert_eq!(ran.code, 2);
    assert_eq!(
        fake.tidy(&ran.stderr),
        "error: [home]/config/templates.toml: template `a`: unknown key `retrys`; did you mean `retries`?\n"
    );
}

#[test]
fn a_refusal_is_told_to_people_and_programs() {
    let fake = Fake::start();
    let ran = fake.qctl(&["show", "999"]);
    assert_eq!(ran.code, 3);
    assert_eq!(ran.stderr, "error: there is no job 999\n  try: qctl list\n");
    let ran = fake.qctl(&["--json", "show", "999"]);
    assert_eq!(
        document(&ran.stderr),
        json!({"error": {"reason": "JOB_NOT_FOUND", "message": "there is no job 999",
            "field": null, "hint": null, "next": "qctl list"}})
    );
    let ran = fake.qctl(&["submit", "--json", "--time-limit", "90", "--", "a"]);
    assert_eq!(document(&ran.stderr)["error"]["reason"], "USAGE");
    let ran = fake.qctl(&["submit", "--time-limit", "90", "--", "a", "--json"]);
    assert!(
        ran.stderr.starts_with("error: "),
        "the job's --json is not ours: {ran:?}"
    );
}

#[test]
fn nobody_listening_and_wrong_tokens_are_told_apart() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("work")).unwrap();
    let mut unreachable = command(home.path(), &["list"]);
    unreachable.env("QCTL_SERVER", "127.0.0.1:1");
    let ran = run(unreachable);
    assert_eq!(ran.code, 69);
    assert!(
        ran.stderr.contains("127.0.0.1:1") && ran.stderr.contains("qctl up"),
        "{ran:?}"
    );
    let ran = run(command(home.path(), &["list"]));
    assert_eq!(ran.code, 69);
    assert!(
        ran.stderr.starts_with("error: no coordinator runs here"),
        "{ran:?}"
    );
    let ran = run(command(home.path(), &["--server", "localhost", "list"]));
    assert_eq!(ran.code, 2, "{ran:?}");

    let fake = Fake::start();
    let wrong = fake.file("wrong", "another");
    let ran = fake.qctl(&["--token-file", wrong.to_str().unwrap(), "list"]);
    assert_eq!(ran.code, 77);
    assert!(ran.stderr.contains("token"), "{ran:?}");
    let ran = fake.qctl(&["--token-file", "/no/such/token", "list"]);
    assert_eq!(ran.code, 77);
    assert!(
        ran.stderr.contains("no token for it in /no/such/token"),
        "{ran:?}"
    );
}

#[test]
fn checkpoints_are_listed_with_what_became_of_them() {
    use v1::checkpoint::State;
    let fake = Fake::start();
    let checkpoint = |number: i32, state: State| v1::Checkpoint {
        job_id: 42,
        attempt: 1,
        number,
        worker: "box".into(),
        path: format!("/w/checkpoints/42/published/1.{number}/files"),
        files: 2,
        bytes: 1_048_576,
        hash: "sha256:00".into(),
        state: state.into(),
        created_at: Some(prost_types::Timestamp {
            seconds: 1_600_000_000 + i64::from(number),
            nanos: 0,
        }),
        ..Default::default()
    };
    fake.script().checkpoints = vec![
        v1::Checkpoint {
            attempt: 2,
            step: Some(400),
            note: "第4回\u{1b}[31m".into(),
            uploaded: true,
            latest: true,
            ..checkpoint(1, State::Kept)
        },
        v1::Checkpoint {
            step: Some(300),
            uploaded: true,
            ..checkpoint(3, State::Damaged)
        },
        checkpoint(2, State::Kept),
        v1::Checkpoint {
            files: 1,
            bytes: 0,
            ..checkpoint(1, State::Removed)
        },
    ];
    let ran = fake.qctl(&["checkpoints", "42"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    insta::assert_snapshot!("checkpoints", ran.stdout);
    let page = document(&fake.qctl(&["--json", "checkpoints", "42"]).stdout);
    insta::assert_snapshot!(
        "checkpoint_document",
        serde_json::to_string_pretty(&page["checkpoints"][0]).unwrap()
    );
    fake.script().checkpoints.clear();
    let none = fake.qctl(&["checkpoints", "42"]);
    assert_eq!(
        (none.code, &*none.stdout, &*none.stderr),
        (0, "", "Job 42 has published no checkpoints.\n")
    );
}

#[test]
fn alarms_are_a_table_for_people_and_documents_for_programs() {
    let at = |seconds: i64| {
        Some(prost_types::Timestamp {
            seconds: 1_600_000_000 + seconds,
            nanos: 0,
        })
    };
    let fake = Fake::start();
    let none = fake.qctl(&["alarms"]);
    assert_eq!((none.code, &*none.stdout), (0, ""));
    assert!(
        none.stderr.starts_with("Nothing is unusual now"),
        "{none:?}"
    );
    fake.script().alarms = v1::ListAlarmsResponse {
        alarms: vec![
            v1::Alarm {
                id: 2,
                kind: v1::AlarmKind::MemoryGrowth.into(),
                job_id: 42,
                job_name: "学習\u{1b}[31m".to_owned(),
                attempt: 1,
                machine: "gpu1".to_owned(),
                began_at: at(3_600),
                ended_at: at(7_200),
                limit: 1e9,
                peak: 4e9,
                ..v1::Alarm::default()
            },
            v1::Alarm {
                id: 1,
                kind: v1::AlarmKind::Disk.into(),
                machine: "home".to_owned(),
                coordinator: true,
                began_at: at(0),
                ended_at: at(60),
                limit: 20e9,
                peak: 3e9,
                untold: "short".to_owned(),
                ended_because: "other_machine".to_owned(),
                ..v1::Alarm::default()
            },
        ],
        next_page_token: "next".to_owned(),
        counts: vec![v1::AlarmCount {
            kind: v1::AlarmKind::Disk.into(),
            of_jobs: false,
            count: 3,
            told: 2,
            lasted: Some(prost_types::Duration {
                seconds: 5_400,
                nanos: 0,
            }),
        }],
    };
    let ran = fake.qctl(&["alarms", "--all", "42"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.stderr, "more: go on with: --page-token next\n");
    insta::assert_snapshot!("alarms", ran.stdout);
    let asked = fake.script().asked.pop().unwrap();
    assert!(
        asked.contains("job_id: 42, worker: \"\", all: true"),
        "{asked}"
    );
    let ran = fake.qctl(&["alarms", "gpu1"]);
    let asked = fake.script().asked.pop().unwrap();
    assert!(
        asked.contains("job_id: 0, worker: \"gpu1\""),
        "{asked} {ran:?}"
    );
    insta::assert_snapshot!(
        "alarm_statistics",
        fake.qctl(&["alarms", "--statistics"]).stdout
    );
    let page = document(&fake.qctl(&["--json", "alarms", "--all"]).stdout);
    insta::assert_snapshot!(
        "alarm_document",
        serde_json::to_string_pretty(&page).unwrap()
    );
    let fault = Fault::new(Reason::WorkerNotFound, "there is no worker `x`");
    fake.script().faults.push_back(fault.into());
    let ran = fake.qctl(&["alarms", "x"]);
    assert_eq!(ran.stdout, "");
    assert!(ran.code != 0 && ran.stderr.contains("there is no worker `x`"));
}

#[test]
fn health_is_told_of_all_machines_or_of_one_worker() {
    let machine = |name: &str, health: v1::Health| v1::MachineHealth {
        machine: name.to_owned(),
        coordinator: name == "home",
        health: health.into(),
        findings: vec![v1::HealthFinding {
            subject: "disk".to_owned(),
            health: health.into(),
            message: format!("the disk of {name} has 3.0 GB left"),
            advice: match health {
                v1::Health::Bad => "make room".to_owned(),
                _ => String::new(),
            },
        }],
    };
    let fake = Fake::start();
    fake.script().health = v1::GetHealthResponse {
        machines: vec![
            machine("home", v1::Health::Bad),
            machine("gpu1", v1::Health::Well),
        ],
        health: v1::Health::Bad.into(),
    };
    let all = fake.qctl(&["health"]);
    assert_eq!(all.code, 0, "{all:?}");
    assert!(
        all.stdout
            .contains("What to do:\ncoordinator, disk: make room"),
        "{all:?}"
    );
    let one = document(&fake.qctl(&["--json", "health", "gpu1"]).stdout);
    assert_eq!(
        one["health"], "well",
        "that of the worker asked for: {one:#}"
    );
    assert_eq!(one["machines"].as_array().unwrap().len(), 1);
    // The coordinator's machine is no worker, whatever its host is called.
    for name in ["home", "nosuch"] {
        let ran = fake.qctl(&["health", name]);
        assert_eq!(ran.stdout, "");
        assert!(
            ran.code != 0 && ran.stderr.contains("there is no worker"),
            "{ran:?}"
        );
    }
}

#[test]
fn lists_are_tables_for_people_and_documents_for_programs() {
    let fake = Fake::start();
    let tracked = v1::JobSpec {
        tracker: "INTG-088".into(),
        ..named("画像抽出")
    };
    let failed = v1::Job {
        worker: "box".into(),
        outcome: Some(v1::Outcome {
            kind: v1::outcome::Kind::Failed.into(),
            cause: "exit".into(),
            exit_code: Some(3),
            signal: None,
            message: "it exited with code 3".into(),
        }),
        ..job(7, State::Failed, tracked)
    };
    fake.script().jobs = vec![
        job(9, State::Queued, named("two\nlines")),
        job(8, State::Held, named("waits")),
        failed,
    ];
    let ran = fake.qctl(&["list"]);
    insta::assert_snapshot!("list", ran.stdout);
    let ran = fake.qctl(&["list", "--limit", "2"]);
    assert_eq!(ran.stderr, "2 of 3 jobs; go on with: --page-token next\n");
    let page = document(&fake.qctl(&["list", "--json", "-n", "2"]).stdout);
    assert_eq!(page["next_page_token"], "next");
    assert_eq!(page["jobs"].as_array().unwrap().len(), 2);
    let job = document(&fake.qctl(&["list", "--json"]).stdout)["jobs"][2].clone();
    insta::assert_snapshot!("job_document", serde_json::to_string_pretty(&job).unwrap());

    let ran = fake.qctl(&[
        "list",
        "--state",
        "active,failed",
        "--tracker",
        "intg-88",
        "--label",
        "a=b",
        "--label",
        "c",
        "--worker",
        "w",
        "--since",
        "2026-11-21",
        "--until",
        "2026-11-22T00:00:00Z",
        "--page-token",
        "t",
        "7",
        "9",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let asked = fake.script().asked.pop().unwrap();
    for part in [
        "states: [Waiting, Held, Queued, Running, Failed]",
        "tracker: \"intg-88\"",
        "worker: \"w\"",
        "created_after: Some(Timestamp { seconds: 1795186800",
        "created_before: Some(Timestamp { seconds: 1795305600",
        "ids: [7, 9]",
        "page_token: \"t\"",
    ] {
        assert!(asked.contains(part), "{part} is not in {asked}");
    }
}

#[test]
fn show_says_neither_old_news_nor_the_state_twice() {
    let fake = Fake::start();
    let returned = v1::Outcome {
        kind: v1::outcome::Kind::NeverStarted.into(),
        cause: "void".into(),
        message: "it had not started".into(),
        ..Default::default()
    };
    let failed = v1::Outcome {
        kind: v1::outcome::Kind::Failed.into(),
        cause: "exit".into(),
        exit_code: Some(1),
        message: "exit 1".into(),
        ..Default::default()
    };
    for (state, outcome, head) in [
        (State::Running, returned, "Job 7 pictures  running\n\n"),
        (State::Failed, failed, "Job 7 pictures  failed (exit 1)\n\n"),
    ] {
        fake.script().jobs = vec![v1::Job {
            outcome: Some(outcome),
            ..job(7, state, named("pictures"))
        }];
        let shown = fake.qctl(&["show", "7"]).stdout;
        assert!(shown.starts_with(head), "{shown}");
    }
}

#[test]
fn how_an_attempt_ended_is_said_once() {
    let fake = Fake::start();
    {
        let mut script = fake.script();
        script.jobs = vec![job(7, State::Queued, named("pictures"))];
        script.attempts = vec![v1::Attempt {
            job_id: 7,
            number: 1,
            state: v1::attempt::State::Ended.into(),
            outcome: Some(v1::Outcome {
                kind: v1::outcome::Kind::Checkpointed.into(),
                cause: "checkpointed".into(),
                exit_code: Some(85),
                ..Default::default()
            }),
            ..Default::default()
        }];
    }
    let shown = fake.qctl(&["show", "7"]).stdout;
    assert!(shown.contains("1  checkpointed  "), "{shown}");
    assert!(!shown.contains("(checkpointed)"), "{shown}");
}

#[test]
fn a_misspelt_option_is_not_to_be_made_a_command() {
    let fake = Fake::start();
    for args in [
        &["edit", "7", "--hld"][..],
        &["submit", "--retries", "-1", "--", "a"],
    ] {
        let ran = fake.qctl(args);
        assert_eq!(ran.code, 2);
        assert!(ran.stderr.contains("unexpected argument"), "{ran:?}");
        assert!(!ran.stderr.contains("as a value"), "{ran:?}");
    }
}

#[test]
fn edit_does_not_promise_the_defaults_of_submit() {
    let help = Fake::start().qctl(&["edit", "-h"]).stdout;
    let options = help.split("Global options").next().unwrap_or_default();
    assert!(!options.contains("[default"), "{help}");
}

#[test]
fn a_line_without_a_command_is_told_how_a_line_names_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.jsonl");
    std::fs::write(&path, "{\"retries\": 0}\n").unwrap();
    let ran = Fake::start().qctl(&["submit", "--batch", path.to_str().unwrap()]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains("jobs.jsonl:1: there is no command"),
        "{ran:?}"
    );
    assert!(!ran.stderr.contains("dashes"), "{ran:?}");
}

#[test]
fn show_has_everything() {
    let fake = Fake::start();
    let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let spec = v1::JobSpec {
        command: vec!["python".into(), "two words.py".into()],
        tracker: "INTG-088".into(),
        time_limit: Some(prost_types::Duration {
            seconds: 600,
            nanos: 0,
        }),
        env: [("SECRET".to_owned(), "hidden".to_owned())].into(),
        notify: v1::job_spec::Notify::Failure.into(),
        ..named("pictures")
    };
    let outcome = v1::Outcome {
        kind: v1::outcome::Kind::Failed.into(),
        cause: "signal".into(),
        exit_code: None,
        signal: Some(9),
        message: "killed by SIGKILL".into(),
    };
    {
        let mut script = fake.script();
        script.jobs = vec![v1::Job {
            worker: "box".into(),
            outcome: Some(outcome.clone()),
            ..job(7, State::Failed, spec)
        }];
        script.attempts = vec![v1::Attempt {
            job_id: 7,
            number: 1,
            state: v1::attempt::State::Ended.into(),
            worker: "box".into(),
            outcome: Some(outcome),
            started_at: at(1_600_000_001),
            ended_at: at(1_600_000_193),
            duration: Some(prost_types::Duration {
                seconds: 192,
                nanos: 0,
            }),
            pid: 4711,
            log_stored: 2048,
            log_end: Some(2048),
            log_missing: 1536,
            not_enforced: vec!["memory: there is no control group here".into()],
            ..Default::default()
        }];
        script.events = vec![v1::Event {
            id: 5,
            time: at(1_600_000_000),
            job_id: 7,
            kind: "submitted".into(),
            message: "Submitted from here".into(),
            actor: "me".into(),
            ..Default::default()
        }];
    }
    let ran = fake.qctl(&["show", "7"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    insta::assert_snapshot!("show", ran.stdout);
    let shown = fake.qctl(&["--json", "show", "7"]).stdout;
    assert!(!shown.contains("hidden"), "values may be secret: {shown}");
    let shown = document(&shown);
    insta::assert_snapshot!(
        "attempt_document",
        serde_json::to_string_pretty(&shown["attempts"]).unwrap()
    );
    assert_eq!(shown["events"][0]["kind"], "submitted");
    assert_eq!(shown["env_names"], json!(["SECRET"]));
    let ran = fake.qctl(&["show", "7.4"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (3, "error: job 7 has no attempt 4\n  try: qctl show 7\n")
    );
}

fn piece(attempt: i32, offset: i64, text: &str) -> v1::ReadLogResponse {
    v1::ReadLogResponse {
        attempt,
        offset,
        runs: vec![v1::LogRun {
            stream: v1::LogStream::Stdout.into(),
            length: u32::try_from(text.len()).unwrap(),
            time: None,
        }],
        data: text.as_bytes().to_vec().into(),
        ..Default::default()
    }
}

fn complete(attempt: i32, offset: i64) -> v1::ReadLogResponse {
    v1::ReadLogResponse {
        attempt,
        offset,
        attempt_complete: true,
        ..Default::default()
    }
}

fn whole<T>(messages: Vec<T>) -> Scripted<T> {
    Scripted {
        messages,
        error: None,
    }
}

fn broken<T>(messages: Vec<T>) -> Scripted<T> {
    Scripted {
        messages,
        error: Some(Status::unavailable("connection reset")),
    }
}

#[test]
fn logs_are_collapsed_for_people_and_raw_on_request() {
    let fake = Fake::start();
    let script = || {
        whole(vec![
            piece(1, 0, "\r10%\r20"),
            piece(1, 7, "%\nend"),
            complete(1, 12),
        ])
    };
    fake.script().logs.extend([script(), script(), script()]);
    assert_eq!(fake.qctl(&["logs", "7"]).stdout, "20%\nend");
    assert_eq!(fake.qctl(&["logs", "7", "--raw"]).stdout, "\r10%\r20%\nend");
    let lines = fake.qctl(&["logs", "7", "--json"]).stdout;
    let second = document(lines.lines().nth(1).unwrap());
    assert_eq!(
        (&second["offset"], &second["text"]),
        (&json!(7), &json!("%\nend"))
    );
    assert_eq!(second["stream"], "stdout");
}

#[test]
fn log_options_reach_the_coordinator() {
    let fake = Fake::start();
    let ran = fake.qctl(&[
        "logs",
        "7.2",
        "--stream",
        "stderr",
        "--tail",
        "5",
        "--since",
        "2026-11-21T00:00:00Z",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let request = fake.script().read.pop().unwrap();
    assert_eq!((request.job_id, request.attempt), (7, 2));
    assert_eq!(request.stream(), v1::LogStream::Stderr);
    assert_eq!(request.tail_lines, Some(5));
    assert_eq!(request.since.unwrap().seconds, 1_795_219_200);
}

#[test]
fn a_followed_log_goes_on_at_the_byte_where_the_connection_broke() {
    let fake = Fake::start();
    {
        let mut script = fake.script();
        script.jobs = vec![v1::Job {
            attempt: 2,
            ..exited(7, 5)
        }];
        script.logs.extend([
            broken(vec![piece(1, 0, "one\ntw")]),
            broken(vec![piece(1, 6, "o\n")]),
            whole(vec![piece(1, 8, "three\n"), complete(1, 14)]),
            whole(vec![piece(2, 0, "again\n"), complete(2, 6)]),
        ]);
    }
    let ran = fake.qctl(&["logs", "-f", "7"]);
    assert_eq!(ran.code, 5, "the job's own code: {ran:?}");
    assert_eq!(ran.stdout, "one\ntwo\nthree\nagain\n");
    let asked: Vec<_> = fake
        .script()
        .read
        .iter()
        .map(|request| (request.attempt, request.offset))
        .collect();
    assert_eq!(asked, [(0, 0), (1, 6), (1, 8), (2, 0)]);
    assert!(ran.stderr.contains("--- attempt 2"), "{ran:?}");
}

#[test]
fn an_interrupted_tail_does_not_repeat_its_lines() {
    let fake = Fake::start();
    {
        let mut script = fake.script();
        script.jobs = vec![job(7, State::Succeeded, named("x"))];
        script.logs.extend([
            broken(vec![piece(1, 100, "a\n")]),
            whole(vec![piece(1, 102, "b\n"), complete(1, 104)]),
        ]);
    }
    let ran = fake.qctl(&["logs", "--tail", "1", "7"]);
    assert_eq!(ran.stdout, "a\nb\n", "{ran:?}");
    let second = fake.script().read[1];
    assert_eq!((second.offset, second.tail_lines), (102, None));
}

#[test]
fn a_job_that_has_not_started_has_no_output() {
    let fake = Fake::start();
    let none = || Status::from(Fault::new(Reason::AttemptNotFound, "job 7 has no attempt"));
    fake.script().faults.push_back(none());
    let ran = fake.qctl(&["logs", "--raw", "7"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{ran:?}");
    fake.script().faults.push_back(none());
    assert_eq!(fake.qctl(&["logs", "--attempt", "9", "7"]).code, 3);
}

fn change(job: v1::Job) -> v1::WatchJobsResponse {
    v1::WatchJobsResponse {
        job: Some(job),
        as_of: 1,
        caught_up: false,
    }
}

fn caught_up() -> v1::WatchJobsResponse {
    v1::WatchJobsResponse {
        caught_up: true,
        ..Default::default()
    }
}

fn exited(id: i64, code: i32) -> v1::Job {
    let state = if code == 0 {
        State::Succeeded
    } else {
        State::Failed
    };
    v1::Job {
        outcome: Some(v1::Outcome {
            cause: "exit".into(),
            exit_code: Some(code),
            ..Default::default()
        }),
        ..job(id, state, named("x"))
    }
}

#[test]
fn waiting_survives_a_restart_and_exits_with_the_jobs_code() {
    let fake = Fake::start();
    fake.script().watches.extend([
        whole(vec![
            change(job(7, State::Running, named("x"))),
            change(exited(8, 0)),
            caught_up(),
        ]),
        broken(vec![change(job(7, State::Running, named("x")))]),
        whole(vec![
            change(job(7, State::Running, named("x"))),
            change(exited(8, 0)),
            caught_up(),
            change(exited(7, 9)),
        ]),
    ]);
    let ran = fake.qctl(&["wait", "8", "7"]);
    assert_eq!(ran.code, 9, "{ran:?}");
    assert_eq!(
        ran.stdout,
        "Job 8 x succeeded after 3m12s\n  http://127.0.0.1:7420/jobs/8\n\
         Job 7 x failed (exit 9) after 3m12s\n  http://127.0.0.1:7420/jobs/7\n"
    );
    assert!(
        ran.stderr.contains("away") && ran.stderr.contains("back"),
        "{ran:?}"
    );
}

#[test]
fn waiting_for_what_does_not_exist_or_too_long_ends() {
    let fake = Fake::start();
    fake.script().watches.push_back(whole(vec![caught_up()]));
    let ran = fake.qctl(&["wait", "999"]);
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("999"), "{ran:?}");
    let ran = fake.qctl(&["wait", "7", "--timeout", "50ms"]);
    assert_eq!(ran.code, 75, "{ran:?}");
    assert!(ran.stderr.contains("qctl wait 7"), "{ran:?}");
}

#[test]
fn submit_and_wait_prints_one_document_the_ended_job() {
    let fake = Fake::start();
    fake.script()
        .watches
        .push_back(whole(vec![change(exited(42, 3)), caught_up()]));
    let ran = fake.qctl(&["submit", "--json", "--wait", "--", "x"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let ended = document(&ran.stdout);
    assert_eq!(
        (&ended["state"], &ended["exit_code"]),
        (&json!("failed"), &json!(3))
    );
    assert_eq!(ran.stderr, "");
}

#[test]
fn several_jobs_are_tried_each_and_the_first_refusal_is_the_code() {
    let fake = Fake::start();
    fake.script().jobs = vec![
        job(7, State::Running, named("a")),
        job(9, State::Cancelled, named("b")),
    ];
    let ran = fake.qctl(&["kill", "--grace", "1s", "7", "8", "9"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert_eq!(ran.stdout, "Job 7 is being stopped\nJob 9 is cancelled\n");
    assert!(ran.stderr.contains("there is no job 8"), "{ran:?}");
    assert!(fake.script().asked[0].contains("grace: Some(Duration { seconds: 1"));
}

#[test]
fn edit_sends_only_what_was_given() {
    let fake = Fake::start();
    let spec = v1::JobSpec {
        env: [("A".to_owned(), "1".to_owned())].into(),
        time_limit: Some(prost_types::Duration {
            seconds: 60,
            nanos: 0,
        }),
        ..named("old")
    };
    fake.script().jobs = vec![job(7, State::Held, spec)];
    let ran = fake.qctl(&[
        "edit",
        "7",
        "--env",
        "B=2",
        "--gpus",
        "1",
        "--clear",
        "time-limit",
        "--",
        "new",
    ]);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "Changed job 7: command, demand, env, time limit\n"),
        "{ran:?}"
    );
    let request = fake.script().updated.pop().unwrap();
    assert_eq!(
        request.update_mask.unwrap().paths,
        ["command", "demand", "env", "time_limit"]
    );
    let spec = request.spec.unwrap();
    assert_eq!(
        (spec.env.len(), spec.command, spec.time_limit),
        (2, vec!["new".to_owned()], None)
    );
}

#[test]
fn edit_changes_whatever_submit_can_say_about_a_job() {
    let fake = Fake::start();
    fake.script().jobs = vec![job(7, State::Queued, named("old"))];
    let ran = fake.qctl(&[
        "edit",
        "7",
        "--notify",
        "failure",
        "--log-limit",
        "2M",
        "--contradicted-by",
        "failed",
        "--progress",
        r"(?<percent>\d+)",
        "--warn-signal",
        "TERM",
        "--stop-grace",
        "20s",
        "--pty=false",
        "--artifact",
        "out",
    ]);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (
            0,
            "Changed job 7: artifacts, contradicted by, log limit, notify, progress, pty, stop grace, warn signal\n"
        ),
        "{ran:?}"
    );
    let spec = fake.script().updated.pop().unwrap().spec.unwrap();
    assert_eq!(spec.notify(), v1::job_spec::Notify::Failure);
    assert_eq!((spec.log_limit_bytes, spec.warn_signal), (2 << 20, 15));
    assert_eq!(spec.contradicted_by, "failed");
    assert_eq!(spec.artifacts, ["out"]);
    let help = |command| {
        let text = Fake::start().qctl(&[command, "-h"]).stdout;
        let options = text.split_once("Job options:").unwrap().1.to_owned();
        let options = options.split("\n\n").next().unwrap().to_owned();
        options
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("--"))
            .filter_map(|line| line.split([' ', '[']).next().map(str::to_owned))
            .collect::<std::collections::BTreeSet<_>>()
    };
    let missing: Vec<_> = help("submit").difference(&help("edit")).cloned().collect();
    assert_eq!(missing, ["hold"], "and `qctl hold` does that");
}

fn worker(name: &str) -> v1::Worker {
    v1::Worker {
        name: name.to_owned(),
        hostname: "elsewhere".into(),
        state: v1::worker::State::Online.into(),
        slots: 2,
        slots_taken: 1,
        cpus: 16,
        memory_bytes: 137_438_953_472,
        memory_used_bytes: Some(1_073_741_824),
        load: Some(0.53),
        gpus: vec![
            v1::Gpu {
                name: "NVIDIA H200".into(),
                ..Default::default()
            };
            2
        ],
        running: vec![v1::RunningAttempt {
            job_id: 7,
            attempt: 1,
            name: "pictures".into(),
            progress: Some(v1::Progress {
                done: 12.0,
                total: 30.0,
                unit: "images".into(),
                percent: Some(40.0),
                ..Default::default()
            }),
            ..Default::default()
        }],
        ended_today: 4,
        mean_duration: Some(prost_types::Duration {
            seconds: 75,
            nanos: 0,
        }),
        ..Default::default()
    }
}

#[test]
fn the_only_worker_needs_no_name() {
    let fake = Fake::start();
    let ran = fake.qctl(&["worker", "pause"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    fake.script().workers = vec![worker("box")];
    let ran = fake.qctl(&["worker", "slots", "2"]);
    assert_eq!(ran.stdout, "box has 2 slots now (1 taken)\n", "{ran:?}");
    assert_eq!(
        fake.qctl(&["worker", "drain", "box"]).stdout,
        "box takes no new jobs and drains (1 running job)\n"
    );
    fake.script().workers.push(worker("tower"));
    let ran = fake.qctl(&["worker", "pause"]);
    assert_eq!(
        (ran.code, ran.stderr.contains("box, tower")),
        (2, true),
        "{ran:?}"
    );
    let ran = fake.qctl(&["workers"]);
    insta::assert_snapshot!("workers", ran.stdout);
    let workers = document(&fake.qctl(&["workers", "--json"]).stdout);
    assert_eq!(
        workers["workers"][0]["running"][0]["progress"]["percent"],
        40.0
    );
}

#[test]
fn cleanup_does_not_delete_without_being_told() {
    let fake = Fake::start();
    let ran = fake.qctl(&["cleanup"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains("--yes") && ran.stderr.contains("3 jobs"),
        "{ran:?}"
    );
    assert!(
        !fake
            .script()
            .asked
            .iter()
            .any(|asked| asked.contains("dry_run: false"))
    );
    assert_eq!(
        fake.qctl(&["cleanup", "7", "--dry-run"]).stdout,
        "Would delete 3 jobs and 4.0 KiB of logs\n"
    );
    assert_eq!(
        fake.qctl(&["cleanup", "7", "--yes"]).stdout,
        "Deleted 3 jobs and 4.0 KiB of logs\n"
    );
    assert!(
        fake.script()
            .asked
            .last()
            .unwrap()
            .contains("seconds: 604800")
    );
}

#[test]
fn the_small_commands_say_what_they_did() {
    let fake = Fake::start();
    fake.script().jobs = vec![job(7, State::Held, named("x"))];
    for (args, text) in [
        (
            &["hold", "7"][..],
            "Job 7 is held; let it go on with: qctl release 7\n",
        ),
        (&["release", "7"], "Job 7 is released\n"),
        (
            &["pause", "7"],
            "Job 7 is paused; thaw it with: qctl resume 7\n",
        ),
        (&["resume", "7"], "Job 7 goes on\n"),
        (
            &["delete", "7"],
            "Job 7 is deleted, with its history and logs\n",
        ),
        (&["why", "7"], "It waits behind 2 jobs\n"),
        (
            &["queue", "pause"],
            "The queue is paused: nothing new starts (3 jobs waiting); 1 job runs and will go on. Go on with: qctl queue resume\n",
        ),
        (
            &["queue", "resume"],
            "The queue starts jobs (3 jobs waiting)\n",
        ),
        (
            &["retry", "7"],
            "Submitted job 7  x  (held)\n  http://127.0.0.1:7420/jobs/7\n",
        ),
    ] {
        let ran = fake.qctl(args);
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (0, text),
            "{args:?}: {ran:?}"
        );
        let mut all = vec!["--json"];
        all.extend_from_slice(args);
        document(&fake.qctl(&all).stdout);
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let fake = Fake::start();
    fake.script().jobs = (0..900)
        .map(|id| job(id, State::Queued, named("x")))
        .collect();
    let mut command = fake.command(&["list", "--limit", "1000"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn the_configuration_is_merged_and_shown_without_secrets() {
    let fake = Fake::start();
    fake.file(
        "config/qctl.toml",
        "server = 'lab'\n[servers.lab]\naddress = 'https://lab:7420'\ntoken_file = '/t/lab'\n",
    );
    let ran = fake.qctl(&["--print-config"]);
    insta::assert_snapshot!("print_config", fake.tidy(&ran.stdout));
    let ran = fake.qctl(&["--print-config", "--server", "other:1"]);
    assert!(ran.stdout.contains("other:1"), "{ran:?}");
    fake.file("config/qctl.toml", "sever = 'x'\n");
    let ran = fake.qctl(&["list"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains("qctl.toml") && ran.stderr.contains("sever"),
        "{ran:?}"
    );
}

#[test]
fn without_a_command_the_help_is_shown() {
    let fake = Fake::start();
    let ran = fake.qctl(&[]);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert!(ran.stderr.contains("Usage: qctl"), "{ran:?}");
    assert_eq!(fake.qctl(&["--version"]).code, 0);
}

#[test]
fn help_says_what_there_is() {
    let fake = Fake::start();
    let help = |args: &[&str]| {
        let mut command = fake.command(args);
        command.env("COLUMNS", "100");
        run(command).stdout
    };
    insta::assert_snapshot!("help", help(&["--help"]));
    insta::assert_snapshot!("help_submit", help(&["submit", "--help"]));
    insta::assert_snapshot!("help_logs", help(&["logs", "-h"]));
}
