//! The shim's side of the control socket.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use prost::Message;
use qctl_proto::v1::{ShimEvent, ShimRequest};
use qctl_worker_core::segment::MAX_RECORD_BYTES;

/// Most agents that are connected at once. Normally there is one, and for a moment its successor.
const MAX_CONNECTIONS: usize = 4;

/// Piece in which requests are read, in bytes.
const PIECE_BYTES: usize = 16 * 1024;

/// The listening socket and the agents that are connected.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
    connections: Vec<Connection>,
    user: rustix::process::Uid,
}

/// An agent.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    told: Option<ShimEvent>,
    closed: bool,
}

impl Control {
    /// Listens, and takes an agent that is connected already.
    pub(super) fn listen(path: &Path, first: Option<UnixStream>) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = reach(path, |short| UnixListener::bind(short))?;
        listener.set_nonblocking(true)?;
        let mut control = Self {
            listener,
            path: path.to_owned(),
            connections: Vec::new(),
            user: rustix::process::geteuid(),
        };
        if let Some(first) = first {
            control.add(first)?;
        }
        Ok(control)
    }

    /// The listening socket, for poll.
    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Each connection, for poll, and whether it waits to be written to.
    pub(super) fn connections(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        self.connections
            .iter()
            .map(|connection| (connection.stream.as_fd(), !connection.outbox.is_empty()))
    }

    /// True while an agent is connected.
    pub(super) fn is_connected(&self) -> bool {
        !self.connections.is_empty()
    }

    /// Takes waiting agents. The oldest one leaves when there are too many.
    pub(super) fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let peer = rustix::net::sockopt::socket_peercred(&stream);
            let is_ours = peer.is_ok_and(|peer| peer.uid == self.user || peer.uid.is_root());
            if is_ours && self.add(stream).is_ok() && self.connections.len() > MAX_CONNECTIONS {
                self.connections.remove(0);
            }
        }
    }

    /// Reads what connection number `index` has sent.
    pub(super) fn read(&mut self, index: usize) -> Vec<ShimRequest> {
        let Some(connection) = self.connections.get_mut(index) else {
            return Vec::new();
        };
        let mut requests = Vec::new();
        if let Err(error) = connection.read(&mut requests) {
            if error.kind() != io::ErrorKind::UnexpectedEof {
                note!("a connection is closed: {error}");
            }
            connection.closed = true;
        }
        requests
    }

    /// Rings at every agent that does not know `event` yet, as far as their sockets take it, and
    /// drops those that are gone.
    pub(super) fn tell(&mut self, event: ShimEvent) {
        self.connections.retain_mut(|connection| {
            !connection.closed && {
                let told = connection.tell(event);
                told.is_ok()
            }
        });
    }

    /// Removes the socket.
    pub(super) fn finish(self) {
        // A leftover does no harm: the next agent finds nobody behind it.
        let _ = std::fs::remove_file(&self.path);
    }

    fn add(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        self.connections.push(Connection {
            stream,
            inbox: Vec::new(),
            outbox: Vec::new(),
            told: None,
            closed: false,
        });
        Ok(())
    }
}

impl Connection {
    fn read(&mut self, requests: &mut Vec<ShimRequest>) -> io::Result<()> {
        let mut piece = [0; PIECE_BYTES];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(length) => {
                    self.inbox.extend_from_slice(&piece[..length]);
                    self.parse(requests)?;
                    if length < piece.len() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn parse(&mut self, requests: &mut Vec<ShimRequest>) -> io::Result<()> {
        let mut at = 0;
        while let Some((head, length)) = read_length(&self.inbox[at..])? {
            let begin = at + head;
            let Some(body) = self.inbox.get(begin..begin + length) else {
                break;
            };
            requests.push(ShimRequest::decode(body).map_err(io::Error::other)?);
            at = begin + length;
        }
        self.inbox.drain(..at);
        if self.inbox.is_empty() {
            self.inbox.shrink_to(PIECE_BYTES);
        }
        Ok(())
    }

    fn tell(&mut self, event: ShimEvent) -> io::Result<()> {
        loop {
            while !self.outbox.is_empty() {
                match self.stream.write(&self.outbox) {
                    Ok(written) => {
                        self.outbox.drain(..written);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            // Only the latest state matters, so nothing is queued behind what waits.
            if self.told.as_ref() == Some(&event) {
                return Ok(());
            }
            self.outbox = event.encode_length_delimited_to_vec();
            self.told = Some(event);
        }
    }
}

/// Length of the next message and of the number that announces it; `None` while that is cut.
fn read_length(bytes: &[u8]) -> io::Result<Option<(usize, usize)>> {
    let mut length: u64 = 0;
    for (index, &byte) in bytes.iter().take(10).enumerate() {
        length |= u64::from(byte & 0x7f) << (7 * index as u32).min(63);
        if byte & 0x80 == 0 {
            if length > MAX_RECORD_BYTES as u64 {
                let problem = format!("a message of {length} bytes was announced");
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            }
            return Ok(Some((index + 1, length as usize)));
        }
    }
    if bytes.len() >= 10 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message has no length",
        ));
    }
    Ok(None)
}

/// Connects to a shim.
///
/// # Errors
/// When nobody listens at `path`.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    reach(path, |short| UnixStream::connect(short))
}

/// Opens a socket whose path may be longer than the 107 bytes that an address holds.
fn reach<T>(path: &Path, open: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;

    const MAX_ADDRESS_BYTES: usize = 107;
    if path.as_os_str().as_bytes().len() <= MAX_ADDRESS_BYTES {
        return open(path);
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return open(path);
    };
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let folder: OwnedFd = rustix::fs::open(folder, flags, rustix::fs::Mode::empty())?;
    let short = format!("/proc/self/fd/{}", folder.as_raw_fd());
    open(&Path::new(&short).join(name))
}

#[cfg(test)]
mod tests {
    use qctl_proto::v1::{ShimRetire, ShimRun, shim_request};

    use super::*;

    fn request(message: shim_request::Message) -> Vec<u8> {
        ShimRequest {
            message: Some(message),
        }
        .encode_length_delimited_to_vec()
    }

    #[test]
    fn requests_are_understood_in_pieces_and_at_long_paths() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("x".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("socket");
        let mut control = Control::listen(&path, None).unwrap();
        let mut agent = connect(&path).unwrap();
        control.accept();
        let mut bytes = request(shim_request::Message::Run(ShimRun {
            checkpoint_dir: "/c".repeat(40_000),
            ..ShimRun::default()
        }));
        bytes.extend(request(shim_request::Message::Retire(ShimRetire {})));
        let mut requests = Vec::new();
        for piece in bytes.chunks(1000) {
            agent.write_all(piece).unwrap();
            requests.extend(control.read(0));
        }
        assert_eq!(requests.len(), 2);
        drop(agent);
        assert!(control.read(0).is_empty());
        control.tell(ShimEvent::default());
        assert!(!control.is_connected());
        control.finish();
        assert!(!path.exists());
    }

    #[test]
    fn nonsense_closes_the_connection() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let mut control = Control::listen(&path, None).unwrap();
        let mut agent = connect(&path).unwrap();
        control.accept();
        agent.write_all(&[0xff; 12]).unwrap();
        assert!(control.read(0).is_empty());
        control.tell(ShimEvent::default());
        assert!(!control.is_connected());
    }

    #[test]
    fn a_deaf_agent_blocks_nobody_and_hears_the_latest() {
        let (mut agent, shim) = UnixStream::pair().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut control = Control::listen(&folder.path().join("socket"), Some(shim)).unwrap();
        let mut last = ShimEvent::default();
        for end in 1..200_000 {
            last.segment_end = end;
            control.tell(last);
        }
        agent.set_nonblocking(true).unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(&last.encode_length_delimited_to_vec()) {
            let mut piece = [0; 4096];
            if let Ok(length) = agent.read(&mut piece) {
                heard.extend_from_slice(&piece[..length]);
            }
            control.tell(last);
        }
        assert!(heard.len() < 2_000_000);
    }
}
