//! What coordinator and worker have in common as programs that run for months: they tell the service
//! manager how far they are, and may open as many files as the machine allows.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The variable that names the socket of a service manager that wants to know. It is ours alone: what
/// we start says nothing of its own.
pub const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// Sends a state such as `READY=1` to the service manager, if one asked to be told. See sd_notify(3).
pub fn tell_manager(state: &str) {
    if let Some(socket) = std::env::var_os(NOTIFY_SOCKET).filter(|name| !name.is_empty())
        && let Err(error) = send(&socket, state)
    {
        tracing::warn!(%error, "cannot tell the service manager {state}");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

/// Lets this process open as many files at once as it may at most, and returns how many it was to
/// open before; `None` when that is not limited. That is what programs must get which we start for
/// others: those that wait with select(2) break where a file can have a number above 1023, which is
/// why the usual limit is so low.
pub fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = set_open_files(limit.maximum)
    {
        tracing::warn!(
            %error,
            "cannot have more than {} files open",
            limit.current.unwrap_or_default()
        );
    }
    limit.current
}

/// Sets how many files this process, and what it starts, may open at once.
///
/// # Errors
/// When it is more than the machine allows.
pub fn set_open_files(files: Option<u64>) -> io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: files,
        maximum,
    };
    Ok(setrlimit(Resource::Nofile, limit)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_arrives_at_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "READY=1").unwrap();
        let mut buffer = [0; 32];
        let length = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
    }
}
