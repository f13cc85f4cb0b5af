//! The agent's side of the link alone: whom it believes, and how it comes back.

use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use quinn::VarInt;
use tokio::sync::{mpsc, oneshot};
use toll_node_agent::identity::Identity;
use toll_node_agent::link::{Link, LinkEvent};
use toll_protocol::PROTOCOL_VERSION;
use toll_protocol::facts::HostFacts;
use toll_protocol::message::{FromAgent, Instance};

use crate::Test;
use crate::orchestrator::{Authority, SERVER_NAME, Server};

pub const TESTS: &[Test] = &[
    ("connections::who_is_thrown_out_again_comes_back_ever_more_slowly", thrown_out_again),
    ("connections::a_certificate_without_the_purpose_of_a_server_is_told_nothing", no_purpose),
];

/// For anything that must come.
const LIMIT: Duration = Duration::from_secs(15);

/// Keeps a link to `port` of this machine, and answers for its agent; what else it tells comes here.
fn dial(authority: &Authority, port: u16) -> (mpsc::Receiver<LinkEvent>, oneshot::Sender<()>) {
    let files = authority.files("host-1");
    let [ca, certificate, key] = ["ca.pem", "certificate.pem", "key.pem"].map(|name| files.join(name));
    let identity = Identity::read(&ca, &certificate, &key).expect("certificates");
    let orchestrator = format!("127.0.0.1:{port}").parse().expect("an address");
    let link = Link::new(orchestrator, SERVER_NAME.into(), &identity).expect("a link");
    let (_, outgoing) = mpsc::channel(1);
    let (events, heard) = mpsc::channel(16);
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(link.run(outgoing, events, stopped));
    (heard, stop)
}

fn hello() -> FromAgent {
    let facts = HostFacts { tun: Ok(()), ..HostFacts::default() };
    FromAgent::Hello {
        version: PROTOCOL_VERSION,
        name: "host-1".into(),
        instance: Instance(1),
        facts: Box::new(facts),
        labels: std::collections::BTreeMap::new(),
        held: Vec::new(),
    }
}

fn on_a_runtime(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(test);
}

fn thrown_out_again() -> Result<(), Failed> {
    on_a_runtime(async {
        let authority = Authority::new();
        let server = Server::listen(&authority, 0);
        let (mut heard, _stop) = dial(&authority, server.port);
        tokio::spawn(async move {
            while let Some(event) = heard.recv().await {
                if let LinkEvent::HelloWanted(answer) = event {
                    drop(answer.send(hello()));
                }
            }
        });
        server.accept().await.connection.close(VarInt::from_u32(7), b"thrown out");
        let began = Instant::now();
        for _ in 0..5 {
            server.accept().await.connection.close(VarInt::from_u32(7), b"thrown out");
        }
        // At least half of 0.1 + 0.2 + 0.4 + 0.8 + 1.6 s.
        assert!(began.elapsed() > Duration::from_millis(1500), "{:?}", began.elapsed());
    });
    Ok(())
}

fn no_purpose() -> Result<(), Failed> {
    on_a_runtime(async {
        let authority = Authority::new();
        let server = Server::listen_for(&authority, 0, None);
        let (mut heard, _stop) = dial(&authority, server.port);
        let accepting = tokio::spawn(async move { server.accept().await });
        let event = tokio::time::timeout(LIMIT, heard.recv()).await.expect("in time").expect("the link runs");
        let LinkEvent::NotConnected(reason) = event else { panic!("it is believed: {event:?}") };
        assert!(reason.contains("server authentication is not among its extended key usages"), "{reason}");
        accepting.abort();
    });
    Ok(())
}
