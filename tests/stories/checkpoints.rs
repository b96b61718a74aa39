//! F32, F39 and what else a published checkpoint promises.

use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::worker::Worker;
use crate::harness::{Installation, invariants, kill};

/// Writes a state, publishes it, and says so; then goes on until it is killed. Resumed, it prints
/// what it finds.
fn script(qctl: &Installation, publish: &str) -> String {
    let qctl = qctl.bin().join("qctl");
    format!(
        "QCTL={}; if [ -n \"$QCTL_RESUME_FROM\" ]; then cat $QCTL_RESUME_FROM/state; exit; fi; \
         {publish}; echo ready; exec sleep 600",
        qctl.display()
    )
}

fn until_ready(qctl: &Installation, id: i64) {
    qctl.until("the job has published", || {
        qctl.raw_log(id).ends_with(b"ready\n").then_some(())
    });
}

fn checkpoints(qctl: &Installation, id: i64) -> Vec<Value> {
    let listed = qctl.json(&["checkpoints", &id.to_string()]);
    listed["checkpoints"].as_array().unwrap().clone()
}

/// Waits until so many are listed, each with its hash where its contents are kept.
fn until_hashed(qctl: &Installation, id: i64, count: usize) -> Vec<Value> {
    qctl.until("the checkpoints are hashed", || {
        let listed = checkpoints(qctl, id);
        let hashed = |listed: &Value| listed["state"] != "kept" || listed["hash"] != "";
        (listed.len() == count && listed.iter().all(hashed)).then_some(listed)
    })
}

fn kill_shims(qctl: &Installation) {
    for shim in qctl.shims() {
        kill(shim, Signal::KILL);
    }
}

fn sentences(qctl: &Installation, id: i64, kind: &str) -> Vec<String> {
    let history = qctl.json(&["history", &id.to_string(), "-n", "1000"]);
    let events = history["events"].as_array().unwrap();
    let of_kind = events.iter().filter(|event| event["kind"] == kind);
    of_kind
        .map(|event| event["message"].as_str().unwrap().to_owned())
        .collect()
}

fn address(qctl: &Installation) -> String {
    let address = std::fs::read_to_string(qctl.home().join("data/address")).unwrap();
    address.trim().to_owned()
}

/// An installation whose coordinator copies nothing over 1 MiB: a copy would mend what is damaged.
fn without_copies() -> Installation {
    let qctl = Installation::prepare().env("QCTL_CHECKPOINT_UPLOAD_BYTES", "1MiB");
    qctl.up(&[]).ok();
    qctl
}

#[test]
fn a_job_resumes_from_what_it_published_and_not_from_what_it_left_half_written() {
    let qctl = Installation::start();
    let publish = "echo 17 > $QCTL_CHECKPOINT_DIR/state; \
                   $QCTL checkpoint --step 17 --note 'first epoch' > /dev/null; \
                   echo half > $QCTL_CHECKPOINT_DIR/state";
    let id = qctl.submit(&["--resumes", "1", "--shell", &script(&qctl, publish)]);
    until_ready(&qctl, id);
    let listed = until_hashed(&qctl, id, 1);
    let first = &listed[0];
    assert_eq!(first["step"], 17);
    assert_eq!(first["note"], "first epoch");
    assert_eq!(first["state"], "kept");
    assert_eq!(first["latest"], true);
    assert_eq!((&first["files"], &first["bytes"]), (&1.into(), &3.into()));
    let shown = qctl.qctl(&["show", &id.to_string()]).ok();
    assert!(shown.contains("1.1 in "), "{shown}");

    kill_shims(&qctl);
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(job["attempt"], 2);
    assert_eq!(job["attempts"][1]["resumed_from"], first["path"]);
    assert_eq!(qctl.raw_log(id), b"17\n");
    assert_eq!(
        sentences(&qctl, id, "resumes"),
        ["resumes from checkpoint 1.1"]
    );
    // It ended well, so nobody needs them any more.
    let folder = qctl.home().join("data/worker/checkpoints");
    qctl.until("its checkpoints are removed", || {
        (!folder.join(id.to_string()).exists()).then_some(())
    });
}

#[test]
fn a_job_that_publishes_nothing_begins_afresh() {
    let qctl = Installation::start();
    let publish = "echo half > $QCTL_CHECKPOINT_DIR/state; echo $QCTL_ATTEMPT";
    let id = qctl.submit(&["--resumes", "1", "--shell", &script(&qctl, publish)]);
    until_ready(&qctl, id);
    kill_shims(&qctl);
    qctl.until("the next attempt has begun", || {
        (qctl.raw_log(id) == format!("{id}.2\nready\n").as_bytes()).then_some(())
    });
    qctl.qctl(&["cancel", &id.to_string()]).ok();
    assert_eq!(checkpoints(&qctl, id), [Value::Null; 0]);
}

#[test]
fn f39_a_damaged_checkpoint_falls_back_to_the_one_before() {
    let qctl = without_copies();
    let publish = "for n in 1 2 3; do echo $n > $QCTL_CHECKPOINT_DIR/state; \
                   head -c 1100000 /dev/zero > $QCTL_CHECKPOINT_DIR/weights; \
                   $QCTL checkpoint --step $n > /dev/null; done";
    let id = qctl.submit(&["--resumes", "2", "--shell", &script(&qctl, publish)]);
    until_ready(&qctl, id);
    let listed = until_hashed(&qctl, id, 3);
    let folder = |index: usize| PathBuf::from(listed[index]["path"].as_str().unwrap());
    // Nothing can be found out about the newest: its path goes in circles.
    let newest = folder(0).parent().unwrap().to_owned();
    std::fs::rename(&newest, newest.with_extension("aside")).unwrap();
    std::os::unix::fs::symlink(&newest, &newest).unwrap();
    std::fs::write(folder(1).join("state"), "4\n").unwrap();
    kill_shims(&qctl);
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(qctl.raw_log(id), b"1\n");
    let told = |kind, beginning: &str| {
        let told = sentences(&qctl, id, kind);
        let [told] = &told[..] else {
            panic!("{told:?}");
        };
        assert!(told.starts_with(beginning), "{told}");
    };
    told("checkpoint_unreadable", "checkpoint 1.3 could not be read");
    told(
        "checkpoint_damaged",
        "checkpoint 1.2 cannot be resumed from",
    );
    told(
        "resumes",
        "resumes from checkpoint 1.1, the newest that can be read",
    );
    let listed = checkpoints(&qctl, id);
    assert_ne!(listed[0]["state"], "damaged", "it may be read again");
    assert_eq!(listed[1]["state"], "damaged");
    invariants::assert_all(&qctl, &qctl.evidence());
}

#[test]
fn f39_without_a_whole_checkpoint_it_begins_afresh_and_says_so() {
    let qctl = without_copies();
    let publish = "echo $QCTL_ATTEMPT; echo 1 > $QCTL_CHECKPOINT_DIR/state; \
                   head -c 1100000 /dev/zero > $QCTL_CHECKPOINT_DIR/weights; \
                   $QCTL checkpoint > /dev/null";
    let id = qctl.submit(&["--resumes", "1", "--shell", &script(&qctl, publish)]);
    until_ready(&qctl, id);
    let listed = until_hashed(&qctl, id, 1);
    std::fs::remove_dir_all(listed[0]["path"].as_str().unwrap()).unwrap();
    kill_shims(&qctl);
    qctl.until("the next attempt has begun", || {
        (qctl.raw_log(id) == format!("{id}.2\nready\n").as_bytes()).then_some(())
    });
    let told = sentences(&qctl, id, "resumes");
    assert_eq!(
        told,
        ["begins afresh: none of its checkpoints can be resumed from"]
    );
    qctl.qctl(&["cancel", &id.to_string()]).ok();
}

#[test]
fn f32_another_machine_resumes_from_the_copy() {
    let qctl = Installation::prepare()
        .env("QCTL_UNREACHABLE_AFTER", "1s")
        .env("QCTL_LOST_AFTER", "2s");
    qctl.up(&["--no-worker"]).ok();
    let first = Worker::start(&qctl, "first", 1, &address(&qctl));
    let publish = "mkdir $QCTL_CHECKPOINT_DIR/model; ln -s model/weights $QCTL_CHECKPOINT_DIR/state; \
                   seq 100000 > $QCTL_CHECKPOINT_DIR/model/weights; \
                   $QCTL checkpoint --step 100000 > /dev/null";
    let id = qctl.submit(&["--shell", &script(&qctl, publish)]);
    until_ready(&qctl, id);
    let listed = qctl.until("the copy is complete", || {
        checkpoints(&qctl, id)
            .into_iter()
            .find(|checkpoint| checkpoint["uploaded"] == true)
    });
    first.kill_machine();
    let second = Worker::start(&qctl, "second", 1, &address(&qctl));
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(
        (&job["attempt"], &job["worker"]),
        (&2.into(), &"second".into())
    );
    assert_eq!(job["attempts"][0]["outcome"]["kind"], "interrupted");
    assert_ne!(job["attempts"][1]["resumed_from"], listed["path"]);
    let expected: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    assert!(
        qctl.raw_log(id) == expected.as_bytes(),
        "every byte came over"
    );
    drop(second);
}

#[test]
fn each_is_uploaded_once_and_the_copy_mends_a_damaged_original() {
    let qctl = Installation::start();
    let publish = "for n in 1 2 3; do echo $n > $QCTL_CHECKPOINT_DIR/state; \
                   $QCTL checkpoint --step $n > /dev/null; sleep 0.5; done";
    let id = qctl.submit(&["--resumes", "1", "--shell", &script(&qctl, publish)]);
    until_ready(&qctl, id);
    let newest = qctl.until("the newest is copied", || {
        let newest = checkpoints(&qctl, id).swap_remove(0);
        (newest["number"] == 3 && newest["uploaded"] == true).then_some(newest)
    });
    let uploads = |number: i32| {
        let log = std::fs::read_to_string(qctl.home().join("data/logs/worker.log")).unwrap();
        let told = format!("checkpoint {number} of job {id} was uploaded");
        log.lines().filter(|line| line.contains(&told)).count()
    };
    // The worker writes so once it has heard that the copy is stored.
    qctl.until("it is logged", || (uploads(3) > 0).then_some(()));
    assert!(uploads(1) <= 1 && uploads(2) <= 1);
    assert_eq!(uploads(3), 1);

    let state = PathBuf::from(newest["path"].as_str().unwrap()).join("state");
    std::fs::write(state, "4\n").unwrap();
    kill_shims(&qctl);
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(qctl.raw_log(id), b"3\n");
    let mended = sentences(&qctl, id, "checkpoint_mended");
    assert_eq!(mended.len(), 1, "{job:#}");
    assert!(
        mended[0].starts_with("the files of checkpoint 1.3 on "),
        "{mended:?}"
    );
    assert_eq!(
        sentences(&qctl, id, "resumes"),
        ["resumes from checkpoint 1.3"]
    );
    assert_eq!(uploads(3), 1);
}

#[test]
fn a_large_checkpoint_waits_for_its_machine_and_says_so() {
    let qctl = Installation::prepare()
        .env("QCTL_CHECKPOINT_UPLOAD_BYTES", "1MiB")
        .env("QCTL_UNREACHABLE_AFTER", "1s")
        .env("QCTL_LOST_AFTER", "2s");
    qctl.up(&["--no-worker"]).ok();
    let first = Worker::start(&qctl, "first", 1, &address(&qctl));
    let publish = "head -c 2000000 /dev/zero > $QCTL_CHECKPOINT_DIR/weights; \
                   echo 17 > $QCTL_CHECKPOINT_DIR/state; $QCTL checkpoint > /dev/null";
    let id = qctl.submit(&["--shell", &script(&qctl, publish)]);
    until_ready(&qctl, id);
    until_hashed(&qctl, id, 1);
    first.kill_machine();
    let _second = Worker::start(&qctl, "second", 1, &address(&qctl));
    qctl.until("it says what it waits for", || {
        let why = qctl.qctl(&["why", &id.to_string()]).ok();
        why.contains("Its checkpoint lies on worker `first`")
            .then_some(())
    });
    assert_eq!(qctl.job(id)["attempt"], 1, "nobody else has begun it");
    let _first = Worker::start(&qctl, "first", 1, &address(&qctl));
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(job["worker"], "first");
    assert_eq!(qctl.raw_log(id), b"17\n");
}

#[test]
fn fifty_checkpoints_made_without_the_coordinator_all_count() {
    let qctl = Installation::start();
    let go = qctl.folder().join("go");
    let publish = format!(
        "echo begun; while [ ! -e {} ]; do sleep 0.05; done; \
         for n in $(seq 50); do echo $n > $QCTL_CHECKPOINT_DIR/state; \
         $QCTL checkpoint --step $n > /dev/null || exit 9; done",
        go.display()
    );
    let id = qctl.submit(&["--resumes", "1", "--shell", &script(&qctl, &publish)]);
    qctl.until("the job has begun", || {
        (qctl.raw_log(id) == b"begun\n").then_some(())
    });
    // Nobody but the job, its shim and its agent lives.
    for part in ["qctl keeper", "qctl-server"] {
        qctl.pids(part)
            .into_iter()
            .for_each(|pid| kill(pid, Signal::KILL));
    }
    qctl.file("go", "");
    let folder = qctl
        .home()
        .join(format!("data/worker/checkpoints/{id}/published"));
    qctl.until("fifty are published", || {
        folder.join("1.50/manifest.json").exists().then_some(())
    });
    // The machine is lost: what is on its disk is all that is left.
    for part in qctl.agents().into_iter().chain(qctl.shims()) {
        kill(part, Signal::KILL);
    }
    qctl.up(&[]).ok();
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(qctl.raw_log(id), b"50\n");
    let listed = checkpoints(&qctl, id);
    assert_eq!(listed.len(), 50);
    assert_eq!(listed[0]["step"], 50);
    assert_eq!(sentences(&qctl, id, "checkpoint_published").len(), 50);
    assert_eq!(job["resumes_left"], 0, "renewed, and then one was used");
}

#[test]
fn an_exit_code_means_checkpointed_run_me_again() {
    let qctl = Installation::start();
    let id = qctl.submit(&[
        "--checkpoint-exit-code",
        "85",
        "--retries",
        "0",
        "--resumes",
        "0",
        "--shell",
        "n=$(cat $QCTL_RESUME_FROM/n 2> /dev/null || echo 0); sleep 1.1; \
         if [ $n = 2 ]; then echo done after $n; exit 0; fi; \
         echo $((n + 1)) > $QCTL_CHECKPOINT_DIR/n; exit 85",
    ]);
    let job = qctl.until_ended(id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(job["attempt"], 3);
    assert_eq!(qctl.raw_log(id), b"done after 2\n");
    assert_eq!(
        (&job["retries_left"], &job["resumes_left"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn only_the_newest_keep_their_contents_and_cleanup_removes_them() {
    let qctl = Installation::prepare().env("QCTL_CHECKPOINTS_PER_JOB", "2");
    qctl.up(&[]).ok();
    let publish = "for n in 1 2 3 4 5; do echo $n > $QCTL_CHECKPOINT_DIR/state; \
                   $QCTL checkpoint > /dev/null; sleep 0.2; done";
    let id = qctl.submit(&["--retries", "0", "--shell", &script(&qctl, publish)]);
    until_ready(&qctl, id);
    qctl.until("two keep their contents", || {
        let listed = checkpoints(&qctl, id);
        let kept = listed.iter().filter(|listed| listed["state"] == "kept");
        (listed.len() == 5 && kept.count() == 2).then_some(())
    });
    qctl.qctl(&["cancel", &id.to_string()]).ok();
    qctl.until_ended(id);
    let folder = qctl.home().join(format!("data/worker/checkpoints/{id}"));
    assert!(folder.exists(), "a cancelled job may be retried");
    qctl.until("it can be cleaned up", || {
        qctl.qctl(&["cleanup", "0", "--yes"]).ok();
        (qctl.qctl(&["show", &id.to_string()]).code == 3).then_some(())
    });
    qctl.until("its checkpoints are removed", || {
        (!folder.exists()).then_some(())
    });
}

#[test]
fn outside_of_a_job_and_without_anything_to_publish_it_says_so() {
    let qctl = Installation::start();
    let outside = qctl.qctl(&["checkpoint"]).fails();
    assert!(outside.contains("not run inside a job"), "{outside}");
    qctl.qctl(&["checkpoint", "--quiet-outside"]).ok();
    let program = qctl.bin().join("qctl");
    let own = qctl.folder().join("checkpoints/1/1");
    std::fs::create_dir_all(&own).unwrap();
    std::fs::write(own.join("state"), "1").unwrap();
    let shell = format!(
        "{qctl} checkpoint 2>&1; echo $?; {qctl} checkpoint --step -5 2>&1; echo $?; \
         QCTL_CHECKPOINT_DIR={own} {qctl} checkpoint 2>&1; echo $?; \
         {qctl} checkpoint {own}/state",
        qctl = program.display(),
        own = own.display(),
    );
    let id = qctl.submit(&["--shell", &shell]);
    qctl.until_ended(id);
    let said = String::from_utf8(qctl.raw_log(id)).unwrap();
    assert!(said.contains("is empty\n"), "{said}");
    assert!(said.contains("a whole number from 0 on"), "{said}");
    assert!(
        said.contains(&format!(
            "{} is not the folder for checkpoints of attempt {id}.1",
            own.display()
        )),
        "{said}"
    );
    assert!(own.join("state").exists() && !own.parent().unwrap().join("published").exists());
    // What failed has used up no number.
    assert!(said.contains("Published checkpoint 1.1: 1 file"), "{said}");
}
