//! Output is kept byte for byte, and read in every way.

use std::io::Read;
use std::process::Stdio;

use crate::harness::Installation;

#[test]
fn streams_tail_since_and_attempts_select_what_is_shown() {
    let qctl = Installation::start();
    let id = qctl.submit(&[
        "--retries", "1", "--shell",
        "for i in 1 2 3; do echo out $i; done; sleep 0.1; echo err >&2; exit $((2 - ${QCTL_ATTEMPT#*.}))",
    ]);
    assert_eq!(qctl.until_ended(id)["state"], "succeeded");
    let id = id.to_string();
    assert_eq!(qctl.qctl(&["logs", &id]).ok(), "out 1\nout 2\nout 3\nerr\n");
    assert_eq!(
        qctl.qctl(&["logs", "--stream", "stderr", &id]).ok(),
        "err\n"
    );
    assert_eq!(
        qctl.qctl(&["logs", "--stream", "stdout", &id]).ok(),
        "out 1\nout 2\nout 3\n"
    );
    assert_eq!(
        qctl.qctl(&["logs", "--tail", "2", &id]).ok(),
        "out 3\nerr\n"
    );
    assert_eq!(
        qctl.qctl(&["logs", "--attempt", "1", "--tail", "1", &id])
            .ok(),
        "err\n"
    );
    assert_eq!(
        qctl.qctl(&["logs", "--since", "1h", &id]).ok(),
        "out 1\nout 2\nout 3\nerr\n"
    );
    let later = (chrono::Utc::now() + chrono::Duration::hours(1)).to_rfc3339();
    assert_eq!(qctl.qctl(&["logs", "--since", &later, &id]).ok(), "");
    let told = qctl.qctl(&["logs", "--attempt", "9", &id]).fails();
    assert!(told.contains('9'), "{told}");
}

#[test]
fn carriage_return_frames_are_collapsed_for_people_and_kept_raw() {
    let qctl = Installation::start();
    let id = qctl.submit(&[
        "--shell",
        r"for i in 1 2 3 4; do printf '\rframe %d' $i; done; printf '\ndone\n'",
    ]);
    qctl.until_ended(id);
    assert_eq!(
        qctl.qctl(&["logs", &id.to_string()]).ok(),
        "frame 4\ndone\n"
    );
    assert_eq!(
        qctl.raw_log(id),
        b"\rframe 1\rframe 2\rframe 3\rframe 4\ndone\n"
    );
}

#[test]
fn a_followed_log_ends_with_the_job_and_has_everything() {
    let qctl = Installation::start();
    let id = qctl.submit(&[
        "--shell",
        "for i in $(seq 200); do echo line $i; sleep 0.005; done",
    ]);
    let ran = qctl.qctl(&["logs", "-f", &id.to_string()]);
    let expected: String = (1..=200).map(|i| format!("line {i}\n")).collect();
    assert_eq!(ran.ok(), expected);
}

#[test]
fn a_flood_is_stored_whole_and_ends_in_order() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--shell", "seq 1 3000000"]);
    assert_eq!(qctl.until_ended(id)["state"], "succeeded");
    let log = qctl.raw_log(id);
    let mut expected = String::new();
    for i in 1..=3_000_000 {
        expected.push_str(&i.to_string());
        expected.push('\n');
    }
    assert!(
        log == expected.as_bytes(),
        "{} of {} bytes",
        log.len(),
        expected.len()
    );
    let tail = qctl.qctl(&["logs", "--tail", "3", &id.to_string()]).ok();
    assert_eq!(tail, "2999998\n2999999\n3000000\n");
}

#[test]
fn following_starts_before_the_job_does() {
    let qctl = Installation::start();
    let id = qctl.submit(&["--hold", "--", "echo", "at last"]);
    let mut command = qctl.command("qctl");
    command
        .args(["logs", "-f", &id.to_string()])
        .stdout(Stdio::piped());
    let mut follower = command.spawn().unwrap();
    qctl.qctl(&["release", &id.to_string()]).ok();
    let mut text = String::new();
    follower
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert!(follower.wait().unwrap().success());
    assert_eq!(text, "at last\n");
}
