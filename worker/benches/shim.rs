//! What a shim costs: jobs a second beside the machine's own rate of starting processes, and the
//! time to record a flood of output beside the times to throw it away and to redirect it into a
//! file. The shim's own processor time says the same on a busy machine.
//!
//! `cargo bench -p qctl-worker --bench shim`

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prost::Message;
use qctl_proto::v1::{Assignment, JobSpec, ShimEvent, ShimRequest, ShimRun, shim_request};

const JOBS: usize = 3000;
const ROUNDS: usize = 3;
const OUTPUT_BYTES: &str = "200000000";

fn main() {
    for round in 1..=ROUNDS {
        let raw = rate(JOBS, || {
            let status = Command::new("/bin/true").stdin(Stdio::null()).status();
            assert!(status.is_ok_and(|status| status.success()));
        });
        let mut shim = Shim::start();
        let spec = job(&["/bin/true"]);
        let ours = rate(JOBS, || shim.run(spec.clone()));
        println!(
            "round {round}: spawn and wait {raw:.0} a second, jobs in a shim {ours:.0} a second \
             ({:.0} %), of which the shim's own work {:.0} µs each; {} kB resident of its own",
            ours / raw * 100.0,
            shim.processor_time().as_secs_f64() * 1e6 / JOBS as f64,
            shim.anonymous_kb()
        );
    }
    for round in 1..=ROUNDS {
        let flood = ["head", "-c", OUTPUT_BYTES, "/dev/zero"];
        let thrown_away = time(|| {
            let mut child = Command::new(flood[0])
                .args(&flood[1..])
                .stdout(Stdio::piped())
                .spawn()
                .expect("head starts");
            let mut pipe = child.stdout.take().expect("a pipe");
            let mut piece = vec![0; 64 * 1024];
            while pipe.read(&mut piece).expect("the pipe can be read") > 0 {}
            child.wait().expect("head ends");
        });
        let redirected = time(|| {
            let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
            let file = File::create(folder.path().join("output")).expect("a file");
            let status = Command::new(flood[0])
                .args(&flood[1..])
                .stdout(file)
                .status();
            assert!(status.is_ok_and(|status| status.success()));
        });
        let mut shim = Shim::start();
        let recorded = time(|| shim.run(job(&flood)));
        println!(
            "round {round}: 200 MB thrown away in {:.0} ms, redirected in {:.0} ms, recorded in \
             {:.0} ms, of which the shim's own work {:.0} ms",
            thrown_away.as_secs_f64() * 1e3,
            redirected.as_secs_f64() * 1e3,
            recorded.as_secs_f64() * 1e3,
            shim.processor_time().as_secs_f64() * 1e3
        );
    }
}

fn time(action: impl FnOnce()) -> Duration {
    let began = Instant::now();
    action();
    began.elapsed()
}

fn rate(count: usize, mut action: impl FnMut()) -> f64 {
    let took = time(|| (0..count).for_each(|_| action()));
    count as f64 / took.as_secs_f64()
}

fn job(words: &[&str]) -> JobSpec {
    JobSpec {
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        cwd: "/".into(),
        env: [("PATH", "/usr/bin:/bin"), ("LANG", "C.UTF-8")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..JobSpec::default()
    }
}

struct Shim {
    child: Child,
    stream: UnixStream,
    inbox: Vec<u8>,
    next_fence: i64,
    /// Removed at the end.
    _folder: tempfile::TempDir,
}

impl Shim {
    fn start() -> Self {
        // Beside the program, so that the segment is on the disk that the machine builds on.
        let program = env!("CARGO_BIN_EXE_qctl-worker");
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let segment = folder.path().join("segment");
        File::create_new(&segment).expect("a segment");
        let (stream, theirs) = UnixStream::pair().expect("a pair of sockets");
        let child = Command::new(program)
            .args(["shim", "--max-jobs", "1000000"])
            .args(["--max-segment-bytes", "1000000000000", "--segment"])
            .arg(&segment)
            .arg("--socket")
            .arg(folder.path().join("socket"))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .expect("a shim");
        let mut shim = Self {
            child,
            stream,
            inbox: Vec::new(),
            next_fence: 0,
            _folder: folder,
        };
        shim.wait_until_idle();
        shim
    }

    fn run(&mut self, spec: JobSpec) {
        self.next_fence += 1;
        let request = ShimRequest {
            message: Some(shim_request::Message::Run(ShimRun {
                assignment: Some(Assignment {
                    fence: self.next_fence,
                    job_id: self.next_fence,
                    attempt: 1,
                    spec: Some(spec),
                    ..Assignment::default()
                }),
                ..ShimRun::default()
            })),
        };
        self.stream
            .write_all(&request.encode_length_delimited_to_vec())
            .expect("the shim listens");
        self.wait_until_idle();
    }

    /// Hears rings until one says that the shim is idle. Only that ring is sent with every job.
    fn wait_until_idle(&mut self) {
        loop {
            let mut piece = [0; 4096];
            let length = self.stream.read(&mut piece).expect("the shim rings");
            assert!(length > 0, "the shim has ended");
            self.inbox.extend_from_slice(&piece[..length]);
            let mut rest = self.inbox.as_slice();
            let mut left = rest.len();
            let mut is_idle = false;
            while let Ok(event) = ShimEvent::decode_length_delimited(&mut rest) {
                is_idle |= event.idle;
                left = rest.len();
                if left == 0 {
                    break;
                }
            }
            self.inbox.drain(..self.inbox.len() - left);
            if is_idle {
                return;
            }
        }
    }

    /// Processor time of the shim alone, in the kernel and outside. The kernel counts in
    /// nanoseconds.
    fn processor_time(&self) -> Duration {
        std::fs::read_to_string(format!("/proc/{}/schedstat", self.child.id()))
            .unwrap_or_default()
            .split(' ')
            .next()
            .and_then(|number| number.parse().ok())
            .map_or(Duration::ZERO, Duration::from_nanos)
    }

    fn anonymous_kb(&self) -> u64 {
        std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .unwrap_or_default()
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .and_then(|number| number.trim().parse().ok())
            .unwrap_or(0)
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
