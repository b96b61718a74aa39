//! Named jobs with defaults.

use crate::harness::{Installation, run};

#[test]
fn shipped_templates_are_listed_and_shown() {
    let qctl = Installation::start();
    let list = qctl.qctl(&["template", "list"]).ok();
    assert!(
        list.contains("pytest") && list.contains("extract"),
        "{list}"
    );
    let shown = qctl.qctl(&["template", "show", "pytest"]).ok();
    assert!(shown.contains("command"), "{shown}");
}

#[test]
fn a_users_template_wins_and_explicit_options_win_over_it() {
    let qctl = Installation::start();
    qctl.file(
        "home/config/templates.toml",
        "[template.greet]\ndescription = \"Says hello\"\ncommand = [\"echo\", \"hello\", \"{args}\"]\n\
         default_args = [\"world\"]\nretries = 0\ntime_limit = \"5m\"\nlabels = { kind = \"greeting\" }\n\
         env = { MOOD = \"good\" }\n",
    );
    let id = qctl.submit(&["--template", "greet"]);
    let job = qctl.until_ended(id);
    assert_eq!(qctl.raw_log(id), b"hello world\n");
    assert_eq!(job["template"], "greet", "{job:#}");
    assert_eq!(job["retries_left"], 0);
    assert_eq!(job["labels"]["kind"], "greeting");
    let id = qctl.submit(&["--template", "greet", "--retries", "1", "you", "two"]);
    let job = qctl.until_ended(id);
    assert_eq!(qctl.raw_log(id), b"hello you two\n");
    assert_eq!(job["retries_left"], 1);
}

#[test]
fn the_workspace_is_explicit_then_environment_then_project_then_template() {
    let qctl = Installation::start();
    for name in ["explicit", "environment", "project", "template"] {
        std::fs::create_dir(qctl.folder().join(name)).unwrap();
    }
    let path = |name: &str| qctl.folder().join(name).display().to_string();
    qctl.file(
        "home/config/templates.toml",
        format!(
            "[template.where]\ncommand = [\"echo\", \"{{workspace}}\"]\nworkspace = \"{}\"\n",
            path("template")
        ),
    );
    let said = |env: Option<&str>, options: &[&str]| {
        let mut command = qctl.command("qctl");
        command
            .args(["--json", "submit", "--template", "where"])
            .args(options);
        if let Some(env) = env {
            command.env("TRACKER_WORKSPACE", env);
        }
        let text = run(command).ok();
        let job: serde_json::Value = serde_json::from_str(&text).unwrap();
        let id = job["id"].as_i64().unwrap();
        qctl.until_ended(id);
        String::from_utf8(qctl.raw_log(id))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(said(None, &[]), path("template"));
    qctl.file(
        ".qctl.toml",
        format!("workspace = \"{}\"\n", path("project")),
    );
    assert_eq!(said(None, &[]), path("project"));
    assert_eq!(said(Some(&path("environment")), &[]), path("environment"));
    let explicit = path("explicit");
    assert_eq!(
        said(Some(&path("environment")), &["--workspace", &explicit]),
        explicit
    );
}

#[test]
fn a_placeholder_without_a_value_says_how_to_give_one() {
    let qctl = Installation::start();
    let told = qctl
        .qctl(&["submit", "--template", "extract", "--batch"])
        .fails();
    assert!(told.contains("workspace"), "{told}");
}
