//! The listener of the HTTP API. Bounded, since it may be reached by anybody on the orchestrator's network: so many
//! connections, so slow a request. A descriptor that a connection takes is one that a ledger lacks.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tower::ServiceExt as _;

/// Connections at a time. One more takes the place of the oldest: a probe is always answered.
const MOST_CONNECTIONS: usize = 256;
/// How long the head of a request may take, and the time between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// After an error such as too many open descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop` is done; connections end with it.
pub(super) async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) {
    tokio::pin!(stop);
    let mut connections = JoinSet::new();
    let mut oldest: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        tokio::select! {
            () = &mut stop => return,
            accepted = listener.accept() => match accepted {
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

async fn converse(stream: TcpStream, from: SocketAddr, router: Router) {
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(from));
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%from, %error, "a connection ended");
    }
}
