//! The agent's HTTP listener, for probes and Prometheus: plain text, nothing that changes anything. Bounded, since it
//! may be reached by anybody on the host's network: so many connections, for so long, so slow a request. One more than that
//! ends the oldest: whoever keeps connections open, the next probe is answered.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use crate::health::Health;
use toll_protocol::error::chain;

/// Connections at a time; one more takes the place of the oldest.
const MOST_CONNECTIONS: usize = 32;
/// How long the head of a request may take, and the time between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may last, so that one that reads nothing gives its place back. Prometheus makes a new one.
const LONGEST_CONNECTION: Duration = Duration::from_secs(300);
/// Bytes of a request's head.
const LONGEST_HEAD: usize = 16 << 10;
/// Nothing is fetched, run or framed.
const CONTENT_POLICY: &str =
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
/// After an error such as too many open descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
#[error("nobody can be listened for on {address} (--http): choose a free address of this host")]
pub struct HttpError {
    /// Where.
    address: SocketAddr,
    /// The system's word.
    source: std::io::Error,
}

/// What is served.
#[derive(Clone)]
struct Served {
    health: Arc<Health>,
    registry: Arc<Registry>,
}

/// A listener.
#[derive(Debug)]
pub struct Http {
    listener: TcpListener,
}

impl Http {
    /// Listens.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn bind(address: SocketAddr) -> Result<Self, HttpError> {
        let listener = TcpListener::bind(address).await.map_err(|source| HttpError { address, source })?;
        Ok(Self { listener })
    }

    /// Where it listens, with the port that the kernel chose for port 0.
    ///
    /// # Errors
    /// The system's word.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers `/metrics` from `registry`, `/livez` and `/readyz` from `health`, until the future is dropped, and the
    /// connections with it.
    pub async fn serve(self, health: Arc<Health>, registry: Arc<Registry>) -> Infallible {
        let router = router(Served { health, registry });
        let mut connections = Connections::default();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => connections.admit(converse(stream, router.clone())),
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep_until(tokio::time::Instant::now() + ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = connections.tasks.join_next() => match ended {
                    Err(error) if !error.is_cancelled() => {
                        tracing::error!(%error, "a connection's task ended badly");
                    }
                    _ => {}
                },
            }
        }
    }
}

/// The connections that there are.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    oldest_first: VecDeque<AbortHandle>,
}

impl Connections {
    /// Lets one more in. If there is no room, it is the oldest that goes: a probe asks at once, so it is never that.
    fn admit(&mut self, conversation: impl Future<Output = ()> + Send + 'static) {
        self.oldest_first.retain(|connection| !connection.is_finished());
        if self.oldest_first.len() >= MOST_CONNECTIONS
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            tracing::debug!("the oldest connection makes room for another");
            oldest.abort();
        }
        self.oldest_first.push_back(self.tasks.spawn(conversation));
    }
}

async fn converse(stream: TcpStream, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(LONGEST_CONNECTION, connection).await {
        Ok(Ok(())) => {}
        // Peers that go away or babble are no business of ours.
        Ok(Err(error)) => tracing::debug!("a connection ended: {}", chain(&error)),
        Err(_) => tracing::debug!("a connection lasted too long"),
    }
}

fn router(served: Served) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async |State(served): State<Served>| probe(served.health.alive(Instant::now()))))
        .route("/readyz", get(async |State(served): State<Served>| probe(served.health.ready())))
        .layer(middleware::from_fn(harmless))
        .with_state(served)
}

/// Says of every answer that it is what its type says, and that nothing in it may run.
async fn harmless(request: Request, next: Next) -> Response {
    let mut answer = next.run(request).await;
    let headers = answer.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_POLICY));
    answer
}

fn probe(answer: Result<(), String>) -> Response {
    match answer {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
    .into_response()
}

async fn metrics(State(served): State<Served>) -> Response {
    match TextEncoder::new().encode_to_string(&served.registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, format!("{TEXT_FORMAT}; charset=utf-8"))], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("the metrics can't be written: {error}\n"))
            .into_response(),
    }
}

#[cfg(test)]
mod tests {
    use prometheus::IntCounter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::health::STALLED_AFTER;

    /// Serves on a port of loopback that the kernel chooses.
    async fn served(health: Arc<Health>) -> SocketAddr {
        let registry = Registry::new();
        let counter = IntCounter::new("toll_test_total", "A counter.").expect("a name");
        counter.inc_by(7);
        registry.register(Box::new(counter)).expect("registered");
        let http = Http::bind("127.0.0.1:0".parse().expect("an address")).await.expect("a socket");
        let address = http.address().expect("an address");
        tokio::spawn(http.serve(health, Arc::new(registry)));
        address
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        let request = format!("{request} HTTP/1.1\r\nHost: toll\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("asked");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    }

    #[tokio::test]
    async fn probes_and_metrics_are_answered() {
        let health = Arc::new(Health::new(Instant::now()));
        let address = served(Arc::clone(&health)).await;
        let metrics = ask(address, "GET /metrics").await;
        assert!(
            metrics.starts_with("HTTP/1.1 200") && metrics.contains("\ntoll_test_total 7\n"),
            "{metrics}"
        );
        assert!(metrics.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{metrics}");
        assert!(ask(address, "GET /livez").await.starts_with("HTTP/1.1 200"));
        let ready = ask(address, "GET /readyz").await;
        assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("no connection"), "{ready}");
        health.connected();
        assert!(ask(address, "GET /readyz").await.starts_with("HTTP/1.1 200"));
        health.stopping();
        assert!(ask(address, "GET /readyz").await.contains("told to stop"));
        assert!(ask(address, "GET /").await.starts_with("HTTP/1.1 404"));
        assert!(ask(address, "POST /livez").await.starts_with("HTTP/1.1 405"));
    }

    #[tokio::test]
    async fn nothing_in_an_answer_may_run() {
        let address = served(Arc::new(Health::new(Instant::now()))).await;
        for request in ["GET /metrics", "GET /livez", "GET /readyz", "GET /nothing", "POST /livez"] {
            let answer = ask(address, request).await;
            assert!(answer.contains("x-content-type-options: nosniff\r\n"), "{answer}");
            assert!(answer.contains("content-security-policy: default-src 'none'; "), "{answer}");
            let typed = answer.split("\r\n").find(|line| line.starts_with("content-type: text/"));
            assert!(typed.is_none_or(|line| line.ends_with("; charset=utf-8")), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_loop_that_hangs_is_told_to_the_probe() {
        let long_ago = Instant::now().checked_sub(STALLED_AFTER).expect("the machine runs longer");
        let answer = ask(served(Arc::new(Health::new(long_ago))).await, "GET /livez").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("not turned for"), "{answer}");
    }

    #[tokio::test]
    async fn connections_that_ask_nothing_are_closed() {
        let address = served(Arc::new(Health::new(Instant::now()))).await;
        let mut silent = TcpStream::connect(address).await.expect("connected");
        let closed = tokio::time::timeout(2 * HEADER_TIMEOUT, silent.read(&mut [0; 1])).await;
        assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    }

    /// Asks and leaves the connection open.
    async fn ask_and_stay(stream: &mut TcpStream) {
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: toll\r\n\r\n").await.expect("asked");
        let mut answer = [0; 1024];
        assert!(stream.read(&mut answer).await.is_ok_and(|length| length > 0), "answered");
    }

    #[tokio::test]
    async fn a_probe_is_answered_at_once_however_many_connections_go_on_asking() {
        let address = served(Arc::new(Health::new(Instant::now()))).await;
        let mut busy = Vec::new();
        for _ in 0..MOST_CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.expect("connected");
            ask_and_stay(&mut stream).await;
            busy.push(stream);
        }
        let answer = tokio::time::timeout(HEADER_TIMEOUT / 2, ask(address, "GET /livez")).await;
        assert!(answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")), "the probe waited");
        // The oldest made room, and no other did.
        let closed = tokio::time::timeout(HEADER_TIMEOUT / 2, busy[0].read(&mut [0; 1])).await;
        assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
        for stream in &mut busy[1..] {
            ask_and_stay(stream).await;
        }
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_named() {
        let taken = Http::bind("127.0.0.1:0".parse().expect("an address")).await.expect("a socket");
        let address = taken.address().expect("an address");
        let error = Http::bind(address).await.expect_err("taken").to_string();
        assert!(error.contains(&address.to_string()), "{error}");
    }
}
