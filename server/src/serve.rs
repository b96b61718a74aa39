//! One port for gRPC and pages, plain on loopback or with TLS.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use qctl_proto::daemon;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::config::TlsFiles;

/// Connections served at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 4_096;

/// Streams of one connection at once.
const STREAMS: u32 = 1_024;

/// How long a client may take to agree on TLS.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// An idle connection is asked for a sign of life this often, and closed when none comes for as
/// long again.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// How long open calls may go on once the coordinator stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(4);

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken, or not ours.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificate or key cannot be read.
    #[error("cannot read the TLS file {path}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The certificate and key do not go together.
    #[error("the TLS certificate and key cannot be used")]
    Tls {
        /// Why.
        source: rustls::Error,
    },
    /// The address file cannot be written.
    #[error("cannot write {path}")]
    AddressFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The server ended by itself.
    #[error("serving ended")]
    Transport {
        /// Why.
        source: tonic::transport::Error,
    },
    /// The server's task panicked, which is a bug.
    #[error("the server's task ended")]
    Task {
        /// Why.
        source: tokio::task::JoinError,
    },
}

/// A bound port.
pub(crate) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
}

impl Listener {
    /// Binds the address; port 0 takes a free one.
    pub(crate) async fn bind(
        address: SocketAddr,
        tls: Option<&TlsFiles>,
    ) -> Result<Self, ServeError> {
        let tls = tls.map(acceptor).transpose()?;
        let failed = |source| ServeError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            address,
            tls,
        })
    }

    /// Binds the address. Where its port is 0, the port is the one in `file`, which is the one that was
    /// free when there was no such file: links that were printed lead to the same place after a
    /// restart. A port that someone else has by now is given up for a free one.
    pub(crate) async fn bind_as_before(
        address: SocketAddr,
        tls: Option<&TlsFiles>,
        file: &Path,
    ) -> Result<Self, ServeError> {
        if address.port() != 0 {
            return Self::bind(address, tls).await;
        }
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let before = text.strip_suffix('\n').and_then(|text| text.parse().ok());
        if let Some(port) = before.filter(|port| *port != 0) {
            match Self::bind(SocketAddr::new(address.ip(), port), tls).await {
                Ok(bound) => return Ok(bound),
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "port {port} of before cannot be had, so links with it are dead"
                ),
            }
        }
        let bound = Self::bind(address, tls).await?;
        if let Err(error) = std::fs::write(file, format!("{}\n", bound.address.port())) {
            tracing::warn!(%error, "the next start takes another port: cannot write {}", file.display());
        }
        Ok(bound)
    }

    /// The address that was bound.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address for a client on this machine, with a scheme.
    pub(crate) fn local_url(&self) -> String {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", SocketAddr::new(ip, self.address.port()))
    }

    /// Serves until `stop` is cancelled, then lets open calls end for a while.
    pub(crate) async fn serve(
        self,
        router: Router,
        stop: CancellationToken,
    ) -> Result<(), ServeError> {
        let (ready, incoming) = mpsc::channel(16);
        let accepting = tokio::spawn(accept(self.listener, self.tls, ready));
        let serving = Server::builder()
            .accept_http1(true)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(STREAMS)
            .add_routes(Routes::from(router))
            .serve_with_incoming_shutdown(
                ReceiverStream::new(incoming),
                stop.clone().cancelled_owned(),
            );
        let mut serving = tokio::spawn(serving);
        let drained = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN_LIMIT).await;
        };
        let ended = tokio::select! {
            ended = &mut serving => Some(ended),
            () = drained => None,
        };
        accepting.abort();
        match ended {
            Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(source))) => Err(ServeError::Transport { source }),
            Some(Err(source)) => Err(ServeError::Task { source }),
            None => {
                serving.abort();
                tracing::warn!("calls were still open after {DRAIN_LIMIT:?} and are cut");
                Ok(())
            }
        }
    }
}

/// Accepts connections one by one; TLS is agreed on aside, so that a slow client holds up nobody.
async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: some connection has to end first.
                tracing::warn!(error = %error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Without this a small answer waits for the acknowledgement of the one before.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(error = %error, "a connection was gone at once");
            continue;
        }
        let Some(tls) = tls.clone() else {
            let connection = Connection::new(Stream::Plain(stream), permit);
            if ready.send(Ok(connection)).await.is_err() {
                return;
            }
            continue;
        };
        let ready = ready.clone();
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let connection = Connection::new(Stream::Tls(Box::new(stream)), permit);
                    // Nobody takes it when the coordinator stops.
                    let _ = ready.send(Ok(connection)).await;
                }
                Ok(Err(error)) => {
                    tracing::debug!(error = %error, "a client failed to agree on TLS")
                }
                Err(_) => tracing::debug!("a client did not agree on TLS in time"),
            }
        });
    }
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, ServeError> {
    let pem = |path: &Path| {
        let path = path.to_owned();
        move |source| ServeError::Pem { path, source }
    };
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(pem(&files.certificate))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(pem(&files.key))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|source| ServeError::Tls { source })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection, counted for as long as it lives.
struct Connection {
    stream: Stream,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn new(stream: Stream, permit: OwnedSemaphorePermit) -> Self {
        Self {
            stream,
            _permit: permit,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// Tells that this coordinator answers, as leader or standing by: programs of this installation by
/// a file, the service manager by its socket. Takes it back when the coordinator stops.
pub(crate) struct Announcement {
    path: PathBuf,
    local_url: String,
    written: Arc<Mutex<Option<AddressFile>>>,
}

impl Announcement {
    /// Announces nothing yet.
    pub(crate) fn new(path: PathBuf, local_url: &str, stop: &CancellationToken) -> Self {
        let written = Arc::new(Mutex::new(None));
        let (stop, withdrawn) = (stop.clone(), Arc::clone(&written));
        tokio::spawn(async move {
            stop.cancelled().await;
            daemon::tell_manager("STOPPING=1");
            *locked(&withdrawn) = None;
        });
        Self {
            path,
            local_url: local_url.to_owned(),
            written,
        }
    }

    /// Announces, once.
    ///
    /// # Errors
    /// [`ServeError::AddressFile`].
    pub(crate) fn announce(&self) -> Result<(), ServeError> {
        let mut written = locked(&self.written);
        if written.is_none() {
            *written = Some(AddressFile::write(self.path.clone(), &self.local_url)?);
            daemon::tell_manager("READY=1");
        }
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The file that tells programs of this installation where we listen. Removed when dropped, unless
/// another coordinator has written it since.
struct AddressFile {
    path: PathBuf,
    line: String,
}

impl AddressFile {
    /// Writes the address: `HOST:PORT`, with a scheme when it is TLS.
    fn write(path: PathBuf, local_url: &str) -> Result<Self, ServeError> {
        let address = local_url.strip_prefix("http://").unwrap_or(local_url);
        let line = format!("{address}\n");
        let draft = path.with_extension("new");
        std::fs::write(&draft, &line)
            .and_then(|()| std::fs::rename(&draft, &path))
            .map_err(|source| ServeError::AddressFile {
                path: path.clone(),
                source,
            })?;
        Ok(Self { path, line })
    }
}

impl Drop for AddressFile {
    fn drop(&mut self) {
        if std::fs::read_to_string(&self.path).is_ok_and(|line| line == self.line)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(error = %error, "cannot remove {}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_file_goes_with_its_writer_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("address");
        let ours = AddressFile::write(path.clone(), "http://127.0.0.1:7420").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "127.0.0.1:7420\n");
        drop(ours);
        assert!(!path.exists());

        let ours = AddressFile::write(path.clone(), "https://127.0.0.1:1").unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "https://127.0.0.1:1\n"
        );
        std::fs::write(&path, "127.0.0.1:2\n").unwrap();
        drop(ours);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_free_port_is_kept_from_start_to_start() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("port");
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let bind = async || Listener::bind_as_before(any, None, &file).await.unwrap();
        let first = bind().await;
        let address = first.address();
        let beside = bind().await;
        assert_ne!(beside.address(), address, "it was taken");
        drop((first, beside));
        std::fs::write(&file, format!("{}\n", address.port())).unwrap();
        assert_eq!(bind().await.address(), address);
        std::fs::write(&file, "torn").unwrap();
        assert_ne!(bind().await.address().port(), 0);
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_that_names_it() {
        let first = Listener::bind("127.0.0.1:0".parse().unwrap(), None)
            .await
            .unwrap();
        let error = Listener::bind(first.address(), None).await.err().unwrap();
        assert_eq!(
            error.to_string(),
            format!("cannot listen on {}", first.address())
        );
    }
}
