//! Many jobs in one transaction.

use crate::harness::Installation;

#[test]
fn a_batch_is_submitted_whole_with_dependencies_inside() {
    let qctl = Installation::start();
    let file = qctl.file(
        "jobs.jsonl",
        concat!(
            r#"{"command": ["echo", "one"], "name": "first", "labels": {"part": "1"}}"#,
            "\n",
            r#"{"shell": "echo two", "after": [-1], "tracker": "INTG-088"}"#,
            "\n",
        ),
    );
    let text = qctl
        .qctl(&["--json", "submit", "--batch", file.to_str().unwrap()])
        .ok();
    let jobs: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(jobs.len(), 2, "one line a job: {text}");
    let second = jobs[1]["id"].as_i64().unwrap();
    assert_eq!(qctl.until_ended(second)["state"], "succeeded");
    assert_eq!(qctl.raw_log(second), b"two\n");
}

#[test]
fn a_batch_broken_on_line_seven_submits_nothing_and_says_where() {
    let qctl = Installation::start();
    let good = "{\"command\": [\"true\"]}\n";
    for (bad, word) in [
        ("{\"command\": [\"true\"", "7"),
        ("{\"command\": []}", "command"),
        ("{\"comand\": [\"true\"]}", "comand"),
        (
            "{\"command\": [\"true\"], \"time_limit\": \"soon\"}",
            "time_limit",
        ),
        ("{\"command\": [\"true\"], \"cwd\": \"relative\"}", "cwd"),
    ] {
        let file = qctl.file("broken.jsonl", format!("{}{bad}\n{good}", good.repeat(6)));
        let told = qctl
            .qctl(&["submit", "--batch", file.to_str().unwrap()])
            .fails();
        assert!(told.contains(":7") && told.contains(word), "{bad}: {told}");
    }
    assert_eq!(qctl.json(&["list"])["jobs"].as_array().unwrap().len(), 0);
}

#[test]
fn a_repeated_batch_makes_no_second_set() {
    let qctl = Installation::start();
    let file = qctl.file("jobs.jsonl", "{\"command\": [\"true\"]}\n".repeat(5));
    let args = [
        "--json",
        "submit",
        "--request-id",
        "nightly-7",
        "--batch",
        file.to_str().unwrap(),
    ];
    let first = qctl.qctl(&args).ok();
    let second = qctl.qctl(&args).ok();
    let ids = |text: &str| -> Vec<i64> {
        text.lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["id"]
                    .as_i64()
                    .unwrap()
            })
            .collect()
    };
    assert_eq!(ids(&first), ids(&second));
    assert_eq!(qctl.json(&["list"])["jobs"].as_array().unwrap().len(), 5);
}
