//! From nothing to a finished job.

use crate::harness::Installation;

#[test]
fn a_command_that_works_here_works_as_a_job() {
    let qctl = Installation::start();
    let tool = qctl.file(
        "bin/greet",
        "#!/bin/sh\necho \"hello from $PWD in $VIRTUAL_ENV\"\n",
    );
    std::process::Command::new("chmod")
        .arg("+x")
        .arg(&tool)
        .status()
        .unwrap();
    let work = qctl.folder().join("work");
    std::fs::create_dir(&work).unwrap();

    let mut command = qctl.command("qctl");
    let path = format!(
        "{}:{}",
        tool.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    command
        .current_dir(&work)
        .env("PATH", path)
        .env("VIRTUAL_ENV", "/venvs/mine");
    command.args(["submit", "--wait", "--", "greet"]);
    crate::harness::run(command).ok();

    let log = String::from_utf8(qctl.raw_log(1)).unwrap();
    assert_eq!(
        log,
        format!("hello from {} in /venvs/mine\n", work.display())
    );
}

#[test]
fn a_finished_job_tells_everything_about_itself() {
    let qctl = Installation::start();
    let id = qctl.submit(&[
        "--name",
        "count",
        "--tracker",
        "INTG-088",
        "--",
        "sh",
        "-c",
        "echo 1",
    ]);
    let job = qctl.until_ended(id);

    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(job["name"], "count");
    assert_eq!(job["command"], serde_json::json!(["sh", "-c", "echo 1"]));
    assert_eq!(job["cwd"], qctl.folder().to_str().unwrap());
    assert_eq!(job["tracker"], "INTG-088");
    assert_eq!(job["exit_code"], 0);
    assert_eq!(job["attempt"], 1);
    assert_eq!(job["retries_left"], 2);
    assert_eq!(job["resumes_left"], 3);
    assert!(
        job["worker"]
            .as_str()
            .is_some_and(|worker| !worker.is_empty())
    );
    for time in ["created_at", "started_at", "ended_at"] {
        assert!(
            job[time].as_str().is_some_and(|text| text.ends_with('Z')),
            "{time}: {job:#}"
        );
    }
    assert!(
        job["url"]
            .as_str()
            .is_some_and(|url| url.contains(&format!("/jobs/{id}")))
    );
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1));
    let kinds: Vec<_> = job["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["kind"].clone())
        .collect();
    assert_eq!(kinds.first().unwrap(), "submitted");
    assert!(kinds.iter().any(|kind| kind == "started"), "{kinds:?}");
}

#[test]
fn waiting_commands_end_with_the_jobs_own_code() {
    let qctl = Installation::start();
    let ran = qctl.qctl(&[
        "submit",
        "--wait",
        "--retries",
        "0",
        "--",
        "sh",
        "-c",
        "exit 7",
    ]);
    assert_eq!(ran.code, 7, "{ran:?}");
    assert_eq!(qctl.qctl(&["wait", "1"]).code, 7);
    let ran = qctl.qctl(&[
        "submit",
        "--wait",
        "--retries",
        "0",
        "--",
        "sh",
        "-c",
        "kill -TERM $$",
    ]);
    assert_eq!(ran.code, 128 + 15, "{ran:?}");
    assert_eq!(qctl.qctl(&["submit", "--wait", "--", "true"]).code, 0);
}

#[test]
fn an_instance_is_reached_by_address_and_token_from_elsewhere() {
    let qctl = Installation::start();
    let address = std::fs::read_to_string(qctl.home().join("data/address")).unwrap();
    let mut command = qctl.command("qctl");
    command
        .env("QCTL_HOME", qctl.folder().join("elsewhere"))
        .env("QCTL_SERVER", address.trim())
        .env("QCTL_TOKEN_FILE", qctl.home().join("data/token"))
        .args(["status"]);
    crate::harness::run(command).ok();

    let mut command = qctl.command("qctl");
    command
        .env("QCTL_HOME", qctl.folder().join("elsewhere"))
        .env("QCTL_SERVER", address.trim())
        .env("QCTL_TOKEN_FILE", qctl.file("wrong-token", "not-it"))
        .args(["list"]);
    let told = crate::harness::run(command).fails();
    assert!(told.contains("token"), "{told}");
}
