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
//! Nothing is kept here over a loss: the agent says again what has to be said.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, Connection, Endpoint, IdleTimeout, RecvStream, SendStream, TransportConfig, VarInt,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::{mpsc, oneshot};
use toll_protocol::PROTOCOL_VERSION;
use toll_protocol::frame::{Decoder, FrameError, encode};
use toll_protocol::message::{FromAgent, ToAgent};

/// Name of the protocol in the handshake (RFC 7301).
pub const ALPN: &[u8] = b"toll/1";

const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// A connection over which nothing came for so long is lost.
const IDLE_TIMEOUT: VarInt = VarInt::from_u32(10_000);
/// First guess of the round-trip time (RFC 9002, 6.2.2, has 333 ms for the Internet): how soon the first packet
/// is sent again to an orchestrator that was not there yet.
const INITIAL_RTT: Duration = Duration::from_millis(50);
/// How long the handshake and the greeting may take.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last messages may take to be acknowledged by the other side's transport.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
const SHORTEST_BACK_OFF: Duration = Duration::from_millis(100);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A PEM file can't be used.
    #[error("{what} {} can't be used", path.display())]
    Pem {
        /// `CA certificate`, `certificate`, `private key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// A PEM file holds no certificate.
    #[error("{} holds no certificate", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The certificates don't make a configuration.
    #[error("the certificates can't be used")]
    Tls(#[from] rustls::Error),
    /// The configuration is of no use for QUIC.
    #[error("the certificates can't be used for QUIC")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    /// No UDP socket.
    #[error("no UDP socket could be opened")]
    Socket(#[source] std::io::Error),
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

/// The certificates of one agent, read once.
#[derive(Debug)]
pub struct Identity {
    ca: CertificateDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Reads three PEM files, each once: they may be descriptors such as `/proc/self/fd/3`.
    ///
    /// # Errors
    /// [`LinkError::Pem`] or [`LinkError::NoCertificate`].
    pub fn read(ca: &Path, certificate: &Path, key: &Path) -> Result<Self, LinkError> {
        let error = |what, path: &Path| {
            let path = path.to_owned();
            move |source| LinkError::Pem { what, path, source }
        };
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(error("certificate", certificate))?;
        if chain.is_empty() {
            return Err(LinkError::NoCertificate { path: certificate.to_owned() });
        }
        Ok(Self {
            ca: CertificateDer::from_pem_file(ca).map_err(error("CA certificate", ca))?,
            chain,
            key: PrivateKeyDer::from_pem_file(key).map_err(error("private key", key))?,
        })
    }

    fn client_config(&self) -> Result<ClientConfig, LinkError> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let mut transport = TransportConfig::default();
        transport
            .keep_alive_interval(Some(KEEP_ALIVE))
            .max_idle_timeout(Some(IdleTimeout::from(IDLE_TIMEOUT)))
            .initial_rtt(INITIAL_RTT)
            // The orchestrator opens no streams.
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .max_concurrent_uni_streams(VarInt::from_u32(0));
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        config.transport_config(Arc::new(transport));
        Ok(config)
    }
}

/// What becomes of the connection.
#[derive(Debug)]
pub enum LinkEvent {
    /// The orchestrator has said `Welcome`.
    Connected,
    /// It says something.
    Message(ToAgent),
    /// The connection is lost; it is being dialled again.
    Lost,
}

/// One agent's connection to its orchestrator.
pub struct Link {
    endpoint: Endpoint,
    orchestrator: SocketAddr,
    server_name: String,
    hello: FromAgent,
}

impl Link {
    /// Opens the socket; nothing is sent yet. `server_name` is the name in the orchestrator's certificate, `hello`
    /// the first message of every connection.
    ///
    /// # Errors
    /// [`LinkError`] if there is no socket or the certificates are of no use.
    pub fn new(
        orchestrator: SocketAddr,
        server_name: String,
        identity: &Identity,
        hello: FromAgent,
    ) -> Result<Self, LinkError> {
        let any: SocketAddr = match orchestrator {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let mut endpoint = Endpoint::client(any).map_err(LinkError::Socket)?;
        endpoint.set_default_client_config(identity.client_config()?);
        Ok(Self { endpoint, orchestrator, server_name, hello })
    }

    /// Keeps a connection until `stop` is sent or dropped; then writes what `outgoing` still holds, and closes.
    /// A message of `outgoing` that meets a lost connection is lost, or goes over the next one.
    pub async fn run(
        self,
        mut outgoing: mpsc::Receiver<FromAgent>,
        events: mpsc::Sender<LinkEvent>,
        mut stop: oneshot::Receiver<()>,
    ) {
        let mut back_off = SHORTEST_BACK_OFF;
        loop {
            let error = tokio::select! {
                greeted = self.dial() => match greeted {
                    Ok(session) => {
                        tracing::info!(orchestrator = %self.orchestrator, "connected");
                        back_off = SHORTEST_BACK_OFF;
                        match session.serve(&mut outgoing, &events, &mut stop).await {
                            Ok(()) => break,
                            Err(error) => {
                                if events.send(LinkEvent::Lost).await.is_err() {
                                    break;
                                }
                                error
                            }
                        }
                    }
                    Err(error) => error,
                },
                _ = &mut stop => break,
            };
            let wait = back_off.mul_f64(rand::random_range(0.5..1.0));
            tracing::warn!(orchestrator = %self.orchestrator, retry_in = ?wait, "{}", crate::chain(&error));
            back_off = (back_off * 2).min(LONGEST_BACK_OFF);
            // Whatever ends the wait other than the time is the order to stop.
            if tokio::time::timeout(wait, &mut stop).await.is_ok() {
                break;
            }
        }
        self.endpoint.close(VarInt::from_u32(0), b"the agent stops");
        if tokio::time::timeout(FLUSH_TIMEOUT, self.endpoint.wait_idle()).await.is_err() {
            tracing::debug!("the orchestrator did not see the connection closed");
        }
    }

    /// One attempt: handshake, stream, greeting.
    async fn dial(&self) -> Result<Session, LinkError> {
        let greeting = async {
            let connection = self.endpoint.connect(self.orchestrator, &self.server_name)?.await?;
            let (mut send, receive) = connection.open_bi().await?;
            send.write_all(&encode(&self.hello)?).await?;
            let mut incoming = Incoming { stream: receive, decoder: Decoder::default() };
            match incoming.next().await {
                Ok(ToAgent::Welcome { version: PROTOCOL_VERSION }) => {
                    Ok(Session { connection, send, incoming })
                }
                Ok(ToAgent::Welcome { version }) => Err(LinkError::Version { theirs: version }),
                Ok(_) => Err(LinkError::Unwelcome),
                Err(error) => Err(because(&connection, error)),
            }
        };
        tokio::time::timeout(GREETING_TIMEOUT, greeting).await.unwrap_or(Err(LinkError::Silent))
    }
}

/// A connection that has been greeted.
struct Session {
    connection: Connection,
    send: SendStream,
    incoming: Incoming,
}

impl Session {
    /// Carries messages both ways. Ends well only by `stop`.
    async fn serve(
        self,
        outgoing: &mut mpsc::Receiver<FromAgent>,
        events: &mpsc::Sender<LinkEvent>,
        stop: &mut oneshot::Receiver<()>,
    ) -> Result<(), LinkError> {
        let Self { connection, mut send, mut incoming } = self;
        if events.send(LinkEvent::Connected).await.is_err() {
            return Ok(());
        }
        // Two loops side by side: a slow reader on one side never keeps the other direction waiting.
        let reading = async {
            loop {
                let message = incoming.next().await?;
                if events.send(LinkEvent::Message(message)).await.is_err() {
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
        let served: Result<(), LinkError> = tokio::select! {
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
            Ok::<(), LinkError>(())
        };
        match tokio::time::timeout(FLUSH_TIMEOUT, flush).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("the last messages are lost: {}", crate::chain(&error)),
            Err(_) => tracing::warn!("the orchestrator did not take the last messages in time"),
        }
        Ok(())
    }
}

/// The reason why the connection was closed says more than that a stream ended with it.
fn because(connection: &Connection, error: LinkError) -> LinkError {
    connection.close_reason().map_or(error, LinkError::Connection)
}

/// Messages from a stream.
struct Incoming {
    stream: RecvStream,
    decoder: Decoder,
}

impl Incoming {
    async fn next(&mut self) -> Result<ToAgent, LinkError> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Ok(message);
            }
            match self.stream.read(&mut buffer).await? {
                Some(length) => self.decoder.push(&buffer[..length]),
                None => return Err(LinkError::Finished),
            }
        }
    }
}
