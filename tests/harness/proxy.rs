//! A proxy that a test puts between two programs to spoil their connection.
//!
//! It takes TCP connections and carries them to another TCP port or to a Unix socket: between a
//! worker and its coordinator, or between a coordinator and Postgres (give it
//! `postgres://USER@127.0.0.1:PORT/DATABASE?sslmode=disable` with the proxy's port).

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest wait for what a test waits for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running proxy. Dropping it cuts every connection.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    upstream: Upstream,
    links: Vec<Arc<Link>>,
    /// When each connection was made, in order.
    accepted: Vec<Instant>,
    mode: Mode,
    delay: Duration,
    /// Bytes a second that all connections together carry to the server; none means no limit.
    rate: Option<u64>,
    /// When the link has carried what was taken so far.
    free_at: Instant,
    /// A text whose answer is to be lost, once, and what its connection must have sent before.
    lose_answer_to: Option<(Vec<u8>, Vec<u8>)>,
    lost: usize,
    over: bool,
}

#[derive(Clone)]
enum Upstream {
    Tcp(SocketAddr),
    /// The address that stands in this file when a connection is made.
    AddressIn(PathBuf),
    Unix(PathBuf),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    Refuse,
    Freeze,
}

/// One connection that is carried.
struct Link {
    client: Stream,
    server: Stream,
    frozen: AtomicBool,
    /// It has sent what must come before the text whose answer is to be lost.
    ready: AtomicBool,
    losing: AtomicBool,
    closed: AtomicBool,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Proxy {
    /// A proxy before a TCP port.
    pub(crate) fn to_tcp(upstream: SocketAddr) -> Self {
        Self::start(Upstream::Tcp(upstream))
    }

    /// A proxy before the coordinator whose address is in this file; one that is started again is
    /// found at its new port.
    pub(crate) fn to_address_in(file: PathBuf) -> Self {
        Self::start(Upstream::AddressIn(file))
    }

    /// A proxy before a Unix socket, such as Postgres's `.s.PGSQL.5432`.
    pub(crate) fn to_unix(upstream: &Path) -> Self {
        Self::start(Upstream::Unix(upstream.to_owned()))
    }

    fn start(upstream: Upstream) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                upstream,
                links: Vec::new(),
                accepted: Vec::new(),
                mode: Mode::Pass,
                delay: Duration::ZERO,
                rate: None,
                free_at: Instant::now(),
                lose_answer_to: None,
                lost: 0,
                over: false,
            }),
            changed: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || accepting.accept(&listener));
        Self { address, shared }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Carries later connections elsewhere: a program was started again on another port.
    pub(crate) fn redirect(&self, upstream: SocketAddr) {
        self.shared.locked().upstream = Upstream::Tcp(upstream);
    }

    /// Cuts every connection; later ones pass.
    pub(crate) fn cut(&self) {
        for link in std::mem::take(&mut self.shared.locked().links) {
            link.close();
        }
    }

    /// Cuts every connection and refuses later ones, until [`Proxy::heal`].
    pub(crate) fn refuse(&self) {
        self.shared.locked().mode = Mode::Refuse;
        self.cut();
    }

    /// Makes every connection half-open: nothing is carried any more, and neither side is told.
    /// Later connections pass.
    pub(crate) fn freeze(&self) {
        for link in &self.shared.locked().links {
            link.frozen.store(true, Ordering::SeqCst);
        }
    }

    /// The same, also for later connections, until [`Proxy::heal`]: a black hole.
    pub(crate) fn freeze_all(&self) {
        self.shared.locked().mode = Mode::Freeze;
        self.freeze();
    }

    /// Lets later connections pass again. Frozen ones stay frozen, as after a network's route has
    /// gone and come back.
    pub(crate) fn heal(&self) {
        self.shared.locked().mode = Mode::Pass;
    }

    /// Lets everything pass again, also what was frozen: as after packets were dropped for a while.
    pub(crate) fn thaw(&self) {
        let mut state = self.shared.locked();
        state.mode = Mode::Pass;
        for link in &state.links {
            link.frozen.store(false, Ordering::SeqCst);
        }
    }

    /// When each connection was made, in order.
    pub(crate) fn accepted(&self) -> Vec<Instant> {
        self.shared.locked().accepted.clone()
    }

    /// Holds up what is carried from now on, each piece for so long.
    pub(crate) fn delay(&self, delay: Duration) {
        self.shared.locked().delay = delay;
    }

    /// Carries at most so many bytes a second to the server, over all connections together: what
    /// one of them sends waits behind what the others sent before.
    pub(crate) fn throttle(&self, bytes_per_second: u64) {
        self.shared.locked().rate = Some(bytes_per_second);
    }

    /// The next time a client sends this text, the server gets it and its answer is lost: the
    /// connection breaks instead. `COMMIT` is how sqlx commits.
    pub(crate) fn lose_answer_to(&self, text: &str) {
        self.lose_answer_after("", text);
    }

    /// The same on a connection that has sent `before` first: others may send that text as well.
    pub(crate) fn lose_answer_after(&self, before: &str, text: &str) {
        let mut state = self.shared.locked();
        for link in &state.links {
            link.ready.store(false, Ordering::SeqCst);
        }
        state.lose_answer_to = Some((before.into(), text.into()));
    }

    /// Waits until an answer was lost since the proxy started, `times` in all.
    #[track_caller]
    pub(crate) fn until_lost(&self, times: usize) {
        let state = self.shared.locked();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, PATIENCE, |state| state.lost < times);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(
            !timeout.timed_out(),
            "{} of {times} answers lost",
            state.lost
        );
    }

    /// How many connections it carries now.
    pub(crate) fn connections(&self) -> usize {
        let mut state = self.shared.locked();
        state.links.retain(|link| link.is_open());
        state.links.len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.locked().over = true;
        self.cut();
        // Wakes the thread that accepts, which then ends.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            let (upstream, mode) = {
                let state = self.locked();
                if state.over {
                    return;
                }
                (state.upstream.clone(), state.mode)
            };
            let Ok(client) = client else { continue };
            if mode == Mode::Refuse {
                continue;
            }
            // A server that is away refuses this client too.
            let server = match upstream {
                Upstream::Tcp(address) => TcpStream::connect(address).map(Stream::Tcp),
                Upstream::AddressIn(file) => std::fs::read_to_string(file)
                    .and_then(|address| TcpStream::connect(address.trim()))
                    .map(Stream::Tcp),
                Upstream::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
            };
            let Ok(server) = server else { continue };
            let _ = client.set_nodelay(true);
            if let Stream::Tcp(server) = &server {
                let _ = server.set_nodelay(true);
            }
            let link = Arc::new(Link {
                client: Stream::Tcp(client),
                server,
                frozen: AtomicBool::new(mode == Mode::Freeze),
                ready: AtomicBool::new(false),
                losing: AtomicBool::new(false),
                closed: AtomicBool::new(false),
            });
            {
                let mut state = self.locked();
                state.links.retain(|link| link.is_open());
                state.links.push(Arc::clone(&link));
                state.accepted.push(Instant::now());
            }
            for to_server in [true, false] {
                let (shared, link) = (Arc::clone(&self), Arc::clone(&link));
                std::thread::spawn(move || {
                    shared.carry(&link, to_server);
                    link.close();
                });
            }
        }
    }

    /// Time until a slow link has carried so many bytes more.
    fn until_carried(&self, length: usize) -> Duration {
        let mut state = self.locked();
        let Some(rate) = state.rate else {
            return Duration::ZERO;
        };
        let now = Instant::now();
        let takes = Duration::from_secs_f64(length as f64 / rate as f64);
        state.free_at = state.free_at.max(now) + takes;
        state.free_at - now
    }

    /// Carries one direction until either side ends.
    fn carry(&self, link: &Link, to_server: bool) {
        let (from, to) = match to_server {
            true => (&link.client, &link.server),
            false => (&link.server, &link.client),
        };
        let mut piece = vec![0; 64 * 1024];
        while let Ok(length) = from.read(&mut piece) {
            if length == 0 {
                return;
            }
            let delay = self.locked().delay;
            std::thread::sleep(delay);
            if to_server {
                std::thread::sleep(self.until_carried(length));
            }
            while link.frozen.load(Ordering::SeqCst) {
                if !link.is_open() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            if to_server {
                let mut state = self.locked();
                let has = |text: &[u8]| {
                    text.is_empty() || piece[..length].windows(text.len()).any(|part| part == text)
                };
                let found = state.lose_answer_to.as_ref().is_some_and(|(before, text)| {
                    if has(before) {
                        link.ready.store(true, Ordering::SeqCst);
                    }
                    link.ready.load(Ordering::SeqCst) && has(text)
                });
                if found {
                    state.lose_answer_to = None;
                    link.losing.store(true, Ordering::SeqCst);
                }
            } else if link.losing.load(Ordering::SeqCst) {
                self.locked().lost += 1;
                self.changed.notify_all();
                return;
            }
            if to.write_all(&piece[..length]).is_err() {
                return;
            }
        }
    }
}

impl Link {
    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.client.shut_down();
        self.server.shut_down();
    }

    fn is_open(&self) -> bool {
        !self.closed.load(Ordering::SeqCst)
    }
}

impl Stream {
    fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => (&*stream).read(buffer),
            Self::Unix(stream) => (&*stream).read(buffer),
        }
    }

    fn write_all(&self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Tcp(stream) => (&*stream).write_all(bytes),
            Self::Unix(stream) => (&*stream).write_all(bytes),
        }
    }

    fn shut_down(&self) {
        // It may have ended by itself.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers every piece with the same piece.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut piece = [0; 64];
                    while let Ok(length @ 1..) = (&stream).read(&mut piece) {
                        let _ = (&stream).write_all(&piece[..length]);
                    }
                });
            }
        });
        address
    }

    /// How long an answer may take that comes.
    const SOON: Duration = Duration::from_secs(10);

    fn ask(stream: &TcpStream, text: &str) -> std::io::Result<String> {
        ask_within(stream, text, SOON)
    }

    fn ask_within(stream: &TcpStream, text: &str, within: Duration) -> std::io::Result<String> {
        stream.set_read_timeout(Some(within))?;
        (&*stream).write_all(text.as_bytes())?;
        let mut piece = [0; 64];
        let length = (&*stream).read(&mut piece)?;
        Ok(String::from_utf8_lossy(&piece[..length]).into_owned())
    }

    #[test]
    fn it_carries_freezes_cuts_refuses_and_loses_answers() {
        let proxy = Proxy::to_tcp(echo());
        let first = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(ask(&first, "one").unwrap(), "one");

        proxy.freeze();
        let silent = ask_within(&first, "two", Duration::from_millis(300));
        assert!(silent.is_err(), "nothing is carried");
        let second = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(ask(&second, "three").unwrap(), "three");
        proxy.thaw();
        assert_eq!(
            ask(&first, "").unwrap_or_default(),
            "two",
            "it was only late"
        );

        proxy.lose_answer_to("COMMIT");
        assert_eq!(ask(&second, "COMMIT").unwrap(), "", "it ends instead");
        proxy.until_lost(1);

        proxy.refuse();
        let third = TcpStream::connect(proxy.address()).unwrap();
        assert!(!matches!(ask(&third, "four").as_deref(), Ok("four")));
        drop(third);
        proxy.heal();
        let fourth = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(ask(&fourth, "five").unwrap(), "five");
        assert_eq!(proxy.connections(), 1);
    }
}
