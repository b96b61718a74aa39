//! A network between two programs that can be cut, held up and left half-open.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a thread that moves bytes may take to notice a change.
const LOOK: Duration = Duration::from_millis(5);

/// What happens to bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// They arrive.
    Open,
    /// They wait: as when packets are dropped for a while, nothing is lost and nothing arrives.
    Held,
    /// Connections are reset, and new ones too.
    Cut,
}

struct State {
    mode: Mode,
    /// Connections of this number and older are stuck for ever.
    stranded: usize,
    /// Both ends of each connection, and when it was made.
    connections: Vec<([TcpStream; 2], Instant)>,
    closed: bool,
}

/// A listener that passes everything on to a coordinator, as far as it is told to.
pub(crate) struct Link {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Link {
    /// A link to the coordinator whose address is in this file, read anew for each connection.
    pub(crate) fn to_address_in(file: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::new(Mutex::new(State {
                mode: Mode::Open,
                stranded: 0,
                connections: Vec::new(),
                closed: false,
            })),
        };
        let state = Arc::clone(&link.state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if state.lock().unwrap().closed {
                    return;
                }
                let target = std::fs::read_to_string(&file).unwrap_or_default();
                connect(stream, target.trim(), &state);
            }
        });
        link
    }

    /// Where to connect to.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Lets everything pass again, also what was held.
    pub(crate) fn open(&self) {
        self.state.lock().unwrap().mode = Mode::Open;
    }

    /// Nothing arrives until [`Link::open`], and nothing is lost.
    pub(crate) fn hold(&self) {
        self.state.lock().unwrap().mode = Mode::Held;
    }

    /// Resets all connections and refuses new ones.
    pub(crate) fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.mode = Mode::Cut;
        reset_all(&mut state);
    }

    /// Resets all connections; new ones pass.
    pub(crate) fn reset(&self) {
        reset_all(&mut self.state.lock().unwrap());
    }

    /// The connections that exist stay open and never carry another byte, as when the other machine
    /// is gone without a word; new ones pass.
    pub(crate) fn strand(&self) {
        let mut state = self.state.lock().unwrap();
        state.stranded = state.connections.len();
    }

    /// When each connection was made, in order.
    pub(crate) fn accepted(&self) -> Vec<Instant> {
        let state = self.state.lock().unwrap();
        state.connections.iter().map(|(_, at)| *at).collect()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap();
        state.closed = true;
        reset_all(&mut state);
        drop(state);
        // The listener's thread wakes up, sees that it is over and ends.
        let _ = TcpStream::connect(self.address);
    }
}

fn reset_all(state: &mut State) {
    for (ends, _) in &state.connections {
        for end in ends {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

fn connect(near: TcpStream, target: &str, state: &Arc<Mutex<State>>) {
    if state.lock().unwrap().mode == Mode::Cut {
        return;
    }
    let Ok(far) = TcpStream::connect(target) else {
        return;
    };
    for end in [&near, &far] {
        end.set_nodelay(true).unwrap();
    }
    let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else {
        return;
    };
    let number = {
        let mut state = state.lock().unwrap();
        let ends = [near.try_clone().unwrap(), far.try_clone().unwrap()];
        state.connections.push((ends, Instant::now()));
        state.connections.len()
    };
    for (from, to) in [(near, far_too), (far, near_too)] {
        let state = Arc::clone(state);
        std::thread::spawn(move || carry(from, to, number, &state));
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, number: usize, state: &Mutex<State>) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        loop {
            let state = state.lock().unwrap();
            if state.closed {
                return;
            }
            let passes = number > state.stranded && state.mode != Mode::Held;
            drop(state);
            if passes {
                break;
            }
            std::thread::sleep(LOOK);
        }
        if to.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    // A stranded connection does not even tell that an end of it has gone.
    if number > state.lock().unwrap().stranded {
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
