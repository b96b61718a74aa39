//! Starts a process.
//!
//! The child shares the shim's memory until it has become the job's program (as with vfork), so a
//! start costs no copying of page tables, and the child can say where it failed by writing it down.
//! Between the two calls the child may only make system calls: no allocation, no locks, no panics.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use rustix::fs::{Mode, OFlags};

/// Room for the child's own calls, in bytes. It recurses nowhere.
const STACK_BYTES: usize = 64 * 1024;

/// How much more willingly than the shim the kernel kills the job when memory runs out, on its
/// scale that ends at 1000.
const OOM_SCORE_RAISE: i32 = 300;

const SHELL: &CStr = c"/bin/sh";

/// What to start.
#[derive(Debug)]
pub(super) struct Program {
    /// Files to try, in order; a relative one counts from `cwd`.
    pub(super) candidates: Vec<CString>,
    /// Arguments, the program's own name first.
    pub(super) arguments: Vec<CString>,
    /// `NAME=value` each.
    pub(super) environment: Vec<CString>,
    /// Working directory.
    pub(super) cwd: CString,
}

/// Where the output goes.
#[derive(Debug)]
pub(super) struct Outputs<'a> {
    /// Standard output.
    pub(super) stdout: BorrowedFd<'a>,
    /// Standard error.
    pub(super) stderr: BorrowedFd<'a>,
    /// Whether they are a terminal that becomes the session's own.
    pub(super) terminal: bool,
}

/// Where a start failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// No process could be made.
    Process,
    /// The working directory.
    Directory,
    /// The streams.
    Streams,
    /// Becoming the program.
    Program,
}

/// Why nothing was started.
#[derive(Debug)]
pub(super) struct SpawnError {
    /// Where.
    pub(super) stage: Stage,
    /// What the kernel said.
    pub(super) error: io::Error,
}

/// What all starts of a shim have in common.
#[derive(Debug)]
pub(super) struct Spawner {
    stack: Vec<u128>,
    null: OwnedFd,
    oom_score: Vec<u8>,
    shim: libc::pid_t,
}

impl Spawner {
    /// Prepares starts from this process.
    pub(super) fn new() -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let oom_score = std::fs::read_to_string("/proc/self/oom_score_adj")
            .ok()
            .and_then(|text| text.trim().parse::<i32>().ok())
            .unwrap_or(0)
            .saturating_add(OOM_SCORE_RAISE)
            .min(1000);
        Ok(Self {
            stack: vec![0; STACK_BYTES / size_of::<u128>()],
            null: rustix::fs::open("/dev/null", flags, Mode::empty())?,
            oom_score: oom_score.to_string().into_bytes(),
            shim: std::process::id() as libc::pid_t,
        })
    }

    /// Starts a program in a session of its own that ends when the shim does. Returns its process
    /// id.
    pub(super) fn spawn(
        &mut self,
        program: &Program,
        outputs: &Outputs<'_>,
    ) -> Result<i32, SpawnError> {
        let candidates = pointers(&program.candidates);
        let arguments = pointers(&program.arguments);
        let environment = pointers(&program.environment);
        // A script without a `#!` line is the shell's, as when a person types its name.
        let mut script = Vec::with_capacity(arguments.len() + 1);
        script.push(Cell::new(SHELL.as_ptr()));
        script.push(Cell::new(ptr::null()));
        script.extend(arguments.iter().skip(1).map(|&pointer| Cell::new(pointer)));
        let child = Child {
            candidates: &candidates,
            arguments: &arguments,
            script: &script,
            environment: &environment,
            cwd: &program.cwd,
            stdin: self.null.as_raw_fd(),
            stdout: outputs.stdout.as_raw_fd(),
            stderr: outputs.stderr.as_raw_fd(),
            terminal: outputs.terminal,
            oom_score: &self.oom_score,
            shim: self.shim,
            failure: Cell::new(None),
        };

        let pid = clone_into(&mut self.stack, &child);
        if let Some((stage, errno)) = child.failure.get() {
            // The failed child has ended; nobody else waits for it.
            if pid > 0 {
                // SAFETY: waitpid with a null status pointer only reaps.
                unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
            }
            return Err(SpawnError {
                stage,
                error: io::Error::from_raw_os_error(errno),
            });
        }
        Ok(pid)
    }
}

fn clone_into(stack: &mut [u128], child: &Child<'_>) -> libc::pid_t {
    // SAFETY: the sets are initialised by sigfillset and pthread_sigmask. All signals are
    // blocked, so that no handler of the shim runs on the child's side of the shared memory.
    let before = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        before
    };
    // SAFETY: the stack is exclusively the child's while it runs, because CLONE_VFORK suspends
    // this thread until the child has become another program or has ended; `child` and all it
    // points to outlive that. Stacks grow downwards on every architecture that Rust supports
    // on Linux with this interface.
    let pid = unsafe {
        libc::clone(
            begin,
            stack.as_mut_ptr_range().end.cast::<c_void>(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
            ptr::from_ref(child).cast_mut().cast::<c_void>(),
        )
    };
    if pid < 0 {
        let errno = io::Error::last_os_error().raw_os_error();
        child
            .failure
            .set(Some((Stage::Process, errno.unwrap_or(libc::EAGAIN))));
    }
    // SAFETY: `before` was filled in above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut()) };
    pid
}

/// A master and a slave of a new pseudo-terminal that passes output on unchanged.
pub(super) fn open_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr};

    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    let mut modes = tcgetattr(&slave)?;
    modes.output_modes.remove(OutputModes::OPOST);
    tcsetattr(&slave, OptionalActions::Now, &modes)?;
    rustix::termios::tcsetwinsize(
        &slave,
        Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )?;
    Ok((master, slave))
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    let strings = strings.iter().map(|string| string.as_ptr());
    strings.chain([ptr::null()]).collect()
}

/// What the child needs, all of it made before it exists. Lists end in a null pointer.
struct Child<'a> {
    candidates: &'a [*const c_char],
    arguments: &'a [*const c_char],
    /// The shell, a place for the script's path, the arguments.
    script: &'a [Cell<*const c_char>],
    environment: &'a [*const c_char],
    cwd: &'a CStr,
    stdin: c_int,
    stdout: c_int,
    stderr: c_int,
    terminal: bool,
    oom_score: &'a [u8],
    shim: libc::pid_t,
    failure: Cell<Option<(Stage, c_int)>>,
}

extern "C" fn begin(child: *mut c_void) -> c_int {
    // SAFETY: `clone_into` passes a Child that lives until this process has become another one.
    let child = unsafe { &*child.cast::<Child<'_>>() };
    // SAFETY: this is the new process, before it becomes another program.
    let failure = unsafe { child.become_program() };
    child.failure.set(Some(failure));
    // SAFETY: ends the process without running anything of the shim's.
    unsafe { libc::_exit(127) }
}

impl Child<'_> {
    /// Makes this process the job's. Returns only when that failed.
    ///
    /// # Safety
    /// Only in the child, where nothing but system calls may happen.
    unsafe fn become_program(&self) -> (Stage, c_int) {
        // SAFETY: plain system calls; every pointer comes from a list that the parent keeps alive.
        unsafe {
            libc::setsid();
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // Had the shim ended before the line above, nobody would ever send that signal.
            if libc::getppid() != self.shim {
                libc::_exit(127);
            }
            let score = libc::open(
                c"/proc/self/oom_score_adj".as_ptr(),
                libc::O_WRONLY | libc::O_CLOEXEC,
            );
            if score >= 0 {
                libc::write(score, self.oom_score.as_ptr().cast(), self.oom_score.len());
                libc::close(score);
            }
            for (from, to) in [(self.stdin, 0), (self.stdout, 1), (self.stderr, 2)] {
                if libc::dup2(from, to) < 0 {
                    return (Stage::Streams, errno());
                }
            }
            if self.terminal && libc::ioctl(1, libc::TIOCSCTTY, 0) < 0 {
                return (Stage::Streams, errno());
            }
            if libc::chdir(self.cwd.as_ptr()) < 0 {
                return (Stage::Directory, errno());
            }
            // Whatever else was open when the shim was started is no business of the job's.
            libc::syscall(
                libc::SYS_close_range,
                3_u32,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
            for signal in 1..=64 {
                // The numbers that the C library keeps for itself are refused, which is fine.
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
            self.try_candidates()
        }
    }

    /// # Safety
    /// As for `become_program`.
    unsafe fn try_candidates(&self) -> (Stage, c_int) {
        let mut last = libc::ENOENT;
        let mut denied = false;
        for &candidate in self.candidates {
            if candidate.is_null() {
                break;
            }
            // SAFETY: null-terminated lists of strings that the parent keeps alive.
            unsafe {
                libc::execve(
                    candidate,
                    self.arguments.as_ptr(),
                    self.environment.as_ptr(),
                );
                last = errno();
                if last == libc::ENOEXEC {
                    self.script[1].set(candidate);
                    libc::execve(
                        SHELL.as_ptr(),
                        self.script.as_ptr().cast(),
                        self.environment.as_ptr(),
                    );
                    return (Stage::Program, errno());
                }
            }
            match last {
                libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ESTALE | libc::ETIMEDOUT => {}
                libc::EACCES => denied = true,
                _ => return (Stage::Program, last),
            }
        }
        (Stage::Program, if denied { libc::EACCES } else { last })
    }
}

fn errno() -> c_int {
    // SAFETY: the address is valid for the calling thread, whose storage the child shares.
    unsafe { *libc::__errno_location() }
}

/// The terminal or the reading ends of pipes of one start, with the ends that the child gets.
#[derive(Debug)]
pub(super) struct Channels {
    /// Where the shim reads standard output.
    pub(super) stdout: OwnedFd,
    /// Where the shim reads standard error; `None` on a terminal.
    pub(super) stderr: Option<OwnedFd>,
    child_stdout: OwnedFd,
    child_stderr: Option<OwnedFd>,
}

impl Channels {
    /// Makes the channels for a start. The shim's ends never block.
    pub(super) fn open(terminal: bool) -> io::Result<Self> {
        let channels = if terminal {
            let (master, slave) = open_terminal()?;
            Self {
                stdout: master,
                stderr: None,
                child_stdout: slave,
                child_stderr: None,
            }
        } else {
            let (stdout, child_stdout) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            let (stderr, child_stderr) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            Self {
                stdout,
                stderr: Some(stderr),
                child_stdout,
                child_stderr: Some(child_stderr),
            }
        };
        for end in [Some(&channels.stdout), channels.stderr.as_ref()]
            .into_iter()
            .flatten()
        {
            rustix::fs::fcntl_setfl(end, OFlags::NONBLOCK)?;
        }
        Ok(channels)
    }

    /// What the child gets.
    pub(super) fn outputs(&self) -> Outputs<'_> {
        Outputs {
            stdout: self.child_stdout.as_fd(),
            stderr: self
                .child_stderr
                .as_ref()
                .unwrap_or(&self.child_stdout)
                .as_fd(),
            terminal: self.child_stderr.is_none(),
        }
    }
}
