//! The listeners of the HTTP API. Bounded, since they may be reached by anybody on the orchestrator's network: so many
//! connections, so slow a request, so slow a reader. A descriptor that a connection takes is one that a ledger lacks.
//! Each listener has connections of its own: whoever fills the TCP port keeps the owner's commands out of nothing.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::geteuid;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::{AbortHandle, JoinSet};
use tower::ServiceExt as _;

use super::guard::Peer;
use super::patience::Patient;
use super::socket::Socket;

/// Connections at a time. One more takes the place of the oldest: a probe is always answered.
const MOST_CONNECTIONS: usize = 256;
/// How long the head of a request may take, and the time between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's head; what waits to be written is bounded by it too.
const LONGEST_HEAD: usize = 32 << 10;
/// Bytes of an answer that the kernel keeps for a TCP connection: by itself it would take some MB for each.
const SEND_BUFFER: usize = 256 << 10;
/// After an error such as too many open descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What connections come in by.
pub(super) trait Door {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next one.
    ///
    /// # Errors
    /// The system's word.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

impl Door for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, from) = Self::accept(self).await?;
        setsockopt(&stream, sockopt::SndBuf, &SEND_BUFFER)?;
        Ok((stream, Peer::Network(from)))
    }
}

impl Door for Socket {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = self.listener.accept().await?;
        let user = stream.peer_cred()?.uid();
        Ok((stream, Peer::Local { user, owner: user == geteuid().as_raw() || user == 0 }))
    }
}

/// Serves until the future is dropped, and the connections with it.
pub(super) async fn serve(door: impl Door, router: Router) {
    let mut connections = JoinSet::new();
    let mut oldest: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        tokio::select! {
            accepted = door.accept() => match accepted {
                Ok((stream, from)) => {
                    oldest.retain(|connection| !connection.is_finished());
                    if oldest.len() >= MOST_CONNECTIONS
                        && let Some(connection) = oldest.pop_front()
                    {
                        connection.abort();
                    }
                    oldest.push_back(connections.spawn(converse(stream, from, router.clone())));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep_until(tokio::time::Instant::now() + ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended
                    && error.is_panic()
                {
                    tracing::error!(%error, "the task of a connection failed");
                }
            }
        }
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, from: Peer, router: Router) {
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(from);
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(TokioIo::new(Patient::new(stream)), service);
    if let Err(error) = connection.await {
        tracing::debug!(?from, %error, "a connection ended");
    }
}
