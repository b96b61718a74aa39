//! Wrong input gets an answer that says what was wrong and what to do, and nothing is half-done.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;

use crate::harness::{Installation, run};

#[test]
fn an_unknown_command_fails_at_once_and_names_the_program() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--", "no-such-program-anywhere", "x"]);
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "failed");
    assert_eq!(job["outcome"]["cause"], "cannot_start", "{job:#}");
    assert_eq!(job["attempt"], 1, "retrying cannot help");
    let told = job["outcome"]["message"].as_str().unwrap();
    assert!(told.contains("no-such-program-anywhere"), "{told}");
}

#[test]
fn a_directory_that_the_worker_lacks_is_an_error_that_names_the_machine() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--cwd", "/no/such/folder", "--", "true"]);
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "failed");
    let told = job["outcome"]["message"].as_str().unwrap();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(
        told.contains("/no/such/folder") && told.contains(host.trim()),
        "{told}"
    );
}

#[test]
fn bad_values_are_refused_with_what_would_be_right() {
    let qctl = Installation::start();
    for (args, words) in [
        (
            vec!["submit", "--time-limit", "soon", "--", "true"],
            vec!["soon", "10m"],
        ),
        (
            vec!["submit", "--time-limit", "90", "--", "true"],
            vec!["90", "s"],
        ),
        (
            vec!["submit", "--memory", "lots", "--", "true"],
            vec!["lots"],
        ),
        (vec!["submit", "--after", "x", "--", "true"], vec!["x"]),
        (
            vec!["submit", "--after", "1:maybe", "--", "true"],
            vec!["maybe"],
        ),
        (vec!["submit", "--slots", "0", "--", "true"], vec!["slots"]),
        (vec!["submit", "--env", "=x", "--", "true"], vec!["env"]),
        (
            vec!["submit", "--name", "two\nlines", "--", "true"],
            vec!["name"],
        ),
        (
            vec![
                "submit",
                "--time-limit",
                "1m",
                "--warn-before",
                "2m",
                "--",
                "true",
            ],
            vec!["warn"],
        ),
        (vec!["submit"], vec!["--"]),
        (vec!["submit", "--after", "999", "--", "true"], vec!["999"]),
        (vec!["show", "999"], vec!["999"]),
        (vec!["show", "abc"], vec!["abc"]),
        (vec!["logs", "999"], vec!["999"]),
        (vec!["cancel", "999"], vec!["999"]),
        (vec!["retry", "999"], vec!["999"]),
        (vec!["wait", "999"], vec!["999"]),
        (vec!["worker", "pause", "nobody"], vec!["nobody"]),
        (vec!["template", "show", "nothing"], vec!["nothing"]),
        (vec!["submit", "--template", "nothing"], vec!["nothing"]),
        (vec!["list", "--state", "happy"], vec!["happy"]),
        (vec!["list", "--page-token", "zzz"], vec!["page"]),
    ] {
        let told = qctl.qctl(&args).fails();
        for word in words {
            assert!(
                told.contains(word),
                "{args:?} should mention {word:?}: {told}"
            );
        }
        assert!(!told.contains("panicked"), "{args:?}: {told}");
    }
    assert_eq!(
        qctl.json(&["list"])["jobs"].as_array().unwrap().len(),
        0,
        "nothing was made"
    );
}

#[test]
fn errors_are_one_json_document_when_asked() {
    let qctl = Installation::start();
    let ran = qctl.qctl(&["--json", "show", "999"]);
    assert_ne!(ran.code, 0);
    let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(error["error"]["reason"], "JOB_NOT_FOUND", "{error}");
}

#[test]
fn without_a_coordinator_every_command_says_how_to_start_one() {
    let qctl = Installation::prepare().env("QCTL_SERVER", "127.0.0.1:1");
    for args in [&["submit", "--", "true"][..], &["list"], &["show", "1"]] {
        let ran = qctl.qctl(args);
        assert_eq!(ran.code, 69, "{ran:?}");
        assert!(
            ran.stderr.contains("127.0.0.1:1") && ran.stderr.contains("qctl up"),
            "{ran:?}"
        );
    }
}

#[test]
fn ten_megabytes_of_arguments_are_carried_or_refused_clearly() {
    let qctl = Installation::start();
    let lines: String = (0..100_000)
        .map(|i| format!("argument number {i} of very many\n"))
        .collect();
    let args: Vec<String> = lines.lines().take(30_000).map(str::to_owned).collect();
    // A command line cannot hold more than the kernel's limit, a batch file can: the worker refuses it.
    let mut command = vec!["true".to_owned()];
    command.extend((0..80).map(|_| "x".repeat(128 * 1024)));
    let batch = serde_json::json!({ "command": command });
    let file = qctl.file("huge.jsonl", format!("{batch}\n"));
    let ran = qctl.qctl(&["--json", "submit", "--batch", file.to_str().unwrap()]);
    if ran.code == 0 {
        let job = qctl.until_ended(1);
        assert_eq!(job["state"], "failed");
        assert_eq!(
            job["outcome"]["cause"], "cannot_start",
            "{}",
            job["outcome"]
        );
    } else {
        assert!(
            ran.stderr.contains("limit") || ran.stderr.contains("large"),
            "{}",
            ran.stderr
        );
    }
    // As many as fit are carried through unharmed.
    let mut command = vec!["printf".to_owned(), "%s\\n".to_owned()];
    command.extend(args.iter().cloned());
    let batch = serde_json::json!({ "command": command });
    let file = qctl.file("many.jsonl", format!("{batch}\n"));
    let ran = qctl
        .qctl(&["--json", "submit", "--batch", file.to_str().unwrap()])
        .ok();
    let job: serde_json::Value = serde_json::from_str(ran.lines().next().unwrap()).unwrap();
    let id = job["id"].as_i64().unwrap();
    assert_eq!(qctl.until_ended(id)["state"], "succeeded");
    let expected: String = args.iter().map(|arg| format!("{arg}\n")).collect();
    assert_eq!(qctl.raw_log(id), expected.as_bytes());
}

#[test]
fn a_full_disk_refuses_submissions_and_loses_nothing() {
    let qctl = Installation::start();
    let before = qctl.submit(&["--hold", "--", "true"]);
    let big = serde_json::json!({ "command": ["true", "y".repeat(100_000)], "hold": true });
    let file = qctl.file("big.jsonl", format!("{big}\n").repeat(40));
    // A file that may not grow stops Postgres like a disk without room, and needs no root: each
    // user may lower the soft limits of his own processes and raise them again.
    let files_may_grow_to = |limit: &str| {
        let postgres = qctl.postgres_pids();
        for pid in &postgres {
            let Ok(process) = std::fs::metadata(format!("/proc/{pid}")) else {
                continue;
            };
            let mut command = std::process::Command::new("prlimit");
            command.args(["--pid", &pid.to_string(), &format!("--fsize={limit}:")]);
            let own = std::fs::metadata("/proc/self").unwrap().uid();
            if process.uid() != own {
                command.uid(process.uid()).gid(process.gid());
            }
            command.output().unwrap();
        }
        !postgres.is_empty()
    };
    // Postgres may have something of its own to write in between, ends by it, and is started again
    // without the limit. Then the submission is acknowledged, and must be kept.
    let mut accepted = 0;
    let ran = qctl.until("a submission is refused", || {
        if !files_may_grow_to("8192") {
            return None;
        }
        let ran = qctl.qctl(&["submit", "--batch", file.to_str().unwrap()]);
        accepted += usize::from(ran.code == 0);
        (ran.code != 0).then_some(ran)
    });
    assert!(
        ran.stderr.contains("error:") && !ran.stderr.contains("panicked"),
        "{ran:?}"
    );
    files_may_grow_to("unlimited");
    qctl.until("the queue answers again", || {
        (qctl.qctl(&["list"]).code == 0).then_some(())
    });
    let list = qctl.json(&["list", "--limit", "1000"]);
    let jobs = list["jobs"].as_array().unwrap();
    assert_eq!(jobs.len(), 1 + 40 * accepted, "all or nothing: {list:#}");
    assert!(jobs.iter().any(|job| job["id"] == before), "{list:#}");
}

#[test]
fn invalid_utf8_and_strange_names_are_carried_through() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--name", "画像抽出 🧪", "--shell", r"printf 'a\377\376b\n'"]);
    let job = qctl.until_ended(id);
    assert_eq!(job["name"], "画像抽出 🧪");
    assert_eq!(qctl.raw_log(id), b"a\xff\xfeb\n");
    let shown = qctl.qctl(&["logs", &id.to_string()]).ok();
    assert!(shown.contains('a') && shown.contains('b'), "{shown:?}");
}

#[test]
fn a_line_of_a_hundred_megabytes_is_kept_whole() {
    let qctl = Installation::start();
    let id = qctl.submit(&[
        "--shell",
        "head -c 100000000 /dev/zero | tr '\\0' x; echo; echo end",
    ]);
    assert_eq!(qctl.until_ended(id)["state"], "succeeded");
    let log = qctl.raw_log(id);
    assert_eq!(log.len(), 100_000_000 + 5);
    assert!(log[..100_000_000].iter().all(|byte| *byte == b'x'));
    assert!(log.ends_with(b"x\nend\n"));
}

#[test]
fn a_home_that_cannot_be_written_is_named() {
    let qctl = Installation::prepare();
    let blocked = qctl.file("a-file", "");
    let mut command = qctl.command("qctl");
    command
        .env("QCTL_HOME", blocked.join("home"))
        .args(["up", "--listen", "127.0.0.1:0"]);
    let told = run(command).fails();
    assert!(told.contains("a-file"), "{told}");
}
