//! GPUs that fail, hang, or are not there: F35 and F36, with a stand-in for the driver's library.

use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::invariants::Tables;
use crate::harness::nvml::Gpus;
use crate::harness::{Installation, is_alive, kill};
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
    // One tells no memory and a third has no UUID; neither of these two tells Xids. That harms nobody.
    let odd = "deaf=1 name=H200 memory=none";
    let both = format!("gpu {A} {odd}\ngpu {B} {WELL}\ngpu GPU-c nameless=1 deaf=1\n");
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

    gpus.say(&both.replace("deaf=1 name", "lost=1 name"));
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

/// The worker, as `workers --json` has it.
fn worker(qctl: &Installation) -> Value {
    qctl.json(&["workers"])["workers"][0].clone()
}

#[test]
fn f35_a_gpu_that_fails_its_probe_is_left_out_until_it_passes_one() {
    let phone = Phone::start();
    let unfit = format!("gpu {A} {WELL} retired=1\n");
    let (qctl, gpus) = Gpus::of(prepared(&phone, ""), &unfit);
    qctl.up(&[]).ok();
    let name = worker(&qctl)["name"].as_str().unwrap().to_owned();
    let shown = until_shown(&qctl, &phone, 1);
    assert_eq!(
        shown[0].title,
        format!("A graphics card of {name} does not work")
    );
    assert!(shown[0].message.contains("needs a reset"), "{shown:#?}");
    let fault = worker(&qctl)["gpus"][0]["fault"].clone();
    assert_eq!(fault["kind"], "unfit", "{fault:#}");
    let table = qctl.qctl(&["workers"]).ok();
    assert!(table.contains("gets no job"), "{table}");

    let id = qctl.submit(&["--gpus", "1", "--shell", "echo on $CUDA_VISIBLE_DEVICES"]);
    let other = qctl.submit(&["true"]);
    assert_eq!(qctl.until_ended(other)["state"], "succeeded");
    assert_eq!(qctl.job(id)["state"], "queued");
    let why = qctl.qctl(&["why", &id.to_string()]).ok();
    assert!(why.contains("1 GPU that does not work"), "{why}");

    gpus.say(&format!("gpu {A} {WELL}\n"));
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(
        String::from_utf8(qctl.raw_log(id)).unwrap(),
        format!("on {A}\n")
    );
    let shown = until_shown(&qctl, &phone, 2);
    assert_eq!(
        shown[1].title,
        format!("A graphics card of {name} works again")
    );
    settled(&qctl);
    assert_eq!(phone.shown().len(), 2, "{:#?}", phone.shown());
}

#[test]
fn f22_a_killed_agents_probe_computes_beside_no_job() {
    let gpu = format!("gpu {A} {WELL}\n");
    let (qctl, _gpus) = Gpus::of(Installation::prepare(), &gpu);
    let pids = qctl.folder().join("probe");
    let script = format!(
        "echo $$ >> '{0}'; test -e '{0}.well' || sleep 1000; true",
        pids.display()
    );
    let qctl = qctl.env("QCTL_GPU_PROBE", &script);
    qctl.up(&[]).ok();
    let id = qctl.submit(&["--gpus", "1", "echo", "ran"]);
    let first: i32 = qctl.until("the GPU is probed", || {
        let text = std::fs::read_to_string(&pids).ok()?;
        text.lines().next()?.parse().ok()
    });
    qctl.file("probe.well", "");
    for pid in qctl.agents() {
        kill(pid, Signal::KILL);
    }
    qctl.up(&[]).ok();
    assert_eq!(qctl.until_ended(id)["state"], "succeeded");
    assert!(
        !is_alive(first),
        "it was ended before the next agent took a job"
    );
}

#[test]
fn f35_a_gpu_that_fails_one_job_after_the_other_rests_until_a_person_trusts_it() {
    let phone = Phone::start();
    let (qctl, _gpus) = Gpus::of(prepared(&phone, ""), &format!("gpu {A} {WELL}\n"));
    qctl.up(&[]).ok();
    until_gpus(&qctl, 1);
    let broken = "echo 'CUDA error: no CUDA-capable device is detected'; exit 1";
    let submit = |line: &str| qctl.submit(&["--gpus", "1", "--notify", "never", "--shell", line]);
    let (first, second) = (submit(broken), submit(broken));
    let next = submit("echo on $CUDA_VISIBLE_DEVICES");
    for id in [first, second] {
        assert_eq!(outcome(&qctl.until_ended(id)), ("failed", "gpu_fault"));
    }
    let shown = until_shown(&qctl, &phone, 1);
    let name = worker(&qctl)["name"].as_str().unwrap().to_owned();
    assert_eq!(
        shown[0].title,
        format!("A graphics card of {name} does not work")
    );
    let said = "two jobs in a row failed on it, though its driver calls it well";
    assert!(shown[0].message.contains(said), "{shown:#?}");
    assert_eq!(worker(&qctl)["gpus"][0]["fault"]["kind"], "fails_jobs");
    let table = qctl.qctl(&["workers"]).ok();
    assert!(table.contains("gets no job"), "{table}");
    let why = qctl.qctl(&["why", &next.to_string()]).ok();
    assert!(why.contains("two jobs in a row failed on it"), "{why}");
    assert_eq!(qctl.job(next)["state"], "queued");

    qctl.qctl(&["worker", "resume"]).ok();
    let job = qctl.until_ended(next);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    settled(&qctl);
    assert_eq!(phone.shown().len(), 1, "{:#?}", phone.shown());
    phone.assert_rules_kept();
}

#[test]
fn f36_a_driver_that_hangs_is_told_and_harms_neither_heartbeats_nor_jobs() {
    let phone = Phone::start();
    // It tells neither temperature nor errors, and its memory figures are nonsense.
    let odd = format!("gpu {A} name=Odd memory=garbage used=garbage busy=0 temperature=none\n");
    let prepared = prepared(&phone, "").env("QCTL_GPU_DEADLINE", "1s");
    // The driver comes up after the worker.
    let (qctl, gpus) = Gpus::of(prepared, "init unknown\n");
    qctl.up(&["--slots", "2"]).ok();
    until_gpus(&qctl, 0);
    gpus.say(&odd);
    until_gpus(&qctl, 1);
    let id = qctl.submit(&[
        "--gpus",
        "1",
        "--shell",
        "until [ -e go ]; do sleep 0.1; done",
    ]);
    qctl.until_state(id, "running");
    let latest = qctl.until("the driver was asked", || {
        let latest = worker(&qctl)["gpus"][0]["latest"].clone();
        latest.is_object().then_some(latest)
    });
    assert_eq!(latest["busy"], json!(0.0), "that was said");
    for absent in ["memory_used", "temperature", "uncorrected_errors"] {
        assert!(
            latest[absent].is_null(),
            "not supported is not zero: {latest:#}"
        );
    }
    assert_eq!(worker(&qctl)["gpu_driver"], "read");

    gpus.say(&format!("{odd}hang nvmlDevice\n"));
    qctl.until("the driver counts as hung", || {
        let now = worker(&qctl);
        let seen: chrono::DateTime<chrono::Utc> = now["last_seen"].as_str()?.parse().unwrap();
        let silent = chrono::Utc::now() - seen;
        assert!(silent.num_seconds() < 10, "heartbeats are on time: {now:#}");
        (now["gpu_driver"] == "hung").then_some(())
    });
    let name = worker(&qctl)["name"].as_str().unwrap().to_owned();
    let shown = until_shown(&qctl, &phone, 1);
    assert_eq!(
        shown[0].title,
        format!("The graphics driver of {name} does not answer")
    );
    assert!(worker(&qctl)["gpus"][0]["latest"].is_null());
    let table = qctl.qctl(&["workers"]).ok();
    assert!(table.contains("driver does not answer"), "{table}");
    let waits = qctl.submit(&["--gpus", "1", "true"]);
    assert_eq!(
        qctl.job(id)["state"],
        "running",
        "losing sight is not failing"
    );
    qctl.file("go", "");
    assert_eq!(qctl.until_ended(id)["state"], "succeeded");
    assert_eq!(qctl.job(waits)["state"], "queued", "nothing starts there");

    gpus.say(&odd.replace("garbage", "8000000000"));
    assert_eq!(qctl.until_ended(waits)["state"], "succeeded");
    let shown = until_shown(&qctl, &phone, 2);
    assert_eq!(
        shown[1].title,
        format!("The graphics driver of {name} answers again")
    );
    settled(&qctl);
    assert_eq!(phone.shown().len(), 2, "{:#?}", phone.shown());
}

#[test]
fn f36_without_a_driver_gpus_are_absent_and_not_zero() {
    let (qctl, _) = Gpus::of(Installation::prepare(), "init absent\n");
    qctl.up(&[]).ok();
    let id = qctl.submit(&["--shell", "until [ -e go ]; do sleep 0.1; done"]);
    let seen = qctl.until("the machine was looked at", || {
        let now = worker(&qctl);
        now["gpu_driver"].is_string().then_some(now)
    });
    assert_eq!(seen["gpu_driver"], "absent");
    assert_eq!(seen["gpus"], json!([]));
    let latest = qctl.until("the job was looked at", || {
        let latest = qctl.job(id)["measures"]["latest"].clone();
        latest.is_object().then_some(latest)
    });
    assert!(latest["gpu_busy"].is_null(), "{latest:#}");
    let wants = qctl.submit(&["--gpus", "1", "true"]);
    let why = qctl.qctl(&["why", &wants.to_string()]).ok();
    assert!(why.contains("1 GPU"), "{why}");
    qctl.file("go", "");
    qctl.until_ended(id);
    assert_eq!(qctl.job(wants)["state"], "queued");
}

#[test]
fn a_job_that_computes_without_its_gpu_is_stopped_and_told_once_and_a_busy_one_is_left_alone() {
    let phone = Phone::start();
    let idle = WELL.replace("busy=50", "busy=0");
    let both = format!("gpu {A} {idle}\ngpu {B} {WELL}\n");
    let (qctl, gpus) = Gpus::of(prepared(&phone, ""), &both);
    qctl.up(&["--slots", "2"]).ok();
    until_gpus(&qctl, 2);
    // Several processes, so that together they compute on a machine that is full of tests as well.
    let computes = format!(
        "echo $CUDA_VISIBLE_DEVICES; [ $CUDA_VISIBLE_DEVICES = {A} ] && count='1 2 3 4 5 6'; \
         for i in $count; do while :; do :; done & done; while :; do :; done"
    );
    let submit = |more: &[&str]| {
        let mut args = vec!["--name", "train", "--gpus", "1", "--retries", "2"];
        args.extend(more);
        args.extend(["--shell", &computes]);
        qctl.submit(&args)
    };
    let ids = [(); 2].map(|()| submit(&["--gpu-idle", "5s"]));
    let on = |id: i64| {
        qctl.until(&format!("job {id} tells its GPU"), || {
            let text = String::from_utf8(qctl.raw_log(id)).unwrap();
            text.contains('\n').then(|| text.trim().to_owned())
        })
    };
    let [unused, busy] = match on(ids[0]).as_str() {
        A => ids,
        _ => [ids[1], ids[0]],
    };
    let job = qctl.until_ended(unused);
    assert_eq!(outcome(&job), ("failed", "gpu_fallback"), "{job:#}");
    assert_eq!(job["attempt"], json!(1), "it is never retried by itself");
    let message = job["outcome"]["message"].as_str().unwrap();
    // The stand-in tells of no processes, so the card's own figure counts.
    let (before, after) = message.split_once(" seconds ").unwrap();
    assert!(
        before.starts_with(
            "stopped because it computed without its GPU: it was given H200 (GPU-aaaaaaaa) and has \
             not used it for "
        ),
        "{message}"
    );
    assert!(
        after.contains("which processes use it is not told there"),
        "{message}"
    );
    let shown = until_shown(&qctl, &phone, 1);
    assert_eq!(shown[0].title, format!("Job {unused} “train” failed"));
    assert!(
        shown[0]
            .message
            .contains("it was given a graphics card and did not use it for "),
        "{shown:#?}"
    );
    assert_eq!(
        qctl.job(busy)["state"],
        "running",
        "it was looked at as often"
    );
    qctl.qctl(&["cancel", &busy.to_string()]).ok();
    qctl.until_ended(busy);

    // Where nobody sees whether a GPU works, nobody judges, and the job's record says so.
    gpus.say(
        &both
            .replace("busy=0", "busy=none")
            .replace("busy=50", "busy=none"),
    );
    qctl.until("the use of the GPUs cannot be read any more", || {
        let worker = worker(&qctl);
        let gpus = worker["gpus"].as_array()?;
        let hidden = |gpu: &Value| gpu["latest"].is_object() && gpu["latest"]["busy"].is_null();
        gpus.iter().all(hidden).then_some(())
    });
    let unseen = submit(&["--gpu-idle", "5s"]);
    let off = submit(&["--gpu-idle", "off"]);
    for (id, notes) in [(unseen, 1), (off, 0)] {
        qctl.until_state(id, "running");
        let shown = qctl.until(&format!("job {id} says what is not enforced"), || {
            let shown = qctl.qctl(&["show", &id.to_string()]).ok();
            shown.contains("CUDA_VISIBLE_DEVICES;").then_some(shown)
        });
        assert_eq!(
            shown.matches("whether the job uses its GPUs").count(),
            notes,
            "{shown}"
        );
    }
    let shown = qctl.qctl(&["show", &unseen.to_string()]).ok();
    assert!(shown.contains("5s without using its GPUs"), "{shown}");
    let shown = qctl.qctl(&["show", &off.to_string()]).ok();
    assert!(shown.contains("may leave its GPUs unused"), "{shown}");
    let held = submit(&["--hold", "--gpu-idle", "5s"]);
    qctl.qctl(&["edit", &held.to_string(), "--gpu-idle", "1h"])
        .ok();
    assert_eq!(qctl.job(held)["gpu_idle"], json!(3600.0));
    qctl.qctl(&["edit", &held.to_string(), "--clear", "gpu-idle"])
        .ok();
    assert!(qctl.job(held)["gpu_idle"].is_null());
    for id in [unseen, off, held] {
        qctl.qctl(&["cancel", &id.to_string()]).ok();
    }
    settled(&qctl);
    assert_eq!(phone.shown().len(), 1, "{:#?}", phone.shown());
}

#[test]
fn a_job_whose_items_take_many_times_longer_than_before_is_stopped_where_its_gpu_hardly_works() {
    let phone = Phone::start();
    let hardly = WELL.replace("busy=50", "busy=2");
    let (qctl, _) = Gpus::of(
        prepared(&phone, ""),
        &format!("gpu {A} {hardly}\ngpu {B} {WELL}\n"),
    );
    qctl.up(&["--slots", "2"]).ok();
    until_gpus(&qctl, 2);
    let counts = "echo $CUDA_VISIBLE_DEVICES; \
                  for i in 1 2 3 4; do while [ -e slow ]; do :; done & done; i=0; \
                  while [ $i -lt 1200 ]; do i=$((i + 1)); echo [$i/1200]; \
                  if [ -e slow ]; then sleep 1; fi; done; \
                  until [ -e go ]; do sleep 0.1; done";
    let submit = || {
        qctl.submit(&[
            "--name",
            "train",
            "--gpus",
            "1",
            "--gpu-idle",
            "5s",
            "--shell",
            counts,
        ])
    };
    let earlier = submit();
    let tables = Tables::of(&qctl);
    let stored = format!(
        "select l.fence from attempts_live l join attempts a using (fence)
         where a.job_id = {earlier} and (l.progress ->> 'done')::float = 1200"
    );
    // It goes on only then, so that nothing is written of its progress any more.
    qctl.until("its last count is stored", || {
        (!tables.rows(&stored).unwrap().is_empty()).then_some(())
    });
    qctl.file("go", "");
    assert_eq!(qctl.until_ended(earlier)["state"], "succeeded");
    // As if it had run for the minute that it takes to be a measure, at one pace.
    let lasted = format!("update attempts set duration_us = 60000000 where job_id = {earlier}");
    assert!(tables.change(&lasted).unwrap());
    let pace = format!(
        "update attempts_live l set progress = jsonb_set(l.progress, '{{rate}}', '20')
         from attempts a where a.fence = l.fence and a.job_id = {earlier}"
    );
    assert!(tables.change(&pace).unwrap());

    qctl.file("slow", "");
    let ids = [(); 2].map(|()| submit());
    let on = |id: i64| {
        qctl.until(&format!("job {id} tells its GPU"), || {
            let text = String::from_utf8(qctl.raw_log(id)).unwrap();
            Some(text.split_once('\n')?.0.to_owned())
        })
    };
    let [slow, used] = match on(ids[0]).as_str() {
        A => ids,
        _ => [ids[1], ids[0]],
    };
    let job = qctl.until_ended(slow);
    assert_eq!(outcome(&job), ("failed", "gpu_fallback"), "{job:#}");
    assert_eq!(job["attempt"], json!(1), "it is never retried by itself");
    let message = job["outcome"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("stopped because it computed as if without its GPU: ")
            && message.ends_with(" for each item, 0.050 in earlier runs"),
        "{message}"
    );
    let shown = until_shown(&qctl, &phone, 1);
    assert_eq!(shown[0].title, format!("Job {slow} “train” failed"));
    assert!(
        shown[0]
            .message
            .contains(" times as long for an item as it did before"),
        "{shown:#?}"
    );
    assert_eq!(
        qctl.job(used)["state"],
        "running",
        "as slow, but with its GPU"
    );
    qctl.qctl(&["cancel", &used.to_string()]).ok();
    qctl.until_ended(used);
    settled(&qctl);
    assert_eq!(phone.shown().len(), 1, "{:#?}", phone.shown());
}
