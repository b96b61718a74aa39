//! The agent's end of one shim: hears its bell, reads its segment, passes requests on.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use prost::Message;
use qctl_proto::v1::{ShimEvent, ShimRequest};
use qctl_worker_core::roster::ShimId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::chain;
use crate::follower::{Follower, Note};
use crate::shim;
use crate::spool;

/// Longest message of a shim, in bytes; its bell is far shorter.
const MAX_EVENT_BYTES: usize = 1024;

/// Bounds of the pause between two attempts to reach a shim that is neither connected nor gone.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Time after which a segment that could not be read is tried again.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// What a link tells the supervisor.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// A connection was made. What was asked before may be lost, and is to be asked again.
    Connected,
    /// The segment told something.
    Notes(Vec<Note>),
    /// The shim can take an assignment.
    Idle,
    /// The shim takes no more.
    Retiring,
    /// The shim is gone, and this agent owns its segment. Nothing follows.
    Gone(Box<Follower>),
}

/// Where a link tells it, with the shim's name.
pub(crate) type Events = mpsc::Sender<(ShimId, LinkEvent)>;

/// A shim's link. Dropping it ends the link, not the shim.
#[derive(Debug)]
pub(crate) struct Link {
    requests: mpsc::UnboundedSender<ShimRequest>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Links to a shim over `stream`, or over its socket when there is none yet.
    pub(crate) fn start(
        shim: ShimId,
        stream: Option<UnixStream>,
        socket: PathBuf,
        follower: Follower,
        events: Events,
        clock: Instant,
    ) -> Self {
        let (requests, queue) = mpsc::unbounded_channel();
        let runner = Runner {
            shim,
            socket,
            follower,
            events,
            clock,
            inbox: Vec::new(),
        };
        Self {
            requests,
            task: tokio::spawn(runner.run(stream, queue)),
        }
    }

    /// Passes a request on. The number of requests is bounded by the number of assignments and of
    /// heartbeats, and a shim that takes none is gone soon.
    pub(crate) fn send(&self, request: ShimRequest) {
        let _ = self.requests.send(request);
    }
}

struct Runner {
    shim: ShimId,
    socket: PathBuf,
    follower: Follower,
    events: Events,
    clock: Instant,
    inbox: Vec<u8>,
}

/// What reading a piece of the segment led to.
enum Piece {
    More,
    End,
    /// It could not be read now.
    Failed,
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("the connection to the shim broke")]
    Io(#[from] io::Error),
    #[error("the shim said something that cannot be read")]
    Message(#[from] prost::DecodeError),
    #[error("the shim announced a message of {0} bytes")]
    TooLong(usize),
    #[error("the agent is ending")]
    Ending,
}

impl Runner {
    async fn run(
        mut self,
        mut stream: Option<UnixStream>,
        mut requests: mpsc::UnboundedReceiver<ShimRequest>,
    ) {
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(stream) = stream.take() {
                // Nobody knows what of it the shim has read.
                while requests.try_recv().is_ok() {}
                if self.tell(LinkEvent::Connected).await.is_err() {
                    return;
                }
                match self.talk(stream, &mut requests).await {
                    Ok(()) => pause = FIRST_PAUSE,
                    Err(LinkError::Ending) => return,
                    Err(error) => {
                        let shim = self.shim;
                        tracing::debug!(shim, %error, "shim {shim} is gone or must be reached again");
                    }
                }
            }
            // A shim that closes its connection is ending, and its lock says when it has.
            match spool::try_lock(self.follower.file()) {
                Ok(Some(())) => return self.gone().await,
                Ok(None) => {}
                Err(error) => {
                    let shim = self.shim;
                    tracing::error!(
                        shim,
                        "the lock of segment {shim} cannot be tried: {}",
                        chain(&error)
                    );
                }
            }
            let connected = shim::connect(&self.socket).and_then(|stream| {
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream)
            });
            stream = connected.ok();
            if stream.is_none() {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Reads what is left and tells that the shim is gone.
    async fn gone(mut self) {
        let mut notes = Vec::new();
        let mut told = false;
        while let Err(error) = self.follower.read_all(wall_now(), &mut notes) {
            let shim = self.shim;
            if !told {
                tracing::error!(shim, "segment {shim} cannot be read on: {}", chain(&error));
            }
            if !error.is_passing() {
                break;
            }
            // What could not be read may be an end. Judged without it, the job would run again.
            told = true;
            tokio::time::sleep(READ_AGAIN).await;
        }
        if !notes.is_empty() && self.tell(LinkEvent::Notes(notes)).await.is_err() {
            return;
        }
        let gone = LinkEvent::Gone(Box::new(self.follower));
        let _ = self.events.send((self.shim, gone)).await;
    }

    /// Serves one connection until the shim closes it.
    async fn talk(
        &mut self,
        mut stream: UnixStream,
        requests: &mut mpsc::UnboundedReceiver<ShimRequest>,
    ) -> Result<(), LinkError> {
        self.inbox.clear();
        let (mut reader, mut writer) = stream.split();
        let mut outbox = Bytes::new();
        // The latest bell, until the segment is read to its end. A job that floods may never let
        // that happen, so requests have their turn between two pieces.
        let mut bell = None;
        let mut read_again: Option<Instant> = None;
        loop {
            let monotonic = self.clock.elapsed();
            let progress = self.follower.progress_wait(monotonic);
            tokio::select! {
                read = reader.read_buf(&mut self.inbox) => {
                    if read? == 0 {
                        return Ok(());
                    }
                    // Only the last one counts: each says everything.
                    while let Some(event) = next_event(&mut self.inbox)? {
                        bell = Some(event);
                    }
                }
                () = tokio::task::yield_now(), if bell.is_some() && read_again.is_none() => {
                    match self.follow().await? {
                        Piece::More => {}
                        Piece::End => {
                            if let Some(bell) = bell.take() {
                                self.rung(bell).await?;
                            }
                        }
                        // The shim does not ring twice for the same.
                        Piece::Failed => read_again = Some(Instant::now() + READ_AGAIN),
                    }
                }
                () = tokio::time::sleep_until(read_again.unwrap_or(self.clock)), if read_again.is_some() => {
                    read_again = None;
                }
                written = writer.write_buf(&mut outbox), if !outbox.is_empty() => {
                    written?;
                }
                request = requests.recv(), if outbox.is_empty() => {
                    let request = request.ok_or(LinkError::Ending)?;
                    outbox = request.encode_length_delimited_to_vec().into();
                }
                () = tokio::time::sleep(progress.unwrap_or_default()), if progress.is_some() => {
                    let note = self.follower.progress(self.clock.elapsed());
                    if let Some(note) = note {
                        self.tell(LinkEvent::Notes(vec![note])).await?;
                    }
                }
            }
        }
    }

    /// Tells what a bell says besides that the segment has grown.
    async fn rung(&self, bell: ShimEvent) -> Result<(), LinkError> {
        if bell.idle {
            self.tell(LinkEvent::Idle).await?;
        }
        if bell.retiring {
            self.tell(LinkEvent::Retiring).await?;
        }
        Ok(())
    }

    /// Reads a piece of the segment and tells what it says.
    async fn follow(&mut self) -> Result<Piece, LinkError> {
        let mut notes = Vec::new();
        let more = self.follower.read(wall_now(), &mut notes);
        notes.extend(self.follower.progress(self.clock.elapsed()));
        if !notes.is_empty() {
            self.tell(LinkEvent::Notes(notes)).await?;
        }
        Ok(match more {
            Ok(true) => Piece::More,
            Ok(false) => Piece::End,
            Err(error) => {
                let shim = self.shim;
                tracing::error!(shim, "segment {shim} cannot be read on: {}", chain(&error));
                match error.is_passing() {
                    true => Piece::Failed,
                    false => Piece::End,
                }
            }
        })
    }

    async fn tell(&self, event: LinkEvent) -> Result<(), LinkError> {
        let told = self.events.send((self.shim, event)).await;
        told.map_err(|_| LinkError::Ending)
    }
}

/// Takes the next whole message from the inbox.
fn next_event(inbox: &mut Vec<u8>) -> Result<Option<ShimEvent>, LinkError> {
    let Ok(length) = prost::decode_length_delimiter(inbox.as_slice()) else {
        // A length that is cut has no meaning yet; one that never ends has none at all.
        return if inbox.len() < 10 {
            Ok(None)
        } else {
            Err(LinkError::TooLong(usize::MAX))
        };
    };
    if length > MAX_EVENT_BYTES {
        return Err(LinkError::TooLong(length));
    }
    let begin = prost::length_delimiter_len(length);
    let Some(body) = inbox.get(begin..begin + length) else {
        return Ok(None);
    };
    let event = ShimEvent::decode(body)?;
    inbox.drain(..begin + length);
    Ok(Some(event))
}

/// Time by the wall clock since the Unix epoch.
pub(crate) fn wall_now() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_in_pieces() {
        let event = ShimEvent {
            segment_end: 77,
            idle: true,
            retiring: false,
        };
        let bytes = event.encode_length_delimited_to_vec();
        let mut inbox = Vec::new();
        for byte in &bytes[..bytes.len() - 1] {
            inbox.push(*byte);
            assert!(next_event(&mut inbox).unwrap().is_none());
        }
        inbox.push(bytes[bytes.len() - 1]);
        inbox.extend(&bytes);
        assert_eq!(next_event(&mut inbox).unwrap(), Some(event));
        assert_eq!(next_event(&mut inbox).unwrap(), Some(event));
        assert!(inbox.is_empty());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(next_event(&mut vec![0xff; 10]).is_err());
        assert!(next_event(&mut vec![0xff, 0xff, 0xff, 0x7f, 0]).is_err());
    }
}
