//! How jobs are started, and why they cannot be.

use std::os::unix::fs::PermissionsExt;

use qctl_proto::v1::attempt_ended::End;
use qctl_proto::v1::{Demand, JobSpec, ShimRun};

use crate::harness::{Shim, command, sh};

#[test]
fn a_job_knows_who_it_is_and_where_it_reports() {
    let mut shim = Shim::start();
    let mut assignment = shim.assignment(sh(
        "echo $QCTL_JOB $QCTL_ATTEMPT $TRACKER_ID $TRACKER_WORKSPACE $CUDA_VISIBLE_DEVICES; \
         echo $QCTL_CHECKPOINT_DIR $QCTL_RESUME_FROM $PYTHONUNBUFFERED; pwd; \
         test -p \"$QCTL_PROGRESS\" && test -d $QCTL_CHECKPOINT_DIR && echo all there",
    ));
    let spec = assignment.spec.as_mut().unwrap();
    spec.tracker = "INTG-088".into();
    spec.workspace = "/w".into();
    spec.cwd = "/usr".into();
    assignment.gpus = vec!["GPU-a".into(), "GPU-b".into()];
    assignment.resume_from = "/before".into();
    assignment.attempt = 3;
    let checkpoints = shim.folder.path().join("42/3");
    let fence = shim.run_as(ShimRun {
        assignment: Some(assignment),
        checkpoint_dir: checkpoints.to_str().unwrap().into(),
        ..ShimRun::default()
    });
    let ended = shim.end(fence);
    let expected = format!(
        "42 42.3 INTG-088 /w GPU-a,GPU-b\n{} /before 1\n/usr\nall there\n",
        checkpoints.display()
    );
    assert_eq!(shim.text(fence), expected);
    assert_eq!(ended.checkpoint, "");
    assert!(!checkpoints.exists(), "an empty directory is removed");
    assert_eq!(ended.not_enforced.len(), 1);
}

#[test]
fn a_checkpoint_is_told() {
    let mut shim = Shim::start();
    let assignment = shim.assignment(sh("echo 7 > $QCTL_CHECKPOINT_DIR/state"));
    let checkpoints = shim.folder.path().join("42/1");
    let fence = shim.run_as(ShimRun {
        assignment: Some(assignment),
        checkpoint_dir: checkpoints.to_str().unwrap().into(),
        ..ShimRun::default()
    });
    assert_eq!(shim.end(fence).checkpoint, checkpoints.to_str().unwrap());
    assert!(checkpoints.join("state").exists());
}

#[test]
fn a_job_begins_with_a_clean_slate() {
    let mut shim = Shim::start();
    let (fence, _) = shim.finish(sh(
        "grep -E '^Sig(Ign|Blk)' /proc/self/status | cut -f2; ls /proc/self/fd | wc -l; \
         cat /proc/self/oom_score_adj",
    ));
    let text = shim.text(fence);
    let mut lines = text.lines();
    for _ in 0..2 {
        let mask = u64::from_str_radix(lines.next().unwrap(), 16).unwrap();
        // The C library keeps two signals for itself and hands them on as ignored.
        assert_eq!(mask & !0x1_8000_0000, 0, "{text}");
    }
    // Three streams and the folder that ls reads.
    assert_eq!(lines.next(), Some("4"), "{text}");
    let score: i32 = lines.next().unwrap().parse().unwrap();
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert!(score > own.trim().parse().unwrap() || score == 1000);
    let leader = shim.pid(fence).pid;
    assert!(leader > 0);
}

#[test]
fn a_job_leads_its_own_session() {
    let mut shim = Shim::start();
    let (fence, _) = shim.finish(sh("cut -d' ' -f5,6 /proc/$$/stat; echo $$"));
    let pid = shim.pid(fence).pid;
    assert_eq!(shim.text(fence), format!("{pid} {pid}\n{pid}\n"));
}

#[test]
fn commands_are_found_in_the_jobs_own_path_and_folder() {
    let mut shim = Shim::start();
    let folder = shim.folder.path().to_path_buf();
    let bin = folder.join("bin");
    std::fs::create_dir(&bin).unwrap();
    let tool = bin.join("my-tool");
    // Without a first line that names an interpreter, as a shell would also take it.
    std::fs::write(&tool, "echo found \"$@\"\n").unwrap();
    std::fs::set_permissions(&tool, PermissionsExt::from_mode(0o755)).unwrap();
    for (word, path) in [
        ("my-tool", bin.to_str().unwrap()),
        ("my-tool", "/nowhere:bin:/bin"),
        ("./bin/my-tool", "/bin"),
    ] {
        let mut spec = command(&[word, "a b", ""]);
        spec.cwd = folder.to_str().unwrap().into();
        spec.env.insert("PATH".into(), path.into());
        let (fence, _) = shim.finish(spec);
        assert_eq!(shim.text(fence), "found a b \n", "{word} in {path}");
    }
}

fn refused(shim: &mut Shim, spec: JobSpec) -> String {
    let (fence, ended) = shim.finish(spec);
    assert_eq!(ended.end(), End::CannotStart, "{ended:?}");
    assert_eq!(ended.exit_code, None);
    assert_eq!(shim.story(fence), ["assigned", "starting", "exit", "freed"]);
    ended.message
}

#[test]
fn what_cannot_be_started_is_named() {
    let mut shim = Shim::start();
    let host = rustix::system::uname()
        .nodename()
        .to_str()
        .unwrap()
        .to_owned();

    let message = refused(&mut shim, command(&["no-such-program"]));
    assert!(
        message.contains("`no-such-program` was not found"),
        "{message}"
    );
    assert!(message.contains("/usr/bin"), "{message}");

    let message = refused(&mut shim, command(&["/no/such/program"]));
    assert!(
        message.contains("`/no/such/program` does not exist"),
        "{message}"
    );

    let message = refused(&mut shim, command(&["/etc/passwd"]));
    assert!(message.contains("not executable"), "{message}");

    let mut elsewhere = command(&["true"]);
    elsewhere.cwd = "/no/such/folder".into();
    elsewhere.submit_host = "laptop".into();
    let message = refused(&mut shim, elsewhere);
    assert!(
        message.contains("`/no/such/folder` does not exist"),
        "{message}"
    );
    assert!(
        message.contains(&host) && message.contains("laptop"),
        "{message}"
    );

    let mut file = command(&["true"]);
    file.cwd = "/etc/passwd".into();
    assert!(refused(&mut shim, file).contains("not a directory"));

    let script = shim.folder.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let message = refused(&mut shim, command(&[script.to_str().unwrap()]));
    assert!(message.contains("interpreter"), "{message}");

    assert!(refused(&mut shim, command(&[])).contains("no command"));

    let mut signal = command(&["true"]);
    signal.warn_signal = 99;
    assert!(refused(&mut shim, signal).contains("99"));

    let (_, ended) = shim.finish(command(&["true"]));
    assert_eq!(ended.exit_code, Some(0), "the shim goes on");
}

#[test]
fn ten_megabytes_of_arguments_are_refused_and_a_hundred_kilobytes_arrive() {
    let mut shim = Shim::start();
    let word = "x".repeat(100_000);
    let mut spec = sh("echo ${#1} $#");
    spec.command.extend(["sh".into(), word.clone(), "y".into()]);
    let (fence, _) = shim.finish(spec);
    assert_eq!(shim.text(fence), "100000 2\n");

    let mut spec = command(&["true"]);
    spec.command.extend(std::iter::repeat_n(word, 100));
    let message = refused(&mut shim, spec);
    assert!(message.contains("too long"), "{message}");
    assert!(message.contains("100000 bytes"), "{message}");
}

#[test]
fn limits_that_are_not_enforced_are_told_at_the_start() {
    let mut shim = Shim::start();
    let mut spec = command(&["true"]);
    spec.demand = Some(Demand {
        memory_bytes: 1 << 30,
        ..Demand::default()
    });
    let fence = shim.run(spec);
    let told = shim.pid(fence).not_enforced;
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("memory"), "{told:?}");
    assert_eq!(shim.end(fence).not_enforced, told);
}

#[test]
fn what_an_agent_asked_before_it_died_is_not_started_once_another_is_in_charge() {
    let mut shim = Shim::start();
    shim.put_in_charge(1);
    let run = |shim: &mut Shim, agent| {
        let assignment = shim.assignment(sh("true"));
        shim.run_as(ShimRun {
            assignment: Some(assignment),
            agent,
            ..ShimRun::default()
        })
    };
    let first = run(&mut shim, 1);
    shim.freed(first);
    let stale = shim.stopped(|shim| {
        let stale = run(shim, 1);
        shim.put_in_charge(2);
        shim.reconnect();
        stale
    });
    let next = run(&mut shim, 2);
    shim.freed(next);
    assert_eq!(shim.story(stale), [""; 0]);
}
