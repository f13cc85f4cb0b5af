//! The other side of the transport: a QUIC server that speaks the real protocol, driven by the test.

use std::collections::{BTreeMap, VecDeque};
use std::fs::Permissions;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream, ServerConfig, TransportConfig, VarInt};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use toll_node_agent::transport::ALPN;
use toll_protocol::PROTOCOL_VERSION;
use toll_protocol::facts::HostFacts;
use toll_protocol::frame::{Decoder, encode};
use toll_protocol::message::{FromAgent, ToAgent};
use toll_protocol::trial::TrialId;

pub const SERVER_NAME: &str = "orchestrator.test";
/// Bytes that an agent may send and the test has not read: soon full.
const WINDOW: u32 = 32 << 10;
/// For anything that the agent owes.
const LIMIT: Duration = Duration::from_secs(15);

/// An authority and a folder for what it issues.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        Self { issuer, folder: tempfile::tempdir().expect("a folder") }
    }

    fn issue(&self, name: &str, purpose: Option<ExtendedKeyUsagePurpose>) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.extended_key_usages.extend(purpose);
        (params.signed_by(&key, &self.issuer).expect("a certificate"), key)
    }

    /// A folder with an agent's files.
    pub fn files(&self, name: &str) -> PathBuf {
        let (certificate, key) = self.issue(name, Some(ExtendedKeyUsagePurpose::ClientAuth));
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        for (file, text) in [
            ("ca.pem", self.issuer.pem()),
            ("certificate.pem", certificate.pem()),
            ("key.pem", key.serialize_pem()),
        ] {
            std::fs::write(folder.join(file), text).expect("a file");
        }
        std::fs::set_permissions(folder.join("key.pem"), Permissions::from_mode(0o600)).expect("set");
        folder
    }

    fn server_config(&self, purpose: Option<ExtendedKeyUsagePurpose>) -> ServerConfig {
        let (certificate, key) = self.issue(SERVER_NAME, purpose);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.issuer.der().to_vec())).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(verifier.build().expect("a verifier"))
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
            )
            .expect("a configuration");
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let mut transport = TransportConfig::default();
        transport.stream_receive_window(VarInt::from_u32(WINDOW));
        let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).expect("QUIC")));
        config.transport_config(Arc::new(transport));
        config
    }
}

/// The server.
pub struct Server {
    endpoint: Endpoint,
    pub port: u16,
}

impl Server {
    /// Listens in the namespace of the calling thread, on `port` or any.
    pub fn listen(authority: &Authority, port: u16) -> Self {
        Self::listen_for(authority, port, Some(ExtendedKeyUsagePurpose::ServerAuth))
    }

    /// The same, with a certificate for this purpose or for none.
    pub fn listen_for(authority: &Authority, port: u16, purpose: Option<ExtendedKeyUsagePurpose>) -> Self {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let endpoint = Endpoint::server(authority.server_config(purpose), any).expect("a socket");
        let port = endpoint.local_addr().expect("an address").port();
        Self { endpoint, port }
    }

    /// Waits for an agent, hears its `Hello` and says `Welcome`.
    pub async fn accept(&self) -> Peer {
        self.accept_with(PROTOCOL_VERSION).await
    }

    pub async fn accept_with(&self, version: u32) -> Peer {
        tokio::time::timeout(LIMIT, async {
            loop {
                // A connection that the other side gave up meanwhile is not the one waited for.
                let incoming = self.endpoint.accept().await.expect("the endpoint is open");
                let Ok(connection) = incoming.await else { continue };
                let Ok((send, receive)) = connection.accept_bi().await else { continue };
                let mut peer = Peer {
                    name: String::new(),
                    facts: None,
                    labels: BTreeMap::new(),
                    held: Vec::new(),
                    connection,
                    send,
                    receive,
                    decoder: Decoder::default(),
                    unread: VecDeque::new(),
                };
                let FromAgent::Hello { version: theirs, name, facts, labels, held, .. } =
                    peer.receive().await
                else {
                    panic!("the first message is Hello")
                };
                assert_eq!(theirs, PROTOCOL_VERSION);
                (peer.name, peer.facts, peer.labels, peer.held) = (name, Some(facts), labels, held);
                peer.say(&ToAgent::Welcome { version }).await;
                break peer;
            }
        })
        .await
        .expect("an agent dials in time")
    }

    /// Closes without a word to anybody.
    pub fn close(self) {
        self.endpoint.close(VarInt::from_u32(1), b"test");
    }
}

/// An agent, seen from the orchestrator.
pub struct Peer {
    pub name: String,
    pub facts: Option<Box<HostFacts>>,
    pub labels: BTreeMap<String, String>,
    pub held: Vec<TrialId>,
    pub connection: Connection,
    send: SendStream,
    receive: RecvStream,
    decoder: Decoder,
    unread: VecDeque<FromAgent>,
}

impl Peer {
    pub async fn say(&mut self, message: &ToAgent) {
        self.send.write_all(&encode(message).expect("encodes")).await.expect("the agent is there");
    }

    /// The next message, or `None` at the end of the stream.
    async fn next(&mut self) -> Option<FromAgent> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(message) = self.decoder.next_message().expect("a message") {
                return Some(message);
            }
            match self.receive.read(&mut buffer).await {
                Ok(Some(length)) => self.decoder.push(&buffer[..length]),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    async fn receive(&mut self) -> FromAgent {
        let message = tokio::time::timeout(LIMIT, self.next()).await.expect("a message in time");
        message.expect("the agent goes on")
    }

    /// Waits for the first message that `wanted` takes; keeps the others.
    pub async fn hear<T>(&mut self, wanted: impl Fn(&FromAgent) -> Option<T>) -> T {
        for position in 0..self.unread.len() {
            if let Some(found) = wanted(&self.unread[position]) {
                self.unread.remove(position);
                return found;
            }
        }
        loop {
            let message = self.receive().await;
            match wanted(&message) {
                Some(found) => return found,
                None => self.unread.push_back(message),
            }
        }
    }

    /// Everything that is said until the agent closes, with what has not been asked for before.
    pub async fn rest(&mut self) -> Vec<FromAgent> {
        while let Some(message) = tokio::time::timeout(LIMIT, self.next()).await.expect("closed in time") {
            self.unread.push_back(message);
        }
        self.unread.drain(..).collect()
    }
}
