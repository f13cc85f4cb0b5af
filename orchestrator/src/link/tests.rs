use quinn::ClientConfig;
use quinn::ConnectionError;
use quinn::crypto::rustls::QuicClientConfig;
use tokio::net::UdpSocket;

use super::*;
use crate::pki::{Authority, DEFAULT_DAYS, SERVER_NAME};
use crate::test_support::provenance;

const LIMIT: Duration = Duration::from_secs(10);

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// What is trusted, and who speaks in the tests.
struct Party {
    authority: Authority,
    server: Identity,
}

impl Party {
    fn new() -> Self {
        let authority = Authority::new(DEFAULT_DAYS).expect("an authority");
        let server = authority.issue(SERVER_NAME, DEFAULT_DAYS).expect("a certificate");
        Self { authority, server }
    }

    fn listen(&self) -> (Link, mpsc::Receiver<LinkEvent>) {
        Link::bind(address(), &self.server, AGENT_TIMEOUT).expect("a socket")
    }

    /// A client with the certificate of `name`, which says 50 times a second that it is there.
    async fn dial(&self, name: &str, to: SocketAddr) -> (Endpoint, Connection) {
        let identity = self.authority.issue(name, DEFAULT_DAYS).expect("a certificate");
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        let mut roots = RootCertStore::empty();
        roots.add(der(&identity.authority_pem)).expect("a root");
        let provider = Arc::new(quinn::rustls::crypto::ring::default_provider());
        let mut tls = quinn::rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&quinn::rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![der(&identity.certificate_pem)],
                private_key(&identity).expect("a key"),
            )
            .expect("a configuration");
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let mut config =
            ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("a configuration for QUIC")));
        let mut transport = TransportConfig::default();
        transport.keep_alive_interval(Some(Duration::from_millis(20)));
        config.transport_config(Arc::new(transport));
        let endpoint = Endpoint::client(address()).expect("a socket");
        let connecting = endpoint.connect_with(config, to, SERVER_NAME).expect("an address");
        let connection = connecting.await.expect("a handshake");
        (endpoint, connection)
    }
}

fn hello(version: u32, name: &str) -> FromAgent {
    let facts = Box::new(provenance().hosts[0].facts.clone());
    FromAgent::Hello { version, name: name.into(), facts, labels: BTreeMap::new(), held: Vec::new() }
}

async fn say(connection: &Connection, bytes: &[u8]) -> (SendStream, RecvStream) {
    let (mut to, from) = connection.open_bi().await.expect("a stream");
    to.write_all(bytes).await.expect("written");
    (to, from)
}

/// The words with which the orchestrator closes the connection.
async fn refusal(connection: &Connection) -> String {
    match timeout(LIMIT, connection.closed()).await.expect("it is closed") {
        ConnectionError::ApplicationClosed(close) => String::from_utf8_lossy(&close.reason).into_owned(),
        other => panic!("it was not refused: {other}"),
    }
}

#[tokio::test]
async fn another_version_is_refused_and_both_are_named() {
    let party = Party::new();
    let (link, _events) = party.listen();
    let (_endpoint, connection) = party.dial("host-1", link.address()).await;
    let _streams = say(&connection, &frame::encode(&hello(99, "host-1")).expect("encoded")).await;
    let refusal = refusal(&connection).await;
    assert!(refusal.contains("version 99"), "{refusal}");
    assert!(refusal.contains(&format!("the orchestrator {PROTOCOL_VERSION}")), "{refusal}");
}

#[tokio::test]
async fn who_does_not_begin_with_a_hello_under_its_own_name_is_refused() {
    let party = Party::new();
    let (link, mut events) = party.listen();
    let other = frame::encode(&hello(PROTOCOL_VERSION, "host-2")).expect("encoded");
    for (first, words) in [
        (other.as_slice(), "it says that it is `host-2`, and its certificate says otherwise"),
        (&[0, 0, 0, 3, b'{', b'}', b'{'], "malformed"),
        (&[0xff; 64], "malformed"),
    ] {
        let (_endpoint, connection) = party.dial("host-1", link.address()).await;
        let _streams = say(&connection, first).await;
        let refusal = refusal(&connection).await;
        assert!(refusal.contains(words), "{refusal}");
    }
    assert!(events.try_recv().is_err(), "nobody was welcomed");
}

#[tokio::test]
async fn a_new_connection_of_an_agent_takes_the_place_of_the_old() {
    let party = Party::new();
    let (link, mut events) = party.listen();
    let hello = frame::encode(&hello(PROTOCOL_VERSION, "host-1")).expect("encoded");
    let old = party.dial("host-1", link.address()).await;
    let _old_streams = say(&old.1, &hello).await;
    let new = party.dial("host-1", link.address()).await;
    let (_to, mut from) = say(&new.1, &hello).await;
    for _ in 0..2 {
        let event = timeout(LIMIT, events.recv()).await.expect("in time");
        assert!(matches!(event, Some(LinkEvent::Connected { .. })), "{event:?}");
    }
    // The end of the old one is not the loss of the agent, which is still spoken to.
    old.1.close(VarInt::from_u32(0), b"");
    old.0.wait_idle().await;
    link.send("host-1", ToAgent::Teardown { trial: TrialId::new(1) });
    let mut decoder = Decoder::default();
    let mut heard = Vec::new();
    while heard.len() < 2 {
        let chunk = timeout(LIMIT, from.read_chunk(READ, true)).await.expect("in time").expect("open");
        decoder.push(&chunk.expect("more").bytes);
        while let Some(message) = decoder.next_message::<ToAgent>().expect("well formed") {
            heard.push(message);
        }
    }
    assert!(matches!(heard[1], ToAgent::Teardown { .. }), "{heard:?}");
    assert!(events.try_recv().is_err(), "the agent was taken for lost");
}

#[tokio::test]
async fn what_was_sent_before_the_end_arrives() {
    let party = Party::new();
    let (link, mut events) = party.listen();
    let (_endpoint, connection) = party.dial("host-1", link.address()).await;
    let hello = frame::encode(&hello(PROTOCOL_VERSION, "host-1")).expect("encoded");
    let (_to, mut from) = say(&connection, &hello).await;
    let event = timeout(LIMIT, events.recv()).await.expect("in time");
    assert!(matches!(event, Some(LinkEvent::Connected { .. })), "{event:?}");
    for number in 0..20 {
        link.send("host-1", ToAgent::Teardown { trial: TrialId::new(number) });
    }
    // Nothing of it has been written yet: this is the only thread.
    let closing = tokio::spawn(link.close());
    let (mut decoder, mut heard) = (Decoder::default(), 0);
    while let Some(chunk) =
        timeout(LIMIT, from.read_chunk(READ, true)).await.expect("in time").expect("whole")
    {
        decoder.push(&chunk.bytes);
        while let Some(message) = decoder.next_message::<ToAgent>().expect("well formed") {
            heard += u32::from(matches!(message, ToAgent::Teardown { .. }));
        }
    }
    assert_eq!(heard, 20);
    timeout(LIMIT, closing).await.expect("it ends in time").expect("well");
}

/// Carries datagrams between one client and the server that `to` says at the time.
async fn relay(socket: UdpSocket, to: tokio::sync::watch::Receiver<SocketAddr>) {
    let behind = UdpSocket::bind(address()).await.expect("a socket");
    let (mut from_client, mut from_server) = ([0; 2048], [0; 2048]);
    let mut client = None;
    loop {
        tokio::select! {
            Ok((length, from)) = socket.recv_from(&mut from_client) => {
                client = Some(from);
                let server = *to.borrow();
                drop(behind.send_to(&from_client[..length], server).await);
            }
            Ok((length, _)) = behind.recv_from(&mut from_server) => {
                if let Some(client) = client {
                    drop(socket.send_to(&from_server[..length], client).await);
                }
            }
        }
    }
}

#[tokio::test]
async fn the_process_after_a_killed_one_resets_its_connections() {
    let party = Party::new();
    // Each has forgotten, or never known, what the other knows: like one process after another.
    let (before, _events) = party.listen();
    let (after, _events) = party.listen();
    let socket = UdpSocket::bind(address()).await.expect("a socket");
    let front = socket.local_addr().expect("an address");
    let (switch, to) = tokio::sync::watch::channel(before.address());
    let relay = tokio::spawn(relay(socket, to));
    let (_endpoint, connection) = party.dial("host-1", front).await;
    let _streams =
        say(&connection, &frame::encode(&hello(PROTOCOL_VERSION, "host-1")).expect("encoded")).await;
    switch.send_replace(after.address());
    let ended = timeout(LIMIT, connection.closed()).await.expect("the client is told");
    assert!(matches!(ended, ConnectionError::Reset), "{ended}");
    relay.abort();
}
