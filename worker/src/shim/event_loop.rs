//! The shim's only loop: waits for output, reports, ended processes, agents and time.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use qctl_proto::v1::{
    Assignment, JobSpec, PauseChanged, SegmentFreed, SegmentPid, SegmentStarting, SegmentStopping,
    SegmentStuck, ShimEvent, ShimLease, ShimRequest, ShimRun, Stop, shim_request::Message,
};
use qctl_worker_core::enforcement::{self, Action, Enforcement, Limits, StopCause};
use qctl_worker_core::ring;
use qctl_worker_core::segment::{MAX_OUT_BYTES, Stream};
use qctl_worker_core::silence::Stages;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, WaitOptions, WaitStatus};

use crate::charge::Charge;
use crate::clock::{self, JumpWatch};
use crate::process::signal;
use crate::process::snapshot::Process;
use crate::shim::activity::Activity;
use crate::shim::attempt::{self, Attempt, CheckpointDir, DRAIN, Facts, Stage};
use crate::shim::control::Control;
use crate::shim::durability::Durability;
use crate::shim::journal::Journal;
use crate::shim::launch::{self, Surroundings};
use crate::shim::out_of_memory::OutOfMemory;
use crate::shim::output::Output;
use crate::shim::progress::Progress;
use crate::shim::records::Event;
use crate::shim::signals::Signals;
use crate::shim::spawn::{Channels, Spawner};
use crate::shim::{Args, ShimError};
use crate::wire;

/// Time that a shim without work waits for an agent before it retires.
const ORPHANED: Duration = Duration::from_secs(300);

/// Time between two looks at the clocks while an exclusive attempt runs.
const WATCH_CLOCKS: Duration = Duration::from_secs(1);

/// Time between two attempts to write events that found no room.
const CATCH_UP: Duration = Duration::from_millis(500);

/// Exit code by which a shell tells that SIGKILL ended its command.
const SHELL_KILLED: i32 = 128 + 9;

/// Longest time a poll is given. The kernel refuses absurd ones, and a spurious wake-up is free.
const LONGEST_POLL: Duration = Duration::from_secs(24 * 3600);

/// The shim and everything it holds.
#[derive(Debug)]
pub(super) struct Shim {
    journal: Journal,
    control: Control,
    signals: Signals,
    progress: Option<Progress>,
    spawner: Spawner,
    out_of_memory: OutOfMemory,
    durability: Durability,
    clocks: JumpWatch,
    charge: Charge,
    host: String,
    buffer: Vec<u8>,
    now: Duration,
    running: Option<Attempt>,
    /// Every attempt this shim was ever given: an agent may repeat itself.
    seen: HashSet<i64>,
    jobs: u64,
    max_jobs: u64,
    max_segment_bytes: u64,
    retiring: bool,
    /// Since when neither work nor an agent is here.
    alone_since: Option<Duration>,
}

/// What poll has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ready {
    Output(Stream),
    Progress,
    Signals,
    Listener,
    Connection(usize),
}

impl Shim {
    /// Makes everything ready for the first assignment.
    pub(super) fn new(
        args: &Args,
        journal: Journal,
        first: Option<UnixStream>,
    ) -> Result<Self, ShimError> {
        let system = |what| move |source: io::Error| ShimError::System { what, source };
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|error| system("become the parent of orphans")(error.into()))?;
        let control = Control::listen(&args.socket, first).map_err(|source| ShimError::Listen {
            path: args.socket.clone(),
            source,
        })?;
        let progress = Progress::open(args.socket.with_extension("progress"))
            .inspect_err(|error| note!("jobs cannot report progress: {error}"))
            .ok();
        Ok(Self {
            journal,
            control,
            signals: Signals::take().map_err(system("take signals"))?,
            progress,
            spawner: Spawner::new().map_err(system("open /dev/null"))?,
            out_of_memory: OutOfMemory::new(),
            durability: Durability::default(),
            clocks: JumpWatch::new(),
            charge: Charge::beside(&args.segment),
            host: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            buffer: vec![0; MAX_OUT_BYTES],
            now: clock::now(),
            running: None,
            seen: HashSet::new(),
            jobs: 0,
            max_jobs: args.max_jobs,
            max_segment_bytes: args.max_segment_bytes,
            retiring: false,
            alone_since: None,
        })
    }

    /// Runs until the shim retires.
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            qctl_notify::panics::provoked("shim");
            self.settle();
            if self.is_done() {
                break;
            }
            for ready in self.wait()? {
                self.take(ready);
            }
            self.look_at_time();
        }
        self.retire()
    }

    /// Waits until something is ready or due.
    fn wait(&mut self) -> io::Result<Vec<Ready>> {
        self.now = clock::now();
        let mut sources = Vec::with_capacity(8);
        let mut fds = Vec::with_capacity(8);
        let mut add = |ready, fd, flags| {
            sources.push(ready);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        // Output comes first: what a process wrote before it ended belongs before its end.
        if let Some(attempt) = &self.running {
            for (stream, fd) in attempt.output.to_poll(self.now) {
                add(Ready::Output(stream), fd, PollFlags::IN);
            }
        }
        if let Some(progress) = &self.progress {
            add(Ready::Progress, progress.pipe(), PollFlags::IN);
        }
        add(Ready::Signals, self.signals.as_fd(), PollFlags::IN);
        add(Ready::Listener, self.control.listener(), PollFlags::IN);
        for (index, (fd, is_waiting)) in self.control.connections().enumerate() {
            let flags = match is_waiting {
                true => PollFlags::IN | PollFlags::OUT,
                false => PollFlags::IN,
            };
            add(Ready::Connection(index), fd, flags);
        }

        let timeout = self
            .deadline()
            .map(|deadline| deadline.saturating_sub(self.now).min(LONGEST_POLL))
            .and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = fds
            .iter()
            .zip(sources)
            .filter(|(fd, _)| !fd.revents().is_empty())
            .map(|(_, ready)| ready)
            .collect();
        self.now = clock::now();
        Ok(ready)
    }

    /// The next moment at which something is due.
    fn deadline(&self) -> Option<Duration> {
        let attempt = self.running.as_ref();
        let draining = attempt.and_then(|attempt| match attempt.stage {
            Stage::Draining { until, .. } => Some(until),
            Stage::Running | Stage::Recorded => None,
        });
        let minds_clocks = attempt.is_some_and(|attempt| attempt.enforcement.minds_clocks());
        [
            attempt.and_then(|attempt| attempt.enforcement.deadline()),
            attempt.and_then(|attempt| attempt.output.deadline(self.now)),
            attempt.and_then(|attempt| attempt.kill_again.map(|(at, _)| at)),
            attempt.and_then(|attempt| attempt.activity.as_ref().map(Activity::deadline)),
            draining,
            minds_clocks.then(|| self.now + WATCH_CLOCKS),
            self.progress.as_ref().and_then(Progress::deadline),
            self.durability.deadline(),
            self.journal.is_behind().then(|| self.now + CATCH_UP),
            self.alone_since.map(|since| since + ORPHANED),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn take(&mut self, ready: Ready) {
        match ready {
            Ready::Output(stream) => {
                if let Some(attempt) = &mut self.running {
                    let before = attempt.output.position().offset;
                    attempt.output.read(
                        stream,
                        self.now,
                        clock::wall_us(),
                        &mut self.buffer,
                        &mut self.journal,
                    );
                    // Also what found no room was heard.
                    if attempt.output.position().offset > before {
                        let fence = attempt.fence;
                        self.apply(fence, enforcement::Event::Heard);
                    }
                }
                self.conclude_when_drained(false);
            }
            Ready::Progress => {
                if let Some(progress) = &mut self.progress {
                    progress.read();
                }
                if let Some(attempt) = &self.running {
                    let fence = attempt.fence;
                    self.apply(fence, enforcement::Event::Heard);
                }
            }
            Ready::Signals => {
                if self.signals.drain() {
                    self.retiring = true;
                }
                self.reap();
            }
            Ready::Listener => self.control.accept(),
            Ready::Connection(index) => {
                for request in self.control.read(index) {
                    self.obey(request);
                }
            }
        }
    }

    fn obey(&mut self, request: ShimRequest) {
        match request.message {
            Some(Message::Run(run)) => self.begin(run),
            Some(Message::Stop(stop)) => self.stop(&stop),
            Some(Message::SetPaused(wish)) => {
                // Each change is recorded, so an agent that insists must not fill the memory.
                if !self.journal.is_stuck() {
                    self.apply(wish.fence, enforcement::Event::SetPaused(wish.paused));
                }
            }
            Some(Message::Lease(lease)) => {
                if let Some(holds_for) = self.renewal(&lease) {
                    self.apply(lease.fence, enforcement::Event::LeaseRenewed(holds_for));
                }
            }
            Some(Message::Retire(_)) => self.retiring = true,
            Some(Message::Committed(result)) => self.durability.committed(result.fence),
            Some(Message::Activity(works)) => {
                let counts = |attempt: &Attempt| attempt.activity.is_some();
                if self.running.as_ref().is_some_and(counts) {
                    self.apply(works.fence, enforcement::Event::Heard);
                }
            }
            None => note!("a request of an unknown kind was ignored"),
        }
    }

    /// How much longer a lease holds; `None` when what it was renewed on is from before a jump of the
    /// clock: the time that has passed since then is not known.
    fn renewal(&self, lease: &ShimLease) -> Option<Duration> {
        let offset = lease.clock_offset.as_ref().map(duration);
        if offset.is_some_and(|offset| !clock::is_current(offset)) {
            return None;
        }
        let until = lease.until.as_ref().map(duration);
        Some(match until {
            Some(until) => until.saturating_sub(self.now),
            None => lease.holds_for.as_ref().map_or(Duration::ZERO, duration),
        })
    }

    fn stop(&mut self, stop: &Stop) {
        // A process that ended by itself was not stopped, even if nobody has noticed yet.
        self.reap();
        let event = enforcement::Event::Stop {
            // An agent that names no cause acts for a person.
            cause: wire::cause(stop.cause()).unwrap_or(StopCause::Cancel),
            grace: stop.grace.as_ref().map(duration),
        };
        let may_be_cause = |attempt: &&mut Attempt| {
            attempt.fence == stop.fence && attempt.enforcement.cause().is_none()
        };
        if let Some(attempt) = self.running.as_mut().filter(may_be_cause) {
            attempt.facts.gpu.clone_from(&stop.gpu);
        }
        self.apply(stop.fence, event);
    }

    /// Tells the enforcement what happened to the attempt `fence`, if that is the running one, and
    /// does what it wants.
    fn apply(&mut self, fence: i64, event: enforcement::Event) {
        let Some(attempt) = self
            .running
            .as_mut()
            .filter(|attempt| attempt.fence == fence)
        else {
            return;
        };
        let mut follow = None;
        for action in attempt.enforcement.apply(self.now, event) {
            let done = match action {
                Action::RecordStopping(cause) => {
                    let cause = wire::wire_cause(Some(cause)).into();
                    self.journal
                        .append(fence, &[Event::Stopping(SegmentStopping { cause })]);
                    Ok(())
                }
                Action::RecordPaused(paused) => {
                    let change = PauseChanged { fence, paused };
                    self.journal.append(fence, &[Event::PauseChanged(change)]);
                    Ok(())
                }
                Action::RecordSilence(silence) => {
                    let silence = wire::segment_silence(silence, clock::wall_us());
                    self.journal.append(fence, &[Event::Silence(silence)]);
                    Ok(())
                }
                Action::Warn => attempt.warn(),
                Action::Terminate => attempt.terminate(),
                Action::Freeze => {
                    let frozen = attempt.freeze();
                    let whole = *frozen.as_ref().unwrap_or(&false);
                    follow = Some(enforcement::Event::Frozen { whole });
                    frozen.map(|_| ())
                }
                Action::Thaw => {
                    attempt.thaw();
                    Ok(())
                }
                Action::Kill => attempt.kill(self.now),
                Action::RecordStuck => attempt.living().map(|pids| {
                    note!(
                        "attempt {fence}: processes {pids:?} do not end although they were killed"
                    );
                    self.journal
                        .append(fence, &[Event::Stuck(SegmentStuck { pids })]);
                }),
            };
            if let Err(error) = done {
                note!("attempt {fence}: {action:?} failed: {error}");
            }
        }
        if let Some(event) = follow {
            self.apply(fence, event);
        }
    }

    /// Does what is due.
    fn look_at_time(&mut self) {
        if let Some(attempt) = &self.running {
            let fence = attempt.fence;
            if attempt
                .enforcement
                .deadline()
                .is_some_and(|deadline| self.now >= deadline)
            {
                self.reap();
                self.apply(fence, enforcement::Event::Tick);
            }
        }
        if let Some(attempt) = &mut self.running {
            let fence = attempt.fence;
            if attempt.kill_again.is_some_and(|(at, _)| self.now >= at)
                && let Err(error) = attempt.kill(self.now)
            {
                note!("attempt {fence}: its processes cannot be listed: {error}");
            }
            let idle = attempt.enforcement.idle(self.now);
            let works = attempt
                .activity
                .as_mut()
                .is_some_and(|activity| activity.look(self.now, idle));
            let has_jumped = attempt.enforcement.minds_clocks() && self.clocks.has_jumped();
            if works {
                self.apply(fence, enforcement::Event::Heard);
            }
            if has_jumped {
                self.apply(fence, enforcement::Event::ClockJumped);
            }
        }
        self.conclude_when_drained(false);
        self.report();
        self.journal.catch_up();
        let journal = &self.journal;
        self.durability.sync(self.now, || {
            Ok((journal.duplicates()?, journal.path().to_owned()))
        });
    }

    /// Records a progress report that is due.
    fn report(&mut self) {
        let Some(progress) = &mut self.progress else {
            return;
        };
        let Some(line) = progress.take(self.now) else {
            return;
        };
        if let Some(attempt) = &self.running
            && !matches!(attempt.stage, Stage::Recorded)
        {
            // Without room a report is lost; the next one says more.
            let report = Event::Report(line.into());
            let position = attempt.output.position();
            self.journal
                .append_among_output(attempt.fence, position, &report);
        }
    }

    /// Takes the ends of all processes that have ended.
    fn reap(&mut self) {
        let mut status = None;
        let main = self.running.as_ref().map(|attempt| attempt.pid);
        let has_children = loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, ended))) => {
                    if Some(pid.as_raw_pid()) == main {
                        status = Some(ended);
                    }
                }
                Ok(None) => break true,
                Err(Errno::INTR) => {}
                // No children at all.
                Err(_) => break false,
            }
        };
        let Some(attempt) = &self.running else {
            return;
        };
        if let Some(status) = status
            && matches!(attempt.stage, Stage::Running)
        {
            self.main_ended(status, has_children);
        }
        if !has_children {
            self.tree_ended();
        }
    }

    /// The attempt's own process has ended.
    fn main_ended(&mut self, status: WaitStatus, survivors: bool) {
        let Some(attempt) = &mut self.running else {
            return;
        };
        let wall_us = clock::wall_us();
        let fence = attempt.fence;
        let by_force = attempt.enforcement.is_killing();
        let is_killed = status.terminating_signal() == Some(Signal::KILL.as_raw()) && !by_force;
        let is_told = status.exit_status() == Some(SHELL_KILLED);
        let out_of_memory = (is_killed || is_told) && self.out_of_memory.has_struck(self.now);
        let mut ended = attempt.ended(status, self.now, wall_us, out_of_memory);
        if out_of_memory {
            ended.message = self.out_of_memory.doubt().to_owned();
        }
        attempt.stage = Stage::Draining {
            until: self.now.saturating_add(DRAIN),
            ended: Box::new(ended),
        };
        self.apply(fence, enforcement::Event::Exited { survivors });
        if let Some(attempt) = &mut self.running {
            attempt
                .output
                .drain(self.now, wall_us, &mut self.buffer, &mut self.journal);
        }
        // Without survivors the caller finds the tree empty and records both in one piece.
        if survivors {
            self.conclude_when_drained(false);
        }
    }

    /// No process of the attempt is left.
    fn tree_ended(&mut self) {
        self.conclude_when_drained(true);
        let Some(attempt) = self.running.take() else {
            return;
        };
        if let Stage::Recorded = attempt.stage {
            if let Some(progress) = &mut self.progress {
                // Reports that came too late for this attempt must not be the next one's.
                progress.drain();
            }
        } else {
            // Its own process has not been waited for, so it still counts as a child.
            self.running = Some(attempt);
        }
    }

    /// Records the end once the output has ended, its time is up or nobody is left to write.
    fn conclude_when_drained(&mut self, tree_is_empty: bool) {
        let Some(attempt) = &mut self.running else {
            return;
        };
        let fence = attempt.fence;
        let freed = Event::Freed(SegmentFreed {});
        match std::mem::replace(&mut attempt.stage, Stage::Recorded) {
            Stage::Running => attempt.stage = Stage::Running,
            Stage::Recorded => {
                if tree_is_empty {
                    self.journal.append(fence, &[freed]);
                }
            }
            Stage::Draining { until, ended } => {
                if !tree_is_empty && !attempt.output.has_ended() && self.now < until {
                    attempt.stage = Stage::Draining { until, ended };
                    return;
                }
                let wall_us = clock::wall_us();
                attempt
                    .output
                    .drain(self.now, wall_us, &mut self.buffer, &mut self.journal);
                attempt.output.close(&mut self.journal);
                let position = attempt.output.position();
                if let Some(line) = self.progress.as_mut().and_then(Progress::drain) {
                    let report = Event::Report(line.into());
                    self.journal.append_among_output(fence, position, &report);
                }
                let mut ended = *ended;
                ended.log_end = i64::try_from(position.offset).unwrap_or(i64::MAX);
                ended.log_crc32c = position.crc32c.unwrap_or_default();
                let checkpoints = attempt.facts.checkpoints.as_ref();
                ended.checkpoint = checkpoints
                    .and_then(CheckpointDir::finish)
                    .unwrap_or_default();
                let mut events = vec![Event::Exit(ended)];
                if tree_is_empty {
                    events.push(freed);
                }
                self.journal.append(fence, &events);
                self.durability.written(fence, self.now);
            }
        }
    }

    /// Takes an assignment.
    fn begin(&mut self, mut run: ShimRun) {
        let lease = self.lease(&run);
        let assignment = run.assignment.take().unwrap_or_default();
        let fence = assignment.fence;
        if self.seen.contains(&fence) {
            return;
        }
        // Held until the record stands: an agent that takes over must see it or prevent it.
        let hold = match self.charge.hold(run.agent) {
            Ok(Some(hold)) => hold,
            Ok(None) => {
                note!("attempt {fence} is not started: another agent has taken over");
                return;
            }
            Err(error) => {
                note!("attempt {fence}: who is in charge cannot be read: {error}");
                let refusal = format!("the worker's own files cannot be read: {error}");
                self.seen.insert(fence);
                self.journal.append(fence, &[Event::Void(refusal)]);
                return;
            }
        };
        self.seen.insert(fence);
        let refusal = if self.running.is_some() {
            Some("the shim is busy with another attempt")
        } else if self.retiring || self.is_used_up() {
            Some("the shim is about to retire")
        } else if self.journal.is_behind() {
            Some("the disk of the worker is full")
        } else if lease == Some(Duration::ZERO) {
            Some("its lease was over, or it was taken back, before it could start")
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.journal
                .append(fence, &[Event::Void(refusal.to_owned())]);
            return;
        }
        self.jobs += 1;
        let events = [
            Event::Assigned(assignment),
            Event::Starting(SegmentStarting {
                wall_us: clock::wall_us(),
                checkpoint_dir: run.checkpoint_dir.clone(),
            }),
        ];
        if !self.journal.append_if_room(fence, &events) {
            let refusal = "the disk of the worker has no room for the job's record".to_owned();
            self.journal.append(fence, &[Event::Void(refusal)]);
            return;
        }
        drop(hold);
        let [Event::Assigned(assignment), _] = events else {
            return;
        };
        let own = assignment.spec.as_ref().map(|spec| spec.log_limit_bytes);
        let limit = [own.unwrap_or_default(), run.log_limit_bytes]
            .into_iter()
            .filter_map(|limit| u64::try_from(limit).ok())
            .find(|limit| *limit > 0);
        self.journal
            .begin_output(limit.unwrap_or(ring::DEFAULT_LIMIT_BYTES));
        let silence = wire::stages(run.silence.as_ref(), &assignment);
        match self.launch(&assignment, lease, silence, &run) {
            Ok(attempt) => {
                let started = Event::Pid(SegmentPid {
                    pid: attempt.pid,
                    start_ticks: Process::look(attempt.pid)
                        .ok()
                        .flatten()
                        .map_or(0, |process| process.start_ticks),
                    wall_us: attempt.facts.started_us,
                    not_enforced: attempt.facts.not_enforced.clone(),
                });
                self.journal.append(fence, &[started]);
                self.running = Some(attempt);
            }
            Err(message) => {
                let ended = attempt::cannot_start(fence, message, clock::wall_us());
                let freed = Event::Freed(SegmentFreed {});
                self.journal.append(fence, &[Event::Exit(ended), freed]);
                self.durability.written(fence, self.now);
            }
        }
    }

    /// How long an exclusive attempt may run without a renewal.
    fn lease(&self, run: &ShimRun) -> Option<Duration> {
        let holds_for = run.lease?;
        let lease = ShimLease {
            fence: 0,
            holds_for: Some(holds_for),
            until: run.lease_until,
            clock_offset: run.clock_offset,
        };
        Some(self.renewal(&lease).unwrap_or_default())
    }

    /// Starts the process of an assignment, or says in a sentence why it cannot be started.
    fn launch(
        &mut self,
        assignment: &Assignment,
        lease: Option<Duration>,
        silence: Stages,
        run: &ShimRun,
    ) -> Result<Attempt, String> {
        let no_spec = JobSpec::default();
        let spec = assignment.spec.as_ref().unwrap_or(&no_spec);
        let host = &self.host;
        let checkpoint_dir = run.checkpoint_dir.as_str();
        let warn_signal = match spec.warn_signal {
            0 => Signal::USR1,
            number => signal::from_number(number)
                .ok_or_else(|| format!("there is no signal of number {number} to warn with"))?,
        };
        let surroundings = Surroundings {
            host,
            progress: self.progress.as_ref().map(Progress::path),
            checkpoint_dir,
            gpu_use_unseen: run.gpu_use_unseen,
        };
        let launch = launch::prepare(assignment, spec, &surroundings)?;
        let mut checkpoints = None;
        if !checkpoint_dir.is_empty() {
            let made = CheckpointDir::make(Path::new(checkpoint_dir)).map_err(|error| {
                format!(
                    "the checkpoint directory `{checkpoint_dir}` cannot be made on {host}: {error}"
                )
            })?;
            checkpoints = Some(made);
        }
        let unused = |message: String| {
            if let Some(checkpoints) = &checkpoints {
                checkpoints.finish();
            }
            message
        };
        let channels = Channels::open(spec.pty)
            .map_err(|error| {
                format!("the output of the job cannot be connected on {host}: {error}")
            })
            .map_err(unused)?;

        self.out_of_memory.arm(self.now);
        self.clocks = JumpWatch::new();
        let started_us = clock::wall_us();
        let started = clock::now();
        let pid = self
            .spawner
            .spawn(&launch.program, &channels.outputs())
            .map_err(|failure| launch::explain(&failure, &launch.program, spec, host))
            .map_err(unused)?;
        self.now = clock::now();
        let limits = Limits {
            time_limit: spec.time_limit.as_ref().map(duration),
            warn_before: spec.warn_before.as_ref().map(duration),
            grace: spec
                .stop_grace
                .as_ref()
                .map_or(enforcement::DEFAULT_GRACE, duration),
            lease,
            silence,
        };
        Ok(Attempt {
            fence: assignment.fence,
            pid,
            enforcement: Enforcement::start(started, limits),
            activity: Activity::watch(&silence, started),
            output: Output::new(assignment.fence, channels),
            stage: Stage::Running,
            warn_signal,
            facts: Facts {
                started_us,
                checkpoints,
                not_enforced: launch.not_enforced,
                checkpoint_exit_code: spec.checkpoint_exit_code,
                gpu: None,
            },
            frozen: Vec::new(),
            kill_again: None,
        })
    }

    /// Rings at the agents when there is something to ring about.
    fn settle(&mut self) {
        let event = ShimEvent {
            segment_end: self.journal.written(),
            idle: self.is_idle() && !self.is_retiring(),
            retiring: self.is_retiring(),
        };
        self.control.tell(event);
        if self.is_idle() && !self.control.is_connected() {
            let since = *self.alone_since.get_or_insert(self.now);
            self.retiring |= self.now.saturating_sub(since) >= ORPHANED;
        } else {
            self.alone_since = None;
        }
    }

    fn is_idle(&self) -> bool {
        self.running.is_none() && !self.journal.is_behind()
    }

    fn is_retiring(&self) -> bool {
        self.retiring || self.is_used_up()
    }

    fn is_used_up(&self) -> bool {
        // Files of a ring go with their segment, which is to be soon.
        self.jobs >= self.max_jobs
            || self.journal.end() >= self.max_segment_bytes
            || self.journal.has_overflowed()
    }

    fn is_done(&self) -> bool {
        self.is_idle() && self.is_retiring()
    }

    /// Leaves. Assignments that are still on their way are refused rather than lost.
    fn retire(mut self) -> io::Result<()> {
        self.retiring = true;
        self.control.accept();
        for index in 0..self.control.connections().count() {
            for request in self.control.read(index) {
                if let Some(Message::Run(_)) = &request.message {
                    self.obey(request);
                }
            }
        }
        self.settle();
        self.durability.finish(&self.journal.duplicates()?);
        if let Some(progress) = self.progress {
            progress.finish();
        }
        self.control.finish();
        self.journal.finish();
        Ok(())
    }
}

/// A wire duration; a negative one is none at all.
fn duration(wire: &prost_types::Duration) -> Duration {
    Duration::try_from(*wire).unwrap_or_default()
}
