use quinn::ClientConfig;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::CertificateDer;
use quinn::rustls::pki_types::pem::PemObject;
use rcgen::ExtendedKeyUsagePurpose;
use tokio::net::UdpSocket;

use super::*;
use crate::pki::{Authority, DEFAULT_DAYS, FLEET_NAME, SERVER_NAME};
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

    fn listen(&self) -> (Transport, mpsc::Receiver<TransportEvent>) {
        Transport::bind(address(), &self.server, AGENT_TIMEOUT).expect("a socket")
    }

    /// A client with the certificate of `name`, which says 50 times a second that it is there.
    async fn dial(&self, name: &str, to: SocketAddr) -> (Endpoint, Connection) {
        let identity = self.authority.issue(name, DEFAULT_DAYS).expect("a certificate");
        self.dial_as(&identity, address(), to).await
    }

    /// The same, with a certificate and from an address.
    async fn dial_as(&self, identity: &Identity, from: SocketAddr, to: SocketAddr) -> (Endpoint, Connection) {
        let (endpoint, config) = self.client(identity, from);
        let connecting = endpoint.connect_with(config, to, SERVER_NAME).expect("an address");
        let connection = connecting.await.expect("a handshake");
        (endpoint, connection)
    }

    fn client(&self, identity: &Identity, from: SocketAddr) -> (Endpoint, ClientConfig) {
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
                private_key(identity).expect("a key"),
            )
            .expect("a configuration");
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let mut config =
            ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("a configuration for QUIC")));
        let mut transport = TransportConfig::default();
        transport.keep_alive_interval(Some(Duration::from_millis(20)));
        config.transport_config(Arc::new(transport));
        (Endpoint::client(from).expect("a socket"), config)
    }
}

fn hello(version: u32, name: &str) -> FromAgent {
    hello_of(version, name, Instance(1))
}

fn hello_of(version: u32, name: &str, instance: Instance) -> FromAgent {
    let facts = Box::new(provenance().hosts[0].facts.clone());
    FromAgent::Hello {
        version,
        name: name.into(),
        instance,
        facts,
        labels: BTreeMap::new(),
        held: Vec::new(),
    }
}

/// An agent's first words.
fn introduction(name: &str, instance: u64) -> Vec<u8> {
    frame::encode(&hello_of(PROTOCOL_VERSION, name, Instance(instance))).expect("encoded")
}

async fn next_event(events: &mut mpsc::Receiver<TransportEvent>) -> TransportEvent {
    timeout(LIMIT, events.recv()).await.expect("in time").expect("the transport is there")
}

/// Number of the session that begins.
async fn begun(events: &mut mpsc::Receiver<TransportEvent>) -> u64 {
    match next_event(events).await {
        TransportEvent::Connected { session, .. } => session.number,
        other => panic!("nobody was welcomed: {other:?}"),
    }
}

/// Number of the session that ends.
async fn lost(events: &mut mpsc::Receiver<TransportEvent>) -> u64 {
    match next_event(events).await {
        TransportEvent::Lost { session, .. } => session,
        other => panic!("nobody was lost: {other:?}"),
    }
}

async fn say(connection: &Connection, bytes: &[u8]) -> (SendStream, RecvStream) {
    let (mut to, from) = connection.open_bi().await.expect("a stream");
    to.write_all(bytes).await.expect("written");
    (to, from)
}

/// Waits until QUIC has forgotten all connections but those of agents.
async fn until_forgotten(transport: &Transport) {
    let mut look = tokio::time::interval(Duration::from_millis(5));
    let forgotten = async {
        while transport.shared.door.held() > 0 {
            look.tick().await;
        }
    };
    timeout(LIMIT, forgotten).await.expect("it forgets in time");
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
    let (transport, _events) = party.listen();
    let (_endpoint, connection) = party.dial("host-1", transport.address()).await;
    let _streams = say(&connection, &frame::encode(&hello(99, "host-1")).expect("encoded")).await;
    let refusal = refusal(&connection).await;
    assert!(refusal.contains("version 99"), "{refusal}");
    assert!(refusal.contains(&format!("the orchestrator {PROTOCOL_VERSION}")), "{refusal}");
}

#[tokio::test]
async fn who_does_not_begin_with_a_hello_under_its_own_name_is_refused() {
    let party = Party::new();
    let (transport, mut events) = party.listen();
    let other = frame::encode(&hello(PROTOCOL_VERSION, "host-2")).expect("encoded");
    for (first, words) in [
        (other.as_slice(), "it says that it is `host-2`, and its certificate says otherwise"),
        (&[0, 0, 0, 3, b'{', b'}', b'{'], "malformed"),
        (&[0xff; 64], "malformed"),
    ] {
        let (_endpoint, connection) = party.dial("host-1", transport.address()).await;
        let _streams = say(&connection, first).await;
        let refusal = refusal(&connection).await;
        assert!(refusal.contains(words), "{refusal}");
    }
    assert!(events.try_recv().is_err(), "nobody was welcomed");
}

#[tokio::test]
async fn a_new_connection_of_an_agent_takes_the_place_of_the_old() {
    let party = Party::new();
    let (transport, mut events) = party.listen();
    let hello = introduction("host-1", 7);
    let old = party.dial("host-1", transport.address()).await;
    let _old_streams = say(&old.1, &hello).await;
    let first = begun(&mut events).await;
    let new = party.dial("host-1", transport.address()).await;
    let (_to, mut from) = say(&new.1, &hello).await;
    // Each session's events are its own: the end of the old one may be heard before or after the beginning of the new one.
    let (mut second, mut ended) = (None, None);
    while second.is_none() || ended.is_none() {
        match next_event(&mut events).await {
            TransportEvent::Connected { session, .. } => second = Some(session.number),
            TransportEvent::Lost { session, .. } => ended = Some(session),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ended, Some(first));
    assert!(second > ended, "{second:?}");
    assert!(refusal(&old.1).await.contains("newer connection"));
    // The end of the old one is not the loss of the agent, which is still spoken to.
    transport.send("host-1", ToAgent::Teardown { trial: TrialId::new(1) });
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
async fn a_second_agent_of_a_name_is_refused_while_the_first_one_answers() {
    let party = Party::new();
    let (transport, mut events) = party.listen();
    let identity = party.authority.issue("host-1", DEFAULT_DAYS).expect("a certificate");
    let (_endpoint, first) = party.dial_as(&identity, address(), transport.address()).await;
    let _streams = say(&first, &introduction("host-1", 1)).await;
    let number = begun(&mut events).await;
    // Another process, at this address or another one; and the same one, as a copy of the machine has it.
    let elsewhere = SocketAddr::from(([127, 0, 0, 2], 0));
    for (from, instance) in [(address(), 2), (elsewhere, 2), (elsewhere, 1)] {
        let (endpoint, copy) = party.dial_as(&identity, from, transport.address()).await;
        let _streams = say(&copy, &introduction("host-1", instance)).await;
        let began = Instant::now();
        let refusal = refusal(&copy).await;
        assert!(began.elapsed() < roster::PROBE, "an answer is not waited for beyond its coming");
        let TransportEvent::Refused { host, holder, newcomer } = next_event(&mut events).await else {
            panic!("it is told")
        };
        assert_eq!((host.as_str(), newcomer.ip()), ("host-1", endpoint.local_addr().expect("bound").ip()));
        for address in [holder, newcomer] {
            assert!(refusal.contains(&address.to_string()), "{refusal}");
        }
    }
    assert!(first.close_reason().is_none(), "the first one was thrown out");
    first.close(VarInt::from_u32(0), b"");
    assert_eq!(lost(&mut events).await, number);
}

/// An agent that was killed can't say that it is gone: whoever comes in its place finds out.
#[tokio::test]
async fn an_agent_whose_former_process_does_not_answer_takes_its_place() {
    let party = Party::new();
    let (transport, mut events) = party.listen();
    let socket = UdpSocket::bind(address()).await.expect("a socket");
    let front = socket.local_addr().expect("an address");
    let (_switch, to) = tokio::sync::watch::channel(transport.address());
    let relay = tokio::spawn(relay(socket, to));
    let (_endpoint, killed) = party.dial("host-1", front).await;
    let _streams = say(&killed, &introduction("host-1", 1)).await;
    let first = begun(&mut events).await;
    // From here on nothing comes from it.
    relay.abort();
    let began = Instant::now();
    let (_endpoint, restarted) = party.dial("host-1", transport.address()).await;
    let _streams = say(&restarted, &introduction("host-1", 2)).await;
    let events = [next_event(&mut events).await, next_event(&mut events).await];
    assert!(began.elapsed() < roster::PROBE * 2, "{:?}", began.elapsed());
    let ended =
        |event: &TransportEvent| matches!(event, TransportEvent::Lost { session, .. } if *session == first);
    let began = |event: &TransportEvent| matches!(event, TransportEvent::Connected { session, .. } if session.number > first);
    assert!(events.iter().any(ended) && events.iter().any(began), "{events:?}");
}

#[tokio::test]
async fn a_certificate_names_its_host_byte_for_byte() {
    let party = Party::new();
    let (transport, mut events) = party.listen();
    let other = "its certificate says otherwise";
    for (certified, name, words) in [
        ("host-3", "HOST-3", "none of a host"),
        ("host-3", "host-3.", "none of a host"),
        (FLEET_NAME, "HOST-3", "none of a host"),
        (FLEET_NAME, "host-3.", "none of a host"),
        ("HOST-3", "host-3", other),
        ("host-3.", "host-3", other),
        ("*.rack", "host-3.rack", other),
        (SERVER_NAME, "host-3", "not one of an agent"),
    ] {
        let purpose = ExtendedKeyUsagePurpose::ClientAuth;
        let purposes = if certified == SERVER_NAME { Vec::new() } else { vec![purpose] };
        let identity = party.authority.issue_for(certified, DEFAULT_DAYS, purposes).expect("a certificate");
        let (_endpoint, connection) = party.dial_as(&identity, address(), transport.address()).await;
        let _streams = say(&connection, &introduction(name, 1)).await;
        let refusal = refusal(&connection).await;
        assert!(refusal.contains(words), "{certified} as {name}: {refusal}");
    }
    assert!(events.try_recv().is_err(), "somebody was welcomed");
}

#[tokio::test]
async fn a_certificate_without_the_purpose_of_a_client_is_none_of_an_agent() {
    let party = Party::new();
    let (transport, mut events) = party.listen();
    let identity = party.authority.issue_for("host-1", DEFAULT_DAYS, Vec::new()).expect("a certificate");
    let (_endpoint, connection) = party.dial_as(&identity, address(), transport.address()).await;
    let _streams = say(&connection, &introduction("host-1", 1)).await;
    let refusal = refusal(&connection).await;
    assert!(refusal.contains("client authentication is not among its extended key usages"), "{refusal}");
    assert!(events.try_recv().is_err(), "it was welcomed");
}

/// Whoever can answer at its address gets in, however many handshakes of others wait.
#[tokio::test]
async fn a_client_that_proves_its_address_gets_in_past_those_that_do_not() {
    let party = Party::new();
    let (transport, mut events) = party.listen();
    for _ in 0..admission::UNPROVED {
        assert!(matches!(transport.shared.door.admit(address().ip(), false), Verdict::Take(_)));
    }
    let (_endpoint, connection) = party.dial("host-1", transport.address()).await;
    let _streams = say(&connection, &introduction("host-1", 1)).await;
    begun(&mut events).await;
    // Its own place is free again: it is one of the agents now.
    assert_eq!(transport.shared.door.held(), admission::UNPROVED);
}

/// A handshake that its client ends at once costs it two datagrams under any address, and is remembered for seconds.
#[tokio::test]
async fn clients_that_close_their_handshakes_keep_nobody_out() {
    let party = Party::new();
    let (transport, mut events) = party.listen();
    let (front, behind) = (UdpSocket::bind(address()).await, UdpSocket::bind(address()).await);
    let (front, behind) = (front.expect("a socket"), behind.expect("a socket"));
    let identity = party.authority.issue("host-1", DEFAULT_DAYS).expect("a certificate");
    let (stranger, config) = party.client(&identity, address());
    let mut datagram = [0; 2048];
    for _ in 0..600 {
        let to = front.local_addr().expect("an address");
        let mut connecting =
            Some(stranger.connect_with(config.clone(), to, SERVER_NAME).expect("an address"));
        // Its Hello, then its farewell: no answer has come meanwhile.
        for _ in 0..2 {
            let (length, _) =
                timeout(LIMIT, front.recv_from(&mut datagram)).await.expect("in time").expect("one");
            behind.send_to(&datagram[..length], transport.address()).await.expect("sent");
            drop(connecting.take());
        }
    }
    let (_endpoint, connection) = party.dial("host-1", transport.address()).await;
    assert_eq!(transport.shared.door.held(), admission::UNPROVED + 1, "they are remembered");
    let _streams = say(&connection, &introduction("host-1", 1)).await;
    begun(&mut events).await;
    until_forgotten(&transport).await;
}

#[tokio::test]
async fn an_agent_that_left_holds_a_place_until_it_is_forgotten() {
    let party = Party::new();
    let (transport, mut events) = party.listen();
    let (_endpoint, connection) = party.dial("host-1", transport.address()).await;
    let _streams = say(&connection, &introduction("host-1", 1)).await;
    begun(&mut events).await;
    assert_eq!(transport.shared.door.held(), 0);
    connection.close(VarInt::from_u32(0), b"");
    lost(&mut events).await;
    assert_eq!(transport.shared.door.held(), 1);
    until_forgotten(&transport).await;
}

#[tokio::test]
async fn who_has_a_certificate_and_says_nothing_holds_a_place_for_a_while_only() {
    let party = Party::new();
    let (transport, _events) = party.listen();
    let (_endpoint, connection) = party.dial("host-1", transport.address()).await;
    let refusal = refusal(&connection).await;
    assert!(refusal.contains("no Hello came"), "{refusal}");
    until_forgotten(&transport).await;
}

#[tokio::test]
async fn what_was_sent_before_the_end_arrives() {
    let party = Party::new();
    let (transport, mut events) = party.listen();
    let (_endpoint, connection) = party.dial("host-1", transport.address()).await;
    let hello = frame::encode(&hello(PROTOCOL_VERSION, "host-1")).expect("encoded");
    let (_to, mut from) = say(&connection, &hello).await;
    let event = timeout(LIMIT, events.recv()).await.expect("in time");
    assert!(matches!(event, Some(TransportEvent::Connected { .. })), "{event:?}");
    for number in 0..20 {
        transport.send("host-1", ToAgent::Teardown { trial: TrialId::new(number) });
    }
    // Nothing of it has been written yet: this is the only thread.
    let closing = tokio::spawn(transport.close());
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
