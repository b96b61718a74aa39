//! A shim, started as an agent starts it, and what it writes.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prost::Message as _;
use qctl_proto::v1::shim_request::Message;
use qctl_proto::v1::{
    Assignment, AttemptEnded, JobSpec, SegmentPid, SetPaused, ShimEvent, ShimRequest, ShimRun,
    Stop, StopCause,
};
use qctl_worker::process::marker::Marker;
use qctl_worker::process::snapshot::Process;
use qctl_worker::process::sweep::{Trace, survivors, sweep};
use qctl_worker::shim::records::{self, Event};
use qctl_worker_core::segment::{Read, Reader, Record, Stream};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A record, owned.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "tests hold few of them")]
pub(crate) enum Entry {
    Out {
        fence: i64,
        offset: u64,
        stream: Stream,
        data: Vec<u8>,
    },
    Event(i64, Event),
}

/// A running shim.
pub(crate) struct Shim {
    pub(crate) child: Child,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) entries: Vec<Entry>,
    pub(crate) events: Vec<ShimEvent>,
    pub(crate) spool_id: String,
    pub(crate) segment: PathBuf,
    stream: UnixStream,
    inbox: Vec<u8>,
    reader: Reader,
    next_fence: i64,
    file: Option<File>,
}

impl Shim {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        Self::start_changed(|command, _| {
            command.args(arguments);
        })
    }

    /// Starts a shim whose command `change` may alter; it is given the shim's folder too.
    pub(crate) fn start_changed(change: impl FnOnce(&mut Command, &Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let segment = folder.path().join("segment");
        File::create_new(&segment).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_qctl-worker"));
        command
            .arg("shim")
            .arg("--segment")
            .arg(&segment)
            .arg("--socket")
            .arg(folder.path().join("socket"));
        change(&mut command, folder.path());
        Self::spawn(command, folder, segment)
    }

    /// Starts a shim by a command of the caller's.
    pub(crate) fn spawn(mut command: Command, folder: tempfile::TempDir, segment: PathBuf) -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        let child = command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let spool_id = folder.path().to_string_lossy().into_owned();
        Self {
            child,
            folder,
            entries: Vec::new(),
            events: Vec::new(),
            spool_id,
            segment,
            stream,
            inbox: Vec::new(),
            reader: Reader::new(),
            next_fence: 100,
            file: None,
        }
    }

    pub(crate) fn send(&mut self, message: Message) {
        let request = ShimRequest {
            message: Some(message),
        };
        self.stream
            .write_all(&request.encode_length_delimited_to_vec())
            .unwrap();
    }

    /// Writes down which agent is in charge.
    pub(crate) fn put_in_charge(&self, agent: u64) {
        std::fs::write(self.folder.path().join("charge"), format!("{agent:020}\n")).unwrap();
    }

    /// Stops the shim itself for as long as `during` takes.
    pub(crate) fn stopped<T>(&mut self, during: impl FnOnce(&mut Self) -> T) -> T {
        let pid = self.child.id() as i32;
        // SAFETY: kill touches no memory of this process.
        unsafe { libc::kill(pid, libc::SIGSTOP) };
        wait_until("the shim stands", || {
            Process::look(pid).unwrap().unwrap().is_stopped()
        });
        let done = during(self);
        // SAFETY: as above.
        unsafe { libc::kill(pid, libc::SIGCONT) };
        done
    }

    /// The agent is killed, and no other one comes.
    pub(crate) fn leave_alone(&mut self) {
        (self.stream, _) = UnixStream::pair().unwrap();
    }

    /// Another agent takes over.
    pub(crate) fn reconnect(&mut self) {
        self.stream = qctl_worker::shim::connect(&self.folder.path().join("socket")).unwrap();
        self.stream
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        self.inbox.clear();
    }

    pub(crate) fn assignment(&mut self, spec: JobSpec) -> Assignment {
        self.next_fence += 1;
        Assignment {
            fence: self.next_fence,
            job_id: 42,
            attempt: 1,
            spec: Some(spec),
            spool_id: self.spool_id.clone(),
            ..Assignment::default()
        }
    }

    /// Hands a job over and returns its fence.
    pub(crate) fn run(&mut self, spec: JobSpec) -> i64 {
        let run = ShimRun {
            assignment: Some(self.assignment(spec)),
            ..ShimRun::default()
        };
        self.run_as(run)
    }

    pub(crate) fn run_as(&mut self, run: ShimRun) -> i64 {
        let fence = run.assignment.as_ref().unwrap().fence;
        self.send(Message::Run(run));
        fence
    }

    pub(crate) fn stop(&mut self, fence: i64, grace_ms: u64) {
        self.send(Message::Stop(Stop {
            fence,
            cause: StopCause::Cancel.into(),
            grace: Some(duration_ms(grace_ms)),
            gpu: None,
        }));
    }

    pub(crate) fn set_paused(&mut self, fence: i64, paused: bool) {
        self.send(Message::SetPaused(SetPaused { fence, paused }));
    }

    /// Waits until `find` finds something in what was written.
    pub(crate) fn wait_for<T>(&mut self, what: &str, find: impl Fn(&[Entry]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.read_segment();
            if let Some(found) = find(&self.entries) {
                return found;
            }
            assert!(
                Instant::now() < deadline,
                "no {what} within {PATIENCE:?}; written: {:#?}",
                self.entries
            );
            self.hear();
        }
    }

    pub(crate) fn wait_for_event<T>(
        &mut self,
        what: &str,
        fence: i64,
        find: impl Fn(&Event) -> Option<T>,
    ) -> T {
        self.wait_for(what, |entries| {
            entries.iter().find_map(|entry| match entry {
                Entry::Event(of, event) if *of == fence => find(event),
                _ => None,
            })
        })
    }

    pub(crate) fn pid(&mut self, fence: i64) -> SegmentPid {
        self.wait_for_event("pid", fence, |event| match event {
            Event::Pid(pid) => Some(pid.clone()),
            _ => None,
        })
    }

    pub(crate) fn end(&mut self, fence: i64) -> AttemptEnded {
        self.wait_for_event("end", fence, |event| match event {
            Event::Exit(ended) => Some(ended.clone()),
            _ => None,
        })
    }

    pub(crate) fn freed(&mut self, fence: i64) {
        self.wait_for_event("freed", fence, |event| match event {
            Event::Freed(_) => Some(()),
            _ => None,
        });
    }

    /// Runs a job to its end.
    pub(crate) fn finish(&mut self, spec: JobSpec) -> (i64, AttemptEnded) {
        let fence = self.run(spec);
        let ended = self.end(fence);
        self.freed(fence);
        (fence, ended)
    }

    /// Waits until the job has written `text`.
    pub(crate) fn wait_for_output(&mut self, fence: i64, text: &str) {
        self.wait_for(text, |entries| {
            let output = output_of(entries, fence, None);
            String::from_utf8_lossy(&output)
                .contains(text)
                .then_some(())
        });
    }

    pub(crate) fn output(&self, fence: i64) -> Vec<u8> {
        output_of(&self.entries, fence, None)
    }

    pub(crate) fn text(&self, fence: i64) -> String {
        String::from_utf8(self.output(fence)).unwrap()
    }

    pub(crate) fn stream(&self, fence: i64, stream: Stream) -> Vec<u8> {
        output_of(&self.entries, fence, Some(stream))
    }

    /// Names of an attempt's events, in order.
    pub(crate) fn story(&self, fence: i64) -> Vec<&'static str> {
        self.entries
            .iter()
            .filter_map(|entry| match entry {
                Entry::Event(of, event) if *of == fence => Some(match event {
                    Event::Assigned(_) => "assigned",
                    Event::Starting(_) => "starting",
                    Event::Pid(_) => "pid",
                    Event::Stopping(_) => "stopping",
                    Event::PauseChanged(_) => "pause",
                    Event::Report(_) => "report",
                    Event::Exit(_) => "exit",
                    Event::Void(_) => "void",
                    Event::Freed(_) => "freed",
                    Event::Hole(_) => "hole",
                    Event::Tail(_) => "tail",
                    Event::Stuck(_) => "stuck",
                    Event::Silence(_) => "silence",
                }),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn trace(&self, fence: i64) -> Trace {
        Trace {
            marker: Marker::new(&self.spool_id, fence),
            leader: None,
        }
    }

    pub(crate) fn survivors(&self, fence: i64) -> Vec<Process> {
        survivors(&self.trace(fence)).unwrap()
    }

    /// Hears one ring, or waits for a moment.
    pub(crate) fn hear(&mut self) {
        let mut piece = [0; 4096];
        match self.stream.read(&mut piece) {
            Ok(0) => std::thread::yield_now(),
            Ok(length) => self.inbox.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("{error}"),
        }
        let mut rest = self.inbox.as_slice();
        let mut left = rest.len();
        while let Ok(event) = ShimEvent::decode_length_delimited(&mut rest) {
            left = rest.len();
            self.events.push(event);
            if rest.is_empty() {
                break;
            }
        }
        self.inbox.drain(..self.inbox.len() - left);
    }

    pub(crate) fn read_segment(&mut self) {
        if self.file.is_none() {
            self.file = File::open(&self.segment).ok();
        }
        let Some(file) = &self.file else {
            return;
        };
        let mut piece = vec![0; 1024 * 1024];
        loop {
            let length = file
                .read_at(&mut piece, self.reader.feed_position())
                .unwrap();
            if length == 0 {
                return;
            }
            self.reader.feed(&piece[..length]);
            while let Read::Record { record, .. } = self.reader.read().unwrap() {
                self.entries.push(match record {
                    Record::Out {
                        fence,
                        offset,
                        stream,
                        data,
                        ..
                    } => Entry::Out {
                        fence,
                        offset,
                        stream,
                        data: data.to_vec(),
                    },
                    Record::Event { payload, .. } => {
                        let (fence, event) = records::decode(payload).unwrap();
                        Entry::Event(fence, event)
                    }
                });
            }
        }
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for number in 100..=self.next_fence {
            let _ = sweep(&self.trace(number), Instant::now() + PATIENCE);
        }
    }
}

/// Output, and that it has no gaps.
fn output_of(entries: &[Entry], wanted: i64, only: Option<Stream>) -> Vec<u8> {
    let mut output = Vec::new();
    let mut end = 0;
    for entry in entries {
        match entry {
            Entry::Out {
                fence,
                offset,
                stream,
                data,
            } if *fence == wanted => {
                assert_eq!(*offset, end, "output has a gap");
                end += data.len() as u64;
                if only.is_none_or(|only| only == *stream) {
                    output.extend_from_slice(data);
                }
            }
            Entry::Event(fence, Event::Hole(hole)) if *fence == wanted => {
                assert_eq!(hole.offset as u64, end, "a hole is misplaced");
                end += hole.bytes as u64;
            }
            _ => {}
        }
    }
    output
}

pub(crate) fn duration_ms(milliseconds: u64) -> prost_types::Duration {
    Duration::from_millis(milliseconds).try_into().unwrap()
}

/// A job that runs a command.
pub(crate) fn command(words: &[&str]) -> JobSpec {
    JobSpec {
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        cwd: "/".into(),
        env: [("PATH", "/usr/local/bin:/usr/bin:/bin")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..JobSpec::default()
    }
}

/// A job that runs a shell script.
pub(crate) fn sh(script: &str) -> JobSpec {
    command(&["sh", "-c", script])
}

/// Waits until a condition holds.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}
