//! Progress is understood from whatever a job prints.

use serde_json::Value;

use crate::harness::Installation;

/// Runs a shell text that ends with `hold`, which keeps the job running until it is looked at.
fn progress_of(options: &[&str], shell: &str) -> Value {
    let qctl = Installation::start();
    let text = format!("{shell}\nsleep 600");
    let mut args = options.to_vec();
    args.extend_from_slice(&["--shell", &text]);
    let id = qctl.submit(&args);
    qctl.until("progress is known", || {
        let progress = qctl.job(id)["progress"].clone();
        (progress["done"].as_f64().is_some_and(|done| done > 0.0)).then_some(progress)
    })
}

#[test]
fn explicit_reports_by_command_and_by_json_line() {
    let progress = progress_of(&[], "qctl progress 12/30 --unit images");
    assert_eq!(
        (&progress["done"], &progress["total"]),
        (&12.0.into(), &30.0.into()),
        "{progress}"
    );
    assert_eq!(progress["unit"], "images");
    assert_eq!(progress["percent"], 40.0);
    let progress = progress_of(&[], r#"echo '{"done": 3, "total": 4}' > "$QCTL_PROGRESS""#);
    assert_eq!(progress["percent"], 75.0, "{progress}");
}

#[test]
fn counters_pytest_tqdm_osc_and_patterns() {
    let progress = progress_of(&[], "echo '[7/30] img_007.png'");
    assert_eq!(
        (&progress["done"], &progress["total"]),
        (&7.0.into(), &30.0.into()),
        "{progress}"
    );
    let progress = progress_of(
        &[],
        "echo 'collected 412 items'; echo 'tests/test_a.py ....................  [ 37%]'",
    );
    assert_eq!(
        progress["percent"].as_f64().map(f64::round),
        Some(37.0),
        "{progress}"
    );
    let progress = progress_of(
        &[],
        r"printf '\r 42%%|####      | 42/100 [00:10<00:14,  4.00it/s]' >&2",
    );
    assert_eq!(
        (&progress["done"], &progress["total"]),
        (&42.0.into(), &100.0.into()),
        "{progress}"
    );
    let progress = progress_of(&[], r"printf '\033]9;4;1;55\033\\'");
    assert_eq!(progress["percent"], 55.0, "{progress}");
    let progress = progress_of(
        &["--progress", r"epoch (?<done>\d+) of (?<total>\d+)"],
        "echo epoch 3 of 12",
    );
    assert_eq!(
        (&progress["done"], &progress["total"]),
        (&3.0.into(), &12.0.into()),
        "{progress}"
    );
}

#[test]
fn progress_outside_a_job_is_a_clear_error() {
    let qctl = Installation::prepare();
    let told = qctl.qctl(&["progress", "1/2"]).fails();
    assert!(told.contains("job"), "{told}");
    let told = qctl.qctl(&["progress", "many"]).fails();
    assert!(told.contains("many"), "{told}");
}
