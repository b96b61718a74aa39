//! Starting the keeper so that it outlives the terminal it was started from.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use qctl_proto::home::Home;

use super::log_file;

/// First descriptor that is none of the three standard ones.
const FIRST_FOREIGN: libc::c_uint = 3;

/// Starts a keeper in a session of its own, its output in `keeper.log`.
///
/// # Errors
/// When the log cannot be opened or the process cannot be started.
pub fn start(home: &Home) -> io::Result<Child> {
    let log = log_file::open(&home.logs_dir().join("keeper.log"))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("keeper")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .current_dir("/");
    // SAFETY: the closure makes two system calls and touches no memory of the parent's threads.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            // A pipe or lock that a script left open must not be held for as long as we live. A
            // kernel too old for the call leaves them open, which harms nobody here.
            libc::syscall(
                libc::SYS_close_range,
                FIRST_FOREIGN,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
            Ok(())
        });
    }
    command.spawn()
}
