//! F37: silence in stages, measured and enforced by the shim alone.

use std::time::Duration;

use qctl_proto::v1::shim_request::Message;
use qctl_proto::v1::silence::Counts;
use qctl_proto::v1::{JobSpec, SegmentSilence, ShimActivity, Silence, SilenceStage, StopCause};
use qctl_worker::shim::records::Event;

use crate::harness::{Shim, command, duration_ms, sh};

/// A job with these stages, in milliseconds.
fn silent(spec: JobSpec, [warn, remind, stop]: [u64; 3], counts: Counts) -> JobSpec {
    JobSpec {
        silence: Some(Silence {
            warn_after: Some(duration_ms(warn)),
            remind_after: Some(duration_ms(remind)),
            stop_after: Some(duration_ms(stop)),
            counts: counts.into(),
        }),
        ..spec
    }
}

fn wait_for_stage(
    shim: &mut Shim,
    fence: i64,
    episode: i32,
    stage: SilenceStage,
) -> SegmentSilence {
    shim.wait_for_event(stage.as_str_name(), fence, |event| match event {
        Event::Silence(told) if told.stage() == stage && told.episode == episode => Some(*told),
        _ => None,
    })
}

#[test]
fn f37_a_hang_behind_output_without_a_newline_is_told_in_stages_and_stopped() {
    let mut shim = Shim::start();
    let hang = sh("printf 'epoch 3: '; exec sleep 300");
    let (fence, ended) = shim.finish(silent(hang, [600, 1_200, 1_800], Counts::Output));
    assert_eq!(ended.signal, Some(15));
    assert_eq!(ended.stop_cause(), StopCause::Silence);
    assert_eq!(shim.text(fence), "epoch 3: ");
    let story = [
        "assigned", "starting", "pid", "silence", "silence", "silence", "stopping", "exit", "freed",
    ];
    assert_eq!(shim.story(fence), story);
    for (stage, least) in [
        (SilenceStage::Warned, 600),
        (SilenceStage::Reminded, 1_200),
        (SilenceStage::Ending, 1_620),
    ] {
        let told = wait_for_stage(&mut shim, fence, 1, stage);
        let lasted = Duration::try_from(told.lasted.unwrap()).unwrap();
        assert!(lasted >= Duration::from_millis(least), "{told:?}");
        assert_eq!(told.stop_after, Some(duration_ms(1_800)));
    }
    let ran = Duration::try_from(ended.duration.unwrap()).unwrap();
    assert!(ran >= Duration::from_millis(1_800), "{ran:?}");
}

#[test]
fn f37_output_and_progress_reset_the_clock() {
    let mut shim = Shim::start();
    // Single bytes, and then reports alone, for longer than the first stage.
    let talks = sh(
        "for i in 1 2 3 4 5 6 7 8 9 10; do printf .; sleep 0.2; done; \
                    for i in 1 2 3 4 5 6 7 8 9 10; do echo $i/10 >\"$QCTL_PROGRESS\"; sleep 0.2; done",
    );
    let (fence, ended) = shim.finish(silent(talks, [1_800, 2_400, 3_000], Counts::Output));
    assert_eq!(ended.exit_code, Some(0));
    assert!(
        !shim.story(fence).contains(&"silence"),
        "{:?}",
        shim.story(fence)
    );

    let mut shim = Shim::start();
    let wakes = sh("read go <fifo; echo here; exec sleep 300");
    let fifo = shim.folder.path().join("fifo");
    let folder = shim.folder.path().to_string_lossy().into_owned();
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let wakes = JobSpec {
        cwd: folder,
        ..wakes
    };
    let fence = shim.run(silent(wakes, [300, 0, 0], Counts::Output));
    wait_for_stage(&mut shim, fence, 1, SilenceStage::Warned);
    std::fs::write(&fifo, "go\n").unwrap();
    wait_for_stage(&mut shim, fence, 1, SilenceStage::Over);
    wait_for_stage(&mut shim, fence, 2, SilenceStage::Warned);
    shim.stop(fence, 1_000);
    assert_eq!(shim.end(fence).stop_cause(), StopCause::Cancel);
}

#[test]
fn f37_a_paused_job_is_not_silent() {
    let mut shim = Shim::start();
    let fence = shim.run(silent(
        command(&["sleep", "300"]),
        [5_000, 0, 5_500],
        Counts::Output,
    ));
    shim.pid(fence);
    shim.set_paused(fence, true);
    shim.wait_for_event("pause", fence, |event| match event {
        Event::PauseChanged(change) if change.paused => Some(()),
        _ => None,
    });
    // Another shim's clock tells the time in which this one must stay quiet.
    let mut clock = Shim::start();
    let (_, ended) = clock.finish(silent(
        command(&["sleep", "300"]),
        [0, 0, 5_600],
        Counts::Output,
    ));
    assert_eq!(ended.stop_cause(), StopCause::Silence);
    shim.read_segment();
    assert!(
        !shim.story(fence).contains(&"silence"),
        "{:?}",
        shim.story(fence)
    );
    shim.set_paused(fence, false);
    assert_eq!(shim.end(fence).stop_cause(), StopCause::Silence);
}

#[test]
fn activity_counts_where_it_is_asked_for_and_polling_is_none() {
    let mut busy = Shim::start();
    let stages = [2_000, 0, 3_000];
    let limited = |spec: JobSpec| JobSpec {
        time_limit: Some(duration_ms(4_500)),
        ..spec
    };
    let spin = sh("while :; do :; done");
    let busy_fence = busy.run(silent(limited(spin), stages, Counts::Activity));
    // The agent says of this one that its GPU works.
    let mut gpu = Shim::start();
    let gpu_fence = gpu.run(silent(
        limited(command(&["sleep", "300"])),
        stages,
        Counts::Activity,
    ));
    let mut polls = Shim::start();
    let poll = sh("while :; do sleep 0.2; done");
    let polls_fence = polls.run(silent(limited(poll), stages, Counts::Activity));
    let mut deaf = Shim::start();
    let deaf_fence = deaf.run(silent(
        limited(command(&["sleep", "300"])),
        stages,
        Counts::Output,
    ));
    let ends = |shim: &mut Shim, fence: i64| {
        shim.read_segment();
        shim.story(fence).contains(&"exit")
    };
    while !ends(&mut gpu, gpu_fence) {
        gpu.send(Message::Activity(ShimActivity { fence: gpu_fence }));
        deaf.send(Message::Activity(ShimActivity { fence: deaf_fence }));
        gpu.hear();
    }
    for (shim, fence, cause) in [
        (&mut gpu, gpu_fence, StopCause::TimeLimit),
        (&mut busy, busy_fence, StopCause::TimeLimit),
        (&mut polls, polls_fence, StopCause::Silence),
        (&mut deaf, deaf_fence, StopCause::Silence),
    ] {
        assert_eq!(
            shim.end(fence).stop_cause(),
            cause,
            "{:?}",
            shim.story(fence)
        );
        let told = shim.story(fence).contains(&"silence");
        assert_eq!(told, cause == StopCause::Silence);
    }
}
