//! Connections of agents: QUIC with mutual TLS. The only file here that knows quinn.
//!
//! ```text
//! agent --- certificate of the authority? ---> Hello --- name of the certificate? same version? ---> Welcome
//!              no: refused by TLS                no: closed, both named                         messages
//! ```

mod reset;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicServerConfig;
use quinn::rustls::pki_types::pem::PemObject;
use quinn::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use quinn::rustls::server::WebPkiClientVerifier;
use quinn::rustls::{RootCertStore, ServerConfig};
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, TokioRuntime, TransportConfig, VarInt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use toll_protocol::PROTOCOL_VERSION;
use toll_protocol::facts::HostFacts;
use toll_protocol::frame::{self, Decoder, FrameError};
use toll_protocol::message::{FromAgent, ToAgent};
use toll_protocol::trial::TrialId;

use crate::pki::{FLEET_NAME, Identity};

/// Application protocol of the connection (RFC 7301).
pub const ALPN: &[u8] = b"toll/1";
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// How long an agent may be silent before it is taken for lost, unless another time is asked for.
pub const AGENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Shortest and longest such time: an agent says once a second that it is there, and its own timeout is the longest.
pub const AGENT_TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(2)..=Duration::from_secs(60);
/// From the connection to its Hello.
const HELLO: Duration = Duration::from_secs(10);
/// How long the end of a connection may take.
const CLOSING: Duration = Duration::from_secs(1);
/// Messages to an agent that may wait to be sent.
const OUTGOING: usize = 256;
/// Events that may wait to be handled; past that agents wait.
const EVENTS: usize = 1024;
const READ: usize = 64 << 10;
/// Bytes of a Hello, which are kept as long as the host is known: facts, labels and held trials.
const MOST_HELLO: usize = 128 << 10;

/// Why agents can't be listened for, or one was refused.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The certificates can't be used.
    #[error("the orchestrator's certificates can't be used: {0}")]
    Certificates(String),
    /// The socket can't be opened.
    #[error("agents can't be listened for on {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// The system's word.
        source: std::io::Error,
    },
    /// The connection ended.
    #[error("the connection ended")]
    Connection(#[from] quinn::ConnectionError),
    /// The stream ended.
    #[error("the stream ended")]
    Read(#[from] quinn::ReadError),
    /// Nothing more can be written.
    #[error("the stream takes nothing more")]
    Write(#[from] quinn::WriteError),
    /// A message was malformed.
    #[error("a message was malformed")]
    Frame(#[from] FrameError),
    /// The agent didn't introduce itself.
    #[error("no Hello came within {HELLO:?}")]
    NoHello,
    /// The name can't be a host's.
    #[error("its name is none of a host: letters, digits, - and ., at most 253 of them (toll-agent --name)")]
    NoName,
    /// It tells more of itself than there is to tell.
    #[error("its Hello has more than {MOST_HELLO} bytes")]
    LongHello,
    /// The name is not the certificate's.
    #[error("it says that it is `{name}`, and its certificate says otherwise")]
    Name {
        /// The name it gave.
        name: String,
    },
    /// The versions differ.
    #[error(
        "it speaks protocol version {theirs}, the orchestrator {PROTOCOL_VERSION}: install the same release on both"
    )]
    Version {
        /// The agent's.
        theirs: u32,
    },
}

/// What happens on the connections.
#[derive(Debug)]
pub enum LinkEvent {
    /// An agent was welcomed.
    Connected {
        /// Its name.
        host: String,
        /// Its host.
        facts: Box<HostFacts>,
        /// Its labels.
        labels: BTreeMap<String, String>,
        /// Trials that it holds.
        held: Vec<TrialId>,
    },
    /// Its connection ended, and it has no newer one.
    Lost {
        /// Its name.
        host: String,
    },
    /// It said something.
    Message {
        /// Its name.
        host: String,
        /// What.
        message: FromAgent,
        /// When it was heard.
        at: Instant,
    },
}

struct Agent {
    /// Tells connections of one agent apart: a new one replaces the old.
    connection: usize,
    outgoing: mpsc::Sender<ToAgent>,
}

type Agents = Arc<Mutex<HashMap<String, Agent>>>;

/// Listens for agents and talks to them.
pub struct Link {
    endpoint: Endpoint,
    address: SocketAddr,
    agents: Agents,
    accepting: tokio::task::JoinHandle<()>,
    /// Tells it that no more connections are to be taken.
    closing: oneshot::Sender<()>,
}

impl Link {
    /// Listens on `address` as `identity`; only agents with certificates of the same authority are taken. One that is
    /// silent for `agent_timeout` is lost.
    ///
    /// # Errors
    /// [`LinkError::Certificates`] or [`LinkError::Bind`].
    pub fn bind(
        address: SocketAddr,
        identity: &Identity,
        agent_timeout: Duration,
    ) -> Result<(Self, mpsc::Receiver<LinkEvent>), LinkError> {
        let config = server_config(identity, agent_timeout)?;
        let bind = |source| LinkError::Bind { address, source };
        let key = private_key(identity)?;
        let socket = std::net::UdpSocket::bind(address).map_err(bind)?;
        let transport = reset::endpoint_config(key.secret_der());
        let endpoint =
            Endpoint::new(transport, Some(config), socket, Arc::new(TokioRuntime)).map_err(bind)?;
        let address = endpoint.local_addr().map_err(bind)?;
        let (events, receiver) = mpsc::channel(EVENTS);
        let agents = Agents::default();
        let (closing, closed) = oneshot::channel();
        let accepting = tokio::spawn(accept(endpoint.clone(), agents.clone(), events, closed));
        Ok((Self { endpoint, address, agents, accepting, closing }, receiver))
    }

    /// Where agents dial.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends `message` to the agent of `host`. An agent that is away doesn't get it: the scheduler learns of its
    /// absence by [`LinkEvent::Lost`].
    pub fn send(&self, host: &str, message: ToAgent) {
        let agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = agents.get(host).map(|agent| agent.outgoing.try_send(message));
        if !matches!(sent, Some(Ok(()))) {
            tracing::warn!(host, "a message could not be sent: the agent is away or does not read");
        }
    }

    /// Closes every connection and waits until the agents have been told, and have what was sent before: a trial that has
    /// begun in the ledger is to begin.
    pub async fn close(mut self) {
        // Nobody can send to them any more: each connection writes what waits, and ends.
        lock(&self.agents).clear();
        let _ = self.closing.send(());
        let _ = timeout(CLOSING, &mut self.accepting).await;
        self.accepting.abort();
        self.endpoint.close(VarInt::from_u32(0), b"the orchestrator ends");
        // Agents that are gone can't be told.
        let _ = timeout(CLOSING, self.endpoint.wait_idle()).await;
    }
}

fn private_key(identity: &Identity) -> Result<PrivateKeyDer<'static>, LinkError> {
    PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())
        .map_err(|error| LinkError::Certificates(error.to_string()))
}

fn server_config(identity: &Identity, agent_timeout: Duration) -> Result<quinn::ServerConfig, LinkError> {
    let bad = |error: &dyn std::fmt::Display| LinkError::Certificates(error.to_string());
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(identity.authority_pem.as_bytes()).map_err(|e| bad(&e))?;
    roots.add(authority).map_err(|e| bad(&e))?;
    let provider = Arc::new(quinn::rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let verifier = verifier.build().map_err(|e| bad(&e))?;
    let certificate =
        CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).map_err(|e| bad(&e))?;
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&quinn::rustls::version::TLS13])
        .map_err(|e| bad(&e))?;
    let mut tls = builder
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], private_key(identity)?)
        .map_err(|e| bad(&e))?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = QuicServerConfig::try_from(tls).map_err(|e| bad(&e))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = TransportConfig::default();
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    transport.max_idle_timeout(Some(agent_timeout.try_into().map_err(|e| bad(&e))?));
    // One stream an agent is all the protocol has.
    transport.max_concurrent_bidi_streams(VarInt::from_u32(1));
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Takes connections until `closing` says that no more are to come, and those that there are have ended.
async fn accept(
    endpoint: Endpoint,
    agents: Agents,
    events: mpsc::Sender<LinkEvent>,
    mut closing: oneshot::Receiver<()>,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut closing => break,
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { return };
                connections.spawn(serve(incoming, agents.clone(), events.clone()));
            }
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the task of a connection failed");
                }
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

/// One connection from its first packet to its end.
async fn serve(incoming: Incoming, agents: Agents, events: mpsc::Sender<LinkEvent>) {
    let from = incoming.remote_address();
    if let Err(error) = converse(incoming, &agents, &events).await {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        tracing::info!(%from, %error, source, "a connection ended");
    }
}

async fn converse(
    incoming: Incoming,
    agents: &Agents,
    events: &mpsc::Sender<LinkEvent>,
) -> Result<(), LinkError> {
    let connection = incoming.await?;
    let mut decoder = Decoder::default();
    let hello = timeout(HELLO, introduce(&connection, &mut decoder)).await.map_err(|_| LinkError::NoHello);
    let (Introduced { name, facts, labels, held }, mut to, mut from) = match hello.and_then(|hello| hello) {
        Ok(hello) => hello,
        Err(error) => {
            connection.close(VarInt::from_u32(1), error.to_string().as_bytes());
            return Err(error);
        }
    };
    to.write_all(&frame::encode(&ToAgent::Welcome { version: PROTOCOL_VERSION })?).await?;
    let (outgoing, queue) = mpsc::channel(OUTGOING);
    let id = connection.stable_id();
    lock(agents).insert(name.clone(), Agent { connection: id, outgoing });
    // The receiver ends only with the campaign: nobody is left to tell.
    let _ = events.send(LinkEvent::Connected { host: name.clone(), facts, labels, held }).await;
    let ended = tokio::select! {
        ended = write(&mut to, queue) => ended,
        ended = read(&mut from, decoder, &name, events) => ended,
    };
    let newest = {
        let mut agents = lock(agents);
        let newest = agents.get(&name).is_some_and(|agent| agent.connection == id);
        if newest {
            agents.remove(&name);
        }
        newest
    };
    if newest {
        let _ = events.send(LinkEvent::Lost { host: name }).await;
    }
    ended
}

fn lock(agents: &Agents) -> std::sync::MutexGuard<'_, HashMap<String, Agent>> {
    agents.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an agent says of itself.
struct Introduced {
    name: String,
    facts: Box<HostFacts>,
    labels: BTreeMap<String, String>,
    held: Vec<TrialId>,
}

type Introduction = (Introduced, SendStream, RecvStream);

/// Waits for the agent's Hello and checks it.
async fn introduce(connection: &Connection, decoder: &mut Decoder) -> Result<Introduction, LinkError> {
    let (to, mut from) = connection.accept_bi().await?;
    let message = next_of(&mut from, decoder, MOST_HELLO).await?.ok_or(LinkError::NoHello)?;
    let FromAgent::Hello { version, name, facts, labels, held } = message else {
        return Err(LinkError::NoHello);
    };
    if version != PROTOCOL_VERSION {
        return Err(LinkError::Version { theirs: version });
    }
    if !is_host_name(&name) {
        return Err(LinkError::NoName);
    }
    if !is_certified(connection, &name) {
        return Err(LinkError::Name { name });
    }
    Ok((Introduced { name, facts, labels, held }, to, from))
}

/// Whether the peer's certificate, which TLS has verified, is for `name`, or for any agent.
fn is_certified(connection: &Connection, name: &str) -> bool {
    let identity =
        connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let Some(leaf) = identity.as_ref().and_then(|chain| chain.first()) else { return false };
    let Ok(certificate) = webpki::EndEntityCert::try_from(leaf) else { return false };
    [name, FLEET_NAME].into_iter().any(|name| {
        ServerName::try_from(name)
            .is_ok_and(|name| certificate.verify_is_valid_for_subject_name(&name).is_ok())
    })
}

async fn write(stream: &mut SendStream, mut queue: mpsc::Receiver<ToAgent>) -> Result<(), LinkError> {
    while let Some(message) = queue.recv().await {
        stream.write_all(&frame::encode(&message)?).await?;
    }
    // Nobody sends any more. What was written is not to be lost with the connection; an agent that is gone has its time.
    if stream.finish().is_ok() {
        let _ = timeout(CLOSING, stream.stopped()).await;
    }
    Ok(())
}

async fn read(
    stream: &mut RecvStream,
    mut decoder: Decoder,
    host: &str,
    events: &mpsc::Sender<LinkEvent>,
) -> Result<(), LinkError> {
    while let Some(message) = next(stream, &mut decoder).await? {
        if events
            .send(LinkEvent::Message { host: host.to_owned(), message, at: Instant::now() })
            .await
            .is_err()
        {
            break;
        }
    }
    Ok(())
}

/// RFC 1123, 2.1: what a host or node is named, and what is safe in a log, a label and a terminal.
fn is_host_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    (1..=253).contains(&name.len()) && name.chars().all(allowed) && !name.starts_with(['-', '.'])
}

/// The next message, or `None` at the end of the stream.
async fn next(stream: &mut RecvStream, decoder: &mut Decoder) -> Result<Option<FromAgent>, LinkError> {
    next_of(stream, decoder, usize::MAX).await
}

/// The same, if no more than `most` bytes come before it is whole.
async fn next_of(
    stream: &mut RecvStream,
    decoder: &mut Decoder,
    most: usize,
) -> Result<Option<FromAgent>, LinkError> {
    let mut come = 0;
    loop {
        if let Some(message) = decoder.next_message()? {
            return Ok(Some(message));
        }
        match stream.read_chunk(READ, true).await? {
            Some(_) if come > most => return Err(LinkError::LongHello),
            Some(chunk) => {
                come += chunk.bytes.len();
                decoder.push(&chunk.bytes);
            }
            None => return Ok(None),
        }
    }
}
