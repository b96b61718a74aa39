//! GPUs that fail, hang, or are not there: F35 and F36, with a stand-in for the driver's library.

use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::Installation;
use crate::harness::nvml::Gpus;
use crate::notices::{prepared, settled, until_shown, without_times};
use crate::phone::Phone;

const A: &str = "GPU-aaaaaaaa-0000-4000-8000-000000000000";
const B: &str = "GPU-bbbbbbbb-0000-4000-8000-000000000000";
const WELL: &str = "name=H200 memory=8000000000 used=1000000000 busy=50 temperature=61 ecc=0";

fn outcome(job: &Value) -> (&str, &str) {
    let outcome = &job["outcome"];
    (
        outcome["kind"].as_str().unwrap_or_default(),
        outcome["cause"].as_str().unwrap_or_default(),
    )
}

/// Waits until the worker is connected with so many GPUs.
fn until_gpus(qctl: &Installation, count: usize) {
    qctl.until(&format!("the worker has {count} GPUs"), || {
        let workers = qctl.json(&["workers"]);
        let gpus = workers["workers"][0]["gpus"].as_array()?.len();
        (gpus == count).then_some(())
    });
}

#[test]
fn f35_a_gpu_that_dies_ends_its_job_and_no_other_and_is_told_once() {
    let phone = Phone::start();
    let both = format!("gpu {A} {WELL}\ngpu {B} {WELL}\n");
    let (qctl, gpus) = Gpus::of(prepared(&phone, ""), &both);
    qctl.up(&["--slots", "2"]).ok();
    until_gpus(&qctl, 2);
    let train = ["--gpus", "1", "--retries", "2", "--name"];
    let submit = |name: &str| {
        let mut args = train.to_vec();
        args.extend([
            name,
            "--shell",
            "echo $CUDA_VISIBLE_DEVICES; exec sleep 600",
        ]);
        qctl.submit(&args)
    };
    let (first, second) = (submit("train"), submit("other"));
    let on = |id: i64| {
        qctl.until(&format!("job {id} tells its GPU"), || {
            let text = String::from_utf8(qctl.raw_log(id)).unwrap();
            text.contains('\n').then(|| text.trim().to_owned())
        })
    };
    let (hit, other) = match on(first).as_str() {
        A => (first, second),
        _ => (second, first),
    };
    let name = if hit == first { "train" } else { "other" };

    gpus.say(&format!("gpu {A} {WELL} lost=1\ngpu {B} {WELL}\n"));
    let died = Instant::now();
    let job = qctl.until_ended(hit);
    assert!(died.elapsed().as_secs() < 30, "{:?}", died.elapsed());
    assert_eq!(outcome(&job), ("failed", "gpu_fault"), "{job:#}");
    assert_eq!(job["attempt"], json!(1), "it is never retried by itself");
    let message = job["outcome"]["message"].as_str().unwrap();
    assert_eq!(
        message,
        "its GPU failed: the driver has lost H200 (GPU-aaaaaaaa)"
    );
    let shown = until_shown(&qctl, &phone, 1);
    let workers = qctl.json(&["workers"]);
    let worker = workers["workers"][0]["name"].as_str().unwrap();
    assert_eq!(shown[0].title, format!("Job {hit} “{name}” failed"));
    assert_eq!(
        without_times(&shown[0].message),
        format!(
            "On {worker} after N s: its graphics card H200 (GPU-aaaaaaaa) has failed: the driver has lost it.\n\
             Last line: {A}\n\
             It is not tried again.\n\
             To look: qctl logs {hit}. To run it again: qctl retry {hit}"
        )
    );
    assert_eq!(qctl.job(other)["state"], "running", "the other GPU is well");
    settled(&qctl);
    assert_eq!(phone.shown().len(), 1, "{:#?}", phone.shown());
    phone.assert_rules_kept();

    // A serious Xid of the other one ends the other job.
    gpus.say(&format!("{both}xid 79 {B} 1\n"));
    let job = qctl.until_ended(other);
    assert_eq!(outcome(&job), ("failed", "gpu_fault"), "{job:#}");
    let message = job["outcome"]["message"].as_str().unwrap();
    assert!(message.ends_with("(GPU-bbbbbbbb): Xid 79"), "{message}");
}
