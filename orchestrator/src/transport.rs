//! Connections of agents: QUIC with mutual TLS. The only file here that knows quinn.
//!
//! ```text
//! Initial --- is there room? ---> certificate of the authority? ---> Hello --- name of the certificate? ---> Welcome
//!              no: Retry, silence  no: refused by TLS                 same version? does nobody else     messages
//!              (admission)         (certificate)                      have the name? (roster)
//!                                                                     no: closed, with the reason
//! ```
//! Each connection that gets a name has a number, its session, larger than those before: whoever hears of two
//! connections of one agent in the wrong order knows which is the newer one.

mod admission;
mod certificate;
mod error;
mod place;
mod reset;
mod roster;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use admission::Verdict;
use certificate::{Judge, private_key};
pub use error::TransportError;
use place::{Door, Held};
use quinn::{
    Connecting, Connection, ConnectionError, Endpoint, RecvStream, SendStream, ServerConfig, TokioRuntime,
    TransportConfig, VarInt,
};
use roster::Roster;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use toll_protocol::PROTOCOL_VERSION;
use toll_protocol::facts::HostFacts;
use toll_protocol::frame::{self, Decoder};
use toll_protocol::message::{self, FromAgent, Instance, ToAgent};
use toll_protocol::trial::TrialId;

use crate::pki::{Identity, is_host_name};

/// Application protocol of the connection (RFC 7301).
pub const ALPN: &[u8] = b"toll/1";
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// How long an agent may be silent before it is taken for lost, unless another time is asked for.
pub const AGENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Shortest and longest such time: an agent says once a second that it is there, and its own timeout is the longest.
pub const AGENT_TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(2)..=Duration::from_secs(60);
/// How long a handshake may take: as long as an agent waits for it.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// From the connection to its Hello.
const HELLO: Duration = Duration::from_secs(5);
/// First packets that may wait to be judged, and bytes that may follow each and all of them: they wait for a turn of the
/// task that judges, no longer.
const MOST_INCOMING: usize = 1024;
const INCOMING_BYTES: u64 = 16 << 10;
const ALL_INCOMING_BYTES: u64 = 4 << 20;
/// Between two words in the log on handshakes that came to nothing.
const REPORTS: Duration = Duration::from_secs(10);
/// How long the end of a connection may take.
const CLOSING: Duration = Duration::from_secs(1);
/// Messages to an agent that may wait to be sent.
const OUTGOING: usize = 256;
/// Events that may wait to be handled; past that agents wait.
const EVENTS: usize = 1024;
const READ: usize = 64 << 10;

/// What happens on the connections.
#[derive(Debug)]
pub enum TransportEvent {
    /// An agent was welcomed.
    Connected {
        /// Its name.
        host: String,
        /// Which of its connections, and who and where it is.
        session: Session,
        /// Its host.
        facts: Box<HostFacts>,
        /// Its labels.
        labels: BTreeMap<String, String>,
        /// Trials that it holds.
        held: Vec<TrialId>,
    },
    /// A connection ended. The agent may have a newer one.
    Lost {
        /// Its name.
        host: String,
        /// Number of the connection that ended.
        session: u64,
    },
    /// An agent was refused, since another one has its name and answers.
    Refused {
        /// The name.
        host: String,
        /// Where the one is that has it.
        holder: SocketAddr,
        /// Where the other one is.
        newcomer: SocketAddr,
    },
    /// It said something.
    Message {
        /// Its name.
        host: String,
        /// Number of the connection.
        session: u64,
        /// What.
        message: FromAgent,
        /// When it was heard.
        at: Instant,
    },
}

/// One connection of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Larger than that of any connection before.
    pub number: u64,
    /// The agent's process.
    pub instance: Instance,
    /// Where it is.
    pub address: std::net::IpAddr,
}

/// What every connection shares.
struct Shared {
    roster: Roster,
    judge: Judge,
    door: Door,
    /// Handshakes that came to nothing since the log last told of them.
    failed: AtomicU64,
    events: mpsc::Sender<TransportEvent>,
}

/// Listens for agents and talks to them.
pub struct Transport {
    endpoint: Endpoint,
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
    /// Tells it that no more connections are to be taken.
    closing: oneshot::Sender<()>,
}

impl Transport {
    /// Listens on `address` as `identity`; only agents with certificates of the same authority are taken. One that is
    /// silent for `agent_timeout` is lost.
    ///
    /// # Errors
    /// [`TransportError::Certificates`] or [`TransportError::Bind`].
    pub fn bind(
        address: SocketAddr,
        identity: &Identity,
        agent_timeout: Duration,
    ) -> Result<(Self, mpsc::Receiver<TransportEvent>), TransportError> {
        let config = server_config(identity, agent_timeout)?;
        let bind = |source| TransportError::Bind { address, source };
        let key = private_key(identity)?;
        let socket = std::net::UdpSocket::bind(address).map_err(bind)?;
        let transport = reset::endpoint_config(key.secret_der());
        let endpoint = Endpoint::new(transport, Some(config.clone()), socket, Arc::new(TokioRuntime));
        let endpoint = endpoint.map_err(bind)?;
        let address = endpoint.local_addr().map_err(bind)?;
        let (events, receiver) = mpsc::channel(EVENTS);
        let shared = Arc::new(Shared {
            roster: Roster::default(),
            judge: Judge::new(identity)?,
            door: Door::default(),
            failed: AtomicU64::new(0),
            events,
        });
        let (closing, closed) = oneshot::channel();
        let accepting = tokio::spawn(accept(endpoint.clone(), config, shared.clone(), closed));
        Ok((Self { endpoint, address, shared, accepting, closing }, receiver))
    }

    /// Where agents dial.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends `message` to the agent of `host`. An agent that is away doesn't get it: the scheduler learns of its
    /// absence by [`TransportEvent::Lost`].
    pub fn send(&self, host: &str, message: ToAgent) {
        if !self.shared.roster.send(host, message) {
            tracing::warn!(host, "a message could not be sent: the agent is away or does not read");
        }
    }

    /// Closes a connection of the agent of `host`, which is told `why`.
    pub fn dismiss(&self, host: &str, session: u64, why: &str) {
        self.shared.roster.dismiss(host, session, why);
    }

    /// Closes every connection and waits until the agents have been told, and have what was sent before: a trial that has
    /// begun in the ledger is to begin.
    pub async fn close(mut self) {
        // Nobody can send to them any more: each connection writes what waits, and ends.
        self.shared.roster.clear();
        let _ = self.closing.send(());
        let _ = timeout(CLOSING, &mut self.accepting).await;
        self.accepting.abort();
        self.endpoint.close(VarInt::from_u32(0), b"the orchestrator ends");
        // Agents that are gone can't be told.
        let _ = timeout(CLOSING, self.endpoint.wait_idle()).await;
    }
}

fn server_config(identity: &Identity, agent_timeout: Duration) -> Result<ServerConfig, TransportError> {
    let bad = |error: &dyn std::fmt::Display| TransportError::Certificates(error.to_string());
    let mut config = ServerConfig::with_crypto(Arc::new(certificate::server_config(identity)?));
    config.max_incoming(MOST_INCOMING);
    config.incoming_buffer_size(INCOMING_BYTES).incoming_buffer_size_total(ALL_INCOMING_BYTES);
    let mut transport = TransportConfig::default();
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    transport.max_idle_timeout(Some(agent_timeout.try_into().map_err(|e| bad(&e))?));
    // One stream an agent is all the protocol has.
    transport.max_concurrent_bidi_streams(VarInt::from_u32(1));
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    transport.datagram_receive_buffer_size(None);
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Takes connections until `closing` says that no more are to come, and those that there are have ended.
async fn accept(
    endpoint: Endpoint,
    config: ServerConfig,
    shared: Arc<Shared>,
    mut closing: oneshot::Receiver<()>,
) {
    let mut connections = tokio::task::JoinSet::new();
    let mut report = tokio::time::interval(REPORTS);
    let mut kept_out = 0_u64;
    loop {
        tokio::select! {
            _ = &mut closing => break,
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { return };
                let from = incoming.remote_address();
                match shared.door.admit(from.ip(), incoming.remote_address_validated()) {
                    Verdict::Take(place) => {
                        let place = shared.door.hold(place);
                        // The costly part of a handshake: one after the other, and others have their turn in between.
                        let connecting = incoming.accept_with(place.config(&config));
                        connections.spawn(serve(from, connecting, place, shared.clone()));
                        tokio::task::yield_now().await;
                    }
                    Verdict::Retry => {
                        kept_out += 1;
                        // One that may not be asked again is not answered.
                        if let Err(error) = incoming.retry() {
                            error.into_incoming().ignore();
                        }
                    }
                    Verdict::Ignore => {
                        kept_out += 1;
                        incoming.ignore();
                    }
                }
            }
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the task of a connection failed");
                }
            }
            _ = report.tick() => {
                let failed = shared.failed.swap(0, Ordering::Relaxed);
                if failed + kept_out > 0 {
                    tracing::warn!(failed, kept_out, "handshakes came to nothing, or were to prove their address");
                }
                kept_out = 0;
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

/// One connection from its first packet to its end.
async fn serve(
    from: SocketAddr,
    connecting: Result<Connecting, ConnectionError>,
    place: Arc<Held>,
    shared: Arc<Shared>,
) {
    let connection = match handshake(connecting).await {
        Ok(connection) => connection,
        Err(error) => {
            // Anybody can do this any number of times: it is counted, and told of together.
            shared.failed.fetch_add(1, Ordering::Relaxed);
            let source = std::error::Error::source(&error).map(ToString::to_string);
            return tracing::debug!(%from, %error, source, "a handshake came to nothing");
        }
    };
    if let Err(error) = converse(&connection, &place, &shared).await {
        if let TransportError::Taken { name, holder, newcomer } = error {
            let event = TransportEvent::Refused { host: name, holder, newcomer };
            // Who hears it says it in the log, once for a conflict and not at each attempt.
            let _ = shared.events.send(event).await;
            return;
        }
        let source = std::error::Error::source(&error).map(ToString::to_string);
        tracing::info!(%from, %error, source, "a connection ended");
    }
}

async fn handshake(connecting: Result<Connecting, ConnectionError>) -> Result<Connection, TransportError> {
    timeout(HANDSHAKE, connecting?)
        .await
        .map_err(|_| TransportError::SlowHandshake)?
        .map_err(TransportError::from)
}

async fn converse(connection: &Connection, place: &Held, shared: &Shared) -> Result<(), TransportError> {
    let mut decoder = Decoder::default();
    let hello = timeout(HELLO, introduce(connection, &mut decoder, &shared.judge)).await;
    let entered = async {
        let (introduced, to, from) = hello.unwrap_or(Err(TransportError::NoHello))?;
        let entered = shared.roster.enter(&introduced.name, introduced.instance, connection).await?;
        Ok::<_, TransportError>((introduced, to, from, entered))
    };
    let (introduced, mut to, mut from, (number, queue)) = match entered.await {
        Ok(entered) => entered,
        Err(error) => {
            connection.close(VarInt::from_u32(1), error.to_string().as_bytes());
            return Err(error);
        }
    };
    // From here on it is one of the agents, which have a bound of their own.
    place.enters();
    let Introduced { name, instance, facts, labels, held } = introduced;
    let session = Session { number, instance, address: connection.remote_address().ip().to_canonical() };
    // The receiver ends only with the campaign: nobody is left to tell.
    let _ = shared
        .events
        .send(TransportEvent::Connected { host: name.clone(), session, facts, labels, held })
        .await;
    let ended = async {
        to.write_all(&frame::encode(&ToAgent::Welcome { version: PROTOCOL_VERSION })?).await?;
        tokio::select! {
            ended = write(&mut to, queue) => ended,
            ended = read(&mut from, decoder, (&name, number), &shared.events) => ended,
        }
    };
    let ended = ended.await;
    shared.roster.leave(&name, number);
    place.leaves();
    let _ = shared.events.send(TransportEvent::Lost { host: name, session: number }).await;
    ended
}

/// What an agent says of itself.
struct Introduced {
    name: String,
    instance: Instance,
    facts: Box<HostFacts>,
    labels: BTreeMap<String, String>,
    held: Vec<TrialId>,
}

type Introduction = (Introduced, SendStream, RecvStream);

/// Waits for the agent's Hello and checks it.
async fn introduce(
    connection: &Connection,
    decoder: &mut Decoder,
    judge: &Judge,
) -> Result<Introduction, TransportError> {
    let (to, mut from) = connection.accept_bi().await?;
    let message = next_of(&mut from, decoder, message::LONGEST).await?.ok_or(TransportError::NoHello)?;
    let FromAgent::Hello { version, name, instance, facts, labels, held } = message else {
        return Err(TransportError::NoHello);
    };
    if version != PROTOCOL_VERSION {
        return Err(TransportError::Version { theirs: version });
    }
    if !is_host_name(&name) {
        return Err(TransportError::NoName);
    }
    judge.is_for(connection, &name)?;
    Ok((Introduced { name, instance, facts, labels, held }, to, from))
}

async fn write(stream: &mut SendStream, mut queue: mpsc::Receiver<ToAgent>) -> Result<(), TransportError> {
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
    (host, session): (&str, u64),
    events: &mpsc::Sender<TransportEvent>,
) -> Result<(), TransportError> {
    while let Some(message) = next(stream, &mut decoder).await? {
        let event = TransportEvent::Message { host: host.to_owned(), session, message, at: Instant::now() };
        if events.send(event).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// The next message, or `None` at the end of the stream.
async fn next(stream: &mut RecvStream, decoder: &mut Decoder) -> Result<Option<FromAgent>, TransportError> {
    next_of(stream, decoder, usize::MAX).await
}

/// The same, if no more than `most` bytes come before it is whole.
async fn next_of(
    stream: &mut RecvStream,
    decoder: &mut Decoder,
    most: usize,
) -> Result<Option<FromAgent>, TransportError> {
    let mut come = 0;
    loop {
        if let Some(message) = decoder.next_message()? {
            return Ok(Some(message));
        }
        match stream.read_chunk(READ, true).await? {
            Some(_) if come > most => return Err(TransportError::LongHello),
            Some(chunk) => {
                come += chunk.bytes.len();
                decoder.push(&chunk.bytes);
            }
            None => return Ok(None),
        }
    }
}
