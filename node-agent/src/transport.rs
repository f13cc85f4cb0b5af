//! The connection to the orchestrator: QUIC (RFC 9000) with mutual TLS 1.3, one bidirectional stream, opened by the
//! agent. The only file that knows quinn.
//!
//! ```text
//!            +--------------------- back-off 0.1 s .. 5 s, with jitter ----------------------+
//!            v                                                                               |
//!   Dialling --handshake--> Greeting --Hello sent, Welcome come--> Connected --lost--> Lost--+
//!            |                  |                                      |
//!            +------------------+---------- refused -------------------+---- stop ----> flushed, closed
//! ```
//! Dialling begins with the name of the orchestrator's host, which is looked up anew. All its addresses are tried, one
//! a little after the other (RFC 8305); the first that shakes hands is greeted. Nothing is kept here over a loss but how
//! long to wait: the agent is asked for its `Hello` on each connection, and says again what has to be said. The back-off
//! begins anew only after a connection that lasted: one that is thrown out again and again comes back ever more slowly.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::select_ok;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, Connection, Endpoint, IdleTimeout, RecvStream, SendStream, TransportConfig, VarInt,
};
use tokio::sync::{mpsc, oneshot};
use toll_protocol::PROTOCOL_VERSION;
use toll_protocol::error::chain;
use toll_protocol::frame::{Decoder, FrameError, encode};
use toll_protocol::message::{FromAgent, ToAgent};

use crate::address::{AddressError, HostPort};
use crate::identity::{Identity, IdentityError, Judge};

/// Name of the protocol in the handshake (RFC 7301).
pub const ALPN: &[u8] = b"toll/1";

const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// A connection over which nothing came for so long is lost. The shorter one of both sides counts (RFC 9000, 10.1), and
/// the orchestrator's is to be that: this one is the longest that it may have.
const IDLE_TIMEOUT: VarInt = VarInt::from_u32(60_000);
/// First guess of the round-trip time (RFC 9002, 6.2.2, has 333 ms for the Internet): how soon the first packet
/// is sent again to an orchestrator that was not there yet.
const INITIAL_RTT: Duration = Duration::from_millis(50);
/// How long the handshake and the greeting may take.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last messages may take to be acknowledged by the other side's transport.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// How much later the next address of a name is tried (RFC 8305, 5).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
const SHORTEST_BACK_OFF: Duration = Duration::from_millis(100);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(5);
/// A connection that lasted so long was no mistake: after it the back-off begins anew.
const LASTING: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The certificates can't be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The configuration is of no use for QUIC.
    #[error("the certificates can't be used for QUIC")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    /// No UDP socket.
    #[error("no UDP socket could be opened")]
    Socket(#[source] std::io::Error),
    /// The orchestrator's host has no address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The agent has gone, and nobody is left to say Hello.
    #[error("the agent stops")]
    Stopping,
    /// The orchestrator's address or name can't be dialled.
    #[error("the orchestrator can't be dialled")]
    Dial(#[from] quinn::ConnectError),
    /// The handshake failed or the connection was lost.
    #[error("the connection to the orchestrator was lost")]
    Connection(#[from] quinn::ConnectionError),
    /// Nothing could be written.
    #[error("the stream to the orchestrator was lost")]
    Write(#[from] quinn::WriteError),
    /// Nothing could be read.
    #[error("the stream from the orchestrator was lost")]
    Read(#[from] quinn::ReadError),
    /// The certificate of whoever listens there is not an orchestrator's.
    #[error(
        "the certificate shown there is not one of an orchestrator: server authentication is not among its extended key \
         usages (toll pki init makes one)"
    )]
    Purpose,
    /// A message is none.
    #[error("the orchestrator and this agent don't understand each other")]
    Frame(#[from] FrameError),
    /// The orchestrator finished the stream.
    #[error("the orchestrator ended the conversation")]
    Finished,
    /// The handshake or the greeting took too long.
    #[error("the orchestrator did not answer within {} s", GREETING_TIMEOUT.as_secs())]
    Silent,
    /// The first message was not `Welcome`.
    #[error("the orchestrator did not begin with Welcome")]
    Unwelcome,
    /// Another version.
    #[error(
        "the orchestrator speaks version {theirs} of the protocol, this agent version {PROTOCOL_VERSION}"
    )]
    Version {
        /// The orchestrator's.
        theirs: u32,
    },
}

fn client_config(identity: &Identity) -> Result<ClientConfig, TransportError> {
    let mut transport = TransportConfig::default();
    transport
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(IDLE_TIMEOUT)))
        .initial_rtt(INITIAL_RTT)
        // The orchestrator opens no streams.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    let tls = QuicClientConfig::try_from(identity.client_config(ALPN)?)?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// What becomes of the connection.
#[derive(Debug)]
pub enum TransportEvent {
    /// A connection is about to be greeted: the agent's `Hello`, as it is now, is to be sent here.
    HelloWanted(oneshot::Sender<FromAgent>),
    /// The orchestrator, which is at this address, has said `Welcome`.
    Connected(IpAddr),
    /// It says something.
    Message(ToAgent),
    /// The connection is lost, for this reason; it is being dialled again.
    Lost(String),
    /// There is no connection yet, for this reason; it is being dialled again.
    NotConnected(String),
}

/// One agent's connection to its orchestrator.
pub struct Transport {
    config: ClientConfig,
    orchestrator: HostPort,
    server_name: String,
    judge: Judge,
}

impl Transport {
    /// Nothing is sent or looked up yet. `server_name` is the name in the orchestrator's certificate.
    ///
    /// # Errors
    /// [`TransportError`] if the certificates are of no use.
    pub fn new(
        orchestrator: HostPort,
        server_name: String,
        identity: &Identity,
    ) -> Result<Self, TransportError> {
        Ok(Self { config: client_config(identity)?, orchestrator, server_name, judge: identity.judge()? })
    }

    /// Keeps a connection until `stop` is sent or dropped; then writes what `outgoing` still holds, and closes.
    /// A message of `outgoing` that meets a lost connection is lost, or goes over the next one.
    pub async fn run(
        self,
        mut outgoing: mpsc::Receiver<FromAgent>,
        events: mpsc::Sender<TransportEvent>,
        mut stop: oneshot::Receiver<()>,
    ) {
        let mut back_off = SHORTEST_BACK_OFF;
        loop {
            let (error, event): (_, fn(String) -> TransportEvent) = tokio::select! {
                greeted = self.dial(&events) => match greeted {
                    Ok(session) => {
                        tracing::info!(
                            orchestrator = %self.orchestrator, address = %session.address, "connected"
                        );
                        let since = Instant::now();
                        let served = session.serve(&mut outgoing, &events, &mut stop).await;
                        if since.elapsed() >= LASTING {
                            back_off = SHORTEST_BACK_OFF;
                        }
                        match served {
                            Ok(()) => return,
                            Err(error) => (error, TransportEvent::Lost),
                        }
                    }
                    Err(error) => (error, TransportEvent::NotConnected),
                },
                _ = &mut stop => return,
            };
            let reason = chain(&error);
            let wait = back_off.mul_f64(rand::random_range(0.5..1.0));
            tracing::warn!(orchestrator = %self.orchestrator, retry_in = ?wait, "{reason}");
            if events.send(event(reason)).await.is_err() {
                return;
            }
            back_off = (back_off * 2).min(LONGEST_BACK_OFF);
            // Whatever ends the wait other than the time is the order to stop.
            if tokio::time::timeout(wait, &mut stop).await.is_ok() {
                return;
            }
        }
    }

    /// One attempt: addresses, handshake, stream, greeting.
    async fn dial(&self, events: &mpsc::Sender<TransportEvent>) -> Result<Session, TransportError> {
        let addresses = self.orchestrator.look_up().await?;
        let greeting = async {
            let attempts = addresses.iter().enumerate();
            let attempts = attempts.map(|(n, address)| Box::pin(self.shake_hands(*address, n as u32)));
            let ((endpoint, connection), _) = select_ok(attempts).await?;
            let chain = connection.peer_identity().and_then(|any| any.downcast::<Vec<_>>().ok());
            if !chain.is_some_and(|chain| self.judge.is_an_orchestrators(&chain)) {
                return Err(TransportError::Purpose);
            }
            let (mut send, receive) = connection.open_bi().await?;
            let (answer, hello) = oneshot::channel();
            events.send(TransportEvent::HelloWanted(answer)).await.map_err(|_| TransportError::Stopping)?;
            send.write_all(&encode(&hello.await.map_err(|_| TransportError::Stopping)?)?).await?;
            let mut incoming = Incoming { stream: receive, decoder: Decoder::default() };
            match incoming.next().await {
                Ok(ToAgent::Welcome { version: PROTOCOL_VERSION }) => {
                    let address = connection.remote_address().ip();
                    Ok(Session { endpoint, connection, address, send, incoming })
                }
                Ok(ToAgent::Welcome { version }) => Err(TransportError::Version { theirs: version }),
                Ok(_) => Err(TransportError::Unwelcome),
                Err(error) => Err(because(&connection, error)),
            }
        };
        tokio::time::timeout(GREETING_TIMEOUT, greeting).await.unwrap_or(Err(TransportError::Silent))
    }

    /// Connects to the `n`th address of the orchestrator, after those before it had their time.
    async fn shake_hands(
        &self,
        address: SocketAddr,
        n: u32,
    ) -> Result<(Endpoint, Connection), TransportError> {
        tokio::time::sleep_until(tokio::time::Instant::now() + NEXT_ADDRESS * n).await;
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let endpoint = Endpoint::client(any).map_err(TransportError::Socket)?;
        let connecting = endpoint.connect_with(self.config.clone(), address, &self.server_name)?;
        Ok((endpoint, connecting.await?))
    }
}

/// A connection that has been greeted.
struct Session {
    endpoint: Endpoint,
    connection: Connection,
    address: IpAddr,
    send: SendStream,
    incoming: Incoming,
}

impl Session {
    /// Carries messages both ways. Ends well only by `stop`.
    async fn serve(
        self,
        outgoing: &mut mpsc::Receiver<FromAgent>,
        events: &mpsc::Sender<TransportEvent>,
        stop: &mut oneshot::Receiver<()>,
    ) -> Result<(), TransportError> {
        let Self { endpoint, connection, address, mut send, mut incoming } = self;
        if events.send(TransportEvent::Connected(address)).await.is_err() {
            return Ok(());
        }
        // Two loops side by side: a slow reader on one side never keeps the other direction waiting.
        let reading = async {
            loop {
                let message = incoming.next().await?;
                if events.send(TransportEvent::Message(message)).await.is_err() {
                    return Ok(());
                }
            }
        };
        let writing = async {
            loop {
                tokio::select! {
                    biased;
                    _ = &mut *stop => return Ok(()),
                    Some(message) = outgoing.recv() => send.write_all(&encode(&message)?).await?,
                }
            }
        };
        let served: Result<(), TransportError> = tokio::select! {
            ended = reading => ended,
            ended = writing => ended,
        };
        served.map_err(|error| because(&connection, error))?;
        let flush = async {
            while let Ok(message) = outgoing.try_recv() {
                send.write_all(&encode(&message)?).await?;
            }
            // A stream that is closed already has nothing left to send.
            if send.finish().is_ok() {
                drop(send.stopped().await);
            }
            Ok::<(), TransportError>(())
        };
        match tokio::time::timeout(FLUSH_TIMEOUT, flush).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("the last messages are lost: {}", chain(&error)),
            Err(_) => tracing::warn!("the orchestrator did not take the last messages in time"),
        }
        endpoint.close(VarInt::from_u32(0), b"the agent stops");
        if tokio::time::timeout(FLUSH_TIMEOUT, endpoint.wait_idle()).await.is_err() {
            tracing::debug!("the orchestrator did not see the connection closed");
        }
        Ok(())
    }
}

/// The reason why the connection was closed says more than that a stream ended with it.
fn because(connection: &Connection, error: TransportError) -> TransportError {
    connection.close_reason().map_or(error, TransportError::Connection)
}

/// Messages from a stream.
struct Incoming {
    stream: RecvStream,
    decoder: Decoder,
}

impl Incoming {
    async fn next(&mut self) -> Result<ToAgent, TransportError> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Ok(message);
            }
            match self.stream.read(&mut buffer).await? {
                Some(length) => self.decoder.push(&buffer[..length]),
                None => return Err(TransportError::Finished),
            }
        }
    }
}
