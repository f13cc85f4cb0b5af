//! Sends first packets of QUIC handshakes that never go on, as whoever has no certificate can.
//!
//! ```text
//! --prepared N: Initial ----->                                     each with keys and ids of its own; nothing is read
//! --answering:  Initial -----> | <---- Retry | Initial, token ---> the address is a real one, and then silence
//! --closing:    Initial, which is a farewell too ----->            either of these, over as it begins: it is remembered
//! ```

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{ClientConfig, Connection, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig};
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::quic::{Suite, Version};
use rustls::{RootCertStore, Tls13CipherSuite};
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
    /// Each packet ends the handshake that it begins.
    #[arg(long)]
    closing: bool,
}

/// Handshakes whose Retry is waited for.
const MOST_OPEN: usize = 10_000;

/// The client's half of handshakes.
struct Client {
    endpoint: Endpoint,
    config: ClientConfig,
    to: SocketAddr,
    buffer: Vec<u8>,
    /// What Initials are protected with, if they are to be changed.
    suite: Option<Suite>,
}

impl Client {
    fn new(to: SocketAddr, closing: bool) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let suite = TLS13_AES_128_GCM_SHA256.tls13().and_then(Tls13CipherSuite::quic_suite);
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            // No handshake comes as far as to a certificate.
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        tls.alpn_protocols = vec![toll_orchestrator::transport::ALPN.to_vec()];
        let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        let endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, false, None);
        Ok(Self { endpoint, config, to, buffer: Vec::new(), suite: suite.filter(|_| closing) })
    }

    /// A handshake, and its first packet.
    fn begin(&mut self, now: Instant) -> Result<(ConnectionHandle, Connection, Vec<u8>)> {
        let config = self.config.clone();
        let (handle, mut connection) = self.endpoint.connect(now, config, self.to, "toll-orchestrator")?;
        self.buffer.clear();
        let first = connection.poll_transmit(now, 1, &mut self.buffer);
        let size = first.context("a handshake begins with a packet")?.size;
        Ok((handle, connection, self.packet(size)?))
    }

    /// The packet that was made last, in `size` bytes.
    fn packet(&self, size: usize) -> Result<Vec<u8>> {
        let mut packet = self.buffer[..size].to_owned();
        if let Some(suite) = &self.suite {
            end(&mut packet, suite)?;
        }
        Ok(packet)
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
        self.packet(size).ok()
    }
}

/// Puts a CONNECTION_CLOSE (RFC 9000, 19.19) in the place of the last padding of an Initial, whose keys everybody knows
/// (RFC 9001, 5.2).
fn end(packet: &mut [u8], suite: &Suite) -> Result<()> {
    // RFC 9000, 17.2.2: the first byte, a version, two ids with their lengths, a token with its, the length, the number.
    let destination = 6..6 + usize::from(packet[5]);
    let source = destination.end + 1 + usize::from(packet[destination.end]);
    let (token, at) = number(packet, source);
    let (length, at) = number(packet, at + token);
    let keys = |side| suite.keys(&packet[destination.clone()], side, Version::V1);
    let (theirs, ours) = (keys(rustls::Side::Server), keys(rustls::Side::Client));
    let (header, body) = packet.get_mut(..at + length).context("a whole packet")?.split_at_mut(at);
    let (number, rest) = body.split_at_mut(4);
    let sample = rest[..theirs.remote.header.sample_len()].to_owned();
    theirs.remote.header.decrypt_in_place(&sample, &mut header[0], number)?;
    let bytes = usize::from(header[0] & 3) + 1;
    let number = number[..bytes].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let (header, payload) = packet[..at + length].split_at_mut(at + bytes);
    theirs.remote.packet.decrypt_in_place(number, header, payload)?;
    let size = payload.len() - ours.local.packet.tag_len();
    let (plain, tag) = payload.split_at_mut(size);
    let padding = plain.last_chunk_mut().context("a frame")?;
    ensure!(*padding == [0; 4], "there is no padding in the packet");
    *padding = [0x1c, 0, 0, 0];
    tag.copy_from_slice(ours.local.packet.encrypt_in_place(number, header, plain)?.as_ref());
    let (header, body) = packet.split_at_mut(at);
    let (number, rest) = body.split_at_mut(4);
    let sample = &rest[..ours.local.header.sample_len()];
    ours.local.header.encrypt_in_place(sample, &mut header[0], &mut number[..bytes])?;
    Ok(())
}

/// A number of variable length (RFC 9000, 16), and where it ends.
fn number(packet: &[u8], at: usize) -> (usize, usize) {
    let end = at + (1 << (packet[at] >> 6));
    let rest = packet[at + 1..end].iter();
    (rest.fold(usize::from(packet[at] & 0x3f), |number, byte| number << 8 | usize::from(*byte)), end)
}

fn main() -> Result<()> {
    let Arguments { to, rate, seconds, prepared, answering, closing } = Arguments::parse();
    ensure_apart()?;
    let mut client = Client::new(to, closing)?;
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
