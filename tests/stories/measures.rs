//! What jobs and machines use is measured and shown.

use crate::harness::Installation;

#[test]
fn what_a_job_uses_is_shown_while_it_runs_and_after() {
    let qctl = Installation::start();
    // A child of the job's first process does the work.
    let id = qctl.submit(&[
        "--shell",
        "(head -c 200000000 /dev/zero | tail -c 200000000 | while [ ! -e go ]; do :; done) & wait",
    ]);
    let seen = qctl.until("the work of the whole tree is seen", || {
        let job = qctl.job(id);
        let latest = &job["measures"]["latest"];
        let cpus = latest["cpus"].as_f64()?;
        let memory = latest["anonymous"].as_i64()?;
        (cpus > 0.1 && memory > 190_000_000).then(|| latest.clone())
    });
    assert!(seen["processes"].as_i64() >= Some(3), "{seen:#}");
    assert!(seen["gpu_busy"].is_null(), "absent is not zero: {seen:#}");
    let shown = qctl.qctl(&["show", &id.to_string()]).ok();
    assert!(shown.contains("Processors"), "{shown}");
    let machine = qctl.qctl(&["workers"]).ok();
    assert!(machine.contains("free of"), "{machine}");

    qctl.file("go", "");
    qctl.until_ended(id);
    let after = qctl.until("its minutes are stored", || {
        let measures = qctl.job(id)["measures"].clone();
        (measures["latest"].is_null() && measures["most"].is_object()).then_some(measures)
    });
    assert!(
        after["most"]["anonymous"].as_i64() > Some(190_000_000),
        "{after:#}"
    );
    assert!(!after["points"].as_array().unwrap().is_empty());
}
