//! Tells systemd how far the agent is, when it runs it with `Type=notify`.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The variable that names the socket of who wants to know. Shims are not started with it: they say
/// nothing of their own.
pub(crate) const VARIABLE: &str = "NOTIFY_SOCKET";

/// Sends a state such as `READY=1`, if anyone asked to be told.
pub(crate) fn notify(state: &str) {
    if let Some(socket) = std::env::var_os(VARIABLE).filter(|name| !name.is_empty())
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
