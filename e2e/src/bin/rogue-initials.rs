//! Sends first packets of QUIC handshakes that never go on, as whoever has no certificate can.
//!
//! ```text
//! --prepared N: Initial ----->                                     each with keys and ids of its own; nothing is read
//! --answering:  Initial -----> | <---- Retry | Initial, token ---> the address is a real one, and then silence
//! ```

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{ClientConfig, Connection, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig};
use rustls::RootCertStore;
use toll_e2e::rogue::ensure_apart;

/// Sends first packets of QUIC handshakes that never go on.
#[derive(Parser)]
struct Arguments {
    /// Where an orchestrator listens.
    to: SocketAddr,
    /// How many to begin in a second.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
    /// When to end, if nobody ends it before.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=120))]
    seconds: u64,
    /// So many different handshakes are made beforehand, and begun again and again: at any rate.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000), conflicts_with = "answering")]
    prepared: Option<u32>,
    /// Make each handshake when it is begun, and answer a Retry, which proves the address.
    #[arg(long)]
    answering: bool,
}

/// Handshakes whose Retry is waited for.
const MOST_OPEN: usize = 10_000;

/// The client's half of handshakes.
struct Client {
    endpoint: Endpoint,
    config: ClientConfig,
    to: SocketAddr,
    buffer: Vec<u8>,
}

impl Client {
    fn new(to: SocketAddr) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            // No handshake comes as far as to a certificate.
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        tls.alpn_protocols = vec![toll_orchestrator::link::ALPN.to_vec()];
        let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        let endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, false, None);
        Ok(Self { endpoint, config, to, buffer: Vec::new() })
    }

    /// A handshake, and its first packet.
    fn begin(&mut self, now: Instant) -> Result<(ConnectionHandle, Connection, Vec<u8>)> {
        let config = self.config.clone();
        let (handle, mut connection) = self.endpoint.connect(now, config, self.to, "toll-orchestrator")?;
        self.buffer.clear();
        let first = connection.poll_transmit(now, 1, &mut self.buffer);
        let size = first.context("a handshake begins with a packet")?.size;
        Ok((handle, connection, self.buffer[..size].to_owned()))
    }

    /// What `datagram` asks a handshake of `open` to say, if it is a Retry; that handshake is over then.
    fn answer(
        &mut self,
        datagram: &[u8],
        open: &mut HashMap<ConnectionHandle, Connection>,
        now: Instant,
    ) -> Option<Vec<u8>> {
        // RFC 9000, 17.2.5: a long header of type 3.
        if datagram.first()? & 0xb0 != 0xb0 {
            return None;
        }
        self.buffer.clear();
        let event = self.endpoint.handle(now, self.to, None, None, datagram.into(), &mut self.buffer)?;
        let DatagramEvent::ConnectionEvent(handle, event) = event else { return None };
        let mut connection = open.remove(&handle)?;
        connection.handle_event(event);
        self.buffer.clear();
        let size = connection.poll_transmit(now, 1, &mut self.buffer)?.size;
        Some(self.buffer[..size].to_owned())
    }
}

fn main() -> Result<()> {
    let Arguments { to, rate, seconds, prepared, answering } = Arguments::parse();
    ensure_apart()?;
    let mut client = Client::new(to)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("a socket")?;
    socket.connect(to).context("the orchestrator's address")?;
    let mut packets = Vec::new();
    for _ in 0..prepared.unwrap_or_default() {
        packets.push(client.begin(Instant::now())?.2);
    }
    eprintln!("begins");
    let (mut open, mut sent, mut answered) = (HashMap::new(), 0_u32, 0_u32);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        let packet = match packets.get(sent as usize % packets.len().max(1)) {
            Some(packet) => packet.clone(),
            None => {
                let (handle, connection, packet) = client.begin(Instant::now())?;
                if answering && open.len() < MOST_OPEN {
                    open.insert(handle, connection);
                }
                packet
            }
        };
        // One that does not leave, because a queue is full or nobody listens, is one less.
        let _ = socket.send(&packet);
        sent += 1;
        if sent.is_multiple_of(rate) {
            eprintln!("{sent} begun, {answered} Retry answered");
        }
        let due = began + Duration::from_secs_f64(f64::from(sent) / f64::from(rate));
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            if answering {
                answered += read(&mut client, &socket, &mut open, left)?;
            } else {
                std::thread::park_timeout(left);
            }
        }
    }
    Ok(())
}

/// Answers one datagram, if one comes within `time`.
fn read(
    client: &mut Client,
    socket: &UdpSocket,
    open: &mut HashMap<ConnectionHandle, Connection>,
    time: Duration,
) -> Result<u32> {
    let mut datagram = [0; 2048];
    socket.set_read_timeout(Some(time))?;
    let Ok(length) = socket.recv(&mut datagram) else { return Ok(0) };
    let Some(answer) = client.answer(&datagram[..length], open, Instant::now()) else { return Ok(0) };
    Ok(u32::from(socket.send(&answer).is_ok()))
}
