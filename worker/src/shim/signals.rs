//! Signals to the shim, as a descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// The signals that the loop takes: children that ended, and people or a system that want the shim
/// to go. The latter let the running attempt end first.
#[derive(Debug)]
pub(super) struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Blocks the signals and opens the descriptor. Writing beyond the limit of the file size is
    /// an error from now on, not the end.
    pub(super) fn take() -> io::Result<Self> {
        // SAFETY: the set and the action are initialised before they are passed on; no handler of
        // ours is installed.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(&mut set, signal);
            }
            let refused = libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut());
            if refused != 0 {
                return Err(io::Error::from_raw_os_error(refused));
            }
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            // Processes that are merely frozen or thawed are of no interest.
            let mut quiet: libc::sigaction = std::mem::zeroed();
            quiet.sa_sigaction = libc::SIG_DFL;
            quiet.sa_flags = libc::SA_NOCLDSTOP;
            libc::sigaction(libc::SIGCHLD, &quiet, ptr::null_mut());
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self {
                fd: OwnedFd::from_raw_fd(fd),
            })
        }
    }

    /// Takes what has arrived. Returns true when somebody wants the shim to go.
    pub(super) fn drain(&self) -> bool {
        let mut wants_end = false;
        loop {
            // SAFETY: signalfd_siginfo is plain data, and read fills at most its size.
            let (length, info) = unsafe {
                let mut info: libc::signalfd_siginfo = std::mem::zeroed();
                let size = size_of::<libc::signalfd_siginfo>();
                let length = libc::read(self.fd.as_raw_fd(), ptr::from_mut(&mut info).cast(), size);
                (length, info)
            };
            if length <= 0 {
                return wants_end;
            }
            wants_end |= info.ssi_signo != libc::SIGCHLD as u32;
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
